"""Where RetryMiddleware and routes are found: in wrappers, mounts, hosts, and not at all."""

import functools
import subprocess
import sys
import warnings

import bottle
import falcon
import flask
import litestar
import pytest
import quart
from asgiref.wsgi import WsgiToAsgi
from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path, re_path
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

import retrymw.integrations.bottle
import retrymw.integrations.django
import retrymw.integrations.falcon
import retrymw.integrations.flask
import retrymw.integrations.litestar
import retrymw.integrations.quart
import retrymw.wsgi
from retrymw import RetryPolicy, rollback_safe
from retrymw.adapters.pymysql import Database
from retrymw.asgi import RetryMiddleware
from retrymw.check import Checked, check
from retrymw.check import Middleware as Found

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of WebOb, which imports cgi, and of pkg_resources
    from pyramid.config import Configurator

    import retrymw.integrations.pyramid


async def show(request):
    raise AssertionError("an endpoint was called")


def view():
    raise AssertionError("an endpoint was called")


def paths(checked: Checked) -> list[str]:
    return [str(route) for route in checked.routes]


def codes(checked: Checked) -> list[tuple[str, str]]:
    return [(finding.code, finding.place) for finding in checked.findings]


def shop(*routes, **options):
    return Starlette(routes=routes or [Route("/", show)], **options)


def flask_shop(retry=True):
    app = flask.Flask("shop", static_folder=None)
    app.get("/")(view)
    if retry:
        retrymw.integrations.flask.Retry(app)
    return app


def pure_asgi(app):
    async def middleware(scope, receive, send):
        await app(scope, receive, send)

    return middleware


@functools.wraps(show)
async def wrapper(scope, receive, send): ...


class Subclass(RetryMiddleware):
    """Somebody's own."""


INSIDE = {
    "add_middleware": lambda: shop(middleware=[Middleware(RetryMiddleware)]),
    "partial": lambda: shop(middleware=[Middleware(functools.partial(RetryMiddleware))]),
    "subclass": lambda: shop(middleware=[Middleware(Subclass)]),
    "around": lambda: RetryMiddleware(shop()),
    "under others": lambda: GZipMiddleware(RetryMiddleware(GZipMiddleware(shop()))),
    "under a function": lambda: pure_asgi(RetryMiddleware(pure_asgi(shop()))),
    "around a router": lambda: RetryMiddleware(Router([Route("/", show)])),
    "in a router": lambda: Router([Route("/", show)], middleware=[Middleware(RetryMiddleware)]),
    "in a mount": lambda: shop(
        Mount("/", routes=[Route("/", show)], middleware=[Middleware(RetryMiddleware)])
    ),
    "in a route": lambda: shop(Route("/", show, middleware=[Middleware(RetryMiddleware)])),
    "Flask": flask_shop,
    "Flask, ProxyFix": lambda: ProxyFix(flask_shop()),
    "Flask as ASGI": lambda: WsgiToAsgi(flask_shop()),
}


@pytest.mark.parametrize("where", INSIDE)
def test_middleware_is_found(where):
    """Wherever RetryMiddleware is put, it is found, and the route is known to be replayed."""
    checked = check(INSIDE[where]())
    assert [route.before_commit for route in checked.routes] == [True]
    assert len(checked.middleware) == 1
    assert checked.findings == ()


def test_policy_and_databases():
    """The policy and the databases are those that the middleware was given."""
    policy = RetryPolicy(max_replays=2)
    app = shop()
    app.add_middleware(RetryMiddleware, policy=policy, databases=[Database(host="nowhere")])
    [found] = check(app).middleware
    assert found == Found("asgi", "/", policy, ("retrymw.adapters.pymysql.Database",))


def test_wrong_configuration_raises():
    """What would raise when the app starts raises in the check."""
    app = shop()
    app.add_middleware(RetryMiddleware, policy="often")
    with pytest.raises(TypeError, match="policy is 'often'"):
        check(app)


@pytest.mark.parametrize("app", [None, "shop.main:app", Starlette])
def test_no_app_at_all(app):
    """What is no app is refused by name."""
    with pytest.raises(TypeError, match="allowed: a WSGI or ASGI app"):
        check(app)


def test_mounts_hosts_and_routers():
    """Routes are found in all that Starlette can put into each other, with their whole path."""
    api = FastAPI(openapi_url=None)
    inner, outer = APIRouter(prefix="/inner"), APIRouter(prefix="/outer")
    inner.add_api_route("/{item}", view)
    outer.include_router(inner)
    api.include_router(outer, prefix="/v1")
    app = shop(
        Mount("/api", api),
        Mount("/routes", routes=[Mount("/deep", Router([Route("/x", show)]))]),
        Mount("/flask", WsgiToAsgi(flask_shop(retry=False))),
        Mount("/static", StaticFiles(directory=".")),
        Host("api.example.org", Router([Route("/y", show)])),
        Route("/", show),
        middleware=[Middleware(RetryMiddleware)],
    )
    checked = check(app)
    assert [route.path for route in checked.routes if "GET" in route.methods] == [
        "/api/v1/outer/inner/{item}",
        "/routes/deep/x",
        "/flask/",
        "//api.example.org/y",
        "/",
    ]
    assert checked.frameworks == ("FastAPI", "Starlette", "Flask")
    assert checked.unseen == ("/static (starlette.staticfiles.StaticFiles)",)
    assert {found.prefix for found in checked.middleware} == {"/"}


def test_router_that_fastapi_includes_has_everything():
    """Mounts, plain routes and websockets of an included router are found under its prefix."""
    router = APIRouter()
    router.routes += [Route("/plain", show), WebSocketRoute("/ws", show)]
    router.mount("/sub", Router([Route("/x", show)]))
    app = FastAPI(openapi_url=None)
    app.include_router(router, prefix="/r")
    app.add_middleware(RetryMiddleware)
    assert {route.path for route in check(app).routes} >= {"/r/plain", "/r/ws", "/r/sub/x"}


def test_dispatcher():
    """Both apps of Werkzeug's DispatcherMiddleware are seen, each with what is around it."""
    app = DispatcherMiddleware(flask_shop(retry=False), {"/shop": flask_shop()})
    checked = check(app)
    assert {route.path: route.before_commit for route in checked.routes} == {
        "/shop/": True,
        "/": False,
    }
    assert [found.prefix for found in checked.middleware] == ["/shop"]
    assert codes(checked) == [("no-middleware", "/")]


def test_no_middleware():
    """An app without RetryMiddleware is told so, once, and its routes are not replayed."""
    checked = check(shop(Route("/a", show), Route("/b", show, methods=["POST"])))
    assert codes(checked) == [("no-middleware", "/")]
    assert {route.why for route in checked.routes} == {"no RetryMiddleware around it"}
    assert not any(route.before_commit for route in checked.routes)


def test_middleware_around_a_part():
    """Routes that are not inside of RetryMiddleware are named."""
    routes = [Route(f"/{name}", show) for name in "abcde"]
    checked = check(shop(Mount("/in", RetryMiddleware(shop())), *routes))
    assert codes(checked) == [("no-middleware", "/a, /b, /c and 2 more")]


def test_nested_middleware():
    """Of two RetryMiddleware around each other only the outermost counts, and that is said."""
    inner = shop(middleware=[Middleware(RetryMiddleware)])
    outer = RetryMiddleware(shop(Mount("/in", inner)), policy=RetryPolicy(max_replays=0))
    checked = check(outer)
    assert codes(checked) == [("nested", "/in")]
    assert [(found.prefix, found.policy.max_replays) for found in checked.middleware] == [
        ("/", 0),
        ("/in", 5),
    ]
    assert [(route.before_commit, route.why) for route in checked.routes] == [
        (False, "max_replays is 0")
    ]


@pytest.mark.parametrize("place", ["mounted", "around"])
def test_integration_inside(place):
    """An app that is mounted needs its integration; RetryMiddleware around it besides is nested."""
    app = flask.Flask("shop", static_folder=None)
    app.get("/")(view)
    retrymw.integrations.flask.Retry(app)
    if place == "mounted":
        outer = shop(Mount("/in", WsgiToAsgi(app)), middleware=[Middleware(RetryMiddleware)])
    else:
        outer = RetryMiddleware(WsgiToAsgi(app))
    assert codes(check(outer)) == {"mounted": [], "around": [("nested", "/")]}[place]


def test_many_beside_each_other():
    """RetryMiddleware in two apps that are mounted side by side is nothing to warn of."""
    names = [f"/{letter}" for letter in "abcdefghij"]
    app = Router([Mount(name, shop(middleware=[Middleware(RetryMiddleware)])) for name in names])
    checked = check(app)
    assert [found.prefix for found in checked.middleware] == names
    assert checked.findings == ()


class ProtocolTypeRouter:
    """As Channels has it."""

    def __init__(self, application_mapping):
        self.application_mapping = application_mapping

    async def __call__(self, scope, receive, send): ...


def test_protocols_of_channels():
    """What Channels gives its HTTP requests is looked at, as the how-to of Django puts it."""
    checked = check(ProtocolTypeRouter({"http": RetryMiddleware(shop()), "websocket": show}))
    assert paths(checked) == paths(check(shop()))
    assert (len(checked.middleware), checked.findings, checked.unseen) == (1, (), ())


def test_middleware_that_may_be_in_what_can_not_be_seen():
    """Where a part can't be seen the check does not say that nothing is replayed."""
    parts = [RetryMiddleware(shop())]

    async def router(scope, receive, send):
        await parts[0](scope, receive, send)

    [finding] = check(router).findings
    assert finding.code == "no-middleware"
    assert "unless there is one in what can't be seen" in finding.surprise


@pytest.mark.parametrize("shell", [RetryMiddleware, retrymw.wsgi.RetryMiddleware])
def test_unknown_app(shell):
    """Of an unknown app there are no routes, but the middleware around it is seen."""

    def app(environ, start_response): ...

    checked = check(shell(app))
    assert (checked.routes, checked.frameworks, checked.findings) == ((), (), ())
    assert [found.shell for found in checked.middleware] == [shell.__module__.rpartition(".")[2]]
    assert checked.unseen == (f"/ ({__name__}.test_unknown_app.<locals>.app)",)


def starlette_socket():
    return RetryMiddleware(shop(WebSocketRoute("/ws", show)))


def quart_socket():
    app = quart.Quart("shop", static_folder=None)
    app.websocket("/ws")(show)
    retrymw.integrations.quart.Retry(app)
    return app


def litestar_socket():
    async def talk(socket: litestar.WebSocket) -> None: ...

    app = litestar.Litestar([litestar.websocket("/ws")(talk)], openapi_config=None)
    return retrymw.integrations.litestar.Retry(app)


@pytest.mark.parametrize("app", [starlette_socket, quart_socket, litestar_socket])
def test_websockets_pass(app):
    """A websocket is listed, and is never replayed."""
    checked = check(app())
    [route] = checked.routes
    assert (str(route), route.before_commit) == ("WEBSOCKET /ws", False)
    assert checked.findings == ()


def test_endpoint_that_takes_any_method():
    """An endpoint that takes any method is shown by what would be done with the usual ones."""

    class AnyMethod:
        async def __call__(self, scope, receive, send): ...

    checked = check(RetryMiddleware(shop(Route("/", AnyMethod()))))
    assert paths(checked) == ["GET, HEAD, OPTIONS /", "PUT, DELETE /", "POST, PATCH /"]
    assert checked.findings == ()


def test_mark_of_a_safe_method():
    """G3: a mark makes no difference to a safe method, and the reason says so."""
    app = RetryMiddleware(shop(Route("/", rollback_safe(lambda request: None))))
    [route] = check(app).routes
    assert (route.commit_unknown, route.why) == (True, "a safe method, whatever its mark")


def test_overrides_of_a_mark():
    """A mark that allows no replays has its endpoint not replayed."""
    endpoint = rollback_safe(max_replays=0)(lambda request: None)
    [route] = check(RetryMiddleware(shop(Route("/", endpoint, methods=["POST"])))).routes
    assert (route.before_commit, route.why) == (False, "max_replays is 0")


def test_methods_of_an_http_endpoint():
    """An HTTPEndpoint takes the methods that it has, and HEAD with GET."""

    class Items(HTTPEndpoint):
        async def get(self, request): ...

        @rollback_safe
        async def patch(self, request): ...

    checked = check(RetryMiddleware(shop(Route("/", Items))))
    assert paths(checked) == ["GET, HEAD /", "PATCH /"]
    assert checked.routes[0].endpoint == f"{__name__}.{Items.__qualname__}"


def test_what_starlette_does_not_know_is_unseen():
    """A route of somebody's own class is not passed over in silence."""

    class Own(BaseRoute):
        path = "/own"

    checked = check(RetryMiddleware(Router([Own()])))
    assert checked.unseen == (f"/own ({__name__}.{Own.__qualname__})",)


def test_wsgi_app_that_bottle_mounts():
    """A WSGI app that is mounted in Bottle is seen through, once."""
    app = bottle.Bottle()
    app.mount("/in/", flask_shop(retry=False))
    app.mount("/out", flask_shop(retry=False))
    retrymw.integrations.bottle.Retry(app)
    assert [route.path for route in check(app).routes] == ["/in/", "/out/"]


class View:
    """Of Pyramid, as a class that is called, and found by traversal."""

    def __init__(self, request): ...

    @rollback_safe
    def __call__(self): ...


def test_class_and_traversal_of_pyramid():
    """A view that is found by traversal is listed by its name; that of a class by its call."""
    with Configurator() as config:
        retrymw.integrations.pyramid.Retry(config)
        config.add_view(View, name="edit", request_method="POST")
        checked = check(config.make_wsgi_app())
    assert [(str(route), route.mark.kind.value) for route in checked.routes] == [
        ("POST /*/edit", "rollback_safe")
    ]


def test_mark_as_a_decorator_of_pyramid():
    """A mark that is a view's decorator, or one of several, is seen on that view alone."""

    def home(request): ...

    with Configurator() as config:
        retrymw.integrations.pyramid.Retry(config)
        config.add_view(home, name="a", request_method="POST", decorator=rollback_safe)
        config.add_view(home, name="b", request_method="POST", decorator=(rollback_safe,))
        config.add_view(home, name="c", request_method="POST")
        checked = check(config.make_wsgi_app())
    marks = {route.path: route.mark and route.mark.kind.value for route in checked.routes}
    assert marks == {"/*/a": "rollback_safe", "/*/b": "rollback_safe", "/*/c": None}
    assert codes(checked) == [("unmarked", "POST /*/c")]


def test_pyramid_without_introspection():
    """Without introspection Pyramid's views can't be seen, its middleware can."""
    with Configurator(introspection=False) as config:
        retrymw.integrations.pyramid.Retry(config)
        checked = check(config.make_wsgi_app())
    assert checked.unseen == ("/ (pyramid.router.Router)",)
    assert len(checked.middleware) == 1


def test_hosts_of_flask():
    """A host of Flask's stands before the path."""
    app = flask.Flask("shop", static_folder=None, host_matching=True)
    app.add_url_rule("/x", view_func=view, host="api.example.org")
    retrymw.integrations.flask.Retry(app)
    assert [route.path for route in check(app).routes] == ["//api.example.org/x"]


def test_sinks_of_falcon():
    """A sink of Falcon's takes any method."""
    app = falcon.App()
    app.add_sink(rollback_safe(lambda req, resp: None), "/sink")
    checked = check(retrymw.integrations.falcon.Retry(app))
    assert {route.mark.kind.value for route in checked.routes} == {"rollback_safe"}
    assert {route.path for route in checked.routes} == {"/sink"}


def test_what_litestar_mounts():
    """An ASGI app that is mounted in Litestar is seen through."""
    mounted = litestar.asgi("/in", is_mount=True, copy_scope=True)(shop())
    app = retrymw.integrations.litestar.Retry(litestar.Litestar([mounted], openapi_config=None))
    checked = check(app)
    assert [route.path for route in checked.routes] == ["/in/"]


def any_view(request):
    return HttpResponse(request.POST.get("item"))


def asking_view(request):
    return HttpResponse("ordered" if request.method in ("POST", "PATCH") else "item")


def get_view(request):
    return HttpResponse("item")


urlpatterns = [
    path("form/", any_view),
    path("orders/", asking_view),
    re_path(r"^item/(\d+)$", get_view),
]


def test_django_views_that_take_any_method():
    """Of Django's functions only those that read a form or ask for POST count as taking it."""
    if not settings.configured:
        settings.configure()
    with override_settings(ROOT_URLCONF=__name__, STATIC_URL="/static/"):
        app = retrymw.integrations.django.Retry(get_wsgi_application())
        checked = check(StaticFilesHandler(app))
    assert {route.path for route in checked.routes} == {"/form/", "/orders/", r"/^item/(\d+)$"}
    assert codes(checked) == [("unmarked", "POST /form/"), ("unmarked", "POST, PATCH /orders/")]


def test_loads_no_framework():
    """Importing the check and the command loads no framework, nor an event loop."""
    code = (
        "import sys, retrymw.check, retrymw.cli; "
        "print(*{'anyio', 'asyncio', 'bottle', 'django', 'falcon', 'fastapi', 'flask', 'litestar', "
        "'pyramid', 'quart', 'starlette', 'retrymw.asgi', 'retrymw.wsgi'} & sys.modules.keys())"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []
