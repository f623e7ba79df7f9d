"""Converting into a bucket: every shard is uploaded as soon as it is finished, and read back.

The conversion itself is a local one, in a work folder that holds the records of the shards, but their data only until
they are in the bucket. `dataset.json` is uploaded last. Started again, it uploads what is missing.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..storage.files import complete_or_absent
from ..storage.manifest import MANIFEST, Manifest
from ..storage.remote import helper
from ..storage.remote.address import below
from ..storage.remote.settings import Access
from ..storage.shard_info import SHARD_INFO
from ..threads import Threads
from .finishing import REPORT
from .settings import ConvertSettings
from .work import Shard, ShardRecord, Workspace

log = logging.getLogger(__name__)

UPLOADS = 4
"""Shards that are uploaded at a time, or wait for it on the local disk."""


class UploadingWorkspace(Workspace):
    """A work folder whose shards are moved to a bucket."""

    def __init__(self, folder: Path, address: str, access: Access) -> None:
        super().__init__(folder)
        self._address, self._access = address, access
        self._pool = Threads(UPLOADS)
        self._running: list[Future[None]] = []

    def write_record(self, shard: Shard, record: ShardRecord) -> None:
        super().write_record(shard, record)
        while len(self._running) >= UPLOADS:
            self._running.pop(0).result()
        self._running.append(self._pool.submit(self._upload_shard, shard, record))

    def has_tar(self, shard: Shard, record: ShardRecord) -> bool:
        return self._receipt(shard, record) or super().has_tar(shard, record)

    def publish_tar(self, shard: Shard, record: ShardRecord) -> None:
        """Upload what an earlier attempt had not, and this one is not uploading."""
        while self._running:
            self._running.pop(0).result()
        if not self._receipt(shard, record):
            self._upload_shard(shard, record)

    def check_finished(self, manifest: Manifest) -> None:
        """Nothing: a request for each of 100,000 shards takes hours; verification makes them."""

    def upload_file(self, path: Path, name: str) -> None:
        """Upload a file of the dataset. Raises StorageError."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        helper.call("upload", below(self._address, name), self._access, str(path), digest)

    def close(self, *, finished: bool) -> None:
        """Wait for the uploads, and raise their errors; unless there is another one already, which ends them."""
        if not finished:
            self._pool.abandon()
            return
        self._pool.shutdown()
        for upload in self._running:
            upload.result()

    def _receipt_path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.name}.uploaded"

    def _receipt(self, shard: Shard, record: ShardRecord) -> bool:
        """Whether the shard of this record has been uploaded."""
        path = self._receipt_path(shard)
        return record.tar is not None and path.is_file() and path.read_text() == record.tar[1]

    def _upload_shard(self, shard: Shard, record: ShardRecord) -> None:
        assert record.tar
        tar, address = self.tar_path(shard), below(self._address, f"webdataset/{shard.name}.tar")
        self.upload_file(tar.with_suffix(".idx"), f"webdataset/{shard.name}.idx")
        helper.call("upload", address, self._access, str(tar), record.tar[1])
        with complete_or_absent(self._receipt_path(shard)) as file:
            file.write(record.tar[1])
        for path in (tar, tar.with_suffix(".idx")):
            path.unlink()


def local_settings(settings: ConvertSettings, address: str) -> ConvertSettings:
    """The settings of the local part of a conversion into a bucket. Raises InputError for what no bucket gets."""
    if {*settings.format} != {"webdataset"}:
        raise InputError(f"--dst {address}: only shards are read from a bucket; add --format webdataset")
    if settings.part or settings.merge:
        raise InputError(f"--dst {address}: --part and --merge need a folder that all machines see; give that as --dst")
    folder = settings.work_dir or Path("data/uploads") / address.partition("://")[2].strip("/").replace("/", "-")
    return replace(settings, dst=folder)


@contextmanager
def uploading(local: ConvertSettings, address: str) -> Iterator[UploadingWorkspace]:
    """The work folder of a conversion into a bucket. At the end of the block, the reports are uploaded and the folder
    is removed."""
    access = Access(local.endpoint_url, local.io_timeout)
    workspace = UploadingWorkspace(local.dst, address, access)
    if not local.dst.exists() and helper.call("size_of", below(address, MANIFEST), access) is not None:
        _fetch_reports(local.dst, address, access)
    try:
        yield workspace
    except BaseException:
        workspace.close(finished=False)
        raise
    workspace.close(finished=True)
    for name in (f"webdataset/{SHARD_INFO}", REPORT, MANIFEST):
        if (local.dst / name).exists():  # _info.json is not, where the conversion was finished before
            workspace.upload_file(local.dst / name, name)
    shutil.rmtree(local.dst)
    log.info("%s is complete", address)


def _fetch_reports(folder: Path, address: str, access: Access) -> None:
    """Of a conversion that was finished before, so that it is recognised."""
    folder.mkdir(parents=True)
    for name in (REPORT, MANIFEST):
        content: bytes = helper.call("read", below(address, name), access, 1 << 30)
        (folder / name).write_bytes(content)
