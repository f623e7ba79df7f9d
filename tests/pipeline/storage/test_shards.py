"""WebDataset shards, read back by our reader, by the webdataset library and by DALI."""

import contextlib
import gzip
import hashlib
import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError, StorageError
from pipeline.pixels.jpeg.tiles import tile
from pipeline.storage.samples import Sample
from pipeline.storage.shards import (
    ShardInfo,
    ShardSamples,
    ShardWriter,
    _own_file,
    member_header,
    members_of,
    position_of_key,
    sample_key,
    stored_size,
)
from tests.helpers.files import files_in, files_of_at_most
from tests.helpers.images import decoded, varied_jpeg
from tests.helpers.memory import memory_below

NUM_CLASSES = 12
STEMS = [
    "n01440764_10026",
    "ILSVRC2012_val_00000017",
    "with.dots.inside",
    "with blanks and / slashes",
    "Zürich_ünïcode_写真",
    "x" * 300,
    "",
    "-rf",
    "..",
]
SOURCES = [varied_jpeg(number, seed=7) for number in range(len(STEMS))]
JPEGS = [jpeg if number in (1, 4) else tile(jpeg) for number, jpeg in enumerate(SOURCES)]  # 4 is progressive
LABELS = [0, 11, 3, 3, 10, 1, 2, 9, 7]
COUNTS = (4, 1, 4)  # samples of each shard
FIRST = np.cumsum((0, *COUNTS))


def write(dataset: Path, counts: tuple[int, ...] = COUNTS) -> tuple[ShardInfo, ...]:
    samples = iter(zip(STEMS, JPEGS, LABELS, strict=True))
    shards = []
    for number, count in enumerate(counts):
        name = f"webdataset/train-{number:06d}.tar"
        writer = ShardWriter(dataset / name, number)
        for stem, jpeg, label in islice(samples, count):
            writer.add(stem, jpeg, label)
        size, sha256 = writer.close()
        shards.append(ShardInfo(name=name, samples=count, bytes=size, sha256=sha256))
    return tuple(shards)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[ShardInfo, ...]]:
    """A dataset directory and its shards; tests do not change it."""
    dataset = tmp_path_factory.mktemp("shards")
    return dataset, write(dataset)


def read_all(samples: ShardSamples) -> list[Sample]:
    return [samples[index] for index in range(len(samples))]


def test_samples_are_read_back_by_position(written: tuple[Path, tuple[ShardInfo, ...]]) -> None:
    samples = ShardSamples(*written, NUM_CLASSES)
    assert read_all(samples) == list(map(Sample, JPEGS, LABELS))


def test_webdataset_library_reads_the_shards(written: tuple[Path, tuple[ShardInfo, ...]]) -> None:
    dataset, shards = written
    urls = [str(dataset / shard.name) for shard in shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["jpg"] for sample in samples] == JPEGS
    assert [int(sample["cls"]) for sample in samples] == LABELS
    assert [position_of_key(sample["__key__"], FIRST) for sample in samples] == list(range(len(STEMS)))


def test_webdataset_library_decodes_images_and_labels(written: tuple[Path, tuple[ShardInfo, ...]]) -> None:
    dataset, shards = written
    urls = [str(dataset / shard.name) for shard in shards]
    pairs = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls"))
    assert [label for _, label in pairs] == LABELS
    for (image, _), source in zip(pairs, SOURCES, strict=True):
        assert np.array_equal(image, decoded(source))


def test_dali_reads_the_shards_with_our_indices(written: tuple[Path, tuple[ShardInfo, ...]]) -> None:
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def

    dataset, shards = written
    paths = [dataset / shard.name for shard in shards]

    @pipeline_def(batch_size=len(STEMS), num_threads=1, device_id=None)
    def reader() -> tuple[Any, ...]:
        jpegs, labels = fn.readers.webdataset(
            paths=list(map(str, paths)),
            index_paths=[str(path.with_suffix(".idx")) for path in paths],
            ext=["jpg", "cls"],
            missing_component_behavior="error",
        )
        exact = {"jpeg_fancy_upsampling": True, "use_fast_idct": False, "adjust_orientation": False}  # as libjpeg
        return jpegs, labels, fn.decoders.image(jpegs, device="cpu", **exact)

    pipeline = reader()
    pipeline.build()
    jpegs, labels, images = pipeline.run()
    for row, source in enumerate(SOURCES):
        assert np.array_equal(np.asarray(images.at(row)), decoded(source))
    assert [np.asarray(jpegs.at(row)).tobytes() for row in range(len(STEMS))] == JPEGS
    assert [int(np.asarray(labels.at(row)).tobytes()) for row in range(len(STEMS))] == LABELS


def test_indices_equal_those_of_dalis_wds2idx(written: tuple[Path, tuple[ShardInfo, ...]], tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx")
    dataset, shards = written
    for shard in shards:
        path = dataset / shard.name
        with wds2idx.IndexCreator(str(path), str(tmp_path / "wds2idx.idx"), verbose=False) as creator:
            creator.create_index()
        assert path.with_suffix(".idx").read_text() == (tmp_path / "wds2idx.idx").read_text()


def test_members_are_a_piece_of_a_tar_stream(written: tuple[Path, tuple[ShardInfo, ...]]) -> None:
    """In any order, they form a tar archive."""
    samples = ShardSamples(*written, NUM_CLASSES)
    chosen = [7, 0, 3]
    with tarfile.open(fileobj=io.BytesIO(b"".join(map(samples.read_members, chosen)))) as archive:
        names = archive.getnames()
        contents = [stream.read() for name in names if (stream := archive.extractfile(name))]
    keys = [sample_key(shard, place, STEMS[at]) for at, shard, place in ((7, 2, 2), (0, 0, 0), (3, 0, 3))]
    assert names == [key + suffix for key in keys for suffix in (".jpg", ".cls")]
    assert contents == [data for i in chosen for data in (JPEGS[i], str(LABELS[i]).encode())]


def test_shards_are_as_recorded(written: tuple[Path, tuple[ShardInfo, ...]]) -> None:
    dataset, shards = written
    assert sorted(files_in(dataset)) == sorted(
        f"webdataset/train-{number:06d}.{suffix}" for number in range(len(COUNTS)) for suffix in ("idx", "tar")
    )
    for shard in shards:
        data = (dataset / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)


def test_size_of_a_shard_is_known_before_it_is_written(written: tuple[Path, tuple[ShardInfo, ...]]) -> None:
    jpegs = iter(JPEGS)
    for shard in written[1]:
        assert shard.bytes == 1024 + sum(stored_size(len(jpeg)) for jpeg in islice(jpegs, shard.samples))


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_stored_size_is_the_size_that_a_sample_adds(tmp_path: Path, size: int) -> None:
    writer = ShardWriter(tmp_path / "some.tar", 0)
    writer.add("one", bytes(size), 999)
    assert writer.close()[0] == stored_size(size) + 1024


def test_same_samples_give_the_same_bytes(written: tuple[Path, tuple[ShardInfo, ...]], tmp_path: Path) -> None:
    assert write(tmp_path) == written[1]
    assert files_in(tmp_path) == files_in(written[0])


def test_a_shard_does_not_depend_on_those_before_it(
    written: tuple[Path, tuple[ShardInfo, ...]], tmp_path: Path
) -> None:
    """So every machine can write any of them."""
    writer = ShardWriter(tmp_path / "other" / "any.tar", 2)
    for stem, jpeg, label in list(zip(STEMS, JPEGS, LABELS, strict=True))[5:]:
        writer.add(stem, jpeg, label)
    last = written[1][2]
    assert writer.close() == (last.bytes, last.sha256)
    theirs = (written[0] / last.name).with_suffix(".idx").read_bytes()
    assert files_in(tmp_path) == {"other/any.tar": (written[0] / last.name).read_bytes(), "other/any.idx": theirs}


@given(
    counts=st.lists(st.integers(1, 1500), min_size=1, max_size=5),
    at=st.integers(0, 10**6),
    stem=st.text(max_size=80),
    folder=st.sampled_from(["", "./", "some/folder/"]),
)
def test_key_contains_its_position_and_no_character_that_readers_split_at(
    counts: list[int], at: int, stem: str, folder: str
) -> None:
    first = np.cumsum([0, *counts])
    position = at % int(first[-1])
    shard = int(np.searchsorted(first, position, side="right")) - 1
    key = sample_key(shard, position - int(first[shard]), stem)
    assert position_of_key(folder + key, first) == position
    assert key.isascii()
    assert not set(key) & set("./\\ \n\0")


def test_keys_sort_by_position() -> None:
    keys = [sample_key(shard, place, "x") for shard in (0, 9, 10, 999_999) for place in (0, 9, 10, 99_999, 100_000)]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "key",
    [
        "n01440764_10026",
        "",
        "cat",
        "000000",
        "_",
        "000000_",
        "000000_000004_behind_its_shard",
        "000003_000000_behind_the_last_shard",
        "000001_000001_x",
        "-00002_000000_x",
        "000000_-00001_x",
        f"000000_{1 << 70}_x",
        f"{1 << 70}_000000_x",
        f"{'9' * 5000}_000000_x",
    ],
    ids=lambda key: key[:40],
)
def test_foreign_key_has_no_position(key: str) -> None:
    with pytest.raises(ValueError, match=r"is not a sample|invalid literal|not enough values|Exceeds the limit"):
        position_of_key(key, FIRST)


def test_shard_appears_only_once_it_is_complete(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "train-000000.tar", 0)
    writer.add(STEMS[0], JPEGS[0], 0)
    assert not list(tmp_path.glob("[!.]*"))
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000000.idx", "train-000000.tar"]


def test_abort_leaves_nothing_of_the_unfinished_shard(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "train-000000.tar", 0)
    writer.add(STEMS[0], JPEGS[0], 0)
    writer.abort()
    assert not files_in(tmp_path)


@pytest.mark.parametrize("limit", [0, 100, len(JPEGS[0])])
def test_a_shard_on_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    writer = ShardWriter(tmp_path / "train-000000.tar", 0)
    with files_of_at_most(limit):
        with pytest.raises(OSError, match="File too large"):  # noqa: PT012 (either statement may raise)
            writer.add(STEMS[0], JPEGS[0], 0)
            writer.close()
        writer.abort()
    assert not [name for name in files_in(tmp_path) if name.endswith((".tar", ".partial"))]


@pytest.fixture
def one_shard(tmp_path: Path) -> tuple[Path, ShardInfo]:
    """A dataset directory with one shard that a test may damage."""
    (shard,) = write(tmp_path, (len(STEMS),))
    return tmp_path, shard


def test_truncated_shard_is_named_when_its_sample_is_read(one_shard: tuple[Path, ShardInfo]) -> None:
    dataset, shard = one_shard
    samples = ShardSamples(dataset, (shard,), NUM_CLASSES)
    os.truncate(dataset / shard.name, shard.bytes // 2)
    assert samples[0].jpeg == JPEGS[0]
    with pytest.raises(InputError, match=r"train-000000\.tar sample 8: truncated"):
        samples[8]


def test_shard_that_disappeared_is_named(one_shard: tuple[Path, ShardInfo]) -> None:
    dataset, shard = one_shard
    samples = ShardSamples(dataset, (shard,), NUM_CLASSES)
    (dataset / shard.name).unlink()
    with pytest.raises(InputError, match=r"train-000000\.tar sample 0: No such file"):
        samples[0]


@pytest.mark.parametrize("text", [b"12", b"-1", b"", b"cat", b"\xb2", b"1 ", b"0x1"])
def test_label_outside_the_classes_is_refused(written: tuple[Path, tuple[ShardInfo, ...]], text: bytes) -> None:
    samples = ShardSamples(*written, NUM_CLASSES)
    with pytest.raises(InputError, match=r"train-000000\.tar sample 0: the label .* is not one of 12 classes"):
        samples.label(text, 0)


@contextlib.contextmanager
def altered_index(one_shard: tuple[Path, ShardInfo], text: bytes) -> Iterator[None]:
    path = (one_shard[0] / one_shard[1].name).with_suffix(".idx")
    before = path.read_bytes()
    path.write_bytes(text)
    try:
        yield
    finally:
        path.write_bytes(before)


def index_of(one_shard: tuple[Path, ShardInfo]) -> str:
    return (one_shard[0] / one_shard[1].name).with_suffix(".idx").read_text()


BAD_INDICES: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "another version": lambda text: text.replace("v1.2", "v1.1"),
    "a line missing": lambda text: text.rpartition("jpg")[0],
    "a line twice": lambda text: text + text.splitlines()[1] + "\n",
    "no label": lambda text: text.replace("cls", "txt", 1),
    "a word for a number": lambda text: text.replace("jpg 512", "jpg much"),
    "before the shard": lambda text: text.replace("jpg 512", "jpg -512"),
    "in the first header": lambda text: text.replace("jpg 512", "jpg 511"),
    "after the shard": lambda text: text.replace("jpg 512", "jpg 5120000"),
    "more than 64 bits": lambda text: text.replace("jpg 512", f"jpg {1 << 70}"),
    "a sum of more than 64 bits": lambda text: re.sub(r"jpg 512 \d+", f"jpg 512 {(1 << 63) - 1}", text),
    "a label of many bytes": lambda text: re.sub(r"(cls \d+) 1 ", r"\1 33 ", text),
    "not ASCII": lambda text: text.replace("jpg", "jpü", 1),
}


@pytest.mark.parametrize("alter", BAD_INDICES.values(), ids=BAD_INDICES.keys())
def test_altered_index_is_named(one_shard: tuple[Path, ShardInfo], alter: Callable[[str], str]) -> None:
    dataset, shard = one_shard
    altered = alter(index_of(one_shard))
    assert altered != index_of(one_shard)
    with (
        altered_index(one_shard, altered.encode()),
        pytest.raises(InputError, match=r"train-000000\.idx: .*convert again"),
    ):
        ShardSamples(dataset, (shard,), NUM_CLASSES)


MISLEADING_INDICES: dict[str, Callable[[list[str]], object]] = {
    "two samples swapped": lambda words: swap_samples(words),
    "a label truncated": lambda words: words.__setitem__(14, "1"),
    "an image truncated": lambda words: words.__setitem__(2, str(int(words[2]) - 1)),
}
IMPOSSIBLE_INDICES: dict[str, Callable[[list[str]], object]] = {
    "two labels swapped": lambda words: swap(words, 4, 12),
    "two images swapped": lambda words: swap(words, 0, 8),
    "an image a block too late": lambda words: words.__setitem__(1, "1024"),
}
"""A label is not behind its image."""


def swap_samples(words: list[str]) -> None:
    """Exchange the entries of the first two samples."""
    swap(words, 0, 8)
    swap(words, 4, 12)


def swap(words: list[str], one: int, other: int) -> None:
    """Exchange the entries of two files in an index."""
    words[one : one + 4], words[other : other + 4] = words[other : other + 4], words[one : one + 4]


def with_first_samples(index: str, alter: Callable[[list[str]], object]) -> bytes:
    """An index with the words of its first two samples altered."""
    version, first, second, *others = index.splitlines()
    words = f"{first} {second}".split()
    alter(words)
    return "\n".join([version, " ".join(words[:8]), " ".join(words[8:]), *others]).encode()


@pytest.mark.parametrize("alter", IMPOSSIBLE_INDICES.values(), ids=IMPOSSIBLE_INDICES.keys())
def test_impossible_index_is_noticed_at_once(
    one_shard: tuple[Path, ShardInfo], alter: Callable[[list[str]], object]
) -> None:
    dataset, shard = one_shard
    with (
        altered_index(one_shard, with_first_samples(index_of(one_shard), alter)),
        pytest.raises(InputError, match=r"train-000000\.idx: points to where its shard cannot have a sample"),
    ):
        ShardSamples(dataset, (shard,), NUM_CLASSES)


@pytest.mark.parametrize("alter", MISLEADING_INDICES.values(), ids=MISLEADING_INDICES.keys())
def test_misleading_index_is_noticed_when_the_sample_is_read(
    one_shard: tuple[Path, ShardInfo], alter: Callable[[list[str]], object]
) -> None:
    """All its numbers are possible, but the first two samples are elsewhere."""
    dataset, shard = one_shard
    with altered_index(one_shard, with_first_samples(index_of(one_shard), alter)):
        samples = ShardSamples(dataset, (shard,), NUM_CLASSES)
        with pytest.raises(InputError, match=r"sample [01]: the shard's index points to something else"):
            read_all(samples)
        assert samples[2] == Sample(JPEGS[2], LABELS[2])


def test_missing_index_is_named(one_shard: tuple[Path, ShardInfo]) -> None:
    dataset, shard = one_shard
    (dataset / shard.name).with_suffix(".idx").unlink()
    with pytest.raises(InputError, match=r"train-000000\.idx: cannot be read"):
        ShardSamples(dataset, (shard,), NUM_CLASSES)


def test_index_of_another_shard_is_refused(one_shard: tuple[Path, ShardInfo]) -> None:
    dataset, shard = one_shard
    with pytest.raises(InputError, match="does not list the 8 samples of its shard"):
        ShardSamples(dataset, (replace(shard, samples=8),), NUM_CLASSES)


@pytest.fixture(scope="module")
def fuzzed_shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardInfo]:
    dataset = tmp_path_factory.mktemp("fuzzed")
    (shard,) = write(dataset, (len(STEMS),))
    return dataset, shard


numbers = st.one_of(
    st.integers(-2, 1 << 17),
    st.sampled_from([(1 << e) + d for e in (31, 32, 62, 63, 64, 70) for d in (-512, -1, 0, 1)]),
)
words = st.one_of(st.text(max_size=5), st.sampled_from(["jpg", "cls", "", "nan", "1e3", "-0", "٣", "1_0", "\0"]))


def assert_read_or_refused(shard: tuple[Path, ShardInfo], index: str) -> None:
    """With this index, only the right samples and InputErrors may come out."""
    dataset, info = shard
    with altered_index(shard, index.encode()), contextlib.suppress(InputError):
        samples = ShardSamples(dataset, (info,), NUM_CLASSES)
        for position in range(len(samples)):
            with contextlib.suppress(InputError):
                assert samples[position] == Sample(JPEGS[position], LABELS[position])


@given(st.dictionaries(st.integers(0, 4 * len(STEMS) - 1), numbers, min_size=1, max_size=4))
def test_fuzzed_numbers_in_an_index_give_samples_or_an_input_error(
    fuzzed_shard: tuple[Path, ShardInfo], changes: dict[int, int]
) -> None:
    places = iter(range(4 * len(STEMS)))

    def change(number: re.Match[str]) -> str:
        return f" {changes.get(next(places), number[0])}"

    assert_read_or_refused(fuzzed_shard, re.sub(r" \d+(?= )", change, index_of(fuzzed_shard)))


@given(st.dictionaries(st.integers(0, 60), words, min_size=1, max_size=4))
def test_fuzzed_words_in_an_index_give_samples_or_an_input_error(
    fuzzed_shard: tuple[Path, ShardInfo], changes: dict[int, str]
) -> None:
    old = index_of(fuzzed_shard).split(" ")
    assert_read_or_refused(fuzzed_shard, " ".join(changes.get(at, word) for at, word in enumerate(old)))


@given(text=st.binary(max_size=300))
def test_random_bytes_for_an_index_give_an_input_error(fuzzed_shard: tuple[Path, ShardInfo], text: bytes) -> None:
    dataset, shard = fuzzed_shard
    with altered_index(fuzzed_shard, text), pytest.raises(InputError):
        ShardSamples(dataset, (shard,), NUM_CLASSES)


class Endless:
    """A stream that begins so, and goes on with zeros."""

    def __init__(self, start: bytes) -> None:
        self._start = io.BytesIO(start)

    def read(self, size: int, /) -> bytes:
        return self._start.read(size) or bytes(min(size, 1 << 20))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, "/etc/passwd"
    return member.tobuf(tarfile.GNU_FORMAT)


HOSTILE = {
    "an image of 8 GiB": header("a.jpg", 1 << 33),
    "a label of 8 GiB": header("a.cls", 1 << 33),
    "another file of 8 TiB": header("a.txt", 1 << 43),
    "a negative size": header("a.jpg", -512),
    "a symbolic link": header("a.jpg", 0, tarfile.SYMTYPE),
    "a hard link": header("a.jpg", 0, tarfile.LNKTYPE),
    "a device": header("a.jpg", 0, tarfile.CHRTYPE),
    "a file with holes": header("a.jpg", 512, tarfile.GNUTYPE_SPARSE),
    "a pax header of 8 GiB": header("pax", 1 << 33, tarfile.XHDTYPE),
    "a name of 8 GiB": header("././@LongLink", 1 << 33, tarfile.GNUTYPE_LONGNAME),
    "compressed zeros": gzip.compress(bytes(1 << 20)),
    "nonsense": b"\xff\xd8 no archive" * 100,
}


@pytest.mark.parametrize("start", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_stream_is_one_line(start: bytes) -> None:
    with memory_below(1 << 24), pytest.raises(InputError, match=r"^there: ") as raised:
        list(members_of(Endless(start), "there", 1 << 40))
    assert str(raised.value).isprintable()


@given(
    name=st.text(st.characters(max_codepoint=127), max_size=100),
    size=st.integers(-10, (1 << 33) - 1),
    changes=st.dictionaries(st.integers(0, 511), st.integers(0, 255), max_size=3),
    is_summed=st.booleans(),
)
def test_a_header_of_our_own_is_read_as_tarfile_reads_it(
    name: str, size: int, changes: dict[int, int], is_summed: bool
) -> None:
    """One that was changed, whether its sum was corrected or not, as tarfile reads that, or it is left to tarfile."""
    changed = bytearray(member_header(name, size))
    for place, value in changes.items():
        changed[place] = value
    if is_summed:
        changed[148:156] = b"%06o\0 " % (sum(changed) - sum(changed[148:156]) + 8 * ord(" "))
    found = _own_file(bytes(changed))
    if found is not None:
        member = tarfile.TarInfo.frombuf(changed, "utf-8", "strict")
        assert found == (member.name, member.size)
        assert member.isreg()
    if name.isprintable() and size >= 0 and not changes:
        assert found == (name, size)


def test_a_stream_that_breaks_off_is_a_failure(written: tuple[Path, tuple[ShardInfo, ...]]) -> None:
    dataset, (shard, *_) = written
    whole = (dataset / shard.name).read_bytes()
    names = [name for name, _ in members_of(io.BytesIO(whole), "there", len(whole))]
    assert len(names) == 2 * shard.samples
    for end in (0, 100, 512, len(whole) // 2):
        with pytest.raises(StorageError, match=r"^there: breaks off$"):
            list(members_of(io.BytesIO(whole[:end]), "there", len(whole)))
