"""Numbers of bytes as people write them."""

import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_bytes(text: str) -> int:
    """Bytes, from `256MB`, `1.5G` or `4096`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not match or float(match[1]) <= 0:
        raise ValueError("write it like 256MB or 1GB")
    return int(float(match[1]) * _UNITS[match[2]])


def size_in_words(size: float) -> str:
    """Bytes in a unit that suits them."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1000:.0f} KB"
