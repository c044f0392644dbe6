"""LR images: clean ones are the source's, damaged ones are what photographs are."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_loader import DataLoader
from support import degradation, test_images
from support.degradation import Damage, apply_damage, choose_degradation, degrade

BATCH = 6
NO_DAMAGE = Damage(0, Image.Resampling.BOX, 0, False, False, 0, "4:4:4")


@pytest.fixture
def texture():
    """A smooth random image, 512 px, of which a shift is easily measured."""
    levels = np.random.default_rng(0).integers(40, 216, (20, 20, 3), dtype="uint8")
    return Image.fromarray(levels).resize((512, 512), Image.Resampling.BICUBIC)


@pytest.fixture
def make_batch(image_folder):
    """Makes a batch of another loader each time."""

    def make(k=3, shard=(0, 1), **options):
        options = {"crop_size": 32, "degradation": "photo"} | options
        with DataLoader(image_folder, **options) as loader:
            return loader.make_batch(k, BATCH, shard=shard)

    return make


def damage_plane(level, **options):
    """Damages a plane of one color, and returns its levels."""
    plane = Image.new("RGB", (400, 400), (level,) * 3)
    lr = apply_damage(plane, NO_DAMAGE._replace(**options), np.random.default_rng(0))
    return np.asarray(lr).astype(float)


def test_clean_images_are_the_sources():
    """LR images were blurred after reduction, or by another filter."""
    noise = np.random.default_rng(0).integers(0, 256, (34, 43, 3), dtype="uint8")
    image = Image.fromarray(noise)
    for blurred, blur in ((image, 0), (image.filter(ImageFilter.GaussianBlur(2)), 2)):
        expected = blurred.resize((10, 8), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(degrade(image, blur), expected)


@pytest.mark.parametrize("quality", [0, 95])
@pytest.mark.parametrize("subsampling", degradation.JPEG_SUBSAMPLINGS)
@pytest.mark.parametrize("name", degradation.PHOTO_FILTERS)
def test_images_stay_on_their_grid(texture, name, subsampling, quality):
    """A network that learns from shifted LR images enlarges with a shift."""
    hr = np.asarray(texture, "float64")
    expected = hr.reshape(128, 4, 128, 4, 3).mean(axis=(1, 3))
    damage = NO_DAMAGE._replace(
        blur=2.0,
        resampling=Image.Resampling[name],
        quality=quality,
        subsampling=subsampling,
        block_corner=(5, 10),
    )
    difference = expected - np.asarray(apply_damage(texture, damage, None))
    slopes = np.stack(np.gradient(expected, axis=(0, 1)), axis=-1).reshape(-1, 2)
    shift, *_ = np.linalg.lstsq(slopes, difference.reshape(-1), rcond=None)
    assert np.abs(shift).max() < 0.01  # LR px


def test_blocks_of_jpeg_begin_anywhere():
    """Blocks at every crop's corner are easily found by the crop's border, which the
    inside of a photograph lacks: the network left blocks there."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype="uint8")
    damage = NO_DAMAGE._replace(quality=20, subsampling="4:4:4")
    for left, top in ((0, 0), (3, 14)):
        moved = damage._replace(block_corner=(left, top))
        lr = apply_damage(Image.fromarray(noise), moved, None).convert("L")
        for axis, corner in ((0, top), (1, left)):
            steps = np.abs(np.diff(np.asarray(lr, "float64"), axis=axis))
            steps = steps.mean(axis=1 - axis)
            means = [steps[phase::8].mean() for phase in range(8)]
            # From the last row of a block to the first of the next.
            assert np.argmax(means) == (7 - corner) % 8
    draws = [degradation.draw_damage(np.random.default_rng(i)) for i in range(300)]
    corners = np.array([draw.block_corner for draw in draws])
    assert corners.min() == 0
    assert corners.max() == 15


def test_draws_are_those_of_the_recipe():
    """A range was not reached, or every image was noisy."""
    draws = [degradation.draw_damage(np.random.default_rng(i)) for i in range(3000)]
    columns = {key: [getattr(x, key) for x in draws] for key in Damage._fields}
    for key, (lowest, highest), spared in (
        ("blur", (0, 2), 1 / 3),
        ("noise", (0, 10), 1 / 3),
        ("quality", (40, 95), 1 / 4),
    ):
        values = np.array(columns[key], "float64")
        assert np.mean(values == 0) == pytest.approx(spared, abs=0.03)
        values = values[values > 0]
        width = highest - lowest
        assert lowest <= values.min() < lowest + 0.03 * width
        assert highest - 0.03 * width < values.max() <= highest
        assert values.mean() == pytest.approx((lowest + highest) / 2, abs=0.03 * width)
    for key, count in (("resampling", 4), ("is_poisson", 2), ("is_gray", 2)):
        shares = np.unique(columns[key], return_counts=True)[1] / len(draws)
        np.testing.assert_allclose(shares, [1 / count] * count, atol=0.03)
    assert {*columns["subsampling"]} == {"4:2:0", "4:4:4"}


def test_noise_has_the_strength_that_was_drawn():
    """Gray noise had colors, or Poisson noise was as strong in the shadows."""
    for is_gray in (False, True):
        for is_poisson, level, expected in ((0, 64, 8), (1, 64, 4), (1, 128, 5.67)):
            kind = {"is_gray": is_gray, "is_poisson": bool(is_poisson)}
            levels = damage_plane(level, noise=8.0, **kind)
            assert levels.mean() == pytest.approx(level, abs=0.2)
            assert levels.std() == pytest.approx(expected, rel=0.03)
            assert (np.ptp(levels, axis=2).max() == 0) == is_gray
    assert damage_plane(0, noise=10.0, is_poisson=True).max() == 0
    assert damage_plane(255, noise=10.0).min() > 200  # no level wrapped around


def test_compression_follows_the_quality(texture):
    """All images were stored with Pillow's own quality."""
    clean = np.asarray(apply_damage(texture, NO_DAMAGE, None), "float64")
    errors = []
    for quality in (95, 70, 40):
        damage = NO_DAMAGE._replace(quality=quality)
        errors.append(np.std(clean - apply_damage(texture, damage, None)))
    assert 0 < 2 * errors[0] < errors[1] < errors[2]


def test_damage_is_a_function_of_seed_k_and_row(make_batch):
    """Workers, or a resumed run, would see other damage; or all rows the same."""
    whole = make_batch()
    np.testing.assert_array_equal(whole.lr, make_batch().lr)
    parts = [make_batch(shard=(index, 3)).lr for index in range(3)]
    np.testing.assert_array_equal(whole.lr, np.concatenate(parts))
    clean = make_batch(degradation="bicubic")
    np.testing.assert_array_equal(whole.hr, clean.hr)
    errors = np.abs(whole.lr - clean.lr).mean(axis=(1, 2, 3))
    assert len({*errors.tolist()}) == BATCH
    for others in (make_batch(k=4), make_batch(seed=1)):
        assert not np.array_equal(whole.lr, others.lr)


def test_source_and_bicubic_differ_by_their_blur(make_batch):
    """`source` without a blur of its own would train on the paper's images."""
    sources = (
        make_batch(degradation="source"),
        make_batch(degradation="bicubic", blur=1.5),
    )
    papers = make_batch(degradation="source", blur=0), make_batch(degradation="bicubic")
    np.testing.assert_array_equal(sources[0].lr, sources[1].lr)
    np.testing.assert_array_equal(papers[0].lr, papers[1].lr)
    assert not np.array_equal(sources[0].lr, papers[0].lr)


def test_test_images_are_damaged_by_their_name(texture):
    """Figures of one run could not be compared with those of another."""
    photo = choose_degradation("photo")

    def lr_of(name):
        return test_images.make_test_image(name, texture, photo).lr

    # Training calls an image by its file, evaluation without the suffix.
    np.testing.assert_array_equal(lr_of("a/bäby.png"), lr_of("a/bäby"))
    names = "0", "1", "2", "a/1", "b/1"
    assert len({lr_of(name).tobytes() for name in names}) == len(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("jpeg",), "'jpeg' is none of source, bicubic, photo"),
        (("photo", 1.5), "photo draws its own blur. Omit --blur"),
        (("bicubic", -1), "blur -1 is not a radius"),
    ],
)
def test_mistakes(make_batch, options, message):
    """An unknown degradation trained on clean images."""
    options = dict(zip(("degradation", "blur"), options, strict=False))
    with pytest.raises(ValueError, match=message):
        make_batch(**options)


def test_contact_sheet(image_folder, tmp_path):
    """Nobody would see what the network is trained on."""
    path = tmp_path / "sheet.png"
    degradation.save_contact_sheet(image_folder, path)
    with Image.open(path) as sheet:
        assert min(sheet.size) > 3 * degradation.SHEET_CROP / 4
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No image in"):
        degradation.save_contact_sheet(tmp_path / "empty", path)
