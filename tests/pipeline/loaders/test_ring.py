"""Batches in shared memory that is reused in turn."""

import pickle
import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pipeline.contract import Batch
from pipeline.loaders import _dataloader
from pipeline.loaders._ring import PREFETCH, BatchRing

RESOLUTION = 4


class Numbered(Dataset[Batch]):
    """Batch n is filled with n."""

    def __init__(self, ring: BatchRing) -> None:
        self._ring = ring

    def __len__(self) -> int:
        return 50

    def __getitem__(self, number: int) -> Batch:
        batch = self._ring.batch(number, np.full(2 + number % 2, number), RESOLUTION)
        batch.images.fill_(number)
        batch.labels.fill_(number)
        return batch


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_a_batch_is_valid_until_the_next_is_asked_for(num_workers: int) -> None:
    dataset = Numbered(BatchRing(num_workers, 3, RESOLUTION))
    for number, batch in enumerate(_dataloader.batch_loader(dataset, num_workers)):
        if number % 10 == 0:
            time.sleep(0.05)  # the workers load as far ahead as they may
        assert batch.images.shape == (2 + number % 2, 3, RESOLUTION, RESOLUTION)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert all((tensor == number).all() for tensor in batch)


def test_only_the_place_of_a_batch_is_sent() -> None:
    ring = BatchRing(2, 8, 64)
    batch = ring.batch(7, np.arange(8), 64)
    batch.images.fill_(3)
    sent = pickle.dumps(batch)
    assert len(sent) < 2000 < batch.images.numel()
    assert torch.equal(pickle.loads(sent).images, batch.images)
    ring.batch(7 + 2 * PREFETCH + 1, np.arange(8), 64).images.fill_(4)
    assert (batch.images == 4).all()
