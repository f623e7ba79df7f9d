"""Feeds damaged `.idx`, `.beton`, tar and dataset.json files to their readers. Run by hand; pytest does not collect it.

    python tests/pipeline/storage/fuzz_storage.py --cases 20000

dataset.json is made to agree with the damage, as somebody would who means harm. Each case must give samples or an
InputError of one printable line, with at most 2 GiB of memory more than at the start. Every case is a function of the
seed and its number, which the last line on a failure names (`--first N --cases 1` repeats it).
"""

import contextlib
import io
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[3])

from pipeline.conversion.archives import list_members  # noqa: E402
from pipeline.errors import InputError  # noqa: E402
from pipeline.storage.manifest import MANIFEST  # noqa: E402
from pipeline.storage.shards import members_of  # noqa: E402
from pipeline.storage.split import open_split  # noqa: E402
from tests.helpers import fuzzing  # noqa: E402
from tests.helpers.damage import sign  # noqa: E402
from tests.helpers.imagenet import converted, write_imagenet  # noqa: E402

TELLING_NUMBERS = (0, 1, -1, 127, 255, 512, 65_535, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with a few changes, most of them where the tables are: at the beginning and at the end."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not changed:
            break
        place = rng.randrange(4)
        at = rng.randrange(len(changed)) if place == 0 else rng.randrange(min(3000, len(changed)))
        at = len(changed) - 1 - at if place == 1 else at
        kind = rng.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + 8] = (rng.choice(TELLING_NUMBERS) % (1 << 64)).to_bytes(8, "little")
        elif kind == 2:
            changed[at : at + 1] = str(rng.choice(TELLING_NUMBERS)).encode()
        elif kind == 3:
            changed[at : at + 12] = b"%011o\0" % (rng.choice(TELLING_NUMBERS) % (1 << 33))
        else:
            del changed[at : at + rng.choice((1, 64, 4096))]
    return bytes(changed)


def read_everything(dataset: Path) -> None:
    """Read all samples of the split, in every way."""
    for name in ("shards", "beton"):
        samples = getattr(open_split(dataset, "val"), name)
        for index in range(len(samples)):
            samples[index]


def read_tar(dataset: Path) -> None:
    """Read the members of a shard, as a stream and as a source of a conversion."""
    (tar,) = (dataset / "webdataset").glob("val-000000.tar")
    data = tar.read_bytes()
    with contextlib.suppress(InputError):
        list(members_of(io.BytesIO(data), "stream", 1 << 40))
    list(list_members(tar))


def check(dataset: Path, file: Path, original: bytes, rng: random.Random, counts: Counter[str]) -> None:
    """One case: damage a file, read, and put it back."""
    manifest = (dataset / MANIFEST).read_bytes()
    file.write_bytes(damaged(original, rng))
    try:
        if file.name != MANIFEST and rng.random() < 0.8:
            sign(dataset)
        read_everything(dataset)
        counts["read"] += 1
    except InputError as error:
        if not str(error).isprintable():
            raise ValueError("not a printable line") from error
        counts["refused"] += 1
    finally:
        with contextlib.suppress(InputError):
            read_tar(dataset)
        file.write_bytes(original)
        if file.name != MANIFEST:
            (dataset / MANIFEST).write_bytes(manifest)


def main() -> None:
    settings, counts = fuzzing.parser(__doc__, 20_000).parse_args(), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        dataset = converted(write_imagenet(Path(folder)), Path(folder) / "shards", jpeg="keep")
        names = ["webdataset/val-000000.idx", "webdataset/val-000000.tar", "ffcv/val.beton", MANIFEST]
        files = [(dataset / name, (dataset / name).read_bytes()) for name in names]
        fuzzing.limit_memory()
        fuzzing.run(settings, counts, lambda _, rng: check(dataset, *rng.choice(files), rng, counts))


if __name__ == "__main__":
    main()
