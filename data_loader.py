"""Finds, checks, crops and degrades photographs, a few batches ahead of training.

    python -c "import data_loader; print(data_loader.DataLoader('PATH').summary())"

Batch k is a pure function of the seed, the stream, k and the list of files, so a run
resumes exactly without any stored state of the reader.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from support import image_files, pixels, test_images
from support.degradation import choose_degradation

MIN_CROP = 16  # px, one position of the discriminator's patch grid
SOURCE_DATASET = "test2017"  # COCO
SOURCE_CROP = 256  # px
DATASETS_FOLDER = "datasets"
TEST_FOLDER = "datasets/img_test"
STREAMS = ("pre_training", "training", "statistics", "samples")  # independent series
AUGMENTATIONS = {
    "none": (None,),
    "flip": (None, Image.Transpose.FLIP_LEFT_RIGHT),  # source
    "dihedral": (None, *Image.Transpose),  # all eight flips and quarter turns
}
CACHE_BYTES = 2**30  # for decoded images, which are kept if all of them fit
PIXEL_BYTES = 4  # Pillow stores RGB in 4 bytes per pixel
NUM_THREADS = min(4, max(2, os.cpu_count() or 1))
BATCHES_AHEAD = 4  # 13 MB each for 16 crops of 256 px
SCAN_THREADS = 8  # more than processors, because disks make them wait
MAX_NAMED = 5  # skipped files named in a summary
NUM_STAND_INS = 3  # test images taken from the dataset if there are no others
STAND_IN_SIDE = 512  # px


class Batch(NamedTuple):
    """Matching crops, float32 RGB in [-1, 1]: (n, h, w, 3) and (n, 4h, 4w, 3)."""

    lr: np.ndarray
    hr: np.ndarray


class NoImageLeftError(RuntimeError):
    """None of the images found at the start can be read any more."""


def find_dataset(dataset):
    """Returns the folder meant by a name in `datasets/` or by a path."""
    names = sorted(path.name for path in Path(DATASETS_FOLDER).glob("*/"))
    parent = DATASETS_FOLDER if str(dataset) in names else ""
    folder = Path(parent, dataset).expanduser()
    if str(dataset) and folder.is_dir():
        return folder
    raise FileNotFoundError(
        f"There is no dataset {str(dataset)!r}, as a path or in {DATASETS_FOLDER}/, "
        f"which holds {', '.join(names) or 'none'}. Pass another --dataset."
    )


def check_crop_size(crop_size):
    """Raises `ValueError` unless the networks can be trained on such crops."""
    if crop_size < MIN_CROP or crop_size % pixels.SCALE:
        raise ValueError(
            f"--crop-size {crop_size} is not a multiple of {pixels.SCALE}, at "
            f"least {MIN_CROP}."
        )


def save_lr_images(images, folder):
    """Saves the LR images of a list of `TestImage`, as 0.png, 1.png, ... (source)."""
    for number, image in enumerate(images):
        path = Path(folder, f"{number}.png")
        image_files.save_image(pixels.to_uint8(image.lr), path)


class DataLoader:
    """Batches of random matching HR and LR crops from any folder of images.

    A context manager, for one thread. Attributes `files` and `skipped` hold what was
    found.

    Args:
        dataset: str or `Path`, a name in `datasets/`, or the path of a folder.
        crop_size: int, side of the HR crops in px, a multiple of 4, at least 16.
        blur: float >= 0, radius of the Gaussian blur in HR px before downscaling, or
            `None` for the degradation's own: 1.5 for `"source"`, else 0.
        crops_per_image: int >= 1, or `None` or 0 for all crops of a batch from one
            image (source); 1 takes each crop from another image (paper).
        seed: int >= 0, for all random choices.
        augment: `"none"`, `"flip"` (source: left-right, with probability 1/2), or
            `"dihedral"` (all eight flips and quarter turns).
        exclude: paths of folders inside the dataset that are not searched.
        crop_scales: ints >= 1, one of which is drawn for each crop: it is cut from the
            image reduced so many times by Lanczos. Smaller images use scale 1.
        shard: `(index, count)` of a worker, which makes its part of each batch.
        degradation: `"source"` or `"bicubic"`, which only differ in `blur`'s default,
            or `"photo"`, which draws blur, filter, noise and JPEG for each crop.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ValueError: if an argument is out of range or no image is large enough.
    """

    def __init__(
        self,
        dataset=SOURCE_DATASET,
        crop_size=SOURCE_CROP,
        blur=None,
        crops_per_image=None,
        seed=0,
        augment="flip",
        exclude=(),
        crop_scales=(1,),
        shard=(0, 1),
        degradation="source",
    ):
        check_crop_size(crop_size)
        if augment not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise ValueError(f"Unknown augment {augment!r}. Known: {known}.")
        if crops_per_image is not None and crops_per_image < 0:
            raise ValueError(f"crops_per_image {crops_per_image} is less than 0.")
        if not crop_scales or any(
            scale < 1 or scale != int(scale) for scale in crop_scales
        ):
            raise ValueError(
                f"crop_scales must be whole numbers >= 1, not {crop_scales}."
            )
        self.degradation = choose_degradation(degradation, blur)
        self.crop_size = crop_size
        self.crops_per_image = crops_per_image
        self.seed = seed
        self.variants = AUGMENTATIONS[augment]
        self.exclude = exclude
        self.crop_scales = crop_scales
        self.shard = shard
        self.folder = find_dataset(dataset)
        self._find_files()
        num_pixels = sum(
            (width // scale) * (height // scale)
            for width, height in self._sizes.values()
            for scale in {1, *crop_scales}
        )
        self._is_caching = PIXEL_BYTES * num_pixels <= CACHE_BYTES
        self._cache = {}  # {path: {scale: image reduced so many times}}
        self._pool = ThreadPoolExecutor(NUM_THREADS)
        self._ahead = {}  # futures of the next batches
        self.seek(0)

    def _find_files(self):
        """Lists the images that are as large as a crop, by their headers."""
        paths, self.skipped = image_files.find_images(self.folder, self.exclude)
        with ThreadPoolExecutor(SCAN_THREADS) as pool:
            futures = {path: pool.submit(image_files.read_size, path) for path in paths}
        sizes = {}
        for path, future in futures.items():
            try:
                sizes[path] = future.result()
                test_images.check_side(path, sizes[path], self.crop_size)
            except image_files.UnreadableImageError as error:
                self.skipped[path] = error.reason
        self.files = [path for path in sizes if path not in self.skipped]
        if not sizes:
            raise ValueError(f"No image. {self.summary()}\nPass another --dataset.")
        if not self.files:
            largest = max(sizes, key=lambda path: min(sizes[path]))
            width, height = sizes[largest]
            raise ValueError(
                f"No image in {self.folder} is as large as the crop, {self.crop_size} "
                f"px. The largest is {largest.name}, {width}x{height} px. Pass a "
                "smaller --crop-size."
            )
        self._sizes = {path: sizes[path] for path in self.files}

    def summary(self):
        """Returns lines that count the images found and name the first skipped ones."""
        lines = [
            f"{self.folder}: {len(self.files):,} images of at least {self.crop_size} "
            f"px, {len(self.skipped):,} files skipped."
        ]
        for path, reason in list(self.skipped.items())[:MAX_NAMED]:
            lines.append(f"  {os.path.relpath(path, self.folder)}: {reason}.")
        return "\n".join(lines)

    def fingerprint(self):
        """Returns a str that changes with the list of files and their sizes."""
        rows = [
            (path.relative_to(self.folder).as_posix(), *size)
            for path, size in self._sizes.items()
        ]
        digest = hashlib.sha256(repr(rows).encode()).hexdigest()
        return f"{len(rows)} images, list {digest[:12]}"

    def seek(self, k, stream=STREAMS[0]):
        """Makes batch `k` (int >= 0) of a stream the next one of `load_data`."""
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()
        self._next, self._stream = k, stream

    def load_data(self, batch_size=1, is_testing=False):
        """Returns the next batch, which threads have usually made by now.

        Args:
            batch_size: int >= 1, crops of the batch over all workers.
            is_testing: bool; if `True`, crops are never flipped.

        Returns:
            `Batch(lr, hr)`, float32 RGB in [-1, 1]: `hr` is `(n, crop_size, crop_size,
            3)`, `lr` has a quarter of each side, n is this worker's part of
            `batch_size`.

        Raises:
            ValueError: if `batch_size` cannot be split between the workers.
            NoImageLeftError: if no image can be read any more.
        """
        requests = [
            (k, batch_size, self._stream, is_testing, self.shard)
            for k in range(self._next, self._next + BATCHES_AHEAD + 1)
        ]
        for request in requests:
            if request not in self._ahead:
                self._ahead[request] = self._pool.submit(self.make_batch, *request)
        batch = self._ahead[requests[0]].result()
        self._next += 1
        for request in list(self._ahead):  # of other sizes, too
            if request[0] < self._next:
                self._ahead.pop(request).cancel()
        return batch

    def make_batch(
        self, k, batch_size, stream=STREAMS[0], is_testing=False, shard=(0, 1)
    ):
        """Makes batch k of a stream, or a worker's part of it; see `load_data`."""
        index, count = shard
        if batch_size < 1 or batch_size % count:
            raise ValueError(
                f"--batch-size {batch_size} is not a multiple of the {count} workers."
            )
        rng = np.random.default_rng([self.seed, STREAMS.index(stream), k])
        num_files = len(self.files)
        # Source: all crops of a batch come from one image. Paper: each from another.
        crops_per_image = self.crops_per_image or batch_size
        num_images = -(-batch_size // crops_per_image)
        images = rng.choice(num_files, num_images, replace=num_images > num_files)
        # Source: never draws the last two positions, nor an image of the crop's size.
        corners = rng.random((batch_size, 2))  # as shares of the range
        variants = rng.integers(len(self.variants), size=batch_size)
        scales = rng.choice(self.crop_scales, size=batch_size)
        hr, lr = [], []
        num_rows = batch_size // count
        for row in range(index * num_rows, (index + 1) * num_rows):
            if not hr or row % crops_per_image == 0:
                reductions = self._read_image(images[row // crops_per_image])
            crop = self._cut(reductions, corners[row], int(scales[row]))
            variant = None if is_testing else self.variants[variants[row]]
            hr.append(crop if variant is None else crop.transpose(variant))
            # Not `row`, because NumPy's seeds [..., k] and [..., k, 0] are the same.
            seed = [self.seed, STREAMS.index(stream), k, row + 1]
            lr.append(self.degradation.apply(hr[-1], seed))
        return Batch(pixels.to_float(lr), pixels.to_float(hr))

    def _cut(self, reductions, corner, scale):
        """Cuts a crop from a scale of `_read_image`; the corner is given as shares."""
        image = reductions[1]
        if min(image.size) < scale * self.crop_size:
            scale = 1
        width, height = image.width // scale, image.height // scale
        num_positions = np.array([width, height]) - self.crop_size + 1
        left, top = (corner * num_positions).astype(int).tolist()
        box = (left, top, left + self.crop_size, top + self.crop_size)
        if not self._is_caching and scale > 1:
            # The same pixels as below, because the filter also reads around its box.
            return image.resize(
                (self.crop_size, self.crop_size),
                Image.Resampling.LANCZOS,
                box=[scale * side for side in box],
            )
        if scale not in reductions:
            reductions[scale] = image.resize(
                (width, height),
                Image.Resampling.LANCZOS,
                box=(0, 0, scale * width, scale * height),
            )
        return reductions[scale].crop(box)

    def _read_image(self, index):
        """Decodes image `index`, or the next one that can be read.

        Returns {scale: image reduced so many times}, to which `_cut` adds.
        """
        for path in self.files[index:] + self.files[:index]:
            if path in self._cache:
                return self._cache[path]
            if path in self.skipped:
                continue
            try:
                image = image_files.read_rgb(path)
                test_images.check_side(path, image.size, self.crop_size)
            except image_files.UnreadableImageError as error:
                if path not in self.skipped:
                    print(f"Skipped {path}: {error.reason}")
                self.skipped[path] = error.reason
                continue
            reductions = {1: image}
            if self._is_caching:
                self._cache[path] = reductions
            return reductions
        raise NoImageLeftError(
            f"None of the images in {self.folder} can be read any more "
            f"({self.skipped[self.files[index]]}). Check the disk, then run again."
        )

    def load_spec_data(self, test_folder=TEST_FOLDER, output_folder=None):
        """Loads whole test images, and makes their LR images.

        If the default folder does not exist, the middle of the dataset's first images
        stands in.

        Args:
            test_folder: path (source: `datasets/img_test`).
            output_folder: path for the LR images, as 0.png, 1.png, ... (source:
                `images/_src`), or `None`.

        Returns:
            A list of `TestImage`, sorted by name, of any sizes; HR sides are cut to
            multiples of `SCALE`.

        Raises:
            FileNotFoundError: if `test_folder` holds no readable image.
        """
        folder = Path(test_folder)
        paths, skipped, images = [], {}, []
        has_stand_ins = folder == Path(TEST_FOLDER) and not folder.exists()
        if has_stand_ins:
            folder, paths = self.folder, self.files[:NUM_STAND_INS]
        elif folder.is_dir():
            paths, skipped = image_files.find_images(folder, self.exclude)
        for path in paths:
            try:
                hr = image_files.read_rgb(path)
                test_images.check_side(path, hr.size, pixels.SCALE)
            except image_files.UnreadableImageError as error:
                skipped[path] = error.reason
                continue
            if has_stand_ins:
                left, top = (max(0, side - STAND_IN_SIDE) // 2 for side in hr.size)
                hr = hr.crop((left, top, hr.width - left, hr.height - top))
            name = path.relative_to(folder).as_posix()
            images.append(test_images.make_test_image(name, hr, self.degradation))
        for path, reason in skipped.items():
            print(f"Skipped {path}: {reason}")
        if not images:
            error = "No readable image in" if folder.is_dir() else "There is no folder"
            raise FileNotFoundError(f"{error} {folder}. Pass another --test-images.")
        note = f" (training images: there is no {TEST_FOLDER})" if has_stand_ins else ""
        print(f"Test images: {len(images)} from {folder}{note}.")
        if output_folder is not None:
            save_lr_images(images, output_folder)
        return images

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._pool.shutdown(wait=False, cancel_futures=True)
