"""Tests of `sample_data.py`: same seed, same pictures; whole files; rich content."""

import hashlib
import inspect
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample_data
from sample_data import draw_leaves, main, write_dataset, write_sample_dataset

SCRIPT = Path(sample_data.__file__)


def read_folder(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def luminance_slopes(image):
    """Gradient magnitudes of an RGB image's mean, in steps of 1/255."""
    grey = image.astype(float).mean(axis=2)
    return np.hypot(np.diff(grey, axis=0)[:, 1:], np.diff(grey, axis=1)[1:])


@pytest.fixture(scope="module")
def pictures():
    return np.stack([draw_leaves(128, (0, index)) for index in range(8)])


def test_picture_is_determined_by_size_and_seed(pictures):
    """A resumed run would otherwise make another dataset."""
    np.testing.assert_array_equal(draw_leaves(128, (0, 3)), pictures[3])
    assert pictures.dtype == np.uint8
    assert pictures.shape == (8, 128, 128, 3)


def test_pictures_differ(pictures):
    """Indices, seeds and plain numbers all draw something else."""
    several = [*pictures, draw_leaves(128, (1, 0)), draw_leaves(128, 7)]
    assert len({image.tobytes() for image in several}) == len(several)


def test_values_cover_the_range(pictures):
    """A network that never saw dark or bright areas shifts them."""
    parts = np.histogram(pictures, bins=8, range=(0, 256))[0] / pictures.size
    assert parts.min() > 0.01
    assert parts.max() < 0.35
    assert pictures.std(axis=3).mean() > 3  # not grey


def test_pictures_have_flat_areas_and_sharp_edges(pictures):
    """Noise alone has no flat areas, gradients alone no edges."""
    slopes = np.stack([luminance_slopes(image) for image in pictures])
    assert 0.1 < (slopes < 3).mean() < 0.7
    assert 0.03 < (slopes > 40).mean() < 0.4


def test_power_spectrum_falls_like_that_of_photographs(pictures):
    """Power of photographs is about frequency^-2; noise has 0, plain ramps -4."""
    grey = pictures.mean(axis=3)
    window = np.hanning(128)[:, None] * np.hanning(128)
    grey = (grey - grey.mean((1, 2), keepdims=True)) * window
    power = (np.abs(np.fft.fft2(grey)) ** 2).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    edges = 2.0 ** np.arange(-5, -0.5)  # of octaves, cycles per px
    octaves = [
        power[(frequency >= low) & (frequency < 2 * low)].mean() for low in edges[:-1]
    ]
    slope = np.polyfit(np.arange(len(octaves)), np.log2(octaves), 1)[0]
    assert -2.8 < slope < -1.5


def test_coasts_tear_leaves():
    """A mask of one value would tear nothing, or swallow the leaf."""
    coasts = sample_data._build_coasts(64, np.random.default_rng(0))
    for land, sea in zip(coasts[::2], coasts[1::2], strict=True):
        land, sea = np.asarray(land), np.asarray(sea)
        assert set(np.unique(land)) == {0, 255}
        assert 0.2 < (land == 255).mean() < 0.8
        assert np.all(land ^ sea == 255)


def test_gravel_hides_the_ground():
    """Few stones on one colour are confetti again, not a texture."""
    for seed, side in ((0, 128), (1, 128), (2, 128), (3, 1600)):
        field = sample_data._build_gravel(side, np.random.default_rng(seed))
        counts = np.bincount(np.asarray(field).ravel(), minlength=256)
        assert counts.max() < 0.5 * counts.sum()


def test_light_and_grain_leave_no_picture_flat(monkeypatch):
    """Photographs have next to no flat area; a sky without noise is none."""
    flat = Image.new("RGB", (64, 64), (128, 128, 128))
    for unevenness, grain in ((0.6, 0), (0, 2.0)):
        monkeypatch.setattr(sample_data, "MAX_UNEVENNESS", unevenness)
        monkeypatch.setattr(sample_data, "GRAIN", grain)
        painter = sample_data.Painter(64, np.random.default_rng(0))
        levels = np.asarray(painter._expose(flat)).astype(int)
        assert levels.std() > 0.05
        assert np.all(levels == levels[..., :1])  # of light alone, not of colour


def test_a_changed_recipe_has_another_number():
    """Old pictures would be kept, and a folder hold two recipes."""
    names = list(vars(sample_data))
    names = names[names.index("RECIPE") : names.index("SampleFolders")]
    values = [(name, getattr(sample_data, name)) for name in names]
    digest = hashlib.sha256(repr(values).encode()).hexdigest()[:12]
    assert digest == "6d2b46f6c640", (
        "If other numbers give other pictures, raise RECIPE."
    )


@pytest.mark.parametrize("size", [16, 17, 50])
def test_small_and_odd_sizes(size):
    assert draw_leaves(size, 0).shape == (size, size, 3)


def test_too_small_a_picture_is_refused():
    with pytest.raises(ValueError, match=r"size of at least 16, got 15.*larger"):
        draw_leaves(15, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count of at least 1, got 0"),
        ({"size": 8}, "size of at least 16, got 8"),
        ({"seed": -1}, "seed of at least 0, got -1"),
        ({"workers": 0}, "workers of at least 1, got 0"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(
    tmp_path, arguments, message
):
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "leaves", **arguments)
    assert not (tmp_path / "leaves").exists()


def test_number_of_workers_changes_nothing(tmp_path):
    """Random numbers shared between pictures would depend on who draws first."""
    assert write_dataset(tmp_path / "one", 5, 32, workers=1) == 5
    assert write_dataset(tmp_path / "two", 5, 32, workers=2) == 5
    assert read_folder(tmp_path / "one") == read_folder(tmp_path / "two")
    image = np.asarray(Image.open(tmp_path / "two" / "leaf-00004.png"))
    np.testing.assert_array_equal(image, draw_leaves(32, (0, 4)))


def test_interrupted_run_goes_on(tmp_path):
    """Whole pictures are kept; missing, cut and foreign ones are drawn again."""
    write_dataset(tmp_path, 6, 32, workers=1)
    expected = read_folder(tmp_path)
    kept = tmp_path / "leaf-00000.png"
    written = kept.stat().st_mtime_ns
    (tmp_path / "leaf-00001.png").unlink()
    (tmp_path / "leaf-00002.png").write_bytes(expected["leaf-00002.png"][:300])
    (tmp_path / "leaf-00003.png").write_bytes(b"")
    (tmp_path / "leaf-00004.png").write_bytes(expected["leaf-00005.png"])
    seen = []
    number = write_dataset(
        tmp_path, 6, 32, workers=1, progress=lambda *state: seen.append(state)
    )
    assert number == 4
    assert seen == [(3, 6), (4, 6), (5, 6), (6, 6)]
    assert read_folder(tmp_path) == expected
    assert kept.stat().st_mtime_ns == written


def test_pictures_of_an_older_recipe_are_drawn_again(tmp_path, monkeypatch):
    """A folder of two recipes would be neither, and no seed would make it again."""
    monkeypatch.setattr(sample_data, "RECIPE", sample_data.RECIPE - 1)
    write_dataset(tmp_path, 1, 32, workers=1)
    monkeypatch.undo()
    assert write_dataset(tmp_path, 1, 32, workers=1) == 1
    assert write_dataset(tmp_path, 1, 32, workers=1) == 0


def test_failed_write_leaves_no_picture(tmp_path, monkeypatch):
    """Half a PNG under its final name would be trained on."""

    def write_half(image, file, *args, **kwargs):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="No space left"):
        write_dataset(tmp_path, 1, 32, workers=1)
    assert not list(tmp_path.glob("*.png"))


def test_sample_dataset_layout(tmp_path, monkeypatch):
    """The demo needs training pictures, two unseen ones and one photograph."""
    monkeypatch.setattr(sample_data, "SAMPLE_COUNT", 3)
    folders = write_sample_dataset(tmp_path)
    assert folders == (tmp_path / "sample", tmp_path / "sample_test")
    training, test = map(read_folder, folders)
    assert sorted(training) == [f"leaf-{index:05d}.png" for index in range(3)]
    assert sorted(test) == ["grace_hopper.jpg", "leaf-00000.png", "leaf-00001.png"]
    assert not set(training.values()) & set(test.values())
    for path in (*folders.training.iterdir(), *folders.test.iterdir()):
        with Image.open(path) as image:
            assert min(image.convert("RGB").size) >= 256


def test_sample_dataset_is_written_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_data, "SAMPLE_COUNT", 2)
    write_sample_dataset(tmp_path)
    monkeypatch.setattr(sample_data, "draw_leaves", None)  # a call would fail
    write_sample_dataset(tmp_path)


def test_command_writes_and_reports(tmp_path, capsys):
    argv = ["--count", "3", "--size", "32", "--workers", "1", "--output"]
    assert main([*argv, str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["3 of 3 pictures", f"3 new pictures of 32 px in {tmp_path}"]
    assert main([*argv, str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("0 new pictures")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "15"], "Expected size of at least 16, got 15. Pass a larger size."),
        (["--output", str(SCRIPT)], "Expected a folder"),
        (["--output", str(SCRIPT / "leaves")], "Name another folder."),
    ],
)
def test_mistakes_end_in_one_line(capsys, tmp_path, flags, message):
    assert main(["--output", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise on Windows")
def test_interrupt_says_how_to_go_on(tmp_path):
    """Ctrl-C reaches the workers too; their tracebacks must not hide the advice."""
    command = [sys.executable, str(SCRIPT), "--size", "32", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error.strip() == "Stopped. Run the same command again to go on."
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("flag", ["--count", "--workers"])
def test_bad_flags_are_named(capsys, flag):
    """A message about "count" does not say which flag it was."""
    with pytest.raises(SystemExit, match="2"):
        main([flag, "0"])
    assert f"{flag}: expected a whole number >= 1" in capsys.readouterr().err


@pytest.mark.skipif(
    not Path("/proc/thread-self/children").is_file(), reason="reads Linux's /proc"
)
def test_killed_command_leaves_no_worker_behind(tmp_path):
    """Workers of a killed parent waited for work for ever."""
    command = [sys.executable, str(SCRIPT), "--size", "32", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path)], stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [Path(f"/proc/{child}") for child in children.read_text().split()]
        assert len(workers) >= 3  # and what keeps track of their memory
    finally:
        process.kill()
        process.wait(timeout=30)
    deadline = time.monotonic() + 30
    while any(map(_is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if _is_running(worker)]


def _is_running(process):
    """Tells whether a folder of /proc is that of a process that has not ended."""
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # ended, and not yet waited for


@pytest.mark.parametrize("function", [draw_leaves, write_dataset, write_sample_dataset])
def test_docstring_names_the_arguments(function):
    """A docstring that drifts from its signature misleads."""
    block = function.__doc__.split("Args:")[1].split("Returns:")[0]
    named = re.findall(r"^ {8}(\w+):", block, re.MULTILINE)
    assert named == list(inspect.signature(function).parameters)
