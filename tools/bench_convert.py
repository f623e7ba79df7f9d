"""Compare the converter with FFCV's own DatasetWriter and a plain loop over webdataset's TarWriter."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from tools.bench.convert import BenchSettings, bench

if __name__ == "__main__":
    sys.exit(run_command(bench, BenchSettings))
