"""Tests of data_loader.py on tiny images, and on photographs where there are some."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import data_loader
from data_loader import DataLoader, open_image, scan_folder, to_float, to_uint8

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Keeps stored scans and `datasets/` out of the user's folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), "uint8")
    return Image.fromarray(pixels)


@pytest.fixture
def photos(tmp_path):
    """A folder of six images of various sizes and two that are of no use."""
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for i, (width, height) in enumerate([(40, 32), (33, 47), (32, 32), (64, 40)]):
        noise(width, height, seed=i).save(folder / f"{i}.png")
    noise(50, 50, seed=4).save(folder / "deeper" / "4.JPG")
    noise(36, 60, seed=5).save(folder / "deeper" / "5.webp", lossless=True)
    noise(31, 90).save(folder / "small.png")
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("no image, and not meant to be one")
    return folder


def make_loader(folder, **options):
    loader = DataLoader(folder, **{"crop_size": 32, **options})
    loader.messages = []
    loader.on_skip = lambda path, reason: loader.messages.append((path, reason))
    return loader


def assert_same(batch, other):
    np.testing.assert_array_equal(batch.lr, other.lr)
    np.testing.assert_array_equal(batch.hr, other.hr)


# Ranges and pixel values


def test_ranges_there_and_back():
    """All 256 levels survived neither truncation nor a wrong range."""
    levels = np.arange(256, dtype="uint8")
    floats = to_float(levels)
    assert floats.dtype == "float32"
    np.testing.assert_array_equal(floats, levels.astype("float32") / 127.5 - 1.0)
    np.testing.assert_array_equal(to_uint8(floats), levels)
    np.testing.assert_array_equal(to_uint8(floats - 0.003), levels)


def test_to_uint8_clips():
    """A value just above 1 wrapped around to black."""
    np.testing.assert_array_equal(to_uint8(np.array([-1.5, 1.01, 9.0])), [0, 255, 255])


@pytest.mark.parametrize("blur", [0, 1.5])
def test_pixels_are_the_sources(photos, blur):
    """Blurring or shrinking the whole image once would change each crop's border."""
    loader = make_loader(photos, blur=blur, augment="flip")
    batch = loader.make_batch(3, 8)
    plan = loader._plan_batch(3, 8, is_testing=False)
    assert len({crop.file_index for crop in plan}) == 1  # the source: one image
    image = Image.open(loader.files[plan[0].file_index].path).convert("RGB")
    for row, crop in enumerate(plan):
        left = int(crop.left * (image.width - 31))
        top = int(crop.top * (image.height - 31))
        hr = image.crop((left, top, left + 32, top + 32))
        blurred = hr.filter(ImageFilter.GaussianBlur(blur)) if blur else hr
        lr = blurred.resize((8, 8), Image.BICUBIC)
        if crop.transpose is not None:
            hr, lr = (x.transpose(Image.FLIP_LEFT_RIGHT) for x in (hr, lr))
        np.testing.assert_array_equal(batch.hr[row], to_float(hr))
        np.testing.assert_array_equal(batch.lr[row], to_float(lr))
    assert {crop.transpose for crop in plan} == {None, Image.FLIP_LEFT_RIGHT}


@pytest.mark.parametrize("radius", [0, 0.4, 0.99, 1, 1.5, 2, 2.7, 5.2])
@pytest.mark.parametrize("content", ["noise", "steps"])
def test_crops_of_one_image_see_nothing_outside(radius, content):
    """An image blurred once let each crop see beyond its edges, or left seams."""
    image = noise(150, 128) if content == "noise" else noise(9, 8).resize((150, 128), 0)
    corners = [(0, 0), (22, 0), (3, 0), *[(7, 0)] * 40]
    calls = []

    class Counted(ImageFilter.GaussianBlur):
        def filter(self, picture):
            calls.append(picture.size)
            return super().filter(picture)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFilter, "GaussianBlur", Counted)
        pairs = data_loader.cut_crops(image, corners, 128, radius)
    expects_once = 0 < radius < 3
    assert ((150, 128) in calls) == expects_once
    for (hr, lr), (left, top) in zip(pairs, corners, strict=True):
        crop = image.crop((left, top, left + 128, top + 128))
        np.testing.assert_array_equal(hr, crop)
        np.testing.assert_array_equal(lr, data_loader.degrade(crop, radius))


@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_batches_of_overlapping_crops_are_the_sources(tmp_path, shard):
    """Rows, flips and workers' parts were mixed up, or a file's stand-in missed."""
    (tmp_path / "images").mkdir()
    noise(160, 140).save(tmp_path / "images" / "a.png")
    noise(150, 170, seed=1).save(tmp_path / "images" / "b.png")
    loader = make_loader(
        tmp_path / "images", crop_size=128, crops_per_image=8, augment="dihedral"
    )
    plan = loader._plan_batch(0, 16, is_testing=False)
    assert [crop.file_index for crop in plan[::8]] in ([0, 1], [1, 0])
    (tmp_path / "images" / "a.png").write_bytes(b"damaged since")
    image = open_image(tmp_path / "images" / "b.png")  # takes a.png's place
    batch = loader.make_batch(0, 16, shard=shard)
    part = np.split(np.arange(16), shard[1])[shard[0]]
    assert len(batch.hr) == len(part)
    for hr, lr, row in zip(batch.hr, batch.lr, part, strict=True):
        crop = plan[row]
        left, top = int(crop.left * 23), int(crop.top * 43)
        cut = image.crop((left, top, left + 128, top + 128))
        shrunk = data_loader.degrade(cut, 1.5)
        if crop.transpose is not None:
            cut, shrunk = (
                cut.transpose(crop.transpose),
                shrunk.transpose(crop.transpose),
            )
        np.testing.assert_array_equal(hr, to_float(cut))
        np.testing.assert_array_equal(lr, to_float(shrunk))


def test_every_position_is_drawn(tmp_path):
    """The source never draws the last two positions."""
    column, row = np.meshgrid(np.arange(19), np.arange(18))
    pixels = np.stack([column, row, row], -1).astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    hr = make_loader(tmp_path, crop_size=16, augment="none").make_batch(0, 400).hr
    corners = {tuple(corner) for corner in to_uint8(hr[:, 0, 0, :2])}
    assert corners == {(left, top) for left in range(4) for top in range(3)}


def test_dihedral_draws_all_eight(tmp_path):
    """A variant missing, drawn twice, or applied to HR alone."""
    noise(16, 16).save(tmp_path / "a.png")
    loader = make_loader(tmp_path, crop_size=16, blur=0, augment="dihedral")
    batch = loader.make_batch(0, 200)
    assert len({hr.tobytes() for hr in batch.hr}) == 8
    for lr, hr in zip(batch.lr, batch.hr, strict=True):
        shrunk = data_loader.degrade(Image.fromarray(to_uint8(hr)), 0)
        difference = np.abs(to_uint8(lr).astype(int) - np.asarray(shrunk))
        assert difference.max() <= 1  # Pillow rounds between its two passes
    assert len({hr.tobytes() for hr in loader.make_batch(0, 200, True).hr}) == 1


# Which images


def test_crops_per_image(photos):
    """The paper's batches held several crops of one image."""

    def images(crops_per_image, batch_size):
        loader = make_loader(photos, crops_per_image=crops_per_image)
        return [crop.file_index for crop in loader._plan_batch(0, batch_size, False)]

    assert len(set(images(None, 6))) == 1
    assert sorted(images(1, 6)) == [0, 1, 2, 3, 4, 5]
    twos = images(2, 5)
    assert len(set(twos)) == 3
    assert twos[0] == twos[1]
    assert twos[2] == twos[3]
    assert sorted(np.bincount(images(1, 15))) == [2, 2, 2, 3, 3, 3]


def test_every_image_is_drawn(photos):
    """An image of just the crop's size was refused."""
    loader = make_loader(photos)
    plans = [loader._plan_batch(k, 1, False)[0] for k in range(100)]
    assert {plan.file_index for plan in plans} == set(range(6))


def test_cost_of_a_plan_does_not_grow_with_the_files(photos):
    """Drawing with `rng.choice` takes milliseconds a batch from a million files."""
    loader = make_loader(photos, crops_per_image=1)
    loader.files = range(10**9)
    assert len({crop.file_index for crop in loader._plan_batch(0, 16, False)}) == 16


# Determinism


def test_loaders_agree_and_batches_differ(photos):
    """A resumed run would see other batches, or every batch would be the same."""
    first, second = make_loader(photos), make_loader(photos)
    assert_same(first.make_batch(5, 4), second.make_batch(5, 4))
    assert not np.array_equal(first.make_batch(6, 4).hr, first.make_batch(5, 4).hr)
    other_seed = make_loader(photos, seed=1)
    assert not np.array_equal(other_seed.make_batch(5, 4).hr, first.make_batch(5, 4).hr)


def test_load_data_is_make_batch(photos, monkeypatch):
    """Batches came in the order in which threads finished, or stale after a seek."""
    with make_loader(photos) as loader:
        original = loader.make_batch

        def make_batch_at_odd_speed(k, *options):
            time.sleep(0.01 * (k % 3 == 0))
            return original(k, *options)

        monkeypatch.setattr(loader, "make_batch", make_batch_at_odd_speed)
        for k in range(8):
            assert_same(loader.load_data(3), original(k, 3))
        assert_same(loader.load_data(2), original(8, 2))
        assert_same(loader.load_data(2, True), original(9, 2, True))
        loader.seek(4)
        assert_same(loader.load_data(2, True), original(4, 2, True))
        loader.shard = (1, 2)
        assert_same(loader.load_data(2, True), original(5, 2, True))
        assert loader.position == 6


def test_parts_of_workers_make_the_whole(photos):
    """Two workers trained on the same crops, or on crops that no single one draws."""
    loader = make_loader(photos, crops_per_image=1)
    whole = loader.make_batch(2, 6)
    parts = []
    for index in range(3):
        loader.shard = (index, 3)
        parts.append(loader.make_batch(2, 6))
    assert parts[0].hr.shape == (2, 32, 32, 3)
    assert parts[0].lr.shape == (2, 8, 8, 3)
    assert_same(
        data_loader.Batch(*(np.concatenate(x) for x in zip(*parts, strict=True))), whole
    )
    with pytest.raises(ValueError, match=r"multiple of the number of workers, 3.* 7\."):
        loader.load_data(7)


# Threads


def test_errors_in_threads_surface(photos):
    """A batch that failed left the training thread waiting for ever."""
    loader = make_loader(photos)
    with pytest.raises(ValueError, match="at least 1"):
        loader.load_data(0)
    assert loader.load_data(1).hr.shape == (1, 32, 32, 3)


def test_few_batches_are_made_ahead(photos):
    """Threads filled the memory with batches while training was slow."""
    with make_loader(photos) as loader:
        made = []
        original = loader.make_batch
        loader.make_batch = lambda k, *rest: made.append(k) or original(k, *rest)
        loader.load_data(1)
        time.sleep(0.1)
        assert set(made) <= set(range(data_loader.BATCHES_AHEAD + 1))


def test_threads_end(photos):
    """Each loader left its threads behind."""
    before = threading.active_count()
    with make_loader(photos) as loader:
        loader.load_data(1)
        assert threading.active_count() > before
    assert threading.active_count() == before
    assert loader.load_data(1).hr.shape == (1, 32, 32, 3)  # and they start again
    loader.close()


def test_interpreter_exits(photos):
    """A script that failed with batches still being made never came back."""
    script = (
        "import sys, data_loader\n"
        "data_loader.DataLoader(sys.argv[1], crop_size=32).load_data(4)\n"
        "raise KeyboardInterrupt"
    )
    command = [sys.executable, "-c", script, str(photos)]
    run = subprocess.run(command, cwd=REPOSITORY, timeout=20, capture_output=True)
    assert b"KeyboardInterrupt" in run.stderr


def test_only_numpy_and_pillow_are_imported():
    """Reading a folder took the seconds that importing TensorFlow takes."""
    script = "import sys, data_loader; print({'keras', 'tensorflow'} & {*sys.modules})"
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True)
    assert run.stdout.split() == [b"set()"]


# Formats


def test_exif_orientation(tmp_path):
    """Photographs lay on their side, and crops were planned for the wrong size."""
    exif = Image.Exif()
    exif[data_loader.EXIF_ORIENTATION] = 6  # turn by 90 degrees clockwise
    upright = noise(16, 40)
    for name in ("a.png", "b.jpg"):
        upright.transpose(Image.ROTATE_90).save(tmp_path / name, exif=exif)
    files = scan_folder(tmp_path, 1).files
    assert [(file.width, file.height) for file in files] == [(16, 40), (16, 40)]
    np.testing.assert_array_equal(open_image(tmp_path / "a.png"), upright)
    assert open_image(tmp_path / "b.jpg").size == (16, 40)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_are_scaled(tmp_path, name):
    """Every 16-bit image came out white, clipped at 255."""
    levels = np.arange(256, dtype="uint16").reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / name)
    image = open_image(tmp_path / name)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[..., 2], levels)


def test_transparent_lies_on_white(tmp_path):
    """The hidden colour of transparent pixels showed."""
    rgba = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    rgba.putpixel((1, 2), (0, 255, 0, 0))
    rgba.save(tmp_path / "rgba.png")
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 2), 1)
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.new("LA", (4, 4), (7, 0)).save(tmp_path / "la.png")
    for name in ("rgba.png", "palette.png"):
        image = open_image(tmp_path / name)
        assert image.getpixel((1, 2)) == (255, 255, 255)
        assert image.getpixel((2, 1)) == (255, 0, 0)
    assert open_image(tmp_path / "la.png").getpixel((0, 0)) == (255, 255, 255)


def test_other_modes(tmp_path):
    """Grey, CMYK and black-and-white images had another number of channels."""
    Image.new("L", (4, 4), 90).save(tmp_path / "a.png")
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "b.jpg", quality=100)
    Image.new("1", (4, 4), 1).save(tmp_path / "c.bmp")
    pixels = [open_image(file.path).getpixel((0, 0)) for file in scan_folder(".", 1)[0]]
    assert pixels[0] == (90, 90, 90)
    np.testing.assert_allclose(pixels[1], (255, 0, 0), atol=3)
    assert pixels[2] == (255, 255, 255)


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_first_frame(tmp_path, name):
    """An animation had one dimension too many, or showed its last frame."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("black", "white")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert np.asarray(open_image(tmp_path / name)).max() < 5


# Hostile folders


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_folder(tmp_path, monkeypatch):
    """One stray file ended the training, hours in or before it began."""
    folder = tmp_path / "hostile"
    (folder / "folder.jpg").mkdir(parents=True)
    noise(40, 40).save(folder / "folder.jpg" / "good.PNG")
    (folder / "zero.jpg").touch()
    (folder / "text.png").write_text("hello")
    (folder / "script.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"
    )
    noise(1, 5000).save(folder / "thin.png")
    noise(90, 90).save(folder / "bomb.png")
    noise(50, 50).save(folder / "locked.bmp")
    (folder / "broken.png").symlink_to("nowhere")
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "loop").symlink_to(folder)
    (folder / "._photo.jpg").write_text("macOS")
    os.mkfifo(folder / "pipe.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)

    original = Image.open

    def refuse_locked(path, *args, **options):  # root may read everything
        if "locked" in str(path):
            raise PermissionError(13, "Permission denied", path)
        return original(path, *args, **options)

    monkeypatch.setattr(Image, "open", refuse_locked)
    scan = scan_folder(folder, 32)
    assert [Path(file.path).name for file in scan.files] == ["good.PNG"]
    reasons = {Path(path).name: reason for path, reason in scan.skipped.items()}
    assert list(reasons) == sorted(reasons)
    assert "decompression bomb" in reasons.pop("bomb.png")
    assert "link" in reasons.pop("broken.png")
    assert "link" in reasons.pop("circle.png")
    assert reasons == {
        "locked.bmp": "Permission denied",
        "pipe.png": "not a regular file",
        "script.png": "not an image, or a damaged one",
        "text.png": "not an image, or a damaged one",
        "thin.png": "too small, 1x5000 px",
        "zero.jpg": "not an image, or a damaged one",
    }


def test_truncated_file_is_replaced_by_the_next(photos):
    """A header says nothing of the pixels: training stopped when they were read."""
    data = io.BytesIO()
    noise(40, 40).save(data, "JPEG")
    (photos / "1.jpg").write_bytes(data.getvalue()[:-200])
    loader = make_loader(photos, crops_per_image=1, augment="none")
    names = [Path(file.path).name for file in loader.files]
    hr = loader.make_batch(0, len(names)).hr
    again = loader.make_batch(0, len(names)).hr
    np.testing.assert_array_equal(hr, again)
    [(path, reason)] = loader.messages  # once, and by name
    assert path == str(photos / "1.jpg")
    assert "truncated" in reason
    plan = loader._plan_batch(0, len(names), True)
    row = [crop.file_index for crop in plan].index(names.index("1.jpg"))
    stand_in = np.asarray(open_image(loader.files[names.index("1.jpg") + 1].path))
    top = int(plan[row].top * (stand_in.shape[0] - 31))
    left = int(plan[row].left * (stand_in.shape[1] - 31))
    crop = stand_in[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(hr[row], to_float(crop))


def test_deleted_and_replaced_while_training(photos, tmp_path, monkeypatch):
    """A file that went away, or shrank, stopped a run or made it hang."""
    monkeypatch.setattr(data_loader, "CACHE_BYTES", 0)
    with make_loader(photos, crops_per_image=1) as loader:
        loader.load_data(6)
        (photos / "0.png").unlink()
        noise(20, 20).save(tmp_path / "1.png")
        noise(90, 33).save(tmp_path / "2.png")  # larger: used as it is
        for name in ("1.png", "2.png"):
            (tmp_path / name).replace(photos / name)
        for _ in range(8):
            assert loader.load_data(6).hr.shape == (6, 32, 32, 3)
        reasons = {Path(path).name: reason for path, reason in loader.messages}
        assert reasons == {
            "0.png": "No such file or directory",
            "1.png": "now too small, 20x20 px",
        }


def test_nothing_left_to_read(photos, monkeypatch):
    """A disk that went away made the loader search for ever."""
    monkeypatch.setattr(data_loader, "CACHE_BYTES", 0)
    loader = make_loader(photos)
    for file in loader.files:
        Path(file.path).unlink()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"None of the 6 images .* No such file"):
            loader.load_data(1)
    assert len(loader.messages) == 6


def test_default_message(photos, capsys, monkeypatch):
    """Training went on with fewer images and said nothing."""
    loader = DataLoader(photos, crop_size=32)
    (photos / "0.png").unlink()
    loader.load_spec_data()
    assert "0.png: No such file" in capsys.readouterr().err


# The stored scan


def count_headers_read(monkeypatch):
    read = []
    original = data_loader._read_size
    monkeypatch.setattr(
        data_loader, "_read_size", lambda path: read.append(path) or original(path)
    )
    return read


def test_scan_is_stored_and_follows_changes(photos, monkeypatch):
    """Each start read 100,000 headers again, or believed in files of yesterday."""
    good = [photos / f"{i}.png" for i in range(4)]
    calls = []
    first = scan_folder(photos, 32, lambda *progress: calls.append(progress))
    assert calls == [(8, 8)]
    read = count_headers_read(monkeypatch)
    assert scan_folder(photos, 32) == first
    assert read == [str(photos / "text.png")]  # it may have been mended
    assert len(scan_folder(photos, 40).files) < len(first.files)
    read.clear()
    noise(80, 80).save(good[0])
    os.utime(good[1], ns=(1, 1))
    good[2].unlink()
    files = scan_folder(photos, 32).files
    assert sorted(read) == [str(good[0]), str(good[1]), str(photos / "text.png")]
    assert (str(good[0]), 80, 80) in files
    assert str(good[2]) not in [file.path for file in files]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0, "files": {}}'])
def test_damaged_stored_scan(photos, tmp_path, content):
    """A file cut short by a full disk kept every later run from starting."""
    first = scan_folder(photos, 32)
    [stored] = (tmp_path / "cache" / "srgan").iterdir()
    assert json.loads(stored.read_text())["version"] == data_loader.SCAN_VERSION
    stored.write_text(content)
    assert scan_folder(photos, 32) == first


def test_no_place_for_the_scan(photos, tmp_path, monkeypatch):
    """A read-only home folder stopped training."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(scan_folder(photos, 32).files) == 6


def test_linked_folders_are_followed_once(photos, tmp_path):
    """Datasets put together from links were empty, or counted twice."""
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "a").symlink_to(photos)
    (folder / "b").symlink_to(photos)
    assert len(scan_folder(folder, 32).files) == 6


# Decoded images


def test_decoded_images_are_reused_within_the_bound(photos, monkeypatch):
    """Memory grew with the dataset, or each crop decoded its image again."""
    opened = []
    original = data_loader.open_image
    monkeypatch.setattr(
        data_loader, "open_image", lambda path: opened.append(path) or original(path)
    )
    monkeypatch.setattr(data_loader, "CACHE_BYTES", 10**6)
    loader = make_loader(photos, crops_per_image=1)
    batches = [loader.make_batch(k, 6) for k in range(3)]
    assert len(opened) == 6
    monkeypatch.setattr(data_loader, "CACHE_BYTES", 12_000)
    loader.reload_dataset()
    for k in range(3):
        assert_same(loader.make_batch(k, 6), batches[k])
        assert 0 < loader._cache.num_bytes <= 12_000
    assert len(opened) > 12


# Test images


def test_test_images_of_any_size(photos, tmp_path):
    """The source takes just three of one size, and stops at a stray file."""
    folder = tmp_path / "datasets" / "img_test"
    folder.mkdir(parents=True)
    for name, size in [("b.png", (21, 34)), ("a.jpg", (4, 7)), ("c.png", (3, 50))]:
        noise(*size).save(folder / name)
    (folder / "d.png").write_text("no image")
    loader = make_loader(photos)
    images = loader.load_spec_data(tmp_path / "images" / "_src")
    assert [(x.name, x.lr.shape, x.hr.shape) for x in images] == [
        ("a.jpg", (1, 1, 3), (4, 4, 3)),
        ("b.png", (8, 5, 3), (32, 20, 3)),
    ]
    hr = noise(21, 34).crop((0, 0, 20, 32))
    np.testing.assert_array_equal(images[1].hr, to_float(hr))
    np.testing.assert_array_equal(images[1].lr, to_float(data_loader.degrade(hr, 1.5)))
    saved = open_image(tmp_path / "images" / "_src" / "1.png")
    np.testing.assert_array_equal(to_float(saved), images[1].lr)
    assert loader.test_images_origin == "datasets/img_test"
    assert [Path(path).name for path, _ in loader.messages] == ["c.png", "d.png"]


def test_test_images_inside_the_dataset(tmp_path):
    """Test images smaller than the crop vanished, being "skipped" in the dataset."""
    (tmp_path / "datasets" / "img_test").mkdir(parents=True)
    noise(20, 20).save("datasets/img_test/a.png")
    noise(40, 40).save("datasets/b.png")
    assert [x.name for x in make_loader("datasets").load_spec_data()] == ["a.png"]


def test_without_test_images_the_dataset_stands_in(photos, monkeypatch):
    """A new user saw no picture at all."""
    monkeypatch.setattr(data_loader, "STAND_IN_SIDE", 36)
    loader = make_loader(photos)
    images = loader.load_spec_data()
    assert [x.name for x in images] == ["0.png", "1.png", "2.png"]
    assert [x.hr.shape[:2] for x in images] == [(32, 36), (36, 32), (32, 32)]
    middle = noise(40, 32).crop((2, 0, 38, 32))
    np.testing.assert_array_equal(images[0].hr, to_float(middle))
    assert "first 3 images" in loader.test_images_origin


# Arguments and messages


def test_dataset_by_name_and_by_path(photos, tmp_path):
    """A path such as ../photos was looked up below `datasets/`."""
    (tmp_path / "datasets").mkdir()
    photos.rename(tmp_path / "datasets" / "mine")
    assert make_loader("mine").folder == os.path.join("datasets", "mine")
    assert len(make_loader(f"../{tmp_path.name}/datasets/mine").files) == 6
    for unknown in ("test2017", "", "datasets/mine/0.png"):
        with pytest.raises(FileNotFoundError, match="which holds mine, nor as a path"):
            DataLoader(unknown)


def test_no_usable_image(photos, tmp_path):
    """The source loops for ever when no image is large enough."""
    message = (
        r"No image in .*photos is as large as the crop, 64 px\. "
        r"The largest is 4.JPG, 50x50 px\. Pass a smaller --crop-size\."
    )
    with pytest.raises(ValueError, match=message):
        DataLoader(photos, crop_size=64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"No image in .*empty\. Put photographs"):
        DataLoader(tmp_path / "empty")
    (tmp_path / "empty" / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"No readable image .*: 1 files, such as"):
        DataLoader(tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": 30}, "multiple of 4 and at least 16 px, but it is 30"),
        ({"crop_size": 12}, "multiple of 4 and at least 16 px, but it is 12"),
        ({"blur": -1}, "radius in px, 0 for none, but it is -1"),
        ({"blur": float("nan")}, "radius in px, 0 for none, but it is nan"),
        ({"blur": float("inf")}, "radius in px, 0 for none, but it is inf"),
        ({"crops_per_image": 0}, "at least 1 crop per image, not 0"),
        ({"seed": -1}, "0 or more, not -1"),
        ({"augment": "mirror"}, "'mirror'. Pass one of: none, flip, dihedral"),
    ],
)
def test_wrong_options(photos, options, message):
    """A wrong flag was found out only when training had begun."""
    with pytest.raises(ValueError, match=message):
        make_loader(photos, **options)


def test_summary_names_a_few(photos):
    """A thousand skipped files filled the terminal, or none was named."""
    assert make_loader(photos).summary().splitlines() == [
        f"{photos}: 6 images of at least 32 px, 2 files skipped:",
        "  small.png: too small, 31x90 px",
        "  text.png: not an image, or a damaged one",
    ]
    for i in range(5):
        (photos / f"zero{i}.png").touch()
    assert make_loader(photos).summary().splitlines()[-1] == "  and 2 more"


def test_names_that_are_not_text(photos):
    """A file name in another encoding could be neither stored nor printed."""
    name = os.fsdecode(b"caf\xe9.png")
    noise(40, 40).save(photos / name)
    (photos / os.fsdecode(b"\xe9.png")).touch()
    for _ in range(2):
        loader = make_loader(photos)
        assert len(loader.files) == 7
        loader.summary().encode()


def test_reload_dataset(photos):
    """Files added while a notebook was open were not found."""
    loader = make_loader(photos)
    loader.load_data(1)
    noise(40, 40).save(photos / "new.png")
    loader.reload_dataset()
    assert len(loader.files) == 7
    assert loader.position == 1
    loader.reload_dataset(photos / "deeper")
    assert len(loader.files) == 2
    assert_same(loader.load_data(1), make_loader(photos / "deeper").make_batch(1, 1))


def test_photographs():
    """Real photographs: LR enlarged must resemble HR, in colour and place."""
    folder = os.environ.get("SRGAN_TEST_DATA")
    if not folder:
        pytest.skip("SRGAN_TEST_DATA does not name a folder of photographs")
    batch = DataLoader(folder, crop_size=96, crops_per_image=1).make_batch(0, 8)
    enlarged = batch.lr.repeat(4, axis=1).repeat(4, axis=2)
    assert np.abs(enlarged - batch.hr).mean() < 0.15
