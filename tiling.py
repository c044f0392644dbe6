"""Enlarges images of any size in bounded memory, tile by tile, without seams.

    python -c "import tiling; help(tiling.enlarge)"

A tile is computed from a window that reaches as far beyond it as the network looks
(`networks.receptive_field_radius`), so it comes out as it would in the whole image.
Every convolution pads its own input with zeros where the image ends. Windows are
therefore moved inwards until they end where the image does, and never padded: at an
image's border all layers see the zeros that they see in the whole image.
"""

import math
from typing import NamedTuple

import numpy as np

from data_loader import SCALE, to_float, to_uint8
from networks import receptive_field_radius
from quiet import keras

MEMORY_BUDGET = 2**30  # bytes for the activations of one window
# Peak memory of a window, in values per LR pixel and filter of the widest layer.
# Measured on a CPU, 256 filters: 7 KiB a pixel in float32, 3.5 KiB in bfloat16.
VALUES_PER_FILTER = 7.5
MIN_TILE = 16  # LR px; a smaller tile saves no memory, its context has 80 px already


class Span(NamedTuple):
    """A window along an axis, LR px: `start` to `end` read, `keep` to `stop` kept."""

    start: int
    end: int
    keep: int
    stop: int

    @property
    def window(self):
        """What is read of the image."""
        return slice(self.start, self.end)

    @property
    def cut(self):
        """What is kept of the enlarged window."""
        return slice(SCALE * (self.keep - self.start), SCALE * (self.stop - self.start))

    @property
    def place(self):
        """Where that goes in the result."""
        return slice(SCALE * self.keep, SCALE * self.stop)


def enlarge(generator, lr, tile=None, encode=None, progress=None, note=print):
    """Enlarges an image by `SCALE`, equal to the whole image at once.

    The result differs from `generator.predict_on_batch` of the whole image by float
    rounding only, at most 1e-5 in float32. All windows of an image have one shape, so
    that nothing is traced again. When memory runs out, tiles are halved.

    Args:
        generator: `keras.Model` of `build_generator`.
        lr: `(h, w, 3)` RGB, float in [-1, 1] or uint8 in [0, 255].
        tile: int >= 1, LR px; side of what is kept of a window at most. `None` chooses
            windows that need `MEMORY_BUDGET` bytes.
        encode: callable of a float32 `(a, b, 3)` piece of the result in [-1, 1] that
            returns what is stored, `(a, b)` or `(a, b, channels)` of any type; `None`
            stores the piece. The float result is never held as a whole otherwise.
        progress: callable of (LR pixels done, LR pixels in all), or `None`.
        note: callable of one str, told when tiles are halved.

    Returns:
        `(4h, 4w, 3)` float32 in [-1, 1], or what `encode` makes of it.

    Raises:
        ValueError: if `lr` is no such image, or `tile` less than 1.
        MemoryError: if the smallest tile needs too much.
    """
    lr = np.asarray(lr)
    if lr.ndim != 3 or lr.shape[-1] != 3 or lr.size == 0:
        raise ValueError(
            f"An image to enlarge must be (height, width, 3). Received: {lr.shape}."
        )
    height, width, _ = lr.shape
    context = receptive_field_radius(generator)
    limits = _choose_limits(generator, height, width, tile, context)
    sr, top = None, 0
    while top < height:  # once, unless memory runs out
        rows_side = _even_side(height, limits[0], context)
        columns_side = _even_side(width, limits[1], context)
        try:
            for rows in _spans(height, rows_side, context, top):
                for columns in _spans(width, columns_side, context):
                    piece = _enlarge_window(generator, lr[rows.window, columns.window])
                    piece = piece[rows.cut, columns.cut]
                    piece = encode(piece) if encode else piece
                    if sr is None:
                        shape = (SCALE * height, SCALE * width, *piece.shape[2:])
                        sr = np.empty(shape, piece.dtype)
                    sr[rows.place, columns.place] = piece
                    if progress is not None:
                        num_kept = (rows.stop - rows.keep) * columns.stop
                        progress(rows.keep * width + num_kept, height * width)
                top = rows.stop
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            limits = _halve((rows_side, columns_side), context, error)
            note(
                f"Out of memory with windows of {columns_side}x{rows_side} px; going "
                f"on with at most {limits[1]}x{limits[0]} px."
            )
    return sr


def enlarge_to_uint8(generator, lr, tile=None, progress=None, note=print):
    """Enlarges an image by `SCALE` to 8 bits, never holding the float result.

    Args:
        generator: as for `enlarge`.
        lr: as for `enlarge`.
        tile: as for `enlarge`.
        progress: as for `enlarge`.
        note: as for `enlarge`.

    Returns:
        `(4h, 4w, 3)` uint8 RGB in [0, 255], rounded.

    Raises:
        ValueError: as `enlarge`.
        MemoryError: as `enlarge`.
    """
    return enlarge(generator, lr, tile, to_uint8, progress, note)


def is_out_of_memory(error):
    """Tells whether an error of any Keras backend means a lack of memory.

    Args:
        error: exception. Backends are not imported: names and texts decide.

    Returns:
        bool.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    return (
        bool(names & {"MemoryError", "ResourceExhaustedError", "OutOfMemoryError"})
        or "resource_exhausted" in text
        or "out of memory" in text
    )


def _enlarge_window(generator, window):
    window = to_float(window) if window.dtype == "uint8" else window.astype("float32")
    return generator.predict_on_batch(window[np.newaxis])[0]


def _choose_limits(generator, height, width, tile, context):
    """Returns the largest allowed (height, width) of a window, in LR px."""
    if tile is not None:
        if tile < 1:
            raise ValueError(
                f"Expected a tile of at least 1 px, got {tile}. Pass a larger --tile, "
                "or none to have it chosen."
            )
        return tile + 2 * context, tile + 2 * context
    convolutions = [
        layer for layer in generator.layers if isinstance(layer, keras.layers.Conv2D)
    ]
    value_bytes = 2 if "16" in convolutions[0].compute_dtype else 4
    widest = max(layer.filters for layer in convolutions)
    num_pixels = int(MEMORY_BUDGET / (VALUES_PER_FILTER * widest * value_bytes))
    # A narrow image leaves room for a longer window, of which less is thrown away.
    least = MIN_TILE + 2 * context
    rows = max(least, min(height, math.isqrt(num_pixels)))
    columns = max(least, min(width, num_pixels // min(rows, height)))
    rows = max(least, min(height, num_pixels // min(columns, width)))
    return rows, columns


def _even_side(length, limit, context):
    """Returns the side of as few equal windows as cover `length` px, up to `limit`."""
    if length <= limit:
        return length
    count = math.ceil((length - 2 * context) / (limit - 2 * context))
    return math.ceil((length + 2 * context * (count - 1)) / count)


def _spans(length, side, context, begin=0):
    """Yields the `Span`s, `side` px long, that cover `begin` to `length`."""
    while begin < length:
        start = max(0, min(begin - context, length - side))
        stop = length if start + side == length else start + side - context
        yield Span(start, start + side, begin, stop)
        begin = stop


def _halve(sides, context, error):
    """Returns limits for tiles half as large as of windows that did not fit."""
    tiles = [(side - 2 * context) // 2 for side in sides]
    if max(tiles) < MIN_TILE:
        raise MemoryError(
            f"Out of memory even with windows of {sides[1]}x{sides[0]} px. Close other "
            "programs, or use a machine with more memory."
        ) from error
    return [2 * context + max(MIN_TILE, tile) for tile in tiles]
