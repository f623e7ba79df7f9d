"""Compiles the emulated device: `python build.py FOLDER`. Prints the library's path."""

import os
import sys
import sysconfig
from pathlib import Path

from torch.utils import cpp_extension

folder = Path(sys.argv[1])
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # ninja
library: str = cpp_extension.load(
    "device_emulation",
    [str(Path(__file__).with_name("device.cpp"))],
    extra_cflags=["-O0"],
    build_directory=str(folder),
    is_python_module=False,
)
print(library)
