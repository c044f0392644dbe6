"""Tests of test_images.py: what is found, how files pair, where results belong."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from support import image_files, test_images
from support.image_files import UnreadableImageError, find_images
from support.pixels import to_float


def save_scene(path, width=128, height=96, seed=0):
    """Saves a smooth random image, and returns it, float RGB in [-1, 1]."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), "uint8")
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return to_float(image)


def stems(paths):
    return [path.stem for path in paths]


def test_outputs_are_no_input(tmp_path, capsys):
    """A second run measured, enlarged and learned from the first one's images."""
    save_scene(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    for name in ("grid.png", "out/0.png", "out/deep/1.png", "a_x4.png"):
        for _ in "12":
            image_files.save_image(image, tmp_path / name)
    (tmp_path / "own").mkdir()
    image.save(tmp_path / "own" / "0.png")  # named as an output, in another folder
    found, skipped = find_images(tmp_path)
    assert (stems(found), skipped) == (["a", "0"], {})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Left out, because it is named like a result of upscale")
    assert line.endswith("a_x4.png. Rename it to use it.")
    # A folder that holds nothing else is meant.
    assert stems(find_images(tmp_path / "out")[0]) == ["0", "1"]
    lists = sorted(path.parent.name for path in tmp_path.rglob(".srgan-output"))
    assert lists == sorted([tmp_path.name, "out", "deep"])
    names = (tmp_path / ".srgan-output").read_text()
    assert names == "grid.png\n"  # once; upscale.py's results are known by their name
    (tmp_path / "out" / "broken.heic").touch()
    assert find_images(tmp_path / "out")[0] == []


def test_inputs_may_be_generated(tmp_path):
    """`sample_data.py --output mix/leaves` draws images to train on."""
    image = save_scene(tmp_path / "a.png")
    with image_files.atomic_path(tmp_path / "leaf.png", is_output=False) as path:
        Image.fromarray(np.uint8(image)).save(path, format="PNG")
    assert stems(find_images(tmp_path)[0]) == ["a", "leaf"]


def test_excluded_folders(tmp_path):
    """Results inside the originals' folder were originals, too."""
    for name in ("a", "A/a_SRCNN", "A/B/a"):
        save_scene(tmp_path / f"{name}.png")
    folders = [tmp_path / "A", tmp_path / "A" / ".." / "A" / "B", tmp_path]
    names = [stems(find_images(folder, folders)[0]) for folder in folders]
    assert names == [["a_SRCNN"], ["a"], ["a"]]


@pytest.mark.parametrize(
    ("originals", "inputs", "expected"),
    [
        ("0801 0802", "0801x4 0802x4", "0801x4 0802x4"),  # DIV2K
        ("0801", "0801x2 0801x4", "0801x4"),
        ("0801", "0801_x2 0801_x4", "0801_x4"),
        ("1 12", "12x4 1x4", "1x4 12x4"),
        ("1 2", "12 2", "2"),
        ("cat dog", "catfish dog", "dog"),
        ("cat cat_2", "cat_2 cat_a", "cat_a cat_2"),
        ("Baby", "baby_SRCNN", "baby_SRCNN"),
        ("Straße", "STRASSE", "STRASSE"),
        ("baby", "baby.SRCNN", "baby.SRCNN"),
        ("a", "a_upscayl_4x_realesrgan-x4plus", "a_upscayl_4x_realesrgan-x4plus"),
        ("img_001_SRF_4_HR", "img_001_SRF_4_SelfExSR", "img_001_SRF_4_SelfExSR"),
        ("a-gt b.HR", "a-lr b.LR", "a-lr b.LR"),
        ("HR", "LR HR_x4", "HR_x4"),
    ],
)
def test_names_that_pair(tmp_path, originals, inputs, expected):
    """Names of data sets or tools would not pair, or pair with a wrong original."""
    for folder, names in (("hr", originals), ("lr", inputs)):
        (tmp_path / folder).mkdir()
        for name in names.split():
            Image.new("L", (4, 4)).save(tmp_path / folder / f"{name}.png")
    pairs, problems = test_images.find_pairs(tmp_path / "hr", tmp_path / "lr")
    assert " ".join(pair.lr.stem for pair in pairs) == expected
    unused = {*originals.split(), *inputs.split()} - {*expected.split()}
    unused -= {pair.name for pair in pairs}
    assert len(problems) == len(unused)


def test_accents_pair_however_they_are_encoded(tmp_path):
    """macOS decomposes them: "no original of that name"."""
    composed, decomposed = (
        unicodedata.normalize(form, "Café/Ångström") for form in ("NFC", "NFD")
    )
    save_scene(tmp_path / "hr" / f"{composed}.png")
    save_scene(tmp_path / "results" / f"{decomposed}.PNG")
    (pair,), problems = test_images.find_pairs(tmp_path / "hr", tmp_path / "results")
    assert (pair.name, problems) == (composed, [])


def test_a_second_match_is_called_that(tmp_path):
    """The user looked for a typing error: "there is no original of that name"."""
    for name in ("hr/0", "results/0", "results/0_SRCNN"):
        save_scene(tmp_path / f"{name}.png")
    originals, problems = test_images.find_originals(tmp_path / "hr")
    folder = tmp_path / "results"
    matches = test_images.match_names(originals, folder, problems)
    assert matches == {"0": folder / "0.png"}
    (problem,) = problems
    assert problem == f"{folder / '0_SRCNN.png'}: a second match of 0, beside " + str(
        folder / "0.png"
    )


@pytest.mark.parametrize(
    ("left", "top", "right", "bottom"),
    [
        (0, 0, 0, 0),
        (4, 4, 4, 4),
        (0, 0, 6, 6),
        (6, 0, 0, 6),
        (1, 1, 1, 1),
        (0, 0, 1, 1),
        (16, 4, 4, 16),
        (-12, -12, -12, -12),
        (-2, 0, 0, -2),
        (0, 0, -3, -1),  # sides that are no multiples of 4
    ],
)
def test_results_are_placed_where_they_belong(tmp_path, left, top, right, bottom):
    """An exact copy, cut on one side, scored 7.7 dB: its middle was assumed."""
    hr = save_scene(tmp_path / "hr.png")
    image = Image.open(tmp_path / "hr.png")
    margins = (left, top, image.width - right, image.height - bottom)
    image.crop(margins).save(tmp_path / "result.png")
    result = test_images.read_result(tmp_path / "result.png", hr)
    assert result.rows == slice(max(0, top), 96 - max(0, bottom))
    assert result.columns == slice(max(0, left), 128 - max(0, right))
    part = (result.rows, result.columns)
    np.testing.assert_array_equal(result.sr[part], hr[part])
    assert result.sr.shape == hr.shape


@pytest.mark.parametrize(
    ("width", "height"),
    [(120, 90), (90, 96), (32, 24), (64, 48), (256, 192), (126, 96), (96, 64)],
)
def test_sizes_that_are_not_x4(tmp_path, width, height):
    """An enlargement x3.75 was "measured on its middle": 17 dB."""
    hr = save_scene(tmp_path / "hr.png")
    image = Image.open(tmp_path / "hr.png")
    image.resize((width, height)).save(tmp_path / "a.png")
    match = rf"a\.png: {width}x{height} px, but the original 128x96 px.* is n.* x4"
    with pytest.raises(UnreadableImageError, match=match):
        test_images.read_result(tmp_path / "a.png", hr)


def test_another_factor_of_a_square(tmp_path):
    """As many rows as columns lack, but not because a border was cut."""
    hr = save_scene(tmp_path / "hr.png", 128, 128)
    image = Image.open(tmp_path / "hr.png")
    image.resize((120, 120)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImageError, match="shows all of it: it is not x4"):
        test_images.read_result(tmp_path / "a.png", hr)


def test_lookalikes():
    """Set5 measured against Set14's images of the same numbers: 10 dB in silence."""
    random = np.random.default_rng(0)
    scenes = [random.uniform(-1, 1, (40, 48, 3)).astype("float32") for _ in "123"]
    originals = dict(zip("abc", map(test_images.thumbnail, scenes), strict=True))
    results = {name: 0.9 * originals[name] for name in "ab"}
    assert test_images.find_lookalikes(results, originals) == {}
    results = {"a": 0.9 * originals["b"], "b": results["b"]}
    assert test_images.find_lookalikes(results, originals) == {"a": "b"}
