"""Training state that survives, and generator weights of every kind.

    python -c "import checkpoints; print(checkpoints.newest_step('weights'))"

A checkpoint is a folder, `step-00000500/`, written under another name, flushed
to disk and renamed, so that a folder of that name is whole. Its `state.json`
holds the step, the options and a SHA-256 digest of every other file. Networks
are Keras weight files; optimisers are plain arrays (`.npz`, no pickle).
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np

STEP_FOLDER = re.compile(r"step-(\d{8,})")
STATE_FILE = "state.json"
GENERATOR_FILE = "generator.weights.h5"
DIGESTS_FILE = "SHA256SUMS"  # beside weights that are shipped
LOCK_FILE = "run.lock"
NUM_KEPT = 3  # newest checkpoints; three of the adversarial phase are 0.3 GB
REASON_LENGTH = 200  # characters of a library's error that are passed on
MAX_WEIGHT_BYTES = 2**30  # a file that declares more is refused; VGG19 has 80 MB


class CheckpointFolder:
    """The checkpoints of one phase of training, in one folder.

    Args:
        folder: path, for example `weights/training_checkpoints`.
        num_kept: int >= 1, how many of the newest checkpoints are kept.
    """

    def __init__(self, folder, num_kept=NUM_KEPT):
        self.folder = Path(folder)
        self.num_kept = num_kept

    def save(self, step, models, optimizers, facts):
        """Writes a checkpoint, whole or not at all, and forgets the oldest.

        Args:
            step: int >= 0, the last finished step.
            models: dict of name to `keras.Model`, saved with their weights.
            optimizers: dict of name to built `keras.optimizers.Optimizer`.
            facts: dict of JSON values, returned by `restore`.

        Returns:
            The checkpoint's folder, a `Path`.

        Raises:
            OSError: if it cannot be written; earlier checkpoints are intact.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{step:08d}"
        if target.exists():  # a step's state never changes: it is there already
            return target
        temporary = self.folder / f".{target.name}.{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, model in models.items():
                model.save_weights(temporary / f"{name}.weights.h5")
            for name, optimizer in optimizers.items():
                np.savez(temporary / f"{name}.npz", **_optimizer_state(optimizer))
            digests = {path.name: digest(path) for path in temporary.iterdir()}
            state = {"step": step, "facts": facts, "digests": digests}
            (temporary / STATE_FILE).write_text(json.dumps(state, indent=1))
            for path in (*temporary.iterdir(), temporary):
                flush_to_disk(path)
            temporary.rename(target)
            flush_to_disk(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for old in self.steps()[: -self.num_kept]:
            shutil.rmtree(self.folder / f"step-{old:08d}", ignore_errors=True)
        return target

    def steps(self):
        """Lists the steps of the checkpoints that are there, in order."""
        if not self.folder.is_dir():
            return []
        found = (STEP_FOLDER.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def newest(self, warn=print, move_damaged=False):
        """Finds the newest whole checkpoint, passing over damaged ones.

        Args:
            warn: callable of one str, told of each damaged checkpoint.
            move_damaged: bool; if `True`, damaged ones are set aside under
                another name, so that they are not counted again.

        Returns:
            `(path, state)` of the checkpoint, or `(None, None)`.
        """
        for step in reversed(self.steps()):
            path = self.folder / f"step-{step:08d}"
            problem, state = inspect_checkpoint(path)
            if problem is None:
                return path, state
            message = f"{path} is damaged and not used ({problem})."
            if move_damaged:
                message += f" It was set aside as {set_aside(path, 'damaged').name}."
            warn(message)
        return None, None

    def restore(self, path, models, optimizers):
        """Puts a checkpoint's weights and optimiser states in place.

        Args:
            path: folder of a whole checkpoint, as `newest` returns it.
            models: dict as in `save`.
            optimizers: dict as in `save`; every optimiser is built.

        Raises:
            ValueError: if the files are of other networks or optimisers.
        """
        for name, model in models.items():
            load_weights(model, path / f"{name}.weights.h5")
        for name, optimizer in optimizers.items():
            with np.load(path / f"{name}.npz", allow_pickle=False) as arrays:
                _load_optimizer(optimizer, dict(arrays), path / f"{name}.npz")

    def clean(self):
        """Removes what a killed process left half-written."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.startswith(".step-"):
                    shutil.rmtree(path, ignore_errors=True)


def newest_step(folder):
    """Returns the newest step saved in a folder of checkpoints, or `None`."""
    steps = CheckpointFolder(folder).steps()
    return steps[-1] if steps else None


def inspect_checkpoint(path):
    """Checks a checkpoint's files against its digests, loading none of them.

    Args:
        path: folder of one checkpoint.

    Returns:
        `(problem, state)`: a str and `None`, or `None` and a dict with keys
        `"step"`, `"facts"` and `"digests"`.
    """
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        digests = dict(state["digests"])
        if not (isinstance(state["step"], int) and isinstance(state["facts"], dict)):
            return f"{STATE_FILE} is not what was written", None
        for name, expected in digests.items():
            if digest(path / name) != expected:
                return f"{name} has changed since it was written", None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}", None
    return None, state


def digest(path):
    """Returns the SHA-256 digest of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def flush_to_disk(path):
    """Asks the system to write a file or folder out before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path, label):
    """Renames a file or folder to `<label>-<its name>-<time>`, deleting nothing."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{label}-{path.name}-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{label}-{path.name}-{stamp}-{number}")
    path.rename(target)
    return target


def _optimizer_state(optimizer):
    """Returns an optimiser's variables, by name, as arrays."""
    return {key: np.asarray(v) for key, v in _optimizer_variables(optimizer).items()}


def _optimizer_variables(optimizer):
    # Under mixed_float16 Keras wraps the optimiser in one that scales the loss.
    variables = {}
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        variables["loss_scale"] = optimizer.dynamic_scale
        variables["loss_scale_steps"] = optimizer.step_counter
    for number, variable in enumerate((inner or optimizer).variables):
        variables[f"{number:04d}"] = variable
    return variables


def _load_optimizer(optimizer, arrays, path):
    variables = _optimizer_variables(optimizer)
    for name in ("loss_scale", "loss_scale_steps"):  # there in mixed_float16 only
        if name not in arrays or name not in variables:
            arrays.pop(name, None)
            variables.pop(name, None)
    expected = {name: tuple(v.shape) for name, v in variables.items()}
    if expected != {name: array.shape for name, array in arrays.items()}:
        raise ValueError(f"{path} holds the state of another optimiser or network.")
    for name, variable in variables.items():
        variable.assign(arrays[name])


# Generator weights -----------------------------------------------------------


def load_generator_weights(generator, path):
    """Loads a generator's weights from any supported kind of place.

    Nothing in the file is executed: of a `.keras` archive only the arrays are
    read, and their declared sizes are checked first.

    Args:
        generator: `keras.Model` of `build_generator`, changed in place.
        path: a folder of checkpoints or one checkpoint of ours, a
            `.weights.h5` or `.keras` file, or a TensorFlow checkpoint (its
            folder or prefix) written by the source script.

    Returns:
        The path that was read, a `Path`.

    Raises:
        FileNotFoundError: if there is nothing of the kind at `path`.
        ValueError: if it is damaged or holds another network.
    """
    path = Path(path)
    prefix = find_tensorflow_checkpoint(path)
    if prefix is not None:
        _load_tensorflow_checkpoint(generator, prefix)
        return path
    file = _find_weights_file(path)
    _check_shipped_digest(file)
    load_weights(generator, file)
    return file


def load_weights(model, path):
    """Loads a Keras weights file into a model of the same architecture.

    Args:
        model: built `keras.Model`, changed in place.
        path: a `.weights.h5` file, or a `.keras` archive.

    Raises:
        ValueError: if the file is damaged, absurd, or of another network.
    """
    path = Path(path)
    before = model.get_weights()
    # Keras passes over what a file lacks with a mere warning: what is not a number
    # afterwards was not in the file.
    model.set_weights([np.full_like(array, np.nan) for array in before])
    try:
        with _weights_of_archive(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_declared_size(file)
            model.load_weights(file)
        if not all(np.isfinite(array).all() for array in model.get_weights()):
            raise ValueError("some weights are missing or not finite")
    except Exception as error:  # a damaged file fails in many ways inside HDF5
        model.set_weights(before)
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise ValueError(
            f"{path} does not hold weights of this {model.name}: {reason}. Expected "
            "a whole file of the same network."
        ) from error


def check_declared_size(path):
    """Refuses an HDF5 file that declares more than `MAX_WEIGHT_BYTES`.

    Args:
        path: HDF5 file. Only its headers are read.

    Raises:
        ValueError: if the arrays would not fit, or lie outside the file.
        OSError: if it is no HDF5 file.
    """
    sizes = []

    def measure(name):
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{name} is a link, which weights never need")
        entry = file.get(name)
        if isinstance(entry, h5py.Dataset):
            if entry.external:
                raise ValueError(f"{name} lies in another file")
            sizes.append(entry.size * entry.dtype.itemsize)

    with h5py.File(path, "r") as file:
        file.visit_links(measure)
    if sum(sizes) > MAX_WEIGHT_BYTES:
        raise ValueError(
            f"it declares {sum(sizes) / 2**30:.1f} GiB of arrays; "
            f"at most {MAX_WEIGHT_BYTES / 2**30:.0f} GiB are read"
        )


@contextlib.contextmanager
def _weights_of_archive(path):
    """Yields the HDF5 file itself, or the one in a `.keras` archive."""
    if path.suffix != ".keras":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        member = archive.getinfo("model.weights.h5")
        if member.file_size > MAX_WEIGHT_BYTES:
            raise ValueError(f"it unpacks to {member.file_size / 2**30:.1f} GiB")
        yield Path(archive.extract(member, folder))


def _find_weights_file(path):
    if path.is_dir():
        newest, _ = CheckpointFolder(path).newest()
        if newest is not None:
            return newest / GENERATOR_FILE
        if (path / GENERATOR_FILE).is_file():
            return path / GENERATOR_FILE
        raise FileNotFoundError(
            f"No weights in the folder {path}: expected step-* checkpoints, "
            f"{GENERATOR_FILE} or a TensorFlow checkpoint."
        )
    if not path.exists():
        raise FileNotFoundError(f"No weights at {path}: there is no such file.")
    if not path.name.endswith((".weights.h5", ".keras")):
        raise ValueError(
            f"{path} is not a weights file: expected a name ending in .weights.h5 "
            "or .keras, or a folder of checkpoints."
        )
    return path


def _check_shipped_digest(file):
    """Compares a file with the list of digests that lies beside it, if any."""
    sums = file.with_name(DIGESTS_FILE)
    if not sums.is_file():
        return
    digests = dict(reversed(line.split()) for line in sums.read_text().splitlines())
    if file.name in digests and digests[file.name] != digest(file):
        raise ValueError(
            f"{file} is damaged: its SHA-256 digest is not the one in {sums}. "
            f"Restore it, for example by: git checkout {file}"
        )


def find_tensorflow_checkpoint(path):
    """Returns the prefix of a TensorFlow checkpoint at `path`, or `None`.

    Source: `model.save_weights("./weights/training_checkpoints/")` in Keras 2
    writes `.index` and `.data-*` with an empty prefix, so the prefix is the
    folder's name with a slash.

    Args:
        path: folder or prefix.
    """
    path = Path(path)
    if path.is_dir():
        if (path / ".index").is_file():
            return f"{path}{os.sep}"
        prefixes = sorted(path.glob("*.index"), key=lambda file: file.stat().st_mtime)
        return str(prefixes[-1])[: -len(".index")] if prefixes else None
    return str(path) if Path(f"{path}.index").is_file() else None


def _load_tensorflow_checkpoint(generator, prefix):
    """Loads what Keras 2 wrote: keys `layer_with_weights-<N>/<variable>/...`."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ValueError(
            f"{prefix} is a TensorFlow checkpoint; reading it needs tensorflow."
        ) from error
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise ValueError(
            f"{prefix} is a damaged TensorFlow checkpoint: {reason}"
        ) from (error)
    values = []
    with_weights = [layer for layer in generator.layers if layer.weights]
    for number, layer in enumerate(with_weights):
        for variable in layer.weights:
            name = f"layer_with_weights-{number}/{variable.name}"
            key = f"{name}/.ATTRIBUTES/VARIABLE_VALUE"
            if tuple(shapes.get(key, ())) != tuple(variable.shape):
                raise ValueError(
                    f"{prefix} holds another network: {name} should be of shape "
                    f"{tuple(variable.shape)}, found {shapes.get(key)}."
                )
            values.append((variable, key))
    try:
        for variable, key in values:
            variable.assign(reader.get_tensor(key))
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise ValueError(
            f"{prefix} is a damaged TensorFlow checkpoint: {reason}"
        ) from (error)


# One run a folder ------------------------------------------------------------


class FolderLock:
    """Keeps a second run out of a weights folder; a context manager.

    Args:
        folder: path, made if missing.
        note: callable of one str, told when a dead run's lock is taken over.
    """

    def __init__(self, folder, note=print):
        self.path = Path(folder) / LOCK_FILE
        self.note = note

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": _process_start(os.getpid()),
        }
        while True:
            try:
                descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._take_over_or_raise()
                continue
            with os.fdopen(descriptor, "w") as file:
                json.dump(mine, file)
            return self

    def __exit__(self, *_):
        self.path.unlink(missing_ok=True)

    def _take_over_or_raise(self):
        try:
            owner = json.loads(self.path.read_text())
            host, process = owner["host"], owner["process"]
            started = owner["started"]
        except FileNotFoundError:
            return  # released meanwhile
        except (ValueError, KeyError, TypeError):
            host, process, started = socket.gethostname(), None, None
        is_here = host == socket.gethostname()
        if is_here and (process is None or _process_start(process) != started):
            self.note(f"Taking over {self.path}: process {process} is gone.")
            self.path.unlink(missing_ok=True)
            return
        raise BlockingIOError(
            f"Another run (process {process} on {host}) is writing to "
            f"{self.path.parent}. Wait for it, or pass another --weights-dir. If "
            f"that run is dead, delete {self.path}."
        )


def _process_start(process):
    """Returns something that tells a process from later ones of its number."""
    try:
        os.kill(process, 0)
    except PermissionError:
        pass  # it lives, and is someone else's
    except OSError:
        return None
    try:  # Linux: the start time, field 22, counted after the name's bracket
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "gone" if fields[0] == "Z" else fields[19]
    except OSError:
        return "running"
