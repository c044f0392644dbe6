"""Image files in and out: one finder, one reader, one atomic writer.

    python -c "from support import image_files; \
        print(image_files.read_picture('photo.jpg').notes)"

Only known formats and pixel types are read; others are refused with the reason.
"""

import contextlib
import io
import os
import re
import secrets
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageOps,
    PngImagePlugin,
    UnidentifiedImageError,
)

from support.pixels import SCALE

MAX_PIXELS = 89_478_485  # Pillow's default limit against decompression bombs
FORMATS_READ = (  # as Pillow names them; its build may lack the last two
    *("JPEG", "MPO", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "TGA"),
    *("JPEG2000", "AVIF"),
)
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif"),
    *(".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
    *(".jp2", ".j2k", ".j2c", ".jpx", ".jpf", ".avif"),
)
OTHER_SUFFIXES = (  # images that are not read, but named
    *(".heic", ".heif", ".jxl", ".psd", ".exr", ".hdr", ".svg", ".eps", ".ico", ".qoi"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2", ".xcf", ".pcx"),
    *(".sgi", ".avifs"),
)
RESULT_SUFFIX = f"_x{SCALE}"  # upscale.py writes photo_x4.png beside photo.jpg
MAX_NAMED = 3  # files, in a line that sums up many
OUTPUT_LIST = ".srgan-output"  # names the images beside it that this suite wrote
# Those that describe the photograph, not how its pixels are stored.
TIFF_KEPT_TAGS = (270, 271, 272, 305, 306, 315, 316, 33432, 34665, 34853)
EXIF_SIZE_TAGS = (256, 257, 0xA002, 0xA003)  # two pairs of width and height
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
MAX_JPEG_SEGMENT = 65533 - 32  # bytes of EXIF or XMP data, less their headers
OUTPUT_FORMATS = {  # Pillow's name, largest side in px, options for saving
    "png": ("PNG", 2**31 - 1, {}),
    "jpg": ("JPEG", 65500, {"quality": 95}),
    "webp": ("WEBP", 16383, {"quality": 95}),
}


class Picture(NamedTuple):
    """An upright image and what belongs to it.

    `image` has Pillow's mode "L", "RGB" or "I;16"; `notes` list what was dropped.
    """

    image: Image.Image
    alpha: Image.Image | None
    metadata: dict
    notes: list


class UnreadableImageError(OSError):
    """A file that cannot be used; `reason` tells why, without the path."""

    def __init__(self, path, reason):
        super().__init__(f"Cannot read {path}: {reason}.")
        self.reason = reason


def find_images(folder, exclude=()):
    """Lists the image files below a folder, and returns {path: reason} of others.

    Ignores hidden files, folders of `exclude` below `folder`, and what this suite
    wrote, unless the folder holds nothing else.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder {folder}.")
    found, outputs, enlargements, skipped = [], [], [], {}
    visited = {os.path.realpath(path) for path in exclude}
    visited.discard(os.path.realpath(folder))  # the user named it

    def skip(error):
        skipped[Path(error.filename)] = error.strerror

    for parent, folders, names in os.walk(folder, onerror=skip, followlinks=True):
        identity = os.path.realpath(parent)
        if identity in visited:
            folders.clear()
            continue
        visited.add(identity)
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in names if not name.startswith(".")]
        stems = {Path(name).stem for name in names if _is_image_name(name)}
        written = _read_output_list(parent)
        for name in names:
            path = Path(parent, name)
            suffix = path.suffix.lower()
            if suffix in OTHER_SUFFIXES:
                skipped[path] = f"{suffix[1:].upper()} files are not supported"
            elif not _is_image_name(name):
                continue
            elif not path.is_file():
                skipped[path] = "not a regular file, or a broken link"
            elif _is_enlargement(path.stem, stems):
                enlargements.append(str(path))
            elif name in written:
                outputs.append(path)
            else:
                found.append(path)
    if enlargements:
        print(
            "Left out, because it is named like a result of upscale.py: "
            f"{_shorten(enlargements)}. Rename it to use it."
        )
    if not found and not skipped:
        found = outputs
    return sorted(found), skipped


def _shorten(names):
    """Joins names with commas, and only counts those that follow the first few."""
    text = ", ".join(sorted(names)[:MAX_NAMED])
    if len(names) > MAX_NAMED:
        text += f" and {len(names) - MAX_NAMED} more"
    return text


def _is_image_name(name):
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _is_enlargement(stem, stems):
    """Tells whether a file's name is that of another's enlargement by upscale.py."""
    original = stem.removesuffix(RESULT_SUFFIX)
    return original != stem and original in stems


def _read_output_list(folder):
    """Returns the names of the images that this suite wrote into a folder."""
    try:
        return set(os.fsdecode(Path(folder, OUTPUT_LIST).read_bytes()).split("\n"))
    except OSError:
        return set()


def _list_output(path):
    """Lists an image that this suite wrote, so that no command takes it as input."""
    stems = {other.stem for other in path.parent.iterdir() if other != path}
    is_listed = path.name in _read_output_list(path.parent)
    if not _is_image_name(path.name) or is_listed or _is_enlargement(path.stem, stems):
        return
    try:
        with open(path.with_name(OUTPUT_LIST), "ab") as file:
            file.write(os.fsencode(f"{path.name}\n"))
    except OSError as error:
        print(f"Cannot mark {path} as output: {error.strerror}.")


def read_picture(path, max_pixels=MAX_PIXELS):
    """Reads an image file as a `Picture`, or raises `UnreadableImageError`."""
    return _read(path, max_pixels, _take_apart)


def read_size(path):
    """Returns (width, height) from a file's header, perhaps not upright."""
    return _read(path, MAX_PIXELS, lambda image, notes: image.size)


def read_rgb(path):
    """Reads an upright 8-bit RGB Pillow image, transparent parts laid on white."""
    return flatten(read_picture(path))


def flatten(picture):
    """Converts a `Picture` to 8-bit RGB, its transparent parts laid on white."""
    image = to_8_bits(picture.image).convert("RGB")
    return _lay_on_white(image, picture.alpha) if picture.alpha else image


def _lay_on_white(image, alpha):
    return Image.composite(image, Image.new(image.mode, image.size, "white"), alpha)


def to_8_bits(image):
    """Converts a Pillow image of mode "I;16" to "L"; returns others unchanged."""
    if image.mode != "I;16":
        return image
    return Image.fromarray(np.rint(np.asarray(image) / 257.0).astype("uint8"))


def _read(path, max_pixels, work):
    """Opens a file for `work(image, notes)`; any failure names the file and reason."""
    Image.MAX_IMAGE_PIXELS = None  # checked below, for all formats, by name
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        try:
            with _open(path, max_pixels) as image:
                return work(image, [])
        except (ValueError, SyntaxError, UnidentifiedImageError):
            # Pillow refuses a whole PNG because of damaged or large metadata.
            content = path.read_bytes()
            if not content.startswith(PNG_SIGNATURE):
                raise
        note = "its metadata are damaged or exceed Pillow's limits and were dropped"
        with _open(_without_metadata(content), max_pixels) as image:
            return work(image, [note])
    except UnidentifiedImageError as error:
        reason = "not an image, a damaged one, or of a format that this Pillow lacks"
        if path.suffix.lower() in OTHER_SUFFIXES:
            reason = f"{path.suffix[1:].upper()} files are not supported"
        raise UnreadableImageError(path, reason) from error
    except Exception as error:  # damaged files make Pillow raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise UnreadableImageError(path, reason.rstrip(".")) from error


def _open(file, max_pixels):
    Image.init()
    # Pillow judges by content and would start Ghostscript on a PostScript file.
    image = Image.open(file, formats=[f for f in FORMATS_READ if f in Image.OPEN])
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height} px"
        raise ValueError(f"{size} exceed the limit. Pass a larger --max-pixels")
    # Pillow's mode "I" also stands for 16 bits in PPM, but for 32 bits in TIFF.
    is_tiff = image.format == "TIFF"
    is_signed = is_tiff and image.tag_v2.get(339, (1,))[0] not in (1, 4)
    if image.mode == "F" or is_signed or (image.mode == "I" and is_tiff):
        raise ValueError("its pixels are floating-point, signed or 32-bit numbers")
    return image


def _without_metadata(content):
    """Copies a PNG's chunks of pixels, transparency and orientation to memory."""
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position < len(content):
        # A chunk: length, four letters, data, checksum.
        end = position + 12 + int.from_bytes(content[position : position + 4], "big")
        if content[position + 4 : position + 8] in PNG_KEPT_CHUNKS:
            kept.append(content[position:end])
        position = end
    return io.BytesIO(b"".join(kept))


def _take_apart(image, notes):
    """Returns the `Picture` of an opened Pillow image."""
    raw_mode = str(image.tile[0][3]) if image.tile else ""  # for the decoder
    is_deep = re.search(";16[BLN]", raw_mode)
    if image.format == "PPM" and isinstance(image.tile[0][3], tuple):
        is_deep = image.tile[0][3][-1] > 255  # the largest level
    if is_deep and not image.mode.startswith("I"):
        notes.append("16-bit color was read as 8-bit, which is all Pillow can")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append(f"only the first of {image.n_frames} frames was read")
    image.load()
    metadata = _read_metadata(image, notes)
    profile = metadata.pop("icc_profile", None)
    if image.mode in ("CMYK", "LAB"):
        image, profile = _to_srgb(image, profile, notes)
    elif image.mode.startswith("I"):
        image = _read_16_bits(image, notes)
    image = _to_plain_mode(image, raw_mode)
    image.info.clear()  # which Pillow would save again
    alpha = image.getchannel("A") if image.mode.endswith("A") else None
    if alpha is not None:
        image = bleed_colors(image)
    space = b"RGB " if image.mode == "RGB" else b"GRAY"
    if profile and profile[16:20] == space:
        metadata["icc_profile"] = profile
    elif profile:
        notes.append("its ICC profile does not fit its pixels and was dropped")
    return Picture(image, alpha, metadata, notes)


def _read_metadata(image, notes):
    """Applies the EXIF orientation; returns what can be saved with the result."""
    metadata, is_tiff = {}, image.format == "TIFF"
    try:
        Image.Exif().load(image.info.get("exif"))
        ImageOps.exif_transpose(image, in_place=True)
        exif = image.getexif()
        for tag in set(exif).difference(TIFF_KEPT_TAGS) if is_tiff else ():
            del exif[tag]
        if exif.tobytes() and len(exif):
            metadata["exif"] = exif
    except Exception:  # offsets that lead anywhere make Pillow raise almost anything
        image.info.pop("exif", None)
        exif = {}
        notes.append("its EXIF data are damaged and were dropped")
    for key in ("icc_profile", "xmp"):
        if image.info.get(key):
            metadata[key] = image.info[key]
    if image.format == "PNG" and image.text:
        # ImageMagick stores EXIF data and others as text, too.
        others = ("XML:com.adobe.xmp", "Raw profile type")
        text = {k: v for k, v in image.text.items() if not k.startswith(others)}
        metadata["text"] = text
    dpi = tuple(float(value) for value in image.info.get("dpi", ()))
    # Pillow makes up a value if the file has no resolution.
    is_known = image.format not in ("TIFF", "JPEG", "MPO")
    is_known |= is_tiff and 282 in image.tag_v2 and image.tag_v2.get(296) != 1
    is_known |= bool(image.info.get("jfif_unit")) or (not is_tiff and 282 in exif)
    if is_known and len(dpi) == 2 and all(0 < value < 2**16 for value in dpi):
        metadata["dpi"] = dpi
    return metadata


def _to_srgb(image, profile, notes):
    """Converts CMYK by its profile, or Lab, to RGB; returns it and its profile."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        if image.mode == "LAB":
            source = ImageCms.createProfile("LAB")
        elif profile is None:
            return image.convert("RGB"), None
        else:
            source = io.BytesIO(profile)
        image = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
        return image, srgb.tobytes()
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(f"its color profile cannot be used ({error})")
        return image.convert("RGB"), None


def _read_16_bits(image, notes):
    """Returns 16-bit gray as mode "I;16", or as "LA" if one level is transparent."""
    levels = np.asarray(image).astype("float64")
    if image.format == "TIFF":
        levels *= 65535 / (2 ** image.tag_v2.get(258, (16,))[0] - 1)  # 12 bits
        if image.tag_v2.get(262) == 0:  # WhiteIsZero, which Pillow leaves as it is
            levels = 65535 - levels
    gray = Image.fromarray(np.rint(levels).astype("uint16"))
    transparent = image.info.get("transparency")
    if transparent is None:
        return gray
    notes.append("16-bit gray with transparency was read as 8-bit")
    gray = to_8_bits(gray)
    gray.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype("u1")))
    return gray


def _to_plain_mode(image, raw_mode):
    """Converts to one of the modes L, LA, RGB, RGBA and I;16."""
    if image.mode == "I;16":
        return image
    # PNG: Pillow converts pixels to 8 bits, but not the level that is transparent.
    level = image.info.get("transparency")
    if raw_mode in ("L;2", "L;4") and isinstance(level, int):
        image.info["transparency"] = level * {"L;2": 85, "L;4": 17}[raw_mode]
    elif raw_mode == "RGB;16B" and isinstance(level, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in level)
    is_gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return image.convert("LA" if is_gray else "RGBA")
    return image.convert("L" if is_gray else "RGB")


def bleed_colors(image):
    """Fills transparent parts of LA or RGBA with the visible colors around them.

    The network would draw the black or white hidden there into the edges.
    """
    colors, alpha = image.convert(image.mode[:-1]), image.getchannel("A")
    if alpha.getextrema()[0] == 255 or image.size == (1, 1):
        return colors
    coarse = image.reduce(2)  # weights colors by their alpha
    coarse.putalpha(coarse.getchannel("A").point(lambda level: min(255, 4 * level)))
    filled = bleed_colors(coarse)
    size = tuple(2 * side for side in filled.size)
    filled = filled.resize(size, Image.Resampling.NEAREST).crop((0, 0, *image.size))
    filled.paste(colors, mask=alpha)
    return filled


@contextlib.contextmanager
def atomic_path(path, is_output=True):
    """Yields a temporary path beside `path`, and renames it if the block succeeds.

    An image is then listed as output, unless it is meant as input.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
        if is_output:
            _list_output(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Writes text in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def check_size(size, file_format):
    """Raises `ValueError` if (width, height) is too large for a file format."""
    limit = OUTPUT_FORMATS[file_format][1]
    if max(size) > limit:
        size = f"{size[0]}x{size[1]} px"
        raise ValueError(f"{size}, but {file_format} cannot hold it. Pass --format png")


def save_image(image, path, file_format="png", metadata=None):
    """Writes a Pillow image or uint8 array; returns what the format cannot hold."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    check_size(image.size, file_format)
    name, _, options = OUTPUT_FORMATS[file_format]
    notes = []
    if image.mode == "I;16" and name != "PNG":
        image = to_8_bits(image)
        notes.append(f"{file_format} has 8 bits, not 16")
    if image.mode.endswith("A") and name == "JPEG":
        image = _lay_on_white(image.convert(image.mode[:-1]), image.getchannel("A"))
        notes.append("jpg has no transparency: laid on white")
    options = options | _metadata_options(image, name, dict(metadata or {}), notes)
    with atomic_path(path) as temporary:
        image.save(temporary, format=name, **options)
    return notes


def _metadata_options(image, name, metadata, notes):
    """Returns Pillow's options that save `metadata`; notes what does not fit."""
    if exif := metadata.pop("exif", None):
        has_details = ExifTags.IFD.Exif in exif
        for part in (exif, exif.get_ifd(ExifTags.IFD.Exif) if has_details else {}):
            for tag, side in zip(EXIF_SIZE_TAGS, 2 * image.size, strict=True):
                if tag in part:
                    part[tag] = side
        metadata["exif"] = exif.tobytes()
    is_gray = image.mode in ("L", "LA", "I;16")
    if name == "WEBP" and is_gray and metadata.pop("icc_profile", None):
        notes.append("webp stores gray as RGB: ICC profile dropped")
    if name == "WEBP" and metadata.pop("dpi", None):
        notes.append("resolution dropped, which webp cannot hold")
    for key in ("exif", "xmp") if name == "JPEG" else ():
        if len(metadata.get(key, b"")) > MAX_JPEG_SEGMENT:
            del metadata[key]
            notes.append(f"{key.upper()} data are too large for jpg and were dropped")
    text = metadata.pop("text", None)
    if name == "PNG":
        info = PngImagePlugin.PngInfo()
        for key, value in (text or {}).items():
            info.add_itxt(key, value)
        if xmp := metadata.pop("xmp", None):
            info.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        metadata["pnginfo"] = info
    elif text:
        notes.append("text dropped, which only png keeps")
    return metadata
