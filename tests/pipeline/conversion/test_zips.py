"""Zip archives read in place: members of both kinds, 64-bit fields, damage, bombs."""

import io
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.conversion.zips import ZipArchive, list_zip_members, read_zipped
from pipeline.errors import InputError
from pipeline.pixels.formats import BadImage
from tests.helpers.conversions import refused, report_of
from tests.helpers.sources import IMAGE, assert_one_line, contents, opened

FILES = {
    "train/n00000001/a.JPEG": IMAGE,
    "train/n00000002/b.JPEG": IMAGE + bytes(1000),
    "train/n00000002/Größe.txt": b"text",
    "val/n00000001/c.JPEG": IMAGE,
}


def zip_bytes(files: dict[str, bytes], zip64: bool = False, comment: bytes = b"") -> bytes:
    """An archive, every other member deflated; with `zip64`, sizes are in the 64-bit extension."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, (name, data) in enumerate(files.items()):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            with archive.open(info, "w", force_zip64=zip64) as member:
                member.write(data)
        archive.comment = comment
    return stream.getvalue()


def with_64_bit_directory(archive: bytes) -> bytes:
    """The archive as it is written beyond 4 GB and 65,535 members: every field of the directory that can be is in the
    64-bit extension (APPNOTE 4.3.14, 4.3.15, 4.5.3)."""
    end = archive.rindex(b"PK\5\6")
    count, _, start = struct.unpack_from("<HLL", archive, end + 10)
    directory, at = b"", start
    for _ in range(count):
        record = bytearray(archive[at : at + 46])
        name_size, extra_size, comment_size = struct.unpack_from("<3H", record, 28)
        name = archive[at + 46 : at + 46 + name_size]
        stored, size = struct.unpack_from("<2L", record, 20)
        (offset,) = struct.unpack_from("<L", record, 42)
        extra = struct.pack("<HHBHH3Q", 0x5455, 1, 0, 1, 24, size, stored, offset)  # behind a timestamp's field
        struct.pack_into("<2L", record, 20, 0xFFFFFFFF, 0xFFFFFFFF)
        struct.pack_into("<2H", record, 30, len(extra), 0)
        struct.pack_into("<L", record, 42, 0xFFFFFFFF)
        directory += record + name + extra
        at += 46 + name_size + extra_size + comment_size
    end_64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
    old_end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return archive[:start] + directory + end_64 + locator + old_end


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


FORMS: dict[str, Callable[[], bytes]] = {
    "plain": lambda: zip_bytes(FILES),
    "comment": lambda: zip_bytes(FILES, comment=b"PK" * 5000),
    "64-bit local headers": lambda: zip_bytes(FILES, zip64=True),
    "64-bit directory": lambda: with_64_bit_directory(zip_bytes(FILES)),
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS.keys())
def test_members_are_those_of_zipfile(tmp_path: Path, make: Callable[[], bytes]) -> None:
    path = written(tmp_path / "x.zip", make())
    with zipfile.ZipFile(path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
    archive_read = ZipArchive(path)
    members = list(list_zip_members(path))
    assert {member.name: archive_read.read(member.name, member.offset, member.size) for member in members} == FILES
    assert read_zipped(path, "train/n00000002/Größe.txt", 10) == b"text"


def test_directory_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    """10,000 members, as many bytes of directory as two reads have."""
    files = {f"train/n{number % 7:08d}/{number:0100d}.JPEG": b"%d" % number for number in range(10_000)}
    path = written(tmp_path / "x.zip", zip_bytes(files))
    members = list(list_zip_members(path))
    assert [member.name for member in members] == list(files)
    for member in random.Random(0).sample(members, 50):
        assert ZipArchive(path).read(member.name, member.offset, member.size) == files[member.name]


def test_members_are_all_listed_where_their_number_has_16_bits(tmp_path: Path) -> None:
    """As macOS packs more than 65,535: the end of the archive says 2, of 65,538."""
    files = {**{f"train/{number}/": b"" for number in range(1 << 16)}, "train/a/a.JPEG": IMAGE, "train/b/b.JPEG": IMAGE}
    archive = zip_bytes(files)
    start = zipfile.ZipFile(io.BytesIO(archive)).start_dir
    length = archive.rindex(b"PK\6\6") - start
    path = written(
        tmp_path / "x.zip", archive[: start + length] + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, length, start, 0)
    )
    assert [member.name for member in list_zip_members(path)] == ["train/a/a.JPEG", "train/b/b.JPEG"]


def test_archives_of_a_split_each_are_read(tmp_path: Path) -> None:
    train = {name.removeprefix("train/"): data for name, data in FILES.items() if name.startswith("train")}
    written(tmp_path / "train.zip", zip_bytes(train))
    written(tmp_path / "val.zip", zip_bytes({"n00000001/c.JPEG": IMAGE}))
    source = opened(tmp_path)
    assert contents(source, "train") == [("a", "n00000001", IMAGE), ("b", "n00000002", IMAGE + bytes(1000))]
    assert contents(source, "val") == [("c", "n00000001", IMAGE)]
    assert contents(opened(tmp_path / "train.zip", splits=["train"]), "train") == contents(source, "train")


def test_tiny_imagenet_is_read_from_its_zip(tmp_path: Path) -> None:
    files = {f"tiny-imagenet-200/train/n0000000{n}/images/n0000000{n}_0.JPEG": IMAGE for n in (1, 2)}
    files |= {"tiny-imagenet-200/val/images/val_0.JPEG": IMAGE, "tiny-imagenet-200/test/images/test_0.JPEG": IMAGE}
    files |= {"tiny-imagenet-200/val/val_annotations.txt": b"val_0.JPEG\tn00000002\t0\t32\t44\t62\n"}
    written(tmp_path / "tiny-imagenet-200.zip", zip_bytes(files))
    for path in (tmp_path, tmp_path / "tiny-imagenet-200.zip"):
        assert contents(opened(path), "val") == [("val_0", "n00000002", IMAGE)]
        assert len(opened(path).splits["train"]) == 2


# --- damage


def _patched(at_name: str, offset: int, value: bytes) -> bytes:
    """The archive with other bytes in a member's record in the directory."""
    archive = bytearray(zip_bytes(FILES))
    record = archive.rindex(at_name.encode()) - 46
    archive[record + offset : record + offset + len(value)] = value
    return bytes(archive)


DEFLATED = "train/n00000002/b.JPEG"
DAMAGE: dict[str, tuple[bytes, str]] = {
    "truncated": (zip_bytes(FILES)[:-40], "truncated, it has no directory at its end; download it again"),
    "no record": (_patched("val/n00000001/c.JPEG", 0, b"xxxx"), "its directory is damaged"),
    "encrypted": (_patched(DEFLATED, 8, b"\1\0"), f"{DEFLATED} is encrypted; unpack the archive"),
    "other method": (_patched(DEFLATED, 10, b"\x0c\0"), f"{DEFLATED} is compressed by method 12; unpack the archive"),
    "link": (_patched(DEFLATED, 38, struct.pack("<L", 0o120777 << 16)), f"{DEFLATED} is a link; unpack the archive"),
    "impossible": (_patched(DEFLATED, 24, struct.pack("<L", 1 << 23)), f"{DEFLATED} is said to have 8388608 bytes"),
    "no extension": (_patched(DEFLATED, 42, b"\xff" * 4), "its directory is damaged"),
    "several pieces": (zip_bytes(FILES)[:-18] + b"\1\0" + zip_bytes(FILES)[-16:], "one of several pieces"),
    "archives in it": (zip_bytes({"train/n00000001.tar": b"x"}), "a zip of archives; unpack it"),
}


@pytest.mark.parametrize(("archive", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_what_cannot_be_read_is_named(tmp_path: Path, archive: bytes, message: str) -> None:
    path = written(tmp_path / "train.zip", archive)
    with pytest.raises(InputError) as raised:
        opened(path, splits=["train"])
    assert_one_line(raised.value, f"{path}: {message}")


BAD_MEMBERS: dict[str, tuple[bytes, str]] = {
    "larger than it says": (_patched(DEFLATED, 24, struct.pack("<L", 10)), "the checksum is another"),
    "smaller than it says": (_patched(DEFLATED, 24, struct.pack("<L", 1 << 20)), "the checksum is another"),
    "far too large": (_patched(DEFLATED, 20, struct.pack("<L", 1 << 30)), "1073741824 bytes, of at most 402653184"),
    "elsewhere": (_patched(DEFLATED, 42, struct.pack("<L", 7)), "the archive is damaged here"),
    "other checksum": (_patched(DEFLATED, 16, b"abcd"), "the checksum is another"),
    "not deflated": (_patched("train/n00000001/a.JPEG", 10, b"\x08\0"), "the archive is damaged here (Error -3"),
}


@pytest.mark.parametrize(("archive", "reason"), BAD_MEMBERS.values(), ids=BAD_MEMBERS.keys())
def test_damaged_members_are_bad_images(tmp_path: Path, archive: bytes, reason: str) -> None:
    path = written(tmp_path / "train.zip", archive)
    settings = ConvertSettings(src=(path,), dst=tmp_path / "dst", splits=("train",), workers=1)
    assert reason in refused(settings)
    convert(ConvertSettings(src=(path,), dst=tmp_path / "dst", splits=("train",), on_bad="skip"))
    assert [reason in entry["bad"] for entry in report_of(tmp_path / "dst")["images"] if "bad" in entry] == [True]


def test_bomb_is_not_inflated(tmp_path: Path) -> None:
    """A member that says it has 50,000 bytes and has 50 million."""
    path = written(tmp_path / "x.zip", zip_bytes({"x": b"", "a.JPEG": bytes(50_000_000)}))
    archive = bytearray(path.read_bytes())
    assert len(archive) < 100_000
    record = archive.rindex(b"a.JPEG") - 46
    archive[record + 24 : record + 28] = struct.pack("<L", 50_000)
    path.write_bytes(archive)
    _, member = list_zip_members(path)
    with pytest.raises(BadImage):
        ZipArchive(path).read(member.name, member.offset, member.size)


def test_any_byte_may_be_damaged(tmp_path: Path) -> None:
    """400 archives with a few other bytes: members are right, or refused in one line."""
    sound = zip_bytes(FILES)
    rng = random.Random(0)
    path = tmp_path / "train.zip"
    right = 0
    for _ in range(400):
        archive = bytearray(sound)
        for _ in range(rng.randint(1, 3)):
            archive[rng.randrange(len(archive))] = rng.randrange(256)
        if rng.random() < 0.2:
            del archive[rng.randrange(len(archive)) :]
        path.write_bytes(archive)
        try:
            for member in list_zip_members(path):
                data = ZipArchive(path).read(member.name, member.offset, member.size)
                right += data == FILES.get(member.name)
                assert data in FILES.values()
        except (InputError, BadImage) as error:
            assert_one_line(error)
    assert right > 100


def test_member_that_has_changed_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "train.zip", zip_bytes(FILES))
    images = opened(path, splits=["train"]).splits["train"]
    path.write_bytes(zip_bytes({name.replace("JPEG", "jpeg"): data for name, data in FILES.items()}))
    with pytest.raises(InputError) as raised:
        images.read(0)
    assert_one_line(raised.value, f"{path}: has changed while it was being converted")
    os.truncate(path, 10)
    with pytest.raises(InputError):
        images.read(0)
