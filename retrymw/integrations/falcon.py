"""Falcon: sees the exceptions that Falcon turns into responses, and the marks of its responders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, overload

import falcon
import falcon.asgi

import retrymw.asgi
import retrymw.wsgi
from retrymw._core.policy import RetryPolicy
from retrymw.integrations._inside import not_routed, routed, saw
from retrymw.typing import Hook

__all__ = ["Retry"]

# Methods of Falcon's apps that are not documented, and the same from 3.0 to 4.4. What is documented
# since 4.4, the error reporter, is one for an app, and the app's own; of sinks nothing is told.
_ROUTES: Final = "_get_responder"
_HANDLES: Final = "_handle_exception"


@overload
def Retry(  # type: ignore[overload-overlap]  # Falcon's ASGI app inherits from its WSGI app
    app: falcon.asgi.App[Any, Any],
    *,
    policy: RetryPolicy | None = None,
    databases: Iterable[Any] = (),
    hooks: Iterable[Hook] = (),
) -> retrymw.asgi.RetryMiddleware: ...
@overload
def Retry(
    app: falcon.App[Any, Any],
    *,
    policy: RetryPolicy | None = None,
    databases: Iterable[Any] = (),
    hooks: Iterable[Hook] = (),
) -> retrymw.wsgi.RetryMiddleware: ...
def Retry(app: Any, **options: Any) -> Any:
    """Wraps Falcon: ``app = Retry(app, policy=…, databases=[…], hooks=[…])``.

    Around a ``falcon.asgi.App`` it is ASGI middleware. Other middleware of that kind goes around
    it; Falcon's own components are inside, and run with each attempt.

    Falcon renders an exception as a response, a 500 unless an error handler knows better. It is
    seen here: the attempt is doomed, and if its response is a 5xx the request is replayed; a
    response below 500 is the app's own answer and is sent.

    Args:
        app: the ``falcon.App`` or ``falcon.asgi.App``.
        policy, databases, hooks: as for :class:`retrymw.wsgi.RetryMiddleware`.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
        RuntimeError: the app is wrapped already, or this Falcon is one that we don't know.
    """
    if not isinstance(app, falcon.App):
        raise TypeError(f"app is {app!r}; allowed: a falcon.App or a falcon.asgi.App")
    if isinstance(app, _Watched):
        raise RuntimeError(f"{app!r} is wrapped already; call Retry() once for an app")
    kind = type(app)
    for name in (_ROUTES, _HANDLES):
        if not callable(getattr(kind, name, None)):
            raise RuntimeError(f"{app!r} has no {name}(), so retrymw can't work with this Falcon")

    shell = retrymw.asgi if isinstance(app, falcon.asgi.App) else retrymw.wsgi
    middleware = shell.RetryMiddleware(app, find_endpoint=not_routed, **options)
    # Falcon's apps have slots, so the methods can't be set on the app itself.
    app.__class__ = type(
        kind.__name__, (_Watched, kind), {"__slots__": (), "__module__": kind.__module__}
    )
    return middleware


class _Watched:
    __slots__ = ()

    def _get_responder(self, req: Any) -> Any:
        found = super()._get_responder(req)  # type: ignore[misc]
        routed(found[0], req.scope if hasattr(req, "scope") else req.env)
        return found

    def _handle_exception(self, req: Any, resp: Any, ex: Exception, *args: Any, **more: Any) -> Any:
        saw(ex)
        return super()._handle_exception(req, resp, ex, *args, **more)  # type: ignore[misc]
