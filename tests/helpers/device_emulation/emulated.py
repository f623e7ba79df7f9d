"""What the stand-ins for vendors' packages share: the module that PyTorch asks about a device.

EMULATION_LIBRARY names the library that `build.py` compiled. What a device's module must offer PyTorch, the private
`_is_in_bad_fork` included, and `torch._register_device_module` are from PyTorch's page on PrivateUse1, written for
PyTorch 2.14.1; tests/train/test_device_emulated.py fails where a release changes them.
"""

import os
from types import ModuleType
from typing import Any

import torch
from torch.utils.backend_registration import generate_methods_for_privateuse1_backend, rename_privateuse1_backend


class FusedSGD(torch.optim.SGD):
    """PyTorch's SGD with the constraints of a vendor's that keeps all gradients in one tensor."""

    is_fused_optimizer = True

    def __init__(self, params: Any, lr: float, momentum: float = 0, weight_decay: float = 0, nesterov: bool = False):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
        print(f"{type(self).__name__} made", flush=True)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Raises ValueError where gradients are to be dropped."""
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        super().zero_grad(set_to_none=False)


class Precision:
    """Of products: what torch_npu calls conv and matmul."""

    allow_hf32 = True


def register(name: str) -> Any:
    """Make PyTorch know the device `name`. Returns its module, torch.<name>."""
    os.environ["EMULATED_DEVICE"] = name
    torch.ops.load_library(os.environ["EMULATION_LIBRARY"])
    rename_privateuse1_backend(name)
    module: Any = ModuleType(name)
    module.is_available = lambda: True
    module.device_count = lambda: torch.ops.device_emulation.device_count()
    module.current_device = lambda: torch.accelerator.current_device_index()
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    # Its kernels are the CPU's, and so is their generator.
    module._is_in_bad_fork = lambda: False
    module.manual_seed = module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device: torch.get_rng_state()
    module.set_rng_state = lambda state, device: torch.set_rng_state(state)
    module.conv, module.matmul = Precision(), Precision()
    torch._register_device_module(name, module)
    generate_methods_for_privateuse1_backend()
    return module
