"""Enlarges anyone's images four times: files, or folders of them.

    python upscale.py photo.jpg
    python upscale.py holiday/ logo.png --output enlarged/

Writes `photo_x4.png` beside `photo.jpg`, or below `--output`, where the structure of a
folder is kept. Nothing is overwritten without `--overwrite`, an input never. Any size
fits into memory (`tiling.py`).

Grey stays grey, 16-bit grey stays 16-bit in PNG, transparency stays; the EXIF
orientation is applied, ICC profile, EXIF data and resolution (dpi) are carried over.
Palettes become RGB; CMYK becomes sRGB, by its ICC profile where it has one. Pillow
reads 16-bit colour as 8-bit: it is enlarged as such, and said so.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

import checkpoints
from data_loader import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    SCALE,
    UnreadableImageError,
    to_float,
    to_uint8,
)
from networks import build_generator
from quiet import keras
from tiling import enlarge

MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # 89,478,485: Pillow's guard against bombs
JPEG_QUALITY = 95
LUMA = np.array([0.299, 0.587, 0.114], "float32")  # ITU-R BT.601, as Pillow's "L"
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
TRAINED_FOLDERS = ("weights/training_checkpoints", "weights/pre_training_checkpoints")
SHIPPED_FOLDER = Path(__file__).parent / "weights" / "pretrained"


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


class Job(NamedTuple):
    """An image file and the file to write."""

    source: Path
    target: Path


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


class Counts(NamedTuple):
    """Images of a run by what became of them, and the pixels written."""

    done: int
    skipped: int
    failed: int
    num_pixels: int


# Finding ---------------------------------------------------------------------


def find_jobs(inputs, output, file_format):
    """Lists the images to enlarge, and where each result goes.

    Folders are searched recursively, past hidden files. A file found there that has
    the name of another one's result is one, from an earlier run, and left out:
    it would be enlarged sixteen times by now. Files named one by one always count.

    Args:
        inputs: list of paths of files and folders.
        output: `Path` of the folder for results; `None` puts them beside the inputs.
        file_format: str, a key of `FORMATS`.

    Returns:
        `(jobs, earlier)`, lists of `Job` and of the paths that were left out.

    Raises:
        FileNotFoundError: if an input does not exist.
        ValueError: if a folder holds no image.
    """
    named, found = {}, {}
    for path in map(Path, inputs):
        if path.is_dir():
            sources, folder, jobs = _images_below(path), path, found
        elif path.exists():
            sources, folder, jobs = [path], path.parent, named
        else:
            raise FileNotFoundError(
                f"Expected an image or a folder of images, but there is no {path}. "
                "Check its name."
            )
        for source in sources:
            name = source.relative_to(folder)
            target = (output or folder) / name.with_name(
                f"{name.stem}_x{SCALE}.{file_format}"
            )
            jobs.setdefault(source.resolve(), Job(source, target))
    targets = {
        job.target.with_suffix("").resolve()
        for job in (*named.values(), *found.values())
    }
    earlier = [
        path
        for path in found.keys() - named.keys()
        if path.with_suffix("") in targets and path.suffix[1:] in FORMATS
    ]
    for path in earlier:
        del found[path]
    return list((found | named).values()), sorted(earlier)


def _images_below(folder):
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    )
    if not paths:
        raise ValueError(
            f"Expected images in the folder {folder}, found none "
            f"({' '.join(IMAGE_SUFFIXES)}). Name another folder."
        )
    return paths


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


# Enlarging -------------------------------------------------------------------


def enlarge_picture(generator, picture, tile=None, progress=None, note=print):
    """Enlarges a picture's colours by the network, its alpha by bicubic filtering.

    Args:
        generator: `keras.Model` of `build_generator`.
        picture: `Picture`.
        tile: int >= 1, LR px, or `None`; as for `tiling.enlarge`.
        progress: callable of (LR pixels done, LR pixels in all), or `None`.
        note: callable of one str, told when memory was short.

    Returns:
        A Pillow image of mode L, LA, RGB, RGBA or I;16, four times as large.

    Raises:
        MemoryError: if the smallest tile needs too much.
    """
    encode = {
        "RGB": to_uint8,
        "L": lambda sr: to_uint8(sr @ LUMA),
        "I;16": lambda sr: _to_uint16(sr @ LUMA),
    }[picture.mode]
    image = Image.fromarray(
        enlarge(generator, picture.lr, tile, encode, progress, note)
    )
    if picture.alpha is not None:
        image.putalpha(picture.alpha.resize(image.size, Image.Resampling.BICUBIC))
    return image


def _to_uint16(grey):
    return np.clip(np.rint((grey + 1) * 32767.5), 0, 65535).astype("uint16")


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


# Weights ---------------------------------------------------------------------


def default_weights():
    """Finds the weights to use if none are named.

    Returns:
        `Path`: the first there is of what adversarial training saved, what
        pre-training saved, and the weights that are shipped.

    Raises:
        FileNotFoundError: if there are none.
    """
    for folder in map(Path, TRAINED_FOLDERS):
        is_ours = checkpoints.newest_step(folder) is not None
        if is_ours or checkpoints.find_tensorflow_checkpoint(folder) is not None:
            return folder
    shipped = sorted(SHIPPED_FOLDER.glob("*.weights.h5"))
    if shipped:
        return shipped[0]
    raise FileNotFoundError(
        f"Expected weights in {', '.join(TRAINED_FOLDERS)} or {SHIPPED_FOLDER}, found "
        "none. Train with: python srgan.py, or name a file by --weights."
    )


def load_generator(weights=None, precision="float32"):
    """Builds the generator and loads its weights.

    Args:
        weights: path as for `checkpoints.load_generator_weights`; `None` for
            `default_weights()`.
        precision: str, Keras dtype policy.

    Returns:
        `(generator, path)`, `path` being what was read.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if they are damaged or of another network.
    """
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        generator = build_generator()
    finally:
        keras.config.set_dtype_policy(usual)
    path = checkpoints.load_generator_weights(generator, weights or default_weights())
    return generator, path


# Running ---------------------------------------------------------------------


class Progress:
    """Shows how far a run is: a line redrawn on a terminal, nothing elsewhere.

    Args:
        num_images: int, images of the run.
        stream: text stream, stdout if `None`.
    """

    def __init__(self, num_images, stream=None):
        self.stream = stream or sys.stdout
        self.num_images = num_images
        self.number = 0
        self.name = ""
        self.started = time.monotonic()

    def start_image(self, name):
        """Goes on to the next image, called `name`."""
        self.number += 1
        self.name = name
        self(0, 1)

    def __call__(self, num_done, total):
        """Shows that `num_done` of `total` pixels of the image are done."""
        if not self.stream.isatty():
            return
        share = (self.number - 1 + num_done / total) / self.num_images
        seconds = time.monotonic() - self.started
        left = f"{seconds * (1 - share) / share:.0f} s left" if share else "starting"
        line = f"{self.number} of {self.num_images}, {num_done / total:4.0%}, {left}"
        columns = shutil.get_terminal_size().columns
        self._redraw(f"{line}: {self.name}"[: columns - 1])

    def print_line(self, line, stream=None):
        """Prints a line in place of the bar, to `stream` if it is not `None`."""
        self._redraw("")
        print(line, file=stream or self.stream, flush=True)

    def _redraw(self, line):
        if self.stream.isatty():
            print(f"\r\x1b[K{line}", end="", file=self.stream, flush=True)


def upscale_files(generator, jobs, args, progress):
    """Enlarges files one by one; those that fail are named, the rest is done.

    Args:
        generator: `keras.Model` of `build_generator`.
        jobs: list of `Job`.
        args: `argparse.Namespace` of `parse_args`.
        progress: `Progress`.

    Returns:
        `Counts`.
    """
    num_done = num_skipped = num_failed = num_pixels = 0
    owners = {job.source.resolve(): job.source for job in jobs}  # files not to touch
    for job in jobs:
        progress.start_image(str(job.source))
        target = job.target.resolve()
        try:
            if target in owners:
                raise ValueError(
                    f"its result, {job.target}, would overwrite that or the file of "
                    f"{owners[target]}. Pass another --output or rename it"
                )
            if job.target.exists() and not args.overwrite:
                progress.print_line(f"{job.source}: skipped, {job.target} exists")
                num_skipped += 1
                continue
            owners[target] = job.source
            num_pixels += _upscale_file(generator, job, args, progress)
            num_done += 1
        except (OSError, ValueError, MemoryError) as error:
            reason = getattr(error, "reason", str(error)).rstrip(".")
            progress.print_line(f"upscale.py: {job.source}: {reason}.", sys.stderr)
            num_failed += 1
    return Counts(num_done, num_skipped, num_failed, num_pixels)


def _upscale_file(generator, job, args, progress):
    """Enlarges one file, says so, and returns how many pixels were written."""
    started = time.monotonic()
    picture = read_picture(job.source, args.max_pixels)
    height, width = (SCALE * side for side in picture.lr.shape[:2])
    if max(height, width) > FORMATS[args.format].max_side:
        raise ValueError(
            f"its result has {width}x{height} px, but {args.format} holds at most "
            f"{FORMATS[args.format].max_side} a side. Pass --format png"
        )
    image = enlarge_picture(
        generator, picture, args.tile, progress, progress.print_line
    )
    image, losses = fit_format(image, args.format)
    save_image(image, job.target, args.format, picture.metadata)
    seconds = time.monotonic() - started
    line = f"{job.source} -> {job.target}: {width}x{height} px, {seconds:.1f} s"
    progress.print_line("; ".join([line, *picture.notes, *losses]))
    return height * width


def parse_args(argv=None):
    """Reads the command line.

    Args:
        argv: list of str, or `None` for the process's own.

    Returns:
        `argparse.Namespace`.
    """
    parser = argparse.ArgumentParser(
        description="Enlarges images four times.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("inputs", metavar="INPUT", nargs="+", help="image, or folder of images")
    add("--output", type=Path, help="folder for results; None is beside each input")
    add("--format", choices=FORMATS, default="png", help="of the results")
    add(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace earlier results; an input is never replaced",
    )
    add("--weights", type=Path, help="file or folder; None is the best there is")
    add("--tile", type=int, help="px of the input; None is what 1 GiB holds")
    add("--precision", choices=PRECISIONS, default="float32", help="of the network")
    add("--max-pixels", type=int, default=MAX_PIXELS, help="refuse larger inputs")
    return parser.parse_args(argv)


def check_args(args):
    """Refuses flags that make no sense, before any work.

    Args:
        args: `argparse.Namespace` of `parse_args`.

    Raises:
        ValueError: if a number is too small.
        NotADirectoryError: if the output folder is or lies in a file.
    """
    for flag, value in (("--tile", args.tile), ("--max-pixels", args.max_pixels)):
        if value is not None and value < 1:
            raise ValueError(
                f"Expected {flag} of at least 1, got {value}. Pass a larger one."
            )
    for path in (args.output, *args.output.parents) if args.output else ():
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(
                f"Expected a folder for the results, but {path} is a file. Pass "
                "another --output."
            )


def main(argv=None):
    """Enlarges images; the command line's entry.

    Args:
        argv: list of str, or `None` for the process's own.

    Returns:
        Exit code: 0, 1 if an image failed, 2 for a mistake of the user's, 130 when
        interrupted.
    """
    args = parse_args(argv)
    try:
        check_args(args)
        jobs, earlier = find_jobs(args.inputs, args.output, args.format)
        generator, weights = load_generator(args.weights, args.precision)
        print(f"Weights: {weights}", flush=True)
        if earlier:
            print(f"Left out: {len(earlier)} earlier results, such as {earlier[0]}")
        progress = Progress(len(jobs))
        counts = upscale_files(generator, jobs, args, progress)
    except (ValueError, OSError) as error:
        print(f"upscale.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nStopped. Finished images are whole, others unwritten.", file=sys.stderr
        )
        return 130
    seconds = time.monotonic() - progress.started
    print(
        f"{counts.done} done, {counts.skipped} skipped, {counts.failed} failed; "
        f"{counts.num_pixels / 1e6 / seconds:.2f} megapixels a second"
    )
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
