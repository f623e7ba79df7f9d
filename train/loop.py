"""A run as one process sees it: training from its first epoch or a checkpoint, or an evaluation."""

import contextlib
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import torch

import models
from pipeline import loaders
from pipeline.dataset import Split
from pipeline.errors import InputError
from train import checkpoint, optim, resume
from train.config import TrainConfig
from train.device import configure_math, require, select
from train.meeting import Meeting, meet
from train.metrics import result_line
from train.run_directory import EarlyLines, RunDirectory
from train.session import Session, batch_too_large, has_validation, open_data
from train.stopping import Stopped, StopRequests
from train.trainer import Trainer, evaluation_bar
from train.world import World, finalize, is_elastic

log = logging.getLogger(__name__)


def check(config: TrainConfig) -> None:
    """Find wrong input before any process is started. Raises InputError."""
    require(config.device, config.nproc)
    split = open_data(config, "val" if config.evaluate else "train")
    # After a restart it need not be there any more.
    first = config.resume if config.resume != "auto" and not is_elastic() else None
    for path in (config.evaluate, first):
        if path and not Path(path).is_file():
            raise InputError(f"{path}: no such checkpoint")
    for flag in ("pretrained", "finetune"):
        if (path := getattr(config, flag)) and not path.is_file():
            raise InputError(f"--{flag} {path}: no such file")
    if config.evaluate:
        return
    check_resolutions(config)
    if config.resume:
        return  # a run that is resumed keeps its global batch
    global_batch = config.batch_size * config.nproc * config.nnodes * config.accumulate
    if global_batch > split.num_samples:
        raise batch_too_large(config, global_batch, split)


def check_resolutions(config: TrainConfig) -> None:
    """Whether the model takes images of these sides: it is run on them without memory for their values."""
    card = models.card(config.model)
    flags = dict.fromkeys(config.training_sides.values(), "--progressive-resize")
    if config.resolution not in (None, card.resolution):
        flags[config.resolution] = "--resolution"
    if not flags:
        return
    with torch.device("meta"), torch.no_grad():
        network = card.build(10, **config.model_options)
        for side, flag in flags.items():
            try:
                network(torch.empty(2, 3, side, side))
            except (RuntimeError, ValueError, AssertionError) as error:
                reason = str(error).partition("\n")[0]
                raise InputError(f"{flag} {side}: {config.model} does not take such images ({reason})") from None


def run(config: TrainConfig, world: World) -> dict[str, Any] | None:
    """Train or evaluate as one process of `world`. Returns the result on the main rank."""
    with EarlyLines():
        check(config)
        device = select(config.device, world.local_rank, world.local_size)
        if config.sync_bn and device.type == "cpu":
            raise InputError("--sync-bn: PyTorch has it for accelerators only; leave it out with --device cpu")
        configure_math(config.deterministic)
        meeting = meet(world, config.rdzv_timeout)
        try:
            result = (evaluate if config.evaluate else train)(config, meeting, device)
        except Stopped:
            finalize(world)
            raise
        finalize(world)  # not after an error: the other ranks would fail on the closed connection, and first
        return result if world.is_main else None


def train(config: TrainConfig, meeting: Meeting, device: torch.device) -> dict[str, Any]:
    """A whole run, from its first epoch or from a checkpoint. Returns the result. Raises Stopped."""
    world = meeting.world
    with StopRequests(world) as stop, contextlib.ExitStack() as opened:
        with meeting.joining(device):
            split = open_data(config, "train")
            loader_name = choose_loader(config, world, split)
            if resumed := resume.find(config, meeting):
                config = resume.adapted(config, resumed, world)
            session = opened.enter_context(Session(config, world, device))
            session.open_training(loader_name, split)
            if config.performance is None:
                open_validation(session, loader_name)
        stop.listen()
        session.build_training()
        if resumed:
            session.load_state(checkpoint.load(resumed.path), resumed.path)
        with RunDirectory(config, meeting, loader_name, resumed, session.position) as directory:
            announce(session, loader_name, directory.path, resumed)
            trainer = Trainer(session, directory, stop, loader_name)
            if resumed and not checkpoint.path_for(directory.path, session.position.step).exists():
                trainer.save()  # of another run: this one can be gone on with from its first moment
            trainer.evaluate()  # where the run was killed in it
            while not trainer.is_done:
                trainer.train_epoch()
                trainer.save()
                trainer.evaluate()
            return trainer.finish()


def announce(session: Session, loader_name: str, run_dir: Path, resumed: resume.Resumed | None) -> None:
    """Say what is trained, how and where."""
    config, position, split = session.config, session.position, session.training_split
    if not session.world.is_main:
        return
    log.info(
        f"{config.model} on {session.world.size} x {session.device.type}, loader {loader_name}: "
        f"{split.num_samples} images of {len(split.classes)} classes, "
        f"global batch {session.global_batch} ({session.world.size} x {config.batch_size} x {config.accumulate} "
        f"accumulated), {session.steps_per_epoch} steps an epoch, amp {config.amp}; run directory {run_dir}"
    )
    log.info(optim.rate_in_words(config, session.global_batch))
    if resumed:
        log.info("resumed from %s: epoch %d, batch %d", resumed.path, position.epoch, position.batch)


def evaluate(config: TrainConfig, meeting: Meeting, device: torch.device) -> dict[str, Any]:
    """The --evaluate command. Returns the result; images/s counts the evaluation from first to last image."""
    world, started, path = meeting.world, time.perf_counter(), config.evaluate
    assert path is not None
    with contextlib.ExitStack() as opened:
        with meeting.joining(device):
            state = checkpoint.load_weights_file(path)
            config = as_trained(config, state["config"], path) if "config" in state else config
            check_resolutions(config)
            split = open_data(config, "val")
            loader_name = choose_loader(config, world, split)
            session = opened.enter_context(Session(config, world, device))
            open_validation(session, loader_name)
        session.build_model(len(split.classes))
        session.load_for_evaluation(state, path)
        evaluation_started = time.perf_counter()
        evaluation = session.evaluate(lambda batches: evaluation_bar(batches, session))
    images_per_s = evaluation["images"] / (time.perf_counter() - evaluation_started)
    return result_line(
        evaluation, images_per_s, time.perf_counter() - started, loader_name, checkpoint.run_dir_of(path) or path.parent
    )


def as_trained(config: TrainConfig, stored: dict[str, Any], path: Path) -> TrainConfig:
    """What no flag says about the model is as it was in the training run. Raises InputError for another model."""
    if stored.get("model") != config.model:
        raise InputError(f"{path}: a checkpoint of {stored.get('model')}, not of --model {config.model}")
    return dataclasses.replace(
        config,
        resolution=config.resolution or stored.get("resolution"),
        num_classes=config.num_classes or stored.get("num_classes"),
        model_kwargs=config.model_kwargs or tuple(stored.get("model_kwargs", ())),
    )


def choose_loader(config: TrainConfig, world: World, split: Split) -> str:
    """--loader, with "auto" decided and the reason logged."""
    if config.loader != "auto":
        return config.loader
    name, why = loaders.choose(split)
    if world.is_main:
        log.info("loader auto: %s (%s)", name, why)
    return name


def open_validation(session: Session, loader_name: str) -> None:
    """The validation loader. Data without a validation split can be trained on, not evaluated."""
    if not session.config.evaluate and not has_validation(session.config):
        if session.world.is_main:
            log.info("%s has no validation split: nothing is evaluated", session.config.data)
        return
    session.open_validation(loader_name, open_data(session.config, "val"))
