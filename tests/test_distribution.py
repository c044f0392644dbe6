"""Several workers train what one trains; only the first writes; failures end all."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import srgan
from support import distribution

ROOT = Path(__file__).parent.parent
TIMEOUT = 300  # seconds
FLAGS = "--crop-size 16 --batch-size 2 --content-loss mse --pretrain-interval 20"
ALONE = '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'
BAD_CONFIGS = ["{", "{}", '{"cluster": {"worker": ["a:1"]}}']
BAD_CONFIGS += [ALONE.replace("0", "1"), ALONE.replace('"worker",', '"chief",')]
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="workers need TensorFlow"
)

STEPS = """
import sys
import numpy as np
import keras
from support import checkpoints, distribution
from presets import Recipe
from srgan import SRGAN
dtype, discriminator_bn, path = sys.argv[1:]
with distribution.join_workers() as workers:
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(0)
    with workers.scope():
        gan = SRGAN(
            vgg_weights=None,
            num_residual_blocks=1,
            num_filters=4,
            recipe=Recipe(discriminator_bn=discriminator_bn, ema=0.9),
        )
    random = np.random.default_rng(5)
    for model in (gan.generator, gan.discriminator, gan.vgg):
        for variable in model.variables:
            z = 0.1 * random.standard_normal(variable.shape)
            z = abs(z) if "variance" in variable.name else z
            variable.assign(np.asarray(variable) + z)
    size = 4 // workers.count
    part = slice(workers.index * size, (workers.index + 1) * size)

    def draw_batch():
        images = random.uniform(-1, 1, (4, 24, 20, 3)).astype(dtype)[part]
        return images.reshape(size, 6, 4, 5, 4, 3).mean((2, 4)), images

    assert workers.max(7 * workers.index) == 7 * (workers.count - 1)
    losses = []
    for step in range(3):
        losses += gan.pre_train_on_batch(*draw_batch()).values()
    for step in range(3):
        losses += gan.train_discriminator_on_batch(*draw_batch()).values()
        losses += gan.train_generator_on_batch(*draw_batch()).values()
    weights = gan.generator.get_weights() + gan.discriminator.get_weights()
    gan._swap_average(gan.combined)
    np.savez(path, losses, *weights, *gan.generator.get_weights())
"""

COMMAND = """
import sys
import networks, presets, srgan
for preset in presets.PRESETS.values():
    preset.update(num_residual_blocks=1, num_filters=4)
networks.DISCRIMINATOR_BLOCKS = ((1, 2),) * 4
sys.exit(srgan.main(sys.argv[1:]))
"""


def run_workers(program, arguments, folder):
    """Starts a process for each list of arguments; a single one has no TF_CONFIG."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in arguments]
    hosts = ["{}:{}".format(*each.getsockname()) for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index, values in enumerate(arguments):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": hosts}, "task": task})
        variables = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        variables |= {"TF_CONFIG": config} if len(arguments) > 1 else {}
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, values)],
            cwd=folder,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        processes.append(process)
    return processes


def finish(processes):
    """Waits for processes; returns (exit code, stdout, stderr) of each."""
    try:
        texts = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *t) for p, t in zip(processes, texts, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "discriminator_bn"),
    [("float64", "moving"), ("float64", "batch"), ("float32", "moving")],
)
def test_two_workers_equal_one(tmp_path, dtype, discriminator_bn):
    """Losses averaged wrongly, gradients summed, or batch norm of half a batch."""
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    for count in (1, 2):
        arguments = [(dtype, discriminator_bn, f"{count}{i}.npz") for i in range(count)]
        for code, _, error in finish(run_workers(STEPS, arguments, tmp_path)):
            assert code == 0, error[-2000:]
    one = np.load(tmp_path / "10.npz")
    for two in (np.load(tmp_path / "20.npz"), np.load(tmp_path / "21.npz")):
        for name in one:
            np.testing.assert_allclose(two[name], one[name], tolerance, tolerance)


@pytest.mark.slow
def test_the_command_trains_on_two_workers(tmp_path, image_folder):
    """All would write, or a run of two workers take another course than one of one."""
    logs = {}
    for count in (2, 1):
        (folder := tmp_path / str(count)).mkdir()
        for steps in (1, 2):  # the second run resumes
            flags = (
                f"{FLAGS} --ema 0.5 --pretrain-steps 3 --bn-freeze-step 3 --train-steps"
            )
            flags = [*flags.split(), steps, "--dataset", image_folder]
            results = finish(run_workers(COMMAND, count * [flags], folder))
            assert [code for code, *_ in results] == [0] * count, results
        assert "Resuming from" in results[0][1]
        assert not any(out for _, out, _ in results[1:])
        log = folder / "weights" / "training_checkpoints" / "log.jsonl"
        logs[count] = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["step"] for record in logs[2]] == [0, 1, 2]
    for two, one in zip(logs[2], logs[1], strict=True):
        del two["phase"], one["phase"]
        assert two == pytest.approx(one, rel=1e-3, abs=1e-3)


def start_long_training(tmp_path, image_folder):
    """Starts two workers, and waits for their 20th step."""
    flags = ["--dataset", image_folder, "--pretrain-steps=99999", "--train-steps=0"]
    workers = run_workers(COMMAND, 2 * [flags + FLAGS.split()], tmp_path)
    assert any(line.startswith("pre_training 20:") for line in workers[0].stdout)
    return workers


@pytest.mark.slow
def test_a_lost_worker_ends_the_others(tmp_path, image_folder):
    """The rest would wait forever for the gradients of a dead worker."""
    workers = start_long_training(tmp_path, image_folder)
    workers[1].kill()
    (code, _, error), _ = finish(workers)
    assert code == 1
    assert re.fullmatch(r"-c: Another worker failed .*\n", error.splitlines(True)[-1])
    assert "Traceback" not in error
    assert list((tmp_path / "weights" / "pre_training_checkpoints").glob("step-*"))


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_and_saves_all(tmp_path, image_folder):
    """The others would fail, and what was trained since the last report be lost."""
    workers = start_long_training(tmp_path, image_folder)
    time.sleep(1)
    workers[1].terminate()
    results = finish(workers)
    assert [code for code, *_ in results] == [128 + signal.SIGTERM] * 2
    step = int(re.search(r"Saved step (\d+) of pre_training", results[0][1])[1])
    assert step > 20
    folder = tmp_path / "weights" / "pre_training_checkpoints"
    assert (folder / f"step-{step:08}").is_dir()


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_senseless_configurations_are_named(monkeypatch, text):
    """TensorFlow would wait forever for workers that do not exist."""
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="Cannot use TF_CONFIG"):
        distribution.join_workers().__enter__()


def test_what_several_workers_cannot_do(monkeypatch, capsys):
    """With float16, each worker would skip steps on its own; JAX would ignore it."""
    monkeypatch.setenv("TF_CONFIG", ALONE)
    with pytest.raises(SystemExit, match="2"):
        srgan.main(["--precision", "mixed_float16"])
    assert "--precision mixed_bfloat16 or float32" in capsys.readouterr().err
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="TF_CONFIG needs TensorFlow: unset it"):
        distribution.join_workers().__enter__()


def test_own_failures_are_not_blamed_on_other_workers(monkeypatch, capsys):
    """Whoever reads "another worker failed" looks at the wrong machine."""
    import tensorflow as tf

    monkeypatch.setenv("TF_CONFIG", ALONE)
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda: None)
    for kind, text, is_own in (
        (tf.errors.UnavailableError, "Connection reset by peer", False),
        (tf.errors.FailedPreconditionError, "this worker has restarted", False),
        (tf.errors.InternalError, "Collective ops is aborted by: ...", False),
        (tf.errors.ResourceExhaustedError, "OOM when allocating tensor", True),
        (tf.errors.InternalError, "cuDNN launch failure", True),
    ):
        expected = kind if is_own else SystemExit
        with pytest.raises(expected), distribution.join_workers():
            raise kind(None, None, text)
        assert ("Another worker failed" in capsys.readouterr().err) != is_own


def test_one_process_needs_no_configuration(monkeypatch):
    """The usual case would need a cluster."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with distribution.join_workers("mixed_float16") as workers:
        assert (workers.is_chief, workers.count, workers.max(5)) == (True, 1, 5)
        with workers.scope():
            assert not distribution.is_active()
        workers.wait()
