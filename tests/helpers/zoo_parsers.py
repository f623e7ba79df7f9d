"""What the model zoos' job systems read from what a training left: their scripts' own grep and awk, and JSON."""

import ast
import json
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

FPS_LAST_FIELD = "grep -a 'FPS' LOG | awk -F ' ' '{print $NF}' | awk 'END {print}'"
FPS_FIELD_11 = "grep -a 'FPS' LOG | awk -F ' ' '{print $11}' | awk 'END {print}'"
ACCURACY = "grep -a '* Acc@1' LOG | awk 'END {print}' | awk -F 'Acc@1' '{print $NF}' | awk -F ' ' '{print $1}'"
ACCURACY_OF_SE_RESNET = (
    "grep -a 'Acc@1' LOG | awk 'END {print}' | awk -F 'Acc@1 ' '{print $NF}' | awk -F ' ' '{print $1}'"
)
LOSSES = "grep Epoch: LOG | grep -v Test | awk -F 'Loss' '{print $NF}' | awk -F ' ' '{print $1}'"
LOSSES_OF_SE_RESNET = "grep Loss LOG | grep -v Test | awk -F 'Loss ' '{print $NF}' | awk -F ' ' '{print $1}'"
LAST_ROW = "tail -n 1 LOG | awk '{print $6, $5, $3}'"
"""PNASNet's: FPS, validation accuracy, validation loss."""

BLOCK = re.compile(
    r"-{18} Final result -{18}\n"
    r"(?:Final Performance images/sec : (?P<fps>[\d.]+)\n)?"
    r"Final Train Accuracy : (?P<accuracy>[\d.]+)\n"
    r"E2E Training Duration sec : (?P<seconds>\d+)\n"
)

KEYS = "Network RankSize BatchSize DeviceType CaseName ActualFPS TrainingTime TrainAccuracy ActualLoss E2ETrainingTime"
RECORD_KEYS = {
    "train.loss", "train.ips", "train.lr", "train.data_time", "train.compute_time", "train.fp_time", "train.bp_time",
    "train.grad_time",
}  # fmt: skip
PYRAMIDNET_LOSS = re.compile(r"Epoch: \[\d+/\d+\]\[(\d+)/\d+\].*?Loss [0-9.]+? \(([0-9.]+)\)")
"""plot_curve.py's."""


def read(pipeline: str, log: Path) -> list[str]:
    """The lines that a pipeline of a script prints about a log."""
    command = pipeline.replace("LOG", f"'{log}'")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()


def ascend_results(folder: Path, case: str, device: int, output: str) -> dict[str, str]:
    """The results in <Case>.log, after every reader of an Ascend script has found the same in the other places."""
    log = folder / f"train_{device}.log"
    block = BLOCK.search(output)
    assert block, output
    results = dict(line.split(" = ", 1) for line in (folder / f"{case}.log").read_text().splitlines())
    assert list(results)[:10] == KEYS.split()
    assert results["CaseName"] == case
    assert results["DeviceType"] == platform.machine()
    assert float(results["ActualFPS"]) > 0
    (fps,) = read(FPS_LAST_FIELD, log)
    assert [fps] == read(FPS_FIELD_11, log)
    assert results["ActualFPS"] == fps == block["fps"]
    (accuracy,) = read(ACCURACY, log)
    assert [accuracy] == read(ACCURACY_OF_SE_RESNET, log)
    assert results["TrainAccuracy"] == accuracy == block["accuracy"]
    losses = read(LOSSES, log)
    assert losses == read(LOSSES_OF_SE_RESNET, log)
    assert losses == (folder / f"train_{case}_loss.txt").read_text().splitlines()
    assert results["ActualLoss"] == losses[-1]
    (row,) = read(LAST_ROW, log)
    assert [float(value) for value in row.split()[:2]] == pytest.approx([float(fps), float(accuracy)], abs=1e-3)
    return results


def tecorigin_records(folder: Path) -> list[dict[str, Any]]:
    """The `data` of the LOG records, as plot scripts of that zoo read it."""
    lines = (folder / "dlloger_example.json").read_text().splitlines()
    assert all(line.startswith("TCAPPDLL ") for line in lines)
    records = [json.loads(line.removeprefix("TCAPPDLL ")) for line in lines]
    assert {record["type"] for record in records} == {"LOG", "METADATA"}
    return [ast.literal_eval(record["data"]) for record in records if record["type"] == "LOG"]
