"""What a training run shows and keeps: progress, log, pictures, checkpoints.

    run = TrainingRun("weights", "images", options, test_images)
    SRGAN().pre_train(loader, run=run)

The class SRGAN knows nothing of folders or terminals, and this module nothing
of networks: a `Phase` is handed the models and optimisers that it keeps.
"""

import contextlib
import datetime
import json
import math
import os
import platform
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import checkpoints
import command_line
import figures
from data_loader import SCALE, to_uint8
from quiet import keras

MAX_FAILED_SAVES = 3  # in a row, then the run stops
REALITY_BOUNDS = (0.05, 0.95)  # D(fake) and D(real) of a discriminator that won
ONE_SIDED_STEPS = 500  # so long before a word is said of it
BAR_WIDTH = 20  # characters
BAR_INTERVAL = 0.2  # seconds between two drawings of the progress bar
PROBE_BYTES = 4096  # written at the start, to see whether a folder takes any
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and a batch scheduler's
LOG_FILE = "log.jsonl"
CHECKPOINT_FOLDER = "{phase}_checkpoints"
# Facts that a resumed run may not change; see README, "Resuming".
FIXED_OPTIONS = (
    "content_loss",
    "pretrain_loss",
    "discriminator_bn",
    "seed",
    "crop_size",
    "batch_size",
    "crops_per_image",
    "blur",
    "augment",
    "files",
)
# What runs did before the option was there, so that checkpoints do not name it.
OLD_OPTIONS = {"discriminator_bn": "moving"}
UNUSED_OPTIONS = {"pre_training": ("discriminator_bn",)}  # by phase; may change


class TrainingStoppedError(RuntimeError):
    """Training cannot go on; what was saved before is intact."""


class TrainingInterruptedError(Exception):
    """A signal asked the run to stop.

    Args:
        signal_number: int, the signal that was received.
        message: str, what became of the state.
    """

    def __init__(self, signal_number, message):
        name = signal.Signals(signal_number).name
        super().__init__(f"Stopped by {name}. {message}")
        self.signal_number = signal_number


def say(text, end="\n"):
    """Prints; where that cannot be done any more, training goes on all the same.

    Args:
        text: str.
        end: str, printed after it.
    """
    with contextlib.suppress(OSError):  # a full disk, a terminal that was closed
        print(text, end=end, flush=True)


class TestResult(NamedTuple):
    """One test image, enlarged: `sr` is uint8 `(4h, 4w, 3)`, `scores` a dict."""

    name: str
    sr: np.ndarray
    scores: dict


class TrainingRun:
    """The folders of one run, and everything that it writes to them.

    Args:
        weights_dir: path; checkpoints and logs go to its folders
            `pre_training_checkpoints` and `training_checkpoints`.
        images_dir: path; pictures go to its folders `_res_gen`, `_res_gan`,
            `_res_src_gan`, `_res` and `_src`.
        options: dict of JSON values, kept with each checkpoint and compared
            when a run is resumed (`FIXED_OPTIONS`).
        test_images: list of `data_loader.TestImage`, shown at every report.
        note: callable of one str: lines for the user.
    """

    def __init__(
        self,
        weights_dir="weights",
        images_dir="images",
        options=None,
        test_images=(),
        note=say,
    ):
        self.weights_dir = Path(weights_dir)
        self.images_dir = Path(images_dir)
        self.options = dict(options or {})
        self.test_images = list(test_images)
        self.note = note
        self.stop_signal = None
        self.is_chief = True  # of several workers, only one writes
        self.agree = int  # callable: the largest number that any worker passes
        self._told = set()

    def note_once(self, text):
        """Notes a line, unless it has been noted before."""
        if text not in self._told:
            self._told.add(text)
            self.note(text)

    @contextlib.contextmanager
    def tolerate(self, what):
        """Lets training go on when something other than its state is not written.

        Args:
            what: str, names it in the note.
        """
        try:
            yield
        except OSError as error:
            self.note(f"\n{what} could not be written ({error}). Training goes on.")

    def checkpoint_folder(self, phase):
        """Returns the folder of a phase's checkpoints and log, a `Path`."""
        return self.weights_dir / CHECKPOINT_FOLDER.format(phase=phase)

    def phase(self, name, models, optimizers):
        """Opens `"pre_training"` or `"training"` for a loop of class SRGAN.

        Args:
            name: str, the phase.
            models: dict of name to `keras.Model`, kept in its checkpoints.
            optimizers: dict of name to built optimiser, kept likewise.

        Returns:
            A `Phase`.
        """
        return Phase(self, name, models, optimizers)

    @contextlib.contextmanager
    def signals(self):
        """Lets Ctrl-C and SIGTERM end the run after the step at hand.

        A second signal ends the process at once. Python calls handlers only
        between two operations of TensorFlow, which may take a minute, so it is a
        thread that answers.
        """
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        thread = threading.Thread(target=self._listen, args=(receiver,), daemon=True)
        thread.start()

        def remember(number, _):
            self.stop_signal = self.stop_signal or number

        handlers = {number: signal.signal(number, remember) for number in STOP_SIGNALS}
        previous = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        try:
            yield self
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sender.close()  # ends the thread
            thread.join()

    def _listen(self, receiver):
        is_first = True
        with receiver:
            while received := receiver.recv(1):
                number = received[0]
                if number not in STOP_SIGNALS:
                    continue
                if is_first:
                    self.note("\nStopping after this step. Once more to stop at once.")
                    is_first = False
                    continue
                say(
                    "\nStopped at once. Run the same command again to go on from the "
                    "last checkpoint."
                )
                os._exit(command_line.EXIT_SIGNAL + number)

    def set_aside(self, phases):
        """Moves the state of earlier runs to dated folders (`--restart`).

        Args:
            phases: iterable of phase names.
        """
        for phase in phases:
            folder = self.checkpoint_folder(phase)
            if folder.exists():
                aside = checkpoints.set_aside(folder, "old")
                self.note(f"Starting again: {folder} was moved to {aside}.")

    def check_space(self, num_bytes):
        """Compares the disk's free space with what checkpoints need.

        Args:
            num_bytes: int, size of one checkpoint.

        Raises:
            OSError: if not even one fits, or the folder is not writable.
        """
        for folder in (self.weights_dir, self.images_dir):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe = folder / f".probe-{os.getpid()}"
                try:
                    checkpoints.write_file(probe, bytes(PROBE_BYTES))
                finally:
                    probe.unlink(missing_ok=True)
            except OSError as error:
                raise OSError(
                    f"The folder {folder} cannot be written to ({error.strerror}). "
                    "Pass another --weights-dir or --images-dir."
                ) from error
        free = shutil.disk_usage(self.weights_dir).free
        megabytes = f"{num_bytes / 1e6:.0f} MB, {free / 1e6:.0f} MB are free"
        if free < num_bytes:
            raise OSError(
                f"No room in {self.weights_dir}: a checkpoint needs {megabytes}. "
                "Free some, or pass another --weights-dir."
            )
        if free < (checkpoints.NUM_KEPT + 1) * num_bytes:
            self.note(f"Little room in {self.weights_dir}: a checkpoint is {megabytes}")

    def save_final_images(self, results):
        """Writes the final enlargements to `images/_res/<k>.png`.

        Args:
            results: list of `TestResult`.
        """
        with self.tolerate("The final enlargements"):
            for number, result in enumerate(results):
                path = self.images_dir / "_res" / f"{number}.png"
                figures.save_image(result.sr, path)

    def clean(self):
        """Removes pictures that a killed process left half-written."""
        for pattern in (".*.tmp", "*/.*.tmp"):
            for path in self.images_dir.glob(pattern):
                with contextlib.suppress(OSError):
                    path.unlink()


class Phase:
    """One phase of a run: where it stands, its log, pictures and checkpoints.

    Args:
        run: the `TrainingRun`.
        name: `"pre_training"` or `"training"`.
        models: dict of name to `keras.Model`.
        optimizers: dict of name to built optimiser.
    """

    def __init__(self, run, name, models, optimizers):
        self.run = run
        self.name = name
        self.models = models
        self.optimizers = optimizers
        self.store = checkpoints.CheckpointFolder(run.checkpoint_folder(name))
        self.step = 0
        self._sums, self._count = {}, 0
        self._one_sided = 0
        self._failed_saves = 0
        self._log = []
        self._bar = ProgressBar(name.replace("_", "-"), 0, 0)

    @property
    def log_path(self):
        return self.store.folder / LOG_FILE

    def resume(self):
        """Restores the newest whole checkpoint, if there is one.

        Returns:
            int, the last finished step, 0 for a new start.

        Raises:
            ValueError: if the checkpoint was made with other fixed options, or
                if there are checkpoints, but none is whole.
        """
        is_chief = self.run.is_chief
        if is_chief:
            self.store.clean()
            self.run.clean()
        path, state = self.store.newest(self.run.note, move_damaged=is_chief)
        if path is not None:
            self._restore(path, state)
        elif self.store.steps():
            raise ValueError(
                f"None of the checkpoints in {self.store.folder} is whole. Copy one "
                "back from a backup, or pass --restart to begin anew (they are moved, "
                "not deleted)."
            )
        # Lines of steps that will be done again are dropped.
        last = self.step if path is not None else -1
        self._log = [record for record in self.read_log() if record["step"] <= last]
        if self.log_path.exists():
            self._write_log()
        return self.step

    def check_options(self):
        """Compares the options of the newest checkpoint, before anything is written.

        Raises:
            ValueError: if it was made with other fixed options.
        """
        path, state = self.store.newest(lambda _: None)
        if path is not None and isinstance(state["facts"].get("options"), dict):
            self._compare_options(state["facts"]["options"], path)

    def _restore(self, path, state):
        try:
            facts = state["facts"]
            self._compare_options(facts["options"], path)
            self._sums = {str(k): float(v) for k, v in facts["sums"].items()}
            self._count, self._one_sided = int(facts["count"]), int(facts["one_sided"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not of a training run: its facts lack {error}. Pass "
                "another --weights-dir, or --restart to begin anew."
            ) from error
        self.store.restore(path, self.models, self.optimizers)
        self.step = state["step"]
        self.run.note(f"Going on from {path}.")

    def _compare_options(self, before, path):
        before = OLD_OPTIONS | before
        for key, value in self.run.options.items():
            is_unused = key in UNUSED_OPTIONS.get(self.name, ())
            if is_unused or key not in before or before[key] == value:
                continue
            flag = "dataset" if key == "files" else key.replace("_", "-")
            if key in FIXED_OPTIONS:
                raise ValueError(
                    f"{path} was trained with {flag} = {before[key]}, and this run "
                    f"has {flag} = {value}. Use the same, or pass --restart to begin "
                    "anew (the old state is kept beside it)."
                )
            self.run.note_once(
                f"Changed since the last run: {flag}, {before[key]} -> {value}."
            )

    def read_log(self):
        """Reads the log, without lines that make no sense."""
        if not self.log_path.exists():
            return []
        records = []
        for line in self.log_path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and isinstance(record.get("step"), int):
                    records.append(record)
        return records

    def _write_log(self):
        """Writes the whole log, so that no crash can cut a line short."""
        if not self.run.is_chief:
            return
        with self.run.tolerate(f"The log {self.log_path}"):
            self.log_path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.log_path.with_suffix(".tmp")
            text = "".join(json.dumps(record) + "\n" for record in self._log)
            try:
                checkpoints.write_file(temporary, text.encode())
                os.replace(temporary, self.log_path)
            finally:
                temporary.unlink(missing_ok=True)

    def steps(self, num_steps):
        """Yields the steps that are left, showing progress between them.

        Args:
            num_steps: int, the last step.

        Raises:
            TrainingInterruptedError: after a signal; the state is saved first.
            TrainingStoppedError: if the state of the last step cannot be saved.
        """
        if 0 < num_steps <= self.step:
            self.run.note(f"All {num_steps} steps of {self._bar.label} are done.")
        self._bar = ProgressBar(self._bar.label, self.step, num_steps)
        with self._bar:
            for step in range(self.step + 1, num_steps + 1):
                yield step
                stop_signal = self.run.agree(self.run.stop_signal or 0)
                if stop_signal:
                    is_saved = not self.run.agree(int(not self.save()))  # the chief
                    raise TrainingInterruptedError(
                        stop_signal, self._describe_stop(is_saved)
                    )
        if self._failed_saves and not self.save():
            raise TrainingStoppedError(
                f"The last step of {self._bar.label} is not saved. Make room, and run "
                "the same command again to go on from the last checkpoint."
            )

    def _describe_stop(self, is_saved):
        if is_saved:
            return f"Step {self.step} of {self._bar.label} is saved."
        last = checkpoints.newest_step(self.store.folder)
        saved = "nothing" if last is None else f"step {last}"
        return f"Step {self.step} of {self._bar.label} is not saved; {saved} is."

    def record(self, step, losses):
        """Takes in the losses of one finished step.

        Args:
            step: int, the step.
            losses: dict of floats.

        Raises:
            TrainingStoppedError: if one of them is not finite.
        """
        if not all(math.isfinite(value) for value in losses.values()):
            shown = ", ".join(f"{name} {value}" for name, value in losses.items())
            raise TrainingStoppedError(
                f"Diverged at {self.name} step {step}: {shown}. {self._advice()}"
            )
        self.step = step
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        self._watch_balance(losses)
        self._bar.update(step, losses)

    def _watch_balance(self, losses):
        """Says so, once, when one of the two networks has won for long."""
        if "p_real" not in losses:
            return
        low, high = REALITY_BOUNDS
        real, fake = losses["p_real"], losses["p_fake"]
        won = (real > high and fake < low) or (real < low and fake > high)
        if self._one_sided == ONE_SIDED_STEPS:
            return  # it has been said
        self._one_sided = self._one_sided + 1 if won else 0
        if self._one_sided == ONE_SIDED_STEPS:
            self.run.note(
                f"\nD(real) {real:.2f}, D(fake) {fake:.2f} for {ONE_SIDED_STEPS} "
                "steps: one network has won, and the generator learns little from "
                "the other. See README, Troubleshooting."
            )

    def report(self, step, results):
        """Logs, draws and saves what the networks do now.

        Args:
            step: int, the last finished step, 0 before the first.
            results: list of `TestResult`, one for each test image.
        """
        record = {"phase": self.name, "step": step}
        record |= {name: total / self._count for name, total in self._sums.items()}
        record |= mean_scores(results)
        self._sums, self._count = {}, 0
        self._log.append(record)
        self._write_log()
        if self.run.is_chief:
            self._draw_report(step, results)
        if step > 0:
            self.save()
        self._bar.line(record)

    def _draw_report(self, step, results):
        with self.run.tolerate(f"The pictures of step {step}"):
            self._draw(step, results)
            figures.save_training_curves(
                self._read_other_log() + self._log,
                self.run.images_dir / "training_curves.png",
            )

    def _read_other_log(self):
        """Reads the log of pre-training, for the curves of training."""
        if self.name == "pre_training":
            return []
        return Phase(self.run, "pre_training", {}, {}).read_log()

    def _draw(self, step, results):
        if not results:
            return
        images_dir = self.run.images_dir
        folder = {"pre_training": "_res_gen", "training": "_res_gan"}[self.name]
        columns, captions = [], []
        for image, result in zip(self.run.test_images, results, strict=True):
            hr, lr = to_uint8(image.hr), to_uint8(image.lr)
            columns.append(
                {
                    "generated": result.sr,
                    "low-resolution": lr,
                    "bicubic": enlarge_by_filter(lr),
                    "original": hr,
                }
            )
            captions.append(f"{result.name}, PSNR (Y) {result.scores['psnr_y']:.2f} dB")
        means = mean_scores(results)
        title = f"step {step}, MSE loss {means['mse_test']:.5f}"
        if "perceptual" in means:
            title += f", perceptual loss {means['perceptual']:.5f}"
        figures.save_grid(
            columns, images_dir / folder / f"{step}.png", title, captions=captions
        )
        if self.name == "training":
            for number, result in enumerate(results):
                name = f"{step}_res{number}.png"
                figures.save_image(result.sr, images_dir / "_res_src_gan" / name)

    def save(self):
        """Saves a checkpoint; a failure is told, and stops the run the third time.

        Returns:
            bool, whether the state is on the disk.

        Raises:
            TrainingStoppedError: after `MAX_FAILED_SAVES` failures in a row, or
                if the networks are broken.
        """
        if not self.run.is_chief:
            return True
        self._check_weights()
        facts = {
            "options": self.run.options,
            "sums": self._sums,
            "count": self._count,
            "one_sided": self._one_sided,
            "versions": {
                "python": platform.python_version(),
                "keras": keras.__version__,
                "backend": keras.backend.backend(),
                "numpy": np.__version__,
            },
            "saved": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        }
        try:
            self.store.save(self.step, self.models, self.optimizers, facts)
        except OSError as error:
            self._failed_saves += 1
            message = f"Step {self.step} could not be saved to {self.store.folder} "
            message += f"({error.strerror or error})."
            if self._failed_saves >= MAX_FAILED_SAVES:
                raise TrainingStoppedError(
                    f"{message} That was failure {self._failed_saves} in a row. "
                    "Make room, and run the same command again to go on from the "
                    "last checkpoint."
                ) from error
            self.run.note(f"\n{message} Earlier checkpoints are intact. Make room.")
            return False
        self._failed_saves = 0
        return True

    def _check_weights(self):
        """Refuses to save weights that a finite loss had not yet given away."""
        for name, model in self.models.items():
            if not all(np.isfinite(array).all() for array in model.get_weights()):
                raise TrainingStoppedError(
                    f"Diverged at {self.name} step {self.step}: weights of the {name} "
                    f"are not finite. {self._advice()}"
                )

    def _advice(self):
        return (
            f"The checkpoints in {self.store.folder} are from before. Try a lower "
            "--learning-rate, or --precision float32."
        )


def mean_scores(results):
    """Averages the scores that every test image has.

    Args:
        results: list of `TestResult`.

    Returns:
        dict of floats; the mean squared error is named `mse_test`, since
        `mse` is the training loss.
    """
    if not results:
        return {}
    means = {}
    for name in results[0].scores:
        known = [result.scores[name] for result in results if name in result.scores]
        is_everywhere = len(known) == len(results)
        # PSNR and SSIM of tiny images are not numbers.
        known = [value for value in known if math.isfinite(value)]
        if known and is_everywhere:
            means["mse_test" if name == "mse" else name] = float(np.mean(known))
    return means


def enlarge_by_filter(lr, method=Image.Resampling.BICUBIC):
    """Enlarges an image x4 by a classical filter, for comparison.

    Args:
        lr: uint8 `(h, w, 3)` or `(h, w)`.
        method: `PIL.Image.Resampling`.

    Returns:
        uint8 of four times each side.
    """
    height, width = lr.shape[:2]
    image = Image.fromarray(lr).resize((SCALE * width, SCALE * height), method)
    return np.asarray(image)


class ProgressBar:
    """One line: step, bar, rate, time left, losses. A context manager.

    Where stdout is no terminal, it prints one line a report instead. (Keras's
    `Progbar` takes the steps of earlier runs for steps of this one, and so
    misjudges rate and time left of a resumed run.)

    Args:
        label: str, name of the work.
        first: int, steps done before.
        total: int, the last step.
    """

    def __init__(self, label, first, total):
        self.label, self.first, self.total = label, first, total
        self.is_terminal = sys.stdout.isatty()
        self.step = first
        self.after_first = self.shown = None
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.is_terminal and self.text:
            say("")

    def update(self, step, losses):
        """Shows a finished step and its losses (a dict of floats)."""
        self.step = step
        now = time.monotonic()
        if step == self.first + 1:
            self.after_first = now  # the first step also builds the graph
        is_due = self.shown is None or now - self.shown > BAR_INTERVAL
        if self.is_terminal and (is_due or step == self.total):
            self.shown = now
            done = BAR_WIDTH * step // self.total
            bar = "=" * done + "." * (BAR_WIDTH - done)
            text = f"{self._head()} [{bar}] {self._rate()} {format_losses(losses)}"
            width = shutil.get_terminal_size().columns - 1
            say(f"\r{text[:width]:<{len(self.text)}}", end="")
            self.text = text[:width]

    def line(self, record):
        """Shows a report; `record` is its line of the log."""
        names = {k: v for k, v in record.items() if k not in ("phase", "step")}
        if self.text:
            say(f"\r{' ' * len(self.text)}\r", end="")
            self.text = ""
        say(f"{self._head()} {self._rate()} {format_losses(names)}")

    def _head(self):
        total = f"/{self.total}" if self.total else ""
        return f"{self.label} {self.step}{total}"

    def _rate(self):
        steps = self.step - self.first - 1
        if steps < 1:
            return ""
        seconds = (time.monotonic() - self.after_first) / steps
        left = datetime.timedelta(seconds=round(seconds * (self.total - self.step)))
        rate = f"{seconds:.2f} s/step" if seconds >= 1 else f"{1 / seconds:.1f} steps/s"
        return f"{rate}, {left} left,"


def format_losses(losses):
    """Formats a dict of floats for one line of a terminal."""
    return " ".join(f"{name} {value:.4g}" for name, value in losses.items())
