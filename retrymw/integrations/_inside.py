"""What an integration tells from the inside of its framework: exceptions seen, endpoints found."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

from retrymw._context import Running, current_attempt, running

__all__ = ["not_routed", "routed", "saw"]

_ENDPOINTS: Final = (type, FunctionType, MethodType, partial)  # and not an app that is mounted


def saw(exception: BaseException | None) -> None:
    """The framework has this exception, and may make a response of it."""
    attempt = current_attempt(None)
    if attempt is not None and exception is not None:
        attempt.saw(exception)


def routed(endpoint: object, request: Mapping[str, Any]) -> None:
    """The framework has found the endpoint of this exchange, and is about to call it.

    Args:
        request: the environ or scope that was routed.
    """
    run = running.get()
    # One that makes requests of an app is still the endpoint that this exchange is of.
    if run is not None and run.endpoint is None and _is_request_of(run, request):
        run.endpoint = endpoint


def _is_request_of(run: Running, request: Mapping[str, Any]) -> bool:
    """Whether it is the exchange's request, or a copy for an app that is mounted (G3)."""
    mine = run.request
    if request is mine:
        return True
    for keys in (("wsgi.input",), ("headers", "asgi")):  # of an environ; of a scope
        if keys[0] in mine and keys[0] in request:
            return any(mine.get(key, run) is request.get(key) for key in keys)
    # A WSGI app in an ASGI app: mounted, unless an endpoint of the latter's is under way.
    endpoint: object = None
    with suppress(Exception):  # one of the app's own: it is logged where a mark is looked for
        endpoint = run.settings.find_endpoint(mine)
    if isinstance(endpoint, _ENDPOINTS) or hasattr(endpoint, "http_methods"):
        return False
    return bool(request.get("REQUEST_METHOD") == run.method)


def not_routed(request: object) -> object:
    """The ``find_endpoint`` of an integration: what was not routed so far has no mark."""
    return None
