"""Make demo data, convert it, train with each installed loader, show the results."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.demonstration.demo import DemoSettings, demo

if __name__ == "__main__":
    sys.exit(run_command(demo, DemoSettings))
