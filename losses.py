"""What generated and original images are compared by.

    python -c "import losses; print(losses.CONTENT_LOSSES)"

A content loss and its weight are a row of the table `CONTENT_LOSSES`.
"""

from typing import NamedTuple

from keras import layers, ops

from networks import build_feature_extractor

FEATURE_WEIGHT = 1 / 12.75**2  # = 0.006, paper, Sec. 3.2
TOTAL_VARIATION_WEIGHT = 2e-8  # SRResNet-VGG22; paper, Sec. 3.4


class ContentLoss(NamedTuple):
    """What generated and original images are compared by, and what else counts."""

    layer_name: str | None  # of VGG19; None: the pixels themselves
    weight: float
    imagenet_preprocessing: bool
    adversarial_weight: float = 1e-3  # paper, Sec. 2.2, eq. 3
    pixel_weight: float = 0.0  # of the mean squared error as well; it keeps colors
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
