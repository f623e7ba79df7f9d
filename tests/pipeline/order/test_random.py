"""The generator against its published numbers."""

import numpy as np
import pytest

from pipeline.order.random import philox4x32, random_words

# Random123's kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter: str, key: str, result: str) -> None:
    words = [np.uint64(int(word, 16)) for word in f"{counter} {key}".split()]
    assert [f"{word:08x}" for word in philox4x32(*words)] == result.split()


def test_words_of_a_draw_are_philox_of_sample_epoch_draw_and_seed() -> None:
    seed, epoch, sample, draw = 0x299F31D0A4093822, 0x13198A2E, 0x05A308D3243F6A88, 3
    counter = (0x243F6A88, 0x05A308D3, 0x13198A2E, 3)
    expected = philox4x32(*map(np.uint64, (*counter, 0xA4093822, 0x299F31D0)))
    assert random_words(seed, epoch, sample, draw) == expected
