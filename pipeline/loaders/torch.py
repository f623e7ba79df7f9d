"""torch + torchvision only: the fallback for every device, and the reference for every other loader."""

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline import workers
from pipeline.contract import Batch, Loader, LoaderSpec
from pipeline.decode import load_image
from pipeline.plan import Indices
from pipeline.transfer import to_device

READS = ("webdataset", "folder", "ffcv")

Request = tuple[int, int, Indices]
"""(epoch, resolution, dataset positions): what a worker needs to make one batch."""


class BatchDataset(Dataset[Batch]):
    """Makes the batch that is asked for. Workers get a new epoch or resolution with the request itself, so
    they live as long as the loader."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._samples, self._policy, self._seed = spec.split.samples, spec.crop, spec.seed

    def __getitem__(self, request: Request) -> Batch:
        epoch, resolution, indices = request
        images = torch.empty(len(indices), resolution, resolution, 3, dtype=torch.uint8)
        labels = torch.empty(len(indices), dtype=torch.int64)
        rows = images.numpy()
        for row, index in enumerate(indices.tolist()):
            stored, labels[row] = self._samples[index]
            load_image(self._samples, index, stored, self._policy, self._seed, epoch, rows[row])
        # HWC memory, seen as NCHW: channels_last strides without another copy.
        return Batch(images.permute(0, 3, 1, 2), labels, torch.from_numpy(indices))


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
        self._loader: DataLoader[Batch] | None = DataLoader(
            BatchDataset(spec),
            batch_size=None,
            sampler=self._requests,
            num_workers=spec.workers,
            pin_memory=spec.device.type != "cpu",
            persistent_workers=spec.workers > 0,
            generator=torch.Generator(),  # it draws a seed for the workers: not from the model's generator
        )

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        assert self._loader is not None, "the loader is closed"
        self._requests.upcoming = ((epoch, resolution, indices) for indices in self._plan.batches(epoch, start_batch))
        return to_device(workers.results(iter(self._loader)), self._spec)

    def close(self) -> None:
        workers.end(getattr(self._loader, "_iterator", None))  # where it keeps persistent workers
        self._loader = None


def create(spec: LoaderSpec) -> Loader:
    """The loader of this file."""
    return TorchLoader(spec)
