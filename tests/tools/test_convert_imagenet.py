"""The converter as a command: what it writes, and what it does with every kind of bad input."""

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import decoded, files_in, jpeg_bytes, photograph, turned
from PIL import Image

from pipeline.cli import run_command
from pipeline.dataset import Manifest, open_split
from pipeline.jpeg.headers import PROGRESSIVE_HUFFMAN, read_header
from pipeline.jpeg.tiles import INDEX_IDENTIFIER
from tools import convert_imagenet
from tools.convert_imagenet import ConvertSettings, convert

SCRIPT = Path(convert_imagenet.__file__)
COUNTS = {"train": 47, "val": 19}


def run_script(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def result_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The result that a command ended with."""
    return json.loads(capsys.readouterr().out.splitlines()[-1])["result"]


def run(*arguments: object) -> int:
    """The command in this process: its exit code."""
    return run_command(convert, ConvertSettings, list(map(str, arguments)))


@pytest.fixture
def src(imagenet_folder: Path, tmp_path: Path) -> Path:
    """A copy of the ImageNet folder that a test may change."""
    return shutil.copytree(imagenet_folder, tmp_path / "imagenet")


@pytest.fixture
def few(imagenet_folder: Path, tmp_path: Path) -> Path:
    """Two training images of one class, neither odd, and nothing else."""
    folder = tmp_path / "few" / "train" / "n00000001"
    folder.mkdir(parents=True)
    for name in ("n00000001_5.JPEG", "n00000001_116.JPEG"):
        shutil.copy(imagenet_folder / "train" / "n00000001" / name, folder)
    return tmp_path / "few"


def files_of(dataset: Path, source: Path) -> dict[str, bytes]:
    """Every file of a dataset; where its source was is left out of the report."""
    files = files_in(dataset)
    files["report.json"] = files["report.json"].replace(bytes(source), b"")
    return files


def work_in(dst: Path) -> dict[str, bytes]:
    """The files of an unfinished conversion: there are no others."""
    files = files_in(dst)
    assert all(name.startswith(".conversion/") for name in files)
    return files


def report_of(dataset: Path) -> dict[str, Any]:
    content = json.loads((dataset / "report.json").read_text())
    assert list(content) == ["stored", "counts", "images"]
    return content


def source_of(imagenet_folder: Path) -> dict[str, list[tuple[str, bytes, str]]]:
    """Name, bytes and wnid of every image of each split, from the source alone."""
    labels = (imagenet_folder / "val_labels.txt").read_text().split()
    train = sorted((imagenet_folder / "train").glob("*/*.JPEG"))
    val = sorted((imagenet_folder / "val").glob("*.JPEG"))
    return {
        "train": [(path.stem, path.read_bytes(), path.parent.name) for path in train],
        "val": [(path.stem, path.read_bytes(), label) for path, label in zip(val, labels, strict=True)],
    }


def stems_in(dataset: Path, split: str) -> list[str]:
    """The original file name of each dataset position, as the shards' keys tell it."""
    names = []
    for number, shard in enumerate(sorted(dataset.glob(f"webdataset/{split}-*.tar"))):
        with tarfile.open(shard) as archive:
            keys = [name.removesuffix(".jpg").split("_", 2) for name in archive.getnames() if name.endswith(".jpg")]
        assert [key[:2] for key in keys] == [[f"{number:06d}", f"{place:06d}"] for place in range(len(keys))]
        names += [key[2] for key in keys]
    return names


def test_script_converts_and_ends_with_a_result_line(
    imagenet_folder: Path, tiled_dataset: Path, tmp_path: Path
) -> None:
    dst = tmp_path / "made" / "shards"
    labels = imagenet_folder / "val_labels.txt"
    flags = ["--src", imagenet_folder, "--val-labels", labels, "--shard-size", "100KB", "--workers", 3]
    done = run_script(*flags, "--dst", dst, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)["result"]
    assert (result["train"], result["val"], result["bad"], result["reencoded"]) == (47, 19, 0, 9), "9 progressive"
    assert result["bytes"] == report_of(tiled_dataset)["stored"]["bytes"]
    assert result["seconds"] >= 0
    assert files_in(dst) == files_in(tiled_dataset), "3 threads write what 2 wrote"


def test_one_worker_writes_the_same_bytes(imagenet_folder: Path, tiled_dataset: Path, tmp_path: Path) -> None:
    labels = imagenet_folder / "val_labels.txt"
    convert(ConvertSettings(src=(imagenet_folder,), dst=tmp_path, val_labels=labels, shard_size="100KB", workers=1))
    assert files_in(tmp_path) == files_in(tiled_dataset)


@pytest.mark.parametrize("name", ["train", "val"])
def test_stored_images_are_the_source_files_with_their_classes(imagenet_folder: Path, dataset: Path, name: str) -> None:
    split = open_split(dataset, name)
    stored = [
        (stem, split.samples[index].jpeg, split.classes[split.samples[index].label])
        for index, stem in enumerate(stems_in(dataset, name))
    ]
    assert sorted(stored) == sorted(source_of(imagenet_folder)[name])


@pytest.mark.parametrize("name", ["train", "val"])
def test_tiled_images_are_the_source_without_loss_but_for_the_progressive_ones(
    imagenet_folder: Path, tiled_dataset: Path, name: str
) -> None:
    split = open_split(tiled_dataset, name)
    source = {stem: (data, wnid) for stem, data, wnid in source_of(imagenet_folder)[name]}
    for index, stem in enumerate(stems_in(tiled_dataset, name)):
        sample, (data, wnid) = split.shards[index], source.pop(stem)
        assert split.beton[index] == sample
        assert split.classes[sample.label] == wnid
        assert INDEX_IDENTIFIER in sample.jpeg
        difference = np.abs(decoded(sample.jpeg).astype(int) - decoded(data))
        assert difference.mean() < 3
        assert difference.any() == (read_header(data).frame_marker == PROGRESSIVE_HUFFMAN)
    assert not source


def test_report_says_how_many_images_are_as_they_were_and_how_sizes_changed(
    imagenet_folder: Path, dataset: Path, tiled_dataset: Path
) -> None:
    source = sum(len(data) for images in source_of(imagenet_folder).values() for _, data, _ in images)
    stored = report_of(dataset)["stored"]
    assert stored == {"lossless": 66, "reencoded": 0, "source_bytes": source, "bytes": source}
    tiled, splits = report_of(tiled_dataset), [open_split(tiled_dataset, name) for name in COUNTS]
    sizes = sum(len(split.beton[index].jpeg) for split in splits for index in range(split.num_samples))
    assert tiled["stored"] == {"lossless": 57, "reencoded": 9, "source_bytes": source, "bytes": sizes}
    anew = [entry["file"] for entry in tiled["images"] if entry["done"] == "re-encoded"]
    assert len(anew) == tiled["counts"]["not baseline: re-encoded"] == 9
    assert all(read_header(Path(file).read_bytes()).frame_marker == PROGRESSIVE_HUFFMAN for file in anew)


def test_training_images_are_mixed_and_validation_images_in_file_name_order(dataset: Path) -> None:
    assert stems_in(dataset, "val") == [f"ILSVRC2012_val_{number:08d}" for number in range(1, COUNTS["val"] + 1)]
    split = open_split(dataset, "train")
    labels = [split.samples[index].label for index in range(COUNTS["train"])]
    assert sum(a != b for a, b in itertools.pairwise(labels)) > COUNTS["train"] / 2


def test_another_seed_mixes_otherwise(imagenet_folder: Path, dataset: Path, tmp_path: Path) -> None:
    labels = imagenet_folder / "val_labels.txt"
    convert(ConvertSettings(src=(imagenet_folder,), dst=tmp_path, val_labels=labels, seed=1))
    assert stems_in(tmp_path, "val") == stems_in(dataset, "val")
    assert stems_in(tmp_path, "train") != stems_in(dataset, "train")
    assert sorted(stems_in(tmp_path, "train")) == sorted(stems_in(dataset, "train"))


def test_manifest_records_what_is_on_the_disk(imagenet_folder: Path, dataset: Path) -> None:
    manifest = Manifest.read(dataset)
    assert manifest.classes == ("n00000001", "n00000002", "n00000003", "n00000004")
    for name, images in source_of(imagenet_folder).items():
        info = manifest.splits[name]
        assert (info.samples, info.bytes) == (len(images), sum(len(data) for _, data, _ in images))
        for shard in info.shards:
            data = (dataset / shard.name).read_bytes()
            assert (shard.bytes, shard.sha256) == (len(data), hashlib.sha256(data).hexdigest())
            assert shard.bytes <= 100_000
    assert len(manifest.splits["train"].shards) >= 3


def test_validation_in_class_folders_needs_no_labels(src: Path, tiled_dataset: Path, tmp_path: Path) -> None:
    for line, path in zip((src / "val_labels.txt").read_text().split(), sorted((src / "val").iterdir()), strict=True):
        (src / "val" / line).mkdir(exist_ok=True)
        path.rename(src / "val" / line / path.name)
    assert run("--src", src, "--dst", tmp_path / "dst") == 0
    ours, theirs = open_split(tmp_path / "dst", "val"), open_split(tiled_dataset, "val")
    assert sorted(ours.samples[i] for i in range(19)) == sorted(theirs.samples[i] for i in range(19))


def test_valprep_script_gives_the_same_dataset_as_the_synset_list(
    src: Path, imagenet_folder: Path, tiled_dataset: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in (src / "val").iterdir())
    wnids = (src / "val_labels.txt").read_text().split()
    moves = [f"mv {name} {wnid}/" for name, wnid in zip(names, wnids, strict=True)]
    (tmp_path / "valprep.sh").write_text("\n".join(["mkdir -p n00000001", *reversed(moves)]))
    flags = ["--val-labels", tmp_path / "valprep.sh", "--shard-size", "100KB"]
    assert run("--src", src, "--dst", tmp_path / "dst", *flags) == 0
    assert files_of(tmp_path / "dst", src) == files_of(tiled_dataset, imagenet_folder)


@pytest.mark.parametrize(("name", "other"), [("webdataset", "ffcv"), ("ffcv", "webdataset")])
def test_one_format_writes_only_that(few: Path, tmp_path: Path, name: str, other: str) -> None:
    dst = tmp_path / "dst"
    assert run("--src", few, "--dst", dst, "--format", name) == 0
    assert open_split(dst, "train").formats == (name,)
    assert not (dst / other).exists()


def test_source_without_validation_converts_training_alone(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--src", few, "--dst", tmp_path / "dst") == 0
    result = result_of(capsys)
    assert (result["train"], result["val"]) == (2, 0)
    assert list(Manifest.read(tmp_path / "dst").splits) == ["train"]


def png_bytes(mode: str) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(photograph(50, 61, seed=1))
    converted = image.quantize(64, dither=Image.Dither.NONE) if mode == "P" else image.convert(mode)
    converted.save(file, "PNG")
    return file.getvalue()


ODD_FILES = {
    "PNG": (png_bytes("RGB"), "a PNG file", "re-encoded"),
    "palette PNG": (png_bytes("P"), "a PNG file", "re-encoded"),
    "CMYK": (
        jpeg_bytes(photograph(50, 61, seed=2), "CMYK"),
        "a JPEG of 8 bit with 4 components (mode CMYK)",
        "re-encoded",
    ),
    "grey": (jpeg_bytes(photograph(50, 61, seed=3), "L"), "greyscale", "kept"),
    "bytes behind the end": (
        jpeg_bytes(photograph(50, 61, seed=3)) + b"\0trailer",
        "8 bytes behind the end",
        "kept",
    ),
    "corrupt EXIF": (jpeg_bytes(photograph(50, 61, seed=3), exif=b"Exif\0\0II*"), "corrupt EXIF data", "kept"),
    "EXIF orientation": (jpeg_bytes(photograph(50, 61, seed=3), exif=turned()), "", "kept"),
    "1 x 1 pixel": (jpeg_bytes(photograph(1, 1, seed=3)), "", "kept"),
}


@pytest.mark.parametrize("jpeg", ["tile", "keep"])
@pytest.mark.parametrize(("data", "odd", "done"), ODD_FILES.values(), ids=ODD_FILES.keys())
def test_odd_files_are_kept_or_re_encoded_and_reported(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, odd: str, done: str, jpeg: str
) -> None:
    image = few / "train" / "n00000001" / "odd.JPEG"
    image.write_bytes(data)
    assert run("--src", few, "--dst", tmp_path / "dst", "--jpeg", jpeg) == 0
    reencoded = int(done == "re-encoded")
    assert result_of(capsys)["reencoded"] == reencoded
    kind = odd.replace("8 bytes", "bytes")
    entry = {"split": "train", "file": str(image), "odd": odd, "done": done}
    report = report_of(tmp_path / "dst")
    source_bytes = sum(path.stat().st_size for path in image.parent.iterdir())
    stored_bytes = Manifest.read(tmp_path / "dst").splits["train"].bytes
    assert report.pop("stored") == {
        "lossless": 3 - reencoded,
        "reencoded": reencoded,
        "source_bytes": source_bytes,
        "bytes": stored_bytes,
    }
    assert report == {
        "counts": {f"{kind}: {done}": 1} if odd else {},
        "images": [entry] if odd else [],
    }
    split, index = open_split(tmp_path / "dst", "train"), stems_in(tmp_path / "dst", "train").index("odd")
    assert split.shards[index] == split.beton[index]
    stored = split.samples[index].jpeg
    assert read_header(stored).is_decodable_everywhere
    assert np.abs(decoded(stored).astype(int) - decoded(data)).mean() < 6, "another image would be off by about 60"
    assert (stored == data) == (done == "kept" and jpeg == "keep")
    assert np.array_equal(decoded(stored), decoded(data)) == (done == "kept")


def truncate(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


TRAIN_IMAGE = "train/n00000003/n00000003_42.JPEG"
VAL_IMAGE = "val/ILSVRC2012_val_00000019.JPEG"

# What is done to the source, the flags besides --src and --dst, and what the one line must name.
BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such source": (shutil.rmtree, "--src {src}: no such file or folder"),
    "no train folder": (lambda src: (src / "train").rename(src / "Train"), "--src {src}: no train images in it"),
    "empty train": (lambda src: [shutil.rmtree(p) for p in (src / "train").iterdir()], "{src}/train: no class folders"),
    "empty class folder": (lambda src: (src / "train" / "n9").mkdir(), "{src}/train/n9: no images"),
    "class folder of other files": (
        lambda src: [(src / "train/n9").mkdir(), (src / "train/n9/a.txt").write_text("a")],
        "{src}/train/n9: no images",
    ),
    "empty validation": (
        lambda src: [p.unlink() for p in (src / "val").iterdir()],
        "{src}/val: no images and no class folders",
    ),
    "image without a label": (
        lambda src: shutil.copy(src / VAL_IMAGE, src / "val/ILSVRC2012_val_00000020.JPEG"),
        "{src}/val/ILSVRC2012_val_00000020.JPEG: no label for it",
    ),
    "label without an image": (lambda src: (src / VAL_IMAGE).unlink(), "{src}/val_labels.txt: 19 labels for 18 images"),
    "missing labels file": (lambda src: (src / "val_labels.txt").unlink(), "--val-labels {src}/val_labels.txt: "),
}

BAD_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text file as an image": (lambda src: (src / TRAIN_IMAGE).write_text("not found"), "{src}/" + TRAIN_IMAGE),
    "empty image": (lambda src: (src / TRAIN_IMAGE).write_bytes(b""), "{src}/" + TRAIN_IMAGE),
    "truncated image": (lambda src: truncate(src / TRAIN_IMAGE, 0.6), "{src}/" + TRAIN_IMAGE),
    "image truncated in its header": (lambda src: os.truncate(src / TRAIN_IMAGE, 100), "{src}/" + TRAIN_IMAGE),
    "truncated validation image": (lambda src: truncate(src / VAL_IMAGE, 0.6), "{src}/" + VAL_IMAGE),
    "broken PNG as an image": (
        lambda src: (src / TRAIN_IMAGE).write_bytes(png_bytes("RGB")[:500]),
        "{src}/" + TRAIN_IMAGE,
    ),
}


@pytest.mark.parametrize(("spoil", "named"), BAD_SOURCES.values(), ids=BAD_SOURCES.keys())
def test_bad_source_ends_with_one_line_that_names_it_and_leaves_nothing(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], named: str
) -> None:
    spoil(src)
    dst = tmp_path / "dst"
    code = run("--src", src, "--dst", dst, "--val-labels", src / "val_labels.txt", "--shard-size", "100KB")
    assert_refused(code, capsys, named.format(src=src))
    assert not dst.exists()


@pytest.mark.parametrize(("spoil", "named"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_image_ends_with_one_line_that_names_it_and_nothing_looks_complete(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], named: str
) -> None:
    spoil(src)
    dst = tmp_path / "dst"
    code = run("--src", src, "--dst", dst, "--val-labels", src / "val_labels.txt", "--shard-size", "100KB")
    assert_refused(code, capsys, named.format(src=src))
    assert work_in(dst)


def test_line_break_in_a_name_is_no_other_line(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b\nc.JPEG", "d\ne.JPEG"):
        (few / "train" / "n00000001" / name).write_text("no image")
    code = run("--src", few, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, "2 of 4 images cannot be used")
    assert len(work_in(tmp_path / "dst")[".conversion/bad-images.txt"].splitlines()) == 2


PROGRESS = ("train: ", "val: ")


def assert_refused(code: int, capsys: pytest.CaptureFixture[str], named: str) -> None:
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    (line,) = (line for line in captured.err.splitlines() if not line.startswith(PROGRESS))
    assert line.startswith("error: ")
    assert named in line
    assert " object at 0x" not in line


def test_validation_class_folder_that_training_lacks_is_named(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(src / "val")
    shutil.copytree(src / "train" / "n00000001", src / "val" / "n00000009")
    code = run("--src", src, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, "its class n00000009 is not among the 4 of train")


def test_flat_validation_without_labels_is_refused(
    imagenet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("--src", imagenet_folder, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, f"{imagenet_folder}/val: 19 images without class folders; give --val-labels FILE")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--shard-size", "256XB"],
        ["--shard-size", "0"],
        ["--shard-size", "-5MB"],
        ["--shard-size", ""],
        ["--workers", "0"],
        ["--workers", "many"],
        ["--seed", "-1"],
        ["--seed", str(1 << 64)],
        ["--format", "zip"],
        ["--format"],
        ["--no-such-flag", "1"],
        ["--splits", "test"],
        ["--jpeg", "tiff"],
        ["--on-bad", "ignore"],
        ["--quality", "80", "--jpeg", "keep"],
        ["--subsampling", "444", "--jpeg", "keep"],
        ["--max-side", "100", "--jpeg", "keep"],
        ["--max-side", "0", "--jpeg", "reencode"],
        ["--max-side", "65536", "--jpeg", "reencode"],
        ["--quality", "0", "--jpeg", "reencode"],
        ["--quality", "101", "--jpeg", "reencode"],
        ["--subsampling", "440", "--jpeg", "reencode"],
        ["--jpeg", "raw"],
        ["--jpeg", "proportion", "--format", "webdataset"],
        ["--quality", "50", "--jpeg", "raw", "--format", "ffcv"],
        ["--compress-probability", "0.5"],
        ["--compress-probability", "1.5", "--jpeg", "proportion", "--format", "ffcv"],
        ["--compress-probability", "nan", "--jpeg", "proportion", "--format", "ffcv"],
        ["--part", "0/3"],
        ["--part", "4/3"],
        ["--part", "3"],
        ["--part", "1/0"],
        ["--merge", "--part", "1/2"],
    ],
    ids=" ".join,
)
def test_wrong_flag_is_named(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    code = run("--src", few, "--dst", tmp_path / "dst", *flags)
    assert_refused(code, capsys, flags[0])
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize(("encoding", "terminal"), [("ascii", False), ("utf-8", True)], ids=["pipe", "terminal"])
def test_script_names_a_wrong_flag_in_one_plain_line(tmp_path: Path, encoding: str, terminal: bool) -> None:
    """In a pipe, in a terminal, and where Python cannot write box-drawing characters."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "TERM": "xterm"}
    keyboard, screen = os.openpty()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--workers", "0"],
        stdout=screen if terminal else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    os.close(keyboard)
    os.close(screen)
    assert done.returncode == 2
    assert done.stderr == "error: --workers 0: must be at least 1 (see --help)\n"


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MB", 256_000_000), ("1GB", 10**9), ("1.5kb", 1500), ("20 M", 20_000_000), ("7", 7), (" 3K ", 3000)],
)
def test_shard_sizes_are_decimal(text: str, size: int) -> None:
    assert ConvertSettings(shard_size=text).shard_bytes == size


@pytest.fixture
def few_flags(few: Path, tmp_path: Path) -> list[object]:
    """A source in two places: training images in one, validation images in the other."""
    (tmp_path / "val").mkdir()
    shutil.copytree(few / "train", tmp_path / "val" / "val")
    return ["--src", few, tmp_path / "val", "--dst", tmp_path / "dst"]


def test_source_may_be_in_several_places(few_flags: list[object], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*few_flags) == 0
    result = result_of(capsys)
    assert (result["train"], result["val"]) == (2, 2)


@pytest.mark.parametrize(("split", "counts"), [("train", (2, 0)), ("val", (0, 2))])
def test_one_split_alone_is_converted(
    few_flags: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, counts: tuple[int, int]
) -> None:
    assert run(*few_flags, "--splits", split) == 0
    result = result_of(capsys)
    assert (result["train"], result["val"]) == counts
    assert list(Manifest.read(tmp_path / "dst").splits) == [split]
    assert {path.stem for path in tmp_path.glob("dst/ffcv/*")} == {split}


def test_unverified_images_are_taken_as_they_are(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = sorted(few.glob("train/*/*"))[0]
    truncate(image, 0.6)
    assert run("--src", few, "--dst", tmp_path / "dst", "--jpeg", "keep", "--no-verify") == 0
    assert result_of(capsys)["bad"] == 0
    split, index = open_split(tmp_path / "dst", "train"), stems_in(tmp_path / "dst", "train").index(image.stem)
    assert split.shards[index].jpeg == image.read_bytes()


CHANGED = ("--max-side", "100", "--quality", "70", "--subsampling", "444")


@pytest.mark.parametrize("jpeg", ["tile", "reencode"])
def test_re_encoded_images_are_reduced_and_in_both_formats(
    imagenet_folder: Path, dataset: Path, tmp_path: Path, jpeg: str
) -> None:
    labels = imagenet_folder / "val_labels.txt"
    flags = ["--src", imagenet_folder, "--val-labels", labels, "--shard-size", "100KB", "--jpeg", jpeg, *CHANGED]
    assert run(*flags, "--dst", tmp_path / "dst", "--workers", 1) == 0
    assert run(*flags, "--dst", tmp_path / "other", "--workers", 5) == 0
    assert files_in(tmp_path / "dst") == files_in(tmp_path / "other")
    assert stems_in(tmp_path / "dst", "train") == stems_in(dataset, "train")
    for name, count in COUNTS.items():
        split, kept = open_split(tmp_path / "dst", name), open_split(dataset, name)
        for index in range(count):
            sample, source = split.shards[index], kept.shards[index]
            assert split.beton[index] == sample
            assert sample.label == source.label
            header, before = read_header(sample.jpeg), read_header(source.jpeg)
            assert max(header.height, header.width) == min(100, max(before.height, before.width))
            assert len(header.components) == len(before.components)
            assert (INDEX_IDENTIFIER in sample.jpeg) == (jpeg == "tile")
    stored = report_of(tmp_path / "dst")["stored"]
    assert (stored["lossless"], stored["reencoded"]) == (0, 66)
    assert stored["source_bytes"] == report_of(dataset)["stored"]["bytes"] > stored["bytes"]
    shards = len(Manifest.read(tmp_path / "dst").splits["train"].shards)
    assert 1 <= shards < len(Manifest.read(dataset).splits["train"].shards), "smaller images fill fewer shards"


def test_re_encoded_images_may_be_larger_than_the_largest_of_the_source(few: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3)).astype(np.uint8)
    (few / "train" / "n00000001" / "large.JPEG").write_bytes(jpeg_bytes(noise, quality=60))
    flags = ["--jpeg", "reencode", "--quality", "100", "--subsampling", "444"]
    assert run("--src", few, "--dst", tmp_path / "dst", *flags) == 0
    split = open_split(tmp_path / "dst", "train")
    assert max(len(split.beton[index].jpeg) for index in range(3)) > 1 << 21, "more than the smallest page holds"


def test_raw_pixels_are_those_of_the_source(imagenet_folder: Path, dataset: Path, tmp_path: Path) -> None:
    flags = ["--src", imagenet_folder, "--val-labels", imagenet_folder / "val_labels.txt", "--format", "ffcv"]
    assert run(*flags, "--dst", tmp_path, "--jpeg", "raw", "--max-side", "300") == 0
    for name, count in COUNTS.items():
        split, kept = open_split(tmp_path, name), open_split(dataset, name)
        assert split.formats == ("ffcv-raw",)
        for index in range(count):
            expected = decoded(kept.samples[index].jpeg)
            pixels = np.frombuffer(split.beton.read(index), np.uint8).reshape(expected.shape)
            assert np.abs(pixels.astype(int) - expected).max() <= 2
            assert split.beton.metadata["f1"][index] == kept.samples[index].label


def test_proportion_has_jpegs_and_pixels(imagenet_folder: Path, tmp_path: Path) -> None:
    flags = ["--src", imagenet_folder, "--splits", "train", "--format", "ffcv", "--jpeg", "proportion"]
    assert run(*flags, "--dst", tmp_path, "--max-side", "100", "--compress-probability", "0.3") == 0
    images = open_split(tmp_path, "train").beton.metadata["f0"]
    assert 0.1 < (images["mode"] == 0).mean() < 0.5
    assert images["height"].max() <= 100 >= images["width"].max()


def test_progress_tells_rates_remaining_time_and_odd_images(
    imagenet_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert_imagenet, "LOG_SECONDS", -1)
    with caplog.at_level("INFO", convert_imagenet.__name__):
        assert run("--src", imagenet_folder, "--splits", "train", "--dst", tmp_path) == 0
    lines = [line for line in caplog.messages if line.startswith("train: ") and "left" in line]
    assert len(lines) == 47
    odd = sum(number % 7 in (2, 4) for count in (12, 10, 14, 11) for number in range(count))  # grey or progressive
    told = rf"train: 47 of 47 images, \d+ images/s, \d+ MB/s, 0 min left, {odd} odd"
    assert re.fullmatch(told, lines[-1])


def test_converted_dataset_is_not_overwritten(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = tmp_path / "dst"
    assert run("--src", few, "--dst", dst) == 0
    before = files_in(dst)
    capsys.readouterr()
    code = run("--src", few, "--dst", dst)
    assert_refused(code, capsys, f"--dst {dst}: holds a converted dataset already")
    assert files_in(dst) == before


@pytest.mark.parametrize("left", [[], ["train-000000.lock"]], ids=["empty", "a lock"])
def test_finished_dataset_with_a_rest_of_its_work_folder_is_not_taken_for_another_conversion(
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
    assert_refused(code, capsys, f"--dst {dst}: holds a converted dataset already")
    assert files_in(dst) == before


@pytest.mark.parametrize("place", ["train", "train/shards", "train/n00000001"])
def test_target_in_a_folder_of_the_source_is_refused(few: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    code = run("--src", few, "--dst", few / place)
    assert_refused(code, capsys, f"--dst {few / place}: inside {few / place.partition('/')[0]}, which is converted")
    assert not (few / "train" / "shards").exists()


@pytest.mark.parametrize("name", ["", "."])
def test_current_folder_as_target_is_refused(few: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """An empty name is what a shell variable gives that is not set."""
    assert_refused(run("--src", few, "--dst", name), capsys, "--dst: is empty or the current folder")


def test_report_of_others_in_the_target_stays(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_files_of_others_in_the_target_stay(few: Path, tmp_path: Path) -> None:
    mine = {"notes.txt": b"mine", "ffcv/old_experiment.beton": b"mine", "webdataset/laion-00000.tar": b"mine"}
    for name, data in mine.items():
        (tmp_path / "dst" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dst" / name).write_bytes(data)
    run("--src", few, "--dst", tmp_path / "dst")
    assert mine.items() <= files_in(tmp_path / "dst").items()


def test_script_names_a_bad_image_in_its_last_line_and_starts_no_program_for_it(few: Path, tmp_path: Path) -> None:
    """PIL hands PostScript to Ghostscript, whatever the file is called. This `gs` only tells that it was called."""
    called, programs = tmp_path / "called", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (programs / "gs").chmod(0o755)
    bad, odd = (few / "train" / "n00000001" / name for name in ("bad.JPEG", "odd.JPEG"))
    bad.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    Image.new("P", (9, 9)).save(odd, "PNG", transparency=bytes([9, 99]))
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = run_script("--src", few, "--dst", tmp_path / "dst", env=environment)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"error: {bad}: not an image; ")
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr, "PIL warns of the transparency of the other image"
    assert not called.exists()
    assert work_in(tmp_path / "dst")


def interrupted_script(number: signal.Signals, records: int, dst: Path, *arguments: object) -> tuple[int, str]:
    """Start the script and send it a signal when so many shards are on record. Returns its exit code and stderr."""
    command = [sys.executable, str(SCRIPT), "--dst", str(dst), *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background ignores it, and so would the script.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while process.poll() is None and len(list(dst.glob(".conversion/*-??????.json"))) < records:
            time.sleep(0.001)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    return process.returncode, told


def test_script_killed_and_interrupted_continues_to_the_same_bytes(
    imagenet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dst = tmp_path / "dst"
    labels = imagenet_folder / "val_labels.txt"
    flags = ["--src", imagenet_folder, "--val-labels", labels, "--shard-size", "15KB", "--format", "webdataset"]
    code, _ = interrupted_script(signal.SIGKILL, 3, dst, *flags, "--workers", 1)
    assert code == -signal.SIGKILL
    killed = work_in(dst)
    code, told = interrupted_script(signal.SIGINT, 12, dst, *flags, "--workers", 5)
    assert code == 130
    assert told.splitlines()[-1] == "interrupted"
    assert "Traceback" not in told
    assert len(work_in(dst)) > len(killed)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # the rest may be quick
    assert run(*flags, "--dst", dst) == 0
    assert run(*flags, "--dst", tmp_path / "once") == 0
    assert files_in(dst) == files_in(tmp_path / "once")


def test_without_arguments_the_default_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run(), capsys, "--src data/imagenet")
    assert not any(tmp_path.iterdir())
