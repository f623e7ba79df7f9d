"""Checkpoints on the disk: damage is noticed, the newest sound one is found, the best one stays."""

import logging
import zipfile
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from train import checkpoint
from train.checkpoint import State


def state(step: int) -> State:
    generator = torch.Generator().manual_seed(step)
    return {"model": {"weight": torch.randn(200, 50, generator=generator)}, "config": {}, "step": step}


def extent_of_weights(path: Path) -> range:
    """Where the bytes of the tensor are in the file."""
    raw = next(iter(checkpoint.load(path)["model"].values())).numpy().tobytes()
    start = path.read_bytes().index(raw)
    return range(start, start + len(raw))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.9999])
def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path: Path, share: float) -> None:
    path = checkpoint.save(tmp_path, 1, state(1), keep=2)
    extent = extent_of_weights(path)
    data = bytearray(path.read_bytes())
    data[extent[int(share * len(extent))]] ^= 4
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # which does not notice
    with pytest.raises(InputError, match=r"step-00000001.pt: not a checkpoint, or a damaged one"):
        checkpoint.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_noticed(tmp_path: Path, share: float) -> None:
    path = checkpoint.save(tmp_path, 1, state(1), keep=2)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(path)


def test_the_newest_sound_one_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.newest_sound(tmp_path) is None
    paths = [checkpoint.save(tmp_path, step, state(step), keep=5) for step in (8, 9, 10, 11)]
    paths[3].write_bytes(b"")
    paths[2].write_bytes(b"garbage" * 1000)
    with caplog.at_level(logging.WARNING):
        found = checkpoint.newest_sound(tmp_path)
    assert found is not None
    assert found[0] == paths[1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is damaged: going on from the one before" for path in (paths[3], paths[2])
    ]
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"all 4 checkpoints in .* are damaged"):
        checkpoint.newest_sound(tmp_path)


def test_damaged_ones_do_not_count_among_the_newest(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 8, state(8), keep=1)
    damaged = checkpoint.path_for(tmp_path, 20)
    damaged.write_bytes(b"")
    (damaged.parent / ".step-00000020.pt.partial").write_bytes(b"half")
    checkpoint.set_aside_after(tmp_path, 8)
    checkpoint.save(tmp_path, 9, state(9), keep=1)
    assert sorted(path.name for path in damaged.parent.iterdir()) == ["step-00000009.pt", "step-00000020.pt.damaged"]


def test_the_best_outlives_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, state(step), keep=2)
        if step in (1, 2):
            checkpoint.keep_as_best(tmp_path, step)
    assert [path.name for path in checkpoint.existing(tmp_path)] == ["step-00000003.pt", "step-00000004.pt"]
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["step"] == 2


def test_what_another_program_saved_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="not a checkpoint of this program"):
        checkpoint.load(path)
    assert checkpoint.load_weights_file(path) == {}
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
