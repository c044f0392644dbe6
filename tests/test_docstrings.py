"""Docstrings name the arguments that functions take, and users find one everywhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*ROOT.glob("*.py"), *ROOT.glob("support/*.py")])
MAX_ARGUMENTS = 8
DOCUMENTED = {  # what users call: every argument is explained
    *("srgan.SRGAN", "data_loader.DataLoader", "layers.UpsampleConv2D"),
    *("networks.build_generator", "networks.build_discriminator"),
    *("networks.build_feature_extractor", "metrics.luminance", "metrics.psnr"),
    *("metrics.ssim", "metrics.measure", "tiling.enlarge"),
}


def public_definitions():
    """Yields (name, node, its function or `None`) of public classes and functions."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            inits = (x for x in node.body if getattr(x, "name", "") == "__init__")
            function = node if isinstance(node, ast.FunctionDef) else next(inits, None)
            if not node.name.startswith("_"):
                yield f"{path.stem}.{node.name}", node, function


DEFINITIONS = list(public_definitions())


@pytest.mark.parametrize(
    ("name", "node", "function"), DEFINITIONS, ids=[row[0] for row in DEFINITIONS]
)
def test_args_block_names_the_arguments(name, node, function):
    """A docstring that has drifted from its signature misleads."""
    docstring = ast.get_docstring(node) or ""
    block = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.M)
    assert block or name not in DOCUMENTED
    if function is None:
        return
    arguments = function.args
    expected = [x.arg for x in arguments.posonlyargs + arguments.args]
    expected += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    expected += [x.arg for x in arguments.kwonlyargs]
    expected += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    expected = [argument for argument in expected if argument not in ("self", "cls")]
    assert len(expected) <= MAX_ARGUMENTS
    if block:
        assert re.findall(r"^    (\*{0,2}\w+):", block[1], re.M) == expected


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_say_what_they_are_for(path):
    """A newcomer reads the first lines of each file, and wants a command to try."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert re.match(r".+[.:]\n\n", docstring)
    assert re.search(r"python \S+|\w\(", docstring)
