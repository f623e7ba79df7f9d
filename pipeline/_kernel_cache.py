"""Where numba and torch.compile keep compiled kernels, and what happens where numba cannot or where they are damaged.

Written for numba 0.68. Three things need its private parts:

- numba refuses to define a kernel that is to be cached where it finds no folder that can be written: neither
  `__pycache__` next to the source nor the user's cache folder. Then a private temporary folder is named in
  NUMBA_CACHE_DIR, its public variable, before numba is imported.
- `numba.core.caching.IndexDataCacheFile.load` raises what unpickling raises where a file of the cache is truncated, as
  after a crash of the machine, or OSError where it belongs to somebody else. Here such an entry counts as missing: the
  kernel is compiled again, the file replaced. `save` raises OSError where the disk is full: here the log says so.
- `numba.core.caching.CacheImpl` names files by the source alone. What they hold names modules: in an editable install,
  where `pipeline` and `sluice` are one folder, each would take the files of the other for damaged, and replace them.
  Here those of `sluice` have a name of their own.
"""

import contextlib
import functools
import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

VARIABLE = "NUMBA_CACHE_DIR"
INSTALLED_AS = "sluice"
_SYSTEMS = (Path("/tmp"), Path("/var/tmp"))
TORCH_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def choose_folder() -> None:
    """Name a folder for numba where it would find none, or one below a home that others may write to, such as /tmp:
    what they put there is unpickled and executed. Before numba is imported."""
    if VARIABLE in os.environ:
        return
    in_tree, in_home = Path(__file__).parent / "__pycache__", Path(os.path.expanduser("~/.cache")) / "numba"
    if "XDG_CACHE_HOME" in os.environ:
        in_home = Path(os.environ["XDG_CACHE_HOME"]) / "numba"
    if not _is_writable(in_tree) and not (in_home.is_absolute() and _is_writable(in_home) and _is_own(in_home)):
        os.environ[VARIABLE] = str(_private_folder("sluice-kernels"))


def choose_torch_folder() -> None:
    """Name a private folder for what torch.compile makes. Its own, /tmp/torchinductor_USER, is used also where somebody
    else has made it: what he puts there is unpickled and executed. Before torch.compile is used."""
    if TORCH_VARIABLE not in os.environ:
        os.environ[TORCH_VARIABLE] = str(_private_folder("sluice-torch"))


def _is_writable(folder: Path) -> bool:
    """Whether a file can be written there; numba finds out in the same way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_own(folder: Path) -> bool:
    """Whether no other user may write to a folder, nor put another one in its place or in that of one above it. The
    group may write where it is the user's own, as where umask is 002."""
    return not _others_may_write(folder.stat()) and _none_may_replace(folder)


def _none_may_replace(folder: Path) -> bool:
    """Whether no other user may put something else in the place of what this one makes in a folder; in /tmp, none may.
    Raises OSError where there is no such folder."""
    folder = folder.resolve(strict=True)
    for status in (path.stat() for path in (folder, *folder.parents)):
        is_shared = _others_may_write(status) and not status.st_mode & stat.S_ISVTX
        if is_shared or status.st_uid not in (0, os.geteuid()):
            return False
    return True


def _others_may_write(status: os.stat_result) -> bool:
    return bool(status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if status.st_gid not in (0, os.getegid()) else 0)))


def _private_folder(name: str) -> Path:
    """A folder below TMPDIR that only this user can write, the same at the next start. What numba or torch reads from
    it is executed: a folder that somebody else made, or may write, is not used, and none below a TMPDIR where others
    may put another in its place at any time."""
    base = _temporary()
    folder = base / f"{name}-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
    is_private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o77
    return folder if is_private else Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))


def _temporary() -> Path:
    """TMPDIR, or a folder of the system where others may put something in the place of what is made in TMPDIR."""
    given = Path(tempfile.gettempdir())
    for base in (given, *_SYSTEMS):
        with contextlib.suppress(OSError):
            if _none_may_replace(base) and os.access(base, os.W_OK, effective_ids=True):
                return base
    log.warning("%s: other users may change compiled kernels there; set TMPDIR to a folder that is yours alone", given)
    return given


@functools.cache
def prepare() -> None:
    """Compile kernels again whose cached form cannot be read, and keep those of `sluice` apart. Before such kernels are
    defined."""
    from .jit import HAS_NUMBA

    if not HAS_NUMBA:
        return
    from numba.core.caching import CacheImpl, IndexDataCacheFile

    load, save, name_files = IndexDataCacheFile.load, IndexDataCacheFile.save, CacheImpl.__init__

    def load_if_sound(self: Any, key: Any) -> Any:
        try:
            return load(self, key)
        except Exception as error:  # unpickling raises whatever the bytes lead to
            log.warning("%s: cannot be used (%r); its kernel is compiled again", self._index_path, error)
            with contextlib.suppress(OSError):
                os.unlink(self._index_path)
            return None

    def save_if_possible(self: Any, key: Any, data: Any) -> None:
        try:
            save(self, key, data)
        except OSError as error:
            log.warning("%s: not kept, so it is compiled at every start (%s)", self._index_path, error.strerror)

    def name_by_package(self: Any, function: Any) -> None:
        name_files(self, function)
        if function.__module__.startswith(f"{INSTALLED_AS}."):
            self._filename_base = f"{INSTALLED_AS}.{self._filename_base}"

    IndexDataCacheFile.load, IndexDataCacheFile.save = load_if_sound, save_if_possible
    CacheImpl.__init__ = name_by_package
