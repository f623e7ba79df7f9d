"""Shards planned from the sizes of images."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.conversion.listing import Images
from pipeline.conversion.planning import END_OF_SHARD, plan_shards
from pipeline.storage.shards import stored_size


@given(
    sizes=st.lists(st.integers(1, 300_000), min_size=1, max_size=60),
    shard_bytes=st.integers(1, 1_000_000),
    growth=st.sampled_from([1.0, 0.37, 2.5]),
)
def test_shards_hold_all_images_in_order_and_as_many_as_fit(sizes: list[int], shard_bytes: int, growth: float) -> None:
    column = np.array(sizes, np.int64)
    images = Images([str(at) for at in sizes], [], *[column] * 5)  # type: ignore[arg-type]
    shards = plan_shards("train", images, shard_bytes, growth)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
    assert shards[-1].stop == len(sizes)

    def total(start: int, stop: int) -> int:
        return END_OF_SHARD + sum(stored_size(int(size * growth)) for size in sizes[start:stop])

    for shard in shards:
        assert shard.start < shard.stop
        assert shard.stop - shard.start == 1 or total(shard.start, shard.stop) <= shard_bytes
    for shard in shards[:-1]:
        assert total(shard.start, shard.stop + 1) > shard_bytes
