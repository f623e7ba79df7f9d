"""train/run.py as users start it: whole runs on real data, in one process and in several."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import loaders
from pipeline.errors import InputError
from pipeline.order.plan import Plan
from pipeline.storage.split import open_split
from tests.helpers.processes import run_ranks
from tests.helpers.runs import SMALL, indices, metrics, refused, run_here, train
from tests.helpers.scripts import ROOT, finish, result_of, start
from train.config import TrainConfig
from train.process import Process
from train.world import World


def test_a_run_writes_everything_a_user_looks_for(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    result = train("--data", dataset, *SMALL, "--epochs", 2, "--run-dir", run_dir, "--loader", "torch", capsys=capsys)
    expected = {"top1", "top5", "evaluated", "loss", "weights", "images_per_s", "seconds", "loader", "run_dir"}
    assert result.keys() == expected
    assert result["evaluated"] == 19
    assert result["images_per_s"] > 0
    written = json.loads((run_dir / "result.json").read_text())
    assert result.items() <= written.items()
    assert "waiting for data included" in written["images_per_s_definition"]
    assert written["limited_by"].endswith("of the time was spent waiting for batches")
    assert json.loads((run_dir / "config.json").read_text())["model"] == "torchvision/resnet18"
    assert [row["epoch"] for row in metrics(run_dir, "eval")] == [1, 2]
    assert all(0 <= row["data_wait"] <= 1 for row in metrics(run_dir, "train"))
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((run_dir / "tensorboard").iterdir())
    state = torch.load(run_dir / "checkpoints" / "step-00000022.pt", weights_only=True)
    expected = {"model", "optimizer", "scheduler", "scaler", "early_stopping", "ema", "rng", "position", "config"}
    expected |= {"description"}
    assert state.keys() == expected
    assert state["position"] == {
        "epoch": 2,
        "batch": 0,
        "step": 22,
        "global_batch": 4,
        "samples": 47,
        "order_version": 1,
    }
    # Resumed when everything is done, as after a kill at the very end, it has the same result.
    again = ["--data", dataset, *SMALL, "--epochs", 2, "--run-dir", run_dir, "--loader", "torch", "--resume", "auto"]
    assert train(*again, capsys=capsys)["top1"] == result["top1"]


def test_the_named_steps_are_traced(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert [json.loads(line)["result"]["evaluated"] for line in results] == [19], "only the main rank prints it"
    assert train(*common, "--run-dir", one, capsys=capsys)["evaluated"] == 19
    halves = zip(indices(two, 0), indices(two, 1), strict=True)
    assert indices(one) == [first + second for first, second in halves]


@pytest.mark.parametrize("loader", [name for name in loaders.names() if name != "synthetic"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loader: str
) -> None:
    # A network with dropout, so that random numbers matter.
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


def test_evaluate_gives_the_result_of_the_training_run(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    common = ["--data", dataset, *SMALL, "--loader", "torch"]
    trained = train(*common, "--epochs", 1, "--run-dir", run_dir, capsys=capsys)
    checkpoint = run_dir / "checkpoints" / "step-00000011.pt"
    evaluated = train(*common, "--evaluate", checkpoint, capsys=capsys)
    for key in ("top1", "top5", "evaluated", "loss", "run_dir"):
        assert evaluated[key] == trained[key]
    # Without --resolution: the checkpoint knows what it was trained at.
    plain = ["--data", dataset, "--model", "torchvision/resnet18", "--loader", "torch", "--evaluate", checkpoint]
    assert train(*plain, capsys=capsys)["top1"] == trained["top1"]
    shared = result_of(finish(start(*common, "--evaluate", checkpoint, "--nproc", 2, "--batch-size", 7)))
    assert (shared["top1"], shared["evaluated"]) == (trained["top1"], 19)


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
        ("flags", "message"),
        [
            (["--model", "bogus"], "--model bogus: unknown; there are alexnet, resnet152"),
            (["--model", "resnet15"], "--model resnet15: unknown; did you mean resnet152 or "),
            (["--model", "timm/resnet50.foo"], "--model timm/resnet50.foo: timm's resnet50 has no tag foo, only "),
            (["--loader", "webdatset"], "--loader webdatset: unknown; did you mean webdataset?; there are"),
            (["--learning_rate", 1], "--learning_rate: is --lr here (see"),
            (["--learning-rate", 1, "--mom", 1], "--learning-rate: is --lr here; --mom: is --momentum here (see"),
            (["--lr=abc"], "--lr abc: must be a number (see --help)"),
            (
                ["--data", "ftp://host/shards"],
                "ftp://host/shards: ftp:// is not read, only s3://, gs://, az://, http://",
            ),
            (["--data", "s3:/bucket/shards"], "s3:/bucket/shards: an address has two slashes: s3://bucket/shards"),
            (["--run-dir", "hf://user/run"], "hf://user/run: an address, where a path on this machine is wanted"),
            (
                ["--loader", "bogus"],
                "--loader bogus: unknown; there are dali, ffcv, synthetic, threads, torch, webdataset",
            ),
            (
                ["--progressive-resize", "0:16", "1:32", "--progressive-batch"],
                "--progressive-batch: joins batches of --accumulate, which is 1; give 2 or more",
            ),
            (["--batch-size", 48], "the global batch of 48 is larger than the 47 training images"),
            (["--batch-size", 24, "--nproc", 2], "the global batch of 48 is larger"),
            (
                ["--batch-size", 1],
                "--batch-size 1: torchvision/resnet18 cannot be trained on single images (",
            ),
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
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[object], message: str
    ) -> None:
        assert message in refused("--data", dataset, *SMALL, "--loader", "torch", *flags, capsys=capsys)
        assert not (tmp_path / "runs").exists()

    def test_compilation_without_a_compiler(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.delenv("CC", raising=False)
        message = refused("--data", dataset, *SMALL, "--device", "cpu", "--compile", capsys=capsys)
        assert message.startswith("error: --compile: torch.compile needs a compiler, and g++ is not on the PATH; ")

    def test_a_plateau_without_evaluations(
        self, imagenet_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "train").symlink_to(imagenet_folder / "train")
        message = refused("--data", tmp_path, *SMALL, "--lr-scheduler", "plateau", capsys=capsys)
        assert message == (f"error: --lr-scheduler plateau: needs evaluations, and {tmp_path} has no validation split")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA devices")
    def test_more_processes_than_devices(self, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refused("--data", dataset, *SMALL, "--device", "cuda", "--nproc", 2, capsys=capsys)
        assert message == "error: --nproc 2: this machine has 0 cuda device(s)"

    def test_a_checkpoint_of_another_model(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_dir = tmp_path / "run"
        common = ["--data", dataset, *SMALL, "--loader", "torch"]
        train(*common, "--epochs", 1, "--run-dir", run_dir, capsys=capsys)
        checkpoint = run_dir / "checkpoints" / "step-00000011.pt"
        message = refused(*common, "--model", "alexnet", "--evaluate", checkpoint, capsys=capsys)
        assert "a checkpoint of torchvision/resnet18, not of --model alexnet" in message
        assert "holds a run" in refused(*common, "--epochs", 1, "--run-dir", run_dir, capsys=capsys)

    def test_an_image_that_one_rank_cannot_read(self, dataset_copy: Path, tmp_path: Path) -> None:
        split = open_split(dataset_copy, "train")
        first_batch = next(Plan(num_samples=split.num_samples, batch_size=2, rank=1, world_size=2).batches(0))
        bad = int(first_batch[0])
        with split.shards.shard_of(bad).open("r+b") as shard:
            shard.seek(split.shards.extent(bad)[0] + 512)
            shard.write(bytes(200))
        flags = ["--loader", "torch", "--batch-size", 2, "--nproc", 2, "--run-dir", tmp_path / "run"]
        done = finish(start("--data", dataset_copy, *SMALL, *flags))
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
        assert run_here(*other) == 2
        assert "its global batch is 4, not 8; give --batch-size 4" in capsys.readouterr().err
        older = run_dir / "checkpoints" / "step-00000010.pt"
        assert run_here(*common, "--resume", older) == 2
        assert "step-00000011.pt is newer" in capsys.readouterr().err
        assert (run_dir / "config.json").read_bytes() == config

    def test_a_batch_larger_than_the_dataset_under_torchrun(self, dataset: Path) -> None:
        """Without --nproc, only the processes know the world size."""
        config = TrainConfig(data=str(dataset), model="torchvision/resnet18", batch_size=24, loader="torch")
        process = Process(config, World(size=2), torch.device("cpu"))
        with (
            pytest.raises(InputError, match="the global batch of 48 is larger than the 47 training images"),
            process.open_loader("torch", open_split(dataset, "train"), training=True),
        ):
            pass

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100)])
    def test_a_file_that_is_not_a_checkpoint(
        self, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
    ) -> None:
        path = tmp_path / "bad.pt"
        path.write_bytes(content)
        message = refused("--data", dataset, *SMALL, "--loader", "torch", "--evaluate", path, capsys=capsys)
        assert f"{path}: not a checkpoint, or a damaged one" in message

    def test_a_damaged_beton(self, dataset_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (dataset_copy / "ffcv" / "train.beton").write_bytes(b"not a beton" * 5000)
        message = refused("--data", dataset_copy, *SMALL, "--loader", "ffcv", capsys=capsys)
        assert "train.beton: not a beton" in message


def test_importing_the_command_leaves_the_import_path_alone() -> None:
    # PyTorch 2.7 adds a folder of its own.
    program = "import sys, torch.distributed.nn; before = list(sys.path); import train.run; assert sys.path == before"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
