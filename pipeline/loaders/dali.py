"""DALI, fed with stored JPEGs and the plan's crops; decodes on the GPU where the device is one, else on the CPU.

A pipeline is built for each epoch (15 ms on CPU): its resolution is fixed when it is built, and an epoch that
is left in the middle leaves nothing behind in its queues.

DALI stops at an image that cannot be decoded at all, without saying which: the reference decoder finds it. What
libjpeg only warns of (missing or altered image data) DALI decodes as far as it goes and does not report.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from pipeline.contract import Batch, Loader, LoaderSpec
from pipeline.decode import decode
from pipeline.errors import InputError
from pipeline.jpeg.headers import JpegError, read_header
from pipeline.plan import Indices
from pipeline.transfer import to_device

READS = ("webdataset", "folder", "ffcv")
PREFETCH = 2  # batches
NOTICES_ALTERED_DATA = False
MAX_DIFFERENCE = 40
"""DALI's decode is exact, and its resize within 1/255 but for the crop's outermost pixels: there it repeats the
edge, where PyTorch leaves the missing pixels out of the average. Up to 18/255 seen on photographs."""


class _Source:
    """The external source: stored bytes, crop boxes and flips of each batch, in the plan's order."""

    def __init__(self, spec: LoaderSpec, epoch: int, batches: Iterator[Indices]) -> None:
        self._spec, self._epoch, self._batches = spec, epoch, batches
        self.recent: deque[Indices] = deque(maxlen=2 + PREFETCH)  # one may hold what DALI stopped at

    def __iter__(self) -> "_Source":
        return self

    def __next__(self) -> tuple[list[np.ndarray], ...]:
        self.recent.append(next(self._batches))
        rows = [self._sample(index) for index in self.recent[-1].tolist()]
        return tuple(list(column) for column in zip(*rows, strict=True))

    def _sample(self, index: int) -> tuple[np.ndarray, ...]:
        samples, spec = self._spec.split.samples, self._spec
        jpeg, label = samples[index]
        try:
            header = read_header(jpeg)
        except JpegError as error:
            raise InputError(f"{samples.name(index)}: {error}; convert again") from None
        crop = spec.crop.crop(spec.seed, self._epoch, index, header.height, header.width)
        start = np.array([crop.top, crop.left], np.int32)
        shape = np.array([crop.height, crop.width], np.int32)
        numbers = np.array([label, index], np.int64)
        return np.frombuffer(jpeg, np.uint8), start, shape, np.array(crop.flip, np.int32), numbers


@pipeline_def
def image_pipeline(source: _Source, resolution: int, on_gpu: bool) -> tuple[Any, Any]:
    """Cropped decode, antialiased bilinear resize, flip; (images uint8 [B, R, R, 3], (label, position))."""
    jpegs, start, shape, flip, numbers = fn.external_source(source=source, num_outputs=5, batch=True)
    images = fn.decoders.image(
        jpegs,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        # As libjpeg-turbo decodes by default, and so every other loader.
        jpeg_fancy_upsampling=True,
        use_fast_idct=False,
        adjust_orientation=False,
    )
    # Not decoders.image_slice: it upsamples chroma without the pixels beyond the crop (off by up to 13/255).
    images = fn.slice(images, start=start, shape=shape, axis_names="HW")
    images = fn.resize(images, size=[resolution, resolution], interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.flip(images, horizontal=flip), numbers


class DaliLoader:
    """DALI behind Sluice's contract."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec, self._plan = spec, spec.plan
        self._samples = spec.split.samples  # opened here, so that a damaged file is named before the first step
        self.batches_per_epoch = self._plan.batches_per_epoch
        self._pipeline: Pipeline | None = None

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        self.close()
        if start_batch >= self.batches_per_epoch:
            return iter(())
        spec, on_gpu = self._spec, self._spec.device.type == "cuda"
        source = _Source(spec, epoch, self._plan.batches(epoch, start_batch))
        self._pipeline = image_pipeline(
            source,
            resolution,
            on_gpu,
            batch_size=spec.batch_size,
            num_threads=max(1, spec.workers),
            device_id=spec.device.index or 0 if on_gpu else None,
            prefetch_queue_depth=PREFETCH,
            exec_dynamic=True,  # outputs stay valid while a tensor shares them: the copy ahead asks for the next
        )
        self._pipeline.build()
        return to_device(self._batches(source), spec)

    def close(self) -> None:
        self._pipeline = None  # its last reference: DALI ends the threads

    def _batches(self, source: _Source) -> Iterator[Batch]:
        while self._pipeline is not None:
            try:
                images, numbers = self._pipeline.run()
            except StopIteration:
                return
            except RuntimeError:
                for index in np.concatenate(source.recent).tolist():
                    decode(self._samples, index, self._samples[index].jpeg)  # names the bad one
                raise
            pairs = torch.from_dlpack(numbers.as_tensor())
            yield Batch(torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2), pairs[:, 0], pairs[:, 1])


def create(spec: LoaderSpec) -> Loader:
    """The loader of this file."""
    return DaliLoader(spec)
