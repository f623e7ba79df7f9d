"""Models of other libraries, and options: what those of a stranger may not do."""

from pathlib import Path

import pytest
import torch

import models
from pipeline.errors import InputError
from tests.helpers.servers import serving
from train import finished
from train.config import TrainConfig


def test_a_checkpoint_has_the_library_fetch_no_file(tmp_path: Path) -> None:
    """timm would write what any address gives into any folder, under any name that is not there yet."""
    served, written = tmp_path / "served", tmp_path / "written"
    served.mkdir()
    (served / "authorized_keys").write_text("a stranger's")
    with serving(served) as server:
        config = TrainConfig(model="timm/resnet18").as_dict()
        overlay = {"url": f"{server.url}/authorized_keys", "hf_hub_id": None}
        config["model_kwargs"] = ["pretrained=True", f"pretrained_cfg_overlay={overlay}", f"cache_dir={written}"]
        torch.save({"model": {}, "config": config}, tmp_path / "some.pt")
        with pytest.raises(InputError, match="the library fetches nothing here"):
            finished.load(tmp_path / "some.pt", None, device="cpu")
        assert not server.requests
    assert not written.exists()


@pytest.mark.parametrize("option", ["pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir", "weights"])
@pytest.mark.parametrize("model", ["timm/resnet18", "torchvision/resnet18"])
def test_options_that_fetch_are_refused(model: str, option: str) -> None:
    with pytest.raises(models.ModelOptionError, match=f"{option}: the library fetches nothing here; --pretrained FILE"):
        models.create(model, 10, {option: True})


def test_an_option_of_a_network_is_passed_on() -> None:
    """It begins as those that fetch."""
    options = {"pretrained_window_sizes": (4, 4, 4, 2), "depths": (1, 1, 1, 1)}
    assert isinstance(models.create("timm/swinv2_tiny_window8_256", 10, options), torch.nn.Module)


def test_an_option_that_is_nested_too_deep_is_a_text() -> None:
    """Python's parser runs out of its stack."""
    deep = "-" * 200_000 + "1"
    assert models.parse_options([f"depth={deep}"]) == {"depth": deep}
