"""Orders, shares and batches: what every loader builds on."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.distributed_sampler import RepeatAugSampler

from pipeline.errors import InputError
from pipeline.order import plan
from pipeline.order.plan import POSITION, REPEAT_SHIFT, Plan, epoch_order, positions, rank_share
from pipeline.order.random import ORDER_DRAW, random_keys
from pipeline.order.stream import StreamPlan

ROOT = Path(plan.__file__).parents[2]

sizes = st.integers(0, 300)
batch_sizes = st.integers(1, 20)
worlds = st.integers(1, 9)
epochs = st.integers(0, 10_000)
seeds = st.integers(0, 1 << 40)


def ranks(world_size: int, **settings: Any) -> list[Plan]:
    return [Plan(rank=rank, world_size=world_size, **settings) for rank in range(world_size)]


def global_batches(plans: list[Plan], epoch: int) -> list[list[int]]:
    """What all ranks together see in each step; a rank may run out of batches before the others."""
    own = [list(plan.batches(epoch)) for plan in plans]
    steps = max(map(len, own))
    return [[i for batches in own if step < len(batches) for i in batches[step].tolist()] for step in range(steps)]


@given(num_samples=sizes, seed=seeds, epoch=epochs)
def test_order_visits_every_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_samples, seed, epoch)
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(num_samples))


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = [tuple(epoch_order(100, seed, epoch)) for seed in (0, 1, 1 << 32) for epoch in (0, 1, 2)]
    assert len(set(orders)) == len(orders)
    assert tuple(range(100)) not in orders


def test_order_puts_every_sample_at_every_position_equally_often() -> None:
    num_samples, draws = 8, 4000
    counts = np.zeros((num_samples, num_samples))
    for epoch in range(draws):
        counts[np.arange(num_samples), epoch_order(num_samples, 0, epoch)] += 1
    expected = draws / num_samples
    deviation = np.sqrt(expected * (1 - 1 / num_samples))
    assert np.abs(counts - expected).max() < 5 * deviation


@pytest.mark.parametrize("num_samples", [0, 1, 65_535, 65_536, 200_003])
def test_sorting_in_buckets_gives_what_sorting_at_once_gives(num_samples: int) -> None:
    at_once = np.argsort(random_keys(num_samples, 7, 3, ORDER_DRAW), kind="stable")
    assert np.array_equal(epoch_order(num_samples, 7, 3), at_once)


def test_order_is_that_of_earlier_releases() -> None:
    """A resumed run needs the order it began with. The numbers are from an independent Philox in plain Python."""
    assert epoch_order(10, 0, 0).tolist() == [2, 7, 8, 4, 6, 1, 9, 5, 0, 3]
    assert epoch_order(10, 42, 3).tolist() == [8, 4, 0, 9, 5, 1, 7, 3, 6, 2]


def test_order_is_the_same_in_another_process() -> None:
    code = "from pipeline.order.plan import epoch_order; print(epoch_order(1000, 7, 3).tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == str(epoch_order(1000, 7, 3).tolist())


@given(length=sizes, world_size=worlds)
def test_ranks_share_the_batch_in_parts_that_differ_by_at_most_one(length: int, world_size: int) -> None:
    batch = np.arange(length)
    shares = [rank_share(batch, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(shares).tolist() == batch.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(num_samples=sizes, batch_size=batch_sizes, world_size=worlds, epoch=epochs)
def test_training_drops_the_remainder_and_every_batch_is_full(
    num_samples: int, batch_size: int, world_size: int, epoch: int
) -> None:
    plans = ranks(world_size, num_samples=num_samples, batch_size=batch_size)
    whole = num_samples // (batch_size * world_size)
    for plan_ in plans:
        assert [len(batch) for batch in plan_.batches(epoch)] == [batch_size] * whole
    seen = [index for batch in global_batches(plans, epoch) for index in batch] if whole else []
    assert len(set(seen)) == len(seen) == whole * batch_size * world_size


@given(num_samples=sizes, batch_size=batch_sizes, world_size=worlds)
def test_evaluation_visits_every_sample_exactly_once(num_samples: int, batch_size: int, world_size: int) -> None:
    plans = ranks(world_size, num_samples=num_samples, batch_size=batch_size, training=False)
    seen = [index for plan_ in plans for batch in plan_.batches(0) for index in batch.tolist()]
    assert sorted(seen) == list(range(num_samples))


@given(num_samples=sizes, batch_size=batch_sizes, world_size=worlds)
def test_no_batch_is_empty_or_larger_than_the_batch_size(num_samples: int, batch_size: int, world_size: int) -> None:
    for plan_ in ranks(world_size, num_samples=num_samples, batch_size=batch_size, training=False):
        assert all(1 <= len(batch) <= batch_size for batch in plan_.batches(0))


def test_evaluation_of_fewer_samples_than_ranks_leaves_some_ranks_without_a_batch() -> None:
    plans = ranks(8, num_samples=3, batch_size=4, training=False)
    assert sorted(plan_.batches_per_epoch for plan_ in plans) == [0] * 5 + [1] * 3


@given(num_samples=sizes, batch_size=batch_sizes, world_size=worlds, rank=st.integers(0, 8), training=st.booleans())
def test_batches_per_epoch_counts_the_batches(
    num_samples: int, batch_size: int, world_size: int, rank: int, training: bool
) -> None:
    plan_ = Plan(
        num_samples=num_samples,
        batch_size=batch_size,
        world_size=world_size,
        rank=rank % world_size,
        training=training,
    )
    assert plan_.batches_per_epoch == len(list(plan_.batches(5)))


@pytest.mark.parametrize("training", [True, False])
def test_global_batches_do_not_depend_on_the_world_size(training: bool) -> None:
    batches = [
        global_batches(ranks(world, num_samples=101, batch_size=24 // world, seed=3, training=training), epoch=2)
        for world in (1, 2, 3, 4, 6, 8, 12, 24)
    ]
    assert all(other == batches[0] for other in batches)


@given(num_samples=sizes, batch_size=batch_sizes, start=st.integers(0, 40), training=st.booleans())
def test_starting_at_a_batch_gives_the_tail_of_the_epoch(
    num_samples: int, batch_size: int, start: int, training: bool
) -> None:
    plan_ = Plan(num_samples=num_samples, batch_size=batch_size, world_size=3, rank=1, seed=9, training=training)
    whole = [batch.tolist() for batch in plan_.batches(4)]
    assert [batch.tolist() for batch in plan_.batches(4, start)] == whole[start:]


@given(repeats=st.integers(1, 5), share=st.integers(1, 4), num_samples=sizes, epoch=epochs)
def test_every_batch_has_each_of_its_samples_as_often_as_asked_for(
    repeats: int, share: int, num_samples: int, epoch: int
) -> None:
    plan_ = Plan(num_samples=num_samples, batch_size=repeats * share, repeats=repeats)
    batches = list(plan_.batches(epoch))
    assert len(batches) == plan_.batches_per_epoch == num_samples // (repeats * share)  # as many as without repeats
    first = epoch_order(num_samples, 0, epoch)
    for number, keys in enumerate(batches):
        distinct = first[number * share : (number + 1) * share].tolist()
        assert sorted((int(key >> REPEAT_SHIFT), int(key & POSITION)) for key in keys) == sorted(
            (repeat, position) for repeat in range(repeats) for position in distinct
        )


def test_an_epoch_of_repeats_has_the_batches_of_timms_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's global batch, given the same permutation; timm spreads it over the ranks in another order."""
    num_samples, batch_size, world_size, repeats = 512, 8, 4, 3
    samplers = [
        RepeatAugSampler(range(num_samples), world_size, rank, num_repeats=repeats) for rank in range(world_size)
    ]
    generator = torch.Generator().manual_seed(0)
    permutation = torch.randperm(num_samples, generator=generator).numpy()
    monkeypatch.setattr(plan, "epoch_order", lambda *_: permutation)
    batches_of_ranks = [
        list(plan_.batches(0))
        for plan_ in ranks(world_size, num_samples=num_samples, batch_size=batch_size * 3, repeats=repeats)
    ]
    theirs = [np.array(list(sampler)).reshape(-1, batch_size) for sampler in samplers]
    assert len(theirs[0]) == num_samples // (batch_size * world_size)
    for number in range(len(theirs[0]) // 3):  # three of their batches, whose size need not be a multiple of repeats
        ours = np.concatenate([positions(batches[number]) for batches in batches_of_ranks])
        step = np.concatenate([batches[3 * number : 3 * number + 3].ravel() for batches in theirs])
        assert sorted(ours.tolist()) == sorted(step.tolist())


def test_with_as_many_ranks_as_repeats_no_rank_has_a_sample_twice() -> None:
    for plan_ in ranks(3, num_samples=100, batch_size=8, repeats=3):
        assert all(len(set(positions(keys).tolist())) == 8 for keys in plan_.batches(1))


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_global_batches_with_repeats_do_not_depend_on_the_world_size(repeats: int) -> None:
    batches = [
        global_batches(ranks(world, num_samples=101, batch_size=24 // world, seed=3, repeats=repeats), epoch=2)
        for world in (1, 2, 3, 8, 24)
    ]
    assert all(other == batches[0] for other in batches)


def test_repeats_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(InputError, match=r"3 repeats of each image do not divide the batch of 8 \(2 x 4\); choose"):
        Plan(num_samples=20, batch_size=4, world_size=2, repeats=3)
    with pytest.raises(InputError, match=r"3 repeats of each image do not divide a process's batch of 4, "):
        StreamPlan(shard_samples=(10, 10), batch_size=4, repeats=3)


def test_evaluation_order_is_that_of_the_dataset_in_every_epoch() -> None:
    plan_ = Plan(num_samples=20, batch_size=8, training=False)
    for epoch in (0, 1):
        assert np.concatenate(list(plan_.batches(epoch))).tolist() == list(range(20))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1, not 0"),
        ({"batch_size": -4}, "not -4"),
        ({"repeats": 0}, "repeats must be between 1 and 64, not 0"),
        ({"repeats": 65}, "not 65"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not in a world of 2"),
        ({"rank": -1}, "rank -1"),
        ({"world_size": 0}, "world of 0"),
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**{"num_samples": 10, "batch_size": 2, **bad})
