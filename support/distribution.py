"""Trains on several devices, by TensorFlow's MultiWorkerMirroredStrategy.

    TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]},
                "task": {"type": "worker", "index": 0}}' python srgan.py --dataset PATH

One process per device runs the same command; TF_CONFIG tells them apart. Each makes its
own part of the same batch; gradients and batch-norm statistics are averaged over all.
The first worker, the chief, writes everything.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from support import command_line

MAX_SIGNAL = 64  # the largest number of a signal
# Names in `tf.errors`. The last is raised after a worker was started again.
WORKER_FAILURES = (
    "AbortedError",
    "CancelledError",
    "DeadlineExceededError",
    "UnavailableError",
    "FailedPreconditionError",
)


class Workers(NamedTuple):
    """The processes of one training; `strategy` is `None` if there is only this one."""

    strategy: Any = None
    index: int = 0
    count: int = 1
    add_up: Callable = np.asarray  # sums an array over all workers

    @property
    def is_chief(self):
        return self.index == 0

    def scope(self):
        """Returns the context in which networks and optimizers are built."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def wait(self):
        """Waits until all workers have called it."""
        self.max(0)

    def max(self, number):
        """Returns the largest of the numbers in [0, `MAX_SIGNAL`] that workers pass."""
        votes = np.zeros(MAX_SIGNAL + 1, "float32")
        votes[number] = 1
        return int(np.max(np.nonzero(self.add_up(votes))))


@contextlib.contextmanager
def join_workers(precision="float32"):
    """Joins the training that TF_CONFIG describes, if it is set; yields `Workers`."""
    if not os.environ.get("TF_CONFIG"):
        yield Workers()
        return
    if keras.backend.backend() != "tensorflow":
        raise ValueError("TF_CONFIG needs TensorFlow: unset it, or KERAS_BACKEND.")
    if precision == "mixed_float16":  # each worker would scale its loss on its own
        raise ValueError("Several workers need --precision mixed_bfloat16 or float32.")
    index, count = _read_config()
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    @tf.function
    def add_up(values):
        return strategy.reduce("SUM", strategy.run(tf.identity, (values,)), axis=None)

    output = sys.stdout if index == 0 else io.StringIO()  # the chief prints for all
    try:
        with contextlib.redirect_stdout(output):
            yield Workers(strategy, index, count, add_up)
    except tf.errors.OpError as error:
        text = str(error).lower()
        is_internal = isinstance(error, tf.errors.InternalError)
        is_collective = is_internal and ("collective" in text or "nccl" in text)
        if type(error).__name__ not in WORKER_FAILURES and not is_collective:
            raise  # this worker's own failure, such as a lack of memory
        command_line.fail(
            f"Another worker failed or cannot be reached: {str(error)[:300]} Run the "
            "same commands again to resume from the last checkpoint.",
            command_line.EXIT_FAILED,
        )


def _read_config():
    """Returns this worker's index and the number of workers."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        config = json.loads(os.environ["TF_CONFIG"])
        count, task = len(config["cluster"]["worker"]), config["task"]
        if task["type"] == "worker" and 0 <= task["index"] < count:
            return task["index"], count
    raise ValueError(
        'Cannot use TF_CONFIG. It must be like {"cluster": {"worker": ["host:port", '
        '...]}, "task": {"type": "worker", "index": 0}}.'
    )


def is_active():
    """Returns whether models are being built for several workers."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def synchronize_batch_norm(*models):
    """Averages batch-norm statistics over workers, if there are several."""
    for model in models:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = is_active()


class WorkerModel(keras.Model):
    """A model whose losses have the axis along which Keras averages over workers."""

    def train_step(self, data):
        losses = super().train_step(data)
        return {name: keras.ops.reshape(loss, (1,)) for name, loss in losses.items()}


def model_class():
    """Returns the class of trained models: `WorkerModel` or Keras's own."""
    return WorkerModel if is_active() else keras.Model
