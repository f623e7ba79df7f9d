"""The verification command in this process."""

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from pipeline.cli import run_command
from pipeline.verification.settings import VerifySettings
from pipeline.verification.verify import verify


class Verified(NamedTuple):
    """What a verification reported."""

    code: int
    bad: list[str]
    error: str
    result: dict[str, Any] | None


class Verify(Protocol):
    """Verifies a dataset with flags, by default without a contact sheet."""

    def __call__(self, dst: Path | str, *flags: object) -> Verified: ...


def verifier(capsys: pytest.CaptureFixture[str]) -> Verify:
    """The command with its output captured."""

    def run(dst: Path | str, *flags: object) -> Verified:
        sheet = [] if "--contact-sheet" in flags or "--images" in flags else ["--images", "0"]
        capsys.readouterr()
        code = run_command(verify, VerifySettings, [str(dst), *map(str, flags), *sheet])
        output = capsys.readouterr()
        lines = output.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert [line for line in lines if not line.startswith("bad: ")] == errors
        assert len(errors) == (code != 0)
        result = json.loads(output.out)["result"] if output.out else None
        return Verified(code, [line for line in lines if line not in errors], "".join(errors), result)

    return run
