"""Loaders that may not be installed."""

import pytest

from pipeline import loaders
from pipeline.contract import LoaderModule
from pipeline.errors import InputError


def loaded(name: str) -> LoaderModule:
    """The loader's file. Skips the test if its package is not installed; any other error is one."""
    try:
        return loaders.load(name)
    except InputError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise
