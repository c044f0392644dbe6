"""The command evaluate.py: pairing, protocol, scores, pictures, mistakes."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import evaluate
import losses
import metrics
import networks
from support import checkpoints, weight_files
from support.degradation import degrade
from support.pixels import enlarge_by_filter, to_float
from support.tiling import enlarge

# The source's generator in plain Keras 2, saved as the source does.
KERAS_2_GENERATOR = """
import sys, numpy as np, tf_keras as keras
from tf_keras.layers import *
def conv(x, filters, side=3, activation=None):
    return Conv2D(filters, side, padding="same", activation=activation)(x)
def norm(x):
    return BatchNormalization(momentum=0.8)(x)
lr = Input((None, None, 3))
x = skip = conv(lr, 64, 9, "relu")
for _ in range(16):
    x = Add()([norm(conv(norm(conv(x, 64, 3, "relu")), 64)), x])
x = Add()([norm(conv(x, 64)), skip])
for _ in range(2):
    x = Activation("relu")(UpSampling2D(2)(conv(x, 256)))
model = keras.Model(lr, conv(x, 3, 9, "tanh"))
draw = np.random.default_rng(1).normal
model.set_weights([w + draw(0, 0.01, w.shape) for w in model.get_weights()])
model.save_weights(sys.argv[1] + "/")
np.save(sys.argv[2], model.predict(np.load(sys.argv[2]), verbose=0))
"""


def save_checkpoint(folder, options, **models):
    models["generator"] = networks.build_generator(1, 4)
    checkpoints.save(folder, 7, models, {}, {"options": options})
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command with small networks; returns exit code, stdout and stderr."""
    for folder in ("work", "shipped"):
        (tmp_path / folder).mkdir()
    for name in ("srresnet-bicubic", "srresnet-source"):
        path = tmp_path / "shipped" / f"{name}.weights.h5"
        checkpoints.save_weights(networks.build_generator(1, 4), path)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(weight_files, "SHIPPED_FOLDER", tmp_path / "shipped")

    def run_command(*arguments, default=("--weights", "srresnet-bicubic")):
        sys.stdout.reconfigure(errors="backslashreplace")  # as `command_line.run` does
        default = () if "--weights" in arguments else default
        try:
            code = evaluate.main([*default, *map(str, arguments)])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture
def pair_folders(tmp_path, image_folder):
    """Folders of two originals and their LR images."""
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    hr.mkdir()
    lr.mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(image_folder / name, hr / name)
        degrade(Image.open(hr / name), 0).save(lr / name)
    return hr, lr


def read_table(text):
    """Reads the printed table as {image: {label: [cells]}}; cells are PSNR to MSE."""
    table, current = {}, ""
    row = re.compile(r"^(.*?) {2,}(\S+)((?: +(?:[\d.]+|inf|-)){5})$", re.M)
    for name, label, cells in row.findall(text):
        current = name or current
        table.setdefault(current, {})[label] = cells.split()
    return table


def read_json():
    return json.loads(Path("s.json").read_text(encoding="utf-8"))


def test_table_and_json_agree(run, pair_folders):
    """One of the two would be rounded, averaged or labelled in its own way."""
    hr, lr = pair_folders
    names = ("srresnet-bicubic", "srresnet-source")
    arguments = ("--hr", hr, "--lr", lr, "--json", "s.json")
    code, out, error = run("--weights", *names, *arguments)
    assert (code, error) == (0, "")
    assert "4 px cut from each border. PSNR in dB. Y: luminance of ITU-R BT.601" in out
    assert f"LR images from {lr}." in out
    found, shown = read_json(), read_table(out)
    assert found["protocol"] in out
    assert found["weights"] == {
        n: str(p) for n, p in weight_files.list_shipped().items()
    }
    assert all(f"Weights {name}: {p}" in out for name, p in found["weights"].items())
    assert list(shown) == ["0", "1", "mean of 2"]
    for image, table in (found["images"] | {"mean of 2": found["mean"]}).items():
        assert list(table) == [*names, "bicubic", "nearest"]
        for label, scores in table.items():
            rounded = [f"{v:.{metrics.SCORES[k][1]}f}" for k, v in scores.items()]
            assert rounded == shown[image][label]
    rows = [found["images"][name]["bicubic"] for name in "01"]
    for key, mean in found["mean"]["bicubic"].items():
        assert mean == pytest.approx(np.mean([row[key] for row in rows]))
    bicubic = enlarge_by_filter(np.asarray(Image.open(lr / "0.png")))
    expected = metrics.measure(bicubic, np.asarray(Image.open(hr / "0.png")))
    assert rows[0].items() > expected.items()


def test_pictures_are_what_was_measured(run, pair_folders):
    """A figure would be of another image than the one that a reader can open."""
    hr, lr = pair_folders
    arguments = ("--hr", hr, "--lr", lr, "--tile", "5", "--json", "s.json")
    _, out, _ = run(*arguments, "--output", "out")
    assert all(f"out/{place}" in out for place in ("grid.png", "sheets", "enlarged"))
    enlarged = Path("out/enlarged/srresnet-bicubic")
    files = [*enlarged.glob("[01].png"), Path("out/grid.png")]
    files += [Path(f"out/sheets/{name}.png") for name in "01"]
    assert sorted(Path("out").rglob("*.png")) == sorted(files)
    original, saved = (np.array(Image.open(d / "0.png")) for d in (hr, enlarged))
    found = read_json()["images"]["0"]["srresnet-bicubic"]
    assert found.items() > metrics.measure(saved, original).items()
    generator, _ = weight_files.load_generator("srresnet-bicubic")
    sr = enlarge(generator, np.asarray(Image.open(lr / "0.png")))
    mse = float(np.mean(np.square(sr - to_float(original))))
    assert found["mse"] == pytest.approx(mse, rel=1e-4)


def test_own_pictures_are_not_measured(run, pair_folders, monkeypatch):
    """`--hr .` would measure the enlargements, sheets and grid of the run before."""
    monkeypatch.chdir(pair_folders[0])
    for output in (".", "images", "images", "other"):
        _, out, _ = run("--hr", ".", "--output", output)
        assert list(read_table(out)) == ["0", "1", "mean of 2"]


def test_gray_files_are_measured_as_gray(run, tmp_path):
    """The luminance of gray stored as RGB is squeezed: it gains 1.3 dB.

    A name that is not UTF-8 would lose all results.
    """
    folder, name = tmp_path / "gray", os.fsdecode(b"deep/caf\xe9")
    (folder / "deep").mkdir(parents=True)
    image = Image.effect_noise((51, 50), 60)  # sides are cut to multiples of 4
    image.save(folder / "a.png")
    image.convert("RGB").save(folder / f"{name}.png")
    code, out, _ = run("--hr", folder, "--json", "s.json", "--output", "out")
    assert code == 0
    assert "grayscale files are measured as they are" in out
    assert list(read_table(out)) == ["a (gray)", r"deep/caf\udce9", "mean of 2"]
    assert list(read_json()["images"]) == ["a", name]  # whoever reads it looks for it
    gray, color = read_json()["images"].values()
    for label, scores in gray.items():
        assert scores["psnr_y"] == scores["psnr_rgb"]
        assert color[label]["psnr_y"] == pytest.approx(scores["psnr_y"] + 1.3, abs=0.1)
    for file, mode in (("a", "L"), (name, "RGB")):
        saved = Image.open(f"out/enlarged/srresnet-bicubic/{file}.png")
        assert (saved.mode, saved.size) == (mode, (48, 48))


def test_means_are_over_finite_figures(run, image_folder):
    """One black page makes a mean of "inf", one icon one of NaN, neither is JSON."""
    Image.new("RGB", (48, 40)).save(image_folder / "black.png")
    Image.effect_noise((12, 12), 60).convert("RGB").save(image_folder / "icon.png")
    code, out, error = run("--hr", image_folder, "--json", "s.json")
    assert (code, error) == (0, "")
    found, shown = read_json(), read_table(out)
    for column, (key, name) in enumerate((("psnr_y", "black"), ("ssim_y", "icon"))):
        assert shown[name]["bicubic"][column] == "-"
        values = {n: scores["bicubic"][key] for n, scores in found["images"].items()}
        assert values.pop(name) is None
        mean = np.mean(list(values.values()))
        assert found["mean"]["bicubic"][key] == pytest.approx(mean)
    for label in found["mean"]:  # the number of images that its means are over
        assert f"{label}: mean of 5 of 6 images (PSNR Y, SSIM Y, PSNR RGB, " in out
    assert out.count("5 of 6") == len(found["mean"])


def test_pairs_are_compared_upright(run, pair_folders):
    """A good pair would be refused with a false size, or measured lying down."""
    hr, lr = pair_folders
    _, expected, _ = run("--hr", hr, "--lr", lr)
    exif = Image.Exif()
    exif[274] = 6
    for source, target in ((hr / "1.png", hr / "1.tif"), (lr / "0.png", lr / "0.png")):
        turned = Image.open(source).transpose(Image.Transpose.ROTATE_90)
        source.unlink()
        turned.save(target, exif=exif)
    code, out, error = run("--hr", hr, "--lr", lr)
    assert (code, error) == (0, "")
    assert read_table(out) == read_table(expected)


def test_what_does_not_fit_is_named_and_the_rest_measured(run, pair_folders):
    """One bad file would end the run, vanish silently, or be measured as black."""
    hr, lr = pair_folders
    for name in ("0.bmp", "alone.png", "misfit.png", "broken.png"):
        Image.open(hr / "0.png").save(hr / name)
    Image.new("RGB", (13, 10)).save(lr / "misfit.png")
    (lr / "broken.png").write_bytes((lr / "0.png").read_bytes()[:100])
    for dtype in ("float32", "uint32"):
        Image.fromarray(np.ones((40, 48), dtype)).save(hr / f"{dtype}.tif")
    for name in ("float32", "uint32", "other"):
        shutil.copy(lr / "0.png", lr / f"{name}.png")
    (lr / "phone.heic").touch()
    code, out, error = run("--hr", hr, "--lr", lr, "--json", "s.json")
    assert code == 1
    assert "mean of 2" in out
    for text in (
        f"0.png: {hr / '0.bmp'} has the same name",
        f"{hr / 'alone.png'}: no image of that name in {lr}",
        f"{lr / 'other.png'}: there is no original of that name",
        f"{lr / 'misfit.png'}: it has 13x10 px, which is not a quarter of {hr}",
        f"{lr / 'broken.png'}: ",
        f"{hr / 'float32.tif'}: its pixels are floating-point",
        f"{hr / 'uint32.tif'}: its pixels are floating-point, signed or 32-bit",
        f"{lr / 'phone.heic'}: HEIC files are not supported",
    ):
        assert text in error
    assert error.count("\n") == len(read_json()["skipped"]) == 8


def test_defaults(run, monkeypatch, pair_folders):
    """Without flags there would be nothing to measure, or not one's own training.

    A model trained on blurred images would be judged on sharp ones.
    """
    samples = pair_folders[0]
    monkeypatch.setattr(evaluate.sample_data, "write_sample_dataset", lambda: samples)
    _, out, _ = run(default=())
    assert "There is no folder datasets/img_test: measuring on the demo's" in out
    assert list(read_table(out)["0"])[:2] == ["srresnet-bicubic", "srresnet-source"]
    assert "srresnet-source was trained with blur 1.5, not blur 0." in out
    shutil.copytree(pair_folders[0], "datasets/img_test")
    save_checkpoint(Path("weights/training_checkpoints"), {"blur": 2.5})
    _, out, _ = run(default=())
    assert "Weights weights/training_checkpoints" in out
    assert "LR images made from datasets/img_test with blur 2.5." in out
    _, out, _ = run("--blur=0.5", default=())
    assert "was trained with blur 2.5, not blur 0.5." in out


def test_photographs(run, pair_folders, tmp_path):
    """Weights that were trained on damaged images would be judged on clean ones."""
    hr = pair_folders[0]
    folder = save_checkpoint(tmp_path / "run", {"degradation": "photo", "blur": 0.0})
    shutil.copy(
        "../shipped/srresnet-source.weights.h5", "../shipped/srgan-photo.weights.h5"
    )
    expected = "with degradation photo."
    tables = []
    for flags in (
        ("--weights", folder, "srgan-photo"),
        ("--weights", "srgan-photo"),
        ("--degradation", "photo"),
    ):
        _, out, _ = run("--hr", hr, *flags)
        assert f"LR images made from {hr} {expected}" in out
        tables.append(read_table(out)["0"]["bicubic"])
    assert tables[0] == tables[1] == tables[2]
    assert "srresnet-bicubic was trained with blur 0, not degradation photo." in out
    for flags in (("--degradation", "bicubic"), ("--blur", 0)):
        _, out, _ = run("--hr", hr, "--weights", folder, *flags)
        assert "was trained with degradation photo, not blur 0." in out
        assert read_table(out)["0"]["bicubic"] != tables[0]


def test_labels_tell_methods_apart(run, pair_folders):
    """A file named like a filter, or like a folder, would take the other's place."""
    save_checkpoint(Path("a"), {})
    for name in ("a", "bicubic"):
        checkpoints.save_weights(networks.build_generator(1, 4), f"{name}.weights.h5")
    paths = ("a", "a.weights.h5", "bicubic.weights.h5")
    code, out, _ = run("--hr", pair_folders[0], "--weights", *paths)
    assert code == 0
    assert len(read_table(out)["0"]) == len(paths) + 2


@pytest.mark.slow  # VGG19 has 20 million weights
def test_perceptual_scores(run, pair_folders, tmp_path):
    """The source's figure would be missing though its weights are at hand."""
    discriminator, vgg = networks.build_discriminator(4), tmp_path / "vgg.weights.h5"
    options = {"content_loss": "source"}
    folder = save_checkpoint(tmp_path / "run", options, discriminator=discriminator)
    keras.applications.VGG19(weights=None, include_top=False).save_weights(vgg)
    arguments = ("--hr", pair_folders[0], "--vgg-weights", vgg, "--json", "s.json")
    _, out, _ = run("--weights", folder, *arguments)
    assert "perceptual" in out
    ours, bicubic, _ = read_json()["mean"].values()
    # 0.001 x ln 2: probabilities of random weights are near 1/2, and features near 0.
    assert ours["perceptual"] == pytest.approx(0.00069, rel=0.5)
    assert "vgg54" in bicubic
    assert "perceptual" not in bicubic


def test_perceptual_is_the_loss_of_the_training(run, pair_folders, monkeypatch):
    """It was the source's for all weights, and another one in the training's log."""
    built = []

    def build_features(content_loss, vgg_weights):
        built.append(content_loss)
        images = keras.Input((None, None, 3))
        return keras.Model(images, images * (2.0 if content_loss == "vgg22" else 1.0))

    monkeypatch.setattr(losses, "build_content_features", build_features)
    paths = []
    for content_loss in ("vgg22", "unheard of"):
        # 6 filters, where the generator has 4: ESPCN's has its own width, too.
        discriminator = networks.build_discriminator(6)
        options = {"content_loss": content_loss, "num_filters": 6, "blur": 0.0}
        folder = Path(content_loss)
        paths.append(save_checkpoint(folder, options, discriminator=discriminator))
    hr = pair_folders[0]
    arguments = ("--hr", hr, "--vgg-weights", "x", "--json", "s.json")
    code, _, error = run("--weights", *paths, *arguments)
    assert (code, error, sorted(built)) == (0, "", ["vgg22", "vgg54"])
    means = read_json()["mean"]
    ours = means["vgg22"]
    content = 4 * ours["mse"] * losses.FEATURE_WEIGHT
    assert ours["perceptual"] == pytest.approx(content + 1e-3 * np.log(2), rel=0.01)
    assert ours["vgg54"] == pytest.approx(ours["mse"], rel=1e-4)
    assert all("perceptual" not in means[label] for label in means if label != "vgg22")


def test_scores_that_cannot_be_computed_are_left_out(run, pair_folders, tmp_path):
    """Half a download in Keras's cache, without being asked for, ended the command."""
    cached = tmp_path / "keras" / "models" / networks.VGG_WEIGHTS_FILE
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half")
    discriminator = networks.build_discriminator(6)  # of a training of another width
    del discriminator.network  # as in files of earlier versions
    save_checkpoint(Path("run"), {}, discriminator=discriminator)
    arguments = ("--hr", pair_folders[0], "--weights", "run")
    code, out, error = run(*arguments)
    assert code == 0
    assert "mean of 2" in out
    assert "VGG54" not in out
    first, second = error.splitlines()
    assert first.startswith("Leaving out perceptual: run/step-00000007/discriminator")
    assert second.startswith(f"Leaving out VGG54 and perceptual: {cached} holds no")
    code, _, error = run(*arguments, "--vgg-weights", cached)
    assert (code, "holds no VGG19 weights" in error) == (2, True)


def test_results_of_other_methods(run, pair_folders, tmp_path):
    """Papers publish results without some border, under names of their own.

    "mean of 2" stood above the mean of one image, or five lines said so.
    """
    hr, _ = pair_folders
    folder = tmp_path / "results"
    folder.mkdir()
    for name, left, right in (("0_SRCNN", 3, 3), ("1x4", 0, 6)):
        image = Image.open(hr / f"{name[0]}.png").convert("RGB")
        image = image.crop((left, left, image.width - right, image.height - right))
        image.point(lambda level: level ^ 1).save(folder / f"{name}.png")
    code, out, error = run("--hr", hr, "--results", f"A={folder}", default=())
    assert (code, error) == (0, "")
    width, height = Image.open(hr / "0.png").size
    size = f"{width - 6}x{height - 6} px"
    assert f"A, 0: measured on {size}, from row 3 and column 3." in out
    assert f"A, 1: measured on {size}, from row 0 and column 0." in out
    for name in "01":  # levels that are off by one
        assert read_table(out)[name]["A"][2] == "48.13"
    assert np.asarray(Image.open("images/evaluation/grid.png")).std() > 0

    (folder / "1x4.png").unlink()
    arguments = ("--hr", hr, "--results", f"A={folder}", "--json", "s.json")
    code, out, error = run(*arguments, "--weights", "srresnet-bicubic")
    labels = ["srresnet-bicubic", "bicubic", "nearest"]
    assert (code, list(read_json()["images"]["1"])) == (1, labels)
    assert out.count("of 2 images") == 1
    assert "A: mean of 1 of 2 images (all scores)" in out
    assert f"skipped {hr / '1.png'}: no image of that name in {folder}." in error

    Image.new("RGB", (8, 8)).save(folder / "0_SRCNN.png")
    code, out, error = run("--hr", hr, "--results", f"A={folder}", default=())
    assert code == 1
    assert "8x8 px, but the original" in error


def test_results_inside_the_originals_folder(run, image_folder):
    """They were measured as originals; and a swapped pair scored 10 dB in silence."""
    for name, other in (("0", "1"), ("1", "0"), ("2", "2")):
        path = image_folder / "methods" / "A" / f"{name}_A.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_folder / f"{other}.png", path)
    (image_folder / "3.png").unlink()
    arguments = ("--hr", image_folder, "--results", f"A={path.parent}")
    for _ in "12":
        output = image_folder / "scores"
        code, out, error = run(*arguments, "--output", output, default=())
        assert (code, list(read_table(out))) == (0, ["0", "1", "2", "mean of 3"])
        first, second = error.splitlines()
        assert first.startswith("A: the image paired with 0 resembles 1 more.")
        assert second.startswith("A: the image paired with 1 resembles 0 more.")


@pytest.mark.slow
def test_results_need_no_keras(pair_folders):
    """The import takes seconds, which results that exist do not need."""
    hr, lr = pair_folders
    program = (
        "import sys, evaluate; evaluate.main(sys.argv[1:]); "
        "print('keras' in sys.modules, 'tensorflow' in sys.modules)"
    )
    arguments = ("--hr", hr, "--results", f"A={hr}", "--output", lr / "out")
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.endswith("False False\n")


@pytest.mark.slow
def test_weights_of_the_source_script(tmp_path):
    """Users of the source would lose their trained models."""
    if importlib.util.find_spec("tf_keras") is None:
        pytest.skip("needs tf-keras: python -m pip install tf-keras")
    folder, exchange = tmp_path / "training_checkpoints", tmp_path / "images.npy"
    folder.mkdir()
    lr = np.random.default_rng(0).uniform(-1, 1, (1, 9, 7, 3)).astype("float32")
    np.save(exchange, lr)
    command = [sys.executable, "-c", KERAS_2_GENERATOR, folder, exchange]
    variables = os.environ | {"TF_USE_LEGACY_KERAS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=variables)
    assert (folder / ".index").is_file()  # the empty prefix
    (model,) = evaluate.load_models([folder]).values()
    sr = model.generator.predict_on_batch(lr)
    np.testing.assert_allclose(sr, np.load(exchange), atol=1e-4)


def test_mistakes_take_one_line(run, pair_folders, tmp_path):
    """A stack of Keras's internals, or usage text, would hide what is wrong."""
    hr, lr = pair_folders
    text, missing, other = (tmp_path / name for name in ("text", "missing", "other"))
    text.write_text("text")
    other.mkdir()
    (other / "cut.png").write_bytes((lr / "0.png").read_bytes()[:99])
    for reason, *arguments in (
        ("There are no weights", "--weights", missing),
        ("There is no folder", "--hr", missing),
        ("No image in", "--hr", "."),
        ("No image in .* can be measured", "--hr", other),
        ("There is no folder", "--lr", text),
        ("has the name of an original, such as 0", "--lr", other),
        ("Cannot write to", "--output", text),
        ("Cannot write to", "--json", text / "s.json"),
        ("it is a directory", "--json", other),
        ("There is no VGG19 weights file", "--vgg-weights", missing),
        ("holds no VGG19 weights", "--vgg-weights", text),
        ("--degradation and .* Omit one", "--lr", lr, "--degradation", "photo"),
        ("--blur are for .* Omit one", "--lr", lr, "--blur", 2),
        ("draws its own blur", "--degradation", "photo", "--blur", 2),
        ("'jpeg'", "--degradation", "jpeg"),
        ("'x' is not NAME=FOLDER", "--results", "x"),
        ("There is no folder", "--results", f"x={missing}"),
        ("The name 'bicubic' is taken", "--results", f"bicubic={lr}"),
    ):
        code, _, error = run("--hr", hr, *arguments)
        assert code == 2
        skipped = "skipped .*cut.png.*\n" if "can be" in reason else ""
        assert re.fullmatch(f"{skipped}evaluate.py: .*{reason}.*\n", error)


def test_missing_weights_are_noticed_first(run):
    """Sample images were drawn for a minute before the run ended."""
    code, out, error = run("--weights", "weights/training_checkpoints")
    assert code == 2
    assert "There are no weights weights/training_checkpoints" in error
    assert "Drawing" not in out
