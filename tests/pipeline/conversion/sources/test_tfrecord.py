"""TFRecords: both layouts, how little is read, damage."""

import os
import random
from pathlib import Path

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.pixels.formats import BadImage
from tests.helpers.conversions import refused, report_of
from tests.helpers.foreign_forms import (
    example,
    masked_crc32c,
    record,
    rows_of,
    span,
    tfds_example,
    usual_example,
    varint,
    write_records,
)
from tests.helpers.imagenet import CLASSES
from tests.helpers.sources import IMAGE, assert_one_line, contents, opened

ROWS = [("n00000001_1.JPEG", 0, IMAGE), ("n00000002_2.JPEG", 1, IMAGE + b"x"), ("n00000004_3.JPEG", 3, IMAGE + b"y")]


def expected(rows: list[tuple[str, int, bytes]]) -> list[tuple[str, str, bytes]]:
    return sorted((Path(name).stem, CLASSES[label], data) for name, label, data in rows)


def test_checksum_is_that_of_tensorflow() -> None:
    """crc32c_test.cc and RFC 3720, B.4: 32 bytes of zeros have 0x8a9136aa."""
    assert (
        int.from_bytes(masked_crc32c(bytes(32)), "little")
        == ((0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8) % 2**32
    )


def test_usual_layout_and_that_of_tensorflow_datasets(imagenet_folder: Path, tmp_path: Path) -> None:
    rows = rows_of(imagenet_folder, "train")
    write_records(tmp_path / "usual" / "train-00000-of-00001", map(usual_example, rows))
    write_records(tmp_path / "tfds" / "imagenet2012-train.tfrecord-00000-of-01024", map(tfds_example, rows))
    for name in ("usual", "tfds"):
        source = opened(tmp_path / name, splits=["train"])
        assert source.classes == tuple(CLASSES)
        assert contents(source, "train") == expected(rows)


def test_labels_are_counted_from_1_in_the_usual_layout_and_from_0_in_the_other(tmp_path: Path) -> None:
    write_records(tmp_path / "a-train", [example({"image/encoded": IMAGE, "image/class/label": n}) for n in (1, 3)])
    write_records(tmp_path / "b-train", [example({"image": IMAGE, "label": n}) for n in (0, 2)])
    for name in ("a-train", "b-train"):
        source = opened(tmp_path / name, splits=["train"])
        assert sorted(source.splits["train"].labels.tolist()) == [0, 2]
        assert {name for name, _, _ in contents(source, "train")} == {"record-0", "record-1"}


def test_unpacked_numbers_and_fields_of_other_kinds_are_read(tmp_path: Path) -> None:
    label = span(1, b"label") + span(2, span(3, varint(1 << 3) + varint(300)))
    other = span(1, b"other") + span(2, span(2, varint(1 << 3 | 5) + bytes(4)))
    image = span(1, b"image") + span(2, span(1, span(1, IMAGE)))
    unknown = varint(9 << 3 | 1) + bytes(8) + varint(8 << 3) + varint(1 << 40)
    write_records(tmp_path / "train", [unknown + span(1, span(1, other) + span(1, image) + span(1, label))])
    assert opened(tmp_path / "train", splits=["train"]).splits["train"].labels.tolist() == [300]


def test_little_is_read_for_a_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of 256 KB are passed over, whatever stands in front of them and behind."""
    write_records(
        tmp_path / "train", [usual_example((name, label, data + bytes(1 << 18))) for name, label, data in ROWS]
    )
    sizes = list[int]()
    pread = os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    opened(tmp_path, splits=["train"])
    assert 3 * 1000 < sum(sizes) < 3 * 20_000


# --- damage

REFUSED: dict[str, tuple[bytes, str]] = {
    "truncated": (record(usual_example(ROWS[0]))[:-1], "truncated in the record at byte"),
    "damaged length": (b"\xff" + record(usual_example(ROWS[1]))[1:], "damaged or truncated at byte"),
    "no example": (record(b"\x0a\xff\xff\xff"), "record 1 cannot be used: a field reaches beyond its end"),
    "no wire type": (record(b"\x0f"), "record 1 cannot be used"),
    "no image": (record(example({"label": 1})), "record 1 cannot be used: it has no image/encoded"),
    "no label": (record(example({"image/encoded": IMAGE})), "it has neither image/class/synset nor image/class/label"),
    "label 0": (
        record(example({"image/encoded": IMAGE, "image/class/label": 0})),
        "image/class/label is 0, and classes are counted from 1",
    ),
    "label -1": (record(example({"image": IMAGE, "label": -1})), "label is -1, and classes are counted from 0"),
    "long name": (record(example({"image": IMAGE, "label": 1, "file_name": bytes(9999)})), "a name of more than 4 KB"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(record(usual_example(ROWS[0])) + data)
    with pytest.raises(InputError) as raised:
        opened(tmp_path, splits=["train"])
    assert_one_line(raised.value, path, message)


def test_altered_image_is_a_bad_image(tmp_path: Path) -> None:
    path = write_records(tmp_path / "train", map(usual_example, ROWS))
    data = bytearray(path.read_bytes())
    data[data.index(IMAGE + b"x") + 900] ^= 1
    path.write_bytes(data)
    assert "the checksum of its record is another" in refused(
        ConvertSettings(src=(path,), dst=tmp_path / "dst", splits=("train",))
    )
    convert(ConvertSettings(src=(path,), dst=tmp_path / "dst", splits=("train",), on_bad="skip"))
    assert [entry["file"] for entry in report_of(tmp_path / "dst")["images"] if "bad" in entry] == [
        f"{path}/{ROWS[1][0]}"
    ]


def test_any_byte_may_be_damaged(tmp_path: Path) -> None:
    """Images are right, or refused in one line."""
    sound = b"".join(record(usual_example((name, label, data[:200]))) for name, label, data in ROWS)
    images = {IMAGE[:200]}
    rng = random.Random(0)
    path = tmp_path / "train-0"
    for _ in range(200):
        data = bytearray(sound)
        data[rng.randrange(12, len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            split = opened(tmp_path, splits=["train"]).splits["train"]
            for index in range(len(split)):
                assert split.read(index) in images
        except (InputError, BadImage) as error:
            assert_one_line(error)


def test_compressed_records_are_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(b"\x1f\x8b\x08\0" + bytes(100))
    with pytest.raises(InputError) as raised:
        opened(tmp_path, splits=["train"])
    assert_one_line(raised.value, f"{path.name} is compressed", f"`gunzip -k {path}`")
