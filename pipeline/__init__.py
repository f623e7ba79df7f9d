"""The data path: from images at rest to uint8 batches on the device. README.md in this folder maps it.

Installed, it is the package `sluice`, and its public names are those below; the modules are internal. They are imported
when they are first used: `import sluice` itself takes milliseconds.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from ._kernel_cache import choose_folder as _choose_folder

if TYPE_CHECKING:
    from .contract import Batch
    from .errors import InputError, StorageError, UsageError
    from .front import ImageLoader, Pair, open

    __version__: str

__all__ = ["Batch", "ImageLoader", "InputError", "Pair", "StorageError", "UsageError", "open"]

_choose_folder()

_MODULES = {"Batch": ".contract", "InputError": ".errors", "StorageError": ".errors", "UsageError": ".errors"}


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("sluice")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(_import_module(_MODULES.get(name, ".front"), __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
