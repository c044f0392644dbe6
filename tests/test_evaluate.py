"""The command `evaluate.py`: pairing, protocol, tables, pictures, mistakes."""

import csv
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import checkpoints
import evaluate
import metrics
from data_loader import degrade, to_float
from networks import build_discriminator, build_generator
from quiet import keras
from tiling import enlarge

LOAD_GENERATOR = checkpoints.load_generator  # of the networks as users have them
NUM_SCORES = 5  # without VGG19: PSNR and SSIM of Y and RGB, MSE

# The source's generator in plain Keras 2, saved as the source does.
KERAS_2_GENERATOR = """
import sys, numpy as np, tf_keras as keras
from tf_keras import layers as L
folder, inputs = sys.argv[1], np.load(sys.argv[2])

def normalize(x):
    return L.BatchNormalization(momentum=0.8)(x)

def block(x):
    d = L.Activation("relu")(L.Conv2D(64, 3, padding="same")(x))
    d = normalize(L.Conv2D(64, 3, padding="same")(normalize(d)))
    return L.Add()([d, x])

def upsample(u):
    u = L.UpSampling2D(2)(L.Conv2D(256, 3, padding="same")(u))
    return L.Activation("relu")(u)

keras.utils.set_random_seed(1)
lr = L.Input((None, None, 3))
r = skip = L.Activation("relu")(L.Conv2D(64, 9, padding="same")(lr))
for _ in range(16):
    r = block(r)
c = L.Add()([normalize(L.Conv2D(64, 3, padding="same")(r)), skip])
sr = L.Conv2D(3, 9, padding="same", activation="tanh")(upsample(upsample(c)))
model = keras.Model(lr, sr)
random = np.random.default_rng(1)
model.set_weights([w + random.normal(0, 0.01, w.shape) for w in model.get_weights()])
model.save_weights(folder + "/")
np.save(sys.argv[2], model.predict(inputs, verbose=0))
"""


def build_small_generator():
    return build_generator(num_residual_blocks=1, num_filters=4)


def load_small_generator(path, _precision):
    generator = build_small_generator()
    return generator, checkpoints.load_generator_weights(generator, path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random small generators, as two weight files."""
    folder = tmp_path_factory.mktemp("weights")
    keras.utils.set_random_seed(0)
    for name in ("first", "second"):
        build_small_generator().save_weights(folder / f"{name}.weights.h5")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, weights):
    """Runs the command in an empty folder; returns exit code, stdout and stderr.

    The generator is a small one, since to trace the real one takes seconds.
    """
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(checkpoints, "load_generator", load_small_generator)

    def run_command(*arguments, weights_given=True):
        if weights_given and "--weights" not in arguments:
            arguments = ("--weights", str(weights / "first.weights.h5"), *arguments)
        try:
            code = evaluate.main([str(argument) for argument in arguments])
        except SystemExit as error:  # of the argument parser
            code = error.code
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture
def fails(run):
    """Checks that a command line is refused in one line with exit code 2."""

    def check(text, *arguments, **options):
        code, _, error = run(*arguments, **options)
        assert code == 2
        assert error.startswith("evaluate.py: ")
        assert error.count("\n") == 1
        assert text in error

    return check


@pytest.fixture
def pair_folders(tmp_path, image_folder):
    """Folders of two originals and their LR images."""
    folders = tmp_path / "hr", tmp_path / "lr"
    for folder in folders:
        folder.mkdir()
    for name in ("0", "1"):
        hr = Image.open(image_folder / f"{name}.png")
        hr.save(folders[0] / f"{name}.png")
        degrade(hr, 0).save(folders[1] / f"{name}.png")
    return folders


def read_table(text):
    """Reads the printed table as {image: {label: [cells]}}."""
    lines = text[text.index("\nimage ") :].splitlines()[2:]
    table, name = {}, None
    for line in lines[: lines.index("")]:
        cells = line.split()
        if not line.startswith(" "):
            name = " ".join(cells[: -NUM_SCORES - 1])
        table.setdefault(name, {})[cells[-NUM_SCORES - 1]] = cells[-NUM_SCORES:]
    return table


def save_checkpoint(folder, options, with_discriminator=False):
    models = {"generator": build_small_generator()}
    if with_discriminator:
        models["discriminator"] = build_discriminator()
    checkpoints.CheckpointFolder(folder).save(7, models, {}, {"options": options})
    return folder


def test_the_real_generator(run, monkeypatch, pair_folders, tmp_path):
    """All other tests have a small one: the command might not know the real one."""
    monkeypatch.setattr(checkpoints, "load_generator", LOAD_GENERATOR)
    path = tmp_path / "real.weights.h5"
    build_generator().save_weights(path)
    code, out, error = run("--weights", path, "--hr", pair_folders[0])
    assert (code, error) == (0, "")
    assert "mean of 2" in out


# What is measured ------------------------------------------------------------


def test_table_json_and_csv_agree(run, pair_folders, weights):
    """One of the three would be rounded, averaged or labelled in its own way."""
    hr, lr = pair_folders
    names = ("first", "second")
    paths = [weights / f"{name}.weights.h5" for name in names]
    arguments = ("--hr", hr, "--lr", lr, "--json", "a/s.json", "--csv", "s.csv")
    code, out, error = run("--weights", *paths, *arguments)
    assert (code, error) == (0, "")
    assert f"LR images from {lr}." in out
    for name, path in zip(names, paths, strict=True):
        assert f"Weights {name}: {path}" in out
    found = json.loads(Path("a/s.json").read_text())
    assert found["weights"] == dict(zip(names, map(str, paths), strict=True))
    assert "4 px cut from each border" in found["protocol"]
    tables = found["images"] | {"mean": found["mean"]}
    assert list(found["images"]) == ["0", "1"]
    shown = read_table(out)
    shown["mean"] = shown.pop("mean of 2")
    with open("s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4
    for row in rows:
        scores = tables[row["image"]][row["method"]]
        assert [float(row[key]) for key in scores] == list(scores.values())
        assert [
            f"{scores[key]:.{decimals}f}"
            for key, (_, decimals) in evaluate.SCORES.items()
            if key in scores
        ] == shown[row["image"]][row["method"]]
    for label in (*names, "bicubic", "nearest"):
        values = [found["images"][name][label]["psnr_y"] for name in "01"]
        assert found["mean"][label]["psnr_y"] == pytest.approx(np.mean(values))


def test_scores_are_those_of_the_saved_picture(run, pair_folders, weights):
    """A figure would be of another image than the one that a reader can open."""
    hr, lr = pair_folders
    run("--hr", hr, "--lr", lr, "--json", "s.json", "--output", "out")
    generator = build_small_generator()
    generator.load_weights(weights / "first.weights.h5")
    sr = enlarge(generator, to_float(Image.open(lr / "0.png")))
    original = np.asarray(Image.open(hr / "0.png"))
    found = json.loads(Path("s.json").read_text())["images"]["0"]["first"]
    saved = np.asarray(Image.open("out/enlarged/first/0.png"))
    assert found.items() > metrics.measure(saved, original).items()
    mse = float(np.mean(np.square(sr - to_float(original))))
    assert found["mse"] == pytest.approx(mse, rel=1e-5)


def test_pictures(run, pair_folders, weights):
    """Sheets, grid or enlarged images would be missing, or their place unknown."""
    hr, lr = pair_folders
    paths = [weights / f"{name}.weights.h5" for name in ("first", "second")]
    _, out, _ = run("--weights", *paths, "--hr", hr, "--lr", lr, "--output", "out")
    files = sorted(str(p.relative_to("out")) for p in Path("out").rglob("*.png"))
    expected = ["grid.png", "sheets/0.png", "sheets/1.png"]
    expected += [f"enlarged/{m}/{n}.png" for m in ("first", "second") for n in "01"]
    assert files == sorted(expected)
    assert all(place in out for place in ("out/grid.png", "out/sheets", "out/enlarged"))
    with Image.open("out/sheets/0.png") as sheet:  # 6 details side by side
        assert sheet.width > 6 * 240


def test_tiles_change_nothing(run, pair_folders):
    """`--tile` would not reach the network, or leave seams."""
    hr, lr = pair_folders
    for folder, tile in (("whole", ()), ("tiled", ("--tile", "5"))):
        run("--hr", hr, "--lr", lr, "--output", folder, *tile)
    whole, tiled = (
        np.asarray(Image.open(f"{folder}/enlarged/first/0.png")).astype(int)
        for folder in ("whole", "tiled")
    )
    assert np.abs(whole - tiled).max() <= 1


def test_unmatched_images_are_named_and_the_rest_measured(run, pair_folders):
    """One misnamed or misshapen file would end the run, or vanish silently."""
    hr, lr = pair_folders
    for name in ("alone", "misfit", "broken"):
        shutil.copy(hr / "0.png", hr / f"{name}.png")
    shutil.copy(lr / "0.png", lr / "other.png")
    Image.new("RGB", (13, 10)).save(lr / "misfit.png")
    (lr / "broken.png").write_bytes((lr / "0.png").read_bytes()[:60])
    code, out, error = run("--hr", hr, "--lr", lr, "--json", "s.json")
    assert code == 1
    assert f"{hr / 'alone.png'}: no image of that name in {lr}" in error
    assert f"{lr / 'other.png'}: no image of that name in {hr}" in error
    assert "misfit.png: expected 12x10 px, a quarter of" in error
    assert "received 13x10" in error
    assert "broken.png" in error
    assert "mean of 2" in out
    assert len(json.loads(Path("s.json").read_text())["skipped"]) == 4


def test_originals_are_cut_and_it_is_said_once(run, tmp_path):
    """Sizes that are no multiples of 4 are common, and used to fail."""
    folder = tmp_path / "odd"
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        Image.effect_noise((43, 38), 60).convert("RGB").save(folder / f"{name}.png")
    code, out, _ = run("--hr", folder, "--output", "out")
    assert code == 0
    assert out.count("Images cut at right and lower edge to a multiple of 4: 2.") == 1
    assert Image.open("out/enlarged/first/deep/b.png").size == (40, 36)


def test_grayscale_is_measured_as_such(run, tmp_path):
    """Luminance of grey taken for RGB is squeezed, and reads 1.3 dB too high."""
    folder = tmp_path / "gray"
    folder.mkdir()
    image = Image.effect_noise((48, 48), 60)
    image.save(folder / "a.png")
    run("--hr", folder, "--json", "s.json", "--output", "out")
    table = json.loads(Path("s.json").read_text())["images"]["a"]
    for scores in table.values():
        assert scores["psnr_y"] == scores["psnr_rgb"]
    saved = Image.open("out/enlarged/first/a.png")
    assert saved.mode == "L"
    expected = metrics.measure(np.asarray(saved), np.asarray(image))
    assert table["first"]["psnr_y"] == expected["psnr_y"]


def test_too_small_images_do_not_spoil_means(run, pair_folders):
    """SSIM of 12 px is not defined; JSON knows no NaN."""
    hr, _ = pair_folders
    Image.effect_noise((12, 12), 60).convert("RGB").save(hr / "tiny.png")
    code, out, _ = run("--hr", hr, "--json", "s.json")
    assert code == 0
    found = json.loads(Path("s.json").read_text())
    assert found["images"]["tiny"]["bicubic"]["ssim_y"] is None
    assert 0 < found["mean"]["bicubic"]["ssim_y"] < 1
    assert read_table(out)["tiny"]["bicubic"][1] == "-"


def test_published_bicubic(run, photographs, monkeypatch):
    """Figures could not be compared with the literature's."""

    class Stub:
        """Stands in for the network, which this is not about."""

        name = "stub"

    model = evaluate.Model(Stub(), Path("stub"), None, None)
    monkeypatch.setattr(evaluate, "load_models", lambda *_, **__: {"stub": model})
    monkeypatch.setattr(evaluate, "save_pictures", lambda *_: None)
    monkeypatch.setattr(
        evaluate,
        "enlarge",
        lambda _, lr, *__: to_float(evaluate.enlarge_by_filter(lr)),
    )
    folder = photographs / "Set5"
    code, *_ = run(
        "--hr", folder / "HR", "--lr", folder / "LR", "--json", "s.json"
    )  # fmt: skip
    assert code == 0
    found = json.loads(Path("s.json").read_text())
    with open(folder / "published_bicubic.csv", newline="") as file:
        published = list(csv.DictReader(file))
    assert len(published) == 5
    for row in published:
        scores = found["images"][Path(row["image"]).stem]["bicubic"]
        assert scores["psnr_y"] == pytest.approx(float(row["psnr_y"]), abs=0.1)
        assert scores["ssim_y"] == pytest.approx(float(row["ssim_y"]), abs=0.003)
    assert found["mean"]["bicubic"]["psnr_y"] == pytest.approx(28.42, abs=0.05)


# Weights, blur, VGG19 --------------------------------------------------------


def test_checkpoint_brings_its_blur(run, pair_folders, tmp_path, weights):
    """A model trained on blurred images would be judged on sharp ones."""
    folder = save_checkpoint(tmp_path / "training_checkpoints", {"blur": 1.5})
    hr, _ = pair_folders
    _, out, _ = run("--weights", folder, "--hr", hr)
    assert f"LR images made from {hr} with blur 1.5." in out
    _, out, _ = run("--weights", folder, "--hr", hr, "--blur", "0")
    assert "training_checkpoints was trained with blur 1.5, not 0." in out
    assert "with blur 0." in out
    _, out, _ = run("--hr", hr)
    assert "with blur 0." in out


def test_default_weights(
    run, fails, pair_folders, tmp_path, monkeypatch, weights, list_digests
):
    """The pre-trained weights would be measured for the trained ones, as once."""
    hr, _ = pair_folders
    monkeypatch.setattr(checkpoints, "SHIPPED_FOLDER", tmp_path / "none")
    fails("Train with: python srgan.py", "--hr", hr, weights_given=False)
    monkeypatch.setattr(checkpoints, "SHIPPED_FOLDER", weights)
    monkeypatch.setattr(checkpoints, "SHIPPED_BICUBIC", "first.weights.h5")
    list_digests(weights / "first.weights.h5")
    _, out, _ = run("--hr", hr, weights_given=False)
    assert f"Weights first: {weights / 'first.weights.h5'}" in out
    for name in ("pre_training_checkpoints", "training_checkpoints"):
        save_checkpoint(Path("weights") / name, {"blur": 0})
        _, out, _ = run("--hr", hr, weights_given=False)
        assert f"Weights {name}: " in out


def test_default_originals(run, monkeypatch, pair_folders):
    """Without any image of the user's, the command would have nothing to show."""

    class Folders:
        test = pair_folders[0]

    monkeypatch.setattr(evaluate.sample_data, "write_sample_dataset", Folders)
    code, out, _ = run()
    assert code == 0
    assert "No --hr, and datasets/img_test is not there: measuring on" in out
    shutil.copytree(pair_folders[0], "datasets/img_test")
    _, out, _ = run()
    assert "LR images made from datasets/img_test" in out


def test_labels_tell_weights_apart(tmp_path):
    """Two runs' `training_checkpoints` would be one row, or one take bicubic's."""
    paths = [tmp_path / run / "training_checkpoints" for run in "ab"]
    labels = evaluate._make_labels(paths)
    assert labels == ["a/training_checkpoints", "b/training_checkpoints"]
    assert evaluate._make_labels([Path("/x/bicubic")]) == ["x/bicubic"]
    assert evaluate._make_labels([Path("/x/a.weights.h5"), Path("/x/a")]) == [
        "x/a.weights.h5",
        "x/a",
    ]


def test_perceptual_loss(run, pair_folders, tmp_path):
    """The source's figure would be missing though its weights are at hand."""
    folder = save_checkpoint(tmp_path / "run", {}, with_discriminator=True)
    vgg = tmp_path / "vgg.weights.h5"
    keras.applications.VGG19(weights=None, include_top=False).save_weights(vgg)
    hr, _ = pair_folders
    code, out, error = run(
        "--weights", folder, "--hr", hr, "--vgg-weights", vgg, "--json", "s.json"
    )
    assert (code, error) == (0, "")
    assert "perceptual" in out
    mean = json.loads(Path("s.json").read_text())["mean"]
    adversarial = (mean["run"]["perceptual"] - mean["run"]["content"]) * 1000
    assert adversarial == pytest.approx(math.log(2), abs=0.3)  # verdicts near 1/2
    assert "perceptual" not in mean["bicubic"]
    assert mean["bicubic"]["content"] > 0


def test_damaged_vgg_weights_in_the_cache_do_no_harm(run, pair_folders, tmp_path):
    """A broken download would forbid measuring anything."""
    cache = tmp_path / "keras" / "models" / evaluate.networks.VGG_WEIGHTS_FILE
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"half a file")
    code, out, _ = run("--hr", pair_folders[0])
    assert code == 0
    assert "No perceptual loss: " in out


def test_weights_of_the_source_script(tmp_path):
    """Users of the source would lose their trained models."""
    if importlib.util.find_spec("tf_keras") is None:
        pytest.skip("needs tf-keras: python -m pip install tf-keras")
    folder, exchange = tmp_path / "training_checkpoints", tmp_path / "images.npy"
    lr = np.random.default_rng(0).uniform(-1, 1, (1, 9, 7, 3)).astype("float32")
    np.save(exchange, lr)
    folder.mkdir()
    command = [sys.executable, "-c", KERAS_2_GENERATOR, folder, exchange]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert (folder / ".index").is_file()  # the empty prefix
    model = evaluate.load_models([folder])["training_checkpoints"]
    sr = model.generator.predict_on_batch(lr)
    np.testing.assert_allclose(sr, np.load(exchange), atol=1e-5)
    assert np.std(sr) > 0.01  # says something
    index = folder / ".index"
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged TensorFlow checkpoint"):
        evaluate.load_models([folder])


# Mistakes --------------------------------------------------------------------


def test_bad_weights(fails, pair_folders, tmp_path, weights):
    """A stack of Keras's internals would hide what is wrong with which file."""
    arguments = ("--hr", pair_folders[0], "--weights")
    fails("there is no such file", *arguments, tmp_path / "missing.weights.h5")
    (tmp_path / "empty").mkdir()
    fails("No weights in the folder", *arguments, tmp_path / "empty")
    text = tmp_path / "notes.txt"
    text.write_text("weights?")
    fails("is not a weights file", *arguments, text)
    small = tmp_path / "small.weights.h5"
    build_generator(0, 2).save_weights(small)
    fails("does not hold weights of this generator", *arguments, small)
    cut = tmp_path / "cut.weights.h5"
    whole = (weights / "first.weights.h5").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    fails("does not hold weights of this generator", *arguments, cut)


def test_bad_folders(fails, pair_folders, tmp_path):
    """The network would be built before a typing error is told."""
    hr, _ = pair_folders
    fails("missing is not there. Pass another --hr", "--hr", tmp_path / "missing")
    fails("0.png is a file. Pass another --hr", "--hr", hr / "0.png")
    (tmp_path / "empty").mkdir()
    fails("found none. Pass another --hr", "--hr", tmp_path / "empty")
    fails("found none. Pass another --lr", "--hr", hr, "--lr", tmp_path / "empty")
    fails("found no pair. For example, ", "--hr", hr, "--lr", hr)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_text("no image")
    fails("found unusable ones, such as", "--hr", broken)


def test_only_unreadable_images(run, tmp_path):
    """A header that promises an image would lead to a table of nothing."""
    folder = tmp_path / "cut"
    folder.mkdir()
    Image.effect_noise((64, 64), 60).save(folder / "a.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:1000])
    code, _, error = run("--hr", folder)
    assert code == 2
    assert "skipped Cannot read" in error
    assert f"Expected readable images in {folder}, found none." in error


@pytest.mark.parametrize("flag", ["--output", "--json", "--csv"])
def test_place_that_cannot_be_written(fails, pair_folders, tmp_path, flag):
    """Minutes of work would be lost at the end."""
    file = tmp_path / "file"
    file.touch()
    fails(f"Pass another {flag}.", "--hr", pair_folders[0], flag, file / "inside")
    if flag != "--output":
        fails("it is a folder", "--hr", pair_folders[0], flag, tmp_path)


def test_bad_flags(fails, pair_folders):
    """argparse's usage text would bury the reason."""
    hr, _ = pair_folders
    fails("a whole number >= 1, received '0'", "--hr", hr, "--tile", "0")
    fails("a number >= 0, received '-1'", "--hr", hr, "--blur", "-1")


def test_bad_vgg_weights(fails, pair_folders, tmp_path, recwarn):
    """Another network's features would pass for VGG19's."""
    hr, _ = pair_folders
    missing = tmp_path / "missing.h5"
    fails("Pass another --vgg-weights", "--hr", hr, "--vgg-weights", missing)
    wrong = tmp_path / "wrong.weights.h5"
    build_generator(0, 2).save_weights(wrong)
    fails("does not hold VGG19 weights", "--hr", hr, "--vgg-weights", wrong)
    # Python prints warnings on stderr, where one line was promised.
    assert not [warning for warning in recwarn if warning.category is UserWarning]
