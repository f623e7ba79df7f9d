"""Feeds damaged tiled JPEGs to the decoder of tiles. Run by hand; pytest does not collect it.

    python tests/pipeline/pixels/jpeg/fuzz_decoder.py --seconds 300
    python tests/pipeline/pixels/jpeg/fuzz_decoder.py --cases 20000 --images IMAGENET/train/n01440764
    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=/tmp/checked python tests/pipeline/pixels/jpeg/fuzz_decoder.py --cases 200000

What the decoder gets ends where a page begins that may not be touched; with NUMBA_BOUNDSCHECK=1 any index out of range,
in the decoder's own arrays too, ends the process. Every case is a function of the seed and its number, which the last
line names on a failure (`--first N --cases 1` repeats it).

Each damaged file is also decoded as without this decoder: TurboJPEG, as strict as it can be, on the bytes that are cut
out for the crop, if their checksums are right. The counts say how often either of them reported the damage, how often
the pixels were right all the same, and how often they were wrong in silence. With checksums, silence is a failure.
"""

import os
import random
import sys
from collections import Counter
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[4])

import numpy as np  # noqa: E402
import simplejpeg  # noqa: E402

from pipeline.pixels.jpeg.crop import AlteredError, Box, crop  # noqa: E402
from pipeline.pixels.jpeg.decoder import CHANGED, DAMAGED, DONE, UNSUPPORTED, decode_crop  # noqa: E402
from pipeline.pixels.jpeg.headers import JpegError, read_header  # noqa: E402
from pipeline.pixels.jpeg.tiles import tile  # noqa: E402
from tests.helpers import fuzzing  # noqa: E402
from tests.helpers.images import jpeg_bytes, photograph  # noqa: E402
from tests.helpers.jpegs import SAMPLINGS, drawn_jpeg, with_index_version_1  # noqa: E402
from tests.pipeline.pixels.jpeg.fuzz_tiles import GuardedNumpy, damaged  # noqa: E402

STATUS = {DONE: "done", UNSUPPORTED: "unsupported", DAMAGED: "damaged", CHANGED: "changed"}
MOST_PIXELS = 10**6


def small_files() -> list[bytes]:
    """Tiled files of every sampling that is supported, and one of another."""
    files = []
    for seed, name in enumerate(("grey", "grey-2x2", "444", "422", "420", "440")):
        files.append(tile(drawn_jpeg(27, 51, SAMPLINGS[name], seed), width=1))
    for seed, options in enumerate(
        ({"subsampling": "4:2:0", "optimize": True}, {"mode": "L"}, {"subsampling": "4:4:4"})
    ):
        files.append(tile(jpeg_bytes(photograph(60, 96, seed), quality=60, **options)))  # type: ignore[arg-type]
    return files


def files_of(folder: Path | None) -> list[bytes]:
    """All files of a folder that can be tiled and are not too large, or drawn ones."""
    if folder is None:
        return small_files()
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                files.append(tile(path.read_bytes()))
            except JpegError as error:
                print(f"{path}: {error}", file=sys.stderr)
    return [file for file in files if pixels(file, strict=True) is not None]


def some_box(height: int, width: int, rng: random.Random) -> Box:
    """Any box of an image."""
    top, left = rng.randrange(height), rng.randrange(width)
    return top, left, rng.randint(1, height - top), rng.randint(1, width - left)


def pixels(jpeg: bytes, strict: bool) -> np.ndarray | None:
    """The whole image, as TurboJPEG decodes it; None where it reports something."""
    try:
        header = read_header(jpeg)
        if header.height * header.width > MOST_PIXELS:
            return None
        image: np.ndarray = simplejpeg.decode_jpeg(jpeg, fastdct=False, fastupsample=False, strict=strict)
        return image
    except (ValueError, JpegError):
        return None


def part_of(image: np.ndarray | None, top: int, left: int, height: int, width: int) -> np.ndarray | None:
    """A box of an image, None where it is not inside."""
    if image is None or top + height > image.shape[0] or left + width > image.shape[1]:
        return None
    return image[top : top + height, left : left + width]


def count_opinions(own: str, jpeg: bytes, box: Box, out: np.ndarray, right: np.ndarray, counts: Counter[str]) -> None:
    """Compare what both decoders made of a damaged file with the pixels that it had. What this decoder does not
    support it leaves to TurboJPEG."""
    try:
        small, top, left = crop(jpeg, box)
        cut = part_of(pixels(small.tobytes(), strict=True), top, left, *box[2:])
    except AlteredError:
        cut = None
    result_of = {"done": out, "unsupported": cut}
    for name, result in (("TurboJPEG", cut), ("own", result_of.get(own))):
        kind = "reported" if result is None else "right" if np.array_equal(result, right) else "WRONG"
        counts[f"{name}: {kind}"] += 1


def check(original: bytes, checked: bool, rng: random.Random, guarded: GuardedNumpy, counts: Counter[str]) -> None:
    """Damage one file, and decode a crop of it."""
    files = [original, original] if checked else [with_index_version_1(original)] * 2
    jpeg = files[0]
    while jpeg == files[0]:
        jpeg = damaged(files, rng, 20)
    header = read_header(original)
    box = some_box(header.height, header.width, rng)
    guarded.reset()
    source, out = guarded.frombuffer(jpeg, np.uint8), guarded.empty((*box[2:], 3), np.uint8)
    status = decode_crop(source, *box, out)
    version = "with checksums" if checked else "without"
    counts[f"{version}: {STATUS[status]}"] += 1
    right = part_of(pixels(original, strict=True), *box)
    assert right is not None
    opinions = Counter[str]()
    count_opinions(STATUS[status], jpeg, box, out, right, opinions)
    counts.update(f"{version}, {opinion}" for opinion in opinions)
    if status == DONE and checked:
        assert np.array_equal(out, right), "wrong pixels in silence"


def end_the_process(error: "sys.UnraisableHookArgs") -> None:
    """What numba calls for an IndexError of a kernel, which nobody could catch."""
    print(repr(error.exc_value), file=sys.stderr, flush=True)
    os._exit(1)


def main() -> None:
    parser = fuzzing.parser(__doc__)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs to damage (default: small drawn ones)")
    settings = parser.parse_args()
    sys.unraisablehook = end_the_process
    files, counts, guarded = files_of(settings.images), Counter[str](), GuardedNumpy()
    fuzzing.run(settings, counts, lambda _, rng: check(rng.choice(files), rng.random() < 0.5, rng, guarded, counts))


if __name__ == "__main__":
    main()
