"""Anyone's images: what they have is kept, what is there is not overwritten."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw

import checkpoints
import command_line
import pictures
import upscale
from data_loader import SCALE, to_uint8
from networks import build_generator
from quiet import keras
from tiling import enlarge

ORIENTATION = 0x0112
MAKE = 0x010F


class Repeater:
    """Stands in for the generator: repeats pixels, so that results are foreseeable."""

    def __init__(self, layers):
        self.layers = layers
        self.inputs = []

    def predict_on_batch(self, lr):
        self.inputs.append(lr)
        return lr.repeat(SCALE, axis=1).repeat(SCALE, axis=2)


@pytest.fixture(scope="module")
def layers():
    return build_generator(num_residual_blocks=1, num_filters=4).layers


@pytest.fixture
def repeater(layers):
    return Repeater(layers)


@pytest.fixture
def command(repeater, monkeypatch):
    """Runs the command with a generator that repeats pixels."""
    loaded = (repeater, "somewhere")
    monkeypatch.setattr(checkpoints, "load_generator", lambda *_: loaded)

    def run(*arguments):
        try:
            return upscale.main([str(argument) for argument in arguments])
        except SystemExit as error:
            return error.code

    return run


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (9, 14, 3), "uint8")


def enlarged(array):
    return array.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def open_result(path):
    with Image.open(path) as image:
        image.load()
        return image


def make_png16(path, levels, colour_type):
    """Writes a 16-bit PNG of colour, which Pillow cannot."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = levels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# What a file has -------------------------------------------------------------


def test_rgb(command, tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "photo.png")
    assert command(tmp_path / "photo.png") == 0
    result = open_result(tmp_path / "photo_x4.png")
    assert (np.asarray(result) == enlarged(colours)).all()


def test_grey_stays_grey(command, tmp_path, colours):
    Image.fromarray(colours[..., 0]).save(tmp_path / "grey.png")
    command(tmp_path / "grey.png")
    result = open_result(tmp_path / "grey_x4.png")
    assert result.mode == "L"
    assert (np.asarray(result) == enlarged(colours[..., 0])).all()


def test_one_bit_becomes_grey(command, tmp_path, colours):
    Image.fromarray(colours[..., 0] > 127).save(tmp_path / "fax.png")
    assert open_result(tmp_path / "fax.png").mode == "1"
    command(tmp_path / "fax.png")
    result = open_result(tmp_path / "fax_x4.png")
    assert result.mode == "L"
    assert (np.asarray(result) == enlarged(colours[..., 0] > 127) * 255).all()


def test_palette_becomes_colour(command, tmp_path, colours):
    paletted = Image.fromarray(colours).quantize(16)
    paletted.save(tmp_path / "p.png")
    paletted.save(tmp_path / "clear.png", transparency=bytes([0, 128] + 14 * [255]))
    assert command(tmp_path / "p.png", tmp_path / "clear.png") == 0
    result = open_result(tmp_path / "p_x4.png")
    assert (np.asarray(result) == enlarged(np.asarray(paletted.convert("RGB")))).all()
    result = open_result(tmp_path / "clear_x4.png")
    assert result.mode == "RGBA"
    assert result.getchannel("A").getextrema()[0] == 0


def test_cmyk_without_profile(command, tmp_path, colours):
    cmyk = Image.fromarray(colours).convert("CMYK")
    cmyk.save(tmp_path / "print.tif")
    command(tmp_path / "print.tif")
    result = open_result(tmp_path / "print_x4.png")
    assert result.mode == "RGB"
    assert (np.asarray(result) == enlarged(np.asarray(cmyk.convert("RGB")))).all()


def test_cmyk_through_its_profile(command, tmp_path, colours, monkeypatch):
    """A printer's CMYK looks wrong, far too bright, if its profile is passed over."""
    calls = []

    def convert(image, source, target, **_options):
        calls.append(source.getvalue())
        result = image.convert("RGB").point(lambda level: level // 2)
        result.info["icc_profile"] = ImageCms.ImageCmsProfile(target).tobytes()
        return result

    monkeypatch.setattr(pictures.ImageCms, "profileToProfile", convert)
    cmyk = Image.fromarray(colours).convert("CMYK")
    cmyk.save(tmp_path / "print.tif", icc_profile=b"a CMYK profile")
    command(tmp_path / "print.tif")
    result = open_result(tmp_path / "print_x4.png")
    assert calls == [b"a CMYK profile"]
    expected = np.asarray(cmyk.convert("RGB")) // 2
    assert (np.asarray(result) == enlarged(expected)).all()
    assert "sRGB" in ImageCms.getProfileDescription(
        ImageCms.ImageCmsProfile(io.BytesIO(result.info["icc_profile"]))
    )


def test_damaged_cmyk_profile_is_said(command, tmp_path, colours, capsys):
    cmyk = Image.fromarray(colours).convert("CMYK")
    cmyk.save(tmp_path / "print.tif", icc_profile=b"no profile at all")
    assert command(tmp_path / "print.tif") == 0
    assert "CMYK profile is of no use" in capsys.readouterr().out
    assert "icc_profile" not in open_result(tmp_path / "print_x4.png").info


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep.pgm"])
def test_16_bit_grey_stays_16_bit(command, tmp_path, name):
    """Cut to 8 bits, a scan or a measurement loses 255 of 256 levels."""
    levels = np.random.default_rng(1).integers(0, 65536, (6, 8)).astype("uint16")
    levels[0, :2] = 0, 65535
    Image.fromarray(levels).save(tmp_path / name)
    command(tmp_path / name)
    result = open_result(tmp_path / "deep_x4.png")
    assert result.mode == "I;16"
    error = np.asarray(result).astype(int) - enlarged(levels)
    assert np.abs(error).max() <= 1


@pytest.mark.parametrize("file_format", ["jpg", "webp"])
def test_16_bit_grey_in_8_bit_formats(command, tmp_path, capsys, file_format):
    """Pillow would clip at 255, to white."""
    Image.fromarray(np.full((5, 6), 32896, "uint16")).save(tmp_path / "deep.png")
    assert command(tmp_path / "deep.png", "--format", file_format) == 0
    assert "8 bits, not 16" in capsys.readouterr().out
    result = open_result(tmp_path / f"deep_x4.{file_format}").convert("L")
    assert np.abs(np.asarray(result).astype(int) - 128).max() <= 2


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colour_is_said_to_be_cut(
    command, tmp_path, capsys, colour_type, channels
):
    """Pillow reads it as 8-bit; that is no reason to keep quiet about it."""
    levels = np.full((4, 5, channels), 0x80FF)
    make_png16(tmp_path / "deep.png", levels, colour_type)
    assert command(tmp_path / "deep.png") == 0
    assert "16-bit colour was read as 8-bit" in capsys.readouterr().out
    result = np.asarray(open_result(tmp_path / "deep_x4.png"))
    assert result.shape == (16, 20, channels)
    assert (result == 0x80).all()


def test_16_bit_portable_pixmap_is_said_to_be_cut(command, tmp_path, capsys):
    (tmp_path / "deep.ppm").write_bytes(b"P6 2 1 65535\n" + 12 * b"\x80")
    assert command(tmp_path / "deep.ppm") == 0
    assert "16-bit colour was read as 8-bit" in capsys.readouterr().out


def test_orientation_is_applied_once(command, tmp_path, colours):
    """A viewer would turn the result again if the tag stayed."""
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = 6, "Phone"
    Image.fromarray(colours).save(tmp_path / "phone.png", exif=exif)
    command(tmp_path / "phone.png")
    result = open_result(tmp_path / "phone_x4.png")
    assert (np.asarray(result) == enlarged(np.rot90(colours, -1))).all()
    assert result.getexif().get(ORIENTATION, 1) == 1
    assert result.getexif()[MAKE] == "Phone"


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.webp"])
def test_damaged_exif_is_dropped(command, tmp_path, colours, capsys, name):
    """A good picture is not refused for what nobody sees of it."""
    Image.fromarray(colours).save(tmp_path / name, exif=b"Exif\0\0damaged data")
    assert command(tmp_path / name) == 0
    assert "EXIF data are damaged" in capsys.readouterr().out
    assert not open_result(tmp_path / "photo_x4.png").getexif()


@pytest.mark.parametrize("file_format", ["png", "jpg", "webp"])
def test_profile_and_resolution_are_carried_over(
    command, tmp_path, colours, file_format
):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(colours)
    image.save(tmp_path / "photo.jpg", icc_profile=profile, dpi=(300, 300))
    assert command(tmp_path / "photo.jpg", "--format", file_format) == 0
    result = open_result(tmp_path / f"photo_x4.{file_format}")
    assert result.info["icc_profile"] == profile
    if file_format != "webp":  # which has no place for it
        assert result.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_animation_gives_its_first_frame(command, tmp_path, capsys):
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert command(tmp_path / "a.gif") == 0
    assert "only the first of 2 frames" in capsys.readouterr().out
    assert open_result(tmp_path / "a_x4.png").convert("RGB").getpixel((9, 9)) == (
        (255, 0, 0)
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_tiny(command, tmp_path, size):
    modes = {"colour": "RGB", "grey": "L", "logo": "RGBA", "mask": "LA", "deep": "I;16"}
    for name, mode in modes.items():
        Image.new(mode, size).save(tmp_path / f"{name}.png")
    assert command(tmp_path) == 0
    for name, mode in modes.items():
        result = open_result(tmp_path / f"{name}_x4.png")
        assert result.size == tuple(SCALE * side for side in size)
        assert result.mode == mode


def test_real_network_through_the_command(tmp_path, monkeypatch, colours):
    """The command writes what tiling and rounding give."""
    generator = build_generator(num_residual_blocks=1, num_filters=8)
    loaded = (generator, "somewhere")
    monkeypatch.setattr(checkpoints, "load_generator", lambda *_: loaded)
    Image.fromarray(colours).save(tmp_path / "photo.png")
    assert upscale.main([str(tmp_path / "photo.png"), "--tile", "3"]) == 0
    expected = to_uint8(enlarge(generator, colours))
    result = np.asarray(open_result(tmp_path / "photo_x4.png")).astype(int)
    assert np.abs(result - expected).max() <= 1


# Transparency ----------------------------------------------------------------


def draw_logo(hidden):
    """A red disc with smooth edges on transparency, under which `hidden` lies."""
    large = Image.new("L", (160, 160))
    ImageDraw.Draw(large).ellipse((24, 24, 136, 136), fill=255)
    alpha = np.asarray(large.resize((40, 40), Image.Resampling.BOX))
    logo = np.empty((40, 40, 4), "uint8")
    logo[...] = *hidden, 0
    logo[alpha > 0, :3] = 220, 30, 40
    logo[..., 3] = alpha
    return logo


@pytest.mark.parametrize("hidden", [(0, 0, 0), (255, 255, 255), (0, 255, 0)])
def test_no_fringes(command, repeater, tmp_path, hidden):
    """Colour under transparent pixels must not reach the network, nor the edge."""
    Image.fromarray(draw_logo(hidden)).save(tmp_path / "logo.png")
    command(tmp_path / "logo.png")
    seen = to_uint8(repeater.inputs[0][0]).astype(int)
    assert np.abs(seen - (220, 30, 40)).max() <= 1
    result = open_result(tmp_path / "logo_x4.png")
    assert result.mode == "RGBA"
    alpha = Image.fromarray(draw_logo(hidden)[..., 3])
    expected = alpha.resize((160, 160), Image.Resampling.BICUBIC)
    assert (np.asarray(result)[..., 3] == np.asarray(expected)).all()


def test_opaque_alpha_changes_nothing(command, tmp_path, colours):
    opaque = np.dstack([colours, np.full(colours.shape[:2], 255, "uint8")])
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    command(tmp_path / "opaque.png")
    assert (
        np.asarray(open_result(tmp_path / "opaque_x4.png")) == enlarged(opaque)
    ).all()


def test_grey_with_alpha(command, repeater, tmp_path):
    logo = np.stack([draw_logo((0, 0, 0))[..., i] for i in (0, 3)], axis=-1)
    Image.fromarray(logo).save(tmp_path / "logo.png")
    command(tmp_path / "logo.png")
    assert open_result(tmp_path / "logo_x4.png").mode == "LA"
    assert np.abs(to_uint8(repeater.inputs[0]).astype(int) - 220).max() <= 1


def test_transparent_colour_of_grey(command, tmp_path):
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png", transparency=7)
    command(tmp_path / "grey.png")
    result = open_result(tmp_path / "grey_x4.png")
    assert result.mode == "LA"
    assert result.getchannel("A").getextrema() == (0, 0)


def test_jpeg_lays_transparency_on_white(command, tmp_path, capsys):
    Image.fromarray(draw_logo((0, 0, 0))).save(tmp_path / "logo.png")
    assert command(tmp_path / "logo.png", "--format", "jpg") == 0
    assert "laid on white" in capsys.readouterr().out
    assert min(open_result(tmp_path / "logo_x4.jpg").getpixel((2, 2))) > 250


def test_bleeding_keeps_opaque_pixels_exact():
    rng = np.random.default_rng(2)
    for height, width in ((1, 1), (1, 9), (7, 5), (16, 33)):
        colours = rng.integers(0, 256, (height, width, 3))
        alpha = rng.integers(0, 2, (height, width)).astype("float32")
        bled = pictures.bleed_colours(colours, alpha)
        assert bled.shape == colours.shape
        assert (bled[alpha == 1] == colours[alpha == 1]).all()
        if alpha.any():
            visible = colours[alpha == 1]
            assert bled.min() >= visible.min() - 0.01
            assert bled.max() <= visible.max() + 0.01


# Runs ------------------------------------------------------------------------


def make_folder(root):
    """Three good images, one in a folder below, and what is to be passed over."""
    (root / "deep" / "er").mkdir(parents=True)
    for name in ("a.png", "deep/b.JPG", "deep/er/c.webp"):
        Image.new("RGB", (6, 5), "red").save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / "._a.png").write_bytes(b"scattered by macOS")
    return root


def names_below(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_folder_keeps_its_structure(command, tmp_path, capsys):
    folder = make_folder(tmp_path / "in")
    assert command(folder, "--output", tmp_path / "out") == 0
    assert names_below(tmp_path / "out") == [
        *("a_x4.png", "deep/b_x4.png", "deep/er/c_x4.png")
    ]
    out = capsys.readouterr().out
    assert "3 done, 0 skipped, 0 failed" in out
    assert "megapixels a second" in out
    assert out.startswith("Weights: somewhere")


def test_second_run_skips(command, tmp_path, capsys):
    """Without that, results would be enlarged again: sixteen times as large."""
    folder = make_folder(tmp_path)
    assert command(folder) == 0
    before = names_below(folder)
    stamp = (folder / "a_x4.png").stat().st_mtime_ns
    assert command(folder) == 0
    out = capsys.readouterr().out
    assert "Left out: 3 earlier results" in out
    assert "0 done, 3 skipped, 0 failed" in out
    assert names_below(folder) == before
    assert (folder / "a_x4.png").stat().st_mtime_ns == stamp
    assert command(folder, "--overwrite") == 0
    assert "3 done, 0 skipped, 0 failed" in capsys.readouterr().out


def test_earlier_results_of_another_format_are_left_out(command, tmp_path, capsys):
    folder = make_folder(tmp_path)
    assert command(folder) == 0
    assert command(folder, "--format", "webp") == 0
    assert capsys.readouterr().out.count("3 done, 0 skipped, 0 failed") == 2
    assert len(list(folder.rglob("*_x4_x4*"))) == 0


def test_results_beside_inputs_are_left_out_of_other_folders(command, tmp_path):
    """They were enlarged again wherever `--output` was new."""
    folder = make_folder(tmp_path / "in")
    assert command(folder) == 0
    assert command(folder, "--output", tmp_path / "out") == 0
    assert names_below(tmp_path / "out") == [
        *("a_x4.png", "deep/b_x4.png", "deep/er/c_x4.png")
    ]


def test_result_named_as_input_is_enlarged(command, tmp_path):
    Image.new("RGB", (6, 5)).save(tmp_path / "a_x4.png")
    assert command(tmp_path / "a_x4.png") == 0
    assert (tmp_path / "a_x4_x4.png").is_file()


def test_never_overwrites_an_input(command, tmp_path, capsys):
    for name in ("a.png", "a_x4.png"):
        Image.new("RGB", (6, 5)).save(tmp_path / name)
    inputs = [tmp_path / "a.png", tmp_path / "a_x4.png"]
    assert command(*inputs, "--overwrite") == 1
    assert "would overwrite" in capsys.readouterr().err
    assert open_result(inputs[1]).size == (6, 5)


def test_two_inputs_of_one_result(command, tmp_path, capsys):
    """The second one must not quietly take the first one's place."""
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 5)).save(tmp_path / "a.jpg")
    assert command(tmp_path, "--overwrite") == 1
    assert "would overwrite" in capsys.readouterr().err
    assert open_result(tmp_path / "a_x4.png").size == (32, 20)


def test_bad_file_does_not_end_a_run(command, tmp_path, capsys):
    folder = make_folder(tmp_path / "in")
    (folder / "aa.png").write_bytes(b"not an image")
    whole = io.BytesIO()
    Image.effect_noise((60, 60), 50).save(whole, "PNG")
    (folder / "cut.png").write_bytes(whole.getvalue()[:900])
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    Image.fromarray(np.zeros((3, 3), "float32")).save(folder / "float.tif")
    assert command(folder, "--output", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "3 done, 0 skipped, 4 failed" in captured.out
    for name in ("aa.png", "cut.png", "gone.png", "float.tif"):
        assert f"{name}: " in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) == 4
    assert len(names_below(tmp_path / "out")) == 3


def test_bomb_is_named_with_the_flag(command, tmp_path, capsys):
    Image.new("L", (40, 30)).save(tmp_path / "large.png")
    assert command(tmp_path / "large.png", "--max-pixels", 1199) == 1
    assert "larger --max-pixels" in capsys.readouterr().err
    assert command(tmp_path / "large.png", "--max-pixels", 1200) == 0
    assert pictures.Image.MAX_IMAGE_PIXELS == pictures.MAX_PIXELS


def test_too_large_for_the_format_is_said_before_work(
    command, repeater, tmp_path, capsys
):
    Image.new("L", (4100, 1)).save(tmp_path / "long.png")
    assert command(tmp_path / "long.png", "--format", "webp") == 1
    assert "Pass --format png" in capsys.readouterr().err
    assert not repeater.inputs


def test_interruption_leaves_nothing_half_written(
    command, tmp_path, monkeypatch, capsys
):
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")

    def interrupt(image, path, **options):
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert command(tmp_path / "a.png") == 130
    assert names_below(tmp_path) == ["a.png"]
    assert "Stopped" in capsys.readouterr().err


def test_shortage_of_memory_fails_one_image(command, repeater, tmp_path, monkeypatch):
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")

    def fail(lr):
        raise MemoryError

    monkeypatch.setattr(repeater, "predict_on_batch", fail)
    assert command(tmp_path / "a.png") == 1
    assert names_below(tmp_path) == ["a.png"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal_and_elsewhere():
    for stream, is_drawn in ((Terminal(), True), (io.StringIO(), False)):
        progress = command_line.Progress(2, stream)
        progress.start_image("a.png")
        progress(50, 100)
        progress.print_line("a.png done")
        assert ("1 of 2,  50%" in stream.getvalue()) == is_drawn
        assert ("s left" in stream.getvalue()) == is_drawn
        assert stream.getvalue().endswith("a.png done\n")


# Mistakes --------------------------------------------------------------------


def check_mistake(capsys, code, *texts):
    """One line that names what is wrong, no traceback, exit code 2."""
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("upscale.py: ")
    assert error.count("\n") == 1
    for text in texts:
        assert text in error


def test_mistakes_are_one_line(command, tmp_path, capsys):
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    photo = tmp_path / "a.png"
    check_mistake(capsys, command(tmp_path / "b.png"), "there is no", "b.png")
    check_mistake(capsys, command(tmp_path / "empty"), "found none")
    check_mistake(capsys, command(photo, "--tile", 0), "--tile: expected a whole")
    check_mistake(capsys, command(photo, "--max-pixels", -1), "--max-pixels")
    check_mistake(capsys, command(photo, "--output", photo), "is a file")
    check_mistake(capsys, command(photo, "--output", photo / "x"), "is a file")
    assert names_below(tmp_path) == ["a.png"]


def test_weights_that_cannot_be_read(tmp_path, capsys):
    Image.new("RGB", (6, 5)).save(tmp_path / "a.png")
    (tmp_path / "bad.weights.h5").write_bytes(b"no weights")
    for name, text in (("none.weights.h5", "no such file"), ("bad.weights.h5", "bad")):
        arguments = [tmp_path / "a.png", "--weights", tmp_path / name]
        check_mistake(capsys, upscale.main([str(word) for word in arguments]), text)


def test_weights_that_are_used_by_default(tmp_path, monkeypatch):
    """Trained, else pre-trained, else shipped; without any, what to do is said."""
    monkeypatch.chdir(tmp_path)
    shipped = tmp_path / "elsewhere"
    monkeypatch.setattr(checkpoints, "SHIPPED_FOLDER", shipped)
    with pytest.raises(FileNotFoundError, match=r"Train with: python srgan\.py"):
        checkpoints.default_weights()
    shipped.mkdir()
    (shipped / checkpoints.SHIPPED_BICUBIC).touch()
    (shipped / "another.weights.h5").touch()
    for name in ("training_checkpoints", "pre_training_checkpoints"):
        (tmp_path / "weights" / name).mkdir(parents=True)  # empty: nothing to use
    assert checkpoints.default_weights() == shipped / checkpoints.SHIPPED_BICUBIC
    (tmp_path / "weights/pre_training_checkpoints/step-00000100").mkdir()
    assert checkpoints.default_weights().name == "pre_training_checkpoints"
    (tmp_path / "weights/training_checkpoints/.index").touch()  # by the source
    assert checkpoints.default_weights().name == "training_checkpoints"


def test_loads_weights_with_a_precision(tmp_path):
    build_generator().save_weights(tmp_path / "g.weights.h5")
    generator, path = checkpoints.load_generator(
        tmp_path / "g.weights.h5", "mixed_bfloat16"
    )
    assert path == tmp_path / "g.weights.h5"
    assert generator.layers[1].compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_photographs(command, tmp_path, photographs):
    """Real files, as they come from cameras and benchmarks."""
    files = sorted((photographs / "Set14" / "LR").iterdir())[:4]
    assert command(*files, "--output", tmp_path / "out") == 0
    for file in files:
        before = open_result(file)
        after = open_result(tmp_path / "out" / f"{file.stem}_x4.png")
        assert after.mode == before.mode
        assert after.size == tuple(SCALE * side for side in before.size)
