"""Stands where the vendor's package would: importing it makes PyTorch know the device `npu`, here an emulated one.

The library that `build.py` has made is named by NPU_EMULATION_LIBRARY.
"""

import os
import sys

import torch

torch.ops.load_library(os.environ["NPU_EMULATION_LIBRARY"])
torch.utils.rename_privateuse1_backend("npu")


def is_available() -> bool:
    return True


def device_count() -> int:
    return torch.ops.npu_emulation.device_count()


def current_device() -> int:
    return torch.accelerator.current_device_index()


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16]


# Its kernels are the CPU's, and so is their generator.


def _is_in_bad_fork() -> bool:
    return False


def manual_seed(seed: int) -> None:
    pass


def manual_seed_all(seed: int) -> None:
    pass


def get_rng_state(device: torch.device) -> torch.Tensor:
    return torch.get_rng_state()


def set_rng_state(state: torch.Tensor, device: torch.device) -> None:
    torch.set_rng_state(state)


torch._register_device_module("npu", sys.modules[__name__])
torch.utils.generate_methods_for_privateuse1_backend()
