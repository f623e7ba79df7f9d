"""The parts that differ on a CUDA device. Skipped without one."""

from pathlib import Path

import pytest
import torch

from pipeline import loaders
from pipeline.contract import LoaderSpec
from pipeline.order.crops import CropPolicy
from pipeline.storage.manifest import SplitInfo
from pipeline.storage.split import Split, open_split
from tests.helpers.loaders import loaded
from train.config import TrainConfig
from train.job import run
from train.metrics import Totals
from train.network import build_model
from train.process import Process
from train.session import Session
from train.world import World

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


ON_DEVICE_MAX = 12
"""How far pixels that nvJPEG decodes may be from libjpeg's, in steps of 1/255: see test_dali_cuda.py."""


@pytest.mark.parametrize("name", [name for name in loaders.names() if loaders.facts(name).reads])
def test_batches_on_the_device_are_those_of_the_cpu(dataset: Path, name: str) -> None:
    module = loaded(name)
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
        assert difference.max() <= (ON_DEVICE_MAX if name == "dali" else module.FACTS.max_difference)
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


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_step_never_waits_for_the_device(amp: str) -> None:
    split = Split("train", Path("none"), tuple("abcde"), SplitInfo(samples=80, bytes=0, image_mode="synthetic"))
    config = TrainConfig(
        model="torchvision/resnet18", resolution=64, batch_size=8, loader="synthetic", amp=amp,  # type: ignore[arg-type]
        model_ema=True, clip_grad_norm=1.0, mixup_alpha=0.2, cutmix_alpha=1.0, device="cuda",
    )  # fmt: skip
    device = torch.device("cuda", 0)
    process = Process(config, World(), device)
    with process.open_loader("synthetic", split, training=True) as training:
        session = Session(process, build_model(process, split.classes), training)
        totals = Totals(device)
        batches = session.training_batches()
        for _ in range(3):  # the first steps allocate
            session.train_step(next(batches))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for batch in batches:
                logits, targets, _ = session.train_step(batch)
                totals.add(logits, targets)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert session.position.step == 10
