"""Checkpoints: plain dicts, written atomically, checked and loaded with weights_only=True."""

import contextlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.pretrained import load_file
from pipeline.errors import InputError
from pipeline.formats.files import complete_or_absent, move, temporary_path

log = logging.getLogger(__name__)

State = dict[str, Any]
FOLDER = "checkpoints"
BEST = "best.pt"


def path_for(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after so many steps of the run is kept."""
    return run_dir / FOLDER / f"step-{step:08d}.pt"


def existing(run_dir: Path) -> list[Path]:
    """The checkpoints of a run by step, newest last."""
    return sorted((run_dir / FOLDER).glob("step-*.pt"))


def run_dir_of(path: Path) -> Path | None:
    """The run directory that a checkpoint is in; a copy elsewhere is in none."""
    return path.parent.parent if path.parent.name == FOLDER else None


def save(run_dir: Path, step: int, state: State, keep: int) -> Path:
    """Write a checkpoint, complete or not at all, and drop all but the newest `keep`."""
    path = path_for(run_dir, step)
    with complete_or_absent(path, "wb") as file:
        torch.save(state, file)
    for old in existing(run_dir)[:-keep]:
        old.unlink()
    return path


def keep_as_best(run_dir: Path, step: int) -> None:
    """Give the checkpoint of this step, if there is one, the name best.pt too; the file outlives the dropping of old
    ones."""
    best = run_dir / FOLDER / BEST
    if not path_for(run_dir, step).exists():
        return
    link = temporary_path(best)
    link.unlink(missing_ok=True)
    try:
        os.link(path_for(run_dir, step), link)
    except OSError:  # a file system without hard links
        shutil.copyfile(path_for(run_dir, step), link)
    move(link, best)


def set_aside_after(run_dir: Path, step: int) -> None:
    """Remove what a killed process left half written, and rename checkpoints after `step`, which were found damaged."""
    for path in (run_dir / FOLDER).glob(".*.partial"):
        path.unlink()
    for path in existing(run_dir):
        if path > path_for(run_dir, step):
            path.replace(path.with_name(f"{path.name}.damaged"))


def load(path: Path) -> State:
    """Read a checkpoint to the CPU; nothing in it is executed. Raises InputError, also for a flipped bit."""
    state = _read(path)
    if not _is_ours(state):
        raise InputError(f"{path}: not a checkpoint of this program (it has no 'model' and 'config')")
    return state


def load_weights_file(path: Path) -> State:
    """As `load`, but of a file that some other program wrote it returns an empty dict."""
    state = _read(path)
    return state if _is_ours(state) else {}


def _is_ours(state: Any) -> bool:
    return isinstance(state, dict) and all(isinstance(state.get(key), dict) for key in ("model", "config"))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        return load_file(path)
    except Exception:
        raise InputError(f"{path}: not a checkpoint, or a damaged one") from None


def newest_sound(run_dir: Path) -> tuple[Path, State] | None:
    """The newest checkpoint that can be read, and what it holds; damaged newer ones are named in the log.

    None where there is none at all. Raises InputError where all are damaged.
    """
    paths = existing(run_dir)
    for path in reversed(paths):
        with contextlib.suppress(InputError):
            return path, load(path)
        log.warning("%s is damaged: going on from the one before", path)
    if paths:
        raise InputError(f"--resume auto: all {len(paths)} checkpoints in {run_dir / FOLDER} are damaged")
    return None


def load_weights(network: nn.Module, weights: State, model: str, path: Path) -> None:
    """Load a state_dict into `network`. Raises InputError for that of another model."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:3]]
        raise InputError(f"{path}: does not fit --model {model}: {' '.join(reasons)}") from None
