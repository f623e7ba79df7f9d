"""What every storage gives: JPEG bytes and label of a sample, by dataset position."""

from typing import NamedTuple, Protocol


class Sample(NamedTuple):
    """One image as it is stored."""

    jpeg: bytes
    label: int


class Named(Protocol):
    """Knows where a sample is stored."""

    def name(self, index: int) -> str:
        """The storage and the dataset position, for messages."""
        ...


class Samples(Named, Protocol):
    """Random access to the samples of a split. Can be pickled and shared by processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError naming the file where it cannot be read."""
        ...
