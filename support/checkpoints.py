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

import layers

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STEP_FOLDER = re.compile(r"step-(\d{8,})")
STATE_FILE = "state.json"
GENERATOR_FILE = "generator.weights.h5"
NETWORK_ATTRIBUTE = "network"  # of a weights file: which network it belongs to
FIXED_ATTRIBUTE = "has_fixed_statistics"  # of a weights file: those of its batch norm
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
            values = [file[str(number)] for number in range(len(file))]
        averages = find_averages(optimizer)
        if averages and len(values) == len(optimizer.variables) - len(averages):
            print(f"{path} has no average of weights: it starts from the weights.")
            values = _insert_averages(values, optimizer, models["generator"])
        if len(values) != len(optimizer.variables):  # Keras would only warn
            raise ValueError(
                f"{path} was saved with another --precision or learning-rate schedule. "
                "Use the same, or pass --restart."
            )
        store = {str(number): value for number, value in enumerate(values)}
        optimizer.load_own_variables(store)


def find_averages(optimizer):
    """Returns the optimizer's moving averages of weights, in the weights' order."""
    return [v for v in optimizer.variables if v.name.endswith("_average")]


def _insert_averages(values, optimizer, generator):
    """Returns an optimizer's values with weights where it expects their averages."""
    weights = iter([weight.numpy() for weight in generator.trainable_variables])
    values = iter(values)
    return [
        next(weights) if variable.name.endswith("_average") else next(values)
        for variable in optimizer.variables
    ]


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
            print(f"{error} Trying the one before it.")
        else:
            if set_damaged_aside:
                for path_aside in damaged:
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
    """Writes a Keras weights file that also describes the network it belongs to."""
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        if hasattr(model, "network"):
            file.attrs[NETWORK_ATTRIBUTE] = json.dumps(model.network._asdict())
        if layers.has_fixed_statistics(model):
            file.attrs[FIXED_ATTRIBUTE] = True


def load_weights(model, path):
    """Loads a `.weights.h5` or `.keras` file, or leaves the model unchanged.

    If the file says that batch-norm statistics were fixed, those of the model are.
    """
    before = model.get_weights()
    attributes = read_attributes(path)
    if hasattr(model, "network") and NETWORK_ATTRIBUTE in attributes:
        _check_network(model.network._asdict(), attributes[NETWORK_ATTRIBUTE], path)
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
    if attributes.get(FIXED_ATTRIBUTE):
        layers.fix_statistics(model)


def read_attributes(path):
    """Returns what a weights file states about its network, as a dict."""
    attributes = {}
    with contextlib.suppress(OSError), h5py.File(path) as file:
        attributes = dict(file.attrs)
    text = attributes.get(NETWORK_ATTRIBUTE)
    if text is not None:
        try:
            attributes[NETWORK_ATTRIBUTE] = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} belongs to an unknown network: {text}."
            ) from error
    return attributes


def _check_network(ours, theirs, path):
    if ours == theirs:
        return
    ours_text, theirs_text = (
        ", ".join(f"{key} {value}" for key, value in network.items())
        for network in (ours, theirs)
    )
    hint = (
        f"--network {theirs['name']}, or other weights"
        if "name" in theirs
        else "other weights"
    )
    raise ValueError(
        f"{path} holds weights of another network ({theirs_text}; not {ours_text}). "
        f"Pass {hint}."
    )
