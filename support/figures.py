"""Draws image grids, comparison sheets, training curves and model diagrams.

Images are uint8 RGB arrays `(h, w, 3)`, drawn 1:1: resampling would hide their detail.

    python -c "import numpy; from support import figures; \
        figures.save_grid([{'black': numpy.zeros((64, 64, 3), 'uint8')}], 'black.png')"
"""

import contextlib
import warnings
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from support.image_files import atomic_path

GRID_CELL = 512  # px, largest side of a grid cell; larger images show their center
MIN_CELL = 144  # px, smallest cell of a crowded grid, so that labels stay legible
GRID_WIDTH = 2400  # px, cells shrink to fit it
DETAIL_SIZE = 96  # px, side of the detail on a comparison sheet
DETAIL_ZOOM = 3  # times a detail is enlarged
SHEET_COLUMNS = 6  # details per row: six of them fit a screen of 1920 px
OVERVIEW_SIZE = 640  # px, longest side of the whole image on a comparison sheet
GAP = 10  # px, margin and space between images
FONT_SIZE = 14  # px
LINE_HEIGHT = 20  # px
PAPER = 238  # gray level of the page; white would blend with bright images
BLANK = np.full((1, 1, 3), PAPER, "uint8")  # stands below text without an image
PAGE_DPI = 72  # dots per inch; a point, the unit of font sizes, is then one pixel
BLUE = "#0072B2"  # these three are safe for color-blind readers
ORANGE = "#D55E00"
GREEN = "#009E73"


class Box(NamedTuple):
    """A rectangle of an image, in px."""

    top: int
    left: int
    height: int
    width: int


def save_grid(columns, path, title="", captions=None):
    """Saves a grid: a column per test image, which is a dict of label to image.

    Small images are enlarged by repeating pixels; large ones show their center.
    """
    if not any(columns):
        raise ValueError("No images to show in the grid. Pass at least one.")
    share = (GRID_WIDTH - GAP) // len(columns) - GAP
    side = min(GRID_CELL, max(MIN_CELL, share))
    views = [_view_column(column, side) for column in columns]
    rows = []
    if captions:
        rows.append([(caption, BLANK) for caption in captions])
    for label in max(views, key=len):
        rows.append([(label, view.get(label, BLANK)) for view in views])
    note = f"1:1, at most the central {side} x {side} px; small images repeat pixels"
    rows.append([(note, BLANK)])
    _save_page(rows, path, title)


def save_comparison_sheet(versions, path, captions=None, detail=None, title=""):
    """Saves a detail of several versions of one image, below the whole original.

    `versions` and `captions` are dicts of label to image and text, the original last.
    By default, the `Box` of the detail is where the first differs most from the last.
    """
    images = list(versions.values())
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ValueError(f"Images are missing or differ in size: {sorted(shapes)}.")
    detail = detail or find_detail(images[0], images[-1])
    cells = []
    for label, image in versions.items():
        text = label
        if captions and label in captions:
            text = f"{label}: {captions[label]}"
        cells.append((text, _enlarge_detail(image, detail)))
    note = (
        f"Below: the framed detail, {detail.width} x {detail.height} px, "
        f"enlarged x{DETAIL_ZOOM}"
    )
    rows = [[(note, _draw_overview(images[-1], detail))]]
    for start in range(0, len(cells), SHEET_COLUMNS):
        rows.append(cells[start : start + SHEET_COLUMNS])
    _save_page(rows, path, title)


def save_training_curves(records, path, bicubic=None):
    """Draws the records of a run's log, and a line at bicubic's PSNR (Y) in dB."""
    figure = Figure((12, 8), dpi=100, layout="constrained")  # 1200 x 800 px
    (pretraining, quality), (probabilities, losses) = figure.subplots(2, 2)
    before = [record for record in records if record["phase"] == "pre_training"]
    after = [record for record in records if record["phase"] == "training"]
    last = max((record["step"] for record in before), default=0)

    pretraining.set(title="Pre-training loss", ylabel="loss", yscale="log")
    _draw_curve(pretraining, before, "mse", "MSE", BLUE)
    _draw_curve(pretraining, before, "l1", "mean absolute error", GREEN)
    _draw_curve(pretraining, before, "vgg22", "VGG22 features", ORANGE)

    quality.set(title="Test images", ylabel="PSNR (Y), dB")
    _draw_curve(quality, before, "psnr_y", "pre-training", BLUE)
    _draw_curve(quality, after, "psnr_y", "adversarial training", ORANGE, last)
    if bicubic is not None and np.isfinite(bicubic):
        quality.axhline(bicubic, color="gray", linestyle="--", label="bicubic")

    probabilities.set(title="Discriminator", ylabel="P(real)", ylim=(-0.03, 1.03))
    probabilities.axhline(0.5, color="gray", linestyle=":", label="undecided")
    _draw_curve(probabilities, after, "p_real", "D(real)", BLUE)
    _draw_curve(probabilities, after, "p_fake", "D(fake)", ORANGE)

    losses.set(title="Generator losses", ylabel="loss", yscale="log")
    _draw_curve(losses, after, "g_loss", "total", "black")
    _draw_curve(losses, after, "g_adversarial", "adversarial, unweighted", ORANGE)
    _draw_curve(losses, after, "g_content", "content, unweighted", BLUE)
    _draw_curve(losses, after, "perceptual", "perceptual, test images", GREEN)

    for axes in figure.axes:
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        if axes.lines:
            axes.legend()
    with drawing(path) as temporary:
        figure.savefig(temporary, format="png")


def save_model_diagram(model, path):
    """Draws a model's layers; returns a line that names a missing tool, or `None`."""
    import keras  # slow to import, and nothing else in this module needs it

    try:
        with atomic_path(path) as temporary:
            png = temporary.with_suffix(".png")  # Keras takes the format from the name
            keras.utils.plot_model(model, png, show_shapes=True, show_layer_names=True)
            png.replace(temporary)
    except ImportError as error:
        return f"No diagram {path}: {error}"


@contextlib.contextmanager
def drawing(path):
    """Yields a temporary path as `atomic_path` does, without warnings of letters.

    Names may be in any script; the font shows boxes for the letters that it lacks.
    """
    with warnings.catch_warnings(), atomic_path(path) as temporary:
        warnings.simplefilter("ignore", UserWarning)
        yield temporary


def find_detail(first, second, size=DETAIL_SIZE):
    """Returns the `Box`, of `size` px if it fits, where two images differ most."""
    height, width = np.minimum(first.shape[:2], size).tolist()
    difference = np.abs(first.astype("int64") - second).sum(axis=2)
    sums = np.pad(difference.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    strips = sums[height:] - sums[:-height]
    windows = strips[:, width:] - strips[:, :-width]
    top, left = np.unravel_index(np.argmax(windows), windows.shape)
    return Box(int(top), int(left), height, width)


def _view_column(column, side):
    """Enlarges the small images of a column and crops the large ones to `side` px."""
    tallest = max(len(image) for image in column.values())
    views = {}
    for label, image in column.items():
        zoom = tallest // len(image)
        image = image.repeat(zoom, 0).repeat(zoom, 1)
        top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
        views[label] = image[top : top + side, left : left + side]
    return views


def _enlarge_detail(image, box):
    """Returns a rectangle of an image, each pixel repeated."""
    rows = slice(box.top, box.top + box.height)
    columns = slice(box.left, box.left + box.width)
    return image[rows, columns].repeat(DETAIL_ZOOM, 0).repeat(DETAIL_ZOOM, 1)


def _draw_overview(image, box):
    """Returns an image with a frame around `box`, shrunk to `OVERVIEW_SIZE`."""
    overview = Image.fromarray(image)
    scale = max(1, max(overview.size) / OVERVIEW_SIZE)
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    draw = ImageDraw.Draw(overview)
    draw.rectangle(corners, outline="black", width=round(4 * scale))
    draw.rectangle(corners, outline="white", width=round(2 * scale))
    overview.thumbnail((OVERVIEW_SIZE, OVERVIEW_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(overview)


def _draw_curve(axes, records, key, label, color, first_step=0):
    """Draws the finite values of one key of the log."""
    values = {record["step"]: record.get(key) for record in records}
    points = np.array(sorted(values.items()), "float64").reshape(-1, 2)  # None -> NaN
    steps, values = points[np.isfinite(points[:, 1])].T
    if steps.size:
        axes.plot(first_step + steps, values, ".-", label=label, color=color)


def _save_page(rows, path, title):
    """Saves rows of `(text, image)` pairs in columns under a title, pixels 1:1."""
    if title:
        rows = [[(title, BLANK)], *rows]
    num_columns = max(len(row) for row in rows)
    cell_width = MIN_CELL  # rows of a single image do not widen the columns
    heights = []
    for row in rows:
        heights.append(LINE_HEIGHT + max(len(image) for _, image in row) + GAP)
        if len(row) > 1:
            cell_width = max(cell_width, *(image.shape[1] for _, image in row))
    pitch = cell_width + GAP
    page_width = max(OVERVIEW_SIZE + GAP, pitch * num_columns) + GAP
    page_height = sum(heights) + 2 * GAP
    size = (page_width / PAGE_DPI, page_height / PAGE_DPI)
    figure = Figure(size, dpi=PAGE_DPI, facecolor=str(PAPER / 255))
    FigureCanvasAgg(figure)  # measures text
    with drawing(path) as temporary:
        top = page_height - GAP  # of a row; matplotlib counts from the bottom
        for row, height in zip(rows, heights, strict=True):
            text_width = cell_width - GAP if len(row) > 1 else page_width - 2 * GAP
            for number, (text, image) in enumerate(row):
                left = GAP + number * pitch
                bottom = top - LINE_HEIGHT - len(image)
                _write(figure, text, left, top - FONT_SIZE, text_width)
                figure.figimage(image, left, bottom, origin="upper")
            top -= height
        figure.savefig(temporary, format="png", dpi=PAGE_DPI)


def _write(figure, text, left, baseline, width):
    """Writes a line of text, with its middle left out if it is wider than `width`."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    line = figure.text(left, baseline, text, fontsize=FONT_SIZE, transform=None)
    line.set_parse_math(False)  # file names may contain "$"
    kept = len(text)
    while (extent := line.get_window_extent().width) > width:
        kept = min(kept - 1, int(kept * width / extent))
        line.set_text(f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}")
