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
from pathlib import Path
from typing import Any, NamedTuple

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


class Model(NamedTuple):
    """A generator, the file that was read, and what is known of its training.

    `content_loss` is a key of `losses.CONTENT_LOSSES`.
    """

    generator: Any
    path: Path
    degradation: Degradation | None = None
    content_loss: str | None = None
    discriminator: Any = None


class Version(NamedTuple):
    """An enlarged image, uint8 `(h, w, 3)` or gray `(h, w)`, and {key: score}."""

    image: np.ndarray
    scores: dict


def find_files(args):
    """Finds the test images and, by label and name, other methods' results.

    Returns a list of `Pair`, {label: {name: path}}, and a list of problems.
    """
    results = command_line.check_labels(args.results or (), RESERVED_LABELS)
    # None of these folders belongs to another one that it lies in.
    folders = [args.hr, *results.values(), *(args.weights or ())]
    if args.lr:
        folders.append(args.lr)
    pairs, problems = test_images.find_pairs(args.hr, args.lr, exclude=folders)
    originals = {pair.name: pair.hr for pair in pairs}
    files = {}
    for label, folder in results.items():
        files[label] = test_images.match_names(originals, folder, problems, folders)
    return pairs, files, problems


def choose_hr_folder():
    """Returns the default folder of test images, or that of the demo's."""
    folder = data_loader.TEST_FOLDER
    if Path(folder).is_dir():
        return folder
    print(f"There is no folder {folder}: measuring on the demo's images.")
    return sample_data.write_sample_dataset()


def choose_weights():
    """Returns the newest checkpoint of the default folder, or all shipped weights."""
    from support import weight_files

    try:
        return [weight_files.find_weights(weight_files.DEFAULT_FOLDER)]
    except FileNotFoundError:
        return list(weight_files.list_shipped())


def check_weights(paths):
    """Raises an error if weights are missing, before images are made and read."""
    if paths:
        with command_line.quiet_imports(__name__):
            from support import weight_files
        for path in paths:
            weight_files.find_weights(path)


def load_networks(args):
    """Returns {label: `Model`} and {content loss: VGG19 features}, if asked for."""
    if args.results and not args.weights and not args.vgg_weights:
        return {}, {}
    with command_line.quiet_imports(__name__):
        importlib.import_module("networks")
    paths = args.weights
    if paths is None and not args.results:
        paths = choose_weights()
    models = load_models(paths or (), args.precision)
    return models, load_features(args.vgg_weights, models)


def load_models(paths, precision="float32"):
    """Loads generators as {label: `Model`}; a label is a path as it was typed."""
    models = {}
    for path in paths:
        label = str(path).removesuffix(".weights.h5").strip("/")
        if label in (*models, *RESERVED_LABELS):
            label = str(path)
        models[label] = load_model(path, precision)
    return models


def load_model(path, precision):
    """Loads a generator as a `Model`, with what a checkpoint or its name tells."""
    from support import checkpoints, weight_files

    generator, file = weight_files.load_generator(path, precision)
    if file in weight_files.list_shipped().values():
        name = file.name.removesuffix(".weights.h5").rpartition("-")[2]
        return Model(generator, file, choose_degradation(name))
    has_state = (file.parent / checkpoints.STATE_FILE).is_file()
    if file.name != checkpoints.GENERATOR_FILE or not has_state:
        return Model(generator, file)
    options = checkpoints.read_state(file.parent).get("options", {})
    degradation = None
    if "blur" in options:  # older checkpoints do not name a degradation
        name = options.get("degradation", "bicubic")
        degradation = Degradation(name, options["blur"])
    return Model(
        generator=generator,
        path=file,
        degradation=degradation,
        content_loss=options.get("content_loss"),
        discriminator=load_discriminator(file.parent, generator),
    )


def load_discriminator(folder, generator):
    """Loads a checkpoint's discriminator; returns `None` if it cannot judge images."""
    from support import weight_files

    file = folder / "discriminator.weights.h5"
    # The paper's only takes crops.
    if not file.is_file() or generator.network.name == "paper":
        return None
    try:
        return weight_files.load_discriminator(file, generator)
    except ValueError as error:
        command_line.warn(f"Leaving out perceptual: {error}")
        return None


def load_features(path, models):
    """Builds the VGG19 features of the scores, as {key of `CONTENT_LOSSES`: model}.

    These are VGG54's, and those that the weights were trained with. Nothing is
    downloaded: without a weights file, there are none.
    """
    import losses
    import networks

    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    file = Path(path or Path(home, "models", networks.VGG_WEIGHTS_FILE))
    content_losses = {model.content_loss for model in models.values()}
    keys = {"vgg54"} | content_losses.intersection(losses.CONTENT_LOSSES)
    try:
        if not path and not file.is_file():
            return {}
        return {key: losses.build_content_features(key, str(file)) for key in keys}
    except (OSError, ValueError) as error:
        if path:
            raise
        reason = str(error).rstrip(".")
        command_line.warn(
            f"Leaving out VGG54 and perceptual: {reason}. Delete the file, or pass "
            "--vgg-weights."
        )
        return {}


def choose_test_degradation(args, models):
    """Returns how LR images are made, and warns of models trained with others."""
    known = {}
    for label, model in models.items():
        if model.degradation is not None:
            known[label] = model.degradation
    if args.degradation or args.blur is not None:
        chosen = choose_degradation(args.degradation or "bicubic", args.blur)
    else:
        chosen = next(iter(known.values()), choose_degradation("bicubic"))
    for label, trained in known.items():
        # By their text, in which source and bicubic of the same blur are the same.
        if str(trained) != str(chosen) and not args.lr:
            print(f"{label} was trained with {trained}, not {chosen}.")
    return chosen


def measure_models(models, image, features, tile):
    """Enlarges a `TestImage` by each model; returns {label: `Version`}."""
    versions = {}
    if not models:
        return versions
    from support.tiling import enlarge

    for label, model in models.items():
        sr = enlarge(model.generator, image.lr, tile)
        scores = score(sr, image, features)
        perceptual = perceptual_loss(model, sr, image.hr, features)
        if perceptual is not None:
            scores["perceptual"] = perceptual
        versions[label] = Version(metrics.show(sr, image.is_gray), scores)
    return versions


def measure_filters(image, features):
    """Enlarges a `TestImage` by each filter; returns {label: `Version`}."""
    versions = {}
    for label, sr in metrics.enlarge_by_filters(image).items():
        scores = score(sr, image, features)
        versions[label] = Version(metrics.show(sr, image.is_gray), scores)
    return versions


def measure_results(results, image, features):
    """Measures other methods' {label: `Result`}; returns {label: `Version`}."""
    versions = {}
    for label, result in results.items():
        sr = result.sr[result.rows, result.columns]
        hr = image.hr[result.rows, result.columns]
        if hr.shape != image.hr.shape:
            print(
                f"{label}, {image.name}: measured on {hr.shape[1]}x{hr.shape[0]} px, "
                f"from row {result.rows.start} and column {result.columns.start}."
            )
        scores = score(sr, image._replace(hr=hr), features)
        versions[label] = Version(metrics.show(result.sr, image.is_gray), scores)
    return versions


def read_results(files, name, hr, problems):
    """Reads the results of one image as {label: `Result`}; adds to `problems`."""
    results = {}
    for label, paths in files.items():
        path = paths.get(name)
        if path is None:
            continue
        try:
            results[label] = test_images.read_result(path, hr)
        except image_files.UnreadableImageError as error:
            problems.append(f"{path}: {error.reason}")
    return results


def score(sr, image, features):
    """Returns all scores that do not need a discriminator."""
    scores = metrics.score(sr, image)
    if features:
        scores["vgg54"] = metrics.feature_distance(features["vgg54"], sr, image.hr)
    return scores


def perceptual_loss(model, sr, hr, features):
    """Returns VGG19's and the adversarial term of the loss that the weights were
    trained with, or `None` if it is unknown.
    """
    from losses import CONTENT_LOSSES

    content_features = features.get(model.content_loss)
    if content_features is None or model.discriminator is None:
        return None
    return metrics.perceptual_loss(
        content_features,
        model.discriminator,
        sr,
        hr,
        CONTENT_LOSSES[model.content_loss],
    )


def save_enlarged(image, versions, models, output):
    """Saves the images that the models have enlarged."""
    for label in models:
        folder = Path(output, "enlarged", label.replace("/", "-"))
        image_files.save_image(versions[label].image, folder / f"{image.name}.png")


def save_sheet(image, versions, output):
    """Saves a comparison sheet of one image."""
    shown = {}
    captions = {}
    for label in ("nearest", "bicubic", *_methods(versions)):
        shown[label] = _to_rgb(versions[label].image)
        scores = versions[label].scores
        captions[label] = f"{scores['psnr_y']:.2f} dB / {scores['ssim_y']:.4f}"
    shown["original"] = pixels.to_uint8(image.hr)
    first = next(iter(_methods(versions)), "original")
    figures.save_comparison_sheet(
        shown,
        Path(output, "sheets", f"{image.name}.png"),
        captions,
        detail=figures.find_detail(shown[first], shown["bicubic"]),
        title=f"{image.name}, x{pixels.SCALE}: PSNR / SSIM (Y)",
    )


def _methods(versions):
    return [label for label in versions if label not in metrics.FILTERS]


def _to_rgb(image):
    return np.asarray(Image.fromarray(image).convert("RGB"))


class Report:
    """Collects the scores of all images, and what the grid shows of them."""

    def __init__(self):
        self.scores = {}  # {image: {label: {key: score}}}
        self.captions = {}  # {image: its name, and whether it is gray}
        self.columns = []  # of the grid
        self.original_thumbnails = {}  # {image: thumbnail}
        self.result_thumbnails = {}  # {label: {image: thumbnail}}

    def add(self, image, versions, results):
        """Adds a `TestImage`, its {label: `Version`} and its {label: `Result`}."""
        name = image.name
        self.scores[name] = {label: v.scores for label, v in versions.items()}
        self.captions[name] = f"{name} (gray)" if image.is_gray else name
        if len(self.columns) < GRID_COLUMNS:
            self.columns.append(_make_column(image, versions))
        self.original_thumbnails[name] = test_images.thumbnail(image.hr)
        for label, result in results.items():
            thumbnails = self.result_thumbnails.setdefault(label, {})
            thumbnails[name] = test_images.thumbnail(result.sr)

    def warn_of_lookalikes(self):
        """Warns of results that were probably paired with a wrong original."""
        for label, thumbnails in self.result_thumbnails.items():
            lookalikes = test_images.find_lookalikes(
                thumbnails, self.original_thumbnails
            )
            for name, other in lookalikes.items():
                command_line.warn(
                    f"{label}: the image paired with {name} resembles {other} more. "
                    "Check the file names."
                )

    def average(self):
        """Returns {label: mean scores}, and prints which of them leave images out."""
        tables = self.scores.values()
        means = {}
        for label in dict.fromkeys(label for table in tables for label in table):
            rows = [table[label] for table in tables if label in table]
            means[label] = metrics.mean_scores(rows)
            headings_by_count = _count_finite(rows)
            for count, headings in headings_by_count.items():
                if count < len(tables):
                    is_all = len(headings_by_count) == 1
                    which = "all scores" if is_all else ", ".join(headings)
                    print(f"{label}: mean of {count} of {len(tables)} images ({which})")
        return means

    def save_grid(self, path):
        """Saves the first images as columns of a grid."""
        captions = list(self.captions.values())[: len(self.columns)]
        figures.save_grid(self.columns, path, captions=captions)

    def format_table(self, means):
        """Formats the scores of all images, and their means, as lines of text."""
        tables = {self.captions[name]: table for name, table in self.scores.items()}
        tables[f"mean of {len(tables)}"] = means
        return metrics.format_table(tables)


def _count_finite(rows):
    """Returns {number of images: headings of the scores that so many have}."""
    headings = {}
    for key, (heading, _) in metrics.SCORES.items():
        if any(key in row for row in rows):
            count = sum(np.isfinite(row.get(key, np.nan)) for row in rows)
            headings.setdefault(count, []).append(heading)
    return headings


def _make_column(image, versions):
    """Returns the grid's column of one image, {label: uint8 RGB image}."""
    column = {label: _to_rgb(versions[label].image) for label in _methods(versions)}
    column["low-resolution"] = pixels.to_uint8(image.lr)
    column["bicubic"] = _to_rgb(versions["bicubic"].image)
    column["original"] = pixels.to_uint8(image.hr)
    return column


def write_json(path, facts):
    """Writes standard JSON, which has no NaN or Infinity: they become null."""
    text = json.dumps(facts)
    contents = json.loads(text, parse_constant=lambda constant: None)
    image_files.write_text(path, json.dumps(contents, indent=1))


def parse_args(argv=None):
    """Reads the command line."""
    parser = command_line.ArgumentParser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument_group("what is measured").add_argument
    add(
        "--weights",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="checkpoint folders, weight files or names of shipped weights (default: "
        "weights/training_checkpoints, else the shipped ones)",
    )
    add(
        "--results",
        nargs="+",
        action="extend",
        metavar="NAME=FOLDER",
        type=command_line.named_folder,
        help="other methods' x4 images, paired by name with --hr",
    )
    add(
        "--hr",
        metavar="FOLDER",
        help="original images (default: datasets/img_test, else the demo's)",
    )
    add(
        "--lr",
        metavar="FOLDER",
        help="low-resolution images (default: made from the originals)",
    )
    add(
        "--degradation",
        choices=tuple(DEFAULT_BLURS),
        help="how LR images are made (default: as in the weights' training)",
    )
    add(
        "--blur",
        type=command_line.non_negative_float,
        metavar="PX",
        help="Gaussian blur radius for LR images that are made, in HR px (default: the "
        "degradation's)",
    )
    add(
        "--vgg-weights",
        metavar="PATH",
        help="VGG19 weights file, for the perceptual scores (default: the one in "
        "Keras's cache)",
    )
    add = parser.add_argument_group("how, and what is written").add_argument
    add(
        "--tile",
        type=command_line.positive_int,
        metavar="PX",
        help="side of the tiles in LR px (default: by the image's size)",
    )
    add(
        "--precision",
        choices=command_line.PRECISIONS,
        default="float32",
        help="compute dtype",
    )
    add(
        "--output",
        type=Path,
        default=Path("images/evaluation"),
        metavar="FOLDER",
        help="folder for enlarged images, sheets and grid",
    )
    add("--json", type=Path, metavar="FILE", help="file for the scores as JSON")
    args = parser.parse_args(argv)
    if args.lr and (args.degradation or args.blur is not None):
        parser.error(
            "--degradation and --blur are for LR images that are made, but --lr has "
            "some. Omit one."
        )
    return args


def main(argv=None):
    """Evaluates as the command line says, and returns the exit code."""
    args = parse_args(argv)
    with command_line.usage_errors():
        command_line.check_writable(args.output / "grid.png", "output")
        if args.json:
            command_line.check_writable(args.json, "json")
        check_weights(args.weights)
        args.hr = args.hr or choose_hr_folder()
        pairs, files, problems = find_files(args)
        models, features = load_networks(args)
        degradation = choose_test_degradation(args, models)
    for label, model in models.items():
        print(f"Weights {label}: {model.path}")
    origin = f"from {args.lr}" if args.lr else f"made from {args.hr} with {degradation}"
    protocol = f"{metrics.PROTOCOL} LR images {origin}."
    print(protocol, flush=True)

    report = Report()
    progress = command_line.progress_bar(len(pairs), "image") if models else None
    for number, pair in enumerate(pairs, start=1):
        try:
            image = test_images.load_pair(pair, degradation)
        except image_files.UnreadableImageError as error:
            problems.append(str(error).removeprefix("Cannot read ").rstrip("."))
            continue
        results = read_results(files, pair.name, image.hr, problems)
        versions = measure_results(results, image, features)
        versions |= measure_models(models, image, features, args.tile)
        versions |= measure_filters(image, features)
        save_enlarged(image, versions, models, args.output)
        save_sheet(image, versions, args.output)
        report.add(image, versions, results)
        if progress:
            progress.update(number)

    for problem in problems:
        command_line.warn(f"skipped {problem}.")
    if not report.scores:
        command_line.fail(f"No image in {args.hr} can be measured.")
    report.warn_of_lookalikes()
    means = report.average()
    print(report.format_table(means))
    report.save_grid(args.output / "grid.png")
    print(f"\nEnlarged  {args.output / 'enlarged'}\nSheets    {args.output / 'sheets'}")
    print(f"Grid      {args.output / 'grid.png'}")
    if args.json:
        facts = {
            "protocol": protocol,
            "weights": {label: str(model.path) for label, model in models.items()},
            "skipped": problems,
            "images": report.scores,
            "mean": means,
        }
        write_json(args.json, facts)
        print(f"Table     {args.json}")
    return command_line.EXIT_FAILED if problems else 0


if __name__ == "__main__":
    command_line.run(main)
