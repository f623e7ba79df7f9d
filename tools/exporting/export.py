"""A trained model in a form that other programs read, put in place only once it gives what the checkpoint gives."""

import json
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from pipeline.contract import CPU
from pipeline.errors import InputError
from pipeline.storage.files import flush, move
from pipeline.storage.folder import list_files
from pipeline.storage.split import Split, open_split
from tools.exporting import forms
from tools.exporting.forms import Form, FormName
from train import finished
from train.analysis import can_be_read, image_at
from train.config import DEFAULT_DATA
from train.finished import Finished
from train.network import describe

log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""How far the largest logit may be off, as a share of the largest one; below 1 that of 1."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Write a trained model in a form that other programs read."""

    checkpoint: tyro.conf.Positional[Path]
    """Checkpoint of a run, its averaged weights where there are any; or with --model a file of weights."""
    format: FormName = "safetensors"
    """safetensors: weights alone, under the names that torchvision and timm know. onnx: for ONNX Runtime and others.
    torch-export: PyTorch's .pt2. torchscript: for libtorch, and older than .pt2."""
    out: Path | None = None
    """File to write; default: next to the checkpoint. A file of the same name with .json describes it."""
    preprocessing: bool = True
    """Whether the model takes bytes, uint8 [N, 3, R, R], and normalises them itself; else it takes normalised floats,
    as the .json says. safetensors always does."""
    model: str | None = None
    """As --model of train/run.py; default: the checkpoint's."""
    val_crop: int | None = None
    """As --val-crop of train/run.py; default: as in the checkpoint's evaluation."""
    val_resize: int | None = None
    """As --val-resize of train/run.py; default: as in the checkpoint's evaluation."""
    images: tuple[Path, ...] = ()
    """Files or a folder to compare outputs on; default: validation images of --data."""
    data: str = DEFAULT_DATA
    """As --data of train/run.py; its first validation images."""
    compare: int = 16
    """Images that are compared."""

    def __post_init__(self) -> None:
        if self.compare < 1:
            raise ValueError(f"--compare {self.compare}: must be at least 1")


def export(settings: ExportSettings) -> dict[str, Any]:
    """The command. Raises InputError, also where the outputs differ; then nothing is written."""
    form = forms.FORMS[settings.format]
    form.check_installed()
    model = open_model(settings)
    images = images_of(settings, model)
    out = settings.out or settings.checkpoint.with_suffix(form.suffix)
    if out.resolve() == settings.checkpoint.resolve():
        raise InputError(f"--out {out}: is the checkpoint itself; choose another name")
    if form.suffix_is_required and out.suffix != form.suffix:
        raise InputError(f"--out {out}: must end with {form.suffix}, or PyTorch does not read it")
    inside = settings.preprocessing and form.takes_bytes
    description = describe_export(model, form, inside)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as folder:
            written = Path(folder) / out.name
            form.write(model, images, inside, description, written)
            difference = compare(model, form, images, inside, written)
            put_in_place(written, out, description)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror})") from None
    log.info("%s: %d images compared, logits differ by at most %.2g", out, len(images), difference)
    return {
        "file": str(out),
        "format": form.name,
        "bytes": out.stat().st_size,
        "images": len(images),
        "difference": difference,
        "weights": model.weights,
    }


def open_model(settings: ExportSettings) -> Finished:
    """The model on the CPU, in strides that every program understands. Raises InputError."""
    return finished.load(
        settings.checkpoint,
        settings.model,
        val_crop=settings.val_crop,
        val_resize=settings.val_resize,
        device=CPU.type,
        channels_last=False,
    )


def images_of(settings: ExportSettings, model: Finished) -> Tensor:
    """Real images as evaluation sees them, uint8 [N, 3, R, R]. Raises InputError."""
    if settings.images:
        split = Split("images", Path(), (), listing=list_files(settings.images))
    else:
        try:
            split = open_split(settings.data, "val")
        except InputError as error:
            raise InputError(f"no images to compare outputs on: give --images, or a --data ({error})") from None
    if not can_be_read(split):
        raise InputError(f"--data {settings.data}: its images cannot be read one by one; give --images")
    number = min(settings.compare, split.num_samples)
    images = torch.stack([torch.from_numpy(image_at(model.process, split, index)) for index in range(number)])
    return images.permute(0, 3, 1, 2).contiguous()


def describe_export(model: Finished, form: Form, inside: bool) -> dict[str, Any]:
    """What whoever uses the file has to know: the .json next to it."""
    described = asdict(describe(model.process, model.classes))
    config, side = model.process.config, described["val_crop"]
    steps = (
        f"resize the shorter side to val_resize ({described['interpolation']}, antialiased), "
        "crop val_crop x val_crop at the centre"
    )
    taken = "uint8, RGB, 0 to 255" if inside else "float32, RGB, (value / 255 - mean) / std"
    return {
        "format": form.name,
        "model": config.model,
        "model_kwargs": list(config.model_kwargs),
        "weights": model.weights,
        "input": {"name": forms.INPUT, "shape": ["N", 3, side, side], "values": taken, "before": steps},
        "output": {"name": forms.OUTPUT, "shape": ["N", forms.count(model)], "values": "float32 logits"},
        **described,
    }


def compare(model: Finished, form: Form, images: Tensor, inside: bool, written: Path) -> float:
    """The largest difference between the logits of the file and of the checkpoint, over batches of all images and of
    one. Raises InputError where it is above TOLERANCE."""
    run = form.load(model, written)
    expected = model.logits(images)
    given = images if inside else model.classifier.normalize(images)
    differences = [
        float((run(given) - expected).abs().max()),
        float((run(given[:1]) - expected[:1]).abs().max()),
    ]
    scale = max(1.0, float(expected.abs().max()))
    if not max(differences) <= TOLERANCE * scale:  # also where one is no number
        raise InputError(
            f"--format {form.name}: nothing is written, because its logits differ from the checkpoint's by "
            f"{max(differences):.2g}"
        )
    return max(differences)


def put_in_place(written: Path, out: Path, description: dict[str, Any]) -> None:
    """Give the finished file its name, after its description. Raises OSError."""
    beside = out.with_name(f"{out.name}.json")
    with (written.parent / beside.name).open("w") as file:
        json.dump(description, file, indent=1)
        file.write("\n")
        flush(file)
    with written.open("rb+") as file:
        flush(file)
    move(written.parent / beside.name, beside)
    move(written, out)
