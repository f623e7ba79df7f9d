"""The input of a run, checked before any process is started."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

import models
from models import own
from pipeline import loaders
from pipeline._kernel_cache import choose_torch_folder
from pipeline.errors import InputError
from pipeline.jit import HAS_NUMBA
from pipeline.sizes import size_in_words
from pipeline.storage.manifest import SplitInfo
from pipeline.storage.remote.address import is_remote
from pipeline.storage.split import Split, open_split, split_names
from train import tracking
from train.augmentation.own import OwnAugmentation
from train.config import TrainConfig
from train.device import DEVICE_TYPES, compile_options, profiler, require
from train.failures import first_line
from train.predictions import check_path
from train.world import World, is_elastic

log = logging.getLogger(__name__)

IMAGENET_SAMPLES = {"train": 1_281_167, "val": 50_000}
IMAGENET_CLASSES = 1000


def open_data(config: TrainConfig, name: str) -> Split:
    """The split `name` of --data. The synthetic loader reads nothing: where --data does not exist, it stands for
    ImageNet."""
    if _stands_for_imagenet(config):
        info = SplitInfo(samples=IMAGENET_SAMPLES[name], bytes=0, image_mode="synthetic")
        return Split(name, Path(config.data), tuple(map(str, range(IMAGENET_CLASSES))), info)
    return open_split(config.data, name, config.remote)


def has_validation(config: TrainConfig) -> bool:
    """Whether --data has a validation split, intact or damaged."""
    return _stands_for_imagenet(config) or "val" in split_names(config.data, config.remote)


def _stands_for_imagenet(config: TrainConfig) -> bool:
    return config.loader == "synthetic" and not is_remote(config.data) and not Path(config.data).exists()


def choose_loader(config: TrainConfig, world: World, split: Split) -> str:
    """--loader, with "auto" decided and the reason logged, as that of --decoder."""
    name, reason = (config.loader, "") if config.loader != "auto" else loaders.choose(split)
    if world.is_main and reason:
        log.info("loader auto: %s (%s)", name, reason)
    if world.is_main and loaders.facts(name).reads and HAS_NUMBA:
        from pipeline.pixels import decoders  # here: on a machine's first start it compiles for 15 s

        log.info("decoder %s: %s", config.decoder, decoders.choose(config.decoder)[1])
    return name


def loading_processes(config: TrainConfig, local_size: int) -> int:
    """--workers, with its default decided."""
    return max(1, len(os.sched_getaffinity(0)) // local_size) if config.workers is None else config.workers


def check(config: TrainConfig) -> None:
    """Raises InputError for input that a run with these settings cannot use."""
    device_type = require(config.device, config.nproc)
    if config.profile_steps:
        profiler(device_type)  # raises where it is missing
    if config.compile:
        compile_options(device_type)
        if DEVICE_TYPES[device_type].compile_backend is None:
            _check_compiler(device_type)
        choose_torch_folder()
    split = open_data(config, "val" if config.evaluate else "train")
    if config.cache:
        _check_cache(config, split)
    _check_files(config)
    if config.predictions:
        check_path("--predictions", config.predictions)
    if config.evaluate:
        return
    check_resolutions(config)
    if config.progressive_batch and config.accumulate == 1 and not config.resume:  # another world may accumulate none
        raise InputError("--progressive-batch: joins batches of --accumulate, which is 1; give 2 or more")
    _check_single_images(config)
    if config.augment:
        sides = [config.resolution or models.card(config.model).resolution, *config.training_sides.values()]
        OwnAugmentation(config.augment, config.seed).check(min(sides))
    tracking.check(config.log)
    if (flag := _needs_evaluations(config)) and not has_validation(config):
        raise InputError(f"{flag}: needs evaluations, and {config.data} has no validation split")
    if config.resume:
        return  # a resumed run keeps its global batch
    global_batch = config.batch_size * config.nproc * config.nnodes * config.accumulate
    if global_batch > split.num_samples:
        raise batch_too_large(config, global_batch, split)


def _needs_evaluations(config: TrainConfig) -> str:
    if config.lr_scheduler == "plateau":
        return "--lr-scheduler plateau"
    return f"--patience {config.patience}" if config.patience is not None else ""


def _check_cache(config: TrainConfig, split: Split) -> None:
    """Raises InputError where --cache is for nothing, or too small: for all shards with --order global, otherwise for
    two of each loading process, one that it reads and one that is fetched meanwhile."""
    if split.url is None:
        raise InputError(f"--cache {config.cache}: {config.data} is local, and read where it is; leave it out")
    names = [split.name] if config.evaluate or not has_validation(config) else ["train", "val"]
    splits = [split if name == split.name else open_data(config, name) for name in names]
    if config.order == "global":
        needed, of_what = sum(shard.bytes for one in splits for shard in one.remote.infos), "all shards take"
    else:
        largest = max(shard.bytes for one in splits for shard in one.remote.infos)
        readers = config.nproc * max(1, loading_processes(config, config.nproc))
        needed, of_what = 2 * readers * largest, f"{readers} loading processes, with two shards for each, need"
    settings = config.remote.cache
    assert settings is not None
    if needed > settings.limit:
        raise InputError(
            f"--cache-size {config.cache_size}: {of_what} {size_in_words(needed)}; give more than that, or leave "
            f"--cache out to stream without one"
        )


def _check_compiler(device_type: str) -> None:
    named = [os.environ[name] for name in ("CXX", "CC") if os.environ.get(name)]
    compilers = named or DEVICE_TYPES[device_type].compilers
    if not any(map(shutil.which, compilers)):
        raise InputError(
            f"--compile: torch.compile needs a compiler, and {' or '.join(compilers)} is not on the PATH; install one "
            "(on Debian: apt-get install g++), or leave the flag out"
        )


def _check_files(config: TrainConfig) -> None:
    # After a restart, the checkpoint that the run began with may be gone.
    resumed = config.resume if config.resume != "auto" and not is_elastic() else None
    for checkpoint in (config.evaluate, resumed):
        if checkpoint and not Path(checkpoint).is_file():
            raise InputError(f"{checkpoint}: no such checkpoint")
    for flag in ("pretrained", "finetune", "teacher_weights"):
        if (path := getattr(config, flag)) and not path.is_file():
            raise InputError(f"--{flag.replace('_', '-')} {path}: no such file")


def check_resolutions(config: TrainConfig) -> None:
    """Raises InputError where the model does not take images of the sides that --resolution, --val-crop and
    --progressive-resize name: it is run on them, without memory for their values."""
    card = models.card(config.model)
    crop = config.val_crop or config.resolution or card.resolution
    if config.val_resize is not None and config.val_resize < crop:
        raise InputError(f"--val-resize {config.val_resize}: must be at least the crop's side of {crop} (--val-crop)")
    flags = dict.fromkeys(config.training_sides.values(), "--progressive-resize")
    sides = {"--val-crop": config.val_crop, "--resolution": config.resolution}
    flags |= {side: flag for flag, side in sides.items() if side is not None and side != card.resolution}
    if not flags and not models.is_own(config.model):
        return
    trial = _Trial(config)
    if models.is_own(config.model):
        _check_own_model(config, trial, config.resolution or card.resolution)
    for side, flag in flags.items():
        try:
            trial.outputs(2, side)
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = first_line(error)
            raise InputError(f"{flag} {side}: {config.model} does not take such images ({reason})") from None


class _Trial:
    """--model with ten classes, run on images without memory for their values."""

    def __init__(self, config: TrainConfig) -> None:
        self._card, self._options = models.card(config.model), config.model_options
        self._network = self._card.build_without_memory(10, **self._options)
        self._device, self._is_own = torch.device("meta"), models.is_own(config.model)

    def outputs(self, count: int, side: int) -> Any:
        """Of so many images of a side. Raises what the model raises. One of the user's own may compute with values: it
        is run with them where it cannot do without."""
        try:
            with self._device, torch.no_grad():
                return self._network(torch.zeros(count, 3, side, side))
        except RuntimeError:
            if not self._is_own or self._device.type == "cpu":
                raise
            self._device, self._network = torch.device("cpu"), self._card.build(10, **self._options)
            return self.outputs(count, side)


def _check_own_model(config: TrainConfig, trial: _Trial, side: int) -> None:
    """Raises InputError where the user's own model fails, or gives no logits of its classes."""
    source = f"--model {config.model}"
    try:
        outputs = trial.outputs(2, side)
    except Exception as error:
        raise InputError(f"{source}: fails on images of {side} pixels: {own.reason(error)}") from error
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, 10):
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(
            f"{source}: must give logits [images, classes]; asked for 10 classes, it gave {shape} for 2 images"
        )


def _check_single_images(config: TrainConfig) -> None:
    """Raises InputError where --batch-size is 1 and a BatchNorm of the model would get a single value of each channel,
    which has no variance."""
    if config.batch_size > 1 or config.sync_bn:
        return
    side = min([config.resolution or models.card(config.model).resolution, *config.training_sides.values()])
    try:
        _Trial(config).outputs(1, side)
    except ValueError as error:
        reason = f"{config.model} cannot be trained on single images ({first_line(error)})"
        raise InputError(f"--batch-size 1: {reason}; give 2 or more") from None


def batch_too_large(config: TrainConfig, global_batch: int, split: Split) -> InputError:
    """The error where an epoch has less than one whole global batch."""
    return InputError(
        f"--batch-size {config.batch_size}: the global batch of {global_batch} is larger than the "
        f"{split.num_samples} training images of {config.data}"
    )
