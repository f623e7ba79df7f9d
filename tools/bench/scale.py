"""Measure what ranks, images, shards and epochs cost a run before, next to and after its steps.

    python tools/bench_scale.py --ranks 64 256 1024 --images 14197122 --shards 100000 --epochs 1000

The ranks are processes forked from one that has imported everything; they meet and exchange as those of a run, and do
nothing else. The dataset is ImageNet-21k's size with the manifest, indices and tables that a conversion would write,
and holes where the images would be. CPU time is the unit: a machine that does other things has little effect on it.
Each measurement is repeated, and the least counts; memory is what a forked process adds to its parent's, which has
loaded the compiled kernels: what they take does not depend on the size of the dataset.
"""

import json
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cli import number
from pipeline.errors import InputError
from pipeline.order.plan import Plan, RankPlan
from pipeline.order.stream import StreamPlan
from pipeline.storage.beton import (
    BetonInfo,
    Extent,
    PageGroup,
    beton_extents,
    finish_beton,
    head_bytes,
)
from pipeline.storage.manifest import Manifest, SplitInfo
from pipeline.storage.shard_index import parse_index
from pipeline.storage.shards import INDEX_VERSION, ShardInfo, sample_key, stored_size
from pipeline.storage.split import open_split
from tools.bench import report
from train._elastic_internals import AGENT_STORE_VARIABLE
from train.curves import plot_curves
from train.meeting import meet
from train.metrics import RunWriter
from train.rendezvous import LOOPBACK, host_store
from train.world import World

CLASSES = 21_841
RANKS_OF_A_MACHINE = 8
_MOST_LINKS = 60_000  # ext4 allows 65,000 names of a file
_JPEG_BYTES = 110_000
_PAGE = 1 << 21
_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    """Measure the costs that grow with ranks, images, shards and epochs."""

    ranks: tuple[int, ...] = (64, 256, 1024)
    """World sizes of the meeting; each rank is a process."""
    images: int = 14_197_122
    """Training images; ImageNet-21k has these."""
    shards: int = 100_000
    epochs: int = 1_000
    rows: int = 350
    """Lines in metrics.jsonl per epoch: 8 x 256 images a step, a line every 20 steps."""
    rounds: int = 3
    """How often each is measured; the least counts."""
    out: Path = Path("runs/bench-scale")
    """Where scale.json goes."""

    def __post_init__(self) -> None:
        for name in ("images", "shards", "epochs", "rows", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least 1")
        if self.images < self.shards:
            raise InputError(f"--shards {self.shards}: more than the {self.images} images")
        if not self.ranks or min(self.ranks) < 2:
            raise InputError("--ranks: each must be at least 2")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What something costs a process."""

    seconds: float
    cpu_s: float
    memory: int
    """Bytes that it adds at its peak."""


def bench(settings: ScaleSettings) -> dict[str, Any]:
    """The command. Returns the costs in seconds and bytes."""
    costs: dict[str, Cost] = {}
    with tempfile.TemporaryDirectory(prefix="sluice-scale-") as folder:
        for name, action in _actions(settings, Path(folder)):
            measured = [_cost(action) for _ in range(settings.rounds)]
            costs[name] = Cost(
                seconds=min(cost.seconds for cost in measured),
                cpu_s=min(cost.cpu_s for cost in measured),
                memory=min(cost.memory for cost in measured),
            )
    machine = report.machine()
    rows = [
        (name, f"{cost.seconds:.2f}", f"{cost.cpu_s:.2f}", number(cost.memory / 1e6)) for name, cost in costs.items()
    ]
    print(report.table(("", "s", "CPU s", "MB"), rows), report.machine_line(machine), sep="\n\n")
    content = {name: vars(cost) for name, cost in costs.items()}
    settings.out.mkdir(parents=True, exist_ok=True)
    report.write_json(settings.out / "scale.json", {"machine": machine, "costs": content})
    return {"costs": content}


def _actions(settings: ScaleSettings, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is measured, by name."""
    yield "loading the compiled kernels", _load_kernels
    _load_kernels()
    for size in settings.ranks:
        yield f"meeting of {size} ranks", partial(_meet, size)
    images = f"{settings.images:,} images"
    for world in (1, RANKS_OF_A_MACHINE, max(settings.ranks)):
        plan = Plan(num_samples=settings.images, batch_size=256, world_size=world)
        yield f"order of {images}, one of {world} ranks", partial(_first_batch, plan)
    dataset = _write_dataset(settings, folder / "dataset")
    yield f"dataset.json of {settings.shards:,} shards", lambda: Manifest.read(dataset)
    plan = Plan(num_samples=settings.images, batch_size=256, world_size=RANKS_OF_A_MACHINE)
    yield f"start with {settings.shards:,} shards of {images}", partial(_start, dataset, plan)
    stream = StreamPlan(shard_samples=_shard_samples(settings), batch_size=256, world_size=RANKS_OF_A_MACHINE)
    yield f"order of a stream of {images}, one of {RANKS_OF_A_MACHINE} ranks", partial(_first_batch, stream)
    yield f".beton of {images}", lambda: open_split(dataset, "val").beton
    run_dir = _write_metrics(settings, folder / "run")
    rows = f"{settings.epochs:,} epochs"
    yield f"resuming metrics of {rows}", lambda: RunWriter(run_dir, settings.epochs * settings.rows).close()
    yield f"curves of {rows}", lambda: plot_curves([run_dir], folder / "curves.png")


def _load_kernels() -> None:
    """Have those of the measurements below."""
    _first_batch(Plan(num_samples=8, batch_size=1))
    _first_batch(StreamPlan(shard_samples=(4, 4), batch_size=1))
    places = np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.uint8)
    parse_index(np.empty(0, np.uint8), 0, 0, 0, *places)


def _first_batch(plan: RankPlan) -> None:
    next(plan.batches(0))


def _start(dataset: Path, plan: Plan) -> None:
    """Open the dataset as a run does, and draw the first batch."""
    samples = open_split(dataset, "train").samples
    open_split(dataset, "val")
    _first_batch(plan)
    assert len(samples) == plan.num_samples


def _cost(action: Callable[[], object]) -> Cost:
    """The cost of an action in a process of its own, with the processes that it starts. Its memory is without those."""
    reader, writer = os.pipe()
    pid = _forked(partial(_measure, action, writer))
    os.close(writer)
    with open(reader) as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    return Cost(**json.loads(content))


def _measure(action: Callable[[], object], result_to: int) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before, started = _status("VmRSS"), time.perf_counter()
    action()
    seconds = time.perf_counter() - started
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    content = {"seconds": seconds, "cpu_s": cpu_s, "memory": _status("VmHWM") - before}
    os.write(result_to, json.dumps(content).encode())


def _status(name: str) -> int:
    """A number of /proc/self/status in bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


# Ranks


def _meet(size: int) -> None:
    """Let ranks meet, and wait until all have what rank 0 says. Their store has a process of its own: it has a thread,
    and a process with threads must not fork."""
    reader, writer = os.pipe()
    host = _forked(partial(_host_store, writer))
    os.close(writer)
    with open(reader) as pipe:
        port = pipe.readline().strip()
    os.environ |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": port, AGENT_STORE_VARIABLE: str(True)}
    ranks = [
        _forked(partial(_be_rank, World(rank=rank, size=size, local_rank=rank, local_size=size)))
        for rank in range(size)
    ]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    os.kill(host, signal.SIGTERM)
    os.waitpid(host, 0)
    assert codes == size * [0], codes


def _forked(action: Callable[[], object]) -> int:
    """The process ID of a process that does something and ends."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return pid


def _host_store(port_to: int) -> None:
    store = host_store("", LOOPBACK, 0, _TIMEOUT_S)
    os.write(port_to, f"{store.port}\n".encode())
    signal.pause()


def _be_rank(world: World) -> None:
    meet(world, _TIMEOUT_S).from_main(lambda: "value")


# A dataset


def _shard_samples(settings: ScaleSettings) -> tuple[int, ...]:
    each, more = divmod(settings.images, settings.shards)
    return tuple(each + (shard < more) for shard in range(settings.shards))


def _write_dataset(settings: ScaleSettings, dataset: Path) -> Path:
    """A dataset with everything that is read before the first image: `train` as shards, `val` as a `.beton` file."""
    (dataset / "webdataset").mkdir(parents=True)
    infos = []
    for shard, samples in enumerate(_shard_samples(settings)):
        path = dataset / "webdataset" / f"train-{shard:06d}.tar"
        size = samples * stored_size(_JPEG_BYTES) + 1024
        for suffix, write in ((".tar", _write_hole), (".idx", _write_index)):
            original = dataset / f"{samples}-{shard // _MOST_LINKS}{suffix}"
            if not original.exists():
                write(original, samples, size)
            os.link(original, path.with_suffix(suffix))
        name = str(path.relative_to(dataset))
        infos.append(ShardInfo(name=name, samples=samples, bytes=size, sha256=f"{shard:064x}"))
    beton = _write_beton(settings.images, dataset / "ffcv" / "val.beton")
    splits = {
        "train": SplitInfo(samples=settings.images, bytes=1, image_mode="tile", shards=tuple(infos)),
        "val": SplitInfo(samples=settings.images, bytes=1, image_mode="tile", beton=beton),
    }
    Manifest(classes=_classes(), splits=splits).write(dataset)
    return dataset


def _classes() -> tuple[str, ...]:
    return tuple(f"n{number:08d}" for number in range(CLASSES))


def _write_hole(path: Path, samples: int, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _write_index(path: Path, samples: int, size: int) -> None:
    """An index as ShardWriter makes it."""
    lines = [f"{INDEX_VERSION} {samples}\n"]
    for place in range(samples):
        key, jpeg_at = sample_key(0, place, f"n00000000_{place}"), place * stored_size(_JPEG_BYTES) + 512
        label_at = jpeg_at + stored_size(_JPEG_BYTES) - 1024
        lines.append(f"jpg {jpeg_at} {_JPEG_BYTES} {key}.jpg cls {label_at} 5 {key}.cls\n")
    path.write_text("".join(lines))


def _write_beton(images: int, path: Path) -> BetonInfo:
    path.parent.mkdir()
    first_page, per_page = head_bytes(images, _PAGE), _PAGE // _JPEG_BYTES
    places = np.arange(images)
    rows = np.zeros((images, 6), np.int64)
    rows[:, 1:3] = 400, 500
    rows[:, 3] = places // per_page * _PAGE + places % per_page * _JPEG_BYTES
    rows[:, 4], rows[:, 5] = _JPEG_BYTES, places % CLASSES
    group = PageGroup(rows, Extent(bytes=-(-images // per_page) * _PAGE, sha256="0" * 64))
    with path.open("w+b") as file:
        finish_beton(file, first_page, [group], _PAGE, list(_classes()))
        extents = beton_extents(file, first_page, [group])
    return BetonInfo(name="ffcv/val.beton", samples=images, bytes=path.stat().st_size, extents=extents)


# A run


def _write_metrics(settings: ScaleSettings, run_dir: Path) -> Path:
    """metrics.jsonl of a run that has ended."""
    run_dir.mkdir()
    with (run_dir / "metrics.jsonl").open("w") as file:
        for epoch in range(1, settings.epochs + 1):
            for row in range(settings.rows):
                step = (epoch - 1) * settings.rows + row + 1
                values = {"images": 40960, "loss": 1.23456789, "top1": 70.123456, "top5": 90.123456, "objective": 1.3}
                values |= {"epoch": step / settings.rows, "lr": 0.123456, "images_per_s": 12345.678, "data_wait": 0.01}
                file.write(json.dumps({"kind": "train", "step": step, **values}) + "\n")
            values = {"epoch": epoch, "images": 50000, "loss": 1.2, "top1": 70.1, "top5": 90.1}
            file.write(json.dumps({"kind": "eval", "step": step, **values}) + "\n")
    return run_dir
