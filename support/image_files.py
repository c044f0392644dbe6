"""Image files in and out: one finder, one reader, one atomic writer.

    python -c "from support import image_files; \
        print(image_files.read_picture('photo.jpg').notes)"

Only known formats and pixel types are read; others are refused with the reason.
"""

import contextlib
import io
import itertools
import os
import re
import secrets
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from support.metadata import NAMES, read_metadata, saving_options
from support.pixels import SCALE

MAX_PIXELS = 89_478_485  # Pillow's default limit against decompression bombs
FORMATS_READ = {  # as Pillow names them; its build may lack the last two
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf"),
    "AVIF": (".avif",),
}
IMAGE_SUFFIXES = tuple(itertools.chain(*FORMATS_READ.values()))
# Images that are not read, but named.
CAMERA_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2")
EDITOR_SUFFIXES = (".psd", ".psb", ".xcf", ".svg", ".eps", ".exr", ".hdr", ".pfm")
FURTHER_SUFFIXES = (".heic", ".heif", ".hif", ".jxl", ".avifs", ".ico", ".qoi", ".dds")
RARE_SUFFIXES = (".pcx", ".sgi", ".pef", ".srw")
OTHER_SUFFIXES = CAMERA_SUFFIXES + EDITOR_SUFFIXES + FURTHER_SUFFIXES + RARE_SUFFIXES
RESULT_SUFFIX = f"_x{SCALE}"  # upscale.py writes photo_x4.png beside photo.jpg
MAX_NAMED = 3  # files, in a line that sums up many
OUTPUT_LIST = ".srgan-output"  # names the images beside it that this suite wrote
OUTPUT_FORMATS = {  # Pillow's name, largest side in px, options for saving
    "png": ("PNG", 2**31 - 1, {}),
    "jpg": ("JPEG", 65500, {"quality": 95}),
    "webp": ("WEBP", 16383, {"quality": 95}),
}
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339  # tags
LEVEL_STEPS = {"L;2": 85, "L;4": 17}  # of PNG's 2 and 4 bits in Pillow's 8
_limit_lock = threading.Lock()


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
    with _opened(path) as file:
        return _to_picture(_open_image(file, max_pixels), file)


def read_size(path):
    """Returns (width, height) from a file's header, perhaps not upright."""
    with _opened(path) as file:
        return _open_image(file, MAX_PIXELS).size


def read_rgb(path):
    """Reads an upright 8-bit RGB Pillow image, transparent parts laid on white."""
    return flatten(read_picture(path))


def flatten(picture):
    """Converts a `Picture` to 8-bit RGB, its transparent parts laid on white."""
    image = to_8_bits(picture.image).convert("RGB")
    if picture.alpha is None:
        return image
    return composite_on_white(image, picture.alpha)


def composite_on_white(image, alpha):
    """Lays a Pillow image of mode "L" or "RGB" on white."""
    return Image.composite(image, Image.new(image.mode, image.size, "white"), alpha)


def to_8_bits(image):
    """Converts a Pillow image of mode "I;16" to "L"; returns others unchanged."""
    if image.mode != "I;16":
        return image
    return Image.fromarray(np.rint(np.asarray(image) / 257.0).astype("uint8"))


@contextlib.contextmanager
def _opened(path):
    """Opens a file; any failure to read it names the file and the reason."""
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        with open(path, "rb") as file:
            yield file
    except UnidentifiedImageError as error:
        reason = "not an image, a damaged one, or of a format that this Pillow lacks"
        if path.suffix.lower() in OTHER_SUFFIXES:
            reason = f"{path.suffix[1:].upper()} files are not supported"
        raise UnreadableImageError(path, reason) from error
    except Exception as error:  # damaged files make Pillow raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        if "MAX_TEXT" in reason:
            reason = "its text or color profile is larger than Pillow accepts"
        raise UnreadableImageError(path, reason.rstrip(".")) from error


def _open_image(file, max_pixels):
    """Opens a Pillow image, and refuses what Pillow would not read right."""
    Image.init()
    # Pillow judges by content and would start Ghostscript on a PostScript file.
    formats = [name for name in FORMATS_READ if name in Image.OPEN]
    with _without_pillow_limit():
        image = Image.open(file, formats=formats)
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height} px"
        raise ValueError(f"{size} exceed the limit. Pass a larger --max-pixels")
    kind = _unsupported_kind(image)
    if kind:
        raise ValueError(
            f"its pixels are {kind}, which is not supported. Convert it to 8 bits"
        )
    return image


@contextlib.contextmanager
def _without_pillow_limit():
    """Lets Pillow open images of any size, since `_open_image` checks it by name."""
    with _limit_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _unsupported_kind(image):
    """Names the kind of pixels that Pillow alone would read wrong, or `None`."""
    if image.mode == "LAB":
        return "CIE Lab colors"
    if image.mode == "F":
        return "floating-point numbers"
    if image.format == "PNG" and "transparency" in image.info:
        return "16-bit numbers, one transparent" if _is_deep(image) else None
    if image.format != "TIFF":
        return None
    bits = image.tag_v2.get(TIFF_BITS, (1,))[0]
    if bits == 32 or image.tag_v2.get(TIFF_SAMPLE_FORMAT, (1,))[0] not in (1, 4):
        return "floating-point, signed or 32-bit numbers"
    if bits not in (1, 2, 4, 8, 16):
        return f"{bits}-bit numbers"
    if bits == 16 and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0:
        return "16-bit numbers whose zero is white"
    return None


def _is_deep(image):
    """Returns whether an opened file stores more than 8 bits per value."""
    arguments = image.tile[0][3] if image.tile else ""  # for Pillow's decoder
    if image.format == "PPM" and isinstance(arguments, tuple):
        return arguments[-1] > 255  # the largest level
    return bool(re.search(";16[BLN]", str(arguments)))


def _to_picture(image, file):
    """Returns the `Picture` of an opened Pillow image and its file."""
    notes = []
    raw_mode = image.tile[0][3] if image.tile else ""
    if _is_deep(image) and not image.mode.startswith("I"):
        notes.append("16-bit color was read as 8-bit, which is all Pillow can")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append(f"only the first of {image.n_frames} frames was read")
    if image.width * image.height <= MAX_PIXELS:
        image.load()  # in several threads at once
    else:
        with _without_pillow_limit():
            image.load()
    metadata = read_metadata(image, file, notes)
    profile = metadata.pop("icc_profile", None)
    if image.mode == "CMYK":
        image, profile = _to_srgb(image, profile, notes)
    if raw_mode in LEVEL_STEPS and "transparency" in image.info:
        image.info["transparency"] *= LEVEL_STEPS[raw_mode]
    image = _to_plain_mode(image)
    image.info.clear()  # which Pillow would save again
    alpha = None
    if image.mode.endswith("A"):
        alpha = image.getchannel("A")
        image = bleed_colors(image)
    space = b"RGB " if image.mode == "RGB" else b"GRAY"
    if profile and profile[16:20] == space:
        metadata["icc_profile"] = profile
    elif profile:
        notes.append("its ICC profile does not fit its pixels and was dropped")
    return Picture(image, alpha, metadata, notes)


def _to_srgb(image, profile, notes):
    """Converts CMYK, by its profile if it has one; returns RGB and its profile."""
    if profile is None:
        return image.convert("RGB"), None
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    try:
        source = io.BytesIO(profile)
        image = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        notes.append(f"its color profile cannot be used ({error})")
        return image.convert("RGB"), None
    return image, srgb.tobytes()


def _to_plain_mode(image):
    """Converts to one of the modes L, LA, RGB, RGBA and I;16."""
    if image.mode.startswith("I"):
        return Image.fromarray(np.asarray(image).astype("uint16"))
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return image.convert(f"{mode}A" if image.has_transparency_data else mode)


def bleed_colors(image):
    """Fills transparent parts of LA or RGBA with the visible colors around them.

    The network would draw the black or white hidden there into the edges.
    """
    colors = image.convert(image.mode[:-1])
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255 or image.size == (1, 1):
        return colors
    coarse = image.reduce(2)  # weights colors by their alpha
    coarse.putalpha(coarse.getchannel("A").point(lambda level: min(255, 4 * level)))
    box = (0, 0, image.width / 2, image.height / 2)
    nearest = Image.Resampling.NEAREST
    filled = bleed_colors(coarse).resize(image.size, nearest, box)
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
        image = composite_on_white(
            image.convert(image.mode[:-1]), image.getchannel("A")
        )
        notes.append("jpg has no transparency: laid on white")
    kept = {}
    for key, value in (metadata or {}).items():
        if _can_hold(name, image.mode, key, value):
            kept[key] = value
        else:
            label = NAMES.get(key, key)
            notes.append(f"{label} dropped, which {file_format} cannot hold")
    options = options | saving_options(kept, name, image.size)
    with atomic_path(path) as temporary:
        image.save(temporary, format=name, **options)
    return notes


def _can_hold(name, mode, key, value):
    """Returns whether one pixel, saved with a piece of metadata, is read with it."""
    file = io.BytesIO()
    try:
        options = saving_options({key: value}, name, (1, 1))
        Image.new(mode, (1, 1)).save(file, name, **options)
        metadata = _to_picture(_open_image(file, MAX_PIXELS), file).metadata
    except Exception:  # limits of formats make Pillow raise almost anything
        return False
    if isinstance(value, (bytes, str, dict)):
        return metadata.get(key) == value
    return key in metadata
