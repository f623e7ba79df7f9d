"""The converter as a command: what it writes, and what it does with every kind of bad input."""

import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from images import decoded, files_in, jpeg_bytes, photograph, turned
from PIL import Image

from pipeline.cli import run_command
from pipeline.dataset import Manifest, open_split
from pipeline.jpeg.headers import read_header
from tools import convert_imagenet
from tools.convert_imagenet import STATE, ConvertSettings, convert

SCRIPT = Path(convert_imagenet.__file__)
COUNTS = {"train": 47, "val": 19}


def run_script(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def run(*arguments: object) -> int:
    """The command in this process: its exit code."""
    return run_command(convert, ConvertSettings, list(map(str, arguments)))


@pytest.fixture
def src(imagenet_folder: Path, tmp_path: Path) -> Path:
    """A copy of the ImageNet folder that a test may change."""
    return shutil.copytree(imagenet_folder, tmp_path / "imagenet")


@pytest.fixture
def few(imagenet_folder: Path, tmp_path: Path) -> Path:
    """Two training images of one class, and nothing else."""
    folder = tmp_path / "few" / "train" / "n00000001"
    folder.mkdir(parents=True)
    for path in sorted((imagenet_folder / "train" / "n00000001").iterdir())[:2]:
        shutil.copy(path, folder)
    return tmp_path / "few"


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
    for shard in sorted(dataset.glob(f"webdataset/{split}-*.tar")):
        with tarfile.open(shard) as archive:
            names += [name.removesuffix(".jpg") for name in archive.getnames() if name.endswith(".jpg")]
    assert [int(name.partition("_")[0]) for name in names] == list(range(len(names)))
    return [name.partition("_")[2] for name in names]


def test_script_converts_and_ends_with_a_result_line(imagenet_folder: Path, dataset: Path, tmp_path: Path) -> None:
    dst = tmp_path / "made" / "shards"
    labels = imagenet_folder / "val_labels.txt"
    flags = ["--src", imagenet_folder, "--val-labels", labels, "--shard-size", "100KB", "--workers", 3]
    done = run_script(*flags, "--dst", dst, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)["result"]
    assert (result["train"], result["val"], result["bad"], result["reencoded"]) == (47, 19, 0, 0)
    assert result["bytes"] == sum(len(data) for split in source_of(imagenet_folder).values() for _, data, _ in split)
    assert result["seconds"] >= 0
    assert files_in(dst) == files_in(dataset), "3 threads write what 2 wrote"


def test_one_worker_writes_the_same_bytes(imagenet_folder: Path, dataset: Path, tmp_path: Path) -> None:
    labels = imagenet_folder / "val_labels.txt"
    convert(ConvertSettings(src=imagenet_folder, dst=tmp_path, val_labels=labels, shard_size="100KB", workers=1))
    assert files_in(tmp_path) == files_in(dataset)


@pytest.mark.parametrize("name", ["train", "val"])
def test_stored_images_are_the_source_files_with_their_classes(imagenet_folder: Path, dataset: Path, name: str) -> None:
    split = open_split(dataset, name)
    stored = [
        (stem, split.samples[index].jpeg, split.classes[split.samples[index].label])
        for index, stem in enumerate(stems_in(dataset, name))
    ]
    assert sorted(stored) == sorted(source_of(imagenet_folder)[name])


def test_training_images_are_mixed_and_validation_images_in_file_name_order(dataset: Path) -> None:
    assert stems_in(dataset, "val") == [f"ILSVRC2012_val_{number:08d}" for number in range(1, COUNTS["val"] + 1)]
    split = open_split(dataset, "train")
    labels = [split.samples[index].label for index in range(COUNTS["train"])]
    assert sum(a != b for a, b in itertools.pairwise(labels)) > COUNTS["train"] / 2


def test_another_seed_mixes_otherwise(imagenet_folder: Path, dataset: Path, tmp_path: Path) -> None:
    labels = imagenet_folder / "val_labels.txt"
    convert(ConvertSettings(src=imagenet_folder, dst=tmp_path, val_labels=labels, seed=1))
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


def test_validation_in_class_folders_needs_no_labels(src: Path, dataset: Path, tmp_path: Path) -> None:
    for line, path in zip((src / "val_labels.txt").read_text().split(), sorted((src / "val").iterdir()), strict=True):
        (src / "val" / line).mkdir(exist_ok=True)
        path.rename(src / "val" / line / path.name)
    assert run("--src", src, "--dst", tmp_path / "dst") == 0
    ours, theirs = open_split(tmp_path / "dst", "val"), open_split(dataset, "val")
    assert sorted(ours.samples[i] for i in range(19)) == sorted(theirs.samples[i] for i in range(19))


def test_valprep_script_gives_the_same_dataset_as_the_synset_list(src: Path, dataset: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (src / "val").iterdir())
    wnids = (src / "val_labels.txt").read_text().split()
    moves = [f"mv {name} {wnid}/" for name, wnid in zip(names, wnids, strict=True)]
    (tmp_path / "valprep.sh").write_text("\n".join(["mkdir -p n00000001", *reversed(moves)]))
    flags = ["--val-labels", tmp_path / "valprep.sh", "--shard-size", "100KB"]
    assert run("--src", src, "--dst", tmp_path / "dst", *flags) == 0
    assert files_in(tmp_path / "dst") == files_in(dataset)


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
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    assert (result["train"], result["val"]) == (2, 0)
    assert list(Manifest.read(tmp_path / "dst").splits) == ["train"]


def png_bytes(mode: str) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(photograph(50, 61, seed=1))
    converted = image.quantize(64, dither=Image.Dither.NONE) if mode == "P" else image.convert(mode)
    converted.save(file, "PNG")
    return file.getvalue()


ODD_FILES = {
    "PNG": (png_bytes("RGB"), "a PNG file"),
    "palette PNG": (png_bytes("P"), "a PNG file"),
    "PNG with alpha": (png_bytes("RGBA"), "a PNG file"),
    "CMYK": (jpeg_bytes(photograph(50, 61, seed=2), "CMYK"), "a JPEG of 8 bit with 4 components (mode CMYK)"),
}


@pytest.mark.parametrize(("data", "remark"), ODD_FILES.values(), ids=ODD_FILES.keys())
def test_what_decoders_would_not_read_alike_is_re_encoded_and_reported(
    few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, remark: str
) -> None:
    odd = few / "train" / "n00000001" / "odd.JPEG"
    odd.write_bytes(data)
    assert run("--src", few, "--dst", tmp_path / "dst") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["result"]["reencoded"] == 1
    (entry,) = json.loads((tmp_path / "dst" / "report.json").read_text())
    assert entry == {"split": "train", "file": str(odd), "odd": remark, "done": "re-encoded"}

    stored = open_split(tmp_path / "dst", "train").samples[stems_in(tmp_path / "dst", "train").index("odd")].jpeg
    assert read_header(stored).is_decodable_everywhere
    difference = np.abs(decoded(stored).astype(int) - decoded(data))
    assert difference.mean() < 6, "another image would be off by about 60"


KEPT_FILES = {
    "progressive": jpeg_bytes(photograph(50, 61, seed=3), progressive=True),
    "grey": jpeg_bytes(photograph(50, 61, seed=3), "L"),
    "EXIF orientation": jpeg_bytes(photograph(50, 61, seed=3), exif=turned()),
    "bytes behind the end": jpeg_bytes(photograph(50, 61, seed=3)) + b"\0trailer",
    "1 x 1 pixel": jpeg_bytes(photograph(1, 1, seed=3)),
}


@pytest.mark.parametrize("data", KEPT_FILES.values(), ids=KEPT_FILES.keys())
def test_jpegs_that_every_decoder_reads_are_kept_byte_for_byte(few: Path, tmp_path: Path, data: bytes) -> None:
    (few / "train" / "n00000001" / "kept.JPEG").write_bytes(data)
    assert run("--src", few, "--dst", tmp_path / "dst") == 0
    assert json.loads((tmp_path / "dst" / "report.json").read_text()) == []
    split, index = open_split(tmp_path / "dst", "train"), stems_in(tmp_path / "dst", "train").index("kept")
    assert split.shards[index].jpeg == split.beton[index].jpeg == data


def truncate(path: Path, share: float) -> None:
    os.truncate(path, int(path.stat().st_size * share))


TRAIN_IMAGE = "train/n00000003/n00000003_42.JPEG"
VAL_IMAGE = "val/ILSVRC2012_val_00000019.JPEG"

# What is done to the source, the flags besides --src and --dst, and what the one line must name.
BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such source": (shutil.rmtree, "--src {src}: no folder train/"),
    "no train folder": (lambda src: (src / "train").rename(src / "Train"), "--src {src}: no folder train/"),
    "empty train": (lambda src: [shutil.rmtree(p) for p in (src / "train").iterdir()], "{src}/train: no class folders"),
    "empty class folder": (lambda src: (src / "train" / "n9").mkdir(), "{src}/train/n9: no images"),
    "class folder of other files": (
        lambda src: [(src / "train/n9").mkdir(), (src / "train/n9/a.txt").write_text("a")],
        "{src}/train/n9: no images",
    ),
    "labels for class folders": (
        lambda src: shutil.copytree(src / "train/n00000001", src / "val/n00000001"),
        "--val-labels: not needed, {src}/val is in class folders already",
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
    code = run("--src", src, "--dst", dst, "--val-labels", src / "val_labels.txt", "--shard-size", "20KB")
    assert_refused(code, capsys, named.format(src=src))
    assert not files_in(dst)


def assert_refused(code: int, capsys: pytest.CaptureFixture[str], named: str) -> None:
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert named in line
    assert " object at 0x" not in line


def test_validation_class_folder_that_training_lacks_is_named(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(src / "val")
    shutil.copytree(src / "train" / "n00000001", src / "val" / "n00000009")
    code = run("--src", src, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, f"{src}/val/n00000009: this class is not among the 4 of training")


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
        ["--format", "zip"],
        ["--format"],
        ["--no-such-flag", "1"],
    ],
    ids=" ".join,
)
def test_wrong_flag_is_named(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    code = run("--src", few, "--dst", tmp_path / "dst", *flags)
    assert_refused(code, capsys, flags[0])
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
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


def test_converted_dataset_is_not_overwritten(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = tmp_path / "dst"
    assert run("--src", few, "--dst", dst) == 0
    before = files_in(dst)
    capsys.readouterr()
    code = run("--src", few, "--dst", dst)
    assert_refused(code, capsys, f"--dst {dst}: holds a converted dataset already")
    assert files_in(dst) == before


def test_file_as_target_is_refused(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dst").write_text("mine")
    code = run("--src", few, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, f"--dst {tmp_path}/dst: is a file")
    assert (tmp_path / "dst").read_text() == "mine"


def test_file_in_the_way_of_a_folder_is_refused(few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "ffcv").write_text("mine")
    code = run("--src", few, "--dst", tmp_path / "dst")
    assert_refused(code, capsys, f"--dst {tmp_path}/dst: cannot be written")
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


def test_conversion_after_a_mended_image_gives_what_a_fresh_one_gives(src: Path, dataset: Path, tmp_path: Path) -> None:
    image = src / "val" / "ILSVRC2012_val_00000019.JPEG"
    sound = image.read_bytes()
    image.write_bytes(sound[:100])
    flags = ["--src", src, "--dst", tmp_path / "dst", "--val-labels", src / "val_labels.txt", "--shard-size", "100KB"]
    assert run(*flags) == 2
    image.write_bytes(sound)
    assert run(*flags) == 0
    assert files_in(tmp_path / "dst") == files_in(dataset)


def test_conversion_after_a_killed_one_gives_what_a_fresh_one_gives(
    imagenet_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    """What a killed conversion leaves: its mark, finished shards, files in work, and no dataset.json."""
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / STATE).touch()
    for name in ("webdataset/train-000000.tar", "webdataset/train-000000.idx", "webdataset/train-000017.tar"):
        (dst / name).parent.mkdir(parents=True, exist_ok=True)
        (dst / name).write_bytes(b"of an earlier conversion")
    (dst / "ffcv").mkdir()
    for name in ("webdataset/.train-000018.tar.partial", "ffcv/.train.beton.partial", "ffcv/val.beton"):
        (dst / name).write_bytes(b"half a file")
    labels = imagenet_folder / "val_labels.txt"
    assert run("--src", imagenet_folder, "--dst", dst, "--val-labels", labels, "--shard-size", "100KB") == 0
    assert files_in(dst) == files_in(dataset)


def test_script_names_a_bad_image_in_its_last_line_without_a_traceback(few: Path, tmp_path: Path) -> None:
    bad = few / "train" / "n00000001" / "bad.JPEG"
    bad.write_text("404 not found")
    done = run_script("--src", few, "--dst", tmp_path / "dst")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {bad}: ")
    assert not files_in(tmp_path / "dst")


def test_script_starts_no_program_for_an_image(few: Path, tmp_path: Path) -> None:
    """PIL hands PostScript to Ghostscript, whatever the file is called. This `gs` only tells that it was called."""
    called, programs = tmp_path / "called", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (programs / "gs").chmod(0o755)
    bad = few / "train" / "n00000001" / "bad.JPEG"
    bad.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = run_script("--src", few, "--dst", tmp_path / "dst", env=environment)
    assert done.returncode == 2
    assert not called.exists()
    assert str(bad) in done.stderr


def test_script_without_arguments_says_which_default_is_missing(tmp_path: Path) -> None:
    done = run_script(cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--src data/imagenet" in line
    assert not any(tmp_path.iterdir())
