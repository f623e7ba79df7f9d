"""Compare Sluice's loaders with their peers: same images, same output, in turn, in one run."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.bench.loaders import BenchSettings, bench

if __name__ == "__main__":
    sys.exit(run_command(bench, BenchSettings))
