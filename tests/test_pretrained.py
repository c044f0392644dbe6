"""The weights that come with the repository: their figures, and what they are for."""

import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

import evaluate
import metrics
from sample_data import PHOTOGRAPH
from support import checkpoints, test_images, weight_files
from support.pixels import enlarge_by_filter, to_uint8
from support.tiling import enlarge

LEAST_GAIN = 1.0  # dB above bicubic, on a photograph that was not trained on
MAX_BYTES = 9e6
# PSNR (Y) in dB of one image of Set5, and means as on the model card.
BUTTERFLY = {
    "srresnet-bicubic": 27.32,
    "srgan-bicubic": 25.70,
    "srresnet-source": 27.29,
    "srgan-source": 25.83,
    "srresnet-photo": 23.52,
    "srgan-photo": 22.97,
}
MEANS = {
    "srresnet-bicubic": {"Set5": 31.51, "Set14": 28.06},
    "srgan-bicubic": {"Set5": 29.69, "Set14": 26.85},
    "srresnet-source": {"Set5": 31.44, "Set14": 28.09},
    "srgan-source": {"Set5": 29.52, "Set14": 26.89},
    "srresnet-photo": {"Set5": 28.66, "Set14": 25.91},
    "srgan-photo": {"Set5": 27.93, "Set14": 25.41},
    "srcnn-bicubic": {"Set5": 30.38, "Set14": 27.39},
    "espcn-bicubic": {"Set5": 30.13, "Set14": 27.16},
}
SMOOTH = [name for name in MEANS if not name.startswith("srgan")]


@pytest.mark.parametrize("name", SMOOTH)
def test_they_enlarge_a_photograph_better_than_bicubic(name):
    """Weights of a run that was cut short, or of another one, look just as good."""
    (model,) = evaluate.load_models([name]).values()
    assert model.path == weight_files.SHIPPED_FOLDER / f"{name}.weights.h5"
    source = matplotlib.cbook.get_sample_data(PHOTOGRAPH, asfileobj=False)
    hr = Image.open(source).convert("RGB").crop((128, 0, 384, 256))
    lr = np.asarray(model.degradation.apply(hr, seed=[0]))
    ours = to_uint8(enlarge(model.generator, lr))
    theirs = enlarge_by_filter(lr)
    ours, theirs = (metrics.measure(sr, np.asarray(hr)) for sr in (ours, theirs))
    least = 0.0 if name.endswith("-photo") else LEAST_GAIN
    assert ours["psnr_y"] > theirs["psnr_y"] + least


def measure(folder, name, only=""):
    """Returns the mean PSNR (Y) of weights on the images whose name holds `only`."""
    (model,) = evaluate.load_models([name]).values()
    lr_folder = folder / "LR" if name.endswith("-bicubic") else None
    pairs, _ = test_images.find_pairs(folder / "HR", lr_folder)
    scores = []
    for pair in pairs:
        if only in pair.name:
            image = test_images.load_pair(pair, model.degradation)
            scores.append(metrics.score(enlarge(model.generator, image.lr), image))
    return metrics.mean_scores(scores)["psnr_y"]


@pytest.mark.parametrize("name", BUTTERFLY)
def test_weights_give_the_figure_of_one_image(photographs, name):
    """A change of network, tiling or protocol would go unnoticed for months."""
    psnr = measure(photographs / "Set5", name, only="003")
    assert psnr == pytest.approx(BUTTERFLY[name], abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEANS)
def test_figures_of_the_model_card(photographs, name):
    """The model card would promise what users cannot reproduce."""
    for dataset, expected in MEANS[name].items():
        assert measure(photographs / dataset, name) == pytest.approx(expected, abs=0.03)


def test_they_are_the_files_of_the_model_card():
    """A download that was cut short, or a card of other weights, would go unnoticed."""
    card = (weight_files.SHIPPED_FOLDER / "README.md").read_text(encoding="utf-8")
    shipped = weight_files.list_shipped()
    assert set(shipped) == set(MEANS)
    for name, file in shipped.items():
        assert f"{checkpoints.digest(file)}  {name}.weights.h5" in card
        assert file.stat().st_size < MAX_BYTES
