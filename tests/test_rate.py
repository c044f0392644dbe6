"""Tests of rate.py: what raters see, what their scores give, and a real browser."""

import functools
import http.server
import itertools
import json
import re
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rate
from support import rating_statistics

OPINIONS = {"original": 4.4, "SRGAN": 3.6, "SRResNet": 3.3, "bicubic": 2.0}
METHODS = ("SRGAN", "SRResNet", "bicubic")
CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BACKSPACE = "\ue003"  # as Selenium encodes keys
ARROW_LEFT = "\ue012"


def read_json(path):
    return json.loads(Path(path).read_text())


@pytest.fixture
def folders(tmp_path, image_folder, monkeypatch):
    """Originals in two data sets, and results, some without a border; cwd is beside."""
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        name = f"Set{number // 2}/{number}.png"
        image = Image.open(image_folder / f"{number}.png").convert("RGB")
        for folder in ("hr", *METHODS):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            border = 2 if folder == "SRGAN" else 0
            box = (border, border, image.width - border, image.height - border)
            image.crop(box).save(path)
    return [f"{method}={method}" for method in METHODS]


@pytest.fixture
def key(folders):
    assert rate.main(["make", "--hr", "hr", "--results", *folders]) == 0
    return read_json("study-key.json")


@pytest.fixture
def no_figure(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(rate, "save_distribution", lambda *_: None)


def write_ratings(key, rater, opinion, path=None, **changes):
    """Rates each item once, some twice; `opinion(entry)` returns a score."""
    ratings = [
        {"item": item, "score": opinion(entry), "seconds": 1.5}
        for item, entry in key["items"].items()
    ]
    data = {"study": key["study"], "rater": rater, "ratings": ratings + ratings[-2:]}
    path = path or f"ratings-{rater}.json"
    with open(path, "w") as file:
        json.dump(data | changes, file)
    return path


def write_key(name, *entries):
    items = {f"{number}.png": entry for number, entry in enumerate(entries)}
    Path(f"{name}.json").write_text(json.dumps({"study": "x", "items": items}))


def calibrated(entry):
    return {"nearest": 1, "original": 5}[entry["method"]]


def calibrated_or(score):
    """An opinion: the right scores of the examples, and one score of all others."""
    return lambda entry: calibrated(entry) if entry["part"] == "calibration" else score


def test_study_gives_nothing_away(key, tmp_path):
    """Raters who can tell the methods apart by name, size or order do not judge."""
    files = {path.name for path in (tmp_path / "study").glob("[!.]*")}
    assert files == {"index.html", *key["items"]}
    assert all(re.fullmatch("[0-9a-f]{12}.png", name) for name in key["items"])
    page = (tmp_path / "study" / "index.html").read_text()
    assert not any(name in page for name in (*METHODS, "Set0", "nearest", "http"))
    rated = [e for e in key["items"].values() if e["part"] == "rating"]
    pairs = sorted((e["image"], e["method"], e["set"]) for e in rated)
    assert pairs == sorted(
        (f"Set{n // 2}/{n}", method, f"Set{n // 2}")
        for n in range(4)
        for method in ("original", *METHODS)
    )
    sizes = {}
    for file, entry in key["items"].items():
        if entry["part"] == "rating":
            size = Image.open(tmp_path / "study" / file).size
            sizes.setdefault(entry["image"], set()).add(size)
    assert all(len(found) == 1 for found in sizes.values())
    facts = json.loads(re.search(r"STUDY = (\{.*?\}); ", page)[1])
    assert [example["score"] for example in facts["calibration"]] == 3 * [1, 5]
    assert facts["num_repeats"] == 2
    scenes = facts["scenes"]
    assert list(scenes) == sorted(key["items"])
    written = sorted(key["items"], key=lambda f: Path("study", f).stat().st_mtime_ns)
    rated_files = [f for f in written if key["items"][f]["part"] == "rating"]
    for first in range(0, 16, 4):  # the versions of an image
        versions = rated_files[first : first + 4]
        assert versions == sorted(versions)
    pairs = {(key["items"][file]["image"], scenes[file]) for file in scenes}
    assert len(pairs) == len(set(scenes.values())) == 4
    results = [f"{method}={method}" for method in METHODS]
    assert rate.main(["make", "--hr", "hr", "--results", *results, "--overwrite"]) == 0
    assert not key["items"].keys() & {path.name for path in Path("study").iterdir()}


def test_examples_are_other_images_if_there_are_enough(tmp_path, monkeypatch, capsys):
    """Who has seen the original of an image knows what to look for in its versions."""
    monkeypatch.chdir(tmp_path)
    for folder in ("hr", "a", "b"):
        Path(folder).mkdir()
        for number in range(12):
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(f"{folder}/{number}.png")
    Path("hr", "study").mkdir()
    arguments = ["make", "--hr", "hr", "--results", "A=a", "B=b", "--output"]
    for flags in ([], ["--overwrite"]):  # the second time, a study lies inside --hr
        assert rate.main([*arguments, "hr/study", *flags]) == 0
        entries = list(read_json("hr/study-key.json")["items"].values())
        rated = {e["image"] for e in entries if e["part"] == "rating"}
        examples = {e["image"] for e in entries if e["part"] == "calibration"}
        assert (len(rated), len(examples)) == (9, 3)
        assert not rated & examples
        assert "Images to rate: 9. Examples: 3 others." in capsys.readouterr().out


def test_unreadable_images_are_named_once(folders, capsys):
    """The line read "left out Cannot read X: ... .."."""
    Path("SRGAN/Set0/1.png").write_bytes(b"no image")
    assert rate.main(["make", "--hr", "hr", "--results", *folders]) == 1
    error = capsys.readouterr().err
    assert error.startswith("left out Set0/1: Cannot read SRGAN/Set0/1.png: not an ")
    assert error.count("\n") == 1
    assert not error.endswith("..\n")


def test_panel_gives_known_opinions_back(key, capsys):
    """A wrong join of key and ratings would swap methods."""
    random = np.random.default_rng(0)

    def opinion(entry):
        if entry["part"] == "calibration":
            return calibrated(entry)
        mean = OPINIONS[entry["method"]] - 0.2 * (entry["set"] == "Set1")
        return int(np.clip(np.rint(random.normal(mean, 0.6)), 1, 5))

    paths = [write_ratings(key, f"rater{k}", opinion) for k in range(26)]
    assert rate.main(["score", "study-key.json", *paths, "--json", "s.json"]) == 0
    data = read_json("s.json")
    assert list(data["mos"]) == list(OPINIONS)
    for method, row in data["mos"].items():
        assert row["mean"] == pytest.approx(OPINIONS[method] - 0.1, abs=0.12)
        assert 0.05 < row["high"] - row["low"] < 0.4
        assert row["count"] == 26 * 4
    by_set = data["by_set"]
    assert by_set["Set0"]["SRGAN"]["mean"] > by_set["Set1"]["SRGAN"]["mean"]
    assert (len(data["raters"]), data["excluded"]) == (26, [])
    out = capsys.readouterr().out
    assert "rater7: 16 images, 2 of them twice, differing by 0.00" in out
    assert Image.open("study-scores.png").size[1] == 600
    pytest.importorskip("scipy", reason="needs scipy: python -m pip install scipy")
    tests = re.findall(r"(\w+) - (\w+): p = (\S+) +pooled p = (\S+)", out)
    assert [pair[0] for pair in tests] == 3 * ["original"] + 2 * ["SRGAN"] + [
        "SRResNet"
    ]
    assert all(float(p) < 1e-3 for *pair, p, _ in tests if "bicubic" in pair)
    assert [float(f"{row['p']:.3g}") for row in data["tests"]] == [
        float(p) for *_, p, _ in tests
    ]


def test_intervals_by_hand():
    """Over scores instead of raters, or by z, the interval would be far too narrow."""
    items = {f"{k}": {"method": "A", "image": f"{k}", "set": None} for k in range(8)}
    panel = {name: dict.fromkeys(items, name) for name in (2, 3, 4)}
    row = rate.mean_opinion(rate.group_scores(panel, items))["A"]
    margin = 4.3026527 / np.sqrt(3)  # Student's t, two degrees of freedom
    expected = {"mean": 3, "low": 3 - margin, "high": 3 + margin, "count": 24}
    assert row == pytest.approx(expected)
    groups = rate.group_scores({2: panel[2]}, items)
    assert rate.mean_opinion(groups)["A"]["low"] is None
    for num_raters, factor in {2: 12.7062, 6: 2.57058, 26: 2.05954, 9999: 1.96}.items():
        assert rating_statistics.student_factor(num_raters) == pytest.approx(
            factor, rel=3e-4
        )


def draw_groups(random, num_raters, num_images=10, methods="AB"):
    """Draws scores of equal methods by raters who each have a taste of their own."""
    groups = {method: {} for method in methods}
    difficulty = random.normal(0, 0.5, num_images)
    for rater in range(num_raters):
        for method in methods:
            opinion = 3 + random.normal(0, 0.5)
            scores = np.rint(opinion + difficulty + random.normal(0, 0.6, num_images))
            groups[method][rater] = dict(enumerate(np.clip(scores, 1, 5)))
    return groups


def test_statistics_keep_their_promises():
    """By z, 95 % intervals of three raters held 81 %; pooled tests failed in 32 %."""
    random = np.random.default_rng(0)
    hits = []
    for _ in range(300):
        row = rate.mean_opinion(draw_groups(random, 3))["A"]
        hits.append(row["low"] <= 3 <= row["high"])
    assert np.mean(hits) == pytest.approx(0.95, abs=0.04)
    pytest.importorskip("scipy", reason="needs scipy: python -m pip install scipy")
    tests = [rate.compare_methods(draw_groups(random, 26), "AB")[0] for _ in range(100)]
    assert np.mean([test.p < 0.05 for test in tests]) < 0.12
    assert np.mean([test.p_pooled < 0.05 for test in tests]) > 0.2


def test_holm_by_hand():
    """With six pairs at p < 0.05 each, a quarter of all studies would be wrong."""
    assert rating_statistics.correct_by_holm([0.01, 0.04, 0.03, 1]) == pytest.approx(
        [0.04, 0.09, 0.09, 1]
    )


def test_thirteen_raters_are_compared_at_once():
    """SciPy tried all 8,192 signs, one by one: seconds for each pair of methods."""
    wilcoxon = pytest.importorskip("scipy.stats", reason="needs scipy").wilcoxon
    differences = [k / 10 for k in (1, 1, -2, 3, 4, -5, 6, 7, 8, 9, 10, 11, 12)]
    groups = {
        "A": {rater: {0: 3 + d} for rater, d in enumerate(differences)},
        "B": {rater: {0: 3} for rater in range(13)},
    }
    p = rate.compare_methods(groups, ["A", "B"])[0].p
    assert p == wilcoxon(differences, method="exact").pvalue
    assert p == pytest.approx(0.0081, abs=1e-4)


def test_few_raters_are_told_so(key, no_figure, capsys):
    """Five raters who all agree give p = 0.0625, whatever the methods are."""
    pytest.importorskip("scipy", reason="needs scipy: python -m pip install scipy")
    paths = [write_ratings(key, f"{k}", calibrated_or(3)) for k in range(5)]
    assert rate.main(["score", "study-key.json", *paths]) == 0
    assert "too few raters: p cannot be smaller than 0.38" in capsys.readouterr().out


def test_figure_counts_raw_ratings(key, monkeypatch):
    """Means of repeats were rounded to even: of a 2 and a 3, the 3 was lost."""
    saved = []
    monkeypatch.setattr(rate, "save_distribution", lambda *call: saved.append(call))
    write_ratings(key, "a", lambda entry: 2)
    data = read_json("ratings-a.json")
    data["ratings"][-1]["score"] = 3  # the second time
    Path("ratings-a.json").write_text(json.dumps(data))
    assert rate.main(["score", "study-key.json", "ratings-a.json"]) == 0
    _, counts, scores, _ = saved[0]
    assert dict(zip(scores, counts.sum(axis=1), strict=True))[3] == 1
    assert counts.sum() == 18


def test_names_in_any_script(key, capsys):
    """A name such as `a$^$b` ended in a traceback, a Chinese one in empty boxes."""
    names = {"SRGAN": "a$^$b", "SRResNet": "Ελλάδα", "bicubic": "\U0010fffd"}
    for entry in key["items"].values():
        entry["method"] = names.get(entry["method"], entry["method"])
    Path("named-key.json").write_text(json.dumps(key))
    path = write_ratings(key, "李 雷", calibrated_or(3))
    assert rate.main(["score", "named-key.json", path]) == 0
    out, error = capsys.readouterr()
    assert "李 雷: 16 images" in out
    assert re.fullmatch("No font has all letters of \U0010fffd. .* Noto Sans.\n", error)


def test_without_scipy(key, monkeypatch, capsys):
    """The table must come all the same."""
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    path = write_ratings(key, "a", lambda entry: 3)
    assert rate.main(["score", "study-key.json", path]) == 0
    out = capsys.readouterr().out
    assert "SciPy is not installed" in out
    assert "SRGAN" in out


def test_uncalibrated_raters_are_named(key, no_figure, capsys):
    """Who gives nearest-neighbor images a 3 uses another scale."""
    paths = [write_ratings(key, "good", calibrated_or(3))]
    paths.append(write_ratings(key, "odd", lambda entry: 3))
    arguments = ["score", "study-key.json", *paths, "--json", "s.json"]
    for flags, raters in (
        ([], ["good", "odd"]),
        (["--exclude-uncalibrated"], ["good"]),
    ):
        assert rate.main([*arguments, *flags]) == 0
        assert (
            "odd: 16 images, 2 of them twice, differing by 0.00 on average; not "
            in (capsys.readouterr().out)
        )
        data = read_json("s.json")
        assert data["raters"] == raters
        assert data["excluded"] == ["odd"] * (len(raters) == 1)


def test_no_scores_of_examples_is_not_calibrated(key, no_figure, capsys):
    """Nobody knows which scale such a rater uses."""
    write_ratings(key, "a", calibrated_or(3))
    data = read_json("ratings-a.json")
    data["ratings"] = [
        row for row in data["ratings"] if key["items"][row["item"]]["part"] == "rating"
    ]
    Path("ratings-a.json").write_text(json.dumps(data))
    arguments = ["score", "study-key.json", "ratings-a.json"]
    assert rate.main(arguments) == 0
    assert "not calibrated, as the examples have no" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        rate.main([*arguments, "--exclude-uncalibrated"])


def test_files_from_windows(key, no_figure, capsys):
    """Notepad marks UTF-8 or writes UTF-16, and cmd does not expand patterns."""
    for name, encoding in {"study-key": "utf-8-sig", "ratings-a": "utf-16"}.items():
        write_ratings(key, "a", calibrated_or(3))
        path = Path(f"{name}.json")
        path.write_text(path.read_text(), encoding=encoding)
    write_ratings(key, "b", calibrated_or(3), "ratings-[b].json")
    paths = ["ratings-?.json", "ratings-[b].json", "none-*.json"]
    assert rate.main(["score", "study-key.json", *paths]) == 1
    out, error = capsys.readouterr()
    assert error == "left out none-*.json: No such file or directory.\n"
    assert re.findall("(.*): 16 images", out) == ["a", "b"]


def test_raters_of_one_name_are_both_counted(key, no_figure, capsys):
    """The second Ann was left out, as if her file were a copy of the first one's."""
    paths = [
        write_ratings(key, "Ann", calibrated_or(3), f"{k}.json", rater_id=f"{k % 2}")
        for k in range(3)
    ]
    assert rate.main(["score", "study-key.json", *paths, "--json", "s.json"]) == 1
    assert read_json("s.json")["raters"] == ["Ann", "Ann (2)"]
    assert "2.json: there is another file of the rater Ann." in capsys.readouterr().err


def test_bad_rating_files_are_named(key, no_figure, capsys):
    """One damaged file must not cost the others."""
    good = write_ratings(key, "a", lambda entry: 3)
    one = next(iter(key["items"]))
    for reason, changes in {
        "another study": {"study": "x"},
        "another  study": {"ratings": [{"item": "x.png", "score": 3}]},
        "lacks 16 of 16 images": {"ratings": [{"item": one, "score": 3}]},
        "not 1, 2, 3, 4 or 5": {"ratings": [{"item": one, "score": 6}]},
        "another file of the rater a": {},
        "cannot be read": {"ratings": 7},
        "cannot be  read": "[" * 100_000,
        "cannot  be read": "[1]",
    }.items():
        if isinstance(changes, dict):
            path = write_ratings(key, "a", lambda entry: 3, "bad.json", **changes)
        else:
            Path(path).write_text(changes)
        assert rate.main(["score", "study-key.json", good, path]) == 1
        error = capsys.readouterr().err
        assert error.startswith("left out bad.json: ")
        assert " ".join(reason.split()) in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(("arguments", "reason"), {
    "make --hr hr --results SRGAN=SRGAN": "fewer than two methods",
    "make --hr hr --results A=SRGAN A=bicubic": "'A' is taken",
    "make --hr hr --results A=SRGAN original=bicubic": "'original' is taken",
    "make --hr hr --results A=SRGAN bicubic": "'bicubic' is not NAME=FOLDER",
    "make --hr hr --results A=SRGAN B=empty": "No image in empty",
    "make --hr hr --results A=SRGAN B=small": "has a result of every method",
    "make --hr gone --results A=SRGAN B=bicubic": "There is no folder gone",
    "make --hr hr --results A=SRGAN B=bicubic --output old": "Pass --overwrite",
    "make --hr hr --results A=SRGAN B=bicubic --output .": ". holds files of yours",
    "make --hr hr --results A=SRGAN B=bicubic --output hr --overwrite": "such as Set0",
    "score hr/Set0/0.png x.json": "is not the key of a study",
    "score gone.json x.json": "No such file",
    "score deep.json x.json": "deep.json is not the key of a study",
    "score no-study.json x.json": "is not the key of a study: it has no 'study'",
    "score no-part.json x.json": "it has no 'part'",
    "score no-set.json x.json": "it has no 'set'",
    "score good.json x.json --json x.json": "--json would overwrite x.json",
    "score good.json x.json --figure good.json": "--figure would overwrite good.json",
}.items())  # fmt: skip
def test_mistakes_take_one_line(folders, tmp_path, capsys, arguments, reason):
    """A traceback, or half a study, would hide which argument to change."""
    for folder in ("empty", "small/Set0", "old"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "old" / "index.html").write_text("before")
    Image.new("RGB", (4, 4)).save("small/Set0/0.png")
    item = {"image": "0", "method": "A", "set": None, "part": "rating"}
    write_key("good", item)
    write_key("no-part", {"image": "0", "method": "A", "set": None})
    write_key("no-set", {"image": "0", "method": "A", "part": "rating"})
    Path("no-study.json").write_text('{"items": {}}')
    Path("deep.json").write_text("[" * 100_000)
    with pytest.raises(SystemExit, match="2"):
        rate.main(arguments.split())
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert (tmp_path / "old" / "index.html").read_text() == "before"
    assert not (tmp_path / "study").exists() or not list((tmp_path / "study").iterdir())


class Browser:
    """The page in Chromium; waits for what the page's `state` says, not for times."""

    def __init__(self, driver, webdriver):
        self.driver = driver
        self._webdriver = webdriver

    def read(self, expression):
        return self.driver.execute_script(f"return {expression}")

    def wait_for(self, condition):
        wait = self._webdriver.support.wait.WebDriverWait(self.driver, 30, 0.02)
        wait.until(lambda _: self.read(condition))

    def press(self, keys, condition="true"):
        self._webdriver.ActionChains(self.driver).send_keys(keys).perform()
        self.wait_for(condition)

    def hold_enter(self, times):
        for number in range(times):
            event = {"type": "keyDown", "key": "Enter", "code": "Enter", "text": "\r"}
            event |= {"windowsVirtualKeyCode": 13, "autoRepeat": number > 0}
            self.driver.execute_cdp_cmd("Input.dispatchKeyEvent", event)

    def open(self, address):
        self.driver.get(address)
        self.wait_for("document.readyState == 'complete'")

    def start(self, address, name):
        self.open(address)
        self.wait_for("state.screen == 'start'")
        self.press(f"{name}\n", "state.screen == 'rating'")

    def make_ready(self):
        """Waits for the image, but not until it has been visible for long enough."""
        self.wait_for("state.screen == 'rating' && state.shownAt > 0")
        self.driver.execute_script("state.shownAt = 1")
        self.wait_for("isReady()")

    def rate(self, score):
        """Rates one image by keyboard, and leaves the page that may come after it."""
        self.make_ready()
        number = self.read("state.ratings.length")
        self.press(str(score), f"state.ratings.length == {number + 1}")
        if self.read("state.screen == 'message'"):
            self.press("\n", "state.screen != 'message'")


@pytest.fixture
def browser(tmp_path):
    """A `Browser` that saves to `tmp_path`, or a skip that says what is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    import selenium.webdriver.support.wait

    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs the Debian packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    profile = tmp_path / "profile"
    for flag in (
        *CHROMIUM_FLAGS,
        f"--user-data-dir={profile}",
        "--window-size=500,700",
    ):
        options.add_argument(flag)
    prefs = {"download.default_directory": str(tmp_path)}
    options.add_experimental_option("prefs", prefs)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, service) as driver:
        yield Browser(driver, selenium.webdriver)


@pytest.fixture
def address(key, tmp_path):
    """The address of a study of four images."""
    return (tmp_path / "study" / "index.html").as_uri()


def test_page_in_a_browser(key, address, browser, tmp_path):
    """Rates all by keyboard, and scores the files of two raters of one name."""
    browser.start(address, "Ann Ö.")
    order = browser.read("state.order")
    entries = [key["items"][item] for item in order]
    assert [e["part"] for e in entries[:7]] == 6 * ["calibration"] + ["rating"]
    assert len(order) == 6 + 16 + 2
    for number, entry in enumerate(entries):
        if number == 8:
            browser.rate(1)
            browser.press(ARROW_LEFT, "state.ratings.length == 9")  # scrolls
            browser.press(BACKSPACE, "state.ratings.length == 8")
            browser.driver.refresh()
        browser.make_ready()
        assert browser.read("byId('image').src.split('/').pop()") == order[number]
        browser.rate("15"[entry["method"] == "original"])
    browser.wait_for("state.screen == 'end'")
    assert browser.read("byId('next').disabled")
    browser.press("\n", "!byId('next').disabled")  # on the button to save
    path = tmp_path / "ratings-Ann-Ö-.json"
    browser.wait_for(f"byId('saved').textContent.includes('{path.name}')")
    browser._webdriver.support.wait.WebDriverWait(browser.driver, 30).until(
        lambda _: path.exists()
    )
    data = read_json(path)
    assert [row["item"] for row in data["ratings"]] == order
    assert (data["rater"], data["study"]) == ("Ann Ö.", key["study"])
    for row in data["ratings"]:
        assert row["seconds"] > 0
        assert (row["factor"], row["ratio"]) == (1, 1)
        assert row["window"] == browser.read("[innerWidth, innerHeight]")
    browser.driver.execute_script("byId('next').click()")
    browser.press("Ann Ö.\n", "state.screen == 'rating'")
    assert browser.read("state.raterId") != data["rater_id"]
    second = write_ratings(key, "Ann Ö.", calibrated_or(3), rater_id="2")
    arguments = ["score", "study-key.json", str(path), second, "--json", "s.json"]
    assert rate.main(arguments) == 0
    assert read_json("s.json")["raters"] == ["Ann Ö.", "Ann Ö. (2)"]
    assert rate.main([*arguments[:3], "--json", "s.json"]) == 0
    means = {k: row["mean"] for k, row in read_json("s.json")["mos"].items()}
    assert means == {"original": 5, **dict.fromkeys(METHODS, 1)}


def test_no_scene_comes_twice_running(key, address, browser):
    """Raters compared neighbors instead of judging each image by itself."""
    browser.open(address)
    scenes = {file: entry["image"] for file, entry in key["items"].items()}
    orders = browser.read("Array.from({length: 40}, drawOrder)")
    assert len({tuple(order) for order in orders}) == 40
    for order in orders:
        shown = [scenes[item] for item in order]
        assert all(a != b for a, b in itertools.pairwise(shown))
        first, second = order[6:15], order[15:]
        repeats = set(first) & set(second)
        assert len(repeats) == 2
        assert set(first) | set(second) == set(order[6:])


def test_ratings_survive(address, browser):
    """A second tab, or a reload with an empty storage, threw ratings away."""
    browser.start(address, "Ann")
    for score in (1, 5, 1):
        browser.rate(score)
    # As Chromium does now and then with a page from a disk.
    browser.driver.execute_script("localStorage.clear()")
    browser.driver.refresh()
    browser.rate(5)
    assert browser.read("state.ratings.length") == 4
    old = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.open(address)
    browser.rate(1)
    new = browser.driver.current_window_handle
    browser.driver.switch_to.window(old)
    browser.wait_for("state.screen == 'locked'")
    browser.press("3")
    browser.driver.switch_to.window(new)
    browser.driver.refresh()
    browser.wait_for("state.screen == 'rating' && state.ratings.length == 5")
    browser.driver.switch_to.window(old)
    browser.driver.execute_script("byId('unlock').click()")
    browser.wait_for("state.screen == 'rating' && state.ratings.length == 5")
    # The tab that was asleep, and so heard of nothing, must not write either.
    browser.driver.execute_script("window.onstorage = null")
    browser.driver.switch_to.window(new)
    browser.driver.execute_script("location.reload()")
    browser.rate(5)
    browser.driver.switch_to.window(old)
    browser.make_ready()
    browser.press("1", "state.screen == 'locked'")
    browser.driver.switch_to.window(new)
    browser.driver.refresh()
    browser.wait_for("state.screen == 'rating' && state.ratings.length == 6")


def test_page_without_storage_or_images(address, browser, tmp_path):
    """Start did nothing in a browser that blocks storage, nor in an unpacked page."""
    blocked = "Object.defineProperty(window, '%s', {get() { throw new Error(); }});"
    source = blocked % "localStorage" + blocked % "sessionStorage"
    command = "Page.addScriptToEvaluateOnNewDocument"
    browser.driver.execute_cdp_cmd(command, {"source": source})
    browser.start(address, "Ann")
    assert browser.read("byId('warning').offsetHeight") > 0
    browser.rate(1)
    assert browser.read("state.ratings.length") == 1
    item = browser.read("state.order[6]")  # no example, so not loaded before
    (tmp_path / "study" / item).rename("kept.png")
    for _ in range(5):
        browser.rate(5)
    browser.wait_for("state.screen == 'problem'")
    assert browser.read("byId('problem').innerText.includes(state.order[6])")
    Path("kept.png").rename(tmp_path / "study" / item)
    browser.driver.execute_script("byId('retry').click()")
    browser.rate(5)
    Path("alone").mkdir()
    shutil.copy("study/index.html", "alone")
    browser.open((tmp_path / "alone" / "index.html").as_uri())
    browser.wait_for("state.screen == 'problem'")


def test_input_counts_once_the_image_is_seen(address, browser):
    """A held Enter rated twelve images; AZERTY keyboards could not rate at all."""
    browser.start(address, "Ann")
    browser.wait_for("isReady()")
    assert browser.read("performance.now() - state.shownAt") >= 400
    browser.rate(2)  # of an example: remarked on
    for score in (1, 1, 1, 1, 1):
        browser.rate(score)
    browser.make_ready()
    browser.driver.execute_script("byId('scores').children[2].focus()")
    browser.hold_enter(10)
    assert browser.read("state.ratings.length") == 7
    browser.make_ready()
    event = {"type": "keyDown", "key": "é", "code": "Digit2"}
    browser.driver.execute_cdp_cmd("Input.dispatchKeyEvent", event)
    assert browser.read("state.ratings[7].score") == 2


def test_examples_are_explained(address, browser):
    """A wrong score passed without a word, and nobody knew when the examples ended."""
    browser.start(address, "Ann")
    examples = "findExample(state.order[state.ratings.length], state.ratings.length)"
    for number in range(6):
        browser.make_ready()
        assert (
            browser.read("byId('position').textContent") == f"Example {number + 1} of 6"
        )
        right = browser.read(f"{examples}.score")
        assert f"is a {right} (" in browser.read("byId('hint').textContent")
        if number == 0:
            browser.press("3", "state.screen == 'message'")
            assert "You gave the example a 3 (fair)" in browser.read(
                "byId('message').innerText"
            )
            browser.driver.execute_script("byId('correct').click()")
            browser.make_ready()
        browser.press(str(right), f"state.ratings.length == {number + 1}")
    browser.wait_for("state.screen == 'message'")
    assert "These were the examples" in browser.read("byId('message').innerText")
    browser.press("\n", "state.screen == 'rating'")
    browser.make_ready()
    assert browser.read("byId('position').textContent") == "Image 1 of 18"
    assert browser.read("byId('hint').textContent") == ""


def test_magnification(address, browser):
    """Large windows showed x7, and half a device pixel blurred all images."""
    browser.start(address, "Ann")
    browser.make_ready()
    command = "Emulation.setDeviceMetricsOverride"
    for ratio, width, side, factor in (
        (1, 3840, 48, 1),
        (2, 400, 48, 2),
        (3, 390, 500, 2),
        (1, 390, 500, 1),
    ):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": ratio}
        browser.driver.execute_cdp_cmd(command, metrics | {"mobile": False})
        path = Path("study", browser.read("state.order[0]"))
        Image.new("RGB", (side, 40)).save(path)
        browser.driver.execute_script("location.reload()")
        browser.wait_for(f"innerWidth == {width} && state.factor == {factor}")
        browser.make_ready()
        box = browser.read("byId('image').getBoundingClientRect()")
        assert box["width"] * ratio == pytest.approx(side * factor, abs=0.05)
        for place in (box["left"] * ratio, box["top"] * ratio):
            assert place == pytest.approx(round(place), abs=0.05)


def test_slow_server(key, browser, tmp_path):
    """The image before stood under the words "an image like this one is a 5"."""
    release = threading.Event()
    slow = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path.strip("/") in slow:
                release.wait(30)
            super().do_GET()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=tmp_path / "study")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.start(f"http://127.0.0.1:{server.server_port}/index.html", "Ann")
        slow.append(browser.read("state.order[6]"))
        for _ in range(6):
            browser.rate(1)
        browser.press("1")
        assert browser.read("getComputedStyle(byId('image')).visibility") == "hidden"
        assert browser.read("state.ratings.length") == 6
        release.set()
        browser.wait_for("getComputedStyle(byId('image')).visibility == 'visible'")
        browser.rate(1)
        server.shutdown()
