"""What the fuzzers share: their flags, and their cases, each a function of the seed and its number."""

import argparse
import itertools
import math
import os
import random
import resource
import time
from collections import Counter
from collections.abc import Callable

import psutil

HEADROOM = 2 << 30
"""Bytes of memory that cases may take, more than at the start."""


def parser(description: str | None, cases: int | None = None) -> argparse.ArgumentParser:
    """The flags of every fuzzer; `cases` is how many it runs without any, None for no limit."""
    flags = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = "no limit" if cases is None else f"{cases:,}, with --seconds no limit"
    flags.add_argument("--cases", type=int, help=f"default: {usual}")
    flags.add_argument("--seconds", type=float, default=math.inf, help="stop after this time")
    flags.add_argument("--first", type=int, default=0)
    flags.add_argument("--seed", type=int, default=0)
    flags.set_defaults(usual_cases=cases)
    return flags


def limit_memory() -> None:
    """End a case that takes more than HEADROOM with a MemoryError."""
    most = psutil.Process(os.getpid()).memory_info().vms + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(settings: argparse.Namespace, counts: Counter[str], check: Callable[[int, random.Random], None]) -> None:
    """Check each case, given its number and its own random numbers, until the last one, the time is up or one fails.
    Then print the counts, and which case was the last."""
    cases = settings.cases or (settings.usual_cases if settings.seconds == math.inf else None)
    numbers = itertools.count(settings.first) if cases is None else range(settings.first, settings.first + cases)
    case, end = settings.first, time.monotonic() + settings.seconds
    try:
        for case in itertools.takewhile(lambda _: time.monotonic() < end, numbers):
            check(case, random.Random(settings.seed << 40 | case))
    finally:
        for name, count in sorted(counts.items()):
            print(f"{count:9d}  {name}")
        print(f"{case - settings.first + 1} cases, the last one {case} of seed {settings.seed}")
