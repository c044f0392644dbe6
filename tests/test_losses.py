"""Tests of `losses.py`: the terms beyond source and paper, against NumPy and by eye."""

import keras
import numpy as np
import pytest

import losses


def draw_images(seed=0, shape=(2, 24, 32, 3)):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def test_low_loss_compares_means_on_the_lr_grid():
    """It would hold back texture that the LR image does not show, or let colors go."""
    hr, sr = draw_images(0), draw_images(1)
    means = [x.reshape(2, 6, 4, 8, 4, 3).mean((2, 4)) for x in (hr, sr)]
    expected = np.abs(means[0] - means[1]).mean()
    assert float(losses.low_loss(hr, sr)) == pytest.approx(expected, rel=1e-5)
    texture = np.tile([[1.0, -1.0], [-1.0, 1.0]], (12, 16))[None, :, :, None]
    textured = hr + 0.3 * texture.astype("float32")
    assert float(losses.low_loss(hr, textured)) == pytest.approx(0, abs=1e-6)
    assert float(losses.low_loss(hr, hr + 0.1)) == pytest.approx(0.1, rel=1e-4)


def phase_statistics(image):
    """The statistics of one image `(h, w, 3)`, pixel by pixel."""
    gray = image.astype("float64").mean(axis=-1)
    height, width = gray.shape
    values = {}
    for y in range(4, height - 4):
        for x in range(4, width - 4):
            pixel = gray[y, x]
            around = gray[y - 1, x] + gray[y + 1, x] + gray[y, x - 1] + gray[y, x + 1]
            differences = pixel - gray[y, x - 1], pixel - gray[y - 1, x]
            values.setdefault((y % 4, x % 4), []).append(
                (*differences, pixel - around / 4)
            )
    energy, mean = np.zeros((4, 4, 3)), np.zeros((4, 4, 3))
    for phase, rows in values.items():
        energy[phase] = np.mean(np.square(rows), axis=0)
        mean[phase] = np.mean(rows, axis=0)
    total = energy.mean((0, 1)) + losses.EPSILON
    mean -= mean.mean((0, 1))
    return np.concatenate([energy / total - 1, mean / np.sqrt(total)], axis=-1)


def test_phase_statistics_are_those_of_their_definition():
    """A slip in a slice would mix phases, and the pattern would stay."""
    images = draw_images()
    found = keras.ops.convert_to_numpy(losses.phase_statistics(images))
    expected = [phase_statistics(image) for image in images]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    loss = float(losses.grid_loss(images, images[::-1]))
    difference = np.square(expected[0] - expected[1])
    assert loss == pytest.approx(difference.mean(), rel=1e-3)


def test_grid_loss_sees_a_pattern_of_the_grid_and_no_other():
    """The generator's cheapest answer to a discriminator is a pattern of period 4."""
    hr = draw_images(shape=(1, 96, 96, 3))

    def loss(period):
        pattern = (np.arange(96) % period == 0).astype("float32")
        sr = hr + 0.5 * pattern[None, :, None, None] * pattern[None, None, :, None]
        return float(losses.grid_loss(hr, sr))

    assert loss(4) > 20 * max(loss(3), loss(5), loss(7))
    flat = np.zeros((1, 16, 16, 3), "float32")  # the smallest crop, without any energy
    assert float(losses.grid_loss(flat, flat)) == 0


def test_random_shift_is_a_function_of_seed_and_step():
    """A resumed run would see other offsets than an uninterrupted one."""
    shift = losses.RandomShift(15)
    images = draw_images()
    np.testing.assert_array_equal(shift(images), images)  # until one is drawn
    offsets = set()
    for step in range(20):
        shift.draw(0, step)
        offset = tuple(np.asarray(shift.offset).tolist())
        np.testing.assert_array_equal(shift(images), np.roll(images, offset, (1, 2)))
        offsets.add(offset)
    assert len(offsets) > 10
    assert 0 <= np.min(list(offsets)) <= np.max(list(offsets)) <= 15
    shift.draw(1, 19)
    assert tuple(np.asarray(shift.offset).tolist()) != offset
    shift.draw(0, 19)
    assert tuple(np.asarray(shift.offset).tolist()) == offset


def test_source_and_paper_know_nothing_of_texture():
    """The faithful losses would no longer be those of source and paper."""
    for name in ("source", "mse", "vgg22", "vgg54"):
        content = losses.CONTENT_LOSSES[name]
        assert content.adversarial_weight == 1e-3
        assert content.discriminator_loss == "mse"
        assert (content.pixel_losses, content.max_shift) == ((), 0)
