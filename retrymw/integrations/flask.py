"""Flask: sees the exceptions that Flask turns into responses, and the marks of its views."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask import Flask, request
from flask.signals import got_request_exception, request_started

from retrymw._core.policy import RetryPolicy
from retrymw.integrations._config import read_config
from retrymw.integrations._inside import not_routed, routed, saw
from retrymw.typing import Hook
from retrymw.wsgi import RetryMiddleware

__all__ = ["Retry"]


class Retry:
    """Wraps a Flask app: ``Retry(app, policy=…, databases=[…], hooks=[…])``, or ``init_app`` later.

    Outside debug and testing Flask renders an unhandled exception as a 500, and an error handler
    renders what it is registered for in any mode. Both are seen here: the attempt is doomed, and if
    its response is a 5xx the request is replayed; a response below 500 is the app's own answer and
    is sent.

    The app's config may change single fields of the policy, ``RETRY_DEADLINE = 5`` for ``deadline``
    and so on, and switch it all off with ``RETRY_ENABLED = False``.

    Args:
        app: the Flask app; None to call :meth:`init_app` later.
        policy: the rules, where the config says nothing else; None for ``RetryPolicy()``.
        databases, hooks: as for :class:`retrymw.wsgi.RetryMiddleware`.

    Raises:
        TypeError, ValueError: naming the argument or the key of the config, its value and what is
            allowed.
        RuntimeError: the app is wrapped already.
    """

    def __init__(
        self,
        app: Flask | None = None,
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

    def init_app(self, app: Flask) -> None:
        """Read ``app.config`` and wrap ``app.wsgi_app``. Do this last.

        Other middleware is inside then, and the config complete.
        """
        if not isinstance(app, Flask):
            raise TypeError(f"app is {app!r}; allowed: a flask.Flask")
        if "retrymw" in app.extensions:
            raise RuntimeError(f"{app!r} is wrapped already; call Retry.init_app() once for an app")

        enabled, policy = read_config(app.config, self._policy)
        middleware = RetryMiddleware(
            app.wsgi_app,
            policy=policy,
            databases=self._databases,
            hooks=self._hooks,
            find_endpoint=not_routed,
        )
        if not enabled:
            _check_units(self._databases)
            app.extensions["retrymw"] = self
            return
        handle_user_exception = app.handle_user_exception

        def see_and_handle(*args: Any) -> Any:
            saw(args[-1])  # later versions of Flask pass the context first
            return handle_user_exception(*args)

        # The signal is not sent for what an error handler takes, so the method is wrapped as well.
        app.handle_user_exception = see_and_handle  # type: ignore[assignment,method-assign]
        got_request_exception.connect(_saw, app)
        request_started.connect(_routed, app)
        app.wsgi_app = middleware  # type: ignore[assignment,method-assign]  # as Flask documents
        app.extensions["retrymw"] = self


def _check_units(databases: Iterable[Any]) -> None:
    for database in databases:
        if getattr(database, "commits_on_success", False):
            raise ValueError(
                f"RETRY_ENABLED is False, but {database!r} commits on success, and nobody else "
                "would commit; allowed: RETRY_MAX_REPLAYS = 0, which replays nothing"
            )


def _saw(sender: Flask, *, exception: BaseException, **_: Any) -> None:
    saw(exception)


def _routed(sender: Flask, **_: Any) -> None:
    if request.endpoint is not None:
        routed(sender.view_functions.get(request.endpoint), request.environ)
