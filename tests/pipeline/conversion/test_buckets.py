"""Converting what is in a bucket or on a web server gives what converting the same files on this machine gives."""

import json
import logging
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversion.convert import convert, find_source
from pipeline.conversion.settings import ConvertSettings
from pipeline.errors import InputError
from pipeline.storage.remote import helper
from pipeline.storage.remote.settings import Access
from tests.helpers.conversions import killed_when, refused, report_of, run, stems_in
from tests.helpers.files import files_in
from tests.helpers.foreign_forms import hugging_face, kaggle_zip, tfrecords
from tests.helpers.imagenet_forms import (
    OFFICIAL,
    archives_of_class_folders,
    class_tar,
    copied,
    official,
    official_apart,
    shards,
    train_archive,
    val_archive,
    write_labels,
    write_tar,
)
from tests.helpers.images import jpeg_bytes, photograph
from tests.helpers.scripts import finish, start, wait_until
from tests.helpers.servers import put_folder, serving

Form = Callable[[Path, Path], list[Path]]


def class_archives(imagenet: Path, root: Path) -> list[Path]:
    """The training archive unpacked once, and the development kit unpacked."""
    for wnid in ("n00000001", "n00000002", "n00000003", "n00000004"):
        (root / "train").mkdir(parents=True, exist_ok=True)
        (root / "train" / f"{wnid}.tar").write_bytes(class_tar(imagenet, wnid))
    val_archive(imagenet, root / "val" / "images-val.tar")
    write_labels(imagenet, root / "ILSVRC2012_devkit_t12")
    return [root]


def unusual_labels(imagenet: Path, root: Path) -> list[Path]:
    """Labels that are recognised by their content."""
    (root_of,) = official(imagenet, root)
    (root / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    shutil.copy(imagenet / "val_labels.txt", root / "somehow.txt")
    return [root_of]


def flags(src: list[Path], dst: Path, **more: Any) -> ConvertSettings:
    common: dict[str, Any] = {"jpeg": "keep", "shard_size": "100KB", "workers": 2, "format": ("webdataset",)}
    return ConvertSettings(src=tuple(src), dst=dst, **(common | more))


def put(root: Path, bucket: str) -> tuple[str, str]:
    """Put a folder into `in` of a bucket. Returns its address and the endpoint."""
    name, endpoint = bucket.split("|")
    put_folder(root, f"{name}/in", Access(endpoint, 5))
    return f"{name}/in", endpoint


def remote(paths: list[Path], root: Path, address: str) -> list[Path]:
    """Paths below `root`, in the bucket."""
    return [Path(f"{address}/{path.relative_to(root)}") for path in paths]


def assert_same(local: Path, other: Path) -> None:
    """Two conversions are equal in all but where their sources were."""
    files, others = files_in(local), files_in(other)
    assert files.keys() == others.keys()
    assert [name for name in files if files[name] != others[name]] == ["report.json"]
    reports = report_of(local), report_of(other)
    for report in reports:
        report["flags"]["src"] = report["flags"]["val_labels"] = None
        for entry in report["images"]:
            entry["file"] = entry["file"].rpartition("/")[2]
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    "form",
    [
        *(official, official_apart, class_archives, unusual_labels),
        *(archives_of_class_folders, shards, kaggle_zip, tfrecords, hugging_face),
    ],
    ids=lambda form: form.__name__,
)
def test_a_bucket_gives_what_a_folder_gives(form: Form, imagenet_folder: Path, s3_bucket: str, tmp_path: Path) -> None:
    root = tmp_path / "src"
    paths = form(imagenet_folder, root)
    address, endpoint = put(root, s3_bucket)
    counts = convert(flags(paths, tmp_path / "local"))
    assert (counts["train"], counts["val"]) == (47, 19)
    in_bucket = flags(remote(paths, root, address), tmp_path / "remote", endpoint_url=endpoint, io_timeout=5)
    assert convert(in_bucket) | {"seconds": 0} == counts | {"seconds": 0}
    assert_same(tmp_path / "local", tmp_path / "remote")
    assert report_of(tmp_path / "remote")["flags"]["src"] == [
        f"s3://{str(path).removeprefix('s3:/')}" for path in in_bucket.src
    ]
    assert convert(in_bucket) | {"seconds": 0} == counts | {"seconds": 0}  # already complete


def test_converted_datasets_in_a_bucket_keep_their_classes(
    dataset: Path, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own shards, with dataset.json, and the .beton files."""
    address, endpoint = put(dataset, s3_bucket)
    monkeypatch.chdir(tmp_path)  # nothing local is called like what is in the bucket
    for place in ("", "ffcv"):
        convert(flags([dataset / place], tmp_path / f"local{place}"))
        source = Path(f"{address}/{place}")
        convert(flags([source], tmp_path / f"remote{place}", endpoint_url=endpoint, io_timeout=5))
        assert_same(tmp_path / f"local{place}", tmp_path / f"remote{place}")


def test_azure(imagenet_folder: Path, azure_container: str, tmp_path: Path) -> None:
    paths = official(imagenet_folder, tmp_path / "src")
    address, endpoint = put(tmp_path / "src", azure_container)
    convert(flags(paths, tmp_path / "local"))
    convert(flags([Path(address)], tmp_path / "remote", endpoint_url=endpoint, io_timeout=5))
    assert_same(tmp_path / "local", tmp_path / "remote")


def test_files_on_a_web_server(imagenet_folder: Path, tmp_path: Path) -> None:
    """Some of them: the labels are on this machine. A web server lists nothing."""
    root = tmp_path / "src"
    archives = [train_archive(imagenet_folder, root / "a b" / OFFICIAL["train"])]
    archives += [val_archive(imagenet_folder, root / OFFICIAL["val"])]
    labels = {"val_labels": imagenet_folder / "val_labels.txt"}
    convert(flags(archives, tmp_path / "local", **labels))
    with serving(root) as server:
        named = [Path(f"{server.url}/a%20b/{OFFICIAL['train']}"), Path(f"{server.url}/{OFFICIAL['val']}")]
        convert(flags(named, tmp_path / "remote", io_timeout=5, **labels))
        assert_same(tmp_path / "local", tmp_path / "remote")
        message = refused(flags([Path(f"{server.url}/a")], tmp_path / "x", io_timeout=0.5))
        assert message == f"{server.url}/a: no such file; a web server has no folders to list, so name its files"


@pytest.mark.parametrize("fault", ["refuse", "reset 2000", "reset 0", "503", "429", "short 100", "stall 500"])
def test_faults_are_overcome(fault: str, imagenet_folder: Path, s3_bucket: str, tmp_path: Path) -> None:
    """In the listing, while archives are listed, and while images are read."""
    paths = official(imagenet_folder, tmp_path / "src")
    address, endpoint = put(tmp_path / "src", s3_bucket)
    convert(flags(paths, tmp_path / "local"))
    with serving(endpoint) as server:
        for pattern in ("list-type", "train.tar", "train.tar", "val.tar", "devkit"):
            server.faults.add(pattern, fault)
        source = flags([Path(address)], tmp_path / "remote", endpoint_url=server.url, io_timeout=2)
        convert(source)
        assert server.faults.waiting == []
    assert_same(tmp_path / "local", tmp_path / "remote")


def test_ctrl_c_while_a_server_stalls(imagenet_folder: Path, tmp_path: Path) -> None:
    """The command ends, also where threads wait for the server, and not only when that has been given up."""
    archives = [train_archive(imagenet_folder, tmp_path / "src" / OFFICIAL["train"])]
    archives += [val_archive(imagenet_folder, tmp_path / "src" / OFFICIAL["val"])]
    labels = imagenet_folder / "val_labels.txt"
    with serving(tmp_path / "src", latency=0.1) as server:
        words = ["--src", *(f"{server.url}/{archive.name}" for archive in archives), "--val-labels", labels]
        words += ["--dst", tmp_path / "dst", "--io-timeout", 3600, "--shard-size", "15KB"]
        process = start(*words, program="tools/convert_imagenet.py")
        wait_until(lambda: any(tmp_path.glob("dst/.conversion/*-??????.json")), process)
        server.faults.add("tar", *["stall 500"] * 1000)
        wait_until(lambda: server.faults.met["stall 500"] > 1, process)
        process.send_signal(signal.SIGINT)
        done = finish(process)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "interrupted"


def test_killed_and_resumed_and_changed_meanwhile(imagenet_folder: Path, s3_bucket: str, tmp_path: Path) -> None:
    """The shards on record are not read again; those of an object that has changed are."""
    paths = official_apart(imagenet_folder, tmp_path / "src")
    address, endpoint = put(tmp_path / "src", s3_bucket)
    convert(flags(paths, tmp_path / "local"))
    with serving(endpoint) as server:

        def settings(name: str) -> ConvertSettings:
            objects = remote(paths, tmp_path / "src", address)
            return flags(objects, tmp_path / name, endpoint_url=server.url, io_timeout=5)

        convert(settings("whole"))
        whole, server.sent = server.sent, 0
        for name in ("resumed", "changed"):
            assert killed_when(lambda number, path: "train-000002.json.partial" in path, settings(name))
        server.sent = 0
        convert(settings("resumed"))
        assert server.sent < whole - 100_000  # two shards; most is the list of images
        assert_same(tmp_path / "local", tmp_path / "resumed")
        # Another image of the first shard, of the same size and name.
        (imagenet := tmp_path / "imagenet").mkdir()
        copied(imagenet_folder, imagenet)
        (image,) = imagenet.glob(f"train/*/{stems_in(tmp_path / 'local', 'train')[0]}.*")
        size = image.stat().st_size
        image.write_bytes(jpeg_bytes(photograph(16, 16, seed=5)).ljust(size, b"\0")[:size])
        train_archive(imagenet, paths[0])
        put(tmp_path / "src", s3_bucket)
        convert(flags(paths, tmp_path / "local, changed"))
        convert(settings("changed"))
        assert_same(tmp_path / "local, changed", tmp_path / "changed")


def test_an_object_that_changes_while_it_is_read(imagenet_folder: Path, s3_bucket: str, tmp_path: Path) -> None:
    official(imagenet_folder, tmp_path / "src")
    address, endpoint = put(tmp_path / "src", s3_bucket)
    source = find_source(flags([Path(address)], tmp_path / "dst", endpoint_url=endpoint, io_timeout=5))
    assert source.splits["train"].read(0).startswith(b"\xff\xd8")
    shutil.copytree(imagenet_folder, tmp_path / "other", ignore=shutil.ignore_patterns("n00000004_*1*"))
    train_archive(tmp_path / "other", tmp_path / "src" / OFFICIAL["train"])
    put(tmp_path / "src", s3_bucket)
    with pytest.raises(InputError, match=rf"^{address}/{OFFICIAL['train']}: has changed since it was listed; start"):
        source.splits["train"].read(0)
    source.splits["val"].read(0)


def test_what_cannot_be_converted_is_one_line(imagenet_folder: Path, s3_bucket: str, tmp_path: Path) -> None:
    bucket, endpoint = s3_bucket.split("|")
    access = Access(endpoint, 5)

    def message(path: str, **more: Any) -> str:
        return refused(flags([Path(path)], tmp_path / "dst", **({"endpoint_url": endpoint, "io_timeout": 0.5} | more)))

    assert message(f"{bucket}/none") == f"{bucket}/none: no such object, and no folder with objects"
    assert "s3://nobucket: cannot be listed (Server returned non-2xx status code: 404 Not Found" in message(
        "s3://nobucket"
    )
    put_folder(imagenet_folder, f"{bucket}/loose", access)
    assert "loose images in a bucket are not converted, only archives" in message(f"{bucket}/loose")
    write_tar(tmp_path / "x/train.tar", [])
    put_folder(tmp_path / "x", f"{bucket}/empty", access)
    assert f"{bucket}/empty/train.tar: no files in this archive" in message(f"{bucket}/empty")
    train_archive(imagenet_folder, tmp_path / "y" / OFFICIAL["train"])
    val_archive(imagenet_folder, tmp_path / "y" / OFFICIAL["val"])
    put_folder(tmp_path / "y", f"{bucket}/nolabels", access)
    assert "without class folders; give --val-labels FILE" in message(f"{bucket}/nolabels")
    with serving(endpoint) as server:
        server.faults.add(OFFICIAL["train"], *["503"] * 99)
        assert f"{OFFICIAL['train']}: given up after 0.5 s" in message(f"{bucket}/nolabels", endpoint_url=server.url)
        server.faults.waiting.clear()
        for pattern, said in ((OFFICIAL["train"], "cannot be opened"), ("list-type", "cannot be listed")):
            server.faults.add(pattern, "403")
            assert said in message(f"{bucket}/nolabels", endpoint_url=server.url)


def test_the_command(
    imagenet_folder: Path, s3_bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Labels in the bucket by their address, a dry run, what was fetched in the log, and codes."""
    train_archive(imagenet_folder, tmp_path / "src" / OFFICIAL["train"])
    val_archive(imagenet_folder, tmp_path / "src" / OFFICIAL["val"])
    shutil.copy(imagenet_folder / "val_labels.txt", tmp_path / "src/labels")
    address, endpoint = put(tmp_path / "src", s3_bucket)
    common = ["--src", f"{address}/{OFFICIAL['train']}", f"{address}/{OFFICIAL['val']}", "--dst", tmp_path / "dst"]
    common += ["--endpoint-url", endpoint, "--val-labels", f"{address}/labels"]
    with caplog.at_level(logging.INFO):
        assert run(*common, "--dry-run") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["result"]
    assert (result["train"], result["val"]) == (47, 19)
    assert not (tmp_path / "dst").exists()
    assert any(re.fullmatch(r"list of images: [\d.]+ [KM]B fetched \([\d.]+ [KM]B/s\)", m) for m in caplog.messages)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert run(*common) == 0
    assert any(re.fullmatch(r"train: [\d.]+ [KM]B fetched \([\d.]+ [KM]B/s\)", m) for m in caplog.messages)
    capsys.readouterr()
    assert run("--src", f"{address}/none", "--dst", tmp_path / "b", "--endpoint-url", endpoint) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {address}/none: no such object")
    assert run("--src", "ftp://host/train.tar", "--dst", tmp_path / "b") == 2


def test_a_bucket_becomes_another(imagenet_folder: Path, s3_bucket: str, tmp_path: Path) -> None:
    """Nothing but the shards in work is on this machine."""
    paths = official(imagenet_folder, tmp_path / "src")
    address, endpoint = put(tmp_path / "src", s3_bucket)
    convert(flags(paths, tmp_path / "local"))
    target = address.replace("/in", "/out")
    convert(flags([Path(address)], Path(target), endpoint_url=endpoint, work_dir=tmp_path / "work"))
    names = helper.call("names_below", target, Access(endpoint, 5))
    assert sorted(names) == sorted(files_in(tmp_path / "local"))
    for name in names:
        if name != "report.json":
            content = helper.call("read", f"{target}/{name}", Access(endpoint, 5), 1 << 24)
            assert content == (tmp_path / "local" / name).read_bytes()
