"""The forms in which people have ImageNet, made from an ImageNet folder as real folders, archives and shards."""

import io
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import webdataset

from tests.helpers.imagenet import CLASSES, val_wnids
from tests.helpers.label_files import kaggle_csv, packed, synset_list, valprep, write_devkit

LABEL_FILES = ("valprep.sh", "LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt")
DEVKIT = "ILSVRC2012_devkit_t12"
OFFICIAL = {split: f"ILSVRC2012_img_{split}.tar" for split in ("train", "val")}


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    """Write an archive of these files. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files))
    return path


def tar_bytes(files: Iterable[tuple[str, bytes]]) -> bytes:
    """An archive of these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return stream.getvalue()


def class_tar(imagenet: Path, wnid: str) -> bytes:
    """nXXXXXXXX.tar: the images of a class, in directory order."""
    return tar_bytes((path.name, path.read_bytes()) for path in (imagenet / "train" / wnid).iterdir())


def train_archive(imagenet: Path, path: Path) -> Path:
    """ILSVRC2012_img_train.tar: an archive of one archive per class."""
    return write_tar(path, ((f"{wnid}.tar", class_tar(imagenet, wnid)) for wnid in reversed(CLASSES)))


def val_archive(imagenet: Path, path: Path) -> Path:
    """ILSVRC2012_img_val.tar: flat."""
    return write_tar(path, ((image.name, image.read_bytes()) for image in (imagenet / "val").iterdir()))


def write_labels(imagenet: Path, path: Path) -> Path:
    """Write validation labels in the form that belongs to the file's name."""
    wnids, kit = val_wnids(imagenet), path.name.removesuffix(".tar.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    if kit == DEVKIT:
        folder = write_devkit(path.with_name(kit), wnids, CLASSES)
        if folder != path:
            packed(folder, path)
            shutil.rmtree(folder)
        return path
    texts = (valprep(wnids, CLASSES), kaggle_csv(wnids), synset_list(wnids))
    path.write_text(texts[LABEL_FILES.index(path.name)])
    return path


def sorted_val(imagenet: Path, folder: Path) -> Path:
    """val/ as valprep.sh leaves it."""
    for image, wnid in zip(sorted((imagenet / "val").iterdir()), val_wnids(imagenet), strict=True):
        (folder / wnid).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, folder / wnid)
    return folder


def copied(imagenet: Path, root: Path, *names: str) -> Path:
    for name in names or ("train", "val"):
        shutil.copytree(imagenet / name, root / name)
    return root


def class_folders(imagenet: Path, root: Path) -> list[Path]:
    sorted_val(imagenet, copied(imagenet, root, "train") / "val")
    return [root]


def flat_val(imagenet: Path, root: Path) -> list[Path]:
    write_labels(imagenet, copied(imagenet, root) / "valprep.sh")
    return [root]


def official(imagenet: Path, root: Path) -> list[Path]:
    train_archive(imagenet, root / OFFICIAL["train"])
    val_archive(imagenet, root / OFFICIAL["val"])
    write_labels(imagenet, root / f"{DEVKIT}.tar.gz")
    # Other downloads from the same page.
    train_archive(imagenet, root / "ILSVRC2012_img_train_t3.tar")
    write_tar(root / "ILSVRC2012_img_test_v10102019.tar", [("test/ILSVRC2012_test_00000001.JPEG", b"")])
    return [root]


def official_apart(imagenet: Path, root: Path) -> list[Path]:
    return [
        train_archive(imagenet, root / "a" / OFFICIAL["train"]),
        val_archive(imagenet, root / "b" / OFFICIAL["val"]),
        write_labels(imagenet, root / "c" / f"{DEVKIT}.tar.gz"),
    ]


def unpacked_once(imagenet: Path, root: Path) -> list[Path]:
    for wnid in CLASSES:
        write_tar(
            root / "train" / f"{wnid}.tar", ((p.name, p.read_bytes()) for p in (imagenet / "train" / wnid).iterdir())
        )
    copied(imagenet, root, "val")
    write_labels(imagenet, root / DEVKIT)
    return [root]


def archives_of_class_folders(imagenet: Path, root: Path) -> list[Path]:
    sorted_val(imagenet, root / "val")
    packed(imagenet / "train", root / "imagenet-train.tar", "w")
    packed(root / "val", root / "imagenet-val.tar", "w")
    shutil.rmtree(root / "val")
    return [root]


def archive_of_the_current_folder(imagenet: Path, root: Path) -> list[Path]:
    """`tar -cf train.tar .`: every name begins with ./"""
    root.mkdir(parents=True)
    with tarfile.open(root / "train.tar", "w") as tar:
        tar.add(imagenet / "train", ".")
    shutil.copytree(imagenet / "val", root / "val")
    write_labels(imagenet, root / "val" / "valprep.sh")
    return [root]


def kaggle(imagenet: Path, root: Path) -> list[Path]:
    inner = copied(imagenet, root / "ILSVRC" / "Data" / "CLS-LOC")
    (inner / "test").mkdir()
    (inner / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    (root / "ILSVRC" / "Annotations" / "CLS-LOC" / "val").mkdir(parents=True)
    write_labels(imagenet, root / "LOC_val_solution.csv")
    (root / "LOC_train_solution.csv").write_text("ImageId,PredictionString\nn00000001_5,n00000001 1 2 3 4\n")
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} word\n" for wnid in CLASSES))
    return [root]


def shards(imagenet: Path, root: Path) -> list[Path]:
    """Shards written by the webdataset library's ShardWriter."""
    root.mkdir(parents=True)
    samples = {
        "train": [(path, path.parent.name) for path in sorted((imagenet / "train").glob("*/*"))],
        "val": list(zip(sorted((imagenet / "val").iterdir()), val_wnids(imagenet), strict=True)),
    }
    for split, images in samples.items():
        with webdataset.ShardWriter(str(root / f"imagenet-{split}-%06d.tar"), maxcount=9, verbose=0) as writer:
            for path, wnid in images:
                writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": wnid})
    return [root]


def apart(imagenet: Path, root: Path) -> list[Path]:
    """Every piece in another place and another form."""
    return [
        copied(imagenet, root / "fast", "train") / "train",
        val_archive(imagenet, root / "slow" / "validation.tar"),
        write_labels(imagenet, root / "etc" / "imagenet_2012_validation_synset_labels.txt"),
    ]


FORMS: dict[str, Callable[[Path, Path], list[Path]]] = {
    "class folders": class_folders,
    "flat val": flat_val,
    "official archives in a folder": official,
    "official archives named": official_apart,
    "training archive unpacked once": unpacked_once,
    "archives of class folders": archives_of_class_folders,
    "archive of the current folder": archive_of_the_current_folder,
    "kaggle": kaggle,
    "WebDataset shards": shards,
    "train and val apart": apart,
}
