"""The versions that `make env` installs."""

import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.cli import run_command
from tools.environment.constraints import ConstraintsSettings, write_constraints

ROOT = Path(__file__).resolve().parents[3]
PROJECT = (ROOT / "pyproject.toml").read_text()


def constraints(path: Path) -> dict[str, Requirement]:
    """A constraints file by package name."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {str(canonicalize_name(line.name)): line for line in map(Requirement, lines)}


def dependencies() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    project, _, _ = PROJECT.partition("[build-system]")
    return [Requirement(line) for line in re.findall(r'"([A-Za-z][\w.-]*[>=]=[^"]*)"', project)]


def test_every_dependency_has_a_version_that_pyproject_allows() -> None:
    versions = constraints(ROOT / "constraints.txt")
    assert len(dependencies()) > 20
    for dependency in dependencies():
        (specifier,) = versions[canonicalize_name(dependency.name)].specifier
        assert dependency.specifier.contains(specifier.version), dependency


def test_the_installed_versions_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "constraints.txt"
    assert run_command(write_constraints, ConstraintsSettings, ["--out", str(out)]) == 0
    written = constraints(out)
    assert str(written["pytest"].specifier) == f"=={pytest.__version__}"
    assert {"ffcv", "pip", "sluice"}.isdisjoint(written)
    conditions = {name: str(line.marker) for name, line in written.items() if line.marker}
    assert all("x86_64" in condition for name, condition in conditions.items() if name.startswith("nvidia-"))
    if sys.platform == "linux":
        assert written["torch"].marker is None
