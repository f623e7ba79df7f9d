"""Measure on a GPU what was written without one, in parts of a few minutes.

    python tools/bench_gpu.py --part loaders --data data/imagenet

Each part writes its figures to a JSON file in `--out`, after each of them, with the machine, the command and the date;
called again, it continues with what is missing. `--report` prints the tables.
"""

import logging
from collections.abc import Callable
from typing import Any

from pipeline.errors import InputError
from tools.bench.gpu import accuracy, data, loaders, models, suite, tables, training, verdicts
from tools.bench.gpu.card import machine
from tools.bench.gpu.record import Record
from tools.bench.gpu.settings import DATA, PARTS, GpuSettings, Part
from tools.profiling.profile import sigterm_raises

log = logging.getLogger(__name__)

MEASURES: dict[Part, Callable[[Record], None]] = {
    "tests": suite.measure,
    "loaders": loaders.measure,
    "models": models.measure,
    "training": training.measure,
    "verdicts": verdicts.measure,
    "accuracy": accuracy.measure,
}
SOURCE, FILES = "demo data", "images"
NEEDS: dict[Part, tuple[str, ...]] = {
    "loaders": (SOURCE, FILES, "q90 images", "untiled", "tiles", "q90 tiles", "FFCV's q90"),
    "training": (SOURCE, FILES, "tiles"),
    "verdicts": (SOURCE, FILES, "tiles"),
    "accuracy": (SOURCE, data.WHOLE),
}
"""What a part needs of the data, as far as it is to be made."""


def bench(settings: GpuSettings) -> dict[str, Any]:
    """The command."""
    if settings.report:
        log.info("%s", tables.text_of(settings.out))
        return {"out": str(settings.out)}
    device = settings.torch_device()
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {settings.out}: cannot be written ({error.strerror})") from None
    facts = machine(device)
    chosen = [part for part in PARTS if part in settings.part]
    counts = {}
    with sigterm_raises():
        prepared = prepare(settings, facts, chosen)
        for part in chosen:
            record = Record(part, settings, facts)
            if missing := [name for name in NEEDS.get(part, ()) if name in prepared]:
                record.leave_out("all that is missing", f"no {missing[0]} yet ({prepared[missing[0]]})")
            else:
                MEASURES[part](record)
            counts[part] = {"figures": len(record.figures), "left_out": len(record.left_out)}
    log.info("\n%s", tables.text_of(settings.out))
    return {"out": str(settings.out), "parts": counts}


def prepare(settings: GpuSettings, facts: dict[str, str], parts: list[Part]) -> dict[str, str]:
    """Make the data that these parts need. Returns what of it is missing, and why."""
    needed = {name for part in parts for name in NEEDS.get(part, ())}
    if not needed:
        return {}
    record = Record(DATA, settings, facts)
    data.prepare(record, needed)
    return record.left_out
