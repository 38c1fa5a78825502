"""What is replayed, how often, and what passes untouched."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import gevent
import pytest
import tenacity

from retrymw import (
    DisconnectionError,
    TooManyConnections,
    TransactionConflict,
    current_attempt,
    idempotent,
    never_replay,
    rollback_safe,
)
from retrymw.typing import Report

from .helpers import (
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

BASE_EXCEPTIONS = [KeyboardInterrupt, SystemExit, GeneratorExit, gevent.Timeout]


def test_nothing_fails(retry: Any) -> None:
    """G5: the client gets the app's own response, and nothing of ours."""
    app = Attempts(answer(headers=[("Content-Type", "text/plain"), ("X-App", "1")]))
    reply = serve(retry(app))
    assert (reply.status, reply.body, app.calls, reply.starts) == (200, b"hello", 1, 1)
    assert reply.headers.keys() == ["Content-Type", "X-App"]


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_replayed_until_it_works(retry: Any, failures: int) -> None:
    """G1: the client sees the last attempt only."""
    app = Attempts(*(lost() for _ in range(failures)), answer())
    reply = serve(retry(app))
    assert (reply.status, reply.body, app.calls, reply.starts) == (200, b"hello", failures + 1, 1)


@pytest.mark.parametrize("max_replays", [0, 1, 5])
def test_attempts_are_bounded(retry: Any, max_replays: int) -> None:
    """G2: the app runs at most 1 + max_replays times."""
    app = Attempts(lost())
    reply = serve(retry(app, max_replays=max_replays))
    assert (app.calls, reply.status, reply.outcome) == (1 + max_replays, 503, "exhausted")


def test_default_is_five_replays(retry: Any) -> None:
    """G2: six attempts, unless the policy says else."""
    app = Attempts(lost())
    serve(retry(app))
    assert app.calls == 6


def test_no_attempt_starts_past_the_deadline(retry: Any) -> None:
    """G2: a wait that would end after the deadline is not begun."""
    app = Attempts(lost())
    reply = serve(retry(app, wait=tenacity.wait_fixed(20), deadline=10))
    assert (app.calls, reply.status, reply.outcome) == (1, 503, "deadline")


def test_deadline_passes_while_waiting(
    retry: Any, on_wait: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2: a wait that took longer than it should have is followed by no attempt."""
    app = Attempts(lost(), answer())
    on_wait(lambda _: monkeypatch.setattr("retrymw._waiting.monotonic", lambda: 1e12))
    reply = serve(retry(app))
    assert (app.calls, reply.status, reply.outcome) == (1, 503, "deadline")


def test_waits_are_the_policys(retry: Any, on_wait: Any) -> None:
    """Before each replay the middleware waits as long as the strategy says."""
    waits: list[float] = []
    on_wait(waits.append)
    strategy = tenacity.wait_chain(*(tenacity.wait_fixed(n) for n in (1, 2, 3)))
    serve(retry(Attempts(lost(), lost(), lost(), answer()), wait=strategy))
    assert waits == [1, 2, 3]


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        *((method, 2) for method in ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")),
        *((method, 1) for method in ("POST", "PATCH")),
    ],
)
def test_methods(retry: Any, method: str, calls: int) -> None:
    """G3: without a mark the method decides."""
    app = Attempts(lost(), answer(() if method == "HEAD" else (b"hello",)))
    reply = serve(retry(app), request(method))
    assert app.calls == calls
    assert reply.outcome == ("recovered" if calls == 2 else "not-replayable")
    assert reply.status == (200 if calls == 2 else 503)


@pytest.mark.parametrize("mark", [None, idempotent, rollback_safe, never_replay])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
@pytest.mark.parametrize("commit", ["none", "seen", "unknown"])
def test_table(retry: Any, mark: Any, method: str, commit: str) -> None:
    """G3, G4: the table of what may be replayed, with the mark found through `find_endpoint`."""

    def view() -> None:
        attempt = current_attempt()
        if commit != "none":
            attempt.commit_sent()
        if commit == "seen":
            attempt.commit_answered(committed=True)
        if not attempt.is_replay:
            raise lost()

    endpoint = mark(lambda: None) if mark else None
    app = Attempts(doing(view, answer()))
    reply = serve(retry(app, find_endpoint=lambda _: endpoint), request(method))
    replayed = mark is not never_replay and (
        mark is idempotent
        or method == "GET"
        or (commit == "none" and (mark is rollback_safe or method == "PUT"))
    )
    assert app.calls == (2 if replayed else 1)
    refusal = {"none": "not-replayable", "seen": "committed", "unknown": "unknown"}[commit]
    assert reply.outcome == ("recovered" if replayed else refusal)
    if not replayed:
        assert reply.status == 503
        assert ("Retry-After" in reply.headers) is (commit == "none")


@pytest.mark.parametrize("phase", ["commit", "unknown"])
def test_lost_commit_answer(retry: Any, phase: Any) -> None:
    """G4: a PUT whose COMMIT may have been lost is not replayed, and coming back not advised."""
    app = Attempts(DisconnectionError("gone", phase=phase), answer())
    reply = serve(retry(app), request("PUT"))
    assert (app.calls, reply.outcome, reply.headers["Retry-After"]) == (1, "unknown", None)


def test_fence(retry: Any) -> None:
    """G3: beyond the fence even a GET does not run again, in this attempt or a later one."""
    app = Attempts(lost(), doing(lambda: current_attempt().fence("card charged"), Attempts(lost())))
    reply = serve(retry(app))
    assert (app.calls, reply.status, reply.outcome) == (2, 503, "not-replayable")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DisconnectionError, "disconnection"),
        (TooManyConnections, "too-many-connections"),
        (TransactionConflict, "conflict"),
    ],
)
def test_kinds(retry: Any, error: type[Exception], reason: str) -> None:
    """Every kind of failure is replayed, and named."""
    reply = serve(retry(Attempts(error("no"), answer())))
    assert (reply.status, reply.headers["Retry-Reason"]) == (200, reason)


def test_kinds_that_are_left_out(retry: Any) -> None:
    """G5: a kind that the policy leaves out passes as if retrymw were not there."""
    error = lost()
    app = Attempts(error)
    with pytest.raises(DisconnectionError) as raised:
        serve(retry(app, kinds={"conflict"}))
    assert raised.value is error
    assert app.calls == 1


@pytest.mark.parametrize("failures", [0, 1])
def test_exceptions_of_the_app_pass(retry: Any, failures: int) -> None:
    """G5, G7: an exception that is not ours passes, the same object, in whichever attempt."""
    error = ValueError("a bug")
    app = Attempts(*[lost()] * failures, error)
    with pytest.raises(ValueError, match="a bug") as raised:
        serve(retry(app))
    assert raised.value is error
    assert app.calls == 1 + failures


@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("error", BASE_EXCEPTIONS)
def test_base_exceptions_pass(retry: Any, error: type[BaseException], failures: int) -> None:
    """G6: nobody who wants to stop is kept, not even with a failure of ours as the cause."""
    stop = error()
    stop.__cause__ = lost()
    app = Attempts(*[lost()] * failures, stop, answer())
    with pytest.raises(error) as raised:
        serve(retry(app))
    assert raised.value is stop
    assert app.calls == 1 + failures


@pytest.mark.parametrize("error", BASE_EXCEPTIONS)
def test_base_exceptions_outweigh_doom(retry: Any, error: type[BaseException]) -> None:
    """G6: a doomed attempt that is told to stop is not replayed."""

    def view() -> None:
        current_attempt().doom(lost())
        raise error()

    app = Attempts(doing(view, answer()))
    with pytest.raises(error):
        serve(retry(app))
    assert app.calls == 1


@pytest.mark.parametrize("error", BASE_EXCEPTIONS)
def test_base_exceptions_of_an_iterable_pass(retry: Any, error: type[BaseException]) -> None:
    """G6: the same while the iterable is asked for its first chunk."""
    if error is GeneratorExit:
        app = Attempts(answer(Chunks(GeneratorExit())))
    else:
        app = Attempts(generate(error()))
    with pytest.raises(error):
        serve(retry(app))
    assert app.calls == 1


def test_stopped_while_waiting(retry: Any, on_wait: Any) -> None:
    """G6: what interrupts the wait passes, and the app does not run again."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    on_wait(interrupted)
    app = Attempts(lost(), answer())
    middleware = retry(app, max_waiting=1)
    with pytest.raises(KeyboardInterrupt):
        serve(middleware)
    assert app.calls == 1
    on_wait(lambda _: None)
    app.calls = 0
    assert serve(middleware).status == 200  # it waits no longer: there is room for the next


@pytest.mark.parametrize("status", ["500 Internal Server Error", "503 Service Unavailable"])
def test_squashed(retry: Any, status: str) -> None:
    """A doomed attempt that answered 5xx is replayed, and its answer never sent (G1)."""
    app = Attempts(squashing(lost(), answer((b"oops",), status)), answer())
    reply = serve(retry(app))
    assert (reply.status, reply.body, app.calls, reply.starts) == (200, b"hello", 2, 1)


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "404 Not Found", "499 Teapot"])
def test_handled(retry: Any, status: str) -> None:
    """A doomed attempt that answered below 500 handled its failure: it is sent as it is."""
    app = Attempts(squashing(lost(), answer((b"stale",), status)), answer())
    reply = serve(retry(app))
    assert (reply.status, reply.body, app.calls) == (int(status[:3]), b"stale", 1)
    assert "Retry-Attempts" not in reply.headers


def test_squashed_into_another_exception(retry: Any) -> None:
    """A doomed attempt that raised something else, without a chain, is replayed as well."""
    app = Attempts(squashing(lost(), Attempts(ValueError("hides it"))), answer())
    assert (serve(retry(app)).status, app.calls) == (200, 2)


def test_doom_of_one_attempt_ends_with_it(retry: Any) -> None:
    """The next attempt's own 500 is sent: it is not doomed by the one before."""
    app = Attempts(squashing(lost()), answer((b"bug",), "500 Internal Server Error"))
    reply = serve(retry(app))
    assert (reply.status, reply.body, app.calls) == (500, b"bug", 2)


def test_server_error_of_the_app_is_sent(retry: Any) -> None:
    """G5: a 5xx that no database layer had a part in is the app's."""
    app = Attempts(answer((b"bug",), "500 Internal Server Error"))
    reply = serve(retry(app))
    assert (reply.status, reply.body, app.calls) == (500, b"bug", 1)
    assert "Retry-Attempts" not in reply.headers


def test_nested_middleware(retry: Any) -> None:
    """G2: one middleware inside another does not multiply the replays."""
    app = Attempts(lost())
    reply = serve(retry(retry(retry(app))))
    assert (app.calls, reply.status) == (6, 503)


def test_request_within_a_request(retry: Any) -> None:
    """G2: a request that the app makes itself, of another middleware, passes through that."""
    inner = Attempts(lost())
    inner_middleware = retry(inner)
    outer = Attempts(lambda *_: [serve(inner_middleware).body])
    serve(retry(outer))
    assert inner.calls == outer.calls == 6


def test_the_current_attempt(retry: Any) -> None:
    """The app sees its attempt's number, the earlier failures, and a key that stays the same."""
    seen: list[Any] = []
    errors = [lost(), lost()]

    def look() -> None:
        attempt = current_attempt()
        failures = [failure.exception for failure in attempt.failures]
        seen.append((attempt.number, attempt.is_replay, attempt.is_last, failures, attempt.key))

    app = Attempts(*(doing(look, Attempts(error)) for error in errors), doing(look, answer()))
    serve(retry(app, max_replays=2))
    key = seen[0][-1]
    assert seen == [
        (1, False, False, [], key),
        (2, True, False, errors[:1], key),
        (3, True, True, errors, key),
    ]


def test_no_attempt_outside_a_request(retry: Any) -> None:
    """Before and after a request, also a failed one, there is no current attempt."""
    for error in (answer(), lost(), ValueError("a bug"), KeyboardInterrupt()):
        with contextlib.suppress(ValueError, KeyboardInterrupt):
            serve(retry(Attempts(error, answer())))
        assert current_attempt(None) is None


def test_attempt_while_streaming(retry: Any) -> None:
    """The app's iterable runs in its attempt, whichever that is, and what is around it does not."""
    numbers: list[int] = []

    def chunk() -> bytes:
        numbers.append(current_attempt().number)
        return b"x"

    app = Attempts(lost(), answer(Chunks(chunk, chunk, on_close=chunk)))
    reply = serve(retry(app))
    assert (numbers, reply.body) == ([2, 2, 2], b"xx")
    assert current_attempt(None) is None


def test_streaming_stays_streaming(retry: Any) -> None:
    """G5: a chunk reaches the server before the next is produced."""
    reply = Reply()
    lengths: list[int] = []

    def chunk() -> bytes:
        lengths.append(len(reply.chunks))
        return b"x"

    serve(retry(answer(Chunks(chunk, chunk, chunk))), reply=reply)
    assert (lengths, reply.chunks) == ([0, 1, 2], [b"x"] * 3)


def test_streaming_replay_stays_streaming(retry: Any) -> None:
    """G5: the same in a replay."""
    reply = Reply()
    lengths: list[int] = []

    def chunk() -> bytes:
        lengths.append(len(reply.chunks))
        return b"x"

    serve(retry(Attempts(lost(), generate(chunk, chunk, chunk))), reply=reply)
    assert (lengths, reply.chunks) == ([0, 1, 2], [b"x"] * 3)


@pytest.mark.parametrize("empty", [0, 1, 3])
def test_first_chunk_fails(retry: Any, empty: int) -> None:
    """G1: a stream whose first non-empty chunk fails has left nothing with the client."""
    app = Attempts(generate(*[b""] * empty, lost()), generate(b"hello"))
    reply = serve(retry(app))
    assert (reply.body, app.calls, reply.starts) == (b"hello", 2, 1)


@pytest.mark.parametrize("error", [lost(), ValueError("a bug"), KeyboardInterrupt()])
def test_later_chunk_fails(retry: Any, error: BaseException) -> None:
    """G2, G7: what fails after the release passes, the same object, and the attempt is undone."""
    database = FakeDatabase()
    reply = Reply()
    app = Attempts(doing(database.open, generate(b"hel", error, b"lo")))
    middleware = retry(app, databases=[database])
    with pytest.raises(type(error)) as raised:
        serve(middleware, reply=reply)
    assert raised.value is error
    assert (app.calls, reply.body, reply.starts) == (1, b"hel", 1)
    assert database.order == ["rollback", "release"]


def test_later_chunk_fails_is_reported(retry: Any, caplog: pytest.LogCaptureFixture) -> None:
    """G7: a stream that a failure of ours broke is logged as sealed, with the exception itself."""
    error = lost()
    reports: list[Report] = []
    with pytest.raises(DisconnectionError):
        serve(retry(generate(b"hel", error), hooks=[reports.append]))
    [report] = reports
    assert report.outcome == "sealed"
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("failures", [1, 6])
def test_one_record(retry: Any, caplog: pytest.LogCaptureFixture, failures: int) -> None:
    """G7: one record tells the story of all attempts, with the exception itself."""
    errors = [lost() for _ in range(failures)]
    serve(retry(Attempts(*errors, answer())), request(path="/orders/17"))
    [record] = caplog.records
    assert record.levelno == (logging.WARNING if failures < 6 else logging.ERROR)
    assert [failure.exception for failure in record.retrymw.failures] == errors  # type: ignore[attr-defined]
    assert record.exc_info is not None
    assert record.exc_info[1] is errors[-1]
    assert "/orders/17" in record.getMessage()


def test_hooks(retry: Any) -> None:
    """A hook is told of each failed attempt that is replayed, and of the end."""
    reports: list[Report] = []
    serve(retry(Attempts(lost(), lost(), answer()), hooks=[reports.append]))
    assert [(r.attempts, len(r.failures), r.outcome) for r in reports] == [
        (1, 1, None),
        (2, 2, None),
        (3, 2, "recovered"),
    ]


def test_hooks_are_told_nothing_of_success(retry: Any) -> None:
    """A request in which nothing failed is not reported, even if the app asked for its attempt."""
    reports: list[Report] = []
    serve(retry(doing(current_attempt, answer()), hooks=[reports.append]))
    assert reports == []


def test_hooks_do_no_harm(retry: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A hook that raises is logged, and nothing else changes."""

    def hook(report: Report) -> None:
        raise ZeroDivisionError

    reply = serve(retry(Attempts(lost(), answer()), hooks=[hook]))
    assert reply.status == 200
    assert "hook" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_start_up() -> None:
    """What can't work is refused when the app starts."""
    with pytest.raises(TypeError, match="allowed: a WSGI app"):
        wrap(None)  # type: ignore[arg-type]


def test_asynchronous_databases_are_refused_at_start_up() -> None:
    """An AsyncDatabase can't be worked with under WSGI."""

    class Asynchronous:
        async def rollback(self, attempt: object) -> None: ...
        async def release(self, attempt: object) -> None: ...
        async def ping(self) -> None: ...

    with pytest.raises(TypeError, match="not async"):
        wrap(answer(), databases=[Asynchronous()])
