"""Compare the models with the implementations they replace: images per second and peak memory, forward and training.

    python tools/bench_models.py --model pnasnet5large,pyramidnet164_a48 --batch-size 4

Ours and the reference take turns in one process; the median counts. The table, the spread of the measurements and the
machine go to `--out`.
"""

import itertools
import logging
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import models
from models import pyramidnet
from models.table import gmacs
from pipeline.progress import announced
from tools.bench import report
from train.device import AMP_DTYPES, DeviceName, configure_math, select, synchronize

log = logging.getLogger(__name__)

Result = TypeVar("Result")

MATRIX_SIDE = 8192
CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a network is run."""

    name: str
    amp: Literal["off", "bf16", "fp16"] = "off"
    channels_last: bool = False
    compile: bool = False


CPU_VARIANTS = (
    Variant(name="NCHW"),
    Variant(name="channels-last", channels_last=True),
    Variant(name="channels-last compiled", channels_last=True, compile=True),
)
ACCELERATOR_VARIANTS = (
    Variant(name="NCHW fp32"),
    Variant(name="AMP", amp="bf16"),
    Variant(name="AMP channels-last", amp="bf16", channels_last=True),
    Variant(name="AMP channels-last compiled", amp="bf16", channels_last=True, compile=True),
)


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Compare the models with the implementations they replace."""

    model: str = "alexnet,resnet152,se_resnet50,se_resnet50_caffe,pnasnet5large,pyramidnet164_a48"
    """Models, separated by commas."""
    batch_size: int = 4
    resolution: int | None = None
    """Side of the images; default: each model's own."""
    device: DeviceName = "auto"
    rounds: int = 5
    """Measurements of each rate; the median counts."""
    compile: bool = True
    """Measure compiled networks too; compiling takes minutes on a CPU."""
    out: Path = Path("runs/bench-models")
    """Where models.json and the bar chart models.png go."""

    def __post_init__(self) -> None:
        for name in self.model_names:
            models.card(name)
            if name not in REFERENCES:
                raise ValueError(f"--model {name}: has no reference; choose from {', '.join(REFERENCES)}")
        for name in ("batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")

    @property
    def model_names(self) -> list[str]:
        """--model as a list."""
        return [name.strip() for name in self.model.split(",")]


# The references


class ReferencePyramidBlock(nn.Module):
    """The authors' bottleneck: the shortcut is concatenated with zeros."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, kernel_size=1, bias=False)
        self.bn4 = nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.AvgPool2d(2, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn4(self.conv3(self.relu(self.bn3(self.conv2(out)))))
        shortcut = self.downsample(x)
        zeros = shortcut.new_zeros(len(out), out.shape[1] - shortcut.shape[1], *out.shape[2:])
        out += torch.cat([shortcut, zeros], 1)
        return out


class ReferencePyramidNet(nn.Module):
    """The authors' PyTorch code, with zeros on the device of the shortcut instead of on the CUDA device."""

    def __init__(self, depth: int, alpha: float) -> None:
        super().__init__()
        blocks = pyramidnet.stage_blocks(depth, "bottleneck")
        width, channels, stages = 64.0, 64, []
        for number, count in enumerate(blocks):
            for index in range(count):
                width += alpha / sum(blocks)
                stages.append(ReferencePyramidBlock(channels, round(width), 2 if number and not index else 1))
                channels = round(width) * 4
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.head(self.stages(self.stem(images)))
        logits: Tensor = self.fc(features.flatten(1))
        return logits


def _cadene(name: str) -> nn.Module:
    import pretrainedmodels

    network: nn.Module = getattr(pretrainedmodels, name)(num_classes=CLASSES, pretrained=None)
    network.avg_pool = nn.AdaptiveAvgPool2d(1)
    return network


def _timm(name: str) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(name, num_classes=CLASSES)
    return network


REFERENCES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "alexnet": ("torchvision", lambda: torchvision.models.alexnet()),
    "torchvision/resnet50": ("timm", lambda: _timm("resnet50")),
    "resnet152": ("torchvision", lambda: torchvision.models.resnet152()),
    "se_resnet50": ("timm", lambda: _timm("seresnet50")),
    "se_resnet50_caffe": ("Cadene", lambda: _cadene("se_resnet50")),
    "pnasnet5large": ("Cadene", lambda: _cadene("pnasnet5large")),
    "pyramidnet": ("authors", lambda: ReferencePyramidNet(101, 360)),
    "pyramidnet164_a48": ("authors", lambda: ReferencePyramidNet(164, 48)),
    "pyramidnet101_a360": ("authors", lambda: ReferencePyramidNet(101, 360)),
    "pyramidnet200_a300": ("authors", lambda: ReferencePyramidNet(200, 300)),
    "pyramidnet200_a450": ("authors", lambda: ReferencePyramidNet(200, 450)),
}
"""By model: who wrote the reference, and how it is built."""


# Measuring


class Candidate:
    """A network on the device with images, run as a variant says."""

    def __init__(self, settings: BenchSettings, name: str, ours: bool, variant: Variant) -> None:
        self.device, self.variant = select(settings.device, 0, 1), variant
        torch.manual_seed(0)
        network = models.create(name, CLASSES).network if ours else REFERENCES[name][1]()
        side = settings.resolution or models.card(name).resolution
        images = torch.randn(settings.batch_size, 3, side, side)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.network = network.to(self.device).to(memory_format=layout)
        self.images = images.to(self.device).to(memory_format=layout)
        self.labels = torch.randint(CLASSES, (settings.batch_size,), device=self.device)
        self.optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
        if variant.compile:
            self.network.compile()

    def forward(self) -> None:
        """An evaluation's forward pass."""
        self.network.eval()
        with torch.inference_mode(), self._autocast():
            self.network(self.images)

    def step(self) -> None:
        """A training step: forward, backward, update."""
        self.network.train()
        with self._autocast():
            loss = functional.cross_entropy(self.network(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, action: Callable[[], None]) -> float:
        """Duration of an action, until the device has finished."""
        synchronize(self.device)
        started = time.perf_counter()
        action()
        synchronize(self.device)
        return time.perf_counter() - started

    def _autocast(self) -> torch.autocast:
        dtype = AMP_DTYPES[self.variant.amp]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)


def peak(candidate: Candidate, action: Callable[[], None]) -> float:
    """Peak MiB that an action allocates through PyTorch, beyond what was allocated before; without scratch memory of
    libraries."""
    if candidate.device.type != "cpu":
        before = torch.accelerator.memory_allocated()
        torch.accelerator.reset_peak_memory_stats()
        action()
        return (torch.accelerator.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return float(max(itertools.accumulate(change for _, change in changes))) / 2**20


def compare(settings: BenchSettings, name: str, variant: Variant) -> dict[str, float]:
    """Images per second and peak MiB of ours and of the reference, forward and training step."""
    configure_math(deterministic=False)
    row: dict[str, float] = {}
    candidates = {who: Candidate(settings, name, who == "ours", variant) for who in ("ours", "reference")}
    for what in ("forward", "step"):
        actions = {who: getattr(candidate, what) for who, candidate in candidates.items()}
        seconds: dict[str, list[float]] = {who: [] for who in candidates}
        for turn in range(settings.rounds + 1):
            for who, candidate in candidates.items():
                action_s = candidate.seconds(actions[who])
                if turn:  # the first compiles, allocates and chooses kernels
                    seconds[who].append(action_s)
        for who, candidate in candidates.items():
            row[f"{what}_{who}_images_per_s"] = round(settings.batch_size / median(seconds[who]), 2)
            row[f"{what}_{who}_spread"] = round(report.Rate.of(seconds[who]).spread, 3)
            row[f"{what}_{who}_mib"] = round(peak(candidate, actions[who]), 1)
    return row


def matrix_rate(settings: BenchSettings, side: int = MATRIX_SIDE) -> float:
    """TFLOP/s of a large bf16 matrix product on the device: the ceiling for a network."""
    device = select(settings.device, 0, 1)
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(20):
        synchronize(device)
        started = time.perf_counter()
        left @ right
        synchronize(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / median(times[5:]) / 1e12


def in_a_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a fresh process, free of what other measurements compiled and allocated."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(settings: BenchSettings, name: str, variant: Variant, ceiling: float | None) -> dict[str, Any]:
    """A row of the table. `ceiling`: the measured matrix rate of an accelerator in TFLOP/s."""
    row: dict[str, Any] = {"model": name, "variant": variant.name, "reference": REFERENCES[name][0]}
    row |= in_a_process(compare, settings, name, variant)
    if ceiling:
        row |= arithmetic(name, settings.resolution, row["step_ours_images_per_s"], ceiling)
    return row


def arithmetic(name: str, resolution: int | None, images_per_s: float, ceiling: float) -> dict[str, float]:
    """What a rate of training steps is in TFLOP/s, and as a share of the matrix rate."""
    card = models.card(name)
    network = card.build_without_memory(CLASSES)
    tflops = 6e-3 * gmacs(network, resolution or card.resolution) * images_per_s  # backward is twice forward
    return {"step_tflops": float(f"{tflops:.3g}"), "share_of_matrix_rate": round(tflops / ceiling, 3)}


COLUMNS = (
    "",
    *(f"{what} {column}" for what in ("forward", "step") for column in ("images/s", "reference", "ratio")),
    *(f"{what} {column}" for what in ("forward", "step") for column in ("MiB", "reference", "ratio")),
    "TFLOP/s",
    "of matrix",
)


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table: ours, the reference, and ours over the reference."""
    texts = [f"{row['model']} {row['variant']}"]
    for what in ("forward", "step"):
        rates = {who: row[f"{what}_{who}_images_per_s"] for who in ("ours", "reference")}
        texts += [f"{rate:.2f} ±{row[f'{what}_{who}_spread']:.0%}" for who, rate in rates.items()]
        texts.append(f"{rates['ours'] / rates['reference']:.2f}")
    for what in ("forward", "step"):
        ours, reference = (row[f"{what}_{who}_mib"] for who in ("ours", "reference"))
        texts += [f"{ours:.0f}", f"{reference:.0f}", f"{ours / reference:.2f}"]
    if "step_tflops" not in row:
        return [*texts, "", ""]
    return [*texts, str(row["step_tflops"]), f"{row['share_of_matrix_rate']:.0%}"]


def bench(settings: BenchSettings) -> dict[str, Any]:
    """The command."""
    device = select(settings.device, 0, 1)
    on_cpu = device.type == "cpu"
    ceiling = None if on_cpu else in_a_process(matrix_rate, settings)
    variants = CPU_VARIANTS if on_cpu else ACCELERATOR_VARIANTS
    chosen = [variant for variant in variants if settings.compile or not variant.compile]
    runs = [(name, variant) for name in settings.model_names for variant in chosen]
    progress = announced(runs, "model", lambda run: f"{run[0]} {run[1].name}")
    rows = [measure(settings, name, variant, ceiling) for name, variant in progress]
    machine = report.machine(device)
    log.info("%s\n", report.table(COLUMNS, [cells(row) for row in rows]))
    if ceiling:
        log.info("bf16 matrix product of %d: %.0f TFLOP/s", MATRIX_SIDE, ceiling)
    log.info("batch %d; %s", settings.batch_size, report.machine_line(machine))
    report.write_json(settings.out / "models.json", {"machine": machine, "rows": rows, "matrix_tflops": ceiling})
    ratios = {
        f"{row['model']} {row['variant']}": [row["step_ours_images_per_s"] / row["step_reference_images_per_s"]]
        for row in rows
    }
    report.draw_bars(settings.out / "models.png", "training step: images/s over the reference's", ratios, {})
    return {"rows": rows, "matrix_tflops": ceiling}
