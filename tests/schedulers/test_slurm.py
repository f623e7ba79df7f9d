"""Runs and conversions as jobs of a real Slurm, with the scripts of docs/clusters.md."""

import contextlib
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.files import files_in
from tests.helpers.runs import assert_same_end
from tests.helpers.scripts import ROOT, held
from tests.helpers.slurm import Cluster, Job

pytestmark = [pytest.mark.schedulers, pytest.mark.timeout(3600)]

TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")
Flags = Callable[[int], list[object]]
Undisturbed = Callable[[int], Path]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The scripts of the page, by name: train.sh; that with one task a machine, launch.sh, and without a signal before
    the time limit, unannounced.sh; convert.sh and merge.sh."""
    train, launching, convert, merge = re.findall(
        r"^```bash\n(.*?)^```$", (ROOT / "docs/clusters.md").read_text(), re.MULTILINE | re.DOTALL
    )
    launch, count = re.subn(r"^srun .*\n", lambda _: launching, train, flags=re.MULTILINE)
    assert count == 1
    unannounced, count = re.subn(" --signal=USR1@120", "", train)
    assert count == 1
    folder = tmp_path_factory.mktemp("scripts")
    texts = {"train": train, "launch": launch, "unannounced": unannounced, "convert": convert, "merge": merge}
    for name, text in texts.items():
        (folder / f"{name}.sh").write_text(text)
    return lambda name: folder / name


@pytest.fixture
def submit(slurm: Cluster, scripts: Callable[[str], Path]) -> Iterator[Callable[..., Job]]:
    """Submits a script; at the end of the test, no job is left."""
    jobs: list[Job] = []

    def submitted(name: str, *arguments: object, options: tuple[object, ...] = ()) -> Job:
        jobs.append(slurm.submit(scripts(name), *arguments, options=options))
        return jobs[-1]

    yield submitted
    for job in jobs:
        job.cancel()
    for job in jobs:
        job.end()


@pytest.mark.parametrize("options", [("--ntasks=2", "--nodes=1"), TWO_NODES], ids=["one node", "two nodes"])
def test_srun(
    submit: Callable[..., Job], flags: Flags, undisturbed: Undisturbed, tmp_path: Path, options: tuple[str]
) -> None:
    job = submit("train.sh", *flags(2), "--run-dir", tmp_path / "run", options=options)
    assert job.end() == "COMPLETED 0:0", job.log
    assert_same_end(undisturbed(2), tmp_path / "run")


def test_requeued_until_the_run_is_done(
    slurm: Cluster, submit: Callable[..., Job], flags: Flags, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """One job: it is stopped by --signal before its time is up, by a signal to its tasks, by one that the batch script
    and srun get, too; then it loses a node."""
    job = submit("train.sh", *flags(2), "--run-dir", tmp_path / "run", options=(*TWO_NODES, "--signal=USR1@20"))
    ways: list[Callable[[], object]] = [
        job.limit_to_a_minute,
        lambda: job.signal(signal.SIGUSR1),
        lambda: job.signal(signal.SIGUSR1, "--full"),
    ]
    for times, way in enumerate(ways, 1):
        job.wait_for_a_step(times)
        with held(job.ranks()[-1]):
            way()
        job.wait_for_requeue(times)
        job.limit("UNLIMITED")
        assert job.log.count("SIGUSR1: stopped after step") == times
    job.wait_for_a_step(4)
    assert job.field("NodeList") == "sluice[0-1]"
    slurm.lose_node("sluice1")
    try:
        job.wait_for_requeue(4)
        assert job.end() == "COMPLETED 0:0", job.log
        assert job.field("NodeList") == "sluice[0,2]"
    finally:
        slurm.start_node("sluice1")
        slurm.wait_for_nodes("sluice1")
    assert_same_end(undisturbed(2), tmp_path / "run")


def test_submitted_again_after_each_end(
    submit: Callable[..., Job], flags: Flags, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Killed on one node, srun killed, cancelled, out of time where nothing announced it, and at last done."""

    def started() -> Job:
        words = [*flags(2), "--run-dir", tmp_path / "run"]
        job = submit("unannounced.sh", *words, options=TWO_NODES)
        job.wait_for_a_step()
        return job

    job = started()
    job.ranks()[-1].kill()
    assert job.end() == "FAILED 137:0", job.log
    assert "Traceback" not in job.log
    job = started()
    kill_srun(job)
    assert job.end() == "FAILED 137:0", job.log
    assert job.ranks() == []
    for end, action in {"CANCELLED": Job.cancel, "TIMEOUT": Job.limit_to_a_minute}.items():
        job = started()
        with held(job.ranks()[-1]):
            action(job)
        assert job.end().startswith(end), job.log
        assert "SIGTERM: stopped after step" in job.log
    job = started()
    assert job.end() == "COMPLETED 0:0", job.log
    assert_same_end(undisturbed(2), tmp_path / "run")


def kill_srun(job: Job) -> None:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "srun" and process.environ().get("SLURM_JOB_ID") == job.number:
                process.kill()


def test_one_task_a_machine_starts_the_others(
    submit: Callable[..., Job], flags: Flags, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A process that dies on one node is restarted; a signal of Slurm stops all four."""
    words = ["--nproc", 2, "--max-restarts", 1, *flags(4), "--run-dir", tmp_path / "run"]
    job = submit("launch.sh", *words, options=TWO_NODES)
    job.wait_for_a_step()
    job.ranks()[-1].kill()
    job.wait_for_a_step(2)
    with held(job.ranks()[-1]):
        job.signal(signal.SIGUSR1)
    job.wait_for_requeue(1)
    assert job.end() == "COMPLETED 0:0", job.log
    assert "rank 3 was killed by SIGKILL" in job.log
    assert "SIGUSR1: stopped after step" in job.log
    assert_same_end(undisturbed(4), tmp_path / "run")


def test_bad_input_is_not_requeued(submit: Callable[..., Job], flags: Flags, tmp_path: Path) -> None:
    job = submit("train.sh", *flags(2), "--lr", -1, "--run-dir", tmp_path / "run", options=TWO_NODES)
    assert job.end() == "FAILED 2:0", job.log


def test_an_array_converts_as_one_machine_does(
    slurm: Cluster, submit: Callable[..., Job], imagenet_folder: Path, tiled_dataset: Path, tmp_path: Path
) -> None:
    labels = imagenet_folder / "val_labels.txt"
    words = ["--src", imagenet_folder, "--dst", tmp_path / "shards", "--val-labels", labels, "--shard-size", "100KB"]
    parts = submit("convert.sh", *words, options=("--array=1-3",))
    merge = submit("merge.sh", *words, options=(f"--dependency=afterok:{parts.number}",))
    assert merge.end() == "COMPLETED 0:0", merge.log
    assert parts.end() == "COMPLETED 0:0", parts.log
    assert files_in(tmp_path / "shards") == files_in(tiled_dataset)
