"""An image of a folder has the position that a conversion gives it."""

from pathlib import Path

import pytest

from pipeline.conversion.convert import convert
from pipeline.conversion.settings import ConvertSettings
from pipeline.storage.split import open_split
from tests.helpers.conversions import stems_in
from tests.helpers.imagenet import val_wnids


@pytest.fixture
def sorted_folder(imagenet_folder: Path, tmp_path: Path) -> Path:
    """`imagenet_folder` with its validation images in class folders, as a script sorts them."""
    (tmp_path / "train").symlink_to(imagenet_folder / "train")
    images = sorted((imagenet_folder / "val").iterdir())
    for path, wnid in zip(images, val_wnids(imagenet_folder), strict=True):
        (tmp_path / "val" / wnid).mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / wnid / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize("name", ["train", "val"])
def test_images_have_the_positions_of_a_conversion(
    sorted_folder: Path, imagenet_folder: Path, tmp_path: Path, name: str
) -> None:
    """Whether the validation images were sorted into class folders before or not."""
    folder = open_split(sorted_folder, name).samples
    labels = imagenet_folder / "val_labels.txt"
    for source, val_labels in ((sorted_folder, None), (imagenet_folder, labels)):
        dst = tmp_path / f"of-{source.name}"
        convert(ConvertSettings(src=(source,), dst=dst, val_labels=val_labels, jpeg="keep", shard_size="100KB"))
        stored = open_split(dst, name).samples
        assert [Path(folder.name(index)).stem for index in range(len(folder))] == stems_in(dst, name)
        assert [folder[index] for index in range(len(folder))] == [stored[index] for index in range(len(stored))]
