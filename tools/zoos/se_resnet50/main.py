"""The zoo's trainer of SE_Resnet50, by its own flags."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[3])

from tools.zoos.translation import start

if __name__ == "__main__":
    start("se_resnet50", "main.py", sys.argv[1:])
