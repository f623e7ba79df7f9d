"""Altering dataset.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.storage.manifest import MANIFEST


def change_manifest(dataset: Path, alter: Callable[[dict[str, Any]], Any]) -> None:
    """Alter the fields of a dataset.json."""
    fields = json.loads((dataset / MANIFEST).read_text())
    alter(fields)
    (dataset / MANIFEST).write_text(json.dumps(fields))
