"""Which decoder loaders use: Sluice's own for tiles, or libjpeg-turbo for everything. The pixels are the same.

On x86-64, Sluice's decoder was measured with its best and its plainest vectors: it takes less than half the time of
libjpeg-turbo. On any other processor both decode a small picture when the first loader is created; the faster one is
used. What Sluice's decoder does not know goes to libjpeg-turbo in any case.

`SLUICE_DECODER=turbojpeg` in the environment does what `--decoder turbojpeg` does, for every command and test.
"""

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any, get_args

import numpy as np
import simplejpeg

from ..contract import Decoder
from ..errors import InputError
from .jpeg.crop import crop
from .jpeg.decoder import DONE, decode_crop
from .jpeg.processor import IS_X86, VECTORS
from .jpeg.tiles import tile

_SIDE, _BOX = 384, (40, 50, 300, 290)
_RUNS = 5


def uses_own(decoder: Decoder) -> bool:
    """Whether tiles are decoded by Sluice's decoder."""
    return choose(decoder)[0]


@cache
def choose(decoder: Decoder) -> tuple[bool, str]:
    """Whether tiles are decoded by Sluice's decoder, and why in words. Decided once in a process and those that it
    forks afterwards."""
    if decoder == "turbojpeg" or _environment() == "turbojpeg":
        return False, "turbojpeg: as asked for"
    if IS_X86:
        return True, f"Sluice's own for tiles, with {VECTORS} vectors"
    own, turbojpeg = measure()
    chosen = "Sluice's own for tiles" if own < turbojpeg else "turbojpeg"
    return own < turbojpeg, f"{chosen}: a crop takes {own * 1e6:.0f} µs with Sluice's, {turbojpeg * 1e6:.0f} µs with it"


def _environment() -> str:
    """The decoder that SLUICE_DECODER names."""
    value = os.environ.get("SLUICE_DECODER", "auto")
    if value not in get_args(Decoder):
        raise InputError(f"SLUICE_DECODER={value}: there is {' and '.join(get_args(Decoder))}")
    return value


def measure() -> tuple[float, float]:
    """Seconds that a crop takes with Sluice's decoder and with libjpeg-turbo, the best of a few runs."""
    jpeg = tile(simplejpeg.encode_jpeg(_picture(), quality=95, colorsubsampling="420"))
    data, pixels = np.frombuffer(jpeg, np.uint8), np.empty((*_BOX[2:], 3), np.uint8)

    def decode_tiles() -> None:
        assert decode_crop(data, *_BOX, pixels) == DONE

    def decode_part() -> None:
        simplejpeg.decode_jpeg(crop(jpeg, _BOX)[0], fastdct=False, fastupsample=False)

    return _best(decode_tiles), _best(decode_part)


def _picture() -> np.ndarray:
    """uint8 [H, W, 3], with as much detail as a photograph has: waves of all lengths, and noise."""
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    waves = sum(np.sin((rows * turn + columns) / length) for length, turn in ((60, 0.3), (17, 2.0), (5, 0.7), (2, 1.4)))
    noise = np.random.default_rng(0).normal(0, 6, (_SIDE, _SIDE, 3))
    picture: np.ndarray = np.clip(128 + 25 * waves[..., None] + noise, 0, 255).astype(np.uint8)
    return picture


def _best(run: Callable[[], Any]) -> float:
    run()  # compiles, or loads from the cache
    seconds = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
