"""The webdataset library over shards, local or on a web server.

Local shards are read in the plan's order: a batch is a tar stream, the pieces of the shards that hold its samples
one after the other. Remote shards are streamed from their beginnings, in the order of a StreamPlan. In both,
webdataset's own stages read the stream, group the files of a sample, map them to images and batch them.
"""

import io
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
import webdataset
from torch.utils.data import get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline import workers
from pipeline.contract import Batch, Loader, LoaderSpec
from pipeline.decode import load_image
from pipeline.errors import InputError
from pipeline.formats.remote import open_url
from pipeline.formats.shards import position_of_key
from pipeline.plan import Indices
from pipeline.ring import BatchRing
from pipeline.transfer import to_device

READS = ("webdataset", "remote")


def batch_streams(spec: LoaderSpec, epoch: int, start_batch: int) -> Iterator[dict[str, Any]]:
    """The first stage: this worker's batches, each as a tar stream. Worker w of W makes batches w, w + W, ..."""
    first, step = _my_share()
    shards = spec.split.shards
    for indices in islice(spec.plan.batches(epoch, start_batch), first, None, step):
        stream = io.BytesIO(b"".join(map(shards.read_members, indices.tolist())))
        yield {"url": str(spec.split.path), "stream": stream}


def load_batches(
    spec: LoaderSpec, ring: BatchRing, epoch: int, resolution: int, batches: Iterator[list[dict[str, Any]]]
) -> Iterator[Batch]:
    """The last stage: this worker's batches, from the samples that webdataset grouped."""
    first, step = _my_share()
    for number, samples in enumerate(batches):
        indices = np.array([position_of(spec, sample) for sample in samples], np.int64)
        yield load_batch(spec, epoch, samples, ring.batch(first + number * step, indices, resolution))


def load_batch(spec: LoaderSpec, epoch: int, samples: list[dict[str, Any]], batch: Batch) -> Batch:
    """From the files of samples, as webdataset grouped them, to images. Nothing is unpickled."""
    shards = spec.split.remote if spec.split.url else spec.split.shards
    images, labels = batch.images.permute(0, 2, 3, 1).numpy(), batch.labels.numpy()
    for row, (sample, index) in enumerate(zip(samples, batch.indices.tolist(), strict=True)):
        try:
            jpeg, labels[row] = sample["jpg"], shards.label(sample["cls"], index)
        except KeyError as error:
            raise InputError(f"{shards.name(index)}: has no {error} file; convert again") from None
        load_image(shards, index, jpeg, spec.crop, spec.seed, epoch, images[row])
    return batch


def _my_share() -> tuple[int, int]:
    """This worker's first batch, and how many batches on the next is."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


def position_of(spec: LoaderSpec, sample: dict[str, Any]) -> int:
    """The dataset position of a sample that webdataset grouped. Raises InputError for a foreign one."""
    shards = spec.split.remote if spec.split.url else spec.split.shards
    try:
        return position_of_key(sample["__key__"], shards.first)
    except ValueError:
        raise InputError(
            f"{sample['__url__']}: {sample['__key__']} is no sample of this dataset; convert again"
        ) from None


def stream_samples(urls: list[str]) -> Iterator[dict[str, Any]]:
    """The samples of shards, one after the other, as webdataset groups them: `{"__key__": ..., "jpg": ...}`.

    Each shard is opened when the one before is read. Raises InputError naming a shard that breaks off.
    """
    for url in urls:
        with open_url(url) as stream:
            try:
                yield from group_by_keys(tar_file_expander(iter([{"url": url, "stream": stream}])))
            except InputError:
                raise
            except Exception as error:  # tarfile, http and webdataset raise whatever broken data leads to
                raise InputError(f"{url}: breaks off or is damaged ({type(error).__name__})") from None


class LaneReader:
    """Streams a lane's shards and gives its samples in another order, within the plan's bounded shuffle.

    `lane` is int64: the positions that will be asked for, in the order of the shards. What stands between them
    (another lane's part of a shard, or batches before `start_batch`) is read over.
    """

    def __init__(self, spec: LoaderSpec, lane: Indices) -> None:
        self._spec, self._wanted = spec, lane
        self._stream = stream_samples(spec.split.remote.urls_of(lane))
        self._buffer: dict[int, dict[str, Any]] = {}
        self._read = 0

    def take(self, position: int) -> dict[str, Any]:
        """The files of one sample. Raises InputError where the shards do not have it."""
        while position not in self._buffer:
            sample = next(self._stream, None)
            if sample is None:
                raise InputError(f"{self._spec.split.remote.name(position)}: not in its shard; convert again")
            found = position_of(self._spec, sample)
            if self._read < len(self._wanted) and found == self._wanted[self._read]:
                self._buffer[found] = sample
                self._read += 1
        return self._buffer.pop(position)


def streamed_parts(spec: LoaderSpec, epoch: int, start_batch: int) -> Iterator[list[dict[str, Any]]]:
    """The first stage of a stream: of each batch, the samples in this worker's lanes. So every worker reads
    shards of its own, and a batch holds the same samples for any number of workers."""
    first, step = _my_share()
    plan = spec.stream_plan
    batches = list(plan.batches(epoch, start_batch))
    wanted = np.zeros(spec.split.num_samples, np.bool_)
    lane_of = np.full(spec.split.num_samples, -1, np.int16)
    for batch in batches:
        wanted[batch] = True
    readers = {}
    for number, lane in list(enumerate(plan.lanes(epoch)))[first::step]:
        lane_of[lane] = number
        readers[number] = LaneReader(spec, lane[wanted[lane]])
    for batch in batches:
        yield [readers[lane_of[index]].take(int(index)) for index in batch if lane_of[index] >= 0]


def load_part(spec: LoaderSpec, epoch: int, resolution: int, samples: list[dict[str, Any]]) -> Batch:
    """A worker's part of a batch, possibly empty."""
    images = torch.empty(len(samples), resolution, resolution, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    indices = torch.tensor([position_of(spec, sample) for sample in samples], dtype=torch.int64)
    return load_batch(spec, epoch, samples, Batch(images, torch.empty_like(indices), indices))


def joined(parts: Iterator[Batch], batches: Iterator[Indices], workers: int) -> Iterator[Batch]:
    """Whole batches, in the plan's order, from the workers' parts of them."""
    for indices in batches:
        images, labels, positions = (torch.cat(column) for column in zip(*islice(parts, workers), strict=True))
        order = torch.argsort(positions)[torch.argsort(torch.argsort(torch.from_numpy(indices)))]
        ordered = images.permute(0, 2, 3, 1)[order].permute(0, 3, 1, 2)
        yield Batch(ordered, labels[order], positions[order])


class WebDatasetLoader:
    """A webdataset pipeline for each epoch, in a DataLoader's workers."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec = spec
        self._shards = spec.split.remote if spec.split.url else spec.split.shards  # opened once for all workers
        self.batches_per_epoch = spec.plan.batches_per_epoch
        self._iterator: Iterator[Batch] | None = None
        self._ring: BatchRing | None = None

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        self.close()
        if start_batch >= self.batches_per_epoch:
            return iter(())
        spec = self._spec
        if spec.split.url:
            return to_device(self._streamed(epoch, resolution, start_batch), spec)
        if self._ring is None or self._ring.resolution < resolution:
            self._ring = BatchRing(spec.workers, spec.batch_size, resolution)
        stages = [partial(batch_streams, spec, epoch, start_batch), tar_file_expander, group_by_keys]
        stages += [webdataset.batched(spec.batch_size, collation_fn=None, partial=True)]
        stages += [partial(load_batches, spec, self._ring, epoch, resolution)]
        return to_device(self._loaded(stages, spec.workers), spec)

    def _streamed(self, epoch: int, resolution: int, start_batch: int) -> Iterator[Batch]:
        spec = self._spec
        num_workers = min(spec.workers, len(spec.stream_plan.my_lanes))
        stages: list[Any] = [partial(streamed_parts, spec, epoch, start_batch)]
        stages += [webdataset.map(partial(load_part, spec, epoch, resolution))]
        return joined(self._loaded(stages, num_workers), spec.plan.batches(epoch, start_batch), max(1, num_workers))

    def _loaded(self, stages: list[Any], num_workers: int) -> Iterator[Batch]:
        """What a webdataset pipeline gives, made by worker processes.

        webdataset's WebLoader is this DataLoader behind a generator, out of whose reach `close` ends the workers.
        """
        self._iterator = iter(workers.loader(webdataset.DataPipeline(*stages), self._spec, num_workers))
        return workers.results(self._iterator)

    def close(self) -> None:
        workers.end(self._iterator)
        self._iterator = None


def create(spec: LoaderSpec) -> Loader:
    """The loader of this file."""
    return WebDatasetLoader(spec)
