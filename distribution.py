"""Several devices, one training: TensorFlow's MultiWorkerMirroredStrategy.

    TF_CONFIG='{"cluster": {"worker": ["host1:2222", "host2:2222"]},
                "task": {"type": "worker", "index": 0}}' python srgan.py --dataset PATH

One process a device, the same command in each, told apart by TF_CONFIG alone. Each
makes its own part of the same batch; gradients and batch-norm statistics are averaged
over all. The first, the chief, writes everything that is written.
"""

import contextlib
import json
import os
from typing import Any, NamedTuple

from quiet import keras


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
        if self.strategy is None:
            return
        import tensorflow as tf

        arrived = self.strategy.run(lambda: tf.ones((1,)))
        self.strategy.reduce("SUM", arrived, axis=0)


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
    """Has TensorFlow take memory of GPUs as it needs it, not all at the start.

    To be called before anything else uses TensorFlow; does nothing on other backends.
    """
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


def model_class():
    """Returns the class of models that are trained: `WorkerModel` or Keras's own."""
    return WorkerModel if is_active() else keras.Model
