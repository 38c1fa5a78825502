"""Which requests are alike: by method and path, since a request that waits is not routed yet."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["Routes", "route_of"]

_MOST_ROUTES: Final = 500
_MOST_SIBLINGS: Final = 8

# A number, a UUID, a date, a token: the name of one thing of many.
_VARIABLE: Final = re.compile(r"[^/]*[0-9@:=][^/]*|[^/]{33,}")


def route_of(method: str, path: str) -> str:
    """What requests for things of one kind have in common: ``GET /orders/*`` of ``/orders/17``."""
    return f"{method} {_VARIABLE.sub('*', path)}"


class Routes:
    """Routes that have failed. There is a limit to them: those beyond it are not remembered.

    Where more than a few differ in their last part only, as in ``/users/alice`` and ``/users/bob``,
    it is taken for a variable; but ``/orders`` and ``/users`` are pages of their own.
    """

    __slots__ = ("_routes", "_siblings")

    def __init__(self) -> None:
        self._routes: set[str] = set()
        self._siblings: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def __contains__(self, route: str) -> bool:
        return route in self._routes or _siblings_of(route) in self._routes

    def add(self, route: str) -> None:
        """This one has failed."""
        if route in self or len(self._routes) >= _MOST_ROUTES:
            return
        every = _siblings_of(route)
        count = self._siblings[every] = self._siblings.get(every, 0) + 1
        self._routes.add(every if count > _MOST_SIBLINGS else route)


def _siblings_of(route: str) -> str:
    parent, _, last = route.rpartition("/")
    # Two stars: that /orders/17 has failed says nothing of /orders/new.
    return f"{parent}/**" if "/" in parent and last else route
