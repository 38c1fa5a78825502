"""Starlette: its routes, mounts and hosts, and what its middleware and handlers squash."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from typing import Any, Final

import starlette
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute

from retrymw.check._code import streams
from retrymw.check._results import Finding
from retrymw.check._squashed import squashed
from retrymw.check._walk import (
    MOST_LAYERS,
    Endpoint,
    Found,
    Mounted,
    Place,
    Unseen,
    always,
    inner,
    is_retry_class,
    name_of,
)

__all__ = ["app_in", "around", "base_http_inside", "look", "look_at_route"]

# From here on BaseHTTPMiddleware ends a response, then raises what the app raised.
_ENDS_BEFORE_IT_RAISES: Final = (0, 46)


def app_in(candidate: Any) -> Any:
    """An app, or a router that is one by itself."""
    return candidate if isinstance(candidate, (Starlette, Router)) else None


def look(app: Any, place: Place) -> Iterator[Found]:
    """What there is to be seen in the app."""
    if isinstance(app, Starlette):
        place = around(app, place)
        yield from squashed(app.exception_handlers, place)
    else:
        place = _within_layers(app.middleware_stack, place)
    for route in app.routes:
        yield from look_at_route(route, route, place, "Starlette")


def around(app: Starlette, place: Place) -> Place:
    """The place of the app's router."""
    return place.within(*(_layer(middleware, app) for middleware in app.user_middleware))


def look_at_route(kind: BaseRoute, route: Any, place: Place, framework: str) -> Iterator[Found]:
    """One route.

    Args:
        kind: the route as its class was made.
        route: what has its path and endpoint; FastAPI has another one in a router.
    """
    if isinstance(kind, Mount):
        yield Mounted(place.below(route.path), route.app)
    elif isinstance(kind, Host):
        yield Mounted(Place(f"//{route.host}", place.layers), route.app)
    elif isinstance(kind, (Route, WebSocketRoute)):
        place = _within_layers(route.app, place, route.endpoint)
        endpoint = Endpoint(
            place,
            place.path(route.path),
            ("WEBSOCKET",) if isinstance(kind, WebSocketRoute) else _methods(route),
            always(route.endpoint),
            framework,
        )
        yield endpoint
        if isinstance(kind, Route):
            yield from _streams_in_base_http(endpoint, route.endpoint)
    else:
        yield Unseen(place.below(getattr(kind, "path", "")), kind)


def base_http_inside(place: Place) -> Iterator[str]:
    """The names of ``BaseHTTPMiddleware`` that runs inside of ``RetryMiddleware``."""
    for layer in place.inside:
        cls = layer.cls if isinstance(layer, Middleware) else type(layer)
        if isinstance(cls, type) and issubclass(cls, BaseHTTPMiddleware):
            dispatch = layer.kwargs.get("dispatch") if isinstance(layer, Middleware) else None
            yield name_of(cls if dispatch is None else dispatch)


def ends_before_it_raises() -> bool:
    """Whether this Starlette's ``BaseHTTPMiddleware`` does."""
    version = tuple(int(part) for part in starlette.__version__.split(".")[:2])
    return version >= _ENDS_BEFORE_IT_RAISES


def _layer(middleware: Middleware, app: Starlette) -> object:
    """Middleware is made when the app starts; ours is cheap to make, and tells of its policy."""
    made_of: Any = middleware.cls
    cls = made_of.func if isinstance(made_of, functools.partial) else made_of
    if is_retry_class(cls):
        return made_of(app, *middleware.args, **middleware.kwargs)
    return middleware


def _within_layers(app: Any, place: Place, innermost: object = None) -> Place:
    """The place inside of the middleware of a route or router."""
    for _ in range(MOST_LAYERS):
        below = inner(app)
        if app is innermost or below is None:
            break
        place = place.within(app)
        app = below
    return place


def _methods(route: Any) -> Collection[str] | None:
    if route.methods is not None:
        return tuple(route.methods)
    endpoint = route.endpoint
    if isinstance(endpoint, type) and issubclass(endpoint, HTTPEndpoint):
        methods = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
        takes = {method for method in methods if hasattr(endpoint, method.lower())}
        return takes | ({"HEAD"} if "GET" in takes else set())
    return None


def _streams_in_base_http(endpoint: Endpoint, target: Any) -> Iterator[Finding]:
    settings = endpoint.place.settings
    if settings is None or settings.holds_all or not ends_before_it_raises():
        return
    for name in base_http_inside(endpoint.place):
        if streams(target):
            yield Finding(
                "base-http-middleware",
                f"{endpoint.path} in {name}",
                "a stream that fails before its first chunk is not replayed: BaseHTTPMiddleware "
                "ends it first, and the client gets an empty response",
                'Write pure ASGI middleware, move it outside of RetryMiddleware, or hold="'
                'until-return"',
            )
