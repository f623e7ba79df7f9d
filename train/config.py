"""The settings of a run: a frozen dataclass, checked when it is made. The command line is generated from it."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import models
from pipeline import loaders

DEFAULT_DATA = "data/shards"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train or evaluate an image classifier."""

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
    """How often the processes are restarted from the newest checkpoint in --run-dir after one has failed."""
    device: Literal["auto", "cpu", "cuda", "npu", "sdaa"] = "auto"

    epochs: int = 90
    batch_size: int = 128
    """Images of each process in a step; the global batch is printed."""
    resolution: int | None = None
    """Side of the images in training; default: the model's own."""
    lr: float | None = None
    """Learning rate at the global batch; default: the model's own for 256 images, scaled linearly."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    warmup_epochs: float = 5.0
    """Linear warm-up, per step, at most half of the run; then cosine to zero."""
    label_smoothing: float = 0.0

    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision; fp16 scales the loss dynamically."""
    channels_last: bool = True
    """channels_last memory format, where the device supports it."""
    compile: bool = False
    """torch.compile the model."""
    seed: int = 0
    deterministic: bool = False
    """Only reproducible kernels."""

    run_dir: Path | None = None
    """Where the run is written; default: runs/<model>-<loader>-<time>."""
    checkpoint_every: int = 0
    """Steps between checkpoints, besides the one after each epoch; 0: none besides."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    resume: str | None = None
    """A checkpoint to go on from, or auto: the newest in --run-dir, or a new run if there is none."""
    evaluate: Path | None = None
    """Only evaluate this checkpoint."""
    print_freq: int = 20
    """Steps between log lines."""
    log_indices: bool = False
    """Write the dataset positions of every batch to indices-rank<R>.jsonl (waits for the device each step)."""

    def __post_init__(self) -> None:
        models.check_options(self.model, self.model_options)
        if self.loader not in ("auto", *loaders.names()):
            loaders.load(self.loader)  # raises, listing the known ones
        for name in ("nproc", "nnodes", "epochs", "batch_size", "print_freq", "keep_checkpoints", "rdzv_timeout"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("seed", "checkpoint_every", "weight_decay", "warmup_epochs", "node_rank", "max_restarts"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        self._require("workers", self.workers is None or self.workers >= 0, "at least 0")
        self._require("resolution", self.resolution is None or self.resolution >= 8, "at least 8")
        self._require("lr", self.lr is None or self.lr > 0, "above 0")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        self._require("momentum", 0 <= self.momentum < 1, "in [0, 1)")
        self._require("node_rank", self.node_rank < self.nnodes, "below --nnodes")
        elsewhere = re.fullmatch(r"(?!localhost:).+:[1-9]\d{0,4}", self.rdzv_endpoint)
        self._require(
            "rdzv_endpoint", self.nnodes == 1 or elsewhere is not None, "host:port of machine 0 with --nnodes"
        )
        self._require("max_restarts", self.max_restarts == 0 or self.run_dir is not None, "0 without --run-dir")
        self._require("resume", self.resume != "auto" or self.run_dir is not None, "a path without --run-dir")
        self._require("evaluate", self.evaluate is None or self.resume is None, "without --resume")
        self._require("evaluate", self.evaluate is None or self.pretrained is None, "without --pretrained")
        self._require("num_classes", self.num_classes is None or self.num_classes >= 1, "at least 1")

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {what}")

    @property
    def model_options(self) -> models.Options:
        """--model-kwargs as a dictionary."""
        return models.parse_options(self.model_kwargs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as checkpoints and config.json hold them."""
        fields = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
