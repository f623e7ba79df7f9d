"""The .beton file: what we write, read back by us and by FFCV's own Loader."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import decoded, files_in, jpeg_bytes, photograph

from pipeline.errors import InputError
from pipeline.formats import beton
from pipeline.formats.beton import BetonInfo, BetonSamples, BetonWriter, page_size_for
from pipeline.formats.samples import Sample

CLASSES = ["n00000001", "n00000002", "n00000003"]
SIDE = 64
# All as high as FFCV's decoders will be asked for, so that they crop and do not resize.
SIZES = [(SIDE, width) for width in (64, 67, 71, 90, 128, 131)]
IMAGES = [photograph(height, width, seed=width) for height, width in SIZES]
SUBSAMPLINGS = ["4:2:0", "4:4:4", "4:2:2", "4:2:0", "4:2:0", "4:4:4"]
JPEGS = [jpeg_bytes(image, subsampling=name) for image, name in zip(IMAGES, SUBSAMPLINGS, strict=True)]
LABELS = [0, 2, 2, 1, 0, 1]
PAGE = 1 << 13


def write(dataset: Path, page_size: int = PAGE) -> BetonInfo:
    writer = BetonWriter(dataset, "train", CLASSES, len(JPEGS), page_size)
    for jpeg, (height, width), label in zip(JPEGS, SIZES, LABELS, strict=True):
        writer.add(jpeg, height, width, label)
    return writer.close()


@pytest.fixture(scope="module", autouse=True)
def torch_threads_kept() -> Iterator[None]:
    """Importing FFCV, and each of its loaders, sets torch's threads to 1: not for the tests after these."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished file; tests do not change it."""
    dataset = tmp_path_factory.mktemp("beton")
    return dataset / write(dataset).name


@pytest.fixture
def damaged(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    path = tmp_path / "damaged.beton"
    path.write_bytes(written.read_bytes())
    return path


def read_all(path: Path) -> list[Sample]:
    samples = BetonSamples(path, CLASSES)
    return [samples[index] for index in range(len(samples))]


def test_samples_are_read_back_by_position(written: Path) -> None:
    assert read_all(written) == list(map(Sample, JPEGS, LABELS))
    samples = BetonSamples(written, CLASSES)
    assert [(f["height"], f["width"]) for f in samples.metadata["f0"]] == SIZES
    assert samples.name(3) == f"{written} sample 3"


def test_layout_is_that_of_ffcv() -> None:
    types = pytest.importorskip("ffcv.types")
    from ffcv.fields import IntField, RGBImageField

    assert types.CURRENT_VERSION == beton.VERSION
    assert types.HeaderType == beton.HEADER
    assert types.FieldDescType == beton.FIELD
    assert types.ALLOC_TABLE_TYPE == beton.ALLOCATION
    assert types.TYPE_ID_HANDLER[beton.IMAGE_TYPE] is RGBImageField
    assert types.TYPE_ID_HANDLER[beton.INT_TYPE] is IntField
    fields = [RGBImageField(), IntField()]
    assert types.get_metadata_type(fields) == beton.METADATA
    assert types.get_metadata_type(fields).itemsize == beton.METADATA.itemsize


def test_ffcvs_reader_finds_our_fields(written: Path) -> None:
    reader = pytest.importorskip("ffcv.reader").Reader(str(written))
    assert reader.field_names == ["image", "label"]
    assert (reader.num_samples, reader.page_size) == (len(JPEGS), PAGE)
    assert reader.metadata["f1"].tolist() == LABELS
    assert reader.alloc_table["size"].tolist() == list(map(len, JPEGS))


@pytest.mark.parametrize("name", ["CenterCropRGBImageDecoder", "RandomResizedCropRGBImageDecoder"])
def test_ffcvs_own_loader_and_decoders_read_the_file(written: Path, name: str) -> None:
    """The largest square is both decoders' crop here, and has the output's size already."""
    decoders = pytest.importorskip("ffcv.fields.rgb_image")
    from ffcv.fields.basics import IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    if name == "CenterCropRGBImageDecoder":
        decoder = decoders.CenterCropRGBImageDecoder((SIDE, SIDE), ratio=1)
    else:
        decoder = decoders.RandomResizedCropRGBImageDecoder((SIDE, SIDE), scale=(1, 1), ratio=(1, 1))
    loader = Loader(
        str(written),
        batch_size=4,
        num_workers=1,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    batches = [(images.numpy().copy(), labels.flatten().tolist()) for images, labels in loader]
    assert [label for _, labels in batches for label in labels] == LABELS
    images = np.concatenate([images for images, _ in batches])
    for image, jpeg, (_, width) in zip(images, JPEGS, SIZES, strict=True):
        left = (width - SIDE) // 2
        expected = decoded(jpeg)[:, left : left + SIDE].astype(int)
        assert np.abs(image - expected).mean() < 2, "FFCV's fast DCT is off by about 1 on average"


def test_no_sample_crosses_a_page(tmp_path: Path) -> None:
    blobs = [bytes([i + 1]) * size for i, size in enumerate((3000, 1096, 1, 4096, 4095, 2, 2000, 2097, 4096))]
    writer = BetonWriter(tmp_path, "train", CLASSES, len(blobs), page_size=4096)
    for blob in blobs:
        writer.add(blob, 8, 8, 0)
    path = tmp_path / writer.close().name
    samples = BetonSamples(path, CLASSES)
    first, size = samples.allocation["ptr"], samples.allocation["size"]
    assert (first // 4096 == (first + size - 1) // 4096).all()
    assert [sample.jpeg for sample in read_all(path)] == blobs
    assert first[0] + 3000 == first[1], "samples that fit stand next to each other"


def test_sample_larger_than_a_page_is_refused(tmp_path: Path) -> None:
    writer = BetonWriter(tmp_path, "train", CLASSES, 1, page_size=4096)
    with pytest.raises(InputError, match="an image of 4097 bytes does not fit a page of 4096"):
        writer.add(bytes(4097), 8, 8, 0)
    writer.abort()


@pytest.mark.parametrize(
    ("largest", "page"), [(0, 1 << 23), (1 << 23, 1 << 23), ((1 << 23) + 1, 1 << 24), ((1 << 25) - 1, 1 << 25)]
)
def test_page_is_a_power_of_two_that_takes_the_largest_sample(largest: int, page: int) -> None:
    assert page_size_for(largest) == page


def test_file_is_as_recorded(tmp_path: Path) -> None:
    info = write(tmp_path)
    data = (tmp_path / info.name).read_bytes()
    assert (info.name, info.samples, info.bytes) == ("ffcv/train.beton", len(JPEGS), len(data))
    assert hashlib.sha256(data[: info.head_bytes]).hexdigest() == info.head_sha256
    assert hashlib.sha256(data[info.head_bytes :]).hexdigest() == info.rest_sha256


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a") == write(tmp_path / "b")
    assert files_in(tmp_path / "a") == files_in(tmp_path / "b")


def test_file_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    writer = BetonWriter(tmp_path, "val", CLASSES, 1, PAGE)
    writer.add(JPEGS[0], *SIZES[0], 0)
    assert not (tmp_path / "ffcv" / "val.beton").exists()
    writer.close()
    assert list(files_in(tmp_path)) == ["ffcv/val.beton"]


def test_abort_leaves_nothing(tmp_path: Path) -> None:
    writer = BetonWriter(tmp_path, "train", CLASSES, 2, PAGE)
    writer.add(JPEGS[0], *SIZES[0], 0)
    writer.abort()
    assert not files_in(tmp_path)


@pytest.mark.parametrize("classes", [CLASSES[:2], [*CLASSES, "n00000004"], CLASSES[::-1], ["n1", "n2", "n3"]], ids=str)
def test_another_class_list_is_refused(written: Path, classes: list[str]) -> None:
    with pytest.raises(InputError, match=rf"{written}: belongs to another class list"):
        BetonSamples(written, classes)


def test_missing_file_and_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path}/none\.beton: cannot be read as a beton"):
        BetonSamples(tmp_path / "none.beton", CLASSES)
    with pytest.raises(InputError, match=f"{tmp_path}: "):
        BetonSamples(tmp_path, CLASSES)


def test_file_of_something_else_is_refused(damaged: Path) -> None:
    damaged.write_bytes(JPEGS[0] * 10)
    with pytest.raises(InputError, match=f"{damaged}: not a beton"):
        BetonSamples(damaged, CLASSES)


def test_truncation_anywhere_is_refused(written: Path, damaged: Path) -> None:
    size = written.stat().st_size
    for length in sorted(
        {0, 1, 23, 24, 2095, 2096, 2104, PAGE, size // 2, size - 24, *range(size - 3, size)}, reverse=True
    ):
        os.truncate(damaged, length)
        with pytest.raises(InputError, match=f"{damaged}: "):
            BetonSamples(damaged, CLASSES)


def test_bytes_at_the_end_are_refused(damaged: Path) -> None:
    with open(damaged, "ab") as file:
        file.write(bytes(24))
    with pytest.raises(InputError, match="truncated or damaged"):
        BetonSamples(damaged, CLASSES)


def test_file_truncated_after_it_was_opened_is_named_when_read(damaged: Path) -> None:
    samples = BetonSamples(damaged, CLASSES)
    os.truncate(damaged, PAGE + 100)
    with pytest.raises(InputError, match=f"{damaged} sample 5"):
        samples[5]


def test_file_that_disappeared_after_it_was_opened_is_named_when_read(damaged: Path) -> None:
    samples = BetonSamples(damaged, CLASSES)
    damaged.unlink()
    with pytest.raises(InputError, match=f"{damaged} sample 0"):
        samples[0]


def offsets(dtype: np.dtype, field: str, start: int, rows: int = 1) -> list[int]:
    """The bytes of one field in a table of `rows` rows that stands at byte `start`."""
    field_type, at = dtype.fields[field][:2]
    return [start + row * dtype.itemsize + at + byte for row in range(rows) for byte in range(field_type.itemsize)]


METADATA_AT = beton.HEADER.itemsize + 2 * beton.FIELD.itemsize
ROWS = len(JPEGS)


def guarded_bytes(path: Path) -> list[int]:
    """Where no bit can be wrong without BetonSamples noticing: it does not depend on the value that is there."""
    table_at = path.stat().st_size - ROWS * beton.ALLOCATION.itemsize
    arguments = offsets(beton.FIELD, "arguments", beton.HEADER.itemsize)[: len(beton.classes_digest(CLASSES))]
    return [
        *offsets(beton.HEADER, "version", 0),
        *offsets(beton.HEADER, "num_fields", 0),
        *offsets(beton.HEADER, "num_samples", 0),
        *offsets(beton.HEADER, "alloc_table_ptr", 0),
        *offsets(beton.FIELD, "type_id", beton.HEADER.itemsize, rows=2),
        *arguments,
        *(at for at in offsets(beton.METADATA, "f0", METADATA_AT, ROWS) if (at - METADATA_AT) % 24 not in (1, 2, 3, 4)),
        *offsets(beton.ALLOCATION, "ptr", table_at, ROWS),
    ]


@contextlib.contextmanager
def bits_flipped(path: Path, flips: dict[int, int]) -> Iterator[None]:
    """For the time of the block, `path` with the bits of a mask flipped at some bytes."""
    before = path.read_bytes()
    data = bytearray(before)
    for at, mask in flips.items():
        data[at] ^= mask
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = tmp_path_factory.mktemp("fuzzed")
    return dataset / write(dataset).name


@settings(max_examples=120)
@given(data=st.data())
def test_bit_flipped_in_structure_class_list_or_address_is_refused(fuzzed: Path, data: st.DataObject) -> None:
    at = data.draw(st.sampled_from(guarded_bytes(fuzzed)))
    with (
        bits_flipped(fuzzed, {at: 1 << data.draw(st.integers(0, 7))}),
        pytest.raises(InputError, match=f"{fuzzed}: "),
    ):
        BetonSamples(fuzzed, CLASSES)


@settings(max_examples=120)
@given(data=st.data())
def test_bits_flipped_in_any_table_give_samples_or_an_input_error(fuzzed: Path, data: st.DataObject) -> None:
    size = fuzzed.stat().st_size
    head = st.integers(0, METADATA_AT + ROWS * beton.METADATA.itemsize - 1)
    places = st.one_of(head, st.integers(size - ROWS * beton.ALLOCATION.itemsize, size - 1))
    with (
        bits_flipped(fuzzed, data.draw(st.dictionaries(places, st.integers(1, 255), min_size=1, max_size=3))),
        contextlib.suppress(InputError),
    ):
        samples = read_all(fuzzed)
        assert len(samples) == ROWS
        assert all(0 <= sample.label < len(CLASSES) for sample in samples)
        # Of a sample's size alone nothing is known but that it ends inside the file.
        assert all(
            sample.jpeg.startswith(jpeg) or jpeg.startswith(sample.jpeg)
            for sample, jpeg in zip(samples, JPEGS, strict=True)
        )


def test_empty_beton_has_no_samples(tmp_path: Path) -> None:
    writer = BetonWriter(tmp_path, "train", CLASSES, 0, PAGE)
    assert len(BetonSamples(tmp_path / writer.close().name, CLASSES)) == 0
