"""A sweep gives for each resolution what an evaluation at it gives."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.errors import InputError
from tests.helpers.runs import TINY, newest_checkpoint, train
from tools.evaluation.sweep import SweepSettings, sweep


@pytest.mark.usefixtures("one_thread")
def test_a_sweep_evaluates_at_each_resolution(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, picture = tmp_path / "run", tmp_path / "sides.png"
    train("--data", dataset, *TINY, "--epochs", 1, "--run-dir", run_dir, capsys=capsys)
    checkpoint = newest_checkpoint(run_dir)
    result = sweep(
        SweepSettings(
            checkpoint=checkpoint, data=str(dataset), resolutions=(32, 40), flip=True, loader="torch", workers=1,
            batch_size=8, picture=picture,
        )
    )  # fmt: skip
    rows = {(row["resolution"], row["flip"]): row for row in result["resolutions"]}
    assert rows.keys() == {(32, False), (40, False), (32, True), (40, True)}
    evaluation = ["--data", dataset, "--model", "pyramidnet", "--loader", "torch", "--workers", 1, "--batch-size", 8]
    single = train(*evaluation, "--evaluate", checkpoint, "--val-crop", 40, "--val-flip", capsys=capsys)
    assert {name: single[name] for name in ("top1", "loss")} == {
        name: rows[40, True][name] for name in ("top1", "loss")
    }
    assert len({row["loss"] for row in rows.values()}) == 4
    assert max(row["top1"] for row in rows.values()) in {
        row["top1"] for key, row in rows.items() if key[0] == result["best"]
    }
    with Image.open(picture) as image:
        assert image.size == (720, 480)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"text")
    with pytest.raises(InputError, match=r"a\.pt: not a checkpoint, or a damaged one"):
        sweep(SweepSettings(checkpoint=tmp_path / "a.pt"))


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_evaluated(tmp_path: Path) -> None:
    for picture in (tmp_path / "a.xyz", tmp_path):
        with pytest.raises(InputError, match="--picture"):
            sweep(SweepSettings(checkpoint=tmp_path / "a.pt", picture=picture))


@pytest.mark.parametrize("config", [{}, {"model": [1]}, {"model": "resnet18", "resolution": "64"}], ids=repr)
def test_a_checkpoint_whose_settings_describe_no_model_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    torch.save({"model": {}, "config": config}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="its settings describe no model"):
        sweep(SweepSettings(checkpoint=tmp_path / "a.pt"))
