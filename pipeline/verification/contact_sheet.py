"""Contact sheets: thumbnails of a dataset's images with their classes, for people to check."""

import contextlib
import functools
import io
from collections.abc import Mapping
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ..storage.beton import MODE_RAW
from ..storage.manifest import Manifest

TILE = 150  # pixels
CAPTION, HEADING, TITLE = 38, 44, 52  # pixels in height
MARGIN, GAP, COLUMNS = 24, 12, 8
PAPER, PLACE, INK, FAINT = "#ffffff", "#eeeeee", "#202020", "#808080"


FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "PingFang.ttc", "msyh.ttc")
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Picture(NamedTuple):
    """An image of the contact sheet."""

    label: int | None
    thumbnail: Image.Image | None  # None where it cannot be used


def thumbnail(data: bytes, mode: int, size: tuple[int, int] | None) -> Image.Image | None:
    """A whole stored image, reduced; raw pixels need `size` (height, width). None if PIL cannot decode it."""
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


def draw_sheet(
    name: str, manifest: Manifest, pictures: dict[str, dict[int, Picture]], titles: Mapping[str, str] | None = None
) -> Image.Image:
    """The images of each split by class, so that one in the wrong class stands out. `titles` says what classes are
    called, by their folders' names."""
    classes = tuple((titles or {}).get(one, one) for one in manifest.classes)
    columns = max(4, min(COLUMNS, max(map(len, pictures.values()))))
    heights = [HEADING + -(-len(images) // columns) * (TILE + CAPTION) for images in pictures.values()]
    width = 2 * MARGIN + columns * (TILE + GAP) - GAP
    sheet = Image.new("RGB", (width, TITLE + sum(heights) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    count = len(manifest.classes)
    write(draw, (MARGIN, 20), f"{name} · {count:,} class{'es' if count > 1 else ''}", 20, INK, width - 2 * MARGIN)
    top = TITLE
    for (split, images), height in zip(pictures.items(), heights, strict=True):
        heading = f"{split} · {len(images):,} of {manifest.splits[split].samples:,} images"
        write(draw, (MARGIN, top + 14), heading, 16, INK, width - 2 * MARGIN)
        by_class = sorted(images.items(), key=lambda item: (item[1].label is None, item[1].label, item[0]))
        for place, (position, picture) in enumerate(by_class):
            row, column = divmod(place, columns)
            corner = MARGIN + column * (TILE + GAP), top + HEADING + row * (TILE + CAPTION)
            draw_picture(sheet, draw, corner, position, picture, classes)
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
    caption = "no label" if picture.label is None else f"{classes[picture.label]} · {picture.label}"
    write(draw, (left, top + TILE + 3), caption, 13, INK, TILE)
    write(draw, (left, top + TILE + 18), f"position {position:,}", 10, FAINT, TILE)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width: int) -> None:
    """Text, cut off where it is wider than `width`."""
    font, text = _font(text, size)
    shown = text
    while shown and draw.textlength(shown, font) > width:
        text = text[:-1]
        shown = f"{text}…" if text else ""
    draw.text(at, shown, colour, font)


def _font(text: str, size: int) -> tuple[Font, str]:
    """The first font that has all letters of a text, and the text; where none has, Pillow's, and "?" for the others."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    default = _default(size)
    if all(_has(default, letter) for letter in text):
        return default, text
    for font in _installed(size):
        if all(_has(font, letter) for letter in text):
            return font, text
    return default, "".join(letter if _has(default, letter) else "?" for letter in text)


@functools.cache
def _default(size: int) -> Font:
    return ImageFont.load_default(size)


@functools.cache
def _installed(size: int) -> list[Font]:
    """The machine's own fonts for letters that Pillow's has not: Latin, Greek and Cyrillic, then Chinese, Japanese and
    Korean. Pillow looks for these files where the system keeps fonts."""
    found: list[Font] = []
    for name in FONTS:
        with contextlib.suppress(OSError):
            found.append(ImageFont.truetype(name, size))
    return found


@functools.cache  # a sheet may have 100,000 letters, but few different ones
def _has(font: Font, letter: str) -> bool:
    """Whether a font has a letter: it draws all that it has not in the same way, as it draws what nobody has."""
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
