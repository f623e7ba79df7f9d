"""The devices: one row each. Nothing else in Sluice names a vendor."""

import ctypes
import importlib
import importlib.util
import os
from dataclasses import dataclass

import torch

from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class DeviceType:
    """What differs between device types in PyTorch."""

    backend: str  # of torch.distributed
    channels_last: bool
    fused_optimizer: bool = False
    vendor_package: str | None = None  # must be imported before torch knows the device


DEVICE_TYPES = {
    "cuda": DeviceType(backend="nccl", channels_last=True, fused_optimizer=True),
    # `.to(memory_format=channels_last)` raises on NPUs.
    "npu": DeviceType(backend="hccl", channels_last=False, vendor_package="torch_npu"),
    "sdaa": DeviceType(backend="tccl", channels_last=True, vendor_package="torch_sdaa"),
    "cpu": DeviceType(backend="gloo", channels_last=True),
}

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def select(name: str, local_rank: int, local_world_size: int) -> torch.device:
    """The device of this process, made current. Raises InputError as `require` does."""
    name = require(name, local_world_size)
    if name == "cpu":
        _keep_freed_memory()
        return torch.device("cpu")
    torch.accelerator.set_device_index(local_rank)
    return torch.device(name, local_rank)


def _keep_freed_memory() -> None:
    """Have glibc use freed memory again instead of giving it to the system, which zeroes every page it gives back.

    A training step is 1.2 times as fast then (se_resnet50, batches of 8 and 16, 2 cores), with a tenth more memory.
    Sources: mallopt(3), and the numbers in <malloc.h>; other C libraries have none of this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 1 << 25)  # the most it takes; what is larger is given back at once
        mallopt(trim_threshold, (1 << 31) - 1)


def require(name: str, count: int) -> str:
    """The device type that --device means; `auto` is the accelerator PyTorch sees, else the CPU. Takes none into use.

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
    """The accelerator of this machine. PyTorch sees it only once its vendor's package, where there is one, is
    imported."""
    for name, row in DEVICE_TYPES.items():
        if row.vendor_package and importlib.util.find_spec(row.vendor_package):
            _import_vendor(name)
    found = _current()
    return found if found in DEVICE_TYPES else None


def _import_vendor(name: str) -> None:
    package = DEVICE_TYPES[name].vendor_package
    if package is None:
        return
    try:
        importlib.import_module(package)
    except (ImportError, OSError) as error:  # OSError: a library of the vendor's driver
        raise InputError(f"--device {name} needs {package}, which cannot be imported ({error})") from None


def _current() -> str | None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None else None


def device_name(device: torch.device) -> str:
    """What the maker calls it, where PyTorch's module for the device says so."""
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name else device.type


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def configure_math(deterministic: bool) -> None:
    """Fast kernels, or reproducible ones."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.set_float32_matmul_precision("high")
