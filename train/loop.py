"""The training loop: open the data, build the model, train, evaluate, keep checkpoints."""

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import models
from pipeline import loaders
from pipeline.contract import Batch, CropPolicy, Loader, LoaderSpec
from pipeline.dataset import Split, SplitInfo, open_split
from pipeline.errors import InputError
from pipeline.formats.files import complete_or_absent
from train import checkpoint, optim
from train.config import TrainConfig
from train.device import AMP_DTYPES, DEVICE_TYPES, configure_math, select, synchronize
from train.launch import World, finalize, initialize
from train.metrics import THROUGHPUT_DEFINITION, RunWriter, Throughput, Totals, plot_curves

log = logging.getLogger(__name__)


def open_data(config: TrainConfig, name: str) -> Split:
    """A split of --data. The synthetic loader reads nothing, so without --data it stands for ImageNet."""
    if config.loader == "synthetic" and not config.data.exists():
        samples = {"train": 1_281_167, "val": 50_000}[name]
        info = SplitInfo(samples=samples, bytes=0, image_mode="synthetic")
        return Split(name, config.data, tuple(f"class {number}" for number in range(1000)), info)
    return open_split(config.data, name)


def check(config: TrainConfig) -> None:
    """Find wrong input before any process is started. Raises InputError."""
    split = open_data(config, "val" if config.evaluate else "train")
    for path in (config.evaluate, config.resume and config.resume != "auto" and Path(config.resume)):
        if path and not path.is_file():
            raise InputError(f"{path}: no such checkpoint")
    global_batch = config.batch_size * config.nproc * config.nnodes
    if not config.evaluate and global_batch > split.num_samples:
        raise InputError(
            f"--batch-size {config.batch_size}: the global batch of {global_batch} is larger than the "
            f"{split.num_samples} training images of {config.data}"
        )


def run(config: TrainConfig, world: World) -> dict[str, Any] | None:
    """Train or evaluate as one process of `world`. Returns the result on the main rank."""
    check(config)
    device = select(config.device, world.local_rank, world.local_size)
    configure_math(config.deterministic)
    initialize(world, device)
    try:
        with Session(config, world, device) as session:
            result = session.evaluate_only() if config.evaluate else session.train()
    finally:
        finalize(world)
    return result if world.is_main else None


class Session:
    """Everything a process holds during a run."""

    def __init__(self, config: TrainConfig, world: World, device: torch.device) -> None:
        self.config, self.world, self.device = config, world, device
        self.card = models.card(config.model)
        self.resolution = config.resolution or self.card.resolution
        self.started = time.perf_counter()
        self._open = contextlib.ExitStack()
        self.step = self.epoch = self.batch = 0
        self.validation: Loader | None = None
        self.last_evaluation: dict[str, float] = {}

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    # ---- building ---------------------------------------------------------------------------------------

    def _choose_loader(self, split: Split) -> str:
        if self.config.loader != "auto":
            return self.config.loader
        name, why = loaders.choose(split)
        if self.world.is_main:
            log.info("loader auto: %s (%s)", name, why)
        return name

    def open_loader(self, split: Split, training: bool) -> Loader:
        """A loader of this rank over a split."""
        config, world = self.config, self.world
        cores = len(os.sched_getaffinity(0))
        share = self.card.resolution / self.card.eval_resize
        spec = LoaderSpec(
            split=split,
            batch_size=config.batch_size,
            crop=CropPolicy(training=training, center_share=share),
            seed=config.seed,
            rank=world.rank,
            world_size=world.size,
            workers=max(1, cores // world.local_size) if config.workers is None else config.workers,
            device=self.device,
            channels_last=config.channels_last and DEVICE_TYPES[self.device.type].channels_last,
        )
        loader = loaders.create(self.loader_name, spec)
        self._open.callback(loader.close)
        return loader

    def build_model(self, num_classes: int) -> None:
        """Fresh weights, the same on every rank; on the device, wrapped for several processes."""
        torch.manual_seed(self.config.seed)
        model = models.create(self.config.model, num_classes).to(self.device)
        if self.config.channels_last and DEVICE_TYPES[self.device.type].channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model: nn.Module = model
        self.network = model.network
        if self.world.size > 1 and not self.config.evaluate:
            # BatchNorm statistics are sent from rank 0 before they are used, not at every step.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the argument is renamed in torch 2.15
                self.model = DistributedDataParallel(model, broadcast_buffers=False)
        self.plain_model = model
        if self.config.compile:
            self.model.compile()
            self.plain_model.compile()
        torch.manual_seed(self.config.seed + self.world.rank)  # dropout differs between ranks

    def open_validation(self) -> None:
        """The validation loader, if the data has such a split."""
        try:
            split = open_data(self.config, "val")
        except InputError as error:
            if self.config.evaluate:
                raise
            log.info("not evaluated: %s", error)
            return
        self.validation = self.open_loader(split, training=False)
        self.validation_samples = split.num_samples

    # ---- training ---------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """The whole run."""
        config, world = self.config, self.world
        split = open_data(config, "train")
        self.loader_name = self._choose_loader(split)
        self.run_dir = self._make_run_dir()
        self.training = self.open_loader(split, training=True)
        self.open_validation()
        self.build_model(len(split.classes))
        global_batch = config.batch_size * world.size
        self.optimizer = optim.build_optimizer(config, self.plain_model, global_batch)
        self.scheduler = optim.build_scheduler(config, self.optimizer, self.training.batches_per_epoch)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self._resume()
        self._announce(split, global_batch)
        self.throughput = Throughput()
        self.writer = RunWriter(self.run_dir, self.step) if world.is_main else None
        for epoch in range(self.epoch, config.epochs):
            self.epoch = epoch
            self._train_epoch()
            self.epoch, self.batch = epoch + 1, 0
            self._evaluate_and_log()
            self.save()
        return self._finish()

    def _train_epoch(self) -> None:
        batches = self.training.epoch(self.epoch, self.resolution, self.batch)
        self.model.train()
        self.throughput.resume()
        totals = Totals(self.device)
        for batch in self._progress(self.throughput.waiting(batches)):
            logits = self._train_step(batch)
            totals.add(logits, batch.labels)
            self.step, self.batch = self.step + 1, self.batch + 1
            if self.throughput.count(len(batch.labels)):
                synchronize(self.device)
                self.throughput.restart()
            if self.step % self.config.print_freq == 0 or self.batch == self.training.batches_per_epoch:
                self._log_training(totals)
                totals = Totals(self.device)
            if self.config.checkpoint_every and self.step % self.config.checkpoint_every == 0:
                self._paused(self.save)
        synchronize(self.device)
        self.throughput.pause()

    def _train_step(self, batch: Batch) -> Tensor:
        with self._autocast():
            logits = self.model(batch.images)
            loss = self.criterion(logits, batch.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.indices_file is not None:
            row = {"epoch": self.epoch, "batch": self.batch, "indices": batch.indices.tolist()}
            self.indices_file.write(json.dumps(row) + "\n")
        return logits

    def _autocast(self) -> torch.autocast:
        dtype = AMP_DTYPES[self.config.amp]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _paused(self, action: Any) -> None:
        """Do something that images/s does not count."""
        synchronize(self.device)
        self.throughput.pause()
        action()
        self.throughput.resume()

    # ---- evaluation -------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, float]:
        """Every validation image exactly once over all ranks, with rank 0's BatchNorm statistics."""
        assert self.validation is not None
        self._broadcast_buffers()
        self.plain_model.eval()
        totals = Totals(self.device)
        with torch.inference_mode():
            for batch in self.validation.epoch(0, self.resolution):
                with self._autocast():
                    logits = self.plain_model(batch.images)
                totals.add(logits, batch.labels)
        result = totals.result()
        assert result["images"] == self.validation_samples, "evaluation must count every image once"
        return result

    def _broadcast_buffers(self) -> None:
        if self.world.size > 1:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, 0)

    def evaluate_only(self) -> dict[str, Any]:
        """The --evaluate command."""
        assert self.config.evaluate is not None
        state = checkpoint.load(self.config.evaluate)
        split = open_data(self.config, "val")
        self.loader_name = self._choose_loader(split)
        self.build_model(len(split.classes))
        checkpoint.load_weights(self.network, state, self.config.model, self.config.evaluate)
        self.open_validation()
        started = time.perf_counter()
        self.last_evaluation = self.evaluate()
        seconds = time.perf_counter() - started
        images_per_s = self.last_evaluation["images"] / seconds
        return self._result(images_per_s, str(self.config.evaluate.parent))

    # ---- what a run leaves ------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint on the main rank. A collective call: every rank's random state goes in."""
        self._broadcast_buffers()
        states: list[Any] = [self._random_state()]
        if self.world.size > 1:
            states = [None] * self.world.size
            dist.all_gather_object(states, self._random_state())
        if not self.world.is_main:
            return
        state = {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None,
            "rng": states,
            "position": {"epoch": self.epoch, "batch": self.batch, "step": self.step},
            "config": self.config.as_dict(),
        }
        checkpoint.save(self.run_dir, self.step, state, self.config.keep_checkpoints)

    def _random_state(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            state["device"] = torch.get_device_module(self.device).get_rng_state(self.device)
        return state

    def _resume(self) -> None:
        path = self._checkpoint_to_resume()
        if path is None:
            return
        state = checkpoint.load(path)
        checkpoint.load_weights(self.network, state, self.config.model, path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.scaler.load_state_dict(state["scaler"])
            position, random_states = state["position"], state["rng"]
        except (KeyError, ValueError) as error:
            raise InputError(f"--resume {path}: holds no training state to go on from ({error})") from None
        self.epoch, self.batch, self.step = (position[name] for name in ("epoch", "batch", "step"))
        if len(random_states) == self.world.size:
            self._set_random_state(random_states[self.world.rank])
        log.info("resumed from %s: epoch %d, batch %d", path, self.epoch, self.batch)

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if self.device.type != "cpu" and "device" in state:
            torch.get_device_module(self.device).set_rng_state(state["device"], self.device)

    def _checkpoint_to_resume(self) -> Path | None:
        if self.config.resume != "auto":
            return Path(self.config.resume) if self.config.resume else None
        found = checkpoint.existing(self.run_dir)
        return found[-1] if found else None

    def _make_run_dir(self) -> Path:
        """--run-dir, or a new directory named after the run; the same on every rank."""
        config = self.config
        name = f"{config.model.rpartition('/')[2]}-{self.loader_name}-{time.strftime('%Y%m%d-%H%M%S')}"
        chosen = [config.run_dir or Path("runs") / name]
        if self.world.size > 1:
            dist.broadcast_object_list(chosen, 0)
        run_dir = chosen[0]
        if self.world.is_main:
            if not config.resume and checkpoint.existing(run_dir):
                raise InputError(f"--run-dir {run_dir}: holds a run; add --resume auto or choose another")
            run_dir.mkdir(parents=True, exist_ok=True)
            with complete_or_absent(run_dir / "config.json") as file:
                json.dump(config.as_dict(), file, indent=1)
        self.indices_file: TextIO | None = None
        if config.log_indices:
            run_dir.mkdir(parents=True, exist_ok=True)
            path = run_dir / f"indices-rank{self.world.rank}.jsonl"
            self.indices_file = self._open.enter_context(path.open("a" if config.resume else "w"))
        return run_dir

    def _announce(self, split: Split, global_batch: int) -> None:
        if self.world.is_main:
            log.info(
                "%s on %d x %s, loader %s: %d images of %d classes, global batch %d (%d x %d), "
                "%d steps an epoch, lr %.4g, amp %s; run directory %s",
                self.config.model, self.world.size, self.device.type, self.loader_name, split.num_samples,
                len(split.classes), global_batch, self.world.size, self.config.batch_size,
                self.training.batches_per_epoch, optim.learning_rate(self.config, global_batch),
                self.config.amp, self.run_dir,
            )  # fmt: skip

    def _progress(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """A bar on a terminal, nothing elsewhere (the log lines remain)."""
        with logging_redirect_tqdm():
            yield from tqdm(
                batches,
                desc=f"epoch {self.epoch + 1}/{self.config.epochs}",
                total=self.training.batches_per_epoch,
                initial=self.batch,
                unit="batch",
                leave=False,
                disable=None if self.world.is_main else True,
            )

    def _log_training(self, totals: Totals) -> None:
        values = totals.result()
        if not self.world.is_main or self.writer is None:
            return
        per_process = self.throughput.images_per_s
        values |= {
            "epoch": self.epoch + self.batch / self.training.batches_per_epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_s": per_process * self.world.size,
            "data_wait": self.throughput.data_wait,
        }
        self.writer.write("train", self.step, **values)
        log.info(
            "epoch %.2f step %d loss %.3f top1 %.1f top5 %.1f lr %.4g images/s %.0f (%.0f a process) data wait %.0f%%",
            values["epoch"], self.step, values["loss"], values["top1"], values["top5"], values["lr"],
            values["images_per_s"], per_process, 100 * values["data_wait"],
        )  # fmt: skip

    def _evaluate_and_log(self) -> None:
        if self.validation is None:
            return
        result = self.last_evaluation = self.evaluate()
        if self.world.is_main and self.writer is not None:
            self.writer.write("eval", self.step, epoch=self.epoch, **result)
            log.info(
                "epoch %d evaluated %d images: loss %.3f top1 %.2f top5 %.2f",
                self.epoch, result["images"], result["loss"], result["top1"], result["top5"],
            )  # fmt: skip

    def _finish(self) -> dict[str, Any]:
        result = self._result(self.throughput.images_per_s * self.world.size, str(self.run_dir))
        if self.world.is_main and self.writer is not None:
            self.writer.close()
            plot_curves([self.run_dir], self.run_dir / "curves.png")
            log.info("images/s: %s", THROUGHPUT_DEFINITION)
            with complete_or_absent(self.run_dir / "result.json") as file:
                json.dump(result, file, indent=1)
        return result

    def _result(self, images_per_s: float, run_dir: str) -> dict[str, Any]:
        last = self.last_evaluation
        return {
            "top1": last.get("top1"),
            "top5": last.get("top5"),
            "evaluated": last.get("images", 0),
            "loss": last.get("loss"),
            "images_per_s": round(images_per_s, 1),
            "seconds": round(time.perf_counter() - self.started, 1),
            "loader": self.loader_name,
            "run_dir": run_dir,
        }
