"""Training state that survives, and generator weights of every kind.

    python -c "import checkpoints; print(checkpoints.default_weights())"

A checkpoint is a folder, `step-00000500/`, written under another name, flushed
to disk and renamed, so that a folder of that name is whole. Its `state.json`
holds the step, the options and the SHA-256 digests of every file and of itself.
Networks are Keras weight files; optimisers are plain arrays (`.npz`, no pickle).
"""

import collections
import contextlib
import hashlib
import io
import json
import math
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

from networks import build_generator
from quiet import keras

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STEP_FOLDER = re.compile(r"step-(\d{8,})")
STATE_FILE = "state.json"
GENERATOR_FILE = "generator.weights.h5"
DIGESTS_FILE = "SHA256SUMS"  # beside weights that are shipped
TRAINED_FOLDERS = ("weights/training_checkpoints", "weights/pre_training_checkpoints")
SHIPPED_BICUBIC = "srresnet-bicubic.weights.h5"  # for LR images made without blur
SHIPPED_SOURCE = "srresnet-source.weights.h5"  # with the source's
SHIPPED_FOLDER = Path(__file__).parent / "weights" / "pretrained"
LOCK_FILE = "run.lock"
LOSS_SCALE_NAMES = ("loss_scale", "loss_scale_steps")  # of mixed_float16's optimiser
NUM_KEPT = 3  # newest checkpoints; three of the adversarial phase are 0.3 GB
REASON_LENGTH = 200  # characters of a library's error that are passed on
MAX_WEIGHT_BYTES = 2**30  # a file that declares more is refused; VGG19 has 80 MB
MAX_STATE_BYTES = 2**20  # of a state.json, which has a few KB
READ_BYTES = 2**20  # at a time


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
            facts: dict of JSON values, returned by `newest`.

        Returns:
            The checkpoint's folder, a `Path`.

        Raises:
            OSError: if it cannot be written; earlier checkpoints are intact.
        """
        target = self.folder / f"step-{step:08d}"
        if target.exists():  # a step's state never changes: it is there already
            return target
        # Everything is made in memory first: HDF5 that meets a full disk crashes
        # the process when it ends.
        files = {f"{name}.weights.h5": encode_weights(m) for name, m in models.items()}
        for name, optimizer in optimizers.items():
            arrays = io.BytesIO()
            np.savez(arrays, **_optimizer_state(optimizer))
            files[f"{name}.npz"] = arrays.getvalue()
        digests = {
            name: hashlib.sha256(file).hexdigest() for name, file in files.items()
        }
        state = {"step": step, "facts": facts, "digests": digests}
        state["digest"] = _state_digest(state)
        files[STATE_FILE] = json.dumps(state, indent=1).encode()

        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{target.name}.{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, content in files.items():
                write_file(temporary / name, content)
            flush_folder(temporary)
            temporary.rename(target)
            for folder in (self.folder, self.folder.parent):
                flush_folder(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._forget_oldest()
        return target

    def _forget_oldest(self):
        for step in self.steps()[: -self.num_kept]:
            old = self.folder / f"step-{step:08d}"
            with contextlib.suppress(OSError):  # it costs room, and no more
                # Renamed first: a folder half removed must not have a whole one's name.
                shutil.rmtree(old.rename(old.with_name(f".{old.name}.old")))

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
                another name, as long as there is a whole one.

        Returns:
            `(path, state)` of the checkpoint, or `(None, None)`.
        """
        newest, newest_state, damaged = None, None, []
        for step in reversed(self.steps()):
            path = self.folder / f"step-{step:08d}"
            problem, state = inspect_checkpoint(path)
            if problem is None:
                newest, newest_state = path, state
                break
            damaged.append((path, problem))
        for path, problem in damaged:
            message = f"{path} is damaged and not used ({problem})."
            if move_damaged and newest is not None:
                message += f" It was set aside as {set_aside(path, 'damaged').name}."
            warn(message)
        return newest, newest_state

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
            _load_optimizer(optimizer, path / f"{name}.npz")

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
        with open(path / STATE_FILE, "rb") as file:
            state = json.loads(file.read(MAX_STATE_BYTES))
        if state.pop("digest") != _state_digest(state):
            return f"{STATE_FILE} has changed since it was written", None
        if not (isinstance(state["step"], int) and isinstance(state["facts"], dict)):
            return f"{STATE_FILE} is not what was written", None
        for name, expected in state["digests"].items():
            if Path(name).name != name or not (path / name).is_file():
                return f"{name} is missing", None
            if digest(path / name) != expected:
                return f"{name} has changed since it was written", None
    except OSError as error:
        return error.strerror or str(error), None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{STATE_FILE} is not what was written", None
    return None, state


def _state_digest(state):
    """Returns the digest of a checkpoint's state, which its file also holds."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def digest(path):
    """Returns the SHA-256 digest of a file, in hexadecimal.

    Args:
        path: file.

    Raises:
        OSError: if it cannot be read, or is too large to be one of ours.
    """
    if os.stat(path).st_size > MAX_WEIGHT_BYTES:
        raise OSError(f"{path} is larger than {MAX_WEIGHT_BYTES / 2**30:.0f} GiB")
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(READ_BYTES):
            sha.update(part)
    return sha.hexdigest()


def write_file(path, content):
    """Writes bytes to a file, and on to the disk itself.

    Args:
        path: file, replaced if it is there.
        content: bytes.

    Raises:
        OSError: if it cannot be written.
    """
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(path):
    """Asks the system to write a folder's names out to the disk."""
    if os.name != "posix":
        return  # Windows does so by itself
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
        scale = (optimizer.dynamic_scale, optimizer.step_counter)
        variables |= dict(zip(LOSS_SCALE_NAMES, scale, strict=True))
    for number, variable in enumerate((inner or optimizer).variables):
        variables[f"{number:04d}"] = variable
    return variables


def _load_optimizer(optimizer, path):
    variables = _optimizer_variables(optimizer)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            for name in LOSS_SCALE_NAMES:  # there in mixed_float16 only
                if name not in names or name not in variables:
                    names.discard(name)
                    variables.pop(name, None)
            if names != set(variables):
                raise ValueError("other names")
            arrays = {
                name: _read_array(archive, name, variable)
                for name, variable in variables.items()
            }
    except Exception as error:  # zipfile fails in many ways, too
        raise ValueError(
            f"{path} holds the state of another optimiser or network ({error})."
        ) from error
    for name, variable in variables.items():
        variable.assign(arrays[name])


def _read_array(archive, name, variable):
    """Reads one array of an `.npz`, once its header has said that it fits."""
    expected = np.asarray(variable)
    with archive.open(f"{name}.npy") as file:
        np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        # Backends count steps in int32 or int64.
        is_kind = dtype.kind == expected.dtype.kind and dtype.itemsize <= 8
        if is_fortran or shape != expected.shape or not is_kind:
            raise ValueError(f"{name} is {dtype} {shape}")
        content = file.read(expected.size * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(shape)


def encode_weights(model):
    """Returns what `model.save_weights` writes to a `.weights.h5` file.

    Keras itself can only write to the disk.

    Args:
        model: `keras.Model` of plain layers, none nested.

    Returns:
        bytes.
    """
    buffer, counts = io.BytesIO(), collections.Counter()
    with h5py.File(buffer, "w") as file:
        for layer in model.layers:
            # Keras counts layers by class, in snake case: batch_normalization_3.
            kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)
            kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
            name = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
            arrays = {}
            layer.save_own_variables(arrays)
            group = file.create_group(f"layers/{name}/vars")
            for key, array in arrays.items():
                group[key] = np.asarray(array)
    return buffer.getvalue()


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
    # The source's folders have the names of ours: where both are, ours is newer.
    if prefix is not None and newest_step(path) is None:
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


def check_vgg_weights(path):
    """Refuses a file of VGG19 weights before Keras reads it.

    Args:
        path: HDF5 file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no HDF5 file, or declares too much.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file of VGG19 weights at {path}.")
    try:
        check_declared_size(path)
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise ValueError(f"{path} does not hold VGG19 weights: {reason}.") from error


def check_declared_size(path):
    """Refuses an HDF5 file that declares more than `MAX_WEIGHT_BYTES`.

    Args:
        path: HDF5 file. Only its headers are read.

    Raises:
        ValueError: if the arrays would not fit, or lie outside the file.
        OSError: if it is no HDF5 file.
    """
    names, sizes = [], []
    with h5py.File(path, "r") as file:
        file.visit_links(names.append)
        for name in names:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name} is a link, which weights never need")
            entry = file[name]
            if not isinstance(entry, h5py.Dataset):
                continue
            if entry.external or entry.is_virtual:
                raise ValueError(f"{name} lies in another file")
            if entry.dtype.kind not in "fiu":
                raise ValueError(f"{name} is not of numbers")
            chunk = math.prod(entry.chunks or ())  # unpacked whole, if there is one
            sizes.append(max(entry.size, chunk) * entry.dtype.itemsize)
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
        if newest_step(path) is not None:
            raise ValueError(f"None of the checkpoints in {path} is whole.")
        if (path / STATE_FILE).is_file():
            problem, _ = inspect_checkpoint(path)
            if problem is not None:
                raise ValueError(f"The checkpoint {path} is damaged ({problem}).")
        if (path / GENERATOR_FILE).is_file():
            return path / GENERATOR_FILE
        raise FileNotFoundError(
            f"No weights in the folder {path}: expected step-* checkpoints (as in "
            "its training_checkpoints, if it is a --weights-dir), "
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
    """Compares a file with the list of digests beside it; shipped ones must have it."""
    sums = file.with_name(DIGESTS_FILE)
    if not sums.is_file():
        if file.parent.resolve() == SHIPPED_FOLDER.resolve():
            raise ValueError(
                f"{file} cannot be checked: {sums} is missing. Restore it, for "
                f"example by: git -C {file.parent} checkout {DIGESTS_FILE}"
            )
        return
    digests = {}
    for line in sums.read_text().splitlines():
        value, _, name = line.partition(" ")
        digests[name.strip().removeprefix("*")] = value  # sha256sum's two formats
    if file.name not in digests and file.name not in (SHIPPED_BICUBIC, SHIPPED_SOURCE):
        return
    if digests.get(file.name) != digest(file):
        raise ValueError(
            f"{file} is damaged: its SHA-256 digest is not the one in {sums}. "
            f"Restore it, for example by: git -C {file.parent} checkout {file.name}"
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
        # `load_checkpoint` takes an empty prefix for a folder of checkpoints.
        reader = tf.compat.v1.train.NewCheckpointReader(prefix)
        shapes = reader.get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:REASON_LENGTH]
        raise ValueError(
            f"{prefix} is a damaged TensorFlow checkpoint: {reason}"
        ) from error
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
        ) from error


def default_weights():
    """Finds the weights to use if none are named.

    Returns:
        `Path`: the first there is of what adversarial training saved, what
        pre-training saved, and the weights that are shipped.

    Raises:
        FileNotFoundError: if there are none.
    """
    for folder in map(Path, TRAINED_FOLDERS):
        is_ours = newest_step(folder) is not None
        if is_ours or find_tensorflow_checkpoint(folder) is not None:
            return folder
    shipped = shipped_weights(blur=0.0)
    if shipped is not None:
        return shipped
    raise FileNotFoundError(
        f"Expected weights in {', '.join(TRAINED_FOLDERS)}, or {SHIPPED_BICUBIC} in "
        f"{SHIPPED_FOLDER}, found none. Train with: python srgan.py, or name a file by "
        "--weights."
    )


def shipped_weights(blur):
    """Finds the shipped weights for a degradation.

    Args:
        blur: float, Gaussian radius before shrinking, HR px.

    Returns:
        `Path`, or `None` if that file is not there.
    """
    file = SHIPPED_FOLDER / (SHIPPED_SOURCE if blur > 0 else SHIPPED_BICUBIC)
    return file if file.is_file() else None


def load_generator(weights=None, precision="float32"):
    """Builds the generator and loads its weights.

    Args:
        weights: path as for `load_generator_weights`; `None` for
            `default_weights()`.
        precision: str, Keras dtype policy.

    Returns:
        `(generator, path)`, `path` being what was read.

    Raises:
        FileNotFoundError: if there are no weights.
        ValueError: if they are damaged or of another network.
    """
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        generator = build_generator()
    finally:
        keras.config.set_dtype_policy(usual)
    path = load_generator_weights(generator, weights or default_weights())
    return generator, path


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
        folder, process = self.path.parent, os.getpid()
        self.owner = {
            "host": socket.gethostname(),
            "process": process,
            "started": _process_start(process),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _exclusive(folder):  # two runs may start at the same moment
                self._take_over_or_raise()
                with open(self.path, "x", encoding="utf-8") as file:
                    json.dump(self.owner, file)
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(
                f"The folder {folder} cannot be written to ({error.strerror}). Pass "
                "another --weights-dir."
            ) from error
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            if self._read() == self.owner:  # not if someone took it over by hand
                self.path.unlink()

    def _read(self):
        """Returns what the lock says, or a dict of `None` if it makes no sense."""
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
            return {
                "host": str(owner["host"]),
                "process": int(owner["process"]),
                "started": owner["started"],
            }
        except (ValueError, KeyError, TypeError):  # killed before it was written
            return {"host": socket.gethostname(), "process": None, "started": None}

    def _take_over_or_raise(self):
        if not self.path.exists():
            return
        host, process, started = self._read().values()
        is_here = host == socket.gethostname()
        if is_here and (process is None or _process_start(process) != started):
            self.note(
                f"Taking over {self.path}: process {process or '(unknown)'}, which "
                "was writing there, is gone."
            )
            self.path.unlink()
            return
        raise BlockingIOError(
            f"Another run (process {process} on {host}) is writing to "
            f"{self.path.parent}. Wait for it, or pass another --weights-dir. If "
            f"that run is dead, delete {self.path}."
        )


@contextlib.contextmanager
def _exclusive(folder):
    """Lets one process of this machine at a time through, where that is possible."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            with contextlib.suppress(OSError):  # some network folders cannot
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl:
            os.close(descriptor)


def _process_start(process):
    """Returns something that tells a process from later ones of its number."""
    if os.name == "nt":
        return "running"  # there, `os.kill` would end the process
    try:
        os.kill(process, 0)
    except PermissionError:
        pass  # it lives, and is someone else's
    except (OSError, OverflowError):
        return None
    try:  # Linux: the start time, field 22, counted after the name's bracket
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "gone" if fields[0] == "Z" else fields[19]
    except OSError:
        return "running"
