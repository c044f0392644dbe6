"""Training recipes as tables, and the flags of srgan.py.

python srgan.py --preset paper --help    # shows the paper's values
"""

import argparse
from pathlib import Path

from data_loader import SOURCE_CROP, SOURCE_DATASET, TEST_FOLDER
from support.command_line import (
    PRECISIONS,
    ArgumentParser,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from support.degradation import DEFAULT_BLURS

PAPER_CROP = 96  # px, the only size that the paper's discriminator takes
SAMPLE_DATASET, SAMPLE_TEST_IMAGES = "datasets/sample", "datasets/sample_test"

PRESETS = {
    "source": {
        "crop_size": SOURCE_CROP,
        "batch_size": 16,  # paper, Sec. 3.2
        "crops_per_image": 0,
        "degradation": "source",
        "blur": DEFAULT_BLURS["source"],
        "augment": "flip",
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
        "train_rate_factor": 1.0,  # adversarial training's learning rate, as a share
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
    "train_rate_factor": 0.1,
}
# What the shipped weights were trained with.
PRESETS["pretrained"] = PRESETS["paper"] | {
    "augment": "dihedral",
    "pretrain_steps": 6_000,
    "train_steps": 5_000,
    "pretrain_interval": 500,
    "train_interval": 250,
    "content_loss": "vgg54_pixel",
    "network": "source",
    "discriminator_bn": "fixed",
    "bn_freeze_step": 1_500,
    "learning_rate": 3e-4,
    "schedule": "cosine",
    "train_rate_factor": 1 / 3,
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
    add = parser.add_argument_group("data").add_argument
    add("--preset", choices=PRESETS, help="recipe; other flags override its values")
    add("--dataset", metavar="PATH", help="folder of images, or its name in datasets/")
    add("--test-images", metavar="PATH", default=TEST_FOLDER,
        help="images shown and measured at every report")  # fmt: skip
    add("--crop-size", type=positive_int, metavar="PX",
        help="side of the HR crops, a multiple of 4")  # fmt: skip
    add("--batch-size", type=positive_int, metavar="N", help="crops per step")
    add("--crops-per-image", type=non_negative_int, metavar="N",
        help="crops of a batch from one image; 0: all")  # fmt: skip
    add(
        "--degradation",
        choices=DEFAULT_BLURS,
        help="LR images: blurred and reduced, or damaged as photographs are",
    )
    add("--blur", type=non_negative_float, metavar="PX",
        help="Gaussian blur radius before downscaling, in HR px")  # fmt: skip

    add = parser.add_argument_group("training").add_argument
    add("--pretrain-steps", type=non_negative_int, metavar="N",
        help="steps of the generator alone; 0 skips them")  # fmt: skip
    add("--train-steps", type=non_negative_int, metavar="N",
        help="adversarial iterations; 0 skips them")  # fmt: skip
    add("--pretrain-interval", type=positive_int, metavar="N",
        help="pre-training steps between reports")  # fmt: skip
    add("--train-interval", type=positive_int, metavar="N",
        help="adversarial iterations between reports")  # fmt: skip
    add("--content-loss", choices=("source", "mse", "vgg22", "vgg54", "vgg54_pixel"),
        help="VGG19 features, or pixels, that images are compared by")  # fmt: skip
    add("--pretrain-loss", choices=("mse", "vgg22"), help="loss of pre-training")
    add("--network", choices=("source", "paper", "srcnn", "espcn"),
        help="generator, and with paper its discriminator, too")  # fmt: skip
    add("--discriminator-bn", choices=("moving", "batch", "fixed"),
        help="statistics that the frozen discriminator normalizes by")  # fmt: skip
    add("--bn-freeze-step", type=non_negative_int, metavar="N",
        help="pre-training step from which the generator's batch-norm statistics are "
        "fixed; 0: never")  # fmt: skip
    add("--vgg-weights", metavar="PATH", default="imagenet",
        help="VGG19 weights file; imagenet: downloaded by Keras")  # fmt: skip
    add("--learning-rate", type=positive_float, metavar="X", help="Adam learning rate")

    add = parser.add_argument_group("machine and files").add_argument
    add("--precision", choices=PRECISIONS, default="float32", help="compute dtype")
    add("--seed", type=non_negative_int, metavar="N", default=0, help="random seed")
    add("--deterministic", action=argparse.BooleanOptionalAction, default=False,
        help="repeat bit for bit, a little slower")  # fmt: skip
    add("--weights-dir", metavar="PATH", type=Path, default="weights",
        help="folder for checkpoints")  # fmt: skip
    add("--images-dir", metavar="PATH", type=Path, default="images",
        help="folder for pictures")  # fmt: skip
    add("--initial-weights", metavar="PATH",
        help="generator weights, or name of shipped ones, to start from")  # fmt: skip
    add("--restart", action=argparse.BooleanOptionalAction, default=False,
        help="start over; the old state is moved, not deleted")  # fmt: skip
    return parser
