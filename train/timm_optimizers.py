"""timm's optimisers: by name, with their options. timm is imported only where one is asked for: that takes 2 s."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.errors import did_you_mean

PYTORCH = ("sgd",)
"""Names of --opt that are not looked up in timm. timm's `sgd` is PyTorch's with Nesterov momentum."""


def check(name: str, options: dict[str, Any]) -> None:
    """Raises ValueError where timm has no such optimiser, where it does not take these options, or where a run could
    not be resumed exactly."""
    if name in PYTORCH:
        return
    from timm.optim import get_optimizer_info, list_optimizers

    known = list_optimizers()
    if name not in known:
        hint = did_you_mean(name, [*PYTORCH, *known])
        command = "python -c 'import timm.optim; print(timm.optim.list_optimizers())'"
        raise ValueError(f"--opt {name}: unknown to timm{hint} (`{command}`)")
    if get_optimizer_info(name).second_order:
        raise ValueError(f"--opt {name}: needs second derivatives, which a training step does not compute")
    if name.startswith("kron"):
        raise ValueError(
            f"--opt {name}: draws random numbers that its state leaves out: no run could be resumed exactly"
        )
    try:
        create(name, [{"params": [nn.Parameter(torch.zeros(2, 2))], "weight_decay": 0.0}], 0.1, 0.9, options)
    except Exception as error:  # timm raises whatever the options lead to, or a missing package
        given = "".join(f" {key}={value}" for key, value in options.items())
        raise ValueError(f"--opt {name}{given}: {' '.join(str(error).split())}") from None


def create(name: str, groups: list[dict[str, Any]], rate: float, momentum: float, options: dict[str, Any]) -> Optimizer:
    """The optimiser over groups of parameters, each with its weight decay."""
    from timm.optim import create_optimizer_v2

    optimizer: Optimizer = create_optimizer_v2(groups, opt=name, lr=rate, momentum=momentum, **options)
    return optimizer
