"""Several devices, one training: TensorFlow's MultiWorkerMirroredStrategy.

    TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]},
                "task": {"type": "worker", "index": 0}}' python srgan.py --dataset PATH

One process per device runs the same command; TF_CONFIG tells them apart. Each makes its
own part of the same batch; gradients and batch-norm statistics are averaged over all.
The first worker, the chief, writes everything.
"""

import contextlib
import functools
import io
import json
import os
import sys
from typing import Any, NamedTuple

import keras
import numpy as np

import command_line

MAX_AGREED = 64  # the largest number of a signal


class Workers(NamedTuple):
    """The processes of one training; `strategy` is `None` if there is only this one."""

    strategy: Any = None
    index: int = 0
    count: int = 1

    @property
    def is_chief(self):
        return self.index == 0

    def scope(self):
        """Returns the context in which networks and optimizers are built."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def wait(self):
        """Returns when all workers have called it."""
        self.agree(0)

    def agree(self, number):
        """Returns the largest of the numbers in [0, `MAX_AGREED`] that workers pass."""
        if self.strategy is None:
            return number
        votes = np.zeros(MAX_AGREED + 1, "float32")
        votes[number] = 1
        return int(np.max(np.nonzero(_sum_over_workers(self.strategy)(votes))))


@functools.cache  # traced once
def _sum_over_workers(strategy):
    import tensorflow as tf

    @tf.function
    def sum_over_workers(values):
        return strategy.reduce("SUM", strategy.run(tf.identity, (values,)), axis=None)

    return sum_over_workers


@contextlib.contextmanager
def join_workers(precision="float32"):
    """Joins the training that TF_CONFIG describes, and yields `Workers`.

    Without TF_CONFIG, this process is alone. If another worker fails, the process ends
    with one line and exit code 1.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        yield Workers()
        return
    hosts, index = _read_config(text)
    if precision == "mixed_float16":  # each worker would scale its loss on its own
        raise ValueError("Several workers need --precision mixed_bfloat16 or float32.")
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    output = sys.stdout if index == 0 else io.StringIO()  # the chief prints for all
    try:
        with contextlib.redirect_stdout(output):
            yield Workers(strategy, index, len(hosts))
    except tf.errors.OpError as error:
        if not _is_worker_failure(error):
            raise
        command_line.fail(
            f"Another worker failed or cannot be reached: {str(error)[:300]} Run the "
            "same commands again to resume from the last checkpoint.",
            command_line.EXIT_FAILED,
        )


def _read_config(text):
    """Returns the list of hosts and this worker's index."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "TF_CONFIG is set, but Keras does not run on TensorFlow, which alone can "
            "train on several workers. Unset one of them."
        )
    with contextlib.suppress(ValueError, KeyError, TypeError):
        config = json.loads(text)
        hosts, task = config["cluster"]["worker"], config["task"]
        if task["type"] == "worker" and 0 <= task["index"] < len(hosts):
            return hosts, task["index"]
    raise ValueError(
        'Cannot use TF_CONFIG. It must be like {"cluster": {"worker": ["host:port", '
        '...]}, "task": {"type": "worker", "index": 0}}.'
    )


def _is_worker_failure(error):
    import tensorflow as tf

    names = ("Aborted", "Cancelled", "DeadlineExceeded", "Unavailable")
    names += ("FailedPrecondition",)  # it has been started again
    gone = tuple(getattr(tf.errors, f"{name}Error") for name in names)
    # Others, such as a lack of memory, are this worker's own.
    is_collective = "collective" in str(error).lower() or "NCCL" in str(error)
    is_internal = isinstance(error, tf.errors.InternalError)
    return isinstance(error, gone) or (is_internal and is_collective)


def is_active():
    """Returns whether models are being built for several workers."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def synchronize_batch_norm(*models):
    """Averages batch-norm statistics over workers, if there are several."""
    for model in models if is_active() else ():
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True


class WorkerModel(keras.Model):
    """A functional model whose losses several workers can average.

    `train_on_batch` averages over workers along the first axis, so that each loss needs
    one: without it, it fails with "Invalid reduction dimension 0".
    """

    def train_step(self, data):
        losses = super().train_step(data)
        return {name: keras.ops.reshape(loss, (1,)) for name, loss in losses.items()}


def model_class():
    """Returns the class of trained models: `WorkerModel` or Keras's own."""
    return WorkerModel if is_active() else keras.Model
