"""The response on its way out: start_response, write, what is held, what is returned."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from retrymw import DisconnectionError, RetryPolicy, current_attempt
from retrymw.typing import Environ, StartResponse
from retrymw.wsgi import RetryMiddleware

from .helpers import (
    TEXT,
    Attempts,
    Chunks,
    FakeDatabase,
    Reply,
    answer,
    consume,
    doing,
    generate,
    lost,
    request,
    serve,
    squashing,
    wrap,
)

ERROR = "500 Internal Server Error"


# start_response()


@pytest.mark.parametrize("failures", [0, 1])
def test_generator_app(retry: Any, failures: int) -> None:
    """A generator app calls start_response() at the first next(): it is served and replayed."""
    app = Attempts(*[generate(lost())] * failures, generate(b"hel", b"", b"lo"))
    reply = serve(retry(app))
    assert (reply.status, reply.body, app.calls) == (200, b"hello", failures + 1)


@pytest.mark.parametrize("body", [(), (b"",), Chunks, lambda: Chunks(b"", b"")])
@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "500 Internal Server Error"])
@pytest.mark.parametrize("failures", [0, 1])
def test_start_without_a_body(retry: Any, body: Any, status: str, failures: int) -> None:
    """G5: a response without a body is sent all the same."""
    headers = TEXT if status != "204 No Content" else []
    app = Attempts(*[lost()] * failures, answer(body, status, headers))
    reply = serve(retry(app))
    assert (reply.status, reply.body, reply.starts) == (int(status[:3]), b"", 1)


def test_start_is_held_until_the_first_chunk(retry: Any) -> None:
    """G1: nothing reaches the server before the first non-empty chunk, which may fail."""
    reply = Reply()
    starts: list[int] = []

    def chunk() -> bytes:
        starts.append(reply.starts)
        return b"x" if len(starts) == 2 else b""

    serve(retry(answer(Chunks(chunk, chunk, chunk))), reply=reply)
    assert starts == [0, 0, 1]


@pytest.mark.parametrize("content_type", ["text/event-stream", "Text/Event-Stream; charset=utf-8"])
def test_event_stream_is_released_at_once(retry: Any, content_type: str) -> None:
    """An event stream may be long in coming: its start does not wait for the first event."""
    reply = Reply()
    starts: list[int] = []

    def event() -> bytes:
        starts.append(reply.starts)
        return b"data: 1\n\n"

    app = answer(Chunks(event, event), headers=[("content-type", content_type)])
    serve(retry(app), reply=reply)
    assert starts == [1, 1]


def test_event_stream_that_failed_is_held(retry: Any) -> None:
    """An event stream that starts with a 5xx is held like any other."""
    headers = [("Content-Type", "text/event-stream")]
    app = Attempts(squashing(lost(), generate(b"no", status=ERROR, headers=headers)), answer())
    assert (serve(retry(app)).body, app.calls) == (b"hello", 2)


def test_started_twice(retry: Any) -> None:
    """G5: a second start_response() without exc_info is an error of the app, which sees it."""
    seen: list[BaseException] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))
        try:
            start_response("200 OK", list(TEXT))
        except AssertionError as exc:
            seen.append(exc)
        return [b"hello"]

    assert serve(retry(app)).body == b"hello"
    assert len(seen) == 1


def test_started_twice_after_the_release(retry: Any) -> None:
    """G5: the same after the release, when the server says it."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        yield b"hel"
        start_response("200 OK", list(TEXT))
        yield b"lo"

    reply = Reply()
    with pytest.raises(AssertionError, match="twice"):
        serve(retry(app), reply=reply)
    assert reply.body == b"hel"


def test_never_started() -> None:
    """G5: an app that never starts fails as it does without the middleware."""
    # Plain: the validator raises before the server does.

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return [b"hello"]

    for served in (app, wrap(app), wrap(lambda *_: iter([b"hello"]))):
        with pytest.raises(AssertionError, match="before start_response"):
            serve(served)


def test_not_iterable() -> None:
    """G5: an app that returns no iterable fails with the same exception."""
    # Plain: the validator raises before the server does.
    for served in (answer(None), wrap(answer(None))):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not iterable"):
            serve(served)


def rendering(error: Exception, status: str = ERROR) -> Any:
    """An app whose framework renders an exception as PEP 3333 shows: start again, with exc_info."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [*TEXT, ("X-First", "1")])
        try:
            raise error
        except (DisconnectionError, ValueError):
            start_response(status, list(TEXT), sys.exc_info())  # type: ignore[arg-type]
            return [b"oops"]

    return app


def test_exc_info_replaces_the_start(retry: Any) -> None:
    """G5: before the release start_response() with exc_info replaces status and headers."""
    reply = serve(retry(rendering(ValueError("a bug"))))
    assert (reply.status, reply.body, reply.headers["X-First"]) == (500, b"oops", None)


def test_exc_info_reaches_the_server(retry: Any) -> None:
    """G5: the server is given the exc_info that the app gave."""
    error = ValueError("a bug")
    seen: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        seen.append((status, exc_info[1]))

    assert consume(retry(rendering(error))(request(), start_response)) == [b"oops"]
    assert seen == [(ERROR, error)]


def test_exc_info_dooms(retry: Any) -> None:
    """A 500 by way of exc_info whose exception is a failure of ours is replayed."""
    app = Attempts(rendering(lost()), answer())
    reply = serve(retry(app))
    assert (reply.status, reply.body, app.calls, reply.starts) == (200, b"hello", 2, 1)


def test_exc_info_below_500_is_sent(retry: Any) -> None:
    """An app that made something better of it than a 5xx is sent."""
    app = Attempts(rendering(lost(), "200 OK"), answer())
    reply = serve(retry(app))
    assert (reply.status, reply.body, app.calls) == (200, b"oops", 1)


@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("error", [lost(), ValueError("a bug")])
def test_exc_info_after_the_release(retry: Any, error: Exception, failures: int) -> None:
    """G5: after the release the server raises the exception again, the same object."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        yield b"hel"
        try:
            raise error
        except (DisconnectionError, ValueError):
            start_response(ERROR, list(TEXT), sys.exc_info())  # type: ignore[arg-type]
        yield b"not reached"

    attempts = Attempts(*[lost()] * failures, app)
    reply = Reply()
    with pytest.raises(type(error)) as raised:
        serve(retry(attempts), reply=reply)
    assert raised.value is error
    assert (reply.status, reply.body, attempts.calls) == (200, b"hel", failures + 1)


def test_exc_info_after_the_start_was_released(retry: Any) -> None:
    """G5: while the server has sent no bytes, it may still take another status."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])

        def events() -> Iterator[bytes]:
            try:
                raise ValueError("a bug")
            except ValueError:
                start_response(ERROR, list(TEXT), sys.exc_info())  # type: ignore[arg-type]
            yield b"oops"

        return events()

    reply = serve(retry(app))
    assert (reply.status, reply.body, reply.starts) == (500, b"oops", 2)


@pytest.mark.parametrize("chunks", [None, (), (b"hello",), (b"hel", b"lo")])
def test_server_refuses_the_start(retry: Any, chunks: tuple[bytes, ...] | None) -> None:
    """G1: where the server's start_response() raises, that passes, and all is closed and undone."""
    database = FakeDatabase()
    body = (b"hello",) if chunks is None else Chunks(*chunks)

    def start_response(*_: Any) -> Any:
        raise AssertionError("a hop-by-hop header")

    middleware = retry(doing(database.open, answer(body)), databases=[database])
    with pytest.raises(AssertionError, match="hop-by-hop"):
        middleware(request(), start_response)
    assert database.opened == 0
    assert chunks is None or body.closed == 1  # type: ignore[union-attr]


# write()


def test_write(retry: Any) -> None:
    """G5: written bytes come before yielded ones."""
    for body, yielded in (((b"c", b"d"), b"cd"), (Chunks(b"c", b"", b"d"), b"cd"), ((), b"")):
        reply = serve(retry(answer(body, written=[b"a", b"", b"b"])))
        assert reply.body == b"ab" + yielded


def test_write_is_immediate(retry: Any) -> None:
    """G5: what is written reaches the server before the app goes on."""
    reply = Reply()

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", list(TEXT))
        write(b"a")
        assert reply.chunks == [b"a"]
        write(b"b")
        assert reply.chunks == [b"a", b"b"]
        return [b"c"]

    assert serve(retry(app), reply=reply).body == b"abc"


def test_write_between_chunks(retry: Any) -> None:
    """G5: bytes that an iterable writes while it is iterated stay in their order."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        write = start_response("200 OK", list(TEXT))
        write(b"a")
        yield b"b"
        write(b"c")
        yield b"d"

    assert serve(retry(app)).body == b"abcd"


@pytest.mark.parametrize("failing", [lost(), squashing(lost())])
def test_written_bytes_of_failed_attempts(retry: Any, failing: Any) -> None:
    """G1: bytes that a failed attempt wrote as part of a 5xx are never delivered."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response(ERROR, list(TEXT))(b"failed ")
        if isinstance(failing, Exception):
            raise failing
        current_attempt().doom(lost())
        return [b"oops"]

    attempts = Attempts(app, answer(written=[b"well, "]))
    reply = serve(retry(attempts))
    assert (reply.status, reply.body, reply.starts) == (200, b"well, hello", 1)


def test_empty_writes_release_nothing(retry: Any) -> None:
    """G1: write(b"") does not seal the exchange."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))(b"")
        raise lost()

    assert serve(retry(Attempts(app, answer()))).body == b"hello"


@pytest.mark.parametrize("error", [lost(), ValueError("a bug")])
def test_failure_after_write(retry: Any, error: Exception) -> None:
    """G2: bytes written below 500 are with the client: the exception passes, no byte is added."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))(b"half")
        raise error

    attempts = Attempts(app)
    reply = Reply()
    with pytest.raises(type(error)) as raised:
        serve(retry(attempts), reply=reply)
    assert raised.value is error
    assert (attempts.calls, reply.body, reply.starts) == (1, b"half", 1)


def test_write_of_an_earlier_attempt(retry: Any) -> None:
    """G1: a write() that outlived its attempt, in a thread say, writes nowhere."""
    writes: list[Any] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        writes.append(start_response("200 OK", list(TEXT)))
        raise lost()

    again = doing(lambda: writes[0](b"late"), answer())
    assert serve(retry(Attempts(app, again))).body == b"hello"


def test_server_fails_to_write(retry: Any) -> None:
    """G5: what the server's write() raises, the client having gone, the app sees as ever."""
    gone = BrokenPipeError()
    seen: list[BaseException] = []

    def start_response(*_: Any) -> Any:
        def write(data: bytes) -> None:
            raise gone

        return write

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            start_response("200 OK", list(TEXT))(b"x")
        except BrokenPipeError as exc:
            seen.append(exc)
            raise
        raise AssertionError("not reached")

    with pytest.raises(BrokenPipeError) as raised:
        retry(app)(request(), start_response)
    assert raised.value is gone
    assert seen == [gone]


# What is held


@pytest.mark.parametrize("how", ["yielded", "written"])
@pytest.mark.parametrize(("size", "calls"), [(100, 2), (101, 1)])
def test_held_server_errors_have_a_limit(retry: Any, how: str, size: int, calls: int) -> None:
    """G2: a 5xx is held up to body_memory bytes; with one more it is released, and sealed."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        write = start_response(ERROR, list(TEXT))
        current_attempt().doom(lost())
        if how == "written":
            write(b"x" * (size - 1))
        else:
            yield b"x" * (size - 1)
        yield b"!"

    attempts = Attempts(app, answer())
    reply = serve(retry(attempts, body_memory=100))
    assert (reply.status, attempts.calls) == (200 if calls == 2 else 500, calls)


def test_exception_after_a_held_server_error(retry: Any) -> None:
    """G5: a 5xx that is held is flushed before an exception that is not ours passes."""
    error = ValueError("a bug")
    reply = Reply()
    with pytest.raises(ValueError, match="a bug") as raised:
        serve(retry(generate(b"oops", error, status=ERROR)), reply=reply)
    assert raised.value is error
    assert (reply.status, reply.body) == (500, b"oops")


def test_exception_after_a_complete_start(retry: Any) -> None:
    """G5: a complete response without a body is sent even if the app's close() raises after it."""
    error = ValueError("a bug")
    reply = Reply()
    chunks = Chunks(on_close=error)
    with pytest.raises(ValueError, match="a bug") as raised:
        serve(retry(answer(chunks, "204 No Content", [])), reply=reply)
    assert raised.value is error
    assert (reply.status, chunks.closed) == (204, 1)


def test_hold_until_return(retry: Any) -> None:
    """With hold="until-return" a failure at the end of the stream, or in close(), is replayed."""
    for failing in (
        generate(b"hel", b"lo", lost()),
        answer(Chunks(b"hello", on_close=lost())),
        answer(Chunks(b"lo", lost()), written=[b"hel"]),
    ):
        app = Attempts(failing, answer(Chunks(b"hel", b"", b"lo")))
        reply = serve(retry(app, hold="until-return"))
        assert (reply.body, app.calls) == (b"hello", 2)


def test_hold_until_return_has_a_limit(retry: Any) -> None:
    """G2: what is held past body_memory bytes is released."""
    reply = Reply()
    app = generate(b"x" * 60, b"x" * 60, lambda: str(len(reply.body)).encode())
    serve(retry(app, hold="until-return", body_memory=100), reply=reply)
    assert reply.body == b"x" * 120 + b"120"


def test_failure_in_close_of_a_held_response(retry: Any) -> None:
    """A failure of ours in close(), while nothing has been sent, is replayed."""
    chunks = Chunks(on_close=lost())
    app = Attempts(answer(chunks, "204 No Content", []), answer())
    reply = serve(retry(app))
    assert (reply.status, app.calls, chunks.closed) == (200, 2, 1)


# What is returned


def test_list_passes_as_it_is() -> None:
    """G5: the server gets the very list that the app returned, and so its length."""
    # Plain: the validator returns an iterator of its own.
    body = [b"hel", b"lo"]
    assert serve(wrap(answer(body))).result is body


def test_length_stays_known() -> None:
    """G5: after a replay the server is still given a list where the app returned one."""
    # Plain: the validator returns an iterator of its own.
    for body in ([b"hello"], (b"hello",)):
        result = serve(wrap(Attempts(lost(), answer(body)))).result
        assert len(result) == 1


def test_close_only_where_the_app_has_one() -> None:
    """A list has no close(); a generator's does what it did."""
    # Plain: the validator returns an iterator of its own.
    assert not hasattr(serve(wrap(answer())).result, "close")
    assert hasattr(serve(wrap(generate(b"x"))).result, "close")


@pytest.mark.parametrize("failures", [0, 1])
def test_file_wrapper_reaches_the_server(failures: int) -> None:
    """G5: a wsgi.file_wrapper is returned as it is, so that the server can use sendfile."""
    # Plain: the validator returns an iterator of its own, which hides the file.
    wrapper = FileWrapper(io.BytesIO(b"hello"))
    app = Attempts(*[lost()] * failures, answer(wrapper))
    reply = serve(wrap(app), request(**{"wsgi.file_wrapper": FileWrapper}))
    assert reply.result is wrapper
    assert (reply.status, reply.body) == (200, b"hello")
    assert wrapper.filelike.closed


@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize(
    "sign",
    [{"wsgi.input_terminated": True}, {"wsgi.input_terminated": False}, {"CONTENT_LENGTH": "5"}],
)
def test_file_wrapper_whatever_the_server_says_of_its_input(sign: Any, failures: int) -> None:
    """G5: the same where there may be a body, which gunicorn says of every request."""
    # Plain: the validator returns an iterator of its own, which hides the file.
    wrapper = FileWrapper(io.BytesIO(b"hello"))
    environ = request("PUT", **{"wsgi.file_wrapper": FileWrapper}, **sign)
    assert serve(wrap(Attempts(*[lost()] * failures, answer(wrapper))), environ).result is wrapper


def test_file_wrapper_after_an_upload() -> None:
    """G5: the same where the app has read a body before it answers with a file."""
    # Plain: the validator returns an iterator of its own, which hides the file.
    wrapper = FileWrapper(io.BytesIO(b"hello"))

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        assert environ["wsgi.input"].read() == b"upload"
        return answer(wrapper)(environ, start_response)

    environ = request("POST", body=b"upload", **{"wsgi.file_wrapper": FileWrapper})
    assert serve(wrap(app), environ).result is wrapper


@pytest.mark.parametrize("failures", [0, 1])
def test_file_wrapper_that_is_a_function(failures: int) -> None:
    """G5: the same where the server's wsgi.file_wrapper is a function, as mod_wsgi's is."""
    # Plain: the validator returns an iterator of its own, which hides the file.
    made: list[Any] = []

    def file_wrapper(file: Any, size: int = 8192) -> Any:
        made.append(FileWrapper(file, size))
        return made[-1]

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))
        result: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(b"hello"))
        return result

    middleware = wrap(Attempts(*[lost()] * failures, app))
    reply = serve(middleware, request(**{"wsgi.file_wrapper": file_wrapper}))
    assert reply.body == b"hello"
    assert reply.result is made[-1]


def test_file_wrapper_after_write(retry: Any) -> None:
    """G5: what was written goes out before a file."""
    wrapper = FileWrapper(io.BytesIO(b"lo"))
    app = answer(wrapper, written=[b"hel"])
    assert serve(retry(app), request(**{"wsgi.file_wrapper": FileWrapper})).body == b"hello"


def test_file_wrapper_as_an_error_page(retry: Any) -> None:
    """A doomed attempt's 500 is replayed also where its page is a file, which is closed."""
    page = FileWrapper(io.BytesIO(b"oops"))
    app = Attempts(squashing(lost(), answer(page, ERROR)), answer())
    reply = serve(retry(app), request(**{"wsgi.file_wrapper": FileWrapper}))
    assert (reply.status, reply.body, app.calls) == (200, b"hello", 2)
    assert page.filelike.closed


def test_file_wrapper_gives_connections_back() -> None:
    """The database is released before the file is sent, however slow the client is."""
    # Plain: the validator returns an iterator of its own, which hides the file.
    database = FakeDatabase()
    app = doing(database.open, answer(FileWrapper(io.BytesIO(b"hello"))))
    environ = request(**{"wsgi.file_wrapper": FileWrapper})
    result = wrap(app, databases=[database])(environ, lambda *_: lambda data: None)
    assert database.order == ["release"]
    result.close()  # type: ignore[attr-defined]


# close()


@pytest.mark.parametrize("status", ["200 OK", ERROR])
@pytest.mark.parametrize("items", [(), (b"",), (b"hello",), (b"hel", b"", b"lo")])
@pytest.mark.parametrize("failures", [0, 1])
def test_closed_once_on_success(
    retry: Any, items: tuple[bytes, ...], status: str, failures: int
) -> None:
    """An iterable that was sent is closed once, by the server."""
    chunks = Chunks(*items)
    reply = serve(retry(Attempts(*[lost()] * failures, answer(chunks, status))))
    assert (reply.body, chunks.closed) == (b"".join(items), 1)


def test_closed_after_the_last_chunk(retry: Any) -> None:
    """G5: the app's close() comes after its last chunk was taken."""
    reply = Reply()
    bodies: list[bytes] = []
    chunks = Chunks(b"hel", b"lo", on_close=lambda: bodies.append(reply.body))
    serve(retry(answer(chunks)), reply=reply)
    assert bodies == [b"hello"]


@pytest.mark.parametrize("chunks", [(lost(),), (b"", lost()), ()])
def test_closed_once_on_replay(retry: Any, chunks: tuple[Any, ...]) -> None:
    """The iterable of an attempt that is replayed is closed once, before the next attempt."""
    failed = Chunks(*chunks)
    closed: list[int] = []
    app = Attempts(
        squashing(lost(), answer(failed, ERROR)),
        doing(lambda: closed.append(failed.closed), answer()),
    )
    assert serve(retry(app)).body == b"hello"
    assert (closed, failed.closed) == ([1], 1)


def test_closed_once_on_refusal(retry: Any) -> None:
    """The same where the client is refused."""
    raising, rendering = Chunks(lost()), Chunks(b"oops")
    for app in (answer(raising), squashing(lost(), answer(rendering, ERROR))):
        assert serve(retry(app), request("POST")).outcome == "not-replayable"
    assert (raising.closed, rendering.closed) == (1, 1)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("items", [(), (b"hel",), (b"hel", b"lo")])
def test_closed_once_on_exceptions(retry: Any, error: Any, items: tuple[bytes, ...]) -> None:
    """The same where an exception passes, before the release or after it."""
    chunks = Chunks(*items, error)
    with pytest.raises(type(error)):
        serve(retry(answer(chunks)))
    assert chunks.closed == 1


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
@pytest.mark.parametrize("failures", [0, 1])
def test_closed_once_when_the_client_leaves(retry: Any, taken: int, failures: int) -> None:
    """G6: a server that stops asking and closes has the app's iterable closed, once."""
    database = FakeDatabase()
    chunks = Chunks(b"a", b"b", b"c")
    app = Attempts(*[lost()] * failures, doing(database.open, answer(chunks)))
    environ, middleware = request(), retry(app, databases=[database])
    result = middleware(environ, lambda *_: lambda data: None)
    iterator = iter(result)
    for _ in range(taken):
        next(iterator)
    result.close()
    assert (chunks.closed, database.opened) == (1, 0)
    assert current_attempt(None) is None


def test_generators_are_closed_when_the_client_leaves(retry: Any) -> None:
    """G6: a generator's finally runs, and runs in its attempt."""
    numbers: list[int] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        try:
            yield b"a"
            yield b"b"
        finally:
            numbers.append(current_attempt().number)

    result = retry(Attempts(lost(), app))(request(), lambda *_: lambda data: None)
    next(iter(result))
    result.close()
    assert numbers == [2]


def test_closing_twice() -> None:
    """A server that closes twice, or goes on after it, does no harm to the app."""
    # Plain: the validator forbids it.
    chunks = Chunks(b"a", b"b")
    result = wrap(answer(chunks))(request(), lambda *_: lambda data: None)
    result.close()  # type: ignore[attr-defined]
    result.close()  # type: ignore[attr-defined]
    assert list(result) == []
    assert chunks.closed == 1


@pytest.mark.parametrize("error", [lost(), ValueError("a bug"), KeyboardInterrupt()])
def test_error_in_close(retry: Any, error: BaseException) -> None:
    """G5: what close() raises after the body passes to the server, once, and all is undone."""
    database = FakeDatabase()
    chunks = Chunks(b"hello", on_close=error)
    reply = Reply()
    middleware = retry(doing(database.open, answer(chunks)), databases=[database])
    with pytest.raises(type(error)) as raised:
        serve(middleware, reply=reply)
    assert raised.value is error
    assert (reply.body, chunks.closed, database.opened) == (b"hello", 1, 0)


def test_error_in_close_comes_from_close(retry: Any) -> None:
    """G5: the body of such a response is complete: the server hears of the error when it closes."""
    chunks = Chunks(b"hel", b"lo", on_close=ValueError("a bug"))
    result = retry(answer(chunks))(request(), lambda *_: lambda data: None)
    assert list(result) == [b"hel", b"lo"]
    with pytest.raises(ValueError, match="a bug"):
        result.close()  # type: ignore[attr-defined]
    assert chunks.closed == 1


def test_error_in_close_of_a_failed_attempt(retry: Any, caplog: pytest.LogCaptureFixture) -> None:
    """G7: an error in closing what a failed attempt returned is logged, and masks nothing."""
    failed = Chunks(lost(), on_close=ZeroDivisionError())
    reply = serve(retry(Attempts(answer(failed), answer())))
    assert (reply.body, failed.closed) == (b"hello", 1)
    assert "ZeroDivisionError" in caplog.text


def test_error_in_close_does_not_mask(retry: Any, caplog: pytest.LogCaptureFixture) -> None:
    """G7: neither does it mask the app's own exception."""
    chunks = Chunks(ValueError("a bug"), on_close=ZeroDivisionError())
    with pytest.raises(ValueError, match="a bug"):
        serve(retry(answer(chunks)))
    assert "ZeroDivisionError" in caplog.text


def test_iterables_without_close(retry: Any) -> None:
    """An iterable needs no close()."""
    for body in (iter([b"hel", b"lo"]), {b"hel": 1, b"lo": 2}, (b"hel", b"lo")):
        assert serve(retry(Attempts(lost(), answer(body)))).body == b"hello"


def test_head(retry: Any) -> None:
    """A HEAD request is replayed, and its answer has the app's headers and no body."""
    headers = [*TEXT, ("Content-Length", "5")]
    app = Attempts(lost(), answer((), headers=headers))
    reply = serve(retry(app), request("HEAD"))
    assert (reply.status, reply.body, reply.headers["Content-Length"]) == (200, b"", "5")


def test_head_whose_body_is_not_asked_for(retry: Any) -> None:
    """A server that skips the body of a HEAD request and closes ends the request all the same."""
    database = FakeDatabase()
    done: list[str] = []

    def view() -> None:
        database.open()
        current_attempt().on_success(lambda: done.append("done"))

    middleware = retry(doing(view, answer(Chunks(b"hello"))), databases=[database])
    middleware(request("HEAD"), lambda *_: lambda data: None).close()
    assert (database.opened, done) == (0, ["done"])


def test_truncated_stays_truncated(retry: Any) -> None:
    """G5: a response that is shorter than its Content-Length is not padded, and not replayed."""
    app = Attempts(generate(b"hel", headers=[*TEXT, ("Content-Length", "5")]))
    reply = serve(retry(app))
    assert (reply.body, app.calls, reply.headers["Content-Length"]) == (b"hel", 1, "5")


def test_failed_stream_raises_before_it_ends(retry: Any) -> None:
    """G5: a stream that fails never looks complete to the server."""
    result = retry(generate(b"hel", lost()))(request(), lambda *_: lambda data: None)
    iterator = iter(result)
    assert next(iterator) == b"hel"
    with pytest.raises(DisconnectionError):
        next(iterator)
    result.close()


@pytest.mark.parametrize(
    "app", [answer(), generate(b"hel", b"lo"), generate()], ids=["list", "generator", "empty"]
)
def test_environ_without_a_method_is_served(app: Any) -> None:
    """G5: an app that needs nothing of the environ gets by with a test client's empty one."""
    plain, wrapped = [], []
    expected = b"".join(app({}, lambda *start: plain.append(start)))
    assert b"".join(RetryMiddleware(app)({}, lambda *start: wrapped.append(start))) == expected
    assert wrapped == plain


def test_environ_without_a_method_is_not_replayed() -> None:
    """G3: what is not known to be safe runs once."""
    app, starts = Attempts(lost()), []
    RetryMiddleware(app)({}, lambda *start: starts.append(start))
    assert (app.calls, starts[0][0]) == (1, "503 Service Unavailable")


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
def test_what_can_be_closed_can_be_closed_when_it_was_held_to_its_end(status: str) -> None:
    """G5: who calls the app's own close() finds one, and the app's is called once."""
    body = Chunks(b"hel", b"lo")
    middleware = RetryMiddleware(answer(body, status), policy=RetryPolicy(hold="until-return"))
    result = middleware(request(), lambda *_: lambda data: None)
    assert b"".join(result) == b"hello"
    result.close()
    assert body.closed == 1
