"""The networks of SRGAN and their losses, as data and small builders.

    python -c "import networks; networks.build_generator().summary()"

Builders return uncompiled models, and touch neither files nor the terminal.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import layers, ops

from support.image_files import SCALE

BATCH_NORM_MOMENTUM = 0.8  # source: both networks; Keras's default is 0.99
LEAKY_SLOPE = 0.2  # paper, Sec. 2.1.1
# (filters / num_filters, stride); paper, Fig. 4
DISCRIMINATOR_BLOCKS = ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2))
DENSE_UNITS_FACTOR = 16  # 1024 units for 64 filters; paper, Fig. 4
PATCH_SIZE = 16  # px, stride of the discriminator's patch grid

FEATURE_WEIGHT = 1 / 12.75**2  # = 0.006, paper, Sec. 3.2
TOTAL_VARIATION_WEIGHT = 2e-8  # SRResNet-VGG22; paper, Sec. 3.4
VGG_WEIGHTS_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"


class ContentLoss(NamedTuple):
    """What generated and original images are compared by, and what else counts."""

    layer_name: str | None  # of VGG19; None: the pixels themselves
    weight: float
    imagenet_preprocessing: bool
    adversarial_weight: float = 1e-3  # paper, Sec. 2.2, eq. 3
    pixel_weight: float = 0.0  # of the mean squared error as well; it keeps colours
    # Images are rolled by up to so many px before they are compared. Without it, the
    # strides of discriminator and VGG19 imprint the LR image's grid.
    max_shift: int = 0


CONTENT_LOSSES = {
    # Source: block3_conv3, and no ImageNet preprocessing.
    "source": ContentLoss("block3_conv3", FEATURE_WEIGHT, False),
    "mse": ContentLoss(None, 1.0, False),
    "vgg22": ContentLoss("block2_conv2", FEATURE_WEIGHT, True),
    "vgg54": ContentLoss("block5_conv4", FEATURE_WEIGHT, True),
    # What `srgan-bicubic` was trained with; neither source nor paper.
    "vgg54_pixel": ContentLoss("block5_conv4", FEATURE_WEIGHT, True, 3e-3, 1.0, 15),
}


@keras.saving.register_keras_serializable(package="srgan")
class UpsampleConv2D(layers.Conv2D):
    """Nearest-neighbour upsampling x2 and a convolution, in one layer.

    Equals `UpSampling2D(2)` and `Conv2D(filters, kernel_size, padding="same")` with the
    same weights, borders included, but never makes the enlarged tensor. Several taps of
    the kernel fall on the same input pixel, so they are added up first ("folded"):

    - Few filters and a side of 4m + 1 (9x9 to RGB): a convolution of side 2m + 1 to
      four groups of channels, one for each output pixel of an input pixel, then
      depth-to-space: 25 multiply-adds instead of 81.
    - Otherwise (3x3): one transposed convolution, stride 2, whose kernel is convolved
      with a 2x2 box: 16 multiply-adds instead of 36.

    Args:
        filters: int, number of output channels.
        kernel_size: odd int, side of the kernel on the enlarged image.
        **kwargs: others of `keras.layers.Conv2D`, but for strides, dilation, padding.

    Raises:
        ValueError: if `kernel_size` is even.

    Input `(n, h, w, channels)`, output `(n, 2h, 2w, filters)`.
    """

    def __init__(self, filters, kernel_size, **kwargs):
        kwargs |= {"padding": "same", "data_format": "channels_last"}
        super().__init__(filters, kernel_size, **kwargs)
        side = self.kernel_size[0]
        if side % 2 == 0:
            raise ValueError(f"The kernel's side must be odd, not {kernel_size}.")
        self.folds_to_depth = side % 4 == 1 and filters <= 16
        self._fold = _fold_phases(side) if self.folds_to_depth else _fold_box(side)

    def add_weight(self, *args, **kwargs):
        # 16-bit policies: sums of taps are formed in float32 and cast once.
        return super().add_weight(*args, **kwargs, autocast=False)

    def call(self, inputs):
        # Dense operations only: `gather` would make the kernel's gradient sparse, and
        # Adam then takes wrong steps.
        fold = ops.convert_to_tensor(self._fold, self.variable_dtype)
        if self.folds_to_depth:
            # (k, k, c, f) -> (m, m, c, 2, 2, f) -> (m, m, c, 4f), m = k // 2 + 1
            kernel = ops.einsum("pit,qju,tucf->ijcpqf", fold, fold, self.kernel)
            kernel = ops.reshape(kernel, (*kernel.shape[:3], 4 * self.filters))
            kernel = ops.cast(kernel, self.compute_dtype)
            outputs = ops.conv(inputs, kernel, padding="same")
            # (n, h, w, 4f) -> (n, 2h, 2w, f)
            outputs = ops.depth_to_space(outputs, 2)
        else:
            # (k, k, c, f) -> (k + 1, k + 1, f, c)
            kernel = ops.einsum("it,ju,tucf->ijfc", fold, fold, self.kernel)
            kernel = ops.cast(kernel, self.compute_dtype)
            outputs = ops.conv_transpose(inputs, kernel, strides=2, padding="same")
        if self.use_bias:
            outputs = outputs + ops.cast(self.bias, self.compute_dtype)
        return self.activation(outputs)

    def compute_output_shape(self, input_shape):
        height, width = (side and 2 * side for side in input_shape[1:3])
        return (input_shape[0], height, width, self.filters)


def _fold_box(side):
    """0/1 matrix `(side + 1, side)` of a 2-tap box, flipped for a transpose."""
    box = np.eye(side + 1, side) + np.eye(side + 1, side, k=-1)
    return box[:, ::-1]


def _fold_phases(side):
    """0/1 tensor `(2, side // 2 + 1, side)`: input pixel of each phase and tap."""
    enlarged = np.repeat(np.eye(side // 2 + 1), 2, axis=1)  # nearest neighbour x2
    return np.stack([enlarged[:, :side], enlarged[:, 1:]])


@keras.saving.register_keras_serializable(package="srgan")
class BatchNormalization(layers.BatchNormalization):
    """Keras's batch normalization, by TensorFlow's fused kernel where it applies.

    Results are Keras's. Three attributes are read when a step is traced:

    - `has_fixed_statistics`: training normalizes by the moving statistics and leaves
      them alone; scale and offset are trained, unlike with `trainable = False`.
    - `uses_batch_when_frozen`: training normalizes by the batch's statistics although
      `trainable` is `False`, and leaves the moving ones alone.
    - `is_fused`: `False` runs Keras's own code everywhere.
    """

    has_fixed_statistics = False
    uses_batch_when_frozen = False
    is_fused = True

    def __init__(self, momentum=BATCH_NORM_MOMENTUM, **kwargs):
        super().__init__(momentum=momentum, **kwargs)

    def call(self, inputs, training=None, mask=None):
        training = bool(training) and not self.has_fixed_statistics
        by_batch = training and (self.trainable or self.uses_batch_when_frozen)
        is_taken = self.compute_dtype != "float64" and not self.synchronized
        if self.is_fused and is_taken and keras.backend.backend() == "tensorflow":
            return self._fused_call(inputs, by_batch)
        if by_batch and not self.trainable:
            return self._normalize_by_batch(inputs)
        return super().call(inputs, training=training, mask=mask)

    def _fused_call(self, inputs, is_training):
        import tensorflow as tf  # the kernel is TensorFlow's own

        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma,
            offset=self.beta,
            mean=self.moving_mean,
            variance=self.moving_variance,
            epsilon=self.epsilon,
            is_training=is_training,
        )
        if is_training and self.trainable:
            count = tf.cast(tf.size(inputs) // inputs.shape[-1], variance.dtype)
            variance *= (count - 1) / count  # undo Bessel's correction
            kept, added = self.momentum, 1 - self.momentum
            self.moving_mean.assign(kept * self.moving_mean + added * mean)
            self.moving_variance.assign(kept * self.moving_variance + added * variance)
        return outputs

    def _normalize_by_batch(self, inputs):
        images = ops.cast(inputs, self.variable_dtype)  # float32 at least
        mean, variance = ops.moments(images, (0, 1, 2), synchronized=self.synchronized)
        outputs = ops.batch_normalization(
            images, mean, variance, self.axis, self.beta, self.gamma, self.epsilon
        )
        return ops.cast(outputs, self.compute_dtype)


def make_deterministic():
    """Lets TensorFlow repeat results bit for bit."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
        # On GPUs, the fused kernel has no deterministic gradient for fixed statistics.
        BatchNormalization.is_fused = not tf.config.list_physical_devices("GPU")


class Network(NamedTuple):
    """Which generator some weights belong to, as checkpoints state it."""

    name: str = "source"
    num_residual_blocks: int = 16
    num_filters: int = 64


def build_network(network):
    """Builds the generator that a `Network` describes."""
    name, num_residual_blocks, num_filters = network
    if name in ("source", "paper"):
        return build_generator(num_residual_blocks, num_filters, name == "paper")
    if name in ("srcnn", "espcn"):
        return build_srcnn() if name == "srcnn" else build_espcn()
    raise ValueError(f"Unknown network {name!r}. Known: source, paper, srcnn, espcn.")


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
    images = layers.Rescaling(0.5, 0.5)(lr) if is_paper else lr
    # Paper: PReLU, after batch normalization. Source: ReLU, before it.
    activation = _prelu if is_paper else layers.ReLU
    order = (BatchNormalization, activation)[:: 1 if is_paper else -1]
    skip = features = activation()(_convolution(num_filters, 9)(images))
    for _ in range(num_residual_blocks):
        block = _convolution(num_filters)(features)
        for layer in order:
            block = layer()(block)
        block = BatchNormalization()(_convolution(num_filters)(block))
        features = layers.Add()([block, features])
    features = BatchNormalization()(_convolution(num_filters)(features))
    features = layers.Add()([features, skip])
    # (n, h, w, f) -> (n, 2h, 2w, 4f) -> (n, 4h, 4w, 3)
    if is_paper:
        for _ in range(2):
            features = _convolution(4 * num_filters)(features)
            features = _prelu()(ops.depth_to_space(features, 2))
        features = _convolution(3, 9)(features)
    else:
        # Paper: sub-pixel convolutions. Source: nearest-neighbour upsampling after
        # the convolution. ReLU commutes with it, so it comes first, on fewer pixels.
        features = _convolution(4 * num_filters, activation="relu")(features)
        features = UpsampleConv2D(4 * num_filters, 3, activation="relu")(features)
        features = UpsampleConv2D(3, 9)(features)
    network = "paper" if is_paper else "source", num_residual_blocks, num_filters
    return _finish_generator(lr, features, network, "tanh")


def build_srcnn():
    """Builds SRCNN 9-5-5 (Dong et al. 2016), x4, on RGB; shapes of `build_generator`.

    Its input, the bicubic enlargement, is made by a convolution that is not trained.
    """
    lr = keras.Input((None, None, 3), name="lr")
    kernel = keras.initializers.Constant(_bicubic_kernel())
    options = {"kernel_initializer": kernel, "use_bias": False, "trainable": False}
    bicubic = _convolution(3 * SCALE**2, 5, **options, dtype=keras.config.floatx())
    features = ops.depth_to_space(bicubic(lr), SCALE)
    # Paper: luminance only, as in ESPCN; here RGB.
    features = _convolution(64, 9, activation="relu")(features)
    features = _convolution(32, 5, activation="relu")(features)
    return _finish_generator(lr, _convolution(3, 5)(features), ("srcnn", 0, 64))


def _bicubic_kernel():
    """Returns `(5, 5, 3, 48)`: Pillow's bicubic filter at 4 x 4 pixels of RGB."""
    centres = (np.arange(SCALE) + 0.5) / SCALE - 0.5  # of enlarged pixels, in LR px
    x = np.abs(np.arange(-2, 3)[:, np.newaxis] - centres)
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    taps = np.select([x < 1, x < 2], [near, far])
    kernel = np.einsum("ip,jq,cf->ijcpqf", taps, taps, np.eye(3))
    return kernel.reshape(5, 5, 3, 3 * SCALE**2)


def build_espcn():
    """Builds ESPCN 5-3-3 (Shi et al. 2016), x4, on RGB; shapes of `build_generator`."""
    lr = keras.Input((None, None, 3), name="lr")
    features = _convolution(64, 5, activation="tanh")(lr)
    features = _convolution(32, activation="tanh")(features)
    sr = ops.depth_to_space(_convolution(3 * SCALE**2)(features), SCALE)
    return _finish_generator(lr, sr, ("espcn", 0, 64))


def _finish_generator(lr, features, network, activation="linear"):
    sr = layers.Activation(activation, dtype=keras.config.floatx(), name="sr")(features)
    generator = keras.Model(lr, sr, name="generator")
    generator.network = Network(*network)._asdict()
    return generator


def build_discriminator(num_filters=64, crop_size=None):
    """Builds the discriminator (source: PatchGAN; paper: Sec. 2.1.1, Fig. 4).

    Args:
        num_filters: int >= 1, channels of the first convolution.
        crop_size: int, side of the only images that the paper's network judges, in px;
            `None` builds the source's, for any size.

    Returns:
        An uncompiled `keras.Model`: `(n, h, w, 3)` RGB in [-1, 1] to the probability
        that a patch, `(n, ceil(h / 16), ceil(w / 16), 1)`, is of an original image;
        5,219,137 parameters by default. The paper's judges whole images, `(n, 1)`.
    """
    images = keras.Input((crop_size, crop_size, 3), name="images")
    features = _leaky_relu()(_convolution(num_filters)(images))
    # Source: LeakyReLU before batch normalization. Paper: after it.
    order = (BatchNormalization, _leaky_relu)[:: 1 if crop_size else -1]
    for factor, stride in DISCRIMINATOR_BLOCKS:
        features = _convolution(factor * num_filters, strides=stride)(features)
        for layer in order:
            features = layer()(features)
    # Source: dense layers at each position, for images of any size.
    if crop_size:  # paper: one probability per image
        features = layers.Flatten()(features)
    features = layers.Dense(DENSE_UNITS_FACTOR * num_filters)(features)
    logits = layers.Dense(1)(_leaky_relu()(features))
    real = layers.Activation("sigmoid", dtype=keras.config.floatx(), name="real")
    return keras.Model(images, real(logits), name="discriminator")


def build_feature_extractor(
    layer_name="block3_conv3", weights="imagenet", imagenet_preprocessing=False
):
    """Builds VGG19 up to one layer, frozen (paper: Sec. 2.2.1).

    Args:
        layer_name: str, the layer whose output is returned.
        weights: `"imagenet"` (downloaded and cached by Keras), the path of a VGG19
            weights file without top, or `None` (random: tests only).
        imagenet_preprocessing: bool; converts images to BGR in [0, 255] less means.

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


def build_content_features(content_loss, vgg_weights):
    """Builds the features of a key of `CONTENT_LOSSES`; `None` for plain pixels."""
    if content_loss not in CONTENT_LOSSES:
        known = ", ".join(CONTENT_LOSSES)
        raise ValueError(f"Unknown content_loss {content_loss!r}. Known: {known}.")
    loss = CONTENT_LOSSES[content_loss]
    if loss.layer_name is None:
        return None
    options = vgg_weights, loss.imagenet_preprocessing
    return build_feature_extractor(loss.layer_name, *options)


class Roll(layers.Layer):
    """Rolls images by `offset`, rows and columns that are set before each step."""

    def build(self, input_shape):
        self.offset = self.add_weight((2,), "zeros", "int32", trainable=False)

    def call(self, images):
        return ops.roll(images, ops.convert_to_tensor(self.offset), axis=(1, 2))


class TotalVariation(layers.Layer):
    """Passes images on; adds their total variation to the loss (paper: Sec. 3.4)."""

    def call(self, images):
        rows = ops.sum(ops.abs(images[:, 1:] - images[:, :-1]))
        columns = ops.sum(ops.abs(images[:, :, 1:] - images[:, :, :-1]))
        num_images = ops.cast(ops.shape(images)[0], images.dtype)
        self.add_loss(TOTAL_VARIATION_WEIGHT * (rows + columns) / num_images)
        return images


def batch_norm_layers(model):
    """Returns the list of a model's batch-norm layers."""
    return [layer for layer in model.layers if isinstance(layer, BatchNormalization)]


def average_batch_norm(model, images, count):
    """Makes batch-norm statistics the mean of `count` earlier batches and this one."""
    for layer in batch_norm_layers(model):
        layer.momentum = count / (count + 1)
    model(images, training=True)
    for layer in batch_norm_layers(model):
        layer.momentum = BATCH_NORM_MOMENTUM


def receptive_field_radius(generator):
    """Counts how many LR pixels beside a pixel its enlargement depends on.

    A convolution of side k reaches (k - 1) / 2 further. The source's network: 40.
    """
    radius, pixel = 0.0, 1.0
    for operation in generator.operations:
        if isinstance(operation, UpsampleConv2D):
            pixel /= 2
        if isinstance(operation, layers.Conv2D):
            radius += pixel * (operation.kernel_size[0] // 2)
        pixel /= getattr(operation, "block_size", 1)  # of `depth_to_space`
    return int(np.ceil(radius))


def _convolution(filters, kernel_size=3, **kwargs):
    return layers.Conv2D(filters, kernel_size, padding="same", **kwargs)


def _prelu():
    return layers.PReLU(shared_axes=[1, 2])  # one slope per channel


def _leaky_relu():
    return layers.LeakyReLU(LEAKY_SLOPE)


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
