"""Profiles of runs with a known limit: does the verdict name it?

Each limit is extreme, so that the verdict does not depend on the speed of the machine.
"""

import contextlib
import http.server
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.order.stream import StreamPlan
from pipeline.storage.folder import FolderSamples
from tests.helpers.images import jpeg_bytes, photograph, write_training_images
from tests.helpers.profiles import TINY, profiled

pytestmark = pytest.mark.measure


def profiled_as(limit: str, *arguments: Any, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """Profile until the run is found to be limited by `limit`. Returns the content of profile.json and the verdict.

    Other programs may take the cores during a measurement, which is then rightly called unexplained; a wrong verdict
    stays wrong.
    """
    texts = []
    for _ in range(3):
        content = profiled(*arguments, capsys=capsys)
        verdict = content["verdicts"][0]
        texts.append(verdict["text"])
        if verdict["limited_by"] == limit:
            return content, verdict["text"]
    pytest.fail(f"not {limit}, but {texts}")


@pytest.fixture(scope="module")
def large_photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 photographs of 3600 x 4500, not tiled: each takes about 100 ms to decode."""
    data = jpeg_bytes(np.tile(photograph(600, 750, seed=1), (6, 6, 1)))
    return write_training_images(tmp_path_factory.mktemp("large"), data, 4)


@pytest.mark.usefixtures("one_thread")
def test_a_tiny_model_is_limited_by_data(
    large_photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, text = profiled_as("data", large_photographs, tmp_path, "--loader", "torch", *TINY, capsys=capsys)
    assert "Decode is" in text
    (base,) = content["profiles"]
    assert base["step_s"]["waiting for data"] > 0.5 * sum(base["step_s"].values())
    assert "convert to tiles" in text


def test_a_large_model_is_limited_by_compute(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--model", "torchvision/resnet50", "--resolution", "64", "--batch-size", "4", "--loader", "torch")
    content, text = profiled_as("compute", dataset, tmp_path, *flags, capsys=capsys)
    (base,) = content["profiles"]
    whole = sum(base["step_s"].values())
    assert base["step_s"]["waiting for data"] < 0.3 * whole
    assert base["step_s"]["backward"] > base["step_s"]["forward"] > 0
    assert "Try" not in text
    # The phases make up the whole step.
    assert whole == pytest.approx(4 / base["together"]["rate"]["median"], rel=0.3)


@pytest.mark.parametrize(("where", "expected"), [("reading", "storage"), ("decoding", "data")])
def test_a_delay_in_the_loader_is_attributed(
    where: str, expected: str, imagenet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """50 ms per image, also in the workers, which are forked from this process."""
    import pipeline.pixels.decode

    owner, name = (FolderSamples, "__getitem__") if where == "reading" else (pipeline.pixels.decode, "decode_image")
    original = getattr(owner, name)

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)
        return original(*arguments)

    monkeypatch.setattr(owner, name, slow)
    content, text = profiled_as(expected, imagenet_folder, tmp_path, "--loader", "torch", *TINY, capsys=capsys)
    assert ("waits" if where == "reading" else "not for reads") in text
    # 20 per second, and the batches that were ready before the measurement began
    assert content["result"]["loaders"][0]["train_images_per_s"] < 25


class SlowHandler(http.server.SimpleHTTPRequestHandler):
    """Sends 600 kB of shards per second over all connections."""

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


def test_a_slow_server_is_limited_by_storage(
    slow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A stream yields nothing until its shuffle buffer is full. Here the buffer is made small compared to the data, as
    # it is with ImageNet.
    monkeypatch.setattr("pipeline.contract.StreamPlan", partial(StreamPlan, shuffle_buffer=4))
    flags = ("--loader", "webdataset", *TINY, "--window-seconds", "1")
    _, text = profiled_as("storage", slow_server, tmp_path, *flags, capsys=capsys)
    assert "waits" in text


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder from whose disk this process and its children read at most 200 kB per second, where the machine allows
    that (control groups of version 1, as root)."""
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
        pytest.skip(f"cannot slow down a disk here: {error}")
    (limited / "cgroup.procs").write_text(str(os.getpid()))
    yield tmp_path
    (root / before[0].lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
    limited.rmdir()


def test_cold_files_on_a_slow_disk_are_limited_by_storage(
    slow_disk: Path, dataset_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = profiled_as(
        "storage", dataset_copy, slow_disk / "out", "--cold", "--loader", "torch", *TINY, capsys=capsys
    )
    assert "waits" in text
    assert "files in memory or on faster storage" in text
