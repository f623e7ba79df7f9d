"""Feeds damaged Parquet files, TFRecords, FFCV files, zip archives and `_info.json` to the converter's readers. Run by
hand; pytest does not collect it.

    python tests/pipeline/conversion/sources/fuzz_sources.py --cases 5000

Each case must give images, or an InputError or BadImage, with at most 2 GiB of memory more than at the start, within
20 seconds. Every case is a function of the seed and its number, which the last line on a failure names (`--first N
--cases 1` repeats it).
"""

import logging
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[4])

from pipeline.errors import InputError  # noqa: E402
from pipeline.pixels.formats import BadImage  # noqa: E402
from tests.helpers import fuzzing  # noqa: E402
from tests.helpers.foreign_forms import rows_of, usual_example, write_parquet, write_records  # noqa: E402
from tests.helpers.imagenet import write_imagenet  # noqa: E402
from tests.helpers.sources import opened  # noqa: E402
from tests.pipeline.conversion.sources.test_hostile import write_beton, zip_64, zip_bytes  # noqa: E402
from tests.pipeline.storage.fuzz_storage import damaged  # noqa: E402

LONGEST_S = 20


def write_sources(folder: Path) -> list[Path]:
    """A small file of each format."""
    rows = rows_of(write_imagenet(folder / "imagenet"), "train")[:8]
    files = {f"train/n0000000{label + 1}/{name}": data for name, label, data in rows}
    zips = {"wide.zip": zip_64("train/n00000001/a.JPEG"), "train.zip": zip_bytes(files)}
    for name, content in zips.items():
        (folder / name).write_bytes(content)
    return [
        write_parquet(folder / "train.parquet", rows),
        write_parquet(folder / "plain-train.parquet", rows, compression="none", use_dictionary=False),
        write_records(folder / "train-00000-of-00001", map(usual_example, rows)),
        write_beton(folder / "train.beton"),
        *(folder / name for name in zips),
    ]


def check(file: Path, original: bytes, rng: random.Random, counts: Counter[str]) -> None:
    """One case: damage a file, read, and put it back."""
    file.write_bytes(damaged(original, rng))
    signal.alarm(LONGEST_S)  # without a handler, it ends the process
    try:
        images = opened(file, splits=["train"]).splits["train"]
        for index in range(len(images)):
            images.read(index)
        counts["read"] += 1
    except (InputError, BadImage):
        counts["refused"] += 1
    finally:
        signal.alarm(0)
        file.write_bytes(original)


def main() -> None:
    settings, counts = fuzzing.parser(__doc__, 5_000).parse_args(), Counter[str]()
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        files = [(file, file.read_bytes()) for file in write_sources(Path(folder))]
        for file, _ in files:
            opened(file, splits=["train"])  # compiles, and starts threads
        fuzzing.limit_memory()
        fuzzing.run(settings, counts, lambda _, rng: check(*rng.choice(files), rng, counts))


if __name__ == "__main__":
    main()
