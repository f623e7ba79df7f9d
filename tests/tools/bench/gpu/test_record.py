"""What a part keeps of its figures, and what it says of others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from tests.helpers.isolated import first_of
from tools.bench.gpu.record import Figure, Measurement, Record, measure_all
from tools.bench.gpu.settings import GpuSettings

MACHINE = {"cpu": "a", "cores": "2", "torch": "2"}


def settings(out: Path, **changed: Any) -> GpuSettings:
    return GpuSettings(**{"out": out, "device": "cpu", "quick": True, "isolate": False, **changed})


def content(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "models.json").read_text())
    return loaded


def squares(start: int, names: tuple[str, ...]) -> Iterator[Figure]:
    for number, _ in enumerate(names, start):
        yield {"square": number * number}


def half(names: tuple[str, ...]) -> Iterator[Figure]:
    yield {"square": 1}
    raise RuntimeError("no more")


def test_the_file_has_each_figure_at_once_with_machine_command_and_date(tmp_path: Path) -> None:
    record = Record("models", settings(tmp_path), MACHINE)
    seen: list[set[str]] = []

    def watching(names: tuple[str, ...]) -> Iterator[Figure]:
        for _ in names:
            seen.append(set(content(tmp_path)["figures"]))
            yield {"square": 4}

    measure_all(record, [Measurement(names=("a", "b"), function=watching)])
    assert seen == [set(), {"a"}]
    written = content(tmp_path)
    assert written["figures"].keys() == {"a", "b"}
    assert written["machine"] == MACHINE
    assert written["left_out"] == {}
    assert written["command"]
    assert written["figures"]["a"].keys() == {"square", "date"}


def test_another_call_measures_only_what_is_missing(tmp_path: Path) -> None:
    measure_all(
        Record("models", settings(tmp_path), MACHINE), [Measurement(names=("a",), function=squares, arguments=(3,))]
    )
    both = Measurement(names=("a", "b"), function=squares, arguments=(5,))
    measure_all(Record("models", settings(tmp_path), MACHINE), [both])
    assert {name: figure["square"] for name, figure in content(tmp_path)["figures"].items()} == {"a": 9, "b": 25}
    measure_all(Record("models", settings(tmp_path, again=True), MACHINE), [both])
    assert {name: figure["square"] for name, figure in content(tmp_path)["figures"].items()} == {"a": 25, "b": 36}


@pytest.mark.parametrize("changed", [{"machine": {**MACHINE, "cores": "16"}}, {"data": Path("other")}], ids=str)
def test_figures_of_another_machine_or_other_data_are_not_mixed_with_these(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    measure_all(Record("models", settings(tmp_path), MACHINE), [Measurement(names=("a",), function=half)])
    machine = changed.pop("machine", MACHINE)
    with pytest.raises(InputError, match="measured on another machine or with other settings; add --again"):
        Record("models", settings(tmp_path, **changed), machine)


def test_a_failure_leaves_out_the_rest_and_says_why(tmp_path: Path) -> None:
    record = Record("models", settings(tmp_path), MACHINE)
    measure_all(
        record,
        [Measurement(names=("a", "b"), function=half), Measurement(names=("c",), function=squares, arguments=(2,))],
    )
    assert content(tmp_path)["figures"].keys() == {"a", "c"}
    assert content(tmp_path)["left_out"] == {"b": "fails here: no more"}


def test_a_part_ends_in_time_with_what_it_has(tmp_path: Path) -> None:
    record = Record("models", settings(tmp_path, seconds=10.0, isolate=True), MACHINE)
    measure_all(
        record,
        [
            Measurement(names=("a", "b"), function=first_of, least_seconds=1.0),
            Measurement(names=("c",), function=squares, arguments=(2,)),
        ],
    )
    assert record.seconds_left > -10
    written = content(tmp_path)
    assert written["figures"].keys() == {"a"}
    assert written["left_out"] == {
        "b": "not done within --seconds 10; call again",
        "c": "no time left of --seconds 10; call again",
    }


def test_a_file_of_something_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text("[1]")
    with pytest.raises(InputError, match="not written by this command"):
        Record("models", settings(tmp_path), MACHINE)
