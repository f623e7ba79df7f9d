"""The webdataset library over shards, local or on a web server.

Local shards are read in the plan's order: a batch is a tar stream, the pieces of the shards that hold its samples
one after the other. Remote shards are streamed from their beginnings, in the order of a StreamPlan. In both,
webdataset's own stages read the stream, group the files of a sample, map them to images and batch them.
"""

import io
import mmap
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

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


class Request(NamedTuple):
    """What the stages are to make: the arguments of `Loader.epoch`."""

    epoch: int
    resolution: int
    start_batch: int


class SharedRequest:
    """The present one, in memory that the loader shares with its workers: a pipeline is made once for all epochs.

    A worker begins an epoch when the DataLoader tells it so, which is after `set`. Whatever it has made of the one
    before, or of half of each, the DataLoader drops.
    """

    def __init__(self) -> None:
        self._values = np.frombuffer(mmap.mmap(-1, 8 * len(Request._fields)), np.int64)
        self._is_first = True

    def set(self, request: Request) -> None:
        """To be read by epochs that begin from now on."""
        self._values[:] = request

    def get(self) -> Request:
        """The one set last."""
        return Request(*self._values.tolist())

    def begun(self) -> Request | None:
        """The same at the beginning of an epoch; None at a worker's first, with which it is started."""
        first, self._is_first = self._is_first, False
        return None if first and get_worker_info() else self.get()


def batch_streams(spec: LoaderSpec, shared: SharedRequest) -> Iterator[dict[str, Any]]:
    """The first stage: this worker's batches, each as a tar stream. Worker w of W makes batches w, w + W, ..."""
    first, step = _my_share()
    if (request := shared.begun()) is None:
        return
    shards = spec.split.shards
    for indices in islice(spec.plan.batches(request.epoch, request.start_batch), first, None, step):
        stream = io.BytesIO(b"".join(map(shards.read_members, indices.tolist())))
        yield {"url": str(spec.split.path), "stream": stream}


def load_batches(
    spec: LoaderSpec, ring: BatchRing, shared: SharedRequest, batches: Iterator[list[dict[str, Any]]]
) -> Iterator[Batch]:
    """The last stage: this worker's batches, from the samples that webdataset grouped."""
    first, step = _my_share()
    request = shared.get()
    for number, samples in enumerate(batches):
        indices = np.array([position_of(spec, sample) for sample in samples], np.int64)
        batch = ring.batch(first + number * step, indices, request.resolution)
        yield load_batch(spec, request.epoch, samples, batch)


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


def streamed_parts(spec: LoaderSpec, shared: SharedRequest) -> Iterator[list[dict[str, Any]]]:
    """The first stage of a stream: of each batch, the samples in this worker's lanes. So every worker reads
    shards of its own, and a batch holds the same samples for any number of workers."""
    first, step = _my_share()
    if (request := shared.begun()) is None:
        return
    plan = spec.stream_plan
    batches = list(plan.batches(request.epoch, request.start_batch))
    wanted = np.zeros(spec.split.num_samples, np.bool_)
    lane_of = np.full(spec.split.num_samples, -1, np.int16)
    for batch in batches:
        wanted[batch] = True
    readers = {}
    for number, lane in list(enumerate(plan.lanes(request.epoch)))[first::step]:
        lane_of[lane] = number
        readers[number] = LaneReader(spec, lane[wanted[lane]])
    for batch in batches:
        yield [readers[lane_of[index]].take(int(index)) for index in batch if lane_of[index] >= 0]


def load_part(spec: LoaderSpec, shared: SharedRequest, samples: list[dict[str, Any]]) -> Batch:
    """A worker's part of a batch, possibly empty."""
    epoch, resolution, _ = shared.get()
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
    """A webdataset pipeline in a DataLoader's workers, iterated anew for each epoch."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec = spec
        self.batches_per_epoch = spec.plan.batches_per_epoch
        self._shared = SharedRequest()
        stages, num_workers = self._streamed() if spec.split.url else self._local()
        # webdataset's WebLoader is this DataLoader behind a generator, out of whose reach `close` ends the workers.
        self._loader = workers.loader(webdataset.DataPipeline(*stages), num_workers)

    def _local(self) -> tuple[list[Any], int]:
        """The stages, and in how many workers: each makes whole batches."""
        spec = self._spec
        _ = spec.split.shards  # opened here, once for all workers
        ring = BatchRing(spec.workers, spec.batch_size, spec.max_resolution)
        stages = [partial(batch_streams, spec, self._shared), tar_file_expander, group_by_keys]
        stages += [webdataset.batched(spec.batch_size, collation_fn=None, partial=True)]
        stages += [partial(load_batches, spec, ring, self._shared)]
        return stages, spec.workers

    def _streamed(self) -> tuple[list[Any], int]:
        """The same where each makes its part of every batch."""
        spec = self._spec
        stages: list[Any] = [partial(streamed_parts, spec, self._shared)]
        stages += [webdataset.map(partial(load_part, spec, self._shared))]
        return stages, min(spec.workers, len(spec.stream_plan.my_lanes))

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        spec = self._spec
        self._shared.set(Request(epoch, resolution, start_batch))
        batches = workers.epoch(self._loader)
        if spec.split.url:
            batches = joined(batches, spec.plan.batches(epoch, start_batch), max(1, self._loader.num_workers))
        return to_device(batches, spec)

    def close(self) -> None:
        workers.end(self._loader)


def create(spec: LoaderSpec) -> Loader:
    """The loader of this file."""
    return WebDatasetLoader(spec)
