"""Data sets in other people's formats, written by their own libraries where there are some: pyarrow, zipfile, FFCV."""

import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.imagenet import CLASSES, val_wnids
from tests.helpers.imagenet_forms import kaggle
from tests.helpers.images import decoded

WORDS = [f"word {number}, other" for number in range(len(CLASSES))]

Row = tuple[str, int, bytes]
"""Name of the file, class index, content."""


def rows_of(imagenet: Path, split: str) -> list[Row]:
    """The images of a split of `write_imagenet`'s folder, not in the order of their names."""
    if split == "train":
        rows = [(path.name, CLASSES.index(path.parent.name), path.read_bytes()) for path in imagenet.glob("train/*/*")]
    else:
        paths = sorted((imagenet / "val").iterdir())
        wnids = val_wnids(imagenet)
        rows = [(p.name, CLASSES.index(wnid), p.read_bytes()) for p, wnid in zip(paths, wnids, strict=True)]
    return sorted(rows, key=lambda row: row[2][-200:])


# --- Parquet


def write_parquet(
    path: Path, rows: Sequence[Row], words: Sequence[str] | None = WORDS, rows_per_group: int = 5, **options: Any
) -> Path:
    """Write a Parquet file as the datasets library does: columns, metadata and, by default, Snappy. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "image": pa.array([{"bytes": data, "path": name} for name, _, data in rows], image),
        "label": pa.array([label for _, label, _ in rows], pa.int64()),
    }
    features = {"image": {"_type": "Image"}, "label": {"names": list(words or ()), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if words else None
    table = pa.table(columns, metadata=metadata)
    pq.write_table(table, path, row_group_size=rows_per_group, **options)
    return path


def with_wnids(rows: Iterable[Row]) -> list[Row]:
    """The names that ImageNet's images have at Hugging Face."""
    return [(f"{Path(name).stem}_{CLASSES[label]}.JPEG", label, data) for name, label, data in rows]


def hugging_face(imagenet: Path, root: Path) -> list[Path]:
    """Two training files and one of validation, in data/."""
    train, val = (with_wnids(rows_of(imagenet, split)) for split in ("train", "val"))
    write_parquet(root / "data" / "train-00000-of-00002.parquet", train[:24])
    write_parquet(root / "data" / "train-00001-of-00002.parquet", train[24:])
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", val)
    return [root]


# --- zip archives


def kaggle_zip(imagenet: Path, root: Path) -> list[Path]:
    """imagenet-object-localization-challenge.zip, some of its members stored and some deflated."""
    (folder,) = kaggle(imagenet, root / "unpacked")
    path = root / "imagenet-object-localization-challenge.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ILSVRC/Annotations/CLS-LOC/train/n00000001/n00000001_5.xml", "<annotation/>")
        for number, file in enumerate(sorted(folder.rglob("*"))):
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            archive.write(file, str(file.relative_to(folder)), method)
    return [path]


# --- TFRecords

_POLYNOMIAL = 0x82F63B78


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = [_table_entry(byte) for byte in range(256)]


def masked_crc32c(data: bytes) -> bytes:
    """The checksum of a TFRecord (RFC 3720, B.4; tensorflow/core/lib/hash/crc32c.h)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def varint(value: int) -> bytes:
    """A number in protobuf's encoding."""
    value &= (1 << 64) - 1
    parts = [value & 127]
    while value := value >> 7:
        parts[-1] |= 128
        parts.append(value & 127)
    return bytes(parts)


def span(field: int, content: bytes) -> bytes:
    """A field of protobuf that is a text or a message."""
    return varint(field << 3 | 2) + varint(len(content)) + content


def example(features: dict[str, bytes | int | float]) -> bytes:
    """A tf.train.Example."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = span(1, span(1, value))
        elif isinstance(value, int):
            feature = span(3, span(1, varint(value)))
        else:
            feature = span(2, span(1, np.float32(value).tobytes()))
        entries += span(1, span(1, name.encode()) + span(2, feature))
    return span(1, entries)


def record(data: bytes) -> bytes:
    """A TFRecord."""
    length = len(data).to_bytes(8, "little")
    return length + masked_crc32c(length) + data + masked_crc32c(data)


def usual_example(row: Row) -> bytes:
    """ImageNet's usual layout (build_imagenet_data.py of TensorFlow's models)."""
    name, label, data = row
    return example(
        {
            "image/height": 100,
            "image/class/bbox/xmin": 0.25,
            "image/encoded": data,
            "image/class/label": label + 1,
            "image/class/synset": CLASSES[label].encode(),
            "image/class/text": b"word, other",
            "image/filename": name.encode(),
        }
    )


def tfds_example(row: Row) -> bytes:
    """The layout of TensorFlow Datasets."""
    name, label, data = row
    return example({"file_name": name.encode(), "image": data, "label": label})


def write_records(path: Path, examples: Iterable[bytes]) -> Path:
    """Write TFRecords. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(map(record, examples)))
    return path


def tfrecords(imagenet: Path, root: Path) -> list[Path]:
    """ImageNet's usual files, without a suffix."""
    train, val = rows_of(imagenet, "train"), rows_of(imagenet, "val")
    write_records(root / "train-00000-of-00002", map(usual_example, train[:20]))
    write_records(root / "train-00001-of-00002", map(usual_example, train[20:]))
    write_records(root / "validation-00000-of-00001", map(usual_example, val))
    return [root]


# --- FFCV


class Pictures:
    """Decoded images and labels, for FFCV's writer."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return decoded(self._rows[index][2]), self._rows[index][1]


def write_ffcv(path: Path, rows: Sequence[Row], **options: Any) -> Path:
    """Write a file with FFCV's own writer; `options` are those of its RGBImageField. Returns `path`."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"image": RGBImageField(**options), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=2).from_indexed_dataset(Pictures(rows), chunksize=3)
    return path


FOREIGN_FORMS = {"Kaggle's zip": kaggle_zip, "TFRecords": tfrecords}
"""Sources that have the images' own names, sizes and order."""
