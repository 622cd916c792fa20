"""The scripts of benchmarks/ import only what the project has."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
ROOMS = ("cli", "heads", "pipeline", "tests", "vidgraph")


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.py")))
def test_every_name_that_a_benchmark_imports_is_there(script):
    """Nobody runs them all: a name that moved would be noticed by whoever needs the figures."""
    for node in ast.walk(ast.parse((FOLDER / script).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module.partition(".")[0] not in ROOMS:
            continue
        module = import_module(node.module)
        for name in node.names:
            if not hasattr(module, name.name):
                import_module(f"{node.module}.{name.name}")
