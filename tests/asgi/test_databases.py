"""Databases are rolled back and released before anybody waits (G1, G8)."""

import contextlib
import itertools
import logging
import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from retrymw import DisconnectionError, current_attempt, rollback_safe
from retrymw import _asgi_undo as undoing
from retrymw.asgi import RetryMiddleware

from .helpers import (
    Client,
    FakeAsyncDatabase,
    FakeDatabase,
    Flaky,
    NotOurs,
    answer,
    lost,
    middleware,
    policy,
    request,
)

pytestmark = pytest.mark.anyio

DATABASES = pytest.mark.parametrize("make", [FakeDatabase, FakeAsyncDatabase])


def using(*databases):
    """Uses the databases."""

    async def use(scope, receive, send):
        for database in databases:
            database.use()

    return use


def answering(*databases, status=200):
    """Uses the databases and answers."""

    async def use(scope, receive, send):
        for database in databases:
            database.use()
        await answer(send, status=status)

    return use


@DATABASES
async def test_rolled_back_and_released_before_the_wait(make):
    """G8: classify, roll back, release, wait: in that order, and before the next attempt."""
    log = []
    database = make(log)
    client = Client(on_receive=lambda: log.append("wait"))
    app = Flaky(lost(), first=using(database), then=answering(database))
    hooks = [lambda report: log.append("hook") if report.outcome is None else None]
    await request(app, client, databases=[database], hooks=hooks)
    while log.count("wait") > 1:
        log.remove("wait")
    assert log == ["open 1", "rollback 1", "release 1", "hook", "wait", "open 2", "release 2"]


@DATABASES
async def test_failure_is_classified_before_the_rollback(make):
    """G8: the evidence dies with the transaction, so it is read first."""
    failure = lost()

    def destroy():
        failure.phase = "commit"

    database = make(on_rollback=destroy)

    @rollback_safe
    async def endpoint(scope, receive, send):
        database.use()
        if not current_attempt().is_replay:
            raise failure
        await answer(send)

    async def app(scope, receive, send):
        scope["endpoint"] = endpoint
        await endpoint(scope, receive, send)

    client = await request(app, Client("POST"), databases=[database])
    assert client.status == 200


@DATABASES
async def test_released_after_success(make):
    """G1: after a good answer the connection goes back, and nothing is rolled back by us."""
    client = Client()
    database = make(on_release=lambda: sent.append(client.complete))
    sent = []
    await request(answering(database), client, databases=[database])
    assert database.log == ["open 1", "release 1"]
    assert sent == [True]


@DATABASES
async def test_released_after_an_own_error_answer(make):
    """G1: a 500 of the app's own is an answer, and the connection goes back."""
    database = make()
    client = await request(answering(database, status=500), databases=[database])
    assert client.status == 500
    assert database.log[-1] == "release 1"


@DATABASES
@pytest.mark.parametrize("failures", [0, 1])
async def test_undone_after_what_is_not_ours(make, failures):
    """G1: an exception that is not ours leaves no transaction and no connection either."""
    database = make()
    app = Flaky(*[lost()] * failures, NotOurs(), first=using(database))
    with pytest.raises(NotOurs):
        await request(app, databases=[database])
    last = failures + 1
    assert database.log[-3:] == [f"open {last}", f"rollback {last}", f"release {last}"]


@DATABASES
async def test_undone_before_the_503(make):
    """G8: the connection of the last attempt goes back before the client is told to come back."""
    client, sent = Client(), []
    database = make(on_release=lambda: sent.append(len(client.sent)))
    app = Flaky(lost(), lost(), first=using(database))
    await request(app, client, databases=[database], policy=policy(max_replays=1))
    assert database.log == [
        "open 1",
        "rollback 1",
        "release 1",
        "open 2",
        "rollback 2",
        "release 2",
    ]
    assert sent == [0, 0]


@DATABASES
async def test_undone_when_sealed(make):
    """G1: a failure after the response started leaves no transaction behind."""
    database = make()

    async def half(scope, receive, send):
        database.use()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    with pytest.raises(DisconnectionError):
        await request(Flaky(lost(), first=half), databases=[database])
    assert database.log == ["open 1", "rollback 1", "release 1"]


async def test_databases_that_were_not_used_are_left_alone():
    """G9: a request that opened nothing has nothing undone."""
    database = FakeDatabase()
    await request(Flaky(lost()), databases=[database])
    assert database.log == []


async def test_sync_databases_are_undone_in_a_worker_thread():
    """G5: a rollback that blocks never blocks the event loop."""
    database = FakeDatabase()
    app = Flaky(lost(), first=using(database), then=answering(database))
    await request(app, databases=[database])
    assert len(database.threads) == 3
    assert threading.get_ident() not in database.threads


async def test_async_databases_are_undone_in_the_requests_task():
    """G5: coroutines of an adapter run where the app's do."""
    database = FakeAsyncDatabase()
    app = Flaky(lost(), first=using(database), then=answering(database))
    await request(app, databases=[database])
    assert set(database.threads) == {threading.get_ident()}


@DATABASES
async def test_all_databases_are_rolled_back_before_any_is_released(make):
    """G8: several databases are all undone, each once."""
    log = []
    databases = [make(log, "a "), FakeDatabase(log, "b "), FakeAsyncDatabase(log, "c ")]
    await request(Flaky(lost(), first=using(*databases)), databases=databases)
    assert sorted(log[3:6]) == ["a rollback 1", "b rollback 1", "c rollback 1"]
    assert sorted(log[6:9]) == ["a release 1", "b release 1", "c release 1"]
    assert len(log) == 9


@DATABASES
@pytest.mark.parametrize("broken", ["on_rollback", "on_release"])
async def test_undoing_that_raises_is_logged_and_masks_nothing(make, broken, caplog):
    """G7: an error in undoing is logged; the failure stays the failure, and the rest is undone."""

    def trouble():
        raise NotOurs(f"{broken} went wrong")

    log, reports, failure = [], [], lost()
    databases = [make(log, "a ", **{broken: trouble}), make(log, "b ")]
    app = Flaky(failure, first=using(*databases))
    client = await request(app, databases=databases, hooks=[reports.append])
    assert client.status == 200
    assert {"a rollback 1", "b rollback 1", "a release 1", "b release 1"} <= set(log)
    assert reports[0].failures[0].exception is failure
    troubles = [r for r in caplog.records if r.exc_info and isinstance(r.exc_info[1], NotOurs)]
    assert [record.levelno for record in troubles] == [logging.ERROR]


@DATABASES
async def test_undoing_that_raises_does_not_mask_what_is_not_ours(make):
    """G7: what passes is what the app raised, whatever undoing raised."""

    def trouble():
        raise ZeroDivisionError

    error = NotOurs()
    database = make(on_rollback=trouble, on_release=trouble)
    with pytest.raises(NotOurs) as caught:
        await request(Flaky(error, first=using(database)), databases=[database])
    assert caught.value is error
    assert error.__context__ is None


@pytest.mark.parametrize(
    ("make", "hangs", "end"),
    [
        *itertools.product(
            [FakeAsyncDatabase],
            ["on_rollback", "on_release"],
            ["failure", "error", "cancellation", "answer"],
        ),
        (FakeDatabase, "on_rollback", "failure"),
        (FakeDatabase, "on_release", "cancellation"),
    ],
)
async def test_undoing_that_hangs_is_given_up(make, hangs, end, monkeypatch, caplog):
    """G6: undoing is bounded: what hangs is logged and left, and the rest is undone."""
    monkeypatch.setattr(undoing, "_UNDO_SECONDS", 0.3 if make is FakeDatabase else 0.02)
    done = threading.Event()

    async def hang_async():
        await anyio.sleep_forever()

    log = []
    hang = done.wait if make is FakeDatabase else hang_async
    databases = [make(log, "a ", **{hangs: hang}), FakeAsyncDatabase(log, "b ")]

    async def app(scope, receive, send):
        if end != "failure" or not current_attempt().is_replay:
            for database in databases:
                database.use()
        if end == "failure" and not current_attempt().is_replay:
            raise lost()
        if end == "error":
            raise NotOurs
        if end == "cancellation":
            cancel.cancel()
            await anyio.sleep_forever()
        await answer(send)

    client = Client()
    try:
        with anyio.fail_after(5), anyio.CancelScope() as cancel, contextlib.suppress(NotOurs):
            await request(app, client, databases=databases)
    finally:
        done.set()
    released = {"a release 1", "b release 1"}
    assert set(log[2:]) == released | (
        set() if end == "answer" else {"a rollback 1", "b rollback 1"}
    )
    if end in ("answer", "failure"):
        assert client.status == 200
    if end != "answer" or hangs == "on_release":
        assert any(r.exc_info and r.exc_info[0] is TimeoutError for r in caplog.records)


@pytest.fixture
def bounded(monkeypatch):
    """A bound on undoing that a test which fails can wait for."""
    monkeypatch.setattr(undoing, "_UNDO_SECONDS", 1)


@pytest.mark.usefixtures("bounded")
async def test_undoing_does_not_queue_behind_blocked_endpoints():
    """G8: undoing has threads of its own, so endpoints that block all others do not delay it."""
    done, database = threading.Event(), FakeDatabase()
    limiter = anyio.to_thread.current_default_thread_limiter()
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(int(limiter.total_tokens)):
                tasks.start_soon(anyio.to_thread.run_sync, done.wait)
            while limiter.available_tokens:
                await anyio.lowlevel.checkpoint()
            await request(Flaky(lost(), first=using(database)), databases=[database])
            done.set()
    finally:
        done.set()
    assert database.log == ["open 1", "rollback 1", "release 1"]


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("which", ["on_success", "on_rollback"])
async def test_undoing_does_not_queue_behind_callbacks(which):
    """G8: callbacks that block, on a mail server say, keep no connection from going back."""
    many, started, done, database = 100, [], threading.Event(), FakeDatabase()

    def slow():
        started.append(True)
        done.wait()

    async def app(scope, receive, send):
        getattr(current_attempt(), which)(slow)
        if which == "on_rollback":
            raise lost()
        await answer(send)

    busy = middleware(app, policy=policy(max_replays=0))
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(many):
                tasks.start_soon(Client().call, busy)
            await anyio.wait_all_tasks_blocked()
            await request(Flaky(lost(), first=using(database)), databases=[database])
            done.set()
    finally:
        done.set()
    assert database.log == ["open 1", "rollback 1", "release 1"]
    assert len(started) == many or which == "on_rollback"  # which is given up after a while


async def test_connections_of_an_attempt_are_not_the_next_ones():
    """G1: what attempt 1 opened is no resource of attempt 2."""
    database, seen = FakeDatabase(), []

    async def app(scope, receive, send):
        seen.append(database in current_attempt().resource(database))
        database.use()
        if not current_attempt().is_replay:
            raise lost()
        await answer(send)

    await request(app, databases=[database])
    assert seen == [False, False]


async def test_attempt_that_is_over_gives_no_connection():
    """G1: code that outlives its attempt can't open a connection that nobody would give back."""
    database, attempts = FakeDatabase(), []

    async def app(scope, receive, send):
        attempts.append(current_attempt())
        if not current_attempt().is_replay:
            raise lost()
        with pytest.raises(RuntimeError, match="over"):
            attempts[0].resource(database)
        await answer(send)

    await request(app, databases=[database])
    with pytest.raises(RuntimeError, match="over"):
        attempts[1].resource(database)


async def test_unknown_database_is_named():
    """G8: a database that the middleware can't undo is an error that says what to do."""
    database, seen = FakeDatabase(), []

    async def app(scope, receive, send):
        with pytest.raises(RuntimeError, match=r"databases=\[database\]"):
            database.use()
        seen.append(True)
        await answer(send)

    await request(app)
    assert seen == [True]


@pytest.mark.parametrize("wrong", [[object()], object(), [None]])
def test_databases_are_checked_at_start_up(wrong):
    """What can't be rolled back, released and pinged is refused when the app starts."""
    with pytest.raises(TypeError, match="databases"):
        RetryMiddleware(answer, databases=wrong)


async def test_background_work_may_use_the_attempts_connection():
    """G8: the connection stays the attempt's until the app has returned."""
    database, client = FakeDatabase(), Client()

    async def app(scope, receive, send):
        await answer(send)
        database.use()

    await request(app, client, databases=[database])
    assert database.log == ["open 1", "release 1"]
