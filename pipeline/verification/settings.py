"""The flags of tools/verify_dataset.py."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from ..storage.remote.address import SCHEMES, address_of


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Check a dataset that the converter wrote."""

    ADDRESSES: ClassVar[dict[str, tuple[str, ...]]] = {"dst": SCHEMES}

    dst: tyro.conf.Positional[Path]
    """Dataset directory, or its address in a bucket (s3://, gs://, az://) or on a web server (http://, https://)."""
    endpoint_url: str | None = None
    """Of an object store that is not the cloud's own, such as MinIO: http://host:9000."""
    io_timeout: float = 60.0
    """Seconds without a byte from a bucket or web server after which the command fails."""
    full: bool = False
    """Decode every image."""
    sample: int = 1000
    """Number of random images to decode without --full."""
    contact_sheet: Path | None = None
    """PNG to write; default: DST-contact-sheet.png, next to the dataset."""
    images: int = 64
    """Random images on the contact sheet; 0 for no sheet."""
    names: Path | None = None
    """What classes are called on the sheet: a file with a class folder's name and then words in each line, as Kaggle's
    LOC_synset_mapping.txt."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads that read and check."""
    seed: int = 0
    """Selects the random images."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: must be at least 1")
        if self.sample < 0:
            raise ValueError(f"--sample {self.sample}: must be at least 0")
        if not 0 <= self.images <= 4096:
            raise ValueError(f"--images {self.images}: must be from 0 to 4096")

    @property
    def sheet_path(self) -> Path:
        """Where the contact sheet is written."""
        dst = Path(self.dst.name) if address_of(self.dst) else self.dst.resolve()
        return self.contact_sheet or dst.with_name(f"{dst.name}-contact-sheet.png")
