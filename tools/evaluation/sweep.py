"""Top-1 of a finished checkpoint by the resolution of the images.

A network that was trained on random crops sees objects larger than in evaluation at the same resolution, so it is often
best at a higher one (Touvron et al., "Fixing the train-test resolution discrepancy", arXiv:1906.06423).

    python tools/sweep_resolution.py --data data/shards --checkpoint runs/a/checkpoints/best.pt --picture sides.png
"""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
from pipeline.errors import InputError
from train import checkpoint, job
from train.config import DEFAULT_DATA, TrainConfig
from train.device import DeviceName
from train.pictures import check_picture, save_figure
from train.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Evaluate a finished checkpoint at several resolutions, and draw its top-1 by resolution."""

    checkpoint: Path
    """Checkpoint of a run; its averaged weights where there are any."""
    data: str = DEFAULT_DATA
    """As --data of train/run.py; its validation images."""
    resolutions: tuple[int, ...] = (128, 160, 192, 224, 256, 288, 320)
    """Sides of the images. The shorter side before the crop is in the model's own proportion."""
    flip: bool = False
    """Evaluate with the average over mirror images as well."""
    loader: str = "auto"
    model: str | None = None
    """That of the checkpoint, where it is code of your own, which a checkpoint's word alone does not run."""
    batch_size: int = 128
    workers: int | None = None
    device: DeviceName = "auto"
    picture: Path = Path("resolutions.png")
    """PNG to write."""


def sweep(settings: SweepSettings) -> dict[str, Any]:
    """The command. Raises InputError for a file that is not a run's checkpoint."""
    if settings.model is not None:
        models.check_options(settings.model, {})  # it is the user who names this code
    check_picture(settings.picture, "--picture")
    trained = checkpoint.load(settings.checkpoint)["config"]
    model, trained_at = trained.get("model"), trained.get("resolution")
    if not isinstance(model, str) or not isinstance(trained_at, int | None):
        raise InputError(f"--checkpoint {settings.checkpoint}: its settings describe no model")
    if models.is_own(model) and model != settings.model:
        raise InputError(f"--checkpoint {settings.checkpoint}: if you trust {model}, give --model {shlex.quote(model)}")
    rows = [
        {"resolution": side, "flip": flip, **_evaluated(settings, model, side, flip)}
        for flip in ((False, True) if settings.flip else (False,))
        for side in settings.resolutions
    ]
    log.info("\n%s\n", "\n".join(table(rows)))
    draw(rows, trained_at, settings.picture)
    best = max(rows, key=lambda row: row["top1"])
    return {"resolutions": rows, "best": best["resolution"], "picture": str(settings.picture)}


def _evaluated(settings: SweepSettings, model: str, side: int, flip: bool) -> dict[str, Any]:
    config = TrainConfig(
        model=model,
        data=settings.data,
        loader=settings.loader,
        batch_size=settings.batch_size,
        workers=settings.workers,
        device=settings.device,
        evaluate=settings.checkpoint,
        analyse=False,
        val_crop=side,
        val_flip=flip,
    )
    result = job.run(config, World())
    assert result is not None, "one process is the main rank"
    return {name: result[name] for name in ("top1", "top5", "loss", "evaluated")}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A row for each evaluation, in Markdown."""
    head = ["| resolution | mirror images | top-1 | top-5 | loss |", "|---:|---|---:|---:|---:|"]
    return head + [
        f"| {row['resolution']} | {'averaged' if row['flip'] else 'no'} | {row['top1']:.2f} | {row['top5']:.2f} | "
        f"{row['loss']:.3f} |"
        for row in rows
    ]


def draw(rows: list[dict[str, Any]], trained_at: int | None, picture: Path) -> None:
    """Top-1 by resolution; a line where the training images were."""
    from matplotlib.figure import Figure  # here: it would delay the start by 0.5 s

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for flip, label in ((False, "one view"), (True, "with mirror images")):
        of_kind = [row for row in rows if row["flip"] == flip]
        if of_kind:
            axes.plot([row["resolution"] for row in of_kind], [row["top1"] for row in of_kind], "-o", label=label)
    if trained_at is not None:
        axes.axvline(trained_at, color="grey", linestyle=":", label="--resolution in training")
    axes.set(xlabel="resolution", ylabel="top-1 (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        save_figure(figure, picture)
    except OSError as error:
        raise InputError(f"--picture {picture}: cannot be written ({error.strerror})") from None
