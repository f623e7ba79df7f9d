"""The user's own code by name: `package.module:function`, or `folder/file.py:function`.

Naming code runs it. So names come from the command line and from the files of settings that it names. A checkpoint may
be a stranger's: what it names is `distrusted` when it is read, unless it was in use before.
"""

import difflib
import hashlib
import importlib
import importlib.util
import shlex
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from models.card import did_you_mean

_used: set[str] = set()
_distrusted: set[str] = set()


class OwnCodeError(ValueError):
    """The user's own code is missing or fails; the message names the flag, the name and the reason in one line."""


def is_own(name: str) -> bool:
    """Whether a name is one of the user's own code."""
    return ":" in name


def short_name(name: str) -> str:
    """What a folder or a title calls it: the function of `package.module:function`, the file of `folder/file.py`, and
    of other names what is behind the last slash."""
    return name.rpartition(":")[2].rpartition("/")[2].removesuffix(".py")


def distrust(names: Iterable[Any]) -> None:
    """Never run what these values name, unless it was in use before."""
    _distrusted.update(name for name in names if isinstance(name, str) and is_own(name) and name not in _used)


def find(name: str, flag: str) -> Any:
    """What `package.module:function` or `folder/file.py:function` names. Raises OwnCodeError.

    Modules are looked for where Python looks, then in the working directory; what a file imports, then next to it.
    """
    place, _, attribute = name.rpartition(":")
    source = f"{flag} {name}"
    if name in _distrusted:
        raise OwnCodeError(
            f"{source}: a checkpoint alone names this code; if you trust it, give {flag} {shlex.quote(name)} yourself"
        )
    _used.add(name)
    module = load_file(place, source) if place.endswith(".py") else _load_module(place, source)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [known for known in vars(module) if not known.startswith("_")]
        similar = difflib.get_close_matches(attribute, public, n=1) and did_you_mean(attribute, public)
        raise OwnCodeError(f"{source}: {place} has no {attribute or 'name behind the colon'}{similar or ''}") from None


def load_file(path: str, source: str) -> ModuleType:
    """The module in a file, imported once in a process. `source` begins the message of an error. Raises
    OwnCodeError."""
    file = Path(path).resolve()
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"  # unlike that of any other module
    if name in sys.modules:
        return sys.modules[name]
    if not file.is_file():
        raise OwnCodeError(f"{source}: no such file")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up there
    _look_in(file.parent)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise OwnCodeError(f"{source}: {reason(error)}") from error
    return module


def _load_module(name: str, source: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise OwnCodeError(f"{source}: there is no module {error.name} here or among what is installed") from None
        raise OwnCodeError(f"{source}: {reason(error)}") from error
    except Exception as error:
        raise OwnCodeError(f"{source}: {reason(error)}") from error


def _look_in(folder: Path) -> None:
    """Last of all places, so that nothing in it hides an installed package."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def reason(error: BaseException) -> str:
    """An exception of somebody's code in one line: what, and where it was raised."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno} of {error.filename})"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
