"""What loaders state about themselves, and that a new file is all that a new loader takes."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import loaders
from pipeline.errors import InputError
from pipeline.storage.split import Split, open_split
from tests.helpers.loaders import loaded
from tests.pipeline.loaders.test_contract import spec_of
from tools.profiling.loader_parts import measure_parts

CONSTANT = """
import time
from itertools import repeat

import torch

from ..contract import Batch, Loader, LoaderFacts, LoaderSpec

FACTS = LoaderFacts(
    reads=("webdataset",), priority=1000, needs="a clock", timed=("read", "decode"), untimed="nothing at all"
)


class ConstantLoader:
    def __init__(self, spec: LoaderSpec) -> None:
        self._spec, self.batches_per_epoch = spec, 4

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0):
        images = torch.zeros(8, 3, resolution, resolution, dtype=torch.uint8)
        for _ in range(start_batch, self.batches_per_epoch):
            with self._spec.clock.part("decode"):
                started = time.thread_time()
                while time.thread_time() - started < 0.002:
                    pass
            yield Batch(images, torch.zeros(8, dtype=torch.int64), torch.arange(8))

    def close(self) -> None:
        pass


def create(spec: LoaderSpec) -> Loader:
    return ConstantLoader(spec)
"""


AddLoader = Callable[[str, str], object]


@pytest.fixture
def add_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AddLoader]:
    """Puts a loader file into a directory of its own, which is searched for loaders during the test."""
    monkeypatch.setattr(loaders, "__path__", [*loaders.__path__, str(tmp_path)])
    yield lambda name, source: (tmp_path / f"{name}.py").write_text(source)
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"pipeline.loaders.{path.stem}", None)


@pytest.fixture
def constant(add_loader: AddLoader) -> None:
    """A new loader."""
    add_loader("constant", CONSTANT)


@pytest.fixture
def split(tiled_dataset: Path) -> Split:
    return open_split(tiled_dataset, "train")


@pytest.mark.usefixtures("constant")
def test_a_new_file_is_a_loader(split: Split) -> None:
    assert "constant" in loaders.names()
    assert "constant" in loaders.choices()
    assert loaders.choose(split) == ("constant", "it is installed and the data has 'webdataset' storage")
    assert [len(batch.labels) for batch in loaders.create("constant", spec_of(split)).epoch(0, 32)] == [8] * 4
    *rows, auto = loaders.table()
    assert rows[0] == ("`constant`", "shards", "a clock")
    assert auto[2].startswith("the first of `constant`, `ffcv`")


@pytest.mark.usefixtures("constant")
def test_a_new_file_is_profiled(split: Split) -> None:
    parts = measure_parts("constant", spec_of(split), 32, batches=2, rounds=1)
    assert set(parts.parts_s) == {"decode"}
    assert parts.parts_s["decode"] == pytest.approx(0.002 / 8, rel=0.5)
    assert loaders.facts("constant").untimed == "nothing at all"


def test_facts_are_read_without_the_package(split: Split, add_loader: AddLoader) -> None:
    source = CONSTANT.replace("import time", "import nonexistent")
    source = source.replace('needs="a clock"', 'package="nonexistent", install="conda install it"')
    add_loader("absent", source)
    assert loaders.facts("absent").install == "conda install it"
    with pytest.raises(InputError, match="--loader absent needs nonexistent, which is not installed: conda"):
        loaders.load("absent")
    assert "not absent: needs nonexistent, which is not installed: conda install it" in loaders.choose(split)[1]


def test_a_missing_requirement_of_the_package_is_named(add_loader: AddLoader) -> None:
    add_loader("needy", "import missing_requirement.part\n" + CONSTANT)
    with pytest.raises(InputError, match="not installed: pip install missing_requirement"):
        loaders.load("needy")


def test_a_file_without_facts_is_no_loader(add_loader: AddLoader) -> None:
    add_loader("bare", "def create(spec): ...\n")
    with pytest.raises(TypeError, match=r"bare.py: has no FACTS = LoaderFacts"):
        loaders.facts("bare")


@pytest.mark.parametrize("name", loaders.names())
def test_the_facts_of_the_source_are_those_of_the_module(name: str) -> None:
    module = loaded(name)
    assert loaders.facts(name) == module.FACTS
    assert module.FACTS.compiled == hasattr(module, "create_stepped")


def test_auto_prefers_the_fastest() -> None:
    assert loaders.by_priority() == ["ffcv", "dali", "torch", "threads", "webdataset"]


def test_the_table_has_every_loader() -> None:
    table = {name.strip("`"): reads for name, reads, _ in loaders.table()}
    assert [*table] == ["ffcv", "dali", "torch", "threads", "webdataset", "synthetic", "auto"]
    assert table["torch"] == "shards, folders, `.beton`"
    assert table["synthetic"] == "nothing"
