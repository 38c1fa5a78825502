"""G5: apps run bare and wrapped, on real servers, with nothing failing: the same bytes."""

from __future__ import annotations

import io
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.validate import validator

import pytest
import werkzeug.serving

from retrymw import current_attempt
from retrymw.typing import Environ, StartResponse, WSGIApp

from .helpers import TEXT, Chunks, answer, doing, generate, lost, request, wrap

ERROR = "500 Internal Server Error"
LENGTH = [*TEXT, ("Content-Length", "5")]


class Sized(list[bytes]):
    """A list that is not exactly one, with a close()."""

    def close(self) -> None: ...


class Once:
    """Iterable once, and of a known length."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = chunks

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._chunks)


def echo(read: Callable[[Any, int], bytes]) -> WSGIApp:
    """An app that answers with what it reads."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = read(environ["wsgi.input"], int(environ.get("CONTENT_LENGTH") or 0))
        start_response("200 OK", list(TEXT))
        return [body]

    return app


def echo_streaming(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", list(TEXT))
    left = int(environ["CONTENT_LENGTH"])
    while left:
        chunk = environ["wsgi.input"].read(min(left, 3))
        left -= len(chunk)
        yield chunk


def file_wrapper(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(LENGTH))
    wrapper = environ.get("wsgi.file_wrapper", lambda file: iter([file.read()]))
    result: Iterable[bytes] = wrapper(io.BytesIO(b"hello"))
    return result


def restarting(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [*TEXT, ("X-First", "1")])
    try:
        raise ValueError("a bug")
    except ValueError:
        start_response(ERROR, list(TEXT), sys.exc_info())  # type: ignore[arg-type]
    return [b"oops"]


def restarting_late(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", list(TEXT))
    yield b"hel"
    try:
        raise ValueError("a bug")
    except ValueError:
        start_response(ERROR, list(TEXT), sys.exc_info())  # type: ignore[arg-type]
    yield b"not reached"


def raising(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    raise ValueError("a bug")


def raising_after_the_start(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", list(TEXT))
    raise ValueError("a bug")


def asking() -> bytes:
    current_attempt(None)
    return b""


def changing_environ(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = environ["PATH_INFO"], ""
    environ["REQUEST_METHOD"] = "GET"
    return answer()(environ, start_response)


APPS: dict[str, WSGIApp] = {
    "list of one": answer(),
    "list of two": answer((b"hel", b"lo")),
    "empty list": answer(()),
    "list of nothing": answer((b"",)),
    "tuple": answer(lambda: (b"hello",)),
    "iterator": answer(lambda: iter([b"hel", b"", b"lo"])),
    "iterable": answer(lambda: Chunks(b"hel", b"", b"lo")),
    "empty iterable": answer(Chunks),
    "subclass of list": answer(lambda: Sized([b"hello"])),
    "sized iterable": answer(lambda: Once(b"hello")),
    "sized iterable of two": answer(lambda: Once(b"hel", b"lo")),
    "generator": generate(b"hel", b"", b"lo"),
    "generator of nothing": generate(),
    "generator of an empty chunk": generate(b""),
    "generator of empty chunks": generate(b"", b""),
    "sized iterable of an empty chunk": answer(lambda: Once(b"")),
    "with a length": answer(headers=LENGTH),
    "generator with a length": generate(b"hel", b"lo", headers=LENGTH),
    "truncated": generate(b"hel", headers=LENGTH),
    "write": answer((), written=[b"hel", b"lo"]),
    "write and list": answer((b"lo",), written=[b"hel"]),
    "write and iterable": answer(lambda: Chunks(b"l", b"o"), written=[b"he", b"l"]),
    "file": file_wrapper,
    "no content": answer((), "204 No Content", []),
    "not modified": answer((), "304 Not Modified", []),
    "redirect": answer((), "302 Found", [*TEXT, ("Location", "/x")]),
    "not found": answer((b"no",), "404 Not Found"),
    "error": answer((b"oops",), ERROR),
    "streamed error": generate(b"oo", b"ps", status=ERROR),
    "error of one chunk": generate(b"oops", status=ERROR),
    "sized error": answer(lambda: Once(b"oops"), ERROR),
    "empty error": answer((), ERROR),
    "error of an empty chunk": generate(b"", status=ERROR),
    "error and write": answer((b"ps",), ERROR, written=[b"oo"]),
    "event stream": generate(b"data: 1\n\n", headers=[("Content-Type", "text/event-stream")]),
    "many headers": answer(headers=[*TEXT, ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]),
    "exc_info": restarting,
    "late exc_info": restarting_late,
    "raising": raising,
    "raising after the start": raising_after_the_start,
    "raising at once": generate(ValueError("a bug")),
    "raising in mid-stream": generate(b"hel", ValueError("a bug")),
    "raising in a list's place": answer(lambda: Chunks(ValueError("a bug"))),
    "raising in close": answer(lambda: Chunks(b"hel", b"lo", on_close=ValueError("a bug"))),
    "raising in close, no body": answer(lambda: Chunks(on_close=ValueError("a bug")), "204 No", []),
    "error raising in close": answer(lambda: Chunks(b"oops", on_close=ValueError("a bug")), ERROR),
    "asking for its attempt": doing(asking, answer()),
    "asking in a stream": generate(b"hel", asking, b"lo"),
    "expecting success": doing(
        lambda: (attempt := current_attempt(None)) and attempt.on_success(lambda: None), answer()
    ),
    "changing its environ": changing_environ,
    "read(n)": echo(lambda file, length: file.read(length)),
    "read by threes": echo(
        lambda file, length: b"".join(file.read(min(3, length - n)) for n in range(0, length, 3))
    ),
    "readline(n)": echo(lambda file, length: file.readline(length)),
    "reading nothing": echo(lambda file, length: b"%d" % length),
    "reading half": echo(lambda file, length: file.read(length // 2)),
    "echoing as it reads": echo_streaming,
}

REQUESTS = {
    "GET": b"GET /%s HTTP/1.1\r\n\r\n",
    "HEAD": b"HEAD /%s HTTP/1.1\r\n\r\n",
    "POST": b"POST /%s HTTP/1.1\r\nContent-Length: 11\r\n\r\nfirst\nlast\n",
    "continue": b"PUT /%s HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
}
CASES = [
    (name, method)
    for name in APPS
    for method in (["POST", "continue"] if "read" in name or "echo" in name else ["GET", "HEAD"])
]


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None: ...
    def get_stderr(self) -> Any:
        return io.StringIO()


class QuietServer(WSGIServer):
    def handle_error(self, *_: Any) -> None: ...


class QuietWerkzeug(werkzeug.serving.WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None: ...


def under_wsgiref(app: WSGIApp) -> Any:
    return make_server("127.0.0.1", 0, app, QuietServer, Quiet)


def under_werkzeug(app: WSGIApp) -> Any:
    return werkzeug.serving.make_server(
        "127.0.0.1", 0, app, threaded=True, request_handler=QuietWerkzeug
    )


def dispatch(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """All the apps; the path says which."""
    return APPS[environ["PATH_INFO"].strip("/")](environ, start_response)


@contextmanager
def serving(make: Callable[[WSGIApp], Any], app: WSGIApp) -> Iterator[tuple[str, int]]:
    server = make(app)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def failing_first(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """All the apps; the first attempt leaves traces and fails."""
    if not current_attempt().is_replay:
        if environ["REQUEST_METHOD"] in ("POST", "PUT"):
            environ["wsgi.input"].read(3)
        environ.update(PATH_INFO="/none", QUERY_STRING="x", REQUEST_METHOD="TRACE")
        start_response("404 Not Found", [*TEXT, ("X-First", "1")])
        raise lost()
    return dispatch(environ, start_response)


@pytest.fixture(scope="module", params=[under_wsgiref, under_werkzeug])
def addresses(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any, Any]]:
    """Where the same server serves the apps bare, wrapped, and wrapped with a failure before."""
    replayed = wrap(
        failing_first, expose="never", methods={"GET", "HEAD", "PUT", "POST"}, max_waiting=100
    )
    with (
        serving(request.param, dispatch) as bare,
        serving(request.param, wrap(dispatch)) as wrapped,
        serving(request.param, replayed) as failing,
    ):
        yield bare, wrapped, failing


def exchange(address: Any, data: bytes) -> bytes:
    """All that the server sends, with the time left out."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(data.replace(b"\r\n", b"\r\nHost: x\r\nConnection: close\r\n", 1))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.")
    return re.sub(rb"\r\nDate: [^\r]*", b"", received)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_same_bytes(addresses: tuple[Any, Any, Any], name: str, method: str) -> None:
    """G1, G5: the client gets the same bytes, framing included, and so it does after a replay."""
    data = REQUESTS[method] % name.replace(" ", "%20").encode()
    bare, wrapped, replayed = (exchange(address, data) for address in addresses)
    assert wrapped == bare
    assert replayed == bare


def test_chunked_upload() -> None:
    """G5: the same for an upload without a length, which Werkzeug's server takes."""
    data = (
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"6\r\nfirst\n\r\n5\r\nlast\n\r\n0\r\n\r\n"
    )
    app = echo(lambda file, _: file.read())
    with serving(under_werkzeug, app) as bare, serving(under_werkzeug, wrap(app)) as wrapped:
        received = exchange(wrapped, data)
        assert b"first\nlast\n" in received
        assert received == exchange(bare, data)


# When close() raises, wsgiref's handler fails itself while it reports that.
@pytest.mark.parametrize("check", [None, validator], ids=["plain", "validated"])
@pytest.mark.parametrize("name", [name for name in APPS if "in close" not in name])
def test_same_bytes_from_a_handler(name: str, check: Any) -> None:
    """G5: the same from wsgiref's handler alone, with errors; and between validators."""
    outputs = []
    app = APPS[name]
    apps = (app, wrap(app)) if check is None else (check(app), check(wrap(check(app))))
    for app in apps:
        output, errors = io.BytesIO(), io.StringIO()
        environ = request("POST", body=b"first\nlast\n")
        handler = SimpleHandler(environ["wsgi.input"], output, errors, environ)
        handler.run(app)  # type: ignore[arg-type]
        shown = errors.getvalue().strip().splitlines()
        assert "AssertionError" not in errors.getvalue()
        outputs.append((re.sub(rb"\r\nDate: [^\r]*", b"", output.getvalue()), shown[-1:]))
    assert outputs[1] == outputs[0]
