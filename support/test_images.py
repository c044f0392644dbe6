"""Test images: originals, their LR images, and other methods' results, paired by name.

    python -c "from support import test_images; print(test_images.find_pairs('PATH'))"

Every file that cannot be used is named with the reason.
"""

import re
from collections import namedtuple
from typing import NamedTuple

import numpy as np

from support import image_files, pixels
from support.degradation import seed_of

RESULT_NAME = re.compile(r"([-_ ]?x4)?([-_ ]\w+)?", re.IGNORECASE)  # after its own
MAX_MISSING = 32  # px, rows or columns of a result that other methods cut off
Pair = namedtuple("Pair", "name hr lr")  # paths; `lr` is `None` if it is made from `hr`


class TestImage(NamedTuple):
    """A whole test image, float32 RGB in [-1, 1]: (h, w, 3) and (4h, 4w, 3)."""

    name: str
    lr: np.ndarray
    hr: np.ndarray
    is_gray: bool = False  # then measured as one channel


def find_pairs(hr_folder, lr_folder=None, exclude=()):
    """Pairs test images by name, and returns a list of `Pair` and one of problems."""
    originals, problems = find_originals(hr_folder, exclude)
    if lr_folder is None:
        return [Pair(name, hr, None) for name, hr in originals.items()], problems
    inputs = match_names(originals, lr_folder, problems)
    return [Pair(name, originals[name], lr) for name, lr in inputs.items()], problems


def load_pair(pair, degradation):
    """Reads or makes a `TestImage`; raises an `OSError` if a file does not serve."""
    picture = image_files.read_picture(pair.hr)
    hr = image_files.flatten(picture)
    check_side(pair.hr, hr.size, pixels.SCALE)
    lr = None if pair.lr is None else image_files.read_rgb(pair.lr)
    quarter = tuple(side // pixels.SCALE for side in hr.size)
    if lr is not None and lr.size != quarter:
        raise image_files.UnreadableImageError(
            pair.lr,
            f"it has {lr.width}x{lr.height} px, which is not a quarter of {pair.hr}, "
            f"{hr.width}x{hr.height} px",
        )
    image = make_test_image(pair.name, hr, degradation, lr)
    return image._replace(is_gray=picture.image.mode != "RGB")


def make_test_image(name, hr, degradation, lr=None):
    """Makes a `TestImage` of RGB Pillow images; cuts HR sides to multiples of 4.

    Source: takes exactly three, of one size, with sides divisible by 16.
    """
    hr = hr.crop((0, 0, *(side // pixels.SCALE * pixels.SCALE for side in hr.size)))
    if lr is None:
        lr = degradation.apply(hr, seed_of(name))
    return TestImage(name, pixels.to_float(lr), pixels.to_float(hr))


def find_originals(folder, exclude=()):
    """Returns {name: path} of a folder's images, and a list of problems."""
    paths, skipped = image_files.find_images(folder, exclude)
    problems = [f"{path}: {reason}" for path, reason in skipped.items()]
    originals = {}
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        if originals.setdefault(name, path) is not path:
            problems.append(f"{path}: {originals[name]} has the same name")
    if not originals:
        raise ValueError(f"No image in {folder}. Pass another --hr.")
    return originals, problems


def match_names(originals, folder, problems):
    """Returns {name of an original: its file in `folder`}; adds to `problems`.

    A file's name may go on after the original's, as DIV2K's `0801x4.png` does.
    """
    paths, skipped = image_files.find_images(folder)
    problems += [f"{path}: {reason}" for path, reason in skipped.items()]
    matches = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        names = [
            name
            for name in originals
            if stem.startswith(name) and RESULT_NAME.fullmatch(stem, len(name))
        ]
        name = max(names, key=len, default=None)
        if name is None or name in matches:
            problems.append(f"{path}: there is no original of that name")
        else:
            matches[name] = path
    if not matches:
        raise ValueError(
            f"No image in {folder} has the name of an original, such as "
            f"{next(iter(originals))}. Pass another folder."
        )
    for name in originals:
        if name not in matches:
            problems.append(f"{originals[name]}: no image of that name in {folder}")
    return {name: matches[name] for name in originals if name in matches}


def read_result(path, height, width):
    """Reads a method's enlarged image, and fills the border that it may lack.

    Returns it, float RGB in [-1, 1], and the slices of its own rows and columns.
    """
    image = image_files.read_rgb(path)
    if max(abs(height - image.height), abs(width - image.width)) > MAX_MISSING:
        reason = f"{image.width}x{image.height} px, but the original {width}x{height}"
        raise image_files.UnreadableImageError(path, reason)
    sr = pixels.to_float(image)[:height, :width]
    top, left = (height - len(sr)) // 2, (width - sr.shape[1]) // 2
    rows, columns = slice(top, top + len(sr)), slice(left, left + sr.shape[1])
    ends = (top, height - rows.stop), (left, width - columns.stop), (0, 0)
    return np.pad(sr, ends, mode="edge"), rows, columns


def check_side(path, size, min_side):
    """Raises `UnreadableImageError` if a side of an image is too short."""
    if min(size) < min_side:
        raise image_files.UnreadableImageError(
            path, f"too small, {size[0]}x{size[1]} px"
        )
