"""Measures how close a super-resolved image is to the original: PSNR and SSIM.

The protocol is the one the x4 literature reports: 8-bit images, 4 px cut from each
border, luminance as MATLAB's `rgb2ycbcr` has it; figures over R, G, B stand beside.

    python -c "from metrics import measure; import numpy as np; \
        print(measure(np.zeros((32, 32, 3)), np.ones((32, 32, 3))))"

NumPy in, floats out: nothing here reads a file or needs TensorFlow.
"""

import numpy as np

BORDER = 4  # px cut from each side; as many as the scale, paper Sec. 3.1
PEAK = 255.0  # the L of both formulas: the largest 8-bit value
SSIM_WINDOW = 11  # px, side of the Gaussian window, Wang et al. 2004, Sec. III-B
SSIM_SIGMA = 1.5  # px, the window's standard deviation, Wang et al. 2004
SSIM_K1 = 0.01  # steadies the comparison of means, Wang et al. 2004
SSIM_K2 = 0.03  # steadies the comparison of variances, Wang et al. 2004
LUMA_OFFSET = 16.0  # 8-bit level of black, ITU-R BT.601
LUMA_WEIGHTS = (65.481, 128.553, 24.966)  # levels for R, G, B in [0, 1], BT.601


def luminance(image):
    """Returns the luminance of an image, as MATLAB's `rgb2ycbcr` computes it.

    `16 + 65.481 R + 128.553 G + 24.966 B` with R, G, B in [0, 1] (ITU-R BT.601).
    The result is not rounded. A grayscale image is measured as itself: its values
    are returned unchanged, in [0, 255] and not squeezed into [16, 235].

    Args:
        image: uint8 or float array in [0, 255], `(h, w, 3)` RGB, or grayscale
            `(h, w)` or `(h, w, 1)`.

    Returns:
        float64 array `(h, w)`: in [16, 235] for RGB, in [0, 255] for grayscale.

    Raises:
        ValueError: if `image` has another shape.
    """
    channels = _as_channels(image)
    if channels.shape[2] == 1:
        return channels[:, :, 0]
    return LUMA_OFFSET + channels @ (np.array(LUMA_WEIGHTS) / PEAK)


def psnr(image, reference, border=BORDER):
    """Returns the peak signal-to-noise ratio of two images.

    `10 log10(255^2 / MSE)`, the mean taken over all pixels and channels at once.

    Args:
        image: uint8 or float array in [0, 255], `(h, w)`, `(h, w, 1)` or
            `(h, w, 3)`.
        reference: array of the same range and shape.
        border: int >= 0, px cut from each side before measuring.

    Returns:
        float, dB: infinite for identical images, NaN if the cut leaves nothing.

    Raises:
        ValueError: if the shapes differ or are not those of images, or if `border`
            is negative.
    """
    image, reference = _cut_pair(image, reference, border)
    if image.size == 0:
        return float("nan")
    mean_squared_error = float(np.mean((image - reference) ** 2))
    if mean_squared_error == 0:
        return float("inf")
    return float(10 * np.log10(PEAK**2 / mean_squared_error))


def ssim(image, reference, border=BORDER):
    """Returns the structural similarity of two images (Wang et al. 2004).

    An 11x11 Gaussian window of sigma 1.5 slides over the valid positions only, and
    variances are weighted means (not sample variances), as in the authors' MATLAB
    code. Channels are measured one by one and averaged.

    Args:
        image: uint8 or float array in [0, 255], `(h, w)`, `(h, w, 1)` or
            `(h, w, 3)`.
        reference: array of the same range and shape.
        border: int >= 0, px cut from each side before measuring.

    Returns:
        float in [-1, 1]: 1 for identical images, NaN if the cut leaves less than
        one window, so that one tiny image does not end a whole folder's run.

    Raises:
        ValueError: if the shapes differ or are not those of images, or if `border`
            is negative.
    """
    image, reference = _cut_pair(image, reference, border)
    if min(image.shape[:2]) < SSIM_WINDOW:
        return float("nan")
    mean_image = _blur(image)
    mean_reference = _blur(reference)
    mean_product = mean_image * mean_reference
    mean_power = mean_image**2 + mean_reference**2
    # Only the sum of both variances is needed, which saves one blur.
    covariance = _blur(image * reference) - mean_product
    variances = _blur(image**2 + reference**2) - mean_power
    steady_mean = (SSIM_K1 * PEAK) ** 2
    steady_variance = (SSIM_K2 * PEAK) ** 2
    similarity = (2 * mean_product + steady_mean) * (2 * covariance + steady_variance)
    similarity /= (mean_power + steady_mean) * (variances + steady_variance)
    return float(np.mean(similarity))


def measure(sr, hr):
    """Returns the four figures that the project reports for one image.

    Both images are rounded to 8 bits first, because a saved picture is judged, not
    the network's float output. Grayscale images are measured as themselves, so both
    pairs of figures are equal; compare a grayscale `hr` with a grayscale `sr`.

    Args:
        sr: super-resolved image, uint8 or float array in [0, 255], `(h, w)`,
            `(h, w, 1)` or `(h, w, 3)`.
        hr: original image of the same range and shape.

    Returns:
        dict of floats: "psnr_y" and "ssim_y" of the luminance, "psnr_rgb" and
        "ssim_rgb" of all channels; PSNR in dB, SSIM in [-1, 1].

    Raises:
        ValueError: if the shapes differ or are not those of images.
    """
    sr, hr = (np.clip(np.rint(_as_channels(image)), 0, PEAK) for image in (sr, hr))
    _check_same_shape(sr, hr)
    sr_luminance, hr_luminance = luminance(sr), luminance(hr)
    return {
        "psnr_y": psnr(sr_luminance, hr_luminance),
        "ssim_y": ssim(sr_luminance, hr_luminance),
        "psnr_rgb": psnr(sr, hr),
        "ssim_rgb": ssim(sr, hr),
    }


def _as_channels(image):
    """Returns the image as float64 `(h, w, 1)` or `(h, w, 3)`, after a check."""
    channels = np.asarray(image, dtype="float64")
    if channels.ndim == 2:
        channels = channels[:, :, np.newaxis]
    if channels.ndim != 3 or channels.shape[2] not in (1, 3):
        raise ValueError(
            "Expected an image of shape (h, w), (h, w, 1) or (h, w, 3). "
            f"Received shape {np.shape(image)}. Pass images one by one, without "
            "batch dimension and without alpha channel."
        )
    return channels


def _cut_pair(image, reference, border):
    """Checks two images and cuts `border` px from each of their sides."""
    if border < 0:
        raise ValueError(f"Expected border >= 0 px. Received {border}.")
    image, reference = _as_channels(image), _as_channels(reference)
    _check_same_shape(image, reference)
    height, width = image.shape[:2]
    inside = slice(border, max(height - border, border))
    across = slice(border, max(width - border, border))
    return image[inside, across], reference[inside, across]


def _check_same_shape(image, reference):
    if image.shape != reference.shape:
        raise ValueError(
            "Expected two images of one shape. Received "
            f"{image.shape} and {reference.shape}. Cut the larger one, or convert "
            "both to RGB or both to grayscale."
        )


def _blur(image):
    """Averages under the Gaussian window: `(h, w, c)` -> `(h - 10, w - 10, c)`."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights /= weights.sum()
    # The window is separable: down the columns first, then along the rows.
    height, width = (side - SSIM_WINDOW + 1 for side in image.shape[:2])
    columns = sum(
        weight * image[start : start + height] for start, weight in enumerate(weights)
    )
    return sum(
        weight * columns[:, start : start + width]
        for start, weight in enumerate(weights)
    )
