"""How LR images are made from originals: cleanly, or damaged as photographs are.

    python -c "from support import degradation; degradation.save_contact_sheet('PATH')"

`source` and `bicubic` blur, then reduce by bicubic filtering. `photo` draws, for each
image, what cameras and the web do to photographs: one round of what Zhang et al. 2021
(BSRGAN) and Wang et al. 2021 (Real-ESRGAN) train on, in narrower ranges.
"""

import io
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from support.pixels import SCALE

SOURCE_BLUR = 1.5  # Pillow's GaussianBlur radius, HR px
DEFAULT_BLURS = {"source": SOURCE_BLUR, "bicubic": 0.0, "photo": 0.0}  # HR px
# What `photo` draws: ranges are drawn from evenly, and a share of images is spared.
PHOTO_BLUR = (0.0, 2.0)  # sigma, HR px
UNBLURRED_SHARE = 1 / 3
PHOTO_FILTERS = ("BOX", "BILINEAR", "BICUBIC", "LANCZOS")  # Pillow's
PHOTO_NOISE = (0.1, 10.0)  # sigma, levels of 255, added to LR
NOISELESS_SHARE = 1 / 3
POISSON_SHARE = 1 / 2  # of noise; the other is Gaussian
GRAY_NOISE_SHARE = 1 / 2  # of noise: in luminance only
JPEG_QUALITY = (40, 95)  # of LR
UNCOMPRESSED_SHARE = 1 / 4
JPEG_SUBSAMPLINGS = ("4:2:0", "4:4:4")  # resolution of the colors
JPEG_BLOCK = 16  # px, the largest, of the colors of 4:2:0
SHEET_CROP = 384  # HR px, of the contact sheet
SHEET_CROPS = 16


class Degradation(NamedTuple):
    """How LR images are made: a key of `DEFAULT_BLURS`, and a blur radius in HR px."""

    name: str
    blur: float

    def __str__(self):
        return "degradation photo" if self.name == "photo" else f"blur {self.blur:g}"

    def apply(self, hr, seed):
        """Makes the LR image of an RGB Pillow image; `seed` is a list of ints >= 0."""
        if self.name == "photo":
            rng = np.random.default_rng(seed)
            return apply_damage(hr, draw_damage(rng), rng)
        return degrade(hr, self.blur)


def choose_degradation(name, blur=None):
    """Returns a `Degradation`, or raises `ValueError`; its own blur is the default."""
    if name not in DEFAULT_BLURS:
        known = ", ".join(DEFAULT_BLURS)
        raise ValueError(f"--degradation {name!r} is none of {known}.")
    if blur is None:
        blur = DEFAULT_BLURS[name]
    if not 0 <= blur < float("inf"):  # nor NaN
        raise ValueError(f"--blur {blur} is not a radius >= 0 in px.")
    if name == "photo" and blur > 0:
        raise ValueError("--degradation photo draws its own blur. Omit --blur.")
    return Degradation(name, blur)


def seed_of(name):
    """Returns the seed of a test image: its path up to the first dot of its name."""
    path = PurePosixPath(name)
    return list(bytes(path.with_name(path.name.split(".")[0])))


def degrade(image, blur, resampling=Image.Resampling.BICUBIC):
    """Makes a quarter-size Pillow image: Gaussian blur of a radius, then a filter."""
    if blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    width, height = image.size
    return image.resize((width // SCALE, height // SCALE), resampling)


class Damage(NamedTuple):
    """What one photograph suffers, in this order; 0 leaves a step out."""

    blur: float  # sigma, HR px
    resampling: Image.Resampling
    noise: float  # sigma, levels of 255; Poisson noise has it at white
    is_poisson: bool
    is_gray: bool  # the same noise in all channels
    quality: int  # of JPEG
    subsampling: str
    block_corner: tuple = (0, 0)  # LR px from the image's corner to JPEG's first block

    def __str__(self):
        steps = [self.resampling.name.lower()]
        if self.blur:
            steps.append(f"blur {self.blur:.1f}")
        if self.noise:
            steps.append(f"noise {self.noise:.1f}")
        if self.quality:
            steps.append(f"JPEG {self.quality}")
        return ", ".join(steps)


def draw_damage(rng):
    """Draws what one photograph suffers."""
    blur = noise = quality = 0
    if rng.random() >= UNBLURRED_SHARE:
        blur = rng.uniform(*PHOTO_BLUR)
    if rng.random() >= NOISELESS_SHARE:
        noise = rng.uniform(*PHOTO_NOISE)
    if rng.random() >= UNCOMPRESSED_SHARE:
        quality = int(rng.integers(*JPEG_QUALITY, endpoint=True))
    return Damage(
        blur=blur,
        resampling=Image.Resampling[rng.choice(PHOTO_FILTERS)],
        noise=noise,
        is_poisson=rng.random() < POISSON_SHARE,
        is_gray=rng.random() < GRAY_NOISE_SHARE,
        quality=quality,
        subsampling=str(rng.choice(JPEG_SUBSAMPLINGS)),
        block_corner=tuple(rng.integers(JPEG_BLOCK, size=2).tolist()),
    )


def apply_damage(hr, damage, rng):
    """Makes the LR image of an RGB Pillow image; `rng` draws the noise."""
    lr = degrade(hr, damage.blur, damage.resampling)
    if damage.noise > 0:
        lr = _add_noise(lr, damage, rng)
    if damage.quality > 0:
        lr = _compress(lr, damage)
    return lr


def _add_noise(lr, damage, rng):
    levels = np.asarray(lr, "float32")
    signal = levels
    if damage.is_gray:
        signal = np.asarray(lr.convert("L"), "float32")[..., np.newaxis]
    if damage.is_poisson:
        photons = (255 / damage.noise) ** 2  # of a white pixel
        noise = rng.poisson(photons / 255 * signal) * (255 / photons) - signal
    else:
        noise = rng.normal(0, damage.noise, signal.shape)
    noisy = np.clip(np.rint(levels + noise), 0, 255)
    return Image.fromarray(noisy.astype("uint8"))


def _compress(lr, damage):
    """Saves as JPEG; blocks that begin at every crop's corner would be too easy."""
    left, top = damage.block_corner
    padded = np.pad(lr, ((top, 0), (left, 0), (0, 0)), "symmetric")
    file = io.BytesIO()
    options = {"quality": damage.quality, "subsampling": damage.subsampling}
    Image.fromarray(padded).save(file, "JPEG", **options)
    compressed = Image.open(file).convert("RGB")
    return compressed.crop((left, top, left + lr.width, top + lr.height))


def save_contact_sheet(folder, path="images/photo_degradation.png"):
    """Draws squares from a folder's first images as `photo` degrades them."""
    from support import figures, image_files  # which need more than Pillow and NumPy

    files, _ = image_files.find_images(folder)
    if not files:
        raise ValueError(f"No image in {folder}.")
    panels = {}
    for number in range(SHEET_CROPS):
        image = image_files.read_rgb(files[number % len(files)])
        crop = ImageOps.fit(image, (SHEET_CROP, SHEET_CROP))
        rng = np.random.default_rng(number)
        damage = draw_damage(rng)
        panels[f"{number}: {damage}"] = np.asarray(apply_damage(crop, damage, rng))
    figures.save_comparison_sheet(panels, path, title="LR images of photo")
    print(f"Contact sheet: {path}")
