"""What a command needs before it can start: standard library only, and any Python 3."""

import importlib.util
import sys

OLDEST_PYTHON = (3, 10)
PACKAGES: tuple[str, ...] = (
    "numba", "numpy", "obstore", "PIL", "simplejpeg", "torch", "torchvision", "tqdm", "tyro", "webdataset",
)  # fmt: skip
"""What some command or other imports before it does anything, by import name. Where one is missing, this is not the
Python of `make env`."""
if __name__.startswith("pipeline."):
    PACKAGES += ("safetensors",)  # models/, which is not installed, imports it too
    CONVERT = "python tools/convert_imagenet.py"
else:
    CONVERT = "sluice-convert"
"""How the converter is called, in a checkout or as a package."""


_checked = False


def ensure_installed(without: tuple[str, ...] = ()) -> None:
    """Ends the process with one line, instead of a traceback, where this Python lacks what Sluice needs. The first call
    in a process counts: a command that can do without some packages calls before it imports anything else."""
    global _checked
    if _checked:
        return
    _checked = True
    missing = [name for name in PACKAGES if name not in without and importlib.util.find_spec(name) is None]
    if sys.version_info < OLDEST_PYTHON:
        reason = f"Python {sys.version.split()[0]} is older than {'.'.join(map(str, OLDEST_PYTHON))}"
    elif missing:
        reason = f"has no {', '.join(missing)}"
    else:
        return
    print(f"error: {sys.executable}: {reason}; run `make env`, then .venv/bin/python {sys.argv[0]}", file=sys.stderr)
    sys.exit(2)
