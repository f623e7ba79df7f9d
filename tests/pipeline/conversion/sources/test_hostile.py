"""Data sets of strangers who mean harm: one line each, in bounded memory and time, and nothing outside is read."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.conversion.sources import parquet
from pipeline.conversion.sources.parquet_pages import unpacked_size
from pipeline.errors import InputError
from pipeline.pixels.formats import BadImage, decode_any
from pipeline.storage.beton import ALLOCATION, FIELD, HEADER, METADATA
from tests.helpers.foreign_forms import example, masked_crc32c, record, span, varint
from tests.helpers.memory import memory_below
from tests.helpers.sources import IMAGE, assert_one_line, opened

SPARSE = 1 << 40
"""Bytes of files that have holes: who believes their lengths runs out of memory."""


def refusal(path: Path) -> str:
    """The line with which a source is refused, when it is listed or an image is read."""
    with memory_below(1 << 29), pytest.raises((InputError, BadImage)) as raised:
        read_everything(path)
    assert len(str(raised.value)) < 1000
    return str(raised.value)


def read_everything(path: Path) -> None:
    images = opened(path, splits=["train"]).splits["train"]
    for index in range(len(images)):
        images.read(index)


# --- Parquet


def repeated(value: Any, count: int) -> pa.Array:
    """A column that has its only value once, in a dictionary."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def write(path: Path, metadata: Any = None, dictionary: bool = True, **columns: Any) -> Path:
    text = {"huggingface": metadata if isinstance(metadata, str) else json.dumps({"info": {"features": metadata}})}
    table = pa.table(columns, metadata=text if metadata else None)
    plain = "dictionary<" in str(table.schema)  # is read as a plain column
    limits = {"dictionary_pagesize_limit": 1 << 30, "row_group_size": 1 << 30}
    pq.write_table(table, path, compression="zstd", store_schema=not plain, use_dictionary=dictionary, **limits)
    return path


ROW: dict[str, Any] = {"image": [IMAGE], "label": [0]}
PARQUET: dict[str, tuple[dict[str, Any], str]] = {
    "images that are numbers": (
        {"image": [3], "label": [0], "metadata": {"image": {"_type": "Image"}}},
        "its column image has no images, but int64",
    ),
    "lists of images": (
        {"image": [[IMAGE]], "label": [0], "metadata": {"image": {"_type": "Image"}}},
        "its column image has no images, but list",
    ),
    "lists of labels": ({"image": [IMAGE], "label": [[0]]}, "its column label has no labels, but list"),
    "a label of 19 digits": ({"image": [IMAGE], "label": [10**18]}, "has the label 1000000000000000000, which is no"),
    "a label of 10 digits": ({"image": [IMAGE], "label": [10**9]}, "has the label 1000000000, which is no class"),
    "labels of 2 GB": ({"image": [IMAGE] * 2000, "label": repeated("a" * (1 << 20), 2000)}, "which is no class"),
    "a label of 100 MB": ({"image": [IMAGE], "label": ["a" * 100_000_000]}, "label has 95 MB in row group 0, which no"),
}


@pytest.mark.parametrize(("columns", "message"), PARQUET.values(), ids=PARQUET.keys())
def test_parquet(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    assert message in refusal(write(tmp_path / "train.parquet", **columns))


def test_metadata_that_means_harm_is_ignored(tmp_path: Path) -> None:
    odd: list[Any] = [7, [1], {"a": 1}, [[]], "abc"]
    for names in odd:
        path = write(tmp_path / "train.parquet", {"label": {"_type": "ClassLabel", "names": names}}, **ROW)
        assert opened(path, splits=["train"]).classes == ("000000",)
    path = write(tmp_path / "train.parquet", "[" * 200_000, **ROW)
    assert opened(path, splits=["train"]).classes == ("000000",)
    path = write(tmp_path / "train.parquet", image=[{"bytes": IMAGE, "path": 5}], label=["a"])
    assert list(opened(path, splits=["train"]).splits["train"].names) == ["group-0-row-0"]


def test_a_dictionary_that_fills_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 16 MB in a hundred rows: a few KB in the file, and 16 MB in its metadata. Limits are as for 8 times
    as much, so that it is quick."""
    monkeypatch.setattr(parquet, "_LARGEST_GROUP", 1 << 26)
    path = write(tmp_path / "train.parquet", image=repeated(bytes(1 << 24), 100), label=[0] * 100)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        assert "row group 0 has" in refusal(path)
    finally:
        pa.set_memory_pool(before)
    assert 1 << 24 < pool.max_memory() < 3 << 26


@pytest.mark.parametrize("column", ["label", "image"])
def test_a_dictionary_of_texts_that_fills_memory(tmp_path: Path, column: str) -> None:
    """A label or a file name of 16 MB in 200 rows: 3 GB, of 64 rows 1 GB, from a few KB."""
    images = pa.array([IMAGE] * 200)
    columns = {"image": images, "label": pa.array([0] * 200)}
    texts = repeated("a" * (1 << 24), 200)
    columns[column] = texts if column == "label" else pa.StructArray.from_arrays([images, texts], ["bytes", "path"])
    path = write(tmp_path / "train.parquet", **columns)
    assert path.stat().st_size < 1 << 16
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        assert ("which is no class" if column == "label" else "no labels or names take") in refusal(path)
    finally:
        pa.set_memory_pool(before)
    assert 1 << 24 < pool.max_memory() < 1 << 28


def test_rows_that_take_no_bytes(tmp_path: Path) -> None:
    """50 million in a file of 300 KB, which would be 5 GB of names."""
    path = tmp_path / "train.parquet"
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    empty, zeros = pa.array([b""]), np.zeros(10_000_000, np.int64)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(5):
            writer.write_table(pa.table({"image": empty.take(pa.array(zeros)), "label": zeros}), 10_000_000)
    assert "50000000 rows in" in refusal(path)


def compact_pages(path: Path) -> list[tuple[int, pq.ColumnChunkMetaData]]:
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        return [(at, group.column(at)) for group in groups for at in range(group.num_columns)]


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_sizes_of_pages_are_those_of_the_metadata(tmp_path: Path, compression: str, version: str) -> None:
    """The metadata of an honest file counts the headers, too."""
    rows = range(2000)
    table = pa.table({"a": [bytes([n % 256]) * (n % 900) for n in rows], "b": rows, "c": [[str(n)] * 3 for n in rows]})
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, compression=compression, data_page_version=version, data_page_size=10_000)
    with open(path, "rb", buffering=0) as file:
        for _, column in compact_pages(path):
            size = unpacked_size(file, column)
            assert 0.8 * column.total_uncompressed_size < size < column.total_uncompressed_size


def test_a_page_that_unpacks_to_more_than_the_metadata_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's own header is changed, from 1 MB to 128."""
    monkeypatch.setattr(parquet, "_LARGEST_GROUP", 1 << 26)
    path = write(tmp_path / "train.parquet", dictionary=False, image=[os.urandom(1 << 20)], label=[0])
    with open(path, "rb", buffering=0) as file:
        honest = varint(2 * unpacked_size(file, compact_pages(path)[0][1]))
    data = path.read_bytes()
    at = data.index(b"\x15" + honest)
    lie = varint(2 * ((1 << 27) - 1))
    assert len(lie) == len(honest)
    path.write_bytes(data[: at + 1] + lie + data[at + 1 + len(honest) :])
    assert "row group 0 has 127 MB" in refusal(path)


# --- TFRecords

EXAMPLE = example({"image": IMAGE, "label": 1})


def head(length: int) -> bytes:
    return length.to_bytes(8, "little") + masked_crc32c(length.to_bytes(8, "little"))


def with_a_hole(path: Path) -> None:
    """A record of a terabyte: an Example with a small image, and a field without a meaning."""
    size = SPARSE - len(EXAMPLE) - 7
    path.write_bytes(head(SPARSE) + EXAMPLE + varint(9 << 3 | 2) + varint(size))
    os.truncate(path, 12 + SPARSE + 4)


RECORDS: dict[str, tuple[bytes, str]] = {
    "a class of 10 digits": (record(example({"image": IMAGE, "label": (1 << 31) - 1})), "the label 2147483647, which"),
    "a million features": (
        record(span(1, b"".join([span(1, span(1, b"x") + span(2, b""))] * 1_000_000))),
        "record 0 cannot be used: more fields than any Example needs",
    ),
    "a number without an end": (record(b"\xff" * 1000), "record 0 cannot be used: a number of more than 64 bits"),
    "another length": (head(1 << 63) + EXAMPLE, "truncated in the record at byte"),
}


@pytest.mark.parametrize(("data", "message"), RECORDS.values(), ids=RECORDS.keys())
def test_records(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "train-0"
    path.write_bytes(record(EXAMPLE) + data if "record 0" not in message else data)
    assert message in refusal(tmp_path)


def test_a_record_of_a_terabyte(tmp_path: Path) -> None:
    with_a_hole(tmp_path / "train-0")
    assert f"a record of {SPARSE} bytes, of at most" in refusal(tmp_path)


# --- FFCV


def write_beton(
    path: Path,
    count: int = 1,
    types: tuple[int, ...] = (2, 1),
    label: int = 0,
    address: int = 4000,
    size: int = 100,
    table_at: int = 0,
    end: int = 0,
) -> Path:
    """A file with `count` rows of the same image."""
    header, fields = np.zeros((), HEADER), np.zeros(len(types), FIELD)
    for field, kind in zip(fields, types, strict=True):
        name = {2: b"image", 1: b"label"}.get(kind, b"\x1b[2J\nerror: x")
        field["type_id"], field["name"][: len(name)] = kind, np.frombuffer(name, np.uint8)
    written = min(count, 2000)
    rows, allocations = np.zeros(written, METADATA), np.zeros(max(written, 400), ALLOCATION)
    rows["f0"]["width"] = rows["f0"]["height"] = 8
    rows["f0"]["data_ptr"], rows["f1"] = address, label
    allocations["ptr"][:written], allocations["size"][:written] = address, size
    table_at = table_at or header.nbytes + fields.nbytes + rows.nbytes + 4096
    header[()] = (2, len(types), 1 << 21, count, table_at)
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.write(header.tobytes() + fields.tobytes() + rows.tobytes())
        if table_at < SPARSE:
            file.seek(table_at)
            file.write(allocations.tobytes())
        if end:
            file.truncate(end)
    return path


def test_a_sound_beton_is_read(tmp_path: Path) -> None:
    assert opened(write_beton(tmp_path / "train.beton"), splits=["train"]).splits["train"].read(0) == bytes(100)
    path = write_beton(tmp_path / "train.beton", end=SPARSE)  # the table is not read to the end of the file
    with memory_below(1 << 30):
        assert opened(path, splits=["train"]).splits["train"].read(0) == bytes(100)


BETONS: dict[str, tuple[dict[str, int | tuple[int, ...]], str]] = {
    "a class of 16 digits": ({"label": 10**15}, "has the label 1000000000000000, which is no class"),
    "an address beyond the end": ({"address": (1 << 64) - 1}, "its tables point outside the file"),
    "a size beyond the end": ({"size": (1 << 64) - 1}, "its tables point outside the file"),
    "2,000 images in one place": ({"count": 2000}, "its images overlap: damaged"),
    "2^34 samples": ({"count": SPARSE // 64, "table_at": SPARSE, "end": 2 * SPARSE}, "samples, of at most 268435456"),
    "50,000 fields": ({"types": (0,) * 50_000}, "truncated, damaged, or of more than 64 fields"),
    "an unknown field": ({"types": (255, 1)}, "is not one of FFCV's own"),
}


@pytest.mark.parametrize(("changes", "message"), BETONS.values(), ids=BETONS.keys())
def test_betons(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(write_beton(tmp_path / "train.beton", **changes))


# --- zip archives


def zip_64(
    name: str, size: int = len(IMAGE), stored: int = len(IMAGE), offset: int = 0, count: int = 1, **end: int
) -> bytes:
    """An archive with a member, whose numbers are in the 64-bit extension. `end`: start, length, locator."""
    checksum, encoded = zlib.crc32(IMAGE), name.encode()
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, checksum, len(IMAGE), len(IMAGE), len(encoded), 0)
    data = local + encoded + IMAGE
    extra = struct.pack("<HH3Q", 1, 24, size, stored, offset)
    numbers = (20, 20, 0, 0, 0, 0, checksum, 0xFFFFFFFF, 0xFFFFFFFF, len(encoded), len(extra), 0, 0, 0, 0, 0xFFFFFFFF)
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *numbers) + encoded + extra
    length, start = end.get("length", len(entry)), end.get("start", len(data))
    end_64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end.get("locator", len(data) + len(entry)), 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data + entry + end_64 + locator + last


def bomb() -> bytes:
    """3 MB without a suffix that inflate to 640: looking for an image in them must not do that."""
    compressor = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    blob = b"".join(compressor.compress(bytes(1 << 22)) for _ in range(160)) + compressor.flush()
    archive = bytearray(zip_bytes({"train/n00000001/readme": blob}))
    entry = archive.rindex(b"train/n00000001/readme") - 46
    archive[entry + 10 : entry + 12], archive[entry + 24 : entry + 28] = b"\x08\0", struct.pack("<L", 160 << 22)
    return bytes(archive)


def zip_bytes(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def overlapping() -> bytes:
    """50 members that are the same bytes."""
    archive = zip_bytes({"train/n00000001/a.JPEG": IMAGE})
    end = archive.rindex(b"PK\5\6")
    start = archive.index(b"PK\1\2")
    entries = archive[start:end] * 50
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 50, 50, len(entries), start, 0)
    return archive[:start] + entries + last


def counted(number: int) -> bytes:
    """Six members, of which the end of the archive counts `number`."""
    archive = bytearray(zip_bytes({f"train/n00000001/{name}.JPEG": IMAGE for name in "abcdef"}))
    struct.pack_into("<2H", archive, archive.rindex(b"PK\5\6") + 8, number, number)
    return bytes(archive)


IN_SPLIT = "train/n00000001/a.JPEG"
HUGE = (1 << 64) - 1
ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "offset": (lambda: zip_64(IN_SPLIT, offset=HUGE), "its directory is damaged"),
    "offset in the file system's reach": (lambda: zip_64(IN_SPLIT, offset=1 << 62), "the archive is damaged here"),
    "locator": (lambda: zip_64(IN_SPLIT, locator=HUGE), "its directory is damaged"),
    "size": (lambda: zip_64(IN_SPLIT, size=HUGE), "its directory is damaged"),
    "size of a text": (lambda: zip_64("train/a.txt", size=HUGE), "its directory is damaged"),
    "size without a suffix": (lambda: zip_64("train/n00000001/a", size=1 << 40), "no train images in it"),
    "stored": (lambda: zip_64(IN_SPLIT, stored=HUGE), f"{HUGE} bytes, of at most"),
    "count": (lambda: zip_64(IN_SPLIT, count=HUGE), "its directory is damaged"),
    "fewer than there are": (lambda: counted(2), "its directory is damaged: it has 6 members, and says 2"),
    "more than there are": (lambda: counted(7), "its directory is damaged: it has 6 members, and says 7"),
    "start": (lambda: zip_64(IN_SPLIT, start=HUGE), "its directory is damaged"),
    "length": (lambda: zip_64(IN_SPLIT, length=HUGE), "its directory is damaged"),
    "overlapping members": (overlapping, "its members overlap"),
    "a bomb without a suffix": (bomb, "no train images in it"),
}


@pytest.mark.parametrize(("make", "message"), ZIPS.values(), ids=ZIPS.keys())
def test_zips(tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    (tmp_path / "x.zip").write_bytes(make())
    assert message in refusal(tmp_path / "x.zip")


# --- _info.json


@pytest.mark.parametrize("name", ["../outside.tar", "/etc/passwd", "a\nerror: b.tar", "\0", "a/../../b.tar"], ids=repr)
def test_shards_outside_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "outside.tar").write_bytes(b"secret")
    (tmp_path / "set" / "_info.json").write_text(json.dumps({"splits": {"train": {"filenames": [name]}}}))
    assert "cannot be read (ValueError: the name" in refusal(tmp_path / "set")


INFOS = [
    "[" * 200_000,
    '{"splits":' * 100_000,
    '{"splits": ' + "9" * 10_000 + "}",
    '{"a": [' + "[]," * (2 << 20) + "[]]}",
]


@pytest.mark.parametrize("text", INFOS, ids=lambda text: text[:14])
def test_info_that_fills_memory(tmp_path: Path, text: str) -> None:
    (tmp_path / "_info.json").write_text(text)
    assert f"{tmp_path}/_info.json: cannot be read" in refusal(tmp_path)


def test_info_of_a_terabyte_or_none(tmp_path: Path) -> None:
    (tmp_path / "_info.json").touch()
    os.truncate(tmp_path / "_info.json", SPARSE)
    assert "_info.json: cannot be read (OSError: [Errno 27] more than 67108864 bytes" in refusal(tmp_path)


# --- pipes


@pytest.mark.parametrize("name", ["train.tar", "train.zip", "train.parquet", "_info.json", "train-00000-of-00001"])
def test_pipes_are_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError) as raised:
            opened(path, splits=["train"])
        assert_one_line(raised.value)


# --- images


def png(*chunks: tuple[bytes, bytes], size: int = 8) -> bytes:
    """A grey PNG with chunks in front of its pixels."""
    pixels = zlib.compress(bytes((size + 1) * size), 9) if size < 100 else zlib.compress(bytes(1 << 20), 9)
    parts = [(b"IHDR", struct.pack(">2L5B", size, size, 8, 0, 0, 0, 0)), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    written = [
        struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data)) for name, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def gif(width: int, height: int) -> bytes:
    """A small screen with one frame of this size."""
    frame = b"," + struct.pack("<4HB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0"
    return b"GIF89a" + struct.pack("<2H3B", 8, 8, 0x80, 0, 0) + bytes(6) + frame + b";"


def webp(side: int) -> bytes:
    """A lossless image of this size, of which there are no pixels."""
    bits = side - 1 | side - 1 << 14
    body = b"WEBPVP8L" + struct.pack("<L", 30) + b"\x2f" + struct.pack("<L", bits) + bytes(25)
    return b"RIFF" + struct.pack("<L", len(body)) + body


def zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 1)


IMAGES: dict[str, Callable[[], bytes]] = {
    "zTXt": lambda: png((b"zTXt", b"a\0\0" + zeros(1 << 28))),
    "iTXt": lambda: png((b"iTXt", b"a\0\1\0\0\0" + zeros(1 << 28))),
    "iCCP": lambda: png((b"iCCP", b"a\0\0" + zeros(1 << 28))),
    "200 zTXt of 1 MB": lambda: png(*[(b"zTXt", b"a\0\0" + zeros(1 << 20))] * 200),
    "PNG of 900 million pixels": lambda: png(size=30_000),
    "GIF of 4 billion pixels": lambda: gif(65_535, 65_535),
    "WebP of 268 million pixels": lambda: webp(16_384),
}


@pytest.mark.parametrize("make", IMAGES.values(), ids=IMAGES.keys())
def test_images_that_fill_memory(make: Callable[[], bytes]) -> None:
    data = make()
    with memory_below(1 << 27), pytest.raises(BadImage):
        decode_any(data, None)
