"""The settings of a run: a frozen dataclass, checked when it is made. The command line is generated from it."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import models
from pipeline import loaders
from pipeline.errors import InputError
from train import trace

DEFAULT_DATA = "data/shards"
PROCESSES = "processes"
"""What config.json holds besides the settings: how many processes there were, whoever started them."""
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class Interval(NamedTuple):
    """How often something is done: after so many optimiser steps, or seconds; 0 stands for never."""

    steps: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """`500` (steps), `30s`, `10min` or `2h`. Raises ValueError."""
        match = re.fullmatch(r"(\d+)(s|min|h)?", text)
        if match is None:
            raise ValueError("must be a number of steps such as 500, or a time such as 10min")
        count, unit = int(match[1]), match[2]
        return cls(0, count * _UNITS[unit]) if unit else cls(count, 0.0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train or evaluate an image classifier."""

    recipe: str | None = None
    """Start from the settings of a published run: alexnet-full, resnet152-full, se_resnet50-full, pnasnet5large-full
    or pyramidnet-full (train/recipes.py). Flags given beside it win."""
    config: Path | None = None
    """Start from the settings of another run: its config.json. Flags given beside it win."""

    data: str = DEFAULT_DATA
    """Directory made by tools/convert_imagenet.py, its address on a web server (http:// or https://), or a
    folder with class folders in train/ and val/."""
    model: str = "torchvision/resnet50"
    """alexnet, resnet152, se_resnet50, pnasnet5large, pyramidnet and others that `python -m models` lists,
    torchvision/<name>, or timm/<name> where timm is installed."""
    model_kwargs: tuple[str, ...] = ()
    """Options of the model as NAME=VALUE: aux, drop_path and zero_pad of pnasnet5large, depth, alpha, block and
    drop_rate of pyramidnet, and what torchvision and timm take."""
    num_classes: int | None = None
    """Outputs of the model; default: the classes of --data. Given, a --pretrained file of another number of
    classes gets a new last layer."""
    pretrained: Path | None = None
    """Weights to start from: a file of torchvision, Cadene or the model zoos, or a checkpoint."""
    finetune: Path | None = None
    """As --pretrained, and another number of classes gets a new last layer without --num-classes."""
    loader: str = "auto"
    """auto, ffcv, dali, webdataset, torch or synthetic."""
    workers: int | None = None
    """Loading threads or processes of each training process; default: the machine's cores over --nproc."""

    nproc: int = 1
    """Training processes on this machine, one a device."""
    nnodes: int = 1
    """Machines."""
    node_rank: int = 0
    """Number of this machine; rank 0 is on machine 0."""
    rdzv_endpoint: str = "localhost:0"
    """host:port of machine 0, with --nnodes: a free port there, the same on every machine."""
    rdzv_timeout: int = 300
    """Seconds that processes and machines wait for each other at the start."""
    max_restarts: int = 0
    """How often the processes are restarted from the newest checkpoint after one has failed."""
    device: Literal["auto", "cpu", "cuda", "npu", "sdaa"] = "auto"

    epochs: int = 90
    batch_size: int = 128
    """Images of each process in a forward pass. The global batch (times processes, times --accumulate) is printed."""
    accumulate: int = 1
    """Batches whose gradients are summed up for one step."""
    resolution: int | None = None
    """Side of the images; default: the model's own."""
    progressive_resize: tuple[str, ...] = ()
    """Sides of the training images by epoch as EPOCH:SIDE, e.g. 0:128 30:160 60:192; before the first and in
    evaluation --resolution holds."""
    opt: Literal["sgd", "lars"] = "sgd"
    """Optimiser; lars is timm's."""
    lr: float | None = None
    """Learning rate at the global batch; default: the model's own for 256 images, scaled linearly."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    norm_weight_decay: float | None = None
    """Weight decay of normalisation layers; default: --weight-decay."""
    bias_weight_decay: float | None = None
    """Weight decay of the other biases; default: --weight-decay."""
    lr_scheduler: Literal["cosine", "step"] = "cosine"
    """Cosine to zero, or times --lr-gamma every --lr-step-size epochs."""
    lr_step_size: int = 30
    lr_gamma: float = 0.1
    warmup_epochs: float = 5.0
    """Linear warm-up, per step, at most half of the run."""
    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    """Mixup: parameter of the beta distribution; 0: none."""
    cutmix_alpha: float = 0.0
    """CutMix: likewise. With both, each batch gets one of the two."""
    clip_grad_norm: float | None = None
    """Scale gradients down to this norm."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights; it is evaluated and saved beside them."""
    model_ema_decay: float = 0.9999
    sync_bn: bool = False
    """Batch normalisation over all processes (not on CPU)."""

    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision."""
    loss_scale: str = "dynamic"
    """Of --amp fp16: dynamic, or a number. Steps whose gradients overflow are left out in both cases."""
    channels_last: bool = True
    """channels_last memory format, where the device supports it."""
    compile: bool = False
    """torch.compile the model."""
    seed: int = 0
    """Initial weights, order, crops, mixing and dropout follow from it."""
    deterministic: bool = False
    """Only reproducible kernels; an operation that has none is an error."""

    run_dir: Path | None = None
    """Where the run is written; default: runs/<model>-<loader>-<time>."""
    checkpoint_every: str = "0"
    """Steps (500) or time (30s, 10min, 2h) between checkpoints, besides the one after each epoch; 0: none besides."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept, besides best.pt, that of the best top-1."""
    resume: str | None = None
    """A checkpoint to go on from, or auto: the newest sound one in --run-dir, or a new run if there is none."""
    evaluate: Path | None = None
    """Only evaluate this checkpoint or file of weights."""
    performance: int | None = None
    """Only measure: train so many steps, print FPS, neither evaluate nor save."""
    print_freq: int = 20
    """Steps between log lines. The loss is looked at there: one that is not finite ends the run."""
    log_indices: bool = False
    """Write the dataset positions of every batch to indices-rank<R>.jsonl (waits for the device each step)."""
    profile_steps: str | None = None
    """Trace these steps of the run, like 20:30, to trace-rank<R>.json (for ui.perfetto.dev)."""

    def __post_init__(self) -> None:
        models.check_options(self.model, self.model_options)
        if self.loader not in ("auto", *loaders.names()):
            loaders.load(self.loader)  # raises, listing the known ones
        self._check_numbers()
        self._check_texts()
        self._check_together()

    def _check_numbers(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            self._require(field.name, not isinstance(value, float) or math.isfinite(value), "a finite number")
        at_least_1 = ["nproc", "nnodes", "epochs", "batch_size", "accumulate", "print_freq", "keep_checkpoints"]
        for name in (*at_least_1, "rdzv_timeout", "lr_step_size", "num_classes", "performance"):
            self._require(name, self._unset(name) or getattr(self, name) >= 1, "at least 1")
        at_least_0 = ["seed", "weight_decay", "norm_weight_decay", "bias_weight_decay", "warmup_epochs", "node_rank"]
        for name in (*at_least_0, "max_restarts", "workers", "mixup_alpha", "cutmix_alpha"):
            self._require(name, self._unset(name) or getattr(self, name) >= 0, "at least 0")
        for name in ("lr", "lr_gamma", "clip_grad_norm"):
            self._require(name, self._unset(name) or getattr(self, name) > 0, "above 0")
        for name in ("label_smoothing", "momentum", "model_ema_decay"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("seed", self.seed < 1 << 63, "below 2^63")
        self._require("resolution", self.resolution is None or self.resolution >= 8, "at least 8")

    def _check_texts(self) -> None:
        readers: dict[str, Callable[[Any], object]] = {
            "checkpoint_every": Interval.parse,
            "loss_scale": _loss_scale,
            "progressive_resize": _sides,
            "profile_steps": trace.parse_steps,
        }
        for name, read in readers.items():
            try:
                read(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{self._flag(name)}: {error}") from None

    def _check_together(self) -> None:
        self._require("node_rank", self.node_rank < self.nnodes, "below --nnodes")
        elsewhere = re.fullmatch(r"(?!localhost:).+:([1-9]\d{0,4})", self.rdzv_endpoint)
        is_port = elsewhere is not None and int(elsewhere[1]) < 1 << 16
        self._require("rdzv_endpoint", self.nnodes == 1 or is_port, "host:port of machine 0 with --nnodes")
        self._require("resume", self.resume != "auto" or self.run_dir is not None, "a path without --run-dir")
        for name in ("resume", "pretrained", "finetune", "performance"):
            self._require("evaluate", self._unset("evaluate") or self._unset(name), f"without --{name}")
        alone = self._unset("resume") and self.max_restarts == 0  # it measures from the first step, and saves nothing
        self._require("performance", self._unset("performance") or alone, "without --resume and --max-restarts")
        self._require("finetune", self._unset("finetune") or self._unset("pretrained"), "without --pretrained")
        self._require("nesterov", not self.nesterov or self.momentum > 0, "with --momentum above 0")

    def _unset(self, name: str) -> bool:
        return getattr(self, name) is None

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{self._flag(name)}: must be {what}")

    def _flag(self, name: str) -> str:
        value = getattr(self, name)
        words = " ".join(value) if isinstance(value, tuple) else value
        return f"--{name.replace('_', '-')} {words}"

    @property
    def model_options(self) -> models.Options:
        """--model-kwargs as a dictionary."""
        return models.parse_options(self.model_kwargs)

    @property
    def checkpoint_interval(self) -> Interval:
        """--checkpoint-every, read."""
        return Interval.parse(self.checkpoint_every)

    @property
    def fixed_loss_scale(self) -> float | None:
        """--loss-scale, unless it is dynamic."""
        return _loss_scale(self.loss_scale)

    @property
    def training_sides(self) -> dict[int, int]:
        """--progressive-resize: from which epoch on images have which side."""
        return _sides(self.progressive_resize)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as checkpoints and config.json hold them."""
        fields = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}

    @classmethod
    def read(cls, path: Path, launched: bool) -> "TrainConfig":
        """The settings in a config.json, to train so again, with as many processes as then: where they are not
        `launched` by another program, --nproc starts them. Raises InputError."""
        try:
            fields = json.loads(path.read_text())
            processes = fields.pop(PROCESSES, 1)
            fields = {name: _as_field(cls, name, value) for name, value in fields.items()}
            if not launched and fields.get("nproc", 1) * fields.get("nnodes", 1) == 1:
                fields["nproc"] = processes
            return cls(**fields)
        except OSError as error:
            raise InputError(f"--config {path}: {error.strerror}") from None
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(f"--config {path}: not the config.json of a run ({error})") from None


def _as_field(cls: type[TrainConfig], name: str, value: Any) -> Any:
    """A value from JSON as the dataclass has it."""
    kind = {field.name: field.type for field in dataclasses.fields(cls)}[name]
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise ValueError(f"{name} {value!r} is none of {', '.join(get_args(kind))}")
    if "Path" in str(kind) and value is not None:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _loss_scale(text: str) -> float | None:
    if text == "dynamic":
        return None
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise ValueError("must be dynamic or a number above 0")
    return scale


def _sides(words: tuple[str, ...]) -> dict[int, int]:
    sides = {}
    for word in words:
        match = re.fullmatch(r"(\d+):(\d+)", word)
        if match is None or int(match[2]) < 8:
            raise ValueError("must be EPOCH:SIDE with a side of at least 8, such as 0:128 30:160")
        sides[int(match[1])] = int(match[2])
    if list(sides) != sorted(sides) or len(sides) < len(words):
        raise ValueError("epochs must rise")
    return sides
