"""Tests of `metrics.py`: worked by hand, against scikit-image, against the field."""

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from metrics import SSIM_WINDOW, luminance, measure, psnr, ssim

SHAPES = [(40, 52), (40, 52, 1), (40, 52, 3)]


def random_pair(shape, seed=0):
    """Returns two uint8 images that resemble each other."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, shape)
    noisy = np.clip(image + generator.normal(0, 20, shape), 0, 255)
    return noisy.astype("uint8"), image.astype("uint8")


@pytest.mark.parametrize(
    ("color", "level"),
    [
        ((0, 0, 0), 16.0),
        ((255, 255, 255), 235.0),
        ((255, 0, 0), 16 + 65.481),
        ((0, 255, 0), 16 + 128.553),
        ((0, 0, 255), 16 + 24.966),
        ((51, 102, 204), 16 + 0.2 * 65.481 + 0.4 * 128.553 + 0.8 * 24.966),
    ],
)
def test_luminance_by_hand(color, level):
    """Full-range luma, or BGR order, would shift every figure, PSNR by 1.3 dB."""
    image = np.full((2, 3, 3), color, "uint8")
    np.testing.assert_allclose(luminance(image), np.full((2, 3), level), atol=1e-10)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_luminance_of_grayscale_is_itself(shape):
    """A grayscale image squeezed into [16, 235] would gain 1.3 dB for nothing."""
    image = random_pair(shape)[0]
    np.testing.assert_array_equal(luminance(image), image.reshape(5, 7))


def test_psnr_by_hand():
    """Wrapping in uint8 arithmetic made 250 - 255 a difference of 251."""
    image = np.full((20, 20, 3), 250, "uint8")
    reference = np.full((20, 20, 3), 255, "uint8")
    expected = 20 * math.log10(255 / 5)
    assert psnr(image, reference) == pytest.approx(expected, abs=1e-12)
    assert psnr(reference, image) == pytest.approx(expected, abs=1e-12)


def test_psnr_averages_channels_before_the_logarithm():
    """The mean of three dB figures is another number than the dB of the mean."""
    reference = np.zeros((9, 9, 3))
    image = reference + np.array([10.0, 0.0, 0.0])
    expected = 10 * math.log10(255**2 / (100 / 3))
    assert psnr(image, reference) == pytest.approx(expected, abs=1e-12)


def test_border_is_cut_from_every_side():
    """A border cut on two sides only would let the worst pixels in."""
    reference = np.zeros((12, 13))
    image = np.full((12, 13), 255.0)
    image[4:8, 4:9] = 1.0
    assert psnr(image, reference) == pytest.approx(20 * math.log10(255), abs=1e-12)
    assert psnr(image, reference, border=0) < 2.0


def test_ssim_of_constants_by_hand():
    """With no variance only the means count: (2ab + c) / (a^2 + b^2 + c)."""
    image, reference = np.full((19, 19), 100.0), np.full((19, 19), 120.0)
    steady = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + steady) / (100**2 + 120**2 + steady)
    assert ssim(image, reference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_identical_images(shape):
    """Identical images divided by zero, or warned."""
    image = random_pair(shape)[0]
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", [0, 4])
def test_agrees_with_scikit_image(shape, border):
    """Another window, padding or variance changes SSIM by up to 0.02."""
    image, reference = random_pair(shape, seed=border)
    inside = (slice(border, 40 - border), slice(border, 52 - border))
    cut_image = image.reshape(40, 52, -1)[inside]
    cut_reference = reference.reshape(40, 52, -1)[inside]
    expected = peak_signal_noise_ratio(cut_reference, cut_image, data_range=255)
    assert psnr(image, reference, border) == pytest.approx(expected, abs=1e-10)

    _, similarity = structural_similarity(
        cut_reference.astype("float64"),
        cut_image.astype("float64"),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2,
        full=True,
    )
    valid = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))
    expected = similarity[valid, valid].mean()
    assert ssim(image, reference, border) == pytest.approx(expected, abs=1e-10)


def test_measure_rounds_to_8_bits():
    """The float output of a network scores better than the picture one can save."""
    sr, hr = random_pair((40, 52, 3))
    shifted = sr + np.random.default_rng(1).uniform(-0.49, 0.49, sr.shape)
    assert measure(shifted, hr) == measure(sr, hr)
    overshoot = measure(np.full((32, 32, 3), 300.0), np.full((32, 32, 3), 255))
    assert overshoot["psnr_y"] == overshoot["psnr_rgb"] == math.inf


def test_measure_of_grayscale():
    """A grayscale file must not be refused, nor measured in two ways."""
    sr, hr = random_pair((40, 52))
    figures = measure(sr, hr[:, :, np.newaxis])
    assert figures["psnr_y"] == figures["psnr_rgb"] == psnr(sr, hr)
    assert figures["ssim_y"] == figures["ssim_rgb"] == ssim(sr, hr)


@pytest.mark.parametrize("side", [1, 4, 8, 9, 18, 19])
def test_tiny_images_give_nan_not_an_error(side):
    """One thumbnail among a thousand photographs ended the whole run."""
    figures = measure(*random_pair((side, 40, 3)))
    assert math.isnan(figures["psnr_y"]) == math.isnan(figures["psnr_rgb"])
    assert math.isnan(figures["psnr_y"]) == (side <= 8)
    assert math.isnan(figures["ssim_y"]) == math.isnan(figures["ssim_rgb"])
    assert math.isnan(figures["ssim_y"]) == (side < 8 + SSIM_WINDOW)


@pytest.mark.parametrize("metric", [psnr, ssim, measure])
def test_different_shapes_are_refused(metric):
    """NumPy would broadcast a grayscale image against RGB, silently."""
    with pytest.raises(ValueError, match=r"one shape.*\(20, 24, 3\).*\(20, 24, 1\)"):
        metric(np.zeros((20, 24, 3)), np.zeros((20, 24)))


@pytest.mark.parametrize("shape", [(20,), (20, 20, 4), (20, 20, 2), (1, 20, 20, 3)])
def test_shapes_that_are_no_image_are_refused(shape):
    """A batch or an alpha channel must be named, not measured."""
    with pytest.raises(ValueError, match="batch dimension"):
        luminance(np.zeros(shape))
    with pytest.raises(ValueError, match="batch dimension"):
        measure(np.zeros(shape), np.zeros(shape))


def test_negative_border_is_refused():
    """A negative slice would measure a few rows from the wrong end."""
    with pytest.raises(ValueError, match="border >= 0"):
        psnr(np.zeros((20, 20)), np.zeros((20, 20)), border=-1)


@pytest.mark.parametrize(
    ("name", "mean_psnr", "mean_ssim"),
    [("Set5", 28.42, 0.8101), ("Set14", 25.99, 0.7023)],
)
def test_published_bicubic_rows(name, mean_psnr, mean_ssim):
    """Figures that do not reproduce a published row compare with no paper.

    The rows are those of Huang et al., CVPR 2015. Image 003 of Set14 is grayscale:
    its row, too, is met by measuring it as itself; turned into RGB and from there
    into luminance, it would gain 1.3 dB.
    """
    if "SRGAN_TEST_DATA" not in os.environ:
        pytest.skip("SRGAN_TEST_DATA names no folder with Set5 and Set14")
    folder = Path(os.environ["SRGAN_TEST_DATA"]) / name
    measured = []
    for row in csv.DictReader((folder / "published_bicubic.csv").open()):
        hr = Image.open(folder / "HR" / row["image"])
        lr = Image.open(folder / "LR" / row["image"])
        bicubic = lr.resize(hr.size, Image.Resampling.BICUBIC)
        figures = measure(np.asarray(bicubic), np.asarray(hr))
        measured.append((figures["psnr_y"], figures["ssim_y"]))
        assert figures["psnr_y"] == pytest.approx(float(row["psnr_y"]), abs=0.1)
        assert figures["ssim_y"] == pytest.approx(float(row["ssim_y"]), abs=0.003)
    np.testing.assert_allclose(np.mean(measured, axis=0)[0], mean_psnr, atol=0.05)
    np.testing.assert_allclose(np.mean(measured, axis=0)[1], mean_ssim, atol=0.003)
