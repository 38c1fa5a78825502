"""Django: sees the exceptions that Django turns into responses, and the marks of its views."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, overload

from django.core.handlers.asgi import ASGIHandler  # type: ignore[import-untyped]  # no types
from django.core.handlers.wsgi import WSGIHandler  # type: ignore[import-untyped]
from django.core.signals import got_request_exception  # type: ignore[import-untyped]

import retrymw.wsgi
from retrymw._core.policy import RetryPolicy
from retrymw.integrations._inside import not_routed, routed, saw
from retrymw.typing import ASGIApp, Hook, WSGIApp

if TYPE_CHECKING:
    import retrymw.asgi

__all__ = ["Retry"]

# Methods of Django's handlers that are not documented, and the same from 4.2 to 6.1.
_ROUTES: Final = "resolve_request"
_HANDLES: Final = "process_exception_by_middleware"


@overload
def Retry(
    app: WSGIApp,
    *,
    policy: RetryPolicy | None = None,
    databases: Iterable[Any] = (),
    hooks: Iterable[Hook] = (),
) -> retrymw.wsgi.RetryMiddleware: ...
@overload
def Retry(
    app: ASGIApp,
    *,
    policy: RetryPolicy | None = None,
    databases: Iterable[Any] = (),
    hooks: Iterable[Hook] = (),
) -> retrymw.asgi.RetryMiddleware: ...
def Retry(app: Any, **options: Any) -> Any:
    """Wraps Django: ``application = Retry(get_wsgi_application(), databases=[Database()])``.

    Around ``get_asgi_application()`` it is ASGI middleware, and needs the extra ``asgi``. Other
    middleware of that kind goes around it; Django's ``MIDDLEWARE`` is inside, and runs with each
    attempt.

    Django renders an exception of a view, or of its middleware, as a 500. It is seen here: the
    attempt is doomed, and if its response is a 5xx the request is replayed; a response below 500 is
    the app's own answer and is sent.

    Args:
        app: what ``get_wsgi_application()`` or ``get_asgi_application()`` returned.
        policy, databases, hooks: as for :class:`retrymw.wsgi.RetryMiddleware`.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
        RuntimeError: the app is wrapped already, or this Django is one that we don't know.
    """
    # A handler that has an app serves static files, and gives it what it does not serve.
    if not isinstance(app, (WSGIHandler, ASGIHandler)) or hasattr(app, "application"):
        raise TypeError(
            f"app is {app!r}; allowed: what Django's get_wsgi_application() or "
            "get_asgi_application() returns"
        )
    for name in (_ROUTES, _HANDLES):
        if name in vars(app):
            raise RuntimeError(f"{app!r} is wrapped already; call Retry() once for an app")
        if not callable(getattr(app, name, None)):
            raise RuntimeError(f"{app!r} has no {name}(), so retrymw can't work with this Django")

    if isinstance(app, ASGIHandler):
        from retrymw.asgi import RetryMiddleware
    else:
        from retrymw.wsgi import RetryMiddleware  # type: ignore[assignment]
    middleware = RetryMiddleware(app, find_endpoint=not_routed, **options)
    setattr(app, _ROUTES, functools.partial(_route, getattr(app, _ROUTES)))
    # The signal is not sent for what a middleware's process_exception() takes.
    setattr(app, _HANDLES, functools.partial(_see_and_handle, getattr(app, _HANDLES)))
    got_request_exception.connect(_saw_current)
    return middleware


def _route(resolve: Callable[[Any], Any], request: Any) -> Any:
    match = resolve(request)
    routed(match.func, request.scope if hasattr(request, "scope") else request.environ)
    return match


def _see_and_handle(handle: Callable[..., Any], exception: Exception, *args: Any) -> Any:
    saw(exception)
    return handle(exception, *args)


def _saw_current(**_: Any) -> None:
    saw(sys.exc_info()[1])
