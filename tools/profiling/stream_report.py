"""Predicts a stream, on the command line: what is measured for it, and what it comes to in words."""

import contextlib
import dataclasses
import itertools
import logging
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from pipeline.cli import number
from pipeline.errors import InputError
from pipeline.sizes import parse_bytes, size_in_words
from pipeline.storage.remote import helper
from pipeline.storage.remote.settings import CacheSettings, RemoteSettings
from pipeline.storage.split import Split
from tools.bench import report
from tools.profiling.loader_parts import measure_parts
from tools.profiling.settings import ProfileSettings
from tools.profiling.stream_model import SimulatedEpoch, StreamSettings
from tools.profiling.stream_run import LIMITS, Alternative, alternatives, limit_of, simulate
from tools.profiling.throughput import cores
from train.config import TrainConfig
from train.device import select
from train.inputs import check, loading_processes, open_data
from train.process import Process
from train.world import World

log = logging.getLogger(__name__)

_SECONDS = 4.0  # for each bandwidth
_CONNECTIONS = 32  # at most, to measure that of the machine


@dataclass(frozen=True, kw_only=True)
class Line:
    """A network, as the model takes it."""

    bandwidth: float
    connection_bandwidth: float
    latency: float
    cpu_s_per_byte: float = 0.0
    """CPU time of receiving."""


def predict_stream(settings: ProfileSettings) -> dict[str, Any]:
    """The command's result with --simulate. Raises InputError and StorageError."""
    config = settings.training_config("auto", {})
    split = open_data(config, "train")
    if split.info is None or not split.info.shards:
        raise InputError(f"--simulate: {config.data} has no shards to stream; convert it with --format webdataset")
    if split.url:
        check(config)
    stream = _stream_settings(settings, config, split)
    epochs = simulate(stream)
    log.info("%s", _in_words(stream))
    log.info("\n%s", report.table(*_table(epochs)))
    found = alternatives(stream, epochs[-1])
    log.info("\n%s", _verdict(found))
    content = {
        "settings": dataclasses.asdict(stream),
        "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
        "alternatives": [dataclasses.asdict(one) for one in found],
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    report.write_json(settings.out / "stream.json", content)
    return _result(epochs[-1], found) | {"out": str(settings.out)}


def _stream_settings(settings: ProfileSettings, config: TrainConfig, split: Split) -> StreamSettings:
    assert split.info is not None
    line = _line(settings, config, split)
    cache = config.remote.cache
    stream = StreamSettings(
        shard_samples=tuple(shard.samples for shard in split.info.shards),
        shard_bytes=tuple(shard.bytes for shard in split.info.shards),
        batch_size=config.batch_size,
        repeats=config.aug_repeats,
        nproc=config.nproc,
        workers=loading_processes(config, config.nproc),
        cores=cores(),
        cpu_s=_loading_s(config, split),
        bandwidth=line.bandwidth,
        connection_bandwidth=line.connection_bandwidth,
        latency=line.latency,
        cache_bytes=cache.limit if cache else 0,
        seed=config.seed,
    )
    stream = replace(stream, cpu_s=stream.cpu_s + line.cpu_s_per_byte * stream.image_bytes)
    return stream.with_shards_of(parse_bytes(settings.shard_size)) if settings.shard_size else stream


# --- measured


def _line(settings: ProfileSettings, config: TrainConfig, split: Split) -> Line:
    """The network: stated, or measured where there is one."""
    stated = parse_bytes(settings.bandwidth) if settings.bandwidth else None
    each = parse_bytes(settings.connection_bandwidth) if settings.connection_bandwidth else None
    if stated and settings.latency is not None:
        return Line(bandwidth=stated, connection_bandwidth=each or stated, latency=settings.latency)
    if not split.url:
        raise InputError(f"--simulate: {config.data} is local; state the bucket's --bandwidth and --latency")
    log.info("measuring the network for %.0f s", 2 * _SECONDS)
    latency = settings.latency if settings.latency is not None else _latency(split)
    alone, _ = _received(split, 1)
    together, cpu_s_per_byte = _received(split, _CONNECTIONS)
    bandwidth = stated or max(alone, together)
    return Line(
        bandwidth=bandwidth,
        connection_bandwidth=min(bandwidth, each or alone),
        latency=latency,
        cpu_s_per_byte=cpu_s_per_byte,
    )


def _latency(split: Split) -> float:
    """Seconds until an object's size has been received; the first request, which connects, is not counted."""
    address, access = split.remote.address(0), split.settings.access
    times = [time.perf_counter()]
    for _ in range(6):
        helper.call("size_of", address, access)
        times.append(time.perf_counter())
    return median(stop - start for start, stop in itertools.pairwise(times[1:]))


def _received(split: Split, connections: int) -> tuple[float, float]:
    """Bytes a second that so many connections receive together, and the CPU seconds of a byte."""
    shards, access = split.remote, split.settings.access
    end = time.monotonic() + _SECONDS
    received, errors = [0] * connections, list[BaseException]()

    def receive(number: int) -> None:
        try:
            while time.monotonic() < end:
                address = shards.address(number % len(shards.infos))
                with contextlib.closing(helper.iterate("stream", address, access)) as pieces:
                    for piece in pieces:
                        received[number] += len(piece)
                        if time.monotonic() >= end:
                            break
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=receive, args=(number,)) for number in range(connections)]
    started, cpu_s = time.monotonic(), _cpu_s()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    seconds = time.monotonic() - started
    return sum(received) / seconds, (_cpu_s() - cpu_s) / sum(received)


def _cpu_s() -> float:
    """CPU seconds of this process and of the one that talks to object stores."""
    here = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (here, *here.children()))


def _loading_s(config: TrainConfig, split: Split) -> float:
    """CPU seconds that a worker takes for an image, once its bytes are there: of a remote split, measured with the
    images of its first shard."""
    with tempfile.TemporaryDirectory(prefix="sluice-profile-") as folder:
        local = _one_shard(split, Path(folder)) if split.url else split
        process = Process(config, World(), select("cpu", 0, 1))
        spec = process.loader_spec(local, training=True)
        spec = replace(spec, batch_size=max(1, min(spec.batch_size, local.num_samples // 4)), repeats=1)
        return measure_parts("webdataset", spec, process.resolution, batches=3, rounds=3).whole_s


def _one_shard(split: Split, folder: Path) -> Split:
    """The first shard of a remote split as a split of its own, fetched into `folder` when it is read. (The names of
    samples in it count from the first shard.)"""
    assert split.info is not None
    first = split.info.shards[0]
    cache = CacheSettings(folder, 2 * first.bytes + (1 << 20))
    return replace(
        split,
        info=replace(split.info, samples=first.samples, shards=(first,), beton=None),
        settings=RemoteSettings(access=split.settings.access, cache=cache, order="global"),
    )


# --- in words


def _in_words(stream: StreamSettings) -> str:
    cache = f"a cache of {size_in_words(stream.cache_bytes)}" if stream.cache_bytes else "no cache"
    return (
        f"{len(stream.shard_bytes)} shards, {size_in_words(stream.total_bytes)} in all; {cache}; {stream.nproc} x "
        f"{stream.workers} workers on {stream.cores} cores\n"
        f"{size_in_words(stream.bandwidth)}/s, {size_in_words(stream.connection_bandwidth)}/s for a connection, "
        f"{1e3 * stream.latency:.0f} ms before the first byte\n"
        f"an image: {size_in_words(stream.image_bytes)}, {1e3 * stream.cpu_s:.2f} ms of CPU time; the shuffle buffers "
        f"take up to {size_in_words(stream.buffer_bytes)} of memory"
    )


def _table(epochs: list[SimulatedEpoch]) -> tuple[list[str], list[list[str]]]:
    names = ["every epoch"] if len(epochs) == 1 else [f"epoch {n}" for n in range(len(epochs) - 1)] + ["later ones"]
    rows = [
        [
            name,
            number(epoch.images_per_s),
            size_in_words(epoch.fetched_bytes),
            f"{number(epoch.first_batch_s)} s",
            f"{number(epoch.seconds)} s",
        ]
        for name, epoch in zip(names, epochs, strict=True)
    ]
    return ["predicted", "images/s", "fetched", "first batch after", "whole epoch"], rows


def _verdict(found: list[Alternative]) -> str:
    limit = limit_of(found)
    if limit == "nothing":
        return "No single setting limits this stream."
    gains = [f"{one.change}: {one.factor:.2f}x" for one in found if one.factor >= LIMITS]
    return f"Limited by {limit}. Predicted to be faster: {'; '.join(gains)}."


def _result(epoch: SimulatedEpoch, found: list[Alternative]) -> dict[str, Any]:
    """Of a later epoch; to four digits."""
    values = {
        "images_per_s": epoch.images_per_s,
        "epoch_bytes": epoch.fetched_bytes,
        "epoch_s": epoch.seconds,
        "first_batch_s": epoch.first_batch_s,
    }
    return {name: float(f"{value:.4g}") for name, value in values.items()} | {"limited_by": limit_of(found)}
