"""Streams in simulated time: cases that can be computed by hand, and real runs on a throttled server."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pipeline import loaders
from pipeline.cli import run_command
from pipeline.contract import LoaderSpec
from pipeline.order.crops import CropPolicy
from pipeline.storage.remote.settings import CacheSettings, RemoteSettings
from pipeline.storage.split import open_split
from tests.helpers.imagenet import converted
from tests.helpers.servers import FaultyServer, serving
from tools.profiling.profile import profile
from tools.profiling.settings import ProfileSettings
from tools.profiling.stream_model import StreamSettings
from tools.profiling.stream_run import alternatives, limit_of, simulate

MB = 1_000_000

SMALL = StreamSettings(
    shard_samples=(10,) * 8,
    shard_bytes=(MB,) * 8,
    batch_size=8,
    nproc=1,
    workers=8,
    cores=8,
    cpu_s=1e-9,
    bandwidth=1.0 * MB,
    connection_bandwidth=1.0 * MB,
    latency=0.0,
)


def test_a_line_is_shared_by_all_connections() -> None:
    (epoch,) = simulate(SMALL)
    assert (epoch.images, epoch.fetched_bytes) == (80, 8 * MB)
    assert epoch.seconds == pytest.approx(8)


def test_a_connection_has_its_own_limit() -> None:
    (epoch,) = simulate(replace(SMALL, bandwidth=100.0 * MB, connection_bandwidth=0.1 * MB))
    assert epoch.seconds == pytest.approx(10)


def test_each_shard_begins_after_the_latency() -> None:
    (epoch,) = simulate(replace(SMALL, shard_samples=(10,) * 24, shard_bytes=(1000,) * 24, latency=2.0, workers=1))
    assert epoch.seconds == pytest.approx(24 * 2, rel=0.01)  # one worker reads its lanes one after the other


def test_workers_share_the_cores() -> None:
    (epoch,) = simulate(replace(SMALL, bandwidth=1e12, connection_bandwidth=1e12, cpu_s=0.5, cores=4))
    assert epoch.seconds == pytest.approx(80 * 0.5 / 4, rel=0.01)


def test_a_cache_for_all_shards_is_filled_once() -> None:
    first, *later = simulate(replace(SMALL, cache_bytes=9 * MB))
    assert first.fetched_bytes == 8 * MB
    assert [epoch.fetched_bytes for epoch in later] == [0, 0]


def test_a_cache_for_half_of_the_shards_saves_at_most_half() -> None:
    *_, later = simulate(replace(SMALL, shard_samples=(10,) * 24, shard_bytes=(MB,) * 24, cache_bytes=12 * MB))
    assert 12 * MB <= later.fetched_bytes < 24 * MB


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, "bandwidth"),
        ({"bandwidth": 1e12, "connection_bandwidth": 0.1 * MB}, "connection"),
        ({"bandwidth": 1e12, "connection_bandwidth": 1e12, "cpu_s": 0.5, "workers": 2}, "workers"),
        ({"bandwidth": 1e12, "connection_bandwidth": 1e12, "cpu_s": 0.5, "cores": 2}, "cores"),
    ],
)
def test_the_setting_that_limits_is_found(changes: dict[str, float], limit: str) -> None:
    stream = replace(SMALL, **changes)  # type: ignore[arg-type]
    assert limit_of(alternatives(stream, simulate(stream)[-1])) == limit


def test_other_shards_hold_the_same_images() -> None:
    other = SMALL.with_shards_of(3 * MB)
    assert len(other.shard_bytes) == 3
    assert sum(other.shard_samples) == 80
    assert other.total_bytes == pytest.approx(SMALL.total_bytes, abs=3)


class Epoch(NamedTuple):
    """What a real epoch came to."""

    images_per_s: float
    first_batch_s: float
    fetched_bytes: int


@pytest.fixture(scope="module")
def many_shards(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a few images a shard."""
    return converted(
        imagenet_folder, tmp_path_factory.mktemp("many") / "shards", shard_size="40KB", format=("webdataset",)
    )


def run_epochs(server: FaultyServer, cache: CacheSettings | None, workers: int, count: int) -> Iterator[Epoch]:
    """Real epochs of the loader, one after the other."""
    split = open_split(server.url, "train", RemoteSettings(cache=cache))
    spec = LoaderSpec(split=split, batch_size=4, crop=CropPolicy(training=True), workers=workers, max_resolution=32)
    with contextlib.closing(loaders.create("webdataset", spec)) as loader:
        for epoch in range(count):
            sent, started, times, images = server.sent, time.monotonic(), [], 0
            for batch in loader.epoch(epoch, 32):
                times.append(time.monotonic() - started)
                images += len(batch.labels)
            yield Epoch(images / times[-1], times[0], server.sent - sent)


def predicted_for(path: Path, **changes: float) -> StreamSettings:
    info = open_split(path, "train").info
    assert info is not None
    samples, sizes = zip(*((shard.samples, shard.bytes) for shard in info.shards), strict=True)
    stream = replace(SMALL, shard_samples=samples, shard_bytes=sizes, batch_size=4, cores=2, cpu_s=0.001)
    return replace(stream, **changes)  # type: ignore[arg-type]


def test_the_traffic_is_that_of_a_real_epoch(many_shards: Path, tmp_path: Path) -> None:
    with serving(many_shards) as server:
        cold, warm = run_epochs(server, CacheSettings(tmp_path / "cache", MB), 2, 2)
    predicted = simulate(predicted_for(many_shards, cache_bytes=MB, workers=2))
    assert [cold.fetched_bytes, warm.fetched_bytes] == [epoch.fetched_bytes for epoch in predicted[:2]]


@pytest.mark.measure
@pytest.mark.parametrize(
    ("bandwidth", "latency", "workers", "cache"),
    [(60_000, 0.02, 2, 0), (5 * MB, 0.5, 1, 0), (60_000, 0.05, 2, MB), (100_000, 0.05, 1, 200_000)],
    ids=["bandwidth", "latency", "cold cache", "small cache"],
)
def test_a_real_run_is_as_fast_as_predicted(
    many_shards: Path, tmp_path: Path, bandwidth: int, latency: float, workers: int, cache: int
) -> None:
    stream = predicted_for(
        many_shards, bandwidth=bandwidth, connection_bandwidth=bandwidth, latency=latency, workers=workers,
        cache_bytes=cache,
    )  # fmt: skip
    with serving(many_shards, bandwidth, latency) as server:
        (real,) = run_epochs(server, CacheSettings(tmp_path / "cache", cache) if cache else None, workers, 1)
    epoch = simulate(stream)[0]
    assert epoch.images_per_s == pytest.approx(real.images_per_s, rel=0.15)
    assert epoch.first_batch_s == pytest.approx(real.first_batch_s, rel=0.15)
    assert epoch.fetched_bytes == pytest.approx(real.fetched_bytes, rel=0.15)


def test_the_command_measures_the_network(
    many_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(many_shards, bandwidth=300_000.0, latency=0.1) as server:
        flags = ["--data", server.url, "--simulate", "--batch-size", "4", "--workers", "2", "--out", str(tmp_path)]
        assert run_command(profile, ProfileSettings, flags) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    written = json.loads((tmp_path / "stream.json").read_text())
    assert written["settings"]["latency"] >= 0.1
    assert 100_000 < written["settings"]["bandwidth"] <= 450_000
    assert result["limited_by"] in ("bandwidth", "latency")
    assert result["epoch_bytes"] == pytest.approx(np.sum(written["settings"]["shard_bytes"]), rel=0.5)


def test_local_data_needs_a_stated_network(
    many_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", str(many_shards), "--simulate", "--out", str(tmp_path)]
    assert run_command(profile, ProfileSettings, flags) == 2
    assert "is local; state the bucket's --bandwidth and --latency" in capsys.readouterr().err
    assert run_command(profile, ProfileSettings, [*flags[:2], "--bandwidth", "1MB"]) == 2
    assert "--bandwidth: is for --simulate" in capsys.readouterr().err
