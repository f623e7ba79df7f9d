"""Contact sheets: small pictures of a dataset's images with their classes, to look at."""

import io
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from pipeline.dataset import Manifest
from pipeline.formats.beton import MODE_RAW

TILE = 150  # pixels
CAPTION, HEADING, TITLE = 38, 44, 52  # pixels in height
MARGIN, GAP, COLUMNS = 24, 12, 8
PAPER, PLACE, INK, FAINT = "#ffffff", "#eeeeee", "#202020", "#808080"


class Picture(NamedTuple):
    """An image of the contact sheet."""

    label: int | None
    thumbnail: Image.Image | None  # None where it cannot be used


def thumbnail(data: bytes, mode: int, size: tuple[int, int] | None) -> Image.Image | None:
    """A whole stored image, small; raw pixels need `size` (height, width). None where PIL cannot decode it."""
    try:
        if mode == MODE_RAW:
            assert size
            image = Image.frombytes("RGB", size[::-1], data)
        else:
            image = Image.open(io.BytesIO(data), formats=("JPEG", "MPO"))
            image.draft("RGB", (2 * TILE, 2 * TILE))
        image = image.convert("RGB")
        image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
        return image
    except (OSError, SyntaxError, ValueError):
        return None


def draw_sheet(name: str, manifest: Manifest, pictures: dict[str, dict[int, Picture]]) -> Image.Image:
    """Random images of each split, in the order of their classes, so that one among others that is of another class
    is seen."""
    columns = max(4, min(COLUMNS, max(map(len, pictures.values()))))
    heights = [HEADING + -(-len(ours) // columns) * (TILE + CAPTION) for ours in pictures.values()]
    width = 2 * MARGIN + columns * (TILE + GAP) - GAP
    sheet = Image.new("RGB", (width, TITLE + sum(heights) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    count = len(manifest.classes)
    write(draw, (MARGIN, 20), f"{name} · {count:,} class{'es' if count > 1 else ''}", 20, INK, width - 2 * MARGIN)
    top = TITLE
    for (split, ours), height in zip(pictures.items(), heights, strict=True):
        told = f"{split} · {len(ours):,} of {manifest.splits[split].samples:,} images"
        write(draw, (MARGIN, top + 14), told, 16, INK, width - 2 * MARGIN)
        by_class = sorted(ours.items(), key=lambda item: (item[1].label is None, item[1].label, item[0]))
        for place, (position, picture) in enumerate(by_class):
            row, column = divmod(place, columns)
            corner = MARGIN + column * (TILE + GAP), top + HEADING + row * (TILE + CAPTION)
            draw_picture(sheet, draw, corner, position, picture, manifest.classes)
        top += height
    return sheet


def draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    position: int,
    picture: Picture,
    classes: tuple[str, ...],
) -> None:
    """One image with its class below."""
    left, top = corner
    draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), PLACE)
    if picture.thumbnail is None:
        write(draw, (left + 8, top + TILE // 2 - 8), "cannot be used", 12, FAINT, TILE - 16)
    else:
        free = TILE - picture.thumbnail.width, TILE - picture.thumbnail.height
        sheet.paste(picture.thumbnail, (left + free[0] // 2, top + free[1] // 2))
    told = "no label" if picture.label is None else f"{classes[picture.label]} · {picture.label}"
    write(draw, (left, top + TILE + 3), told, 13, INK, TILE)
    write(draw, (left, top + TILE + 18), f"position {position:,}", 10, FAINT, TILE)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width: int) -> None:
    """Text, cut off where it is wider than `width`."""
    font = ImageFont.load_default(size)
    shown = text = "".join(letter if letter.isprintable() else "?" for letter in text)
    while shown and draw.textlength(shown, font) > width:
        text = text[:-1]
        shown = f"{text}…" if text else ""
    draw.text(at, shown, colour, font)
