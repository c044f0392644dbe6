"""Several devices, one training: TensorFlow's MultiWorkerMirroredStrategy.

    TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]},
                "task": {"type": "worker", "index": 0}}' python srgan.py --dataset PATH

One process a device, the same command in each, told apart by TF_CONFIG alone. Each
makes its own part of the same batch; gradients and batch-norm statistics are averaged
over all. The first, the chief, writes everything that is written.
"""

import contextlib
import functools
import json
import os
from typing import Any, NamedTuple

import numpy as np

from quiet import keras

MAX_AGREED = 64  # the largest number of a signal


class Workers(NamedTuple):
    """The processes of one training; `strategy` is `None` if there is just this one."""

    strategy: Any
    index: int
    count: int

    @property
    def is_chief(self):
        """Whether this process writes pictures, logs and checkpoints."""
        return self.index == 0

    def scope(self):
        """Returns the context in which networks and optimisers are built."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def wait(self):
        """Returns when all workers have come here."""
        self.agree(0)

    def agree(self, number):
        """Returns the largest of the numbers that all workers pass, when all have.

        Args:
            number: int in [0, `MAX_AGREED`].
        """
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


def join_workers():
    """Joins the training that TF_CONFIG describes; call it before anything else.

    Returns:
        `Workers`; without TF_CONFIG, this process alone.

    Raises:
        ValueError: if TF_CONFIG makes no sense, or Keras's backend is not
            TensorFlow.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return Workers(None, 0, 1)
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "TF_CONFIG is set, but only the TensorFlow backend trains on several "
            f"workers, and Keras runs on {keras.backend.backend()}. Unset one of them."
        )
    try:
        config = json.loads(text)
        hosts, task = config["cluster"]["worker"], config["task"]
        index = task["index"]
        if task["type"] != "worker" or not 0 <= index < len(hosts):
            raise ValueError("the task is none of the workers")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"TF_CONFIG is not understood ({type(error).__name__}: {error}). Expected "
            '{"cluster": {"worker": ["host:port", ...]}, '
            '"task": {"type": "worker", "index": 0}}.'
        ) from error
    import tensorflow as tf

    return Workers(tf.distribute.MultiWorkerMirroredStrategy(), index, len(hosts))


def grow_gpu_memory():
    """Has TensorFlow or JAX take memory of GPUs as needed, not at the start.

    To be called before anything else uses them; PyTorch does so anyway.
    """
    if keras.backend.backend() == "jax":
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # in use already, as in a notebook
            tf.config.experimental.set_memory_growth(gpu, True)


def is_active():
    """Tells whether networks are being built for several workers."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy()


def scope_of(model):
    """Returns the context in which a model was built, to build another one alike."""
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's models only
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def is_worker_failure(error):
    """Tells whether an error says that another worker has gone.

    Args:
        error: an exception.
    """
    if not os.environ.get("TF_CONFIG") or keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    gone = (
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.FailedPreconditionError,  # it has been started again
        tf.errors.UnavailableError,
    )
    # Others, such as a lack of memory or a fault of the GPU, are this worker's own.
    is_internal = isinstance(error, tf.errors.InternalError)
    return isinstance(error, gone) or (is_internal and _is_collective(str(error)))


def _is_collective(text):
    return "collective" in text.lower() or "NCCL" in text


class WorkerModel(keras.Model):
    """A functional model whose losses several workers can average.

    `train_on_batch` averages over workers along the first axis, so that each loss
    needs one: without it, it fails with "Invalid reduction dimension 0".
    """

    def train_step(self, data):
        """Trains on this worker's part; returns a dict of losses of shape (1,)."""
        losses = super().train_step(data)
        return {name: keras.ops.reshape(loss, (1,)) for name, loss in losses.items()}


class SharedLossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Leaves a step out on all workers where gradients of any are not finite.

    Keras's own looks at this worker's gradients alone, before they are averaged: one
    worker would leave out the step in which the others wait for its gradients.
    """

    def check_finite(self, grads):
        """Tells whether the gradients of all workers are finite."""
        import tensorflow as tf

        is_finite = super().check_finite(grads)
        num_overflows = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, tf.cast(~is_finite, "float32")
        )
        return num_overflows == 0


def share_loss_scale(optimizer):
    """Wraps an optimizer for 16-bit floats, where several workers need it.

    Args:
        optimizer: `keras.optimizers.Optimizer`.

    Returns:
        It, or a `SharedLossScaleOptimizer` of it; Keras wraps others itself.
    """
    is_scaled = keras.config.dtype_policy().name == "mixed_float16"
    if is_scaled and is_active():
        return SharedLossScaleOptimizer(optimizer)
    return optimizer


def model_class():
    """Returns the class of models that are trained: `WorkerModel` or Keras's own."""
    return WorkerModel if is_active() else keras.Model
