"""Flags, recipes and config.json."""

import dataclasses
import json
from pathlib import Path

import pytest

import models
from pipeline.cli import parse
from pipeline.errors import InputError
from train.config import Interval, TrainConfig
from train.optim import learning_rate
from train.recipes import RECIPES, starting_point


def parsed(*words: str) -> TrainConfig:
    return parse(TrainConfig, words, starting_point(words))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", (0, 0)), ("500", (500, 0)), ("30s", (0, 30)), ("10min", (0, 600)), ("2h", (0, 7200))],
)
def test_intervals_are_steps_or_times(text: str, expected: tuple[int, float]) -> None:
    assert Interval.parse(text) == expected
    assert TrainConfig(checkpoint_every=text).checkpoint_interval == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--checkpoint-every", "5x"), "--checkpoint-every 5x: must be a number of steps such as 500, or a time"),
        (("--loss-scale", "high"), "--loss-scale high: must be dynamic or a number above 0"),
        (("--progressive-resize", "0:64", "0:32"), "--progressive-resize 0:64 0:32: epochs must rise"),
        (("--progressive-resize", "64"), "--progressive-resize 64: must be EPOCH:SIDE"),
        (("--accumulate", "0"), "--accumulate 0: must be at least 1"),
        (("--clip-grad-norm", "0"), "--clip-grad-norm 0.0: must be above 0"),
        (("--mixup-alpha", "-1"), "--mixup-alpha -1.0: must be at least 0"),
        (("--model-ema-decay", "1"), "--model-ema-decay 1.0: must be in [0, 1)"),
        (("--nesterov", "--momentum", "0"), "--nesterov True: must be with --momentum above 0"),
        (("--finetune", "a", "--pretrained", "b"), "--finetune a: must be without --pretrained"),
        (("--evaluate", "a", "--performance", "5"), "--evaluate a: must be without --performance"),
        (("--performance", "5", "--resume", "a"), "--performance 5: must be without --resume and --max-restarts"),
        (("--warmup-epochs", "inf"), "--warmup-epochs inf: must be a finite number"),
        (("--seed", str(1 << 63)), "must be below 2^63"),
        (("--nnodes", "2", "--rdzv-endpoint", "node0:99999"), "must be host:port of machine 0 with --nnodes"),
        (("--recipe", "alexnet"), "--recipe alexnet: unknown; there are alexnet-full, resnet152-full"),
        (("--recipe", "alexnet-full", "--config", "x"), "--recipe and --config: give one of them"),
        (("--config", "none.json"), "--config none.json: No such file or directory"),
        (("--recipe",), "argument --recipe: expected one argument"),
    ],
)
def test_wrong_flags_are_one_line(words: tuple[str, ...], told: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed(*words)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_come_back_from_a_file(tmp_path: Path) -> None:
    config = TrainConfig(
        model="pyramidnet", model_kwargs=("depth=14", "alpha=8"), lr=0.2, run_dir=Path("runs/a"),
        pretrained=Path("w.pth"), progressive_resize=("0:64",), amp="fp16", clip_grad_norm=1.0,
    )  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.as_dict()))
    assert TrainConfig.read(path, launched=False) == config
    changed = parsed("--config", str(path), "--lr", "0.4")
    assert changed == dataclasses.replace(config, config=path, lr=0.4)


def test_a_run_of_another_launcher_is_repeated_with_as_many_processes(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TrainConfig().as_dict() | {"processes": 4}))
    assert TrainConfig.read(path, launched=False).nproc == 4
    assert TrainConfig.read(path, launched=True).nproc == 1


def test_an_evaluation_with_the_settings_of_a_finetuned_run(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TrainConfig(finetune=Path("w.pt")).as_dict()))
    assert parsed("--config", str(path), "--evaluate", "best.pt").finetune is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"amp": "fp8"}',
        '{"lr_scheduler": "linear"}',
        '{"learning_rate": 1}',
        '{"epochs": 0}',
        '{"model": "bogus"}',
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"not the config\.json of a run"):
        TrainConfig.read(path, launched=False)


def test_flags_win_over_a_recipe() -> None:
    config = parsed("--recipe", "resnet152-full", "--epochs", "3", "--no-channels-last")
    assert config == dataclasses.replace(RECIPES["resnet152-full"](), epochs=3, channels_last=False)


# Name, devices, global batch, learning rate at it: the zoos' published settings.
@pytest.mark.parametrize(
    ("name", "devices", "global_batch", "rate"),
    [
        ("alexnet-full", 8, 1024, 0.04),
        ("resnet152-full", 8, 2048, 0.8),
        ("se_resnet50-full", 8, 1024, 0.6),
        ("pnasnet5large-full", 8, 256, 0.4),
        ("pyramidnet-full", 4, 256, 0.5),
    ],
)
def test_recipes_are_the_published_settings(name: str, devices: int, global_batch: int, rate: float) -> None:
    config = RECIPES[name]()
    assert config.recipe == name
    assert config.batch_size * config.accumulate * devices == global_batch
    assert learning_rate(config, global_batch) == pytest.approx(rate)
    assert learning_rate(config, global_batch // 2) == pytest.approx(rate / 2)
    assert (config.momentum, config.weight_decay) == (0.9, 4e-5 if name == "pnasnet5large-full" else 1e-4)
    assert name in (RECIPES[name].__doc__ or "")
    models.check_options(config.model, config.model_options)
