"""`python -m models`: the table of models. Sizes are counted, not looked up."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import REGISTRY, ModelCard


def parameters(network: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(parameter.numel() for parameter in network.parameters())


def gmacs(network: nn.Module, resolution: int) -> float:
    """1e9 multiplications of one image's forward pass, as PyTorch counts them (two operations each)."""
    images = torch.empty(1, 3, resolution, resolution, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(images)
    return counter.get_total_flops() / 2e9


def row(name: str, card: ModelCard) -> str:
    """A line of the table, in Markdown."""
    with torch.device("meta"):
        network = card.build(1000)
    size = f"{parameters(network):,} | {gmacs(network, card.resolution):.2f}"
    return f"| `{name}` | {size} | {card.resolution} | {card.top1 or 'none'} | {card.paper} |"


def main() -> None:
    """Print the table."""
    print("| model | parameters | GMACs | input | published top-1 | paper |\n|---|---:|---:|---:|---|---|")
    for name, card in REGISTRY.items():
        print(row(name, card), flush=True)
    print("\nand torchvision/<name> for torchvision's classifiers, timm/<name> for timm's where it is installed")


if __name__ == "__main__":
    main()
