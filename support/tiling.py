"""Enlarges images of any size in bounded memory, tile by tile, without seams.

    python -c "from support import tiling; help(tiling.enlarge)"

Each tile is computed from a window that also holds as much of its surroundings as the
network sees (`networks.receptive_field_radius`), so that it comes out as it would in
the whole image. Beyond the image's border, its reflection takes their place.
"""

import numpy as np

from networks import receptive_field_radius
from support.pixels import SCALE, to_float

# LR px, the side of a tile. Some 7 KiB of memory for each pixel of a window make
# 0.8 GB for the largest. There are few sizes, because on a GPU Keras compiles the
# network for each of them.
TILE_SIZES = (64, 128, 256)
LUMA = np.array([0.299, 0.587, 0.114], "float32")  # ITU-R BT.601, as Pillow's "L"
TOLERANCE = (
    2.5 / 127.5
)  # two levels of 8 bits, by which lossy formats change plain areas
SURROUNDINGS = 2  # LR px, as far as an area must be plain for its pixels to count
FADE = 6  # LR px, over which black and white areas pass into what the network draws


def enlarge(generator, lr, tile=None, encode=None, progress=None):
    """Enlarges an image by `SCALE`; the size of the tiles does not show.

    The network pads every layer's input with zeros, which darkens borders, so it gets
    the image's reflection as context there. Gray areas get no tint from it. Black and
    white areas stay as they are: the networks' tanh does not reach them.

    Args:
        generator: `keras.Model` of `networks.build_generator`.
        lr: `(h, w, 3)` RGB, float in [-1, 1] or uint8 in [0, 255].
        tile: int >= 1, side of a tile in LR px, or `None` for one of `TILE_SIZES`.
        encode: callable that converts a float32 `(a, b, 3)` piece of the result, in
            [-1, 1], to what is stored, so that large images are never held as floats;
            `None` stores the piece.
        progress: callable of (tiles done, tiles in all), or `None`.

    Returns:
        `(4h, 4w, 3)` float32 in [-1, 1], or what `encode` makes of it.

    Raises:
        ValueError: if `lr` is not such an image.
    """
    lr = np.asarray(lr)
    if lr.ndim != 3 or lr.shape[-1] != 3 or lr.size == 0 or lr.dtype.kind not in "fu":
        raise ValueError(
            "An image to enlarge must be (height, width, 3), float in [-1, 1] or "
            f"uint8. Received: {lr.dtype} {lr.shape}."
        )
    if lr.dtype.kind == "u" and lr.dtype != np.uint8:
        raise ValueError(f"Integer images must be uint8. Received: {lr.dtype}.")
    height, width, _ = lr.shape
    context = max(receptive_field_radius(generator), SURROUNDINGS + FADE)
    if tile is None:
        longest = max(height, width)
        tile = next((size for size in TILE_SIZES if size >= longest), TILE_SIZES[-1])
    # Windows have one size, so the last ones reach beyond the image.
    ends = [(context, context + -side % tile) for side in (height, width)]
    padded = np.pad(lr, (*ends, (0, 0)), mode="symmetric")
    corners = [(y, x) for y in range(0, height, tile) for x in range(0, width, tile)]
    sr = None
    for number, (top, left) in enumerate(corners, start=1):
        side = tile + 2 * context
        window = padded[top : top + side, left : left + side]
        piece = _enlarge_window(generator, window, context)
        piece = piece[: SCALE * (height - top), : SCALE * (width - left)]
        piece = encode(piece) if encode else piece
        if sr is None:
            shape = (SCALE * height, SCALE * width, *piece.shape[2:])
            sr = np.empty(shape, piece.dtype)
        rows, columns = piece.shape[:2]
        y, x = SCALE * top, SCALE * left
        sr[y : y + rows, x : x + columns] = piece
        if progress is not None:
            progress(number, len(corners))
    return sr


def _enlarge_window(generator, window, context):
    """Enlarges a window `(h, w, 3)` and cuts its context off."""
    window = to_float(window) if window.dtype == np.uint8 else window.astype("float32")
    sr = generator.predict_on_batch(window[np.newaxis])[0]
    sr = sr[SCALE * context : -SCALE * context, SCALE * context : -SCALE * context]
    inner = window[context:-context, context:-context]

    is_gray = np.ptp(window, axis=-1) <= TOLERANCE
    is_gray = _erode(is_gray)[context:-context, context:-context]
    if is_gray.any():
        # The network decides on brightness, and the input on color.
        brightness = (sr @ LUMA)[..., np.newaxis]
        color = inner - (inner @ LUMA)[..., np.newaxis]
        untinted = brightness + _repeat(color)
        sr = np.where(_repeat(is_gray)[..., np.newaxis], untinted, sr)

    for level in np.float32([-1, 1]):
        is_plain = _erode((np.abs(window - level) <= TOLERANCE).all(axis=-1))
        if is_plain.any():
            weights = _fade(is_plain)[context:-context, context:-context]
            weights = _repeat(weights)[..., np.newaxis]
            sr = (1 - weights) * sr + weights * _repeat(inner)
    return sr


def _erode(mask):
    """Keeps pixels of a mask whose neighbors within `SURROUNDINGS` all are `True`."""
    for axis in (0, 1):
        shifts = range(-SURROUNDINGS, SURROUNDINGS + 1)
        mask = np.logical_and.reduce([np.roll(mask, shift, axis) for shift in shifts])
    return mask


def _fade(mask):
    """Returns weights that rise gently from 0 at a mask's border to 1 inside."""
    weights = mask.astype("float32")
    for axis in (0, 1):
        shifts = range(-FADE, FADE + 1)
        weights = np.mean([np.roll(weights, shift, axis) for shift in shifts], axis=0)
    return mask * np.maximum(2 * weights - 1, 0)  # the mean is 1/2 at a border


def _repeat(pixels):
    """Enlarges by repeating pixels."""
    return pixels.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
