"""From host memory to the device, one batch ahead of the step."""

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from pipeline.contract import Batch, LoaderSpec


def to_device(batches: Iterator[Batch], spec: LoaderSpec) -> Iterator[Batch]:
    """Give the batches on `spec.device`, with the strides it wants. Host batches may be borrowed too."""
    moved = batches if spec.device.type == "cpu" else _copied_ahead(batches, spec.device)
    for batch in moved:
        yield batch if spec.channels_last else batch._replace(images=batch.images.contiguous())


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Copy each batch on a stream of its own while the step works on the one before.

    The host buffer of a copy is released (by asking for the next host batch) only when the copy is done, so a
    loader may reuse it. That wait comes after the consumer has queued a whole step: it finds the copy finished.
    """
    copies = torch.Stream(device=device)
    ready: tuple[Batch, torch.Event] | None = None
    for host in batches:
        with copies:
            batch = _moved(host, device)
        copied = copies.record_event()
        if ready is not None:
            yield _hand_over(*ready, device)
        ready = batch, copied
        copied.synchronize()
    if ready is not None:
        yield _hand_over(*ready, device)


def _moved(host: Batch, device: torch.device) -> Batch:
    """From pinned memory, into which it is copied where the loader does not make it there: from other memory, nothing
    would be asynchronous. The images travel as they lie, [B, R, R, 3]: not every device has channels_last strides."""
    as_they_lie = host._replace(images=host.images.permute(0, 2, 3, 1))
    batch = Batch(*(tensor.to(device, non_blocking=True) for tensor in map(_pinned, as_they_lie)))
    return batch._replace(images=batch.images.permute(0, 3, 1, 2))


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor  # itself, if it is so already


def _hand_over(batch: Batch, copied: torch.Event, device: torch.device) -> Batch:
    """Order the step behind the copy, and tell the allocator that the step's stream uses the memory."""
    stream = torch.accelerator.current_stream(device)
    stream.wait_event(copied)
    for tensor in batch:
        tensor.record_stream(stream)
    return batch
