"""FastAPI in every shape: each with the middleware inside the app, and outside around it."""

import functools
from collections.abc import AsyncIterable
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated

import anyio
import fastapi
import pymysql
import pytest
import sqlalchemy
import tenacity
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    HTTPException,
    Request,
    Response,
    UploadFile,
    WebSocket,
)
from fastapi.exceptions import FastAPIError, RequestValidationError, ResponseValidationError
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Host, Mount, Route

import retrymw.adapters.pymysql
import retrymw.adapters.sqlalchemy
from retrymw import DisconnectionError, current_attempt, idempotent, rollback_safe
from retrymw.asgi import RetryMiddleware

from .asgi_helpers import (
    FINE,
    RECOVERED,
    REFUSED,
    AppError,
    Flaky,
    Peer,
    chunks,
    installed,
    lifespan,
    policy,
    send,
    talk,
    things,
    told,
)

pytestmark = [
    pytest.mark.anyio,
    # On trio, BaseHTTPMiddleware of older versions leaves this generator of its own unfinished.
    pytest.mark.filterwarnings("ignore:Async generator 'starlette.requests.Request.stream'"),
]

MARKS = {"rollback_safe": (rollback_safe, RECOVERED), "unmarked": (lambda e: e, REFUSED)}
BOTH_MARKS = pytest.mark.parametrize("mark", MARKS)
VERSION = tuple(int(part) for part in fastapi.__version__.split(".")[:2])


def since(*version):
    """For what older versions of FastAPI that we support do not do."""
    return pytest.mark.skipif(version > VERSION, reason=f"not before FastAPI {version}")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Both event loops, for every test here that does not say otherwise."""
    return request.param


@pytest.fixture(params=["inside", "outside"])
def place(request):
    """Where the middleware is: one of the app's own, or around it."""
    return request.param


def answering(flaky, *, sync=False):
    """An endpoint that uses the database once."""

    def answer():
        flaky()
        return "ok"

    async def answer_async():
        return answer()

    return answer if sync else answer_async


# Endpoints.


class Item(BaseModel):
    name: str
    price: int = 1


class Timed(APIRoute):
    """FastAPI's own example of a custom route: it wraps the handler."""

    def get_route_handler(self):
        handler = super().get_route_handler()

        async def timed(request):
            response = await handler(request)
            response.headers["x-timed"] = "1"
            return response

        return timed


def on_the_app(app, flaky, mark):
    app.post("/x")(mark(answering(flaky)))


def in_a_thread(app, flaky, mark):
    app.post("/x")(mark(answering(flaky, sync=True)))


def on_a_router(app, flaky, mark):
    router = APIRouter(prefix="/x")
    router.post("")(mark(answering(flaky)))
    app.include_router(router)


def on_a_router_in_a_router(app, flaky, mark):
    inner, outer = APIRouter(), APIRouter(prefix="/outer")
    inner.post("/x")(mark(answering(flaky, sync=True)))
    outer.include_router(inner, prefix="/inner")
    app.include_router(outer, prefix="/v1")
    return "/v1/outer/inner/x"


def by_add_api_route(app, flaky, mark):
    app.add_api_route("/x", mark(answering(flaky)), methods=["POST", "GET"])


def bound_method(app, flaky, mark):
    class Shop:
        @mark
        def order(self, count: Annotated[int, Body(embed=True)] = 1):
            flaky()
            return "ok"

    app.post("/x")(Shop().order)


def instance(app, flaky, mark):
    class Order:
        @mark
        def __call__(self, count: int = 1):
            flaky()
            return "ok"

    app.post("/x")(Order())


def partial(app, flaky, mark):
    @mark
    async def order(text: str, count: int = 1):
        flaky()
        return text

    app.post("/x")(functools.partial(order, "ok"))


def decorated(app, flaky, mark):
    endpoint = mark(answering(flaky))

    @functools.wraps(endpoint)
    async def wrapper(*args, **kwargs):
        return await endpoint(*args, **kwargs)

    app.post("/x")(wrapper)


def custom_route(app, flaky, mark):
    router = APIRouter(route_class=Timed)
    router.post("/x")(mark(answering(flaky)))
    app.include_router(router)


def response_model(app, flaky, mark):
    @app.post("/x", response_model=list[Item], status_code=201)
    @mark
    def order():
        flaky()
        return [{"name": "teapot", "secret": 1}]


def with_an_item(app, flaky, mark):
    @app.post("/x")
    @mark
    async def order(item: Item | None = None, accept: Annotated[str, Header()] = "") -> str:
        flaky()
        return "ok"


def mounted(app, flaky, mark):
    inner = FastAPI()
    on_the_app(inner, flaky, mark)
    app.mount("/inner", inner)
    return "/inner/x"


def mounted_twice(app, flaky, mark):
    middle = FastAPI(middleware=[OWN])
    url = mounted(middle, flaky, mark)
    app.mount("/middle", middle)
    return f"/middle{url}"


def mounted_with_routers(app, flaky, mark):
    inner = FastAPI()
    url = on_a_router_in_a_router(inner, flaky, mark)
    app.mount("/inner", inner)
    return f"/inner{url}"


def mounted_on_a_router(app, flaky, mark):
    inner, router = FastAPI(), APIRouter()
    on_the_app(inner, flaky, mark)
    router.mount("/inner", inner)
    app.include_router(router)
    return "/inner/x"


def starlette_below(app, flaky, mark):
    @mark
    async def order(request):
        flaky()
        return PlainTextResponse("ok")

    app.mount("/old", Starlette(routes=[Route("/x", order, methods=["POST"])]))
    return "/old/x"


def on_a_host(app, flaky, mark):
    inner = FastAPI()
    on_the_app(inner, flaky, mark)
    app.router.routes.append(Host("shop.test", app=inner))


OWN = Middleware(RetryMiddleware, policy=policy())
SHAPES = {
    build.__name__: build
    for build in (
        on_the_app,
        in_a_thread,
        on_a_router,
        on_a_router_in_a_router,
        by_add_api_route,
        bound_method,
        instance,
        partial,
        decorated,
        custom_route,
        response_model,
        with_an_item,
        mounted,
        mounted_twice,
        mounted_with_routers,
        mounted_on_a_router,
        starlette_below,
        on_a_host,
    )
}

SHAPES_HERE = [
    pytest.param(name, marks=since(0, 137)) if name == "mounted_on_a_router" else name
    for name in SHAPES
]


@BOTH_MARKS
@pytest.mark.parametrize("shape", SHAPES_HERE)
async def test_shapes(place, shape, mark):
    """G3: the mark is found on every kind of endpoint, wherever it is, and is needed for a POST."""
    app, flaky = FastAPI(), Flaky()
    mark, expected = MARKS[mark]
    url = SHAPES[shape](app, flaky, mark) or "/x"
    response = await send(installed(app, place), "POST", url)
    assert told(response)[1:] == expected[1:]
    assert flaky.calls == int(expected[2])
    if expected is RECOVERED:
        body = [{"name": "teapot", "price": 1}] if shape == "response_model" else "ok"
        assert (response.text if shape == "starlette_below" else response.json()) == body
        assert response.status_code == (201 if shape == "response_model" else 200)
        assert ("x-timed" in response.headers) is (shape == "custom_route")


@pytest.mark.parametrize("shape", [shape for shape in SHAPES_HERE if "mounted" in str(shape)])
async def test_only_the_mounted_app_has_the_middleware(shape):
    """G1: a replay within a sub-app is routed as the first attempt was."""
    app, inner, flaky, seen = FastAPI(), FastAPI(), Flaky(2), []
    url = SHAPES[shape](inner, flaky, rollback_safe)

    class Looks:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            seen.append((scope["root_path"], scope["path"], "route" in scope))
            await self.app(scope, receive, send)

    inner.add_middleware(Looks)
    app.mount("/only", installed(inner, "inside"))
    response = await send(app, "POST", f"/only{url}")
    assert told(response) == (200, "recovered", "3")
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


async def test_own_pages(place):
    """G5: the pages that FastAPI makes are what they are without us."""
    pages = []
    for install in (lambda app: app, functools.partial(installed, place=place)):
        app = FastAPI()
        on_a_router_in_a_router(app, Flaky(), rollback_safe)
        with_an_item(app, Flaky(), idempotent)
        app = install(app)
        responses = [await send(app, url=url) for url in ("/docs", "/redoc", "/openapi.json")]
        assert [told(response) for response in responses] == [FINE] * 3
        pages.append([response.content for response in responses])
    assert pages[0] == pages[1]


# Dependencies.


def at_the_app(depends, mark):
    app = FastAPI(dependencies=[depends])
    app.post("/x")(mark(answering(Flaky(0))))
    return app


def at_the_router(depends, mark):
    app, router = FastAPI(), APIRouter(dependencies=[depends])
    router.post("/x")(mark(answering(Flaky(0))))
    app.include_router(router)
    return app


def at_the_inclusion(depends, mark):
    app, router = FastAPI(), APIRouter()
    router.post("/x")(mark(answering(Flaky(0))))
    app.include_router(router, dependencies=[depends])
    return app


def at_the_route(depends, mark):
    app = FastAPI()
    app.post("/x", dependencies=[depends])(mark(answering(Flaky(0))))
    return app


def at_a_parameter(depends, mark):
    app = FastAPI()

    @app.post("/x")
    @mark
    def endpoint(value: Annotated[object, depends]):
        return "ok"

    return app


def below_another(depends, mark):
    def outer(value: Annotated[object, depends]):
        return value

    return at_a_parameter(Depends(outer), mark)


LEVELS = {
    build.__name__: build
    for build in (
        at_the_app,
        at_the_router,
        at_the_inclusion,
        at_the_route,
        at_a_parameter,
        below_another,
    )
}


def function(flaky):
    def dependency():
        assert current_attempt().number == flaky.calls + 1
        return flaky()

    return dependency


def coroutine_function(flaky):
    async def dependency():
        return flaky()

    return dependency


def generator(flaky):
    def dependency():
        yield flaky()

    return dependency


def async_generator(flaky):
    async def dependency():
        yield flaky()

    return dependency


def callable_instance(flaky):
    class Dependency:
        def __call__(self):
            return flaky()

    return Dependency()


def class_itself(flaky):
    class Dependency:
        def __init__(self):
            flaky()

    return Dependency


KINDS = {
    make.__name__: make
    for make in (
        function,
        coroutine_function,
        generator,
        async_generator,
        callable_instance,
        class_itself,
    )
}


@BOTH_MARKS
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
async def test_dependency_that_fails(place, kind, level, mark):
    """G3: a failure in a dependency of any kind is judged by the mark of the endpoint."""
    flaky = Flaky()
    mark, expected = MARKS[mark]
    app = installed(LEVELS[level](Depends(KINDS[kind](flaky)), mark), place)
    assert told(await send(app, "POST", "/x")) == expected
    assert flaky.calls == int(expected[2])


async def test_dependency_overrides(place):
    """An overridden dependency fails and is replayed as the one that it stands for."""
    flaky = Flaky()

    def real():
        raise NotImplementedError

    app = at_a_parameter(Depends(real), rollback_safe)
    app.dependency_overrides[real] = flaky.__call__
    assert told(await send(installed(app, place), "POST", "/x")) == RECOVERED
    assert flaky.calls == 2


async def test_cached_dependencies(place):
    """G1: what a dependency returned in a failed attempt is not used in the next one."""
    flaky, app, made = Flaky(), FastAPI(), []

    def value():
        made.append(object())
        return made[-1]

    def other(value: Annotated[object, Depends(value)]):
        return value

    @app.get("/")
    def endpoint(a: Annotated[object, Depends(value)], b: Annotated[object, Depends(other)]):
        assert a is b is made[-1]
        flaky()

    assert told(await send(installed(app, place))) == RECOVERED
    assert len(made) == 2


async def test_dependency_that_refuses(place):
    """G5: what a dependency answers instead of the endpoint is an answer."""
    flaky = Flaky()
    app = at_the_app(Depends(HTTPBasic()), rollback_safe)
    app.get("/")(answering(flaky))
    response = await send(installed(app, place))
    assert told(response) == (401, None, None)
    assert flaky.calls == 0


# Dependencies that yield.

FUNCTION = pytest.param("function", marks=since(0, 121))


def unit_of_work(events, fail, *, sync=False, **depends):
    """An app whose session commits when its dependency ends."""
    app = FastAPI()

    def session():
        attempt = current_attempt(None)
        events.append("open")
        try:
            yield attempt.number if attempt else 0
            events.append("commit")
            fail()
        except DisconnectionError:
            events.append("rollback")
            raise
        finally:
            events.append("close")

    async def session_async():
        events.append("open")
        try:
            attempt = current_attempt(None)
            yield attempt.number if attempt else 0
            events.append("commit")
            fail()
        except DisconnectionError:
            events.append("rollback")
            raise
        finally:
            events.append("close")

    async def work():
        events.append("background")

    number = Depends(session if sync else session_async, **depends)

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks, number: int = number):
        events.append("endpoint")
        tasks.add_task(work)
        return number

    return app


def recorded(app, events):
    """The app, with what it sends among the events."""

    async def outer(scope, receive, send):
        async def recording(message):
            events.append(message["type"].removeprefix("http.response."))
            await send(message)

        await app(scope, receive, recording)

    return outer


BOTH_WAYS = pytest.mark.parametrize("sync", [False, True])


@since(0, 118)
@BOTH_WAYS
async def test_order_of_a_yield_dependency(sync):
    """The trap itself: FastAPI commits after the response and its background tasks."""
    events = []
    await Peer().call(recorded(unit_of_work(events, Flaky(0), sync=sync), events))
    assert events == ["open", "endpoint", "start", "body", "background", "commit", "close"]


@since(0, 121)
@BOTH_WAYS
async def test_order_of_a_yield_dependency_of_the_function(sync):
    """The way out: with ``scope="function"`` FastAPI commits before the response."""
    events = []
    app = unit_of_work(events, Flaky(0), sync=sync, scope="function")
    await Peer().call(recorded(app, events))
    assert events == ["open", "endpoint", "commit", "close", "start", "body", "background"]


@since(0, 118)
@BOTH_WAYS
async def test_commit_that_fails_after_the_response(place, sync):
    """G2: by default the response has gone when the commit fails: the failure passes, sealed."""
    events, reports, peer = [], [], Peer()
    app = installed(unit_of_work(events, Flaky(), sync=sync), place, hooks=[reports.append])
    with pytest.raises(DisconnectionError):
        await peer.call(app)
    assert (told(peer.response), peer.complete) == (FINE, True)
    assert events == ["open", "endpoint", "background", "commit", "rollback", "close"]
    assert [report.outcome for report in reports] == ["sealed"]


@since(0, 118)
@BOTH_WAYS
async def test_commit_that_fails_with_until_return(place, sync):
    """G1: with ``hold="until-return"`` the response waits for the commit, and goes with it."""
    events = []
    app = recorded(unit_of_work(events, Flaky(), sync=sync), events)
    app = RetryMiddleware(app, policy=policy(hold="until-return"))
    response = await send(app)
    assert (told(response), response.json()) == (RECOVERED, 2)
    attempt = ["open", "endpoint", "start", "body", "background", "commit"]
    # Starlette's 500 is not even tried: the response had started.
    assert events == [*attempt, "rollback", "close", *attempt, "close"]


@since(0, 121)
@BOTH_WAYS
async def test_commit_that_fails_before_the_response(place, sync):
    """G1, G8: with ``scope="function"`` a commit that fails is replayed, all closed before."""
    events = []
    app = unit_of_work(events, Flaky(), sync=sync, scope="function")
    response = await send(installed(app, place))
    assert (told(response), response.json()) == (RECOVERED, 2)
    attempt = ["open", "endpoint", "commit"]
    assert events == [*attempt, "rollback", "close", *attempt, "close", "background"]


@pytest.mark.parametrize("scope", [None, FUNCTION])
@pytest.mark.parametrize("kind", ["generator", "async generator"])
async def test_endpoint_that_fails_below_a_yield_dependency(place, scope, kind):
    """G8: the dependency sees the failure, and has closed what it opened, before the replay."""
    events, flaky, app = [], Flaky(), FastAPI()

    def session():
        events.append("open")
        try:
            yield
        except DisconnectionError:
            events.append("rollback")
            raise
        finally:
            events.append("close")

    async def session_async():
        with contextmanager(session)():
            yield

    depends = Depends(
        session if kind == "generator" else session_async, **({"scope": scope} if scope else {})
    )

    @app.get("/", dependencies=[depends])
    def endpoint():
        flaky()

    assert told(await send(installed(app, place))) == RECOVERED
    assert events == ["open", "rollback", "close", "open", "close"]


@pytest.mark.parametrize("doomed", [False, True])
async def test_yield_dependency_that_swallows(place, doomed):
    """A dependency that swallows the failure squashes it, FastAPI complains: it takes a doom."""
    flaky, app = Flaky(), FastAPI()

    async def session():
        try:
            yield
        except DisconnectionError as exc:
            if doomed:
                current_attempt().doom(exc)

    @app.get("/", dependencies=[Depends(session)])
    async def endpoint():
        flaky()

    app = installed(app, place)
    if doomed:
        assert told(await send(app)) == RECOVERED
    else:
        with pytest.raises(FastAPIError):
            await send(app)
        assert flaky.calls == 1


@pytest.mark.parametrize("doomed", [False, True])
async def test_yield_dependency_that_answers(place, doomed):
    """G5: an HTTPException from a dependency's exit code is an answer, unless it was doomed."""
    flaky, app = Flaky(), FastAPI()

    def session():
        try:
            yield
        except DisconnectionError as exc:
            if doomed:
                current_attempt().doom(exc)
            raise HTTPException(503, "sorry") from exc

    @app.get("/", dependencies=[Depends(session)])
    async def endpoint():
        flaky()

    response = await send(installed(app, place))
    assert told(response) == (RECOVERED if doomed else (503, None, None))


# Errors.


@pytest.mark.parametrize(("status", "runs"), [(500, 2), (503, 2), (200, 1), (409, 1)])
@pytest.mark.parametrize("where", ["app", "mounted"])
async def test_handler_that_squashes(place, where, status, runs):
    """FastAPI's own handlers squash as Starlette's do."""
    flaky, app = Flaky(), FastAPI()

    @app.exception_handler(DisconnectionError)
    async def handler(request: Request, exc: DisconnectionError):
        current_attempt().doom(exc)
        return JSONResponse({"error": "database"}, status)

    app.get("/")(answering(flaky))
    if where == "mounted":
        outer = FastAPI()
        outer.mount("/", app)
        app = outer
    response = await send(installed(app, place))
    assert flaky.calls == runs
    assert response.status_code == (200 if runs == 2 else status)


@pytest.mark.parametrize("key", [Exception, 500])
async def test_handler_of_all_errors(place, key):
    """G1, G7: a handler for 500 hides nothing of ours, and answers what is not ours."""
    flaky, app = Flaky(), FastAPI()

    @app.exception_handler(key)
    def handler(request, exc):
        return PlainTextResponse(type(exc).__name__, 500)

    @app.get("/")
    def endpoint():
        flaky()
        raise AppError

    response = await send(installed(app, place), raises=False)
    assert (response.status_code, response.text) == (500, "AppError")
    assert flaky.calls == 2


@pytest.mark.parametrize("doomed", [False, True])
async def test_http_exception_instead(place, doomed):
    """``raise HTTPException`` squashes as well: it takes a doom to be replayed."""
    flaky, app = Flaky(), FastAPI()

    @app.get("/")
    def endpoint():
        try:
            flaky()
        except DisconnectionError as exc:
            if doomed:
                current_attempt().doom(exc)
            raise HTTPException(500, "sorry") from exc

    assert told(await send(installed(app, place))) == (RECOVERED if doomed else (500, None, None))


async def test_validation_errors(place):
    """G5: a 422 is an answer, and a response that is not valid is an error of the app's."""
    flaky, app = Flaky(), FastAPI()

    @app.exception_handler(RequestValidationError)
    def handler(request, exc):
        return PlainTextResponse("not valid", 422)

    @app.put("/")
    def endpoint(item: Item) -> Item:
        flaky()
        return {"price": "much"}

    app = installed(app, place)
    response = await send(app, "PUT", json={})
    assert (told(response), response.text) == ((422, None, None), "not valid")
    with pytest.raises(ResponseValidationError):
        await send(app, "PUT", json={"name": "teapot"})
    assert flaky.calls == 2


# The request.


@BOTH_WAYS
async def test_model(place, sync):
    """G5: a model is parsed from the same bytes in every attempt, sync endpoints included."""
    flaky, app = Flaky(2), FastAPI()

    def endpoint(item: Item) -> Item:
        assert current_attempt().number == flaky.calls + 1
        flaky()
        return item

    async def endpoint_async(item: Item) -> Item:
        return endpoint(item)

    app.put("/")(endpoint if sync else endpoint_async)
    headers = {"content-type": "application/json"}
    body = chunks(b'{"na', b'me": "teapot", ', b'"price": 3}')
    response = await send(installed(app, place), "PUT", headers=headers, content=body)
    assert told(response) == (200, "recovered", "3")
    assert response.json() == {"name": "teapot", "price": 3}


@BOTH_WAYS
@pytest.mark.parametrize("size", [10, 3 << 20])
async def test_form_and_files(place, sync, size):
    """G1: files are spooled anew in each attempt, and those of the failed one are closed."""
    flaky, app, files = Flaky(), FastAPI(), []

    Name, Upload = Annotated[str, Form()], Annotated[UploadFile, File()]

    def answer(name, file, content, small):
        files.append(file.file)
        flaky()
        return [name, file.filename, len(content), small.filename]

    @app.post("/sync")
    @rollback_safe
    def endpoint(
        name: Annotated[str, Form()], file: UploadFile, small: Annotated[UploadFile, File()]
    ):
        return answer(name, file, file.file.read(), small)

    @app.post("/async")
    @rollback_safe
    async def endpoint_async(name: Name, file: UploadFile, small: Upload):
        return answer(name, file, await file.read(), small)

    app = installed(app, place, policy=policy(body_memory=1 << 16))
    upload = {"file": ("big.bin", b"x" * size), "small": ("small.bin", b"small")}
    url = "/sync" if sync else "/async"
    response = await send(app, "POST", url, data={"name": "ada"}, files=upload)
    assert told(response) == RECOVERED
    assert response.json() == ["ada", "big.bin", size, "small.bin"]
    assert [file.closed for file in files] == [True, True]


async def test_state(place):
    """G1: request.state is as the lifespan left it in every attempt, dependencies included."""
    flaky, seen = Flaky(), []

    @asynccontextmanager
    async def life(app):
        yield {"pool": "open", "hits": 0}

    app = FastAPI(lifespan=life)

    def counted(request: Request):
        request.state.hits += 1
        request.state.user = "ada"
        return request.state.hits

    @app.get("/")
    def endpoint(request: Request, hits: Annotated[int, Depends(counted)]):
        seen.append((request.state.pool, hits))
        request.state.pool = "mine"
        flaky()

    app = installed(app, place)
    async with lifespan(app) as state:
        peer = Peer(state=state.copy())
        await peer.call(app)
        assert state == {"pool": "open", "hits": 0}
    assert told(peer.response) == RECOVERED
    assert seen == [("open", 1), ("open", 1)]


async def test_is_disconnected(place):
    """G5: asking whether the client has left takes nothing from the body, in any attempt."""
    flaky, app, seen = Flaky(), FastAPI(), []

    @app.put("/")
    async def endpoint(request: Request, item: Item):
        seen.append(await request.is_disconnected())
        flaky()
        return item

    response = await send(installed(app, place), "PUT", json={"name": "teapot"})
    assert (told(response), response.json()["name"]) == (RECOVERED, "teapot")
    assert seen == [False, False]


# The response.


async def test_response_parameter(place):
    """G1: headers, cookies and status that a failed attempt set on its response are gone."""
    flaky, app = Flaky(), FastAPI()

    @app.get("/")
    def endpoint(response: Response):
        number = current_attempt().number
        response.headers[f"x-attempt-{number}"] = "1"
        response.set_cookie("attempt", str(number))
        response.status_code = 200 + number
        flaky()

    response = await send(installed(app, place))
    assert told(response) == (202, "recovered", "2")
    assert "x-attempt-1" not in response.headers
    assert response.headers.get_list("set-cookie") == ["attempt=2; Path=/; SameSite=lax"]


@BOTH_WAYS
async def test_background_tasks(place, sync):
    """G5: the tasks of the attempt that was sent run, once, after the response."""
    flaky, app, peer, done = Flaky(), FastAPI(), Peer(), []

    def work(number):
        done.append((number, peer.complete))

    async def work_async(number):
        work(number)

    @app.get("/")
    def endpoint(tasks: BackgroundTasks):
        tasks.add_task(work if sync else work_async, current_attempt().number)
        flaky()

    await peer.call(installed(app, place))
    assert told(peer.response) == RECOVERED
    assert done == [(2, True)]


async def test_background_task_that_fails(place):
    """G2: a failure in a background task replays nothing and passes."""
    flaky, app, peer = Flaky(), FastAPI(), Peer()

    @app.get("/")
    def endpoint(tasks: BackgroundTasks):
        tasks.add_task(flaky)
        return "ok"

    with pytest.raises(DisconnectionError):
        await peer.call(installed(app, place))
    assert (told(peer.response), peer.content, flaky.calls) == (FINE, b'"ok"', 1)


async def test_background_task_that_fails_with_until_return(place):
    """With ``hold="until-return"`` a task that fails has all of the request replayed."""
    flaky, app = Flaky(), FastAPI()

    @app.get("/")
    def endpoint(tasks: BackgroundTasks):
        tasks.add_task(flaky)
        return "ok"

    assert told(await send(installed(app, place, policy=policy(hold="until-return")))) == RECOVERED
    assert flaky.calls == 2


@pytest.mark.parametrize("when", ["first", "later"])
async def test_streams(place, when):
    """G1, G2: a stream that fails before its first chunk is replayed, later it breaks off."""
    flaky, app, peer = Flaky(), FastAPI(), Peer()

    @app.get("/")
    def endpoint():
        def rows():
            if when == "later":
                yield "a"
            yield str(flaky())

        return StreamingResponse(rows())

    app = installed(app, place)
    if when == "first":
        await peer.call(app)
        assert (told(peer.response), peer.content) == (RECOVERED, b"2")
    else:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # it may be in a group
            await peer.call(app)
        assert type(getattr(caught.value, "exceptions", [caught.value])[0]) is DisconnectionError
        assert (peer.content, peer.complete) == (b"a", False)


@since(0, 118)
async def test_session_of_a_stream(place):
    """G1, G8: a yield dependency is open while its stream is made, and closed before a replay."""
    flaky, app, events = Flaky(), FastAPI(), []

    def session():
        events.append("open")
        yield flaky
        events.append("commit")

    @app.get("/")
    def endpoint(use: Annotated[Flaky, Depends(session)]):
        def rows():
            events.append("row")
            yield str(use())

        return StreamingResponse(rows())

    response = await send(installed(app, place))
    assert (told(response), response.text) == (RECOVERED, "2")
    assert events == ["open", "row", "open", "row", "commit"]


@since(0, 135)
@pytest.mark.parametrize("when", ["first", "later"])
async def test_endpoint_that_yields(place, when):
    """G1, G2: an endpoint that streams what it yields is replayed before the first item."""
    flaky, app, peer = Flaky(), FastAPI(), Peer()

    @app.get("/")
    async def endpoint() -> AsyncIterable[Item]:
        if when == "later":
            yield Item(name="saucer")
        yield Item(name="teapot", price=flaky())

    app = installed(app, place)
    if when == "first":
        await peer.call(app)
        assert (told(peer.response), peer.content) == (
            RECOVERED,
            b'{"name":"teapot","price":2}\n',
        )
    else:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # it is in a group
            await peer.call(app)
        assert "gone away" in repr(getattr(caught.value, "exceptions", caught.value))
        assert (peer.content, peer.complete) == (b'{"name":"saucer","price":1}\n', False)


@since(0, 135)
async def test_server_sent_events(place):
    """G5: the start of FastAPI's own event stream is with the client before there is an event."""
    from fastapi.sse import EventSourceResponse

    app, peer, happens = FastAPI(), Peer(), anyio.Event()

    @app.get("/", response_class=EventSourceResponse)
    async def endpoint() -> AsyncIterable[Item]:
        await happens.wait()
        yield Item(name="teapot")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.call, installed(app, place))
        await peer.sees("start")
        happens.set()
    assert b'data: {"name":"teapot","price":1}' in peer.content


@since(0, 135)
async def test_server_sent_events_after_a_dependency_that_fails(place):
    """G1: what fails in a dependency fails before the start of the stream, and is replayed."""
    from fastapi.sse import EventSourceResponse

    app, flaky = FastAPI(), Flaky()

    @app.get("/", response_class=EventSourceResponse, dependencies=[Depends(flaky.__call__)])
    async def endpoint() -> AsyncIterable[Item]:
        yield Item(name="teapot")

    response = await send(installed(app, place))
    assert told(response) == RECOVERED
    assert response.text.count("data:") == 1


# Middleware of the app's own.


@pytest.fixture(params=["above", "below"])
def order(request):
    """Where another middleware is, seen from ours."""
    return request.param


def stacked(app, order, add):
    """The app with ours, and with what `add(app)` adds above or below it."""
    if order == "below":
        add(app)
    app.add_middleware(RetryMiddleware, policy=policy())
    if order == "above":
        add(app)
    return app


@BOTH_MARKS
async def test_http_middleware(order, mark):
    """G3, G5: ``@app.middleware("http")`` works above and below, its reading of bodies included."""
    flaky, app, ran = Flaky(), FastAPI(), []
    mark, expected = MARKS[mark]

    def add(app):
        @app.middleware("http")
        async def dispatch(request: Request, call_next):
            ran.append(await request.body())
            request.state.user = "ada"
            response = await call_next(request)
            response.headers["x-ran"] = str(len(ran))
            return response

    @app.post("/")
    @mark
    def endpoint(request: Request, item: Item):
        assert request.state.user == "ada"
        flaky()
        return item

    response = await send(stacked(app, order, add), "POST", json={"name": "teapot"})
    assert told(response) == expected
    runs = flaky.calls if order == "below" else 1
    assert ran == [b'{"name":"teapot"}'] * runs
    # Below us it is a part of the attempt, and our 503 does not pass through it.
    shown = order == "above" or expected is RECOVERED
    assert response.headers.get("x-ran") == (str(runs) if shown else None)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_http_middleware_that_fails(place, when):
    """G1: a failure in ``@app.middleware("http")`` is one of the attempt."""
    flaky, app = Flaky(), FastAPI()

    @app.middleware("http")
    async def dispatch(request: Request, call_next):
        if when == "before":
            flaky()
        response = await call_next(request)
        if when == "after":
            flaky()
        return response

    app.get("/")(answering(Flaky(0)))
    response = await send(installed(app, place))
    assert (told(response), response.json()) == (RECOVERED, "ok")


async def test_gzip(order):
    """G1: a compressed response is that of the last attempt alone."""
    flaky, app = Flaky(), FastAPI()

    @app.get("/")
    def endpoint():
        flaky()
        return "ok" * 1000

    app = stacked(app, order, lambda app: app.add_middleware(GZipMiddleware))
    response = await send(app, headers={"accept-encoding": "gzip"})
    assert (told(response), response.json()) == (RECOVERED, "ok" * 1000)
    assert response.headers["content-encoding"] == "gzip"


@BOTH_MARKS
async def test_below_another_app(mark):
    """G3: a FastAPI app mounted in a Starlette app that has the middleware keeps its marks."""
    inner, flaky = FastAPI(), Flaky()
    mark, expected = MARKS[mark]
    on_a_router(inner, flaky, mark)
    app = Starlette(routes=[Mount("/api", app=inner)], middleware=[OWN])
    assert told(await send(app, "POST", "/api/x")) == expected


# Websockets.


async def test_websockets(place):
    """A websocket passes, with its dependencies; the app's other endpoints are replayed."""
    app, flaky = FastAPI(), Flaky()

    def session():
        assert current_attempt(None) is None
        yield "!"

    @app.websocket("/echo")
    async def echo(websocket: WebSocket, end: Annotated[str, Depends(session)]):
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text() + end)
        await websocket.close()

    @app.websocket("/failing")
    async def failing(websocket: WebSocket):
        await websocket.accept()
        flaky()

    app.get("/")(answering(Flaky()))
    app = installed(app, place)
    sent = await talk(app, "/echo", "a")
    kinds = [message["type"].removeprefix("websocket.") for message in sent]
    assert (kinds, sent[1]["text"]) == (["accept", "send", "close"], "a!")
    with pytest.raises(DisconnectionError):
        await talk(app, "/failing")
    assert flaky.calls == 1
    assert told(await send(app)) == RECOVERED


# On a real database.


@pytest.fixture
def stored(mariadb):
    """A table, and what is stored in it."""
    with things(mariadb) as names:
        yield names


@pytest.fixture
def open_database(mariadb, mariadb_proxy):
    """Make a database object of the PyMySQL adapter that connects through the proxy."""

    def make(**options):
        arguments = mariadb.connect_args(host=mariadb_proxy.host, port=mariadb_proxy.port)
        options = {"ssl_disabled": True, "read_timeout": 5} | options
        return retrymw.adapters.pymysql.Database(**arguments | options)

    return make


@pytest.fixture
async def engine(mariadb, mariadb_proxy, anyio_backend):
    """SQLAlchemy on aiomysql, through the proxy."""
    arguments = mariadb.connect_args(host=mariadb_proxy.host, port=mariadb_proxy.port)
    arguments["db"] = arguments.pop("database")
    engine = create_async_engine(
        "mysql+aiomysql://", connect_args=arguments, pool_size=2, max_overflow=0, pool_timeout=1
    )
    yield engine
    await engine.dispose()


SELECT = "SELECT COUNT(*) FROM things"
INSERT = "INSERT INTO things VALUES ('teapot')"
FAULTS = {
    "connect": lambda proxy: proxy.cut("reset", "connect"),
    "statement": lambda proxy: proxy.cut("reset", 2),
    "before the commit": lambda proxy: proxy.cut("fin", "before-commit"),
    "commit": lambda proxy: proxy.cut("reset", "commit"),
}
ALL_FAULTS = pytest.mark.parametrize("fault", FAULTS)
ORDERED = (201, "recovered", "2")
UNKNOWN = (503, "unknown", "1")


def expected_of(fault):
    """What the client is told, and what is stored."""
    if "commit" in fault:
        return UNKNOWN, [] if fault == "before the commit" else ["teapot"]
    return ORDERED, ["teapot"]


def with_session(database, mark=rollback_safe, statement=INSERT, **depends):
    """An app whose session is a yield dependency that commits."""
    app = FastAPI()

    def session():
        with database.connection() as connection:
            yield connection
            connection.commit()

    @app.post("/", status_code=201)
    @mark
    def order(connection: Annotated[pymysql.Connection, Depends(session, **depends)]):
        with connection.cursor() as cursor:
            cursor.execute(SELECT)
            cursor.execute(statement)
        return "ordered"

    return app


@ALL_FAULTS
async def test_order_from_a_worker_thread(place, fault, open_database, stored, mariadb_proxy):
    """G1, G4: however its connection breaks, an order is stored once, or reported as unknown."""
    database, app = open_database(), FastAPI()

    @app.post("/", status_code=201)
    @rollback_safe
    def order():
        with database.connection() as connection, connection.cursor() as cursor:
            cursor.execute(SELECT)
            cursor.execute(INSERT)
            connection.commit()

    FAULTS[fault](mariadb_proxy)
    response = await send(installed(app, place, databases=[database]), "POST")
    assert (told(response), stored()) == expected_of(fault)
    mariadb_proxy.wait_for_connections(0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@ALL_FAULTS
async def test_order_from_a_coroutine(place, fault, engine, stored, mariadb_proxy):
    """G1, G4: the same with a session of SQLAlchemy on aiomysql, given out by a dependency."""
    database, app = retrymw.adapters.sqlalchemy.AsyncDatabase(engine), FastAPI()

    async def session():
        async with database.session() as session:
            yield session

    @app.post("/", status_code=201)
    @rollback_safe
    async def order(session: Annotated[object, Depends(session)]):
        await session.execute(sqlalchemy.text(SELECT))
        await session.execute(sqlalchemy.text(INSERT))
        await session.commit()

    FAULTS[fault](mariadb_proxy)
    response = await send(installed(app, place, databases=[database]), "POST")
    assert (told(response), stored()) == expected_of(fault)
    assert engine.pool.checkedout() == 0


@since(0, 121)
@ALL_FAULTS
async def test_commit_of_the_function(place, fault, open_database, stored, mariadb_proxy):
    """G1, G4: a COMMIT in a ``scope="function"`` dependency is before the response, and counts."""
    database = open_database()
    FAULTS[fault](mariadb_proxy)
    app = installed(with_session(database, scope="function"), place, databases=[database])
    response = await send(app, "POST")
    assert (told(response), stored()) == expected_of(fault)


@ALL_FAULTS
async def test_commit_that_is_held(place, fault, open_database, stored, mariadb_proxy):
    """G1, G4: with ``hold="until-return"`` so does one in a dependency of the default scope."""
    database = open_database()
    FAULTS[fault](mariadb_proxy)
    rules = policy(hold="until-return")
    app = installed(with_session(database), place, databases=[database], policy=rules)
    response = await send(app, "POST")
    assert (told(response), stored()) == expected_of(fault)


@since(0, 118)
@pytest.mark.parametrize("fault", ["before the commit", "commit"])
async def test_commit_after_the_response(place, fault, open_database, stored, mariadb_proxy):
    """The trap itself: the client has its 201 before the COMMIT, and never hears of its loss."""
    database, peer, reports = open_database(), Peer(method="POST"), []
    FAULTS[fault](mariadb_proxy)
    app = installed(with_session(database), place, databases=[database], hooks=[reports.append])
    with pytest.raises(pymysql.OperationalError):
        await peer.call(app)
    assert peer.response.status_code == 201
    assert stored() == expected_of(fault)[1]
    assert [report.outcome for report in reports] == ["sealed"]


@since(0, 121)
async def test_commit_that_may_be_repeated(place, open_database, stored, mariadb_proxy):
    """G4: an idempotent endpoint is replayed after a lost COMMIT, and stores its row once."""
    database = open_database()
    mariadb_proxy.cut("reset", "commit")
    app = with_session(
        database, idempotent, "REPLACE INTO things VALUES ('teapot')", scope="function"
    )
    response = await send(installed(app, place, databases=[database]), "POST")
    assert (told(response), stored()) == (ORDERED, ["teapot"])


@ALL_FAULTS
async def test_commit_by_the_middleware(place, fault, open_database, stored, mariadb_proxy):
    """G1, G4: with ``commit="on-success"`` the COMMIT is before the response, in all versions."""
    database, app = open_database(commit="on-success"), FastAPI()

    def session():
        with database.connection() as connection:
            yield connection

    @app.post("/", status_code=201)
    @rollback_safe
    def order(connection: Annotated[pymysql.Connection, Depends(session)]):
        with connection.cursor() as cursor:
            cursor.execute(SELECT)
            cursor.execute(INSERT)
        return "ordered"

    FAULTS[fault](mariadb_proxy)
    response = await send(installed(app, place, databases=[database]), "POST")
    assert (told(response), stored()) == expected_of(fault)


async def test_http_exception_for_a_real_failure(place, open_database, stored, mariadb_proxy):
    """G1: an adapter has seen what the app makes an HTTPException of, and the order is replayed."""
    database, app = open_database(), FastAPI()

    @app.post("/", status_code=201)
    @rollback_safe
    def order():
        try:
            with database.connection() as connection, connection.cursor() as cursor:
                cursor.execute(SELECT)
                cursor.execute(INSERT)
                connection.commit()
        except pymysql.Error:
            raise HTTPException(500, "sorry") from None

    mariadb_proxy.cut("reset", 2)
    response = await send(installed(app, place, databases=[database]), "POST")
    assert (told(response), stored()) == expected_of("statement")


async def test_database_that_refuses(place, open_database, stored, mariadb_proxy):
    """G1, G10: while connections are refused a request waits; then its order is stored once."""
    database = open_database()
    mariadb_proxy.refuse_for(0.5)
    rules = policy(wait=tenacity.wait_fixed(0.2), hold="until-return")
    app = installed(with_session(database), place, databases=[database], policy=rules)
    response = await send(app, "POST")
    assert (response.status_code, response.headers["retry-outcome"]) == (201, "recovered")
    assert stored() == ["teapot"]
