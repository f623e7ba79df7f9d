"""Optimiser, learning rate at its peak, parameter groups and loss scale."""

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import models
from train import timm_optimizers
from train.config import TrainConfig
from train.device import DEVICE_TYPES, fused_sgd, grad_scaler
from train.schedule import Schedule

NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def learning_rate(config: TrainConfig, global_batch: int) -> float:
    """--lr; else --lr-base scaled to the global batch, with it or with its square root; else the model's own rate for
    256 images, scaled linearly (Goyal et al., "Accurate, large minibatch SGD", arXiv:1706.02677)."""
    if config.lr is not None:
        return config.lr
    if config.lr_base is None:
        return models.card(config.model).lr_per_256 * global_batch / 256
    ratio = global_batch / config.lr_base_size
    return config.lr_base * (ratio if config.lr_base_scale == "linear" else math.sqrt(ratio))


def rate_in_words(config: TrainConfig, global_batch: int) -> str:
    """The learning rate and where it comes from, for the log."""
    rate = learning_rate(config, global_batch)
    if config.lr is not None:
        return f"lr {rate:.4g} as given for the global batch of {global_batch}"
    if config.lr_base is not None:
        ratio = f"{global_batch}/{config.lr_base_size}"
        scaling = f"x {ratio} (linear scaling)" if config.lr_base_scale == "linear" else f"x sqrt({ratio})"
        return f"lr {rate:.4g}: --lr-base {config.lr_base:g} for {config.lr_base_size} images {scaling}"
    published = models.card(config.model).lr_per_256
    return f"lr {rate:.4g}: {published:g} of {config.model} for 256 images x {global_batch}/256 (linear scaling)"


def build_optimizer(config: TrainConfig, model: nn.Module, global_batch: int) -> Optimizer:
    """SGD with momentum, of the device's vendor where there is one, else PyTorch's; or an optimiser of timm."""
    groups, rate = parameter_groups(config, model), learning_rate(config, global_batch)
    for group in groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    # A fused step reads on the device whether gradients overflowed; with any other, the host waits for that.
    device_type = groups[0]["params"][0].device.type
    fused = DEVICE_TYPES[device_type].fused_optimizer
    if config.opt == "sgd":
        if (of_vendor := fused_sgd(device_type)) is not None:
            return of_vendor(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov)
        return SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    options = config.optimizer_options
    if config.nesterov:
        options["nesterov"] = True
    if fused and config.opt in ("adam", "adamw"):
        options.setdefault("fused", True)
    return timm_optimizers.create(config.opt, groups, rate, config.momentum, options)


def parameter_groups(config: TrainConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Groups of parameters, each with its weight decay, and with --layer-decay its share of the rate, `lr_scale`."""
    if config.decay_groups == "layers":
        return _groups_by_layer(config, model)
    network = model.network if isinstance(model, models.Classifier) else model
    if config.decay_groups == "timm":
        return _groups_of_timm(config, network)
    named = list(network.named_parameters())
    return [
        {"params": [item for name, item in named if "bn" in name], "weight_decay": 0.0},
        {"params": [item for name, item in named if "bn" not in name], "weight_decay": config.weight_decay},
    ]


def _groups_by_layer(config: TrainConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Three groups: normalisation layers, other biases, all other parameters."""
    norms = [
        parameter for layer in model.modules() if isinstance(layer, NORM_LAYERS) for parameter in layer.parameters()
    ]
    in_norms = set(map(id, norms))
    others = [(name, item) for name, item in model.named_parameters() if id(item) not in in_norms]
    groups = [
        (norms, config.norm_weight_decay),
        ([item for name, item in others if name.endswith("bias")], config.bias_weight_decay),
        ([item for name, item in others if not name.endswith("bias")], None),
    ]
    return [
        {"params": parameters, "weight_decay": config.weight_decay if decay is None else decay}
        for parameters, decay in groups
        if parameters
    ]


def _groups_of_timm(config: TrainConfig, network: nn.Module) -> list[dict[str, Any]]:
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay  # here: importing timm takes 2 s

    excluded: Callable[[], Collection[str]] = getattr(network, "no_weight_decay", tuple)
    decay: dict[str, Any] = {"weight_decay": config.weight_decay, "no_weight_decay_list": excluded()}
    groups: list[dict[str, Any]]
    if config.layer_decay is None:
        groups = param_groups_weight_decay(network, **decay)
    else:
        groups = param_groups_layer_decay(network, layer_decay=config.layer_decay, **decay)
    return groups


def load_states(
    optimizer: Optimizer, scheduler: Schedule, optimizer_state: dict[str, Any], scheduler_state: dict[str, Any]
) -> None:
    """Load the optimiser's state and the step from a checkpoint; rates and decays are those of this run from the next
    step on.

    Raises KeyError or ValueError for a state of another model.
    """
    own = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(optimizer_state)
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim >= parameter.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} of {[*value.shape]}, where a parameter has {[*parameter.shape]}")
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)
    scheduler.load_state_dict(scheduler_state)


def build_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """The loss scale of --amp fp16; otherwise a scaler that does nothing."""
    fixed = config.fixed_loss_scale
    return grad_scaler(device.type, fixed or 2.0**16, config.amp == "fp16")


def clear_gradients(optimizer: Optimizer) -> None:
    """Before the next backward pass. NpuFusedSGD keeps all gradients in one tensor, and refuses to let them go."""
    optimizer.zero_grad(set_to_none=not getattr(optimizer, "is_fused_optimizer", False))
