"""Starlette in every shape: each with the middleware inside the app, and outside around it."""

import contextvars
import functools
import warnings
from contextlib import aclosing, asynccontextmanager
from functools import partial

import anyio
import anyio.from_thread
import anyio.lowlevel
import pymysql
import pytest
import sqlalchemy
import starlette
import tenacity
from flask import Flask
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    StreamingResponse,
)
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles

import retrymw.adapters.pymysql
import retrymw.adapters.sqlalchemy
from retrymw import (
    DisconnectionError,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.asgi import RetryMiddleware
from retrymw.integrations.flask import Retry

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

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette would have a2wsgi instead; it is still used
    from starlette.middleware.wsgi import WSGIMiddleware

pytestmark = [
    pytest.mark.anyio,
    # On trio, BaseHTTPMiddleware of older versions leaves this generator of its own unfinished.
    pytest.mark.filterwarnings("ignore:Async generator 'starlette.requests.Request.stream'"),
]

MARKS = {"rollback_safe": (rollback_safe, RECOVERED), "unmarked": (lambda e: e, REFUSED)}
BOTH_MARKS = pytest.mark.parametrize("mark", MARKS)
SPECS = pytest.mark.parametrize("spec", ["2.3", "2.4"])


def since(*version):
    """For what older versions of Starlette that we support do not do."""
    present = tuple(int(part) for part in starlette.__version__.split(".")[:2])
    return pytest.mark.skipif(present < version, reason=f"not before Starlette {version}")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Both event loops, for every test here that does not say otherwise."""
    return request.param


@pytest.fixture(params=["inside", "outside"])
def place(request):
    """Where the middleware is: one of the app's own, or around it."""
    return request.param


def one(endpoint, *methods, **settings):
    """An app with one endpoint, at ``/``."""
    return Starlette(routes=[Route("/", endpoint, methods=methods or ["GET"])], **settings)


def answering(flaky, *, sync=False):
    """An endpoint that uses the database once."""

    def answer(request):
        flaky()
        return PlainTextResponse("ok")

    async def answer_async(request):
        return answer(request)

    return answer if sync else answer_async


# Endpoints.


def by_method(flaky, mark):
    class Orders(HTTPEndpoint):
        @mark
        async def post(self, request):
            return await answering(flaky)(request)

        @never_replay
        async def get(self, request):
            raise NotImplementedError

    return Orders


def whole_class(flaky, mark):
    @mark
    class Orders(HTTPEndpoint):
        def post(self, request):
            return answering(flaky, sync=True)(request)

    return Orders


def instance(flaky, mark):
    class App:
        @mark
        async def __call__(self, scope, receive, send):
            flaky()
            await PlainTextResponse("ok")(scope, receive, send)

    return App()


def bound_method(flaky, mark):
    class Shop:
        @mark
        def order(self, request):
            return answering(flaky, sync=True)(request)

    return Shop().order


def with_arguments(flaky, mark):
    @mark
    async def order(request, *, text):
        flaky()
        return PlainTextResponse(text)

    return partial(partial(order), text="ok")


def decorated(flaky, mark):
    endpoint = mark(answering(flaky))

    @functools.wraps(endpoint)
    async def wrapper(request):
        return await endpoint(request)

    return wrapper


ENDPOINTS = {
    "coroutine function": lambda flaky, mark: mark(answering(flaky)),
    "function": lambda flaky, mark: mark(answering(flaky, sync=True)),
    "method of a class": by_method,
    "class": whole_class,
    "instance": instance,
    "bound method": bound_method,
    "partial": with_arguments,
    "decorated": decorated,
}


@BOTH_MARKS
@pytest.mark.parametrize("kind", ENDPOINTS)
async def test_endpoints(place, kind, mark):
    """G3: the mark of every kind of endpoint is found, and without one a POST is not replayed."""
    flaky = Flaky()
    mark, expected = MARKS[mark]
    endpoint = ENDPOINTS[kind](flaky, mark)
    # A class or an instance decides by itself on its methods.
    methods = None if kind in ("method of a class", "class", "instance") else ["POST"]
    app = Starlette(routes=[Route("/", endpoint, methods=methods)])
    response = await send(installed(app, place), "POST")
    assert told(response) == expected
    assert (response.text == "ok") is (expected is RECOVERED)
    assert flaky.calls == int(expected[2])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_another_method_of_the_class(place, method):
    """G3: the marks of a class are read by method, and HEAD is GET's."""
    flaky = Flaky()

    class Orders(HTTPEndpoint):
        @never_replay
        async def get(self, request):
            return await answering(flaky)(request)

        @rollback_safe
        async def post(self, request):
            raise NotImplementedError

    app = installed(Starlette(routes=[Route("/", Orders)]), place)
    assert told(await send(app, method)) == REFUSED


async def test_sync_endpoint_has_the_attempt(place):
    """An endpoint in a worker thread, and the threads it uses in turn, are in their attempt."""
    flaky, seen = Flaky(), []

    def endpoint(request):
        seen.append(current_attempt().number)
        anyio.from_thread.run(partial(run_in_threadpool, flaky))
        return PlainTextResponse("ok")

    assert told(await send(installed(one(endpoint), place))) == RECOVERED
    assert seen == [1, 2]


# Where an endpoint may be.


async def passing(request, call_next):
    """A dispatch function that does nothing."""
    return await call_next(request)


BASE = Middleware(BaseHTTPMiddleware, dispatch=passing)
OWN = Middleware(RetryMiddleware, policy=policy())
WHERE = {
    "route": ("/x", lambda route: route),
    "mount": ("/a/x", lambda route: Mount("/a", routes=[route])),
    "mount with a parameter": ("/7/x", lambda route: Mount("/{number:int}", routes=[route])),
    "mounted app": ("/a/x", lambda route: Mount("/a", app=Starlette(routes=[route]))),
    "mounted router": ("/a/x", lambda route: Mount("/a", app=Router([route]))),
    "mount in a mount": (
        "/a/b/c/x",
        lambda route: Mount(
            "/a",
            routes=[Mount("/b", app=Starlette(routes=[Mount("/c", app=Router([route]))]))],
        ),
    ),
    "host": ("/x", lambda route: Host("shop.test", app=Router([route]))),
    "host of a mounted app": (
        "/a/x",
        lambda route: Host("{name}.test", app=Starlette(routes=[Mount("/a", routes=[route])])),
    ),
    "mount with BaseHTTPMiddleware": (
        "/a/x",
        lambda route: Mount("/a", routes=[route], middleware=[BASE, BASE]),
    ),
    "route with BaseHTTPMiddleware": (
        "/x",
        lambda route: Route("/x", route.endpoint, methods=["POST"], middleware=[BASE]),
    ),
    "app with BaseHTTPMiddleware": (
        "/a/x",
        lambda route: Mount("/a", app=Starlette(routes=[route], middleware=[BASE])),
    ),
    "app with a middleware of ours": (
        "/a/x",
        lambda route: Mount("/a", app=Starlette(routes=[route], middleware=[OWN])),
    ),
    "app in a middleware of ours": (
        "/a/x",
        lambda route: Mount("/a", app=RetryMiddleware(Starlette(routes=[route]))),
    ),
    "route with a middleware of ours": (
        "/x",
        lambda route: Route("/x", route.endpoint, methods=["POST"], middleware=[OWN]),
    ),
}


@BOTH_MARKS
@pytest.mark.parametrize("where", WHERE)
async def test_marks_wherever_the_endpoint_is(place, where, mark):
    """G2, G3: an endpoint's mark is found however it is mounted, and a nested middleware passes."""
    flaky = Flaky()
    mark, expected = MARKS[mark]
    url, build = WHERE[where]
    route = build(Route("/x", mark(answering(flaky)), methods=["POST"]))
    app = Starlette(routes=[Route("/y", answering(Flaky(0))), route])
    assert told(await send(installed(app, place), "POST", url)) == expected
    assert flaky.calls == int(expected[2])


async def test_exhausted_below_a_nested_middleware(place):
    """G2: a middleware inside another one's attempt adds no replays of its own."""
    flaky = Flaky(99)
    inner = Starlette(routes=[Route("/x", answering(flaky))], middleware=[OWN])
    app = installed(Starlette(routes=[Mount("/a", app=inner)]), place)
    assert told(await send(app, url="/a/x")) == (503, "exhausted", "6")
    assert flaky.calls == 6


@BOTH_MARKS
@pytest.mark.parametrize("where", [where for where in WHERE if "of ours" in where])
async def test_only_the_mounted_app_has_the_middleware(where, mark):
    """G1: in a sub-app or on a route alone it does what it does at the top."""
    flaky = Flaky()
    mark, (_, outcome, _) = MARKS[mark]
    url, build = WHERE[where]
    app = Starlette(routes=[build(Route("/x", mark(answering(flaky)), methods=["POST"]))])
    assert told(await send(app, "POST", url))[1] == outcome


@BOTH_MARKS
async def test_router_without_an_app(mark):
    """A router is an app too."""
    mark, expected = MARKS[mark]
    app = RetryMiddleware(
        Router([Route("/", mark(answering(Flaky())), methods=["POST"])]), policy=policy()
    )
    assert told(await send(app, "POST")) == expected


@BOTH_MARKS
async def test_mounted_asgi_app(place, mark):
    """G3: a mounted app that is no Starlette is the endpoint, and its class may be marked."""
    mark, expected = MARKS[mark]
    endpoint = instance(Flaky(), mark)
    app = installed(Starlette(routes=[Mount("/a", app=endpoint)]), place)
    assert told(await send(app, "POST", "/a/x")) == expected


async def test_mounted_wsgi_app(place):
    """G1: a failure in a mounted WSGI app is replayed, its upload included."""
    flaky = Flaky()

    def wsgi(environ, start_response):
        body = environ["wsgi.input"].read()
        flaky()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body]

    app = installed(Starlette(routes=[Mount("/old", app=WSGIMiddleware(wsgi))]), place)
    response = await send(app, "PUT", "/old/", content=b"body")
    assert told(response) == RECOVERED
    assert response.content == b"body"


@BOTH_MARKS
async def test_mounted_flask_app(place, mark):
    """G2, G3: a mounted Flask app tells the outer middleware of failures and marks by Retry."""
    flaky = Flaky()
    mark, expected = MARKS[mark]
    flask = Flask("old")

    @flask.post("/x")
    @mark
    def order():
        flaky()
        return "ok"

    Retry(flask)
    app = installed(Starlette(routes=[Mount("/old", app=WSGIMiddleware(flask))]), place)
    assert told(await send(app, "POST", "/old/x")) == expected
    assert flaky.calls == int(expected[2])


async def test_static_files_beside(place, tmp_path):
    """G5: files, their ranges, their 304 and what is not there are served as without us."""
    (tmp_path / "a.txt").write_text("0123456789")
    app = installed(
        Starlette(routes=[Mount("/static", app=StaticFiles(directory=tmp_path))]), place
    )
    response = await send(app, url="/static/a.txt", headers={"range": "bytes=2-4"})
    assert (response.status_code, response.text) == (206, "234")
    tag = response.headers["etag"]
    response = await send(app, url="/static/a.txt", headers={"if-none-match": tag})
    assert (response.status_code, response.content) == (304, b"")
    assert told(await send(app, url="/static/b.txt")) == (404, None, None)


async def test_redirect_to_the_slash_reads_nothing(place):
    """G5: Starlette's redirect of a missing slash leaves the upload with the client."""
    app = Starlette(routes=[Route("/upload/", answering(Flaky()), methods=["PUT"])])
    peer = Peer(*[b"x"] * 9, method="PUT", path="/upload")
    await peer.call(installed(app, place))
    assert peer.response.status_code == 307
    assert len(peer.body) == 9


# Errors.


async def test_server_error_middleware_sends_and_raises():
    """The trap itself: without us a 500 comes first, and the exception after it."""
    peer = Peer()
    with pytest.raises(DisconnectionError):
        await peer.call(one(answering(Flaky())))
    assert peer.response.status_code == 500
    assert peer.complete


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("sync", [False, True])
async def test_server_error_is_dropped(place, debug, sync):
    """G1: the 500 that Starlette sends before it raises reaches nobody."""
    flaky = Flaky(2)
    app = installed(one(answering(flaky, sync=sync), debug=debug), place)
    response = await send(app)
    assert told(response) == (200, "recovered", "3")
    assert response.text == "ok"


async def test_refused(place):
    """G10: out of replays, the client gets the 503 instead of Starlette's 500."""
    flaky = Flaky(99)
    response = await send(installed(one(answering(flaky)), place))
    assert told(response) == (503, "exhausted", "6")
    assert response.headers["retry-after"]
    assert "went away" not in response.text


async def test_what_is_not_ours(place):
    """G5: Starlette's 500 of another error reaches the client, then the same error is raised."""
    error, peer = AppError(), Peer()

    async def endpoint(request):
        raise error

    with pytest.raises(AppError) as caught:
        await peer.call(installed(one(endpoint), place))
    assert caught.value is error
    assert (peer.response.status_code, peer.content) == (500, b"Internal Server Error")


@pytest.mark.parametrize("key", [Exception, 500])
async def test_handler_of_all_errors(place, key):
    """G1, G7: a handler for 500 hides nothing of ours, and is given what is not ours."""
    flaky, seen = Flaky(), []

    async def endpoint(request):
        flaky()
        raise AppError

    def handler(request, exc):
        seen.append(type(exc))
        return PlainTextResponse("handled", 500)

    app = installed(one(endpoint, exception_handlers={key: handler}), place)
    response = await send(app, raises=False)
    assert (response.status_code, response.text) == (500, "handled")
    assert flaky.calls == 2
    assert seen[-1] is AppError
    # From inside, the first failure never gets as far as to the handler.
    assert seen[:-1] == ([] if place == "inside" else [DisconnectionError])


@pytest.mark.parametrize(("status", "runs"), [(500, 2), (503, 2), (200, 1), (409, 1)])
@pytest.mark.parametrize("where", ["app", "mounted app"])
async def test_handler_that_squashes(place, where, status, runs):
    """A failure that was doomed and rendered is replayed, if it was rendered as a 5xx."""
    flaky = Flaky()

    def handler(request, exc):
        current_attempt().doom(exc)
        return JSONResponse({"error": "database"}, status)

    app = one(answering(flaky), exception_handlers={DisconnectionError: handler})
    if where == "mounted app":
        app = Starlette(routes=[Mount("/", app=app)])
    response = await send(installed(app, place))
    assert flaky.calls == runs
    assert response.status_code == (200 if runs == 2 else status)


async def test_handler_that_squashes_unseen(place):
    """G5: a failure that nobody reported and a handler rendered can't be told from an answer."""
    flaky = Flaky()

    def handler(request, exc):
        return PlainTextResponse("sorry", 500)

    app = one(answering(flaky), exception_handlers={DisconnectionError: handler})
    response = await send(installed(app, place))
    assert (told(response), response.text) == ((500, None, None), "sorry")
    assert flaky.calls == 1


@pytest.mark.parametrize("doomed", [False, True])
async def test_http_exception_instead(place, doomed):
    """``raise HTTPException`` squashes as well: it takes a doom to be replayed."""
    flaky = Flaky()

    async def endpoint(request):
        try:
            flaky()
        except DisconnectionError as exc:
            if doomed:
                current_attempt().doom(exc)
            raise HTTPException(500, "sorry") from exc
        return PlainTextResponse("ok")

    response = await send(installed(one(endpoint), place))
    assert told(response) == (RECOVERED if doomed else (500, None, None))


@SPECS
async def test_handled_exception_in_a_stream(place, spec):
    """G7: "Caught handled exception, but response already started" has our failure as its cause."""
    flaky = Flaky()

    async def endpoint(request):
        async def rows():
            yield str(flaky())

        return StreamingResponse(rows())

    def handler(request, exc):
        raise NotImplementedError

    app = one(endpoint, exception_handlers={DisconnectionError: handler})
    peer = Peer(asgi={"version": "3.0", "spec_version": spec})
    await peer.call(installed(app, place))
    assert told(peer.response) == RECOVERED
    assert peer.content == b"2"


async def test_server_error_middleware_around_another_app():
    """G1: any app behind ServerErrorMiddleware is replayed like Starlette's own."""

    async def inner(scope, receive, send):
        await answering(flaky)(None)
        await PlainTextResponse("ok")(scope, receive, send)

    flaky = Flaky()
    app = RetryMiddleware(ServerErrorMiddleware(inner), policy=policy())
    assert told(await send(app)) == RECOVERED


async def test_answers_that_are_errors(place):
    """G5: 404, 405 and an HTTPException are answers, sent as they are."""

    async def endpoint(request):
        raise HTTPException(503, "closed", {"retry-after": "60"})

    app = installed(one(endpoint), place)
    response = await send(app)
    assert (told(response), response.text) == ((503, None, None), "closed")
    assert response.headers["retry-after"] == "60"
    assert told(await send(app, "POST")) == (405, None, None)
    assert told(await send(app, url="/nowhere")) == (404, None, None)


# The request's body.


async def with_body(request):
    return await request.body()


async def with_stream(request):
    return b"".join([chunk async for chunk in request.stream()])


async def with_json(request):
    return (await request.json())["name"].encode()


READERS = {"body": with_body, "stream": with_stream, "json": with_json}


@pytest.mark.parametrize("how", READERS)
@pytest.mark.parametrize("first", ["reads", "fails"])
async def test_body(place, how, first):
    """G5: every attempt reads the client's bytes, whether the one before it had or not."""
    flaky = Flaky(2)

    async def endpoint(request):
        if first == "fails":
            flaky()
        body = await READERS[how](request)
        if first == "reads":
            flaky()
        return PlainTextResponse(body)

    content = [b'{"na', b'me": ', b'"ada"}']
    app = installed(one(endpoint, "PUT"), place)
    response = await send(app, "PUT", content=chunks(*content))
    assert told(response) == (200, "recovered", "3")
    assert response.content == (b"ada" if how == "json" else b"".join(content))


async def test_half_a_stream(place):
    """G1: an attempt that failed in mid-body leaves the whole body to the next one."""
    flaky = Flaky()

    async def endpoint(request):
        pieces = []
        async with aclosing(request.stream()) as stream:
            async for chunk in stream:
                pieces.append(chunk)
                if len(pieces) == 2:
                    flaky()
        return PlainTextResponse(b"".join(pieces))

    content = [bytes([letter]) * 1000 for letter in b"abcde"]
    app = installed(one(endpoint, "PUT"), place)
    response = await send(app, "PUT", content=chunks(*content))
    assert told(response) == RECOVERED
    assert response.content == b"".join(content)


@SPECS
async def test_upload_and_streaming_answer(place, spec):
    """G5: Starlette's listening for the client while it streams disturbs no replay's upload."""
    flaky = Flaky()

    async def endpoint(request):
        body = await request.body()

        async def pieces():
            flaky()
            yield body
            yield b"!"

        return StreamingResponse(pieces())

    peer = Peer(b"a", b"b", method="PUT", asgi={"version": "3.0", "spec_version": spec})
    await peer.call(installed(one(endpoint, "PUT"), place))
    assert (told(peer.response), peer.content) == (RECOVERED, b"ab!")


async def test_form(place):
    """G1: a form's files are spooled anew in each attempt, and those of the failed one closed."""
    flaky, files = Flaky(), []

    @idempotent
    async def endpoint(request):
        async with request.form() as form:
            files.append(form["file"])
            content = await form["file"].read()
            flaky()
            return JSONResponse([form["name"], form["file"].filename, len(content)])

    size = 3 << 20  # more than fits into memory: Starlette's goes to disk, and so does ours
    app = installed(one(endpoint, "POST"), place, policy=policy(body_memory=1 << 16))
    upload = {"file": ("big.bin", b"x" * size)}
    response = await send(app, "POST", data={"name": "ada"}, files=upload)
    assert told(response) == RECOVERED
    assert response.json() == ["ada", "big.bin", size]
    assert [file.file.closed for file in files] == [True, True]


async def test_is_disconnected(place):
    """G5: asking whether the client has left takes nothing from the body, in any attempt."""
    flaky, seen = Flaky(), []

    async def endpoint(request):
        body = await request.body()
        seen.append(await request.is_disconnected())
        flaky()
        seen.append(await request.is_disconnected())
        return PlainTextResponse(body)

    app = installed(one(endpoint, "PUT"), place)
    response = await send(app, "PUT", content=chunks(b"a", b"b"))
    assert (told(response), response.content) == (RECOVERED, b"ab")
    assert seen == [False, False, False]


async def test_client_that_is_disconnected(place):
    """G6: an endpoint hears that its client has left, and is not replayed for nobody."""
    peer, calls = Peer(), []

    async def endpoint(request):
        await request.body()
        calls.append(await request.is_disconnected())
        peer.leave()
        calls.append(await request.is_disconnected())
        raise DisconnectionError("the server has gone away")

    await peer.call(installed(one(endpoint), place))
    assert calls == [False, True]
    # Starlette's own 500 may have been held; nobody gets it.
    assert peer.messages == []


# The scope.


async def test_scope_is_as_it_was(place):
    """G1: routing, request.state and what middleware inside put there are gone in attempt 2."""
    seen, flaky = [], Flaky()

    async def endpoint(request):
        seen.append((request.path_params, dict(request.state._state), "mine" in request.scope))
        request.state.user = "ada"
        request.scope["mine"] = 1
        flaky()
        return PlainTextResponse(request.url_for("item", name="x").path)

    app = Starlette(
        routes=[Mount("/a", routes=[Route("/{name}", endpoint, name="item")], name="m")]
    )
    app.routes[0].name = None
    peer = Peer(path="/a/b", raw_path=b"/a/b")
    await peer.call(installed(app, place))
    assert seen == [({"name": "b"}, {}, False)] * 2
    assert peer.content == b"/a/x"
    assert peer.scope["path_params"] == {"name": "b"}  # the last attempt's can be read outside


async def test_lifespan_state(place):
    """G1, G5: the state of the lifespan is there in each attempt, as the first one found it."""
    flaky, seen = Flaky(), []

    @asynccontextmanager
    async def life(app):
        yield {"pool": "open", "hits": 0}
        seen.append("closed")

    async def endpoint(request):
        seen.append((request.state.pool, request.state.hits))
        request.state.hits += 1
        request.state.pool = "mine"
        flaky()
        return PlainTextResponse("ok")

    app = installed(one(endpoint, lifespan=life), place)
    async with lifespan(app) as state:
        peer = Peer(state=state.copy())
        await peer.call(app)
        assert told(peer.response) == RECOVERED
        assert state == {"pool": "open", "hits": 0}
    assert seen == [("open", 0), ("open", 0), "closed"]


# Responses.


@SPECS
@pytest.mark.parametrize("sync", [False, True])
async def test_first_chunk_of_a_stream(place, spec, sync):
    """G1: Starlette sends the start before a generator's first chunk, which may be what fails."""
    flaky = Flaky(2)

    def sync_rows():
        flaky()
        yield "a"
        yield "b"

    async def rows():
        for row in sync_rows():
            yield row

    async def endpoint(request):
        return StreamingResponse(sync_rows() if sync else rows(), headers={"x": str(flaky.calls)})

    peer = Peer(asgi={"version": "3.0", "spec_version": spec})
    await peer.call(installed(one(endpoint), place))
    assert told(peer.response) == (200, "recovered", "3")
    assert (peer.content, peer.response.headers["x"]) == (b"ab", "2")


@SPECS
async def test_later_chunk_of_a_stream(place, spec):
    """G2: a stream that breaks off later stays broken off; the exception is not swallowed."""
    calls, peer = [], Peer(asgi={"version": "3.0", "spec_version": spec})

    async def endpoint(request):
        calls.append(1)

        async def rows():
            yield "a"
            raise DisconnectionError("the server has gone away")

        return StreamingResponse(rows())

    with pytest.raises(Exception) as caught:  # noqa: PT011  # Starlette may put it into a group
        await peer.call(installed(one(endpoint), place))
    error = getattr(caught.value, "exceptions", [caught.value])[0]
    assert type(error) is DisconnectionError
    assert (peer.content, peer.complete) == (b"a", False)
    assert len(calls) == 1


@pytest.mark.parametrize("around", [None, "BaseHTTPMiddleware", "GZipMiddleware"])
async def test_stream_streams(place, around):
    """G5: each chunk of a stream is with the client before the next one is made."""
    peer, news = Peer(), {"a": anyio.Event(), "b": anyio.Event()}

    async def endpoint(request):
        async def rows():
            yield "a"
            await news["a"].wait()
            yield "b"

        return StreamingResponse(rows(), media_type="text/plain")

    app = one(endpoint)
    if around == "BaseHTTPMiddleware":
        app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    elif around == "GZipMiddleware":
        app.add_middleware(GZipMiddleware)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.call, installed(app, place))
        await peer.sees("body")
        assert not peer.complete
        news["a"].set()
    assert (peer.content, peer.complete) == (b"ab", True)


@pytest.mark.parametrize("around", [None, "BaseHTTPMiddleware", "GZipMiddleware"])
async def test_server_sent_events(place, around):
    """G5: the start of an event stream is with the client before there is an event."""
    peer, happens = Peer(), anyio.Event()

    async def endpoint(request):
        async def events():
            await happens.wait()
            yield "data: 1\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    app = one(endpoint)
    if around == "BaseHTTPMiddleware":
        app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    elif around == "GZipMiddleware":
        app.add_middleware(GZipMiddleware)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.call, installed(app, place))
        if around == "GZipMiddleware":
            happens.set()  # it holds the start itself, until the first event
        await peer.sees("start")
        happens.set()
    assert peer.content == b"data: 1\n\n"


async def test_events_that_fail(place):
    """G2: what comes before the start of an event stream is replayed, what comes after is not."""
    flaky, peer = Flaky(2), Peer()

    async def endpoint(request):
        if flaky.calls == 0:
            flaky()

        async def events():
            yield f"data: {flaky()}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    with pytest.raises(Exception) as caught:  # noqa: PT011  # Starlette may put it into a group
        await peer.call(installed(one(endpoint), place))
    assert type(getattr(caught.value, "exceptions", [caught.value])[0]) is DisconnectionError
    assert peer.kinds == ["start"]
    assert flaky.calls == 2


async def test_client_that_leaves_a_stream(place):
    """G6: Starlette hears of the leaving during a streaming answer, and ends it."""
    peer, ended = Peer(), []

    async def endpoint(request):
        async def rows():
            try:
                while True:
                    yield b"x"
                    peer.leave()
                    await anyio.lowlevel.checkpoint()
            finally:
                ended.append(True)

        return StreamingResponse(rows())

    await peer.call(installed(one(endpoint), place))
    assert not peer.complete


@pytest.mark.parametrize("pathsend", [False, pytest.param(True, marks=since(0, 47))])
async def test_file_response(place, pathsend, tmp_path):
    """G5: a file is sent as without us, by the server where it can."""
    path, flaky = tmp_path / "file", Flaky()
    path.write_bytes(b"x" * 200_000)

    async def endpoint(request):
        flaky()
        return FileResponse(path)

    peer = Peer(extensions={"http.response.pathsend": {}} if pathsend else {})
    await peer.call(installed(one(endpoint), place))
    if pathsend:
        assert peer.messages[-1] == {"type": "http.response.pathsend", "path": str(path)}
    else:
        assert peer.content == b"x" * 200_000


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("sync", [False, True])
async def test_background_task(place, status, sync):
    """G5: a background task runs once; a response below 500 has left by then."""
    flaky, peer, seen = Flaky(), Peer(), []

    def work():
        seen.append(peer.complete)

    async def work_async():
        work()

    async def endpoint(request):
        flaky()
        task = BackgroundTask(work if sync else work_async)
        return PlainTextResponse("ok", status, background=task)

    await peer.call(installed(one(endpoint), place))
    assert seen == [status < 500]
    assert peer.content == b"ok"


async def test_background_task_that_fails(place):
    """G2: a failure in a background task replays nothing and passes."""
    flaky, peer, reports = Flaky(), Peer(), []

    async def endpoint(request):
        return PlainTextResponse("ok", background=BackgroundTask(flaky))

    with pytest.raises(DisconnectionError):
        await peer.call(installed(one(endpoint), place, hooks=[reports.append]))
    assert peer.content == b"ok"
    assert flaky.calls == 1
    assert [report.outcome for report in reports] == ["sealed"]


# Other middleware, above and below.


MIDDLEWARE = {
    "GZip": (GZipMiddleware, {"minimum_size": 1}),
    "CORS": (CORSMiddleware, {"allow_origins": ["http://here"]}),
    "Session": (SessionMiddleware, {"secret_key": "not one"}),
    "TrustedHost": (TrustedHostMiddleware, {"allowed_hosts": ["shop.test"]}),
    "BaseHTTP": (BaseHTTPMiddleware, {"dispatch": passing}),
}


@pytest.fixture(params=["above", "below"])
def order(request):
    """Where another middleware is, seen from ours."""
    return request.param


def stacked(app, order, cls, **options):
    """The app with another middleware above or below ours."""
    if order == "below":
        app.add_middleware(cls, **options)
    app.add_middleware(RetryMiddleware, policy=policy())
    if order == "above":
        app.add_middleware(cls, **options)
    return app


@pytest.mark.parametrize("name", MIDDLEWARE)
async def test_starlettes_middleware(order, name):
    """G1, G5: Starlette's own middleware does its work once, whichever of the two is outermost."""
    flaky = Flaky()

    async def endpoint(request):
        body = await request.body()
        if name == "Session":
            request.session["user"] = "ada"
        flaky()
        return PlainTextResponse(body * 9)

    cls, options = MIDDLEWARE[name]
    app = stacked(one(idempotent(endpoint), "POST"), order, cls, **options)
    headers = {"origin": "http://here", "accept-encoding": "gzip"}
    response = await send(app, "POST", headers=headers, content=b"body")
    assert told(response) == RECOVERED
    assert response.text == "body" * 9
    assert response.headers.get("content-encoding") == ("gzip" if name == "GZip" else None)
    origins = response.headers.get_list("access-control-allow-origin")
    assert origins == (["http://here"] if name == "CORS" else [])
    assert len(response.headers.get_list("set-cookie")) == (name == "Session")


@pytest.mark.parametrize("name", MIDDLEWARE)
async def test_refusals_and_starlettes_middleware(order, name):
    """G10: the 503 passes through what is above as any other response."""
    cls, options = MIDDLEWARE[name]
    app = stacked(one(answering(Flaky()), "POST"), order, cls, **options)
    headers = {"origin": "http://here", "accept-encoding": "gzip", "accept": "application/json"}
    response = await send(app, "POST", headers=headers)
    assert told(response) == REFUSED
    assert response.json()["status"] == 503
    # Above it, CORS names the origin on our refusal too, or a browser would not show it.
    origin = response.headers.get("access-control-allow-origin")
    assert origin == ("http://here" if (name, order) == ("CORS", "above") else None)


async def test_session_of_a_failed_attempt(order):
    """G1: the session starts anew with the attempt if its middleware is inside, else it is kept."""
    flaky = Flaky()

    async def endpoint(request):
        request.session["visits"] = request.session.get("visits", 0) + 1
        flaky()
        return JSONResponse(request.session["visits"])

    app = stacked(one(endpoint), order, SessionMiddleware, secret_key="not one")
    assert (await send(app)).json() == (1 if order == "below" else 2)


async def test_answers_of_the_middleware_above():
    """G5: what a middleware answers by itself never comes to the app."""
    flaky = Flaky()
    app = stacked(
        one(answering(flaky)), "above", TrustedHostMiddleware, allowed_hosts=["other.test"]
    )
    assert told(await send(app)) == (400, None, None)
    assert flaky.calls == 0


# BaseHTTPMiddleware.


@BOTH_MARKS
async def test_base_http_middleware_and_marks(order, mark):
    """G3: the endpoint is found behind it; below us, all of it runs again with the replay."""
    flaky, ran = Flaky(), []
    mark, expected = MARKS[mark]

    async def dispatch(request, call_next):
        ran.append(request.url.path)
        return await call_next(request)

    app = one(mark(answering(flaky)), "POST")
    response = await send(stacked(app, order, BaseHTTPMiddleware, dispatch=dispatch), "POST")
    assert told(response) == expected
    assert len(ran) == (flaky.calls if order == "below" else 1)


@pytest.mark.parametrize("reads", ["body", "stream", "nothing"])
async def test_base_http_middleware_that_reads(order, reads):
    """G5: with the body read in dispatch, each attempt of the endpoint gets what it ever gets."""
    flaky, bodies = Flaky(), []

    async def dispatch(request, call_next):
        if reads != "nothing":
            bodies.append(await READERS[reads](request))
        return await call_next(request)

    async def endpoint(request):
        body = await request.body()
        flaky()
        return PlainTextResponse(body)

    app = stacked(one(endpoint, "PUT"), order, BaseHTTPMiddleware, dispatch=dispatch)
    response = await send(app, "PUT", content=chunks(b"a", b"b", b"c"))
    assert told(response) == RECOVERED
    # What was streamed in dispatch is gone for the endpoint: that is Starlette's own way.
    assert response.content == (b"" if reads == "stream" else b"abc")
    times = 0 if reads == "nothing" else flaky.calls if order == "below" else 1
    assert bodies == [b"abc"] * times


@pytest.mark.parametrize("wait", [tenacity.wait_none(), tenacity.wait_fixed(0.1)])
async def test_base_http_middleware_above_a_body_not_read(anyio_backend, wait):
    """G5: what comes of the body while we wait is kept for the attempt that reads it."""
    flaky = Flaky()

    async def endpoint(request):
        flaky()
        return PlainTextResponse(await request.body())

    app = one(endpoint, "PUT")
    app.add_middleware(RetryMiddleware, policy=policy(wait=wait))
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    response = await send(app, "PUT", content=chunks(b"a", b"b", b"c"))
    assert (told(response), response.content) == (RECOVERED, b"abc")


def streaming(flaky, *before):
    """An endpoint that uses the database in the midst of a streaming response."""

    async def endpoint(request):
        async def rows():
            for row in before:
                yield row
            yield str(flaky())

        return StreamingResponse(rows())

    return endpoint


async def test_base_http_middleware_above_a_stream():
    """G1: a failure before the first chunk of a stream is replayed."""
    app = stacked(one(streaming(Flaky(2))), "above", BaseHTTPMiddleware, dispatch=passing)
    response = await send(app)
    assert (told(response), response.text) == ((200, "recovered", "3"), "3")


@since(0, 47)
async def test_base_http_middleware_below_a_stream():
    """The trap itself: Starlette ends the stream that fails behind it, and raises afterwards."""
    flaky, reports = Flaky(), []
    app = one(streaming(flaky), middleware=[BASE])
    app.add_middleware(RetryMiddleware, policy=policy(), hooks=[reports.append])
    for each in (one(streaming(Flaky()), middleware=[BASE]), app):
        peer = Peer()
        with pytest.raises(DisconnectionError):
            await peer.call(each)
        assert (told(peer.response), peer.content, peer.complete) == (FINE, b"", True)
    assert [report.outcome for report in reports] == ["sealed"]


async def test_base_http_middleware_below_a_stream_that_is_held(place):
    """G1: the way out: with ``hold="until-return"`` that end is held too, and dropped."""
    app = one(streaming(Flaky(2)), middleware=[BASE])
    response = await send(installed(app, place, policy=policy(hold="until-return")))
    assert (told(response), response.text) == ((200, "recovered", "3"), "3")


async def test_base_http_middleware_and_broken_streams(order):
    """G5: a stream that fails later ends as without us, with an error at the server only."""
    flaky = Flaky()
    app = stacked(one(streaming(flaky, "a")), order, BaseHTTPMiddleware, dispatch=passing)
    ends = []
    for each in (one(streaming(Flaky(), "a"), middleware=[BASE]), app):
        peer = Peer()
        with pytest.raises(DisconnectionError):
            await peer.call(each)
        ends.append((peer.kinds, peer.content, peer.complete))
    assert ends[0] == ends[1]
    assert flaky.calls == 1


async def test_base_http_middleware_and_background_tasks(order):
    """G5: a background task behind it runs once, after the response."""
    flaky, peer, seen = Flaky(), Peer(), []

    async def work():
        seen.append(peer.complete)

    async def endpoint(request):
        flaky()
        return PlainTextResponse("ok", background=BackgroundTask(work))

    await peer.call(stacked(one(endpoint), order, BaseHTTPMiddleware, dispatch=passing))
    assert told(peer.response) == RECOVERED
    assert seen == [True]


@since(0, 47)
async def test_base_http_middleware_and_background_tasks_that_fail(order):
    """G2: a background task that fails behind it replays nothing."""
    flaky, peer = Flaky(), Peer()

    async def endpoint(request):
        return PlainTextResponse("ok", background=BackgroundTask(flaky))

    with pytest.raises(DisconnectionError):
        await peer.call(stacked(one(endpoint), order, BaseHTTPMiddleware, dispatch=passing))
    assert (peer.content, peer.complete, flaky.calls) == (b"ok", True, 1)


async def test_base_http_middleware_and_state(order):
    """G1: what dispatch put into request.state is there in every attempt, the endpoint's is not."""
    flaky, seen = Flaky(), []

    async def dispatch(request, call_next):
        request.state.user = "ada"
        response = await call_next(request)
        response.headers["x-seen"] = str(request.state.seen)
        return response

    async def endpoint(request):
        seen.append(dict(request.state._state))
        request.state.seen = len(seen)
        flaky()
        return PlainTextResponse("ok")

    app = stacked(one(endpoint), order, BaseHTTPMiddleware, dispatch=dispatch)
    response = await send(app)
    assert told(response) == RECOVERED
    assert seen == [{"user": "ada"}] * 2
    assert response.headers["x-seen"] == "2"


@pytest.mark.parametrize("when", ["before", "after"])
@BOTH_MARKS
async def test_dispatch_that_fails(when, mark):
    """G3: before there is a route, a failure in dispatch is judged by the method alone."""
    flaky = Flaky()
    mark, expected = MARKS[mark]

    async def dispatch(request, call_next):
        if when == "before":
            flaky()
        response = await call_next(request)
        if when == "after":
            flaky()
        return response

    app = one(mark(answering(Flaky(0))), "POST", "GET")
    stacked(app, "below", BaseHTTPMiddleware, dispatch=dispatch)
    assert told(await send(app, "POST")) == (REFUSED if when == "before" else expected)
    flaky.calls = 0
    assert told(await send(app)) == RECOVERED


@pytest.mark.parametrize("doomed", [False, True])
async def test_dispatch_that_squashes(place, doomed):
    """A dispatch function that answers 500 to an exception squashes it: it takes a doom."""
    flaky = Flaky()

    async def dispatch(request, call_next):
        try:
            return await call_next(request)
        except DisconnectionError as exc:
            if doomed:
                current_attempt().doom(exc)
            return PlainTextResponse("sorry", 500)

    app = one(answering(flaky))
    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    assert told(await send(installed(app, place))) == (RECOVERED if doomed else (500, None, None))


async def test_context_variables_of_dispatch():
    """G1: what an attempt sets in a context variable is not there in the next one."""
    variable, seen, flaky = contextvars.ContextVar("variable", default=0), [], Flaky()

    async def dispatch(request, call_next):
        seen.append(variable.get())
        variable.set(variable.get() + 1)
        return await call_next(request)

    async def endpoint(request):
        seen.append(variable.get())
        flaky()
        return PlainTextResponse("ok")

    app = stacked(one(endpoint), "below", BaseHTTPMiddleware, dispatch=dispatch)
    assert told(await send(app)) == RECOVERED
    assert seen == [0, 1, 0, 1]


# Websockets.


async def test_websockets(place):
    """A websocket passes: it is answered as without us, and its failures are its own."""
    flaky = Flaky()

    class Echo(WebSocketEndpoint):
        encoding = "text"

        async def on_receive(self, websocket, data):
            assert current_attempt(None) is None
            await websocket.send_text(data + "!")

    async def failing(websocket):
        await websocket.accept()
        flaky()

    routes = [
        WebSocketRoute("/echo", Echo),
        WebSocketRoute("/failing", failing),
        Route("/", answering(Flaky())),
    ]
    app = installed(Starlette(routes=routes), place)
    sent = await talk(app, "/echo", "a", "b")
    assert [message["type"] for message in sent] == ["websocket.accept", *["websocket.send"] * 2]
    assert [message["text"] for message in sent[1:]] == ["a!", "b!"]
    with pytest.raises(DisconnectionError):
        await talk(app, "/failing")
    assert flaky.calls == 1
    assert told(await send(app)) == RECOVERED


async def test_request_in_a_websocket(place):
    """G1: a request that a websocket's endpoint makes to its own app is an exchange of its own."""
    outcomes = []

    async def endpoint(websocket):
        await websocket.accept()
        outcomes.append(told(await send(app)))
        await websocket.close()

    routes = [WebSocketRoute("/ws", endpoint), Route("/", answering(Flaky()))]
    app = installed(Starlette(routes=routes), place)
    await talk(app, "/ws")
    assert outcomes == [RECOVERED]


# On a real database.


@pytest.fixture
def stored(mariadb):
    """A table, and what is stored in it."""
    with things(mariadb) as names:
        yield names


@pytest.fixture
def database(mariadb, mariadb_proxy):
    """PyMySQL, through the proxy."""
    arguments = mariadb.connect_args(host=mariadb_proxy.host, port=mariadb_proxy.port)
    return retrymw.adapters.pymysql.Database(**arguments, ssl_disabled=True, read_timeout=5)


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


INSERT = "INSERT INTO things VALUES ('teapot')"
FAULTS = {
    "connect": lambda proxy: proxy.cut("reset", "connect"),
    "statement": lambda proxy: proxy.cut("reset", 2),
    "before the commit": lambda proxy: proxy.cut("fin", "before-commit"),
    "commit": lambda proxy: proxy.cut("reset", "commit"),
}


def ordering(database):
    """An endpoint in a worker thread that stores an order."""

    @rollback_safe
    def order(request):
        with database.connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT COUNT(*) FROM things")
            cursor.execute(INSERT)
            connection.commit()
        return PlainTextResponse("ordered", 201)

    return order


def ordering_async(database):
    """A coroutine function that does the same."""

    @rollback_safe
    async def order(request):
        async with database.session() as session:
            await session.execute(sqlalchemy.text("SELECT COUNT(*) FROM things"))
            await session.execute(sqlalchemy.text(INSERT))
            await session.commit()
        return PlainTextResponse("ordered", 201)

    return order


def check_order(response, fault, stored):
    """The order is stored once, or the client is told that this is not known."""
    if "commit" in fault:
        assert told(response) == (503, "unknown", "1")
    else:
        assert told(response) == (201, "recovered", "2")
    assert stored() == ([] if fault == "before the commit" else ["teapot"])


@pytest.mark.parametrize("fault", FAULTS)
async def test_order_from_a_worker_thread(place, fault, database, stored, mariadb_proxy):
    """G1, G4: however its connection breaks, an order is stored once, or reported as unknown."""
    FAULTS[fault](mariadb_proxy)
    app = installed(one(ordering(database), "POST"), place, databases=[database])
    check_order(await send(app, "POST"), fault, stored)
    mariadb_proxy.wait_for_connections(0)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_order_from_a_coroutine(place, fault, engine, stored, mariadb_proxy):
    """G1, G4: the same with SQLAlchemy on aiomysql, behind a BaseHTTPMiddleware."""
    FAULTS[fault](mariadb_proxy)
    database = retrymw.adapters.sqlalchemy.AsyncDatabase(engine)
    app = one(ordering_async(database), "POST", middleware=[BASE])
    response = await send(installed(app, place, databases=[database]), "POST")
    check_order(response, fault, stored)
    assert engine.pool.checkedout() == 0


async def test_handler_that_squashes_a_real_failure(place, database, stored, mariadb_proxy):
    """G1: an adapter has seen what a handler renders as a 500, so that the order is replayed."""

    def handler(request, exc):
        return PlainTextResponse("sorry", 500)

    mariadb_proxy.cut("reset", 2)
    app = one(ordering(database), "POST", exception_handlers={pymysql.Error: handler})
    check_order(
        await send(installed(app, place, databases=[database]), "POST"), "statement", stored
    )


async def test_database_that_refuses(place, database, stored, mariadb_proxy):
    """G1, G10: while connections are refused a request waits; then its order is stored once."""
    mariadb_proxy.refuse_for(0.5)
    rules = policy(wait=tenacity.wait_fixed(0.2))
    app = installed(one(ordering(database), "POST"), place, databases=[database], policy=rules)
    response = await send(app, "POST")
    assert (response.status_code, response.headers["retry-outcome"]) == (201, "recovered")
    assert stored() == ["teapot"]


async def test_orders_and_a_stream_at_once(place, database, stored, mariadb_proxy):
    """G5: one client's failure leaves another one's stream alone."""
    peer, ends = Peer(path="/stream"), anyio.Event()

    async def stream(request):
        async def rows():
            yield "a"
            await ends.wait()
            yield "b"

        return StreamingResponse(rows())

    routes = [Route("/", ordering(database), methods=["POST"]), Route("/stream", stream)]
    app = installed(Starlette(routes=routes), place, databases=[database])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(peer.call, app)
        await peer.sees("body")
        mariadb_proxy.cut("reset", 2)
        check_order(await send(app, "POST"), "statement", stored)
        ends.set()
    assert (peer.content, peer.complete) == (b"ab", True)
