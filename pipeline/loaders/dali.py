"""DALI, fed with the parts of the stored JPEGs that the plan's crops need; decodes on the GPU where the device is one,
else on the CPU.

On the GPU, DALI resizes too. On the CPU Sluice's kernel does: DALI's resize takes twice as long as its decoding, and
repeats the pixels at a crop's edge, where PyTorch leaves the missing ones out of the average (off by up to 18/255). In
evaluation the filter reads the pixels around the crop, so this concerns only crops that reach the image's edge.

On the CPU, Sluice's decoder also takes the tiles, in this loader's threads, where it is used at all (`--decoder`). What
is left for DALI then is what that decoder does not know: files that are not tiled, and rare kinds of JPEG.

A pipeline is built for each epoch (15 ms on CPU): its resolution is fixed when it is built, and the queues of an
abandoned epoch go with it.

DALI stops at an image that cannot be decoded at all, without saying which: the reference decoder finds it. What
libjpeg only warns of (missing or altered image data) DALI decodes as far as it can and does not report; tiles are known
by their checksums before DALI gets them.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import simplejpeg
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline

from ..contract import Batch, Loader, LoaderFacts, LoaderSpec
from ..errors import InputError
from ..order.crops import Crop
from ..order.plan import POSITION, Indices, positions
from ..pixels.decode import crop_of, cut, decode, decode_tiles, resize_into
from ..pixels.decoders import uses_own
from ..pixels.formats import BadImage
from ..pixels.jpeg.headers import JpegError
from ..threads import in_order
from . import _dali_internals
from ._transfer import to_device

FACTS = LoaderFacts(
    reads=("webdataset", "folder", "ffcv"),
    priority=30,
    package="nvidia.dali",
    install="pip install nvidia-dali-cuda130",
    needs="`pip install nvidia-dali-cuda130`; CPU pipelines run without a GPU",
    timed=("read", "crop", "entropy", "transform", "colour", "resize"),  # on a GPU DALI does all but the first two
    untimed="DALI's own work: decoding on a GPU and of what is not tiled",
    notices_altered_data=False,  # of what is not tiled
)

PREFETCH = 2  # batches
IMAGES_PER_TASK = 4  # of a thread: submitting a task costs a tenth of resizing one image

PLACEHOLDER = np.frombuffer(simplejpeg.encode_jpeg(np.zeros((8, 8, 1), np.uint8), colorspace="GRAY"), np.uint8)
"""What DALI is fed where it has nothing to decode of a batch: it takes no empty ones."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class GpuDecoding:
    """How DALI decodes on a GPU: by default as the loader does; other ways are for measuring what they take."""

    hardware_share: float = 0.65
    """Of the images, how many go to the GPU's JPEG engine where it has one, 0 to 1; DALI's own default. The rest are
    decoded by nvJPEG's kernels."""
    fancy_upsampling: bool = True
    """As libjpeg-turbo decodes by default, and so every other loader."""


AS_EVERY_LOADER = GpuDecoding()


class Part(NamedTuple):
    """What DALI is fed for an image: the part of its JPEG that a crop needs, as a JPEG, and the crop in it."""

    row: int  # in the batch
    jpeg: np.ndarray  # uint8 [N]
    crop: Crop


class BatchInputs(NamedTuple):
    """A batch as far as it is made without DALI."""

    keys: Indices
    labels: Indices
    images: np.ndarray | None  # uint8 [at least B, R, R, 3], its rows that are no part complete; None if DALI resizes
    parts: list[Part]


class ResizeArguments(NamedTuple):
    """A crop as DALI's operators take it. Each is an array of the vertical and the horizontal value."""

    box_start: np.ndarray  # int32, as the next
    box_shape: np.ndarray
    window_start: np.ndarray  # float32, as the next, in pixels from the box's corner on
    window_end: np.ndarray
    size: np.ndarray  # float32: of the resized window
    output_start: np.ndarray  # int32: of the output in it, negative where black pixels come first
    flip: np.ndarray  # int32, one value

    @classmethod
    def of(cls, crop: Crop, resolution: int) -> "ResizeArguments":
        """DALI repeats an image's last pixels beyond it. So where the window is larger than the box, the box alone is
        resized, to as many pixels as the window has of it, and the rest is padded."""
        y, x, rows, columns = crop.window
        axes = [_resize_axis(crop.height, y, rows, resolution), _resize_axis(crop.width, x, columns, resolution)]
        starts, ends, sizes, outputs = zip(*axes, strict=True)
        box_start, box_shape = np.array(crop.box[:2], np.int32), np.array(crop.box[2:], np.int32)
        window = np.array(starts, np.float32), np.array(ends, np.float32)
        size, output_start = np.array(sizes, np.float32), np.array(outputs, np.int32)
        return cls(box_start, box_shape, *window, size, output_start, np.array(crop.flip, np.int32))


def _resize_axis(box: int, start: float, length: float, resolution: int) -> tuple[float, float, int, int]:
    """Along one axis: start and end of the window inside the box, its size when resized, and where the output starts in
    that."""
    if length <= box:
        return start, start + length, resolution, 0
    scale = length / resolution
    return 0.0, float(box), round(box / scale), round(start / scale)


class Source:
    """The external source: what DALI is to decode of each batch, in the plan's order, prepared ahead in threads; and,
    if DALI is to resize to `resolution` (`resizes`), the arguments of its operators. If not, Sluice's decoder makes the
    images that it knows, and they are no parts; `unused` is the memory of earlier batches, which they may overwrite."""

    def __init__(
        self,
        spec: LoaderSpec,
        epoch: int,
        resolution: int,
        batches: Iterator[Indices],
        resizes: bool,
        unused: list[np.ndarray],
    ) -> None:
        self._spec, self._epoch, self._resolution, self._resizes = spec, epoch, resolution, resizes
        workers = max(1, spec.workers)
        self._pool = ThreadPoolExecutor(workers)
        # A thread makes a whole batch: with a few images a turn, it waited for Python's lock after each.
        self._inputs: Generator[BatchInputs, None, None] = in_order(self._prepare, batches, workers, workers + PREFETCH)
        self._unused = unused
        self.in_dali: deque[BatchInputs] = deque()  # fed to DALI, their results not yet taken

    def __iter__(self) -> "Source":
        return self

    def __next__(self) -> tuple[list[np.ndarray], ...]:
        inputs = next(self._inputs)
        self.in_dali.append(inputs)
        jpegs = [part.jpeg for part in inputs.parts]
        if not self._resizes:
            return (jpegs or [PLACEHOLDER],)
        arguments = [ResizeArguments.of(part.crop, self._resolution) for part in inputs.parts]
        return jpegs, *map(list, zip(*arguments, strict=True))

    def close(self) -> None:
        """End the threads."""
        self._inputs.close()
        self._pool.shutdown(cancel_futures=True)

    def for_images(self, function: Callable[[int], Result], count: int) -> Iterator[Result]:
        """Apply a function to 0, 1, ..., `count` - 1 in threads, a few at a time."""

        def some(start: int) -> list[Result]:
            return [function(number) for number in range(start, min(start + IMAGES_PER_TASK, count))]

        return chain.from_iterable(self._pool.map(some, range(0, count, IMAGES_PER_TASK)))

    def _prepare(self, keys: Indices) -> BatchInputs:
        labels, images = np.empty(len(keys), np.int64), None if self._resizes else self._memory()
        parts = list[Part]()
        for row, key in enumerate(keys.tolist()):
            with self._spec.clock.part("read"):
                stored, labels[row] = self._spec.split.samples[key & POSITION]
            if part := self._prepare_image(row, key, stored, images):
                parts.append(part)
        return BatchInputs(keys, labels, images, parts)

    def _memory(self) -> np.ndarray:
        shape = (self._spec.batch_size, self._resolution, self._resolution, 3)
        with contextlib.suppress(IndexError):  # other threads take some too
            while (images := self._unused.pop()).shape != shape:
                continue  # of an epoch of another resolution
            return images
        return np.empty(shape, np.uint8)

    def _prepare_image(self, row: int, key: int, stored: bytes, images: np.ndarray | None) -> Part | None:
        """Load an image into its row, or cut out what DALI is to decode of it."""
        spec, samples, index = self._spec, self._spec.split.samples, key & POSITION
        try:
            crop = crop_of(spec, key, stored, self._epoch, self._resolution)
        except (JpegError, BadImage) as error:
            raise InputError(f"{samples.name(index)}: {error}; convert again") from None
        tiles = None if images is None else decode_tiles(spec, samples, index, stored, crop)
        if images is None or tiles is None:
            with spec.clock.part("crop"):
                return Part(row, *cut(samples, index, stored, crop))
        with spec.clock.part("resize"):
            resize_into(samples, index, *tiles, images[row])
        return None


@pipeline_def
def image_pipeline(
    source: Source,
    resolution: int,
    on_gpu: bool,
    resizes: bool,
    cubic: bool,
    decoding: GpuDecoding = AS_EVERY_LOADER,
) -> Any:
    """Decoded images, uint8 [H, W, 3] each; if DALI `resizes`, uint8 [B, R, R, 3]: crop, antialiased resize, bicubic or
    bilinear, black pixels beyond the image, flip. A pipeline on the CPU can resize too, which is how this is tested."""
    num_inputs = 1 + (len(ResizeArguments._fields) if resizes else 0)
    # no_copy: the source keeps what it handed over until it is decoded.
    jpegs, *arguments = fn.external_source(source=source, num_outputs=num_inputs, batch=True, no_copy=not resizes)
    images = fn.decoders.image(
        jpegs,
        device="mixed" if on_gpu else "cpu",
        output_type=types.RGB,
        jpeg_fancy_upsampling=decoding.fancy_upsampling,
        hw_decoder_load=decoding.hardware_share,  # the decoder of the CPU takes it too, and ignores it
        use_fast_idct=False,
        adjust_orientation=False,
    )
    if not resizes:
        return images
    to = ResizeArguments(*arguments)
    # Not decoders.image_slice: it upsamples chroma without the pixels beyond the crop (off by up to 13/255).
    images = fn.slice(images, start=to.box_start, shape=to.box_shape, axis_names="HW")
    images = fn.resize(
        images,
        roi_start=to.window_start,
        roi_end=to.window_end,
        size=to.size,
        interp_type=types.INTERP_CUBIC if cubic else types.INTERP_LINEAR,
        antialias=True,
    )
    shape = [resolution, resolution]
    images = fn.slice(images, start=to.output_start, shape=shape, axis_names="HW", out_of_bounds_policy="pad")
    return fn.flip(images, horizontal=to.flip)


class DaliLoader:
    """DALI behind Sluice's contract."""

    def __init__(self, spec: LoaderSpec, decoding: GpuDecoding = AS_EVERY_LOADER) -> None:
        self._spec, self._plan, self._decoding = spec, spec.plan, decoding
        self._samples = spec.split.samples  # opened here, so that a damaged file is named before the first step
        self.batches_per_epoch = self._plan.batches_per_epoch
        self._on_gpu = spec.device.type == "cuda"
        if not self._on_gpu:
            uses_own(spec.decoder)
        self._pipeline: Pipeline | None = None
        self._source: Source | None = None
        self._unused: list[np.ndarray] = []  # kept for the next epoch: the kernel zeroes new memory, page by page

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        self.close()
        if start_batch >= self.batches_per_epoch:
            return iter(())
        spec = self._spec
        batches = self._plan.batches(epoch, start_batch)
        self._source = Source(spec, epoch, resolution, batches, self._on_gpu, self._unused)
        pipeline: Pipeline = image_pipeline(
            self._source,
            resolution,
            on_gpu=self._on_gpu,
            resizes=self._on_gpu,
            cubic=spec.crop.cubic,
            decoding=self._decoding,
            batch_size=spec.batch_size,
            num_threads=max(1, spec.workers),
            device_id=spec.device.index or 0 if self._on_gpu else None,
            prefetch_queue_depth=PREFETCH,
            exec_dynamic=True,  # outputs stay valid while a tensor shares them: the copy ahead asks for the next
        )
        pipeline.build()
        self._pipeline = pipeline
        return to_device(self._batches(pipeline, self._source), spec)

    def close(self) -> None:
        """End DALI's threads and those that work ahead."""
        if self._pipeline is not None:
            _dali_internals.shut_down(self._pipeline)
            self._pipeline = None
        if self._source is not None:
            self._source.close()
            self._source = None

    def _batches(self, pipeline: Pipeline, source: Source) -> Iterator[Batch]:
        while self._source is source:
            try:
                (decoded,) = pipeline.run()
            except StopIteration:
                return
            except RuntimeError:
                for inputs in source.in_dali:
                    for index in positions(inputs.keys[[part.row for part in inputs.parts]]).tolist():
                        decode(self._samples, index, self._samples[index].jpeg)  # raises for the bad one
                raise
            keys, labels, memory, parts = source.in_dali.popleft()
            indices = positions(keys)
            if memory is None:
                images = torch.utils.dlpack.from_dlpack(decoded.as_tensor())
            else:
                self._resize(source, decoded, indices, parts, memory)
                images = torch.from_numpy(memory[: len(indices)])
            yield Batch(images.permute(0, 3, 1, 2), torch.from_numpy(labels), torch.from_numpy(indices))
            if memory is not None:
                self._unused.append(memory)

    def _resize(self, source: Source, decoded: Any, indices: Indices, parts: list[Part], images: np.ndarray) -> None:
        """Resize what DALI decoded into its rows."""

        def resize(number: int) -> None:
            row, _, crop = parts[number]
            with self._spec.clock.part("resize"):
                resize_into(self._samples, int(indices[row]), np.asarray(decoded[number]), crop, images[row])

        list(source.for_images(resize, len(parts)))


def create(spec: LoaderSpec) -> Loader:
    """DALI over the split's samples. Raises InputError where they cannot be opened."""
    return DaliLoader(spec)
