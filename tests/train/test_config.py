"""Flags, help, recipes, devices and config.json."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import models
from pipeline.cli import parse
from pipeline.errors import InputError
from train import device
from train.config import Interval, TrainConfig
from train.device import DEVICE_TYPES
from train.foreign_flags import FOREIGN_FLAGS, ZOO_FLAGS
from train.optim import learning_rate
from train.recipes import RECIPES, rows, starting_point


def parsed(*words: str) -> TrainConfig:
    return parse(TrainConfig, words, starting_point(words))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", (0, 0)), ("500", (500, 0)), ("30s", (0, 30)), ("10min", (0, 600)), ("2h", (0, 7200))],
)
def test_an_interval_is_steps_or_a_time(text: str, expected: tuple[int, float]) -> None:
    assert Interval.parse(text) == expected
    assert TrainConfig(checkpoint_every=text).checkpoint_interval == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--checkpoint-every", "5x"), "--checkpoint-every 5x: must be a number of steps such as 500, or a time"),
        (("--loss-scale", "high"), "--loss-scale high: must be dynamic or a number above 0"),
        (("--progressive-resize", "0:64", "0:32"), "--progressive-resize 0:64 0:32: epochs must rise"),
        (("--progressive-resize", "64"), "--progressive-resize 64: must be EPOCH:SIDE"),
        (("--val-crop", "4"), "--val-crop 4: must be at least 8"),
        (("--accumulate", "0"), "--accumulate 0: must be at least 1"),
        (("--progressive-batch",), "--progressive-batch True: must be with --progressive-resize"),
        (("--clip-grad-norm", "0"), "--clip-grad-norm 0.0: must be above 0"),
        (("--mixup-alpha", "-1"), "--mixup-alpha -1.0: must be at least 0"),
        (("--model-ema-decay", "1"), "--model-ema-decay 1.0: must be in [0, 1)"),
        (("--lr-warmup-decay", "1"), "--lr-warmup-decay 1.0: must be in [0, 1)"),
        (("--nesterov", "--momentum", "0"), "--nesterov True: must be with --momentum above 0"),
        (("--finetune", "a", "--pretrained", "b"), "--finetune a: must be without --pretrained"),
        (("--evaluate", "a", "--performance", "5"), "--evaluate a: must be without --performance"),
        (("--performance", "5", "--resume", "a"), "--performance 5: must be without --resume and --max-restarts"),
        (("--warmup-epochs", "inf"), "--warmup-epochs inf: must be a finite number"),
        (("--seed", str(1 << 63)), "must be below 2^63"),
        (("--nnodes", "2", "--rdzv-endpoint", "node0:99999"), "must be host:port of machine 0 with --nnodes"),
        (("--recipe", "alexnet"), "--recipe alexnet: unknown; did you mean alexnet-full?; there are "),
        (("--progressive-resize", "3-5:64"), "3-5:64 must come after another side, and its epochs must rise"),
        (("--opt", "adam"), "--opt adam: must be with --lr or --lr-base: the models' own are SGD's"),
        (("--opt", "adamv", "--lr", "1"), "--opt adamv: unknown to timm; did you mean adam"),
        (("--opt", "kron", "--lr", "1"), "--opt kron: draws random numbers that its state leaves out"),
        (("--opt", "adahessian", "--lr", "1"), "--opt adahessian: needs second derivatives"),
        (("--opt", "fusedlamb", "--lr", "1"), "--opt fusedlamb: CUDA required for APEX optimizers"),
        (
            ("--opt", "adamw", "--lr", "1", "--opt-kwargs", "beta=1"),
            "--opt adamw beta=1: AdamW.__init__() got an unexpect",
        ),
        (
            ("--opt", "adamw", "--lr", "1", "--opt-betas", "2", "1"),
            "--opt adamw betas=(2.0, 1.0): Invalid beta parameter",
        ),
        (("--opt-kwargs", "beta"), "--opt-kwargs beta: must be NAME=VALUE"),
        (("--opt-eps", "1e-3"), "--opt-eps 0.001: must be with an --opt of timm's"),
        (("--opt", "lion", "--lr", "1", "--nesterov"), "--nesterov True: must be with --opt sgd or lars"),
        (("--layer-decay", "0.5"), "--layer-decay 0.5: must be with --decay-groups timm"),
        (
            ("--decay-groups", "timm", "--norm-weight-decay", "0"),
            "--norm-weight-decay 0.0: must be with --decay-groups layers",
        ),
        (("--lr-scheduler", "multistep"), "--lr-milestones : must be with --lr-scheduler multistep"),
        (("--lr-scheduler", "multistep", "--lr-milestones", "3", "2"), "--lr-milestones 3 2: must be rising epochs"),
        (
            ("--lr-scheduler", "step", "--min-lr", "1"),
            "--min-lr 1.0: must be with --lr-scheduler cosine, poly or plateau",
        ),
        (("--cooldown-epochs", "90"), "--cooldown-epochs 90: must be below --epochs"),
        (("--bce-sum",), "--bce-sum True: must be with --bce-loss"),
        (("--bce-loss", "--bce-target-thresh", "1"), "--bce-target-thresh 1.0: must be in [0, 1)"),
        (("--teacher", "alexnet"), "--teacher alexnet: must be with --teacher-weights"),
        (
            ("--teacher", "alexnet", "--teacher-weights", "a.pt", "--num-classes", "9"),
            "--teacher alexnet: must be without --num-classes",
        ),
        (("--teacher-weights", "a.pt"), "--teacher-weights a.pt: must be with --teacher"),
        (("--teacher", "bogus"), "--teacher bogus: unknown"),
        (
            ("--blurpool", "--model", "vit_b_16"),
            "--blurpool: torchvision/vit_b_16 has no convolution with a stride that",
        ),
        (("--grad-checkpointing",), "--grad-checkpointing: torchvision/resnet50 does not have it; models of timm do"),
        (("--recipe", "alexnet-full", "--config", "x"), "--recipe and --config: give one of them"),
        (("--config", "none.json"), "--config none.json: No such file or directory"),
        (("--recipe",), "argument --recipe: expected one argument"),
    ],
)
def test_wrong_flags_are_one_line(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_are_read_back_from_a_file(tmp_path: Path) -> None:
    config = TrainConfig(
        model="pyramidnet", model_kwargs=("depth=14", "alpha=8"), lr=0.2, run_dir=Path("runs/a"),
        pretrained=Path("w.pth"), progressive_resize=("0:64",), amp="fp16", clip_grad_norm=1.0,
    )  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.as_dict()))
    assert TrainConfig.read(path, launched=False) == config
    changed = parsed("--config", str(path), "--lr", "0.4")
    assert changed == dataclasses.replace(config, config=path, lr=0.4)


def test_the_run_of_another_launcher_is_repeated_with_as_many_processes(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TrainConfig().as_dict() | {"processes": 4}))
    assert TrainConfig.read(path, launched=False).nproc == 4
    assert TrainConfig.read(path, launched=True).nproc == 1


def test_an_evaluation_takes_the_settings_of_a_finetuned_run(tmp_path: Path) -> None:
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
        pytest.param("[" * 200_000, id="nested without end"),
    ],
)
def test_a_file_that_is_not_a_config_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"not the config\.json of a run"):
        TrainConfig.read(path, launched=False)


def test_flags_override_a_recipe() -> None:
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
    assert (config.lr_updates, config.lr_warmup_decay) == ("epoch", None)
    assert RECIPES[name].processes == devices
    models.check_options(config.model, config.model_options)


def test_the_table_of_recipes() -> None:
    assert [row[0] for row in rows()] == [f"`{name}`" for name in RECIPES]
    table = {row[0]: row[1:] for row in rows()}
    assert table["`alexnet-full`"] == ("`alexnet`", "90", "8 x 128 images, lr 0.04", "57.885")
    assert table["`pyramidnet-full`"][-2:] == ("4 x 64 images, lr 0.5", "none")
    assert table["`convnext-t`"][-2:] == ("8 x 128 x 4 images, lr 0.004", "82.1")


def test_the_table_of_devices() -> None:
    assert ("`npu`", "hccl", "no", "torch_npu") in [row[:4] for row in device.rows()]


def test_help_is_grouped_and_lists_what_the_registries_hold(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    text = capsys.readouterr().out
    boxes = re.findall(r"^╭─ ([\w ]+) options ─", text, re.MULTILINE)
    assert boxes == list(TrainConfig.HELP_GROUPS.values())
    words = set(re.findall(r"[\w/-]+", text))
    assert {*RECIPES, *models.REGISTRY, *DEVICE_TYPES} <= words


@pytest.mark.parametrize(("name", "value"), [("device", "tpu"), ("amp", "fp8"), ("lr_scheduler", "linear")])
def test_choices_are_checked_without_a_command_line_too(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} {value}: must be one of "):
        TrainConfig(**{name: value})  # type: ignore[arg-type]


def test_other_trainers_flags_are_ours_or_answered_with_ours() -> None:
    flags = {name for flag in ZOO_FLAGS for name in flag.names}
    own = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(TrainConfig)}
    assert "--learning-rate" in flags
    assert flags <= own | FOREIGN_FLAGS.keys()
    assert not own & FOREIGN_FLAGS.keys()
    assert {flag.becomes for flag in ZOO_FLAGS if flag.becomes} <= own
    named = {flag for text in FOREIGN_FLAGS.values() for flag in re.findall(r"--[a-z][a-z0-9-]*", text)}
    assert named <= own
