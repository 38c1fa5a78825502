"""Flask and Quart, which are the same as far as routes go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask.sansio.app import App

from retrymw.check._walk import Endpoint, Found, Place, always

__all__ = ["app_in", "look"]


def app_in(candidate: Any) -> Any:
    """The app of ``app.wsgi_app`` or ``app.asgi_app``: the app itself calls what wraps that."""
    owner = getattr(candidate, "__self__", None)
    return owner if isinstance(owner, App) else None


def look(app: Any, place: Place) -> Iterator[Found]:
    """What there is to be seen in the app."""
    name = "Quart" if hasattr(app, "asgi_app") else "Flask"
    missing = "retrymw" not in app.extensions
    for rule in app.url_map.iter_rules():
        if rule.build_only:
            continue
        view = app.view_functions.get(rule.endpoint)
        host = rule.host if app.url_map.host_matching else rule.subdomain
        yield Endpoint(
            place,
            (f"//{host}" if host else "") + place.path(rule.rule),
            ("WEBSOCKET",) if rule.websocket else rule.methods,
            always(view),
            name,
            missing=f"retrymw.integrations.{name.lower()}.Retry(app)" if missing else None,
            hides=True,
        )
