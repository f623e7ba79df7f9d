"""What is measured of a training run."""

from dataclasses import dataclass

from tools.bench.report import Rate
from tools.profiling.loader_parts import LoaderParts

AXES = ("workers", "batch_size", "resolution", "nproc")
"""Settings that a sweep changes."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A rate and the CPU time behind it."""

    rate: Rate
    """Images per second."""
    cpu_s: float
    """CPU seconds per image, worker processes included."""
    cores_used: float
    """CPU seconds per second, all processes of the run."""
    others_cores: float
    """CPU seconds per second of all other programs on the machine."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All measurements of one loader with one setting."""

    loader: str
    model: str
    device: str
    nproc: int
    workers: int
    """Of each process."""
    batch_size: int
    """Of each process."""
    resolution: int
    cores: int
    """Of the machine."""
    memory_bytes: int
    data_bytes: int | None
    """Of the images; None for a folder or a web server."""
    windows: int
    """How often each rate was measured; fewer than asked for where the command was stopped."""
    loader_alone: Measured
    model_alone: Measured
    together: Measured
    step_s: dict[str, float]
    """Seconds per training step of rank 0, by phase."""
    transfer: Rate | None = None
    """Images per second when batches are only copied to the device; None on a CPU."""
    parts: LoaderParts | None = None
    cold_parts: LoaderParts | None = None
    """Measured after dropping the files from the page cache."""
    left_in_cache: float | None = None
    """Share of the files still in the page cache after dropping them; None if none were dropped."""
