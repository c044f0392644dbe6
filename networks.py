"""The three networks of SRGAN, built without any input or output.

    python -c "import networks; networks.build_generator().summary()"

The generator's upsampling layers compute "nearest neighbour x2, then a
convolution" without making the enlarged tensor (`UpsampleConv2D`), with the
same weights and, in exact arithmetic, the same results.
"""

import os
import warnings
from pathlib import Path

import numpy as np

import distribution
from quiet import keras

# Weight files of VGG19, ImageNet, no top: for the messages only, Keras knows
# the address and the digest.
VGG_WEIGHTS_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"

BATCH_NORM_MOMENTUM = 0.8  # source: both networks; Keras's default is 0.99
LEAKY_SLOPE = 0.2  # paper, Sec. 2.1.1
DISCRIMINATOR_BLOCKS = (  # (filters / num_filters, stride); paper, Fig. 4
    (1, 2),
    (2, 1),
    (2, 2),
    (4, 1),
    (4, 2),
    (8, 1),
    (8, 2),
)
DENSE_UNITS_FACTOR = 16  # 1024 units for 64 filters; paper, Fig. 4


@keras.saving.register_keras_serializable(package="srgan")
class UpsampleConv2D(keras.layers.Conv2D):
    """Nearest-neighbour upsampling x2 and a convolution, in one layer.

    Equal to `UpSampling2D(2)` followed by `Conv2D(filters, kernel_size,
    padding="same")` in exact arithmetic, borders included, and with the same
    weights, but the enlarged tensor is never made. Each tap of the kernel
    falls on one of few distinct input pixels, so the taps that share a pixel
    are added up first ("folded"):

    - few filters and a kernel of 4m + 1 (the 9x9 to RGB): a convolution of
      2m + 1 to 4 x filters channels, one group for each of the four output
      pixels of an input pixel, then depth-to-space: 25 multiply-adds a
      filter and channel, where there were 81;
    - otherwise (3x3): one transposed convolution, stride 2, with the kernel
      convolved by a 2x2 box: 16 multiply-adds for four output pixels, where
      there were 36.

    The fold uses dense operations only. `gather` would make the kernel's
    gradient sparse (IndexedSlices), and Adam then takes wrong steps.

    Args:
        filters: int, number of output channels.
        kernel_size: odd int, side of the kernel on the enlarged image.
        **kwargs: `activation`, `use_bias`, `dtype`, `name` and others of
            `keras.layers.Conv2D`; not `strides`, `padding` or
            `dilation_rate`, which are fixed.

    Raises:
        ValueError: if `kernel_size` is even.

    Input `(n, h, w, channels)`, output `(n, 2h, 2w, filters)`.
    """

    def __init__(self, filters, kernel_size, **kwargs):
        kwargs |= {"padding": "same", "data_format": "channels_last"}
        super().__init__(filters, kernel_size, **kwargs)
        side, width = self.kernel_size
        if side != width or side % 2 == 0:
            raise ValueError(
                "UpsampleConv2D needs a square kernel with an odd side. "
                f"Received: kernel_size={kernel_size}."
            )
        self.folds_to_depth = side % 4 == 1 and filters <= 16
        self._fold = _fold_phases(side) if self.folds_to_depth else _fold_box(side)

    def add_weight(self, *args, **kwargs):
        # 16-bit policies: sums of taps are formed in float32 and cast once.
        return super().add_weight(*args, **kwargs, autocast=False)

    def call(self, inputs):
        kernel = keras.ops.cast(self._folded_kernel(), self.compute_dtype)
        if self.folds_to_depth:
            outputs = keras.ops.conv(inputs, kernel, padding="same")
            # (n, h, w, 4f) -> (n, 2h, 2w, f)
            outputs = keras.ops.depth_to_space(outputs, 2)
        else:
            outputs = keras.ops.conv_transpose(
                inputs, kernel, strides=2, padding="same"
            )
        if self.use_bias:
            outputs = outputs + keras.ops.cast(self.bias, self.compute_dtype)
        return self.activation(outputs)

    def _folded_kernel(self):
        fold = keras.ops.convert_to_tensor(self._fold, dtype=self.variable_dtype)
        if not self.folds_to_depth:
            # (k, k, channels, filters) -> (k + 1, k + 1, filters, channels)
            return keras.ops.einsum("it,ju,tucf->ijfc", fold, fold, self.kernel)
        # (k, k, c, f) -> (m, m, c, 2, 2, f) -> (m, m, c, 4f), m = k // 2 + 1
        kernel = keras.ops.einsum("pit,qju,tucf->ijcpqf", fold, fold, self.kernel)
        return keras.ops.reshape(kernel, (*kernel.shape[:3], 4 * self.filters))

    def compute_output_shape(self, input_shape):
        batch, height, width, _ = input_shape
        double = [side and 2 * side for side in (height, width)]
        return (batch, *double, self.filters)

    def get_config(self):
        fixed = ("strides", "padding", "data_format", "dilation_rate", "groups")
        return {k: v for k, v in super().get_config().items() if k not in fixed}


def _fold_box(side):
    """0/1 matrix `(side + 1, side)` of a 2-tap box, flipped for a transpose."""
    fold = np.zeros((side + 1, side))
    for tap in range(side):
        fold[side - 1 - tap, tap] = fold[side - tap, tap] = 1
    return fold


def _fold_phases(side):
    """0/1 tensor `(2, side // 2 + 1, side)`: input pixel of each phase and tap."""
    fold = np.zeros((2, side // 2 + 1, side))
    for phase in range(2):
        for tap in range(side):
            fold[phase, (phase + tap) // 2, tap] = 1
    return fold


@keras.saving.register_keras_serializable(package="srgan")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalisation, on TensorFlow by its fused kernel.

    Keras 3 composes the normalisation from float32 operations; TensorFlow's
    `FusedBatchNormV3` (which the source's Keras used) does it in one pass
    with 16-bit inputs and float32 statistics. Weights, names, file layout and
    results are Keras's: the kernel returns the variance with Bessel's
    correction, which is taken back before it enters the moving variance.
    Keras's own code runs for float64, on other backends, and where statistics
    are synchronised between workers.

    Attributes, read when a step is traced: `is_frozen`, if `True`, training
    too normalises by the moving statistics and leaves them alone, while scale
    and offset (gamma and beta) are still trained (Keras's `trainable = False`
    would stop those as well). `uses_batch_when_frozen`, if `True`, training
    normalises by the batch's own statistics also where `trainable` is `False`,
    and leaves the moving ones alone. `is_fused`, if `False`, runs Keras's own
    code.

    Args:
        **kwargs: those of `keras.layers.BatchNormalization`.
    """

    is_frozen = False
    uses_batch_when_frozen = False
    is_fused = True

    def call(self, inputs, training=None, mask=None):
        training = training and not self.is_frozen
        by_batch = training and (self.trainable or self.uses_batch_when_frozen)
        if (
            not self.is_fused
            or keras.backend.backend() != "tensorflow"
            or self.compute_dtype == "float64"
            or self.synchronized
            or len(inputs.shape) != 4
        ):
            if by_batch and not self.trainable:
                return self._normalize_by_batch(inputs)
            return super().call(inputs, training=training, mask=mask)
        return self._fused_call(inputs, is_training=bool(by_batch))

    def _fused_call(self, inputs, is_training):
        import tensorflow as tf  # the kernel is TensorFlow's own

        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.convert_to_tensor(self.moving_mean),
            variance=tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            is_training=is_training,
        )
        if is_training and self.trainable:
            count = tf.cast(tf.size(inputs) // inputs.shape[-1], variance.dtype)
            variance *= (count - 1) / count  # undo Bessel's correction
            for moving, batch in (
                (self.moving_mean, mean),
                (self.moving_variance, variance),
            ):
                moving.assign(moving * self.momentum + batch * (1 - self.momentum))
        return outputs

    def _normalize_by_batch(self, inputs):
        # Statistics in float32 at least, as in Keras's own layer.
        images = keras.ops.cast(
            inputs, keras.backend.result_type(inputs.dtype, "float32")
        )
        mean, variance = keras.ops.moments(
            images, axes=self._reduction_axes, synchronized=self.synchronized
        )
        outputs = keras.ops.batch_normalization(
            images, mean, variance, self.axis, self.beta, self.gamma, self.epsilon
        )
        return keras.ops.cast(outputs, self.compute_dtype)


@keras.saving.register_keras_serializable(package="srgan")
class ImageNetPreprocessing(keras.layers.Layer):
    """RGB in [-1, 1] to what VGG19 was trained on: BGR in [0, 255] less means."""

    def call(self, images):
        return keras.applications.vgg19.preprocess_input((images + 1.0) * 127.5)

    def compute_output_shape(self, input_shape):
        return input_shape


def build_generator(num_residual_blocks=16, num_filters=64):
    """Builds the generator (SRResNet), x4 (source; paper: Sec. 2.1.1, Fig. 4).

    Args:
        num_residual_blocks: int >= 0, number of residual blocks.
        num_filters: int >= 1, channels of the residual trunk.

    Returns:
        An uncompiled `keras.Model`: `(n, h, w, 3)` RGB in [-1, 1] to
        `(n, 4h, 4w, 3)` in [-1, 1]; 2,042,691 parameters by default.
    """
    lr = keras.Input((None, None, 3), name="lr")
    # Paper: PReLU. Source: ReLU, here and in the blocks.
    skip = features = _convolution(num_filters, 9, activation="relu")(lr)
    for _ in range(num_residual_blocks):
        features = _residual_block(features, num_filters)
    features = _convolution(num_filters)(features)
    features = keras.layers.Add()([_batch_normalization()(features), skip])
    # Paper: sub-pixel convolutions. Source: nearest-neighbour upsampling after
    # the convolution. ReLU commutes with it, so it comes first, on fewer pixels.
    features = _convolution(4 * num_filters, activation="relu")(features)
    # (n, h, w, 4f) -> (n, 2h, 2w, 4f) -> (n, 4h, 4w, 3)
    features = UpsampleConv2D(4 * num_filters, 3, activation="relu")(features)
    features = UpsampleConv2D(3, 9)(features)
    sr = keras.layers.Activation("tanh", dtype=keras.config.floatx(), name="sr")(
        features
    )
    return keras.Model(lr, sr, name="generator")


def build_discriminator(num_filters=64):
    """Builds the PatchGAN discriminator (source; paper: Sec. 2.1.1, Fig. 4).

    Args:
        num_filters: int >= 1, channels of the first convolution.

    Returns:
        An uncompiled `keras.Model`: `(n, h, w, 3)` RGB in [-1, 1] to
        `(n, ceil(h / 16), ceil(w / 16), 1)`, the probability that a patch is
        of an original image; 5,219,137 parameters by default.
    """
    images = keras.Input((None, None, 3), name="images")
    features = _convolution(num_filters)(images)
    features = keras.layers.LeakyReLU(LEAKY_SLOPE)(features)
    for factor, stride in DISCRIMINATOR_BLOCKS:
        features = _convolution(factor * num_filters, strides=stride)(features)
        # Source: LeakyReLU before batch normalisation. Paper: after it.
        features = keras.layers.LeakyReLU(LEAKY_SLOPE)(features)
        features = _batch_normalization()(features)
    # Paper: one probability an image, from a flattened 96 x 96 crop.
    # Source: dense layers at each position, so that any size is accepted.
    features = keras.layers.Dense(DENSE_UNITS_FACTOR * num_filters)(features)
    features = keras.layers.LeakyReLU(LEAKY_SLOPE)(features)
    logits = keras.layers.Dense(1)(features)
    real = keras.layers.Activation("sigmoid", dtype=keras.config.floatx(), name="real")
    return keras.Model(images, real(logits), name="discriminator")


def build_feature_extractor(
    layer_name="block3_conv3", weights="imagenet", imagenet_preprocessing=False
):
    """Builds VGG19 up to one layer, frozen (paper: Sec. 2.2.1).

    Args:
        layer_name: str, the layer whose output is returned:
            `"block3_conv3"` (source), `"block2_conv2"` (the paper's VGG22) or
            `"block5_conv4"` (VGG54).
        weights: `"imagenet"` (downloaded and cached by Keras), the path of a
            VGG19 weights file without top, or `None` (random: tests only).
        imagenet_preprocessing: bool; if `True`, images are converted to what
            VGG19 was trained on. The source feeds [-1, 1] as it is.

    Returns:
        An uncompiled, frozen `keras.Model`: `(n, h, w, 3)` RGB in [-1, 1] to
        features `(n, h / 2**(b - 1), w / 2**(b - 1), channels)` of block b.

    Raises:
        FileNotFoundError: if the weights are neither at hand nor downloadable.
        ValueError: if the file holds something else, or `layer_name` is
            unknown.
    """
    vgg = _load_vgg19(weights)
    if layer_name not in [layer.name for layer in vgg.layers]:
        raise ValueError(
            "VGG19 has layers block1_conv1 to block5_conv4. "
            f"Received: layer_name={layer_name!r}."
        )
    images = keras.Input((None, None, 3), name="images")
    inputs = ImageNetPreprocessing()(images) if imagenet_preprocessing else images
    # Source: images in [-1, 1] go in without ImageNet preprocessing.
    truncated = keras.Model(vgg.input, vgg.get_layer(layer_name).output)
    features = inputs
    for layer in truncated.layers[1:]:
        features = layer(features)
    extractor = keras.Model(images, features, name=f"vgg19_{layer_name}")
    extractor.trainable = False
    return extractor


def cached_vgg_weights():
    """Returns the path at which Keras keeps VGG19's weights once downloaded."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    return Path(home) / "models" / VGG_WEIGHTS_FILE


def batch_norm_layers(model):
    """Returns the list of a model's batch-norm layers."""
    kind = keras.layers.BatchNormalization
    return [layer for layer in model.layers if isinstance(layer, kind)]


def receptive_field_radius(generator):
    """Counts how many LR pixels beside a pixel its enlargement depends on.

    A chain of convolutions of side k reaches (k - 1) / 2 pixels further each;
    after an upsampling, pixels are half as large. 40 for the source's network.

    Args:
        generator: `keras.Model` of `build_generator`.

    Returns:
        int, radius in LR pixels, rounded up.
    """
    radius, pixel = 0.0, 1.0
    for layer in generator.layers:
        if isinstance(layer, UpsampleConv2D):
            pixel /= 2
        if isinstance(layer, keras.layers.Conv2D):
            radius += pixel * (layer.kernel_size[0] // 2)
    return int(np.ceil(radius))


def _convolution(filters, kernel_size=3, **kwargs):
    return keras.layers.Conv2D(filters, kernel_size, padding="same", **kwargs)


def _batch_normalization():
    return BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM, synchronized=distribution.is_active()
    )


def _residual_block(inputs, filters):
    # Source: ReLU before batch normalisation. Paper: after it.
    features = _convolution(filters, activation="relu")(inputs)
    features = _batch_normalization()(features)
    features = _convolution(filters)(features)
    features = _batch_normalization()(features)
    return keras.layers.Add()([features, inputs])


def _load_vgg19(weights):
    """Keras's VGG19 without top; its errors turned into ours."""
    try:
        with warnings.catch_warnings():  # of another network: the error says it all
            warnings.simplefilter("ignore")
            return keras.applications.VGG19(weights=weights, include_top=False)
    except Exception as error:  # Keras raises a bare Exception when offline
        reason = str(error).strip().split("\n")[0]
        if weights == "imagenet":
            raise FileNotFoundError(
                f"The ImageNet weights of VGG19 ({VGG_WEIGHTS_FILE}) are not in "
                f"Keras's cache and could not be downloaded: {reason}"
            ) from error
        raise ValueError(
            f"{weights} does not hold VGG19 weights without top "
            f"({VGG_WEIGHTS_FILE}): {reason}"
        ) from error
