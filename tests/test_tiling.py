"""Tiles give what the whole image gives, in any size, at any border, in any type."""

import numpy as np
import pytest

import tiling
from data_loader import SCALE, to_uint8
from networks import build_generator, receptive_field_radius
from quiet import keras

ROUNDING = 1e-5  # float32, in [-1, 1]


def randomize(generator, seed=0):
    """Gives biases and batch-norm statistics values other than 0 and 1.

    With the initial ones, what lies beyond the border is zero in every layer, and
    padding the image with zeros would pass unnoticed. Neither may `tanh` saturate,
    nor the blocks add too little for distant pixels to matter.
    """
    rng = np.random.default_rng(seed)
    ranges = {"moving_variance": (0.05, 0.2), "gamma": (0.5, 1.5)}
    for variable in generator.variables:
        if len(variable.shape) == 1:
            low, high = ranges.get(variable.name, (-0.3, 0.3))
            variable.assign(rng.uniform(low, high, variable.shape))
    last = generator.layers[-2]
    logits = keras.Model(generator.input, last.output)
    spread = logits.predict_on_batch(draw_image(rng, 24, 24)[np.newaxis]).std()
    last.kernel.assign(last.kernel * (0.5 / spread))
    return generator


def build_small(policy="float32"):
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return randomize(build_generator(num_residual_blocks=2, num_filters=8))
    finally:
        keras.config.set_dtype_policy(usual)


@pytest.fixture(scope="module")
def small():
    return build_small()


def draw_image(rng, height, width):
    return rng.uniform(-1, 1, (height, width, 3)).astype("float32")


def enlarge_whole(generator, lr):
    return generator.predict_on_batch(lr[np.newaxis])[0]


class FakeGenerator:
    """Enlarges by repeating pixels, noting shapes; fails for windows above a size."""

    def __init__(self, generator, max_pixels=10**9, error=None):
        self.layers = generator.layers
        self.max_pixels = max_pixels
        self.error = error or MemoryError("too much")
        self.shapes = []

    def predict_on_batch(self, lr):
        self.shapes.append(lr.shape)
        if lr.shape[1] * lr.shape[2] > self.max_pixels:
            raise self.error
        return lr.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def test_any_size_and_tile_equals_the_whole_image(small):
    """Too little context, or zeros beyond a border, would show as seams."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        height, width, tile = rng.integers(1, (110, 110, 60))
        lr = draw_image(rng, height, width)
        tiled = tiling.enlarge(small, lr, int(tile))
        whole = enlarge_whole(small, lr)
        assert tiled.shape == (SCALE * height, SCALE * width, 3)
        assert np.abs(tiled - whole).max() <= ROUNDING, (height, width, tile)
        levels = np.abs(to_uint8(tiled).astype(int) - to_uint8(whole))
        assert levels.max() <= 1
        assert (levels > 0).mean() <= 0.001


def test_tile_of_one_pixel(small):
    lr = draw_image(np.random.default_rng(2), 1, 36)
    assert np.abs(tiling.enlarge(small, lr, 1) - enlarge_whole(small, lr)).max() <= (
        ROUNDING
    )


def test_bfloat16_equals_the_whole_image():
    """A 16-bit policy must not make seams of its own."""
    generator = build_small("mixed_bfloat16")
    lr = draw_image(np.random.default_rng(3), 75, 90)
    tiled = to_uint8(tiling.enlarge(generator, lr, 20)).astype(int)
    difference = np.abs(tiled - to_uint8(enlarge_whole(generator, lr)))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 0.001


def test_default_generator_equals_the_whole_image():
    """The context of the network that is used, 40 px, is enough for it."""
    generator = randomize(build_generator())
    assert receptive_field_radius(generator) == 40
    lr = draw_image(np.random.default_rng(4), 101, 112)
    whole = enlarge_whole(generator, lr)
    assert (np.abs(whole) < 0.99).mean() > 0.9  # where tanh would hide differences
    assert np.abs(tiling.enlarge(generator, lr, 16) - whole).max() <= ROUNDING


def test_less_context_would_be_seen(small, monkeypatch):
    """Proves that the tests above can fail."""
    lr = draw_image(np.random.default_rng(5), 70, 70)
    monkeypatch.setattr(tiling, "receptive_field_radius", lambda generator: 4)
    difference = tiling.enlarge(small, lr, 20) - enlarge_whole(small, lr)
    assert np.abs(difference).max() > ROUNDING


def test_windows_have_one_shape_and_their_context(small):
    """Another shape is traced again, which takes longer than a tile."""
    context = receptive_field_radius(small)
    for height, width, tile in ((200, 333, 50), (30, 201, 17), (97, 98, 64)):
        fake = FakeGenerator(small)
        lr = draw_image(np.random.default_rng(6), height, width)
        sr = tiling.enlarge(fake, lr, tile)
        assert (sr == lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1)).all()
        assert len(set(fake.shapes)) == 1
        assert max(fake.shapes[0][1:3]) <= tile + 2 * context


def test_spans_cover_once_with_context_inside():
    rng = np.random.default_rng(7)
    for length, tile, context in rng.integers(1, (300, 60, 40), (200, 3)):
        side = tiling._even_side(length, tile + 2 * context, context)
        spans = list(tiling._spans(length, side, context))
        assert [span.keep for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == length
        for span in spans:
            assert span.end - span.start == side <= tile + 2 * context
            assert 0 <= span.start <= span.keep < span.stop <= span.end <= length
            assert span.start == 0 or span.keep - span.start >= context
            assert span.end == length or span.end - span.stop >= context


def test_windows_chosen_from_the_budget(small, monkeypatch):
    """A narrow image is not cut where a whole one fits."""
    monkeypatch.setattr(tiling, "MEMORY_BUDGET", 7.5 * 32 * 4 * 10_000)  # 10,000 px
    for shape, count in (((100, 100), 1), ((50, 200), 1), ((200, 50), 1)):
        fake = FakeGenerator(small)
        tiling.enlarge(fake, draw_image(np.random.default_rng(0), *shape))
        assert len(fake.shapes) == count
    fake = FakeGenerator(small)
    tiling.enlarge(fake, draw_image(np.random.default_rng(0), 300, 400))
    assert len(fake.shapes) > 12
    assert fake.shapes[0][1] * fake.shapes[0][2] <= 10_000


def test_uint8_in_and_out(small):
    lr = np.random.default_rng(8).integers(0, 256, (50, 60, 3), "uint8")
    sr = tiling.enlarge_to_uint8(small, lr, 20)
    floats = tiling.enlarge(small, lr / 127.5 - 1)
    assert sr.dtype == np.uint8
    assert np.abs(sr - (floats + 1) * 127.5).max() <= 0.51


def test_encode_may_change_type_and_channels(small):
    lr = draw_image(np.random.default_rng(9), 40, 50)
    sr = tiling.enlarge(small, lr, 20, encode=lambda piece: piece[..., 0] > 0)
    assert sr.shape == (160, 200)
    assert sr.dtype == bool


def test_progress_ends_complete(small):
    calls = []
    lr = draw_image(np.random.default_rng(10), 60, 70)
    tiling.enlarge(small, lr, 20, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (60 * 70, 60 * 70)


class ResourceExhaustedError(Exception):
    """Of the name that TensorFlow's has."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ResourceExhaustedError("OOM when allocating tensor"),
        RuntimeError("RESOURCE_EXHAUSTED: Failed to allocate 1 GB"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_halves_tiles_when_memory_runs_out(small, error):
    """A photograph that is too large for a device is still enlarged."""
    notes = []
    fake = FakeGenerator(small, max_pixels=75**2, error=error)
    lr = draw_image(np.random.default_rng(11), 130, 170)
    sr = tiling.enlarge(fake, lr, 100, note=notes.append)
    assert (sr == lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1)).all()
    assert notes
    assert "Out of memory" in notes[0]


def test_goes_on_below_finished_rows(small):
    """Running out late must not compute finished rows again."""

    class LaterFull(FakeGenerator):
        def predict_on_batch(self, lr):
            self.max_pixels = 4000 if len(self.shapes) >= 5 else 10**9
            return super().predict_on_batch(lr)

    calls = []
    fake = LaterFull(small)
    lr = draw_image(np.random.default_rng(12), 200, 80)
    sr = tiling.enlarge(fake, lr, 40, None, lambda *call: calls.append(call), print)
    assert (sr == lr.repeat(SCALE, axis=0).repeat(SCALE, axis=1)).all()
    assert calls == sorted(calls)


def test_gives_up_at_the_smallest_tile(small):
    fake = FakeGenerator(small, max_pixels=10)
    lr = draw_image(np.random.default_rng(13), 90, 90)
    with pytest.raises(MemoryError, match="even with windows of"):
        tiling.enlarge(fake, lr, note=lambda line: None)


def test_other_errors_pass(small):
    fake = FakeGenerator(small, max_pixels=10, error=KeyError("something else"))
    with pytest.raises(KeyError, match="something else"):
        tiling.enlarge(fake, np.zeros((90, 90, 3), "float32"))


def test_refuses_what_makes_no_sense(small):
    with pytest.raises(ValueError, match="tile of at least 1 px, got 0"):
        tiling.enlarge(small, np.zeros((9, 9, 3)), 0)
    for shape in ((9, 9), (1, 9, 9, 3), (9, 9, 4), (0, 9, 3)):
        with pytest.raises(ValueError, match=r"must be \(height, width, 3\)"):
            tiling.enlarge(small, np.zeros(shape))
