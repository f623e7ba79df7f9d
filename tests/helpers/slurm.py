"""A Slurm cluster on this machine: a controller, and nodes that are network namespaces with an address each."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.scripts import ROOT

SECONDS = 900
_NETWORK = "10.213.78"
_CONTROLLER = f"{_NETWORK}.254"
_BRIDGE = "sluice-slurm"
_CONFIGURATION = """
ClusterName=sluice
SlurmctldHost={host}({controller})
AuthType=auth/munge
# Without cred_expire, a job that is requeued waits for two minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Slurm's commands, and what a test wants to know of jobs and nodes."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder = folder
        self.nodes = [f"sluice{number}" for number in range(nodes)]
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        """Start munge, the controller and the nodes, and wait until all are idle."""
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        (self.folder / "state").mkdir()
        lines = [
            f"NodeName={name} NodeHostname={name} NodeAddr={_address(number)} CPUs=4 State=UNKNOWN"
            for number, name in enumerate(self.nodes)
        ]
        host = socket.gethostname().partition(".")[0]
        text = _CONFIGURATION.format(host=host, controller=_CONTROLLER, folder=self.folder, nodes="\n".join(lines))
        (self.folder / "slurm.conf").write_text(text)
        hosts = [f"{_address(number)} {name}" for number, name in enumerate(self.nodes)]
        (self.folder / "hosts").write_text("\n".join([Path("/etc/hosts").read_text(), *hosts, ""]))
        files = [
            f"--{name}={self.folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "socket", "pid-file")
        ]
        files += [f"--log-file={self.folder}/munge.log", f"--seed-file={self.folder}/munge.seed"]
        self._daemon("munged", "--foreground", *files)
        _wait(lambda: (self.folder / "munge.socket").exists(), "munged did not start")
        self._daemon("slurmctld", "-D")
        for name in self.nodes:
            self.start_node(name)
        self.wait_for_nodes(*self.nodes)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd."""
        # Not `ip netns exec`, which hides the control groups that slurmd looks for.
        shell = f"mount --bind {self.folder}/hosts /etc/hosts && exec slurmd -D -N {name}"
        self._daemon("nsenter", f"--net=/run/netns/{name}", "unshare", "--mount", "sh", "-c", shell)

    def wait_for_nodes(self, *names: str) -> None:
        """Wait until the nodes can take jobs."""
        _wait(lambda: {*names} <= {*self.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).split()},
              "some nodes are not idle")  # fmt: skip

    def _daemon(self, *words: str) -> None:
        with open(self.folder / "daemons.log", "ab") as file:
            self._daemons.append(subprocess.Popen(words, env=self.environment, stdout=file, stderr=file))

    def lose_node(self, name: str) -> None:
        """Kill everything that runs on a node, as if its power had failed, and tell the controller so. Without that, it
        would notice after SlurmdTimeout, five minutes."""
        _kill_all_in(name)
        self.command("scontrol", "update", f"nodename={name}", "state=down", "reason=lost")

    def stop(self) -> None:
        """Kill the daemons, and every process that any of them started."""
        for name in self.nodes:
            _kill_all_in(name)
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()

    def command(self, *words: object, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run([*map(str, words)], env=self.environment, capture_output=True, text=True, cwd=ROOT)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, script: Path, *arguments: object, options: tuple[object, ...] = ()) -> "Job":
        """Submit a batch script, with arguments of its own, from the repository's root."""
        output = self.folder / f"job-{time.monotonic_ns()}.log"
        words = ["sbatch", "--parsable", f"--output={output}", *options, script, *arguments]
        return Job(self, self.command(*words).strip(), output)


class Job:
    """A job of the cluster."""

    def __init__(self, cluster: Cluster, number: str, output: Path) -> None:
        self._cluster, self.number, self._output = cluster, number, output

    @property
    def log(self) -> str:
        """What its script and tasks have printed."""
        return self._output.read_text() if self._output.exists() else ""

    def field(self, name: str) -> str:
        """A field of its description, as `scontrol show job` has it."""
        description = self._cluster.command("scontrol", "show", "job", "-o", self.number)
        found = re.search(rf"(?:^| ){name}=(\S*)", description)
        assert found, description
        return found[1]

    def states(self) -> set[str]:
        """Its state; of an array, those of all its tasks."""
        description = self._cluster.command("scontrol", "show", "job", "-o", self.number)
        return {*re.findall(r" JobState=(\S*)", description)}

    def signal(self, number: signal.Signals, *options: str) -> None:
        """Signal its tasks, or with `--full` its batch script and all processes of its script, too."""
        self._cluster.command("scancel", f"--signal={number.name.removeprefix('SIG')}", *options, self.number)

    def cancel(self) -> None:
        self._cluster.command("scancel", self.number)

    def limit(self, minutes: int | str) -> None:
        """Change its time limit."""
        self._cluster.command("scontrol", "update", f"jobid={self.number}", f"timelimit={minutes}")

    def limit_to_a_minute(self) -> None:
        """Change its time limit to a minute from now, or two: Slurm counts whole ones."""
        *days, clock = self.field("RunTime").split("-")
        hours, minutes, _ = map(int, clock.split(":"))
        assert not days
        self.limit(hours * 60 + minutes + 2)

    def wait_for_a_step(self, runs: int = 1) -> None:
        """Wait until a step of training has been logged since the job was started for the `runs`-th time."""
        _wait(lambda: self._stepped(runs), lambda: f"no step of run {runs}: {self.states()}\n{self.log}")

    def _stepped(self, runs: int) -> bool:
        starts = self.log.split(" steps an epoch")
        return len(starts) > runs and re.search(r"^epoch .* step \d+ ", starts[runs], re.MULTILINE) is not None

    def wait_for_requeue(self, times: int) -> None:
        """Wait until it has been requeued so often."""
        _wait(lambda: self.field("Restarts") == str(times), lambda: f"not requeued {times} times\n{self.log}")

    def end(self, seconds: float = SECONDS) -> str:
        """Wait until it has ended. Returns its state and exit code, as in "FAILED 2:0"; of an array, its states."""
        unfinished = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED"}
        _wait(lambda: not self.states() & unfinished, lambda: f"{self.states()}\n{self.log}", seconds)
        (state,) = self.states()
        return f"{state} {self.field('ExitCode')}"

    def ranks(self) -> list[psutil.Process]:
        """The training processes, in the order of their ranks."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                variables, words = process.environ(), process.cmdline()
                if variables.get("SLURM_JOB_ID") != self.number or not "".join(words[1:2]).endswith("train/run.py"):
                    continue
                is_launcher = "--nproc" in words and "RANK" not in variables
                is_worker = _parent_of(process).cmdline() == words
                if not is_launcher and not is_worker:
                    found[int(variables.get("RANK", variables["SLURM_PROCID"]))] = process
        return [found[rank] for rank in sorted(found)]


def _parent_of(process: psutil.Process) -> psutil.Process:
    parent = process.parent()
    if parent is None:
        raise psutil.NoSuchProcess(process.pid)
    return parent


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[Cluster]:
    """A cluster with nodes sluice0, sluice1, ...; at the end of the block nothing is left of it. Skips the test where
    Slurm is missing."""
    missing = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' '.join(missing)}: not installed; make test-schedulers does it")
    with contextlib.ExitStack() as left:
        handler = signal.signal(signal.SIGTERM, signal.default_int_handler)  # `make` and CI end tests that way
        left.callback(signal.signal, signal.SIGTERM, handler)
        folder = Path(tempfile.mkdtemp(prefix="sluice-slurm-"))
        left.callback(shutil.rmtree, folder)
        folder.chmod(0o711)
        made = Cluster(folder, nodes)
        left.enter_context(_network(made.nodes))
        left.callback(made.stop)
        try:
            made.start()
        except AssertionError as error:
            logs = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))
            raise AssertionError(f"{error}\n{logs}") from None
        yield made


@contextlib.contextmanager
def _network(names: list[str]) -> Iterator[None]:
    """A bridge with the controller's address, and a namespace with an address for each name."""
    _remove_network(names)  # of tests that were killed
    try:
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("address", "add", f"{_CONTROLLER}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        for number, name in enumerate(names):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}-cable", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{name}-cable", "master", _BRIDGE, "up")
            _ip("-netns", name, "address", "add", f"{_address(number)}/24", "dev", "eth0")
            _ip("-netns", name, "link", "set", "eth0", "up")
            _ip("-netns", name, "link", "set", "lo", "up")
        yield
    finally:
        _remove_network(names)


def _remove_network(names: list[str]) -> None:
    """Kill what runs in the namespaces, and delete what there is of them and of the bridge."""
    for name in names:
        _kill_all_in(name)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    subprocess.run(["ip", "link", "delete", _BRIDGE], capture_output=True)


def _kill_all_in(name: str) -> None:
    done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    for pid in done.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _address(number: int) -> str:
    return f"{_NETWORK}.{number + 1}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _wait(happened: Callable[[], bool], message: str | Callable[[], str], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, message if isinstance(message, str) else message()
        time.sleep(0.1)
