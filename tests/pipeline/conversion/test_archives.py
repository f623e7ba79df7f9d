"""Archives read in place: members and offsets of real ones, and damage of every kind."""

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.conversion.archives import Member, list_members
from pipeline.errors import InputError

BLOCK = tarfile.BLOCKSIZE
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LONG = "n01440764/" + "very/deep/" * 15 + "n01440764_10026.JPEG"
CONTENTS = {
    "n01440764_18.JPEG": b"first" * 50,
    "n01440764/n01440764_37.JPEG": bytes(range(256)) * 2,  # whole blocks
    "empty.JPEG": b"",
    "Zürich 写真.JPEG": b"name beyond ASCII",
    "n01440764_41.JPEG": b"last" * 300,
}


def tar_bytes(contents: dict[str, bytes], **options: int) -> bytes:
    """An archive written by Python's tarfile."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:  # type: ignore[call-overload]
        for name, data in contents.items():
            archive.addfile(header(name, len(data)), io.BytesIO(data))
    return file.getvalue()


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, target
    return member


def raw_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header block; `size` may be absurd."""
    return header(name, size, kind).tobuf(tarfile.GNU_FORMAT)


@pytest.fixture
def tar(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes an archive; the next one replaces it."""

    def write(data: bytes) -> Path:
        (tmp_path / "some.tar").write_bytes(data)
        return tmp_path / "some.tar"

    return write


def contents_of(path: Path, members: Iterable[Member]) -> dict[str, bytes]:
    """Name and bytes of each member, read by its offset and size alone."""
    data = path.read_bytes()
    return {member.name: data[member.offset : member.offset + member.size] for member in members}


@pytest.mark.parametrize("name", FORMATS)
def test_every_file_is_listed_with_the_offset_of_its_bytes(tar: Callable[[bytes], Path], name: str) -> None:
    contents = CONTENTS if name == "ustar" else {LONG: b"long name", **CONTENTS}
    path = tar(tar_bytes(contents, format=FORMATS[name]))
    assert list(contents_of(path, list_members(path)).items()) == list(contents.items())


@pytest.mark.parametrize("name", ["ustar", "gnu", "pax", "v7"])
def test_archives_of_gnu_tar_are_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "train"
    (folder / "n01440764").mkdir(parents=True)
    contents = {"n01440764_18.JPEG": b"a" * 1000, "n01440764/x.JPEG": b"b", "n01440764/y.JPEG": b""}
    for file, data in contents.items():
        (folder / file).write_bytes(data)
    subprocess.run(["tar", f"--format={name}", "-C", folder, "-cf", tmp_path / "some.tar", *contents], check=True)
    path = tmp_path / "some.tar"
    assert contents_of(path, list_members(path)) == contents


def test_members_that_are_not_files_are_ignored(tar: Callable[[bytes], Path]) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(header("before", 6), io.BytesIO(b"before"))
        archive.addfile(header("folder", kind=tarfile.DIRTYPE))
        archive.addfile(header("symbolic", kind=tarfile.SYMTYPE, target="before"))
        archive.addfile(header("hard", kind=tarfile.LNKTYPE, target="before"))
        archive.addfile(header("pipe", kind=tarfile.FIFOTYPE))
        archive.addfile(header("device", kind=tarfile.CHRTYPE))
        archive.addfile(header("of another program", 700, kind=b"Q"), io.BytesIO(b"x" * 700))
        archive.addfile(header("after", 5), io.BytesIO(b"after"))
    path = tar(file.getvalue())
    assert contents_of(path, list_members(path)) == {"before": b"before", "after": b"after"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_instead_of_an_image_is_named(tar: Callable[[bytes], Path], kind: bytes) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(header("n01440764/a.JPEG", 6), io.BytesIO(b"before"))
        archive.addfile(header("n01440764/b.JPEG", kind=kind, target="n01440764/a.JPEG"))
    path = tar(file.getvalue())
    with pytest.raises(InputError, match=r"n01440764/b\.JPEG is a link"):
        list(list_members(path))


def test_archives_in_an_archive_are_read_in_place(tar: Callable[[bytes], Path]) -> None:
    classes = {f"n0000000{n}.tar": {f"n0000000{n}_{i}.JPEG": bytes([n, i]) * 300 for i in range(n)} for n in (1, 0, 3)}
    path = tar(tar_bytes({name: tar_bytes(contents) for name, contents in classes.items()}))
    outer = list(list_members(path))
    assert [member.name for member in outer] == list(classes)
    for member in outer:
        assert contents_of(path, list_members(path, member)) == classes[member.name]


@pytest.mark.parametrize(
    ("blocks", "message"), [(2, r"truncated \(no end of the archive\)"), (4, r"truncated in b\.JPEG")]
)
def test_an_inner_archive_ends_where_its_member_does(tar: Callable[[bytes], Path], blocks: int, message: str) -> None:
    """Otherwise what follows it in the outer archive would be taken for the rest of it."""
    whole = tar_bytes({"a.JPEG": b"a" * 100, "b.JPEG": b"b" * 5000})
    path = tar(tar_bytes({"n00000001.tar": whole[: blocks * BLOCK], "n00000002.tar": whole}))
    cut, _ = list_members(path)
    with pytest.raises(InputError, match=rf"^{path}: n00000001\.tar: {message}$"):
        list(list_members(path, cut))


def test_an_empty_archive_has_no_members(tar: Callable[[bytes], Path]) -> None:
    assert list(list_members(tar(tar_bytes({})))) == []
    assert list(list_members(tar(bytes(2 * BLOCK)))) == []


def test_names_of_any_bytes_are_passed_on(tar: Callable[[bytes], Path]) -> None:
    name = os.fsdecode(b"caf\xe9 \xff.JPEG")
    path = tar(tar_bytes({name: b"x"}, format=tarfile.GNU_FORMAT))
    assert [member.name for member in list_members(path)] == [name]


def test_an_abandoned_listing_closes_its_file(tar: Callable[[bytes], Path]) -> None:
    members = list_members(tar(tar_bytes(CONTENTS)))
    next(members)
    files = len(os.listdir("/proc/self/fd"))
    members.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == files - 1


def refused(path: Path, match: str | None = None) -> InputError:
    with pytest.raises(InputError, match=match) as raised:
        list(list_members(path))
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    return raised.value


@pytest.mark.parametrize("name", FORMATS)
def test_truncation_at_any_block_and_around_it_is_refused(tar: Callable[[bytes], Path], name: str) -> None:
    """Up to the first of the empty blocks at the end, after which no member can be missing."""
    data = tar_bytes(CONTENTS, format=FORMATS[name])
    end = len(data.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    for cut in range(0, end + 1, BLOCK):
        for length in {max(cut - 1, 0), cut, cut + 1}:
            refused(tar(data[:length]))
    path = tar(data[: end + BLOCK])
    assert contents_of(path, list_members(path)) == CONTENTS


def test_truncated_image_is_named(tar: Callable[[bytes], Path]) -> None:
    data = tar_bytes(CONTENTS)
    refused(tar(data[: data.index(b"lastlast") + 100]), r"some\.tar: truncated in n01440764_41\.JPEG$")


def test_every_flipped_bit_of_a_name_or_size_is_noticed(tar: Callable[[bytes], Path]) -> None:
    data = tar_bytes({"a.JPEG": b"x" * 10, "b.JPEG": b"y" * 600}, format=tarfile.USTAR_FORMAT)
    for start in (0, 2 * BLOCK):
        for at in [*range(start, start + 8), *range(start + 124, start + 136)]:
            for bit in range(8):
                damaged = bytearray(data)
                damaged[at] ^= 1 << bit
                refused(tar(bytes(damaged)))


@pytest.mark.parametrize("damaged", range(1, len(CONTENTS)))
def test_a_header_of_zeros_is_not_the_end(tar: Callable[[bytes], Path], damaged: int) -> None:
    """A parallel download that was not finished leaves such headers."""
    data = bytearray(tar_bytes(CONTENTS, format=tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        at = archive.getmembers()[damaged].offset
    data[at : at + BLOCK] = bytes(BLOCK)
    refused(tar(bytes(data)), f"damaged at byte {at}, or an incomplete download")


def test_many_zeros_are_not_the_end(tar: Callable[[bytes], Path]) -> None:
    """Some downloads give the file its full size first."""
    path = tar(tar_bytes(CONTENTS))
    os.truncate(path, 1 << 20)
    assert contents_of(path, list_members(path)) == CONTENTS, "a tape's block may be as large"
    os.truncate(path, 1 << 30)
    refused(path, "or an incomplete download")


def test_archives_joined_end_to_end_are_refused(tar: Callable[[bytes], Path]) -> None:
    """Readers stop at the end of the first."""
    refused(tar(tar_bytes(CONTENTS) * 2), "damaged at byte")


def end_blocks() -> bytes:
    return bytes(2 * BLOCK)


def pax(record: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header with one record, which begins with its own length."""
    length = len(record) + 4
    assert 100 <= length < 1000
    data = b"%d %s\n" % (length + 1, record)
    return raw_header("pax", len(data), kind) + data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


NUMBER = b"0" * 100  # digits that make a record of three-digit length
ABSURD = {
    "a size beyond the file": raw_header("a.JPEG", 1 << 20),
    "a size of 8 GiB": raw_header("a.JPEG", (1 << 33) - 1),
    "a size of 2**80": raw_header("a.JPEG", 1 << 80),
    "a negative size": raw_header("a.JPEG", -1),
    "a size that leads back": raw_header("a.JPEG", -2 * BLOCK),
    "a size that leads before the file": raw_header("a.JPEG", -(1 << 40)),
    "a link of negative size": raw_header("a.JPEG", -2 * BLOCK, tarfile.SYMTYPE) + raw_header("b.JPEG", -BLOCK),
    "an unknown kind that leads back": raw_header("a.JPEG", -BLOCK, b"Q"),
    "a long name of 8 GiB": raw_header("././@LongLink", 1 << 33, tarfile.GNUTYPE_LONGNAME),
    "a long name of negative size": raw_header("././@LongLink", -BLOCK, tarfile.GNUTYPE_LONGNAME),
    "a long name of nothing": raw_header("././@LongLink", 0, tarfile.GNUTYPE_LONGNAME),
    "long names without end": raw_header("././@LongLink", 0, tarfile.GNUTYPE_LONGNAME) * 3000,
    "pax headers without end": raw_header("pax", 0, tarfile.XHDTYPE) * 3000,
    "a pax header of 8 GiB": raw_header("pax", 1 << 33, tarfile.XHDTYPE),
    "a pax size beyond the file": pax(b"size=" + NUMBER + b"99999") + raw_header("a.JPEG", 5),
    "a negative pax size": pax(b"size=-" + NUMBER + b"1") + raw_header("a.JPEG", 5),
    "a pax size that leads back": pax(b"size=-" + NUMBER + b"4096") + raw_header("a.JPEG", 5),
    "a size that leads back after a global one": raw_header("a.JPEG", 0)
    + pax(b"size=" + NUMBER + b"00005", tarfile.XGLTYPE)
    + raw_header("b.JPEG", -3 * BLOCK),
    "a pax size that is no number": pax(b"size=" + b"x" * 100) + raw_header("a.JPEG", 600) + b"x" * 1024,
    "a sparse size that is no number": pax(b"GNU.sparse.realsize=" + b"x" * 100) + raw_header("a.JPEG", 5),
    "a sparse map that is none": pax(b"GNU.sparse.map=" + b"x" * 100) + raw_header("a.JPEG", 0),
    "a file with holes": raw_header("a.JPEG", 0, tarfile.GNUTYPE_SPARSE),
    "nonsense": b"\xff\xd8\xff\xe0 no archive" * 100,
    "text": b"<!DOCTYPE html><title>404 Not Found</title>\n" * 100,
}


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("data", ABSURD.values(), ids=ABSURD.keys())
def test_absurd_headers_are_refused(tar: Callable[[bytes], Path], data: bytes, inner: bool) -> None:
    if not inner:
        refused(tar(data + end_blocks()))
        return
    path = tar(tar_bytes({"n00000001.tar": data + end_blocks(), "n00000002.tar": tar_bytes(CONTENTS)}))
    with pytest.raises(InputError, match=rf"^{path}: n00000001\.tar: "):
        list(list_members(path, next(iter(list_members(path)))))


def test_a_truncated_map_of_a_sparse_file_is_refused(tar: Callable[[bytes], Path]) -> None:
    """The header promises another block of the map."""
    block = bytearray(raw_header("a.JPEG", 0, tarfile.GNUTYPE_SPARSE))
    block[482], block[483:495] = 1, b"00000000000\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    refused(tar(bytes(block)))


@pytest.mark.parametrize("name", ["gnu", "posix"])
def test_a_file_stored_with_holes_is_refused(tmp_path: Path, name: str) -> None:
    """Its bytes are not contiguous in the archive."""
    with open(tmp_path / "holes.JPEG", "wb") as file:
        file.write(b"x" * 4096)
        file.seek(1 << 20)
        file.write(b"y" * 4096)
    flags = ["--sparse", f"--format={name}"]
    subprocess.run(["tar", *flags, "-C", tmp_path, "-cf", tmp_path / "some.tar", "holes.JPEG"], check=True)
    if (tmp_path / "some.tar").stat().st_size > 1 << 20:
        pytest.skip("this file system makes no holes")
    refused(tmp_path / "some.tar", r"holes\.JPEG is stored with holes")


def test_a_compressed_archive_is_refused(tar: Callable[[bytes], Path]) -> None:
    refused(tar(gzip.compress(tar_bytes(CONTENTS))), "not a tar archive")


@pytest.mark.parametrize("data", [b"", b"x", bytes(BLOCK - 1)])
def test_a_file_shorter_than_a_block_is_refused(tar: Callable[[bytes], Path], data: bytes) -> None:
    refused(tar(data))


def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "none.tar", "cannot be read \\(No such file")
    refused(tmp_path, "cannot be read \\(is no regular file")


def test_an_archive_that_disappears_after_it_was_listed_is_named(tar: Callable[[bytes], Path]) -> None:
    path = tar(tar_bytes({"n00000001.tar": tar_bytes(CONTENTS)}))
    (inner,) = list_members(path)
    path.unlink()
    with pytest.raises(InputError, match=rf"^{path}: n00000001\.tar: cannot be read"):
        list(list_members(path, inner))


def peak_memory(path: Path) -> tuple[int, int]:
    """Number of members of an archive (-1 if it is refused), and the peak memory of listing them, in bytes."""
    tracemalloc.start()
    try:
        count = sum(1 for _ in list_members(path))
    except InputError:
        count = -1
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return count, peak


def test_memory_does_not_grow_with_the_archive(tar: Callable[[bytes], Path]) -> None:
    peak_memory(tar(tar_bytes({"a.JPEG": b""})))  # what tarfile allocates once
    few = peak_memory(tar(raw_header("a.JPEG", 0) * 10 + end_blocks()))
    many = peak_memory(tar(raw_header("a.JPEG", 0) * 3000 + end_blocks()))
    assert (few[0], many[0]) == (10, 3000)
    assert many[1] < few[1] + 100_000


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_as_large_as_the_file_is_not_read(tar: Callable[[bytes], Path], kind: bytes) -> None:
    path = tar(raw_header("long", 1 << 33, kind))
    os.truncate(path, (1 << 33) + 10_000)
    count, peak = peak_memory(path)
    assert count == -1
    assert peak < 1 << 20


NESTED = {"n00000001.tar": tar_bytes({"a.JPEG": b"a" * 700}), "n00000002.tar": tar_bytes({"b.JPEG": b"b"})}
SOUND = [tar_bytes({**CONTENTS, LONG: b"long"}, format=tarfile.GNU_FORMAT).rstrip(b"\0") + end_blocks()]
SOUND += [tar_bytes({**CONTENTS, LONG: b"long"}, format=tarfile.PAX_FORMAT).rstrip(b"\0") + end_blocks()]
SOUND += [tar_bytes(NESTED)]


def list_all(path: Path) -> None:
    """Members lie inside the file, and inner ones inside theirs; or there is an InputError."""
    try:
        for member in list_members(path):
            check_within(member, 0, path.stat().st_size)
            if member.name.endswith(".tar"):
                for inner in list_members(path, member):
                    check_within(inner, member.offset, member.offset + member.size)
    except InputError:
        pass


def check_within(member: Member, start: int, end: int) -> None:
    assert member.size >= 0
    assert start <= member.offset <= member.offset + member.size <= end


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed") / "fuzzed.tar"


@settings(max_examples=250)
@given(data=st.data())
def test_flipped_and_missing_bytes_give_members_within_the_file_or_an_input_error(
    fuzzed: Path, data: st.DataObject
) -> None:
    sound = data.draw(st.sampled_from(SOUND))
    damaged = bytearray(sound[: data.draw(st.one_of(st.just(len(sound)), st.integers(0, len(sound))))])
    for at, mask in data.draw(st.dictionaries(st.integers(0, len(sound) - 1), st.integers(1, 255), max_size=5)).items():
        if at < len(damaged):
            damaged[at] ^= mask
    fuzzed.write_bytes(damaged)
    list_all(fuzzed)


def with_checksums(data: bytes) -> bytes:
    """Each block gets the checksum of a header with these bytes, so the checksum does not reveal the damage."""
    blocks = [bytearray(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
    for block in blocks:
        if len(block) == BLOCK and any(block):
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


KINDS = bytes([0, *b"01234567LKVMSNDxgXQ"])  # every kind of member that tarfile knows, and one it does not
FIELDS = st.one_of(
    st.tuples(st.just(156), st.sampled_from([bytes([kind]) for kind in KINDS])),
    st.tuples(st.just(124), st.binary(min_size=12, max_size=12)),
    st.tuples(st.just(124), st.integers(-(1 << 40), 1 << 40).map(lambda n: n.to_bytes(12, "big", signed=True))),
    st.tuples(st.just(124), st.integers(0, 4000).map(lambda n: b"%011o\0" % n)),
    st.tuples(st.integers(0, BLOCK - 30), st.binary(min_size=1, max_size=30)),
)


@settings(max_examples=250)
@given(
    sound=st.sampled_from(SOUND),
    changes=st.lists(st.tuples(st.integers(0, 20), FIELDS), min_size=1, max_size=6),
    ends=st.booleans(),
)
@example(SOUND[0], [(0, (156, b"S")), (0, (482, b"\1"))], False)
def test_damage_with_a_correct_checksum_gives_members_within_the_file_or_an_input_error(
    fuzzed: Path, sound: bytes, changes: list[tuple[int, tuple[int, bytes]]], ends: bool
) -> None:
    damaged = bytearray(sound)
    for block, (at, value) in changes:
        start = block * BLOCK + at
        if start + len(value) <= len(damaged):
            damaged[start : start + len(value)] = value
    fuzzed.write_bytes(with_checksums(bytes(damaged)) + end_blocks() * ends)
    list_all(fuzzed)


@given(data=st.binary(max_size=2000))
def test_random_bytes_give_an_input_error(fuzzed: Path, data: bytes) -> None:
    fuzzed.write_bytes(data)
    if data.strip(b"\0") or len(data) < BLOCK:
        refused(fuzzed)


def test_images_of_a_class_archive_are_read_back(imagenet_folder: Path, tmp_path: Path) -> None:
    """Made like ILSVRC2012_img_train.tar: an archive of one archive per class."""
    classes = sorted(path for path in (imagenet_folder / "train").iterdir())
    for folder in classes:
        shutil.make_archive(str(tmp_path / folder.name), "tar", folder)
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for folder in classes:
            archive.add(tmp_path / f"{folder.name}.tar", f"{folder.name}.tar")
    for member, folder in zip(list_members(tmp_path / "train.tar"), classes, strict=True):
        contents = contents_of(tmp_path / "train.tar", list_members(tmp_path / "train.tar", member))
        assert {Path(name).name: data for name, data in contents.items()} == {
            path.name: path.read_bytes() for path in folder.iterdir()
        }


def metadata(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A header of metadata."""
    return raw_header("metadata", len(content), kind) + padded(content)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


@pytest.mark.parametrize(
    "content",
    [b"1" * (1 << 16), b"3 " * (1 << 14) + b"=", b"".join(b"10 %05d=\n" % number for number in range(5000))],
    ids=["digits", "keywords longer than their record", "thousands of records"],
)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_metadata_that_take_hours_or_gigabytes_are_refused(
    tar: Callable[[bytes], Path], content: bytes, kind: bytes
) -> None:
    """Each takes tarfile time or memory that grows with the square of its size: a megabyte of digits takes hours."""
    path = tar(metadata(content, kind) + raw_header("a.JPEG", 0) + bytes(2 * BLOCK))
    with pytest.raises(InputError, match=r"not a tar archive, or damaged .*metadata"):
        list(list_members(path))


def test_metadata_of_all_members_are_refused_where_they_add_up(tar: Callable[[bytes], Path]) -> None:
    headers = [b"".join(b"12 %07d=\n" % (1000 * at + number) for number in range(100)) for at in range(20)]
    path = tar(b"".join(metadata(header, tarfile.XGLTYPE) for header in headers) + bytes(2 * BLOCK))
    with pytest.raises(InputError, match="more than 1024 records"):
        list(list_members(path))


def test_one_long_name_for_thousands_of_members_does_not_fill_memory(tar: Callable[[bytes], Path]) -> None:
    """Metadata that hold for all members may have their path: 1 MB once, and again for each header of 512 bytes."""
    path_record = b"1000012 path=" + b"a" * (1_000_012 - 19) + b".JPEG\n"
    path = tar(metadata(path_record, tarfile.XGLTYPE) + raw_header("b", 0) * 1000 + bytes(2 * BLOCK))
    with pytest.raises(InputError, match="a name of 999998 characters"):
        list(list_members(path))


def test_a_long_name_is_taken_for_no_header(tar: Callable[[bytes], Path]) -> None:
    """Of one block, with the sign of metadata where a header has it, before a member that is called after a number."""
    name = "a" * 156 + "x" + "a" * 100 + ".JPEG"
    long_name = raw_header("long", len(name) + 1, tarfile.GNUTYPE_LONGNAME) + padded(name.encode() + b"\0")
    path = tar(long_name + raw_header("1 is a number", 3) + padded(b"abc") + bytes(2 * BLOCK))
    assert contents_of(path, list_members(path)) == {name: b"abc"}
