"""Falcon, WSGI and ASGI: what it squashes, the marks of its responders, and its components."""

from __future__ import annotations

import asyncio
import functools
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import falcon
import falcon.asgi
import falcon.inspect
import falcon.media
import httpx
import pytest
from falcon.testing import ASGIConductor

import retrymw.asgi
import retrymw.wsgi
from retrymw import (
    DisconnectionError,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.adapters.aiomysql import AsyncDatabase
from retrymw.adapters.pymysql import Database
from retrymw.integrations.falcon import Retry
from retrymw.testing import FaultProxy
from retrymw.testing.servers import MariaDB

from .asgi_helpers import (
    RECOVERED,
    REFUSED,
    AppError,
    Flaky,
    Peer,
    policy,
    send,
    things,
    told,
)

EXHAUSTED = (503, "exhausted", "6")
APPS = {"wsgi": falcon.App, "asgi": falcon.asgi.App}
MIDDLEWARE = {"wsgi": retrymw.wsgi.RetryMiddleware, "asgi": retrymw.asgi.RetryMiddleware}


@pytest.fixture(params=APPS)
def protocol(request: pytest.FixtureRequest) -> str:
    protocol: str = request.param
    return protocol


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


class Site:
    """A Falcon app of either kind; plain functions that it is given are made async for ASGI."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.app: Any = APPS[protocol]()
        self._wrapped: Any = None

    def made(self, function: Callable[..., Any]) -> Any:
        """A function as this kind of app wants it; its mark stays."""
        if self.protocol == "wsgi":
            return function

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return coroutine

    def resource(self, *, mark: Any = None, **responders: Callable[..., Any]) -> Any:
        """An instance of a class with these responders, marked as a class if at all."""
        methods = {name: self.made(function) for name, function in responders.items()}
        cls = type("Resource", (), methods)
        return (cls if mark is None else mark(cls))()

    def add(self, path: str = "/", *, suffix: str | None = None, **made: Any) -> None:
        self.app.add_route(path, self.resource(**made), suffix=suffix)

    @property
    def wrapped(self) -> Any:
        """The app with retrymw around it."""
        if self._wrapped is None:
            self._wrapped = Retry(self.app, policy=policy())
        return self._wrapped

    def send(
        self, method: str = "GET", path: str = "/", *, app: Any = None, **request: Any
    ) -> httpx.Response:
        """A request by httpx: Falcon's own ASGI client leaves before it has the response."""
        app = self.wrapped if app is None else app
        if self.protocol == "asgi":
            return anyio.run(functools.partial(send, app, method, path, **request))
        with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://shop") as client:
            return client.request(method, path, **request)


@pytest.fixture
def site(protocol: str) -> Site:
    return Site(protocol)


def using(flaky: Any) -> Any:
    """A responder that uses the database."""

    def responder(self: Any, req: Any, resp: Any, **params: Any) -> None:
        flaky()
        resp.text = "hello"

    return responder


def fine(self: Any, req: Any, resp: Any) -> None:
    resp.text = "hello"


# Installing


def test_retry(site: Site, protocol: str, flaky: Flaky) -> None:
    """Retry(app) is the app with the middleware of its kind around it."""
    site.add(on_get=using(flaky))
    assert type(site.wrapped) is MIDDLEWARE[protocol]
    response = site.send()
    assert told(response) == RECOVERED
    assert (response.text, flaky.calls) == ("hello", 2)


def test_app_stays_what_it_is(site: Site, protocol: str) -> None:
    """G5: the app is of its class, in its name and for ``isinstance``, and can be inspected."""
    site.add(on_get=fine)
    assert site.wrapped
    assert isinstance(site.app, APPS[protocol])
    assert (type(site.app).__name__, type(site.app).__module__) == (
        APPS[protocol].__name__,
        APPS[protocol].__module__,
    )
    assert [found.path for found in falcon.inspect.inspect_app(site.app).routes] == ["/"]


def test_app_of_a_class_of_its_own(protocol: str, flaky: Flaky) -> None:
    """An app whose class extends Falcon's is wrapped like any other, and alone."""

    class Shop(APPS[protocol]):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.name = "shop"

    site, other = Site(protocol), Shop()
    site.app = Shop()
    site.add(on_get=using(flaky))
    assert told(site.send()) == RECOVERED
    assert site.app.name == "shop"
    assert type(other) is Shop


def test_routes_may_come_later(site: Site, flaky: Flaky) -> None:
    """A route that is added after the middleware is replayed like any other."""
    assert site.wrapped
    site.add(on_get=using(flaky))
    assert told(site.send()) == RECOVERED


def test_twice(site: Site) -> None:
    """G2: wrapping an app twice would be a mistake, and is an error."""
    assert site.wrapped
    with pytest.raises(RuntimeError, match="wrapped already"):
        Retry(site.app)


@pytest.mark.parametrize("wrong", [None, object(), lambda environ, start_response: [], falcon.App])
def test_not_falcon(wrong: Any) -> None:
    """Anything but a Falcon app is refused when the app starts."""
    with pytest.raises(TypeError, match=r"allowed: a falcon\.App or a falcon\.asgi\.App"):
        Retry(wrong)


def test_wrong_options(site: Site, protocol: str) -> None:
    """A wrong option is refused as by the middleware, and leaves the app as it was."""
    with pytest.raises(TypeError, match="policy is 5"):
        Retry(site.app, policy=5)
    assert type(site.app) is APPS[protocol]
    Retry(site.app)


def test_unknown_falcon(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Falcon without the methods that are watched is refused when the app starts."""
    monkeypatch.setattr(falcon.App, "_get_responder", None)
    with pytest.raises(RuntimeError, match="can't work with this Falcon"):
        Retry(site.app)


def test_plain_middleware_warns(protocol: str) -> None:
    """Around Falcon the plain middleware warns, once, and names the fix."""
    with pytest.warns(RuntimeWarning, match=r"retrymw\.integrations\.falcon\.Retry") as caught:
        MIDDLEWARE[protocol](APPS[protocol]())
    assert [warning.filename for warning in caught] == [__file__]


def test_no_warning(site: Site) -> None:
    """The integration does not warn of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert site.wrapped


# Squashed exceptions


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_unhandled(site: Site, flaky: Flaky, method: str) -> None:
    """G3: a failure in a responder is replayed, though Falcon renders it."""
    site.add(**{f"on_{method.lower()}": using(flaky)})
    response = site.send(method)
    assert (told(response), response.text, flaky.calls) == (RECOVERED, "hello", 2)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_unmarked(site: Site, flaky: Flaky, method: str) -> None:
    """G3: an unmarked POST is not replayed; it gets the 503, never a bare 500."""
    site.add(**{f"on_{method.lower()}": using(flaky)})
    response = site.send(method)
    assert (told(response), flaky.calls) == (REFUSED, 1)
    assert "retry-after" in response.headers


def test_exhausted(site: Site, flaky: Flaky) -> None:
    """G2: six attempts, then the 503."""
    flaky.failures = 100
    site.add(on_get=using(flaky))
    assert (told(site.send()), flaky.calls) == (EXHAUSTED, 6)


def test_wrapped_by_the_app(site: Site, flaky: Flaky) -> None:
    """G7: a failure behind the app's own exception is found."""

    def view(self: Any, req: Any, resp: Any) -> None:
        try:
            flaky()
        except DisconnectionError as exc:
            raise AppError from exc

    site.add(on_get=view)
    assert told(site.send()) == RECOVERED


@pytest.mark.parametrize("registered", [DisconnectionError, Exception])
@pytest.mark.parametrize("how", ["status", "raises"])
@pytest.mark.parametrize("status", [500, 503])
def test_error_handler(site: Site, flaky: Flaky, registered: Any, how: str, status: int) -> None:
    """A handler that renders the failure as a 5xx does not keep it from being replayed."""

    def handle(req: Any, resp: Any, ex: Exception, params: Any) -> None:
        if how == "raises":
            raise falcon.HTTPError(status)
        resp.status = status

    site.app.add_error_handler(registered, site.made(handle))
    site.add(on_get=using(flaky))
    assert told(site.send()) == RECOVERED


@pytest.mark.parametrize("how", ["status", "raises"])
@pytest.mark.parametrize("status", [200, 302, 404, 409])
def test_error_handler_below_500(site: Site, flaky: Flaky, how: str, status: int) -> None:
    """A handler that answers below 500 has dealt with the failure: its answer is sent."""

    def handle(req: Any, resp: Any, ex: Exception, params: Any) -> None:
        if how == "raises":
            raise falcon.HTTPStatus(status, text="stale")
        resp.status, resp.text = status, "stale"

    site.app.add_error_handler(DisconnectionError, site.made(handle))
    site.add(on_get=using(flaky))
    response = site.send()
    assert (told(response), response.text) == ((status, None, None), "stale")
    assert flaky.calls == 1


@pytest.mark.parametrize("same", [True, False])
def test_error_handler_that_raises(site: Site, flaky: Flaky, same: bool) -> None:
    """A handler that raises, the failure again or another, does not hide it."""

    def handle(req: Any, resp: Any, ex: Exception, params: Any) -> None:
        raise ex if same else AppError

    site.app.add_error_handler(DisconnectionError, site.made(handle))
    site.add(on_get=using(flaky))
    assert told(site.send()) == RECOVERED


@pytest.mark.parametrize(
    ("status", "expected"), [(503, RECOVERED), (500, RECOVERED), (404, (404, None, None))]
)
def test_http_error(site: Site, flaky: Flaky, status: int, expected: Any) -> None:
    """A responder that turns the failure into a 503 is replayed, into a 404 is not."""

    def view(self: Any, req: Any, resp: Any) -> None:
        try:
            flaky()
        except DisconnectionError as exc:
            raise falcon.HTTPError(status) from exc

    site.add(on_get=view)
    assert told(site.send()) == expected


def test_errors_of_the_app(site: Site, protocol: str) -> None:
    """G5: what is not ours Falcon renders as ever."""
    calls: list[int] = []

    def view(self: Any, req: Any, resp: Any) -> None:
        calls.append(1)
        raise AppError

    site.add(on_get=view)
    bare = site.send(app=site.app)
    response = site.send()
    assert told(response) == (500, None, None)
    assert (response.content, len(calls)) == (bare.content, 2)


def test_error_reporter_of_the_app(site: Site, flaky: Flaky) -> None:
    """G5: the app's own error reporter is told as ever, of each attempt that failed."""
    reported: list[Exception] = []
    site.app.set_error_reporter(lambda req, ex, params, handled: reported.append(ex))
    site.add(on_get=using(flaky))
    assert told(site.send()) == RECOVERED
    assert [type(ex) for ex in reported] == [DisconnectionError]


def test_media_that_fails(site: Site, flaky: Flaky) -> None:
    """G3: a failure in rendering the response is replayed, a media handler's say."""

    class Handler(falcon.media.BaseHandler):
        def serialize(self, media: object, content_type: str) -> bytes:
            flaky()
            return b'"hello"'

    site.app.resp_options.media_handlers[falcon.MEDIA_JSON] = Handler()
    site.add(on_get=lambda self, req, resp: setattr(resp, "media", {"a": 1}))
    response = site.send()
    assert (told(response), response.text) == (RECOVERED, '"hello"')


# Components and hooks

METHODS = pytest.mark.parametrize(
    ("method", "mark", "expected"),
    [
        ("GET", lambda responder: responder, RECOVERED),
        ("POST", rollback_safe, RECOVERED),
        ("POST", lambda responder: responder, REFUSED),
    ],
    ids=["get", "marked post", "unmarked post"],
)


@METHODS
@pytest.mark.parametrize("when", ["process_resource", "process_response"])
def test_component(
    site: Site, flaky: Flaky, when: str, method: str, mark: Any, expected: Any
) -> None:
    """G3: a failure in a component of Falcon's is replayed by the table: they run with each
    attempt."""
    component = type("Component", (), {when: site.made(lambda self, *args: flaky() and None)})
    site.app.add_middleware(component())
    site.add(**{f"on_{method.lower()}": mark(using(lambda: None))})
    assert told(site.send(method)) == expected


@pytest.mark.parametrize(("method", "expected"), [("GET", RECOVERED), ("POST", REFUSED)])
def test_component_before_the_route(site: Site, flaky: Flaky, method: str, expected: Any) -> None:
    """G3: process_request comes before the route is known: the method alone decides then."""
    component = type(
        "Component", (), {"process_request": site.made(lambda *args: flaky() and None)}
    )
    site.app.add_middleware(component())
    site.add(on_get=fine, on_post=rollback_safe(using(lambda: None)))
    assert told(site.send(method)) == expected


@METHODS
@pytest.mark.parametrize("hook", [falcon.before, falcon.after])
@pytest.mark.parametrize("where", ["responder", "class"])
def test_hook(
    site: Site, flaky: Flaky, hook: Any, where: str, method: str, mark: Any, expected: Any
) -> None:
    """G3: so is one in a before or after hook, and the mark below it is found."""
    fails = site.made(lambda req, resp, resource, *params: flaky() and None)
    responder = site.made(mark(using(lambda: None)))
    name = f"on_{method.lower()}"
    if where == "responder":
        resource = type("Resource", (), {name: hook(fails)(responder)})
    else:
        resource = hook(fails)(type("Resource", (), {name: responder}))
    site.app.add_route("/", resource())
    assert told(site.send(method)) == expected


# Marks


@pytest.mark.parametrize("mark", [idempotent, rollback_safe])
def test_mark_of_a_responder(site: Site, flaky: Flaky, mark: Any) -> None:
    """G3: a marked POST is replayed."""
    site.add(on_post=mark(using(flaky)))
    assert told(site.send("POST")) == RECOVERED


def test_never_replay(site: Site, flaky: Flaky) -> None:
    """G3: a GET that is marked @never_replay runs once."""
    site.add(on_get=never_replay(using(flaky)))
    assert (told(site.send()), flaky.calls) == (REFUSED, 1)


def test_overrides(site: Site, flaky: Flaky) -> None:
    """A mark's overrides hold for its responder."""
    flaky.failures = 100
    site.add(on_post=idempotent(max_replays=2)(using(flaky)))
    assert (told(site.send("POST")), flaky.calls) == ((503, "exhausted", "3"), 3)


def test_marks_of_methods(site: Site, flaky: Flaky) -> None:
    """Each responder of a resource has its own mark, with a suffix too."""
    resource = site.resource(
        on_post=idempotent(using(flaky)),
        on_patch=using(flaky),
        on_get=never_replay(using(flaky)),
        on_post_card=never_replay(using(flaky)),
        on_patch_card=idempotent(using(flaky)),
    )
    site.app.add_route("/orders/{order}", resource)
    site.app.add_route("/cards/{card}", resource, suffix="card")
    outcomes = {}
    for method, path in [("POST", "/orders/1"), ("PATCH", "/orders/1"), ("GET", "/orders/1")]:
        flaky.calls = 0
        outcomes[method + path] = told(site.send(method, path))
    for method in ("POST", "PATCH"):
        flaky.calls = 0
        outcomes[method + "/cards/1"] = told(site.send(method, "/cards/1"))
    assert outcomes == {
        "POST/orders/1": RECOVERED,
        "PATCH/orders/1": REFUSED,
        "GET/orders/1": REFUSED,
        "POST/cards/1": REFUSED,
        "PATCH/cards/1": RECOVERED,
    }


def test_mark_of_a_resource(site: Site, flaky: Flaky) -> None:
    """The mark of a resource's class is that of its responders that have none of their own."""
    site.add(
        "/orders", mark=rollback_safe, on_post=using(flaky), on_patch=never_replay(using(flaky))
    )
    assert told(site.send("POST", "/orders")) == RECOVERED
    flaky.calls = 0
    assert told(site.send("PATCH", "/orders")) == REFUSED


def test_inherited_mark(site: Site, flaky: Flaky) -> None:
    """So is the mark of a base class."""
    base = rollback_safe(type(site.resource(on_post=using(flaky))))
    site.app.add_route("/", type("More", (base,), {})())
    assert told(site.send("POST")) == RECOVERED


def test_head(site: Site, flaky: Flaky) -> None:
    """G3: a HEAD responder has its own mark, and that of get where it is the same function."""
    get = never_replay(using(flaky))
    site.add(on_get=get, on_head=get)
    response = site.send("HEAD")
    assert (told(response), response.content, flaky.calls) == (REFUSED, b"", 1)


@pytest.mark.parametrize("mark", [rollback_safe, None])
def test_sink(site: Site, flaky: Flaky, mark: Any) -> None:
    """G3: a sink has its mark, or none."""

    def sink(req: Any, resp: Any, **params: Any) -> None:
        flaky()

    site.app.add_sink(site.made(mark(sink) if mark else sink), "/sink")
    assert told(site.send("POST", "/sink/1")) == (RECOVERED if mark else REFUSED)


def test_mark_is_found_before_the_responder_runs(site: Site) -> None:
    """A responder can ask whether this attempt is its last."""
    seen: list[tuple[str, bool]] = []

    def look() -> Any:
        def view(self: Any, req: Any, resp: Any) -> None:
            attempt = current_attempt()
            seen.append((req.path, attempt.is_last))
            if attempt.number == 1:
                raise DisconnectionError("gone")

        return view

    site.add("/marked", on_post=idempotent(max_replays=1)(look()))
    site.add("/unmarked", on_post=look())
    site.send("POST", "/marked")
    site.send("POST", "/unmarked")
    assert seen == [("/marked", False), ("/marked", True), ("/unmarked", True)]


def test_mark_of_a_request_within_a_responder(flaky: Flaky) -> None:
    """G3: a responder that makes requests of its own app, a batch, keeps its own mark, or none."""
    site = Site("wsgi")

    def batch(self: Any, req: Any, resp: Any) -> None:
        assert site.send("GET", "/read").text == "hello"
        flaky()

    site.add("/read", on_get=idempotent(using(lambda: None)))
    site.add("/batch", on_post=batch)
    assert (told(site.send("POST", "/batch")), flaky.calls) == (REFUSED, 1)


def test_custom_router(protocol: str, flaky: Flaky) -> None:
    """G3: marks are found whatever router the app has."""

    class Router(falcon.routing.CompiledRouter):
        def find(self, uri: str, req: Any = None) -> Any:
            return super().find(uri.removeprefix("/api"), req)

    site = Site(protocol)
    site.app = APPS[protocol](router=Router())
    site.add("/orders", on_post=rollback_safe(using(flaky)))
    assert told(site.send("POST", "/api/orders")) == RECOVERED


# Streaming, and what is no plain request


def streaming(site: Site, produce: Callable[[], Iterator[bytes]]) -> Any:
    """A responder that streams what ``produce`` gives."""

    async def each() -> AsyncIterator[bytes]:
        for chunk in produce():
            yield chunk

    def view(self: Any, req: Any, resp: Any) -> None:
        resp.stream = produce() if site.protocol == "wsgi" else each()

    return view


def test_stream_whose_first_chunk_fails(site: Site, flaky: Flaky) -> None:
    """G1: a stream whose first chunk fails is replayed."""

    def produce() -> Iterator[bytes]:
        flaky()
        yield b"hel"
        yield b"lo"

    site.add(on_get=streaming(site, produce))
    response = site.send()
    assert (told(response), response.text) == (RECOVERED, "hello")


def test_stream_that_breaks(site: Site) -> None:
    """G2: a stream that fails later can't be replayed: the exception passes."""
    calls: list[int] = []

    def produce() -> Iterator[bytes]:
        calls.append(1)
        yield b"hel"
        raise DisconnectionError("gone")

    site.add(on_get=streaming(site, produce))
    with pytest.raises(DisconnectionError):
        site.send()
    assert len(calls) == 1


@pytest.mark.anyio
async def test_events_come_at_once() -> None:
    """G5: server-sent events are not held."""
    site, more = Site("asgi"), anyio.Event()

    async def events() -> AsyncIterator[falcon.asgi.SSEvent]:
        yield falcon.asgi.SSEvent(text="first")
        await more.wait()
        yield falcon.asgi.SSEvent(text="second")

    site.add(on_get=lambda self, req, resp: setattr(resp, "sse", events()))
    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.call, site.wrapped)
        await peer.sees("body")
        assert (b"first" in peer.content, b"second" in peer.content) == (True, False)
        more.set()
    assert b"second" in peer.content


def test_scheduled_callbacks(flaky: Flaky) -> None:
    """G5: Falcon runs what was scheduled by every attempt, as it does for any 500; on_success only
    what the one did that was sent."""
    site = Site("asgi")
    scheduled: list[int] = []
    succeeded: list[int] = []

    def view(self: Any, req: Any, resp: Any) -> None:
        attempt = current_attempt()

        async def callback() -> None:
            scheduled.append(attempt.number)

        resp.schedule(callback)
        attempt.on_success(lambda: succeeded.append(attempt.number))
        flaky()

    site.add(on_get=view)
    assert told(site.send()) == RECOVERED
    assert (sorted(scheduled), succeeded) == ([1, 2], [2])


@pytest.mark.anyio
async def test_websocket() -> None:
    """G5: a websocket passes, one that fails too: nothing is replayed."""
    site = Site("asgi")
    calls: list[int] = []

    class Chat:
        async def on_websocket(self, req: Any, ws: Any) -> None:
            calls.append(1)
            assert current_attempt(None) is None
            await ws.accept()
            await ws.send_text(await ws.receive_text())
            raise DisconnectionError("gone")

    site.app.add_route("/", Chat())
    async with ASGIConductor(site.wrapped) as conductor, conductor.simulate_ws("/") as ws:
        await ws.send_text("hello")
        assert await ws.receive_text() == "hello"
        with pytest.raises(falcon.WebSocketDisconnected):
            await ws.receive_text()
    assert len(calls) == 1


@pytest.mark.anyio
async def test_lifespan() -> None:
    """G5: start-up and shutdown reach the app's components."""
    site = Site("asgi")
    events: list[str] = []

    class Component:
        async def process_startup(self, scope: Any, event: Any) -> None:
            events.append("start")

        async def process_shutdown(self, scope: Any, event: Any) -> None:
            events.append("stop")

    site.app.add_middleware(Component())
    async with ASGIConductor(site.wrapped):
        assert events == ["start"]
    assert events == ["start", "stop"]


def test_static_files_and_what_falcon_answers(site: Site, tmp_path: Path) -> None:
    """G5: static files, a missing page, OPTIONS and a wrong method pass."""
    (tmp_path / "a.txt").write_text("a file")
    site.app.add_static_route("/static", tmp_path)
    site.add(on_get=fine)
    assert site.send(path="/static/a.txt").text == "a file"
    assert told(site.send(path="/missing")) == (404, None, None)
    assert told(site.send("POST")) == (405, None, None)
    assert site.send("OPTIONS").headers["allow"] == "GET"


# What a responder sees


@pytest.mark.parametrize("kind", ["json", "form", "bytes", "multipart"])
def test_request_body(protocol: str, flaky: Flaky, kind: str) -> None:
    """G5: the body can be read in each attempt, however Falcon reads it."""
    site = Site(protocol)
    seen: list[Any] = []

    class Sync:
        def on_put(self, req: Any, resp: Any) -> None:
            if kind == "bytes":
                seen.append(req.bounded_stream.read())
            elif kind == "multipart":
                seen.append([part.stream.read() for part in req.get_media()])
            else:
                seen.append(req.get_media())
            flaky()

    class Async:
        async def on_put(self, req: Any, resp: Any) -> None:
            if kind == "bytes":
                seen.append(await req.stream.read())
            elif kind == "multipart":
                seen.append([await part.stream.read() async for part in await req.get_media()])
            else:
                seen.append(await req.get_media())
            flaky()

    site.app.add_route("/", Sync() if protocol == "wsgi" else Async())
    arguments: dict[str, Any] = {
        "json": {"json": {"a": "1"}},
        "form": {"data": {"a": "1"}},
        "bytes": {"content": b"hello"},
        "multipart": {"files": {"a": b"1"}},
    }[kind]
    assert told(site.send("PUT", **arguments)) == RECOVERED
    assert seen in ([{"a": "1"}] * 2, [b"hello"] * 2, [[b"1"]] * 2)


def test_nothing_leaks_between_attempts(site: Site, flaky: Flaky) -> None:
    """G1: the context, the cookies and the headers of an attempt end with it."""
    seen: list[Any] = []

    def view(self: Any, req: Any, resp: Any) -> None:
        number = current_attempt().number
        seen.append((dict(req.context), dict(resp.context)))
        req.context.number = resp.context.number = number
        resp.set_cookie(f"attempt{number}", "yes")
        resp.set_header(f"X-Attempt-{number}", "yes")
        flaky()

    site.add(on_get=view)
    response = site.send()
    assert seen == [({}, {})] * 2
    assert list(response.cookies) == ["attempt2"]
    assert "x-attempt-1" not in response.headers
    assert "x-attempt-2" in response.headers


def test_success_is_called(site: Site, flaky: Flaky) -> None:
    """on_success is called once, for the attempt that was sent, on_rollback for the other."""
    calls: list[str] = []

    def view(self: Any, req: Any, resp: Any) -> None:
        attempt = current_attempt()
        attempt.on_success(lambda: calls.append(f"success {attempt.number}"))
        attempt.on_rollback(lambda: calls.append(f"rollback {attempt.number}"))
        flaky()

    site.add(on_get=view)
    assert told(site.send()) == RECOVERED
    assert calls == ["rollback 1", "success 2"]


@pytest.mark.anyio
@pytest.mark.parametrize("run", [asyncio.to_thread, falcon.sync_to_async])
async def test_responder_in_a_thread(flaky: Flaky, run: Any) -> None:
    """What a responder runs in a thread has the responder's attempt; by sync_to_async, which does
    not take the context along, it has none."""
    site = Site("asgi")
    numbers: list[int | None] = []

    class View:
        @rollback_safe
        async def on_post(self, req: Any, resp: Any) -> None:
            await run(self.work)

        def work(self) -> None:
            attempt = current_attempt(None)
            numbers.append(attempt and attempt.number)
            flaky()

    site.app.add_route("/", View())
    assert told(await send(site.wrapped, "POST")) == RECOVERED
    assert numbers == ([1, 2] if run is asyncio.to_thread else [None, None])


# With a database


@pytest.mark.parametrize("moment", ["execute", "refused", "commit"])
def test_order(protocol: str, mariadb: MariaDB, mariadb_proxy: FaultProxy, moment: str) -> None:
    """G3, G4: an order whose connection is lost is stored once, or its answer says unknown."""
    arguments = mariadb.connect_args(host=mariadb_proxy.host, port=mariadb_proxy.port)
    site = Site(protocol)
    insert = "INSERT INTO things VALUES ('teapot')"

    def fault(at: str) -> None:
        if current_attempt().number == 1 and moment == at:
            if at == "refused":
                refusing = ExitStack()
                refusing.enter_context(mariadb_proxy.refuse())
                current_attempt().on_rollback(refusing.close)
            else:
                mariadb_proxy.cut("reset", at=1 if at == "execute" else "commit")

    class Sync:
        @rollback_safe
        def on_post(self, req: Any, resp: Any) -> None:
            fault("refused")
            with database.connection() as connection, connection.cursor() as cursor:
                fault("execute")
                cursor.execute(insert)
                fault("commit")
                connection.commit()

    class Async:
        @rollback_safe
        async def on_post(self, req: Any, resp: Any) -> None:
            fault("refused")
            async with database.connection() as connection, connection.cursor() as cursor:
                fault("execute")
                await cursor.execute(insert)
                fault("commit")
                await connection.commit()

    async def send_and_close(app: Any) -> httpx.Response:
        try:
            return await send(app, "POST")
        finally:
            await database.close()

    database: Any
    if protocol == "wsgi":
        database = Database(**arguments)
        site.app.add_route("/", Sync())
    else:
        database = AsyncDatabase(db=arguments.pop("database"), **arguments)
        site.app.add_route("/", Async())
    app: Any = Retry(site.app, databases=[database])
    with things(mariadb) as stored:
        if protocol == "wsgi":
            response = site.send("POST", app=app)
        else:
            response = anyio.run(send_and_close, app)
        assert stored() == ["teapot"]
    if moment == "commit":
        assert told(response) == (503, "unknown", "1")
    else:
        assert told(response) == RECOVERED
