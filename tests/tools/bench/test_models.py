"""The benchmark of the models: its references, its numbers, its table."""

import pytest
import torch

import models
from pipeline.cli import run_command
from tools.bench.models import COLUMNS, CPU_VARIANTS, REFERENCES, BenchSettings, Candidate, bench, cells, compare, peak


def test_ours_and_the_reference_have_rates_and_peaks() -> None:
    settings = BenchSettings(model="pyramidnet164_a48", batch_size=2, resolution=32, device="cpu", rounds=1)
    row = compare(settings, "pyramidnet164_a48", CPU_VARIANTS[1])
    assert len(row) == 12
    assert min(value for name, value in row.items() if "spread" not in name) > 0
    assert row["step_ours_mib"] < row["step_reference_mib"]
    texts = cells(row | {"model": "pyramidnet164_a48", "variant": "channels-last"})
    assert f"{row['step_ours_images_per_s']:.2f} ±0%" in texts
    assert len(texts) == len(COLUMNS)


def test_the_peak_counts_all_memory_in_use_at_once() -> None:
    candidate = Candidate(
        BenchSettings(model="alexnet", batch_size=1, resolution=64, device="cpu"), "alexnet", True, CPU_VARIANTS[0]
    )

    def allocate() -> None:
        first = torch.zeros(3 << 18)  # 3 MiB
        second = torch.zeros(2 << 18)
        del first
        assert len(torch.zeros(1 << 18)) < len(second)

    assert peak(candidate, allocate) == pytest.approx(5, abs=0.01)


@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "se_resnet50"])
def test_references_are_of_the_same_size(name: str) -> None:
    """Not timm's SE-ResNet-50, which has biases that ours lacks."""
    with torch.device("meta"):
        networks = models.card(name).build(1000), REFERENCES[name][1]()
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert sizes[0] == sizes[1]


def test_a_model_without_reference_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(bench, BenchSettings, ["--model", "torchvision/resnet18"]) == 2
    assert "has no reference; choose from alexnet" in capsys.readouterr().err
