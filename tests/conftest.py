"""Fixtures: small folders of images, and a backend that is quiet and seeded."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: one thread each
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras


@pytest.fixture(autouse=True)
def _seed():
    """No test depends on the random numbers that another has drawn."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def float64():
    """Builds networks in float64, and gives float32 back afterwards."""
    if keras.backend.backend() == "jax" and "JAX_ENABLE_X64" not in os.environ:
        pytest.skip("JAX has no float64 unless JAX_ENABLE_X64=1")
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes longer than all the rest."""
    for name in ("save_grid", "save_training_curves", "save_model_diagram"):
        monkeypatch.setattr(f"support.figures.{name}", lambda *_, **__: None)


@pytest.fixture
def image_folder(tmp_path):
    """A folder of four smooth random images, 48 x 40 px."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        small = random.integers(0, 256, (6, 5, 3), dtype="uint8")
        image = Image.fromarray(small).resize((48, 40), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def photographs():
    """The folder of real photographs, or a skip that says what is missing."""
    folder = os.environ.get("SRGAN_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs photographs: set SRGAN_TEST_DATA to their folder")
    return Path(folder)
