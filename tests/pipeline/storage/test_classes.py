"""The order of class names, and which logits of foreign weights belong to a dataset's classes."""

import pytest

from pipeline.errors import InputError
from pipeline.storage.classes import class_positions, classes_in_words, sort_classes


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["10", "2", "1", "0"], ["0", "1", "2", "10"]),
        (["n02", "n01", "n10"], ["n01", "n02", "n10"]),
        (["10", "2", "cat"], ["10", "2", "cat"]),
        (["01", "10", "2"], ["01", "2", "10"]),
        (["a", "B", "a"], ["B", "a"]),
        (["²", "10", "9"], ["10", "9", "²"]),
    ],
)
def test_numbers_are_sorted_by_value_and_other_names_as_text(names: list[str], order: list[str]) -> None:
    assert sort_classes(names) == order


@pytest.mark.parametrize(
    ("classes", "line"),
    [
        (["0", "1", "10"], "classes: 3, sorted as numbers: 0, 1, 10"),
        (["a", "b", "c", "d", "e", "f"], "classes: 6, sorted by name: a, b, c, ..., f"),
        (["b", "a"], "classes: 2, in the order of the dataset: b, a"),
    ],
)
def test_order_is_shown_in_one_line(classes: list[str], line: str) -> None:
    assert classes_in_words(classes) == line


def test_logits_of_a_subset_are_found_by_class_name() -> None:
    assert class_positions(["cat", "dog", "fish"], ["fish", "cat"]) == [2, 0]
    with pytest.raises(InputError, match=r"^class bird of the data is not among the 3 of the weights$"):
        class_positions(["cat", "dog", "fish"], ["fish", "bird"])
