"""The weights that come with the repository: their figures, and what they are for."""

import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

import evaluate
import metrics
from sample_data import PHOTOGRAPH
from support import checkpoints, test_images, weight_files
from support.degradation import SOURCE_BLUR, degrade
from support.pixels import enlarge_by_filter, to_uint8
from support.tiling import enlarge

BLURS = {"srresnet-bicubic": 0.0, "srresnet-source": SOURCE_BLUR}
BLURS |= {"srcnn-bicubic": 0.0, "espcn-bicubic": 0.0}
LEAST_GAIN = 1.0  # dB above bicubic, on a photograph that was not trained on
MAX_BYTES = 9e6


@pytest.mark.parametrize("name", BLURS)
def test_they_enlarge_a_photograph_better_than_bicubic(name):
    """Weights of a run that was cut short, or of another one, look just as good."""
    generator, path = weight_files.load_generator(name)
    assert path == weight_files.SHIPPED_FOLDER / f"{name}.weights.h5"
    source = matplotlib.cbook.get_sample_data(PHOTOGRAPH, asfileobj=False)
    hr = Image.open(source).convert("RGB").crop((128, 0, 384, 256))
    lr = np.asarray(degrade(hr, BLURS[name]))
    ours, theirs = to_uint8(enlarge(generator, lr)), enlarge_by_filter(lr)
    ours, theirs = (metrics.measure(sr, np.asarray(hr)) for sr in (ours, theirs))
    assert ours["psnr_y"] > theirs["psnr_y"] + LEAST_GAIN


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "dataset", "only", "psnr"), [
    ("srresnet-bicubic", "Set5", "003", 26.82),
    ("srresnet-source", "Set5", "003", 26.75),
    slow("srcnn-bicubic", "Set5", "", 30.38),
    slow("srcnn-bicubic", "Set14", "", 27.39),
    slow("espcn-bicubic", "Set5", "", 30.13),
    slow("espcn-bicubic", "Set14", "", 27.16),
    slow("srresnet-bicubic", "Set5", "", 31.16),
    slow("srresnet-bicubic", "Set14", "", 27.92),
    slow("srresnet-source", "Set5", "", 31.14),
    slow("srresnet-source", "Set14", "", 27.96),
])  # fmt: skip
def test_figures_of_the_model_card(photographs, name, dataset, only, psnr):
    """The model card would promise what users cannot reproduce, and a change of
    network, tiling or protocol would go unnoticed for months."""
    folder, scores = photographs / dataset, []
    (model,) = evaluate.load_models([name]).values()
    assert model.degradation.blur == BLURS[name]
    pairs, _ = test_images.find_pairs(
        folder / "HR", None if model.degradation.blur else folder / "LR"
    )
    for pair in pairs:
        if only in pair.name:
            image = test_images.load_pair(pair, model.degradation)
            scores.append(metrics.score(enlarge(model.generator, image.lr), image))
    assert metrics.mean_scores(scores)["psnr_y"] == pytest.approx(psnr, abs=0.03)


def test_they_are_the_files_of_the_model_card():
    """A download that was cut short, or a card of other weights, would go unnoticed."""
    card = (weight_files.SHIPPED_FOLDER / "README.md").read_text(encoding="utf-8")
    shipped = weight_files.list_shipped()
    assert set(shipped) >= set(BLURS)
    for name, file in shipped.items():
        assert f"{checkpoints.digest(file)}  {name}.weights.h5" in card
        assert file.stat().st_size < MAX_BYTES
