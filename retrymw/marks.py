"""Marks: what a decorator says of an endpoint, and reading a mark off an endpoint.

A mark is an attribute of the function or class; the endpoint itself is unchanged, and
``functools.wraps`` carries the mark to a wrapper.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

from retrymw._core.policy import Mark, MarkKind

__all__ = ["idempotent", "never_replay", "read_mark", "rollback_safe"]

E = TypeVar("E", bound=Callable[..., Any])

_ATTRIBUTE: Final = "__retrymw_mark__"
_MOST_WRAPPERS: Final = 32


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

    Looks at the endpoint, at what it wraps (``functools.partial``, ``__wrapped__``), for a class or
    an instance of one at its function for ``method``, and for Flask's class-based views at
    ``view_class``. The mark of a method goes before the mark of its class.
    """
    for _ in range(_MOST_WRAPPERS):
        if endpoint is None:
            return None
        view_class = getattr(endpoint, "view_class", endpoint)
        if isinstance(view_class, type):
            names = ("head", "get") if method == "HEAD" else (method.lower(),)
            by_method = next(
                (getattr(view_class, n) for n in names if hasattr(view_class, n)), None
            )
            mark = read_mark(by_method, method) or getattr(view_class, _ATTRIBUTE, None)
            if isinstance(mark, Mark):
                return mark
        mark = getattr(endpoint, _ATTRIBUTE, None)
        if isinstance(mark, Mark):
            return mark
        if isinstance(endpoint, functools.partial):
            endpoint = endpoint.func
        else:
            endpoint = getattr(endpoint, "__wrapped__", None)
    return None


def _marker(kind: MarkKind, endpoint: E | None, overrides: dict[str, Any]) -> E | Callable[[E], E]:
    mark = Mark(kind, overrides)
    if endpoint is not None:
        return _marked(mark, endpoint)
    return functools.partial(_marked, mark)


def _marked(mark: Mark, endpoint: E) -> E:
    if not callable(endpoint):
        raise TypeError(
            f"@{mark.kind.value} was given {endpoint!r}; allowed: a function, a method or a class. "
            "Put the mark below the decorator that registers the route"
        )
    present = getattr(endpoint, "__dict__", {}).get(_ATTRIBUTE)
    if present is not None and present != mark:
        raise TypeError(
            f"{endpoint!r} is marked @{present.kind.value} already; allowed: one mark, "
            f"not @{mark.kind.value} as well"
        )
    setattr(endpoint, _ATTRIBUTE, mark)
    return endpoint
