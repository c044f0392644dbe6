"""Tests of the recipes and the flags: their values, and that each has an effect."""

from pathlib import Path

import keras
import numpy as np
import pytest

import data_loader
import layers
import networks
import srgan
from presets import PRESETS, Recipe, parse_args

FLAGS = ("--dataset=photos", "--content-loss=mse")
TINY = {"num_residual_blocks": 1, "num_filters": 4}
WITHOUT_FLAG = {
    "augment",
    "crop_scales",
    "train_batch_divisor",
    "schedule",
    "generator_rate_factor",
    "discriminator_rate_factor",
    "pretrain_beta_2",
    *TINY,
}


@pytest.fixture
def build_gan(monkeypatch):
    """Builds what a command line asks for, but small."""
    monkeypatch.setattr(networks, "DISCRIMINATOR_BLOCKS", ((1, 2),) * 4)
    for preset in PRESETS.values():
        for key, value in TINY.items():
            monkeypatch.setitem(preset, key, value)
    yield lambda *flags: srgan._build_gan(parse_args([*FLAGS, *flags]))
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_and_valid(name):
    """A slip in a table would be ignored, or fail in the middle of a run."""
    preset = PRESETS[name]
    assert preset.keys() == PRESETS["source"].keys()
    assert preset["augment"] in data_loader.AUGMENTATIONS
    keys = preset.keys() - WITHOUT_FLAG
    flags = [f"--{key.replace('_', '-')}={preset[key]}" for key in keys]
    args = parse_args([*FLAGS, "--preset", name, *flags])
    assert preset.items() <= vars(args).items()


def test_help_shows_the_values_of_the_preset(capsys):
    """Users would not know what a recipe does, or leave at a second screen."""
    with pytest.raises(SystemExit):
        parse_args(["--preset", "paper", "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 60
    helps = {part.split()[0]: " ".join(part.split()) for part in text.split("\n  --")}
    expected = "crop-size 96, batch-size 16, blur 0.0, pretrain-steps 1000000, "
    expected += "train-steps 200000, content-loss vgg54, bn-freeze-step 0"
    for flag, default in map(str.split, expected.split(", ")):
        assert f"(default: {default})" in helps[flag]


def test_the_preset_without_a_dataset(tmp_path, monkeypatch):
    """The first command must do something at once; the source's is its own dataset."""
    monkeypatch.chdir(tmp_path)
    args = parse_args([])
    assert (args.preset, args.is_sample) == ("demo", True)
    Path("datasets/test2017").mkdir(parents=True)
    args = parse_args(["--crop-size", "64"])
    assert (args.preset, args.dataset, args.is_sample) == ("source", "test2017", False)
    assert (args.crop_size, args.train_steps) == (64, 100_000)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_degradation_has_its_own_blur(preset):
    """`--degradation bicubic` blurred, because the preset was written for another."""
    for name, blur in (("source", 1.5), ("bicubic", 0), ("photo", 0)):
        flags = (*FLAGS, "--preset", preset, "--degradation", name)
        assert parse_args(flags).blur == blur
        assert parse_args([*flags, "--blur", "2"]).blur == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "best"), "'best'"),
        (("--content-loss", "vgg99"), "'vgg99'"),
        (("--pretrain-loss", "l3"), "'l3'"),
        (("--batch-size", "0"), "'0' is not a whole number >= 1"),
        (("--blur", "nan"), "'nan' is not a number >= 0"),
        (("--frobnicate",), "--frobnicate"),
        (("--pretrain-steps=0", "--train-steps=0"), "nothing to train"),
        (("--network", "edsr"), "'edsr'"),
        (("--content-loss", "vgg54_pixel"), "'vgg54_pixel'"),
        (("--ema", "1"), "'1' is not a number >= 0 and < 1"),
        (("--ema", "-0.5"), "'-0.5' is not a number >= 0 and < 1"),
        (("--degradation", "jpeg"), "'jpeg'"),
        (("--network", "paper", "--crop-size", "64"), "crops of 96 px. Pass --crop"),
    ],
)
def test_mistakes_get_one_line(capsys, arguments, message):
    """Argparse prints the usage first, which buries the mistake."""
    with pytest.raises(SystemExit, match="2"):
        parse_args([*FLAGS, *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("paper", [1e-4, 1e-4, 1e-5]),
        ("demo", [1e-4, 5.1e-5, 2e-6]),
        ("pretrained", [2e-4, 2e-4, 4e-6]),
    ],
)
def test_learning_rates_of_adversarial_training(build_gan, preset, expected):
    """The discriminator, updated twice per step, would reach its end in the middle."""
    gan = build_gan("--preset", preset)
    gan._set_learning_rates("training", 1000)
    share = PRESETS[preset]["discriminator_rate_factor"]
    share /= PRESETS[preset]["generator_rate_factor"]
    trainers = ((gan.combined, 1, 1), (gan.discriminator_trainer, 2, share))
    for trainer, updates, factor in trainers:
        for step, rate in zip((0, 500, 1000), expected, strict=True):
            trainer.optimizer.iterations.assign(updates * step)
            found = float(np.asarray(trainer.optimizer.learning_rate))
            assert found == pytest.approx(factor * rate, rel=1e-3)


def test_flags_reach_the_networks(build_gan, monkeypatch):
    """A flag that is parsed and not passed on does nothing."""
    calls = []
    monkeypatch.setattr(layers, "make_deterministic", lambda: calls.append(1))
    build_gan()
    assert not calls
    flags = "--discriminator-bn=batch --bn-freeze-step=7 --learning-rate=0.5 --ema=0.9"
    gan = build_gan(*flags.split(), "--precision=mixed_bfloat16", "--deterministic")
    assert len(calls) == 1
    assert gan.recipe == Recipe(discriminator_bn="batch", bn_freeze_step=7, ema=0.9)
    assert float(np.asarray(gan.pretrainer.optimizer.learning_rate)) == 0.5
    assert gan.generator.layers[1].compute_dtype == "bfloat16"
    assert gan.combined.optimizer.ema_momentum == 0.9
