"""Orders, shares and batches: what every loader builds on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import plan
from pipeline.augment import bounded_shuffle
from pipeline.errors import InputError
from pipeline.plan import Plan, StreamPlan, epoch_order, rank_share

ROOT = Path(plan.__file__).parents[1]

sizes = st.integers(0, 300)
batch_sizes = st.integers(1, 20)
worlds = st.integers(1, 9)
epochs = st.integers(0, 10_000)
seeds = st.integers(0, 1 << 40)


def ranks(world_size: int, **settings: int) -> list[Plan]:
    return [Plan(rank=rank, world_size=world_size, **settings) for rank in range(world_size)]


def global_batches(plans: list[Plan], epoch: int) -> list[list[int]]:
    """What all ranks together see in each step; a rank may run out of batches before the others."""
    own = [list(plan.batches(epoch)) for plan in plans]
    steps = max(map(len, own))
    return [[i for batches in own if step < len(batches) for i in batches[step].tolist()] for step in range(steps)]


@given(num_samples=sizes, seed=seeds, epoch=epochs)
def test_order_visits_every_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_samples, seed, epoch)
    assert order.dtype == np.int64
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


def test_order_is_the_one_that_earlier_runs_had() -> None:
    """Resuming a run needs the order it began with. Numbers of an independent Philox in plain Python."""
    assert epoch_order(10, 0, 0).tolist() == [2, 7, 8, 4, 6, 1, 9, 5, 0, 3]
    assert epoch_order(10, 42, 3).tolist() == [8, 4, 0, 9, 5, 1, 7, 3, 6, 2]


def test_order_is_the_same_in_another_process() -> None:
    code = "from pipeline.plan import epoch_order; print(epoch_order(1000, 7, 3).tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == str(epoch_order(1000, 7, 3).tolist())


@given(length=sizes, world_size=worlds)
def test_shares_of_the_ranks_are_the_batch_in_parts_that_differ_by_at_most_one(length: int, world_size: int) -> None:
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


def test_evaluation_order_is_that_of_the_dataset_in_every_epoch() -> None:
    plan_ = Plan(num_samples=20, batch_size=8, training=False)
    for epoch in (0, 1):
        assert np.concatenate(list(plan_.batches(epoch))).tolist() == list(range(20))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1, not 0"),
        ({"batch_size": -4}, "not -4"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not in a world of 2"),
        ({"rank": -1}, "rank -1"),
        ({"world_size": 0}, "world of 0"),
    ],
)
def test_impossible_settings_are_refused(bad: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**{"num_samples": 10, "batch_size": 2, **bad})


shard_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12).map(tuple)


@given(shard_samples=shard_sizes, epoch=st.integers(0, 5), batch_size=st.integers(1, 9))
def test_stream_gives_each_sample_at_most_once_and_world_sizes_share_it(
    shard_samples: tuple[int, ...], epoch: int, batch_size: int
) -> None:
    lanes = StreamPlan(shard_samples=shard_samples, batch_size=1).num_lanes
    one = StreamPlan(shard_samples=shard_samples, batch_size=batch_size * lanes, shuffle_buffer=4)
    shares_of_ranks = [
        StreamPlan(
            shard_samples=shard_samples, batch_size=batch_size, shuffle_buffer=4, rank=rank, world_size=lanes
        )
        for rank in range(lanes)
    ]  # fmt: skip
    whole = list(one.batches(epoch))
    assert len(whole) == one.batches_per_epoch
    assert {share.batches_per_epoch for share in shares_of_ranks} == {len(whole)}
    given = np.concatenate([np.empty(0, np.int64), *whole])
    assert len(set(given.tolist())) == len(given)
    assert sum(shard_samples) - len(given) < lanes + one.batch_size
    for batch, *shares in zip(whole, *(share.batches(epoch) for share in shares_of_ranks), strict=True):
        assert sorted(batch.tolist()) == sorted(np.concatenate(shares).tolist())


@given(shard_samples=shard_sizes, batch_size=st.integers(1, 9))
def test_streamed_evaluation_visits_each_sample_once(shard_samples: tuple[int, ...], batch_size: int) -> None:
    lanes = StreamPlan(shard_samples=shard_samples, batch_size=1).num_lanes
    for world_size in {1, lanes}:
        visited: list[int] = []
        for rank in range(world_size):
            plan = StreamPlan(
                shard_samples=shard_samples, batch_size=batch_size, training=False, rank=rank, world_size=world_size
            )
            batches = list(plan.batches(0))
            assert len(batches) == plan.batches_per_epoch
            visited += [index for batch in batches for index in batch.tolist()]
        assert sorted(visited) == list(range(sum(shard_samples)))


@given(shard_samples=shard_sizes, capacity=st.integers(0, 40), epoch=st.integers(0, 3))
def test_stream_needs_no_more_than_its_buffer(shard_samples: tuple[int, ...], capacity: int, epoch: int) -> None:
    plan = StreamPlan(shard_samples=shard_samples, batch_size=1, shuffle_buffer=capacity)
    for lane in plan.lanes(epoch):
        shuffled = bounded_shuffle(lane, capacity, plan.seed, epoch)
        assert sorted(shuffled.tolist()) == sorted(lane.tolist())
        place = {sample: number for number, sample in enumerate(lane.tolist())}
        assert all(place[sample] <= turn + max(1, capacity) for turn, sample in enumerate(shuffled.tolist()))


def test_streams_of_epochs_and_seeds_differ() -> None:
    sizes = (40,) * 6
    orders = [
        tuple(np.concatenate(list(StreamPlan(shard_samples=sizes, batch_size=1, seed=seed).batches(epoch))).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_stream_refuses_a_world_that_cannot_share_its_lanes() -> None:
    with pytest.raises(InputError, match="5 shards are streamed in 4 lanes, which 3 processes cannot share evenly"):
        StreamPlan(shard_samples=(9,) * 5, batch_size=1, world_size=3)
