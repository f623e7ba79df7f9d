"""A command of one of the five model zoos: `python tools/zoos/start.py MODEL COMMAND FLAGS`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.zoos.translation import start

if __name__ == "__main__":
    if len(sys.argv) < 3:
        print("error: usage: start.py MODEL COMMAND FLAGS (docs/zoos.md lists them)", file=sys.stderr)
        sys.exit(2)
    start(sys.argv[1], sys.argv[2], sys.argv[3:])
