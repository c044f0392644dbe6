"""Tests that a run survives: real processes, real signals, real full disks.

    python -m pytest tests/test_resume.py            # the main ways
    python -m pytest tests/test_resume.py -m slow    # 20 kills, every precision

Each run is `srgan.main` with tiny networks, in a process of its own. What
counts as the same: every weight, every variable of every optimiser, and the
bytes of both logs.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import checkpoints

ROOT = Path(__file__).parent.parent
TIMEOUT = 300  # seconds; a process that hangs is a failure
# What the driver does after step FAULT_STEP of FAULT_PHASE, by FAULT. Steps are
# counted by `Phase.record`, so that a signal comes in the middle of a loop.
DRIVER = """
import functools, os, resource, signal, sys, time
import checkpoints, figures, networks, srgan, training_run

# A shell that starts pytest with & lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
networks.DISCRIMINATOR_BLOCKS = ((1, 2),) * 4
srgan.SRGAN = functools.partial(srgan.SRGAN, num_residual_blocks=1, num_filters=4)
for name in ("save_training_curves", "save_grid", "save_image", "save_model_diagram"):
    setattr(figures, name, lambda *_, **__: None)  # slow, and not what is tested
write, record = checkpoints.write_file, training_run.Phase.record
fault, phase, step = os.environ.get("FAULT", "::0").split(":")

def slow_write(path, content):
    time.sleep(float(os.environ.get("SLOW", 0)))
    write(path, content[: len(content) // 2])
    if fault == "die-saving" and path.name == "generator.weights.h5":
        if f"-{int(step):08d}" in path.parent.name and phase in str(path):
            os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

def record_and_fail(self, number, losses):
    if (self.name, number) == (phase, int(step)):
        if fault == "nan":
            losses = losses | {"mse": float("nan")}
        elif fault == "limit":  # as `ulimit -f`: no file may be larger
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))
        elif fault.isdigit():
            os.kill(os.getpid(), int(fault))
    record(self, number, losses)

save = training_run.Phase.save
def save_or_die(self):
    if fault == "die-logged" and (self.name, self.step) == (phase, int(step)):
        os.kill(os.getpid(), signal.SIGKILL)
    return save(self)

training_run.Phase.save = save_or_die
checkpoints.write_file = slow_write
training_run.Phase.record = record_and_fail
sys.exit(srgan.main(sys.argv[1:]))
"""
OPTIONS = {
    "--dataset": "photos",
    "--crop-size": 16,
    "--batch-size": 2,
    "--content-loss": "mse",
    "--pretrain-steps": 5,
    "--train-steps": 5,
    "--pretrain-interval": 2,
    "--train-interval": 2,
    "--schedule": "cosine",
    "--bn-batches": 2,
    "--bn-freeze-step": 4,
    "--learning-rate": 1e-3,
}
PHASES = ("pre_training", "training")


class Runs:
    """Starts runs in one folder, `self.folder`."""

    def __init__(self, folder):
        self.folder = folder
        self.options = dict(OPTIONS)

    def start(self, *flags, fault=None, slow=0):
        arguments = [str(part) for pair in self.options.items() for part in pair]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "SLOW": str(slow),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # see quiet.py
        if fault:
            environment["FAULT"] = fault
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, "--deterministic", *arguments, *flags],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags, fault=None, slow=0):
        """Returns (exit code, stdout, stderr) of one whole run."""
        process = self.start(*flags, fault=fault, slow=slow)
        out, err = process.communicate(timeout=TIMEOUT)
        return process.returncode, out, err

    def phase(self, name):
        return self.folder / "weights" / f"{name}_checkpoints"

    def newest(self, name):
        return max(self.phase(name).glob("step-*"), default=None)

    def digests(self):
        """Digests of everything that must be the same, by name."""
        found = {}
        for phase in PHASES:
            log = (self.phase(phase) / "log.jsonl").read_bytes()
            found[f"{phase} log"] = hashlib.sha256(log).hexdigest()
            step = self.newest(phase)
            found[phase] = step.name
            for name in ("generator", "discriminator"):
                if (step / f"{name}.weights.h5").exists():
                    with h5py.File(step / f"{name}.weights.h5") as file:
                        arrays = {}
                        file.visititems(
                            lambda key, item, arrays=arrays: (
                                arrays.update({key: item[()]})
                                if isinstance(item, h5py.Dataset)
                                else None
                            )
                        )
                    found |= _digests(f"{phase} {name}", arrays)
            for path in step.glob("*.npz"):
                with np.load(path, allow_pickle=False) as arrays:
                    found |= _digests(f"{phase} {path.stem}", arrays)
        return found

    def assert_clean(self):
        """No lock, no leftovers."""
        names = [path.name for path in (self.folder / "weights").rglob("*")]
        assert not [n for n in names if n.startswith(".") or n == "run.lock"]


def _digests(label, arrays):
    return {
        f"{label} {key}": hashlib.sha256(np.asarray(arrays[key]).tobytes()).hexdigest()
        for key in arrays
    }


@pytest.fixture
def runs(tmp_path, image_folder):
    return Runs(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Digests of the run that nothing happened to, by its options."""
    known = {}

    def digests_of(runs):
        key = json.dumps(runs.options)
        if key not in known:
            folder = tmp_path_factory.mktemp("uninterrupted")
            shutil.copytree(runs.folder / "photos", folder / "photos")
            whole = Runs(folder)
            whole.options = runs.options
            code, _, err = whole.run()
            assert (code, err) == (0, "")
            known[key] = whole.digests()
        return known[key]

    return digests_of


def assert_ends_the_same(runs, uninterrupted):
    code, _, err = runs.run()
    assert (code, err) == (0, "")
    assert runs.digests() == uninterrupted(runs)
    runs.assert_clean()


# Exactness --------------------------------------------------------------------


def interrupt_everywhere(runs, uninterrupted):
    """Stops a run in every odd way, one after the other, and lets it end."""
    faults = {
        "2:pre_training:1": 130,  # before the first checkpoint
        "9:pre_training:3": -9,  # between two reports
        "die-logged:pre_training:4": -9,  # a log line without its checkpoint
        "15:pre_training:5": 143,  # in the last step of the phase
        "9:training:1": -9,  # a change of phase without a checkpoint
        "die-saving:training:2": -9,  # half a checkpoint
        "2:training:3": 130,
        "die-logged:training:5": -9,
    }
    for fault, expected in faults.items():
        code, out, err = runs.run(fault=fault)
        assert (code, err) == (expected, ""), fault
        if code > 0:
            number, phase, step = fault.split(":")
            name = signal.Signals(int(number)).name
            label = phase.replace("_", "-")
            assert f"Stopped by {name}. Step {step} of {label} is saved. Run the" in out
    assert_ends_the_same(runs, uninterrupted)


def test_once_in_each_phase(runs, uninterrupted):
    """Adam's moments, the schedule or the sums of a log line would start again."""
    for fault, expected in (("2:pre_training:3", 130), ("9:training:4", -9)):
        code, _, err = runs.run(fault=fault)
        assert (code, err) == (expected, "")
    assert_ends_the_same(runs, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_exact_everywhere(runs, uninterrupted, precision, schedule):
    """Whatever is not in the checkpoint shows up at one of these places."""
    runs.options |= {"--precision": precision, "--schedule": schedule}
    runs.options["--bn-batches"] = 2 if schedule == "cosine" else 0
    interrupt_everywhere(runs, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_kill_at_random_moments(runs, uninterrupted, seed):
    """`kill -9`, half of the time while saving, up to three times a run."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 3)):
        process = runs.start(slow=chance.choice([0, 0.2]))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(4, 25))
        process.kill()
        process.communicate()
    assert_ends_the_same(runs, uninterrupted)


# Signals ----------------------------------------------------------------------


def wait_for(runs, pattern, process):
    """Waits until there is such a file in the folder of weights."""
    end = time.monotonic() + TIMEOUT
    while not list((runs.folder / "weights").glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_second_signal_ends_at_once(runs):
    """A step of the paper's size takes minutes; users then close the terminal."""
    process = runs.start(slow=1)
    wait_for(runs, "*/.step-*/*", process)  # while it saves
    process.send_signal(signal.SIGINT)
    assert "Stopping after this step" in read_until(process, "Stopping")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=TIMEOUT)
    assert time.monotonic() - began < 2
    assert process.returncode == 130
    assert "Stopped at once. Run the same command again" in out
    code, out, err = runs.run("--train-steps", "1")
    assert (code, err) == (0, "")
    assert "Taking over" in out
    runs.assert_clean()


def read_until(process, text):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    return "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_before_the_loops(runs, number):
    """While images are scanned and networks built, there is nothing to save."""
    process = runs.start()
    wait_for(runs, "run.lock", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=TIMEOUT)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "Run the same command again" in out
        runs.assert_clean()
    else:  # as every program
        assert process.returncode == -signal.SIGTERM
    assert "Traceback" not in err
    assert runs.run("--phase", "pretrain")[0] == 0


# Disks, twins, divergence, options ------------------------------------------


def test_file_size_limit(runs):
    """HDF5 on a full disk crashed the process, or left half a checkpoint."""
    runs.options |= {"--pretrain-interval": 1}
    code, out, err = runs.run(fault="limit:pre_training:3")
    assert code == 1
    assert out.count("could not be saved") == 2
    assert "File too large" in out
    assert err.count("\n") == 2  # an empty line, and this one:
    assert "Step 5 could not be saved" in err
    assert "failure 3 in a row" in err
    newest = runs.newest("pre_training")
    assert newest.name == "step-00000002"
    assert checkpoints.inspect_checkpoint(newest)[0] is None
    runs.assert_clean()


@pytest.mark.slow
def test_second_run_is_refused(runs):
    """They would overwrite each other's checkpoints."""
    first = runs.start(slow=0.2)
    wait_for(runs, "run.lock", first)
    code, _, err = runs.run()
    first.kill()
    first.communicate()
    assert code == 2
    assert err.count("\n") == 1
    assert f"Another run (process {first.pid} on" in err


@pytest.mark.slow
def test_divergence(runs):
    """NaN for days, and every good checkpoint gone."""
    code, _, err = runs.run(fault="nan:pre_training:4")
    assert code == 1
    assert "Diverged at pre_training step 4: mse nan" in err
    assert runs.newest("pre_training").name == "step-00000002"
    runs.assert_clean()


@pytest.mark.slow
def test_options_and_damage(runs):
    """The rest of what a second start may find."""
    runs.options |= {"--pretrain-interval": 1, "--train-interval": 1}
    assert runs.run("--train-steps", "2")[0] == 0
    code, _, err = runs.run("--seed", "7")
    assert code == 2
    assert "seed = 0, and this run has seed = 7" in err
    code, out, _ = runs.run("--train-steps", "3", "--pretrain-steps", "9")
    assert code == 0
    assert "Pre-training stays at step 5" in out
    assert "train-steps, 2 -> 3" in out
    (runs.newest("training") / "discriminator.weights.h5").write_bytes(b"damaged")
    code, out, _ = runs.run("--train-steps", "4")
    assert code == 0
    assert "discriminator.weights.h5 has changed since" in out
    for path in runs.phase("training").glob("step-*/state.json"):
        path.write_text("damaged")
    before = sorted(runs.phase("training").rglob("*"))
    code, _, err = runs.run("--train-steps", "5")
    assert code == 2
    assert "pass --restart" in err
    assert sorted(runs.phase("training").rglob("*")) == before
    code, out, _ = runs.run("--phase", "train", "--restart")
    assert code == 0
    assert "was moved to" in out


@pytest.mark.slow
def test_images_vanish_while_training(runs):
    """One is passed over; without any, the run ends in words."""
    process = runs.start(slow=0.3)
    wait_for(runs, "*/step-*", process)
    for path in sorted((runs.folder / "photos").glob("*.png"))[1:]:
        path.unlink()
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0
    assert "Traceback" not in err
