"""The parts that differ on a CUDA device. Skipped without one."""

from pathlib import Path

import pytest
import torch

from pipeline import loaders
from pipeline.contract import CropPolicy, LoaderSpec
from pipeline.dataset import open_split
from pipeline.errors import InputError
from train.config import TrainConfig
from train.launch import World
from train.loop import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def loader_module(name: str) -> object:
    try:
        return loaders.load(name)
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", [name for name in loaders.names() if name != "synthetic"])
def test_batches_on_the_device_are_those_of_the_cpu(dataset: Path, name: str) -> None:
    module = loader_module(name)
    specs = [
        LoaderSpec(
            split=open_split(dataset, "train"),
            batch_size=8,
            crop=CropPolicy(training=True),
            device=torch.device(device),
        )
        for device in ("cpu", "cuda:0")
    ]
    on_cpu = loaders.create("torch", specs[0])
    on_device = loaders.create(name, specs[1])
    for batch, expected in zip(on_device.epoch(1, 48), on_cpu.epoch(1, 48), strict=True):
        assert batch.images.device.type == "cuda"
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.indices.cpu(), expected.indices)
        assert torch.equal(batch.labels.cpu(), expected.labels)
        difference = (batch.images.cpu().int() - expected.images.int()).abs()
        assert difference.float().mean() <= 2
        assert difference.max() <= getattr(module, "MAX_DIFFERENCE", 2)
    on_cpu.close()
    on_device.close()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_training_runs_with_mixed_precision(dataset: Path, tmp_path: Path, amp: str) -> None:
    config = TrainConfig(
        data=str(dataset), model="torchvision/resnet18", resolution=64, batch_size=8, epochs=2, amp=amp,  # type: ignore[arg-type]
        device="cuda", run_dir=tmp_path / "run",
    )  # fmt: skip
    result = run(config, World())
    assert result is not None
    assert result["evaluated"] == 19
    assert 0 < result["loss"] < 20
