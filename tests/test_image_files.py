"""Tests of image_files.py: a file is read right or refused by name, nothing between."""

import itertools
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

from support import image_files, pixels
from support.image_files import UnreadableImageError, read_picture, read_rgb

ORIENTATION, MAKE, WIDTH, DETAILS, GPS = 0x0112, 0x010F, 0x0100, 0x8769, 0x8825
PIXEL_WIDTH, PIXEL_HEIGHT, TAKEN = 0xA002, 0xA003, 0x9003
NOISE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), "uint8")
FORMATS = "png bmp tga ppm tif jp2 webp gif jpg mpo avif"


def pack(levels, bits):
    """Packs each row of levels into bytes, the high bits first."""
    digits = levels.reshape(len(levels), -1, 1) >> np.arange(bits)[::-1] & 1
    return np.packbits(digits.astype(bool).reshape(len(levels), -1), axis=1)


def chunk(name, data):
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def write_png(path, levels, bits=8, color_type=2, before=b"", after=b""):
    """Writes a PNG of `levels`, with chunks before and after its pixels."""
    height, width = levels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pack(levels, bits))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before
    pixels = chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(start + pixels + after + chunk(b"IEND", b""))
    return path


def write_tiff(path, levels, bits, photometric=1, sample_format=1, order="<"):
    """Writes a gray TIFF; levels of whole bytes keep their own type."""
    data = levels.astype(levels.dtype.newbyteorder(order)).tobytes()
    if bits != 8 * levels.dtype.itemsize:
        data = pack(levels, bits).tobytes()
    height, width = levels.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 134,
            277: 1, 278: height, 279: len(data), 339: sample_format}  # fmt: skip
    fields = [value for tag in tags for value in (tag, 3, 1, tags[tag], 0)]
    header = struct.pack(f"{order}HIH{10 * 'HHIHH'}", 42, 8, 10, *fields)
    path.write_bytes({"<": b"II", ">": b"MM"}[order] + header.ljust(132, b"\0") + data)


def ramp(bits):
    """Returns 2 x 8 levels from black to white."""
    levels = np.linspace(0, 2**bits - 1, 8).round()
    return np.tile(levels, (2, 1)).astype("uint16" if bits > 8 else "uint8")


def check_levels(picture, expected, tolerance=0.51):
    """Compares with levels in [0, 1], in 8 or 16 bits as the picture is."""
    full = 65535 if picture.image.mode == "I;16" else 255
    np.testing.assert_allclose(picture.image, expected * full, atol=tolerance)


def make_exif(orientation):
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE], exif[WIDTH] = orientation, "Phone", 8
    exif[DETAILS] = {PIXEL_WIDTH: 8, PIXEL_HEIGHT: 6, TAKEN: "2020:01:01 00:00:00"}
    exif[GPS] = {1: "N"}
    return exif.tobytes()


def test_ranges_and_scales():
    """Levels were truncated or wrapped around, or gray images were refused."""
    levels = np.arange(256, dtype="uint8")
    floats = pixels.to_float(levels)
    np.testing.assert_array_equal(floats, levels.astype("float32") / 127.5 - 1)
    np.testing.assert_array_equal(pixels.to_uint8(floats - 0.003), levels)
    np.testing.assert_array_equal(pixels.to_uint8([-1.5, 1.01, 9]), [0, 255, 255])
    assert pixels.enlarge_by_filter(NOISE).shape == (24, 32, 3)
    assert pixels.enlarge_by_filter(NOISE[..., 0]).shape == (24, 32)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("order", ["<", ">"])
def test_gray_tiff(tmp_path, bits, photometric, order):
    """WhiteIsZero of 16 bits came out negative."""
    path = tmp_path / "a.tif"
    write_tiff(path, ramp(bits), bits, photometric, order=order)
    if bits == 16 and photometric == 0:
        with pytest.raises(UnreadableImageError, match=r"a\.tif: .*"):
            read_picture(path)
        return
    picture = read_picture(path)
    levels = ramp(bits) / (2**bits - 1)
    levels = levels if photometric else 1 - levels
    check_levels(picture, levels)
    assert (picture.image.mode == "I;16") == (bits > 8)
    assert picture.metadata == {}  # no resolution of 1 dpi
    np.testing.assert_allclose(np.array(read_rgb(path))[..., 1], levels * 255, atol=0.6)


@pytest.mark.parametrize("maximum", [100, 255, 1000, 1255, 4095, 65535])
def test_portable_maps(tmp_path, maximum):
    """Levels were not scaled, or 8-bit gray was noted as 16-bit color."""
    levels = np.tile(np.linspace(0, maximum, 8).round(), (2, 1)).astype("uint16")
    color = np.repeat(levels[..., None], 3, axis=-1)
    for name, kind, levels_of in (("a.pgm", "P5", levels), ("a.ppm", "P6", color)):
        data = pack(levels_of, 16 if maximum > 255 else 8).tobytes()
        (tmp_path / name).write_bytes(f"{kind} 8 2 {maximum}\n".encode() + data)
        picture = read_picture(tmp_path / name)
        check_levels(picture, levels_of / maximum, tolerance=1)
        is_cut = maximum > 255 and name == "a.ppm"
        assert ("16-bit color was read as 8-bit" in str(picture.notes)) == is_cut
        assert (picture.image.mode == "I;16") == (maximum > 255 and name == "a.pgm")


@pytest.mark.parametrize(("bits", "clear"), [
    *itertools.product((1, 2, 4, 8), (0, 3, 7, None)), (16, None),
])  # fmt: skip
def test_gray_png(tmp_path, bits, clear):
    """The transparent level was compared with pixels of other bits: all opaque."""
    levels, before = ramp(bits), b""
    expected, is_clear = levels / (2**bits - 1), False
    if clear is not None:
        before = chunk(b"tRNS", struct.pack(">H", levels[0, clear]))
        is_clear = levels == levels[0, clear]
    path = write_png(tmp_path / "a.png", levels, bits, 0, before)
    picture = read_picture(path)
    if clear is None:
        check_levels(picture, expected)
        assert picture.alpha is None
    else:
        np.testing.assert_array_equal(picture.alpha, np.where(is_clear, 0, 255))
    expected = np.where(is_clear, 1, expected)  # on white
    np.testing.assert_allclose(np.array(read_rgb(path))[..., 1], expected * 255, atol=1)


def test_transparent_color(tmp_path):
    """As above, for color."""
    before = chunk(b"tRNS", struct.pack(">3H", *NOISE[2, 3]))
    picture = read_picture(write_png(tmp_path / "a.png", NOISE, before=before))
    visible = np.array(picture.alpha) > 0
    assert np.argwhere(~visible).tolist() == [[2, 3]]
    np.testing.assert_array_equal(np.array(picture.image)[visible], NOISE[visible])


def test_16_bits_that_pillow_cuts(tmp_path):
    """16-bit color was cut to 8 bits without a word, gray with alpha was tinted."""
    picture = read_picture(write_png(tmp_path / "a.png", NOISE * np.uint16(257), 16))
    np.testing.assert_array_equal(picture.image, NOISE)
    assert "16-bit color was read as 8-bit" in picture.notes[0]
    levels = np.stack([ramp(16), ramp(16)[:, ::-1]], axis=-1)
    picture = read_picture(write_png(tmp_path / "a.png", levels, 16, 4))
    assert np.ptp(picture.image, axis=-1).max() == 0
    np.testing.assert_array_equal(picture.alpha, levels[..., 1] >> 8)


@pytest.mark.parametrize(("suffix", "mode"), [
    *itertools.product(FORMATS.split(), ("RGB", "L")),
    *itertools.product(("tif",), ("CMYK", "P", "1", "YCbCr", "LA", "RGBA", "RGBX")),
])  # fmt: skip
def test_formats_and_modes(tmp_path, suffix, mode):
    """A format that this Pillow reads was refused, or 8 bits were noted as 16."""
    path = tmp_path / f"a.{suffix}"
    expected = "L" if mode in ("L", "LA", "1") else "RGB"
    if path.suffix not in Image.registered_extensions():
        pytest.skip(f"this Pillow cannot write {suffix}")
    flat = Image.new("RGB", (8, 6), (255, 0, 0)).convert(mode)
    flat.save(path)
    picture = read_picture(path)
    assert picture.image.mode == expected or suffix in ("webp", "gif")
    assert (picture.notes, picture.alpha is None) == ([], mode not in ("LA", "RGBA"))
    shown = flat.convert(expected).convert("RGB")
    np.testing.assert_allclose(read_rgb(path), shown, atol=4)
    assert image_files.find_images(tmp_path) == ([path], {})


def test_cmyk_profiles(tmp_path, monkeypatch):
    """A printer's CMYK was too bright, and its profile was stored with RGB pixels."""
    soft = Image.fromarray(NOISE // 4 + 96)
    soft.convert("CMYK").save(tmp_path / "b.tif", icc_profile=b"no profile")
    assert "color profile cannot be used" in read_picture(tmp_path / "b.tif").notes[0]

    def convert(image, source, target, outputMode):  # noqa: N803
        assert source.getvalue() == b"no profile"
        return image.convert("RGB").point(lambda level: level // 2)

    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    picture = read_picture(tmp_path / "b.tif")
    np.testing.assert_allclose(picture.image, np.array(soft) // 2, atol=1)
    assert picture.metadata["icc_profile"][16:20] == b"RGB "


def test_no_note_without_need(tmp_path):
    """A BMP of 5-6-5 bits was noted as 16-bit color, a phone's MPO as two frames."""
    header = (40, 2, 1, 1, 16, 3, 4, *[0] * 4, 0xF800, 0x7E0, 0x1F)
    header = struct.pack("<IiiHHIIiiII3I", *header) + b"\xff\xff\x00\xf8"
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<3I", 70, 0, 66) + header)
    image, *rest = read_picture(tmp_path / "a.bmp")
    assert np.array(image).tolist() == [[[255, 255, 255], [255, 0, 0]]]
    assert rest == [None, {}, []]
    for name in ("TIFF", "GIF", "WEBP", "PNG", "MPO"):
        frames = [Image.new("RGB", (8, 8), color) for color in ("black", "white")]
        frames[0].save(tmp_path / "a", name, save_all=True, append_images=frames[1:])
        picture = read_picture(tmp_path / "a")
        assert np.array(picture.image).max() < 5
        assert ("first of 2 frames" in str(picture.notes)) == (name != "MPO")


@pytest.mark.parametrize(("name", "write", "reason"), [
    ("float32.tif", lambda path: write_tiff(path, ramp(8) / np.float32(255), 32, 1, 3),
     "floating-point"),
    ("uint32.tif", lambda path: write_tiff(path, ramp(16).astype("u4"), 32), "32-bit"),
    ("int32.tif", lambda path: Image.new("I", (4, 4)).save(path), "32-bit"),
    ("int16.tif", lambda path: write_tiff(path, ramp(16), 16, 1, 2), "signed"),
    ("int8.tif", lambda path: write_tiff(path, ramp(8), 8, 1, 2), "signed"),
    ("pfm.ppm", lambda path: path.write_bytes(b"Pf\n2 1\n-1.0\n" + bytes(8)), "float"),
    ("12.tif", lambda path: write_tiff(path, ramp(12), 12), "12-bit"),
    ("lab.tif", lambda path: Image.new("LAB", (4, 4)).save(path), "Lab"),
    ("gray.png", lambda path: write_png(path, ramp(16), 16, 0,
     chunk(b"tRNS", b"01")), "16-bit numbers, one transparent"),
    ("color.png", lambda path: write_png(path, NOISE * np.uint16(257), 16, 2,
     chunk(b"tRNS", b"012345")), "16-bit numbers, one transparent"),
    ("text_chunk.png", lambda path: write_png(path, NOISE, before=chunk(
     b"zTXt", b"key\0\0" + zlib.compress(bytes(2_000_000)))), "larger than"),
    ("profile.png", lambda path: write_png(path, NOISE, before=chunk(
     b"iCCP", b"key\0\0" + zlib.compress(bytes(2_000_000)))), "larger than"),
    ("chunk.png", lambda path: write_png(path, NOISE, before=chunk(
     b"gAMA", b"1234")[:-1] + b"x"), "damaged"),
    ("text.png", lambda path: path.write_text("no image"), "not an image"),
    ("script.png", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"), "not an"),
    ("gone.png", lambda path: None, "no such file"),
    ("cut.png", lambda path: (write_png(path, NOISE), os.truncate(path, 99)), ""),
])  # fmt: skip
def test_refused_by_name(tmp_path, name, write, reason):
    """What Pillow reads wrong, as black, inverted or opaque, was trained on."""
    write(tmp_path / name)
    for read in (read_picture, read_rgb):
        with pytest.raises(UnreadableImageError, match=f"{name}: .*{reason}") as caught:
            read(tmp_path / name)
    assert name not in caught.value.reason


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif", "mpo"])
def test_pillow_keeps_its_limit(tmp_path, monkeypatch, recwarn, suffix):
    """Reading a size switched off Pillow's guard against bombs for a whole program."""
    for owner, name in ((Image, "MAX_IMAGE_PIXELS"), (image_files, "MAX_PIXELS")):
        monkeypatch.setattr(owner, name, 20)
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(NOISE)
    if suffix != "mpo":
        image.putalpha(128)
    image.save(path)
    assert read_picture(path, max_pixels=48).image.size == (8, 6)
    with pytest.raises(UnreadableImageError, match=r"8x6 px .*larger --max-pixels"):
        image_files.read_size(path)
    assert (Image.MAX_IMAGE_PIXELS, list(recwarn)) == (20, [])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright(tmp_path, orientation):
    """Photographs lay on their side, or a viewer turned the result once more."""
    turned = NOISE.swapaxes(0, 1) if orientation > 4 else NOISE
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    upright, exif = turned[::rows, ::columns], make_exif(orientation)
    write_png(tmp_path / "b.png", NOISE, after=chunk(b"eXIf", exif[6:]))
    for name, options in (("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True})):
        Image.fromarray(NOISE).save(tmp_path / name, exif=exif, **options)
    for name in ("a.png", "a.tif", "a.webp", "b.png"):
        picture = read_picture(tmp_path / name)
        np.testing.assert_array_equal(picture.image, upright, err_msg=name)
        assert picture.metadata["exif"].get(ORIENTATION, 1) == 1
        assert sorted(image_files.read_size(tmp_path / name)) == [6, 8]


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (0, 255, 0)])
@pytest.mark.parametrize("shape", ["line", "text"])
def test_hidden_colors_do_not_show(hidden, shape):
    """Black under transparent pixels reached the network, and so a logo's edge."""
    alpha = Image.new("L", (168, 144))
    draw = ImageDraw.Draw(alpha)
    draw.line((9, 0, 140, 160), fill=255 * (shape == "line"), width=6)
    draw.text((9, 9), "Logo", fill=255 * (shape == "text"))
    alpha = alpha.resize((41, 37), Image.Resampling.BOX)
    alpha.putpixel((38, 2), 1)  # as good as transparent
    logo = Image.new("RGB", alpha.size, hidden)
    logo.paste((220, 30, 40), mask=alpha.point(lambda level: 255 * (level > 1)))
    logo.putalpha(alpha)
    bled = np.array(image_files.bleed_colors(logo)).astype(int)
    assert np.abs(bled - (220, 30, 40)).max() <= 8


def test_saving_is_atomic(tmp_path, monkeypatch):
    """Ctrl-C left half a file, or a long name had no room for a temporary suffix."""
    path = tmp_path / f"{251 * 'x'}.png"
    path.write_text("before")

    def interrupt(image, temporary, **options):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            image_files.save_image(NOISE, path)
    assert path.read_text() == "before"
    image_files.save_image(NOISE, path)
    np.testing.assert_array_equal(Image.open(path), NOISE)
    assert list(tmp_path.glob("[!.]*")) == [path]


def test_what_a_format_cannot_hold(tmp_path):
    """Pillow clipped 16 bits to white, and showed the color of clear pixels."""
    path = tmp_path / "a.jpg"
    for mode, color, shown, note in (
        ("I;16", 32896, 128, "jpg has 8 bits, not 16"),
        ("LA", (7, 0), 255, "laid on white"), ("RGBA", (7, 8, 9, 0), 255, "on white"),
    ):  # fmt: skip
        notes = image_files.save_image(Image.new(mode, (8, 8), color), path, "jpg")
        assert note in notes[0]
        assert np.abs(np.array(Image.open(path)).astype(int) - shown).max() <= 1
    with pytest.raises(ValueError, match=r"16384x1 px, but webp .* --format png"):
        image_files.save_image(Image.new("L", (16384, 1)), tmp_path / "a.webp", "webp")
