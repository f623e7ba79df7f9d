"""train/run.py and other programs as scripts, in processes of their own."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore

from tests.helpers import waiting
from train._elastic_internals import AGENT_STORE_VARIABLE
from train.stopping import STOP_SIGNALS

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--model", "torchvision/squeezenet1_1", "--resolution", "32", "--batch-size", "4", "--workers", "1"]
SMALL += ["--loader", "torch", "--device", "cpu"]


def start(
    *arguments: object,
    launcher: Sequence[str] = (sys.executable,),
    environment: Mapping[str, str] | None = None,
    program: str = "train/run.py",
) -> subprocess.Popen[str]:
    """Start a program of the project; its output goes to pipes."""
    words = [*launcher, str(ROOT / program), *map(str, arguments)]
    variables = {**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {})}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=variables
    )
    assert process.stderr is not None
    # A run stands still where nobody reads what it prints; this is for 10,000 lines instead of 700.
    fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 1 << 20)
    return process


def finish(process: subprocess.Popen[str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Wait until the process has ended. After `timeout` seconds, kill it and fail."""
    return finish_all(process, timeout=timeout)[0]


def finish_all(*processes: subprocess.Popen[str], timeout: float = 240) -> list[subprocess.CompletedProcess[str]]:
    """Wait until all have ended. A failure shows their stderr and the stacks of all their processes."""
    end = time.monotonic() + timeout
    try:
        outputs = [process.communicate(timeout=max(0, end - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        abort(*(process.pid for process in processes))
        errors = "\n\n".join(process.communicate()[1] for process in processes)
        raise AssertionError(f"still running after {timeout} s:\n{errors}") from None
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]


def abort(*pids: int) -> None:
    """End processes and those that they started; with faulthandler, each prints the stacks of its threads.

    All are paused first: otherwise the end of one would change where the next one is.
    """
    family: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    for process in family:
        _send(process, signal.SIGSTOP)
    for process in family:
        _send(process, signal.SIGABRT)
        _send(process, signal.SIGCONT)
        if psutil.wait_procs([process], timeout=3)[1]:
            _send(process, signal.SIGKILL)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def launched(patch: pytest.MonkeyPatch) -> TCPStore:
    """Make this process the only one of a launch, by its environment. Returns the launcher's store."""
    store = TCPStore("127.0.0.1", 0, is_master=True)
    environment = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": store.port, "TORCHELASTIC_RUN_ID": "none", AGENT_STORE_VARIABLE: True}
    for name, value in environment.items():
        patch.setenv(name, str(value))
    return store


def ranks_of(launcher: subprocess.Popen[Any]) -> list[psutil.Process]:
    """The training processes of a launcher, in the order of their ranks. For a moment it may have other children."""
    ranks: dict[int, psutil.Process] = {}
    for process in psutil.Process(launcher.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if rank := process.environ().get("RANK"):
                ranks[int(rank)] = process
    return [ranks[rank] for rank in sorted(ranks)]


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The result line of a run that must have succeeded."""
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["result"]
    return result


def losses(run_dir: Path) -> list[float]:
    """The training losses in metrics.jsonl."""
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[Any], timeout: float = 200) -> None:
    """Wait for something that a running process does. Fails where that ends, or after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"did not happen within {timeout} s"
        time.sleep(0.02)


def weights(run_dir: Path) -> dict[str, Tensor]:
    """The model in the newest checkpoint of a run."""
    newest = max((run_dir / "checkpoints").glob("step-*.pt"))
    model: dict[str, Tensor] = torch.load(newest, weights_only=True)["model"]
    return model


def suspend(process: psutil.Process) -> None:
    """Stop a process, and wait until it stands still: signals that are sent before that may arrive first."""
    process.suspend()
    waiting.wait_until(lambda: process.status() == psutil.STATUS_STOPPED, timeout=60)


@contextlib.contextmanager
def held(rank: psutil.Process, timeout: float = 300) -> Iterator[None]:
    """Inside the block, a rank stands still, and the others soon wait for it: their run cannot end. At the end of the
    block it continues, once it has received a signal to stop, or ended."""
    suspend(rank)
    yield
    end = time.monotonic() + timeout
    while not _has_signal(rank):
        assert time.monotonic() < end, f"{rank} received no signal to stop within {timeout} s"
        time.sleep(0.05)
    _send(rank, signal.SIGCONT)


def _has_signal(process: psutil.Process) -> bool:
    """Whether a process that stands still has received a signal to stop, or does not stand still any more."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except FileNotFoundError:
        return True
    fields = dict(re.findall(r"^(\w+):\t(\S+)", status, re.MULTILINE))
    pending = sum(1 << number - 1 for number in STOP_SIGNALS) & int(fields["ShdPnd"], 16)
    return pending != 0 or fields["State"] != "T"
