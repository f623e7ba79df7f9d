"""What NVIDIA's driver says about the GPU: its name, its limits, and how busy its JPEG engine is."""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from tools.bench import report

FACTS = ("driver_version", "memory.total", "power.limit", "clocks.max.sm")
ENGINE = "utilization.jpeg"
"""Percent of the last fraction of a second in which the JPEG engine worked."""
SAMPLE_MS = 200


def machine(device: torch.device) -> dict[str, str]:
    """The machine that measures, with the GPU's driver and limits where the driver answers."""
    facts = report.machine(device)
    if device.type == "cuda":
        facts["cuda"] = str(torch.version.cuda)
        for name in FACTS:
            facts[name] = _answer(_query(device, name, units=True))
    return facts


def _query(device: torch.device, name: str, units: bool = False) -> list[str]:
    # By its UUID: nvidia-smi numbers all of the machine's GPUs, PyTorch those of CUDA_VISIBLE_DEVICES.
    uuid = torch.cuda.get_device_properties(device).uuid
    form = "csv,noheader" if units else "csv,noheader,nounits"
    return ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={name}", f"--format={form}"]


def _answer(command: list[str]) -> str:
    """What the driver's command says, or why it says nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {error}"
    return done.stdout.strip() if done.returncode == 0 else f"unknown: {(done.stdout + done.stderr).strip()}"


@dataclass
class Engine:
    """How busy the JPEG engine was."""

    percent: list[float] = field(default_factory=list)
    """One value for every fraction of a second."""
    unknown: str = ""
    """Why there are none."""

    @property
    def figure(self) -> dict[str, object]:
        """As part of a measurement."""
        if not self.percent:
            return {"jpeg_engine": f"unknown: {self.unknown or 'the measurement was too short'}"}
        return {"jpeg_engine_percent": max(self.percent)}


@contextlib.contextmanager
def watched_engine(device: torch.device) -> Iterator[Engine]:
    """Samples how busy the JPEG engine is while the block runs; the result is complete after it."""
    engine = Engine()
    command = [*_query(device, ENGINE), f"--loop-ms={SAMPLE_MS}"]
    try:
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        engine.unknown = str(error)
        yield engine
        return
    try:
        yield engine
    finally:
        watcher.terminate()
        output, _ = watcher.communicate()
        read_samples(output, engine)


def read_samples(output: str, engine: Engine) -> None:
    """Add what nvidia-smi printed, a value in a line."""
    for line in output.splitlines():
        try:
            engine.percent.append(float(line))
        except ValueError:  # "[N/A]", or an error
            engine.unknown = line.strip() or engine.unknown
