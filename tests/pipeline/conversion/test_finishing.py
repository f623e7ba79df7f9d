"""Parts put together, and finishing that is killed at every step."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.conversion.convert import convert
from tests.helpers.conversions import VAL, convert_settings, killed_at, refused, unfinished_files, written
from tests.helpers.files import files_in


@pytest.mark.parametrize("parts", [1, 3])
def test_finishing_killed_at_every_step_ends_with_the_same_bytes(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path, parts: int
) -> None:
    last = written(source, tmp_path / "written", parts)
    for step in itertools.count(1):
        dst = shutil.copytree(tmp_path / "written", tmp_path / f"dst{step}")
        if not killed_at(step, replace(last, dst=dst)):
            break
        result = convert(replace(last, dst=dst))
        assert (result["train"], result["val"], result["bad"], result["reencoded"]) == (12, 3, 0, 1)
        assert files_in(dst) == uninterrupted
        shutil.rmtree(dst)
    assert step > 15


@pytest.mark.parametrize("order", [(1,), (2, 1), (3, 1, 2), (2, 5, 7, 1, 3, 6, 4)], ids=lambda order: str(len(order)))
def test_parts_in_any_order_give_what_one_machine_writes(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path, order: tuple[int, ...]
) -> None:
    results = [
        convert(convert_settings(source, tmp_path, part=f"{number}/{len(order)}", workers=1 + number % 3))
        for number in order
    ]
    unfinished_files(tmp_path)
    merged = convert(convert_settings(tmp_path / "nowhere", tmp_path, merge=True))
    assert files_in(tmp_path) == uninterrupted
    for key in ("train", "val", "bad", "reencoded", "bytes"):
        assert sum(result[key] for result in results) == merged[key]
    assert results[0]["part"] == f"{order[0]}/{len(order)}"


def test_killed_parts_continue(source: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    for part in ("2/2", "1/2"):
        step = 0
        while killed_at(step := step + 6, convert_settings(source, tmp_path, part=part)):
            unfinished_files(tmp_path)
    convert(convert_settings(source, tmp_path, merge=True))
    assert files_in(tmp_path) == uninterrupted


def test_parts_written_to_separate_disks_are_merged_once_copied_together(
    source: Path, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        convert(convert_settings(source, tmp_path / str(number), part=f"{number}/3"))
        shutil.copytree(tmp_path / str(number), tmp_path / "dst", dirs_exist_ok=True)
    convert(convert_settings(source, tmp_path / "dst", merge=True))
    assert files_in(tmp_path / "dst") == uninterrupted


def test_merge_names_the_missing_part(source: Path, uninterrupted: dict[str, bytes], tmp_path: Path) -> None:
    merge = convert_settings(source, tmp_path, merge=True)
    assert refused(merge) == f"--dst {tmp_path}: no parts in it; write them with --part 1/N to N/N"
    convert(convert_settings(source, tmp_path, part="3/3"))
    assert refused(merge) == f"--dst {tmp_path}: part 1/3 has not begun"
    convert(convert_settings(source, tmp_path, part="1/3"))
    assert refused(merge) == f"--dst {tmp_path}: part 2/3 has not begun"
    assert killed_at(8, convert_settings(source, tmp_path, part="2/3"))
    assert refused(merge) == f"--dst {tmp_path}: part 2/3 is not finished; start it again to continue"
    unfinished_files(tmp_path)
    convert(convert_settings(source, tmp_path, part="2/3"))
    convert(merge)
    assert files_in(tmp_path) == uninterrupted
    assert convert(merge)["train"] == 12, "a merge that is started again reports what it made"
    assert files_in(tmp_path) == uninterrupted


def test_parts_of_other_sources_are_not_merged(source: Path, changing: Path, tmp_path: Path) -> None:
    shutil.copy(changing / VAL, changing / "val/n00000001/ILSVRC2012_val_00000009.JPEG")
    dst = tmp_path / "dst"
    convert(convert_settings(source, dst, part="1/2"))
    convert(convert_settings(changing, dst, part="2/2"))
    message = refused(convert_settings(source, dst, merge=True))
    assert message.startswith(f"--dst {dst}: part 2/2 converts with other arguments, or another source, than part 1/2")
    unfinished_files(dst)
