"""Tests of the benchmark: both sides compute the same, and operations are counted."""

import functools
import json
import subprocess

import numpy as np
import pytest
from PIL import Image

import benchmark
import networks
from data_loader import SOURCE_BLUR, DataLoader, degrade, to_uint8
from quiet import keras

TINY = {"num_residual_blocks": 1, "num_filters": 4}
SMALL = ("--crop-size", "16", "--batch-size", "1", "--repeats", "1", "--steps", "1")


@pytest.fixture
def small(monkeypatch):
    """Small networks, matrices and folders."""
    build_sides = functools.partial(benchmark.build_sides, **TINY)
    monkeypatch.setattr(benchmark, "build_sides", build_sides)
    monkeypatch.setattr(benchmark, "PRODUCT_SIDE", 64)
    monkeypatch.setattr(benchmark, "PRODUCT_SECONDS", 0)
    monkeypatch.setattr(benchmark, "FEW_FILES", 9)
    monkeypatch.setattr(benchmark, "MANY_FILES", 20)
    monkeypatch.setattr(benchmark, "DATA_BATCHES", 2)
    # Its processes would have the real networks.
    peaks = {benchmark.OURS: 1.0, benchmark.SOURCE: 2.0}
    monkeypatch.setattr(benchmark, "measure_memory", lambda arguments: peaks)


def randomise(gan):
    random = np.random.default_rng(0)
    for model in (gan.generator, gan.discriminator):
        for variable in model.weights:
            value = 0.3 * random.standard_normal(variable.shape)
            is_variance = variable.name == "moving_variance"
            variable.assign(1 + np.abs(value) if is_variance else value)


def draw_batch():
    random = np.random.default_rng(1)
    hr = random.uniform(-1, 1, (2, 16, 32, 3)).astype("float32")
    return benchmark.Batch(hr[:, ::4, ::4], hr)


def test_both_sides_compute_the_same():
    """A comparison of speed means nothing where the results differ."""
    args = benchmark.parse_args(["--content-loss", "mse"])
    sides = benchmark.build_sides(args, **TINY)
    ours, theirs = sides.values()
    randomise(ours)
    theirs.generator.set_weights(ours.generator.get_weights())
    theirs.discriminator.set_weights(ours.discriminator.get_weights())
    batch = draw_batch()
    for name, images in (("generator", batch.lr), ("discriminator", batch.hr)):
        outputs = [gan._infer(getattr(gan, name), images) for gan in (ours, theirs)]
        np.testing.assert_allclose(*outputs, atol=1e-4)
    losses = [
        gan.pre_train_on_batch(*batch)
        | gan.train_discriminator_on_batch(*batch)
        | gan.train_generator_on_batch(*batch)
        for gan in (ours, theirs)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_source_side_is_plain():
    """Our own layers on the source's side would compare us with ourselves."""
    args = benchmark.parse_args(["--content-loss", "source"])
    ours, source = benchmark.build_sides(args, **TINY).values()
    for model in (source.generator, source.discriminator):
        for layer in model.layers:
            assert type(layer).__module__.startswith("keras."), layer
    kernels = [gan.vgg.get_weights()[0] for gan in (ours, source)]
    np.testing.assert_array_equal(*kernels)


def test_multiply_adds_are_counted_by_hand():
    """5 x 7 px, 3 channels: 3x3 to 8; then to 2 channels on 10 x 14 px."""
    images = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(8, 3, padding="same")(images)
    first = 35 * 9 * 3 * 8
    plain = keras.layers.Conv2D(2, 3, padding="same")(
        keras.layers.UpSampling2D(2)(features)
    )
    folded = networks.UpsampleConv2D(2, 3)(features)
    rgb = networks.UpsampleConv2D(2, 9)(features)
    for outputs, second in (
        (features, 0),
        (plain, 140 * 9 * 8 * 2),
        (folded, 35 * 16 * 8 * 2),  # 16 for each input pixel, where there were 36
        (rgb, 35 * 4 * 25 * 8 * 2),  # 25 for each output pixel, where there were 81
    ):
        model = keras.Model(images, outputs)
        count = benchmark.count_multiply_adds(model, (2, 5, 7, 3))
        assert count == 2 * (first + second)


def test_strides_and_dense_layers_are_counted():
    """A discriminator counted at full size would seem sixteen times as fast."""
    images = keras.Input((None, None, 3))
    features = keras.layers.Conv2D(4, 3, strides=2, padding="same")(images)
    model = keras.Model(images, keras.layers.Dense(5)(features))
    count = benchmark.count_multiply_adds(model, (1, 5, 8, 3))
    assert count == 3 * 4 * (9 * 3 * 4) + 3 * 4 * (4 * 5)


@pytest.mark.usefixtures("small")
def test_report_names_everything(tmp_path, capsys):
    """Numbers without machine, versions and spread cannot be compared."""
    path = tmp_path / "speed.json"
    assert benchmark.main([*SMALL, "--content-loss", "mse", "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert len(report["rows"]) == 2 * len(benchmark.TASKS)
    for row in report["rows"]:
        assert row["images_per_second"] > 0
        assert row["gigaflop"] > 0
        assert ("ratio" in row) == (row["side"] == benchmark.OURS)
        assert (row["waited"] > 0) == (row["task"] == "loading")
    assert set(report["machine"]) >= {"processor", "cores", "keras", "backend"}
    out = capsys.readouterr().out
    assert "the source's way in float32" in out
    assert "x as fast" in out
    assert "Peak memory of a process on the host, the source's way: 2 MB" in out


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("side", benchmark.SIDES)
def test_one_side_prints_its_memory_alone(side, capsys, monkeypatch):
    """Both sides in one process would share one peak."""
    sides = []
    monkeypatch.setattr(benchmark, "run_step", lambda gan, *_: sides.append(type(gan)))
    assert benchmark.main([*SMALL, "--content-loss", "mse", "--side", side]) == 0
    assert json.loads(capsys.readouterr().out) > 10
    plain = side == "source"
    assert {issubclass(kind, benchmark.SourceWay) for kind in sides} == {plain}


@pytest.mark.parametrize("code", [0, 1])
def test_memory_is_measured_in_other_processes(code, capsys, monkeypatch):
    """A side that fails must not cost the figures of the other."""
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, code, "12.5\n", "no memory left")

    monkeypatch.setattr(subprocess, "run", run)
    expected = None if code else 12.5
    peaks = benchmark.measure_memory(["--crop-size", "16"])
    assert peaks == {benchmark.OURS: expected, benchmark.SOURCE: expected}
    ends = [command[-4:] for command in commands]
    assert ends == [["--crop-size", "16", "--side", side] for side in benchmark.SIDES]
    assert ("no memory left" in capsys.readouterr().out) == bool(code)


def test_an_unwritable_result_is_named_before_the_work(tmp_path, capsys, monkeypatch):
    """Minutes of measuring were lost."""
    monkeypatch.setattr(benchmark, "measure_memory", None)  # a call would fail
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--json", str(tmp_path)])
    assert "Pass another --json" in capsys.readouterr().err


def test_the_ceiling_is_a_rate_of_a_long_product(monkeypatch):
    """A product that ends before it is seen to run would measure the waiting."""
    times = {2048: 0.001, 4096: 0.004, 8192: 0.02}
    monkeypatch.setattr(benchmark, "_time_product", lambda side, precision: times[side])
    assert benchmark.measure_ceiling("float32") == pytest.approx(2 * 8192**3 / 0.02)


@pytest.mark.usefixtures("small")
def test_data_is_measured(capsys):
    """Reading slower than training leaves the processor idle, unseen."""
    assert benchmark.main([*SMALL, "--data"]) == 0
    out = capsys.readouterr().out
    for text in (
        "source's way, one thread, 9 files",
        "by threads, 20 files",
        "% of time waited",
    ):
        assert text in out


def test_plain_loading_is_the_loaders(tmp_path):
    """Both ways of reading must make the same kind of crops."""
    benchmark.write_images(tmp_path, 9)
    with DataLoader(tmp_path, crop_size=32) as loader:
        ours = loader.make_batch(0, 3)
        paths = [file.path for file in loader.files]
    random = np.random.default_rng(0)
    theirs = benchmark.load_in_the_training_thread(paths, random, 3, 32)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert mine.dtype == other.dtype
    for batch in (ours, theirs):
        for lr, hr in zip(*batch, strict=True):
            lr, hr = to_uint8(lr), to_uint8(hr)
            made = np.asarray(degrade(Image.fromarray(hr), SOURCE_BLUR)).astype(int)
            # A flip comes after the blur, whose rounding is not symmetric.
            assert np.abs(made - lr).max() <= 2
    assert len(paths) == 9


def test_crop_sizes_that_do_not_fit_are_named(capsys):
    """They would end in a traceback inside a layer."""
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--crop-size", "18"])
    assert "multiple of 4" in capsys.readouterr().err
