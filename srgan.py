"""Trains SRGAN: x4 super-resolution, first by MSE, then against a discriminator.

    python srgan.py                                   # demo, minutes, no download
    python srgan.py --dataset PATH_TO_YOUR_IMAGES     # the source's recipe
    python srgan.py --dataset PATH --preset paper     # the paper's recipe

Run the same command again to resume.
"""

import contextlib
import functools
from pathlib import Path

from support import command_line

with command_line.quiet_imports(__name__):
    import keras
    import numpy as np

    import layers
    import losses
    import metrics
    import networks
    import sample_data
    from data_loader import DataLoader, NoImageLeftError, save_lr_images
    from presets import PAPER_CROP, PRESETS, Recipe, parse_args
    from support import checkpoints, distribution, figures, training_run
    from support.pixels import to_uint8
    from support.tiling import enlarge
    from support.training_run import PRE_TRAINING, TRAINING, Phase, TrainingRun

SOURCE = PRESETS["source"]
SOURCE_RECIPE = Recipe()
ADAM_BETA_1 = 0.9  # paper, Sec. 3.2
ADAM_BETA_2 = 0.999  # Keras's default
STEP_FACTOR = 0.1  # learning-rate factor after half of the steps; paper, Sec. 3.2
COSINE_FLOOR = 0.02  # last learning rate of a cosine, as a share of the first
NUM_STATISTICS_BATCHES = 50  # that batch-norm statistics are averaged over


class SRGAN:
    """The networks of SRGAN, the steps that train them, and the loops.

    Attributes: `generator`, `discriminator`, `vgg` (frozen VGG19 features, or `None`
    for `content_loss="mse"`), and the models whose `train_on_batch` the steps call:
    `pretrainer`, `discriminator_trainer` and `combined`.

    Args:
        content_loss: str, a key of `losses.CONTENT_LOSSES`.
        vgg_weights: `"imagenet"`, the path of a weights file, or `None` (random: tests
            only); see `networks.build_feature_extractor`.
        learning_rate: float > 0, Adam learning rate of each model.
        pretrain_loss: str, one of `losses.PRETRAIN_LOSSES`; `"vgg22"` is the paper's
            SRResNet-VGG22.
        num_residual_blocks: int >= 0, of the source's and the paper's generator.
        num_filters: int >= 1, of the same, and of the discriminator.
        network: `"source"`, `"paper"` (whose discriminator takes HR crops of
            `PAPER_CROP` px), `"srcnn"` or `"espcn"` (with the source's discriminator).
        recipe: `presets.Recipe`, how the loops train.

    Raises:
        ValueError: if a loss or the network is unknown.
        FileNotFoundError: if the VGG19 weights cannot be found.
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
        recipe=SOURCE_RECIPE,
    ):
        self.content = losses.find_content_loss(content_loss)
        losses.check_pretrain_loss(pretrain_loss)
        self.pretrain_loss = pretrain_loss
        self.learning_rate = learning_rate
        self.recipe = recipe
        self.generator = networks.build_network(
            networks.Network(network, num_residual_blocks, num_filters)
        )
        self._is_paper = network == "paper"
        crop_size = PAPER_CROP if self._is_paper else None
        self.discriminator = networks.build_discriminator(num_filters, crop_size)
        self._is_distributed = distribution.is_active()
        distribution.synchronize_batch_norm(self.generator, self.discriminator)
        self.vgg = losses.build_content_features(content_loss, vgg_weights)
        self.pretrain_features = None
        if pretrain_loss == "vgg22":
            self.pretrain_features = losses.build_content_features("vgg22", vgg_weights)
        self.shift = None  # but for content_loss="texture"
        if self.content.max_shift > 0:
            self.shift = losses.RandomShift(
                self.content.max_shift, dtype=keras.config.floatx()
            )
        # Source: one Adam for all models. Current Keras refuses that, so each of the
        # three trained models has its own.
        self.pretrainer = self._build_pretrainer()
        self.discriminator_trainer = self._build_discriminator_trainer()
        self.combined = self._build_combined()

    def _build_pretrainer(self):
        lr, sr = self.generator.inputs[0], self.generator.outputs[0]
        loss = losses.PRETRAIN_LOSSES[self.pretrain_loss]
        optimizer = self._build_optimizer(self.recipe.ema, self.recipe.pretrain_beta_2)
        if self.pretrain_features is None:
            model = distribution.model_class()(lr, sr)
            return _compile(model, optimizer, loss)
        sr = losses.TotalVariation(dtype=keras.config.floatx())(sr)
        model = distribution.model_class()(lr, self.pretrain_features(sr))
        return _compile(model, optimizer, loss, [losses.FEATURE_WEIGHT])

    def _build_discriminator_trainer(self):
        images, real = self.discriminator.inputs[0], self.discriminator.outputs[0]
        # Source: least squares. Paper: binary cross-entropy (Sec. 2.1, eq. 2).
        loss = self.content.discriminator_loss
        if self._is_paper:
            loss = "binary_crossentropy"
        model = distribution.model_class()(images, real)
        optimizer = self._build_optimizer()
        return _compile(model, optimizer, loss, metrics=[_probability])

    def _build_combined(self):
        lr, sr = self.generator.inputs[0], self.generator.outputs[0]
        self.discriminator.trainable = False
        shifted = sr if self.shift is None else self.shift(sr)
        content = shifted if self.vgg is None else self.vgg(shifted)
        outputs = {"adversarial": self.discriminator(shifted), "content": content}
        loss = {"adversarial": "binary_crossentropy", "content": "mse"}
        weights = {
            "adversarial": self.content.adversarial_weight,
            "content": self.content.weight,
        }
        for name, weight in self.content.pixel_losses:
            outputs[name] = sr
            loss[name] = losses.PIXEL_LOSSES[name]
            weights[name] = weight
        model = distribution.model_class()(lr, outputs)
        return _compile(model, self._build_optimizer(self.recipe.ema), loss, weights)

    def _build_optimizer(self, ema=0.0, beta_2=ADAM_BETA_2):
        return keras.optimizers.Adam(
            self.learning_rate,
            beta_1=ADAM_BETA_1,
            beta_2=beta_2,
            use_ema=ema > 0,
            ema_momentum=ema,
        )

    def pre_train_on_batch(self, lr, hr):
        """Trains the generator alone for one step (paper: SRResNet).

        Args:
            lr: float `(n, h, w, 3)` in [-1, 1], low-resolution images.
            hr: float `(n, 4h, 4w, 3)` in [-1, 1], the same in high resolution.

        Returns:
            dict of the name of the loss to a float: `"mse"` or `"l1"`, the mean squared
            or absolute error in [-1, 1], or `"vgg22"`, the weighted feature loss plus
            total variation.
        """
        target = hr
        if self.pretrain_features is not None:
            target = self._infer(self.pretrain_features, hr)
        return {self.pretrain_loss: float(self.pretrainer.train_on_batch(lr, target))}

    def train_discriminator_on_batch(self, lr, hr):
        """Trains the discriminator on originals, then on generated images.

        The targets are 1 and 0; the loss is least squares (source), or binary
        cross-entropy (paper, and `content_loss="texture"`). The generator runs in
        inference mode and is not changed.

        Args:
            lr: float `(n, h, w, 3)` in [-1, 1], low-resolution images.
            hr: float `(n, 4h, 4w, 3)` in [-1, 1], the same in high resolution.

        Returns:
            dict of floats: the two losses, `"d_real"` and `"d_fake"` (the source
            reports half their sum), and the mean probabilities of being real that the
            discriminator gives, `"p_real"` and `"p_fake"`.
        """
        fake = self._infer(self.generator, lr)
        if self.shift is not None:
            self.shift.draw(
                self.recipe.seed, _count_updates(self.discriminator_trainer)
            )
            fake = np.asarray(self.shift(fake))
            hr = np.asarray(self.shift(hr))
        real_labels = self._patch_labels(hr)
        fake_labels = np.zeros_like(real_labels)
        # Keras reads `trainable` when a step is traced, so it is set before each one.
        self.discriminator.trainable = True
        d_real, p_real = self.discriminator_trainer.train_on_batch(hr, real_labels)
        d_fake, p_fake = self.discriminator_trainer.train_on_batch(fake, fake_labels)
        return {
            "d_real": float(d_real),
            "d_fake": float(d_fake),
            "p_real": float(p_real),
            "p_fake": float(p_fake),
        }

    def train_generator_on_batch(self, lr, hr):
        """Trains the generator against the frozen discriminator and the content loss.

        Args:
            lr: float `(n, h, w, 3)` in [-1, 1], low-resolution images.
            hr: float `(n, 4h, 4w, 3)` in [-1, 1], the same in high resolution.

        Returns:
            dict of floats: `"g_loss"`, the weighted sum, and its unweighted parts
            `"g_adversarial"` (binary cross-entropy of the discriminator's output
            against 1), `"g_content"` (mean squared error of features, or of pixels)
            and, for `content_loss="texture"`, `"g_low"` and `"g_grid"`.
        """
        content = hr
        if self.shift is not None:
            self.shift.draw(self.recipe.seed, _count_updates(self.combined))
            content = np.asarray(self.shift(hr))
        if self.vgg is not None:
            content = self._infer(self.vgg, content)
        targets = {"adversarial": self._patch_labels(hr), "content": content}
        for name, _ in self.content.pixel_losses:
            targets[name] = hr
        # Source: the frozen discriminator uses moving averages of original and
        # generated batches, which blur the difference between them.
        self.discriminator.trainable = False
        for layer in layers.batch_norm_layers(self.discriminator):
            layer.uses_batch_when_frozen = self.recipe.discriminator_bn == "batch"
        values = self.combined.train_on_batch(lr, targets, return_dict=True)
        results = {"g_loss": float(values["loss"])}
        for name in targets:
            results[f"g_{name}"] = float(values[f"{name}_loss"])
        return results

    def _infer(self, model, images):
        if self._is_distributed:  # `predict_on_batch` would gather all workers' outputs
            return np.asarray(model(images, training=False))
        return model.predict_on_batch(images)

    def _patch_labels(self, hr):
        if self._is_paper:
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

        With `recipe.ema`, the generator has the moving average of its weights at the
        end, as in the last checkpoint.

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
            if 0 < self.recipe.bn_freeze_step <= step:
                self.freeze_batch_norm(self.generator, loader, batch_size)
            phase.record(step, self.pre_train_on_batch(*loader.load_data(batch_size)))
            if step % interval == 0 or step == num_steps:
                self._report(phase, loader)
        self._keep_average(self.pretrainer)

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
        With `recipe.ema`, the generator has the moving average of its weights at the
        end, as in the last checkpoint.

        Args:
            loader: `DataLoader`.
            num_steps: int >= 1, the last iteration, including those of earlier runs.
            interval: int >= 1, iterations between reports, each with a checkpoint.
            batch_size: int >= 1, crops per batch; an iteration takes two batches.
            run: `TrainingRun`; by default one that writes to `weights/` and `images/`.

        Raises:
            TrainingStoppedError: if a loss is not finite, or saving fails.
        """
        phase = self._start_phase(TRAINING, run, num_steps)
        if self.recipe.bn_freeze_step > 0:
            self.freeze_batch_norm(self.generator, loader, batch_size)
        if self.recipe.discriminator_bn == "fixed":
            self.freeze_batch_norm(self.discriminator, loader, batch_size)
        if phase.step == 0:
            self._report(phase, loader)
        loader.seek(2 * phase.step, TRAINING)
        for step in phase.steps(num_steps):
            losses = self.train_discriminator_on_batch(*loader.load_data(batch_size))
            # Source: a fresh batch for the generator.
            losses |= self.train_generator_on_batch(*loader.load_data(batch_size))
            phase.record(step, losses)
            if step % interval == 0 or step == num_steps:
                self._report(phase, loader)
        self._keep_average(self.combined)

    def _start_phase(self, name, run, num_steps):
        """Opens a phase, and resumes it if it has checkpoints."""
        run = run or TrainingRun()
        trainer = self.pretrainer if name == PRE_TRAINING else self.combined
        models = {"generator": self.generator}
        optimizers = {"pretrain_optimizer": self.pretrainer.optimizer}
        if name == TRAINING:
            models["discriminator"] = self.discriminator
            optimizers = {
                "generator_optimizer": self.combined.optimizer,
                "discriminator_optimizer": self.discriminator_trainer.optimizer,
            }
        phase = Phase(
            run=run,
            name=name,
            models=models,
            optimizers=optimizers,
            swap_average=functools.partial(self._swap_average, trainer),
        )
        # A schedule removes the optimizer's learning-rate variable, so it is set before
        # loading.
        self._set_learning_rates(name, num_steps)
        phase.resume()
        if phase.step == 0 and name == TRAINING:
            phase.start_from(PRE_TRAINING)
        # Loading has restored the earlier run's learning rate.
        self._set_learning_rates(name, num_steps)
        self._trace_again()
        return phase

    def _set_learning_rates(self, phase, num_steps):
        recipe, rate = self.recipe, self.learning_rate
        if phase == PRE_TRAINING:
            schedule = "constant" if recipe.schedule == "step" else recipe.schedule
            optimizer = self.pretrainer.optimizer
            optimizer.learning_rate = build_schedule(schedule, rate, num_steps)
            return
        self.combined.optimizer.learning_rate = build_schedule(
            recipe.schedule, rate * recipe.generator_rate_factor, num_steps
        )
        # Two updates per iteration: originals, then generated images.
        self.discriminator_trainer.optimizer.learning_rate = build_schedule(
            recipe.schedule, rate * recipe.discriminator_rate_factor, 2 * num_steps
        )

    def _trace_again(self):
        """Discards traced steps, which captured the previous schedules and flags."""
        for trainer in (self.pretrainer, self.discriminator_trainer, self.combined):
            trainer.train_function = None

    def freeze_batch_norm(self, network, loader, batch_size=SOURCE["batch_size"]):
        """Averages a network's batch-norm statistics, and keeps them from then on.

        Moving averages with the source's momentum of 0.8 follow the last few batches
        only: by them, the same weights score up to 1 dB apart. Does nothing if the
        statistics are fixed already.

        Args:
            network: the generator or the discriminator.
            loader: `DataLoader`, makes the batches to average over.
            batch_size: int >= 1, crops per batch.
        """
        has_statistics = bool(layers.batch_norm_layers(network))
        if not has_statistics or layers.has_fixed_statistics(network):
            return
        self.discriminator.trainable = True
        copy = self._local(network)
        for k in range(NUM_STATISTICS_BATCHES):
            images, hr = loader.make_batch(k, batch_size, "statistics")
            if network is self.discriminator:
                images = np.concatenate([hr, self._infer(self.generator, images)])
            layers.average_batch_norm(copy, images, count=k)
        network.set_weights(copy.get_weights())
        layers.fix_statistics(network)
        self._trace_again()

    def _swap_average(self, trainer):
        """Exchanges the generator's weights and their moving average.

        Keras's `SwapEMAWeights` adds and subtracts, so that weights come back rounded.
        """
        if not self._has_average(trainer):
            return
        averages = checkpoints.find_averages(trainer.optimizer)
        weights = self.generator.trainable_variables
        for weight, average in zip(weights, averages, strict=True):
            last = keras.ops.convert_to_numpy(weight).copy()
            weight.assign(average)
            average.assign(last)

    def _keep_average(self, trainer):
        """Leaves the average in the generator, as the last checkpoint has it."""
        if self._has_average(trainer):
            trainer.optimizer.finalize_variable_values(
                self.generator.trainable_variables
            )

    def _has_average(self, trainer):
        return self.recipe.ema > 0 and _count_updates(trainer) > 0

    def _report(self, phase, loader):
        if not phase.run.is_chief:
            return
        with phase.averaged_weights():
            results = self.evaluate(phase.run.test_images)
            self.sample_images(loader, phase.step, phase.run.images_dir)
        phase.report(phase.step, results)

    def _local(self, network):
        """Returns a network, or a copy, that a worker may run alone."""
        if not self._is_distributed:
            return network
        copy = keras.models.clone_model(network)
        distribution.synchronize_batch_norm(copy)
        copy.set_weights(network.get_weights())
        return copy

    def evaluate(self, test_images):
        """Enlarges test images and measures the results.

        Args:
            test_images: list of `TestImage`.

        Returns:
            A list of pairs: the uint8 result `(4h, 4w, 3)`, and a dict of its scores.
        """
        results = []
        generator = self._local(self.generator)
        for image in test_images:
            sr = enlarge(generator, image.lr)
            scores = metrics.score(sr, image)
            if self.vgg is not None:
                scores["perceptual"] = metrics.perceptual_loss(
                    self.vgg, self.discriminator, sr, image.hr, self.content
                )
            results.append((to_uint8(sr), scores))
        return results

    def sample_images(self, loader, step, images_dir="images"):
        """Saves `<images_dir>/<dataset>/<step>.png`, two crops enlarged (source).

        Args:
            loader: `DataLoader`, makes the crops.
            step: int >= 0, names the file and chooses the crops.
            images_dir: path.
        """
        lr, hr = loader.make_batch(step, 2, "samples", is_testing=True)
        sr = np.asarray(self._local(self.generator).predict_on_batch(lr))
        columns = []
        for generated, original in zip(to_uint8(sr), to_uint8(hr), strict=True):
            columns.append({"generated": generated, "original": original})
        name = loader.folder.resolve().name
        folder = Path(images_dir, name)
        if folder.resolve() == loader.folder.resolve():  # never among the originals
            folder = folder.with_name(f"{name}_samples")
        path = folder / f"{step}.png"
        with training_run.saving("samples"):
            figures.save_grid(columns, path, title=f"{name}, step {step}")


def build_schedule(name, learning_rate, num_steps):
    """Returns a learning rate, or a Keras schedule, for `num_steps` updates."""
    schedules = keras.optimizers.schedules
    half = num_steps // 2
    if name == "cosine":
        return schedules.CosineDecay(learning_rate, num_steps, COSINE_FLOOR)
    if name == "late_cosine":  # constant for the first half
        return schedules.CosineDecay(
            learning_rate,
            num_steps - half,
            COSINE_FLOOR,
            warmup_target=learning_rate,
            warmup_steps=half,
        )
    if name == "step":
        rates = [learning_rate, STEP_FACTOR * learning_rate]
        return schedules.PiecewiseConstantDecay([half], rates)
    return learning_rate


def _compile(model, optimizer, loss, loss_weights=None, metrics=None):
    """Compiles a model, and builds its optimizer before any state is loaded."""
    model.compile(optimizer, loss, loss_weights=loss_weights, metrics=metrics)
    model.optimizer.build(model.trainable_variables)
    return model


def _count_updates(trainer):
    return int(keras.ops.convert_to_numpy(trainer.optimizer.iterations))


def _probability(labels, probabilities):
    """Metric: the mean probability that the discriminator gives."""
    return probabilities


def main(argv=None):
    """Trains as the command line says, and returns the exit code."""
    args = parse_args(argv)
    try:
        with contextlib.ExitStack() as stack:
            with command_line.usage_errors():
                loader, gan, run, workers = _set_up(args, stack)
            stack.enter_context(run.signals())
            if args.pretrain_steps and not (args.train_steps and run.has_trained):
                gan.pre_train(
                    loader,
                    num_steps=args.pretrain_steps,
                    interval=args.pretrain_interval,
                    batch_size=args.batch_size,
                    run=run,
                )
            workers.wait()  # for the chief to save what all start from
            if args.train_steps:
                gan.train(
                    loader,
                    num_steps=args.train_steps,
                    interval=args.train_interval,
                    batch_size=_train_batch_size(args),
                    run=run,
                )
            if workers.is_chief:
                phase = TRAINING if args.train_steps else PRE_TRAINING
                run.finish(gan.evaluate(run.test_images), phase)
            workers.wait()
    except (training_run.TrainingStoppedError, NoImageLeftError) as error:
        command_line.fail(error, command_line.EXIT_FAILED)
    return 0


def _set_up(args, stack):
    """Builds the loader, SRGAN and run; reports user errors before training starts."""
    workers = stack.enter_context(distribution.join_workers(args.precision))
    if workers.is_chief:
        command_line.check_writable(args.weights_dir / "state", "weights_dir")
        command_line.check_writable(args.images_dir / "grid", "images_dir")
        stack.enter_context(checkpoints.lock(args.weights_dir))
    print(command_line.describe_device())
    _check_batch_sizes(args, workers)
    loader = stack.enter_context(_build_loader(args, workers))
    print(loader.summary())
    with workers.scope():
        gan = _build_gan(args)
    images = []
    if workers.is_chief:
        images = loader.load_spec_data(args.test_images)
    run = TrainingRun(
        weights_dir=args.weights_dir,
        images_dir=args.images_dir,
        options=_describe_options(args, loader, gan),
        test_images=images,
        is_chief=workers.is_chief,
        max_of_workers=workers.max,
    )
    if workers.is_chief:
        run.prepare_folder(args)
    workers.wait()
    run.choose_start(gan.generator, args)
    if workers.is_chief:
        save_lr_images(images, args.images_dir / "_src")
        for model in (gan.generator, gan.discriminator):
            path = args.images_dir / f"{model.name}.png"
            problem = figures.save_model_diagram(model, path)
            print(problem or f"Diagram: {path}.")
    return loader, gan, run, workers


def _train_batch_size(args):
    return max(1, args.batch_size // args.train_batch_divisor)


def _check_batch_sizes(args, workers):
    for batch_size in (args.batch_size, _train_batch_size(args)):
        if batch_size % workers.count:
            raise ValueError(
                f"--batch-size {args.batch_size} makes batches of {batch_size} crops, "
                f"which {workers.count} workers cannot share. Pass a multiple of "
                f"{workers.count * args.train_batch_divisor}."
            )


def _build_loader(args, workers):
    if args.is_sample:
        print(f"No --dataset: training on generated images, preset {args.preset}.")
        sample_data.write_sample_dataset()
    return DataLoader(
        args.dataset,
        crop_size=args.crop_size,
        blur=args.blur,
        degradation=args.degradation,
        crops_per_image=args.crops_per_image,
        seed=args.seed,
        augment=args.augment,
        crop_scales=args.crop_scales,
        exclude=(args.weights_dir,),
        shard=(workers.index, workers.count),
    )


def _build_gan(args):
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    if args.deterministic:
        layers.make_deterministic()
    return SRGAN(
        # The content loss of a run without adversarial steps needs no VGG19.
        content_loss=args.content_loss if args.train_steps else "mse",
        vgg_weights=args.vgg_weights,
        learning_rate=args.learning_rate,
        pretrain_loss=args.pretrain_loss,
        num_residual_blocks=args.num_residual_blocks,
        num_filters=args.num_filters,
        network=args.network,
        recipe=Recipe.from_args(args),
    )


def _describe_options(args, loader, gan):
    """Returns the options that checkpoints state, and resuming compares."""
    names = (*SOURCE, "preset", "seed", "precision")
    options = {name: getattr(args, name) for name in names}
    options["crop_scales"] = list(args.crop_scales)
    options["dataset"] = loader.fingerprint()
    options["network"] = gan.generator.network._asdict()
    return options


if __name__ == "__main__":
    command_line.run(main)
