"""Training runs as processes of their own, and accidents in them at moments that a test chooses.

The processes are forked from one that has imported everything (warm.py), which saves seconds for each.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from pipeline import loaders
from pipeline.cli import run_command
from pipeline.errors import InputError
from tests.helpers.scripts import ROOT, abort
from train import recipes
from train.config import TrainConfig
from train.loop import Trainer
from train.run import main
from train.stopping import StopRequests

SECONDS = 240
KILLED = -signal.SIGKILL
EVERYTHING = [
    "--model", "pyramidnet", "--model-kwargs", "depth=14", "alpha=8", "drop_rate=0.5",
    "--resolution", 32, "--progressive-resize", "1:40", "--batch-size", 4, "--accumulate", 2, "--workers", 2,
    "--epochs", 3, "--warmup-epochs", 1, "--lr", 0.1, "--nesterov", "--norm-weight-decay", 0, "--clip-grad-norm", 5,
    "--label-smoothing", 0.1, "--mixup-alpha", 0.4, "--cutmix-alpha", 1, "--model-ema", "--model-ema-decay", 0.9,
    "--amp", "fp16", "--checkpoint-every", 2, "--log-indices",
]  # fmt: skip
"""Flags of a run with every feature that has a state, and a network with BatchNorm and dropout: 10 batches of 4 images
in 5 steps an epoch."""


@dataclass(frozen=True)
class Accident:
    """Something happens in a process when a function is called for the `count`-th time; see ACCIDENTS."""

    moment: str
    count: int


def run_process(arguments: Sequence[object], log: Path, accident: Accident | None = None) -> int:
    """Run train/run.py in a process, its output in the file `log`. Returns the exit code, -N for death by signal N."""
    return _exit_codes([_start(arguments, log, accident, {})], log)[0]


def run_ranks(size: int, arguments: Sequence[object], log: Path, accident: Accident | None = None) -> list[int]:
    """Run train/run.py in `size` processes with RANK and WORLD_SIZE; the accident happens in the last one. Returns
    their exit codes."""
    environment = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    last = size - 1
    processes = [
        _start(arguments, log, accident if rank == last else None, {**environment, "RANK": str(rank)})
        for rank in range(size)
    ]
    return _exit_codes(processes, log)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(
    arguments: Sequence[object], log: Path, accident: Accident | None, environment: dict[str, str]
) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.warm"])
    environment = {**os.environ, **environment}  # the process that forks has what stood there when it was started
    process = context.Process(target=_train, args=([*map(str, arguments)], log, accident, environment))
    with pytest.MonkeyPatch.context() as patch:
        # The process that forks does not inherit sys.path.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
        process.start()
    return process


def _exit_codes(processes: Sequence[BaseProcess], log: Path) -> list[int]:
    end = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    if alive := [process.pid for process in processes if process.pid is not None and process.is_alive()]:
        abort(*alive)
        raise AssertionError(f"{len(alive)} processes still ran after {SECONDS} s: {log.read_text()}")
    return [process.exitcode for process in processes if process.exitcode is not None]


def _train(arguments: list[str], log: Path, accident: Accident | None, environment: dict[str, str]) -> None:
    os.setpgrp()
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # for the loaders' workers, as in a process that a user starts
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    torch.set_num_threads(1)  # faster for small networks, and less affected by other processes of the machine
    if accident:
        ACCIDENTS[accident.moment](accident.count)
    sys.exit(run_command(main, TrainConfig, arguments, recipes.starting_point))


def _on_call(owner: Any, name: str, count: int, action: Callable[..., object], after: bool = True) -> None:
    """Call `action` with the arguments of the `count`-th call of a function, after it or instead of it."""
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            return action(*arguments, **options)
        result = original(*arguments, **options)
        if calls == count:
            action(*arguments, **options)
        return result

    setattr(owner, name, counted)


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _in_a_step(count: int) -> None:
    _on_call(
        torch.amp.GradScaler, "update", count, _die
    )  # the weights are updated; schedule, averages and position are not


def _in_an_evaluation(number: signal.Signals) -> Callable[[int], None]:
    def prepare(count: int) -> None:
        original = Trainer._interruptible

        def interruptible(self: Trainer, batches: Any) -> Any:
            for position, batch in enumerate(original(self, batches), 1):
                if position == count:
                    os.kill(os.getpid(), number)
                yield batch

        Trainer._interruptible = interruptible  # type: ignore[method-assign]

    return prepare


def _in_a_write(count: int) -> None:
    def half(state: Any, file: Any) -> None:
        whole = file.name + ".whole"
        save(state, whole)
        data = Path(whole).read_bytes()
        file.write(data[: len(data) // 2])
        file.flush()
        _die()

    save = torch.save
    _on_call(torch, "save", count, half, after=False)


def _before_a_rename(count: int) -> None:
    original, calls = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal calls
        calls += str(target).endswith(".pt")
        if calls == count:
            _die()
        original(source, target)

    os.replace = replace  # type: ignore[assignment]


def _signal(number: signal.Signals) -> Callable[[int], None]:
    return lambda count: _on_call(torch.amp.GradScaler, "update", count, lambda *_, **__: os.kill(os.getpid(), number))


def _signal_before_data(count: int) -> None:
    _on_call(StopRequests, "watching", count, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def _signal_group(count: int) -> None:
    _on_call(torch.amp.GradScaler, "update", count, lambda *_, **__: os.killpg(os.getpgrp(), signal.SIGTERM))


def _kill_worker(count: int) -> None:
    def kill(*_: object, **__: object) -> None:
        workers = psutil.Process().children()
        with contextlib.suppress(psutil.NoSuchProcess):
            workers[-1].kill()

    _on_call(torch.amp.GradScaler, "update", count, kill)


def _while_opening(count: int) -> None:
    def refuse(*_: object) -> None:
        raise InputError("--data: refused on purpose")

    _on_call(loaders, "create", count, refuse, after=False)


def _at_a_fork(count: int) -> None:
    """Die at a fork while there is a process group, whose threads may hold locks."""
    os.register_at_fork(before=lambda: _die() if dist.is_initialized() else None)


ACCIDENTS: dict[str, Callable[[int], None]] = {
    "step": _in_a_step,
    "evaluation": _in_an_evaluation(signal.SIGKILL),
    "evaluation, SIGTERM": _in_an_evaluation(signal.SIGTERM),
    "write": _in_a_write,
    "rename": _before_a_rename,
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGUSR1": _signal(signal.SIGUSR1),
    "SIGTERM, then no data": _signal_before_data,
    "group": _signal_group,
    "worker": _kill_worker,
    "fork": _at_a_fork,
    "opening": _while_opening,
}
