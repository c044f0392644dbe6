"""Measures how close an enlarged image is to the original: PSNR and SSIM.

    python -c "from metrics import measure; import numpy as np; \
        print(measure(np.zeros((32, 32, 3)), np.ones((32, 32, 3))))"
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from support.pixels import enlarge_by_filter, to_float, to_uint8

BORDER = 4  # px cut from each side; as many as the scale, paper Sec. 3.1
PEAK = 255.0  # the L of both formulas: the largest 8-bit value
SSIM_WINDOW = 11  # px, side of the Gaussian window, Wang et al. 2004, Sec. III-B
SSIM_SIGMA = 1.5  # px, the window's standard deviation, Wang et al. 2004
SSIM_C1 = (0.01 * PEAK) ** 2  # steadies the comparison of means, Wang et al. 2004
SSIM_C2 = (0.03 * PEAK) ** 2  # steadies that of variances, Wang et al. 2004
PROTOCOL = (
    "x4, 8-bit images, 4 px cut from each border. PSNR in dB. Y: luminance of ITU-R "
    "BT.601, as MATLAB's rgb2ycbcr; grayscale files are measured as they are. SSIM: "
    "Gaussian window of 11x11 px, sigma 1.5. MSE: RGB in [-1, 1], nothing cut."
)
SCORES = {  # key: heading of its column, decimals
    "psnr_y": ("PSNR Y", 2),
    "ssim_y": ("SSIM Y", 4),
    "psnr_rgb": ("PSNR RGB", 2),
    "ssim_rgb": ("SSIM RGB", 4),
    "mse": ("MSE", 5),
    "perceptual": ("perceptual", 5),
    "vgg54": ("VGG54", 2),
}
VGG_MAX_PIXELS = 2**21  # of an image to score; each takes about 1 KiB of memory
EPSILON = 1e-7  # keeps the logarithm finite, as in Keras
COLUMN = 12  # characters
FILTERS = ("bicubic", "nearest")  # measured beside every network
LUMA_OFFSET = 16.0  # 8-bit level of black, ITU-R BT.601
LUMA_WEIGHTS = (65.481, 128.553, 24.966)  # levels for R, G, B in [0, 1], BT.601


def luminance(image):
    """Returns the luminance `(h, w)` of an image, as MATLAB's `rgb2ycbcr` computes it.

    Args:
        image: as for `psnr`. Grayscale is returned as it is.
    """
    channels = _as_channels(image)
    if channels.shape[2] == 1:
        return channels[:, :, 0]
    return LUMA_OFFSET + channels @ (np.array(LUMA_WEIGHTS) / PEAK)


def psnr(image, reference, border=BORDER):
    """Returns the peak signal-to-noise ratio of two images, 10 log10(255^2 / MSE).

    Args:
        image: uint8 or float array in [0, 255], `(h, w)`, `(h, w, 1)` or `(h, w, 3)`.
        reference: array of the same range and shape.
        border: int >= 0, px cut from each side before measuring.

    Returns:
        float, dB: infinite for identical images, NaN if the cut leaves nothing.

    Raises:
        ValueError: if the shapes differ or are not those of images.
    """
    image, reference = _cut_pair(image, reference, border)
    if image.size == 0:
        return math.nan
    mean_squared_error = np.mean((image - reference) ** 2)
    if mean_squared_error == 0:
        return math.inf
    return float(10 * np.log10(PEAK**2 / mean_squared_error))


def ssim(image, reference, border=BORDER):
    """Returns the structural similarity of two images (Wang et al. 2004).

    As in the authors' MATLAB code, the window slides over valid positions only, and
    variances are weighted means. Channels are measured one by one and averaged.

    Args:
        image: as for `psnr`.
        reference: as for `psnr`.
        border: as for `psnr`.

    Returns:
        float in [-1, 1]: 1 for identical images, NaN if the cut leaves no whole window.
    """
    image, reference = _cut_pair(image, reference, border)
    if min(image.shape[:2]) < SSIM_WINDOW:
        return math.nan
    mean_image, mean_reference = _blur(image), _blur(reference)
    product = mean_image * mean_reference
    squares = mean_image**2 + mean_reference**2
    covariance = _blur(image * reference) - product
    variances = _blur(image**2 + reference**2) - squares  # the sum of both
    similarity = (2 * product + SSIM_C1) * (2 * covariance + SSIM_C2)
    similarity /= (squares + SSIM_C1) * (variances + SSIM_C2)
    return float(np.mean(similarity))


def measure(sr, hr):
    """Returns a dict of PSNR and SSIM, of the luminance and of all channels.

    Both images are rounded to 8 bits first, because a saved picture is judged.

    Args:
        sr: enlarged image, as for `psnr`.
        hr: original image, as for `psnr`.
    """
    sr, hr = (np.clip(np.rint(_as_channels(image)), 0, PEAK) for image in (sr, hr))
    sr_luminance, hr_luminance = luminance(sr), luminance(hr)
    return {
        "psnr_y": psnr(sr_luminance, hr_luminance),
        "ssim_y": ssim(sr_luminance, hr_luminance),
        "psnr_rgb": psnr(sr, hr),
        "ssim_rgb": ssim(sr, hr),
    }


def score(sr, image):
    """Measures a float image in [-1, 1] against a `TestImage`; adds "mse" (source)."""
    scores = measure(show(sr, image.is_gray), show(image.hr, image.is_gray))
    return scores | {"mse": float(np.mean(np.square(sr - image.hr)))}


def feature_distance(vgg, sr, hr):
    """Returns the mean squared difference of features; NaN for too large an image."""
    if sr[..., 0].size > VGG_MAX_PIXELS:
        return math.nan
    features = [np.asarray(vgg(image[np.newaxis]), "float32") for image in (sr, hr)]
    return float(np.mean(np.square(features[0] - features[1])))


def perceptual_loss(vgg, discriminator, sr, hr, content):
    """Returns the weighted sum of content and adversarial loss of an image (source).

    NaN if the image is too large, or the discriminator only takes crops. `content` is
    the `losses.ContentLoss` that the weights were trained with.
    """
    if None not in discriminator.input_shape[1:]:
        return math.nan
    distance = feature_distance(vgg, sr, hr)
    if math.isnan(distance):  # the discriminator would need even more memory
        return math.nan
    probabilities = np.asarray(discriminator(sr[np.newaxis], training=False))
    adversarial = float(-np.mean(np.log(np.maximum(probabilities, EPSILON))))
    return content.weight * distance + content.adversarial_weight * adversarial


def enlarge_by_filters(image):
    """Enlarges a `TestImage` by each filter: {label: `(4h, 4w, 3)` in [-1, 1]}."""
    lr, results = show(image.lr, image.is_gray), {}
    for label in FILTERS:
        sr = enlarge_by_filter(lr, Image.Resampling[label.upper()])
        results[label] = to_float(Image.fromarray(sr).convert("RGB"))
    return results


def show(image, is_gray):
    """Converts a float image in [-1, 1] to uint8 `(h, w, 3)`, or `(h, w)` if gray."""
    picture = Image.fromarray(to_uint8(image))
    return np.asarray(picture.convert("L") if is_gray else picture)


def mean_scores(scores):
    """Averages a list of dicts of scores, each over the images with a finite one."""
    means = {}
    for key in SCORES:
        known = [row[key] for row in scores if math.isfinite(row.get(key, math.nan))]
        if known:
            means[key] = float(np.mean(known))
    return means


def format_table(tables):
    """Formats scores as lines of text; tables is {row: {method: {key: score}}}."""
    rows = [scores for table in tables.values() for scores in table.values()]
    keys = [key for key in SCORES if any(key in row for row in rows)]
    name_width = max(len(name) for name in tables) + 2
    label_width = max(len(label) for table in tables.values() for label in table)
    headings = "".join(f"{SCORES[key][0]:>{COLUMN}}" for key in keys)
    lines = [" " * (name_width + label_width) + headings]
    for name, table in tables.items():
        for label, scores in table.items():
            line = f"{name:{name_width}}{label:{label_width}}"
            for key in keys:
                value = scores.get(key, math.nan)
                shown = f"{value:.{SCORES[key][1]}f}" if math.isfinite(value) else "-"
                line += f"{shown:>{COLUMN}}"
            lines.append(line)
            name = ""
    return "\n".join(lines)


def _as_channels(image):
    """Returns the image as float64 `(h, w, 1)` or `(h, w, 3)`, after a check."""
    channels = np.asarray(image, "float64")
    if channels.ndim == 2:
        channels = channels[..., np.newaxis]
    if channels.ndim != 3 or channels.shape[2] not in (1, 3):
        raise ValueError(f"Not an image of 1 or 3 channels: shape {channels.shape}.")
    return channels


def _cut_pair(image, reference, border):
    """Checks two images and cuts `border` px from each of their sides."""
    image, reference = _as_channels(image), _as_channels(reference)
    if image.shape != reference.shape:
        raise ValueError(f"Images differ in shape: {image.shape}, {reference.shape}.")
    rows, columns = (slice(border, max(side - border, 0)) for side in image.shape[:2])
    return image[rows, columns], reference[rows, columns]


def _blur(image):
    """Averages under the Gaussian window: `(h, w, c)` -> `(h - 10, w - 10, c)`."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):  # the window is separable
        image = sliding_window_view(image, SSIM_WINDOW, axis) @ weights
    return image
