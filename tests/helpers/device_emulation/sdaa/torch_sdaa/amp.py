"""In place of the vendor's gradient scaler."""

import torch


class GradScaler(torch.amp.GradScaler):
    """As torch_sdaa.amp.GradScaler: without the device as an argument."""

    def __init__(self, init_scale: float = 2.0**16, enabled: bool = True) -> None:
        super().__init__("sdaa", init_scale=init_scale, enabled=enabled)
        print("GradScaler of the vendor", flush=True)
