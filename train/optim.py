"""Optimiser, schedule and the average of the weights."""

import copy
import math
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

import models
from pipeline.errors import InputError
from train.config import TrainConfig
from train.device import DEVICE_TYPES

NORM_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def learning_rate(config: TrainConfig, global_batch: int) -> float:
    """--lr, or the model's own rate for 256 images scaled linearly to the global batch (Goyal et al.,
    "Accurate, large minibatch SGD", arXiv:1706.02677)."""
    if config.lr is not None:
        return config.lr
    return models.card(config.model).lr_per_256 * global_batch / 256


def rate_in_words(config: TrainConfig, global_batch: int) -> str:
    """The learning rate and where it comes from, for the log."""
    rate = learning_rate(config, global_batch)
    if config.lr is not None:
        return f"lr {rate:.4g} as given for the global batch of {global_batch}"
    published = models.card(config.model).lr_per_256
    return f"lr {rate:.4g}: {published:g} of {config.model} for 256 images x {global_batch}/256 (linear scaling)"


def build_optimizer(config: TrainConfig, model: nn.Module, global_batch: int) -> Optimizer:
    """SGD with momentum, or timm's LARS. Raises InputError where timm is missing."""
    groups, rate = parameter_groups(config, model), learning_rate(config, global_batch)
    if config.opt == "lars":
        return _lars()(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov)
    device = groups[0]["params"][0].device
    # A fused step looks at the scaler's verdict on the device; any other has the host wait for it.
    fused = DEVICE_TYPES[device.type].fused_optimizer
    return SGD(groups, lr=rate, momentum=config.momentum, nesterov=config.nesterov, fused=fused)


def _lars() -> Callable[..., Optimizer]:
    try:
        from timm.optim import Lars  # takes 2 s, which others need not wait for
    except ImportError:
        raise InputError("--opt lars needs timm, which is not installed: pip install timm") from None
    return Lars


def parameter_groups(config: TrainConfig, model: nn.Module) -> list[dict]:
    """The parameters of normalisation layers, other biases, and all others, each with its weight decay."""
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


def build_scheduler(config: TrainConfig, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
    """Linear warm-up, then --lr-scheduler; it steps with the optimiser.

    The rate is a function of the step alone, so a run that is resumed with more --epochs follows the longer
    cosine from there on.
    """
    # It looks at whether the optimiser has stepped; the scaler may have left that step out.
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup_epochs * steps_per_epoch), total // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.lr_scheduler == "step":
            return config.lr_gamma ** (step // (config.lr_step_size * steps_per_epoch))
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return LambdaLR(optimizer, factor)


def load_states(optimizer: Optimizer, scheduler: LambdaLR, optimizer_state: dict, scheduler_state: dict) -> None:
    """Take momentum and step from a checkpoint, while rates and decays stay those of this run, from the next step on.

    Raises KeyError or ValueError for a state of another model.
    """
    own = [
        {name: value for name, value in group.items() if name not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(optimizer_state)
    rates = scheduler.base_lrs
    scheduler.load_state_dict(scheduler_state)
    scheduler.base_lrs = rates
    for group, settings, rate, factor in zip(optimizer.param_groups, own, rates, scheduler.lr_lambdas, strict=True):
        group.update(settings, lr=rate * factor(scheduler.last_epoch))


def build_scaler(config: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """The loss scale of --amp fp16; without it, a scaler that does nothing."""
    fixed = config.fixed_loss_scale
    return torch.amp.GradScaler(device.type, init_scale=fixed or 2.0**16, enabled=config.amp == "fp16")


class Ema:
    """An exponential moving average of a classifier's weights and BatchNorm statistics.

    PyTorch's arithmetic without its AveragedModel, which copies a counter to the device, and waits for it, each time.
    """

    def __init__(self, model: models.Classifier, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._average = get_ema_multi_avg_fn(decay)
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]  # counts of batches

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the model's present weights. Nothing waits for the device."""
        averages, values = zip(*self._averaged, strict=True)
        self._average(averages, values, 0)
        for average, value in self._copied:
            average.copy_(value)


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    return [*(parameter.detach() for parameter in model.parameters()), *model.buffers()]
