"""The ASGI validator: what breaks a rule raises, on either side, and what keeps them passes."""

from __future__ import annotations

import contextlib
import inspect
import io
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
import websockets.sync.client
from fastapi import BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from retrymw.testing import validator

pytestmark = pytest.mark.anyio

EXTENSIONS = [
    "http.response.debug",
    "http.response.early_hint",
    "http.response.pathsend",
    "http.response.push",
    "http.response.trailers",
    "http.response.zerocopysend",
    "websocket.http.response",
]
COMMON: dict[str, Any] = {
    "asgi": {"version": "3.0", "spec_version": "2.5"},
    "http_version": "1.1",
    "path": "/",
    "query_string": b"",
    "headers": [],
    "extensions": {name: {} for name in EXTENSIONS},
}
SCOPES: dict[str, dict[str, Any]] = {
    "http": {**COMMON, "type": "http", "method": "GET"},
    "websocket": {**COMMON, "type": "websocket", "subprotocols": ["chat"]},
    "lifespan": {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}},
}

GONE = {"type": "http.disconnect"}
CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}
LEFT = {"type": "websocket.disconnect", "code": 1005}
STARTUP = {"type": "lifespan.startup"}
UP = {"type": "lifespan.startup.complete"}
SHUTDOWN = {"type": "lifespan.shutdown"}
DOWN = {"type": "lifespan.shutdown.complete"}


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def chunk(body: Any = b"", more_body: Any = False) -> dict[str, Any]:
    """A message of the request's body."""
    return {"type": "http.request", "body": body, "more_body": more_body}


def start(status: Any = 200, headers: Any = (), **more: Any) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def body(content: Any = b"", more_body: Any = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more_body}


def length(number: Any) -> tuple[bytes, bytes]:
    return (b"content-length", str(number).encode())


def sent(kind: str, **keys: Any) -> dict[str, Any]:
    return {"type": f"http.response.{kind}", **keys}


def denial(kind: str, **keys: Any) -> dict[str, Any]:
    return {"type": f"websocket.http.response.{kind}", **keys}


class Got(list[Any]):
    """In a script: what the server gives next, which the app receives."""


def got(*messages: Any) -> Got:
    return Got(messages)


async def play(*script: Any, scope: dict[str, Any] | None = None, kind: str = "http") -> list[Any]:
    """Run an app between server and validator that does what the script says, in its order.

    Args:
        *script: messages, which are sent; what is `got`, which is received; exceptions, which are
            raised; and functions, which are called.
        scope, kind: the scope, or else the one of this kind.

    Returns: what the server was sent.
    """
    incoming: list[Any] = []
    outgoing: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        outgoing.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for step in script:
            if isinstance(step, Got):
                for message in step:
                    incoming.append(message)
                    assert await receive() is message
            elif isinstance(step, Exception):
                raise step
            elif callable(step):
                step()
            else:
                await send(step)

    await validator(app)(SCOPES[kind] if scope is None else scope, receive, send)
    return outgoing


OK = (start(), body(b"ok"))


# The scope.


def scope(kind: str = "http", /, **changes: Any) -> dict[str, Any]:
    """The scope with these changes; a value of ``...`` takes the key away."""
    changed = {**SCOPES[kind], **changes}
    return {key: value for key, value in changed.items() if value is not ...}


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (None, "scope is None"),
        ([("type", "http")], "scope is"),
        ({}, "the scope has the type None"),
        (scope(type=b"http"), "the scope has the type b'http'"),
        (scope(asgi="3.0"), "asgi is '3.0'"),
        (scope(asgi={}), "asgi is {}"),
        (scope(asgi={"version": 3}), "asgi is"),
        (scope(asgi={"version": "3.0", "spec_version": 2.3}), "asgi is"),
        (scope(http_version=...), "http_version is missing"),
        (scope(http_version=1.1), "http_version is 1.1"),
        (scope(http_version="HTTP/1.1"), "http_version is 'HTTP/1.1'"),
        (scope(method=...), "method is missing"),
        (scope(method=b"GET"), "method is b'GET'"),
        (scope(method="get"), "method is 'get'"),
        (scope(method=""), "method is ''"),
        (scope(scheme=""), "scheme is ''"),
        (scope(scheme=b"http"), "scheme is b'http'"),
        (scope(path=...), "path is missing"),
        (scope(path=b"/"), "path is b'/'"),
        (scope(raw_path="/"), "raw_path is '/'"),
        (scope(raw_path=b"/?a=b"), "raw_path is"),
        (scope(query_string=...), "query_string is missing"),
        (scope(query_string="a=b"), "query_string is 'a=b'"),
        (scope(query_string=None), "query_string is None"),
        (scope(root_path=b""), "root_path is b''"),
        (scope(root_path=None), "root_path is None"),
        (scope(headers=...), "headers is missing"),
        (scope(headers=None), "headers is None"),
        (scope(headers=b"a: b"), "headers is b'a: b'"),
        (scope(headers=[b"ab"]), "header b'ab'"),
        (scope(headers=[(b"a", b"b", b"c")]), "header"),
        (scope(headers=[("a", b"b")]), "both of them bytes"),
        (scope(headers=[(b"a", "b")]), "both of them bytes"),
        (scope(headers=[(b"A", b"b")]), "lower-case"),
        (scope(headers=[(b"", b"b")]), "lower-case token"),
        (scope(headers=[(b"a b", b"b")]), "lower-case token"),
        (scope(headers=[(b":authority", b"b")]), "pseudo header"),
        (scope(headers=[(b"a", b"b\r\nc: d")]), "line break"),
        (scope(client="localhost"), "client is 'localhost'"),
        (scope(client=("localhost",)), "client is"),
        (scope(client=("localhost", None)), "client is"),
        (scope(client=(b"localhost", 80)), "client is"),
        (scope(client=80), "client is 80"),
        (scope(server=("localhost", "http")), "server is"),
        (scope(server=("localhost", 80, 443)), "server is"),
        (scope(server=("localhost", True)), "server is"),
        (scope(state=[]), r"state is \[\]"),
        (scope(extensions=[]), r"extensions is \[\]"),
        (scope(extensions={"http.response.push": True}), "extensions is"),
        (scope(extensions={1: {}}), "extensions is"),
        (scope("websocket", path=...), "path is missing"),
        (scope("websocket", headers=[(b"A", b"b")]), "lower-case"),
        (scope("websocket", http_version="1.0"), "http_version is '1.0'"),
        (scope("websocket", query_string="a=b"), "query_string is 'a=b'"),
        (scope("websocket", subprotocols="chat"), "subprotocols is 'chat'"),
        (scope("websocket", subprotocols=[b"chat"]), "subprotocols is"),
        (scope("lifespan", asgi=None), "asgi is None"),
        (scope("lifespan", state=1), "state is 1"),
    ],
)
async def test_wrong_scope(given: Any, rule: str) -> None:
    """A scope that a server must not give raises before the app is called."""
    called = []
    with pytest.raises(AssertionError, match=rule):
        await validator(lambda *args: called.append(args))(given, None, None)  # type: ignore[arg-type]
    assert called == []


@pytest.mark.parametrize(
    "changes",
    [
        {"asgi": ...},
        {"asgi": {"version": "3.0"}},
        {"http_version": "1.0"},
        {"http_version": "2"},
        {"method": "M-SEARCH"},
        {"scheme": "https", "root_path": "/mounted", "raw_path": b"/%C3%BC"},
        {"raw_path": None, "client": None, "server": None, "extensions": None, "state": None},
        {"extensions": ..., "state": {"pool": object()}},
        {"headers": ((b"host", b"a"), [b"x", b""], (b"x", b"\xff; ="))},
        {"headers": iter([(b"host", b"a")]), "client": iter(["::1", 1]), "server": iter(["/s", 1])},
        {"client": ["127.0.0.1", 1], "server": ("/run/socket", None)},
        {"app": object(), "session": {}, "route": "/"},
    ],
)
async def test_right_scope(changes: Any) -> None:
    """What the specification leaves to servers passes, and so do keys of other middlewares."""
    given = scope(extensions=changes.pop("extensions", {}), **changes)
    assert await play(*OK, scope=given) == [*OK]


async def test_scope_and_messages_are_the_same_objects() -> None:
    """The app and the server get the other's very objects, as they would without the validator."""
    given, seen = scope(), []
    headers = iter([(b"host", b"a")])
    given["headers"] = headers
    request, messages = chunk(b"x"), [start(), body(b"a", True), body()]

    async def receive() -> Any:
        return request

    async def send(message: Any) -> None:
        seen.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope is given
        assert await receive() is request
        assert list(scope["headers"]) == [(b"host", b"a")]
        for message in messages:
            await send(message)

    await validator(app)(given, receive, send)
    assert all(one is other for one, other in zip(seen, messages, strict=True))


async def test_what_can_be_read_once_is_read_once() -> None:
    """Headers and links that are generators reach the server as lists of what they gave."""
    hint = sent("early_hint", links=(link for link in [b"</a>", b"</b>"]))
    pairs = {**start(), "headers": [iter((b"x", b"1")), (b"y", b"2")]}
    early, begun, _ = await play(hint, pairs, body())
    assert early["links"] == [b"</a>", b"</b>"]
    assert begun["headers"] == [(b"x", b"1"), (b"y", b"2")]
    generator = {**start(), "headers": (pair for pair in [(b"x", b"1")])}
    begun, _ = await play(generator, body())
    assert begun["headers"] == [(b"x", b"1")]


async def test_other_connections_pass_unchecked() -> None:
    """What is said over a connection of another kind is not the validator's business."""
    message = {"type": "mail.sent"}
    assert await play(got(message), message, scope={"type": "mail"}) == [message]


# HTTP.

EARLY = sent("early_hint", links=[b"</a>; rel=preload"])
PUSH = sent("push", path="/a", headers=[(b"x", b"y")])
DEBUG = sent("debug", info={"template": "x"})
PATH = sent("pathsend", path=__file__)
TRAILERS = sent("trailers", headers=[(b"x", b"y")])
HEAD = scope(method="HEAD")
PLAIN = scope(extensions={})

WRONG_HTTP: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    # What the server gives.
    ((got(None),), SCOPES["http"], "received message is None"),
    ((got({"body": b""}),), SCOPES["http"], "received message has the type None"),
    ((got({"type": "http.response.start"}),), SCOPES["http"], "no message of a server"),
    ((got(CONNECT),), SCOPES["http"], "no message of a server"),
    ((got(chunk("text")),), SCOPES["http"], "body is 'text'"),
    ((got(chunk(bytearray())),), SCOPES["http"], "body is bytearray"),
    ((got(chunk(None)),), SCOPES["http"], "body is None"),
    ((got(chunk(b"", 1)),), SCOPES["http"], "more_body is 1"),
    ((got(chunk(b"a"), chunk(b"b")),), SCOPES["http"], "received after the whole body"),
    ((got(chunk(b"a", True), GONE, chunk(b"b")),), SCOPES["http"], "received after the disconnect"),
    # Messages of the app.
    ((None,), SCOPES["http"], "sent message is None"),
    (({"status": 200},), SCOPES["http"], "sent message has the type None"),
    (({"type": "http.response.begin"},), SCOPES["http"], "no message of an app"),
    ((ACCEPT,), SCOPES["http"], "no message of an app"),
    ((chunk(),), SCOPES["http"], "no message of an app"),
    (({"type": "http.response.start"},), SCOPES["http"], "status is missing"),
    ((start("200"),), SCOPES["http"], "status is '200'"),
    ((start(True),), SCOPES["http"], "status is True"),
    ((start(101),), SCOPES["http"], "status is 101"),
    ((start(600),), SCOPES["http"], "status is 600"),
    (({**start(), "headers": None},), SCOPES["http"], "headers is None"),
    (({**start(), "headers": {b"ab": b"c"}},), SCOPES["http"], "header b'ab'"),
    ((start(headers=[("a", "b")]),), SCOPES["http"], "both of them bytes"),
    ((start(headers=[(b"A", b"b")]),), SCOPES["http"], "lower-case"),
    ((start(headers=[(b":status", b"200")]),), SCOPES["http"], "pseudo header"),
    ((start(headers=[(b"a", b"b\nc")]),), SCOPES["http"], "line break"),
    ((start(headers=[(b"a", b"\0")]),), SCOPES["http"], "NUL"),
    ((start(trailers=None),), SCOPES["http"], "trailers is None"),
    ((start(), body("ok")), SCOPES["http"], "body is 'ok'"),
    ((start(), body(memoryview(b"ok"))), SCOPES["http"], "body is <memory"),
    ((start(), body(b"ok", "no")), SCOPES["http"], "more_body is 'no'"),
    # Their order.
    ((body(),), SCOPES["http"], "'http.response.body' was sent when the response was not begun"),
    ((start(), start()), SCOPES["http"], "sent when the response was begun"),
    ((start(), body(b"a", True), start()), SCOPES["http"], "when the response was in its body"),
    ((*OK, body()), SCOPES["http"], "when the response was complete"),
    ((*OK, start()), SCOPES["http"], "when the response was complete"),
    ((), SCOPES["http"], "app returned when the response was not begun"),
    ((start(),), SCOPES["http"], "app returned when the response was begun"),
    ((start(), body(b"a", True)), SCOPES["http"], "returned when the response was in its body"),
    ((got(chunk()), start()), SCOPES["http"], "app returned when the response was begun"),
    # The length of the body.
    ((start(headers=[length("x")]),), SCOPES["http"], "content-length is"),
    ((start(headers=[length(-1)]),), SCOPES["http"], "content-length is"),
    ((start(headers=[length(1), length(1)]),), SCOPES["http"], "content-length is"),
    ((start(headers=[length(1)]), body(b"ab")), SCOPES["http"], "longer than"),
    ((start(headers=[length(1)]), body(b"a", True), body(b"b")), SCOPES["http"], "longer than"),
    ((start(headers=[length(3)]), body(b"ab")), SCOPES["http"], "body has 2 bytes"),
    ((start(headers=[length(3)]), body()), SCOPES["http"], "body has 0 bytes"),
    ((start(headers=[length(3)]), body(b"ab")), HEAD, "body has 2 bytes"),
    ((start(headers=[length(1)]), body(b"ab")), HEAD, "longer than"),
    ((start(204), body(b"a")), SCOPES["http"], "status 204 has a body"),
    ((start(304), body(b"a")), SCOPES["http"], "status 304 has a body"),
    ((start(304), PATH), SCOPES["http"], "status 304 has a body"),
    ((start(204, [length(2)]),), SCOPES["http"], "status 204 has a content-length"),
    # Extensions.
    ((DEBUG,), PLAIN, "'http.response.debug' is not offered"),
    ((EARLY,), PLAIN, "'http.response.early_hint' is not offered"),
    ((PUSH,), PLAIN, "'http.response.push' is not offered"),
    ((start(), PATH), PLAIN, "'http.response.pathsend' is not offered"),
    ((start(), sent("zerocopysend", file=0)), PLAIN, "'http.response.zerocopysend' is not offered"),
    ((start(trailers=True),), PLAIN, "'http.response.trailers' is not offered"),
    ((TRAILERS,), PLAIN, "'http.response.trailers' is not offered"),
    ((PUSH,), scope(extensions=...), "not offered"),
    ((PUSH,), scope(extensions=None), "not offered"),
    ((DEBUG, DEBUG), SCOPES["http"], "sent when the response was still to begin"),
    ((start(), DEBUG), SCOPES["http"], "sent when the response was begun"),
    ((sent("debug", info=1),), SCOPES["http"], "info is 1"),
    ((DEBUG,), SCOPES["http"], "returned when the response was still to begin"),
    ((sent("early_hint"),), SCOPES["http"], "links is missing"),
    ((sent("early_hint", links=b"</a>"),), SCOPES["http"], "links is b'</a>'"),
    ((sent("early_hint", links=["</a>"]),), SCOPES["http"], "link '</a>'"),
    ((*OK, EARLY), SCOPES["http"], "when the response was complete"),
    ((sent("push", headers=[]),), SCOPES["http"], "path is missing"),
    ((sent("push", path=b"/", headers=[]),), SCOPES["http"], "path is b'/'"),
    ((sent("push", path="/", headers=[(b":path", b"/")]),), SCOPES["http"], "pseudo header"),
    ((*OK, PUSH), SCOPES["http"], "when the response was complete"),
    ((PATH,), SCOPES["http"], "when the response was not begun"),
    ((start(), body(b"a", True), PATH), SCOPES["http"], "when the response was in its body"),
    ((start(), PATH, body()), SCOPES["http"], "when the response was complete"),
    ((start(), PATH, PATH), SCOPES["http"], "when the response was complete"),
    ((start(), sent("pathsend", path="a/b")), SCOPES["http"], "allowed: an absolute path"),
    ((start(), sent("pathsend", path=Path(__file__))), SCOPES["http"], "path is"),
    ((sent("zerocopysend", file=0),), SCOPES["http"], "when the response was not begun"),
    ((start(), sent("zerocopysend")), SCOPES["http"], "file is missing"),
    ((start(), sent("zerocopysend", file=-1)), SCOPES["http"], "file is -1"),
    ((start(), sent("zerocopysend", file="a")), SCOPES["http"], "file is 'a'"),
    ((start(), sent("zerocopysend", file=io.BytesIO())), SCOPES["http"], "file is"),
    ((start(), sent("zerocopysend", file=0, count="9")), SCOPES["http"], "count is '9'"),
    ((start(), sent("zerocopysend", file=0, offset=None)), SCOPES["http"], "offset is None"),
    ((start(204), sent("zerocopysend", file=0)), SCOPES["http"], "status 204 has a body"),
    ((*OK, TRAILERS), SCOPES["http"], "when the response was complete"),
    ((start(trailers=True), TRAILERS), SCOPES["http"], "when the response was begun"),
    ((start(trailers=True), body(), body()), SCOPES["http"], "was to have trailers"),
    ((start(trailers=True), body()), SCOPES["http"], "returned when the response was to have"),
    (
        (start(trailers=True), body(), TRAILERS, TRAILERS),
        SCOPES["http"],
        "when the response was complete",
    ),
    (
        (start(trailers=True), body(), {**TRAILERS, "more_trailers": True}),
        SCOPES["http"],
        "returned when the response was to have trailers",
    ),
    (
        (start(trailers=True), body(), sent("trailers", headers=[(b"X", b"y")])),
        SCOPES["http"],
        "lower-case",
    ),
]


@pytest.mark.parametrize(("script", "given", "rule"), WRONG_HTTP)
async def test_wrong_http(script: Any, given: Any, rule: str) -> None:
    """What breaks a rule of HTTP raises, naming it."""
    with pytest.raises(AssertionError, match=rule):
        await play(*script, scope=given)


async def test_closed_file() -> None:
    """A file that is closed can't be sent."""
    with tempfile.TemporaryFile() as file:
        pass
    with pytest.raises(AssertionError, match="allowed: an open file"):
        await play(start(), sent("zerocopysend", file=file))


@pytest.mark.parametrize(
    ("script", "given"),
    [
        (OK, PLAIN),
        ((got(chunk(b"a", True), chunk(b""), GONE, GONE), *OK), PLAIN),
        ((got({"type": "http.request"}), *OK, got(GONE, GONE)), PLAIN),
        ((got({**chunk(), "more": 1}), {**start(), "more": 1}, {**body(), "more": 1}), PLAIN),
        (({"type": "http.response.start", "status": 200}, {"type": "http.response.body"}), PLAIN),
        (
            ({**start(), "headers": ([b"a", b""], (b"b", b"\t\xff"))}, body(b"", True), body()),
            PLAIN,
        ),
        ((start(headers=[(b"transfer-encoding", b"chunked")]), body(b"a")), PLAIN),
        ((start(headers=[(b"set-cookie", b"a"), (b"set-cookie", b"b")]), body(b"a")), PLAIN),
        ((start(headers=[length(3)]), body(b"ab", True), body(b"", True), body(b"c")), PLAIN),
        ((start(headers=[length(0)]), body()), PLAIN),
        ((start(headers=[length(2)]), body(b"ok")), HEAD),
        ((start(headers=[length(2)]), body()), HEAD),
        ((start(), body(b"ok")), HEAD),
        ((start(204), body()), PLAIN),
        ((start(204, [length(0)]), body(b"", True), body()), PLAIN),
        ((start(304, [length(9)]), body()), PLAIN),
        ((got(GONE),), PLAIN),
        ((got(chunk(b"a", True), GONE),), PLAIN),
        ((start(), got(GONE)), PLAIN),
        ((start(headers=[length(9)]), body(b"a", True), got(GONE), body(b"b", True)), PLAIN),
        (
            (
                DEBUG,
                EARLY,
                EARLY,
                PUSH,
                start(),
                EARLY,
                PUSH,
                body(b"a", True),
                EARLY,
                PUSH,
                body(),
            ),
            {},
        ),
        ((EARLY, DEBUG, start(), body()), {}),
        ((start(headers=[length(9)]), PATH), {}),
        ((start(), sent("zerocopysend", file=0, count=1, offset=2, more_body=True), body()), {}),
        ((start(), body(b"a", True), sent("zerocopysend", file=0)), {}),
        ((start(headers=[length(9)]), sent("zerocopysend", file=0)), {}),
        ((start(trailers=True), body(b"a"), TRAILERS), {}),
        ((start(trailers=True), body(), {**TRAILERS, "more_trailers": True}, TRAILERS), {}),
        ((start(trailers=True), PATH, TRAILERS), {}),
        ((start(trailers=False), body()), PLAIN),
        (
            (got({"type": "x.news", "a": 1}), {"type": "x.news", "b": 2}, *OK),
            scope(extensions={"x.news": {}}),
        ),
    ],
)
async def test_right_http(script: Any, given: Any) -> None:
    """What keeps the rules of HTTP passes, as it is."""
    outgoing = await play(*script, scope=given or SCOPES["http"])
    assert outgoing == [step for step in script if not isinstance(step, Got)]


async def test_open_file_is_sent() -> None:
    """A file that the operating system knows can be sent by its object."""
    with tempfile.TemporaryFile() as file:
        message = sent("zerocopysend", file=file)
        assert await play(start(), message) == [start(), message]


# Websocket.

DENIED = (denial("start", status=401, headers=[]), denial("body", body=b"no"))


def data(direction: str, **keys: Any) -> dict[str, Any]:
    return {"type": f"websocket.{direction}", **keys}


@pytest.mark.parametrize(
    ("script", "rule"),
    [
        ((got(chunk()),), "no message of a server"),
        ((got(data("receive", text="a")),), "was received when the connection was not begun"),
        ((got(CONNECT, CONNECT),), "received after the connect"),
        ((got(LEFT),), "received at first"),
        ((got(CONNECT, data("receive", text="a")),), "when the connection was not begun"),
        ((got(CONNECT), ACCEPT, got(data("receive"))), "has neither"),
        (
            (got(CONNECT), ACCEPT, got(data("receive", text="a", bytes=b"a"))),
            "either bytes or text",
        ),
        ((got(CONNECT), ACCEPT, got(data("receive", text=b"a"))), "text is b'a'"),
        ((got(CONNECT), ACCEPT, got(data("receive", bytes="a"))), "bytes is 'a'"),
        ((got(CONNECT), ACCEPT, got(LEFT, data("receive", text="a"))), "after the disconnect"),
        ((got(CONNECT, {"type": "websocket.disconnect"}),), "code is missing"),
        ((got(CONNECT, {**LEFT, "code": None}),), "code is None"),
        ((got(CONNECT, {**LEFT, "reason": b"x"}),), "reason is b'x'"),
        ((start(),), "no message of an app"),
        ((data("send", text="a"),), "when the connection was not begun"),
        ((ACCEPT, ACCEPT), "when the connection was accepted"),
        (({**ACCEPT, "subprotocol": b"chat"},), "subprotocol is b'chat'"),
        (({**ACCEPT, "subprotocol": "other"},), "'other' was accepted"),
        (({**ACCEPT, "headers": [(b"X", b"y")]},), "lower-case"),
        (({**ACCEPT, "headers": [(b"sec-websocket-protocol", b"chat")]},), "in a header"),
        ((ACCEPT, data("send")), "has neither"),
        ((ACCEPT, data("send", bytes=None, text=None)), "has neither"),
        ((ACCEPT, data("send", bytes=b"", text="")), "either bytes or text"),
        ((ACCEPT, data("send", text=b"a")), "text is b'a'"),
        ((ACCEPT, data("close", code="1000")), "code is '1000'"),
        ((ACCEPT, data("close", reason=1)), "reason is 1"),
        ((ACCEPT, data("close"), data("send", text="a")), "when the connection was closed"),
        ((ACCEPT, data("close"), data("close")), "when the connection was closed"),
        ((data("close"), ACCEPT), "when the connection was closed"),
        ((), "returned when the connection was not begun"),
        ((got(CONNECT),), "returned when the connection was not begun"),
        ((ACCEPT, *DENIED), "when the connection was accepted"),
        ((DENIED[1],), "when the connection was not begun"),
        ((DENIED[0],), "returned when the connection was being denied"),
        ((DENIED[0], ACCEPT), "when the connection was being denied"),
        ((*DENIED, DENIED[1]), "when the connection was closed"),
        ((denial("start", status="401"),), "status is '401'"),
        ((denial("start", status=401, headers=[(b"X", b"y")]),), "lower-case"),
        ((denial("start", status=401, headers=[length(3)]), DENIED[1]), "body has 2 bytes"),
        ((DENIED[0], denial("body", body="no")), "body is 'no'"),
    ],
)
async def test_wrong_websocket(script: Any, rule: str) -> None:
    """What breaks a rule of websockets raises, naming it."""
    with pytest.raises(AssertionError, match=rule):
        await play(*script, kind="websocket")


@pytest.mark.parametrize("message", DENIED)
async def test_denial_that_is_not_offered(message: Any) -> None:
    """A denial has a response of its own only where the server offers it."""
    with pytest.raises(AssertionError, match=r"'websocket.http.response' is not offered"):
        await play(message, scope=scope("websocket", extensions={}))


@pytest.mark.parametrize(
    "script",
    [
        (got(CONNECT), ACCEPT, got(data("receive", text="a", bytes=None), LEFT, LEFT)),
        (got(CONNECT), {**ACCEPT, "subprotocol": "chat", "headers": [(b"x", b"y")]}),
        (got(CONNECT), {**ACCEPT, "subprotocol": None}, data("send", bytes=b"", text=None)),
        (
            got(CONNECT),
            ACCEPT,
            data("close", code=3001, reason="x"),
            got(data("receive", bytes=b"")),
        ),
        (got(CONNECT), data("close"), got({**LEFT, "reason": None})),
        (data("close", reason=None),),
        (got(CONNECT, LEFT),),
        (got(CONNECT), ACCEPT, got({**LEFT, "reason": "x"}), data("close")),
        (got(CONNECT), *DENIED),
        (got(CONNECT), DENIED[0], {**DENIED[1], "more_body": True}, DENIED[1]),
        (got(CONNECT), DENIED[0], got(LEFT)),
    ],
)
async def test_right_websocket(script: Any) -> None:
    """What keeps the rules of websockets passes, as it is."""
    outgoing = await play(*script, kind="websocket")
    assert outgoing == [step for step in script if not isinstance(step, Got)]


# Lifespan.


@pytest.mark.parametrize(
    ("script", "rule"),
    [
        ((got(SHUTDOWN),), "received when the app was not begun"),
        ((got(STARTUP, STARTUP),), "received after the startup"),
        ((got(STARTUP, SHUTDOWN),), "received when the app was starting"),
        ((got(STARTUP), {**UP, "type": "lifespan.startup.failed"}, got(SHUTDOWN)), "was failed"),
        ((got(STARTUP), UP, got(SHUTDOWN), DOWN, got(SHUTDOWN)), "received when the app was down"),
        ((got(chunk()),), "no message of a server"),
        ((UP,), "sent when the app was not begun"),
        ((got(STARTUP), DOWN), "sent when the app was starting"),
        ((got(STARTUP), UP, UP), "sent when the app was up"),
        ((got(STARTUP), UP, DOWN), "sent when the app was up"),
        ((got(STARTUP), UP, got(SHUTDOWN), UP), "sent when the app was shutting down"),
        ((got(STARTUP), {"type": "lifespan.startup.failed", "message": b"x"}), "message is b'x'"),
        ((got(STARTUP), start()), "no message of an app"),
        ((got(STARTUP),), "returned when the app was starting"),
        ((got(STARTUP), UP, got(SHUTDOWN)), "returned when the app was shutting down"),
    ],
)
async def test_wrong_lifespan(script: Any, rule: str) -> None:
    """What breaks a rule of the lifespan protocol raises, naming it."""
    with pytest.raises(AssertionError, match=rule):
        await play(*script, kind="lifespan")


@pytest.mark.parametrize(
    "script",
    [
        (got(STARTUP), UP, got(SHUTDOWN), DOWN),
        (got(STARTUP), UP, got(SHUTDOWN), {"type": "lifespan.shutdown.failed", "message": "x"}),
        (got(STARTUP), {"type": "lifespan.startup.failed"}),
        (got(STARTUP), UP),
        (),
    ],
)
async def test_right_lifespan(script: Any) -> None:
    """What keeps the rules of the lifespan protocol passes, as it is."""
    outgoing = await play(*script, kind="lifespan")
    assert outgoing == [step for step in script if not isinstance(step, Got)]


# How the app ends.


@pytest.mark.parametrize("kind", SCOPES)
@pytest.mark.parametrize("script", [(), (got(None),)], ids=["at once", "after a violation"])
async def test_what_the_app_raises_passes(kind: str, script: Any) -> None:
    """An app's own exception passes, the same object, unless a rule was broken before."""
    error = ValueError("mine")
    with pytest.raises((ValueError, AssertionError)) as caught:
        await play(*script, error, kind=kind)
    assert (caught.value is error) == (script == ())


@pytest.mark.parametrize("kind", SCOPES)
async def test_cancellation_passes(kind: str) -> None:
    """An app that is cancelled has not broken a rule by not answering."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes[0].cancel()
        await anyio.sleep_forever()

    scopes = [anyio.CancelScope()]
    with scopes[0]:
        await validator(app)(SCOPES[kind], None, None)  # type: ignore[arg-type]
    assert scopes[0].cancelled_caught


Swallow = Callable[[Awaitable[Any]], Awaitable[None]]


async def forget(doing: Awaitable[Any]) -> None:
    with contextlib.suppress(AssertionError):
        await doing


async def replace(doing: Awaitable[Any]) -> None:
    try:
        await doing
    except AssertionError as exc:
        raise ValueError("something else") from exc


async def group(doing: Awaitable[Any]) -> None:
    async def wait() -> None:
        await doing

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)


@pytest.mark.parametrize("swallow", [forget, replace, group])
@pytest.mark.parametrize("side", ["receive", "send"])
async def test_swallowed_violations_surface(swallow: Swallow, side: str) -> None:
    """The first violation is raised when the app has ended, whatever the app made of it."""

    async def receive() -> Any:
        return {"type": "first" if side == "receive" else "http.request"}

    async def send(message: Any) -> None:
        pass

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await swallow(receive() if side == "receive" else send({"type": "first"}))
        for message in (*OK, {"type": "second"}):
            await forget(send(message))

    with pytest.raises(AssertionError, match="'first'"):
        await validator(app)(scope(), receive, send)


async def test_returned_value() -> None:
    """An app has nothing to return."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        for message in OK:
            await send(message)
        return "ok"

    async def send(message: Any) -> None:
        pass

    with pytest.raises(AssertionError, match="the app returned 'ok'"):
        await validator(app)(scope(), None, send)  # type: ignore[arg-type]


async def test_send_that_returns() -> None:
    """A server's send() has nothing to return."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        await send(start())

    async def send(message: Any) -> int:
        return 5

    with pytest.raises(AssertionError, match=r"send\(\) returned 5"):
        await validator(app)(scope(), None, send)  # type: ignore[arg-type]


async def test_sent_after_the_end() -> None:
    """Who still sends when the app has ended is told."""
    sends = []

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        sends.append(send)
        await send(start())
        raise ValueError

    async def send(message: Any) -> None:
        pass

    with pytest.raises(ValueError):  # noqa: PT011  # it is the app's, whatever it says
        await validator(app)(scope(), None, send)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="after the app had ended"):
        await sends[0](body())


async def test_client_that_is_gone() -> None:
    """An app whose client has left may end without an answer, if the server says so in send()."""
    error = OSError("the client has left")

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        with contextlib.suppress(OSError):
            await send(start())

    async def send(message: Any) -> None:
        raise error

    await validator(app)(scope(), None, send)  # type: ignore[arg-type]


async def test_receiving_in_two_tasks() -> None:
    """Which of two messages came first can't be told if both were asked for: any order passes."""
    gates = [anyio.Event(), anyio.Event()]
    seen = []

    async def receive() -> Any:
        number = len(seen)
        seen.append(number)
        if number < 2:
            await gates[number].wait()
        return [chunk(b"a", True), chunk(b"b"), GONE][number]

    async def send(message: Any) -> None:
        pass

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            gates[1].set()
            await anyio.wait_all_tasks_blocked()
            gates[0].set()
        assert await receive() is GONE
        for message in OK:
            await send(message)

    await validator(app)(scope(), receive, send)


async def test_sending_in_two_tasks() -> None:
    """Messages of two tasks are judged in the order in which they are sent."""
    slow, seen = anyio.Event(), []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            await slow.wait()
        seen.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, start())
            await anyio.wait_all_tasks_blocked()
            slow.set()
            await send(body(b"ok"))

    await validator(app)(scope(), None, send)  # type: ignore[arg-type]
    assert len(seen) == 2


async def test_both_sides_of_a_middleware() -> None:
    """Around a middleware and within it, the validator tells which of the two broke the rule."""

    def middleware(app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def shout(message: Any) -> None:
                headers = [(name.upper(), value) for name, value in message.get("headers", ())]
                await send({**message, "headers": headers})

            await app(scope, receive, shout)

        return wrapped

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(headers=[(b"x", b"y")]))
        await send(body())

    async def send(message: Any) -> None:
        pass

    await middleware(validator(app))(scope(), None, send)
    with pytest.raises(AssertionError, match="lower-case"):
        await validator(middleware(validator(app)))(scope(), None, send)  # type: ignore[arg-type]


def test_servers_take_it_for_an_asgi_3_app() -> None:
    """Servers look at an app to know its kind; the validator makes a coroutine function."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    assert inspect.iscoroutinefunction(validator(app))


# Real apps, on real servers.


def starlette(seen: list[str]) -> Starlette:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        seen.append("up")
        yield {"answer": 42}
        seen.append("down")

    async def home(request: Request) -> Response:
        return JSONResponse({"answer": request.state.answer})

    async def echo(request: Request) -> Response:
        return Response(await request.body())

    async def refuse(request: Request) -> Response:
        return PlainTextResponse("too much", 413)

    async def count(request: Request) -> Response:
        async def numbers() -> AsyncIterator[str]:
            for number in range(3):
                yield str(number)

        return StreamingResponse(numbers(), media_type="text/event-stream")

    async def file(request: Request) -> Response:
        return FileResponse(__file__)

    async def nothing(request: Request) -> Response:
        return Response(status_code=204)

    async def chat(websocket: WebSocket) -> None:
        await websocket.accept("chat", [(b"x", b"y")])
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await websocket.send_json(await websocket.receive_json())

    async def wrong(request: Request) -> Response:
        return Response(b"x", headers={"content-length": "2"})

    async def deny(websocket: WebSocket) -> None:
        await websocket.send_denial_response(PlainTextResponse("no", 401))

    api = FastAPI()

    @api.put("/item")
    def item(item: dict[str, int], tasks: BackgroundTasks) -> dict[str, int]:
        tasks.add_task(seen.append, "background")
        return item

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/", home),
            Route("/echo", echo, methods=["POST"]),
            Route("/refuse", refuse, methods=["POST"]),
            Route("/count", count),
            Route("/file", file),
            Route("/nothing", nothing),
            Route("/wrong", wrong),
            WebSocketRoute("/chat", chat),
            WebSocketRoute("/deny", deny),
            Mount("/api", api),
        ],
    )


REQUESTS: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/", {}, 200),
    ("HEAD", "/", {}, 200),
    ("GET", "/missing?a=b", {}, 404),
    ("DELETE", "/", {}, 405),
    ("POST", "/echo", {"content": b"x" * 100_000}, 200),
    ("POST", "/echo", {"content": None}, 200),
    ("POST", "/refuse", {"content": b"x" * 1000}, 413),
    ("GET", "/count", {}, 200),
    ("GET", "/file", {}, 200),
    ("HEAD", "/file", {}, 200),
    ("GET", "/file", {"headers": {"Range": "bytes=3-9"}}, 206),
    ("GET", "/nothing", {}, 204),
    ("PUT", "/api/item", {"json": {"a": 1}}, 200),
    ("PUT", "/api/item", {"json": []}, 422),
    ("GET", "/api/openapi.json", {}, 200),
]


@contextlib.contextmanager
def served(app: Any, **config: Any) -> Iterator[int]:
    """Serve the app with uvicorn; gives the port."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="critical", lifespan="on", **config)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for _ in range(1000):
            if server.started or not thread.is_alive():
                break
            thread.join(0.01)
        assert server.started
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "config",
    [
        {"http": "h11", "ws": "wsproto"},
        {"http": "httptools", "ws": "websockets-sansio", "loop": "uvloop"},
    ],
    ids=["h11", "httptools"],
)
def test_on_uvicorn(config: dict[str, Any]) -> None:
    """What uvicorn and Starlette say to each other keeps all rules, from startup to shutdown."""
    seen: list[str] = []
    with served(validator(starlette(seen)), **config) as port:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for method, path, content, status in REQUESTS:
                assert client.request(method, path, **content).status_code == status
            assert client.post("/echo", content=iter([b"a", b"b"])).content == b"ab"
        url = f"ws://127.0.0.1:{port}"
        with websockets.sync.client.connect(f"{url}/chat", subprotocols=["chat"]) as websocket:  # type: ignore[list-item]
            websocket.send("5")
            assert websocket.recv(timeout=10) == "5"
        with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
            websockets.sync.client.connect(f"{url}/deny")
        assert caught.value.response.status_code == 401
    assert seen == ["up", "background", "down"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_on_httpx() -> None:
    """What httpx and Starlette say to each other keeps all rules, and what breaks one raises."""
    app = starlette([])
    transport = httpx.ASGITransport(validator(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for method, path, content, status in REQUESTS[2:]:
            assert (await client.request(method, path, **content)).status_code == status
        with pytest.raises(AssertionError, match="body has 1 bytes, and a content-length of 2"):
            await client.get("/wrong")


def test_on_starlettes_test_client() -> None:
    """What Starlette's test client and Starlette say to each other keeps all rules."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather have another client than httpx
        from starlette.testclient import TestClient
    seen: list[str] = []
    with TestClient(validator(starlette(seen))) as client:  # type: ignore[arg-type]
        for method, path, content, status in REQUESTS:
            assert client.request(method, path, **content).status_code == status
        with client.websocket_connect("/chat", subprotocols=["chat"]) as websocket:
            websocket.send_json(5)
            assert websocket.receive_json() == 5
        with pytest.raises(AssertionError, match="content-length of 2"):
            client.get("/wrong")
    assert seen == ["up", "background", "down"]
