"""Streaming from a web server: the order of a StreamPlan, whoever reads it."""

import functools
import http.server
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import loaders
from pipeline.contract import Batch, CropPolicy, LoaderSpec
from pipeline.dataset import Split, open_split
from pipeline.errors import InputError
from pipeline.formats.samples import Sample

RESOLUTION = 32


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """No log on stderr."""


@pytest.fixture
def served(dataset_copy: Path) -> Iterator[tuple[str, Path]]:
    """The address of a dataset on a real web server, and its directory."""
    handler = functools.partial(Quiet, directory=str(dataset_copy))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", dataset_copy
        server.shutdown()


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


def test_a_stream_is_the_plans_with_true_labels(served: tuple[str, Path]) -> None:
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


def test_start_batch_enters_the_stream_anywhere(served: tuple[str, Path]) -> None:
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
        with pytest.raises(InputError, match=f"{url}/webdataset/{shard.name}|not in its shard"):
            collect(spec_of(open_split(url, "train"), workers=workers))
    shard.unlink()
    with pytest.raises(InputError, match=f"{url}/webdataset/{shard.name}: cannot be opened"):
        collect(spec_of(open_split(url, "train")))


def test_a_shard_of_something_else_is_named(served: tuple[str, Path]) -> None:
    url, path = served
    shard = sorted((path / "webdataset").glob("train-*.tar"))[0]
    with tarfile.open(shard, "w") as archive:
        for name in ("cat.jpg", "cat.cls"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(InputError, match=f"{url}/webdataset/{shard.name}: cat is no sample of this dataset") as raised:
        collect(spec_of(open_split(url, "train")))
    assert "\n" not in str(raised.value)


def test_shards_that_changed_places_are_noticed(served: tuple[str, Path]) -> None:
    """Their keys say which shard they belong to."""
    url, path = served
    first, second = sorted((path / "webdataset").glob("train-*.tar"))[:2]
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(InputError, match="not in its shard; convert again"):
        collect(spec_of(open_split(url, "train")))


def test_only_the_webdataset_loader_streams(served: tuple[str, Path]) -> None:
    split = open_split(served[0], "train")
    assert loaders.choose(split)[0] == "webdataset"
    with pytest.raises(InputError, match="use --loader webdataset"):
        loaders.create("torch", spec_of(split))


def test_a_wrong_address_is_one_line() -> None:
    with pytest.raises(InputError, match=r"http://127.0.0.1:9/dataset.json: cannot be opened") as raised:
        open_split("http://127.0.0.1:9", "train")
    assert "\n" not in str(raised.value)
