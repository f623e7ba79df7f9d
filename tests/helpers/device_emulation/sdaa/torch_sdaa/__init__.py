"""In place of Tecorigin's package: after its import, PyTorch knows the device `sdaa`, here an emulated one."""

from tests.helpers.device_emulation import emulated

sdaa = emulated.register("sdaa")
