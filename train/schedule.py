"""The learning rate of each step: warm-up, then a curve, steps, or what evaluations decide."""

import bisect
import math
import warnings
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from pipeline.errors import InputError
from train.config import TrainConfig


class Plateau:
    """--lr-scheduler plateau: a factor that falls where top-1 has not improved for --lr-patience evaluations.

    PyTorch's ReduceLROnPlateau with the arguments that timm's scheduler gives it. timm leaves its counts out of
    checkpoints; here they are in them.
    """

    def __init__(self, config: TrainConfig, rate: float) -> None:
        self._rate = rate
        self._holder = SGD([torch.zeros(1)], lr=rate)
        self._scheduler = ReduceLROnPlateau(
            self._holder, mode="max", factor=config.lr_gamma, patience=config.lr_patience, min_lr=config.min_lr
        )

    @property
    def factor(self) -> float:
        """Of the rate after the warm-up."""
        return float(self._holder.param_groups[0]["lr"]) / self._rate

    def evaluated(self, top1: float) -> None:
        """Count an evaluation."""
        self._scheduler.step(top1)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"factor": self.factor, "scheduler": self._scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, with the settings of this run."""
        own = {name: getattr(self._scheduler, name) for name in ("factor", "patience", "min_lrs")}
        self._scheduler.load_state_dict(_known(state["scheduler"], self._scheduler) | own)
        self._holder.param_groups[0]["lr"] = self._rate * state["factor"]


class Schedule:
    """The rate of each step; `step` is called after every optimiser step.

    The rate is a function of the step alone, so a run resumed with more --epochs continues on the longer curve; with
    --lr-scheduler plateau also of the evaluations before it. docs/train.md has the flags that give the rates of
    torchvision's references, of timm and of the model zoos.
    """

    def __init__(self, config: TrainConfig, optimizer: Optimizer, steps_per_epoch: int) -> None:
        rate = max(group["lr"] for group in optimizer.param_groups)  # --layer-decay lowers those of other groups
        if config.min_lr >= rate:
            raise InputError(
                f"--min-lr {config.min_lr:g}: must be below the learning rate, which is {rate:g}; choose another "
                "--min-lr or --lr, or a larger --batch-size"
            )
        self._config, self._floor = config, config.min_lr / rate
        self._steps, self._epoch = (steps_per_epoch, 1) if config.lr_updates == "epoch" else (1, steps_per_epoch)
        total = config.epochs * self._epoch  # in updates of the rate: `_steps` steps each, `_epoch` of them in an epoch
        self._warmup = min(round(config.warmup_epochs * self._epoch), total // 2)
        self.warmup_share = self._warmup / total
        """Of the run's steps."""
        self._start = self._warmup if config.lr_decay_from == "warmup" else 0
        self._end = total - config.cooldown_epochs * self._epoch
        self._plateau = Plateau(config, rate) if config.lr_scheduler == "plateau" else None
        self._optimizer, self._rates = optimizer, LambdaLR(optimizer, lambda step: self._factor(step))

    def step(self) -> None:
        """Go on to the next step's rate."""
        self._rates.step()

    def _factor(self, step: int) -> float:
        update = step // self._steps
        if update < self._warmup:
            return _warmup_factor(self._config.lr_warmup_decay, update, self._warmup)
        if self._plateau is not None:
            return self._plateau.factor
        return self._decayed(update - self._start)

    def _decayed(self, update: int) -> float:
        """Of an update, counted from where the decay begins."""
        config = self._config
        if config.lr_scheduler == "step":
            return float(config.lr_gamma ** (update // (config.lr_step_size * self._epoch)))
        if config.lr_scheduler == "multistep":
            milestones = [epoch * self._epoch for epoch in config.lr_milestones]
            # timm's scheduler is one update early, and its authors keep that.
            early = 1 if config.lr_decay_from == "start" else 0
            return float(config.lr_gamma ** bisect.bisect_right(milestones, update + early))
        done = min(1.0, update / max(1, self._end - self._start))
        line = 1 - done
        shape = float(line**config.lr_power) if config.lr_scheduler == "poly" else 0.5 * (1 + math.cos(math.pi * done))
        return float(self._floor + (1 - self._floor) * shape)

    def evaluated(self, epoch: int, top1: float) -> None:
        """Count an evaluation after so many epochs. As in timm, those of the warm-up do not count."""
        if self._plateau is None or epoch * self._epoch <= self._warmup:
            return
        self._plateau.evaluated(top1)
        self._apply()

    def _apply(self) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates.base_lrs, strict=True):
            group["lr"] = rate * self._factor(self._rates.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return self._rates.state_dict() | ({"plateau": self._plateau.state_dict()} if self._plateau else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the step of what `state_dict` returned, with the rates of this run."""
        rates, plateau = self._rates.base_lrs, state.get("plateau")
        self._rates.load_state_dict(_known(state, self._rates))
        self._rates.base_lrs = rates
        if self._plateau is not None and plateau is not None:
            self._plateau.load_state_dict(plateau)
        self._apply()


def build_scheduler(config: TrainConfig, optimizer: Optimizer, steps_per_epoch: int) -> Schedule:
    """Linear warm-up, then --lr-scheduler. Raises InputError for a --min-lr above the rate."""
    # PyTorch warns where the optimiser has not stepped; the scaler may have skipped that step.
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
    return Schedule(config, optimizer, steps_per_epoch)


def _known(state: dict[str, Any], scheduler: LRScheduler) -> dict[str, Any]:
    """What `scheduler` has of a state from a checkpoint, which PyTorch would let replace any attribute. Raises
    ValueError where a value is of another kind than its own, and KeyError where the step is missing."""
    own, known = scheduler.state_dict(), {"last_epoch": state["last_epoch"]}
    for name, value in own.items():
        if name in state:
            number = isinstance(value, int | float) and isinstance(state[name], int | float)
            if not number and type(state[name]) is not type(value):
                raise ValueError(f"{name} is {state[name]!r:.80}")
            known[name] = state[name]
    return known


def _warmup_factor(first: float | None, update: int, warmup: int) -> float:
    """The rate of an update, counted from 0, of `warmup` linear ones: from `first`, or one share above zero, to 1."""
    if first is None:
        return (update + 1) / (warmup + 1)
    return first + (1 - first) * update / warmup
