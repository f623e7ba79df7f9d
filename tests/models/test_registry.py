"""The registry: published parameter counts, normalisation, names."""

import pytest
import torch
import torchvision
from torchvision.transforms import v2

import models
from models import table
from models.normalize import IMAGENET_MEAN, IMAGENET_STD, Normalize


@pytest.mark.parametrize(("name", "parameters"), [("alexnet", 61_100_840), ("resnet152", 60_192_808)])
def test_models_have_the_published_size(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = models.card(name).build(1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_normalisation_is_torchvisions_and_keeps_the_strides() -> None:
    images = torch.randint(256, (2, 3, 9, 7), dtype=torch.uint8).to(memory_format=torch.channels_last)
    scaled = v2.functional.to_dtype(images, torch.float32, scale=True)
    expected = v2.functional.normalize(scaled, IMAGENET_MEAN, IMAGENET_STD)
    result = Normalize(IMAGENET_MEAN, IMAGENET_STD)(images)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "torchvision/googlenet", "torchvision/inception_v3"])
def test_torchvision_models_map_bytes_to_logits(name: str) -> None:
    model = models.create(name, num_classes=7)
    resolution = models.card(name).resolution
    images = torch.zeros(2, 3, resolution, resolution, dtype=torch.uint8)
    assert model(images).shape == (2, 7)


def test_every_torchvision_classifier_has_a_card() -> None:
    names = [name for name in models.names() if name.startswith("torchvision/")]
    assert len(names) > 70
    cards = [models.card(name) for name in names]
    assert all(card.resolution <= card.eval_resize + 300 and len(card.mean) == 3 for card in cards)


def test_the_state_dict_is_the_published_one() -> None:
    model = models.create("alexnet", num_classes=1000)
    assert model.network.state_dict().keys() == torchvision.models.alexnet().state_dict().keys()


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(models.UnknownModelError, match=r"alexnet, resnet152.*torchvision/resnet18"):
        models.card("bogus")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet51", "resnet51: unknown; did you mean resnet50 or "),
        ("torchvision/alexnett", "alexnett: unknown; did you mean alexnet"),
        ("timm/resnet5O", "unknown to timm; did you mean timm/resnet50 or "),
        ("timm/resnet50.foo", r"timm/resnet50.foo: timm's resnet50 has no tag foo, only .*a1_in1k"),
    ],
)
def test_an_unknown_name_is_answered_with_similar_ones(name: str, hint: str) -> None:
    with pytest.raises(models.UnknownModelError, match=hint) as caught:
        models.card(name)
    assert "\n" not in str(caught.value)


def test_names_without_a_library_are_ours_or_torchvisions() -> None:
    assert [models.full_name(name) for name in ("resnet50", "resnet152", "timm/resnet50", "bogus")] == [
        "torchvision/resnet50", "resnet152", "timm/resnet50", "bogus"
    ]  # fmt: skip
    assert models.create("resnet18", 7)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 7)
    with pytest.raises(models.ModelOptionError, match="bogus"):
        models.check_options("resnet18", {"bogus": 1})


def test_the_table_has_a_row_for_each_model() -> None:
    lines = list(
        table.markdown_lines(table.HEADER, iter([table.row("alexnet", models.card("alexnet"))]), table.NUMBERS)
    )
    assert lines == [
        "| `--model` | parameters | GMACs | input | published top-1 | paper |",
        "|---|---:|---:|---:|---|---|",
        "| `alexnet` | 61,100,840 | 0.71 | 224 | 56.522 torchvision | arXiv:1404.5997 |",
    ]
    assert all(card.paper.startswith("arXiv:") for card in models.REGISTRY.values())
