"""What the middleware adds to a request in which nothing fails, beside what others add.

    python -m benchmarks overhead [--rounds 30]

The candidates take turns in every round, so that a noisy machine is noisy for all of them; the
median of the rounds counts. No sockets: the app is called as a server would call it.
"""

from __future__ import annotations

import asyncio
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from wsgiref.util import setup_testing_defaults

import click
import repoze.retry
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import retrymw.asgi
import retrymw.wsgi

Scope = MutableMapping[str, Any]
Table = dict[str, float]
CALLS = 2000  # requests in a turn


async def home(request: Request) -> Response:
    """The endpoint."""
    return JSONResponse({"message": "hello"})


class NoOp:
    """The least an ASGI middleware can do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


async def _call_next(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    return await call_next(request)


def scope() -> Scope:
    """A GET request as uvicorn describes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"accept", b"*/*")],
        "state": {},
    }


async def _receive() -> Scope:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Scope) -> None:
    pass


async def asgi(rounds: int) -> Table:
    """Microseconds a request over a bare Starlette JSON endpoint."""
    app = Starlette(routes=[Route("/", home)])
    candidates: dict[str, Any] = {
        "bare": app,
        "no-op middleware": NoOp(app),
        "retrymw": retrymw.asgi.RetryMiddleware(app),
        "BaseHTTPMiddleware": BaseHTTPMiddleware(app, dispatch=_call_next),
    }
    turns: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                await candidate(scope(), _receive, _send)
            turns[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return {name: statistics.median(times) for name, times in turns.items()}


def _hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


def _no_op(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    return _hello(environ, start_response)


def _start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
    return lambda data: None


def wsgi(rounds: int) -> Table:
    """Microseconds a request over a bare callable."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ.update({f"HTTP_X_HEADER_{number}": "value" for number in range(10)})
    candidates: dict[str, Callable[..., Iterable[bytes]]] = {
        "bare": _hello,
        "no-op middleware": _no_op,
        "retrymw": retrymw.wsgi.RetryMiddleware(_hello),
        "repoze.retry": repoze.retry.Retry(_hello, 6),
    }
    turns: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                for _chunk in candidate(environ.copy(), _start_response):
                    pass
            turns[name].append((time.perf_counter() - start) / CALLS * 1e6)
    return {name: statistics.median(times) for name, times in turns.items()}


def show(title: str, table: Table) -> None:
    """Print a table of medians and of what each adds to the first."""
    print(f"\n{title}")
    bare = next(iter(table.values()))
    for name, microseconds in table.items():
        print(f"  {name:<20} {microseconds:7.2f} µs   +{microseconds - bare:.2f} µs")


@click.command()
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(min=1))
def overhead(rounds: int) -> None:
    """Measure what the middleware adds to a request in which nothing fails."""
    print(f"Python {platform.python_version()}, median of {rounds} rounds of {CALLS} requests")
    show("ASGI, over a bare Starlette JSON endpoint", asyncio.run(asgi(rounds)))
    show("WSGI, over a bare callable", wsgi(rounds))


if __name__ == "__main__":
    overhead()
