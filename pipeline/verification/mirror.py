"""A dataset in a bucket or on a web server, as a folder for the checks: every file in its size, shards without their
content until they are checked."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..conversion.finishing import REPORT
from ..errors import InputError
from ..storage.manifest import MANIFEST
from ..storage.remote import helper
from ..storage.remote.address import below, is_bucket
from ..storage.remote.settings import Access
from ..storage.split import remote_manifest
from .pieces import Piece


class Mirror:
    """The folder `folder`, for the dataset at `address`. Raises InputError and StorageError."""

    def __init__(self, address: str, access: Access, folder: Path) -> None:
        self.folder, self._address, self._access = folder, address, access
        for name in self._names():
            path = folder / name
            if "\0" in name or not path.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{below(address, name)}: a name that leaves its folder")
            size = helper.call("size_of", below(address, name), access)
            if size is not None:
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.touch()
                    os.truncate(path, size)
                except OSError as error:
                    raise InputError(f"{below(address, name)}: cannot be copied ({error.strerror})") from None
                if name in (MANIFEST, REPORT) or name.endswith(".beton"):
                    self._fetch(name)  # for as long as the check takes: pages of all shards are in one file

    @contextlib.contextmanager
    def content_of(self, piece: Piece) -> Iterator[None]:
        """The files of a piece have their content in the block."""
        names = [piece.shard.name, f"{piece.shard.name.removesuffix('.tar')}.idx"] if piece.shard else []
        present = [name for name in names if (self.folder / name).exists()]
        try:
            for name in present:
                self._fetch(name)
            yield
        finally:
            for name in present:
                size = (self.folder / name).stat().st_size
                os.truncate(self.folder / name, 0)
                os.truncate(self.folder / name, size)

    def in_words(self, text: str) -> str:
        """A message with the dataset's address in it instead of the folder."""
        return text.replace(f"{self.folder}/", f"{self._address.rstrip('/')}/").replace(str(self.folder), self._address)

    def _names(self) -> list[str]:
        """What is there; on a web server, which cannot be asked, what should be."""
        if is_bucket(self._address):
            names: list[str] = helper.call("names_below", self._address, self._access)
            return names
        splits = remote_manifest(self._address, self._access).splits.values()
        shards = [shard.name for info in splits for shard in info.shards]
        indices = [f"{name.removesuffix('.tar')}.idx" for name in shards]
        return [MANIFEST, REPORT, *shards, *indices, *(info.beton.name for info in splits if info.beton)]

    def _fetch(self, name: str) -> None:
        path = self.folder / name
        helper.call("download", below(self._address, name), self._access, str(path), path.stat().st_size)
