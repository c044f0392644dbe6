"""Measures generators on test images as the literature does, and shows the results.

    python evaluate.py                                    # your weights, or ours
    python evaluate.py --weights weights/training_checkpoints --hr Set5/HR --lr Set5/LR
    python evaluate.py --weights srresnet-bicubic mine.weights.h5 --json scores.json

Bicubic and nearest-neighbour enlargement are measured beside them.
"""

import json
import re
from collections import namedtuple
from pathlib import Path

import command_line

with command_line.quiet_imports(__name__):
    import numpy as np
    from PIL import Image

    import checkpoints
    import figures
    import metrics
    import networks
    import pictures
    import sample_data
    from data_loader import SOURCE_BLUR, TEST_FOLDER, check_side, make_test_image
    from tiling import enlarge

RESULT_NAME = re.compile(r"([-_ ]?x4)?([-_ ]\w+)?", re.IGNORECASE)  # after its own
GRID_COLUMNS = 6  # images on the grid; each has a sheet of its own
Pair = namedtuple("Pair", "name hr lr")  # paths; `lr` is `None` if it is made from `hr`
# `path` is the file that was read. `discriminator`, the one saved beside it, and
# `blur`, the radius of its training in HR px, are `None` if unknown.
Model = namedtuple("Model", "generator path discriminator blur")


def find_pairs(hr_folder, lr_folder=None, exclude=()):
    """Pairs test images by name, and returns a list of `Pair` and one of problems."""
    paths, skipped = pictures.find_images(hr_folder, exclude)
    problems = [f"{path}: {reason}" for path, reason in skipped.items()]
    originals = {}
    for path in paths:
        name = path.relative_to(hr_folder).with_suffix("").as_posix()
        if originals.setdefault(name, path) is not path:
            problems.append(f"{path}: {originals[name]} has the same name")
    if not originals:
        raise ValueError(f"No image in {hr_folder}. Pass another --hr.")
    if lr_folder is None:
        return [Pair(name, hr, None) for name, hr in originals.items()], problems
    inputs = match_names(originals, lr_folder, problems)
    if not inputs:
        raise ValueError(
            f"No image in {lr_folder} has the name of one in {hr_folder}. Pass another "
            "--lr, or none to have LR images made."
        )
    return [Pair(name, originals[name], lr) for name, lr in inputs.items()], problems


def match_names(originals, folder, problems):
    """Returns {name of an original: its file in `folder`}; adds to `problems`.

    A file's name may go on after the original's, as DIV2K's `0801x4.png` does.
    """
    paths, skipped = pictures.find_images(folder)
    problems += [f"{path}: {reason}" for path, reason in skipped.items()]
    matches = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        names = [
            name
            for name in originals
            if stem.startswith(name) and RESULT_NAME.fullmatch(stem, len(name))
        ]
        name = max(names, key=len, default=None)
        if name is None or name in matches:
            problems.append(f"{path}: there is no original of that name")
        else:
            matches[name] = path
    for name in originals:
        if name not in matches:
            problems.append(f"{originals[name]}: no image of that name in {folder}")
    return {name: matches[name] for name in originals if name in matches}


def load_pair(pair, blur):
    """Reads or makes a `TestImage`; raises an `OSError` if a file does not serve."""
    picture = pictures.read_picture(pair.hr)
    hr = pictures.flatten(picture)
    check_side(pair.hr, hr.size, pictures.SCALE)
    lr = None if pair.lr is None else pictures.read_rgb(pair.lr)
    quarter = tuple(side // pictures.SCALE for side in hr.size)
    if lr is not None and lr.size != quarter:
        raise pictures.UnreadableImageError(
            pair.lr,
            f"it has {lr.width}x{lr.height} px, which is not a quarter of {pair.hr}, "
            f"{hr.width}x{hr.height} px",
        )
    image = make_test_image(pair.name, hr, blur, lr)
    return image._replace(is_grey=picture.image.mode != "RGB")


def load_models(paths, precision="float32"):
    """Loads generators as {label: `Model`}; a label is a path as it was typed."""
    models = {}
    for path in paths:
        generator, file = checkpoints.load_generator(path, precision)
        blur = discriminator = None
        has_state = (file.parent / checkpoints.STATE_FILE).is_file()
        if file.name == checkpoints.GENERATOR_FILE and has_state:
            blur = checkpoints.read_state(file.parent).get("options", {}).get("blur")
            file_beside = file.parent / "discriminator.weights.h5"
            if file_beside.is_file():
                num_filters = generator.network["num_filters"]
                discriminator = networks.build_discriminator(num_filters)
                checkpoints.load_weights(discriminator, file_beside)
        elif file in checkpoints.list_shipped().values():
            blur = SOURCE_BLUR if "source" in file.name else 0.0
        label = str(path).removesuffix(".weights.h5").strip("/")
        if label in (*models, *metrics.FILTERS, "low-resolution", "original"):
            label = str(path)
        models[label] = Model(generator, file, discriminator, blur)
    return models


def load_vgg(path):
    """Builds the features of the scores, or returns `None` without a weights file."""
    file = Path(path or networks.cached_vgg_weights())
    if not path and not file.is_file():  # nothing is downloaded
        return None
    keys = "source", "vgg54"
    return {key: networks.build_content_features(key, str(file)) for key in keys}


def enlarge_and_score(models, image, vgg, tile):
    """Returns {label: uint8 image} and {label: scores} of all models and filters."""
    results = {}
    for label, model in models.items():
        results[label] = enlarge(model.generator, image.lr, tile)
    shown, scores = {}, {}
    for label, sr in (results | metrics.enlarge_by_filters(image)).items():
        shown[label] = metrics.show(sr, image.is_grey)
        row = scores[label] = metrics.score(sr, image)
        if vgg is not None:
            row["vgg54"] = networks.feature_distance(vgg["vgg54"], sr, image.hr)
        if vgg is not None and label in models and models[label].discriminator:
            judges = vgg["source"], models[label].discriminator
            row["perceptual"] = networks.perceptual_loss(*judges, sr, image.hr)
    return shown, scores


def save_pictures(image, shown, scores, output):
    """Saves the models' images and a comparison sheet; returns the grid's column."""
    models = [label for label in shown if label not in metrics.FILTERS]
    for label in models:
        folder = Path(output, "enlarged", label.replace("/", "-"))
        pictures.save_image(shown[label], folder / f"{image.name}.png")
    panels, captions = {}, {}
    for label in ("nearest", "bicubic", *models):
        panels[label] = np.asarray(Image.fromarray(shown[label]).convert("RGB"))
        row = scores[label]
        captions[label] = f"{row['psnr_y']:.2f} dB / {row['ssim_y']:.4f}"
    panels["original"] = pictures.to_uint8(image.hr)
    detail = figures.find_detail(panels[models[0]], panels["bicubic"])
    path = Path(output, "sheets", f"{image.name}.png")
    title = f"{image.name}, x{pictures.SCALE}: PSNR / SSIM (Y)"
    figures.save_comparison_sheet(panels, path, captions, detail, title)
    panels["low-resolution"] = pictures.to_uint8(image.lr)
    rows = *models, "low-resolution", "bicubic", "original"
    return {label: panels[label] for label in rows}


def average(scores):
    """Averages {image: {label: scores}}, and prints which means leave images out."""
    means = {}
    for label in next(iter(scores.values())):
        rows = [table[label] for table in scores.values()]
        means[label] = metrics.mean_scores(rows)
        for key, (heading, _) in metrics.SCORES.items():
            values = [row[key] for row in rows if key in row]
            num_finite = int(np.isfinite(values).sum())
            if num_finite < len(values):
                print(f"{label}: mean {heading} of {num_finite} of {len(rows)} images")
    return means


def parse_args(argv=None):
    """Reads the command line."""
    parser = command_line.ArgumentParser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument_group("what is measured").add_argument
    add("--weights", nargs="+", action="extend", metavar="PATH",
        help="checkpoint folders, weight files or names of shipped weights (default: "
        "weights/training_checkpoints, else the shipped ones)")  # fmt: skip
    add("--hr", metavar="FOLDER", help="original images (default: datasets/img_test, "
        "else the demo's test images)")  # fmt: skip
    add("--lr", metavar="FOLDER",
        help="low-resolution images (default: made from the originals)")  # fmt: skip
    add("--blur", type=command_line.non_negative_float, metavar="PX",
        help="Gaussian blur radius for LR images that are made, in HR px (default: the "
        "one of the weights' training)")  # fmt: skip
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
    return parser.parse_args(argv)


def main(argv=None):
    """Evaluates as the command line says, and returns the exit code."""
    args = parse_args(argv)
    with command_line.usage_errors():
        command_line.check_writable(args.output / "grid.png", "output")
        if args.json:
            command_line.check_writable(args.json, "json")
        if args.hr is None and Path(TEST_FOLDER).is_dir():
            args.hr = TEST_FOLDER
        elif args.hr is None:
            print(f"There is no folder {TEST_FOLDER}: measuring on the demo's images.")
            args.hr = sample_data.write_sample_dataset()
        pairs, problems = find_pairs(args.hr, args.lr, [args.output])
        models = load_models(args.weights or _default_weights(), args.precision)
        vgg = load_vgg(args.vgg_weights)
    for label, model in models.items():
        print(f"Weights {label}: {model.path}")
    blur = _choose_blur(args, models)
    origin = f"from {args.lr}" if args.lr else f"made from {args.hr} with blur {blur:g}"
    protocol = f"{metrics.PROTOCOL} LR images {origin}."
    print(protocol, flush=True)

    scores, columns = {}, {}
    bar = command_line.progress_bar(len(pairs), "image")
    for number, pair in enumerate(pairs, start=1):
        try:
            image = load_pair(pair, blur)
        except pictures.UnreadableImageError as error:
            problems.append(str(error).removeprefix("Cannot read ").rstrip("."))
            continue
        shown, table = enlarge_and_score(models, image, vgg, args.tile)
        column = save_pictures(image, shown, table, args.output)
        name = f"{pair.name} (grey)" if image.is_grey else pair.name
        scores[name] = table
        if len(columns) < GRID_COLUMNS:
            columns[name] = column
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
        pictures.write_text(args.json, json.dumps(contents, indent=1))
        print(f"Table     {args.json}")
    return command_line.EXIT_FAILED if problems else 0


def _default_weights():
    try:
        return [checkpoints.find_weights(checkpoints.DEFAULT_FOLDER)]
    except FileNotFoundError:
        return list(checkpoints.list_shipped())


def _choose_blur(args, models):
    """Returns the blur for LR images, and warns of models trained with another one."""
    known = {label: m.blur for label, m in models.items() if m.blur is not None}
    blur = next(iter(known.values()), 0.0) if args.blur is None else args.blur
    for label, trained in known.items():
        if trained != blur and not args.lr:
            print(f"{label} was trained with blur {trained:g}, not {blur:g}.")
    return blur


if __name__ == "__main__":
    command_line.run(main)
