"""In place of Huawei's package: after its import, PyTorch knows the device `npu`, here an emulated one."""

from tests.helpers.device_emulation import emulated

npu = emulated.register("npu")
npu.set_compile_mode = lambda jit_compile: print(f"jit_compile {jit_compile}", flush=True)
