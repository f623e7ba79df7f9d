"""An unfinished conversion: killed at any moment, continued, shared by several processes.

Conversions are killed for real: they run in forked processes that get SIGKILL.
"""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversion.convert import convert
from pipeline.conversion.work import Part
from tests.helpers.conversions import (
    BAD,
    TRAIN,
    convert_settings,
    in_child,
    killed_at,
    refused,
    signalled,
    unfinished_files,
    wait_for,
    written,
)
from tests.helpers.files import files_in


def test_any_number_of_workers_writes_the_same_bytes(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    for workers in (1, 5):
        convert(convert_settings(source, tmp_path / str(workers), workers=workers))
        assert files_in(tmp_path / str(workers)) == uninterrupted


def test_conversion_killed_again_and_again_ends_with_the_same_bytes(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """Each attempt is killed one step later than the last, and has another number of workers."""
    dst, workers, kills = tmp_path / "dst", itertools.cycle([1, 5, 2]), 0
    while killed_at(kills + 1, convert_settings(source, dst, workers=next(workers))):
        kills += 1
        if not any((dst / name).exists() for name in (".conversion/finishing", "dataset.json")):
            unfinished_files(dst)
    assert kills > 10
    assert files_in(dst) == uninterrupted


def test_conversion_killed_at_random_moments_ends_with_the_same_bytes(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    moments, dst = random.Random(0), tmp_path / "dst"
    for attempt in range(8):
        pid = in_child(lambda: convert(convert_settings(source, dst, workers=1 + attempt % 3)))  # noqa: B023
        time.sleep(moments.uniform(0, 0.2))
        os.kill(pid, signal.SIGKILL)
        wait_for(pid)
        if (dst / "dataset.json").exists() and not (dst / ".conversion").exists():
            break  # done, though killed before it could report it
    else:
        convert(convert_settings(source, dst))
    assert files_in(dst) == uninterrupted


def test_killed_conversion_that_leaves_out_bad_images_ends_with_the_same_bytes(changing: Path, tmp_path: Path) -> None:
    (changing / TRAIN).write_bytes(BAD)
    dst = tmp_path / "dst"
    step = 0
    while killed_at(step := step + 7, convert_settings(changing, dst, on_bad="skip")):
        pass
    convert(convert_settings(changing, tmp_path / "once", on_bad="skip"))
    assert files_in(dst) == files_in(tmp_path / "once")


@pytest.mark.parametrize(
    "name", ["train-000001.tar", "train-000001.idx", "train-000001.json", "train-001-of-001.pages"]
)
def test_files_lost_from_the_work_folder_are_written_again(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    written(source, tmp_path, 1)
    (tmp_path / ".conversion" / name).unlink()
    convert(convert_settings(source, tmp_path))
    assert files_in(tmp_path) == uninterrupted


@pytest.mark.parametrize("name", ["train-000001.json", "part-001-of-001.json"])
@pytest.mark.parametrize("content", ["", "[]", '{"samples": 1}', "{"])
def test_damaged_record_is_named(source: Path, tmp_path: Path, name: str, content: str) -> None:
    written(source, tmp_path, 1)
    path = tmp_path / ".conversion" / name
    path.write_text(content)
    assert refused(convert_settings(source, tmp_path)).startswith(f"{path}: cannot be read (")


def test_second_process_on_a_target_is_refused(source: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    pid = in_child(
        signalled(
            signal.SIGSTOP, lambda number, path: number == 20, lambda: convert(convert_settings(source, tmp_path))
        )
    )
    os.waitpid(pid, os.WUNTRACED)
    try:
        before = unfinished_files(tmp_path)
        for settings in (convert_settings(source, tmp_path), convert_settings(source, tmp_path, merge=True)):
            assert refused(settings) == f"--dst {tmp_path}: another conversion is writing to it; wait for it"
        assert files_in(tmp_path) == before
    finally:
        os.kill(pid, signal.SIGCONT)
    assert wait_for(pid) == 0
    assert files_in(tmp_path) == uninterrupted


def test_parts_are_written_at_the_same_time(source: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    pid = in_child(
        signalled(
            signal.SIGSTOP,
            lambda number, path: number == 12,
            lambda: convert(convert_settings(source, tmp_path, part="1/2")),
        )
    )
    os.waitpid(pid, os.WUNTRACED)
    convert(convert_settings(source, tmp_path, part="2/2"))
    os.kill(pid, signal.SIGCONT)
    assert wait_for(pid) == 0
    convert(convert_settings(source, tmp_path, merge=True))
    assert files_in(tmp_path) == uninterrupted


@given(total=st.integers(0, 700), count=st.integers(1, 64))
def test_shares_are_disjoint_complete_and_even(total: int, count: int) -> None:
    shares = [Part(number, count).share(total) for number in range(1, count + 1)]
    assert [at for share in shares for at in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
