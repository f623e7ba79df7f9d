"""tools/export.py: what is written gives the checkpoint's logits, in the program that it is written for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

import models
from pipeline.cli import run_command
from pipeline.errors import InputError
from tests.helpers.finished import write_checkpoint
from tests.helpers.imagenet import CLASSES
from tools.exporting.export import ExportSettings, compare, export, images_of, open_model
from tools.exporting.forms import FORMS


@pytest.fixture(scope="module")
def best(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "best.pt", dataset)


def exported(*words: object) -> int:
    return run_command(export, ExportSettings, [*map(str, words)])


def in_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(path)
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def from_safetensors(path: Path) -> Callable[[Tensor], Tensor]:
    network = models.create("pyramidnet", 4, {"depth": 14, "alpha": 8}).network
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.eval()


READERS: dict[str, tuple[str, Callable[[Path], Callable[[Tensor], Tensor]]]] = {
    "onnx": ("m.onnx", in_onnx),
    "torch-export": ("m.pt2", lambda path: torch.export.load(path).module()),
    "torchscript": ("m.pt", lambda path: torch.jit.load(path)),
    "safetensors": ("m.safetensors", from_safetensors),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("inside", [True, False], ids=["bytes", "floats"])
@pytest.mark.parametrize("name", READERS)
def test_logits_are_the_checkpoints(
    best: Path, dataset: Path, tmp_path: Path, name: str, inside: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file, read = READERS[name]
    flags = ["--format", name, "--data", dataset, "--out", tmp_path / file, "--compare", 5]
    assert exported(best, *flags, *([] if inside else ["--no-preprocessing"])) == 0
    result = json.loads(capsys.readouterr().out)["result"]
    assert (result["file"], result["images"]) == (str(tmp_path / file), 5)
    settings = ExportSettings(checkpoint=best, data=str(dataset), compare=7)
    model = open_model(settings)
    images = images_of(settings, model)
    takes_bytes = inside and name != "safetensors"
    with torch.inference_mode():
        logits = read(tmp_path / file)(images if takes_bytes else model.classifier.normalize(images))
    expected = model.logits(images)
    assert float(expected.std()) > 0.01
    assert float((logits - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    about = json.loads((tmp_path / f"{file}.json").read_text())
    assert (about["classes"], about["val_crop"], about["val_resize"]) == (CLASSES, 32, 37)
    assert about["input"]["values"].startswith("uint8" if takes_bytes else "float32")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file, f"{file}.json"])


def test_a_file_with_other_logits_is_refused(best: Path, dataset: Path, tmp_path: Path) -> None:
    settings = ExportSettings(checkpoint=best, data=str(dataset), compare=2)
    model = open_model(settings)
    images, form = images_of(settings, model), FORMS["safetensors"]
    form.write(model, images, False, {}, tmp_path / "a.safetensors")
    weights = safetensors.torch.load_file(tmp_path / "a.safetensors")
    name = next(key for key in weights if key.endswith("bias") and len(weights[key]) == len(CLASSES))
    weights[name][0] += 1e-3
    safetensors.torch.save_file(weights, tmp_path / "b.safetensors")
    assert compare(model, form, images, False, tmp_path / "a.safetensors") <= 1e-5
    with pytest.raises(InputError, match="nothing is written, because its logits differ from the checkpoint's"):
        compare(model, form, images, False, tmp_path / "b.safetensors")


def test_bad_input_is_one_line(best: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*words: object) -> str:
        assert exported(best, *words) == 2
        return str(capsys.readouterr().err.splitlines()[-1])

    assert refusal("--data", tmp_path / "none").startswith("error: no images to compare outputs on: give --images")
    assert refusal("--data", dataset, "--out", best).endswith("is the checkpoint itself; choose another name")
    wrong = refusal("--data", dataset, "--format", "torch-export", "--out", tmp_path / "m.pt")
    assert wrong == f"error: --out {tmp_path / 'm.pt'}: must end with .pt2, or PyTorch does not read it"
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal("--data", dataset, "--out", tmp_path / "file" / "m.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def namespace(block: str, **names: Any) -> dict[str, Any]:
    exec(block, names)
    return names


def test_the_page_loads_a_checkpoint_in_torchvision_timm_and_onnx_runtime(
    dataset: Path, imagenet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    page = (Path(__file__).parents[3] / "docs" / "use.md").read_text()
    in_torchvision, in_timm, in_onnx = (part.partition("```")[0] for part in page.split("```python\n")[1:])
    monkeypatch.chdir(tmp_path)
    path = write_checkpoint(Path("runs/a/checkpoints/best.pt"), dataset, "torchvision/resnet18", val_crop=64)
    Path("cat.jpg").write_bytes(next((imagenet_folder / "val").iterdir()).read_bytes())
    for name in ("safetensors", "onnx"):
        assert exported(path, "--format", name, "--images", "cat.jpg", "--out", f"best.{name}") == 0
    plain = namespace(in_torchvision.replace("resnet50", "resnet18"))
    assert capsys.readouterr().out.splitlines()[-1] in CLASSES
    settings = ExportSettings(checkpoint=path, images=(Path("cat.jpg"),))
    model = open_model(settings)
    crops = images_of(settings, model)
    normalized, expected = model.classifier.normalize(crops), model.logits(crops)
    assert float((plain["image"] - normalized[0]).abs().max()) < 0.02  # a step of 1/255
    assert float((plain["model"](normalized) - expected).abs().max()) <= 1e-4
    with_timm = namespace(in_timm.replace("resnet50", "resnet18"))
    assert float((with_timm["model"](normalized) - expected).abs().max()) <= 1e-4
    assert with_timm["prepare"](Image.open("cat.jpg").convert("RGB")).shape == (3, 64, 64)
    logits = namespace(in_onnx, crops=crops.numpy())["logits"]
    assert float((torch.from_numpy(logits) - expected).abs().max()) <= 1e-4
