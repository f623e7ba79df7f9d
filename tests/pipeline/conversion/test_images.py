"""One image: tiled, kept, re-encoded, reduced, stored as pixels, or bad. Every kind of odd file is real."""

import base64
import io
import struct

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.conversion.images import Handling, PreparedImage, prepare
from pipeline.pixels.formats import BadImage
from pipeline.pixels.jpeg.crop import crop_tiles
from pipeline.pixels.jpeg.headers import APP9, read_header, segments
from pipeline.pixels.jpeg.tiles import INDEX_IDENTIFIER
from pipeline.storage.beton import MODE_JPEG, MODE_RAW
from tests.helpers.images import decoded, jpeg_bytes, photograph, three_to_one_jpeg, turned
from tests.helpers.odd_images import png_16_bit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # for images that the tests decode themselves

PHOTO = photograph(50, 61, seed=1)
GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))
END = b"\xff\xd9"
KEEP = Handling(jpeg="keep")
JPEG = jpeg_bytes(PHOTO, subsampling="4:4:4")
PROGRESSIVE = jpeg_bytes(PHOTO, progressive=True)

# 24x32 pixels with red = 8 x, green = 10 y, blue = 255 - 8 x, from `cjpeg -arithmetic -quality 90 -sample 1x1`.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGBYU"
    "GBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/yQARCAAYACAD"
    "AREAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AOd9aMbPBk+ZAVwSgPelko34FFF7ZUgz3IadXsqB1wAjFlkFCB13JOkp8gMKm39d"
    "J7FaR9jC0MFleXHRUntekSDTHd5SqsPkx7ze8a2rHgJ1anl41RcKEXadd7Kdtb+0JM3O3sr6SvE4wL6OhD6mxfzwJ7eHjETzqyJUwtBuNua/IRZA"
    "gP/Z"
)


def file_of(pixels: np.ndarray, format_name: str, mode: str | None = None, **options: object) -> bytes:
    """An image file written by PIL; `mode` "P" is a palette of 64 colours."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    if mode:
        image = image.quantize(64, dither=Image.Dither.NONE) if mode == "P" else image.convert(mode)
    image.save(file, format_name, **options)
    return file.getvalue()


def exif(tiff: bytes) -> bytes:
    """JPEG with an EXIF segment of these bytes."""
    return jpeg_bytes(PHOTO, exif=b"Exif\0\0" + tiff)


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def frame_at(data: bytes) -> int:
    """The offset of the precision in the frame header; height and width follow."""
    return next(at + 4 for at in range(len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC1, 0xC2))


def scan_starts(data: bytes) -> list[int]:
    return [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]


def separate_scans(pixels: np.ndarray) -> bytes:
    """A sequential JPEG with one scan per component: the grey JPEGs of three planes put together."""
    planes = np.moveaxis(np.asarray(Image.fromarray(pixels).convert("YCbCr")), 2, 0)
    files = [jpeg_bytes(plane, "L") for plane in planes]
    frame = frame_at(files[0]) - 4
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    headers = files[0][:frame] + b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, *pixels.shape[:2], 3) + components
    for number, data in enumerate(files, 1):
        start = scan_starts(data)[0]
        tables = data[frame_at(data) + 9 : start]  # after the frame header, of 13 bytes with its marker
        headers += tables + patched(data[start:-2], 5, bytes([number]))
    return headers + END


def pixels_of(stored: PreparedImage) -> np.ndarray:
    """The pixels of a prepared image, uint8 [H, W, 3]."""
    if stored.mode == MODE_RAW:
        return np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
    return decoded(stored.data)


def is_tiled(jpeg: bytes) -> bool:
    return any(marker == APP9 and jpeg.startswith(INDEX_IDENTIFIER, start) for marker, start, _ in segments(jpeg))


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference; between two different photographs it is about 60."""
    return float(np.abs(one.astype(int) - other).mean())


def outcome(data: bytes, handling: Handling) -> PreparedImage | str:
    """The prepared image, or why it is bad."""
    try:
        return prepare(data, 0, handling)
    except BadImage as error:
        return str(error)


def bad(data: bytes, **handling: object) -> str:
    """Why an image is bad."""
    reason = outcome(data, Handling(**handling))  # type: ignore[arg-type]
    assert isinstance(reason, str)
    return reason


# --- kept


KEPT = {
    "baseline": (JPEG, ""),
    "4:2:0": (jpeg_bytes(PHOTO, subsampling="4:2:0"), ""),
    "progressive": (PROGRESSIVE, ""),
    "restart markers": (jpeg_bytes(PHOTO, restart_marker_rows=1), ""),
    "RGB components": (jpeg_bytes(PHOTO, keep_rgb=True), ""),
    "a scan for each component": (separate_scans(PHOTO), ""),
    "1 x 1 pixel": (jpeg_bytes(photograph(1, 1, seed=3)), ""),
    "1 x 700 pixels": (jpeg_bytes(photograph(1, 700, seed=3)), ""),
    "EXIF orientation": (jpeg_bytes(PHOTO, exif=turned()), ""),
    "EXIF, big-endian": (exif(b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0\0\0"), ""),
    "greyscale": (jpeg_bytes(PHOTO, "L"), "greyscale"),
    "bytes after the end": (JPEG + b"\0trailer", "8 bytes behind the end"),
    "another end marker after the end": (JPEG + END, "2 bytes behind the end"),
    "EXIF without a directory": (exif(b""), "corrupt EXIF data"),
    "EXIF of other bytes": (exif(b"not a TIFF header"), "corrupt EXIF data"),
    "EXIF with its directory outside": (exif(b"II*\0\xff\xff\0\0" + bytes(20)), "corrupt EXIF data"),
    "EXIF with too many entries": (exif(b"II*\0\x08\0\0\0\xff\xff" + bytes(20)), "corrupt EXIF data"),
    "EXIF with a value outside": (
        exif(b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x010F, 2, 99, 5000) + bytes(4)),
        "corrupt EXIF data",
    ),
    "EXIF that ends after the entries": (
        exif(b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0"),
        "corrupt EXIF data",
    ),
    "EXIF with a directory in it outside": (
        exif(b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 5000, 0)),
        "corrupt EXIF data",
    ),
    "EXIF with a directory that leads to itself": (
        exif(b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 0)),
        "corrupt EXIF data",
    ),
    "EXIF with a directory in it": (
        exif(
            b"II*\0\x08\0\0\0"
            + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 26, 0)
            + struct.pack("<HHHIII", 1, 0xA001, 3, 1, 1, 0)
        ),
        "",
    ),
    "stray bytes before the end": (
        JPEG[:-2] + b"10 strays." + END,
        "decoders warn: ",
    ),
    "3:1 sampling": (
        three_to_one_jpeg(40, 50),
        "decoders warn: ",
    ),
    "two oddities": (jpeg_bytes(PHOTO, "L") + b"\n", "greyscale, 1 bytes behind the end"),
}


@pytest.mark.parametrize(("data", "remark"), KEPT.values(), ids=KEPT.keys())
def test_jpegs_that_every_decoder_reads_are_kept_byte_for_byte_and_remarked(data: bytes, remark: str) -> None:
    stored = prepare(data, 0, KEEP)
    height, width = decoded(data).shape[:2]
    assert stored == PreparedImage(data, MODE_JPEG, height, width, stored.odd, False)
    assert stored.odd.startswith(remark)
    assert bool(stored.odd) == bool(remark)


def test_multi_picture_file_is_kept_with_its_other_pictures_after_the_end() -> None:
    other = Image.fromarray(photograph(20, 30, seed=9))
    data = file_of(PHOTO, "MPO", save_all=True, append_images=[other])
    stored = prepare(data, 0, KEEP)
    assert (stored.data, stored.reencoded) == (data, False)
    assert stored.odd == f"{len(data) - data.index(END) - 2} bytes behind the end"
    assert difference(pixels_of(stored), PHOTO) < 6


@pytest.mark.parametrize("whole", [JPEG, PROGRESSIVE, separate_scans(PHOTO)], ids=["baseline", "progressive", "scans"])
@pytest.mark.parametrize("lost", [1, 2])
def test_missing_end_marker_is_added_if_the_data_is_complete(whole: bytes, lost: int) -> None:
    stored = prepare(whole[:-lost], 0, KEEP)
    assert (stored.odd, stored.reencoded) == ("no end marker", False)
    assert np.array_equal(pixels_of(stored), decoded(whole))


def test_unverified_jpegs_are_kept_whatever_follows_their_headers() -> None:
    broken = JPEG[: len(JPEG) // 2]
    kept = prepare(broken, 0, Handling(jpeg="keep", verify=False))
    assert kept == PreparedImage(broken, MODE_JPEG, 50, 61, "no end marker", False)
    assert bad(JPEG[:100], jpeg="keep", verify=False) == "truncated in the headers"


# --- tiled


LARGE = photograph(150, 301, seed=4)

# Files that `Handling()` stores without loss, and the remark.
LOSSLESS = {
    "4:4:4": (jpeg_bytes(LARGE, subsampling="4:4:4"), ""),
    "4:2:2": (jpeg_bytes(LARGE, subsampling="4:2:2"), ""),
    "4:2:0": (jpeg_bytes(LARGE, subsampling="4:2:0"), ""),
    "grey": (jpeg_bytes(LARGE, "L"), "greyscale"),
    "RGB components": (jpeg_bytes(LARGE, keep_rgb=True), ""),
    "restart markers": (jpeg_bytes(LARGE, restart_marker_blocks=3), ""),
    "EXIF orientation": (jpeg_bytes(LARGE, exif=turned()), ""),
    "corrupt EXIF": (jpeg_bytes(LARGE, exif=b"Exif\0\0II*"), "corrupt EXIF data"),
    "bytes after the end": (jpeg_bytes(LARGE) + b"\0trailer", "8 bytes behind the end"),
    "stray bytes before the end": (jpeg_bytes(LARGE)[:-2] + b"10 strays." + END, ""),
    "no end marker": (jpeg_bytes(LARGE)[:-2], "no end marker"),
    "half an end marker": (jpeg_bytes(LARGE)[:-1], "no end marker"),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(("data", "remark"), LOSSLESS.values(), ids=LOSSLESS.keys())
def test_jpegs_are_tiled_without_loss(data: bytes, remark: str, verify: bool) -> None:
    stored = prepare(data, 0, Handling(verify=verify))
    assert stored[1:] == (MODE_JPEG, 150, 301, remark, False)
    assert is_tiled(stored.data)
    assert crop_tiles(np.frombuffer(stored.data, np.uint8), 60, 60, 40, 40, np.empty(len(data), np.uint8))[0] > 0
    source = data + END  # if it has none
    assert np.array_equal(decoded(stored.data), decoded(source))
    theirs, ours = (simplejpeg.decode_jpeg(jpeg, "RGB", strict=False) for jpeg in (source, stored.data))
    assert np.array_equal(ours, theirs)
    assert prepare(stored.data, 0, Handling()).data == stored.data, "tiled a second time"


def test_tiled_jpegs_keep_their_exif_data() -> None:
    with Image.open(io.BytesIO(prepare(LOSSLESS["EXIF orientation"][0], 0, Handling()).data)) as image:
        assert dict(image.getexif()) == {0x0112: 6}


# Files that cannot be tiled without loss, the remark, and the number of components stored.
LOSSY = {
    "progressive": (jpeg_bytes(LARGE, progressive=True), "not baseline", 3),
    "progressive, grey": (jpeg_bytes(LARGE, "L", progressive=True), "greyscale, not baseline", 1),
    "a scan for each component": (separate_scans(LARGE), "several scans", 3),
    "CMYK": (jpeg_bytes(LARGE, "CMYK"), "a JPEG of 8 bit with 4 components (mode CMYK)", 3),
    "PNG": (file_of(LARGE, "PNG"), "a PNG file", 3),
}


@pytest.mark.parametrize(("data", "remark", "components"), LOSSY.values(), ids=LOSSY.keys())
def test_images_that_cannot_be_tiled_without_loss_are_encoded_again_and_tiled(
    data: bytes, remark: str, components: int
) -> None:
    stored = prepare(data, 0, Handling())
    assert stored[1:] == (MODE_JPEG, 150, 301, remark, True)
    assert is_tiled(stored.data)
    parts = read_header(stored.data).components
    assert [(part.horizontal_sampling, part.vertical_sampling) for part in parts] == [(1, 1)] * components
    assert quantization(stored.data)[0] == quantization(jpeg_bytes(LARGE, quality=95))[0]
    pixels = np.dstack([np.asarray(Image.fromarray(LARGE).convert("L"))] * 3) if components == 1 else LARGE
    assert difference(decoded(stored.data), pixels) < 3


def test_truncated_images_are_not_tiled_even_unverified() -> None:
    """Tiles need every coefficient."""
    assert bad(JPEG[: len(JPEG) // 2] + END, verify=False) == "truncated"


# --- re-encoded because they are odd

RAMP_16 = np.tile(np.arange(0, 65536, 1024, dtype=np.uint16), (40, 1))  # 0 to 64512
RAMP_8 = np.repeat(RAMP_16[..., None] // 257, 3, 2)
ALPHA = np.dstack([PHOTO, np.tile(np.arange(61, dtype=np.uint8) * 4, (50, 1))])

# The file, the remark, and the pixels it was made from.
ODD: dict[str, tuple[bytes, str, np.ndarray]] = {
    "PNG": (file_of(PHOTO, "PNG"), "a PNG file", PHOTO),
    "PNG, grey": (file_of(GREY, "PNG"), "a PNG file", np.dstack([GREY] * 3)),
    "PNG with alpha": (file_of(ALPHA, "PNG"), "a PNG file", PHOTO),
    "PNG, 16-bit colour": (png_16_bit(PHOTO.astype(np.uint16) * 257), "a PNG file", PHOTO),
    "PNG, 16-bit grey": (file_of(RAMP_16, "PNG"), "a PNG file (mode I;16)", RAMP_8),
    "TIFF, 16-bit grey": (file_of(RAMP_16, "TIFF"), "a TIFF file (mode I;16)", RAMP_8),
    "TIFF, 16-bit grey, big-endian": (file_of(RAMP_16.astype(">u2"), "TIFF"), "a TIFF file (mode I;16B)", RAMP_8),
    "TIFF, 16 bits in 32": (file_of(RAMP_16.astype(np.int32), "TIFF"), "a TIFF file (mode I)", RAMP_8),
    "TIFF": (file_of(PHOTO, "TIFF"), "a TIFF file", PHOTO),
    "TIFF, compressed": (file_of(PHOTO, "TIFF", compression="tiff_lzw"), "a TIFF file", PHOTO),
    "TIFF, CMYK": (file_of(PHOTO, "TIFF", "CMYK"), "a TIFF file", PHOTO),
    "TIFF, Lab": (file_of(PHOTO, "TIFF", "LAB"), "a TIFF file (mode LAB)", PHOTO),
    "BMP": (file_of(PHOTO, "BMP"), "a BMP file", PHOTO),
    "WebP": (file_of(PHOTO, "WEBP", lossless=True), "a WEBP file", PHOTO),
    "WebP with alpha": (file_of(ALPHA, "WEBP", lossless=True, exact=True), "a WEBP file", PHOTO),
    "CMYK": (jpeg_bytes(PHOTO, "CMYK"), "a JPEG of 8 bit with 4 components (mode CMYK)", PHOTO),
    "CMYK, progressive": (
        jpeg_bytes(PHOTO, "CMYK", progressive=True),
        "a JPEG of 8 bit with 4 components (mode CMYK)",
        PHOTO,
    ),
    # Inverted, as Adobe's programs write it, with the Adobe segment that declares YCCK.
    "YCCK": (
        simplejpeg.encode_jpeg(255 - np.asarray(Image.fromarray(PHOTO).convert("CMYK")), 95, "CMYK", "444"),
        "a JPEG of 8 bit with 4 components (mode CMYK)",
        PHOTO,
    ),
    "arithmetic coding": (
        ARITHMETIC,
        "a JPEG of 8 bit with 3 components (mode RGB), arithmetically coded",
        np.fromfunction(lambda y, x, c: np.choose(c.astype(int), [8 * x, 10 * y, 255 - 8 * x]), (24, 32, 3)),
    ),
}
for depth in ("P", "1"):
    for name in ("PNG", "GIF", "BMP"):
        data = file_of(PHOTO, name, depth)
        ODD[f"{name}, {'palette' if depth == 'P' else 'black and white'}"] = data, f"a {name} file", decoded(data)


@pytest.mark.parametrize("jpeg", ["keep", "tile"])
@pytest.mark.parametrize(("data", "remark", "pixels"), ODD.values(), ids=ODD.keys())
def test_images_that_decoders_read_differently_are_re_encoded_and_remarked(
    data: bytes, remark: str, pixels: np.ndarray, jpeg: str
) -> None:
    handling = Handling(jpeg=jpeg)  # type: ignore[arg-type]
    stored = prepare(data, 0, handling)
    assert stored[1:] == (MODE_JPEG, *pixels.shape[:2], remark, True)
    header = read_header(stored.data)
    assert header.is_decodable_everywhere
    assert len(header.components) == 3
    assert is_tiled(stored.data) == (jpeg == "tile")
    assert prepare(stored.data, 0, handling).data == stored.data, "what is stored is a good image itself"
    assert difference(pixels_of(stored), pixels) < 6


@pytest.mark.parametrize("jpeg", ["tile", "reencode", "raw", "proportion"])
@pytest.mark.parametrize("name", ["PNG", "PNG, 16-bit grey", "CMYK", "YCCK", "GIF, palette"])
def test_odd_files_are_stored_like_all_others(name: str, jpeg: str) -> None:
    data, remark, pixels = ODD[name]
    stored = prepare(data, 0, Handling(jpeg=jpeg, quality=95, subsampling="444"))  # type: ignore[arg-type]
    assert (stored.height, stored.width, stored.odd) == (*pixels.shape[:2], remark)
    assert stored.reencoded == (stored.mode == MODE_JPEG)
    assert difference(pixels_of(stored), pixels) < 6
    reduced = prepare(data, 0, Handling(jpeg=jpeg, max_side=25))  # type: ignore[arg-type]
    assert max(reduced.height, reduced.width) == 25


# --- bad


def cut(data: bytes, share: float = 0.5, end: bytes = b"") -> bytes:
    return data[: int(len(data) * share)] + end


BAD = {
    "empty": (b"", "not an image"),
    "text": (b"404 not found", "not an image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "not an image"),
    "start marker alone": (b"\xff\xd8", "truncated in the headers"),
    "no data": (b"\xff\xd8\xff\xd9", "no image data before the end marker"),
    "baseline, cut": (cut(JPEG), "truncated"),
    "baseline, cut, with an end marker": (cut(JPEG, end=END), "truncated"),
    "4:2:0, cut, with an end marker": (cut(jpeg_bytes(PHOTO, subsampling="4:2:0"), end=END), "truncated"),
    "grey, cut, with an end marker": (cut(jpeg_bytes(PHOTO, "L"), 0.9, END), "truncated"),
    "progressive, cut": (cut(PROGRESSIVE, 0.7), "Corrupt JPEG data"),
    "progressive, cut, with an end marker": (
        cut(PROGRESSIVE, 0.7, END),
        "Corrupt JPEG data",
    ),
    "progressive, cut between scans": (PROGRESSIVE[: scan_starts(PROGRESSIVE)[4]], "truncated"),
    "a component's scan lost": (
        separate_scans(PHOTO)[: scan_starts(separate_scans(PHOTO))[2]] + END,
        "a colour component is missing",
    ),
    "CMYK, cut": (cut(jpeg_bytes(PHOTO, "CMYK")), "Premature end of JPEG file"),
    "CMYK, cut, with an end marker": (
        cut(jpeg_bytes(PHOTO, "CMYK"), end=END),
        "Corrupt JPEG data",
    ),
    "many stray bytes": (JPEG[:-2] + b"astray" * 5 + END, "data left over after the last MCU"),
    "absurd size": (patched(JPEG, frame_at(JPEG) + 1, b"\xff" * 4), "65535x65535 pixels, of at most 134217728"),
    "large size": (patched(JPEG, frame_at(JPEG) + 1, b"\x27\x10" * 2), "truncated"),
    "no height": (patched(JPEG, frame_at(JPEG) + 1, b"\0\0"), "an image of 61x0 pixels"),
    "more rows than data": (patched(JPEG, frame_at(JPEG) + 1, b"\0\x42"), "truncated"),
    "12 bit": (patched(JPEG, frame_at(JPEG), b"\x0c"), "Unsupported JPEG data precision 12"),
    "absurd size, BMP": (patched(file_of(PHOTO, "BMP"), 18, b"\xff\xff\0\0" * 2), "cannot be decoded (Image size"),
    "PNG, cut": (cut(file_of(PHOTO, "PNG")), "cannot be decoded (image file is truncated"),
    "GIF, cut": (cut(file_of(PHOTO, "GIF", "P")), "cannot be decoded ("),
    "WebP, cut": (cut(file_of(PHOTO, "WEBP")), "cannot be decoded ("),
    "TIFF, cut": (cut(file_of(PHOTO, "TIFF")), "cannot be decoded ("),
    "TIFF, floating point": (
        file_of(PHOTO[..., 0].astype(np.float32), "TIFF"),
        "pixels in floating point, whose range is not known",
    ),
    "TIFF, 32 bit": (file_of(RAMP_16.astype(np.int32) * 1000, "TIFF"), "32-bit pixels, whose range is not known"),
    "TIFF, negative": (file_of(RAMP_16.astype(np.int32) - 9, "TIFF"), "32-bit pixels, whose range is not known"),
}


@pytest.mark.parametrize("jpeg", ["tile", "keep", "reencode", "raw"])
@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD.keys())
def test_images_that_cannot_be_decoded_completely_are_bad(data: bytes, reason: str, jpeg: str) -> None:
    assert bad(data, jpeg=jpeg).startswith(reason)


def test_progressive_cut_between_scans_with_an_end_marker_is_remarked() -> None:
    """Bits of coefficients may be left out for good: the file may have been written like this."""
    starts = scan_starts(PROGRESSIVE)
    for start in starts[1:]:
        for handling, before in ((KEEP, ""), (Handling(), "not baseline, ")):
            stored = prepare(PROGRESSIVE[:start] + END, 0, handling)
            assert stored.odd == before + "not every bit of every coefficient"


WHOLE = {"baseline": JPEG, "progressive": PROGRESSIVE, "CMYK": jpeg_bytes(PHOTO, "CMYK")}


@pytest.mark.parametrize("whole", WHOLE.values(), ids=WHOLE.keys())
@given(
    share=st.floats(0, 1, exclude_max=True),
    end=st.sampled_from([b"", END]),
    handling=st.sampled_from([KEEP, Handling()]),
)
def test_jpeg_cut_anywhere_is_bad_or_remarked(whole: bytes, share: float, end: bytes, handling: Handling) -> None:
    data = whole[: int((len(whole) - 2) * share)] + end
    prepared = outcome(data, handling)
    if isinstance(prepared, str):
        return
    remarks = {*prepared.odd.split(", ")} - {"not baseline"}
    assert remarks in ({"not every bit of every coefficient"}, {"no end marker"})
    if remarks == {"no end marker"}:
        assert difference(pixels_of(prepared), decoded(whole)) <= 2 * prepared.reencoded


FLIPPED = {
    "baseline": jpeg_bytes(PHOTO),
    "4:2:0": jpeg_bytes(PHOTO, subsampling="4:2:0"),
    "grey": jpeg_bytes(PHOTO, "L"),
    "restart markers": jpeg_bytes(PHOTO, restart_marker_rows=1),
    "progressive": PROGRESSIVE,
}


@pytest.mark.parametrize("whole", FLIPPED.values(), ids=FLIPPED.keys())
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), handling=st.sampled_from([KEEP, Handling()]))
def test_jpeg_with_a_flipped_bit_is_bad_or_decoders_agree_on_it(
    whole: bytes, share: float, bit: int, handling: Handling
) -> None:
    """Most flips only alter values, which cannot be noticed. If a decoder lacks data, the image is bad."""
    start = read_header(whole).scan_offset + 14
    at = start + int((len(whole) - 2 - start) * share)
    data = patched(whole, at, bytes([whole[at] ^ 1 << bit]))
    prepared = outcome(data, handling)
    if isinstance(prepared, str):
        return
    lenient = simplejpeg.decode_jpeg(
        prepared.data, "RGB", strict=prepared.odd in ("", "greyscale") or is_tiled(prepared.data)
    )
    assert np.abs(lenient.astype(int) - pixels_of(prepared)).max() <= 2
    if not prepared.reencoded:
        assert np.array_equal(pixels_of(prepared), decoded(data))


SEEDS = [
    *(data for data, _ in KEPT.values()),
    *(data for data, _, _ in ODD.values()),
    *(data for data, _ in BAD.values()),
]


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Files of every kind with bytes replaced, removed or inserted, their beginning more often than the rest."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), 700)) | st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


@settings(max_examples=300)
@given(
    data=damaged_files() | st.binary(max_size=60),
    jpeg=st.sampled_from(["tile", "keep", "reencode", "raw"]),
    verify=st.booleans(),
)
def test_any_bytes_are_stored_or_a_bad_image(data: bytes, jpeg: str, verify: bool) -> None:
    prepared = outcome(data, Handling(jpeg=jpeg, verify=verify))  # type: ignore[arg-type]
    if isinstance(prepared, str):
        assert len(prepared.splitlines()) == 1
        assert " object at 0x" not in prepared
    elif verify:
        assert pixels_of(prepared).shape == (prepared.height, prepared.width, 3)


# --- encoded again, or as pixels


def quantization(jpeg: bytes) -> dict[int, list[int]]:
    with Image.open(io.BytesIO(jpeg)) as image:
        assert isinstance(image, JpegImageFile)
        return {slot: list(table) for slot, table in image.quantization.items()}


@pytest.mark.parametrize("jpeg", ["tile", "reencode"])
@pytest.mark.parametrize("quality", [1, 40, 90, 100])
@pytest.mark.parametrize(("subsampling", "factors"), [("444", 0x11), ("422", 0x21), ("420", 0x22)])
def test_re_encoded_jpegs_have_the_quality_and_subsampling_that_were_asked_for(
    jpeg: str, quality: int, subsampling: str, factors: int
) -> None:
    handling = Handling(jpeg=jpeg, quality=quality, subsampling=subsampling)  # type: ignore[arg-type]
    stored = prepare(jpeg_bytes(PHOTO, quality=97), 0, handling)
    assert is_tiled(stored.data) == (jpeg == "tile")
    luma, *chroma = read_header(stored.data).components
    assert luma.horizontal_sampling << 4 | luma.vertical_sampling == factors
    assert [(part.horizontal_sampling, part.vertical_sampling) for part in chroma] == [(1, 1)] * 2
    assert quantization(stored.data) == quantization(jpeg_bytes(PHOTO, quality=quality))
    assert (stored.odd, stored.reencoded) == ("", True)


@pytest.mark.parametrize("flags", [{"max_side": 40}, {"quality": 60}, {"subsampling": "444"}], ids=str)
def test_each_encoding_flag_encodes_every_image_again_before_it_is_tiled(flags: dict[str, object]) -> None:
    stored = prepare(jpeg_bytes(PHOTO, quality=97, subsampling="4:2:2"), 0, Handling(**flags))  # type: ignore[arg-type]
    assert is_tiled(stored.data)
    assert stored.reencoded
    luma = read_header(stored.data).components[0]
    assert luma.horizontal_sampling == luma.vertical_sampling == (1 if "subsampling" in flags else 2)
    assert quantization(stored.data) == quantization(jpeg_bytes(PHOTO, quality=flags.get("quality", 90)))
    assert stored.width == flags.get("max_side", 61)


SIZES = [(61, 61), (60, 60), (25, 25), (7, 7), (1, 1), (None, 61), (1000, 61)]


@pytest.mark.parametrize("jpeg", ["tile", "reencode", "raw", "proportion"])
@pytest.mark.parametrize(("max_side", "longest"), SIZES)
def test_longest_side_is_reduced_and_the_picture_is_the_same(jpeg: str, max_side: int | None, longest: int) -> None:
    source = jpeg_bytes(PHOTO, quality=97)
    handling = Handling(jpeg=jpeg, max_side=max_side, quality=97, subsampling="444")  # type: ignore[arg-type]
    stored = prepare(source, 0, handling)
    assert (stored.height, stored.width) == (max(1, round(50 * longest / 61)), longest)
    assert stored.reencoded == (stored.mode == MODE_JPEG or longest < 61)
    pixels = pixels_of(stored)
    assert pixels.shape == (stored.height, stored.width, 3)
    expected = Image.fromarray(decoded(source)).resize((stored.width, stored.height), Image.Resampling.BICUBIC)
    assert difference(pixels, np.asarray(expected)) < 12, "the decoder has a coarser filter for sizes far below"


@pytest.mark.parametrize(("full", "size"), [((375, 500), (192, 256)), ((500, 333), (256, 170)), ((2, 900), (1, 256))])
def test_reduced_size_has_the_ratio_of_the_original(full: tuple[int, int], size: tuple[int, int]) -> None:
    stored = prepare(jpeg_bytes(photograph(*full, seed=2)), 0, Handling(jpeg="reencode", max_side=256))
    assert (stored.height, stored.width) == size
    assert decoded(stored.data).shape[:2] == size


@pytest.mark.parametrize("jpeg", ["tile", "reencode"])
def test_greyscale_stays_grey_when_encoded_again_and_is_rgb_as_pixels(jpeg: str) -> None:
    source = jpeg_bytes(PHOTO, "L")
    for max_side in (None, 20):
        grey = prepare(source, 0, Handling(jpeg=jpeg, max_side=max_side, quality=90))  # type: ignore[arg-type]
        assert len(read_header(grey.data).components) == 1
        assert grey.odd == "greyscale"
    assert difference(decoded(prepare(source, 0, Handling(jpeg="reencode")).data), decoded(source)) < 6
    assert np.array_equal(pixels_of(prepare(source, 0, Handling(jpeg="raw"))), decoded(source))


@pytest.mark.parametrize("name", ["baseline", "4:2:0", "progressive", "EXIF orientation", "3:1 sampling"])
def test_raw_pixels_are_those_of_the_source(name: str) -> None:
    data, remark = KEPT[name]
    stored = prepare(data, 0, Handling(jpeg="raw"))
    assert (stored.mode, stored.reencoded) == (MODE_RAW, False)
    assert stored.odd.startswith(remark)
    assert np.abs(pixels_of(stored).astype(int) - decoded(data)).max() <= 2


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.3, 30, 90), (1.0, 200, 200)])
def test_proportion_stores_jpegs_chosen_by_seed_and_position(probability: float, low: int, high: int) -> None:
    data = jpeg_bytes(photograph(8, 8, seed=1))

    def modes(seed: int) -> list[int]:
        handling = Handling(jpeg="proportion", compress_probability=probability, seed=seed)
        return [prepare(data, position, handling).mode for position in range(200)]

    assert low <= modes(0).count(MODE_JPEG) <= high
    assert modes(0) == modes(0)
    assert (modes(0) == modes(1)) == (low == high)


@pytest.mark.parametrize(
    ("data", "handling", "advice"),
    [
        (JPEG, Handling(jpeg="raw", largest=9149), "--max-side"),
        (file_of(PHOTO, "PNG"), Handling(jpeg="keep", largest=1000), "--jpeg reencode --max-side"),
        (JPEG, Handling(largest=1000), "--max-side"),
    ],
    ids=["raw", "odd", "tiled"],
)
def test_image_larger_than_a_page_is_bad(data: bytes, handling: Handling, advice: str) -> None:
    with pytest.raises(BadImage, match=rf"bytes, of at most {handling.largest}; {advice} reduces it"):
        prepare(data, 0, handling)
