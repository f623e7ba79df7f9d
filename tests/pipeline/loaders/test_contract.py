"""One contract for every loader: a new file in pipeline/loaders/ is tested without being registered anywhere.

Only the package of a loader can be missing; `make env` installs them all.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest
import torch

from pipeline import loaders
from pipeline.contract import MEAN_DIFFERENCE, Batch, Decoder, Loader, LoaderModule, LoaderSpec
from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.order.crops import CropPolicy
from pipeline.order.plan import POSITION, positions
from pipeline.pixels.decode import decode
from pipeline.pixels.jpeg.headers import APP9, read_header, segments
from pipeline.storage.split import Split, open_split
from tests.helpers.images import three_to_one_jpeg
from tests.helpers.jpegs import index_entries
from tests.helpers.loaders import loaded
from tests.helpers.reference import policy_image

READERS = [name for name in loaders.names() if loaders.facts(name).reads]
RESOLUTION = 48


def spec_of(split: Split, **changes: object) -> LoaderSpec:
    training = split.name == "train"
    settings = {"batch_size": 8, "crop": CropPolicy(training=training), "seed": 3, "workers": 1, **changes}
    return LoaderSpec(split=split, **settings)  # type: ignore[arg-type]


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def module(name: str) -> LoaderModule:
    return loaded(name)


@pytest.fixture(params=["tiled_dataset", "dataset"])
def stored(request: pytest.FixtureRequest) -> Path:
    """A dataset of tiled JPEGs, and one of the same images untiled."""
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture(params=get_args(Decoder))
def decoder(request: pytest.FixtureRequest) -> Decoder:
    name: Decoder = request.param
    return name


@pytest.fixture
def split(tiled_dataset: Path) -> Split:
    return open_split(tiled_dataset, "train")


def copies(batches: Iterator[Batch]) -> list[Batch]:
    """Batches are borrowed: copy each before the next is asked for."""
    return [Batch(*(tensor.clone() for tensor in batch)) for batch in batches]


def collect(module: LoaderModule, spec: LoaderSpec, *epoch: int) -> list[Batch]:
    loader: Loader = module.create(spec)
    try:
        return copies(loader.epoch(*epoch))
    finally:
        loader.close()


def reference(spec: LoaderSpec, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
    """The contract itself: torchvision's decode, the plan's order, torchvision's transforms."""
    for keys in spec.plan.batches(epoch, start_batch):
        images, labels = [], []
        for key in keys.tolist():
            index = key & POSITION
            jpeg, label = spec.split.samples[index]
            image = decode(spec.split.samples, index, jpeg)
            images.append(policy_image(image, spec.crop, spec.seed, epoch, key, resolution))
            labels.append(label)
        yield Batch(torch.stack(images), torch.tensor(labels), torch.from_numpy(positions(keys)))


def assert_same(module: LoaderModule, batches: list[Batch], expected: list[Batch]) -> None:
    assert [len(batch.labels) for batch in batches] == [len(batch.labels) for batch in expected]
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.indices.tolist() == wanted.indices.tolist()
        assert batch.labels.tolist() == wanted.labels.tolist()
        difference = (batch.images.int() - wanted.images.int()).abs()
        assert difference.float().mean() <= MEAN_DIFFERENCE
        assert difference.max() <= module.FACTS.max_difference


def test_a_training_epoch_follows_the_plan(module: LoaderModule, stored: Path, decoder: Decoder) -> None:
    spec = spec_of(open_split(stored, "train"), decoder=decoder)
    assert_same(module, collect(module, spec, 5, RESOLUTION), list(reference(spec, 5, RESOLUTION)))


def test_an_evaluation_counts_every_image_once(module: LoaderModule, stored: Path, decoder: Decoder) -> None:
    spec = spec_of(open_split(stored, "val"), decoder=decoder)
    batches = collect(module, spec, 0, RESOLUTION)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(spec.split.num_samples))
    assert_same(module, batches, list(reference(spec, 0, RESOLUTION)))


@pytest.mark.parametrize("split_name", ["train", "val"])
def test_a_bicubic_resize_is_that_of_the_reference(module: LoaderModule, stored: Path, split_name: str) -> None:
    policy = CropPolicy(training=split_name == "train", interpolation="bicubic")
    spec = spec_of(open_split(stored, split_name), crop=policy)
    batches, expected = collect(module, spec, 1, RESOLUTION), list(reference(spec, 1, RESOLUTION))
    assert_same(module, batches, expected)
    bilinear = replace(spec, crop=replace(policy, interpolation="bilinear"))
    with pytest.raises(AssertionError):
        assert_same(module, batches, list(reference(bilinear, 1, RESOLUTION)))


@pytest.mark.parametrize("split_name", ["train", "val"])
def test_the_decoder_changes_no_bit(module: LoaderModule, tiled_dataset: Path, split_name: str) -> None:
    split = open_split(tiled_dataset, split_name)
    batches, same = (collect(module, spec_of(split, decoder=name, workers=2), 4, 64) for name in get_args(Decoder))
    for batch, other in zip(batches, same, strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch, other, strict=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_global_batch(module: LoaderModule, split: Split, world_size: int) -> None:
    one = collect(module, spec_of(split, batch_size=12), 1, RESOLUTION)
    shares = [
        collect(module, spec_of(split, batch_size=12 // world_size, rank=rank, world_size=world_size), 1, RESOLUTION)
        for rank in range(world_size)
    ]
    for whole, *parts in zip(one, *shares, strict=True):
        assert torch.equal(whole.indices, torch.cat([part.indices for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_repeats_of_an_image_are_cropped_differently_on_every_world_size(
    module: LoaderModule, split: Split, world_size: int
) -> None:
    """With a batch of 12 and 3 repeats of 4 images: among 3 ranks, each has every image once."""
    spec = spec_of(split, batch_size=12, repeats=3)
    whole = list(reference(spec, 1, RESOLUTION))
    assert len(whole) == split.num_samples // 12
    assert all(not torch.equal(batch.images[:4], batch.images[4:8]) for batch in whole)
    for rank in range(world_size):
        size = 12 // world_size
        share = replace(spec, batch_size=size, rank=rank, world_size=world_size)
        mine = [Batch(*(part[rank * size : (rank + 1) * size] for part in batch)) for batch in whole]
        assert_same(module, collect(module, share, 1, RESOLUTION), mine)
    start = collect(module, spec, 1, RESOLUTION, 2) if world_size == 1 else whole[2:]
    assert_same(module, start, whole[2:])


def test_more_ranks_than_the_last_batch_has_images(module: LoaderModule, tiled_dataset: Path) -> None:
    val = open_split(tiled_dataset, "val")
    world_size = 3  # 19 images in global batches of 18: the last one has 1
    shares = [
        collect(module, spec_of(val, batch_size=6, rank=rank, world_size=world_size), 0, RESOLUTION)
        for rank in range(world_size)
    ]
    indices = [index for batches in shares for batch in batches for index in batch.indices.tolist()]
    assert sorted(indices) == list(range(val.num_samples))


@pytest.mark.parametrize("training", [True, False])
def test_a_rank_without_any_image_has_no_batch(module: LoaderModule, tiled_dataset: Path, training: bool) -> None:
    split = open_split(tiled_dataset, "train" if training else "val")
    spec = spec_of(split, batch_size=50, rank=0, world_size=100)
    loader = module.create(spec)
    assert loader.batches_per_epoch == 0
    assert list(loader.epoch(0, RESOLUTION)) == []
    loader.close()


def test_an_epoch_can_start_at_any_batch(module: LoaderModule, split: Split) -> None:
    loader = module.create(spec_of(split))
    whole = copies(loader.epoch(2, RESOLUTION))
    assert len(whole) == loader.batches_per_epoch == split.num_samples // 8
    for start_batch in (0, 3, len(whole) - 1, len(whole)):
        tail = copies(loader.epoch(2, RESOLUTION, start_batch))
        assert [batch.indices.tolist() for batch in tail] == [batch.indices.tolist() for batch in whole[start_batch:]]
        for batch, wanted in zip(tail, whole[start_batch:], strict=True):
            assert torch.equal(batch.images, wanted.images)
    loader.close()


def test_one_loader_serves_epochs_and_resolutions(module: LoaderModule, split: Split) -> None:
    spec = spec_of(split)
    loader = module.create(spec)
    for epoch, resolution in ((0, 32), (1, 56), (0, 32)):
        batches = copies(loader.epoch(epoch, resolution))
        assert batches[0].images.shape == (8, 3, resolution, resolution)
        assert_same(module, batches, list(reference(spec, epoch, resolution)))
    loader.close()


def test_processes_live_as_long_as_the_loader(module: LoaderModule, split: Split) -> None:
    """No process is forked later, when there may be threads."""
    before = psutil.Process().children()
    loader = module.create(spec_of(split, workers=2))
    own = psutil.Process().children()
    for epoch, resolution, start_batch in ((0, 32, 0), (1, 224, 2), (2, RESOLUTION, 0)):
        for _ in loader.epoch(epoch, resolution, start_batch):
            assert psutil.Process().children() == own
    loader.close()
    assert psutil.Process().children() == before
    if own != before:
        with pytest.raises(ValueError, match="the loader is closed"):
            loader.epoch(0, RESOLUTION)


def test_the_number_of_workers_changes_nothing(module: LoaderModule, split: Split) -> None:
    first, *others = (collect(module, spec_of(split, workers=workers), 1, RESOLUTION) for workers in (0, 1, 3))
    for other in others:
        for batch, wanted in zip(other, first, strict=True):
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch, wanted, strict=True))


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_have_the_strides_the_device_wants(module: LoaderModule, split: Split, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for batch in collect_without_copy(module, spec_of(split, channels_last=channels_last)):
        assert batch.images.is_contiguous(memory_format=memory_format)


def collect_without_copy(module: LoaderModule, spec: LoaderSpec) -> Iterator[Batch]:
    loader = module.create(spec)
    yield from loader.epoch(0, RESOLUTION)
    loader.close()


def threads_and_processes() -> tuple[int, int]:
    me = psutil.Process()
    return me.num_threads(), len(me.children(recursive=True))


def test_closing_in_the_middle_leaves_no_thread_or_process(module: LoaderModule, split: Split) -> None:
    collect(module, spec_of(split, workers=2), 0, RESOLUTION)  # pools that live as long as Python are created now
    before = threads_and_processes()
    for taken in (0, 1, 2):
        loader = module.create(spec_of(split, batch_size=4, workers=2))
        batches = loader.epoch(0, RESOLUTION)
        list(islice(batches, taken))
        loader.close()
        loader.close()  # closing twice is allowed
        del loader
    assert_none_is_left(before)


def assert_none_is_left(before: tuple[int, int]) -> None:
    """No more threads and processes than `before`, once they have had time to end."""
    deadline = time.monotonic() + 20
    while threads_and_processes() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threads_and_processes() <= before, [thread.name for thread in threading.enumerate()]


def test_a_new_epoch_ends_the_one_before(module: LoaderModule, split: Split) -> None:
    spec = spec_of(split, workers=2)
    loader = module.create(spec)
    abandoned = loader.epoch(0, RESOLUTION)
    next(abandoned)
    assert_same(module, copies(loader.epoch(1, RESOLUTION)), list(reference(spec, 1, RESOLUTION)))
    loader.close()


def test_a_jpeg_that_only_the_reference_decodes_has_its_pixels(
    module: LoaderModule, imagenet_folder: Path, tmp_path: Path
) -> None:
    src = shutil.copytree(imagenet_folder, tmp_path / "src")
    shutil.rmtree(src / "val")
    next((src / "train").glob("*/*.JPEG")).write_bytes(three_to_one_jpeg(64, 96))
    for jpeg, epoch in (("keep", 0), ("tile", 1)):
        convert(ConvertSettings(src=(src,), dst=tmp_path / jpeg, jpeg=jpeg))  # type: ignore[arg-type]
        spec = spec_of(open_split(tmp_path / jpeg, "train"))
        assert_same(module, collect(module, spec, epoch, RESOLUTION), list(reference(spec, epoch, RESOLUTION)))


def test_a_damaged_tile_index_does_not_change_the_pixels(
    module: LoaderModule, tiled_dataset: Path, tmp_path: Path
) -> None:
    """One byte of each image's index is changed, but no checksum, so that the whole image can be decoded."""
    copy = shutil.copytree(tiled_dataset, tmp_path / "copy")
    split = open_split(copy, "train")
    rng = np.random.default_rng(0)
    for index in range(split.num_samples):
        jpeg = split.shards[index].jpeg
        if APP9 not in (marker for marker, _, _ in segments(jpeg)):
            continue
        at = int(rng.choice(places_in_index(jpeg)))
        overwrite(split, index, at, bytes([jpeg[at] ^ int(rng.integers(1, 256))]))
    spec = spec_of(open_split(copy, "train"))
    for epoch in (0, 1):
        assert_same(module, collect(module, spec, epoch, RESOLUTION), list(reference(spec, epoch, RESOLUTION)))


def places_in_index(jpeg: bytes) -> list[int]:
    """Where the bytes of an index stand that are no checksum."""
    start, end = next((start, end) for marker, start, end in segments(jpeg) if marker == APP9)
    places, at = [*range(start, start + 12)], start + 16
    for size, _ in index_entries(jpeg):
        digits = 1 if size < 1 << 7 else 2
        places += range(at, at + digits)
        at += digits + 4
    assert at == end
    return places


@pytest.mark.parametrize("place", ["quantization table", "tile", "checksum"])
def test_altered_bits_are_noticed_that_no_decoder_would_notice(
    module: LoaderModule, tiled_dataset: Path, tmp_path: Path, decoder: Decoder, place: str
) -> None:
    """One bit of a tiled image, which could be decoded to other pixels without a warning."""
    split = open_split(shutil.copytree(tiled_dataset, tmp_path / "copy"), "train")
    spec = spec_of(split, workers=0, decoder=decoder, crop=CropPolicy(training=True, area=(1, 1), ratio=(0.1, 10)))
    jpeg = split.shards[17].jpeg
    at = {
        "quantization table": jpeg.index(b"\xff\xdb") + 30,
        "tile": read_header(jpeg).scan_offset + 14 + sum(size + 2 for size, _ in index_entries(jpeg)[:5]),
        "checksum": read_header(jpeg).scan_offset - 1,  # where the index ends
    }[place]
    overwrite(split, 17, at, bytes([jpeg[at] ^ 4]))
    with pytest.raises(InputError, match=r"sample 17: altered since it was converted .*; convert again$") as raised:
        collect(module, spec, 0, RESOLUTION)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_damaged_image_is_named_in_one_line(
    module: LoaderModule, dataset_copy: Path, workers: int, share: float
) -> None:
    """An image is overwritten with zeros from a byte in its headers, or in its data, on; sizes stay."""
    if share == 0.5 and not module.FACTS.notices_altered_data:
        pytest.skip("as the loader's file says")
    split = open_split(dataset_copy, "train")
    damage(split, index=17, share=share)
    before = psutil.Process().children()
    loader = module.create(spec_of(open_split(dataset_copy, "train"), workers=workers))
    with pytest.raises(InputError, match="sample 17") as raised:
        copies(loader.epoch(0, RESOLUTION))
    assert "\n" not in str(raised.value)
    loader.close()
    assert psutil.Process().children() == before


def test_closing_after_an_error_leaves_no_thread_or_process(module: LoaderModule, dataset_copy: Path) -> None:
    """Even while the error is held: its traceback refers to objects inside the loader."""
    split = open_split(dataset_copy, "train")
    collect(module, spec_of(split, workers=2), 0, RESOLUTION)  # pools that live as long as Python are created now
    damage(split, index=17, share=0.02)
    before = threads_and_processes()
    loader = module.create(spec_of(open_split(dataset_copy, "train"), workers=2))
    with pytest.raises(InputError) as raised:
        copies(loader.epoch(0, RESOLUTION))
    loader.close()
    assert_none_is_left(before)
    assert "sample 17" in str(raised.value)


def damage(split: Split, index: int, share: float) -> None:
    size = int(split.beton.sizes[index])
    kept = int(size * share)
    overwrite(split, index, kept, bytes(size - kept))


def overwrite(split: Split, index: int, at: int, data: bytes) -> None:
    """Overwrite bytes of a stored image, in both formats."""
    in_shard, in_beton = split.shards.extent(index)[0] + 512, int(split.beton.metadata["f0"]["data_ptr"][index])
    for path, start in ((split.shards.shard_of(index), in_shard), (split.beton_path, in_beton)):
        with path.open("r+b") as file:
            file.seek(start + at)
            file.write(data)


def test_loaders_do_not_change_the_threads_of_the_model(module: LoaderModule, split: Split) -> None:
    before = torch.get_num_threads()
    collect(module, spec_of(split, workers=1), 0, RESOLUTION)
    assert torch.get_num_threads() == before


def test_synthetic_batches_have_the_plans_lengths(tiled_dataset: Path) -> None:
    for split_name in ("train", "val"):
        spec = spec_of(open_split(tiled_dataset, split_name))
        batches = collect(loaders.load("synthetic"), spec, 0, RESOLUTION)
        assert [len(batch.images) for batch in batches] == [len(indices) for indices in spec.plan.batches(0)]
        assert all(batch.images.shape[1:] == (3, RESOLUTION, RESOLUTION) for batch in batches)


def test_every_storage_has_the_same_samples(tiled_dataset: Path) -> None:
    split = open_split(tiled_dataset, "train")
    for index in np.linspace(0, split.num_samples - 1, 9, dtype=int).tolist():
        assert split.shards[index] == split.beton[index]


def test_folder_data_is_read_in_place(module: LoaderModule, imagenet_folder: Path, dataset: Path) -> None:
    """With the batches of its conversion."""
    spec = spec_of(open_split(imagenet_folder, "train"))
    if "folder" not in module.FACTS.reads:
        with pytest.raises(InputError, match="convert with"):
            module.create(spec)
        return
    converted = spec_of(open_split(dataset, "train"))
    assert_same(module, collect(module, spec, 0, RESOLUTION), list(reference(converted, 0, RESOLUTION)))


def test_an_unknown_loader_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"ffcv.*torch.*auto"):
        loaders.load("bogus")


def hide_package(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    """As if a loader's package were not installed: for Python's import, None in sys.modules means that."""
    for module in (f"pipeline.loaders.{name}", f"pipeline.loaders._{name}_internals"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [("ffcv", "ffcv", "make env"), ("dali", "nvidia.dali", "pip install nvidia-dali-cuda130")],
)
def test_a_missing_package_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, command: str
) -> None:
    hide_package(monkeypatch, name, package)
    with pytest.raises(InputError, match=f"--loader {name} needs .*not installed: {command}"):
        loaders.load(name)


def test_auto_says_why(tiled_dataset: Path, imagenet_folder: Path) -> None:
    name, why = loaders.choose(open_split(tiled_dataset, "train"))
    assert name in why or "installed" in why
    folder_name, folder_why = loaders.choose(open_split(imagenet_folder, "train"))
    assert "folder" in loaders.facts(folder_name).reads
    assert "not ffcv" in folder_why


def test_nothing_is_read_from_the_environment(
    module: LoaderModule, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = collect(module, spec_of(split), 0, RESOLUTION)
    for variable, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setitem(os.environ, variable, value)
    for batch, same in zip(collect(module, spec_of(split), 0, RESOLUTION), wanted, strict=True):
        assert torch.equal(batch.indices, same.indices)
