"""Measure on a GPU: tests, loaders, models, training, the profiler's verdicts, an accuracy; in parts."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.bench.gpu.run import bench
from tools.bench.gpu.settings import GpuSettings

if __name__ == "__main__":
    sys.exit(run_command(bench, GpuSettings))
