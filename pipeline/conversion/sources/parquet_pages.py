"""What the pages of a Parquet column take in memory, from their headers. The metadata of the file need not agree with
them, and pyarrow takes as much memory as they say: a page of 60 KB may unpack to 2 GB.

(parquet.thrift of parquet-format 2.11, PageHeader; thrift's compact protocol, thrift-compact-protocol.md.)
"""

import io

from pyarrow.parquet import ColumnChunkMetaData

from ...storage.reading import read_at, status_of, will_read

_AT_ONCE = 1 << 16  # bytes; statistics, the only part of a header that may be long, have at most a few KB
_UNPACKED, _PACKED = 2, 3  # fields: i32
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
_DEEPEST = 8


def unpacked_size(file: io.RawIOBase, column: ColumnChunkMetaData) -> int:
    """Bytes that all pages of a column chunk have together once they are unpacked. Raises ValueError where a header is
    none, or a page reaches beyond its chunk."""
    at = column.data_page_offset
    if column.dictionary_page_offset is not None and 0 < column.dictionary_page_offset < at:
        at = column.dictionary_page_offset
    end, total = at + column.total_compressed_size, 0
    if at < 0 or column.total_compressed_size < 0 or end > status_of(file).st_size:
        raise ValueError("a column lies outside the file")
    will_read(file, end - at, at)
    while at < end:
        header = _Header(read_at(file, min(_AT_ONCE, end - at), at))
        sizes = header.numbers()
        unpacked, packed = sizes.get(_UNPACKED, -1), sizes.get(_PACKED, -1)
        if unpacked < 0 or packed < 0 or at + header.at + packed > end:
            raise ValueError("a page reaches beyond its column")
        total += unpacked
        at += header.at + packed
    return total


class _Header:
    """A structure in thrift's compact protocol. Raises ValueError where it is none."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def numbers(self, depth: int = 0) -> dict[int, int]:
        """The fields that are integers; `at` is then where the structure ends."""
        found, field = dict[int, int](), 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._number()
            if head & 15 in (_I16, _I32, _I64):
                found[field] = self._number()
            elif head & 15 not in (_TRUE, _FALSE):  # these have no content
                self._skip(head & 15, depth)
        return found

    def _skip(self, kind: int, depth: int) -> None:
        if kind in (_I16, _I32, _I64):
            self._number()
        elif kind in (_TRUE, _FALSE, _BYTE):
            self.at += 1
        elif kind == _DOUBLE:
            self.at += 8
        elif kind == _BINARY:
            size = self._varint()
            self.at += size
        elif kind == _STRUCT and depth < _DEEPEST:
            self.numbers(depth + 1)
        elif kind in (_LIST, _SET) and depth < _DEEPEST:
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
                self._skip(head & 15, depth + 1)
        else:
            raise ValueError("no page begins where one should")

    def _number(self) -> int:
        """A number in zigzag encoding."""
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) > 127:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return value | byte << shift

    def _byte(self) -> int:
        if self.at >= len(self._data):
            raise ValueError("a page without its header")
        self.at += 1
        return self._data[self.at - 1]
