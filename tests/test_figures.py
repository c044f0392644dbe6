"""Tests of `figures.py`: sizes, odd input, and files that are whole or not there."""

import math
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

import figures
from figures import Box, find_detail

TITLES = ["", "Iteration 100", "Größe é 日本 Фото \udcff\n" * 3, "x" * 999]


def random_image(height, width, seed=0):
    """Returns a uint8 image `(height, width, 3)`."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), "uint8")


def read(path):
    """Reads a picture back, and checks that no temporary file lies beside it."""
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def contains(page, image):
    """Returns whether `image` stands somewhere on `page`, pixel by pixel."""
    height, width = image.shape[:2]
    rows, columns = np.nonzero((page == image[0, 0]).all(axis=2))
    return any(
        np.array_equal(page[row : row + height, column : column + width], image)
        for row, column in zip(rows, columns, strict=True)
    )


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 2), (2, 5, 1), (4, 4, 4)])
def test_save_image_keeps_every_value(tmp_path, shape):
    """A lossy or rescaled file would be measured in place of the model's output."""
    image = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    path = tmp_path / "new" / "folder" / "image.png"
    figures.save_image(image, path)
    np.testing.assert_array_equal(read(path).reshape(shape), image)


def test_save_image_takes_pillow_images(tmp_path):
    """A palette or an alpha channel must survive, not turn into RGB."""
    picture = Image.new("LA", (3, 2), (7, 9))
    figures.save_image(picture, str(tmp_path / "image.png"))
    np.testing.assert_array_equal(read(tmp_path / "image.png"), np.asarray(picture))


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4, 3)), np.zeros((1, 4, 4, 3), "uint8"), np.zeros(4, "uint8")],
)
def test_save_image_refuses_what_is_no_8_bit_image(tmp_path, image):
    """Floats in [-1, 1] became a black picture without a word."""
    with pytest.raises(ValueError, match="uint8 image"):
        figures.save_image(image, tmp_path / "image.png")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_keeps_the_former_file(tmp_path, monkeypatch):
    """Ctrl-C during a save left half a PNG in place of the last good one."""
    path = tmp_path / "image.png"
    former = random_image(5, 6)
    figures.save_image(former, path)

    def stop_halfway(picture, file, **_):
        with open(file, "wb") as stream:
            stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop_halfway)
    with pytest.raises(KeyboardInterrupt):
        figures.save_image(random_image(5, 6, seed=1), path)
    np.testing.assert_array_equal(read(path), former)


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (4, 3), (21, 40), (240, 520)])
def test_save_grid_of_one_column(tmp_path, title, height, width):
    """Tiny images and long or foreign titles crashed or were cut off."""
    lr = random_image(height, width)
    sr = random_image(4 * height, 4 * width)
    path = tmp_path / "grid.png"
    figures.save_grid([{"generated": sr, "low-resolution": lr}], path, title, ["ä.png"])
    page = read(path)
    shown_height = min(4 * height, figures.GRID_CELL)
    shown_width = min(4 * width, figures.GRID_CELL)
    assert page.shape[0] >= 2 * shown_height
    assert page.shape[1] == 2 * figures.GAP + max(figures.MIN_PAGE, shown_width)
    # The margins stay empty: nothing runs over the edge.
    assert (page[:, -figures.GAP :] == figures.PAPER).all()
    assert (page[-figures.GAP :] == figures.PAPER).all()


def test_save_grid_shows_native_pixels_and_repeats_small_ones(tmp_path):
    """A grid shrunk to fit hides the very detail it should show."""
    lr, sr = random_image(9, 11), random_image(36, 44, seed=1)
    path = tmp_path / "grid.png"
    figures.save_grid([{"generated": sr}, {"low-resolution": lr, "original": sr}], path)
    page = read(path)
    assert contains(page, sr)
    assert contains(page, lr.repeat(4, axis=0).repeat(4, axis=1))


def test_save_grid_cuts_the_same_centre_of_large_images(tmp_path):
    """Rows that show different places of an image cannot be compared."""
    side = figures.GRID_CELL + 10  # no multiple of 4: the cut falls inside a pixel
    lr = random_image(side // 2, side // 2)
    hr = lr.repeat(2, axis=0).repeat(2, axis=1)
    path = tmp_path / "grid.png"
    figures.save_grid([{"generated": hr, "low-resolution": lr}], path)
    page = read(path)
    centre = hr[5:-5, 5:-5]
    matches = [
        top
        for top in range(page.shape[0] - figures.GRID_CELL + 1)
        if np.array_equal(
            page[top : top + figures.GRID_CELL, figures.GAP : -figures.GAP], centre
        )
    ]
    assert len(matches) == 2


@pytest.mark.parametrize("columns", [[], [{}]])
def test_save_grid_refuses_nothing(tmp_path, columns):
    """An empty test folder ended in an error deep inside Pillow."""
    with pytest.raises(ValueError, match="at least one picture"):
        figures.save_grid(columns, tmp_path / "grid.png")


def test_save_grid_refuses_captions_that_do_not_match(tmp_path):
    """A missing caption shifted all others by one picture."""
    with pytest.raises(ValueError, match=r"one caption per column, 1 in all.*2"):
        figures.save_grid([{"a": random_image(4, 4)}], tmp_path / "g.png", "", ["", ""])


PRE_TRAINING = [
    {"phase": "pre_training", "step": 0, "psnr_y": 20.0},
    {"phase": "pre_training", "step": 100, "mse": 0.02, "psnr_y": 27.1},
]
TRAINING = [
    {"phase": "training", "step": 0, "psnr_y": math.inf, "perceptual": None},
    {
        "phase": "training",
        "step": 50,
        "p_real": 0.7,
        "p_fake": math.nan,
        "g_loss": 0.0,
        "g_adversarial": 0.8,
        "g_content": 1.2,
        "psnr_y": 26.0,
    },
]


@pytest.mark.parametrize(
    "records",
    [
        [],
        PRE_TRAINING[:1],
        PRE_TRAINING,
        TRAINING[:1],
        TRAINING,
        PRE_TRAINING + TRAINING,
    ],
)
def test_save_training_curves(tmp_path, records):
    """A log of one phase, one report, gaps, NaN or zero under a logarithm crashed."""
    path = tmp_path / "images" / "training_curves.png"
    figures.save_training_curves(records, path)
    assert read(path).shape[:2] == (800, 1200)


def test_curves_of_a_resumed_run():
    """A resumed run repeats steps: the curve ran back and forth."""
    records = [
        {"phase": "training", "step": step, "g_loss": loss}
        for step, loss in [(50, 3.0), (100, 9.0), (100, 2.0), (0, 4.0)]
    ]
    series = figures._series(records, "training", "g_loss")
    assert list(series.items()) == [(0, 4.0), (50, 3.0), (100, 2.0)]


@pytest.fixture
def model():
    inputs = keras.Input((None, None, 3))
    return keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs), name="tiny")


@pytest.mark.skipif(not shutil.which("dot"), reason="Graphviz's dot is not installed")
def test_save_model_diagram_with_graphviz(tmp_path, model):
    """With Graphviz there the picture must come, and no text beside it."""
    path = tmp_path / "tiny.png"
    assert figures.save_model_diagram(model, path) is None
    assert read(path).shape[0] > 50
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.png"]


def test_save_model_diagram_without_graphviz(tmp_path, model, monkeypatch, capfd):
    """A missing system program ended the training before its first step."""
    monkeypatch.setenv("PATH", str(tmp_path))
    message = figures.save_model_diagram(model, tmp_path / "new" / "tiny.png")
    assert "apt install graphviz" in message
    assert f"dot -Tpng {tmp_path}" in message
    assert "\n" not in message
    text = (tmp_path / "new" / "tiny.dot").read_text(encoding="utf-8")
    assert "Conv2D" in text
    assert "(None, None, None, 2)" in text
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["tiny.dot"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(shutil.which("sh") is None, reason="needs a shell")
def test_save_model_diagram_with_a_broken_graphviz(tmp_path, model, monkeypatch, capfd):
    """A `dot` that fails left half a picture, and its complaint on the screen."""
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\necho half > "$3"\necho no >&2\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = figures.save_model_diagram(model, tmp_path / "new" / "tiny.png")
    assert "exit code 3" in message
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["tiny.dot"]
    assert capfd.readouterr() == ("", "")


def test_save_model_diagram_without_pydot(tmp_path, model, monkeypatch):
    """A missing package must cost the diagram only."""

    def refuse(*_, **__):
        raise ImportError("You must install pydot")

    monkeypatch.setattr(keras.utils, "model_to_dot", refuse)
    message = figures.save_model_diagram(model, tmp_path / "tiny.png")
    assert "pip install pydot" in message


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 4), (4, 3), (95, 200), (700, 99)]
)
def test_save_comparison_sheet(tmp_path, title, height, width):
    """Tiny, odd or large images and long titles crashed or were cut off."""
    panels = {name: random_image(height, width, i) for i, name in enumerate("abcde")}
    captions = {"a": "28.43 dB / 0.8104", "b": "nan dB / nan"}
    path = tmp_path / "sheet.png"
    figures.save_comparison_sheet(panels, path, captions, title=title)
    page = read(path)
    assert (page[:, -figures.GAP :] == figures.PAPER).all()
    assert (page[-figures.GAP :] == figures.PAPER).all()


def test_comparison_sheet_enlarges_the_detail_of_every_panel(tmp_path):
    """A panel cut elsewhere, or smoothed, would compare nothing."""
    panels = {str(i): random_image(120, 130, i) for i in range(8)}
    path = tmp_path / "sheet.png"
    figures.save_comparison_sheet(panels, path, detail=Box(10, 20, 96, 96))
    page = read(path)
    for panel in panels.values():
        detail = panel[10:106, 20:116].repeat(3, axis=0).repeat(3, axis=1)
        assert contains(page, detail)


@pytest.mark.parametrize("panels", [{}, {"a": (8, 8), "b": (8, 9)}])
def test_comparison_sheet_refuses_panels_of_different_sizes(tmp_path, panels):
    """An LR panel that nobody enlarged showed another place of the image."""
    panels = {label: random_image(*size) for label, size in panels.items()}
    with pytest.raises(ValueError, match="panels of one size"):
        figures.save_comparison_sheet(panels, tmp_path / "sheet.png")


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (40, 17), (16, 16), (23, 50)])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_find_detail_is_the_largest_difference(shape, size):
    """Running sums off by one row would miss the place by a little, unnoticed."""
    first, second = random_image(*shape, 0), random_image(*shape, 1)
    difference = np.abs(first.astype(int) - second).sum(axis=2)
    box = find_detail(first, second, size)
    assert (box.height, box.width) == (min(size, shape[0]), min(size, shape[1]))
    windows = np.lib.stride_tricks.sliding_window_view(difference, box[2:])
    sums = windows.sum(axis=(2, 3))
    assert (box.top, box.left) == np.unravel_index(np.argmax(sums), sums.shape)


def test_find_detail_of_identical_images():
    """No difference at all must still give a box inside the image."""
    image = random_image(100, 100)
    assert find_detail(image, image) == Box(0, 0, 96, 96)


def test_find_detail_refuses_different_shapes():
    """NumPy would broadcast one row over a whole image."""
    with pytest.raises(ValueError, match="one shape"):
        find_detail(random_image(4, 4), random_image(1, 4))
