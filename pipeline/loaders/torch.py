"""torch + torchvision only: the fallback for every device, and the reference for every other loader."""

from collections.abc import Iterator

from torch.utils.data import Dataset

from pipeline import workers
from pipeline.contract import Batch, Loader, LoaderSpec
from pipeline.decode import load_image
from pipeline.plan import Indices
from pipeline.ring import BatchRing
from pipeline.transfer import to_device

READS = ("webdataset", "folder", "ffcv")

Request = tuple[int, int, int, Indices]
"""(epoch, resolution, batch, dataset positions): what a worker needs to make one batch."""


class BatchDataset(Dataset[Batch]):
    """Makes the batch that is asked for. Workers get a new epoch with the request itself. Opens the split."""

    def __init__(self, spec: LoaderSpec, ring: BatchRing) -> None:
        self._samples, self._policy, self._seed, self._ring = spec.split.samples, spec.crop, spec.seed, ring

    def __getitem__(self, request: Request) -> Batch:
        epoch, resolution, number, indices = request
        batch = self._ring.batch(number, indices, resolution)
        images, labels = batch.images.permute(0, 2, 3, 1).numpy(), batch.labels.numpy()
        for row, index in enumerate(indices.tolist()):
            stored, labels[row] = self._samples[index]
            load_image(self._samples, index, stored, self._policy, self._seed, epoch, images[row])
        return batch


class _Requests:
    """The sampler of the DataLoader: set for an epoch, then iterated once."""

    def __init__(self) -> None:
        self.upcoming: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.upcoming


class TorchLoader:
    """A torch DataLoader whose items are whole batches."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec, self._plan, self._requests = spec, spec.plan, _Requests()
        self.batches_per_epoch = self._plan.batches_per_epoch
        dataset = BatchDataset(spec, BatchRing(spec.workers, spec.batch_size, spec.max_resolution))
        self._loader = workers.loader(dataset, spec.workers, sampler=self._requests)

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        batches = enumerate(self._plan.batches(epoch, start_batch))
        self._requests.upcoming = ((epoch, resolution, number, indices) for number, indices in batches)
        return to_device(workers.epoch(self._loader), self._spec)

    def close(self) -> None:
        workers.end(self._loader)


def create(spec: LoaderSpec) -> Loader:
    """The loader of this file."""
    return TorchLoader(spec)
