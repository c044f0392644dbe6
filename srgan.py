"""Trains SRGAN: x4 super-resolution, first by MSE, then against a discriminator.

    python srgan.py                                   # demo, minutes, no download
    python srgan.py --dataset PATH_TO_YOUR_IMAGES     # the source's recipe
    python srgan.py --dataset PATH --preset paper     # the paper's recipe

Run the same command again to resume.
"""

import contextlib
from pathlib import Path

from support import command_line

with command_line.quiet_imports(__name__):
    import keras
    import numpy as np

    import layers
    import metrics
    import networks
    import sample_data
    from data_loader import DataLoader, NoImageLeftError
    from losses import (
        CONTENT_LOSSES,
        FEATURE_WEIGHT,
        Roll,
        TotalVariation,
        build_content_features,
    )
    from presets import PAPER_CROP, PRESETS, parse_args
    from support import checkpoints, distribution, figures, training_run
    from support.pixels import to_uint8
    from support.tiling import enlarge
    from support.training_run import PRE_TRAINING, TRAINING, Phase, TrainingRun

SOURCE = PRESETS["source"]
ADAM_BETA_1 = 0.9  # paper, Sec. 3.2
STEP_FACTOR = 0.1  # of the learning rate, after half of the steps; paper, Sec. 3.2
COSINE_FLOOR = 0.02  # last learning rate of the cosine, as a share of the first
NUM_STATISTICS_BATCHES = 50  # that batch-norm statistics are averaged over


class SRGAN:
    """The networks of SRGAN, the steps that train them, and the loops.

    Attributes: `generator`, `discriminator`, `vgg` (frozen VGG19 features, or `None`
    for `content_loss="mse"`) and `combined`, the model of the generator's step. The
    loops also read `schedule` (`"constant"`: source; `"step"`: paper; `"cosine"`),
    `train_rate_factor` (of adversarial training's learning rate), `bn_freeze_step`
    (the pre-training step that fixes the generator's batch-norm statistics; 0: never)
    and `discriminator_bn`, what the frozen discriminator normalizes by: `"moving"`
    averages (source), `"batch"`, the generated batch's own statistics, or `"fixed"`,
    those of the first batches, which its own steps then use, too.

    Args:
        content_loss: str, a key of `CONTENT_LOSSES`.
        vgg_weights: `"imagenet"`, the path of a weights file, or `None` (random: tests
            only); see `networks.build_feature_extractor`.
        learning_rate: float > 0, of each Adam.
        pretrain_loss: `"mse"`, or `"vgg22"` (the paper's SRResNet-VGG22).
        num_residual_blocks: int >= 0, of the source's and the paper's generator.
        num_filters: int >= 1, of the same, and of the discriminator.
        network: `"source"`, `"paper"`, whose discriminator only takes HR crops of
            `PAPER_CROP` px, `"srcnn"` or `"espcn"`, both with the source's.
    """

    def __init__(
        self,
        content_loss="source",
        vgg_weights="imagenet",
        learning_rate=SOURCE["learning_rate"],
        pretrain_loss="mse",
        num_residual_blocks=16,
        num_filters=64,
        network="source",
    ):
        if pretrain_loss not in ("mse", "vgg22"):
            raise ValueError(f"Unknown pretrain_loss {pretrain_loss!r}.")
        self.learning_rate = learning_rate
        self.discriminator_bn = "moving"
        self.schedule = "constant"
        self.train_rate_factor = 1.0
        self.bn_freeze_step = 0
        network = networks.Network(network, num_residual_blocks, num_filters)
        self.generator = networks.build_network(network)
        self._judges_crops = network.name == "paper"
        crop_size = PAPER_CROP if self._judges_crops else None
        self.discriminator = networks.build_discriminator(num_filters, crop_size)
        self._is_distributed = distribution.is_active()
        distribution.synchronize_batch_norm(self.generator, self.discriminator)
        build_features = build_content_features
        self.vgg = build_features(content_loss, vgg_weights)
        self.content = CONTENT_LOSSES[content_loss]
        self.pretrain_features = build_features(pretrain_loss, vgg_weights)
        # Source: one Adam for all models. Current Keras refuses that, so each of the
        # three trained models has its own.
        self.pretrainer = self._build_pretrainer()
        self.discriminator_trainer = self._build_discriminator_trainer()
        self.combined = self._build_combined()

    def _build_pretrainer(self):
        lr, sr = self.generator.inputs[0], self.generator.outputs[0]
        if self.pretrain_features is None:
            return self._compile(lr, sr, "mse")
        sr = TotalVariation(dtype=keras.config.floatx())(sr)
        features = self.pretrain_features(sr)
        return self._compile(lr, features, "mse", [FEATURE_WEIGHT])

    def _build_discriminator_trainer(self):
        image, verdict = self.discriminator.inputs[0], self.discriminator.outputs[0]
        # Source: least squares. Paper: binary cross-entropy (Sec. 2.1, eq. 2).
        loss = "binary_crossentropy" if self._judges_crops else "mse"
        return self._compile(image, verdict, loss, metrics=[_probability])

    def _build_combined(self):
        lr, sr = self.generator.inputs[0], self.generator.outputs[0]
        self.discriminator.trainable = False
        self.roll = Roll(dtype=keras.config.floatx())
        rolled = self.roll(sr)
        content = rolled if self.vgg is None else self.vgg(rolled)
        outputs, losses = [self.discriminator(rolled), content], ["binary_crossentropy"]
        weights = [self.content.adversarial_weight, self.content.weight]
        if self.content.pixel_weight:
            outputs.append(rolled)
            weights.append(self.content.pixel_weight)
        losses += ["mse"] * (len(outputs) - 1)
        return self._compile(lr, outputs, losses, weights)

    def _compile(self, inputs, outputs, loss, loss_weights=None, metrics=None):
        model = distribution.model_class()(inputs, outputs)
        optimizer = keras.optimizers.Adam(self.learning_rate, beta_1=ADAM_BETA_1)
        model.compile(optimizer, loss, loss_weights=loss_weights, metrics=metrics)
        model.optimizer.build(model.trainable_variables)
        return model

    def pre_train_on_batch(self, lr, hr):
        """Trains the generator alone for one step (paper: SRResNet).

        Args:
            lr: float `(n, h, w, 3)` in [-1, 1].
            hr: float `(n, 4h, 4w, 3)` in [-1, 1].

        Returns:
            dict: `"mse"`, mean squared error in [-1, 1]; with `pretrain_loss="vgg22"`,
            `"vgg22"`, the weighted feature loss plus total variation.
        """
        if self.pretrain_features is None:
            return {"mse": float(self.pretrainer.train_on_batch(lr, hr))}
        features = self._infer(self.pretrain_features, hr)
        return {"vgg22": float(self.pretrainer.train_on_batch(lr, features))}

    def train_discriminator_on_batch(self, lr, hr):
        """Trains the discriminator on originals, then on generated images.

        Least squares against 1 and 0 (source). The generator runs in inference mode and
        is not changed. Takes what `pre_train_on_batch` does.

        Returns:
            dict: the two losses, `"d_real"` and `"d_fake"` (the source reports half
            their sum), and the mean verdicts, `"p_real"` and `"p_fake"`.
        """
        fake = self._infer(self.generator, lr)
        offset = self._draw_offset(self.discriminator_trainer)
        fake, hr = (np.roll(images, offset, axis=(1, 2)) for images in (fake, hr))
        real_labels = self._patch_labels(hr)
        # Keras reads `trainable` when a step is traced, so it is set before each one.
        self.discriminator.trainable = True
        step = self.discriminator_trainer.train_on_batch
        d_real, p_real = map(float, step(hr, real_labels))
        d_fake, p_fake = map(float, step(fake, np.zeros_like(real_labels)))
        return {"d_real": d_real, "d_fake": d_fake, "p_real": p_real, "p_fake": p_fake}

    def train_generator_on_batch(self, lr, hr):
        """Trains the generator against the frozen discriminator and the content loss.

        Takes what `pre_train_on_batch` does.

        Returns:
            dict: `"g_loss"`, the weighted sum, and its unweighted parts
            `"g_adversarial"` (binary cross-entropy of the verdicts against 1),
            `"g_content"` (mean squared error of features, or of pixels) and, if it is
            weighted, `"g_pixel"`.
        """
        offset = self._draw_offset(self.combined)
        self.roll.offset.assign(offset)
        hr = np.roll(hr, offset, axis=(1, 2))
        content = hr if self.vgg is None else self._infer(self.vgg, hr)
        targets = [self._patch_labels(hr), content, hr][: len(self.combined.outputs)]
        # Source: frozen, its batch norm runs on moving averages of originals and
        # generated images alike, by which it can hardly tell them apart.
        self.discriminator.trainable = False
        for layer in layers.batch_norm_layers(self.discriminator):
            layer.uses_batch_when_frozen = self.discriminator_bn == "batch"
        losses = self.combined.train_on_batch(lr, targets)
        names = ("g_loss", "g_adversarial", "g_content", "g_pixel")
        return dict(zip(names, map(float, losses), strict=False))

    def _draw_offset(self, trainer):
        """Returns rows and columns to roll by, chosen by the trainer's step."""
        rng = np.random.default_rng(int(trainer.optimizer.iterations.numpy()))
        return rng.integers(self.content.max_shift + 1, size=2)

    def _infer(self, model, images):
        if self._is_distributed:  # `predict_on_batch` would gather all workers' outputs
            return np.asarray(model(images, training=False))
        return model.predict_on_batch(images)

    def _patch_labels(self, hr):
        if self._judges_crops:
            return np.ones((len(hr), 1), keras.config.floatx())
        # Source: floor(side / 16), which fits some sizes only.
        height, width = (-(-side // networks.PATCH_SIZE) for side in hr.shape[1:3])
        return np.ones((len(hr), height, width, 1), keras.config.floatx())

    def pre_train(
        self,
        loader,
        num_steps=SOURCE["pretrain_steps"],
        interval=SOURCE["pretrain_interval"],
        batch_size=SOURCE["batch_size"],
        run=None,
    ):
        """Trains the generator alone, from the newest checkpoint if there is one.

        Args:
            loader: `DataLoader`.
            num_steps: int >= 1, the last step, including those of earlier runs.
            interval: int >= 1, steps between reports, each with a checkpoint.
            batch_size: int >= 1, crops per step.
            run: `TrainingRun`; by default one that writes to `weights/` and `images/`.

        Raises:
            TrainingStoppedError: if a loss is not finite, or saving fails.
        """
        phase = self._start_phase(PRE_TRAINING, run, num_steps)
        if phase.step == 0:
            self._report(phase, loader)
        loader.seek(phase.step, PRE_TRAINING)
        for step in phase.steps(num_steps):
            if step == self.bn_freeze_step > 1:
                self.fix_batch_norm(self.generator, loader, batch_size)
            phase.record(step, self.pre_train_on_batch(*loader.load_data(batch_size)))
            if step % interval == 0 or step == num_steps:
                self._report(phase, loader)

    def train(
        self,
        loader,
        num_steps=SOURCE["train_steps"],
        interval=SOURCE["train_interval"],
        batch_size=SOURCE["batch_size"],
        run=None,
    ):
        """Trains generator and discriminator in turns (source; paper: Sec. 2.1).

        Starts from the newest checkpoint, or else the newest pre-trained generator.
        Takes and raises what `pre_train` does.
        """
        phase = self._start_phase(TRAINING, run, num_steps)
        if phase.step == 0:
            self._report(phase, loader)
        if self.discriminator_bn == "fixed":
            first = loader if phase.step == 0 else None
            self.fix_batch_norm(self.discriminator, first, batch_size)
        loader.seek(2 * phase.step, TRAINING)
        for step in phase.steps(num_steps):
            losses = self.train_discriminator_on_batch(*loader.load_data(batch_size))
            # Source: a fresh batch for the generator.
            losses |= self.train_generator_on_batch(*loader.load_data(batch_size))
            phase.record(step, losses)
            if step % interval == 0 or step == num_steps:
                self._report(phase, loader)

    def _start_phase(self, name, run, num_steps):
        """Opens and resumes a phase, with its learning rates and batch norm."""
        run = run or TrainingRun()
        models = {"generator": self.generator}
        optimizers = {"pretrain_optimizer": self.pretrainer.optimizer}
        if name == TRAINING:
            models["discriminator"] = self.discriminator
            optimizers = {
                "generator_optimizer": self.combined.optimizer,
                "discriminator_optimizer": self.discriminator_trainer.optimizer,
            }
        phase = Phase(run, name, models, optimizers)
        # Before loading, because a schedule takes the place of a variable.
        self._set_learning_rates(name, num_steps)
        if phase.resume() == 0 and name == TRAINING:
            path, _ = checkpoints.find_newest(run.folder(PRE_TRAINING))
            if path is not None:
                checkpoints.restore(path, {"generator": self.generator}, {})
                print(f"The generator starts from {path}.")
        self._set_learning_rates(name, num_steps)  # the loaded one may be another
        fixed = self.bn_freeze_step
        if fixed and (name == TRAINING or fixed == 1 or fixed <= phase.step):
            self.fix_batch_norm(self.generator)
        return phase

    def _set_learning_rates(self, phase, num_steps):
        schedules = keras.optimizers.schedules
        for trainer in (self.pretrainer, self.discriminator_trainer, self.combined):
            rate = self.learning_rate
            rate *= self.train_rate_factor if phase == TRAINING else 1.0
            # The discriminator is updated twice per iteration.
            count = num_steps * (2 if trainer is self.discriminator_trainer else 1)
            if self.schedule == "cosine":
                rate = schedules.CosineDecay(rate, count, COSINE_FLOOR)
            elif self.schedule == "step" and phase == TRAINING:
                rates = [rate, STEP_FACTOR * rate]
                rate = schedules.PiecewiseConstantDecay([count // 2], rates)
            trainer.optimizer.learning_rate = rate

    def fix_batch_norm(self, network, loader=None, batch_size=SOURCE["batch_size"]):
        """Averages batch-norm statistics if there is a loader, and fixes them."""
        # Source: moving averages, by which the same weights score up to 1 dB apart.
        self.discriminator.trainable = True
        copy = self._local(network)
        for k in range(NUM_STATISTICS_BATCHES if loader else 0):
            images, hr = loader.make_batch(k, batch_size, "statistics")
            if network is self.discriminator:
                fake = self._infer(self.generator, images)
                images = np.concatenate([hr, fake])
            layers.average_batch_norm(copy, images, count=k)
        network.set_weights(copy.get_weights())
        for layer in layers.batch_norm_layers(network):
            layer.has_fixed_statistics = True
        for trainer in (self.pretrainer, self.discriminator_trainer, self.combined):
            trainer.train_function = None  # traced again, without new statistics

    def _report(self, phase, loader):
        if phase.run.is_chief:
            phase.report(phase.step, self.evaluate(phase.run.test_images))
            self.sample_images(loader, phase.step, phase.run.images_dir)

    def _local(self, network):
        """Returns a network, or a copy, that a worker may run alone."""
        if not self._is_distributed:
            return network
        copy = keras.models.clone_model(network)
        distribution.synchronize_batch_norm(copy)
        copy.set_weights(network.get_weights())
        return copy

    def evaluate(self, test_images):
        """Enlarges `TestImage`s; returns pairs of uint8 `(4h, 4w, 3)` and scores."""
        results, generator = [], self._local(self.generator)
        for image in test_images:
            sr = enlarge(generator, image.lr)
            scores = metrics.score(sr, image)
            if self.vgg is not None:
                judges = self.vgg, self.discriminator
                loss = metrics.perceptual_loss(*judges, sr, image.hr, self.content)
                scores["perceptual"] = loss
            results.append((to_uint8(sr), scores))
        return results

    def sample_images(self, loader, step, images_dir="images"):
        """Saves `<images_dir>/<dataset>/<step>.png`, two crops enlarged (source)."""
        lr, hr = loader.make_batch(step, 2, "samples", is_testing=True)
        sr = np.asarray(self._local(self.generator).predict_on_batch(lr))
        pairs = zip(to_uint8(sr), to_uint8(hr), strict=True)
        columns = [{"generated": sr, "original": hr} for sr, hr in pairs]
        name = loader.folder.resolve().name
        folder = Path(images_dir, name)
        if folder.resolve() == loader.folder.resolve():  # never among the originals
            folder = folder.with_name(f"{name}_samples")
        path = folder / f"{step}.png"
        with training_run.saving("samples"):
            figures.save_grid(columns, path, title=f"{name}, step {step}")


def _probability(labels, verdicts):
    """Metric: the discriminator's mean verdict."""
    return verdicts


def main(argv=None):
    """Trains as the command line says, and returns the exit code."""
    args = parse_args(argv)
    try:
        with contextlib.ExitStack() as stack:
            with command_line.usage_errors():
                loader, gan, run, workers = _set_up(args, stack)
            stack.enter_context(run.signals())
            if args.pretrain_steps and not (args.train_steps and run.has_trained):
                steps = args.pretrain_steps, args.pretrain_interval, args.batch_size
                gan.pre_train(loader, *steps, run)
            workers.wait()  # for the chief to save what all start from
            if args.train_steps:
                steps = args.train_steps, args.train_interval, args.batch_size
                gan.train(loader, *steps, run)
            if workers.is_chief:
                run.conclude(gan.evaluate(run.test_images))
            workers.wait()
    except (training_run.TrainingStoppedError, NoImageLeftError) as error:
        command_line.fail(error, command_line.EXIT_FAILED)
    return 0


def _set_up(args, stack):
    """Builds loader, SRGAN and run, and checks everything that can be wrong."""
    workers = stack.enter_context(distribution.join_workers(args.precision))
    if workers.is_chief:
        command_line.check_writable(args.weights_dir / "state", "weights_dir")
        command_line.check_writable(args.images_dir / "grid", "images_dir")
        stack.enter_context(checkpoints.lock(args.weights_dir))
    print(command_line.describe_device())
    if args.is_sample:
        print(f"No --dataset: training on generated images, preset {args.preset}.")
        sample_data.write_sample_dataset()
    options = args.crop_size, args.blur, args.crops_per_image or None, args.seed
    folders = args.weights_dir, args.images_dir
    loader = DataLoader(args.dataset, *options, args.augment, folders, args.degradation)
    stack.enter_context(loader)
    print(loader.summary())
    loader.shard = (workers.index, workers.count)
    with workers.scope():
        gan = _build_gan(args)
    run = TrainingRun(*folders, is_chief=workers.is_chief, agree=workers.agree)
    names = (*SOURCE, "preset", "seed", "precision")
    run.options = {name: getattr(args, name) for name in names}
    run.options |= {"dataset": loader.fingerprint(), "network": gan.generator.network}
    if workers.is_chief:
        run.clear_the_way(args)
    workers.wait()
    run.choose_start(gan.generator, args)
    if workers.is_chief:
        folder = args.images_dir / "_src"
        run.test_images = loader.load_spec_data(args.test_images, folder)
        for model in (gan.generator, gan.discriminator):
            path = args.images_dir / f"{model.name}.png"
            print(figures.save_model_diagram(model, path) or f"Diagram: {path}.")
    return loader, gan, run, workers


def _build_gan(args):
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    if args.deterministic:
        layers.make_deterministic()
    content_loss = args.content_loss if args.train_steps else "mse"
    losses = content_loss, args.vgg_weights, args.learning_rate, args.pretrain_loss
    sizes = args.num_residual_blocks, args.num_filters, args.network
    gan = SRGAN(*losses, *sizes)
    for name in ("schedule", "train_rate_factor", "bn_freeze_step", "discriminator_bn"):
        setattr(gan, name, getattr(args, name))
    return gan


if __name__ == "__main__":
    command_line.run(main)
