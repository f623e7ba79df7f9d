"""Files with a JSON object on each line, which a killed process, a full disk or a failing one may have damaged."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Row = dict[str, Any]

_LONGEST_LINE = 1 << 24  # bytes; --log-indices writes a batch's positions in a line
_LARGEST = 1e39  # more than a float32 can be


def read_rows(path: Path, is_sound: Callable[[Row], bool]) -> Iterator[Row]:
    """The rows of a file, see `sound_lines`."""
    return (row for _, row in sound_lines(path, is_sound))


def sound_lines(
    path: Path, is_sound: Callable[[Row], bool], is_wanted: Callable[[int, bytes], bool] = lambda number, line: True
) -> Iterator[tuple[bytes, Row]]:
    """The lines of a file that are wanted by their number and text, and their rows; none where it is missing, or no
    regular file. It is never in memory as a whole.

    Lines that are no JSON object, or not one that `is_sound`, are left out, and one line in the log says how many; a
    last line without an end was being written, and is left out in silence.
    """
    if not path.is_file():
        return
    count = left_out = 0
    with path.open("rb") as file:
        # Of a longer line, only the last piece has an end.
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b"")):
            if not line.endswith(b"\n") or not is_wanted(number, line):
                continue
            count += 1
            rows = [row for row in _parsed(line) if is_sound(row)]
            left_out += not rows
            yield from ((line, row) for row in rows)
    if left_out:
        log.warning("%s: %d damaged of %d lines are left out", path, left_out, count)


def _parsed(line: bytes) -> Iterator[Row]:
    """The object in a line, or nothing."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        return
    if isinstance(row, dict):
        yield row


def are_numbers(*values: Any) -> bool:
    """Whether all of these are numbers that can be computed with: JSON's true and false are none, and 400 digits are
    too many."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST for value in values
    )
