"""C1: the core reads no clock, no randomness, no environment, and does no IO."""

import ast
from pathlib import Path

import pytest

import tideserve.server.core

MODULES = sorted(Path(tideserve.server.core.__file__).parent.glob("*.py"))
# `mypy_extensions` is words for the compiler.
ALLOWED = {
    "mypy_extensions",
    "bisect",
    "collections",
    "dataclasses",
    "enum",
    "heapq",
    "itertools",
    "math",
    "typing",
}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_core_module_imports_only_what_is_pure(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        for name in names:
            pure = name.startswith("tideserve.server.core.") or name.split(".")[0] in ALLOWED
            assert pure, f"{path.name} imports {name}"


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 10
