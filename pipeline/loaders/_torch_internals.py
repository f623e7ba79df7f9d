"""Private parts of torch's DataLoader. Written for torch 2.8 to 2.14.

A DataLoader with persistent workers ends them only when it is garbage-collected, which an exception's traceback can
delay for ever, and it forks new ones when it is iterated after that. Needed:

- `DataLoader._iterator`: the iterator that holds the persistent workers; None before the first iteration.
- `_MultiProcessingDataLoaderIter._shutdown_workers`: ends them, as the iterator's deletion does.
- `_MultiProcessingDataLoaderIter._workers`: the processes. Where one has ended, the DataLoader's error names its signal
  or, depending on who notices first, only says that it "exited unexpectedly".
"""

import signal
from typing import Any

from torch.utils.data import DataLoader


def has_workers(loader: DataLoader[Any]) -> bool:
    """Whether worker processes are running."""
    return loader.num_workers > 0 and loader._iterator is not None


def killed_by(loader: DataLoader[Any]) -> str | None:
    """The name that strsignal(3) gives to the signal that ended a worker process; None where none has."""
    iterator: Any = loader._iterator
    codes = [worker.exitcode or 0 for worker in getattr(iterator, "_workers", ())]
    return next((signal.strsignal(-code) for code in codes if code < 0), None)


def shut_down(loader: DataLoader[Any]) -> None:
    """End the worker processes now, if there are any."""
    iterator: Any = loader._iterator
    if iterator is not None and loader.num_workers:
        iterator._shutdown_workers()
    loader._iterator = None
