"""Files that hold many images, other than as ranges of bytes."""

from pathlib import Path
from typing import Protocol


class Container(Protocol):
    """What holds images that must be taken out of it."""

    @property
    def path(self) -> Path:
        """The file, for messages."""

    @property
    def largest(self) -> int:
        """Bytes that none of its images exceeds, as far as is known; 0 if their listed sizes are exact."""

    @property
    def read_whole(self) -> bool:
        """Whether reading an image reads all of them: images of one container should be read after each other."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """An image, by what the listing says of it. Raises BadImage, or InputError if the file cannot be read."""
        ...
