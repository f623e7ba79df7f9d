"""The demo: make data, convert it, train with each installed loader, show the results.

Each step is a command that a user would type, and is printed before it runs.
"""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import loaders
from pipeline.errors import InputError
from pipeline.storage.manifest import MANIFEST
from train.curves import plot_curves

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]

AUGMENTED = (
    "--auto-augment", "rand-m9-n3-mstd0.5", "--random-erase", 0.25, "--random-erase-mode", "pixel",
    "--mixup-alpha", 0.2, "--cutmix-alpha", 1.0,
)  # fmt: skip
"""What the picture of batches shows; the demo's runs are too short to profit from it."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Make demo data, convert it, train with each installed loader."""

    dir: Path = Path("data/demo")
    """Where everything goes: images/, shards/, runs/."""
    model: str = "torchvision/resnet18"
    epochs: int = 6
    resolution: int = 64
    batch_size: int = 32


def run(*arguments: object) -> dict[str, Any]:
    """Run one of Sluice's commands and return its result. Raises InputError if it fails."""
    words = [str(argument) for argument in arguments]
    log.info("\n$ python %s", " ".join(words))
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"`python {' '.join(words)}` failed with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["result"]
    return result


def installed_loaders() -> list[str]:
    """The loaders that read data and can be imported; for others the reason is logged."""
    installed = []
    for name in loaders.names():
        try:
            loaders.load(name)
        except InputError as error:
            log.info("%s", error)
        else:
            installed.append(name)
    installed.remove("synthetic")  # its images are noise
    return installed


def demo(settings: DemoSettings) -> dict[str, Any]:
    """The command."""
    folder = settings.dir.resolve()  # commands run in the repository root
    images, shards, runs = (folder / name for name in ("images", "shards", "runs"))
    run("tools/make_demo_data.py", "--dst", images)
    if not (shards / MANIFEST).exists():
        labels = images / "val_synset_labels.txt"
        run("tools/convert_imagenet.py", "--src", images, "--dst", shards, "--val-labels", labels)
    shutil.rmtree(runs, ignore_errors=True)
    results = [train(settings, name, shards, runs / name) for name in installed_loaders()]
    batches = folder / "batches.png"
    run("tools/show_batches.py", *flags_of(settings, "torch", shards), *AUGMENTED, "--picture", batches)
    picture = folder / "curves.png"
    plot_curves([runs / result["loader"] for result in results], picture)
    log.info("\n%s\n\nloss and accuracy: %s\naugmented batches: %s", table(results), picture, batches)
    return {"loaders": results, "picture": str(picture), "batches": str(batches)}


def train(settings: DemoSettings, loader: str, shards: Path, run_dir: Path) -> dict[str, Any]:
    """Train with one loader; returns the result."""
    return run("train/run.py", *flags_of(settings, loader, shards), "--run-dir", run_dir)


def flags_of(settings: DemoSettings, loader: str, shards: Path) -> list[object]:
    """The flags of a training."""
    flags = {
        "--data": shards,
        "--model": settings.model,
        "--loader": loader,
        "--epochs": settings.epochs,
        "--resolution": settings.resolution,
        "--batch-size": settings.batch_size,
        "--warmup-epochs": 1,
        "--lr": 0.02,
        "--label-smoothing": 0.1,
        "--print-freq": 100,
    }
    return [word for flag in flags.items() for word in flag]


def table(results: list[dict[str, Any]]) -> str:
    """A row for each loader."""
    lines = [f"{'loader':<12}{'images/s':>10}{'top-1':>9}{'images evaluated':>19}"]
    lines += [
        f"{result['loader']:<12}{result['images_per_s']:>10.0f}{result['top1']:>8.2f}%{result['evaluated']:>19}"
        for result in results
    ]
    return "\n".join(lines)
