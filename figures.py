"""Draws what a run shows: grids, comparison sheets, training curves, diagrams.

Images are uint8 arrays `(h, w, 3)`, RGB in [0, 255], and are shown at native pixels
(1:1), because super-resolved detail does not survive shrinking. Every picture is
written to a temporary file and renamed, so that a file that exists is whole.

    python -c "import figures, numpy; black = numpy.zeros((64, 64, 3), 'uint8'); \
        figures.save_grid([{'black': black}], 'images/black.png')"
"""

import contextlib
import math
import os
import shlex
import shutil
import subprocess
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

GRID_CELL = 512  # px, largest side of a grid's cell; larger images are cut, not shrunk
DETAIL_SIZE = 96  # px, side of the detail on a comparison sheet
DETAIL_ZOOM = 288  # px, side a detail is enlarged to: 96 px three times
OVERVIEW_SIZE = 640  # px, longest side of the whole image on a comparison sheet
SHEET_COLUMNS = 6  # details side by side: 6 of them fit a screen of 1920 px
MIN_CELL = 144  # px, narrowest column, so that labels stay legible
MIN_PAGE = 360  # px, narrowest picture, so that titles stay legible
GAP = 10  # px between pictures
TEXT_GAP = 4  # px between a picture and its text
TITLE_SIZE, LABEL_SIZE = 20, 15  # px, heights of type
INK, PAPER = (32, 32, 32), (238, 238, 238)  # RGB of type and ground; white is not
DIAGRAM_DPI = 96  # dots per inch, one to one on a screen
CURVES_SIZE = (12, 8)  # inches at 100 dots each: 1200 x 800 px
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # safe for colour-blind eyes


class Box(NamedTuple):
    """A rectangle of an image, in px."""

    top: int
    left: int
    height: int
    width: int


def save_image(image, path):
    """Writes one image as PNG, making its folder where needed.

    The file is renamed into place once it is whole: an interrupted run leaves the
    former picture, never half a new one.

    Args:
        image: uint8 array `(h, w, 3)`, `(h, w, 4)`, `(h, w)` or `(h, w, 1)` in
            [0, 255], or a `PIL.Image.Image`, which keeps its mode and profile.
        path: str or path, the PNG file to write.

    Raises:
        ValueError: if `image` is an array of another type or shape.
        OSError: if the file cannot be written.
    """
    with _atomic_file(path) as temporary:
        _as_picture(image).save(temporary, format="PNG")


def save_grid(columns, path, title="", captions=None):
    """Saves a grid of pictures: a column per test image, a row per kind of picture.

    A picture several times smaller than its column's largest one, such as the
    low-resolution input, is enlarged a whole number of times by repeating pixels.
    What is larger than `GRID_CELL` shows its centre at 1:1, and its label says so.

    Args:
        columns: list of dicts, label -> uint8 array `(h, w, 3)` in [0, 255] of any
            size; rows come in the order of the labels, and may be missing.
        path: str or path, the PNG file to write.
        title: str, wrapped to the width of the grid; "" for none.
        captions: list of str, a heading per column, or `None`.

    Raises:
        ValueError: if there is nothing to show, if `captions` are not as many as
            `columns`, or if a picture is not uint8 `(h, w, 3)`.
    """
    if not any(columns):
        raise ValueError("Expected at least one picture for the grid. Received none.")
    if captions is not None and len(captions) != len(columns):
        raise ValueError(
            f"Expected one caption per column, {len(columns)} in all. "
            f"Received {len(captions)}."
        )
    cells = [_column_cells(column) for column in columns]
    widths = [max(MIN_CELL, *(view.width for _, view in c.values())) for c in cells]
    rows = []
    if captions is not None:
        rows.append([_text(*pair) for pair in zip(captions, widths, strict=True)])
    for label in dict.fromkeys(label for column in columns for label in column):
        row = [column.get(label, ("", Image.new("RGB", (0, 0)))) for column in cells]
        rows.append(
            [
                _text(note, width, above=GAP)
                for (note, _), width in zip(row, widths, strict=True)
            ]
        )
        rows.append([view for _, view in row])
    _save_page([_table(rows)], path, title)


def save_training_curves(records, path):
    """Draws the progress of a run from its log.

    Four panels: pre-training loss, PSNR of the test images over both phases, the
    discriminator's probabilities, the generator's losses. Keys that are missing,
    `None` or not finite leave gaps; a step logged twice (a resumed run) counts once,
    the later one. Adversarial steps follow the last pre-training step.

    Args:
        records: list of dicts, one a report, as `log.jsonl` holds them: "phase"
            ("pre_training" or "training"), "step" (int), and floats: "mse" (pixels in
            [-1, 1]), "psnr_y" (dB), "p_real", "p_fake" (in [0, 1]), "g_loss",
            "g_adversarial", "g_content", "perceptual".
        path: str or path, the PNG file to write.

    Raises:
        OSError: if the file cannot be written.
    """
    figure = Figure(figsize=CURVES_SIZE, dpi=100, layout="constrained")
    panels = list(figure.subplots(2, 2).flat)
    pretraining, quality, probabilities, losses = panels

    _draw_curve(pretraining, _series(records, "pre_training", "mse"), "MSE", BLUE)
    features = _series(records, "pre_training", "vgg22")
    _draw_curve(pretraining, features, "VGG22 features", ORANGE)
    pretraining.set(
        title="Pre-training loss", ylabel="mean squared error", yscale="log"
    )

    before = _series(records, "pre_training", "psnr_y")
    after = _series(records, "training", "psnr_y")
    last = max([0, *(r["step"] for r in records if r["phase"] == "pre_training")])
    after = {step + last: value for step, value in after.items()}
    _draw_curve(quality, before, "pre-training", BLUE)
    _draw_curve(quality, after, "adversarial training", ORANGE)
    if last and after:
        quality.axvline(last, color="gray", linestyle=":")
    quality.set(title="Test images", ylabel="PSNR (Y), dB")

    for key, label, color in (
        ("p_real", "D(real)", BLUE),
        ("p_fake", "D(fake)", ORANGE),
    ):
        _draw_curve(probabilities, _series(records, "training", key), label, color)
    probabilities.axhline(0.5, color="gray", linestyle=":")
    probabilities.set(title="Discriminator", ylabel="probability of being real")
    probabilities.set_ylim(-0.03, 1.03)

    for key, label, color in (
        ("g_loss", "total", "black"),
        ("g_adversarial", "adversarial, unweighted", ORANGE),
        ("g_content", "content, unweighted", BLUE),
        ("perceptual", "perceptual, test images", GREEN),
    ):
        _draw_curve(losses, _series(records, "training", key), label, color)
    losses.set(title="Generator losses", ylabel="loss", yscale="log")

    for panel in panels:
        _finish_panel(panel)
    with _atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def save_model_diagram(model, path):
    """Draws a model's layers with their shapes, as far as the machine can.

    The picture is that of `keras.utils.plot_model`. It needs Graphviz's program
    `dot`; without it the drawing's text is saved beside, for later or elsewhere.

    Args:
        model: a built `keras.Model`.
        path: str or path, the PNG file to write; the text is written to the same
            name with the ending `.dot`.

    Returns:
        `None` if the picture was written, else one line, str, that says what was
        saved and how to get the picture.

    Raises:
        OSError: if the file cannot be written.
    """
    import keras  # slow to import, and nothing else in this module needs it

    path = Path(path)
    try:
        diagram = keras.utils.model_to_dot(
            model, show_shapes=True, show_layer_names=True, dpi=DIAGRAM_DPI
        )
    except ImportError:
        return f"No diagram {path.name}: run `python -m pip install pydot` and repeat."
    text = diagram.to_string()
    reason = "Graphviz's program `dot` was not found"
    if shutil.which("dot"):
        with _atomic_file(path) as temporary:
            command = ["dot", "-Tpng", "-o", str(temporary)]
            drawn = subprocess.run(
                command, input=text.encode(), capture_output=True, check=False
            )
            if drawn.returncode:
                temporary.unlink(missing_ok=True)  # half a picture, perhaps
        if drawn.returncode == 0:
            return None
        reason = f"Graphviz's program `dot` failed (exit code {drawn.returncode})"
    text_path = path.with_suffix(".dot")
    with _atomic_file(text_path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    command = shlex.join(["dot", "-Tpng", str(text_path), "-o", str(path)])
    return (
        f"{reason}, so {text_path} holds the diagram as text. For the picture: "
        f"`apt install graphviz`, then `{command}`."
    )


def save_comparison_sheet(panels, path, captions=None, detail=None, title=""):
    """Saves one image's rival versions side by side, in an enlarged detail.

    On top stands the last panel as a whole, the original, with a frame around the
    detail; it is shrunk if it is larger than `OVERVIEW_SIZE`. Below, each panel's
    detail, enlarged by repeating pixels, over its label and caption.

    Args:
        panels: dict, label -> uint8 array `(h, w, 3)` in [0, 255], all of one size;
            the original comes last.
        path: str or path, the PNG file to write.
        captions: dict, label -> str such as "28.43 dB / 0.8104", or `None`.
        detail: `Box` to enlarge; `None` takes the one where the first panel
            differs most from the last.
        title: str, wrapped to the width of the sheet; "" for none.

    Raises:
        ValueError: if there are no panels, or if they differ in size.
    """
    shapes = {label: np.shape(panel) for label, panel in panels.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(
            "Expected panels of one size, at least one. Received "
            f"{shapes}. Enlarge the low-resolution panel, and cut the others alike."
        )
    *_, original = panels.values()
    if detail is None:
        detail = find_detail(next(iter(panels.values())), original)
    zoom = max(1, DETAIL_ZOOM // max(detail.height, detail.width))
    cells = []
    for label, panel in panels.items():
        view = _as_picture(_crop(panel, detail).repeat(zoom, 0).repeat(zoom, 1))
        note = f"{label}\n{(captions or {}).get(label, '')}"
        cells.append((view, _text(note, max(MIN_CELL, view.width), below=GAP)))

    # Rows as even as possible: 7 panels are 4 and 3, not 6 and 1.
    num_rows = math.ceil(len(cells) / SHEET_COLUMNS)
    num_columns = math.ceil(len(cells) / num_rows)
    rows = []
    for start in range(0, len(cells), num_columns):
        rows.extend(zip(*cells[start : start + num_columns], strict=True))
    details = _table(rows)
    enlarged = f"enlarged {zoom} times" if zoom > 1 else "at native size"
    note = (
        f"The frame marks the detail of {detail.width} x {detail.height} px, "
        f"shown below {enlarged}."
    )
    overview = _overview(original, detail)
    note = _text(note, max(MIN_PAGE, details.width), below=GAP)
    _save_page([overview, note, details], path, title)


def find_detail(first, second, size=DETAIL_SIZE):
    """Finds where two images differ most.

    Takes the window with the largest sum of absolute differences; of equal ones,
    the topmost, then the leftmost. Works row by row on running sums, so that memory
    stays small for huge images.

    Args:
        first: uint8 array `(h, w, 3)` in [0, 255].
        second: uint8 array of the same shape.
        size: int >= 1, px, side of the window; cut to the image's sides.

    Returns:
        `Box` inside the image, `min(size, h)` by `min(size, w)` px.

    Raises:
        ValueError: if the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"Expected two images of one shape. Received {first.shape} and "
            f"{second.shape}. Cut or enlarge one of them."
        )
    height, width = min(size, first.shape[0]), min(size, first.shape[1])

    def row_differences(row):
        difference = np.abs(first[row].astype("int64") - second[row])
        return difference.reshape(len(difference), -1).sum(axis=1)

    column_sums = sum(row_differences(row) for row in range(height))
    best_sum, best = -1, None
    for top in range(first.shape[0] - height + 1):
        if top:
            column_sums += row_differences(top + height - 1) - row_differences(top - 1)
        running_sums = np.concatenate([[0], np.cumsum(column_sums)])
        window_sums = running_sums[width:] - running_sums[:-width]
        left = int(np.argmax(window_sums))
        if window_sums[left] > best_sum:
            best_sum, best = window_sums[left], Box(top, left, height, width)
    return best


@contextlib.contextmanager
def _atomic_file(path):
    """Yields a temporary path beside `path`, and renames it if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        if temporary.exists():  # the block may have withdrawn it
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _as_picture(image):
    """Turns a uint8 array into a Pillow image; passes Pillow images through."""
    if isinstance(image, Image.Image):
        return image
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    ):
        raise ValueError(
            "Expected a uint8 image, (h, w, 3), (h, w, 4), (h, w, 1) or (h, w). "
            f"Received {array.dtype} {np.shape(image)}. Scale it to [0, 255], round "
            "and convert it first."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _crop(image, box):
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _column_cells(column):
    """Maps each label of a grid's column to its note and its picture."""
    height = max((image.shape[0] for image in column.values()), default=0)
    width = max((image.shape[1] for image in column.values()), default=0)
    return {
        label: _cell(label, image, height, width) for label, image in column.items()
    }


def _cell(label, image, height, width):
    """Enlarges an image towards `(height, width)`, then cuts it to `GRID_CELL`."""
    zoom = max(1, min(height // image.shape[0], width // image.shape[1]))
    notes = [label] + ([f"pixels x {zoom}"] if zoom > 1 else [])
    tall, wide = image.shape[0] * zoom, image.shape[1] * zoom
    box = Box(
        max(0, (tall - GRID_CELL) // 2),
        max(0, (wide - GRID_CELL) // 2),
        min(tall, GRID_CELL),
        min(wide, GRID_CELL),
    )
    if (box.height, box.width) != (tall, wide):
        notes.append(f"centre of {wide} x {tall} px")
    # Index by index: a huge image is never enlarged as a whole.
    rows = np.arange(box.top, box.top + box.height) // zoom
    across = np.arange(box.left, box.left + box.width) // zoom
    view = image[rows[:, np.newaxis], across]
    return ", ".join(notes), _as_picture(view).convert("RGB")


def _overview(image, box):
    """Shows a whole image, shrunk to `OVERVIEW_SIZE`, with a frame around `box`."""
    picture = _as_picture(image).convert("RGB")
    full_width = picture.width
    picture.thumbnail((OVERVIEW_SIZE, OVERVIEW_SIZE), Image.Resampling.LANCZOS)
    scale = picture.width / full_width
    left, top = round(box.left * scale), round(box.top * scale)
    right = max(left, round((box.left + box.width) * scale) - 1)
    bottom = max(top, round((box.top + box.height) * scale) - 1)
    draw = ImageDraw.Draw(picture)
    # White between black lines shows on any ground.
    for inset, color in enumerate(("black", "white", "white", "black")):
        if right - left > 2 * inset and bottom - top > 2 * inset:
            corners = (left + inset, top + inset, right - inset, bottom - inset)
            draw.rectangle(corners, outline=color)
    return picture


@cache
def _font(size):
    # Matplotlib's own font: Pillow's built-in one knows no letter beyond ASCII.
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(str(folder / "DejaVuSans.ttf"), size)


def _wrap(text, width, font):
    """Breaks text into lines of at most `width` px, inside words if it must."""
    lines = []
    for paragraph in text.encode("utf-8", "replace").decode("utf-8").splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") <= width:
                line = f"{line} {word}"
                continue
            lines.extend([line] if line else [])
            line = ""
            for letter in word:
                if line and font.getlength(line + letter) > width:
                    lines.append(line)
                    line = ""
                line += letter
        lines.extend([line] if line else [])
    return lines


def _text(text, width, size=LABEL_SIZE, above=0, below=0):
    """Draws wrapped text on an image exactly `width` px wide, with space around."""
    font = _font(size)
    lines = _wrap(text, width, font)
    line_height = math.ceil(size * 1.3)
    height = above + line_height * len(lines) + below
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    for index, line in enumerate(lines):
        draw.text((0, above + index * line_height), line, font=font, fill=INK)
    return picture


def _table(rows):
    """Arranges pictures in aligned rows and columns, from the top left."""
    num_columns = max(len(row) for row in rows)
    widths = [
        max(row[i].width for row in rows if i < len(row)) for i in range(num_columns)
    ]
    heights = [max(cell.height for cell in row) for row in rows]
    size = (
        sum(widths) + GAP * (len(widths) - 1),
        sum(heights) + TEXT_GAP * (len(heights) - 1),
    )
    page = Image.new("RGB", size, PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for cell, width in zip(row, widths, strict=False):
            page.paste(cell, (left, top))
            left += width + GAP
        top += height + TEXT_GAP
    return page


def _save_page(parts, path, title):
    """Stacks parts under a title, adds a margin and writes the page."""
    width = max(MIN_PAGE, *(part.width for part in parts))
    heading = [_text(title, width, TITLE_SIZE, below=GAP)] if title.strip() else []
    page = _table([[part] for part in heading + parts])
    framed = Image.new("RGB", (width + 2 * GAP, page.height + 2 * GAP), PAPER)
    framed.paste(page, (GAP, GAP))
    save_image(framed, path)


def _series(records, phase, key):
    """Returns step -> finite value of one curve, in the order of steps."""
    values = {r["step"]: r.get(key) for r in records if r["phase"] == phase}
    return {
        step: value
        for step, value in sorted(values.items())
        if value is not None and math.isfinite(value)
    }


def _draw_curve(panel, series, label, color):
    if series:
        marker = "." if len(series) <= 30 else ""  # one report alone draws no line
        panel.plot(
            *zip(*series.items(), strict=True), label=label, color=color, marker=marker
        )


def _finish_panel(panel):
    """Adds what all panels share, or says that there is nothing to see yet."""
    panel.set_xlabel("iteration")
    ticks = MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    panel.xaxis.set_major_locator(ticks)
    panel.grid(alpha=0.25)
    if panel.get_legend_handles_labels()[0]:
        panel.legend()
    else:
        panel.set_yscale("linear")
        panel.text(0.5, 0.6, "nothing yet", transform=panel.transAxes, ha="center")
