"""G1: what a failed attempt leaves in the environ and in context variables: nothing."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from retrymw.typing import Environ, Report, StartResponse

from .helpers import (
    TEXT,
    Attempts,
    Chunks,
    answer,
    doing,
    generate,
    lost,
    request,
    serve,
    squashing,
)


def changing(changes: dict[str, Any], app: Any, removed: tuple[str, ...] = ()) -> Any:
    """``app``, after these changes of its environ."""

    def changed(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ.update(changes)
        for name in removed:
            del environ[name]
        result: Iterable[bytes] = app(environ, start_response)
        return result

    return changed


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_environ_is_the_same_object(retry: Any, failures: int) -> None:
    """G5: each attempt is given the very environ that the server gave."""
    environ = request()
    seen: list[Any] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(environ)
        if len(seen) <= failures:
            raise lost()
        return answer()(environ, start_response)

    serve(retry(app), environ)
    assert all(each is environ for each in seen)
    assert len(seen) == failures + 1


def test_environ_is_restored(retry: Any) -> None:
    """G1: what an attempt adds, changes and removes is undone before the next."""
    environ = request(path="/shop/orders", HTTP_X="1", HTTP_Y="2")
    expected = dict(environ)
    seen: list[Environ] = []

    def look(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        seen.append(dict(environ))
        return answer()(environ, start_response)

    changes = {"PATH_INFO": "/orders", "SCRIPT_NAME": "/shop", "HTTP_X": "3", "app.user": "me"}
    app = Attempts(*[changing(changes, Attempts(lost()), ("HTTP_Y",))] * 2, look)
    serve(retry(app), environ)
    ours = {"wsgi.input", "wsgi.errors"}  # the validators'
    assert seen[0].keys() == expected.keys()
    assert all(seen[0][name] == expected[name] for name in expected.keys() - ours)


@pytest.mark.parametrize("failures", [0, 1])
def test_environ_is_readable_after_the_call(retry: Any, failures: int) -> None:
    """G5: what the last attempt left in the environ is there for the code around the middleware."""
    environ = request()
    app = Attempts(
        *[changing({"werkzeug.request": "first", "left": 1}, Attempts(lost()))] * failures,
        changing({"werkzeug.request": "last"}, answer()),
    )
    serve(retry(app), environ)
    assert environ["werkzeug.request"] == "last"
    assert "left" not in environ


def test_method_is_the_clients(retry: Any) -> None:
    """G3: an app that changes REQUEST_METHOD in place does not change what may be replayed."""
    app = Attempts(changing({"REQUEST_METHOD": "GET"}, Attempts(lost())), answer())
    reply = serve(retry(app), request("POST"))
    assert (app.calls, reply.outcome) == (1, "not-replayable")


def test_refusal_of_head_has_no_body(retry: Any) -> None:
    """A 503 to HEAD has no body, also where the app turned REQUEST_METHOD into GET."""
    app = changing({"REQUEST_METHOD": "GET"}, Attempts(lost()))
    reply = serve(retry(app, max_replays=0), request("HEAD"))
    assert (reply.status, reply.body) == (503, b"")


def test_report_has_the_clients_path(retry: Any) -> None:
    """An app that shifts PATH_INFO to SCRIPT_NAME does not change what the log says."""
    reports: list[Report] = []
    app = changing({"SCRIPT_NAME": "/shop", "PATH_INFO": "/17"}, Attempts(lost()))
    serve(retry(app, hooks=[reports.append], max_replays=1), request(path="/shop/17"))
    assert {report.path for report in reports} == {"/shop/17"}


# Context variables


@pytest.fixture
def variable() -> contextvars.ContextVar[str]:
    return contextvars.ContextVar("variable")


def in_context(function: Any) -> Any:
    """Run the test in a context of its own."""
    return contextvars.copy_context().run(function)


@pytest.mark.parametrize("previous", [None, "outside"])
@pytest.mark.parametrize("squash", [False, True])
def test_variables_of_a_failed_attempt(
    retry: Any, variable: contextvars.ContextVar[str], previous: str | None, squash: bool
) -> None:
    """G1: what an attempt sets the next does not see, whether there was a value before or not."""
    seen: list[str | None] = []

    def look_and_set() -> None:
        seen.append(variable.get(None))
        variable.set(f"attempt {len(seen)}")

    failing = squashing(lost()) if squash else Attempts(lost())
    app = Attempts(*[doing(look_and_set, failing)] * 3, doing(look_and_set, answer()))

    def exchange() -> str:
        if previous is not None:
            variable.set(previous)
        serve(retry(app))
        return variable.get()

    assert in_context(exchange) == "attempt 4"
    assert seen == [previous] * 4


@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("error", [None, ValueError("a bug")])
def test_variables_of_the_last_attempt(
    retry: Any, variable: contextvars.ContextVar[str], failures: int, error: Exception | None
) -> None:
    """G5: what the last attempt sets is visible outside, also where its exception passes."""
    last = doing(lambda: variable.set("last"), Attempts(error) if error else answer())
    app = Attempts(*[lost()] * failures, last)

    def exchange() -> str | None:
        with contextlib.suppress(ValueError):
            serve(retry(app))
        return variable.get(None)

    assert in_context(exchange) == "last"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_variables_of_a_refused_request(
    retry: Any, variable: contextvars.ContextVar[str], method: str
) -> None:
    """G1: after a refusal the variables are what they were before the request."""
    app = doing(lambda: variable.set("failed"), Attempts(lost()))

    def exchange() -> str:
        variable.set("outside")
        serve(retry(app), request(method))
        return variable.get()

    assert in_context(exchange) == "outside"


@pytest.mark.parametrize("failures", [0, 1])
def test_variables_of_a_stream(
    retry: Any, variable: contextvars.ContextVar[str], failures: int
) -> None:
    """G5: what the app sets before it returns, its iterable sees in every chunk and in close()."""
    seen: list[str | None] = []

    def chunk() -> bytes:
        seen.append(variable.get(None))
        return b"x"

    chunks = Chunks(chunk, chunk, chunk, on_close=chunk)
    app = Attempts(
        *[doing(lambda: variable.set("failed"), Attempts(lost()))] * failures,
        doing(lambda: variable.set("app"), answer(chunks)),
    )
    in_context(lambda: serve(retry(app)))
    assert seen == ["app"] * 4


def test_variables_between_chunks(retry: Any, variable: contextvars.ContextVar[str]) -> None:
    """G5: what one chunk of a replay sets the next one sees."""

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        for n in (b"1", b"2", b"3"):
            yield variable.get("0").encode()
            variable.set(n.decode())

    assert in_context(lambda: serve(retry(Attempts(generate(lost()), app)))).body == b"012"


def test_failed_stream_resets_variables(retry: Any, variable: contextvars.ContextVar[str]) -> None:
    """G1: what a stream set before its first chunk failed is not seen in the replay."""

    def failing(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", list(TEXT))
        variable.set("failed")
        yield b""
        raise lost()

    app = Attempts(failing, generate(lambda: variable.get("none").encode()))
    assert in_context(lambda: serve(retry(app))).body == b"none"
