"""Sheets of images with lines below each: what a model sees, what it predicts, what it takes for something else."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pipeline.errors import InputError
from pipeline.storage.files import complete_or_absent
from pipeline.verification.contact_sheet import FAINT, GAP, INK, MARGIN, PAPER, write

log = logging.getLogger(__name__)

COLUMNS = 8
HEADING, LINE, LEAST_TILE = 40, 15, 112  # pixels
BAR = "#d6e6f5"
RIGHT, WRONG = "#14753c", "#b3261e"


class Line(NamedTuple):
    """A line below an image."""

    text: str
    colour: str = FAINT
    share: float | None = None
    """From 0 to 1: a bar behind the text."""


class Tile(NamedTuple):
    """An image of the sheet."""

    image: np.ndarray
    """uint8 [H, W, 3]."""
    lines: tuple[Line, ...]


class Section(NamedTuple):
    """Images below a heading."""

    heading: str
    tiles: list[Tile]


def draw(title: str, sections: list[Section]) -> Image.Image:
    """The sheet: a title, then each section's heading and images, in rows of at most COLUMNS."""
    tiles = [tile for section in sections for tile in section.tiles]
    width = max(LEAST_TILE, *(tile.image.shape[1] for tile in tiles))  # of a column
    columns = min(COLUMNS, max(len(section.tiles) for section in sections))
    sheet_width = 2 * MARGIN + columns * (width + GAP) - GAP
    sheet_height = MARGIN + HEADING + sum(_height(section, columns) for section in sections)
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    pen = ImageDraw.Draw(sheet)
    write(pen, (MARGIN, MARGIN // 2), title, 14, INK, sheet_width - 2 * MARGIN)
    top = HEADING
    for section in sections:
        write(pen, (MARGIN, top + 10), section.heading, 16, INK, sheet_width - 2 * MARGIN)
        for place, tile in enumerate(section.tiles):
            row, column = divmod(place, columns)
            corner = MARGIN + column * (width + GAP), top + HEADING + row * _row_height(section)
            _draw_tile(sheet, pen, corner, width, tile)
        top += _height(section, columns)
    return sheet


def _height(section: Section, columns: int) -> int:
    return HEADING + -(-len(section.tiles) // columns) * _row_height(section)


def _row_height(section: Section) -> int:
    images = max(len(tile.image) for tile in section.tiles)
    return images + 6 + LINE * max(len(tile.lines) for tile in section.tiles)


def _draw_tile(sheet: Image.Image, pen: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, tile: Tile) -> None:
    left, top = corner
    sheet.paste(Image.fromarray(np.ascontiguousarray(tile.image)), corner)
    below = top + tile.image.shape[0] + 2
    for number, line in enumerate(tile.lines):
        at = below + number * LINE
        if line.share is not None:
            pen.rectangle((left, at + 1, left + round(line.share * width), at + LINE - 1), BAR)
        write(pen, (left, at), line.text, 11 if number else 12, line.colour, width)


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """A square image, uint8 [R, R, 3], in another size. A smaller one is enlarged to whole pixels, as the model sees
    it."""
    smaller = len(image) > side
    method = Image.Resampling.LANCZOS if smaller else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side), method))


def write_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG, complete or not at all. Raises OSError."""
    with complete_or_absent(path, "wb") as file:
        picture.save(file, "PNG")
    log.info("%s", path)


def save(picture: Image.Image, path: Path, flag: str) -> None:
    """`write_png`. Raises InputError, which names the flag, where it cannot be written."""
    try:
        write_png(picture, path)
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot be written ({error.strerror})") from None
