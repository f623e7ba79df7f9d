"""From host memory to the device, one batch ahead of the step."""

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from ..contract import Batch, LoaderSpec


def to_device(batches: Iterator[Batch], spec: LoaderSpec) -> Iterator[Batch]:
    """The batches on `spec.device`, with the strides it wants. Host batches may be borrowed too."""
    on_device = batches if spec.device.type == "cpu" else _copied_ahead(batches, spec.device)
    for batch in on_device:
        yield batch if spec.channels_last else batch._replace(images=batch.images.contiguous())


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Copy each batch on a stream of its own while the step works on the one before.

    The host buffer is released, by asking for the next host batch, only when the copy is done, so a loader may reuse
    it. That wait comes after the consumer has queued a whole step, by when the copy has usually finished.
    """
    copies = torch.Stream(device=device)
    ready: tuple[Batch, torch.Event] | None = None
    for host in batches:
        with copies:
            batch = _copied(host, device)
        copied = copies.record_event()
        if ready is not None:
            yield _hand_over(*ready, device)
        ready = batch, copied
        copied.synchronize()
    if ready is not None:
        yield _hand_over(*ready, device)


def _copied(host: Batch, device: torch.device) -> Batch:
    """Copied from pinned memory, to which it is copied first where the loader did not load it there: from pageable
    memory nothing is asynchronous. Images are copied in memory order, [B, R, R, 3]: not every device has channels_last
    strides."""
    in_memory_order = host._replace(images=host.images.permute(0, 2, 3, 1))
    batch = Batch(*(tensor.to(device, non_blocking=True) for tensor in map(_pinned, in_memory_order)))
    return batch._replace(images=batch.images.permute(0, 3, 1, 2))


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor  # itself, if it is pinned already


def _hand_over(batch: Batch, copied: torch.Event, device: torch.device) -> Batch:
    """Make the step's stream wait for the copy, and note for the allocator that this stream uses the memory."""
    stream = torch.accelerator.current_stream(device)
    stream.wait_event(copied)
    for tensor in batch:
        tensor.record_stream(stream)
    return batch
