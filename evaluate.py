"""Measures generators on test images as the literature does, and shows the results.

    python evaluate.py                                    # your weights, or ours
    python evaluate.py --weights weights/training_checkpoints --hr Set5/HR --lr Set5/LR
    python evaluate.py --weights srresnet-bicubic mine.weights.h5 --json scores.json
    python evaluate.py --hr Set5/HR --results SelfExSR=PATH DRCN=PATH

Bicubic and nearest-neighbor enlargement are measured beside them.
"""

import importlib
import json
import os
from collections import namedtuple
from pathlib import Path

from support import command_line

with command_line.quiet_imports(__name__):
    import numpy as np
    from PIL import Image

    import data_loader
    import metrics
    import sample_data
    from support import figures, image_files, pixels, test_images
    from support.degradation import DEFAULT_BLURS, Degradation, choose_degradation

# Modules that need Keras are imported where they are used, because results of other
# methods are measured without it.

GRID_COLUMNS = 6  # images on the grid; each has a sheet of its own
RESERVED_LABELS = (*metrics.FILTERS, "low-resolution", "original")
# `path` is the file that was read. `discriminator`, the one saved beside it, and
# `degradation`, that of its training, are `None` if unknown.
Model = namedtuple("Model", "generator path discriminator degradation")


def load_models(paths, precision="float32"):
    """Loads generators as {label: `Model`}; a label is a path as it was typed."""
    from support import checkpoints, weight_files

    models = {}
    for path in paths:
        generator, file = weight_files.load_generator(path, precision)
        degradation = discriminator = None
        has_state = (file.parent / checkpoints.STATE_FILE).is_file()
        if file.name == checkpoints.GENERATOR_FILE and has_state:
            options = checkpoints.read_state(file.parent).get("options", {})
            if "blur" in options:  # older checkpoints hold no more
                kind = options.get("degradation", "bicubic")
                degradation = Degradation(kind, options["blur"])
            file_beside = file.parent / "discriminator.weights.h5"
            # The paper's only judges crops.
            if file_beside.is_file() and generator.network.name != "paper":
                discriminator = weight_files.load_discriminator(file_beside, generator)
        elif file in weight_files.list_shipped().values():
            kind = file.name.removesuffix(".weights.h5").rpartition("-")[2]
            if kind not in DEFAULT_BLURS:
                kind = "bicubic"
            degradation = choose_degradation(kind)
        label = str(path).removesuffix(".weights.h5").strip("/")
        if label in (*models, *RESERVED_LABELS):
            label = str(path)
        models[label] = Model(generator, file, discriminator, degradation)
    return models


def load_vgg(path):
    """Builds the features of the scores, or returns `None` without a weights file."""
    from losses import build_content_features
    from networks import VGG_WEIGHTS_FILE

    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    file = Path(path or Path(home, "models", VGG_WEIGHTS_FILE))
    if not path and not file.is_file():  # nothing is downloaded
        return None
    keys = "source", "vgg54"
    return {key: build_content_features(key, str(file)) for key in keys}


def score_models(models, image, vgg, tile):
    """Returns {label: uint8 image} and {label: scores} of models and filters."""
    versions = metrics.enlarge_by_filters(image)
    if models:
        from support.tiling import enlarge

        enlarged = {k: enlarge(m.generator, image.lr, tile) for k, m in models.items()}
        versions = enlarged | versions
    shown, scores = {}, {}
    for label, sr in versions.items():
        shown[label] = metrics.show(sr, image.is_gray)
        scores[label] = score(sr, image, vgg)
        if vgg is not None and label in models and models[label].discriminator:
            from losses import CONTENT_LOSSES

            judges = vgg["source"], models[label].discriminator, sr, image.hr
            loss = metrics.perceptual_loss(*judges, CONTENT_LOSSES["source"])
            scores[label]["perceptual"] = loss
    return shown, scores


def score_results(files, image, vgg, problems):
    """Does as `score_models` for other methods' images, a dict of label to path."""
    shown, scores = {}, {}
    for label, path in files.items():
        try:
            sr, *part = test_images.read_result(path, *image.hr.shape[:2])
        except image_files.UnreadableImageError as error:
            problems.append(f"{path}: {error.reason}")
            continue
        shown[label] = metrics.show(sr, image.is_gray)
        sr, hr = sr[tuple(part)], image.hr[tuple(part)]
        if hr.shape != image.hr.shape:
            size = f"{hr.shape[1]}x{hr.shape[0]} px"
            print(f"{label}, {image.name}: measured on its middle, {size}.")
        scores[label] = score(sr, image._replace(hr=hr), vgg)
    return shown, scores


def score(sr, image, vgg):
    """Returns all scores that do not need a discriminator."""
    scores = metrics.score(sr, image)
    if vgg is not None:
        scores["vgg54"] = metrics.feature_distance(vgg["vgg54"], sr, image.hr)
    return scores


def save_pictures(image, shown, scores, models, output):
    """Saves the models' images and a comparison sheet; returns the grid's column."""
    for label in models:
        folder = Path(output, "enlarged", label.replace("/", "-"))
        image_files.save_image(shown[label], folder / f"{image.name}.png")
    others = [label for label in shown if label not in metrics.FILTERS]
    panels, captions = {}, {}
    for label in ("nearest", "bicubic", *others):
        panels[label] = np.asarray(Image.fromarray(shown[label]).convert("RGB"))
        row = scores[label]
        captions[label] = f"{row['psnr_y']:.2f} dB / {row['ssim_y']:.4f}"
    panels["original"] = pixels.to_uint8(image.hr)
    detail = figures.find_detail(panels[[*others, "original"][0]], panels["bicubic"])
    path = Path(output, "sheets", f"{image.name}.png")
    title = f"{image.name}, x{pixels.SCALE}: PSNR / SSIM (Y)"
    figures.save_comparison_sheet(panels, path, captions, detail, title)
    panels["low-resolution"] = pixels.to_uint8(image.lr)
    rows = *others, "low-resolution", "bicubic", "original"
    return {label: panels[label] for label in rows}


def average(scores):
    """Averages {image: {label: scores}}, and prints which means leave images out."""
    means = {}
    for label in dict.fromkeys(label for table in scores.values() for label in table):
        rows = [table[label] for table in scores.values() if label in table]
        means[label] = metrics.mean_scores(rows)
        for key, (heading, _) in metrics.SCORES.items():
            num_finite = sum(np.isfinite(row.get(key, np.nan)) for row in rows)
            if key in rows[0] and num_finite < len(scores):
                print(
                    f"{label}: mean {heading} of {num_finite} of {len(scores)} images"
                )
    return means


def parse_args(argv=None):
    """Reads the command line."""
    parser = command_line.ArgumentParser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument_group("what is measured").add_argument
    add("--weights", nargs="+", action="extend", metavar="PATH",
        help="checkpoint folders, weight files or names of shipped weights (default: "
        "weights/training_checkpoints, else the shipped ones)")  # fmt: skip
    add("--results", nargs="+", action="extend", default=[], metavar="NAME=FOLDER",
        type=command_line.named_folder,
        help="other methods' x4 images, paired by name with --hr")  # fmt: skip
    add("--hr", metavar="FOLDER", help="original images (default: datasets/img_test, "
        "else the demo's test images)")  # fmt: skip
    add("--lr", metavar="FOLDER",
        help="low-resolution images (default: made from the originals)")  # fmt: skip
    add(
        "--degradation",
        choices=DEFAULT_BLURS,
        help="how LR images are made (default: as in the weights' training)",
    )
    add(
        "--blur",
        type=command_line.non_negative_float,
        metavar="PX",
        help="Gaussian blur radius for LR images that are made, in HR px (default: the "
        "degradation's)",
    )
    add("--vgg-weights", metavar="PATH",
        help="VGG19 weights file, for the perceptual scores (default: the one in "
        "Keras's cache)")  # fmt: skip
    add = parser.add_argument_group("how, and what is written").add_argument
    add("--tile", type=command_line.positive_int, metavar="PX",
        help="side of the tiles in LR px (default: by the image's size)")  # fmt: skip
    add("--precision", choices=command_line.PRECISIONS, default="float32",
        help="compute dtype")  # fmt: skip
    add("--output", type=Path, default=Path("images/evaluation"), metavar="FOLDER",
        help="folder for enlarged images, sheets and grid")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="file for the scores as JSON")
    args = parser.parse_args(argv)
    if args.degradation and args.lr:
        parser.error(
            "--degradation is for LR images that are made, but --lr has some. Omit one."
        )
    return args


def main(argv=None):
    """Evaluates as the command line says, and returns the exit code."""
    args = parse_args(argv)
    with command_line.usage_errors():
        command_line.check_writable(args.output / "grid.png", "output")
        if args.json:
            command_line.check_writable(args.json, "json")
        results = command_line.check_labels(args.results, RESERVED_LABELS)
        if args.hr is None and Path(data_loader.TEST_FOLDER).is_dir():
            args.hr = data_loader.TEST_FOLDER
        elif args.hr is None:
            folder = data_loader.TEST_FOLDER
            print(f"There is no folder {folder}: measuring on the demo's images.")
            args.hr = sample_data.write_sample_dataset()
        pairs, problems = test_images.find_pairs(args.hr, args.lr, [args.output])
        originals = {pair.name: pair.hr for pair in pairs}
        results = {
            label: test_images.match_names(originals, folder, problems)
            for label, folder in results.items()
        }
        if args.weights or args.vgg_weights or not results:
            with command_line.quiet_imports(__name__):
                importlib.import_module("networks")
        weights = args.weights or (() if results else _default_weights())
        models = load_models(weights, args.precision) if weights else {}
        vgg = load_vgg(args.vgg_weights) if weights or args.vgg_weights else None
        for label, model in models.items():
            print(f"Weights {label}: {model.path}")
        degradation = _choose_degradation(args, models)
    origin = f"from {args.lr}" if args.lr else f"made from {args.hr} with {degradation}"
    protocol = f"{metrics.PROTOCOL} LR images {origin}."
    print(protocol, flush=True)

    scores, columns = {}, {}
    bar = command_line.progress_bar(len(pairs), "image") if models else None
    for number, pair in enumerate(pairs, start=1):
        try:
            image = test_images.load_pair(pair, degradation)
        except image_files.UnreadableImageError as error:
            problems.append(str(error).removeprefix("Cannot read ").rstrip("."))
            continue
        files = {
            k: found[pair.name] for k, found in results.items() if pair.name in found
        }
        shown, table = score_models(models, image, vgg, args.tile)
        more, rows = score_results(files, image, vgg, problems)
        shown, table = more | shown, rows | table
        column = save_pictures(image, shown, table, models, args.output)
        name = f"{pair.name} (gray)" if image.is_gray else pair.name
        scores[name] = table
        if len(columns) < GRID_COLUMNS:
            columns[name] = column
        if bar is not None:
            bar.update(number)
    for problem in problems:
        command_line.warn(f"skipped {problem}.")
    if not scores:
        command_line.fail(f"No image in {args.hr} can be measured.")
    grid = args.output / "grid.png"
    figures.save_grid(list(columns.values()), grid, captions=list(columns))
    means = average(scores)
    print(metrics.format_table(scores | {f"mean of {len(scores)}": means}))
    print(f"\nEnlarged  {args.output / 'enlarged'}\nSheets    {args.output / 'sheets'}")
    print(f"Grid      {grid}")
    if args.json:
        weights = {label: str(model.path) for label, model in models.items()}
        facts = {"protocol": protocol, "weights": weights, "skipped": problems}
        text = json.dumps(facts | {"images": scores, "mean": means})
        # Standard JSON has no NaN or Infinity.
        contents = json.loads(text, parse_constant=lambda constant: None)
        image_files.write_text(args.json, json.dumps(contents, indent=1))
        print(f"Table     {args.json}")
    return command_line.EXIT_FAILED if problems else 0


def _default_weights():
    from support import weight_files

    try:
        return [weight_files.find_weights(weight_files.DEFAULT_FOLDER)]
    except FileNotFoundError:
        return list(weight_files.list_shipped())


def _choose_degradation(args, models):
    """Returns how LR images are made, and warns of models trained with others."""
    known = {k: m.degradation for k, m in models.items() if m.degradation is not None}
    chosen = next(iter(known.values()), choose_degradation("bicubic"))
    if args.degradation or args.blur is not None:
        chosen = choose_degradation(args.degradation or "bicubic", args.blur)
    for label, trained in known.items():
        if str(trained) != str(chosen) and not args.lr:
            print(f"{label} was trained with {trained}, not {chosen}.")
    return chosen


if __name__ == "__main__":
    command_line.run(main)
