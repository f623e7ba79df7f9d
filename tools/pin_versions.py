"""Write the versions in .venv to constraints.txt."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.environment.constraints import ConstraintsSettings, write_constraints

if __name__ == "__main__":
    sys.exit(run_command(write_constraints, ConstraintsSettings))
