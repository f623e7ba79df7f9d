"""Choosing a device: what is told where the vendor's package is missing or broken."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipeline.errors import InputError
from train.device import DEVICE_TYPES, configure_math, require, select


@pytest.mark.parametrize("name", [name for name, row in DEVICE_TYPES.items() if row.vendor_package])
def test_a_missing_vendor_package(name: str) -> None:
    with pytest.raises(InputError, match=f"--device {name} needs torch_{name}, which cannot be imported"):
        require(name, 1)


@pytest.mark.parametrize("device", ["auto", "sdaa"])
@pytest.mark.parametrize("fault", ["raise OSError('libsdaa.so: no such file')", "import sdaa_driver"])
def test_a_broken_vendor_package_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, fault: str
) -> None:
    """Choosing the CPU on a machine with accelerators would be a fallback that nobody notices for hours."""
    (tmp_path / "torch_sdaa.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"--device sdaa needs torch_sdaa, which cannot be imported .*sdaa") as raised:
        require(device, 1)
    assert "\n" not in str(raised.value)


def test_on_a_cpu_freed_memory_is_kept() -> None:
    select("cpu", 0, 1)
    process = psutil.Process()
    arrays = [np.ones(1 << 24, np.uint8) for _ in range(8)]  # 128 MB
    held = process.memory_info().rss
    del arrays
    assert held - process.memory_info().rss < 1 << 26


@pytest.fixture
def _as_it_was() -> Iterator[None]:
    yield
    configure_math(deterministic=False)


@pytest.mark.usefixtures("_as_it_was")
def test_an_operation_that_is_not_reproducible_is_an_error_where_it_is_asked_for() -> None:
    tensor, places, values = torch.zeros(3), torch.tensor([0, 0]), torch.tensor([1.0, 2.0])
    tensor.put_(places, values)
    configure_math(deterministic=True)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        tensor.put_(places, values)
