"""Where numba cannot be had: the same batches, more slowly."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.contract import MAX_DIFFERENCE
from tests.helpers import draws
from tests.helpers.runs import TINY
from tests.helpers.scripts import ROOT, result_of

WARNING = "images are decoded whole, by torchvision, several times slower"


@pytest.fixture
def without_numba(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python finds neither numba nor llvmlite."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys\nsys.modules['numba'] = sys.modules['llvmlite'] = None\n")
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def python(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_same_numbers_and_batches(
    without_numba: dict[str, str], dataset: Path, imagenet_folder: Path, tmp_path: Path
) -> None:
    done = python(without_numba, draws.__file__, tmp_path / "draws.npz", dataset, imagenet_folder)
    assert done.returncode == 0, done.stderr
    ours, theirs = draws.everything(dataset, imagenet_folder), np.load(tmp_path / "draws.npz")
    assert sorted(ours) == sorted(theirs)
    for name, array in ours.items():
        if name.endswith("images"):
            assert np.abs(array.astype(int) - theirs[name]).max() <= MAX_DIFFERENCE, name
        else:
            np.testing.assert_array_equal(array, theirs[name], name)


def test_a_run_on_folders_trains_and_says_so_once(
    without_numba: dict[str, str], imagenet_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "train").symlink_to(imagenet_folder / "train")
    (tmp_path / "val").symlink_to(imagenet_folder / "train")
    flags = ["--data", tmp_path, *TINY, "--loader", "auto", "--epochs", 1, "--run-dir", tmp_path / "run"]
    done = python(without_numba, "train/run.py", *flags, "--workers", 1)
    assert done.stderr.count(WARNING) == 1, done.stderr
    assert "loader auto: torch (" in done.stderr
    assert "top1" in result_of(done)


def test_the_converter_says_what_it_needs(without_numba: dict[str, str], tmp_path: Path) -> None:
    done = python(without_numba, "tools/convert_imagenet.py", "--src", tmp_path, "--dst", tmp_path / "dst")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "has no numba; run `make env`" in done.stderr
