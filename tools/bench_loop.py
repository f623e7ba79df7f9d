"""Compare the training loop with a bare loop of forward, backward and step, on synthetic images."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.bench.loop import BenchSettings, bench

if __name__ == "__main__":
    sys.exit(run_command(bench, BenchSettings))
