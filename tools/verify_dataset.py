"""Check a converted dataset: every checksum, count and index, and images by decoding them."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from pipeline.cli import run_command
from pipeline.verification.settings import VerifySettings
from pipeline.verification.verify import verify

if __name__ == "__main__":
    sys.exit(run_command(verify, VerifySettings))
