"""Targets that are refused: finished datasets, foreign files, unfinished conversions with other flags."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from tests.helpers.conversions import (
    WNIDS,
    assert_refused,
    convert_settings,
    killed_at,
    killed_when,
    refused,
    result_of,
    run,
    spoil,
    unfinished_files,
    written,
)
from tests.helpers.damage import change_report
from tests.helpers.files import files_in
from tests.helpers.sources import class_file


@pytest.fixture(scope="module")
def half(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertSettings:
    """The settings of a conversion that was killed half-way."""
    dst = tmp_path_factory.mktemp("half")
    begun = convert_settings(source, dst, jpeg="reencode", max_side=40, quality=80, subsampling="444")
    assert killed_at(25, begun)
    return begun


@pytest.fixture(scope="module")
def finished(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertSettings:
    """The settings of a finished conversion, with the flags of `half`."""
    dst = tmp_path_factory.mktemp("finished")
    done = convert_settings(source, dst, jpeg="reencode", max_side=40, quality=80, subsampling="444")
    convert(done)
    return done


OTHER_FLAGS: dict[str, tuple[dict[str, Any], str]] = {
    "jpeg": (
        {"jpeg": "proportion", "format": ("ffcv",)},
        "--jpeg reencode then, proportion now, --format ffcv webdataset then, ffcv now",
    ),
    "max side": ({"max_side": 39}, "--max-side 40 then, 39 now"),
    "no max side": ({"max_side": None}, "--max-side 40 then, not given now"),
    "quality": ({"quality": 81}, "--quality 80 then, 81 now"),
    "subsampling": ({"subsampling": "420"}, "--subsampling 444 then, 420 now"),
    "seed": ({"seed": 3}, "--seed 0 then, 3 now"),
    "verify": ({"verify": False}, "--verify True then, False now"),
    "format": ({"format": ("webdataset",)}, "--format ffcv webdataset then, webdataset now"),
    "splits": ({"splits": ("train",)}, "--splits train val then, train now"),
    "shard size": ({"shard_size": "15KB"}, "--shard-size 18000 then, 15000 now"),
    "part": ({"part": "1/2"}, "--part K/1 then, K/2 now"),
    "two": ({"seed": 3, "quality": 81}, "--quality 80 then, 81 now, --seed 0 then, 3 now"),
}


@pytest.mark.parametrize(("flags", "message"), OTHER_FLAGS.values(), ids=OTHER_FLAGS.keys())
def test_other_flags_are_refused_and_nothing_changes(
    half: ConvertSettings, flags: dict[str, Any], message: str
) -> None:
    before = unfinished_files(half.dst)
    assert f"holds an unfinished conversion with other arguments ({message}" in refused(replace(half, **flags))
    assert files_in(half.dst) == before


def test_other_paths_are_refused_and_nothing_changes(half: ConvertSettings, changing: Path) -> None:
    before = unfinished_files(half.dst)
    classes = changing / "classes.txt"
    classes.write_text("\n".join(WNIDS))
    assert f"(--src {half.src[0]} then, {changing} now)" in refused(replace(half, src=(changing,)))
    assert f"(--classes not given then, {classes} now)" in refused(replace(half, classes=classes))
    assert files_in(half.dst) == before


def test_other_validation_labels_are_refused(changing: Path, tmp_path: Path) -> None:
    for path in sorted(changing.glob("val/*/*")):
        path.rename(changing / "val" / path.name)
    for wnid in WNIDS:
        (changing / "val" / wnid).rmdir()
    labels = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path in labels:
        path.write_text("\n".join([WNIDS[0], WNIDS[1], WNIDS[0]]))
    assert killed_at(20, convert_settings(changing, tmp_path / "dst", val_labels=labels[0]))
    message = refused(convert_settings(changing, tmp_path / "dst", val_labels=labels[1]))
    assert f"(--val-labels {labels[0]} then, {labels[1]} now)" in message


def test_flags_that_do_not_affect_the_bytes_may_change(half: ConvertSettings, tmp_path: Path) -> None:
    dst = shutil.copytree(half.dst, tmp_path / "dst")
    convert(replace(half, dst=dst, workers=5, on_bad="skip", format=("ffcv", "webdataset"), shard_size="18000"))
    convert(replace(half, dst=tmp_path / "once"))
    assert files_in(dst) == files_in(tmp_path / "once")


def test_other_flags_are_refused_while_files_are_being_named(source: Path, tmp_path: Path) -> None:
    last = written(source, tmp_path, 1)
    assert killed_when(lambda number, path: path.endswith("/train-000001.tar"), last)
    assert (tmp_path / "webdataset/train-000000.tar").exists()
    before = files_in(tmp_path)
    assert "--seed 0 then, 1 now" in refused(replace(last, seed=1))
    assert files_in(tmp_path) == before


def test_part_with_other_flags_than_another_is_refused(source: Path, tmp_path: Path) -> None:
    convert(convert_settings(source, tmp_path, part="1/2"))
    before = unfinished_files(tmp_path)
    assert "(--seed 0 then, 4 now)" in refused(convert_settings(source, tmp_path, part="2/2", seed=4))
    assert "(--part K/2 then, K/3 now)" in refused(convert_settings(source, tmp_path, part="2/3"))
    assert files_in(tmp_path) == before


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    return {**result, "seconds": 0}


def test_finished_conversion_started_again_gives_its_result_again(
    changing: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a job that a scheduler requeues; the source may be gone by then."""
    settings = convert_settings(changing, tmp_path / "dst")
    result = convert(settings)
    before = files_in(tmp_path / "dst")
    shutil.rmtree(changing)
    changes: tuple[dict[str, Any], ...] = ({}, {"workers": 1}, {"on_bad": "skip"}, {"part": "1/2"}, {"merge": True})
    for flags in changes:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            again = convert(replace(settings, **flags))
        assert without_seconds(again) == without_seconds(result)
        assert caplog.messages == [f"--dst {tmp_path / 'dst'}: already complete; the source was not read again"]
        assert files_in(tmp_path / "dst") == before


def test_command_started_again_ends_with_code_0_and_the_result_line(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for _ in range(2):
        assert run("--src", few, "--dst", tmp_path / "dst") == 0
        results.append(without_seconds(result_of(capsys)))
    assert results[0] == results[1]
    assert results[0]["train"] == 2


def test_finished_conversion_that_has_lost_or_got_a_file_of_another_size_is_not_complete(
    few: Path, tmp_path: Path
) -> None:
    settings = convert_settings(few, tmp_path / "dst")
    convert(settings)
    for name in ("ffcv/train.beton", "webdataset/train-000000.tar"):
        path = tmp_path / "dst" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        assert refused(settings).startswith(f"{path}: {len(content) - 1} bytes, not {len(content)}")
        path.unlink()
        assert refused(settings).startswith(f"{path}: No such file or directory")
        path.write_bytes(content)
    assert convert(settings)["train"] == 2


def test_finished_conversion_with_a_list_of_classes_that_has_changed_is_refused(few: Path, tmp_path: Path) -> None:
    (few_class,) = {path.name for path in (few / "train").iterdir()}
    classes = class_file(tmp_path / "classes.txt", few_class)
    settings = replace(convert_settings(few, tmp_path / "dst"), classes=classes)
    convert(settings)
    assert convert(settings)["train"] == 2
    class_file(classes, "n09999999", few_class)
    assert f"(--classes {classes} has changed); remove it" in refused(settings)


OTHER_BYTES = {name: case for name, case in OTHER_FLAGS.items() if name != "part"}


@pytest.mark.parametrize(("flags", "message"), OTHER_BYTES.values(), ids=OTHER_BYTES.keys())
def test_finished_conversion_with_other_flags_is_refused(
    finished: ConvertSettings, flags: dict[str, Any], message: str
) -> None:
    before = files_in(finished.dst)
    assert f"holds a dataset converted with other arguments ({message}" in refused(replace(finished, **flags))
    assert files_in(finished.dst) == before


def test_finished_conversion_of_another_source_is_refused(finished: ConvertSettings, changing: Path) -> None:
    message = refused(replace(finished, src=(changing,)))
    assert f"(--src {finished.src[0]} then, {changing} now)" in message


def test_images_that_were_left_out_are_not_complete_without_the_flag(changing: Path, tmp_path: Path) -> None:
    spoil(changing)
    settings = convert_settings(changing, tmp_path / "dst", on_bad="skip")
    result = convert(settings)
    assert without_seconds(convert(settings)) == without_seconds(result)
    assert "(--on-bad skip then, fail now)" in refused(replace(settings, on_bad="fail"))


def test_dataset_without_a_record_of_its_flags_is_refused(source: Path, tmp_path: Path) -> None:
    """As one that an earlier version converted."""
    convert(convert_settings(source, tmp_path))
    change_report(tmp_path, lambda report: report.pop("flags"))
    assert "holds a converted dataset already" in refused(convert_settings(source, tmp_path))


@pytest.mark.parametrize("left", [[], ["train-000000.lock"]], ids=["empty", "a lock"])
def test_finished_dataset_with_remains_of_its_work_folder_is_recognised(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], left: list[str]
) -> None:
    dst = tmp_path / "dst"
    assert run("--src", few, "--dst", dst) == 0
    (dst / ".conversion").mkdir()
    for name in left:
        (dst / ".conversion" / name).touch()
    before = files_in(dst)
    capsys.readouterr()
    code = run("--src", few, "--dst", dst, "--jpeg", "keep", "--format", "ffcv")
    assert_refused(
        code, capsys, f"--dst {dst}: holds a dataset converted with other arguments (--jpeg tile then, keep now"
    )
    assert files_in(dst) == before


@pytest.mark.parametrize("place", ["train", "train/shards", "train/n00000001"])
def test_target_in_a_folder_of_the_source_is_refused(few: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    code = run("--src", few, "--dst", few / place)
    assert_refused(code, capsys, f"--dst {few / place}: inside {few / place.partition('/')[0]}, which is converted")
    assert not (few / "train" / "shards").exists()


def test_foreign_report_in_the_target_stays(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "report.json").write_text("mine")
    assert_refused(run("--src", few, "--dst", tmp_path / "dst"), capsys, "holds report.json, not from an unfinished")
    assert files_in(tmp_path / "dst") == {"report.json": b"mine"}


def test_file_as_target_is_refused(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dst").write_text("mine")
    code = run("--src", few, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, f"--dst {tmp_path}/dst: is a file")
    assert (tmp_path / "dst").read_text() == "mine"


def test_file_in_the_way_of_a_folder_is_refused(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "ffcv").write_text("mine")
    code = run("--src", few, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, f"--dst {tmp_path}/dst: ffcv in it is a file")
    assert files_in(tmp_path / "dst") == {"ffcv": b"mine"}


def test_target_below_a_file_is_refused(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    code = run("--src", few, "--dst", tmp_path / "file" / "dst")
    assert_refused(code, capsys, f"--dst {tmp_path}/file/dst: ")


def test_foreign_files_in_the_target_stay(few: Path, tmp_path: Path) -> None:
    mine = {"notes.txt": b"mine", "ffcv/old_experiment.beton": b"mine", "webdataset/laion-00000.tar": b"mine"}
    for name, data in mine.items():
        (tmp_path / "dst" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dst" / name).write_bytes(data)
    run("--src", few, "--dst", tmp_path / "dst")
    assert mine.items() <= files_in(tmp_path / "dst").items()
