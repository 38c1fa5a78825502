"""What the tests of ASGI frameworks share: a database that fails, and clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import httpx
import tenacity

from retrymw import DisconnectionError, RetryPolicy
from retrymw.asgi import RetryMiddleware
from retrymw.testing.conformance._stage import things as table_of_things
from retrymw.testing.servers import MariaDB

SECONDS = 20  # what no request here takes

FINE = (200, None, None)
RECOVERED = (200, "recovered", "2")
REFUSED = (503, "not-replayable", "1")


class AppError(Exception):
    """An error of the app's own, which has nothing to do with a database."""


class Flaky:
    """Call it where the database is used: it fails the first ``failures`` times, and counts."""

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise DisconnectionError("the server has gone away")
        return self.calls


def policy(**rules: Any) -> RetryPolicy:
    """A policy that does not wait."""
    return RetryPolicy(**{"wait": tenacity.wait_none(), **rules})


def installed(app: Any, place: str, **options: Any) -> Any:
    """The app with the middleware, ``inside`` by add_middleware or ``outside`` around it."""
    options = {"policy": policy(), **options}
    if place == "inside":
        app.add_middleware(RetryMiddleware, **options)
        return app
    return RetryMiddleware(app, **options)


async def send(
    app: Any, method: str = "GET", url: str = "/", *, raises: bool = True, **request: Any
) -> httpx.Response:
    """One request. What the app raises is raised, unless ``raises`` is False."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
    with anyio.fail_after(SECONDS):
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.test") as client:
            return await client.request(method, url, **request)


def told(response: httpx.Response) -> tuple[int, str | None, str | None]:
    """The status, and what the middleware says of it."""
    headers = response.headers
    return response.status_code, headers.get("retry-outcome"), headers.get("retry-attempts")


class Peer:
    """A client that sees the response message by message, while it comes, and that may leave.

    Args:
        *body: the chunks of the request's body.
        **scope: keys of the scope, other than those of a plain GET.
    """

    def __init__(self, *body: bytes, **scope: Any) -> None:
        self.body = list(body or [b""])
        self.messages: list[dict[str, Any]] = []
        self._news = anyio.Event()
        self._over = anyio.Event()
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"shop.test")],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 80),
            **scope,
        }

    async def call(self, app: Any) -> None:
        """Make the request; what the app raises is raised."""
        with anyio.fail_after(SECONDS):
            await app(self.scope, self._receive, self._send)

    def leave(self) -> None:
        """Close the connection."""
        self._over.set()

    async def sees(self, kind: str) -> None:
        """Wait until a message of this type has come."""
        with anyio.fail_after(SECONDS):
            while kind not in self.kinds:
                await self._news.wait()

    @property
    def kinds(self) -> list[str]:
        """The types of the messages so far, without what is common to them."""
        return [message["type"].removeprefix("http.response.") for message in self.messages]

    @property
    def complete(self) -> bool:
        """Whether the response came to its end."""
        return bool(self.messages) and self.messages[-1].get("more_body") is False

    @property
    def content(self) -> bytes:
        """The body so far."""
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def response(self) -> httpx.Response:
        """What came, as a response."""
        start = self.messages[0]
        return httpx.Response(start["status"], headers=start["headers"], content=self.content)

    async def _receive(self) -> dict[str, Any]:
        if self.body and not self._over.is_set():
            chunk = self.body.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self.body)}
        if not self._over.is_set():  # a server that knows already does not wait
            await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        assert not self.complete, "sent after the end of the response"
        message = {"more_body": False, **message} if "body" in message else dict(message)
        self.messages.append(message)
        if self.complete:
            self._over.set()
        news, self._news = self._news, anyio.Event()
        news.set()


async def talk(app: Any, path: str, *texts: str) -> list[dict[str, Any]]:
    """Open a websocket, say the texts, and close it; what the app sent."""
    messages = [{"type": "websocket.connect"}]
    messages += [{"type": "websocket.receive", "text": text} for text in texts]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "websocket.disconnect", "code": 1000}

    async def collect(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {**Peer().scope, "type": "websocket", "scheme": "ws", "path": path, "subprotocols": []}
    with anyio.fail_after(SECONDS):
        await app(scope, receive, collect)
    return sent


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    """The app between its start-up and its shutdown: the state that it made."""
    state: dict[str, Any] = {}
    started, ends, ended = anyio.Event(), anyio.Event(), anyio.Event()
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, Any]:
        kind = next(messages)
        if kind == "lifespan.shutdown":
            await ends.wait()
        return {"type": kind}

    async def collect(message: dict[str, Any]) -> None:
        assert message["type"] in ("lifespan.startup.complete", "lifespan.shutdown.complete")
        (ended if started.is_set() else started).set()

    async with anyio.create_task_group() as tasks:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": state}
        tasks.start_soon(app, scope, receive, collect)
        with anyio.fail_after(SECONDS):
            await started.wait()
        yield state
        ends.set()
        with anyio.fail_after(SECONDS):
            await ended.wait()


@contextmanager
def things(server: MariaDB) -> Iterator[Any]:
    """A table of things, and a function that says what is stored in it."""
    with table_of_things(server):
        yield lambda: [
            row[0] for row in server.execute("SELECT name FROM app.things ORDER BY name")
        ]


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    """A body that is sent in pieces, and without a length."""
    for piece in pieces:
        yield piece
