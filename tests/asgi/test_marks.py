"""Marks are found on the endpoint that was routed to, without calling it (G3)."""

import functools

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, Router
from tenacity import wait_fixed

from retrymw import current_attempt, idempotent, never_replay, rollback_safe
from retrymw.asgi import RetryMiddleware

from .helpers import Client, Flaky, answer, lost, policy, request

pytestmark = pytest.mark.anyio


def fails_once():
    """Raises in attempt 1."""
    if not current_attempt().is_replay:
        raise lost()


async def unmarked(request):
    fails_once()
    return PlainTextResponse("ok")


@rollback_safe
async def safe(request):
    fails_once()
    return PlainTextResponse("ok")


@idempotent
def sync(request):
    fails_once()
    return PlainTextResponse("ok")


@never_replay
async def never(request):
    fails_once()
    return PlainTextResponse("ok")


def decorated(endpoint):
    @functools.wraps(endpoint)
    async def wrapper(*args, **kwargs):
        return await endpoint(*args, **kwargs)

    return wrapper


class ByMethod(HTTPEndpoint):
    @rollback_safe
    async def post(self, request):
        fails_once()
        return PlainTextResponse("ok")

    async def patch(self, request):
        fails_once()
        return PlainTextResponse("ok")

    @never_replay
    async def get(self, request):
        fails_once()
        return PlainTextResponse("ok")


@rollback_safe
class Whole(HTTPEndpoint):
    async def post(self, request):
        fails_once()
        return PlainTextResponse("ok")

    @never_replay
    async def patch(self, request):
        fails_once()
        return PlainTextResponse("ok")


class Passing:
    """A middleware inside."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        await self.app(dict(scope) if scope.get("copy") else scope, receive, send)


ROUTES = [
    Route("/unmarked", unmarked, methods=["GET", "POST", "PUT"]),
    Route("/safe", safe, methods=["POST"]),
    Route("/sync", sync, methods=["POST"]),
    Route("/never", never, methods=["GET", "POST"]),
    Route("/decorated", decorated(safe), methods=["POST"]),
    Route("/partial", functools.partial(safe), methods=["POST"]),
    Route("/by-method", ByMethod),
    Route("/whole", Whole),
]
STARLETTE = Starlette(
    routes=[
        *ROUTES,
        Mount("/mounted", routes=ROUTES),
        Mount("/deep", routes=[Mount("/er", app=Starlette(routes=ROUTES))]),
        Mount("/router", app=Router(ROUTES)),
        Mount("/inside", routes=ROUTES, middleware=[Middleware(Passing)]),
    ],
    middleware=[Middleware(Passing)],
)
OUTCOMES = [
    ("GET", "/unmarked", True),
    ("PUT", "/unmarked", True),
    ("POST", "/unmarked", False),
    ("POST", "/safe", True),
    ("POST", "/sync", True),
    ("GET", "/never", False),
    ("POST", "/never", False),
    ("POST", "/decorated", True),
    ("POST", "/partial", True),
    ("POST", "/by-method", True),
    ("PATCH", "/by-method", False),
    ("GET", "/by-method", False),
    ("HEAD", "/by-method", False),
    ("POST", "/whole", True),
    ("PATCH", "/whole", False),
]


async def check(app, method, path, replayed, **settings):
    client = await request(app, Client(method, path), **settings)
    assert len(client.runs) == (2 if replayed else 1)
    assert client.status == (200 if replayed else 503)
    if not replayed:
        assert client.header("retry-outcome") == "not-replayable"


@pytest.mark.parametrize(("method", "path", "replayed"), OUTCOMES)
async def test_starlette(method, path, replayed):
    """G3: functions, classes and their methods are found on routes, however deep the mounts."""
    for prefix in ("", "/mounted", "/deep/er", "/router", "/inside"):
        await check(STARLETTE, method, prefix + path, replayed)


@pytest.mark.parametrize(("method", "path", "replayed"), OUTCOMES[3:7])
async def test_starlette_installed_inside(method, path, replayed):
    """G3: the same when the middleware is one of the app's own."""
    app = Starlette(routes=ROUTES, middleware=[Middleware(RetryMiddleware, policy=policy())])
    client = Client(method, path)
    await client.call(app)
    assert client.status == (200 if replayed else 503)


async def test_base_http_middleware_inside():
    """G3: also behind Starlette's BaseHTTPMiddleware, and the replay runs all of it again."""
    ran = []

    async def dispatch(request, call_next):
        ran.append(request.url.path)
        return await call_next(request)

    app = Starlette(routes=ROUTES, middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)])
    await check(app, "POST", "/safe", True)
    await check(app, "POST", "/unmarked", False)
    assert ran == ["/safe", "/safe", "/unmarked"]


def fastapi():
    app, router, nested = FastAPI(), APIRouter(), APIRouter()

    for where in (app, router, nested):

        @where.post("/unmarked")
        async def unmarked() -> str:
            fails_once()
            return "ok"

        @where.post("/safe")
        @rollback_safe
        async def safe() -> str:
            fails_once()
            return "ok"

        @where.post("/sync")
        @idempotent
        def sync() -> str:
            fails_once()
            return "ok"

        @where.get("/never")
        @never_replay
        async def never() -> str:
            fails_once()
            return "ok"

        @where.post("/decorated")
        @decorated
        @rollback_safe
        async def also_decorated() -> str:
            fails_once()
            return "ok"

    router.include_router(nested, prefix="/nested")
    app.include_router(router, prefix="/router")
    sub = FastAPI()
    sub.include_router(nested)
    app.mount("/sub", sub)
    return app


@pytest.mark.parametrize(
    ("method", "path", "replayed"),
    [
        ("POST", "/unmarked", False),
        ("POST", "/safe", True),
        ("POST", "/sync", True),
        ("GET", "/never", False),
        ("POST", "/decorated", True),
    ],
)
async def test_fastapi(method, path, replayed):
    """G3: FastAPI's routes, included routers and mounted apps, as their decorators order them."""
    app = fastapi()
    for prefix in ("", "/router", "/router/nested", "/sub"):
        await check(app, method, prefix + path, replayed)


async def test_mark_of_a_dependencys_failure():
    """G3: a failure before the endpoint, in a dependency say, is judged by the endpoint's mark."""
    app = FastAPI()

    def dependency():
        fails_once()

    @app.post("/", dependencies=[Depends(dependency)])
    @rollback_safe
    async def endpoint() -> str:
        return "ok"

    await check(app, "POST", "/", True)


async def test_no_route_has_no_mark():
    """G3: without a route the method decides."""

    async def not_found(scope, receive, send):
        fails_once()
        await answer(send, status=404)

    client = await request(not_found, Client("GET"))
    assert client.status == 404
    client = await request(not_found, Client("POST"))
    assert client.header("retry-outcome") == "not-replayable"


async def test_route_without_an_endpoint_key():
    """G3: some routers set only the route."""

    class FakeRoute:
        endpoint = safe

    async def app(scope, receive, send):
        scope["route"] = FakeRoute()
        fails_once()
        await answer(send)

    assert (await request(app, Client("POST"))).status == 200


async def test_own_way_to_find_the_endpoint():
    """G3: an integration may know better where the endpoint is."""

    async def app(scope, receive, send):
        scope["my.endpoint"] = safe
        fails_once()
        await answer(send)

    client = await request(
        app, Client("POST"), find_endpoint=lambda scope: scope.get("my.endpoint")
    )
    assert client.status == 200


@pytest.mark.parametrize("failures", [0, 1])
async def test_finding_the_endpoint_may_fail(failures, caplog):
    """G7: an error in an integration's own code is logged, and hides neither answer nor failure."""

    async def app(scope, receive, send):
        if current_attempt().number <= failures:
            raise lost()
        await answer(send)

    def find(scope):
        return scope["my.endpoint"]

    client = await request(app, find_endpoint=find)
    assert client.status == 200
    assert len(client.runs) == failures + 1
    client = await request(Flaky(lost()), Client("POST"), find_endpoint=find)
    assert client.header("retry-outcome") == "not-replayable"


# Overrides.


def marked(mark, *failures):
    """An app that fails, behind a mark."""
    flaky = Flaky(*failures)

    @mark
    async def endpoint(scope, receive, send):
        await flaky(scope, receive, send)

    async def app(scope, receive, send):
        scope["endpoint"] = endpoint
        await endpoint(scope, receive, send)

    return app


async def test_override_of_max_replays():
    """G2: a mark may allow fewer replays, or more, than the policy."""
    client = await request(marked(idempotent(max_replays=1), *[lost()] * 9), Client("POST"))
    assert len(client.runs) == 2
    client = await request(marked(idempotent(max_replays=7), *[lost()] * 9), Client("POST"))
    assert len(client.runs) == 8


async def test_override_of_the_deadline():
    """G2: a mark may shorten the deadline."""
    app = marked(rollback_safe(deadline=0.5, wait=wait_fixed(1)), lost())
    client = await request(app, Client("POST"))
    assert len(client.runs) == 1
    assert client.header("retry-outcome") == "deadline"


async def test_override_of_the_wait():
    """A mark may change the wait."""
    reports = []
    app = marked(idempotent(wait=wait_fixed(0.003)), lost())
    await request(app, Client("POST"), hooks=[reports.append])
    assert reports[0].next_in == 0.003


async def test_override_of_the_kinds():
    """A mark may change what is handled."""
    app = marked(idempotent(kinds={"conflict"}), lost())
    with pytest.raises(Exception, match="went away"):
        await request(app, Client("POST"))


async def test_mark_is_read_again_in_every_attempt():
    """G3: attempt 2 may be routed elsewhere than attempt 1, and is judged by where it ran."""

    @never_replay
    async def other(scope, receive, send):
        raise lost()

    async def app(scope, receive, send):
        assert "endpoint" not in scope
        scope["endpoint"] = other if current_attempt().is_replay else safe
        raise lost()

    client = await request(app, Client("GET"))
    assert len(client.runs) == 2
    assert client.header("retry-outcome") == "not-replayable"
