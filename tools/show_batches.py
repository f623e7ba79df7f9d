"""Draw training images as the model sees them: `python tools/show_batches.py --data DST --recipe NAME`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.showing.batches import ShowSettings, show

if __name__ == "__main__":
    sys.exit(run_command(show, ShowSettings, default=ShowSettings.starting_point))
