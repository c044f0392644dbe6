"""Trains SRGAN: x4 super-resolution, first by MSE, then against a discriminator.

    python srgan.py                                   # demo, minutes, no download
    python srgan.py --dataset PATH_TO_YOUR_IMAGES     # the source's recipe
    python srgan.py --dataset PATH --preset paper     # the paper's recipe

Run the same command again to go on where it stopped.
"""

import contextlib
import hashlib
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

import checkpoints
import command_line
import distribution
import figures
import metrics
import networks
import sample_data
from data_loader import (
    AUGMENTATIONS,
    SCALE,
    SOURCE_BLUR,
    SOURCE_CROP,
    TEST_FOLDER,
    DataLoader,
    NoImageLeftError,
    scan_folder,
    to_uint8,
)
from quiet import keras
from tiling import enlarge
from training_run import (
    TestResult,
    TrainingInterruptedError,
    TrainingRun,
    TrainingStoppedError,
    enlarge_by_filter,
    mean_scores,
)

ADVERSARIAL_WEIGHT = 1e-3  # of the discriminator's verdict; paper, Sec. 2.2, eq. 3
FEATURE_WEIGHT = 1 / 12.75**2  # = 0.006, of VGG features; paper, Sec. 3.2
TOTAL_VARIATION_WEIGHT = 2e-8  # of SRResNet-VGG22; paper, Sec. 3.4
ADAM_BETA_1 = 0.9  # paper, Sec. 3.2
LEARNING_RATE = 1e-4  # paper, Sec. 3.2
STEP_SCHEDULE_FACTOR = 0.1  # after half of the adversarial steps; paper, Sec. 3.2
COSINE_FLOOR = 0.02  # last learning rate of the cosine, as a share of the first
BATCH_SIZE = 16  # paper, Sec. 3.2
PRETRAIN_STEPS, PRETRAIN_INTERVAL = 10_000, 100  # source
TRAIN_STEPS, TRAIN_INTERVAL = 100_000, 50  # source
# Batch numbers of the adversarial phase begin here, so that they do not depend
# on how long pre-training was.
FIRST_ADVERSARIAL_BATCH = 10**9
FIRST_STATISTICS_BATCH = 2 * 10**9  # batches for batch-norm statistics
FIRST_SAMPLE_BATCH = 3 * 10**9  # crops to look at
VGG_MAX_PIXELS = 2**21  # of a test image; VGG19 needs some 1 KiB of memory for each
MAX_REASON = 300  # characters of TensorFlow's errors that are shown
PRE_TRAINING, TRAINING = "pre_training", "training"
DEMO_NOTE = (
    "The generator is trained alone for a while, then against a discriminator: a few "
    "minutes, to show how. For the real thing, with your own images, run: "
    "python srgan.py --dataset PATH --restart"
)
SAMPLE_DATASET, SAMPLE_TEST_IMAGES = "datasets/sample", "datasets/sample_test"


class ContentLoss(NamedTuple):
    """What the generator's images are compared by, beside the discriminator."""

    layer_name: str | None  # of VGG19; None: the pixels themselves
    weight: float
    imagenet_preprocessing: bool


CONTENT_LOSSES = {
    # Source: block3_conv3, and no ImageNet preprocessing.
    "source": ContentLoss("block3_conv3", FEATURE_WEIGHT, False),
    "mse": ContentLoss(None, 1.0, False),
    "vgg22": ContentLoss("block2_conv2", FEATURE_WEIGHT, True),
    "vgg54": ContentLoss("block5_conv4", FEATURE_WEIGHT, True),
}

DISCRIMINATOR_BN = ("moving", "batch")

PRESETS = {
    "source": {
        "crop_size": SOURCE_CROP,
        "batch_size": BATCH_SIZE,
        "crops_per_image": 0,
        "blur": SOURCE_BLUR,
        "augment": "flip",
        "pretrain_steps": PRETRAIN_STEPS,
        "train_steps": TRAIN_STEPS,
        "pretrain_interval": PRETRAIN_INTERVAL,
        "train_interval": TRAIN_INTERVAL,
        "content_loss": "source",
        "pretrain_loss": "mse",
        "discriminator_bn": "moving",
        "learning_rate": LEARNING_RATE,
        "schedule": "constant",
        "bn_batches": 0,
        "bn_freeze_step": 0,
    },
}
# Paper: 96 px crops of 16 distinct images, bicubic without blur (Sec. 3.2).
PRESETS["paper"] = PRESETS["source"] | {
    "crop_size": 96,
    "crops_per_image": 1,
    "blur": 0.0,
    "pretrain_steps": 1_000_000,
    "train_steps": 200_000,
    "pretrain_interval": 5_000,
    "train_interval": 1_000,
    "content_loss": "vgg54",
    "schedule": "step",
}
PRESETS["demo"] = PRESETS["source"] | {
    "crop_size": 64,
    "batch_size": 8,
    "crops_per_image": 1,
    "pretrain_steps": 200,
    "train_steps": 40,
    "pretrain_interval": 50,
    "train_interval": 10,
    "learning_rate": 3e-4,
    "bn_batches": 10,  # moving averages are far off after so few steps
}
# What the demo does otherwise where it starts from the shipped weights, which are
# trained with fixed statistics: gentle steps.
SHIPPED_START = {"learning_rate": 2e-5, "bn_freeze_step": 1}
# For weights without VGG19; long runs deserve more steps.
PRESETS["pretrained"] = PRESETS["paper"] | {
    "augment": "dihedral",
    "pretrain_steps": 6_000,
    "train_steps": 500,
    "pretrain_interval": 500,
    "train_interval": 50,
    "content_loss": "mse",
    "discriminator_bn": "batch",
    "learning_rate": 3e-4,
    "schedule": "cosine",
    "bn_batches": 50,
    "bn_freeze_step": 1_500,
}


class SRGAN:
    """The networks of SRGAN, the steps that train them, and the loops.

    Attributes: `generator`, `discriminator`, `vgg` (frozen VGG19 features, or
    `None` for `content_loss="mse"`) and `combined`, the model of the
    generator's step: LR image to the discriminator's verdict and the features
    of the generated image. Loops also read `schedule`, how the learning rate
    falls (see `learning_rate_at`), `bn_batches`, how many batches the
    generator's batch-norm statistics are averaged over before each report
    (0: the moving averages of training, as in the source), and
    `bn_freeze_step`, the first step of pre-training that keeps them fixed, as
    all later training does (0: none, as in the source).

    Args:
        content_loss: `"source"`, `"mse"`, `"vgg22"` or `"vgg54"`.
        vgg_weights: `"imagenet"`, the path of a weights file, or `None`
            (random: tests only); see `networks.build_feature_extractor`.
        learning_rate: float > 0, of each Adam.
        pretrain_loss: `"mse"`, or `"vgg22"` (the paper's SRResNet-VGG22).
        num_residual_blocks: int >= 0, of the generator.
        num_filters: int >= 1, of both networks.
        discriminator_bn: what the frozen discriminator's batch norm normalises by
            in the generator's step: `"moving"`, its moving averages (source), or
            `"batch"`, the generated batch's own statistics.

    Raises:
        ValueError: if a loss or `discriminator_bn` is unknown.
        FileNotFoundError: if the weights of VGG19 cannot be had.
    """

    def __init__(
        self,
        content_loss="source",
        vgg_weights="imagenet",
        learning_rate=LEARNING_RATE,
        pretrain_loss="mse",
        num_residual_blocks=16,
        num_filters=64,
        discriminator_bn="moving",
    ):
        _check_choice("discriminator_bn", discriminator_bn, DISCRIMINATOR_BN)
        _check_choice("content_loss", content_loss, CONTENT_LOSSES)
        _check_choice("pretrain_loss", pretrain_loss, ("mse", "vgg22"))
        self.learning_rate = learning_rate
        self.schedule = "constant"
        self.bn_batches = 0
        self.bn_freeze_step = 0
        self.content = CONTENT_LOSSES[content_loss]
        self.pretrain_loss = pretrain_loss
        self.generator = networks.build_generator(num_residual_blocks, num_filters)
        self.discriminator = networks.build_discriminator(num_filters)
        for layer in self.discriminator.layers:
            if isinstance(layer, networks.BatchNormalization):
                layer.uses_batch_when_frozen = discriminator_bn == "batch"
        self.vgg = _build_features(self.content, vgg_weights)
        self._pretrain_features = None
        if pretrain_loss == "vgg22":
            vgg22 = CONTENT_LOSSES["vgg22"]
            is_same = self.content == vgg22
            self._pretrain_features = (
                self.vgg if is_same else _build_features(vgg22, vgg_weights)
            )
        self._patch_shapes = {}
        self._model_class = distribution.model_class()
        self._copy = None
        # Source: one Adam for all models. Current Keras refuses that, so each of
        # the three models that are trained has its own. The networks themselves
        # are never compiled, and so their files hold weights alone.
        self.pretrainer = self._build_pretrainer(self._build_adam())
        self.discriminator_trainer = self._build_discriminator_trainer()
        self.combined = self._build_combined(self._build_adam())

    # Builders ----------------------------------------------------------------

    def _build_pretrainer(self, optimizer):
        lr, sr = self.generator.inputs[0], self.generator.outputs[0]
        model, loss = self._model_class(lr, sr, name="pretrainer"), "mse"
        if self._pretrain_features is not None:
            smooth = TotalVariation(dtype=keras.config.floatx())
            features = self._pretrain_features(smooth(sr))
            model = self._model_class(lr, features, name="pretrainer")
            loss = _feature_loss
        model.compile(optimizer=optimizer, loss=loss)
        _build_optimizer(model)
        return model

    def _build_discriminator_trainer(self):
        network = self.discriminator
        image, verdict = network.inputs[0], network.outputs[0]
        model = self._model_class(image, verdict, name="trainer")
        # Source: least squares. Paper: binary cross-entropy (Sec. 2.1, eq. 2).
        model.compile(optimizer=self._build_adam(), loss="mse", metrics=[_probability])
        _build_optimizer(model)
        return model

    def _build_combined(self, optimizer):
        lr, sr = self.generator.inputs[0], self.generator.outputs[0]
        content = sr if self.vgg is None else self.vgg(sr)
        self.discriminator.trainable = False
        outputs = [self.discriminator(sr), content]
        model = self._model_class(lr, outputs, name="combined")
        model.compile(
            optimizer=optimizer,
            loss=["binary_crossentropy", "mse"],
            loss_weights=[ADVERSARIAL_WEIGHT, self.content.weight],
        )
        _build_optimizer(model)
        return model

    def _build_adam(self):
        return distribution.share_loss_scale(
            keras.optimizers.Adam(self.learning_rate, beta_1=ADAM_BETA_1)
        )

    # Steps: one batch in, a dict of floats out -------------------------------

    def pre_train_on_batch(self, lr, hr):
        """Trains the generator alone for one step (paper: SRResNet).

        Args:
            lr: float `(n, h, w, 3)` in [-1, 1].
            hr: float `(n, 4h, 4w, 3)` in [-1, 1].

        Returns:
            dict: `"mse"`, mean squared error in [-1, 1]; with
            `pretrain_loss="vgg22"`, `"vgg22"`, the weighted feature loss and
            total variation.
        """
        if self._pretrain_features is None:
            return {"mse": float(self.pretrainer.train_on_batch(lr, hr))}
        features = self._infer(self._pretrain_features, hr)
        return {"vgg22": float(self.pretrainer.train_on_batch(lr, features))}

    def train_discriminator_on_batch(self, lr, hr):
        """Trains the discriminator on originals, then on generated images.

        Least squares against 1 and 0 (source). The generator runs in inference
        mode and is not changed. The mean probabilities that the discriminator
        gave are kept in `probabilities`, a dict of `"p_real"` and `"p_fake"`.

        Args:
            lr: float `(n, h, w, 3)` in [-1, 1].
            hr: float `(n, 4h, 4w, 3)` in [-1, 1].

        Returns:
            dict: `"d_real"` and `"d_fake"`, the two losses. The source reports
            half their sum.
        """
        fake = self._infer(self.generator, lr)
        real_labels = np.ones(self._patch_labels_shape(hr.shape), keras.config.floatx())
        # Read by Keras when a step is traced, so it is set right before each.
        self.discriminator.trainable = True
        d_real, p_real = self.discriminator_trainer.train_on_batch(hr, real_labels)
        d_fake, p_fake = self.discriminator_trainer.train_on_batch(
            fake, np.zeros_like(real_labels)
        )
        self.probabilities = {"p_real": float(p_real), "p_fake": float(p_fake)}
        return {"d_real": float(d_real), "d_fake": float(d_fake)}

    def train_generator_on_batch(self, lr, hr):
        """Trains the generator against the frozen discriminator and content.

        Args:
            lr: float `(n, h, w, 3)` in [-1, 1].
            hr: float `(n, 4h, 4w, 3)` in [-1, 1].

        Returns:
            dict: `"g_loss"`, the weighted sum, and its unweighted parts
            `"g_adversarial"` (binary cross-entropy of the verdicts against 1)
            and `"g_content"` (mean squared error of features, or of pixels).
        """
        content = hr if self.vgg is None else self._infer(self.vgg, hr)
        real_labels = np.ones(self._patch_labels_shape(hr.shape), keras.config.floatx())
        # Source: its batch norm then runs on moving averages, of originals and
        # generated images alike, with which it may hardly tell them apart.
        self.discriminator.trainable = False
        losses = self.combined.train_on_batch(lr, [real_labels, content])
        names = ("g_loss", "g_adversarial", "g_content")
        return dict(zip(names, map(float, losses), strict=True))

    def _infer(self, model, images):
        if self._model_class is keras.Model:
            return model.predict_on_batch(images)
        # Several workers: `predict_on_batch` would gather the outputs of all.
        return np.asarray(model(images, training=False))

    def _patch_labels_shape(self, image_shape):
        # Source: floor(side / 16), which fits some sizes only.
        if image_shape not in self._patch_shapes:
            shape = self.discriminator.compute_output_shape(image_shape)
            self._patch_shapes[image_shape] = shape
        return self._patch_shapes[image_shape]

    # Loops -------------------------------------------------------------------

    def pre_train(
        self,
        loader,
        num_steps=PRETRAIN_STEPS,
        interval=PRETRAIN_INTERVAL,
        batch_size=BATCH_SIZE,
        run=None,
    ):
        """Trains the generator alone, from the newest checkpoint if there is one.

        Args:
            loader: `DataLoader`.
            num_steps: int >= 1, the last step, those of earlier runs included.
            interval: int >= 1, steps between reports, each with a checkpoint.
            batch_size: int >= 1, crops a step.
            run: `TrainingRun`; by default one that writes to `weights/` and
                `images/`.

        Raises:
            TrainingStoppedError: if a loss is not finite, or saving fails.
            TrainingInterruptedError: after a signal; the state is saved.
        """
        phase = self._open_phase(run, PRE_TRAINING)
        loader.seek(phase.resume())
        if phase.step == 0:
            self._report(phase, 0, loader, batch_size)
        for step in phase.steps(num_steps):
            self._prepare_batch_norm(step, loader, batch_size)
            self._set_learning_rate(step, num_steps, self.pretrainer)
            losses = self.pre_train_on_batch(*loader.load_data(batch_size))
            phase.record(step, losses)
            if step % interval == 0 or step == num_steps:
                self._report(phase, step, loader, batch_size)

    def train(
        self,
        loader,
        num_steps=TRAIN_STEPS,
        interval=TRAIN_INTERVAL,
        batch_size=BATCH_SIZE,
        run=None,
    ):
        """Trains generator and discriminator in turns (source; paper: Sec. 2.1).

        Starts from the newest checkpoint of this phase, else from the newest
        pre-trained generator, else from the generator as it is.

        Args:
            loader: `DataLoader`.
            num_steps: int >= 1, the last iteration, earlier runs included.
            interval: int >= 1, iterations between reports.
            batch_size: int >= 1, crops a step.
            run: `TrainingRun`; by default one that writes to `weights/` and
                `images/`.

        Raises:
            TrainingStoppedError: if a loss is not finite, or saving fails.
            TrainingInterruptedError: after a signal; the state is saved.
        """
        phase = self._open_phase(run, TRAINING)
        if phase.resume() == 0:
            self._load_pre_trained(phase.run)
            self._report(phase, 0, loader, batch_size)
        self._freeze_batch_norm(self.bn_freeze_step > 0)
        loader.seek(FIRST_ADVERSARIAL_BATCH + 2 * phase.step)
        for step in phase.steps(num_steps):
            self._set_learning_rate(
                step, num_steps, self.combined, self.discriminator_trainer
            )
            losses = self.train_discriminator_on_batch(*loader.load_data(batch_size))
            losses |= self.probabilities
            # Source: a fresh batch for the generator.
            losses |= self.train_generator_on_batch(*loader.load_data(batch_size))
            phase.record(step, losses)
            if step % interval == 0 or step == num_steps:
                self._report(phase, step, loader, batch_size)

    def _open_phase(self, run, name):
        run = run or TrainingRun()
        models = {"generator": self.generator}
        optimizers = {"pretrain_optimizer": self.pretrainer.optimizer}
        if name == TRAINING:
            models["discriminator"] = self.discriminator
            optimizers = {
                "generator_optimizer": self.combined.optimizer,
                "discriminator_optimizer": self.discriminator_trainer.optimizer,
            }
        return run.phase(name, models, optimizers)

    def _load_pre_trained(self, run):
        folder = run.checkpoint_folder(PRE_TRAINING)
        if checkpoints.newest_step(folder) is not None:
            file = checkpoints.load_generator_weights(self.generator, folder)
            run.note(f"The generator starts from {file}.")

    def _set_learning_rate(self, step, num_steps, *trainers):
        schedule = self.schedule
        if schedule == "step" and trainers == (self.pretrainer,):
            schedule = "constant"  # paper: pre-training keeps its learning rate
        rate = learning_rate_at(step, num_steps, self.learning_rate, schedule)
        for trainer in trainers:
            trainer.optimizer.learning_rate = rate

    def _prepare_batch_norm(self, step, loader, batch_size):
        """Freezes the batch-norm statistics where the step comes that asks for it."""
        if 1 < step == self.bn_freeze_step:
            self._average_batch_norm(loader, batch_size)
        self._freeze_batch_norm(0 < self.bn_freeze_step <= step)

    def _freeze_batch_norm(self, is_frozen):
        """Fixes the generator's batch-norm statistics in training, or lets them move.

        Networks with fixed statistics treat each image alike, whatever lies beside
        it in the batch, and learn with the very statistics that they are used with.
        Source: the statistics move for ever.
        """
        if is_frozen == self._is_frozen():
            return
        for layer in networks.batch_norm_layers(self.generator):
            layer.is_frozen = is_frozen
        # Steps that are traced already know nothing of it: new ones, same Adam.
        with distribution.scope_of(self.pretrainer):
            self.pretrainer = self._build_pretrainer(self.pretrainer.optimizer)
            self.combined = self._build_combined(self.combined.optimizer)

    def _is_frozen(self):
        layers = networks.batch_norm_layers(self.generator)
        return all(layer.is_frozen for layer in layers)

    def _average_batch_norm(self, loader, batch_size):
        # Source: moving averages only, and so by default here (0 batches).
        if self.bn_batches == 0:
            return
        generator = self._own_generator()
        lr_batches = (
            loader.make_batch(FIRST_STATISTICS_BATCH + k, batch_size, shard=(0, 1)).lr
            for k in range(self.bn_batches)
        )
        estimate_batch_norm(generator, lr_batches)
        self.generator.set_weights(generator.get_weights())

    def _report(self, phase, step, loader, batch_size):
        if step > 0 and not self._is_frozen():
            self._average_batch_norm(loader, batch_size)
        results = self.evaluate(phase.run.test_images) if phase.run.is_chief else []
        phase.report(step, results)
        if phase.run.is_chief:
            with phase.run.tolerate(f"The sample of step {step}"):
                self.sample_images(loader, step, phase.run.images_dir)

    def _own_generator(self):
        """Returns the generator; of several workers, a copy that is this one's own."""
        if self._model_class is keras.Model:
            return self.generator
        if self._copy is None:
            self._copy = keras.models.clone_model(self.generator)
        self._copy.set_weights(self.generator.get_weights())
        return self._copy

    # Looking at results ------------------------------------------------------

    def evaluate(self, test_images):
        """Enlarges test images and scores the results.

        Args:
            test_images: list of `data_loader.TestImage`.

        Returns:
            list of `TestResult`; scores are those of `metrics.measure`, `"mse"`
            (in [-1, 1], source) and, where there is a VGG19, `"perceptual"`:
            content / 12.75^2 + adversarial / 1000 (source).
        """
        results = []
        generator = self._own_generator()
        for name, lr, hr in test_images:
            sr = enlarge(generator, lr)
            scores = {"mse": float(np.mean(np.square(sr - hr)))}
            if self.vgg is not None and hr[..., 0].size <= VGG_MAX_PIXELS:
                scores["perceptual"] = self._perceptual_loss(sr[None], hr[None])
            sr = to_uint8(sr)
            scores |= metrics.measure(sr, to_uint8(hr))
            results.append(TestResult(name, sr, scores))
        return results

    def _perceptual_loss(self, sr, hr):
        features = [self._infer(self.vgg, images) for images in (sr, hr)]
        content = self.content.weight * np.mean(np.square(np.subtract(*features)))
        return perceptual_loss(content, self._infer(self.discriminator, sr))

    def sample_images(self, loader, step, images_dir="images"):
        """Saves a 2x2 grid, generated and original, of two random crops (source).

        Args:
            loader: `DataLoader`.
            step: int, chooses the crops and names the file.
            images_dir: path; the file is `<images_dir>/<dataset>/<step>.png`.
        """
        k = FIRST_SAMPLE_BATCH + step
        batch = loader.make_batch(k, 2, is_testing=True, shard=(0, 1))
        sr = to_uint8(np.asarray(self._own_generator().predict_on_batch(batch.lr)))
        columns = [
            {"generated": generated, "original": original}
            for generated, original in zip(sr, to_uint8(batch.hr), strict=True)
        ]
        name = Path(loader.folder).resolve().name
        path = Path(images_dir) / name / f"{step}.png"
        figures.save_grid(columns, path, title=f"{name}, step {step}")


def perceptual_loss(content, verdicts):
    """Adds up the perceptual loss of images (source; paper: Sec. 2.2, eq. 3).

    Args:
        content: float, the weighted content loss.
        verdicts: float array, the discriminator's probabilities, in [0, 1].

    Returns:
        float, content + adversarial / 1000.
    """
    adversarial = -np.mean(np.log(np.maximum(verdicts, keras.config.epsilon())))
    return float(content + ADVERSARIAL_WEIGHT * adversarial)


def learning_rate_at(step, num_steps, learning_rate, schedule):
    """Gives the learning rate of a step.

    Args:
        step: int >= 1.
        num_steps: int, the last step.
        learning_rate: float, the first one.
        schedule: `"constant"` (source), `"step"` (paper: a tenth in the second
            half) or `"cosine"` (falls to `COSINE_FLOOR` of it).

    Returns:
        float.
    """
    if schedule == "constant":
        return learning_rate
    if schedule == "step":
        is_late = step > num_steps / 2
        return learning_rate * (STEP_SCHEDULE_FACTOR if is_late else 1.0)
    share = 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - 1) / num_steps))
    return learning_rate * (COSINE_FLOOR + (1 - COSINE_FLOOR) * share)


def estimate_batch_norm(model, batches):
    """Replaces batch-norm statistics by their averages over some batches.

    The moving averages (momentum 0.8) follow the last few batches only, so that
    scores of the same weights differ by up to a dB. Source: moving averages.

    Args:
        model: `keras.Model` with batch normalisation, changed in place.
        batches: iterable of float `(n, h, w, 3)` in [-1, 1].
    """
    layers = networks.batch_norm_layers(model)
    moving = [(layer, layer.non_trainable_variables) for layer in layers]
    sums = {variable.path: 0.0 for _, pair in moving for variable in pair}
    count = 0
    for batch in batches:
        for _, pair in moving:
            for variable in pair:
                variable.assign(np.zeros(variable.shape))
        model(batch, training=True)  # leaves (1 - momentum) x the batch's own
        for layer, pair in moving:
            for variable in pair:
                share = keras.ops.convert_to_numpy(variable.value).astype("float64")
                sums[variable.path] += share / (1 - layer.momentum)
        count += 1
    for _, pair in moving:
        for variable in pair:
            variable.assign(sums[variable.path] / count)


def _build_optimizer(model):
    # Once: mixed_float16 wraps it, and would begin its loss scale again.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


def _check_choice(name, value, choices):
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{name} is one of {expected}. Received: {value!r}.")


def _build_features(content, vgg_weights):
    if content.layer_name is None:
        return None
    return networks.build_feature_extractor(
        content.layer_name, vgg_weights, content.imagenet_preprocessing
    )


def _feature_loss(features, generated_features):
    error = keras.losses.mean_squared_error(features, generated_features)
    return FEATURE_WEIGHT * error


@keras.saving.register_keras_serializable(package="srgan")
class TotalVariation(keras.layers.Layer):
    """Passes images on and adds their total variation to the loss (paper: Sec. 3.4).

    The weighted sum of absolute differences between neighbours, mean over images.
    """

    def call(self, images):
        rows = keras.ops.sum(keras.ops.abs(images[:, 1:] - images[:, :-1]))
        columns = keras.ops.sum(keras.ops.abs(images[:, :, 1:] - images[:, :, :-1]))
        num_images = keras.ops.cast(keras.ops.shape(images)[0], images.dtype)
        self.add_loss(TOTAL_VARIATION_WEIGHT * (rows + columns) / num_images)
        return images


def _probability(labels, verdicts):
    """Metric: the discriminator's mean verdict."""
    return verdicts


# Command line ----------------------------------------------------------------

# Group: (flag, type, choices or name of its value, help); see `add_flags`.
FLAGS = {
    "data": (
        ("--preset", tuple(PRESETS), "named set of defaults, any flag overrides it"),
        ("--dataset", "NAME|PATH", "images: a name in datasets/, or a folder"),
        ("--test-images", "PATH", "images to show [datasets/img_test]"),
        ("--crop-size", command_line.positive_int, "HR crop side, px, multiple of 4"),
        ("--batch-size", command_line.positive_int, "crops a step"),
        ("--crops-per-image", command_line.non_negative_int, "0: all from one image"),
        ("--blur", command_line.non_negative_float, "Pillow radius, HR px; 0: none"),
        ("--augment", tuple(AUGMENTATIONS), "random flips, or all 8 orientations"),
    ),
    "training": (
        ("--phase", ("both", "pretrain", "train"), "which phases to run [both]"),
        ("--pretrain-steps", command_line.positive_int, "of the generator alone"),
        ("--train-steps", command_line.positive_int, "adversarial iterations"),
        ("--pretrain-interval", command_line.positive_int, "steps between reports"),
        ("--train-interval", command_line.positive_int, "iterations between reports"),
        ("--content-loss", tuple(CONTENT_LOSSES), "what images are compared by"),
        ("--pretrain-loss", ("mse", "vgg22"), "the same, in pre-training"),
        (
            "--discriminator-bn",
            DISCRIMINATOR_BN,
            "in the generator's step: moving averages, or the batch's own statistics",
        ),
        ("--vgg-weights", "PATH", "VGG19 weights file [downloaded by Keras]"),
        ("--learning-rate", command_line.positive_float, "of Adam"),
        ("--schedule", ("constant", "step", "cosine"), "how it falls"),
        (
            "--bn-batches",
            command_line.non_negative_int,
            "average batch-norm statistics over so many; 0: moving averages",
        ),
        (
            "--bn-freeze-step",
            command_line.non_negative_int,
            "from this pre-training step on, and in adversarial training, they are "
            "fixed; 0: never",
        ),
    ),
    "machine and files": (
        (
            "--precision",
            command_line.PRECISIONS,
            "of arithmetic [float32]; checkpoints are float32",
        ),
        ("--seed", command_line.non_negative_int, "of weights and batches [0]"),
        ("--deterministic", bool, "same bits every run, a little slower [no]"),
        ("--weights-dir", "PATH", "checkpoints [weights]"),
        ("--images-dir", "PATH", "pictures [images]"),
        ("--initial-weights", "PATH", "a generator to start from"),
        ("--restart", bool, "begin anew; old state is moved, not deleted [no]"),
    ),
}
DEFAULTS = {
    "phase": "both",
    "precision": "float32",
    "seed": 0,
    "deterministic": False,
    "weights_dir": "weights",
    "images_dir": "images",
    "restart": False,
}


def parse_args(arguments=None):
    """Reads the command line; the preset fills in what was not given.

    Args:
        arguments: list of str; by default the process's.

    Returns:
        `argparse.Namespace` of all flags, and `notes`, lines for the user.
    """
    parser = command_line.ArgumentParser(
        prog="srgan.py",
        usage="python srgan.py [--dataset NAME|PATH] [--preset NAME] [flags]",
        description=__doc__,
        epilog="In brackets: defaults, those of preset source where presets differ.",
    )
    command_line.add_flags(parser, FLAGS, PRESETS["source"])
    parser.set_defaults(**DEFAULTS)
    return _fill_in(parser.parse_args(arguments))


def _fill_in(args):
    """Chooses dataset and preset where they were not given, and says why."""
    args.notes = []
    if args.dataset is None and Path("datasets/test2017").is_dir():
        args.dataset = "test2017"
    args.is_sample = args.dataset is None
    if args.is_sample:
        args.dataset = SAMPLE_DATASET
        args.test_images = args.test_images or SAMPLE_TEST_IMAGES
        args.preset = args.preset or "demo"
        args.notes.append(
            "No --dataset, and datasets/test2017 is not there: training on generated "
            f"sample images, preset {args.preset}."
        )
        if args.preset == "demo":
            args.notes.append(DEMO_NOTE)
    args.preset = args.preset or "source"
    args.content_loss_given = args.content_loss is not None
    _start_demo_from_shipped(args)
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def _start_demo_from_shipped(args):
    """Gives the demo the shipped weights to start from, unless others are named."""
    args.is_shipped_start = False
    if args.preset != "demo" or not args.is_sample or args.initial_weights is not None:
        return
    blur = PRESETS["demo"]["blur"] if args.blur is None else args.blur
    args.initial_weights = checkpoints.shipped_weights(blur)
    args.is_shipped_start = args.initial_weights is not None
    if args.is_shipped_start:
        for name, value in SHIPPED_START.items():
            if getattr(args, name) is None:
                setattr(args, name, value)


def main(argv=None):
    """Trains as the command line says.

    Args:
        argv: list of str; by default the process's arguments.

    Returns:
        int, exit code: 0 done, 1 failed, 2 the user's mistake, 130 or 143
        after a signal.
    """
    args = parse_args(argv)
    try:
        distribution.grow_gpu_memory()
        workers = distribution.join_workers()
        with contextlib.ExitStack() as stack:
            if workers.is_chief:
                stack.enter_context(checkpoints.FolderLock(args.weights_dir))
            else:  # the chief speaks for all
                silence = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(silence))
            return _train(args, workers)
    except (TrainingStoppedError, NoImageLeftError) as error:
        print(f"\nsrgan.py: {command_line.one_line(error)}", file=sys.stderr)
        return command_line.EXIT_FAILED
    except TrainingInterruptedError as error:
        print(f"{error} Run the same command again to go on.")
        return command_line.EXIT_SIGNAL + error.signal_number
    except KeyboardInterrupt:
        print(
            "\nStopped. Run the same command again to go on from the last checkpoint."
        )
        return command_line.EXIT_SIGNAL + 2
    except (OSError, ValueError) as error:
        print(f"srgan.py: {command_line.one_line(error)}", file=sys.stderr)
        return command_line.EXIT_USAGE
    except Exception as error:
        if not distribution.is_worker_failure(error):
            raise
        print(
            "\nsrgan.py: Another worker failed or cannot be reached: "
            f"{command_line.one_line(error)[:MAX_REASON]} Run the same commands again "
            "to go on from the last checkpoint.",
            file=sys.stderr,
        )
        return command_line.EXIT_FAILED


def _train(args, workers):
    for note in args.notes:
        print(note)
    _prepare_backend(args)
    if args.is_sample:
        sample_data.write_sample_dataset()
    loader = DataLoader(
        args.dataset,
        crop_size=args.crop_size,
        blur=args.blur,
        crops_per_image=args.crops_per_image or None,
        seed=args.seed,
        augment=args.augment,
        test_folder=args.test_images or TEST_FOLDER,
    )
    if args.test_images:
        _check_test_images(args.test_images)
    with loader:
        print(loader.summary())
        loader.shard = (workers.index, workers.count)
        if args.batch_size % workers.count:
            raise ValueError(
                f"--batch-size {args.batch_size} cannot be split between "
                f"{workers.count} workers. Pass a multiple of {workers.count}."
            )
        with workers.scope():
            gan = _build(args)
        run = TrainingRun(args.weights_dir, args.images_dir, _options(args, loader))
        run.is_chief, run.agree = workers.is_chief, workers.agree
        # Weights and two Adam moments of both networks, 4 bytes each.
        num_weights = gan.generator.count_params() + gan.discriminator.count_params()
        run.check_space(num_bytes=3 * 4 * num_weights)
        phases = {"both": (PRE_TRAINING, TRAINING), "pretrain": (PRE_TRAINING,)}.get(
            args.phase, (TRAINING,)
        )
        _start_weights(args, gan, run, phases)
        workers.wait()  # for the chief to move old state away
        for phase in phases:
            run.phase(phase, {}, {}).check_options()
        if workers.is_chief:
            run.test_images = loader.load_spec_data(run.images_dir / "_src")
            print(f"Test images: {loader.test_images_origin}.")
            _draw_models(gan, run)
        workers.wait()
        with run.signals():
            if PRE_TRAINING in phases and not _is_past_pre_training(args, run):
                gan.pre_train(
                    loader,
                    args.pretrain_steps,
                    args.pretrain_interval,
                    args.batch_size,
                    run,
                )
            workers.wait()  # for the chief to save what all start from
            if TRAINING in phases:
                gan.train(
                    loader,
                    args.train_steps,
                    args.train_interval,
                    args.batch_size,
                    run,
                )
        if workers.is_chief:
            _conclude(args, gan, run)
        workers.wait()
    return 0


def _check_test_images(folder):
    if not Path(folder).is_dir() or not scan_folder(folder, SCALE).files:
        raise FileNotFoundError(
            f"Expected a folder of test images, found none at {folder}. Pass another "
            "--test-images, or none."
        )


def _prepare_backend(args):
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    if keras.backend.backend() == "torch" and args.deterministic:
        import torch  # its own setting

        torch.use_deterministic_algorithms(True)
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf  # its own settings

    if args.deterministic:
        tf.config.experimental.enable_op_determinism()
        # On GPUs, the fused kernel has no such gradient for fixed statistics.
        is_gpu = bool(tf.config.list_physical_devices("GPU"))
        networks.BatchNormalization.is_fused = not is_gpu


def _build(args):
    """Builds SRGAN; the demo does without VGG19 where its weights are not at hand."""
    names = (
        *("content_loss", "vgg_weights", "learning_rate", "pretrain_loss"),
        "discriminator_bn",
    )
    options = {name: getattr(args, name) for name in names}
    options["vgg_weights"] = args.vgg_weights or "imagenet"
    is_free = args.preset == "demo" and not args.content_loss_given
    has_vgg = args.vgg_weights is not None or networks.cached_vgg_weights().is_file()
    if is_free and not has_vgg:
        args.content_loss = options["content_loss"] = "mse"
        print(
            "The weights of VGG19 are not in Keras's cache, so the demo compares "
            "pixels (--content-loss mse)."
        )
    try:
        if args.vgg_weights is not None:
            checkpoints.check_vgg_weights(args.vgg_weights)
        gan = SRGAN(**options)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} Three ways on: connect to the network, pass --vgg-weights PATH "
            "of that file, or pass --content-loss mse."
        ) from error
    gan.schedule, gan.bn_batches = args.schedule, args.bn_batches
    gan.bn_freeze_step = args.bn_freeze_step
    return gan


def _options(args, loader):
    names = (*PRESETS["source"], "seed", "precision")
    files = [
        (str(Path(f.path).relative_to(loader.folder)), *f[1:]) for f in loader.files
    ]
    digest = hashlib.sha256(repr(files).encode()).hexdigest()
    files = f"{len(files)} images, list {digest[:12]}"
    return {name: getattr(args, name) for name in names} | {"files": files}


def _start_weights(args, gan, run, phases):
    """Loads `--initial-weights`, and moves old state away for `--restart`."""
    if args.initial_weights is not None:
        file = checkpoints.load_generator_weights(gan.generator, args.initial_weights)
    # What follows pre-training came from it, and would be taken up again.
    moved = (PRE_TRAINING, TRAINING) if PRE_TRAINING in phases else phases
    moved = moved if args.restart else ()
    # Adversarial training starts from pre-training where it has nothing of its own.
    sources = phases if args.phase == "pretrain" else (PRE_TRAINING, TRAINING)
    folders = [run.checkpoint_folder(phase) for phase in sources if phase not in moved]
    resumes = any(checkpoints.newest_step(folder) is not None for folder in folders)
    if not resumes and args.initial_weights is None:
        _check_freeze_step(args)
    if moved and run.is_chief:
        run.set_aside(moved)
    if args.is_shipped_start:
        if not resumes:
            print(f"The generator starts from the weights that come with this: {file}.")
    elif args.initial_weights is not None:
        print(
            f"--initial-weights is passed over: {run.weights_dir} has checkpoints to "
            "go on from."
            if resumes
            else f"The generator starts from {file}."
        )
    elif not resumes:
        print("No checkpoint found: starting from scratch.")


def _check_freeze_step(args):
    """Refuses to fix the batch-norm statistics of random weights."""
    if args.bn_freeze_step == 1 or (args.bn_freeze_step and args.phase == "train"):
        raise ValueError(
            f"--bn-freeze-step {args.bn_freeze_step} would fix the batch-norm "
            "statistics of random weights. Pre-train first, pass --initial-weights "
            "PATH, or --bn-freeze-step 0."
        )


def _is_past_pre_training(args, run):
    """Says whether both phases are asked for, and the second has begun already."""
    begun = checkpoints.newest_step(run.checkpoint_folder(TRAINING)) is not None
    if not begun or args.phase != "both":
        return False
    step = checkpoints.newest_step(run.checkpoint_folder(PRE_TRAINING)) or 0
    if step < args.pretrain_steps:
        run.note(
            f"Pre-training stays at step {step}: adversarial training has begun from "
            "there. To begin anew, pass --restart."
        )
    return True


def _draw_models(gan, run):
    for model in (gan.generator, gan.discriminator):
        hint = figures.save_model_diagram(model, run.images_dir / f"{model.name}.png")
    if hint:
        print(hint)


def _conclude(args, gan, run):
    """Saves the final enlargements, prints the table and where everything lies."""
    results = gan.evaluate(run.test_images)
    run.save_final_images(results)
    rows = {"this model": [result.scores for result in results]}
    lrs_hrs = [(to_uint8(image.lr), to_uint8(image.hr)) for image in run.test_images]
    for name in ("bicubic", "nearest"):
        method = Image.Resampling[name.upper()]
        rows[name] = [
            metrics.measure(enlarge_by_filter(lr, method), hr) for lr, hr in lrs_hrs
        ]
    print(f"\nMean of {len(results)} test images, x4, 8 bits, 4 px border cut:")
    print(f"{'':12}{'PSNR Y':>9}{'SSIM Y':>9}{'PSNR RGB':>10}{'SSIM RGB':>10}")
    for name, scores in rows.items():
        mean = mean_scores([TestResult(name, None, score) for score in scores])
        print(
            f"{name:12}{mean['psnr_y']:9.2f}{mean['ssim_y']:9.4f}"
            f"{mean['psnr_rgb']:10.2f}{mean['ssim_rgb']:10.4f}"
        )
    weights = run.checkpoint_folder(
        PRE_TRAINING if args.phase == "pretrain" else TRAINING
    )
    print(
        f"\nGrids       {run.images_dir}/_res_gen (pre-training), _res_gan\n"
        f"Results     {run.images_dir}/_res\n"
        f"Curves      {run.images_dir}/training_curves.png\n"
        f"Checkpoints {weights}, log in log.jsonl\n"
        f"Next        python evaluate.py --weights {weights}\n"
        f"            python upscale.py photo.jpg --weights {weights}"
    )
    if args.is_sample:
        print("            python srgan.py --dataset PATH_TO_YOUR_IMAGES --restart")
    if args.preset == "demo" and not args.is_shipped_start:
        print("\nA demo is too short to beat bicubic; it shows that everything works.")


if __name__ == "__main__":
    sys.exit(main())
