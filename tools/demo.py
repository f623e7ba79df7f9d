"""The demo: make data, convert it, train with each loader that is installed, show what came out.

Each step is a command that a user would type; it is printed before it runs.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import logging
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from pipeline import loaders
from pipeline.cli import run_command
from pipeline.dataset import MANIFEST
from pipeline.errors import InputError
from train.metrics import plot_curves

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Make demo data, convert it, train with each installed loader."""

    dir: Path = Path("data/demo")
    """Where everything goes: images/, shards/, runs/."""
    model: str = "torchvision/resnet18"
    epochs: int = 6
    resolution: int = 64
    batch_size: int = 32


def command(*arguments: object) -> dict[str, Any]:
    """Run one of Sluice's commands and return its result line. Raises InputError if it fails."""
    words = [str(argument) for argument in arguments]
    log.info("\n$ python %s", " ".join(words))
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"`python {' '.join(words)}` failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])["result"]


def installed_loaders() -> list[str]:
    """The loaders that read data and can be imported; why another one cannot is logged."""
    found = []
    for name in loaders.names():
        try:
            loaders.load(name)
        except InputError as error:
            log.info("%s", error)
        else:
            found.append(name)
    found.remove("synthetic")  # it shows the network noise
    return found


def demo(settings: DemoSettings) -> dict[str, Any]:
    """The command."""
    folder = settings.dir.resolve()  # the commands run in the repository root
    images, shards, runs = (folder / name for name in ("images", "shards", "runs"))
    command("tools/make_demo_data.py", "--dst", images)
    if not (shards / MANIFEST).exists():
        labels = images / "val_synset_labels.txt"
        command("tools/convert_imagenet.py", "--src", images, "--dst", shards, "--val-labels", labels)
    shutil.rmtree(runs, ignore_errors=True)
    results = [train(settings, name, shards, runs / name) for name in installed_loaders()]
    picture = folder / "curves.png"
    plot_curves([runs / result["loader"] for result in results], picture)
    log.info("\n%s\n\nloss and accuracy: %s", table(results), picture)
    return {"loaders": results, "picture": str(picture)}


def train(settings: DemoSettings, loader: str, shards: Path, run_dir: Path) -> dict[str, Any]:
    """One training run; the result line."""
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
        "--run-dir": run_dir,
    }
    return command("train/run.py", *(word for flag in flags.items() for word in flag))


def table(results: list[dict[str, Any]]) -> str:
    """A row for each loader."""
    lines = [f"{'loader':<12}{'images/s':>10}{'top-1':>9}{'images evaluated':>19}"]
    lines += [
        f"{result['loader']:<12}{result['images_per_s']:>10.0f}{result['top1']:>8.2f}%{result['evaluated']:>19}"
        for result in results
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(demo, DemoSettings))
