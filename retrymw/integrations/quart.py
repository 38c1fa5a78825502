"""Quart: sees the exceptions that Quart turns into responses, and the marks of its views."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quart import Quart, request
from quart.signals import got_request_exception, request_started

from retrymw._core.policy import RetryPolicy
from retrymw.asgi import RetryMiddleware
from retrymw.integrations._inside import not_routed, routed, saw
from retrymw.typing import Hook

__all__ = ["Retry"]


class Retry:
    """Wraps a Quart app: ``Retry(app, policy=…, databases=[…], hooks=[…])``, or ``init_app`` later.

    Quart renders an unhandled exception as a 500, and an error handler renders what it is
    registered for. Both are seen here, in debug and testing mode too: the attempt is doomed, and if
    its response is a 5xx the request is replayed; a response below 500 is the app's own answer and
    is sent.

    Args:
        app: the Quart app, or a QuartTrio; None to call :meth:`init_app` later.
        policy, databases, hooks: as for :class:`retrymw.asgi.RetryMiddleware`.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
        RuntimeError: the app is wrapped already.
    """

    def __init__(
        self,
        app: Quart | None = None,
        *,
        policy: RetryPolicy | None = None,
        databases: Iterable[Any] = (),
        hooks: Iterable[Hook] = (),
    ) -> None:
        self._policy = policy
        self._databases = tuple(databases)
        self._hooks = tuple(hooks)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Quart) -> None:
        """Wrap ``app.asgi_app``. Do this last, so that other middleware is inside."""
        if not isinstance(app, Quart):
            raise TypeError(f"app is {app!r}; allowed: a quart.Quart")
        if "retrymw" in app.extensions:
            raise RuntimeError(f"{app!r} is wrapped already; call Retry.init_app() once for an app")

        middleware = RetryMiddleware(
            app.asgi_app,  # type: ignore[arg-type]  # its types are Hypercorn's
            policy=self._policy,
            databases=self._databases,
            hooks=self._hooks,
            find_endpoint=not_routed,
        )
        handle_user_exception, handle_request = app.handle_user_exception, app.handle_request

        async def see_and_handle(*args: Any) -> Any:
            saw(args[-1])  # later versions of Quart pass the context first
            return await handle_user_exception(*args)

        async def handle_and_see(request: Any) -> Any:
            try:
                return await handle_request(request)
            except Exception as exc:
                saw(exc)
                raise

        # The signal is sent neither for what an error handler takes nor for what a teardown raises.
        app.handle_user_exception = see_and_handle  # type: ignore[assignment,method-assign]
        app.handle_request = handle_and_see  # type: ignore[method-assign]
        got_request_exception.connect(_saw, app)
        request_started.connect(_routed, app)
        app.asgi_app = middleware  # type: ignore[assignment,method-assign]  # as Quart documents
        app.extensions["retrymw"] = self


# Coroutine functions: Quart would run others in a thread.
async def _saw(sender: Quart, *, exception: BaseException, **_: Any) -> None:
    saw(exception)


async def _routed(sender: Quart, **_: Any) -> None:
    if request.endpoint is not None:
        routed(sender.view_functions.get(request.endpoint), request.scope)
