"""Image files of every format, and the JPEGs that stand for those that decoders read differently."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.conversion.images import Handling, prepare
from pipeline.pixels.formats import BadImage, as_jpeg, is_image_data, is_image_name, without_stray_bytes
from pipeline.pixels.jpeg.headers import JpegError, read_header
from tests.helpers.images import decoded, jpeg_bytes, photograph
from tests.helpers.odd_images import ODD_IMAGES, with_stray_bytes

PHOTO = photograph(50, 61, seed=1)


@pytest.mark.parametrize("data", ODD_IMAGES.values(), ids=ODD_IMAGES.keys())
def test_odd_file_is_what_a_conversion_stores(data: bytes) -> None:
    jpeg = as_jpeg(data)
    assert jpeg == prepare(data, 0, Handling(jpeg="keep")).data
    assert read_header(jpeg).is_decodable_everywhere
    assert np.abs(decoded(jpeg).astype(int) - PHOTO).mean() < 10, "another image would be off by about 60"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"mode": "L"}])
def test_common_jpeg_is_not_changed(options: dict[str, object]) -> None:
    data = jpeg_bytes(PHOTO, **options)  # type: ignore[arg-type]
    assert as_jpeg(data) is data


def test_stray_bytes_are_removed_and_nothing_else() -> None:
    jpeg = jpeg_bytes(PHOTO)
    assert without_stray_bytes(jpeg) == jpeg
    for place in range(4):
        stray = with_stray_bytes(jpeg, place)
        with pytest.raises(JpegError, match="no marker at byte"):
            read_header(stray)
        assert without_stray_bytes(stray) == jpeg


@pytest.mark.parametrize("data", [b"", b"404 not found", b"\xff\xd8\xff\xe0\0\x10JFIF", jpeg_bytes(PHOTO)[:300]])
def test_file_that_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        as_jpeg(data)


def test_names_and_contents_of_images() -> None:
    assert all(map(is_image_name, ("a.JPEG", "a.jpg", "a.b.webp", "a.TIF", "a.gif", "a.bmp")))
    assert not any(map(is_image_name, ("._a.jpg", ".jpg", "a.txt", "jpg", "a.jpg.bak")))
    for name in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG"):
        file = io.BytesIO()
        Image.fromarray(PHOTO).save(file, name)
        assert is_image_data(file.getvalue()[:12])
    assert not is_image_data(b"RIFF1234WAVE")
