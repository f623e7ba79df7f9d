"""The flags of a conversion, checked on construction."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..sizes import parse_bytes
from ..storage.positions import SEED
from ..storage.remote.address import BUCKETS, SCHEMES
from .images import Handling, Subsampling
from .work import Part


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Convert ImageNet to WebDataset shards and FFCV .beton files."""

    ADDRESSES: ClassVar[dict[str, tuple[str, ...]]] = {"src": SCHEMES, "dst": BUCKETS, "val_labels": SCHEMES}

    src: tuple[Path, ...] = (Path("data/imagenet"),)
    """A folder with train/ and val/ (or validation/, train.X1 to train.X4, ...), archives, Kaggle's download or zip,
    Tiny-ImageNet, WebDataset shards, Parquet files, TFRecords or FFCV's files; several paths if they are apart. All but
    loose images may be in a bucket (s3://, gs://, az://: a folder or files) or on a web server (https://: files)."""
    dst: Path = Path("data/shards")
    """Dataset directory to make, or its address in a bucket (s3://, gs://, az://), to which shards are uploaded as they
    are finished (with --format webdataset)."""
    endpoint_url: str | None = None
    """Of an object store that is not the cloud's own, such as MinIO: http://host:9000. For --src and --dst."""
    io_timeout: float = 60.0
    """Seconds without a byte from a bucket after which the conversion fails."""
    work_dir: Path | None = None
    """Folder for what a conversion into a bucket has not uploaded yet; default: one in data/uploads."""
    format: tuple[Literal["webdataset", "ffcv"], ...] = ("webdataset", "ffcv")
    """What to write."""
    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    """What to convert."""
    val_labels: Path | None = None
    """For flat validation images: valprep.sh, the development kit (folder or archive), Kaggle's csv, lines of image and
    wnid, or a file with one wnid per line in file-name order. Found next to the source by its name or its content; in a
    bucket, only in the folder that --src names. May be an address."""
    classes: Path | None = None
    """File with one wnid, or one class folder's name, per line: convert only these classes, in this order. Without it,
    classes are sorted: numbers by value, all others by name."""
    jpeg: Literal["tile", "keep", "reencode", "raw", "proportion"] = "tile"
    """Cut JPEGs into tiles, without loss, so that loaders decode only what a crop needs; store them as they are;
    encode all again; store pixels, or a mix of JPEGs and pixels (as FFCV's "proportion"; both for .beton only)."""
    max_side: int | None = None
    """Longest side in pixels; larger images are reduced. All images are encoded again; not with --jpeg keep."""
    quality: int | None = None
    """JPEG quality (default 90). If given, all images are encoded again, and then tiled with --jpeg tile."""
    subsampling: Subsampling | None = None
    """Chroma subsampling (default 420). If given, all images are encoded again."""
    compress_probability: float | None = None
    """Share of JPEGs with --jpeg proportion (default 0.5)."""
    on_bad: Literal["fail", "skip"] = "fail"
    """An image that cannot be decoded: list all of them and stop, or leave them out."""
    verify: bool = True
    """Decode every image once. Without it, only headers are read; tiles are verified in any case."""
    shard_size: str = "256MB"
    """Largest WebDataset shard; approximate where images change: shards are planned from the source alone."""
    workers: int = len(os.sched_getaffinity(0))
    """Threads that read and check images."""
    seed: int = SEED
    """Shuffles the training images once, so that streaming reads are mixed."""
    part: str | None = None
    """K/N: write the K-th of N shares, on any machine. When all are written, --merge puts them together."""
    dry_run: bool = False
    """Find the images, and say how many there are, how much space each format takes and how long it takes; write
    nothing."""
    merge: bool = False
    """Put the parts in --dst together; reads no images."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"--workers {self.workers}: must be at least 1")
        if not self.src:
            raise ValueError("--src: name a folder or archives")
        if not self.format:
            raise ValueError("--format: name webdataset, ffcv or both")
        if not self.splits:
            raise ValueError("--splits: name train, val or both")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"--seed {self.seed}: must be at least 0 and below 2^64")
        if self.dst == Path():
            raise ValueError("--dst: is empty or the current folder; name a folder of its own")
        if self.merge and self.part:
            raise ValueError("--merge: not together with --part")
        if self.merge and self.dry_run:
            raise ValueError("--merge: not together with --dry-run")
        self._check_jpeg()
        self._check_encoding()
        _ = self.shard_bytes, self.this_part

    def _check_jpeg(self) -> None:
        for name in ("max_side", "quality", "subsampling"):
            if self.jpeg == "keep" and (value := getattr(self, name)) is not None:
                flag = name.replace("_", "-")
                raise ValueError(
                    f"--{flag} {value}: --jpeg keep leaves images as they are; use --jpeg tile or reencode"
                )
        if self.jpeg in ("raw", "proportion") and "webdataset" in self.format:
            raise ValueError(f"--jpeg {self.jpeg}: pixels are for .beton files; add --format ffcv")

    def _check_encoding(self) -> None:
        if self.max_side is not None and not 1 <= self.max_side <= 65535:
            raise ValueError(f"--max-side {self.max_side}: must be from 1 to 65535")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality}: must be from 1 to 100")
        for name in ("quality", "subsampling"):
            if self.jpeg == "raw" and (value := getattr(self, name)) is not None:
                raise ValueError(f"--{name} {value}: pixels are not encoded; leave it out")
        if self.compress_probability is None:
            return
        if self.jpeg != "proportion":
            raise ValueError(f"--compress-probability {self.compress_probability}: is for --jpeg proportion")
        if not 0 <= self.compress_probability <= 1:
            raise ValueError(f"--compress-probability {self.compress_probability}: must be from 0 to 1")

    @property
    def shard_bytes(self) -> int:
        """--shard-size in bytes."""
        try:
            return parse_bytes(self.shard_size)
        except ValueError as error:
            raise ValueError(f"--shard-size {self.shard_size}: {error}") from None

    @property
    def this_part(self) -> Part:
        """What --part says; without it, the only part."""
        match = re.fullmatch(r"(\d{1,3})/(\d{1,3})", self.part or "1/1")
        if not match or not 1 <= int(match.group(1)) <= int(match.group(2)):
            raise ValueError(f"--part {self.part}: write it like 3/16")
        return Part(int(match.group(1)), int(match.group(2)))

    def handling(self, largest: int) -> Handling:
        """How images are stored; none may take more than `largest` bytes."""
        return Handling(
            jpeg=self.jpeg,
            max_side=self.max_side,
            quality=self.quality,
            subsampling=self.subsampling,
            compress_probability=0.5 if self.compress_probability is None else self.compress_probability,
            seed=self.seed,
            verify=self.verify,
            largest=largest,
        )
