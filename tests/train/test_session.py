"""A training step: what it computes, what is random in it, and that it waits for nothing."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.contract import Batch
from pipeline.dataset import Split, SplitInfo
from train import device, optim
from train.config import TrainConfig
from train.device import DeviceType
from train.metrics import Totals
from train.session import Position, Session
from train.world import World

CPU = torch.device("cpu")
TINY = {"model": "pyramidnet", "model_kwargs": ("depth=14", "alpha=8", "drop_rate=0.5"), "resolution": 32}


def split_of(samples: int) -> Split:
    """Of the synthetic loader."""
    return Split("train", Path("none"), tuple("abcde"), SplitInfo(samples=samples, bytes=0, image_mode="synthetic"))


@contextlib.contextmanager
def training(on: torch.device = CPU, samples: int = 64, **settings: Any) -> Iterator[Session]:
    config = TrainConfig(**{"loader": "synthetic", "batch_size": 4, "warmup_epochs": 0, **TINY, **settings})
    with Session(config, World(), on) as session:
        session.open_training("synthetic", split_of(samples))
        session.build_training()
        session.model.train()
        yield session


def weights(session: Session) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in session.plain_model.parameters()])


class Linear(nn.Module):
    """Without dropout and BatchNorm, so that a batch in parts is the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.float().flatten(1) / 255)


@contextlib.contextmanager
def training_linear(on: torch.device = CPU, **settings: Any) -> Iterator[Session]:
    with training(on, **{"weight_decay": 0, "momentum": 0, "lr": 0.1, **settings}) as session:
        torch.manual_seed(1)
        session.model = session.plain_model = Linear().to(on)
        session.optimizer = optim.build_optimizer(session.config, session.model, session.global_batch)
        session.scheduler = optim.build_scheduler(session.config, session.optimizer, session.steps_per_epoch)
        session.ema = optim.Ema(session.model, 0.9) if session.config.model_ema else None
        yield session


def random_batches(count: int, size: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(256, (count * size, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(5, (count * size,), generator=generator)
    return [Batch(*parts, torch.arange(size)) for parts in zip(images.split(size), labels.split(size), strict=True)]


def test_accumulated_batches_are_one_large_batch() -> None:
    with training_linear(batch_size=4, accumulate=3) as parts, training_linear(batch_size=12) as whole:
        assert parts.steps_per_epoch == whole.steps_per_epoch == 5
        for batch in random_batches(6, 4):
            parts.train_step(batch)
        for batch in random_batches(2, 12):
            whole.train_step(batch)
        assert parts.position == whole.position == Position(epoch=0, batch=2, step=2)
        torch.testing.assert_close(parts.model.layer.weight, whole.model.layer.weight, rtol=1e-4, atol=1e-7)


def test_an_epoch_holds_whole_global_batches_alone() -> None:
    with training(samples=47, batch_size=4, accumulate=2) as session:
        assert len(list(session.training_batches())) == 10
        session.position = Position(epoch=0, batch=3, step=3)
        assert len(list(session.training_batches())) == 4


def test_a_step_is_a_function_of_the_seed_and_the_position() -> None:
    """Dropout, mixup and CutMix included; not of how many random numbers were drawn before."""
    results = {}
    for name, seed, position in (("first", 3, 0), ("again", 3, 0), ("other seed", 4, 0), ("other batch", 3, 5)):
        with training(seed=3, mixup_alpha=0.5, cutmix_alpha=0.5) as session:
            object.__setattr__(session.config, "seed", seed)  # of the step alone: the weights are those of seed 3
            torch.rand({"first": 1, "again": 100}.get(name, 1))
            session.position.batch = position
            session.train_step(random_batches(1, 4)[0])
            results[name] = weights(session)
    assert torch.equal(results["first"], results["again"])
    assert not torch.equal(results["first"], results["other seed"])
    assert not torch.equal(results["first"], results["other batch"])


def test_the_seed_decides_the_initial_weights() -> None:
    with training(seed=1) as one, training(seed=1) as same, training(seed=2) as other:
        assert torch.equal(weights(one), weights(same))
        assert not torch.equal(weights(one), weights(other))


def test_the_gradient_is_clipped_before_the_step() -> None:
    with training_linear(clip_grad_norm=0.01) as session:
        before = session.model.layer.weight.detach().clone(), session.model.layer.bias.detach().clone()
        session.train_step(random_batches(1, 4)[0])
        after = session.model.layer.weight, session.model.layer.bias
        moved = torch.cat([(new - old).flatten() for new, old in zip(after, before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_fixed_loss_scale_stays_and_a_dynamic_one_moves() -> None:
    scales = {}
    for text in ("1024", "dynamic"):
        with training(amp="fp16", loss_scale=text) as session:
            batch = random_batches(1, 4)[0]
            for _ in range(3):
                session.train_step(batch)
            session.scaler._scale.fill_(2.0**40)  # type: ignore[union-attr]
            before = weights(session)
            session.train_step(batch)
            assert torch.equal(before, weights(session)), "a step that overflows is left out"
            scales[text] = session.scaler.get_scale()
    assert scales == {"1024": 1024, "dynamic": 2.0**39}


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_weights_that_are_no_numbers_are_noticed(kind: str) -> None:
    with training() as session:
        assert session.weights_are_finite()
        tensor = next(one for one in getattr(session.plain_model, kind)() if one.is_floating_point())
        tensor.data[..., -1] = float("nan")
        assert not session.weights_are_finite()


def test_images_grow_with_the_epochs() -> None:
    with training(progressive_resize=("1:24", "3:48")) as session:
        sides = []
        for epoch in range(5):
            session.position.epoch = epoch
            sides.append(next(session.training_batches()).images.shape[-1])
    assert sides == [32, 24, 24, 48, 48]


def test_sync_bn_replaces_every_batch_norm() -> None:
    with training(sync_bn=True) as session:
        layers = [
            layer for layer in session.plain_model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        ]
        assert layers
        assert all(isinstance(layer, nn.SyncBatchNorm) for layer in layers)


def test_lars_trains() -> None:
    pytest.importorskip("timm")
    with training(opt="lars", lr=1.0) as session:
        before = weights(session)
        session.train_step(random_batches(1, 4)[0])
        assert not torch.equal(before, weights(session))
        assert type(session.optimizer).__name__ == "Lars"


@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, mixed: bool) -> None:
    """On the device "meta" tensors have no values: whoever asks for one gets an error instead of waiting for it.

    Without convolutions, whose gradients PyTorch does not know there.
    """
    monkeypatch.setitem(device.DEVICE_TYPES, "meta", DeviceType(backend="gloo", channels_last=True))
    monkeypatch.setattr(Session, "_autocast", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(Session, "_seed", lambda self: None)  # there is no generator of that device
    settings = {"model_ema": True, "clip_grad_norm": 1.0, "accumulate": 2, "norm_weight_decay": 0.0}
    mixing = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0} if mixed else {}
    meta = torch.device("meta")
    with training_linear(meta, label_smoothing=0.1, momentum=0.9, nesterov=True, **settings, **mixing) as session:
        totals, losses = Totals(meta), []
        for batch in session.training_batches():
            logits, loss = session.train_step(batch)
            totals.add(logits, batch.labels, loss)
            losses.append(loss)
        assert session.position.step == len(losses) // 2 == 8
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            totals.result()
