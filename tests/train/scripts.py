"""train/run.py in processes of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--model", "torchvision/squeezenet1_1", "--resolution", "32", "--batch-size", "4", "--workers", "1"]
SMALL += ["--loader", "torch", "--device", "cpu"]


def start(
    *arguments: object, launcher: Sequence[str] = (sys.executable,), environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start train/run.py; its output goes to pipes."""
    words = [*launcher, str(ROOT / "train" / "run.py"), *map(str, arguments)]
    variables = {**os.environ, "PYTHONFAULTHANDLER": "1", **(environment or {})}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=variables)


def finish(process: subprocess.Popen[str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Wait for its end. Fails, having killed it, if that does not come."""
    return finish_all(process, timeout=timeout)[0]


def finish_all(*processes: subprocess.Popen[str], timeout: float = 120) -> list[subprocess.CompletedProcess[str]]:
    """The same for several. A failure shows what each has said and where each of its processes stands."""
    end = time.monotonic() + timeout
    try:
        told = [process.communicate(timeout=max(0, end - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        abort(*(process.pid for process in processes))
        errors = "\n\n".join(process.communicate()[1] for process in processes)
        raise AssertionError(f"not done after {timeout} s:\n{errors}") from None
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *each)
        for process, each in zip(processes, told, strict=True)
    ]


def abort(*pids: int) -> None:
    """End processes and those that they started; where faulthandler is on, each prints the stacks of its threads.

    All are stopped before: the end of one would move the next.
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


def launched(patch: pytest.MonkeyPatch) -> dist.TCPStore:
    """Let this process be the only one of a launch, by its environment. Returns the store, which is the launcher's."""
    store = dist.TCPStore("localhost", 0, is_master=True)
    told = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "localhost"}
    told |= {"MASTER_PORT": store.port, "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": True}
    for name, value in told.items():
        patch.setenv(name, str(value))
    return store


def ranks_of(launcher: subprocess.Popen[Any]) -> list[psutil.Process]:
    """The training processes that it has started, in the order of their ranks. It may have others, for an instant."""
    ranks: dict[int, psutil.Process] = {}
    for process in psutil.Process(launcher.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if rank := process.environ().get("RANK"):
                ranks[int(rank)] = process
    return [ranks[rank] for rank in sorted(ranks)]


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The result line of a run that must have gone well."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["result"]


def losses(run_dir: Path) -> list[float]:
    """The training losses in metrics.jsonl."""
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 60) -> None:
    """Wait for something that a running process does."""
    end = time.monotonic() + timeout
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"not within {timeout} s"
        time.sleep(0.02)


def weights(run_dir: Path) -> dict[str, Tensor]:
    """The model in the newest checkpoint of a run."""
    newest = max((run_dir / "checkpoints").glob("step-*.pt"))
    return torch.load(newest, weights_only=True)["model"]
