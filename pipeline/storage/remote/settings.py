"""How a dataset in a bucket or on a web server is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

Order = Literal["stream", "global"]


class Access(NamedTuple):
    """How objects are reached."""

    endpoint_url: str | None = None
    """Of MinIO and the like, instead of the cloud's own."""
    io_timeout: float = 60.0
    """Seconds without a byte after which storage has failed."""


class CacheSettings(NamedTuple):
    """Where the cache is, and how many bytes it may take."""

    folder: Path
    limit: int


@dataclass(frozen=True, kw_only=True)
class RemoteSettings:
    """How a remote dataset is read. Raises ValueError for the global order without a cache."""

    access: Access = Access()  # noqa: RUF009 (it is immutable)
    cache: CacheSettings | None = None
    order: Order = "stream"
    """Of training: that of a StreamPlan, or the permutation that local data has, for which all shards are cached."""

    def __post_init__(self) -> None:
        if self.order == "global" and self.cache is None:
            raise ValueError("--order global: needs a --cache with room for all shards")


DEFAULT = RemoteSettings()
