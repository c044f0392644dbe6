"""Tests of the networks: sizes, exactness of the fold, batch normalisation."""

import numpy as np
import pytest

import networks
from quiet import keras

to_numpy = keras.ops.convert_to_numpy  # of any backend's tensors, gradients or not


def build_plain_generator(num_residual_blocks, num_filters):
    """The generator of `build_generator`, upsampling as the source writes it."""
    folded = networks.build_generator(num_residual_blocks, num_filters)
    inputs = folded.inputs
    features = folded.layers[-4].output  # what the first `UpsampleConv2D` is given
    for filters, side, activation in ((4 * num_filters, 3, "relu"), (3, 9, "tanh")):
        features = keras.layers.UpSampling2D(2)(features)
        features = keras.layers.Conv2D(
            filters, side, padding="same", activation=activation
        )(features)
    return keras.Model(inputs[0], features)


def randomise(model, scale=0.3):
    random = np.random.default_rng(1)
    for variable in model.variables:
        value = scale * random.standard_normal(variable.shape)
        is_variance = variable.name == "moving_variance"
        variable.assign(1 + np.abs(value) if is_variance else value)


def test_parameter_counts_are_the_sources():
    """A missing bias or a wrong width changes them."""
    assert networks.build_generator().count_params() == 2_042_691
    assert networks.build_discriminator().count_params() == 5_219_137


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 9)])
def test_generator_enlarges_any_size_by_four(size):
    """Peers accept only the size that they were trained on."""
    generator = networks.build_generator(num_residual_blocks=1, num_filters=4)
    lr = np.zeros((1, *size, 3), "float32")
    assert generator(lr).shape == (1, 4 * size[0], 4 * size[1], 3)


@pytest.mark.parametrize("size", [(16, 16), (17, 33), (40, 100)])
def test_discriminator_gives_a_verdict_for_each_patch(size):
    """The source's floor(side / 16) does not fit odd sizes; the grid is ceil."""
    discriminator = networks.build_discriminator(num_filters=2)
    verdicts = to_numpy(discriminator(np.zeros((1, *size, 3), "float32")))
    assert verdicts.shape == (1, -(-size[0] // 16), -(-size[1] // 16), 1)
    assert np.all((verdicts > 0) & (verdicts < 1))


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("filters", [3, 20])
@pytest.mark.usefixtures("float64")
def test_fold_equals_upsampling_and_convolution(kernel_size, filters):
    """A wrong tap, or zeros at the wrong side of the border, shows in float64."""
    folded = networks.UpsampleConv2D(filters, kernel_size)
    plain = keras.Sequential(
        [
            keras.layers.UpSampling2D(2),
            keras.layers.Conv2D(filters, kernel_size, padding="same"),
        ]
    )
    images = np.random.default_rng(0).standard_normal((2, 5, 7, 6))
    folded.build(images.shape)
    randomise(folded)
    plain.build(images.shape)
    plain.set_weights(folded.get_weights())
    difference = to_numpy(folded(images)) - to_numpy(plain(images))
    assert np.abs(difference).max() < 1e-12
    assert folded.compute_output_shape(images.shape) == (2, 10, 14, filters)


@pytest.mark.usefixtures("float64")
def test_fold_trains_as_the_plain_layers_do():
    """Sparse gradients leave outputs right and make Adam's steps wrong."""
    folded, plain = networks.build_generator(0, 4), build_plain_generator(0, 4)
    randomise(folded)
    plain.set_weights(folded.get_weights())
    random = np.random.default_rng(2)
    lr, hr = random.uniform(-1, 1, (2, 5, 7, 3)), random.uniform(-1, 1, (2, 20, 28, 3))
    for model in (folded, plain):
        model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
        before = [np.array(weight) for weight in model.get_weights()]
        model.train_on_batch(lr, hr)
        model.gradients = [
            old - new for old, new in zip(before, model.get_weights(), strict=True)
        ]
    # On torch, Keras computes batch normalisation in float32 also for float64, and
    # Adam, which divides gradients by their size, makes much of tiny ones.
    tolerance, adam_tolerance = 1e-9, 1e-9
    if keras.backend.backend() == "torch":
        tolerance, adam_tolerance = 1e-8, 1e-4
    for ours, theirs in zip(folded.gradients, plain.gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)
    for model in (folded, plain):
        model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
        for _ in range(3):
            model.train_on_batch(lr, hr)
    for ours, theirs in zip(folded.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=adam_tolerance)


def test_fold_refuses_even_kernels():
    """An even kernel has no middle, so "same" padding would shift the image."""
    with pytest.raises(ValueError, match=r"odd side.*kernel_size=4"):
        networks.UpsampleConv2D(3, 4)


def test_fold_survives_its_configuration():
    """A model saved whole could not be opened again."""
    layer = networks.UpsampleConv2D(3, 9, activation="tanh", name="rgb")
    copy = networks.UpsampleConv2D.from_config(layer.get_config())
    assert (copy.filters, copy.kernel_size, copy.name) == (3, (9, 9), "rgb")


@pytest.mark.parametrize("training", [True, False])
def test_batch_normalisation_equals_keras(training):
    """The fused kernel's variance has Bessel's correction; Keras's has not."""
    ours = networks.BatchNormalization(momentum=0.8)
    theirs = keras.layers.BatchNormalization(momentum=0.8)
    images = np.random.default_rng(0).normal(1, 2, (2, 3, 4, 5)).astype("float32")
    for layer in (ours, theirs):
        layer.build(images.shape)
        randomise(layer)
    outputs = [to_numpy(layer(images, training=training)) for layer in (ours, theirs)]
    np.testing.assert_allclose(*outputs, atol=1e-5)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize(
    ("policy", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.05)]
)
def test_batch_normalisation_trains_as_keras_does(is_frozen, policy, tolerance):
    """Wrong gradients of the fused kernel leave outputs right and training wrong."""
    images = np.random.default_rng(0).normal(1, 2, (2, 6, 5, 3)).astype("float32")
    targets = np.random.default_rng(1).normal(0, 1, images.shape).astype("float32")
    trained = []
    for kind in (networks.BatchNormalization, keras.layers.BatchNormalization):
        keras.utils.set_random_seed(0)
        convolution = keras.layers.Conv2D(3, 3, padding="same", dtype=policy)
        layer = kind(momentum=0.8, dtype=policy)
        model = keras.Sequential([keras.Input((None, None, 3)), convolution, layer])
        randomise(layer)
        if kind is networks.BatchNormalization:
            layer.is_frozen = is_frozen
        elif is_frozen:  # as this layer alone can: statistics that stand still
            model = keras.Sequential(
                [keras.Input((None, None, 3)), convolution, _Inference(layer)]
            )
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
        before = [*convolution.get_weights(), *layer.get_weights()]
        model.train_on_batch(images, targets)
        after = [*convolution.get_weights(), *layer.get_weights()]
        trained.append([new - old for new, old in zip(after, before, strict=True)])
    least = 1e-3  # a bias before a normalisation has no gradient, but rounding has
    for ours, theirs in zip(*trained, strict=True):
        scale = max(least, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, atol=tolerance * scale)


@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize(
    "policy", ["float32", "mixed_bfloat16", "mixed_float16", "float64"]
)
def test_frozen_layer_can_use_the_batch(monkeypatch, is_fused, policy):
    """The discriminator's gradient came from statistics that say little of a batch."""
    monkeypatch.setattr(networks.BatchNormalization, "is_fused", is_fused)
    layers = [networks.BatchNormalization(momentum=0.8, dtype=policy) for _ in "ab"]
    frozen, free = layers
    for layer in layers:
        layer.build((None, None, None, 3))
    randomise(frozen)
    free.set_weights(frozen.get_weights())
    images = np.random.default_rng(0).normal(1, 2, (2, 6, 5, 3))
    expected = to_numpy(free(images, training=True)).astype("float64")
    moving = to_numpy(frozen(images, training=False)).astype("float64")
    before = [np.array(weight) for weight in frozen.get_weights()]
    frozen.trainable = False
    outputs = to_numpy(frozen(images, training=True)).astype("float64")
    np.testing.assert_allclose(outputs, moving, atol=1e-5)
    frozen.uses_batch_when_frozen = True
    outputs = to_numpy(frozen(images, training=True)).astype("float64")
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    assert np.abs(outputs - moving).max() > 0.1
    for old, new in zip(before, frozen.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    outputs = to_numpy(frozen(images, training=False)).astype("float64")
    np.testing.assert_allclose(outputs, moving, atol=1e-5)


class _Inference(keras.layers.Layer):
    """Runs a layer in inference mode, always; its weights are trained."""

    def __init__(self, layer):
        super().__init__(dtype=layer.dtype_policy)
        self.layer = layer

    def call(self, inputs):
        return self.layer(inputs, training=False)


def test_fused_kernel_can_be_done_without(monkeypatch):
    """On GPUs, TensorFlow has no deterministic gradient of it for fixed statistics."""
    layer = networks.BatchNormalization()
    layer.build((None, None, None, 2))
    images = np.ones((1, 2, 2, 2), "float32")
    expected = to_numpy(layer(images))
    monkeypatch.setattr(networks.BatchNormalization, "is_fused", False)
    monkeypatch.setattr(networks.BatchNormalization, "_fused_call", None)
    np.testing.assert_allclose(to_numpy(layer(images)), expected, atol=1e-6)


def test_frozen_batch_normalisation_does_not_move():
    """The frozen discriminator's statistics would drift in the generator's step."""
    layer = networks.BatchNormalization()
    layer.build((None, None, None, 2))
    layer.trainable = False
    layer(np.ones((1, 2, 2, 2), "float32"), training=True)
    assert np.all(to_numpy(layer.moving_mean) == 0)


def test_receptive_field_is_what_the_output_depends_on():
    """Tiles with less context than this have seams; more is work for nothing."""
    generator = networks.build_generator(num_residual_blocks=2, num_filters=2)
    randomise(generator, scale=1.0)
    radius = networks.receptive_field_radius(generator)
    assert networks.receptive_field_radius(networks.build_generator()) == 40
    lr = np.zeros((1, 1, 2 * radius + 5, 3), "float32")
    changed = lr.copy()
    changed[0, 0, 0] = 1.0
    difference = np.abs(to_numpy(generator(lr)) - to_numpy(generator(changed)))
    reached = np.flatnonzero(difference.max((0, 1, 3)))
    assert reached.max() < 4 * (radius + 1)


def test_features_are_frozen_and_cut_by_name():
    """The source cuts by index, which moves when Keras inserts a layer."""
    vgg = networks.build_feature_extractor(weights=None)
    assert vgg.count_params() == 1_735_488
    assert not vgg.trainable_variables
    images = np.zeros((1, 32, 48, 3), "float32")
    assert vgg(images).shape == (1, 8, 12, 256)


def test_paper_features_are_preprocessed_for_imagenet():
    """VGG19 was trained on BGR in [0, 255] less the means."""
    layer = networks.ImageNetPreprocessing()
    black = to_numpy(layer(np.full((1, 1, 1, 3), -1.0, "float32")))
    np.testing.assert_allclose(black[0, 0, 0], [-103.939, -116.779, -123.68], rtol=1e-5)


def test_vgg_weights_are_read_from_a_file(tmp_path):
    """Users without a network pass the file that Keras would have downloaded."""
    source = keras.applications.VGG19(weights=None, include_top=False)
    path = tmp_path / "vgg19.weights.h5"
    source.save_weights(path)
    vgg = networks.build_feature_extractor("block1_conv1", weights=str(path))
    np.testing.assert_array_equal(vgg.get_weights()[0], source.get_weights()[0])


@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_wrong_vgg_file_is_named(tmp_path, content):
    """A truncated download would end in a traceback deep in HDF5."""
    path = tmp_path / "vgg19.weights.h5"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not hold VGG19 weights"):
        networks.build_feature_extractor(weights=str(path))


def test_vgg_of_another_network_is_named(tmp_path):
    """Weights of a classifier that happen to load would train towards noise."""
    path = tmp_path / "other.weights.h5"
    networks.build_generator(1, 4).save_weights(path)
    with pytest.raises(ValueError, match="does not hold VGG19 weights"):
        networks.build_feature_extractor(weights=str(path))


def test_unknown_feature_layer_is_named():
    """A typing error must not cut VGG19 somewhere else."""
    with pytest.raises(ValueError, match="layer_name='block9'"):
        networks.build_feature_extractor("block9", weights=None)


def test_missing_imagenet_weights_say_so(monkeypatch):
    """Offline, peers fail without a word of what is missing."""

    def fail(**_):
        raise Exception("URL fetch failure on https://example.org: None")

    monkeypatch.setattr(keras.applications, "VGG19", fail)
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        networks.build_feature_extractor()
