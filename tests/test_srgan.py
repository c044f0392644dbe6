"""Tests of class SRGAN: what each step moves, the losses, the loops, the command."""

import contextlib
import re
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import data_loader
import evaluate
import layers
import losses
import networks
import sample_data
import srgan
from presets import PRESETS, Recipe
from srgan import SRGAN
from support import checkpoints, test_images, weight_files
from support.training_run import Phase, TrainingRun

TINY = {"num_residual_blocks": 1, "num_filters": 4}
STATISTICS = {"moving_mean", "moving_variance"}
ALL_NAMES = {"kernel", "bias", "gamma", "beta", *STATISTICS}


def draw_batch(seed=0, size=(2, 8, 8)):
    n, h, w = size
    lr = np.random.default_rng(seed).uniform(-1, 1, (n, h, w, 3)).astype("float32")
    return lr, lr.repeat(4, 1).repeat(4, 2)


def snapshot(model):
    return [np.array(weight) for weight in model.get_weights()]


def moved(before, model):
    """Returns the names of the variables that differ from a snapshot."""
    return {
        variable.name
        for old, variable in zip(before, model.weights, strict=True)
        if not np.array_equal(old, np.asarray(variable))
    }


@pytest.fixture(autouse=True)
def _small_discriminator(monkeypatch):
    monkeypatch.setattr(networks, "DISCRIMINATOR_BLOCKS", ((1, 4), (2, 4)))


@pytest.fixture
def gan():
    return SRGAN(vgg_weights=None, learning_rate=1e-2, **TINY)


@pytest.fixture
def pixel_gan():
    return SRGAN(content_loss="mse", learning_rate=1e-2, **TINY)


@pytest.fixture
def loader(image_folder):
    with data_loader.DataLoader(image_folder, crop_size=32) as loader:
        yield loader


@pytest.fixture
def run(tmp_path, no_figures):
    return TrainingRun(tmp_path / "weights", tmp_path / "images")


def test_each_step_moves_its_own_network_only(gan):
    """In Keras 3 the source's discriminator never trains: `trainable` is read when a
    step is first traced. Hence two rounds, and the step that freezes it first."""
    for seed in range(2):
        batch, features = draw_batch(seed), snapshot(gan.vgg)
        generator, discriminator = snapshot(gan.generator), snapshot(gan.discriminator)
        gan.train_generator_on_batch(*batch)
        assert moved(generator, gan.generator) == ALL_NAMES
        assert not moved(discriminator, gan.discriminator)

        generator = snapshot(gan.generator)
        gan.train_discriminator_on_batch(*batch)
        assert not moved(generator, gan.generator)
        assert moved(discriminator, gan.discriminator) == ALL_NAMES

        discriminator = snapshot(gan.discriminator)
        gan.pre_train_on_batch(*batch)
        assert moved(generator, gan.generator) == ALL_NAMES
        assert not moved(discriminator, gan.discriminator)
        assert not moved(features, gan.vgg)


def test_discriminator_bn_of_the_batch():
    """The flag would do nothing, or let the generator's step move the discriminator."""
    recipe = Recipe(discriminator_bn="batch")
    gan = SRGAN(content_loss="mse", recipe=recipe, **TINY)
    lr, hr = draw_batch()
    for seed in range(3):
        gan.train_discriminator_on_batch(*draw_batch(seed))
    gan.discriminator.trainable = True  # as in its own step
    before = snapshot(gan.discriminator)
    generated = gan.generator(lr, training=True)
    verdicts = keras.ops.convert_to_numpy(gan.discriminator(generated, training=True))
    gan.discriminator.set_weights(before)
    loss = gan.train_generator_on_batch(lr, hr)["g_adversarial"]
    assert loss == pytest.approx(-np.log(verdicts).mean(), rel=1e-4)
    by_moving = keras.ops.convert_to_numpy(gan.discriminator(generated, training=False))
    assert loss != pytest.approx(-np.log(by_moving).mean(), rel=1e-3)
    assert not moved(before, gan.discriminator)


def test_fixed_discriminator_bn(loader, run):
    """Each step would judge by other statistics, or training would move them."""
    recipe = Recipe(discriminator_bn="fixed")
    gan = SRGAN(content_loss="mse", recipe=recipe, **TINY)
    gan.train(loader, 1, 1, 2, run)
    before = snapshot(gan.discriminator)
    lr, hr = draw_batch()
    verdict = np.asarray(gan.discriminator(hr, training=False)).mean()
    losses = gan.train_discriminator_on_batch(lr, hr)
    assert losses["p_real"] == pytest.approx(verdict, rel=1e-4)
    assert moved(before, gan.discriminator) == ALL_NAMES - STATISTICS


def test_absolute_error_pre_training():
    """The preset of the shipped weights would be trained by another loss."""
    gan = SRGAN(content_loss="mse", pretrain_loss="l1", **TINY)
    lr, hr = draw_batch()
    sr = np.asarray(gan.generator(lr, training=True))
    expected = pytest.approx(np.abs(sr - hr).mean(), rel=1e-3)
    assert gan.pre_train_on_batch(lr, hr) == {"l1": expected}


@pytest.mark.parametrize("num_images", [1, 2])
def test_texture_compares_images_at_the_same_offset(num_images):
    """Generated and original images would be shifted apart, or alike in each step."""
    gan = SRGAN(content_loss="texture", vgg_weights=None, **TINY)
    # Compiled GPU steps cannot read TensorFlow's 32-bit whole numbers.
    assert gan.shift.offset.dtype == "int64" or keras.backend.backend() == "jax"
    lr, hr = draw_batch(size=(num_images, 8, 8))
    offsets = []
    for _ in range(2):
        sr = np.asarray(gan.generator(lr, training=True))
        values = gan.train_generator_on_batch(lr, hr)
        offset = np.asarray(gan.shift.offset)
        features = [gan.vgg(np.roll(x, offset, axis=(1, 2))) for x in (sr, hr)]
        difference = np.asarray(features[0]) - np.asarray(features[1])
        assert values["g_content"] == pytest.approx(np.mean(difference**2), rel=1e-3)
        for name, function in losses.PIXEL_LOSSES.items():
            expected = pytest.approx(float(function(hr, sr)), rel=1e-3)
            assert values[f"g_{name}"] == expected
        offsets.append(tuple(offset.tolist()))
    assert offsets[0] != offsets[1]
    assert max(*offsets[0], *offsets[1]) <= 15


def test_texture_shows_the_discriminator_both_images_at_one_offset(monkeypatch):
    """Originals and generated images would differ by their offset on the x4 grid."""
    gan = SRGAN(content_loss="texture", vgg_weights=None, **TINY)
    lr, hr = draw_batch()
    shown = []
    step = gan.discriminator_trainer.train_on_batch
    monkeypatch.setattr(
        gan.discriminator_trainer,
        "train_on_batch",
        lambda images, labels: shown.append(images) or step(images, labels),
    )
    fake = gan.generator.predict_on_batch(lr)
    gan.train_discriminator_on_batch(lr, hr)
    offset = np.asarray(gan.shift.offset)
    for images, expected in zip(shown, (hr, fake), strict=True):
        np.testing.assert_array_equal(images, np.roll(expected, offset, axis=(1, 2)))


def test_texture_has_a_gradient_where_the_discriminator_is_certain():
    """On probabilities clipped at 1e-7, a generator that has lost would learn nothing,
    and with least squares the discriminator would stop learning, too."""
    gan = SRGAN(content_loss="texture", vgg_weights=None, **TINY)
    lr, hr = draw_batch()
    logits = gan.discriminator.layers[-2]
    logits.bias.assign([-60.0])
    assert gan.train_generator_on_batch(lr, hr)["g_adversarial"] > 40
    logits.bias.assign([60.0])
    assert gan.train_discriminator_on_batch(lr, hr)["d_fake"] > 40


def test_steps_return_the_losses_that_are_documented(gan):
    """Logs, and users who judge a GAN's health, rely on these names and values."""
    lr, hr = draw_batch(size=(2, 5, 7))
    for _ in range(2):  # in the second round, sums over earlier steps would show
        losses = gan.pre_train_on_batch(lr, hr)
        assert list(losses) == ["mse"]
        gan.discriminator.trainable = True
        before = snapshot(gan.discriminator)
        verdicts = np.asarray(gan.discriminator(hr, training=True))
        gan.discriminator.set_weights(before)
        losses |= gan.train_discriminator_on_batch(lr, hr)
        assert list(losses)[1:] == ["d_real", "d_fake", "p_real", "p_fake"]
        assert losses["p_real"] == pytest.approx(verdicts.mean(), rel=1e-4)
        assert losses["d_real"] == pytest.approx(np.mean((verdicts - 1) ** 2), rel=1e-4)
        losses |= gan.train_generator_on_batch(lr, hr)
        assert list(losses)[5:] == ["g_loss", "g_adversarial", "g_content"]
        assert all(type(value) is float for value in losses.values())
        weighted = 1e-3 * losses["g_adversarial"] + losses["g_content"] / 12.75**2
        assert losses["g_loss"] == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("content_loss", list(losses.CONTENT_LOSSES))
def test_every_content_loss_trains(content_loss):
    """The paper's systems differ by it, and the source shows it with its pictures."""
    gan = SRGAN(content_loss=content_loss, vgg_weights=None, **TINY)
    before = snapshot(gan.generator)
    lr, hr = draw_batch()
    assert np.isfinite(gan.train_generator_on_batch(lr, hr)["g_loss"])
    assert moved(before, gan.generator) == ALL_NAMES
    ((sr, scores),) = gan.evaluate([test_images.TestImage("a", lr[0], hr[0])])
    assert (sr.shape, sr.dtype) == ((32, 32, 3), np.uint8)
    assert ("perceptual" in scores) == (content_loss != "mse")


def test_feature_pre_training():
    """SRResNet-VGG22: features and total variation, which Keras 3.15 would divide by
    the batch size once more if it were an activity regularizer."""
    gan = SRGAN(content_loss="mse", pretrain_loss="vgg22", vgg_weights=None, **TINY)
    lr, _ = draw_batch()
    before = snapshot(gan.generator)
    sr = np.asarray(gan.generator(lr, training=True))
    gan.generator.set_weights(before)
    losses = gan.pre_train_on_batch(lr, sr)  # whose features are the same
    rows, columns = np.abs(np.diff(sr, axis=1)), np.abs(np.diff(sr, axis=2))
    expected = 2e-8 * (rows.sum() + columns.sum()) / len(sr)
    assert losses == {"vgg22": pytest.approx(expected, rel=1e-2)}
    assert moved(before, gan.generator) == ALL_NAMES


@pytest.mark.parametrize(
    ("content_loss", "pretrain_loss", "discriminator_bn", "network"),
    [
        ("mse", "mse", "moving", "source"),
        pytest.param("source", "vgg22", "batch", "source", marks=pytest.mark.slow),
        pytest.param("mse", "mse", "fixed", "espcn", marks=pytest.mark.slow),
        pytest.param("texture", "l1", "fixed", "source", marks=pytest.mark.slow),
    ],
)
def test_steps_compile_under_xla(
    content_loss, pretrain_loss, discriminator_bn, network
):
    """On GPUs Keras compiles by XLA, where an operation may fail or differ."""
    results = []
    for is_compiled in (False, True):
        keras.utils.set_random_seed(0)
        gan = SRGAN(
            content_loss=content_loss,
            vgg_weights=None,
            learning_rate=0.1,
            pretrain_loss=pretrain_loss,
            network=network,
            recipe=Recipe(discriminator_bn=discriminator_bn),
            **TINY,
        )
        for trainer in (gan.pretrainer, gan.discriminator_trainer, gan.combined):
            # With Adam's own, the first update is the gradient's sign: rounding shows.
            trainer.optimizer.epsilon = 1.0
            trainer.jit_compile = is_compiled
        gan.generator.jit_compile = is_compiled
        steps = gan.pre_train_on_batch(*draw_batch(0))
        steps |= gan.train_discriminator_on_batch(*draw_batch(1))
        steps |= gan.train_generator_on_batch(*draw_batch(2))
        sr = gan.generator.predict_on_batch(draw_batch(3)[0])
        weights = gan.generator.get_weights() + gan.discriminator.get_weights()
        results.append([*steps.values(), sr, *weights])
        assert gan.combined.jit_compile == gan.generator.jit_compile == is_compiled
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, plain, atol=1e-4, rtol=1e-4)


def test_statistics_are_averaged_once_then_fixed(pixel_gan, loader, run, monkeypatch):
    """Fixed too early, they are those of random weights; without averaging, those of
    the last few batches; fixed too late, the reports jump."""
    counts, average = [], layers.average_batch_norm

    def record(*args, **kwargs):
        counts.append(int(pixel_gan.pretrainer.optimizer.iterations))
        average(*args, **kwargs)

    monkeypatch.setattr(layers, "average_batch_norm", record)
    monkeypatch.setattr(srgan, "NUM_STATISTICS_BATCHES", 2)
    pixel_gan.recipe = Recipe(bn_freeze_step=3)
    pixel_gan.pre_train(loader, 3, interval=3, batch_size=2, run=run)
    before = snapshot(pixel_gan.generator)
    pixel_gan.pre_train(loader, 4, interval=4, batch_size=2, run=run)
    pixel_gan.train(loader, 1, interval=1, batch_size=2, run=run)
    assert counts == [2, 2]  # after step 2, never again
    assert moved(before, pixel_gan.generator) == ALL_NAMES - STATISTICS
    lr, hr = draw_batch()
    sr = pixel_gan.generator.predict_on_batch(lr)
    mse = pixel_gan.pre_train_on_batch(lr, hr)["mse"]
    assert mse == pytest.approx(np.mean((sr - hr) ** 2), rel=1e-4)  # what users get


def test_statistics_that_were_not_averaged_are(pixel_gan, loader, run, monkeypatch):
    """They would be fixed at the moving averages of the last few batches, in silence:
    training was shorter than the step, or resumed after it."""
    monkeypatch.setattr(srgan, "NUM_STATISTICS_BATCHES", 2)
    pixel_gan.recipe = Recipe(bn_freeze_step=9)
    pixel_gan.pre_train(loader, 1, interval=1, batch_size=2, run=run)
    before = snapshot(pixel_gan.generator)
    pixel_gan.train(loader, 1, interval=1, batch_size=2, run=run)
    assert moved(before, pixel_gan.generator) >= STATISTICS
    path = run.folder("training") / "step-00000001" / "generator.weights.h5"
    fresh = SRGAN(content_loss="mse", **TINY)
    checkpoints.load_weights(fresh.generator, path)
    assert layers.has_fixed_statistics(fresh.generator)  # its file says so
    assert not layers.has_fixed_statistics(fresh.discriminator)


def test_a_network_without_batch_norm_has_nothing_to_freeze(loader, run, monkeypatch):
    """SRCNN and ESPCN averaged statistics that they lack, at every step."""
    recipe = Recipe(bn_freeze_step=1)
    gan = SRGAN(content_loss="mse", network="espcn", recipe=recipe, **TINY)
    monkeypatch.setattr(layers, "average_batch_norm", None)  # a call would fail
    gan.pre_train(loader, 2, interval=2, batch_size=2, run=run)
    traced = gan.pretrainer.train_function
    gan.freeze_batch_norm(gan.generator, loader)
    assert gan.pretrainer.train_function is traced


def test_each_call_of_a_loop_has_its_own_schedule(pixel_gan, loader, run):
    """Keras keeps a traced step with the schedule of then: a second, longer call went
    on with the first one's last learning rate, a fiftieth."""
    pixel_gan.recipe = Recipe(schedule="cosine")
    pixel_gan.pre_train(loader, 4, interval=4, batch_size=2, run=run)
    before = snapshot(pixel_gan.generator)
    run.max_of_workers = lambda _: 2  # stops after a step, as a signal does
    with pytest.raises(SystemExit):
        pixel_gan.pre_train(loader, 1000, interval=1000, batch_size=2, run=run)
    change = snapshot(pixel_gan.generator)[0] - before[0]
    assert np.abs(change).max() > 1e-3  # of a learning rate of 1e-2


def test_the_average_is_shown_and_saved(loader, run, monkeypatch):
    """Raw weights wander: colors and scores of two reports differ by chance."""
    recipe = Recipe(ema=0.5)
    gan = SRGAN(content_loss="mse", learning_rate=1e-2, recipe=recipe, **TINY)
    raw = []
    step = gan.pretrainer.train_on_batch

    def record(*args):
        loss = step(*args)
        raw.append(snapshot(gan.generator))
        return loss

    monkeypatch.setattr(gan.pretrainer, "train_on_batch", record)
    shown = []

    def evaluate(test_images):
        shown.append(snapshot(gan.generator))

    monkeypatch.setattr(gan, "evaluate", evaluate)
    monkeypatch.setattr(Phase, "report", lambda phase, *_: phase.save())
    gan.pre_train(loader, 3, interval=3, batch_size=2, run=run)
    kernels = [weights[0] for weights in raw]
    average = kernels[0]
    for kernel in kernels[1:]:
        average = 0.5 * average + 0.5 * kernel
    np.testing.assert_allclose(shown[-1][0], average, atol=1e-6)
    saved, _ = weight_files.load_generator(run.folder("pre_training"))
    np.testing.assert_array_equal(saved.get_weights()[0], shown[-1][0])
    np.testing.assert_array_equal(snapshot(gan.generator)[0], shown[-1][0])
    # Training goes on from the last weights, not from their average.
    again = SRGAN(content_loss="mse", learning_rate=1e-2, recipe=recipe, **TINY)
    again._start_phase("pre_training", run, 4)
    np.testing.assert_array_equal(snapshot(again.generator)[0], kernels[-1])


def test_a_checkpoint_without_an_average(pixel_gan, loader, run, capsys):
    """Of zeros, the average would show a black image for a thousand steps."""
    pixel_gan.pre_train(loader, 1, interval=1, batch_size=2, run=run)
    before = snapshot(pixel_gan.generator)
    gan = SRGAN(content_loss="mse", recipe=Recipe(ema=0.9), **TINY)
    gan._start_phase("pre_training", run, 1)
    assert "starts from the weights" in capsys.readouterr().out
    assert not moved(before, gan.generator)
    gan._swap_average(gan.pretrainer)
    assert not moved(before, gan.generator)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_precisions_resume(precision, loader, run):
    """float16 would lose its loss scale; a checkpoint would restore the old rate."""
    keras.config.set_dtype_policy(precision)
    try:
        gans = [SRGAN("mse", None, rate, **TINY) for rate in (1e-2, 1e-3)]
    finally:
        keras.config.set_dtype_policy("float32")
    is_scaled = precision == "mixed_float16"
    if is_scaled:
        gans[0].pretrainer.optimizer.dynamic_scale.assign(8.0)
    for gan in gans:
        gan.recipe = Recipe(bn_freeze_step=1)
        gan.pre_train(loader, 1, interval=1, batch_size=2, run=run)
    rate = float(np.asarray(gans[1].pretrainer.optimizer.learning_rate))
    assert rate == pytest.approx(1e-3)
    assert not moved(snapshot(gans[0].generator), gans[1].generator)
    if is_scaled:
        assert float(gans[1].pretrainer.optimizer.dynamic_scale) == 8.0


@pytest.mark.parametrize("name", ["content_loss", "pretrain_loss", "network"])
def test_unknown_losses_are_named(name):
    """A typing error must not train something else."""
    with pytest.raises(ValueError, match=r"Unknown .*'vgg99'"):
        SRGAN(**{"content_loss": "mse", name: "vgg99"})


def test_loops_write_what_they_promise(pixel_gan, image_folder, loader, tmp_path):
    """Users look at the pictures, and resume from the checkpoints."""
    run = TrainingRun(tmp_path / "weights", tmp_path / "images")
    run.test_images = loader.load_spec_data(image_folder, run.images_dir / "_src")
    pixel_gan.pre_train(loader, num_steps=1, interval=2, batch_size=2, run=run)
    pixel_gan.train(loader, num_steps=2, interval=2, batch_size=2, run=run)
    for name in (
        *("_src/0.png", "_res_gen/0.png", "_res_gen/1.png", "_res_gan/0.png"),
        *("_res_gan/2.png", "_res_src_gan/2_res3.png", "training_curves.png"),
        *("photos/0.png", "photos/2.png"),
    ):
        assert (run.images_dir / name).is_file(), name
    assert checkpoints.list_steps(run.folder("pre_training")) == [1]
    first, last = run.read_log("training")
    assert (first["step"], last["step"]) == (0, 2)
    assert {"d_real", "p_fake", "g_content", "psnr_y", "mse_test"} <= set(last)


def test_samples_never_overwrite_the_dataset(pixel_gan, image_folder, loader):
    """A dataset in images/ has the folder that the samples are written to."""
    before = (image_folder / "0.png").read_bytes()
    with contextlib.suppress(ValueError):
        pixel_gan.sample_images(loader, 0, image_folder.parent)
    assert (image_folder / "0.png").read_bytes() == before


@pytest.fixture
def command(monkeypatch, tmp_path, image_folder, no_figures, capsys):
    """Calls `srgan.main` in a project folder, with tiny networks whose steps only add
    to a bias; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["srgan.py"])
    monkeypatch.setattr(sample_data, "SAMPLE_COUNT", 2)
    monkeypatch.setattr(sample_data, "SAMPLE_SIZE", 64)
    monkeypatch.setattr(weight_files, "SHIPPED_FOLDER", tmp_path / "shipped")
    for preset in PRESETS.values():
        for name, value in TINY.items():
            monkeypatch.setitem(preset, name, value)

    def pre_train_on_batch(self, lr, hr):
        bias = self.generator.layers[1].bias
        bias.assign(bias + 0.1)
        return {"mse": 0.5}

    monkeypatch.setattr(SRGAN, "pre_train_on_batch", pre_train_on_batch)
    for name in ("train_discriminator_on_batch", "train_generator_on_batch"):
        monkeypatch.setattr(SRGAN, name, lambda *_: {"loss": 1.0})

    def call(*arguments):
        try:
            code = srgan.main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    yield call
    keras.config.set_dtype_policy("float32")


SHORT = ("--pretrain-steps", 2, "--train-steps", 1, "--batch-size", 2)
SMALL = (*SHORT, "--crop-size", 16, "--dataset", "photos", "--content-loss", "mse")
PRETRAIN = (*SMALL, "--train-steps", 0)


def fails_with(command, *arguments):
    """Checks that the command fails as a user's mistake, and returns the one line."""
    code, _, err = command(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("srgan.py: ")
    return err


def test_the_demo_and_what_comes_after_it(command):
    """A fresh clone must show something; real training must not resume a demo."""
    Path("shipped").mkdir()
    generator = networks.build_generator(*TINY.values())
    checkpoints.save_weights(generator, "shipped/ours-source.weights.h5")
    code, out, err = command(*SHORT)
    assert (code, err) == (0, "")
    for text in ("Device: ", "preset demo", "PSNR Y", "bicubic", "evaluate.py"):
        assert text in out
    for name in ("images/comparison.png", "datasets/sample_test/grace_hopper.jpg"):
        assert Path(name).is_file()
    assert "Resuming from" in command(*SHORT)[1]
    assert "starting from scratch" in command(*SMALL)[1]
    assert len(list(Path("weights").glob("old-*_checkpoints-*/step-*"))) == 2
    assert "Resuming from" in command(*SMALL)[1]


def test_a_second_run_resumes(command):
    """It would start over, or save the pictures of random weights as its results."""
    command(*PRETRAIN)
    results = Path("images/_res/0.png").read_bytes()
    for arguments in (PRETRAIN, SMALL, PRETRAIN):
        assert command(*arguments)[0] == 0
        assert Path("images/_res/0.png").read_bytes() == results
    code, out, _ = command(*SMALL, "--train-steps", 2, "--initial-weights", "nowhere")
    assert (code, "Ignoring --initial-weights" in out) == (0, True)
    assert "Resuming from weights/training_checkpoints/step-00000001" in out
    assert "--train-steps, from 1 to 2" in out
    with checkpoints.lock("weights"):
        assert "Another run" in fails_with(command, *SMALL)


def test_phases_can_run_alone(command):
    """SRResNet needs no discriminator; SRGAN may start from any generator."""
    assert command(*PRETRAIN)[0] == 0
    assert not Path("weights/training_checkpoints").exists()
    start = ("--initial-weights", "weights/pre_training_checkpoints")
    alone = ("--pretrain-steps", 0, "--weights-dir", "other")
    code, out, _ = command(*SMALL, *alone, *start)
    assert code == 0
    assert "starts from weights/pre_training_checkpoints/step-00000002" in out
    assert not Path("other/pre_training_checkpoints").exists()
    assert command(*SMALL, "--discriminator-bn", "batch")[0] == 0
    assert "-bn batch, not moving" in fails_with(command, *SMALL)


def test_each_network_has_its_own_weights(command):
    """Weights of another network failed with a list of Keras's shapes."""
    small = ("--network", "espcn", "--weights-dir", "espcn")
    assert command(*PRETRAIN, *small)[0] == 0
    start = ("--initial-weights", "espcn/pre_training_checkpoints")
    assert "Pass --network espcn" in fails_with(command, *PRETRAIN, *start)
    assert "--network" in fails_with(command, *PRETRAIN, *small, "--network", "srcnn")
    generator, _ = weight_files.load_generator("espcn/pre_training_checkpoints")
    assert generator.network.name == "espcn"


def test_paper_networks_train():
    """Labels of patches do not fit one verdict per image."""
    gan = SRGAN("mse", num_residual_blocks=1, num_filters=2, network="paper")
    lr, hr = draw_batch(size=(2, 24, 24))
    losses = gan.pre_train_on_batch(lr, hr) | gan.train_discriminator_on_batch(lr, hr)
    # Binary cross-entropy; least squares would give less than half of it.
    assert losses["d_real"] == pytest.approx(-np.log(losses["p_real"]), rel=0.3)
    assert gan.train_generator_on_batch(lr, hr)["g_adversarial"] > 0


def test_restart_keeps_the_old_state(command):
    """A slip of the hand must not delete days of training."""
    command(*PRETRAIN)
    images = Path("images/_src/0.png").read_bytes()
    err = fails_with(command, *SMALL, "--crop-size", 20, "--blur", 9)
    assert re.search(r"--crop-size 16, not 20\..* --restart", err)
    assert Path("images/_src/0.png").read_bytes() == images
    fails_with(command, *SMALL, "--restart", "--initial-weights", "nowhere")
    assert checkpoints.list_steps("weights/pre_training_checkpoints") == [2]
    assert "No checkpoint found" in command(*PRETRAIN, "--restart")[1]
    assert len(list(Path("weights").glob("old-*_checkpoints-*/step-00000002"))) == 1


def test_training_on_photographs(command):
    """The flag did not reach the crops or the test images, or changed on resuming."""
    folders = "--weights-dir", "clean", "--images-dir", "clean"
    command(*PRETRAIN, *folders, "--degradation", "bicubic")
    command(*PRETRAIN, "--degradation", "photo")
    for path in ("_src/0.png", "_res/0.png"):
        assert Path("images", path).read_bytes() != Path("clean", path).read_bytes()
    err = fails_with(command, *PRETRAIN)
    assert "--degradation photo, not " in err


def test_a_bug_keeps_its_traceback(command, monkeypatch):
    """It would look like the user's mistake, and nobody could find it."""
    monkeypatch.setattr(SRGAN, "pre_train_on_batch", lambda *_: float("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        command(*PRETRAIN)


def test_main_runs_in_a_thread(command):
    """Python refuses signal handlers there, and a notebook would get an error."""
    results = []
    thread = threading.Thread(target=lambda: results.append(command(*PRETRAIN)[0]))
    thread.start()
    thread.join()
    assert results == [0]
    assert checkpoints.list_steps("weights/pre_training_checkpoints") == [2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "nowhere"), "There is no dataset 'nowhere'"),
        (("--dataset", "weights"), "No image. weights: 0 images"),
        (("--crop-size", 256), "48x40"),
        (("--crop-size", 18), "a multiple of 4"),
        (("--degradation", "photo", "--blur", 2), "Omit --blur"),
        (("--initial-weights", "nowhere"), "no weights nowhere"),
        (("--initial-weights", "text.weights.h5"), "does not hold weights"),
        (("--content-loss", "vgg54", "--vgg-weights", "photos/0.png"), "VGG19 weights"),
        (("--content-loss", "vgg54", "--vgg-weights", "nowhere"), "VGG19 weights"),
        (("--weights-dir", "photos/0.png"), "--weights-dir"),
        (("--images-dir", "photos/0.png"), "--images-dir"),
        (("--bn-freeze-step", 1), "of random weights"),
        (("--bn-freeze-step", 9, "--pretrain-steps", 0), "of random weights"),
    ],
)
def test_mistakes_get_one_line(command, arguments, message):
    """A traceback tells users nothing; training from it would waste days."""
    Path("weights").mkdir()
    Path("text.weights.h5").write_text("not weights")
    assert message in fails_with(command, *SMALL, *arguments)
    assert not Path("weights/pre_training_checkpoints").exists()


@pytest.mark.parametrize(
    ("preset", "network"),
    [
        ("source", "source"),
        ("paper", "paper"),
        ("demo", "source"),
        ("demo", "srcnn"),
        ("demo", "espcn"),
        ("pretrained", "source"),
    ],
)
def test_the_command_that_is_recommended_works(
    preset, network, monkeypatch, tmp_path, no_figures, capsys
):
    """`evaluate.py` refused what `srgan.py` had told users to pass to it: the
    discriminator's width was taken from the generator."""
    monkeypatch.chdir(tmp_path)
    for values in PRESETS.values():
        for name, value in TINY.items():
            monkeypatch.setitem(values, name, value)
    Path("photos").mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(96, 96, 3), dtype="uint8")
    Image.fromarray(pixels).save("photos/a.png")
    flags = "--dataset photos --test-images photos --content-loss mse --crop-size 96"
    steps = "--batch-size 2 --pretrain-steps 1 --train-steps 1 --weights-dir w"
    names = ["--preset", preset, "--network", network]
    assert srgan.main([*flags.split(), *steps.split(), *names]) == 0
    out = capsys.readouterr().out
    (command,) = re.findall(r"^Next: python evaluate\.py (.+)$", out, re.M)
    assert evaluate.main([*command.split(), "--hr", "photos"]) == 0
    assert "w/training_checkpoints" in capsys.readouterr().out
