"""Tests of class SRGAN: what each step moves, the loops, the command."""

import functools
import json

import h5py
import numpy as np
import pytest

import checkpoints
import networks
import sample_data
import srgan
from data_loader import DataLoader
from quiet import keras
from srgan import SRGAN
from training_run import TrainingRun

TINY = {"num_residual_blocks": 1, "num_filters": 4}


def draw_batch(seed=0, size=(2, 8, 8)):
    random = np.random.default_rng(seed)
    n, h, w = size
    lr = random.uniform(-1, 1, (n, h, w, 3)).astype("float32")
    return lr, lr.repeat(4, 1).repeat(4, 2)


def snapshot(model):
    return [np.array(weight) for weight in model.get_weights()]


def moved(before, model):
    """Names of the variables that differ from a snapshot."""
    return {
        variable.name
        for old, variable in zip(before, model.weights, strict=True)
        if not np.array_equal(old, np.asarray(variable))
    }


@pytest.fixture
def gan():
    return SRGAN(vgg_weights=None, learning_rate=1e-2, **TINY)


@pytest.fixture
def pixel_gan():
    return SRGAN(content_loss="mse", learning_rate=1e-2, **TINY)


ALL_NAMES = {"kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance"}


def test_each_step_moves_its_own_network_only(gan):
    """In Keras 3 the source's discriminator never trains; here steps take turns,
    twice, because `trainable` is read when a step is first traced."""
    for seed in range(2):
        generator, discriminator = snapshot(gan.generator), snapshot(gan.discriminator)
        features = snapshot(gan.vgg)
        gan.pre_train_on_batch(*draw_batch(seed))
        assert moved(generator, gan.generator) == ALL_NAMES
        assert not moved(discriminator, gan.discriminator)

        generator = snapshot(gan.generator)
        gan.train_discriminator_on_batch(*draw_batch(seed))
        assert not moved(generator, gan.generator)
        assert moved(discriminator, gan.discriminator) == ALL_NAMES

        discriminator = snapshot(gan.discriminator)
        gan.train_generator_on_batch(*draw_batch(seed))
        assert moved(generator, gan.generator) == ALL_NAMES
        assert not moved(discriminator, gan.discriminator)
        assert not moved(features, gan.vgg)


def test_discriminator_bn_of_the_batch():
    """The flag would do nothing, or let the generator's step move the network."""
    gan = SRGAN(content_loss="mse", discriminator_bn="batch", **TINY)
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
    gan.train_discriminator_on_batch(lr, hr)
    assert moved(before, gan.discriminator) == ALL_NAMES


def test_steps_may_come_in_any_order(pixel_gan):
    """The generator's step first would freeze the discriminator for good."""
    pixel_gan.train_generator_on_batch(*draw_batch())
    before = snapshot(pixel_gan.discriminator)
    pixel_gan.train_discriminator_on_batch(*draw_batch())
    assert moved(before, pixel_gan.discriminator) == ALL_NAMES


def test_steps_return_the_losses_that_are_documented(gan):
    """Logs and outside checks rely on these names, and on plain floats."""
    batch = draw_batch(size=(2, 5, 7))
    losses = gan.pre_train_on_batch(*batch)
    assert set(losses) == {"mse"}
    losses = gan.train_discriminator_on_batch(*batch)
    assert set(losses) == {"d_real", "d_fake"}
    assert set(gan.probabilities) == {"p_real", "p_fake"}
    losses |= gan.train_generator_on_batch(*batch)
    assert all(type(value) is float for value in losses.values())
    weighted = 1e-3 * losses["g_adversarial"] + losses["g_content"] / 12.75**2
    assert losses["g_loss"] == pytest.approx(weighted, rel=1e-5)


def test_probabilities_are_the_discriminators(pixel_gan):
    """Users judge a GAN's health by these."""
    lr, hr = draw_batch()
    pixel_gan.discriminator.trainable = True
    verdicts = pixel_gan.discriminator(hr, training=True)
    before = keras.ops.convert_to_numpy(verdicts).mean()
    pixel_gan.train_discriminator_on_batch(lr, hr)
    assert pixel_gan.probabilities["p_real"] == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("content_loss", list(srgan.CONTENT_LOSSES))
def test_every_content_loss_trains(content_loss):
    """The paper's systems differ by it."""
    gan = SRGAN(content_loss=content_loss, vgg_weights=None, **TINY)
    losses = gan.train_generator_on_batch(*draw_batch())
    assert np.isfinite(losses["g_loss"])
    layer = gan.content.layer_name
    assert (gan.vgg is None) == (layer is None)


def test_feature_pre_training_trains():
    """SRResNet-VGG22: features and total variation, no discriminator."""
    gan = SRGAN(content_loss="mse", pretrain_loss="vgg22", vgg_weights=None, **TINY)
    before = snapshot(gan.generator)
    assert set(gan.pre_train_on_batch(*draw_batch())) == {"vgg22"}
    assert moved(before, gan.generator) == ALL_NAMES


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_total_variation_is_the_sum_of_differences(dtype):
    """Hand-worked: one bright pixel of 1 in a corner differs from two others; sums
    of 16-bit images overflow, and the weight is 0 in them."""
    images = np.zeros((2, 3, 3, 1), dtype)
    images[0, 0, 0, 0] = 1.0
    layer = srgan.TotalVariation(dtype="float32")
    layer(images)
    assert float(layer.losses[0]) == pytest.approx(2e-8 * 2 / 2)


def test_total_variation_is_part_of_the_loss():
    """Keras 3.15 divides activity regularizers by the batch size once more."""
    gan = SRGAN(content_loss="mse", pretrain_loss="vgg22", vgg_weights=None, **TINY)
    lr, _ = draw_batch()
    sr = np.asarray(gan.generator(lr, training=True))
    features = gan._pretrain_features(sr)
    loss = gan.pre_train_on_batch(lr, sr)["vgg22"]
    assert np.isfinite(np.asarray(features)).all()
    rows, columns = np.abs(np.diff(sr, axis=1)), np.abs(np.diff(sr, axis=2))
    expected = 2e-8 * (rows.sum() + columns.sum()) / len(sr)
    assert loss == pytest.approx(expected, rel=1e-2)


def test_thirty_steps_on_one_batch_lower_the_losses(gan):
    """A generator whose gradients are wrong stays where it is."""
    batch = draw_batch()
    losses = [gan.pre_train_on_batch(*batch)["mse"] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    steps = [gan.train_discriminator_on_batch(*batch) for _ in range(30)]
    assert sum(steps[-1].values()) < sum(steps[0].values())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1]), ("step", [1, 1, 0.1]), ("cosine", [1, 0.51, 0.02])],
)
def test_learning_rate_schedules(schedule, expected):
    """First, middle and last step; the paper's drop comes after one half."""
    rates = [
        srgan.learning_rate_at(step, 1000, 1.0, schedule) for step in (1, 500, 1000)
    ]
    np.testing.assert_allclose(rates, expected, atol=2e-3)


def test_learning_rate_reaches_every_optimiser(pixel_gan):
    """A schedule that only the log knows of."""
    pixel_gan.schedule = "step"
    pixel_gan._set_learning_rate(9, 10, pixel_gan.combined)
    rate = float(np.asarray(pixel_gan.combined.optimizer.learning_rate))
    assert rate == pytest.approx(1e-3)
    pixel_gan._set_learning_rate(9, 10, pixel_gan.pretrainer)
    rate = float(np.asarray(pixel_gan.pretrainer.optimizer.learning_rate))
    assert rate == pytest.approx(1e-2)


def test_batch_norm_statistics_are_averages(pixel_gan):
    """Moving averages of momentum 0.8 are those of the last few batches."""
    batches = [draw_batch(seed)[0] for seed in range(3)]
    srgan.estimate_batch_norm(pixel_gan.generator, batches)
    first = next(
        layer
        for layer in pixel_gan.generator.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    inputs = keras.Model(pixel_gan.generator.inputs[0], first.input)
    means = [
        keras.ops.convert_to_numpy(inputs(batch)).mean((0, 1, 2)) for batch in batches
    ]
    np.testing.assert_allclose(
        first.moving_mean, np.mean(means, 0), rtol=1e-3, atol=1e-5
    )


STATISTICS = {"moving_mean", "moving_variance"}


def test_frozen_statistics_stay_while_all_else_is_trained(
    pixel_gan, image_folder, tmp_path
):
    """Frozen too early, they are those of random weights; too late, reports jump."""
    pixel_gan.bn_freeze_step, pixel_gan.bn_batches = 3, 2
    run = TrainingRun(tmp_path / "weights", tmp_path / "images", {}, [])
    with DataLoader(image_folder, crop_size=32) as loader:
        pixel_gan.pre_train(loader, 2, interval=2, batch_size=2, run=run)
        averaged = snapshot(pixel_gan.generator)
        pixel_gan.pre_train(loader, 4, interval=1, batch_size=2, run=run)
        assert moved(averaged, pixel_gan.generator) == ALL_NAMES - STATISTICS
        pixel_gan.train(loader, 1, interval=1, batch_size=2, run=run)
        assert moved(averaged, pixel_gan.generator) == ALL_NAMES - STATISTICS
    assert int(pixel_gan.pretrainer.optimizer.iterations) == 4


def test_statistics_are_averaged_before_they_freeze(
    pixel_gan, image_folder, tmp_path, monkeypatch
):
    """Moving averages are those of the last few batches, and would stay for ever."""
    steps, estimate = [], srgan.estimate_batch_norm

    def record(*arguments):
        steps.append(int(pixel_gan.pretrainer.optimizer.iterations))
        estimate(*arguments)

    monkeypatch.setattr(srgan, "estimate_batch_norm", record)
    pixel_gan.bn_freeze_step, pixel_gan.bn_batches = 3, 2
    run = TrainingRun(tmp_path / "weights", tmp_path / "images", {}, [])
    with DataLoader(image_folder, crop_size=32) as loader:
        pixel_gan.pre_train(loader, 5, interval=5, batch_size=2, run=run)
    assert steps == [2]  # after the last step that moves them, never again


def test_frozen_statistics_keep_the_loss_scale(image_folder, tmp_path):
    """mixed_float16 wraps Adam; built twice, the wrapper begins again."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        gan = SRGAN(content_loss="mse", **TINY)
        resumed = SRGAN(content_loss="mse", **TINY)
    finally:
        keras.config.set_dtype_policy("float32")
    gan.bn_freeze_step = resumed.bn_freeze_step = 2
    optimizer = gan.pretrainer.optimizer
    optimizer.dynamic_scale.assign(8.0)
    run = TrainingRun(tmp_path / "weights", tmp_path / "images", {}, [])
    with DataLoader(image_folder, crop_size=32) as loader:
        gan.pre_train(loader, 2, interval=1, batch_size=2, run=run)
        assert gan.pretrainer.optimizer is optimizer
        resumed.pre_train(loader, 3, interval=1, batch_size=2, run=run)
    assert float(optimizer.dynamic_scale) == 8.0
    assert float(resumed.pretrainer.optimizer.dynamic_scale) == 8.0


def test_frozen_training_is_what_inference_computes(pixel_gan):
    """Training and use must see the same network."""
    lr, hr = draw_batch()
    pixel_gan._freeze_batch_norm(True)
    sr = pixel_gan.generator.predict_on_batch(lr)
    mse = pixel_gan.pre_train_on_batch(lr, hr)["mse"]
    assert mse == pytest.approx(np.mean((sr - hr) ** 2), rel=1e-4)
    pixel_gan._freeze_batch_norm(False)
    sr = pixel_gan.generator.predict_on_batch(lr)
    mse = pixel_gan.pre_train_on_batch(lr, hr)["mse"]
    assert mse != pytest.approx(np.mean((sr - hr) ** 2), rel=1e-4)


def test_unknown_losses_are_named():
    """A typing error must not train something else."""
    with pytest.raises(ValueError, match=r"content_loss is one of.*'vgg99'"):
        SRGAN(content_loss="vgg99")
    with pytest.raises(ValueError, match="pretrain_loss is one of"):
        SRGAN(content_loss="mse", pretrain_loss="l1")
    with pytest.raises(ValueError, match="discriminator_bn is one of"):
        SRGAN(content_loss="mse", discriminator_bn="none")


def test_loops_write_what_they_promise(pixel_gan, image_folder, tmp_path):
    """Users look at the pictures, and go on from the checkpoints."""
    with DataLoader(image_folder, crop_size=32, test_folder=image_folder) as loader:
        images = loader.load_spec_data(tmp_path / "images" / "_src")
        run = TrainingRun(tmp_path / "weights", tmp_path / "images", {}, images)
        pixel_gan.pre_train(loader, num_steps=2, interval=1, batch_size=2, run=run)
        pixel_gan.train(loader, num_steps=2, interval=2, batch_size=2, run=run)
    images, weights = tmp_path / "images", tmp_path / "weights"
    for name in (
        *("_src/0.png", "_res_gen/0.png", "_res_gen/1.png", "_res_gen/2.png"),
        *("_res_gan/0.png", "_res_gan/2.png", "_res_src_gan/2_res3.png"),
        *("photos/0.png", "photos/2.png", "training_curves.png"),
    ):
        assert (images / name).is_file(), name
    steps = [path.name for path in (weights / "pre_training_checkpoints").iterdir()]
    assert sorted(steps) == ["log.jsonl", "step-00000001", "step-00000002"]
    log = (weights / "training_checkpoints" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in log]
    assert [record["step"] for record in records] == [0, 2]
    assert {"d_real", "p_fake", "g_content", "psnr_y", "mse_test"} <= set(records[1])


# The command ----------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path, image_folder, capsys):
    """`srgan.main` in an empty folder, with tiny networks; gives (code, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(srgan, "SRGAN", functools.partial(SRGAN, **TINY))
    monkeypatch.setattr(networks, "DISCRIMINATOR_BLOCKS", ((1, 2),) * 4)
    monkeypatch.setattr(sample_data, "SAMPLE_COUNT", 2)
    monkeypatch.setattr(checkpoints, "SHIPPED_FOLDER", tmp_path / "shipped")

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


def test_the_demo_starts_from_the_shipped_weights(command, tmp_path, list_digests):
    """Its first pictures look like super-resolution; other runs start afresh."""
    (tmp_path / "shipped").mkdir()
    file = tmp_path / "shipped" / "srresnet-source.weights.h5"
    networks.build_generator(**TINY).save_weights(file)
    list_digests(file)
    code, out, err = command(*SHORT, "--phase", "pretrain")
    assert (code, err) == (0, "")
    assert f"starts from the weights that come with this: {file}." in out
    assert "too short" not in out
    code, out, err = command(*SHORT, "--phase", "pretrain")  # its own go first
    assert (code, err) == (0, "")
    assert "come with this" not in out
    assert "Going on from" in out
    code, out, err = command(*SMALL, "--weights-dir", "mine", "--phase", "pretrain")
    assert (code, err) == (0, "")
    assert "starting from scratch" in out
    code, out, err = command(*SHORT, "--weights-dir", "blurless", "--blur", "0")
    assert (code, err) == (0, "")
    assert "starting from scratch" in out  # those for no blur are not there


def test_statistics_of_random_weights_are_never_fixed(command):
    """Mean 0 and variance 1 would stay for the whole run without a word."""
    for flags in (
        ("--bn-freeze-step", 1),
        ("--bn-freeze-step", 9, "--phase", "train"),
        ("--bn-freeze-step", 1, "--restart"),
    ):
        code, _, err = command(*SMALL, *flags)
        assert (code, err.count("\n")) == (2, 1)
        assert "statistics of random weights. Pre-train first" in err


@pytest.mark.parametrize("preset", list(srgan.PRESETS))
def test_each_preset_runs_offline(command, preset, tmp_path):
    """A preset with a value that no flag takes would fail at the user's."""
    code, out, err = command(*SMALL, "--preset", preset)
    assert (code, err) == (0, "")
    assert "PSNR Y" in out
    assert "bicubic" in out
    assert "nearest" in out
    assert (tmp_path / "images" / "_res" / "2.png").is_file()


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_precisions_train_and_save_float32(command, precision, tmp_path):
    """Sixteen-bit checkpoints could not be loaded by anyone else."""
    options = ("--phase", "train")
    code, _, err = command(*SMALL, *options, "--precision", precision)
    assert (code, err) == (0, "")
    folder = tmp_path / "weights" / "training_checkpoints" / "step-00000001"
    for path in folder.glob("*.npz"):
        kinds = {array.dtype for array in np.load(path).values()}
        assert all(kind.itemsize >= 4 for kind in kinds), (path, kinds)
    kinds = set()
    for path in folder.glob("*.weights.h5"):
        with h5py.File(path) as file:
            file.visititems(lambda _, item: kinds.add(getattr(item, "dtype", None)))
    assert kinds == {None, np.dtype("float32")}
    code, out, _ = command(*SMALL, *options, "--train-steps", 2)
    assert code == 0
    assert f"precision, {precision} -> float32" in out


def test_discriminator_bn_is_a_flag_of_adversarial_training(command, monkeypatch):
    """A recipe would change in the middle, or pre-training be thrown away for it."""
    built = []

    def build(**options):
        built.append(options["discriminator_bn"])
        return SRGAN(**options, **TINY)

    monkeypatch.setattr(srgan, "SRGAN", build)
    assert command(*SMALL, "--phase", "pretrain")[0] == 0
    code, _, err = command(*SMALL, "--discriminator-bn", "batch")
    assert (code, err) == (0, "")
    assert built == ["moving", "batch"]
    code, _, err = command(*SMALL, "--train-steps", 2)
    assert code == 2
    assert "was trained with discriminator-bn = batch" in err


def test_demo_runs_without_any_argument_but_steps(command, tmp_path):
    """`python srgan.py` in a fresh clone: sample images, and it says so."""
    code, out, err = command(*SHORT)
    assert (code, err) == (0, "")
    assert "generated sample images, preset demo" in out
    assert "--content-loss mse" in out
    assert "python evaluate.py" in out
    assert (tmp_path / "datasets" / "sample_test" / "grace_hopper.jpg").is_file()


def test_second_run_goes_on(command):
    """Training starts over in every peer."""
    command(*SMALL)
    code, out, _ = command(*SMALL, "--train-steps", 2)
    assert code == 0
    assert "Going on from weights/training_checkpoints/step-00000001" in out
    assert "train-steps, 1 -> 2" in out


def test_phases_can_run_alone(command, tmp_path):
    """SRResNet needs no discriminator; SRGAN may start from any generator."""
    assert command(*SMALL, "--phase", "pretrain")[0] == 0
    assert not (tmp_path / "weights" / "training_checkpoints").exists()
    options = ("--phase", "train", "--weights-dir", "other")
    start = ("--initial-weights", "weights/pre_training_checkpoints")
    code, out, _ = command(*SMALL, *options, *start)
    assert code == 0
    assert "starts from weights/pre_training_checkpoints/step-00000002" in out


def test_restart_keeps_the_old_state(command, tmp_path):
    """A slip of the hand must not delete days of training."""
    command(*SMALL, "--phase", "pretrain")
    code, out, _ = command(*SMALL, "--phase", "pretrain", "--restart")
    assert code == 0
    assert "No checkpoint found" in out
    old = list((tmp_path / "weights").glob("old-*_checkpoints-*/step-*"))
    assert len(old) == 1


def test_fixed_options_may_not_change(command, tmp_path):
    """Mixing two recipes in one run gives a model that nobody can describe."""
    command(*SMALL, "--phase", "pretrain")
    before = (tmp_path / "images" / "_src" / "0.png").read_bytes()
    assert command(*SMALL, "--blur", 9)[0] == 2
    assert (tmp_path / "images" / "_src" / "0.png").read_bytes() == before
    code, _, err = command(*SMALL, "--crop-size", 20)
    assert code == 2
    assert "crop-size = 16, and this run has crop-size = 20" in err
    assert "--restart" in err


def fails_with(command, *arguments):
    """Calls the command, checks that it fails as a user's mistake, in one line."""
    code, _, err = command(*arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("srgan.py: ")
    return err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "best"), "'best'"),
        (("--dataset", "nowhere"), "neither in datasets/, which holds"),
        (("--crop-size", "18"), "a multiple of 4"),
        (("--crop-size", "12"), "at least 16"),
        (("--batch-size", "0"), "expected a whole number >= 1, received '0'"),
        (("--pretrain-steps", "0"), "whole number >= 1"),
        (("--train-steps", "-1"), "whole number >= 1"),
        (("--train-interval", "0"), "whole number >= 1"),
        (("--pretrain-interval", "x"), "received 'x'"),
        (("--learning-rate", "0"), "a number > 0"),
        (("--initial-weights", "nothing.weights.h5"), "there is no such file"),
        (("--content-loss", "vgg54", "--vgg-weights", "photos/0.png"), "VGG19 weights"),
        (("--weights-dir", "photos/0.png"), "photos/0.png"),
        (("--images-dir", "photos/0.png"), "--images-dir"),
        (("--frobnicate",), "--help"),
        (("--test-images", "nowhere"), "--test-images"),
        (("--content-loss", "vgg54", "--vgg-weights", "nowhere"), "Three ways on"),
    ],
)
def test_mistakes_get_one_line(command, arguments, message):
    """A traceback tells users nothing, and `exit 1` tells scripts nothing."""
    assert message in fails_with(command, *SMALL, *arguments)


def test_folders_without_usable_images(command, tmp_path):
    """The source looks for ever for an image that is large enough."""
    (tmp_path / "empty").mkdir()
    assert "No image in" in fails_with(command, *SMALL, "--dataset", "empty")
    err = fails_with(command, *SMALL, "--crop-size", 256)
    assert "48x40" in err


def test_weights_of_something_else(command, tmp_path):
    """Nothing is trained from a file that was not understood."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.weights.h5").write_text("not weights")
    networks.build_generator(2, 4).save_weights(tmp_path / "other.weights.h5")
    for name, message in (
        ("empty", "No weights in the folder"),
        ("text.weights.h5", "does not hold weights"),
        ("other.weights.h5", "does not hold weights"),
        ("photos/0.png", "not a weights file"),
    ):
        assert message in fails_with(command, *SMALL, "--initial-weights", name)


def test_missing_vgg_weights_stop_before_training(command, tmp_path, monkeypatch):
    """Random features in their place would waste days."""

    def fail(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.applications, "VGG19", fail)
    err = fails_with(command, *SMALL, "--content-loss", "source")
    for way_on in ("network", "--vgg-weights PATH", "--content-loss mse"):
        assert way_on in err
    assert not (tmp_path / "weights" / "pre_training_checkpoints").exists()


def test_unusable_files_are_counted_and_named(command, image_folder):
    """They kill training hours in, elsewhere."""
    (image_folder / "broken.jpg").write_bytes(b"")
    code, out, _ = command(*SMALL)
    assert code == 0
    assert "1 files skipped" in out
    assert "broken.jpg" in out


def test_help_fits_a_screen(command):
    """Nobody reads more; every flag must be there all the same."""
    code, out, _ = command("--help")
    assert code == 0
    assert len(out.splitlines()) <= 60
    assert "--deterministic" in out


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own")
@pytest.mark.parametrize("gpus", [[], ["GPU:0"]])
def test_deterministic_runs_use_no_fused_kernel_on_gpus(gpus, monkeypatch):
    """TensorFlow raises there: its gradient for fixed statistics is random."""
    import tensorflow as tf

    determinism = []
    monkeypatch.setattr(
        tf.config.experimental,
        "enable_op_determinism",
        lambda: determinism.append("on"),
    )
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(srgan.networks.BatchNormalization, "is_fused", True)
    srgan._prepare_backend(srgan.parse_args(["--deterministic"]))
    assert determinism == ["on"]
    assert srgan.networks.BatchNormalization.is_fused == (not gpus)
