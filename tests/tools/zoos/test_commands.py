"""The model zoos' command lines, with only the path changed, train; and what they leave, the zoos' parsers read."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import run_here
from tests.helpers.zoo_parsers import PYRAMIDNET_LOSS, RECORD_KEYS, ascend_results, tecorigin_records
from tools.zoos.commands import ZOOS, script_path
from tools.zoos.translation import DEVICE_VARIABLE, translate

ROOT = Path(__file__).resolve().parents[3]
ZOO_FOLDER = ROOT / "tools" / "zoos"

MAIN = (
    "main.py DATA {arch} --addr=10.0.0.2 --seed=49 --workers=128 --learning-rate=0.1 --mom=0.9 --weight-decay=1.0e-04 "
    "--print-freq=1 --dist-url=tcp://127.0.0.1:50000 --dist-backend hccl --device=npu --gpu=0 --epochs=1 "
    "--world-size=1 --rank=0 --batch-size=4 --loss-scale=1024 --opt-level=O2 --label-smoothing=0.1"
)
LINES = {
    "alexnet": [MAIN.format(arch="-a alexnet"), "--resolution 64"],
    "resnet152": [MAIN.format(arch=""), "--resolution 32"],
    "se_resnet50": [
        "train_performance_1p --data_path=DATA --batch_size=4 --device_id=0 --train_epochs=1",
        "--resolution 32",
    ],
    "pnasnet5large": [
        "imagenet_fast.py --data DATA --start-epoch 0 --max_step 2 --epochs 1 --wd 4e-5 --gamma 0.97 -c test/output/0/ "
        "-log train_0.log --world_size 1 --train-batch 2 --test-batch 2 --opt-level O2 --wd-all --warmup 0 "
        "--workers 16 --lr 0.4 --print-freq 1 --loss_scale 32 --use_aux --local_rank 0",
        "--resolution 96",
    ],
    "pyramidnet": [
        "train.py --dataset imagenet --data DATA --net_type pyramidnet --depth 164 --alpha 48 --batch_size 4 --lr 0.5 "
        "--epochs 1 --expname PyramidNet-200 --print-freq 1",
        "--resolution 32",
    ],
}
"""A command line of each zoo, and what makes it quick on a CPU."""


@pytest.fixture(scope="module")
def imagenet(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageNet that was never converted, as torchvision's ImageFolder reads it."""
    folder = tmp_path_factory.mktemp("unconverted")
    for split in ("train", "val"):
        (folder / split).symlink_to(imagenet_folder / "train")
    return folder


@pytest.fixture(autouse=True)
def _rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("model", LINES)
def test_a_command_line_of_each_zoo_trains(
    model: str, imagenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line, quick = LINES[model]
    command, *theirs = shlex.split(line.replace("DATA", str(imagenet)))
    ours = ["--amp", "off", "--steps-per-epoch", "2", "--workers", "1", *quick.split()]
    translation = translate(model, command, [*theirs, "--", *ours])
    assert "2.8 times as fast" in translation.remarks[0]
    for name, value in translation.environment.items():
        monkeypatch.setenv(name, value)
    assert run_here(*translation.arguments) == 0
    output = capsys.readouterr()
    if model == "pyramidnet":
        records = tecorigin_records(tmp_path)
        assert records[0].keys() == RECORD_KEYS | {"rank"}
        assert all(float(value) >= 0 for value in records[0].values())
        assert {"val.loss", "val.ips"} <= records[-1].keys()
        found = PYRAMIDNET_LOSS.findall((tmp_path / "train_sdaa_3rd.log").read_text())
        assert [step for step, _ in found] == ["0", "1"]
        assert (tmp_path / "train_sdaa_3rd.png").stat().st_size > 0
        assert next((tmp_path / "runs").iterdir()).name.startswith("PyramidNet-200-")
        return
    zoo = ZOOS[model]
    case = f"{zoo.network}_bs{2 if model == 'pnasnet5large' else 4}_1p_acc"
    results = ascend_results(tmp_path / "test" / "output" / "0", case, 0, output.out)
    assert results["Network"] == zoo.network
    assert output.out.splitlines()[-1].startswith('{"result"')
    if model == "se_resnet50":
        _evaluate(imagenet, tmp_path, results["TrainAccuracy"], capsys)


def _evaluate(imagenet: Path, tmp_path: Path, accuracy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The zoo's evaluation finds the newest checkpoint in the folder, and its accuracy is that of the training."""
    flags = [f"--data_path={imagenet}", "--batch_size=8", "--", "--nproc", "1", "--workers", "1", "--batch-size", "4"]
    translation = translate("se_resnet50", "train_eval_8p", flags)
    assert "best.pt is used" in translation.remarks[1]
    assert run_here(*translation.arguments, "--resolution", 32, "--amp", "off") == 0
    assert f"Final Train Accuracy : {accuracy}\n" in capsys.readouterr().out
    log = (tmp_path / "test" / "output" / "0" / "SE_Resnet50_bs8_8p_eval.log").read_text()
    assert f"TrainAccuracy = {accuracy}\n" in log


def test_every_script_of_the_table_is_there_and_no_other() -> None:
    expected = {script_path(model, name) for model, zoo in ZOOS.items() for name in zoo.scripts}
    assert {str(path.relative_to(ZOO_FOLDER)) for path in ZOO_FOLDER.glob("*/*/*.sh")} == expected
    for path in expected:
        model, name = Path(path).parts[0], Path(path).stem
        assert f'/run.sh" {model} {name} "$@"' in (ZOO_FOLDER / path).read_text()
        assert os.access(ZOO_FOLDER / path, os.X_OK)
    for model, zoo in ZOOS.items():
        assert f'start("{model}", "{zoo.trainer}", sys.argv[1:])' in (ZOO_FOLDER / model / zoo.trainer).read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="the zoos' scripts need bash")
def test_a_shell_script_starts_several_processes(imagenet: Path, tmp_path: Path) -> None:
    script = ZOO_FOLDER / "pyramidnet" / "scripts" / "train_sdaa_3rd.sh"
    flags = [f"--data_path={imagenet}", "--device_list=0,1", "--batch_size=4", "--max_step=2", "--"]
    small = ["--resolution", "32", "--amp", "off", "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(script), *flags, *small],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "2.8 times as fast" in done.stderr.splitlines()[0]
    assert "on 2 x cpu" in done.stderr
    assert {"train.loss", "train.ips"} <= tecorigin_records(tmp_path)[0].keys()
