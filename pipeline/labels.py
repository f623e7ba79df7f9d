"""Which class an image belongs to: the class index, and every form of validation labels.

The class index is the position of the wnid in sorted order, everywhere. Labels are joined to images by file
name or by the number in it, never by the position in a listing, so a stray file cannot shift them.
"""

import re
from pathlib import Path

from pipeline.errors import InputError

_MOVE = re.compile(r"^\s*mv\s+(\S+)\s+(\S+?)/?\s*$")
_NUMBERED = re.compile(r"_(\d+)\.[A-Za-z]+$")


def read_validation_labels(labels_file: Path) -> dict[str | int, str]:
    """The wnid of each validation image, keyed by file name (`valprep.sh`) or by number (synset list).

    Reads `valprep.sh` (its `mv IMAGE WNID/` lines; nothing is executed), or a list with one wnid a line in
    file-name order, as TensorFlow's imagenet_2012_validation_synset_labels.txt: line n belongs to the image
    numbered n. Raises InputError.
    """
    try:
        lines = labels_file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--val-labels {labels_file}: cannot be read as text ({error})") from None
    while lines and not lines[-1].strip():
        lines.pop()
    moves = [match.groups() for match in map(_MOVE.match, lines) if match]
    if moves:
        return _moves(labels_file, moves)
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"\S+", line.strip()):
            raise InputError(
                f"--val-labels {labels_file} line {number}: neither `mv IMAGE WNID/` nor one wnid: {line[:60]!r}"
            )
    if not lines:
        raise InputError(f"--val-labels {labels_file}: empty")
    return {number: line.strip() for number, line in enumerate(lines, 1)}


def _moves(labels_file: Path, moves: list[tuple[str, ...]]) -> dict[str | int, str]:
    labels: dict[str | int, str] = {}
    for image, wnid in moves:
        name = image.rpartition("/")[2]
        if labels.setdefault(name, wnid) != wnid:
            raise InputError(f"--val-labels {labels_file}: {name} is moved to {labels[name]} and to {wnid}")
    return labels


def label_images(
    images: list[Path], labels: dict[str | int, str], classes: list[str], labels_file: Path
) -> list[tuple[Path, int]]:
    """Join images and labels. Raises InputError for an image without a label or with a foreign class."""
    index = {wnid: number for number, wnid in enumerate(classes)}
    listing = []
    by_number = isinstance(next(iter(labels)), int)
    seen: dict[str | int, Path] = {}
    for image in images:
        key = _image_number(image) if by_number else image.name
        if key is None or key not in labels:
            raise InputError(f"{image}: no label for it in {labels_file}")
        if seen.setdefault(key, image) is not image:
            raise InputError(f"{image}: has the number of {seen[key].name}; remove the one that is not ImageNet's")
        wnid = labels[key]
        if wnid not in index:
            raise InputError(f"{labels_file}: {image.name} is of class {wnid}, which training lacks")
        listing.append((image, index[wnid]))
    if len(images) != len(labels):
        raise InputError(f"{labels_file}: {len(labels)} labels for {len(images)} images; is it the right file?")
    return listing


def _image_number(image: Path) -> int | None:
    """The number in `ILSVRC2012_val_00000017.JPEG`."""
    match = _NUMBERED.search(image.name)
    return int(match.group(1)) if match else None
