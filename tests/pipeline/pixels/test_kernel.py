"""The compiled kernel against the reference, and what it does with bytes that are not what the record says."""

import numpy as np
import pytest
import torch

from pipeline.pixels import kernel
from pipeline.pixels.jpeg.tiles import tile
from tests.helpers.images import decoded, jpeg_bytes, photograph
from tests.helpers.loaders import loaded
from tests.helpers.reference import training_image

HEIGHT, WIDTH, RESOLUTION = 150, 250, 64
JPEG = jpeg_bytes(photograph(HEIGHT, WIDTH, seed=3))
TILED = tile(JPEG)
BOX = (20, 30, 90, 70)
WINDOW = (0.0, 0.0, 90.0, 70.0)


@pytest.fixture(autouse=True)
def _ffcvs_turbojpeg() -> None:
    """Kernels find TurboJPEG's symbols once the ffcv loader is loaded."""
    loaded("ffcv")


def filled(
    stored: bytes, size: tuple[int, int] = (HEIGHT, WIDTH), is_raw: bool = False, flip: bool = False, own: bool = True
) -> tuple[np.ndarray, bool]:
    """The image that the kernel makes, over a background of 7, and whether it calls it sound."""
    out = np.full((RESOLUTION, RESOLUTION, 3), 7, np.uint8)
    sound = kernel.fill_image(own, np.frombuffer(stored, np.uint8), is_raw, *size, BOX, WINDOW, flip, False, out)
    return out, bool(sound)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("form", ["tiled", "whole", "raw"])
def test_an_image_is_that_of_the_reference(form: str, flip: bool, own: bool) -> None:
    stored = {"tiled": TILED, "whole": JPEG, "raw": decoded(JPEG).tobytes()}[form]
    out, sound = filled(stored, is_raw=form == "raw", flip=flip, own=own)
    image = torch.from_numpy(decoded(JPEG).copy()).permute(2, 0, 1)
    expected = training_image(image, BOX, flip, (RESOLUTION, RESOLUTION)).permute(1, 2, 0).numpy()
    assert sound
    assert np.abs(out.astype(int) - expected).max() <= 1


def test_only_the_tiles_under_the_box_are_decoded() -> None:
    part, top, left, least_size, sound = kernel.cut_tiles(np.frombuffer(TILED, np.uint8), HEIGHT, WIDTH, BOX)
    assert sound
    assert len(part) < 0.7 * len(TILED)
    assert least_size == (top + BOX[2], left + BOX[3])
    whole, *place, least_size, _ = kernel.cut_tiles(np.frombuffer(JPEG, np.uint8), HEIGHT, WIDTH, BOX)
    assert (len(whole), place, least_size) == (len(JPEG), [*BOX[:2]], (HEIGHT, WIDTH))


def altered(jpeg: bytes) -> bytes:
    """With another quantization step, which no decoder would notice."""
    place = jpeg.index(b"\xff\xdb") + 10
    return jpeg[:place] + bytes([jpeg[place] ^ 1]) + jpeg[place + 1 :]


@pytest.mark.parametrize(
    ("stored", "size"),
    [
        (JPEG[: len(JPEG) // 2], (HEIGHT, WIDTH)),
        (TILED[:200], (HEIGHT, WIDTH)),
        (b"no JPEG", (HEIGHT, WIDTH)),
        (JPEG, (HEIGHT + 1, WIDTH)),
        (JPEG, (HEIGHT, WIDTH - 1)),
        (jpeg_bytes(photograph(60, 60, seed=0)), (HEIGHT, WIDTH)),
        (altered(TILED), (HEIGHT, WIDTH)),
    ],
    ids=["truncated", "headers", "none", "higher", "narrower", "smaller", "altered"],
)
@pytest.mark.parametrize("own", [False, True])
def test_what_is_not_as_recorded_is_reported_and_leaves_its_place_alone(
    stored: bytes, size: tuple[int, int], own: bool
) -> None:
    out, sound = filled(stored, size, own=own)
    assert not sound
    assert (out == 7).all()
