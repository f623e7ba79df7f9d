"""The user's own model, augmentation, recipe and loader: the examples of docs/own.md, run as they stand there."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from models import own
from pipeline import loaders
from pipeline.cli import run_command
from pipeline.errors import InputError
from pipeline.front import open as open_loader
from tests.helpers.runs import (
    assert_same_end,
    indices,
    metrics,
    newest_checkpoint,
    refused,
    run_here,
    train,
)
from tests.helpers.scripts import ROOT, finish, result_of, start
from tools.evaluation.sweep import SweepSettings, sweep
from train.augmentation.own import OwnAugmentation

EXAMPLES = re.findall(r"^```python\n# (my/\w+\.py)\n(.*?)^```", (ROOT / "docs/own.md").read_text(), re.M | re.S)
SMALL = ["--resolution", "32", "--batch-size", "4", "--workers", "1", "--loader", "torch", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with the examples, which is forgotten afterwards."""
    (tmp_path / "my").mkdir()
    for name, text in EXAMPLES:
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])


def test_the_examples_are_short() -> None:
    assert [name for name, _ in EXAMPLES] == ["my/model.py", "my/augment.py", "my/recipe.py", "my/loader.py"]
    for name, text in EXAMPLES:
        assert len([line for line in text.splitlines() if line.strip()]) < 20, name


def test_all_parts_in_one_run_that_is_resumed_and_repeated(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit; the loader gives the batches of the others."""
    flags = ["--data", dataset, *SMALL, "--recipe", "my/recipe.py", "--loader", "my/loader.py", "--log-indices"]
    flags += ["--checkpoint-every", 5, "--keep-checkpoints", 9]
    assert train(*flags, "--run-dir", "whole", capsys=capsys)["loader"] == "my/loader.py"
    Path("parts/checkpoints").mkdir(parents=True)
    middle = "checkpoints/step-00000005.pt"
    Path("parts", middle).write_bytes(Path("whole", middle).read_bytes())
    rows = Path("whole/indices-rank0.jsonl").read_text().splitlines(keepends=True)
    Path("parts/indices-rank0.jsonl").write_text("".join(rows[:5]))
    train(*flags, "--run-dir", "parts", "--resume", "auto", capsys=capsys)
    assert_same_end(Path("whole"), Path("parts"))
    train("--config", "whole/config.json", "--run-dir", "again", "--loader", "torch", capsys=capsys)
    assert indices(Path("again")) == indices(Path("whole"))
    assert metrics(Path("again"), "eval") == metrics(Path("whole"), "eval")
    evaluated = ["--data", dataset, *SMALL, "--model", "my/model.py:tiny"]
    result = train(*evaluated, "--evaluate", newest_checkpoint(Path("whole")), capsys=capsys)
    assert result["top1"] == metrics(Path("whole"), "eval")[-1]["top1"]


def test_without_a_directory_of_its_own_a_run_is_named_after_the_function_and_the_file(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--data", dataset, *SMALL, "--model", "my/model.py:tiny", "--loader", "my/loader.py", "--epochs", 1]
    assert Path(train(*flags, capsys=capsys)["run_dir"]).name.startswith("tiny-loader-")


def test_a_module_in_two_processes(dataset: Path, tmp_path: Path) -> None:
    model, augment = f"{tmp_path}/my/model.py:tiny", "my.augment:invert"
    flags = ["--model", model, "--augment", augment, "--epochs", 1, "--nproc", 2, "--batch-size", 2]
    words = ["--data", dataset, *SMALL, *flags, "--run-dir", tmp_path / "run"]
    done = finish(start(*words, environment={"PYTHONPATH": str(tmp_path)}))
    assert result_of(done)["evaluated"] == 19


def test_a_card_says_what_the_model_expects() -> None:
    with Path("my/model.py").open("a") as file:
        file.write("\nfrom models import ModelCard\nCARD = ModelCard(build=tiny, resolution=160)\n")
    assert models.card("my/model.py:CARD").resolution == 160
    assert models.create("my/model.py:CARD", 7, {"width": 4}).network[-1].weight.shape == (7, 4)  # type: ignore[index]


def test_own_code_may_import_what_lies_next_to_it() -> None:
    Path("my/layers_of_mine.py").write_text("from torch.nn import Linear\n")
    Path("my/other.py").write_text("import layers_of_mine\ndef net(n): return layers_of_mine.Linear(3, n)\n")
    assert isinstance(own.find("my/other.py:net", "--model")(4), torch.nn.Linear)


BROKEN = """
import torch
from torch import nn

class Values(nn.Module):  # cannot run without memory
    def __init__(self, n):
        super().__init__()
        self.layer, self.n = nn.Linear(3, n), n
    def forward(self, images):
        assert float(images.mean()) == float(images.mean())
        return self.layer(images.mean((2, 3)))

def values(n): return Values(n)
def fixed(n): return Values(5)
def nothing(n): return None
def fails(n): raise ZeroDivisionError("one\\ntwo")
def shrinks(images): return images[:, :, 1:]
def floats(images): return images.float()
def none(images): return None
def raises(images): return images.nothing
def settings(): return 3
def bad(): return __import__("train.config").config.TrainConfig(epochs=0)
NUMBER = 3
FACTS = 3
"""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "my/model.py:tinny"], "--model my/model.py:tinny: my/model.py has no tinny; did you mean tiny?"),
        (["--model", "my/none.py:tiny"], "--model my/none.py:tiny: no such file"),
        (["--model", "nothing.here:tiny"], "--model nothing.here:tiny: there is no module nothing here or among what"),
        (["--model", "my.model:"], "--model my.model:: my.model has no name behind the colon"),
        (["--model", "my/model.py:tiny", "--model-kwargs", "widht=3"], "unexpected keyword argument 'widht'"),
        (["--model", "my/broken.py:NUMBER"], "must be a function of the number of classes, or a models.ModelCard"),
        (["--model", "my/broken.py:nothing"], "must return a torch.nn.Module, not NoneType"),
        (["--model", "my/broken.py:fails"], "--model my/broken.py:fails: ZeroDivisionError: one two (line 16 of "),
        (["--model", "my/broken.py:fixed"], "asked for 10 classes, it gave [2, 5] for 2 images"),
        (["--model", "my/syntax.py:x"], "--model my/syntax.py:x: '(' was never closed (line 1 of "),
        (["--teacher", "my/none.py:x", "--teacher-weights", "w.pt"], "--teacher my/none.py:x: no such file"),
        (["--augment", "my/broken.py:shrinks"], "must return what it is given, uint8 [2, 3, 32, 32] on cpu, not uint8"),
        (["--augment", "my/broken.py:floats"], "not float32 [2, 3, 32, 32] on cpu"),
        (["--augment", "my/broken.py:none"], "--augment my/broken.py:none: must return images, not NoneType"),
        (["--augment", "my/broken.py:raises"], "AttributeError: 'Tensor' object has no attribute 'nothing' (line "),
        (["--augment", "my/broken.py:NUMBER"], "must be a function of images"),
        (["--augment", "drop_channel"], "--augment drop_channel: must be package.module:function or my/file.py:funct"),
        (["--loader", "my/none.py"], "--loader my/none.py: no such file"),
        (["--loader", "my/model.py"], "--loader my/model.py: has no create(spec), which returns the loader"),
        (["--loader", "my/syntax.py"], "--loader my/syntax.py: cannot be imported (SyntaxError: '(' was never closed"),
        (["--recipe", "my/none.py"], "--recipe my/none.py:settings: no such file"),
        (["--recipe", "my/model.py"], "--recipe my/model.py:settings: my/model.py has no settings"),
        (["--recipe", "my/broken.py"], "--recipe my/broken.py: must return a TrainConfig, not int"),
        (["--recipe", "my/broken.py:bad"], "--recipe my/broken.py:bad: ValueError: --epochs 0: must be at least 1"),
    ],
)
def test_what_is_wrong_is_one_line(
    dataset: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    Path("my/broken.py").write_text(BROKEN)
    Path("my/syntax.py").write_text("(\n")
    assert message in refused("--data", dataset, *SMALL, *flags, capsys=capsys)
    assert not Path("runs").exists()


def test_a_model_that_computes_with_values_is_run_with_them(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my/broken.py").write_text(BROKEN)
    flags = ["--data", dataset, *SMALL, "--model", "my/broken.py:values", "--epochs", 1, "--run-dir", "run"]
    assert train(*flags, capsys=capsys)["evaluated"] == 19


def test_an_images_seeds_do_not_depend_on_its_batch() -> None:
    Path("my/seen.py").write_text(
        "seen = []\ndef note(images, seeds):\n    seen.extend(seeds.tolist())\n    return images"
    )
    augment, seen = OwnAugmentation("my/seen.py:note", seed=3), own.find("my/seen.py:seen", "--augment")
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    augment(images, np.arange(4), 1)
    augment(images[:2], np.array([3, 1]), 1)
    augment(images[:1], np.array([3]), 2)
    assert len(set(seen)) == 5
    assert seen[4:6] == [seen[3], seen[1]]
    assert all(0 <= number < 1 << 63 for number in seen)


def test_a_loader_of_ones_own_gives_the_batches_of_the_others(dataset: Path) -> None:
    batches = []
    for name in ("my/loader.py", "torch"):
        with open_loader(dataset, "train", batch_size=8, resolution=32, loader=name, workers=1, indices=True) as opened:
            batches.append([[tensor.clone() for tensor in batch] for batch in opened])
    assert loaders.facts("my/loader.py").reads == ("webdataset", "folder", "ffcv")
    for ours, theirs in zip(*batches, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


def test_a_checkpoint_alone_names_no_code_that_is_run(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my/evil.py").write_text("from pathlib import Path\nPath('ran').touch()\ndef x(n): pass\n")
    content = {"model": {}, "config": {"model": "my/evil.py:x", "augment": "my/evil.py:x", "recipe": "my/evil.py"}}
    torch.save(content, "a.pt")
    flags = ["--data", dataset, *SMALL]
    assert "my/evil.py:x" in refused(*flags, "--evaluate", "a.pt", capsys=capsys)
    assert run_here(*flags, "--teacher", "alexnet", "--teacher-weights", "a.pt", "--run-dir", "run") == 2
    sweep_flags = ["--data", str(dataset), "--checkpoint", "a.pt", "--resolutions", "32"]
    assert run_command(sweep, SweepSettings, sweep_flags) == 2
    assert "if you trust my/evil.py:x, give --model my/evil.py:x" in capsys.readouterr().err
    with pytest.raises(own.OwnCodeError, match="a checkpoint alone names this code"):
        models.card("my/evil.py:x")
    assert not Path("ran").exists()


def test_a_wrong_model_is_refused_where_no_command_line_is_parsed() -> None:
    with pytest.raises(InputError, match=r"--augment my/none\.py:x: no such file"):
        OwnAugmentation("my/none.py:x", 0)
