"""Finds, checks, crops and degrades photographs, a few batches ahead of training.

    python -c "import data_loader; print(data_loader.DataLoader('PATH').summary())"

Needs NumPy and Pillow only. Batch k of a run is a pure function of the seed, k and
the list of files, so nothing of the reader has to be stored to resume a run.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import os
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

SCALE = 4  # HR side / LR side
MIN_CROP = 16  # px; one position of the discriminator's patch grid
SOURCE_DATASET = "test2017"  # COCO
SOURCE_CROP = 256  # px
SOURCE_BLUR = 1.5  # Pillow's GaussianBlur radius, HR px
DATASETS_FOLDER = "datasets"
TEST_FOLDER = "datasets/img_test"

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# Decoders that may be tried. Pillow judges by content and would, for one, start
# Ghostscript on a PostScript file that is named .png.
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
EXIF_ORIENTATION = 0x0112
EXIF_SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height

BLUR_PASSES = 3  # of box blur, which make Pillow's GaussianBlur
MAX_BLUR_SHARE = 0.7  # of all pixels of crops; break-even was measured at 0.8 to 0.95

VARIANTS = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)
# Paper: flips are not mentioned; "dihedral" is neither the source's nor the paper's.
AUGMENTATIONS = {"none": 1, "flip": 2, "dihedral": 8}  # how many of VARIANTS are drawn

CACHE_BYTES = 2**30  # 1 GiB of decoded images
PIXEL_BYTES = 4  # Pillow keeps RGB in 4 bytes a pixel
NUM_THREADS = min(4, max(2, os.cpu_count() or 1))  # make batches
BATCHES_AHEAD = 4  # 13 MB each for 16 crops of 256 px
SCAN_THREADS = 8  # read headers; more than processors, because disks make them wait
SCAN_CHUNK = 256  # files a task, and between two reports of progress
SCAN_VERSION = 1  # of the format of stored scans
MAX_NAMED = 5  # skipped files named in a summary
NUM_STAND_INS = 3  # test images taken from the dataset if there are no others
STAND_IN_SIDE = 512  # px, at most


class Batch(NamedTuple):
    """Matching crops, float32 RGB in [-1, 1]: (n, h, w, 3) and (n, 4h, 4w, 3)."""

    lr: np.ndarray
    hr: np.ndarray


class TestImage(NamedTuple):
    """A whole test image, float32 RGB in [-1, 1]: (h, w, 3) and (4h, 4w, 3)."""

    name: str
    lr: np.ndarray
    hr: np.ndarray


class ImageFile(NamedTuple):
    """An image file and its size in px, after EXIF rotation."""

    path: str
    width: int
    height: int


class Scan(NamedTuple):
    """What a folder holds: a list of `ImageFile`, and a dict of path to reason."""

    files: list
    skipped: dict


class Crop(NamedTuple):
    """All random decisions of one crop; `top` and `left` are shares of their range."""

    file_index: int
    top: float
    left: float
    transpose: Image.Transpose | None


class UnreadableImageError(OSError):
    """Says which file cannot be used and, in `reason`, why.

    Args:
        path: str or `Path`, the file.
        reason: str, without the path.
    """

    def __init__(self, path, reason):
        super().__init__(f"Cannot read {path}: {reason}.")
        self.reason = reason


class NoImageLeftError(RuntimeError):
    """None of the images that were there at the start can be read any more."""


def to_float(images):
    """Converts 8-bit images to what the networks take.

    Args:
        images: uint8 array of any shape, or a Pillow image, in [0, 255].

    Returns:
        A new float32 array of the same shape, in [-1, 1].
    """
    # Source: HR and LR alike. Paper: LR in [0, 1] (Sec. 3.2).
    images = np.array(images, dtype="float32")
    images /= 127.5  # in place: six times faster than with temporary arrays
    images -= 1.0
    return images


def to_uint8(images):
    """Converts what the networks give to 8-bit images, rounding and clipping.

    Args:
        images: float array of any shape, in [-1, 1]; values outside are clipped.

    Returns:
        A uint8 array of the same shape, in [0, 255].
    """
    # Source: truncates, which darkens by half a level and wraps around above 1.
    levels = (np.asarray(images, dtype="float32") + 1.0) * 127.5
    return np.clip(np.rint(levels), 0, 255).astype("uint8")


@contextlib.contextmanager
def _opened(path):
    """Opens an image; whatever goes wrong inside becomes `UnreadableImageError`."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UnreadableImageError(path, "not an image, or a damaged one") from error
    except Exception as error:  # Damaged files make Pillow raise almost anything.
        reason = getattr(error, "strerror", None) or str(error) or repr(error)
        raise UnreadableImageError(path, reason.rstrip(".")) from error


def _read_size(path):
    """Returns (width, height) as seen after EXIF rotation, from the header alone."""
    with _opened(path) as image:
        width, height = image.size
        # Pillow would decode a whole PNG to look for EXIF data behind the pixels.
        has_header = image.format != "PNG" or "exif" in image.info
        if has_header and image.getexif().get(EXIF_ORIENTATION) in EXIF_SIDEWAYS:
            width, height = height, width
    return width, height


def open_image(path):
    """Reads any image as upright 8-bit RGB.

    Applies the EXIF orientation, takes the first frame of animations, scales 16-bit
    grey to 8 bits, and lays transparent images on white.

    Args:
        path: str or `Path` of the file.

    Returns:
        A Pillow image of mode "RGB".

    Raises:
        UnreadableImageError: an `OSError`; if the file is missing, damaged, no image,
            or larger than Pillow's limit against decompression bombs.
    """
    with _opened(path) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bits; convert() would clip at 255
            levels = np.rint(np.asarray(image).astype("float32") / 257)
            image = Image.fromarray(np.clip(levels, 0, 255).astype("uint8"))
        elif image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.new("RGBA", layer.size, "white")
            image.alpha_composite(layer)
        return image.convert("RGB")


def degrade(image, blur):
    """Makes the LR image of an HR image: Gaussian blur, then bicubic to a quarter.

    Source: `DataLoader.load_data`. Paper: Sec. 2, bicubic without blur (`blur=0`).

    Args:
        image: Pillow image, both sides at least `SCALE` px.
        blur: float >= 0, radius for Pillow's `GaussianBlur` in HR px.

    Returns:
        A Pillow image with a quarter of each side, rounded down.
    """
    if blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    width, height = image.size
    return image.resize((width // SCALE, height // SCALE), Image.Resampling.BICUBIC)


def cut_crops(image, corners, side, blur):
    """Cuts square crops out of one image, and makes the LR image of each.

    Each LR image is `degrade` of its crop. Blur takes most of a batch's time, so where
    crops overlap much, the image is blurred once, and each crop by itself just along
    its edges, where the blur must not see what lies outside of it.

    Args:
        image: Pillow image.
        corners: list of (left, top) of the crops, px.
        side: int, of the crops, px.
        blur: float >= 0, radius for Pillow's `GaussianBlur` in HR px.

    Returns:
        A list of (HR, LR), Pillow images.
    """
    crops = [image.crop((x, y, x + side, y + side)) for x, y in corners]
    # px, how far Pillow's blur sees at most: its boxes have radii below `blur`.
    reach = BLUR_PASSES * (int(blur) + 1)
    strip = 2 * reach  # px, what must be blurred for `reach` px along an edge
    num_pixels = image.width * image.height + len(crops) * 4 * strip * side
    if blur == 0 or num_pixels > MAX_BLUR_SHARE * len(crops) * side**2:
        return [(crop, degrade(crop, blur)) for crop in crops]
    gaussian = ImageFilter.GaussianBlur(blur)
    whole = image.filter(gaussian)
    # Of both edges: where the strip starts, and the first of its px that are right.
    edges = ((0, 0), (side - strip, reach))
    pairs = []
    for crop, (x, y) in zip(crops, corners, strict=True):
        blurred = whole.crop((x, y, x + side, y + side))
        for start, first_valid in edges:
            end = first_valid + reach
            rows = crop.crop((0, start, side, start + strip)).filter(gaussian)
            rows = rows.crop((0, first_valid, side, end))
            blurred.paste(rows, (0, start + first_valid))
            columns = crop.crop((start, 0, start + strip, side)).filter(gaussian)
            columns = columns.crop((first_valid, 0, end, side))
            blurred.paste(columns, (start + first_valid, 0))
        pairs.append((crop, degrade(blurred, 0)))
    return pairs


def _find_images(root):
    """Lists image files by relative name: {name: [bytes, mtime_ns]}, {name: reason}."""
    stamps, skipped = {}, {}
    pending, visited = [""], set()
    while pending:
        prefix = pending.pop()
        try:
            status = os.stat(root + prefix)
            if (status.st_dev, status.st_ino) in visited:
                continue  # links that lead round in a circle, or here twice
            visited.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(root + prefix), key=os.fspath)
        except OSError as error:
            if not prefix:
                raise
            skipped[prefix] = error.strerror
            continue
        for entry in entries:
            name = prefix + entry.name
            is_image = name.lower().endswith(IMAGE_SUFFIXES)
            if entry.name.startswith("."):
                continue  # thumbnails, and the "._photo.jpg" that macOS scatters
            try:
                if entry.is_dir():
                    pending.append(name + "/")
                elif is_image:
                    status = entry.stat()
                    if stat.S_ISREG(status.st_mode):
                        stamps[name] = [status.st_size, status.st_mtime_ns]
                    else:
                        skipped[name] = "not a regular file"  # a pipe would hang
            except OSError as error:
                if is_image:
                    skipped[name] = f"{error.strerror} (a broken link?)"
    return stamps, skipped


def _scan_path(folder):
    """Returns where the scan of `folder` is stored between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    digest = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()
    return Path(root) / "srgan" / f"scan-{digest[:16]}.json"


def _load_facts(path):
    """Reads a stored scan, {name: [bytes, mtime_ns, width, height]}; {} if none."""
    try:
        scan = json.loads(path.read_text())
        return scan["files"] if scan["version"] == SCAN_VERSION else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _save_facts(path, facts):
    """Stores a scan whole or not at all; an unwritable folder only costs time later."""
    temporary = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"version": SCAN_VERSION, "files": facts}))
        temporary.replace(path)
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _read_sizes(root, names):
    """Returns {name: (width, height)}, or the reason instead where there is none."""
    sizes = {}
    for name in names:
        try:
            sizes[name] = _read_size(root + name)
        except UnreadableImageError as error:
            sizes[name] = error.reason
    return sizes


def scan_folder(folder, min_side, progress=None):
    """Finds every usable image below a folder, reading headers only.

    Follows links, but into no folder twice; passes over hidden files and those
    without an image's suffix. What headers said is kept in the user's cache folder
    (`$XDG_CACHE_HOME/srgan`) for as long as a file keeps its size and time.

    Args:
        folder: str or `Path`, searched recursively.
        min_side: int, px; images with a shorter side are skipped.
        progress: callable taking (files read, files to read), or `None`.

    Returns:
        `Scan(files, skipped)`, both sorted by relative path.

    Raises:
        OSError: if the folder itself cannot be read.
    """
    root = os.path.join(folder, "")
    stamps, skipped = _find_images(root)
    scan_path = _scan_path(folder)
    known = _load_facts(scan_path)
    facts, unknown = {}, []
    for name, stamp in stamps.items():
        if known.get(name, ())[:2] == stamp:
            facts[name] = known[name]
        else:
            unknown.append(name)
    chunks = [unknown[i : i + SCAN_CHUNK] for i in range(0, len(unknown), SCAN_CHUNK)]
    pool = ThreadPoolExecutor(SCAN_THREADS)
    try:
        done = 0
        for sizes in pool.map(_read_sizes, itertools.repeat(root), chunks):
            for name, size in sizes.items():
                if isinstance(size, str):
                    skipped[name] = size  # not stored: it may be mended any time
                else:
                    facts[name] = [*stamps[name], *size]
            done += len(sizes)
            if progress is not None:
                progress(done, len(unknown))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for 100,000 files
    if facts != known:
        _save_facts(scan_path, facts)

    files = []
    for name in sorted(facts):
        width, height = facts[name][2:]
        if min(width, height) < min_side:
            skipped[name] = f"too small, {width}x{height} px"
        else:
            files.append(ImageFile(root + name, width, height))
    return Scan(files, {root + name: skipped[name] for name in sorted(skipped)})


def _show_progress(done, total):
    """Draws one line on stderr, and nothing where nobody watches."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        line = f"\rReading image headers: {done:,} of {total:,}"
        print(line, end=end, file=sys.stderr, flush=True)


def _report_skip(path, reason):
    print(f"Skipped {path}: {reason}", file=sys.stderr)


def _draw_distinct(rng, num_files, count):
    """Draws `count` file indices; none again before all others have been drawn."""
    indices = []
    while len(indices) < count:
        chosen = {}  # a set in order; `rng.choice` takes time growing with num_files
        while len(chosen) < min(count - len(indices), num_files):
            chosen[int(rng.integers(num_files))] = True
        indices += chosen
    return indices


def _cut(image, max_side):
    """Cuts sides to multiples of `SCALE`, and those above `max_side` to the middle."""
    width, height = (min(side, max_side) // SCALE * SCALE for side in image.size)
    left, top = (max(0, side - max_side) // 2 for side in image.size)
    return image.crop((left, top, left + width, top + height))


class _ImageCache:
    """Decoded images by path, within `max_bytes`; the longest unused goes first."""

    def __init__(self, max_bytes):
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._images = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, path):
        with self._lock:
            if path in self._images:
                self._images.move_to_end(path)
            return self._images.get(path)

    def put(self, path, image):
        size = image.width * image.height * PIXEL_BYTES
        with self._lock:
            if path in self._images or size > self.max_bytes:
                return
            self._images[path] = image
            self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                _, oldest = self._images.popitem(last=False)
                self.num_bytes -= oldest.width * oldest.height * PIXEL_BYTES


class DataLoader:
    """Batches of random matching HR and LR crops from any folder of images.

    Use it from one thread, as a context manager or with `close()`. `files` and
    `skipped` tell what was found. Set `shard = (index, count)` in each of several
    workers, and each makes its own part of the same batches. `on_skip(path, reason)`
    is called once for each file that turns out to be unreadable; it prints a line.

    Args:
        dataset: str or `Path`, a name in `datasets/`, or the path of a folder.
        crop_size: int, side of the HR crops in px, a multiple of 4, at least 16.
        blur: float >= 0, radius of the Gaussian blur in HR px before shrinking.
        crops_per_image: int, or `None` for all crops of a batch from one image
            (source); 1 for each crop from another one (paper).
        seed: int >= 0, of all random decisions.
        augment: "none", "flip" (source: left-right, every second crop), or "dihedral"
            (all eight flips and quarter turns).
        test_folder: str or `Path`, the images that `load_spec_data` reads.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ValueError: if an argument makes no sense or no image is large enough.
    """

    def __init__(
        self,
        dataset=SOURCE_DATASET,
        crop_size=SOURCE_CROP,
        blur=SOURCE_BLUR,
        crops_per_image=None,
        seed=0,
        augment="flip",
        test_folder=TEST_FOLDER,
    ):
        if crop_size < MIN_CROP or crop_size % SCALE:
            raise ValueError(
                f"The crop size must be a multiple of {SCALE} and at least {MIN_CROP} "
                f"px, but it is {crop_size}. Pass another --crop-size."
            )
        if not 0 <= blur < float("inf"):  # nor NaN
            raise ValueError(
                f"The blur must be a radius in px, 0 for none, but it is {blur}. "
                "Pass another --blur."
            )
        if crops_per_image is not None and crops_per_image < 1:
            raise ValueError(
                f"There must be at least 1 crop per image, not {crops_per_image}. "
                "Pass another --crops-per-image, or none for all from one image."
            )
        if seed < 0:
            raise ValueError(f"The seed must be 0 or more, not {seed}. Pass another.")
        if augment not in AUGMENTATIONS:
            raise ValueError(
                f"Unknown augmentation {augment!r}. Pass one of: "
                f"{', '.join(AUGMENTATIONS)}."
            )
        self.crop_size = crop_size
        self.blur = blur
        self.crops_per_image = crops_per_image
        self.seed = seed
        self.augment = augment
        self.test_folder = str(test_folder)
        self.test_images_origin = None  # str, once `load_spec_data` has been called
        self.shard = (0, 1)
        self.on_skip = _report_skip
        self.position = 0  # of the next batch of `load_data`
        self._lock = threading.Lock()
        self._pool = None
        self._request = None
        self._ahead = collections.deque()  # futures, the first is batch `position`
        self.reload_dataset(dataset)

    def reload_dataset(self, dataset=None):
        """Scans the dataset again, or another one; the position stays.

        Args:
            dataset: str or `Path` as for the class; `None` for the present one.

        Raises:
            FileNotFoundError: if there is no such dataset.
            ValueError: if it holds no image that is large enough.
        """
        self.close()
        folder = self.folder if dataset is None else _find_dataset(dataset)
        scan = scan_folder(folder, self.crop_size, _show_progress)
        if not scan.files:
            raise ValueError(_describe_lack(folder, self.crop_size))
        self.folder = folder
        self.files, self.skipped = scan
        self._cache = _ImageCache(CACHE_BYTES)

    def summary(self):
        """Counts the images found and skipped, and names the first skipped ones.

        Returns:
            A str of one or several lines.
        """
        skipped = list(self.skipped.items())
        lines = [
            f"{self.folder}: {len(self.files):,} images of at least {self.crop_size} "
            f"px, {len(skipped):,} files skipped{':' if skipped else '.'}"
        ]
        for path, reason in skipped[:MAX_NAMED]:
            name = os.fsencode(os.path.relpath(path, self.folder))
            lines.append(f"  {name.decode(errors='replace')}: {reason}")
        if len(skipped) > MAX_NAMED:
            lines.append(f"  and {len(skipped) - MAX_NAMED:,} more")
        return "\n".join(lines)

    def load_data(self, batch_size=1, is_testing=False):
        """Returns the next batch, which threads have usually made by now.

        Args:
            batch_size: int >= 1, crops of the batch over all workers.
            is_testing: bool; if `True`, crops are never flipped.

        Returns:
            `Batch(lr, hr)` as from `make_batch`.

        Raises:
            ValueError: if `batch_size` does not suit.
            NoImageLeftError: if no image can be read any more.
        """
        request = (batch_size, is_testing, self.shard)
        if request != self._request:
            self.seek(self.position)
            self._request = request
        if self._pool is None:
            self._pool = ThreadPoolExecutor(NUM_THREADS, "data_loader")
        while len(self._ahead) <= BATCHES_AHEAD:
            k = self.position + len(self._ahead)
            future = self._pool.submit(self.make_batch, k, batch_size, is_testing)
            self._ahead.append(future)
        batch = self._ahead[0].result()
        self._ahead.popleft()
        self.position += 1
        return batch

    def seek(self, k):
        """Makes batch k the next one of `load_data`.

        Args:
            k: int >= 0.
        """
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self.position = k

    def make_batch(self, k, batch_size, is_testing=False, shard=None):
        """Makes batch k: random HR crops, and their LR images.

        Depends on nothing but the seed, k, the arguments and the files. Each HR crop is
        blurred, then shrunk by `SCALE` (source: `DataLoader.load_data`). Where a
        file cannot be read, the next one in the list takes its place.

        Args:
            k: int >= 0, number of the batch.
            batch_size: int >= 1, crops of the batch over all workers.
            is_testing: bool; if `True`, crops are never flipped.
            shard: `(index, count)`, the worker and how many there are; `None` for
                the attribute `shard`.

        Returns:
            `Batch(lr, hr)`, float32 RGB in [-1, 1]: `hr` is (n, crop_size, crop_size,
            3), `lr` has a quarter of each side, n is this worker's part of batch_size.

        Raises:
            ValueError: if `batch_size` is less than 1 or no multiple of the workers.
            NoImageLeftError: if no image can be read any more.
        """
        index, count = shard or self.shard
        if batch_size < 1 or batch_size % count:
            raise ValueError(
                f"The batch size must be at least 1 and a multiple of the number of "
                f"workers, {count}, but it is {batch_size}. Pass another --batch-size."
            )
        num_crops = batch_size // count
        crops = self._plan_batch(k, batch_size, is_testing)
        side = self.crop_size
        hr = np.empty((num_crops, side, side, 3), "uint8")
        lr = np.empty((num_crops, side // SCALE, side // SCALE, 3), "uint8")
        part = crops[index * num_crops : (index + 1) * num_crops]
        pairs = []
        for _, group in itertools.groupby(part, lambda crop: crop.file_index):
            pairs += self._make_pairs(list(group))
        for row, pair in enumerate(pairs):
            hr[row], lr[row] = pair
        return Batch(to_float(lr), to_float(hr))

    def _make_pairs(self, crops):
        """Makes (HR, LR), Pillow images, of each of several crops of one image."""
        image = self._read_image(crops[0].file_index)
        num_columns = image.width - self.crop_size + 1  # positions of a crop
        num_rows = image.height - self.crop_size + 1
        corners = [
            (int(crop.left * num_columns), int(crop.top * num_rows)) for crop in crops
        ]
        pairs = cut_crops(image, corners, self.crop_size, self.blur)
        for row, (crop, (hr, lr)) in enumerate(zip(crops, pairs, strict=True)):
            if crop.transpose is not None:
                pairs[row] = hr.transpose(crop.transpose), lr.transpose(crop.transpose)
        return pairs

    def _plan_batch(self, k, batch_size, is_testing):
        """Draws the whole of batch k, whatever part of it this worker makes."""
        rng = np.random.default_rng([self.seed, k])
        # Source: all crops of a batch come from one image. Paper: all from others.
        crops_per_image = self.crops_per_image or batch_size
        num_images = -(-batch_size // crops_per_image)
        images = _draw_distinct(rng, len(self.files), num_images)
        # Source: never draws the last two positions, nor an image of the crop's size.
        # Shares of the range rather than px: an image that takes another's place fits.
        corners = rng.random((batch_size, 2))
        num_variants = 1 if is_testing else AUGMENTATIONS[self.augment]
        variants = rng.integers(len(VARIANTS), size=batch_size) % num_variants
        return [
            Crop(images[row // crops_per_image], *corners[row], VARIANTS[variants[row]])
            for row in range(batch_size)
        ]

    def _read_image(self, index):
        """Returns image number `index`, decoded, or the next one that can be read."""
        for offset in range(len(self.files)):
            path = self.files[(index + offset) % len(self.files)].path
            image = self._cache.get(path)
            if image is None and path not in self.skipped:
                image = self._try_open(path, self.crop_size)
                if image is not None:
                    self._cache.put(path, image)
            if image is not None:
                return image
        raise self._nothing_readable(index)

    def _try_open(self, path, min_side):
        """Opens an image; notes and returns `None` if that fails."""
        try:
            image = open_image(path)
        except UnreadableImageError as error:
            self._skip(path, error.reason)
            return None
        if min(image.size) < min_side:
            self._skip(path, f"now too small, {image.width}x{image.height} px")
            return None
        return image

    def _skip(self, path, reason):
        """Notes, and reports once, that a file is of no use."""
        with self._lock:
            is_new = path not in self.skipped
            self.skipped[path] = reason
        if is_new:
            self.on_skip(path, reason)

    def _nothing_readable(self, index):
        path = self.files[index].path
        return NoImageLeftError(
            f"None of the {len(self.files):,} images in {self.folder} can be read any "
            f"more. {path}: {self.skipped.get(path)}. Check the disk, then run again."
        )

    def load_spec_data(self, output_folder=None):
        """Loads the whole test images, and makes their LR images.

        Reads `test_folder` (source: `datasets/img_test`). If there is no image, the
        first ones of the dataset stand in, the middle of them; `test_images_origin`
        says which.

        Args:
            output_folder: str or `Path` to save the LR images in, as 0.png, 1.png...
                (source: `images/_src`), or `None`.

        Returns:
            A list of `TestImage(name, lr, hr)` sorted by name, of any sizes; HR sides
            are cut to multiples of `SCALE`.

        Raises:
            NoImageLeftError: if no image can be read any more.
        """
        images = list(self._open_test_images())
        if not images:
            images = list(itertools.islice(self._open_stand_ins(), NUM_STAND_INS))
            if not images:
                raise self._nothing_readable(0)
            self.test_images_origin = (
                f"the first {len(images)} images of {self.folder}, because "
                f"{self.test_folder} holds none"
            )
        if output_folder is not None:
            Path(output_folder).mkdir(parents=True, exist_ok=True)
        test_images = []
        for number, (name, hr) in enumerate(images):
            lr = degrade(hr, self.blur)
            if output_folder is not None:
                lr.save(Path(output_folder) / f"{number}.png")
            test_images.append(TestImage(name, to_float(lr), to_float(hr)))
        return test_images

    def _open_test_images(self):
        """Yields (name, HR Pillow image) for each readable image of `test_folder`."""
        if not os.path.isdir(self.test_folder):
            return
        self.test_images_origin = self.test_folder
        scan = scan_folder(self.test_folder, SCALE)
        for path, reason in scan.skipped.items():
            self._skip(path, reason)
        for file in scan.files:
            image = self._try_open(file.path, SCALE)
            if image is not None:
                name = Path(os.path.relpath(file.path, self.test_folder)).as_posix()
                # Source: takes just three, of one size, with sides divisible by 16.
                yield name, _cut(image, max_side=sys.maxsize)

    def _open_stand_ins(self):
        """Yields (name, middle of the image) for each readable image of the dataset."""
        for file in self.files:
            image = self._try_open(file.path, self.crop_size)
            if image is not None:
                yield os.path.basename(file.path), _cut(image, STAND_IN_SIDE)

    def close(self):
        """Ends the threads; `load_data` would start them again."""
        self.seek(self.position)
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _find_dataset(dataset):
    """Returns the folder meant by a name in `datasets/` or by a path."""
    root = Path(DATASETS_FOLDER)
    names = sorted(path.name for path in root.glob("*") if path.is_dir())
    folder = root / dataset if str(dataset) in names else Path(dataset).expanduser()
    if str(dataset) and folder.is_dir():
        return str(folder)
    raise FileNotFoundError(
        f"No dataset {str(dataset)!r}: there is no such folder, neither in "
        f"{DATASETS_FOLDER}/, which holds {', '.join(names) or 'none'}, nor as a path. "
        "Pass one of these names or the path of a folder of images as --dataset."
    )


def _describe_lack(folder, crop_size):
    """Says why a folder without a usable image has none, and what to do."""
    scan = scan_folder(folder, 1)
    if not scan.files and not scan.skipped:
        return (
            f"No image in {folder}. Put photographs there "
            f"({' '.join(IMAGE_SUFFIXES)}), or pass another folder as --dataset."
        )
    if not scan.files:
        path, reason = next(iter(scan.skipped.items()))
        return (
            f"No readable image in {folder}: {len(scan.skipped)} files, such as {path} "
            f"({reason}). Pass another folder as --dataset."
        )
    largest = max(scan.files, key=lambda file: (min(file[1:]), max(file[1:])))
    return (
        f"No image in {folder} is as large as the crop, {crop_size} px. The largest is "
        f"{os.path.basename(largest.path)}, {largest.width}x{largest.height} px. "
        "Pass a smaller --crop-size."
    )
