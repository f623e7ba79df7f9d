"""Checkpoints: plain dicts, written atomically, checked for damage and loaded without executing anything."""

import argparse
import contextlib
import errno
import logging
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from models import own
from models.pretrained import Weights
from pipeline.errors import InputError, StorageError
from pipeline.storage.files import complete_or_absent, move, temporary_path
from train import stranger_files

log = logging.getLogger(__name__)

Checkpoint = dict[str, Any]
FOLDER = "checkpoints"
BEST, LAST = "best.pt", "last.pt"
"""Further names of the checkpoint with the best top-1, and of the newest one."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.EFBIG)
"""What a disk answers that is full, over a quota, broken, or gone."""

_CODE = re.compile(r"unsupported global:? (?:GLOBAL )?([\w.]+)", re.IGNORECASE)
"""How torch.load names what it refuses to import."""

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def program_version() -> str:
    """The version of this program."""
    match = re.search(r'^version = "(.+)"$', _PROJECT.read_text(), re.MULTILINE)
    assert match is not None
    return match[1]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What whoever uses the weights of a checkpoint has to know, besides the model and its options, which are in
    "config". Stored as plain values, in "description"."""

    classes: list[str]
    """Names of the outputs, in their order; outputs after these belong to no class."""
    mean: list[float]
    std: list[float]
    """Of each colour, for values from 0 to 1."""
    resolution: int
    """Side of the images in training, where nothing else is said for an epoch."""
    val_resize: int
    """Length of an image's shorter side in evaluation, before the crop."""
    val_crop: int
    """Side of the crop of the centre."""
    interpolation: str
    """Of the resize: bilinear or bicubic, with antialias."""
    version: str
    """The version of the program that wrote the checkpoint."""


def path_for(run_dir: Path, step: int) -> Path:
    """The file of the checkpoint after `step` steps of the run."""
    return run_dir / FOLDER / f"step-{step:08d}.pt"


def existing(run_dir: Path) -> list[Path]:
    """The checkpoints of a run by step, newest last."""
    return sorted((run_dir / FOLDER).glob("step-*.pt"))


def run_dir_of(path: Path) -> Path | None:
    """The run directory that holds a checkpoint; None for a copy elsewhere."""
    return path.parent.parent if path.parent.name == FOLDER else None


def save(run_dir: Path, step: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, complete or not at all, name it last.pt, and delete all but the newest `keep`. Raises
    StorageError where the disk is full or fails; those before stay."""
    path = path_for(run_dir, step)
    try:
        with complete_or_absent(path, "wb") as file:
            torch.save(checkpoint, file)
    except (OSError, RuntimeError) as error:
        # torch.save reports a failed write as a RuntimeError, raised while the OSError is handled.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
            raise disk_failed(path.parent, cause) from None
        raise
    keep_as(LAST, run_dir, step)
    for old in existing(run_dir)[:-keep]:
        old.unlink()
    return path


def disk_failed(folder: Path, error: OSError) -> StorageError:
    """The error where a run cannot write to its directory any more."""
    free = ""
    with contextlib.suppress(OSError):
        free = f", {shutil.disk_usage(folder).free / 1e6:.0f} MB free on {_mount_point(folder)}"
    return StorageError(
        f"{folder}: cannot be written any more ({error.strerror}{free}); the checkpoints before stay: make room and "
        f"start again with --resume auto"
    )


def _mount_point(path: Path) -> Path:
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_mount())


def keep_as(name: str, run_dir: Path, step: int) -> None:
    """Give the checkpoint of this step, if there is one, another name as well; that file stays when old ones are
    deleted. A link at that name is replaced, not followed."""
    other, path = run_dir / FOLDER / name, path_for(run_dir, step)
    if not path.exists() or (os.path.lexists(other) and os.path.samestat(other.lstat(), path.lstat())):
        return  # rename(2) does nothing where both names are the same file's, and both stay
    link = temporary_path(other)
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(path, link)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, link)
        move(link, other)
    except OSError:
        link.unlink(missing_ok=True)
        raise


def set_aside_after(run_dir: Path, step: int) -> None:
    """Delete what a killed process left half written, and rename checkpoints after `step`: they are damaged. last.pt
    is again that of `step`."""
    for path in (run_dir / FOLDER).glob(".*.partial"):
        path.unlink()
    for path in existing(run_dir):
        if path > path_for(run_dir, step):
            path.replace(path.with_name(f"{path.name}.damaged"))
    keep_as(LAST, run_dir, step)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU. Raises InputError as `read` does, and for the file of another program."""
    content = read(path)
    if not is_checkpoint(content):
        raise InputError(f"{path}: not a checkpoint of this program (it has no 'model' and 'config')")
    checkpoint: Checkpoint = content
    return checkpoint


def check_size(content: Any, most: int) -> None:
    """Raises ValueError where the plain values and tensors in a checkpoint are more than `most` values and letters when
    they are written out, or tensors have more elements than the file has values for.

    A list may hold another one twice, and that another one twice, and so on; a tensor may repeat one value without end:
    copied, a few bytes become gigabytes.
    """
    waiting, size = [content], 0
    while waiting:
        value = waiting.pop()
        size += len(value) if isinstance(value, str) else 1
        if size > most:
            raise ValueError("values without end")
        if isinstance(value, torch.Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError("a tensor that repeats its values")
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


def class_names(content: Any) -> list[str] | None:
    """The names of the classes that the weights in a file were trained on, in the order of their outputs; None where
    the file does not hold them."""
    description = content.get("description") if isinstance(content, Mapping) else None
    names = description.get("classes") if isinstance(description, Mapping) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def is_checkpoint(content: Any) -> bool:
    """Whether the content of a file is a checkpoint of this program."""
    return isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("model", "config"))


def read(path: Path, kind: str = "checkpoint") -> Any:
    """What torch.save or safetensors wrote to a file, on the CPU; nothing in it is executed, and none of
    the user's own code that only its settings name.

    Raises InputError for a missing file, for code in it and for damage. A single flipped bit is noticed too: the file
    is a zip archive with a CRC-32 of each tensor's bytes, which torch.load does not check. Files from before PyTorch
    1.6 and those of safetensors have none. `kind` is what errors call the file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such {kind}")
    try:
        content = _read(path)
    except Exception as error:  # torch raises whatever the bytes lead to
        raise InputError(f"{path}: {_refusal(error, kind)}") from None
    if is_checkpoint(content):
        own.distrust(content["config"].values())
    if odd := [name for name in class_names(content) or () if not name.isprintable()]:  # as in a dataset.json
        raise InputError(f"{path}: {odd[0]!a:.60} as the name of a class")
    return content


def _read(path: Path) -> Any:
    if _is_safetensors(path):
        return safetensors.torch.load_file(path)
    with path.open("rb") as file:
        stranger_files.check(file)
    # The reference trainers of torchvision and timm save their flags with the weights. A Namespace is inert: what it
    # holds is checked as everything else.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a foreign pickle's protocol; what it leads to is reported
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does: the size of its header, 8 bytes, and the header, JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _refusal(error: Exception, kind: str) -> str:
    if isinstance(error, PermissionError):
        return str(error.strerror)
    if code := _CODE.search(str(error)):
        return f"holds {code[1]}, which is code, not weights; nothing was loaded"
    return f"not a {kind}, or a damaged one"


def newest_intact(run_dir: Path) -> tuple[Path, Checkpoint] | None:
    """The newest checkpoint that can be read, and its content; damaged newer ones are named in the log.

    None where there is none at all. Raises InputError where all are damaged.
    """
    paths = existing(run_dir)
    for path in reversed(paths):
        with contextlib.suppress(InputError):
            return path, load(path)
        log.warning("%s is damaged: resuming from the one before", path)
    if paths:
        raise InputError(f"--resume auto: all {len(paths)} checkpoints in {run_dir / FOLDER} are damaged")
    return None


def load_weights(network: nn.Module, weights: Weights, model: str, path: Path) -> None:
    """Load a checkpoint's state_dict into `network`. Raises InputError for that of another model."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:3]]
        raise InputError(f"{path}: does not fit --model {model}: {' '.join(reasons)}") from None


def without_training_state(path: Path | None, error: Exception) -> InputError:
    """The error where a checkpoint lacks what a resumed run needs."""
    return InputError(f"--resume {path}: holds no training state to resume from ({error!r})")
