"""Write a trained model in a form that other programs read: `python tools/export.py CHECKPOINT --format onnx`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.exporting.export import ExportSettings, export

if __name__ == "__main__":
    sys.exit(run_command(export, ExportSettings))
