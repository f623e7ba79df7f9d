"""Measure augmentation next to torchvision's and timm's transforms."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.bench.augment import BenchSettings, bench

if __name__ == "__main__":
    sys.exit(run_command(bench, BenchSettings))
