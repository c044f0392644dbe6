"""Imports Keras without the start-up messages of TensorFlow.

    from quiet import keras

TensorFlow 2.21 writes some messages before it reads its own log level, so
stderr itself is turned away while it is imported. Users who set
`TF_CPP_MIN_LOG_LEVEL` themselves see everything they asked for.

Keras takes tensorflow unless `KERAS_BACKEND` or its settings file name another
backend; where tensorflow is not installed, the one that is there is taken.
"""

import contextlib
import importlib.util
import json
import logging
import os
import sys
from pathlib import Path

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
BACKEND = "KERAS_BACKEND"
BACKENDS = ("tensorflow", "jax", "torch")  # those that can train


def choose_backend():
    """Finds the Keras backend to use, before Keras is imported.

    Returns:
        str, the one that `KERAS_BACKEND` or Keras's settings file names, if it
        is installed; without `KERAS_BACKEND`, else the first that is installed.

    Raises:
        SystemExit: if there is none; one line on stderr, exit code 2.
    """
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    wanted = os.environ.get(BACKEND) or _backend_of_settings()
    if wanted in installed:
        return wanted
    if installed and not os.environ.get(BACKEND):
        return installed[0]
    import command_line  # not needed otherwise

    command_line.fail(
        f"Expected one of {', '.join(BACKENDS)} as the backend of Keras, found "
        f"{BACKEND}={os.environ.get(BACKEND, '')} and installed: "
        f"{', '.join(installed) or 'none'}. Set {BACKEND} to an installed one, or "
        "run: pip install tensorflow"
    )


def _backend_of_settings():
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads((home / "keras.json").read_text()).get("backend")
    return None


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


if "keras" not in sys.modules:
    os.environ[BACKEND] = choose_backend()

if LOG_LEVEL in os.environ or "keras" in sys.modules:
    import keras
else:
    os.environ[LOG_LEVEL] = "3"  # errors reach users as Python exceptions
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with _stderr_turned_away():
        import keras

__all__ = ["keras"]
