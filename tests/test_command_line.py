"""Streams that fail, Ctrl-C during start-up, a user without a home, one-line errors."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from PIL import Image

import networks
from support import checkpoints, command_line

ROOT = Path(__file__).parent.parent
STREAMS = {"stdout": 1, "stderr": 2}  # file descriptors
TALKATIVE = """
import sys
from support import command_line
def main():
    command_line.warn(sys.argv[1])
    for _ in range(50_000):
        print(sys.argv[1])
    open("done", "w").close()
    return 3
command_line.run(main)
"""
# Raises KeyError, as for an unknown user.
NO_HOME = "import os, pwd\nos.environ.pop('HOME')\npwd.getpwuid = {}.__getitem__\n"
INTERRUPT = "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(9)\n"


def run(arguments, folder, closed=None, **variables):
    """Runs Python; `closed`: one of `STREAMS`, or "pipe", a stdout without reader."""
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    del variables["TF_CPP_MIN_LOG_LEVEL"]  # set by conftest.py, but not by users
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=variables,
        stdout=writer if closed == "pipe" else subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: closed in STREAMS and os.close(STREAMS[closed]),
        text=True,
        check=False,
    )
    os.close(writer)
    return result.returncode, result.stdout or "", result.stderr


@pytest.mark.parametrize("case", ["cp1252", "ascii", "utf-8", "pipe", *STREAMS])
def test_streams_that_fail_do_not_end_the_work(tmp_path, case):
    """A name in Japanese or in no UTF-8, `| head` or `2>&-` would lose results."""
    encoding = case if case in ("cp1252", "ascii") else "utf-8"
    program = ["-c", TALKATIVE, text := os.fsdecode("照片".encode() + b" caf\xe9")]
    code, out, error = run(program, tmp_path, case, PYTHONIOENCODING=encoding)
    shown = text[:2] if encoding == "utf-8" else r"\u7167\u7247"
    line = rf"{shown} caf\udce9" + "\n"
    assert (code, error) == (3, "" if case == "stderr" else line)
    assert out == ("" if case in ("pipe", "stdout") else 50_000 * line)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("module", ["numpy", "PIL"])
def test_ctrl_c_during_imports_is_silent(tmp_path, module):
    """Ctrl-C in the first seconds would print a traceback of up to 94 lines."""
    (tmp_path / f"{module}.py").write_text(INTERRUPT)
    others = ["srgan", "evaluate", "benchmark"] if module == "numpy" else []
    for command in ("upscale", *others):
        program = [ROOT / f"{command}.py", "--help"]
        result = run(program, tmp_path, PYTHONPATH=str(tmp_path))
        assert result == (command_line.EXIT_INTERRUPTED, "", ""), command


@pytest.mark.slow
@pytest.mark.parametrize("closed", [None, "pipe", "stdout", "stderr"])
def test_upscale_without_streams_and_home(tmp_path, closed):
    """Files that were written would count as failed; containers often have no HOME."""
    checkpoints.save_weights(networks.build_generator(1, 4), tmp_path / "a.weights.h5")
    (tmp_path / "sitecustomize.py").write_text(NO_HOME)
    for name in "照bc":
        Image.effect_noise((8, 8), 60).save(tmp_path / f"{name}.png")
    files = ["照.png", "b.png", "c.png", "--weights", "a.weights.h5"]
    variables = {"PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "cp1252"}
    code, out, error = run([ROOT / "upscale.py", *files], tmp_path, closed, **variables)
    assert (code, error, len(list(tmp_path.glob("?_x4.png")))) == (0, "", 3)
    assert ("3 done, 0 skipped, 0 failed" in out) == (closed in (None, "stderr"))


@pytest.mark.slow
def test_training_on_a_folder_named_in_japanese(tmp_path):
    """In cp1252, as on Windows, training would not start, or not resume."""
    (tmp_path / "照片").mkdir()
    Image.effect_noise((32, 32), 60).save(tmp_path / "照片" / "a.png")
    flags = "--preset demo --crop-size 16 --batch-size 1 --pretrain-steps 1 --dataset"
    for steps, closed in ((1, None), (2, "stdout"), (3, "stderr")):
        arguments = [ROOT / "srgan.py", *flags.split(), "照片", "--train-steps", steps]
        code, out, error = run(arguments, tmp_path, closed, PYTHONIOENCODING="cp1252")
        assert (code, error) == (0, "")
        assert (r"\u7167\u7247" in out) == (closed != "stdout")
        assert (tmp_path / f"weights/training_checkpoints/step-{steps:08}").is_dir()


def test_mistakes_take_one_line_and_bugs_a_traceback(monkeypatch, capsys):
    """A bug would look like the user's mistake, or usage text bury the reason."""
    monkeypatch.setattr(sys, "argv", ["/a/srgan.py"])
    with pytest.raises(SystemExit, match="2"), command_line.usage_errors():
        raise FileNotFoundError("a\n  b")
    assert capsys.readouterr() == ("", "srgan.py: a b\n")
    with pytest.raises(TypeError), command_line.usage_errors():
        raise TypeError
    parser = command_line.ArgumentParser()
    parser.add_argument("--steps", type=command_line.positive_int, default=7, help="n")
    assert "n (default: 7)\n" in parser.format_help()
    for text, reason in (("--st=3", "unrecognized"), ("--steps=0", "'0' is not")):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([text])
        assert re.fullmatch(f"srgan.py: .*{reason}.*\n", capsys.readouterr().err)


def test_number_types():
    """NaN compares false with every limit, and would be a learning rate."""
    for kind, good, bad in (
        ("positive_int", "1 12", "0 -1 1.5 1e3 x"),
        ("non_negative_int", "0 12", "-1 0.0"),
        ("positive_float", "1e-4 2", "0 -1 nan inf"),
        ("non_negative_float", "0 1.5", "-0.1 nan 1e400"),
    ):
        convert = getattr(command_line, kind)
        assert [convert(text) for text in good.split()] == [*map(float, good.split())]
        for text in bad.split():
            with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
                convert(text)


def test_quiet_imports(monkeypatch, capfd):
    """TensorFlow's messages would bury ours, or errors be hidden for good."""
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    for expected in ("", "", "shown"):  # evaluate.py imports Keras later
        if expected:
            monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
        with command_line.quiet_imports("evaluate"):
            os.write(2, b"shown")
        assert capfd.readouterr().err == expected


def test_progress_and_device(monkeypatch, capsys):
    """A log file would fill with bars, and a broken GPU set-up would be silent."""
    command_line.progress_bar(2, "step").update(1)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    command_line.progress_bar(2, "step").update(1)
    assert "1/2" in capsys.readouterr().out
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for devices, expected in ((["cpu:0"], "no GPU found"), (["gpu:0"], ": gpu:0")):
        monkeypatch.setattr(keras.distribution, "list_devices", lambda d=devices: d)
        assert expected in command_line.describe_device()
