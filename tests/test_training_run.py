"""Tests of a training run: resuming, options, full disks, divergence, signals."""

import argparse
import os
import shutil
import signal
import time

import keras
import numpy as np
import pytest

from support import checkpoints, training_run
from support.training_run import PRE_TRAINING, TRAINING, TrainingStoppedError

PHASES = (PRE_TRAINING, TRAINING)


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(training_run.figures, "save_training_curves", lambda *_: None)


@pytest.fixture
def run(tmp_path):
    return training_run.TrainingRun(tmp_path / "weights", tmp_path / "images")


def open_phase(run, name=TRAINING):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return training_run.Phase(run, name, {"generator": model}, {"optimizer": optimizer})


def run_steps(phase, last, interval=2, losses=lambda step: {"mse": 1 / step}):
    """Does what a loop of class SRGAN does, and returns the phase."""
    phase.resume()
    for step in phase.steps(last):
        model = phase.models["generator"]
        model.set_weights([array + 0.1 for array in model.get_weights()])
        phase.record(step, losses(step))
        if step % interval == 0:
            phase.report(step, results=[])
    return phase


def steps_of(run, name=TRAINING):
    return checkpoints.list_steps(run.folder(name))


def test_steps_done_again_replace_their_log_lines(run):
    """After a crash between log and checkpoint, a step would appear twice."""
    run_steps(open_phase(run), 6)
    whole = run.read_log(TRAINING)
    shutil.rmtree(run.folder(TRAINING) / "step-00000006")
    with open(run.folder(TRAINING) / "log.jsonl", "a") as file:
        file.write('{"phase": "training", "st\n5\nnull\n[]\n{}\n{"step": "x"}\n\x00')
    assert open_phase(run).resume() == 4
    run_steps(open_phase(run), 6)
    assert [record["step"] for record in whole] == [2, 4, 6]
    assert run.read_log(TRAINING) == whole


def test_fewer_steps_than_done(run, capsys):
    """A slip in --train-steps must neither fail nor undo anything."""
    run_steps(open_phase(run), 4)
    run_steps(open_phase(run), 2)
    assert "All 4 steps of training are done." in capsys.readouterr().out
    assert open_phase(run).resume() == 4


def prepare_folder(run, restart=False, pretrain_steps=1):
    """Does what the command does before it resumes."""
    preset = run.options.get("preset")
    args = {"restart": restart, "preset": preset, "pretrain_steps": pretrain_steps}
    run.prepare_folder(argparse.Namespace(initial_weights=None, **args))


FREE_OPTIONS = ("learning_rate", "schedule", "train_steps", "precision", "preset")
ALL_OPTIONS = {name: 1 for name in (*training_run.FIXED_OPTIONS, *FREE_OPTIONS)}


@pytest.mark.parametrize("name", ALL_OPTIONS)
@pytest.mark.parametrize("phase", PHASES)
def test_changed_options(run, capsys, name, phase):
    """A change that mixes two recipes must stop the run; others must be applied."""
    run.options = ALL_OPTIONS
    run_steps(open_phase(run, phase), 2)
    run.options = ALL_OPTIONS | {name: 2}
    label = f"--{name.replace('_', '-')}"
    if name in training_run.PRESET_OPTIONS:
        label = f"--preset's {name.replace('_', ' ')}"
    is_unused = phase == PRE_TRAINING and name in training_run.ADVERSARIAL_OPTIONS
    if name not in FREE_OPTIONS and not is_unused:
        with pytest.raises(ValueError, match=rf"{label} 1, not 2\..*--restart"):
            prepare_folder(run)
    else:
        prepare_folder(run)
        is_printed = f"Changed since the last run: {label}" in capsys.readouterr().out
        assert is_printed != is_unused
    assert steps_of(run, phase) == [2]


def test_older_checkpoints_know_no_degradation(run):
    """They could not be resumed, or went on with photographs without a word."""
    run.options = {"blur": 0.0}
    run_steps(open_phase(run), 2)
    for name in ("source", "bicubic"):
        run.options = {"degradation": name, "blur": 0.0}
        prepare_folder(run)
    run.options = {"degradation": "photo", "blur": 0.0}
    with pytest.raises(ValueError, match="--degradation bicubic, not photo"):
        prepare_folder(run)


@pytest.mark.parametrize(
    ("before", "now", "restart", "pretrain_steps", "moved"),
    [
        ("source", "source", False, 1, ()),
        ("demo", "demo", False, 1, ()),
        ("demo", "source", False, 1, PHASES),
        ("source", "source", True, 1, PHASES),
        ("source", "source", True, 0, (TRAINING,)),
    ],
)
def test_moving_aside(run, before, now, restart, pretrain_steps, moved):
    """--restart by mistake must not delete days of training, nor a demo block it."""
    run.options = {"preset": before}
    for phase in PHASES:
        run_steps(open_phase(run, phase), 2)
    run.options = {"preset": now}
    prepare_folder(run, restart, pretrain_steps)
    for phase in PHASES:
        old = list(run.weights_dir.glob(f"old-{phase}_checkpoints-*/step-00000002"))
        assert len(old) == (phase in moved)
        assert open_phase(run, phase).resume() == (0 if phase in moved else 2)


def test_damage_is_named_once_and_no_new_start(run, capsys):
    """A run of days would be overwritten by one from scratch."""
    run_steps(open_phase(run), 4)
    states = [path / "state.json" for path in sorted(run.folder(TRAINING).glob("s*"))]
    states[1].write_text("{}")
    prepare_folder(run)
    assert open_phase(run).resume() == 2
    assert capsys.readouterr().out.count("step-00000004 is damaged") == 1
    states[0].write_text("{}")
    with pytest.raises(ValueError, match=r"damaged.*--restart"):
        prepare_folder(run)
    assert steps_of(run) == [2]
    prepare_folder(run, restart=True)
    assert steps_of(run) == []


def test_restart_compares_the_kept_pre_training(run):
    """The run began, but the same command could not resume it later."""
    run.options = {"blur": 0}
    run_steps(open_phase(run, PRE_TRAINING), 2)
    run_steps(open_phase(run), 2)
    run.options = {"blur": 1}
    with pytest.raises(ValueError, match="--blur 0, not 1"):
        prepare_folder(run, restart=True, pretrain_steps=0)
    assert steps_of(run) == [2]


LOST = {
    "checkpoint": "Cannot save step 4 .*No space left",
    "last checkpoint": "Cannot save step 3 .*No space left",
    "picture": "Cannot save the log and pictures: .*No space left",
    "log": r"Cannot save the log and pictures: .*log\.jsonl",
}


@pytest.mark.parametrize(("lost", "message"), LOST.items())
def test_a_save_that_fails_ends_the_run(run, monkeypatch, lost, message):
    """The run would train for days without saving anything, or claim that it saved."""

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    def losses(step):
        log = run.folder(TRAINING) / "log.jsonl"
        if step == 3 and lost == "log":
            log.rename(log.with_name("old"))
            log.mkdir()
        elif step == 3:
            where = (training_run.figures, "save_training_curves")
            monkeypatch.setattr(*where if lost == "picture" else (np, "savez"), fail)
            run.stop_signal = signal.SIGTERM if lost == "last checkpoint" else 0
        return {"mse": 1.0}

    with pytest.raises(TrainingStoppedError, match=message):
        run_steps(open_phase(run), 100, losses=losses)
    assert steps_of(run) == [2]


def test_results_that_cannot_be_saved(run):
    """The last line would be a traceback, after days of training."""
    run.images_dir.write_text("a file")
    with pytest.raises(TrainingStoppedError, match="Cannot save the results"):
        run.finish([(np.zeros((8, 8, 3), "uint8"), {})])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "weights"])
def test_divergence_stops_the_run(run, where, value):
    """Saved three times, a NaN would push out every good checkpoint."""
    phase = open_phase(run)

    def losses(step):
        if step == 4 and where == "weights":  # the loss is measured before the update
            model = phase.models["generator"]
            model.set_weights([array * value for array in model.get_weights()])
        return {"g": 1.0, "d": value if step == 4 and where == "loss" else 0.5}

    with pytest.raises(TrainingStoppedError, match=r"diverged.*training step 4"):
        run_steps(phase, 9, losses=losses)
    assert steps_of(run) == [2]


@pytest.mark.parametrize(("real", "fake"), [(0.99, 0.01), (0.01, 0.99)])
def test_a_lost_balance_is_reported_once(run, capsys, real, fake, monkeypatch):
    """A discriminator that has won teaches nothing, and the losses do not show it."""
    monkeypatch.setattr(training_run, "ONE_SIDED_STEPS", 5)

    def losses(step):
        is_balanced = step in (5, 20)
        return {"p_real": 0.5 if is_balanced else real, "p_fake": fake}

    phase = open_phase(run)
    run_steps(phase, 8, 8, losses)
    assert "has won" not in capsys.readouterr().out
    run_steps(phase, 19, 19, losses)
    assert capsys.readouterr().out.count("has won") == 1


@pytest.mark.parametrize("number", training_run.STOP_SIGNALS)
def test_a_signal_finishes_the_step(run, capsys, number):
    """Ctrl-C would lose the steps since the last report."""
    before = signal.getsignal(number)

    def losses(step):
        if step == 3:
            os.kill(os.getpid(), number)
            while not run.stop_signal:
                time.sleep(0.01)
            assert signal.getsignal(number) is signal.SIG_DFL  # for a second signal
        return {"mse": 1.0}

    with pytest.raises(SystemExit) as error, run.signals():
        run_steps(open_phase(run), 9, losses=losses)
    assert error.value.code == 128 + number
    assert signal.getsignal(number) is before
    assert steps_of(run) == [2, 3]
    out = capsys.readouterr().out
    assert "Stopping after this step" in out
    assert "Saved step 3 of training" in out


def test_of_several_workers_one_writes(run):
    """Two would write to one file; a signal to one worker must stop all of them."""
    run.is_chief = False
    run.max_of_workers = lambda number: signal.SIGTERM
    phase = open_phase(run)
    with pytest.raises(SystemExit, match="143"):
        run_steps(phase, 9, interval=99)
    assert phase.step == 1
    assert not run.weights_dir.exists()


def test_no_progress_bar_without_a_terminal(run, capsys):
    """A bar fills the log file of a batch job."""
    run_steps(open_phase(run), 4)
    lines = capsys.readouterr().out.split("\n\n")
    assert lines == ["\ntraining 2: mse 0.75", "training 4: mse 0.2917\n"]
    record, _ = run.read_log(TRAINING)
    assert record == {"phase": "training", "step": 2, "mse": 0.75}


def test_a_terminal_shows_the_last_step(run, capsys, monkeypatch):
    """Keras averages over all steps, so that a bar hides what a loss does now."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run_steps(open_phase(run), 4, interval=9)
    assert capsys.readouterr().out.split()[-2:] == ["mse:", "0.2500"]
