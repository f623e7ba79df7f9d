"""The commands of five model zoos, by their names and flags."""

from pipeline.requirements import ensure_installed as _ensure_installed

_ensure_installed(without=("numba",))
