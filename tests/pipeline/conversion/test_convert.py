"""The conversion as a command: what it writes, and what it does with bad input of every kind."""

import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.pixels.jpeg.headers import PROGRESSIVE_HUFFMAN, read_header
from pipeline.pixels.jpeg.tiles import INDEX_IDENTIFIER
from pipeline.storage.manifest import Manifest
from pipeline.storage.split import open_split
from tests.helpers.conversions import (
    SCRIPT,
    assert_refused,
    report_of,
    result_of,
    run,
    run_script,
    stems_in,
    truncate,
    unfinished_files,
)
from tests.helpers.files import files_in
from tests.helpers.imagenet import COUNTS, val_wnids
from tests.helpers.images import decoded, jpeg_bytes, photograph, turned


def files_of(dataset: Path, source: Path) -> dict[str, bytes]:
    """Every file of a dataset, without the path of the source and --val-labels in the report."""
    files = files_in(dataset)
    report = json.loads(files["report.json"].replace(bytes(source), b""))
    del report["flags"]["val_labels"]
    return {**files, "report.json": json.dumps(report).encode()}


def source_of(imagenet_folder: Path) -> dict[str, list[tuple[str, bytes, str]]]:
    """Name, bytes and wnid of every image of each split, read from the source."""
    labels = val_wnids(imagenet_folder)
    train = sorted((imagenet_folder / "train").glob("*/*.JPEG"))
    val = sorted((imagenet_folder / "val").glob("*.JPEG"))
    return {
        "train": [(path.stem, path.read_bytes(), path.parent.name) for path in train],
        "val": [(path.stem, path.read_bytes(), label) for path, label in zip(val, labels, strict=True)],
    }


def test_script_converts_and_ends_with_a_result_line(
    imagenet_folder: Path, tiled_dataset: Path, tmp_path: Path
) -> None:
    dst = tmp_path / "new" / "shards"
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
def test_tiled_images_equal_the_source_except_progressive_ones(
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


def test_report_counts_lossless_and_reencoded_images_and_bytes(
    imagenet_folder: Path, dataset: Path, tiled_dataset: Path
) -> None:
    source = sum(len(data) for images in source_of(imagenet_folder).values() for _, data, _ in images)
    stored = report_of(dataset)["stored"]
    assert stored == {"lossless": 66, "reencoded": 0, "source_bytes": source, "bytes": source}
    tiled, splits = report_of(tiled_dataset), [open_split(tiled_dataset, name) for name in COUNTS]
    sizes = sum(len(split.beton[index].jpeg) for split in splits for index in range(split.num_samples))
    assert tiled["stored"] == {"lossless": 57, "reencoded": 9, "source_bytes": source, "bytes": sizes}
    reencoded = [entry["file"] for entry in tiled["images"] if entry["done"] == "re-encoded"]
    assert len(reencoded) == tiled["counts"]["not baseline: re-encoded"] == 9
    assert all(read_header(Path(file).read_bytes()).frame_marker == PROGRESSIVE_HUFFMAN for file in reencoded)


def test_training_images_are_mixed_and_validation_images_in_file_name_order(dataset: Path) -> None:
    assert stems_in(dataset, "val") == [f"ILSVRC2012_val_{number:08d}" for number in range(1, COUNTS["val"] + 1)]
    split = open_split(dataset, "train")
    labels = [split.samples[index].label for index in range(COUNTS["train"])]
    assert sum(a != b for a, b in itertools.pairwise(labels)) > COUNTS["train"] / 2


def test_another_seed_gives_another_order(imagenet_folder: Path, dataset: Path, tmp_path: Path) -> None:
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
    sorted_val, flat_val = open_split(tmp_path / "dst", "val"), open_split(tiled_dataset, "val")
    assert sorted(sorted_val.samples[i] for i in range(19)) == sorted(flat_val.samples[i] for i in range(19))


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
    "bytes after the end": (
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
    del report["flags"]
    assert report == {
        "passed_over": {},
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


TRAIN_IMAGE = "train/n00000003/n00000003_42.JPEG"


VAL_IMAGE = "val/ILSVRC2012_val_00000019.JPEG"


# What is done to the source, and what the error must name.
def empty(folder: Path) -> None:
    """Remove everything in a folder."""
    shutil.rmtree(folder)
    folder.mkdir()


def write_text(path: Path) -> None:
    """A text file in a new folder."""
    path.parent.mkdir()
    path.write_text("text")


BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such source": (shutil.rmtree, "--src {src}: no such file or folder"),
    "no train folder": (lambda src: (src / "train").rename(src / "images"), "--src {src}: no train images in it"),
    "empty train": (lambda src: empty(src / "train"), "{src}/train: no class folders"),
    "empty class folder": (lambda src: (src / "train" / "n9").mkdir(), "{src}/train/n9: no images"),
    "class folder of other files": (
        lambda src: write_text(src / "train" / "n9" / "a.txt"),
        "{src}/train/n9: no images",
    ),
    "empty validation": (
        lambda src: empty(src / "val"),
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


@pytest.mark.parametrize(("spoil", "message"), BAD_SOURCES.values(), ids=BAD_SOURCES.keys())
def test_bad_source_ends_with_one_line_that_names_it_and_leaves_nothing(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], message: str
) -> None:
    spoil(src)
    dst = tmp_path / "dst"
    code = run("--src", src, "--dst", dst, "--val-labels", src / "val_labels.txt", "--shard-size", "100KB")
    assert_refused(code, capsys, message.format(src=src))
    assert not dst.exists()


@pytest.mark.parametrize(("spoil", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_image_ends_with_one_line_that_names_it_and_nothing_looks_complete(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], object], message: str
) -> None:
    spoil(src)
    dst = tmp_path / "dst"
    code = run("--src", src, "--dst", dst, "--val-labels", src / "val_labels.txt", "--shard-size", "100KB")
    assert_refused(code, capsys, message.format(src=src))
    assert unfinished_files(dst)


def test_line_break_in_a_name_is_replaced(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b\nc.JPEG", "d\ne.JPEG"):
        (few / "train" / "n00000001" / name).write_text("no image")
    code = run("--src", few, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, "2 of 4 images cannot be used")
    assert len(unfinished_files(tmp_path / "dst")[".conversion/bad-images.txt"].splitlines()) == 2


def test_validation_class_that_is_not_in_training_is_named(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(src / "val")
    shutil.copytree(src / "train" / "n00000001", src / "val" / "n00000009")
    code = run("--src", src, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, "its class n00000009 is not among the 4 of train")


def test_flat_validation_without_labels_is_refused(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (src / "val_labels.txt").unlink()
    code = run("--src", src, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, f"{src}/val: 19 images without class folders; give --val-labels FILE")
    assert not (tmp_path / "dst").exists()


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


def test_unverified_images_are_stored_unchanged(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_script_names_a_bad_image_in_its_last_line_and_starts_no_program_for_it(few: Path, tmp_path: Path) -> None:
    """PIL hands PostScript to Ghostscript, whatever the file is called. This `gs` records that it was called."""
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
    assert unfinished_files(tmp_path / "dst")


def interrupted_script(number: signal.Signals, records: int, dst: Path, *arguments: object) -> tuple[int, str]:
    """Start the script and send it a signal once `records` shards are on record. Returns its exit code and stderr."""
    command = [sys.executable, str(SCRIPT), "--dst", str(dst), *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and len(list(dst.glob(".conversion/*-??????.json"))) < records:
            time.sleep(0.001)
        process.send_signal(number)
        _, errors = process.communicate(timeout=200)
    return process.returncode, errors


def test_script_killed_and_interrupted_continues_to_the_same_bytes(imagenet_folder: Path, tmp_path: Path) -> None:
    dst = tmp_path / "dst"
    labels = imagenet_folder / "val_labels.txt"
    flags = ["--src", imagenet_folder, "--val-labels", labels, "--shard-size", "15KB", "--format", "webdataset"]
    code, _ = interrupted_script(signal.SIGKILL, 3, dst, *flags, "--workers", 1)
    assert code == -signal.SIGKILL
    killed = unfinished_files(dst)
    code, errors = interrupted_script(signal.SIGINT, 12, dst, *flags, "--workers", 5)
    assert code == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert "Traceback" not in errors
    assert len(unfinished_files(dst)) > len(killed)
    assert run(*flags, "--dst", dst) == 0
    assert run(*flags, "--dst", tmp_path / "once") == 0
    assert files_in(dst) == files_in(tmp_path / "once")


def test_without_arguments_the_missing_default_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run(), capsys, "--src data/imagenet")
    assert not any(tmp_path.iterdir())
