"""The forms a model is exported in: how each is written, and how it is read back and run."""

import contextlib
import importlib.util
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

import models
from pipeline.errors import InputError
from train.finished import Finished

FormName = Literal["safetensors", "onnx", "torch-export", "torchscript"]
Run = Callable[[Tensor], Tensor]
"""Images as the file takes them, to logits, float32 [N, outputs]."""

INPUT, OUTPUT = "images", "logits"
OPSET = 18
"""Of ONNX: that of PyTorch's exporter, older than what ONNX Runtime has read since 1.14."""


def count(model: Finished) -> int:
    """The outputs of a model."""
    side = model.process.validation_resolution
    return model.logits(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]


class Form(ABC):
    """A form of file."""

    name: ClassVar[FormName]
    suffix: ClassVar[str]
    suffix_is_required: ClassVar[bool] = False
    takes_bytes: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ()

    def check_installed(self) -> None:
        """Raises InputError where a package that it needs is missing."""
        if missing := [name for name in self.packages if importlib.util.find_spec(name) is None]:
            raise InputError(f"--format {self.name}: needs {', '.join(missing)}; pip install '.[export]'")

    @abstractmethod
    def write(self, model: Finished, images: Tensor, inside: bool, description: dict[str, Any], path: Path) -> None:
        """Write the file. With `inside`, it normalises uint8 images itself. Raises InputError for a model that the
        form cannot express."""

    @abstractmethod
    def load(self, model: Finished, path: Path) -> Run:
        """Read the file back, to run it."""


def module_of(model: Finished, inside: bool) -> nn.Module:
    """What is exported: the classifier, or its network alone, which takes normalised floats."""
    return model.classifier if inside else model.classifier.network


def example(model: Finished, images: Tensor, inside: bool) -> Tensor:
    """Two images: an exporter takes a batch of one for a constant."""
    two = images[:2] if len(images) > 1 else images.repeat(2, 1, 1, 1)
    return two if inside else model.classifier.normalize(two)


@contextlib.contextmanager
def refused(name: str) -> Iterator[None]:
    """An exporter's error as one line; its warnings concern its own future."""
    noisy = [logging.getLogger(package) for package in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in noisy]
    for logger in noisy:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # exporters raise whatever the model leads to
        reason = str(error).strip().splitlines()[0:1] or [type(error).__name__]
        raise InputError(f"--format {name}: this model cannot be exported so ({reason[0]})") from error
    finally:
        for logger, level in zip(noisy, levels, strict=True):
            logger.setLevel(level)


class Safetensors(Form):
    """Weights under their published names; the description is in the header too."""

    name, suffix, takes_bytes = "safetensors", ".safetensors", False

    def write(self, model: Finished, images: Tensor, inside: bool, description: dict[str, Any], path: Path) -> None:
        weights = {key: value.contiguous() for key, value in model.classifier.network.state_dict().items()}
        safetensors.torch.save_file(weights, path, {"format": "pt", "description": json.dumps(description)})

    def load(self, model: Finished, path: Path) -> Run:
        config, weights = model.process.config, safetensors.torch.load_file(path)
        built = models.create(config.model, count(model), config.model_options, blurpool=config.blurpool)
        built.network.load_state_dict(weights)
        return torch.inference_mode()(built.network.eval())


class Onnx(Form):
    """A graph for ONNX Runtime and others, with a free batch size."""

    name, suffix = "onnx", ".onnx"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, model: Finished, images: Tensor, inside: bool, description: dict[str, Any], path: Path) -> None:
        import onnx

        with refused(self.name):
            program = torch.onnx.export(
                module_of(model, inside),
                (example(model, images, inside),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=False)
            graph = onnx.load(path)
            onnx.helper.set_model_props(graph, {"description": json.dumps(description)})
            onnx.checker.check_model(graph, full_check=True)
            onnx.save(graph, path)

    def load(self, model: Finished, path: Path) -> Run:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


class TorchExport(Form):
    """PyTorch's own graph, with a free batch size."""

    name, suffix = "torch-export", ".pt2"
    suffix_is_required = True

    def write(self, model: Finished, images: Tensor, inside: bool, description: dict[str, Any], path: Path) -> None:
        with refused(self.name):
            program = torch.export.export(
                module_of(model, inside),
                (example(model, images, inside),),
                dynamic_shapes=({0: torch.export.Dim("N")},),
            )
            torch.export.save(program, path, extra_files={"description.json": json.dumps(description)})

    def load(self, model: Finished, path: Path) -> Run:
        run: Run = torch.inference_mode()(torch.export.load(path).module())
        return run


class TorchScript(Form):
    """A traced graph, for libtorch."""

    name, suffix = "torchscript", ".torchscript.pt"

    def write(self, model: Finished, images: Tensor, inside: bool, description: dict[str, Any], path: Path) -> None:
        with refused(self.name):
            # What PyTorch's check does, the comparison of the written file does on more images.
            traced = torch.jit.trace(module_of(model, inside), example(model, images, inside), check_trace=False)
            torch.jit.save(traced, path, _extra_files={"description.json": json.dumps(description)})

    def load(self, model: Finished, path: Path) -> Run:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about the future of TorchScript
            run: Run = torch.inference_mode()(torch.jit.load(path))
        return run


FORMS: dict[str, Form] = {form.name: form for form in (Safetensors(), Onnx(), TorchExport(), TorchScript())}
