"""Tests of what a run keeps and says: phases, saves that fail, divergence, signals."""

import errno
import json
import os
import signal
import time

import numpy as np
import pytest

import checkpoints
import training_run
from quiet import keras
from training_run import (
    Phase,
    ProgressBar,
    TestResult,
    TrainingInterruptedError,
    TrainingRun,
    TrainingStoppedError,
    mean_scores,
)

RESULTS = []  # of test images: none


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(training_run.figures, "save_training_curves", lambda *_: None)


@pytest.fixture
def notes():
    return []


@pytest.fixture
def open_phase(tmp_path, notes):
    """Opens a phase of a tiny model, as often as a run is started."""

    def open_phase(options=None, name="training"):
        run = TrainingRun(
            tmp_path / "weights", tmp_path / "images", options, note=notes.append
        )
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)
        return run.phase(name, {"generator": model}, {"optimizer": optimizer})

    return open_phase


def run_steps(phase, last, interval=2, losses=lambda step: {"mse": 1 / step}):
    """What a loop of class SRGAN does."""
    phase.resume()
    for step in phase.steps(last):
        model = phase.models["generator"]
        model.set_weights([array + 0.1 for array in model.get_weights()])
        phase.record(step, losses(step))
        if step % interval == 0:
            phase.report(step, RESULTS)


def log_of(phase):
    return phase.log_path.read_bytes()


# Going on ---------------------------------------------------------------------


def test_sums_between_reports_go_on(open_phase):
    """The means of a log line would be of the steps since the interrupt only."""
    phase = open_phase()
    phase.resume()
    for step in phase.steps(3):
        phase.record(step, {"mse": 1 / step})
        if step == 3:
            phase.save()
    run_steps(open_phase(), 8, interval=8)
    record = json.loads(log_of(phase))
    assert record["mse"] == sum(1 / step for step in range(1, 9)) / 8


def test_log_lines_of_lost_steps_are_dropped(open_phase):
    """A line was written, then the machine went down before its checkpoint."""
    phase = open_phase()
    run_steps(phase, 6)
    whole = log_of(phase)
    (step,) = phase.store.folder.glob("step-*6")
    for path in step.iterdir():
        path.unlink()
    step.rmdir()
    with open(phase.log_path, "a") as file:
        file.write('{"phase": "training", "st')
    phase = open_phase()
    assert phase.resume() == 4
    assert len(phase.read_log()) == 2
    run_steps(open_phase(), 6)
    assert log_of(phase) == whole


@pytest.mark.parametrize("line", ["5", "null", "[]", "{}", '{"step": "x"}', "\x00"])
def test_odd_lines_of_the_log(open_phase, line):
    """Users edit files; a log must not stop a run."""
    run_steps(open_phase(), 2)
    path = open_phase().log_path
    path.write_text(f"{line}\n{path.read_text()}")
    assert open_phase().resume() == 2
    assert path.read_text().count("\n") == 1


def test_fewer_steps_than_done(open_phase, notes):
    """A slip in --train-steps must neither fail nor undo anything."""
    run_steps(open_phase(), 4)
    run_steps(open_phase(), 2)
    assert "All 2 steps of training are done." in notes
    assert open_phase().resume() == 4


def test_all_damaged_is_no_new_start(open_phase):
    """A run of days would be overwritten by one from scratch."""
    run_steps(open_phase(), 4)
    for path in open_phase().store.folder.glob("step-*/state.json"):
        path.write_text("{}")
    for _ in range(2):  # the second start is no different
        with pytest.raises(ValueError, match=r"None of the checkpoints.*--restart"):
            open_phase().resume()


@pytest.mark.parametrize("facts", [{}, {"options": 1}, {"options": {}, "sums": []}])
def test_checkpoints_of_something_else(open_phase, facts):
    """Digests that match say nothing of what is in it."""
    phase = open_phase({"seed": 0})
    phase.store.save(3, phase.models, phase.optimizers, facts)
    with pytest.raises(ValueError, match="not of a training run"):
        open_phase({"seed": 0}).resume()


OPTIONS = {name: 1 for name in training_run.FIXED_OPTIONS} | {
    "learning_rate": 1,
    "schedule": 1,
    "train_steps": 1,
    "pretrain_steps": 1,
    "train_interval": 1,
    "bn_batches": 1,
    "precision": 1,
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_changed_options(open_phase, notes, name):
    """Some make another run of it: those stop; the others are applied, and told."""
    run_steps(open_phase(OPTIONS), 2)
    changed = OPTIONS | {name: 2}
    flag = "dataset" if name == "files" else name.replace("_", "-")
    if name in training_run.FIXED_OPTIONS:
        with pytest.raises(ValueError, match=f"{flag} = 1, .* {flag} = 2.*--restart"):
            open_phase(changed).resume()
    else:
        open_phase(changed).resume()
        assert f"Changed since the last run: {flag}, 1 -> 2." in notes


def test_changes_are_told_once(open_phase, notes):
    """Both phases of a run see the same change."""
    phases = open_phase(OPTIONS), open_phase(OPTIONS, "pre_training")
    for phase in phases:
        run_steps(phase, 2)
    run = open_phase(OPTIONS | {"train_steps": 2}).run
    for phase in phases:
        Phase(run, phase.name, phase.models, phase.optimizers).resume()
    assert sum("train-steps" in note for note in notes) == 1


def test_options_newer_than_a_checkpoint(open_phase):
    """A run of before the option would go on with another recipe, and not say so."""
    run_steps(open_phase({"seed": 0}), last=2)
    with pytest.raises(ValueError, match=r"discriminator-bn = moving, .* = batch"):
        run_steps(open_phase({"discriminator_bn": "batch"}), last=4)
    run_steps(open_phase({"discriminator_bn": "moving"}), last=4)
    run_steps(open_phase({"discriminator_bn": "moving"}, "pre_training"), last=2)
    run_steps(open_phase({"discriminator_bn": "batch"}, "pre_training"), last=4)


def test_restart_moves(open_phase, notes):
    """`--restart` by mistake must not delete days of training."""
    phase = open_phase()
    run_steps(phase, 2)
    phase.run.set_aside(["training", "pre_training"])
    assert open_phase().resume() == 0
    folder = phase.store.folder
    assert list(folder.parent.glob("old-training_checkpoints-*/step-*"))
    assert "was moved to" in notes[-1]


def test_leftovers_are_removed(open_phase, tmp_path):
    """Killed while a picture or a checkpoint was written."""
    left = [
        tmp_path / "images" / ".a1.tmp",
        tmp_path / "images" / "_res_gan" / ".b2.tmp",
        tmp_path / "weights" / "training_checkpoints" / ".step-00000007.1" / "file",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    open_phase().resume()
    assert not any(path.exists() for path in left)


# Full disks -------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch):
    """A disk that is full while `disk["full"]`."""
    disk = {"full": False}
    write = checkpoints.write_file

    def write_file(path, content):
        if disk["full"]:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(checkpoints, "write_file", write_file)
    return disk


def test_failed_saves_do_not_stop_training(open_phase, notes, disk):
    """Someone else fills the disk for an hour, at night."""
    full = {4: True, 6: True, 8: False, 10: True, 12: True, 14: False}

    def losses(step):
        disk["full"] = full.get(step, disk["full"])
        return {"mse": 1 / step}

    phase = open_phase()
    run_steps(phase, 14, losses=losses)
    failed = [note for note in notes if "could not be saved" in note]
    assert len(failed) == 4
    assert "No space left on device" in failed[0]
    assert phase.store.steps() == [2, 8, 14]
    steps = [record["step"] for record in phase.read_log()]
    assert steps == [2, 4, 6, 8, 10, 12, 14]  # no line of the log was lost


def test_third_failure_in_a_row_stops(open_phase, notes, disk):
    """Days of work that nobody saves."""

    def losses(step):
        disk["full"] = step > 2
        return {"mse": 1.0}

    phase = open_phase()
    with pytest.raises(TrainingStoppedError, match=r"Step 8 .* failure 3 in a row"):
        run_steps(phase, 100, losses=losses)
    assert phase.store.newest()[1]["step"] == 2


def test_last_save_counts(open_phase, disk):
    """A run that ends with exit code 0 and without its result."""

    def losses(step):
        disk["full"] = step == 4
        return {"mse": 1.0}

    with pytest.raises(TrainingStoppedError, match="last step of training is not"):
        run_steps(open_phase(), 4, losses=losses)


def test_interrupt_on_a_full_disk(open_phase, disk):
    """`Saved.` would be a lie."""
    phase = open_phase()

    def losses(step):
        disk["full"] = step == 3
        phase.run.stop_signal = signal.SIGTERM if step == 3 else None
        return {"mse": 1.0}

    with pytest.raises(
        TrainingInterruptedError, match=r"Step 3 .* not saved; step 2 is"
    ):
        run_steps(phase, 9, losses=losses)


def test_pictures_are_not_worth_stopping_for(open_phase, notes, monkeypatch):
    """Nor is the log."""

    def fail(*_):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(training_run.figures, "save_training_curves", fail)
    monkeypatch.setattr(training_run.figures, "save_image", fail)
    phase = open_phase()
    run_steps(phase, 2)
    phase.run.save_final_images([TestResult("a", np.zeros((4, 4, 3), "uint8"), {})])
    assert sum("Disk quota exceeded" in note for note in notes) == 2
    assert phase.store.steps() == [2]


def test_space_is_checked_at_the_start(open_phase, notes, tmp_path, monkeypatch):
    """Better now than at the first report."""
    run = open_phase().run
    free = {"bytes": 10**9}
    usage = training_run.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        training_run.shutil,
        "disk_usage",
        lambda _: usage._replace(free=free["bytes"]),
    )
    run.check_space(10**8)
    assert not notes
    free["bytes"] = 2 * 10**8
    run.check_space(10**8)
    assert "a checkpoint is 100 MB, 200 MB are free" in notes[0]
    free["bytes"] = 10**7
    with pytest.raises(OSError, match="needs 100 MB, 10 MB are free"):
        run.check_space(10**8)


@pytest.mark.parametrize("folder", ["weights_dir", "images_dir"])
def test_folders_are_tried_at_the_start(open_phase, folder, tmp_path):
    """No right to write, or nothing left of it."""
    run = open_phase().run
    (tmp_path / "file").touch()
    setattr(run, folder, tmp_path / "file")
    with pytest.raises(OSError, match=r"cannot be written to .*--images-dir"):
        run.check_space(1)


def test_closed_terminals(monkeypatch, open_phase):
    """`srgan.py > log.txt` on a full disk, or a terminal that is gone."""

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    phase = open_phase()
    phase.run.note = training_run.say
    monkeypatch.setattr("builtins.print", fail)
    run_steps(phase, 4)
    assert phase.store.steps() == [2, 4]


# Divergence -------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_losses_that_are_not_finite(open_phase, value):
    """Saved three times, a NaN would push out every good checkpoint."""
    phase = open_phase()

    def losses(step):
        return {"g": 1.0, "d": value if step == 4 else 0.5}

    with pytest.raises(
        TrainingStoppedError, match=r"training step 4: g 1.0, d -?(nan|inf)\. The"
    ):
        run_steps(phase, 9, losses=losses)
    assert phase.store.steps() == [2]
    assert len(phase.read_log()) == 1


def test_weights_that_are_not_finite(open_phase):
    """The loss of a step is measured before its weights are broken."""
    phase = open_phase()

    def losses(step):
        if step == 4:
            model = phase.models["generator"]
            model.set_weights([array * np.nan for array in model.get_weights()])
        return {"mse": 1.0}

    with pytest.raises(TrainingStoppedError, match="step 4: weights of the generator"):
        run_steps(phase, 9, losses=losses)
    assert phase.store.steps() == [2]


@pytest.mark.parametrize(("real", "fake"), [(0.99, 0.01), (0.01, 0.99)])
def test_one_sided_is_said_once(open_phase, notes, real, fake, monkeypatch):
    """A discriminator that has won teaches nothing, and the loss does not show it."""
    monkeypatch.setattr(training_run, "ONE_SIDED_STEPS", 5)

    def losses(step):
        is_even = step in (5, 20)  # starts the count again, once it has begun
        return {"p_real": 0.5 if is_even else real, "p_fake": fake}

    run_steps(open_phase(), 8, 8, losses)
    assert not notes
    run_steps(open_phase(), 40, 40, losses)
    run_steps(open_phase(), 60, 60, losses)
    warnings = [note for note in notes if "one network has won" in note]
    assert len(warnings) == 1
    assert "Troubleshooting" in warnings[0]


# Signals ----------------------------------------------------------------------


@pytest.mark.parametrize("number", training_run.STOP_SIGNALS)
def test_signals_finish_the_step(open_phase, notes, number):
    """And give back the handlers of whoever called."""
    phase = open_phase()
    before = signal.getsignal(number)

    def losses(step):
        if step == 3:
            os.kill(os.getpid(), number)
            while phase.run.stop_signal is None:
                time.sleep(0.01)
        return {"mse": 1.0}

    with (
        pytest.raises(TrainingInterruptedError, match="Step 3 of training is saved"),
        phase.run.signals(),
    ):
        run_steps(phase, 9, losses=losses)
    assert signal.getsignal(number) is before
    assert phase.store.steps() == [2, 3]
    assert any("Once more to stop at once" in note for note in notes)


def test_signals_at_the_last_step(open_phase):
    """The step is saved by its report, and once is enough."""
    phase = open_phase()
    phase.run.stop_signal = signal.SIGINT
    with pytest.raises(TrainingInterruptedError):
        run_steps(phase, 1, interval=1)
    run_steps(open_phase(), 1, interval=1)
    assert phase.store.steps() == [1]


# Progress ---------------------------------------------------------------------


def test_rate_of_a_resumed_run(monkeypatch):
    """Steps of earlier runs took no time of this one; the first one builds graphs."""
    now = [100.0]
    monkeypatch.setattr(training_run.time, "monotonic", lambda: now[0])
    bar = ProgressBar("training", 1000, 1010)
    for step, passed in ((1001, 60), (1002, 2), (1003, 2)):
        now[0] += passed
        bar.update(step, {})
    assert bar._rate() == "2.00 s/step, 0:00:14 left,"


def test_one_line_a_report_without_a_terminal(open_phase, capsys):
    """A bar fills the log file of a batch job."""
    run_steps(open_phase(), 4)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]


def test_mean_scores():
    """Scores that only some images have would be means of others."""
    results = [
        TestResult("a", None, {"mse": 1.0, "psnr_y": 20.0, "perceptual": 1.0}),
        TestResult("b", None, {"mse": 3.0, "psnr_y": 30.0}),
    ]
    assert mean_scores(results) == {"mse_test": 2.0, "psnr_y": 25.0}
    assert mean_scores([]) == {}
    tiny = TestResult("c", None, {"mse": 5.0, "psnr_y": float("nan")})
    assert mean_scores([*results, tiny]) == {"mse_test": 3.0, "psnr_y": 25.0}
