"""Measures the speed of this suite beside the source's way, in one process.

    python benchmark.py                                  # 96 px crops, batches of 16
    python benchmark.py --which inference --precision mixed_bfloat16

Both sides have the same networks, weights, losses and batches. They differ in:

                ours                             the source's way
    upsampling  `UpsampleConv2D`, with 4/9 of    `UpSampling2D`, then `Conv2D` on the
                (3x3), or 25/81 of (9x9), the    enlarged tensor
                source's multiply-adds
    batch norm  TensorFlow's fused kernel        Keras 3's own layer
    inference   `predict_on_batch`               `predict`
    dtype       --precision                      float32

An adversarial step updates the discriminator twice and the generator once. Inference
enlarges one batch. Images and VGG19 are random, which is enough to measure speed.

The sides take turns, so that a disturbance hits both; the first turn, which traces the
graphs, does not count. The ratio is the source's time divided by ours of that turn.
"The source's way" is its script on Keras 3; Keras 2 had the fused kernel, too.
"""

import json
import platform
import time
from pathlib import Path

from support import command_line

with command_line.quiet_imports(__name__):
    import re
    from importlib import import_module

    import keras
    import numpy as np

    import layers
    from data_loader import Batch, check_crop_size
    from srgan import SRGAN
    from support.command_line import PRECISIONS, positive_int
    from support.image_files import write_text
    from support.pixels import SCALE

TASKS = ("pre-training", "adversarial", "inference")


class SourceSRGAN(SRGAN):
    """SRGAN as the source computes it; takes the arguments of `SRGAN`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.generator = build_source_generator(self.generator)
        self.discriminator.trainable = True  # the clone of a frozen one stays frozen
        self.discriminator = _with_keras_batch_norm(self.discriminator)
        self.pretrainer = self._build_pretrainer()
        self.discriminator_trainer = self._build_discriminator_trainer()
        self.combined = self._build_combined()

    def _infer(self, model, images):
        return model.predict(images, verbose=0)


def build_source_generator(generator):
    """Builds one of `networks.build_generator` anew, upsampling as the source does."""
    layers = keras.layers
    additions = [layer for layer in generator.layers if isinstance(layer, layers.Add)]
    features = additions[-1].output
    num_filters = features.shape[-1]
    for _ in range(2):
        features = layers.Conv2D(4 * num_filters, 3, padding="same")(features)
        features = layers.UpSampling2D(2)(features)
        features = layers.Activation("relu")(features)
    sr = layers.Conv2D(3, 9, padding="same", activation="tanh")(features)
    return _with_keras_batch_norm(keras.Model(generator.inputs[0], sr))


def _with_keras_batch_norm(model):
    def clone(layer):
        is_ours = isinstance(layer, layers.BatchNormalization)
        kind = keras.layers.BatchNormalization if is_ours else type(layer)
        return kind.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone)


def build_sides(content_loss, precision, num_residual_blocks=16, num_filters=64):
    """Builds both sides with the same random weights; a dict of name to `SRGAN`."""
    sizes = {"num_residual_blocks": num_residual_blocks, "num_filters": num_filters}
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    ours = SRGAN(content_loss, vgg_weights=None, **sizes)
    keras.config.set_dtype_policy(keras.config.floatx())
    source = SourceSRGAN(content_loss, vgg_weights=None, **sizes)
    for name in ("generator", "discriminator", "vgg"):
        if getattr(ours, name) is not None:
            getattr(source, name).set_weights(getattr(ours, name).get_weights())
    return {"ours": ours, "source": source}


def run_step(gan, task, batch):
    """Does one step of a task; returns when its results are on the host."""
    if task == "inference":
        np.asarray(gan._infer(gan.generator, batch.lr))
    elif task == "adversarial":
        gan.train_discriminator_on_batch(*batch)
        gan.train_generator_on_batch(*batch)
    else:
        gan.pre_train_on_batch(*batch)


def measure(sides, task, batch, args):
    """Times a task in turns; returns a dict of name to [median, lower, upper]."""
    turns = []
    for _ in range(args.repeats + 1):
        turns.append([])
        for gan in sides.values():
            started = time.perf_counter()
            for _ in range(args.steps):
                run_step(gan, task, batch)
            turns[-1].append((time.perf_counter() - started) / args.steps)
    ours, source = np.transpose(turns[1:])
    columns = {"ours": ours, "source": source, "ratio": source / ours}
    shares = (0.5, 0.25, 0.75)
    return {name: np.quantile(x, shares).tolist() for name, x in columns.items()}


def describe_machine():
    """Returns a list of lines: processor, device, versions."""
    cpu_info, backend = Path("/proc/cpuinfo"), keras.backend.backend()
    text = cpu_info.read_text() if cpu_info.exists() else ""
    names = re.findall(r"model name\s*: (.+)", text) or [platform.processor()]
    python, version = platform.python_version(), import_module(backend).__version__
    versions = f"Python {python}, Keras {keras.version()}, {backend} {version}"
    return [f"Machine: {names[0]}", command_line.describe_device(), versions]


def parse_args(argv=None):
    """Reads the command line."""
    parser = command_line.ArgumentParser(prog="benchmark.py", description=__doc__)
    add = parser.add_argument
    add("--which", choices=("all", *TASKS), default="all", help="task to measure")
    add(
        "--content-loss",
        choices=("mse", "source"),
        default="source",
        help="compare pixels, or features of VGG19",
    )
    add("--precision", choices=PRECISIONS, default="float32", help="our compute dtype")
    add("--crop-size", type=positive_int, metavar="PX", default=96, help="HR crop side")
    add(
        "--batch-size",
        type=positive_int,
        metavar="N",
        default=16,
        help="crops per step",
    )
    add("--repeats", type=positive_int, metavar="N", default=7, help="turns per side")
    add("--steps", type=positive_int, metavar="N", default=3, help="steps per turn")
    add("--json", metavar="FILE", help="file for the results as JSON")
    return parser.parse_args(argv)


def main(argv=None):
    """Measures as the command line says, and returns the exit code."""
    args = parse_args(argv)
    with command_line.usage_errors():
        if args.json:
            command_line.check_writable(args.json, "json")
        check_crop_size(args.crop_size)
    report = {"machine": describe_machine(), "options": vars(args), "tasks": {}}
    print(*report["machine"], sep="\n")
    print("Options:", ", ".join(f"{k} {v}" for k, v in vars(args).items()))
    print(f"{'seconds per step':22}{'median':>10}{'lower':>10}{'upper':>10}")
    sides = build_sides(args.content_loss, args.precision)
    hr = np.random.default_rng(0).uniform(
        -1, 1, (args.batch_size, args.crop_size, args.crop_size, 3)
    )
    batch = Batch(hr[:, ::SCALE, ::SCALE].astype("float32"), hr.astype("float32"))
    for task in TASKS if args.which == "all" else (args.which,):
        report["tasks"][task] = measure(sides, task, batch, args)
        for name, quartiles in report["tasks"][task].items():
            cells = "".join(f"{value:10.4f}" for value in quartiles)
            print(f"{task:14}{name:8}{cells}", flush=True)
    if args.json:
        write_text(args.json, json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    command_line.run(main)
