"""The training loop: epochs, log lines, evaluation, checkpoints, and what a run leaves behind."""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline import loaders
from pipeline.contract import Batch
from pipeline.dataset import Split
from pipeline.errors import InputError
from pipeline.formats.files import complete_or_absent
from train import checkpoint, optim
from train.config import TrainConfig
from train.device import configure_math, require, select, synchronize
from train.launch import World, finalize, initialize
from train.metrics import THROUGHPUT_DEFINITION, RunWriter, Throughput, Totals, plot_curves
from train.session import Session, batch_too_large, has_validation, open_data

log = logging.getLogger(__name__)

Value = TypeVar("Value")


def check(config: TrainConfig) -> None:
    """Find wrong input before any process is started. Raises InputError."""
    require(config.device, config.nproc)
    split = open_data(config, "val" if config.evaluate else "train")
    for path in (config.evaluate, config.resume if config.resume != "auto" else None):
        if path and not Path(path).is_file():
            raise InputError(f"{path}: no such checkpoint")
    if config.pretrained and not config.pretrained.is_file():
        raise InputError(f"--pretrained {config.pretrained}: no such file")
    global_batch = config.batch_size * config.nproc * config.nnodes
    if not config.evaluate and global_batch > split.num_samples:
        raise batch_too_large(config, global_batch, split)


def run(config: TrainConfig, world: World) -> dict[str, Any] | None:
    """Train or evaluate as one process of `world`. Returns the result on the main rank."""
    check(config)
    device = select(config.device, world.local_rank, world.local_size)
    configure_math(config.deterministic)
    initialize(world, device, config.rdzv_timeout)
    with Session(config, world, device) as session:
        result = evaluate_checkpoint(session, config.evaluate) if config.evaluate else train(session)
    finalize(world)  # not after an exception: the other ranks would fail on the closed connection, and first
    return result if world.is_main else None


def train(session: Session) -> dict[str, Any]:
    """A whole run, from its first epoch or from a checkpoint. Returns the result."""
    split = open_data(session.config, "train")
    loader_name = choose_loader(session, split)
    session.build_training(loader_name, split)
    open_validation(session, loader_name)
    with Run(session, loader_name) as this_run:
        this_run.announce(split)
        while session.position.epoch < session.config.epochs:
            this_run.train_epoch()
            this_run.evaluate()
            this_run.save()
        if not this_run.evaluation:  # resumed when all was done but the result
            this_run.evaluate()
        return this_run.finish()


def evaluate_checkpoint(session: Session, path: Path) -> dict[str, Any]:
    """The --evaluate command. Returns the result; images/s counts the evaluation from first to last image."""
    started = time.perf_counter()
    state = checkpoint.load(path)
    session.config = as_trained(session.config, state["config"])
    session.resolution = session.config.resolution or session.resolution
    split = open_data(session.config, "val")
    loader_name = choose_loader(session, split)
    session.build_model(len(split.classes))
    checkpoint.load_weights(session.plain_model.network, state, session.config.model, path)
    open_validation(session, loader_name)
    evaluation_started = time.perf_counter()
    evaluation = session.evaluate()
    images_per_s = evaluation["images"] / (time.perf_counter() - evaluation_started)
    run_dir = path.parent.parent if path.parent.name == checkpoint.FOLDER else path.parent
    return result_line(evaluation, images_per_s, time.perf_counter() - started, loader_name, run_dir)


def as_trained(config: TrainConfig, stored: dict[str, Any]) -> TrainConfig:
    """What no flag says about the model is as it was in the training run."""
    if stored.get("model") != config.model:
        return config  # refused when the weights are loaded
    return dataclasses.replace(
        config,
        resolution=config.resolution or stored.get("resolution"),
        num_classes=config.num_classes or stored.get("num_classes"),
        model_kwargs=config.model_kwargs or tuple(stored.get("model_kwargs", ())),
    )


def choose_loader(session: Session, split: Split) -> str:
    """--loader, with "auto" decided and the reason logged."""
    if session.config.loader != "auto":
        return session.config.loader
    name, why = loaders.choose(split)
    if session.world.is_main:
        log.info("loader auto: %s (%s)", name, why)
    return name


def open_validation(session: Session, loader_name: str) -> None:
    """The validation loader. Data without a validation split can be trained on, not evaluated."""
    if not session.config.evaluate and not has_validation(session.config):
        if session.world.is_main:
            log.info("%s has no validation split: nothing is evaluated", session.config.data)
        return
    split = open_data(session.config, "val")
    session.validation = session.open_loader(loader_name, split, training=False)
    session.validation_samples = split.num_samples


def same_on_all(value: Value, world: World) -> Value:
    """Rank 0's value on every rank. A collective call."""
    values = [value]
    if world.size > 1:
        dist.broadcast_object_list(values, 0)
    return values[0]


def result_line(
    evaluation: dict[str, float], images_per_s: float, seconds: float, loader_name: str, run_dir: Path
) -> dict[str, Any]:
    """What the last line of a run says."""
    return {
        "top1": evaluation.get("top1"),
        "top5": evaluation.get("top5"),
        "evaluated": evaluation.get("images", 0),
        "loss": evaluation.get("loss"),
        "images_per_s": round(images_per_s, 1),
        "seconds": round(seconds, 1),
        "loader": loader_name,
        "run_dir": str(run_dir),
    }


class Run:
    """A session in training and its run directory."""

    def __init__(self, session: Session, loader_name: str) -> None:
        self.session, self.config, self.loader_name = session, session.config, loader_name
        self.is_main = session.world.is_main
        self.started = time.perf_counter()
        self.throughput = Throughput()
        self.evaluation: dict[str, float] = {}
        self.writer: RunWriter | None = None
        self.indices_file: TextIO | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Run":
        """Go on from --resume if there is a checkpoint; then, nothing being wrong, make the run directory."""
        self.directory = self._choose_directory()
        path = self._checkpoint_to_resume()
        if path is not None:
            self._load(path)
        try:
            self._open_files()
        except OSError as error:
            raise InputError(f"--run-dir {self.directory}: cannot be written ({error.strerror})") from None
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def _choose_directory(self) -> Path:
        """--run-dir, or a new directory named after the run; the same on every rank."""
        config, world = self.config, self.session.world
        name = f"{config.model.rpartition('/')[2]}-{self.loader_name}-{time.strftime('%Y%m%d-%H%M%S')}"
        directory = same_on_all(config.run_dir or Path("runs") / name, world)
        if not config.resume and same_on_all(bool(checkpoint.existing(directory)), world):
            raise InputError(f"--run-dir {directory}: holds a run; add --resume auto or choose another")
        return directory

    def _open_files(self) -> None:
        config, rank = self.config, self.session.world.rank
        self.directory.mkdir(parents=True, exist_ok=True)
        if config.log_indices:
            path = self.directory / f"indices-rank{rank}.jsonl"
            self.indices_file = self._open.enter_context(path.open("a" if config.resume else "w"))
        if self.is_main:
            with complete_or_absent(self.directory / "config.json") as file:
                json.dump(config.as_dict(), file, indent=1)
            self.writer = RunWriter(self.directory, self.session.position.step)
            self._open.callback(self.writer.close)

    def _checkpoint_to_resume(self) -> Path | None:
        """What --resume means, the same on every rank."""
        if self.config.resume != "auto":
            return Path(self.config.resume) if self.config.resume else None
        newest = next(reversed(checkpoint.existing(self.directory)), None)
        return same_on_all(newest, self.session.world)

    def _load(self, path: Path) -> None:
        state = checkpoint.load(path)
        if (stored := tuple(state["config"].get("model_kwargs", ()))) != self.config.model_kwargs:
            raise InputError(f"--resume {path}: was trained with --model-kwargs {' '.join(stored) or '(none)'}")
        checkpoint.load_weights(self.session.plain_model.network, state, self.config.model, path)
        try:
            self.session.load_state(state)
        except InputError as error:
            raise InputError(f"--resume {path}: {error}") from None
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"--resume {path}: holds no training state to go on from ({error})") from None
        position = self.session.position
        newer = [other for other in checkpoint.existing(self.directory) if other.name > path.name]
        if newer and path.parent.resolve() == newer[0].parent.resolve():
            raise InputError(f"--resume {path}: {newer[-1]} is newer; use --resume auto or another --run-dir")
        if self.is_main:
            log.info("resumed from %s: epoch %d, batch %d", path, position.epoch, position.batch)

    def announce(self, split: Split) -> None:
        """Say what is trained, how and where."""
        config, session = self.config, self.session
        if self.is_main:
            log.info(
                f"{config.model} on {session.world.size} x {session.device.type}, loader {self.loader_name}: "
                f"{split.num_samples} images of {len(split.classes)} classes, "
                f"global batch {session.global_batch} ({session.world.size} x {config.batch_size}), "
                f"{session.training.batches_per_epoch} steps an epoch, "
                f"lr {optim.learning_rate(config, session.global_batch):.4g}, amp {config.amp}; "
                f"run directory {self.directory}"
            )

    def train_epoch(self) -> None:
        """The rest of the current epoch."""
        session, position = self.session, self.session.position
        session.model.train()
        totals = Totals(session.device)
        self.throughput.resume()
        batches = session.training.epoch(position.epoch, session.resolution, position.batch)
        for batch in self._progress(self.throughput.waiting(batches)):
            logits = session.train_step(batch)
            totals.add(logits, batch.labels)
            self._log_indices(batch.indices)
            position.step, position.batch = position.step + 1, position.batch + 1
            if self.throughput.count(len(batch.labels)):
                synchronize(session.device)
                self.throughput.restart()
            last = position.batch == session.training.batches_per_epoch
            if position.step % self.config.print_freq == 0 or last:
                self._log_training(totals)
                totals = Totals(session.device)
            if self.config.checkpoint_every and position.step % self.config.checkpoint_every == 0:
                self._paused(self.save)
        synchronize(session.device)
        self.throughput.pause()
        position.epoch, position.batch = position.epoch + 1, 0

    def _paused(self, action: Callable[[], None]) -> None:
        """Do something that images/s does not count."""
        synchronize(self.session.device)
        self.throughput.pause()
        action()
        self.throughput.resume()

    def _progress(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """A bar on a terminal, nothing elsewhere: the log lines remain."""
        position = self.session.position
        with logging_redirect_tqdm():
            yield from tqdm(
                batches,
                desc=f"epoch {position.epoch + 1}/{self.config.epochs}",
                total=self.session.training.batches_per_epoch,
                initial=position.batch,
                unit="batch",
                leave=False,
                disable=None if self.is_main else True,
            )

    def _log_indices(self, indices: Tensor) -> None:
        if self.indices_file is not None:
            position = self.session.position
            row = {"epoch": position.epoch, "batch": position.batch, "indices": indices.tolist()}
            self.indices_file.write(json.dumps(row) + "\n")

    def _log_training(self, totals: Totals) -> None:
        values = totals.result()
        if self.writer is None:
            return
        position, world = self.session.position, self.session.world
        values |= {
            "epoch": position.epoch + position.batch / self.session.training.batches_per_epoch,
            "lr": self.session.optimizer.param_groups[0]["lr"],
            "images_per_s": self.throughput.images_per_s * world.size,
            "data_wait": self.throughput.data_wait,
        }
        self.writer.write("train", position.step, **values)
        log.info(
            f"epoch {values['epoch']:.2f} step {position.step} loss {values['loss']:.3f} "
            f"top1 {values['top1']:.1f} top5 {values['top5']:.1f} lr {values['lr']:.4g} "
            f"images/s {values['images_per_s']:.0f} ({self.throughput.images_per_s:.0f} a process) "
            f"data wait {values['data_wait']:.0%}"
        )

    def evaluate(self) -> None:
        """Evaluate, if there are validation images, and log the result."""
        if self.session.validation is None:
            return
        self.evaluation = result = self.session.evaluate()
        if self.writer is not None:
            position = self.session.position
            self.writer.write("eval", position.step, epoch=position.epoch, **result)
            log.info(
                f"epoch {position.epoch} evaluated {result['images']} images: loss {result['loss']:.3f} "
                f"top1 {result['top1']:.2f} top5 {result['top5']:.2f}"
            )

    def save(self) -> None:
        """Write a checkpoint. A collective call."""
        state = self.session.state()
        if self.is_main:
            checkpoint.save(self.directory, self.session.position.step, state, self.config.keep_checkpoints)

    def finish(self) -> dict[str, Any]:
        """Write the curves and the result."""
        images_per_s = self.throughput.images_per_s * self.session.world.size
        seconds = time.perf_counter() - self.started
        result = result_line(self.evaluation, images_per_s, seconds, self.loader_name, self.directory)
        if self.is_main:
            plot_curves([self.directory], self.directory / "curves.png")
            log.info("images/s: %s", THROUGHPUT_DEFINITION)
            with complete_or_absent(self.directory / "result.json") as file:
                json.dump(result, file, indent=1)
        return result
