"""The flags of the profiling command."""

import dataclasses
import json
from pathlib import Path

from pipeline.cli import parse
from tools.profiling.settings import ProfileSettings, starting_point
from train.config import TrainConfig


def test_a_run_is_measured_with_all_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    trained = TrainConfig(
        model="pyramidnet", model_kwargs=("depth=14", "alpha=8"), batch_size=8, accumulate=2, model_ema=True,
        mixup_alpha=0.2, run_dir=tmp_path, performance=9,
    )  # fmt: skip
    path.write_text(json.dumps(trained.as_dict()))
    words = ["--config", str(path), "--batch-size", "4"]
    settings = parse(ProfileSettings, words, starting_point(words))
    measured = settings.training_config("torch", {"workers": 3})
    assert measured == dataclasses.replace(
        trained, loader="torch", batch_size=4, workers=3, performance=None, run_dir=None
    )
    words = ["--recipe", "pnasnet5large-full"]
    assert parse(ProfileSettings, words, starting_point(words)).training_config("torch", {}).model == "pnasnet5large"
