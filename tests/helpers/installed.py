"""The package `sluice` in an environment of its own: built as a wheel, installed, with this environment's packages."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

from tests.helpers.scripts import ROOT

SOURCES = ("pipeline", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def build_wheel(folder: Path) -> Path:
    """Build the wheel in `folder` from a copy of the sources: a build leaves files next to them. Returns its path."""
    for name in SOURCES:
        source, copy = ROOT / name, folder / "sources" / name
        copy.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy)
    _run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "sources")
    (wheel,) = folder.glob("*.whl")
    return wheel


class Installed:
    """A virtual environment in `folder` with a wheel alone. Other packages come from the one that the tests run in."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
        # An editable install in the other environment would count as installed here.
        options = ["--no-deps", "--no-index", "--no-compile", "--ignore-installed"]
        _run(*PIP, "--python", self.bin / "python", "install", *options, wheel)
        self.package = site / "sluice"
        self._exchange_kernels(ROOT / "pipeline", self.package)

    def environment(self, **more: str) -> dict[str, str]:
        """Variables for its processes: those of this one, without a way to the checkout, one thread each."""
        ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {**ours, "OMP_NUM_THREADS": "1", **more}

    def start(self, *words: object, cwd: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a program of the environment; its output goes to pipes."""
        return subprocess.Popen(
            [str(self.bin / str(words[0])), *map(str, words[1:])],
            cwd=cwd,
            env=self.environment(**(variables or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def keep_kernels(self) -> None:
        """Keep what was compiled for the next tests of this checkout: it takes half a minute."""
        self._exchange_kernels(self.package, ROOT / "pipeline")

    def _exchange_kernels(self, source: Path, target: Path) -> None:
        """Copy compiled kernels of `sluice`. They are good for sources of the same size and time."""
        for installed in self.package.rglob("*.py"):
            ours = ROOT / "pipeline" / installed.relative_to(self.package)
            if installed.read_bytes() != ours.read_bytes():  # somebody is working on it
                return
            os.utime(installed, ns=(ours.stat().st_atime_ns, ours.stat().st_mtime_ns))
        for file in source.rglob("sluice.*.nb[ic]"):
            copy = target / file.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy2(file, copy.with_suffix(".copied"))
            copy.with_suffix(".copied").replace(copy)


def _run(*words: object) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
