"""Check a converted dataset: every checksum, count and index, and images by decoding them.

    python tools/verify_dataset.py data/shards
    python tools/verify_dataset.py data/shards --full

Every file is read once from start to end. Shards are compared with their index and, sample by sample, with the
`.beton` file: both must hold the same images and labels. Every problem is reported on a line of its own. A contact
sheet of random images with their classes is drawn, because a wrong label in the source can only be seen.
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Container
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..conversion.labels import read_class_titles
from ..errors import InputError
from ..progress import Progress
from ..storage.files import complete_or_absent
from ..storage.manifest import MANIFEST, Manifest, SplitInfo
from ..storage.remote.address import address_of
from ..storage.remote.settings import Access
from ..threads import in_order
from .checker import Checker, Outcome
from .contact_sheet import Picture, draw_sheet
from .mirror import Mirror
from .pieces import Piece, are_complete, pieces_of
from .problems import Problems
from .records import check_manifest, check_report, check_strays, read_manifest
from .settings import VerifySettings


def verify(settings: VerifySettings) -> dict[str, Any]:
    """The command. Raises InputError if anything is wrong, after all problems have been reported."""
    if not (address := address_of(settings.dst)):
        return verify_folder(settings, None)
    with tempfile.TemporaryDirectory() as folder:
        mirror = Mirror(address, Access(settings.endpoint_url, settings.io_timeout), Path(folder))
        try:
            return verify_folder(replace(settings, dst=mirror.folder, contact_sheet=settings.sheet_path), mirror)
        except InputError as error:
            raise type(error)(mirror.in_words(str(error))) from None


def verify_folder(settings: VerifySettings, mirror: Mirror | None) -> dict[str, Any]:
    """Verify a dataset directory, or the mirror of a remote one. Raises InputError as `verify`."""
    started = time.monotonic()
    dst, manifest, problems = settings.dst, read_manifest(settings.dst), Problems()
    titles = read_titles(settings, manifest)
    if settings.images:
        check_writable(settings.sheet_path)
    check_manifest(dst, manifest, problems)
    check_strays(dst, manifest, problems)
    check_report(dst, manifest, problems)
    pieces = {split: pieces_of(dst, manifest, split, problems) for split in manifest.splits}
    report(problems, mirror)
    draw = positions_to_draw(settings, manifest.splits)
    checker = Checker(dst, len(manifest.classes), positions_to_decode(settings, manifest.splits), draw)
    count, decoded, pictures = problems.count, 0, dict[str, dict[int, Picture]]()
    for split, info in manifest.splits.items():
        outcome = check_split(checker, dst, info, split, pieces[split], settings.workers, mirror)
        count, decoded = count + outcome.problems.count, decoded + outcome.decoded
        pictures[split] = outcome.pictures
    sheet = write_sheet(settings, manifest, pictures, titles) if settings.images else None
    if count:
        hint = f" ({sheet} shows the images that can be read)" if sheet else ""
        raise InputError(f"{dst}: {count} problem{'s' if count > 1 else ''}, listed above{hint}; convert again")
    infos = manifest.splits.values()
    return {
        "samples": sum(info.samples for info in infos),
        "shards": sum(len(info.shards) for info in infos),
        "bytes": sum(piece.bytes for split in pieces.values() for piece in split),
        "decoded": decoded,
        "problems": 0,
        "contact_sheet": str(sheet) if sheet else None,
        "seconds": round(time.monotonic() - started, 1),
    }


def positions_to_decode(settings: VerifySettings, splits: dict[str, SplitInfo]) -> dict[str, Container[int]]:
    """The dataset positions to decode, by split."""
    if settings.full:
        return {split: range(info.samples) for split, info in splits.items()}
    total = sum(info.samples for info in splits.values())
    chosen = sorted(random.Random(settings.seed).sample(range(total), min(settings.sample, total)))
    positions, first = dict[str, Container[int]](), 0
    for split, info in splits.items():
        positions[split] = {number - first for number in chosen if first <= number < first + info.samples}
        first += info.samples
    return positions


def positions_to_draw(settings: VerifySettings, splits: dict[str, SplitInfo]) -> dict[str, set[int]]:
    """The dataset positions on the contact sheet, by split: equally many of each, or all would be training images."""
    chosen = {}
    for number, (split, info) in enumerate(splits.items()):
        share = settings.images // len(splits) + (number < settings.images % len(splits))
        chosen[split] = {*random.Random(settings.seed + 1).sample(range(info.samples), min(share, info.samples))}
    return chosen


def report(problems: Problems, mirror: Mirror | None) -> None:
    """Print a line for each problem."""
    for line in problems.lines():
        tqdm.write(f"bad: {mirror.in_words(line) if mirror else line}", file=sys.stderr)


def check_split(
    checker: Checker,
    dst: Path,
    info: SplitInfo,
    split: str,
    pieces: list[Piece],
    workers: int,
    mirror: Mirror | None = None,
) -> Outcome:
    """Check the pieces of a split in threads; problems are reported as they are found."""
    total, problems = Outcome(), Problems()

    def check(piece: Piece) -> Outcome:
        with mirror.content_of(piece) if mirror else nullcontext():
            return checker.check(piece)

    with closing(Progress(split, sum(piece.bytes for piece in pieces), "B")) as progress:
        for piece, outcome in zip(pieces, in_order(check, pieces, workers), strict=True):
            report(outcome.problems, mirror)
            total.problems.count += outcome.problems.count
            total.bytes, total.decoded = total.bytes + outcome.bytes, total.decoded + outcome.decoded
            total.pictures |= outcome.pictures
            progress.add(piece.bytes)
    if not total.problems.count and total.bytes != info.bytes and are_complete(pieces, info):
        problems.add(dst / MANIFEST, f"the images of {split} have {total.bytes} bytes, not {info.bytes}")
        report(problems, mirror)
    total.problems.count += problems.count
    return total


def check_writable(path: Path) -> None:
    """Raises InputError now rather than after everything has been read."""
    if path.is_dir():
        raise InputError(f"--contact-sheet {path}: is a directory")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(
            f"--contact-sheet {path}: its folder is missing or not writable; name another, or none with --images 0"
        )


def read_titles(settings: VerifySettings, manifest: Manifest) -> dict[str, str]:
    """What --names calls the classes. Raises InputError."""
    if settings.names is None:
        return {}
    flag = f"--names {settings.names}"
    titles = read_class_titles(flag, settings.names)
    if not any(name in titles for name in manifest.classes):
        raise InputError(f"{flag}: names none of the dataset's classes, such as {manifest.classes[0]}")
    return titles


def write_sheet(
    settings: VerifySettings,
    manifest: Manifest,
    pictures: dict[str, dict[int, Picture]],
    titles: dict[str, str],
) -> Path:
    """Write the contact sheet. Raises InputError."""
    path = settings.sheet_path
    sheet = draw_sheet(str(settings.dst), manifest, pictures, titles)
    try:
        with complete_or_absent(path, "wb") as file:
            sheet.save(file, "PNG")
    except OSError as error:
        raise InputError(f"--contact-sheet {path}: cannot be written ({error.strerror or error})") from None
    return path
