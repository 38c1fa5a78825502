"""Bottle: its routes, and those of what is mounted in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bottle import Bottle  # type: ignore[import-untyped]  # no types

from retrymw.check._walk import Endpoint, Found, Mounted, Place, always

__all__ = ["app_in", "look"]


def app_in(candidate: Any) -> Any:
    """The app of ``app.wsgi``: the app itself calls what wraps that."""
    owner = getattr(candidate, "__self__", None)
    return owner if isinstance(owner, Bottle) else None


def look(app: Any, place: Place) -> Iterator[Found]:
    """What there is to be seen in the app."""
    integrated = "_cast" in vars(app)  # the integration sees the exceptions there
    for route in app.routes:
        mount = route.config.get("mountpoint.target")
        if mount is not None:
            if route.rule.endswith(">"):  # and not that for the prefix without its slash
                yield Mounted(place.below(route.config["mountpoint.prefix"]), mount)
            continue
        yield Endpoint(
            place,
            place.path(route.rule),
            None if route.method == "ANY" else (route.method,),
            always(route.callback),
            "Bottle",
            missing=None if integrated else "retrymw.integrations.bottle.Retry(app)",
            hides=True,
        )
