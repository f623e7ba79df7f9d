"""Streaming from a web server: the order of a StreamPlan, whatever the workers and ranks."""

import contextlib
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import loaders
from pipeline.contract import Batch, LoaderSpec
from pipeline.errors import InputError, StorageError
from pipeline.order.crops import CropPolicy
from pipeline.storage.remote.settings import Access, CacheSettings, Order, RemoteSettings
from pipeline.storage.samples import Sample
from pipeline.storage.split import Split, open_split
from tests.helpers.servers import put_folder, serving

RESOLUTION = 32
IMPATIENT = RemoteSettings(access=Access(io_timeout=0.5))


@pytest.fixture
def served(dataset_copy: Path) -> Iterator[tuple[str, Path]]:
    """The address of a dataset on a real web server, and its directory."""
    with serving(dataset_copy) as server:
        yield server.url, dataset_copy


def spec_of(split: Split, **changes: object) -> LoaderSpec:
    settings = {"batch_size": 8, "crop": CropPolicy(training=split.name == "train"), "workers": 0, **changes}
    return LoaderSpec(split=split, **settings)  # type: ignore[arg-type]


def collect(spec: LoaderSpec, epoch: int = 0, start_batch: int = 0) -> list[Batch]:
    loader = loaders.create("webdataset", spec)
    try:
        batches = [Batch(*map(torch.clone, batch)) for batch in loader.epoch(epoch, RESOLUTION, start_batch)]
    finally:
        loader.close()
    assert start_batch or len(batches) == loader.batches_per_epoch
    return batches


def stored(path: Path, split_name: str, index: int) -> Sample:
    return open_split(path, split_name).samples[index]


def test_a_stream_follows_the_plan_with_the_right_labels(served: tuple[str, Path]) -> None:
    url, path = served
    spec = spec_of(open_split(url, "train"))
    batches = collect(spec, epoch=3)
    for batch, indices in zip(batches, spec.stream_plan.batches(3), strict=True):
        assert batch.indices.tolist() == indices.tolist()
        assert batch.labels.tolist() == [stored(path, "train", index).label for index in indices.tolist()]
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_pixels_are_those_of_the_local_shards(served: tuple[str, Path]) -> None:
    url, path = served
    streamed = {
        int(index): image for batch in collect(spec_of(open_split(url, "train")), 1)
        for image, index in zip(batch.images, batch.indices, strict=True)
    }  # fmt: skip
    for batch in collect(spec_of(open_split(path, "train")), 1):
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            assert index not in streamed or torch.equal(image, streamed[index])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(served: tuple[str, Path], workers: int) -> None:
    split = open_split(served[0], "train")
    for batch, alone in zip(collect(spec_of(split, workers=workers)), collect(spec_of(split)), strict=True):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(batch, alone, strict=True))


def test_a_stream_can_start_at_any_batch(served: tuple[str, Path]) -> None:
    spec = spec_of(open_split(served[0], "train"), workers=2)
    whole = collect(spec, 2)
    for start_batch in (1, len(whole) - 1, len(whole)):
        tail = collect(spec, 2, start_batch)
        assert [b.indices.tolist() for b in tail] == [b.indices.tolist() for b in whole[start_batch:]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_evaluation_counts_every_image_once(served: tuple[str, Path], world_size: int) -> None:
    split = open_split(served[0], "val")
    shares = [collect(spec_of(split, rank=rank, world_size=world_size, workers=2)) for rank in range(world_size)]
    indices = np.concatenate([batch.indices for batches in shares for batch in batches])
    assert sorted(indices.tolist()) == list(range(split.num_samples))


def test_a_missing_or_broken_shard_is_named(served: tuple[str, Path]) -> None:
    url, path = served
    shard = sorted((path / "webdataset").glob("train-*.tar"))[0]
    sound = shard.read_bytes()
    shard.write_bytes(sound[: len(sound) // 2])
    for workers in (0, 2):
        with pytest.raises(StorageError, match=rf"^{url}/webdataset/{shard.name}: given up .* as recorded\)$"):
            collect(spec_of(open_split(url, "train", IMPATIENT), workers=workers))
    shard.unlink()
    with pytest.raises(StorageError, match=f"{url}/webdataset/{shard.name}: cannot be opened"):
        collect(spec_of(open_split(url, "train", IMPATIENT)))


def test_a_foreign_shard_is_named(served: tuple[str, Path]) -> None:
    url, path = served
    shard = sorted((path / "webdataset").glob("train-*.tar"))[0]
    size = shard.stat().st_size
    with tarfile.open(shard, "w") as archive:
        for name in ("cat.jpg", "cat.cls"):
            archive.addfile(tarfile.TarInfo(name))
    os.truncate(shard, size)
    with pytest.raises(InputError, match=f"{url}/webdataset/{shard.name}: cat is no sample of this dataset") as raised:
        collect(spec_of(open_split(url, "train")))
    assert "\n" not in str(raised.value)


def test_swapped_shards_are_noticed(served: tuple[str, Path]) -> None:
    """Their keys say which shard they belong to."""
    url, path = served
    first, second = sorted((path / "webdataset").glob("train-*.tar"))[:2]
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    manifest = json.loads((path / "dataset.json").read_text())
    infos = manifest["splits"]["train"]["shards"]
    infos[0]["bytes"], infos[1]["bytes"] = infos[1]["bytes"], infos[0]["bytes"]
    (path / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="not in its shard; convert again"):
        collect(spec_of(open_split(url, "train")))


def test_only_the_webdataset_loader_streams(served: tuple[str, Path]) -> None:
    split = open_split(served[0], "train")
    assert loaders.choose(split)[0] == "webdataset"
    with pytest.raises(InputError, match="use --loader webdataset"):
        loaders.create("torch", spec_of(split))


def test_a_wrong_address_is_one_line(served: tuple[str, Path]) -> None:
    with pytest.raises(InputError, match=f"{served[0]}/none/dataset.json: cannot be opened") as raised:
        open_split(f"{served[0]}/none", "train")
    assert "\n" not in str(raised.value)


def cached(folder: Path, size: int, order: Order = "stream") -> RemoteSettings:
    return RemoteSettings(access=Access(io_timeout=20), cache=CacheSettings(folder, size), order=order)


def size_of(path: Path, split_name: str = "train") -> int:
    info = open_split(path, split_name).info
    assert info
    return sum(shard.bytes for shard in info.shards)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_nothing(served: tuple[str, Path], tmp_path: Path, workers: int) -> None:
    """Of half the data, and of all; over two epochs, the second from its middle."""
    url, path = served
    direct = spec_of(open_split(url, "train"))
    expected = [*collect(direct, 0), *collect(direct, 1, 2)]
    for share in (0.5, 1.5):
        size = int(size_of(path) * share)
        spec = spec_of(open_split(url, "train", cached(tmp_path / f"cache {share}", size)), workers=workers)
        loader = loaders.create("webdataset", spec)
        with contextlib.closing(loader):
            batches = [
                Batch(*map(torch.clone, batch))
                for epoch, start_batch in ((0, 0), (1, 2))
                for batch in loader.epoch(epoch, RESOLUTION, start_batch)
            ]
        assert all(torch.equal(a, b) for x, y in zip(batches, expected, strict=True) for a, b in zip(x, y, strict=True))
        files = [file for file in (tmp_path / f"cache {share}").rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) <= size


def test_what_is_cached_is_not_fetched_again(dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(dataset) as server, caplog.at_level(logging.INFO):
        settings = cached(tmp_path / "cache", 2 * size_of(dataset))
        for epoch in range(2):
            collect(spec_of(open_split(server.url, "train", settings), workers=2), epoch)
        shards = [path for _, path, _ in server.requests if path.endswith(".tar")]
    assert len(shards) == len({*shards}) == len(open_split(dataset, "train").info.shards)  # type: ignore[union-attr]
    line = next(message for message in reversed(caplog.messages) if message.startswith("train of epoch 1, rank 0: "))
    assert "shards were in the cache (100%), 0 KB fetched" in line


@pytest.mark.parametrize("name", ["torch", "webdataset"])
@pytest.mark.parametrize("split_name", ["train", "val"])
def test_the_global_order_is_that_of_local_data(
    served: tuple[str, Path], tmp_path: Path, name: str, split_name: str
) -> None:
    url, path = served
    settings = cached(tmp_path / "cache", 2 * size_of(path, split_name), "global")
    remote, local = (
        loaders.create(name, spec_of(split))
        for split in (open_split(url, split_name, settings), open_split(path, split_name))
    )
    for mine, theirs in zip(remote.epoch(1, RESOLUTION), local.epoch(1, RESOLUTION), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    remote.close()
    local.close()


def test_every_store_gives_the_same_batches(dataset: Path, s3_bucket: str, azure_container: str) -> None:
    """Real servers of both clouds' protocols."""
    expected = collect(spec_of(open_split(dataset, "val")))
    for address, endpoint in (s3_bucket.split("|"), azure_container.split("|")):
        access = Access(endpoint, 20)
        put_folder(dataset, address, access)
        split = open_split(address, "val", RemoteSettings(access=access))
        for mine, theirs in zip(collect(spec_of(split, workers=1)), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
