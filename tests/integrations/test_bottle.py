"""Bottle: what it squashes, the marks of its callbacks, and its hooks, plugins and mounts."""

from __future__ import annotations

import functools
import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import bottle
import httpx
import pytest
import tenacity
import werkzeug
from bottle import Bottle, HTTPError, HTTPResponse, abort, redirect, request, response
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

import retrymw.integrations.flask
from retrymw import (
    DisconnectionError,
    RetryPolicy,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.adapters.pymysql import Database
from retrymw.integrations.bottle import Retry
from retrymw.testing import FaultProxy
from retrymw.testing.servers import MariaDB
from retrymw.wsgi import RetryMiddleware

POLICY = RetryPolicy(wait=tenacity.wait_none())
MODES = ["production", "debug", "propagating"]
FINE = (200, None, 1)
RECOVERED = (200, "recovered", 2)
REFUSED = (503, "not-replayable", 1)


class AppError(Exception):
    """The app's own wrapper of a driver's exception."""


class Flaky:
    """Call it where the database is used: it fails the first ``failures`` times, and counts."""

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self, *_: Any) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise DisconnectionError("the server has gone away")
        return "hello"


def send(app: Any, method: str = "GET", path: str = "/", **arguments: Any) -> httpx.Response:
    """Send a request, as a server would: what Bottle passes with the start is no exception."""
    transport = httpx.WSGITransport(app, raise_app_exceptions=False, wsgi_errors=io.StringIO())
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        return client.request(method, path, **arguments)


class Shop:
    """A Bottle app behind ``Retry``."""

    def __init__(self, flaky: Flaky) -> None:
        self.flaky = flaky
        self.app = Bottle()
        Retry(self.app, policy=POLICY)

    @property
    def view(self) -> Callable[[], str]:
        """What most tests have at ``/``: a new function, so that it can be marked."""

        def view() -> str:
            return self.flaky()

        return view

    def send(self, method: str = "GET", path: str = "/", **arguments: Any) -> httpx.Response:
        return send(self.app, method, path, **arguments)

    def outcome(self, method: str = "GET", path: str = "/", **arguments: Any) -> tuple[Any, ...]:
        """The status, what retrymw says, and how often the database was used; then start anew."""
        response = self.send(method, path, **arguments)
        calls, self.flaky.calls = self.flaky.calls, 0
        return response.status_code, response.headers.get("Retry-Outcome"), calls


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


@pytest.fixture
def shop(flaky: Flaky) -> Shop:
    return Shop(flaky)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, shop: Shop) -> Iterator[str]:
    """Bottle's debug mode, and its ``catchall``, with which it renders exceptions or does not."""
    mode: str = request.param
    bottle.debug(mode == "debug")
    shop.app.config["catchall"] = mode != "propagating"
    yield mode
    bottle.debug(False)


# Installing


def test_default_app(flaky: Flaky) -> None:
    """Bottle's default app is wrapped like any other, and stays what run() serves."""
    with Bottle():
        bottle.get("/")(flaky)
        Retry(bottle.default_app(), policy=POLICY)
        assert send(bottle.default_app()).content == b"hello"


def test_callbacks_may_come_later(shop: Shop) -> None:
    """A callback that is added after the middleware is replayed like any other."""
    shop.app.get("/")(shop.view)
    assert shop.outcome() == RECOVERED


def test_twice(shop: Shop) -> None:
    """G2: wrapping an app twice would be a mistake, and is an error."""
    with pytest.raises(RuntimeError, match="wrapped already"):
        Retry(shop.app)


@pytest.mark.parametrize("wrong", [object(), Bottle, ProxyFix(Bottle())])
def test_not_bottle(wrong: Any) -> None:
    """Anything but a Bottle app is refused when the app starts."""
    with pytest.raises(TypeError, match=r"allowed: a bottle\.Bottle"):
        Retry(wrong)


def test_wrong_argument() -> None:
    """What the middleware refuses is refused, and the app is left as it was."""
    app = Bottle()
    with pytest.raises(TypeError, match="policy is 5"):
        Retry(app, policy=5)  # type: ignore[arg-type]
    Retry(app)


def test_unknown_bottle() -> None:
    """A Bottle that has no such method is refused by its name."""

    class Other(Bottle):
        _cast = None

    with pytest.raises(RuntimeError, match=r"has no _cast\(\)"):
        Retry(Other())


def test_no_warning() -> None:
    """The integration does not warn of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Retry(Bottle())


@pytest.mark.parametrize("wrapped", [lambda app: app, lambda app: app.wsgi, ProxyFix])
def test_plain_middleware_warns(wrapped: Callable[[Any], Any]) -> None:
    """Around a Bottle app the plain middleware warns, and names the fix."""
    with pytest.warns(RuntimeWarning, match=r"retrymw\.integrations\.bottle\.Retry") as caught:
        RetryMiddleware(wrapped(Bottle()))
    assert [warning.filename for warning in caught] == [__file__]


# Squashed exceptions


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_unhandled(shop: Shop, mode: str, method: str) -> None:
    """G3: a failure in a callback is replayed, whether Bottle renders it or raises it."""
    shop.app.route("/", method, shop.view)
    assert shop.outcome(method) == RECOVERED


def test_post(shop: Shop, mode: str) -> None:
    """G3: an unmarked POST is not replayed; it gets the 503 in every mode, never a bare 500."""
    shop.app.post("/")(shop.view)
    reply = shop.send("POST")
    assert (reply.status_code, reply.headers["Retry-Outcome"]) == (503, "not-replayable")
    assert "Retry-After" in reply.headers
    assert shop.flaky.calls == 1


def test_exhausted(shop: Shop, mode: str) -> None:
    """G2: six attempts, then the 503."""
    shop.flaky.failures = 100
    shop.app.get("/")(shop.view)
    assert shop.outcome() == (503, "exhausted", 6)


def test_wrapped_by_the_app(shop: Shop, mode: str) -> None:
    """G7: a failure behind the app's own exception is found."""

    @shop.app.get("/")
    def view() -> str:
        try:
            return shop.flaky()
        except DisconnectionError as exc:
            raise AppError("no luck") from exc

    assert shop.outcome() == RECOVERED


@pytest.mark.parametrize("status", [None, 503, 200, 404])
def test_error_handler(shop: Shop, mode: str, status: int | None) -> None:
    """A handler's page is squashed if it is a 5xx; below 500 it is the app's own answer. Where
    Bottle raises, no handler is asked."""
    shop.app.get("/")(shop.view)

    @shop.app.error(500)
    def handle(error: HTTPError) -> str:
        if status is not None:
            response.status = status
        return "sorry"

    answered = mode != "propagating" and status in (200, 404)
    assert shop.outcome() == ((status, None, 1) if answered else RECOVERED)


@pytest.mark.parametrize("error", [HTTPError, HTTPResponse])
@pytest.mark.parametrize("how", ["raised", "from"])
def test_http_errors(shop: Shop, mode: str, error: Any, how: str) -> None:
    """A callback that turns the failure into a 503 is replayed, into a 404 is not."""

    @shop.app.get("/<status:int>")
    def view(status: int) -> str:
        try:
            return shop.flaky()
        except DisconnectionError as exc:
            if how == "raised":
                raise error(status=status)  # noqa: B904  # the failure is its context
            raise error(status=status) from exc

    assert shop.outcome(path="/503") == RECOVERED
    assert shop.outcome(path="/404") == (404, None, 1)


def test_abort(shop: Shop, mode: str) -> None:
    """So does abort()."""

    @shop.app.get("/<status:int>")
    def view(status: int) -> str:
        try:
            return shop.flaky()
        except DisconnectionError:
            abort(status)

    assert shop.outcome(path="/503") == RECOVERED
    assert shop.outcome(path="/404") == (404, None, 1)


def test_error_that_is_returned(shop: Shop, mode: str) -> None:
    """An HTTPError that has the failure is seen when it is returned, too."""

    @shop.app.get("/")
    def view() -> Any:
        try:
            return shop.flaky()
        except DisconnectionError as exc:
            return HTTPError(500, "sorry", exc)

    assert shop.outcome() == RECOVERED


def test_error_handler_that_fails(shop: Shop, mode: str) -> None:
    """An error page that uses the database, and fails, is replayed."""

    @shop.app.error(404)
    def handle(error: HTTPError) -> str:
        return shop.flaky()

    assert shop.outcome(path="/missing") == (404, "recovered", 2)


def test_errors_of_the_app(shop: Shop) -> None:
    """G5: what is not ours Bottle renders as ever."""
    shop.app.get("/")(lambda: 1 // 0)
    reply = shop.send()
    assert reply.status_code == 500
    assert b"Error: 500 Internal Server Error" in reply.content
    assert "Retry-Attempts" not in reply.headers


@pytest.mark.parametrize("mode", ["propagating"], indirect=True)
def test_errors_of_the_app_pass(shop: Shop, mode: str) -> None:
    """G5: and raises as ever, the same object."""
    error = ZeroDivisionError()

    def view() -> None:
        raise error

    shop.app.get("/")(view)
    with pytest.raises(ZeroDivisionError) as raised:
        shop.send()
    assert raised.value is error


def test_redirect(shop: Shop, mode: str) -> None:
    """G5: a redirect, which Bottle raises, is sent as it is."""
    shop.app.post("/")(lambda: redirect("/there"))
    reply = shop.send("POST")
    assert (reply.status_code, reply.headers["Location"]) == (303, "http://localhost/there")
    assert "Retry-Attempts" not in reply.headers


def test_without_a_page(shop: Shop, mode: str) -> None:
    """G5: what Bottle answers by itself passes: a missing page, a wrong method."""
    shop.app.get("/")(shop.view)
    assert shop.outcome(path="/missing") == (404, None, 0)
    assert shop.outcome("POST") == (405, None, 0)


# Around the callback


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_before_request(shop: Shop, mode: str, method: str) -> None:
    """G3: a before_request hook runs before routing: what fails there has no mark."""
    shop.app.add_hook("before_request", shop.flaky)
    shop.app.route("/", method, rollback_safe(lambda: "hello"))
    assert shop.outcome(method) == (RECOVERED if method == "GET" else REFUSED)


@pytest.mark.parametrize("mark", [rollback_safe, lambda view: view])
def test_after_request(shop: Shop, mode: str, mark: Any) -> None:
    """G3: a failure in an after_request hook has the callback's mark."""
    shop.app.add_hook("after_request", shop.flaky)
    shop.app.post("/")(mark(lambda: "hello"))
    assert shop.outcome("POST") == (RECOVERED if mark is rollback_safe else REFUSED)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("squashes", [False, True])
@pytest.mark.parametrize("where", ["app", "route"])
def test_plugin(shop: Shop, mode: str, when: str, squashes: bool, where: str) -> None:
    """G3: a plugin that connects before the callback or commits after it, and may make an HTTPError
    of what fails, is part of the attempt."""

    def plugin(callback: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                if when == "before":
                    shop.flaky()
                result = callback(*args, **kwargs)
                if when == "after":
                    shop.flaky()
            except DisconnectionError as exc:
                if squashes:
                    raise HTTPError(500, "Database Error", exc) from None
                raise
            return result

        return wrapper

    if where == "app":
        shop.app.install(plugin)
    apply = [plugin] if where == "route" else []
    shop.app.post("/", apply=apply)(rollback_safe(lambda: "hello"))
    shop.app.post("/unmarked", apply=apply)(lambda: "hello")
    assert shop.outcome("POST") == RECOVERED
    assert shop.outcome("POST", "/unmarked") == REFUSED


def test_filter_that_uses_the_database(shop: Shop, mode: str) -> None:
    """G3: a filter of the router's that fails is replayed by the table."""
    shop.app.router.add_filter("order", lambda config: (r"\d+", shop.flaky, str))
    shop.app.get("/<order:order>")(lambda order: order)
    shop.app.post("/<order:order>")(idempotent(lambda order: order))
    assert shop.outcome("GET", "/17") == RECOVERED
    assert shop.outcome("POST", "/17") == REFUSED


@pytest.mark.parametrize("how", ["template()", "view", "plugin"])
def test_template(shop: Shop, mode: str, how: str) -> None:
    """A template that fails is replayed."""
    page = "{{query()}}"
    values = {"query": shop.flaky}
    if how == "template()":
        shop.app.get("/")(lambda: bottle.template(page, values))
    elif how == "view":
        shop.app.get("/")(bottle.view(page)(lambda: values))
    else:
        shop.app.get("/", template=page)(lambda: values)
    assert shop.outcome() == RECOVERED


# Streaming


@pytest.mark.parametrize("mark", [rollback_safe, lambda view: view])
@pytest.mark.parametrize("chunks", [["hel", "lo"], [b"hel", b"lo"], ["", "hello"]])
def test_callback_that_yields(shop: Shop, mode: str, mark: Any, chunks: list[Any]) -> None:
    """G1: a callback that fails before it has yielded anything is replayed by its mark."""

    @shop.app.post("/")
    @mark
    def view() -> Iterator[Any]:
        if not chunks[0]:
            yield chunks[0]
        shop.flaky()
        yield from chunks

    assert shop.outcome("POST") == (RECOVERED if mark is rollback_safe else REFUSED)
    if mark is rollback_safe:
        assert shop.send("POST").content == b"hello"


def test_stream_that_aborts(shop: Shop, mode: str) -> None:
    """A generator that makes a 503 of its failure is replayed, of a 404 is not."""

    @shop.app.get("/<status:int>")
    def view(status: int) -> Iterator[str]:
        try:
            yield shop.flaky()
        except DisconnectionError as exc:
            raise HTTPError(status) from exc

    assert shop.outcome(path="/503") == RECOVERED
    assert shop.outcome(path="/404") == (404, None, 1)


def test_stream_that_breaks(shop: Shop, mode: str) -> None:
    """G2: a stream that fails later can't be replayed: the exception passes."""

    @shop.app.get("/")
    def view() -> Iterator[str]:
        yield "hel"
        yield shop.flaky()

    with pytest.raises(DisconnectionError):
        shop.send()
    assert shop.flaky.calls == 1


def test_stream_is_closed(shop: Shop) -> None:
    """G1: what each attempt returned is closed once."""
    closed: list[int] = []

    class Chunks:
        def __init__(self) -> None:
            self.number = current_attempt().number

        def __iter__(self) -> Iterator[bytes]:
            return self

        def __next__(self) -> bytes:
            if self.number == 3:
                raise StopIteration
            shop.flaky()
            self.number = 3
            return b"hello"

        def close(self) -> None:
            closed.append(1)

    shop.app.get("/")(Chunks)
    assert shop.send().content == b"hello"
    assert closed == [1]  # Bottle itself does not close what fails at its first chunk


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_static_file(shop: Shop, mode: str, method: str, tmp_path: Any) -> None:
    """G5: a static file is passed on, with its ranges, its 304 and its file wrapper."""
    (tmp_path / "file.txt").write_text("hello")
    shop.app.get("/<name>")(lambda name: bottle.static_file(name, tmp_path))
    client = werkzeug.Client(shop.app)
    wrapper = {"wsgi.file_wrapper": werkzeug.wsgi.FileWrapper}
    with client.open("/file.txt", method=method, environ_overrides=wrapper) as reply:
        assert reply.data == (b"hello" if method == "GET" else b"")
        assert reply.headers["Content-Length"] == "5"
    part = shop.send(method, "/file.txt", headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.headers["Content-Range"]) == (206, "bytes 1-2/5")
    since = {"If-Modified-Since": reply.headers["Last-Modified"]}
    assert shop.send(method, "/file.txt", headers=since).status_code == 304


# Marks


@pytest.mark.parametrize("mark", [idempotent, rollback_safe])
def test_mark_of_a_callback(shop: Shop, mode: str, mark: Any) -> None:
    """G3: a marked POST is replayed."""
    shop.app.post("/")(mark(shop.view))
    assert shop.outcome("POST") == RECOVERED


def test_never_replay(shop: Shop, mode: str) -> None:
    """G3: a GET that is marked @never_replay runs once, and so does its HEAD."""
    shop.app.get("/")(never_replay(shop.view))
    assert shop.outcome() == REFUSED
    assert shop.outcome("HEAD") == REFUSED


def test_overrides(shop: Shop) -> None:
    """A mark's overrides hold for its callback."""
    shop.flaky.failures = 100
    shop.app.post("/")(idempotent(max_replays=2)(shop.view))
    assert shop.outcome("POST") == (503, "exhausted", 3)


def test_mark_below_other_decorators(shop: Shop) -> None:
    """A mark survives functools.wraps, and bottle.view."""

    def login_required(view: Any) -> Any:
        @functools.wraps(view)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs)

        return wrapper

    shop.app.post("/")(login_required(idempotent(shop.view)))
    shop.app.post("/view")(bottle.view("{{a}}")(idempotent(lambda: {"a": shop.flaky()})))
    assert shop.outcome("POST") == RECOVERED
    assert shop.outcome("POST", "/view") == RECOVERED


def test_marks_of_methods(shop: Shop) -> None:
    """Bound methods and objects that are called have their own marks."""

    class Orders:
        @idempotent
        def place(self) -> str:
            return shop.flaky()

        def cancel(self) -> str:
            return shop.flaky()

        @rollback_safe
        def __call__(self) -> str:
            return shop.flaky()

    orders = Orders()
    shop.app.post("/place")(orders.place)
    shop.app.post("/cancel")(orders.cancel)
    shop.app.post("/called")(orders)
    outcomes = [shop.outcome("POST", path) for path in ("/place", "/cancel", "/called")]
    assert outcomes == [RECOVERED, REFUSED, RECOVERED]


def test_mark_of_each_method(shop: Shop) -> None:
    """Each route of a path has the mark of its own callback, and "ANY" is a method like others."""
    shop.app.post("/")(idempotent(shop.view))
    shop.app.route("/", ["PATCH", "ANY"], shop.flaky)
    assert shop.outcome("POST") == RECOVERED
    assert shop.outcome("PATCH") == REFUSED
    assert shop.outcome("PURGE") == REFUSED


def mount(outer: Bottle, prefix: str, inner: Bottle) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a prefix without a slash
        outer.mount(prefix, inner)


@pytest.mark.parametrize("prefix", ["/v1/", "/v1"])
def test_mounted_bottle(shop: Shop, mode: str, prefix: str) -> None:
    """A Bottle app that is mounted has its own marks, its routes merged into the other's or not."""
    inner = Bottle()
    inner.config["catchall"] = shop.app.config["catchall"]
    inner.post("/marked")(rollback_safe(shop.view))
    inner.post("/unmarked")(shop.view)
    mount(shop.app, prefix, inner)
    assert shop.outcome("POST", "/v1/marked") == RECOVERED
    assert shop.outcome("POST", "/v1/unmarked") == REFUSED


@pytest.mark.parametrize("prefix", ["/v1/", "/v1"])
def test_mounted_with_its_own(shop: Shop, mode: str, prefix: str) -> None:
    """G2: an app with its own Retry, mounted inside, does not multiply the replays; its streams are
    seen as well."""
    inner = Bottle()
    inner.config["catchall"] = shop.app.config["catchall"]
    inner.get("/")(shop.view)
    inner.get("/stream")(lambda: (shop.flaky() for _ in range(1)))
    Retry(inner, policy=POLICY)
    mount(shop.app, prefix, inner)
    assert shop.outcome(path="/v1/stream") == RECOVERED
    shop.flaky.failures = 100
    assert shop.outcome(path="/v1/") == (503, "exhausted", 6)


def test_merged_bottle(shop: Shop, mode: str) -> None:
    """The routes of another app that are merged into this one have their marks."""
    inner = Bottle()
    inner.post("/marked")(rollback_safe(shop.view))
    shop.app.merge(inner)
    assert shop.outcome("POST", "/marked") == RECOVERED


def test_mounted_wsgi_app(shop: Shop, mode: str) -> None:
    """G3: another WSGI app that is mounted has no marks, and its failures are seen."""

    def inner(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [shop.flaky().encode()]

    shop.app.mount("/v1/", inner)
    assert shop.outcome("GET", "/v1/x") == RECOVERED
    assert shop.outcome("POST", "/v1/x") == REFUSED


@pytest.mark.parametrize(
    ("mark", "expected"),
    [(rollback_safe, RECOVERED), (idempotent, RECOVERED), (never_replay, REFUSED)],
)
def test_mounted_in_flask(flaky: Flaky, mark: Any, expected: Any) -> None:
    """G3: an app that is mounted in one of Flask's has its marks."""
    inner = Bottle()
    inner.post("/x")(mark(functools.partial(flaky)))
    Retry(inner)
    app = Flask("shop")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/v1": inner})  # type: ignore[method-assign]
    retrymw.integrations.flask.Retry(app, policy=POLICY)
    response = send(app, "POST", "/v1/x")
    told = response.status_code, response.headers.get("Retry-Outcome"), flaky.calls
    assert told == expected


def test_mark_is_found_before_the_callback_runs(shop: Shop) -> None:
    """A callback can ask whether this attempt is its last."""
    seen: list[tuple[str, bool]] = []

    def look() -> str:
        seen.append((request.path, current_attempt().is_last))
        return shop.flaky()

    shop.app.post("/marked")(idempotent(max_replays=1)(functools.partial(look)))
    shop.app.post("/unmarked")(look)
    shop.send("POST", "/marked")
    shop.flaky.calls = 0
    shop.send("POST", "/unmarked")
    assert seen == [("/marked", False), ("/marked", True), ("/unmarked", True)]


# What a callback sees


@pytest.mark.parametrize("kind", ["forms", "json", "body", "files"])
def test_request_body(shop: Shop, kind: str) -> None:
    """G5: the body can be read in each attempt, however Bottle reads it."""
    seen: list[Any] = []

    @shop.app.put("/")
    def view() -> str:
        if kind == "forms":
            seen.append(dict(request.forms))
        elif kind == "json":
            seen.append(request.json)
        elif kind == "body":
            seen.append(request.body.read())
        else:
            seen.append(request.files["f"].file.read())
        return shop.flaky()

    arguments: dict[str, Any] = {
        "forms": {"data": {"a": "1"}},
        "json": {"json": {"a": 1}},
        "body": {"content": b"hello"},
        "files": {"files": {"f": b"hello"}},
    }[kind]
    assert shop.outcome("PUT", **arguments) == RECOVERED
    assert seen in ([{"a": "1"}] * 2, [{"a": 1}] * 2, [b"hello"] * 2)


def test_nothing_leaks_between_attempts(shop: Shop) -> None:
    """G1: headers, cookies, the status and what was put on the request end with the attempt."""
    seen: list[Any] = []

    @shop.app.get("/<name>")
    def view(name: str) -> str:
        number = current_attempt().number
        seen.append((name, hasattr(request, "left"), response.status_code, "X-Left" in response))
        request.left = number
        response.status = 200 + number
        response.set_cookie("number", str(number))
        response.set_header("X-Left", str(number))
        return shop.flaky()

    reply = werkzeug.Client(shop.app).get("/caf%C3%A9")
    assert seen == [("café", False, 200, False)] * 2
    assert (reply.status_code, reply.headers["X-Left"]) == (202, "2")
    assert reply.headers.getlist("Set-Cookie") == ["number=2"]


def test_callbacks(shop: Shop) -> None:
    """on_success is called once, for the attempt that was sent, on_rollback for the other."""
    calls: list[str] = []

    @shop.app.get("/")
    def view() -> str:
        attempt = current_attempt()
        attempt.on_success(lambda: calls.append(f"success {attempt.number}"))
        attempt.on_rollback(lambda: calls.append(f"rollback {attempt.number}"))
        return shop.flaky()

    assert shop.outcome() == RECOVERED
    assert calls == ["rollback 1", "success 2"]


@pytest.mark.parametrize("value", ["", {}, {"a": 1}, ["a", "b"], None, iter(["a", "b"])])
def test_values_of_callbacks(value: Any) -> None:
    """G5: whatever a callback may return comes out as without the middleware."""
    value, again = itertools.tee(value) if isinstance(value, Iterator) else (value, value)
    bare, wrapped = Bottle(), Bottle()
    bare.get("/")(lambda: value)
    wrapped.get("/")(lambda: again)
    Retry(wrapped)
    expected, reply = send(bare), send(wrapped)
    assert (reply.status_code, reply.content) == (expected.status_code, expected.content)
    assert reply.headers == expected.headers


# With a database


@pytest.fixture
def store(mariadb: MariaDB) -> Iterator[MariaDB]:
    """The server, with a table for orders."""
    mariadb.execute("CREATE TABLE app.orders (name VARCHAR(50))")
    yield mariadb
    mariadb.execute("DROP TABLE app.orders")


@pytest.mark.parametrize(
    ("at", "expected"), [(1, (201, "recovered")), ("commit", (503, "unknown"))]
)
@pytest.mark.parametrize("squashes", [False, True])
def test_order(
    store: MariaDB, mariadb_proxy: FaultProxy, at: Any, expected: Any, squashes: bool
) -> None:
    """G1, G4: an order whose connection is cut, in its transaction or at its COMMIT, is stored
    exactly once, also where a plugin squashes what fails."""
    database = Database(
        host=mariadb_proxy.host,
        port=mariadb_proxy.port,
        user=store.user,
        password=store.password,
        database=store.database,
        ssl_disabled=True,
    )
    app = Bottle()

    def plugin(callback: Any) -> Any:
        def wrapper(**kwargs: Any) -> Any:
            try:
                return callback(**kwargs)
            except Exception as exc:
                if squashes:
                    raise HTTPError(500, "Database Error") from exc
                raise

        return wrapper

    @app.post("/orders/<name>", apply=plugin)
    @rollback_safe
    def order(name: str) -> dict[str, str]:
        with database.connection() as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (%s)", [name])
            if not current_attempt().is_replay:
                mariadb_proxy.cut("reset", at=at)
            cursor.execute("SELECT 1")
            connection.commit()
        response.status = 201
        return {"ordered": name}

    Retry(app, policy=POLICY, databases=[database])
    reply = send(app, "POST", "/orders/teapot")
    assert (reply.status_code, reply.headers["Retry-Outcome"]) == expected
    assert mariadb_proxy.faults == 1
    assert [row[0] for row in store.execute("SELECT name FROM app.orders")] == ["teapot"]
