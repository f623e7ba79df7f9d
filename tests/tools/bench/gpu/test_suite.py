"""The tests that need a CUDA device, as the part that runs them sees them."""

import signal
import sys

from tools.bench.gpu.suite import command, lines_within


def outcome(seconds: float, code: str) -> tuple[list[str], int]:
    """The lines and the exit code of a Python program."""
    output = lines_within(seconds, [sys.executable, "-c", code])
    lines = []
    while True:
        try:
            lines.append(next(output))
        except StopIteration as end:
            return lines, end.value


def test_lines_come_with_the_exit_code_at_the_end() -> None:
    assert outcome(60, "print('a'); print('b'); raise SystemExit(3)") == (["a\n", "b\n"], 3)


def test_what_takes_too_long_is_killed_with_its_children() -> None:
    code = "import subprocess; print('a', flush=True); subprocess.run(['sleep', '600'])"
    assert outcome(3, code) == (["a\n"], -signal.SIGKILL)  # it ends: the child had the pipe too


def test_tests_that_have_passed_are_not_run_again() -> None:
    assert command(["tests/gpu/a.py::b[c-d]"])[-1] == "--deselect=tests/gpu/a.py::b[c-d]"
    assert not any("deselect" in word for word in command([]))
