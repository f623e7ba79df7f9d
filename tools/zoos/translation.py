"""The zoos' command lines in our words: arguments for train/run.py, and variables for its environment."""

import argparse
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from pipeline.errors import InputError, did_you_mean
from pipeline.storage.manifest import MANIFEST
from tools.zoos.commands import ZOOS, Script, Zoo, case_name
from train.foreign_flags import ZOO_FLAGS

DEVICE_VARIABLE = "SLUICE_ZOO_DEVICE"
"""Runs the commands on another device than theirs: `cpu` rehearses a job on a machine that has none."""


@dataclass(frozen=True)
class Translation:
    """What starts train/run.py."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    """Variables to set."""
    remarks: list[str] = field(default_factory=list)
    """What to tell the user before."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


def _parser(prog: str) -> argparse.ArgumentParser:
    """All flags of ZOO_FLAGS, and the data as the first argument, as three of the trainers take it."""
    epilog = "Flags of train/run.py may follow after --, and win. docs/zoos.md says more."
    parser = _Parser(prog=prog, allow_abbrev=False, argument_default=argparse.SUPPRESS, epilog=epilog)
    parser.add_argument("folder", nargs="?", help="ImageNet, as --data")
    for flag in ZOO_FLAGS:
        if flag.takes_value:
            parser.add_argument(*flag.names, dest=flag.dest, metavar="X", help=flag.says)
        else:
            parser.add_argument(*flag.names, dest=flag.dest, action="store_const", const="", help=flag.says)
    return parser


def translate(
    model: str, command: str, arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> Translation:
    """A command of a zoo: `command` is the name of a shell script without .sh, or of the trainer, as main.py. Arguments
    after `--` are ours, and win. Raises InputError."""
    if model not in ZOOS:
        raise InputError(f"{model}: no such model{did_you_mean(model, ZOOS)}; there are {', '.join(ZOOS)}")
    zoo = ZOOS[model]
    if command != zoo.trainer and command not in zoo.scripts:
        known = [zoo.trainer, *zoo.scripts]
        hint = did_you_mean(command, known)
        raise InputError(f"{command}: no such command of {model}{hint}; there are {', '.join(known)}")
    theirs = list(arguments)
    ours: list[str] = []
    if "--" in theirs:
        place = theirs.index("--")
        theirs, ours = theirs[:place], theirs[place + 1 :]
    given = vars(_parser(f"{model}, {command}").parse_args(theirs))
    return _Command(model, zoo, command, given, environment).translated(ours)


class _Command:
    """A command of a zoo, parsed."""

    def __init__(
        self, model: str, zoo: Zoo, command: str, given: dict[str, str], environment: Mapping[str, str]
    ) -> None:
        self.model, self.zoo, self.given, self.environment = model, zoo, given, environment
        self.script: Script | None = zoo.scripts.get(command)
        self.variables: dict[str, str] = {}
        self.remarks: list[str] = []

    def translated(self, ours: list[str]) -> Translation:
        """The whole of it."""
        data = self._data()
        processes = self._processes()
        arguments = ["--recipe", self.zoo.recipe, "--data", data, "--device", self._device()]
        arguments += self._where(processes)
        arguments += self._numbers(processes)
        arguments += self._model()
        arguments += self._precision()
        arguments += self._weights()
        arguments += ["--log-format", self.zoo.log_format]
        if self.zoo.log_format == "ascend":
            arguments += [
                "--log-case",
                case_name(self.zoo, self._batch_size(), self._world_size(processes), self._kind()),
            ]
        if "prof" in self.given:
            arguments += ["--profile-steps", "5:6"]
        if expname := self.given.get("expname"):
            arguments += ["--run-dir", f"runs/{Path(expname).name}-{time.strftime('%Y%m%d-%H%M%S')}"]
        return Translation([*arguments, *ours], self.variables, self.remarks)

    # Numbers

    def _number(self, name: str, default: int) -> int:
        text = self.given.get(name, str(default))
        try:
            return int(text)
        except ValueError:
            flag = next(flag.names[0] for flag in ZOO_FLAGS if flag.dest == name)
            raise InputError(f"{flag} {text}: must be a whole number") from None

    def _batch_size(self) -> int:
        """As the trainer takes it."""
        return self._number("batch_size", self.script.batch_size if self.script else self.zoo.batch_size)

    def _numbers(self, processes: int) -> list[str]:
        """Batch, epochs, rates, workers, and all that is only named differently."""
        world_size, batch = self._world_size(processes), self._batch_size()
        each = batch // world_size if self.zoo.is_batch_global else batch
        if each < 1:
            raise InputError(f"--batch-size {batch}: is less than the {world_size} processes that it is divided by")
        arguments = ["--batch-size", str(each)]
        for flag in ZOO_FLAGS:
            if flag.becomes is not None and flag.dest != "data" and flag.dest in self.given:
                arguments += [flag.becomes, self.given[flag.dest]]
        source = self.script or self.zoo
        defaults = {"epochs": ("--epochs", source.epochs), "learning_rate": ("--lr", source.lr)}
        print_freq = self.zoo.print_freq
        if self.script is not None:
            print_freq = self.zoo.script_print_freq
            defaults["seed"] = "--seed", 49
            if self.script.max_step is not None:
                defaults["max_step"] = "--steps-per-epoch", self.script.max_step
        defaults["print_freq"] = "--print-freq", print_freq
        for name, (here, value) in defaults.items():
            if name not in self.given:
                arguments += [here, f"{value:g}"]
        if "workers" in self.given:
            cores = len(os.sched_getaffinity(0))
            share = math.ceil(self._number("workers", 4) / (processes if self.zoo.is_batch_global else 1))
            arguments += ["--workers", str(min(share, max(1, cores // processes)))]
        return arguments

    # Data and model

    def _data(self) -> str:
        data = self.given.get("folder") or self.given.get("data")
        if data is None and self.script is not None:
            data = self.zoo.script_data
        if data is None:
            raise InputError(f"{'--data_path' if self.script else 'the data'}: missing; give ImageNet's folder")
        if Path(data).is_dir() and not (Path(data) / MANIFEST).exists() and not self._is_later_rank():
            self.remarks.append(
                f"{data} is used as it is, a folder of images. Converted once, it is decoded 2.8 times as fast "
                f"(docs/loaders.md): tools/convert_imagenet.py --src {shlex.quote(data)} --dst DST, then give DST "
                f"instead"
            )
        return data

    def _is_later_rank(self) -> bool:
        """Whether this is one of several processes, and not the first."""
        return self.script is None and (self._rank_here() or self.environment.get("RANK", "0")) not in (0, "0")

    def _model(self) -> list[str]:
        if (arch := self.given.get("arch", self.model)) != self.model:
            raise InputError(f"-a {arch}: this command trains {self.model}; train/run.py --model takes others")
        if (dataset := self.given.get("dataset", "imagenet")) != "imagenet":
            raise InputError(f"--dataset {dataset}: only imagenet is trained here")
        if (net_type := self.given.get("net_type", "pyramidnet")) != "pyramidnet":
            raise InputError(
                f"--net_type {net_type}: only pyramidnet is trained here; train/run.py --model takes others"
            )
        shape = [f"{name}={self._number(name, 0)}" for name in ("depth", "alpha") if name in self.given]
        shape += ["block=basic"] if "no_bottleneck" in self.given else []
        if shape and self.model != "pyramidnet":
            raise InputError(f"--depth, --alpha: are of PyramidNet, not of {self.model}")
        return ["--model", "pyramidnet", "--model-kwargs", *shape] if shape else []

    def _precision(self) -> list[str]:
        """--amp and --loss-scale."""
        if "hf32" in self.given and "fp32" in self.given:
            raise InputError("--hf32 and --fp32: give one of them")
        for name, precision in (("hf32", "high"), ("fp32", "highest")):
            if name in self.given:
                return ["--amp", "off", "--float32", precision]
        by_flag = self.script is None and not self.zoo.always_amp
        uses_amp = "amp" in self.given if by_flag else True
        if self.given.get("opt_level", "O2").upper() == "O0":
            uses_amp = False
        arguments = ["--amp", "fp16" if uses_amp else "off"]
        if scale := self.given.get("loss_scale"):
            arguments += ["--loss-scale", "dynamic" if scale in ("dynamic", "None") or scale.startswith("-") else scale]
        return arguments

    # Weights to begin with

    def _kind(self) -> str:
        if "evaluate" in self.given:
            return "eval"
        return self.script.kind if self.script else "acc"

    def _weights(self) -> list[str]:
        evaluates = "evaluate" in self.given or (self.script is not None and self.script.evaluates)
        if evaluates:
            return ["--evaluate", self._checkpoint()]
        if self.script is not None and self.script.resume:
            return self._last_epoch(self._checkpoint())
        if "resume" in self.given:
            return self._resumed(self.given["resume"])
        return ["--pretrained", "checkpoint.pth.tar"] if "pretrained" in self.given else []

    def _checkpoint(self) -> str:
        """--resume; without it, theirs in this folder, or the newest best.pt of a run in it."""
        if path := self.given.get("resume"):
            return path
        for name in ("model_best.pth.tar", "checkpoints/model_best.pth.tar", "checkpoint.pth.tar"):
            if Path(name).is_file():
                return name
        found = sorted(Path("runs").glob(f"{self.model}-*/checkpoints/best.pt"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise InputError("--resume: missing; give a checkpoint, of Sluice or of the zoo")
        self.remarks.append(f"{found[-1]} is used: the newest of {self.model} here; --resume=FILE names another")
        return str(found[-1])

    def _resumed(self, path: str) -> list[str]:
        """A checkpoint of ours is resumed; one of the zoo gives the weights, and the rest of the epochs is trained."""
        from train import checkpoint  # here: it imports torch, which takes 2 s

        if checkpoint.is_checkpoint(checkpoint.read(Path(path))):
            return ["--resume", path]
        return self._last_epoch(path)

    def _last_epoch(self, path: str) -> list[str]:
        """The weights in a file, and the epochs that --start-epoch leaves, the last one by default: at the rate that
        the cosine has there. Of several, the rates after the first are those of a cosine from there."""
        epochs = self._number("epochs", self.script.epochs if self.script else self.zoo.epochs)
        start = self._number("start_epoch", epochs - 1)
        if not 0 <= start < epochs:
            raise InputError(f"--start-epoch {start}: must be below --epochs {epochs}")
        peak = float(self.given.get("learning_rate", self.script.lr if self.script else self.zoo.lr))
        rate = peak * 0.5 * (1 + math.cos(math.pi * start / epochs))
        return ["--finetune", path, "--epochs", str(epochs - start), "--lr", f"{rate:.6g}", "--warmup-epochs", "0"]

    # Devices and processes

    def _device(self) -> str:
        named = self.given.get("device", self.zoo.device).partition(":")[0]
        return self.environment.get(DEVICE_VARIABLE) or {"gpu": "cuda"}.get(named, named)

    def _devices(self) -> list[str]:
        """--device_list."""
        return [number.strip() for number in self.given.get("device_list", "").split(",") if number.strip()]

    def _machines(self) -> int:
        return max(1, self._number("world_size", 1)) if self.zoo.has_machines else 1

    def _processes(self) -> int:
        """On this machine."""
        if self._devices():
            return len(self._devices())
        if self.script is not None:
            return self.script.processes
        if self.model == "pyramidnet":
            return int(self.environment.get("LOCAL_WORLD_SIZE", "1"))
        if self.model == "pnasnet5large":
            return self._number("processes", 8)
        if "multiprocessing_distributed" in self.given:
            return int(self.environment.get("RANK_SIZE", "8"))
        return 1

    def _world_size(self, processes: int) -> int:
        if self.script is None and "RANK" in self.environment:  # under torchrun
            return int(self.environment.get("WORLD_SIZE", "1"))
        return processes * self._machines()

    def _where(self, processes: int) -> list[str]:
        """--nproc and how machines meet; or the variables of a process that is one of several."""
        rank_here = self._rank_here()
        if rank_here is None and (self.script is not None or "RANK" not in self.environment):
            self._choose_devices(processes)
            return ["--nproc", str(processes), *self._meeting()]
        if rank_here is not None:
            self._be_rank(rank_here, processes)
        return []

    def _rank_here(self) -> int | None:
        """The local rank where this command is one of several processes, which a loop in a script started."""
        if "local_rank" in self.given and self.model == "pnasnet5large":
            return self._number("local_rank", 0) if self._processes() > 1 else None
        if "multiprocessing_distributed" in self.given and "gpu" in self.given and self.script is None:
            return self._number("gpu", 0)
        return None

    def _be_rank(self, local_rank: int, processes: int) -> None:
        machines = self._machines()
        rank = self._number("rank", 0) * processes + local_rank
        self.variables |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(processes * machines),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": self.given.get("addr", "127.0.0.1") if machines > 1 else "127.0.0.1",
            "MASTER_PORT": str(self._port()),
        }

    def _port(self) -> int:
        """Theirs ignore the port of --dist-url on NPUs, for one in the program; here the flag counts."""
        port = urlsplit(self.given.get("dist_url", "")).port
        return self._number("master_port", port or self.zoo.port)

    def _meeting(self) -> list[str]:
        machines = self._machines()
        if machines == 1:
            return []
        if "local_addr" in self.given:
            self.variables["HCCL_IF_IP"] = self.given["local_addr"]
        if "addr" not in self.given:
            raise InputError("--master_addr: missing; several machines meet at the address of the first")
        endpoint = f"{self.given['addr']}:{self._port()}"
        return ["--nnodes", str(machines), "--node-rank", str(self._number("rank", 0)), "--rdzv-endpoint", endpoint]

    def _choose_devices(self, processes: int) -> None:
        """Of one process --device_id, --gpu or the variable of their scripts; of several --device_list."""
        chosen = ",".join(self._devices())
        if processes == 1:
            number = self.given.get("gpu", self.environment.get("ASCEND_DEVICE_ID", chosen or "0"))
            if not number.isdecimal():
                raise InputError(f"--device_id {number}: must be the number of a device")
            self.variables["ASCEND_DEVICE_ID"] = number
            chosen = number if number != "0" else ""
        if not chosen:
            return
        from train.device import DEVICE_TYPES  # here: it imports torch, which takes 2 s

        row = DEVICE_TYPES.get(self._device())
        if row is not None and row.visible_devices and row.visible_devices not in self.environment:
            self.variables[row.visible_devices] = chosen


def start(model: str, command: str, arguments: Sequence[str]) -> NoReturn:
    """Become train/run.py with the translated command: what started this process, torchrun say, goes on watching it."""
    try:
        translation = translate(model, command, arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for remark in translation.remarks:
        print(remark, file=sys.stderr, flush=True)
    program = str(Path(__file__).resolve().parents[2] / "train" / "run.py")
    words = [sys.executable, program, *translation.arguments]
    os.execve(sys.executable, words, {**os.environ, **translation.environment})
