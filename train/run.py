"""Train or evaluate a classifier: `python train/run.py --data DST --model NAME --loader NAME --nproc N`."""

import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Python puts train/ there, from which nothing is to be imported
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    # Read when torch is imported. Below that, PyTorch's store prints stacks of C++ for each rank that has ended.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from pipeline.requirements import ensure_installed

ensure_installed(without=("numba",))  # without it a run is slower, see pipeline/jit.py

from pipeline.cli import EXIT_BAD_INPUT, EXIT_FAILURE, run_command
from pipeline.errors import InputError
from train import inputs, job, recipes
from train.config import TrainConfig
from train.failures import explanation
from train.launch import launch, work
from train.world import FailedOnMainError, RefusedByMainError, World, find_world


def main(config: TrainConfig) -> dict[str, Any] | None:
    """Start --nproc processes, or be one of them. Returns the result on the main rank of a run."""
    world = find_world(config)
    if world is None and (config.nproc > 1 or config.nnodes > 1 or config.max_restarts):
        inputs.check(config)  # each process checks too, but would have to be started to find an error
        launch(config, __file__, *sys.argv[1:])
        return None
    try:
        return work(job.run, config, world) if world else job.run(config, World())
    except RefusedByMainError:
        sys.exit(EXIT_BAD_INPUT)
    except FailedOnMainError:
        sys.exit(EXIT_FAILURE)
    except InputError:
        raise
    except Exception as error:
        known = explanation(f"{type(error).__name__}: {error}")
        if known is None:
            raise
        sys.exit(f"error: rank {world.rank} {known}" if world else f"error: {known.removeprefix('failed: ')}")


if __name__ == "__main__":
    sys.exit(run_command(main, TrainConfig, default=recipes.starting_point))
