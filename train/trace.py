"""--profile-steps: a trace of some steps of a run, for ui.perfetto.dev or chrome://tracing."""

import logging
from pathlib import Path
from typing import Any

from train import device

log = logging.getLogger(__name__)


def parse_steps(text: str | None) -> range:
    """`20:30` as the steps 20 to 29 of a run, counted from 0; None as no steps. Raises ValueError."""
    if text is None:
        return range(0)
    first, separator, end = text.partition(":")
    if not (separator and first.isdigit() and end.isdigit() and int(first) < int(end)):
        raise ValueError("must be FIRST:END, such as 20:30 for the steps 20 to 29")
    return range(int(first), int(end))


class StepTrace:
    """Traces the steps that --profile-steps names; before and after them, nothing runs that would slow a step."""

    def __init__(self, steps: str | None, path: Path, device_type: str = "cpu") -> None:
        self._steps = parse_steps(steps)
        self._path = path
        self._module: Any = device.profiler(device_type) if self._steps else None
        self._profiler: Any = None

    def before(self, step: int) -> None:
        """Call before each step with its number."""
        if self._profiler is None and step in self._steps:
            self._profiler = self._module.profile(activities=self._module.supported_activities())
            self._profiler.start()
        elif self._profiler is not None and step not in self._steps:
            self.close()

    def close(self) -> None:
        """Write the trace; a warning where the run had none of the steps."""
        if self._profiler is not None:
            self._profiler.stop()  # waits for the device
            self._path.unlink(missing_ok=True)  # the profiler would follow a link
            self._profiler.export_chrome_trace(str(self._path))
            self._profiler = None
        elif self._steps:
            log.warning("--profile-steps %d:%d: this run had none of these steps", self._steps.start, self._steps.stop)
        self._steps = range(0)
