"""Progress of training and evaluation: bars on a terminal. Elsewhere training has its log lines; evaluation, which
has none, gets lines about its progress."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline.contract import Batch
from pipeline.progress import counted

LINE = 80
"""Columns of a terminal, into which the lines of a log should fit."""

ALWAYS = 9
"""The importance of what is shown however narrow the terminal is."""

_LEAST_BAR = 5


class Piece(NamedTuple):
    """A part of a line."""

    text: str
    importance: int = ALWAYS


def fitted(pieces: Sequence[Piece], width: int = LINE) -> str:
    """The texts in a line of at most `width` columns: where they do not fit, the least important are left out."""
    kept = [piece for piece in pieces if piece.text]
    while len(line := " ".join(piece.text for piece in kept)) > width:
        least = min(kept, key=lambda piece: piece.importance)
        if least.importance == ALWAYS:
            break
        kept.remove(least)
    return line


def time_in_words(seconds: float) -> str:
    """`14:22`, `3:14:22`, or `2d 3:14`."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def training_bar(
    batches: Iterator[Batch],
    description: str,
    total: int,
    status: Callable[[], Sequence[Piece]],
    *,
    done: int = 0,
    shown: bool = True,
) -> Generator[Batch, None, None]:
    """Pass batches on behind a bar and what `status` says; of `total` batches, `done` are done already."""
    with (
        logging_redirect_tqdm(),
        tqdm(
            desc=description,
            total=total,
            initial=done,
            leave=False,
            dynamic_ncols=True,
            disable=None if shown else True,
        ) as bar,
    ):
        for batch in batches:
            yield batch
            if not bar.disable:
                _update(bar, description, status)


def _update(bar: "tqdm[None]", description: str, status: Callable[[], Sequence[Piece]]) -> None:
    """Count a batch; the line is made again as often as it is drawn."""
    if time.time() - bar.last_print_t >= bar.mininterval:
        width = (bar.format_dict["ncols"] or LINE) - len(f"{description} 100%|{_LEAST_BAR * ' '}| ")
        text = fitted(status(), width).replace("{", "{{").replace("}", "}}")
        bar.bar_format = "{desc} {percentage:3.0f}%|{bar}| " + text
    bar.update()


def evaluation_progress(
    batches: Iterator[Batch], total: int, *, shown: bool = True, what: str = "evaluation"
) -> Generator[Batch, None, None]:
    """Pass the batches of an evaluation on behind a bar, or with a line now and then."""
    with logging_redirect_tqdm():
        yield from counted(batches, what, total, "batches", leave=False) if shown else batches
