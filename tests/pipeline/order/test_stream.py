"""The order of a stream: lanes, bounded shuffle, shares."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.errors import InputError
from pipeline.order.plan import Plan
from pipeline.order.stream import StreamPlan, bounded_shuffle

CAPACITY = 1024
LANES = [20, 300, 1024, 1500, 3336, 13_345]
"""Samples in a lane: of small data sets, of one that fits into the buffer, of a middle one, and of ImageNet, with 384
and with 96 lanes."""
REJECTED = 1e-4
"""A test rejects a uniform shuffle with about this probability. Seeds are fixed, so a result does not change."""

shard_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=12).map(tuple)


@given(shard_samples=shard_sizes, epoch=st.integers(0, 5), batch_size=st.integers(1, 9))
def test_stream_visits_each_sample_at_most_once_and_world_sizes_share_it(
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
    visited = np.concatenate([np.empty(0, np.int64), *whole])
    assert len(set(visited.tolist())) == len(visited)
    assert sum(shard_samples) - len(visited) < lanes + one.batch_size
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
def test_a_sample_moves_forward_by_no_more_than_the_buffer(
    shard_samples: tuple[int, ...], capacity: int, epoch: int
) -> None:
    plan = StreamPlan(shard_samples=shard_samples, batch_size=1, shuffle_buffer=capacity)
    for lane in plan.lanes(epoch):
        shuffled = bounded_shuffle(lane, capacity, plan.seed, epoch, 0)
        assert sorted(shuffled.tolist()) == sorted(lane.tolist())
        place = {sample: number for number, sample in enumerate(lane.tolist())}
        assert all(place[sample] < turn + max(1, capacity) for turn, sample in enumerate(shuffled.tolist()))


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


def lane_orders(samples: int, epochs: int) -> np.ndarray:
    """int64 [epochs, samples]: a lane 0, 1, ... as shuffled in each epoch."""
    return np.array([bounded_shuffle(np.arange(samples), CAPACITY, 5, epoch, 3) for epoch in range(epochs)])


def place_probabilities(arrival: int, samples: int) -> np.ndarray:
    """float [samples]: how probably a sample that arrives as number `arrival` comes out at each place: of those in the
    buffer each is as likely as the others."""
    held = np.minimum(CAPACITY, samples - np.arange(samples))
    leaves = np.where(np.arange(samples) > arrival - CAPACITY, 1 / held, 0.0)
    stays = np.concatenate([[1.0], np.cumprod(1 - leaves)[:-1]])
    probabilities: np.ndarray = stays * leaves
    return probabilities


@pytest.mark.parametrize("samples", LANES)
def test_neighbours_in_a_lane_are_rarely_neighbours_in_its_order(samples: int) -> None:
    """In the same or the reversed order: in 1/n of places, in a long lane in half of 1/capacity."""
    orders = lane_orders(samples, 200_000 // samples)
    steps = np.diff(orders, axis=1)
    expected = 1 / samples if samples <= CAPACITY else 1 / CAPACITY
    for step in (-1, 1):
        count = int((steps == step).sum())
        assert stats.binom.sf(count, steps.size, expected) > REJECTED, count / steps.size
        assert count > 0


@pytest.mark.parametrize("samples", LANES)
def test_a_sample_rarely_keeps_its_place(samples: int) -> None:
    orders = lane_orders(samples, 200_000 // samples)
    keeps = int((orders == np.arange(samples)).sum())
    probabilities = [place_probabilities(arrival, samples)[arrival] for arrival in range(0, samples, 7)]
    expected = len(orders) * samples * float(np.mean(probabilities))
    assert stats.poisson.cdf(keeps, expected) > REJECTED
    assert stats.poisson.sf(keeps, expected) > REJECTED
    if samples <= CAPACITY:
        assert expected == pytest.approx(len(orders))  # 1/n of places


@pytest.mark.parametrize("samples", LANES)
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_sample_comes_out_anywhere_as_probably_as_it_should(samples: int, part: float) -> None:
    """A chi-square test of the first, the middle and the last sample's place, in ten intervals as probable as each
    other; in lanes that fit into the buffer every place is as probable."""
    arrival, epochs = round(part * (samples - 1)), 800
    probabilities = place_probabilities(arrival, samples)
    assert probabilities.sum() == pytest.approx(1)
    if samples <= CAPACITY:
        assert probabilities == pytest.approx(1 / samples)
    interval = np.minimum((np.cumsum(probabilities) - probabilities / 2) * 10, 9).astype(int)
    places = np.argmax(lane_orders(samples, epochs) == arrival, axis=1)
    expected = np.bincount(interval, probabilities, 10) * epochs
    assert expected.min() > 40
    assert stats.chisquare(np.bincount(interval[places], minlength=10), expected).pvalue > REJECTED


def test_all_permutations_of_a_short_lane_are_equally_frequent() -> None:
    orders = [tuple(order) for order in lane_orders(4, 24 * 200).tolist()]
    counts = [orders.count(permutation) for permutation in itertools.permutations(range(4))]
    assert sum(counts) == len(orders)
    assert stats.chisquare(counts).pvalue > REJECTED


def test_lanes_are_shuffled_independently() -> None:
    """Two lanes have as many samples in the same places as two permutations."""
    same = [
        (bounded_shuffle(np.arange(50), CAPACITY, 0, epoch, 0) == bounded_shuffle(np.arange(50), CAPACITY, 0, epoch, 1))
        for epoch in range(400)
    ]
    assert REJECTED < stats.poisson.cdf(np.sum(same), 400) < 1 - REJECTED


def test_the_order_has_another_version_than_the_one_that_checkpoints_without_a_version_have() -> None:
    assert (Plan.VERSION, StreamPlan.VERSION) == (1, 2)
