"""Measure what ranks, images, shards and epochs cost a run before, next to and after its steps."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its store warns of each rank that ends
sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.bench.scale import ScaleSettings, bench

if __name__ == "__main__":
    sys.exit(run_command(bench, ScaleSettings))
