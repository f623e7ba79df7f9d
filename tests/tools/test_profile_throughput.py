"""The profiling tool in situations that are made for real: does it name what limits the run?

Each situation is extreme, so that the verdict does not depend on how fast the machine happens to be.
"""

import contextlib
import dataclasses
import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from images import jpeg_bytes, photograph

from pipeline.cli import parse, run_command
from pipeline.formats.folder import FolderSamples
from pipeline.plan import StreamPlan
from tools.profile_throughput import ProfileSettings, profile_all, starting_point
from train.config import TrainConfig
from train.stopping import STOP_SIGNALS

pytestmark = pytest.mark.alone

QUICK = ["--windows", "3", "--window-seconds", "0.1", "--device", "cpu", "--workers", "1"]
TINY = ["--model", "torchvision/squeezenet1_1", "--resolution", "32", "--batch-size", "4"]


def profiled(data: Path | str, out: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run the command; what it wrote to profile.json, and its result line under "result"."""
    capsys.readouterr()
    assert run_command(profile_all, ProfileSettings, ["--data", str(data), "--out", str(out), *QUICK, *flags]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    return json.loads((out / "profile.json").read_text()) | {"result": result}


def verdict(found: dict[str, Any], key: str = "text") -> str:
    return found["verdicts"][0][key]


def profiled_as(expected: str, *arguments: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Profile until the verdict is the expected one. Other programs may take the cores in the middle of a measurement,
    which is then rightly called unexplained; a wrong verdict stays wrong."""
    told = []
    for _ in range(3):
        found = profiled(*arguments, capsys=capsys)
        told.append(verdict(found))
        if verdict(found, "limited_by") == expected:
            return found
    pytest.fail(f"not {expected}, but {told}")


@pytest.fixture(scope="module")
def large_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 photographs of 3600 x 4500, not in tiles: each takes about 100 ms to decode."""
    root = tmp_path_factory.mktemp("large")
    data = jpeg_bytes(np.tile(photograph(600, 750, seed=1), (6, 6, 1)))
    for number in range(4):
        path = root / "train" / f"n0000000{number % 2}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The model computes in one thread: two would wait for each other, which takes CPU time too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_tiny_model_is_limited_by_data(
    large_photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = profiled_as("data", large_photographs, tmp_path, "--loader", "torch", *TINY, capsys=capsys)
    assert "Decode is" in verdict(found)
    (base,) = found["profiles"]
    assert base["step_s"]["waiting for data"] > 0.5 * sum(base["step_s"].values())
    assert "convert to tiles" in verdict(found)


def test_a_large_model_is_limited_by_compute(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--model", "torchvision/resnet50", "--resolution", "64", "--batch-size", "4", "--loader", "torch")
    found = profiled_as("compute", dataset, tmp_path, *flags, capsys=capsys)
    (base,) = found["profiles"]
    whole = sum(base["step_s"].values())
    assert base["step_s"]["waiting for data"] < 0.3 * whole
    assert base["step_s"]["backward"] > base["step_s"]["forward"] > 0
    assert "Try" not in verdict(found)
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
    found = profiled_as(expected, imagenet_folder, tmp_path, "--loader", "torch", *TINY, capsys=capsys)
    assert ("waits" if where == "reading" else "not for reading") in verdict(found)
    # 20 a second, and what had been made before the measurement began
    assert found["result"]["loaders"][0]["train_images_per_s"] < 25


class SlowHandler(http.server.SimpleHTTPRequestHandler):
    """Sends 600 kB of shards a second, over all connections."""

    line = threading.Lock()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while piece := source.read(4096):
            with self.line:
                outputfile.write(piece)
                time.sleep(0.0065 if self.path.endswith(".tar") else 0)

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


def test_a_slow_pipe_is_limited_by_storage(
    slow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A stream gives nothing until it has read what its shuffle holds back; here that is to be little of the data, as
    # it is with ImageNet.
    monkeypatch.setattr("pipeline.contract.StreamPlan", partial(StreamPlan, shuffle_buffer=4))
    flags = ("--loader", "webdataset", *TINY, "--window-seconds", "1")
    found = profiled_as("storage", slow_server, tmp_path, *flags, capsys=capsys)
    assert "waits" in verdict(found)


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder from whose disk this process and its children read no more than 200 kB a second, where the machine lets
    us have that (control groups of version 1, as root)."""
    root = Path("/sys/fs/cgroup/blkio")
    device = os.stat(tmp_path).st_dev
    limited = root / f"slow-disk-{os.getpid()}"
    before = [line.rpartition(":")[2] for line in Path("/proc/self/cgroup").read_text().split() if ":blkio:" in line]
    try:
        limited.mkdir()
        rate = f"{os.major(device)}:{os.minor(device)} 200000"
        (limited / "blkio.throttle.read_bps_device").write_text(rate)
    except OSError as error:
        with contextlib.suppress(OSError):
            limited.rmdir()
        pytest.skip(f"no disk can be made slow here: {error}")
    (limited / "cgroup.procs").write_text(str(os.getpid()))
    yield tmp_path
    (root / before[0].lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
    limited.rmdir()


def test_cold_files_on_a_slow_disk_are_limited_by_storage(
    slow_disk: Path, dataset_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = profiled_as("storage", dataset_copy, slow_disk / "out", "--cold", "--loader", "torch", *TINY, capsys=capsys)
    assert "waits" in verdict(found)
    assert "files in memory or on faster storage" in verdict(found)


def test_cold_files_are_out_of_the_cache_when_they_are_measured(
    dataset_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = profiled(dataset_copy, tmp_path / "out", "--cold", "--loader", "torch", *TINY, capsys=capsys)
    (base,) = found["profiles"]
    assert base["left_in_cache"] is not None
    assert base["cold_parts"]["read_wait_s"] >= 0
    assert base["parts"]["parts_s"].keys() == base["cold_parts"]["parts_s"].keys()


def test_two_processes_wait_for_each_others_gradients(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    found = profiled(dataset, tmp_path, "--loader", "torch", *TINY, "--nproc", "2", capsys=capsys)
    (base,) = found["profiles"]
    assert base["nproc"] == 2
    assert handlers == [signal.getsignal(number) for number in STOP_SIGNALS], "the launcher's do not stay"
    assert base["step_s"]["all-reduce"] > 0
    assert base["together"]["rate"]["median"] > 0


def test_a_run_is_measured_with_all_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    trained = TrainConfig(
        model="pyramidnet", model_kwargs=("depth=14", "alpha=8"), batch_size=8, accumulate=2, model_ema=True,
        mixup_alpha=0.2, run_dir=tmp_path, performance=9,
    )  # fmt: skip
    path.write_text(json.dumps(trained.as_dict()))
    words = ["--config", str(path), "--batch-size", "4"]
    settings = parse(ProfileSettings, words, starting_point(words))
    measured = settings.training_config("torch", {"workers": 3})
    changed = {"loader": "torch", "batch_size": 4, "workers": 3, "performance": None, "run_dir": None}
    assert measured == dataclasses.replace(trained, **changed)
    words = ["--recipe", "pnasnet5large-full"]
    assert parse(ProfileSettings, words, starting_point(words)).training_config("torch", {}).model == "pnasnet5large"


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
    flags = ("--loader", "torch,auto", "--sweep", "workers=1,2", "batch-size=4,8", "resolution=32,48", "--trace")
    found = profiled(dataset, tmp_path, *TINY, *flags, capsys=capsys)
    measured = [(one["loader"], one["workers"], one["batch_size"], one["resolution"]) for one in found["profiles"]]
    for loader in {"torch", found["profiles"][-1]["loader"]}:
        assert [row[1:] for row in measured if row[0] == loader] == [(1, 4, 32), (2, 4, 32), (1, 8, 32), (1, 4, 48)]
    for row in found["result"]["loaders"]:
        assert min(row[f"{what}_images_per_s"] for what in ("loader", "model", "train", "predicted")) > 0
    page = Links()
    page.feed((tmp_path / "profile.html").read_text())
    assert page.loaded == []
    assert page.tags.count("svg") == 3
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
        (["--window-seconds", "nan"], "--window-seconds a number above 0"),
        (["--out", "/dev/null/profile"], "--out /dev/null/profile: cannot be written"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], message: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(profile_all, ProfileSettings, ["--data", str(dataset), *flags]) == 2
    assert message in capsys.readouterr().err
