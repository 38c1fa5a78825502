"""Starlette and FastAPI as they are: each test is a trap that was measured on the real thing."""

import anyio
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse as FastPlain
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from retrymw import DisconnectionError, current_attempt
from retrymw.asgi import RetryMiddleware

from .helpers import Client, Flaky, NotOurs, lost, policy, request

pytestmark = pytest.mark.anyio

SPECS = pytest.mark.parametrize("spec", ["2.3", "2.4"])


class Failing:
    """Raises in the first attempts, counts the calls."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls <= len(self.errors):
            raise self.errors[self.calls - 1]


def starlette(endpoint, **settings):
    return Starlette(routes=[Route("/", endpoint, methods=["GET", "PUT"])], **settings)


def recorded(app, events, client):
    """The app, with what it sends and what reaches the client among the events."""

    async def outer(scope, receive, send):
        async def recording(message):
            events.append(message["type"].removeprefix("http.response."))
            await send(message)

        await app(scope, receive, recording)

    return outer


# Starlette.


async def test_server_error_middleware_sends_and_raises():
    """The trap itself: installed from outside, a 500 comes first and the exception after it."""

    async def endpoint(request):
        raise NotOurs

    client = Client()
    with pytest.raises(NotOurs):
        await client.call(starlette(endpoint))
    assert client.status == 500
    assert client.complete


@pytest.mark.parametrize("debug", [False, True])
async def test_installed_from_outside(debug):
    """G1: the 500 that Starlette sends before it raises is dropped with its attempt."""
    fail = Failing(lost(), lost())

    async def endpoint(request):
        fail()
        return PlainTextResponse("ok")

    client = await request(starlette(endpoint, debug=debug))
    assert (client.status, client.body) == (200, b"ok")
    assert fail.calls == 3


async def test_installed_from_outside_and_refused():
    """G10: out of replays, the client gets the 503 instead of Starlette's 500."""
    fail = Failing(*[lost()] * 9)

    async def endpoint(request):
        fail()

    client = await request(starlette(endpoint))
    assert client.status == 503
    assert client.header("retry-outcome") == "exhausted"


async def test_installed_from_outside_what_is_not_ours():
    """G5: Starlette's 500 of another error reaches the client, then the error is raised."""
    error = NotOurs()

    async def endpoint(request):
        raise error

    client = Client()
    with pytest.raises(NotOurs) as caught:
        await request(starlette(endpoint), client)
    assert caught.value is error
    assert (client.status, client.body) == (500, b"Internal Server Error")


@pytest.mark.parametrize("sync", [False, True])
async def test_installed_inside(sync):
    """G1: as one of the app's middlewares it sees the exception before there is a 500."""
    fail = Failing(lost())

    def sync_endpoint(request):
        fail()
        return PlainTextResponse("ok")

    async def endpoint(request):
        return sync_endpoint(request)

    app = starlette(
        sync_endpoint if sync else endpoint,
        middleware=[Middleware(RetryMiddleware, policy=policy())],
    )
    client = Client()
    await client.call(app)
    assert (client.status, client.body) == (200, b"ok")
    assert client.header("retry-attempts") == "2"


async def test_add_middleware():
    """The middleware is added as any other."""
    fail = Failing(lost())

    async def endpoint(request):
        fail()
        return PlainTextResponse("ok")

    app = starlette(endpoint)
    app.add_middleware(RetryMiddleware, policy=policy())
    client = Client()
    await client.call(app)
    assert client.body == b"ok"


async def test_installed_inside_what_is_not_ours():
    """G5: the app's own handler of the exception sees the exception itself."""
    error, seen = NotOurs(), []

    async def endpoint(request):
        raise error

    def handler(request, exc):
        seen.append(exc)
        return PlainTextResponse("handled", 500)

    app = starlette(endpoint, exception_handlers={Exception: handler})
    app.add_middleware(RetryMiddleware, policy=policy())
    client = Client()
    with pytest.raises(NotOurs):
        await client.call(app)
    assert seen == [error]
    assert client.body == b"handled"


@pytest.mark.parametrize(("status", "runs"), [(500, 2), (503, 2), (200, 1), (409, 1)])
async def test_exception_handler_that_squashes(status, runs):
    """A failure that a handler rendered is replayed if it was doomed and rendered as a 5xx."""
    fail = Failing(lost())

    async def endpoint(request):
        try:
            fail()
        except DisconnectionError as exc:
            current_attempt().doom(exc)
            raise
        return PlainTextResponse("ok")

    def handler(request, exc):
        return JSONResponse({"error": "database"}, status)

    app = starlette(endpoint, exception_handlers={DisconnectionError: handler})
    client = await request(app)
    assert len(client.runs) == runs
    assert client.status == (200 if runs == 2 else status)
    assert client.body == (b"ok" if runs == 2 else b'{"error":"database"}')


async def test_exception_handler_that_squashes_unseen():
    """G5: a failure that nobody reported and a handler rendered can't be told from an answer."""
    fail = Failing(lost())

    async def endpoint(request):
        fail()

    def handler(request, exc):
        return PlainTextResponse("sorry", 500)

    app = starlette(endpoint, exception_handlers={DisconnectionError: handler})
    client = await request(app)
    assert (client.status, client.body) == (500, b"sorry")
    assert len(client.runs) == 1


@SPECS
@pytest.mark.parametrize("sync", [False, True])
async def test_first_chunk_of_a_stream_is_the_first_database_call(spec, sync):
    """G1: Starlette sends the start before a generator's first chunk, which may be what fails."""
    fail = Failing(lost(), lost())

    def sync_rows():
        fail()
        yield "a"
        yield "b"

    async def rows():
        for row in sync_rows():
            yield row

    async def endpoint(request):
        return StreamingResponse(sync_rows() if sync else rows(), headers={"x": str(fail.calls)})

    client = Client(asgi={"version": "3.0", "spec_version": spec})
    await request(starlette(endpoint), client)
    assert (client.status, client.body) == (200, b"ab")
    assert client.header("x") == "2"
    assert len(client.runs) == 3


@SPECS
async def test_later_chunk_of_a_stream_fails(spec):
    """G2: a stream that breaks off later stays broken off; the exception is not swallowed."""

    async def rows():
        yield "a"
        raise lost()

    async def endpoint(request):
        return StreamingResponse(rows())

    client = Client(asgi={"version": "3.0", "spec_version": spec})
    with pytest.raises(Exception) as caught:  # noqa: PT011  # Starlette may put it into a group
        await request(starlette(endpoint), client)
    assert getattr(caught.value, "exceptions", [caught.value])[0].args == lost().args
    assert client.body == b"a"
    assert not client.complete
    assert len(client.runs) == 1


@SPECS
async def test_upload_and_streaming_answer(spec):
    """G5: a replay reads the whole upload; Starlette's listening meanwhile disturbs nothing."""
    fail = Failing(lost())

    async def endpoint(request):
        body = await request.body()
        fail()

        async def chunks():
            yield body
            yield b"!"

        return StreamingResponse(chunks())

    client = Client("PUT", body=[b"a", b"b"], asgi={"version": "3.0", "spec_version": spec})
    await request(starlette(endpoint), client)
    assert client.body == b"ab!"


async def test_client_that_leaves_a_stream():
    """G6: Starlette hears of the leaving during a streaming answer, and ends it."""
    client, ended = Client(asgi={"version": "3.0", "spec_version": "2.3"}), []

    async def chunks():
        try:
            while True:
                yield b"x"
                client.leave()
                await anyio.lowlevel.checkpoint()
        finally:
            ended.append(True)

    async def endpoint(request):
        return StreamingResponse(chunks())

    await request(starlette(endpoint), client)
    assert not client.complete


@pytest.mark.parametrize("status", [200, 500])
async def test_background_task(status):
    """G5: a background task runs once; a response below 500 has left by then."""
    client, seen = Client(), []

    async def work():
        seen.append(client.complete)

    async def endpoint(request):
        return PlainTextResponse("ok", status, background=BackgroundTask(work))

    await request(starlette(endpoint), client)
    assert seen == [status < 500]
    assert client.body == b"ok"


async def test_background_task_that_fails():
    """G2: a failure in a background task replays nothing and passes."""
    client = Client()

    async def work():
        raise lost()

    async def endpoint(request):
        return PlainTextResponse("ok", background=BackgroundTask(work))

    with pytest.raises(DisconnectionError):
        await request(starlette(endpoint), client)
    assert client.body == b"ok"
    assert len(client.runs) == 1


@pytest.mark.parametrize("pathsend", [False, True])
async def test_file_response(pathsend, tmp_path):
    """G5: a file is sent as without us, by the server where it can."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 200_000)
    fail = Failing(lost())

    async def endpoint(request):
        fail()
        return FileResponse(path)

    client = Client(extensions={"http.response.pathsend": {}} if pathsend else {})
    await request(starlette(endpoint), client)
    if pathsend:
        assert client.sent[-1] == {"type": "http.response.pathsend", "path": str(path)}
    else:
        assert client.body == b"x" * 200_000


async def test_redirect_to_the_slash_reads_nothing():
    """G5: Starlette's redirect of a missing slash leaves the upload with the client."""

    async def endpoint(request):
        raise NotImplementedError

    app = Starlette(routes=[Route("/upload/", endpoint, methods=["PUT"])])
    client = Client("PUT", "/upload", headers=[("host", "test")], body=[b"x"] * 9)
    await request(app, client)
    assert client.status == 307
    assert client.asked == 0


async def test_scope_of_starlette_is_as_it_was():
    """G1: routing, state and body caches of attempt 1 are gone in attempt 2."""
    seen = []

    async def endpoint(request):
        seen.append((dict(request.path_params), dict(request.state._state)))
        request.state.user = "me"
        if len(seen) == 1:
            raise lost()
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route("/{name}", endpoint, methods=["PUT"])])
    client = Client("PUT", "/a", body=[b"body"])
    await request(app, client)
    assert seen == [({"name": "a"}, {})] * 2
    assert client.body == b"body"
    assert client.scope["path_params"] == {"name": "a"}


async def test_server_error_middleware_around_another_app():
    """G1: any app behind ServerErrorMiddleware is replayed like Starlette's own."""
    client = await request(ServerErrorMiddleware(Flaky(lost())))
    assert client.body == b"ok"


# FastAPI.


def fastapi(events, fail, **depends):
    """An app whose session commits when its yield dependency ends."""
    app = FastAPI()

    async def session():
        events.append("open")
        yield current_attempt().number if current_attempt(None) else 0
        events.append("commit")
        fail()

    async def work():
        events.append("background")

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks, number: int = Depends(session, **depends)):
        events.append("endpoint")
        tasks.add_task(work)
        return number

    return app


async def test_order_of_a_yield_dependency():
    """The trap itself: FastAPI commits after the response and its background tasks."""
    events, client = [], Client()
    await client.call(recorded(fastapi(events, Failing()), events, client))
    assert events == ["open", "endpoint", "start", "body", "background", "commit"]


async def test_order_of_a_yield_dependency_of_the_function():
    """The way out: with ``scope="function"`` FastAPI commits before the response."""
    events, client = [], Client()
    await client.call(recorded(fastapi(events, Failing(), scope="function"), events, client))
    assert events == ["open", "endpoint", "commit", "start", "body", "background"]


async def test_commit_that_fails_after_the_response():
    """G2: by default the response has gone when the commit fails: the failure passes, sealed."""
    events, reports, client = [], [], Client()
    with pytest.raises(DisconnectionError):
        await request(fastapi(events, Failing(lost())), client, hooks=[reports.append])
    assert client.complete
    assert events.count("endpoint") == 1
    assert [report.outcome for report in reports] == ["sealed"]


async def test_commit_that_fails_with_until_return():
    """G1: with ``hold="until-return"`` the response waits for the commit, and goes with it."""
    events, client = [], Client()
    await request(
        recorded(fastapi(events, Failing(lost())), events, client),
        client,
        policy=policy(hold="until-return"),
    )
    assert client.body == b"2"
    assert events == ["open", "endpoint", "start", "body", "background", "commit"] * 2


async def test_commit_that_fails_before_the_response():
    """G1: with ``scope="function"`` a commit that fails is replayed under the default policy."""
    events = []
    client = await request(fastapi(events, Failing(lost()), scope="function"))
    assert client.body == b"2"
    assert events == ["open", "endpoint", "commit"] * 2 + ["background"]


@pytest.mark.parametrize("inside", [False, True])
async def test_fastapi_upload_is_replayed(inside):
    """G5: a model is parsed from the same bytes in every attempt, sync endpoints included."""
    app, fail = FastAPI(), Failing(lost(), lost())

    @app.put("/")
    def endpoint(item: dict[str, int]):
        assert current_attempt().number == fail.calls + 1
        fail()
        return item

    client = Client("PUT", body=[b'{"a"', b": 1}"], headers=[("content-type", "application/json")])
    if inside:
        app.add_middleware(RetryMiddleware, policy=policy())
        await client.call(app)
    else:
        await request(app, client)
    assert client.body == b'{"a":1}'


async def test_fastapi_exception_handler():
    """FastAPI's own handlers squash as Starlette's do."""
    app, fail = FastAPI(), Failing(lost())

    @app.exception_handler(DisconnectionError)
    async def handler(request: Request, exc: DisconnectionError):
        current_attempt().doom(exc)
        return FastPlain("sorry", 500)

    @app.get("/")
    async def endpoint():
        fail()
        return "ok"

    client = await request(app)
    assert (client.status, client.body) == (200, b'"ok"')


async def test_fastapi_validation_error_passes():
    """G5: a 422 is an answer."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(number: int):
        raise NotImplementedError

    client = await request(app)
    assert client.status == 422
    assert len(client.runs) == 1
