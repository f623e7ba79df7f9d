"""The work of a training run: epochs, log lines, evaluations, checkpoints, the result."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline.cli import number
from pipeline.contract import Batch
from train import checkpoint
from train.device import synchronize
from train.metrics import THROUGHPUT_DEFINITION, Throughput, Totals, limited_by, result_line
from train.run_directory import RunDirectory
from train.session import Session
from train.stopping import Stopped, StopRequests
from train.world import same_on_all

log = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the message names the images."""


class Trainer:
    """A session in training, its run directory, and the requests to stop."""

    def __init__(self, session: Session, directory: RunDirectory, stop: StopRequests, loader_name: str) -> None:
        self.session, self.config, self.world = session, session.config, session.world
        self.directory, self.stop, self.loader_name = directory, stop, loader_name
        self.throughput = Throughput()
        self.evaluation: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._saved_at = time.monotonic()
        self._start_interval()

    @property
    def is_done(self) -> bool:
        """Whether all steps of the run are done."""
        position = self.session.position
        if self.config.performance is not None:
            return position.step >= self.config.performance
        return position.epoch >= self.config.epochs

    # Training

    def train_epoch(self) -> None:
        """The rest of the current epoch."""
        session, position = self.session, self.session.position
        session.model.train()
        self.throughput.resume()
        with closing(self._training_bar(self.throughput.waiting(session.training_batches()))) as batches:
            for batch in batches:
                steps = position.step
                self.directory.write_indices(position.epoch, position.batch, batch.indices)
                self.directory.trace.before(steps)
                logits, loss = session.train_step(batch)
                self._totals.add(logits, batch.labels, loss)
                self._losses.append(loss)
                if position.step > steps:
                    self._after_step()
                if self.is_done:
                    break
        synchronize(session.device)
        self.throughput.pause()

    def _start_interval(self) -> None:
        """What the next log line will be about: sums and losses since the last, on the device."""
        position = self.session.position
        self._totals, self._losses = Totals(self.session.device), list[Tensor]()
        self._interval_start = position.epoch, position.batch * self.config.accumulate

    def _after_step(self) -> None:
        position = self.session.position
        if self.throughput.count(self.config.batch_size * self.config.accumulate):
            synchronize(self.session.device)
            self.throughput.restart()
        epoch_ends = position.batch == 0
        if position.step % self.config.print_freq == 0 or epoch_ends or self.is_done:
            self._log_training()
            self._start_interval()
        if number := self.stop.check():
            self._leave(number)
        if not epoch_ends and self._is_checkpoint_due():
            self._paused(self.save)

    def _log_training(self) -> None:
        values = self._totals.result()
        if not math.isfinite(values["loss"]):
            self._handle_non_finite_loss()
        writer, position = self.directory.writer, self.session.position
        data_wait = max(self._gathered(self.throughput.interval_wait()))  # the others wait for that rank's gradients
        if writer is None:
            return
        values |= {
            "epoch": position.step / self.session.steps_per_epoch,
            "lr": self.session.optimizer.param_groups[0]["lr"],
            "images_per_s": self.throughput.images_per_s * self.world.size,
            "data_wait": data_wait,
        }
        writer.write("train", position.step, **values)
        log.info(
            f"epoch {values['epoch']:.2f} step {position.step} loss {values['loss']:.3f} "
            f"top1 {values['top1']:.1f} top5 {values['top5']:.1f} lr {values['lr']:.4g} "
            f"images/s {number(values['images_per_s'])} ({number(self.throughput.images_per_s)} a process) "
            f"data wait {data_wait:.0%}"
        )

    # Losses that are not finite

    def _handle_non_finite_loss(self) -> None:
        """End the run. A collective call.

        With --amp fp16 too: what the loss scale can mend is gradients that overflow; where the loss itself does, the
        statistics of BatchNorm have taken the values in.
        """
        batch, rank, indices = min(filter(None, self._gathered(self._non_finite_batch())))
        raise NonFiniteLossError(
            f"the loss is not finite in epoch {self._interval_start[0]}, batch {batch} of rank {rank}: "
            f"dataset positions {' '.join(map(str, indices))}"
        )

    def _non_finite_batch(self) -> tuple[int, int, list[int]] | None:
        """The first since the last log line, on this rank: number in the epoch, rank, dataset positions."""
        bad = (~torch.stack(self._losses).isfinite()).nonzero().flatten().tolist() if self._losses else []
        if not bad:
            return None
        epoch, first = self._interval_start
        return first + bad[0], self.world.rank, self.session.batch_indices(epoch, first + bad[0])

    def _gathered(self, value: Any) -> list[Any]:
        values = [value]
        if self.world.size > 1:
            values = [None] * self.world.size
            dist.all_gather_object(values, value)
        return values

    # Evaluation

    def evaluate(self) -> None:
        """Evaluate where an epoch has just ended, if there are validation images and it is not done yet."""
        session, position = self.session, self.session.position
        if session.validation is None or position.batch or not position.step or self.config.performance is not None:
            return
        writer = self.directory.writer
        known = same_on_all(writer.evaluations.get(position.step) if writer else None, self.world)
        self.evaluation = known or self._evaluate()

    def _evaluate(self) -> dict[str, Any]:
        session, position, throughput = self.session, self.session.position, Throughput()
        throughput.resume()
        result = session.evaluate(lambda batches: self._watched(throughput.waiting(batches)))
        if (writer := self.directory.writer) is None:
            return result
        # Before the row: a run killed here evaluates again.
        if result["top1"] > max((row["top1"] for row in writer.evaluations.values()), default=-1.0):
            checkpoint.keep_as_best(self.directory.path, position.step)
        writer.write("eval", position.step, epoch=position.epoch, **result)
        raw = f" (not averaged: top1 {result['raw_top1']:.2f})" if "raw_top1" in result else ""
        log.info(
            f"epoch {position.epoch} evaluated {result['images']} images: loss {result['loss']:.3f} "
            f"top1 {result['top1']:.2f} top5 {result['top5']:.2f}{raw}; {throughput.elapsed:.1f} s, "
            f"data wait {throughput.data_wait:.0%}"
        )
        return result

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Evaluation batches behind a progress bar; leaves between two of them when asked to stop.

        What there is to save was saved before. The ranks ask after whole global batches, of which they have equally
        many.
        """
        whole = self.session.validation_samples // (self.config.batch_size * self.world.size)
        with closing(evaluation_bar(batches, self.session)) as shown:
            for number, batch in enumerate(shown):
                yield batch
                if number < whole and (received := self.stop.check()):
                    self._leave(received, save=False)

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint, on the main rank."""
        self._saved_at = time.monotonic()
        if not self.world.is_main or self.config.performance is not None:
            return
        if self._non_finite_batch() or not self.session.weights_are_finite():
            log.warning("no checkpoint at step %d: the loss or a weight is not finite", self.session.position.step)
            return
        position, keep = self.session.position, self.config.keep_checkpoints
        checkpoint.save(self.directory.path, position.step, self.session.state(), keep)

    def _is_checkpoint_due(self) -> bool:
        interval = self.config.checkpoint_interval
        if interval.seconds:
            return time.monotonic() - self._saved_at >= interval.seconds
        return interval.steps > 0 and self.session.position.step % interval.steps == 0

    def _paused(self, action: Callable[[], None]) -> None:
        """Do something that images/s does not count."""
        synchronize(self.session.device)
        self.throughput.pause()
        action()
        self.throughput.resume()

    def _leave(self, number: int, save: bool = True) -> NoReturn:
        """Save and stop, on all ranks after the same step."""
        stopped = Stopped(number)
        if save:
            self.save()
        self.stop.wait_for_all()  # a rank that ended now would have the launcher end the one that saves
        if self.world.is_main:
            log.info(
                "%s: stopped after step %d; --run-dir %s --resume auto goes on",
                stopped.signal_name, self.session.position.step, self.directory.path,
            )  # fmt: skip
        raise stopped

    # The end

    def finish(self) -> dict[str, Any]:
        """Write the curves and the result."""
        images_per_s = self.throughput.images_per_s * self.world.size
        seconds = time.perf_counter() - self._started
        result = result_line(self.evaluation, images_per_s, seconds, self.loader_name, self.directory.path)
        data_wait = max(self._gathered(self.throughput.data_wait))
        limit = limited_by(data_wait, self.throughput.images)
        if self.world.is_main:
            details = {
                "images_per_s_definition": THROUGHPUT_DEFINITION,
                "data_wait": round(data_wait, 4),
                "limited_by": limit,
            }
            self.directory.draw_curves()
            self.directory.write_json("result.json", result | details)
            name = "FPS" if self.config.performance is not None else "images/s"
            log.info("%s %s: %s", name, number(images_per_s), THROUGHPUT_DEFINITION)
            log.info("limited by %s", limit)
        return result

    def _training_bar(self, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        session, position, accumulate = self.session, self.session.position, self.config.accumulate
        description = f"epoch {position.epoch + 1}/{self.config.epochs}"
        total, done = session.steps_per_epoch * accumulate, position.batch * accumulate
        return progress_bar(batches, description, total, done, self.world.is_main)


def evaluation_bar(batches: Iterator[Batch], session: Session) -> Generator[Batch, None, None]:
    """Evaluation batches behind a progress bar."""
    assert session.validation is not None
    return progress_bar(batches, "evaluation", session.validation.batches_per_epoch, 0, session.world.is_main)


def progress_bar(
    batches: Iterator[Batch], description: str, total: int, done: int, shown: bool
) -> Generator[Batch, None, None]:
    """A bar on a terminal, nothing elsewhere: the log lines remain."""
    with logging_redirect_tqdm():
        yield from tqdm(
            batches,
            desc=description,
            total=total,
            initial=done,
            unit="batch",
            leave=False,
            disable=None if shown else True,
        )
