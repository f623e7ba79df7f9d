"""The profiling tool in situations that are made for real: does it name what limits the run?

Each situation is extreme, so that the verdict does not depend on how fast the machine happens to be.
"""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from images import jpeg_bytes, photograph

from pipeline.cli import run_command
from pipeline.formats.folder import FolderSamples
from tools.profile_throughput import ProfileSettings, profile_all

QUICK = ["--windows", "3", "--window-seconds", "0.1", "--device", "cpu", "--workers", "1"]
TINY = ["--model", "torchvision/squeezenet1_1", "--resolution", "32", "--batch-size", "4"]


def profiled(data: Path | str, out: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    """Run the command; what it wrote to profile.json, and its result line under "result"."""
    capsys.readouterr()
    assert run_command(profile_all, ProfileSettings, ["--data", str(data), "--out", str(out), *QUICK, *flags]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    return json.loads((out / "profile.json").read_text()) | {"result": result}


def words(found: dict[str, Any]) -> str:
    return found["verdicts"][0]["text"]


def limited_by(found: dict[str, Any]) -> str:
    return found["verdicts"][0]["limited_by"]


@pytest.fixture(scope="module")
def large_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 photographs of 3200 x 4000, not in tiles: each takes about 100 ms to decode."""
    root = tmp_path_factory.mktemp("large")
    data = jpeg_bytes(np.tile(photograph(800, 1000, seed=1), (4, 4, 1)))
    for number in range(8):
        path = root / "train" / f"n0000000{number % 2}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def test_a_tiny_model_is_limited_by_data(
    large_photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = profiled(large_photographs, tmp_path, capsys, "--loader", "torch", *TINY)
    assert limited_by(found) == "data"
    assert "Decode is" in words(found)
    (base,) = found["profiles"]
    assert base["step_s"]["waiting for data"] > 0.5 * sum(base["step_s"].values())
    assert "convert to tiles" in words(found)


def test_a_large_model_is_limited_by_compute(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--model", "torchvision/resnet50", "--resolution", "64", "--batch-size", "4", "--loader", "torch")
    found = profiled(dataset, tmp_path, capsys, *flags)
    assert limited_by(found) == "compute"
    (base,) = found["profiles"]
    whole = sum(base["step_s"].values())
    assert base["step_s"]["waiting for data"] < 0.3 * whole
    assert base["step_s"]["backward"] > base["step_s"]["forward"] > 0
    assert "Try" not in words(found)
    # The phases are the whole step: what the clock saw is what the rate says.
    assert whole == pytest.approx(4 / base["together"]["rate"]["median"], rel=0.3)


@pytest.mark.parametrize(("where", "expected"), [("reading", "storage"), ("decoding", "data")])
def test_a_loader_slowed_by_a_delay_is_limited_by_what_is_slow(
    where: str, expected: str, imagenet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """50 ms an image, in the workers too, which are forked from this process."""
    import pipeline.decode

    owner, name = (FolderSamples, "__getitem__") if where == "reading" else (pipeline.decode, "decode_image")
    original = getattr(owner, name)

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)
        return original(*arguments)

    monkeypatch.setattr(owner, name, slow)
    found = profiled(imagenet_folder, tmp_path, capsys, "--loader", "torch", *TINY)
    assert limited_by(found) == expected
    assert ("waits" if where == "reading" else "not for reading") in words(found)
    assert found["result"]["loaders"][0]["train_images_per_s"] <= 20


class SlowHandler(http.server.SimpleHTTPRequestHandler):
    """Sends 4 KiB at a time, with a pause after each."""

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while piece := source.read(4096):
            outputfile.write(piece)
            if self.path.endswith(".tar"):
                time.sleep(0.1)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def slow_server(dataset: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(SlowHandler, directory=str(dataset)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_slow_pipe_is_named(slow_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = profiled(slow_server, tmp_path, capsys, "--loader", "webdataset", *TINY)
    assert limited_by(found) == "storage"
    assert "for an image to be read" in words(found)


def test_cold_files_are_out_of_the_cache_when_they_are_measured(
    dataset_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = profiled(dataset_copy, tmp_path / "out", capsys, "--cold", "--loader", "torch", *TINY)
    (base,) = found["profiles"]
    assert base["left_in_cache"] is not None
    assert base["cold_parts"]["read_wait_s"] >= 0
    assert base["parts"]["parts_s"].keys() == base["cold_parts"]["parts_s"].keys()


def test_two_processes_wait_for_each_others_gradients(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = profiled(dataset, tmp_path, capsys, "--loader", "torch", *TINY, "--nproc", "2")
    (base,) = found["profiles"]
    assert base["nproc"] == 2
    assert base["step_s"]["all-reduce"] > 0
    assert base["together"]["rate"]["median"] > 0


class Links(HTMLParser):
    """What a page would load, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_sweeps_the_page_and_the_trace(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--loader", "torch,auto", "--sweep", "workers=1,2", "batch-size=4,8", "--trace")
    found = profiled(dataset, tmp_path, capsys, *TINY, *flags)
    measured = [(one["loader"], one["workers"], one["batch_size"]) for one in found["profiles"]]
    for loader in {"torch", found["profiles"][-1]["loader"]}:
        assert [row[1:] for row in measured if row[0] == loader] == [(1, 4), (2, 4), (1, 8)]
    for row in found["result"]["loaders"]:
        assert min(row[f"{what}_images_per_s"] for what in ("loader", "model", "train", "predicted")) > 0
    page = Links()
    page.feed((tmp_path / "profile.html").read_text())
    assert page.loaded == []
    assert page.tags.count("svg") == 2
    assert " ".join(found["verdicts"][0]["sentences"]) in page.text
    trace = json.loads((tmp_path / "trace-torch.json").read_text())
    assert any("convolution" in event.get("name", "") for event in trace["traceEvents"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loader", "bogus"], "--loader bogus: unknown"),
        (["--loader", ","], "--loader: name at least one"),
        (["--sweep", "workers"], "--sweep workers: is not like workers=1,2,4"),
        (["--sweep", "epochs=1,2"], "it can change workers, batch_size"),
        (["--sweep", "batch-size=0"], "--batch-size 0: must be at least 1"),
        (["--windows", "0"], "--windows must be at least 1"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], message: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(profile_all, ProfileSettings, ["--data", str(dataset), *flags]) == 2
    assert message in capsys.readouterr().err
