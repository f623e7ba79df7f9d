"""torch + torchvision only: the fallback for every device, and the reference for every other loader."""

from collections.abc import Iterator

from torch.utils.data import Dataset

from ..contract import Batch, Loader, LoaderFacts, LoaderSpec
from ..order.plan import POSITION, Indices, positions
from ..pixels.loading import load_image, prepare
from . import _dataloader
from ._ring import BatchRing
from ._transfer import to_device

FACTS = LoaderFacts(
    reads=("webdataset", "folder", "ffcv"),
    priority=20,
    timed=("read", "crop", "decode", "entropy", "transform", "colour", "resize", "collate"),
    forks=True,
)

BatchKey = tuple[int, int, int, Indices]
"""(epoch, resolution, number of the batch, the samples' keys): what a worker needs to load one batch."""


class BatchDataset(Dataset[Batch]):
    """Loads a batch by its key, which carries the epoch to the workers. Opens the split."""

    def __init__(self, spec: LoaderSpec, ring: BatchRing) -> None:
        self._spec, self._samples, self._ring = spec, spec.split.samples, ring

    def __getitem__(self, key: BatchKey) -> Batch:
        epoch, resolution, number, keys = key
        spec, clock = self._spec, self._spec.clock
        with clock.part("collate"):
            batch = self._ring.batch(number, positions(keys), resolution)
            images, labels = batch.images.permute(0, 2, 3, 1).numpy(), batch.labels.numpy()
            for row, sample_key in enumerate(keys.tolist()):
                with clock.part("read"):
                    stored, labels[row] = self._samples[sample_key & POSITION]
                load_image(spec, self._samples, sample_key, stored, epoch, images[row])
        return batch


class _EpochSampler:
    """The sampler of the DataLoader: its keys are set for an epoch, then iterated once."""

    def __init__(self) -> None:
        self.keys: Iterator[BatchKey] = iter(())

    def __iter__(self) -> Iterator[BatchKey]:
        return self.keys


class TorchLoader:
    """A torch DataLoader whose items are whole batches."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec, self._plan, self._sampler = spec, spec.plan, _EpochSampler()
        self.batches_per_epoch = self._plan.batches_per_epoch
        prepare(spec)  # before the workers are forked
        dataset = BatchDataset(spec, BatchRing(spec.workers, spec.batch_size, spec.max_resolution))
        self._loader = _dataloader.batch_loader(dataset, spec.workers, sampler=self._sampler)

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        batches = enumerate(self._plan.batches(epoch, start_batch))
        self._sampler.keys = ((epoch, resolution, number, keys) for number, keys in batches)
        return to_device(_dataloader.epoch(self._loader), self._spec)

    def close(self) -> None:
        _dataloader.close(self._loader)


def create(spec: LoaderSpec) -> Loader:
    """A DataLoader over the split's samples. Raises InputError where they cannot be opened."""
    return TorchLoader(spec)
