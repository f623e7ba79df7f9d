"""Checkpoints on disk: damage is noticed, nothing is executed, the newest intact one is found, the best one stays."""

import argparse
import logging
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch

import models
from pipeline.errors import InputError
from tests.helpers.memory import memory_below
from tests.helpers.torch_files import save_as_before_1_6
from train import checkpoint, finished
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.meeting import Meeting
from train.resume import find
from train.world import World


def state(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return {"model": {"weight": torch.randn(200, 50, generator=generator)}, "config": {}, "step": step}


def extent_of_weights(path: Path) -> range:
    """The byte positions of the tensor in the file."""
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
    torch.load(path, weights_only=True)  # does not notice
    with pytest.raises(InputError, match=r"step-00000001.pt: not a checkpoint, or a damaged one"):
        checkpoint.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_noticed(tmp_path: Path, share: float) -> None:
    path = checkpoint.save(tmp_path, 1, state(1), keep=2)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="damaged"):
        checkpoint.load(path)


def test_the_newest_intact_one_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.newest_intact(tmp_path) is None
    paths = [checkpoint.save(tmp_path, step, state(step), keep=5) for step in (8, 9, 10, 11)]
    paths[3].write_bytes(b"")
    paths[2].write_bytes(b"garbage" * 1000)
    with caplog.at_level(logging.WARNING):
        newest = checkpoint.newest_intact(tmp_path)
    assert newest is not None
    assert newest[0] == paths[1]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is damaged: resuming from the one before" for path in (paths[3], paths[2])
    ]
    for path in paths[:2]:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"all 4 checkpoints in .* are damaged"):
        checkpoint.newest_intact(tmp_path)


def test_damaged_checkpoints_do_not_count_among_the_newest(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 8, state(8), keep=1)
    damaged = checkpoint.path_for(tmp_path, 20)
    damaged.write_bytes(b"")
    (damaged.parent / ".step-00000020.pt.partial").write_bytes(b"half")
    checkpoint.set_aside_after(tmp_path, 8)
    checkpoint.save(tmp_path, 9, state(9), keep=1)
    assert sorted(path.name for path in damaged.parent.iterdir()) == [
        "last.pt", "step-00000009.pt", "step-00000020.pt.damaged"
    ]  # fmt: skip


def test_the_best_is_kept_when_newer_ones_replace_it(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, state(step), keep=2)
        if step in (1, 2):
            checkpoint.keep_as(checkpoint.BEST, tmp_path, step)
    assert [path.name for path in checkpoint.existing(tmp_path)] == ["step-00000003.pt", "step-00000004.pt"]
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["step"] == 2


def test_the_newest_is_the_last_one_too(tmp_path: Path) -> None:
    """After damage too; and a link at that name is replaced, not followed."""
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), keep=2)
    last, other = tmp_path / "checkpoints" / "last.pt", tmp_path / "other"
    assert last.samefile(checkpoint.path_for(tmp_path, 2)), "it takes no space of its own"
    checkpoint.set_aside_after(tmp_path, 1)
    assert checkpoint.load(last)["step"] == 1
    other.write_bytes(b"precious")
    last.unlink()
    last.symlink_to(other)
    checkpoint.save(tmp_path, 3, state(3), keep=1)
    assert checkpoint.load(last)["step"] == 3
    assert other.read_bytes() == b"precious"


def test_the_file_of_another_program_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="not a checkpoint of this program"):
        checkpoint.load(path)
    assert not checkpoint.is_checkpoint(checkpoint.read(path))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def test_a_file_from_before_pytorch_1_6_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_as_before_1_6({"weight": torch.ones(3)}, path)
    assert not zipfile.is_zipfile(path)
    assert torch.equal(checkpoint.read(path)["weight"], torch.ones(3))


class Code:
    """What a file may contain and must not run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


class Command:
    """Of a module that PyTorch refuses by its name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("save", [torch.save, save_as_before_1_6])
@pytest.mark.parametrize(
    "content",
    [Code(), {"state_dict": {}, "args": Command()}, {"state_dict": {}, "best_acc1": numpy.float64(3)}],
    ids=["code", "command", "numpy"],
)
def test_code_in_a_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, save: Callable[..., None], protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    save(content, path, pickle_protocol=protocol)
    # PyTorch gives up protocol 4 at its first byte.
    reason = "holds .*, which is code, not weights; nothing was loaded" if protocol == 2 else "not a file of weights"
    with pytest.raises(InputError, match=rf"weights.pth: {reason}") as caught:
        checkpoint.read(path, "file of weights")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100)])
def test_a_file_of_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a file of weights, or a damaged one"):
        checkpoint.read(path, "file of weights")
    with pytest.raises(InputError, match=r"none.pth: no such file of weights"):
        checkpoint.read(tmp_path / "none.pth", "file of weights")


def test_flags_that_a_trainer_saved_with_the_weights_are_read(tmp_path: Path) -> None:
    """As torchvision's references and timm save them; what a Namespace holds is checked as everything else."""
    path = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.ones(3)}, "epoch": 3, "args": argparse.Namespace(lr=0.1, amp=None)}, path)
    assert torch.equal(checkpoint.read(path)["model"]["weight"], torch.ones(3))
    torch.save({"model": {"weight": torch.ones(3)}, "args": argparse.Namespace(lr=Code())}, path)
    with pytest.raises(InputError, match="which is code, not weights"):
        checkpoint.read(path)


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.arange(1000.0)}, path)
    content = checkpoint.read(path, "file of weights")
    assert not checkpoint.is_checkpoint(content)
    assert torch.equal(content["weight"], torch.arange(1000.0))
    data = path.read_bytes()
    for damaged in (data[:-100], data[:20], data[:8] + b"{" + b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model.safetensors: not a file of weights, or a damaged one"):
            checkpoint.read(path, "file of weights")


def deflated(source: Path, path: Path) -> Path:
    """The file that torch.save wrote, compressed."""
    with zipfile.ZipFile(source) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    return path


def test_an_archive_that_unpacks_to_a_thousand_times_its_size(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1 << 24)}, "config": {}}, tmp_path / "plain.pt")
    path = tmp_path / "packed.pt"
    deflated(tmp_path / "plain.pt", path)
    with memory_below(1 << 24), pytest.raises(InputError, match="not a checkpoint, or a damaged one"):
        checkpoint.load(path)


def test_settings_that_unfold_without_end(tmp_path: Path) -> None:
    """Each list holds the one before twice: 70 of them are a few kilobytes in the file, and more than any memory when
    they are written out."""
    nested: Any = [0]
    for _ in range(70):
        nested = [nested, nested]
    torch.save({"model": {}, "config": {"lr": nested}, "position": {}}, tmp_path / "some.pt")
    config = TrainConfig(resume=str(tmp_path / "some.pt"))
    with memory_below(1 << 28), pytest.raises(InputError, match="values without end"):
        find(config, Meeting(World(), 1))


def end_twice(packed: bytes, small: bytes) -> bytes:
    """`zipfile` takes the sign of an end at the very end for a damaged file, torch goes on to look for one."""
    return packed + b"PK\5\6"


def another_directory(packed: bytes, small: bytes) -> bytes:
    """`zipfile` takes the directory that is right before the end, torch the one that the end names."""
    end = packed[-22:]
    assert end.startswith(b"PK\5\6")
    start, length = int.from_bytes(small[-6:-2], "little"), int.from_bytes(small[-10:-6], "little")
    directory = small[start : start + length]
    return packed[:-22] + small[:start] + directory + end[:12] + length.to_bytes(4, "little") + end[16:]


@pytest.mark.parametrize("confuse", [end_twice, another_directory])
def test_an_archive_that_torch_reads_and_zipfile_reads_otherwise(
    tmp_path: Path, confuse: Callable[[bytes, bytes], bytes]
) -> None:
    torch.save({"model": {"weight": torch.zeros(1 << 26)}, "config": {}}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "small.zip", "w") as small:
        small.writestr("archive/data.pkl", b"small")
    packed = deflated(tmp_path / "plain.pt", tmp_path / "packed.pt")
    path = tmp_path / "some.pt"
    path.write_bytes(confuse(packed.read_bytes(), (tmp_path / "small.zip").read_bytes()))
    with memory_below(1 << 26), pytest.raises(InputError, match="not a checkpoint, or a damaged one"):
        checkpoint.load(path)


def growing(call: bytes) -> bytes:
    """The pickle of a checkpoint with what a call returns."""
    return b"\x80\x02}(U\x05model}U\x06config}U\x04rest" + call + b"u."


GROWING = {
    "bytearray": b"c__builtin__\nbytearray\n\x8a\x05" + (1 << 30).to_bytes(5, "little") + b"\x85R",
    "_codecs": b"c_codecs\nencode\n" * 25 + b"U\x01xU\x06latin1\x86R" + b"U\x03hex\x86R" * 24,
}


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("in_archive", [True, False])
def test_a_call_that_makes_gigabytes_of_nothing(tmp_path: Path, name: str, in_archive: bool) -> None:
    path, content = tmp_path / "some.pt", growing(GROWING[name])
    if in_archive:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    else:
        save_as_before_1_6({"model": {}, "config": {}}, path)
        last = pickle.dumps({"model": {}, "config": {}}, 2)
        assert last in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(last, content))
    with memory_below(1 << 24), pytest.raises(InputError, match=f"holds .*{name}, which is code, not weights"):
        checkpoint.load(path)


def test_an_archive_that_tarfile_reads_for_hours(tmp_path: Path) -> None:
    """torch.load takes a file for a tar archive first, as PyTorch once wrote them. Unless it is refused before, this
    test does not end."""
    digits = tarfile.TarInfo("metadata")
    digits.type, digits.size = tarfile.XHDTYPE, 1 << 20
    path = tmp_path / "some.pt"
    path.write_bytes(digits.tobuf(tarfile.USTAR_FORMAT) + b"1" * digits.size + bytes(1024))
    with pytest.raises(InputError, match="not a checkpoint, or a damaged one"):
        checkpoint.load(path)


def settings(model: str = "pyramidnet", *options: str) -> dict[str, Any]:
    return TrainConfig(model=model).as_dict() | {"model_kwargs": list(options)}


@pytest.mark.parametrize("option", ["depth=1000002", f"depth={10**20}"])
def test_options_that_build_a_model_without_end(tmp_path: Path, option: str) -> None:
    torch.save({"model": {}, "config": settings("pyramidnet", option)}, tmp_path / "some.pt")
    with pytest.raises(InputError, match="more than 32768 parameter tensors"):
        finished.load(tmp_path / "some.pt", None, device="cpu")


def weights_of(repeat: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    network = models.create("torchvision/resnet18", 10).network
    return {name: repeat(value) if name.startswith("fc.") else value for name, value in network.state_dict().items()}


REPEATED: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "one row": (lambda value: value[:1].clone().expand(1 << 40, *value.shape[1:]), "repeat their values"),
    "no values": (lambda value: torch.empty(1 << 40, *value.shape[1:], device="meta"), "without values"),
    "no columns": (
        lambda value: torch.empty(1 << 30, *(0 for _ in value.shape[1:])),
        "repeat their values|does not fit",
    ),
}


@pytest.mark.parametrize("name", REPEATED)
@pytest.mark.parametrize("in_checkpoint", [True, False])
def test_outputs_that_no_memory_holds(tmp_path: Path, name: str, in_checkpoint: bool) -> None:
    """A last layer of a trillion outputs, from one: the model would be built in its size."""
    repeat, message = REPEATED[name]
    if name == "no columns":
        weights = weights_of(lambda value: repeat(value) if value.dim() == 2 else value)
    else:
        weights = weights_of(repeat)
    content = {"model": weights, "config": settings("torchvision/resnet18")} if in_checkpoint else weights
    torch.save(content, tmp_path / "some.pt")
    with memory_below(1 << 26), pytest.raises(InputError, match=message):
        finished.load(tmp_path / "some.pt", "torchvision/resnet18", device="cpu")


def test_a_model_that_no_memory_holds(tmp_path: Path) -> None:
    """Its options make it large, and the file has none of its weights."""
    config = settings("pyramidnet", "alpha=100000000.0")
    torch.save({"model": {"conv.weight": torch.zeros(2)}, "config": config}, tmp_path / "some.pt")
    with pytest.raises(InputError, match="does not fit the model"):
        finished.load(tmp_path / "some.pt", None, device="cpu")


@pytest.mark.parametrize("name", ["\x1b]0;title\x07", "two\nlines", "\ud800"])
def test_names_of_classes_that_a_terminal_obeys_or_no_file_takes(tmp_path: Path, name: str) -> None:
    content = {"model": {}, "config": {}, "description": {"classes": ["n01440764", name]}}
    torch.save(content, tmp_path / "some.pt")
    with pytest.raises(InputError, match=r"some.pt: '.*' as the name of a class") as raised:
        checkpoint.read(tmp_path / "some.pt")
    assert str(raised.value).isprintable()
