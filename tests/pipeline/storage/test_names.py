"""Many texts in one block of memory."""

import os
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.names import Names

# Names as the system returns them: any bytes but 0, those that are not UTF-8 as lone surrogates.
NAMES = st.lists(st.binary(min_size=1, max_size=20).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"x"))))


@given(NAMES)
def test_names_are_returned_as_they_were(texts: list[str]) -> None:
    names = Names(texts)
    assert list(names) == texts
    assert [names[index] for index in range(len(names))] == texts
    assert list(names.between(1, len(texts))) == texts[1:]
    assert list(pickle.loads(pickle.dumps(names))) == texts


@given(st.data())
def test_selected_names_are_in_the_order_asked_for(data: st.DataObject) -> None:
    texts = data.draw(NAMES.filter(bool))
    positions = data.draw(st.lists(st.integers(0, len(texts) - 1)))
    selected = Names(texts).select(np.array(positions, np.int64))
    assert list(selected) == [texts[position] for position in positions]


def test_many_names_are_selected_in_pieces() -> None:
    names = Names(map(str, range(200_000)))
    order = np.random.default_rng(0).permutation(200_000)
    assert list(names.select(order)) == list(map(str, order.tolist()))


def test_position_outside_is_an_error() -> None:
    names = Names(["a", "b"])
    for index in (-1, 2):
        with pytest.raises(IndexError):
            names[index]


def test_a_name_takes_its_bytes_and_eight_more() -> None:
    names = Names(f"n01440764_{number:05d}.JPEG" for number in range(10_000))
    assert sys.getsizeof(names._block) + names._ends.nbytes < 10_000 * (20 + 9)
