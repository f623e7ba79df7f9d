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
    world = launch.find_world(config)
    if world is not None:
        return _work(config, world)
    if config.nproc > 1 or config.nnodes > 1 or config.max_restarts:
        loop.check(config)  # each process checks too, but then the error would cost starting them
        launch.launch(config, __file__, *sys.argv[1:])
        return None
    try:
        return loop.run(config, launch.World())
    except NonFiniteLossError as error:
        sys.exit(f"error: {error}")


def _work(config: TrainConfig, world: launch.World) -> dict[str, Any] | None:
    work = record(loop.run)  # an exception reaches the launcher through a file
    if not launch.reports_to_parent():
        return work(launch.as_restarted(config), world)
    launch.end_with_launcher()
    # After a failure at once and silently, before the other ranks notice and fail too: the launcher tells of it.
    try:
        return work(launch.as_restarted(config), world)
    except InputError:
        os._exit(EXIT_BAD_INPUT)
    except (Exception, KeyboardInterrupt):
        os._exit(EXIT_FAILURE)


if __name__ == "__main__":
    sys.exit(run_command(main, TrainConfig, default=recipes.starting_point))
