"""Tests of `sample_data.py`: reproducible pictures, whole files, rich content."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample_data
from sample_data import draw_leaves, main, write_dataset, write_sample_dataset

SCRIPT = Path(sample_data.__file__)


def read_folder(folder):
    return {path.name: path.read_bytes() for path in Path(folder).glob("[!.]*")}


@pytest.fixture(scope="module")
def pictures():
    return np.stack([draw_leaves(128, (0, k)) for k in range(8)])


def test_seed_and_index_determine_picture(pictures):
    """A resumed run would otherwise continue with another dataset, or repeat itself;
    shapes larger than a picture would break its size."""
    for size in (16, 17, 50):
        assert draw_leaves(size, 0).size == (size, size)
    np.testing.assert_array_equal(draw_leaves(128, (0, 3)), pictures[3])
    several = [*pictures, np.asarray(draw_leaves(128, (1, 0)))]
    assert len({picture.tobytes() for picture in several}) == len(several)


def test_values_flat_areas_and_edges(pictures):
    """A network that never saw dark or bright areas would shift them; noise alone has
    no flat areas, and gradients alone have no edges."""
    shares = np.histogram(pictures, bins=8, range=(0, 256))[0] / pictures.size
    assert shares.min() > 0.01
    assert shares.max() < 0.35
    assert pictures.std(axis=3).mean() > 3  # not gray
    gray = pictures.astype(float).mean(axis=3)
    down, across = np.diff(gray, axis=1)[:, :, 1:], np.diff(gray, axis=2)[:, 1:]
    slopes = np.hypot(down, across)
    assert 0.1 < (slopes < 3).mean() < 0.7
    assert 0.03 < (slopes > 40).mean() < 0.4


def test_power_spectrum_falls_like_that_of_photographs(pictures):
    """Power of photographs is about frequency**-2; noise has 0, plain ramps -4."""
    gray = pictures.mean(axis=3)
    window = np.hanning(128)[:, None] * np.hanning(128)
    gray = (gray - gray.mean((1, 2), keepdims=True)) * window
    power = (np.abs(np.fft.fft2(gray)) ** 2).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    lows = 2.0 ** np.arange(-5, -1)  # of octaves, cycles per px
    bands = [(frequency >= low) & (frequency < 2 * low) for low in lows]
    octaves = [power[band].mean() for band in bands]
    slope = np.polyfit(np.log2(lows), np.log2(octaves), 1)[0]
    assert -2.8 < slope < -1.5


def test_interrupted_run_resumes(tmp_path, capsys):
    """Intact pictures must be kept; missing, cut and foreign ones drawn again; the
    command must use its options and report what it did."""
    assert write_dataset(tmp_path, 6, 32, 5) == 6
    expected = read_folder(tmp_path)
    kept = tmp_path / "leaf-00000.png"
    written = kept.stat().st_mtime_ns
    (tmp_path / "leaf-00001.png").unlink()
    (tmp_path / "leaf-00002.png").write_bytes(expected["leaf-00002.png"][:300])
    (tmp_path / "leaf-00003.png").write_bytes(b"")
    (tmp_path / "leaf-00004.png").write_bytes(expected["leaf-00005.png"])
    flags = ["--count", "6", "--size", "32", "--seed", "5"]
    assert main([*flags, "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"Drawing 4 pictures of 32 px in {tmp_path}.\n" in out
    assert "Drew 4 pictures; 2 were already there.\n" in out
    assert read_folder(tmp_path) == expected
    assert kept.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("size", "seed", "recipe"), [(33, 0, 0), (32, 1, 0), (32, 0, 1)]
)
def test_other_pictures_are_drawn_again(tmp_path, monkeypatch, size, seed, recipe):
    """A folder would mix two datasets, and no seed would reproduce it."""
    monkeypatch.setattr(sample_data, "RECIPE", 0)
    write_dataset(tmp_path, 1, 32, 0)
    monkeypatch.setattr(sample_data, "RECIPE", recipe)
    assert write_dataset(tmp_path, 1, size, seed) == 1
    assert write_dataset(tmp_path, 1, size, seed) == 0


def test_sample_dataset(tmp_path, monkeypatch):
    """Test pictures must be unseen, and later starts of the demo must draw nothing."""
    monkeypatch.setattr(sample_data, "SAMPLE_COUNT", 3)
    folders = tmp_path / "sample", tmp_path / "sample_test"
    assert write_sample_dataset(tmp_path) == folders[1]
    training, test = map(read_folder, folders)
    assert sorted(training) == [f"leaf-{k:05d}.png" for k in range(3)]
    assert sorted(test) == ["grace_hopper.jpg", "leaf-00000.png", "leaf-00001.png"]
    for name in ("leaf-00000.png", "leaf-00001.png"):
        seen, unseen = (Image.open(folder / name) for folder in folders)
        assert seen.tobytes() != unseen.tobytes()
    monkeypatch.setattr(sample_data, "draw_leaves", None)  # a call would fail
    assert write_sample_dataset(tmp_path) == folders[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--count", "0"], "--count"),
        (["--seed", "-1"], "--seed"),
        (["--output", str(SCRIPT)], "File exists. Choose another --output"),
        (["--output", str(SCRIPT / "leaves")], "Not a directory. Choose another --out"),
    ],
)
def test_mistakes_end_in_one_line(capsys, options, message):
    """A traceback would hide which option to change."""
    with pytest.raises(SystemExit, match="2"):
        main(options)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
