"""The copy to a CUDA device, ahead of the step and on a stream of its own. Skipped without one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.contract import Batch, LoaderSpec
from pipeline.loaders import to_device
from pipeline.order.crops import CropPolicy
from pipeline.storage.manifest import SplitInfo
from pipeline.storage.split import Split

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BATCH, SIDE, BATCHES = 16, 96, 12


@pytest.fixture
def spec() -> LoaderSpec:
    split = Split("train", Path("none"), ("a",), SplitInfo(samples=BATCH, bytes=0, image_mode="synthetic"))
    crop = CropPolicy(training=True)
    return LoaderSpec(split=split, batch_size=BATCH, crop=crop, device=torch.device("cuda", 0))


def borrowed(pinned: bool) -> Iterator[Batch]:
    """Batches that all stand in the same memory: number n is full of the value n."""
    images = torch.empty(BATCH, SIDE, SIDE, 3, dtype=torch.uint8, pin_memory=pinned).permute(0, 3, 1, 2)
    labels, indices = (torch.empty(BATCH, dtype=torch.int64, pin_memory=pinned) for _ in range(2))
    for number in range(BATCHES):
        for tensor in (images, labels, indices):
            tensor.fill_(number)
        yield Batch(images, labels, indices)


def step(matrix: torch.Tensor) -> torch.Tensor:
    """Work for the device, of some milliseconds, that the host does not wait for."""
    for _ in range(8):
        matrix = (matrix @ matrix).clamp(-1, 1)
    return matrix


@pytest.mark.parametrize("pinned", [True, False])
def test_borrowed_memory_is_copied_before_the_loader_writes_to_it_again(spec: LoaderSpec, pinned: bool) -> None:
    """Also while the device is busy with steps, and also in the memory that the batches before had on the device."""
    matrix = torch.randn(2048, 2048, device="cuda")
    sums = []
    for batch in to_device(borrowed(pinned), spec):
        matrix = step(matrix)
        sums.append(torch.stack([tensor.float().mean() for tensor in batch]))  # on the device, after that work
    expected = torch.arange(BATCHES, dtype=torch.float32)[:, None].expand(-1, 3)
    assert torch.equal(torch.stack(sums).cpu(), expected)


def test_images_arrive_in_channels_last_strides(spec: LoaderSpec) -> None:
    batch = next(to_device(borrowed(pinned=True), spec))
    assert {tensor.device for tensor in batch} == {spec.device}
    assert batch.images.shape == (BATCH, 3, SIDE, SIDE)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_copies_are_asynchronous_and_on_another_stream_than_the_step(spec: LoaderSpec, tmp_path: Path) -> None:
    matrix = torch.randn(2048, 2048, device="cuda")
    step(matrix)  # loads the kernels
    with torch.profiler.profile() as profiler:
        for _ in to_device(borrowed(pinned=False), spec):
            step(matrix)
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    copies = [event for event in events if event.get("cat") == "gpu_memcpy" and "HtoD" in event["name"]]
    assert len(copies) >= 3 * BATCHES
    assert all("Pinned" in copy["name"] for copy in copies)  # from pageable memory, nothing is asynchronous
    kernels = {event["args"]["stream"] for event in events if event.get("cat") == "kernel"}
    assert len(kernels) == 1
    assert kernels.isdisjoint(copy["args"]["stream"] for copy in copies)
