"""Processes: one by itself, several through PyTorch's elastic launcher, or a torchrun that started us."""

import logging
import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.cli import EXIT_BAD_INPUT, EXIT_FAILURE
from pipeline.errors import InputError
from train.config import TrainConfig
from train.device import DEVICE_TYPES

_OURS = "SLUICE_LAUNCHED"

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


def is_worker() -> bool:
    """Whether a launcher (ours or torchrun) started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def reports_to_parent() -> bool:
    """Whether our own launcher waits for this process and prints its error."""
    return _OURS in os.environ


def world_from_environment(config: TrainConfig) -> World:
    """The world as torchrun's environment variables describe it. Raises InputError where --nproc contradicts
    them."""
    rank, size, local_rank, local_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    if config.nproc not in (1, local_size):
        raise InputError(f"--nproc {config.nproc}: the launcher started {local_size} processes here")
    return World(rank=rank, size=size, local_rank=local_rank, local_size=local_size)


def launch(config: TrainConfig) -> None:
    """Run this very command in --nproc processes and wait for them.

    Raises InputError with the first failing rank's message where that rank found bad input.
    """
    os.environ[_OURS] = "1"
    in_processes(config, sys.executable, str(Path(__file__).with_name("run.py")), *sys.argv[1:])


def in_processes(config: TrainConfig, entry: Callable[..., Any] | str, *arguments: Any) -> dict[int, Any]:
    """Run a program or a function in --nproc processes and wait for them; a function's results by rank.

    Raises InputError with the first failing rank's message where that rank found bad input.
    """
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // config.nproc)))
    single = config.nnodes == 1
    settings = LaunchConfig(
        min_nodes=config.nnodes,
        max_nodes=config.nnodes,
        nproc_per_node=config.nproc,
        run_id=uuid.uuid4().hex if single else "sluice",
        rdzv_backend="c10d",
        rdzv_endpoint=config.rdzv_endpoint,
        rdzv_configs={} if single else {"is_host": config.node_rank == 0},
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",  # handed on; the ranks have 30 s to save
    )
    # The launcher would print a report of every rank; _report prints the first failure.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        return elastic_launch(settings, entry)(*arguments)
    except ChildFailedError as error:
        _report(error)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def _report(error: ChildFailedError) -> NoReturn:
    # Ranks that lose their connection to the one that stopped can be seen to fail in the same second.
    bad_input = [item for item in error.failures.items() if item[1].exitcode == EXIT_BAD_INPUT]
    rank, failure = bad_input[0] if bad_input else error.get_first_failure()
    if failure.exitcode > 128:  # asked to stop by a signal of its own: it has said so
        sys.exit(failure.exitcode)
    told = failure.message["message"] if isinstance(failure.message, dict) else failure.message
    if failure.exitcode == EXIT_BAD_INPUT:
        raise InputError(told.partition("InputError: ")[2] or told) from None
    print(f"rank {rank} failed with exit code {failure.exitcode}: {told}", file=sys.stderr)
    sys.exit(EXIT_FAILURE)


def initialize(world: World, device: torch.device) -> None:
    """Join the process group, if there are several processes."""
    if world.size > 1:
        dist.init_process_group(DEVICE_TYPES[device.type].backend, device_id=device if device.type != "cpu" else None)


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
