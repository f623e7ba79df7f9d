"""--profile-steps: a trace of some steps of a run, for chrome://tracing or ui.perfetto.dev."""

import logging
from pathlib import Path

import torch

log = logging.getLogger(__name__)


def parse_steps(text: str | None) -> range:
    """`20:30` are the steps 20 to 29 of a run, counted from 0; None is none. Raises ValueError."""
    if text is None:
        return range(0)
    first, separator, end = text.partition(":")
    if not (separator and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise ValueError("must be FIRST:END, like 20:30 for the steps 20 to 29")
    return range(int(first), int(end))


class StepTrace:
    """Traces the steps that --profile-steps names; nothing runs, and nothing is slower, before and after them."""

    def __init__(self, steps: str | None, path: Path) -> None:
        self._steps = parse_steps(steps)
        self._path = path
        self._profiler: torch.profiler.profile | None = None

    def before(self, step: int) -> None:
        """Call before each step with its number."""
        if self._profiler is None and step in self._steps:
            self._profiler = torch.profiler.profile(activities=torch.profiler.supported_activities())
            self._profiler.start()
        elif self._profiler is not None and step not in self._steps:
            self.close()

    def close(self) -> None:
        """Write what was traced. Says so where a run had none of the steps."""
        if self._profiler is not None:
            self._profiler.stop()  # waits for the device
            self._profiler.export_chrome_trace(str(self._path))
            self._profiler = None
        elif self._steps:
            log.warning("--profile-steps %d:%d: this run made none of these steps", self._steps.start, self._steps.stop)
        self._steps = range(0)
