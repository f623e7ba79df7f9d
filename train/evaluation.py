"""Evaluation: every validation image exactly once, however many processes share them."""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import nn

from pipeline.contract import Batch
from train.finished import logits_of
from train.metrics import Totals
from train.network import TrainedModel
from train.predictions import Collector
from train.process import Process, SplitLoader

Watch = Callable[[Iterator[Batch]], Iterator[Batch]]
"""Passes batches on, and may show or time them."""


def evaluate_model(
    process: Process, model: TrainedModel, validation: SplitLoader, watch: Watch = iter
) -> dict[str, float]:
    """`evaluate` of a model in training: of its averaged weights where there are any, and then of the others with
    names that begin with `raw_`. A collective call."""
    result = evaluate(process, model.classifier, validation, watch)
    if model.ema is None:
        return result
    averaged = evaluate(process, model.ema.model, validation, watch)
    return averaged | {f"raw_{name}": result[name] for name in ("loss", "top1", "top5")}


def evaluate(
    process: Process,
    classifier: nn.Module,
    validation: SplitLoader,
    watch: Watch = iter,
    collector: Collector | None = None,
) -> dict[str, float]:
    """`Totals.result()` over the validation images of all ranks; a collector gets this rank's logits. A collective
    call."""
    _broadcast_buffers(process, classifier)
    was_training = classifier.training
    classifier.eval()
    totals = Totals(process.device)
    with torch.inference_mode(), process.autocast():
        for batch in watch(validation.loader.epoch(0, process.validation_resolution)):
            logits = logits_of(process, classifier, batch.images)
            totals.add(logits, batch.labels)
            if collector is not None:
                collector.add(logits, batch.labels, batch.indices)
    classifier.train(was_training)
    result = totals.result()
    assert result["images"] == validation.split.num_samples, "an evaluation counts every image exactly once"
    return result


def _broadcast_buffers(process: Process, classifier: nn.Module) -> None:
    """Rank 0's BatchNorm statistics to all, so that every rank evaluates the same model."""
    if process.world.size > 1:
        for buffer in classifier.buffers():
            dist.broadcast(buffer, 0)
