"""Where a loader's time goes."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import loaders
from pipeline.contract import Decoder, LoaderSpec
from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.order.crops import CropPolicy
from pipeline.pixels.jpeg.decoder import STEPS
from pipeline.storage.samples import Sample
from pipeline.storage.shards import ShardSamples
from pipeline.storage.split import open_split
from tests.helpers.images import jpeg_bytes, photograph, write_training_images
from tests.helpers.loaders import loaded
from tools.profiling import page_cache
from tools.profiling.loader_parts import PARTS, LoaderParts, PartClock, measure_parts

BATCHES = 3

# The steps are those of Sluice's decoder, also where all tests run with the other one.
pytestmark = pytest.mark.usefixtures("decoder_not_chosen")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 photographs of 640 x 800 in both formats, so that the work on pixels outweighs Python."""
    root = tmp_path_factory.mktemp("photographs")
    data = jpeg_bytes(photograph(640, 800, seed=1))
    images = write_training_images(root / "images", data, 48)
    convert(ConvertSettings(src=(images,), dst=root / "shards", splits=("train",), workers=2))
    return root / "shards"


def spec_of(dataset: Path) -> LoaderSpec:
    return LoaderSpec(split=open_split(dataset, "train"), batch_size=16, crop=CropPolicy(training=True))


def parts_of(name: str, dataset: Path, **options: Callable[[], None]) -> LoaderParts:
    loaded(name)
    return measure_parts(name, spec_of(dataset), 224, BATCHES, rounds=3, **options)


@pytest.mark.measure
@pytest.mark.parametrize("name", ["torch", "ffcv"])
def test_the_parts_sum_to_the_whole(name: str, photographs: Path) -> None:
    """Within 10 %, of CPU time."""
    parts = parts_of(name, photographs)
    assert parts.images == BATCHES * 16
    assert set(parts.parts_s) >= {"read", "crop", *STEPS, "resize"}
    assert abs(parts.other_s) < 0.1 * parts.whole_s


@pytest.mark.measure
@pytest.mark.parametrize("name", ["webdataset", "dali"])
def test_time_inside_a_library_is_other(name: str, photographs: Path) -> None:
    """DALI works in threads of its own; webdataset takes the tar stream apart, which is little."""
    parts = parts_of(name, photographs)
    assert parts.other_s > (0 if name == "dali" else -0.1 * parts.whole_s)


@pytest.mark.parametrize("name", [name for name in loaders.names() if loaders.facts(name).reads])
def test_every_part_that_a_loader_states_is_measured(name: str, photographs: Path) -> None:
    loaded(name)
    parts = measure_parts(name, spec_of(photographs), 64, 1, rounds=1)
    assert parts.images == 16
    assert set(parts.parts_s) == set(loaders.facts(name).timed) - {"decode"}
    assert all(seconds > 0 for seconds in parts.parts_s.values())


@pytest.mark.parametrize("name", [name for name in loaders.names() if loaders.facts(name).reads])
def test_a_loader_marks_the_parts_that_it_states(name: str, photographs: Path) -> None:
    """With Sluice's decoder its steps instead of the decoding as a whole."""
    loaded(name)
    timed: set[str] = set(loaders.facts(name).timed)
    assert timed <= set(PARTS)
    steps = {"entropy", "transform", "colour"}
    decoders: dict[Decoder, set[str]] = {"auto": timed - {"decode"}, "turbojpeg": timed - steps}
    for decoder, expected in decoders.items():
        clock = PartClock()
        spec = replace(spec_of(photographs), workers=0, clock=clock, decoder=decoder)
        with contextlib.closing(loaders.create_timed(name, spec)) as loader:
            next(loader.epoch(0, 224))
        assert set(clock.seconds.wall) == expected


def test_a_slow_storage_is_waited_for_and_takes_no_cpu_time(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(photographs)
    samples = type(spec.split.shards)
    read = samples.__getitem__

    def slow(self: ShardSamples, index: int) -> Sample:
        time.sleep(0.02)
        return read(self, index)

    monkeypatch.setattr(samples, "__getitem__", slow)
    parts = measure_parts("torch", spec, 224, 1, rounds=1)
    assert parts.read_wait_s >= 0.02
    assert parts.parts_s["read"] < 0.01


@pytest.mark.measure
def test_cold_files_are_waited_for(photographs: Path) -> None:
    files = page_cache.files_of(open_split(photographs, "train"))
    page_cache.drop(files)
    if page_cache.resident_share(files) > 0:
        pytest.skip("the file system keeps files in memory")
    warm = parts_of("torch", photographs)
    cold = parts_of("torch", photographs, before=lambda: page_cache.drop(files))
    assert cold.read_wait_s > 5 * warm.read_wait_s


def test_time_inside_another_part_is_counted_once() -> None:
    clock = PartClock()
    with clock.part("collate"):
        spin(0.01)
        with clock.part("decode"):
            spin(0.03)
    assert clock.seconds.cpu["decode"] >= 0.03
    assert 0.01 <= clock.seconds.cpu["collate"] < 0.03


def test_the_time_of_a_block_is_divided_as_the_block_says() -> None:
    clock, shares = PartClock(), np.zeros(2)
    with clock.part("collate"), clock.parts(("entropy", "colour"), shares):
        spin(0.02)
        shares[:] = 3, 1
    with clock.parts(("transform", "colour"), np.zeros(2)):
        spin(0.01)
    cpu = clock.seconds.cpu
    assert cpu["entropy"] >= 0.014
    assert cpu["colour"] == pytest.approx(cpu["entropy"] / 3)
    assert cpu["collate"] < 0.01 <= cpu["transform"]


def spin(seconds: float) -> None:
    started = time.thread_time()
    while time.thread_time() - started < seconds:
        pass
