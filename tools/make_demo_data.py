"""Make a small dataset in ImageNet's layout, so that every command can be tried without ImageNet."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.demonstration.data import DemoSettings, make_demo_data

if __name__ == "__main__":
    sys.exit(run_command(make_demo_data, DemoSettings))
