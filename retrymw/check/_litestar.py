"""Litestar: its handlers, in whatever controllers and routers they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from litestar import Litestar
from litestar.routes import ASGIRoute, HTTPRoute

from retrymw.check._walk import Endpoint, Found, Mounted, Place, always

__all__ = ["app_in", "look"]


def app_in(candidate: Any) -> Any:
    """The app."""
    return candidate if isinstance(candidate, Litestar) else None


def look(app: Any, place: Place) -> Iterator[Found]:
    """What there is to be seen in the app."""
    missing = all(
        hook.__module__ != "retrymw.integrations.litestar" for hook in app.after_exception
    )
    for route in app.routes:
        if isinstance(route, ASGIRoute):
            yield Mounted(place.below(route.path), route.route_handler.fn)
            continue
        http = isinstance(route, HTTPRoute)
        for handler in route.route_handlers if http else [route.route_handler]:
            yield Endpoint(
                place,
                place.path(route.path),
                sorted(handler.http_methods) if http else ("WEBSOCKET",),
                always(handler),
                "Litestar",
                missing="retrymw.integrations.litestar.Retry(app)" if missing else None,
            )
