"""The webdataset library over shards, local or on a web server.

Local shards are read in the plan's order: a batch is a tar stream of the pieces of the shards that hold its samples,
one after the other. Remote shards are streamed from their beginnings, in the order of a StreamPlan. Either way,
webdataset's own stages group the files of a sample, batch the samples and pass them on. The stream is taken apart by
`storage.shards.members_of`: webdataset's stage believes a stranger's headers.
"""

import contextlib
import io
import logging
import mmap
import time
from collections import deque
from collections.abc import Generator, Iterator
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import webdataset
from torch.utils.data import get_worker_info
from webdataset.tariterators import group_by_keys

from ..contract import Batch, Clock, Loader, LoaderFacts, LoaderSpec
from ..errors import InputError, StorageError
from ..order.plan import POSITION, Indices, positions
from ..pixels.loading import load_image, prepare
from ..storage.remote.cache import CachedSource, ShardCache, Wanted
from ..storage.remote.shards import DirectSource, ShardSource
from ..storage.remote.traffic import Traffic, in_words
from ..storage.shards import END, Readable, members_of, position_of_key
from . import _dataloader
from ._ring import BatchRing
from ._transfer import to_device

log = logging.getLogger(__name__)

FACTS = LoaderFacts(
    reads=("webdataset", "remote"),
    priority=10,  # it decodes as torch does; alone it reads remote shards
    package="webdataset",
    install="pip install webdataset",
    needs="webdataset (installed)",
    timed=("read", "crop", "decode", "entropy", "transform", "colour", "resize", "collate"),
    untimed="taking the tar stream apart, webdataset's stages",
    forks=True,
)


class EpochArguments(NamedTuple):
    """What the stages are to load: the arguments of `Loader.epoch`."""

    epoch: int
    resolution: int
    start_batch: int


class SharedArguments:
    """Those of the current epoch, in memory that the loader shares with its workers: one pipeline serves all epochs.

    A worker begins an epoch when the DataLoader asks for it, which is after `set`. The DataLoader drops whatever the
    worker still has of the epoch before, or of half of each.
    """

    def __init__(self) -> None:
        self._values = np.frombuffer(mmap.mmap(-1, 8 * len(EpochArguments._fields)), np.int64)
        self._is_first = True

    def set(self, arguments: EpochArguments) -> None:
        """For epochs that begin from now on."""
        self._values[:] = arguments

    def get(self) -> EpochArguments:
        """Those set last."""
        return EpochArguments(*self._values.tolist())

    def at_epoch_start(self) -> EpochArguments | None:
        """Those set last; None in a worker's first epoch, which only starts the worker."""
        first, self._is_first = self._is_first, False
        return None if first and get_worker_info() else self.get()


Pending = deque[tuple[Indices, Indices]]
"""The keys of batches and the rows of them to load, int64 each, from the first stage to the last, in one process."""

NOT_LOADED = -1
"""The label of a row that another worker loads."""


def batch_files(spec: LoaderSpec, shared: SharedArguments, pending: Pending) -> Iterator[dict[str, Any]]:
    """The first stage: the files of the different samples of this worker's batches. Worker w of W makes batches w,
    w + W, ..."""
    first, step = _my_share()
    pending.clear()
    if (arguments := shared.at_epoch_start()) is None:
        return
    shards = spec.split.shards
    for keys in islice(spec.plan.batches(arguments.epoch, arguments.start_batch), first, None, step):
        with spec.clock.part("read"):
            members = list(map(shards.read_members, distinct(keys)))
        pending.append((keys, np.arange(len(keys))))
        yield from _files(io.BytesIO(b"".join([*members, END])), str(spec.split.path), sum(map(len, members)))


def _files(stream: Readable, url: str, most: int) -> Iterator[dict[str, Any]]:
    """The files in a tar stream as webdataset's stages pass them on, with its mark of the end."""
    for name, data in members_of(stream, url, most):
        yield {"fname": name, "data": data, "__url__": url}
    yield {}


def distinct(keys: Indices) -> list[int]:
    """The different positions of a batch, in its order."""
    return list(dict.fromkeys(positions(keys).tolist()))


def load_batches(
    spec: LoaderSpec,
    ring: BatchRing,
    shared: SharedArguments,
    pending: Pending,
    batches: Iterator[list[dict[str, Any]]],
) -> Iterator[Batch]:
    """The last stage: this worker's batches, or its rows of all batches, from the samples that webdataset grouped. The
    DataLoader takes one of each worker in turn."""
    first, step = (0, 1) if spec.split.is_streamed else _my_share()
    arguments = shared.get()
    for number, samples in enumerate(batches):
        keys, rows = pending.popleft()
        batch = ring.batch(first + number * step, positions(keys), arguments.resolution)
        yield load_rows(spec, arguments.epoch, keys, rows, samples, batch)


def load_rows(
    spec: LoaderSpec, epoch: int, keys: Indices, rows: Indices, samples: list[dict[str, Any]], batch: Batch
) -> Batch:
    """Fill these rows of the batch that has these keys from the files of their samples, as webdataset grouped them.
    Nothing is unpickled."""
    shards = spec.split.remote if spec.split.is_streamed else spec.split.shards
    with spec.clock.part("collate"):
        images, labels = batch.images.permute(0, 2, 3, 1).numpy(), batch.labels.numpy()
        labels[:] = NOT_LOADED
        found = {position_of(spec, sample): sample for sample in samples}
        for row, key in zip(rows.tolist(), keys[rows].tolist(), strict=True):
            index = key & POSITION
            sample = found.get(index)
            if sample is None:
                raise missing(spec, index)
            try:
                jpeg, labels[row] = sample["jpg"], shards.label(sample["cls"], index)
            except KeyError as error:
                raise InputError(f"{shards.name(index)}: has no {error} file; convert again") from None
            load_image(spec, shards, key, jpeg, epoch, images[row])
    return batch


def _my_share() -> tuple[int, int]:
    """This worker's first batch, and the step to its next."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


def position_of(spec: LoaderSpec, sample: dict[str, Any]) -> int:
    """The dataset position of a sample that webdataset grouped. Raises InputError for a foreign one."""
    shards = spec.split.remote if spec.split.is_streamed else spec.split.shards
    try:
        return position_of_key(sample["__key__"], shards.first)
    except ValueError:
        raise InputError(
            f"{sample['__url__']}: {sample['__key__']} is no sample of this dataset; convert again"
        ) from None


def missing(spec: LoaderSpec, position: int) -> InputError:
    """The error for a sample that its shard should hold, and does not."""
    shards = spec.split.remote if spec.split.is_streamed else spec.split.shards
    return InputError(f"{shards.name(position)}: not in its shard; convert again")


class TimedStream:
    """A stream of which each read is counted."""

    def __init__(self, stream: BinaryIO, clock: Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        with self._clock.part("read"):
            return self._stream.read(size)


def stream_samples(spec: LoaderSpec, source: ShardSource, numbers: list[int]) -> Generator[dict[str, Any]]:
    """The samples of shards, one after the other, as webdataset groups them: `{"__key__": ..., "jpg": ...}`.

    A shard is opened once the one before it is read. Raises StorageError naming a shard that cannot be opened or is
    damaged.
    """
    for number in numbers:
        url, size = spec.split.remote.address(number), spec.split.remote.infos[number].bytes
        with source.open(number) as stream:
            try:
                yield from group_by_keys(_files(TimedStream(stream, spec.clock), url, size))
            except InputError:
                raise
            except Exception as error:  # webdataset raises whatever broken data leads to
                raise StorageError(f"{url}: is damaged ({type(error).__name__})") from None


class LaneReader:
    """Streams a lane's shards and returns its samples in another order, within the plan's bounded shuffle.

    `lane` is int64: the positions that will be asked for, in the order of the shards. Samples between them (another
    lane's part of a shard, or batches before `start_batch`) are skipped.
    """

    def __init__(self, spec: LoaderSpec, source: ShardSource, lane: Indices) -> None:
        self._spec, self._wanted = spec, lane
        self._stream = stream_samples(spec, source, spec.split.remote.numbers_of(lane))
        self._buffer: dict[int, dict[str, Any]] = {}
        self._read = 0

    def take(self, position: int) -> dict[str, Any]:
        """The files of one sample. Raises InputError where it is missing from the shards."""
        while position not in self._buffer:
            sample = next(self._stream, None)
            if sample is None:
                raise missing(self._spec, position)
            arrived = position_of(self._spec, sample)
            if self._read < len(self._wanted) and arrived == self._wanted[self._read]:
                self._buffer[arrived] = sample
                self._read += 1
        return self._buffer.pop(position)

    def close(self) -> None:
        """Give up the shard that is being read."""
        self._stream.close()


class LaneSources:
    """Opens a worker's shards, epoch after epoch: directly, or from the cache, which learns what will be read."""

    def __init__(self, spec: LoaderSpec, traffic: Traffic) -> None:
        self._spec, self._traffic = spec, traffic
        self._cache: ShardCache | None = None

    def for_lanes(self, epoch: int, lanes: dict[int, Indices]) -> ShardSource:
        """The source for an epoch of which `lanes`, by number, will be read. Raises InputError and StorageError."""
        settings, remote = self._spec.split.settings, self._spec.split.remote
        traffic = self._traffic.of_reader(_my_share()[0])
        if settings.cache is None:
            return DirectSource(remote, settings.access, traffic)
        if self._cache is None:
            self._cache = ShardCache(settings.cache, settings.access, traffic)
        upcoming = self._wanted(epoch, lanes)
        following = dict(zip(lanes, map(self._spec.stream_plan.lanes(epoch + 1).__getitem__, lanes), strict=True))
        self._cache.plan(upcoming, self._wanted(epoch + 1, following))
        return CachedSource(self._cache, upcoming, remote)

    def _wanted(self, epoch: int, lanes: dict[int, Indices]) -> list[Wanted]:
        """When each shard of the lanes is needed first."""
        remote, wanted = self._spec.split.remote, list[Wanted]()
        for lane in lanes.values():
            shards = np.searchsorted(remote.first, lane, side="right") - 1
            for place in np.flatnonzero(np.diff(shards, prepend=-1)).tolist():
                number = int(shards[place])
                wanted.append(Wanted(epoch + place / len(lane), remote.address(number), remote.infos[number]))
        return wanted


def streamed_parts(
    spec: LoaderSpec, shared: SharedArguments, pending: Pending, sources: LaneSources
) -> Iterator[list[dict[str, Any]]]:
    """The first stage of a stream: of each batch, the different samples in this worker's lanes, if any. So every worker
    reads shards of its own, and a batch is the same for any number of workers."""
    first, step = _my_share()
    pending.clear()
    if (arguments := shared.at_epoch_start()) is None:
        return
    plan = spec.stream_plan
    batches = list(plan.batches(arguments.epoch, arguments.start_batch))
    wanted = np.zeros(spec.split.num_samples, np.bool_)
    lane_of = np.full(spec.split.num_samples, -1, np.int16)
    for batch in batches:
        wanted[positions(batch)] = True
    lanes = dict(list(enumerate(plan.lanes(arguments.epoch)))[first::step])
    for number, lane in lanes.items():
        lane_of[lane] = number
    lanes = {number: lane[wanted[lane]] for number, lane in lanes.items()}
    source = sources.for_lanes(arguments.epoch, lanes)
    with contextlib.ExitStack() as opened:
        readers = {number: LaneReader(spec, source, lane) for number, lane in lanes.items()}
        for reader in readers.values():
            opened.callback(reader.close)
        for batch in batches:
            rows = np.flatnonzero(lane_of[positions(batch)] >= 0)
            pending.append((batch, rows))
            yield [readers[lane_of[index]].take(index) for index in distinct(batch[rows])]


def joined(parts: Iterator[Batch], workers: int) -> Iterator[Batch]:
    """Batches of which every worker has loaded its rows, all into the same memory. A label came from the worker that
    loaded the row."""
    for batch in parts:
        for other in islice(parts, workers - 1):
            torch.maximum(batch.labels, other.labels, out=batch.labels)
        yield batch


class WebDatasetLoader:
    """A webdataset pipeline in a DataLoader's workers, iterated again for each epoch."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec = spec
        self.batches_per_epoch = spec.plan.batches_per_epoch
        self._shared = SharedArguments()
        prepare(spec)  # before the workers are forked
        stages, num_workers = self._streamed() if spec.split.is_streamed else self._local()
        # webdataset's WebLoader is this DataLoader behind a generator, out of whose reach `close` ends the workers.
        self._loader = _dataloader.batch_loader(webdataset.DataPipeline(*stages), num_workers)

    def _local(self) -> tuple[list[Any], int]:
        """The stages and the number of workers for local shards: each worker loads whole batches."""
        spec = self._spec
        _ = spec.split.shards  # opened here, once for all workers
        ring, pending = BatchRing(spec.workers, spec.batch_size, spec.max_resolution), Pending()
        stages = [partial(batch_files, spec, self._shared, pending), group_by_keys]
        different = min(spec.batch_size, spec.batch_size * spec.world_size // spec.repeats)
        stages += [webdataset.batched(different, collation_fn=None, partial=True)]
        stages += [partial(load_batches, spec, ring, self._shared, pending)]
        return stages, spec.workers

    def _streamed(self) -> tuple[list[Any], int]:
        """The stages and the number of workers for a stream: each worker loads its rows of every batch."""
        spec = self._spec
        num_workers = min(spec.workers, len(spec.stream_plan.my_lanes))
        # For whole batches: every worker has the same ones ready.
        ring = BatchRing(1, spec.batch_size, spec.max_resolution)
        pending, self._traffic = Pending(), Traffic(max(1, num_workers))
        stages = [
            partial(streamed_parts, spec, self._shared, pending, LaneSources(spec, self._traffic)),
            partial(load_batches, spec, ring, self._shared, pending),
        ]
        return stages, num_workers

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        spec = self._spec
        self._shared.set(EpochArguments(epoch, resolution, start_batch))
        batches = _dataloader.epoch(self._loader)
        if spec.split.is_streamed:
            batches = joined(batches, max(1, self._loader.num_workers))
            batches = self._reported(batches, epoch)
        return to_device(batches, spec)

    def _reported(self, batches: Iterator[Batch], epoch: int) -> Iterator[Batch]:
        """The same batches; at their end, what reading has cost the workers of the first rank is logged."""
        started = time.monotonic()
        try:
            yield from batches
        finally:
            counts = self._traffic.take()
            if self._spec.rank == 0:
                words = in_words(counts, time.monotonic() - started)
                log.info("%s of epoch %d, rank 0: %s", self._spec.split.name, epoch, words)

    def close(self) -> None:
        _dataloader.close(self._loader)


def create(spec: LoaderSpec) -> Loader:
    """webdataset over the split's shards. Raises InputError where they cannot be opened."""
    return WebDatasetLoader(spec)
