"""Training next to a loop that shares none of its code: the same losses, bit for bit, at every step.

The loop has torchvision's network, PyTorch's optimiser, loss and scaler, and its own schedule, parameter groups,
accumulation and averaging. Only the pixels are ours: batches of the torch loader, through the first layer of a model.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from pipeline.contract import Batch
from pipeline.storage.split import open_split
from tests.helpers.processes import run_ranks
from tests.helpers.runs import newest_checkpoint
from train.config import TrainConfig
from train.network import build_model
from train.process import Process
from train.recipes import RECIPES
from train.session import Session
from train.world import World

CLASSES, BATCH_SIZE, EPOCHS, RATE = 4, 8, 2, 0.05


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the loop does; its defaults are those of the command line."""

    rate: Callable[[int, int], float]
    """Of a step, counted from 0, where an epoch has so many."""
    decay: Callable[[nn.Module], list[dict[str, Any]]] = lambda network: [
        {"params": list(network.parameters()), "weight_decay": 1e-4}
    ]
    nesterov: bool = False
    smoothing: float = 0.0
    accumulate: int = 1
    clip: float | None = None
    dtype: torch.dtype | None = None
    """Of autocast; with float16, the loss is scaled."""
    average_decay: Callable[[int], float] | None = None
    """Of the averaged weights, after a step counted from 1."""


def cosine(step: int, steps_per_epoch: int) -> float:
    """--warmup-epochs 0.5."""
    warmup = round(0.5 * steps_per_epoch)
    if step < warmup:
        return RATE * (step + 1) / (warmup + 1)
    return RATE * (1 + math.cos(math.pi * (step - warmup) / (EPOCHS * steps_per_epoch - warmup))) / 2


def steps(step: int, steps_per_epoch: int) -> float:
    """--lr-scheduler step --lr-step-size 1 --warmup-epochs 0."""
    return RATE if step < steps_per_epoch else RATE / 10


def no_decay_on_norms(network: nn.Module) -> list[dict[str, Any]]:
    """--norm-weight-decay 0: in this network, parameters of BatchNorm are vectors, and so is the last layer's bias."""
    vectors = {name for name, parameter in network.named_parameters() if parameter.ndim == 1 and name != "fc.bias"}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        groups[name in vectors].append(parameter)
    return [{"params": groups[True], "weight_decay": 0.0}, {"params": groups[False], "weight_decay": 1e-4}]


def torchvision_v1() -> tuple[dict[str, Any], Recipe]:
    """The recipe but for its model and length; its rate of 0.1 is for 256 images."""
    recipe = RECIPES["torchvision-v1"]()
    names = ("lr_base", "lr_scheduler", "lr_step_size", "lr_gamma", "lr_updates", "warmup_epochs", "weight_decay")
    rate = 0.1 * BATCH_SIZE / 256
    return {"lr": None, **{name: getattr(recipe, name) for name in names}}, Recipe(rate=lambda step, steps: rate)


CASES: dict[str, tuple[dict[str, Any], Recipe]] = {
    "plain": ({}, Recipe(rate=cosine)),
    "torchvision-v1": torchvision_v1(),
    "step schedule": (
        {"lr_scheduler": "step", "lr_step_size": 1, "warmup_epochs": 0},
        Recipe(rate=steps),
    ),
    "smoothing": ({"label_smoothing": 0.1}, Recipe(rate=cosine, smoothing=0.1)),
    "averaging": (
        {"model_ema": True, "model_ema_decay": 0.8},
        Recipe(rate=cosine, average_decay=lambda step: min(0.8, 1 - step ** (-2 / 3))),
    ),
    "bf16": ({"amp": "bf16"}, Recipe(rate=cosine, dtype=torch.bfloat16)),
    "fp16": ({"amp": "fp16"}, Recipe(rate=cosine, dtype=torch.float16)),
    "Nesterov without decay on norms": (
        {"nesterov": True, "norm_weight_decay": 0.0},
        Recipe(rate=cosine, nesterov=True, decay=no_decay_on_norms),
    ),
    "accumulation": ({"accumulate": 2}, Recipe(rate=cosine, accumulate=2)),
    # Equal only where the norm adds up the parameters' norms in the same order: in the opposite one, losses differ by
    # 5e-6 at the second step, 2e-3 at the third and 5e-2 at the fourth.
    "clipping": ({"clip_grad_norm": 0.5}, Recipe(rate=cosine, clip=0.5)),
    "clipping, accumulation and fp16": (
        {"clip_grad_norm": 0.5, "accumulate": 2, "amp": "fp16"},
        Recipe(rate=cosine, clip=0.5, accumulate=2, dtype=torch.float16),
    ),
}


@dataclass
class Trained:
    """What a training gave."""

    losses: list[float]
    rates: list[float]
    network: nn.Module
    average: nn.Module | None
    batches: list[Batch] = dataclasses.field(default_factory=list)


def ours(dataset: Path, settings: dict[str, Any]) -> Trained:
    config = TrainConfig(
        **{
            "data": str(dataset), "model": "torchvision/shufflenet_v2_x0_5", "resolution": 32, "batch_size": BATCH_SIZE,
            "workers": 0, "epochs": EPOCHS, "lr": RATE, "warmup_epochs": 0.5, **settings,
        }
    )  # fmt: skip
    process, split = Process(config, World(), torch.device("cpu")), open_split(dataset, "train")
    with process.open_loader("torch", split, training=True) as training:
        session = Session(process, build_model(process, split.classes), training)
        average = session.model.ema.model if session.model.ema else None
        trained = Trained([], [], session.model.classifier, average)
        session.model.parallel.train()
        while session.position.epoch < EPOCHS:
            for batch in session.training_batches():
                trained.batches.append(Batch(*(tensor.clone() for tensor in batch)))
                trained.losses.append(session.train_step(batch).objective.item())
                trained.rates.append(session.train_step.learning_rate)
    return trained


def independent(batches: Sequence[Batch], recipe: Recipe) -> Trained:
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(recipe.decay(network), lr=RATE, momentum=0.9, nesterov=recipe.nesterov)
    scaler = torch.amp.GradScaler("cpu", enabled=recipe.dtype == torch.float16)
    average = {name: value.clone() for name, value in network.state_dict().items()} if recipe.average_decay else None
    trained = Trained([], [], network, None)
    for number, batch in enumerate(batches):
        step, part = divmod(number, recipe.accumulate)
        rate = recipe.rate(step, len(batches) // recipe.accumulate // EPOCHS)
        autocast = torch.autocast("cpu", recipe.dtype) if recipe.dtype else contextlib.nullcontext()
        with autocast:
            logits = network(normalize(batch.images))
        loss = functional.cross_entropy(logits.float(), batch.labels, label_smoothing=recipe.smoothing)
        trained.losses.append(loss.item())
        scaler.scale(loss / recipe.accumulate).backward()
        if part == recipe.accumulate - 1:
            for group in optimizer.param_groups:
                group["lr"] = rate
            if recipe.clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if average is not None and recipe.average_decay is not None:
                update_average(average, network, recipe.average_decay(step + 1))
        trained.rates.append(rate)
    if average is not None:
        trained.average = torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES)
        trained.average.load_state_dict(average)
    return trained


def update_average(average: dict[str, Tensor], network: nn.Module, decay: float) -> None:
    for name, value in network.state_dict().items():
        is_count = not value.is_floating_point()
        average[name] = value.clone() if is_count else decay * average[name] + (1 - decay) * value


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_an_independent_loop(dataset: Path, case: str) -> None:
    settings, recipe = CASES[case]
    trained = ours(dataset, settings)
    reference = independent(trained.batches, recipe)
    assert trained.losses == reference.losses
    assert len(set(trained.losses)) == len(trained.batches) >= 8
    last_of_step = slice(recipe.accumulate - 1, None, recipe.accumulate)
    assert trained.rates[last_of_step] == pytest.approx(reference.rates[last_of_step], rel=1e-12)
    for name, value in reference.network.state_dict().items():
        assert torch.equal(value, trained.network.state_dict()[f"network.{name}"]), name
    if reference.average is not None:
        assert trained.average is not None
        for name, value in reference.average.state_dict().items():
            torch.testing.assert_close(trained.average.state_dict()[f"network.{name}"], value)


def test_two_processes_clip_the_average_of_their_gradients(dataset: Path, tmp_path: Path) -> None:
    """As a loop that accumulates the batches of both; BatchNorm has the statistics of each batch in either."""
    shape: dict[str, Any] = {
        "model": "torchvision/shufflenet_v2_x0_5",
        "resolution": 32,
        "batch_size": BATCH_SIZE,
        "epochs": EPOCHS,
    }
    settings = {**shape, "lr": RATE, "warmup_epochs": 0.5, "clip_grad_norm": 0.5, "data": dataset, "loader": "torch"}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    log, run_dir = tmp_path / "log", tmp_path / "run"
    assert run_ranks(2, [*flags, "--workers", 0, "--run-dir", run_dir], log) == [0, 0], log.read_text()
    config, split = TrainConfig(**shape, workers=0), open_split(dataset, "train")
    batches: list[list[Batch]] = []
    for rank in range(2):
        process = Process(config, World(rank=rank, size=2), torch.device("cpu"))
        with process.open_loader("torch", split, training=True) as training:
            epochs = (training.loader.epoch(epoch, 32) for epoch in range(EPOCHS))
            batches.append([Batch(*(tensor.clone() for tensor in batch)) for epoch in epochs for batch in epoch])
    alternating = [batch for pair in zip(*batches, strict=True) for batch in pair]
    reference = independent(alternating, Recipe(rate=cosine, accumulate=2, clip=0.5)).network
    weights = torch.load(newest_checkpoint(run_dir), weights_only=True)["model"]
    for name, value in reference.named_parameters():
        torch.testing.assert_close(weights[name], value.detach(), rtol=1e-4, atol=1e-6)
