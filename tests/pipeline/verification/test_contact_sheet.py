"""Contact sheets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.storage.manifest import Manifest
from pipeline.verification.contact_sheet import (
    CAPTION,
    COLUMNS,
    GAP,
    HEADING,
    MARGIN,
    TILE,
    TITLE,
    Picture,
    draw_sheet,
    write,
)
from tests.helpers.images import decoded, jpeg_bytes
from tests.helpers.verification import Verify


@pytest.fixture(scope="module")
def colourful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, int, int]]]:
    """A dataset with one colour per class, and the colours."""
    root = tmp_path_factory.mktemp("colourful")
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    for split, count in (("train", 5), ("val", 2)):
        for wnid, colour in zip(("n00000001", "n00000002", "n00000003"), colours, strict=True):
            folder = root / "src" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                image = np.full((60 + 40 * number, 90, 3), colour, np.uint8)
                (folder / f"{wnid}_{number}.JPEG").write_bytes(jpeg_bytes(image))
    convert(ConvertSettings(src=(root / "src",), dst=root / "shards"))
    return root / "shards", colours


def test_sheet_shows_the_images_of_each_split_by_class(
    colourful: tuple[Path, list[tuple[int, int, int]]], tmp_path: Path, verified: Verify
) -> None:
    dst, colours = colourful
    assert verified(dst, "--images", 100, "--contact-sheet", tmp_path / "sheet.png").code == 0
    pixels = decoded((tmp_path / "sheet.png").read_bytes()).astype(int)
    row = TILE + CAPTION
    train = [divmod(place, COLUMNS) for place in range(15)]
    tops = [TITLE + HEADING + line * row for line, _ in train] + [TITLE + 2 * HEADING + 2 * row] * 6
    columns = [column for _, column in train] + list(range(6))
    shown = [colour for colour in colours for _ in range(5)] + [colour for colour in colours for _ in range(2)]
    for top, column, colour in zip(tops, columns, shown, strict=True):
        left = MARGIN + column * (TILE + GAP)
        middle = pixels[top + TILE // 2, left + TILE // 2]
        assert abs(middle - colour).max() < 12
        caption = pixels[top + TILE : top + row, left : left + TILE]
        assert (caption.max(2) < 100).any(), "the class is written below"


def test_captions_name_the_class(colourful: tuple[Path, list[tuple[int, int, int]]]) -> None:
    """Two sheets that differ only in the label of one image differ only in its caption."""
    manifest = Manifest.read(colourful[0])
    image = Image.new("RGB", (TILE, TILE))
    one, other = (np.asarray(draw_sheet("x", manifest, {"val": {5: Picture(label, image)}})) for label in (1, 2))
    rows, columns = np.nonzero((one != other).any(2))
    assert TITLE + HEADING + TILE < rows.min() <= rows.max() < TITLE + HEADING + TILE + CAPTION // 2
    assert MARGIN <= columns.min() <= columns.max() < MARGIN + TILE


def test_captions_have_the_words_of_a_list_in_any_script(
    colourful: tuple[Path, list[tuple[int, int, int]]], tmp_path: Path, verified: Verify
) -> None:
    names, sheets = tmp_path / "LOC_synset_mapping.txt", []
    for words in (None, "tench, Tinca tinca", "λύκος", "волк", "волк!"):
        flags = ["--names", names] if words else []
        names.write_text(f"n00000001 {words}\nn00000009 another\n")
        done = verified(colourful[0], "--images", 9, "--contact-sheet", tmp_path / "sheet.png", *flags)
        assert done.code == 0
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert len(set(sheets)) == 5
    names.write_text("n00000009 another\n")
    done = verified(colourful[0], "--names", names)
    assert done.code == 2
    assert f"--names {names}: names none of the dataset's classes, such as n00000001" in done.error


def test_letters_that_no_font_has_are_question_marks() -> None:
    image = Image.new("RGB", (200, 30))
    for text, same in (("a\U00013000b", "a?b"), ("tab\tx", "tab?x")):
        drawn = []
        for written in (text, same):
            canvas = image.copy()
            write(ImageDraw.Draw(canvas), (0, 0), written, 13, "#ffffff", 200)
            drawn.append(canvas.tobytes())
        assert drawn[0] == drawn[1] != image.tobytes()


def test_sheet_depends_on_the_seed_but_not_on_the_workers(dataset: Path, tmp_path: Path, verified: Verify) -> None:
    sheets = []
    for seed, workers in ((0, 1), (0, 3), (1, 3)):
        flags = ["--images", 9, "--seed", seed, "--workers", workers, "--sample", 0]
        done = verified(dataset, *flags, "--contact-sheet", tmp_path / "sheet.png")
        assert done.result is not None
        assert done.result["decoded"] == 9, "images on the sheet are checked"
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
