"""Loaders, found by name: each file here is one, with FACTS about it and create(spec); names with `_` are helpers.

A name that ends in `.py` is the path of a file of the user's own, which defines the same.
"""

import ast
import importlib
import importlib.machinery
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from ..contract import Loader, LoaderFacts, LoaderModule, LoaderSpec
from ..errors import InputError, did_you_mean
from ..storage.split import Split
from ._transfer import to_device as to_device  # for what measures copies

_STORAGE_NAMES = {
    "webdataset": "shards",
    "remote": "shards in a bucket or on a web server",
    "ffcv": "`.beton`",
    "ffcv-raw": "`.beton` with pixels",
    "folder": "folders",
}


def names() -> list[str]:
    """Every loader there is, installed or not."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def choices() -> list[str]:
    """What a `--loader` flag takes."""
    return ["auto", *names()]


def facts(name: str) -> LoaderFacts:
    """What a loader's file states about it; its package need not be installed. Raises InputError for unknown names."""
    if is_own(name):
        return load(name).FACTS
    spec = importlib.util.find_spec(f"{__name__}.{_known(name)}")
    assert spec is not None
    assert isinstance(spec.loader, importlib.machinery.SourceFileLoader)
    source = spec.loader.get_source(spec.name)
    for statement in ast.parse(source or "").body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="FACTS")], value=ast.Call(args=[], keywords=keywords)):
                return LoaderFacts(**{str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords})
    raise TypeError(f"{spec.origin}: has no FACTS = LoaderFacts(...), which a loader's file begins with")


def is_own(name: str) -> bool:
    """Whether a name is the path of a file of the user's own."""
    return name.endswith(".py")


def by_priority() -> list[str]:
    """The loaders that `auto` considers, best first."""
    ranked = [(stated.priority, name) for name in names() if (stated := facts(name)).priority is not None]
    return [name for _, name in sorted(ranked, reverse=True)]


def load(name: str) -> LoaderModule:
    """Import a loader's file. Raises InputError with the install command where its package is missing, and with the
    reason where a file of the user's own is no loader."""
    if is_own(name):
        return _load_own(Path(name))
    try:
        return cast(LoaderModule, importlib.import_module(f"{__name__}.{_known(name)}"))
    except ModuleNotFoundError as error:
        missing, stated = str(error.name).partition(".")[0], facts(name)
        of_the_loader = missing == stated.package.partition(".")[0]
        package, command = (stated.package, stated.install) if of_the_loader else (missing, f"pip install {missing}")
        raise InputError(f"--loader {name} needs {package}, which is not installed: {command}") from None
    except (ImportError, OSError) as error:
        raise InputError(f"--loader {name}: its package cannot be loaded ({error})") from None


def _load_own(path: Path) -> LoaderModule:
    """The module in a file, imported once in a process."""
    flag, name = f"--loader {path}", f"{__name__}.own:{path.resolve()}"  # no other module can have that name
    if name not in sys.modules:
        if not path.is_file():
            raise InputError(f"{flag}: no such file")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look it up there
        try:
            spec.loader.exec_module(module)
            _check_own(module, flag)
        except Exception as error:
            del sys.modules[name]
            if isinstance(error, InputError):
                raise
            raise InputError(f"{flag}: cannot be imported ({type(error).__name__}: {error})") from error
    return cast(LoaderModule, sys.modules[name])


def _check_own(module: ModuleType, flag: str) -> None:
    if not callable(getattr(module, "create", None)):
        raise InputError(f"{flag}: has no create(spec), which returns the loader")
    # By its name: the file may have it from `sluice.contract`, and this one be `pipeline.contract`.
    if type(getattr(module, "FACTS", None)).__name__ != LoaderFacts.__name__:
        raise InputError(f"{flag}: has no FACTS = LoaderFacts(reads=(...)), which says what it reads")


def _known(name: str) -> str:
    if name not in names():
        hint = did_you_mean(name, choices())
        raise InputError(f"--loader {name}: unknown{hint}; there are {', '.join(names())} and auto")
    return name


def usable(split: Split, passed_over: list[str]) -> Iterator[tuple[str, str]]:
    """The installed loaders that read this data, best first, each with the storage it reads; appends to `passed_over`,
    in words, why not the others. Raises InputError where there is none."""
    any_usable = False
    for name in by_priority():
        try:
            reads = load(name).FACTS.reads
        except InputError as error:
            passed_over.append(f"not {name}: {str(error).removeprefix(f'--loader {name}').lstrip(': ')}")
            continue
        storages = [storage for storage in reads if storage in split.formats]
        if storages:
            any_usable = True
            yield name, storages[0]
        else:
            passed_over.append(f"not {name}: the data has no {' or '.join(reads)} storage")
    if not any_usable:
        raise InputError(f"--loader auto: none reads the data as it is stored ({'; '.join(passed_over)})")


def choose(split: Split) -> tuple[str, str]:
    """What `auto` means for this data on this machine: the loader's name, and why in words. Raises InputError."""
    passed_over: list[str] = []
    name, storage = next(usable(split, passed_over))
    return name, "; ".join([f"it is installed and the data has {storage!r} storage", *passed_over])


def create(name: str, spec: LoaderSpec) -> Loader:
    """Create the loader called `name`. Raises InputError for what the user can fix."""
    return load(name).create(spec)


def create_timed(name: str, spec: LoaderSpec) -> Loader:
    """A loader of the same batches whose parts `spec.clock` can see, also where they are made in one compiled kernel;
    then it runs in one thread. Raises InputError for what the user can fix."""
    module: Any = load(name)
    loader: Loader = (module.create_stepped if module.FACTS.compiled else module.create)(spec)
    return loader


def table() -> list[tuple[str, str, str]]:
    """The loaders for the documentation, best first: name, what it reads, what it needs; `auto` is last."""
    ranked = by_priority()
    stated = {name: facts(name) for name in [*ranked, *(name for name in names() if name not in ranked)]}
    rows = [(f"`{name}`", _in_words(one), one.needs) for name, one in stated.items()]
    candidates = ", ".join(f"`{name}`" for name in ranked)
    auto = f"the first of {candidates} that is installed and can read the data; it says why"
    return [*rows, ("`auto`", "what there is", auto)]


def _in_words(stated: LoaderFacts) -> str:
    return ", ".join(dict.fromkeys(_STORAGE_NAMES[storage] for storage in stated.reads)) or "nothing"
