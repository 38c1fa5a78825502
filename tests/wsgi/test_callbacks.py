"""What the app wants done when an attempt was undone, or its response was sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import Client

from retrymw import current_attempt
from retrymw.typing import Environ, StartResponse

from .helpers import (
    TEXT,
    Attempts,
    Chunks,
    FakeDatabase,
    Reply,
    answer,
    doing,
    generate,
    lost,
    request,
    serve,
    squashing,
    wrap,
)

EMPTY = answer((), "204 No Content", [])


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def register(calls: list[str]) -> Any:
    """Registers callbacks of the current attempt; they record its number in ``calls``."""

    def register() -> None:
        attempt = current_attempt()
        number = attempt.number
        attempt.on_rollback(lambda: calls.append(f"rollback {number}"))
        attempt.on_success(lambda: calls.append(f"success {number}"))

    return register


@pytest.mark.parametrize(
    "app", [answer(), answer(lambda: Chunks(b"hello")), generate(b"hello"), EMPTY]
)
@pytest.mark.parametrize("failures", [0, 2])
def test_once_for_each_attempt(
    retry: Any, calls: list[str], register: Any, app: Any, failures: int
) -> None:
    """G1: on_success is for the attempt that was sent, on_rollback for every other."""
    serve(retry(Attempts(*[doing(register, Attempts(lost()))] * failures, doing(register, app))))
    undone = [f"rollback {n + 1}" for n in range(failures)]
    assert calls == [*undone, f"success {failures + 1}"]


def test_refused(retry: Any, calls: list[str], register: Any) -> None:
    """G1: nothing of a refused request succeeded."""
    serve(retry(doing(register, Attempts(lost())), max_replays=1))
    assert calls == ["rollback 1", "rollback 2"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("chunks", [(), (b"hel",)])
def test_exceptions(
    retry: Any, calls: list[str], register: Any, error: BaseException, chunks: Any
) -> None:
    """G1: nothing of a request whose exception passes succeeded, not even of a broken stream."""
    with pytest.raises(type(error)):
        serve(retry(doing(register, generate(*chunks, error))))
    assert calls == ["rollback 1"]


def test_squashed(retry: Any, calls: list[str], register: Any) -> None:
    """G1: nor of a squashed attempt."""
    serve(retry(Attempts(doing(register, squashing(lost())), answer())))
    assert calls == ["rollback 1"]


@pytest.mark.parametrize("body", [(b"hel", b"lo"), lambda: Chunks(b"hel", b"lo")])
def test_success_comes_after_the_last_chunk(
    retry: Any, register: Any, calls: list[str], body: Any
) -> None:
    """on_success is called when the whole response is with the server."""
    reply = Reply()
    bodies: list[bytes] = []

    def view() -> None:
        register()
        current_attempt().on_success(lambda: bodies.append(reply.body))

    serve(retry(doing(view, answer(body))), reply=reply)
    assert (bodies, calls) == ([b"hello"], ["success 1"])


def test_registered_while_streaming(retry: Any, register: Any, calls: list[str]) -> None:
    """A stream may register callbacks up to its last chunk."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        yield b"hel"
        register()
        yield b"lo"
        register()

    serve(retry(app))
    assert calls == ["success 1"] * 2


def test_success_comes_after_the_release(retry: Any) -> None:
    """on_success may use the database: the attempt's connection is back by then."""
    database = FakeDatabase()
    opened: list[int] = []

    def view() -> None:
        database.open()
        current_attempt().on_success(lambda: opened.append(database.opened))

    for app in (answer(), generate(b"hello")):
        serve(retry(doing(view, app), databases=[database]))
    assert opened == [0, 0]


def test_client_left_in_mid_stream(retry: Any, calls: list[str], register: Any) -> None:
    """G6: a client that leaves ends the exchange: one callback is called, once."""
    result = retry(doing(register, generate(b"a", b"b")))(request(), lambda *_: lambda data: None)
    next(iter(result))
    result.close()  # type: ignore[attr-defined]
    assert len(calls) == 1


def test_errors_are_logged(retry: Any, caplog: pytest.LogCaptureFixture) -> None:
    """G7: an error in a callback is logged; the others are called, the client has its answer."""
    calls: list[int] = []

    def view() -> None:
        attempt = current_attempt()
        for register in (attempt.on_rollback, attempt.on_success):
            register(lambda: 1 / 0)
            register(lambda: calls.append(attempt.number))

    app = Attempts(doing(view, Attempts(lost())), doing(view, answer()))
    assert serve(retry(app)).body == b"hello"
    assert calls == [1, 2]
    assert caplog.text.count("ZeroDivisionError: division by zero") == 2


def test_errors_never_mask(retry: Any, caplog: pytest.LogCaptureFixture) -> None:
    """G7: an error in on_rollback does not mask the exception that passes."""
    app = doing(lambda: current_attempt().on_rollback(lambda: 1 / 0), Attempts(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        serve(retry(app))
    assert "ZeroDivisionError" in caplog.text


def test_coroutine_functions_are_refused(retry: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody can await a coroutine function under WSGI: that is logged."""

    async def callback() -> None: ...

    assert (
        serve(retry(doing(lambda: current_attempt().on_success(callback), answer()))).status == 200
    )
    assert "coroutine function" in caplog.text


# Test clients that never call close()


@pytest.mark.parametrize(
    "app",
    [answer(), answer(lambda: Chunks(b"hel", b"lo")), generate(b"hello"), EMPTY],
)
@pytest.mark.parametrize("failures", [0, 1])
def test_without_close(calls: list[str], register: Any, app: Any, failures: int) -> None:
    """The end of a request does not hang on close(): it comes with the end of the body."""
    # Plain: the validator demands close().
    database = FakeDatabase()

    def view() -> None:
        database.open()
        register()

    attempts = Attempts(*[lost()] * failures, doing(view, app))
    serve(wrap(attempts, databases=[database]), close=False)
    assert (calls, database.order) == ([f"success {failures + 1}"], ["release"])


@pytest.mark.parametrize("app", [answer(), generate(b"hel", b"lo")])
@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("buffered", [False, True])
def test_werkzeug_client(
    calls: list[str], register: Any, app: Any, failures: int, buffered: bool
) -> None:
    """The same with Werkzeug's test client, which closes only if it is told to."""
    # Plain: the validator demands close().
    database = FakeDatabase()

    def view() -> None:
        database.open()
        register()

    attempts = Attempts(*[lost()] * failures, doing(view, app))
    client = Client(wrap(attempts, databases=[database]))
    response = client.get("/", buffered=buffered)
    assert (response.status_code, response.data) == (200, b"hello")
    assert (calls, database.order) == ([f"success {failures + 1}"], ["release"])


def test_werkzeug_client_that_looks_at_the_status_only() -> None:
    """G1: a test that reads no more than the status leaves no connection behind."""
    # Plain: the validator demands close().
    database = FakeDatabase()
    client = Client(wrap(doing(database.open, answer()), databases=[database]))
    assert client.get("/").status_code == 200
    assert database.opened == 0
