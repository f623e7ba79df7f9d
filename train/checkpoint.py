"""Checkpoints: plain dicts, written atomically, loaded with weights_only=True."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.formats.files import complete_or_absent

State = dict[str, Any]
FOLDER = "checkpoints"


def path_for(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after so many steps of the run is kept."""
    return run_dir / FOLDER / f"step-{step:08d}.pt"


def existing(run_dir: Path) -> list[Path]:
    """The checkpoints of a run, newest last."""
    return sorted((run_dir / FOLDER).glob("step-*.pt"))


def save(run_dir: Path, step: int, state: State, keep: int) -> Path:
    """Write a checkpoint, complete or not at all, and drop all but the newest `keep`."""
    path = path_for(run_dir, step)
    with complete_or_absent(path, "wb") as file:
        torch.save(state, file)
    for old in existing(run_dir)[:-keep]:
        old.unlink()
    return path


def load(path: Path) -> State:
    """Read a checkpoint to the CPU; nothing in it is executed. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises whatever the damaged bytes lead to
        raise InputError(f"{path}: not a checkpoint, or a damaged one") from None
    if not isinstance(state, dict) or not all(isinstance(state.get(key), dict) for key in ("model", "config")):
        raise InputError(f"{path}: not a checkpoint of this program (it has no 'model' and 'config')")
    return state


def load_weights(network: nn.Module, state: State, model: str, path: Path) -> None:
    """Load the weights into `network`. Raises InputError for a checkpoint of another model."""
    stored = state["config"].get("model", model)
    if stored != model:
        raise InputError(f"{path}: a checkpoint of {stored}, not of --model {model}")
    try:
        network.load_state_dict(state["model"])
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:3]]
        raise InputError(f"{path}: does not fit --model {model}: {' '.join(reasons)}") from None
