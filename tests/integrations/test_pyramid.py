"""Pyramid: what it squashes, the marks of its views, and its tweens, with a database or not."""

from __future__ import annotations

import functools
import io
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import tenacity
import werkzeug
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.events import BeforeTraversal, ContextFound, NewRequest, NewResponse
from pyramid.exceptions import ConfigurationConflictError
from pyramid.httpexceptions import HTTPNotFound, HTTPServiceUnavailable
from pyramid.request import Request
from pyramid.response import FileResponse, Response
from pyramid.session import SignedCookieSessionFactory
from pyramid.tweens import EXCVIEW
from pyramid.view import view_config, view_defaults
from pyramid.wsgi import wsgiapp2
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.middleware.proxy_fix import ProxyFix

from retrymw import (
    DisconnectionError,
    RetryPolicy,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.adapters.pymysql import Database
from retrymw.adapters.sqlalchemy import watch
from retrymw.integrations.pyramid import Retry
from retrymw.testing import FaultProxy
from retrymw.testing.servers import MariaDB
from retrymw.wsgi import RetryMiddleware

POLICY = RetryPolicy(wait=tenacity.wait_none())
RECOVERED = (200, "recovered", 2)
REFUSED = (503, "not-replayable", 1)

numbers = itertools.count()
published = sys.modules["retrymw_test_tweens"] = ModuleType("retrymw_test_tweens")


class AppError(Exception):
    """The app's own wrapper of a driver's exception."""


class Flaky:
    """Call it where the database is used: it fails the first ``failures`` times, and counts."""

    def __init__(self, failures: int = 1) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self, *_: Any) -> Response:
        self.calls += 1
        if self.calls <= self.failures:
            raise DisconnectionError("the server has gone away")
        return Response("hello")


class Site:
    """A Pyramid app with ``Retry``, and its view at ``/``."""

    def __init__(self, flaky: Flaky, *, hooks: Any = (), **settings: Any) -> None:
        self.flaky = flaky
        self.config = Configurator(settings=settings)
        Retry(self.config, policy=POLICY, hooks=hooks)
        self._client: werkzeug.Client | None = None

    @property
    def view(self) -> Callable[[Any], Response]:
        """What most tests have at ``/``: a new function, so that it can be marked."""

        def view(request: Any) -> Response:
            return self.flaky()

        return view

    def add(self, view: Any = None, path: str = "/", **options: Any) -> None:
        """Add a view, and a route to it."""
        self.config.add_route(path, path)
        self.config.add_view(self.view if view is None else view, route_name=path, **options)

    def add_tween(self, factory: Any, **place: Any) -> None:
        """Add a tween, which Pyramid wants to have a name."""
        name = f"tween_{next(numbers)}"
        setattr(published, name, factory)
        self.config.add_tween(f"{published.__name__}.{name}", **place)

    def send(self, method: str = "GET", path: str = "/", **arguments: Any) -> Any:
        if self._client is None:
            self._client = werkzeug.Client(self.config.make_wsgi_app())
        return self._client.open(path, method=method, **arguments)

    def outcome(self, method: str = "GET", path: str = "/", **arguments: Any) -> tuple[Any, ...]:
        """The status, what retrymw says, and how often the database was used; then start anew."""
        response = self.send(method, path, **arguments)
        calls, self.flaky.calls = self.flaky.calls, 0
        return response.status_code, response.headers.get("Retry-Outcome"), calls


@pytest.fixture
def flaky() -> Flaky:
    return Flaky()


@pytest.fixture
def site(flaky: Flaky) -> Site:
    return Site(flaky)


@pytest.fixture(params=["raising", "exception view", "tween"])
def mode(request: pytest.FixtureRequest, site: Site) -> str:
    """What becomes of exceptions: they are raised, or an exception view or a tween that is over all
    others makes a 500 of them."""
    mode: str = request.param
    if mode == "exception view":
        site.config.add_exception_view(lambda exc, request: Response("sorry", 500), Exception)
    elif mode == "tween":
        site.add_tween(squashing, over=EXCVIEW)
    return mode


def squashing(handler: Any, registry: Any) -> Any:
    """A tween that makes a 500 of everything."""

    def tween(request: Any) -> Response:
        try:
            return handler(request)
        except Exception:  # noqa: BLE001  # it is what squashing is
            return Response("sorry", 500)

    return tween


class Failing:
    """Places that use the database before the view, or after it, and may fail there."""

    def __init__(self, flaky: Flaky, *, before: bool, renders: bool = False) -> None:
        self.flaky = flaky
        self.before = before
        self.renders = renders  # what has failed, by an exception view

    def tween(self, handler: Any, registry: Any) -> Any:
        def tween(request: Any) -> Response:
            if self.before:
                self.flaky()
            response = handler(request)
            try:
                if not self.before:
                    self.flaky()
            except Exception:
                if not self.renders:
                    raise
                response = request.invoke_exception_view()
            return response

        return tween

    def root(self, request: Any) -> dict[str, Any]:
        self.flaky()
        return {}

    def __getitem__(self, name: str) -> Any:
        self.flaky()
        raise KeyError(name)

    def predicate(self, value: Any, config: Any) -> Any:
        predicate = functools.partial(self._holds)
        predicate.text = predicate.phash = lambda: "failing"  # type: ignore[attr-defined]
        return predicate

    def _holds(self, context: Any, request: Any) -> bool:
        self.flaky()
        return True

    def renderer(self, info: Any) -> Any:
        def render(value: Any, system: Any) -> str:
            self.flaky()
            return "hello"

        return render


# Installing


def test_not_pyramid() -> None:
    """Anything but a Configurator is refused when the app starts, an app that is made as well."""
    for wrong in (object(), Configurator, Configurator().make_wsgi_app()):
        with pytest.raises(TypeError, match=r"allowed: a pyramid\.config\.Configurator, before"):
            Retry(wrong)


def test_twice(site: Site) -> None:
    """G2: two Retry() for an app would be a mistake, and are an error, in what is included too."""
    with pytest.raises(RuntimeError, match=r"call Retry\(\) once"):
        Retry(site.config)
    with pytest.raises(RuntimeError, match=r"call Retry\(\) once"):
        site.config.include(Retry)


def test_wrong_argument(flaky: Flaky) -> None:
    """What the middleware refuses is refused, and the configuration is left as it was."""
    config = Configurator()
    with pytest.raises(TypeError, match="policy is 5"):
        Retry(config, policy=5)  # type: ignore[arg-type]
    Retry(config)


@pytest.mark.parametrize("autocommit", [False, True])
def test_too_late(site: Site, autocommit: bool) -> None:
    """G3: where a view's mark could not be found any more, it is an error; views to come are not,
    nor are exception views."""
    config = Configurator(autocommit=autocommit)
    config.add_exception_view(site.view, AppError)
    config.commit()
    Retry(config)
    config = Configurator(autocommit=autocommit)
    config.add_view(site.view)
    if not autocommit:
        Retry(config)
        config = Configurator()
        config.add_view(site.view)
        config.commit()
    with pytest.raises(RuntimeError, match=r"has committed <function .*; call Retry\(\) first"):
        Retry(config)


def test_autocommit(flaky: Flaky) -> None:
    """A configuration that commits at once works like another."""
    config = Configurator(autocommit=True)
    Retry(config, policy=POLICY)
    config.add_view(rollback_safe(lambda request: flaky()))
    assert werkzeug.Client(config.make_wsgi_app()).post("/").data == b"hello"


def test_included(flaky: Flaky) -> None:
    """A package that is included may call Retry() for the app."""
    config = Configurator()
    config.include(lambda config: Retry(config, policy=POLICY))
    config.add_view(rollback_safe(lambda request: flaky()))
    assert werkzeug.Client(config.make_wsgi_app()).post("/").data == b"hello"


def test_another_execution_policy(site: Site) -> None:
    """There is one execution policy: Pyramid tells of two, and we of one that overrides ours."""
    site.config.set_execution_policy(lambda environ, router: site.flaky())
    with pytest.raises(ConfigurationConflictError):
        site.config.make_wsgi_app()
    config = Configurator()
    config.include(Retry)
    config.set_execution_policy(lambda environ, router: site.flaky())
    with pytest.raises(RuntimeError, match=r"the execution policy is <function .* no effect"):
        config.make_wsgi_app()


@pytest.mark.parametrize("first", [False, True])
def test_pyramid_retry(flaky: Flaky, first: bool) -> None:
    """G2: where pyramid_retry is included still, attempts do not multiply: ours count."""
    config = Configurator()
    if first:
        config.include("pyramid_retry")
    Retry(config, policy=POLICY)
    if not first:
        config.include("pyramid_retry")
    flaky.failures = 100
    config.add_view(flaky, last_retry_attempt=True)
    assert werkzeug.Client(config.make_wsgi_app()).get("/").status_code == 503
    assert flaky.calls == 6


def test_two_apps(site: Site) -> None:
    """One configuration may make several apps."""
    site.add()
    for app in [site.config.make_wsgi_app() for _ in range(2)]:
        site.flaky.calls = 0
        assert werkzeug.Client(app).get("/").data == b"hello"


def test_no_warning() -> None:
    """The integration does not warn of itself."""
    config = Configurator()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Retry(config)


@pytest.mark.parametrize("wrap", [lambda app: app, ProxyFix])
def test_plain_middleware_warns(wrap: Callable[[Any], Any]) -> None:
    """Around a Pyramid app the plain middleware warns, and names the fix."""
    app = wrap(Configurator().make_wsgi_app())
    with pytest.warns(RuntimeWarning, match=r"retrymw\.integrations\.pyramid\.Retry") as caught:
        RetryMiddleware(app)
    assert [warning.filename for warning in caught] == [__file__]


# Squashed exceptions


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_unhandled(site: Site, mode: str, method: str) -> None:
    """G3: a failure in a view is replayed, whether it is raised or rendered."""
    site.add()
    assert site.outcome(method) == RECOVERED


def test_post(site: Site, mode: str) -> None:
    """G3: an unmarked POST is not replayed; it gets the 503 in every mode, never a bare 500."""
    site.add()
    reply = site.send("POST")
    assert (reply.status_code, reply.headers["Retry-Outcome"]) == (503, "not-replayable")
    assert "Retry-After" in reply.headers
    assert site.flaky.calls == 1


def test_exhausted(site: Site, mode: str) -> None:
    """G2: six attempts, then the 503."""
    site.flaky.failures = 100
    site.add()
    assert site.outcome() == (503, "exhausted", 6)


def test_wrapped_by_the_app(site: Site, mode: str) -> None:
    """G7: a failure behind the app's own exception is found."""

    def view(request: Any) -> Response:
        try:
            return site.flaky()
        except DisconnectionError as exc:
            raise AppError("no luck") from exc

    site.add(view)
    assert site.outcome() == RECOVERED


@pytest.mark.parametrize("listed", [True, False])
def test_explicit_tweens(flaky: Flaky, listed: bool) -> None:
    """Where the settings list the tweens, ours has to be among them, to see what others squash;
    what an exception view renders is seen in any case."""
    vars(published)["squashing"] = squashing
    tweens = [f"{published.__name__}.squashing", EXCVIEW, "retrymw.integrations.pyramid.tween"]
    site = Site(flaky, **{"pyramid.tweens": tweens if listed else tweens[:2]})
    site.add()
    site.add(path="/rendered")
    site.config.add_exception_view(
        lambda exc, request: Response("sorry", 500), DisconnectionError, route_name="/rendered"
    )
    assert site.outcome() == (RECOVERED if listed else (500, None, 1))
    assert site.outcome(path="/rendered") == RECOVERED


@pytest.mark.parametrize("context", [DisconnectionError, Exception])
@pytest.mark.parametrize("status", [500, 503, 200, 302, 409])
def test_exception_view(site: Site, context: Any, status: int) -> None:
    """What an exception view makes a 5xx of is replayed; an answer below is the app's own."""
    site.add()
    site.config.add_exception_view(lambda exc, request: Response("sorry", status), context)
    assert site.outcome() == (RECOVERED if status >= 500 else (status, None, 1))


def test_view_of_an_exception(site: Site) -> None:
    """The same for a view whose context is an exception, with predicates; when they do not hold,
    the exception is raised."""
    site.add()
    site.config.add_view(
        lambda exc, request: Response("sorry", 409), context=DisconnectionError, xhr=True
    )
    assert site.outcome() == RECOVERED
    assert site.outcome(headers={"X-Requested-With": "XMLHttpRequest"}) == (409, None, 1)


def test_exception_view_that_fails(site: Site) -> None:
    """An exception view that uses the database, and fails, is replayed."""

    def sorry(exc: Exception, request: Any) -> Response:
        site.flaky()
        return Response("sorry", 409)

    site.add(lambda request: 1 // 0)
    site.config.add_exception_view(sorry, ZeroDivisionError)
    assert site.outcome() == (409, "recovered", 2)


@pytest.mark.parametrize("how", ["raised", "from", "returned"])
def test_http_exceptions(site: Site, how: str) -> None:
    """A view that raises a 503 for its failure is replayed, for a 404 it is not; what it returns
    is nobody's business but its own."""

    def view(request: Any) -> Response:
        error = HTTPNotFound if request.params else HTTPServiceUnavailable
        try:
            return site.flaky()
        except DisconnectionError as exc:
            if how == "returned":
                return error()
            if how == "from":
                raise error from exc
            raise error  # noqa: B904  # the failure is its context

    site.add(view)
    assert site.outcome() == ((503, None, 1) if how == "returned" else RECOVERED)
    assert site.outcome(path="/?a=1") == (404, None, 1)


def test_errors_of_the_app(site: Site, mode: str) -> None:
    """G5: what is not ours is rendered as ever, or raised, the same object."""
    error = ZeroDivisionError()

    def view(request: Any) -> Response:
        raise error

    site.add(view)
    if mode == "raising":
        with pytest.raises(ZeroDivisionError) as raised:
            site.send()
        assert raised.value is error
    else:
        reply = site.send()
        assert (reply.status_code, reply.data) == (500, b"sorry")
        assert "Retry-Attempts" not in reply.headers


def test_without_a_page(site: Site) -> None:
    """G5: what Pyramid answers by itself passes: a missing page, predicates that do not hold."""
    site.add(request_method="GET")
    assert site.outcome("GET", "/missing") == (404, None, 0)
    assert site.outcome("POST") == (404, None, 0)


# Around the view


PLACES = ["tween", "NewRequest", "BeforeTraversal", "ContextFound", "root", "traversal"]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("where", [*PLACES, "predicate"])
def test_before_the_view(site: Site, mode: str, where: str, method: str) -> None:
    """G3: what fails before the view is found has no mark."""
    config = site.config
    failing = Failing(site.flaky, before=True)
    if where == "tween":
        site.add_tween(failing.tween, under=EXCVIEW)
    elif where == "root":
        config.set_root_factory(failing.root)
    elif where == "traversal":
        config.set_root_factory(lambda request: failing)
    elif where == "predicate":
        config.add_view_predicate("failing", failing.predicate)
    else:
        events = (NewRequest, BeforeTraversal, ContextFound)
        config.add_subscriber(site.flaky, next(e for e in events if e.__name__ == where))
    options = {"failing": True} if where == "predicate" else {}
    view = rollback_safe(lambda request: Response("hello"))
    config.add_view(view, name="name", request_method=method, **options)
    expected: Any = RECOVERED if method == "GET" else REFUSED
    if where == mode == "tween":
        expected = (500, None)  # the one tween has squashed what the other has raised
    assert site.outcome(method, "/name")[:2] == expected[:2]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    "where", ["tween", "response callback", "NewResponse", "finished callback", "renderer"]
)
def test_after_the_view(site: Site, mode: str, where: str, marked: bool) -> None:
    """G3: what fails after the view, a commit say, has the view's mark."""
    failing = Failing(site.flaky, before=False)

    def view(request: Any) -> Any:
        if where == "response callback":
            request.add_response_callback(site.flaky)
        elif where == "finished callback":
            request.add_finished_callback(site.flaky)
        return {} if where == "renderer" else Response("hello")

    if where == "tween":
        site.add_tween(failing.tween, under=EXCVIEW)
    elif where == "NewResponse":
        site.config.add_subscriber(site.flaky, NewResponse)
    site.config.add_renderer("failing", failing.renderer)
    site.add(
        rollback_safe(view) if marked else view, renderer="failing" if where == "renderer" else None
    )
    expected: Any = RECOVERED if marked else REFUSED
    if where == mode == "tween":
        expected = (500, None)
    # Some of these run once more, for the response that was made of what has failed.
    assert site.outcome("POST")[:2] == expected[:2]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status", [500, 409])
def test_tween_over_exception_views(site: Site, method: str, status: int) -> None:
    """A commit that fails in a tween over the exception views, as pyramid_tm's does, and that the
    tween has rendered by one of them, is seen."""
    site.add_tween(Failing(site.flaky, before=False, renders=True).tween, over=EXCVIEW)
    site.add(lambda request: Response("hello"))
    site.config.add_exception_view(lambda exc, request: Response("sorry", status), Exception)
    expected = RECOVERED if method == "GET" else REFUSED
    assert site.outcome(method) == (expected if status == 500 else (409, None, 1))


def test_permission(site: Site, mode: str) -> None:
    """G3: what fails while a permission is looked up has the mark of the view that was found."""

    class Policy:
        def permits(self, *_: Any) -> bool:
            site.flaky()
            return True

        def remember(self, *_: Any) -> Any: ...

        authenticated_userid = identity = forget = remember

    site.config.set_security_policy(Policy())
    site.add(rollback_safe(lambda request: Response("hello")), permission="order")
    assert site.outcome("POST") == RECOVERED


def test_session_and_csrf(site: Site) -> None:
    """G1, G5: CSRF protection works in each attempt; a session counts each request once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        site.config.set_session_factory(SignedCookieSessionFactory("not one"))
    site.config.set_default_csrf_options(require_csrf=True)

    def view(request: Any) -> Response:
        request.session["count"] = request.session.get("count", 0) + 1
        site.flaky()
        return Response(f"{request.session['count']} {request.session.get_csrf_token()}")

    site.add(idempotent(view))
    assert site.outcome("POST") == (400, None, 0)
    count, token = site.send("GET").text.split()
    assert (count, site.flaky.calls) == ("1", 2)
    site.flaky.calls = 0
    reply = site.send("POST", headers={"X-CSRF-Token": token})
    assert (reply.text, site.flaky.calls) == (f"2 {token}", 2)


# Streaming


def test_stream_whose_first_chunk_fails(site: Site, mode: str) -> None:
    """G1: a stream whose first chunk fails is replayed."""

    def view(request: Any) -> Response:
        def chunks() -> Iterator[bytes]:
            site.flaky()
            yield b"hel"
            yield request.params["end"].encode()

        return Response(app_iter=chunks())

    site.add(rollback_safe(view))
    assert site.send("POST", "/?end=lo").data == b"hello"
    assert site.flaky.calls == 2


def test_stream_that_breaks(site: Site, mode: str) -> None:
    """G2: a stream that fails later can't be replayed: the exception passes."""

    def view(request: Any) -> Response:
        def chunks() -> Iterator[bytes]:
            yield b"hel"
            site.flaky()

        return Response(app_iter=chunks())

    site.add(view)
    with pytest.raises(DisconnectionError):
        _ = site.send().data
    assert site.flaky.calls == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_files(site: Site, mode: str, method: str, tmp_path: Any) -> None:
    """G5: static views and file responses are passed on, with their 304 and file wrapper."""
    (tmp_path / "file.txt").write_text("hello")
    site.config.add_static_view("static", str(tmp_path))
    site.add(lambda request: FileResponse(str(tmp_path / "file.txt"), request), "/file")
    wrapper = {"wsgi.file_wrapper": werkzeug.wsgi.FileWrapper}
    for path in ("/static/file.txt", "/file"):
        with site.send(method, path, environ_overrides=wrapper) as reply:
            assert reply.data == (b"hello" if method == "GET" else b"")
            assert reply.headers["Content-Length"] == "5"
            assert "Retry-Attempts" not in reply.headers
        since = {"If-Modified-Since": reply.headers["Last-Modified"]}
        with site.send(method, "/static/file.txt", headers=since) as reply:
            assert reply.status_code == 304


# Marks


@pytest.mark.parametrize("mark", [idempotent, rollback_safe])
@pytest.mark.parametrize("arguments", [1, 2])
def test_mark_of_a_view(site: Site, mode: str, mark: Any, arguments: int) -> None:
    """G3: a marked POST is replayed; a view may take the context, too."""
    if arguments == 1:
        site.add(mark(site.view))
    else:
        site.add(mark(lambda context, request: site.flaky()))
    assert site.outcome("POST") == RECOVERED


def test_never_replay(site: Site, mode: str) -> None:
    """G3: a GET that is marked @never_replay runs once, and so does its HEAD."""
    site.add(never_replay(site.view), request_method="GET")
    assert site.outcome() == REFUSED
    assert site.outcome("HEAD") == REFUSED


def test_overrides(site: Site) -> None:
    """A mark's overrides hold for its view."""
    site.flaky.failures = 100
    site.add(idempotent(max_replays=2)(site.view))
    assert site.outcome("POST") == (503, "exhausted", 3)


def test_mark_and_decorators(site: Site) -> None:
    """A mark survives functools.wraps and ``decorator``, and may be one itself."""

    def wrapping(view: Any) -> Any:
        @functools.wraps(view)
        def wrapper(request: Any) -> Any:
            return view(request)

        return wrapper

    def hiding(view: Any) -> Any:
        def wrapper(context: Any, request: Any) -> Any:
            return view(context, request)

        return wrapper

    def deriver(view: Any, info: Any) -> Any:
        return hiding(view)

    site.config.add_view_deriver(deriver, under="secured_view", over="decorated_view")
    site.add(wrapping(idempotent(site.view)), "/wrapped")
    site.add(idempotent(site.view), "/decorated", decorator=hiding)
    site.add(site.view, "/by", decorator=idempotent)
    site.add(site.view, "/among", decorator=(idempotent, hiding))
    site.add(site.view, "/not", decorator=(hiding, hiding))
    paths = ("/wrapped", "/decorated", "/by", "/among", "/not")
    assert [site.outcome("POST", path) for path in paths] == [*[RECOVERED] * 4, REFUSED]


def test_marks_of_methods(site: Site) -> None:
    """G3: a class has a mark for each method that is a view; what it is called does not matter."""

    class Orders:
        def __init__(self, request: Any) -> None: ...

        @idempotent
        def post(self) -> Response:
            return site.flaky()

        def cancel(self) -> Response:
            return site.flaky()

        @rollback_safe
        def __call__(self) -> Response:
            return site.flaky()

    site.add(Orders, "/post", attr="post")
    site.add(Orders, "/cancel", attr="cancel")
    site.add(Orders, "/called")
    outcomes = [site.outcome("POST", path) for path in ("/post", "/cancel", "/called")]
    assert outcomes == [RECOVERED, REFUSED, RECOVERED]


def test_marks_of_classes(site: Site) -> None:
    """A class is marked for all its methods, also through its base; a method's own mark goes
    before."""

    @rollback_safe
    class Base:
        def __init__(self, context: Any, request: Any) -> None: ...

        def place(self) -> Response:
            return site.flaky()

    class Orders(Base):
        @never_replay
        def charge(self) -> Response:
            return site.flaky()

        def __call__(self) -> Response:
            return site.flaky()

    site.add(Orders, "/place", attr="place")
    site.add(Orders, "/charge", attr="charge")
    site.add(Orders, "/called")
    outcomes = [site.outcome("POST", path) for path in ("/place", "/charge", "/called")]
    assert outcomes == [RECOVERED, REFUSED, RECOVERED]


def test_marks_of_objects(site: Site) -> None:
    """Objects that are called, their methods and partial functions have their marks."""

    class Orders:
        @rollback_safe
        def __call__(self, request: Any) -> Response:
            return site.flaky()

        @idempotent
        def post(self, request: Any) -> Response:
            return site.flaky()

        def cancel(self, request: Any) -> Response:
            return site.flaky()

    site.add(Orders(), "/called")
    site.add(Orders().post, "/bound")
    site.add(Orders(), "/attr", attr="post")
    site.add(functools.partial(idempotent(lambda a, request: site.flaky()), 1), "/partial")
    site.add(Orders(), "/cancel", attr="cancel")
    paths = ("/called", "/bound", "/attr", "/partial", "/cancel")
    assert [site.outcome("POST", path) for path in paths] == [*[RECOVERED] * 4, REFUSED]


@view_defaults(route_name="orders")
class Orders:
    """Views that are found by a scan."""

    def __init__(self, request: Any) -> None:
        self.flaky = request.registry["flaky"]

    @view_config(request_method="POST")
    @rollback_safe
    def post(self) -> Response:
        return self.flaky()

    @rollback_safe
    @view_config(request_method="PATCH")
    def patch(self) -> Response:
        return self.flaky()

    @view_config(request_method="GET", renderer="string")
    @never_replay
    def get(self) -> str:
        return self.flaky().text


def test_scanned_views(site: Site) -> None:
    """@view_config and @view_defaults find their marks, above the mark or below it."""
    site.config.registry["flaky"] = site.flaky
    site.config.add_route("orders", "/")
    site.config.scan(sys.modules[__name__])
    outcomes = [site.outcome(method) for method in ("POST", "PATCH", "GET")]
    assert outcomes == [RECOVERED, RECOVERED, REFUSED]


def test_predicates(site: Site) -> None:
    """G3: of the views of one route that predicates choose from, it is the mark of the chosen."""
    site.config.add_route("/", "/")
    for mark, options in (
        (idempotent, {"request_param": "a"}),
        (never_replay, {"accept": "text/html"}),
        (rollback_safe, {"accept": "application/json"}),
        (lambda view: view, {}),
    ):
        site.config.add_view(mark(site.view), route_name="/", **options)
    image = {"Accept": "image/png"}
    assert site.outcome("POST", "/?a=1", headers=image) == RECOVERED
    assert site.outcome("GET", headers={"Accept": "text/html"}) == REFUSED
    assert site.outcome("POST", headers={"Accept": "application/json"}) == RECOVERED
    assert site.outcome("POST", headers=image) == REFUSED
    assert site.outcome("GET", headers=image) == RECOVERED


def test_traversal(site: Site) -> None:
    """G3: the view that was found by traversal has its mark, by its context and its name."""

    class Shop(dict[str, Any]): ...

    class Item: ...

    site.config.set_root_factory(lambda request: Shop(teapot=Item()))
    site.config.add_view(rollback_safe(site.view), context=Item)
    site.config.add_view(site.view, context=Item, name="charge")
    site.config.add_view(rollback_safe(site.view), name="order")
    outcomes = {
        path: site.outcome("POST", path) for path in ("/teapot", "/teapot/charge", "/teapot/order")
    }
    assert outcomes == {
        "/teapot": RECOVERED,
        "/teapot/charge": REFUSED,
        "/teapot/order": RECOVERED,
    }


def test_mark_of_an_exception_view(site: Site) -> None:
    """G3: an exception view is not the endpoint: its mark is of no account."""
    site.add()
    site.config.add_exception_view(
        idempotent(lambda exc, request: Response("sorry", 500)), Exception
    )
    site.config.add_subscriber(
        lambda event: site.flaky() if event.request.params else None, NewRequest
    )
    assert site.outcome("POST") == REFUSED
    assert site.outcome("POST", "/?a=1") == REFUSED


@pytest.mark.parametrize("where", ["view", "tween"])
@pytest.mark.parametrize("tweens", [False, True])
def test_subrequest(site: Site, mode: str, where: str, tweens: bool) -> None:
    """G3: a subrequest is part of the attempt, and its view's mark is not the exchange's."""
    asked: list[int] = []

    def ask(request: Any) -> None:
        asked.append(1)
        subrequest = Request.blank("/user")
        assert request.invoke_subrequest(subrequest, use_tweens=tweens).text == "somebody"

    def view(request: Any) -> Response:
        if where == "view":
            ask(request)
        return site.flaky()

    def tween(handler: Any, registry: Any) -> Any:
        def asking(request: Any) -> Any:
            if where == "tween" and request.path != "/user":
                ask(request)
            return handler(request)

        return asking

    site.add_tween(tween, under=EXCVIEW)
    site.add(idempotent(lambda request: Response("somebody")), "/user")
    site.add(view, "/charge")
    site.add(rollback_safe(lambda request: view(request)), "/order")  # noqa: PLW0108  # another one
    assert site.outcome("POST", "/charge") == REFUSED
    assert len(asked) == 1
    assert site.outcome("POST", "/order") == RECOVERED


def test_subrequest_that_fails(site: Site) -> None:
    """A subrequest's failure, squashed or not, is one of the view that made it."""
    site.add(site.view, "/inner")
    site.config.add_exception_view(lambda exc, request: Response("sorry", 500), Exception)

    def view(request: Any) -> Response:
        return request.invoke_subrequest(Request.blank("/inner"), use_tweens=True)

    site.add(rollback_safe(view), "/outer")
    assert site.outcome("POST", "/outer") == RECOVERED


def test_mounted_wsgi_app(site: Site) -> None:
    """A WSGI app that is a view has the mark that is put on the view."""

    def inner(environ: Any, start_response: Any) -> Any:
        return site.flaky()(environ, start_response)

    site.add(rollback_safe(wsgiapp2(inner)), "/marked")
    site.add(wsgiapp2(inner), "/unmarked")
    assert site.outcome("POST", "/marked") == RECOVERED
    assert site.outcome("POST", "/unmarked") == REFUSED


def test_mark_is_found_before_the_view_runs(site: Site) -> None:
    """A view can ask whether this attempt is its last."""
    seen: list[tuple[str, bool]] = []

    def look(request: Any) -> Response:
        seen.append((request.path, current_attempt().is_last))
        return site.flaky()

    site.add(idempotent(max_replays=1)(functools.partial(look)), "/marked")
    site.add(look, "/unmarked")
    site.outcome("POST", "/marked")
    site.outcome("POST", "/unmarked")
    assert seen == [("/marked", False), ("/marked", True), ("/unmarked", True)]


# What a view sees


@pytest.mark.parametrize("kind", ["form", "json", "body", "file", "files"])
def test_request_body(site: Site, kind: str) -> None:
    """G5: the body can be read in each attempt, however WebOb reads it."""
    seen: list[Any] = []

    def view(request: Any) -> Response:
        if kind == "form":
            seen.append(dict(request.POST))
        elif kind == "json":
            seen.append(request.json_body)
        elif kind == "body":
            seen.append(request.body)
        elif kind == "file":
            seen.append(request.body_file.read(2) + request.body_file.read())
        else:
            seen.append(request.POST["f"].file.read())
        return site.flaky()

    arguments: dict[str, Any] = {
        "form": {"data": {"a": "1"}},
        "json": {"json": {"a": 1}},
        "body": {"data": b"hello"},
        "file": {"data": b"hello"},
        "files": {"data": {"f": (io.BytesIO(b"hello"), "f.txt")}},
    }[kind]
    site.add(idempotent(view))
    assert site.outcome("POST", **arguments) == RECOVERED
    assert seen in ([{"a": "1"}] * 2, [{"a": 1}] * 2, [b"hello"] * 2)


def test_nothing_leaks_between_attempts(site: Site) -> None:
    """G1: what an attempt leaves on the request, its response and in the environ ends with it."""
    seen: list[Any] = []

    def view(request: Any) -> Response:
        number = current_attempt().number
        seen.append((hasattr(request, "left"), "left" in request.environ, request.exception))
        request.left = request.environ["left"] = number
        request.response.set_cookie("number", str(number))
        site.flaky()
        request.response.text = "hello"
        return request.response

    site.add(view)
    site.config.add_exception_view(lambda exc, request: Response("sorry", 500), Exception)
    reply = site.send()
    assert seen == [(False, False, None)] * 2
    assert reply.headers.getlist("Set-Cookie") == ["number=2; Path=/"]


@pytest.mark.parametrize("kind", ["response", "finished"])
def test_callbacks_of_a_request(site: Site, kind: str) -> None:
    """G5: each attempt has its own request, and calls back as Pyramid does: for a response where
    there is one, at its end in any case."""
    calls: list[int] = []

    def view(request: Any) -> Response:
        number = current_attempt().number
        getattr(request, f"add_{kind}_callback")(lambda *_: calls.append(number))
        return site.flaky()

    site.add(view)
    assert site.outcome() == RECOVERED
    assert calls == ([2] if kind == "response" else [1, 2])


def test_callbacks(site: Site) -> None:
    """on_success is called once, for the attempt that was sent, on_rollback for the other."""
    calls: list[str] = []

    def view(request: Any) -> Response:
        attempt = current_attempt()
        attempt.on_success(lambda: calls.append(f"success {attempt.number}"))
        attempt.on_rollback(lambda: calls.append(f"rollback {attempt.number}"))
        return site.flaky()

    site.add(view)
    assert site.send().data == b"hello"
    assert calls == ["rollback 1", "success 2"]


# With a database


@pytest.fixture
def store(mariadb: MariaDB) -> Iterator[MariaDB]:
    """The server, with a table for orders."""
    mariadb.execute("CREATE TABLE app.orders (name VARCHAR(50)) ENGINE=InnoDB")
    yield mariadb
    mariadb.execute("DROP TABLE app.orders")


CUTS = pytest.mark.parametrize(
    ("at", "expected"), [(1, (200, "recovered")), ("commit", (503, "unknown"))]
)


@CUTS
def test_order(store: MariaDB, mariadb_proxy: FaultProxy, at: Any, expected: Any) -> None:
    """G1, G4: an order whose connection is cut, in its transaction or at its COMMIT, is stored
    exactly once."""
    database = Database(
        host=mariadb_proxy.host,
        port=mariadb_proxy.port,
        user=store.user,
        password=store.password,
        database=store.database,
        ssl_disabled=True,
    )

    def order(request: Any) -> Response:
        with database.connection() as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES ('teapot')")
            if not current_attempt().is_replay:
                mariadb_proxy.cut("reset", at=at)
            cursor.execute("SELECT 1")
            connection.commit()
        return Response("hello")

    config = Configurator()
    Retry(config, policy=POLICY, databases=[database])
    config.add_view(rollback_safe(order))
    config.add_exception_view(lambda exc, request: Response("sorry", 500), Exception)
    reply = werkzeug.Client(config.make_wsgi_app()).post("/")
    assert (reply.status_code, reply.headers["Retry-Outcome"]) == expected
    assert mariadb_proxy.faults == 1
    assert store.execute("SELECT name FROM app.orders") == [("teapot",)]


@CUTS
@pytest.mark.parametrize("rendered", [False, True])
def test_pyramid_tm(
    flaky: Flaky,
    store: MariaDB,
    mariadb_proxy: FaultProxy,
    at: Any,
    expected: Any,
    rendered: bool,
) -> None:
    """G1, G4: the same with pyramid_tm, which commits in a tween over the exception views; G8: a
    failed attempt has given its connection back."""
    proxy = mariadb_proxy
    held: list[int] = []
    engine = create_engine(
        f"mysql+pymysql://{store.user}:{store.password}@{proxy.host}:{proxy.port}/"
        f"{store.database}?ssl_disabled=true&read_timeout=30"
    )
    watch(engine)
    make = sessionmaker(engine)

    def dbsession(request: Any) -> Session:
        session = make()
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    def note(report: Any) -> None:
        held.append(engine.pool.checkedout())

    def order(request: Any) -> Response:
        request.dbsession.execute(text("INSERT INTO orders VALUES ('teapot')"))
        zope.sqlalchemy.mark_changed(request.dbsession)
        if not current_attempt().is_replay:
            proxy.cut("reset", at=at)
        request.dbsession.execute(text("SELECT 1"))
        return Response("hello")

    site = Site(flaky, hooks=[note], **{"tm.manager_hook": "pyramid_tm.explicit_manager"})
    site.config.include("pyramid_tm")
    site.config.add_request_method(dbsession, reify=True)
    site.add(rollback_safe(order))
    if rendered:
        site.config.add_exception_view(lambda exc, request: Response("sorry", 500), Exception)
    reply = site.send("POST")
    assert (reply.status_code, reply.headers["Retry-Outcome"]) == expected
    assert proxy.faults == 1
    assert store.execute("SELECT name FROM app.orders") == [("teapot",)]
    assert held == [0] * (2 if at == 1 else 1)
    engine.dispose()
