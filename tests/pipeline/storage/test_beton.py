"""The .beton file, read back by our reader and by FFCV's own Loader."""

import contextlib
import hashlib
import io
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError, StorageError
from pipeline.storage import beton
from pipeline.storage.beton import (
    MODE_JPEG,
    MODE_RAW,
    BetonInfo,
    BetonSamples,
    Extent,
    PageGroup,
    PageWriter,
    beton_extents,
    finish_beton,
    head_bytes,
    head_matches,
    page_size_for,
)
from pipeline.storage.samples import Sample
from pipeline.storage.split import open_split
from tests.helpers.images import decoded, jpeg_bytes, photograph

CLASSES = ["n00000001", "n00000002", "n00000003"]
SIDE = 64
# All have the height that FFCV's decoders are asked for, so they crop and do not resize.
SIZES = [(SIDE, width) for width in (64, 67, 71, 90, 128, 131)]
IMAGES = [photograph(height, width, seed=width) for height, width in SIZES]
SUBSAMPLINGS = ["4:2:0", "4:4:4", "4:2:2", "4:2:0", "4:2:0", "4:4:4"]
JPEGS = [jpeg_bytes(image, subsampling=name) for image, name in zip(IMAGES, SUBSAMPLINGS, strict=True)]
LABELS = [0, 2, 2, 1, 0, 1]
PAGE = 1 << 15


class Entry(NamedTuple):
    """The arguments of PageWriter.add."""

    data: bytes
    mode: int
    height: int
    width: int
    label: int


AS_JPEG = [Entry(jpeg, MODE_JPEG, *size, label) for jpeg, size, label in zip(JPEGS, SIZES, LABELS, strict=True)]
AS_PIXELS = [
    Entry(image.tobytes(), MODE_RAW, *size, label) for image, size, label in zip(IMAGES, SIZES, LABELS, strict=True)
]
MIXED = [pair[number % 2] for number, pair in enumerate(zip(AS_JPEG, AS_PIXELS, strict=True))]


def write(path: Path, samples: list[Entry] = AS_JPEG, page_size: int = PAGE, cuts: tuple[int, ...] = (4,)) -> BetonInfo:
    """Write a file of several groups of samples, the first ending at `cuts[0]`."""
    first_page = head_bytes(len(samples), page_size)
    with open(path, "w+b") as file:
        file.seek(first_page)
        groups = [write_group(file, samples[start:stop], page_size) for start, stop in pairwise((0, *cuts, None))]
        finish_beton(file, first_page, groups, page_size, CLASSES)
        extents = beton_extents(file, first_page, groups)
    size = sum(extent.bytes for extent in extents)
    return BetonInfo(name=path.name, samples=len(samples), bytes=size, extents=extents)


def write_group(file: BinaryIO, samples: list[Entry], page_size: int) -> PageGroup:
    writer = PageWriter(file, page_size)
    for sample in samples:
        writer.add(*sample)
    extent = writer.close()
    return PageGroup(np.array(writer.rows, np.int64).reshape(-1, 6), extent)


@pytest.fixture(scope="module", autouse=True)
def torch_threads_kept() -> Iterator[None]:
    """Importing FFCV and creating its loaders sets torch's threads to 1; later tests must not see that."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished file of JPEGs; tests do not change it."""
    path = tmp_path_factory.mktemp("beton") / "some.beton"
    write(path)
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `IMAGES`, every other one as pixels."""
    path = tmp_path_factory.mktemp("beton") / "mixed.beton"
    write(path, MIXED)
    return path


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
    assert not reader.metadata["f0"]["mode"].any()
    assert reader.metadata["f1"].tolist() == LABELS
    assert reader.alloc_table["size"].tolist() == list(map(len, JPEGS))


def test_pixels_are_read_back_and_are_not_a_jpeg(mixed: Path) -> None:
    samples = BetonSamples(mixed, CLASSES)
    assert samples.metadata["f0"]["mode"].tolist() == [MODE_JPEG, MODE_RAW] * 3
    assert [samples.read(index) for index in range(len(samples))] == [sample.data for sample in MIXED]
    assert samples[4] == Sample(JPEGS[4], LABELS[4])
    with pytest.raises(InputError, match=rf"^{mixed} sample 3: raw pixels, no JPEG; use --loader ffcv$"):
        samples[3]


SIZES_IN_BYTES = (3000, 1096, 1, 4096, 4095, 2, 2000, 2097, 4096)


@pytest.mark.parametrize("cuts", [(), (1,), (4, 5), tuple(range(1, len(SIZES_IN_BYTES)))], ids=str)
def test_no_sample_crosses_a_page(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    blobs = [bytes([i + 1]) * size for i, size in enumerate(SIZES_IN_BYTES)]
    path = tmp_path / "some.beton"
    info = write(path, [Entry(blob, MODE_JPEG, 8, 8, 0) for blob in blobs], 4096, cuts)
    samples = BetonSamples(path, CLASSES)
    first, size = samples.metadata["f0"]["data_ptr"], samples.sizes
    assert (first // 4096 == (first + size - 1) // 4096).all()
    assert [sample.jpeg for sample in read_all(path)] == blobs
    if 1 not in cuts:
        assert first[0] + 3000 == first[1], "samples that fit on a page are contiguous"
    assert all(first[cut] % 4096 == 0 for cut in cuts), "a group begins on a page of its own"
    assert len(info.extents) == len(cuts) + 3


def test_largest_sample_that_fits_has_the_size_of_a_page(tmp_path: Path) -> None:
    with open(tmp_path / "pages", "wb") as file:
        writer = PageWriter(file, 4096)
        writer.add(bytes(4096), MODE_JPEG, 8, 8, 0)
        with pytest.raises(AssertionError):
            writer.add(bytes(4097), MODE_JPEG, 8, 8, 0)
        assert writer.close() == Extent(bytes=4096, sha256=hashlib.sha256(bytes(4096)).hexdigest())


@pytest.mark.parametrize(
    ("largest", "page"), [(0, 1 << 21), (1 << 21, 1 << 21), ((1 << 21) + 1, 1 << 22), ((1 << 25) - 1, 1 << 25)]
)
def test_page_is_a_power_of_two_that_holds_the_largest_sample(largest: int, page: int) -> None:
    assert page_size_for(largest) == page


def test_pages_are_as_large_as_ffcvs_writer_allows() -> None:
    writer = pytest.importorskip("ffcv.writer")
    assert writer.MIN_PAGE_SIZE == beton.SMALLEST_PAGE


@pytest.mark.parametrize(("samples", "pages"), [(0, 1), (253, 1), (254, 2), (1_281_167, 3754)])
def test_head_ends_where_a_page_begins(samples: int, pages: int) -> None:
    """2106 bytes of header and fields, 24 per sample."""
    assert head_bytes(samples, 8192) == pages * 8192


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2, 5)], ids=str)
def test_file_is_as_recorded(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Piece by piece, from the first byte to the last."""
    path = tmp_path / "some.beton"
    info = write(path, MIXED, cuts=cuts)
    assert len(info.extents) == len(cuts) + 3
    with open(path, "rb") as file:
        for extent in info.extents:
            assert hashlib.sha256(file.read(extent.bytes)).hexdigest() == extent.sha256
        assert not file.read()
    assert path.stat().st_size == info.bytes
    assert head_matches(path, info)


def test_a_byte_flipped_in_the_head_is_noticed(damaged: Path) -> None:
    info = write(damaged)
    for at in (0, 8, METADATA_AT, METADATA_AT + 1, info.extents[0].bytes - 1):
        with bits_flipped(damaged, {at: 1}):
            assert not head_matches(damaged, info)
    assert head_matches(damaged, info)
    with bits_flipped(damaged, {info.extents[0].bytes: 1}):
        assert head_matches(damaged, info), "the head ends where the first page begins"


def test_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a.beton", MIXED).extents == write(tmp_path / "b.beton", MIXED).extents
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()


def test_groups_written_apart_and_joined_are_the_same_file(tmp_path: Path) -> None:
    """Several machines write them like this."""
    whole = write(tmp_path / "whole.beton", MIXED, cuts=(2, 5))
    first_page = head_bytes(len(MIXED), PAGE)
    groups, pages = [], b""
    for start, stop in ((0, 2), (2, 5), (5, 6)):
        with open(tmp_path / "pages", "wb") as file:
            groups.append(write_group(file, MIXED[start:stop], PAGE))
        pages += (tmp_path / "pages").read_bytes()
    with open(tmp_path / "joined.beton", "w+b") as file:
        file.write(bytes(first_page) + pages)
        finish_beton(file, first_page, groups, PAGE, CLASSES)
        assert beton_extents(file, first_page, groups) == whole.extents
    assert (tmp_path / "joined.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()


def test_a_file_can_be_finished_twice(tmp_path: Path) -> None:
    """It may have been killed the first time: everything after the pages is cut off, everything before is replaced."""
    whole = write(tmp_path / "whole.beton", MIXED)
    path = tmp_path / "again.beton"
    data = bytearray((tmp_path / "whole.beton").read_bytes())
    data[:PAGE] = b"\xaa" * PAGE
    path.write_bytes(data + b"\xbb" * 100)
    with open(path, "r+b") as file:
        groups = [write_group(io.BytesIO(), MIXED[:4], PAGE), write_group(io.BytesIO(), MIXED[4:], PAGE)]
        finish_beton(file, PAGE, groups, PAGE, CLASSES)
        assert beton_extents(file, PAGE, groups) == whole.extents
    assert path.read_bytes() == (tmp_path / "whole.beton").read_bytes()


def test_rows_of_the_groups_are_not_changed(tmp_path: Path) -> None:
    with open(tmp_path / "some.beton", "w+b") as file:
        file.seek(PAGE)
        group = write_group(file, MIXED, PAGE)
        before = group.rows.copy()
        finish_beton(file, PAGE, [group], PAGE, CLASSES)
    assert (group.rows == before).all()


def test_head_with_room_for_more_samples_is_read(tmp_path: Path) -> None:
    """Room remains when images were left out."""
    first_page = head_bytes(10_000, PAGE)
    assert first_page > head_bytes(len(MIXED), PAGE)
    path = tmp_path / "some.beton"
    with open(path, "w+b") as file:
        file.seek(first_page)
        group = write_group(file, AS_JPEG, PAGE)
        finish_beton(file, first_page, [group], PAGE, CLASSES)
    assert read_all(path) == list(map(Sample, JPEGS, LABELS))


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
        {0, 1, 23, 24, 2105, 2106, 2107, PAGE, size // 2, size - 24, *range(size - 3, size)}, reverse=True
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
    os.truncate(damaged, PAGE + 100)  # after the head
    with pytest.raises(InputError, match=f"{damaged} sample 5"):
        samples[5]


def test_file_that_disappeared_after_it_was_opened_is_named_when_read(damaged: Path) -> None:
    samples = BetonSamples(damaged, CLASSES)
    damaged.unlink()
    with pytest.raises(InputError, match=f"{damaged} sample 0"):
        samples[0]


def offsets(dtype: np.dtype, field: str, start: int, rows: int = 1) -> list[int]:
    """The offsets of the bytes of one field, in a table of `rows` rows that begins at byte `start`."""
    assert dtype.fields is not None
    field_type, at = dtype.fields[field][:2]
    return [start + row * dtype.itemsize + at + byte for row in range(rows) for byte in range(field_type.itemsize)]


METADATA_AT = beton.HEADER.itemsize + 2 * beton.FIELD.itemsize
ROWS = len(JPEGS)


def guarded_bytes(path: Path) -> list[int]:
    """The offsets at which BetonSamples notices any wrong bit, whatever the value there."""
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
    """Inside the block, some bytes of `path` have the bits of a mask flipped."""
    before = path.read_bytes()
    data = bytearray(before)
    for at, mask in flips.items():
        data[at] ^= mask
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module", params=["jpeg", "mixed"])
def fuzzed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzzed") / f"{request.param}.beton"
    write(path, AS_JPEG if request.param == "jpeg" else MIXED)
    return path


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
        samples = BetonSamples(fuzzed, CLASSES)
        assert len(samples) == ROWS
        images = samples.metadata["f0"]
        for index, (jpeg, pixels) in enumerate(zip(JPEGS, IMAGES, strict=True)):
            assert 0 <= samples.metadata["f1"][index] < len(CLASSES)
            stored = samples.read(index)
            # Of a sample's size it is only known that it ends inside the file, and that pixels fill it.
            assert any(stored.startswith(data) or data.startswith(stored) for data in (jpeg, pixels.tobytes()))
            if images["mode"][index] == MODE_RAW:
                assert len(stored) == 3 * int(images["height"][index]) * int(images["width"][index]) > 0


RAW_ROW = METADATA_AT + beton.METADATA.itemsize  # sample 1 of the mixed file: mode, width, height


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, bytes([2])),
        (0, bytes([255])),
        (1, (66).to_bytes(2, "little")),
        (1, (68).to_bytes(2, "little")),
        (3, (63).to_bytes(2, "little")),
        (3, (65).to_bytes(2, "little")),
        (1, bytes(4)),
        (1, b"\xff\xff\xff\xff"),
    ],
    ids=str,
)
def test_pixels_that_do_not_fill_their_place_are_refused(mixed: Path, tmp_path: Path, at: int, value: bytes) -> None:
    """Compiled code reads height x width pixels without checking again."""
    data = bytearray(mixed.read_bytes())
    data[RAW_ROW + at : RAW_ROW + at + len(value)] = value
    (tmp_path / "damaged.beton").write_bytes(data)
    with pytest.raises(InputError, match="its tables point outside the file"):
        BetonSamples(tmp_path / "damaged.beton", CLASSES)


@pytest.mark.parametrize("mode", [MODE_JPEG, MODE_RAW])
def test_an_image_without_pixels_is_refused(tmp_path: Path, mode: int) -> None:
    write(tmp_path / "some.beton", [Entry(b"", mode, 0, 7, 0)], cuts=())
    with pytest.raises(InputError, match="its tables point outside the file"):
        BetonSamples(tmp_path / "some.beton", CLASSES)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pipe.beton"
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"pipe.beton: cannot be read as a beton .*is no regular file"):
        BetonSamples(path, CLASSES)
    path.unlink()
    write(path, [Entry(b"jpeg", MODE_JPEG, 8, 8, 0)], 4096, ())
    samples = BetonSamples(path, CLASSES)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StorageError, match=r"pipe.beton sample 0: Illegal seek"):
        samples[0]


def test_empty_beton_has_no_samples(tmp_path: Path) -> None:
    write(tmp_path / "some.beton", [], cuts=())
    assert len(BetonSamples(tmp_path / "some.beton", CLASSES)) == 0


# --- FFCV's own readers


def ffcv_batches(path: Path, name: str, os_cache: bool) -> tuple[np.ndarray, list[int]]:
    """Every image and label from FFCV's Loader with its decoder of this name.

    The largest square is both cropping decoders' crop here, and has the output's size already.
    """
    import ffcv.fields.rgb_image as decoders
    from ffcv.fields.basics import IntDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    decoder = {
        "simple": lambda: decoders.SimpleRGBImageDecoder(),
        "center": lambda: decoders.CenterCropRGBImageDecoder((SIDE, SIDE), ratio=1),
        "random": lambda: decoders.RandomResizedCropRGBImageDecoder((SIDE, SIDE), scale=(1, 1), ratio=(1, 1)),
    }[name]()
    loader = Loader(
        str(path),
        batch_size=4,
        num_workers=1,
        os_cache=os_cache,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    batches = [(images.numpy().copy(), labels.flatten().tolist()) for images, labels in loader]
    return np.concatenate([images for images, _ in batches]), [label for _, labels in batches for label in labels]


@pytest.fixture(scope="module")
def ffcv_process() -> Iterator[Executor]:
    """A process for FFCV's Loader, which makes array types of numba read-only for all other kernels."""
    pytest.importorskip("ffcv")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


def middle(image: np.ndarray) -> np.ndarray:
    left = (image.shape[1] - SIDE) // 2
    return image[:, left : left + SIDE].astype(int)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's folders with images that FFCV's decoders need not resize: square ones in val."""
    root = tmp_path_factory.mktemp("source")
    for split, seeds in (("train", range(12)), ("val", range(6))):
        for seed in seeds:
            width = SIDE + (seed * 7 if split == "train" else 0)
            wnid = CLASSES[seed % len(CLASSES)]
            path = root / split / wnid / f"{wnid}_{seed}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg_bytes(photograph(SIDE, width, seed), "L" if seed == 4 else "RGB"))
    return root


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of dataset directories named after --jpeg, each in several groups of pages."""
    root = tmp_path_factory.mktemp("converted")
    for jpeg, max_side in (("tile", None), ("keep", None), ("raw", 256), ("proportion", 256)):  # small pages
        settings = {"format": ("ffcv",), "max_side": max_side, "shard_size": "20KB", "workers": 1}
        convert(ConvertSettings(src=(source,), dst=root / jpeg, jpeg=jpeg, **settings))  # type: ignore[arg-type]
    return root


# Each decoder with both of FFCV's ways to read a file, and each --jpeg; all 24 would take minutes.
@pytest.mark.parametrize(
    ("jpeg_mode", "split", "name", "os_cache"),
    [
        ("keep", "train", "random", True),
        ("tile", "train", "center", False),
        ("raw", "val", "simple", True),
        ("raw", "train", "random", False),
        ("proportion", "train", "center", True),
        ("proportion", "val", "simple", False),
    ],
)
def test_ffcvs_own_loader_and_decoders_read_converted_data(
    ffcv_process: Executor, converted: Path, source: Path, jpeg_mode: str, split: str, name: str, os_cache: bool
) -> None:
    opened = open_split(converted / jpeg_mode, split)
    assert opened.info is not None
    assert opened.info.beton is not None
    assert len(opened.info.beton.extents) > 3, "several groups"
    modes = opened.beton.metadata["f0"]["mode"].tolist()
    assert {*modes} == {"raw": {MODE_RAW}, "proportion": {MODE_JPEG, MODE_RAW}}.get(jpeg_mode, {MODE_JPEG})
    images, labels = ffcv_process.submit(ffcv_batches, opened.beton_path, name, os_cache).result()
    originals = {path: middle(decoded(path.read_bytes())) for path in sorted((source / split).glob("*/*.JPEG"))}
    assert len(images) == len(originals)
    for image, label, mode in zip(images, labels, modes, strict=True):
        differences = {path: np.abs(image - original).mean() for path, original in originals.items()}
        nearest = min(differences, key=differences.__getitem__)
        assert differences[nearest] < (0.01 if mode == MODE_RAW else 3), "FFCV's fast DCT, and a second encoding"
        assert nearest.parent.name == CLASSES[label]
        del originals[nearest]  # each occurs once
    assert not originals


def test_an_image_of_12_gb_is_refused(tmp_path: Path) -> None:
    """Its place in memory would be taken before its own header is read."""
    write(tmp_path / "some.beton", [AS_JPEG[0], AS_JPEG[1]._replace(height=65_500, width=65_500)])
    with pytest.raises(InputError, match="its tables point outside the file"):
        BetonSamples(tmp_path / "some.beton", CLASSES)


def test_a_head_beyond_any_real_one_is_not_read(tmp_path: Path) -> None:
    info = write(tmp_path / "some.beton")
    assert head_matches(tmp_path / "some.beton", info)
    os.truncate(tmp_path / "some.beton", 1 << 43)
    huge = Extent(bytes=1 << 42, sha256=info.extents[0].sha256)
    assert not head_matches(tmp_path / "some.beton", replace(info, extents=(huge, *info.extents[1:])))
