"""The model of a process: initial or published weights, on the device, wrapped for several processes, averaged."""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import models
from models import pretrained
from models.pretrained import Weights
from pipeline.errors import InputError
from train import checkpoint
from train.averaging import Ema
from train.checkpoint import Description
from train.class_names import Choice, choose_outputs
from train.config import TrainConfig
from train.device import DEVICE_TYPES, compile_options
from train.inputs import IMAGENET_CLASSES
from train.process import Process

log = logging.getLogger(__name__)


class TrainedModel:
    """A classifier in training. Constructing it is a collective call."""

    classifier: models.Classifier
    """uint8 images to logits, without a wrapper: what is evaluated and saved."""
    parallel: nn.Module
    """What a training step calls: `classifier`, in DistributedDataParallel where there are several processes."""
    ema: Ema | None
    """The averaged weights of --model-ema."""
    teacher: models.Classifier | None
    """The model of --teacher, which is not trained."""

    def __init__(
        self,
        process: Process,
        classifier: models.Classifier,
        num_classes: int,
        teacher: models.Classifier | None = None,
    ) -> None:
        config = process.config
        self.classifier, self.num_classes, self.teacher = classifier, num_classes, teacher
        self.ema = Ema(classifier) if config.model_ema else None
        self.parallel = (
            _wrapped(classifier, DEVICE_TYPES[process.device.type].bucket_mb) if process.world.size > 1 else classifier
        )
        if config.compile:  # the inner model, which evaluation calls without the wrapper
            options = compile_options(process.device.type)
            classifier.compile(**options)
            if self.ema is not None:
                self.ema.model.compile(**options)
            if teacher is not None:
                teacher.compile(**options)


def _wrapped(classifier: models.Classifier, bucket_mb: int | None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.15 renames the argument
        # BatchNorm statistics are broadcast from rank 0 when they are used, not at every step.
        return DistributedDataParallel(classifier, broadcast_buffers=False, bucket_cap_mb=bucket_mb)


def build_model(process: Process, classes: Sequence[str]) -> TrainedModel:
    """The model to train on data of these classes. A collective call."""
    classifier = build_classifier(process, classes)
    teacher = build_teacher(process, classifier, classes)
    return TrainedModel(process, classifier, class_count(process, classes), teacher)


def class_count(process: Process, classes: Sequence[str]) -> int:
    """Outputs of the model. Raises InputError where --num-classes is below the classes of the data."""
    config = process.config
    if config.num_classes is not None and config.num_classes < len(classes):
        raise InputError(f"--num-classes {config.num_classes}: {config.data} has {len(classes)} classes")
    return config.num_classes or len(classes)


def build_classifier(process: Process, classes: Sequence[str]) -> models.Classifier:
    """Initial, --pretrained or --finetune weights, equal on every rank, on the device."""
    config = process.config
    classifier = _initial(process, class_count(process, classes))
    flag = "pretrained" if config.pretrained else "finetune"
    if path := config.pretrained or config.finetune:
        content = checkpoint.read(path, "file of weights")
        new_head = config.num_classes is not None or flag == "finetune"
        _start_from(process, classifier, content, classes, f"--{flag} {path}", new_head=new_head)
    return _on_device(process, classifier)


def describe(process: Process, classes: Sequence[str]) -> Description:
    """What whoever uses the weights of this process has to know."""
    return Description(
        classes=list(classes),
        mean=list(process.card.mean),
        std=list(process.card.std),
        resolution=process.resolution,
        val_resize=process.validation_resize,
        val_crop=process.validation_resolution,
        interpolation=process.interpolation,
        version=checkpoint.program_version(),
    )


def build_evaluated(process: Process, classes: Sequence[str], content: Any, source: str) -> models.Classifier:
    """The model with the weights that the content of a file holds, and the outputs that belong to the classes of the
    data, on the device. `source` names the file in messages. Raises InputError."""
    wanted = class_count(process, classes)
    with _refusals(source):
        weights, heads, outputs = _found_in(content, process, wanted)
        choice = choose_outputs(checkpoint.class_names(content), outputs, classes, process.config.num_classes)
        if choice.rows is not None:
            weights, outputs = pretrained.with_outputs(weights, heads, choice.rows), len(choice.rows)
        classifier = _initial(process, outputs)
        pretrained.load(classifier.network, weights, outputs)
    _log(process, f"{source}: {choice.remark}" if choice.remark else "")
    return _on_device(process, classifier)


def _start_from(
    process: Process, classifier: models.Classifier, content: Any, classes: Sequence[str], source: str, new_head: bool
) -> None:
    """Load the weights that the content of a file holds into a model that is to be trained."""
    wanted = class_count(process, classes)
    with _refusals(source):
        weights, heads, outputs = _found_in(content, process, wanted)
        choice = Choice()
        if outputs == wanted == len(classes) or not new_head:
            choice = _choose_start(checkpoint.class_names(content), outputs, classes)
        if choice.rows is not None:
            weights = pretrained.with_outputs(weights, heads, choice.rows)
        skipped = pretrained.load(classifier.network, weights, wanted, new_head=new_head)
    if skipped:
        choice = Choice(remark=f"another number of classes; {', '.join(skipped)} start from initial values")
    _log(process, f"{source}: {choice.remark}" if choice.remark else "")


def _choose_start(names: Sequence[str] | None, outputs: int, classes: Sequence[str]) -> Choice:
    """`choose_outputs` where the outputs are trained further: those of other classes are a start like any other."""
    try:
        return choose_outputs(names, outputs, classes)
    except InputError as error:
        return Choice(remark=f"{error}; the last layer starts from theirs")


def _found_in(content: Any, process: Process, wanted: int) -> tuple[Weights, list[str], int]:
    """The weights that the content of a file holds, named as in the model; the names of the last layers; the number of
    their outputs, without a background class unless it is `wanted`. Raises PretrainedError."""
    own, heads = models.outline(process.config.model, process.config.model_options, blurpool=process.config.blurpool)
    weights = pretrained.named_as_in(own, pretrained.find_weights(content))
    if process.card.background_class:
        weights = pretrained.without_background(weights, heads, wanted)
    outputs = pretrained.count_outputs(weights, heads) or wanted
    # Before a network is built: a stranger's options could make one that no memory holds.
    sized = {name: own[name].new_empty(outputs, *own[name].shape[1:]) for name in heads}
    pretrained.differing_heads(own | sized, weights, outputs)
    return weights, heads, outputs


def count_outputs(content: Any, process: Process, source: str) -> int:
    """How many classes the weights in a file have, without a background class. Raises InputError for those of another
    model."""
    with _refusals(source):
        return _found_in(content, process, IMAGENET_CLASSES)[2]


def build_teacher(process: Process, student: models.Classifier, classes: Sequence[str]) -> models.Classifier | None:
    """The model of --teacher on the device, and the student in the mode to learn from it: DeiT's distilled models have
    a head of their own for that. Raises InputError for weights that do not fit."""
    config, path = process.config, process.config.teacher_weights
    if config.teacher is None or path is None:
        return None
    content = checkpoint.read(path, "file of weights")
    stored = content["config"] if checkpoint.is_checkpoint(content) else {}
    source, model = f"--teacher-weights {path}", stored.get("model", config.teacher)
    if model != config.teacher:
        raise InputError(f"{source}: a checkpoint of {model}, not of --teacher {config.teacher}")
    described = TrainConfig(
        model=model,
        model_kwargs=tuple(stored.get("model_kwargs", ())),
        blurpool=bool(stored.get("blurpool")),
        num_classes=config.num_classes,
        data=config.data,
        channels_last=config.channels_last,
    )
    teacher = build_evaluated(dataclasses.replace(process, config=described), classes, content, source)
    distil: Callable[[bool], None] | None = getattr(student.network, "set_distilled_training", None)
    if distil is not None:
        distil(True)
    return teacher.requires_grad_(False).eval()


@contextlib.contextmanager
def _refusals(source: str) -> Iterator[None]:
    """Errors of weights as those of the user's input."""
    try:
        yield
    except (InputError, pretrained.PretrainedError) as error:
        raise InputError(f"{source}: {error}") from None


def _log(process: Process, line: str) -> None:
    if line and process.world.is_main:
        log.info("%s", line)


def _initial(process: Process, num_classes: int) -> models.Classifier:
    torch.manual_seed(process.config.seed)
    return models.create(
        process.config.model,
        num_classes,
        process.config.model_options,
        blurpool=process.config.blurpool,
        grad_checkpointing=process.config.grad_checkpointing,
    )


def _on_device(process: Process, classifier: models.Classifier) -> models.Classifier:
    if process.config.sync_bn:
        classifier = nn.SyncBatchNorm.convert_sync_batchnorm(classifier)
    classifier.to(process.device)
    if process.channels_last:
        classifier.to(memory_format=torch.channels_last)
    return classifier
