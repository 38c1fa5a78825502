"""Marks: what a decorator says of an endpoint, and reading a mark off an endpoint.

A mark is an attribute of the function or class; the endpoint itself is unchanged, and
``functools.wraps`` carries the mark to a wrapper.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

from retrymw._core.policy import Mark, MarkKind

__all__ = ["idempotent", "never_replay", "read_mark", "rollback_safe"]

E = TypeVar("E", bound=Callable[..., Any])

_ATTRIBUTE: Final = "__retrymw_mark__"
_MOST_WRAPPERS: Final = 32
_WRAPPED: Final = ("func", "fn", "__wrapped__")
_FUNCTIONS: Final = (types.FunctionType, types.MethodType, functools.partial)


@overload
def idempotent(endpoint: E, /) -> E: ...
@overload
def idempotent(**overrides: Any) -> Callable[[E], E]: ...
def idempotent(endpoint: E | None = None, /, **overrides: Any) -> E | Callable[[E], E]:
    """Repeating this endpoint changes nothing more: replay it whatever was committed (G3, G4).

    Args:
        endpoint: a function, a method, or a class of methods.
        **overrides: of the policy: ``max_replays``, ``wait``, ``deadline`` (seconds), ``kinds``.

    Raises:
        TypeError, ValueError: for an override that does not exist or is wrong, at import.
    """
    return _marker(MarkKind.IDEMPOTENT, endpoint, overrides)


@overload
def rollback_safe(endpoint: E, /) -> E: ...
@overload
def rollback_safe(**overrides: Any) -> Callable[[E], E]: ...
def rollback_safe(endpoint: E | None = None, /, **overrides: Any) -> E | Callable[[E], E]:
    """All effects of this endpoint are in the transaction: replay it before any commit (G3, G4).

    Args and raises are those of :func:`idempotent`.
    """
    return _marker(MarkKind.ROLLBACK_SAFE, endpoint, overrides)


def never_replay(endpoint: E, /) -> E:
    """This endpoint runs once per request, whatever happens (G3)."""
    return _marked(Mark(MarkKind.NEVER_REPLAY), endpoint)


def read_mark(endpoint: object, method: str) -> Mark | None:
    """The mark of an endpoint, found without calling it.

    Looks at the endpoint, at what it wraps (``__wrapped__``, ``func`` of ``functools.partial``,
    ``fn`` of Litestar's handlers), for a class or an instance of one at its function for
    ``method``, for Flask's class-based views at ``view_class``, and for view sets of Django REST
    framework at ``cls``, which has the method by the name in ``actions``. The mark of a method goes
    before the mark of its class.
    """
    owner: object = None
    for _ in range(_MOST_WRAPPERS):
        if endpoint is None:
            break
        view_class = getattr(endpoint, "view_class", endpoint)
        if not isinstance(view_class, (type, *_FUNCTIONS)):
            view_class = type(view_class)  # an object with methods, or one that is called
        if isinstance(view_class, type):
            mark = _mark_in(view_class, method)
            if mark is not None:
                return mark
        actions, view_set = getattr(endpoint, "actions", None), getattr(endpoint, "cls", None)
        if isinstance(actions, dict) and isinstance(view_set, type):
            action = actions.get(method.lower())
            mark = read_mark(action and getattr(view_set, action, None), method)
            mark = mark or getattr(view_set, _ATTRIBUTE, None)
            if mark is not None:
                return mark
        mark = getattr(endpoint, _ATTRIBUTE, None)
        if isinstance(mark, Mark):
            return mark
        if isinstance(endpoint, types.MethodType):
            owner = endpoint.__self__
        names = ("__wrapped__",) if isinstance(endpoint, type) else _WRAPPED
        inner = (getattr(endpoint, name, None) for name in names)
        endpoint = next((wrapped for wrapped in inner if wrapped is not None), None)
    mark = getattr(owner if isinstance(owner, type) else type(owner), _ATTRIBUTE, None)
    return mark if isinstance(mark, Mark) else None


def _mark_in(view_class: type, method: str) -> Mark | None:
    names = ("head", "get") if method == "HEAD" else (method.lower(),)
    found = (getattr(view_class, name, None) for name in names)
    by_method = next((function for function in found if function is not None), None)
    called = getattr(view_class, "__call__", None)  # noqa: B004  # not to know whether it can be
    marks = (
        read_mark(by_method, method),
        getattr(view_class, _ATTRIBUTE, None),
        getattr(called, _ATTRIBUTE, None),
    )
    return next((mark for mark in marks if isinstance(mark, Mark)), None)


def _marker(kind: MarkKind, endpoint: E | None, overrides: dict[str, Any]) -> E | Callable[[E], E]:
    mark = Mark(kind, overrides)
    if endpoint is not None:
        return _marked(mark, endpoint)
    return functools.partial(_marked, mark)


def _marked(mark: Mark, endpoint: E) -> E:
    if not callable(endpoint) or isinstance(endpoint, (staticmethod, types.MethodType)):
        raise TypeError(
            f"@{mark.kind.value} was given {endpoint!r}; allowed: a function or a class. Put the "
            "mark right above `def`, below staticmethod and the decorator that registers the route"
        )
    present = getattr(endpoint, "__dict__", {}).get(_ATTRIBUTE)
    if present is not None and present != mark:
        raise TypeError(
            f"{endpoint!r} is marked @{present.kind.value} already; allowed: one mark, "
            f"not @{mark.kind.value} as well"
        )
    setattr(endpoint, _ATTRIBUTE, mark)
    return endpoint
