"""What the tests of all schedulers share. `make test-schedulers` installs what they need, and runs them."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.processes import run_ranks
from tests.helpers.scripts import SMALL
from tests.helpers.slurm import Cluster, cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A cluster with three nodes."""
    with cluster(3) as started:
        yield started


@pytest.fixture(scope="session")
def flags(dataset: Path) -> Callable[[int], list[object]]:
    """The flags of a run with so many processes, but for its directory: 12 images a global batch, 30 epochs of 3
    steps."""

    def of(processes: int) -> list[object]:
        several = ["--batch-size", 12 // processes, "--epochs", 30, "--print-freq", 1, "--log-indices"]
        return ["--data", dataset, *SMALL, *several]

    return of


@pytest.fixture(scope="session")
def undisturbed(
    flags: Callable[[int], list[object]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int], Path]]:
    """The directory of a run with so many processes on one machine, which nothing disturbs."""

    @cache
    def of(processes: int) -> Path:
        folder = tmp_path_factory.mktemp(f"undisturbed-{processes}")
        codes = run_ranks(processes, [*flags(processes), "--run-dir", folder / "run"], folder / "log")
        assert codes == processes * [0], (folder / "log").read_text()
        return folder / "run"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # with another number of threads, sums round differently
        yield of
