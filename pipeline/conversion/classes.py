"""Which class each image shows: labels of validation images, the class list, class indices.

The class index is the position in --classes, in the class list of a converted dataset, or else in sorted order: of
wnids and other names as text, of numbers by value.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..storage.classes import check_class_names, classes_in_words, sort_classes
from ..storage.positions import name_order
from .labels import label_images, read_validation_labels, wnid_in_name
from .listing import Images, Listing

log = logging.getLogger(__name__)

_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_\d{8}")


def join_labels(listing: Listing, labels_file: Path) -> Listing:
    """Validation images with the classes that a labels file gives them. Raises InputError if they do not match, and for
    class indices that may not count the sorted classes from 0."""
    names = [listing.images.where(index) for index in range(len(listing.images))]
    labels = label_images(names, read_validation_labels(labels_file), labels_file)
    if isinstance(labels[0], int) and 0 not in labels:
        raise InputError(
            f"{labels_file}: no image has class index 0, so it seems to count from 1, as the development kit's IDs do "
            f"in another order; give a file with the wnids, or with indices that count the sorted classes from 0"
        )
    return replace(listing, labels=list(labels))


def check_one_class_each(images: Images) -> None:
    """Raises InputError if a validation image occurs twice: it would belong to two classes."""
    seen = dict[str, int]()
    for index in range(len(images)):
        stem = images.stem(index)
        if _VALIDATION_IMAGE.fullmatch(stem) and seen.setdefault(stem, index) != index:
            raise InputError(f"{images.where(index)}: also in {images.where(seen[stem])}; remove the wrong one")


def classify(
    listings: dict[str, Listing], wanted: list[str] | None, classes_file: Path | None
) -> tuple[list[str], dict[str, Images]]:
    """The class list, and each split's images with class indices, in file-name order.

    `wanted` are the classes in `classes_file` (--classes), in their order; images of other classes are left out.
    Without them, the first split has all classes, and another class in a later split raises InputError.
    """
    listings = _with_wnids(listings)
    first = next(iter(listings))
    meanings, wnids = dict[str, list[str] | None](), dict[str, list[str]]()
    for split, listing in listings.items():
        of_first = sort_classes(wnids[first]) if wnids and meanings[first] is None else None
        meanings[split] = _index_meaning(listing, wanted or of_first)
        wnids[split] = _wnids(listing, meanings[split])
    # A class index keeps its meaning in the source, even if no image has it.
    classes = list(wanted or meanings[first] or sort_classes(wnids[first]))
    check_class_names(listings[first].description, classes)
    log.info("%s", classes_in_words(classes, f"in the order of {classes_file}" if wanted else None))
    if wanted and (missing := sorted({*wanted} - {*wnids[first]})):
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        log.warning("--classes %s: %d have no %s images: %s", classes_file, len(missing), first, names)
    index, splits = {wnid: number for number, wnid in enumerate(classes)}, {}
    for split, listing in listings.items():
        labels = np.array([index.get(wnid, -1) for wnid in wnids[split]], np.int32)
        if not wanted and (labels < 0).any():
            at = int(np.argmin(labels))
            raise InputError(
                f"{listing.images.where(at)}: its class {wnids[split][at]} is not among the {len(classes)} of {first}; "
                f"remove it, or name the classes with --classes FILE"
            )
        splits[split] = _with_a_class(split, replace(listing.images, labels=labels), len(classes), classes_file)
    return classes, splits


def _with_a_class(split: str, images: Images, num_classes: int, classes_file: Path | None) -> Images:
    """The images that have a class index. Raises InputError if there are none."""
    kept = np.flatnonzero(images.labels >= 0)
    if not len(kept):
        raise InputError(f"--classes {classes_file}: no {split} image is of these classes")
    if len(kept) < len(images):
        log.info("%s: %d images are of the %d classes of %s", split, len(kept), num_classes, classes_file)
    images = images.select(kept)
    return images if images.read_whole else images.select(name_order(images.names, images.labels))


def _with_wnids(listings: dict[str, Listing]) -> dict[str, Listing]:
    """Class indices with names, if the source has none of its own: the wnids that the names of all images have, each
    index one; otherwise the words that its metadata has for them."""
    indexed = {
        split: listing
        for split, listing in listings.items()
        if listing.class_names is None and listing.labels and all(isinstance(label, int) for label in listing.labels)
    }
    wnids = _wnids_of_indices(indexed.values())
    for split, listing in indexed.items():
        words = listing.class_words
        if wnids:
            names = dict(enumerate(words or map("{:06d}".format, range(max(wnids) + 1)))) | wnids
            words = [names[index] for index in sorted(names)]
        indexed[split] = replace(listing, class_names=words)
    return {**listings, **indexed}


def _wnids_of_indices(listings: Iterable[Listing]) -> dict[int, str]:
    """The wnid of each class index, from the images' names; empty unless they all agree."""
    wnids = dict[int, str]()
    for listing in listings:
        for name, label in zip(listing.images.names, listing.labels, strict=True):
            wnid = wnid_in_name(name)
            if wnid is None or not isinstance(label, int) or wnids.setdefault(label, wnid) != wnid:
                return {}
    return wnids if len({*wnids.values()}) == len(wnids) else {}


def _index_meaning(listing: Listing, wanted: list[str] | None) -> list[str] | None:
    """The wnid of each class index in a source, from its class list or else from `wanted`, that of --classes or of the
    first split; None if the labels are wnids."""
    indices = [label for label in listing.labels if isinstance(label, int)]
    if not indices:
        return None
    if len(indices) < len(listing.labels):
        raise InputError(f"{listing.description}: some labels are class indices and some are names; use one of them")
    meaning = listing.class_names or wanted
    if meaning is None:
        log.warning(
            "%s: has class indices without names; --classes FILE names them, in their order", listing.description
        )
        meaning = [f"{number:06d}" for number in range(max(indices) + 1)]
    if max(indices) >= len(meaning):
        raise InputError(
            f"{listing.description}: has class index {max(indices)}, and only {len(meaning)} classes have names; "
            f"--classes FILE must name all, in their order"
        )
    return meaning


def _wnids(listing: Listing, meaning: list[str] | None) -> list[str]:
    """The wnid of each image."""
    return [meaning[label] if meaning and isinstance(label, int) else str(label) for label in listing.labels]
