"""The paper's rating study: a page on which people score images, and its statistics.

    python rate.py make --hr Set5/HR --results SRGAN=out/srgan SRResNet=out/srresnet
    python rate.py score study-key.json ratings-*.json

`make` writes a folder, `study`, that works from a disk or a web server: send it to the
raters, who send back `ratings-<name>.json`. `study-key.json`, which tells what each
image is, stays with you. `score` computes mean opinion scores (MOS; paper, Sec. 3.3).
"""

import json
import os
import re
import secrets
from pathlib import Path
from typing import NamedTuple

from support import command_line

with command_line.quiet_imports(__name__):
    import numpy as np
    from PIL import Image

    from support import degradation, image_files, pixels, test_images
    from support.rating_statistics import (
        SIGNIFICANCE,
        compare_methods,
        count_scores,
        group_scores,
        mean_opinion,
        save_distribution,
        smallest_p,
    )

PAGE = Path(__file__).with_name("rate.html")
PLACEHOLDER = "/* STUDY */ null"  # in the page
IMAGE_NAME = re.compile(r"[0-9a-f]{12}\.png")
SCORES = (1, 2, 3, 4, 5)  # bad to excellent; paper, Sec. 3.3
ORIGINAL, NEAREST = "original", "nearest"
CALIBRATION, RATING = "calibration", "rating"  # the parts of a study
EXAMPLES = {NEAREST: 1, ORIGINAL: 5}  # scores that calibration images stand for
NUM_EXAMPLES = 3  # images shown in both versions before the rating. Paper: 20
ENOUGH_IMAGES = 12  # from here on, examples are images that are not rated
REPEATED_SHARE = 0.1  # of the items, shown twice to measure consistency
LOWEST_ORIGINAL, HIGHEST_NEAREST = 4, 2  # mean scores of a calibrated rater


class Rater(NamedTuple):
    """What one file of ratings holds."""

    name: str
    identity: str  # drawn by the page; the name in files of earlier studies
    ratings: list  # (item, score) in the order of rating


def make_study(hr_folder, results, index):
    """Writes the page `index` and its images; returns its key and a list of problems.

    `results` is a dict of method to the folder of its images.
    """
    folder = index.parent
    # None of these folders belongs to another one that it lies in.
    exclude = [folder, hr_folder, *results.values()]
    versions, problems = _read_versions(hr_folder, results, exclude)
    _remove_images(folder)
    items = {}
    examples = _choose_examples(list(versions))
    for name in examples:
        original = versions[name][ORIGINAL]
        images = {NEAREST: _pixelate(original), ORIGINAL: original}
        items |= _save_versions(folder, name, images, CALIBRATION)
    is_enough = len(versions) >= ENOUGH_IMAGES
    for name, images in versions.items():
        if not (is_enough and name in examples):
            items |= _save_versions(folder, name, images, RATING)
    key = {"study": secrets.token_hex(8), "items": items}
    _save_page(index, key)
    return key, problems


def _save_versions(folder, name, images, part):
    """Saves {method: image} under random names; returns their entries in the key."""
    dataset = Path(name).parts[0] if "/" in name else None
    methods = {f"{secrets.token_hex(6)}.png": method for method in images}
    items = {}
    for file in sorted(methods):  # so that the time of writing tells nothing, either
        method = methods[file]
        image_files.save_image(images[method], folder / file)
        items[file] = {"image": name, "method": method, "set": dataset, "part": part}
    return items


def _save_page(index, key):
    """Writes the page with what it must know; nothing in it tells the methods."""
    calibration, rated, scenes = [], [], {}
    numbers = {}  # of images
    for file, entry in key["items"].items():
        scenes[file] = numbers.setdefault(entry["image"], len(numbers))
        if entry["part"] == RATING:
            rated.append(file)
        else:
            calibration.append({"item": file, "score": EXAMPLES[entry["method"]]})
    calibration.sort(key=lambda example: (scenes[example["item"]], example["score"]))
    facts = {
        "id": key["study"],
        "calibration": calibration,
        "items": sorted(rated),
        "num_repeats": round(REPEATED_SHARE * len(rated)),
        "scenes": dict(sorted(scenes.items())),
    }
    page = PAGE.read_text(encoding="utf-8")
    image_files.write_text(index, page.replace(PLACEHOLDER, json.dumps(facts)))


def _remove_images(folder):
    """Removes the images of a study that is replaced."""
    for path in folder.iterdir():
        if IMAGE_NAME.fullmatch(path.name):
            path.unlink()


def _choose_examples(names):
    """Returns the names of `NUM_EXAMPLES` images, spread over the list."""
    count = min(NUM_EXAMPLES, len(names))
    places = np.linspace(0, len(names) - 1, count)
    return [names[round(place)] for place in places]


def _pixelate(original):
    """Returns an image reduced and enlarged by repeating pixels."""
    lr = np.asarray(degradation.degrade(Image.fromarray(original), blur=0))
    return pixels.enlarge_by_filter(lr, Image.Resampling.NEAREST)


def _read_versions(hr_folder, results, exclude):
    """Reads {image: {method: uint8 array}}, and lists problems."""
    originals, problems = test_images.find_originals(hr_folder, exclude)
    found = {
        method: test_images.match_names(originals, folder, problems, exclude)
        for method, folder in results.items()
    }
    versions = {}
    for name, original in originals.items():
        files = {method: paths.get(name) for method, paths in found.items()}
        if None in files.values():
            continue  # named by `match_names`
        try:
            versions[name] = _read_scene(original, files)
        except image_files.UnreadableImageError as error:
            problems.append(f"{name}: {str(error).rstrip('.')}")
    if not versions:
        raise ValueError(f"No image in {hr_folder} has a result of every method.")
    return versions, problems


def _read_scene(original, files):
    """Reads all versions of an image, cut to the part that every method has."""
    hr = pixels.to_float(image_files.read_rgb(original))
    height = hr.shape[0] // pixels.SCALE * pixels.SCALE
    width = hr.shape[1] // pixels.SCALE * pixels.SCALE
    images = {ORIGINAL: hr[:height, :width]}
    top, bottom, left, right = 0, height, 0, width
    for method, file in files.items():
        result = test_images.read_result(file, images[ORIGINAL])
        images[method] = result.sr
        top = max(top, result.rows.start)
        bottom = min(bottom, result.rows.stop)
        left = max(left, result.columns.start)
        right = min(right, result.columns.stop)
    size = (right - left, bottom - top)
    test_images.check_side(original, size, pixels.SCALE)
    return {
        method: pixels.to_uint8(image[top:bottom, left:right])
        for method, image in images.items()
    }


def read_key(path):
    """Reads the key of a study, or raises `ValueError`."""
    try:
        key = _read_json(path)
        str(key["study"])
        parts = [_check_entry(entry)["part"] for entry in key["items"].values()]
    except KeyError as error:
        reason = f"it has no {error}"
        raise ValueError(f"{path} is not the key of a study: {reason}.") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the key of a study.") from error
    if RATING not in parts:
        raise ValueError(f"{path} is the key of a study without images to rate.")
    return key


def _check_entry(entry):
    """Returns an item's entry in the key; raises an error if it is incomplete."""
    is_text = isinstance(entry["image"], str) and isinstance(entry["method"], str)
    is_known = entry["part"] in (CALIBRATION, RATING)
    if not (is_text and is_known and isinstance(entry["set"], str | None)):
        raise ValueError(f"{entry} is not an item of a study.")
    return entry


def read_ratings(path, key):
    """Reads a file as a `Rater`, or raises `ValueError` with the reason."""
    try:
        data = _read_json(path)
        name = " ".join(str(data["rater"]).split())
        study = data["study"]
        ratings = [(row["item"], row["score"]) for row in data["ratings"]]
        rated = {item for item, _ in ratings}
        identity = str(data.get("rater_id") or name)
    except OSError as error:
        raise ValueError(error.strerror) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("it cannot be read as a file of ratings") from error
    if study != key["study"] or not rated <= key["items"].keys():
        raise ValueError("it belongs to another study")
    if any(score not in SCORES for _, score in ratings):
        raise ValueError("it holds a score that is not 1, 2, 3, 4 or 5")
    wanted = {item for item, entry in key["items"].items() if entry["part"] == RATING}
    missing = wanted - rated
    if missing:
        raise ValueError(f"it lacks {len(missing)} of {len(wanted)} images")
    return Rater(name, identity, ratings)


def _read_json(path):
    """Reads JSON in UTF-8 or UTF-16, with or without the mark that Notepad writes."""
    try:
        return json.loads(Path(path).read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply.") from error


def load_raters(paths, key):
    """Reads the files of ratings: returns {name: `Rater`} and the paths left out."""
    raters, left_out = {}, []
    for path in paths:
        try:
            rater = read_ratings(path, key)
            if rater.identity in [other.identity for other in raters.values()]:
                raise ValueError(f"there is another file of the rater {rater.name}")
        except ValueError as error:
            command_line.warn(f"left out {path}: {error}.")
            left_out.append(path)
            continue
        raters[_unused_name(rater.name, raters)] = rater
    return raters, left_out


def _unused_name(name, taken):
    """Returns a name, numbered if another rater has the same."""
    number, unused = 1, name
    while unused in taken:
        number += 1
        unused = f"{name} ({number})"
    return unused


def collect_scores(rater, items, part):
    """Returns {item: list of scores} that a rater gave in one part of the study."""
    scores = {}
    for item, score in rater.ratings:
        if items[item]["part"] == part:
            scores.setdefault(item, []).append(score)
    return scores


def is_calibrated(rater, items):
    """Tells whether a rater scored the examples about as they were told to."""
    scores = {NEAREST: [], ORIGINAL: []}
    for item, given in collect_scores(rater, items, CALIBRATION).items():
        scores.setdefault(items[item]["method"], []).extend(given)
    if not scores[NEAREST] or not scores[ORIGINAL]:
        return False
    is_low = np.mean(scores[NEAREST]) <= HIGHEST_NEAREST
    is_high = np.mean(scores[ORIGINAL]) >= LOWEST_ORIGINAL
    return bool(is_low and is_high)


def describe_rater(rater, items):
    """Returns how many images a rater scored, and how consistently."""
    rated = collect_scores(rater, items, RATING)
    repeats = [scores for scores in rated.values() if len(scores) > 1]
    note = f"{len(rated)} images, {len(repeats)} of them twice"
    if repeats:
        differences = [max(scores) - min(scores) for scores in repeats]
        note += f", differing by {np.mean(differences):.2f} on average"
    if not collect_scores(rater, items, CALIBRATION):
        note += "; not calibrated, as the examples have no scores"
    elif not is_calibrated(rater, items):
        note += "; not calibrated"
    return note


def print_scores(mos, by_set):
    """Prints the MOS of each method, in all and by data set."""
    width = max([24, *map(len, mos), *map(len, by_set)])
    for dataset, table in ({"all": mos} | by_set).items():
        print(f"\n{dataset:{width}} {'MOS':>6}  95 % interval  ratings")
        for method, row in table.items():
            interval = "-"
            if row["low"] is not None:
                interval = f"{row['low']:.2f} - {row['high']:.2f}"
            mean, count = row["mean"], row["count"]
            print(f"{method:{width}} {mean:6.2f}  {interval:>13}  {count:7}")


def print_tests(comparisons, num_raters):
    """Prints the tests of each pair of methods, and what they are."""
    if not comparisons:
        return
    print("\nWilcoxon signed-rank tests, two-sided:")
    pairs = [f"{row.first} - {row.second}" for row in comparisons]
    width = max(map(len, pairs))
    for pair, row in zip(pairs, comparisons, strict=True):
        print(f"{pair:>{width}}: p = {row.p:<9.3g} pooled p = {row.p_pooled:.3g}")
    print(
        "p: over the raters' mean scores, corrected for the number of pairs (Holm).\n"
        "pooled p: the paper's test, over all ratings as if they were independent,\n"
        "not corrected. It is often far too small."
    )
    limit = smallest_p(num_raters, len(pairs))
    if limit >= SIGNIFICANCE:
        print(f"There are too few raters: p cannot be smaller than {limit:.2g}.")


def parse_args(argv=None):
    """Reads the command line."""
    parser = command_line.ArgumentParser(prog="rate.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="write a study")
    make.add_argument(
        "--hr",
        required=True,
        metavar="FOLDER",
        help="original images; subfolders are data sets",
    )
    make.add_argument(
        "--results",
        required=True,
        nargs="+",
        action="extend",
        metavar="NAME=FOLDER",
        type=command_line.named_folder,
        help="images of each method",
    )
    make.add_argument(
        "--output",
        type=Path,
        default=Path("study"),
        metavar="FOLDER",
        help="empty or new folder for the study",
    )
    make.add_argument("--overwrite", action="store_true", help="replace a study")
    score = commands.add_parser("score", help="compute mean opinion scores")
    score.add_argument(
        "key", type=Path, metavar="study-key.json", help="the study's key"
    )
    score.add_argument(
        "ratings", nargs="+", metavar="ratings-NAME.json", help="raters' files"
    )
    score.add_argument(
        "--exclude-uncalibrated",
        action="store_true",
        help="leave out raters whose scores of the examples are off or missing",
    )
    score.add_argument(
        "--figure",
        type=Path,
        default=Path("study-scores.png"),
        metavar="FILE",
        help="file for the distribution of scores",
    )
    score.add_argument(
        "--json", type=Path, metavar="FILE", help="file for the scores as JSON"
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Makes or scores a study as the command line says, and returns the exit code."""
    args = parse_args(argv)
    return _make(args) if args.command == "make" else _score(args)


def _make(args):
    index = args.output / "index.html"
    key_path = _key_path(args.output)
    with command_line.usage_errors():
        results = command_line.check_labels(args.results, [ORIGINAL])
        if len(results) < 2:
            raise ValueError("There are fewer than two methods. Pass more --results.")
        _check_output(args.output, key_path, args.overwrite)
        command_line.check_writable(index)
        command_line.check_writable(key_path)
        key, problems = make_study(args.hr, results, index)
    image_files.write_text(key_path, json.dumps(key, indent=1))
    for problem in problems:
        command_line.warn(f"left out {problem}.")
    print(_describe_study(key["items"].values()))
    print(f"Send this folder to the raters: {args.output}")
    print(f"Keep this file to yourself:     {key_path}")
    return command_line.EXIT_FAILED if problems else 0


def _describe_study(entries):
    rated = {entry["image"] for entry in entries if entry["part"] == RATING}
    examples = {entry["image"] for entry in entries if entry["part"] == CALIBRATION}
    kind = "of them" if examples & rated else "others"
    return f"Images to rate: {len(rated)}. Examples: {len(examples)} {kind}."


def _key_path(folder):
    """Returns a path beside the folder of a study, never one inside it."""
    path = os.path.normpath(folder)
    if os.path.basename(path) in ("", ".", ".."):
        path = os.path.abspath(path)
    return Path(f"{path}-key.json")


def _check_output(folder, key_path, overwrite):
    """Raises `OSError` if a study must not be written to a folder."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    visible = [name for name in names if not name.startswith(".")]
    for name in visible:
        if name != "index.html" and not IMAGE_NAME.fullmatch(name):
            raise FileExistsError(
                f"{folder} holds files of yours, such as {name}, which raters would "
                "get. Choose a new folder for --output."
            )
    if (visible or key_path.exists()) and not overwrite:
        path = folder if visible else key_path
        raise FileExistsError(f"{path} exists. Pass --overwrite to replace the study.")


def _score(args):
    paths = command_line.expand_patterns(args.ratings)
    with command_line.usage_errors():
        key = read_key(args.key)
        _check_score_outputs(args, paths)
    items = key["items"]
    raters, excluded = load_raters(paths, key)
    is_incomplete = bool(excluded)
    for name, rater in list(raters.items()):
        note = describe_rater(rater, items)
        if args.exclude_uncalibrated and not is_calibrated(rater, items):
            note += ", left out"
            excluded.append(name)
            del raters[name]
        print(f"{name}: {note}")
    if not raters:
        command_line.fail(f"None of the files can be scored with {args.key}.")
    _report(raters, items, excluded, args)
    return command_line.EXIT_FAILED if is_incomplete else 0


def _check_score_outputs(args, paths):
    """Raises an error unless the figure and the table can be written."""
    inputs = [os.path.realpath(path) for path in (args.key, *paths)]
    for flag in ("figure", "json"):
        path = getattr(args, flag)
        if path is None:
            continue
        if os.path.realpath(path) in inputs:
            raise ValueError(f"--{flag} would overwrite {path}. Choose another path.")
        command_line.check_writable(path, flag)


def _report(raters, items, excluded, args):
    """Prints and saves the statistics of {name: `Rater`}."""
    panel, all_ratings = {}, []
    for name, rater in raters.items():
        scores = collect_scores(rater, items, RATING)
        panel[name] = {item: float(np.mean(given)) for item, given in scores.items()}
        all_ratings += [(item, score) for item in scores for score in scores[item]]
    groups = group_scores(panel, items)
    mos = mean_opinion(groups)
    datasets = {entry["set"] for entry in items.values() if entry["part"] == RATING}
    by_set = {
        dataset: mean_opinion(group_scores(panel, items, dataset))
        for dataset in sorted(datasets - {None})
    }
    print_scores(mos, by_set)
    try:
        comparisons = compare_methods(groups, list(mos))
        print_tests(comparisons, len(panel))
    except ImportError:
        comparisons = []
        print("\nNo significance tests: SciPy is not installed (pip install scipy).")
    counts = count_scores(all_ratings, items, list(mos), SCORES)
    save_distribution(args.figure, counts, SCORES, mos)
    print(f"\nFigure    {args.figure}")
    if args.json:
        data = {"mos": mos, "by_set": by_set, "raters": list(panel)}
        data["excluded"] = excluded
        data["tests"] = [comparison._asdict() for comparison in comparisons]
        image_files.write_text(args.json, json.dumps(data, indent=1))
        print(f"Table     {args.json}")


if __name__ == "__main__":
    command_line.run(main)
