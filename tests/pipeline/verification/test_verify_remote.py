"""Verifying a dataset where it is: in a bucket, or on a web server."""

import os
from pathlib import Path

from pipeline.storage.remote.settings import Access
from tests.helpers.servers import put_folder, serving
from tests.helpers.verification import Verify


def test_a_dataset_in_a_bucket_is_verified(dataset: Path, s3_bucket: str, verified: Verify) -> None:
    bucket, endpoint = s3_bucket.split("|")
    put_folder(dataset, f"{bucket}/in", Access(endpoint))
    done = verified(f"{bucket}/in", "--endpoint-url", endpoint)
    assert (done.code, done.bad, done.error) == (0, [], "")
    assert done.result is not None
    assert (done.result["samples"], done.result["decoded"], done.result["problems"]) == (66, 66, 0)


def test_damage_in_a_bucket_is_named_by_its_address(dataset_copy: Path, s3_bucket: str, verified: Verify) -> None:
    bucket, endpoint = s3_bucket.split("|")
    altered, cut, missing, *_ = sorted((dataset_copy / "webdataset").glob("train-*.tar"))
    content = bytearray(altered.read_bytes())
    content[3000] ^= 1
    altered.write_bytes(content)
    os.truncate(cut, 1000)
    missing.unlink()
    (dataset_copy / "webdataset/train-999999.tar").write_bytes(b"")
    put_folder(dataset_copy, bucket, Access(endpoint))
    done = verified(bucket, "--endpoint-url", endpoint)
    assert done.code == 2
    lines = "\n".join(done.bad)
    for name in (altered.name, cut.name, missing.name, "train-999999.tar"):
        assert f"bad: {bucket}/webdataset/{name}: " in lines
    assert "altered: its SHA-256 is not the one in dataset.json" in lines
    assert done.error.startswith(f"error: {bucket}: ")


def test_a_dataset_on_a_web_server_is_verified_through_faults(dataset: Path, verified: Verify) -> None:
    with serving(dataset) as server:
        server.faults.add(r"\.tar", "reset 5000", "503")
        done = verified(server.url)
        assert not server.faults.waiting
    assert (done.code, done.bad) == (0, [])
