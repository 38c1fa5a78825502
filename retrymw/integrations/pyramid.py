"""Pyramid: sees the exceptions that Pyramid turns into responses, and the marks of its views."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

from pyramid.config import Configurator  # type: ignore[import-untyped]  # no types
from pyramid.events import ApplicationCreated  # type: ignore[import-untyped]
from pyramid.interfaces import (  # type: ignore[import-untyped]
    IExceptionResponse,
    IExecutionPolicy,
)
from pyramid.tweens import EXCVIEW, MAIN  # type: ignore[import-untyped]
from pyramid.viewderivers import INGRESS  # type: ignore[import-untyped]

from retrymw._core.policy import RetryPolicy
from retrymw.integrations._inside import not_routed, routed, saw
from retrymw.marks import read_mark
from retrymw.typing import Environ, Hook, StartResponse
from retrymw.wsgi import RetryMiddleware

__all__ = ["Retry"]


def Retry(
    config: Configurator,
    *,
    policy: RetryPolicy | None = None,
    databases: Iterable[Any] = (),
    hooks: Iterable[Hook] = (),
) -> None:
    """Configures an app's replays: ``Retry(config, policy=…, databases=[…], hooks=[…])``.

    It is an execution policy, around tweens, and inside of WSGI middleware. An exception that an
    exception view makes a response of is seen: the attempt is doomed, and if its response is a 5xx
    the request is replayed; a response below 500 is the app's own answer and is sent.

    Args:
        config: the app's, before its views are committed.
        policy, databases, hooks: as for :class:`retrymw.wsgi.RetryMiddleware`.

    Raises:
        TypeError: naming the argument, its value and what is allowed.
        RuntimeError: the app has its replays already, or views whose marks could not be found. Out
            of ``make_wsgi_app()``: the app has another execution policy.
    """
    if not isinstance(config, Configurator):
        raise TypeError(
            f"config is {config!r}; allowed: a pyramid.config.Configurator, before make_wsgi_app()"
        )
    if "retrymw" in config.registry:
        raise RuntimeError(f"{config!r} has its replays already; call Retry() once for an app")
    for known in config.introspector.get_category("views", default=()):
        view = known["introspectable"]
        if not _is_exceptional(view["context"]):
            raise RuntimeError(
                f"{config!r} has committed {view['callable']!r}, whose mark can't be found any "
                "more; call Retry() first, right after the Configurator is made"
            )
    execution = _Execution(policy=policy, databases=databases, hooks=hooks)
    config.add_view_deriver(_derive, "retrymw", under=INGRESS, over="secured_view")
    config.add_tween(f"{__name__}.tween", under=EXCVIEW, over=MAIN)
    config.set_execution_policy(execution)
    config.add_subscriber(execution.check, ApplicationCreated)
    config.registry["retrymw"] = execution


class _Execution:
    """What Pyramid asks for a response, and calls it with the environ and ``start_response``.

    Attributes:
        endpoints: for the check: each view, its ``attr`` and ``decorator``, and where its mark is.
    """

    def __init__(self, **options: Any) -> None:
        self.endpoints: list[tuple[Any, str | None, Any, object]] = []
        self._middleware = RetryMiddleware(self._attempt, find_endpoint=not_routed, **options)
        self._router: Any = None

    def __call__(self, environ: Environ, router: Any) -> RetryMiddleware:
        self._router = router  # any one of the same configuration will do
        return self._middleware

    def check(self, event: ApplicationCreated) -> None:
        """A configuration may override that of what it includes."""
        used = event.app.registry.queryUtility(IExecutionPolicy)
        if used is not self:
            raise RuntimeError(
                f"the execution policy is {used!r}, so retrymw's Retry() has no effect; leave out "
                "set_execution_policy(), or Retry()"
            )

    def _attempt(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        with self._router.request_context(environ) as request:
            response = self._router.invoke_request(request)
            saw(getattr(request, "exception", None))  # that an exception view has rendered
        result: Iterable[bytes] = response(environ, start_response)
        return result


def tween(handler: Callable[[Any], Any], registry: Any) -> Callable[[Any], Any]:
    """A tween factory, for the innermost tween: those around it may squash exceptions."""

    def tween_of_retrymw(request: Any) -> Any:
        try:
            return handler(request)
        except Exception as exc:
            saw(exc)
            raise

    return tween_of_retrymw


def _derive(view: Callable[..., Any], info: Any) -> Callable[..., Any]:
    """A view deriver, for the outermost, which is called once the predicates hold."""
    if info.exception_only:
        return view
    attr, decorator = info.options.get("attr"), info.options.get("decorator")
    endpoint = _endpoint(view, info.original_view, attr)
    info.registry["retrymw"].endpoints.append((info.original_view, attr, decorator, endpoint))

    def view_of_retrymw(context: Any, request: Any) -> Any:
        routed(endpoint, request.environ)  # a subrequest's view is not the exchange's
        return view(context, request)

    return view_of_retrymw


def _endpoint(derived: Any, view: Any, attr: str | None) -> object:
    """Where the mark is: on a ``decorator`` of the view's, or on what Pyramid calls."""
    while derived is not None and derived is not view:
        if read_mark(derived, ""):
            return derived
        derived = getattr(derived, "__wraps__", None)
    called = getattr(view, attr or "__call__")
    if inspect.isclass(view):
        return MethodType(called, view)  # its mark, or else that of its class
    return called if attr or isinstance(called, MethodType) else view


def _is_exceptional(context: Any) -> bool:
    if inspect.isclass(context):
        return issubclass(context, Exception)
    return context is IExceptionResponse
