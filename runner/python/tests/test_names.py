"""Every public name of the harness has a docstring, and every function has type annotations."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
SOURCES = [*sorted((HERE / "kizen_runtime").glob("*.py")), HERE / "loader.py", HERE / "bundle.py"]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt], inside: str = "") -> Iterator[tuple[str, ast.ClassDef | Function]]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield inside + node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body, f"{inside}{node.name}.")


def unannotated(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    spread = [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, *spread]
    missing = [one.arg for one in arguments if not one.annotation and one.arg not in ("self", "cls")]
    return missing + ([] if node.returns else ["return"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_public_name_has_a_docstring(source: Path) -> None:
    module = ast.parse(source.read_text())
    assert ast.get_docstring(module)
    assert [name for name, node in public(module.body) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_function_is_annotated(source: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, Function)]
    assert {node.name: unannotated(node) for node in functions if unannotated(node)} == {}
