"""Django: the views of its URL configuration."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from django.core.handlers.asgi import ASGIHandler  # type: ignore[import-untyped]  # no types
from django.core.handlers.wsgi import WSGIHandler  # type: ignore[import-untyped]
from django.urls import URLResolver, get_resolver  # type: ignore[import-untyped]

from retrymw.check._code import closed_over, mentions
from retrymw.check._walk import Endpoint, Found, Place, always

__all__ = ["app_in", "look"]

_MOST_DECORATORS: Final = 32


def app_in(candidate: Any) -> Any:
    """A handler; one that has an app serves static files in front of it."""
    is_app = isinstance(candidate, (WSGIHandler, ASGIHandler))
    return candidate if is_app and not hasattr(candidate, "application") else None


def look(app: Any, place: Place) -> Iterator[Found]:
    """What there is to be seen in the app."""
    missing = "resolve_request" not in vars(app)  # the integration sees the routing there
    for path, view in _views(get_resolver(), ""):
        methods = _methods(view)
        yield Endpoint(
            place,
            place.path(path),
            methods,
            always(view),
            "Django",
            missing="retrymw.integrations.django.Retry(application)" if missing else None,
            hides=True,
            # A view that takes any method, and asks which it is or reads a form.
            takes=[method for method in ("POST", "PATCH") if mentions(view, method)],
        )


def _views(resolver: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for pattern in resolver.url_patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _views(pattern, path)
        else:
            yield path, pattern.callback


def _methods(view: Any) -> Collection[str] | None:
    view_class = getattr(view, "view_class", None)
    if view_class is not None:
        names = view_class.http_method_names
        takes = {name.upper() for name in names if hasattr(view_class, name)}
        return takes | ({"HEAD"} if "GET" in takes else set())
    actions = getattr(view, "actions", None)  # of a view set of Django REST framework
    if isinstance(actions, dict):
        takes = {method.upper() for method in actions}
        return takes | ({"HEAD"} if "GET" in takes else set()) | {"OPTIONS"}
    for _ in range(_MOST_DECORATORS):
        # What require_http_methods() was given, and require_POST and their like by it.
        methods = closed_over(view).get("request_method_list")
        if methods is not None:
            return tuple(methods)
        view = getattr(view, "__wrapped__", None)
        if view is None:
            break
    return None
