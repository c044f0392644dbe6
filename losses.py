"""The losses of SRGAN: content losses as a table, and what goes beyond the paper.

    python -c "import losses; print(losses.CONTENT_LOSSES)"

The adversarial term is Keras's binary cross-entropy, which finds the logits behind the
discriminator's sigmoid and is computed from them. `low_loss`, `grid_loss` and
`RandomShift` belong to the content loss `texture`, which the shipped SRGANs were
trained with; neither source nor paper has them.
"""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from networks import build_feature_extractor
from support.pixels import SCALE

ADVERSARIAL_WEIGHT = 1e-3  # paper, Sec. 2.2, eq. 3
FEATURE_WEIGHT = 1 / 12.75**2  # = 0.006, paper, Sec. 3.2
TOTAL_VARIATION_WEIGHT = 2e-8  # SRResNet-VGG22; paper, Sec. 3.4
# Keras's losses. "vgg22" compares features, by the mean squared error.
PRETRAIN_LOSSES = {"mse": "mse", "l1": "mae", "vgg22": "mse"}
EPSILON = 1e-5  # keeps `grid_loss` finite on flat images


class ContentLoss(NamedTuple):
    """Weights and settings of a content loss, and of the terms used with it."""

    layer_name: str | None  # of VGG19; `None` compares pixels
    weight: float
    imagenet_preprocessing: bool
    adversarial_weight: float = ADVERSARIAL_WEIGHT
    discriminator_loss: str = "mse"  # source: least squares
    pixel_losses: tuple = ()  # (key of `PIXEL_LOSSES`, weight)
    max_shift: int = 0  # px, of `RandomShift`


CONTENT_LOSSES = {
    # Source: block3_conv3, and no ImageNet preprocessing.
    "source": ContentLoss("block3_conv3", FEATURE_WEIGHT, False),
    "mse": ContentLoss(None, 1.0, False),
    "vgg22": ContentLoss("block2_conv2", FEATURE_WEIGHT, True),
    "vgg54": ContentLoss("block5_conv4", FEATURE_WEIGHT, True),
    # Paper: an adversarial weight of 1e-3, whose gradient is a fortieth of VGG54's.
    "texture": ContentLoss(
        layer_name="block5_conv4",
        weight=FEATURE_WEIGHT,
        imagenet_preprocessing=True,
        adversarial_weight=0.0075,
        discriminator_loss="binary_crossentropy",
        pixel_losses=(("low", 1.0), ("grid", 0.5)),
        max_shift=15,  # one less than the strides of discriminator and VGG54
    ),
}


def find_content_loss(name):
    """Returns the `ContentLoss` of that name.

    Raises:
        ValueError: if there is none.
    """
    if name not in CONTENT_LOSSES:
        known = ", ".join(CONTENT_LOSSES)
        raise ValueError(f"Unknown content_loss {name!r}. Known: {known}.")
    return CONTENT_LOSSES[name]


def check_pretrain_loss(name):
    """Raises `ValueError` unless there is a pre-training loss of that name."""
    if name not in PRETRAIN_LOSSES:
        known = ", ".join(PRETRAIN_LOSSES)
        raise ValueError(f"Unknown pretrain_loss {name!r}. Known: {known}.")


def build_content_features(content_loss, vgg_weights):
    """Builds the VGG19 features that a content loss compares (paper: Sec. 2.2.1).

    Args:
        content_loss: str, a key of `CONTENT_LOSSES`.
        vgg_weights: as for `networks.build_feature_extractor`.

    Returns:
        A frozen `keras.Model`, or `None` if the loss compares pixels.

    Raises:
        ValueError: if there is no such content loss.
    """
    content = find_content_loss(content_loss)
    if content.layer_name is None:
        return None
    return build_feature_extractor(
        content.layer_name, vgg_weights, content.imagenet_preprocessing
    )


class TotalVariation(keras.layers.Layer):
    """Passes images on; adds their total variation to the loss (paper: Sec. 3.4)."""

    def call(self, images):
        rows = ops.sum(ops.abs(images[:, 1:] - images[:, :-1]))
        columns = ops.sum(ops.abs(images[:, :, 1:] - images[:, :, :-1]))
        num_images = ops.cast(ops.shape(images)[0], images.dtype)
        self.add_loss(TOTAL_VARIATION_WEIGHT * (rows + columns) / num_images)
        return images


class RandomShift(keras.layers.Layer):
    """Rolls images by up to `max_shift` px down and to the right.

    The strides of discriminator and VGG19 are multiples of the x4 grid. If they always
    met generated images at the same offset, they would imprint that grid on them.
    """

    def __init__(self, max_shift, **kwargs):
        super().__init__(**kwargs)
        self.max_shift = max_shift

    def build(self, input_shape):
        # "int", 64 bits on TensorFlow: compiled GPU steps cannot read 32-bit ones.
        self.offset = self.add_weight((2,), "zeros", "int", trainable=False)

    def draw(self, seed, step):
        """Sets the offset of a training step, a pure function of the arguments."""
        rng = np.random.default_rng([seed, step])
        self.offset.assign(rng.integers(self.max_shift + 1, size=2))

    def call(self, images):
        if self.max_shift == 0:
            return images
        return ops.roll(images, ops.convert_to_tensor(self.offset), axis=(1, 2))


def low_loss(hr, sr):
    """Returns the mean absolute difference of images reduced to the LR grid.

    Keeps the result consistent with the LR image: the discriminator decides only the
    detail that the LR image lacks.

    Args:
        hr: float `(n, h, w, 3)` in [-1, 1], original images; sides multiples of 4.
        sr: generated images of the same shape and range.
    """
    hr_means = ops.average_pool(hr, SCALE, SCALE)
    sr_means = ops.average_pool(sr, SCALE, SCALE)
    return ops.mean(ops.abs(hr_means - sr_means))


def grid_loss(hr, sr):
    """Returns the mean squared difference of the images' `phase_statistics`.

    A pattern of period 4 px, that of the LR grid, is an easy way to fool a
    discriminator. Original images have no such pattern.

    Args:
        hr: float `(n, h, w, 3)` in [-1, 1], original images; sides multiples of 4,
            at least 16.
        sr: generated images of the same shape and range.
    """
    return ops.mean(ops.square(phase_statistics(hr) - phase_statistics(sr)))


def phase_statistics(images):
    """Measures how differences between neighboring pixels vary over the x4 grid.

    For horizontal and vertical differences and the Laplacian of the channels' mean:
    energy and signed mean at each phase (y mod 4, x mod 4), less their means over the
    phases, relative to the energy of the whole image.

    Args:
        images: float `(n, h, w, 3)`; sides multiples of 4, at least 16.

    Returns:
        float `(n, 4, 4, 6)`: three energies and three means for each phase.
    """
    gray = ops.mean(images, axis=-1)
    inner = gray[:, SCALE:-SCALE, SCALE:-SCALE]  # all pixels that have neighbors
    above = gray[:, SCALE - 1 : -SCALE - 1, SCALE:-SCALE]
    below = gray[:, SCALE + 1 : 1 - SCALE, SCALE:-SCALE]
    left = gray[:, SCALE:-SCALE, SCALE - 1 : -SCALE - 1]
    right = gray[:, SCALE:-SCALE, SCALE + 1 : 1 - SCALE]
    laplacian = inner - (above + below + left + right) / 4
    energies, means = [], []
    for differences in (inner - left, inner - above, laplacian):
        energy = _mean_by_phase(ops.square(differences))
        mean = _mean_by_phase(differences)
        total = ops.mean(energy, axis=(1, 2), keepdims=True) + EPSILON
        energies.append(energy / total - 1)
        mean -= ops.mean(mean, axis=(1, 2), keepdims=True)
        means.append(mean / ops.sqrt(total))
    return ops.stack(energies + means, axis=-1)


def _mean_by_phase(values):
    """Averages `(n, h, w)` over the pixels of each phase: `(n, 4, 4)`."""
    height = ops.shape(values)[1] // SCALE
    width = ops.shape(values)[2] // SCALE
    tiles = ops.reshape(values, (-1, height, SCALE, width, SCALE))
    return ops.mean(tiles, axis=(1, 3))


PIXEL_LOSSES = {"low": low_loss, "grid": grid_loss}
