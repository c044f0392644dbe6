"""Tests that a run survives: real processes, real signals, real full disks.

    python -m pytest tests/test_resume.py            # one test, in this process
    python -m pytest tests/test_resume.py -m slow    # each run in a process of its own

Every file of the last checkpoints must be the same bit for bit, and both logs.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import networks
import srgan
from data_loader import DataLoader
from presets import Recipe
from support import checkpoints, figures
from support.training_run import PRE_TRAINING, TRAINING, TrainingRun

ROOT = Path(__file__).parent.parent
TIMEOUT = 300  # seconds; a process that hangs is a failure
# FAULT=<what>:<phase>:<step> happens once that step has been computed, so that a signal
# comes in the middle of a loop. SLOW is how many seconds a file takes to be saved.
DRIVER = """
import os, resource, signal, time
import srgan  # first, because it silences TensorFlow
import data_loader, networks, presets
from support import checkpoints, command_line, figures, training_run

# A shell that starts pytest with & lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
networks.DISCRIMINATOR_BLOCKS = ((1, 2),) * 4
srgan.NUM_STATISTICS_BATCHES, data_loader.CACHE_BYTES = 2, 0
for preset in presets.PRESETS.values():
    preset |= {"num_residual_blocks": 1, "num_filters": 4}
for name in ("save_training_curves", "save_grid", "save_model_diagram"):
    setattr(figures, name, lambda *_, **__: None)  # slow, and not what is tested
fault, phase, step = os.environ.get("FAULT", "::0").split(":")
record, save = training_run.Phase.record, training_run.Phase.save
save_weights = checkpoints.save_weights

def record_and_fail(self, number, losses):
    if (self.name, number) == (phase, int(step)):
        if fault == "limit":  # as `ulimit -f`: no file may be larger
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))
        elif fault.isdigit():
            os.kill(os.getpid(), int(fault))
    record(self, number, losses)

def save_or_die(self):
    if fault == "die-logged" and (self.name, self.step) == (phase, int(step)):
        os.kill(os.getpid(), signal.SIGKILL)
    save(self)

def save_slowly(model, path):
    save_weights(model, path)
    time.sleep(float(os.environ.get("SLOW", 0)))
    if fault == "die-saving" and path.match(f"{phase}_*/.step-*{step}/*"):
        os.truncate(path, 1000)
        os.kill(os.getpid(), signal.SIGKILL)

training_run.Phase.record, training_run.Phase.save = record_and_fail, save_or_die
checkpoints.save_weights = save_slowly
command_line.run(srgan.main)
"""
OPTIONS = {
    "--dataset": "photos",
    "--preset": "pretrained",
    "--crop-size": 16,
    "--batch-size": 2,
    "--content-loss": "mse",
    "--pretrain-steps": 5,
    "--train-steps": 5,
    "--pretrain-interval": 2,
    "--train-interval": 2,
    "--bn-freeze-step": 4,
    "--learning-rate": 1e-3,
}


class Runs:
    """Starts runs in one folder, `self.folder`."""

    def __init__(self, folder):
        self.folder = folder
        self.options = dict(OPTIONS)

    def start(self, *flags, fault="::0", slow=0):
        arguments = [str(part) for pair in self.options.items() for part in pair]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "FAULT": fault}
        environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # the command sets its own
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, "--deterministic", *arguments, *flags],
            cwd=self.folder,
            env=environment | {"SLOW": str(slow)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *flags, fault="::0"):
        """Returns (exit code, stdout, stderr) of one whole run."""
        process = self.start(*flags, fault=fault)
        out, err = process.communicate(timeout=TIMEOUT)
        return process.returncode, out, err

    def newest(self, phase):
        return max((self.folder / "weights" / f"{phase}_checkpoints").glob("step-*"))

    def results(self):
        """Returns the log and the digests of the last checkpoint's files, by phase."""
        run, found = TrainingRun(self.folder / "weights"), {}
        for phase in (PRE_TRAINING, TRAINING):
            digests = checkpoints.read_state(self.newest(phase))["digests"]
            found[phase] = run.read_log(phase), digests
        return found


@pytest.fixture
def runs(tmp_path, image_folder):
    return Runs(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns the results of the run that nothing happened to, by its options."""
    known = {}

    def results_of(runs):
        key = json.dumps(runs.options)
        if key not in known:
            whole = Runs(tmp_path_factory.mktemp("uninterrupted"))
            shutil.copytree(runs.folder / "photos", whole.folder / "photos")
            whole.options = runs.options
            code, _, err = whole.run()
            assert (code, err) == (0, "")
            known[key] = whole.results()
        return known[key]

    return results_of


def assert_ends_the_same(runs, uninterrupted):
    code, _, err = runs.run()
    assert (code, err) == (0, "")
    assert runs.results() == uninterrupted(runs)
    assert not list((runs.folder / "weights").rglob(".*"))  # no leftovers


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_every_variable_is_resumed(image_folder, tmp_path, monkeypatch, ema):
    """Adam's moments, averages, batches or means of the log would start again."""
    monkeypatch.setattr(networks, "DISCRIMINATOR_BLOCKS", ((1, 2),) * 4)
    for name in ("save_training_curves", "save_grid"):
        monkeypatch.setattr(figures, name, lambda *_, **__: None)
    gan = srgan.SRGAN(
        content_loss="mse",
        learning_rate=1e-2,
        num_residual_blocks=1,
        num_filters=4,
        recipe=Recipe(ema=ema),
    )
    variables = [*gan.generator.variables, *gan.discriminator.variables]
    for trainer in (gan.pretrainer, gan.discriminator_trainer, gan.combined):
        variables += trainer.optimizer.variables
    start = [np.array(variable) for variable in variables]
    results = []
    # What `max_of_workers` returns after each step of each process: 0 goes on.
    for processes in ([()], [(0, 0, 2), (0, 0, 0, 2), ()]):
        folder = tmp_path / str(len(processes))
        for answers in map(iter, processes):
            for variable, value in zip(variables, start, strict=True):
                variable.assign(value)  # as in a new process
            run = TrainingRun(
                folder, folder, max_of_workers=lambda _, a=answers: next(a, 0)
            )
            with DataLoader(image_folder, crop_size=16) as loader:
                steps = {"num_steps": 4, "interval": 2, "batch_size": 2, "run": run}
                with contextlib.suppress(SystemExit):
                    gan.pre_train(loader, **steps)
                    gan.train(loader, **steps)
        log = [*run.read_log(PRE_TRAINING), *run.read_log(TRAINING)]
        losses = [value for record in log for value in list(record.values())[1:]]
        results.append([*map(np.array, variables), losses])
    for whole, resumed in zip(*results, strict=True):
        np.testing.assert_allclose(resumed, whole, rtol=1e-5, atol=1e-6)
    assert int(gan.discriminator_trainer.optimizer.iterations) == 8


INTERRUPTIONS = {  # every odd way, one after the other
    "2:pre_training:1": 130,  # before the first checkpoint
    "9:pre_training:3": -9,  # between two reports
    "die-logged:pre_training:4": -9,  # a log line without its checkpoint
    "15:pre_training:5": 143,  # in the last step of the phase
    "9:training:1": -9,  # a change of phase without a checkpoint
    "die-saving:training:2": -9,  # half a checkpoint
    "2:training:3": 130,
    "die-logged:training:5": -9,
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("preset", ["source", "paper", "pretrained"])
def test_exact_everywhere(runs, uninterrupted, precision, preset):
    """Whatever is not in the checkpoint shows up at one of these places."""
    runs.options |= {"--precision": precision, "--preset": preset}
    if preset == "paper":  # its discriminator takes crops of 96 px
        runs.options |= {"--crop-size": 96, "--batch-size": 1}
        for path in sorted((runs.folder / "photos").iterdir()):
            Image.open(path).resize((104, 96)).save(path)
    for fault, expected in INTERRUPTIONS.items():
        code, out, err = runs.run(fault=fault)
        assert (code, err) == (expected, ""), fault
        if code > 0:
            _, phase, step = fault.split(":")
            assert f"Saved step {step} of {phase}. The same command resumes." in out
    assert_ends_the_same(runs, uninterrupted)


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["discriminator.weights.h5", "state.json"])
def test_damage_costs_one_interval(runs, uninterrupted, name):
    """A bad sector would end the run, or make it another one."""
    assert runs.run(fault="9:training:5")[0] == -9
    (runs.newest(TRAINING) / name).write_bytes(b"damaged")
    code, out, err = runs.run()
    assert (code, err) == (0, "")
    assert out.count("step-00000004 is damaged") == 1
    assert "Resuming from weights/training_checkpoints/step-00000002" in out
    assert runs.results() == uninterrupted(runs)


def wait_for(runs, pattern, process):
    """Waits until there is such a file in the folder of weights."""
    end = time.monotonic() + TIMEOUT
    while not list((runs.folder / "weights").glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_second_signal_ends_at_once(runs):
    """A step of the paper's size takes minutes; users then close the terminal."""
    process = runs.start(slow=2)
    wait_for(runs, "*/.step-*/*", process)  # while it saves
    process.send_signal(signal.SIGINT)
    assert any("Stopping after this step" in line for line in process.stdout)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT)
    assert time.monotonic() - began < 1.5
    assert process.returncode == -signal.SIGINT
    assert runs.run()[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_before_the_loops(runs, number):
    """While images are scanned and networks built, there is nothing to save."""
    process = runs.start()
    wait_for(runs, "run.lock", process)
    process.send_signal(number)
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == {signal.SIGINT: 130}.get(number, -number)
    assert "Traceback" not in err
    assert runs.run("--train-steps", "0")[0] == 0


@pytest.mark.slow
def test_a_file_size_limit(runs):
    """HDF5 on a full disk crashed the process, or left half a checkpoint."""
    code, _, err = runs.run(fault="limit:pre_training:3")
    assert (code, err.count("Cannot save step 4"), err.count("\n")) == (1, 1, 1)
    assert checkpoints.read_state(runs.newest(PRE_TRAINING))["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("num_kept", "expected"), [(1, 0), (0, 1)])
def test_images_vanish_while_training(runs, num_kept, expected):
    """One is skipped; without any, the run ends in words, not in a traceback."""
    process = runs.start(slow=0.3)
    wait_for(runs, "pre_training_checkpoints/step-*", process)
    for path in sorted((runs.folder / "photos").glob("*.png"))[num_kept:]:
        path.unlink()
    _, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err.count("\n")) == (expected, expected)
