"""The fence for a private parameter of torch.save, written for PyTorch 2.14.1: only with it can a test write a file as
PyTorch did before 1.6. A release without it fails in tests/train/test_checkpoint.py."""

from pathlib import Path
from typing import Any

import torch


def save_as_before_1_6(content: Any, path: Path, pickle_protocol: int = 2) -> None:
    """Write a file in PyTorch's old format, which is no zip archive. 2 is `torch.save`'s own default protocol."""
    torch.save(content, path, pickle_protocol=pickle_protocol, _use_new_zipfile_serialization=False)
