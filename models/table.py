"""The table of models in the documentation. Sizes are counted, not looked up."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import REGISTRY, ModelCard

HEADER = ("`--model`", "parameters", "GMACs", "input", "published top-1", "paper")
NUMBERS = (1, 2, 3)
"""Columns that hold numbers."""


def parameters(network: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def gmacs(network: nn.Module, resolution: int) -> float:
    """1e9 multiplications of one image's forward pass, as PyTorch counts them (two operations each)."""
    images = torch.empty(1, 3, resolution, resolution, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(images)
    operations: int = counter.get_total_flops()
    return operations / 2e9


def row(name: str, card: ModelCard) -> tuple[str, ...]:
    """The cells of a model, in the order of HEADER."""
    with torch.device("meta"):
        network = card.build(1000)
    size = f"{parameters(network):,}", f"{gmacs(network, card.resolution):.2f}"
    return (f"`{name}`", *size, str(card.resolution), card.top1 or "none", card.paper)


def rows() -> Iterator[tuple[str, ...]]:
    """The registry, a row for each model. Each is built, which takes seconds for all."""
    for name, card in REGISTRY.items():
        yield row(name, card)


def markdown_lines(
    header: Sequence[str], rows: Iterator[tuple[str, ...]], number_columns: Sequence[int] = ()
) -> Iterator[str]:
    """A table in Markdown, line by line; the columns in `number_columns` are aligned to the right."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'|'.join('---:' if column in number_columns else '---' for column in range(len(header)))}|"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"
