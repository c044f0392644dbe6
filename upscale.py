"""Enlarges images up to four times: files, or folders of them.

    python upscale.py photo.jpg                            # writes photo_x4.png
    python upscale.py holiday/ logo.png --output enlarged/
    python upscale.py photo.jpg --scale 2.5                # writes photo_x2.5.png
    python upscale.py photo.jpg --size 1600x1200           # writes photo_1600x1200.png

JPEG files are enlarged by weights that were trained on JPEG blocks and noise, others by
those for clean images, unless you pass --weights. Grayscale, 16-bit grayscale,
transparency and metadata are kept as far as the output format can hold them. Existing
files are kept unless you pass --overwrite; inputs are never overwritten. Images of any
size fit into memory.
"""

import argparse
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from support import command_line

with command_line.quiet_imports(__name__):
    import numpy as np
    from PIL import Image

    from support import weight_files
    from support.image_files import (
        FORMATS_READ,
        IMAGE_SUFFIXES,
        MAX_PIXELS,
        OUTPUT_FORMATS,
        check_size,
        find_images,
        read_picture,
        save_image,
    )
    from support.pixels import SCALE, to_uint8
    from support.tiling import enlarge

TWICE = "Enlarge twice: run again on the first result"


class Size(NamedTuple):
    """The sides of an image, or of a box that it must fit in, in px."""

    width: int
    height: int

    def __str__(self):
        return f"{self.width}x{self.height}"


class Job(NamedTuple):
    """An image file and the file to write."""

    source: Path
    target: Path


def find_jobs(inputs, output, file_format, suffix=f"_x{SCALE}"):
    """Lists the images to enlarge, and where each result goes.

    Returns a list of `Job`, and a dict of `Path` to the reason for files in folders
    that cannot be enlarged. `output` is a folder, or `None` for the input's own; for a
    single file, it may be the result's name. `file_format` is `None` for that of such a
    name, otherwise PNG.
    """
    jobs, skipped = {}, {}
    inputs = command_line.expand_patterns(inputs)
    if output and output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        if len(inputs) > 1 or os.path.isdir(inputs[0]):
            raise ValueError(f"--output {output} is one file, for several results.")
        if _format_of(output) not in OUTPUT_FORMATS:
            raise ValueError(f"--output {output} is not {', '.join(OUTPUT_FORMATS)}.")
        if file_format and file_format != _format_of(output):
            raise ValueError(f"--output {output} is not --format {file_format}.")
        return [Job(_existing(inputs[0]), output)], skipped
    for path in map(Path, inputs):
        folder, sources = path.parent, [path]
        if path.is_dir():
            folder, parents = path, (path.resolve(), *path.resolve().parents)
            is_inside = output and output.resolve() not in parents
            sources, reasons = find_images(path, [output] if is_inside else [])
            skipped |= reasons
            if not sources:
                reasons = [f"{file}: {reason}." for file, reason in reasons.items()]
                raise ValueError(f"No image in {path}. {' '.join(reasons[:3])}")
        for source in map(_existing, sources):
            name = source.relative_to(folder)
            name = name.with_name(f"{name.stem}{suffix}.{file_format or 'png'}")
            target = (output or folder) / name
            jobs.setdefault(os.path.abspath(source), Job(source, target))
    return list(jobs.values()), skipped


def _existing(path):
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no file {path}. Check its name.")
    return Path(path)


def choose_size(size, args):
    """Returns the `Size` of a result; raises `ValueError` if x4 does not reach it."""
    if args.size is None:
        result = Size(*(round(args.scale * side) for side in size))
        if result == size:
            raise ValueError(f"--scale {args.scale:g} does not enlarge its {size} px")
        return result
    scale = min(args.size.width / size.width, args.size.height / size.height)
    if scale > SCALE:
        raise ValueError(
            f"--size {args.size} is more than {SCALE} times its {size} px. {TWICE}"
        )
    if scale <= 1:
        raise ValueError(f"--size {args.size} does not enlarge its {size} px")
    return Size(*(max(1, round(scale * side)) for side in size))


def enlarge_picture(generator, picture, tile=None, progress=None, size=None):
    """Enlarges a `Picture`'s colors by the network, its transparency by bicubic.

    Both are then reduced to `size`, if it is given, by Lanczos filtering.
    """
    lr = np.asarray(picture.image)
    encode = to_uint8
    if picture.image.mode == "I;16":
        lr = (lr / 32767.5 - 1).astype("float32")
        encode = _to_gray_16
    elif picture.image.mode == "L":
        encode = _to_gray
    if lr.ndim == 2:
        lr = np.broadcast_to(lr[..., np.newaxis], (*lr.shape, 3))
    sr = enlarge(generator, lr, tile, encode, progress)
    sr = _reduce(Image.fromarray(sr), size)
    if picture.alpha is not None:
        large = tuple(SCALE * side for side in picture.image.size)
        alpha = picture.alpha.resize(large, Image.Resampling.BICUBIC)
        sr.putalpha(_reduce(alpha, size))
    return sr


def _reduce(image, size):
    if size in (None, image.size):
        return image
    return image.resize(size, Image.Resampling.LANCZOS)


def _to_gray(sr):
    return to_uint8(sr[..., 0])  # the channels of enlarged gray are equal


def _to_gray_16(sr):
    return np.clip(np.rint((sr[..., 0] + 1) * 32767.5), 0, 65535).astype("uint16")


def choose_weights(job, args):
    """Returns the weights for a file: those of --weights, or by the kind of file."""
    if args.weights is not None:
        return args.weights
    # MPO: two JPEG images of a camera in one file.
    if job.source.suffix.lower() in FORMATS_READ["JPEG"] + FORMATS_READ["MPO"]:
        return weight_files.DEFAULT_FOR_JPEG
    return weight_files.DEFAULT_SHIPPED


def load_generators(jobs, args):
    """Loads {weights: generator} for all files, and prints what was loaded."""
    generators = {}
    for job in jobs:
        weights = choose_weights(job, args)
        if weights not in generators:
            generator, path = weight_files.load_generator(weights, args.precision)
            generators[weights] = generator
            print(f"Weights: {path}", flush=True)
    return generators


def upscale_file(generators, job, args):
    """Enlarges one file, and prints one line that names what could not be kept."""
    weights = choose_weights(job, args)
    started = time.monotonic()
    picture = read_picture(job.source, args.max_pixels)
    size = choose_size(Size(*picture.image.size), args)
    name = _format_of(job.target)
    check_size(size, name)
    bar = None

    def show(num_done, num_tiles):
        nonlocal bar
        if bar is None:
            bar = command_line.progress_bar(num_tiles, "tile")
        bar.update(num_done)

    generator = generators[weights]
    image = enlarge_picture(generator, picture, args.tile, show, size)
    losses = save_image(image, job.target, name, picture.metadata)
    seconds = time.monotonic() - started
    line = f"{job.source} -> {job.target}: {size} px, {weights}, {seconds:.1f} s"
    print("; ".join([line, *picture.notes, *losses]), flush=True)


def _format_of(path):
    return path.suffix[1:].lower().replace("jpeg", "jpg")


def _scale(text):
    scale = command_line.positive_float(text)
    if scale > SCALE:
        raise argparse.ArgumentTypeError(f"{text} is more than {SCALE}. {TWICE}.")
    if scale <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not more than 1.")
    return scale


def _size(text):
    sides = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text)
    if sides is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1600x1200.")
    return Size(int(sides[1]), int(sides[2]))


def parse_args(argv=None):
    """Reads the command line."""
    parser = command_line.ArgumentParser(prog="upscale.py", description=__doc__)
    add = parser.add_argument
    add("inputs", metavar="INPUT", nargs="+", help="image, or folder of images")
    add(
        "--weights",
        metavar="PATH",
        help="weights file, checkpoint folder or name of shipped weights "
        f"(default: {weight_files.DEFAULT_FOR_JPEG} for JPEG files, else "
        f"{weight_files.DEFAULT_SHIPPED})",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--scale",
        type=_scale,
        default=SCALE,
        metavar="X",
        help=f"times that sides grow, more than 1 and up to {SCALE}",
    )
    group.add_argument(
        "--size",
        type=_size,
        metavar="WxH",
        help="size in px that results fit in, instead of --scale",
    )
    add(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder for the results, or the result of a single image (default: beside "
        "each input)",
    )
    add(
        "--format",
        choices=tuple(OUTPUT_FORMATS),
        help="file format (default: png, or that of a file named by --output)",
    )
    add(
        "--tile",
        type=command_line.positive_int,
        metavar="PX",
        help="side of the tiles in px (default: by the image's size)",
    )
    add("--overwrite", action="store_true", help="replace earlier results")
    add(
        "--precision",
        choices=command_line.PRECISIONS,
        default="float32",
        help="compute dtype",
    )
    add(
        "--max-pixels",
        type=command_line.positive_int,
        default=MAX_PIXELS,
        metavar="N",
        help="refuse larger inputs",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Enlarges images as the command line says, and returns the exit code."""
    args = parse_args(argv)
    with command_line.usage_errors():
        suffix = f"_{args.size}" if args.size else f"_x{args.scale:g}"
        jobs, skipped = find_jobs(args.inputs, args.output, args.format, suffix)
        for folder in {job.target.parent for job in jobs}:
            command_line.check_writable(folder / "result")
        generators = load_generators(jobs, args)
    for file, reason in skipped.items():
        command_line.warn(f"{file}: {reason}.")
    num_done, num_kept, num_failed = 0, 0, len(skipped)
    # Files that no result may replace: inputs, and results of this run.
    taken = {job.source.resolve(): job.source for job in jobs}
    for job in jobs:
        try:
            owner = taken.setdefault(job.target.resolve(), job.source)
            if owner is not job.source or job.target.resolve() == job.source.resolve():
                raise ValueError(
                    f"its result, {job.target}, would overwrite {owner} or its result. "
                    "Rename it, or pass another --output"
                )
            if job.target.exists() and not args.overwrite:
                print(
                    f"{job.source}: skipped, {job.target} exists (--overwrite replaces)"
                )
                num_kept += 1
                continue
            upscale_file(generators, job, args)
            num_done += 1
        except (OSError, ValueError, MemoryError) as error:
            reason = getattr(error, "reason", None) or str(error) or "out of memory"
            command_line.warn(f"{job.source}: {reason.rstrip('.')}.")
            num_failed += 1
    print(f"{num_done} done, {num_kept} skipped, {num_failed} failed")
    return command_line.EXIT_FAILED if num_failed else 0


if __name__ == "__main__":
    command_line.run(main)
