"""Statistics of a rating study: opinion scores, intervals, tests, and their figure.

    python -c "from support import rating_statistics; \
        print(rating_statistics.student_factor(num_raters=26))"

Raters are the sample, not ratings: two scores by one person are not independent.
`groups` is {method: {rater: {image: score}}}.
"""

import contextlib
import itertools
from typing import NamedTuple

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure

from support.command_line import warn
from support.image_files import atomic_path

CONFIDENCE = 0.95  # of the intervals
SIGNIFICANCE = 0.05  # paper, Sec. 3.3
MAX_EXACT = 50  # differences, up to which Wilcoxon's test is computed exactly
DIGITS = 9  # of differences; rounding errors would hide that two are equal


class Comparison(NamedTuple):
    """Two methods, the difference of their mean opinion scores, and two tests of it."""

    first: str
    second: str
    difference: float
    p: float  # over raters' mean scores, corrected by Holm's method
    p_pooled: float  # over all ratings, not corrected: the paper's test


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
    """Returns each method's mean opinion score and its interval, the best first."""
    table = {}
    for method, raters in groups.items():
        means = list(_rater_means(raters).values())
        mean = float(np.mean(means))
        low, high = None, None
        if len(means) > 1:
            standard_error = float(np.std(means, ddof=1) / np.sqrt(len(means)))
            margin = student_factor(len(means)) * standard_error
            low, high = mean - margin, mean + margin
        count = sum(len(scores) for scores in raters.values())
        table[method] = {"mean": mean, "low": low, "high": high, "count": count}
    return dict(sorted(table.items(), key=lambda row: -row[1]["mean"]))


def student_factor(num_raters):
    """Returns how many standard errors on either side hold 95 %, by Student's t.

    They are 12.7 for two raters, 2.06 for the paper's 26, and 1.96 for very many.
    """
    freedom = num_raters - 1
    # The density of t = sqrt(freedom) * tan(angle) is cos(angle)**(freedom - 1).
    angles = np.linspace(0, np.pi / 2, 10_001)
    density = np.cos(angles) ** (freedom - 1)
    strips = (density[1:] + density[:-1]) / 2
    areas = np.concatenate([[0], np.cumsum(strips)])
    angle = np.interp(CONFIDENCE * areas[-1], areas, angles)
    return float(np.sqrt(freedom) * np.tan(angle))


def compare_methods(groups, methods):
    """Returns a `Comparison` of each pair of methods; raises `ImportError`: no SciPy.

    The paper pools the ratings of all raters. That takes one person's many scores for
    independent ones, and so finds differences between methods that have none.
    """
    comparisons = []
    for first, second in itertools.combinations(methods, 2):
        by_rater = _mean_differences(groups[first], groups[second])
        by_rating = _rating_differences(groups[first], groups[second])
        p = _signed_rank_test(by_rater)
        p_pooled = _signed_rank_test(by_rating)
        difference = float(np.mean(by_rater))
        comparisons.append(Comparison(first, second, difference, p, p_pooled))
    corrected = correct_by_holm([comparison.p for comparison in comparisons])
    return [
        comparison._replace(p=p)
        for comparison, p in zip(comparisons, corrected, strict=True)
    ]


def correct_by_holm(p_values):
    """Multiplies p values for the number of tests, the smallest by all of them.

    With the result, the chance of any false difference is at most the chosen limit.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    order = np.argsort(p_values, kind="stable").tolist()
    for rank, index in enumerate(order):
        p = min(1.0, p_values[index] * (len(p_values) - rank))
        largest = max(largest, p)  # a larger p stays the larger one
        corrected[index] = largest
    return corrected


def smallest_p(num_raters, num_pairs):
    """Returns the smallest corrected p value that so few raters can give."""
    return min(1.0, num_pairs * 2 / 2**num_raters)  # all of them agree


def count_scores(ratings, items, methods, scores):
    """Counts [(item, score)]: an array of a row per score and a column per method."""
    counts = np.zeros((len(scores), len(methods)), int)
    for item, score in ratings:
        row = scores.index(score)
        column = methods.index(items[item]["method"])
        counts[row, column] += 1
    return counts


def save_distribution(path, counts, scores, mos):
    """Draws how often each method got each score, as the paper's Fig. 5 does."""
    figure = Figure((2.5 + 0.8 * len(mos), 4), layout="constrained")
    axes = figure.add_subplot(ylabel="score", yticks=scores)
    columns = range(len(mos))
    shares = counts / counts.sum(axis=0)
    cells = axes.pcolormesh(columns, scores, shares, cmap="Blues", vmin=0)
    means = [row["mean"] for row in mos.values()]
    axes.plot(columns, means, "_", color="red", markersize=20, label="mean")
    names, fonts = _drawable_names(mos)
    axes.set_xticks(
        columns, names, rotation=45, ha="right", family=fonts, parse_math=False
    )
    figure.legend(loc="outside upper right")
    figure.colorbar(cells, label="share of ratings")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _drawable_names(methods):
    """Returns the methods' names for a figure, and the fonts that have their letters.

    Numbers a method whose name no installed font can show.
    """
    missing = {letter for method in methods for letter in method}
    fonts = []
    for font in _installed_fonts():
        letters = {letter for letter in missing if ord(letter) in font.get_charmap()}
        if letters or not fonts:
            fonts.append(font.family_name)
            missing -= letters
        if not missing:
            break
    names = []
    for number, method in enumerate(methods, start=1):
        if missing.intersection(method):
            warn(
                f"No font has all letters of {method}. The figure shows a number "
                "instead. Install a font of that script, such as Noto Sans."
            )
            names.append(f"method {number}")
        else:
            names.append(method)
    return names, fonts


def _installed_fonts():
    """Yields matplotlib's own font, then the others."""
    default = font_manager.findfont("DejaVu Sans")
    paths = [entry.fname for entry in font_manager.fontManager.ttflist]
    for path in [default, *paths]:
        if "LastResort" in path:
            continue  # has a box for every letter there is
        with contextlib.suppress(OSError, RuntimeError):  # removed since, or damaged
            yield font_manager.get_font(path)


def _rater_means(raters):
    return {rater: float(np.mean(list(row.values()))) for rater, row in raters.items()}


def _mean_differences(first, second):
    first_means = _rater_means(first)
    second_means = _rater_means(second)
    return [first_means[rater] - second_means[rater] for rater in first_means]


def _rating_differences(first, second):
    return [
        score - second[rater][image]
        for rater, scores in first.items()
        for image, score in scores.items()
    ]


def _signed_rank_test(differences):
    """Returns p of Wilcoxon's two-sided test."""
    from scipy.stats import wilcoxon

    differences = np.round(differences, DIGITS)
    differences = differences[differences != 0]  # as Wilcoxon did
    if not differences.size:
        return 1.0
    # SciPy's own choice takes seconds for 13 raters, two of whom differ equally.
    is_small = differences.size <= MAX_EXACT
    method = "exact" if is_small else "asymptotic"
    return float(wilcoxon(differences, method=method).pvalue)
