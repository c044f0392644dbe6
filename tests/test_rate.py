"""Tests of rate.py: what raters see, what their scores give, and a real browser."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rate

OPINIONS = {"original": 4.4, "SRGAN": 3.6, "SRResNet": 3.3, "bicubic": 2.0}
METHODS = ("SRGAN", "SRResNet", "bicubic")


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


def calibrated(entry):
    return {"nearest": 1, "original": 5}[entry["method"]]


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
    results = [f"{method}={method}" for method in METHODS]
    assert rate.main(["make", "--hr", "hr", "--results", *results, "--overwrite"]) == 0
    assert not key["items"].keys() & {path.name for path in Path("study").iterdir()}


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
    tests = re.findall(r"(\w+) - (\w+): p = (\S+)", out)
    assert len(tests) == 6
    assert all(float(p) < 1e-6 for *pair, p in tests if "bicubic" in pair)


def test_intervals_by_hand():
    """Over scores instead of raters, the interval would be far too narrow."""
    items = {f"{k}": {"method": "A", "image": f"{k}", "set": None} for k in range(8)}
    panel = {name: dict.fromkeys(items, name) for name in (2, 3, 4)}
    row = rate.mean_opinion(rate.group_scores(panel, items))["A"]
    margin = 1.96 / np.sqrt(3)
    expected = {"mean": 3, "low": 3 - margin, "high": 3 + margin, "count": 24}
    assert row == pytest.approx(expected)
    groups = rate.group_scores({2: panel[2]}, items)
    assert rate.mean_opinion(groups)["A"]["low"] is None


def test_without_scipy(key, monkeypatch, capsys):
    """The table must come all the same."""
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    path = write_ratings(key, "a", lambda entry: 3)
    assert rate.main(["score", "study-key.json", path]) == 0
    out = capsys.readouterr().out
    assert "SciPy is not installed" in out
    assert "SRGAN" in out


def test_uncalibrated_raters_are_named(key, capsys):
    """Who gives nearest-neighbor images a 3 uses another scale."""
    paths = [write_ratings(key, "good", lambda e: calibrated(e)
             if e["part"] == "calibration" else 3)]  # fmt: skip
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


def test_bad_rating_files_are_named(key, capsys):
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
    }.items():
        path = write_ratings(key, "a", lambda entry: 3, "bad.json", **changes)
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
    "score hr/Set0/0.png x.json": "is not the key of a study",
    "score gone.json x.json": "No such file",
}.items())  # fmt: skip
def test_mistakes_take_one_line(folders, tmp_path, capsys, arguments, reason):
    """A traceback, or half a study, would hide which argument to change."""
    for folder in ("empty", "small/Set0", "old"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "old" / "index.html").write_text("before")
    Image.new("RGB", (4, 4)).save("small/Set0/0.png")
    with pytest.raises(SystemExit, match="2"):
        rate.main(arguments.split())
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert (tmp_path / "old" / "index.html").read_text() == "before"
    assert not (tmp_path / "study").exists() or not list((tmp_path / "study").iterdir())


def test_page_in_a_browser(key, tmp_path):
    """Rates all by keyboard, reloads halfway, and scores the downloaded file."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    from selenium.webdriver.support.wait import WebDriverWait

    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs the Debian packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--window-size=390,844"):
        options.add_argument(flag)
    prefs = {"download.default_directory": str(tmp_path)}
    options.add_experimental_option("prefs", prefs)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, service) as driver:

        def read(expression):
            return driver.execute_script(f"return {expression}")

        def press(keys, condition="true"):
            webdriver.ActionChains(driver).send_keys(keys).perform()
            WebDriverWait(driver, 10).until(lambda _: read(condition))

        driver.get((tmp_path / "study" / "index.html").as_uri())
        press("Ann Ö.\n", "shownAt > 0")
        order = read("state.order")
        entries = [key["items"][item] for item in order]
        assert [e["part"] for e in entries[:7]] == 6 * ["calibration"] + ["rating"]
        assert len(order) == 6 + 16 + 2
        for number, entry in enumerate(entries):
            if number == 8:
                press("1", "state.ratings.length == 9 && shownAt > 0")
                press("\ue003", "state.ratings.length == 8")  # Backspace
                driver.refresh()
            WebDriverWait(driver, 10).until(lambda _: read("shownAt > 0"))
            assert read("image.src.split('/').pop()") == order[number]
            zoom = read("image.width * devicePixelRatio / image.naturalWidth")
            assert zoom == int(zoom) >= 1
            score = "15"[entry["method"] == "original"]
            press(score, f"state.ratings.length == {number + 1}")
        press("\n")  # on the button to save
        path = tmp_path / "ratings-Ann-Ö-.json"
        WebDriverWait(driver, 10).until(lambda _: path.exists())
    data = read_json(path)
    assert [row["item"] for row in data["ratings"]] == order
    assert (data["rater"], data["study"]) == ("Ann Ö.", key["study"])
    assert all(0 < row["seconds"] < 10 for row in data["ratings"])
    assert rate.main(["score", "study-key.json", str(path), "--json", "s.json"]) == 0
    means = {k: row["mean"] for k, row in read_json("s.json")["mos"].items()}
    assert means == {"original": 5, **dict.fromkeys(METHODS, 1)}
