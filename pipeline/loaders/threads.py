"""The batches of the `torch` loader, loaded by threads: nothing is forked, so it may be opened at any time.

Reading, decoding and resizing release the GIL. Next to `torch`, epochs in turn: 1.05 times its images/s, quartiles 0.80
and 1.22, on 2 cores that other programs used too. How it scales to many cores has not been measured.
"""

from collections.abc import Generator, Iterator

from ..contract import Batch, Loader, LoaderFacts, LoaderSpec
from ..pixels.loading import prepare
from ..threads import in_order
from ._ring import PREFETCH, BatchRing
from ._transfer import to_device
from .torch import BatchDataset, BatchKey

FACTS = LoaderFacts(
    reads=("webdataset", "folder", "ffcv"),
    priority=15,
    needs="nothing more; it forks no processes",
    timed=("read", "crop", "decode", "entropy", "transform", "colour", "resize", "collate"),
)


class ThreadLoader:
    """Threads that load a batch each."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec, self._plan, self._workers = spec, spec.plan, max(1, spec.workers)
        self.batches_per_epoch = self._plan.batches_per_epoch
        prepare(spec)  # before the threads need it
        ring = BatchRing(self._workers, spec.batch_size, spec.max_resolution)
        self._dataset = BatchDataset(spec, ring)
        self._running: Generator[Batch, None, None] | None = None

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        self.close()
        self._running = self._loaded(epoch, resolution, start_batch)
        return to_device(self._running, self._spec)

    def _loaded(self, epoch: int, resolution: int, start_batch: int) -> Generator[Batch, None, None]:
        batches = enumerate(self._plan.batches(epoch, start_batch))
        keys: Iterator[BatchKey] = ((epoch, resolution, number, indices) for number, indices in batches)
        return in_order(self._dataset.__getitem__, keys, self._workers, ahead=PREFETCH * self._workers)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


def create(spec: LoaderSpec) -> Loader:
    """Threads over the split's samples. Raises InputError where they cannot be opened."""
    return ThreadLoader(spec)
