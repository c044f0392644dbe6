"""Generates "dead leaves" training images: nothing to download, no copyright.

    python sample_data.py --count 2000 --size 384 --seed 0 --output datasets/leaves

Random opaque shapes fall on one another until they cover the picture. If their sizes
follow a power law, edges and spectra resemble those of photographs (Lee, Mumford and
Huang, IJCV 2001), and restoration networks trained on such pictures work on real ones
(Achddou, Gousseau and Ladjal, SSVM 2021).
"""

import shutil
from pathlib import Path

from support import command_line

with command_line.quiet_imports(__name__):
    import matplotlib.cbook
    import numpy as np
    from PIL import Image, ImageChops, ImageDraw, ImageFilter, PngImagePlugin

    from support.command_line import ArgumentParser, non_negative_int, positive_int
    from support.image_files import atomic_path

SAMPLE_COUNT = 48  # pictures
SAMPLE_SIZE = 256  # px
SAMPLE_SEED, TEST_SEED = 0, 1
NUM_TEST_LEAVES = 2  # pictures, besides the photograph
PHOTOGRAPH = "grace_hopper.jpg"  # from matplotlib; US Navy, public domain

RECIPE = 4  # increase when pictures change: older ones are then drawn again
OVERSAMPLING = 2  # pictures are drawn larger, then averaged: antialiased edges
NUM_LARGE = 30  # leaves that cover the background
LARGE_RADII = (1 / 8, 1 / 3)  # fractions of the picture's side
NUM_SMALL = (100, 1500)  # leaves in front, from plain walls to foliage
SMALL_RADII = (1.0, 4.0)  # px, the smallest leaf of a picture
MAX_STRETCH = 2.0  # times as long, and half as wide
BLURS = (0, 0, 0, 0.02, 0.15)  # of a leaf's edge, fractions of its radius
TILTS = (0.1, 3.0)  # radians, standard deviation: nearly upright, or any direction
NUM_COLOURS = 20  # in a picture
HUE_SPREAD = 0.3  # of log(gamma): of a picture's colors, and between them
TEXTURED = 0.8  # fraction of the leaves
NUM_NOISES, NUM_STRIPES = 4, 2  # textures in a picture
NOISE_EXPONENTS = (0.5, 2.0)  # amplitude is 1 / frequency**exponent
NOISE_STRETCHES = (1, 1, 4, 8)  # the last two look like wood or fur
STRIPE_PERIODS = (2.5, 40.0)  # px
CONTRASTS = (10, 200)  # levels, standard deviation: faint to black and white


def _log_uniform(limits, rng):
    return float(np.exp(rng.uniform(*np.log(limits))))


def _random_outline(rng):
    """Returns the corners `(n, 2)` of a shape of radius 1 around the origin."""
    ellipse = np.linspace(0, 2 * np.pi, 32)
    rectangle = np.pi * np.array([0.25, 0.75, 1.25, 1.75])
    polygon = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    turns = (ellipse, rectangle, polygon)[rng.integers(3)]
    stretch = MAX_STRETCH ** rng.uniform(-1, 1)
    x, y = _rotate(stretch * np.cos(turns), np.sin(turns) / stretch, rng)
    return np.stack([x, y], axis=1)


def _random_noise(side, rng):
    """Returns a texture (mode L): noise with a random spectrum."""
    x, y = _rotate(np.fft.rfftfreq(side), np.fft.fftfreq(side)[:, None], rng)
    frequency = np.hypot(x * rng.choice(NOISE_STRETCHES), y) + 1 / side
    spectrum = np.fft.rfft2(rng.standard_normal((side, side)))
    spectrum *= frequency ** -rng.uniform(*NOISE_EXPONENTS)
    return _texture(np.fft.irfft2(spectrum, (side, side)), rng)


def _random_stripes(side, rng):
    """Returns a texture (mode L): parallel stripes, soft or hard."""
    x, _ = _rotate(np.arange(side), np.arange(side)[:, None], rng)
    period = OVERSAMPLING * _log_uniform(STRIPE_PERIODS, rng)
    return _texture(np.sin(2 * np.pi / period * x), rng)


def _rotate(x, y, rng):
    angle = rng.normal(0, rng.choice(TILTS))
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x - sin * y, sin * x + cos * y


def _texture(values, rng):
    levels = 128 + _log_uniform(CONTRASTS, rng) * values / values.std()
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def draw_leaves(size, seed):
    """Returns a Pillow image; `seed` is an int or a sequence such as `(seed, k)`."""
    rng = np.random.default_rng(seed)
    side = size * OVERSAMPLING
    # Related colors, of which the darkest and the brightest are nearly gray.
    hues = rng.normal(0, HUE_SPREAD, (NUM_COLOURS, 3))
    gamma = np.exp(hues + rng.normal(0, HUE_SPREAD, 3))
    colors = (255 * rng.random((NUM_COLOURS, 1)) ** gamma).astype(int).tolist()
    textures = [_random_noise(side, rng) for _ in range(NUM_NOISES)]
    textures += [_random_stripes(side, rng) for _ in range(NUM_STRIPES)]
    canvas = Image.new("RGB", (side, side), tuple(colors[0]))
    large = side * rng.uniform(*LARGE_RADII, NUM_LARGE)
    smallest = OVERSAMPLING * _log_uniform(SMALL_RADII, rng)
    # Density ~ radius**-3.
    small = smallest * (1 + rng.pareto(2, int(_log_uniform(NUM_SMALL, rng))))
    for radius in (*large, *np.minimum(small, large.max())):
        _add_leaf(canvas, radius, colors, textures, rng)
    return canvas.reduce(OVERSAMPLING)


def _add_leaf(canvas, radius, colors, textures, rng):
    """Adds an ellipse, a rectangle or a polygon; flat or textured, hard or soft."""
    outline = radius * _random_outline(rng) + rng.uniform(0, canvas.width, 2)
    blur = float(radius * rng.choice(BLURS))
    margin = 2 * blur + 1
    left, top = (outline.min(axis=0) - margin).astype(int).tolist()
    right, bottom = (outline.max(axis=0) + margin).astype(int).tolist()
    box = (left, top, right, bottom)
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).polygon((outline - (left, top)).ravel().tolist(), 255)
    mask = mask.filter(ImageFilter.GaussianBlur(blur))
    first, second = rng.choice(colors, 2).tolist()
    canvas.paste(tuple(first), box, mask)
    if rng.random() < TEXTURED:
        texture = textures[rng.integers(len(textures))]
        shift = rng.integers(canvas.width, size=2).tolist()
        mask = ImageChops.multiply(mask, ImageChops.offset(texture, *shift).crop(box))
        canvas.paste(tuple(second), box, mask)


def write_dataset(folder, count, size, seed, is_output=False):
    """Writes `leaf-00000.png`, ..., and returns how many were missing, or others.

    Images that are listed as output are only read if their folder itself is named.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    missing = {}
    for k in range(count):
        path = Path(folder, f"leaf-{k:05d}.png")
        comment = f"recipe {RECIPE}, {size} px, seed {seed}, picture {k}"
        if not _is_drawn(path, comment):
            missing[k] = path, comment
    if missing:
        print(f"Drawing {len(missing)} pictures of {size} px in {folder}.", flush=True)
    for k, (path, comment) in missing.items():
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Comment", comment)
        with atomic_path(path, is_output) as temporary:
            draw_leaves(size, (seed, k)).save(temporary, format="PNG", pnginfo=notes)
    return len(missing)


def _is_drawn(path, comment):
    """Tells whether a picture is there, intact, and has this comment."""
    try:
        with Image.open(path) as image:
            image.verify()
            return image.info.get("Comment") == comment
    except (OSError, SyntaxError):  # missing or corrupt
        return False


def write_sample_dataset(datasets_folder="datasets"):
    """Writes the demo's pictures unless they exist; returns the test images' folder."""
    training, test = (Path(datasets_folder, name) for name in ("sample", "sample_test"))
    write_dataset(training, SAMPLE_COUNT, SAMPLE_SIZE, SAMPLE_SEED, is_output=True)
    write_dataset(test, NUM_TEST_LEAVES, SAMPLE_SIZE, TEST_SEED, is_output=True)
    if not (test / PHOTOGRAPH).exists():
        source = matplotlib.cbook.get_sample_data(PHOTOGRAPH, asfileobj=False)
        with atomic_path(test / PHOTOGRAPH) as temporary:
            shutil.copyfile(source, temporary)
    return test


def parse_args(argv=None):
    """Reads the command line."""
    parser = ArgumentParser(description='Generates "dead leaves" training images.')
    add = parser.add_argument
    add("--count", type=positive_int, metavar="N", default=2000, help="images")
    add("--size", type=positive_int, metavar="PX", default=384, help="side in px")
    add("--seed", type=non_negative_int, metavar="N", default=0, help="random seed")
    add("--output", metavar="FOLDER", default="datasets/leaves", help="output folder")
    return parser.parse_args(argv)


def main(argv=None):
    """Writes a dataset and returns the exit code."""
    args = parse_args(argv)
    with command_line.usage_errors():
        command_line.check_writable(Path(args.output, "leaf"))
    num_drawn = write_dataset(args.output, args.count, args.size, args.seed)
    print(f"Drew {num_drawn} pictures; {args.count - num_drawn} were already there.")
    return 0


if __name__ == "__main__":
    command_line.run(main)
