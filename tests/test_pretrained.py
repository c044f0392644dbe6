"""Tests of the weights that come with the repository."""

import hashlib
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

import checkpoints
import evaluate
import metrics
from data_loader import SOURCE_BLUR, degrade, to_float, to_uint8
from sample_data import PHOTOGRAPH
from tiling import enlarge
from training_run import enlarge_by_filter

FOLDER = Path(__file__).parents[1] / "weights" / "pretrained"
BLURS = {"srresnet-bicubic": 0.0, "srresnet-source": SOURCE_BLUR}
MAX_BYTES = 9e6
LEAST_GAIN = 1.0  # dB above bicubic, on a photograph that was not trained on


@pytest.mark.parametrize("name", BLURS)
def test_they_enlarge_a_photograph_better_than_bicubic(name):
    """Weights of a half-done or a wrong run would look like weights as well."""
    file = FOLDER / f"{name}.weights.h5"
    generator, path = checkpoints.load_generator(file)
    assert path == file
    source = matplotlib.cbook.get_sample_data(PHOTOGRAPH, asfileobj=False)
    hr = np.asarray(Image.open(source).convert("RGB").crop((128, 0, 448, 256)))
    lr = np.asarray(degrade(Image.fromarray(hr), BLURS[name]))
    sr = to_uint8(enlarge(generator, to_float(lr)))
    bicubic = enlarge_by_filter(lr, Image.Resampling.BICUBIC)
    gain = metrics.measure(sr, hr)["psnr_y"] - metrics.measure(bicubic, hr)["psnr_y"]
    assert gain > LEAST_GAIN


def test_they_are_the_files_of_the_model_card():
    """A digest that lags behind would refuse good weights."""
    card = (FOLDER / "README.md").read_text()
    sums = (FOLDER / checkpoints.DIGESTS_FILE).read_text()
    files = sorted(FOLDER.glob("*.weights.h5"))
    assert [file.name for file in files] == [f"{name}.weights.h5" for name in BLURS]
    for file in files:
        line = f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}"
        assert line in sums
        assert line in card
        assert file.stat().st_size < MAX_BYTES


def test_damaged_ones_are_refused(tmp_path):
    """A download that was cut short, or tampered with, would enlarge all the same."""
    name = "srresnet-bicubic.weights.h5"
    content = bytearray((FOLDER / name).read_bytes())
    content[-1] ^= 1
    (tmp_path / name).write_bytes(content)
    sums = (FOLDER / checkpoints.DIGESTS_FILE).read_text()
    (tmp_path / checkpoints.DIGESTS_FILE).write_text(sums + "\n")
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        checkpoints.load_generator(tmp_path / name)


def test_without_the_list_of_digests_they_are_refused(tmp_path, monkeypatch):
    """Whoever tampers with the weights would just remove the list."""
    name = "srresnet-bicubic.weights.h5"
    (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    checkpoints.load_generator(tmp_path / name)  # a copy elsewhere is the user's
    monkeypatch.setattr(checkpoints, "SHIPPED_FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    for file in (tmp_path / name, Path(tmp_path.name) / name):
        with pytest.raises(ValueError, match=f"{checkpoints.DIGESTS_FILE} is missing"):
            checkpoints.load_generator(file)


def test_they_are_measured_with_the_blur_they_were_trained_with():
    """With another one they are worse than bicubic."""
    files = [FOLDER / f"{name}.weights.h5" for name in BLURS]
    models = evaluate.load_models(files)
    assert {label: model.blur for label, model in models.items()} == BLURS


def test_the_one_for_a_degradation_is_found():
    """The other one makes halos, or leaves the picture soft."""
    for name, blur in BLURS.items():
        assert checkpoints.shipped_weights(blur) == FOLDER / f"{name}.weights.h5"
