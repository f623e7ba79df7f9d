"""A session and its training step: what a step computes, what is random in it, and that it waits for nothing."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import models
from pipeline.contract import Batch
from pipeline.errors import InputError
from pipeline.storage.manifest import SplitInfo
from pipeline.storage.split import Split
from tests.helpers.memory import memory_below
from tests.helpers.runs import assert_equal
from train import checkpoint, device, losses
from train.config import TrainConfig
from train.device import DeviceType
from train.metrics import Totals
from train.network import TrainedModel, build_model
from train.preparation import Preparation, joined
from train.process import Process, SplitLoader
from train.session import Session
from train.step import Position
from train.world import World

CPU = torch.device("cpu")
TINY = {"model": "pyramidnet", "model_kwargs": ("depth=14", "alpha=8", "drop_rate=0.5"), "resolution": 32}


def split_of(samples: int) -> Split:
    """A split for the synthetic loader."""
    return Split("train", Path("none"), tuple("abcde"), SplitInfo(samples=samples, bytes=0, image_mode="synthetic"))


@contextlib.contextmanager
def opened(on: torch.device, samples: int, settings: dict[str, Any]) -> Iterator[tuple[Process, SplitLoader]]:
    config = TrainConfig(**{"loader": "synthetic", "batch_size": 4, "warmup_epochs": 0, **TINY, **settings})
    process = Process(config, World(), on)
    with process.open_loader("synthetic", split_of(samples), training=True) as loader:
        yield process, loader


@contextlib.contextmanager
def training(on: torch.device = CPU, samples: int = 64, **settings: Any) -> Iterator[Session]:
    with opened(on, samples, settings) as (process, loader):
        yield Session(process, build_model(process, loader.split.classes), loader)


def weights(session: Session) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in session.model.classifier.parameters()])


class Linear(nn.Module):
    """Without dropout and BatchNorm, so that several small batches are equivalent to a large one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, 5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits


CARD = models.ModelCard(build=lambda num_classes: Linear(), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@contextlib.contextmanager
def training_linear(on: torch.device = CPU, **settings: Any) -> Iterator[Session]:
    with opened(on, 64, {"weight_decay": 0, "momentum": 0, "lr": 0.1, **settings}) as (process, loader):
        torch.manual_seed(1)
        classifier = models.Classifier(Linear(), CARD).to(on)
        yield Session(process, TrainedModel(process, classifier, num_classes=5), loader)


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
        torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("channels_last", [True, False])
def test_smaller_images_go_through_the_model_in_larger_batches(channels_last: bool) -> None:
    """As many as have no more pixels than a batch of the largest; the rest is accumulated."""
    flags: dict[str, Any] = {"accumulate": 4, "progressive_resize": ("0:16", "1:20", "2:24", "3:32")}
    flags |= {"channels_last": channels_last}
    sizes, indices = list[list[int]](), dict[bool, list[int]]()
    for joins in (False, True):
        with training(samples=47, batch_size=2, progressive_batch=joins, **flags) as session:
            indices[joins] = []
            for epoch in range(4):
                session.position.move_to(epoch=epoch, batch=2, step=2)
                batches = list(session.training_batches())
                sizes += [[len(batch.labels) for batch in batches]] if joins else []
                indices[joins] += torch.cat([batch.indices for batch in batches]).tolist()
                layout = torch.channels_last if channels_last else torch.contiguous_format
                assert all(batch.images.is_contiguous(memory_format=layout) for batch in batches)
                planned = [session.batch_indices(epoch, 8 + sum(len(b.labels) for b in batches[:n]) // 2)
                           for n in range(len(batches))]  # fmt: skip
                assert [len(positions) for positions in planned] == [len(batch.labels) for batch in batches]
    assert sizes == [[8] * 3, [4] * 6, [2] * 12, [2] * 12]
    assert indices[True] == indices[False]


def test_joined_batches_train_as_accumulated_ones() -> None:
    sides: dict[str, Any] = {"progressive_resize": ("0:32", "1:64"), "batch_size": 4, "accumulate": 6}
    with training_linear(**sides) as parts, training_linear(**sides, progressive_batch=True) as joins:
        assert parts.process.batches_at_once(0) == 1
        assert joins.process.batches_at_once(0) == 3
        for batch in random_batches(12, 4):
            parts.train_step(batch)
        for number, batch in enumerate(joined(iter(random_batches(12, 4)), 3)):
            joins.train_step(batch)
            assert joins.train_step.is_between_steps == (number % 2 == 1)
        assert parts.position == joins.position == Position(epoch=1, batch=0, step=2)
        torch.testing.assert_close(weights(joins), weights(parts), rtol=1e-4, atol=1e-7)


def test_joined_batches_are_augmented_as_each_of_them() -> None:
    """Each image by its key."""
    flags: dict[str, Any] = {"auto_augment": "ra", "random_erase": 0.5, "accumulate": 2}
    with training(batch_size=4, **flags) as session:
        prepare = Preparation(session.process, session._plan, 5)
        batches = random_batches(4, 4)
        each = [prepare.augmented(batch, 0, number) for number, batch in enumerate(batches)]
        together = [prepare.augmented(batch, 0, 2 * number) for number, batch in enumerate(joined(iter(batches), 2))]
        assert not torch.equal(each[0].images, batches[0].images)
        assert torch.equal(torch.cat([batch.images for batch in each]), torch.cat([b.images for b in together]))


def endless() -> Any:
    """A list of 2^60 values, in a few hundred bytes."""
    nested: Any = [0.0]
    for _ in range(60):
        nested = [nested, nested]
    return nested


HOSTILE_STATES: dict[str, Callable[[dict[str, Any]], object]] = {
    "lists in lists": lambda state: state["optimizer"]["state"].update({0: {"momentum_buffer": endless()}}),
    "a value that is repeated": lambda state: state["optimizer"]["state"].update(
        {0: {"momentum_buffer": torch.zeros(1).expand(10**11)}}
    ),
    "another shape": lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(7, 3)),
    "another optimiser": lambda state: state["scheduler"].update(last_epoch=torch.zeros(3)),
    "a scheduler without steps": lambda state: state["scheduler"].pop("last_epoch"),
    "a scheduler's list": lambda state: state["scheduler"].update({"_last_lr": endless()}),
}


@pytest.mark.parametrize("alter", HOSTILE_STATES.values(), ids=HOSTILE_STATES.keys())
def test_a_training_state_from_a_stranger_is_one_line(alter: Callable[[dict[str, Any]], object]) -> None:
    with training_linear(momentum=0.9) as session:
        session.train_step(random_batches(1, 4)[0])
        state = session.state()
    alter(state)
    with training_linear(momentum=0.9) as session, memory_below(1 << 28):
        with pytest.raises(InputError, match=r"--resume a.pt: holds no training state to resume from") as raised:
            session.load_state(state, Path("a.pt"))
        assert len(str(raised.value)) < 300


def test_a_scheduler_s_attributes_are_not_replaced() -> None:
    with training_linear() as session:
        session.train_step(random_batches(1, 4)[0])
        state = session.state()
        state["scheduler"] |= {"optimizer": 5, "get_lr": 7, "state_dict": 1}
        session.load_state(state, Path("a.pt"))
        session.train_step(random_batches(1, 4)[0])
        assert session.position.step == 2


def test_an_epoch_has_only_whole_global_batches() -> None:
    with training(samples=47, batch_size=4, accumulate=2) as session:
        assert len(list(session.training_batches())) == 10
        session.position.move_to(epoch=0, batch=3, step=3)
        assert len(list(session.training_batches())) == 4


def test_a_step_is_a_function_of_the_seed_and_the_position() -> None:
    """Dropout, mixup and CutMix included, whatever random numbers were drawn before."""
    results = {}
    for name, seed, position in (("first", 3, 0), ("again", 3, 0), ("other seed", 4, 0), ("other batch", 3, 5)):
        with training(seed=3, mixup_alpha=0.5, cutmix_alpha=0.5) as session:
            # For the step only: the initial weights are those of seed 3.
            object.__setattr__(session.config, "seed", seed)
            torch.rand({"first": 1, "again": 100}.get(name, 1))
            session.position.batch = position
            session.train_step(random_batches(1, 4)[0])
            results[name] = weights(session)
    assert torch.equal(results["first"], results["again"])
    assert not torch.equal(results["first"], results["other seed"])
    assert not torch.equal(results["first"], results["other batch"])


def test_the_seed_determines_the_initial_weights() -> None:
    with training(seed=1) as one, training(seed=1) as same, training(seed=2) as other:
        assert torch.equal(weights(one), weights(same))
        assert not torch.equal(weights(one), weights(other))


def accuracy(classifier: nn.Module, batch: Batch) -> float:
    return float((classifier(batch.images).argmax(1) == batch.labels).float().mean())


def test_averaged_weights_of_a_short_run_are_of_use() -> None:
    """With the defaults; a constant decay of 0.9999 leaves the average where the first step was."""
    reached = {}
    (batch,) = random_batches(1, 32)
    for warmup in ("timm", "torch"):
        with training_linear(model_ema=True, model_ema_warmup=warmup, lr=0.01) as session:
            for _ in range(60):
                session.train_step(batch)
            assert session.model.ema is not None
            assert accuracy(session.model.classifier, batch) == 1
            reached[warmup] = accuracy(session.model.ema.model, batch)
    assert reached["timm"] == 1
    assert reached["torch"] < 0.7


def test_the_gradient_is_clipped_before_the_step() -> None:
    with training_linear(clip_grad_norm=0.01) as session:
        before = weights(session)
        session.train_step(random_batches(1, 4)[0])
        change = weights(session) - before
    assert change.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_fixed_loss_scale_stays_and_a_dynamic_one_moves() -> None:
    scales = {}
    for text in ("1024", "dynamic"):
        with training(amp="fp16", loss_scale=text) as session:
            batch = random_batches(1, 4)[0]
            for _ in range(3):
                session.train_step(batch)
            scaler = session.train_step.scaler
            scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**40})
            before = weights(session)
            session.train_step(batch)
            assert torch.equal(before, weights(session)), "a step that overflows is skipped"
            scales[text] = scaler.get_scale()
    assert scales == {"1024": 1024, "dynamic": 2.0**39}


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_weights_that_are_not_finite_are_noticed(kind: str) -> None:
    with training() as session:
        assert session.weights_are_finite()
        tensors = getattr(session.model.classifier, kind)()
        tensor = next(item for item in tensors if item.is_floating_point())
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
        layers = list(session.model.classifier.modules())
        assert any(isinstance(layer, nn.SyncBatchNorm) for layer in layers)
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


@pytest.mark.parametrize("opt", ["sgd", "adamw", "lamb", "lars", "lion", "muon", "nadamw", "adafactor", "sgdw"])
def test_an_optimizers_state_is_resumed_exactly(opt: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"opt": opt, "lr": 0.01, "decay_groups": "timm", "weight_decay": 0.02}
    first, rest = random_batches(6, 4)[:3], random_batches(6, 4)[3:]
    with training(**settings) as whole, training(**settings) as resumed:
        start = weights(whole)
        for batch in first:
            whole.train_step(batch)
        path = checkpoint.save(tmp_path, 3, whole.state(), keep=1)
        assert not torch.equal(start, weights(whole))
        resumed.load_state(checkpoint.load(path), path)
        for batch in rest:
            for session in (whole, resumed):
                session.train_step(batch)
            assert torch.equal(weights(whole), weights(resumed))
        assert_equal(whole.state(), resumed.state())


def test_other_layers_have_lower_rates_and_the_log_has_the_highest() -> None:
    model: dict[str, Any] = {
        "model": "timm/vit_tiny_patch16_224",
        "model_kwargs": ("depth=2", "img_size=32", "embed_dim=48"),
    }
    with training(**model, opt="adamw", lr=0.01, decay_groups="timm", layer_decay=0.5) as session:
        session.train_step(random_batches(1, 4)[0])
        rates = {group["lr"] for group in session.train_step.optimizer.param_groups}
        assert len(rates) == 4
        assert session.train_step.learning_rate == 0.01


def saved_memory(session: Session, batch: Batch) -> tuple[float, Tensor, int]:
    """The objective of a step, the weights after it, and the numbers kept for its backward pass."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        objective = session.train_step(batch).objective.item()
    return objective, weights(session), kept


def test_gradient_checkpointing_changes_nothing_but_the_memory() -> None:
    """Stochastic depth included: its random numbers are drawn again."""
    options = ("depth=4", "img_size=32", "embed_dim=48", "drop_path_rate=0.5", "drop_rate=0.1")
    settings: dict[str, Any] = {
        "model": "timm/vit_tiny_patch16_224",
        "model_kwargs": options,
        "opt": "adamw",
        "lr": 0.01,
    }
    batch = random_batches(1, 16)[0]
    with training(**settings) as plain, training(**settings, grad_checkpointing=True) as saving:
        expected, result = saved_memory(plain, batch), saved_memory(saving, batch)
    assert result[0] == expected[0]
    assert torch.equal(result[1], expected[1])
    assert result[2] < expected[2] / 2


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Weights of a small network, as others save them."""
    torch.manual_seed(11)
    torch.save(models.create("pyramidnet", 5, {"depth": 14, "alpha": 8}).network.state_dict(), tmp_path / "teacher.pt")
    return tmp_path / "teacher.pt"


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("student", ["plain", "distilled"])
def test_a_teacher_is_learnt_from(teacher: Path, tmp_path: Path, kind: str, student: str) -> None:
    """A plain network learns from label and teacher with the same head, DeiT's distilled ones with two."""
    settings: dict[str, Any] = {"teacher": "pyramidnet", "teacher_weights": teacher, "distillation": kind}
    settings |= {"distillation_alpha": 0.3, "distillation_tau": 2.0, "model_kwargs": ("depth=14", "alpha=8")}
    if student == "distilled":
        settings |= {"model": "timm/deit_tiny_distilled_patch16_224", "opt": "adamw", "lr": 0.01}
        settings |= {"model_kwargs": ("depth=2", "img_size=32", "embed_dim=48")}
    # The weights of the teacher are of a network of depth 14: the run's checkpoint says so.
    path = tmp_path / "run.pt"
    config = TrainConfig(model="pyramidnet", model_kwargs=("depth=14", "alpha=8"))
    torch.save({"model": torch.load(teacher), "config": config.as_dict(), "classes": list("abcde")}, path)
    settings["teacher_weights"] = path
    (batch,) = random_batches(1, 8)
    with training(**settings) as session:
        outputs = session.model.parallel(batch.images)
        main, other = outputs if student == "distilled" else (outputs, outputs)
        known = models.create("pyramidnet", 5, {"depth": 14, "alpha": 8})
        known.network.load_state_dict(torch.load(teacher))
        expected = known.eval()(batch.images)
        base = nn.functional.cross_entropy(main, batch.labels)
        distilled = losses.distillation_loss(session.config, other, expected)
        objective = session.train_step(batch).objective
        torch.testing.assert_close(objective, 0.7 * base + 0.3 * distilled, rtol=1e-4, atol=1e-6)
        assert session.model.teacher is not None
        assert_equal(dict(session.model.teacher.network.state_dict()), dict(known.network.state_dict()))
        assert not any(parameter.grad is not None for parameter in session.model.teacher.parameters())
        session.model.classifier.eval()
        assert isinstance(session.model.classifier(batch.images), Tensor)


def test_a_teacher_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    torch.save({"model": {"a": torch.zeros(1)}, "config": TrainConfig(model="alexnet").as_dict()}, path)
    message = rf"--teacher-weights {path}: a checkpoint of alexnet, not of --teacher pyramidnet"
    with pytest.raises(InputError, match=message), training(teacher="pyramidnet", teacher_weights=path):
        pass


@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, mixed: bool) -> None:
    """Tensors of the device "meta" have no values: reading one is an error where elsewhere it would wait.

    The network has no convolutions, whose gradients PyTorch does not implement there.
    """
    monkeypatch.setitem(device.DEVICE_TYPES, "meta", DeviceType(backend="gloo", channels_last=True))
    monkeypatch.setattr(Process, "autocast", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(Preparation, "seed", lambda self, epoch, number: None)  # that device has no generator
    settings = {"model_ema": True, "clip_grad_norm": 1.0, "accumulate": 2, "norm_weight_decay": 0.0}
    mixing = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0} if mixed else {}
    meta = torch.device("meta")
    with training_linear(meta, label_smoothing=0.1, momentum=0.9, nesterov=True, **settings, **mixing) as session:
        totals, objectives = Totals(meta), list[Tensor]()
        for batch in session.training_batches():
            logits, targets, objective = session.train_step(batch)
            totals.add(logits, targets)
            objectives.append(objective)
        assert session.position.step == len(objectives) // 2 == 8
        with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
            totals.result()


@pytest.mark.parametrize("batch", [0, 3])
def test_a_run_that_resumes_in_another_order_of_samples_says_so(batch: int, caplog: pytest.LogCaptureFixture) -> None:
    """Once, in one line; a checkpoint without a version has the first one, which is still that of stored data."""
    with training() as session:
        session.position.batch = batch
        state = session.state()
        session.load_state(state, Path("same.pt"))
        assert state["position"].pop("order_version") == 1
        session.load_state(state, Path("older.pt"))
        assert not caplog.messages
        state["position"]["order_version"] = 7
        session.load_state(state, Path("other.pt"))
    (message,) = caplog.messages
    assert message.startswith("other.pt was trained with version 7 of the order of samples")
    assert ("repeats some images" in message) == (batch > 0)
