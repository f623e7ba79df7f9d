"""The processes of a run, and which one this is."""

import os
import re
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from pipeline.errors import InputError
from train.config import TrainConfig

_LAUNCHERS = {  # where each says the rank, the world size, the local rank and the processes of this machine
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "mpirun": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
}  # fmt: skip

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


# What another launcher says


def find_world(config: TrainConfig) -> World | None:
    """The world as the environment of a launcher describes it: torchrun's, srun's, mpirun's, or RANK and WORLD_SIZE
    set by hand.

    None where no launcher started this process, or where it is to be one: --nproc or --nnodes under anything but
    torchrun. Raises InputError where --nproc contradicts torchrun, or where the processes cannot find each other.
    """
    elastic = is_elastic()
    if not elastic and (config.nproc > 1 or config.nnodes > 1):
        return None
    launcher = launched_by()
    if launcher is None:
        if told := [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]:
            raise InputError(f"{told[0]} {os.environ[told[0]]} is exported, and RANK and WORLD_SIZE are not both")
        return None
    world = _described(launcher, *(os.environ.get(name) for name in _LAUNCHERS[launcher]))
    if elastic and config.nproc not in (1, world.local_size):
        raise InputError(f"--nproc {config.nproc}: the launcher started {world.local_size} processes here")
    port = os.environ.get("MASTER_PORT", "")
    is_told = os.environ.get("MASTER_ADDR") and port.isdecimal() and 0 < int(port) < 1 << 16
    if (world.size > 1 or elastic) and not is_told:
        raise InputError(
            f"{launcher} started {world.size} processes: export MASTER_ADDR (the host of rank 0) and MASTER_PORT "
            "(a free port there) for them, or start one on each machine, with --nproc, --nnodes and --node-rank"
        )
    return world


def is_elastic() -> bool:
    """Whether PyTorch's launcher, ours or torchrun, started this process: as a rule it keeps a store over restarts."""
    return "TORCHELASTIC_RUN_ID" in os.environ and launched_by() == "torchrun"


def launched_by() -> str | None:
    """The launcher that started this process (ours speaks as torchrun), None where none did."""
    found = (launcher for launcher, names in _LAUNCHERS.items() if all(name in os.environ for name in names[:2]))
    return next(found, None)


def _described(launcher: str, *values: str | None) -> World:
    rank, size, local_rank, local_size = values
    if launcher == "srun":
        local_size = _tasks_of_node(local_size or "", int(os.environ.get("SLURM_NODEID", "0")))
    try:
        world = World(
            rank=int(rank or 0),
            size=int(size or 1),
            # Set by hand, they may be left out on a single machine.
            local_rank=int(local_rank or rank or 0),
            local_size=int(local_size or size or 1),
        )
        if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size):
            raise ValueError
        return world
    except ValueError:
        told = " ".join(f"{name}={value}" for name, value in zip(_LAUNCHERS[launcher], values, strict=True))
        raise InputError(f"{launcher}'s environment has no numbers where they belong: {told}") from None


def _tasks_of_node(described: str, node: int) -> str | None:
    """The tasks of a node as srun describes those of all: "2(x3),1" is 2 on each of three nodes and 1 on the last."""
    counts: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", described):
        counts += [count] * int(times or 1)
    return counts[node] if node < len(counts) else None


# In the process group


def finalize(world: World) -> None:
    """Leave the process group."""
    if world.size > 1:
        dist.destroy_process_group()


def same_on_all(value: Value, world: World) -> Value:
    """Rank 0's value on every rank. A collective call."""
    values = [value]
    if world.size > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]
