"""Reads images of any kind as the generator takes them, and saves the results.

    python -c "import pictures; print(pictures.read_picture('photo.jpg').mode)"

Grey stays grey, 16-bit grey stays 16-bit, transparency stays; the EXIF orientation is
applied, ICC profile, EXIF data and resolution (dpi) are kept. Palettes become RGB; CMYK
becomes sRGB, by its ICC profile where it has one. Pillow reads 16-bit colour as 8-bit.
"""

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

from data_loader import IMAGE_FORMATS, UnreadableImageError, to_float

MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # 89,478,485: Pillow's guard against bombs
JPEG_QUALITY = 95


class Format(NamedTuple):
    """Pillow's name of a file format, px a side at most, and options to save with."""

    name: str
    max_side: int
    options: dict


FORMATS = {
    "png": Format("PNG", 2**31 - 1, {}),
    "jpg": Format("JPEG", 65500, {"quality": JPEG_QUALITY}),
    "webp": Format("WEBP", 16383, {"quality": JPEG_QUALITY}),
}


class Picture(NamedTuple):
    """What is enlarged, and what is kept beside it.

    `lr` is `(h, w, 3)`, uint8 or float32 in [-1, 1]; `mode` is that of the result
    without alpha: "L", "RGB" or "I;16"; `alpha` is a Pillow image or `None`;
    `metadata` are arguments for saving; `notes` say what could not be kept.
    """

    lr: np.ndarray
    mode: str
    alpha: Image.Image | None
    metadata: dict
    notes: list


# Reading ---------------------------------------------------------------------


def read_picture(path, max_pixels=MAX_PIXELS):
    """Reads an image upright, with what belongs to it.

    Args:
        path: str or `Path` of the file.
        max_pixels: int, larger images are refused unread.

    Returns:
        `Picture`.

    Raises:
        UnreadableImageError: an `OSError`; if it is no image, a damaged one, too
            large, or of a kind that cannot be enlarged.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ValueError("not a file, or a broken link")
        with (
            _bomb_guard(max_pixels),
            Image.open(path, formats=IMAGE_FORMATS) as image,
        ):
            return _take_apart(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = (
            f"it has more than {max_pixels:,} pixels, as files made to exhaust memory "
            "have. If you trust it, pass a larger --max-pixels"
        )
        raise UnreadableImageError(path, reason) from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImageError(path, "not an image, or a damaged one") from error
    except Exception as error:  # damaged files make Pillow raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise UnreadableImageError(path, reason.rstrip(".")) from error


@contextlib.contextmanager
def _bomb_guard(max_pixels):
    """Sets Pillow's limit, and turns its warning at the limit into an error."""
    usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = usual


def _take_apart(image):
    """Returns the `Picture` of an opened Pillow image."""
    notes = []
    if _has_deep_colour(image):
        notes.append("16-bit colour was read as 8-bit, which is all Pillow can")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        notes.append(f"only the first of {image.n_frames} frames was enlarged")
    image.load()
    try:
        Image.Exif().load(image.info.get("exif"))
    except Exception:  # a tangle of offsets: damaged ones raise almost anything
        del image.info["exif"]
        notes.append("its EXIF data are damaged and were dropped")
    ImageOps.exif_transpose(image, in_place=True)
    metadata = {
        key: image.info[key] for key in ("icc_profile", "exif") if image.info.get(key)
    }
    dpi = tuple(float(value) for value in image.info.get("dpi", ()))
    if len(dpi) == 2 and all(0 < value < 2**16 for value in dpi):
        metadata["dpi"] = dpi
    if image.mode == "CMYK":
        image, note = _from_cmyk(image, metadata.pop("icc_profile", None))
        notes += note
        if image.info.get("icc_profile"):
            metadata["icc_profile"] = image.info["icc_profile"]
    image = _to_plain_mode(image)
    if image.mode == "I;16":
        grey = np.asarray(image).astype("float32") / 32767.5 - 1  # -> [-1, 1]
        return Picture(_as_rgb(grey), "I;16", None, metadata, notes)
    alpha = image.getchannel("A") if image.mode.endswith("A") else None
    mode = image.mode.removesuffix("A")
    colours = np.asarray(image.convert(mode))
    if alpha is not None and alpha.getextrema()[0] < 255:
        shares = np.asarray(alpha, "float32") / 255
        colours = to_float(bleed_colours(colours, shares))
    return Picture(_as_rgb(colours), mode, alpha, metadata, notes)


def _has_deep_colour(image):
    """Tells, by what the decoder is told, whether Pillow will cut 16 bits to 8."""
    if not image.tile or image.mode.startswith("I"):
        return False
    codec, _, _, options = image.tile[0]
    if codec.startswith("ppm"):
        return options[-1] > 255  # the largest level
    return ";16" in str(options)


def _as_rgb(array):
    """Shows a grey (h, w) array as (h, w, 3) without copying it."""
    if array.ndim == 3:
        return array
    return np.broadcast_to(array[..., np.newaxis], (*array.shape, 3))


def _to_plain_mode(image):
    """Converts to one of the modes L, LA, RGB, RGBA and I;16."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers. Save it with 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError("its grey levels do not fit 16 bits. Save it with 16 bits")
        return Image.fromarray(levels.astype("uint16"))
    is_grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return image.convert("LA" if is_grey else "RGBA")
    return image.convert("L" if is_grey else "RGB")


def _from_cmyk(image, profile):
    """Returns an RGB image and a list of notes."""
    if profile is None:
        return image.convert("RGB"), []
    try:
        srgb = ImageCms.createProfile("sRGB")
        source = io.BytesIO(profile)
        return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB"), []
    except (ImageCms.PyCMSError, OSError) as error:
        image = image.convert("RGB")
        image.info.pop("icc_profile", None)
        return image, [f"its CMYK profile is of no use ({error})"]


def bleed_colours(colours, alpha):
    """Lets visible colours run into transparent pixels, whose own mean nothing.

    Without this, whatever lies hidden there, mostly black or white, would be drawn
    into the edges: dark or bright fringes. Averages of 2x2 pixels, weighted by alpha,
    are made until one is left, and fill the next finer level where it is transparent.

    Args:
        colours: `(h, w)` or `(h, w, channels)` array of straight colours.
        alpha: `(h, w)` float32 array in [0, 1].

    Returns:
        A float32 array like `colours`, equal to it where `alpha` is 1.
    """
    colours = np.asarray(colours, "float32")
    height, width = alpha.shape
    if height * width == 1 or alpha.min() == 1:
        return colours
    weights = alpha.reshape(height, width, *[1] * (colours.ndim - 2))
    total = _add_quads(weights)
    means = _add_quads(colours * weights) / np.maximum(total, 1e-6)
    coverage = np.minimum(total, 1).reshape(total.shape[:2])
    coarse = bleed_colours(means, coverage)
    fill = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return fill + weights * (colours - fill)


def _add_quads(array):
    """Adds up 2x2 pixels: `(h, w, ...)` -> `(ceil(h / 2), ceil(w / 2), ...)`."""
    rows = np.add.reduceat(array, np.arange(0, array.shape[0], 2), axis=0)
    return np.add.reduceat(rows, np.arange(0, array.shape[1], 2), axis=1)


# Saving ---------------------------------------------------------------------


def fit_format(image, file_format):
    """Converts an image to what a file format can hold.

    Args:
        image: Pillow image of `enlarge_picture`.
        file_format: str, a key of `FORMATS`.

    Returns:
        `(image, notes)`, notes a list of str that say what was lost.
    """
    if image.mode == "I;16" and file_format != "png":
        levels = np.rint(np.asarray(image) / 257.0).astype("uint8")
        return Image.fromarray(levels), [f"{file_format} has 8 bits, not 16"]
    if image.mode.endswith("A") and file_format == "jpg":
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        mode = image.mode.removesuffix("A")
        return white.convert(mode), ["jpg has no transparency: laid on white"]
    return image, []


def save_image(image, path, file_format, metadata):
    """Writes an image, whole or not at all.

    Args:
        image: Pillow image.
        path: `Path`; folders are made.
        file_format: str, a key of `FORMATS`.
        metadata: dict of further arguments for Pillow's `save`.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name, _, options = FORMATS[file_format]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(temporary, format=name, **options, **metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
