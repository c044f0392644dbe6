"""Public docstrings name the arguments that their functions take."""

import ast
import re
from pathlib import Path

import pytest

MODULES = sorted(Path(__file__).parent.parent.glob("*.py"))
MAX_ARGUMENTS = 7


def public_functions():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            is_class = isinstance(node, ast.ClassDef)
            if not (is_class or isinstance(node, ast.FunctionDef)):
                continue
            if node.name.startswith("_"):
                continue
            function = node
            if is_class:
                inits = [
                    item
                    for item in node.body
                    if isinstance(item, ast.FunctionDef) and item.name == "__init__"
                ]
                function = inits[0] if inits else None
            yield pytest.param(node, function, id=f"{path.stem}.{node.name}")


@pytest.mark.parametrize(("documented", "function"), public_functions())
def test_args_block_names_the_arguments(documented, function):
    """A docstring that drifted from its signature misleads."""
    docstring = ast.get_docstring(documented) or ""
    block = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring, re.M)
    if block is None or function is None:
        return
    names = re.findall(r"^    (\*{0,2}\w+):", block[1], re.M)
    arguments = function.args
    expected = [argument.arg for argument in arguments.posonlyargs + arguments.args]
    expected += [argument.arg for argument in arguments.kwonlyargs]
    expected = [name for name in expected if name not in ("self", "cls")]
    if arguments.vararg:
        expected.append(f"*{arguments.vararg.arg}")
    if arguments.kwarg:
        expected.append(f"**{arguments.kwarg.arg}")
    assert names == expected
    assert len(expected) <= MAX_ARGUMENTS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_and_public_names_are_documented(path):
    """A newcomer reads the first lines of each file."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            is_private = node.name.startswith("_") or node.name in ("main",)
            assert is_private or ast.get_docstring(node), node.name
