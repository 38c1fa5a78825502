"""A strict little WSGI server, apps that fail as told, and a database that remembers."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from wsgiref.headers import Headers
from wsgiref.util import setup_testing_defaults

import tenacity

from retrymw import Attempt, DisconnectionError, RetryPolicy, current_attempt
from retrymw.typing import Database, Environ, StartResponse, WSGIApp
from retrymw.wsgi import RetryMiddleware

Headerlist = list[tuple[str, str]]

TEXT: Headerlist = [("Content-Type", "text/plain")]


def lost() -> DisconnectionError:
    """A failure of ours."""
    return DisconnectionError("the server has gone away")


def request(method: str = "GET", path: str = "/", body: bytes = b"", **more: Any) -> Environ:
    """The environ of a request; a CONTENT_LENGTH only where there is a body."""
    environ: Environ = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path}
    environ["QUERY_STRING"] = ""
    if body:
        environ["CONTENT_LENGTH"] = str(len(body))
        environ["wsgi.input"] = io.BytesIO(body)
    environ |= more
    setup_testing_defaults(environ)
    return environ


def wrap(
    app: WSGIApp,
    *,
    databases: Iterable[Any] = (),
    hooks: Iterable[Any] = (),
    find_endpoint: Callable[[Environ], object] | None = None,
    **rules: Any,
) -> WSGIApp:
    """The middleware around ``app``, with these rules for its policy; it does not wait."""
    rules.setdefault("wait", tenacity.wait_none())
    return RetryMiddleware(
        app,
        policy=RetryPolicy(**rules),
        databases=databases,
        hooks=hooks,
        find_endpoint=find_endpoint,
    )


@dataclass
class Reply:
    """What has reached the server: where an exception passes, as much as did before it."""

    starts: int = 0
    status: int = 0
    headers: Headers = field(default_factory=Headers)
    chunks: list[bytes] = field(default_factory=list)
    result: Any = None

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def outcome(self) -> str | None:
        return self.headers["Retry-Outcome"]

    def write(self, data: bytes) -> None:
        assert self.starts, "body bytes before start_response()"
        if data:
            self.chunks.append(data)


def serve(
    app: WSGIApp, environ: Environ | None = None, reply: Reply | None = None, *, close: bool = True
) -> Reply:
    """Serve one request as PEP 3333 demands; without ``close`` as some test clients do."""
    reply = Reply() if reply is None else reply

    def start_response(status: str, headers: Headerlist, exc_info: Any = None, /) -> Any:
        if exc_info is not None:
            try:
                if reply.chunks:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        else:
            assert not reply.starts, "start_response() was called twice"
        reply.starts += 1
        reply.status, reply.headers = int(status[:3]), Headers(list(headers))
        return reply.write

    reply.result = app(request() if environ is None else environ, start_response)
    try:
        for chunk in reply.result:
            reply.write(chunk)
    finally:
        if close and hasattr(reply.result, "close"):
            reply.result.close()
    assert reply.starts, "the app never called start_response()"
    return reply


def consume(result: Any) -> list[bytes]:
    """What an app returned gives; it is closed, if it can be."""
    try:
        return list(result)
    finally:
        if hasattr(result, "close"):
            result.close()


def play(item: Any) -> Any:
    """An exception is raised, a function called, anything else is itself."""
    if isinstance(item, BaseException):
        raise item
    return item() if callable(item) else item


class Chunks:
    """An app's iterable of these items; an exception among them is raised, a function called."""

    def __init__(self, *items: Any, on_close: Any = None) -> None:
        self._items = iter(items)
        self._on_close = on_close
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk: bytes = play(next(self._items))
        return chunk

    def close(self) -> None:
        self.closed += 1
        play(self._on_close)


class Attempts:
    """An app whose attempt n runs the n-th app or raises the n-th exception; the last repeats."""

    def __init__(self, *apps: WSGIApp | BaseException) -> None:
        self._apps = apps
        self.calls = 0

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self.calls += 1
        app = self._apps[min(self.calls, len(self._apps)) - 1]
        if isinstance(app, BaseException):
            raise app
        return app(environ, start_response)


def answer(
    body: Iterable[bytes] | Callable[[], Iterable[bytes]] = (b"hello",),
    status: str = "200 OK",
    headers: Headerlist = TEXT,
    *,
    written: Iterable[bytes] = (),
) -> WSGIApp:
    """An app that starts, writes what is ``written`` and returns ``body``, a tuple as a list."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response(status, list(headers))
        for data in written:
            write(data)
        result = body() if callable(body) else body
        return list(result) if isinstance(result, tuple) else result

    return app


def generate(*items: Any, status: str = "200 OK", headers: Headerlist = TEXT) -> WSGIApp:
    """A generator app: it starts at the first ``next()``."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response(status, list(headers))
        for item in items:
            yield play(item)

    return app


def squashing(error: Exception, app: WSGIApp | None = None) -> WSGIApp:
    """A database layer sees the failure, and the framework answers all the same: 500 by default."""
    return doing(
        lambda: current_attempt().doom(error),
        app or answer((b"oops",), "500 Internal Server Error"),
    )


def doing(action: Callable[[], object], app: WSGIApp) -> WSGIApp:
    """``app`` after ``action``."""

    def acting(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        action()
        return app(environ, start_response)

    return acting


class FakeDatabase(Database):
    """Records in ``order`` what is done to it; an exception given for ``rollback`` is raised.

    Pings are only counted: how many there are is the waiting room's business.
    """

    def __init__(self, order: list[str] | None = None, *, name: str = "", **doing: Any) -> None:
        self.order: list[str] = [] if order is None else order
        self.opened = 0
        self.pings = 0
        self._name = name
        self._doing = doing

    def open(self) -> None:
        """What an app does with a connection: use the attempt's, open it if need be."""
        resources = current_attempt().resource(self)
        if self not in resources:
            resources[self] = object()
            self.opened += 1

    def rollback(self, attempt: Attempt) -> None:
        self._do("rollback")

    def release(self, attempt: Attempt) -> None:
        self.opened -= 1
        self._do("release")

    def ping(self) -> None:
        self.pings += 1
        play(self._doing.get("ping"))

    def _do(self, what: str) -> None:
        self.order.append(self._name + what)
        play(self._doing.get(what))


def until(condition: Callable[[], object]) -> None:
    """Wait until it is so, at most 10 s."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited 10 s in vain"
        time.sleep(0.002)
