"""What a training run shows and keeps: progress, log, pictures, checkpoints.

    run = TrainingRun("weights", "images", options, test_images)
    SRGAN().pre_train(loader, run=run)

Class SRGAN knows nothing of folders or terminals, and this module nothing of networks:
a `Phase` receives the models and optimizers that it keeps.
"""

import contextlib
import dataclasses
import json
import math
import platform
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
from PIL import Image

import checkpoints
import command_line
import figures
from checkpoints import list_steps
from metrics import PROTOCOL, format_table, mean_scores, measure, score
from pictures import enlarge_by_filter, save_image, to_float, to_uint8
from tiling import enlarge

PRE_TRAINING, TRAINING = "pre_training", "training"
GRID_FOLDERS = {PRE_TRAINING: "_res_gen", TRAINING: "_res_gan"}  # source
REALITY_BOUNDS = (0.05, 0.95)  # D(fake) and D(real) of a discriminator that has won
ONE_SIDED_STEPS = 500  # in a row, before the run warns of it
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # Ctrl-C, and a batch scheduler's
LOG_FILE = "log.jsonl"
# A resumed run that changed one of these would mix two recipes.
FIXED_OPTIONS = (
    *("dataset", "crop_size", "batch_size", "crops_per_image", "blur", "augment"),
    *("content_loss", "pretrain_loss", "network", "discriminator_bn", "seed"),
)
ADVERSARIAL_OPTIONS = ("content_loss", "discriminator_bn")  # may change before it


class TrainingStoppedError(RuntimeError):
    """Training cannot go on; earlier checkpoints are whole."""


class TrainingInterruptedError(Exception):
    """A signal stopped the run after its state was saved."""

    def __init__(self, signal_number, message):
        super().__init__(message)
        self.exit_code = 128 + signal_number


@dataclasses.dataclass
class TrainingRun:
    """The folders, options and test images that both phases of a run share.

    `options` is a dict of JSON values, saved with each checkpoint and compared on
    resuming; `test_images` a list of `TestImage`, shown at every report. Of several
    workers, only the chief writes; `agree(number)` returns the largest number that any
    worker passes.
    """

    weights_dir: Path = Path("weights")
    images_dir: Path = Path("images")
    options: dict = dataclasses.field(default_factory=dict)
    test_images: list = dataclasses.field(default_factory=list)
    is_chief: bool = True
    agree: callable = int
    stop_signal: int = 0
    _filter_scores: dict = dataclasses.field(default_factory=dict)

    def folder(self, phase):
        """Returns the `Path` of a phase's checkpoints and log."""
        return Path(self.weights_dir) / f"{phase}_checkpoints"

    @contextlib.contextmanager
    def signals(self):
        """Lets a signal end the run after the current step; a second one at once."""

        def remember(number, _):
            self.stop_signal = number
            signal.signal(number, signal.SIG_DFL)
            print("\nStopping after this step. Once more stops at once.", flush=True)

        try:
            previous = {n: signal.signal(n, remember) for n in STOP_SIGNALS}
        except ValueError:  # not in the main thread, as in a web server
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def clear_the_way(self, args):
        """Moves earlier state aside for `--restart`, and the demo's for a real run.

        Raises `ValueError` if the options do not fit what is to be resumed.
        """
        found = {}
        for phase in (PRE_TRAINING, TRAINING):
            if list_steps(self.folder(phase)) and not args.restart:
                found[phase] = checkpoints.find_newest(self.folder(phase))
        presets = [state["options"].get("preset") for _, state in found.values()]
        is_past_demo = "demo" in presets and args.preset != "demo"
        if (args.restart or is_past_demo) and args.initial_weights:
            checkpoints.find_weights(args.initial_weights)  # before anything is moved
        if args.restart:
            # Adversarial training alone starts over from the pre-trained generator.
            phases = (PRE_TRAINING, TRAINING) if args.pretrain_steps else (TRAINING,)
            self._set_aside(phases, "Starting over")
        elif is_past_demo:
            self._set_aside((PRE_TRAINING, TRAINING), "Leaving the demo's state")
        else:
            for phase, (path, state) in found.items():
                check_options(state["options"], self.options, path, phase)

    def _set_aside(self, phases, reason):
        for phase in phases:
            if self.folder(phase).exists():
                aside = checkpoints.set_aside(self.folder(phase), "old")
                print(f"{reason}: moved {self.folder(phase)} to {aside.name}.")

    @property
    def has_checkpoints(self):
        return self.has_trained or bool(list_steps(self.folder(PRE_TRAINING)))

    @property
    def has_trained(self):
        return bool(list_steps(self.folder(TRAINING)))

    def choose_start(self, generator, args):
        """Loads `--initial-weights` unless there are checkpoints to resume from."""
        if self.has_checkpoints:
            if args.initial_weights:
                print(f"Ignoring --initial-weights: resuming from {self.weights_dir}.")
        elif args.initial_weights:
            path = checkpoints.find_weights(args.initial_weights)
            checkpoints.load_weights(generator, path)
            print(f"The generator starts from {path}.")
        elif args.bn_freeze_step == 1 or args.bn_freeze_step > args.pretrain_steps == 0:
            raise ValueError(
                "--bn-freeze-step would fix the batch-norm statistics of random "
                "weights. Pre-train first, or pass --initial-weights."
            )
        else:
            print("No checkpoint found: starting from scratch.")

    def check_space(self, models):
        """Raises `OSError` unless a checkpoint of these models fits on the disk."""
        # Weights and two Adam moments, 4 bytes each.
        needed = 3 * 4 * sum(model.count_params() for model in models)
        Path(self.weights_dir).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.weights_dir).free
        if free < needed:
            raise OSError(
                f"A checkpoint takes {needed / 1e6:.0f} MB, but {self.weights_dir} has "
                f"{free / 1e6:.0f} MB left. Make room, or pass another --weights-dir."
            )

    def score_filters(self):
        """Returns the mean scores of bicubic and nearest-neighbour enlargement."""
        if not self._filter_scores:
            for name in ("bicubic", "nearest"):
                method = Image.Resampling[name.upper()]
                scores = []
                for image in self.test_images:
                    sr = enlarge_by_filter(to_uint8(image.lr), method)
                    scores.append(score(to_float(sr), image))
                self._filter_scores[name] = mean_scores(scores)
        return self._filter_scores

    def conclude(self, results):
        """Saves the final images, prints the scores and where everything is."""
        images_dir = Path(self.images_dir)
        for number, (sr, _) in enumerate(results):
            save_image(sr, images_dir / "_res" / f"{number}.png")
        scores = {"this run": mean_scores([scores for _, scores in results])}
        table = {f"mean of {len(results)}": scores | self.score_filters()}
        print(f"\n{PROTOCOL}\n{format_table(table)}\n")
        if self.options.get("preset") == "demo":
            self._compare_with_shipped(results)
        weights = self.folder(TRAINING if self.has_trained else PRE_TRAINING)
        print(
            f"Results, grids, curves: {images_dir}/_res, _res_gen (pre-training), "
            "_res_gan, training_curves.png\n"
            f"Checkpoints: {weights}\n"
            f"Next: python evaluate.py --weights {weights}"
        )

    def _compare_with_shipped(self, results):
        """Shows what hours of training make of an image, beside the demo's minutes."""
        image, (sr, _) = self.test_images[0], results[0]
        panels = {"bicubic": enlarge_by_filter(to_uint8(image.lr)), "this demo": sr}
        for name in checkpoints.list_shipped():
            if name.endswith("-source"):  # trained with the demo's blur
                generator, _ = checkpoints.load_generator(name)
                panels[name] = enlarge(generator, image.lr, encode=to_uint8)
        hr = to_uint8(image.hr)
        captions = {
            label: f"{measure(panel, hr)['psnr_y']:.2f} dB"
            for label, panel in panels.items()
        }
        path = Path(self.images_dir, "comparison.png")
        panels["original"] = hr
        figures.save_comparison_sheet(panels, path, captions, title=image.name)
        print(f"The demo's minutes beside the shipped weights' hours: {path}")

    def read_log(self, phase):
        """Reads a phase's log, without lines that were cut short."""
        records = {}
        path = self.folder(phase) / LOG_FILE
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                record = json.loads(line)
                records[int(record["step"])] = record  # steps done again replace theirs
        return list(records.values())


class Phase:
    """One phase of a run: its step, log, pictures and checkpoints.

    Args:
        run: `TrainingRun`.
        name: `"pre_training"` or `"training"`.
        models: dict of name to `keras.Model`, kept in its checkpoints.
        optimizers: dict of name to built optimizer, kept likewise.
    """

    def __init__(self, run, name, models, optimizers):
        self.run = run
        self.name = name
        self.models = models
        self.optimizers = optimizers
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
        log = self.folder / LOG_FILE
        if log.exists() and not log.read_bytes().endswith(b"\n"):
            log.write_bytes(log.read_bytes() + b"\n")  # a line was cut short
        self._losses = state.get("losses", [])
        self.one_sided_steps = state.get("one_sided_steps", 0)
        print(f"Resuming from {path}.")
        return self.step

    def steps(self, num_steps):
        """Yields the remaining steps and shows progress.

        Raises `TrainingInterruptedError` after a signal, once the state is saved.
        """
        if 0 < num_steps <= self.step:
            print(f"All {num_steps} steps of {self.name} are done.")
        first = self.step
        bar = command_line.progress_bar(max(0, num_steps - first), "step")
        for step in range(first + 1, num_steps + 1):
            yield step
            losses = self._losses[-1] if self._losses else {}
            bar.stateful_metrics.update(losses)
            bar.update(step - first, list(losses.items()))
            if stop_signal := self.run.agree(self.run.stop_signal):
                self.save()
                raise TrainingInterruptedError(
                    stop_signal,
                    f"Saved step {self.step} of {self.name}. Run the same command "
                    "again to resume.",
                )

    def record(self, step, losses):
        """Takes the losses of a finished step; raises if one is not finite."""
        if not all(math.isfinite(value) for value in losses.values()):
            raise TrainingStoppedError(
                f"Training diverged at {self.name} step {step}: {losses}. Earlier "
                "checkpoints are whole. Try a lower --learning-rate, or --precision "
                "float32."
            )
        self.step = step
        if not self.run.is_chief:
            self._losses.clear()  # which only reports need
        self._losses.append(losses)
        low, high = REALITY_BOUNDS
        real, fake = losses.get("p_real", 0.5), losses.get("p_fake", 0.5)
        has_winner = min(real, fake) < low and max(real, fake) > high
        self.one_sided_steps = self.one_sided_steps + 1 if has_winner else 0
        if self.one_sided_steps == ONE_SIDED_STEPS:
            print(
                f"\nD(real) {real:.2f} and D(fake) {fake:.2f} for {ONE_SIDED_STEPS} "
                "steps: one network has won, and the generator learns little from the "
                "other. See Troubleshooting in the README."
            )

    def report(self, step, results):
        """Logs, draws and saves; `results` is a list of (sr, scores) per test image."""
        record = {"phase": self.name, "step": step}
        for name in self._losses[0] if self._losses else ():
            record[name] = float(np.mean([losses[name] for losses in self._losses]))
        means = mean_scores([scores for _, scores in results])
        record |= {"mse_test" if k == "mse" else k: v for k, v in means.items()}
        self._losses = []
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        shown = [
            f"{k} {v:.4g}" for k, v in record.items() if k not in ("phase", "step")
        ]
        print(f"\n{self.name} {step}: {', '.join(shown)}", flush=True)
        self._draw(step, results, means)
        if step > 0:
            self.save()

    def _draw(self, step, results, means):
        images_dir = Path(self.run.images_dir)
        columns, captions = [], []
        for image, (sr, scores) in zip(self.run.test_images, results, strict=True):
            lr, hr = to_uint8(image.lr), to_uint8(image.hr)
            columns.append(
                {
                    "generated": sr,
                    "low-resolution": lr,
                    "bicubic": enlarge_by_filter(lr),
                    "original": hr,
                }
            )
            captions.append(f"{image.name}, {scores['psnr_y']:.2f} dB")
        if columns:
            title = f"step {step}, MSE loss {means['mse']:.5f}"
            if "perceptual" in means:
                title += f", perceptual loss {means['perceptual']:.5f}"
            path = images_dir / GRID_FOLDERS[self.name] / f"{step}.png"
            figures.save_grid(columns, path, title, captions=captions)
        for number, (sr, _) in enumerate(results if self.name == TRAINING else ()):
            save_image(sr, images_dir / "_res_src_gan" / f"{step}_res{number}.png")
        records = self.run.read_log(PRE_TRAINING)
        if self.name == TRAINING:
            records += self.run.read_log(TRAINING)
        path = images_dir / "training_curves.png"
        bicubic = self.run.score_filters()["bicubic"].get("psnr_y")
        figures.save_training_curves(records, path, bicubic)

    def save(self):
        """Saves a checkpoint; raises `TrainingStoppedError` if that is impossible."""
        if not self.run.is_chief:
            return
        for name, model in self.models.items():
            if not all(np.isfinite(array).all() for array in model.get_weights()):
                raise TrainingStoppedError(
                    f"Training diverged: at {self.name} step {self.step}, weights of "
                    f"the {name} are not finite. Try a lower --learning-rate."
                )
        state = {
            "options": self.run.options,
            "losses": self._losses,
            "one_sided_steps": self.one_sided_steps,
            "versions": {
                "python": platform.python_version(),
                "keras": keras.__version__,
            },
        }
        try:
            self.run.check_space(self.models.values())
            checkpoints.save(
                self.folder, self.step, self.models, self.optimizers, state
            )
        except (OSError, RuntimeError) as error:  # HDF5 raises either
            raise TrainingStoppedError(
                f"Cannot save step {self.step} to {self.folder}: {error}. Earlier "
                "checkpoints are whole. Make room, then run the same command again."
            ) from error


def check_options(before, now, path, phase):
    """Refuses options that would mix two recipes, and prints other changes."""
    for name, value in now.items():
        old = before.get(name, value)
        is_unused = phase == PRE_TRAINING and name in ADVERSARIAL_OPTIONS
        if old == value or is_unused:
            continue
        flag = f"--{name.replace('_', '-')}"
        if name in FIXED_OPTIONS:
            raise ValueError(
                f"{path} was trained with {flag} {old}, not {value}. Use the same, or "
                "pass --restart to start over (the old state is kept beside it)."
            )
        print(f"Changed since the last run: {flag}, from {old} to {value}.")
