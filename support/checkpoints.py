"""Training state that survives crashes.

    python -c "from support import checkpoints; print(checkpoints.find_newest('PATH'))"

A checkpoint is a folder, `step-00000500/`, written under another name, flushed to disk
and renamed, so that a folder of that name is whole. Its `state.json` holds the step,
the run's options and the SHA-256 digest of every file. Networks are Keras weight
files; optimizers are plain arrays (`.npz`, no pickle).
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from pathlib import Path

import h5py
import numpy as np

from networks import Network

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STEP_FOLDER = re.compile(r"step-(\d{8,})")
STATE_FILE = "state.json"
GENERATOR_FILE = "generator.weights.h5"
NETWORK_ATTRIBUTE = "network"  # of a weights file: which network it belongs to
NUM_KEPT = 3  # newest checkpoints; three of the adversarial phase take 0.3 GB
# Of a file system that lacks an optional call: network drives, containers.
UNSUPPORTED = {
    errno.EACCES,
    errno.EINVAL,
    errno.ENOLCK,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
}
REASON_LENGTH = 200  # characters of a library's error that are passed on


def save(folder, step, models, optimizers, state):
    """Writes `folder/step-<step>/`, whole or not at all, and removes the oldest."""
    for leftover in folder.glob(".step-*"):  # of a save that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    target = folder / f"step-{step:08d}"
    if target.exists():
        return
    temporary = folder / f".{target.name}"
    temporary.mkdir(parents=True)
    reserve = temporary / "reserve"
    for name, model in models.items():
        # HDF5 crashes the process on a full disk. A plain write raises `OSError`.
        reserve.write_bytes(bytes(2**20 + 4 * model.count_params()))
        reserve.unlink()
        save_weights(model, temporary / f"{name}.weights.h5")
    for name, optimizer in optimizers.items():
        variables = {}
        optimizer.save_own_variables(variables)
        np.savez(temporary / f"{name}.npz", **variables)
    digests = {file.name: digest(file) for file in sorted(temporary.iterdir())}
    state = state | {"step": step, "digests": digests}
    (temporary / STATE_FILE).write_text(json.dumps(state, indent=1))
    for path in (*temporary.iterdir(), temporary):
        flush(path)
    temporary.rename(target)
    flush(folder)
    for old in list_steps(folder)[:-NUM_KEPT]:
        _remove(folder / f"step-{old:08d}")


def _remove(path):
    """Removes a checkpoint that is no longer needed, if the system lets it."""
    try:
        # Renamed first: what is half removed must not look whole.
        renamed = path.rename(path.with_name(f".{path.name}"))
    except OSError as error:
        print(f"Cannot remove the old checkpoint {path}: {error.strerror}.")
    else:
        shutil.rmtree(renamed, ignore_errors=True)


def restore(path, models, optimizers):
    """Loads the networks and optimizers of checkpoint `path` in place."""
    for name, model in models.items():
        load_weights(model, path / f"{name}.weights.h5")
    for name, optimizer in optimizers.items():
        with np.load(path / f"{name}.npz", allow_pickle=False) as file:
            variables = dict(file)
        if len(variables) != len(optimizer.variables):  # Keras would only warn
            raise ValueError(
                f"{path} was saved with another --precision or learning-rate schedule. "
                "Use the same, or pass --restart."
            )
        optimizer.load_own_variables(variables)


def list_steps(folder):
    """Lists the steps of the checkpoints in a folder, in order."""
    found = (STEP_FOLDER.fullmatch(path.name) for path in Path(folder).glob("step-*"))
    return sorted(int(match[1]) for match in found if match)


def find_newest(folder, set_damaged_aside=False):
    """Returns `(path, state)` of the newest whole checkpoint, or `(None, None)`."""
    damaged = []
    for step in reversed(list_steps(folder)):
        path = Path(folder) / f"step-{step:08d}"
        try:
            state = read_state(path)
        except ValueError as error:
            damaged.append(path)
            print(f"{error} Using the one before it.")
        else:
            for path_aside in damaged if set_damaged_aside else ():
                set_aside(path_aside, "damaged")
            return path, state
    if damaged:
        raise ValueError(
            f"All checkpoints in {folder} are damaged. Pass --restart to start over."
        )
    return None, None


def read_state(path):
    """Reads a checkpoint's state after checking its files against their digests."""
    try:
        state = json.loads((path / STATE_FILE).read_text())
        for name, expected in state["digests"].items():
            if digest(path / name) != expected:
                raise ValueError(f"{name} has changed since it was written")
        return state | {"step": int(state["step"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"Checkpoint {path} is damaged ({error}).") from error


def digest(path):
    """Returns the SHA-256 digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path):
    """Writes a file's content, or a folder's names, through to the disk."""
    if os.name != "posix":  # Windows cannot open folders
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # a disk that is full or broken
            raise


def set_aside(path, label):
    """Renames a folder to `<label>-<name>-<time>`, and returns the new path."""
    now = time.strftime("%Y%m%d-%H%M%S")
    return path.rename(path.with_name(f"{label}-{path.name}-{now}"))


@contextlib.contextmanager
def lock(folder):
    """Keeps a second run out of `folder`, where the system has file locks."""
    with open(Path(folder, "run.lock"), "a") as file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"Another run writes to {folder}. Pass another --weights-dir."
            ) from error
        except OSError as error:
            print(
                f"Training without a lock, which the file system of {folder} does not "
                f"offer ({error.strerror}): start no second run there."
            )
        yield


def save_weights(model, path):
    """Writes a Keras weights file that also names the network it belongs to."""
    model.save_weights(path)
    if hasattr(model, "network"):
        with h5py.File(path, "a") as file:
            file.attrs[NETWORK_ATTRIBUTE] = json.dumps(model.network)


def load_weights(model, path):
    """Loads a `.weights.h5` or `.keras` file, or leaves the model unchanged."""
    before, fitting = model.get_weights(), read_network(path)
    if fitting and getattr(model, "network", fitting) != fitting:
        ours, theirs = (", ".join(f"{k} {v}" for k, v in network.items())
                        for network in (model.network, fitting))  # fmt: skip
        raise ValueError(
            f"{path} holds weights of another network ({theirs}; not {ours}). Pass "
            f"--network {fitting['name']}, or other weights."
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the error then says
            model.load_weights(path)
        if not all(np.isfinite(array).all() for array in model.get_weights()):
            raise ValueError("some weights are not finite")
    except Exception as error:  # a damaged file fails in many ways inside HDF5
        model.set_weights(before)
        raise ValueError(
            f"{path} does not hold weights of this {model.name}: "
            f"{str(error)[:REASON_LENGTH]}"
        ) from error


def read_network(path):
    """Returns the dict that a weights file describes its network by, or `{}`."""
    with contextlib.suppress(OSError), h5py.File(path) as file:
        text = file.attrs.get(NETWORK_ATTRIBUTE, "{}")
        try:
            return Network(**json.loads(text))._asdict() if text != "{}" else {}
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} belongs to an unknown network: {text}."
            ) from error
    return {}
