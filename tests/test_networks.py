"""Networks: sizes, exactness of the fold, batch normalization, VGG19, losses."""

import math
from unittest.mock import Mock

import keras
import numpy as np
import pytest
from PIL import Image

import layers
import losses
import metrics
import networks

to_numpy = keras.ops.convert_to_numpy  # detaches any backend's tensors


def build_plain_generator(num_residual_blocks, num_filters):
    """The generator of `build_generator`, upsampling as the source writes it."""
    folded = networks.build_generator(num_residual_blocks, num_filters)
    inputs = folded.inputs
    features = folded.layers[-4].output  # input of the first `UpsampleConv2D`
    for filters, side, activation in ((4 * num_filters, 3, "relu"), (3, 9, "tanh")):
        features = keras.layers.UpSampling2D(2)(features)
        features = keras.layers.Conv2D(
            filters, side, padding="same", activation=activation
        )(features)
    return keras.Model(inputs[0], features)


def randomize(model, scale=0.3):
    random = np.random.default_rng(1)
    for variable in model.variables:
        value = scale * random.standard_normal(variable.shape)
        is_variance = variable.name == "moving_variance"
        variable.assign(1 + np.abs(value) if is_variance else value)


def test_parameter_counts_are_the_sources():
    """A missing bias or a wrong width changes them."""
    assert networks.build_generator().count_params() == 2_042_691
    assert networks.build_discriminator().count_params() == 5_219_137


def test_parameter_counts_are_the_papers():
    """By hand from Fig. 4 of the paper, and from the papers of SRCNN and ESPCN."""
    counts = {"paper": 1_554_883, "srcnn": 69_251 + 3_600, "espcn": 37_200}
    for name, count in counts.items():
        network = networks.Network(name)
        assert networks.build_network(network).count_params() == count, name
    assert networks.build_discriminator(crop_size=96).count_params() == 23_569_217


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 9)])
def test_generator_enlarges_any_size_by_four(size):
    """A network with a fixed input size could not enlarge photographs."""
    generator = networks.build_generator(num_residual_blocks=1, num_filters=4)
    sr = generator(np.zeros((1, *size, 3), "float32"))
    assert sr.shape == (1, 4 * size[0], 4 * size[1], 3)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (40, 100)])
def test_discriminator_gives_a_verdict_for_each_patch(size):
    """The source's floor(side / 16) labels do not fit odd sizes; the grid is ceil."""
    discriminator = networks.build_discriminator(num_filters=2)
    verdicts = to_numpy(discriminator(np.zeros((1, *size, 3), "float32")))
    assert verdicts.shape == (1, -(-size[0] // 16), -(-size[1] // 16), 1)
    assert np.all((verdicts > 0) & (verdicts < 1))


def test_network_can_be_built_from_its_description():
    """Weights of a network of another size could not be loaded."""
    generator = networks.build_generator(num_residual_blocks=2, num_filters=4)
    copy = networks.build_network(generator.network)
    assert [w.shape for w in copy.weights] == [w.shape for w in generator.weights]
    for name in ("paper", "srcnn", "espcn"):
        generator = networks.build_network(networks.Network(name, 1, 4))
        copy = networks.build_network(generator.network)
        assert [w.shape for w in copy.weights] == [w.shape for w in generator.weights]
    with pytest.raises(ValueError, match="Unknown network 'edsr'"):
        networks.build_network(networks.Network("edsr"))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("filters", [3, 20])
@pytest.mark.usefixtures("float64")
def test_fold_equals_upsampling_and_convolution(kernel_size, filters):
    """A wrong tap, or zeros at the wrong side of the border, shows in float64."""
    folded = layers.UpsampleConv2D(filters, kernel_size)
    convolution = keras.layers.Conv2D(filters, kernel_size, padding="same")
    plain = keras.Sequential([keras.layers.UpSampling2D(2), convolution])
    images = np.random.default_rng(0).standard_normal((2, 5, 7, 6))
    folded.build(images.shape)
    randomize(folded)
    plain.build(images.shape)
    plain.set_weights(folded.get_weights())
    difference = to_numpy(folded(images)) - to_numpy(plain(images))
    assert np.abs(difference).max() < 1e-12
    assert folded.compute_output_shape(images.shape) == (2, 10, 14, filters)


@pytest.mark.usefixtures("float64")
def test_fold_trains_as_the_plain_layers_do():
    """Sparse gradients leave outputs right and make Adam's steps wrong."""
    folded, plain = networks.build_generator(0, 2), build_plain_generator(0, 2)
    randomize(folded)
    plain.set_weights(folded.get_weights())
    random = np.random.default_rng(2)
    lr, hr = random.uniform(-1, 1, (2, 5, 7, 3)), random.uniform(-1, 1, (2, 20, 28, 3))
    for model in (folded, plain):
        model.compile(keras.optimizers.Adam(1e-2), loss="mse")
        for _ in range(3):  # the first shows only the gradients' signs
            model.train_on_batch(lr, hr)
    for ours, theirs in zip(folded.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_fold_configuration():
    """A model saved whole could not be opened again; an even kernel shifts images."""
    layer = layers.UpsampleConv2D(3, 9, activation="tanh", name="rgb")
    copy = layers.UpsampleConv2D.from_config(layer.get_config())
    assert (copy.filters, copy.kernel_size, copy.name) == (3, (9, 9), "rgb")
    with pytest.raises(ValueError, match="side must be odd, not 4"):
        layers.UpsampleConv2D(3, 4)


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalization_equals_keras(training):
    """The fused kernel's variance has Bessel's correction; Keras's has not."""
    ours = layers.BatchNormalization(momentum=0.8)
    theirs = keras.layers.BatchNormalization(momentum=0.8)
    images = np.random.default_rng(0).normal(1, 2, (2, 3, 4, 5)).astype("float32")
    for layer in (ours, theirs):
        layer.build(images.shape)
        randomize(layer)
    outputs = [to_numpy(layer(images, training=training)) for layer in (ours, theirs)]
    np.testing.assert_allclose(*outputs, atol=1e-5)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


class _InferenceOnly(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


@pytest.mark.parametrize("is_fixed", [False, True])
@pytest.mark.parametrize(
    ("policy", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.05)]
)
def test_batch_normalization_trains_as_keras_does(is_fixed, policy, tolerance):
    """Wrong gradients of the fused kernel leave outputs right and training wrong."""
    images = np.random.default_rng(0).normal(1, 2, (2, 6, 5, 3)).astype("float32")
    targets = np.random.default_rng(1).normal(0, 1, images.shape).astype("float32")
    trained = []
    reference = _InferenceOnly if is_fixed else keras.layers.BatchNormalization
    for kind in (layers.BatchNormalization, reference):
        keras.utils.set_random_seed(0)
        convolution = keras.layers.Conv2D(3, 3, padding="same", dtype=policy)
        layer = kind(momentum=0.8, dtype=policy)
        layer.build((None, None, None, 3))
        randomize(layer)
        layer.has_fixed_statistics = is_fixed
        model = keras.Sequential([keras.Input((None, None, 3)), convolution, layer])
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
        before = [*convolution.get_weights(), *layer.get_weights()]
        model.train_on_batch(images, targets)
        after = [*convolution.get_weights(), *layer.get_weights()]
        trained.append([new - old for new, old in zip(after, before, strict=True)])
    least = 1e-3  # a bias before a normalization has no gradient, but rounding errors
    for ours, theirs in zip(*trained, strict=True):
        scale = max(least, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, atol=tolerance * scale)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize(
    "policy", ["float32", "mixed_bfloat16", "mixed_float16", "float64"]
)
def test_frozen_layer_can_use_the_batch(monkeypatch, is_fused, policy):
    """`--discriminator-bn batch` would change nothing, or move frozen statistics."""
    monkeypatch.setattr(layers.BatchNormalization, "is_fused", is_fused)
    pair = [layers.BatchNormalization(momentum=0.8, dtype=policy) for _ in "ab"]
    frozen, free = pair
    for layer in pair:
        layer.build((None, None, None, 3))
    randomize(frozen)
    free.set_weights(frozen.get_weights())
    images = np.random.default_rng(0).normal(1, 2, (2, 6, 5, 3))

    def normalize(layer, training):
        return to_numpy(layer(images, training=training)).astype("float64")

    by_batch, moving = normalize(free, True), normalize(frozen, False)
    before = [np.array(weight) for weight in frozen.get_weights()]
    frozen.trainable = False
    np.testing.assert_allclose(normalize(frozen, True), moving, atol=1e-5)
    frozen.uses_batch_when_frozen = True
    np.testing.assert_allclose(normalize(frozen, True), by_batch, atol=1e-5)
    assert np.abs(by_batch - moving).max() > 0.1
    np.testing.assert_allclose(normalize(frozen, False), moving, atol=1e-5)
    for old, new in zip(before, frozen.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_averaged_statistics_are_the_mean_of_the_batches():
    """By moving averages, which forget, the same weights score up to 1 dB apart."""
    layer = layers.BatchNormalization(momentum=layers.BATCH_NORM_MOMENTUM)
    model = keras.Sequential([keras.Input((None, None, 3)), layer])
    randomize(layer)
    batches = np.random.default_rng(0).normal(1, 2, (4, 2, 6, 5, 3)).astype("float32")
    for count, batch in enumerate(batches):
        layers.average_batch_norm(model, batch, count)
    mean, variance = batches.mean((1, 2, 3)).mean(0), batches.var((1, 2, 3)).mean(0)
    np.testing.assert_allclose(to_numpy(layer.moving_mean), mean, rtol=1e-4)
    np.testing.assert_allclose(to_numpy(layer.moving_variance), variance, rtol=1e-4)
    assert layer.momentum == layers.BATCH_NORM_MOMENTUM


@pytest.mark.parametrize("name", ["source", "paper", "srcnn", "espcn"])
def test_receptive_field_is_what_the_output_depends_on(name):
    """Tiles with less context than this have seams; with more, they take longer."""
    generator = networks.build_network(networks.Network(name, 2, 2))
    randomize(generator, scale=0.3 if name in ("srcnn", "espcn") else 1.0)
    radius = networks.receptive_field_radius(generator)
    assert networks.receptive_field_radius(networks.build_generator()) == 40
    lr = np.zeros((1, 1, 2 * radius + 5, 3), "float32")
    before, lr[0, 0, 0] = to_numpy(generator(lr)), 1.0
    difference = np.abs(to_numpy(generator(lr)) - before)
    reached = np.flatnonzero(difference.max((0, 1, 3)))
    assert 2 * radius < reached.max() < 4 * (radius + 1)


def test_srcnn_enlarges_as_pillow_does():
    """SRCNN refines Pillow's bicubic image; TensorFlow's differs by up to 11 levels."""
    srcnn = networks.build_srcnn()
    assert len(srcnn.trainable_variables) == 6
    enlarge = keras.Model(srcnn.inputs[0], srcnn.layers[2].input)
    image = np.random.default_rng(0).uniform(-1, 1, (7, 9)).astype("float32")
    expected = Image.fromarray(image).resize((36, 28), Image.Resampling.BICUBIC)
    lr = np.stack([image, -image, image], axis=-1)[None]
    inner = slice(8, -8)  # beyond the border, Pillow leaves taps out
    for channel, sign in enumerate((1, -1, 1)):
        sr = sign * to_numpy(enlarge(lr))[0, inner, inner, channel]
        np.testing.assert_allclose(sr, np.array(expected)[inner, inner], atol=1e-6)


def test_paper_discriminator_judges_whole_crops():
    """A verdict for each patch is the source's; other sizes need other weights."""
    discriminator = networks.build_discriminator(num_filters=2, crop_size=32)
    assert discriminator(np.zeros((2, 32, 32, 3), "float32")).shape == (2, 1)
    kinds = [type(layer).__name__ for layer in discriminator.layers[3:6]]
    assert kinds == ["Conv2D", "BatchNormalization", "LeakyReLU"]
    with pytest.raises(ValueError, match=r"expected shape=.*32"):
        discriminator(np.zeros((2, 48, 48, 3), "float32"))


def test_features_are_frozen_and_cut_by_name():
    """The source cuts by index, which moves when Keras inserts a layer."""
    vgg = networks.build_feature_extractor(weights=None)
    assert vgg.count_params() == 1_735_488
    assert not vgg.trainable_variables
    assert vgg(np.zeros((1, 32, 48, 3), "float32")).shape == (1, 8, 12, 256)
    with pytest.raises(ValueError, match="No such layer: block9"):
        networks.build_feature_extractor("block9", weights=None)


def test_paper_features_are_preprocessed_for_imagenet():
    """VGG19 was trained on BGR in [0, 255] less the means."""
    paper = networks.build_feature_extractor("block1_conv1", None, True)
    black = np.full((1, 3, 3, 3), -1.0, "float32")
    expected = np.broadcast_to(np.float32([-103.939, -116.779, -123.68]), black.shape)
    features = to_numpy(paper.layers[-1](expected))
    np.testing.assert_allclose(to_numpy(paper(black)), features, rtol=1e-5)


def test_vgg_weights_are_read_from_a_file(tmp_path):
    """Without a network, the file that Keras would download could not be used."""
    source = keras.applications.VGG19(weights=None, include_top=False)
    path = tmp_path / "vgg19.weights.h5"
    source.save_weights(path)
    vgg = networks.build_feature_extractor("block1_conv1", weights=str(path))
    np.testing.assert_array_equal(vgg.get_weights()[0], source.get_weights()[0])


@pytest.mark.parametrize("kind", ["empty", "text", "generator"])
def test_wrong_vgg_file_is_named(tmp_path, kind):
    """A truncated download, or another network's weights, ended in HDF5's traceback."""
    path = tmp_path / "vgg19.weights.h5"
    path.write_bytes(b"" if kind == "empty" else b"not weights")
    if kind == "generator":
        networks.build_generator(1, 4).save_weights(path)
    with pytest.raises(ValueError, match=r"vgg19.*holds no VGG19 weights"):
        networks.build_feature_extractor(weights=str(path))


def test_missing_vgg_weights_are_explained(monkeypatch, tmp_path):
    """Offline, nobody would learn what is missing and what to do without it."""
    offline = Exception("URL fetch failure on https://example.org: None")
    monkeypatch.setattr(keras.applications, "VGG19", Mock(side_effect=offline))
    with pytest.raises(FileNotFoundError, match=r"could not download.*--vgg-weights"):
        networks.build_feature_extractor()
    with pytest.raises(FileNotFoundError, match=r"no VGG19 weights file.*missing.h5"):
        networks.build_feature_extractor(weights=str(tmp_path / "missing.h5"))


def test_total_variation_by_hand():
    """The paper's weight would belong to another sum: one over pixels or channels."""
    layer = losses.TotalVariation()
    images = np.zeros((2, 2, 2, 1), "float32")
    images[0, ..., 0] = [[0, 1], [2, 4]]  # 2 + 3 + 1 + 2 = 8
    np.testing.assert_array_equal(to_numpy(layer(images)), images)
    assert float(layer.losses[0]) == pytest.approx(2e-8 * 8 / 2)


def test_perceptual_loss_by_hand():
    """Swapped weights give a figure that looks just as plausible."""
    sr, hr = np.full((8, 8, 3), 0.5, "float32"), np.zeros((8, 8, 3), "float32")
    judge = Mock(return_value=np.full((1, 1, 1, 1), 0.5))
    judge.input_shape = (None, None, None, 3)
    content = losses.CONTENT_LOSSES["source"]
    loss = metrics.perceptual_loss(np.array, judge, sr, hr, content)
    assert loss == pytest.approx(0.25 / 12.75**2 + 1e-3 * math.log(2))
    huge = np.broadcast_to(np.float32(0), (2**11, 2**10 + 1, 3))
    assert math.isnan(metrics.feature_distance(None, huge, huge))


def test_feature_distance_in_mixed_precision():
    """The mean was taken in bfloat16, and came out five times too small."""
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype("float32")
    distances = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(policy)
        vgg = networks.build_feature_extractor("block2_conv2", weights=None)
        keras.config.set_dtype_policy("float32")
        distances.append(metrics.feature_distance(vgg, *images))
    assert distances[1] == pytest.approx(distances[0], rel=0.02)


@pytest.mark.parametrize(("axis", "shape"), [(1, (2, 3, 5, 4)), (-1, (4, 3))])
def test_batch_norm_of_other_shapes_is_keras(axis, shape):
    """The fused kernel normalized the last axis whatever `axis` was, and crashed for
    inputs of two dimensions."""
    images = np.random.default_rng(0).normal(1, 2, shape).astype("float32")
    ours = layers.BatchNormalization(momentum=0.8, axis=axis)
    theirs = keras.layers.BatchNormalization(momentum=0.8, axis=axis)
    for training in (True, False):
        expected = to_numpy(theirs(images, training=training))
        np.testing.assert_allclose(ours(images, training=training), expected, atol=1e-5)
    frozen = layers.BatchNormalization(axis=axis)
    frozen.build(shape)
    frozen.trainable = False
    frozen.uses_batch_when_frozen = True
    fresh = keras.layers.BatchNormalization(axis=axis)
    expected = to_numpy(fresh(images, training=True))
    np.testing.assert_allclose(frozen(images, training=True), expected, atol=1e-5)
