"""TFRecords of `tf.train.Example`s: ImageNet's usual layout, and that of TensorFlow Datasets.

    image/encoded, image/class/synset, image/class/label (from 1), image/filename      the usual layout
    image, label (from 0), file_name                                                   TensorFlow Datasets

A record is its length, a checksum of that, an Example, and a checksum of it. For a listing, only what lies in front of
and behind the image is read; with the image, its checksums are checked. (tensorflow/core/lib/io/record_writer.h,
tensorflow/core/example/example.proto, protobuf.dev/programming-guides/encoding.)
"""

import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...errors import InputError
from ...pixels.formats import LARGEST_FILE, BadImage
from ...storage.foreign import masked_checksum
from ...storage.reading import any_remote, open_to_read, read_at, status_of, will_read
from ..archives import Member
from ..listing import Label, ListedImage, Listing, listed_in, make_listing, range_of

_HEAD, _TAIL = 12, 4  # bytes around an Example
_AT_ONCE = 1 << 13  # bytes
_LARGEST_TEXT = 1 << 12
_MOST_NUMBERS = 1 << 14  # that are read of a record; the usual layout needs 150
_LARGEST_RECORD = LARGEST_FILE + (1 << 26)  # bytes, of which an image is read
_IMAGE = (b"image/encoded", b"image")
_NAME = (b"image/filename", b"file_name")
_SYNSET = b"image/class/synset"
_LABEL_FROM_1, _LABEL = b"image/class/label", b"label"
_WANTED = {*_IMAGE, *_NAME, _SYNSET, _LABEL_FROM_1, _LABEL}
_BYTES_LIST, _INT_LIST = 1, 3  # fields of tf.train.Feature
_VARINT, _FIXED_64, _SPAN, _FIXED_32 = 0, 1, 2, 5  # wire types


def list_split(files: Sequence[Path], split: str, known: Collection[str]) -> Listing:
    """The images of TFRecords. Raises InputError."""
    listed = listed_in(lambda path, _: TFRecords(path).images(), files, Counter(), any_remote(files))
    return make_listing(f"TFRecords {range_of(files)}", listed)


# --- an Example


class _Span(NamedTuple):
    """A range of bytes."""

    start: int
    end: int


class _Bytes:
    """A range of a file, of which a piece is in memory. Raises ValueError for what is outside."""

    def __init__(self, file: io.RawIOBase, start: int, end: int) -> None:
        self._file, self.span = file, _Span(start, end)
        self._piece, self._piece_at, self._numbers = b"", start, 0

    def text(self, span: _Span) -> bytes:
        """The bytes of a range."""
        if span.end - span.start > _LARGEST_TEXT:
            raise ValueError("a name of more than 4 KB")
        self._need(span.start, span.end - span.start)
        return self._piece[span.start - self._piece_at : span.end - self._piece_at]

    def varint(self, at: int) -> tuple[int, int]:
        """A number, and where it ends."""
        value = shift = 0
        self._numbers += 1
        if self._numbers > _MOST_NUMBERS:
            raise ValueError("more fields than any Example needs")
        while shift < 64:
            self._need(at, 1)
            byte = self._piece[at - self._piece_at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at
        raise ValueError("a number of more than 64 bits")

    def _need(self, at: int, count: int) -> None:
        if self._piece_at <= at and at + count <= self._piece_at + len(self._piece):
            return
        if not self.span.start <= at <= at + count <= self.span.end:
            raise ValueError("a field reaches beyond its end")
        self._piece = read_at(self._file, min(_AT_ONCE, self.span.end - at), at)
        self._piece_at = at
        if len(self._piece) < count:
            raise ValueError("truncated")


def _fields(data: _Bytes, span: _Span) -> Iterator[tuple[int, _Span | int]]:
    """Number and content of each field of a message: a range of bytes, or a number."""
    at = span.start
    while at < span.end:
        tag, at = data.varint(at)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, at = data.varint(at)
            yield tag >> 3, value
            continue
        size, at = data.varint(at) if wire_type == _SPAN else ({_FIXED_64: 8, _FIXED_32: 4}[wire_type], at)
        if at + size > span.end:
            raise ValueError("a field reaches beyond its end")
        yield tag >> 3, _Span(at, at + size)
        at += size


def _spans(data: _Bytes, span: _Span, number: int) -> Iterator[_Span]:
    """The contents of the fields of one number."""
    return (content for field, content in _fields(data, span) if field == number and isinstance(content, _Span))


def _features(data: _Bytes, span: _Span) -> dict[bytes, _Span | int]:
    """The first value of each wanted feature of an Example: a range of bytes, or a number."""
    features = dict[bytes, _Span | int]()
    for all_features in _spans(data, span, 1):
        for entry in _spans(data, all_features, 1):
            key = next(_spans(data, entry, 1), _Span(0, 0))
            if (name := data.text(key)) not in _WANTED:
                continue
            for feature in _spans(data, entry, 2):
                if (value := _first_value(data, feature)) is not None:
                    features[name] = value
    return features


def _first_value(data: _Bytes, feature: _Span) -> _Span | int | None:
    for kind, values in _fields(data, feature):
        if kind not in (_BYTES_LIST, _INT_LIST) or not isinstance(values, _Span):
            continue
        for number, value in _fields(data, values):
            if number == 1 and kind == _INT_LIST and isinstance(value, _Span):  # packed
                value = data.varint(value.start)[0]
            return value if number == 1 else None
    return None


# --- a file


@dataclass(frozen=True)
class TFRecords:
    """The images of one file."""

    path: Path
    largest: int = 0
    read_whole: bool = False

    def images(self) -> Iterator[ListedImage]:
        """Its images, in order. Raises InputError."""
        try:
            with open_to_read(self.path) as file:
                status = status_of(file)
                at = number = 0
                while at < status.st_size:
                    length = self._length(file, at, status.st_size)
                    data = _Bytes(file, at + _HEAD, at + _HEAD + length)
                    image = self._image(data, number)
                    member = Member(image.name, at, image.span.end - image.span.start, status.st_mtime_ns)
                    yield ListedImage(self, member, image.label)
                    at, number = at + _HEAD + length + _TAIL, number + 1
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None

    def _length(self, file: io.RawIOBase, at: int, size: int) -> int:
        """The bytes of the Example in the record at `at`."""
        head = read_at(file, _HEAD, at)
        length = int.from_bytes(head[:8], "little")
        if len(head) < _HEAD or masked_checksum(head[:8]) != int.from_bytes(head[8:], "little"):
            raise InputError(f"{self.path}: damaged or truncated at byte {at}")
        if at + _HEAD + length + _TAIL > size:
            raise InputError(f"{self.path}: truncated in the record at byte {at}")
        return length

    def _image(self, data: _Bytes, number: int) -> "_Image":
        try:
            features = _features(data, data.span)
            span = next((features[key] for key in _IMAGE if key in features), None)
            if not isinstance(span, _Span):
                raise ValueError("it has no image/encoded")
            texts = {
                key: data.text(value)
                for key, value in features.items()
                if key not in _IMAGE and isinstance(value, _Span)
            }
            name = next((texts[key].decode("utf-8", "replace") for key in _NAME if key in texts), "")
            return _Image(PurePosixPath(name).name or f"record-{number}", span, _label(features, texts))
        except (ValueError, KeyError) as error:
            raise InputError(f"{self.path}: record {number} cannot be used: {error}") from None

    def read(self, name: str, offset: int, size: int) -> bytes:
        """The image in the record at `offset`. Raises BadImage if the record's checksum is another, or it is huge."""
        try:
            with open_to_read(self.path) as file:
                will_read(file, size + _AT_ONCE, offset)
                length = self._length(file, offset, status_of(file).st_size)
                if length > _LARGEST_RECORD:
                    raise BadImage(f"a record of {length} bytes, of at most {_LARGEST_RECORD}")
                start, end = offset + _HEAD, offset + _HEAD + length
                span = self._image(_Bytes(file, start, end), 0).span
                record = read_at(file, length + _TAIL, start)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from None
        if len(record) != length + _TAIL or span.end - span.start != size:
            raise InputError(f"{self.path}: has changed while it was being converted; start again")
        if masked_checksum(record[:length]) != int.from_bytes(record[length:], "little"):
            raise BadImage("the checksum of its record is another")
        return record[span.start - start : span.end - start]


class _Image(NamedTuple):
    """An image in a record."""

    name: str
    span: _Span
    label: Label


def _label(features: dict[bytes, _Span | int], texts: dict[bytes, bytes]) -> Label:
    """The wnid, otherwise the class index. Raises ValueError."""
    if texts.get(_SYNSET):
        return texts[_SYNSET].decode("utf-8", "replace")
    for key, first in ((_LABEL_FROM_1, 1), (_LABEL, 0)):
        label = features.get(key)
        if isinstance(label, int):
            if not first <= label < 1 << 31:
                raise ValueError(
                    f"{key.decode()} is {label - (label >> 63 << 64)}, and classes are counted from {first}"
                )
            return label - first
    raise ValueError("it has neither image/class/synset nor image/class/label")
