"""Tests of metadata.py: what is true is kept or named, what is not true is not kept."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from test_image_files import (
    DETAILS,
    GPS,
    MAKE,
    NOISE,
    ORIENTATION,
    PIXEL_HEIGHT,
    PIXEL_WIDTH,
    TAKEN,
    WIDTH,
    chunk,
    make_exif,
    write_png,
)

from support import image_files
from support.image_files import read_picture, save_image

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
IPTC = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0" + struct.pack(">I", 4) + b"\x1c\x02x\0"


def add_segments(path, *segments):
    """Adds segments, pairs of a number and its content, to a JPEG file."""
    content = path.read_bytes()
    added = b"".join(
        struct.pack(">BBH", 0xFF, number, len(data) + 2) + data
        for number, data in segments
    )
    path.write_bytes(content[:2] + added + content[2:])


def save_all(picture, folder):
    """Yields the format, its `Picture` and notes for each format of results."""
    for suffix in ("png", "jpg", "webp"):
        path = folder / f"result.{suffix}"
        notes = save_image(picture.image, path, suffix, picture.metadata)
        yield suffix, read_picture(path), str(notes)


@pytest.mark.parametrize("suffix", ["jpg", "gif", "jp2"])
@pytest.mark.parametrize("comment", ["caf\u00e9".encode(), b"caf\xe9"])
def test_comments(tmp_path, suffix, comment):
    """They were dropped without a word."""
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path, comment=comment)
    picture = read_picture(path)
    assert picture.metadata["comment"].decode() == "caf\u00e9"
    for file_format, result, notes in save_all(picture, tmp_path):
        is_kept = result.metadata.get("comment") == picture.metadata["comment"]
        assert is_kept == (file_format != "webp")
        assert ("comment dropped" in notes) != is_kept


def test_color_chunks(tmp_path):
    """An HDR image lost its cICP, and with it what its levels mean; so did gAMA's."""
    chunks = {"gAMA": struct.pack(">I", 100_000), "cICP": bytes((9, 16, 0, 1))}
    before = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    picture = read_picture(write_png(tmp_path / "a.png", NOISE, before=before))
    assert (picture.metadata, picture.notes) == (chunks, [])
    for file_format, result, notes in save_all(picture, tmp_path):
        assert result.metadata == (chunks if file_format == "png" else {})
        for name in chunks:
            assert (f"{name} dropped" in notes) == (file_format != "png")


def test_what_cannot_be_kept_is_named(tmp_path):
    """IPTC captions, content credentials and others were dropped without a word."""
    image, path = Image.fromarray(NOISE), tmp_path / "a"
    image.save(path, "JPEG")
    add_segments(path, (0xED, IPTC), (0xEB, b"JP credentials"))
    assert read_picture(path).notes == ["dropped: IPTC and Photoshop data, APP11"]
    image.save(path, "TIFF", tiffinfo={33723: b"\x1c\x02x\0", 33550: (1.0, 1.0, 0.0)})
    [note] = read_picture(path).notes
    assert "IPTC" in note
    assert "33550" in note
    image.save(path, "TGA", id_section=b"by me")
    assert read_picture(path).notes == ["dropped: TGA comment"]
    image.save(path, "GIF")
    content = path.read_bytes()
    start = 13 + 3 * 2 ** ((content[10] & 7) + 1)  # after the palette
    xmp = b"!\xff\x0bXMP DataXMP\x04<x/>\0"
    path.write_bytes(content[:start] + xmp + content[start:])
    assert read_picture(path).notes == ["dropped: XMP"]
    text = chunk(b"tEXt", b"Raw profile type iptc\0...")
    others = chunk(b"bKGD", bytes(6)) + chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0))
    write_png(path, NOISE, before=others, after=chunk(b"tIME", bytes(7)) + text)
    [note] = read_picture(path).notes
    for name in ("bKGD", "tIME", "pixel aspect ratio", "Raw profile type iptc"):
        assert name in note
    write_png(path, NOISE, before=chunk(b"iCCP", b"profile\0\0damaged"))
    assert read_picture(path).notes == ["its ICC profile is damaged and was dropped"]


def test_what_is_no_longer_true_is_not_kept(tmp_path):
    """Places and sizes in pixels of the input were written with a larger image."""
    exif = Image.Exif()
    exif[WIDTH], exif[258], exif[MAKE] = 8, 8, "Phone"
    exif[DETAILS] = {0x9214: (4, 3), 0xA20E: 300.0, TAKEN: "2020:01:01 00:00:00"}
    xmp = b"""<x:xmpmeta xmlns:x='adobe:ns:meta/'><r tiff:ImageWidth='8' dc:title='Me'
        GPano:FullPanoWidthPixels = "9"><exif:PixelXDimension>8</exif:PixelXDimension>
        <tiff:Orientation>6</tiff:Orientation><dc:rights>mine</dc:rights></r>"""
    Image.fromarray(NOISE).save(tmp_path / "a.webp", exif=exif, xmp=xmp)
    for _, result, notes in save_all(read_picture(tmp_path / "a.webp"), tmp_path):
        assert notes == "[]"
        assert result.image.size == (6, 8)
        assert dict(result.metadata["exif"]).keys() == {MAKE, DETAILS}
        assert result.metadata["exif"].get_ifd(DETAILS).keys() == {TAKEN}
        assert b"dc:title='Me'" in result.metadata["xmp"]
        assert b"<dc:rights>mine</dc:rights>" in result.metadata["xmp"]
        for name in (b"tiff", b"GPano", b"exif"):
            assert name not in result.metadata["xmp"]


@pytest.mark.parametrize(("key", "value"), [
    ("icc_profile", bytes(16) + b"RGB " + bytes(2_000_000)),
    ("xmp", "<x:xmpmeta/>".encode("utf-16")), ("xmp", b"\xff"), ("dpi", (0.2, 0.2)),
    ("dpi", (3e5, 3e5)), ("dpi", (float("inf"), 1)), ("comment", 70_000 * b"x"),
    ("text", {"\u5199": "no Latin-1"}), ("text", {"a": "text"}),
])  # fmt: skip
def test_results_always_open_again(tmp_path, key, value):
    """A profile of 2 MB made a PNG file that no program of Pillow's could open."""
    picture = read_picture(write_png(tmp_path / "a.png", NOISE))
    picture.metadata[key] = value
    for _, result, notes in save_all(picture, tmp_path):
        assert (key in result.metadata) != ("dropped" in notes)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "avif"])
@pytest.mark.parametrize("file_format", ["png", "jpg", "webp"])
def test_exif_and_xmp_survive(tmp_path, suffix, file_format):
    """EXIF data of TIFF files were lost; sizes in them stayed those of the input."""
    exif, options, path = Image.Exif(), {"xmp": XMP}, tmp_path / f"a.{suffix}"
    exif.load(make_exif(6))
    if suffix == "tif":
        exif[700] = XMP
    if suffix == "png":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    Image.fromarray(NOISE).save(path, exif=exif.tobytes(), **options)
    picture = read_picture(path)
    large, path = picture.image.resize((24, 32)), tmp_path / f"result.{file_format}"
    assert image_files.save_image(large, path, file_format, picture.metadata) == []
    with Image.open(path) as result:
        assert result.info["xmp"] == XMP
        exif = result.getexif()
    assert (exif[MAKE], exif.get(ORIENTATION, 1)) == ("Phone", 1)
    details = {PIXEL_WIDTH: 24, PIXEL_HEIGHT: 32, TAKEN: "2020:01:01 00:00:00"}
    assert (exif.get_ifd(DETAILS), exif.get_ifd(GPS)) == (details, {1: "N"})
    assert exif.get(WIDTH, 24) == 24


def test_png_text_survives(tmp_path):
    """Titles and authors were dropped; EXIF data stored as text turned the result."""
    raw = b"\nexif\n%8d\n%s\n" % (len(make_exif(6)), make_exif(6).hex().encode())
    profile = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))
    before = chunk(b"tEXt", b"By\0me") + profile
    path = write_png(tmp_path / "a.png", NOISE, before=before)
    picture = read_picture(path)
    assert picture.image.size == (6, 8)
    assert "text" in str(image_files.save_image(NOISE, path, "jpg", picture.metadata))
    assert image_files.save_image(NOISE, path, "png", picture.metadata) == []
    assert read_picture(path).metadata["text"] == {"By": "me"}


def test_resolution(tmp_path):
    """Files without a resolution got one of 1 or 72 dpi; WebP lost 300 silently."""
    image, path = Image.fromarray(NOISE), tmp_path / "a"
    for file_format, options in (("TIFF", {}), ("JPEG", {"exif": make_exif(1)})):
        image.save(path, file_format, **options)
        assert "dpi" not in read_picture(path).metadata
    image.save(path, "TIFF", dpi=(300, 300))
    metadata = read_picture(path).metadata
    for suffix in ("png", "jpg", "webp"):
        notes = image_files.save_image(image, path, suffix, metadata)
        kept = read_picture(path).metadata.get("dpi", (0, 0))
        assert kept == pytest.approx((300, 300), abs=0.1) or "resolution" in str(notes)


@pytest.mark.parametrize("length", [65_400, 65_500, 65_533, 70_000])
def test_too_much_for_jpeg(tmp_path, length):
    """EXIF data of 70 KB failed after all the work, in Pillow's words."""
    exif = Image.Exif()
    exif[0x010E] = length * "x"
    for suffix in ("jpg", "png", "webp"):
        path, metadata = tmp_path / f"a.{suffix}", {"exif": exif, "xmp": length * b"x"}
        notes = image_files.save_image(Image.fromarray(NOISE), path, suffix, metadata)
        kept = read_picture(path).metadata
        for key in metadata:
            assert (key in kept) != (f"{key.upper()} data dropped" in str(notes))
            assert key in kept or suffix == "jpg"


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_is_dropped(tmp_path, file_format):
    """A good picture was refused for what nobody sees of it."""
    Image.fromarray(NOISE).save(tmp_path / "a", file_format, exif=b"Exif\0\0damaged")
    assert "EXIF data are damaged" in read_picture(tmp_path / "a").notes[0]


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("space", ["GRAY", "RGB ", "CMYK", "Lab "])
def test_profiles_fit_pixels(tmp_path, mode, space):
    """RGB pixels were stored with a GRAY or Lab profile, which viewers reject."""
    image = Image.fromarray(NOISE).convert(mode.replace("I;16", "L")).convert(mode)
    profile = bytes(16) + space.encode() + bytes(108)
    image.save(tmp_path / "a", "PNG", icc_profile=profile)
    picture = read_picture(tmp_path / "a")
    fits = space == ("RGB " if picture.image.mode == "RGB" else "GRAY")
    assert ("does not fit" in str(picture.notes)) != fits
    for suffix in ("png", "jpg", "webp"):
        result = Image.fromarray(np.array(picture.image))
        notes = image_files.save_image(result, tmp_path / "a", suffix, picture.metadata)
        is_lost = fits and suffix == "webp" and space == "GRAY"
        with Image.open(tmp_path / "a") as result:
            assert ("icc_profile" in result.info) == (fits and not is_lost)
        assert ("ICC profile dropped" in str(notes)) == is_lost
