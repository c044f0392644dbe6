"""Imports Keras without the start-up messages of TensorFlow.

    from quiet import keras

TensorFlow 2.21 writes some messages before it reads its own log level, so
stderr itself is turned away while it is imported. Users who set
`TF_CPP_MIN_LOG_LEVEL` themselves see everything they asked for.
"""

import contextlib
import logging
import os
import sys

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@contextlib.contextmanager
def _stderr_turned_away():
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


if LOG_LEVEL in os.environ or "keras" in sys.modules:
    import keras
else:
    os.environ[LOG_LEVEL] = "3"  # errors reach users as Python exceptions
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with _stderr_turned_away():
        import keras

__all__ = ["keras"]
