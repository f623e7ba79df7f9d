"""Convert ImageNet to WebDataset shards and FFCV `.beton` files."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings

if __name__ == "__main__":
    sys.exit(run_command(convert, ConvertSettings))
