"""DALI's decoders on a CUDA device, on cut bytes: with the JPEG engine and without. Skipped without a device."""

from pathlib import Path

import pytest
import torch

from pipeline import loaders
from pipeline.contract import LoaderSpec
from pipeline.order.crops import CropPolicy
from pipeline.storage.split import open_split
from tests.helpers.loaders import loaded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BATCH, SIDE = 8, 64

FANCY_MEAN, FANCY_MAX = 1.0, 12
"""In steps of 1/255. nvJPEG's inverse DCT and colour conversion round otherwise than libjpeg's integers: by a step in
Y, Cb and Cr, which is three in blue."""
PLAIN_MEAN = 6.0
"""Chroma that is repeated instead of interpolated: colours at edges differ by far more, on average by little."""


def spec_of(data: Path, device: str) -> LoaderSpec:
    split = open_split(data, "train")
    return LoaderSpec(split=split, batch_size=BATCH, crop=CropPolicy(training=True), device=torch.device(device))


@pytest.mark.parametrize("fancy", [True, False], ids=["fancy", "plain"])
@pytest.mark.parametrize("share", [0.0, 0.65, 1.0])
def test_cut_bytes_are_decoded_with_the_engine_and_without(tiled_dataset: Path, share: float, fancy: bool) -> None:
    """Where the engine cannot do what is asked for, DALI decodes otherwise: the pixels have to be right all the same.
    The images are grey, 4:4:4, 4:2:2 and 4:2:0."""
    loaded("dali")
    from pipeline.loaders.dali import DaliLoader, GpuDecoding

    on_cpu = loaders.create("torch", spec_of(tiled_dataset, "cpu"))
    decoding = GpuDecoding(hardware_share=share, fancy_upsampling=fancy)
    on_device = DaliLoader(spec_of(tiled_dataset, "cuda:0"), decoding)
    seen = 0
    for epoch in range(2):
        for batch, expected in zip(on_device.epoch(epoch, SIDE), on_cpu.epoch(epoch, SIDE), strict=True):
            assert batch.images.device.type == "cuda"
            assert torch.equal(batch.indices.cpu(), expected.indices)
            assert torch.equal(batch.labels.cpu(), expected.labels)
            difference = (batch.images.cpu().int() - expected.images.int()).abs()
            assert difference.float().mean() <= (FANCY_MEAN if fancy else PLAIN_MEAN)
            assert not fancy or difference.max() <= FANCY_MAX
            seen += len(batch.labels)
    assert seen == 2 * on_device.batches_per_epoch * BATCH
    on_device.close()
    on_cpu.close()


def test_batches_are_the_same_in_every_epoch_that_is_begun_again(tiled_dataset: Path) -> None:
    """Buffers of the device that DALI uses again do not reach into batches that were handed out."""
    loaded("dali")
    loader = loaders.create("dali", spec_of(tiled_dataset, "cuda:0"))
    first = [batch.images.clone() for batch in loader.epoch(3, SIDE)]
    again = [batch.images.clone() for batch in loader.epoch(3, SIDE)]
    entered = [batch.images.clone() for batch in loader.epoch(3, SIDE, start_batch=2)]
    loader.close()
    assert len(first) == loader.batches_per_epoch
    for one, other in zip(first, again, strict=True):
        assert (one.int() - other.int()).abs().max() <= 1  # the order of sums on the device
    for one, other in zip(first[2:], entered, strict=True):
        assert (one.int() - other.int()).abs().max() <= 1
