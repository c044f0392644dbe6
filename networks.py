"""The networks of SRGAN, as data and small builders.

    python -c "import networks; networks.build_generator().summary()"

Builders return uncompiled models, and touch neither files nor the terminal.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from layers import BatchNormalization, UpsampleConv2D
from support.pixels import SCALE

LEAKY_SLOPE = 0.2  # paper, Sec. 2.1.1
# (filters / num_filters, stride); paper, Fig. 4
DISCRIMINATOR_BLOCKS = ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2))
DENSE_UNITS_FACTOR = 16  # 1024 units for 64 filters; paper, Fig. 4
PATCH_SIZE = 16  # px, stride of the discriminator's patch grid

VGG_WEIGHTS_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
NETWORKS = ("source", "paper", "srcnn", "espcn")


class Network(NamedTuple):
    """Which generator some weights belong to, as their file states it."""

    name: str = "source"
    num_residual_blocks: int = 16
    num_filters: int = 64


class DiscriminatorNetwork(NamedTuple):
    """Which discriminator some weights belong to, as their file states it."""

    num_filters: int = 64
    crop_size: int | None = None


def build_network(network):
    """Builds the generator that a `Network` describes."""
    if network.name == "srcnn":
        return build_srcnn()
    if network.name == "espcn":
        return build_espcn()
    if network.name not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise ValueError(f"Unknown network {network.name!r}. Known: {known}.")
    return build_generator(
        num_residual_blocks=network.num_residual_blocks,
        num_filters=network.num_filters,
        is_paper=network.name == "paper",
    )


def build_generator(num_residual_blocks=16, num_filters=64, is_paper=False):
    """Builds the generator (SRResNet), x4 (source; paper: Sec. 2.1.1, Fig. 4).

    Args:
        num_residual_blocks: int >= 0, number of residual blocks.
        num_filters: int >= 1, channels of the residual trunk.
        is_paper: bool; `True` builds the paper's network, `False` the source's.

    Returns:
        An uncompiled `keras.Model`: `(n, h, w, 3)` RGB in [-1, 1] to
        `(n, 4h, 4w, 3)` in [-1, 1]; 2,042,691 parameters by default.
    """
    lr = keras.Input((None, None, 3), name="lr")
    # Paper, Sec. 3.2: LR images in [0, 1].
    images = keras.layers.Rescaling(0.5, 0.5)(lr) if is_paper else lr
    # Paper: PReLU. Source: ReLU.
    activation = _prelu if is_paper else keras.layers.ReLU
    skip = activation()(_convolution(num_filters, 9)(images))
    features = skip
    for _ in range(num_residual_blocks):
        block = _convolution(num_filters)(features)
        block = _normalize_and_activate(block, activation, is_paper)
        block = _convolution(num_filters)(block)
        block = BatchNormalization()(block)
        features = keras.layers.Add()([block, features])
    features = BatchNormalization()(_convolution(num_filters)(features))
    features = keras.layers.Add()([features, skip])
    # (n, h, w, f) -> (n, 2h, 2w, 4f) -> (n, 4h, 4w, 3)
    if is_paper:
        for _ in range(2):
            features = _convolution(4 * num_filters)(features)
            features = _prelu()(ops.depth_to_space(features, 2))
        features = _convolution(3, 9)(features)
    else:
        # Paper: sub-pixel convolutions. Source: nearest-neighbor upsampling after
        # the convolution. ReLU commutes with it, so it comes first, on fewer pixels.
        features = _convolution(4 * num_filters, activation="relu")(features)
        features = UpsampleConv2D(4 * num_filters, 3, activation="relu")(features)
        features = UpsampleConv2D(3, 9)(features)
    name = "paper" if is_paper else "source"
    network = Network(name, num_residual_blocks, num_filters)
    return _finish_generator(lr, features, network, "tanh")


def build_srcnn():
    """Builds SRCNN 9-5-5 (Dong et al. 2016), x4, on RGB; shapes of `build_generator`.

    Its input, the bicubic enlargement, is made by a convolution that is not trained.
    """
    lr = keras.Input((None, None, 3), name="lr")
    bicubic = _convolution(
        3 * SCALE**2,
        5,
        kernel_initializer=keras.initializers.Constant(_bicubic_kernel()),
        use_bias=False,
        trainable=False,
        dtype=keras.config.floatx(),
    )
    features = ops.depth_to_space(bicubic(lr), SCALE)
    # Paper: luminance only, as in ESPCN; here RGB.
    features = _convolution(64, 9, activation="relu")(features)
    features = _convolution(32, 5, activation="relu")(features)
    features = _convolution(3, 5)(features)
    return _finish_generator(lr, features, Network("srcnn", 0, 64))


def _bicubic_kernel():
    """Returns `(5, 5, 3, 48)`: Pillow's bicubic filter at 4 x 4 pixels of RGB."""
    centers = (np.arange(SCALE) + 0.5) / SCALE - 0.5  # of enlarged pixels, in LR px
    x = np.abs(np.arange(-2, 3)[:, np.newaxis] - centers)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    taps = np.select([x < 1, x < 2], [near, far])
    kernel = np.einsum("ip,jq,cf->ijcpqf", taps, taps, np.eye(3))
    return kernel.reshape(5, 5, 3, 3 * SCALE**2)


def build_espcn():
    """Builds ESPCN 5-3-3 (Shi et al. 2016), x4, on RGB; shapes of `build_generator`."""
    lr = keras.Input((None, None, 3), name="lr")
    features = _convolution(64, 5, activation="tanh")(lr)
    features = _convolution(32, activation="tanh")(features)
    sr = ops.depth_to_space(_convolution(3 * SCALE**2)(features), SCALE)
    return _finish_generator(lr, sr, Network("espcn", 0, 64))


def _finish_generator(lr, features, network, activation="linear"):
    sr = keras.layers.Activation(activation, dtype=keras.config.floatx(), name="sr")(
        features
    )
    generator = keras.Model(lr, sr, name="generator")
    generator.network = network
    return generator


def build_discriminator(num_filters=64, crop_size=None):
    """Builds the discriminator (source: PatchGAN; paper: Sec. 2.1.1, Fig. 4).

    Args:
        num_filters: int >= 1, channels of the first convolution.
        crop_size: int, side of the only images that the paper's network takes, in px;
            `None` builds the source's, for any size.

    Returns:
        An uncompiled `keras.Model`: `(n, h, w, 3)` RGB in [-1, 1] to the probability
        that a patch, `(n, ceil(h / 16), ceil(w / 16), 1)`, is of an original image;
        5,219,137 parameters by default. The paper's gives one for each image, `(n, 1)`.
    """
    images = keras.Input((crop_size, crop_size, 3), name="images")
    features = _leaky_relu()(_convolution(num_filters)(images))
    is_paper = crop_size is not None
    for factor, stride in DISCRIMINATOR_BLOCKS:
        features = _convolution(factor * num_filters, strides=stride)(features)
        features = _normalize_and_activate(features, _leaky_relu, is_paper)
    # Source: dense layers at each position, for images of any size.
    if is_paper:  # one probability per image
        features = keras.layers.Flatten()(features)
    features = keras.layers.Dense(DENSE_UNITS_FACTOR * num_filters)(features)
    logits = keras.layers.Dense(1)(_leaky_relu()(features))
    real = keras.layers.Activation("sigmoid", dtype=keras.config.floatx(), name="real")
    discriminator = keras.Model(images, real(logits), name="discriminator")
    discriminator.network = DiscriminatorNetwork(num_filters, crop_size)
    return discriminator


def build_feature_extractor(
    layer_name="block3_conv3", weights="imagenet", imagenet_preprocessing=False
):
    """Builds VGG19 up to one layer, frozen (paper: Sec. 2.2.1).

    Args:
        layer_name: str, the layer whose output is returned.
        weights: `"imagenet"` (downloaded and cached by Keras), the path of a VGG19
            weights file without top, or `None` (random: tests only).
        imagenet_preprocessing: bool; `True` converts images to mean-subtracted BGR, as
            VGG19 was trained with.

    Returns:
        An uncompiled, frozen `keras.Model`: `(n, h, w, 3)` RGB in [-1, 1] to features
        `(n, h / 2**(b - 1), w / 2**(b - 1), channels)` of block b.

    Raises:
        FileNotFoundError: if there is no such file, or it cannot be downloaded.
        ValueError: if the file holds something else, or there is no such layer.
    """
    vgg = _load_vgg19(weights)
    inputs = images = keras.Input((None, None, 3), name="images")
    # Source: images in [-1, 1] go in without ImageNet preprocessing.
    if imagenet_preprocessing:
        inputs = keras.applications.vgg19.preprocess_input((images + 1.0) * 127.5)
    truncated = keras.Model(vgg.input, vgg.get_layer(layer_name).output)
    extractor = keras.Model(images, truncated(inputs), name=f"vgg19_{layer_name}")
    extractor.trainable = False
    return extractor


def receptive_field_radius(generator):
    """Counts how many LR pixels beside a pixel its enlargement depends on.

    A convolution of side k reaches (k - 1) / 2 further. The source's network: 40.
    """
    radius, pixel = 0.0, 1.0
    for operation in generator.operations:
        if isinstance(operation, UpsampleConv2D):
            pixel /= 2
        if isinstance(operation, keras.layers.Conv2D):
            radius += pixel * (operation.kernel_size[0] // 2)
        pixel /= getattr(operation, "block_size", 1)  # of `depth_to_space`
    return int(np.ceil(radius))


def _convolution(filters, kernel_size=3, **kwargs):
    return keras.layers.Conv2D(filters, kernel_size, padding="same", **kwargs)


def _normalize_and_activate(features, activation, is_paper):
    # Paper: batch normalization, then the activation. Source: the other way round.
    if is_paper:
        return activation()(BatchNormalization()(features))
    return BatchNormalization()(activation()(features))


def _prelu():
    return keras.layers.PReLU(shared_axes=[1, 2])  # one slope per channel


def _leaky_relu():
    return keras.layers.LeakyReLU(LEAKY_SLOPE)


def _load_vgg19(weights):
    """Builds Keras's VGG19 without top; its errors become readable."""
    if weights not in ("imagenet", None) and not Path(weights).is_file():
        raise FileNotFoundError(f"There is no VGG19 weights file {weights}.")
    try:
        with warnings.catch_warnings(action="ignore"):  # the error says enough
            return keras.applications.VGG19(weights=weights, include_top=False)
    except Exception as error:  # Keras raises a bare Exception when offline
        reason = str(error).strip().split("\n")[0]
        if weights != "imagenet":
            raise ValueError(f"{weights} holds no VGG19 weights: {reason}") from error
        raise FileNotFoundError(
            f"Keras could not download the weights of VGG19: {reason} Pass "
            f"--vgg-weights with the path of {VGG_WEIGHTS_FILE}, or --content-loss mse."
        ) from error
