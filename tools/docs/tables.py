"""Tables of the documentation that follow from the code: models, recipes, loaders, devices, other trainers' flags.

A page holds a table between `<!-- table: NAME -->` and `<!-- end -->`. Each table comes from one registry; nothing else
in the pages repeats what the code defines.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import table as model_table
from models.table import markdown_lines
from pipeline import loaders
from tools.zoos import commands
from train import device, foreign_flags, recipes

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Refresh the tables in the documentation that follow from the code."""

    folder: Path = ROOT / "docs"
    """Folder of Markdown pages."""


def models() -> str:
    """The registry of models; parameters and multiplications are counted."""
    return "\n".join(markdown_lines(model_table.HEADER, model_table.rows(), model_table.NUMBERS))


def published_runs() -> str:
    """The recipes, with what was published of them."""
    return "\n".join(markdown_lines(recipes.HEADER, iter(recipes.rows()), recipes.NUMBERS))


def every_loader() -> str:
    """The loaders, whether their packages are installed or not."""
    return "\n".join(markdown_lines(("`--loader`", "reads", "needs"), iter(loaders.table())))


def devices() -> str:
    """The device types."""
    return "\n".join(markdown_lines(device.HEADER, iter(device.rows())))


def zoo_scripts() -> str:
    """The model zoos' shell scripts."""
    return "\n".join(markdown_lines(commands.SCRIPTS_HEADER, iter(commands.script_rows())))


def zoo_flags() -> str:
    """The flags of the model zoos' trainers."""
    rows = ((", ".join(f"`{name}`" for name in flag.names), flag.here) for flag in foreign_flags.ZOO_FLAGS)
    return "\n".join(markdown_lines(("their flag", "here"), rows))


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "recipes": published_runs,
    "loaders": every_loader,
    "devices": devices,
    "zoo-scripts": zoo_scripts,
    "zoo-flags": zoo_flags,
}

_PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(page: str) -> str:
    """A page's text with all its tables as the code has them now."""
    return _PLACE.sub(lambda place: f"{place[1]}{TABLES[place[2]]()}\n{place[3]}", page)


def refresh(settings: TableSettings) -> dict[str, Any]:
    """The command: rewrite the pages whose tables are out of date."""
    changed = []
    for path in sorted(settings.folder.glob("*.md")):
        before = path.read_text()
        if (now := refreshed(before)) != before:
            path.write_text(now)
            changed.append(path.name)
    return {"changed": changed}
