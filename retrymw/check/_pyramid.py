"""Pyramid: its views, as the configurator's introspection has them."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Collection, Iterator
from types import MethodType
from typing import Any

from pyramid.interfaces import IExceptionResponse  # type: ignore[import-untyped]  # no types
from pyramid.router import Router  # type: ignore[import-untyped]

from retrymw.check._walk import Endpoint, Found, Place, Unseen, always

__all__ = ["app_in", "look"]


def app_in(candidate: Any) -> Any:
    """What ``config.make_wsgi_app()`` returns."""
    return candidate if isinstance(candidate, Router) else None


def look(app: Any, place: Place) -> Iterator[Found]:
    """What there is to be seen in the app."""
    execution = app.registry.get("retrymw")  # the integration is within the router
    if execution is not None:
        place = place.within(execution._middleware)
    introspector = app.registry.introspector
    views = introspector.get_category("views")
    if views is None:  # Configurator(introspection=False)
        yield Unseen(place, app)
        return
    for category in views:
        view = category["introspectable"]
        if _is_exceptional(view["context"]):
            continue
        route = introspector.get("routes", view["route_name"]) if view["route_name"] else None
        path = route["pattern"] if route is not None else f"*/{view['name']}"
        endpoint = _endpoint(view["callable"], view["attr"])
        if execution is not None and view["decorator"] is not None:  # it may be a mark
            sought = (view["callable"], view["attr"], view["decorator"])
            for *known, derived in execution.endpoints:
                if all(map(operator.is_, known, sought)):
                    endpoint = functools.update_wrapper(functools.partial(endpoint), derived)
        yield Endpoint(
            place,
            place.path(path),
            _methods(view["request_methods"] or (route and route["request_methods"])),
            always(endpoint),
            "Pyramid",
            missing=None if execution else "retrymw.integrations.pyramid.Retry(config)",
            hides=True,
        )


def _endpoint(view: Any, attr: str | None) -> Any:
    """What Pyramid calls, with its class."""
    if view is None or not (attr or inspect.isclass(view)):
        return view
    called = getattr(view, attr or "__call__")
    return MethodType(called, view) if inspect.isclass(view) else called


def _methods(methods: Any) -> Collection[str] | None:
    if not methods:
        return None
    takes = {methods} if isinstance(methods, str) else set(methods)
    return takes | ({"HEAD"} if "GET" in takes else set())


def _is_exceptional(context: Any) -> bool:
    if inspect.isclass(context):
        return issubclass(context, Exception)
    return context is IExceptionResponse
