"""Draw loss and accuracy of one or more runs."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from train.plot import PlotSettings, plot

if __name__ == "__main__":
    sys.exit(run_command(plot, PlotSettings))
