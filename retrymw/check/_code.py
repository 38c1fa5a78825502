"""What can be read off a function's code without calling it."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any, Final

from retrymw._core.policy import Mark
from retrymw.marks import read_mark

__all__ = ["closed_over", "commits_after_yield", "hidden_mark", "mentions", "streams"]

_MOST_WRAPPERS: Final = 32

# Context managers with these names commit when they are left.
_COMMITTING: Final = frozenset({"atomic", "begin", "transaction"})


def closed_over(function: Any) -> dict[str, Any]:
    """What a function has of those that it is defined in, by name."""
    found: dict[str, Any] = {}
    if isinstance(function, FunctionType) and function.__closure__:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
            with suppress(ValueError):  # it is not set yet
                found[name] = cell.cell_contents
    return found


def mentions(function: Any, word: str) -> bool:
    """Whether the code of a function, or of one inside of it, has this name or string."""
    return any(
        word in code.co_names or word in code.co_freevars or _among(code.co_consts, word)
        for code in _codes(function)
    )


def streams(endpoint: Any) -> bool:
    """Whether an endpoint is a generator, or makes a ``StreamingResponse``."""
    functions = [endpoint]
    if isinstance(endpoint, type):
        functions = [getattr(endpoint, name, None) for name in ("get", "post", "put", "patch")]
    return any(
        inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
        or mentions(function, "StreamingResponse")
        for function in functions
    )


def commits_after_yield(function: Any) -> bool:
    """Whether a generator commits when it goes on after its ``yield``, as far as its source says.

    That is: it calls ``commit`` further down, or yields inside of a ``with`` whose context manager
    is known to commit by its name.
    """
    function = inspect.unwrap(function) if callable(function) else function
    if not inspect.isgeneratorfunction(function) and not inspect.isasyncgenfunction(function):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source to be had, or not by itself
        return False
    yields = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Yield)]
    if not yields:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == "commit" and node.lineno > yields[0]:
            return True
        if isinstance(node, (ast.With, ast.AsyncWith)):
            inside = any(isinstance(below, ast.Yield) for below in ast.walk(node))
            if inside and any(_called(item.context_expr) in _COMMITTING for item in node.items):
                return True
    return False


def hidden_mark(endpoint: Any, method: str) -> Mark | None:
    """A mark that somebody has put where it can't be seen: the endpoint itself has none.

    It is on a function that a decorator without ``functools.wraps`` has wrapped, or it was put
    above the decorator that registers the route, and so on another function.
    """
    function = inspect.unwrap(endpoint) if callable(endpoint) else endpoint
    if not isinstance(function, FunctionType):
        return None
    scope = function.__qualname__.rpartition(".")[0]
    for wrapped in _functions_in(function):
        # A neighbour of the endpoint is one that it calls, not one that it wraps.
        if wrapped.__qualname__.rpartition(".")[0] != scope:
            mark = read_mark(wrapped, method)
            if mark is not None:
                return mark
    named = getattr(sys.modules.get(function.__module__), function.__qualname__, None)
    if named is not None and any(inside is endpoint for inside in _inside(named)):
        return read_mark(named, method)
    return None


def _inside(function: Any) -> Iterator[Any]:
    """What a function wraps, with ``functools.wraps`` or without."""
    for _ in range(_MOST_WRAPPERS):
        closed = next(_functions_in(function), None)
        function = getattr(function, "__wrapped__", closed)
        if function is None:
            return
        yield function


def _functions_in(function: Any) -> Iterator[FunctionType]:
    for content in closed_over(function).values():
        if isinstance(content, FunctionType):
            yield content


def _codes(function: Any) -> Iterator[CodeType]:
    if isinstance(function, functools.partial):
        function = function.func
    if callable(function):
        function = inspect.unwrap(function)
    pending = [getattr(function, "__code__", None)]
    while pending:
        code = pending.pop()
        if code is not None:
            yield code
            pending += [const for const in code.co_consts if isinstance(const, CodeType)]


def _among(consts: Any, word: str) -> bool:
    return any(
        _among(const, word) if isinstance(const, (tuple, frozenset)) else const == word
        for const in consts
    )


def _called(node: ast.AST) -> str | None:
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", None))
