"""Loading and training where the machine lacks what most machines have."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.runs import TINY, indices
from tests.helpers.runs import train as train_here
from tests.helpers.scripts import ROOT


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """No log on stderr."""


@pytest.fixture
def served(dataset: Path) -> Iterator[str]:
    """The address of a dataset on a real web server."""
    handler = functools.partial(Quiet, directory=str(dataset))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def run_with_shared_memory(size: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a mount namespace of its own, where /dev/shm is of this size."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to make a mount namespace")
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=200, check=False
    )


def test_streaming_with_little_shared_memory_without_locks_and_with_a_long_tmpdir(
    served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """/dev/shm is smaller than the batches that are prepared ahead, TMPDIR longer than the path of a Unix socket may be
    (108 bytes), and the file system has no locks: the batches are those of any machine."""
    long = tmp_path / ("long" * 30)
    long.mkdir()
    flags = ["--data", served, *TINY, "--loader", "webdataset", "--workers", 2, "--resolution", 128]
    flags += ["--epochs", 1, "--device", "cpu", "--log-indices", "--run-dir"]
    module = ("-m", "tests.helpers.poor_machine")
    done = run_with_shared_memory("256k", *module, *flags, tmp_path / "poor", TMPDIR=str(long))
    assert done.returncode == 0, done.stderr
    reason = "cannot be locked (No locks available); see that no other run writes to it"
    assert f"--run-dir {tmp_path / 'poor'}: {reason}" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    train_here(*flags, tmp_path / "usual", capsys=capsys)
    assert indices(tmp_path / "poor") == indices(tmp_path / "usual")
    rows = [(tmp_path / run / "metrics.jsonl").read_text().splitlines()[-1] for run in ("poor", "usual")]
    assert json.loads(rows[0])["loss"] == pytest.approx(json.loads(rows[1])["loss"], rel=1e-4)


FORKING = """
from pipeline.errors import InputError
from pipeline.loaders._dataloader import batch_loader

try:
    batch_loader([], 2)
except InputError as error:
    print(error)
"""


def test_without_any_shared_memory_the_error_names_it() -> None:
    done = run_with_shared_memory("4k", "-c", FORKING)
    assert (done.stdout, done.stderr) == (
        "--workers 2: loading processes need semaphores in /dev/shm, which are refused (No space left on device); "
        "enlarge it, or use --workers 0\n",
        "",
    )
