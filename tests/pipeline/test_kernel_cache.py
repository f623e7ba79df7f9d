"""numba's cache where there is no folder for it, and where its files are damaged."""

import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from numba.core.caching import CacheImpl, IndexDataCacheFile
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from pipeline import _kernel_cache
from tests.helpers.disks import small_disk

ROOT = Path(__file__).resolve().parents[2]
CROP = (
    "from pipeline.order.crops import random_resized_crop as crop; print(crop(0, 1, 2, 300, 400, 0.1, 1., 0.75, 1.3))"
)


def run(code: str, checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a folder read-only")
def test_kernels_of_a_checkout_that_cannot_be_written(tmp_path: Path) -> None:
    """Without a home either, they are cached in a folder of this user below TMPDIR, not in one that a stranger made."""
    checkout, temporary, planted = tmp_path / "checkout", tmp_path / "tmp", tmp_path / "planted"
    for folder in (checkout, temporary, planted):
        folder.mkdir()
    shutil.copytree(ROOT / "pipeline", checkout / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    expected = run(CROP, ROOT, HOME=str(tmp_path)).stdout
    subprocess.run(["mount", "--bind", str(checkout), str(checkout)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(checkout)], check=True)
        done = run(CROP, checkout, HOME="/proc/none", TMPDIR=str(temporary))
        assert (done.stdout, done.returncode) == (expected, 0), done.stderr
        (folder,) = temporary.iterdir()
        assert folder.name == f"sluice-kernels-{os.getuid()}"
        assert list(folder.rglob("*.nbi"))
        for file in folder.rglob("*.nb?"):  # as a crash of the machine leaves them
            os.truncate(file, file.stat().st_size // 2)
        done = run(CROP, checkout, HOME="/proc/none", TMPDIR=str(temporary))
        assert (done.stdout, done.returncode) == (expected, 0), done.stderr
        assert "its kernel is compiled again" in done.stderr
        done = run(CROP, checkout, HOME="/proc/none", TMPDIR=str(temporary))
        assert (done.stdout, done.stderr) == (expected, "")
        shutil.rmtree(folder)
        planted.chmod(0o777)
        folder.symlink_to(planted)
        assert run(CROP, checkout, HOME="/proc/none", TMPDIR=str(temporary)).stdout == expected
        assert not list(planted.iterdir())
    finally:
        subprocess.run(["umount", str(checkout)], check=True)


def test_kernels_are_compiled_where_there_is_no_room_to_keep_them(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16k") as disk:
        done = run(CROP, ROOT, HOME=str(tmp_path), NUMBA_CACHE_DIR=str(disk))
    assert (done.stdout, done.returncode) == (run(CROP, ROOT, HOME=str(tmp_path)).stdout, 0), done.stderr
    assert "not kept, so it is compiled at every start (No space left on device)" in done.stderr


def test_each_name_of_the_folder_has_kernels_of_its_own(tmp_path: Path) -> None:
    """In an editable install, `sluice` is the folder pipeline/: what one compiles, the other cannot load."""
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sluice").symlink_to(tmp_path / "pipeline")
    kernels = tmp_path / "pipeline" / "order" / "__pycache__"
    for package in ("pipeline", "sluice"):
        done = run(CROP.replace("pipeline", package), tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    compiled = {file.name: file.stat().st_mtime_ns for file in kernels.glob("*.nbi")}
    assert {f"sluice.{name}" for name in compiled if not name.startswith("sluice.")} <= compiled.keys()
    for package in ("pipeline", "sluice"):
        assert run(CROP.replace("pipeline", package), tmp_path).stderr == ""
    assert compiled == {file.name: file.stat().st_mtime_ns for file in kernels.glob("*.nbi")}


def test_help_for_a_user_without_a_name_a_home_and_the_right_to_write(tmp_path: Path) -> None:
    """As in a container that runs under any user number: the right to read everything, and nothing more."""
    become = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    become += ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    if subprocess.run([*become, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to become somebody else")
    tmp_path.chmod(0o1777)
    words = [*become, sys.executable, str(ROOT / "tools" / "convert_imagenet.py"), "--help"]
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    done = subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert [path.name for path in tmp_path.iterdir()] == ["sluice-kernels-54321"]


@pytest.mark.skipif(os.getuid() != 0, reason="gives folders to other users")
@pytest.mark.parametrize("planted", ["home", "home/.cache", "home/.cache/numba"])
def test_kernels_are_not_read_from_a_home_that_others_may_write_to(
    tmp_path: Path, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HOME=/tmp, as in some containers and jobs: who makes /tmp/.cache/numba first has his pickles executed."""
    in_home, temporary = tmp_path / "home" / ".cache" / "numba", tmp_path / "tmp"
    in_home.mkdir(parents=True)
    temporary.mkdir()
    is_writable = _kernel_cache._is_writable
    monkeypatch.setattr(_kernel_cache, "_is_writable", lambda folder: folder == in_home and is_writable(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def chosen() -> str | None:
        monkeypatch.delenv(_kernel_cache.VARIABLE, raising=False)
        _kernel_cache.choose_folder()
        return os.environ.get(_kernel_cache.VARIABLE)

    assert chosen() is None
    os.chown(tmp_path / planted, 65534, 65534)
    assert chosen() == str(temporary / f"sluice-kernels-{os.getuid()}")
    os.chown(tmp_path / planted, 0, 0)
    (tmp_path / planted).chmod(0o777)
    assert chosen() == str(temporary / f"sluice-kernels-{os.getuid()}")
    if planted != "home/.cache/numba":
        (tmp_path / planted).chmod(0o1777)  # as /tmp: what is in it is its owner's
        assert chosen() is None


def test_torch_compile_keeps_kernels_where_nobody_else_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own folder in /tmp may be somebody else's; what lies there is unpickled and executed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(_kernel_cache.TORCH_VARIABLE, raising=False)
    planted = Path(default_cache_dir())
    assert planted.parent == tmp_path
    planted.mkdir(mode=0o777)
    _kernel_cache.choose_torch_folder()
    chosen = Path(cache_dir())
    assert chosen == tmp_path / f"sluice-torch-{os.getuid()}"
    assert chosen.stat().st_mode & 0o777 == 0o700
    chosen.chmod(0o777)
    monkeypatch.delenv(_kernel_cache.TORCH_VARIABLE)
    _kernel_cache.choose_torch_folder()
    assert Path(cache_dir()) not in (planted, chosen)


def test_numba_has_the_private_parts_that_are_used() -> None:
    assert {"load", "save", "_load_index", "_save_index"} <= vars(IndexDataCacheFile).keys()
    assert "_index_path" in IndexDataCacheFile("folder", "name", None).__dict__
    assert "_filename_base" in inspect.getsource(CacheImpl.filename_base.fget)
    assert _kernel_cache.VARIABLE == "NUMBA_CACHE_DIR"


@pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user")
@pytest.mark.parametrize(("mode", "owner"), [(0o777, 0), (0o1777, 65534)], ids=["written by all", "another's"])
def test_nobody_can_replace_the_folder_of_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int
) -> None:
    """TMPDIR on a scratch disk without the bit that keeps users apart in /tmp: who moves the folder away and makes
    another has what he puts there unpickled and executed."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    scratch.chmod(mode)
    os.chown(scratch, owner, owner)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv(_kernel_cache.TORCH_VARIABLE, "")  # so that it is as before again
    monkeypatch.delenv(_kernel_cache.TORCH_VARIABLE)
    _kernel_cache.choose_torch_folder()
    chosen = Path(os.environ[_kernel_cache.TORCH_VARIABLE])
    assert chosen.parent == Path("/tmp")
    assert chosen.stat().st_mode & 0o777 == 0o700
    assert not list(scratch.iterdir())
