"""The layers that Keras lacks: folded upsampling, and fused batch normalization.

    python -c "import layers; help(layers.UpsampleConv2D)"

Both compute what Keras's own layers do, faster.
"""

import keras
import numpy as np
from keras import ops

BATCH_NORM_MOMENTUM = 0.8  # source: both networks; Keras's default is 0.99


@keras.saving.register_keras_serializable(package="srgan")
class UpsampleConv2D(keras.layers.Conv2D):
    """Nearest-neighbor upsampling x2 and a convolution, in one layer.

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
        **kwargs: other `Conv2D` arguments, except strides, dilation and padding.

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
    enlarged = np.repeat(np.eye(side // 2 + 1), 2, axis=1)  # nearest neighbor x2
    return np.stack([enlarged[:, :side], enlarged[:, 1:]])


@keras.saving.register_keras_serializable(package="srgan")
class BatchNormalization(keras.layers.BatchNormalization):
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
        is_training = bool(training) and not self.has_fixed_statistics
        is_free = self.trainable or self.uses_batch_when_frozen
        uses_batch_statistics = is_training and is_free
        if self._can_be_fused(inputs):
            return self._fused_call(inputs, uses_batch_statistics)
        if uses_batch_statistics and not self.trainable:
            # Keras normalizes a frozen layer by its moving statistics.
            return self._normalize_by_batch(inputs)
        return super().call(inputs, training=is_training, mask=mask)

    def _can_be_fused(self, inputs):
        is_tensorflow = keras.backend.backend() == "tensorflow"
        is_wide = self.compute_dtype == "float64"
        has_channels_last = len(inputs.shape) == 4 and self.axis in (-1, 3)
        is_local = not self.synchronized
        return (
            self.is_fused
            and is_tensorflow
            and not is_wide
            and has_channels_last
            and is_local
        )

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
        rank = len(images.shape)
        axes = [axis for axis in range(rank) if axis != self.axis % rank]
        mean, variance = ops.moments(images, axes, synchronized=self.synchronized)
        outputs = ops.batch_normalization(
            images, mean, variance, self.axis, self.beta, self.gamma, self.epsilon
        )
        return ops.cast(outputs, self.compute_dtype)


def make_deterministic():
    """Makes TensorFlow deterministic: results repeat bit for bit."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
        # On GPUs, the fused kernel has no deterministic gradient for fixed statistics.
        BatchNormalization.is_fused = not tf.config.list_physical_devices("GPU")


def batch_norm_layers(model):
    """Returns the list of a model's batch-norm layers."""
    return [layer for layer in model.layers if isinstance(layer, BatchNormalization)]


def fix_statistics(model):
    """Fixes batch-norm statistics: training leaves them alone from then on."""
    for layer in batch_norm_layers(model):
        layer.has_fixed_statistics = True


def has_fixed_statistics(model):
    """Returns whether batch-norm statistics of a model are fixed."""
    return any(layer.has_fixed_statistics for layer in batch_norm_layers(model))


def average_batch_norm(model, images, count):
    """Makes batch-norm statistics the mean of `count` earlier batches and this one."""
    for layer in batch_norm_layers(model):
        layer.momentum = count / (count + 1)
    model(images, training=True)
    for layer in batch_norm_layers(model):
        layer.momentum = BATCH_NORM_MOMENTUM
