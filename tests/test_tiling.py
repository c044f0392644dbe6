"""Tests of tiling.py: tiles do not show, nor do borders; black and white stay exact."""

import keras
import numpy as np
import pytest

from metrics import psnr
from networks import Network, build_generator, build_network, receptive_field_radius
from support import tiling, weight_files
from support.image_files import read_rgb
from support.pixels import SCALE, to_float, to_uint8

ROUNDING = 1e-5  # float32, in [-1, 1]


def build(seed=0, **options):
    """Builds a generator whose biases and statistics would not hide zero padding."""
    rng = np.random.default_rng(seed)
    generator = build_generator(**options)
    ranges = {"moving_variance": (0.05, 0.2), "gamma": (0.5, 1.5)}
    for variable in generator.variables:
        if len(variable.shape) == 1:
            low, high = ranges.get(variable.name, (-0.3, 0.3))
            variable.assign(rng.uniform(low, high, variable.shape))
    last = generator.layers[-2]
    logits = keras.Model(generator.input, last.output)
    spread = logits.predict_on_batch(draw_image(rng, 24, 24)[None]).std()
    last.kernel.assign(last.kernel * (0.5 / spread))  # saturated, tanh would hide it
    return generator


@pytest.fixture(scope="module")
def small():
    return build(num_residual_blocks=2, num_filters=8)


def draw_image(rng, height, width):
    return rng.uniform(-1, 1, (height, width, 3)).astype("float32")


def enlarge_whole(generator, lr):
    """Enlarges an image and its reflection beyond the border in one go."""
    context = receptive_field_radius(generator)
    padded = np.pad(lr, 2 * ((context, context),) + ((0, 0),), "symmetric")
    cut = slice(SCALE * context, -SCALE * context)
    return generator.predict_on_batch(padded[None])[0, cut, cut]


class FakeGenerator:
    """Enlarges by repeating pixels, times `gain`, and notes the shapes it gets."""

    def __init__(self, generator, gain=1):
        self.operations, self.gain = generator.operations, gain
        self.shapes = set()

    def predict_on_batch(self, lr):
        self.shapes.add(lr.shape)
        return self.gain * lr.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def test_any_size_and_tile_equals_the_whole_image(small, monkeypatch):
    """Too little context, or zeros beyond a border, would show as seams."""
    rng = np.random.default_rng(1)
    for height, width, tile in ((1, 36, 1), (5, 3, 9), *rng.integers(1, 80, (8, 3))):
        lr = draw_image(rng, height, width)
        tiled = tiling.enlarge(small, lr, int(tile))
        assert tiled.shape == (SCALE * height, SCALE * width, 3)
        assert np.abs(tiled - enlarge_whole(small, lr)).max() <= ROUNDING, tile
    # The test can fail: less context would be seen.
    monkeypatch.setattr(tiling, "receptive_field_radius", lambda generator: 4)
    assert np.abs(tiling.enlarge(small, lr, 20) - enlarge_whole(small, lr)).max() > 0.01


def test_default_network_equals_the_whole_image():
    """The network that is used saw further than the context of its tiles, 40 px."""
    generator, lr = build(), draw_image(np.random.default_rng(4), 3, 6)
    difference = tiling.enlarge(generator, lr, 3) - enlarge_whole(generator, lr)
    assert np.abs(difference).max() <= ROUNDING


@pytest.mark.parametrize("name", ["paper", "srcnn", "espcn"])
def test_other_networks_equal_the_whole_image(name):
    """Bicubic interpolation and sub-pixel convolutions need context, too."""
    generator = build_network(Network(name, 1, 4))
    lr = draw_image(np.random.default_rng(5), 20, 31)
    difference = tiling.enlarge(generator, lr, 9) - enlarge_whole(generator, lr)
    assert np.abs(difference).max() <= ROUNDING


def test_windows_have_one_shape_and_default_tiles_few(small):
    """On a GPU, every other shape is compiled anew, which takes longer than a tile."""
    fake = FakeGenerator(small)
    for shape in ((7, 9), (64, 20), (65, 10), (300, 70), (90, 600)):
        lr = draw_image(np.random.default_rng(6), *shape)
        sr = tiling.enlarge(fake, lr)
        np.testing.assert_array_equal(sr, lr.repeat(SCALE, 0).repeat(SCALE, 1))
    sides = [side + 2 * receptive_field_radius(small) for side in tiling.TILE_SIZES]
    assert fake.shapes == {(1, side, side, 3) for side in sides}


def test_uint8_encode_and_progress(small):
    """uint8 was taken for floats, or a large result was held as floats."""
    lr = np.random.default_rng(8).integers(0, 256, (50, 60, 3), "uint8")
    floats = tiling.enlarge(small, lr / 127.5 - 1, 20)
    calls, encode = [], lambda piece: to_uint8(piece[..., 0])
    gray = tiling.enlarge(small, lr, 20, encode, lambda *call: calls.append(call))
    assert (gray.shape, gray.dtype) == ((200, 240), np.uint8)
    assert np.abs(gray - (floats[..., 0] + 1) * 127.5).max() <= 0.51
    assert calls == [(number, 9) for number in range(1, 10)]


def test_what_is_no_such_image_is_refused(small):
    """16-bit integers were taken as floats in [-1, 1]; a batch failed inside Keras."""
    for dtype in ("uint16", "int16", "int64", "bool", "complex64"):
        with pytest.raises(ValueError, match=rf"must be .*uint8.* {dtype}"):
            tiling.enlarge(small, np.ones((9, 9, 3), dtype))
    for shape in ((9, 9), (1, 9, 9, 3), (9, 9, 4), (0, 9, 3)):
        with pytest.raises(ValueError, match=r"must be \(height, width, 3\)"):
            tiling.enlarge(small, np.zeros(shape))


@pytest.mark.parametrize("level", [1, -1])
def test_black_and_white_areas_are_kept(small, level):
    """White dots and edges were overwritten, saturated red lost its texture, or pages
    that JPEG has changed a little showed gray clouds with hard borders."""
    lr = np.full((60, 60, 3), (0.3, 0.0, -0.3), "float32")
    lr[5:45, 5:45], lr[50, 50], lr[50:, :8, 0] = level, level, level
    lr[25, 25] -= level * 2 / 127.5  # a trace of JPEG
    lr[26, 26] -= level * 9 / 127.5  # a dot on the page
    sr = tiling.enlarge(FakeGenerator(small, gain=0.5), lr, 23)
    plain = lr.repeat(SCALE, 0).repeat(SCALE, 1)
    kept = (sr == plain).all(axis=-1)[::SCALE, ::SCALE]
    drawn = (sr == plain / 2).all(axis=-1)[::SCALE, ::SCALE]
    is_page = np.zeros((60, 60), bool)
    is_page[7:43, 7:43] = True  # more than two LR px from what is not plain
    assert drawn[~is_page].all()
    assert kept[14:18, 14:36].all()
    assert drawn[24:29, 24:29].all()
    share = sr[4 * 15, :, 1] / level  # 0.5 where it is drawn, 1 where it is kept
    steps = np.diff(share[4 * 7 : 4 * 15])
    assert steps.min() >= 0
    assert steps.max() < 0.1


def test_gray_areas_get_no_tint(small):
    """One pixel that is not quite gray, or a stamp, let a whole page be tinted."""
    rng = np.random.default_rng(9)
    lr = rng.integers(0, 256, (40, 30, 1), "uint8").repeat(3, axis=-1)
    lr[0, 0] = 255, 254, 255
    lr[20:30, 10:20] = rng.integers(0, 256, (10, 10, 3))
    fake = FakeGenerator(small, gain=np.float32([0.9, 0.7, 0.8]))
    sr = tiling.enlarge(fake, lr, 16, to_uint8)
    drawn = to_uint8(enlarge_whole(fake, to_float(lr)))
    tint = np.ptp(sr.astype(int), axis=-1)
    assert tint[4:68].max() == 0
    assert tint.max(axis=1)[:4].max() == 1
    np.testing.assert_array_equal(sr[80:120, 40:80], drawn[80:120, 40:80])
    brightness = drawn @ tiling.LUMA - sr @ tiling.LUMA
    assert np.abs(brightness).max() <= 1.01


@pytest.mark.parametrize(("weights", "side", "tile"), [
    ("srresnet-bicubic", 3, 3), *[pytest.param(name, 120, 60, marks=pytest.mark.slow)
    for name in ("srresnet-bicubic", "srresnet-source")]])  # fmt: skip
def test_plain_images_have_no_frame(weights, side, tile):
    """Every white page got a gray frame: 254, its first rows 252, its corners 232."""
    generator, _ = weight_files.load_generator(weights, "float32")
    for level in (0, 250, 255):
        lr = np.full((side, side, 3), level, "uint8")
        sr = tiling.enlarge(generator, lr, tile, to_uint8).astype(int)
        assert np.ptp(sr - np.tile(sr[:SCALE, :SCALE], (side, side, 1))) <= 1
        assert level == 250 or (sr == level).all()


@pytest.mark.slow
def test_borders_of_photographs(photographs):
    """What mends the borders of white pages was worse for those of photographs."""
    generator, _ = weight_files.load_generator("srresnet-bicubic", "float32")
    levels = []  # PSNR within 40 px of the border, padded with zeros and reflected
    for path in sorted(photographs.glob("Set*/LR/*")):
        lr, hr = (np.array(read_rgb(path.parents[1] / side / path.name))
                  for side in ("LR", "HR"))  # fmt: skip
        zeros = generator.predict_on_batch(lr[None] / np.float32(127.5) - 1)[0]
        pair = to_uint8(zeros), tiling.enlarge(generator, lr, encode=to_uint8)
        for image in (*pair, hr):
            image[40:-40, 40:-40] = 0
        levels.append([psnr(sr, hr, border=0) for sr in pair])
    assert np.diff(np.mean(levels, axis=0)) >= 0, levels
