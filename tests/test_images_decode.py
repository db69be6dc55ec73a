"""What each image file becomes: upright RGB, or one ImageError with a fixed reason."""

import io
import os
import socket
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor, TimeoutError

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from aim_mlx.errors import ImageError
from aim_mlx.images import decode, default_max_pixels, headers
from aim_mlx.images import formats as containers
from aim_mlx.images.decode import decoded


def photo(width=53, height=37, mode="RGB"):
    """Smooth colour, so that lossy formats stay close, with no symmetry that hides a flip."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1)
    blue = 127 + 120 * np.sin(x / 9) * np.cos(y / 7)
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8)).convert(mode)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def reason_of(source, **options):
    with pytest.raises(ImageError) as caught:
        decode(source, **options)
    assert "\n" not in caught.value.detail
    return caught.value.reason


def largest_difference(image, expected):
    assert image.mode == "RGB" and image.size == expected.size
    return np.abs(np.asarray(image, np.int16) - np.asarray(expected.convert("RGB"), np.int16)).max()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with_header(width, height, bits, colour, extra=b"", data=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + body + png_chunk(b"IEND", b"")


# Formats


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_file_keeps_every_pixel(format):
    assert largest_difference(decode(encoded(photo(), format)), photo()) == 0


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_a_lossy_file_is_read(format):
    # 40 of 255: what the lossy coders do to 53 x 37 pixels; a wrong format or order gives > 100.
    assert largest_difference(decode(encoded(photo(), format, quality=95)), photo()) < 40


def test_a_multi_picture_jpeg_gives_its_first_picture():
    data = encoded(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    image = decode(data)
    assert image.size == photo().size
    assert not image.info["multi_frame"]


def test_an_image_under_a_wrong_name_is_embedded(tmp_path):
    path = tmp_path / "photo.txt"
    path.write_bytes(encoded(photo(), "PNG"))
    assert largest_difference(decode(path), photo()) == 0


@pytest.mark.parametrize("kind", [str, bytes, os.fspath, lambda path: path])
def test_a_path_may_be_text_or_a_path_and_bytes_are_the_file(tmp_path, kind):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(photo(), "PNG"))
    source = path.read_bytes() if kind is bytes else kind(path)
    assert largest_difference(decode(source), photo()) == 0


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_several_is_taken_and_said(format):
    first, second = photo(), Image.new("RGB", photo().size, "black")
    options = {"save_all": True, "append_images": [second]}
    if format == "WEBP":
        options["lossless"] = True
    image = decode(encoded(first, format, **options))
    alone = decode(encoded(first, format, **({"lossless": True} if format == "WEBP" else {})))
    assert largest_difference(image, alone) == 0
    assert image.info["multi_frame"]
    assert not alone.info["multi_frame"]


# Not images


@pytest.mark.parametrize(
    "data",
    [
        b"<!doctype html><title>404</title>",
        b"just words",
        b"P6words",
        b"\xff\x0a" + bytes(40),
        b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40),
        b"%PDF-1.7\n1 0 obj",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0\0\0\x14ftypmp42\0\0\0\0mp42",
    ],
    ids=["html", "text", "text like ppm", "jxl", "jxl box", "pdf", "eps", "svg", "mp4"],
)
def test_a_file_of_no_known_format_is_not_an_image(tmp_path, data):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    assert reason_of(path) == "not_image"


def test_a_format_that_is_not_read_is_named_and_never_reaches_pillow(monkeypatch):
    monkeypatch.setattr(Image, "OPEN", {})
    with pytest.raises(ImageError, match="PDF is not among"):
        decode(b"%PDF-1.7\n" + bytes(80))


def test_no_file_and_no_bytes_are_empty(tmp_path):
    path = tmp_path / "photo.jpg"
    path.touch()
    assert reason_of(path) == "empty"
    assert reason_of(b"") == "empty"


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT", b"IEND"])
def test_a_png_with_a_wrong_crc_is_not_an_image(chunk):
    data = bytearray(encoded(photo(), "PNG"))
    at = data.index(chunk)
    data[at + 4 + struct.unpack(">I", data[at - 4 : at])[0]] ^= 0x55
    assert reason_of(bytes(data)) == "not_image"


def test_a_compressed_text_bomb_in_a_png_is_not_an_image():
    info = PngImagePlugin.PngInfo()
    info.add_text("bomb", "a" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    assert reason_of(encoded(photo(), "PNG", pnginfo=info)) == "not_image"


@pytest.mark.parametrize("error", [ValueError, SyntaxError, struct.error, RecursionError, KeyError])
def test_whatever_a_decoder_raises_is_the_failure_of_one_file(monkeypatch, error):
    def fail(self):
        raise error("two\nlines")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert reason_of(encoded(photo(), "BMP")) == "not_image"


def test_memory_that_runs_out_is_the_failure_of_one_file(monkeypatch):
    def fail(self):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert reason_of(encoded(photo(), "BMP")) == "too_large"


def test_an_interrupt_is_not_swallowed(monkeypatch):
    def fail(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(KeyboardInterrupt):
        decode(encoded(photo(), "BMP"))


def test_camera_raw_gives_no_preview_in_its_place():
    assert reason_of(encoded(photo(), "TIFF", tiffinfo={50706: b"\x01\x04\0\0"})) == "not_image"
    assert reason_of(encoded(photo(), "TIFF", tiffinfo={254: 1})) == "not_image"


# Cut files


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_truncated(progressive):
    data = encoded(photo(), "JPEG", progressive=progressive)
    reasons = {reason_of(data[:n]) for n in range(1, len(data))}
    assert reasons == {"truncated"}


def test_a_large_jpeg_without_its_last_two_bytes_is_truncated(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.fromarray(noise), "JPEG", quality=95)[:-2])
    with pytest.raises(ImageError, match="--allow-truncated") as caught:
        decode(path)
    assert caught.value.reason == "truncated"


def test_the_end_of_an_embedded_preview_is_not_taken_for_that_of_the_jpeg():
    preview = encoded(photo(9, 9), "JPEG")
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG", comment=preview)
    assert decode(data).size == (900, 700)
    assert reason_of(data[:-2]) == "truncated"


def test_a_jpeg_with_bytes_after_its_end_is_whole():
    data = encoded(photo(), "JPEG")
    assert largest_difference(decode(data + b"trailer"), decode(data)) == 0


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"])
def test_other_formats_cut_in_half_are_truncated(format):
    data = encoded(photo(), format)
    assert reason_of(data[: len(data) // 2]) == "truncated"


@pytest.mark.parametrize("progressive", [False, True])
def test_allow_truncated_keeps_the_part_of_a_jpeg_that_is_there(progressive):
    data = encoded(photo(300, 200), "JPEG", progressive=progressive)
    whole = decode(data)
    for part in np.linspace(0.75, 0.99, 25):
        image = decode(data[: int(len(data) * part)], allow_truncated=True)
        top = (0, 0, 300, 100)
        difference = np.asarray(image.crop(top), int) - np.asarray(whole.crop(top), int)
        # A progressive file that was cut is whole but less sharp; a lost image would differ by 60.
        assert np.abs(difference).mean() <= (3 if progressive else 0)
    assert largest_difference(decode(data[:-2], allow_truncated=True), whole) == 0


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF"])
def test_allow_truncated_keeps_the_rows_of_other_formats(format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    image = noise.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if format == "BMP" else noise
    data = encoded(image, format)
    kept = decode(data[: int(len(data) * 0.8)], allow_truncated=True)
    rows = (0, 100, 300, 200) if format == "BMP" else (0, 0, 300, 100)
    assert largest_difference(kept.crop(rows), decode(data).crop(rows)) == 0


def test_a_tiff_whose_last_directory_is_cut_is_truncated_and_its_tags_are_kept_if_allowed(recwarn):
    whole = encoded(photo(), "TIFF")
    (start,) = struct.unpack("<I", whole[4:8])
    (count,) = struct.unpack("<H", whole[start : start + 2])
    directory = whole[start : start + 2 + 12 * count]
    data = whole[:4] + struct.pack("<I", len(whole)) + whole[8:] + directory
    assert largest_difference(decode(data), photo()) == 0  # only the number of the next is missing
    assert reason_of(data[:-1]) == "truncated"
    assert largest_difference(decode(data[:-1], allow_truncated=True), photo()) == 0
    assert reason_of(data[: len(whole)], allow_truncated=True) == "truncated"
    assert not recwarn.list


def test_allow_truncated_leaves_whole_files_and_pillow_as_they_were():
    data = encoded(photo(), "JPEG")
    assert largest_difference(decode(data, allow_truncated=True), decode(data)) == 0
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_what_is_cut_before_any_pixel_is_truncated_even_if_allowed():
    data = encoded(photo(), "WEBP")
    assert reason_of(data[:100], allow_truncated=True) == "truncated"
    assert reason_of(encoded(photo(), "JPEG")[:50], allow_truncated=True) == "truncated"


# Sizes


def test_a_header_of_1200_megapixels_is_refused_with_both_numbers_before_decoding():
    with pytest.raises(ImageError) as caught:
        decode(png_with_header(40_000, 30_000, 8, 2))
    assert caught.value.reason == "too_large"
    assert "1200.0 megapixels" in caught.value.detail
    assert f"{default_max_pixels() / 1e6:.1f}" in caught.value.detail


def test_the_default_limit_is_100_to_1000_megapixels():
    assert 100_000_000 <= default_max_pixels() <= 1_000_000_000


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_an_image_above_max_pixels_is_refused_and_one_at_it_is_not(format):
    data = encoded(photo(), format)
    assert reason_of(data, max_pixels=53 * 37 - 1) == "too_large"
    assert decode(data, max_pixels=53 * 37).size == (53, 37)


@pytest.mark.parametrize("options", [{"lossless": True}, {}, {"exif": b"Exif\0\0", "quality": 50}])
def test_every_kind_of_webp_is_refused_above_max_pixels(options):
    data = encoded(photo(), "WEBP", **options)
    assert reason_of(data, max_pixels=53 * 37 - 1) == "too_large"
    assert decode(data, max_pixels=53 * 37).size == (53, 37)


@pytest.mark.parametrize(
    ("size", "format"),
    [((13_400, 13_400), "PNG"), ((12_000, 9_000), "TIFF")],
    ids=["179.6 MP", "108 MP"],
)
def test_pillows_own_limits_neither_warn_nor_refuse(size, format):
    # One bit a pixel keeps it small; pytest turns any warning into an error.
    data = encoded(Image.new("1", size, 1), format)
    assert decode(data, max_pixels=200_000_000).size == size


def test_a_file_far_larger_than_its_image_could_be_is_refused_unread(tmp_path):
    path = tmp_path / "huge.webp"
    path.write_bytes(encoded(photo(), "WEBP"))
    os.truncate(path, 300 << 20)  # sparse
    assert reason_of(path, max_pixels=1_000_000) == "too_large"


# Decoders that would run for minutes


def _scans(count):
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(photo(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + b"\xff\xd9"


def _plain_scans(count):
    """A baseline JPEG that has a scan for each component, the last of them repeated."""
    data = encoded(photo(mode="L"), "JPEG")
    start, sos = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    after = start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]
    components = b"".join(bytes([each, 0x11, 0]) for each in (1, 2, 3))
    frame = b"\xff\xc0\0\x11" + data[start + 4 : start + 9] + b"\3" + components
    scans = [data[sos : sos + 5] + bytes([each]) + data[sos + 6 : -2] for each in (1, 2, 3)]
    return data[:start] + frame + data[after:sos] + b"".join(scans) + scans[2] * count + b"\xff\xd9"


def _gif(before=b"", after=b""):
    data = encoded(photo(mode="P"), "GIF")
    at = 13 + 3 * 256
    return data[:at] + before + data[at:-1] + after + b";"


def _tiff(entries, tail=b""):
    """Little-endian tags (tag, type, count, value) behind the header."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + tail


_SMALL_TIFF = [(256, 4, 1, 1), (257, 4, 1, 200_000), (258, 3, 1, 8), (259, 3, 1, 1)]
_SLOW = {
    "many scans": (_scans(5000), "too_large", "scans of a JPEG, the limit is 500"),
    "many plain scans": (_plain_scans(5000), "too_large", "scans of a JPEG"),
    "text": (b"P2\n#\n100 100\n255\n" + b"1 " * 10_000, "not_image", "PPM in text is not among"),
    "comment": (b"P5\n#" + b"x" * 30_000 + b"\n9 9\n255\n" + bytes(81), "not_image", "small"),
    "segments": (
        encoded(photo(), "JPEG")[:2] + b"\xff\xe5\0\2" * 20_000 + encoded(photo(), "JPEG")[2:],
        "not_image",
        "too many small parts",
    ),
    "fill bytes": (
        b"\xff\xd8" + b"\xff" * 20_000 + encoded(photo(), "JPEG")[2:],
        "not_image",
        "too many small parts",
    ),
    "chunks": (
        png_with_header(1, 1, 8, 0, png_chunk(b"teSt", b"") * 20_000, bytes(2)),
        "not_image",
        "too many small parts",
    ),
    "comments before": (_gif(before=b"!\xfe\1a\0" * 20_000), "not_image", "too many small parts"),
    "comments behind": (_gif(after=b"!\xfe\1a\0" * 20_000), "not_image", "too many small parts"),
    "small blocks": (
        _gif(after=b"!\xfe" + b"\1a" * 20_000 + b"\0"),
        "not_image",
        "too many small parts",
    ),
    "tags": (
        _tiff([(tag, 3, 1, 0) for tag in range(256, 9000)]),
        "not_image",
        "8,744 tags are too many",
    ),
    "strips": (
        _tiff([*_SMALL_TIFF, (273, 4, 200_000, 74), (279, 4, 200_000, 74)], bytes(800_000)),
        "not_image",
        "200,000 strips are too many",
    ),
}


@pytest.mark.parametrize("name", _SLOW)
def test_what_a_decoder_would_take_minutes_for_is_refused_with_its_reason(name):
    # Small of their kind, to be quick without the limit too: at 60 MB they took up to 100 s.
    data, reason, words = _SLOW[name]
    with pytest.raises(ImageError, match=words) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_a_header_is_bounded_by_its_bytes_and_the_pixels_behind_it_are_not(monkeypatch):
    monkeypatch.setattr(headers, "_MOST_BYTES", 20_000)
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))
    profile = b"\xff\xe2\xff\xff" + bytes(65533)
    layers = encoded(pixels, "TIFF", tiffinfo={37724: bytes(50_000)})
    assert decode(layers).size == (99, 99)
    for format in ("PNG", "TIFF", "BMP", "PPM"):
        assert decode(encoded(pixels, format)).size == (99, 99)
    jpeg = encoded(pixels, "JPEG", quality=100)
    assert len(jpeg) > 20_000 and decode(jpeg).size == (99, 99)
    with pytest.raises(ImageError, match="its header is too long"):
        decode(jpeg[:2] + profile + jpeg[2:])


def test_what_is_decoded_slowly_is_bounded_by_its_bytes(monkeypatch):
    header = struct.pack("<IiiHHIIiiII", 40, 9000, 9000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1024)
    data = b"BM" + struct.pack("<IHHI", 20 << 20, 0, 0, 14 + len(header)) + header
    assert reason_of(data + bytes(20 << 20)) == "too_large"
    monkeypatch.setitem(headers._SLOW_BYTES, "ppm", 99)
    assert reason_of(b"P5 10 10 100\n" + bytes(100)) == "too_large"
    assert decode(b"P5 10 10 255\n" + bytes(100)).size == (10, 10)


def test_headers_as_cameras_and_encoders_write_them_are_within_the_limits():
    depth_map = b"\xff\xe1\xff\xff" + bytes(65533)
    data = encoded(photo(), "JPEG", progressive=True)
    assert decode(data[:2] + depth_map * 200 + data[2:]).size == (53, 37)  # 13 MB
    assert decode(_scans(10)).size == decode(_plain_scans(0)).size == (53, 37)
    small = b"".join(png_chunk(b"teSt", b"") for _ in range(1000))
    assert decode(png_with_header(1, 1, 8, 0, small, bytes(2))).size == (1, 1)
    assert decode(_gif(after=b"!\xfe\xff" + bytes(255) + b"\0")).size == (53, 37)
    noted = b"P5\n# made by hand\n9 # across\n9\n255\n" + bytes(81)
    assert decode(noted).size == (9, 9)


def test_the_scans_that_are_decoded_depend_on_the_pixels():
    assert [headers.most_scans(n) for n in (1, 12_000_000, 100_000_000)] == [500, 41, 20]


def test_a_large_image_waits_until_another_is_done_with_and_a_small_one_does_not(monkeypatch):
    monkeypatch.setattr(sys.modules["aim_mlx.images.decode"], "large", lambda: 1000)
    large, small = encoded(photo(), "PNG"), encoded(photo(9, 9), "PNG")
    with ThreadPoolExecutor(2) as pool:
        with decoded(large):
            waiting = pool.submit(decode, large)
            assert pool.submit(decode, small).result(timeout=60).size == (9, 9)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.1)
        assert waiting.result(timeout=60).size == (53, 37)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 2), (2, 20_000)])
def test_extreme_shapes_are_decoded(size):
    assert decode(encoded(Image.new("RGB", size, "red"), "PNG")).size == size


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_oriented_file_equals_the_upright_image_once(format, orientation):
    # The inverse of what a viewer does: 6 and 8 undo each other, the others themselves.
    undo = [None, None, 0, 3, 1, 5, 2, 6, 4][orientation]
    stored = photo() if undo is None else photo().transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    options |= {"quality": 100} if format in ("JPEG", "AVIF") else {}
    image = decode(encoded(stored, format, exif=exif, **options))
    lossy = 30 if format in ("JPEG", "AVIF") else 0
    assert largest_difference(image, photo()) <= lossy
    assert 0x0112 not in image.getexif()
    assert largest_difference(decode(image), image) == 0


@pytest.mark.parametrize("value", [0, 9, 99])
def test_an_orientation_that_does_not_exist_leaves_the_image_as_it_is(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert largest_difference(decode(encoded(photo(), "PNG", exif=exif)), photo()) == 0


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0" + bytes(30), b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"],
)
def test_damaged_exif_leaves_the_image_as_it_is(exif):
    plain = encoded(photo(), "JPEG")
    damaged = encoded(photo(), "JPEG", exif=exif)
    assert largest_difference(decode(damaged), decode(plain)) == 0


def test_an_orientation_behind_damaged_entries_is_found_and_nothing_is_printed(recwarn):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker's name", 6
    stored = photo().transpose(Image.Transpose.ROTATE_90)
    far = exif.tobytes().replace(struct.pack(">I", 38), struct.pack(">I", 10**8))
    assert far != exif.tobytes()
    for format in ("JPEG", "PNG", "WEBP"):
        assert decode(encoded(stored, format, exif=far)).size == photo().size, format
    assert not recwarn.list


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_an_orientation_in_xmp_counts_where_exif_says_none(format):
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    stored = photo().transpose(Image.Transpose.ROTATE_90)
    assert decode(encoded(stored, format, xmp=xmp)).size == photo().size
    exif = Image.Exif()
    exif[0x0112] = 1
    assert decode(encoded(stored, format, xmp=xmp, exif=exif)).size == stored.size
    for tags, expected in (({}, photo()), ({0x0112: 1}, stored)):
        tiff = encoded(stored, "TIFF", tiffinfo={700: xmp, **tags})
        assert decode(tiff).size == expected.size


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_with_thousands_of_damaged_tags_is_decoded_and_nothing_is_printed(
    compression, recwarn, capfd
):
    whole = encoded(photo(), "TIFF", compression=compression)
    (start,) = struct.unpack("<I", whole[4:8])
    (count,) = struct.unpack("<H", whole[start : start + 2])
    tags = whole[start + 2 : start + 2 + 12 * count]
    far = b"".join(struct.pack("<HHII", tag, 7, 100, 10**8) for tag in range(40_000, 43_000))
    directory = struct.pack("<H", count + 3000) + tags + far + bytes(4)
    data = whole[:4] + struct.pack("<I", len(whole)) + whole[8:] + directory
    assert largest_difference(decode(data), photo()) == 0
    assert not recwarn.list and capfd.readouterr().err == ""


def test_a_pil_image_that_was_opened_is_made_upright_and_left_unchanged():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photo().transpose(Image.Transpose.ROTATE_90)
    with Image.open(io.BytesIO(encoded(stored, "PNG", exif=exif))) as given:
        assert largest_difference(decode(given), photo()) == 0
        assert given.size == stored.size and given.getexif()[0x0112] == 6


# Modes


@pytest.mark.parametrize("colour", [0, 2, 4, 6], ids=["grey", "rgb", "grey alpha", "rgb alpha"])
def test_16_bit_png_is_scaled_not_clipped(colour):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    ramp = np.linspace(0, 65535, 256).round().astype(">u2")
    samples = np.repeat(ramp[:, None], channels, 1)
    if colour in (4, 6):
        samples[:, -1] = 65535
    data = png_with_header(256, 1, 16, colour, data=b"\0" + samples.tobytes())
    values = np.asarray(decode(data))[0].astype(int)
    exact = np.round(ramp / 257).astype(int)
    # Pillow keeps the high byte of 16-bit colour: at most one step below the rounded value.
    assert np.abs(values - exact[:, None]).max() <= (0 if colour == 0 else 1)
    assert values[0].tolist() == [0] * 3 and values[-1].tolist() == [255] * 3


def _deep(largest, colour="grey", format="PNG"):
    """A 16-bit image, as bytes, whose values go up to `largest`."""
    values = np.linspace(0, largest, 35).round().astype(np.uint16).reshape(5, 7)
    if colour == "grey":
        return encoded(Image.fromarray(values), format)
    rows = np.repeat(values.astype(">u2")[..., None], 3, -1).reshape(5, -1)
    return png_with_header(7, 5, 16, 2, data=b"".join(b"\0" + row.tobytes() for row in rows))


@pytest.mark.parametrize("kind", [("grey", "PNG"), ("grey", "TIFF"), ("colour", "PNG")], ids=str)
def test_a_16_bit_image_of_12_bits_is_known_as_dark_and_keeps_its_values(kind):
    twelve, whole = decode(_deep(4095, *kind)), decode(_deep(65535, *kind))
    assert twelve.info["dark"] and not whole.info["dark"]
    assert np.asarray(twelve).max() == (16 if kind[0] == "grey" else 15)  # 4095 / 257, 4095 >> 8
    assert not decode(_deep(8300, *kind)).info["dark"]  # an eighth


def test_an_8_bit_image_is_not_dark_however_black():
    for format in ("PNG", "TIFF", "BMP", "JPEG"):
        assert not decode(encoded(Image.new("RGB", (8, 8)), format)).info["dark"]
    assert not decode(encoded(Image.new("L", (8, 8)), "PNG")).info["dark"]


@pytest.mark.parametrize("value", [0, 1, 128, 129, 256, 257, 32767, 65406, 65407, 65535])
def test_16_bit_grey_tiff_is_rounded_to_the_nearest_of_256(value):
    grey = Image.fromarray(np.full((3, 5), value, np.uint16))
    assert decode(encoded(grey, "TIFF")).getpixel((0, 0)) == (round(value / 257),) * 3


def test_16_bit_grey_tiff_with_white_as_zero_is_not_a_negative():
    grey = Image.fromarray(np.full((3, 5), 65535, np.uint16))
    data = encoded(grey, "TIFF", tiffinfo={262: 0})
    assert decode(data).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_32_bits_are_an_unsupported_mode(mode):
    image = Image.new(mode, (5, 3), 1)
    assert reason_of(encoded(image, "TIFF")) == "unsupported_mode"
    assert reason_of(image) == "unsupported_mode"


def test_a_mode_with_no_way_to_rgb_is_unsupported():
    assert reason_of(Image.new("La", (5, 3))) == "unsupported_mode"


@pytest.mark.parametrize(
    ("mode", "format"),
    [("L", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("CMYK", "TIFF")],
)
def test_grey_palette_cmyk_and_1_bit_become_their_colours(mode, format):
    image = photo(mode=mode)
    tolerance = 10 if format == "JPEG" else 0
    assert largest_difference(decode(encoded(image, format)), image) <= tolerance


def test_a_cmyk_jpeg_is_not_inverted():
    data = encoded(Image.new("RGB", (16, 16), (200, 40, 30)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(decode(data), int) - (200, 40, 30)).max() < 8


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 100, 200, 128), (127, 177, 227)),
        ("LA", (10, 0), (255, 255, 255)),
        ("LA", (10, 255), (10, 10, 10)),
    ],
)
def test_transparency_is_laid_on_white(mode, colour, expected):
    pixel = decode(encoded(Image.new(mode, (5, 3), colour), "PNG")).getpixel((0, 0))
    assert np.abs(np.array(pixel) - expected).max() <= 1  # 8-bit blending rounds


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_white(format):
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    pixels = np.asarray(decode(encoded(image, format, transparency=1)))[0]
    assert pixels[:2].tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize(("colour", "bits"), [(0, 8), (0, 16), (2, 8)])
def test_the_transparent_colour_of_a_png_without_alpha_is_white(colour, bits):
    key = struct.pack(">H", 7) * (1 if colour == 0 else 3)
    one = (7).to_bytes(bits // 8, "big") * (1 if colour == 0 else 3)
    two = (9).to_bytes(bits // 8, "big") * (1 if colour == 0 else 3)
    data = png_with_header(2, 1, bits, colour, png_chunk(b"tRNS", key), b"\0" + one + two)
    pixels = np.asarray(decode(data))[0]
    assert pixels[0].tolist() == [255] * 3 and pixels[1].max() <= 9


# Arrays and PIL images


def test_a_uint8_array_is_taken_as_rgb_whatever_its_strides():
    array = np.asarray(photo())
    assert (np.asarray(decode(array)) == array).all()
    assert (np.asarray(decode(array[::-1, ::2])) == array[::-1, ::2]).all()


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)],
    ids=["grey", "channels first", "float"],
)
def test_another_array_is_refused_with_what_was_expected(array):
    with pytest.raises(ImageError, match=r"expected a uint8 array of shape \(H, W, 3\)"):
        decode(array)


def test_an_array_and_an_image_without_pixels_are_empty():
    assert reason_of(np.zeros((0, 4, 3), np.uint8)) == "empty"
    assert reason_of(Image.new("RGB", (0, 4))) == "empty"


def test_something_else_is_refused_by_its_type():
    with pytest.raises(ImageError, match="got NoneType"):
        decode(None)  # pyright: ignore[reportArgumentType]


def test_drawing_on_the_result_leaves_the_given_image_alone():
    given = photo()
    decode(given).paste((0, 0, 0), (0, 0, 53, 37))
    assert largest_difference(given, photo()) == 0


# Files that are not there, or not files


def test_a_file_that_is_not_there_has_vanished(tmp_path):
    assert reason_of(tmp_path / "gone.jpg") == "vanished"
    (tmp_path / "file").touch()
    assert reason_of(tmp_path / "file" / "gone.jpg") == "vanished"


def test_folders_fifos_sockets_devices_and_broken_links_are_not_regular(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "broken.jpg").symlink_to("nothing")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tmp_path)  # socket names are short
        try:
            listener.bind("socket.jpg")
        finally:
            os.chdir(here)
        for name in ("fifo.jpg", "broken.jpg", "loop.jpg", "socket.jpg", "."):
            assert reason_of(tmp_path / name) == "not_regular", name
    assert reason_of("/dev/zero") == "not_regular"


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(photo(), "PNG"))

    def refuse(*arguments, **options):  # the tests may run as root, whom no mode bit stops
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert reason_of(path) == "unreadable"


@pytest.mark.parametrize("name", ["a\0b.jpg", "n" * 5000 + ".jpg"])
def test_a_name_that_no_file_can_have_is_unreadable(name):
    assert reason_of(name) == "unreadable"


@pytest.mark.parametrize("cut", [False, True], ids=["grown", "cut"])
def test_a_file_that_changes_while_it_is_read_is_changed(tmp_path, monkeypatch, cut):
    path = tmp_path / "photo.bmp"
    path.write_bytes(encoded(photo(), "BMP"))
    load = ImageFile.ImageFile.load

    def meddle(self):
        os.truncate(path, 100 if cut else 100_000)
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", meddle)
    assert reason_of(path) == "changed"


def test_a_large_file_is_decoded_from_the_open_file(tmp_path, monkeypatch):
    monkeypatch.setattr("aim_mlx.images.contents.READ_WHOLE", 10_000)
    path = tmp_path / "photo.tif"
    path.write_bytes(encoded(photo(200, 100), "TIFF"))
    assert largest_difference(decode(path), photo(200, 100)) == 0


# HEIF


def test_heic_without_a_decoder_names_the_extra(monkeypatch):
    monkeypatch.setattr("aim_mlx.images.encoded._opener", lambda format: None)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ImageError, match=r"aim-mlx\[heif\]") as caught:
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    assert caught.value.reason == "heif_unsupported"


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_is_decoded_upright_where_the_extra_is_installed(orientation):
    pillow_heif = pytest.importorskip("pillow_heif", reason="extra 'heif' is not installed")
    undo = {1: None, 3: 3, 6: 2, 8: 4}[orientation]
    stored = photo() if undo is None else photo().transpose(Image.Transpose(undo))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    pillow_heif.from_pillow(stored).save(file, quality=95, exif=exif.tobytes())
    data = file.getvalue()
    assert largest_difference(decode(data), photo()) < 30
    assert {reason_of(data[:n]) for n in range(40, len(data), 40)} == {"truncated"}
    assert reason_of(data, max_pixels=99) == "too_large"


def test_avif_and_heif_are_told_apart_by_their_brands():
    assert containers.identify(b"\0\0\0\x18ftypmif1\0\0\0\0avifmif1") == "AVIF"
    assert containers.identify(b"\0\0\0\x18ftypmif1\0\0\0\0heicmif1") == "HEIF"
    assert containers.identify(b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom") == "camera raw"


# Threads


def test_threads_decode_side_by_side_and_alike():
    data = [encoded(photo(200 + i, 150), "JPEG") for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(decode, data * 4))
    assert [image.size[0] for image in images] == [200 + i for i in range(8)] * 4
