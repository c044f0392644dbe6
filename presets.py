"""Training recipes as tables, and the flags of srgan.py.

    python srgan.py --preset paper --help    # shows the paper's values

A preset's values are the defaults of the flags.
"""

import argparse
import dataclasses
from pathlib import Path

from data_loader import SOURCE_CROP, SOURCE_DATASET, TEST_FOLDER
from losses import CONTENT_LOSSES, PRETRAIN_LOSSES
from networks import NETWORKS
from support.command_line import (
    PRECISIONS,
    ArgumentParser,
    decay,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from support.degradation import DEFAULT_BLURS

PAPER_CROP = 96  # px, the only size that the paper's discriminator takes
SAMPLE_DATASET = "datasets/sample"
SAMPLE_TEST_IMAGES = "datasets/sample_test"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the loops of `SRGAN` train; by default as the source does."""

    # Of the learning rate: "constant" (source), "step" (a tenth in the second half of
    # adversarial training; paper), "cosine", or "late_cosine" (in the second half).
    schedule: str = "constant"
    # Learning rates of adversarial training, as shares of the one of pre-training.
    generator_rate_factor: float = 1.0
    discriminator_rate_factor: float = 1.0
    pretrain_beta_2: float = 0.999  # of Adam; Keras's default
    # Pre-training step from which the generator's batch-norm statistics are fixed, at
    # their average over some batches; 0 never fixes them.
    bn_freeze_step: int = 0
    # What the frozen discriminator normalizes by: "moving" averages (source), "batch",
    # the generated batch's statistics, or "fixed", the average over some batches, which
    # its own steps then use, too.
    discriminator_bn: str = "moving"
    ema: float = 0.0  # decay of the moving average of the generator's weights; 0: none
    seed: int = 0

    @classmethod
    def from_args(cls, args):
        """Takes the fields of the same name from parsed arguments."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(args, name) for name in names})


PRESETS = {
    "source": {
        "crop_size": SOURCE_CROP,
        "batch_size": 16,  # paper, Sec. 3.2
        "crops_per_image": 0,
        "degradation": "source",
        "blur": DEFAULT_BLURS["source"],
        "augment": "flip",
        "crop_scales": (1,),  # each crop is reduced by one of these, drawn at random
        "train_batch_divisor": 1,  # divides the batch size in adversarial training
        "pretrain_steps": 10_000,
        "train_steps": 100_000,
        "pretrain_interval": 100,
        "train_interval": 50,
        "content_loss": "source",
        "pretrain_loss": "mse",
        "network": "source",
        "num_residual_blocks": 16,
        "num_filters": 64,
        "discriminator_bn": "moving",
        "bn_freeze_step": 0,
        "learning_rate": 1e-4,  # paper, Sec. 3.2
        "schedule": "constant",
        "generator_rate_factor": 1.0,
        "discriminator_rate_factor": 1.0,
        "pretrain_beta_2": 0.999,
        "ema": 0.0,
    },
}
# Paper: 96 px crops of 16 distinct images, bicubic without blur (Sec. 3.2).
PRESETS["paper"] = PRESETS["source"] | {
    "crop_size": PAPER_CROP,
    "crops_per_image": 1,
    "degradation": "bicubic",
    "blur": DEFAULT_BLURS["bicubic"],
    "pretrain_steps": 1_000_000,
    "train_steps": 200_000,
    "pretrain_interval": 5_000,
    "train_interval": 1_000,
    "content_loss": "vgg54",
    "network": "paper",
    "schedule": "step",
}
# A network so small that it learns something in the minutes of a demo.
PRESETS["demo"] = PRESETS["source"] | {
    "crop_size": 48,
    "batch_size": 8,
    "crops_per_image": 1,
    "pretrain_steps": 2_400,
    "train_steps": 100,
    "pretrain_interval": 600,
    "train_interval": 50,
    "content_loss": "mse",
    "num_residual_blocks": 4,
    "num_filters": 32,
    "discriminator_bn": "batch",
    "bn_freeze_step": 800,
    "learning_rate": 1e-3,
    "schedule": "cosine",
    "generator_rate_factor": 0.1,
    "discriminator_rate_factor": 0.1,
}
# What the shipped weights were trained with.
PRESETS["pretrained"] = PRESETS["paper"] | {
    "augment": "dihedral",
    "crop_scales": (1, 2, 3),
    "train_batch_divisor": 2,
    "pretrain_steps": 10_500,
    "train_steps": 9_000,
    "pretrain_interval": 500,
    "train_interval": 250,
    "content_loss": "texture",
    "pretrain_loss": "l1",
    "network": "source",
    "discriminator_bn": "fixed",
    "bn_freeze_step": 1_500,
    "learning_rate": 3e-4,
    "schedule": "late_cosine",
    "generator_rate_factor": 2 / 3,
    "discriminator_rate_factor": 1 / 6,  # its two updates per iteration count twice
    "pretrain_beta_2": 0.99,
    "ema": 0.999,
}


def parse_args(argv=None):
    """Reads the command line; the preset's values are the defaults of the rest."""
    first = ArgumentParser(add_help=False)
    first.add_argument("--preset", choices=PRESETS)
    first.add_argument("--dataset")
    first.add_argument("--degradation")
    known, _ = first.parse_known_args(argv)
    dataset = known.dataset
    if dataset is None and Path("datasets", SOURCE_DATASET).is_dir():
        dataset = SOURCE_DATASET
    preset = known.preset or ("source" if dataset else "demo")
    parser = _build_parser()
    parser.set_defaults(preset=preset, dataset=dataset or SAMPLE_DATASET)
    parser.set_defaults(is_sample=dataset is None, **PRESETS[preset])
    if known.degradation in DEFAULT_BLURS:
        parser.set_defaults(blur=DEFAULT_BLURS[known.degradation])
    if dataset is None:
        parser.set_defaults(test_images=SAMPLE_TEST_IMAGES)
    args = parser.parse_args(argv)
    if args.pretrain_steps == args.train_steps == 0:
        parser.error("--pretrain-steps 0 and --train-steps 0 leave nothing to train.")
    if args.network == "paper" and args.train_steps and args.crop_size != PAPER_CROP:
        parser.error(
            f"The paper's discriminator takes crops of {PAPER_CROP} px. Pass "
            f"--crop-size {PAPER_CROP}, or --network source."
        )
    return args


def _build_parser():
    parser = ArgumentParser(
        prog="srgan.py",
        usage="python srgan.py [--dataset PATH] [--preset NAME] [flags]",
        description="Trains SRGAN. Run the same command again to resume.",
    )
    _add_data_flags(parser.add_argument_group("data"))
    _add_training_flags(parser.add_argument_group("training"))
    _add_machine_flags(parser.add_argument_group("machine and files"))
    return parser


def _add_data_flags(group):
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="recipe; other flags override its values",
    )
    group.add_argument(
        "--dataset",
        metavar="PATH",
        help="folder of images, or its name in datasets/",
    )
    group.add_argument(
        "--test-images",
        metavar="PATH",
        default=TEST_FOLDER,
        help="images shown and measured at every report",
    )
    group.add_argument(
        "--crop-size",
        type=positive_int,
        metavar="PX",
        help="side of the HR crops, a multiple of 4",
    )
    group.add_argument(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="crops per step",
    )
    group.add_argument(
        "--crops-per-image",
        type=non_negative_int,
        metavar="N",
        help="crops of a batch from one image; 0: all",
    )
    group.add_argument(
        "--degradation",
        choices=tuple(DEFAULT_BLURS),
        help="how LR images are made: clean downscaling, or realistic photo damage",
    )
    group.add_argument(
        "--blur",
        type=non_negative_float,
        metavar="PX",
        help="Gaussian blur radius before downscaling, in HR px",
    )


def _add_training_flags(group):
    group.add_argument(
        "--pretrain-steps",
        type=non_negative_int,
        metavar="N",
        help="steps of the generator alone; 0 skips them",
    )
    group.add_argument(
        "--train-steps",
        type=non_negative_int,
        metavar="N",
        help="adversarial iterations; 0 skips them",
    )
    group.add_argument(
        "--pretrain-interval",
        type=positive_int,
        metavar="N",
        help="pre-training steps between reports",
    )
    group.add_argument(
        "--train-interval",
        type=positive_int,
        metavar="N",
        help="adversarial iterations between reports",
    )
    group.add_argument(
        "--content-loss",
        choices=tuple(CONTENT_LOSSES),
        help="features or pixels compared by the content loss",
    )
    group.add_argument(
        "--pretrain-loss",
        choices=tuple(PRETRAIN_LOSSES),
        help="loss of pre-training",
    )
    group.add_argument(
        "--network",
        choices=NETWORKS,
        help="generator, and with paper its discriminator, too",
    )
    group.add_argument(
        "--discriminator-bn",
        choices=("moving", "batch", "fixed"),
        help="statistics that the frozen discriminator normalizes by",
    )
    group.add_argument(
        "--bn-freeze-step",
        type=non_negative_int,
        metavar="N",
        help="pre-training step from which batch-norm statistics are fixed; 0: never",
    )
    group.add_argument(
        "--ema",
        type=decay,
        metavar="X",
        help="decay of the moving average of generator weights, used for reports and "
        "checkpoints; use it with --bn-freeze-step; 0: none",
    )
    group.add_argument(
        "--vgg-weights",
        metavar="PATH",
        default="imagenet",
        help="VGG19 weights file; imagenet: downloaded by Keras",
    )
    group.add_argument(
        "--learning-rate",
        type=positive_float,
        metavar="X",
        help="Adam learning rate",
    )


def _add_machine_flags(group):
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="compute dtype",
    )
    group.add_argument(
        "--seed",
        type=non_negative_int,
        metavar="N",
        default=0,
        help="random seed",
    )
    group.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="repeat bit for bit, a little slower",
    )
    group.add_argument(
        "--weights-dir",
        metavar="PATH",
        type=Path,
        default="weights",
        help="folder for checkpoints",
    )
    group.add_argument(
        "--images-dir",
        metavar="PATH",
        type=Path,
        default="images",
        help="folder for images",
    )
    group.add_argument(
        "--initial-weights",
        metavar="PATH",
        help="generator weights, or name of shipped ones, to start from",
    )
    group.add_argument(
        "--restart",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="start over; the old state is moved, not deleted",
    )
