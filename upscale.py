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

import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import checkpoints
import command_line
import distribution
from data_loader import IMAGE_SUFFIXES, SCALE, to_uint8
from pictures import FORMATS, MAX_PIXELS, fit_format, read_picture, save_image
from tiling import enlarge

LUMA = np.array([0.299, 0.587, 0.114], "float32")  # ITU-R BT.601, as Pillow's "L"


FLAGS = {
    "what is written": (
        ("--output", "FOLDER", "folder for results [beside each input]"),
        ("--format", tuple(FORMATS), "of the results"),
        ("--overwrite", bool, "replace earlier results, never an input"),
    ),
    "how": (
        ("--weights", "PATH", "file or folder [your training's, else the shipped]"),
        ("--tile", command_line.positive_int, "px of the input [what 1 GiB holds]"),
        ("--precision", command_line.PRECISIONS, "of the network"),
        ("--max-pixels", command_line.positive_int, "refuse larger inputs"),
    ),
}
DEFAULTS = {
    "format": "png",
    "overwrite": False,
    "precision": "float32",
    "max_pixels": MAX_PIXELS,
}


class Job(NamedTuple):
    """An image file and the file to write."""

    source: Path
    target: Path


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
    targets = set()
    for job in (*named.values(), *found.values()):
        targets.add(job.target.with_suffix("").resolve())
        # Also where an earlier run had no --output.
        targets.add(job.source.with_name(f"{job.source.stem}_x{SCALE}").resolve())
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


# Running ---------------------------------------------------------------------


def upscale_files(generator, jobs, args, progress):
    """Enlarges files one by one; those that fail are named, the rest is done.

    Args:
        generator: `keras.Model` of `build_generator`.
        jobs: list of `Job`.
        args: `argparse.Namespace` of `parse_args`.
        progress: `command_line.Progress`.

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
    parser = command_line.ArgumentParser(
        prog="upscale.py",
        usage="python upscale.py INPUT... [flags]",
        description=__doc__,
    )
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="image, or folder of images"
    )
    command_line.add_flags(parser, FLAGS, DEFAULTS)
    parser.set_defaults(**DEFAULTS)
    args = parser.parse_args(argv)
    args.output = args.output and Path(args.output)
    return args


def check_output(folder):
    """Refuses a folder for results that cannot be written to; makes it otherwise.

    Args:
        folder: `Path`, or `None`.

    Raises:
        OSError: if it is, or lies in, a file, or is not writable.
    """
    for path in (folder, *folder.parents) if folder else ():
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(
                f"Expected a folder for the results, but {path} is a file. Pass "
                "another --output."
            )
    if folder:
        try:
            command_line.make_writable(folder)
        except OSError as error:
            raise OSError(
                f"Expected a folder for the results, but {folder} cannot be written "
                f"to ({error.strerror}). Pass another --output."
            ) from error


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
        distribution.grow_gpu_memory()
        check_output(args.output)
        jobs, earlier = find_jobs(args.inputs, args.output, args.format)
        generator, weights = checkpoints.load_generator(args.weights, args.precision)
        print(f"Weights: {weights}", flush=True)
        if earlier:
            print(f"Left out: {len(earlier)} earlier results, such as {earlier[0]}")
        progress = command_line.Progress(len(jobs))
        counts = upscale_files(generator, jobs, args, progress)
    except (ValueError, OSError) as error:
        print(f"upscale.py: {command_line.one_line(error)}", file=sys.stderr)
        return command_line.EXIT_USAGE
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
