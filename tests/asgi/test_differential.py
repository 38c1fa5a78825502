"""Various apps, bare and through the middleware, with nothing failing: no difference (G5)."""

import contextlib
import functools
import sys

import anyio
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, UploadFile, WebSocket
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from retrymw.asgi import RetryMiddleware
from retrymw.testing import validator

from .helpers import GONE, Checked, Client, NotOurs, answer, echo, ok, plain, policy, read

pytestmark = pytest.mark.anyio


# On 3.10, BaseHTTPMiddleware leaves its generators to the collector, of which trio warns.
NO_LITTER = sys.version_info >= (3, 11)


# Raw apps.


async def silent(scope, receive, send):
    return "a result"


async def start_only(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def unfinished(scope, receive, send):
    await start_only(scope, receive, send)
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    return "a result"


async def raises(scope, receive, send):
    raise NotOurs


async def raises_in_the_middle(scope, receive, send):
    await unfinished(scope, receive, send)
    raise NotOurs


async def raises_after_a_500(scope, receive, send):
    await answer(send, status=500)
    raise NotOurs


async def own_503(scope, receive, send):
    await answer(send, status=503, headers=[("retry-after", "7"), ("retry-outcome", "mine")])


async def streams(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise NotOurs
        await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        if not message["more_body"]:
            break
    await send({"type": "http.response.body"})
    await send({"type": "http.response.trailers", "headers": [(b"x", b"y")]})


async def refuses(scope, receive, send):
    await answer(send, status=413)


async def meddles(scope, receive, send):
    scope["state"]["user"] = "me"
    scope["route"] = "/x"
    del scope["client"]
    await answer(send)


async def waits_for_the_end(scope, receive, send):
    await read(receive)
    await answer(send)
    assert (await receive())["type"] == "http.disconnect"
    assert (await receive())["type"] == "http.disconnect"


async def early(scope, receive, send):
    await send({"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]})
    await send({"type": "http.response.debug", "info": {}})
    await answer(send, await read(receive))
    assert scope["type"] == "http"


async def in_tasks(scope, receive, send):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(echo, scope, receive, send)
    await anyio.to_thread.run_sync(lambda: None)


async def half(scope, receive, send):
    await receive()
    await answer(send)


RAW = (
    ok,
    echo,
    silent,
    start_only,
    unfinished,
    raises,
    raises_in_the_middle,
    raises_after_a_500,
    own_503,
    streams,
    refuses,
    meddles,
    waits_for_the_end,
    early,
    in_tasks,
    half,
)
RULE_BREAKERS = (silent, start_only, unfinished)
RAW_REQUESTS = [
    ("GET", "/", []),
    ("HEAD", "/", []),
    ("PUT", "/", [b"", b"a", b"", b"b"]),
    ("POST", "/", [b"a", GONE]),
]


# Frameworks.


def starlette():
    async def home(request):
        return PlainTextResponse("home", background=BackgroundTask(work))

    async def work():
        await anyio.lowlevel.checkpoint()

    async def upload(request):
        return JSONResponse({"length": len(await request.body())})

    async def half_upload(request):
        async with contextlib.aclosing(request.stream()) as chunks:
            return Response(await anext(chunks))

    def sync(request):
        return PlainTextResponse("sync")

    async def stream(request):
        async def chunks():
            for number in range(3):
                yield str(number)

        return StreamingResponse(chunks(), media_type="text/event-stream")

    async def error(request):
        raise NotOurs

    async def teapot(request):
        raise HTTPException(418)

    async def redirect(request):
        return RedirectResponse("/")

    async def file(request):
        return FileResponse(__file__)

    async def dispatch(request, call_next):
        response = await call_next(request)
        response.headers["x-seen"] = "1"
        return response

    methods = ["GET", "PUT"]
    routes = [
        Route("/", home),
        Route("/upload", upload, methods=methods),
        Route("/half", half_upload, methods=methods),
        Route("/sync", sync),
        Route("/stream", stream),
        Route("/error", error),
        Route("/teapot", teapot),
        Route("/redirect", redirect),
        Route("/file", file),
        Mount("/static", StaticFiles(packages=[("starlette", ".")])),
    ]
    return Starlette(
        routes=[*routes, Mount("/mounted", routes=routes)],
        middleware=[
            Middleware(GZipMiddleware, minimum_size=100),
            *([Middleware(BaseHTTPMiddleware, dispatch=dispatch)] if NO_LITTER else []),
        ],
    )


def fastapi():
    app = FastAPI()

    async def session():
        yield "session"

    @app.get("/")
    async def home(tasks: BackgroundTasks, session: str = Depends(session)) -> dict[str, str]:
        tasks.add_task(lambda: None)
        return {"session": session}

    @app.put("/upload")
    def upload(item: dict[str, int], session: str = Depends(session, scope="function")):
        return item

    @app.post("/file")
    async def file(file: UploadFile):
        return len(await file.read())

    @app.get("/error")
    def error():
        raise NotOurs

    @app.websocket("/ws")
    async def ws(websocket: WebSocket):
        raise NotImplementedError

    return app


FORM = (
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n',
    b"12345\r\n--b--\r\n",
)
STARLETTE_REQUESTS = [
    ("GET", "/", []),
    ("HEAD", "/", []),
    ("DELETE", "/", []),
    ("PUT", "/upload", [b"a", b"b" * 99]),
    ("PUT", "/upload", [b"a", GONE]),
    ("PUT", "/half", [b"a", b"b"]),
    ("GET", "/sync", []),
    ("GET", "/stream", []),
    ("GET", "/error", []),
    ("GET", "/teapot", []),
    ("GET", "/redirect", []),
    ("GET", "/file", []),
    ("GET", "/missing", []),
    ("PUT", "/upload/", [b"a"]),
    ("GET", "/mounted/", []),
    ("PUT", "/mounted/upload", [b"a", b"b"]),
    ("GET", "/mounted/missing", []),
    ("GET", "/static/py.typed", []),
    ("GET", "/static/missing", []),
]
FASTAPI_REQUESTS = [
    ("GET", "/", []),
    ("PUT", "/upload", [b'{"a":', b"1}"]),
    ("PUT", "/upload", [b'{"a":']),
    ("POST", "/file", list(FORM)),
    ("GET", "/error", []),
    ("GET", "/openapi.json", []),
    ("GET", "/missing", []),
]
CASES = {
    **{app.__name__: (functools.partial(lambda app: app, app), RAW_REQUESTS) for app in RAW},
    "starlette": (starlette, STARLETTE_REQUESTS),
    "fastapi": (fastapi, FASTAPI_REQUESTS),
}
HEADERS = [
    ("host", "test"),
    ("accept-encoding", "gzip"),
    ("content-type", "multipart/form-data; boundary=b"),
]


async def observed(wrap, app, method, path, body, spec):
    """All that can be seen of a request from outside, and of the app's input from inside."""
    headers = [
        (name, "application/json" if name == "content-type" and path == "/upload" else value)
        for name, value in HEADERS
    ]
    client = Client(
        method, path, body=body, headers=headers, asgi={"version": "3.0", "spec_version": spec}
    )
    check = plain if app in RULE_BREAKERS else validator
    app = Checked(app, check)
    try:
        outcome = await client.call(wrap(app), outer=check)
    except AssertionError:
        raise
    except Exception as exc:  # noqa: BLE001  # it is part of what is compared
        outcome = repr(exc)
    scope = {key: value for key, value in client.scope.items() if _is_plain(value)}
    return {
        "request": (method, path, body),
        "sent": client.sent,
        "received": [run.received for run in app.runs],
        "asked": client.asked,
        "outcome": outcome,
        "scope": scope,
        "keys": set(client.scope),
        "input": [{key: v for key, v in run.keys.items() if _is_plain(v)} for run in app.runs],
    }


def _is_plain(value):
    return isinstance(value, (str, bytes, list, int, type(None)))


@pytest.mark.parametrize(
    ("hold", "spec"), [("first-chunk", "2.3"), ("first-chunk", "2.4"), ("until-return", "2.4")]
)
@pytest.mark.parametrize("name", CASES)
async def test_no_difference(name, hold, spec):
    """G5: when nothing fails: the same messages, input, scope, result, exception, bare or not."""
    if hold == "until-return" and name == "waits_for_the_end":
        pytest.skip("who waits for the client's leaving can't hold its answer meanwhile")
    factory, requests = CASES[name]
    middleware = functools.partial(RetryMiddleware, policy=policy(hold=hold))
    one, other = factory(), factory()
    for made in requests:
        bare = await observed(plain, one, *made, spec)
        through = await observed(middleware, other, *made, spec)
        assert through == bare
