"""What the commands share: quiet start-up, one-line errors, number types, progress.

parser = command_line.ArgumentParser(description=__doc__)
"""

import argparse
import contextlib
import glob
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path

EXIT_FAILED = 1  # the work itself failed
EXIT_USAGE = 2  # the user's mistake: flag, folder, file
EXIT_INTERRUPTED = 128 + signal.SIGINT
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
HELP_COLUMN = 30  # where help texts begin


class _HelpFormatter(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=HELP_COLUMN, width=88)

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """Argument parser whose help shows defaults and whose errors are one line."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_HelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        fail(f"{message.rstrip('.')}. See --help.")


def fail(message, code=EXIT_USAGE):
    """Prints one line on stderr and exits."""
    command = os.path.basename(sys.argv[0])
    print(f"{command}: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(code)


def warn(message):
    """Prints one line on stderr."""
    print(" ".join(str(message).split()), file=sys.stderr, flush=True)


def check_writable(path, flag="output"):
    """Raises `OSError` unless a file can be written to `path`; makes its folder."""
    path, flag = Path(path), f"--{flag.replace('_', '-')}"
    reason = "it is a directory" if path.is_dir() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        reason = error.strerror
    if reason:
        raise OSError(f"Cannot write to {path}: {reason}. Choose another {flag}.")


@contextlib.contextmanager
def usage_errors():
    """Turns mistakes found in set-up, and nowhere else, into one line and code 2."""
    try:
        yield
    except (OSError, ValueError) as error:
        fail(error)


@contextlib.contextmanager
def quiet_imports(module_name):
    """Hides TensorFlow's start-up messages, and the traceback of an early Ctrl-C.

    Set `TF_CPP_MIN_LOG_LEVEL` to see them. `module_name` is the caller's `__name__`.
    """
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    # HDF5 cannot save weights on a file system without locks; ours are renamed whole.
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    try:
        level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if level != "3" or "keras" in sys.modules:
            yield
            return
        # It warns of retracing when several networks meet several window sizes.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        with _stderr_redirected():  # some are written before the level is read
            yield
    except KeyboardInterrupt:
        if module_name != "__main__":
            raise
        raise SystemExit(EXIT_INTERRUPTED) from None


@contextlib.contextmanager
def _stderr_redirected():
    try:
        kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # stderr is closed
        yield
        return
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def run(main):
    """Runs a command's `main` with streams that never fail; exits with its code."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # what it cannot show
        setattr(sys, name, _Stream(stream))
    try:
        code = main()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code)


class _Stream:
    """A text stream that drops what it is given once its pipe is closed."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self):
        with self._surviving():
            self._stream.flush()

    @contextlib.contextmanager
    def _surviving(self):
        try:
            yield
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def describe_device():
    """Returns one line that names the device on which Keras computes."""
    import keras  # slow, so that --help does without

    with _stderr_redirected():
        devices = keras.distribution.list_devices()
    others = [device for device in devices if not device.lower().startswith("cpu")]
    cpu = f"CPU ({os.cpu_count()} cores; no GPU found)"
    return f"Device: {', '.join(others) or cpu}"


def progress_bar(target, unit):
    """Returns Keras's progress bar, silent if stdout is no terminal."""
    import keras

    return keras.utils.Progbar(target, verbose=int(sys.stdout.isatty()), unit_name=unit)


def expand_patterns(paths):
    """Expands patterns such as `*.jpg`, which Windows passes on as they are."""
    expanded = []
    for path in map(str, paths):
        matches = [] if os.path.exists(path) else sorted(glob.glob(path))
        expanded += matches or [path]
    return expanded


def named_folder(text):
    """Converts NAME=FOLDER to a name and a `Path`, for `argparse`."""
    name, _, folder = text.partition("=")
    if not name.strip() or not folder:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER.")
    return name, Path(folder)


def check_labels(pairs, reserved=()):
    """Returns {name: folder}; raises `ValueError` if a name is taken."""
    taken = list(reserved)
    for name, _ in pairs:
        if name in taken:
            raise ValueError(
                f"The name {name!r} is taken. Pass another --results name."
            )
        taken.append(name)
    return dict(pairs)


def _number(convert, expected, is_valid):
    """Returns a converter of a flag's text, for `argparse`."""

    def parse(text):
        with contextlib.suppress(ValueError):
            value = convert(text)
            if is_valid(value):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}.")

    return parse


positive_int = _number(int, "a whole number >= 1", lambda value: value >= 1)
non_negative_int = _number(int, "a whole number >= 0", lambda value: value >= 0)
positive_float = _number(float, "a number > 0", lambda value: 0 < value < 1e30)
non_negative_float = _number(float, "a number >= 0", lambda value: 0 <= value < 1e30)
decay = _number(float, "a number >= 0 and < 1", lambda value: 0 <= value < 1)
