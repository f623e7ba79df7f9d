"""The name of a case in the Ascend zoo's scripts: `<Network>_bs<batch size>_<ranks>p_<kind>`."""

import re
from typing import NamedTuple


class Case(NamedTuple):
    """What the name of a case says."""

    network: str
    batch_size: int
    ranks: int
    kind: str
    """acc, perf or eval."""

    @classmethod
    def parse(cls, name: str) -> "Case":
        """From its name. Raises ValueError."""
        match = re.fullmatch(r"([\w.-]+)_bs(\d+)_(\d+)p_(\w+)", name, re.ASCII)
        if match is None:
            raise ValueError("must be NETWORK_bsBATCHSIZE_RANKSp_KIND, such as ResNet152_bs2048_8p_acc")
        return cls(match[1], int(match[2]), int(match[3]), match[4])

    def __str__(self) -> str:
        return f"{self.network}_bs{self.batch_size}_{self.ranks}p_{self.kind}"


def parse_optional(name: str | None) -> Case | None:
    """`Case.parse`, or None for None."""
    return None if name is None else Case.parse(name)
