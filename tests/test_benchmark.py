"""Tests of `benchmark.py`: both sides compute the same thing in different ways."""

import argparse
import json

import numpy as np
import pytest

import benchmark
import layers
import networks
from data_loader import DataLoader

MISTAKES = {"--json .": "directory", "--crop-size 50": "multiple", "--steps 0": ">= 1"}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Both sides are small, and run eagerly: tracing takes most of the time."""
    build_sides = benchmark.build_sides

    def build(content_loss, precision):
        sides = build_sides(content_loss, precision, 1, 4)
        for gan in sides.values():
            for name in ("pretrainer", "discriminator_trainer", "combined"):
                getattr(gan, name).run_eagerly = True
        return sides

    monkeypatch.setattr(benchmark, "build_sides", build)


@pytest.mark.usefixtures("float64")
def test_sides_train_alike_in_float64(image_folder):
    """A trainer that kept the networks it was built with would train the wrong ones."""
    with DataLoader(image_folder, 16) as loader:
        batch = loader.make_batch(0, 2)
    weights = []
    for gan in benchmark.build_sides("mse", "float64").values():
        benchmark.run_step(gan, "pre-training", batch)
        benchmark.run_step(gan, "adversarial", batch)
        weights.append(gan.generator.get_weights() + gan.discriminator.get_weights())
    for ours, source in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, source, rtol=0, atol=1e-8)


def test_outputs_agree_in_float32(image_folder):
    """The fused kernel only runs in float32, and VGG19 had other random weights."""
    sides = benchmark.build_sides("source", "float32").values()
    with DataLoader(image_folder, 16) as loader:
        lr, hr = loader.make_batch(0, 2)
    for name, images in (("generator", lr), ("discriminator", hr), ("vgg", hr)):
        outputs = [gan._infer(getattr(gan, name), images) for gan in sides]
        np.testing.assert_allclose(*outputs, atol=1e-4)


def test_source_side_has_keras_layers_only():
    """Our layers there would compare us with ourselves; a smaller network is faster."""
    full = benchmark.build_source_generator(networks.build_generator())
    assert full.count_params() == 2_042_691
    ours, source = benchmark.build_sides("mse", "mixed_bfloat16").values()
    assert ours.generator.layers[1].compute_dtype == "bfloat16"
    kinds = {type(layer) for layer in ours.generator.layers}
    assert kinds >= {layers.UpsampleConv2D, layers.BatchNormalization}
    for layer in source.generator.layers + source.discriminator.layers:
        assert type(layer).__module__.startswith("keras."), layer
        assert layer.compute_dtype == "float32"


def test_ratio_is_source_by_ours_of_the_same_turn(monkeypatch):
    """A ratio of medians mixes turns, and the first turn contains the tracing."""
    clock = iter(np.cumsum([0, 90, 0, 70, 0, 1, 0, 2, 0, 1, 0, 3, 0, 10, 0, 10]))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(benchmark, "run_step", lambda *_: None)
    args = argparse.Namespace(steps=1, repeats=3)
    results = benchmark.measure({"ours": None, "source": None}, "inference", None, args)
    assert [results[name][0] for name in ("ours", "source", "ratio")] == [1, 3, 2]


def test_command_writes_every_task(tmp_path, capsys):
    """Numbers without machine and options cannot be compared with others."""
    path = tmp_path / "new" / "speed.json"
    flags = "--crop-size 16 --batch-size 1 --repeats 2 --steps 1 --content-loss mse"
    assert benchmark.main([*flags.split(), "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["options"]["crop_size"] == 16
    assert list(report["tasks"]) == list(benchmark.TASKS)
    for results in report["tasks"].values():
        assert all(0 < lower <= m <= upper for m, lower, upper in results.values())
    out = capsys.readouterr().out
    assert all(text in out for text in (*report["machine"], "ratio"))


@pytest.mark.parametrize("flags", MISTAKES)
def test_mistakes_end_in_one_line(flags, capsys, monkeypatch):
    """Minutes of measuring were lost, or a traceback came from inside a layer."""
    monkeypatch.setattr(benchmark, "build_sides", None)  # a call would fail
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(flags.split())
    err = capsys.readouterr().err
    assert MISTAKES[flags] in err
    assert err.count("\n") == 1
