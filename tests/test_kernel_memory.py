"""Numba frees an array after the last line that names it; an address of it, kept longer, points into freed memory.

Threads that search at once then write into each other's arrays. So a kernel that makes an array and takes its address has to name
the array again, in a loop or after every use of the address.
"""

import ast
from pathlib import Path

import pytest

import seminar.kernels

SOURCES = sorted(Path(seminar.kernels.__file__).parent.glob("*.py"))
MAKERS = {"empty", "zeros", "ones", "full", "empty_like", "zeros_like"}


def freed_too_early(source: str) -> list[str]:
    """`function.array` for arrays whose address is used after they are named for the last time."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            found += [f"{function.name}.{name}" for name in sorted(_made(function)) if _outlived(function, name)]
    return found


def _made(function: ast.FunctionDef) -> set[str]:
    """Names that the function gives to arrays of its own."""
    made = set()
    for name, value in _assigned(function):
        is_call = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)
        if is_call and value.func.attr in MAKERS:
            made.add(name)
    return made


def _assigned(function: ast.FunctionDef) -> list[tuple[str, ast.expr]]:
    pairs: list[tuple[str, ast.expr]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            to, value = node.targets[0], node.value
            several = isinstance(to, ast.Tuple) and isinstance(value, ast.Tuple)
            each = zip(to.elts, value.elts, strict=True) if several else [(to, value)]
            pairs += [(one.id, given) for one, given in each if isinstance(one, ast.Name)]
    return pairs


def _outlived(function: ast.FunctionDef, name: str) -> bool:
    addresses = [to for to, value in _assigned(function) if any(_is_address(node, name) for node in ast.walk(value))]
    return any(_last(function, address) > _last(function, name) for address in addresses)


def _is_address(node: ast.AST, name: str) -> bool:
    inner = node.value if isinstance(node, ast.Attribute) and node.attr == "ctypes" else None
    return isinstance(inner, ast.Name) and inner.id == name


def _last(function: ast.FunctionDef, name: str) -> int:
    """The last line up to which a name lives: that of its last use, or the end of the outermost loop around it."""
    last = 0
    for statement in function.body:
        uses = [node for node in ast.walk(statement) if isinstance(node, ast.Name) and node.id == name]
        if uses:
            is_loop = isinstance(statement, ast.For | ast.While)
            last = statement.end_lineno or 0 if is_loop else max(use.lineno for use in uses)
    return last


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_address_outlives_its_array(path: Path) -> None:
    assert freed_too_early(path.read_text()) == []


def test_an_address_kept_longer_than_its_array_is_found() -> None:
    kept = "def f(n):\n    a = np.empty(n)\n    at = a.ctypes.data\n    for i in range(n):\n        store(at + i)\n"
    named = "def f(n):\n    a = np.empty(n)\n    for i in range(n):\n        store(a.ctypes.data + i)\n"
    read = "def f(n):\n    a = np.empty(n)\n    at = a.ctypes.data\n    for i in range(n):\n        store(at + len(a))\n"
    assert freed_too_early(kept) == ["f.a"]
    assert freed_too_early(named) == freed_too_early(read) == []
