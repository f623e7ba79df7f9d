"""Validation labels in the forms that people have, from the wnid of each image in the order of their numbers."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import savemat

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
FIELDS = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")


def val_name(number: int) -> str:
    """The official name of a validation image."""
    return f"ILSVRC2012_val_{number:08d}"


def valprep(wnids: Sequence[str], classes: Sequence[str]) -> str:
    """The script of the PyTorch examples: no shebang, a tab at the end of each line."""
    moves = [f"mv {val_name(number)}.JPEG {wnid}/\t\n" for number, wnid in enumerate(wnids, 1)]
    return "".join([*(f"mkdir -p {wnid}\t\n" for wnid in classes), *moves])


def kaggle_csv(wnids: Sequence[str]) -> str:
    """LOC_val_solution.csv: unsorted rows, one or two boxes per image."""
    rows = [f"{val_name(number)},{wnid} 85 1 499 272 " for number, wnid in enumerate(wnids, 1)]
    rows[::2] = [f"{row}{row.split(',')[1]}" for row in rows[::2]]
    return "\n".join(["ImageId,PredictionString", *rows[1::2], *reversed(rows[::2])]) + "\n"


def synset_list(wnids: Sequence[str]) -> str:
    """imagenet_2012_validation_synset_labels.txt of TensorFlow's models."""
    return "".join(f"{wnid}\n" for wnid in wnids)


def index_list(wnids: Sequence[str], classes: Sequence[str]) -> str:
    """val.txt of Caffe's get_ilsvrc_aux.sh and of MMPretrain: indices that count the sorted wnids from 0."""
    indices = {wnid: number for number, wnid in enumerate(sorted(classes))}
    return "".join(f"{val_name(number)}.JPEG {indices[wnid]}\n" for number, wnid in enumerate(wnids, 1))


def ilsvrc_ids(classes: Sequence[str]) -> dict[str, int]:
    """An ILSVRC2012_ID for each class; none is its position in sorted order."""
    return {wnid: number for number, wnid in enumerate([*classes[1:], classes[0]], 1)}


def meta_mat(ids: dict[str, int], compressed: bool = True, inner_nodes: int = 3) -> bytes:
    """`synsets`: the classes by ID, then the inner nodes of the hierarchy, which have IDs and wnids as well."""
    leaves = sorted((number, wnid) for wnid, number in ids.items())
    rows: list[tuple[object, ...]] = [
        (number, wnid, f"word of {wnid}", "a gloss, of words", 0, [], 0, 1300) for number, wnid in leaves
    ]
    rows += [
        (len(rows) + 1 + number, f"n0009{number:04d}", "entity", "what has children", 2, [1, 2], 1 + number, 0)
        for number in range(inner_nodes)
    ]
    synsets = np.empty((len(rows), 1), [(field, object) for field in FIELDS])
    for at, row in enumerate(rows):
        synsets[at, 0] = row
    file = io.BytesIO()
    savemat(file, {"synsets": synsets}, do_compression=compressed)
    return file.getvalue()


def ground_truth(wnids: Sequence[str], ids: dict[str, int]) -> str:
    """The ID of each validation image."""
    return "".join(f"{ids[wnid]}\n" for wnid in wnids)


def write_devkit(folder: Path, wnids: Sequence[str], classes: Sequence[str]) -> Path:
    """Write the development kit, unpacked and with its other files. Returns `folder`."""
    ids = ilsvrc_ids(classes)
    for name in ("data", "evaluation"):
        (folder / name).mkdir(parents=True)
    (folder / "readme.txt").write_text("ILSVRC2012 development kit")
    (folder / "evaluation" / "demo.val.pred.txt").write_text("1 2 3\n")
    (folder / "data" / "meta.mat").write_bytes(meta_mat(ids))
    (folder / "data" / GROUND_TRUTH).write_text(ground_truth(wnids, ids))
    return folder


def packed(folder: Path, archive: Path, mode: str = "w:gz") -> Path:
    """Pack a folder, under its own name, into an archive. Returns `archive`."""
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        tar.add(folder, folder.name)
    return archive
