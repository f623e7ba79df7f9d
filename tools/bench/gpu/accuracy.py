"""A real training to an accuracy, by the command that a user types. It is stopped when the part's time is up, with a
checkpoint, and resumed by the next call."""

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.cli import parse
from pipeline.storage.split import open_split
from tools.bench.gpu.data import data_of
from tools.bench.gpu.record import Figure, Measurement, Record, measure_all
from tools.bench.gpu.settings import GpuSettings
from tools.bench.gpu.verdicts import trained_rate
from train.config import TrainConfig
from train.inputs import IMAGENET_CLASSES
from train.metrics import read_metrics
from train.recipes import RECIPES, starting_point

ROOT = Path(__file__).resolve().parents[3]

RECIPE = "ffcv-rn18-16"
"""ResNet-18 in 16 epochs of ImageNet, on one GPU: published with its accuracy and its duration, and the shortest."""

SMALL_DATA = (
    "--model", "torchvision/resnet18", "--resolution", 64, "--batch-size", 32, "--epochs", 6, "--warmup-epochs", 1,
    "--lr", 0.02, "--label-smoothing", 0.1, "--amp", "bf16",
)  # fmt: skip
"""The demo's run, for data of fewer classes than ImageNet."""

TINY = (
    "--model", "torchvision/squeezenet1_1", "--resolution", 32, "--batch-size", 4, "--epochs", 1, "--warmup-epochs", 0,
)  # fmt: skip

STOPPING_S = 45.0
"""What stopping may take: a step, a checkpoint, and the end of the loader's processes."""

WITHOUT_LOADING, RUN = "rate without loading", "training"


def measure(record: Record) -> None:
    """The part."""
    settings = record.settings
    flags = flags_of(settings)
    measure_all(record, [Measurement(names=(WITHOUT_LOADING,), function=ceiling, arguments=(settings, flags))])
    if record.figures.get(RUN, {}).get("finished"):
        return
    if record.seconds_left < 2 * STOPPING_S:
        record.leave_out(RUN, f"no time left of --seconds {settings.seconds:.0f}; call again")
        return
    run_dir = settings.out / "accuracy"
    if RUN not in record.figures:
        shutil.rmtree(run_dir, ignore_errors=True)
    before_s = record.figures.get(RUN, {}).get("seconds", 0.0)
    started = time.monotonic()
    code, result = run_for(record.seconds_left - STOPPING_S, [*flags, "--run-dir", run_dir, "--resume", "auto"])
    figure = progress(run_dir) | {
        "finished": code == 0,
        "seconds": round(before_s + time.monotonic() - started, 1),
        "flags": " ".join(map(str, flags)),
        **({"published_top1": float(RECIPES[RECIPE].top1)} if RECIPE in flags else {}),
        **({"result": result} if result else {}),
    }
    record.add(RUN, figure)
    if code == 128 + signal.SIGTERM:
        record.left_out[RUN] = f"stopped after {figure['epochs']:.2f} epochs; call again to resume"
        record.write()
    elif code:
        record.left_out[RUN] = f"train/run.py ended with exit code {code}"
        record.write()


def flags_of(settings: GpuSettings) -> list[Any]:
    """The run, as flags of train/run.py."""
    data = data_of(settings).whole
    common = ["--data", data, "--device", settings.device]
    if settings.quick:
        return [*common, *TINY]
    if len(open_split(data, "train").classes) < IMAGENET_CLASSES:
        return [*common, *SMALL_DATA]
    return [*common, "--recipe", RECIPE]


def ceiling(settings: GpuSettings, flags: list[Any], names: tuple[str, ...]) -> Iterator[Figure]:
    """What the run would reach without loading."""
    words = [str(flag) for flag in flags]
    config = parse(TrainConfig, words, starting_point(words))
    yield {"images_per_s": trained_rate(config, "synthetic", settings.sizes.steps)}


def run_for(seconds: float, flags: list[Any]) -> tuple[int, dict[str, Any] | None]:
    """Train, for so many seconds at most. Returns the exit code, and the result if the run has come to its end."""
    command = [sys.executable, str(ROOT / "train" / "run.py"), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output = _output_within(process, seconds)
    finally:
        process.kill()
        process.wait()
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return code, (json.loads(output.splitlines()[-1])["result"] if code == 0 else None)


def _output_within(process: subprocess.Popen[str], seconds: float) -> str:
    """What a run prints. After so many seconds it is asked to stop, and saves a checkpoint; if it does not, it is
    killed."""
    for timeout, end in ((seconds, process.terminate), (STOPPING_S, process.kill)):
        try:
            return process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            end()
    return process.communicate()[0]


def progress(run_dir: Path) -> Figure:
    """How far a run is: its evaluations, its rate, and the share of the time that it waited for data."""
    rows = list(read_metrics(run_dir)) if (run_dir / "metrics.jsonl").exists() else []
    trained = [row for row in rows if row["kind"] == "train"]
    waits = [row["data_wait"] for row in trained]
    last = trained[-1] if trained else {"epoch": 0.0}
    evaluations = [
        {"epoch": row["epoch"], **{name: round(row[name], 3) for name in ("top1", "top5")}}
        for row in rows
        if row["kind"] == "eval"
    ]
    return {
        "epochs": last["epoch"],
        "images_per_s": last.get("images_per_s"),
        "data_wait": round(statistics.median(waits), 4) if waits else None,
        "data_wait_max": round(max(waits), 4) if waits else None,
        "evaluations": evaluations,
        "top1": evaluations[-1]["top1"] if evaluations else None,
    }
