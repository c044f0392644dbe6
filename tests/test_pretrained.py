"""The weights that come with the repository: their figures, and what they are for."""

import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

import checkpoints
import evaluate
import metrics
from data_loader import SOURCE_BLUR
from pictures import degrade, enlarge_by_filter, to_uint8
from sample_data import PHOTOGRAPH
from tiling import enlarge

BLURS = {"srresnet-bicubic": 0.0, "srresnet-source": SOURCE_BLUR}
LEAST_GAIN = 1.0  # dB above bicubic, on a photograph that was not trained on
MAX_BYTES = 9e6


@pytest.mark.parametrize("name", BLURS)
def test_they_enlarge_a_photograph_better_than_bicubic(name):
    """Weights of a run that was cut short, or of another one, look just as good."""
    generator, path = checkpoints.load_generator(name)
    assert path == checkpoints.SHIPPED_FOLDER / f"{name}.weights.h5"
    source = matplotlib.cbook.get_sample_data(PHOTOGRAPH, asfileobj=False)
    hr = Image.open(source).convert("RGB").crop((128, 0, 384, 256))
    lr = np.asarray(degrade(hr, BLURS[name]))
    ours, theirs = to_uint8(enlarge(generator, lr)), enlarge_by_filter(lr)
    ours, theirs = (metrics.measure(sr, np.asarray(hr)) for sr in (ours, theirs))
    assert ours["psnr_y"] > theirs["psnr_y"] + LEAST_GAIN


def mean_psnr(folder, name, names=None):
    """Returns the mean PSNR of luminance of a dataset, or of some of its images."""
    (model,) = evaluate.load_models([name]).values()
    pairs, _ = evaluate.find_pairs(folder / "HR", None if model.blur else folder / "LR")
    scores = []
    for pair in pairs:
        if names is None or pair.name in names:
            image = evaluate.load_pair(pair, model.blur)
            scores.append(metrics.score(enlarge(model.generator, image.lr), image))
    return metrics.mean_scores(scores)["psnr_y"]


@pytest.mark.parametrize(("name", "psnr"), zip(BLURS, (26.82, 26.75), strict=True))
def test_figures_of_an_image(photographs, name, psnr):
    """A change of network, tiling or protocol would go unnoticed for months."""
    found = mean_psnr(photographs / "Set5", name, ["003"])
    assert found == pytest.approx(psnr, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "set5", "set14"),
    [("srresnet-bicubic", 31.16, 27.92), ("srresnet-source", 31.14, 27.96)],
)
def test_figures_of_the_model_card(photographs, name, set5, set14):
    """The model card would promise what users cannot reproduce."""
    for dataset, psnr in (("Set5", set5), ("Set14", set14)):
        found = mean_psnr(photographs / dataset, name)
        assert found == pytest.approx(psnr, abs=0.03), dataset


def test_they_are_the_files_of_the_model_card():
    """A download that was cut short, or a card of other weights, would go unnoticed."""
    card = (checkpoints.SHIPPED_FOLDER / "README.md").read_text(encoding="utf-8")
    shipped = checkpoints.list_shipped()
    assert set(shipped) >= set(BLURS)
    for name, file in shipped.items():
        assert f"{checkpoints.digest(file)}  {name}.weights.h5" in card
        assert file.stat().st_size < MAX_BYTES


def test_they_are_measured_with_the_blur_of_their_training():
    """With another one they are worse than bicubic."""
    models = evaluate.load_models(BLURS)
    assert {label: model.blur for label, model in models.items()} == BLURS
