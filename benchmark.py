"""Measures this suite against "the source's way", side by side in one process.

    python benchmark.py                              # the networks, 96 px, batch 16
    python benchmark.py --crop-size 256 --json speed.json
    python benchmark.py --data                       # reading of images alone

The source's way, with the same weights and batches: upsampled tensors are made
(`UpSampling2D`, then `Conv2D`), Keras's own `BatchNormalization`, `predict` calls,
images read in the training thread, always float32. `--precision` is of ours.
"""

import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import command_line
import distribution
import networks
from data_loader import (
    BATCHES_AHEAD,
    SCALE,
    SOURCE_BLUR,
    SOURCE_CROP,
    Batch,
    DataLoader,
    degrade,
    open_image,
    to_float,
)
from quiet import keras
from srgan import BATCH_SIZE, SRGAN

OURS, SOURCE = "ours", "the source's way"
SIDES = {"ours": OURS, "source": SOURCE}  # values of --side
TASKS = ("pre-training", "adversarial", "inference", "loading")
BACKWARD_FACTOR = 3  # a training step: forward, and gradients of inputs and weights
FROZEN_FACTOR = 2  # through frozen networks: forward, and gradients of inputs
PRODUCT_SIDE = 2048  # of the square matrices whose product is the ceiling
PRODUCT_RUNS = 3  # the fastest counts
PRODUCT_SECONDS = 0.005  # at least, of one: the side is doubled for fast GPUs

IMAGE_SIZE = (640, 480)  # px, width and height of the JPEGs that are read
NUM_JPEGS = 8  # distinct ones; the others are links to them
FEW_FILES, MANY_FILES = 2_000, 20_000  # so many that decoded images seldom come again
DATA_BATCHES = 15  # in each repeat of `--data`
SIMULATED_STEP = 0.060  # seconds, of training on a GPU


class Times(NamedTuple):
    """One measurement: seconds a step, and seconds of it spent waiting for data."""

    seconds: float
    waited: float


# The source's way ------------------------------------------------------------


class SourceWay(SRGAN):
    """SRGAN as the source computes it, with the weights of one of ours.

    Args:
        gan: `SRGAN`, whose weights are copied.
        content_loss: as for `SRGAN`; VGG19, if any, has the same random weights.
        num_residual_blocks: as for `gan`.
        num_filters: as for `gan`.
    """

    def __init__(self, gan, content_loss, num_residual_blocks=16, num_filters=64):
        sizes = {"num_residual_blocks": num_residual_blocks, "num_filters": num_filters}
        super().__init__(content_loss, vgg_weights=None, **sizes)
        self.generator = build_source_generator(**sizes)
        self.discriminator.trainable = True  # a copy of a frozen one stays frozen
        self.discriminator = keras.models.clone_model(
            self.discriminator, clone_function=_with_keras_normalization
        )
        self.pretrainer = self._build_pretrainer(self._build_adam())
        self.discriminator_trainer = self._build_discriminator_trainer()
        self.combined = self._build_combined(self._build_adam())
        self.generator.set_weights(gan.generator.get_weights())
        self.discriminator.set_weights(gan.discriminator.get_weights())
        if self.vgg is not None:
            self.vgg.set_weights(gan.vgg.get_weights())

    def _infer(self, model, images):
        return model.predict(images, verbose=0)


def build_source_generator(num_residual_blocks=16, num_filters=64):
    """Builds the generator layer by layer as the source does.

    Args:
        num_residual_blocks: int >= 0.
        num_filters: int >= 1.

    Returns:
        An uncompiled `keras.Model`, equal to that of `networks.build_generator`.
    """
    layers = keras.layers

    def convolve(features, filters, kernel_size=3, activation=None):
        return layers.Conv2D(
            filters, kernel_size, padding="same", activation=activation
        )(features)

    def normalize(features):
        return layers.BatchNormalization(momentum=networks.BATCH_NORM_MOMENTUM)(
            features
        )

    lr = keras.Input((None, None, 3))
    skip = features = convolve(lr, num_filters, 9, "relu")
    for _ in range(num_residual_blocks):
        inputs = features
        features = normalize(convolve(features, num_filters, activation="relu"))
        features = normalize(convolve(features, num_filters))
        features = layers.Add()([features, inputs])
    features = normalize(convolve(features, num_filters))
    features = layers.Add()([features, skip])
    for _ in range(2):
        features = layers.UpSampling2D(2)(convolve(features, 4 * num_filters))
        features = layers.Activation("relu")(features)
    return keras.Model(lr, convolve(features, 3, 9, "tanh"), name="generator")


def _with_keras_normalization(layer):
    kind = type(layer)
    if isinstance(layer, keras.layers.BatchNormalization):
        kind = keras.layers.BatchNormalization
    return kind.from_config(layer.get_config())


def load_in_the_training_thread(paths, random, batch_size, crop_size):
    """Makes a batch as the source does: one image, decoded now, random crops.

    Args:
        paths: list of image files.
        random: `numpy.random.Generator`.
        batch_size: int >= 1.
        crop_size: int, px.

    Returns:
        `Batch(lr, hr)`, float32 RGB in [-1, 1].
    """
    image = open_image(paths[random.integers(len(paths))])
    hr, lr = [], []
    for _ in range(batch_size):
        left, top = (int(random.integers(side - crop_size + 1)) for side in image.size)
        crop = image.crop((left, top, left + crop_size, top + crop_size))
        small = degrade(crop, SOURCE_BLUR)
        if random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        hr.append(np.asarray(crop))
        lr.append(np.asarray(small))
    return Batch(to_float(np.stack(lr)), to_float(np.stack(hr)))


# Counting operations ---------------------------------------------------------


def count_multiply_adds(model, image_shape):
    """Counts the multiply-adds of one forward pass, as the layers compute it.

    An `UpsampleConv2D` counts what it does, not what it stands for. Biases,
    activations and normalisation are left out.

    Args:
        model: `keras.Model`, a chain of layers with additions across it.
        image_shape: `(n, h, w, 3)`.

    Returns:
        int.
    """
    shape, total = tuple(image_shape), 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Add | keras.layers.InputLayer):
            continue
        output_shape = layer.compute_output_shape(shape)
        if isinstance(layer, networks.UpsampleConv2D):
            kernel = layer._folded_kernel()  # applied once to each input pixel
            total += int(np.prod(shape[:3])) * int(np.prod(kernel.shape))
        elif isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            positions = int(np.prod(output_shape[:3]))
            total += positions * int(np.prod(layer.kernel.shape))
        shape = output_shape
    return total


def count_operations(gan, batch):
    """Counts the floating-point operations of each task (2 per multiply-add).

    Args:
        gan: `SRGAN`.
        batch: `Batch`.

    Returns:
        dict of task to int.
    """
    generator = count_multiply_adds(gan.generator, batch.lr.shape)
    judge = count_multiply_adds(gan.discriminator, batch.hr.shape)
    features = 0 if gan.vgg is None else count_multiply_adds(gan.vgg, batch.hr.shape)
    adversarial = (
        generator  # the fakes
        + 2 * BACKWARD_FACTOR * judge  # on originals and fakes
        + features  # of the originals
        + BACKWARD_FACTOR * generator
        + FROZEN_FACTOR * (judge + features)
    )
    counts = {
        "pre-training": BACKWARD_FACTOR * generator,
        "adversarial": adversarial,
        "inference": generator,
        "loading": BACKWARD_FACTOR * generator,
    }
    return {task: 2 * count for task, count in counts.items()}


def measure_ceiling(precision):
    """Measures the fastest product of two large matrices.

    Args:
        precision: dtype policy; its compute type is taken.

    Returns:
        float, operations a second.
    """
    side = PRODUCT_SIDE
    while (seconds := _time_product(side, precision)) < PRODUCT_SECONDS:
        side *= 2
    return 2 * side**3 / seconds


def _time_product(side, precision):
    """Returns the seconds that the fastest of some products of matrices takes."""
    dtype = keras.DTypePolicy(precision).compute_dtype
    random = np.random.default_rng(0)
    matrix = random.standard_normal((side, side), "float32")
    matrix = keras.ops.cast(keras.ops.convert_to_tensor(matrix), dtype)
    fastest = np.inf
    for _ in range(PRODUCT_RUNS + 1):  # the first one also prepares
        started = time.perf_counter()
        product = keras.ops.matmul(matrix, matrix)
        keras.ops.convert_to_numpy(keras.ops.cast(product[0], "float32"))  # waits
        fastest = min(fastest, time.perf_counter() - started)
    return fastest


# Measuring -------------------------------------------------------------------


def build_sides(args, num_residual_blocks=16, num_filters=64, names=(OURS, SOURCE)):
    """Builds the sides with the same random weights.

    Args:
        args: `argparse.Namespace` of `parse_args`.
        num_residual_blocks: int >= 0.
        num_filters: int >= 1.
        names: tuple of str, the sides that are wanted.

    Returns:
        dict of name to `SRGAN`.
    """
    keras.utils.set_random_seed(0)
    usual = keras.config.dtype_policy()
    sizes = {"num_residual_blocks": num_residual_blocks, "num_filters": num_filters}
    keras.config.set_dtype_policy(args.precision)
    try:
        sides = {OURS: SRGAN(args.content_loss, vgg_weights=None, **sizes)}
        if SOURCE in names:
            keras.config.set_dtype_policy("float32")
            sides[SOURCE] = SourceWay(sides[OURS], args.content_loss, **sizes)
        return {name: sides[name] for name in names}
    finally:
        keras.config.set_dtype_policy(usual)


def measure_tasks(sides, batch, args, folder):
    """Times all tasks on both sides, in turns.

    Args:
        sides: dict of `build_sides`.
        batch: `Batch`, the same for both.
        args: `argparse.Namespace` of `parse_args`.
        folder: path of the images for the task "loading".

    Returns:
        dict of task to dict of side to list of `Times`, one a repeat.
    """
    loader = DataLoader(folder, crop_size=args.crop_size)
    paths = [file.path for file in loader.files]
    random = np.random.default_rng(0)

    def run(task, name):
        waited = 0.0
        for _ in range(args.steps):
            images = batch
            if task == "loading":
                started = time.perf_counter()
                images = (
                    loader.load_data(args.batch_size)
                    if name == OURS
                    else load_in_the_training_thread(
                        paths, random, args.batch_size, args.crop_size
                    )
                )
                waited += time.perf_counter() - started
            run_step(sides[name], task, images)
        return waited

    results = {}
    with loader:
        for task in TASKS if args.which == "all" else (args.which,):
            results[task] = {name: [] for name in sides}
            for repeat in range(args.repeats + 1):
                for name in sides:
                    started = time.perf_counter()
                    waited = run(task, name)
                    seconds = time.perf_counter() - started
                    if repeat > 0:  # the first one also builds graphs
                        times = Times(seconds / args.steps, waited / args.steps)
                        results[task][name].append(times)
    return results


def run_step(gan, task, batch):
    """Does one step of a task; its result is on the host when it returns.

    Args:
        gan: `SRGAN`.
        task: str, one of `TASKS`.
        batch: `Batch`.
    """
    if task == "inference":
        np.asarray(gan._infer(gan.generator, batch.lr))
    elif task == "adversarial":
        gan.train_discriminator_on_batch(*batch)
        gan.train_generator_on_batch(*batch)
    else:
        gan.pre_train_on_batch(*batch)


def summarize(results, operations, ceilings, batch_size):
    """Reduces measurements to one dict for each task and side.

    Args:
        results: dict of `measure_tasks`.
        operations: dict of side to dict of `count_operations`.
        ceilings: dict of side to float of `measure_ceiling`.
        batch_size: int.

    Returns:
        list of dicts; `"ratio"`, quartiles of the source's time by ours in the
        same repeat, is there on our side only.
    """
    rows = []
    for task, sides in results.items():
        for name, times in sides.items():
            seconds = np.array([time.seconds for time in times])
            rate = operations[name][task] / np.median(seconds)
            row = {
                "task": task,
                "side": name,
                "seconds": quartiles(seconds),
                "images_per_second": batch_size / float(np.median(seconds)),
                "gigaflop": operations[name][task] / 1e9,
                "gigaflop_per_second": rate / 1e9,
                "share_of_ceiling": rate / ceilings[name],
                "waited": sum(time.waited for time in times) / float(seconds.sum()),
            }
            if name == OURS:
                others = [time.seconds for time in sides[SOURCE]]
                row["ratio"] = quartiles(np.array(others) / seconds)
            rows.append(row)
    return rows


def quartiles(values):
    """Returns median, lower and upper quartile, a list of floats."""
    return [float(value) for value in np.quantile(values, (0.5, 0.25, 0.75))]


# Reading images --------------------------------------------------------------


def write_images(folder, count):
    """Writes JPEGs of `IMAGE_SIZE`, then links to them, `count` in all.

    Args:
        folder: `Path`, made if need be.
        count: int >= 1.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if number < NUM_JPEGS:
            coarse = random.integers(0, 256, (48, 64, 3), dtype="uint8")
            image = Image.fromarray(coarse).resize(IMAGE_SIZE, Image.Resampling.BICUBIC)
            image.save(path, quality=90)
        else:
            os.link(folder / f"{number % NUM_JPEGS:06d}.jpg", path)


def measure_data(args, folder):
    """Measures reading alone: batches of `SOURCE_CROP` px, as the source's.

    Args:
        args: `argparse.Namespace` of `parse_args`.
        folder: `Path` for the images.

    Returns:
        dict of floats: milliseconds a batch, and the share of the time that
        training waits while a step takes `SIMULATED_STEP` seconds.
    """
    results, random = {}, np.random.default_rng(0)
    count, size = args.repeats * DATA_BATCHES, args.batch_size
    for num_files in (FEW_FILES, MANY_FILES):
        write_images(folder / str(num_files), num_files)
        with DataLoader(folder / str(num_files)) as loader:
            paths = [file.path for file in loader.files]
            started = time.perf_counter()
            for _ in range(count):
                load_in_the_training_thread(paths, random, size, SOURCE_CROP)
            results[f"one_thread_{num_files}"] = _milliseconds(started, count)
            for _ in range(BATCHES_AHEAD + 1):  # until the threads are in full swing
                loader.load_data(size)
            started = time.perf_counter()
            for _ in range(count):
                loader.load_data(size)
            results[f"threads_{num_files}"] = _milliseconds(started, count)
            time.sleep(BATCHES_AHEAD * SIMULATED_STEP)  # training has begun before
            waited, started = 0.0, time.perf_counter()
            for _ in range(count):
                asked = time.perf_counter()
                loader.load_data(size)
                waited += time.perf_counter() - asked
                time.sleep(SIMULATED_STEP)
            share = waited / (time.perf_counter() - started)
            results[f"waited_{num_files}"] = share
    return results


def _milliseconds(started, count):
    return 1e3 * (time.perf_counter() - started) / count


# Telling ---------------------------------------------------------------------


def describe_machine():
    """Names processor, device and versions; a dict of str and int."""
    processor = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in cpu_info.read_text().splitlines()
            if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    backend = keras.backend.backend()
    module = importlib.import_module(backend)
    if backend == "torch":
        is_gpu = module.cuda.is_available()
        devices = [module.cuda.get_device_name()] if is_gpu else ["cpu"]
    else:
        devices = keras.distribution.list_devices()
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "devices": ", ".join(devices),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": f"{backend} {module.__version__}",
    }


def peak_memory():
    """Returns the largest memory of the whole process so far in MB, or `None`."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def measure_memory(arguments):
    """Measures the peak memory of each side, in a process of its own.

    Args:
        arguments: list of str, the command line.

    Returns:
        dict of side to megabytes of the host, `None` where they are not known.
    """
    peaks = {}
    for side, name in SIDES.items():
        command = [sys.executable, __file__, *arguments, "--side", side]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            print(f"Memory of {name} is not known: {result.stderr.strip()[-200:]}")
        peaks[name] = None if result.returncode else json.loads(result.stdout)
    return peaks


def run_side(args):
    """Does one step of each task on one side; prints the peak memory in MB.

    Args:
        args: `argparse.Namespace` of `parse_args`.
    """
    name = SIDES[args.side]
    gan = build_sides(args, names=(name,))[name]
    random = np.random.default_rng(0)
    shape = (args.batch_size, args.crop_size, args.crop_size, 3)
    hr = random.uniform(-1, 1, shape).astype("float32")
    for task in TASKS if args.which == "all" else (args.which,):
        run_step(gan, task, Batch(hr[:, ::SCALE, ::SCALE], hr))
    print(json.dumps(peak_memory()))


def print_report(report):
    """Prints the tables.

    Args:
        report: dict, as written to `--json`.
    """
    print("  ".join(f"{key} {value}" for key, value in report["machine"].items()))
    if "rows" in report:
        _print_rows(report)
    for key, value in report.get("data", {}).items():
        kind, _, count = key.rpartition("_")
        text = {
            "one_thread": "ms a batch, the source's way, one thread",
            "threads": "ms a batch, ours, made ahead by threads",
            "waited": f"% of time waited, steps of {1e3 * SIMULATED_STEP:.0f} ms",
        }[kind]
        value = 100 * value if kind == "waited" else value
        print(f"{value:8.2f} {text}, {int(count):,} files")
    for name, peak in report.get("peak_megabytes", {}).items():
        if peak is not None:
            print(f"Peak memory of a process on the host, {name}: {peak:,.0f} MB")


def _print_rows(report):
    for name, ceiling in report["ceilings"].items():
        print(f"Matrix product for {name}: {ceiling / 1e9:,.0f} GFLOP/s")
    print(
        f"\n{'':13}{'':17}{'ms a step (quartiles)':>24}{'images/s':>10}"
        f"{'GFLOP':>9}{'GFLOP/s':>9}{'ceiling':>9}{'waited':>8}"
    )
    for row in report["rows"]:
        median, low, high = (1e3 * value for value in row["seconds"])
        spread = f"{median:.1f} ({low:.1f}-{high:.1f})"
        print(
            f"{row['task']:13}{row['side']:17}{spread:>24}"
            f"{row['images_per_second']:10.1f}{row['gigaflop']:9.1f}"
            f"{row['gigaflop_per_second']:9.1f}{row['share_of_ceiling']:9.1%}"
            f"{row['waited']:8.1%}"
        )
    print()
    for row in report["rows"]:
        if "ratio" in row:
            median, low, high = row["ratio"]
            print(f"{row['task']:13}{median:.2f}x as fast ({low:.2f}-{high:.2f})")


# Command line ----------------------------------------------------------------

FLAGS = {
    "what is measured": (
        ("--which", ("all", *TASKS), "loading: pre-training that reads its images"),
        (
            "--data",
            bool,
            "reading of 256 px crops alone; heeds --batch-size, --repeats, --json",
        ),
        ("--side", tuple(SIDES), "print the peak memory of one side, nothing else"),
        ("--content-loss", ("mse", "source"), "source: VGG19, random weights"),
        ("--precision", ("float32", "mixed_bfloat16", "mixed_float16"), "of ours"),
    ),
    "sizes": (
        ("--crop-size", command_line.positive_int, "HR crop side, px, multiple of 4"),
        ("--batch-size", command_line.positive_int, "crops a step"),
        ("--repeats", command_line.positive_int, "measurements of each side, in turns"),
        ("--steps", command_line.positive_int, "steps in each measurement"),
    ),
    "results": (("--json", "FILE", "also write them to this file"),),
}
DEFAULTS = {
    "which": "all",
    "data": False,
    "content_loss": "source",
    "precision": "float32",
    "crop_size": 96,
    "batch_size": BATCH_SIZE,
    "repeats": 7,
    "steps": 3,
}


def parse_args(arguments=None):
    """Reads the command line.

    Args:
        arguments: list of str; by default the process's.

    Returns:
        `argparse.Namespace`.
    """
    parser = command_line.ArgumentParser(
        prog="benchmark.py",
        usage="python benchmark.py [flags]",
        description=__doc__,
    )
    command_line.add_flags(parser, FLAGS, DEFAULTS)
    parser.set_defaults(**DEFAULTS)
    args = parser.parse_args(arguments)
    if args.crop_size % SCALE or not 16 <= args.crop_size <= min(IMAGE_SIZE):
        parser.error(
            f"--crop-size is a multiple of {SCALE} from 16 to {min(IMAGE_SIZE)}, "
            f"received {args.crop_size}."
        )
    return args


def measure_networks(args, folder):
    """Measures both sides of all tasks.

    Args:
        args: `argparse.Namespace` of `parse_args`.
        folder: `Path` for images.

    Returns:
        dict, the part of the report that is of networks.
    """
    sides = build_sides(args)
    write_images(folder, FEW_FILES)
    with DataLoader(folder, crop_size=args.crop_size) as loader:
        batch = loader.make_batch(0, args.batch_size)
    # Both before and after, lest something else ran at the time.
    before = measure_ceiling(args.precision), measure_ceiling("float32")
    results = measure_tasks(sides, batch, args, folder)
    after = measure_ceiling(args.precision), measure_ceiling("float32")
    ceilings = dict(zip(sides, map(max, before, after), strict=True))
    operations = {name: count_operations(gan, batch) for name, gan in sides.items()}
    rows = summarize(results, operations, ceilings, args.batch_size)
    return {"rows": rows, "ceilings": ceilings}


def main(argv=None):
    """Measures as the command line says.

    Args:
        argv: list of str; by default the process's arguments.

    Returns:
        int, exit code.
    """
    args = parse_args(argv)
    distribution.grow_gpu_memory()
    if args.side:
        run_side(args)
        return 0
    try:
        if args.json:
            command_line.check_result_path(args.json, "--json")
    except OSError as error:
        command_line.fail(error, "benchmark.py")
    if args.data:
        print(f"Reading of {args.batch_size} crops of {SOURCE_CROP} px a batch")
    else:
        print(
            f"{args.batch_size} crops of {args.crop_size} px a step; ours in "
            f"{args.precision}, the source's way in float32"
        )
        if args.content_loss == "source":
            print("VGG19 has random weights: enough for timing, for nothing else")
    report = {"options": vars(args)}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # scans of these folders are not kept
        images = Path(folder) / "images"
        if args.data:
            report["data"] = measure_data(args, images)
        else:
            # First: later, this process holds the device.
            arguments = sys.argv[1:] if argv is None else argv
            report["peak_megabytes"] = measure_memory(arguments)
            report |= measure_networks(args, images)
    report["machine"] = describe_machine()
    print_report(report)
    if args.json:
        try:
            Path(args.json).write_text(json.dumps(report, indent=1))
        except OSError as error:
            command_line.fail(f"Cannot write {args.json}: {error}.", "benchmark.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
