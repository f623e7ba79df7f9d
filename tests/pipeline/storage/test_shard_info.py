"""`_info.json`: timm's reader finds our shards by it, and we find other people's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.storage.split import open_split
from tests.helpers.foreign_forms import rows_of
from tests.helpers.imagenet import CLASSES
from tests.helpers.images import decoded
from tests.helpers.sources import assert_one_line, contents, opened, write_samples


@pytest.mark.parametrize(("name", "split"), [("train", "train"), ("validation", "val"), ("val", "val")])
def test_reader_of_timm_reads_every_sample(dataset: Path, name: str, split: str) -> None:
    reader_wds = pytest.importorskip("timm.data.readers.reader_wds")
    reader = reader_wds.ReaderWds(root=str(dataset / "webdataset"), split=name)
    samples = open_split(dataset, split).samples
    assert len(reader) == reader.num_samples == len(samples)
    theirs = sorted((np.asarray(image).tobytes(), target) for image, target in reader)
    ours = sorted(
        (decoded(sample.jpeg).tobytes(), sample.label) for sample in map(samples.__getitem__, range(len(samples)))
    )
    assert theirs == ours


def _write_shards(imagenet: Path, root: Path, names: dict[str, list[str]]) -> Path:
    """Shards as timm's data sets at Hugging Face have them: image, index, and JSON with more about the image."""
    info = dict[str, Any]()
    for split, shards in names.items():
        rows = rows_of(imagenet, "train" if split == "train" else "val")
        for number, shard in enumerate(shards):
            samples = [
                {
                    "__key__": f"{Path(name).stem}_{CLASSES[label]}",
                    "jpg": data,
                    "cls": str(label).encode(),
                    "json": json.dumps({"label": label, "filename": name, "width": 500}).encode(),
                }
                for name, label, data in rows[number :: len(shards)]
            ]
            write_samples(root / shard, samples, encode=False)
        info[split] = {"name": split, "filenames": shards, "shard_lengths": [], "num_samples": len(rows)}
    (root / "_info.json").write_text(json.dumps({"splits": info}))
    return root


NAMES = {
    "of timm": {
        "train": ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"],
        "validation": ["imagenet1k-validation-00.tar"],
    },
    "without splits": {"train": ["a0.tar", "a1.tar"], "validation": ["b0.tar"]},
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES.keys())
def test_shards_are_found_and_their_classes_are_the_wnids_in_names(
    imagenet_folder: Path, tmp_path: Path, names: dict[str, list[str]]
) -> None:
    source = opened(_write_shards(imagenet_folder, tmp_path, names))
    assert source.classes == tuple(CLASSES)
    for split in ("train", "val"):
        assert [(label, data) for _, label, data in contents(source, split)] == [
            (CLASSES[label], data)
            for _, label, data in sorted(
                (f"{Path(name).stem}_{CLASSES[label]}", label, data)
                for name, label, data in rows_of(imagenet_folder, split)
            )
        ]


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (
        lambda root: (root / "imagenet1k-train-0001.tar").unlink(),
        "{root}/imagenet1k-train-0001.tar: missing, and _info.json lists it; download it, or remove {root}/_info.json",
    ),
    "no JSON": (lambda root: (root / "_info.json").write_text("{"), "{root}/_info.json: cannot be read"),
    "other JSON": (
        lambda root: (root / "_info.json").write_text('{"splits": [1]}'),
        "{root}/_info.json: cannot be read",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_incomplete_download_is_named(
    imagenet_folder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    root = _write_shards(imagenet_folder, tmp_path / "wds", NAMES["of timm"])
    damage(root)
    with pytest.raises(InputError) as raised:
        opened(root)
    assert_one_line(raised.value, message.format(root=root))


def test_own_shards_apart_from_their_dataset_are_found_by_it(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset / "webdataset", tmp_path / "shards")
    (tmp_path / "shards" / "val-000000.tar").unlink()
    with pytest.raises(InputError) as raised:
        opened(tmp_path / "shards")
    assert_one_line(raised.value, f"{tmp_path}/shards/val-000000.tar: missing, and _info.json lists it")
