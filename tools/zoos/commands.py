"""The five model zoos' commands: their trainers, and what their shell scripts trained.

The one table of them, from which the table in docs/zoos.md follows. Sources: the folders SE-ResNet-50, ResNet152,
AlexNet_ID2663_for_PyTorch and PnasNet5Large in PyTorch/contrib/cv/classification of Ascend/ModelZoo-PyTorch, and
PyTorch/contrib/Classification/PyramidNet of Tecorigin's modelzoo.
"""

from dataclasses import dataclass, field

from train.case_name import Case


@dataclass(frozen=True)
class Script:
    """A shell script of a zoo: what it gives its trainer."""

    processes: int
    batch_size: int
    """Of all processes, or of each: as its trainer takes it."""
    epochs: int
    lr: float
    kind: str = "acc"
    """How the name of its case ends."""
    max_step: int | None = field(default=None, kw_only=True)
    resume: bool = field(default=False, kw_only=True)
    """Whether it begins with a checkpoint, which it trains for an epoch or evaluates."""

    @property
    def evaluates(self) -> bool:
        """Whether it only evaluates."""
        return self.resume and self.kind == "eval"


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """A model of a zoo and its trainer."""

    recipe: str
    network: str
    """Its name in the scripts."""
    trainer: str
    folder: str
    """In the zoo."""
    device: str = "npu"
    log_format: str = "ascend"
    is_batch_global: bool = True
    """Whether the trainer divides the batch size by the processes."""
    always_amp: bool = False
    has_machines: bool = True
    """Whether the trainer can use several."""
    epochs: int = 90
    """Defaults of the trainer."""
    print_freq: int = 10
    script_print_freq: int = 1
    """That of its scripts."""
    script_data: str | None = None
    """Where its scripts look for ImageNet, unless a flag says otherwise."""
    batch_size: int = 256
    lr: float = 0.1
    port: int
    """Where its processes meet, unless a flag says otherwise."""
    scripts: dict[str, Script] = field(default_factory=dict)


ZOOS: dict[str, Zoo] = {
    "alexnet": Zoo(
        recipe="alexnet-full",
        network="AlexNet",
        trainer="main.py",
        folder="AlexNet_ID2663_for_PyTorch",
        port=41111,
        scripts={
            "train_full_1p": Script(1, 128, 90, 0.01),
            "train_full_8p": Script(8, 1024, 90, 0.04),
            "train_performance_1p": Script(1, 128, 1, 0.01),
            "train_performance_8p": Script(8, 1024, 1, 0.04),
            "train_eval_8p": Script(8, 1024, 1, 0.04, "eval", resume=True),
        },
    ),
    "resnet152": Zoo(
        recipe="resnet152-full",
        network="ResNet152",
        trainer="main.py",
        folder="ResNet152",
        port=50001,
        scripts={
            "train_full_1p": Script(1, 256, 140, 0.1),
            "train_full_8p": Script(8, 2048, 140, 0.8),
            "train_performance_1p": Script(1, 256, 2, 0.1, "perf"),
            "train_performance_8p": Script(8, 2048, 2, 0.8, "perf"),
            "train_eval_8p": Script(8, 2048, 140, 0.8, "eval", resume=True),
        },
    ),
    "se_resnet50": Zoo(
        recipe="se_resnet50-full",
        network="SE_Resnet50",
        trainer="main.py",
        folder="SE-ResNet-50",
        port=50009,
        scripts={
            "train_full_8p": Script(8, 1024, 100, 0.6),
            "train_performance_1p": Script(1, 128, 1, 0.1),
            "train_performance_8p": Script(8, 1024, 2, 0.6),
            "train_performance_multinodes": Script(8, 1024, 2, 0.6),
            "train_eval_8p": Script(8, 1024, 100, 0.6, "eval", resume=True),
        },
    ),
    "pnasnet5large": Zoo(
        recipe="pnasnet5large-full",
        network="PnasNet5Large",
        trainer="imagenet_fast.py",
        folder="PnasNet5Large",
        port=50001,
        is_batch_global=False,
        always_amp=True,
        has_machines=False,
        epochs=100,
        script_print_freq=10,
        scripts={
            "train_full_1p": Script(1, 32, 1, 0.4, max_step=1000),
            "train_full_8p": Script(8, 32, 90, 0.4),
            "train_performance_1p": Script(1, 32, 1, 0.4, "perf", max_step=1000),
            "train_performance_8p": Script(8, 32, 1, 0.4, "perf", max_step=1000),
            # Epoch 91 of 91, at the rate that the cosine ends with.
            "train_finetune_1p": Script(1, 32, 91, 0.4, max_step=1000, resume=True),
            "train_eval_8p": Script(8, 32, 90, 0.4, "eval", resume=True),
        },
    ),
    "pyramidnet": Zoo(
        recipe="pyramidnet-full",
        network="PyramidNet",
        trainer="train.py",
        folder="PyramidNet",
        device="sdaa",
        log_format="tecorigin",
        is_batch_global=False,
        always_amp=True,
        has_machines=False,
        batch_size=128,
        print_freq=1,
        script_data="/data/datasets/imagenet",
        port=29500,
        scripts={"train_sdaa_3rd": Script(4, 64, 1, 0.5)},
    ),
}
"""By the name of the model here, which is that of its folder in tools/zoos/."""

SCRIPTS_FOLDERS = {"pyramidnet": "scripts"}
"""Where a model's scripts are, if not in test/."""


def script_path(model: str, script: str) -> str:
    """A script, below tools/zoos/."""
    return f"{model}/{SCRIPTS_FOLDERS.get(model, 'test')}/{script}.sh"


SCRIPTS_HEADER = ("here, below `tools/zoos/`", "there", "processes x images", "epochs", "lr", "case")


def script_rows() -> list[tuple[str, ...]]:
    """The cells of the table of scripts, in the order of SCRIPTS_HEADER."""
    return [
        (
            f"`{script_path(model, name)}`",
            f"`{zoo.folder}`",
            _batch_in_words(zoo, script),
            _epochs_in_words(script),
            "" if script.resume else f"{script.lr:g}",
            _case_in_words(zoo, script),
        )
        for model, zoo in ZOOS.items()
        for name, script in zoo.scripts.items()
    ]


def case_name(zoo: Zoo, batch_size: int, processes: int, kind: str) -> str:
    """The name of a case, with the batch size as the zoo's scripts count it."""
    return str(Case(zoo.network, batch_size, processes, kind))


def _case_in_words(zoo: Zoo, script: Script) -> str:
    if zoo.log_format != "ascend":
        return ""
    return f"`{case_name(zoo, script.batch_size, script.processes, script.kind)}`"


def _batch_in_words(zoo: Zoo, script: Script) -> str:
    each = script.batch_size // script.processes if zoo.is_batch_global else script.batch_size
    return f"{script.processes} x {each}"


def _epochs_in_words(script: Script) -> str:
    if script.evaluates:
        return "evaluates"
    if script.resume:
        return f"1, {script.max_step} steps"
    return f"{script.epochs}, {script.max_step} steps" if script.max_step else str(script.epochs)
