"""What the zoos' command lines become: processes, batches, rates, machines, devices, weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import parse
from pipeline.errors import InputError
from tools.zoos.commands import ZOOS
from tools.zoos.translation import DEVICE_VARIABLE, Translation, translate
from train.config import TrainConfig
from train.foreign_flags import ZOO_FLAGS
from train.recipes import starting_point


def translated(model: str, command: str, *flags: str, **environment: str) -> tuple[TrainConfig, Translation]:
    """The settings of the run that a command becomes, and how it is started."""
    translation = translate(model, command, flags, environment)
    return parse(TrainConfig, translation.arguments, starting_point(translation.arguments)), translation


@pytest.mark.parametrize(
    ("model", "script", "expected"),
    [
        ("alexnet", "train_full_1p", {"nproc": 1, "batch_size": 128, "epochs": 90, "lr": 0.01, "label_smoothing": 0.1}),
        ("alexnet", "train_full_8p", {"nproc": 8, "batch_size": 128, "epochs": 90, "lr": 0.04, "warmup_epochs": 0}),
        ("resnet152", "train_full_8p", {"nproc": 8, "batch_size": 256, "epochs": 140, "lr": 0.8, "warmup_epochs": 5}),
        ("resnet152", "train_performance_1p", {"nproc": 1, "batch_size": 256, "epochs": 2, "loss_scale": "1024"}),
        ("se_resnet50", "train_full_8p", {"nproc": 8, "batch_size": 128, "epochs": 100, "lr": 0.6, "amp": "fp16"}),
        ("pnasnet5large", "train_full_8p", {"nproc": 8, "batch_size": 32, "epochs": 90, "weight_decay": 4e-5}),
        ("pnasnet5large", "train_performance_8p", {"nproc": 8, "steps_per_epoch": 1000, "print_freq": 10}),
        ("pyramidnet", "train_sdaa_3rd", {"nproc": 4, "batch_size": 64, "lr": 0.5, "nesterov": True, "device": "sdaa"}),
    ],
)
def test_a_script_is_the_run_that_it_was(model: str, script: str, expected: dict[str, Any]) -> None:
    config, translation = translated(model, script, "--data_path=/data/imagenet")
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.data == "/data/imagenet"
    assert config.log_format == ZOOS[model].log_format
    assert translation.remarks == []  # there is no such folder to speak of


def test_flags_of_the_scripts() -> None:
    config, translation = translated(
        "alexnet", "train_full_1p", "--data_path=d", "--batch_size=64", "--train_epochs=3", "--device_id=5", "--hf32"
    )
    assert (config.batch_size, config.epochs, config.amp, config.float32) == (64, 3, "off", "high")
    assert config.log_case == "AlexNet_bs64_1p_acc"
    assert translation.environment == {"ASCEND_DEVICE_ID": "5", "ASCEND_RT_VISIBLE_DEVICES": "5"}
    assert translated("alexnet", "train_full_8p", "--data_path=d", "--fp32")[0].float32 == "highest"


def test_several_machines() -> None:
    flags = ["--data_path=d", "--batch_size=2048", "--nnodes=2", "--node_rank=1", "--master_addr=10.0.0.1"]
    config, translation = translated("se_resnet50", "train_performance_multinodes", *flags, "--local_addr=10.0.0.2")
    assert (config.nnodes, config.node_rank, config.nproc, config.batch_size) == (2, 1, 8, 128)
    assert config.rdzv_endpoint == "10.0.0.1:50009"
    assert translation.environment == {"HCCL_IF_IP": "10.0.0.2"}


def test_a_process_of_a_loop_is_one_rank() -> None:
    """As the scripts of SE-ResNet-50 and PNASNet start them, one for each device."""
    common = ["DATA", "--multiprocessing-distributed", "--world-size=2", "--rank=1", "--addr=10.0.0.1", "--amp"]
    config, translation = translated("se_resnet50", "main.py", *common, "--gpu=3", "--batch-size=2048", "--epochs=9")
    assert (config.nproc, config.batch_size, config.amp) == (1, 128, "fp16")
    assert translation.environment == {
        "RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "50009",
    }  # fmt: skip
    flags = ["--data", "DATA", "--world_size", "8", "--local_rank", "7", "--train-batch", "32"]
    config, translation = translated("pnasnet5large", "imagenet_fast.py", *flags)
    assert (config.batch_size, translation.environment["RANK"]) == (32, "7")


def test_without_gpu_the_trainer_starts_a_process_for_each_device() -> None:
    flags = [
        "DATA",
        "-a",
        "alexnet",
        "--multiprocessing-distributed",
        "--world-size=1",
        "--rank=0",
        "--batch-size=1024",
    ]
    config, _ = translated("alexnet", "main.py", *flags)
    assert (config.nproc, config.batch_size, config.amp) == (8, 128, "off")
    config, translation = translated("alexnet", "main.py", *flags, "--device_list=2,3", "--device=gpu")
    assert (config.nproc, config.batch_size, config.device) == (2, 512, "cuda")
    assert translation.environment == {"CUDA_VISIBLE_DEVICES": "2,3"}


def test_under_torchrun_it_is_one_of_its_processes() -> None:
    flags = ["--dataset", "imagenet", "--data", "d", "--net_type", "pyramidnet", "--depth", "164", "--alpha", "48"]
    environment = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}
    config, translation = translated("pyramidnet", "train.py", *flags, "--batch_size", "64", **environment)
    assert (config.nproc, config.batch_size, config.model_kwargs) == (1, 64, ("depth=164", "alpha=48"))
    assert translation.environment == {}


def test_the_device_may_be_another_and_ours_come_last() -> None:
    config, _ = translated(
        "alexnet", "train_full_8p", "--data_path=d", "--", "--amp", "bf16", **{DEVICE_VARIABLE: "cpu"}
    )
    assert (config.device, config.amp) == ("cpu", "bf16")


def test_finetuning_and_the_zoos_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = translated("pnasnet5large", "train_finetune_1p", "--data_path=d", "--resume=old.pth.tar")
    assert (config.finetune, config.epochs, config.steps_per_epoch) == (Path("old.pth.tar"), 1, 1000)
    assert config.lr == pytest.approx(0.4 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 90 / 91)).item()), rel=1e-4)
    with pytest.raises(InputError, match="--resume: missing; give a checkpoint"):
        translate("alexnet", "train_eval_8p", ["--data_path=d"], {})
    torch.save({"epoch": 88, "state_dict": {}}, "checkpoint.pth.tar")
    config, _ = translated("alexnet", "train_eval_8p", "--data_path=d")
    assert config.evaluate == Path("checkpoint.pth.tar")
    flags = ["d", "--resume", "checkpoint.pth.tar", "--start-epoch", "88", "--epochs", "90", "--learning-rate", "0.1"]
    assert translated("alexnet", "main.py", *flags)[0].epochs == 2


@pytest.mark.parametrize(
    ("model", "command", "flags", "message"),
    [
        ("alexnet", "train_full_8p", [], "--data_path: missing"),
        ("alexnet", "train_full_9p", [], "no such command of alexnet; did you mean train_full_8p"),
        ("alexnt", "main.py", [], "alexnt: no such model; did you mean alexnet"),
        ("resnet152", "main.py", ["d", "-a", "resnet50"], "-a resnet50: this command trains resnet152"),
        ("resnet152", "train_full_8p", ["--data_path=d", "--batch_size=4"], "less than the 8 processes"),
        ("resnet152", "train_full_8p", ["--data_path=d", "--batch_size=x"], "--batch-size x: must be a whole number"),
        ("resnet152", "train_full_8p", ["--data_path=d", "--hf32", "--fp32"], "give one of them"),
        ("resnet152", "train_full_8p", ["--data_path=d", "--bogus=1"], "unrecognized arguments: --bogus=1"),
        ("pyramidnet", "train.py", ["--data", "d", "--dataset", "cifar10"], "only imagenet is trained here"),
        ("se_resnet50", "train_performance_multinodes", ["--data_path=d", "--nnodes=2"], "--master_addr: missing"),
    ],
)
def test_what_cannot_be_translated_is_refused(model: str, command: str, flags: list[str], message: str) -> None:
    with pytest.raises(InputError) as raised:
        translate(model, command, flags, {})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_name_stands_in_the_table_twice() -> None:
    names = [name for flag in ZOO_FLAGS for name in flag.names]
    assert len(names) == len(set(names))
