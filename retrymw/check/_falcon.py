"""Falcon: the responders of its resources, and its sinks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import falcon
from falcon import inspect

from retrymw.check._walk import Endpoint, Found, Place, always

__all__ = ["app_in", "look"]


def app_in(candidate: Any) -> Any:
    """The app; an ASGI app is a WSGI app by inheritance."""
    return candidate if isinstance(candidate, falcon.App) else None


def look(app: Any, place: Place) -> Iterator[Found]:
    """What there is to be seen in the app."""
    integrated = any(base.__module__ == "retrymw.integrations.falcon" for base in type(app).__mro__)
    missing = None if integrated else "retrymw.integrations.falcon.Retry(app)"

    def endpoint(path: str, methods: Any, target: Any) -> Endpoint:
        return Endpoint(
            place, place.path(path), methods, target, "Falcon", missing=missing, hides=True
        )

    shown = {route.path: route.methods for route in inspect.inspect_routes(app)}
    for path, node in _nodes(app._router._roots, ""):
        # Falcon has responders of its own for OPTIONS and for what is not allowed.
        methods = [method.method for method in shown.get(path, []) if not method.internal]
        yield endpoint(path, methods, node.method_map.get)
    for pattern, sink, _ in app._sinks:
        yield endpoint(pattern.pattern, None, always(sink))


def _nodes(nodes: Any, parent: str) -> Iterator[tuple[str, Any]]:
    """Public as text only, in ``falcon.inspect``, which does the same."""
    for node in nodes:
        path = f"{parent}/{node.raw_segment}"
        if node.resource is not None:
            yield path, node
        yield from _nodes(node.children, path)
