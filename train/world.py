"""The processes of a run, and which one this is."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.errors import InputError, StorageError
from train.config import TrainConfig

LAUNCHER_VARIABLE = "SLUICE_LAUNCHER"
"""Set where Sluice's own launcher started this process: the launcher's process ID."""

_LAUNCHERS = {  # their variables for rank, world size, local rank and the processes of this machine
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    # Not SLURM_NTASKS: a batch script has it too.
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "mpirun": (
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
}  # fmt: skip

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""From here on, Slurm's step IDs are not those of srun's steps but of batch scripts, interactive shells and the like.
Source: SLURM_MAX_NORMAL_STEP_ID in <slurm/slurm.h>."""

Value = TypeVar("Value")


class RefusedByMainError(InputError):
    """Rank 0 found that the input cannot be used, and reports it; this is another rank."""


class FailedOnMainError(StorageError):
    """Storage failed on rank 0, which reports it; this is another rank."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0


# As another launcher describes it


def find_world(config: TrainConfig) -> World | None:
    """The world as the environment of a launcher describes it: torchrun's, srun's, mpirun's, or RANK and WORLD_SIZE
    set by hand.

    None where no launcher started this process, or where it has to be one itself: --nproc or --nnodes under anything
    but torchrun. Raises InputError where --nproc contradicts torchrun, or where the processes cannot find each other.
    """
    elastic = is_elastic()
    if not elastic and (config.nproc > 1 or config.nnodes > 1):
        return None
    launcher = launched_by()
    if launcher is None:
        for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
            if name in os.environ:
                raise InputError(f"{name} {os.environ[name]} is exported, but not {other}: export both or neither")
        return None
    world = _described(launcher, *(os.environ.get(name) for name in _LAUNCHERS[launcher]))
    if elastic and config.nproc not in (1, world.local_size):
        raise InputError(f"--nproc {config.nproc}: the launcher started {world.local_size} processes here")
    port = os.environ.get("MASTER_PORT", "")
    has_meeting_point = os.environ.get("MASTER_ADDR") and port.isdecimal() and 0 < int(port) < 1 << 16
    if (world.size > 1 or elastic) and not has_meeting_point:
        raise InputError(
            f"{launcher} started {world.size} processes: export MASTER_ADDR (the host of rank 0) and MASTER_PORT "
            "(a free port there) for them, or start one on each machine, with --nproc, --nnodes and --node-rank"
        )
    return world


def is_elastic() -> bool:
    """Whether PyTorch's launcher, ours or torchrun, started this process: it holds the store, which outlives
    restarts."""
    return "TORCHELASTIC_RUN_ID" in os.environ and launched_by() == "torchrun"


def launched_by() -> str | None:
    """The launcher that started this process (ours sets torchrun's variables); None where none did."""
    for launcher, names in _LAUNCHERS.items():
        if all(name in os.environ for name in names[:2]) and (launcher != "srun" or _is_step_of_srun()):
            return launcher
    return None


def is_ours() -> bool:
    """Whether Sluice's own launcher started this process: it reports the first failure, once."""
    return LAUNCHER_VARIABLE in os.environ


def _is_step_of_srun() -> bool:
    """Whether this is a task of srun, not of a batch script or an interactive shell, which Slurm starts itself."""
    step = os.environ.get("SLURM_STEP_ID", "0")
    return not step.isdecimal() or int(step) < _FIRST_SPECIAL_STEP


def _described(launcher: str, *values: str | None) -> World:
    rank, size, local_rank, local_size = values
    if launcher == "srun":
        local_size = _tasks_of_node(local_size or "", int(os.environ.get("SLURM_NODEID", "0")))
    try:
        world = World(
            rank=int(rank or 0),
            size=int(size or 1),
            # Where variables are set by hand, these may be missing on a single machine.
            local_rank=int(local_rank or rank or 0),
            local_size=int(local_size or size or 1),
        )
        if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size):
            raise ValueError
        return world
    except ValueError:
        variables = " ".join(f"{name}={value}" for name, value in zip(_LAUNCHERS[launcher], values, strict=True))
        raise InputError(f"{launcher}'s environment does not describe a process of a run: {variables}") from None


def _tasks_of_node(tasks_per_node: str, node: int) -> str | None:
    """The tasks of a node, from srun's notation: "2(x3),1" is 2 on each of three nodes and 1 on the last."""
    counts: list[str] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [count] * int(times or 1)
    return counts[node] if node < len(counts) else None


# In the process group


def finalize(world: World) -> None:
    """Leave the process group."""
    if world.size > 1:
        dist.destroy_process_group()


# What ranks exchange is JSON in tensors. PyTorch's collectives for objects would unpickle what they receive, and so run
# the code of anybody who managed to join the group.


def same_on_all(value: Value, world: World, source: int = 0) -> Value:
    """The value of rank `source` on every rank; something that JSON can express. A collective call."""
    if world.size == 1:
        return value
    payload = _encoded(value)
    size = torch.tensor([len(payload)], device=payload.device)
    dist.broadcast(size, source)
    payload = payload if world.rank == source else payload.new_empty(int(size))
    dist.broadcast(payload, source)
    return _decoded(payload) if world.rank != source else value


def from_main(compute: Callable[[], Value], world: World) -> Value:
    """What `compute` returns on rank 0, on every rank; something that JSON can express. A collective call.

    Where `compute` raises an InputError, rank 0 raises it, and the others RefusedByMainError; where it raises a
    StorageError, FailedOnMainError.
    """
    if not world.is_main:
        received: tuple[Any, str | None, bool] = same_on_all((None, None, False), world)
        value, text, storage_failed = received
        if text is not None:
            raise (FailedOnMainError if storage_failed else RefusedByMainError)(text)
        computed: Value = value
        return computed
    try:
        computed = compute()
    except InputError as error:
        same_on_all((None, str(error), isinstance(error, StorageError)), world)
        raise
    same_on_all((computed, None, False), world)
    return computed


def over_all(values: Sequence[float], operation: dist.ReduceOp.RedOpType, world: World) -> list[float]:
    """The sums, maxima or the like of some numbers over all ranks, as float32. A collective call.

    What ranks send and receive does not grow with their number, as it would if each received the numbers of all.
    """
    if world.size == 1:
        return list(values)
    reduced = torch.tensor(values, dtype=torch.float32, device=_device_of_group())
    dist.all_reduce(reduced, operation)
    return [float(value) for value in reduced.tolist()]


def _encoded(value: Any) -> torch.Tensor:
    """A value as uint8 [bytes], where the collectives of the group take tensors."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(_device_of_group())


def _device_of_group() -> torch.device:
    """Where the collectives of the group take tensors."""
    accelerator = torch.accelerator.current_accelerator()
    on_cpu = accelerator is None or dist.get_backend() == dist.Backend.GLOO
    return torch.device("cpu") if on_cpu or accelerator is None else accelerator


def _decoded(payload: torch.Tensor) -> Any:
    return json.loads(bytes(payload.tolist()))
