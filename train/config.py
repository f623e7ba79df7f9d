"""The settings of a run: a frozen dataclass, checked when it is created. The command line is generated from it."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin

import tyro

import models
from pipeline import loaders
from pipeline.contract import Decoder
from pipeline.errors import InputError
from pipeline.order.crops import Interpolation
from pipeline.order.erasing import MOST_BLOCKS
from pipeline.order.plan import MAX_REPEATS
from pipeline.sizes import parse_bytes
from pipeline.storage.remote.settings import Access, CacheSettings, Order, RemoteSettings
from train import case_name, timm_optimizers, trace
from train.augmentation import strings
from train.augmentation.policies import AugmentationSettings
from train.device import DeviceName
from train.foreign_flags import FOREIGN_FLAGS
from train.tracking import TrackerName

DEFAULT_DATA = "data/shards"
DEFAULT_MODEL = "torchvision/resnet50"
PROCESSES = "processes"
"""What config.json holds besides the settings: how many processes the run had, whoever started them."""
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


class Interval(NamedTuple):
    """How often something is done: after so many optimiser steps, or seconds; 0 means never."""

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

    HELP_GROUPS: ClassVar[dict[str, str]] = {
        "recipe": "starting",
        "data": "data",
        "model": "model",
        "epochs": "optimisation",
        "bce_loss": "loss",
        "mixup_alpha": "augmentation",
        "device": "device and process",
        "run_dir": "run directory",
        "performance": "measuring",
    }

    FOREIGN_FLAGS: ClassVar[dict[str, str]] = FOREIGN_FLAGS

    recipe: Annotated[
        str | None,
        tyro.conf.arg(help_behavior_hint=lambda default: f"(default: {default}; one of {', '.join(_recipe_names())})"),
    ] = None
    """Start from the settings of a published run (docs/recipes.md), or of a file of your own: my/recipe.py. Other flags
    override it."""
    config: Path | None = None
    """Start from the settings of another run: its config.json. Other flags override it."""
    seed: int = 0
    """Determines initial weights, order, crops, mixing and dropout."""

    data: str = DEFAULT_DATA
    """Directory written by tools/convert_imagenet.py, its address in a bucket (s3://, gs://, az://) or on a web server
    (http://, https://), or a folder with class folders in train/ and val/."""
    endpoint_url: str | None = None
    """Of an object store that is not the cloud's own, such as MinIO: http://host:9000."""
    io_timeout: float = 60.0
    """Seconds without a byte from a bucket or web server after which the run fails; --max-restarts restarts it."""
    cache: Path | None = None
    """Folder on a local disk that keeps shards of a bucket or web server; runs and processes may share it."""
    cache_size: str = "0"
    """Most that the folder may hold, such as 200GB."""
    order: Order = "stream"
    """Of training images from a bucket or web server: stream needs no cache; global is the order of local data, for
    which all shards are fetched into the cache first. Local data always has the global order."""
    loader: Annotated[
        str, tyro.conf.arg(help=f"auto, {', '.join(loaders.names())}, or a file of your own: my/loader.py.")
    ] = "auto"
    decoder: Decoder = "auto"
    """auto: Sluice's own for tiles, where it is the faster one, and libjpeg-turbo for other JPEGs; turbojpeg:
    libjpeg-turbo for all. The pixels are the same."""
    workers: int | None = None
    """Loading threads or processes of each training process; default: the machine's cores over --nproc."""
    resolution: int | None = None
    """Side of the images; default: the model's own."""
    progressive_resize: tuple[str, ...] = ()
    """Sides of the training images by epoch as EPOCH:SIDE, such as 0:128 30:160 60:192, or FIRST-LAST:SIDE, to come to
    a side evenly between two epochs, in multiples of 32, such as 0:160 65-76:192. Before the first, and in evaluation,
    --resolution applies."""
    progressive_batch: bool = False
    """Where --progressive-resize makes images smaller, pass several of the --accumulate batches through the model at
    once: as many as have no more pixels than a batch of the largest images. The images of a step, and with them the
    steps of an epoch and the learning rate, stay."""
    val_crop: int | None = None
    """Side of the images in evaluation, a crop of the centre; default: --resolution."""
    val_resize: int | None = None
    """Length of an image's shorter side before that crop; default: in the model's own proportion to --val-crop, such
    as 256 to 224."""
    interpolation: Interpolation | None = None
    """Of the resize in training and in evaluation, with antialias; default: bilinear, of --evaluate that of the run."""
    val_flip: bool = False
    """Evaluate each image and its mirror image, and average their logits; costs twice the time."""

    model: Annotated[
        str,
        tyro.conf.arg(
            help=f"{', '.join(models.REGISTRY)} (docs/models.md), torchvision/<name>, "
            "timm/<name>, or your own: package.module:function or my/model.py:function."
        ),
    ] = DEFAULT_MODEL
    model_kwargs: tuple[str, ...] = ()
    """Options of the model as NAME=VALUE: aux, drop_path and zero_pad of pnasnet5large, depth, alpha, block and
    drop_rate of pyramidnet, and what torchvision and timm accept."""
    blurpool: bool = False
    """Blur the input of convolutions with a stride, as FFCV's example does."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them; models of timm."""
    num_classes: int | None = None
    """Outputs of the model; default: the classes of --data. With it, a --pretrained file of another number of
    classes gets a new last layer."""
    pretrained: Path | None = None
    """Weights to start from: a file of torchvision, Cadene or the model zoos, or a checkpoint."""
    finetune: Path | None = None
    """As --pretrained, but a file of another number of classes always gets a new last layer."""
    model_ema: bool = False
    """Keep an exponential moving average of the weights, which is evaluated and saved as well."""
    model_ema_decay: float = 0.9999
    """The share of itself that the average keeps at each step."""
    model_ema_steps: int = 1
    """Steps of an epoch from one update of the average to the next."""
    model_ema_warmup: Literal["timm", "torch", "torchvision"] = "timm"
    """timm: the decay rises with the steps, as 1 - step^(-2/3), to --model-ema-decay (timm's ModelEmaV3 with warm-up),
    so that the average of a short run is of use. torch: it is constant (torch's AveragedModel). torchvision: as in its
    references, weights are copied during --warmup-epochs, and 1 - --model-ema-decay is multiplied by the global batch
    times --model-ema-steps over --epochs."""
    sync_bn: bool = False
    """Batch normalisation over all processes (not on CPU)."""

    epochs: int = 90
    steps_per_epoch: int | None = None
    """An epoch ends after so many steps; default: after all images. Each epoch has another order, so these are other
    images each time."""
    val_interval: int = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""
    patience: int | None = None
    """End the run after so many evaluations in a row whose top-1 is not better than the best before them; default:
    train all --epochs."""
    min_delta: float = 0.0
    """By how many percent it must be better to count, with --patience."""
    batch_size: int = 128
    """Images of each process in a forward pass. The global batch (times processes, times --accumulate) is printed."""
    accumulate: int = 1
    """Batches whose gradients are added up for one step."""
    opt: str = "sgd"
    """sgd (PyTorch's), or one of timm's, by its name there: adamw, lamb, lars, lion, muon, nadamw and others."""
    opt_eps: float | None = None
    """Epsilon of an optimiser of timm; default: its own."""
    opt_betas: tuple[float, ...] = ()
    """Betas of an optimiser of timm; default: its own."""
    opt_kwargs: tuple[str, ...] = ()
    """Other options of an optimiser of timm as NAME=VALUE."""
    lr: float | None = None
    """Learning rate at the global batch; default: --lr-base or the model's own for 256 images, scaled to it."""
    lr_base: float | None = None
    """Learning rate for --lr-base-size images, scaled to the global batch, unless --lr is given."""
    lr_base_size: int = 256
    lr_base_scale: Literal["linear", "sqrt"] = "linear"
    """How it is scaled: with the global batch, or with its square root."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_groups: Literal["layers", "timm", "ffcv"] = "layers"
    """What is not decayed. layers: --norm-weight-decay and --bias-weight-decay say so. timm: vectors, and what the
    model itself excludes, as in timm, DeiT and ConvNeXt. ffcv: parameters with bn in their name, as in FFCV's
    example."""
    layer_decay: float | None = None
    """The rate of each layer as a share of that of the layer above; with --decay-groups timm."""
    norm_weight_decay: float | None = None
    """Weight decay of normalisation layers; default: --weight-decay."""
    bias_weight_decay: float | None = None
    """Weight decay of the other biases; default: --weight-decay."""
    lr_scheduler: Literal["cosine", "step", "multistep", "poly", "plateau"] = "cosine"
    """Cosine or polynomial (poly) to --min-lr; times --lr-gamma every --lr-step-size epochs (step), at the epochs
    --lr-milestones (multistep), or after --lr-patience evaluations whose top-1 is not the best (plateau)."""
    lr_decay_from: Literal["warmup", "start"] = "warmup"
    """Where the epochs of --lr-scheduler are counted from: the end of warm-up, as in torchvision's references, after
    which these flags are named (steps after 5 epochs of warm-up: 35, 65), or the start of the run, as in timm (30,
    60)."""
    lr_updates: Literal["step", "epoch"] = "step"
    """Change the rate with each step, or only between epochs, as torchvision's references, timm by default, and the
    model zoos do."""
    lr_step_size: int = 30
    lr_milestones: tuple[int, ...] = ()
    lr_gamma: float = 0.1
    lr_power: float = 1.0
    """Of --lr-scheduler poly: 1 is a straight line."""
    lr_patience: int = 10
    min_lr: float = 0.0
    """Where --lr-scheduler cosine, poly and plateau end."""
    cooldown_epochs: int = 0
    """The last of --epochs, at --min-lr, after a cosine or a polynomial."""
    warmup_epochs: float = 5.0
    """Linear warm-up, at most half of the run."""
    lr_warmup_decay: float | None = None
    """The first rate of the warm-up, as a share of --lr (torchvision's references: 0.01); default: 1/(N + 1) where
    the rate changes N times in the warm-up, as in the model zoos."""
    clip_grad_norm: float | None = None
    """Scale gradients down to this norm."""

    bce_loss: bool = False
    """Binary cross-entropy of each class, as timm's, instead of cross-entropy."""
    bce_sum: bool = False
    """Sum it over the classes instead of averaging."""
    bce_target_thresh: float | None = None
    """Targets above this number, after mixing and smoothing, count as 1, others as 0."""
    bce_pos_weight: float | None = None
    """Weight of the targets' share in that loss; default: 1."""
    label_smoothing: float = 0.0
    teacher: str | None = None
    """Distil this model, of the names that --model takes, as DeiT does; with --teacher-weights."""
    teacher_weights: Path | None = None
    """Its weights: a file as --pretrained takes, or a checkpoint."""
    distillation: Literal["hard", "soft"] = "hard"
    """The teacher's class as a label, or its probabilities at --distillation-tau."""
    distillation_alpha: float = 0.5
    """Share of the distillation in the loss."""
    distillation_tau: float = 1.0
    """Temperature of --distillation soft."""

    mixup_alpha: float = 0.0
    """Parameter of Mixup's beta distribution; 0: no Mixup."""
    cutmix_alpha: float = 0.0
    """Parameter of CutMix's beta distribution; 0: no CutMix. With both, each batch gets one of the two."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area that a training crop covers."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a training crop."""
    hflip: float = 0.5
    """Probability that a training image is mirrored left to right."""
    vflip: float = 0.0
    """Probability that it is turned upside down."""
    auto_augment: Annotated[str | None, tyro.conf.arg(aliases=("--aa",))] = None
    """A policy in timm's or torchvision's notation, such as rand-m9-n3-mstd0.5, ta_wide, original or 3a
    (docs/augmentation.md lists them)."""
    augment: str | None = None
    """Your own function of images on the device, uint8 [B, 3, R, R], after all other augmentation and before mixing:
    package.module:function or my/augment.py:function."""
    color_jitter: tuple[float, ...] = ()
    """How far brightness, contrast and saturation vary, and hue if there is a fourth number; one number stands for the
    first three. Applied also with --auto-augment."""
    color_jitter_prob: float = 1.0
    """Probability of that."""
    grayscale_prob: float = 0.0
    """Probability that a training image loses its colours."""
    gaussian_blur_prob: float = 0.0
    """Probability of a Gaussian blur, of a standard deviation from 0.1 to 2 pixels."""
    solarize_prob: float = 0.0
    """Probability that values from 128 on are inverted."""
    random_erase: float = 0.0
    """Probability that a rectangle of the image is erased."""
    random_erase_mode: Literal["const", "rand", "pixel"] = "const"
    """What it is filled with: the mean colour, a random colour, or random pixels."""
    random_erase_count: int = 1
    """At most so many rectangles."""
    aug_repeats: int = 1
    """Each image of a batch is in it so many times, each time cropped and augmented differently; an epoch has as many
    images as before, and so fewer different ones."""

    device: DeviceName = "auto"
    """auto: the accelerator that PyTorch sees, else the CPU."""
    nproc: int = 1
    """Training processes on this machine, one for each device."""
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
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision."""
    loss_scale: str = "dynamic"
    """Of --amp fp16: dynamic, or a number. Steps whose gradients overflow are skipped in both cases."""
    float32: Literal["high", "highest"] = "high"
    """Precision of products of float32 numbers: high uses TF32, or HF32 on NPUs, where the device has it; highest
    does not."""
    channels_last: bool = True
    """channels_last memory format, where the device supports it."""
    compile: bool = False
    """torch.compile the model."""
    deterministic: bool = False
    """Use reproducible kernels only; an operation that has none is an error."""

    run_dir: Path | None = None
    """Directory to write the run to; default: runs/<model>-<loader>-<time>."""
    checkpoint_every: str = "0"
    """Steps (500) or time (30s, 10min, 2h) between checkpoints within an epoch; 0: only one after each epoch."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept; best.pt, that of the best top-1, is always kept, and last.pt is the
    newest one."""
    resume: str | None = None
    """A checkpoint to resume from, or auto: the newest intact one in --run-dir, or a new run if there is none."""
    evaluate: Path | None = None
    """Only evaluate this checkpoint or file of weights. A checkpoint knows its model and the sizes of its images.
    Accuracy by class, confused classes and the worst mistakes are written to evaluation-NAME in --run-dir, or in the
    checkpoint's run."""
    analyse: bool = True
    """Whether an evaluation writes these."""
    predictions: Path | None = None
    """With --evaluate: file for the most likely classes of each image, .csv or .jsonl."""
    print_freq: int = 20
    """Steps between log lines. The loss is checked there: one that is not finite ends the run."""
    log: tuple[TrackerName, ...] = ("tensorboard",)
    """Where losses, accuracies and rates go besides metrics.jsonl: tensorboard, wandb, trackio, or several; alone:
    nowhere else."""
    log_format: Literal["sluice", "ascend", "tecorigin"] = "sluice"
    """Write log lines, files and results as trainers of the Ascend or Tecorigin model zoo do, for parsers of these
    (docs/zoos.md). Their files are written to the current directory."""
    log_case: str | None = None
    """Name of the case with --log-format ascend, such as ResNet152_bs2048_8p_acc; default: from the model, the global
    batch and the processes."""
    log_indices: bool = False
    """Write the dataset positions of every batch to indices-rank<R>.jsonl (waits for the device each step)."""

    performance: int | None = None
    """Only measure: train so many steps, print FPS, neither evaluate nor save."""
    profile_steps: str | None = None
    """Trace these steps of the run, such as 20:30, to trace-rank<R>.json (for ui.perfetto.dev)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", models.full_name(self.model))  # one spelling in checkpoints and comparisons
        models.check_options(
            self.model, self.model_options, blurpool=self.blurpool, grad_checkpointing=self.grad_checkpointing
        )
        if self.teacher is not None:
            object.__setattr__(self, "teacher", models.full_name(self.teacher))
            models.card(self.teacher, "--teacher")  # raises, listing the known ones
        if self.loader not in ("auto", *loaders.names()):
            loaders.load(self.loader)  # raises, listing the known ones
        self._check_choices()
        self._check_numbers()
        self._check_texts()
        self._check_together()
        self._check_optimization()
        self._check_loss()

    def _check_choices(self) -> None:
        """On the command line the parser checks them; here they may come from a file or another program."""
        for name, choices in _choices(type(self)).items():
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        trackers = get_args(TrackerName)
        self._require("log", set(self.log) <= set(trackers), f"of {', '.join(trackers)}")

    def _check_numbers(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            self._require(field.name, not isinstance(value, float) or math.isfinite(value), "a finite number")
        at_least_1 = ["nproc", "nnodes", "epochs", "batch_size", "accumulate", "print_freq", "keep_checkpoints"]
        at_least_1 += [
            "random_erase_count",
            "aug_repeats",
            "lr_step_size",
            "lr_base_size",
            "model_ema_steps",
            "val_interval",
        ]
        for name in (*at_least_1, "rdzv_timeout", "num_classes", "performance", "patience", "steps_per_epoch"):
            self._require(name, self._unset(name) or getattr(self, name) >= 1, "at least 1")
        at_least_0 = ["seed", "weight_decay", "norm_weight_decay", "bias_weight_decay", "warmup_epochs", "node_rank"]
        at_least_0 += [
            "max_restarts",
            "workers",
            "mixup_alpha",
            "cutmix_alpha",
            "min_lr",
            "cooldown_epochs",
            "min_delta",
        ]
        for name in (*at_least_0, "lr_patience"):
            self._require(name, self._unset(name) or getattr(self, name) >= 0, "at least 0")
        above_0 = ["lr", "lr_base", "lr_gamma", "lr_power", "opt_eps", "clip_grad_norm", "bce_pos_weight"]
        for name in (*above_0, "distillation_tau", "io_timeout"):
            self._require(name, self._unset(name) or getattr(self, name) > 0, "above 0")
        for name in ("label_smoothing", "momentum", "model_ema_decay", "lr_warmup_decay", "bce_target_thresh"):
            self._require(name, self._unset(name) or 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("distillation_alpha", 0 <= self.distillation_alpha <= 1, "in [0, 1]")
        self._require("layer_decay", self.layer_decay is None or 0 < self.layer_decay <= 1, "in (0, 1]")
        for name in ("hflip", "vflip", "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "solarize_prob"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._require("random_erase", 0 <= self.random_erase <= 1, "in [0, 1]")
        self._require("random_erase_count", self.random_erase_count <= MOST_BLOCKS, f"at most {MOST_BLOCKS}")
        self._require("scale", 0 < self.scale[0] <= self.scale[1] <= 1, "two rising shares in (0, 1]")
        self._require("ratio", 0 < self.ratio[0] <= self.ratio[1] < math.inf, "two rising numbers above 0")
        self._require("aug_repeats", self.aug_repeats <= MAX_REPEATS, f"at most {MAX_REPEATS}")
        self._require("seed", self.seed < 1 << 63, "below 2^63")
        interpolations = get_args(Interpolation)
        self._require(
            "interpolation", self.interpolation in (None, *interpolations), f"one of {', '.join(interpolations)}"
        )
        for name in ("resolution", "val_crop", "val_resize"):
            self._require(name, self._unset(name) or getattr(self, name) >= 8, "at least 8")

    def _check_texts(self) -> None:
        parsers: dict[str, Callable[[Any], object]] = {
            "checkpoint_every": Interval.parse,
            "loss_scale": _loss_scale,
            "progressive_resize": _sides,
            "profile_steps": trace.parse_steps,
            "cache_size": _cache_bytes,
            "auto_augment": strings.parse_optional,
            "color_jitter": strings.jitter,
            "log_case": case_name.parse_optional,
            "augment": _own_code,
        }
        for name, parse in parsers.items():
            try:
                parse(getattr(self, name))
            except ValueError as error:
                raise ValueError(f"{self._flag(name)}: {error}") from None

    def _check_together(self) -> None:
        self._require("node_rank", self.node_rank < self.nnodes, "below --nnodes")
        endpoint = re.fullmatch(r"(?!localhost:).+:([1-9]\d{0,4})", self.rdzv_endpoint)
        is_endpoint = endpoint is not None and int(endpoint[1]) < 1 << 16
        self._require("rdzv_endpoint", self.nnodes == 1 or is_endpoint, "host:port of machine 0 with --nnodes")
        self._require("resume", self.resume != "auto" or self.run_dir is not None, "a path without --run-dir")
        for name in ("resume", "pretrained", "finetune", "performance"):
            self._require("evaluate", self._unset("evaluate") or self._unset(name), f"without --{name}")
        starts_new = self._unset("resume") and self.max_restarts == 0  # --performance saves nothing to restart from
        self._require("performance", self._unset("performance") or starts_new, "without --resume and --max-restarts")
        self._require("finetune", self._unset("finetune") or self._unset("pretrained"), "without --pretrained")
        self._require("predictions", self._unset("predictions") or not self._unset("evaluate"), "with --evaluate")
        self._require(
            "cache_size", (self.cache is None) == (self.cache_size == "0"), "given with --cache, and only then"
        )
        self._require("order", self.order == "stream" or self.cache is not None, "stream without --cache")
        resizes = bool(self.progressive_resize)
        self._require("progressive_batch", not self.progressive_batch or resizes, "with --progressive-resize")
        self._require("min_delta", not self.min_delta or not self._unset("patience"), "with --patience")
        self._require("nesterov", not self.nesterov or self.momentum > 0, "with --momentum above 0")
        self._require("log_case", self._unset("log_case") or self.log_format == "ascend", "with --log-format ascend")

    def _check_optimization(self) -> None:
        timm_optimizers.check(self.opt, self.optimizer_options)
        if self.opt != "sgd":
            self._require("nesterov", not self.nesterov or self.opt == "lars", "with --opt sgd or lars")
        else:
            for name in ("opt_eps", "opt_betas", "opt_kwargs"):
                self._require(name, getattr(self, name) in (None, ()), "with an --opt of timm's")
        scaled = self.lr is not None or self.lr_base is not None
        self._require("opt", self.opt in ("sgd", "lars") or scaled, "with --lr or --lr-base: the models' own are SGD's")
        self._require(
            "layer_decay", self._unset("layer_decay") or self.decay_groups == "timm", "with --decay-groups timm"
        )
        for name in ("norm_weight_decay", "bias_weight_decay"):
            self._require(name, self._unset(name) or self.decay_groups == "layers", "with --decay-groups layers")
        multistep, rise = (
            self.lr_scheduler == "multistep",
            all(map(int.__lt__, self.lr_milestones, self.lr_milestones[1:])),
        )
        self._require("lr_milestones", multistep == bool(self.lr_milestones), "with --lr-scheduler multistep")
        self._require("lr_milestones", rise and min(self.lr_milestones, default=1) >= 1, "rising epochs from 1 on")
        self._require(
            "min_lr",
            not self.min_lr or self.lr_scheduler in ("cosine", "poly", "plateau"),
            "with --lr-scheduler cosine, poly or plateau",
        )
        curve = self.lr_scheduler in ("cosine", "poly")
        self._require("cooldown_epochs", not self.cooldown_epochs or curve, "with --lr-scheduler cosine or poly")
        self._require("cooldown_epochs", self.cooldown_epochs < self.epochs, "below --epochs")

    def _check_loss(self) -> None:
        for name in ("bce_sum", "bce_target_thresh", "bce_pos_weight"):
            self._require(name, getattr(self, name) in (None, False) or self.bce_loss, "with --bce-loss")
        self._require("teacher", self._unset("teacher") or not self._unset("teacher_weights"), "with --teacher-weights")
        self._require("teacher", self._unset("teacher") or self._unset("num_classes"), "without --num-classes")
        self._require("teacher_weights", self._unset("teacher_weights") or not self._unset("teacher"), "with --teacher")

    def _unset(self, name: str) -> bool:
        return getattr(self, name) is None

    def _require(self, name: str, holds: bool, requirement: str) -> None:
        if not holds:
            raise ValueError(f"{self._flag(name)}: must be {requirement}")

    def _flag(self, name: str) -> str:
        value = getattr(self, name)
        words = " ".join(map(str, value)) if isinstance(value, tuple) else value
        return f"--{name.replace('_', '-')} {words}"

    @property
    def model_options(self) -> models.Options:
        """--model-kwargs as a dictionary."""
        return models.parse_options(self.model_kwargs)

    @property
    def remote(self) -> RemoteSettings:
        """How data in a bucket or on a web server is read."""
        cache = CacheSettings(self.cache, _cache_bytes(self.cache_size)) if self.cache else None
        return RemoteSettings(access=Access(self.endpoint_url, self.io_timeout), cache=cache, order=self.order)

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """--opt-kwargs, --opt-eps and --opt-betas as timm takes them."""
        options = models.parse_options(self.opt_kwargs, "--opt-kwargs")
        if self.opt_eps is not None:
            options["eps"] = self.opt_eps
        return options | ({"betas": self.opt_betas} if self.opt_betas else {})

    @property
    def checkpoint_interval(self) -> Interval:
        """--checkpoint-every, parsed."""
        return Interval.parse(self.checkpoint_every)

    @property
    def fixed_loss_scale(self) -> float | None:
        """--loss-scale, unless it is dynamic."""
        return _loss_scale(self.loss_scale)

    @property
    def augmentation(self) -> AugmentationSettings:
        """What is done to training images on the device."""
        return AugmentationSettings(
            policy=strings.parse_optional(self.auto_augment),
            vflip=self.vflip,
            jitter=strings.jitter(self.color_jitter),
            jitter_probability=self.color_jitter_prob,
            grayscale_probability=self.grayscale_prob,
            blur_probability=self.gaussian_blur_prob,
            solarize_probability=self.solarize_prob,
            erase_probability=self.random_erase,
            erase_mode=self.random_erase_mode,
            erase_count=self.random_erase_count,
        )

    @property
    def training_sides(self) -> dict[int, int]:
        """--progressive-resize: the epoch from which images have a side, to the side."""
        return _sides(self.progressive_resize)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as checkpoints and config.json hold them."""
        fields = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}

    @classmethod
    def read(cls, path: Path, launched: bool) -> "TrainConfig":
        """The settings in a config.json, to repeat its run with as many processes: where those are not `launched` by
        another program, --nproc starts them. Raises InputError."""
        try:
            fields = json.loads(path.read_text())
            processes = fields.pop(PROCESSES, 1)
            fields = {name: _as_field(cls, name, value) for name, value in fields.items()}
            if not launched and fields.get("nproc", 1) * fields.get("nnodes", 1) == 1:
                fields["nproc"] = processes
            return cls(**fields)
        except OSError as error:
            raise InputError(f"--config {path}: {error.strerror}") from None
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise InputError(f"--config {path}: not the config.json of a run ({error})") from None


def _as_field(cls: type[TrainConfig], name: str, value: Any) -> Any:
    """A value from JSON as the dataclass has it."""
    field_type = {field.name: field.type for field in dataclasses.fields(cls)}[name]
    if "Path" in str(field_type) and value is not None:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _choices(cls: type[TrainConfig]) -> dict[str, tuple[str, ...]]:
    """The fields that have a fixed set of values, and these."""
    return {field.name: get_args(field.type) for field in dataclasses.fields(cls) if get_origin(field.type) is Literal}


def _recipe_names() -> list[str]:
    from train.recipes import RECIPES  # here: that module imports this one

    return list(RECIPES)


def _cache_bytes(text: str) -> int:
    return 0 if text == "0" else parse_bytes(text)


def _own_code(name: str | None) -> None:
    if name is not None and not models.is_own(name):
        raise ValueError("must be package.module:function or my/file.py:function")


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
    """The epoch from which images have a side, to the side.

    FIRST-LAST:SIDE is FFCV's interpolation: until epoch FIRST the side before, from LAST on this one, and between them
    the multiple of 32 that is nearest to a straight line, as `get_resolution` in train_imagenet.py of ffcv-imagenet.
    """
    sides: dict[int, int] = {}
    for word in words:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?:(\d+)", word)
        if match is None or int(match[3]) < 8:
            raise ValueError("must be EPOCH:SIDE or FIRST-LAST:SIDE with a side of at least 8, such as 0:128 30:160")
        first, last, side = int(match[1]), int(match[2] or match[1]), int(match[3])
        if sides and first <= max(sides):
            raise ValueError("epochs must rise")
        if match[2]:
            if not sides or last <= first:
                raise ValueError(f"{word} must come after another side, and its epochs must rise")
            before = sides[max(sides)]
            line = {epoch: before + (side - before) * (epoch - first) / (last - first) for epoch in range(first, last)}
            sides |= {epoch: round(value / 32) * 32 for epoch, value in line.items() if epoch > first}
        sides[last] = side
    return sides
