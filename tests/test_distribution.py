"""Several workers train what one trains, and only the chief writes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import distribution
import srgan
from quiet import keras

ROOT = Path(__file__).parent.parent
TIMEOUT = 300  # seconds; starting TensorFlow three times takes most of them
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="workers need TensorFlow"
)

STEPS = """
import json, sys
from distribution import join_workers
workers = join_workers()
import numpy as np
from quiet import keras
dtype, discriminator_bn, path = sys.argv[1:]
keras.config.set_floatx(dtype)
keras.config.set_dtype_policy(dtype)
keras.utils.set_random_seed(0)
from srgan import SRGAN
with workers.scope():
    gan = SRGAN(vgg_weights=None, num_residual_blocks=1, num_filters=4,
                discriminator_bn=discriminator_bn)
random = np.random.default_rng(5)
for model in (gan.generator, gan.discriminator, gan.vgg):
    for variable in model.variables:
        z = 0.1 * random.standard_normal(variable.shape)
        z = abs(z) if "variance" in variable.name else z
        variable.assign(np.asarray(variable) + z)
size = 4 // workers.count
part = slice(workers.index * size, (workers.index + 1) * size)

def draw_batch():
    lr, hr = random.uniform(-1, 1, (4, 6, 5, 3)), random.uniform(-1, 1, (4, 24, 20, 3))
    return lr[part].astype(dtype), hr[part].astype(dtype)

losses = []
for step in range(3):
    losses += gan.pre_train_on_batch(*draw_batch()).values()
for step in range(3):
    losses += gan.train_discriminator_on_batch(*draw_batch()).values()
    losses += gan.probabilities.values()
    losses += gan.train_generator_on_batch(*draw_batch()).values()
np.savez(path, losses, *gan.generator.get_weights(), *gan.discriminator.get_weights())
"""

OVERFLOW = """
import sys
from distribution import join_workers
workers = join_workers()
import numpy as np
from quiet import keras
keras.config.set_dtype_policy("mixed_float16")
keras.utils.set_random_seed(0)
from srgan import SRGAN
with workers.scope():
    gan = SRGAN(content_loss="mse", num_residual_blocks=1, num_filters=4)
gan._freeze_batch_norm(True)  # synchronised statistics would spread the overflow
lr = np.zeros((2, 6, 5, 3), "float32")
before = gan.generator.get_weights()
huge = 1e30 if workers.index == 1 else 0.5
gan.pre_train_on_batch(lr, np.full((2, 24, 20, 3), huge, "float32"))
same = all(map(np.array_equal, before, gan.generator.get_weights()))
scales = [float(np.asarray(gan.pretrainer.optimizer.dynamic_scale))]
gan.pre_train_on_batch(lr, np.full((2, 24, 20, 3), 0.5, "float32"))
scales.append(float(np.asarray(gan.pretrainer.optimizer.dynamic_scale)))
print(same, scales[0] == 0.5 * gan.pretrainer.optimizer.initial_scale, len(set(scales)),
      any(np.any(a != b) for a, b in zip(before, gan.generator.get_weights())))
"""

COMMAND = """
import functools, sys
import networks, srgan
srgan.SRGAN = functools.partial(srgan.SRGAN, num_residual_blocks=1, num_filters=4)
networks.DISCRIMINATOR_BLOCKS = ((1, 2),) * 4
sys.exit(srgan.main(sys.argv[1:]))
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_workers(program, arguments_of, folder, count):
    """Starts `count` workers of one training, or one process without TF_CONFIG."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(count)]
    processes = []
    for index in range(count):
        task = {"type": "worker", "index": index}
        config = json.dumps({"cluster": {"worker": hosts}, "task": task})
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment |= {"TF_CONFIG": config} if count > 1 else {}
        arguments = [str(argument) for argument in arguments_of(index)]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *arguments],
                cwd=folder,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    return processes


def finish(processes):
    """Waits for processes; returns (exit code, stdout, stderr) of each."""
    try:
        results = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    return [(code, *texts) for code, texts in zip(codes, results, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "discriminator_bn", "tolerance"),
    [
        ("float64", "moving", 1e-9),
        ("float64", "batch", 1e-9),
        ("float32", "moving", 1e-4),
    ],
)
def test_two_workers_equal_one(tmp_path, dtype, discriminator_bn, tolerance):
    """Losses averaged wrongly, gradients summed, or batch norm of half a batch."""

    def path(count, index):
        return tmp_path / f"{count}-{index}.npz"

    for count in (1, 2):
        processes = start_workers(
            STEPS,
            lambda i, n=count: (dtype, discriminator_bn, path(n, i)),
            tmp_path,
            count,
        )
        for code, _, err in finish(processes):
            assert code == 0, err[-2000:]
    one = np.load(path(1, 0))
    for index in (0, 1):
        two = np.load(path(2, index))
        for name in one:
            np.testing.assert_allclose(
                two[name], one[name], rtol=tolerance, atol=tolerance
            )


@pytest.mark.slow
def test_the_command_trains_on_two_workers(tmp_path, image_folder):
    """Only the chief writes and speaks; the run equals that of one worker, and
    goes on by the same commands."""
    arguments = [
        *("--dataset", image_folder, "--crop-size", 16, "--batch-size", 2),
        *("--content-loss", "mse", "--pretrain-steps", 3, "--bn-batches", 2),
        *("--bn-freeze-step", 3),
    ]

    def run(folder, count, train_steps):
        (tmp_path / folder).mkdir(exist_ok=True)
        processes = start_workers(
            COMMAND,
            lambda _: (*arguments, "--train-steps", train_steps),
            tmp_path / folder,
            count,
        )
        results = finish(processes)
        assert [code for code, _, _ in results] == [0] * count, results
        log = tmp_path / folder / "weights" / "training_checkpoints" / "log.jsonl"
        return results, [json.loads(line) for line in log.read_text().splitlines()]

    run("two", 2, 1)
    results, two = run("two", 2, 2)
    assert "Going on from" in results[0][1]
    assert results[1][1] == ""
    run("one", 1, 1)
    _, one = run("one", 1, 2)
    assert [record["step"] for record in two] == [record["step"] for record in one]
    for ours, theirs in zip(two, one, strict=True):
        numbers = [name for name in theirs if isinstance(theirs[name], float)]
        for name in numbers:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_a_lost_worker_ends_the_others(tmp_path, image_folder):
    """The rest would wait for ever for the gradients of a dead worker."""
    arguments = [
        *("--dataset", image_folder, "--crop-size", 16, "--batch-size", 2),
        *("--content-loss", "mse", "--pretrain-steps", 100_000),
        *("--pretrain-interval", 20, "--phase", "pretrain"),
    ]
    processes = start_workers(COMMAND, lambda _: arguments, tmp_path, 2)
    checkpoints = tmp_path / "weights" / "pre_training_checkpoints"
    for line in processes[0].stdout:
        if line.startswith("pre-training 20/"):
            break
    processes[1].kill()
    (code, _, err), _ = finish(processes)
    assert code == 1
    assert "Another worker failed" in err
    assert "Traceback" not in err
    assert list(checkpoints.glob("step-*"))


@pytest.mark.slow
def test_an_overflow_of_one_worker_is_one_of_all(tmp_path):
    """One left the step out, and the other waited for its gradients for ever."""
    for code, out, err in finish(start_workers(OVERFLOW, lambda _: (), tmp_path, 2)):
        assert code == 0, err[-2000:]
        assert out.split() == ["True", "True", "1", "True"]


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_and_saves_all(tmp_path, image_folder):
    """The others failed, and what had been trained since the last report was lost."""
    arguments = [
        *("--dataset", image_folder, "--crop-size", 16, "--batch-size", 2),
        *("--content-loss", "mse", "--pretrain-steps", 100_000),
        *("--pretrain-interval", 100_000, "--phase", "pretrain"),
    ]
    processes = start_workers(COMMAND, lambda _: arguments, tmp_path, 2)
    for line in processes[0].stdout:
        if line.startswith("pre-training 0"):
            break
    time.sleep(10)  # for the first steps
    processes[1].terminate()
    results = finish(processes)
    folders = list((tmp_path / "weights" / "pre_training_checkpoints").glob("step-*"))
    step = max(int(folder.name.removeprefix("step-")) for folder in folders)
    assert step > 0
    for code, out, _ in results:
        assert code == 128 + signal.SIGTERM
        assert f"Stopped by SIGTERM. Step {step} of pre-training is saved." in out


def test_gpu_memory_grows_before_anything_else(monkeypatch):
    """TensorFlow refuses the setting once a strategy has looked at the devices."""
    import tensorflow as tf

    calls = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(
        tf.config.experimental,
        "set_memory_growth",
        lambda *arguments: calls.append(arguments),
    )

    def join_workers():
        calls.append("join")
        raise ValueError("enough for this test")

    monkeypatch.setattr(distribution, "join_workers", join_workers)
    assert srgan.main(["--content-loss", "mse"]) == 2
    assert calls == [("GPU", True), "join"]


def test_jax_leaves_gpu_memory_to_others_too(monkeypatch):
    """JAX takes three quarters of a GPU's memory at the start."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setenv(name, "")  # to have it taken back
    monkeypatch.delenv(name)
    distribution.grow_gpu_memory()
    assert os.environ[name] == "false"
    monkeypatch.setenv(name, "true")  # the user's own wish
    distribution.grow_gpu_memory()
    assert os.environ[name] == "true"


def test_own_failures_are_not_blamed_on_other_workers(monkeypatch):
    """Whoever reads "another worker failed" looks at the wrong machine."""
    import tensorflow as tf

    monkeypatch.setenv("TF_CONFIG", "{}")
    lost = tf.errors.UnavailableError(None, None, "Connection reset by peer")
    own = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    again = tf.errors.FailedPreconditionError(None, None, "this worker has restarted")
    fault = tf.errors.InternalError(None, None, "cuDNN launch failure")
    ring = tf.errors.InternalError(None, None, "Collective ops is aborted by: ...")
    assert all(map(distribution.is_worker_failure, (lost, again, ring)))
    assert not any(map(distribution.is_worker_failure, (own, fault)))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
    ],
)
def test_senseless_configurations_are_named(monkeypatch, text):
    """TensorFlow waits for ever for workers that do not exist."""
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG is not understood"):
        distribution.join_workers()


def test_one_process_needs_no_configuration(monkeypatch):
    """Nothing of this must be in the way of the usual case."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    workers = distribution.join_workers()
    assert (workers.is_chief, workers.count) == (True, 1)
    with workers.scope():
        assert not distribution.is_active()
    workers.wait()
