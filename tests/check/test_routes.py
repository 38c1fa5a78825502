"""The routes of every framework, found without calling an endpoint, and what becomes of them."""

from __future__ import annotations

import sys
import types
import warnings
from functools import partial
from typing import Any

import anyio
import bottle
import falcon
import falcon.asgi
import flask
import flask.views
import httpx
import litestar
import pytest
import quart
import quart.views
import tenacity
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.test import override_settings
from django.urls import include, path
from django.views import View
from django.views.decorators.http import require_http_methods
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.routing import Route

import retrymw.asgi
import retrymw.integrations.bottle
import retrymw.integrations.django
import retrymw.integrations.falcon
import retrymw.integrations.flask
import retrymw.integrations.litestar
import retrymw.integrations.quart
import retrymw.wsgi
from retrymw import (
    DisconnectionError,
    RetryPolicy,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.check import Checked, check
from retrymw.exceptions import Phase

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of WebOb, which imports cgi, and of pkg_resources
    from pyramid.config import Configurator
    from pyramid.response import Response

    import retrymw.integrations.pyramid

ALWAYS, BEFORE, NEVER = (True, True, True), (True, False, False), (False, False, False)


def seen(checked: Checked) -> dict[tuple[str, str], tuple[str | None, tuple[bool, bool, bool]]]:
    """The mark and the columns of the decision table, by method and path."""
    return {
        (method, route.path): (
            route.mark.kind.value if route.mark else None,
            (route.before_commit, route.after_commit, route.commit_unknown),
        )
        for route in checked.routes
        for method in route.methods
    }


class Database:
    """Stands for what fails in every endpoint."""

    def __init__(self) -> None:
        self.phase: Phase = "execute"
        self.calls = 0

    def fail(self) -> None:
        self.calls += 1
        raise DisconnectionError("the database has gone away", phase=self.phase)


database = Database()
POLICY = RetryPolicy(max_replays=1, wait=tenacity.wait_none())


@rollback_safe
def order(request: Any = None) -> Any:
    database.fail()


@idempotent(max_replays=1)
def upload(request: Any = None) -> Any:
    database.fail()


@never_replay
def mail() -> None:
    database.fail()


def plain(request: Any = None) -> Any:
    database.fail()


# What each framework is given: GET, PUT and POST at /items, unmarked; POST at /orders,
# @rollback_safe; PATCH at /uploads, @idempotent; POST at /mails, a class whose method is
# @never_replay.
EXPECTED = {
    ("GET", "/items"): (None, ALWAYS),
    ("PUT", "/items"): (None, BEFORE),
    ("POST", "/items"): (None, NEVER),
    ("POST", "/orders"): ("rollback_safe", BEFORE),
    ("PATCH", "/uploads"): ("idempotent", ALWAYS),
    ("POST", "/mails"): ("never_replay", NEVER),
}


def starlette_app() -> Any:
    class Mails(HTTPEndpoint):
        @never_replay
        async def post(self, request: Any) -> Any:
            database.fail()

    return Starlette(
        routes=[
            Route("/items", plain, methods=["GET", "PUT", "POST"]),
            Route("/orders", order, methods=["POST"]),
            Route("/uploads", partial(upload), methods=["PATCH"]),
            Route("/mails", Mails),
        ],
        middleware=[Middleware(retrymw.asgi.RetryMiddleware, policy=POLICY)],
    )


def fastapi_app() -> Any:
    app = FastAPI(openapi_url=None)
    router = APIRouter(prefix="/orders")
    outer = APIRouter()

    @router.post("")
    @rollback_safe
    def place() -> None:
        database.fail()

    app.add_api_route("/items", database.fail, methods=["GET", "PUT", "POST"])
    outer.include_router(router)
    app.include_router(outer)

    @app.patch("/uploads")
    @idempotent
    async def upload() -> None:
        database.fail()

    app.post("/mails")(mail)
    return retrymw.asgi.RetryMiddleware(app, policy=POLICY)


def werkzeug_app(app: Any, package: Any, retry: Any) -> Any:
    class Mails(package.views.MethodView):  # type: ignore[misc,name-defined]
        @never_replay
        def post(self) -> Any:
            database.fail()

    blueprint = package.Blueprint("orders", package.__name__)
    blueprint.post("/orders")(order)
    app.register_blueprint(blueprint)
    app.add_url_rule("/items", view_func=plain, methods=["GET", "PUT", "POST"])
    app.patch("/uploads")(upload)
    app.add_url_rule("/mails", view_func=Mails.as_view("mails"))
    retry(app, policy=POLICY)
    return app


def flask_app() -> Any:
    app = flask.Flask("shop", static_folder=None)
    return werkzeug_app(app, flask, retrymw.integrations.flask.Retry)


def quart_app() -> Any:
    app = quart.Quart("shop", static_folder=None)
    return werkzeug_app(app, quart, retrymw.integrations.quart.Retry)


def litestar_app() -> Any:
    class Mails(litestar.Controller):
        path = "/mails"

        @litestar.post(sync_to_thread=False)
        @never_replay
        def post(self) -> None:
            database.fail()

    def handler() -> None:
        database.fail()

    @litestar.patch("/uploads", sync_to_thread=False)
    @idempotent
    def uploads() -> None:
        database.fail()

    def unmarked() -> None:
        database.fail()

    methods = [litestar.HttpMethod.GET, litestar.HttpMethod.PUT, litestar.HttpMethod.POST]
    items = litestar.route("/items", http_method=methods, status_code=200, sync_to_thread=False)
    orders = litestar.post("/", sync_to_thread=False)(rollback_safe(handler))
    app = litestar.Litestar(
        [items(unmarked), litestar.Router("/orders", route_handlers=[orders]), uploads, Mails],
        openapi_config=None,
    )
    return retrymw.integrations.litestar.Retry(app, policy=POLICY)


def falcon_resources(app: Any) -> Any:
    class Items:
        def on_get(self, req: Any, resp: Any) -> None:
            database.fail()

        on_put = on_post = on_get

    @idempotent
    class Uploads:
        def on_patch(self, req: Any, resp: Any) -> None:
            database.fail()

    class Orders:
        @rollback_safe
        def on_post(self, req: Any, resp: Any) -> None:
            database.fail()

        @never_replay
        def on_post_mails(self, req: Any, resp: Any) -> None:
            database.fail()

    app.add_route("/items", Items())
    app.add_route("/uploads", Uploads())
    app.add_route("/orders", Orders())
    app.add_route("/mails", Orders(), suffix="mails")
    return retrymw.integrations.falcon.Retry(app, policy=POLICY)


def falcon_app() -> Any:
    return falcon_resources(falcon.App())


def pyramid_app() -> Any:
    class Mails:
        def __init__(self, request: Any) -> None:
            database.fail()

        @never_replay
        def send(self) -> Any:
            database.fail()

    def failed(exc: Any, request: Any) -> Any:
        return Response(status=500)

    with Configurator() as config:
        retrymw.integrations.pyramid.Retry(config, policy=POLICY)
        for name in ("items", "orders", "uploads", "mails"):
            config.add_route(name, f"/{name}")
        config.add_view(plain, route_name="items", request_method=("GET", "PUT", "POST"))
        config.add_view(order, route_name="orders", request_method="POST")
        config.add_view(upload, route_name="uploads", request_method="PATCH")
        config.add_view(Mails, attr="send", route_name="mails", request_method="POST")
        config.add_exception_view(failed, context=ValueError)
        return config.make_wsgi_app()


def bottle_app() -> Any:
    app = bottle.Bottle()
    child = bottle.Bottle()
    app.route("/items", ["GET", "PUT", "POST"], plain)
    app.patch("/uploads", callback=upload)
    app.post("/mails", callback=mail)
    child.post("/orders", callback=order)
    app.mount("/", child)
    retrymw.integrations.bottle.Retry(app, policy=POLICY)
    return app


class DjangoMails(View):
    @never_replay
    def post(self, request: Any) -> Any:
        database.fail()


DJANGO_URLS = types.ModuleType("urls_of_the_check")
DJANGO_URLS.urlpatterns = [  # type: ignore[attr-defined]
    path("items", require_http_methods(["GET", "PUT", "POST"])(plain)),
    path("", include([path("orders", require_http_methods(["POST"])(order))])),
    path("uploads", require_http_methods(["PATCH"])(upload)),
    path("mails", DjangoMails.as_view()),
]


def django_app() -> Any:
    return retrymw.integrations.django.Retry(get_wsgi_application(), policy=POLICY)


@pytest.fixture(autouse=True)
def _django(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, DJANGO_URLS.__name__, DJANGO_URLS)
    if not settings.configured:
        settings.configure()
    with override_settings(
        ALLOWED_HOSTS=["*"], ROOT_URLCONF=DJANGO_URLS.__name__, MIDDLEWARE=[], STATIC_URL="/static/"
    ):
        yield


APPS = {
    "Starlette": starlette_app,
    "FastAPI": fastapi_app,
    "Flask": flask_app,
    "Quart": quart_app,
    "Litestar": litestar_app,
    "Falcon": falcon_app,
    "Pyramid": pyramid_app,
    "Bottle": bottle_app,
    "Django": django_app,
}


ASGI = ("Starlette", "FastAPI", "Quart", "Litestar")


def ask(name: str, app: Any, method: str, path: str) -> httpx.Response:
    if name not in ASGI:
        with httpx.Client(transport=httpx.WSGITransport(app)) as client:
            return client.request(method, f"http://shop{path}")

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
            return await client.request(method, f"http://shop{path}")

    return anyio.run(send)


@pytest.mark.parametrize("name", APPS)
def test_what_is_said_of_a_route_is_what_happens(name: str) -> None:
    """G3, G4: a route is replayed as its check says, and checking it does not call it."""
    app = APPS[name]()
    database.calls = 0
    checked = check(app)
    assert database.calls == 0
    routes = seen(checked)
    assert {route: routes[route] for route in EXPECTED} == EXPECTED
    for (method, url), (_, columns) in EXPECTED.items():
        for database.phase, replayed in (("execute", columns[0]), ("commit", columns[2])):
            database.calls = 0
            response = ask(name, app, method, url)
            assert (response.status_code, database.calls) == (503, 1 + replayed), (method, url)


@pytest.mark.parametrize("name", APPS)
def test_nothing_but_the_unmarked_post_is_found(name: str) -> None:
    """An app that is as it should be has its routes, one middleware and no other finding."""
    checked = check(APPS[name]())
    assert {method for method, _ in seen(checked).keys() - EXPECTED.keys()} <= {"HEAD", "OPTIONS"}
    assert checked.frameworks == (name,)
    assert [middleware.policy for middleware in checked.middleware] == [POLICY]
    assert checked.unseen == ()
    assert [(finding.code, finding.place) for finding in checked.findings] == [
        ("unmarked", "POST /items")
    ]
