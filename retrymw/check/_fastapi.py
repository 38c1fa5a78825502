"""FastAPI: Starlette, and dependencies that commit after the response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import fastapi
from fastapi import FastAPI, routing
from starlette.routing import Route

from retrymw.check import _starlette
from retrymw.check._code import commits_after_yield
from retrymw.check._results import Finding
from retrymw.check._squashed import squashed
from retrymw.check._walk import Found, Place, name_of

__all__ = ["app_in", "look"]

# 0.106 to 0.117 run what follows the yield before the response.
_AFTER_THE_RESPONSE: Final = (0, 118)


def app_in(candidate: Any) -> Any:
    """An app, or a router that is one by itself."""
    return candidate if isinstance(candidate, (FastAPI, routing.APIRouter)) else None


def look(app: Any, place: Place) -> Iterator[Found]:
    """What there is to be seen in the app."""
    if isinstance(app, FastAPI):
        place = _starlette.around(app, place)
        yield from squashed(app.exception_handlers, place)
    for kind, route in _routes(app):
        yield from _starlette.look_at_route(kind, route, place, "FastAPI")
        if isinstance(kind, Route) and _late(place):
            for dependency in _dependencies(getattr(route, "dependant", None)):
                yield Finding(
                    "late-commit",
                    name_of(dependency),
                    "what follows its yield runs when the response has been sent: if the commit "
                    "fails there, the client has been told that all is well",
                    'Commit before the response, with Depends(…, scope="function"), or '
                    + _remedy(place),
                )


def _routes(app: Any) -> Iterator[tuple[Any, Any]]:
    """Each route as it was made, and as it is within the routers that it was included with."""
    contexts = getattr(routing, "iter_route_contexts", None)  # new in 0.130 or so
    if contexts is None:
        yield from ((route, route) for route in app.routes)
    else:
        yield from ((context.original_route, context) for context in contexts(app.routes))


def _late(place: Place) -> bool:
    """Whether the response is out when a dependency of the default scope commits."""
    version = tuple(int(part) for part in fastapi.__version__.split(".")[:2])
    if place.settings is None or version < _AFTER_THE_RESPONSE:
        return False
    return not place.settings.holds_all or _swallows(place)


def _swallows(place: Place) -> bool:
    """Older ``BaseHTTPMiddleware`` loses what is raised after the response."""
    inside = any(_starlette.base_http_inside(place))
    return inside and not _starlette.ends_before_it_raises()


def _remedy(place: Place) -> str:
    if _swallows(place):
        return "update Starlette to 0.46, before which BaseHTTPMiddleware loses the exception"
    return 'RetryPolicy(hold="until-return")'


def _dependencies(dependant: Any) -> Iterator[Any]:
    """Those of a route that commit when its response has been sent, at any depth."""
    for dependency in () if dependant is None else dependant.dependencies:
        if getattr(dependency, "scope", None) != "function" and commits_after_yield(
            dependency.call
        ):
            yield dependency.call
        yield from _dependencies(dependency)
