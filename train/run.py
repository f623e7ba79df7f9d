"""Train or evaluate a classifier: `python train/run.py --data DST --model NAME --loader NAME --nproc N`."""

import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from train import loop, recipes
from train.config import TrainConfig
from train.launch import launch, work
from train.trainer import NonFiniteLossError
from train.world import World, find_world


def main(config: TrainConfig) -> dict[str, Any] | None:
    """Start --nproc processes, or be one of them. Returns the result on the main rank of a run."""
    world = find_world(config)
    if world is None and (config.nproc > 1 or config.nnodes > 1 or config.max_restarts):
        loop.check(config)  # each process checks too, but then the error would cost starting them
        launch(config, __file__, *sys.argv[1:])
        return None
    try:
        return work(loop.run, config, world) if world else loop.run(config, World())
    except NonFiniteLossError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    sys.exit(run_command(main, TrainConfig, default=recipes.starting_point))
