"""In place of the vendor's optimisers."""

import torch


class FusedSGD(torch.optim.SGD):
    """As torch_sdaa.optim.FusedSGD."""
