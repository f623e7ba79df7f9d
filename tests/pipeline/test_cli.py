"""Commands: help in groups, and a reader of stdout that goes away."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from pipeline.cli import PlainFormatter, parse
from pipeline.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Flat:
    """A command without groups."""

    FOREIGN_FLAGS: ClassVar[dict[str, str]] = {"--learning-rate": "is --rate here"}

    data: str = "here"
    """Where the data is."""
    cache: str | None = None
    rate: float = 0.1
    """How fast it learns."""
    steps: int | None = None
    method: Literal["sgd", "lars"] = "sgd"
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"--rate {self.rate}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class Grouped(Flat):
    """A command with groups."""

    HELP_GROUPS: ClassVar[dict[str, str]] = {"data": "data", "rate": "optimisation", "quiet": "runs and logs"}

    quiet: bool = False
    """Print nothing."""


def help_of(settings: type[object], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(settings, ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_is_divided_into_boxes_where_the_settings_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(Grouped, capsys)
    boxes = re.findall(r"^╭─ ([\w ]+) ─+╮\n((?:│.*\n)+)╰", text, re.MULTILINE)
    flags = {title: re.findall(r"^│ (--[a-z]+)", content, re.MULTILINE) for title, content in boxes}
    assert flags == {
        "options": [],
        "data options": ["--data", "--cache"],
        "optimisation options": ["--rate", "--steps", "--method", "--files"],
        "runs and logs options": ["--quiet"],
    }
    assert "A command with groups." in text
    assert re.search(r"--rate FLOAT +How fast it learns. \(default: 0.1\)", text)


def test_help_without_groups_is_one_box(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(Flat, capsys)
    assert re.findall(r"^╭─ ([\w ]+) ─", text, re.MULTILINE) == ["options"]
    assert re.search(r"--data STR +Where the data is. \(default: here\)", text)


@pytest.mark.parametrize(
    "words", [(), ("--rate", "0.5"), ("--data", "there", "--quiet"), ("--cache", "None", "--rate", "2")]
)
def test_grouped_flags_are_parsed_as_flat_ones(words: Sequence[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Ungrouped(Flat):
        quiet: bool = False

    assert vars(parse(Grouped, words)) == vars(parse(Ungrouped, words))


def test_grouped_flags_override_the_settings_to_start_from() -> None:
    start = Grouped(data="there", rate=0.7, quiet=True)
    assert parse(Grouped, ["--rate", "3"], start) == replace(start, rate=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rate", "0"), "--rate 0.0: must be above 0 (see --help)"),
        (("--rat", "1"), "--rat: no such flag; did you mean --rate? (see --help)"),
        (("--learning-rate=1", "--xyz"), "--learning-rate: is --rate here; --xyz: no such flag (see --help)"),
        (("--learnin-rate=1",), "--learnin-rate: no such flag; did you mean --learning-rate? (see --help)"),
        (("--rate=abc",), "--rate abc: must be a number (see --help)"),
        (("--steps", "1.5"), "--steps 1.5: must be a whole number (see --help)"),
        (("--method", "sg"), "--method sg: must be one of sgd, lars; did you mean sgd? (see --help)"),
        (("stray",), "stray: belongs to no flag (see --help)"),
        (
            ("--files", "a", "s3://bucket/b"),
            "s3://bucket/b: an address, where a path on this machine is wanted; copy or mount it",
        ),
    ],
)
def test_wrong_flags_are_one_line_with_and_without_groups(words: Sequence[str], message: str) -> None:
    for settings in (Flat, Grouped):
        with pytest.raises(InputError) as caught:
            parse(settings, words)
        assert str(caught.value) == message


@pytest.mark.parametrize("groups", [{"data": "data", "none": "others"}, {"rate": "optimisation"}])
def test_groups_that_do_not_cover_the_fields_are_refused(groups: dict[str, str]) -> None:
    settings = type("Wrong", (Flat,), {"HELP_GROUPS": groups})
    with pytest.raises(AssertionError):
        parse(settings, [])


COMMAND = """
import sys
from dataclasses import dataclass
sys.path.insert(0, {root!r})
from pipeline.cli import run_command
from pipeline.errors import InputError

@dataclass(frozen=True)
class Settings:
    pass

def command(settings):
    {body}

sys.exit(run_command(command, Settings, []))
"""


COMMANDS = [
    *sorted((ROOT / "tools").glob("[!_]*.py")),
    ROOT / "train" / "run.py",
    *(ROOT / "tools" / "zoos" / name for name in ("start.py", "alexnet/main.py")),
]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_outside_the_environment_each_command_names_the_one_to_run(command: Path) -> None:
    """Python without its packages: what a plain `python3` is on most machines."""
    done = subprocess.run(
        [sys.executable, "-S", "-E", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert re.match(
        rf"error: {sys.executable}: has no (numba, )?numpy, .*; run `make env`, then .venv/bin/python ", line
    )
    assert line.endswith(f"python {command}")


def run_without_reader(*words: object) -> subprocess.CompletedProcess[str]:
    """Run Python with a pipe as stdout that nobody reads from."""
    read, write = os.pipe()
    os.close(read)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        return subprocess.run(
            [sys.executable, *map(str, words)],
            stdout=write,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(write)


@pytest.mark.parametrize(
    "body",
    [
        "return {'lines': 1}",
        "print('buffered until the end')",
        "print('more than any buffer' * 100_000)",
        "print('too early', flush=True)",
    ],
)
def test_command_without_a_reader_ends_silently(body: str) -> None:
    done = run_without_reader("-c", COMMAND.format(root=str(ROOT), body=body))
    assert (done.returncode, done.stderr) == (141, "")


def test_help_without_a_reader_ends_silently() -> None:
    done = run_without_reader(ROOT / "tools" / "convert_imagenet.py", "--help")
    assert (done.returncode, done.stderr) == (141, "")


def test_help_is_read_in_part_silently() -> None:
    words = [sys.executable, str(ROOT / "tools" / "convert_imagenet.py"), "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(6) == b"usage:"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 141)  # depending on who was faster


def test_bad_input_is_reported_where_nobody_reads_the_output() -> None:
    body = "print('lost'); raise InputError('--src: no such folder')"
    done = run_without_reader("-c", COMMAND.format(root=str(ROOT), body=body))
    assert (done.returncode, done.stderr) == (141, "error: --src: no such folder\n")


def test_another_broken_pipe_is_a_failure() -> None:
    body = "import os; read, write = os.pipe(); os.close(read); os.write(write, b'lost')"
    words = [sys.executable, "-c", COMMAND.format(root=str(ROOT), body=body)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_a_name_in_the_log_commands_no_terminal() -> None:
    record = logging.LogRecord("name", logging.INFO, "", 0, "class %s\n\tand more", ("\x1b[2J\x9b31m\r",), None)
    assert PlainFormatter("%(message)s").format(record) == "class ?[2J?31m?\n\tand more"
