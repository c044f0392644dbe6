"""The paper's rating study: a page on which people score images, and its statistics.

    python rate.py make --hr Set5/HR --results SRGAN=out/srgan SRResNet=out/srresnet
    python rate.py score study-key.json ratings-*.json

`make` writes a folder, `study`, that works from a disk or a web server: send it to the
raters, who send back `ratings-<name>.json`. `study-key.json`, which tells what each
image is, stays with you. `score` computes mean opinion scores (MOS; paper, Sec. 3.3).
"""

import itertools
import json
import secrets
from pathlib import Path

from support import command_line

with command_line.quiet_imports(__name__):
    import numpy as np
    from matplotlib.figure import Figure
    from PIL import Image

    from support import degradation, image_files, pixels
    from support.test_images import find_originals, match_names, read_result

PAGE = Path(__file__).with_name("rate.html")
IMAGE_NAME = 12 * "[0-9a-f]" + ".png"
PLACEHOLDER = "/* STUDY */ null"  # in the page
SCORES = (1, 2, 3, 4, 5)  # bad to excellent; paper, Sec. 3.3
ORIGINAL, NEAREST = "original", "nearest"
CALIBRATION, RATING = "calibration", "rating"  # the parts of a study
EXAMPLES = {NEAREST: 1, ORIGINAL: 5}  # scores that calibration images stand for
NUM_EXAMPLES = 3  # images of each kind; paper: 20
REPEATED_SHARE = 0.1  # of the items, shown twice to measure consistency
LOWEST_ORIGINAL, HIGHEST_NEAREST = 4, 2  # mean scores of a calibrated rater
INTERVAL = 1.96  # standard errors on either side: 95 % of a normal distribution


def make_study(hr_folder, results, index):
    """Writes the page `index` and its images; returns its key and a list of problems.

    `results` is a dict of method to the folder of its images.
    """
    versions, problems = _read_versions(hr_folder, results)
    for old in index.parent.glob(IMAGE_NAME):  # of a study that is replaced
        old.unlink()
    items = {}

    def add(name, method, part, image):
        file = f"{secrets.token_hex(6)}.png"
        image_files.save_image(image, index.with_name(file))
        dataset = Path(name).parts[0] if "/" in name else None
        items[file] = {"image": name, "method": method, "set": dataset, "part": part}
        return file

    examples = []
    for name, images in itertools.islice(versions.items(), NUM_EXAMPLES):
        lr = np.asarray(degradation.degrade(Image.fromarray(images[ORIGINAL]), blur=0))
        nearest = pixels.enlarge_by_filter(lr, Image.Resampling.NEAREST)
        for method, score in EXAMPLES.items():
            image = nearest if method == NEAREST else images[ORIGINAL]
            file = add(name, method, CALIBRATION, image)
            examples.append({"item": file, "score": score})
    rated = sorted(
        add(name, method, RATING, image)
        for name, images in versions.items()
        for method, image in images.items()
    )
    key = {"study": secrets.token_hex(8), "items": items}
    facts = {"id": key["study"], "calibration": examples, "items": rated}
    facts["num_repeats"] = round(REPEATED_SHARE * len(rated))
    page = PAGE.read_text(encoding="utf-8")
    image_files.write_text(index, page.replace(PLACEHOLDER, json.dumps(facts)))
    return key, problems


def _read_versions(hr_folder, results):
    """Reads {image: {method: uint8 array}}, of one size each, and lists problems."""
    folders = [hr_folder, *results.values()]
    originals, problems = find_originals(hr_folder, exclude=folders)
    found = {
        label: match_names(originals, folder, problems, exclude=folders)
        for label, folder in results.items()
    }
    versions = {}
    for name, path in originals.items():
        files = {label: paths.get(name) for label, paths in found.items()}
        if None in files.values():
            continue
        try:
            hr = pixels.to_float(image_files.read_rgb(path))
            height, width = (
                side // pixels.SCALE * pixels.SCALE for side in hr.shape[:2]
            )
            images, parts = {ORIGINAL: hr[:height, :width]}, []
            for label, file in files.items():
                result = read_result(file, images[ORIGINAL])
                images[label] = result.sr
                sides = (result.rows, result.columns)
                parts.append([(side.start, side.stop) for side in sides])
        except image_files.UnreadableImageError as error:
            problems.append(str(error))
            continue
        (top, _), (left, _) = np.max(parts, axis=0)
        (_, bottom), (_, right) = np.min(parts, axis=0)
        versions[name] = {
            label: pixels.to_uint8(image[top:bottom, left:right])
            for label, image in images.items()
        }
    if not versions:
        raise ValueError(f"No image in {hr_folder} has a result of every method.")
    return versions, problems


def read_ratings(path, key):
    """Reads a rater's file as (name, list of (item, score)), or raises `ValueError`."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        rater, study = str(data["rater"]), data["study"]
        ratings = [(row["item"], row["score"]) for row in data["ratings"]]
        rated = {item for item, _ in ratings}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError("it cannot be read as a file of ratings") from error
    if study != key["study"] or not rated <= key["items"].keys():
        raise ValueError("it belongs to another study")
    if any(score not in SCORES for _, score in ratings):
        raise ValueError("it holds a score that is not 1, 2, 3, 4 or 5")
    wanted = {item for item, entry in key["items"].items() if entry["part"] == RATING}
    if wanted - rated:
        raise ValueError(f"it lacks {len(wanted - rated)} of {len(wanted)} images")
    return rater, ratings


def sort_ratings(ratings, items):
    """Returns mean scores of items, differences of repeats, and calibration means."""
    given = {RATING: {}, CALIBRATION: {}}
    for item, score in ratings:
        entry = items[item]
        key = item if entry["part"] == RATING else entry["method"]
        given[entry["part"]].setdefault(key, []).append(score)
    rated = given[RATING].values()
    differences = [max(scores) - min(scores) for scores in rated if len(scores) > 1]
    means = {
        part: {key: float(np.mean(scores)) for key, scores in groups.items()}
        for part, groups in given.items()
    }
    return means[RATING], differences, means[CALIBRATION]


def group_scores(panel, items, dataset=None):
    """Regroups {rater: {item: score}} as {method: {rater: {image: score}}}."""
    groups = {}
    for rater, scores in panel.items():
        for item, score in scores.items():
            entry = items[item]
            if dataset in (None, entry["set"]):
                raters = groups.setdefault(entry["method"], {})
                raters.setdefault(rater, {})[entry["image"]] = score
    return groups


def mean_opinion(groups):
    """Returns each method's mean opinion score and its 95 % interval over raters."""
    table = {}
    for method, raters in groups.items():
        means = [np.mean(list(scores.values())) for scores in raters.values()]
        mean, low, high = float(np.mean(means)), None, None
        if len(means) > 1:
            margin = float(INTERVAL * np.std(means, ddof=1) / np.sqrt(len(means)))
            low, high = mean - margin, mean + margin
        count = sum(map(len, raters.values()))
        table[method] = {"mean": mean, "low": low, "high": high, "count": count}
    return dict(sorted(table.items(), key=lambda row: -row[1]["mean"]))


def compare_methods(groups):
    """Returns each pair's p by Wilcoxon's signed-rank test; `None` without SciPy."""
    try:
        from scipy.stats import wilcoxon
    except ImportError:
        return None
    tests = {}
    for first, second in itertools.combinations(groups, 2):
        differences = [
            score - groups[second][rater][image]
            for rater, scores in groups[first].items()
            for image, score in scores.items()
        ]
        is_tie = not np.any(differences)
        tests[first, second] = 1.0 if is_tie else float(wilcoxon(differences).pvalue)
    return tests


def save_distribution(path, groups, mos):
    """Draws how often each method got each score, as the paper's Fig. 5 does."""
    counts = np.zeros((len(SCORES), len(mos)))
    for column, method in enumerate(mos):
        for scores in groups[method].values():
            for score in scores.values():
                counts[round(score) - 1, column] += 1
    figure = Figure((1.5 + 0.8 * len(mos), 4), layout="constrained")
    axes = figure.add_subplot(ylabel="score", yticks=SCORES)
    grid = axes.pcolormesh(
        range(len(mos)), SCORES, counts / counts.sum(0), cmap="Blues"
    )
    means = [row["mean"] for row in mos.values()]
    axes.plot(range(len(mos)), means, "_", color="red", markersize=20, label="mean")
    axes.set_xticks(range(len(mos)), mos, rotation=45, ha="right")
    axes.legend()
    figure.colorbar(grid, label="share of ratings")
    with image_files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def print_tables(mos, by_set, tests):
    """Prints the MOS of each method, in all and by data set, and the tests."""
    for dataset, table in ({"all": mos} | by_set).items():
        print(f"\n{dataset:24} {'MOS':>6}  95 % interval  ratings")
        for method, row in table.items():
            known = row["low"] is not None
            interval = f"{row['low']:.2f} - {row['high']:.2f}" if known else "-"
            print(f"{method:24} {row['mean']:6.2f}  {interval:>13}  {row['count']:7}")
    if tests is None:
        print("\nNo significance tests: SciPy is not installed (pip install scipy).")
        return
    print("\nWilcoxon signed-rank tests, two-sided, not corrected for their number:")
    for (first, second), p in tests.items():
        print(f"{first} - {second}: p = {p:.3g}")


def parse_args(argv=None):
    """Reads the command line."""
    parser = command_line.ArgumentParser(prog="rate.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("make", help="write a study").add_argument
    add("--hr", required=True, metavar="FOLDER",
        help="original images; subfolders are data sets")  # fmt: skip
    add("--results", required=True, nargs="+", action="extend", metavar="NAME=FOLDER",
        type=command_line.named_folder, help="images of each method")  # fmt: skip
    add("--output", type=Path, default=Path("study"), metavar="FOLDER",
        help="folder of the study")  # fmt: skip
    add("--overwrite", action="store_true", help="replace a study")
    add = commands.add_parser("score", help="compute mean opinion scores").add_argument
    add("key", type=Path, metavar="study-key.json", help="the study's key")
    add("ratings", nargs="+", metavar="ratings-NAME.json", help="raters' files")
    add("--exclude-uncalibrated", action="store_true",
        help="leave out raters whose scores of the examples are off")  # fmt: skip
    add("--figure", type=Path, default=Path("study-scores.png"), metavar="FILE",
        help="file for the distribution of scores")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="file for the scores as JSON")
    return parser.parse_args(argv)


def main(argv=None):
    """Makes or scores a study as the command line says, and returns the exit code."""
    args = parse_args(argv)
    return _make(args) if args.command == "make" else _score(args)


def _make(args):
    index = args.output / "index.html"
    key_path = args.output.with_name(f"{args.output.name}-key.json")
    with command_line.usage_errors():
        results = command_line.check_labels(args.results, [ORIGINAL])
        if len(results) < 2:
            raise ValueError("There are fewer than two methods. Pass more --results.")
        for path in (index, key_path):
            if path.exists() and not args.overwrite:
                raise FileExistsError(f"{path} exists. Pass --overwrite to replace it.")
            command_line.check_writable(path)
        key, problems = make_study(args.hr, results, index)
    image_files.write_text(key_path, json.dumps(key, indent=1))
    for problem in problems:
        command_line.warn(f"left out {problem}.")
    print(f"Send this folder to the raters: {args.output}")
    print(f"Keep this file to yourself:     {key_path}")
    return command_line.EXIT_FAILED if problems else 0


def _score(args):
    with command_line.usage_errors():
        try:
            key = json.loads(args.key.read_text(encoding="utf-8"))
            items = dict(key["items"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{args.key} is not the key of a study.") from error
        command_line.check_writable(args.figure, "figure")
        if args.json:
            command_line.check_writable(args.json, "json")
    panel, raters, excluded = {}, [], []
    for path in args.ratings:
        try:
            rater, ratings = read_ratings(path, key)
            if rater in raters:
                raise ValueError(f"there is another file of the rater {rater}")
        except ValueError as error:
            command_line.warn(f"left out {path}: {error}.")
            excluded.append(path)
            continue
        raters.append(rater)
        scores, differences, examples = sort_ratings(ratings, items)
        note = f"{len(scores)} images, {len(differences)} of them twice"
        if differences:
            note += f", differing by {np.mean(differences):.2f} on average"
        is_low = examples.get(NEAREST, 1) <= HIGHEST_NEAREST
        if not (is_low and examples.get(ORIGINAL, 5) >= LOWEST_ORIGINAL):
            note += "; not calibrated"
            if args.exclude_uncalibrated:
                note += ", left out"
                excluded.append(rater)
        print(f"{rater}: {note}")
        if rater not in excluded:
            panel[rater] = scores
    if not panel:
        command_line.fail(f"None of the files can be scored with {args.key}.")
    groups = group_scores(panel, items)
    mos, datasets = mean_opinion(groups), {entry["set"] for entry in items.values()}
    by_set = {
        name: mean_opinion(group_scores(panel, items, name))
        for name in sorted(datasets - {None})
    }
    print_tables(mos, by_set, compare_methods(groups))
    save_distribution(args.figure, groups, mos)
    print(f"\nFigure    {args.figure}")
    if args.json:
        data = {"mos": mos, "by_set": by_set, "raters": list(panel)}
        text = json.dumps(data | {"excluded": excluded}, indent=1)
        image_files.write_text(args.json, text)
        print(f"Table     {args.json}")
    return command_line.EXIT_FAILED if len(raters) < len(args.ratings) else 0


if __name__ == "__main__":
    command_line.run(main)
