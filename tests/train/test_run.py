"""train/run.py as users start it: real processes, real data, real signals of failure."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_ranks

from pipeline import loaders
from pipeline.cli import run_command
from pipeline.dataset import open_split
from pipeline.errors import InputError
from pipeline.plan import Plan
from train.config import TrainConfig
from train.recipes import starting_point
from train.run import main
from train.session import Session
from train.world import World

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--model", "torchvision/resnet18", "--resolution", "32", "--batch-size", "4", "--workers", "1"]


def start(*arguments: object, launcher: Sequence[str] = (sys.executable,)) -> subprocess.CompletedProcess[str]:
    words = [*launcher, str(ROOT / "train" / "run.py"), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, cwd=ROOT)


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["result"]


def train(*arguments: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Train in this process: as `start`, without the seconds that importing torch takes."""
    code = run_command(main, TrainConfig, [*map(str, arguments)], starting_point)
    output = capsys.readouterr()
    assert code == 0, output.err
    return json.loads(output.out.splitlines()[-1])["result"]


def refused(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """Start in this process what must be refused; the one line on stderr."""
    code = run_command(main, TrainConfig, [*map(str, arguments)], starting_point)
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 1, output.err
    return lines[0]


def indices(run_dir: Path, rank: int = 0) -> list[list[int]]:
    rows = (run_dir / f"indices-rank{rank}.jsonl").read_text().splitlines()
    return [json.loads(row)["indices"] for row in rows]


def test_a_run_leaves_everything_a_user_looks_for(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    result = train("--data", dataset, *SMALL, "--epochs", 2, "--run-dir", run_dir, "--loader", "torch", capsys=capsys)
    assert result.keys() == {"top1", "top5", "evaluated", "loss", "images_per_s", "seconds", "loader", "run_dir"}
    assert result["evaluated"] == 19
    assert result["images_per_s"] > 0
    written = json.loads((run_dir / "result.json").read_text())
    assert result.items() <= written.items()
    assert "waiting for data included" in written["images_per_s_definition"]
    assert written["limited_by"].endswith("of the time went into waiting for batches")
    assert json.loads((run_dir / "config.json").read_text())["model"] == "torchvision/resnet18"
    rows = [json.loads(row) for row in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows if row["kind"] == "eval"] == [1, 2]
    assert all(0 <= row["data_wait"] <= 1 for row in rows if row["kind"] == "train")
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run_dir / "tensorboard").iterdir())
    state = torch.load(run_dir / "checkpoints" / "step-00000022.pt", weights_only=True)
    expected = {"model", "optimizer", "scheduler", "scaler", "ema", "rng", "position", "config"}
    assert state.keys() == expected
    assert state["position"] == {"epoch": 2, "batch": 0, "step": 22, "global_batch": 4, "samples": 47}
    # Resumed when all is done, as after a kill at the very end: the result stays.
    again = ["--data", dataset, *SMALL, "--epochs", 2, "--run-dir", run_dir, "--loader", "torch", "--resume", "auto"]
    assert train(*again, capsys=capsys)["top1"] == result["top1"]


def test_chosen_steps_are_traced(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", dataset, *SMALL, "--epochs", 1, "--run-dir", tmp_path, "--loader", "synthetic"]
    train(*arguments, "--profile-steps", "3:5", capsys=capsys)
    events = json.loads((tmp_path / "trace-rank0.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "Optimizer.step#SGD.step" for event in events) == 2


def test_every_loader_trains_on_the_same_samples(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sequences = {}
    for name in loaders.names():
        if name == "synthetic":
            continue
        run_dir = tmp_path / name
        arguments = ["--data", dataset, *SMALL, "--epochs", 2, "--run-dir", run_dir, "--loader", name]
        assert train(*arguments, "--log-indices", capsys=capsys)["loader"] == name
        sequences[name] = indices(run_dir)
    assert len(sequences["torch"]) == 22
    assert all(sequence == sequences["torch"] for sequence in sequences.values())


def test_two_processes_share_the_batches_of_one(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same global batches, every validation image counted once, the same accuracy for the same weights."""
    two, one = tmp_path / "two", tmp_path / "one"
    common = ["--data", dataset, "--loader", "torch", "--epochs", 1, "--log-indices", *SMALL]
    log = tmp_path / "log"
    assert run_ranks(2, [*common, "--batch-size", 2, "--run-dir", two], log) == [0, 0], log.read_text()
    results = [line for line in log.read_text().splitlines() if line.startswith('{"result"')]
    assert [json.loads(line)["result"]["evaluated"] for line in results] == [19], "the main rank alone tells it"
    assert train(*common, "--run-dir", one, capsys=capsys)["evaluated"] == 19
    halves = zip(indices(two, 0), indices(two, 1), strict=True)
    assert indices(one) == [first + second for first, second in halves]


@pytest.mark.parametrize("loader", [name for name in loaders.names() if name != "synthetic"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loader: str
) -> None:
    # A network with dropout, so that the random state counts.
    common = ["--data", dataset, *SMALL, "--model", "torchvision/squeezenet1_1", "--epochs", 2, "--loader", loader]
    common += ["--checkpoint-every", 4, "--keep-checkpoints", 10]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(*common, "--run-dir", whole, capsys=capsys)
    (parts / "checkpoints").mkdir(parents=True)
    middle = "checkpoints/step-00000008.pt"
    (parts / middle).write_bytes((whole / middle).read_bytes())
    train(*common, "--run-dir", parts, "--resume", "auto", capsys=capsys)
    last = "checkpoints/step-00000022.pt"
    expected, resumed = (torch.load(folder / last, weights_only=True) for folder in (whole, parts))
    for name, weights in expected["model"].items():
        assert torch.equal(weights, resumed["model"][name]), name
    for number, moments in expected["optimizer"]["state"].items():
        assert torch.equal(moments["momentum_buffer"], resumed["optimizer"]["state"][number]["momentum_buffer"])


@pytest.mark.parametrize("flags", [["--amp", "bf16"], ["--amp", "fp16"], ["--no-channels-last"]])
def test_mixed_precision_and_memory_format_train(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    arguments = ["--data", dataset, *SMALL, "--epochs", 1, "--loader", "torch", "--run-dir", tmp_path / "run", *flags]
    assert 0 < train(*arguments, capsys=capsys)["loss"] < 100


def test_a_compiled_model_trains_and_evaluates_alike(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    common = ["--data", dataset, *SMALL, "--model", "torchvision/squeezenet1_1", "--loader", "torch"]
    trained = train(*common, "--compile", "--epochs", 1, "--run-dir", run_dir, capsys=capsys)
    evaluated = train(*common, "--evaluate", run_dir / "checkpoints" / "step-00000011.pt", capsys=capsys)
    assert evaluated["loss"] == pytest.approx(trained["loss"], rel=1e-4)


def test_evaluate_gives_what_training_saw(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    common = ["--data", dataset, *SMALL, "--loader", "torch"]
    trained = train(*common, "--epochs", 1, "--run-dir", run_dir, capsys=capsys)
    checkpoint = run_dir / "checkpoints" / "step-00000011.pt"
    evaluated = train(*common, "--evaluate", checkpoint, capsys=capsys)
    for key in ("top1", "top5", "evaluated", "loss", "run_dir"):
        assert evaluated[key] == trained[key]
    # --resolution and --batch-size as by default: the checkpoint knows what it was trained at.
    plain = ["--data", dataset, "--model", "torchvision/resnet18", "--loader", "torch", "--evaluate", checkpoint]
    assert train(*plain, capsys=capsys)["top1"] == trained["top1"]
    spread = result_of(start(*common, "--evaluate", checkpoint, "--nproc", 2, "--batch-size", 7))
    assert (spread["top1"], spread["evaluated"]) == (trained["top1"], 19)


def test_synthetic_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused("--data", tmp_path / "none", "--loader", "torch", *SMALL, capsys=capsys)
    assert "no such directory" in message
    message = refused(
        "--data", tmp_path / "none", "--loader", "synthetic", *SMALL, "--batch-size", 2_000_000, capsys=capsys
    )
    assert "1281167 training images" in message


class TestBadInput:
    """One line, exit code 2, and no run directory."""

    @pytest.fixture(autouse=True)
    def _in_empty_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize(
        ("flags", "told"),
        [
            (["--model", "bogus"], "--model bogus: unknown; there are alexnet, resnet152"),
            (["--loader", "bogus"], "--loader bogus: unknown; there are dali, ffcv, synthetic, torch, webdataset"),
            (["--batch-size", 48], "the global batch of 48 is larger than the 47 training images"),
            (["--batch-size", 24, "--nproc", 2], "the global batch of 48 is larger"),
            (["--batch-size", 0], "--batch-size 0: must be at least 1"),
            (["--epochs", "x"], "--epochs"),
            (["--amp", "fp8"], "--amp"),
            (["--bogus"], "--bogus"),
            (["--lr", -1], "--lr -1.0: must be above 0"),
            (["--resume", "none.pt"], "none.pt: no such checkpoint"),
            (["--evaluate", "none.pt"], "none.pt: no such checkpoint"),
            (["--resume", "auto"], "--resume auto"),
            (["--device", "npu"], "torch_npu"),
            (["--device", "sdaa"], "torch_sdaa"),
        ],
    )
    def test_wrong_flags(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[object], told: str
    ) -> None:
        assert told in refused("--data", dataset, *SMALL, "--loader", "torch", *flags, capsys=capsys)
        assert not (tmp_path / "runs").exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA devices")
    def test_more_processes_than_devices(self, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
        told = refused("--data", dataset, *SMALL, "--device", "cuda", "--nproc", 2, capsys=capsys)
        assert told == "error: --nproc 2: this machine has 0 cuda device(s)"

    def test_a_checkpoint_of_another_model(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_dir = tmp_path / "run"
        common = ["--data", dataset, *SMALL, "--loader", "torch"]
        train(*common, "--epochs", 1, "--run-dir", run_dir, capsys=capsys)
        checkpoint = run_dir / "checkpoints" / "step-00000011.pt"
        told = refused(*common, "--model", "alexnet", "--evaluate", checkpoint, capsys=capsys)
        assert "a checkpoint of torchvision/resnet18, not of --model alexnet" in told
        assert "holds a run" in refused(*common, "--epochs", 1, "--run-dir", run_dir, capsys=capsys)

    def test_an_image_that_one_rank_cannot_read(self, dataset_copy: Path, tmp_path: Path) -> None:
        split = open_split(dataset_copy, "train")
        first_batch = next(Plan(num_samples=split.num_samples, batch_size=2, rank=1, world_size=2).batches(0))
        bad = int(first_batch[0])
        with split.shards.shard_of(bad).open("r+b") as shard:
            shard.seek(split.shards.extent(bad)[0] + 512)
            shard.write(bytes(200))
        flags = ["--loader", "torch", "--batch-size", 2, "--nproc", 2, "--run-dir", tmp_path / "run"]
        done = start("--data", dataset_copy, *SMALL, *flags)
        assert done.returncode == 2, done.stderr
        assert f"sample {bad}: cannot be decoded" in done.stderr.splitlines()[-1]

    def test_a_position_that_would_mean_other_samples(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_dir = tmp_path / "run"
        common = ["--data", dataset, *SMALL, "--loader", "torch", "--run-dir", run_dir]
        train(*common, "--epochs", 1, "--checkpoint-every", 5, capsys=capsys)
        config = (run_dir / "config.json").read_bytes()
        other = [*common, "--batch-size", 8, "--resume", "auto"]
        assert run_command(main, TrainConfig, [*map(str, other)]) == 2
        assert "its global batch is 4, not 8; give --batch-size 4" in capsys.readouterr().err
        older = run_dir / "checkpoints" / "step-00000010.pt"
        assert run_command(main, TrainConfig, [*map(str, common), "--resume", str(older)]) == 2
        assert "step-00000011.pt is newer" in capsys.readouterr().err
        assert (run_dir / "config.json").read_bytes() == config

    def test_a_batch_larger_than_the_dataset_in_a_world_that_torchrun_made(self, dataset: Path) -> None:
        """There --nproc is not given, and the world is known only to the processes."""
        config = TrainConfig(data=str(dataset), model="torchvision/resnet18", batch_size=24, loader="torch")
        with (
            Session(config, World(size=2), torch.device("cpu")) as session,
            pytest.raises(InputError, match="the global batch of 48 is larger than the 47 training images"),
        ):
            session.open_training("torch", open_split(dataset, "train"))

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100)])
    def test_a_file_that_is_no_checkpoint(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
    ) -> None:
        path = tmp_path / "bad.pt"
        path.write_bytes(content)
        told = refused("--data", dataset, *SMALL, "--loader", "torch", "--evaluate", path, capsys=capsys)
        assert f"{path}: not a checkpoint, or a damaged one" in told

    def test_a_damaged_beton(self, dataset_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (dataset_copy / "ffcv" / "train.beton").write_bytes(b"not a beton" * 5000)
        told = refused("--data", dataset_copy, *SMALL, "--loader", "ffcv", capsys=capsys)
        assert "train.beton: not a beton" in told
