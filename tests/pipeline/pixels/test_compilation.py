"""What decides whether a kernel in numba's cache is still that of the source."""

from pathlib import Path
from types import ModuleType

from pipeline.pixels.compilation import digest


def module_of(path: Path, source: str) -> ModuleType:
    path.write_text(source)
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    return module


def test_a_change_in_any_source_changes_the_digest(tmp_path: Path) -> None:
    one, other = module_of(tmp_path / "one.py", "a = 1"), module_of(tmp_path / "other.py", "b = 1")
    before = digest(one, other)
    assert digest(one, other) == before
    module_of(tmp_path / "other.py", "b = 2")
    assert digest(one, other) != before
    assert digest(one) != before
