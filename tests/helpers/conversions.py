"""Conversions in this process, in processes that are killed for real, and as the command; and what they write."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.cli import run_command
from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from tests.helpers.files import files_in
from tests.helpers.images import jpeg_bytes, photograph

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "convert_imagenet.py"
WNIDS = ("n00000001", "n00000002")
TRAIN = "train/n00000001/n00000001_2.JPEG"
VAL = "val/n00000001/ILSVRC2012_val_00000003.JPEG"
BAD = b"404 not found"

# --- a source, and conversions of it


def write_source(root: Path) -> Path:
    """12 training images of 2 classes and 3 validation images; one is grey, one a PNG in disguise. Returns `root`."""
    for number in range(12):
        path = root / "train" / WNIDS[number % 2] / f"{WNIDS[number % 2]}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = photograph(30 + number, 41, seed=number)
        path.write_bytes(jpeg_bytes(image, "L" if number == 3 else "RGB"))
        if number == 5:
            Image.fromarray(image).save(path, "PNG")
    for number in range(3):
        path = root / "val" / WNIDS[number % 2] / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg_bytes(photograph(37, 40, seed=90 + number)))
    return root


def spoil(source: Path) -> list[Path]:
    """Make three images bad, in several shards of both splits."""
    bad = [*sorted(source.glob("train/*/*_[07].JPEG")), source / VAL]
    for path in bad:
        path.write_bytes(BAD)
    return bad


def convert_settings(source: Path, dst: Path, **flags: Any) -> ConvertSettings:
    """Settings that make 3 training shards and a validation shard of `write_source`'s images."""
    defaults: dict[str, Any] = {"src": (source,), "dst": dst, "shard_size": "18KB", "workers": 2}
    return ConvertSettings(**(defaults | flags))


def refused(settings: ConvertSettings) -> str:
    """The one line that a conversion ends with."""
    with pytest.raises(InputError) as raised:
        convert(settings)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def unfinished_files(dst: Path) -> dict[str, bytes]:
    """The files of an unfinished conversion. Fails if there are any outside its work folder."""
    files = files_in(dst)
    assert all(name.startswith(".conversion/") for name in files)
    return files


# --- processes that are killed


def in_child(action: Callable[[], object]) -> int:
    """Start an action in a forked process, which ends with 0 if there was no exception. Returns its process ID."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def wait_for(pid: int) -> int:
    """How a process ended: its exit code, or the signal that ended it as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


When = Callable[[int, str], bool]
"""Chooses a change to a file by its number, counted from 1, and the path."""


def signalled(number: signal.Signals, when: When, action: Callable[[], object]) -> Callable[[], object]:
    """The action, with a signal to its own process just before the change to a file that `when` chooses."""
    changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        writes = event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.rmdir"):
            changes += 1
            if when(changes, str(arguments[0])):
                os.kill(os.getpid(), number)

    def with_hook() -> None:
        sys.addaudithook(hook)  # cannot be removed, but the process ends soon
        action()

    return with_hook


def killed_when(when: When, settings: ConvertSettings) -> bool:
    """Convert and be killed where `when` says. False if the conversion was done before."""
    code = wait_for(in_child(signalled(signal.SIGKILL, when, lambda: convert(settings))))
    assert code in (0, -signal.SIGKILL)
    return code != 0


def killed_at(step: int, settings: ConvertSettings) -> bool:
    """Convert and be killed just before the step-th change to a file. False if the conversion was done before."""
    return killed_when(lambda number, path: number == step, settings)


def written(source: Path, dst: Path, parts: int, **flags: Any) -> ConvertSettings:
    """Write all parts up to the moment when files get their names. Returns the settings that finish it."""
    if parts > 1:
        for number in range(1, parts + 1):
            convert(convert_settings(source, dst, part=f"{number}/{parts}"))
        return convert_settings(source, dst, merge=True)
    assert killed_when(lambda number, path: path.endswith("/finishing"), convert_settings(source, dst, **flags))
    unfinished_files(dst)
    return convert_settings(source, dst, **flags)


# --- the command


def run_script(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False, **options)


def run(*arguments: object) -> int:
    """Run the command in this process. Returns its exit code."""
    return run_command(convert, ConvertSettings, list(map(str, arguments)))


def result_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The result line that a command ended with."""
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    return result


def assert_refused(code: int, capsys: pytest.CaptureFixture[str], message: str) -> None:
    """The command ended with code 2 and one line of error that contains `message`."""
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    (line,) = (line for line in captured.err.splitlines() if not line.startswith(("train: ", "val: ", "classes: ")))
    assert line.startswith("error: ")
    assert message in line
    assert " object at 0x" not in line


# --- what was written


def report_of(dataset: Path) -> dict[str, Any]:
    """The content of report.json."""
    content: dict[str, Any] = json.loads((dataset / "report.json").read_text())
    assert list(content) == ["flags", "stored", "passed_over", "counts", "images"]
    return content


def stems_in(dataset: Path, split: str) -> list[str]:
    """The original file name of each dataset position, from the keys in the shards."""
    names = []
    for number, shard in enumerate(sorted(dataset.glob(f"webdataset/{split}-*.tar"))):
        with tarfile.open(shard) as archive:
            keys = [name.removesuffix(".jpg").split("_", 2) for name in archive.getnames() if name.endswith(".jpg")]
        assert [key[:2] for key in keys] == [[f"{number:06d}", f"{place:06d}"] for place in range(len(keys))]
        names += [key[2] for key in keys]
    return names


def truncate(path: Path, share: float) -> None:
    """Cut a file off after a share of its bytes."""
    os.truncate(path, int(path.stat().st_size * share))
