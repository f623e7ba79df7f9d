"""The real FFCV Loader with Sluice's own fields, decoder operations and traversal order.

FFCV brings the memory-mapped file, the compiled loop over threads and the batches prepared ahead. Sluice's
image decoder takes the crop from the plan, decodes with TurboJPEG's accurate DCT, resizes with antialias and
flips, in one pass per image; FFCV's own decoders draw crops that no seed reaches and resize with INTER_AREA.
"""

import contextlib
import queue
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numba
import numba.typed
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

_torch_threads = torch.get_num_threads()  # importing FFCV sets it to 1

_typed_dict = numba.typed.Dict
numba.typed.Dict = dict  # FFCV makes a constant of two entries one that numba compiles: 3 to 5 s at every start
import ffcv._libffcv  # noqa: E402
import ffcv.loader.loader  # noqa: E402
from ffcv.fields import IntField, RGBImageField  # noqa: E402
from ffcv.loader import Loader as FfcvPackageLoader  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402
from ffcv.memory_managers import OSCacheManager  # noqa: E402
from ffcv.memory_managers.os_cache import OSCacheContext  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.pipeline.operation import Operation  # noqa: E402
from ffcv.pipeline.state import State  # noqa: E402
from ffcv.reader import Reader  # noqa: E402
from ffcv.traversal_order.base import TraversalOrder  # noqa: E402

numba.typed.Dict = _typed_dict

from pipeline import augment, resize  # noqa: E402
from pipeline.augment import center_crop, random_flip, random_resized_crop  # noqa: E402
from pipeline.contract import Batch, CropPolicy, Loader, LoaderSpec  # noqa: E402
from pipeline.decode import crop_and_resize, decode  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.formats.beton import MODE_RAW  # noqa: E402
from pipeline.jpeg import crop, turbojpeg  # noqa: E402
from pipeline.jpeg.crop import crop_tiles  # noqa: E402
from pipeline.plan import Indices, Plan, StreamPlan  # noqa: E402
from pipeline.resize import resize_crop  # noqa: E402
from pipeline.transfer import to_device  # noqa: E402

READS = ("ffcv", "ffcv-raw")

EPOCH_SHIFT = 40
"""FFCV hands an operation the positions of a batch and nothing else, so the epoch rides in their high bits."""
_POSITION = (1 << EPOCH_SHIFT) - 1
_IMAGES_PER_TURN = 2  # images cost unequal time: 7 % faster than the static split (2 threads, batch 64)
# A decoder for each turn, not each thread: numba does not cache what asks for its thread's number on disk.


def _set_numba_threads(cls: type[Compiler], count: int) -> None:
    """FFCV's own version sets torch's threads too, which slows a model on CPU down to the loader's number."""
    cls.num_threads = min(max(count, 1), numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(cls.num_threads)


Compiler.set_num_threads = classmethod(_set_numba_threads)
torch.set_num_threads(_torch_threads)
turbojpeg.load_from(ffcv._libffcv.__file__)


@njit(nogil=True)
def _load_jpeg(decoder, jpeg, height, width, box, flip, out):  # type: ignore[no-untyped-def]
    """One JPEG, from stored bytes to its place in the batch. Returns whether nothing was wrong with it.

    Scratch comes from this thread's heap, at no cost after the first image.
    """
    part = np.empty(jpeg.size, np.uint8)
    size, top, left = crop_tiles(jpeg, box[0], box[1], box[2], box[3], part)
    if size:
        jpeg = part[:size]
        height, width = turbojpeg.read_size(decoder, jpeg)
    elif turbojpeg.read_size(decoder, jpeg) != (height, width):
        return False
    if top + box[2] > height or left + box[3] > width:
        return False
    image = np.empty((height, width, 3), np.uint8)
    sound = turbojpeg.decode_rgb(decoder, jpeg, image)
    resize_crop(image, top, left, box[2], box[3], flip, out)
    return sound


@njit(nogil=True)
def _load_image(decoder, sample, epoch, entry, stored, seed, training, policy, out):  # type: ignore[no-untyped-def]
    """One sample, from stored bytes to its place in the batch. Returns whether nothing was wrong with it."""
    height, width = np.int64(entry["height"]), np.int64(entry["width"])
    if training:
        box = random_resized_crop(seed, epoch, sample, height, width, policy[0], policy[1], policy[2], policy[3])
        flip = random_flip(seed, epoch, sample, policy[4])
    else:
        box, flip = center_crop(height, width, policy[5]), False
    if entry["mode"] == MODE_RAW:
        resize_crop(stored.reshape((height, width, 3)), box[0], box[1], box[2], box[3], flip, out)
        return True
    return _load_jpeg(decoder, stored, height, width, box, flip, out)


def _batch_kernel(sources: int) -> Callable:
    """The kernel that fills a batch. numba's cache notices a change of this file alone, and of what a kernel closes
    over: `sources` stands for the files of the functions that are compiled into it."""

    @njit(nogil=True, parallel=True, cache=True)
    def load_batch(codes, images, sound, metadata, file, sizes, seed, training, policy):  # type: ignore[no-untyped-def]
        """Fill `images` (uint8 [B, R, R, 3]) and `sound` (bool [B]) with the samples that `codes` names.

        `policy` is (min area, max area, min ratio, max ratio, flip probability, centre share).
        """
        assert sources
        for turn in prange((len(codes) + _IMAGES_PER_TURN - 1) // _IMAGES_PER_TURN):
            decoder = turbojpeg.create_decoder()
            for row in range(turn * _IMAGES_PER_TURN, min((turn + 1) * _IMAGES_PER_TURN, len(codes))):
                sample, epoch = codes[row] & _POSITION, codes[row] >> EPOCH_SHIFT
                at = metadata[sample]["data_ptr"]
                stored = file[at : at + sizes[sample]]
                sound[row] = _load_image(
                    decoder, sample, epoch, metadata[sample], stored, seed, training, policy, images[row]
                )
            turbojpeg.destroy_decoder(decoder)

    return load_batch


def _digest(*modules: ModuleType) -> int:
    """A number that changes with the source of any of the modules."""
    return zlib.crc32(b"".join(Path(str(module.__file__)).read_bytes() for module in modules)) | 1 << 32


_load_batch = _batch_kernel(_digest(augment, crop, resize, turbojpeg))


class ImageDecoder(Operation):
    """Stored JPEGs or pixels to cropped, resized and flipped images, and which of them were sound."""

    def __init__(self, policy: CropPolicy, seed: int) -> None:
        super().__init__()
        self.resolution = 224  # set for each epoch, before FFCV allocates its batches
        self._policy, self._seed = policy, seed

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, AllocationQuery]]:
        shape, dtype = (self.resolution, self.resolution, 3), np.dtype(np.uint8)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, (AllocationQuery(shape, dtype), AllocationQuery((), np.dtype(np.bool_)))

    def generate_code(self) -> Callable:
        seed, training = self._seed, self._policy.training
        policy = (
            *self._policy.area,
            *self._policy.ratio,
            self._policy.flip_probability,
            self._policy.center_share,
        )

        def decode_images(
            codes: Indices, memory: tuple[np.ndarray, np.ndarray], metadata: np.ndarray, storage: tuple
        ) -> tuple[Tensor, Tensor]:
            images, sound = memory
            file, _, sizes = storage  # samples were appended in order, so sizes are by sample
            numba.set_parallel_chunksize(1)  # not in the kernel: numba would not cache it on disk
            _load_batch(codes, images, sound, metadata, file, sizes, seed, training, policy)
            return torch.from_numpy(images), torch.from_numpy(sound)

        return decode_images


class LabelDecoder(Operation):
    """Label and dataset position of each sample, int64 [B] each."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        return replace(previous_state, jit_mode=True, shape=(2,), dtype=np.dtype(np.int64)), None

    def generate_code(self) -> Callable:
        def decode_labels(codes: Indices, _: None, metadata: np.ndarray, storage: tuple) -> tuple[Tensor, Tensor]:
            positions = codes & _POSITION
            return torch.from_numpy(metadata[positions].astype(np.int64)), torch.from_numpy(positions)

        return decode_labels


class StoredImageField(RGBImageField):
    """FFCV's image field, read by ImageDecoder."""

    @staticmethod
    def from_binary(binary: np.ndarray) -> "StoredImageField":
        return StoredImageField()

    def get_decoder_class(self) -> type[Operation]:
        return ImageDecoder


class StoredLabelField(IntField):
    """FFCV's integer field, read by LabelDecoder."""

    @staticmethod
    def from_binary(binary: np.ndarray) -> "StoredLabelField":
        return StoredLabelField()

    def get_decoder_class(self) -> type[Operation]:
        return LabelDecoder


class MappedFile(OSCacheManager):
    """FFCV's memory-mapped file, without its tables of pages (seconds of Python for a million samples) and its
    compiled reader, which ImageDecoder does not need: describing that reader's argument, FFCV turns numba's own
    type for uint8 vectors into a read-only one, for every kernel in the process."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.ptrs, self.sizes = (np.ascontiguousarray(reader.alloc_table[name]) for name in ("ptr", "size"))
        self.context = OSCacheContext(self)

    def compile_reader(self) -> None:
        """Nothing reads through FFCV."""


@contextlib.contextmanager
def _our_way() -> Iterator[None]:
    """FFCV's Loader makes its memory manager itself; inside this block it makes ours. And it compiles, anew in each
    process, the functions that call the operations: 0.5 s, for what takes no time between calls of whole batches."""
    ffcv.loader.loader.OSCacheManager = MappedFile
    Compiler.set_enabled(False)
    try:
        yield
    finally:
        ffcv.loader.loader.OSCacheManager = OSCacheManager
        Compiler.set_enabled(True)


class PlanOrder(TraversalOrder):
    """The plan's order as FFCV takes it: an instance that FFCV calls with its loader."""

    def __init__(self, plan: Plan | StreamPlan) -> None:
        self._plan, self.start_batch = plan, 0

    def __call__(self, loader: FfcvPackageLoader) -> "PlanOrder":
        return self

    def sample_order(self, epoch: int) -> Indices:
        batches = list(self._plan.batches(epoch, self.start_batch))
        return np.concatenate([np.empty(0, np.int64), *batches]) | (epoch << EPOCH_SHIFT)


class FfcvLoader:
    """FFCV's Loader behind Sluice's contract."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec, self._samples = spec, spec.split.beton
        self.batches_per_epoch = spec.plan.batches_per_epoch
        self._order, self._decoder = PlanOrder(spec.plan), ImageDecoder(spec.crop, spec.seed)
        self._iterator: EpochIterator | None = None
        with _our_way():
            self._loader = FfcvPackageLoader(
                str(spec.split.beton_path),
                batch_size=spec.batch_size,
                num_workers=max(1, spec.workers),
                os_cache=True,
                order=self._order,
                seed=spec.seed,
                pipelines={"image": [self._decoder], "label": [LabelDecoder()]},
                custom_fields={"image": StoredImageField, "label": StoredLabelField},
                drop_last=False,
            )

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        self.close()
        if start_batch >= self.batches_per_epoch:
            return iter(())
        self._loader.next_epoch, self._order.start_batch = epoch, start_batch
        self._decoder.resolution = resolution
        self._iterator = iter(self._loader)
        return to_device(self._host_batches(self._iterator, epoch, resolution), self._spec)

    def close(self) -> None:
        if self._iterator is not None:
            _stop(self._iterator)
            self._iterator = None

    def _host_batches(self, iterator: EpochIterator, epoch: int, resolution: int) -> Iterator[Batch]:
        for (images, sound), (labels, indices) in _results(iterator):
            batch = Batch(images.permute(0, 3, 1, 2), labels, indices)
            for row in (~sound).nonzero().flatten().tolist():
                self._redo(batch, row, epoch, resolution)
            yield batch

    def _redo(self, batch: Batch, row: int, epoch: int, resolution: int) -> None:
        """Load an image that TurboJPEG reported with the reference decoder: it takes a few that TurboJPEG does
        not, and of those that are only worth a warning it gives the same pixels. Raises InputError for the
        rest."""
        index, spec = int(batch.indices[row]), self._spec
        image = decode(self._samples, index, self._samples[index].jpeg)
        entry = self._samples.metadata["f0"][index]
        if tuple(image.shape[1:]) != (entry["height"], entry["width"]):
            raise InputError(f"{self._samples.name(index)}: not of the size that the file says; convert again")
        crop = spec.crop.crop(spec.seed, epoch, index, *image.shape[1:])
        batch.images[row] = crop_and_resize(image, crop, resolution)


def _results(iterator: EpochIterator) -> Iterator[tuple]:
    """FFCV's batches. Its own __next__ waits for ever when the loading thread has died."""
    while True:
        try:
            item = iterator.output_queue.get(timeout=1.0)
        except queue.Empty:
            if iterator.is_alive():
                continue
            raise RuntimeError("FFCV's loading thread died; its traceback is above") from None
        if item is None:
            return
        yield item[1]


def _stop(iterator: EpochIterator) -> None:
    """End the loading thread, wherever it is: preparing a batch, or waiting for room in the queue."""
    iterator.iter_ixes = iter(())
    iterator.terminate_event.set()
    while iterator.is_alive():
        try:
            iterator.output_queue.get(timeout=0.01)
        except queue.Empty:
            continue
    iterator.close()


def create(spec: LoaderSpec) -> Loader:
    """The loader of this file."""
    return FfcvLoader(spec)
