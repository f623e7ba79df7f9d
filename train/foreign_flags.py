"""Flags of other trainers: what they are here.

The one table of them. Error messages, the commands in tools/zoos/ that take the model zoos' flags, and the table in
docs/zoos.md follow from it.
"""

import re
from dataclasses import dataclass

_VALUE = r"(?: (?:[A-Z]+(?::[A-Z]+)?|\d[\d:]*|\w+=\w+|fp16|off|highest|high|ascend|pyramidnet)(?![\w-]))"
_CODE = re.compile(rf"--[a-z][\w-]*{_VALUE}*|[A-Z]+_[A-Z_]+")
"""A flag and its values, or a variable."""


@dataclass(frozen=True, kw_only=True)
class ZooFlag:
    """A flag of the model zoos' trainers or shell scripts."""

    names: tuple[str, ...]
    """Its names there."""
    says: str
    """The rest of a sentence that begins with the flag."""
    takes_value: bool = True
    becomes: str | None = None
    """The flag here that takes its value as it is. None: tools/zoos/translation.py says what becomes of it, or it needs
    nothing."""

    called: str = ""
    """What a command calls its value; without it, the first name without dashes."""

    @property
    def dest(self) -> str:
        """What a command calls its value."""
        return self.called or self.names[0].lstrip("-").replace("-", "_")

    @property
    def here(self) -> str:
        """What it says, as a cell of a table."""
        text = self.says.removeprefix("is ").replace(" here", "", 1)
        return _CODE.sub(r"`\g<0>`", text)


def _same(here: str, *names: str) -> ZooFlag:
    return ZooFlag(names=names, says=f"is {here} here", becomes=here)


def _other(says: str, *names: str) -> ZooFlag:
    return ZooFlag(names=names, says=says)


def _switch(says: str, *names: str) -> ZooFlag:
    return ZooFlag(names=names, says=says, takes_value=False)


ZOO_FLAGS = (
    _same("--data", "--data", "--data_path", "-d"),
    _other("is --model here", "--arch", "-a"),
    _other("is --model pyramidnet here", "--net_type"),
    _other("is --model-kwargs depth=N here", "--depth"),
    _other("is --model-kwargs alpha=N here", "--alpha"),
    _switch("is --model-kwargs block=basic here", "--no-bottleneck"),
    _switch("is --model-kwargs aux=True here, as in the recipe", "--use_aux"),
    _other("follows from --data here", "--dataset"),
    _other("is the beginning of the name of --run-dir here", "--expname"),
    _other("is --workers of each process here; no more than there are cores", "--workers", "-j"),
    _other(
        "is --batch-size of each process here; theirs is divided by the processes, but for PNASNet and PyramidNet",
        "--batch-size", "--batch_size", "--train-batch", "-b",
    ),
    _other("is --batch-size here", "--test-batch"),
    _same("--lr", "--learning-rate", "--lr"),
    _same("--momentum", "--mom", "--momentum"),
    _same("--weight-decay", "--weight-decay", "--wd"),
    _other("is the default here", "--gamma"),
    _switch("is the default here", "--wd-all"),
    _same("--epochs", "--epochs", "--train_epochs"),
    _other("follows from --resume here", "--start-epoch"),
    _same("--steps-per-epoch", "--max_step"),
    _same("--warmup-epochs", "--warm_up_epochs", "--warmup", "--wp"),
    _same("--label-smoothing", "--label-smoothing", "--ls"),
    _same("--seed", "--seed", "--manualSeed"),
    _same("--print-freq", "--print-freq", "-p"),
    _switch("is --amp fp16 here", "--amp"),
    _other("is --amp fp16 or bf16 here, and O0 is --amp off", "--opt-level"),
    _other("is --loss-scale here, and -1 is dynamic", "--loss-scale", "--loss_scale"),
    _switch("is --amp off --float32 high here", "--hf32"),
    _switch("is --amp off --float32 highest here", "--fp32"),
    _other("is --device here, and gpu is cuda", "--device"),
    _other("is a variable here: ASCEND_RT_VISIBLE_DEVICES lists the devices of --device", "--gpu", "--device_id"),
    _other("is that variable here, with --nproc their number", "--device_list"),
    _switch("is --nproc here, with a number of processes", "--multiprocessing-distributed"),
    _other("is --nnodes here", "--world-size", "--nnodes"),
    ZooFlag(names=("--world_size",), says="is --nproc here", called="processes"),
    _other("is --node-rank here", "--rank", "--node_rank"),
    _other("is set by --nproc here", "--local_rank"),
    _other("is --rdzv-endpoint HOST:PORT here", "--addr", "--master_addr"),
    _other("is --rdzv-endpoint HOST:PORT here", "--dist-url"),
    _other("is --rdzv-endpoint HOST:PORT here", "--master_port"),
    _other("is a variable here: HCCL_IF_IP", "--local_addr"),
    _other("follows from --device here", "--dist-backend"),
    _other("is --resume FILE here, or --finetune FILE with a file of the zoo", "--resume"),
    _switch("is --evaluate FILE here", "--evaluate", "-e"),
    _switch("is --pretrained FILE here", "--pretrained"),
    _switch("is --profile-steps 5:6 here", "--prof", "--run-prof"),
    _other("is --run-dir here", "--checkpoint", "-c"),
    _other("follows from --log-format ascend here", "-log"),
    _switch("is always done here", "--tensorboard"),
    _switch("is --print-freq here", "--no-verbose"),
    _switch("is --scale 1 1 --hflip 0 here", "--no-augment"),
)  # fmt: skip
"""Of Huawei's Ascend zoo (SE-ResNet-50, ResNet152, AlexNet_ID2663_for_PyTorch, PnasNet5Large) and of Tecorigin's
(PyramidNet): the trainers' own and their shell scripts'."""

_OWN = {
    "--data", "--workers", "--batch-size", "--lr", "--momentum", "--weight-decay", "--epochs", "--label-smoothing",
    "--seed", "--print-freq", "--amp", "--loss-scale", "--device", "--resume", "--evaluate", "--pretrained", "--nnodes",
}  # fmt: skip
"""Flags that have the same name here, so that no error speaks of them."""


def _is(ours: str) -> str:
    return f"is {ours} here"


FOREIGN_FLAGS: dict[str, str] = {name: flag.says for flag in ZOO_FLAGS for name in flag.names if name not in _OWN} | {
    "--port": _is("--rdzv-endpoint HOST:PORT"),
    "--data-path": _is("--data"),
    "--data-dir": _is("--data"),
    "--output-dir": _is("--run-dir"),
    "--output": _is("--run-dir"),
    "--test-only": _is("--evaluate FILE"),
    "--validate": _is("--evaluate FILE"),
    "--sched": _is("--lr-scheduler"),
    "--lr-warmup-epochs": _is("--warmup-epochs"),
    "--decay-epochs": _is("--lr-step-size"),
    "--decay-rate": _is("--lr-gamma; of a polynomial, --lr-power"),
    "--decay-milestones": _is("--lr-milestones"),
    "--patience-epochs": _is("--lr-patience"),
    "--lr-min": _is("--min-lr"),
    "--warmup-prefix": _is("--lr-decay-from warmup"),
    "--drop-path": _is("--model-kwargs drop_path_rate=RATE"),
    "--teacher-model": _is("--teacher"),
    "--teacher-path": _is("--teacher-weights"),
    "--distillation-type": _is("--distillation"),
    "--train-crop-size": _is("--resolution"),
    "--warmup-lr": _is("--lr-warmup-decay, as a share of --lr"),
    "--sched-on-updates": _is("--lr-updates step"),
    "--train-interpolation": _is("--interpolation"),
    "--val-resize-size": _is("--val-resize"),
    "--val-crop-size": _is("--val-crop"),
    "--smoothing": _is("--label-smoothing"),
    "--mixup": _is("--mixup-alpha"),
    "--cutmix": _is("--cutmix-alpha"),
    "--reprob": _is("--random-erase"),
    "--remode": _is("--random-erase-mode"),
    "--recount": _is("--random-erase-count"),
    "--ra-magnitude": _is("part of --auto-augment: ra-m9"),
    "--ra-sampler": _is("--aug-repeats 4"),
    "--ra-reps": _is("--aug-repeats"),
    "--clip-grad": _is("--clip-grad-norm"),
    "--grad-accum-steps": _is("--accumulate"),
    "--torchcompile": _is("--compile"),
    "--log-interval": _is("--print-freq"),
    "--log-wandb": _is("--log wandb"),
    "--report-to": _is("--log"),
    "--early-stopping-patience": _is("--patience"),
    "--check-val-every-n-epoch": _is("--val-interval"),
    "--eval-interval": _is("--val-interval"),
    "--eval-every": _is("--val-interval"),
    "--nproc-per-node": _is("--nproc"),
}
"""What an error says about each: the rest of a sentence that begins with the flag. Those after the zoos' are
torchvision's and timm's."""
