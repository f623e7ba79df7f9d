"""Evaluate a finished checkpoint at several resolutions."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.evaluation.sweep import SweepSettings, sweep

if __name__ == "__main__":
    sys.exit(run_command(sweep, SweepSettings))
