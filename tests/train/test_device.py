"""Choosing a device: what is told where the vendor's package is missing or broken."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.errors import InputError
from train.device import DEVICE_TYPES, require, select


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
