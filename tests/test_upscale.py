"""Anyone's images: what they have is kept, what is there is not overwritten."""

import contextlib
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image, ImageCms
from test_image_files import chunk, ramp, write_png, write_tiff

import upscale
from networks import build_generator
from support import weight_files
from support.image_files import OUTPUT_LIST, Picture
from support.pixels import SCALE, to_uint8
from support.tiling import enlarge


class Repeater:
    """Stands in for the generator: repeats pixels, so that results are foreseeable."""

    def __init__(self, operations):
        self.operations = operations
        self.inputs = []

    def predict_on_batch(self, lr):
        self.inputs.append(lr)
        return lr.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


@pytest.fixture(scope="module")
def network():
    return build_generator(num_residual_blocks=1, num_filters=4)


@pytest.fixture
def repeater(network):
    return Repeater(network.operations)


@pytest.fixture
def command(repeater, monkeypatch):
    """Runs the command with a generator that repeats pixels."""
    loaded = (repeater, "somewhere")
    monkeypatch.setattr(weight_files, "load_generator", lambda *_: loaded)

    def run(*arguments):
        try:
            return upscale.main([str(argument) for argument in arguments])
        except SystemExit as error:
            return error.code

    return run


@pytest.fixture
def colors():
    return np.random.default_rng(0).integers(0, 256, (9, 14, 3), "uint8")


def enlarged(array):
    return np.asarray(array).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def open_result(path):
    with Image.open(path) as image:
        image.load()
        return image


def names_below(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    paths = [path for path in paths if path.name != OUTPUT_LIST]
    return [path.relative_to(folder).as_posix() for path in paths]


def make_folder(root):
    """Three good images, two in folders below, and what is to be ignored."""
    (root / "deep" / "er").mkdir(parents=True)
    for name in ("a.png", "deep/b.JPG", "deep/er/c.webp"):
        Image.new("RGB", (6, 5), "red").save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / "._a.png").write_bytes(b"scattered by macOS")
    return root


RESULTS = ["a_x4.png", "deep/b_x4.png", "deep/er/c_x4.png"]  # of `make_folder`


@pytest.mark.parametrize(("mode", "name", "expected"), [
    ("RGB", "a.png", "RGB"), ("L", "a.png", "L"), ("1", "a.png", "L"),
    ("P", "a.png", "RGB"), ("CMYK", "a.tif", "RGB"), ("LA", "a.png", "LA"),
    ("RGBA", "a.png", "RGBA"), ("RGB", "a.tga", "RGB"), ("RGB", "a.jp2", "RGB"),
])  # fmt: skip
@pytest.mark.parametrize("size", [(14, 9), (1, 7), (1, 1)])
def test_modes(command, tmp_path, colors, capsys, mode, name, expected, size):
    """Gray became color, transparency was lost, an icon or a format was refused."""
    image = Image.fromarray(colors).convert(mode).crop((0, 0, *size))
    image.save(tmp_path / name)
    assert command(tmp_path / name) == 0
    result = open_result(tmp_path / "a_x4.png")
    assert result.mode == expected
    np.testing.assert_array_equal(result, enlarged(image.convert(expected)))
    assert ";" not in capsys.readouterr().out  # nothing was lost


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bit_gray_stays_16_bit(command, tmp_path, name):
    """Cut to 8 bits, a scan or a measurement loses 255 of 256 levels."""
    levels = np.random.default_rng(1).integers(0, 65536, (6, 8)).astype("uint16")
    levels[0, :2] = 0, 65535
    Image.fromarray(levels).save(tmp_path / name)
    assert command(tmp_path / name) == 0
    result = open_result(tmp_path / "deep_x4.png")
    assert result.mode == "I;16"
    assert np.abs(np.asarray(result).astype(int) - enlarged(levels)).max() <= 1


def enlarge_small(network, image, alpha=None):
    return upscale.enlarge_picture(network, Picture(image, alpha, {}, []), tile=3)


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "RGBA"])
def test_plain_images_stay_plain(network, level, mode):
    """White pages got a gray frame, and their white was 254."""
    level = 257 * level if mode == "I;16" else level
    color = level if mode in ("L", "I;16") else (level, level, level)
    image = Image.new(mode.removesuffix("A"), (7, 5), color)
    alpha = Image.new("L", (7, 5), 9) if mode == "RGBA" else None
    result = enlarge_small(network, image, alpha)
    assert result.mode == mode
    assert (np.asarray(result).reshape(20 * 28, -1)[:, :3] == level).all()


def test_neutral_colors_stay_neutral(network, colors):
    """Screentones stored as RGB came out tinted: channels up to 214 levels apart."""
    gray = Image.fromarray(colors[..., 0])
    alpha = Image.fromarray(colors[..., 1])
    expected = np.asarray(enlarge_small(network, gray))
    for has_alpha in (None, alpha):
        result = enlarge_small(network, gray.convert("RGB"), has_alpha)
        assert result.mode == ("RGBA" if has_alpha else "RGB")
        for channel in result.split()[:3]:
            np.testing.assert_array_equal(channel, expected)
    tinted = np.ptp(np.asarray(enlarge_small(network, Image.fromarray(colors))), -1)
    assert tinted.max() > 20  # the network does tint


def test_real_network_through_the_command(tmp_path, monkeypatch, network, colors):
    """The command wrote other pixels than tiling and rounding give."""
    monkeypatch.setattr(weight_files, "load_generator", lambda *_: (network, "here"))
    Image.fromarray(colors).save(tmp_path / "photo.png")
    assert upscale.main([str(tmp_path / "photo.png"), "--tile", "3"]) == 0
    expected = to_uint8(enlarge(network, colors))
    result = np.asarray(open_result(tmp_path / "photo_x4.png")).astype(int)
    assert np.abs(result - expected).max() <= 1


def test_transparency(command, repeater, tmp_path, colors):
    """Color under transparent pixels reached the network, and with it the edges."""
    logo = np.dstack([np.full_like(colors, (220, 30, 40)), colors[..., 0]])
    logo[:, 7:] = 0
    Image.fromarray(logo).save(tmp_path / "logo.png")
    assert command(tmp_path / "logo.png") == 0
    seen = to_uint8(repeater.inputs[0]).astype(int)
    assert np.abs(seen - (220, 30, 40)).max() <= 4
    alpha = Image.fromarray(logo[..., 3]).resize((56, 36), Image.Resampling.BICUBIC)
    result = open_result(tmp_path / "logo_x4.png")
    np.testing.assert_array_equal(result.getchannel("A"), alpha)


@pytest.mark.parametrize("file_format", ["png", "jpg", "webp"])
def test_metadata_are_carried_over(command, tmp_path, colors, capsys, file_format):
    """A viewer turned the result again, or the profile was lost without a word."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Phone"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"exif": exif, "icc_profile": profile, "dpi": (300, 300)}
    Image.fromarray(colors).save(tmp_path / "photo.tif", **options)
    assert command(tmp_path / "photo.tif", "--format", file_format) == 0
    result = open_result(tmp_path / f"photo_x4.{file_format}")
    assert result.size == (36, 56)
    assert (result.getexif()[0x010F], result.getexif().get(0x0112, 1)) == ("Phone", 1)
    assert result.info["icc_profile"] == profile
    if file_format == "png":
        np.testing.assert_array_equal(result, enlarged(np.rot90(colors, -1)))
    dpi = result.info.get("dpi", (0, 0))
    assert round(dpi[0]) == 300 or "resolution" in capsys.readouterr().out


def test_comments_and_large_profiles(command, tmp_path, capsys):
    """A comment was lost in silence; the result of a 2 MB profile could not be read."""
    profile = bytes(16) + b"RGB " + bytes(2_000_000)
    path = tmp_path / "a.jpg"
    Image.new("RGB", (6, 5)).save(path, comment=b"by me", icc_profile=profile)
    assert command(path) == 0
    assert "; ICC profile dropped, which png cannot hold\n" in capsys.readouterr().out
    assert open_result(tmp_path / "a_x4.png").text == {"Comment": "by me"}
    assert command(path, "--format", "jpg") == 0
    assert ";" not in capsys.readouterr().out
    result = open_result(tmp_path / "a_x4.jpg")
    assert (result.info["comment"], result.info["icc_profile"]) == (b"by me", profile)


def test_rare_kinds_are_refused(command, tmp_path, capsys):
    """What Pillow reads as something else came out black, inverted or opaque."""
    for mode in ("LAB", "F", "I"):
        Image.new(mode, (8, 4)).save(tmp_path / f"{mode}.tif")
    write_tiff(tmp_path / "dark.tif", ramp(12), 12)
    write_tiff(tmp_path / "inverted.tif", ramp(16), 16, photometric=0)
    clear = chunk(b"tRNS", bytes(2))
    write_png(tmp_path / "clear.png", ramp(16), 16, 0, before=clear)
    before = names_below(tmp_path)
    assert command(tmp_path) == 1
    for line, name in zip(capsys.readouterr().err.splitlines(), before, strict=True):
        assert line.startswith(f"{tmp_path / name}: ")
        assert "not supported" in line
    assert names_below(tmp_path) == before


def test_losses_are_named(command, tmp_path, capsys):
    """A GRAY profile was stored with RGB pixels, or dropped without a word."""
    profile = bytes(16) + b"GRAY" + bytes(108)
    image = Image.new("I;16", (5, 4), 32896)
    image.save(tmp_path / "a.png", icc_profile=profile, exif=b"Exif\0\0damaged")
    assert command(tmp_path / "a.png", "--format", "webp") == 0
    out = capsys.readouterr().out
    for note in ("EXIF data are damaged", "webp has 8 bits, not 16", "ICC profile dro"):
        assert note in out
    assert "icc_profile" not in open_result(tmp_path / "a_x4.webp").info


def test_folder_keeps_its_structure(command, tmp_path, capsys):
    """Results of equal names from different folders replaced one another."""
    folder = make_folder(tmp_path / "in")
    assert command(folder, "--output", tmp_path / "out") == 0
    assert names_below(tmp_path / "out") == RESULTS
    out = capsys.readouterr().out
    assert out.startswith("Weights: somewhere\n")
    assert out.endswith("3 done, 0 skipped, 0 failed\n")


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize(
    ("flags", "name", "size"),
    [
        (("--scale", 2), "a_x2.png", (28, 18)),
        (("--scale", 2.5), "a_x2.5.png", (35, 22)),
        (("--scale", 4), "a_x4.png", (56, 36)),
        (("--size", "30x90"), "a_30x90.png", (30, 19)),
        (("--size", "56x36"), "a_56x36.png", (56, 36)),
    ],
)
def test_other_sizes(command, tmp_path, colors, capsys, mode, flags, name, size):
    """A picture of a certain size took another program, which lost 16 bits."""
    image = Image.fromarray(colors).convert(mode.replace("I;16", "L"))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype("uint16") * 257)
    elif mode == "RGBA":
        image.putalpha(Image.fromarray(colors[..., 1]))
    image.save(tmp_path / "a.png")
    assert command(tmp_path / "a.png", *flags) == 0
    assert f"{size[0]}x{size[1]} px" in capsys.readouterr().out
    assert command(tmp_path / "a.png", "--output", tmp_path / "whole.png") == 0
    result, whole = open_result(tmp_path / name), open_result(tmp_path / "whole.png")
    assert (result.mode, result.size) == (mode, size)
    channels = zip(result.split(), whole.split(), strict=True)  # transparency apart
    for channel, large in channels if mode != "I;16" else [(result, whole)]:
        expected = large
        if size != large.size:
            expected = large.resize(size, Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(channel, expected)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("25x40", "is more than 4 times its 6x5 px. Enlarge twice"),
        ("6x40", "--size 6x40 does not enlarge its 6x5 px"),
    ],
)
def test_sizes_out_of_reach(command, tmp_path, capsys, size, message):
    """The result had another size than asked for, or was smaller than the input."""
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    Image.new("RGB", (5, 10)).save(tmp_path / "b.png")
    size_of_b = {"25x40": (20, 40), "6x40": (6, 12)}[size]
    assert command(tmp_path / "a.png", tmp_path / "b.png", "--size", size) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "a.png: " in line
    assert message in line
    assert not (tmp_path / f"a_{size}.png").exists()
    assert open_result(tmp_path / f"b_{size}.png").size == size_of_b


def test_a_scale_too_small_to_add_a_pixel(command, tmp_path, capsys):
    """The result was the image itself, changed by the network."""
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    assert command(tmp_path / "a.png", "--scale", "1.01") == 1
    assert "--scale 1.01 does not enlarge its 6x5 px" in capsys.readouterr().err


def test_results_of_any_size_are_not_enlarged(command, tmp_path, capsys):
    """Only those of x4 were known as results."""
    folder = make_folder(tmp_path)
    for flags in ((), ("--scale", 2), ("--scale", 2.5), ("--size", "12x12")):
        assert command(folder, *flags) == 0
        assert "3 done, 0 skipped, 0 failed" in capsys.readouterr().out
        assert command(folder, *flags) == 0
        assert "0 done, 3 skipped, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize("output", [(), ("--output", "."), ("--output", "out")])
def test_second_run_skips(command, tmp_path, monkeypatch, capsys, output):
    """Results would be enlarged again: sixteen times as large."""
    folder = make_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert command(".", *output) == 0
    before = names_below(folder)
    stamps = [(folder / name).stat().st_mtime_ns for name in before]
    assert command(".", *output) == 0
    assert "0 done, 3 skipped, 0 failed" in capsys.readouterr().out
    assert stamps == [(folder / name).stat().st_mtime_ns for name in before]
    assert command(".", *output, "--overwrite") == 0
    assert "3 done, 0 skipped, 0 failed" in capsys.readouterr().out
    assert command(".", *output, "--format", "webp") == 0
    assert len(names_below(folder)) == 11


def test_earlier_results_are_enlarged_only_if_named(command, tmp_path):
    """They were enlarged again wherever `--output` was new, or not even if named."""
    folder = make_folder(tmp_path / "in")
    assert command(folder) == 0
    assert command(folder, "--output", folder / "big") == 0
    assert command(folder, "--output", tmp_path / "out") == 0
    assert names_below(tmp_path / "out") == RESULTS
    assert command(folder / "a_x4.png") == 0
    assert open_result(folder / "a_x4_x4.png").size == (96, 80)


def test_patterns_are_expanded(command, tmp_path, monkeypatch, capsys):
    """Windows' shells pass them on as they are: "There is no file *.png"."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "c[1].png", "d.mpo"):
        Image.new("RGB", (6, 5)).save(name)
    assert command("[ab].png", "c[1].png", "*.mpo", "--output", "out") == 0
    expected = ["a_x4.png", "b_x4.png", "c[1]_x4.png", "d_x4.png"]
    assert names_below(tmp_path / "out") == expected
    assert command("*.jpg") == 2
    assert "There is no file *.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("a.png", "a_x4.png"), ("a.jpg", "a.png")])
def test_nothing_is_replaced(command, tmp_path, capsys, names):
    """A result took the place of an input, or of another input's result."""
    for number, name in enumerate(names):
        Image.new("RGB", (6, 5 + number)).save(tmp_path / name)
    paths = [tmp_path / name for name in names]
    for _ in range(2):
        assert command(*paths, "--overwrite") == 1
        captured = capsys.readouterr()
        assert captured.err.count("would overwrite") == 1
        assert "1 done, 0 skipped, 1 failed" in captured.out
    sizes = {"a.png": 5, "a_x4.png": 6} if "a_x4.png" in names else {"a_x4.png": 20}
    assert {name: open_result(tmp_path / name).height for name in sizes} == sizes


def test_bad_files_are_named_and_counted(command, tmp_path, monkeypatch, capsys):
    """One bad file ended the run, or was left out: "3 done, 0 failed"."""
    folder = make_folder(tmp_path / "in")
    (folder / "text.png").write_bytes(b"not an image")
    Image.effect_noise((60, 60), 50).save(folder / "cut.png")
    os.truncate(folder / "cut.png", 900)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("F", (3, 3)).save(folder / "float.tif")
    (folder / "phone.heic").touch()
    (folder / "locked").mkdir()
    (tmp_path / "other").mkdir()
    Image.new("L", (3, 3)).save(tmp_path / "other" / "d.png")
    (folder / "linked").symlink_to(tmp_path / "other")
    (folder / "e.png").symlink_to(folder / "a.png")
    scan = os.scandir

    def refuse_locked(path):  # root may read everything
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse_locked)
    assert command(folder, "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    for name, reason in (("text.png", "not an image"), ("cut.png", "truncated"),
                         ("gone.png", "broken link"), ("float.tif", "floating-point"),
                         ("phone.heic", "HEIC"), ("locked", "Permission")):  # fmt: skip
        [line] = [line for line in captured.err.splitlines() if f"{name}: " in line]
        assert reason in line
    assert len(captured.err.splitlines()) == 6
    assert names_below(tmp_path / "out") == [*RESULTS, "e_x4.png", "linked/d_x4.png"]
    assert "5 done, 0 skipped, 6 failed" in captured.out


def test_bomb_is_named_with_the_flag(command, tmp_path, capsys):
    """A huge file filled the memory, or could not be enlarged by any flag."""
    Image.new("L", (40, 30)).save(tmp_path / "large.png")
    assert command(tmp_path / "large.png", "--max-pixels", 1199) == 1
    assert "larger --max-pixels" in capsys.readouterr().err
    assert command(tmp_path / "large.png", "--max-pixels", 1200) == 0


def test_too_large_for_the_format(command, repeater, tmp_path, capsys):
    """It was found out after the work."""
    Image.new("L", (4100, 1)).save(tmp_path / "long.png")
    assert command(tmp_path / "long.png", "--format", "webp") == 1
    assert "Pass --format png" in capsys.readouterr().err
    assert not repeater.inputs


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_nothing_half_written(command, tmp_path, monkeypatch, capsys, error):
    """Ctrl-C or a lack of memory left half a file, which the next run skips."""
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")

    def fail(image, path, **options):
        Path(path).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    with contextlib.suppress(KeyboardInterrupt):  # command_line.run makes 130 of it
        assert command(tmp_path / "a.png") == 1
        assert "a.png: out of memory." in capsys.readouterr().err
    assert names_below(tmp_path) == ["a.png"]


@pytest.mark.parametrize("stem", [244 * "x", 82 * "写", 251 * "y"])
def test_long_names(command, tmp_path, capsys, stem):
    """A temporary name was too long; a result's that is ended the whole run."""
    for name in (f"{stem}.png", "zzz.png"):
        Image.new("L", (3, 3)).save(tmp_path / name)
    fits = len(stem) < 251
    assert command(tmp_path) == (0 if fits else 1)
    assert (tmp_path / "zzz_x4.png").is_file()
    assert len(names_below(tmp_path)) == (4 if fits else 3)
    assert ("too long" in capsys.readouterr().err) != fits


@pytest.mark.parametrize("name", ["out.png", "new/out.JPG", "out.webp", "out.jpeg"])
def test_output_may_be_the_file(command, tmp_path, name):
    """A folder `out.png/` was made."""
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    assert command(tmp_path / "a.png", "--output", tmp_path / name) == 0
    assert names_below(tmp_path) == sorted(["a.png", name])
    assert open_result(tmp_path / name).size == (12, 12)


@pytest.mark.parametrize(("arguments", "text"), [
    (["b.png"], "no file,b.png"), (["empty"], "No image in empty"), (["apple"], "HEIC"),
    (["a.png", "--tile", "0"], "--tile,whole number"), (["a.png", "--x"], "--x"),
    (["a.png", "--max-pixels", "-1"], "--max-pixels"),
    (["a.png", "--scale", "8"], "8 is more than 4. Enlarge twice"),
    (["a.png", "--scale", "0.5"], "0.5 is not more than 1"),
    (["a.png", "--scale", "nan"], "nan"), (["a.png", "--size", "800"], "such as 1600x"),
    (["a.png", "--size", "0x9"], "such as 1600x"),
    (["a.png", "--scale", "2", "--size", "9x9"], "--size,not allowed with"),
    (["a.png", "--output", "a.png/x"], "Cannot write"),
    (["a.png", "--output", "notes.txt"], "Cannot write"),
    (["a.png", "notes.txt", "--output", "out.png"], "out.png"),
    (["folder", "--output", "out.jpg"], "out.jpg"),
    (["a.png", "--output", "out.tiff"], "out.tiff"),
    (["a.png", "--output", "out.jpg", "--format", "webp"], "out.jpg,webp"),
    (["a.png", "--output", "out.jpg", "--format", "png"], "out.jpg,png"),
])  # fmt: skip
def test_mistakes_are_one_line(command, tmp_path, monkeypatch, capsys, arguments, text):
    """A traceback, or work that a mistyped flag makes useless."""
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "apple", "folder"):
        Path(name).mkdir()
    for name in ("a.png", "folder/a.png"):
        Image.new("RGB", (6, 5)).save(name)
    for name in ("notes.txt", "apple/phone.heic"):
        Path(name).touch()
    before = sorted(tmp_path.rglob("*"))
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in text.split(","))
    assert sorted(tmp_path.rglob("*")) == before


def test_default_weights_and_precision(tmp_path, monkeypatch, repeater, capsys):
    """The demo's poor weights were used, or a mistyped name ended in a traceback."""
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit, match="2"):
        upscale.main([str(tmp_path / "a.png"), "--weights", "none.weights.h5"])
    calls = []
    load = lambda *call: calls.append(call) or (repeater, "here")  # noqa: E731
    monkeypatch.setattr(weight_files, "load_generator", load)
    upscale.main([str(tmp_path / "a.png")])
    upscale.main([str(tmp_path), "--weights", "w", "--precision", "mixed_bfloat16"])
    assert calls == [("srgan-bicubic", "float32"), ("w", "mixed_bfloat16")]
    calls.clear()
    capsys.readouterr()
    for name in ("b.JPG", "c.mpo"):
        Image.new("RGB", (6, 5)).save(tmp_path / name, "JPEG")
    upscale.main([str(tmp_path), "--overwrite"])  # noise and blocks, and none
    assert [weights for weights, _ in calls] == ["srgan-bicubic", "srgan-photo"]
    lines = capsys.readouterr().out.splitlines()
    for name, weights in (("a.png", 0), ("b.JPG", 1), ("c.mpo", 1)):
        [line] = [line for line in lines if line.startswith(f"{tmp_path / name} -> ")]
        assert f" px, {calls[weights][0]}, " in line
    assert keras.config.dtype_policy().name == "float32"
