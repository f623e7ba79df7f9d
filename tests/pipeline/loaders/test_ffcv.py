"""The ffcv loader on `.beton` files with pixels, which no other loader reads."""

import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import pipeline as sluice
from pipeline import loaders
from pipeline.contract import MAX_DIFFERENCE, Batch, LoaderSpec
from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.order.crops import CropPolicy
from pipeline.pixels.decode import decode
from pipeline.storage.beton import MODE_JPEG, MODE_RAW
from pipeline.storage.split import Split, open_split
from tests.helpers.loaders import loaded
from tests.helpers.reference import policy_image
from tests.pipeline.loaders.test_contract import (
    RESOLUTION,
    assert_same,
    collect,
    copies,
    hide_package,
    reference,
    spec_of,
)

PIXELS = ("raw", "proportion")


@pytest.fixture(scope="module")
def with_pixels(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`imagenet_folder` as pixels, all or a share of them, in directories of these names. No image is scaled down."""
    root = tmp_path_factory.mktemp("pixels")
    labels = imagenet_folder / "val_labels.txt"
    for jpeg in PIXELS:
        settings = {"format": ("ffcv",), "jpeg": jpeg, "max_side": 300, "shard_size": "100KB", "workers": 2}
        convert(ConvertSettings(src=(imagenet_folder,), dst=root / jpeg, val_labels=labels, **settings))  # type: ignore[arg-type]
    return root


@pytest.fixture(params=PIXELS)
def jpeg(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def split(with_pixels: Path, jpeg: str) -> Split:
    return open_split(with_pixels / jpeg, "train")


def stored_image(split: Split, index: int) -> Tensor:
    """uint8 [3, H, W]: the pixels as stored, or as torchvision decodes them."""
    row = split.beton.metadata["f0"][index]
    if row["mode"] == MODE_JPEG:
        return decode(split.beton, index, split.beton[index].jpeg)
    pixels = np.frombuffer(split.beton.read(index), np.uint8).reshape(row["height"], row["width"], 3)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def expected(spec: LoaderSpec, epoch: int, resolution: int) -> Iterator[Batch]:
    """The contract, for stored pixels."""
    for indices in spec.plan.batches(epoch):
        images = []
        for index in indices.tolist():
            image = stored_image(spec.split, index)
            images.append(policy_image(image, spec.crop, spec.seed, epoch, index, resolution))
        labels = torch.from_numpy(spec.split.beton.metadata["f1"][indices])
        yield Batch(torch.stack(images), labels, torch.from_numpy(indices))


def ffcv_batches(spec: LoaderSpec, *epoch: int) -> list[Batch]:
    return collect(loaded("ffcv"), spec, *epoch)


def test_the_files_hold_what_their_names_say(with_pixels: Path) -> None:
    for split_name in ("train", "val"):
        raw, proportion = (
            open_split(with_pixels / jpeg, split_name).beton.metadata["f0"]["mode"].tolist() for jpeg in PIXELS
        )
        assert {*raw} == {MODE_RAW}
        assert {*proportion} == {MODE_JPEG, MODE_RAW}


@pytest.mark.parametrize("split_name", ["train", "val"])
def test_a_batch_is_the_crop_of_the_stored_pixels(with_pixels: Path, jpeg: str, split_name: str) -> None:
    spec = spec_of(open_split(with_pixels / jpeg, split_name), workers=2)
    batches = ffcv_batches(spec, 5, RESOLUTION)
    assert_same(loaded("ffcv"), batches, list(expected(spec, 5, RESOLUTION)))


def test_stored_pixels_differ_only_by_the_rounding_of_the_resize(with_pixels: Path) -> None:
    """Nothing is decoded, so nothing else can differ."""
    spec = spec_of(open_split(with_pixels / "raw", "train"))
    for batch, wanted in zip(ffcv_batches(spec, 2, RESOLUTION), expected(spec, 2, RESOLUTION), strict=True):
        assert (batch.images.int() - wanted.images.int()).abs().max() <= 1


def test_a_batch_agrees_with_that_of_the_kept_jpegs(dataset: Path, split: Split) -> None:
    """The same positions, labels, crops and, within the tolerance, pixels."""
    kept = spec_of(open_split(dataset, "train"))
    batches = ffcv_batches(spec_of(split), 1, RESOLUTION)
    for batch, wanted in zip(batches, reference(kept, 1, RESOLUTION), strict=True):
        assert batch.indices.tolist() == wanted.indices.tolist()
        assert batch.labels.tolist() == wanted.labels.tolist()
        as_jpeg = split.beton.metadata["f0"]["mode"][batch.indices] == MODE_JPEG  # encoded a second time
        difference = (batch.images.int() - wanted.images.int()).abs().flatten(1)[torch.from_numpy(~as_jpeg)]
        assert difference.max() <= MAX_DIFFERENCE


def test_workers_ranks_and_start_batch_change_nothing(split: Split) -> None:
    module = loaded("ffcv")
    whole = ffcv_batches(spec_of(split, batch_size=12, workers=1), 1, RESOLUTION)
    shares = [
        collect(module, spec_of(split, batch_size=6, workers=2, rank=rank, world_size=2), 1, RESOLUTION)
        for rank in range(2)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
    loader = module.create(spec_of(split, batch_size=12))
    for batch, same in zip(copies(loader.epoch(1, RESOLUTION, 2)), whole[2:], strict=True):
        assert torch.equal(batch.images, same.images)
    loader.close()


@pytest.mark.parametrize("name", ["torch", "dali", "webdataset"])
@pytest.mark.parametrize("workers", [0, 2])
def test_other_loaders_end_in_one_line(split: Split, name: str, workers: int) -> None:
    module = loaded(name)
    message = "has no WebDataset shards of train" if name == "webdataset" else "raw pixels, no JPEG; use --loader ffcv"
    with pytest.raises(InputError, match=message) as raised:
        collect(module, spec_of(split, workers=workers), 0, RESOLUTION)
    assert "\n" not in str(raised.value)


def test_auto_takes_ffcv(split: Split) -> None:
    loaded("ffcv")
    assert loaders.choose(split) == ("ffcv", "it is installed and the data has 'ffcv-raw' storage")


def test_auto_says_what_is_missing(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package(monkeypatch, "ffcv", "ffcv")
    with pytest.raises(
        InputError, match=r"--loader auto: none reads .*not ffcv: needs ffcv.* make env; .*not torch"
    ) as raised:
        loaders.choose(split)
    assert "\n" not in str(raised.value)


def test_a_damaged_jpeg_among_pixels_is_named(with_pixels: Path, tmp_path: Path) -> None:
    beton = "ffcv/train.beton"
    dataset = tmp_path / "damaged"
    (dataset / "ffcv").mkdir(parents=True)
    for name in ("dataset.json", beton):
        (dataset / name).write_bytes((with_pixels / "proportion" / name).read_bytes())
    split = open_split(dataset, "train")
    index = split.beton.metadata["f0"]["mode"].tolist().index(MODE_JPEG)
    _, at, size = split.beton.allocation()[index].tolist()
    with (dataset / beton).open("r+b") as file:
        file.seek(at + size // 2)
        file.write(bytes(size - size // 2))
    with pytest.raises(InputError, match=rf"train\.beton sample {index}: cannot be decoded"):
        ffcv_batches(spec_of(split), 0, RESOLUTION)


def test_what_was_checked_is_what_is_used(dataset_copy: Path) -> None:
    """A file that is replaced, with labels that no class has, between the check and FFCV's own reading."""
    split = open_split(dataset_copy, "train")
    spec, labels = spec_of(split), split.beton.metadata["f1"].copy()
    altered = split.beton.metadata.copy()
    altered["f1"] = 10**12
    content = split.beton_path.read_bytes()
    assert content.count(split.beton.metadata.tobytes()) == 1
    split.beton_path.write_bytes(content.replace(split.beton.metadata.tobytes(), altered.tobytes()))
    for batch in ffcv_batches(spec, 0, RESOLUTION):
        assert batch.labels.tolist() == labels[batch.indices].tolist()


@pytest.mark.parametrize("training", [True, False])
def test_the_steps_of_the_kernel_are_the_kernel(split: Split, training: bool) -> None:
    """The steps that a profiler times one by one: bit for bit the batches of the loader."""
    spec = spec_of(split, crop=CropPolicy(training=training))
    stepped = loaders.create_timed("ffcv", spec)
    for batch, wanted in zip(
        copies(stepped.epoch(1, RESOLUTION, 2)), ffcv_batches(spec, 1, RESOLUTION, 2), strict=True
    ):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch, wanted, strict=True))
    stepped.close()
    stepped.close()


ON_ONE_CORE = """
import os, sys, zlib
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
import pipeline as sluice
with sluice.open(sys.argv[1], "train", batch_size=16, resolution=64, loader="ffcv", workers=2) as batches:
    for images, labels in batches:
        print(zlib.crc32(images.permute(0, 2, 3, 1).numpy()), labels.tolist())
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_process_on_one_core_forks_and_ends(with_pixels: Path) -> None:
    """And loads what it loads on several."""
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE, with_pixels / "proportion"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    with sluice.open(
        with_pixels / "proportion", "train", batch_size=16, resolution=64, loader="ffcv", workers=2
    ) as batches:
        lines = [f"{zlib.crc32(images.permute(0, 2, 3, 1).numpy())} {labels.tolist()}" for images, labels in batches]
    assert done.stdout.splitlines() == lines
