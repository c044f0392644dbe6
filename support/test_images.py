"""Test images: originals, their LR images, and other methods' results, paired by name.

    python -c "from support import test_images; print(test_images.find_pairs('PATH'))"

Every file that cannot be used is named with the reason.
"""

import itertools
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from support import image_files, pixels
from support.degradation import seed_of

ROLE = re.compile(r"[-_. ](hr|gt|lr)$")  # at the end of an original's name
SUFFIX = re.compile(r"(x4)?([-_. ].*)?", re.DOTALL)  # that a version's name may have
SCALE_MARK = re.compile(r"x4|4x", re.IGNORECASE)
MAX_MISSING = 32  # px, rows, and as many columns, that a result may lack
MAX_OFF_CENTER = 8  # px, between the middle of a result and of its original
THUMBNAIL_SIZE = (32, 32)  # px


class Pair(NamedTuple):
    """The files of a test image; `lr` is `None` if it is made from `hr`."""

    name: str
    hr: Path
    lr: Path | None


class TestImage(NamedTuple):
    """A whole test image, float32 RGB in [-1, 1]: (h, w, 3) and (4h, 4w, 3)."""

    name: str
    lr: np.ndarray
    hr: np.ndarray
    is_gray: bool = False  # then measured as one channel


class Result(NamedTuple):
    """Another method's image, float32 RGB in [-1, 1], at its place in the original.

    `sr` has the original's shape, `(h, w, 3)`. Outside of `rows` and `columns`, two
    slices, it repeats the edges.
    """

    sr: np.ndarray
    rows: slice
    columns: slice


def find_pairs(hr_folder, lr_folder=None, exclude=()):
    """Pairs test images by name, and returns a list of `Pair` and one of problems."""
    originals, problems = find_originals(hr_folder, exclude)
    if lr_folder is None:
        return [Pair(name, hr, None) for name, hr in originals.items()], problems
    inputs = match_names(originals, lr_folder, problems, exclude)
    return [Pair(name, originals[name], lr) for name, lr in inputs.items()], problems


def load_pair(pair, degradation):
    """Reads or makes a `TestImage`; raises `UnreadableImageError`."""
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
        name = _name_of(path, folder)
        if originals.setdefault(name, path) is not path:
            problems.append(f"{path}: {originals[name]} has the same name")
    if not originals:
        raise ValueError(f"No image in {folder}. Pass another --hr.")
    return originals, problems


def match_names(originals, folder, problems, exclude=()):
    """Returns {name of an original: its file in `folder`}; adds to `problems`.

    A file's name may go on after the original's: `0801x4.png`, `baby_SRCNN.png`.
    """
    paths, skipped = image_files.find_images(folder, exclude)
    problems += [f"{path}: {reason}" for path, reason in skipped.items()]
    candidates = {}
    for path in paths:
        name = _find_original(_name_of(path, folder), originals)
        if name is None:
            problems.append(f"{path}: there is no original of that name")
        else:
            candidates.setdefault(name, []).append(path)
    if not candidates:
        raise ValueError(
            f"No image in {folder} has the name of an original, such as "
            f"{next(iter(originals))}. Pass another folder."
        )
    matches = {}
    for name, path in originals.items():
        if name not in candidates:
            problems.append(f"{path}: no image of that name in {folder}")
            continue
        best, *others = sorted(candidates[name], key=_preference)
        matches[name] = best
        for other in others:
            problems.append(f"{other}: a second match of {name}, beside {best}")
    return matches


def _name_of(path, folder):
    return path.relative_to(folder).with_suffix("").as_posix()


def _find_original(stem, originals):
    """Returns the longest name of an original that a file's name begins with."""
    if stem in originals:
        return stem
    names = [name for name in originals if _is_version(stem, name)]
    return max(names, key=len, default=None)


def _is_version(stem, name):
    """Tells whether a file is named as an original, apart from suffix and spelling."""
    stem = _normalize(stem)
    name = _normalize(name)
    for start in (name, ROLE.sub("", name)):
        if stem.startswith(start) and SUFFIX.fullmatch(stem, len(start)):
            return True
    return False


def _normalize(name):
    """Removes differences of case, and of how accents are encoded."""
    return unicodedata.normalize("NFC", name.casefold())


def _preference(path):
    """Sorts files that match the same original; the first one is taken."""
    is_marked = SCALE_MARK.search(path.stem) is not None
    return not is_marked, len(path.stem), path


def read_result(path, hr):
    """Reads another method's image, and finds its place in the original.

    Results may lack a border, or have one too many, and need not be centered.

    Args:
        path: path of the image file.
        hr: float `(h, w, 3)` in [-1, 1], the original.

    Returns:
        `Result`.

    Raises:
        UnreadableImageError: if the file is unusable, or not an x4 enlargement.
    """
    image = image_files.read_rgb(path)
    sr = pixels.to_float(image)
    height, width = hr.shape[:2]
    sizes = f"{image.width}x{image.height} px, but the original {width}x{height} px"
    if not _is_size_of_x4(sr, hr):
        raise image_files.UnreadableImageError(
            path, f"{sizes}: it is neither x4 nor x4 with a border cut"
        )
    result = _place(sr, hr, *_find_offset(sr, hr))
    stretched = pixels.to_float(image.resize((width, height)))
    # Cutting a border changes the size, but so does enlarging by another factor.
    if sr.shape != hr.shape and _error(stretched, hr) < _error(result.sr, hr) / 2:
        raise image_files.UnreadableImageError(
            path, f"{sizes}, and it shows all of it: it is not x4"
        )
    return result


def _is_size_of_x4(sr, hr):
    missing_rows = len(hr) - len(sr)
    missing_columns = hr.shape[1] - sr.shape[1]
    if missing_rows == missing_columns and abs(missing_rows) <= MAX_MISSING:
        return True
    # The sides of `hr` were cut to multiples of 4, perhaps not those of the result.
    missing = (missing_rows, missing_columns)
    return min(missing) >= -pixels.SCALE and max(missing) <= 0


def _find_offset(sr, hr):
    """Returns the row and column of `hr` from which on `sr` differs least from it."""
    sr = sr.mean(axis=2)
    hr = hr.mean(axis=2)

    def error(offset):
        own_rows, rows = _overlap(offset[0], len(sr), len(hr))
        own_columns, columns = _overlap(offset[1], sr.shape[1], hr.shape[1])
        return _error(sr[own_rows, own_columns], hr[rows, columns])

    top = _possible_offsets(len(hr) - len(sr))
    left = _possible_offsets(hr.shape[1] - sr.shape[1])
    return min(itertools.product(top, left), key=error)


def _possible_offsets(missing):
    """Lists where a side that lacks so many px can begin, the middle first."""
    middle = missing / 2
    offsets = range(min(missing, 0), max(missing, 0) + 1)
    near = [offset for offset in offsets if abs(offset - middle) <= MAX_OFF_CENTER]
    return sorted(near, key=lambda offset: abs(offset - middle))


def _overlap(offset, length, original_length):
    """Returns the slices of a result's and its original's side that coincide."""
    start = max(offset, 0)
    stop = min(offset + length, original_length)
    return slice(start - offset, stop - offset), slice(start, stop)


def _place(sr, hr, top, left):
    """Returns the `Result` of an image that begins at a row and column of `hr`."""
    height, width = hr.shape[:2]
    own_rows, rows = _overlap(top, len(sr), height)
    own_columns, columns = _overlap(left, sr.shape[1], width)
    margins = (
        (rows.start, height - rows.stop),
        (columns.start, width - columns.stop),
        (0, 0),
    )
    whole = np.pad(sr[own_rows, own_columns], margins, mode="edge")
    return Result(whole, rows, columns)


def _error(image, other):
    return float(np.mean(np.square(image - other)))


def find_lookalikes(results, originals):
    """Finds images that resemble another original more than their own.

    Takes dicts of name to `thumbnail`, and returns one of name to the other's name.
    """
    lookalikes = {}
    for name, result in results.items():
        nearest = min(originals, key=lambda other: _error(result, originals[other]))
        if _error(result, originals[nearest]) < _error(result, originals[name]):
            lookalikes[name] = nearest
    return lookalikes


def thumbnail(image):
    """Reduces a float image to `(32, 32, 3)`, for comparisons with many others."""
    small = Image.fromarray(pixels.to_uint8(image)).resize(
        THUMBNAIL_SIZE, Image.Resampling.BOX
    )
    return pixels.to_float(small)


def check_side(path, size, min_side):
    """Raises `UnreadableImageError` if a side of an image is too short."""
    if min(size) < min_side:
        raise image_files.UnreadableImageError(
            path, f"too small, {size[0]}x{size[1]} px"
        )
