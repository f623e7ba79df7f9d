"""Measurements in processes of their own, which are ended when their time is up: compiling may take minutes, a batch
may not fit into memory, and neither may end the command that measures."""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

import psutil

from train.failures import first_line

Result = TypeVar("Result")


class NotMeasuredError(Exception):
    """There is no result; the message says why."""


class TooLongError(NotMeasuredError):
    """There was no time for it, or it took longer."""


def results_within(
    seconds: float, function: Callable[..., Iterable[Result]], *arguments: Any
) -> Generator[Result, None, None]:
    """What `function(*arguments)` yields, in a fresh process, each as soon as it is there, within `seconds` in all.

    Raises NotMeasuredError, with the reason, where the process fails or its time is up; what it yielded before is not
    lost. At the end, the process and all that it started (loaders' workers, ranks, compilers) are killed.
    """
    if seconds <= 0:
        raise TooLongError("no time left")
    end = time.monotonic() + seconds
    with _process(function, arguments) as (process, receiver):
        while True:
            if not receiver.poll(max(0.0, end - time.monotonic())):
                raise TooLongError(f"took longer than {seconds:.0f} s")
            try:
                kind, content = receiver.recv()
            except EOFError:
                process.join()
                raise NotMeasuredError(f"{_ending(process.exitcode)}, perhaps for lack of memory") from None
            if kind == "end":
                return
            if kind == "problem":
                raise NotMeasuredError(content)
            yield content


def _ending(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"its process was killed by {signal.Signals(-exit_code).name}"
    return f"its process ended with exit code {exit_code}"


@contextlib.contextmanager
def _process(
    function: Callable[..., Iterable[Any]], arguments: tuple[Any, ...]
) -> Iterator[tuple[multiprocessing.process.BaseProcess, multiprocessing.connection.Connection]]:
    """A process that calls the function, and where what it yields arrives."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, function, arguments))
    # Blocked until `_run`: a Ctrl-C at the terminal reaches it too, and Python would print a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    sender.close()
    try:
        yield process, receiver
    finally:
        assert process.pid is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.join()
        receiver.close()


def _run(
    sender: multiprocessing.connection.Connection,
    function: Callable[..., Iterable[Any]],
    arguments: tuple[Any, ...],
) -> None:
    """The process: sends the results, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    logging.disable(logging.CRITICAL)  # the parent says what went wrong
    try:
        for result in function(*arguments):
            sender.send(("result", result))
        sender.send(("end", None))
    except Exception as error:  # whatever it is, other measurements do without this one
        sender.send(("problem", problem_of(error)))


def problem_of(error: Exception) -> str:
    """What went wrong in a measurement, in a line."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which takes seconds to import
        return "does not fit into the device's memory"
    return f"fails here: {first_line(error) or type(error).__name__}"
