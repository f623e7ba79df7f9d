"""The training step on a CUDA device: precision, memory format, SyncBatchNorm, compilation, phases. Skipped without
one."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.contract import Batch
from pipeline.storage.manifest import SplitInfo
from pipeline.storage.split import Split
from train.config import TrainConfig
from train.device import configure_math
from train.network import build_model
from train.process import Process
from train.session import Session
from train.step_clock import BACKWARD, DATA, FORWARD, OPTIMIZER, StepClock
from train.world import World

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = torch.device("cuda", 0)
BATCH, SIDE, BATCHES = 16, 64, 10


@contextlib.contextmanager
def training(**settings: Any) -> Iterator[Session]:
    """A session with ResNet-18 and a loader of noise; the weights are the same each time."""
    split = Split(
        "train", Path("none"), tuple("abcde"), SplitInfo(samples=BATCH * BATCHES, bytes=0, image_mode="synthetic")
    )
    config = TrainConfig(**{
        "model": "torchvision/resnet18", "resolution": SIDE, "batch_size": BATCH, "loader": "synthetic",
        "device": DEVICE.type, "lr": 1e-3, "warmup_epochs": 0, **settings,
    })  # fmt: skip
    process = Process(config, World(), DEVICE)
    configure_math(config.deterministic, config.float32, DEVICE.type)
    with process.open_loader("synthetic", split, training=True) as loader:
        yield Session(process, build_model(process, split.classes), loader)


def losses(**settings: Any) -> list[float]:
    """Of an epoch's steps, all on the same batch."""
    with training(**settings) as session:
        return [session.train_step(batch).objective.item() for batch in session.training_batches()]


@pytest.fixture(scope="module")
def float32_losses() -> list[float]:
    """Those of full float32, without TF32."""
    return losses(float32="highest", channels_last=False)


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_learns_as_float32(amp: str, dtype: torch.dtype, float32_losses: list[float]) -> None:
    with training(amp=amp, loss_scale="1024") as session:  # a scale that needs no steps to be found
        results = [session.train_step(batch) for batch in session.training_batches()]
        assert {result.logits.dtype for result in results} == {dtype}
        assert {weight.dtype for weight in session.model.classifier.parameters()} == {torch.float32}
        assert session.train_step.scaler.is_enabled() == (amp == "fp16")
    found = [result.objective.item() for result in results]
    # 8 and 11 bits of mantissa; the first loss has seen one forward pass only.
    assert found[0] == pytest.approx(float32_losses[0], rel=0.02)
    assert found == pytest.approx(float32_losses, abs=0.1)
    assert float32_losses[-1] < float32_losses[0] - 0.5


def test_a_step_whose_gradients_overflow_is_skipped_and_the_scale_halved() -> None:
    with training(amp="fp16") as session:
        batches, scaler = session.training_batches(), session.train_step.scaler
        for _ in range(6):  # until the scale is one without overflow
            session.train_step(next(batches))
        before = [weight.clone() for weight in session.model.classifier.parameters()]
        scale = scaler.get_scale()
        last = next(reversed(list(session.model.classifier.parameters())))
        handle = last.register_hook(lambda gradient: gradient * torch.inf)
        session.train_step(next(batches))
        handle.remove()
        assert scaler.get_scale() == scale / 2
        assert all(map(torch.equal, before, session.model.classifier.parameters()))
        session.train_step(next(batches))
        assert not all(map(torch.equal, before, session.model.classifier.parameters()))


def test_channels_last_changes_the_strides_and_not_the_numbers(float32_losses: list[float]) -> None:
    with training(float32="highest") as session:
        batch = next(session.training_batches())
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        convolutions = [layer for layer in session.model.classifier.modules() if isinstance(layer, nn.Conv2d)]
        assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in convolutions)
        formats = []
        for layer in convolutions:
            layer.register_forward_hook(
                lambda _, __, output: formats.append(output.is_contiguous(memory_format=torch.channels_last))
            )
        session.train_step(batch)
        assert formats == [True] * len(convolutions)
    assert losses(float32="highest") == pytest.approx(float32_losses, abs=0.02)


def test_sync_bn_on_one_device_is_batch_norm() -> None:
    """A single process has nobody to exchange statistics with."""
    with training(sync_bn=True) as session:
        layers = list(session.model.classifier.modules())
        assert any(isinstance(layer, nn.SyncBatchNorm) for layer in layers)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    assert losses(sync_bn=True, float32="highest") == pytest.approx(losses(float32="highest"), abs=0.02)


@pytest.mark.parametrize("settings", [{}, {"amp": "bf16"}, {"amp": "fp16", "model_ema": True, "mixup_alpha": 0.2}])
def test_a_compiled_step_is_never_compiled_again(settings: dict[str, Any]) -> None:
    with training(compile=True, **settings) as session:
        for batch in session.training_batches():  # the first epoch may compile
            session.train_step(batch)
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(2):
                for batch in session.training_batches():
                    session.train_step(batch)
        assert session.position.step == 3 * BATCHES
    torch.compiler.reset()


def test_a_compiled_model_learns_as_an_eager_one(float32_losses: list[float]) -> None:
    compiled = losses(compile=True, float32="highest")
    torch.compiler.reset()
    assert compiled == pytest.approx(float32_losses, abs=0.02)


def test_phases_are_the_devices_time_and_sum_to_the_elapsed_time() -> None:
    with training() as session:
        clock, batches = StepClock(session), session.training_batches()
        for _ in range(3):
            session.train_step(next(batches))
        clock.seconds()
        torch.cuda.synchronize()
        started = time.perf_counter()
        steps = 0
        for batch in clock.timed(batches):
            session.train_step(batch)
            steps += 1
        spent = clock.seconds()
        elapsed = time.perf_counter() - started
    assert steps == BATCHES - 3
    assert min(spent[phase] for phase in (FORWARD, BACKWARD, OPTIMIZER)) > 0
    assert sum(spent.values()) == pytest.approx(elapsed, rel=0.1)


def test_work_of_the_device_is_counted_to_its_phase_although_the_host_has_gone_on() -> None:
    """The forward pass queues work of many milliseconds in microseconds."""
    matrix = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)

    def work(*_: object) -> None:
        for _number in range(20):
            matrix @ matrix

    work()
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    queued = time.perf_counter() - started
    torch.cuda.synchronize()
    work_s = time.perf_counter() - started
    with training() as session:
        clock, batches = StepClock(session), session.training_batches()
        for _ in range(3):
            session.train_step(next(batches))
        clock.seconds()
        session.model.classifier.network.register_forward_hook(work)
        for batch in clock.timed(batches):
            session.train_step(batch)
        spent = clock.seconds()
    assert queued < work_s / 4
    assert spent[FORWARD] == pytest.approx((BATCHES - 3) * work_s, rel=0.5)
    assert spent[FORWARD] > 2 * (spent[BACKWARD] + spent[OPTIMIZER] + spent[DATA])


def test_a_slow_loader_is_waited_for_by_the_device() -> None:
    def slowly(batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            time.sleep(0.05)
            yield batch

    with training() as session:
        clock, batches = StepClock(session), session.training_batches()
        for _ in range(3):
            session.train_step(next(batches))
        clock.seconds()
        for batch in clock.timed(slowly(batches)):
            session.train_step(batch)
        spent = clock.seconds()
    # The device is still busy with the step before when the wait begins.
    assert spent[DATA] >= (BATCHES - 3) * 0.04
