"""The zoo's trainer of PnasNet5Large, by its own flags."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[3])

from tools.zoos.translation import start

if __name__ == "__main__":
    start("pnasnet5large", "imagenet_fast.py", sys.argv[1:])
