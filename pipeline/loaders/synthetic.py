"""One constant batch: the ceiling of everything after the loader."""

from collections.abc import Iterator

import torch

from ..contract import Batch, Loader, LoaderFacts, LoaderSpec

FACTS = LoaderFacts(reads=(), needs="nothing: the ceiling of everything after the loader")


class SyntheticLoader:
    """Random pixels, generated once on the device; every batch is a view of them, of the length of the plan's batch."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec, self._plan = spec, spec.plan
        self.batches_per_epoch = self._plan.batches_per_epoch
        self._batch: Batch | None = None

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        if self._batch is None or self._batch.images.shape[-1] != resolution:
            self._batch = self._random_batch(resolution)
        for indices in self._plan.batches(epoch, start_batch):
            yield Batch(*(tensor[: len(indices)] for tensor in self._batch))

    def _random_batch(self, resolution: int) -> Batch:
        spec = self._spec
        generator = torch.Generator().manual_seed(spec.seed)
        shape = (spec.batch_size, resolution, resolution, 3)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
        labels = torch.randint(len(spec.split.classes), shape[:1], generator=generator)
        batch = Batch(images, labels, torch.arange(spec.batch_size))
        if not spec.channels_last:
            batch = batch._replace(images=images.contiguous())
        return Batch(*(tensor.to(spec.device) for tensor in batch))

    def close(self) -> None:
        """Holds nothing but memory."""


def create(spec: LoaderSpec) -> Loader:
    """One constant batch, for any split."""
    return SyntheticLoader(spec)
