"""Measures generators on test images as the literature does, and shows the results.

    python evaluate.py                                    # your weights, or ours
    python evaluate.py --weights weights/training_checkpoints --hr Set5/HR --lr Set5/LR
    python evaluate.py --weights first.weights.h5 second.weights.h5 --json scores.json

Bicubic and nearest-neighbour enlargement are measured beside them. Without --lr, LR
images are made from the originals, with the blur that the checkpoint was trained with.
Grayscale originals are measured as such: what the generator makes of them is converted
by ITU-R BT.601, as Pillow's "L".
"""

import csv
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import checkpoints
import command_line
import distribution
import figures
import metrics
import networks
import sample_data
from data_loader import (
    IMAGE_SUFFIXES,
    SCALE,
    SOURCE_BLUR,
    TEST_FOLDER,
    ImageFile,
    UnreadableImageError,
    degrade,
    open_image,
    scan_folder,
    to_float,
    to_uint8,
)
from quiet import keras
from srgan import (
    CONTENT_LOSSES,
    FEATURE_WEIGHT,
    VGG_MAX_PIXELS,
    perceptual_loss,
)
from tiling import enlarge
from training_run import enlarge_by_filter

DISCRIMINATOR_FILE = "discriminator.weights.h5"  # beside a checkpoint's generator
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")  # Pillow's
GRID_COLUMNS = 6  # images on the grid; each has a sheet of its own
PROTOCOL = (
    "x4, 8-bit images, 4 px cut from each border. PSNR in dB.",
    "Y: luminance of ITU-R BT.601, as MATLAB's rgb2ycbcr.",
    "SSIM: Gaussian window of 11x11 px, sigma 1.5. MSE: RGB in [-1, 1], nothing cut.",
)
SCORES = {  # key -> heading of its column in the table, and decimals
    "psnr_y": ("PSNR Y", 2),
    "ssim_y": ("SSIM Y", 4),
    "psnr_rgb": ("PSNR RGB", 2),
    "ssim_rgb": ("SSIM RGB", 4),
    "mse": ("MSE", 5),
    "content": ("content", 5),
    "perceptual": ("perceptual", 5),
}
COLUMN = 10  # characters, width of a column of the table
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


class Model(NamedTuple):
    """A generator to measure.

    `path` is the file that was read; `discriminator` the one saved beside it, or
    `None`; `blur` the radius that it was trained with in HR px, `None` if unknown.
    """

    generator: keras.Model
    path: Path
    discriminator: keras.Model | None
    blur: float | None


class Pair(NamedTuple):
    """The `ImageFile`s of a test image; `lr` is `None` where it is made from `hr`."""

    name: str
    hr: ImageFile
    lr: ImageFile | None


class TestPair(NamedTuple):
    """One test image, uint8 in [0, 255]: `lr` `(h, w, 3)`, `hr` `(4h, 4w, 3)`.

    Grayscale ones are `(h, w)` and `(4h, 4w)`.
    """

    name: str
    lr: np.ndarray
    hr: np.ndarray


# Images ----------------------------------------------------------------------


def find_pairs(hr_folder, lr_folder=None):
    """Lists test images, paired by name without suffix, subfolders included.

    Args:
        hr_folder: path of the originals.
        lr_folder: path of the low-resolution images, or `None`.

    Returns:
        `(pairs, problems)`: a list of `Pair`, sorted by name, and a list of str, one
        for each file that cannot be used.

    Raises:
        FileNotFoundError: if a folder does not exist.
        ValueError: if there is no pair.
    """
    originals, problems = _files_by_name(hr_folder, "--hr", SCALE)
    if lr_folder is None:
        return [Pair(name, file, None) for name, file in originals.items()], problems
    inputs, input_problems = _files_by_name(lr_folder, "--lr", 1)
    problems += input_problems
    pairs = []
    for name in sorted(originals.keys() | inputs.keys()):
        hr, lr = originals.get(name), inputs.get(name)
        if lr is None:
            problems.append(f"{hr.path}: no image of that name in {lr_folder}")
        elif hr is None:
            problems.append(f"{lr.path}: no image of that name in {hr_folder}")
        elif lr[1:] != (hr.width // SCALE, hr.height // SCALE):
            problems.append(
                f"{lr.path}: expected {hr.width // SCALE}x{hr.height // SCALE} px, a "
                f"quarter of {hr.path}, received {lr.width}x{lr.height}"
            )
        else:
            pairs.append(Pair(name, hr, lr))
    if not pairs:
        raise ValueError(
            f"Expected images of the same names in {hr_folder} and {lr_folder}, the "
            f"latter a quarter as large, found no pair. For example, {problems[0]}. "
            "Pass another --lr, or none to have LR images made."
        )
    return pairs, problems


def _files_by_name(folder, flag, min_side):
    """Returns {relative name without suffix: `ImageFile`} and a list of problems."""
    if not Path(folder).is_dir():
        found = "a file" if Path(folder).exists() else "not there"
        raise FileNotFoundError(
            f"Expected a folder of images, but {folder} is {found}. Pass another "
            f"{flag}."
        )
    scan = scan_folder(folder, min_side)
    problems = [f"{path}: {reason}" for path, reason in scan.skipped.items()]
    files = {}
    for file in scan.files:
        name = Path(file.path).relative_to(folder).with_suffix("").as_posix()
        if files.setdefault(name, file) is not file:
            problems.append(f"{file.path}: {files[name].path} has the same name")
    if not files:
        found = f"unusable ones, such as {problems[0]}" if problems else "none"
        raise ValueError(
            f"Expected images in the folder {folder} ({' '.join(IMAGE_SUFFIXES)}), "
            f"found {found}. Pass another {flag}."
        )
    return files, problems


def load_pair(pair, blur):
    """Reads a test image, or makes its LR image.

    Args:
        pair: `Pair`.
        blur: float >= 0, radius in HR px, where the LR image has to be made.

    Returns:
        `TestPair`; of an original whose sides are no multiples of `SCALE`, the right
        and lower edge is cut.

    Raises:
        UnreadableImageError: an `OSError`; if a file cannot be read.
    """
    hr = open_image(pair.hr.path)
    with Image.open(pair.hr.path) as image:
        mode = "L" if image.mode in GRAY_MODES else "RGB"
    hr = hr.crop((0, 0, *(side // SCALE * SCALE for side in hr.size)))
    lr = degrade(hr, blur) if pair.lr is None else open_image(pair.lr.path)
    return TestPair(
        pair.name, np.asarray(lr.convert(mode)), np.asarray(hr.convert(mode))
    )


def _convert(image, mode):
    """Converts a uint8 array to Pillow's mode "L" or "RGB"."""
    return np.asarray(Image.fromarray(image).convert(mode))


# Models ----------------------------------------------------------------------


def load_models(paths, precision="float32", with_discriminators=False):
    """Loads generators to compare.

    Args:
        paths: list of paths as for `checkpoints.load_generator_weights`.
        precision: str, Keras dtype policy of the generators.
        with_discriminators: bool; if `True`, also the discriminators that lie beside
            them, for the perceptual loss.

    Returns:
        dict of label to `Model`; a label is the last part of a path, or as many parts
        as tell it from the others.

    Raises:
        FileNotFoundError: if there are no weights at a path.
        ValueError: if they are damaged or of another network.
    """
    paths = list(dict.fromkeys(Path(path).resolve() for path in paths))
    models = {}
    for label, path in zip(_make_labels(paths), paths, strict=True):
        generator, file = checkpoints.load_generator(path, precision)
        blur = discriminator = None
        if file.name == checkpoints.GENERATOR_FILE:
            _, state = checkpoints.inspect_checkpoint(file.parent)
            blur = state and state["facts"].get("options", {}).get("blur")
            discriminator_file = file.with_name(DISCRIMINATOR_FILE)
            if with_discriminators and discriminator_file.is_file():
                discriminator = networks.build_discriminator()
                checkpoints.load_weights(discriminator, discriminator_file)
        if file.parent == checkpoints.SHIPPED_FOLDER:
            blur = SOURCE_BLUR if file.name == checkpoints.SHIPPED_SOURCE else 0.0
        models[label] = Model(generator, file, discriminator, blur)
    return models


def _make_labels(paths):
    """Returns the shortest ends of distinct absolute paths that tell them apart."""
    taken = {*FILTERS, "low-resolution", "original"}
    for depth in range(1, max(len(path.parts) for path in paths)):
        ends = ["/".join(path.parts[-depth:]) for path in paths]
        labels = [end.removesuffix(".weights.h5") for end in ends]
        if len({*labels} - taken) == len(paths):
            return labels
    return [path.as_posix().lstrip("/") for path in paths]


def load_vgg(path=None, note=print):
    """Builds the source's VGG19 features if their weights are at hand.

    Args:
        path: file of VGG19 weights, or `None` for the one in Keras's cache. Nothing
            is downloaded.
        note: callable of one str, told if the file in the cache is of no use.

    Returns:
        `keras.Model`, or `None` if there is no such file in the cache.

    Raises:
        FileNotFoundError: if there is no file at `path`.
        ValueError: if the file at `path` holds something else.
    """
    file = Path(path or networks.cached_vgg_weights())
    layer_name, _, imagenet_preprocessing = CONTENT_LOSSES["source"]
    if file.is_file():
        try:
            checkpoints.check_vgg_weights(file)
            return networks.build_feature_extractor(
                layer_name, str(file), imagenet_preprocessing
            )
        except ValueError as error:
            if path is not None:
                raise
            note(f"No perceptual loss: {command_line.one_line(error)}")
    elif path is not None:
        raise FileNotFoundError(
            f"Expected VGG19 weights ({networks.VGG_WEIGHTS_FILE}), but there is no "
            f"file {path}. Pass another --vgg-weights, or none."
        )
    return None


# Measuring -------------------------------------------------------------------


def score(sr, hr, vgg=None, discriminator=None):
    """Measures one enlarged image.

    Args:
        sr: float32 `(4h, 4w, 3)` in [-1, 1].
        hr: uint8 `(4h, 4w, 3)` in [0, 255], or `(4h, 4w)` if it is grayscale.
        vgg: `keras.Model` of VGG19 features, or `None`.
        discriminator: `keras.Model`, or `None`.

    Returns:
        dict of floats: those of `metrics.measure`; `"mse"`, mean squared error in
        [-1, 1] (source); with `vgg`, unless the image is larger than
        `VGG_MAX_PIXELS`, `"content"`, that of features / 12.75^2; with both,
        `"perceptual"`, content + adversarial / 1000 (source). The last three are
        of RGB, also where `hr` is grayscale.
    """
    scores = metrics.measure(_convert(to_uint8(sr), _mode(hr)), hr)
    hr = to_float(_convert(hr, "RGB"))
    scores["mse"] = float(np.mean(np.square(sr - hr)))
    if vgg is None or hr[..., 0].size > VGG_MAX_PIXELS:
        return scores
    features = [np.asarray(vgg.predict_on_batch(image[None])) for image in (sr, hr)]
    content = FEATURE_WEIGHT * np.mean(np.square(np.subtract(*features)))
    scores["content"] = float(content)
    if discriminator is not None:
        verdicts = discriminator.predict_on_batch(sr[None])
        scores["perceptual"] = perceptual_loss(content, verdicts)
    return scores


def _mode(image):
    return "RGB" if image.ndim == 3 else "L"


def enlarge_and_score(models, test_pair, vgg=None, tile=None, progress=None):
    """Enlarges one image by all models and filters.

    Args:
        models: dict of label to `Model`.
        test_pair: `TestPair`.
        vgg: `keras.Model` of VGG19 features, or `None`.
        tile: int >= 1, LR px, or `None`; as for `tiling.enlarge`.
        progress: `command_line.Progress`, told of each model's work, or `None`.

    Returns:
        `(pictures, scores)`: dicts of label to uint8 image like `test_pair.hr`, and
        to the dict of `score`; models first, then `FILTERS`.
    """
    lr, hr = test_pair.lr, test_pair.hr
    pictures, scores = {}, {}
    note = progress.print_line if progress else print
    for label, model in models.items():
        if progress:
            progress.start_image(f"{test_pair.name}, {label}")
        sr = enlarge(model.generator, _convert(lr, "RGB"), tile, None, progress, note)
        scores[label] = score(sr, hr, vgg, model.discriminator)
        pictures[label] = _convert(to_uint8(sr), _mode(hr))
    for label, method in FILTERS.items():
        pictures[label] = enlarge_by_filter(lr, method)
        scores[label] = score(to_float(_convert(pictures[label], "RGB")), hr, vgg)
    return pictures, scores


def average(scores):
    """Averages scores over images, leaving out those that an image is too small for.

    Args:
        scores: dict of image name to dict of label to dict of floats.

    Returns:
        dict of label to dict of floats; NaN where no image has the figure.
    """
    means = {}
    for label in next(iter(scores.values())):
        rows = [image[label] for image in scores.values()]
        keys = dict.fromkeys(key for row in rows for key in row)
        table = {key: [row.get(key, math.nan) for row in rows] for key in keys}
        means[label] = {key: _mean_of_known(values) for key, values in table.items()}
    return means


def _mean_of_known(values):
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


# Showing ---------------------------------------------------------------------


def format_table(scores):
    """Formats scores as a table: rows of each image, then those of the mean.

    Args:
        scores: as for `average`.

    Returns:
        str of several lines.
    """
    means = average(scores)
    keys = [key for key in SCORES if any(key in row for row in means.values())]
    tables = scores | {f"mean of {len(scores)}": means}
    name_width = max(len(name) for name in ("image", *tables))
    label_width = max(len(label) for label in means)
    headings = "".join(f"{SCORES[key][0]:>{COLUMN}}" for key in keys)
    lines = [f"{'image':{name_width + 2 + label_width}}{headings}"]
    for name, table in tables.items():
        for number, (label, row) in enumerate(table.items()):
            shown = "".join(_format(row.get(key, math.nan), key) for key in keys)
            name_once = "" if number else name
            lines.append(f"{name_once:{name_width}}  {label:{label_width}}{shown}")
    return "\n".join(lines)


def _format(value, key):
    shown = "-" if math.isnan(value) else f"{value:.{SCORES[key][1]}f}"
    return f"{shown:>{COLUMN}}"


def save_pictures(test_pair, pictures, scores, output):
    """Saves the models' images of one test image, and its comparison sheet.

    Args:
        test_pair: `TestPair`.
        pictures: dict of label to uint8 image, as `enlarge_and_score` returns it.
        scores: dict of label to dict of floats, as `enlarge_and_score` returns it.
        output: `Path` of the folder.
    """
    name = test_pair.name
    models = [label for label in pictures if label not in FILTERS]
    for label in models:
        figures.save_image(pictures[label], output / "enlarged" / label / f"{name}.png")
    shown = {label: _convert(picture, "RGB") for label, picture in pictures.items()}
    detail = figures.find_detail(shown[models[0]], shown["bicubic"])
    lr, hr = _convert(test_pair.lr, "RGB"), _convert(test_pair.hr, "RGB")
    order = ("nearest", "bicubic", *models)
    panels = {"low-resolution": _place_lr(lr, hr, detail)}
    panels |= {label: shown[label] for label in order} | {"original": hr}
    captions = {label: _caption(scores[label]) for label in order}
    captions["low-resolution"] = f"{lr.shape[1]} x {lr.shape[0]} px"
    captions["original"] = f"{hr.shape[1]} x {hr.shape[0]} px"
    title = f"{name}, x{SCALE}: PSNR / SSIM (Y)"
    path = output / "sheets" / f"{name}.png"
    figures.save_comparison_sheet(panels, path, captions, detail, title)


def _caption(scores):
    return f"{scores['psnr_y']:.2f} dB / {scores['ssim_y']:.4f}"


def _place_lr(lr, hr, detail):
    """Shows the LR pixels of a detail at the size that they have beside the others."""
    canvas = np.full_like(hr, figures.PAPER)
    top, left = detail.top // SCALE, detail.left // SCALE
    height, width = -(-detail.height // SCALE), -(-detail.width // SCALE)
    piece = lr[top : top + height, left : left + width]
    top = detail.top + (detail.height - piece.shape[0]) // 2
    left = detail.left + (detail.width - piece.shape[1]) // 2
    canvas[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return canvas


def make_column(test_pair, pictures):
    """Makes a column of the grid: generated above low-resolution (source), and others.

    Args:
        test_pair: `TestPair`.
        pictures: dict of label to uint8 image, as `enlarge_and_score` returns it.

    Returns:
        dict of label to uint8 `(a, b, 3)`, the middle of the image as a copy, so that
        huge images are not kept.
    """
    lr, bicubic = test_pair.lr, pictures["bicubic"]
    rows = {label: pictures[label] for label in pictures if label not in FILTERS}
    rows |= {"low-resolution": lr, "bicubic": bicubic, "original": test_pair.hr}
    side = figures.GRID_CELL // SCALE
    top, left = (max(0, (length - side) // 2) for length in lr.shape[:2])
    column = {}
    for label, image in rows.items():
        zoom = image.shape[0] // lr.shape[0]
        y, x, length = zoom * top, zoom * left, zoom * side
        column[label] = _convert(image[y : y + length, x : x + length], "RGB").copy()
    return column


def write_json(path, facts, scores):
    """Writes scores as JSON; figures that are not finite become `null`.

    Args:
        path: path of the file.
        facts: dict of JSON values, put first: protocol, weights, folders.
        scores: as for `average`.
    """

    def known(table):
        return {
            label: {k: v if math.isfinite(v) else None for k, v in row.items()}
            for label, row in table.items()
        }

    images = {name: known(table) for name, table in scores.items()}
    results = facts | {"images": images, "mean": known(average(scores))}
    Path(path).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def write_csv(path, scores):
    """Writes scores as CSV: a row per image and method, then the means.

    Args:
        path: path of the file.
        scores: as for `average`.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", "method", *SCORES])
        writer.writeheader()
        for name, table in (scores | {"mean": average(scores)}).items():
            for label, row in table.items():
                writer.writerow({"image": name, "method": label} | row)


# Command line ----------------------------------------------------------------


def parse_args(arguments=None):
    """Reads the command line.

    Args:
        arguments: list of str; by default the process's.

    Returns:
        `argparse.Namespace`.
    """
    parser = command_line.ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
    )
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    add("--weights", nargs="+", action="extend", metavar="PATH",
        help="checkpoint folders or weight files, compared side by side "
        "[weights/training_checkpoints, else pre_training_checkpoints, else the "
        "shipped ones]")  # fmt: skip
    add("--hr", metavar="FOLDER",
        help="originals [datasets/img_test, else datasets/sample_test]")  # fmt: skip
    add("--lr", metavar="FOLDER",
        help="low-resolution images, of the same names [made from --hr]")  # fmt: skip
    add("--blur", type=command_line.non_negative_float, metavar="PX",
        help="Gaussian radius before shrinking, HR px, if LR images are made "
        "[the checkpoint's, else 0: the literature's]")  # fmt: skip
    add("--vgg-weights", metavar="PATH",
        help="VGG19 weights, for the perceptual loss [Keras's cache]")  # fmt: skip
    group = parser.add_argument_group("how, and what is written")
    add = group.add_argument
    add("--tile", type=command_line.positive_int, metavar="N",
        help="side of pieces to enlarge at a time, LR px [by memory]")  # fmt: skip
    add("--precision", choices=command_line.PRECISIONS, default="float32",
        help="arithmetic of the generators [float32]")  # fmt: skip
    add("--output", type=Path, default=Path("images/evaluation"), metavar="FOLDER",
        help="enlarged images, sheets and grid [images/evaluation]")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="the table as JSON")
    add("--csv", type=Path, metavar="FILE", help="the table as CSV")
    return parser.parse_args(arguments)


def main(argv=None):
    """Evaluates as the command line says.

    Args:
        argv: list of str; by default the process's arguments.

    Returns:
        int, exit code: 0 done, 1 if an image could not be used, 2 the user's
        mistake, 130 when interrupted.
    """
    args = parse_args(argv)
    try:
        return _evaluate(args)
    except (OSError, ValueError) as error:
        print(f"evaluate.py: {command_line.one_line(error)}", file=sys.stderr)
        return command_line.EXIT_USAGE
    except MemoryError as error:
        print(f"evaluate.py: {command_line.one_line(error)}", file=sys.stderr)
        return command_line.EXIT_FAILED
    except KeyboardInterrupt:
        print("\nStopped. Pictures written so far are whole.", file=sys.stderr)
        return command_line.EXIT_SIGNAL + 2


def _evaluate(args):
    distribution.grow_gpu_memory()
    _check_writable(args)
    args.hr = args.hr or _default_originals()
    pairs, problems = find_pairs(args.hr, args.lr)
    vgg = load_vgg(args.vgg_weights)
    paths = args.weights or [checkpoints.default_weights()]
    models = load_models(paths, args.precision, with_discriminators=vgg is not None)
    for label, model in models.items():
        print(f"Weights {label}: {model.path}")
    blur = _choose_blur(args, models)
    origin = f"from {args.lr}" if args.lr else f"made from {args.hr} with blur {blur:g}"
    num_cut = sum(bool(p.hr.width % SCALE or p.hr.height % SCALE) for p in pairs)
    if num_cut:
        print(
            f"Images cut at right and lower edge to a multiple of {SCALE}: {num_cut}."
        )
    protocol = [*PROTOCOL, f"LR images {origin}."]
    print("\n".join(protocol), flush=True)

    scores, columns = {}, {}
    progress = command_line.Progress(len(pairs) * len(models))
    for pair in pairs:
        try:
            test_pair = load_pair(pair, blur)
        except UnreadableImageError as error:
            problems.append(str(error).rstrip("."))
            continue
        pictures, table = enlarge_and_score(models, test_pair, vgg, args.tile, progress)
        save_pictures(test_pair, pictures, table, args.output)
        scores[pair.name] = table
        if len(columns) < GRID_COLUMNS:
            best = ", ".join(f"{table[label]['psnr_y']:.2f} dB" for label in models)
            columns[f"{pair.name}, {best}"] = make_column(test_pair, pictures)
    progress.print_line("")
    for problem in problems:
        print(f"evaluate.py: skipped {problem}.", file=sys.stderr)
    if not scores:
        raise ValueError(f"Expected readable images in {args.hr}, found none.")
    grid = args.output / "grid.png"
    figures.save_grid(list(columns.values()), grid, captions=list(columns))
    print(f"{format_table(scores)}\n")
    weights = {label: str(model.path) for label, model in models.items()}
    facts = {"protocol": " ".join(protocol), "weights": weights}
    facts |= {"hr": args.hr, "lr": args.lr, "blur": None if args.lr else blur}
    _conclude(args, facts | {"skipped": problems}, scores)
    return command_line.EXIT_FAILED if problems else 0


def _check_writable(args):
    """Makes the folders of all results, before any work."""
    for flag in ("output", "json", "csv"):
        path = getattr(args, flag)
        if path is not None:
            command_line.check_result_path(path, f"--{flag}", flag == "output")


def _default_originals():
    if Path(TEST_FOLDER).is_dir():
        return TEST_FOLDER
    print(
        f"No --hr, and {TEST_FOLDER} is not there: measuring on the generated sample "
        "images, which are made once.",
        flush=True,
    )
    return str(sample_data.write_sample_dataset().test)


def _choose_blur(args, models):
    """Returns the blur of LR images, and warns of models trained with another one."""
    known = {label: m.blur for label, m in models.items() if m.blur is not None}
    blur = args.blur
    if blur is None:
        blur = next(iter(known.values()), 0.0)
    for label, trained in known.items():
        if trained != blur and not args.lr:
            print(f"{label} was trained with blur {trained:g}, not {blur:g}.")
    return blur


def _conclude(args, facts, scores):
    """Writes the tables, and says where everything lies."""
    print(
        f"Enlarged  {args.output / 'enlarged'}\n"
        f"Sheets    {args.output / 'sheets'}\n"
        f"Grid      {args.output / 'grid.png'}"
    )
    if args.json:
        write_json(args.json, facts, scores)
        print(f"Table     {args.json}")
    if args.csv:
        write_csv(args.csv, scores)
        print(f"Table     {args.csv}")


if __name__ == "__main__":
    sys.exit(main())
