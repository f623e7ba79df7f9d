"""What the model sees: the same pixels of a sample whatever the loader, the workers and the world size."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from pipeline import loaders
from pipeline.contract import Batch
from pipeline.order.plan import positions
from pipeline.storage.split import open_split
from tests.helpers.imagenet import converted
from tests.helpers.loaders import loaded
from tests.helpers.servers import serving
from train.config import TrainConfig
from train.network import build_model
from train.preparation import PlannedKeys, Preparation
from train.process import Process
from train.session import Session
from train.world import World

READERS = [name for name in loaders.names() if loaders.facts(name).reads]
EPOCH, SIDE, GLOBAL_BATCH = 2, 40, 12
EVERYTHING: dict[str, Any] = {
    "model": "pyramidnet", "model_kwargs": ("depth=14", "alpha=8"), "resolution": SIDE, "seed": 5,
    "scale": (0.2, 0.9), "ratio": (0.5, 2.0), "hflip": 0.4, "vflip": 0.3,
    "auto_augment": "rand-m9-n3-p1-mstd0.5", "color_jitter": (0.4, 0.4, 0.4, 0.1), "grayscale_prob": 0.2,
    "gaussian_blur_prob": 0.3, "solarize_prob": 0.2, "random_erase": 0.5, "random_erase_mode": "pixel",
    "mixup_alpha": 0.4, "cutmix_alpha": 1.0,
}  # fmt: skip


class Seen(NamedTuple):
    """A batch of a process on its way to the model."""

    keys: list[int]
    augmented: Tensor
    mixed: Tensor
    targets: Tensor


def process_of(data: Path | str, loader: str, world: World, **settings: Any) -> Process:
    sizes = {"data": str(data), "loader": loader, "batch_size": GLOBAL_BATCH // world.size, "workers": 1}
    return Process(TrainConfig(**{**EVERYTHING, **sizes, **settings}), world, torch.device("cpu"))


def seen(process: Process, start: int = 0) -> Iterator[Seen]:
    """An epoch of a process, from batch `start` on, by the steps of a TrainingStep."""
    config, split = process.config, open_split(process.config.data, "train", process.config.remote)
    plan = process.loader_spec(split, training=True).plan
    prepare, keys = Preparation(process, plan, num_classes=len(split.classes)), PlannedKeys(plan)
    with process.open_loader(config.loader, split, training=True) as opened:
        for number, batch in enumerate(opened.loader.epoch(EPOCH, SIDE, start), start):
            prepare.seed(EPOCH, number)
            batch = prepare.augmented(batch, EPOCH, number)
            planned = keys.of(EPOCH, number)
            assert batch.indices.tolist() == positions(planned).tolist()
            yield Seen(planned.tolist(), batch.images.clone(), *prepare.mixed(batch))


def by_sample(data: Path | str, loader: str, world_size: int, **settings: Any) -> dict[tuple[int, int], Tensor]:
    """The augmented images of an epoch by number of the global batch and sample key, over all ranks."""
    images = {
        (number, key): image
        for rank in range(world_size)
        for number, batch in enumerate(seen(process_of(data, loader, World(rank=rank, size=world_size), **settings)))
        for key, image in zip(batch.keys, batch.augmented, strict=True)
    }
    assert len(images) % GLOBAL_BATCH == 0
    return images


def assert_same_images(left: dict[tuple[int, int], Tensor], right: dict[tuple[int, int], Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize(("repeats", "sizes"), [(1, (2,)), (3, (1, 2, 3))])
def test_a_sample_has_the_same_pixels_in_every_loader_and_world(
    tiled_dataset: Path, repeats: int, sizes: tuple[int, ...]
) -> None:
    first = by_sample(tiled_dataset, "torch", 1, aug_repeats=repeats)
    assert len(first) == 3 * GLOBAL_BATCH
    assert len({image.numpy().tobytes() for image in first.values()}) == len(first)  # repeats differ
    for name, size in itertools.product(READERS, sizes):
        loaded(name)
        assert_same_images(first, by_sample(tiled_dataset, name, size, aug_repeats=repeats))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_mixed_images_and_targets_are_the_same_in_every_loader(tiled_dataset: Path, size: int) -> None:
    """Images are mixed within the batch of a process, so those of another world size are mixed with others."""
    for rank in range(size):
        world = World(rank=rank, size=size)
        whole = list(seen(process_of(tiled_dataset, "torch", world, workers=0)))
        assert all(batch.targets.max(1).values.min() < 1 for batch in whole)
        for name in READERS:
            loaded(name)
            for batch, expected in zip(seen(process_of(tiled_dataset, name, world), 1), whole[1:], strict=True):
                assert batch.keys == expected.keys
                assert torch.equal(batch.mixed, expected.mixed)
                assert torch.equal(batch.targets, expected.targets)


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_streamed_sample_has_the_same_pixels_in_every_world(
    imagenet_folder: Path, tmp_path: Path, repeats: int
) -> None:
    """In 24 lanes, which 1, 2 and 3 processes can share; and those pixels are those of local data."""
    shards = converted(imagenet_folder, tmp_path / "shards", shard_size="5KB", format=("webdataset",))
    with serving(shards) as server:
        first = by_sample(server.url, "webdataset", 1, aug_repeats=repeats)
        assert len(first) == 2 * GLOBAL_BATCH
        for size in (2, 3):
            assert_same_images(first, by_sample(server.url, "webdataset", size, aug_repeats=repeats))
    local = {key: image for (_, key), image in by_sample(shards, "torch", 1, aug_repeats=repeats).items()}
    both = [(image, local[key]) for (_, key), image in first.items() if key in local]
    assert len(both) >= GLOBAL_BATCH // 2
    assert all(torch.equal(*pair) for pair in both)


def test_the_model_is_called_with_these_pixels(tiled_dataset: Path) -> None:
    """A training step hands the model what the tests above look at."""
    process = process_of(tiled_dataset, "torch", World(), aug_repeats=3)
    split, inputs = open_split(tiled_dataset, "train"), list[Tensor]()
    with process.open_loader("torch", split, training=True) as loader:
        session = Session(process, build_model(process, split.classes), loader)
        session.position.move_to(EPOCH, 0, 0)
        session.model.classifier.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].clone()))
        expected = [batch.mixed for batch in seen(process)]
        for batch in (Batch(*parts) for parts in session.training_batches()):
            session.train_step(batch)
    assert len(inputs) == len(expected)
    assert all(map(torch.equal, inputs, expected))
