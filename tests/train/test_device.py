"""Choosing a device: the error where the vendor's package is missing or broken, memory, reproducible kernels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipeline.errors import InputError
from train.device import DEVICE_TYPES, cards, configure_math, require, select


@pytest.mark.parametrize("name", [name for name, row in DEVICE_TYPES.items() if row.vendor_package])
def test_a_missing_vendor_package(name: str) -> None:
    with pytest.raises(InputError, match=f"--device {name} needs torch_{name}, which cannot be imported"):
        require(name, 1)


def test_four_processes_are_a_card_of_sdaa() -> None:
    assert [cards("sdaa", processes) for processes in (1, 4, 32)] == [None, 1, 8]
    assert cards("npu", 8) is None


@pytest.mark.parametrize("device", ["auto", "sdaa"])
@pytest.mark.parametrize("fault", ["raise OSError('libsdaa.so: no such file')", "import sdaa_driver"])
def test_a_broken_vendor_package_is_not_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, fault: str
) -> None:
    """To choose the CPU on a machine with accelerators would be a fallback that nobody notices for hours."""
    (tmp_path / "torch_sdaa.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"--device sdaa needs torch_sdaa, which cannot be imported .*sdaa") as raised:
        require(device, 1)
    assert "\n" not in str(raised.value)


def test_freed_memory_is_kept_on_a_cpu() -> None:
    select("cpu", 0, 1)
    process = psutil.Process()
    arrays = [np.ones(1 << 24, np.uint8) for _ in range(8)]  # 128 MB
    held = process.memory_info().rss
    del arrays
    assert held - process.memory_info().rss < 1 << 26


@pytest.fixture
def _restored_math() -> Iterator[None]:
    yield
    configure_math(deterministic=False)


@pytest.mark.usefixtures("_restored_math")
def test_an_operation_without_reproducible_kernel_is_an_error_with_deterministic() -> None:
    tensor, places, values = torch.zeros(3), torch.tensor([0, 0]), torch.tensor([1.0, 2.0])
    tensor.put_(places, values)
    configure_math(deterministic=True)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        tensor.put_(places, values)
