"""The webdataset library over local shards, in the plan's order.

A batch is a tar stream: the pieces of the shards that hold its samples, one after the other. webdataset's own
stages read the stream, group the files of a sample, map them to images and batch them.
"""

import io
from collections.abc import Generator, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
import webdataset
from torch import Tensor
from torch.utils.data import get_worker_info
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.contract import Batch, Loader, LoaderSpec
from pipeline.decode import crop_and_resize, decode
from pipeline.errors import InputError, from_worker
from pipeline.formats.shards import position_of_key
from pipeline.transfer import to_device

READS = ("webdataset",)

Item = tuple[Tensor, int, int]
"""Image uint8 [3, R, R], label, dataset position."""


def batch_streams(spec: LoaderSpec, epoch: int, start_batch: int) -> Iterator[dict[str, Any]]:
    """The first stage: this worker's batches, each as a tar stream. Worker w of W makes batches w, w + W, ..."""
    worker = get_worker_info()
    first, step = (worker.id, worker.num_workers) if worker else (0, 1)
    shards = spec.split.shards
    for indices in islice(spec.plan.batches(epoch, start_batch), first, None, step):
        stream = io.BytesIO(b"".join(map(shards.read_members, indices.tolist())))
        yield {"url": str(spec.split.path), "stream": stream}


def load_sample(spec: LoaderSpec, epoch: int, resolution: int, sample: dict[str, Any]) -> Item:
    """From the files of a sample, as webdataset grouped them, to an image. Nothing is unpickled."""
    shards = spec.split.shards
    try:
        index = position_of_key(sample["__key__"])
        jpeg, label = sample["jpg"], shards.label(sample["cls"], index)
    except (KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{spec.split.path}: sample {sample['__key__']} is not of a converted shard") from None
    image = decode(shards, index, jpeg)
    crop = spec.crop.crop(spec.seed, epoch, index, *image.shape[1:])
    return crop_and_resize(image, crop, resolution), label, index


def collate(items: list[Item]) -> Batch:
    """Stack the items of a batch; the images' memory is HWC, seen as NCHW (channels_last)."""
    images, labels, indices = zip(*items, strict=True)
    stacked = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return Batch(stacked, torch.tensor(labels), torch.tensor(indices))


class WebDatasetLoader:
    """A webdataset pipeline and WebLoader for each epoch."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec = spec
        self._shards = spec.split.shards  # opened here, once for all workers
        self.batches_per_epoch = spec.plan.batches_per_epoch
        self._batches: Generator[Batch, None, None] | None = None

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        self.close()
        spec = self._spec
        dataset = webdataset.DataPipeline(
            partial(batch_streams, spec, epoch, start_batch),
            tar_file_expander,
            group_by_keys,
            webdataset.map(partial(load_sample, spec, epoch, resolution)),
            webdataset.batched(spec.batch_size, collation_fn=collate, partial=True),
        )
        loader = webdataset.WebLoader(
            dataset, batch_size=None, num_workers=spec.workers, pin_memory=spec.device.type != "cpu"
        )
        self._batches = _batches(loader)
        return to_device(self._batches, spec)

    def close(self) -> None:
        if self._batches is not None:
            self._batches.close()  # drops the DataLoader's iterator, which ends its workers
            self._batches = None


def _batches(loader: webdataset.WebLoader) -> Generator[Batch, None, None]:
    try:
        yield from loader
    except InputError as error:
        raise from_worker(error) from None


def create(spec: LoaderSpec) -> Loader:
    """The loader of this file."""
    return WebDatasetLoader(spec)
