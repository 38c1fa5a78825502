"""The rows of the tables: what is put around the same app, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

__all__ = ["BY_NAME", "Row", "named"]

Way = Literal[
    "bare",
    "tenacity",
    "stamina",
    "semaphore",
    "blind",
    "repoze.retry",
    "pyramid_retry",
    "retrymw",
]


@dataclass(frozen=True)
class Row:
    """One configuration of the app.

    Attributes:
        name: what the tables call it.
        sentence: what it is.
        way: how the app is protected.
        pool: connections of an SQLAlchemy pool in each process; 0 for a connection per request.
        adapter: whether the connections come from a retrymw adapter.
        front: what stands before the app.
        workers: processes that share the port.
        mark: of the endpoint that places orders; the other endpoints are GET.
        wsgi: Flask (or Pyramid) on gunicorn with 8 threads instead of Starlette on uvicorn.
        reference: measured to compare with, and no competitor.
    """

    name: str
    sentence: str
    way: Way = "bare"
    pool: int = 0
    adapter: bool = False
    front: Literal["haproxy", "nginx"] | None = None
    workers: int = 1
    mark: Literal["rollback_safe", "idempotent"] = "rollback_safe"
    wsgi: bool = False
    reference: bool = False


def _with(row: Row, name: str, sentence: str, **changes: object) -> Row:
    return replace(row, name=f"{row.name}, {name}", sentence=sentence, **changes)  # type: ignore[arg-type]  # its fields


def _several(row: Row, workers: int) -> Row:
    return _with(row, f"{workers} workers", f"*{row.name}* in {workers} processes", workers=workers)


BARE: Final = Row("bare", "the app alone: what its database work raises becomes a 503")
TENACITY: Final = Row(
    "tenacity",
    "tenacity around `connect`: `wait_exponential_jitter(initial=0.1, max=2)`, "
    "`stop_after_delay(10)`",
    way="tenacity",
)
STAMINA: Final = Row(
    "stamina",
    "`stamina.retry(attempts=None, timeout=10)` around the function that connects, works and "
    "commits",
    way="stamina",
)
HAPROXY: Final = Row(
    "HAProxy", "*bare* behind HAProxy: `retry-on 503`, `retries 5`", front="haproxy"
)
NGINX: Final = Row(
    "nginx",
    "*bare* behind nginx: `proxy_next_upstream error timeout http_503 non_idempotent`, six tries",
    front="nginx",
)
SEMAPHORE: Final = Row(
    "semaphore",
    "a semaphore of exactly 20 around the database work; a connection refused nevertheless (the "
    "server frees one a moment after it was closed) is tried again every 10 ms for 10 s",
    way="semaphore",
)
IDEAL: Final = Row(
    "ideal pool",
    "*bare* over an SQLAlchemy pool of exactly 20 connections, no overflow, that waits 10 s for "
    "one of them",
    pool=20,
    reference=True,
)
BLIND: Final = Row(
    "blind",
    "the whole endpoint again and again for 10 s, with full jitter: 0 to 0.05 s, then 0 to 0.1 s, "
    "up to 2 s",
    way="blind",
)
RETRYMW: Final = Row("retrymw", "`RetryMiddleware`, nothing configured, no adapter", way="retrymw")

BARE_50: Final = _with(
    BARE, "pool of 50", "*bare* over an SQLAlchemy pool of 50 on the server of 20", pool=50
)
RETRYMW_50: Final = _with(RETRYMW, "pool of 50", "*retrymw* over the same pool", pool=50)
ADAPTER: Final = _with(
    RETRYMW,
    "adapter",
    "*retrymw* with its adapter of asyncmy, which has a pool of 20 and can `ping()`",
    adapter=True,
)
BLIND_2: Final = _several(BLIND, 2)
SEMAPHORE_2: Final = _several(SEMAPHORE, 2)
RETRYMW_2: Final = _several(RETRYMW, 2)
RETRYMW_4: Final = _several(RETRYMW, 4)
IDEMPOTENT: Final = _with(
    RETRYMW,
    "@idempotent",
    "*retrymw*; the endpoint is marked `@idempotent`, its table has a unique key, and it says "
    "`INSERT IGNORE`. Elsewhere it is `@rollback_safe`",
    mark="idempotent",
)

WSGI_BARE: Final = replace(BARE, name="bare, WSGI", sentence="*bare* in Flask", wsgi=True)
WSGI_BLIND: Final = replace(BLIND, name="blind, WSGI", sentence="*blind* in Flask", wsgi=True)
REPOZE: Final = Row(
    "repoze.retry",
    "`repoze.retry.Retry(tries=8, delay=0.08)` around Flask: ten seconds in all",
    way="repoze.retry",
    wsgi=True,
)
PYRAMID: Final = Row(
    "pyramid_retry",
    "pyramid_retry with six attempts (it does not wait between them), in Pyramid",
    way="pyramid_retry",
    wsgi=True,
)
WSGI_RETRYMW: Final = Row(
    "retrymw, WSGI", "`retrymw.integrations.flask.Retry`, nothing configured", "retrymw", wsgi=True
)

BY_NAME: Final = {row.name: row for row in list(globals().values()) if isinstance(row, Row)}


def named(names: tuple[str, ...]) -> frozenset[str]:
    """The names of the rows that are called so, with their variants; all for none.

    Raises:
        ValueError: there is no such row.
    """
    for name in names:
        if name not in BY_NAME:
            raise ValueError(f"--rows has {name!r}; allowed: {', '.join(BY_NAME)}")
    return frozenset(
        row
        for row in BY_NAME
        if not names or any(row == n or row.startswith(f"{n},") for n in names)
    )
