"""Going on from a checkpoint: which one, what must be as it was, and what may differ."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from train import checkpoint
from train.checkpoint import State
from train.config import TrainConfig
from train.meeting import Meeting
from train.world import World

log = logging.getLogger(__name__)

REFUSED = ("model", "model_kwargs", "seed")
"""Settings without which the rest of the run would be another run."""
LOGGED = (
    "data", "loader", "device", "epochs", "batch_size", "accumulate", "resolution",
    "progressive_resize", "opt", "lr", "momentum", "nesterov",
    "weight_decay", "norm_weight_decay", "bias_weight_decay", "lr_scheduler", "lr_step_size", "lr_gamma",
    "warmup_epochs", "label_smoothing", "mixup_alpha", "cutmix_alpha", "clip_grad_norm", "model_ema",
    "model_ema_decay", "sync_bn", "amp", "loss_scale", "channels_last", "compile", "deterministic",
)  # fmt: skip
"""Settings that take effect from the next step on."""


@dataclasses.dataclass(frozen=True)
class Resumed:
    """A checkpoint to go on from."""

    path: Path
    state: State
    """Its "config" and "position". The rest is read when it is needed: processes that are forked before would keep
    it."""


def find(config: TrainConfig, meeting: Meeting) -> Resumed | None:
    """What --resume means, the same on every rank; after a restart the newest checkpoint, if there is one. Raises
    InputError, on rank 0."""
    if config.performance is not None:
        return None
    # One rank looks: while the ranks of several machines are restarted, one by one, a checkpoint may appear.
    path, state = json.loads(meeting.said_by_main(lambda: _found(config, meeting.run_dir)))
    return Resumed(Path(path), state) if path else None


def _found(config: TrainConfig, own: Path | None) -> str:
    """Path and what `Resumed` holds, as JSON. `own` is the directory that the run has already, after a restart."""
    path, state = None, dict[str, Any]()
    if run_dir := own or (config.run_dir if config.resume == "auto" else None):
        path, state = checkpoint.newest_sound(run_dir) or (path, state)
    if path is None and config.resume is not None and config.resume != "auto":
        path = Path(config.resume)
        state = checkpoint.load(path)
    try:
        return json.dumps([path and str(path), {key: state[key] for key in ("config", "position") if key in state}])
    except (TypeError, ValueError) as error:
        raise _not_training_state(path, error) from None


def _not_training_state(path: Path | None, error: Exception) -> InputError:
    return InputError(f"--resume {path}: holds no training state to go on from ({error!r})")


def adapted(config: TrainConfig, resumed: Resumed, world: World) -> TrainConfig:
    """The settings to go on with: the global batch is as it was, also in a world of another size.

    There the batches of a process grow no larger than --batch-size; what is missing is accumulated. Raises InputError
    where the run cannot be gone on with; logs what is different.
    """
    try:
        stored, position = resumed.state["config"], resumed.state["position"]
        before = position["global_batch"] // (stored["batch_size"] * stored["accumulate"])
        _compare(config, stored)
        adapted = _shared(config, stored, position["global_batch"], before, world.size)
    except InputError as error:
        raise InputError(f"--resume {resumed.path}: {error}") from None
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise _not_training_state(resumed.path, error) from None
    if world.is_main:
        _log_changes(adapted, stored, before, world.size)
    return adapted


def _compare(config: TrainConfig, stored: dict[str, Any]) -> None:
    for name in REFUSED:
        value, now = _plain(stored[name]), _plain(getattr(config, name))
        if value != now:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"was trained with {flag} {_text(value)}, not {_text(now)}")


def _shared(
    config: TrainConfig, stored: dict[str, Any], global_batch: int, before: int, world_size: int
) -> TrainConfig:
    """--batch-size and --accumulate that make this global batch."""
    asked = config.batch_size * config.accumulate * world_size
    if asked == global_batch:
        return config
    if before == world_size:
        flags = f"--batch-size {stored['batch_size']}"
        flags += f" --accumulate {stored['accumulate']}" if stored["accumulate"] != config.accumulate else ""
        raise InputError(f"its global batch is {global_batch}, not {asked}; give {flags}")
    share, rest = divmod(global_batch, world_size)
    if rest:
        raise InputError(f"its global batch of {global_batch} cannot be shared by {world_size} processes")
    batch_size = max(size for size in range(1, min(share, config.batch_size) + 1) if share % size == 0)
    return dataclasses.replace(config, batch_size=batch_size, accumulate=share // batch_size)


def _log_changes(config: TrainConfig, stored: dict[str, Any], before: int, world_size: int) -> None:
    if before != world_size:
        log.info(
            f"world size {before} -> {world_size}: {world_size} x {config.batch_size} images x "
            f"{config.accumulate} accumulated keep the global batch of {before} x {stored['batch_size']} x "
            f"{stored['accumulate']} and the order of samples; mixing and dropout draw anew for each rank"
        )
    changes = [
        f"{name} {_text(_plain(stored.get(name)))} -> {_text(_plain(getattr(config, name)))}"
        for name in LOGGED
        if _plain(stored.get(name)) != _plain(getattr(config, name))
    ]
    if changes:
        log.info("resumed with other settings: %s", ", ".join(changes))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return " ".join(map(str, value)) or "(none)" if isinstance(value, list) else str(value)
