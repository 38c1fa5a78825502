"""Litestar: sees the exceptions that Litestar turns into responses, and the marks of its routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from litestar import Litestar
from litestar.types import Scope

from retrymw._core.policy import RetryPolicy
from retrymw.asgi import RetryMiddleware, _find_endpoint
from retrymw.integrations._inside import saw
from retrymw.typing import Hook

__all__ = ["Retry"]


def Retry(
    app: Litestar,
    *,
    policy: RetryPolicy | None = None,
    databases: Iterable[Any] = (),
    hooks: Iterable[Hook] = (),
) -> RetryMiddleware:
    """Wraps Litestar: ``app = Retry(Litestar([order]), policy=…, databases=[…], hooks=[…])``.

    Litestar renders an exception as a response, a 500 unless an exception handler knows better. It
    is seen here: the attempt is doomed, and if its response is a 5xx the request is replayed; a
    response below 500 is the app's own answer and is sent.

    What Litestar's ``middleware`` and ``before_send`` do runs with each attempt. Other ASGI
    middleware goes around what is returned.

    Args:
        app: the Litestar app.
        policy, databases, hooks: as for :class:`retrymw.asgi.RetryMiddleware`.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
        RuntimeError: the app is wrapped already.
    """
    if not isinstance(app, Litestar):
        raise TypeError(f"app is {app!r}; allowed: a litestar.Litestar")
    if _saw in app.after_exception:
        raise RuntimeError(f"{app!r} is wrapped already; call Retry() once for an app")

    middleware = RetryMiddleware(
        app,  # type: ignore[arg-type]  # types of its own for the same protocol
        policy=policy,
        databases=databases,
        hooks=hooks,
        find_endpoint=_find_endpoint,
    )
    app.after_exception.insert(0, _saw)  # before the app's own hooks: they may raise
    return middleware


async def _saw(exception: Exception, scope: Scope) -> None:
    saw(exception)
