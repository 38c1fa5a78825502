"""What will surprise: each finding fires on a real app, and does not where there is no reason."""

import functools
import warnings
from typing import Annotated

import anyio
import bottle
import falcon
import flask
import httpx
import litestar
import psycopg
import pymysql
import pytest
import quart
import sqlalchemy.exc
import starlette
import tenacity
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.test import override_settings
from django.urls import path
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

import retrymw.asgi
import retrymw.wsgi
from retrymw import (
    DisconnectionError,
    RetryPolicy,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.adapters.pymysql import Database
from retrymw.asgi import RetryMiddleware
from retrymw.check import check

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of WebOb, which imports cgi, and of pkg_resources
    from pyramid.config import Configurator


def found(app, code):
    """The places of the findings with this code."""
    return [finding.place for finding in check(app).findings if finding.code == code]


def shop(*routes, policy=None, databases=(), **options):
    app = Starlette(routes=routes, **options)
    app.add_middleware(RetryMiddleware, policy=policy, databases=databases)
    return app


def post(endpoint, **options):
    return shop(Route("/orders", endpoint, methods=["POST", "PATCH"]), **options)


async def order(request): ...


class TestUnmarked:
    def test_post_without_a_mark(self):
        """G3: a POST or PATCH that has no mark is named."""
        assert found(post(order), "unmarked") == ["POST, PATCH /orders"]

    @pytest.mark.parametrize("mark", [rollback_safe, idempotent, never_replay])
    def test_any_mark_will_do(self, mark):
        """Any mark says that somebody has thought about it."""
        assert found(post(mark(lambda request: None)), "unmarked") == []

    def test_other_methods(self):
        """GET, PUT and DELETE need no mark."""
        app = shop(Route("/", order, methods=["GET", "PUT", "DELETE"]))
        assert found(app, "unmarked") == []

    def test_methods_of_the_policy(self):
        """What the policy replays without a mark needs none, and what it leaves out needs one."""
        policy = RetryPolicy(methods={"POST", "PATCH"})
        assert found(post(order, policy=policy), "unmarked") == []
        app = shop(Route("/", order, methods=["PUT"]), policy=policy)
        assert found(app, "unmarked") == ["PUT /"]


def wrapping(endpoint):
    @functools.wraps(endpoint)
    async def wrapped(request):
        return await endpoint(request)

    return wrapped


def hiding(endpoint):
    async def wrapped(request):
        return await endpoint(request)

    return wrapped


def late(request): ...


early = late
late = rollback_safe(wrapping(late))


class TestMarkWithoutEffect:
    def test_decorator_without_wraps(self):
        """A decorator that hides the mark is named, and the endpoint is not called unmarked."""
        app = post(hiding(rollback_safe(lambda request: None)))
        assert found(app, "mark-without-effect") == [f"{__name__}.hiding.<locals>.wrapped"]
        assert found(app, "unmarked") == []
        assert [route.before_commit for route in check(app).routes] == [False]

    def test_mark_above_the_route(self):
        """A mark that was put on what a decorator returned after the route was made is named."""
        assert found(post(early), "mark-without-effect") == [f"{__name__}.late"]

    def test_decorator_with_wraps(self):
        """A mark below a decorator that uses functools.wraps is seen."""
        app = post(wrapping(rollback_safe(lambda request: None)))
        assert check(app).findings == ()

    def test_neighbour(self):
        """An endpoint that calls a marked one beside it hides nothing."""

        @rollback_safe
        async def marked(request): ...

        async def unmarked(request):
            return await marked(request)

        assert found(post(unmarked), "mark-without-effect") == []
        assert found(post(unmarked), "unmarked") == ["POST, PATCH /orders"]


def answer(request, exc):
    return PlainTextResponse("sorry", 500)


def doom(request, exc):
    current_attempt().doom(exc)
    return PlainTextResponse("sorry", 500)


class OurError(pymysql.err.OperationalError):
    """An app's own."""


class TestSquashed:
    @pytest.mark.parametrize(
        "error",
        [
            pymysql.err.OperationalError,
            pymysql.err.Error,
            OurError,
            psycopg.OperationalError,
            sqlalchemy.exc.DBAPIError,
            sqlalchemy.exc.SQLAlchemyError,
            DisconnectionError,
        ],
    )
    def test_handler_of_a_failure(self, error):
        """G7: a handler that makes a response of a database's failure is named."""
        app = shop(exception_handlers={error: answer})
        mounted = shop(Mount("/in", Starlette(exception_handlers={error: answer})))
        name = f"handler of {error.__module__}.{error.__qualname__}"
        assert found(app, "squashed") == [name]
        assert found(mounted, "squashed") == [name]

    @pytest.mark.parametrize(
        "error",
        [
            500,
            404,
            Exception,
            ValueError,
            pymysql.err.IntegrityError,
            psycopg.errors.UniqueViolation,
            sqlalchemy.exc.NoResultFound,
        ],
    )
    def test_handler_of_something_else(self, error):
        """Handlers of what is no failure, of 500 and of Exception squash nothing."""
        assert found(shop(exception_handlers={error: answer}), "squashed") == []

    def test_handler_that_dooms(self):
        """A handler that dooms the attempt is as it should be."""
        handlers = {pymysql.err.OperationalError: doom}
        assert found(shop(exception_handlers=handlers), "squashed") == []

    def test_adapter_that_sees_it(self):
        """An adapter sees its own driver's failures, and not those of another one."""
        databases = [Database(host="nowhere")]
        handlers = {pymysql.err.OperationalError: answer}
        assert found(shop(exception_handlers=handlers, databases=databases), "squashed") == []
        handlers = {psycopg.OperationalError: answer}
        app = shop(exception_handlers=handlers, databases=databases)
        assert found(app, "squashed") == ["handler of psycopg.OperationalError"]

    def test_adapter_of_somebody_else(self):
        """An adapter that is not ours is taken to see its failures."""

        class Own:
            def rollback(self, attempt): ...

            def release(self, attempt): ...

            def ping(self): ...

        handlers = {pymysql.err.OperationalError: answer}
        assert found(shop(exception_handlers=handlers, databases=[Own()]), "squashed") == []

    def test_fastapi(self):
        """FastAPI's handlers count as well; those that it has itself do not."""
        app = FastAPI()
        app.add_middleware(RetryMiddleware)
        assert found(app, "squashed") == []
        app.exception_handler(pymysql.err.OperationalError)(answer)
        assert found(app, "squashed") == ["handler of pymysql.err.OperationalError"]


class Session:
    def commit(self): ...

    def close(self): ...

    def begin(self): ...


async def commits():
    session = Session()
    yield session
    session.commit()


def commits_in_else():
    session = Session()
    try:
        yield session
    finally:
        session.commit()


async def begins():
    session = Session()
    async with session.begin():
        yield session


def closes():
    session = Session()
    try:
        yield session
    finally:
        session.close()


def commits_before():
    session = Session()
    session.commit()
    yield session


def returns():
    return Session()


def fastapi_shop(dependency, policy=None, **options):
    app = FastAPI(openapi_url=None)
    app.add_middleware(RetryMiddleware, policy=policy)
    router = APIRouter()

    def outer(session: Annotated[Session, Depends(dependency, **options)]): ...

    @router.get("/")
    def show(it: Annotated[None, Depends(outer)]): ...

    app.include_router(router)
    return app


class TestLateCommit:
    @pytest.mark.parametrize("dependency", [commits, commits_in_else, begins])
    def test_commit_after_the_yield(self, dependency):
        """G4: a dependency, however deep, that commits after the response is named."""
        app = fastapi_shop(dependency)
        assert found(app, "late-commit") == [f"{__name__}.{dependency.__name__}"]

    @pytest.mark.parametrize("dependency", [closes, commits_before, returns, Session])
    def test_no_commit_after_the_yield(self, dependency):
        """One that only closes, or has no yield, is not."""
        assert found(fastapi_shop(dependency), "late-commit") == []

    def test_scope_of_the_function(self):
        """With scope="function" the commit comes first."""
        assert found(fastapi_shop(commits, scope="function"), "late-commit") == []

    def test_held_until_return(self):
        """With hold="until-return" the response waits for the commit."""
        policy = RetryPolicy(hold="until-return")
        assert found(fastapi_shop(commits, policy), "late-commit") == []

    def test_older_starlette_loses_it_nevertheless(self, monkeypatch):
        """Before Starlette 0.46 BaseHTTPMiddleware loses what the commit raises."""
        monkeypatch.setattr(starlette, "__version__", "0.45.3")
        app = fastapi_shop(commits, RetryPolicy(hold="until-return"))
        assert found(app, "late-commit") == []
        app.user_middleware.append(Middleware(BaseHTTPMiddleware, dispatch=passes))
        [finding] = check(app).findings
        assert "0.46" in finding.fix

    def test_older_fastapi(self, monkeypatch):
        """FastAPI 0.106 to 0.117 ran it before the response."""
        monkeypatch.setattr("fastapi.__version__", "0.117.1")
        assert found(fastapi_shop(commits), "late-commit") == []


async def passes(request, call_next):
    return await call_next(request)


class Passes(BaseHTTPMiddleware):
    dispatch = staticmethod(passes)


class TestBaseHTTPMiddleware:
    def app(self, endpoint, *, inside=True, **rules):
        runs = []

        async def query():
            runs.append(1)
            if len(runs) == 1:
                raise DisconnectionError("the database has gone away")
            return "teapot"

        policy = RetryPolicy(wait=tenacity.wait_none(), **rules)
        middleware = [Middleware(RetryMiddleware, policy=policy), Middleware(Passes)]
        routes = [Route("/export", endpoint(query))]
        return Starlette(routes=routes, middleware=middleware if inside else middleware[::-1])

    @staticmethod
    def export(query):
        async def export(request):
            async def lines():
                yield await query()

            return StreamingResponse(lines())

        return export

    @staticmethod
    def export_class(query):
        class Export(HTTPEndpoint):
            async def get(self, request):
                return await TestBaseHTTPMiddleware.export(query)(request)

            async def post(self, request):
                return StreamingResponse([])

        return Export

    @staticmethod
    def show(query):
        async def show(request):
            return PlainTextResponse(await query())

        return show

    def text(self, app):
        async def get():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
                return (await client.get("/export")).text

        return anyio.run(get)

    def test_stream_inside(self):
        """A stream that fails first is cut by BaseHTTPMiddleware inside, which is found."""
        app = self.app(self.export)
        assert found(app, "base-http-middleware") == [f"/export in {__name__}.Passes"]
        assert self.text(app) == ""

    def test_stream_of_a_class(self):
        """Methods of a class that stream are found too."""
        app = self.app(self.export_class)
        assert found(app, "base-http-middleware") == [f"/export in {__name__}.Passes"]

    @pytest.mark.parametrize(
        ("endpoint", "rules"),
        [
            ("export", {"inside": False}),
            ("export", {"hold": "until-return"}),
            ("show", {}),
        ],
    )
    def test_no_surprise(self, endpoint, rules):
        """G5: outside, with hold="until-return", or without a stream it does no harm."""
        app = self.app(getattr(self, endpoint), **rules)
        assert found(app, "base-http-middleware") == []
        assert self.text(app) == "teapot"

    def test_decorated_function_is_named(self):
        """Of @app.middleware("http") the function is named."""
        app = FastAPI(openapi_url=None)
        app.middleware("http")(passes)
        app.add_middleware(RetryMiddleware)

        @app.get("/export")
        def export() -> StreamingResponse:
            return StreamingResponse([])

        assert found(app, "base-http-middleware") == [f"/export in {__name__}.passes"]

    def test_older_starlette(self, monkeypatch):
        """Before 0.46 the exception came first."""
        monkeypatch.setattr(starlette, "__version__", "0.45.3")
        assert found(self.app(self.export), "base-http-middleware") == []


def flask_app():
    app = flask.Flask("shop", static_folder=None)
    app.post("/")(rollback_safe(lambda: ""))
    return retrymw.wsgi.RetryMiddleware(app)


def quart_app():
    app = quart.Quart("shop", static_folder=None)
    app.post("/")(rollback_safe(lambda: ""))
    return retrymw.asgi.RetryMiddleware(app)


def litestar_app():
    @litestar.post(sync_to_thread=False)
    @rollback_safe
    def order() -> None: ...

    return retrymw.asgi.RetryMiddleware(litestar.Litestar([order], openapi_config=None))


def falcon_app():
    class Orders:
        @rollback_safe
        def on_post(self, req, resp): ...

    app = falcon.App()
    app.add_route("/", Orders())
    return retrymw.wsgi.RetryMiddleware(app)


def bottle_app():
    app = bottle.Bottle()
    app.post("/", callback=rollback_safe(lambda: ""))
    return retrymw.wsgi.RetryMiddleware(app)


def pyramid_app():
    with Configurator() as config:
        config.add_route("order", "/")
        view = rollback_safe(lambda request: "")
        config.add_view(view, route_name="order", request_method="POST")
        return retrymw.wsgi.RetryMiddleware(config.make_wsgi_app())


urlpatterns = [path("", rollback_safe(lambda request: None))]


def django_app():
    return retrymw.wsgi.RetryMiddleware(get_wsgi_application())


SQUASHING = {
    "Flask": flask_app,
    "Quart": quart_app,
    "Litestar": litestar_app,
    "Falcon": falcon_app,
    "Bottle": bottle_app,
    "Pyramid": pyramid_app,
    "Django": django_app,
}


class TestNoIntegration:
    @pytest.fixture(autouse=True)
    def _django(self):
        if not settings.configured:
            settings.configure()
        with override_settings(ROOT_URLCONF=__name__):
            yield

    @pytest.mark.filterwarnings("ignore:retrymw.*RetryMiddleware around:RuntimeWarning")
    @pytest.mark.parametrize("name", SQUASHING)
    def test_framework_in_plain_middleware(self, name):
        """A framework that squashes is told of its integration; the mark is not called missing."""
        checked = check(SQUASHING[name]())
        [finding] = checked.findings
        assert (finding.code, finding.place) == ("no-integration", name)
        assert f"retrymw.integrations.{name.lower()}.Retry" in finding.fix
        seen = [route.mark is not None for route in checked.routes if "POST" in route.methods]
        assert seen == [name == "Litestar"]  # whose scope has the endpoint

    def test_find_endpoint_of_the_app(self):
        """G3: with a find_endpoint of the app's own its marks are seen."""
        app = bottle.Bottle()
        app.post("/", callback=rollback_safe(lambda: ""))
        app.wsgi = retrymw.wsgi.RetryMiddleware(
            app.wsgi, find_endpoint=lambda environ: environ["bottle.route"].callback
        )
        checked = check(app)
        assert [route.before_commit for route in checked.routes] == [True]
        assert [finding.code for finding in checked.findings] == ["no-integration"]
