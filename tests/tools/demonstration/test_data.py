"""The demo dataset, made with a few images per class."""

import collections
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from pipeline.errors import InputError
from tools.demonstration import data as demo

pytest.importorskip("skimage")

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "make_demo_data.py"
TRAIN_PER_CLASS, VAL_PER_CLASS, SEED = 4, 2, 5


def settings(dst: Path, **changes: int) -> demo.DemoSettings:
    arguments = {
        "train_per_class": TRAIN_PER_CLASS,
        "val_per_class": VAL_PER_CLASS,
        "seed": SEED,
        "workers": 1,
    }
    return demo.DemoSettings(dst=dst, **{**arguments, **changes})


def run_script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def digests(root: Path) -> dict[str, str]:
    """Every file's relative path and digest."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def stored_bytes(split: demo.Split, class_index: int, number: int) -> bytes:
    """The expected file of a (split, class, number), drawn and rendered again."""
    view = demo.draw_view(SEED, split, class_index, number)
    chroma = {} if view.grey else {"subsampling": view.subsampling}
    file = io.BytesIO()
    demo.render(view).save(file, format="JPEG", quality=view.quality, **chroma)
    return file.getvalue()


@pytest.fixture(scope="module")
def made_dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A dataset rendered in this process, and the command's result."""
    dst = tmp_path_factory.mktemp("demo") / "data" / "demo"
    return dst, demo.make_demo_data(settings(dst))


@pytest.fixture(scope="module")
def root(made_dataset: tuple[Path, dict[str, Any]]) -> Path:
    return made_dataset[0]


def test_layout_is_that_of_imagenet(root: Path) -> None:
    train = {f"train/{w}/{w}_{n}.JPEG" for w in demo.WNIDS for n in range(1, TRAIN_PER_CLASS + 1)}
    count = len(demo.WNIDS) * VAL_PER_CLASS
    val = {f"val/ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, count + 1)}
    tables = {"val_synset_labels.txt", "LOC_synset_mapping.txt", "demo.json"}
    assert set(digests(root)) == train | val | tables
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in demo.WNIDS)
    assert list(demo.WNIDS) == sorted(set(demo.WNIDS))
    assert [path.name for path in root.parent.iterdir()] == [root.name], "the scratch directory is removed"


def test_result_counts_what_is_on_disk(made_dataset: tuple[Path, dict[str, Any]]) -> None:
    root, result = made_dataset
    files = list(root.rglob("*.JPEG"))
    assert result["train"] == sum(path.is_relative_to(root / "train") for path in files)
    assert result["val"] == sum(path.is_relative_to(root / "val") for path in files)
    assert result["classes"] == len(list((root / "train").iterdir())) >= 10
    assert result["bytes"] == sum(path.stat().st_size for path in files)


def test_default_counts_are_enough_to_train_on() -> None:
    images = demo.plan(demo.DemoSettings())
    assert sum(image.split == "train" for image in images) >= 1200
    assert sum(image.split == "val" for image in images) >= 300


def test_script_with_workers_writes_the_same_bytes(root: Path, tmp_path: Path) -> None:
    dst = tmp_path / "demo"
    counts = ["--train-per-class", TRAIN_PER_CLASS, "--val-per-class", VAL_PER_CLASS]
    done = run_script("--dst", dst, *counts, "--seed", SEED, "--workers", 3)
    assert done.returncode == 0, done.stderr
    assert digests(dst) == digests(root)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["result"]["train"] == len(demo.WNIDS) * TRAIN_PER_CLASS
    assert "n90000001 astronaut" in done.stderr.splitlines()


def test_another_seed_gives_other_views(root: Path, tmp_path: Path) -> None:
    demo.make_demo_data(settings(tmp_path / "demo", seed=SEED + 1, train_per_class=1, val_per_class=1))
    images = [path for path in digests(tmp_path / "demo").items() if path[0].endswith(".JPEG")]
    assert not set(dict(images).values()) & set(digests(root).values())


def test_labels_name_the_class_of_each_validation_image(root: Path) -> None:
    labels = (root / "val_synset_labels.txt").read_text().splitlines()
    files = sorted((root / "val").iterdir())
    assert collections.Counter(labels) == dict.fromkeys(demo.WNIDS, VAL_PER_CLASS)
    assert labels != sorted(labels), "the names must not reveal the classes"
    seen = set()
    for file, label in zip(files, labels, strict=True):
        index = demo.WNIDS.index(label)
        numbers = range(1, VAL_PER_CLASS + 1)
        (number,) = (n for n in numbers if stored_bytes("val", index, n) == file.read_bytes())
        seen.add((index, number))
    assert len(seen) == len(files)


def test_training_directories_hold_their_own_class(root: Path) -> None:
    for index, wnid in enumerate(demo.WNIDS):
        assert (root / "train" / wnid / f"{wnid}_2.JPEG").read_bytes() == stored_bytes("train", index, 2)


def test_mapping_lists_the_classes_in_index_order(root: Path) -> None:
    lines = (root / "LOC_synset_mapping.txt").read_text().splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        [wnid, name] for wnid, name in zip(demo.WNIDS, demo.CLASSES, strict=True)
    ]


def test_no_view_occurs_twice_in_either_split() -> None:
    images = demo.plan(demo.DemoSettings())
    corners = {demo.draw_view(0, image.split, image.class_index, image.number).corners for image in images}
    assert len(corners) == len(images)


def test_views_are_as_varied_as_imagenet() -> None:
    images = demo.plan(demo.DemoSettings())
    views = [demo.draw_view(0, image.split, image.class_index, image.number) for image in images]
    widths, heights = np.array([view.size for view in views]).T
    assert 0.4 < np.mean(widths % 2) < 0.6
    assert 0.4 < np.mean(heights % 2) < 0.6
    assert 0.2 < np.mean(widths < heights) < 0.3
    assert 480 < np.mean(np.maximum(widths, heights)) < 520
    assert 0.03 < np.mean([view.grey for view in views]) < 0.07
    assert 0.25 < np.mean([view.subsampling == "4:4:4" for view in views]) < 0.35
    assert {view.quality for view in views} == set(range(85, 96))


def test_views_show_a_sizeable_part_of_the_photograph() -> None:
    shares = []
    for image in demo.plan(demo.DemoSettings()):
        view = demo.draw_view(0, image.split, image.class_index, image.number)
        width, height = demo.load_photograph(view.photograph).size
        x, y = np.array(view.corners).T
        assert x.min() >= 0
        assert y.min() >= 0
        assert x.max() <= width
        assert y.max() <= height
        shares.append((x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 / (width * height))
    assert np.quantile(shares, 0.1) > 0.3
    assert 0.45 < np.mean(shares) < 0.75
    assert min(shares) > 0.15


def test_files_are_stored_as_their_views_say(root: Path) -> None:
    samplings = {"4:4:4": 0, "4:2:0": 2}
    stored = collections.Counter[str]()
    for image in demo.plan(settings(root)):
        view = demo.draw_view(SEED, image.split, image.class_index, image.number)
        with Image.open(root / image.path) as file:
            assert file.format == "JPEG"
            assert file.size == view.size
            assert "progressive" not in file.info
            assert "comment" not in file.info
            assert file.mode == ("L" if view.grey else "RGB")
            if not view.grey:
                assert JpegImagePlugin.get_sampling(file) == samplings[view.subsampling]
        stored["L" if view.grey else view.subsampling] += 1
    assert set(stored) == {"L", "4:4:4", "4:2:0"}


def test_perspective_shows_the_corners_at_the_corners() -> None:
    size, corners = (401, 299), ((10.0, 20.0), (480.0, 5.0), (450.0, 390.0), (30.0, 360.0))
    a, b, c, d, e, f, g, h = demo.perspective(size, corners)
    for (x, y), expected in zip([(0, 0), (401, 0), (401, 299), (0, 299)], corners, strict=True):
        scale = g * x + h * y + 1
        assert ((a * x + b * y + c) / scale, (d * x + e * y + f) / scale) == pytest.approx(expected)


def test_images_have_no_empty_border() -> None:
    """White photographs stay white to the last row and column, whatever the corners."""
    white = Image.new("RGB", (300, 200), "white")
    rng = np.random.default_rng(0)
    for _ in range(20):
        size = demo._draw_size(rng)
        coefficients = demo.perspective(size, demo._draw_corners(rng, white.size, size))
        image = white.transform(size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BICUBIC)
        assert np.asarray(image).min() == 255


def test_a_complete_dataset_with_the_same_arguments_is_kept(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    result = demo.make_demo_data(settings(root, workers=2))
    assert result["train"] == len(demo.WNIDS) * TRAIN_PER_CLASS
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_other_existing_targets_are_refused(tmp_path: Path) -> None:
    dst = tmp_path / "demo"
    demo.make_demo_data(settings(dst, train_per_class=1, val_per_class=1))
    with pytest.raises(InputError, match="exists and is not a complete demo dataset with these arguments"):
        demo.make_demo_data(settings(dst, train_per_class=1, val_per_class=1, seed=SEED + 1))
    next((dst / "val").iterdir()).unlink()
    with pytest.raises(InputError, match="choose another --dst or remove it"):
        demo.make_demo_data(settings(dst, train_per_class=1, val_per_class=1))


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    dst = tmp_path / "holiday"
    dst.mkdir()
    (dst / "photo.txt").write_text("mine")
    done = run_script("--dst", dst)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f"{dst} exists and is not" in line
    assert [path.name for path in dst.iterdir()] == ["photo.txt"]


@pytest.mark.parametrize("flag", ["--train-per-class", "--val-per-class", "--workers"])
def test_numbers_below_one_are_refused(flag: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{flag} is 0; it must be at least 1"):
        settings(tmp_path, **{flag.removeprefix("--").replace("-", "_"): 0})


def test_bad_number_exits_with_2_and_one_line(tmp_path: Path) -> None:
    done = run_script("--dst", tmp_path / "demo", "--train-per-class", 0)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--train-per-class is 0" in line


def test_missing_scikit_image_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)  # as Python marks a missing module
    with pytest.raises(InputError, match="pip install scikit-image"):
        demo.make_demo_data(settings(tmp_path / "data" / "demo"))
    assert not any(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(demo, "write_tables", fail)  # after all the images
    with pytest.raises(OSError, match="disk full"):
        demo.make_demo_data(settings(tmp_path / "demo", train_per_class=1, val_per_class=1))
    assert not any(tmp_path.iterdir())
