"""Quart, on asyncio and trio: what it squashes, the marks of its views, and its contexts."""

from __future__ import annotations

import functools
import socket
import warnings
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import hypercorn.asyncio
import hypercorn.config
import hypercorn.trio
import pytest
import quart
from hypercorn.middleware import ProxyFixMiddleware
from quart import Blueprint, Quart, abort, g, request, session, stream_with_context
from quart.views import MethodView, View
from quart_trio import QuartTrio

from retrymw import (
    DisconnectionError,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.adapters.aiomysql import AsyncDatabase
from retrymw.adapters.pymysql import Database
from retrymw.asgi import RetryMiddleware
from retrymw.integrations.quart import Retry
from retrymw.testing import FaultProxy
from retrymw.testing.servers import MariaDB

from .asgi_helpers import (
    RECOVERED,
    REFUSED,
    SECONDS,
    AppError,
    Flaky,
    Peer,
    lifespan,
    policy,
    things,
    told,
)

pytestmark = pytest.mark.anyio

EXHAUSTED = (503, "exhausted", "6")
APPS: dict[str, type[Quart]] = {"asyncio": Quart, "trio": QuartTrio}
SERVERS: dict[str, Any] = {"asyncio": hypercorn.asyncio.serve, "trio": hypercorn.trio.serve}
MODES = ["production", "testing", "debug", "propagating"]


@pytest.fixture(params=APPS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture
def bare(request: pytest.FixtureRequest, anyio_backend: str) -> Quart:
    """An app of the backend without retrymw, in production mode unless the test asks for a
    ``mode``."""
    app = APPS[anyio_backend]("shop")
    app.secret_key = "not one"
    app.logger.disabled = True
    mode = request.getfixturevalue("mode") if "mode" in request.fixturenames else "production"
    app.testing = mode == "testing"
    app.debug = mode == "debug"
    if mode == "propagating":
        app.config["PROPAGATE_EXCEPTIONS"] = True
    return app


@pytest.fixture
def app(bare: Quart) -> Quart:
    Retry(bare, policy=policy())
    return bare


def only(error: Any) -> BaseException:
    """The one exception in a group of groups."""
    while hasattr(error, "exceptions"):
        (error,) = error.exceptions
    return error  # type: ignore[no-any-return]


async def send(app: Any, method: str = "GET", url: str = "/", **request: Any) -> httpx.Response:
    """One request. On trio httpx's own transport complains if its body is not read to the end."""
    built = httpx.Request(method, f"http://shop.test{url}", **request)
    peer = Peer(
        built.read(),
        method=method,
        path=built.url.path,
        query_string=built.url.query,
        headers=[(name.lower(), value) for name, value in built.headers.raw],
    )
    await peer.call(app)
    return peer.response


def failing_view(app: Quart, flaky: Flaky, **options: Any) -> None:
    """``/`` uses the database."""

    @app.route("/", **options)
    async def view() -> str:
        flaky()
        return "hello"


# Installing


async def test_retry(bare: Quart, flaky: Flaky) -> None:
    """Retry(app) wraps the app."""
    failing_view(bare, flaky)
    retry = Retry(bare, policy=policy())
    response = await send(bare)
    assert (told(response), response.text, flaky.calls) == (RECOVERED, "hello", 2)
    assert bare.extensions["retrymw"] is retry


async def test_init_app(bare: Quart, flaky: Flaky) -> None:
    """init_app() does the same later, and for several apps."""
    retry = Retry(policy=policy())
    other = type(bare)("other")
    other.logger.disabled = True
    for app in (bare, other):
        failing_view(app, flaky)
        retry.init_app(app)
        flaky.calls = 0
        assert told(await send(app)) == RECOVERED


async def test_views_may_come_later(app: Quart, flaky: Flaky) -> None:
    """A view that is added after the middleware is replayed like any other."""
    failing_view(app, flaky)
    assert told(await send(app)) == RECOVERED


def test_twice(app: Quart) -> None:
    """G2: wrapping an app twice would be a mistake, and is an error."""
    with pytest.raises(RuntimeError, match="wrapped already"):
        Retry(app)
    with pytest.raises(RuntimeError, match="wrapped already"):
        app.extensions["retrymw"].init_app(app)


@pytest.mark.parametrize("wrong", [object(), lambda scope, receive, send: None, Quart])
def test_not_quart(wrong: Any) -> None:
    """Anything but a Quart app is refused when the app starts."""
    with pytest.raises(TypeError, match=r"allowed: a quart\.Quart"):
        Retry(wrong)


def test_wrong_options(bare: Quart) -> None:
    """A wrong option is refused as by the middleware, and leaves the app as it was."""
    with pytest.raises(TypeError, match="policy is 5"):
        Retry(bare, policy=5)  # type: ignore[arg-type]
    Retry(bare)


@pytest.mark.parametrize(
    "wrapped",
    [lambda app: app, lambda app: app.asgi_app, lambda app: ProxyFixMiddleware(app.asgi_app)],
)
async def test_plain_middleware_warns(bare: Quart, flaky: Flaky, wrapped: Any) -> None:
    """Around Quart the plain middleware warns, once, and names the fix."""
    with pytest.warns(RuntimeWarning, match=r"retrymw\.integrations\.quart\.Retry") as caught:
        RetryMiddleware(wrapped(bare), policy=policy())
    assert [warning.filename for warning in caught] == [__file__]


def test_no_warning(bare: Quart) -> None:
    """The integration does not warn of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Retry(bare)


# Squashed exceptions


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_unhandled(app: Quart, flaky: Flaky, mode: str, method: str) -> None:
    """G3: a failure in a view is replayed, whether Quart renders it or raises it."""
    failing_view(app, flaky, methods=[method])
    response = await send(app, method)
    assert (told(response), response.text, flaky.calls) == (RECOVERED, "hello", 2)


async def test_unmarked(app: Quart, flaky: Flaky, mode: str) -> None:
    """G3: an unmarked POST is not replayed; it gets the 503 in every mode, never a bare 500."""
    failing_view(app, flaky, methods=["POST"])
    response = await send(app, "POST")
    assert (told(response), flaky.calls) == (REFUSED, 1)
    assert "retry-after" in response.headers


async def test_exhausted(app: Quart, flaky: Flaky, mode: str) -> None:
    """G2: six attempts, then the 503."""
    flaky.failures = 100
    failing_view(app, flaky)
    assert (told(await send(app)), flaky.calls) == (EXHAUSTED, 6)


async def test_wrapped_by_the_app(app: Quart, flaky: Flaky) -> None:
    """G7: a failure behind the app's own exception is found."""

    @app.route("/")
    async def view() -> str:
        try:
            flaky()
        except DisconnectionError as exc:
            raise AppError from exc
        return "hello"

    assert told(await send(app)) == RECOVERED


async def test_in_a_task_of_the_view(app: Quart, flaky: Flaky, anyio_backend: str) -> None:
    """G7: a failure in an exception group is found."""

    @app.route("/")
    async def view() -> str:
        async def work() -> None:
            flaky()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
        return "hello"

    assert told(await send(app)) == RECOVERED


@pytest.mark.parametrize("registered", [DisconnectionError, Exception, 500])
@pytest.mark.parametrize("status", [500, 503])
async def test_error_handler(app: Quart, flaky: Flaky, registered: Any, status: int) -> None:
    """A handler that renders the failure as a 5xx does not keep it from being replayed."""
    failing_view(app, flaky)

    @app.errorhandler(registered)
    async def handle(error: Any) -> Any:
        return "sorry", status

    assert told(await send(app)) == RECOVERED


async def test_error_handler_of_a_blueprint(app: Quart, flaky: Flaky) -> None:
    """The same for a blueprint's handler."""
    blueprint = Blueprint("orders", __name__, url_prefix="/orders")

    @blueprint.errorhandler(DisconnectionError)
    async def handle(error: DisconnectionError) -> Any:
        return "sorry", 500

    @blueprint.route("/")
    async def view() -> str:
        flaky()
        return "hello"

    app.register_blueprint(blueprint)
    assert told(await send(app, url="/orders/")) == RECOVERED


@pytest.mark.parametrize("status", [200, 302, 404, 409])
async def test_error_handler_below_500(app: Quart, flaky: Flaky, mode: str, status: int) -> None:
    """A handler that answers below 500 has dealt with the failure: its answer is sent."""
    failing_view(app, flaky)

    @app.errorhandler(DisconnectionError)
    async def handle(error: DisconnectionError) -> Any:
        return "stale", status

    response = await send(app)
    assert (told(response), response.text) == ((status, None, None), "stale")
    assert flaky.calls == 1


@pytest.mark.parametrize(("status", "expected"), [(503, RECOVERED), (404, (404, None, None))])
async def test_abort(app: Quart, flaky: Flaky, mode: str, status: int, expected: Any) -> None:
    """A view that turns the failure into abort(503) is replayed, into abort(404) is not."""

    @app.route("/")
    async def view() -> str:
        try:
            flaky()
        except DisconnectionError:
            abort(status)
        return "hello"

    assert told(await send(app)) == expected


async def test_errors_of_the_app(app: Quart) -> None:
    """G5: what is not ours Quart renders as ever."""
    calls: list[int] = []

    @app.route("/")
    async def view() -> str:
        calls.append(1)
        raise AppError

    response = await send(app)
    assert (told(response), len(calls)) == ((500, None, None), 1)
    assert "Internal Server Error" in response.text


# Around the view


@pytest.mark.parametrize(("method", "expected"), [("GET", RECOVERED), ("POST", REFUSED)])
@pytest.mark.parametrize("when", ["before_request", "after_request", "teardown_request"])
async def test_request_functions(
    app: Quart, flaky: Flaky, mode: str, when: str, method: str, expected: Any
) -> None:
    """G3: a failure around the view is replayed by the table, after the view too."""

    async def fails(argument: Any = None) -> Any:
        flaky()
        return argument if when == "after_request" else None

    getattr(app, when)(fails)
    app.add_url_rule("/", view_func=lambda: "hello", endpoint="view", methods=[method])
    response = await send(app, method)
    if when == "after_request" and method == "GET":  # the page for the failure passes here as well
        assert told(response)[:2] == expected[:2]
    else:
        assert told(response) == expected


async def test_mark_counts_in_before_request(app: Quart, flaky: Flaky) -> None:
    """G3: the request is routed by then: a failure before the view has the view's mark."""

    @app.before_request
    async def fails() -> None:
        flaky()

    app.add_url_rule("/", "view", idempotent(lambda: "hello"), methods=["POST"])
    assert told(await send(app, "POST")) == RECOVERED


# The end of a response


@pytest.mark.parametrize("hold", ["first-chunk", "until-return"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("status", [200, 204, 404, 500])
async def test_response_that_is_held(bare: Quart, hold: Any, method: str, status: int) -> None:
    """G5: Quart waits for the end of its response; one that is held ends like any other."""
    Retry(bare, policy=policy(hold=hold))

    @bare.route("/", methods=[method])
    async def view() -> Any:
        return "" if status == 204 else "hello", status

    response = await send(bare, method, content=b"body" if method == "PUT" else None)
    assert told(response) == (status, None, None)


@pytest.mark.parametrize("status", [200, 500])
async def test_on_hypercorn(bare: Quart, flaky: Flaky, anyio_backend: str, status: int) -> None:
    """G5, G6: the same on Quart's own web server, over a socket, and after a replay."""
    Retry(bare, policy=policy())

    @bare.put("/")
    async def view() -> Any:
        flaky()
        return await request.get_data(), status

    over = anyio.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    address = "http://{}:{}".format(*listening.getsockname())
    config = hypercorn.config.Config()
    config.bind = [f"fd://{listening.detach()}"]  # it is hypercorn's to close
    config.errorlog = None
    serve = functools.partial(SERVERS[anyio_backend], shutdown_trigger=over.wait)
    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as tasks, httpx.AsyncClient() as client:
            tasks.start_soon(serve, bare, config)
            for outcome in ("recovered", None):  # twice: the connection is kept
                response = await client.put(address, content=b"hello")
                assert (response.status_code, response.content) == (status, b"hello")
                assert response.headers.get("retry-outcome") == outcome
            over.set()


async def test_body_that_is_not_read(app: Quart) -> None:
    """G5: a view that fails before the client has sent all of its body answers at once."""
    unsent = Peer(b"first", b"second")

    @app.put("/")
    async def view() -> Any:
        return "no", 500

    unsent.scope["method"] = "PUT"
    await unsent.call(app)
    assert (unsent.response.status_code, unsent.complete) == (500, True)


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_client_that_leaves(app: Quart, method: str) -> None:
    """G6: Quart still hears of a client that leaves, and its view is cancelled."""
    started, cancelled = anyio.Event(), anyio.Event()

    @app.route("/", methods=[method])
    async def view() -> str:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    peer = Peer()
    peer.scope["method"] = method
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.call, app)
        with anyio.fail_after(SECONDS):
            await started.wait()
            peer.leave()
            await cancelled.wait()
    assert peer.messages == []


# Streaming, and what is no plain request


async def test_stream_whose_first_chunk_fails(app: Quart, flaky: Flaky, mode: str) -> None:
    """G1: a stream whose first chunk fails is replayed."""

    @app.route("/")
    async def view() -> Any:
        @stream_with_context
        async def chunks() -> AsyncIterator[str]:
            flaky()
            yield "hel"
            yield request.args["end"]

        return chunks(), {"Content-Type": "text/plain"}

    response = await send(app, url="/?end=lo")
    assert (told(response), response.text) == (RECOVERED, "hello")


async def test_stream_that_breaks(app: Quart) -> None:
    """G2: a stream that fails later can't be replayed: the exception passes."""
    calls: list[int] = []

    @app.route("/")
    async def view() -> Any:
        async def chunks() -> AsyncIterator[str]:
            calls.append(1)
            yield "hel"
            raise DisconnectionError("gone")

        return chunks()

    peer = Peer()
    with pytest.raises(Exception) as raised:  # noqa: PT011  # a group on trio, and in later Quarts
        await peer.call(app)
    assert isinstance(only(raised.value), DisconnectionError)
    assert (peer.content, peer.complete, len(calls)) == (b"hel", False, 1)


async def test_events_come_at_once(app: Quart) -> None:
    """G5: server-sent events are not held."""
    more = anyio.Event()

    @app.route("/")
    async def view() -> Any:
        async def events() -> AsyncIterator[str]:
            yield "data: first\n\n"
            await more.wait()
            yield "data: second\n\n"

        return events(), {"Content-Type": "text/event-stream"}

    peer = Peer()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.call, app)
        await peer.sees("body")
        assert (b"first" in peer.content, b"second" in peer.content) == (True, False)
        more.set()
    assert peer.complete
    assert b"second" in peer.content


async def test_websocket(app: Quart) -> None:
    """G5: a websocket passes, one that fails too: nothing is replayed."""
    calls: list[int] = []

    @app.websocket("/")
    async def view() -> None:
        calls.append(1)
        assert current_attempt(None) is None
        await quart.websocket.send(await quart.websocket.receive())
        raise DisconnectionError("gone")

    with anyio.fail_after(SECONDS):
        async with lifespan(app), app.test_client().websocket("/") as websocket:
            await websocket.send("hello")
            assert await websocket.receive() == "hello"
    assert len(calls) == 1


async def test_lifespan(app: Quart) -> None:
    """G5: start-up and shutdown reach the app."""
    events: list[str] = []

    @app.before_serving
    async def start() -> None:
        events.append("start")

    @app.after_serving
    async def stop() -> None:
        events.append("stop")

    async with lifespan(app):
        assert events == ["start"]
    assert events == ["start", "stop"]


async def test_background_task(app: Quart, flaky: Flaky) -> None:
    """G5: Quart starts a background task at once, in every attempt; on_success waits for the
    response."""
    numbers: list[int] = []
    succeeded: list[int] = []

    @app.route("/")
    async def view() -> str:
        number = current_attempt().number
        app.add_background_task(numbers.append, number)
        current_attempt().on_success(functools.partial(succeeded.append, number))
        flaky()
        return "hello"

    async with lifespan(app):
        assert told(await send(app)) == RECOVERED
    assert (sorted(numbers), succeeded) == ([1, 2], [2])


async def test_static_files_and_what_quart_answers(bare: Quart, tmp_path: Path) -> None:
    """G5: static files, a missing page, OPTIONS and a wrong method pass."""
    (tmp_path / "a.txt").write_text("a file")
    bare.static_folder = tmp_path  # type: ignore[assignment]
    app = bare
    Retry(app, policy=policy())
    app.add_url_rule("/", view_func=lambda: "hello", endpoint="view")
    assert told(await send(app, url="/missing")) == (404, None, None)
    assert (await send(app, "OPTIONS")).headers["allow"]
    assert told(await send(app, "POST")) == (405, None, None)
    assert (await send(app, url="/static/a.txt")).text == "a file"


# Marks


@pytest.mark.parametrize("mark", [idempotent, rollback_safe])
async def test_mark_of_a_view(app: Quart, flaky: Flaky, mode: str, mark: Any) -> None:
    """G3: a marked POST is replayed."""

    @app.post("/")
    @mark
    async def view() -> str:
        flaky()
        return "hello"

    assert told(await send(app, "POST")) == RECOVERED


async def test_never_replay(app: Quart, flaky: Flaky, mode: str) -> None:
    """G3: a GET that is marked @never_replay runs once."""

    @app.get("/")
    @never_replay
    async def view() -> str:
        flaky()
        return "hello"

    assert (told(await send(app)), flaky.calls) == (REFUSED, 1)


async def test_overrides(app: Quart, flaky: Flaky) -> None:
    """A mark's overrides hold for its view."""
    flaky.failures = 100

    @app.post("/")
    @idempotent(max_replays=2)
    async def view() -> str:
        flaky()
        return "hello"

    assert (told(await send(app, "POST")), flaky.calls) == ((503, "exhausted", "3"), 3)


async def test_mark_below_other_decorators(app: Quart, flaky: Flaky) -> None:
    """A mark survives functools.wraps."""

    def login_required(view: Any) -> Any:
        @functools.wraps(view)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await view(*args, **kwargs)

        return wrapper

    @app.post("/")
    @login_required
    @idempotent
    async def view() -> str:
        flaky()
        return "hello"

    assert told(await send(app, "POST")) == RECOVERED


async def test_marks_of_methods(app: Quart, flaky: Flaky) -> None:
    """A MethodView has a mark for each method; HEAD has that of get()."""

    class Orders(MethodView):
        @idempotent
        async def post(self) -> str:
            flaky()
            return "hello"

        async def patch(self) -> str:
            flaky()
            return "hello"

        @never_replay
        async def get(self) -> str:
            flaky()
            return "hello"

    app.add_url_rule("/", view_func=Orders.as_view("orders"))
    outcomes = {}
    for method in ("POST", "PATCH", "GET", "HEAD"):
        flaky.calls = 0
        outcomes[method] = told(await send(app, method))
    assert outcomes == {"POST": RECOVERED, "PATCH": REFUSED, "GET": REFUSED, "HEAD": REFUSED}


@pytest.mark.parametrize("base", [View, MethodView])
@pytest.mark.parametrize("how", ["class", "decorators", "inherited"])
async def test_marks_of_classes(app: Quart, flaky: Flaky, base: Any, how: str) -> None:
    """A view class is marked as a class, by ``decorators``, or through its base."""

    class Orders(base):  # type: ignore[misc]
        methods = ["POST"]  # noqa: RUF012  # as Quart has it
        decorators = [idempotent] if how == "decorators" else []

        async def dispatch_request(self, **kwargs: Any) -> Any:
            if base is MethodView:
                return await super().dispatch_request(**kwargs)
            return await self.post()

        async def post(self) -> str:
            flaky()
            return "hello"

    view_class: Any = Orders if how == "decorators" else idempotent(Orders)
    if how == "inherited":
        view_class = type("More", (Orders,), {})
    app.add_url_rule("/", view_func=view_class.as_view("orders"))
    assert told(await send(app, "POST")) == RECOVERED


async def test_marks_in_blueprints(app: Quart, flaky: Flaky) -> None:
    """Views of blueprints, nested ones too, have their own marks."""
    outer = Blueprint("outer", __name__, url_prefix="/outer")
    inner = Blueprint("inner", __name__, url_prefix="/inner")

    @outer.post("/orders", endpoint="orders")
    async def unmarked() -> str:
        flaky()
        return "hello"

    @inner.post("/orders", endpoint="orders")
    @idempotent
    async def marked() -> str:
        flaky()
        return "hello"

    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    assert told(await send(app, "POST", "/outer/orders")) == REFUSED
    flaky.calls = 0
    assert told(await send(app, "POST", "/outer/inner/orders")) == RECOVERED


async def test_mark_is_found_before_the_view_runs(app: Quart) -> None:
    """A view can ask whether this attempt is its last."""
    seen: list[tuple[str, bool]] = []

    def look() -> Any:
        async def view() -> str:
            attempt = current_attempt()
            seen.append((request.path, attempt.is_last))
            if attempt.number == 1:
                raise DisconnectionError("gone")
            return "hello"

        return view

    marked = idempotent(max_replays=1)(look())
    app.add_url_rule("/marked", "marked", marked, methods=["POST"])
    app.add_url_rule("/unmarked", "unmarked", look(), methods=["POST"])
    await send(app, "POST", "/marked")
    await send(app, "POST", "/unmarked")
    assert seen == [("/marked", False), ("/marked", True), ("/unmarked", True)]


async def test_mark_of_a_request_within_a_view(app: Quart, flaky: Flaky) -> None:
    """G3: a view that makes requests of its own app, a batch, keeps its own mark, or none."""
    app.add_url_rule("/read", "read", idempotent(lambda: "hello"))

    @app.post("/batch")
    async def batch() -> str:
        assert (await send(app, url="/read")).text == "hello"
        flaky()
        return "hello"

    assert (told(await send(app, "POST", "/batch")), flaky.calls) == (REFUSED, 1)


async def test_in_another_app(app: Quart, flaky: Flaky) -> None:
    """G2, G3: in an app that has the middleware, Retry adds the marks and multiplies nothing."""
    flaky.failures = 100

    @app.post("/orders")
    @idempotent
    async def order() -> str:
        flaky()
        return "hello"

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    response = await send(RetryMiddleware(outer, policy=policy()), "POST", "/orders")
    assert (told(response), flaky.calls) == (EXHAUSTED, 6)


# What a view sees


async def test_sync_views(app: Quart, flaky: Flaky, mode: str) -> None:
    """A view that is no coroutine function, which runs in a thread, has its attempt and mark."""
    numbers: list[int] = []

    @app.post("/")
    @rollback_safe
    def view() -> str:
        numbers.append(current_attempt().number)
        flaky()
        return "hello"

    assert told(await send(app, "POST")) == RECOVERED
    assert numbers == [1, 2]


@pytest.mark.parametrize("kind", ["form", "json", "data", "stream", "files"])
async def test_request_body(app: Quart, flaky: Flaky, kind: str) -> None:
    """G5: the body can be read in each attempt, however Quart reads it."""
    seen: list[Any] = []

    @app.put("/")
    async def view() -> str:
        if kind == "form":
            seen.append(dict(await request.form))
        elif kind == "json":
            seen.append(await request.get_json())
        elif kind == "data":
            seen.append(await request.get_data())
        elif kind == "stream":
            seen.append(b"".join([chunk async for chunk in request.body]))
        else:
            seen.append((await request.files)["f"].read())
        flaky()
        return "hello"

    arguments: dict[str, Any] = {
        "form": {"data": {"a": "1"}},
        "json": {"json": {"a": "1"}},
        "data": {"content": b"hello"},
        "stream": {"content": b"hello"},
        "files": {"files": {"f": b"hello"}},
    }[kind]
    assert told(await send(app, "PUT", **arguments)) == RECOVERED
    assert seen in ([{"a": "1"}] * 2, [b"hello"] * 2)


async def test_nothing_leaks_between_attempts(app: Quart, flaky: Flaky) -> None:
    """G1: session, g, flashed messages and after_this_request of an attempt end with it."""
    seen: list[Any] = []
    after: list[int] = []

    @app.get("/")
    async def view() -> str:
        number = current_attempt().number
        seen.append((dict(session), g.get("number"), quart.get_flashed_messages()))
        session["number"] = g.number = number
        await quart.flash(f"attempt {number}")

        @quart.after_this_request
        async def set_header(response: Any) -> Any:
            after.append(number)
            response.headers[f"X-Attempt-{number}"] = "yes"
            return response

        flaky()
        return "hello"

    response = await send(app)
    assert told(response) == RECOVERED
    assert seen == [({}, None, [])] * 2
    assert len(response.headers.get_list("set-cookie")) == 1
    assert ("x-attempt-1" in response.headers, "x-attempt-2" in response.headers) == (False, True)
    assert after[-1] == 2


async def test_test_client(app: Quart, flaky: Flaky) -> None:
    """Quart's own test client works."""

    @app.put("/")
    async def view() -> bytes:
        flaky()
        return await request.get_data(as_text=False)

    with anyio.fail_after(SECONDS):
        response = await app.test_client().put("/", data=b"hello")
        assert await response.get_data() == b"hello"
    assert response.headers["Retry-Attempts"] == "2"


async def test_success_is_called(app: Quart, flaky: Flaky) -> None:
    """on_success is called once, for the attempt that was sent, on_rollback for the other."""
    calls: list[str] = []

    @app.get("/")
    async def view() -> str:
        attempt = current_attempt()
        attempt.on_success(lambda: calls.append(f"success {attempt.number}"))
        attempt.on_rollback(lambda: calls.append(f"rollback {attempt.number}"))
        flaky()
        return "hello"

    assert told(await send(app)) == RECOVERED
    assert calls == ["rollback 1", "success 2"]


# With a database


@pytest.mark.parametrize("moment", ["execute", "refused", "commit"])
async def test_order(
    bare: Quart, anyio_backend: str, mariadb: MariaDB, mariadb_proxy: FaultProxy, moment: str
) -> None:
    """G3, G4: an order whose connection is lost is stored once, or its answer says unknown."""
    arguments = mariadb.connect_args(host=mariadb_proxy.host, port=mariadb_proxy.port)
    insert = "INSERT INTO things VALUES ('teapot')"

    def fault(at: str) -> None:
        if current_attempt().number == 1 and moment == at:
            if at == "refused":
                refusing = ExitStack()
                refusing.enter_context(mariadb_proxy.refuse())
                current_attempt().on_rollback(refusing.close)
            else:
                mariadb_proxy.cut("reset", at=1 if at == "execute" else "commit")

    async def order() -> str:
        fault("refused")
        async with database.connection() as connection, connection.cursor() as cursor:
            fault("execute")
            await cursor.execute(insert)
            fault("commit")
            await connection.commit()
        return "ordered"

    def order_in_a_thread() -> str:
        fault("refused")
        with database.connection() as connection, connection.cursor() as cursor:
            fault("execute")
            cursor.execute(insert)
            fault("commit")
            connection.commit()
        return "ordered"

    database: Any
    if anyio_backend == "asyncio":
        database = AsyncDatabase(db=arguments.pop("database"), **arguments)
        bare.post("/")(rollback_safe(order))
    else:  # there is no driver for MariaDB on trio
        database = Database(**arguments)
        bare.post("/")(rollback_safe(order_in_a_thread))
    Retry(bare, databases=[database])
    with things(mariadb) as stored:
        response = await send(bare, "POST")
        if isinstance(database, AsyncDatabase):
            await database.close()
        assert stored() == ["teapot"]
    assert told(response) == ((503, "unknown", "1") if moment == "commit" else RECOVERED)
