"""Measure what limits training, and say what to change."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.profiling.profile import profile
from tools.profiling.settings import ProfileSettings, starting_point

if __name__ == "__main__":
    sys.exit(run_command(profile, ProfileSettings, default=starting_point))
