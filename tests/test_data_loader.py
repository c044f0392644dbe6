"""Tests of data_loader.py on tiny images, and on photographs where there are some."""

import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Transpose

import data_loader
from data_loader import Batch, DataLoader, NoImageLeftError, find_dataset
from support.degradation import degrade
from support.image_files import find_images, read_rgb
from support.pixels import to_float, to_uint8

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Keeps `datasets/` out of the user's folders."""
    monkeypatch.chdir(tmp_path)


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), "uint8")
    return Image.fromarray(pixels)


def draw_positions(width, height, number=0):
    """Draws an image whose pixels tell their column, row and the image's number."""
    row, column = np.mgrid[:height, :width]
    pixels = np.stack([column, row, np.full_like(row, number)], axis=-1)
    return Image.fromarray(pixels.astype("uint8"))


def find_crop(hr):
    """Returns (number, left, top, is flipped) of a crop of `draw_positions`."""
    hr = to_uint8(hr).astype(int)
    return hr[0, 0, 2], hr[..., 0].min(), hr[..., 1].min(), hr[0, 0, 0] > hr[0, 1, 0]


def numbers(batch):
    return [find_crop(hr)[0] for hr in batch.hr]


@pytest.fixture
def photos(tmp_path):
    """A folder of six images of various sizes and two that are of no use."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for i, size in enumerate([(40, 32), (33, 47), (32, 32)]):
        draw_positions(*size, i).save(folder / f"{i}.png", compress_level=0)
    lying, exif = draw_positions(64, 40, 3).transpose(Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    lying.save(folder / "3.png", compress_level=0, exif=exif)
    draw_positions(50, 50, 4).save(folder / "deeper" / "4.TIF")
    draw_positions(36, 60, 5).save(folder / "deeper" / "5.webp", lossless=True)
    noise(31, 90).save(folder / "small.png")
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("no image, and not meant to be one")
    return folder


def make_loader(folder, **options):
    return DataLoader(folder, **{"crop_size": 32, **options})


def assert_same(batch, other):
    np.testing.assert_array_equal(batch.lr, other.lr)
    np.testing.assert_array_equal(batch.hr, other.hr)


@pytest.mark.parametrize("blur", [0, 1.5])
def test_pixels_are_the_sources(photos, blur):
    """Blurring or shrinking the whole image once would change each crop's border;
    crops of 3.png were planned for the size that its header tells, before turning."""
    loader, variants = make_loader(photos, blur=blur), set()
    for k in range(20):
        batch = loader.make_batch(k, 8)
        assert len(set(numbers(batch))) == 1  # the source: one image
        for lr, hr in zip(batch.lr, batch.hr, strict=True):
            number, left, top, is_flipped = find_crop(hr)
            [path] = photos.rglob(f"{number}.*")
            crop = read_rgb(path).crop((left, top, left + 32, top + 32))
            pair = [np.array(degrade(crop, blur)), np.array(crop)]
            if is_flipped:
                pair = [side[:, ::-1] for side in pair]
            np.testing.assert_array_equal(lr, to_float(pair[0]))
            np.testing.assert_array_equal(hr, to_float(pair[1]))
            variants.add((number, is_flipped, left > 20))
    assert variants > {(3, True, True), (3, False, True)}


def test_every_position_is_drawn(tmp_path):
    """The source never draws the last two positions."""
    draw_positions(19, 18).save(tmp_path / "a.png")
    batch = make_loader(tmp_path, crop_size=16, augment="none").make_batch(0, 400)
    corners = {find_crop(hr)[1:] for hr in batch.hr}
    assert corners == {(x, y, False) for x in range(4) for y in range(3)}


def test_dihedral_draws_all_eight(tmp_path):
    """A variant was missing, drawn twice, or applied to HR alone."""
    noise(16, 16).save(tmp_path / "a.png")
    loader = make_loader(tmp_path, crop_size=16, blur=0, augment="dihedral")
    batch = loader.make_batch(0, 200)
    assert len({hr.tobytes() for hr in batch.hr}) == 8
    for lr, hr in zip(batch.lr, batch.hr, strict=True):
        shrunk = degrade(Image.fromarray(to_uint8(hr)), 0)
        np.testing.assert_array_equal(to_uint8(lr), shrunk)
    tested = loader.make_batch(0, 200, is_testing=True)
    assert len({hr.tobytes() for hr in tested.hr}) == 1


def test_crops_per_image(photos):
    """The paper's batches held several crops of one image, or images were left out."""

    def draw(crops_per_image, batch_size, k=0):
        loader = make_loader(photos, crops_per_image=crops_per_image)
        return numbers(loader.make_batch(k, batch_size))

    assert len(set(draw(None, 6))) == 1
    assert sorted(draw(1, 6)) == [0, 1, 2, 3, 4, 5]
    twos = draw(2, 5)
    assert (twos[0], twos[2], len(set(twos))) == (twos[1], twos[3], 3)
    assert {draw(None, 1, k)[0] for k in range(60)} == set(range(6))


def test_batches_are_a_function_of_seed_stream_and_k(photos):
    """A resumed run would see other batches, or every batch would be the same."""
    loader = make_loader(photos)
    batch = loader.make_batch(5, 4)
    assert_same(batch, make_loader(photos).make_batch(5, 4))
    others = loader.make_batch(6, 4), loader.make_batch(5, 4, "training")
    seeded = make_loader(photos, seed=1).make_batch(5, 4)
    assert len({other.hr.tobytes() for other in (batch, *others, seeded)}) == 4


def test_parts_of_workers_make_the_whole(photos):
    """Two workers trained on the same crops, or on crops that no single one draws."""
    whole, parts = make_loader(photos, crops_per_image=1).make_batch(0, 6), []
    for index in range(3):
        with make_loader(photos, crops_per_image=1) as loader:
            loader.shard = (index, 3)
            parts.append(loader.load_data(6))
            with pytest.raises(ValueError, match=r"size 7 is not a multiple of .*3"):
                loader.load_data(7)
    assert (parts[0].hr.shape, parts[0].lr.shape) == ((2, 32, 32, 3), (2, 8, 8, 3))
    assert_same(Batch(*map(np.concatenate, zip(*parts, strict=True))), whole)


def test_load_data_is_make_batch(photos, monkeypatch):
    """Batches came in the order in which threads finished, or stale after a seek."""
    with make_loader(photos) as loader:
        made, original = [], loader.make_batch

        def make_batch_at_odd_speed(k, *options):
            made.append(k)
            time.sleep(0.02 * (k % 3 == 0))
            return original(k, *options)

        monkeypatch.setattr(loader, "make_batch", make_batch_at_odd_speed)
        assert_same(loader.load_data(3), original(0, 3))
        time.sleep(0.2)  # memory was filled with batches while training was slow
        assert max(made) == data_loader.BATCHES_AHEAD
        for k in range(1, 8):
            assert_same(loader.load_data(3), original(k, 3))
        assert_same(loader.load_data(2), original(8, 2))
        assert_same(loader.load_data(2, True), original(9, 2, is_testing=True))
        loader.seek(4, "training")
        assert_same(loader.load_data(2, True), original(4, 2, "training", True))
        assert_same(loader.load_data(2), original(5, 2, "training"))


def test_threads_end(photos):
    """Each loader left its threads behind, or an error in one was never seen."""
    before = set(threading.enumerate())
    with make_loader(photos) as loader:
        with pytest.raises(ValueError, match="batch-size 0"):
            loader.load_data(0)
        assert loader.load_data(1).hr.shape == (1, 32, 32, 3)
        threads = set(threading.enumerate()) - before
    assert threads
    for thread in threads:
        thread.join(timeout=5)
        assert not thread.is_alive()


def test_a_script_that_fails_exits_without_keras(photos):
    """It never came back while batches were made, or waited for TensorFlow."""
    script = (
        "import sys, data_loader\n"
        "data_loader.DataLoader(sys.argv[1], crop_size=32).load_data(4)\n"
        "print({'keras', 'tensorflow'} & {*sys.modules})\n"
        "raise KeyboardInterrupt"
    )
    command = [sys.executable, "-c", script, str(photos)]
    run = subprocess.run(command, cwd=REPOSITORY, timeout=20, capture_output=True)
    assert run.stdout.split()[-1:] == [b"set()"]
    assert b"KeyboardInterrupt" in run.stderr


def test_find_images(tmp_path, monkeypatch):
    """Results, hidden files and loops were read, or files left out without a word."""
    folder, other = tmp_path / "photos", tmp_path / "other"
    for name in ("photos/b.JPG", "photos/b_x4.png", "photos/c_x4.png", "photos/d.heic",
                 "photos/e.CR2", "photos/notes.txt", "photos/notes_x4.png",
                 "photos/._a.png", "photos/deep.jpg/a.png", "photos/.hidden/a.png",
                 "photos/images/a.png", "other/g.tga", "other/h.avif"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, target in (("loop", folder), ("link", other), ("again", other),
                         ("gone.png", "nowhere"), ("i.png", "b.JPG")):  # fmt: skip
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    found, skipped = find_images(folder, exclude=[folder / "images"])
    assert found == sorted(found)
    names = " ".join(sorted(path.name for path in found))
    assert names == "a.png b.JPG c_x4.png g.tga h.avif i.png notes_x4.png"
    reasons = sorted(f"{path.name} {reason}"[:11] for path, reason in skipped.items())
    assert reasons == ["d.heic HEIC", "e.CR2 CR2 f", "gone.png no", "pipe.png no"]
    scan = os.scandir

    def refuse_deep(path):  # root may read everything
        if os.path.basename(path) == "deep.jpg":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse_deep)
    assert find_images(folder)[1][folder / "deep.jpg"] == "Permission denied"
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_images(tmp_path / "nowhere")


def test_deleted_and_replaced_while_training(photos, monkeypatch, capsys):
    """A file that went away, shrank or was cut stopped a run, or made it search for
    ever: a header says nothing of the pixels."""
    monkeypatch.setattr(data_loader, "CACHE_BYTES", 0)
    with make_loader(photos, crops_per_image=1) as loader:
        loader.load_data(6)
        wait(loader._ahead.values())
        (photos / "0.png").unlink()
        noise(20, 20).save(photos / "1.png")
        os.truncate(photos / "3.png", 2000)
        draw_positions(90, 33, 2).save(photos / "2.png")  # larger: used as it is
        for _ in range(8):
            assert loader.load_data(6).hr.shape == (6, 32, 32, 3)
        out = capsys.readouterr().out
        assert any("0.png: " in x and "o such file" in x for x in out.splitlines())
        assert "1.png: too small, 20x20 px" in out
        assert out.count("3.png: ") == out.count("file is truncated") == 1
        assert len(out.splitlines()) == 3
        for path in photos.rglob("*.*"):
            path.unlink()
        loader.seek(0)
        for _ in range(2):
            with pytest.raises(NoImageLeftError, match=r"None of the .*o such file"):
                loader.load_data(6)


@pytest.mark.parametrize(("limit", "times"), [(10**6, 1), (12_000, 3)])
def test_images_are_kept_if_all_fit(photos, monkeypatch, limit, times):
    """Memory grew with the dataset, or each crop decoded its image again."""
    opened = []
    read = lambda path: opened.append(path) or read_rgb(path)  # noqa: E731
    monkeypatch.setattr(data_loader.image_files, "read_rgb", read)
    monkeypatch.setattr(data_loader, "CACHE_BYTES", limit)
    loader = make_loader(photos, crops_per_image=2)
    batches = [loader.make_batch(k, 12) for k in range(3)]
    assert len(opened) == 6 * times
    assert_same(batches[2], make_loader(photos, crops_per_image=2).make_batch(2, 12))


def test_test_images_of_any_size(photos, tmp_path, capsys):
    """The source takes just three of one size; others were left out without a word."""
    folder = tmp_path / "test"
    folder.mkdir()
    for name, size in [("b.png", (21, 34)), ("a.tif", (4, 7)), ("c.png", (3, 50))]:
        noise(*size).save(folder / name)
    for name in ("d.png", "e.heic"):
        (folder / name).touch()
    images = make_loader(photos).load_spec_data(folder, tmp_path / "images" / "_src")
    assert [(x.name, x.lr.shape, x.hr.shape) for x in images] == [
        ("a.tif", (1, 1, 3), (4, 4, 3)), ("b.png", (8, 5, 3), (32, 20, 3))]  # fmt: skip
    hr = noise(21, 34).crop((0, 0, 20, 32))
    np.testing.assert_array_equal(images[1].hr, to_float(hr))
    np.testing.assert_array_equal(images[1].lr, to_float(degrade(hr, 1.5)))
    saved = read_rgb(tmp_path / "images" / "_src" / "1.png")
    np.testing.assert_array_equal(to_float(saved), images[1].lr)
    out = capsys.readouterr().out
    assert [out.count(name) for name in ("c.png", "d.png", "e.heic")] == [1, 1, 1]


@pytest.mark.parametrize(("name", "message"), [
    ("nowhere", "There is no folder"), ("notes.txt", "There is no folder"),
    ("empty", "No readable image in"),
])  # fmt: skip
def test_test_images_that_are_not_there(photos, name, message):
    """A typing error was answered by images of the dataset."""
    (photos / "empty").mkdir()
    loader = make_loader(photos)
    with pytest.raises(FileNotFoundError, match=f"{message} .*{name}.*--test-images"):
        loader.load_spec_data(photos / name)


def test_without_test_images_the_dataset_stands_in(photos, monkeypatch, capsys):
    """A new user saw no picture at all."""
    monkeypatch.setattr(data_loader, "STAND_IN_SIDE", 36)
    images = make_loader(photos).load_spec_data()
    assert [x.name for x in images] == ["0.png", "1.png", "2.png"]
    assert [x.hr.shape[:2] for x in images] == [(32, 36), (36, 32), (32, 32)]
    middle = draw_positions(40, 32).crop((2, 0, 38, 32))
    np.testing.assert_array_equal(images[0].hr, to_float(middle))
    assert "training images: there is no datasets/img_test" in capsys.readouterr().out


def test_dataset_by_name_and_by_path(photos, tmp_path):
    """A path such as ../photos was looked up below `datasets/`."""
    (tmp_path / "datasets").mkdir()
    photos.rename(tmp_path / "datasets" / "mine")
    assert find_dataset("mine") == Path("datasets") / "mine"
    assert len(make_loader(f"../{tmp_path.name}/datasets/mine").files) == 6
    for unknown in ("test2017", "", "datasets/mine/0.png"):
        with pytest.raises(FileNotFoundError, match=r"no dataset .* holds mine"):
            DataLoader(unknown)


def test_no_usable_image(photos, tmp_path):
    """The source loops for ever when no image is large enough."""
    message = r"photos is as large as .* 64 px\. .* 4.TIF, 50x50 px\. .* --crop-size"
    with pytest.raises(ValueError, match=message):
        DataLoader(photos, crop_size=64)
    (tmp_path / "empty").mkdir()
    for reason in (r"\n", r"\n  a\.jpg: not an image"):
        with pytest.raises(
            ValueError, match=f"empty: 0 images .*{reason}(.|\n)*--data"
        ):
            DataLoader(tmp_path / "empty")
        (tmp_path / "empty" / "a.jpg").touch()


@pytest.mark.parametrize(("options", "message"), [
    ({"crop_size": 30}, "crop-size 30 is not a multiple of 4"),
    ({"crop_size": 12}, "crop-size 12 is not .* 16"),
    ({"blur": -1}, "blur -1 is not a radius"), ({"blur": float("nan")}, "blur nan"),
    ({"blur": float("inf")}, "blur inf"),
])  # fmt: skip
def test_wrong_options(photos, options, message):
    """A wrong flag was found out only when training had begun."""
    with pytest.raises(ValueError, match=message):
        make_loader(photos, **options)


def test_summary_names_a_few(photos):
    """A stray file ended the training, a thousand of them filled the terminal, or a
    change was not noticed."""
    loader, before = make_loader(photos), make_loader(photos).fingerprint()
    heading, *lines = loader.summary().splitlines()
    assert heading.startswith(f"{photos}: 6 images of at least 32 px, 2 files skipped")
    assert lines[0] == "  small.png: too small, 31x90 px."
    assert re.match("  text.png: .*not an image", lines[1])
    noise(40, 40).save(photos / os.fsdecode(b"caf\xe9.png"))
    for i in range(5):
        (photos / os.fsdecode(b"\xe9%d.png" % i)).touch()
    loader = make_loader(photos)
    assert loader.fingerprint().startswith("7 images")
    noise(41, 40).save(photos / os.fsdecode(b"caf\xe9.png"))
    prints = {before, *(make_loader(photos).fingerprint() for _ in range(2))}
    assert len({*prints, loader.fingerprint()}) == 3
    assert len(loader.summary().splitlines()) == 1 + data_loader.MAX_NAMED


def test_crops_at_several_scales(tmp_path, monkeypatch):
    """Photographs of a few scales teach a network what dense ones look like; too small
    images must still serve, and the batches of one scale must stay what they are."""
    pixels = np.random.default_rng(0).integers(256, size=(100, 80, 3), dtype="uint8")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    options = {"dataset": tmp_path, "crop_size": 32, "blur": 0, "augment": "none"}
    with DataLoader(**options) as loader:
        before = loader.make_batch(5, 12).hr
    with DataLoader(**options, crop_scales=(1, 2)) as loader:
        crops = loader.make_batch(5, 12).hr
    monkeypatch.setattr(data_loader, "CACHE_BYTES", 0)
    with DataLoader(**options, crop_scales=(1, 2)) as loader:
        np.testing.assert_array_equal(loader.make_batch(5, 12).hr, crops)
    reduced = [
        to_uint8(crop)
        for crop, plain in zip(crops, before, strict=True)
        if not np.array_equal(crop, plain)
    ]
    assert 0 < len(reduced) < 12
    half = Image.fromarray(pixels).resize((40, 50), Image.Resampling.LANCZOS)
    windows = [
        np.asarray(half.crop((left, top, left + 32, top + 32)))
        for top in range(50 - 32 + 1)
        for left in range(40 - 32 + 1)
    ]
    for crop in reduced:
        assert any(np.array_equal(crop, window) for window in windows)
    with DataLoader(**options, crop_scales=(3,)) as large:  # 96 px, of 80
        np.testing.assert_array_equal(large.make_batch(5, 12).hr, before)


def test_batches_that_are_not_asked_for_any_more_are_dropped(photos):
    """Two sizes in turns left a hundred batches in memory."""
    with DataLoader(photos, crop_size=16) as loader:
        for _ in range(20):
            loader.load_data(4)
            loader.load_data(2, is_testing=True)
        assert len(loader._ahead) <= 2 * data_loader.BATCHES_AHEAD


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"augment": "rotate"}, "Unknown augment 'rotate'. Known: none, flip"),
        ({"crops_per_image": -1}, "crops_per_image -1"),
        ({"crop_scales": (0, 1)}, "crop_scales"),
        ({"crop_scales": (1, 2.5)}, "crop_scales"),
        ({"crop_scales": ()}, "crop_scales"),
    ],
)
def test_options_out_of_range(photos, option, message):
    """A KeyError, or NumPy's words, would not say which option to change."""
    with pytest.raises(ValueError, match=message):
        DataLoader(photos, crop_size=16, **option)
