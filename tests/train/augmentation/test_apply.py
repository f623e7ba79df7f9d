"""Augmented batches: a function of seed, epoch and sample alone, with the strides that came in, next to the operations
one by one; random erasing next to timm's."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize
from pipeline.order.erasing import erased_boxes
from pipeline.order.plan import REPEAT_SHIFT, Plan, positions
from tests.helpers.images import photograph
from train.augmentation.apply import OPERATIONS, Augmentation, build
from train.augmentation.draws import KINDS, Draws
from train.augmentation.erasing import Block, Eraser, erase
from train.augmentation.geometry import GEOMETRIC, matrices, warp
from train.augmentation.policies import AugmentationSettings, EraseMode
from train.augmentation.strings import parse

SIDE = 40
EVERYTHING = AugmentationSettings(
    vflip=0.5,
    policy=parse("rand-m9-n3-p1-mstd0.5"),
    jitter=(0.4, 0.4, 0.4, 0.1),
    grayscale_probability=0.3,
    blur_probability=0.5,
    solarize_probability=0.3,
    erase_probability=0.6,
    erase_mode="pixel",
    erase_count=3,
)
IMAGES = torch.stack([torch.from_numpy(photograph(SIDE, SIDE, seed)).permute(2, 0, 1) for seed in range(24)])


def augmentation(settings: AugmentationSettings = EVERYTHING, seed: int = 3) -> Augmentation:
    built = build(settings, seed, IMAGENET_MEAN, IMAGENET_STD)
    assert built is not None
    return built


def augmented(keys: np.ndarray, settings: AugmentationSettings = EVERYTHING, epoch: int = 2, seed: int = 3) -> Tensor:
    return augmentation(settings, seed)(IMAGES[positions(keys) % len(IMAGES)], keys, epoch)


def test_nothing_is_built_where_nothing_is_done() -> None:
    idle = AugmentationSettings(jitter_probability=0.5, erase_mode="pixel", erase_count=4)
    assert build(idle, 0, IMAGENET_MEAN, IMAGENET_STD) is None


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("repeats", [1, 2])
def test_every_world_size_has_the_same_pixels(world_size: int, repeats: int) -> None:
    sizes: dict[str, Any] = {"num_samples": 24, "seed": 3, "repeats": repeats}
    for number in (0, 1):
        whole = Plan(batch_size=12, **sizes)
        one = whole.batch(whole.order(2), number)
        plans = [
            Plan(batch_size=12 // world_size, rank=rank, world_size=world_size, **sizes) for rank in range(world_size)
        ]
        parts = [augmented(plan.batch(plan.order(2), number)) for plan in plans]
        assert torch.equal(torch.cat(parts), augmented(one))


def test_seed_epoch_position_and_repeat_matter() -> None:
    keys = np.arange(24)
    first = augmented(keys)
    assert torch.equal(first, augmented(keys))
    for other in (augmented(keys, seed=4), augmented(keys, epoch=3), augmented(keys | 1 << REPEAT_SHIFT)):
        changed = (first != other).flatten(1).any(1)
        assert changed.sum() >= 23  # the rare image may be turned into the same one


def test_the_batch_that_came_in_stays_and_strides_too() -> None:
    keys = np.arange(24)
    before = IMAGES.clone()
    contiguous = augmentation()(IMAGES, keys, 0)
    in_channels = augmentation()(IMAGES.contiguous(memory_format=torch.channels_last), keys, 0)
    assert torch.equal(IMAGES, before)
    assert contiguous.is_contiguous()
    assert in_channels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(contiguous, in_channels)


def test_a_batch_is_what_the_operations_give_one_by_one() -> None:
    settings = dataclasses.replace(EVERYTHING, erase_probability=0.0, vflip=0.0)
    keys = np.arange(24)
    stages = Draws(settings).stages(3, 2, keys, SIDE)
    fill = torch.tensor(IMAGENET_MEAN).mul(255).round().view(3, 1, 1)
    expected = []
    for row, image in enumerate(IMAGES):
        for stage in stages:
            kind, parameter = KINDS[stage.kinds[row]], stage.parameters[row : row + 1]
            if kind in GEOMETRIC:
                image = warp(image[None], torch.from_numpy(matrices(kind, parameter, SIDE)).float(), fill)[0]
            elif kind != "Identity":
                image = OPERATIONS[kind](image[None], torch.from_numpy(parameter).float())[0]
        expected.append(image)
    assert torch.equal(augmented(keys, settings), torch.stack(expected))


def test_a_vertical_flip_is_one() -> None:
    flipped = augmented(np.arange(24), AugmentationSettings(vflip=0.5))
    upside_down = (flipped == IMAGES.flip(2)).flatten(1).all(1)
    assert ((flipped == IMAGES).flatten(1).all(1) ^ upside_down).all()
    assert 5 <= upside_down.sum() <= 19


# Random erasing


def timm_shares(count: int, samples: int) -> np.ndarray:
    """The erased shares of white images under timm's."""
    random.seed(0)
    eraser = RandomErasing(1.0, max_count=count, device="cpu")
    return np.array([1 - eraser(torch.ones(1, 3, 64, 64)).mean().item() for _ in range(samples)])


@pytest.mark.parametrize("count", [1, 3])
def test_rectangles_are_distributed_as_those_of_timm(count: int) -> None:
    boxes = erased_boxes(0, 0, np.arange(3000), 1.0, count, 64)
    shares = []
    for blocks in boxes:
        image = torch.ones(1, 3, 64, 64)
        for top, left, height, width in blocks.tolist():
            image[:, :, top : top + height, left : left + width] = 0
        shares.append(1 - image.mean().item())
    theirs = timm_shares(count, 1500)
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    assert np.quantile(shares, levels) == pytest.approx(np.quantile(theirs, levels), abs=0.015)
    tops, lefts, heights, widths = boxes.reshape(-1, 4)[boxes.reshape(-1, 4)[:, 2] > 0].T
    assert tops.min() == lefts.min() == 0
    assert (tops + heights).max() == (lefts + widths).max() == 64
    assert np.median(np.log(heights / widths)) == pytest.approx(0, abs=0.05)


def test_as_many_images_are_erased_as_asked_for() -> None:
    boxes = erased_boxes(0, 0, np.arange(4000), 0.25, 1, 64)
    assert np.mean(boxes[:, 0, 2] > 0) == pytest.approx(0.25, abs=0.02)


def erased(mode: EraseMode) -> tuple[Tensor, list[Block]]:
    """White images with a rectangle in each, normalised, and the rectangles."""
    images = torch.full((40, 3, 64, 64), 255, dtype=torch.uint8)
    blocks = Eraser(1.0, mode, 1, IMAGENET_MEAN, IMAGENET_STD).blocks(1, 0, np.arange(40), 64)
    erase(images, blocks)
    normalized: Tensor = Normalize(IMAGENET_MEAN, IMAGENET_STD)(images)
    return normalized, blocks


def inside(images: Tensor, block: Block) -> Tensor:
    rows, columns = slice(block.top, block.top + block.height), slice(block.left, block.left + block.width)
    return images[block.row, :, rows, columns]


def test_a_constant_is_the_mean_and_nothing_else_changes() -> None:
    images, blocks = erased("const")
    assert len(blocks) == 40
    for block in blocks:
        assert inside(images, block).abs().max() < 0.01  # timm's 0, rounded to a byte
        white = images[block.row] == Normalize(IMAGENET_MEAN, IMAGENET_STD)(torch.full((3, 1, 1), 255))[0]
        assert int((~white).sum()) == 3 * block.height * block.width


def test_random_colours_are_the_normal_distribution_in_normalised_values() -> None:
    images, blocks = erased("rand")
    assert all((inside(images, block).flatten(1).std(1) == 0).all() for block in blocks)
    values = torch.cat([inside(images, block).flatten(1)[:, 0] for block in blocks])
    assert len(values.unique()) > 60
    assert values.mean().abs() < 0.25


def test_random_pixels_are_the_normal_distribution_cut_to_bytes() -> None:
    images, blocks = erased("pixel")
    values = torch.cat([inside(images, block).flatten() for block in blocks]).double()
    normal = torch.special.ndtr(torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5], dtype=torch.float64))
    measured = torch.stack([(values < level).double().mean() for level in (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5)])
    assert (measured - normal).abs().max() < 0.01
    first, second = (inside(images, block).flatten()[:100] for block in blocks[:2])
    assert not torch.equal(first, second)
