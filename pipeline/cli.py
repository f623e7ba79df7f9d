"""What every command shares: flags from a dataclass, one line per error, one line of JSON as the result."""

import contextlib
import io
import itertools
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from pipeline.errors import InputError, one_line

Settings = TypeVar("Settings")

EXIT_DONE, EXIT_FAILURE, EXIT_BAD_INPUT = 0, 1, 2


def parse(settings: type[Settings], argv: Sequence[str] | None = None, default: Settings | None = None) -> Settings:
    """Read the command line into the dataclass `settings`; its docstrings are the help text. What no flag says is as
    in `default`.

    Raises InputError with the first line of what tyro has to say about a wrong flag, and SystemExit(0) after
    `--help`.
    """
    told, helped = _Captured(), _Captured()
    try:
        # tyro draws boxes by what sys.stdout is; captured, it is always the same box.
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(helped):
            return tyro.cli(settings, args=argv, default=tyro.MISSING_NONPROP if default is None else default)
    except SystemExit as stop:
        if stop.code in (None, 0):
            encoding = sys.stdout.encoding or "utf-8"
            print(helped.text().encode(encoding, "replace").decode(encoding))
            raise
        raise InputError(f"{_unboxed(told.text())} (see --help)") from None


class _Captured(io.TextIOWrapper):
    """A UTF-8 text stream in memory."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        """What was written."""
        self.seek(0)
        return self.read()


def _unboxed(message: str) -> str:
    """The text of the error box that tyro draws, without the frame and the hints below the rule."""
    lines = [line.strip("│ ").strip() for line in message.splitlines() if line.startswith("│")]
    told = list(itertools.takewhile(lambda line: not line.startswith("──"), lines))
    return re.sub(r"^Error parsing (\w+: )?", "", " ".join(told)) or message.strip()


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_result(result: dict[str, Any]) -> None:
    """The last line of every command: `{"result": {...}}` on stdout."""
    print(json.dumps({"result": result}), flush=True)


def configure_logging() -> None:
    """Plain lines on stderr; stdout carries the result alone."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)


def run_command(
    command: Callable[[Settings], dict[str, Any] | None],
    settings: type[Settings],
    argv: Sequence[str] | None = None,
    default: Callable[[Sequence[str]], Settings | None] = lambda argv: None,
) -> int:
    """Parse `settings` from `argv`, call `command` with them, print what it returns as the result line.

    `default` may read the settings that flags are laid over from `argv` itself.
    Returns the exit code: 0 done, 2 bad input (one line on stderr). Anything unexpected propagates and ends
    Python with code 1 and its traceback.
    """
    configure_logging()
    try:
        argv = sys.argv[1:] if argv is None else argv
        result = command(parse(settings, argv, default(argv)))
    except InputError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + 2
    if result is not None:
        print_result(result)
    return EXIT_DONE
