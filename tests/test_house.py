"""The house rules that a reader relies on: short functions and modules, one definition of each name, comments that say why."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "melreformer_hf"
MODULES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
# Parsed while tests are collected: Python 3.11's parser fails when garbage with finalizers is collected within it.
TREES = {name: ast.parse(text) for name, text in MODULES.items()}
MAX_FUNCTION_LINES, MAX_MODULE_LINES = 70, 550
# Comments per 100 lines of code, of each folder as a whole.
MIN_COMMENTS = {"nn": 3.0, "models": 3.0, "training": 3.0}
# Entry points, and the hooks by which each family's weights_<name>.py describes its original.
SHARED_NAMES = {"main", "configuration_from_original", "key_table"}
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def test_functions_and_modules_are_short():
    long = [name for name, text in MODULES.items() if len(text.splitlines()) > MAX_MODULE_LINES]
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                long += [f"{name}: {node.name}, {lines} lines"] if lines > MAX_FUNCTION_LINES else []
    assert not long


def test_no_public_name_is_defined_twice():
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert not {name: found for name, found in places.items() if len(found) > 1 and name not in SHARED_NAMES}


def comments_and_code(text: str) -> tuple[int, int]:
    """Comments, and lines of code without docstrings."""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    lines = {
        line for token in tokens if token.type not in _NO_CODE for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(token.type == tokenize.COMMENT for token in tokens), len(lines)


def test_comments_are_counted():
    text = '"""Docstring.\n\nOf three lines."""\n\nx = (\n    1,  # why\n)\n\n\ndef f():\n    """Doc."""\n    # why\n    return x\n'
    assert comments_and_code(text) == (2, 5)


@pytest.mark.parametrize("folder", MIN_COMMENTS)
def test_what_is_clever_is_explained(folder):
    counted = [comments_and_code(text) for name, text in MODULES.items() if name.startswith(f"{folder}/")]
    comments, lines = (sum(column) for column in zip(*counted, strict=True))
    assert 100 * comments / lines >= MIN_COMMENTS[folder], f"{comments} comments on {lines} lines of {folder}"
