"""The request body: recorded as the app reads it, and read again from byte 0."""

from __future__ import annotations

import io
import itertools
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from retrymw._recording import Recording
from retrymw.typing import Environ, StartResponse

from .helpers import (
    TEXT,
    Attempts,
    Reply,
    answer,
    generate,
    lost,
    request,
    serve,
    wrap,
)

BODY = b"first line\nsecond line\n\nlast"

READS: dict[str, Callable[[Any], bytes]] = {
    "read()": lambda f: f.read(),
    "read(-1)": lambda f: f.read(-1),
    "read(None)": lambda f: f.read(None),
    "read(3)…": lambda f: b"".join(iter(lambda: f.read(3), b"")),
    "readline()…": lambda f: b"".join(iter(f.readline, b"")),
    "readline(4)…": lambda f: b"".join(iter(lambda: f.readline(4), b"")),
    "readline(-1)…": lambda f: b"".join(iter(lambda: f.readline(-1), b"")),
    "readlines()": lambda f: b"".join(f.readlines()),
    "readlines(1)…": lambda f: b"".join(
        b"".join(lines) for lines in iter(lambda: f.readlines(1), [])
    ),
    "for line in": b"".join,
    "readinto(5)…": lambda f: b"".join(iter(lambda: into(f, 5), b"")),
    "read(0), read(1), read()": lambda f: f.read(0) + f.read(1) + f.read(),
    "read(5), readline(), read()": lambda f: f.read(5) + f.readline() + f.read(),
}


def into(file: Any, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: file.readinto(buffer)])


class Short(io.BytesIO):
    """A server's input whose reads are legally short: at most ``most`` bytes each."""

    def __init__(self, body: bytes, most: int = 2) -> None:
        super().__init__(body)
        self._most = most
        self.reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if size is None or size < 0:
            return super().read()
        return super().read(min(size, self._most))

    def readline(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        return super().readline(size)


def reading(read: Callable[[Any], bytes], seen: list[bytes], error: Exception | None = None) -> Any:
    """An app that reads its input, then fails or echoes what it read."""

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(read(environ["wsgi.input"]))
        if error is not None:
            raise error
        start_response("200 OK", list(TEXT))
        return [seen[-1]]

    return app


@pytest.mark.parametrize("second", READS)
@pytest.mark.parametrize("first", READS)
def test_every_attempt_reads_the_whole_body(outside: Any, first: str, second: str) -> None:
    """G5: however an attempt reads, and however an earlier one did, it reads the body."""
    seen: list[bytes] = []
    app = Attempts(
        reading(READS[first], seen, lost()),
        reading(lambda f: f.read(7), seen, lost()),
        reading(READS[second], seen),
    )
    reply = serve(outside(app), request("PUT", body=BODY))
    assert (seen, reply.body) == ([BODY, BODY[:7], BODY], BODY)


@pytest.mark.parametrize("how", ["read(3)…", "readline()…", "readlines()", "for line in"])
def test_between_validators(retry: Any, how: str) -> None:
    """G5: the same between validators, which know less of a file."""
    seen: list[bytes] = []
    app = Attempts(reading(READS[how], seen, lost()), reading(READS[how], seen))
    assert serve(retry(app), request("PUT", body=BODY)).body == BODY
    assert seen == [BODY, BODY]


@pytest.mark.parametrize("method", ["readlines", "readline", "read"])
def test_return_values_are_those_of_a_file(outside: Any, method: str) -> None:
    """G5: a read returns what the server's own input would, live and in a replay."""
    for arguments in ((), (0,), (1,), (12,), (100,), (-1,), (None,)):
        file = io.BufferedReader(io.BytesIO(BODY))  # type: ignore[arg-type]
        expected = [getattr(file, method)(*arguments) for _ in range(3)]
        seen: list[Any] = []

        def read(f: Any, seen: Any = seen, arguments: Any = arguments) -> bytes:
            seen.append([getattr(f, method)(*arguments) for _ in range(3)])
            return b"read"

        app = Attempts(reading(read, [], lost()), reading(read, []))
        serve(outside(app), request("PUT", body=BODY))
        assert seen == [expected, expected], arguments


def test_short_reads_stay_short(retry: Any) -> None:
    """G5: a legal short read is not an end, is handed on as it is, and is no less in a replay."""
    seen: list[bytes] = []
    live = Short(BODY)
    app = Attempts(reading(lambda f: f.read(7), seen, lost()), reading(READS["read(3)…"], seen))
    serve(retry(app), request("PUT", body=BODY, **{"wsgi.input": live}))
    assert seen == [BODY[:2], BODY]


def test_nothing_is_read_ahead(retry: Any) -> None:
    """G5: an app that does not read leaves the body with the server, for 100-continue and 413."""
    live = Short(BODY)
    app = Attempts(lost(), answer(status="413 Content Too Large"))
    serve(retry(app), request("PUT", body=BODY, **{"wsgi.input": live}))
    assert (live.reads, live.tell()) == (0, 0)


def test_upload_stays_streaming(retry: Any) -> None:
    """G5: the app has the first bytes of an upload before the client has sent the others."""
    asked: list[int] = []

    class Upload(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            asked.append(self.tell())
            return super().read(size)

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        while chunk := environ["wsgi.input"].read(10):
            yield b"%d:%d " % (asked[-1], len(chunk))

    environ = request("PUT", body=BODY, **{"wsgi.input": Upload(BODY)})
    assert serve(retry(app), environ).body == b"0:10 10:10 20:8 "


@pytest.mark.parametrize("size", [4, 5])
def test_read_across_the_end_of_the_recording(retry: Any, size: int) -> None:
    """Where the recording ends within a read, the rest comes from the server."""
    seen: list[bytes] = []
    app = Attempts(
        reading(lambda f: f.read(4), seen, lost()),
        reading(lambda f: f.read(2) + f.read(size), seen, lost()),
        reading(lambda f: f.readline() + f.readline(), seen),
    )
    serve(retry(app), request("PUT", body=BODY))
    assert seen == [BODY[:4], BODY[: 2 + size], BODY[: BODY.index(b"\n", 12) + 1]]


@pytest.mark.parametrize(
    "sign", [{"HTTP_TRANSFER_ENCODING": "chunked"}, {"wsgi.input_terminated": True}]
)
@pytest.mark.parametrize("how", READS)
def test_chunked(outside: Any, sign: Any, how: str) -> None:
    """G5: a body without a CONTENT_LENGTH is replayed as well."""
    seen: list[bytes] = []
    app = Attempts(reading(READS[how], seen, lost()), reading(READS[how], seen))
    environ = request("PUT", **{"wsgi.input": Short(BODY)}, **sign)
    assert "CONTENT_LENGTH" not in environ
    if "read(1)" in how or "read(5)" in how:
        environ["wsgi.input"] = io.BytesIO(BODY)
    assert serve(outside(app), environ).body == BODY
    assert seen == [BODY, BODY]


@pytest.mark.parametrize("length", ["", "0", None])
def test_no_body(length: str | None) -> None:
    """G5: without a body the app gets the server's own input."""
    # Plain: the validator gives the app an input of its own.
    environ = request("PUT", **{} if length is None else {"CONTENT_LENGTH": length})
    live = environ["wsgi.input"]
    inputs: list[Any] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        inputs.append(environ["wsgi.input"])
        if len(inputs) == 1:
            raise lost()
        return answer()(environ, start_response)

    serve(wrap(app), environ)
    assert inputs == [live, live]


@pytest.mark.parametrize("length", ["x", "-1", "5 ", "1e3", "99999999999999999999"])
def test_bad_content_length_is_the_apps_business(length: str) -> None:
    """G5: the middleware does not judge CONTENT_LENGTH; it replays what the app has read."""
    # Plain: the validator judges it.
    seen: list[bytes] = []
    app = Attempts(*(reading(lambda f: f.read(5), seen, e) for e in (lost(), None)))
    environ = request("PUT", body=BODY, CONTENT_LENGTH=length)
    assert serve(wrap(app), environ).body == BODY[:5]
    assert seen == [BODY[:5]] * 2


@pytest.mark.parametrize("headers", [{}, {"CONTENT_LENGTH": "5"}])
def test_missing_input(headers: Any) -> None:
    """G5: a test client may leave wsgi.input out; it stays out."""
    # Plain: the validator asks for it.
    present: list[bool] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        present.append("wsgi.input" in environ)
        if len(present) == 1:
            raise lost()
        return answer()(environ, start_response)

    environ = request("PUT", **headers)
    del environ["wsgi.input"]
    assert serve(wrap(app), environ).status == 200
    assert present == [False, False]
    assert "wsgi.input" not in environ


@pytest.mark.parametrize(
    "wrapper",
    [
        pickle.load,
        lambda f: io.BufferedReader(f).read(),
        lambda f: io.TextIOWrapper(f, "latin-1").read().encode("latin-1"),
    ],
    ids=["pickle.load", "io.BufferedReader", "io.TextIOWrapper"],
)
def test_input_is_a_file(outside: Any, wrapper: Callable[[Any], bytes]) -> None:
    """G5: what the standard library does with a server's input it can do with ours."""
    body = pickle.dumps(b"hello" * 100)
    expected = wrapper(io.BytesIO(body))
    seen: list[bytes] = []
    app = Attempts(*(reading(wrapper, seen, e) for e in (lost(), None)))
    serve(outside(app), request("PUT", body=body))
    assert seen == [expected, expected]


@pytest.mark.parametrize("how", ["read()", "read(3)…", "readline()…", "readlines()"])
def test_known_end_is_not_read_again(outside: Any, how: str) -> None:
    """G5: an input may block past its end: once an attempt has seen that, it is left alone."""
    live = Short(BODY)
    counts: list[int] = []
    seen: list[bytes] = []

    def read(file: Any) -> bytes:
        body = READS[how](file)
        counts.append(live.reads)
        return body

    app = Attempts(reading(read, seen, lost()), reading(read, seen))
    serve(outside(app), request("PUT", HTTP_TRANSFER_ENCODING="chunked", **{"wsgi.input": live}))
    assert seen == [BODY, BODY]
    assert counts[0] == counts[1] > 0


def test_error_while_reading(retry: Any) -> None:
    """G5: what the server's input raises, the client having gone, the app sees; no replay."""

    class Gone(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise ConnectionResetError("the client has gone")

    app = Attempts(reading(lambda f: f.read(5), []))
    with pytest.raises(ConnectionResetError):
        serve(retry(app), request("PUT", body=BODY, **{"wsgi.input": Gone()}))
    assert app.calls == 1


def test_truncated_body_stays_truncated(retry: Any) -> None:
    """G5: a body shorter than its CONTENT_LENGTH is so in every attempt."""
    seen: list[bytes] = []
    app = Attempts(*(reading(READS["read(3)…"], seen, e) for e in (lost(), None)))
    serve(retry(app), request("PUT", body=BODY, CONTENT_LENGTH="1000"))
    assert seen == [BODY, BODY]


# Spill and limit


@pytest.fixture
def spills(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The temporary files that are opened."""
    files: list[Any] = []
    real = tempfile.TemporaryFile

    def opened(*args: Any, **kwargs: Any) -> Any:
        files.append(real(*args, **kwargs))
        return files[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", opened)
    yield files
    for file in files:
        file.close()  # or a leak would be reported in another test


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("memory", [0, 5, 27, 28])
def test_spill(outside: Any, spills: list[Any], how: str, memory: int) -> None:
    """G2: past body_memory the recording goes to disk; the app does not notice; nothing stays."""
    seen: list[bytes] = []
    app = Attempts(
        reading(READS[how], seen, lost()),
        reading(lambda f: f.read(7), seen, lost()),
        reading(READS[how], seen),
    )
    reply = serve(outside(app, body_memory=memory), request("PUT", body=BODY))
    assert (seen, reply.body) == ([BODY, BODY[:7], BODY], BODY)
    assert len(spills) == (1 if memory < len(BODY) else 0)
    assert all(file.closed for file in spills)


@pytest.mark.parametrize(
    ("app", "error"),
    [
        (reading(READS["read(3)…"], []), None),
        (reading(READS["read(3)…"], [], ValueError("a bug")), ValueError),
        (reading(READS["read(3)…"], [], lost()), None),
        (reading(READS["read(3)…"], [], KeyboardInterrupt()), KeyboardInterrupt),  # type: ignore[arg-type]
    ],
    ids=["success", "exception", "refusal", "interrupt"],
)
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_nothing_stays_on_disk(
    retry: Any, spills: list[Any], app: Any, error: Any, method: str
) -> None:
    """G1, G2: however the exchange ends, the recording is gone with it."""
    middleware = retry(Attempts(app), body_memory=1)
    if error is None:
        serve(middleware, request(method, body=BODY))
    else:
        with pytest.raises(error):
            serve(middleware, request(method, body=BODY))
    assert [file.closed for file in spills] == [True]


def test_nothing_stays_on_disk_when_a_wait_is_interrupted(
    retry: Any, spills: list[Any], on_wait: Any
) -> None:
    """G1, G6: the same where the wait before a replay is interrupted."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    on_wait(interrupted)
    with pytest.raises(KeyboardInterrupt):
        serve(
            retry(reading(READS["read(3)…"], [], lost()), body_memory=1), request("PUT", body=BODY)
        )
    assert [file.closed for file in spills] == [True]


@pytest.mark.parametrize(("limit", "calls"), [(28, 2), (27, 1)])
def test_limit(retry: Any, limit: int, calls: int) -> None:
    """G2: past body_limit the recording is dropped: the app reads on, but is not replayed."""
    seen: list[bytes] = []
    read = READS["read(3)…"]
    app = Attempts(reading(read, seen, lost()), reading(read, seen))
    reply = serve(retry(app, body_memory=8, body_limit=limit), request("PUT", body=BODY))
    assert (seen, app.calls) == ([BODY] * calls, calls)
    assert (reply.status, reply.outcome) == ((200, "recovered") if calls == 2 else (503, "sealed"))


def test_past_the_limit_nothing_is_kept(retry: Any, spills: list[Any]) -> None:
    """G2: a recording that was dropped takes no disk while the app goes on."""
    closed: list[bool] = []

    def read(file: Any) -> bytes:
        body = READS["read(3)…"](file)
        closed.extend(spilled.closed for spilled in spills)
        return body

    serve(retry(reading(read, []), body_memory=5, body_limit=9), request("PUT", body=BODY))
    assert closed == [True]


def test_past_the_limit_nothing_else_changes(retry: Any) -> None:
    """G5: a request whose recording was dropped is answered like any other."""
    app = Attempts(reading(READS["read(3)…"], []))
    reply = serve(retry(app, body_memory=8, body_limit=9), request("POST", body=BODY))
    assert (reply.status, reply.body) == (200, BODY)
    assert reply.outcome is None


# After the exchange


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over a recording that gives nothing fails, and does not go on for ever."""
    read, calls = Recording.read, itertools.count()

    def counted(self: Recording, position: int, size: int) -> bytes:
        assert next(calls) < 1000, "reads the recording in an endless loop"
        return read(self, position, size)

    monkeypatch.setattr(Recording, "read", counted)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("memory", [1, 1 << 20])
def test_echo_by_file_wrapper(spills: list[Any], memory: int, failures: int) -> None:
    """G5: an app may hand its input to the server as a file, to be read when it has returned."""
    # Plain: the validator demands close(), which its own input does not allow.

    def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", list(TEXT))
        wrapper: Iterable[bytes] = environ["wsgi.file_wrapper"](environ["wsgi.input"])
        return wrapper

    failed = reading(lambda f: f.read(5), [], lost())
    environ = request("PUT", body=BODY, **{"wsgi.file_wrapper": FileWrapper})
    reply = serve(
        wrap(Attempts(*[failed] * failures, echo), body_memory=memory), environ, close=False
    )
    assert reply.body == BODY
    assert all(spilled.closed for spilled in spills)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("app", [answer(), generate(b"hello")])
def test_input_after_the_exchange(retry: Any, app: Any, failures: int) -> None:
    """What the last attempt has left unread, code around the middleware can read."""
    failed = reading(lambda f: f.read(5), [], lost())
    environ = request("PUT", body=BODY)
    serve(retry(Attempts(*[failed] * failures, app)), environ)
    assert environ["wsgi.input"].read(100) in (BODY, BODY[5:])


def test_input_that_the_app_replaced(retry: Any) -> None:
    """G1: an app that consumes its input, and puts another in its place, is given its own again."""
    seen: list[bytes] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(environ["wsgi.input"].read(100))
        environ["wsgi.input"] = io.BytesIO(b"replaced")
        if len(seen) == 1:
            raise lost()
        return answer()(environ, start_response)

    serve(retry(app), request("PUT", body=BODY))
    assert seen == [BODY, BODY]


def test_input_read_by_the_iterable(retry: Any) -> None:
    """G5: a streaming response may read the body as it goes, in a replay too."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        while line := environ["wsgi.input"].readline():
            yield line

    reply = Reply()
    failed = reading(lambda f: f.read(15), [], lost())
    serve(retry(Attempts(failed, app)), request("PUT", body=BODY), reply)
    assert reply.body == BODY
