"""Converting into a bucket: what arrives is what a local conversion makes, whatever happens meanwhile."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError, StorageError
from pipeline.storage.remote import helper
from pipeline.storage.remote.settings import Access
from tests.helpers.files import files_in
from tests.helpers.servers import FaultyServer, serving


def settings(imagenet: Path, dst: str, tmp_path: Path, **flags: Any) -> ConvertSettings:
    common: dict[str, Any] = {"jpeg": "keep", "shard_size": "100KB", "workers": 2, "format": ("webdataset",)}
    labels = imagenet / "val_labels.txt"
    return ConvertSettings(
        src=(imagenet,), dst=Path(dst), val_labels=labels, work_dir=tmp_path / "work", **(common | flags)
    )


def in_bucket(bucket: str, access: Access) -> dict[str, bytes]:
    names = helper.call("names_below", bucket, access)
    return {name: helper.call("read", f"{bucket}/{name}", access, 1 << 30) for name in names}


def expected(dataset: Path) -> dict[str, bytes]:
    """The shards of a local conversion, with their indices."""
    return {name: content for name, content in files_in(dataset).items() if name.startswith("webdataset/")}


def shards_in(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.startswith("webdataset/")}


def puts(server: FaultyServer) -> list[str]:
    return [path for method, path, _ in server.requests if method == "PUT" and path.endswith(".tar")]


def test_a_bucket_gets_what_a_folder_gets(imagenet_folder: Path, dataset: Path, s3_bucket: str, tmp_path: Path) -> None:
    """Killed in the middle by a store that fails, and started again: each shard is uploaded once."""
    bucket, endpoint = s3_bucket.split("|")
    with serving(endpoint) as server:
        access = Access(server.url, 0.5)
        flags = settings(imagenet_folder, f"{bucket}/in", tmp_path, endpoint_url=server.url, io_timeout=0.5)
        server.faults.add(r"train-000002.tar", *["503"] * 99)
        with pytest.raises(StorageError, match=r"train-000002.tar: given up after 0.5 s"):
            convert(flags)
        assert "in/dataset.json" not in in_bucket(bucket, access)
        server.faults.waiting.clear()
        server.faults.add(r"\.tar", "503", "reset 0")
        before = {*puts(server)} - {path for path in puts(server) if "train-000002" in path}
        server.requests.clear()
        counts = convert(flags)
        assert (counts["train"], counts["val"], counts["bad"]) == (47, 19, 0)
        assert not before & {*puts(server)}
        assert shards_in(in_bucket(f"{bucket}/in", access)) == expected(dataset)
        assert not (tmp_path / "work").exists()
        server.requests.clear()
        assert convert(flags) | {"seconds": 0} == counts | {"seconds": 0}
        assert not puts(server)
        with pytest.raises(InputError, match="holds a dataset converted with other arguments"):
            convert(settings(imagenet_folder, f"{bucket}/in", tmp_path, endpoint_url=server.url, seed=1))


def test_what_a_bucket_does_not_get_is_refused(imagenet_folder: Path, tmp_path: Path) -> None:
    for flags in ({"format": ("webdataset", "ffcv")}, {"part": "1/2"}):
        with pytest.raises(InputError, match=r"--dst s3://bucket/a: "):
            convert(settings(imagenet_folder, "s3://bucket/a", tmp_path, **flags))
