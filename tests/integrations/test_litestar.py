"""Litestar: what it squashes, the marks of its routes, and what runs with each attempt."""

from __future__ import annotations

import functools
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest
from litestar import (
    Controller,
    Litestar,
    MediaType,
    Request,
    Response,
    Router,
    WebSocket,
    asgi,
    delete,
    get,
    head,
    patch,
    post,
    put,
    route,
    websocket,
)
from litestar.background_tasks import BackgroundTask
from litestar.config.compression import CompressionConfig
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.exceptions import HTTPException, WebSocketDisconnect
from litestar.handlers import BaseRouteHandler
from litestar.middleware import DefineMiddleware
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.params import Body
from litestar.response import ServerSentEvent, Stream
from litestar.static_files import create_static_files_router
from litestar.testing import TestClient

from retrymw import (
    DisconnectionError,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.adapters.aiomysql import AsyncDatabase
from retrymw.asgi import RetryMiddleware
from retrymw.integrations.litestar import Retry
from retrymw.testing import FaultProxy
from retrymw.testing.servers import MariaDB

from .asgi_helpers import (
    FINE,
    RECOVERED,
    REFUSED,
    AppError,
    Flaky,
    Peer,
    lifespan,
    policy,
    send,
    things,
    told,
)

pytestmark = pytest.mark.anyio

EXHAUSTED = (503, "exhausted", "6")


BOTH_BACKENDS = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


def litestar(*routes: Any, **options: Any) -> Litestar:
    """A Litestar app without what the tests don't look at."""
    return Litestar(list(routes), openapi_config=None, logging_config=None, **options)


def wrapped(*routes: Any, **options: Any) -> RetryMiddleware:
    """The same, with retrymw around it."""
    return Retry(litestar(*routes, **options), policy=policy())


def using(flaky: Any, method: Any = get, mark: Any = lambda endpoint: endpoint) -> Any:
    """``/``, whose handler uses the database."""

    @mark
    async def view() -> str:
        flaky()
        return "hello"

    return method("/", status_code=200)(view)


# Installing


async def test_retry(flaky: Flaky) -> None:
    """Retry(app) is the app with the middleware around it."""
    app = wrapped(using(flaky))
    assert isinstance(app, RetryMiddleware)
    response = await send(app)
    assert told(response) == RECOVERED
    assert (response.text, flaky.calls) == ("hello", 2)


async def test_routes_may_come_later(flaky: Flaky) -> None:
    """A route that is registered after the middleware is replayed like any other."""
    bare = litestar()
    app = Retry(bare, policy=policy())
    bare.register(using(flaky))
    assert told(await send(app)) == RECOVERED


def test_twice() -> None:
    """G2: wrapping an app twice would be a mistake, and is an error."""
    app = litestar()
    Retry(app)
    with pytest.raises(RuntimeError, match="wrapped already"):
        Retry(app)


@pytest.mark.parametrize("wrong", [None, object(), lambda scope, receive, send: None, Litestar])
def test_not_litestar(wrong: Any) -> None:
    """Anything but a Litestar app is refused when the app starts."""
    with pytest.raises(TypeError, match=r"allowed: a litestar\.Litestar"):
        Retry(wrong)


def test_wrong_options() -> None:
    """A wrong option is refused as by the middleware, and leaves the app as it was."""
    app = litestar()
    with pytest.raises(TypeError, match="policy is 5"):
        Retry(app, policy=5)  # type: ignore[arg-type]
    Retry(app)


async def test_plain_middleware_warns(flaky: Flaky) -> None:
    """Around Litestar the plain middleware warns, once, and names the fix: it sees only a 500."""
    with pytest.warns(RuntimeWarning, match=r"retrymw\.integrations\.litestar\.Retry") as caught:
        app = RetryMiddleware(litestar(using(flaky)), policy=policy())
    assert [warning.filename for warning in caught] == [__file__]
    assert (await send(app)).status_code == 500
    assert told(await send(app)) == FINE


def test_plain_middleware_inside_warns(flaky: Flaky) -> None:
    """In Litestar's own list it sees no more, and warns as well."""
    with pytest.warns(RuntimeWarning, match=r"retrymw\.integrations\.litestar\.Retry"):
        litestar(using(flaky), middleware=[DefineMiddleware(RetryMiddleware)])


def test_no_warning(flaky: Flaky) -> None:
    """The integration does not warn of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped(using(flaky))


# Squashed exceptions

DEBUG = pytest.mark.parametrize("debug", [False, True])


@BOTH_BACKENDS
@DEBUG
@pytest.mark.parametrize("method", [get, put, delete])
async def test_unhandled(flaky: Flaky, method: Any, debug: bool) -> None:
    """G3: a failure in a handler is replayed, in debug mode too."""
    response = await send(wrapped(using(flaky, method), debug=debug), method.__name__.upper())
    assert told(response) == RECOVERED
    assert (response.text, flaky.calls) == ("hello", 2)


@DEBUG
@pytest.mark.parametrize("method", [post, patch])
async def test_unmarked(flaky: Flaky, method: Any, debug: bool) -> None:
    """G3: an unmarked POST is not replayed; it gets the 503, never a bare 500."""
    response = await send(wrapped(using(flaky, method), debug=debug), method.__name__.upper())
    assert told(response) == REFUSED
    assert flaky.calls == 1
    assert "retry-after" in response.headers


async def test_exhausted(flaky: Flaky) -> None:
    """G2: six attempts, then the 503."""
    flaky.failures = 100
    assert told(await send(wrapped(using(flaky)))) == EXHAUSTED
    assert flaky.calls == 6


async def test_wrapped_by_the_app(flaky: Flaky) -> None:
    """G7: a failure behind the app's own exception is found."""

    @get("/")
    async def view() -> str:
        try:
            flaky()
        except DisconnectionError as exc:
            raise AppError from exc
        return "hello"

    assert told(await send(wrapped(view))) == RECOVERED


LAYERS = pytest.mark.parametrize("layer", ["app", "router", "controller", "handler"])


def handling(layer: str, flaky: Flaky, handlers: Any) -> RetryMiddleware:
    """An app whose exception handlers are on one of its layers."""

    def on(name: str) -> Any:
        return {"exception_handlers": handlers} if layer == name else {}

    class Items(Controller):
        path = "/"
        exception_handlers = on("controller").get("exception_handlers")

        @get("/", **on("handler"))
        async def view(self) -> str:
            flaky()
            return "hello"

    return wrapped(Router("/", route_handlers=[Items], **on("router")), **on("app"))


@pytest.mark.parametrize("registered", [DisconnectionError, Exception, 500])
@pytest.mark.parametrize("status", [500, 503])
async def test_exception_handler(flaky: Flaky, registered: Any, status: int) -> None:
    """A handler that renders the failure as a 5xx does not keep it from being replayed."""
    handlers = {registered: lambda request, exc: Response("sorry", status_code=status)}
    assert told(await send(handling("app", flaky, handlers))) == RECOVERED


@LAYERS
async def test_exception_handler_of_a_layer(flaky: Flaky, layer: str) -> None:
    """The same for a handler of a router, a controller or a single route."""
    handlers = {DisconnectionError: lambda request, exc: Response("sorry", status_code=500)}
    assert told(await send(handling(layer, flaky, handlers))) == RECOVERED


@pytest.mark.parametrize("status", [200, 302, 404, 409])
async def test_exception_handler_below_500(flaky: Flaky, status: int) -> None:
    """A handler that answers below 500 has dealt with the failure: its answer is sent."""
    handlers = {DisconnectionError: lambda request, exc: Response("stale", status_code=status)}
    response = await send(handling("app", flaky, handlers))
    assert (told(response), response.text) == ((status, None, None), "stale")
    assert flaky.calls == 1


async def test_exception_handler_that_fails(flaky: Flaky) -> None:
    """A handler that needs the database and fails with it does not hide the failure."""

    def handler(request: Any, exc: Exception) -> Response[str]:
        raise AppError("no page for it")

    app = wrapped(using(flaky), exception_handlers={DisconnectionError: handler})
    assert told(await send(app)) == RECOVERED


@pytest.mark.parametrize(
    ("status", "expected"), [(503, RECOVERED), (500, RECOVERED), (404, (404, None, None))]
)
async def test_http_exception(flaky: Flaky, status: int, expected: Any) -> None:
    """A handler that turns the failure into a 503 is replayed, into a 404 is not."""

    @get("/")
    async def view() -> str:
        try:
            flaky()
        except DisconnectionError as exc:
            raise HTTPException(status_code=status) from exc
        return "hello"

    assert told(await send(wrapped(view))) == expected


async def test_errors_of_the_app(flaky: Flaky) -> None:
    """G5: what is not ours Litestar renders as ever."""

    @get("/")
    async def view() -> str:
        flaky.calls += 1
        raise AppError

    responses = [await send(app) for app in (litestar(view), wrapped(view))]
    assert [response.status_code for response in responses] == [500, 500]
    assert responses[0].content == responses[1].content
    assert told(responses[1]) == (500, None, None)
    assert flaky.calls == 2


async def test_hook_that_fails(flaky: Flaky) -> None:
    """An after_exception hook of the app that fails does not keep the failure from being seen."""

    async def hook(exc: Exception, scope: Any) -> None:
        raise AppError from None

    assert told(await send(wrapped(using(flaky), after_exception=[hook]))) == RECOVERED


async def test_hooks_are_called(flaky: Flaky) -> None:
    """G5: the app's after_exception hooks are called as ever, once for each attempt that failed."""
    seen: list[Exception] = []

    async def hook(exc: Exception, scope: Any) -> None:
        seen.append(exc)

    assert told(await send(wrapped(using(flaky), after_exception=[hook]))) == RECOVERED
    assert [type(exc) for exc in seen] == [DisconnectionError]


# Around the handler

METHODS = pytest.mark.parametrize(
    ("method", "mark", "expected"),
    [
        (get, lambda endpoint: endpoint, RECOVERED),
        (post, rollback_safe, RECOVERED),
        (post, lambda endpoint: endpoint, REFUSED),
    ],
    ids=["get", "marked post", "unmarked post"],
)


async def outcome(method: Any, mark: Any, **options: Any) -> tuple[int, str | None, str | None]:
    """What becomes of a request to a handler that works, in an app with these options."""
    endpoint = using(lambda: None, method, mark)
    app = wrapped(endpoint, **options)
    return told(await send(app, method.__name__.upper()))


@METHODS
@pytest.mark.parametrize("hook", ["before_request", "after_request"])
async def test_request_hooks(
    flaky: Flaky, hook: str, method: Any, mark: Any, expected: Any
) -> None:
    """G3: a failure in before_request or after_request is replayed by the table."""

    async def fails(argument: Any) -> Any:
        flaky()
        return argument if hook == "after_request" else None

    assert (await outcome(method, mark, **{hook: fails}))[:2] == expected[:2]


@METHODS
async def test_before_send(flaky: Flaky, method: Any, mark: Any, expected: Any) -> None:
    """G3: so is one in before_send, where SQLAlchemy plugins commit: it runs with each attempt."""

    async def commits(message: Any, scope: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            flaky()

    assert await outcome(method, mark, before_send=[commits]) == expected


@METHODS
async def test_guard(flaky: Flaky, method: Any, mark: Any, expected: Any) -> None:
    """G3: so is one in a guard."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        flaky()

    assert await outcome(method, mark, guards=[guard]) == expected


@METHODS
@pytest.mark.parametrize("when", ["before", "after"])
async def test_middleware(flaky: Flaky, when: str, method: Any, mark: Any, expected: Any) -> None:
    """G3: so is one in a middleware of Litestar's: they run with each attempt."""

    def middleware(app: Any) -> Any:
        async def call(scope: Any, receive: Any, send: Any) -> None:
            if when == "before":
                flaky()
            await app(scope, receive, send)

        async def call_and_fail(scope: Any, receive: Any, send: Any) -> None:
            async def sends(message: Any) -> None:
                if message["type"] == "http.response.start":
                    flaky()
                await send(message)

            await app(scope, receive, sends)

        return call if when == "before" else call_and_fail

    assert (await outcome(method, mark, middleware=[middleware]))[:2] == expected[:2]


@BOTH_BACKENDS
@METHODS
@pytest.mark.parametrize("when", ["setup", "cleanup"])
async def test_yield_dependency(
    flaky: Flaky, when: str, method: Any, mark: Any, expected: Any
) -> None:
    """G3, G4: so is one in a generator dependency, whose commit comes before the response."""

    async def session() -> AsyncIterator[int]:
        if when == "setup":
            flaky()
        yield 1
        if when == "cleanup":
            flaky()

    @mark
    async def view(session: NamedDependency[int]) -> str:
        return "hello"

    app = wrapped(method("/")(view), dependencies={"session": Provide(session)})
    assert told(await send(app, method.__name__.upper()))[1:] == expected[1:]


async def test_after_response() -> None:
    """G2: after_response fails when the client has its answer: nothing is replayed."""
    calls: list[int] = []

    async def hook(request: Any) -> None:
        calls.append(1)
        raise DisconnectionError("gone")

    app = wrapped(using(lambda: None), after_response=hook)
    assert told(await send(app, raises=False)) == FINE
    assert len(calls) == 1


# Marks


@pytest.mark.parametrize("mark", [idempotent, rollback_safe])
async def test_mark_of_a_handler(flaky: Flaky, mark: Any) -> None:
    """G3: a marked POST is replayed."""
    response = await send(wrapped(using(flaky, post, mark)), "POST")
    assert told(response) == RECOVERED


async def test_mark_above_the_route(flaky: Flaky) -> None:
    """G3: a mark above the decorator of the route counts as well, and one of an unmarked copy."""
    marked = rollback_safe(using(flaky, post))
    router = Router("/router", route_handlers=[marked])
    app = wrapped(marked, router)
    assert told(await send(app, "POST"))[1] == "recovered"
    flaky.calls = 0
    assert told(await send(app, "POST", "/router"))[1] == "recovered"


async def test_never_replay(flaky: Flaky) -> None:
    """G3: a GET that is marked @never_replay runs once."""
    assert told(await send(wrapped(using(flaky, get, never_replay)))) == REFUSED
    assert flaky.calls == 1


async def test_overrides(flaky: Flaky) -> None:
    """A mark's overrides hold for its handler."""
    flaky.failures = 100
    app = wrapped(using(flaky, post, idempotent(max_replays=2)))
    assert told(await send(app, "POST")) == (503, "exhausted", "3")
    assert flaky.calls == 3


async def test_mark_below_other_decorators(flaky: Flaky) -> None:
    """A mark survives functools.wraps."""

    def logged(endpoint: Any) -> Any:
        @functools.wraps(endpoint)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await endpoint(*args, **kwargs)

        return wrapper

    app = wrapped(using(flaky, post, lambda endpoint: logged(idempotent(endpoint))))
    assert told(await send(app, "POST"))[1] == "recovered"


@BOTH_BACKENDS
@pytest.mark.parametrize("sync_to_thread", [True, False])
async def test_sync_handlers(flaky: Flaky, sync_to_thread: bool) -> None:
    """A handler that is no coroutine function has its attempt and its mark, in a thread or not."""
    numbers: list[int] = []

    @post("/", sync_to_thread=sync_to_thread)
    @rollback_safe
    def view() -> str:
        numbers.append(current_attempt().number)
        flaky()
        return "hello"

    assert told(await send(wrapped(view), "POST"))[1] == "recovered"
    assert numbers == [1, 2]


async def test_marks_of_methods(flaky: Flaky) -> None:
    """A controller has a mark for each of its handlers."""

    class Orders(Controller):
        path = "/orders"

        @post()
        @idempotent
        async def add(self) -> str:
            flaky()
            return "hello"

        @patch(sync_to_thread=True)
        @idempotent
        def change(self) -> str:
            flaky()
            return "hello"

        @get()
        @never_replay
        async def read(self) -> str:
            flaky()
            return "hello"

        @post("/unmarked")
        async def unmarked(self) -> str:
            flaky()
            return "hello"

    app = wrapped(Orders)
    outcomes = {}
    for method, path in [("POST", ""), ("PATCH", ""), ("GET", ""), ("POST", "/unmarked")]:
        flaky.calls = 0
        outcomes[method + path] = told(await send(app, method, "/orders" + path))[1]
    assert outcomes == {
        "POST": "recovered",
        "PATCH": "recovered",
        "GET": "not-replayable",
        "POST/unmarked": "not-replayable",
    }


@pytest.mark.parametrize("inherited", [False, True])
async def test_mark_of_a_controller(flaky: Flaky, inherited: bool) -> None:
    """The mark of a controller is that of its handlers that have none of their own."""

    @rollback_safe
    class Orders(Controller):
        path = "/orders"

        @post()
        async def add(self) -> str:
            flaky()
            return "hello"

        @post("/card", sync_to_thread=True)
        @never_replay
        def charge(self) -> str:
            flaky()
            return "hello"

    controller = type("More", (Orders,), {}) if inherited else Orders
    app = wrapped(controller)
    assert told(await send(app, "POST", "/orders"))[1] == "recovered"
    flaky.calls = 0
    assert told(await send(app, "POST", "/orders/card")) == REFUSED


async def test_head_and_several_methods(flaky: Flaky) -> None:
    """G3: a handler of several methods has one mark for all of them; HEAD is one of them."""

    @route("/", http_method=["GET", "HEAD", "POST"])
    @never_replay
    async def view() -> str:
        flaky()
        return "hello"

    app = wrapped(view)
    for method in ("GET", "HEAD", "POST"):
        flaky.calls = 0
        assert told(await send(app, method)) == REFUSED


async def test_head(flaky: Flaky) -> None:
    """A HEAD handler is replayed, and its refusal has no body."""

    @head("/")
    async def view() -> None:
        flaky()

    assert told(await send(wrapped(view), "HEAD")) == RECOVERED
    flaky.calls, flaky.failures = 0, 100
    response = await send(wrapped(view), "HEAD")
    assert (told(response), response.content) == (EXHAUSTED, b"")


async def test_mark_is_found_before_the_handler_runs() -> None:
    """A handler can ask whether this attempt is its last."""
    seen: list[tuple[str, bool]] = []

    async def look(name: str) -> str:
        attempt = current_attempt()
        seen.append((name, attempt.is_last))
        if attempt.number == 1:
            raise DisconnectionError("gone")
        return "hello"

    @post("/marked")
    @idempotent(max_replays=1)
    async def marked() -> str:
        return await look("marked")

    @post("/unmarked")
    async def unmarked() -> str:
        return await look("unmarked")

    app = wrapped(marked, unmarked)
    await send(app, "POST", "/marked")
    await send(app, "POST", "/unmarked")
    assert seen == [("marked", False), ("marked", True), ("unmarked", True)]


async def test_mark_of_a_request_within_a_handler(flaky: Flaky) -> None:
    """G3: a handler that makes requests of its own app, a batch, keeps its own mark, or none."""
    apps: list[Any] = []

    @get("/read")
    @idempotent
    async def read() -> str:
        return "hello"

    @post("/batch")
    async def batch() -> str:
        assert (await send(apps[0], "GET", "/read")).text == "hello"
        flaky()
        return "hello"

    apps.append(wrapped(read, batch))
    assert told(await send(apps[0], "POST", "/batch")) == REFUSED
    assert flaky.calls == 1


# Mounted apps


@pytest.mark.parametrize(("own", "expected"), [(True, EXHAUSTED), (False, (500, None, None))])
async def test_mounted_litestar(flaky: Flaky, own: bool, expected: Any) -> None:
    """G2: a Litestar app in another needs a Retry of its own to be seen; nothing multiplies."""
    flaky.failures = 100
    inner: Any = litestar(using(flaky, post, rollback_safe))
    if own:
        inner = Retry(inner, policy=policy())

    @asgi("/inner", is_mount=True, copy_scope=False)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    assert told(await send(wrapped(mounted), "POST", "/inner/")) == expected
    assert flaky.calls == (6 if own else 1)


async def test_in_another_app(flaky: Flaky) -> None:
    """G3: in a Starlette app that has the middleware, Retry adds what is seen and the marks."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    inner = Retry(litestar(using(flaky, post, rollback_safe), using(flaky, get, never_replay)))
    app = RetryMiddleware(Starlette(routes=[Mount("/shop", inner)]), policy=policy())
    assert told(await send(app, "POST", "/shop/"))[1] == "recovered"
    flaky.calls = 0
    assert told(await send(app, "GET", "/shop/")) == REFUSED


async def test_mounted_asgi_app(flaky: Flaky) -> None:
    """G3: an app of another kind that raises is replayed, with the mark that it tells of."""

    @idempotent
    async def endpoint() -> None: ...

    @asgi("/raw", is_mount=True, copy_scope=False)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        scope["endpoint"] = endpoint
        flaky()
        await Response("hello", media_type=MediaType.TEXT).to_asgi_response(
            None, Request(scope, receive, send)
        )(scope, receive, send)

    assert told(await send(wrapped(mounted), "POST", "/raw")) == RECOVERED


# Streaming, and what is no plain request


@BOTH_BACKENDS
async def test_stream_whose_first_chunk_fails(flaky: Flaky) -> None:
    """G1: a stream whose first chunk fails is replayed."""

    @get("/")
    async def view() -> Stream:
        async def chunks() -> AsyncIterator[str]:
            flaky()
            yield "hel"
            yield "lo"

        return Stream(chunks())

    response = await send(wrapped(view))
    assert (told(response), response.text) == (RECOVERED, "hello")


@BOTH_BACKENDS
async def test_sync_stream_whose_first_chunk_fails(flaky: Flaky) -> None:
    """G1: so is one of a generator that is not async."""

    @get("/", sync_to_thread=True)
    def view() -> Stream:
        def chunks() -> Iterator[str]:
            flaky()
            yield "hello"

        return Stream(chunks())

    response = await send(wrapped(view))
    assert (told(response), response.text) == (RECOVERED, "hello")


async def test_stream_that_breaks() -> None:
    """G2: a stream that fails later can't be replayed: the exception passes."""
    calls: list[int] = []

    @get("/")
    async def view() -> Stream:
        async def chunks() -> AsyncIterator[str]:
            calls.append(1)
            yield "hel"
            raise DisconnectionError("gone")

        return Stream(chunks())

    peer = Peer()
    with pytest.raises(Exception, match="after response started") as raised:
        await peer.call(wrapped(view))
    assert (peer.content, peer.complete, len(calls)) == (b"hel", False, 1)
    cause: Any = raised.value
    while not isinstance(cause, (DisconnectionError, type(None))):
        cause = cause.exceptions[0] if hasattr(cause, "exceptions") else cause.__cause__
    assert isinstance(cause, DisconnectionError)


@BOTH_BACKENDS
async def test_events_come_at_once() -> None:
    """G5: server-sent events are not held."""
    more = anyio.Event()

    @get("/")
    async def view() -> ServerSentEvent:
        async def events() -> AsyncIterator[str]:
            yield "first"
            await more.wait()
            yield "second"

        return ServerSentEvent(events())

    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.call, wrapped(view))
        await peer.sees("body")
        assert (b"first" in peer.content, b"second" in peer.content) == (True, False)
        more.set()
    assert peer.complete
    assert b"second" in peer.content


async def test_compressed(flaky: Flaky) -> None:
    """A response that Litestar compresses is replayed, and arrives as it should."""
    text = "hello" * 1000

    @get("/")
    async def view() -> str:
        flaky()
        return text

    app = wrapped(view, compression_config=CompressionConfig(backend="gzip"))
    response = await send(app, headers={"accept-encoding": "gzip"})
    assert (told(response), response.text) == (RECOVERED, text)
    assert response.headers["content-encoding"] == "gzip"


async def test_background_task(flaky: Flaky) -> None:
    """A background task runs once, after the response of the attempt that was sent."""
    numbers: list[int] = []

    @get("/")
    async def view() -> Response[str]:
        number = current_attempt().number
        response = Response("hello", background=BackgroundTask(numbers.append, number))
        flaky()
        return response

    assert told(await send(wrapped(view))) == RECOVERED
    assert numbers == [2]


async def test_background_task_that_fails() -> None:
    """G2: one that fails has an answer before it: nothing is replayed."""
    calls: list[int] = []

    async def task() -> None:
        calls.append(1)
        raise DisconnectionError("gone")

    @get("/")
    async def view() -> Response[str]:
        return Response("hello", background=BackgroundTask(task))

    assert told(await send(wrapped(view), raises=False)) == FINE
    assert len(calls) == 1


def test_websocket() -> None:
    """G5: a websocket passes, one that fails too: nothing is replayed."""
    calls: list[int] = []

    @websocket("/")
    async def view(socket: WebSocket[Any, Any, Any]) -> None:
        calls.append(1)
        assert current_attempt(None) is None
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        raise DisconnectionError("gone")

    with TestClient(wrapped(view)) as client, client.websocket_connect("/") as connection:
        connection.send_text("hello")
        assert connection.receive_text() == "hello"
        with pytest.raises(WebSocketDisconnect):
            connection.receive_text()
    assert len(calls) == 1


@BOTH_BACKENDS
async def test_lifespan() -> None:
    """G5: start-up and shutdown reach the app."""
    events: list[str] = []
    app = wrapped(
        on_startup=[lambda: events.append("start")], on_shutdown=[lambda: events.append("stop")]
    )
    async with lifespan(app):
        assert events == ["start"]
    assert events == ["start", "stop"]


async def test_static_files_and_what_litestar_answers(flaky: Flaky, tmp_path: Path) -> None:
    """G5: static files, a missing page, OPTIONS and a wrong method pass."""
    (tmp_path / "a.txt").write_text("a file")
    app = wrapped(using(flaky), create_static_files_router(path="/static", directories=[tmp_path]))
    assert (await send(app, url="/static/a.txt")).text == "a file"
    assert told(await send(app, url="/missing")) == (404, None, None)
    assert told(await send(app, "POST")) == (405, None, None)
    assert (await send(app, "OPTIONS")).headers["allow"]


def test_test_client(flaky: Flaky) -> None:
    """Litestar's test client takes the wrapped app."""
    with TestClient(wrapped(using(flaky))) as client:
        assert client.get("/").headers["retry-outcome"] == "recovered"


# What a handler sees


@pytest.mark.parametrize("kind", ["form", "json", "body", "stream", "file"])
async def test_request_body(flaky: Flaky, kind: str) -> None:
    """G5: the body can be read in each attempt, however Litestar reads it."""
    seen: list[Any] = []

    @put("/")
    async def view(request: Request[Any, Any, Any]) -> str:
        if kind == "form":
            seen.append(dict(await request.form()))
        elif kind == "json":
            seen.append(await request.json())
        elif kind == "body":
            seen.append(await request.body())
        elif kind == "stream":
            seen.append(b"".join([chunk async for chunk in request.stream()]))
        else:
            upload: Any = (await request.form())["f"]
            seen.append(await upload.read())
        flaky()
        return "hello"

    arguments: dict[str, Any] = {
        "form": {"data": {"a": "1"}},
        "json": {"json": {"a": "1"}},
        "body": {"content": b"hello"},
        "stream": {"content": b"hello"},
        "file": {"files": {"f": b"hello"}},
    }[kind]
    assert told(await send(wrapped(view), "PUT", **arguments)) == RECOVERED
    assert seen in ([{"a": "1"}] * 2, [b"hello"] * 2)


async def test_data_is_parsed_again(flaky: Flaky) -> None:
    """G5: so can a handler's ``data``."""

    @put("/")
    async def view(data: Annotated[dict[str, int], Body()]) -> dict[str, int]:
        flaky()
        return data

    response = await send(wrapped(view), "PUT", json={"a": 1})
    assert (told(response), response.json()) == (RECOVERED, {"a": 1})


async def test_nothing_leaks_between_attempts(flaky: Flaky) -> None:
    """G1: the state and the session of an attempt end with it."""
    seen: list[Any] = []

    @get("/")
    async def view(request: Request[Any, Any, Any]) -> str:
        number = current_attempt().number
        seen.append((request.scope["state"].get("number"), dict(request.session)))
        request.scope["state"]["number"] = request.session["number"] = number
        flaky()
        return "hello"

    middleware = [CookieBackendConfig(secret=b"0" * 16).middleware]
    app = wrapped(view, middleware=middleware)
    response = await send(app)
    assert told(response) == RECOVERED
    assert seen == [(None, {})] * 2
    await send(app, headers={"cookie": response.headers["set-cookie"].partition(";")[0]})
    assert seen[-1] == (None, {"number": 2})


@BOTH_BACKENDS
async def test_success_is_called(flaky: Flaky) -> None:
    """on_success is called once, for the attempt that was sent, on_rollback for the other."""
    calls: list[str] = []

    @get("/")
    async def view() -> str:
        attempt = current_attempt()
        attempt.on_success(lambda: calls.append(f"success {attempt.number}"))
        attempt.on_rollback(lambda: calls.append(f"rollback {attempt.number}"))
        flaky()
        return "hello"

    assert told(await send(wrapped(view))) == RECOVERED
    assert calls == ["rollback 1", "success 2"]


# With a database


@pytest.mark.parametrize("moment", ["execute", "refused", "commit"])
async def test_order(mariadb: MariaDB, mariadb_proxy: FaultProxy, moment: str) -> None:
    """G3, G4: an order whose connection is lost is stored once, or its answer says unknown."""
    arguments = mariadb.connect_args(host=mariadb_proxy.host, port=mariadb_proxy.port)
    database = AsyncDatabase(db=arguments.pop("database"), **arguments)

    @post("/")
    @rollback_safe
    async def order() -> str:
        first = current_attempt().number == 1
        if first and moment == "refused":
            refusing = ExitStack()
            refusing.enter_context(mariadb_proxy.refuse())
            current_attempt().on_rollback(refusing.close)
        async with database.connection() as connection, connection.cursor() as cursor:
            if first and moment == "execute":
                mariadb_proxy.cut("reset", at=1)
            await cursor.execute("INSERT INTO things VALUES ('teapot')")
            if first and moment == "commit":
                mariadb_proxy.cut("reset", at="commit")
            await connection.commit()
        return "ordered"

    with things(mariadb) as stored:
        app = Retry(litestar(order), databases=[database])
        response = await send(app, "POST")
        await database.close()
        assert stored() == ["teapot"]
    if moment == "commit":
        assert told(response) == (503, "unknown", "1")
    else:
        assert told(response) == (201, *RECOVERED[1:])
