"""Files of one photograph that are no JPEGs of the common kind."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.images import jpeg_bytes, photograph

PHOTO = photograph(50, 61, seed=1)
GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))


def saved(image: Image.Image, format_name: str, **options: Any) -> bytes:
    """An image file written by PIL."""
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def png_16_bit(pixels: np.ndarray) -> bytes:
    """A PNG of uint16 [H, W, 3], which PIL does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def with_stray_bytes(jpeg: bytes, place: int = 1, stray: bytes = b"\0\x17stray") -> bytes:
    """A JPEG with bytes that belong to no segment, before the segment of this number."""
    at = 2
    for _ in range(place):
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[:at] + stray + jpeg[at:]


def animation(format_name: str) -> bytes:
    """Three frames, of which the first is the photograph."""
    frames = [Image.fromarray(photograph(50, 61, seed=seed)) for seed in (2, 3)]
    return saved(Image.fromarray(PHOTO), format_name, save_all=True, append_images=frames)


_IMAGE = Image.fromarray(PHOTO)
ODD_IMAGES = {
    "PNG": saved(_IMAGE, "PNG"),
    "palette PNG": saved(_IMAGE.quantize(256), "PNG"),
    "PNG with alpha": saved(_IMAGE.convert("RGBA"), "PNG"),
    "16-bit PNG": png_16_bit(PHOTO.astype(np.uint16) * 257),
    "GIF": saved(_IMAGE, "GIF"),
    "animated GIF": animation("GIF"),
    "animated WebP": animation("WEBP"),
    "WebP": saved(_IMAGE, "WEBP", quality=95),
    "BMP": saved(_IMAGE, "BMP"),
    "TIFF": saved(_IMAGE, "TIFF"),
    "PPM": saved(_IMAGE, "PPM"),
    "CMYK": jpeg_bytes(PHOTO, "CMYK"),
    "stray bytes": with_stray_bytes(jpeg_bytes(PHOTO)),
}
