"""`sluice.open`: the loader that other people's loops iterate."""

import itertools
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.models import ResNet50_Weights

import pipeline as sluice
from pipeline import loaders
from pipeline.contract import LoaderSpec
from pipeline.order.crops import CropPolicy
from pipeline.storage.split import open_split
from tests.helpers.imagenet import CLASSES, COUNTS

BATCH, BATCHES, SIDE = 8, COUNTS["train"] // 8, 32

Open = Callable[..., sluice.ImageLoader]


@pytest.fixture
def opened(tiled_dataset: Path) -> Iterator[Open]:
    """`sluice.open` of small images in threads; the loaders are closed after the test."""
    made: list[sluice.ImageLoader] = []

    def open_one(split: str = "train", **arguments: Any) -> sluice.ImageLoader:
        settings: dict[str, Any] = {"batch_size": BATCH, "resolution": SIDE, "workers": 1, "loader": "threads"}
        made.append(sluice.open(tiled_dataset, split, **settings | arguments))
        return made[-1]

    yield open_one
    for loader in made:
        loader.close()


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def positions(loader: sluice.ImageLoader, count: int | None = None) -> list[list[int]]:
    """The dataset positions in a loop's batches, or in its first `count`."""
    return [batch.indices.tolist() for batch in itertools.islice(loader, count)]


# What it gives


@pytest.mark.parametrize("name", ["threads", "torch", "ffcv", "webdataset"])
def test_batches_are_the_loaders_and_safe_to_keep(opened: Open, tiled_dataset: Path, name: str) -> None:
    if name not in [found for found, _ in loaders.usable(open_split(tiled_dataset, "train"), [])]:
        pytest.skip(f"{name} is not installed")
    loader = opened(loader=name, seed=3, indices=True)
    spec = LoaderSpec(
        split=open_split(tiled_dataset, "train"),
        batch_size=BATCH,
        crop=CropPolicy(training=True),
        seed=3,
        workers=1,
        max_resolution=SIDE,
    )
    kept = [*loader, *loader]
    assert len(kept) == 2 * len(loader) == 2 * BATCHES
    inner = loaders.create("torch", spec)
    for epoch in (0, 1):
        for batch, expected in zip(kept[epoch * BATCHES :], inner.epoch(epoch, SIDE), strict=False):
            assert batch.indices.equal(expected.indices)
            assert batch.labels.equal(expected.labels)
            assert (batch.images.int() - expected.images.int()).abs().max() <= 2
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
    inner.close()


def test_borrowed_batches_lie_in_the_loaders_memory(opened: Open) -> None:
    def places(loader: sluice.ImageLoader) -> set[int]:
        held = list(itertools.chain(loader, loader))
        return {batch.images.data_ptr() for batch in held}

    assert len(places(opened())) == 2 * BATCHES
    assert len(places(opened(borrow=True))) < BATCHES


def test_pairs_and_indices(opened: Open) -> None:
    loader = opened()
    assert loader.classes == tuple(CLASSES)
    images, labels = next(iter(loader))
    assert (images.dtype, images.shape) == (torch.uint8, (BATCH, 3, SIDE, SIDE))
    assert (labels.dtype, labels.shape) == (torch.int64, (BATCH,))
    assert next(iter(opened(indices=True))).labels.equal(labels)


@pytest.mark.parametrize("normalize", [True, ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
def test_normalized_images(opened: Open, normalize: Any) -> None:
    mean, std = normalize if normalize is not True else (0, 0)
    if normalize is True:
        preset = ResNet50_Weights.IMAGENET1K_V2.transforms()
        mean, std = preset.mean, preset.std
    plain = next(iter(opened())).images.double() / 255
    expected = (plain - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    images = next(iter(opened(normalize=normalize))).images
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.double(), expected, rtol=0, atol=1e-5)
    half = next(iter(opened(normalize=normalize, dtype=torch.bfloat16))).images
    assert half.equal(images.to(torch.bfloat16))
    assert half.is_contiguous(memory_format=torch.channels_last)


def test_floats_without_normalization_are_from_0_to_1(opened: Open) -> None:
    images = next(iter(opened(dtype=torch.float32))).images
    torch.testing.assert_close(images, next(iter(opened())).images / 255)


def test_a_transform_sees_each_batch(opened: Open) -> None:
    def as_dict(batch: sluice.Batch) -> dict[str, Tensor]:
        return {"pixel_values": batch.images, "labels": batch.labels}

    given = list(opened(transform=as_dict))
    assert [batch["labels"].tolist() for batch in given] == [labels.tolist() for _, labels in opened()]


def test_evaluation_has_each_image_once_over_all_ranks(opened: Open) -> None:
    ranks = [opened("val", batch_size=4, rank=rank, world_size=2, indices=True) for rank in (0, 1)]
    seen = [index for loader in ranks for batch in positions(loader) for index in batch]
    assert sorted(seen) == list(range(COUNTS["val"]))
    assert [len(loader) for loader in ranks] == [len(positions(loader)) for loader in ranks]
    whole = opened("train", training=False, indices=True)
    assert [*itertools.chain(*positions(whole))] == list(range(COUNTS["train"]))


# Epochs and states


def test_each_loop_is_the_next_epoch(opened: Open) -> None:
    loader, other = opened(indices=True), opened(indices=True)
    epochs = [positions(loader) for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3
    assert positions(other, 2) == epochs[0][:2]  # left: counts as an epoch
    assert (other.epoch, positions(other)) == (0, epochs[1])
    other.set_epoch(0)
    assert positions(other) == epochs[0]
    other.set_epoch(2)
    assert (other.epoch, positions(other)) == (2, epochs[2])


@pytest.mark.parametrize("received", [0, 1, 3, BATCHES])
def test_a_state_continues_after_the_batches_that_were_received(opened: Open, received: int) -> None:
    loader = opened(indices=True)
    epochs = [positions(loader) for _ in range(3)]
    loader.set_epoch(1)
    assert positions(loader, received) == epochs[1][:received]
    state = loader.state_dict()
    resumed = opened(indices=True, loader="torch")
    resumed.load_state_dict(state)
    assert resumed.state_dict() == (state if received < BATCHES else {**state, "epoch": 2, "batch": 0})
    assert resumed.epoch == (1 if received < BATCHES else 2)
    expected = epochs[1][received:] + epochs[2]
    given = positions(resumed)
    assert given + (positions(resumed) if received < BATCHES else []) == expected


def test_a_state_continues_in_another_number_of_processes(opened: Open) -> None:
    whole = opened(indices=True)
    epoch = positions(whole)
    whole.set_epoch(0)
    positions(whole, 2)
    ranks = [opened(indices=True, batch_size=BATCH // 2, rank=rank, world_size=2) for rank in (0, 1)]
    for loader in ranks:
        loader.load_state_dict(whole.state_dict())
    assert [one + two for one, two in zip(*map(positions, ranks), strict=True)] == epoch[2:]


def test_set_epoch_agrees_with_a_state(opened: Open) -> None:
    loader = opened(indices=True)
    positions(loader, 2)
    middle = loader.state_dict()
    loader.load_state_dict(middle)
    with pytest.raises(sluice.UsageError, match=r"set_epoch\(1\): .* continues epoch 0 after 2 of 5 batches"):
        loader.set_epoch(1)
    loader.set_epoch(0)
    assert len(positions(loader)) == BATCHES - 2
    end = loader.state_dict()
    assert (end["epoch"], end["batch"]) == (0, BATCHES)
    loader.load_state_dict(end)
    loader.set_epoch(0)  # whose images have all been seen
    assert positions(loader) == []
    assert (len(positions(loader)), loader.epoch) == (BATCHES, 1)


@pytest.mark.parametrize(("name", "change"), [("seed", {"seed": 1}), ("global batch", {"batch_size": BATCH + 1})])
def test_a_state_of_other_batches_is_refused(opened: Open, name: str, change: dict[str, int]) -> None:
    with pytest.raises(sluice.InputError, match=f"the state is of {name}"):
        opened(**change).load_state_dict(opened().state_dict())


# Wrong use


def test_a_batch_larger_than_the_data(opened: Open, tiled_dataset: Path) -> None:
    with pytest.raises(sluice.InputError, match=r"^batch_size 24 x 2 processes: larger than the 47 images of train in"):
        opened(batch_size=24, rank=0, world_size=2)
    assert len(list(opened("val", batch_size=100))) == 1


def test_use_after_close(opened: Open) -> None:
    with opened() as loader:
        running = iter(loader)
        next(running)
    loader.close()
    for use in (lambda: iter(loader), lambda: next(running)):
        with pytest.raises(sluice.UsageError, match="the loader is closed"):
            use()


def test_two_loops_at_once(opened: Open) -> None:
    loader = opened(indices=True)
    first, second = iter(loader), iter(loader)
    assert len(next(second).indices) == BATCH
    with pytest.raises(sluice.UsageError, match="open a second loader to iterate twice at once"):
        next(first)
    assert len(list(second)) == BATCHES - 1
    with pytest.raises(sluice.UsageError, match="open a second loader"):
        list(zip(loader, loader, strict=True))


def _use(loader: sluice.ImageLoader, answer: Connection) -> None:
    try:
        next(iter(loader))
        answer.send("a batch")
    except Exception as error:
        answer.send(repr(error))


def test_use_in_a_process_that_was_forked(opened: Open) -> None:
    loader = opened()
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=_use, args=(loader, sender))
    child.start()
    sender.close()  # a child that dies is an EOFError, not a wait
    assert receiver.recv().startswith("UsageError('the loader was opened by another process")
    child.join()
    assert len(list(loader)) == BATCHES


@pytest.mark.usefixtures("group")
def test_nothing_is_forked_after_a_process_group(opened: Open, imagenet_folder: Path) -> None:
    for name in ("torch", "webdataset"):
        with pytest.raises(sluice.UsageError, match=f"loader {name} would fork this process after it joined"):
            opened(loader=name)
        assert len(opened(loader=name, workers=0)) == BATCHES
    with sluice.open(imagenet_folder, "train", batch_size=BATCH, resolution=SIDE) as loader:
        assert not loaders.facts(loader.name).forks


def test_ranks_of_the_environment(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(sluice.InputError, match="WORLD_SIZE 2 is exported, but not RANK"):
        opened()
    monkeypatch.setenv("RANK", "1")
    expected = positions(opened(indices=True, rank=1, world_size=2))
    assert positions(opened(indices=True)) == expected
    with pytest.raises(sluice.InputError, match="give both rank and world_size"):
        opened(rank=1)


def test_a_loader_opened_for_another_rank(opened: Open, request: pytest.FixtureRequest) -> None:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WORLD_SIZE", "2")
        environment.setenv("RANK", "1")
        loader = opened()
    request.getfixturevalue("group")
    with pytest.raises(sluice.UsageError, match=r"opened for rank 1 of 2, but this is rank 0 of 1; open it after"):
        next(iter(loader))
    assert len(list(opened(rank=1, world_size=2))) == COUNTS["train"] // (2 * BATCH)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "has no split 'test', only train, val"),
        ({"loader": "tourch"}, "^loader tourch: unknown; did you mean torch"),
        ({"dtype": torch.int32}, "^dtype torch.int32: must be a floating-point type"),
        ({"dtype": torch.uint8, "normalize": True}, "or torch.uint8 without normalize"),
        ({"resize": 16}, "^resize 16: must be at least the resolution of 32"),
        ({"batch_size": 0}, "batch size must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_used(opened: Open, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(**arguments)


def test_a_missing_dataset(tmp_path: Path) -> None:
    with pytest.raises(sluice.InputError, match=rf"^{tmp_path}/none: no such directory"):
        sluice.open(tmp_path / "none", batch_size=1)


# Public names


def test_the_package_is_imported_without_torch() -> None:
    code = "import sys, pipeline; print(*{'torch', 'numba', 'numpy'} & set(sys.modules)); print(*dir(pipeline))"
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ["", " ".join(sorted([*sluice.__all__, "__version__"]))]
    assert all(getattr(sluice, name).__doc__ for name in sluice.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'opne'"):
        _ = sluice.opne  # type: ignore[attr-defined]
