"""numba's `njit`, and what there is instead where numba cannot be had: the same functions in plain Python.

numba has no wheels for some processors, LoongArch for one. Draws, orders and crops are then the same numbers, computed
more slowly, and the `torch` loaders decode whole images with torchvision (see pixels/plain.py). Everything else that is
compiled (tiles, the `ffcv` loader, the converter) needs numba.
"""

from collections.abc import Callable
from typing import Any

reason = ""
"""Why there is no numba, in words."""

try:
    from numba import njit as njit
except ImportError as error:
    reason = str(error).partition("\n")[0]

    def njit(*function: Callable[..., Any], **_: Any) -> Any:
        """Leaves a function as it is."""
        return function[0] if function else lambda function: function


HAS_NUMBA = not reason
