"""One process of two that run the loops of docs/loops.md, in an environment where `sluice` is installed:

    python loops.py PAGE DATA FOLDER PORT...

Each loop runs twice. The first run saves in the middle of its second epoch and continues to the end; the second begins
with other weights, resumes from what was saved, and has to end with the same weights after the steps that were left.
Writes FOLDER/RANK.json: for each heading of the page what went wrong, or a digest of the weights.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

# Most of these are for the loops, which run with the names of this file.
# ruff: noqa: F401
import lightning
import numpy
import sluice
import timm.data
import timm.loss
import timm.optim
import torch
import torch.distributed as dist
import torchvision
from accelerate import Accelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook
from torchvision.transforms import v2
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainerCallback, TrainingArguments

EPOCHS, STEPS, SAVED_AT = 2, 10, 7
CLASSES, EVALUATED = 4, 19
SMALLER = {
    "batch_size=256": "batch_size=4, resolution=32, loader='threads'",
    "batch_size=size": "batch_size=size, resolution=32, loader='threads'",
    "per_device_train_batch_size=256": "per_device_train_batch_size=4, save_steps=7, use_cpu=True, "
    "report_to='none', disable_tqdm=True",
    "torchvision.models.resnet50": "torchvision.models.shufflenet_v2_x0_5",
    '"resnet50"': '"test_resnet"',
    "every_n_train_steps=1000": f"every_n_train_steps={SAVED_AT}",
    "Accelerator()": "Accelerator(cpu=True)",
    'strategy="ddp"': 'strategy="ddp", accelerator="cpu", devices=2, logger=False, enable_progress_bar=False, '
    "enable_model_summary=False",
}
"""What is smaller here than on the page, and that nothing is drawn on the terminal. The loader is one that every
installation has; FFCV would compile its pipeline again for each that is opened."""

IN_A_GROUP_OF_ITS_OWN = ("PyTorch with DDP", "timm", "torchvision's reference loop")
"""The other packages keep what they know of the processes as long as Python runs."""


class Classifier(lightning.LightningModule):
    """A LightningModule as for any loader."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES)
        self.evaluated = 0

    def on_validation_epoch_start(self) -> None:
        self.evaluated = 0

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int) -> None:
        self.evaluated += len(batch[1])

    def on_validation_epoch_end(self) -> None:
        over_all = int(self.all_gather(torch.tensor(self.evaluated)).sum())
        assert self.trainer.sanity_checking or over_all == EVALUATED

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "Lightning": Classifier,
    "Hugging Face Trainer": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=CLASSES)
    ),
}
"""The loops that are given a model."""


def loops_of(page: str) -> dict[str, str]:
    """The code below each heading, in smaller."""
    for large, small in SMALLER.items():
        assert large in page, large
        page = re.sub(rf"(?<!\w){re.escape(large)}", small, page)
    _, *sections = re.split(r"^## (.*)\n", page, flags=re.MULTILINE)
    blocks = {
        title: re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for title, text in zip(sections[::2], sections[1::2], strict=True)
    }
    shared = blocks["PyTorch with DDP"].pop()
    return {title: f"{shared}\n{code}" for title, (code,) in blocks.items()}


def run(title: str, code: str, data: str, checkpoint: Path, first_step: int) -> dict[str, Tensor]:
    """Run a loop, of whose steps the first ones were done before. Returns the weights that it ends with."""
    torch.manual_seed(first_step)
    done, calls = itertools.count(first_step), itertools.count(first_step + 1)
    names = {**globals(), "DATA": data, "CHECKPOINT": checkpoint, "due": lambda: next(calls) == SAVED_AT}
    if title in MODELS:
        names["model"] = MODELS[title]()

    def count_step(*_: object) -> None:
        next(done)

    counting = register_optimizer_step_post_hook(count_step)
    exec(compile(code, title, "exec"), names)
    counting.remove()
    assert next(done) == STEPS
    return {name: weight.clone() for name, weight in names["model"].state_dict().items()}


def resumes(title: str, code: str, data: str, folder: Path, ports: list[str]) -> str:
    """Run a loop twice. Returns a digest of the weights; an assertion fails where the two differ."""
    checkpoint, weights = folder / re.sub(r"\W", "-", title), []
    for first_step in (0, SAVED_AT):
        os.environ["MASTER_PORT"] = ports.pop()
        weights.append(run(title, code, data, checkpoint, first_step))
        assert checkpoint.exists()
        dist.barrier()
        shutil.rmtree(checkpoint / "checkpoint-10", ignore_errors=True)  # the Trainer's at the end
        dist.barrier()
        if title in IN_A_GROUP_OF_ITS_OWN:
            dist.destroy_process_group()
    first, second = weights
    different = [name for name in first if not first[name].equal(second[name])]
    assert not different, f"resumed to other weights: {different}"
    assert all(weight.isfinite().all() for weight in first.values())
    # Each rank has BatchNorm statistics of its own.
    parameters = [weight for name, weight in first.items() if "running_" not in name and "num_batches" not in name]
    return hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in parameters)).hexdigest()


def main(page: str, data: str, folder: str, *ports: str) -> None:
    """The command."""
    outcome, left = {}, list(ports)
    for title, code in loops_of(Path(page).read_text()).items():
        print(title, file=sys.stderr, flush=True)
        try:
            outcome[title] = resumes(title, code, data, Path(folder), left)
        except Exception:
            outcome[title] = traceback.format_exc()
            break  # the other process may wait for this one
    (Path(folder) / f"{os.environ['RANK']}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(*sys.argv[1:])
