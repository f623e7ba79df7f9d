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

from pipeline.cli import number
from pipeline.contract import Batch
from train import checkpoint
from train.device import memory_bytes, synchronize
from train.logs import EvaluationReport, RunLog, StepReport
from train.metrics import THROUGHPUT_DEFINITION, Throughput, Totals, limited_by, result_line, share, training_names
from train.progress import Piece, evaluation_progress, time_in_words, training_bar
from train.run_directory import RunDirectory
from train.session import Session
from train.step_clock import StepClock
from train.stopping import Stopped, StopRequests, resuming_command
from train.world import over_all, same_on_all

log = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number; the message names the images."""


class Trainer:
    """A session in training, its run directory, and the requests to stop."""

    def __init__(
        self,
        session: Session,
        directory: RunDirectory,
        stop: StopRequests,
        loader_name: str,
        run_log: RunLog | None = None,
    ) -> None:
        """`run_log` is that of the main rank."""
        self.session, self.config, self.world = session, session.config, session.world
        self.directory, self.stop, self.loader_name = directory, stop, loader_name
        self.throughput, self._run_log = Throughput(), run_log
        self._clock = StepClock(session, all_reduce=False) if run_log is not None and run_log.times_phases else None
        self.evaluation: dict[str, Any] = {}
        self._logged: dict[str, float] = {}  # of the newest log line, for the bar
        self._evaluation_s = 0.0  # of the newest evaluation
        self._started = time.perf_counter()
        self._saved_at = time.monotonic()
        self._start_interval()

    @property
    def is_done(self) -> bool:
        """Whether all steps of the run are done."""
        position = self.session.position
        if self.config.performance is not None:
            return position.step >= self.config.performance
        return position.epoch >= self.config.epochs or self.session.early_stopping.is_due

    # Training

    def train_epoch(self) -> None:
        """The rest of the current epoch."""
        session, position = self.session, self.session.position
        session.model.parallel.train()
        self.throughput.resume()
        with closing(
            self._training_bar(self.throughput.timed(self.stop.watching(session.training_batches())))
        ) as batches:
            for batch in batches:
                steps = position.step
                self.directory.write_indices(position.epoch, position.batch, batch.indices)
                self.directory.trace.before(steps)
                logits, targets, objective = session.train_step(batch)
                self._totals.add(logits, targets)
                self._objectives.append(objective)
                if position.step > steps:
                    self._after_step()
                if self.is_done:
                    break
        synchronize(session.device)
        self.throughput.pause()
        if self._run_log is not None:
            self._run_log.epoch_ended(self.throughput.images_per_s * self.world.size)

    def _training_bar(self, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        session, position = self.session, self.session.position
        description = f"epoch {position.epoch + 1}/{self.config.epochs}"
        passes = self.config.accumulate // session.process.batches_at_once(position.epoch)
        total, done = session.steps_per_epoch * passes, position.batch * passes
        return training_bar(batches, description, total, self._status, done=done, shown=self.world.is_main)

    def _status(self) -> list[Piece]:
        """What the bar says. The loss is that of the newest log line: it stays on the device until then."""
        epoch_s, run_s = self._seconds_left()
        memory, loss = memory_bytes(self.session.device), self._logged.get("objective")
        return [
            Piece(f"{time_in_words(epoch_s)}, run {time_in_words(run_s)}", 8),
            Piece(f"loss {loss:.3f}" if loss is not None else "", 7),
            Piece(f"lr {self.session.train_step.learning_rate:.3g}", 4),
            Piece(f"{number(self.throughput.images_per_s * self.world.size)} img/s", 6),
            Piece(f"wait {self.throughput.data_wait:.0%}", 5),
            Piece(f"{memory / 1e9:.1f} GB" if memory else "", 3),
        ]

    def _seconds_left(self) -> tuple[float, float]:
        """Of the epoch and of the run, with its evaluations, at the rate of training and of the newest evaluation."""
        config, position, steps = self.config, self.session.position, self.session.steps_per_epoch
        rate = self.throughput.images_per_s
        step_s = config.batch_size * config.accumulate / rate if rate else math.inf
        in_epoch = steps - position.batch
        if config.performance is not None:
            in_run = config.performance - position.step
            return min(in_epoch, in_run) * step_s, in_run * step_s
        in_run = in_epoch + (config.epochs - position.epoch - 1) * steps
        evaluations = sum(map(self._is_evaluated, range(position.epoch + 1, config.epochs + 1)))
        return in_epoch * step_s, in_run * step_s + evaluations * self._evaluation_s

    def _start_interval(self) -> None:
        """Begin the sums and objectives of the next log line; they stay on the device."""
        position = self.session.position
        self._totals, self._objectives = Totals(self.session.device), list[Tensor]()
        self._interval_start = position.epoch, position.batch * self.config.accumulate
        self._interval_step = position.step

    def _after_step(self) -> None:
        position = self.session.position
        if self.throughput.count(self.config.batch_size * self.config.accumulate):
            synchronize(self.session.device)
            self.throughput.restart()
        epoch_ends = position.batch == 0
        if position.step % self.config.print_freq == 0 or epoch_ends or self.is_done:
            self._log_training()
            self._start_interval()
        if signal_number := self.stop.check():
            self._stop(signal_number)
        if not epoch_ends and self._is_checkpoint_due():
            self._paused(self.save)

    def _log_training(self) -> None:
        totals, step = self._totals.result(), self.session.train_step
        objective = torch.stack(self._objectives).mean().item()
        waited, seconds = self.throughput.interval()
        wait = share(waited, seconds)
        data_wait, fails = over_all((wait, not math.isfinite(objective)), dist.ReduceOp.MAX, self.world)
        if fails:
            self._raise_non_finite_loss()
        (sum_of_objectives,) = over_all((objective,), dist.ReduceOp.SUM, self.world)
        writer, position = self.directory.writer, self.session.position
        if writer is None or self._run_log is None:
            return
        values = training_names(totals, step.mixes) | {
            "objective": sum_of_objectives / self.world.size,
            "epoch": position.step / self.session.steps_per_epoch,
            "lr": step.learning_rate,
            "images_per_s": self.throughput.images_per_s * self.world.size,
            "data_wait": data_wait,  # the other ranks wait for the gradients of that one
        }
        self._logged = values
        writer.write("train", position.step, **values)
        done = position.batch or self.session.steps_per_epoch  # steps of the epoch that this line is of
        self._run_log.step(
            StepReport(
                epoch=position.epoch if position.batch else position.epoch - 1,
                batch=done - 1,
                steps_per_epoch=self.session.steps_per_epoch,
                step=position.step,
                steps=position.step - self._interval_step,
                loss=totals["loss"],
                top1=totals["top1"],
                top5=totals["top5"],
                images=int(totals["images"]),
                objective=values["objective"],
                lr=step.learning_rate,
                images_per_s=values["images_per_s"],
                data_wait=data_wait,
                seconds=seconds,
                waited=waited,
                mixed=step.mixes,
                phases=self._clock.seconds() if self._clock is not None else None,
            )
        )

    # Losses that are not finite

    def _raise_non_finite_loss(self) -> NoReturn:
        """End the run. A collective call.

        With --amp fp16 too: a smaller loss scale helps where gradients overflow, but where the loss itself does,
        BatchNorm's statistics already contain the overflow.
        """
        own = self._first_non_finite_batch()
        (earliest,) = over_all((math.inf if own is None else own[0],), dist.ReduceOp.MIN, self.world)
        is_own = own is not None and own[0] == earliest
        (rank,) = over_all((self.world.rank if is_own else math.inf,), dist.ReduceOp.MIN, self.world)
        batch, indices = same_on_all(own, self.world, int(rank)) or (0, [])
        raise NonFiniteLossError(
            f"the loss is not finite in epoch {self._interval_start[0]}, batch {batch} of rank {int(rank)}: "
            f"dataset positions {' '.join(map(str, indices))}"
        )

    def _first_non_finite_batch(self) -> tuple[int, list[int]] | None:
        """Of this rank since the last log line: number in the epoch, dataset positions."""
        objectives = self._objectives
        bad = (~torch.stack(objectives).isfinite()).nonzero().flatten().tolist() if objectives else []
        if not bad:
            return None
        epoch, first = self._interval_start
        batch = first + bad[0] * self.session.process.batches_at_once(epoch)
        return batch, self.session.batch_indices(epoch, batch)

    # Evaluation

    def evaluate(self) -> None:
        """Evaluate where an epoch that --val-interval names has just ended, unless that was done before or there are no
        validation images."""
        session, position = self.session, self.session.position
        if session.validation is None or position.batch or not position.step or self.config.performance is not None:
            return
        if not self._is_evaluated(position.epoch):
            return
        writer = self.directory.writer
        known = same_on_all(writer.evaluations.get(position.step) if writer else None, self.world)
        self.evaluation = known or self._evaluate()
        session.train_step.scheduler.evaluated(position.epoch, self.evaluation["top1"])
        session.early_stopping.evaluated(self.evaluation["top1"])

    def _is_evaluated(self, epochs: int) -> bool:
        """Whether there is an evaluation after so many epochs: at the end of the run there always is one."""
        return epochs % self.config.val_interval == 0 or epochs >= self.config.epochs

    def _evaluate(self) -> dict[str, Any]:
        session, position, throughput = self.session, self.session.position, Throughput()
        throughput.resume()
        result = session.evaluate(lambda batches: self._interruptible(throughput.timed(self.stop.watching(batches))))
        self._evaluation_s = throughput.elapsed
        if (writer := self.directory.writer) is None:
            return result
        # Before the row is written: a run killed here evaluates again.
        if result["top1"] > max((row["top1"] for row in writer.evaluations.values()), default=-1.0):
            checkpoint.keep_as(checkpoint.BEST, self.directory.path, position.step)
        writer.write("eval", position.step, epoch=position.epoch, **result)
        assert session.validation is not None
        assert self._run_log is not None
        self._run_log.evaluated(
            EvaluationReport(
                epoch=position.epoch,
                result=result,
                batches=session.validation.loader.batches_per_epoch,
                seconds=throughput.elapsed,
                data_wait=throughput.data_wait,
            )
        )
        return result

    def _interruptible(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Evaluation batches behind a progress bar; between two of them the run stops when asked to.

        There is nothing to save that was not saved before. Ranks check after each whole global batch, of which they
        have equally many.
        """
        validation = self.session.validation
        assert validation is not None
        whole = validation.split.num_samples // (self.config.batch_size * self.world.size)
        total = validation.loader.batches_per_epoch
        with closing(evaluation_progress(batches, total, shown=self.world.is_main)) as shown:
            for done, batch in enumerate(shown):
                yield batch
                if done < whole and (signal_number := self.stop.check()):
                    self._stop(signal_number, save=False)

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint, on the main rank."""
        self._saved_at = time.monotonic()
        if not self.world.is_main or self.config.performance is not None:
            return
        if self._first_non_finite_batch() or not self.session.weights_are_finite():
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

    def _stop(self, signal_number: int, save: bool = True) -> NoReturn:
        """Save and stop, on all ranks after the same step."""
        stopped = Stopped(signal_number)
        if save:
            self.save()
        self.stop.wait_for_all()  # the launcher would end the rank that saves as soon as another has ended
        if self.world.is_main:
            self._log_end(stopped)
        raise stopped

    def stop_without_data(self) -> NoReturn:
        """Stop although this rank still waits for data. The others may wait for it in the middle of a step; the main
        rank saves the state after the last whole one."""
        stopped = Stopped(self.stop.received, together=False)
        self.stop.give_up_data()
        if self.session.train_step.is_between_steps:
            self.save()
        self._log_end(stopped)
        raise stopped

    def _log_end(self, stopped: Stopped) -> None:
        where = "stopped" if stopped.together else f"rank {self.world.rank} stopped waiting for data"
        step, command = self.session.position.step, resuming_command(self.directory.path)
        log.info("%s: %s after step %d; to resume: %s", stopped.signal_name, where, step, command)

    # The end

    def finish(self) -> dict[str, Any]:
        """Write the curves and the result."""
        images_per_s = self.throughput.images_per_s * self.world.size
        seconds = time.perf_counter() - self._started
        weights = "ema" if "raw_top1" in self.evaluation else "model"
        result = result_line(self.evaluation, images_per_s, seconds, self.loader_name, self.directory.path, weights)
        (data_wait,) = over_all((self.throughput.data_wait,), dist.ReduceOp.MAX, self.world)
        limit = limited_by(data_wait, self.throughput.images)
        if self.world.is_main:
            details = {
                "images_per_s_definition": THROUGHPUT_DEFINITION,
                "data_wait": round(data_wait, 4),
                "limited_by": limit,
                "epochs": self.session.position.epoch,
                "stopped_early": self.session.early_stopping.is_due,
            }
            self._log_early_stopping()
            self.directory.draw_curves()
            self.directory.write_json("result.json", result | details)
            assert self._run_log is not None
            self._run_log.finished(images_per_s)
            log.info("limited by %s", limit)
        return result

    def _log_early_stopping(self) -> None:
        assert self.directory.writer is not None
        if not self.session.early_stopping.is_due or self.session.position.epoch >= self.config.epochs:
            return
        best = max(self.directory.writer.evaluations.values(), key=lambda row: row["top1"])
        log.info(
            f"stopped early: no better top1 in {self.config.patience} evaluations, "
            f"best {best['top1']:.2f} after epoch {best['epoch']}"
        )
