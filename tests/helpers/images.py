"""Photograph-like images for the tests, drawn from a seed, and JPEG files of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [H, W, 3]: smooth colours, a few sharp edges and some grain, so that JPEG works as on a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (height // 32 + 3, width // 32 + 3, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    y, x = np.mgrid[:height, :width]
    for _ in range(4):
        angle = rng.uniform(0, 2 * np.pi)
        offset = (x - rng.uniform(0, width)) * np.cos(angle) + (y - rng.uniform(0, height)) * np.sin(angle)
        smooth[offset > 0] += rng.uniform(-50, 50, 3)
    smooth += rng.normal(0, 3, (height, width, 1))
    pixels: np.ndarray = np.clip(smooth, 0, 255).round().astype(np.uint8)
    return pixels


def write_training_images(root: Path, jpeg: bytes, count: int) -> Path:
    """Write a JPEG so many times below train/, in two class folders. Returns `root`."""
    for number in range(count):
        path = root / "train" / f"n0000000{number % 2}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg)
    return root


def jpeg_bytes(image: np.ndarray, mode: str = "RGB", **options: Any) -> bytes:
    """The image as a JPEG of a PIL mode; `options` are those of PIL's JPEG writer."""
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def decoded(jpeg: bytes) -> np.ndarray:
    """A JPEG decoded by PIL, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


def varied_jpeg(number: int, seed: int) -> bytes:
    """One of the kinds of JPEG that ImageNet mixes, by its number; 60 to 260 pixels a side, half of them odd."""
    rng = np.random.default_rng([seed, number])
    height, width = rng.integers(60, 261, 2).tolist()
    image = photograph(height, width, int(rng.integers(1 << 31)))
    kinds: tuple[dict[str, Any], ...] = (
        {"subsampling": "4:2:0"},
        {"subsampling": "4:4:4"},
        {"mode": "L"},
        {"subsampling": "4:2:2"},
        {"subsampling": "4:2:0", "progressive": True},
        {"subsampling": "4:2:0", "exif": turned()},
        {"subsampling": "4:2:0", "restart_marker_rows": 1},
    )
    return jpeg_bytes(image, quality=int(rng.integers(75, 96)), **kinds[number % len(kinds)])


def three_to_one_jpeg(height: int, width: int) -> bytes:
    """Solid grey, luma sampled 3x1, which JPEG allows and torchvision decodes, but TurboJPEG refuses."""
    data = bytearray(jpeg_bytes(np.full((height, width, 3), 128, np.uint8), subsampling="4:4:4"))
    data[data.index(b"\xff\xc0") + 11] = 0x31
    scan = data.index(b"\xff\xda")
    header = bytes(data[: scan + 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")])
    mcus = -(-width // 24) * -(-height // 8)
    # DC difference 0 and end of block: three luma and two chroma blocks.
    bits = (("00" + "1010") * 3 + ("00" + "00") * 2) * mcus
    bits += "1" * (-len(bits) % 8)
    return header + int(bits, 2).to_bytes(len(bits) // 8, "big") + b"\xff\xd9"


def turned() -> Image.Exif:
    """EXIF data that asks viewers to rotate the image by 90 degrees. Training ignores it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif
