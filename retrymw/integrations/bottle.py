"""Bottle: sees the exceptions that Bottle turns into responses, and the marks of its callbacks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Final

from bottle import Bottle, HTTPResponse, request  # type: ignore[import-untyped]  # no types

from retrymw._core.policy import RetryPolicy
from retrymw.integrations._inside import routed, saw
from retrymw.typing import Environ, Hook
from retrymw.wsgi import RetryMiddleware

__all__ = ["Retry"]

# Not documented: makes an iterable of what a callback or hook came to.
_CASTS: Final = "_cast"


def Retry(
    app: Bottle,
    *,
    policy: RetryPolicy | None = None,
    databases: Iterable[Any] = (),
    hooks: Iterable[Hook] = (),
) -> None:
    """Wraps ``app.wsgi``: ``Retry(app, policy=…, databases=[…], hooks=[…])``.

    Bottle makes an error page of an exception, and an ``HTTPError`` may stand for one. Both are
    seen here: the attempt is doomed, and if its response is a 5xx the request is replayed; a
    response below 500 is the app's own answer and is sent.

    Args:
        app: the app; for Bottle's default one ``bottle.default_app()``.
        policy, databases, hooks: as for :class:`retrymw.wsgi.RetryMiddleware`.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
        RuntimeError: the app is wrapped already, or this Bottle is one that we don't know.
    """
    if not isinstance(app, Bottle):
        raise TypeError(f"app is {app!r}; allowed: a bottle.Bottle, such as bottle.default_app()")
    if isinstance(app.wsgi, RetryMiddleware):
        raise RuntimeError(f"{app!r} is wrapped already; call Retry() once for an app")
    if not callable(getattr(app, _CASTS, None)):
        raise RuntimeError(f"{app!r} has no {_CASTS}(), so retrymw can't work with this Bottle")

    app.wsgi = RetryMiddleware(
        app.wsgi, policy=policy, databases=databases, hooks=hooks, find_endpoint=_find_callback
    )
    setattr(app, _CASTS, functools.partial(_see_and_cast, getattr(app, _CASTS)))


def _see_and_cast(cast: Callable[..., Any], out: Any, *args: Any) -> Any:
    # For a shell that is not ours: the app may be mounted in one of another framework.
    routed(_find_callback(request.environ), request.environ)
    if isinstance(out, HTTPResponse):  # raised or returned: Bottle has it as an answer either way
        saw(out)
        saw(getattr(out, "exception", None))
    return cast(out, *args)


def _find_callback(environ: Environ) -> object:
    route = environ.get("bottle.route")
    return None if route is None else route.callback
