"""Metrics: worked by hand, against scikit-image, against the field's figures."""

import csv
import math

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import metrics
from metrics import SSIM_WINDOW, luminance, measure, psnr, ssim
from support.pixels import enlarge_by_filter
from support.test_images import (
    TestImage as ImagePair,  # pytest would collect a class Test*
)


def random_pair(shape, seed=0):
    """Returns two uint8 images that resemble each other."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, shape)
    noisy = np.clip(image + generator.normal(0, 20, shape), 0, 255)
    return noisy.astype("uint8"), image.astype("uint8")


def test_luminance_by_hand():
    """Full-range luma, or BGR order, would shift every figure, PSNR by 1.3 dB."""
    primaries = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    image = np.array([[[0, 0, 0], [255, 255, 255], *primaries, [51, 102, 204]]], "u1")
    mixture = 0.2 * 65.481 + 0.4 * 128.553 + 0.8 * 24.966
    levels = 16 + np.array([[0, 219, 65.481, 128.553, 24.966, mixture]])
    np.testing.assert_allclose(luminance(image), levels, atol=1e-10)


@pytest.mark.parametrize("shape", [(40, 52), (40, 52, 1), (40, 52, 3)])
@pytest.mark.parametrize("options", [{"border": 0}, {}])
def test_agrees_with_scikit_image(shape, options):
    """Another window, padding or variance changes SSIM by up to 0.02; uint8 arithmetic
    would wrap; a border cut on two sides only would let the worst pixels in."""
    border = options.get("border", 4)
    image, reference = random_pair(shape, seed=border)
    inside = (slice(border, 40 - border), slice(border, 52 - border))
    cut_image, cut_reference = (
        array.reshape(40, 52, -1)[inside].astype("float64")
        for array in (image, reference)
    )
    expected = peak_signal_noise_ratio(cut_reference, cut_image, data_range=255)
    assert psnr(image, reference, **options) == pytest.approx(expected, abs=1e-10)
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    window |= {"data_range": 255, "channel_axis": 2, "full": True}
    _, similarity = structural_similarity(cut_reference, cut_image, **window)
    expected = similarity[5:-5, 5:-5].mean()  # where the window is inside the image
    assert ssim(image, reference, **options) == pytest.approx(expected, abs=1e-10)


def test_images_are_rounded_to_8_bits():
    """The float output of a network scores better than the picture one can save."""
    sr, hr = random_pair((40, 52, 3))
    shifted = sr + np.random.default_rng(1).uniform(-0.49, 0.49, sr.shape)
    assert measure(shifted, hr) == measure(sr, hr)
    overshoot = measure(np.full((32, 32, 3), 300.0), np.full((32, 32, 3), 255))
    assert list(overshoot.values()) == [math.inf, 1, math.inf, 1]


@pytest.mark.parametrize("side", [1, 4, 8, 9, 18, 19])
def test_tiny_images_give_nan_not_an_error(side):
    """One thumbnail among a thousand photographs would end the whole run."""
    figures = measure(*random_pair((side, 40, 3)))
    assert math.isnan(figures["psnr_y"]) == math.isnan(figures["psnr_rgb"])
    assert math.isnan(figures["psnr_y"]) == (side <= 8)
    assert math.isnan(figures["ssim_y"]) == math.isnan(figures["ssim_rgb"])
    assert math.isnan(figures["ssim_y"]) == (side < 8 + SSIM_WINDOW)


@pytest.mark.parametrize("metric", [psnr, ssim, measure])
def test_arrays_that_cannot_be_compared_are_refused(metric):
    """NumPy would broadcast grayscale against RGB, or measure a batch, silently."""
    with pytest.raises(ValueError, match=r"shape.*\(20, 24, 3\).*\(20, 24, 1\)"):
        metric(np.zeros((20, 24, 3)), np.zeros((20, 24)))
    for shape in ((20,), (20, 20, 4), (20, 20, 2), (1, 20, 20, 3)):
        with pytest.raises(ValueError, match="Not an image"):
            metric(np.zeros(shape), np.zeros(shape))


def test_score_of_a_test_image():
    """Gray measured as RGB gains 1.3 dB; MSE would be of the rounded picture."""
    pair = [image / 127.5 - 1 for image in random_pair((40, 52, 1))]
    sr, hr = (np.broadcast_to(image, (40, 52, 3)) for image in pair)
    gray, color = (
        metrics.score(sr, ImagePair("a", hr[::4, ::4], hr, is_gray))
        for is_gray in (True, False)
    )
    assert gray["psnr_y"] == gray["psnr_rgb"] == pytest.approx(color["psnr_rgb"])
    assert color["psnr_y"] == pytest.approx(gray["psnr_y"] + 1.3, abs=0.05)
    assert gray["mse"] == color["mse"] == pytest.approx(np.mean((sr - hr) ** 2))


def test_means_are_over_finite_figures():
    """One black page, or one thumbnail, would make the mean of all infinite or NaN."""
    rows = [
        {"psnr_y": 30.0, "ssim_y": math.nan, "mse": math.inf},
        {"psnr_y": math.inf, "ssim_y": 0.5, "mse": math.nan, "perceptual": 2.0},
        {"psnr_y": 20.0, "ssim_y": 0.7, "mse": math.inf},
    ]
    means = metrics.mean_scores(rows)
    assert means == pytest.approx({"psnr_y": 25.0, "ssim_y": 0.6, "perceptual": 2.0})


def test_no_network_sees_too_large_an_image(monkeypatch):
    """The discriminator took 3 GB per layer before VGG19's limit was looked at."""

    class Network:
        input_shape = (None, None, None, 3)

        def __call__(self, *_, **__):
            raise MemoryError

    monkeypatch.setattr(metrics, "VGG_MAX_PIXELS", 99)
    image = np.zeros((10, 10, 3), "float32")
    loss = metrics.perceptual_loss(Network(), Network(), image, image, content=None)
    assert math.isnan(loss)


def test_table_shows_a_dash_for_what_is_not_finite():
    """Figures would stand in the wrong column, or end the command by a KeyError."""
    tables = {
        "a": {"ours": {"psnr_y": 30.126, "mse": 0.5}, "bicubic": {"psnr_y": math.inf}},
        "a long name": {"ours": {"psnr_y": math.nan, "mse": 0.25}, "bicubic": {}},
    }
    heading, *lines = metrics.format_table(tables).splitlines()
    assert heading.split() == ["PSNR", "Y", "MSE"]
    assert [line.split() for line in lines] == [
        ["a", "ours", "30.13", "0.50000"],
        ["bicubic", "-", "-"],
        ["a", "long", "name", "ours", "-", "0.25000"],
        ["bicubic", "-", "-"],
    ]
    assert len({len(line) for line in (heading, *lines)}) == 1


@pytest.mark.parametrize(
    ("name", "means"), [("Set5", (28.42, 0.8101)), ("Set14", (25.99, 0.7023))]
)
def test_published_bicubic_rows(photographs, name, means):
    """Figures that do not reproduce a published row compare with no paper.

    The rows are those of Huang et al., CVPR 2015. Image 003 of Set14 is grayscale; its
    row is met only if it is measured as it is.
    """
    folder, measured = photographs / name, []
    for row in csv.DictReader((folder / "published_bicubic.csv").open()):
        hr, lr = (np.array(Image.open(folder / f / row["image"])) for f in ("HR", "LR"))
        figures = measure(enlarge_by_filter(lr), hr)
        measured.append((figures["psnr_y"], figures["ssim_y"]))
        assert figures["psnr_y"] == pytest.approx(float(row["psnr_y"]), abs=0.1)
        assert figures["ssim_y"] == pytest.approx(float(row["ssim_y"]), abs=0.003)
    difference = np.abs(np.mean(measured, axis=0) - means)
    assert np.all(difference < (0.05, 0.003))
