"""Tests of checkpoints: whole or not at all, nothing untrusted, one run a folder."""

import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

import checkpoints
import networks
from checkpoints import CheckpointFolder, FolderLock
from quiet import keras


def build_state(seed=0):
    """A generator and its Adam, with something else in every variable."""
    model = networks.build_generator(1, 4)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    random = np.random.default_rng(seed)
    for variable in (*model.weights, *optimizer.variables[2:]):
        variable.assign(random.uniform(0.1, 1, variable.shape))
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
def store(tmp_path, state):
    """A folder with the checkpoints of steps 1 and 2."""
    store = CheckpointFolder(tmp_path / "weights")
    for step in (1, 2):
        store.save(step, *state, {"options": {}})
    return store


# Saving -----------------------------------------------------------------------


def test_everything_comes_back(store, state, other):
    """An optimiser that starts from zero undoes hours of training."""
    path, found = store.newest()
    store.restore(path, *other)
    assert found["step"] == 2
    assert is_same(arrays_of(*state), arrays_of(*other))


def test_loss_scale_comes_back(tmp_path):
    """mixed_float16 would skip its first steps again, after each resume."""
    states = []
    for scale in (512.0, 2.0):
        models, optimizers = build_state()
        optimizer = keras.optimizers.LossScaleOptimizer(optimizers["optimizer"])
        optimizer.build(models["generator"].trainable_variables)
        optimizer.dynamic_scale.assign(scale)
        states.append((models, {"optimizer": optimizer}))
    path = CheckpointFolder(tmp_path).save(1, *states[0], {})
    CheckpointFolder(tmp_path).restore(path, *states[1])
    assert float(np.asarray(states[1][1]["optimizer"].dynamic_scale)) == 512.0
    plain = build_state()  # the same checkpoint, and float32 from now on
    CheckpointFolder(tmp_path).restore(path, *plain)


@pytest.mark.parametrize(
    "build", [networks.build_generator, networks.build_discriminator]
)
def test_weights_files_are_keras_files(build, tmp_path):
    """They are encoded here, in memory: Keras must write and read the same."""
    model = build(num_filters=2)
    model.save_weights(tmp_path / "keras.weights.h5")
    encoded = io.BytesIO(checkpoints.encode_weights(model))
    contents = []
    for file in (tmp_path / "keras.weights.h5", encoded):
        arrays = {}
        with h5py.File(file) as weights:
            weights.visititems(
                lambda name, item, arrays=arrays: (
                    arrays.update({name: item[()].tobytes()})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
        contents.append(arrays)
    assert contents[0]
    assert contents[0] == contents[1]


def test_newest_three_are_kept(store, state):
    """A disk is full after a day, or the last good state is gone."""
    for step in (3, 10, 4000):
        store.save(step, *state, {})
    assert store.steps() == [3, 10, 4000]
    assert len(os.listdir(store.folder)) == 3
    assert checkpoints.newest_step(store.folder) == 4000


def test_saved_once(store, state):
    """An interrupt right after a report saves the same step again."""
    before = {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}
    store.save(2, *state, {})
    assert before == {path: path.stat().st_mtime_ns for path in store.folder.rglob("*")}


def test_flushed_before_it_gets_its_name(tmp_path, state, monkeypatch):
    """A power cut otherwise leaves a folder of that name with empty files."""
    events = []
    real = os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append("flush"), real[0](fd))[1]
    )
    monkeypatch.setattr(
        Path, "rename", lambda *paths: (events.append("rename"), real[1](*paths))[1]
    )
    path = CheckpointFolder(tmp_path / "weights").save(1, *state, {})
    num_files = len(list(path.iterdir()))
    assert events == ["flush"] * (num_files + 1) + ["rename", "flush", "flush"]


def test_failed_save_leaves_nothing_behind(store, state, monkeypatch):
    """Half a checkpoint would fill the disk even more, or be read."""

    def fail(path, content):
        path.write_bytes(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_file", fail)
    with pytest.raises(OSError, match="No space"):
        store.save(3, *state, {})
    assert sorted(os.listdir(store.folder)) == ["step-00000001", "step-00000002"]


def test_leftovers_are_cleaned(store):
    """Each kill while saving would cost the room of a checkpoint for ever."""
    for name in (".step-00000003.123", ".step-00000001.old"):
        shutil.copytree(store.folder / "step-00000002", store.folder / name)
    assert store.steps() == [1, 2]
    store.clean()
    assert sorted(os.listdir(store.folder)) == ["step-00000001", "step-00000002"]


# Damage -----------------------------------------------------------------------

FILES = ("generator.weights.h5", "optimizer.npz", "state.json")


def damage(path, random):
    """Truncates a file, or flips up to three of its bits."""
    content = bytearray(path.read_bytes())
    if random.random() < 0.3:
        content = content[: random.integers(len(content))]
    else:
        for bit in random.choice(8 * len(content), random.integers(1, 4), False):
            content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "count", [10, pytest.param(1000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_damaged_files_are_noticed(store, name, count):
    """One flipped bit of a weight loads well, and the run is another one."""
    random = np.random.default_rng(0)
    path = store.folder / "step-00000002"
    whole = (path / name).read_bytes()
    original = json.loads((path / "state.json").read_text())
    for _ in range(count):
        damage(path / name, random)
        problem, state = checkpoints.inspect_checkpoint(path)
        if state is not None:  # white space of the JSON file changed, or nothing did
            assert name == "state.json"
            assert state == {k: v for k, v in original.items() if k != "digest"}
        else:
            assert name in problem
        (path / name).write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_the_one_before_is_used(store, name):
    """A bad sector must cost an interval, not the run."""
    (store.folder / "step-00000002" / name).write_bytes(b"{}")
    notes = []
    path, state = store.newest(notes.append, move_damaged=True)
    assert (path.name, state["step"]) == ("step-00000001", 1)
    assert len(notes) == 1
    assert f"step-00000002 is damaged and not used ({name}" in notes[0]
    assert "set aside as damaged-step-00000002-" in notes[0]
    assert store.steps() == [1]
    assert len(list(store.folder.glob("damaged-step-00000002-*/*"))) == 3


def test_missing_files_are_noticed(store):
    """Someone made room."""
    (store.folder / "step-00000002" / "optimizer.npz").unlink()
    notes = []
    assert store.newest(notes.append)[1]["step"] == 1
    assert "optimizer.npz is missing" in notes[0]
    assert store.steps() == [1, 2]  # a reader moves nothing


def test_all_damaged_stay_where_they_are(store):
    """Set aside, they would make the next start one from scratch."""
    for step in (1, 2):
        (store.folder / f"step-0000000{step}" / "state.json").unlink()
    notes = []
    assert store.newest(notes.append, move_damaged=True) == (None, None)
    assert len(notes) == 2
    assert store.steps() == [1, 2]
    with pytest.raises(ValueError, match=r"None of the checkpoints in .* is whole"):
        checkpoints.load_generator_weights(None, store.folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"[" * 100_000, b"\xff", b'{"digest": 1}', b"null", b"1" * 5000],
    ids=lambda content: str(content[:8]),
)
def test_odd_state_files(store, content):
    """Text of another program must not end in a traceback."""
    (store.folder / "step-00000002" / "state.json").write_bytes(content)
    problem, _ = checkpoints.inspect_checkpoint(store.folder / "step-00000002")
    assert "state.json" in problem


def write_state(path, **changes):
    """Rewrites a checkpoint's state with digests that match, as an attacker would."""
    state = json.loads((path / "state.json").read_text()) | changes
    del state["digest"]
    for name in state["digests"]:
        if (path / name).is_file() and "/" not in name:
            content = (path / name).read_bytes()
            state["digests"][name] = hashlib.sha256(content).hexdigest()
    text = json.dumps(state, sort_keys=True).encode()
    state["digest"] = hashlib.sha256(text).hexdigest()
    (path / "state.json").write_text(json.dumps(state))


@pytest.mark.parametrize("name", ["/dev/zero", "../step-00000001/state.json", "zero"])
def test_digests_of_other_files(store, name):
    """A digest of /dev/zero takes for ever."""
    path = store.folder / "step-00000002"
    (path / "zero").symlink_to("/dev/zero")
    write_state(path, digests={name: "0"})
    assert "is missing" in checkpoints.inspect_checkpoint(path)[0]


def test_endless_files(store):
    """A sparse file of a terabyte takes an hour to digest."""
    path = store.folder / "step-00000002"
    os.truncate(path / "optimizer.npz", 2**40)
    assert "larger than 1 GiB" in checkpoints.inspect_checkpoint(path)[0]


# Untrusted weights ------------------------------------------------------------


class Bomb:
    """Unpickling one makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def npz_header(shape, dtype="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize("content", ["pickle", "terabyte", "short", "bomb", "text"])
def test_untrusted_optimizers(store, state, other, tmp_path, content):
    """Pickle runs anything; a header of a terabyte ends in an out-of-memory kill."""
    path = store.folder / "step-00000002"
    first = arrays_of(*state)[len(state[0]["generator"].weights) + 2]
    with zipfile.ZipFile(path / "optimizer.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["0002.npy"] = {
        "pickle": npz_header((), "|O") + pickle.dumps(Bomb(tmp_path / "executed")),
        "terabyte": npz_header((2**38,)),
        "short": npz_header(first.shape),
        "bomb": npz_header((2**26,)) + bytes(2**28),
        "text": b"text",
    }[content]
    with zipfile.ZipFile(path / "optimizer.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    write_state(path)
    before = arrays_of(*other)
    with pytest.raises(ValueError, match="another optimiser or network"):
        store.restore(path, {}, other[1])
    assert is_same(before, arrays_of(*other))
    assert not (tmp_path / "executed").exists()


def make_weights(path, kind):
    """Writes a hostile `.weights.h5`."""
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv2d/vars")
        if kind == "terabyte":
            group.create_dataset("0", (2**38,), "f4")
        elif kind == "chunk":
            group.create_dataset("0", (4,), "f4", maxshape=(None,), chunks=(2**29,))
        elif kind == "external link":
            group["0"] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == "soft link":
            group["0"] = h5py.SoftLink("/layers")
        elif kind == "external data":
            group.create_dataset("0", (4,), "u1", external=[("/etc/passwd", 0, 4)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource("/etc/passwd", "0", (4,))
            group.create_virtual_dataset("0", layout)
        elif kind == "strings":
            group.create_dataset("0", data=["text"] * 4, dtype=h5py.string_dtype())


HOSTILE = {
    "terabyte": "declares 1024.0 GiB",
    "chunk": "declares 2.0 GiB",
    "external link": "is a link",
    "soft link": "is a link",
    "external data": "another file",
    "virtual": "another file",
    "strings": "not of numbers",
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_untrusted_weights(tmp_path, state, kind):
    """A file from the internet must not read others, nor all of the memory."""
    make_weights(tmp_path / "a.weights.h5", kind)
    before = arrays_of(*state)
    with pytest.raises(ValueError, match=HOSTILE[kind]):
        checkpoints.load_generator_weights(
            state[0]["generator"], tmp_path / "a.weights.h5"
        )
    assert is_same(before, arrays_of(*state))


def test_keras_archives_are_data(tmp_path, state, other):
    """`keras.models.load_model` would build layers that run code."""
    generator = state[0]["generator"]
    generator.save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    lambda_layer = {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"function": {"class_name": "__lambda__", "config": {"code": "x"}}},
    }
    members["config.json"] = json.dumps(lambda_layer).encode()
    with zipfile.ZipFile(tmp_path / "evil.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    loaded = other[0]["generator"]
    checkpoints.load_generator_weights(loaded, tmp_path / "evil.keras")
    assert is_same(generator.get_weights(), loaded.get_weights())


def test_keras_archives_that_unpack_to_much(tmp_path, state):
    """A zip bomb of a few KB fills the disk."""
    with zipfile.ZipFile(tmp_path / "bomb.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
        archive.getinfo("model.weights.h5").file_size = 2**40
        archive.getinfo("model.weights.h5").extra = b""
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as archive:
        archive.writestr("config.json", b"{}")
    (tmp_path / "text.keras").write_text("text")
    for name, reason in (
        ("bomb", "unpacks to 1024.0 GiB"),
        ("empty", "model.weights.h5"),
        ("text", "not a zip file"),
    ):
        with pytest.raises(ValueError, match=reason):
            checkpoints.load_generator_weights(
                state[0]["generator"], tmp_path / f"{name}.keras"
            )


# Kinds of weights ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "step", "h5", "keras"])
def test_every_kind_of_weights(store, state, other, tmp_path, kind):
    """Users pass whatever they have."""
    generator, loaded = state[0]["generator"], other[0]["generator"]
    path = {
        "folder": store.folder,
        "step": store.folder / "step-00000001",
        "h5": tmp_path / "a.weights.h5",
        "keras": tmp_path / "a.keras",
    }[kind]
    if kind == "h5":
        generator.save_weights(path)
    if kind == "keras":
        generator.save(path)
    file = checkpoints.load_generator_weights(loaded, path)
    assert is_same(generator.get_weights(), loaded.get_weights())
    step = {"folder": 2, "step": 1}.get(kind)
    assert file == path if step is None else file.parent.name.endswith(str(step))


def test_one_damaged_step_is_named(store, state):
    """Passed by itself, a checkpoint has digests just the same."""
    path = store.folder / "step-00000002"
    damage(path / "optimizer.npz", np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"step-00000002 is damaged \(optimizer.npz"):
        checkpoints.load_generator_weights(state[0]["generator"], path)


def test_no_weights(tmp_path, state):
    """Each lack has its own words."""
    (tmp_path / "photo.png").touch()
    for path, error, message in (
        (tmp_path, FileNotFoundError, "No weights in the folder"),
        (tmp_path / "no", FileNotFoundError, "no such file"),
        (tmp_path / "photo.png", ValueError, "not a weights file"),
    ):
        with pytest.raises(error, match=message):
            checkpoints.load_generator_weights(state[0]["generator"], path)


# One run a folder ---------------------------------------------------------------


def write_lock(folder, host=None, process=1, started="0"):
    lock = {"host": host or socket.gethostname(), "process": process}
    (folder / "run.lock").write_text(json.dumps(lock | {"started": started}))


def test_second_run_is_refused(tmp_path):
    """Two runs would overwrite each other's checkpoints."""
    with FolderLock(tmp_path / "weights"):
        with pytest.raises(BlockingIOError) as error, FolderLock(tmp_path / "weights"):
            pass
        for part in (f"process {os.getpid()} on {socket.gethostname()}", "delete"):
            assert part in str(error.value)
    assert not (tmp_path / "weights" / "run.lock").exists()


def test_other_processes_are_refused(tmp_path):
    """The same, for real."""
    code = f"""
import checkpoints
with checkpoints.FolderLock({str(tmp_path)!r}):
    print("locked", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(checkpoints.__file__).parent,
    ) as process:
        assert process.stdout.readline() == b"locked\n"
        with (
            pytest.raises(BlockingIOError, match=f"process {process.pid} on"),
            FolderLock(tmp_path),
        ):
            pass
        process.kill()
    notes = []
    with FolderLock(tmp_path, notes.append):
        assert f"process {process.pid}" in notes[0]
        assert "is gone" in notes[0]


def test_reused_process_numbers(tmp_path):
    """After a reboot, any process may have the dead run's number."""
    notes = []
    write_lock(tmp_path, process=os.getpid(), started="1")
    with FolderLock(tmp_path, notes.append):
        assert "is gone" in notes[0]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', '{"process": "x"}'])
def test_half_written_locks(tmp_path, text):
    """Killed before a word was written: nobody can hold it."""
    (tmp_path / "run.lock").write_text(text)
    with FolderLock(tmp_path, lambda _: None):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()


@pytest.mark.parametrize("process", [-1, 2**70])
def test_absurd_process_numbers(tmp_path, process):
    """A number that no process can have."""
    write_lock(tmp_path, process=process)
    with FolderLock(tmp_path, lambda _: None):
        pass


def test_other_machines_are_believed(tmp_path):
    """Whether their processes live cannot be seen from here."""
    write_lock(tmp_path, host="elsewhere")
    with pytest.raises(BlockingIOError, match="on elsewhere"), FolderLock(tmp_path):
        pass
    assert (tmp_path / "run.lock").exists()


def test_lock_is_released_on_errors(tmp_path):
    """Not only at the end."""
    with pytest.raises(ZeroDivisionError), FolderLock(tmp_path):
        raise ZeroDivisionError
    assert not (tmp_path / "run.lock").exists()


def test_lock_of_a_successor_stays(tmp_path):
    """Deleted by hand and taken by another run, it is no longer ours to remove."""
    with FolderLock(tmp_path):
        write_lock(tmp_path, host="elsewhere")
    assert (tmp_path / "run.lock").exists()


def test_folder_that_cannot_be_written(tmp_path):
    """The remedy is a flag."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="--weights-dir"), FolderLock(tmp_path / "file"):
        pass


STARTERS = """
import checkpoints, time, sys
while time.time() < float(sys.argv[2]):
    pass
try:
    with checkpoints.FolderLock(sys.argv[1], lambda _: None):
        print("in")
        time.sleep(1)
except BlockingIOError:
    print("out")
"""


def test_stale_lock_goes_to_one_of_two(tmp_path):
    """A scheduler restarts two jobs of a crashed machine in the same moment."""
    write_lock(tmp_path, process=2**22 + 1)
    start = str(time.time() + 3)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STARTERS, str(tmp_path), start],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(checkpoints.__file__).parent,
        )
        for _ in range(2)
    ]
    assert sorted(p.communicate()[0] for p in processes) == ["in\n", "out\n"]
