"""What is passed to a constructor by position is what its name makes plain; the rest is named where it is passed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.workflows import ROOT

BY_POSITION = 2


def constructors(tree: ast.AST) -> Iterator[tuple[str, ast.arguments]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                    yield node.name, each.args


def positional(arguments: ast.arguments) -> int:
    """How many besides ``self``."""
    return len(arguments.posonlyargs) + len(arguments.args) - 1


def sources() -> list[Path]:
    return [path for folder in ("bundle/scripts", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_constructors_take_two_arguments_by_position_at_most():
    found = {
        f"{path.relative_to(ROOT)}: {name}": positional(arguments)
        for path in sources()
        for name, arguments in constructors(ast.parse(path.read_text("utf-8")))
    }

    assert len(found) > 50  # the sources were found
    assert {name: count for name, count in found.items() if count > BY_POSITION} == {}


def test_arguments_behind_the_star_are_not_counted():
    ((_, arguments),) = constructors(ast.parse("class Network:\n    def __init__(self, name, size, *, seed): ..."))

    assert positional(arguments) == 2
