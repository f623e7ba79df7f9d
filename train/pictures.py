"""Pictures that matplotlib draws: where they are written, and the texts of strangers in them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError, one_line
from pipeline.storage.files import complete_or_absent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST = 1000  # letters


def plain(text: str) -> str:
    """A text as it is to be drawn: names may hold formulas, which matplotlib would set or refuse, and be endless."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return one_line(shown.encode("utf-8", "replace").decode()).replace("$", r"\$")


def check_picture(path: Path, flag: str) -> None:
    """Raises InputError, which names the flag, where a picture cannot be written: before what it shows is computed."""
    from matplotlib.figure import Figure  # here: it would delay the start of every process by 0.5 s

    known = Figure().canvas.get_supported_filetypes()
    if _format_of(path) not in known:
        raise InputError(f"{flag} {path}: no kind of picture; end its name with .png, or one of {', '.join(known)}")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{flag} {path}: cannot be written")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure, complete or not at all. Raises OSError."""
    with complete_or_absent(path, "wb") as file:
        figure.savefig(file, dpi=120, format=_format_of(path))


def _format_of(path: Path) -> str:
    return path.suffix.removeprefix(".").lower() or "png"
