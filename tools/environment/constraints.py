"""Records the versions in .venv as constraints.txt, which `make env` installs from."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

HEADER = """\
# The versions that the tests passed with; `make env` installs these. Written by `make constraints`.
# A constraint applies only where its package is installed anyway.
"""
NOT_FROM_PYPI = ("ffcv", "pip", "sluice")
"""tools/setup_env.sh builds FFCV and names its version; pip comes with Python."""
OLDEST_PYTHON = "3.10"
CUDA = ("cuda-", "nvidia-", "triton")
"""How the names of packages begin whose versions follow from PyTorch's and differ between platforms."""


@dataclass(frozen=True, kw_only=True)
class ConstraintsSettings:
    """Write the versions of all packages in .venv to a pip constraints file."""

    out: Path = Path("constraints.txt")
    """File to write."""


def write_constraints(settings: ConstraintsSettings) -> dict[str, Any]:
    """The command."""
    lines = sorted(installed_versions())
    settings.out.write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return {"packages": len(lines), "out": str(settings.out)}


def installed_versions() -> Iterator[str]:
    """A constraint for each installed package: `name==version`, and where that holds."""
    for package in metadata.distributions():
        name = canonicalize_name(package.metadata["Name"])
        if name not in NOT_FROM_PYPI:
            required_python = ",".join(package.metadata.get_all("Requires-Python") or [])
            conditions = " and ".join(_conditions(name, required_python))
            yield f"{name}=={package.version}" + (f"; {conditions}" if conditions else "")


def _conditions(name: str, required_python: str) -> Iterator[str]:
    """Elsewhere pip chooses the newest version that there is."""
    if not SpecifierSet(required_python).contains(OLDEST_PYTHON):
        yield f'python_version > "{OLDEST_PYTHON}"'
    if name.startswith(CUDA):
        yield 'sys_platform == "linux" and platform_machine == "x86_64"'
