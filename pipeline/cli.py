"""What every command shares: flags from a dataclass, one line per error, one line of JSON as the result.

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        '''What the command does.'''

        HELP_GROUPS: ClassVar[dict[str, str]] = {"data": "data", "lr": "optimisation"}

        data: str = "data/shards"
        '''What --data means.'''
        seed: int = 0
        lr: float = 0.1

    if __name__ == "__main__":
        sys.exit(run_command(main, Settings))

`HELP_GROUPS` is for commands with many flags, whose `--help` it divides into boxes ("data options", "optimisation
options"): it maps the field that begins a group to the group's title. A group extends to the field that begins the next
one, so a new field belongs to the group it is written in. The dataclass stays flat: `settings.lr`, `--lr`.

`ADDRESSES` maps a field of type Path to the schemes, such as "s3", of addresses that it takes too.

`FOREIGN_FLAGS` maps flags of other programs, such as "--learning-rate", to what an error says about them: "is --lr
here".
"""

import contextlib
import dataclasses
import io
import itertools
import json
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from .errors import InputError, StorageError, did_you_mean, one_line, without_escapes
from .requirements import ensure_installed
from .storage.remote.address import address_of

ensure_installed()

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

Settings = TypeVar("Settings")

EXIT_DONE, EXIT_FAILURE, EXIT_BAD_INPUT = 0, 1, 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_NO_READER = 128 + signal.SIGPIPE  # what a shell reports of `yes | head -1`, too


def parse(settings: type[Settings], argv: Sequence[str] | None = None, default: Settings | None = None) -> Settings:
    """Read the command line into the dataclass `settings`, whose docstrings are the help text. Flags that are not given
    are as in `default`.

    Raises InputError for a wrong flag or value, and SystemExit(0) after `--help`.
    """
    parsed = _parse(settings, argv, default)
    _refuse_addresses(parsed)
    return parsed


def _parse(settings: type[Settings], argv: Sequence[str] | None, default: Settings | None) -> Settings:
    errors, help_text = _Captured(), _Captured()
    start = tyro.MISSING_NONPROP if default is None else default
    try:
        # tyro draws its boxes to suit sys.stdout; captured, they are always the same.
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(help_text):
            titles = getattr(settings, "HELP_GROUPS", None)
            if titles is None:
                return tyro.cli(settings, args=argv, default=start)
            rules = _grouping_rules(settings, start, titles)
            return tyro.cli(settings, args=argv, description=settings.__doc__, registry=rules)
    except SystemExit as stop:
        if stop.code in (None, 0):
            encoding = sys.stdout.encoding or "utf-8"
            print(help_text.text().encode(encoding, "replace").decode(encoding), flush=True)
            raise
        raise InputError(f"{_explained(_unboxed(errors.text()), settings)} (see --help)") from None


def _grouping_rules(settings: type[Any], default: Any, titles: dict[str, str]) -> ConstructorRegistry:
    """The rules by which tyro takes `settings` for a struct of one struct per group, each with a box of its own, whose
    names are no part of the flags."""
    flat = ConstructorRegistry.get_struct_spec(StructTypeInfo.make(settings, default, in_union_context=False))
    assert isinstance(flat, StructConstructorSpec)
    assert titles.keys() <= {field.name for field in flat.fields}, "HELP_GROUPS names a field that does not exist"
    assert flat.fields[0].name in titles, "the first field must begin a group"
    starts = [number for number, field in enumerate(flat.fields) if field.name in titles]
    pieces = [flat.fields[start:stop] for start, stop in itertools.pairwise([*starts, len(flat.fields)])]
    members = {type(titles[piece[0].name], (), {"__doc__": ""}): piece for piece in pieces}  # tyro shows docstrings
    boxes = tuple(
        StructFieldSpec(group.__name__, cast(Any, tyro.conf.OmitArgPrefixes)[group], tyro.MISSING_NONPROP)
        for group in members
    )

    def instantiate(**values: dict[str, Any]) -> Any:
        return flat.instantiate(**{name: value for group in values.values() for name, value in group.items()})

    def rule(struct: StructTypeInfo) -> StructConstructorSpec | None:
        if struct.type is settings:
            return StructConstructorSpec(instantiate, boxes)
        return StructConstructorSpec(dict, members[struct.type]) if struct.type in members else None

    registry = ConstructorRegistry()
    registry.struct_rule(rule)
    return registry


class _Captured(io.TextIOWrapper):
    """A UTF-8 text stream in memory."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        """What was written."""
        self.seek(0)
        return self.read()


def _unboxed(message: str) -> str:
    """The text of tyro's error box, without the frame and the hints below the rule."""
    lines = [line.strip("│ ").strip() for line in message.splitlines() if line.startswith("│")]
    text = " ".join(itertools.takewhile(lambda line: not line.startswith("──"), lines))
    return re.sub(r"^Error parsing (\w+: )?", "", text) or message.strip()


_NO_NUMBER = re.compile(r"(--[\w-]+): .*?(could not convert string to float|invalid literal for int\(\)).*?: '(.*?)'")
_NO_CHOICE = re.compile(r"invalid choice '(.*?)' for argument '(--[\w-]+)'. Expected one of \((.*?)\) ?\.")
_UNKNOWN = re.compile(r"Unrecognized options: (.*)")


def _explained(message: str, settings: type[Any]) -> str:
    """tyro's message in the words of all other errors, where it is about a number, a choice or an unknown flag."""
    if match := _NO_NUMBER.match(message):
        kind = "a whole number" if "int()" in match[2] and "float" not in message else "a number"
        return f"{match[1]} {match[3]}: must be {kind}"
    if match := _NO_CHOICE.match(message):
        choices = re.findall("'(.*?)'", match[3])
        hint = did_you_mean(match[1], choices)
        return f"{match[2]} {match[1]}: must be one of {', '.join(choices)}{hint}"
    if match := _UNKNOWN.match(message):
        words = match[1].split(", ")
        flags = [word.partition("=")[0] for word in words if word.startswith("-")]
        return "; ".join(_unknown_flag(flag, settings) for flag in flags) or f"{words[0]}: belongs to no flag"
    return message


def _unknown_flag(flag: str, settings: type[Any]) -> str:
    foreign: dict[str, str] = getattr(settings, "FOREIGN_FLAGS", {})
    with_dashes = flag.replace("_", "-")  # as all flags may be written
    if with_dashes in foreign:
        return f"{flag}: {foreign[with_dashes]}"
    names = [field.name.replace("_", "-") for field in dataclasses.fields(settings)]
    known = [*names, *(name.removeprefix("--") for name in foreign if name.startswith("--"))]
    return f"{flag}: no such flag{did_you_mean(flag.lstrip('-'), known, '--')}"


def _refuse_addresses(settings: Any) -> None:
    """Raises InputError where a path is an address that the setting's entry in `ADDRESSES` does not allow: `Path` makes
    a folder `s3:` of `s3://`."""
    accepted: dict[str, tuple[str, ...]] = getattr(settings, "ADDRESSES", {})
    for name, value in vars(settings).items():
        for path in _paths(value):
            address = address_of(path)
            schemes = accepted.get(name, ())
            if not address or (scheme := address.partition("://")[0]) in schemes:
                continue
            if schemes:
                known = ", ".join(f"{one}://" for one in schemes)
                raise InputError(f"{address}: {scheme}:// cannot be given here, only {known} and local paths")
            raise InputError(f"{address}: an address, where a path on this machine is wanted; copy or mount it")


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _paths(item)


def number(value: float) -> str:
    """Three significant digits, or all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_result(result: dict[str, Any]) -> None:
    """The last line of every command: `{"result": {...}}` on stdout."""
    print(json.dumps({"result": result}), flush=True)


class PlainFormatter(logging.Formatter):
    """Lines in which names from a stranger's dataset command no terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return without_escapes(super().format(record))


def configure_logging() -> None:
    """Plain lines on stderr; stdout is for the result alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def run_command(
    command: Callable[[Settings], dict[str, Any] | None],
    settings: type[Settings],
    argv: Sequence[str] | None = None,
    default: Callable[[Sequence[str]], Settings | None] = lambda argv: None,
) -> int:
    """Parse `settings` from `argv`, call `command` with them, and print what it returns as the result line.

    `default` may read from `argv` the settings that the flags override.
    Returns the exit code: 0 done, 2 bad input (one line on stderr), 1 where storage failed (one line too), 130
    interrupted, 141 if the reader of stdout has gone (`--help | head -1`). Anything unexpected propagates and ends
    Python with code 1 and its traceback.
    """
    configure_logging()
    try:
        code = _exit_code(command, settings, sys.argv[1:] if argv is None else argv, default)
        sys.stdout.flush()  # here, where the error can be caught, and not when Python ends
    except BrokenPipeError:
        if not _reader_has_gone(sys.stdout.fileno()):  # another pipe or a connection broke
            raise
        # Python flushes stdout again when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NO_READER
    return code


def _exit_code(
    command: Callable[[Settings], dict[str, Any] | None],
    settings: type[Settings],
    argv: Sequence[str],
    default: Callable[[Sequence[str]], Settings | None],
) -> int:
    try:
        result = command(parse(settings, argv, default(argv)))
    except InputError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return EXIT_FAILURE if isinstance(error, StorageError) else EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    if result is not None:
        print_result(result)
    return EXIT_DONE


def _reader_has_gone(descriptor: int) -> bool:
    """Whether this is a pipe (or a socket) that nobody reads from any more."""
    poll = select.poll()
    poll.register(descriptor, 0)  # errors are always reported
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
