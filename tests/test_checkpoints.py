"""Tests of checkpoints: whole or not at all, and only one run per folder."""

import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

import networks
from support import checkpoints, command_line, weight_files

TINY = networks.Network(num_residual_blocks=1, num_filters=4)


def build_state(seed=0):
    """A generator and its Adam, with a random value in every variable."""
    model = networks.build_network(TINY)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(seed)
    for variable in (*model.weights, *optimizer.variables[2:]):
        variable.assign(rng.uniform(0.1, 1, variable.shape))
    return {"generator": model}, {"optimizer": optimizer}


def arrays_of(models, optimizers):
    variables = [*models["generator"].weights, *optimizers["optimizer"].variables]
    return [np.array(variable) for variable in variables]


def is_same(first, second):
    return all(np.array_equal(*pair) for pair in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def state():
    return build_state()


@pytest.fixture
def other():
    return build_state(seed=1)


@pytest.fixture
def generator(other):
    return other[0]["generator"]


@pytest.fixture
def folder(tmp_path, state):
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path / "weights"
    for step in (1, 2):
        checkpoints.save(folder, step, *state, {"options": {"seed": step}})
    return folder


def test_another_precision_is_refused(folder, other):
    """Keras would only warn, and every resumed run skip its first steps again."""
    (models, optimizers), path = other, folder / "step-00000002"
    optimizer = keras.optimizers.LossScaleOptimizer(optimizers["optimizer"])
    optimizer.build(models["generator"].trainable_variables)
    with pytest.raises(ValueError, match=r"another .*--precision"):
        checkpoints.restore(path, models, {"optimizer": optimizer})


def test_newest_three_are_kept_and_a_step_is_saved_once(folder, state):
    """The disk would be full after a day, or the last good state gone; an interrupt
    right after a report saves the same step again."""
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    checkpoints.save(folder, 2, *state, {})
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for step in (3, 10, 4000):
        checkpoints.save(folder, step, *state, {})
    assert checkpoints.list_steps(folder) == [3, 10, 4000]
    assert len(os.listdir(folder)) == 3


def test_flushed_before_it_gets_its_name(tmp_path, state, monkeypatch):
    """After a power cut, a folder of that name could hold empty files."""
    events = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("flush"), fsync(fd)))
    monkeypatch.setattr(
        Path, "rename", lambda *paths: (events.append("rename"), rename(*paths))
    )
    checkpoints.save(tmp_path / "weights", 1, *state, {})
    assert events == ["flush"] * 4 + ["rename", "flush"]  # three files, the folder


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_without_file_locks(tmp_path, monkeypatch, capsys, code):
    """On such a network drive, no training could start, and HDF5 saved nothing."""

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(checkpoints.fcntl, "flock", refuse)
    with checkpoints.lock(tmp_path):
        assert "Training without a lock" in capsys.readouterr().out
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "")
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING")
    with command_line.quiet_imports("srgan"):
        assert os.environ["HDF5_USE_FILE_LOCKING"] == "FALSE"


def test_a_second_run_is_kept_out(tmp_path):
    """Two runs would overwrite each other's checkpoints."""
    refused = pytest.raises(BlockingIOError, match="Another run writes to")
    with checkpoints.lock(tmp_path), refused, checkpoints.lock(tmp_path):
        pass
    with checkpoints.lock(tmp_path):
        pass


def test_what_a_file_system_may_lack(folder, state, monkeypatch, capsys):
    """A checkpoint that was whole, or an old one in the way, ended the training."""

    def fail(code):
        def call(*_):
            raise OSError(code, os.strerror(code))

        return call

    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    checkpoints.save(folder, 3, *state, {})
    rename = Path.rename

    def rename_new(path, target):
        return (fail(errno.EBUSY) if path.name == "step-00000001" else rename)(
            path, target
        )

    monkeypatch.setattr(Path, "rename", rename_new)
    checkpoints.save(folder, 4, *state, {})
    assert checkpoints.list_steps(folder) == [1, 2, 3, 4]
    assert "Cannot remove the old checkpoint" in capsys.readouterr().out
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        checkpoints.save(folder, 5, *state, {})
    assert checkpoints.list_steps(folder) == [1, 2, 3, 4]


def test_a_full_disk_does_no_harm(folder, state):
    """HDF5 would end the process by a signal, or half a checkpoint would be read."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(folder, 3, *state, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / ".step-00000003").is_dir()
    assert checkpoints.find_newest(folder)[1]["step"] == 2
    checkpoints.save(folder, 4, *state, {})
    assert sorted(os.listdir(folder)) == [f"step-0000000{step}" for step in (1, 2, 4)]


FILES = ("generator.weights.h5", "optimizer.npz", "state.json")


@pytest.mark.parametrize("name", FILES[:2])
def test_damaged_files_are_noticed(folder, name):
    """A weight with one flipped bit loads well, and training silently changes."""
    rng = np.random.default_rng(0)
    path = folder / "step-00000002"
    whole = (path / name).read_bytes()
    for number in range(20):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        cut = rng.integers(len(content)) if number % 3 == 0 else len(content)
        (path / name).write_bytes(content[:cut])
        with pytest.raises(ValueError, match=rf"step-00000002 is damaged \({name} has"):
            checkpoints.read_state(path)


DAMAGE = [(name, text) for name in FILES for text in (None, "{}")]
ODD_STATES = ("", "[]", '{"digests": 1}', "null", "1" * 5000)


@pytest.mark.parametrize(
    ("name", "text"), [*DAMAGE, *(("state.json", text) for text in ODD_STATES)]
)
def test_the_one_before_is_used(folder, name, text, capsys):
    """A bad sector, or someone who made room, must cost an interval, not the run."""
    file = folder / "step-00000002" / name
    file.unlink() if text is None else file.write_text(text)
    path, state = checkpoints.find_newest(folder)
    assert (path.name, state["step"]) == ("step-00000001", 1)
    (line,) = capsys.readouterr().out.splitlines()
    assert "step-00000002 is damaged (" in line
    assert checkpoints.list_steps(folder) == [1, 2]  # a reader moves nothing
    checkpoints.find_newest(folder, set_damaged_aside=True)
    assert checkpoints.list_steps(folder) == [1]
    count = 3 if text is not None else 2
    assert len(list(folder.glob("damaged-step-00000002-*/*"))) == count


def test_all_damaged_stay_where_they_are(folder):
    """If they were set aside, the next run would start from scratch."""
    for step in (1, 2):
        (folder / f"step-0000000{step}" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"All checkpoints in .* are damaged"):
        checkpoints.find_newest(folder, set_damaged_aside=True)
    assert checkpoints.list_steps(folder) == [1, 2]
    with pytest.raises(ValueError, match="are damaged"):
        weight_files.load_generator(folder)
    with pytest.raises(ValueError, match="step-00000001 is damaged"):
        weight_files.load_generator(folder / "step-00000001")


def test_nothing_is_unpickled(folder, other):
    """Unpickling a checkpoint from the internet would run any code."""
    path = folder / "step-00000002" / "optimizer.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"0": np.array(os.getcwd, dtype=object)})
    before = arrays_of(*other)
    with pytest.raises(ValueError, match="allow_pickle"):
        checkpoints.restore(path.parent, {}, other[1])
    assert is_same(before, arrays_of(*other))


def replace_last_weight(path, kind):
    """Replaces one array of a weights file by something hostile or useless."""
    with h5py.File(path, "a") as file:
        names = []
        file.visit(names.append)
        name = [name for name in names if isinstance(file[name], h5py.Dataset)][-1]
        shape = file[name].shape
        del file[name]
        if kind == "terabyte":
            file.create_dataset(name, (2**38,), "f4")
        elif kind == "external link":
            file[name] = h5py.ExternalLink("/etc/passwd", "0")
        elif kind == "external data":
            file.create_dataset(name, shape, "f4", external=[("/etc/passwd", 0, 64)])
        elif kind == "text":
            file.create_dataset(name, data=["a"] * 4, dtype=h5py.string_dtype())
        elif kind == "nan":
            file[name] = np.full(shape, np.nan, "f4")


KINDS = ["terabyte", "external link", "external data", "text", "nan", "missing"]


@pytest.mark.parametrize("kind", [*KINDS, "larger network"])
def test_bad_weights_change_nothing(tmp_path, generator, kind, recwarn):
    """They would take all memory, read other files, or be loaded in part.

    Keras warns once per layer, which would bury the line that explains the mistake.
    """
    path = tmp_path / "bad.weights.h5"
    num_blocks = 2 if kind == "larger network" else 1
    networks.build_generator(num_blocks, 4).save_weights(path)
    if kind in KINDS:
        replace_last_weight(path, kind)
    before = generator.get_weights()
    with pytest.raises(ValueError, match=r"bad\.weights\.h5 does not hold weights"):
        checkpoints.load_weights(generator, path)
    assert is_same(before, generator.get_weights())
    assert not [each for each in recwarn if each.category is UserWarning]


def test_keras_archives_are_data(tmp_path, state, generator):
    """`keras.models.load_model` would build layers that run code."""
    state[0]["generator"].save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    function = {"class_name": "__lambda__", "config": {"code": "x"}}
    layer = {"class_name": "Lambda", "config": {"function": function}}
    members["config.json"] = json.dumps(layer | {"module": "keras.layers"}).encode()
    with zipfile.ZipFile(tmp_path / "evil.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    checkpoints.load_weights(generator, tmp_path / "evil.keras")
    assert is_same(state[0]["generator"].get_weights(), generator.get_weights())
    (tmp_path / "text.keras").write_text("text")
    with pytest.raises(ValueError, match=r"text\.keras does not hold weights"):
        checkpoints.load_weights(generator, tmp_path / "text.keras")


@pytest.fixture
def shipped(tmp_path, monkeypatch, state):
    """An empty project folder; weights named `ours` and the default are shipped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weight_files, "SHIPPED_FOLDER", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    for name in ("ours", weight_files.DEFAULT_SHIPPED):
        path = tmp_path / "shipped" / f"{name}.weights.h5"
        checkpoints.save_weights(state[0]["generator"], path)
    return tmp_path / "shipped"


@pytest.mark.parametrize("kind", ["folder", "step", "file", "name"])
def test_every_kind_of_weights(folder, state, shipped, kind):
    """Users pass whatever they have, and never say which network it belongs to."""
    step = folder / "step-00000001"
    Path("ours").mkdir()  # results of the weights `ours`, say
    weights, expected = {
        "folder": (folder, folder / "step-00000002" / "generator.weights.h5"),
        "step": (step, step / "generator.weights.h5"),
        "file": (shipped / "ours.weights.h5", shipped / "ours.weights.h5"),
        "name": ("ours", shipped / "ours.weights.h5"),
    }[kind]
    loaded, path = weight_files.load_generator(weights, "mixed_bfloat16")
    assert path == expected
    assert loaded.network == TINY
    assert is_same(state[0]["generator"].get_weights(), loaded.get_weights())
    assert loaded.layers[1].compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("empty", "in the folder empty.*shipped are ours"),
        ("nothing", "no weights nothing.*shipped are ours, srgan"),
        ("photo.png", r"photo\.png .*\.weights\.h5"),
        ("future.weights.h5", r"future\.weights\.h5 .*unknown network"),
        ("edsr.weights.h5", "Unknown network 'edsr'"),
    ],
)
@pytest.mark.usefixtures("shipped")
def test_what_is_no_weights(path, message):
    """Each mistake needs another remedy."""
    Path("empty").mkdir()
    Path("photo.png").touch()
    for name, network in (("future", '{"layers": 3}'), ("edsr", '{"name": "edsr"}')):
        shutil.copy("shipped/ours.weights.h5", f"{name}.weights.h5")
        with h5py.File(f"{name}.weights.h5", "a") as file:
            file.attrs["network"] = network
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        weight_files.load_generator(path)
