"""Train or evaluate a classifier: `python train/run.py --data DST --model NAME --loader NAME --nproc N`."""

import os
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from torch.distributed.elastic.multiprocessing.errors import record

from pipeline.cli import EXIT_BAD_INPUT, EXIT_FAILURE, run_command
from pipeline.errors import InputError
from train import launch, loop, recipes
from train.config import TrainConfig
from train.trainer import NonFiniteLossError


def main(config: TrainConfig) -> dict[str, Any] | None:
    """Start --nproc processes, or be one of them. Returns the result on the main rank of a run."""
    if launch.is_worker():
        return _work(config)
    loop.check(config)
    if config.nproc > 1 or config.nnodes > 1:
        launch.launch(config)
        return None
    try:
        return loop.run(config, launch.World())
    except NonFiniteLossError as error:
        sys.exit(f"error: {error}")


def _work(config: TrainConfig) -> dict[str, Any] | None:
    work = record(loop.run)  # an exception reaches the launcher through a file
    try:
        return work(config, launch.world_from_environment(config))
    except (InputError, NonFiniteLossError) as error:
        if launch.reports_to_parent():  # at once, before the other ranks notice and fail too
            os._exit(EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_FAILURE)
        raise


if __name__ == "__main__":
    sys.exit(run_command(main, TrainConfig, default=recipes.starting_point))
