"""Refresh the tables in docs/ that follow from the code: `make docs`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.docs.tables import TableSettings, refresh

if __name__ == "__main__":
    sys.exit(run_command(refresh, TableSettings))
