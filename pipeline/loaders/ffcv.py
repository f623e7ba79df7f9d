"""The real FFCV Loader with Sluice's own fields, decoder operations and traversal order.

FFCV brings the memory-mapped file, the compiled loop over threads and the batches prepared ahead. Sluice's image
operation takes the crop from the plan, decodes the tiles under it (TurboJPEG decodes what is not tiled), resizes with
antialias and flips, in one pass per image; FFCV's own decoders draw crops that no seed reaches and resize with
INTER_AREA.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from ..contract import Batch, Loader, LoaderFacts, LoaderSpec
from ..errors import InputError
from ..order.crops import Crop, CropPolicy, sample_crop
from ..order.plan import POSITION, Indices, RankPlan, positions
from ..pixels import kernel, turbojpeg
from ..pixels.decode import cut, decode, decode_tiles, resize_into
from ..pixels.decoders import uses_own
from ..pixels.resize import resize_crop
from ..pixels.whole import pixels_of
from ..storage.beton import MODE_RAW, BetonSamples
from ..storage.files import check_unchanged
from ._ffcv_internals import (
    HAS_CORES,
    LIBRARY,
    AllocationQuery,
    EpochIterator,
    IntField,
    Operation,
    RGBImageField,
    State,
    TraversalOrder,
    begin_epoch,
    create_loader,
    results,
    stop,
)
from ._ffcv_internals import Loader as FfcvPackageLoader
from ._transfer import to_device

FACTS = LoaderFacts(
    reads=("ffcv", "ffcv-raw"),
    priority=40,
    package="ffcv",
    install="make env",
    needs="FFCV 1.0.2, built by `make env`",
    timed=("read", "crop", "decode", "entropy", "transform", "colour", "resize"),
    compiled=True,
)

EPOCH_SHIFT = 40
"""FFCV hands an operation the keys of a batch and nothing else, so the epoch rides in their high bits."""
_KEY = (1 << EPOCH_SHIFT) - 1
_IMAGES_PER_TURN = 2  # images cost unequal time: 7 % faster than the static split (2 threads, batch 64)

turbojpeg.load_from(LIBRARY)


@njit(nogil=True)
def _load_sample(own, code, entry, stored, seed, training, crop_numbers, out):
    """One sample, from stored bytes to its place in the batch. Returns whether nothing was wrong with it."""
    height, width = np.int64(entry["height"]), np.int64(entry["width"])
    epoch, sample = code >> EPOCH_SHIFT, code & _KEY
    box, window, flip = sample_crop(seed, epoch, sample, height, width, out.shape[0], training, crop_numbers)
    is_raw, cubic = entry["mode"] == MODE_RAW, crop_numbers[7] > 0
    return kernel.fill_image(own, stored, is_raw, height, width, box, window, flip, cubic, out)


def _batch_kernel(sources: int, parallel: bool) -> Callable[..., None]:
    """The kernel that fills a batch, cached on disk. `sources` is `kernel.SOURCES`, which see."""

    @njit(nogil=True, parallel=parallel, cache=True)
    def load_batch(codes, images, sound, metadata, file, sizes, seed, training, crop_numbers, own):
        """Fill `images` (uint8 [B, R, R, 3]) and `sound` (bool [B]) with the samples that `codes` names."""
        assert sources or parallel  # numba's cache tells kernels apart by what they enclose, not by their options
        for turn in prange((len(codes) + _IMAGES_PER_TURN - 1) // _IMAGES_PER_TURN):
            for row in range(turn * _IMAGES_PER_TURN, min((turn + 1) * _IMAGES_PER_TURN, len(codes))):
                entry = metadata[codes[row] & POSITION]
                stored = file[entry["data_ptr"] : entry["data_ptr"] + sizes[codes[row] & POSITION]]
                sound[row] = _load_sample(own, codes[row], entry, stored, seed, training, crop_numbers, images[row])

    compiled: Callable[..., None] = load_batch
    return compiled


_load_batch = _batch_kernel(kernel.SOURCES, HAS_CORES)


class ImageDecoder(Operation):
    """Stored JPEGs or pixels to cropped, resized and flipped images, and which of them were sound."""

    def __init__(self, policy: CropPolicy, seed: int, own: bool) -> None:
        super().__init__()
        self.resolution = 224  # set for each epoch, before FFCV allocates its batches
        self._policy, self._seed, self._own = policy, seed, own

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, tuple[AllocationQuery, AllocationQuery]]:
        shape, dtype = (self.resolution, self.resolution, 3), np.dtype(np.uint8)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, (AllocationQuery(shape, dtype), AllocationQuery((), np.dtype(np.bool_)))

    def generate_code(self) -> Callable[..., tuple[Tensor, Tensor]]:
        seed, training, crop_numbers, own = self._seed, self._policy.training, self._policy.numbers, self._own

        def decode_images(
            codes: Indices, memory: tuple[np.ndarray, np.ndarray], metadata: np.ndarray, storage: tuple[np.ndarray, ...]
        ) -> tuple[Tensor, Tensor]:
            images, sound = memory
            file, _, sizes = storage  # samples were appended in order, so sizes are by sample
            if HAS_CORES:
                numba.set_parallel_chunksize(1)  # not in the kernel: numba would not cache it on disk
            _load_batch(codes, images, sound, metadata, file, sizes, seed, training, crop_numbers, own)
            return torch.from_numpy(images), torch.from_numpy(sound)

        return decode_images


class LabelDecoder(Operation):
    """Label and key of each sample, int64 [B] each."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        return replace(previous_state, jit_mode=True, shape=(2,), dtype=np.dtype(np.int64)), None

    def generate_code(self) -> Callable[..., tuple[Tensor, Tensor]]:
        def decode_labels(codes: Indices, _: None, metadata: np.ndarray, storage: Any) -> tuple[Tensor, Tensor]:
            labels = metadata[codes & POSITION].astype(np.int64)
            return torch.from_numpy(labels), torch.from_numpy(codes & _KEY)

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


class PlanOrder(TraversalOrder):
    """The plan's order as FFCV takes it: an instance that FFCV calls with its loader."""

    def __init__(self, plan: RankPlan) -> None:
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
        self._size = spec.split.beton_path.stat().st_size
        self._order, self._decoder = PlanOrder(spec.plan), ImageDecoder(spec.crop, spec.seed, uses_own(spec.decoder))
        self._iterator: EpochIterator | None = None
        self._loader = create_loader(
            str(spec.split.beton_path),
            self._samples.metadata,
            batch_size=spec.batch_size,
            num_workers=max(1, spec.workers),
            order=self._order,
            seed=spec.seed,
            pipelines={"image": [self._decoder], "label": [LabelDecoder()]},
            custom_fields={"image": StoredImageField, "label": StoredLabelField},
            drop_last=False,
        )

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        self.close()
        check_unchanged(self._spec.split.beton_path, self._size)
        if start_batch >= self.batches_per_epoch:
            return iter(())
        self._order.start_batch, self._decoder.resolution = start_batch, resolution
        self._iterator = begin_epoch(self._loader, epoch)
        return to_device(self._host_batches(self._iterator, epoch), self._spec)

    def close(self) -> None:
        if self._iterator is not None:
            stop(self._iterator)
            self._iterator = None

    def _host_batches(self, iterator: EpochIterator, epoch: int) -> Iterator[Batch]:
        for (images, sound), (labels, keys) in results(iterator):
            batch = Batch(images.permute(0, 3, 1, 2), labels, keys & POSITION)
            for row in (~sound).nonzero().flatten().tolist():
                load_with_torchvision(self._spec, self._samples, epoch, int(keys[row]), images[row].numpy())
            yield batch


def load_with_torchvision(spec: LoaderSpec, samples: BetonSamples, epoch: int, key: int, out: np.ndarray) -> None:
    """Load an image that the kernel reported into `out`, uint8 [R, R, 3], with torchvision's decoder: it takes a few
    that TurboJPEG does not, and of those that are only worth a warning it gives the same pixels. Raises InputError for
    the rest, and for what was altered."""
    index = key & POSITION
    stored, entry = samples[index].jpeg, samples.metadata["f0"][index]
    crop = spec.crop.crop(spec.seed, epoch, key, int(entry["height"]), int(entry["width"]), len(out))
    cut(samples, index, stored, crop)  # raises for what was altered
    image = pixels_of(decode(samples, index, stored))
    if image.shape[:2] != (entry["height"], entry["width"]):
        raise InputError(f"{samples.name(index)}: not of the size that the file says; convert again")
    resize_into(samples, index, image, crop, out)


class SteppedLoader:
    """The batches of FfcvLoader, made in this thread by the kernel's steps, one call each, with the spec's clock."""

    def __init__(self, spec: LoaderSpec) -> None:
        self._spec, self._samples, self._plan = spec, spec.split.beton, spec.plan
        self.batches_per_epoch = self._plan.batches_per_epoch
        self._file = np.memmap(spec.split.beton_path, np.uint8, "r")

    def epoch(self, epoch: int, resolution: int, start_batch: int = 0) -> Iterator[Batch]:
        return to_device(self._host_batches(epoch, resolution, start_batch), self._spec)

    def close(self) -> None:
        """There is nothing to end."""

    def _host_batches(self, epoch: int, resolution: int, start_batch: int) -> Iterator[Batch]:
        for keys in self._plan.batches(epoch, start_batch):
            indices = positions(keys)
            images = np.empty((len(indices), resolution, resolution, 3), np.uint8)
            labels = self._samples.metadata["f1"][indices]
            batch = Batch(*map(torch.from_numpy, (images.transpose(0, 3, 1, 2), labels, indices)))
            for row, key in enumerate(keys.tolist()):
                if not self._load(key, epoch, images[row]):
                    load_with_torchvision(self._spec, self._samples, epoch, key, images[row])
            yield batch

    def _load(self, key: int, epoch: int, out: np.ndarray) -> bool:
        index = key & POSITION
        mode, width, height, at = self._samples.metadata["f0"][index].tolist()
        stored = self._file[at : at + int(self._samples.sizes[index])]
        spec, clock = self._spec, self._spec.clock
        with clock.part("read"):
            kernel.read_pages(stored)
        with clock.part("crop"):
            crop = spec.crop.crop(spec.seed, epoch, key, height, width, len(out))
        if mode == MODE_RAW:
            image, top, left, sound = stored.reshape(height, width, 3), crop.top, crop.left, True
        else:
            image, top, left, sound = self._decode_box(index, stored, height, width, crop)
        if sound:
            with clock.part("resize"):
                resize_crop(image, (top, left, crop.height, crop.width), crop.window, crop.flip, crop.cubic, out)
        return sound

    def _decode_box(
        self, index: int, jpeg: np.ndarray, height: int, width: int, crop: Crop
    ) -> tuple[np.ndarray, int, int, bool]:
        """The steps of `kernel.decode_box`."""
        tiles = decode_tiles(self._spec, self._samples, index, jpeg, crop)
        if tiles:
            image, crop = tiles
            return image, crop.top, crop.left, True
        with self._spec.clock.part("crop"):
            part, top, left, least_size, sound = kernel.cut_tiles(jpeg, height, width, crop.box)
        if not sound:
            return part, top, left, False
        with self._spec.clock.part("decode"):
            image, sound = kernel.decode_part(part, least_size, (height, width))
        return image, top, left, sound


def create(spec: LoaderSpec) -> Loader:
    """FFCV's Loader. Raises InputError where the split has no `.beton` file or it is damaged."""
    return FfcvLoader(spec)


def create_stepped(spec: LoaderSpec) -> Loader:
    """The same batches from the kernel's steps, for a profiler."""
    return SteppedLoader(spec)
