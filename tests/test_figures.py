"""Tests of `figures.py`: images shown pixel by pixel, odd input, whole files."""

import math

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from losses import PRETRAIN_LOSSES
from support import figures
from support.figures import Box, find_detail

HOSTILE_NAME = "a$b_$照片_صورة_ภาพ_\udcff\n" * 15


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), "uint8")


def enlarge(image, zoom):
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)


def read(path):
    """Reads a page, and checks that it is the only file in its folder."""
    assert list(path.parent.glob("[!.]*")) == [path]
    return np.asarray(Image.open(path, formats=["PNG"]).convert("RGB"))


def places(page, image):
    """Returns every (top, left) where `image` is on `page`, pixel by pixel."""
    found = []
    for top, left in np.argwhere((page == image[0, 0]).all(axis=2)):
        part = page[top : top + image.shape[0], left : left + image.shape[1]]
        if np.array_equal(part, image):
            found.append((top, left))
    return found


def test_grid_is_pixel_by_pixel_and_in_order(tmp_path):
    """A resampled image hides detail; a swapped row or column misleads."""
    lr = [random_image(9, 11, seed) for seed in (0, 1)]
    sr = [random_image(36, 44, seed) for seed in (2, 3)]
    columns = [{"generated": sr[i], "low-resolution": lr[i]} for i in range(2)]
    path = tmp_path / "new" / "grid.png"
    figures.save_grid(columns, path, "step 100", ["first.png", "second.png"])
    page = read(path)
    (first,), (second,) = (places(page, image) for image in sr)
    (first_lr,), (second_lr,) = (places(page, enlarge(image, 4)) for image in lr)
    assert first[0] == second[0] < first_lr[0] == second_lr[0]
    assert first[1] == first_lr[1] < second[1] == second_lr[1]


def test_grid_cuts_the_same_center_of_all_rows(tmp_path):
    """Rows that show different parts of an image cannot be compared."""
    lr = random_image(261, 261)  # 522 px are cut to 512 px, inside a repeated pixel
    hr = enlarge(lr, 2)
    figures.save_grid([{"original": hr, "low-resolution": lr}], tmp_path / "grid.png")
    assert len(places(read(tmp_path / "grid.png"), hr[5:-5, 5:-5])) == 2


@pytest.mark.parametrize(("num_columns", "cell"), [(4, 512), (12, 189), (20, 144)])
def test_cells_shrink_in_wide_grids(tmp_path, num_columns, cell):
    """The grid of 12 test images was 6,000 px wide."""
    image = random_image(600, 600)
    path = tmp_path / "grid.png"
    figures.save_grid([{"original": image}] * num_columns, path)
    page = read(path)
    assert page.shape[1] == num_columns * (cell + figures.GAP) + figures.GAP
    start = (600 - cell) // 2
    rows = columns = slice(start, start + cell)
    assert len(places(page, image[rows, columns])) == num_columns


@pytest.mark.filterwarnings("error::UserWarning")
def test_hostile_names(tmp_path):
    """Formulas, unknown letters and long names crashed, warned or ran together."""
    column = {HOSTILE_NAME: random_image(21, 40)}
    path = tmp_path / "grid.png"
    figures.save_grid([column, column], path, HOSTILE_NAME, [HOSTILE_NAME, ""])
    page = read(path)
    captions = page[40:60] != figures.PAPER  # the line below the title
    assert captions[:, : figures.MIN_CELL].any()
    assert not captions[:, figures.MIN_CELL + figures.GAP :].any()
    assert (page[:, -figures.GAP :] == figures.PAPER).all()


def test_interrupted_write_keeps_the_former_file(tmp_path, monkeypatch):
    """Ctrl-C during a save left half a PNG in place of the last good one."""
    path = tmp_path / "grid.png"
    path.write_text("former")

    def stop_halfway(figure, file, **_):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", stop_halfway)
    with pytest.raises(KeyboardInterrupt):
        figures.save_grid([{"a": random_image(5, 6)}], path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["former"]


def test_comparison_sheet_enlarges_the_same_detail_of_every_panel(tmp_path):
    """A panel cut elsewhere, or smoothed, would compare nothing."""
    panels = {str(seed): random_image(120, 130, seed) for seed in range(8)}
    path = tmp_path / "sheet.png"
    figures.save_comparison_sheet(panels, path, {"0": "dB"}, Box(10, 20, 96, 96), "a")
    page = read(path)
    details = [enlarge(panel[10:106, 20:116], 3) for panel in panels.values()]
    (first,), *_, (sixth,), (seventh,), (last,) = (places(page, d) for d in details)
    assert first[0] == sixth[0] < seventh[0] == last[0]
    assert first[1] == seventh[1] < last[1] < sixth[1]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 4), (95, 200), (700, 99)])
def test_comparison_sheet_of_any_size(tmp_path, height, width):
    """Images smaller than the detail or larger than the overview crashed."""
    panels = {name: random_image(height, width, i) for i, name in enumerate("ab")}
    figures.save_comparison_sheet(panels, tmp_path / "sheet.png")
    margin = read(tmp_path / "sheet.png")[:, -figures.GAP :]
    assert (margin == figures.PAPER).all()


def test_images_that_cannot_be_shown(tmp_path):
    """A low-resolution panel showed another part of the image."""
    with pytest.raises(ValueError, match="No images to show"):
        figures.save_grid([], tmp_path / "grid.png")
    for sizes in ([], [(8, 8), (8, 9)]):
        panels = {size: random_image(*size) for size in sizes}
        with pytest.raises(ValueError, match="missing or differ in size"):
            figures.save_comparison_sheet(panels, tmp_path / "sheet.png")


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (40, 17), (16, 16), (23, 50)])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_find_detail_is_the_largest_difference(shape, size):
    """Sums off by one row would miss the place by a little, unnoticed."""
    first, second = random_image(*shape, 0), random_image(*shape, 1)
    difference = np.abs(first.astype(int) - second).sum(axis=2)
    box = find_detail(first, second, size)
    assert (box.height, box.width) == (min(size, shape[0]), min(size, shape[1]))
    windows = np.lib.stride_tricks.sliding_window_view(difference, box[2:])
    sums = windows.sum(axis=(2, 3))
    assert (box.top, box.left) == np.unravel_index(np.argmax(sums), sums.shape)
    assert find_detail(first, first, size)[:2] == (0, 0)


RECORDS = [
    {"phase": "pre_training", "step": 0, "psnr_y": 20.0},
    {"phase": "pre_training", "step": 100, "mse": 0.02, "psnr_y": 27.0},
    {"phase": "training", "step": 0, "psnr_y": math.inf, "perceptual": None},
    {"phase": "training", "step": 50, "p_fake": math.nan, "g_loss": 0.0, "psnr_y": 1.0},
    {"phase": "training", "step": 50, "p_real": 0.7, "g_content": 1.2, "psnr_y": 26.0},
]


@pytest.mark.parametrize(
    ("bicubic", "dashed"), [(None, []), (25.5, [25.5, 25.5]), (math.nan, [])]
)
@pytest.mark.parametrize("records", [[], RECORDS[:1], RECORDS[2:3], RECORDS])
def test_training_curves(tmp_path, monkeypatch, records, bicubic, dashed):
    """Gaps, NaN or a repeated step crashed, or drew a curve back and forth."""
    figure = Figure((12, 8), dpi=100)
    monkeypatch.setattr(figures, "Figure", lambda *_, **__: figure)
    figures.save_training_curves(records, tmp_path / "curves.png", bicubic)
    read(tmp_path / "curves.png")
    curves = {line.get_label(): line.get_xydata() for line in figure.axes[1].lines}
    assert [value for _, value in curves.get("bicubic", [])] == dashed
    if records == RECORDS:
        assert curves["pre-training"].tolist() == [[0, 20], [100, 27]]
        assert curves["adversarial training"].tolist() == [[150, 26]]


@pytest.mark.parametrize("name", PRETRAIN_LOSSES)
def test_every_pre_training_loss_is_drawn(tmp_path, monkeypatch, name):
    """The panel of a run with another loss than MSE was empty."""
    figure = Figure((12, 8), dpi=100)
    monkeypatch.setattr(figures, "Figure", lambda *_, **__: figure)
    records = [{"phase": "pre_training", "step": 100, name: 0.02}]
    figures.save_training_curves(records, tmp_path / "curves.png")
    [curve] = figure.axes[0].lines
    assert curve.get_xydata().tolist() == [[100, 0.02]]


def test_model_diagram(tmp_path, monkeypatch):
    """Without Graphviz, the training ended before its first step.

    With it, Keras takes the format from the file name, and a temporary name has none.
    """
    monkeypatch.setenv("PATH", str(tmp_path))
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    path = tmp_path / "images" / "tiny.png"
    message = figures.save_model_diagram(model, path)
    assert "install graphviz" in message
    assert "\n" not in message
    assert list(path.parent.iterdir()) == []
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\necho "picture $1"\n')
    program.chmod(0o755)
    assert figures.save_model_diagram(model, path) is None
    assert path.read_text() == "picture -Tpng\n"
    assert list(path.parent.glob("[!.]*")) == [path]
