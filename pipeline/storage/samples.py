"""What every storage provides: the JPEG bytes and the label of each sample, by dataset position."""

from typing import NamedTuple, Protocol

MOST_SAMPLES = 1 << 28
"""Of a split. An epoch's order takes 8 bytes for each."""


class Sample(NamedTuple):
    """One image as it is stored."""

    jpeg: bytes
    label: int


class SampleNames(Protocol):
    """Knows where each sample is stored."""

    @property
    def remedy(self) -> str:
        """What to do about a sample that cannot be decoded."""
        ...

    def name(self, index: int) -> str:
        """The storage and the dataset position, for messages."""
        ...


class StoredSamples(SampleNames, Protocol):
    """Random access to the samples of a split. Can be pickled and shared by processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Raises InputError naming the file if it cannot be read."""
        ...
