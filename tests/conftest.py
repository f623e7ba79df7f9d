"""Small real data for all tests: an ImageNet folder, and the datasets that the converter makes of it.

They live for the whole session; tests that change files work on a copy.
"""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from pipeline.pixels.decoders import choose
from tests.helpers import servers
from tests.helpers.imagenet import converted, write_imagenet

# Derandomised: the same code gives the same result in every run.
hypothesis.settings.register_profile("sluice", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("sluice")


def pytest_configure() -> None:
    """A shell starts processes in the background with SIGINT ignored, and so would be every command that a test starts.
    What is ignored is inherited, a handler is not: the command finds the system's default."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet as people have it: train/ in class folders, val/ flat, val_labels.txt with one wnid per line.

    4 classes of 10 to 14 images, 47 in all; 19 validation images. Grey, 4:4:4, 4:2:2 and 4:2:0, a few
    progressive, with an EXIF orientation or with restart markers.
    """
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="session")
def dataset(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`imagenet_folder` converted to both formats, in several shards, its images byte for byte as they are."""
    return converted(imagenet_folder, tmp_path_factory.mktemp("converted") / "shards", jpeg="keep")


@pytest.fixture(scope="session")
def tiled_dataset(imagenet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`imagenet_folder` converted with the converter's defaults: in tiles, the progressive images encoded again."""
    return converted(imagenet_folder, tmp_path_factory.mktemp("tiled") / "shards")


@pytest.fixture
def decoder_not_chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Which decoder loaders use is chosen in the test, without SLUICE_DECODER: a process chooses once."""
    monkeypatch.delenv("SLUICE_DECODER", raising=False)
    choose.cache_clear()
    yield
    choose.cache_clear()


@pytest.fixture
def dataset_copy(dataset: Path, tmp_path: Path) -> Path:
    """A copy of `dataset` that a test may damage."""
    return shutil.copytree(dataset, tmp_path / "copy")


@pytest.fixture(scope="session")
def credentials() -> Iterator[None]:
    """Those of the object stores, in the environment."""
    with servers.credentials():
        yield


@pytest.fixture(scope="session")
def s3(credentials: None) -> Iterator[str]:
    """The address of a real S3 server."""
    with servers.s3_server() as url:
        yield url


@pytest.fixture
def s3_bucket(s3: str) -> str:
    """A new bucket, as `s3://NAME|ENDPOINT`."""
    return servers.new_bucket(s3)


@pytest.fixture
def azure_container(credentials: None, tmp_path: Path) -> Iterator[str]:
    """A new container of Azurite, as `az://NAME|ENDPOINT`. Skips the test where Azurite is missing."""
    with servers.azure_server(tmp_path / "azurite") as url:
        yield servers.new_container(url)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The model computes in one thread in this process. How sums are rounded depends on the number of threads, and two
    would spend CPU time waiting for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
