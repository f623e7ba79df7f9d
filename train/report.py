"""What an evaluation writes besides its result: predictions of each image, and where the model is wrong."""

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.errors import InputError
from pipeline.storage.shards import ShardSamples
from pipeline.storage.split import Split
from train import checkpoint
from train.analysis import Analysis, can_be_read
from train.config import TrainConfig
from train.predictions import Collector, Predictions, rows, save
from train.process import Process

log = logging.getLogger(__name__)


class Report:
    """The files of --predictions and of the analysis. Raises InputError where those asked for cannot be written."""

    collector: Collector | None = None
    """Of the evaluation; None where nothing is to be written."""

    def __init__(self, process: Process, split: Split) -> None:
        self._process, self._split, self._config = process, split, process.config
        self._folder = folder_of(process.config)
        if process.config.analyse and self._folder is None and process.world.is_main:
            log.info(
                "%s belongs to no run: with --run-dir, where it is wrong is written there", process.config.evaluate
            )
        if self._folder or process.config.predictions:
            self.collector = Collector(split.num_samples, process.device)

    def write(self, outputs: int) -> dict[str, str]:
        """Write the files on the main rank; the model has so many outputs. Returns what the result says of them. A
        collective call."""
        if self.collector is None:
            return {}
        predictions = self.collector.result(outputs)
        written: dict[str, str] = {}
        if not self._process.world.is_main:
            return written
        if path := self._config.predictions:
            names = names_of(self._split)
            save(rows(predictions, self._split.classes, names, labelled=True), path, "--predictions")
            written["predictions"] = str(path)
        if self._folder and self._write_analysis(predictions, self._folder):
            written["analysis"] = str(self._folder)
        return written

    def _write_analysis(self, predictions: Predictions, folder: Path) -> bool:
        try:
            Analysis(predictions, self._process, self._split).write(folder)
        except OSError as error:
            if self._config.run_dir is not None:
                raise InputError(f"--run-dir {folder}: cannot be written ({error.strerror})") from None
            log.warning("%s: cannot be written (%s); give another --run-dir", folder, error.strerror)
            return False
        return True


def folder_of(config: TrainConfig) -> Path | None:
    """Where the analysis is written: in --run-dir, or else in the checkpoint's run; None for a file that belongs to no
    run, or where it is not wanted."""
    assert config.evaluate is not None
    run_dir = config.run_dir or checkpoint.run_dir_of(config.evaluate)
    return run_dir / f"evaluation-{config.evaluate.stem}" if run_dir and config.analyse else None


def names_of(split: Split) -> Callable[[int], str]:
    """What the image at a dataset position is called: the name of its file, or in a shard its key."""
    if not can_be_read(split):
        return lambda index: f"{split.name} {index}"
    samples = split.samples
    return samples.key if isinstance(samples, ShardSamples) else samples.name
