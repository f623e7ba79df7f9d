"""Tables of figures, as a GPU would give them."""

import json
from pathlib import Path
from typing import Any

from tools.bench.gpu.card import Engine, read_samples
from tools.bench.gpu.tables import text_of, threads_needed
from tools.bench.gpu.verdicts import is_true

MACHINE = {"cpu": "EPYC", "cores": "16", "device": "NVIDIA H100", "torch": "2.14", "driver_version": "580"}


def write(out: Path, part: str, figures: dict[str, Any], left_out: dict[str, str]) -> None:
    content = {"part": part, "machine": MACHINE, "command": "c", "date": "2027-01-01 10:00 UTC", "kept_with": {}}
    (out / f"{part}.json").write_text(json.dumps(content | {"figures": figures, "left_out": left_out}))


def loader(rate: float, **more: float) -> dict[str, Any]:
    return {"images_per_s": rate, "cores_used": 1.0, "cpu_us_per_image": 400.0, **more}


LOADERS = {
    "ffcv, tiles, 1 thread": loader(2500.0),
    "ffcv, tiles, 8 threads": loader(18000.0),
    "dali, tiles, 8 threads": loader(2000.0, jpeg_engine_percent=63.0),
}


def run(rate: float) -> dict[str, Any]:
    return {
        "loader_images_per_s": 18000.0, "model_images_per_s": rate, "images_per_s": rate * 0.99, "data_wait": 0.004,
        "share_of_matrix_rate": 0.123, "limited_by": "compute",
    }  # fmt: skip


def test_threads_are_interpolated_between_measured_ones() -> None:
    assert dict(threads_needed(LOADERS, 1250)) == {"ffcv, tiles": "0.5", "dali, tiles": "5.0"}
    assert dict(threads_needed(LOADERS, 10250)) == {"ffcv, tiles": "4.5", "dali, tiles": "more than 8"}


def test_everything_is_shown(tmp_path: Path) -> None:
    write(tmp_path, "loaders", LOADERS, {"FFCV, q90, 1 thread": "no time left"})
    matrix = {"tflops": 700.0, "side": 8192}
    write(
        tmp_path,
        "training",
        {"bf16 matrix product": matrix, "torchvision/resnet50, AMP": run(2600.0), "alexnet, AMP": run(9000.0)},
        {},
    )
    write(
        tmp_path, "tests", {"tests/gpu/a.py::b": {"outcome": "passed"}, "tests/gpu/a.py::c": {"outcome": "failed"}}, {}
    )
    case = {
        "predicted_images_per_s": 2500.0, "trained_images_per_s": 2000.0, "prediction_error": 0.25,
        "within_tolerance": False, "without_loading_images_per_s": 2100.0, "limited_by": "data", "is_true": False,
    }  # fmt: skip
    write(tmp_path, "verdicts", {"ResNet-50": case}, {})
    evaluations = [{"epoch": 1, "top1": 20.0, "top5": 40.0}]
    accuracy = {
        "finished": False, "epochs": 1.5, "seconds": 400.0, "flags": "--recipe r", "published_top1": 66.9, "top1": 20.0,
        "images_per_s": 8000.0, "data_wait": 0.01, "data_wait_max": 0.02, "evaluations": evaluations,
    }  # fmt: skip
    write(tmp_path, "accuracy", {"training": accuracy, "rate without loading": {"images_per_s": 8100.0}}, {})
    text = text_of(tmp_path)
    assert "models: not measured" in text
    assert "16 cores of EPYC, NVIDIA H100" in text
    assert "left out: FFCV, q90, 1 thread: no time left" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["ffcv,", "tiles", "2,500", "18,000", "1.0", "400.0"] in lines
    assert ["dali,", "tiles", "2,000", "1.0", "400.0", "63.0"] in lines
    assert ["ffcv,", "tiles", "1.0", "3.9"] in lines  # threads that feed 2,600 and 9,000 images/s
    assert ["dali,", "tiles", "more", "than", "8", "more", "than", "8"] in lines
    assert "published: torchvision/resnet50, 2,470 images/s on one NVIDIA A100 80GB (NVIDIA: mixed precision" in text
    assert "bf16 matrix product of 8192: 700 TFLOP/s" in text
    assert ["tests/gpu/a.py::c", "failed"] in lines
    assert ["ResNet-50", "2,500", "2,000", "+25.0%", "NO", "2,100", "data", "NO"] in lines
    assert "stopped after 1.50 epochs, 400 s in all calls" in text
    assert "top-1 20.00%; published 66.9%" in text


def test_a_verdict_is_true_where_loading_matters_as_it_says() -> None:
    assert is_true("data", 1.5)
    assert not is_true("data", 1.05)
    assert is_true("compute", 1.05)
    assert not is_true("compute", 1.5)
    assert is_true("undecided", 1.5) is None


def test_the_engines_samples_are_read() -> None:
    engine = Engine()
    read_samples("0\n63\n 41\n", engine)
    assert engine.figure == {"jpeg_engine_percent": 63.0}
    unknown = Engine()
    read_samples("[N/A]\n[N/A]\n", unknown)
    assert unknown.figure == {"jpeg_engine": "unknown: [N/A]"}
    assert Engine().figure == {"jpeg_engine": "unknown: the measurement was too short"}
