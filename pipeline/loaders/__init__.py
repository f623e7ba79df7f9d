"""Loaders, found by name: each file here is one, with READS (the storages it can read) and create(spec)."""

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from pipeline.contract import Loader, LoaderSpec
from pipeline.dataset import Split
from pipeline.errors import InputError

PREFERENCE = ("ffcv", "dali", "torch", "webdataset")
"""What `auto` tries, fastest first; webdataset decodes as torch does, and alone reads remote shards."""

_INSTALL = {"ffcv": "make env", "nvidia": "pip install nvidia-dali-cuda130"}


def names() -> list[str]:
    """Every loader there is, installed or not."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Import a loader's file. Raises InputError with the install command where its package is missing."""
    if name not in names():
        raise InputError(f"--loader {name}: unknown; there are {', '.join(names())} and auto")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        command = _INSTALL.get(package, f"pip install {package}")
        raise InputError(f"--loader {name} needs {package}, which is not installed: {command}") from None
    except (ImportError, OSError) as error:
        raise InputError(f"--loader {name}: its package cannot be loaded ({error})") from None


def usable(split: Split, passed_over: list[str]) -> Iterator[tuple[str, str]]:
    """The installed loaders that read this data, best first, each with the storage it reads; appends to `passed_over`,
    in words, why not the others. Raises InputError where there is none."""
    found = False
    for name in PREFERENCE:
        try:
            module = load(name)
        except InputError as error:
            passed_over.append(f"not {name}: {str(error).removeprefix(f'--loader {name}').lstrip(': ')}")
            continue
        storages = [storage for storage in module.READS if storage in split.formats]
        if storages:
            found = True
            yield name, storages[0]
        else:
            passed_over.append(f"not {name}: the data has no {' or '.join(module.READS)} storage")
    if not found:
        raise InputError(f"--loader auto: none reads the data as it is stored ({'; '.join(passed_over)})")


def choose(split: Split) -> tuple[str, str]:
    """What `auto` means for this data on this machine: the loader's name, and why in words. Raises InputError."""
    passed_over: list[str] = []
    name, storage = next(usable(split, passed_over))
    return name, "; ".join([f"it is installed and the data has {storage!r} storage", *passed_over])


def create(name: str, spec: LoaderSpec) -> Loader:
    """Make the loader called `name`. Raises InputError for what the user can mend."""
    return load(name).create(spec)
