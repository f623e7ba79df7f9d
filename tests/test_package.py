"""The package `sluice` as a user has it: built, installed, imported from somewhere else, in other people's trainers."""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.imagenet import COUNTS
from tests.helpers.installed import Installed, build_wheel
from tests.helpers.processes import free_port
from tests.helpers.scripts import ROOT, finish, finish_all, result_of

LOOPS = ROOT / "docs" / "loops.md"
TITLES = re.findall(r"^## (.*)$", LOOPS.read_text(), re.MULTILINE)
LONGEST = 15
RUNS = 2 * len(TITLES)
SMALLER = {"resnet50": "squeezenet1_1", "batch_size=256": "batch_size=16", "range(90)": "range(1)"}

pytestmark = pytest.mark.timeout(2000)  # the first test builds, installs and compiles


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    environment = Installed(tmp_path_factory.mktemp("installed"), wheel)
    yield environment
    environment.keep_kernels()


def test_the_wheel_holds_the_data_path(wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT / "pipeline")) for path in (ROOT / "pipeline").rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", archive.read(about).decode(), re.MULTILINE)
    held = {name.removeprefix("sluice/") for name in names if name.startswith("sluice/")}
    assert held == modules | {"py.typed"}
    assert {name.partition("/")[0] for name in names} == {"sluice", about.partition("/")[0]}
    assert {"torch", "numba"} <= set(needed)
    assert {"tensorboard", "matplotlib", "lightning"}.isdisjoint(needed)


def test_the_loop_of_the_readme(installed: Installed, tiled_dataset: Path, tmp_path: Path) -> None:
    """A data directory, the lines, and nothing else. Smaller: the model, the batch and the number of epochs."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(code.splitlines()) <= 12
    for large, small in SMALLER.items():
        assert large in code
        code = code.replace(large, small)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shards").symlink_to(tiled_dataset)
    where = "import sys, sluice; print(sluice.__file__, len(loader), loader.batch, *{'pipeline'} & set(sys.modules))"
    done = finish(installed.start("python", "-c", f"{code}\n{where}", cwd=tmp_path), 900)
    assert done.stdout.splitlines()[-1:] == [f"{installed.package}/__init__.py 2 2"], done.stderr


def test_the_commands(installed: Installed, imagenet_folder: Path, tmp_path: Path) -> None:
    flags = ["--src", imagenet_folder, "--val-labels", imagenet_folder / "val_labels.txt", "--dst", "made"]
    made = result_of(finish(installed.start("sluice-convert", *flags, cwd=tmp_path), 900))
    assert (made["train"], made["val"]) == (COUNTS["train"], COUNTS["val"])
    found = result_of(finish(installed.start("sluice-verify", "made", cwd=tmp_path), 900))
    assert (found["samples"], found["problems"]) == (COUNTS["train"] + COUNTS["val"], 0)
    refused = finish(installed.start("sluice-verify", "none", cwd=tmp_path))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"error: none.*\n", refused.stderr)
    assert "tools/" not in finish(installed.start("sluice-convert", "--help", cwd=tmp_path)).stdout


# docs/loops.md


@pytest.fixture(scope="module")
def outcomes(
    installed: Installed, tiled_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Of each of two processes: for each loop of the page a digest of its weights, or what went wrong."""
    folder = tmp_path_factory.mktemp("loops")
    ports = [free_port() for _ in range(RUNS)]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "none"}
    script = ROOT / "tests" / "helpers" / "loops.py"
    processes = [
        installed.start(
            "python",
            script,
            LOOPS,
            tiled_dataset,
            folder,
            *ports,
            cwd=folder,
            variables={**world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    for done in finish_all(*processes, timeout=1500):
        assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("title", TITLES)
def test_a_loop_resumes_in_the_middle_of_an_epoch(outcomes: list[dict[str, Any]], title: str) -> None:
    first, second = (outcome.get(title, "did not run, after another one failed") for outcome in outcomes)
    assert re.fullmatch(r"[0-9a-f]{64}", first), first
    assert second == first


def test_loops_are_short() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", LOOPS.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > len(TITLES)
    assert [block for block in blocks if len(block.splitlines()) > LONGEST] == []
