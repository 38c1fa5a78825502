"""An ASGI server, the middleware between two validators, apps that fail, and fake databases."""

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
from retrymw.testing import validator

GONE = object()
"""In the body of a client: here it leaves."""

_EXTENSIONS = ("debug", "early_hint", "pathsend", "push", "trailers", "zerocopysend")


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
    """One request, from the server's side: gives the body, and takes the response.

    Args:
        body: the chunks, in order. `GONE` among them: the client leaves. An event among them: what
            comes after it waits for it.
        on_receive: called at every `receive`, before it answers.
        on_block: called where `receive` has nothing to give and waits.
        **scope: further keys of the scope.
    """

    def __init__(
        self,
        method="GET",
        path="/",
        *,
        body=(),
        headers=(),
        on_receive=lambda: None,
        on_block=lambda: None,
        **scope,
    ):
        self._incoming = deque(body or [b""])
        self._end = anyio.Event()
        self._on_receive = on_receive
        self._on_block = on_block
        self.asked = 0
        self.blocked = False
        self.sent: list[dict[str, Any]] = []
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
            "extensions": {f"http.response.{name}": {} for name in _EXTENSIONS},
            "state": {},
            **scope,
        }

    async def call(self, app, *, outer=validator, receive=None, send=None):
        """Make the request; what the app returns is returned, what it raises is raised.

        Args:
            app: what is served.
            outer: what is put around it.
            receive, send: in place of the client's own.
        """
        try:
            return await outer(app)(self.scope, receive or self.receive, send or self.send)
        finally:
            inner = getattr(app, "app", None)
            assert not (isinstance(inner, Checked) and inner.violations), inner.violations

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
                await self._block(item)
                if self._incoming and self._incoming[0] is item:
                    self._incoming.popleft()
                continue
            self._incoming.popleft()
            if item is GONE:
                self.leave()
                break
            return {"type": "http.request", "body": item, "more_body": bool(self._incoming)}
        await self._block(self._end)
        return {"type": "http.disconnect"}

    async def _block(self, event):
        """Wait for the event; nothing is to be had before it."""
        if not event.is_set():
            self.blocked = True
            self._on_block()
            await event.wait()
            self.blocked = False

    async def send(self, message):
        message = dict(message)
        if "headers" in message:
            message["headers"] = list(message["headers"])
        self.sent.append(message)
        if self.complete:
            self._end.set()

    # What the client got.

    @property
    def complete(self):
        """Whether the last of the response is there."""
        if not self.sent:
            return False
        last = self.sent[-1]
        if last["type"] == "http.response.trailers":
            return not last.get("more_trailers", False)
        is_body = last["type"].endswith((".body", ".pathsend", ".zerocopysend"))
        return is_body and not last.get("more_body", False) and not self._start.get("trailers")

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


class Checked:
    """An app and its validator; remembers every run of it, and every violation, hidden or not.

    Args:
        app: the app.
        inner: what is put around it.
    """

    def __init__(self, app, inner=validator):
        self.app = inner(app)
        self.runs: list[AppRun] = []
        self.violations: list[AssertionError] = []

    async def __call__(self, scope, receive, send):
        run = AppRun(scope, dict(scope))
        self.runs.append(run)

        async def recorded():
            message = await receive()
            run.received.append(message)
            return message

        try:
            return await self.app(scope, recorded, send)
        except AssertionError as exc:  # which the middleware, replaying, may make forgotten
            self.violations.append(exc)
            raise


def plain(app):
    """In place of a validator, for what breaks the rules on purpose."""
    return app


def middleware(app, *, inner=validator, **settings):
    """The middleware around the app and its validator. Without a policy there are no waits."""
    return RetryMiddleware(Checked(app, inner), **{"policy": policy(), **settings})


async def request(app, client=None, *, inner=validator, outer=validator, **settings):
    """Make a request to the app through the middleware, between validators; returns the client.

    Args:
        app: an app.
        client: None for a simple GET.
        inner, outer: what is put around the app, and around the middleware.
        **settings: of the middleware. Without a policy there are no waits.
    """
    client = client or Client()
    served = middleware(app, inner=inner, **settings)
    client.runs = served.app.runs
    client.result = await client.call(served, outer=outer)
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
