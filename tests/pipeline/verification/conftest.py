"""The verification command as a fixture."""

import pytest

from tests.helpers.verification import Verify, verifier


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Verify:
    return verifier(capsys)
