"""No file of train/ and models/, nor of their tests, names a private attribute of another package outside a fence."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.scripts import ROOT

FENCES = {
    "train/_elastic_internals.py", "tests/helpers/device_emulation/emulated.py", "tests/helpers/torch_files.py",
    "tests/helpers/reference_tables.py",
}  # fmt: skip
DOCUMENTED = {"_exit", "_replace"}
"""os._exit and the methods of named tuples are part of Python's documented interface."""
FILES = sorted(
    path
    for folder in ("train", "models", "tests/train", "tests/models", "tests/helpers")
    for path in (ROOT / folder).rglob("*.py")
    if str(path.relative_to(ROOT)) not in FENCES
)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


@functools.cache
def own_names() -> frozenset[str]:
    """Private names that the repository itself defines: functions, classes, attributes of self, dataclass fields."""
    names = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
    return frozenset(names)


def private_names(tree: ast.Module) -> Iterator[str]:
    """Attributes, keyword arguments and imported modules whose names are private."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg and is_private(node.arg):
            yield node.arg
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            own = all(module.split(".")[0] in ("train", "models", "pipeline", "tests", "tools") for module in modules)
            parts = [part for module in modules for part in module.split(".")]
            parts += [alias.name for alias in node.names]
            yield from () if own else filter(is_private, parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_other_packages_are_fenced(path: Path) -> None:
    foreign = set(private_names(ast.parse(path.read_text()))) - own_names() - DOCUMENTED
    assert not foreign, f"move it into one of {', '.join(sorted(FENCES))}"
