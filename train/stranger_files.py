"""What a file of weights is checked for before torch reads it: what is small there, and hours or gigabytes in torch."""

import io
import mmap
import os
import pickle
import struct
import tarfile
import zipfile
from typing import BinaryIO

_END, _LOCATOR, _END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_GROWING = {b"bytearray\n": "builtins.bytearray", b"_codecs\n": "_codecs"}
"""What is in a pickle that calls one of these, which torch allows: they make much of little, `bytearray(10**11)` or
`encode(encode(encode(..., "hex"), "hex"), "hex")`. No weights need them."""


def check(file: BinaryIO) -> None:
    """Raises ValueError, BadZipFile or UnpicklingError for a file that torch.load is not to read; leaves the file at
    its beginning.

    - Archives unpack to no more bytes than they have, and what is in them is undamaged: torch.save does not compress,
      and torch.load does not look at the CRC-32 of each tensor.
    - torch.load and `zipfile` look for an archive's directory in different ways. It must be where both find it.
    - torch.load tries tarfile for any other file, whose headers can take it hours.
    """
    start = file.read(tarfile.BLOCKSIZE)
    if start.startswith(b"PK\3\4"):  # what torch goes by
        _check_zip(file)
    else:
        _check_plain(file, start)
    file.seek(0)


def _check_zip(file: BinaryIO) -> None:
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise zipfile.BadZipFile("holds more bytes than the file")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the CRC-32 of {damaged} is wrong")
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                _check_pickle(archive.read(entry))
    _check_directory(file, size)


def _check_directory(file: BinaryIO, size: int) -> None:
    """Raises BadZipFile unless the directory lies right before the end records, and these end the file
    (APPNOTE.TXT 6.3.10, 4.3.14 to 4.3.16)."""
    end_at = size - _END.size
    file.seek(end_at)
    signature, *_, length, start, comment = _END.unpack(file.read())
    behind = end_at
    file.seek(max(0, end_at - _LOCATOR.size))
    locator = file.read(_LOCATOR.size)
    if locator.startswith(b"PK\6\7"):
        behind = end_at - _LOCATOR.size - _END_64.size
        file.seek(max(0, behind))
        signature_64, *_, length_64, start_64 = _END_64.unpack(file.read(_END_64.size))
        is_one = signature_64 == b"PK\6\6" and _LOCATOR.unpack(locator)[2] == behind
        if not is_one or length not in (length_64, 0xFFFFFFFF) or start not in (start_64, 0xFFFFFFFF):
            raise zipfile.BadZipFile("two directories")
        length, start = length_64, start_64
    if signature != b"PK\5\6" or comment or start + length != behind:
        raise zipfile.BadZipFile("two directories")


def _check_plain(file: BinaryIO, start: bytes) -> None:
    """A pickle of before PyTorch 1.6, with tensors behind it, or anything else."""
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        pass
    else:
        raise ValueError("a tar archive")
    if os.fstat(file.fileno()).st_size:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_pickle(content)


def _check_pickle(content: bytes | mmap.mmap) -> None:
    for line, name in _GROWING.items():
        if content.find(line) >= 0:
            raise pickle.UnpicklingError(f"unsupported global: {name}")
