"""From a loader's batch to what the model sees: augmentation and mixing, a function of the seed and of the batch's
place in the run."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.contract import Batch
from pipeline.order.plan import Indices, RankPlan
from train import randomness
from train.process import Process


def joined(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Each `count` batches as one, copied as they come: those of a loader are valid until the next is asked for."""
    while parts := [Batch(*(part.clone() for part in batch)) for batch in itertools.islice(batches, count)]:
        yield Batch(*map(torch.cat, zip(*parts, strict=True)))


class PlannedKeys:
    """The sample keys of this rank's batches, on the host: those on the device would have to be waited for."""

    def __init__(self, plan: RankPlan) -> None:
        self._plan, self._epoch = plan, -1
        self._order = np.empty(0, np.int64)

    def of(self, epoch: int, batch: int) -> Indices:
        """Of a batch of an epoch, int64 [B]."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._plan.order(epoch)
        return self._plan.batch(self._order, batch)


class Preparation:
    """Prepares the training batches of a process."""

    def __init__(self, process: Process, plan: RankPlan, num_classes: int) -> None:
        config = process.config
        self._process, self._keys = process, PlannedKeys(plan)
        self._augmentations = process.augmentations()
        self._mix = randomness.build_mixing(config.mixup_alpha, config.cutmix_alpha, num_classes)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed, by Mixup or CutMix."""
        return self._mix is not None

    def seed(self, epoch: int, number: int) -> None:
        """Make the random numbers of mixing, dropout and the like those of batch `number` of this rank in an epoch."""
        process = self._process
        randomness.seed_step(process.config.seed, epoch, number, process.world.rank, process.device)

    def augmented(self, batch: Batch, epoch: int, number: int) -> Batch:
        """Batch `number` of an epoch, or it and those after it that were joined to it, with the images augmented."""
        if not self._augmentations:
            return batch
        numbers = range(number, number + self._process.batches_in(batch))
        keys = np.concatenate([self._keys.of(epoch, each) for each in numbers])
        images = batch.images
        for augment in self._augmentations:
            images = augment(images, keys, epoch)
        return batch._replace(images=images)

    def mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and targets: labels, int64 [B], or where images are mixed, probabilities, float32 [B, classes]."""
        return self._mix(batch.images, batch.labels) if self._mix else (batch.images, batch.labels)
