"""The Keras backends agree: losses, and checkpoints that change hands.

Run by itself, this file trains a tiny SRGAN and prints its losses:

    PYTHONPATH=. KERAS_BACKEND=jax python tests/test_backends.py THEIR_FOLDER OUR_FOLDER
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints import CheckpointFolder
from quiet import keras
from srgan import SRGAN

ROOT = Path(__file__).parent.parent
STEPS = 3
TOLERANCE = 1e-4  # of a loss, relative


def build():
    """A tiny SRGAN whose weights come from NumPy, so that all backends start alike."""
    gan = SRGAN(vgg_weights=None, num_residual_blocks=1, num_filters=8)
    random = np.random.default_rng(0)
    for model in (gan.generator, gan.discriminator, gan.vgg):
        for variable in model.weights:
            z = random.standard_normal(variable.shape)
            fan_in = max(1, np.prod(variable.shape[:-1]))
            variable.assign(
                {
                    "kernel": z / np.sqrt(fan_in),
                    "gamma": 1 + 0.1 * z,
                    "moving_variance": 1 + 0.1 * np.abs(z),
                }.get(variable.name, 0.1 * z)
            )
    return gan


def draw_batch(seed):
    random = np.random.default_rng(1000 + seed)
    hr = random.uniform(-1, 1, (2, 32, 48, 3)).astype("float32")
    return hr.reshape(2, 8, 4, 12, 4, 3).mean((2, 4)), hr


def take_step(gan, step):
    """One step of each kind; all losses, in order."""
    losses = gan.pre_train_on_batch(*draw_batch(3 * step))
    losses |= gan.train_discriminator_on_batch(*draw_batch(3 * step + 1))
    losses |= gan.train_generator_on_batch(*draw_batch(3 * step + 2))
    return list(losses.values())


def state(gan):
    models = {"generator": gan.generator, "discriminator": gan.discriminator}
    trainers = (gan.pretrainer, gan.discriminator_trainer, gan.combined)
    return models, {model.name: model.optimizer for model in trainers}


def train(folder):
    """Takes `STEPS` steps, saves, takes one more; the losses of all."""
    gan = build()
    losses = [take_step(gan, step) for step in range(STEPS)]
    CheckpointFolder(folder).save(STEPS, *state(gan), facts={})
    return [*losses, take_step(gan, STEPS)]


def go_on(folder):
    """Loads what `train` saved and takes the step after it; its losses."""
    gan = build()
    store = CheckpointFolder(folder)
    path, _ = store.newest()
    store.restore(path, *state(gan))
    return take_step(gan, STEPS)


def run(arguments, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_backends_agree_and_exchange_checkpoints(backend, tmp_path):
    """Paddings, batch-norm statistics, Adam and what `trainable` does are each
    backend's own; a run that moves to another machine would go on differently."""
    if backend == keras.backend.backend():
        pytest.skip(f"{backend} is the backend of these tests themselves")
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    ours = train(tmp_path / "ours")
    result = run(
        [__file__, tmp_path / "theirs", tmp_path / "ours"], KERAS_BACKEND=backend
    )
    assert result.returncode == 0, result.stderr
    theirs = json.loads(result.stdout)
    np.testing.assert_allclose(theirs["losses"], ours, rtol=TOLERANCE)
    np.testing.assert_allclose(theirs["resumed"], ours[-1], rtol=TOLERANCE)
    resumed = go_on(tmp_path / "theirs")
    np.testing.assert_allclose(resumed, ours[-1], rtol=TOLERANCE)


def test_unknown_backend_is_named():
    """A typing error ended in a traceback inside Keras."""
    result = run(["srgan.py", "--help"], KERAS_BACKEND="jacks")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "KERAS_BACKEND=jacks" in result.stderr
    assert "pip install tensorflow" in result.stderr


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_missing_tensorflow_is_made_do_without(backend):
    """Keras asks for tensorflow unless told otherwise, and fails without it."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    program = (
        "import importlib.util as util, os, sys\n"
        "os.environ.pop('KERAS_BACKEND', None)\n"
        "find = util.find_spec\n"
        f"util.find_spec = lambda name: name == {backend!r} or None\n"
        "import quiet\n"
        "print(quiet.choose_backend())\n"
    )
    result = run(["-c", program])
    assert result.stdout.split() == [backend], result.stderr


def test_commands_do_not_need_tensorflow():
    """One import of it by name, and no other backend could be used without it."""
    others = [name for name in ("jax", "torch") if importlib.util.find_spec(name)]
    if not others:
        pytest.skip("neither jax nor torch is installed")
    program = (
        "import sys\n"
        "sys.modules['tensorflow'] = None\n"
        "import benchmark, evaluate, sample_data, srgan, upscale\n"
    )
    result = run(["-c", program], KERAS_BACKEND=others[0])
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_commands_run_on_other_backends(backend, tmp_path, image_folder):
    """Losses that agree are of no use where the commands fail."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    images, weights = tmp_path / "images", tmp_path / "weights"
    training = [
        *("srgan.py", "--dataset", image_folder, "--crop-size", 16, "--batch-size", 2),
        *("--content-loss", "mse", "--pretrain-steps", 1, "--train-steps", 1),
        *("--weights-dir", weights, "--images-dir", images),
    ]
    trained = weights / "training_checkpoints"
    photo = next(image_folder.glob("*.png"))
    commands = (
        training,
        ["evaluate.py", "--weights", trained, "--hr", image_folder, "--output", images],
        ["upscale.py", photo, "--weights", trained, "--output", images],
    )
    for command in commands:
        result = run(command, KERAS_BACKEND=backend)
        assert result.returncode == 0, (command, result.stderr)
    assert (images / f"{photo.stem}_x4.png").is_file()


if __name__ == "__main__":
    their_folder, our_folder = sys.argv[1:]
    answer = {"losses": train(their_folder), "resumed": go_on(our_folder)}
    print(json.dumps(answer))
