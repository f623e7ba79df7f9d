"""A run as one process sees it: training from its first epoch or from a checkpoint, or an evaluation."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipeline.contract import Batch
from pipeline.errors import InputError
from train import checkpoint, optim, resume
from train.config import TrainConfig
from train.device import compile_options, configure_math, select
from train.evaluation import evaluate
from train.finished import as_trained, weights_in
from train.inputs import check, check_resolutions, choose_loader, has_validation, open_data
from train.logs import EvaluationReport, RunLog, open_log
from train.loop import Trainer
from train.meeting import Meeting, meet
from train.metrics import result_line
from train.network import build_evaluated, build_model, class_count
from train.process import Process, SplitLoader
from train.progress import evaluation_progress
from train.report import Report
from train.resume import Resumed
from train.run_directory import EarlyLines, RunDirectory
from train.session import Session
from train.stopping import DataWaitError, Stopped, StopRequests
from train.world import World, finalize

log = logging.getLogger(__name__)

MUCH_WARMUP = 0.2
"""The share of a run from which on its warm-up is mentioned."""


def run(config: TrainConfig, world: World) -> dict[str, Any] | None:
    """Train or evaluate as one process of `world`. Returns the result on the main rank."""
    with EarlyLines():
        check(config)
        device = select(config.device, world.local_rank, world.local_size)
        if config.sync_bn and device.type == "cpu":
            raise InputError("--sync-bn: PyTorch has it for accelerators only; leave it out with --device cpu")
        configure_math(config.deterministic, config.float32, device.type)
        meeting = meet(world, config.rdzv_timeout)
        try:
            with meeting.announcing_failures():
                result = (evaluate_file if config.evaluate else train)(config, meeting, device)
        except Stopped as stopped:
            if stopped.together:
                finalize(world)
            raise
        finalize(world)  # not after an error: the other ranks would fail on the closed connection, first
        return result if world.is_main else None


def train(config: TrainConfig, meeting: Meeting, device: torch.device) -> dict[str, Any]:
    """A whole run, from its first epoch or from a checkpoint. Returns the result. Raises Stopped."""
    with StopRequests(meeting.world) as stop, contextlib.ExitStack() as opened:
        with meeting.joining(device):
            split = open_data(config, "train")
            loader_name = choose_loader(config, meeting.world, split)
            if resumed := resume.find(config, meeting):
                config = resume.adapted(config, resumed, meeting.world)
            process = Process(config, meeting.world, device)
            training = opened.enter_context(process.open_loader(loader_name, split, training=True))
            validation = opened.enter_context(_open_validation(process, loader_name))
        stop.listen()
        session = Session(process, build_model(process, split.classes), training, validation)
        if resumed:
            session.load_state(checkpoint.load(resumed.path), resumed.path)
        with RunDirectory(config, meeting, loader_name, resumed, session.position) as directory:
            _announce(session, loader_name, directory.path, resumed)
            run_log = opened.enter_context(_open_log(config, meeting.world, device, resumed=resumed is not None))
            trainer = Trainer(session, directory, stop, loader_name, run_log)
            if resumed and not checkpoint.path_for(directory.path, session.position.step).exists():
                trainer.save()  # the checkpoint is another run's: this one can be resumed from its first moment
            trainer.evaluate()  # where the run was killed during an evaluation
            try:
                while not trainer.is_done:
                    trainer.train_epoch()
                    trainer.save()
                    trainer.evaluate()
            except DataWaitError:
                trainer.stop_without_data()
            return trainer.finish()


@contextlib.contextmanager
def _open_validation(process: Process, loader_name: str) -> Iterator[SplitLoader | None]:
    """The validation images of a training run. Data without any can be trained on, but nothing is evaluated."""
    config = process.config
    if config.performance is not None:
        yield None
    elif not has_validation(config):
        if process.world.is_main:
            log.info("%s has no validation split: nothing is evaluated", config.data)
        yield None
    else:
        with process.open_loader(loader_name, open_data(config, "val"), training=False) as validation:
            yield validation


@contextlib.contextmanager
def _open_log(
    config: TrainConfig, world: World, device: torch.device, *, resumed: bool = False
) -> Iterator[RunLog | None]:
    """The log of --log-format, on the main rank."""
    if not world.is_main:
        yield None
        return
    with contextlib.closing(open_log(config, world, device.type, resumed=resumed)) as run_log:
        yield run_log


def _announce(session: Session, loader_name: str, run_dir: Path, resumed: Resumed | None) -> None:
    """Log what is trained, how and where."""
    config, world, position, split = session.config, session.world, session.position, session.training.split
    if not world.is_main:
        return
    global_batch = session.process.global_batch
    log.info(f"{config.model} on {world.size} x {session.device.type}, loader {loader_name}, amp {config.amp}")
    log.info(f"{split.num_samples} images of {len(split.classes)} classes, {session.steps_per_epoch} steps an epoch")
    log.info(f"global batch {global_batch} ({world.size} x {config.batch_size} x {config.accumulate} accumulated)")
    log.info(f"run directory {run_dir}")
    for remark in split.remarks:
        log.info(remark)
    log.info(optim.rate_in_words(config, global_batch))
    share = session.train_step.scheduler.warmup_share
    if share > MUCH_WARMUP and config.performance is None:
        log.info(f"warm-up: {share:.0%} of the run's {config.epochs} epochs (--warmup-epochs)")
    if resumed:
        log.info("resumed from %s: epoch %d, batch %d", resumed.path, position.epoch, position.batch)


def evaluate_file(config: TrainConfig, meeting: Meeting, device: torch.device) -> dict[str, Any]:
    """The --evaluate command. Returns the result; images/s counts the evaluation from the first to the last image."""
    started, path = time.perf_counter(), config.evaluate
    assert path is not None
    with contextlib.ExitStack() as opened:
        with meeting.joining(device):
            content = checkpoint.read(path)
            if checkpoint.is_checkpoint(content):
                config = as_trained(config, content["config"], path)
            check_resolutions(config)
            split = open_data(config, "val")
            loader_name = choose_loader(config, meeting.world, split)
            process = Process(config, meeting.world, device)
            report = Report(process, split)
            validation = opened.enter_context(process.open_loader(loader_name, split, training=False))
        if meeting.world.is_main:
            for remark in split.remarks:
                log.info(remark)
        classifier = build_evaluated(process, split.classes, content, f"--evaluate {path}")
        if config.compile:
            classifier.compile(**compile_options(device.type))
        total, shown = validation.loader.batches_per_epoch, meeting.world.is_main

        def with_bar(batches: Iterator[Batch]) -> Iterator[Batch]:
            return evaluation_progress(batches, total, shown=shown)

        evaluation_started = time.perf_counter()
        evaluation = evaluate(process, classifier, validation, with_bar, report.collector)
        evaluation_s = time.perf_counter() - evaluation_started
        if run_log := opened.enter_context(_open_log(config, meeting.world, device)):
            run_log.evaluated(EvaluationReport(result=evaluation, batches=total, seconds=evaluation_s))
            run_log.finished(None)
    images_per_s = evaluation["images"] / evaluation_s
    written = report.write(class_count(process, split.classes))
    run_dir = checkpoint.run_dir_of(path) or path.parent
    seconds = time.perf_counter() - started
    return result_line(evaluation, images_per_s, seconds, loader_name, run_dir, weights_in(content)) | written
