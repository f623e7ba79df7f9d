"""The evaluation crop of every loader against torchvision's Resize and CenterCrop, on images of many odd sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import loaders
from pipeline.contract import MEAN_DIFFERENCE, Batch, LoaderModule, LoaderSpec
from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.order.crops import CropPolicy, Interpolation
from pipeline.pixels.decode import decode
from pipeline.storage.split import open_split
from tests.helpers.images import jpeg_bytes, photograph
from tests.helpers.loaders import loaded
from tests.helpers.reference import evaluation_image
from tests.pipeline.loaders.test_contract import READERS, collect

TINY = [(1, 1), (1, 2), (2, 300), (300, 2), (7, 9), (40, 64), (64, 40)]
PHOTOGRAPHS = [
    (64, 64), (65, 64), (73, 73), (91, 80), (120, 97), (128, 73), (75, 100), (150, 113), (113, 150), (201, 134),
    (134, 201), (177, 311), (99, 300), (257, 255), (255, 341), (333, 500), (500, 333), (375, 500), (401, 267),
]  # fmt: skip

# --val-resize, --val-crop, the output's side and the side that torchvision's Resize is given for it.
SETTINGS = [(73, 64, 64, 73), (256, 224, 100, 114), (256, 224, 98, 112), (64, 64, 64, 64), (50, 64, 64, 50)]


@pytest.fixture(scope="module", params=["keep", "tile"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them as validation images, as they are or in tiles."""
    root = tmp_path_factory.mktemp(request.param)
    for number, size in enumerate(TINY + PHOTOGRAPHS):
        path = root / "src" / "val" / f"n0000000{number % 2}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg_bytes(photograph(*size, seed=number), subsampling=("4:2:0", "4:4:4")[number % 2]))
    settings = ConvertSettings(src=(root / "src",), dst=root / "dst", splits=("val",), jpeg=request.param)
    convert(settings)
    return root / "dst"


def spec_of(path: Path, resize: int, crop: int, how: Interpolation = "bilinear") -> LoaderSpec:
    policy = CropPolicy(training=False, val_resize=resize, val_crop=crop, interpolation=how)
    return LoaderSpec(split=open_split(path, "val"), batch_size=5, crop=policy, workers=1)


def expected(spec: LoaderSpec, resize: int, resolution: int) -> list[Tensor]:
    samples, how = spec.split.samples, spec.crop.interpolation
    decoded = (decode(samples, index, samples[index].jpeg) for index in range(spec.split.num_samples))
    return [evaluation_image(image, resize, resolution, how) for image in decoded]


def offset(images: list[Tensor], references: list[Tensor]) -> np.ndarray:
    """By how many output pixels (down, right) images are displaced: to first order, the least squares solution of
    image - reference = -displacement * gradient of the reference."""
    gradients, differences = [], []
    for image, reference in zip(images, references, strict=True):
        ours, theirs = (tensor.numpy().astype(np.float64) for tensor in (image, reference))
        gradients.append(np.stack([np.gradient(theirs, axis=axis) for axis in (1, 2)], -1).reshape(-1, 2))
        differences.append((theirs - ours).reshape(-1))
    solution: np.ndarray = np.linalg.lstsq(np.concatenate(gradients), np.concatenate(differences), rcond=None)[0]
    return solution


def assert_as_torchvision(batches: list[Batch], references: list[Tensor], max_difference: int) -> None:
    images = [image for batch in batches for image in batch.images]
    differences = [(image.int() - reference.int()).abs() for image, reference in zip(images, references, strict=True)]
    assert max(int(difference.max()) for difference in differences) <= max_difference
    assert np.mean([float(difference.float().mean()) for difference in differences]) <= MEAN_DIFFERENCE
    assert np.abs(offset(images[len(TINY) :], references[len(TINY) :])).max() < 0.01


@pytest.fixture(params=READERS)
def module(request: pytest.FixtureRequest) -> LoaderModule:
    return loaded(request.param)


@pytest.mark.parametrize(("resize", "crop", "resolution", "resized"), SETTINGS, ids=str)
def test_an_evaluation_is_that_of_torchvision(
    module: LoaderModule, stored: Path, resize: int, crop: int, resolution: int, resized: int
) -> None:
    spec = spec_of(stored, resize, crop)
    batches = collect(module, spec, 0, resolution)
    assert_as_torchvision(batches, expected(spec, resized, resolution), module.FACTS.max_difference)


@pytest.mark.parametrize(
    ("resize", "crop", "resolution", "resized", "how"),
    [*((*setting, "bilinear") for setting in SETTINGS), *((*setting, "bicubic") for setting in SETTINGS[:3])],
    ids=str,
)
def test_dalis_own_resize_is_that_of_torchvision(
    stored: Path, resize: int, crop: int, resolution: int, resized: int, how: Interpolation
) -> None:
    """The pipeline for GPUs, with the decoder and the operators of the CPU. DALI repeats pixels at an image's edge,
    which bicubic ones are not compared at."""
    dali = loaded("dali")
    spec = spec_of(stored, resize, crop, how)
    source = dali.Source(spec, 0, resolution, spec.plan.batches(0), resizes=True, unused=[])  # type: ignore[attr-defined]
    pipeline = dali.image_pipeline(  # type: ignore[attr-defined]
        source,
        resolution,
        on_gpu=False,
        resizes=True,
        cubic=spec.crop.cubic,
        batch_size=5,
        num_threads=1,
        device_id=None,
    )
    pipeline.build()
    batches = []
    for indices in spec.plan.batches(0):
        (images,) = pipeline.run()
        rows = torch.stack([torch.from_numpy(np.array(images[row])) for row in range(len(indices))])
        batches.append(Batch(rows.permute(0, 3, 1, 2), torch.empty(0), torch.from_numpy(indices)))
    source.close()
    inside = 1 if how == "bilinear" else 2
    most = inside if resized > resolution else 18
    assert_as_torchvision(batches, expected(spec, resized, resolution), most)


def test_a_displacement_is_measured() -> None:
    """`offset` itself: of an image whose crop is moved by a fraction of a pixel."""
    image = torch.from_numpy(photograph(400, 500, seed=0)).permute(2, 0, 1)
    moved = image.float()[:, 1:, 1:] * 0.1 + image.float()[:, :-1, :-1] * 0.9
    references = [evaluation_image(part, 112, 98).float() for part in (image[:, :-1, :-1].float(), moved)]
    scale = 399 / 112
    assert offset([references[1]], [references[0]]) == pytest.approx([-0.1 / scale] * 2, rel=0.1)


def test_the_stepped_loader_evaluates_as_the_kernel(stored: Path) -> None:
    module = loaded("ffcv")
    spec = spec_of(stored, 50, 64)
    stepped = loaders.create_timed("ffcv", spec)
    for batch, wanted in zip(stepped.epoch(0, 64), collect(module, spec, 0, 64), strict=True):
        assert torch.equal(batch.images, wanted.images)
    stepped.close()
