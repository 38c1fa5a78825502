"""Flask: what it squashes, the marks of its views, and its contexts."""

from __future__ import annotations

import contextvars
import functools
import io
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import falcon
import flask
import pytest
import tenacity
import werkzeug
from django.core.handlers.wsgi import WSGIHandler
from flask import Blueprint, Flask, abort, current_app, g, session, stream_with_context
from flask.sessions import SecureCookieSessionInterface
from flask.views import MethodView, View
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter

from retrymw import (
    Attempt,
    DisconnectionError,
    RetryPolicy,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.adapters.pymysql import Database as PyMySQL
from retrymw.adapters.sqlalchemy import watch
from retrymw.integrations._config import read_config
from retrymw.integrations.flask import Retry
from retrymw.testing import FaultProxy
from retrymw.testing.servers import MariaDB
from retrymw.wsgi import RetryMiddleware

POLICY = RetryPolicy(wait=tenacity.wait_none())
MODES = ["production", "testing", "debug", "propagating"]


class AppError(Exception):
    """The app's own wrapper of a driver's exception."""


class Flaky:
    """Call it where the database is used: it fails the first ``failures`` times, and counts."""

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise DisconnectionError("the server has gone away")


class Database:
    """Counts what is open."""

    def __init__(self) -> None:
        self.opened = 0

    def open(self) -> None:
        current_attempt().resource(self)[self] = self
        self.opened += 1

    def rollback(self, attempt: Attempt) -> None: ...

    def release(self, attempt: Attempt) -> None:
        self.opened -= 1

    def ping(self) -> None: ...


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


@pytest.fixture
def bare(request: pytest.FixtureRequest) -> Flask:
    """A Flask app without retrymw, in production mode unless the test asks for a ``mode``."""
    app = Flask("shop")
    app.secret_key = "not one"
    app.logger.disabled = True
    mode = request.getfixturevalue("mode") if "mode" in request.fixturenames else "production"
    app.testing = mode == "testing"
    app.debug = mode == "debug"
    if mode == "propagating":
        app.config["PROPAGATE_EXCEPTIONS"] = True
    return app


@pytest.fixture
def app(bare: Flask) -> Flask:
    Retry(bare, policy=POLICY)
    return bare


@pytest.fixture
def client(app: Flask) -> Any:
    return app.test_client()


def failing_view(app: Flask, flaky: Flaky, **options: Any) -> None:
    """``/`` uses the database."""

    @app.route("/", **options)
    def view() -> str:
        flaky()
        return "hello"


# Installing


def test_retry(bare: Flask, flaky: Flaky) -> None:
    """Retry(app) wraps the app."""
    failing_view(bare, flaky)
    retry = Retry(bare, policy=POLICY)
    assert bare.test_client().get("/").data == b"hello"
    assert flaky.calls == 2
    assert bare.extensions["retrymw"] is retry


def test_init_app(bare: Flask, flaky: Flaky) -> None:
    """init_app() does the same later, and for several apps."""
    retry = Retry(policy=POLICY)
    other = Flask("other")
    failing_view(bare, flaky)
    failing_view(other, flaky)
    for app in (bare, other):
        flaky.calls = 0
        retry.init_app(app)
        assert app.test_client().get("/").data == b"hello"
        assert flaky.calls == 2


def test_views_may_come_later(app: Flask, client: Any, flaky: Flaky) -> None:
    """A view that is added after the middleware is replayed like any other."""
    failing_view(app, flaky)
    assert client.get("/").data == b"hello"


def test_twice(app: Flask) -> None:
    """G2: wrapping an app twice would be a mistake, and is an error."""
    with pytest.raises(RuntimeError, match="wrapped already"):
        Retry(app)
    with pytest.raises(RuntimeError, match="wrapped already"):
        app.extensions["retrymw"].init_app(app)


@pytest.mark.parametrize("wrong", [object(), lambda environ, start_response: []])
def test_not_flask(wrong: Any) -> None:
    """Anything but a Flask app is refused when the app starts."""
    with pytest.raises(TypeError, match=r"allowed: a flask\.Flask"):
        Retry(wrong)


def test_no_warning(app: Flask, client: Any, flaky: Flaky) -> None:
    """The integration does not warn of itself, at the first 5xx neither."""
    flaky.failures = 100
    failing_view(app, flaky)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert client.get("/").status_code == 503


# Configuring

SET = {
    "max_replays": 2,
    "wait": tenacity.wait_fixed(1),
    "deadline": 5.5,
    "kinds": {"conflict"},
    "methods": {"GET", "POST"},
    "body_memory": 10,
    "body_limit": 20,
    "max_waiting": 7,
    "hold": "until-return",
    "expose": "always",
}


def test_config_of_each_field() -> None:
    """Each field of the policy has its key; the others stay as they are."""
    assert set(SET) == {field.name for field in fields(RetryPolicy)}
    for name, value in SET.items():
        enabled, policy = read_config({f"RETRY_{name.upper()}": value}, RetryPolicy(body_memory=1))
        assert enabled
        assert policy == RetryPolicy(**{"body_memory": 1, name: value})


def test_config(bare: Flask, flaky: Flaky) -> None:
    """What the config sets goes before the policy that is given, field by field."""
    flaky.failures = 100
    failing_view(bare, flaky)
    bare.config["RETRY_MAX_REPLAYS"] = 2
    Retry(bare, policy=RetryPolicy(wait=tenacity.wait_none(), max_replays=1, expose="never"))
    response = bare.test_client().get("/")
    assert (response.status_code, flaky.calls) == (503, 3)
    assert "Retry-Attempts" not in response.headers


def test_config_of_each_app(flaky: Flaky) -> None:
    """One Retry for the apps of a factory: each has the config that it has at init_app()."""
    flaky.failures = 100
    retry = Retry(policy=POLICY)

    def create_app(replays: int) -> Flask:
        app = Flask("shop")
        app.logger.disabled = True
        app.config.from_mapping(RETRY_MAX_REPLAYS=replays)
        failing_view(app, flaky)
        retry.init_app(app)
        app.config["RETRY_MAX_REPLAYS"] = 17
        return app

    for replays in (0, 3):
        flaky.calls = 0
        assert create_app(replays).test_client().get("/").status_code == 503
        assert flaky.calls == 1 + replays


@pytest.mark.parametrize("methods", ['["GET", "POST"]', "GET, POST"])
def test_config_from_the_environment(
    bare: Flask, flaky: Flaky, monkeypatch: pytest.MonkeyPatch, methods: str
) -> None:
    """Environment variables set any field but ``wait``."""
    monkeypatch.setenv("FLASK_RETRY_MAX_REPLAYS", "2")
    monkeypatch.setenv("FLASK_RETRY_DEADLINE", "7.5")
    monkeypatch.setenv("FLASK_RETRY_METHODS", methods)
    monkeypatch.setenv("FLASK_RETRY_KINDS", "disconnection")
    monkeypatch.setenv("FLASK_RETRY_MAX_WAITING", "null")
    monkeypatch.setenv("FLASK_RETRY_EXPOSE", "always")
    bare.config.from_prefixed_env()
    flaky.failures = 100
    failing_view(bare, flaky, methods=["POST"])
    Retry(bare, policy=POLICY)
    assert posted(bare.test_client()) == (503, "exhausted")
    assert flaky.calls == 3
    assert bare.test_client().get("/missing").headers["Retry-Attempts"] == "1"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("MAX_REPLAYS", "2", 2),
        ("DEADLINE", "7.5", 7.5),
        ("METHODS", "GET", {"GET"}),
        ("METHODS", "[]", set()),
        ("KINDS", "conflict,disconnection", {"conflict", "disconnection"}),
        ("MAX_WAITING", "null", None),
        ("HOLD", "until-return", "until-return"),
    ],
)
def test_config_of_texts(key: str, text: str, value: Any) -> None:
    """A text that was put there as it is in the environment stands for its value."""
    _, policy = read_config({f"RETRY_{key}": text}, None)
    assert getattr(policy, key.lower()) == value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("RETRY_DEADLINE", "soon", r"RETRY_DEADLINE is 'soon'; allowed: seconds, a number"),
        ("RETRY_DEADLINE", -1, r"RETRY_DEADLINE is -1; allowed: seconds, finite, above 0"),
        ("RETRY_MAX_REPLAYS", True, r"RETRY_MAX_REPLAYS is True; allowed: a whole number"),
        ("RETRY_METHODS", "get", r"RETRY_METHODS is \['get'\]; allowed: HTTP methods in capitals"),
        ("RETRY_METHODS", "", r"RETRY_METHODS is \[''\]; allowed"),
        ("RETRY_KINDS", ["conflicts"], r"RETRY_KINDS is \['conflicts'\]; allowed: any of conflict"),
        ("RETRY_WAIT", "0.5", r"RETRY_WAIT is 0\.5, but .* allowed: a tenacity wait strategy"),
        ("RETRY_HOLD", "always", r"RETRY_HOLD is 'always'; allowed: 'first-chunk' or"),
        ("RETRY_BODY_MEMORY", 1 << 30, r"RETRY_BODY_LIMIT is 67108864; allowed: at least"),
        ("RETRY_ENABLED", "nope", r"RETRY_ENABLED is 'nope'; allowed: True or False"),
        ("RETRY_ENABLED", None, r"RETRY_ENABLED is None; allowed: True or False"),
        ("RETRY_DEADLINES", 5, r"RETRY_DEADLINES is set, .* did you mean RETRY_DEADLINE\? "),
        ("RETRY_BROKER", "redis://:secret@broker", r"^((?!secret).)*$"),
        ("RETRY_XYZ", 5, r"no such key; allowed: RETRY_BODY_LIMIT, .*RETRY_ENABLED, .*RETRY_WAIT$"),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_wrong_config(bare: Flask, key: str, value: Any, message: str, enabled: bool) -> None:
    """A wrong value and an unknown key raise at start-up, naming it and what is allowed, also
    where replays are switched off; the app is left as it was."""
    bare.config |= {"RETRY_ENABLED": enabled, key: value}
    with pytest.raises((TypeError, ValueError), match=message):
        Retry(bare)
    assert "retrymw" not in bare.extensions
    assert not isinstance(bare.wsgi_app, RetryMiddleware)


def test_wrong_policy_and_config(bare: Flask) -> None:
    """A policy that is none is named as such, whatever the config says."""
    bare.config["RETRY_MAX_REPLAYS"] = 2
    with pytest.raises(TypeError, match="policy is 5; allowed: a RetryPolicy"):
        Retry(bare, policy=5)  # type: ignore[arg-type]


def test_config_of_others(bare: Flask, flaky: Flaky) -> None:
    """Keys without the prefix are nobody's business."""
    failing_view(bare, flaky)
    bare.config |= {"RETRY": 1, "RETRYING": 2, "retry_x": 3, "MY_RETRY_X": 4}
    Retry(bare, policy=POLICY)
    assert bare.test_client().get("/").data == b"hello"


@pytest.mark.parametrize("value", [False, "false", "False", 0, "0"])
def test_disabled(bare: Flask, flaky: Flaky, value: Any) -> None:
    """RETRY_ENABLED = False leaves the app as it is."""
    failing_view(bare, flaky)
    bare.add_url_rule("/attempt", view_func=lambda: str(current_attempt(None)), endpoint="attempt")
    bare.config["RETRY_ENABLED"] = value
    Retry(bare, policy=POLICY)
    client = bare.test_client()
    assert (client.get("/").status_code, flaky.calls) == (500, 1)
    assert client.get("/attempt").data == b"None"
    assert not isinstance(bare.wsgi_app, RetryMiddleware)
    with pytest.raises(RuntimeError, match="wrapped already"):
        Retry(bare)


@pytest.mark.parametrize("value", [True, "true", 1, "1"])
def test_enabled(bare: Flask, flaky: Flaky, value: Any) -> None:
    """RETRY_ENABLED = True is as without it."""
    failing_view(bare, flaky)
    bare.config["RETRY_ENABLED"] = value
    Retry(bare, policy=POLICY)
    assert bare.test_client().get("/").data == b"hello"


def test_disabled_with_nobody_to_commit(bare: Flask) -> None:
    """Where the middleware is to commit, it can't be switched off: orders would get lost."""
    bare.config["RETRY_ENABLED"] = False
    database = PyMySQL(host="127.0.0.1", commit="on-success")
    with pytest.raises(ValueError, match=r"RETRY_ENABLED is False, but <Database .* commits on"):
        Retry(bare, databases=[database])


# Plain middleware around Flask


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda app: app,
        lambda app: app.wsgi_app,
        lambda app: ProxyFix(app.wsgi_app),
        lambda app: ProxyFix(DispatcherMiddleware(app)),
    ],
)
def test_plain_middleware_warns(bare: Flask, flaky: Flaky, wrapped: Any) -> None:
    """Around a Flask app the plain middleware warns, once, and names the fix."""
    failing_view(bare, flaky)
    with pytest.warns(RuntimeWarning, match=r"retrymw\.integrations\.flask\.Retry") as caught:
        middleware = RetryMiddleware(wrapped(bare), policy=POLICY)
    assert [warning.filename for warning in caught] == [__file__]
    client = werkzeug.Client(middleware)
    assert [client.get("/").status_code for _ in range(2)] == [500, 200]


@pytest.mark.parametrize(
    ("make", "name"), [(falcon.App, "falcon"), (lambda: WSGIHandler.__new__(WSGIHandler), "django")]
)
def test_plain_middleware_warns_of_other_frameworks(make: Any, name: str) -> None:
    """So it does around others that have an integration."""
    with pytest.warns(RuntimeWarning, match=rf"retrymw\.integrations\.{name}\.Retry") as caught:
        RetryMiddleware(ProxyFix(make()))
    assert [warning.filename for warning in caught] == [__file__]


def test_plain_middleware_does_not_warn_of_others() -> None:
    """Around anything else it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = werkzeug.Client(RetryMiddleware(ProxyFix(werkzeug.Response("oops", 500))))
        assert client.get("/").status_code == 500


# Squashed exceptions


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_unhandled(app: Flask, client: Any, flaky: Flaky, mode: str, method: str) -> None:
    """G3: a failure in a view is replayed, whether Flask renders it or raises it."""
    failing_view(app, flaky, methods=[method])
    response = client.open("/", method=method)
    assert (response.status_code, response.data, flaky.calls) == (200, b"hello", 2)
    assert response.headers["Retry-Outcome"] == "recovered"


def test_post(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """G3: an unmarked POST is not replayed; it gets the 503 in every mode, never a bare 500."""
    failing_view(app, flaky, methods=["POST"])
    response = client.post("/")
    assert (response.status_code, flaky.calls) == (503, 1)
    assert response.headers["Retry-Outcome"] == "not-replayable"
    assert "Retry-After" in response.headers


def test_exhausted(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """G2: six attempts, then the 503."""
    flaky.failures = 100
    failing_view(app, flaky)
    response = client.get("/")
    assert (response.status_code, flaky.calls) == (503, 6)
    assert response.headers["Retry-Outcome"] == "exhausted"


def test_wrapped_by_the_app(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """G7: a failure behind the app's own exception is found."""

    @app.route("/")
    def view() -> str:
        try:
            flaky()
        except DisconnectionError as exc:
            raise AppError("no luck") from exc
        return "hello"

    assert (client.get("/").data, flaky.calls) == (b"hello", 2)


@pytest.mark.parametrize("registered", [DisconnectionError, Exception, 500])
@pytest.mark.parametrize("status", [500, 503])
def test_error_handler(
    app: Flask, client: Any, flaky: Flaky, mode: str, registered: Any, status: int
) -> None:
    """A handler that renders the failure as a 5xx does not keep it from being replayed."""
    failing_view(app, flaky)

    @app.errorhandler(registered)
    def handle(error: Any) -> Any:
        return "sorry", status

    response = client.get("/")
    assert (response.status_code, response.data, flaky.calls) == (200, b"hello", 2)


def test_error_handler_of_the_apps_exception(
    app: Flask, client: Any, flaky: Flaky, mode: str
) -> None:
    """The same for a handler of the app's own exception, whose cause is the failure."""

    @app.errorhandler(AppError)
    def handle(error: AppError) -> Any:
        return "sorry", 500

    @app.route("/")
    def view() -> str:
        try:
            flaky()
        except DisconnectionError as exc:
            raise AppError from exc
        return "hello"

    assert (client.get("/").data, flaky.calls) == (b"hello", 2)


def test_error_handler_of_a_blueprint(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """The same for a blueprint's handler."""
    blueprint = Blueprint("orders", __name__, url_prefix="/orders")

    @blueprint.errorhandler(DisconnectionError)
    def handle(error: DisconnectionError) -> Any:
        return "sorry", 500

    @blueprint.route("/")
    def view() -> str:
        flaky()
        return "hello"

    app.register_blueprint(blueprint)
    assert (client.get("/orders/").data, flaky.calls) == (b"hello", 2)


@pytest.mark.parametrize("registered", [DisconnectionError, Exception])
@pytest.mark.parametrize("status", [200, 302, 404, 409])
def test_error_handler_below_500(
    app: Flask, client: Any, flaky: Flaky, mode: str, registered: Any, status: int
) -> None:
    """A handler that answers below 500 has dealt with the failure: its answer is sent."""
    failing_view(app, flaky)

    @app.errorhandler(registered)
    def handle(error: Any) -> Any:
        return "stale", status

    response = client.get("/")
    assert (response.status_code, response.data, flaky.calls) == (status, b"stale", 1)
    assert "Retry-Attempts" not in response.headers


def test_abort(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """A view that turns the failure into abort(503) is replayed, into abort(404) is not."""

    @app.route("/<int:status>")
    def view(status: int) -> str:
        try:
            flaky()
        except DisconnectionError:
            abort(status)
        return "hello"

    assert (client.get("/404").status_code, flaky.calls) == (404, 1)
    flaky.calls = 0
    assert (client.get("/503").data, flaky.calls) == (b"hello", 2)


def test_errors_of_the_app(app: Flask, client: Any) -> None:
    """G5: what is not ours Flask renders as ever."""
    calls: list[int] = []

    @app.route("/")
    def view() -> str:
        calls.append(1)
        raise ZeroDivisionError

    response = client.get("/")
    assert (response.status_code, len(calls)) == (500, 1)
    assert b"Internal Server Error" in response.data
    assert "Retry-Attempts" not in response.headers


@pytest.mark.parametrize("mode", ["testing", "debug", "propagating"], indirect=True)
def test_errors_of_the_app_pass(app: Flask, client: Any, mode: str) -> None:
    """G5: and raises as ever, the same object."""
    error = ZeroDivisionError()

    @app.route("/")
    def view() -> str:
        raise error

    with pytest.raises(ZeroDivisionError) as raised:
        client.get("/")
    assert raised.value is error


def test_error_page_that_is_a_file(app: Flask, client: Any, flaky: Flaky, tmp_path: Any) -> None:
    """A 500 that is sent from a file is squashed like any other."""
    (tmp_path / "500.html").write_text("sorry")

    @app.errorhandler(500)
    def handle(error: Any) -> Any:
        return flask.send_file(tmp_path / "500.html"), 500

    failing_view(app, flaky)
    environ = {"wsgi.file_wrapper": werkzeug.wsgi.FileWrapper}
    response = client.get("/", environ_overrides=environ)
    assert (response.status_code, response.data, flaky.calls) == (200, b"hello", 2)
    response.close()


# Around the view


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_before_request(app: Flask, client: Any, flaky: Flaky, mode: str, method: str) -> None:
    """G3: a failure in before_request is replayed by the table."""
    app.before_request(flaky)
    app.add_url_rule("/", view_func=lambda: "hello", endpoint="view", methods=[method])
    response = client.open("/", method=method)
    expected = (200, 2) if method == "GET" else (503, 1)
    assert (response.status_code, flaky.calls) == expected


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_after_request(app: Flask, client: Any, flaky: Flaky, mode: str, method: str) -> None:
    """G3: a failure in after_request too, though the view has run."""

    @app.after_request
    def after(response: flask.Response) -> flask.Response:
        flaky()
        return response

    app.add_url_rule("/", view_func=lambda: "hello", endpoint="view", methods=[method])
    response = client.open("/", method=method)
    if method == "GET":
        assert (response.status_code, response.data) == (200, b"hello")
    else:
        assert response.status_code == 503


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("when", ["teardown_request", "teardown_appcontext"])
def test_teardown(app: Flask, client: Any, flaky: Flaky, mode: str, when: str, method: str) -> None:
    """G3: a failure in a teardown after a good view escapes Flask: replayed by the table only."""
    views: list[int] = []

    @app.route("/", methods=["GET", "POST"])
    def view() -> str:
        views.append(1)
        return "hello"

    getattr(app, when)(flaky)
    response = client.open("/", method=method)
    if method == "GET":
        assert (response.status_code, response.data, len(views)) == (200, b"hello", 2)
    else:
        assert (response.status_code, len(views)) == (503, 1)
        assert response.headers["Retry-Outcome"] == "not-replayable"


def test_loading_the_user(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """A URL preprocessor that fails is replayed."""

    @app.url_value_preprocessor
    def load(endpoint: str | None, values: Any) -> None:
        flaky()

    app.add_url_rule("/", view_func=lambda: "hello", endpoint="view")
    assert (client.get("/").data, flaky.calls) == (b"hello", 2)


# Streaming


def test_stream_whose_first_chunk_fails(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """G1: a stream whose first chunk fails is replayed."""

    @app.route("/")
    def view() -> Any:
        def chunks() -> Iterator[str]:
            flaky()
            yield "hel"
            yield flask.request.args["end"]

        return stream_with_context(chunks()), {"Content-Type": "text/plain"}

    response = client.get("/?end=lo")
    assert (response.status_code, response.data, flaky.calls) == (200, b"hello", 2)


def test_stream_that_breaks(app: Flask, client: Any, mode: str) -> None:
    """G2: a stream that fails later can't be replayed: the exception passes."""
    calls: list[int] = []

    @app.route("/")
    def view() -> Any:
        def chunks() -> Iterator[str]:
            calls.append(1)
            yield "hel"
            raise DisconnectionError("gone")

        return stream_with_context(chunks())

    with pytest.raises(DisconnectionError):
        _ = client.get("/").data
    assert len(calls) == 1


@pytest.mark.parametrize("failures", [0, 1])
def test_stream_is_torn_down(bare: Flask, flaky: Flaky, failures: int) -> None:
    """G1, G5: the context of each attempt is torn down as often as Flask does it by itself."""
    torn_down: list[int] = []
    bare.teardown_request(lambda exc: torn_down.append(g.number))
    flaky.failures = failures
    numbers = iter(range(10))

    @bare.route("/")
    def view() -> Any:
        g.number = next(numbers)

        def chunks() -> Iterator[str]:
            flaky()
            yield "hello"

        return stream_with_context(chunks())

    def get() -> None:
        with bare.test_client().get("/") as response:
            assert response.data == b"hello"

    if not failures:
        get()
        expected = torn_down.count(0)
        Retry(bare, policy=POLICY)
        get()
        assert torn_down.count(1) == expected
    else:
        Retry(bare, policy=POLICY)
        get()
        assert torn_down.count(0) == torn_down.count(1) > 0


# Marks


def posted(client: Any, path: str = "/", method: str = "POST") -> tuple[int, str | None]:
    response = client.open(path, method=method)
    return response.status_code, response.headers.get("Retry-Outcome")


RECOVERED = (200, "recovered")
REFUSED = (503, "not-replayable")


@pytest.mark.parametrize("mark", [idempotent, rollback_safe])
def test_mark_of_a_view(app: Flask, client: Any, flaky: Flaky, mode: str, mark: Any) -> None:
    """G3: a marked POST is replayed."""

    @app.post("/")
    @mark
    def view() -> str:
        flaky()
        return "hello"

    assert posted(client) == RECOVERED


def test_never_replay(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """G3: a GET that is marked @never_replay runs once."""

    @app.get("/")
    @never_replay
    def view() -> str:
        flaky()
        return "hello"

    assert (posted(client, method="GET"), flaky.calls) == (REFUSED, 1)


def test_overrides(app: Flask, client: Any, flaky: Flaky) -> None:
    """A mark's overrides hold for its view."""
    flaky.failures = 100

    @app.post("/")
    @idempotent(max_replays=2)
    def view() -> str:
        flaky()
        return "hello"

    assert posted(client) == (503, "exhausted")
    assert flaky.calls == 3


def test_mark_below_other_decorators(app: Flask, client: Any, flaky: Flaky) -> None:
    """A mark survives functools.wraps."""

    def login_required(view: Any) -> Any:
        @functools.wraps(view)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs)

        return wrapper

    @app.post("/")
    @login_required
    @idempotent
    def view() -> str:
        flaky()
        return "hello"

    assert posted(client) == RECOVERED


def test_marks_of_methods(app: Flask, client: Any, flaky: Flaky) -> None:
    """A MethodView has a mark for each method."""

    class Orders(MethodView):
        @idempotent
        def post(self) -> str:
            flaky()
            return "hello"

        def patch(self) -> str:
            flaky()
            return "hello"

        @never_replay
        def get(self) -> str:
            flaky()
            return "hello"

    app.add_url_rule("/", view_func=Orders.as_view("orders"))
    outcomes = {}
    for method in ("POST", "PATCH", "GET"):
        flaky.calls = 0
        outcomes[method] = posted(client, method=method)
    assert outcomes == {"POST": RECOVERED, "PATCH": REFUSED, "GET": REFUSED}


def test_head_has_the_mark_of_get(app: Flask, client: Any, flaky: Flaky) -> None:
    """G3: a HEAD request that Flask lets get() answer has get()'s mark."""

    class Orders(MethodView):
        @never_replay
        def get(self) -> str:
            flaky()
            return "hello"

    app.add_url_rule("/", view_func=Orders.as_view("orders"))
    assert (posted(client, method="HEAD"), flaky.calls) == (REFUSED, 1)


@pytest.mark.parametrize("base", [View, MethodView])
@pytest.mark.parametrize("how", ["class", "decorators", "inherited"])
def test_marks_of_classes(app: Flask, client: Any, flaky: Flaky, base: Any, how: str) -> None:
    """A view class is marked as a class, by ``decorators``, or through its base."""

    class Orders(base):  # type: ignore[misc]
        methods = ["POST"]  # noqa: RUF012  # as Flask has it
        decorators = [idempotent] if how == "decorators" else []

        def dispatch_request(self, **kwargs: Any) -> Any:
            return super().dispatch_request(**kwargs) if base is MethodView else self.post()

        def post(self) -> str:
            flaky()
            return "hello"

    view_class: Any = Orders if how == "decorators" else idempotent(Orders)
    if how == "inherited":

        class More(Orders):
            pass

        view_class = More
    app.add_url_rule("/", view_func=view_class.as_view("orders"))
    assert posted(client) == RECOVERED


def test_marks_in_blueprints(app: Flask, client: Any, flaky: Flaky) -> None:
    """Views of blueprints, nested ones too, have their own marks."""
    outer = Blueprint("outer", __name__, url_prefix="/outer")
    inner = Blueprint("inner", __name__, url_prefix="/inner")

    @outer.post("/orders", endpoint="orders")
    def unmarked() -> str:
        flaky()
        return "hello"

    @inner.post("/orders", endpoint="orders")
    @idempotent
    def marked() -> str:
        flaky()
        return "hello"

    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    assert posted(client, "/outer/orders") == REFUSED
    flaky.calls = 0
    assert posted(client, "/outer/inner/orders") == RECOVERED


def test_mark_is_found_before_the_view_runs(app: Flask, client: Any) -> None:
    """A view can ask whether this attempt is its last."""
    seen: list[tuple[str, bool]] = []

    def look(name: str) -> Any:
        def view() -> str:
            attempt = current_attempt()
            seen.append((name, attempt.is_last))
            if attempt.number == 1:
                raise DisconnectionError("gone")
            return "hello"

        return view

    app.add_url_rule(
        "/marked", "marked", idempotent(max_replays=1)(look("marked")), methods=["POST"]
    )
    app.add_url_rule("/unmarked", "unmarked", look("unmarked"), methods=["POST"])
    client.post("/marked")
    client.post("/unmarked")
    assert seen == [("marked", False), ("marked", True), ("unmarked", True)]


def test_mark_counts_in_before_request(app: Flask, client: Any, flaky: Flaky) -> None:
    """G3: the request is routed by then: a failure before the view has the view's mark."""
    app.before_request(flaky)
    app.add_url_rule("/", "view", idempotent(lambda: "hello"), methods=["POST"])
    assert posted(client) == RECOVERED


def test_mark_outlives_another_request_object(app: Flask, client: Any, flaky: Flaky) -> None:
    """G3: code that makes a Werkzeug request of the same environ does not lose the view's mark."""

    @app.get("/")
    @never_replay
    def view() -> str:
        werkzeug.Request(flask.request.environ)
        flaky()
        return "hello"

    assert (posted(client, method="GET"), flaky.calls) == (REFUSED, 1)


def test_marks_of_another_app(bare: Flask, flaky: Flaky) -> None:
    """G3: an app mounted inside has no marks of this app's views, if they have the same names."""
    other = Flask("other")
    other.logger.disabled = True
    bare.add_url_rule("/orders", "orders", idempotent(lambda: "hello"), methods=["POST"])

    def orders() -> str:
        flaky()
        return "hello"

    other.add_url_rule("/orders", "orders", orders, methods=["POST"])
    other.testing = True
    bare.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
        bare.wsgi_app, {"/other": other}
    )
    Retry(bare, policy=POLICY)
    assert posted(bare.test_client(), "/other/orders") == REFUSED
    assert flaky.calls == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_converter_that_uses_the_database(
    app: Flask, client: Any, flaky: Flaky, mode: str, method: str
) -> None:
    """G3: a URL converter that fails is replayed by the table, and never runs outside a request."""
    flaky.failures = 100

    class Order(BaseConverter):
        def to_python(self, value: str) -> str:
            assert current_app.name == "shop"
            flaky()
            return value

    app.url_map.converters["order"] = Order
    app.add_url_rule("/<order:order>", "view", lambda order: "hello", methods=[method])
    assert posted(client, "/17", method) == ((503, "exhausted") if method == "GET" else REFUSED)
    assert flaky.calls == (6 if method == "GET" else 1)


def test_mark_after_a_converter(app: Flask, client: Any, flaky: Flaky) -> None:
    """G3: the mark is found without routing the request a second time."""
    converted: list[str] = []

    class Order(BaseConverter):
        def to_python(self, value: str) -> str:
            converted.append(current_app.name)
            return value

    app.url_map.converters["order"] = Order
    app.add_url_rule(
        "/<order:order>", "view", idempotent(lambda order: flaky() or "hello"), methods=["POST"]
    )
    assert posted(client, "/17") == RECOVERED
    assert converted == ["shop", "shop"]


def test_mark_behind_a_prefix(bare: Flask, flaky: Flaky) -> None:
    """G3: middleware inside may move the app below a prefix."""
    bare.add_url_rule("/", "view", idempotent(lambda: flaky() or "hello"), methods=["POST"])
    inner = bare.wsgi_app

    def moved(environ: Any, start_response: Any) -> Any:
        inside = {**environ, "SCRIPT_NAME": "/api", "PATH_INFO": environ["PATH_INFO"][4:]}
        return inner(inside, start_response)

    bare.wsgi_app = moved  # type: ignore[method-assign]
    Retry(bare, policy=POLICY)
    assert posted(bare.test_client(), "/api/") == RECOVERED


def test_mark_of_a_request_within_a_view(app: Flask, client: Any, flaky: Flaky) -> None:
    """G3: a view that makes requests of its own app, a batch, keeps its own mark, or none."""
    app.add_url_rule("/read", "read", idempotent(lambda: "hello"))
    charges: list[int] = []

    @app.post("/batch")
    def batch() -> str:
        charges.append(1)
        assert app.test_client().get("/read").data == b"hello"
        flaky()
        return "hello"

    assert posted(client, "/batch") == REFUSED
    assert charges == [1]


def test_nested_apps(bare: Flask, flaky: Flaky) -> None:
    """G2: an app with its own Retry, mounted inside, does not multiply the replays."""
    other = Flask("other")
    other.logger.disabled = True
    flaky.failures = 100
    failing_view(other, flaky)
    Retry(other, policy=POLICY)
    bare.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
        bare.wsgi_app, {"/other": other}
    )
    Retry(bare, policy=POLICY)
    assert bare.test_client().get("/other/").status_code == 503
    assert flaky.calls == 6


# What a view sees


@pytest.mark.parametrize("fails", [False, True])
def test_async_views(app: Flask, client: Any, mode: str, fails: bool) -> None:
    """An async view has its attempt, is replayed, and keeps its mark."""
    numbers: list[int] = []

    @app.post("/")
    @idempotent
    async def view() -> str:
        numbers.append(current_attempt().number)
        if fails and numbers == [1]:
            raise DisconnectionError("gone")
        return "hello"

    assert client.post("/").data == b"hello"
    assert numbers == ([1, 2] if fails else [1])


@pytest.mark.parametrize("kind", ["form", "json", "data", "stream", "files"])
def test_request_body(app: Flask, client: Any, flaky: Flaky, kind: str) -> None:
    """G5: the body can be read in each attempt, however Flask reads it."""
    seen: list[Any] = []

    @app.put("/")
    def view() -> str:
        request = flask.request
        if kind == "form":
            seen.append(dict(request.form))
        elif kind == "json":
            seen.append(request.get_json())
        elif kind == "data":
            seen.append(request.get_data())
        elif kind == "stream":
            seen.append(request.stream.read(2) + request.stream.read())
        else:
            seen.append(request.files["f"].read())
        flaky()
        return "hello"

    arguments: dict[str, Any] = {
        "form": {"data": {"a": "1"}},
        "json": {"json": {"a": 1}},
        "data": {"data": b"hello"},
        "stream": {"data": b"hello"},
        "files": {"data": {"f": (io.BytesIO(b"hello"), "f.txt")}},
    }[kind]
    assert client.put("/", **arguments).data == b"hello"
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert seen[0] in ({"a": "1"}, {"a": 1}, b"hello")


def test_nothing_leaks_between_attempts(app: Flask, client: Any, flaky: Flaky) -> None:
    """G1: session, g, flashed messages and after_this_request of an attempt end with it."""
    seen: list[Any] = []
    cookies: list[Any] = []

    @app.get("/")
    def view() -> str:
        number = current_attempt().number
        seen.append((dict(session), g.get("number"), flask.get_flashed_messages()))
        session["number"] = g.number = number
        flask.flash(f"attempt {number}")

        @flask.after_this_request
        def after(response: flask.Response) -> flask.Response:
            cookies.append(number)
            return response

        flaky()
        return "hello"

    with client:
        response = client.get("/")
        assert response.data == b"hello"
        assert seen == [({}, None, [])] * 2
        assert session["number"] == 2
        assert session["_flashes"] == [("message", "attempt 2")]
    assert len(response.headers.getlist("Set-Cookie")) == 1
    assert cookies[-1] == 2


def test_request_after_the_call(app: Flask, client: Any, flaky: Flaky) -> None:
    """G5: with the client's context kept, a test sees the request of the attempt that was sent."""

    @app.get("/")
    def view() -> str:
        g.number = current_attempt().number
        flaky()
        return "hello"

    with client:
        client.get("/")
        assert (g.number, flask.request.path, current_app.name) == (2, "/", "shop")


@pytest.mark.parametrize("kind", ["string", "json", "empty", "stream"])
def test_connections_of_a_test_client(bare: Flask, kind: str) -> None:
    """G1: a test that reads the response has given its connections back, without close()."""
    database = Database()
    Retry(bare, policy=POLICY, databases=[database])

    @bare.get("/")
    def view() -> Any:
        database.open()
        streaming = stream_with_context(iter(["hello"]))
        return {"string": "hello", "json": {"a": 1}, "empty": ("", 204), "stream": streaming}[kind]

    _ = bare.test_client().get("/").data
    assert database.opened == 0


def test_success_is_called(app: Flask, client: Any, flaky: Flaky) -> None:
    """on_success is called once, for the attempt that was sent, on_rollback for the other."""
    calls: list[str] = []

    @app.get("/")
    def view() -> str:
        attempt = current_attempt()
        attempt.on_success(lambda: calls.append(f"success {attempt.number}"))
        attempt.on_rollback(lambda: calls.append(f"rollback {attempt.number}"))
        flaky()
        return "hello"

    assert client.get("/").data == b"hello"
    assert calls == ["rollback 1", "success 2"]


def test_static_files_and_options(app: Flask, client: Any) -> None:
    """G5: what Flask answers by itself passes: a missing page, OPTIONS, a wrong method."""
    app.add_url_rule("/", view_func=lambda: "hello", endpoint="view")
    assert client.get("/missing").status_code == 404
    assert client.options("/").headers["Allow"]
    assert client.post("/").status_code == 405


# Blueprints


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "hook",
    [
        "before_request",
        "before_app_request",
        "after_request",
        "after_app_request",
        "teardown_request",
        "teardown_app_request",
        "url_value_preprocessor",
        "app_url_value_preprocessor",
    ],
)
def test_hooks_of_a_blueprint(
    app: Flask, client: Any, flaky: Flaky, mode: str, hook: str, nested: bool
) -> None:
    """G3: what fails around the view, in a blueprint or in one around it, has the view's mark."""
    outer = Blueprint("outer", __name__, url_prefix="/outer")
    inner = Blueprint("inner", __name__, url_prefix="/inner")

    def fails(*args: Any) -> Any:
        flaky()
        return args[0] if hook.startswith("after") else None

    getattr(outer if nested else inner, hook)(fails)
    inner.add_url_rule("/marked", "marked", rollback_safe(lambda: "hello"), methods=["POST"])
    inner.add_url_rule("/unmarked", "unmarked", lambda: "hello", methods=["POST"])
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    assert posted(client, "/outer/inner/marked") == RECOVERED
    assert flaky.calls >= 2
    flaky.calls = 0
    assert posted(client, "/outer/inner/unmarked") == REFUSED


@pytest.mark.parametrize("where", ["nested", "around", "app_errorhandler"])
@pytest.mark.parametrize("status", [500, 409])
def test_error_handlers_of_nested_blueprints(
    app: Flask, client: Any, flaky: Flaky, mode: str, where: str, status: int
) -> None:
    """A handler squashes what it renders as a 5xx, and answers below, wherever it is."""
    outer = Blueprint("outer", __name__, url_prefix="/outer")
    inner = Blueprint("inner", __name__, url_prefix="/inner")
    register: Any = {
        "nested": inner.errorhandler,
        "around": outer.errorhandler,
        "app_errorhandler": outer.app_errorhandler,
    }[where]
    register(DisconnectionError)(lambda error: ("sorry", status))
    inner.add_url_rule("/", "view", lambda: flaky() or "hello")
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    response = client.get("/outer/inner/")
    expected = (200, b"hello", 2) if status == 500 else (409, b"sorry", 1)
    assert (response.status_code, response.data, flaky.calls) == expected


# More places to fail


@pytest.mark.parametrize("registered", [ZeroDivisionError, 404])
def test_error_handler_that_fails(
    app: Flask, client: Any, flaky: Flaky, mode: str, registered: Any
) -> None:
    """An error page that uses the database, and fails, is replayed."""

    @app.errorhandler(registered)
    def handle(error: Any) -> Any:
        flaky()
        return "sorry", 404

    @app.get("/<int:number>")
    def view(number: int) -> str:
        return str(1 // number) if registered != 404 else abort(404)

    response = client.get("/0")
    assert (response.status_code, response.data, flaky.calls) == (404, b"sorry", 2)


def test_after_this_request(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """G3: a failure in a function that is called after this request is the view's."""

    @app.post("/")
    @rollback_safe
    def view() -> str:
        @flask.after_this_request
        def after(response: flask.Response) -> flask.Response:
            flaky()
            return response

        return "hello"

    assert posted(client) == RECOVERED


@pytest.mark.parametrize("when", ["open", "save"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_session_in_the_database(
    app: Flask, client: Any, flaky: Flaky, mode: str, when: str, method: str
) -> None:
    """G3: a session that can't be loaded is a failure before routing, without the mark; one that
    can't be saved has the view's."""

    class Sessions(SecureCookieSessionInterface):
        def open_session(self, *args: Any) -> Any:
            if when == "open":
                flaky()
            return super().open_session(*args)

        def save_session(self, *args: Any) -> None:
            if when == "save":
                flaky()
            super().save_session(*args)

    app.session_interface = Sessions()
    app.add_url_rule("/", "view", rollback_safe(lambda: "hello"), methods=[method])
    expected = REFUSED if (when, method) == ("open", "POST") else RECOVERED
    assert posted(client, method=method) == expected


def test_template(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """A context processor or a template that fails is replayed."""
    app.context_processor(lambda: {"query": lambda: flaky() or ""})
    app.add_url_rule("/", "view", lambda: flask.render_template_string("{{ query() }}hello"))
    assert (client.get("/").data, flaky.calls) == (b"hello", 2)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_method_view(app: Flask, client: Any, flaky: Flaky, mode: str, method: str) -> None:
    """A MethodView that fails is replayed like a function, one that is made once as well."""

    class Orders(MethodView):
        init_every_request = method == "POST"

        @rollback_safe
        def post(self) -> str:
            flaky()
            return "hello"

        def put(self) -> str:
            flaky()
            return "hello"

    app.add_url_rule("/", view_func=Orders.as_view("orders"))
    assert posted(client, method=method) == RECOVERED


@pytest.mark.parametrize(
    "hook", ["before_request", "after_request", "teardown_request", "teardown_appcontext"]
)
def test_async_hooks(app: Flask, client: Any, flaky: Flaky, mode: str, hook: str) -> None:
    """Async functions around the view fail like others."""

    async def fails(*args: Any) -> Any:
        flaky()
        return args[0] if hook == "after_request" else None

    getattr(app, hook)(fails)
    app.add_url_rule("/", "view", idempotent(lambda: "hello"), methods=["POST"])
    assert posted(client) == RECOVERED


@pytest.mark.parametrize("status", [500, 409])
def test_async_error_handler(app: Flask, client: Any, flaky: Flaky, mode: str, status: int) -> None:
    """An async error handler squashes as others do, and a view in a class may be async too."""

    @app.errorhandler(DisconnectionError)
    async def handle(error: DisconnectionError) -> Any:
        return "sorry", status

    class Orders(MethodView):
        @rollback_safe
        async def post(self) -> str:
            flaky()
            return "hello"

    app.add_url_rule("/", view_func=Orders.as_view("orders"))
    assert posted(client) == (RECOVERED if status == 500 else (409, None))


def test_stream_that_is_decorated(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """G1: stream_with_context as a decorator: each attempt's stream has its own request."""
    numbers: list[int] = []

    @app.post("/")
    @rollback_safe
    def view() -> Any:
        g.number = current_attempt().number

        @stream_with_context
        def chunks() -> Iterator[str]:
            numbers.append(g.number)
            flaky()
            yield flask.request.form["a"]

        return chunks()

    response = client.post("/", data={"a": "hello"})
    assert (response.data, numbers) == (b"hello", [1, 2])


def test_threads_of_a_view(app: Flask, client: Any, flaky: Flaky, mode: str) -> None:
    """copy_current_request_context gives a thread the request of its attempt, and a copied context
    the attempt."""
    seen: list[Any] = []

    @app.get("/")
    def view() -> str:
        g.number = current_attempt().number

        @flask.copy_current_request_context
        def work() -> str:
            seen.append((flask.request.args["a"], current_attempt().number))
            flaky()
            return "hello"

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(contextvars.copy_context().run, work).result()

    assert client.get("/?a=1").data == b"hello"
    assert seen == [("1", 1), ("1", 2)]


def test_session_cookie(app: Flask, client: Any, mode: str) -> None:
    """G1: what is counted in a session is counted once for each request, and URLs are the same."""

    @app.get("/<int:item>")
    def view(item: int) -> str:
        session["count"] = session.get("count", 0) + 1
        if not current_attempt().is_replay:
            raise DisconnectionError("gone")
        return f"{session['count']} {flask.url_for('view', item=item + 1, _external=True)}"

    assert client.get("/1").data == b"1 http://localhost/2"
    assert client.get("/2").data == b"2 http://localhost/3"
    with client.session_transaction() as stored:
        assert stored["count"] == 2


# With a database


class Store:
    """Flask-SQLAlchemy's usual app, on a MariaDB server behind the fault proxy."""

    def __init__(self, app: Flask, server: MariaDB, proxy: FaultProxy) -> None:
        self.server, self.proxy = server, proxy
        app.config["SQLALCHEMY_DATABASE_URI"] = (
            f"mysql+pymysql://{server.user}:{server.password}@{proxy.host}:{proxy.port}/"
            f"{server.database}?read_timeout=30&ssl_disabled=true"
        )
        self.db = SQLAlchemy(app)
        with app.app_context():
            watch(self.db.engine)
        Retry(app, policy=POLICY)

        @app.post("/<moment>")
        @rollback_safe
        def order(moment: str) -> str:
            self.db.session.execute(text("INSERT INTO orders VALUES ('a')"))
            if not current_attempt().is_replay:
                self.proxy.cut("reset", at=int(moment) if moment.isdigit() else moment)
            self.db.session.execute(text("INSERT INTO orders VALUES ('b')"))
            self.db.session.commit()
            return "hello"

    def orders(self) -> list[str]:
        rows = self.server.execute("SELECT name FROM app.orders ORDER BY name")
        return [row[0] for row in rows]


@pytest.fixture
def store(bare: Flask, mariadb: MariaDB, mariadb_proxy: FaultProxy) -> Iterator[Store]:
    mariadb.execute("CREATE TABLE app.orders (name VARCHAR(50))")
    store = Store(bare, mariadb, mariadb_proxy)
    yield store
    with bare.app_context():
        store.db.engine.dispose()
    mariadb.execute("DROP TABLE app.orders")


def test_flask_sqlalchemy(bare: Flask, store: Store, mode: str) -> None:
    """G1: an order whose connection breaks in its transaction is stored exactly once."""
    assert posted(bare.test_client(), "/1") == RECOVERED
    assert store.proxy.faults == 1
    assert store.orders() == ["a", "b"]


def test_flask_sqlalchemy_and_a_lost_commit(bare: Flask, store: Store, mode: str) -> None:
    """G4: an order whose COMMIT is lost is stored once, and the client is asked to look."""
    assert posted(bare.test_client(), "/commit") == (503, "unknown")
    assert store.proxy.faults == 1
    assert store.orders() == ["a", "b"]
