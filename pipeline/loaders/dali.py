"""DALI, fed with the parts of the stored JPEGs that the plan's crops need; decodes on the GPU where the device is one,
else on the CPU.

On the GPU, DALI resizes too. On the CPU Sluice's kernel does: DALI's takes twice as long as its decoding, and repeats
the pixels at a crop's edge, where PyTorch leaves the missing ones out of the average (off by up to 18/255).

A pipeline is built for each epoch (15 ms on CPU): its resolution is fixed when it is built, and an epoch that
is left in the middle leaves nothing behind in its queues.

DALI stops at an image that cannot be decoded at all, without saying which: the reference decoder finds it. What
libjpeg only warns of (missing or altered image data) DALI decodes as far as it goes and does not report.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from pipeline.contract import Batch, Crop, Loader, LoaderSpec
from pipeline.decode import cropped, decode, resize_into
from pipeline.errors import InputError
from pipeline.jpeg.headers import JpegError
from pipeline.plan import Indices
from pipeline.threads import in_order
from pipeline.transfer import to_device

READS = ("webdataset", "folder", "ffcv")
PREFETCH = 2  # batches
IMAGES_PER_TASK = 4  # of a thread that resizes: giving it one costs as much as a tenth of its work
NOTICES_ALTERED_DATA = False


class Inputs(NamedTuple):
    """What DALI is given of a batch, and what is kept beside it."""

    indices: Indices
    labels: list[int]
    crops: list[Crop]  # in the parts
    parts: list[np.ndarray]  # JPEGs, uint8 [N]


class _Source:
    """The external source: the JPEGs of each batch, in the plan's order, made ahead by a thread; and, if DALI is to
    crop (`boxes`), their crops."""

    def __init__(self, spec: LoaderSpec, epoch: int, batches: Iterator[Indices], boxes: bool) -> None:
        self._spec, self._epoch, self._boxes = spec, epoch, boxes
        self._inputs: Generator[Inputs, None, None] = in_order(self._make, batches, workers=1)
        self.given: deque[Inputs] = deque()  # to DALI, whose results have not been taken

    def __iter__(self) -> "_Source":
        return self

    def __next__(self) -> tuple[list[np.ndarray], ...]:
        inputs = next(self._inputs)
        self.given.append(inputs)
        if not self._boxes:
            return (inputs.parts,)
        start = [np.array([crop.top, crop.left], np.int32) for crop in inputs.crops]
        shape = [np.array([crop.height, crop.width], np.int32) for crop in inputs.crops]
        return inputs.parts, start, shape, [np.array(crop.flip, np.int32) for crop in inputs.crops]

    def close(self) -> None:
        """End the thread."""
        self._inputs.close()

    def _make(self, indices: Indices) -> Inputs:
        samples, spec = self._spec.split.samples, self._spec
        labels, crops, parts = [], [], []
        for index in indices.tolist():
            stored, label = samples[index]
            try:
                part, crop = cropped(stored, spec.crop, spec.seed, self._epoch, index)
            except JpegError as error:
                raise InputError(f"{samples.name(index)}: {error}; convert again") from None
            labels.append(label)
            crops.append(crop)
            parts.append(part)
        return Inputs(indices, labels, crops, parts)


@pipeline_def
def image_pipeline(source: _Source, resolution: int, on_gpu: bool) -> Any:
    """On the GPU: decode, crop, antialiased bilinear resize, flip: uint8 [B, R, R, 3]. On the CPU: decode alone."""
    # The source keeps what it gave until it is decoded.
    jpegs, *boxes = fn.external_source(source=source, num_outputs=4 if on_gpu else 1, batch=True, no_copy=not on_gpu)
    images = fn.decoders.image(
        jpegs,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        # As libjpeg-turbo decodes by default, and so every other loader.
        jpeg_fancy_upsampling=True,
        use_fast_idct=False,
        adjust_orientation=False,
    )
    if not on_gpu:
        return images
    start, shape, flip = boxes
    # Not decoders.image_slice: it upsamples chroma without the pixels beyond the crop (off by up to 13/255).
    images = fn.slice(images, start=start, shape=shape, axis_names="HW")
    images = fn.resize(images, size=[resolution, resolution], interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.flip(images, horizontal=flip)


class DaliLoader:
    """DALI behind Sluice's contract."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec, self._plan = spec, spec.plan
        self._samples = spec.split.samples  # opened here, so that a damaged file is named before the first step
        self.batches_per_epoch = self._plan.batches_per_epoch
        self._on_gpu = spec.device.type == "cuda"
        self._pool = ThreadPoolExecutor(max(1, spec.workers))
        self._batch = torch.empty(0)  # the images of the batch that was given last
        self._pipeline: Pipeline | None = None
        self._source: _Source | None = None

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        self._end_epoch()
        if start_batch >= self.batches_per_epoch:
            return iter(())
        spec = self._spec
        self._source = _Source(spec, epoch, self._plan.batches(epoch, start_batch), self._on_gpu)
        made: Pipeline = image_pipeline(
            self._source,
            resolution,
            self._on_gpu,
            batch_size=spec.batch_size,
            num_threads=max(1, spec.workers),
            device_id=spec.device.index or 0 if self._on_gpu else None,
            prefetch_queue_depth=PREFETCH,
            exec_dynamic=True,  # outputs stay valid while a tensor shares them: the copy ahead asks for the next
        )
        made.build()
        self._pipeline = made
        return to_device(self._batches(made, self._source, resolution), spec)

    def close(self) -> None:
        self._end_epoch()
        self._pool.shutdown()

    def _end_epoch(self) -> None:
        if self._pipeline is not None:
            # Now, as on its deletion: an error's traceback may hold it, and it may not be left to be deleted in a
            # process that is forked later, which would wait for ever for threads that it has not got.
            self._pipeline._shutdown()
            self._pipeline = None
        if self._source is not None:
            self._source.close()
            self._source = None

    def _batches(self, pipeline: Pipeline, source: _Source, resolution: int) -> Iterator[Batch]:
        while self._source is source:
            try:
                (decoded,) = pipeline.run()
            except StopIteration:
                return
            except RuntimeError:
                for index in np.concatenate([inputs.indices for inputs in source.given]).tolist():
                    decode(self._samples, index, self._samples[index].jpeg)  # names the bad one
                raise
            inputs = source.given.popleft()
            images = self._on_device(decoded) if self._on_gpu else self._resized(decoded, inputs, resolution)
            yield Batch(images.permute(0, 3, 1, 2), torch.tensor(inputs.labels), torch.from_numpy(inputs.indices))

    @staticmethod
    def _on_device(resized: Any) -> torch.Tensor:
        return torch.from_dlpack(resized.as_tensor())

    def _resized(self, decoded: Any, inputs: Inputs, resolution: int) -> torch.Tensor:
        count = len(inputs.indices)
        if self._batch.shape[1:] != (resolution, resolution, 3):
            self._batch = torch.empty(self._spec.batch_size, resolution, resolution, 3, dtype=torch.uint8)
        rows = self._batch.numpy()

        def resize(start: int) -> None:
            for row in range(start, min(start + IMAGES_PER_TASK, count)):
                image, index = np.asarray(decoded[row]), int(inputs.indices[row])
                resize_into(self._samples, index, image, inputs.crops[row], rows[row])

        list(self._pool.map(resize, range(0, count, IMAGES_PER_TASK)))
        return self._batch[:count]


def create(spec: LoaderSpec) -> Loader:
    """The loader of this file."""
    return DaliLoader(spec)
