"""Images in memory: their range of values, and how filters enlarge them.

    python -c "from support import pixels; print(pixels.to_float([0, 255]))"

Networks take and return float32 RGB in [-1, 1]; files hold uint8 in [0, 255].
"""

import numpy as np
from PIL import Image

SCALE = 4  # HR side / LR side


def to_float(images):
    """Converts 8-bit images of any shape to float32 in [-1, 1], the networks' range."""
    # Source: HR and LR alike. Paper: LR in [0, 1] (Sec. 3.2).
    images = np.array(images, dtype="float32")
    images /= 127.5  # in place: six times faster than with temporary arrays
    images -= 1.0
    return images


def to_uint8(images):
    """Converts images in [-1, 1] to uint8 in [0, 255], rounding and clipping."""
    # Source: truncates, which darkens by half a level and wraps around above 1.
    levels = (np.asarray(images, dtype="float32") + 1.0) * 127.5
    return np.clip(np.rint(levels), 0, 255).astype("uint8")


def enlarge_by_filter(lr, method=Image.Resampling.BICUBIC):
    """Enlarges a uint8 image, `(h, w, 3)` or `(h, w)`, by a classical filter."""
    height, width = lr.shape[:2]
    image = Image.fromarray(lr).resize((SCALE * width, SCALE * height), method)
    return np.asarray(image)
