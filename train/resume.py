"""Resuming: from which checkpoint, which settings must be those of the run, and which may differ."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from train import checkpoint
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.meeting import Meeting
from train.world import World

log = logging.getLogger(__name__)

RUNS = Path("runs")
"""Where runs without --run-dir have their directories."""
FIXED = ("model", "model_kwargs", "blurpool", "seed", "opt", "decay_groups", "layer_decay", "aug_repeats")
"""Settings that must not differ: it would be another run."""
CHANGEABLE = (
    "data", "loader", "device", "epochs", "steps_per_epoch", "val_interval", "patience", "min_delta",
    "batch_size", "accumulate", "resolution", "progressive_resize", "progressive_batch", "val_crop", "val_resize",
    "val_flip", "interpolation", "grad_checkpointing", "lr", "lr_base",
    "lr_base_size", "lr_base_scale", "momentum", "nesterov", "opt_eps", "opt_betas", "opt_kwargs",
    "weight_decay", "norm_weight_decay", "bias_weight_decay", "lr_scheduler", "lr_step_size", "lr_milestones",
    "lr_gamma", "lr_power", "lr_patience", "min_lr", "cooldown_epochs", "lr_decay_from", "lr_updates",
    "warmup_epochs", "lr_warmup_decay", "bce_loss", "bce_sum", "bce_target_thresh", "bce_pos_weight",
    "label_smoothing", "teacher", "teacher_weights", "distillation", "distillation_alpha", "distillation_tau",
    "mixup_alpha", "cutmix_alpha", "scale", "ratio", "hflip", "vflip", "auto_augment", "augment", "color_jitter",
    "color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "solarize_prob", "random_erase", "random_erase_mode",
    "random_erase_count", "clip_grad_norm", "model_ema", "model_ema_decay", "model_ema_steps", "model_ema_warmup",
    "sync_bn", "amp", "float32",
    "loss_scale", "channels_last", "compile", "deterministic",
)  # fmt: skip
"""Settings that may differ, which is logged, and take effect from the next step on."""

_ADDED = {"blurpool", "opt", "decay_groups", "layer_decay", "aug_repeats", *CHANGEABLE} - {"batch_size", "accumulate"}
_OLDEST = {field.name: field.default for field in dataclasses.fields(TrainConfig) if field.name in _ADDED}
"""Settings that a checkpoint may be too old to have: runs were as they are by default now."""

_LARGEST_SETTINGS = 1 << 20  # values and letters; a run has a few hundred


@dataclasses.dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run is resumed from."""

    path: Path
    state: Checkpoint
    """Its "config" and "position". The rest is read when it is needed: processes forked until then would keep a copy
    in memory."""


def restarted_in(config: TrainConfig, meeting: Meeting) -> Path | None:
    """On rank 0: the directory that this run had before a restart, if there was one.

    Between machines, strangers may be able to write to the store that knows it. So it must be one to which these
    settings lead: raises InputError.
    """
    try:
        path = meeting.run_dir
    except (TypeError, ValueError):  # no JSON, or none of a path
        path = Path()
    if path is None or path == config.run_dir:
        return path
    resumed = Path(config.resume) if config.resume not in (None, "auto") else None
    is_new = path.parent == RUNS and path.name not in ("", "..")
    if config.run_dir is not None or not (is_new or (resumed and path == checkpoint.run_dir_of(resumed))):
        raise InputError(
            f"--rdzv-endpoint: {str(path)!r:.80} was not the directory of this run before it was restarted; somebody "
            "else writes to the store of its processes: let a firewall keep strangers out, or give a secret "
            "(SLUICE_RDZV_TOKEN)"
        )
    return path


def find(config: TrainConfig, meeting: Meeting) -> Resumed | None:
    """The checkpoint that --resume names, or after a restart the newest one, if there is any; the same on every rank.
    Raises InputError on rank 0."""
    if config.performance is not None:
        return None
    # Only one rank looks: while the ranks of several machines are restarted one by one, a checkpoint may appear.
    path, state = json.loads(meeting.from_main(lambda: _find(config, restarted_in(config, meeting))))
    return Resumed(Path(path), state) if path else None


def _find(config: TrainConfig, before: Path | None) -> str:
    """The content of `Resumed` as JSON. After a restart, `before` is the directory that the run has already."""
    path, state = None, dict[str, Any]()
    if run_dir := before or (config.run_dir if config.resume == "auto" else None):
        path, state = checkpoint.newest_intact(run_dir) or (path, state)
    if path is None and config.resume is not None and config.resume != "auto":
        path = Path(config.resume)
        state = checkpoint.load(path)
    try:
        settings = {key: state[key] for key in ("config", "position") if key in state}
        checkpoint.check_size(settings, _LARGEST_SETTINGS)
        return json.dumps([path and str(path), settings])
    except (TypeError, ValueError) as error:
        raise checkpoint.without_training_state(path, error) from None


def adapted(config: TrainConfig, resumed: Resumed, world: World) -> TrainConfig:
    """The settings of the resumed run: its global batch stays, also in a world of another size.

    There, no process has batches larger than --batch-size: the rest of its share is accumulated. Raises InputError
    where the run cannot be resumed so; logs the differences.
    """
    try:
        stored, position = _OLDEST | resumed.state["config"], resumed.state["position"]
        world_size_before = position["global_batch"] // (stored["batch_size"] * stored["accumulate"])
        _check_fixed(config, stored)
        adapted = _with_global_batch(config, stored, position["global_batch"], world_size_before, world.size)
    except InputError as error:
        raise InputError(f"--resume {resumed.path}: {error}") from None
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise checkpoint.without_training_state(resumed.path, error) from None
    if world.is_main:
        _log_changes(adapted, stored, world_size_before, world.size)
    return adapted


def _check_fixed(config: TrainConfig, stored: dict[str, Any]) -> None:
    for name in FIXED:
        before, now = _plain(stored[name]), _plain(getattr(config, name))
        if before != now:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"was trained with {flag} {_text(before)}, not {_text(now)}")


def _with_global_batch(
    config: TrainConfig, stored: dict[str, Any], global_batch: int, world_size_before: int, world_size: int
) -> TrainConfig:
    """The settings with a --batch-size and --accumulate that give this global batch."""
    requested = config.batch_size * config.accumulate * world_size
    if requested == global_batch:
        return config
    if world_size_before == world_size:
        flags = f"--batch-size {stored['batch_size']}"
        flags += f" --accumulate {stored['accumulate']}" if stored["accumulate"] != config.accumulate else ""
        raise InputError(f"its global batch is {global_batch}, not {requested}; give {flags}")
    share, rest = divmod(global_batch, world_size)
    if rest:
        raise InputError(f"its global batch of {global_batch} cannot be divided among {world_size} processes")
    repeats = config.aug_repeats
    sizes = [size for size in range(1, min(share, config.batch_size) + 1) if share % size == 0]
    sizes = [size for size in sizes if size * world_size % repeats == 0]
    if not sizes:
        raise InputError(
            f"{world_size} processes with batches of at most {config.batch_size} cannot share its global batch of "
            f"{global_batch} so that each has {repeats} repeats of its images; give a larger --batch-size"
        )
    return dataclasses.replace(config, batch_size=max(sizes), accumulate=share // max(sizes))


def _log_changes(config: TrainConfig, stored: dict[str, Any], world_size_before: int, world_size: int) -> None:
    if world_size_before != world_size:
        log.info(
            f"world size {world_size_before} -> {world_size}: {world_size} x {config.batch_size} images x "
            f"{config.accumulate} accumulated keep the global batch of {world_size_before} x {stored['batch_size']} x "
            f"{stored['accumulate']} and the order of samples; mixing and dropout draw other numbers on each rank"
        )
    changes = [
        f"{name} {_text(_plain(stored.get(name)))} -> {_text(_plain(getattr(config, name)))}"
        for name in CHANGEABLE
        if _plain(stored.get(name)) != _plain(getattr(config, name))
    ]
    if changes:
        log.info("resumed with other settings: %s", ", ".join(changes))


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def _text(value: Any) -> str:
    return " ".join(map(str, value)) or "(none)" if isinstance(value, list) else str(value)
