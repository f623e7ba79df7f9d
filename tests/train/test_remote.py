"""Training from a bucket, through faults and with a small cache."""

from pathlib import Path

import pytest

from pipeline.storage.remote.settings import Access
from tests.helpers.files import files_in
from tests.helpers.imagenet import converted
from tests.helpers.processes import EVERYTHING, KILLED, Accident, run_ranks
from tests.helpers.runs import assert_same_end
from tests.helpers.servers import put_folder, serving

FAULTS = ["503", "reset 20000", "refuse", "stall 5000", "429", "short 900", "500", "reset 3000", "redirect", "reset 0"]


@pytest.fixture(scope="module")
def many_shards(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a few images a shard."""
    return converted(
        imagenet_folder, tmp_path_factory.mktemp("many") / "shards", shard_size="40KB", format=("webdataset",)
    )


def test_two_ranks_stream_from_a_bucket_through_faults_and_kills(
    many_shards: Path, s3_bucket: str, tmp_path: Path
) -> None:
    """With a cache of half the data they end with the weights of a stream without cache and faults; killed and resumed,
    they still do."""
    log, (bucket, endpoint) = tmp_path / "log", s3_bucket.split("|")
    put_folder(many_shards, bucket, Access(endpoint))
    half = sum(len(content) for name, content in files_in(many_shards).items() if name.endswith(".tar")) // 2
    flags = [*EVERYTHING, "--accumulate", 1, "--epochs", 2, "--loader", "webdataset"]
    with serving(many_shards) as local, serving(endpoint) as faulty:
        assert run_ranks(2, [*flags, "--data", local.url, "--run-dir", tmp_path / "whole"], log) == [0, 0], (
            log.read_text()
        )
        cached = [*flags, "--data", bucket, "--endpoint-url", faulty.url, "--io-timeout", 9, "--resume", "auto"]
        cached += ["--cache", tmp_path / "cache", "--cache-size", half, "--run-dir", tmp_path / "parts"]
        faulty.faults.add(r"\.tar", *FAULTS)
        killed = run_ranks(2, cached, log, Accident("step", 3))
        assert killed[1] == KILLED, log.read_text()
        faulty.faults.add(r"\.tar", *FAULTS)
        assert run_ranks(2, cached, log) == [0, 0], log.read_text()
        assert not faulty.faults.waiting
        assert {*faulty.faults.met} == {*FAULTS}
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    assert sum(len(content) for content in files_in(tmp_path / "cache").values()) <= half
