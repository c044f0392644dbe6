"""JAX: the commands run without TensorFlow, and each continues the other's runs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import networks
from support import checkpoints

ROOT = Path(__file__).parent.parent
TRAIN = "srgan.py --preset demo --crop-size 16 --batch-size 2 --learning-rate 1e-4 "
TRAIN += "--pretrain-interval 1 --initial-weights first.weights.h5 --dataset"
EVALUATE = "evaluate.py --weights weights/pre_training_checkpoints --json s.json --hr"
UPSCALE = "upscale.py a.png --weights weights/pre_training_checkpoints"


def run(backend, folder, command, *arguments):
    """Runs a command in a folder where, for JAX, TensorFlow cannot be imported."""
    shadow = folder / "without_tensorflow"
    shadow.mkdir(exist_ok=True)
    (shadow / "tensorflow.py").write_text("raise ImportError('not installed')")
    variables = {"KERAS_BACKEND": backend}
    variables |= {"PYTHONPATH": str(shadow)} if backend == "jax" else {}
    script, *flags = command.split()
    result = subprocess.run(
        [sys.executable, ROOT / script, *flags, *map(str, arguments)],
        env=os.environ | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_commands_run_on_jax(tmp_path, image_folder):
    """Paddings, Adam or batch norm would differ, or a command need TensorFlow."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("needs JAX: python -m pip install jax")
    generator = networks.build_generator(num_residual_blocks=4, num_filters=32)
    tf, logs = "tensorflow", []
    for runs in ({tf: 2}, {tf: 1, "jax": 2}, {"jax": 1, tf: 2}):  # backend: last step
        folder = tmp_path / "-".join(runs)
        folder.mkdir()
        checkpoints.save_weights(generator, folder / "first.weights.h5")
        for backend, step in runs.items():
            steps = ("--pretrain-steps", step, "--train-steps", 0)
            run(backend, folder, TRAIN, image_folder, *steps)
        log = folder / "weights" / "pre_training_checkpoints" / "log.jsonl"
        logs.append([json.loads(line) for line in log.read_text().splitlines()])
        assert [record.pop("phase") for record in logs[-1]] == ["pre_training"] * 3
        for record, expected in zip(logs[-1], logs[0], strict=True):
            assert record == pytest.approx(expected, rel=1e-3)
    run("jax", folder, TRAIN, image_folder, "--pretrain-steps", 2, "--train-steps", 1)
    assert checkpoints.list_steps(folder / "weights" / "training_checkpoints") == [1]

    shutil.copy(image_folder / "0.png", folder / "a.png")
    results = []
    for backend in (tf, "jax"):
        run(backend, folder, EVALUATE, image_folder)
        run(backend, folder, UPSCALE, "--overwrite")
        mean = json.loads((folder / "s.json").read_text())["mean"]
        results.append((mean, np.asarray(Image.open(folder / "a_x4.png")).astype(int)))
    (mean, picture), (expected_mean, expected_picture) = results
    for method, scores in mean.items():
        assert scores == pytest.approx(expected_mean[method], rel=1e-3)
    assert np.abs(picture - expected_picture).max() <= 1
