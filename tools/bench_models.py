"""Compare the models with the implementations they replace: images per second and peak memory."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.bench.models import BenchSettings, bench

if __name__ == "__main__":
    sys.exit(run_command(bench, BenchSettings))
