"""A strict ASGI server, strict checks of what the app gets, apps that fail, and fake databases."""

from __future__ import annotations

import inspect
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
from tenacity import wait_fixed, wait_none

from retrymw import DisconnectionError, RetryPolicy, current_attempt
from retrymw.asgi import RetryMiddleware

GONE = object()
"""In the body of a client: here it leaves."""

_KEYS = {
    "http.response.start": {"status", "headers", "trailers"},
    "http.response.body": {"body", "more_body"},
    "http.response.debug": {"info"},
    "http.response.early_hint": {"links"},
    "http.response.pathsend": {"path"},
    "http.response.push": {"path", "headers"},
    "http.response.trailers": {"headers", "more_trailers"},
    "http.response.zerocopysend": {"file", "offset", "count", "more_body"},
}
_EXTENSIONS = _KEYS.keys() - {"http.response.start", "http.response.body"}
_BODIES = {"http.response.body", "http.response.pathsend", "http.response.zerocopysend"}


def policy(**fields: Any) -> RetryPolicy:
    """A policy that does not wait."""
    return RetryPolicy(**{"wait": wait_none(), **fields})


def patient(**fields: Any) -> RetryPolicy:
    """A policy whose waits outlast every test: something else must end them."""
    return RetryPolicy(wait=wait_fixed(3600), deadline=1e6, **fields)


def lost(phase: str = "execute") -> DisconnectionError:
    """The database dropped the connection."""
    return DisconnectionError("secret-host:3306 went away", phase=phase)


class NotOurs(Exception):
    """An error that has nothing to do with a database."""


class Client:
    """One request, from the server's side: gives the body, takes the response, strict about both.

    Args:
        body: the chunks, in order. `GONE` among them: the client leaves. An event among them: what
            comes after it waits for it.
        on_receive: called at every `receive`, before it answers.
        **scope: further keys of the scope.
    """

    def __init__(
        self, method="GET", path="/", *, body=(), headers=(), on_receive=lambda: None, **scope
    ):
        self._incoming = deque(body or [b""])
        self._end = anyio.Event()
        self._on_receive = on_receive
        self._state = "before"
        self.over = False
        self.asked = 0
        self.sent: list[dict[str, Any]] = []
        self.violations: list[str] = []
        self.runs: list[AppRun] = []
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 80),
            "extensions": {extension: {} for extension in _EXTENSIONS},
            "state": {},
            **scope,
        }

    async def call(self, app):
        """Make the request; what the app returns is returned, what it raises is raised."""
        try:
            return await app(self.scope, self.receive, self.send)
        finally:
            self.over = True
            assert not self.violations, self.violations

    def leave(self):
        """Close the connection."""
        for item in self._incoming:
            if isinstance(item, anyio.Event):
                item.set()
        self._incoming.clear()
        self._end.set()

    # What the app side calls.

    async def receive(self):
        self.asked += 1
        self._on_receive()
        while self._incoming and not self._end.is_set():
            item = self._incoming[0]
            if isinstance(item, anyio.Event):
                await item.wait()
                if self._incoming and self._incoming[0] is item:
                    self._incoming.popleft()
                continue
            self._incoming.popleft()
            if item is GONE:
                self.leave()
                break
            return {"type": "http.request", "body": item, "more_body": bool(self._incoming)}
        if not self._end.is_set():
            await self._end.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        try:
            message = self._checked(message)
        except AssertionError as exc:
            self.violations.append(f"{exc}: {message}")
            raise
        self.sent.append(message)

    def _checked(self, message):
        message = dict(message)
        kind = message["type"]
        assert not self.over, "sent after the app returned"
        assert self._state != "done", "sent after the response was complete"
        assert set(message) <= {"type"} | _KEYS[kind], "keys that are not specified"
        if kind in _EXTENSIONS:
            assert kind in self.scope["extensions"], "an extension nobody offered"
        if "headers" in message:
            message["headers"] = [_header(*header) for header in message["headers"]]
        if kind in ("http.response.debug", "http.response.early_hint"):
            assert self._state == "before", "too late"
        elif kind == "http.response.start":
            assert self._state == "before", "started twice"
            assert type(message["status"]) is int, "a status that is no number"
            assert 200 <= message["status"] <= 599, "a status that ends nothing"
            self._state = "body"
        elif kind in _BODIES:
            assert self._state == "body", "a body out of place"
            assert isinstance(message.get("body", b""), bytes), "a body that is not bytes"
            if not message.get("more_body", False):
                self._state = "trailers" if self._start.get("trailers") else "done"
        elif kind == "http.response.trailers":
            assert self._state == "trailers", "trailers out of place"
            if not message.get("more_trailers", False):
                self._state = "done"
        if self._state == "done":
            self._check_length(message)
            self._end.set()
        return message

    def _check_length(self, last):
        kinds = {message["type"] for message in [*self.sent, last]}
        if self.scope["method"] == "HEAD" or not kinds <= {
            "http.response.start",
            "http.response.body",
        }:
            return
        length = self.header("content-length")
        if length is not None:
            assert int(length) == len(self.body + last.get("body", b"")), "a wrong content-length"

    # What the client got.

    @property
    def complete(self):
        return self._state == "done"

    @property
    def _start(self):
        return next(m for m in self.sent if m["type"] == "http.response.start")

    @property
    def status(self):
        return self._start["status"]

    @property
    def body(self):
        return b"".join(m.get("body", b"") for m in self.sent if m["type"] == "http.response.body")

    @property
    def kinds(self):
        """The types of the messages, without what is common to all of them."""
        return [message["type"].removeprefix("http.response.") for message in self.sent]

    def header(self, name):
        """The header's value; None if there is none. It is not there twice."""
        values = [v for n, v in self._start.get("headers", ()) if n == name.lower().encode()]
        assert len(values) <= 1, values
        return values[0].decode() if values else None

    @property
    def told(self):
        """The names of the headers that retrymw may have added."""
        ours = ("retry-attempts", "retry-reason", "retry-outcome", "retry-after", "server-timing")
        return {name for name in ours if self.header(name) is not None}


def _header(name, value):
    assert isinstance(name, bytes), "a header name that is not bytes"
    assert isinstance(value, bytes), "a header value that is not bytes"
    assert name == name.lower(), "a header name in capitals"
    assert not {b"\r", b"\n"} & {bytes([byte]) for byte in name + value}, "a broken header"
    return name, value


@dataclass
class AppRun:
    """One run of the app under the middleware: what it was given."""

    scope: Any
    keys: dict[str, Any]
    received: list[Any] = field(default_factory=list)

    @property
    def read(self):
        return b"".join(m["body"] for m in self.received if m["type"] == "http.request")

    @property
    def read_to_the_end(self):
        return any(not m["more_body"] for m in self.received if m["type"] == "http.request")

    def check(self, message):
        kind = message["type"]
        gone = any(m["type"] == "http.disconnect" for m in self.received)
        if kind == "http.disconnect":
            assert set(message) == {"type"}
        else:
            assert kind == "http.request"
            assert set(message) == {"type", "body", "more_body"}
            assert type(message["body"]) is bytes
            assert type(message["more_body"]) is bool
            assert not self.read_to_the_end, "more after the end of the body"
            assert not gone, "more after the client left"
        self.received.append(message)


class Checked:
    """An app, and strict checks of what it is given; remembers every run of it."""

    def __init__(self, app):
        self.app = app
        self.runs: list[AppRun] = []

    async def __call__(self, scope, receive, send):
        run = AppRun(scope, dict(scope))
        self.runs.append(run)

        async def checked_receive():
            message = await receive()
            run.check(message)
            return message

        async def checked_send(message):
            answer = await send(message)
            assert answer is None

        return await self.app(scope, checked_receive, checked_send)


async def request(app, client=None, **settings):
    """Make a request to `app` through the middleware, both sides checked; returns the client.

    Args:
        client: None for a simple GET.
        **settings: of the middleware. Without a policy there are no waits.
    """
    client = client or Client()
    app = Checked(app)
    client.runs = app.runs
    client.result = await client.call(RetryMiddleware(app, **{"policy": policy(), **settings}))
    return client


# Apps.


async def answer(send, body=b"ok", status=200, headers=(("content-type", "text/plain"),)):
    """Send a whole response."""
    raw = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def read(receive):
    """Read the whole request body."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise NotOurs("the client left")
        body += message["body"]
        if not message["more_body"]:
            return body


async def ok(scope, receive, send):
    await answer(send)


async def echo(scope, receive, send):
    await answer(send, await read(receive))


class Flaky:
    """An app that raises one error after the other, one per run, and then works.

    Args:
        *errors: exceptions to raise.
        first: run before raising: a coroutine function of scope, receive and send.
        then: the app that works.
    """

    def __init__(self, *errors, first=None, then=ok):
        self.errors = list(errors)
        self.first = first
        self.then = then
        self.calls = 0

    async def __call__(self, scope, receive, send):
        self.calls += 1
        if self.calls > len(self.errors):
            return await self.then(scope, receive, send)
        if self.first is not None:
            await self.first(scope, receive, send)
        raise self.errors[self.calls - 1]


# Databases.


class FakeDatabase:
    """A database that writes down what is done to it, as `"rollback 1"` for attempt 1.

    Args:
        log: where to.
        name: goes before each entry.
        on_rollback, on_release: called in their course.
    """

    def __init__(self, log=None, name="", on_rollback=lambda: None, on_release=lambda: None):
        self.log = [] if log is None else log
        self.name = name
        self.threads: list[int] = []
        self._on_rollback = on_rollback
        self._on_release = on_release

    def use(self):
        attempt = current_attempt()
        attempt.resource(self)[self] = object()
        self.log.append(f"{self.name}open {attempt.number}")

    def rollback(self, attempt):
        self.threads.append(threading.get_ident())
        self.log.append(f"{self.name}rollback {attempt.number}")
        return self._on_rollback()

    def release(self, attempt):
        self.threads.append(threading.get_ident())
        self.log.append(f"{self.name}release {attempt.number}")
        return self._on_release()

    def ping(self):
        raise NotImplementedError


class FakeAsyncDatabase(FakeDatabase):
    """The same for a layer of coroutines; the callbacks may be coroutine functions."""

    async def rollback(self, attempt):
        await _maybe(super().rollback(attempt))

    async def release(self, attempt):
        await _maybe(super().release(attempt))


async def _maybe(result):
    await anyio.lowlevel.checkpoint()
    if inspect.isawaitable(result):
        await result
