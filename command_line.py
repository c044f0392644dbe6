"""What the commands share: one-line errors, number types, exit codes, progress.

parser = command_line.ArgumentParser(description=__doc__)
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

EXIT_FAILED = 1  # the work itself failed
EXIT_USAGE = 2  # the user's mistake: flag, folder, file
EXIT_SIGNAL = 128  # plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")  # of arithmetic
HELP_COLUMN = 34  # where the texts of --help begin


class ArgumentParser(argparse.ArgumentParser):
    """Argument parser with short help, whose errors are one line.

    Args:
        **kwargs: those of `argparse.ArgumentParser`.
    """

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_HelpFormatter, **kwargs)

    def error(self, message):
        fail(f"{message} See --help.", self.prog)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog):
        super().__init__(prog, max_help_position=HELP_COLUMN, width=88)


def add_flags(parser, flags, defaults):
    """Adds groups of flags from a table.

    Args:
        parser: `ArgumentParser`.
        flags: dict of group title to `(flag, kind, text)`; kind is a tuple of
            choices, a type, `bool` (then there is a `--no-` flag too), or a str
            that stands for the value in the help.
        defaults: dict; its values are shown in brackets, but not set.
    """
    for title, group_flags in flags.items():
        group = parser.add_argument_group(title)
        for flag, kind, text in group_flags:
            default = defaults.get(flag[2:].replace("-", "_"))
            if kind is bool:
                default = {True: "yes", False: "no"}.get(default)
            shown = text if default is None else f"{text} [{default}]"
            group.add_argument(flag, help=shown, **_flag_options(kind))


def _flag_options(kind):
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(kind, tuple):
        return {"choices": kind}
    if isinstance(kind, str):
        return {"metavar": kind}
    return {"type": kind, "metavar": "N" if kind.__name__.endswith("int") else "X"}


def fail(message, program=None, code=EXIT_USAGE):
    """Prints one line on stderr and exits.

    Args:
        message: str, what was expected, what was found, what to do.
        program: str, the command's name; by default the running one's.
        code: int, exit code.

    Raises:
        SystemExit: always.
    """
    program = program or sys.argv[0].rpartition("/")[2]
    print(f"{program}: {one_line(message)}", file=sys.stderr)
    raise SystemExit(code)


def make_writable(folder):
    """Makes a folder, and makes sure that files can be written to it.

    Args:
        folder: `Path`.

    Raises:
        OSError: if it, or a folder above it, is a file, or nothing can be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def check_result_path(path, flag, is_folder=False):
    """Makes the folder of a result, before any work.

    Args:
        path: path of a file, or of a folder.
        flag: str, the flag that named it.
        is_folder: bool, whether `path` is that of a folder.

    Raises:
        OSError: if nothing can be written there.
    """
    path = Path(path)
    try:
        if not is_folder and path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if not is_folder and path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(None, "it is read-only")
        make_writable(path if is_folder else path.parent)
    except OSError as error:
        raise OSError(
            f"Expected a place to write to, but {path} cannot be one: "
            f"{error.strerror}. Pass another {flag}."
        ) from error


def one_line(message):
    """Returns a message, or an exception's, without its line breaks."""
    return " ".join(str(message).split())


def positive_int(text):
    """Converts a flag's text to an int >= 1, for `argparse`."""
    return _number(text, int, "a whole number >= 1", lambda value: value >= 1)


def non_negative_int(text):
    """Converts a flag's text to an int >= 0, for `argparse`."""
    return _number(text, int, "a whole number >= 0", lambda value: value >= 0)


def positive_float(text):
    """Converts a flag's text to a finite float > 0, for `argparse`."""
    return _number(text, float, "a number > 0", lambda value: 0 < value < 1e30)


def non_negative_float(text):
    """Converts a flag's text to a finite float >= 0, for `argparse`."""
    return _number(text, float, "a number >= 0", lambda value: 0 <= value < 1e30)


def _number(text, convert, expected, is_valid):
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not is_valid(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, received {text!r}.")
    return value


class Progress:
    """Shows how far a run is: a line redrawn on a terminal, nothing elsewhere.

    Args:
        num_images: int, images of the run.
        stream: text stream, stdout if `None`.
    """

    def __init__(self, num_images, stream=None):
        self.stream = stream or sys.stdout
        self.num_images = num_images
        self.number = 0
        self.name = ""
        self.started = time.monotonic()

    def start_image(self, name):
        """Goes on to the next image, called `name`."""
        self.number += 1
        self.name = name
        self(0, 1)

    def __call__(self, num_done, total):
        """Shows that `num_done` of `total` pixels of the image are done."""
        if not self.stream.isatty():
            return
        share = (self.number - 1 + num_done / total) / self.num_images
        seconds = time.monotonic() - self.started
        left = f"{seconds * (1 - share) / share:.0f} s left" if share else "starting"
        line = f"{self.number} of {self.num_images}, {num_done / total:4.0%}, {left}"
        columns = shutil.get_terminal_size().columns
        self._redraw(f"{line}: {self.name}"[: columns - 1])

    def print_line(self, line, stream=None):
        """Prints a line in place of the bar, to `stream` if it is not `None`."""
        self._redraw("")
        print(line, file=stream or self.stream, flush=True)

    def _redraw(self, line):
        if self.stream.isatty():
            print(f"\r\x1b[K{line}", end="", file=self.stream, flush=True)
