"""A small trained model, written as a run writes it, without the time that a run takes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import models
from pipeline.contract import CPU
from pipeline.storage.split import open_split
from train.config import TrainConfig
from train.network import describe
from train.process import Process
from train.world import World


def write_checkpoint(path: Path, data: Path, model: str = "pyramidnet", **settings: Any) -> Path:
    """The checkpoint of a model of the classes of `data`, whose statistics are not the initial ones; images of 32
    pixels. Returns `path`."""
    if model == "pyramidnet":
        settings = {"model_kwargs": ("depth=14", "alpha=8"), **settings}
    config = TrainConfig(model=model, resolution=32, **settings)
    process, classes = Process(config, World(), CPU), open_split(data, "train").classes
    torch.manual_seed(7)
    classifier = models.create(config.model, len(classes), config.model_options)
    with torch.no_grad():
        for _ in range(3):  # BatchNorm's statistics
            classifier(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "model": classifier.network.state_dict(),
        "ema": None,
        "config": config.as_dict(),
        "description": asdict(describe(process, classes)),
    }
    torch.save(content, path)
    return path
