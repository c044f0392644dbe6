"""What a training run shows and keeps: progress, log, pictures, checkpoints.

    run = TrainingRun("weights", "images", options, test_images)
    SRGAN().pre_train(loader, run=run)

Class SRGAN knows nothing of folders or terminals, and this module nothing of networks:
a `Phase` receives the models and optimizers that it keeps.
"""

import contextlib
import dataclasses
import functools
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

import metrics
from support import checkpoints, command_line, figures, weight_files
from support.checkpoints import list_steps
from support.image_files import save_image
from support.pixels import enlarge_by_filter, to_uint8
from support.tiling import enlarge

PRE_TRAINING = "pre_training"
TRAINING = "training"
PHASES = (PRE_TRAINING, TRAINING)
GRID_FOLDERS = {PRE_TRAINING: "_res_gen", TRAINING: "_res_gan"}  # source
WINNING_GAP = 0.9  # between D(real) and D(fake), once one network has won
ONE_SIDED_STEPS = 500  # in a row, before the run warns of it
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and a batch scheduler's
LOG_FILE = "log.jsonl"
# A resumed run that changed one of these would mix two recipes.
FIXED_OPTIONS = (
    "dataset",
    "crop_size",
    "crop_scales",
    "batch_size",
    "train_batch_divisor",
    "crops_per_image",
    "degradation",
    "blur",
    "augment",
    "content_loss",
    "pretrain_loss",
    "network",
    "discriminator_bn",
    "ema",
    "seed",
)
# May change before adversarial training.
ADVERSARIAL_OPTIONS = ("content_loss", "discriminator_bn", "train_batch_divisor")
PRESET_OPTIONS = ("augment", "crop_scales", "train_batch_divisor")  # without a flag


class TrainingStoppedError(RuntimeError):
    """Training cannot go on; earlier checkpoints are whole."""


@contextlib.contextmanager
def saving(what):
    """Ends the run if the block cannot write. No block may read training data."""
    try:
        yield
    except OSError as error:
        raise TrainingStoppedError(
            f"Cannot save {what}: {error}. Earlier checkpoints are intact: fix this, "
            "then run the same command again."
        ) from error


@dataclasses.dataclass
class TrainingRun:
    """The folders, options and test images that both phases of a run share."""

    weights_dir: Path = Path("weights")
    images_dir: Path = Path("images")
    options: dict = dataclasses.field(default_factory=dict)  # compared on resuming
    test_images: list = dataclasses.field(default_factory=list)
    is_chief: bool = True  # the only one of several workers that writes
    # Returns the largest number that any worker passes.
    max_of_workers: Callable[[int], int] = lambda number: number
    stop_signal: int = 0

    def folder(self, phase):
        """Returns the `Path` of a phase's checkpoints and log."""
        return Path(self.weights_dir) / f"{phase}_checkpoints"

    @contextlib.contextmanager
    def signals(self):
        """Lets a signal end the run after the current step; a second one at once."""

        def remember(number, _):
            self.stop_signal = number
            signal.signal(number, signal.SIG_DFL)
            print(
                "\nStopping after this step. Press again to stop immediately.",
                flush=True,
            )

        previous = {}
        with contextlib.suppress(ValueError):  # not in the main thread: a web server
            for number in STOP_SIGNALS:
                previous[number] = signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def prepare_folder(self, args):
        """Moves away what must not be resumed, and checks the options of the rest."""
        restarted = ()
        if args.restart:
            # Adversarial training alone starts over from the pre-trained generator.
            restarted = PHASES if args.pretrain_steps else (TRAINING,)
        for phase in PHASES:
            if phase in restarted:
                continue
            path, state = checkpoints.find_newest(self.folder(phase), True)
            if path is None:
                continue
            if state["options"].get("preset") == "demo" and args.preset != "demo":
                self._set_aside(PHASES, "Leaving the demo's state", args)
                return
            check_options(state["options"], self.options, path, phase)
        if restarted:
            self._set_aside(restarted, "Starting over", args)

    def _set_aside(self, phases, reason, args):
        if args.initial_weights:
            weight_files.find_weights(args.initial_weights)  # before anything is moved
        for phase in phases:
            if self.folder(phase).exists():
                aside = checkpoints.set_aside(self.folder(phase), "old")
                print(f"{reason}: moved {self.folder(phase)} to {aside.name}.")

    @property
    def has_trained(self):
        return bool(list_steps(self.folder(TRAINING)))

    def choose_start(self, generator, args):
        """Loads `--initial-weights` unless there are checkpoints to resume from."""
        if self.has_trained or list_steps(self.folder(PRE_TRAINING)):
            if args.initial_weights:
                print(f"Ignoring --initial-weights: resuming from {self.weights_dir}.")
        elif args.initial_weights:
            path = weight_files.find_weights(args.initial_weights)
            checkpoints.load_weights(generator, path)
            print(f"The generator starts from {path}.")
        elif args.bn_freeze_step == 1 or (
            args.bn_freeze_step and not args.pretrain_steps
        ):
            raise ValueError(
                "--bn-freeze-step would fix the batch-norm statistics of random "
                "weights. Pre-train first, or pass --initial-weights."
            )
        else:
            print("No checkpoint found: starting from scratch.")

    @functools.cached_property
    def filter_scores(self):
        """The mean scores of bicubic and nearest-neighbor enlargement."""
        scores = {label: [] for label in metrics.FILTERS}
        for image in self.test_images:
            for label, sr in metrics.enlarge_by_filters(image).items():
                scores[label].append(metrics.score(sr, image))
        return {label: metrics.mean_scores(rows) for label, rows in scores.items()}

    @saving("the results")
    def finish(self, results, phase=TRAINING):
        """Saves the final images, prints the scores and where everything is."""
        for number, (sr, _) in enumerate(results):
            save_image(sr, Path(self.images_dir, "_res", f"{number}.png"))
        scores = {"this run": metrics.mean_scores([scores for _, scores in results])}
        table = {f"mean of {len(results)}": scores | self.filter_scores}
        print(f"\n{metrics.PROTOCOL}\n{metrics.format_table(table)}\n")
        if self.options.get("preset") == "demo":
            self._compare_with_shipped(results)
        weights = self.folder(phase)
        print(f"Pictures: {self.images_dir}/_res and beside it. Checkpoints: {weights}")
        print(f"Next: python evaluate.py --weights {weights}")

    def _compare_with_shipped(self, results):
        """Shows what hours of training make of an image, beside the demo's minutes."""
        image, (sr, _) = self.test_images[0], results[0]
        versions = {"bicubic": enlarge_by_filter(to_uint8(image.lr)), "this demo": sr}
        for name in weight_files.list_shipped():
            if name.endswith("-source"):  # trained with the demo's blur
                generator, _ = weight_files.load_generator(name)
                versions[name] = enlarge(generator, image.lr, encode=to_uint8)
        hr = to_uint8(image.hr)
        captions = {}
        for label, version in versions.items():
            captions[label] = f"{metrics.measure(version, hr)['psnr_y']:.2f} dB"
        versions["original"] = hr
        path = Path(self.images_dir, "comparison.png")
        figures.save_comparison_sheet(versions, path, captions, title=image.name)
        print(f"The demo's minutes beside the shipped weights' hours: {path}")

    def read_log(self, phase):
        """Reads a phase's log, without lines that were cut short."""
        records = {}
        path = self.folder(phase) / LOG_FILE
        if not path.exists():
            return []
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                records[int(record["step"])] = record  # steps done again replace theirs
        return list(records.values())


class Phase:
    """One phase of a run: its step, log, pictures and checkpoints."""

    def __init__(self, run, name, models, optimizers, swap_average=lambda: None):
        self.run = run
        self.name = name
        self.models = models
        self.optimizers = optimizers
        # Exchanges the generator's weights and their moving average.
        self._swap_average = swap_average
        self.folder = run.folder(name)
        self.step = 0
        self.one_sided_steps = 0
        self._losses = []  # of the steps since the last report

    def resume(self):
        """Restores the newest whole checkpoint, and returns its step, or 0."""
        path, state = checkpoints.find_newest(self.folder, self.run.is_chief)
        if path is None:
            return 0
        try:
            checkpoints.restore(path, self.models, self.optimizers)
        except ValueError as error:
            raise TrainingStoppedError(error) from error
        self.step = state["step"]
        self._losses = state.get("losses", [])
        self._swap_average()  # it was saved in place of the last weights
        print(f"Resuming from {path}.")
        return self.step

    def start_from(self, earlier_phase):
        """Loads the newest generator of an earlier phase, if there is one."""
        path, _ = checkpoints.find_newest(self.run.folder(earlier_phase))
        if path is None:
            return
        try:
            checkpoints.restore(path, {"generator": self.models["generator"]}, {})
        except ValueError as error:
            raise TrainingStoppedError(error) from error
        print(f"The generator starts from {path}.")

    @contextlib.contextmanager
    def averaged_weights(self):
        """Puts the average of its weights into the generator for the block."""
        self._swap_average()
        try:
            yield
        finally:
            self._swap_average()

    def steps(self, num_steps):
        """Yields the remaining steps, shows progress, and stops after a signal."""
        first = self.step
        if num_steps <= first:
            print(f"All {first} steps of {self.name} are done.")
        bar = command_line.progress_bar(max(0, num_steps - first), "step")
        for step in range(first + 1, num_steps + 1):
            yield step
            losses = self._losses[-1] if self._losses else {}
            bar.stateful_metrics.update(losses)
            bar.update(step - first, list(losses.items()))
            if stop_signal := self.run.max_of_workers(self.run.stop_signal):
                self.save()
                print(f"Saved step {step} of {self.name}. The same command resumes.")
                raise SystemExit(128 + stop_signal)

    def record(self, step, losses):
        """Takes the losses of a finished step; raises if one is not finite."""
        if not all(math.isfinite(value) for value in losses.values()):
            raise TrainingStoppedError(
                f"Training diverged at {self.name} step {step}: {losses}. Try a lower "
                "--learning-rate, or --precision float32."
            )
        self.step = step
        if not self.run.is_chief:
            self._losses.clear()  # only reports need them
        self._losses.append(losses)
        gap = abs(losses.get("p_real", 0) - losses.get("p_fake", 0))
        self.one_sided_steps = self.one_sided_steps + 1 if gap > WINNING_GAP else 0
        if self.one_sided_steps == ONE_SIDED_STEPS:
            print(
                f"\nD(real) and D(fake) differ by {gap:.2f}: one network has won. See "
                "Troubleshooting in the README."
            )

    @saving("the log and pictures")
    def report(self, step, results):
        """Logs, draws and saves; `results` is a list of (sr, scores) per test image."""
        values = {}
        if self._losses:
            for name in self._losses[0]:
                values[name] = float(np.mean([losses[name] for losses in self._losses]))
        self._losses = []
        means = metrics.mean_scores([scores for _, scores in results])
        for name, value in means.items():
            values["mse_test" if name == "mse" else name] = value
        shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"\n{self.name} {step}: {shown}", flush=True)
        self._append_to_log({"phase": self.name, "step": step} | values)
        self._draw(step, results, means)
        if step > 0:
            self.save()

    def _append_to_log(self, record):
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / LOG_FILE
        line = json.dumps(record) + "\n"
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            line = "\n" + line  # the last one was cut short
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)

    def _draw(self, step, results, means):
        images_dir = Path(self.run.images_dir)
        columns, captions = [], []
        for image, (sr, scores) in zip(self.run.test_images, results, strict=True):
            lr, hr = to_uint8(image.lr), to_uint8(image.hr)
            panels = {"generated": sr, "low-resolution": lr}
            columns.append(panels | {"bicubic": enlarge_by_filter(lr), "original": hr})
            captions.append(f"{image.name}, {scores['psnr_y']:.2f} dB")
        if columns:
            title = f"step {step}, MSE loss {means['mse']:.5f}"
            if "perceptual" in means:
                title += f", perceptual loss {means['perceptual']:.5f}"
            path = images_dir / GRID_FOLDERS[self.name] / f"{step}.png"
            figures.save_grid(columns, path, title, captions)
        if self.name == TRAINING:
            for number, (sr, _) in enumerate(results):
                save_image(sr, images_dir / "_res_src_gan" / f"{step}_res{number}.png")
        records = self.run.read_log(PRE_TRAINING) + self.run.read_log(TRAINING)
        bicubic = self.run.filter_scores["bicubic"].get("psnr_y")
        path = images_dir / "training_curves.png"
        figures.save_training_curves(records, path, bicubic)

    def save(self):
        """Saves a checkpoint unless weights are not finite."""
        if not self.run.is_chief:
            return
        for name, model in self.models.items():
            if not all(np.isfinite(array).all() for array in model.get_weights()):
                raise TrainingStoppedError(
                    f"Training diverged: at {self.name} step {self.step}, weights of "
                    f"the {name} are not finite. Try a lower --learning-rate."
                )
        with saving(f"step {self.step} to {self.folder}"), self.averaged_weights():
            checkpoints.save(
                self.folder,
                self.step,
                models=self.models,
                optimizers=self.optimizers,
                state={"options": self.run.options, "losses": self._losses},
            )


def check_options(before, now, path, phase):
    """Refuses options that would mix two recipes, and prints other changes."""
    if now.get("degradation") == "photo":
        before = {"degradation": "bicubic"} | before  # of older checkpoints
    unused = ADVERSARIAL_OPTIONS if phase == PRE_TRAINING else ()
    for name, value in now.items():
        old = before.get(name, value)
        if old == value or name in unused:
            continue
        label = f"--{name.replace('_', '-')}"
        if name in PRESET_OPTIONS:
            label = f"--preset's {name.replace('_', ' ')}"
        if name in FIXED_OPTIONS:
            raise ValueError(
                f"{path} was trained with {label} {old}, not {value}. Use the same, if "
                "it still exists, or pass --restart to start over (the old state is "
                "kept beside it)."
            )
        print(f"Changed since the last run: {label}, from {old} to {value}.")
