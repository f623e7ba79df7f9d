"""Canaries: every private or undocumented name that the fences use. A release that changes one fails here."""

import importlib
import importlib.metadata
import inspect
import os
import signal
import sys
from pathlib import Path
from threading import Thread

import numba.typed
import numpy as np
import pytest
import torch

from pipeline import loaders
from pipeline.errors import InputError
from pipeline.loaders import _dataloader, _torch_internals
from pipeline.loaders._ring import BatchRing
from pipeline.storage.split import open_split
from tests.helpers.loaders import loaded
from tests.pipeline.loaders.test_contract import RESOLUTION, spec_of
from tests.pipeline.loaders.test_ring import Numbered
from train.failures import explanation


def test_torchs_dataloader_keeps_its_workers_in_an_iterator() -> None:
    loader = _dataloader.batch_loader(Numbered(BatchRing(1, 3, 4)), num_workers=1)
    assert isinstance(loader._iterator, torch.utils.data.dataloader._MultiProcessingDataLoaderIter)
    assert callable(loader._iterator._shutdown_workers)
    (worker,) = loader._iterator._workers
    assert _torch_internals.has_workers(loader)
    _torch_internals.shut_down(loader)
    assert not worker.is_alive()
    assert not _torch_internals.has_workers(loader)


def test_the_signal_that_ended_a_worker_is_named_whoever_notices_first() -> None:
    loader = _dataloader.batch_loader(Numbered(BatchRing(1, 3, 4)), num_workers=1)
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's, which would notice at once
    try:
        (worker,) = loader._iterator._workers  # type: ignore[union-attr]
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid.*\) is killed by signal: Killed\.$") as raised:
            list(_dataloader.epoch(loader))
    finally:
        signal.signal(signal.SIGCHLD, handler)
        _dataloader.close(loader)
    assert "killed by signal 9, probably by the out-of-memory killer" in str(
        explanation(f"RuntimeError: {raised.value}")
    )


def test_torchs_dataloader_without_workers_has_no_iterator() -> None:
    loader = _dataloader.batch_loader(Numbered(BatchRing(0, 3, 4)), num_workers=0)
    assert len(list(loader)) == len(Numbered(BatchRing(0, 3, 4)))
    assert loader._iterator is None


def test_dalis_pipeline_can_be_shut_down() -> None:
    pipeline = pytest.importorskip("nvidia.dali.pipeline").Pipeline
    assert callable(pipeline._shutdown)


FFCV_NAMES = [
    ("ffcv._libffcv", "__file__"),
    ("ffcv.loader.loader", "OSCacheManager"),
    ("ffcv.loader", "Loader.next_epoch"),
    ("ffcv.loader.epoch_iterator", "EpochIterator.output_queue"),
    ("ffcv.loader.epoch_iterator", "EpochIterator.iter_ixes"),
    ("ffcv.loader.epoch_iterator", "EpochIterator.terminate_event"),
    ("ffcv.loader.epoch_iterator", "EpochIterator.close"),
    ("ffcv.memory_managers", "OSCacheManager.ptrs"),
    ("ffcv.memory_managers", "OSCacheManager.sizes"),
    ("ffcv.memory_managers", "OSCacheManager.reader"),
    ("ffcv.memory_managers", "OSCacheManager.context"),
    ("ffcv.memory_managers", "OSCacheManager.compile_reader"),
    ("ffcv.memory_managers.os_cache", "OSCacheContext.state"),
    ("ffcv.memory_managers.os_cache", "nb"),
    ("ffcv.pipeline.allocation_query", "AllocationQuery"),
    ("ffcv.pipeline.compiler", "Compiler.set_num_threads"),
    ("ffcv.pipeline.compiler", "Compiler.num_threads"),
    ("ffcv.pipeline.compiler", "Compiler.set_enabled"),
    ("ffcv.pipeline.operation", "Operation.declare_state_and_memory"),
    ("ffcv.pipeline.operation", "Operation.generate_code"),
    ("ffcv.pipeline.state", "State"),
    ("ffcv.reader", "Reader.alloc_table"),
    ("ffcv.traversal_order.base", "TraversalOrder.sample_order"),
]


@pytest.fixture
def ffcv() -> None:
    """FFCV, imported through its fence."""
    loaded("ffcv")


@pytest.mark.usefixtures("ffcv")
@pytest.mark.parametrize(("module", "path"), FFCV_NAMES, ids=lambda name: name)
def test_ffcv_has_the_name(module: str, path: str) -> None:
    """On the class, or set on `self` in its source."""
    owner = importlib.import_module(module)
    name, _, attribute = path.partition(".")
    assert hasattr(owner, name)
    if attribute:
        kind = getattr(owner, name)
        sources = [inspect.getsource(base) for base in kind.__mro__ if base.__module__.startswith("ffcv.")]
        assert hasattr(kind, attribute) or any(f"self.{attribute}" in source for source in sources)


@pytest.mark.usefixtures("ffcv")
def test_ffcvs_loader_has_what_the_fence_uses(tiled_dataset: Path) -> None:
    """The instances themselves, while an epoch runs."""
    from pipeline.loaders import _ffcv_internals, ffcv

    loader = ffcv.FfcvLoader(spec_of(open_split(tiled_dataset, "train")))
    batches = loader.epoch(0, RESOLUTION)
    next(batches)
    inner, iterator = loader._loader, loader._iterator
    assert isinstance(inner.memory_manager, _ffcv_internals.MappedFile)
    assert inner.next_epoch == 1
    assert isinstance(iterator, Thread)
    assert {"output_queue", "iter_ixes", "terminate_event"} <= vars(iterator).keys()
    file, positions, sizes = inner.memory_manager.context.state
    assert (file.dtype, positions.dtype, sizes.dtype) == (np.uint8, np.uint64, np.uint64)
    loader.close()
    assert not iterator.is_alive()


@pytest.mark.usefixtures("ffcv")
def test_importing_ffcv_leaves_numba_as_it_was() -> None:
    assert numba.typed.Dict.__module__ == "numba.typed.typeddict"
    assert numba.set_num_threads.__module__ == "numba.np.ufunc.parallel"


@pytest.mark.usefixtures("ffcv")
def test_ffcvs_own_loader_leaves_numbas_types_as_they_were(tiled_dataset: Path) -> None:
    from ffcv.memory_managers import OSCacheManager
    from ffcv.reader import Reader

    state = OSCacheManager(Reader(str(open_split(tiled_dataset, "train").beton_path), {})).state_type
    assert not state[0].mutable
    assert numba.uint8[::1].mutable


@pytest.mark.usefixtures("ffcv")
def test_another_ffcv_is_refused_in_one_line() -> None:
    from pipeline.loaders import _ffcv_internals

    _ffcv_internals.check_version(_ffcv_internals.SUPPORTED)
    with pytest.raises(InputError, match=r"FFCV 1\.1\.0 is installed, 1\.0\.2 is supported; run `make env`") as raised:
        _ffcv_internals.check_version("1.1.0")
    assert "\n" not in str(raised.value)
    assert _ffcv_internals.SUPPORTED in loaders.facts("ffcv").needs


@pytest.mark.usefixtures("ffcv")
def test_another_ffcv_is_passed_over_by_auto(tiled_dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pipeline.loaders.ffcv", "pipeline.loaders._ffcv_internals"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.1.0")
    name, why = loaders.choose(open_split(tiled_dataset, "train"))
    assert name != "ffcv"
    assert "not ffcv: FFCV 1.1.0 is installed" in why
