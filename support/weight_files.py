"""Generator weights of every kind: our own, Keras's, the source script's, shipped ones.

    python -c "from support import weight_files; print(weight_files.list_shipped())"

A weights file of ours names the network it belongs to.
"""

from pathlib import Path

import keras

from networks import (
    DiscriminatorNetwork,
    Network,
    build_discriminator,
    build_network,
)
from support.checkpoints import (
    GENERATOR_FILE,
    NETWORK_ATTRIBUTE,
    STATE_FILE,
    find_newest,
    list_steps,
    load_weights,
    read_attributes,
    read_state,
)

DEFAULT_FOLDER = Path("weights/training_checkpoints")
DEFAULT_SHIPPED = "srgan-bicubic"  # of `upscale.py`
DEFAULT_FOR_JPEG = "srgan-photo"  # the other does not know JPEG blocks
SHIPPED_FOLDER = Path(__file__).parent.parent / "weights" / "pretrained"


def load_generator(weights, precision="float32"):
    """Builds the generator that some weights belong to, and loads them.

    `weights` is the path of a folder of checkpoints, one checkpoint, a `.weights.h5` or
    `.keras` file or a TensorFlow checkpoint of the source script, or the name of
    shipped weights. Returns `(generator, path)`, where `path` is what was read.
    """
    path = find_weights(weights)
    prefix = find_tensorflow_checkpoint(path)
    description = read_attributes(path).get(NETWORK_ATTRIBUTE, {})
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        generator = build_network(_describe(Network, description, path))
    finally:
        keras.config.set_dtype_policy(policy)
    if prefix:
        _load_tensorflow_checkpoint(generator, prefix)
    else:
        load_weights(generator, path)
    return generator, path


def load_discriminator(path, generator):
    """Builds the discriminator that was saved beside a generator, and loads it."""
    description = read_attributes(path).get(NETWORK_ATTRIBUTE)
    if description is None:  # files of earlier versions
        description = {"num_filters": generator.network.num_filters}
    network = _describe(DiscriminatorNetwork, description, path)
    discriminator = build_discriminator(network.num_filters, network.crop_size)
    load_weights(discriminator, path)
    return discriminator


def _describe(kind, description, path):
    try:
        return kind(**description)
    except TypeError as error:
        raise ValueError(
            f"{path} belongs to an unknown network: {description}."
        ) from error


def list_shipped():
    """Returns a dict of name to path of the weights that come with the suite."""
    files = sorted(SHIPPED_FOLDER.glob("*.weights.h5"))
    return {file.name.removesuffix(".weights.h5"): file for file in files}


def find_weights(weights):
    """Returns the file, or the TensorFlow checkpoint, meant by `weights`."""
    shipped, path = list_shipped(), Path(weights)
    if path.is_dir():
        newest, _ = find_newest(path)
        if newest is None and (path / STATE_FILE).exists():
            read_state(path)  # raises `ValueError` if the checkpoint is damaged
        file = (newest or path) / GENERATOR_FILE
        if file.is_file():
            return file
    if find_tensorflow_checkpoint(path):
        return path
    if not path.is_file():
        if str(weights) in shipped:
            return shipped[str(weights)]
        place = f"in the folder {path}" if path.is_dir() else weights
        raise FileNotFoundError(
            f"There are no weights {place}. Name a file or a folder of checkpoints; "
            f"shipped are {', '.join(shipped)}."
        )
    if not path.name.endswith((".weights.h5", ".keras")):
        raise ValueError(f"{path} does not end in .weights.h5 or .keras.")
    return path


def find_tensorflow_checkpoint(path):
    """Returns the prefix of a TensorFlow checkpoint at `path`, or `None`.

    Source: `model.save_weights("./weights/training_checkpoints/")` of Keras 2 writes
    `.index` and `.data-*`. Checkpoints of ours in the same folder are newer.
    """
    if not Path(path).is_dir():
        return str(path) if Path(f"{path}.index").is_file() else None
    files = [] if list_steps(path) else Path(path).glob("*.index")
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    return newest and str(newest).removesuffix(".index")


def _load_tensorflow_checkpoint(generator, prefix):
    """Loads what Keras 2 wrote: keys `layer_with_weights-<N>/<variable>/...`."""
    import tensorflow as tf

    try:
        # `load_checkpoint` mistakes an empty prefix for a folder of checkpoints.
        reader = tf.compat.v1.train.NewCheckpointReader(prefix)
        layers = [layer for layer in generator.layers if layer.weights]
        for number, layer in enumerate(layers):
            for variable in layer.weights:
                name = f"layer_with_weights-{number}/{variable.name}"
                key = f"{name}/.ATTRIBUTES/VARIABLE_VALUE"
                variable.assign(reader.get_tensor(key))
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{prefix} is a damaged TensorFlow checkpoint, or one of another network."
        ) from error
