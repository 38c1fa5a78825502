"""The current attempt, as the app and the adapters see it, and what a replay must not see."""

from __future__ import annotations

import contextvars
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from unittest import mock

import pytest
import tenacity

from retrymw import (
    DisconnectionError,
    RetryPolicy,
    TransactionConflict,
    current_attempt,
    idempotent,
    never_replay,
)
from retrymw._context import Attempt, is_inside, uuid
from retrymw._traces import adopt, forget_frames, restore
from retrymw.wsgi import RetryMiddleware


def serve(*views, method="GET", body=b"", databases=(), endpoint=None, **rules):
    """One request, whose attempts run ``views`` in turn, the last of them again and again.

    A view gets the environ and returns a status. What the client sees comes back: the status and
    the header Retry-Outcome.
    """
    rules.setdefault("wait", tenacity.wait_none())
    pending = list(views)
    replies = []

    def app(environ, start_response):
        view = pending.pop(0) if len(pending) > 1 else pending[0]
        start_response(f"{view(environ) or 200} Status", [])
        return [b"body"]

    middleware = RetryMiddleware(
        app,
        policy=RetryPolicy(**rules),
        databases=databases,
        find_endpoint=lambda environ: environ.get("endpoint", endpoint),
    )
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": "/",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    body = middleware(environ, lambda status, headers, *_: replies.append((status, headers)))
    assert all(isinstance(chunk, bytes) for chunk in body)
    [(status, headers)] = replies
    return int(status[:3]), dict(headers).get("Retry-Outcome")


def lose(environ=None):
    raise DisconnectionError("lost")


def collect(function, kept):
    """A view that keeps what ``function(attempt)`` gives, and fails."""

    def view(environ):
        kept.append(function(current_attempt()))
        lose()

    return view


class Database:
    """Undoes nothing."""

    def rollback(self, attempt):
        pass

    def release(self, attempt):
        pass

    def ping(self):
        pass


# Where there is one.


def test_outside_a_request():
    """Outside a request there is none: a LookupError says what to do, or the default comes back."""
    with pytest.raises(LookupError, match=r"current_attempt\(None\)"):
        current_attempt()
    assert current_attempt(None) is None
    assert current_attempt(default := object()) is default


def test_inside_and_after_a_request():
    """In a request it is the same object all along an attempt; afterwards there is none again."""
    seen = []

    def view(environ):
        seen.extend([current_attempt(), current_attempt(None)])

    assert serve(view) == (200, None)
    assert isinstance(seen[0], Attempt)
    assert seen[0] is seen[1]
    assert current_attempt(None) is None


def test_threads():
    """A thread that was started with the context has the attempt, and any other has none."""
    seen = []

    def view(environ):
        with ThreadPoolExecutor(1) as pool:
            context = contextvars.copy_context()
            seen.append(pool.submit(context.run, current_attempt).result() is current_attempt())
            seen.append(pool.submit(current_attempt, None).result())

    serve(view)
    assert seen == [True, None]


def test_threads_of_one_attempt_share_it():
    """Threads that ask for the attempt at once, before anybody has, get the same one."""
    seen = []

    def ask(context, barrier):
        barrier.wait(10)
        return context.run(current_attempt)

    def view(environ):
        barrier = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, contextvars.copy_context(), barrier) for _ in range(8)]
            seen.extend(one.result() for one in asked)

    serve(view)
    assert len(seen) == 8
    assert len(set(seen)) == 1


# What it says.


def test_number():
    """Attempts are numbered from 1; those from 2 on are replays; the last one knows that it is."""
    seen = []
    view = collect(lambda attempt: (attempt.number, attempt.is_replay, attempt.is_last), seen)
    assert serve(view, max_replays=2) == (503, "exhausted")
    assert seen == [(1, False, False), (2, True, False), (3, True, True)]


def test_key():
    """The key is the same in all attempts of an exchange, and no other exchange has it."""
    keys = [[], []]
    for seen in keys:
        serve(collect(lambda attempt: attempt.key, seen), max_replays=2)
        assert len(seen) == 3
        assert len(set(seen)) == 1
        assert isinstance(seen[0], str)
        assert len(seen[0]) >= 32
    assert keys[0] != keys[1]


def test_key_is_made_once():
    """G4: two threads that ask for the idempotency key at once get the same one."""
    barrier = threading.Barrier(2)
    make = uuid.uuid4

    def slow():
        with suppress(threading.BrokenBarrierError):
            barrier.wait(0.1)  # both threads are in here, unless one keeps the other out
        return make()

    keys = []

    def view(environ):
        attempt = current_attempt()
        with ThreadPoolExecutor(2) as pool:
            keys.extend(pool.map(lambda _: attempt.key, range(2)))

    with mock.patch.object(uuid, "uuid4", slow):
        serve(view)
    assert len(set(keys)) == 1


def test_failures():
    """G7: an attempt knows why the earlier ones failed, oldest first, and nothing of later ones."""
    attempts, seen = [], []

    def conflict(environ):
        attempts.append(current_attempt())
        raise TransactionConflict("deadlock")

    serve(conflict, collect(attempts.append, []), collect(repr, seen))
    assert [failure.kind for failure in attempts[0].failures] == []
    assert [failure.kind for failure in attempts[1].failures] == ["conflict"]
    assert isinstance(attempts[1].failures[0].exception, TransactionConflict)


def test_repr():
    """The representation tells the attempt, for a log or a debugger."""
    seen = []
    serve(lambda environ: seen.extend([current_attempt(), repr(current_attempt())]))
    assert seen[1] == "<Attempt 1 of GET>"
    assert repr(seen[0]) == "<Attempt 1 of GET (over)>"


def test_over():
    """An attempt is over when the app has returned, or has failed."""
    attempts = []
    states = []

    def view(environ):
        attempts.append(current_attempt())
        states.append([attempt.over for attempt in attempts])
        if len(attempts) == 1:
            lose()

    serve(view)
    assert states == [[False], [True, False]]
    assert [attempt.over for attempt in attempts] == [True, True]


# Whether it is the last.


@pytest.mark.parametrize(
    ("method", "endpoint", "last"),
    [
        ("GET", None, False),
        ("PUT", None, False),
        ("POST", None, True),
        ("POST", idempotent(lambda: None), False),
        ("POST", idempotent(max_replays=0)(lambda: None), True),
        ("GET", never_replay(lambda: None), True),
    ],
)
def test_is_last_by_the_endpoint(method, endpoint, last):
    """An attempt that is never replayed is the last one from the start, once it is routed."""
    seen = []
    serve(lambda environ: seen.append(current_attempt().is_last), method=method, endpoint=endpoint)
    assert seen == [last]


def test_is_last_after_a_commit():
    """After a commit was answered, an unmarked PUT is not replayed, however it fails."""
    seen = []

    def view(environ):
        attempt = current_attempt()
        attempt.commit_sent()
        attempt.commit_answered(committed=True)
        seen.append(attempt.is_last)

    serve(view, method="PUT")
    assert seen == [True]


def test_is_last_when_the_recording_is_dropped():
    """G2: once the body is too large to be recorded, the app can tell that no replay follows."""
    seen = []

    def view(environ):
        environ["wsgi.input"].read()
        seen.append(current_attempt().is_last)
        lose()

    assert serve(view, body=b"x" * 11, body_memory=1, body_limit=10) == (503, "sealed")
    assert seen == [True]


def test_is_last_when_the_response_has_started():
    """G2: once the client has a part of the response, the app can tell that no replay follows."""
    seen = []

    def app(environ, start_response):
        start_response("200 OK", [])
        attempt = current_attempt()
        seen.append(attempt.is_last)
        yield b"the client has this"
        seen.append(attempt.is_last)
        yield b"and this"

    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    assert len(list(RetryMiddleware(app)(environ, lambda *start: None))) == 2
    assert seen == [False, True]


# What it is told.


@pytest.mark.parametrize("reason", ["", None, 3, b"charged", True])
def test_fence_wants_a_reason(reason):
    """A fence without a reason raises a TypeError that says so: the log will need it."""
    seen = []

    def view(environ):
        with pytest.raises(TypeError, match="fence") as caught:
            current_attempt().fence(reason)
        seen.append(str(caught.value))
        lose()

    assert serve(view, lambda environ: None) == (200, "recovered")
    assert repr(reason) in seen[0]


def test_fence():
    """G3: behind a fence even a GET is not run again."""
    seen = []
    view = collect(lambda attempt: (attempt.fence("card charged"), attempt.is_last), seen)
    assert serve(view) == (503, "not-replayable")
    assert seen == [(None, True)]


def test_doom():
    """A doomed attempt that answers with a server error is replayed; one below 500 is sent."""

    def doomed(status):
        def view(environ):
            current_attempt().doom(DisconnectionError("lost"))
            return status

        return view

    assert serve(doomed(500), lambda environ: 200) == (200, "recovered")
    assert serve(doomed(404), lambda environ: 200) == (404, None)


def test_doom_by_an_unknown_exception():
    """G4: an exception that classify does not know is a disconnection, and maybe of a COMMIT."""

    def view(environ):
        current_attempt().doom(ValueError("strange"))
        return 500

    assert serve(view, method="PUT") == (503, "unknown")
    assert serve(view, lambda environ: None) == (200, "recovered")


@pytest.mark.parametrize("cls", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_doom_by_cancellation(cls):
    """G6: an exception that is no Exception is never a reason to replay, whoever saw it."""

    def view(environ):
        current_attempt().doom(cls())
        return 500

    assert serve(view, lambda environ: 200) == (500, None)


def test_saw_what_is_not_ours():
    """Adapters and integrations may show an attempt any exception: only a failure dooms it."""

    def view(environ):
        current_attempt().saw(ValueError("strange"))
        return 500

    assert serve(view) == (500, None)


def test_saw_a_failure():
    """What an integration saw before the framework squashed it dooms the attempt."""

    def view(environ):
        current_attempt().saw(DisconnectionError("lost"))
        return 500

    assert serve(view, lambda environ: None) == (200, "recovered")


@pytest.mark.parametrize(
    ("answers", "outcome"), [([], "unknown"), ([True], "committed"), ([False], "exhausted")]
)
def test_commits(answers, outcome):
    """G4: what an adapter tells of a COMMIT decides whether a PUT is run again."""
    runs = []

    def view(environ):
        runs.append(attempt := current_attempt())
        attempt.commit_sent()
        for committed in answers:
            attempt.commit_answered(committed=committed)
        lose()

    assert serve(view, method="PUT", max_replays=1) == (503, outcome)
    assert len(runs) == (2 if outcome == "exhausted" else 1)


def test_attempt_that_is_over_decides_nothing():
    """G1: a thread that outlives its attempt can't doom the one that runs now."""
    attempts = []

    def view(environ):
        attempts.append(current_attempt())
        if len(attempts) == 2:
            late = attempts[0]
            late.doom(DisconnectionError("too late"))
            late.saw(DisconnectionError("too late"))
            late.commit_sent()
            late.commit_answered(committed=True)
            assert not attempts[1].is_last
        if len(attempts) < 3:
            lose()

    assert serve(view, method="PUT") == (200, "recovered")
    assert len(attempts) == 3


def test_late_fence():
    """G3: a fence is the request's: one that comes when its attempt is over holds all the same."""
    attempts = []

    def view(environ):
        attempts.append(current_attempt())
        if len(attempts) == 2:
            attempts[0].fence("card charged")
        lose()

    assert serve(view) == (503, "not-replayable")
    assert len(attempts) == 2


def test_callbacks():
    """on_rollback runs for each attempt that was undone, on_success for the one that was sent."""
    called = []

    def view(environ):
        attempt = current_attempt()
        number = attempt.number
        for order in ("a", "b"):
            attempt.on_rollback(lambda order=order: called.append(f"rollback {number} {order}"))
            attempt.on_success(lambda order=order: called.append(f"success {number} {order}"))
        if number < 3:
            lose()

    serve(view)
    expected = ["rollback 1", "rollback 2", "success 3"]
    assert called == [f"{what} {order}" for what in expected for order in ("a", "b")]


def test_mark_is_not_forgotten():
    """G3: a replay that fails before it is routed is still one of the endpoint that was marked."""
    endpoint = idempotent(lambda: None)

    def routed(environ):
        environ["endpoint"] = endpoint
        lose()

    assert serve(routed, lose, lambda environ: None, method="POST") == (200, "recovered")


def test_endpoint_that_can_not_be_looked_up(caplog):
    """G7: an error in finding the endpoint is logged, and hides nothing: there is no mark."""

    class Endpoint:
        def __getattr__(self, name):
            raise RuntimeError("not now")

    assert serve(lose, method="POST", endpoint=Endpoint()) == (503, "not-replayable")
    assert serve(lose, lambda environ: None, endpoint=Endpoint()) == (200, "recovered")
    assert [record for record in caplog.records if "not now" in str(record.exc_info)]


# For adapters.


def test_resource():
    """An adapter keeps what it opened with the attempt; the next attempt starts without it."""
    database = Database()
    kept = []

    def view(environ):
        resources = current_attempt().resource(database)
        kept.append(dict(resources))
        resources[database] = "a connection"
        assert current_attempt().resource(database) is resources
        lose()

    serve(view, databases=[database], max_replays=1)
    assert kept == [{}, {}]


def test_resource_of_an_attempt_that_is_over():
    """G1: nothing is opened for an attempt that is over: nobody would give it back."""
    database = Database()
    attempts = []
    serve(lambda environ: attempts.append(current_attempt()), databases=[database])
    with pytest.raises(RuntimeError, match="is over"):
        attempts[0].resource(database)


class AllAlike(Database):
    """Equal to any other: a database is known by its identity."""

    __hash__ = Database.__hash__

    def __eq__(self, other):
        return True


@pytest.mark.parametrize("known", [[], [AllAlike()]])
def test_resource_of_an_unknown_database(known):
    """G1: a database that the middleware does not know would keep its connection."""
    messages = []

    def view(environ):
        with pytest.raises(RuntimeError, match="databases=") as caught:
            current_attempt().resource(AllAlike())
        messages.append(str(caught.value))

    serve(view, databases=known)
    assert "AllAlike" in messages[0]


@pytest.mark.parametrize(
    ("over", "released", "inside"),
    [(False, False, True), (True, False, False), (False, True, False), (True, True, False)],
)
def test_is_inside(over, released, inside):
    """G2: a request within an attempt is part of it; one that follows it on a connection is not."""
    assert is_inside(SimpleNamespace(over=over, released=released)) is inside


# Context variables.


def test_restore():
    """G1: context variables that an attempt has changed are set back."""
    variable = contextvars.ContextVar("variable", default="default")
    variable.set("before")
    snapshot = contextvars.copy_context()
    variable.set("changed")
    restore(snapshot)
    assert variable.get() == "before"


def test_adopt():
    """G5: what the attempt that is sent has set is visible outside, as if it had run there."""
    variable = contextvars.ContextVar("variable", default="default")
    context = contextvars.copy_context()
    context.run(variable.set, "set inside")
    adopt(context)
    assert variable.get() == "set inside"


# What a traceback keeps alive.


class Connection:
    """Counts those that are alive."""

    alive = 0

    def __init__(self):
        Connection.alive += 1

    def __del__(self):
        Connection.alive -= 1


def fail_with_a_connection():
    connection = Connection()
    assert Connection.alive == 1
    raise ConnectionError(id(connection))


def caught(function):
    try:
        function()
    except Exception as exc:  # noqa: BLE001  # what was raised is looked at
        return exc


def as_cause():
    try:
        fail_with_a_connection()
    except ConnectionError as exc:
        raise ValueError from exc


def as_context():
    try:
        fail_with_a_connection()
    except ConnectionError:
        raise ValueError from None


def as_cycle():
    exc = caught(fail_with_a_connection)
    exc.__cause__ = exc
    raise exc


class Group(Exception):  # like ExceptionGroup, which Python 3.10 has not
    def __init__(self, *exceptions):
        super().__init__("several")
        self.exceptions = exceptions


def as_member():
    raise Group(ValueError(), caught(fail_with_a_connection))


@pytest.mark.parametrize(
    "function", [fail_with_a_connection, as_cause, as_context, as_cycle, as_member]
)
def test_forget_frames(function):
    """G8: the traceback of a failed attempt does not keep its connection during the wait."""
    exc = caught(function)
    assert Connection.alive == 1
    forget_frames(exc)
    assert Connection.alive == 0
    assert exc.__traceback__ is not None


def test_forget_frames_that_were_looked_at():
    """G8: classify looks at the frames' variables, and keeps nothing alive by that."""
    exc = caught(fail_with_a_connection)
    traceback = exc.__traceback__
    while traceback is not None:
        assert "nothing" not in traceback.tb_frame.f_locals
        traceback = traceback.tb_next
    forget_frames(exc)
    assert Connection.alive == 0
