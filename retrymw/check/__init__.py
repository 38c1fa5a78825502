"""Check an app at start-up: which of its routes are replayed, and what will surprise.

Nothing of the app is called: its routes are walked, and marks are read off their endpoints. A
framework is known only to the module that walks it, and loaded by the app itself, if at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from retrymw._core.exchange import Commit, Exchange, Row
from retrymw._core.policy import Mark, RetryPolicy
from retrymw.check._code import hidden_mark
from retrymw.check._results import Checked, Code, Finding, Middleware, Route
from retrymw.check._walk import Endpoint, Place, Unseen, name_of, walk
from retrymw.marks import read_mark

__all__ = ["Checked", "Code", "Finding", "Middleware", "Route", "check"]

# Of an endpoint that takes any; and the order in which methods are shown.
_METHODS: Final = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH")

# These raise what the others make responses of, so they have no integration.
_SEEN_THROUGH: Final = ("Starlette", "FastAPI")

_WHY: Final = {
    Row.SAFE: "a safe method",
    Row.REPEATABLE: "no mark, and the method is one of the policy's",
    Row.UNMARKED: "no mark",
    Row.ROLLBACK_SAFE: "@rollback_safe",
    Row.IDEMPOTENT: "@idempotent",
    Row.NEVER: "@never_replay",
}


def check(app: Any) -> Checked:
    """What retrymw would do with the app's requests, and what of it will surprise.

    Knows Starlette, FastAPI, Flask, Django, Litestar, Quart, Falcon, Pyramid and Bottle, mounted in
    each other or not, and finds ``RetryMiddleware`` around them and inside of them. Of another app
    there are no routes to be seen.

    Args:
        app: the WSGI or ASGI app, as the server is given it.

    Raises:
        TypeError: the app can't be called, or ``RetryMiddleware`` would not take what it is given.
    """
    if not callable(app) or isinstance(app, type):
        raise TypeError(f"app is {app!r}; allowed: a WSGI or ASGI app")
    frameworks: dict[str, None] = {}
    shells: dict[Any, Middleware] = {}
    routes: list[Route] = []
    findings: dict[Finding, None] = {}
    unseen: list[str] = []
    bare: list[Endpoint] = []
    for found in walk(app, Place()):
        if isinstance(found, Finding):
            findings[found] = None
            continue
        for prefix, retry in found.place.retries:
            shells.setdefault(retry, _middleware(prefix, retry))
        if _is_nested(found):
            findings[_nested(found.place)] = None
        if isinstance(found, Unseen):
            unseen.append(f"{found.place.prefix or '/'} ({name_of(found.app)})")
            continue
        frameworks[found.framework] = None
        routes += _routes(found)
        findings.update(dict.fromkeys(_of_endpoint(found)))
        if not found.place.retries:
            bare.append(found)
    if bare or not shells:
        finding = _no_middleware(bare if shells else [], unseen)
        findings = {finding: None, **findings}
    return Checked(
        tuple(frameworks), tuple(shells.values()), tuple(routes), tuple(findings), tuple(unseen)
    )


def _middleware(prefix: str, retry: Any) -> Middleware:
    asgi = any(base.__module__ == "retrymw.asgi" for base in type(retry).__mro__)
    databases = tuple(name_of(type(database)) for database in retry._settings.databases)
    policy = retry._settings.policy
    return Middleware("asgi" if asgi else "wsgi", prefix or "/", policy, databases)


def _routes(endpoint: Endpoint) -> Iterator[Route]:
    """The endpoint's methods, those that are treated alike together."""
    alike: list[Route] = []
    for method in sorted(endpoint.methods or _METHODS, key=_order):
        mark = _mark(endpoint, method)
        name = name_of(endpoint.target(method))
        route = Route((), endpoint.path, name, mark, *_verdict(endpoint, method, mark))
        for index, other in enumerate(alike):
            if route == replace(other, methods=()):
                alike[index] = replace(other, methods=(*other.methods, method))
                break
        else:
            alike.append(replace(route, methods=(method,)))
    yield from alike


def _order(method: str) -> tuple[int, str]:
    return (_METHODS.index(method) if method in _METHODS else len(_METHODS), method)


def _mark(endpoint: Endpoint, method: str) -> Mark | None:
    """The mark that the middleware would find."""
    settings = endpoint.place.settings
    if settings is not None and endpoint.missing and endpoint.hides:
        finder = settings.find_endpoint  # the app may have given one of its own
        if finder.__module__ in ("retrymw.asgi", "retrymw.wsgi"):
            return None
    return read_mark(endpoint.target(method), method)


def _verdict(endpoint: Endpoint, method: str, mark: Mark | None) -> tuple[bool, bool, bool, str]:
    """Whether it is replayed, by what is known of commits, and why."""
    if method == "WEBSOCKET":
        return False, False, False, "a websocket passes untouched"
    settings = endpoint.place.settings
    if settings is None:
        return False, False, False, "no RetryMiddleware around it"
    policy = settings.policy
    exchange = _exchange(policy, method, mark)
    why = _WHY[exchange.row] if exchange.policy.max_replays else "max_replays is 0"
    if exchange.row is Row.SAFE and mark is not None:
        why += ", whatever its mark"
    before, after, unknown = (
        _exchange(policy, method, mark, commit).may_replay_again for commit in Commit
    )
    return before, after, unknown, why


def _exchange(
    policy: RetryPolicy, method: str, mark: Mark | None, commit: Commit = Commit.NONE
) -> Exchange:
    """An exchange whose first attempt has come so far: it reads the decision table itself."""
    exchange = Exchange(policy, method, now=0.0)
    exchange.mark = mark
    if commit is not Commit.NONE:
        exchange.commit_sent()
    if commit is Commit.SEEN:
        exchange.commit_answered(committed=True)
    return exchange


def _of_endpoint(endpoint: Endpoint) -> Iterator[Finding]:
    settings = endpoint.place.settings
    if settings is None:
        return
    if endpoint.missing is not None:
        hidden = " and its marks can't be seen" if endpoint.hides else ""
        yield Finding(
            "no-integration",
            endpoint.framework,
            f"{endpoint.framework} makes responses of exceptions before RetryMiddleware sees "
            f"them{hidden}",
            f"Use {endpoint.missing} instead of RetryMiddleware",
        )
    unmarked = []
    for method in sorted(endpoint.methods or endpoint.takes, key=_order):
        if method == "WEBSOCKET":
            continue
        target = endpoint.target(method)
        mark = read_mark(target, method)
        hidden_one = hidden_mark(target, method) if mark is None else None
        if hidden_one is not None:
            yield Finding(
                "mark-without-effect",
                name_of(target),
                f"its mark @{hidden_one.kind.value} can't be seen: it is on another function than "
                "the one that the route has",
                "Put the mark right above def, and use functools.wraps in the decorators between",
            )
        elif _exchange(settings.policy, method, mark).row is Row.UNMARKED:
            unmarked.append(method)
    if unmarked:
        yield Finding(
            "unmarked",
            f"{', '.join(unmarked)} {endpoint.path}",
            f"{name_of(endpoint.target(unmarked[0]))} has no mark, so it is never replayed",
            "Mark it @rollback_safe or @idempotent, or @never_replay if that is what you want",
        )


def _is_nested(found: Endpoint | Unseen) -> bool:
    """Whether there is a ``RetryMiddleware`` too many; a mounted app needs its integration."""
    prefixes = [prefix for prefix, _ in found.place.retries]
    if isinstance(found, Endpoint) and found.framework not in _SEEN_THROUGH and not found.missing:
        return len(prefixes) > 2 or len(prefixes) > len(set(prefixes))
    return len(prefixes) > 1


def _nested(place: Place) -> Finding:
    return Finding(
        "nested",
        place.prefix or "/",
        f"{len(place.retries)} RetryMiddleware are around it, and only the outermost acts",
        "Keep one, and where the framework has an integration, that one",
    )


def _no_middleware(bare: list[Endpoint], unseen: list[str]) -> Finding:
    if not bare:
        return Finding(
            "no-middleware",
            "/",
            "no RetryMiddleware was found, so nothing is replayed"
            + (", unless there is one in what can't be seen" if unseen else ""),
            "Add it, as the how-to of your framework says",
        )
    paths = list(dict.fromkeys(endpoint.path for endpoint in bare))
    return Finding(
        "no-middleware",
        ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else ""),
        "no RetryMiddleware is around it, though there is one elsewhere",
        "Put RetryMiddleware around the whole app",
    )
