"""What a training says about itself, in the words of --log-format: ours, or those that other programs' parsers read."""

from pathlib import Path

from train.config import TrainConfig
from train.logs.ascend import AscendLog
from train.logs.contract import EvaluationReport, RunLog, StepReport
from train.logs.own import OwnLog
from train.logs.tecorigin import TecoriginLog
from train.world import World

__all__ = ["EvaluationReport", "RunLog", "StepReport", "open_log"]


def open_log(config: TrainConfig, world: World, device_type: str, *, resumed: bool = False) -> RunLog:
    """The log of --log-format, of the main rank. Its files are in the current directory; those of a `resumed` run are
    continued."""
    if config.log_format == "ascend":
        return AscendLog(config, world, Path.cwd(), resumed=resumed)
    if config.log_format == "tecorigin":
        return TecoriginLog(config, world, device_type, Path.cwd(), resumed=resumed)
    return OwnLog(config, world, device_type)
