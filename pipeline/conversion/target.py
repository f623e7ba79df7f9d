"""Whether a conversion may write to --dst."""

import re
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage.files import link_of_others
from ..storage.manifest import MANIFEST, Manifest
from .finding import Source
from .finishing import REPORT, read_report
from .labels import read_class_list
from .planning import byte_arguments, source_paths
from .settings import ConvertSettings
from .work import Workspace


def check_outside(dst: Path, source: Source) -> None:
    """Raises InputError if the target would be mistaken for a class folder of the source."""
    target = dst.resolve()
    for folder in source.folders:
        if folder.resolve() in (target, *target.parents):
            raise InputError(f"--dst {dst}: inside {folder}, which is converted; choose a folder outside")


def check_target(workspace: Workspace, settings: ConvertSettings) -> None:
    """Raises InputError if the target is in use for something else."""
    dst = settings.dst
    if dst.exists() and not dst.is_dir():
        raise InputError(f"--dst {dst}: is a file; choose a directory")
    for folder in (dst, dst / "webdataset", dst / "ffcv", workspace.folder):
        if link := link_of_others(folder):
            raise InputError(f"--dst {link}: a link that another user has made; remove it")
    for name in ("webdataset", "ffcv"):
        if (dst / name).exists() and not (dst / name).is_dir():
            raise InputError(f"--dst {dst}: {name} in it is a file; remove it or choose another")
    if not workspace.folder.exists() and (foreign := _finished_files(dst)):
        raise InputError(f"--dst {dst}: holds {foreign[0].name}, not from an unfinished conversion; choose another")
    _check_same_flags(workspace, settings)


def is_complete(workspace: Workspace, settings: ConvertSettings) -> bool:
    """Whether the target is what this conversion makes, finished. The source need not exist any more.

    Raises InputError if it is what other flags or another list of classes make, saying which, and if a file is missing.
    """
    # With a plan, the process that finished was killed before it had removed the work folder, and the next one does so.
    # Without one, the folder is what a network file system or a signal has left.
    if not (workspace.dst / MANIFEST).exists() or (workspace.parts() and not settings.part):
        return False
    dst, report = workspace.dst, read_report(workspace.dst)
    if "flags" not in report:
        raise InputError(f"--dst {dst}: holds a converted dataset already; remove it or choose another")
    manifest = Manifest.read(dst)
    workspace.check_finished(manifest)
    if settings.merge:
        return True
    now = {**source_paths(settings), **byte_arguments(settings)}
    del now["part"]
    differences = _differences(report["flags"], now)
    if settings.on_bad == "fail" and any("bad" in entry for entry in report["images"]):
        differences.append("--on-bad skip then, fail now")
    if settings.classes and settings.classes.exists() and read_class_list(settings.classes) != [*manifest.classes]:
        differences.append(f"--classes {settings.classes} has changed")
    if differences:
        raise InputError(
            f"--dst {dst}: holds a dataset converted with other arguments ({', '.join(differences)}); remove it or "
            f"choose another"
        )
    return True


def _finished_files(dst: Path) -> list[Path]:
    """Files with the names that a conversion gives."""
    names = re.compile(r"(train|val)-\d{6}\.(tar|idx)|(train|val)\.beton")
    inside = [path for name in ("webdataset", "ffcv") for path in (dst / name).glob("*") if names.fullmatch(path.name)]
    return [*inside, *dst.glob(REPORT)]


def _check_same_flags(workspace: Workspace, settings: ConvertSettings) -> None:
    """Raises InputError if the work folder belongs to a conversion with other flags; it says which."""
    for part in workspace.parts():
        plan = workspace.begun_plan(part)
        before, now = plan.arguments, byte_arguments(settings)
        if part == settings.this_part:
            before, now = {**plan.paths, **before}, {**source_paths(settings), **now}
        if differences := ", ".join(_differences(before, now)):
            raise InputError(
                f"--dst {workspace.dst}: holds an unfinished conversion with other arguments ({differences}); start "
                f"that one again, or remove {workspace.folder}"
            )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The flags that have other values than before."""
    return [
        f"--{name.replace('_', '-')} {_typed(before.get(name))} then, {_typed(now[name])} now"
        for name in now
        if before.get(name) != now[name]
    ]


def _typed(value: Any) -> str:
    """A flag's value as it would be typed."""
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
