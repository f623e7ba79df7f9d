"""One contract for every loader: a new file in pipeline/loaders/ is tested by being there.

Only the package of a loader can be missing; a machine set up by `make env` has them all.
"""

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest
import torch
from images import three_to_one_jpeg

from pipeline import loaders
from pipeline.contract import MAX_DIFFERENCE, MEAN_DIFFERENCE, Batch, CropPolicy, Loader, LoaderSpec
from pipeline.dataset import Split, open_split
from pipeline.decode import crop_and_resize, decode
from pipeline.errors import InputError
from pipeline.jpeg.headers import APP9, segments
from tools.convert_imagenet import ConvertSettings, convert

READERS = [name for name in loaders.names() if name != "synthetic"]
RESOLUTION = 48


def spec_of(split: Split, **changes: object) -> LoaderSpec:
    training = split.name == "train"
    settings = {"batch_size": 8, "crop": CropPolicy(training=training), "seed": 3, "workers": 1, **changes}
    return LoaderSpec(split=split, **settings)  # type: ignore[arg-type]


@pytest.fixture(params=READERS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def module(name: str) -> ModuleType:
    try:
        return loaders.load(name)
    except InputError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(params=["tiled_dataset", "dataset"])
def stored(request: pytest.FixtureRequest) -> Path:
    """A dataset of tiled JPEGs, and one of the same images as they were."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def split(tiled_dataset: Path) -> Split:
    return open_split(tiled_dataset, "train")


def copies(batches: Iterator[Batch]) -> list[Batch]:
    """Batches are borrowed: copy each before the next is asked for."""
    return [Batch(*(tensor.clone() for tensor in batch)) for batch in batches]


def collect(module: ModuleType, spec: LoaderSpec, *epoch: int) -> list[Batch]:
    loader: Loader = module.create(spec)
    try:
        return copies(loader.epoch(*epoch))
    finally:
        loader.close()


def reference(spec: LoaderSpec, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
    """The contract itself: torchvision's decode, the plan's order and crop, torchvision's resize."""
    for indices in spec.plan.batches(epoch, start_batch):
        images, labels = [], []
        for index in indices.tolist():
            jpeg, label = spec.split.samples[index]
            image = decode(spec.split.samples, index, jpeg)
            crop = spec.crop.crop(spec.seed, epoch, index, *image.shape[1:])
            images.append(crop_and_resize(image, crop, resolution))
            labels.append(label)
        yield Batch(torch.stack(images), torch.tensor(labels), torch.from_numpy(indices))


def assert_same(module: ModuleType, batches: list[Batch], expected: list[Batch]) -> None:
    assert [len(batch.labels) for batch in batches] == [len(batch.labels) for batch in expected]
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.indices.dtype == torch.int64
        assert batch.indices.tolist() == wanted.indices.tolist()
        assert batch.labels.tolist() == wanted.labels.tolist()
        difference = (batch.images.int() - wanted.images.int()).abs()
        assert difference.float().mean() <= MEAN_DIFFERENCE
        assert difference.max() <= getattr(module, "MAX_DIFFERENCE", MAX_DIFFERENCE)


def test_a_training_epoch_is_the_plans(module: ModuleType, stored: Path) -> None:
    spec = spec_of(open_split(stored, "train"))
    assert_same(module, collect(module, spec, 5, RESOLUTION), list(reference(spec, 5, RESOLUTION)))


def test_an_evaluation_counts_every_image_once(module: ModuleType, stored: Path) -> None:
    spec = spec_of(open_split(stored, "val"))
    batches = collect(module, spec, 0, RESOLUTION)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(spec.split.num_samples))
    assert_same(module, batches, list(reference(spec, 0, RESOLUTION)))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_global_batch(module: ModuleType, split: Split, world_size: int) -> None:
    one = collect(module, spec_of(split, batch_size=12), 1, RESOLUTION)
    shares = [
        collect(module, spec_of(split, batch_size=12 // world_size, rank=rank, world_size=world_size), 1, RESOLUTION)
        for rank in range(world_size)
    ]
    for whole, *parts in zip(one, *shares, strict=True):
        assert torch.equal(whole.indices, torch.cat([part.indices for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))


def test_more_ranks_than_the_last_batch_has_images(module: ModuleType, tiled_dataset: Path) -> None:
    val = open_split(tiled_dataset, "val")
    world_size = 3  # 19 images in global batches of 18: the last one has 1
    shares = [
        collect(module, spec_of(val, batch_size=6, rank=rank, world_size=world_size), 0, RESOLUTION)
        for rank in range(world_size)
    ]
    indices = [index for batches in shares for batch in batches for index in batch.indices.tolist()]
    assert sorted(indices) == list(range(val.num_samples))


@pytest.mark.parametrize("training", [True, False])
def test_a_rank_without_any_image_gives_no_batch(module: ModuleType, tiled_dataset: Path, training: bool) -> None:
    split = open_split(tiled_dataset, "train" if training else "val")
    spec = spec_of(split, batch_size=50, rank=0, world_size=100)
    loader = module.create(spec)
    assert loader.batches_per_epoch == 0
    assert list(loader.epoch(0, RESOLUTION)) == []
    loader.close()


def test_start_batch_enters_the_epoch_anywhere(module: ModuleType, split: Split) -> None:
    loader = module.create(spec_of(split))
    whole = copies(loader.epoch(2, RESOLUTION))
    assert len(whole) == loader.batches_per_epoch == split.num_samples // 8
    for start_batch in (0, 3, len(whole) - 1, len(whole)):
        tail = copies(loader.epoch(2, RESOLUTION, start_batch))
        assert [batch.indices.tolist() for batch in tail] == [batch.indices.tolist() for batch in whole[start_batch:]]
        for batch, wanted in zip(tail, whole[start_batch:], strict=True):
            assert torch.equal(batch.images, wanted.images)
    loader.close()


def test_one_loader_serves_epochs_and_resolutions(module: ModuleType, split: Split) -> None:
    spec = spec_of(split)
    loader = module.create(spec)
    for epoch, resolution in ((0, 32), (1, 56), (0, 32)):
        batches = copies(loader.epoch(epoch, resolution))
        assert batches[0].images.shape == (8, 3, resolution, resolution)
        assert_same(module, batches, list(reference(spec, epoch, resolution)))
    loader.close()


def test_processes_live_as_long_as_the_loader(module: ModuleType, split: Split) -> None:
    """None is forked later, when there may be threads."""
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


def test_the_number_of_workers_changes_nothing(module: ModuleType, split: Split) -> None:
    first, *others = (collect(module, spec_of(split, workers=workers), 1, RESOLUTION) for workers in (0, 1, 3))
    for other in others:
        for batch, wanted in zip(other, first, strict=True):
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch, wanted, strict=True))


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_have_the_strides_the_device_wants(module: ModuleType, split: Split, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for batch in collect_without_copy(module, spec_of(split, channels_last=channels_last)):
        assert batch.images.is_contiguous(memory_format=memory_format)


def collect_without_copy(module: ModuleType, spec: LoaderSpec) -> Iterator[Batch]:
    loader = module.create(spec)
    yield from loader.epoch(0, RESOLUTION)
    loader.close()


def threads_and_processes() -> tuple[int, int]:
    me = psutil.Process()
    return me.num_threads(), len(me.children(recursive=True))


def test_closing_in_the_middle_leaves_no_thread_or_process(module: ModuleType, split: Split) -> None:
    collect(module, spec_of(split, workers=2), 0, RESOLUTION)  # pools that live as long as Python are made now
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
    """No more threads and processes than `before`, after the time they need to end."""
    deadline = time.monotonic() + 20
    while threads_and_processes() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threads_and_processes() <= before, [thread.name for thread in threading.enumerate()]


def test_a_new_epoch_ends_the_one_before(module: ModuleType, split: Split) -> None:
    spec = spec_of(split, workers=2)
    loader = module.create(spec)
    abandoned = loader.epoch(0, RESOLUTION)
    next(abandoned)
    assert_same(module, copies(loader.epoch(1, RESOLUTION)), list(reference(spec, 1, RESOLUTION)))
    loader.close()


def test_a_jpeg_that_only_the_reference_decodes_has_its_pixels(
    module: ModuleType, imagenet_folder: Path, tmp_path: Path
) -> None:
    src = shutil.copytree(imagenet_folder, tmp_path / "src")
    shutil.rmtree(src / "val")
    next((src / "train").glob("*/*.JPEG")).write_bytes(three_to_one_jpeg(64, 96))
    for jpeg, epoch in (("keep", 0), ("tile", 1)):
        convert(ConvertSettings(src=(src,), dst=tmp_path / jpeg, jpeg=jpeg))  # type: ignore[arg-type]
        spec = spec_of(open_split(tmp_path / jpeg, "train"))
        assert_same(module, collect(module, spec, epoch, RESOLUTION), list(reference(spec, epoch, RESOLUTION)))


def test_a_damaged_tile_index_does_not_change_the_pixels(
    module: ModuleType, tiled_dataset: Path, tmp_path: Path
) -> None:
    """One byte of each image's index is another; all else is as it was, so that the whole image can be decoded."""
    copy = shutil.copytree(tiled_dataset, tmp_path / "copy")
    split = open_split(copy, "train")
    rng = np.random.default_rng(0)
    for index in range(split.num_samples):
        jpeg = split.shards[index].jpeg
        payload = next((start, end) for marker, start, end in segments(jpeg) if marker == APP9)
        at = int(rng.integers(*payload))
        overwrite(split, index, at, bytes([jpeg[at] ^ int(rng.integers(1, 256))]))
    spec = spec_of(open_split(copy, "train"))
    for epoch in (0, 1):
        assert_same(module, collect(module, spec, epoch, RESOLUTION), list(reference(spec, epoch, RESOLUTION)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_damaged_image_is_named_in_one_line(
    module: ModuleType, dataset_copy: Path, workers: int, share: float
) -> None:
    """An image is overwritten with zeros from a place in its headers, or in its data, on; sizes stay."""
    if share == 0.5 and not getattr(module, "NOTICES_ALTERED_DATA", True):
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


def test_closing_after_an_error_leaves_no_thread_or_process(module: ModuleType, dataset_copy: Path) -> None:
    """Whoever still holds the error: its traceback refers to the loader's insides."""
    split = open_split(dataset_copy, "train")
    collect(module, spec_of(split, workers=2), 0, RESOLUTION)  # pools that live as long as Python are made now
    damage(split, index=17, share=0.02)
    before = threads_and_processes()
    loader = module.create(spec_of(open_split(dataset_copy, "train"), workers=2))
    with pytest.raises(InputError) as raised:
        copies(loader.epoch(0, RESOLUTION))
    loader.close()
    assert_none_is_left(before)
    assert "sample 17" in str(raised.value)


def damage(split: Split, index: int, share: float) -> None:
    size = int(split.beton.allocation["size"][index])
    kept = int(size * share)
    overwrite(split, index, kept, bytes(size - kept))


def overwrite(split: Split, index: int, at: int, data: bytes) -> None:
    """Other bytes at a place in a stored image, in both formats."""
    in_shard, in_beton = split.shards.extent(index)[0] + 512, int(split.beton.allocation["ptr"][index])
    for path, start in ((split.shards.shard_of(index), in_shard), (split.beton_path, in_beton)):
        with path.open("r+b") as file:
            file.seek(start + at)
            file.write(data)


def test_loaders_do_not_change_the_threads_of_the_model(module: ModuleType, split: Split) -> None:
    before = torch.get_num_threads()
    collect(module, spec_of(split, workers=1), 0, RESOLUTION)
    assert torch.get_num_threads() == before


def test_synthetic_batches_have_the_plans_lengths(tiled_dataset: Path) -> None:
    for split_name in ("train", "val"):
        spec = spec_of(open_split(tiled_dataset, split_name))
        batches = collect(loaders.load("synthetic"), spec, 0, RESOLUTION)
        assert [len(batch.images) for batch in batches] == [len(indices) for indices in spec.plan.batches(0)]
        assert all(batch.images.shape[1:] == (3, RESOLUTION, RESOLUTION) for batch in batches)


def test_every_storage_gives_the_same_samples(tiled_dataset: Path) -> None:
    split = open_split(tiled_dataset, "train")
    for index in np.linspace(0, split.num_samples - 1, 9, dtype=int).tolist():
        assert split.shards[index] == split.beton[index]


def test_folder_data_is_read_in_place(module: ModuleType, imagenet_folder: Path) -> None:
    spec = spec_of(open_split(imagenet_folder, "train"))
    if "folder" not in module.READS:
        with pytest.raises(InputError, match="convert with"):
            module.create(spec)
        return
    assert_same(module, collect(module, spec, 0, RESOLUTION), list(reference(spec, 0, RESOLUTION)))


def test_an_unknown_loader_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"ffcv.*torch.*auto"):
        loaders.load("bogus")


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [("ffcv", "ffcv", "make env"), ("dali", "nvidia.dali", "pip install nvidia-dali-cuda130")],
)
def test_a_missing_package_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, command: str
) -> None:
    """None in sys.modules is how Python's own import says that a module cannot be had."""
    monkeypatch.delitem(sys.modules, f"pipeline.loaders.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"--loader {name} needs .*not installed: {command}"):
        loaders.load(name)


def test_auto_says_why(tiled_dataset: Path, imagenet_folder: Path) -> None:
    name, why = loaders.choose(open_split(tiled_dataset, "train"))
    assert name in why or "installed" in why
    folder_name, folder_why = loaders.choose(open_split(imagenet_folder, "train"))
    assert "folder" in loaders.load(folder_name).READS
    assert "not ffcv" in folder_why


def test_nothing_is_read_from_the_environment(
    module: ModuleType, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = collect(module, spec_of(split), 0, RESOLUTION)
    for variable, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setitem(os.environ, variable, value)
    for batch, same in zip(collect(module, spec_of(split), 0, RESOLUTION), wanted, strict=True):
        assert torch.equal(batch.indices, same.indices)
