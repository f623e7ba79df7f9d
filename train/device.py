"""The devices: one row each. Nothing else in Sluice names a vendor; `python -m train.device` prints the table."""

import ctypes
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
from torch.optim import Optimizer

from models.table import markdown_lines
from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DeviceType:
    """What differs between device types in PyTorch."""

    backend: str
    """Of torch.distributed."""
    channels_last: bool
    """Whether the device has this memory format."""
    fused_optimizer: bool = False
    """Whether PyTorch's SGD has a kernel of its own there."""
    compilers: tuple[str, ...] = ("gcc", "clang")
    """Of which torch.compile needs one, unless CC or CXX names another."""
    vendor_package: str | None = None
    """Must be imported before PyTorch knows the device."""
    visible_devices: str | None = None
    """The environment variable that lists the devices a process may use, `0,1`; they are numbered from 0 again."""
    processes_per_card: int = 1
    """Devices, and so processes, that one card is for PyTorch."""
    bucket_mb: int | None = None
    """DistributedDataParallel's bucket_cap_mb; None: PyTorch's own."""
    fused_sgd: str | None = None
    """The vendor's SGD, as module.name; used where it is installed. It takes the place of PyTorch's."""
    grad_scaler: str | None = None
    """The vendor's gradient scaler, as module.name; used where it is installed."""
    compile_backend: str | None = None
    """What returns the backend of torch.compile, as module.name; None: PyTorch's own."""
    profiler: str = "torch.profiler"
    """The module of --profile-steps."""
    environment: tuple[tuple[str, str], ...] = ()
    """Variables that are set before the vendor's package is imported, unless they are set already."""


DEVICE_TYPES: dict[str, DeviceType] = {
    "cuda": DeviceType(
        backend="nccl", channels_last=True, fused_optimizer=True, visible_devices="CUDA_VISIBLE_DEVICES"
    ),
    # `.to(memory_format=channels_last)` raises on NPUs.
    "npu": DeviceType(
        backend="hccl",
        channels_last=False,
        vendor_package="torch_npu",
        visible_devices="ASCEND_RT_VISIBLE_DEVICES",
        fused_sgd="torch_npu.optim.NpuFusedSGD",
        # On devices whose float16 saturates instead of overflowing, it asks the device whether that happened.
        grad_scaler="torch_npu.npu.amp.GradScaler",
        compile_backend="torchair.get_npu_backend",
        profiler="torch_npu.profiler",
        # Seconds that ranks wait for each other's first connection: 120 by default, while others still open their data.
        environment=(("HCCL_CONNECT_TIMEOUT", "600"),),
    ),
    "sdaa": DeviceType(
        backend="tccl",
        channels_last=True,
        vendor_package="torch_sdaa",
        visible_devices="SDAA_VISIBLE_DEVICES",
        processes_per_card=4,
        bucket_mb=110,  # as in Tecorigin's own trainers
        fused_sgd="torch_sdaa.optim.FusedSGD",
        grad_scaler="torch_sdaa.amp.GradScaler",
    ),
    "cpu": DeviceType(backend="gloo", channels_last=True, compilers=("g++",)),
}
"""The values of --device but for `auto`, which takes the accelerator that PyTorch sees, else the CPU."""

DEVICE_NAMES = ("auto", *DEVICE_TYPES)
if TYPE_CHECKING:
    DeviceName = str
else:
    # The type of a --device flag, whose choices in --help and in error messages follow from the table.
    DeviceName = Literal[DEVICE_NAMES]

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def select(name: str, local_rank: int, local_world_size: int) -> torch.device:
    """The device of this process, made current. Raises InputError as `require` does."""
    name = require(name, local_world_size)
    if name == "cpu":
        _keep_freed_memory()
        return torch.device("cpu")
    torch.accelerator.set_device_index(local_rank)
    if name == "npu":
        # Kernels that are compiled when they are first used, for every new shape, make the first steps take minutes.
        torch.get_device_module(name).set_compile_mode(jit_compile=False)
    return torch.device(name, local_rank)


def _keep_freed_memory() -> None:
    """Have glibc reuse freed memory instead of returning it to the system, which zeroes every page it hands out.

    A training step is then 1.2 times as fast (se_resnet50, batches of 8 and 16, 2 cores), and takes a tenth more
    memory. Sources: mallopt(3), and the numbers in <malloc.h>; other C libraries have no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 1 << 25)  # the largest value allowed; larger blocks are returned at once
        mallopt(trim_threshold, (1 << 31) - 1)


def require(name: str, count: int) -> str:
    """The device type that --device means; `auto` is the accelerator PyTorch sees, else the CPU. Initialises no
    device.

    Raises InputError where the vendor's package or `count` devices are missing.
    """
    if name == "auto":
        name = _accelerator() or "cpu"
    if name == "cpu":
        return name
    _import_vendor(name)
    available = torch.accelerator.device_count() if _current() == name else 0
    if available < count:
        raise InputError(f"--nproc {count}: this machine has {available} {name} device(s)")
    return name


def _accelerator() -> str | None:
    """The accelerator of this machine. PyTorch sees one that needs a vendor's package only after its import."""
    for name, row in DEVICE_TYPES.items():
        if row.vendor_package and importlib.util.find_spec(row.vendor_package):
            _import_vendor(name)
    current = _current()
    return current if current in DEVICE_TYPES else None


def _import_vendor(name: str) -> None:
    package = DEVICE_TYPES[name].vendor_package
    if package is None:
        return
    for variable, value in DEVICE_TYPES[name].environment:
        os.environ.setdefault(variable, value)
    try:
        importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: a missing library of the vendor's driver
        raise InputError(f"--device {name} needs {package}, which cannot be imported ({error})") from None


def _current() -> str | None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None else None


def device_name(device: torch.device) -> str:
    """The product name, where PyTorch's module for the device knows it."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name else device.type


def synchronize(device: torch.device) -> None:
    """Wait until the device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def memory_bytes(device: torch.device) -> int | None:
    """The most memory that PyTorch has had of the device so far; on a CPU, what this process has now. None where
    PyTorch's module for the device does not know."""
    if device.type == "cpu":
        return int(psutil.Process().memory_info().rss)
    most = getattr(torch.get_device_module(device), "max_memory_reserved", None)
    return int(most(device)) if most else None


def cards(name: str, processes: int) -> float | None:
    """How many cards so many processes use; None where a card is one device, or where they are less than a card."""
    per_card = DEVICE_TYPES[name].processes_per_card
    return processes / per_card if 1 < per_card <= processes else None


def _of_vendor(path: str | None) -> Any:
    """What is at module.name; None where the vendor's package has no such module or name."""
    if path is None:
        return None
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None


def fused_sgd(name: str) -> Callable[..., Optimizer] | None:
    """The vendor's SGD, with the arguments of PyTorch's; None where there is none."""
    found: Callable[..., Optimizer] | None = _of_vendor(DEVICE_TYPES[name].fused_sgd)
    return found


def grad_scaler(name: str, init_scale: float, enabled: bool) -> torch.amp.GradScaler:
    """The vendor's gradient scaler where there is one, else PyTorch's."""
    vendors = _of_vendor(DEVICE_TYPES[name].grad_scaler)
    if vendors is None:
        return torch.amp.GradScaler(name, init_scale=init_scale, enabled=enabled)
    scaler: torch.amp.GradScaler = vendors(init_scale=init_scale, enabled=enabled)
    return scaler


def compile_options(name: str) -> dict[str, Any]:
    """What `torch.compile` is called with on a device. Raises InputError where the vendor's backend is missing."""
    path = DEVICE_TYPES[name].compile_backend
    if path is None:
        return {}
    backend = _of_vendor(path)
    if backend is None:
        package = path.partition(".")[0]
        raise InputError(f"--compile: on {name} it needs {package}, which is not installed; leave the flag out")
    return {"backend": backend(), "dynamic": False}


def profiler(name: str) -> ModuleType:
    """The module whose `profile` traces steps on a device. Raises InputError where the vendor's is missing."""
    path = DEVICE_TYPES[name].profiler
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        raise InputError(f"--profile-steps: on {name} it needs {path}, which is not installed") from None


def configure_math(deterministic: bool, float32: str = "high", name: str = "cpu") -> None:
    """Fast kernels, or reproducible ones; of float32, the precision "high" or "highest" on a device type."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision(float32)
    torch.backends.cudnn.allow_tf32 = float32 == "high"
    if name == "npu":
        npu = torch.get_device_module(name)
        npu.conv.allow_hf32 = npu.matmul.allow_hf32 = float32 == "high"


HEADER = (
    "`--device`", "torch.distributed backend", "channels_last", "needs", "SGD", "`--compile`", "`--profile-steps`",
    "choose devices with",
)  # fmt: skip


def rows() -> list[tuple[str, ...]]:
    """The cells of the table of devices, in the order of HEADER."""
    return [
        (
            f"`{name}`",
            row.backend,
            "yes" if row.channels_last else "no",
            row.vendor_package or "nothing more",
            _last(row.fused_sgd) or ("PyTorch's, fused" if row.fused_optimizer else "PyTorch's"),
            (row.compile_backend or "inductor").partition(".")[0],
            row.profiler,
            f"`{row.visible_devices}`" if row.visible_devices else "",
        )
        for name, row in DEVICE_TYPES.items()
    ]


def _last(path: str | None) -> str:
    return (path or "").rpartition(".")[2]


if __name__ == "__main__":
    print(*markdown_lines(HEADER, iter(rows())), sep="\n")
