"""Problems of a dataset, a line each."""

from collections import Counter
from pathlib import Path

from ..errors import InputError

LONGEST_PROBLEM = 400  # characters of a line
LISTED = 5  # problems of one kind in one file that get a line each


class Problems:
    """Lines that name a file and what is wrong with it. Beyond the first few of a kind in a file they are counted."""

    def __init__(self) -> None:
        self.count, self._lines, self._kinds = 0, list[str](), Counter[tuple[str, str]]()

    def add(self, path: Path, what: str, where: str = "", detail: str = "") -> None:
        """`what` names the kind of problem; `where` and `detail` belong to this one."""
        kind = str(path), what
        self._kinds[kind] += 1
        self.count += 1
        if self._kinds[kind] <= LISTED:
            self._lines.append(f"{path}: {where}{': ' if where else ''}{what}{detail}")

    def add_error(self, path: Path, error: InputError | OSError) -> None:
        """Add an exception raised while reading a file; an InputError names the file itself."""
        if isinstance(error, InputError):
            self.count += 1
            self._lines.append(str(error))
        elif isinstance(error, FileNotFoundError):
            self.add(path, "missing")
        else:
            self.add(path, f"cannot be read ({error.strerror or error})")

    def about(self, path: Path) -> bool:
        """Whether any problem concerns this file."""
        return any(line.startswith(f"{path}: ") for line in self._lines)

    def extend(self, others: "Problems") -> None:
        """Add problems of other kinds."""
        self.count += others.count
        self._lines += others._lines
        self._kinds += others._kinds

    def lines(self) -> list[str]:
        """The lines. None contains a line break or control character, whatever names occur in it."""
        rest = [f"{path}: {n - LISTED} more: {what}" for (path, what), n in self._kinds.items() if n > LISTED]
        return [
            "".join(letter if letter.isprintable() else "?" for letter in line[:LONGEST_PROBLEM])
            for line in [*self._lines, *rest]
        ]
