"""In place of the vendor's optimisers."""

from tests.helpers.device_emulation import emulated


class NpuFusedSGD(emulated.FusedSGD):
    """As torch_npu.optim.NpuFusedSGD."""
