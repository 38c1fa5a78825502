"""The client leaves, the server stops, somebody cancels: the exchange ends at once (G6)."""

import asyncio
import logging
import sys

import anyio
import anyio.from_thread
import pytest
import tenacity

from retrymw import current_attempt

from .helpers import (
    GONE,
    Client,
    FakeAsyncDatabase,
    FakeDatabase,
    Flaky,
    NotOurs,
    answer,
    lost,
    middleware,
    patient,
    plain,
    policy,
    read,
    request,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = pytest.mark.anyio

DATABASES = pytest.mark.parametrize("make", [FakeDatabase, FakeAsyncDatabase])


class Stop(BaseException):
    """Not an Exception."""


async def first_chunk(scope, receive, send):
    await receive()


async def whole_body(scope, receive, send):
    await read(receive)


async def nothing(scope, receive, send):
    pass


@pytest.mark.parametrize(
    ("method", "body", "first"),
    [
        ("GET", [], nothing),
        ("GET", [], whole_body),
        ("PUT", [b"a", b"b"], whole_body),
        ("PUT", [b"a", b"b"], nothing),
        ("PUT", [b"a", GONE], first_chunk),
        ("PUT", [GONE], nothing),
    ],
    ids=["GET", "GET read", "complete", "unread", "half read", "broken off"],
)
async def test_client_that_leaves_during_the_wait_ends_it(method, body, first):
    """G6: when the client leaves while its request waits, nothing is sent and nothing runs."""
    client, reports = Client(method, body=body), []

    def leave(report):
        reports.append(report)
        client.leave()

    app = Flaky(lost(), first=first)
    client = await request(app, client, policy=patient(), hooks=[leave])
    assert app.calls == 1
    assert client.sent == []
    assert client.result is None
    assert [report.outcome for report in reports] == [None, "abandoned"]


async def test_client_that_leaves_while_the_wait_has_begun_ends_it():
    """G6: the wait ends when the client leaves, not when it would have been over."""
    waiting = anyio.Event()
    client, app = Client(on_receive=waiting.set), Flaky(lost())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call, middleware(app, policy=patient()))
        await waiting.wait()
        client.leave()
    assert app.calls == 1
    assert client.sent == []


async def test_client_that_left_during_the_replay_is_noticed():
    """G6: a client that left while a replay ran is not waited for again."""
    client = Client()

    async def leave(scope, receive, send):
        if current_attempt().is_replay:
            client.leave()

    app = Flaky(lost(), lost(), first=leave)
    await request(app, client)
    assert app.calls == 2
    assert client.sent == []


async def test_client_that_the_app_saw_leave_gets_no_503():
    """G6: a failure after the app was told of the client's leaving is answered to nobody."""

    async def hear(scope, receive, send):
        client.leave()
        assert (await receive())["type"] == "http.disconnect"

    client = Client("POST")
    await request(Flaky(lost(), first=hear), client)
    assert client.sent == []


async def test_leaving_is_logged_with_its_failures(caplog):
    """G7: an abandoned exchange is one record, a warning, with the original exception."""
    failure = lost()
    with caplog.at_level(logging.INFO, "retrymw"):
        await request(Flaky(failure), Client(body=[GONE]), policy=patient())
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "abandoned" in record.getMessage()
    assert record.exc_info[1] is failure


async def test_cancelled_replay_is_logged_with_the_failures_before_it(caplog):
    """G7: a cancellation loses no cause: what failed before it is in the log, and told to hooks."""
    failure, reports = lost(), []

    async def cancelled(scope, receive, send):
        cancel.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as cancel:
        await request(Flaky(failure, then=cancelled), hooks=[reports.append])
    assert [record.exc_info[1] for record in caplog.records] == [failure]
    assert [report.outcome for report in reports] == [None, "abandoned"]


async def test_503_that_cannot_be_sent_is_logged(caplog):
    """G7: a server that refuses the 503 loses no cause either."""
    failure = lost()

    async def send(message):
        raise OSError("the client left")

    client = Client("POST")
    with pytest.raises(OSError, match="the client left"):
        await client.call(middleware(Flaky(failure), policy=None), send=send)
    assert [record.exc_info[1] for record in caplog.records] == [failure]


# Cancellation.


@DATABASES
@pytest.mark.parametrize("failures", [0, 2])
async def test_cancellation_of_the_app_is_undone(make, failures):
    """G6, G8: a cancelled app is rolled back and its connection given back; then it is over."""
    database = make()

    async def use(scope, receive, send):
        database.use()

    async def cancelled(scope, receive, send):
        database.use()
        cancel.cancel()
        await anyio.sleep_forever()

    app = Flaky(*[lost()] * failures, first=use, then=cancelled)
    client = Client()
    with anyio.CancelScope() as cancel:
        await request(app, client, databases=[database])
    assert cancel.cancelled_caught
    assert app.calls == failures + 1
    last = failures + 1
    assert database.log[-3:] == [f"open {last}", f"rollback {last}", f"release {last}"]
    assert client.sent == []


async def test_cancellation_during_the_wait_ends_the_exchange():
    """G6: a cancelled wait ends at once, and nothing runs after it."""
    app, client, reports = Flaky(lost()), Client(), []

    def hook(report):
        reports.append(report.outcome)
        cancel.cancel()

    with anyio.CancelScope() as cancel:
        await request(app, client, policy=patient(), hooks=[hook])
    assert cancel.cancelled_caught
    assert app.calls == 1
    assert client.sent == []
    assert reports == [None, "abandoned"]


async def test_wait_of_a_cancelled_exchange_makes_room():
    """G2: an exchange whose wait was cancelled, or whose client left, does not count any more."""
    served = middleware(Flaky(*[lost()] * 3), policy=patient(max_waiting=1))
    with anyio.CancelScope() as cancel:
        await Client(on_receive=cancel.cancel).call(served)
    await Client(body=[GONE]).call(served)
    client = Client(body=[GONE])
    await client.call(served)
    assert client.sent == []
    client = Client(path="/free")
    await client.call(served)
    assert client.status == 200


@pytest.mark.parametrize("cause", [None, lost()], ids=["alone", "over a failure"])
@pytest.mark.parametrize("failures", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Stop, asyncio.CancelledError])
async def test_base_exceptions_are_never_replayed(error, failures, cause):
    """G6: what is no `Exception` passes, the same object, whatever is behind it; all is undone."""
    database, error = FakeAsyncDatabase(), error()

    async def app(scope, receive, send):
        database.use()
        if current_attempt().number <= failures:
            raise lost()
        if cause is not None:
            current_attempt().doom(cause)
        raise error from cause

    client = Client()
    with pytest.raises(type(error)) as caught:
        await request(app, client, databases=[database])
    assert caught.value is error
    assert len(client.runs) == failures + 1
    assert client.sent == []
    assert database.log[-2:] == [f"rollback {failures + 1}", f"release {failures + 1}"]
    assert current_attempt(None) is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_cancellation_during_the_wait():
    """G6: ``task.cancel()``, which servers use to stop, ends a wait."""
    waiting = anyio.Event()
    client, app = Client(on_receive=waiting.set), Flaky(lost())
    task = asyncio.create_task(client.call(middleware(app, policy=patient())))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert app.calls == 1
    assert client.sent == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("end", ["failure", "error", "cancellation", "answer"])
async def test_asyncios_own_cancellation_during_the_undoing(end):
    """G8: another ``task.cancel()``, in the middle of undoing, leaves no connection behind."""
    reached, released = anyio.Event(), anyio.Event()

    async def slow():
        reached.set()
        await anyio.sleep_forever()

    hangs = "on_release" if end == "answer" else "on_rollback"
    databases = [
        FakeAsyncDatabase(name="first ", **{hangs: slow}),
        FakeAsyncDatabase(name="second ", on_release=released.set),
    ]

    async def app(scope, receive, send):
        for database in databases:
            database.use()
        if end == "failure":
            raise lost()
        if end == "error":
            raise ValueError
        if end == "cancellation":
            task.cancel()
            await anyio.sleep_forever()
        await answer(send)

    task = asyncio.create_task(request(app, databases=databases))
    await reached.wait()
    task.cancel()
    with pytest.raises((asyncio.CancelledError, ValueError)):
        await task
    assert "first release 1" in databases[0].log
    assert released.is_set()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_cancellation_is_not_swallowed():
    """G6: a task that was cancelled while it was undone ends as cancelled; it never goes on."""
    reached, go = anyio.Event(), anyio.Event()

    async def slow():
        reached.set()
        await go.wait()

    database = FakeAsyncDatabase(on_rollback=slow)

    async def use(scope, receive, send):
        database.use()

    app, client = Flaky(lost(), first=use), Client()
    task = asyncio.create_task(request(app, client, databases=[database]))
    await reached.wait()
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert app.calls == 1
    assert client.sent == []


@DATABASES
@pytest.mark.parametrize("failures", [1, 2])
async def test_cancellation_during_the_undoing_waits_for_it(make, failures):
    """G8: a scope that is cancelled while an attempt is undone ends after that; nothing runs."""
    client = Client()

    def stop():
        if len(client.runs) == failures:
            if make is FakeDatabase:
                anyio.from_thread.run_sync(cancel.cancel)
            else:
                cancel.cancel()

    database = make(on_rollback=stop)

    async def use(scope, receive, send):
        database.use()

    with anyio.CancelScope() as cancel:
        await request(Flaky(lost(), lost(), first=use), client, databases=[database])
    assert cancel.cancelled_caught
    assert database.log[-3:] == [f"open {failures}", f"rollback {failures}", f"release {failures}"]
    assert len(client.runs) == failures
    assert client.sent == []


async def test_group_with_a_base_exception_passes():
    """G6: a group that holds a `BaseException` passes, whatever else it holds."""
    error = BaseExceptionGroup("several", [Stop(), lost()])
    app = Flaky(error)
    with pytest.raises(BaseExceptionGroup) as caught:
        await request(app)
    assert caught.value is error
    assert app.calls == 1


async def test_cancellation_while_the_held_response_is_sent():
    """G6: a cancellation that arrives while the held 500 leaves ends the exchange."""
    client = Client()

    async def send(message):
        cancel.cancel()
        await anyio.lowlevel.checkpoint()

    async def app(scope, receive, send):
        await answer(send, status=500)

    with anyio.CancelScope() as cancel:
        await client.call(middleware(app), send=send)
    assert cancel.cancelled_caught


async def test_server_that_refuses_the_held_500_hides_no_error():
    """G7: an error that is not ours is raised, or the context of what is, though nobody listens."""
    error, client = NotOurs(), Client()

    async def send(message):
        raise OSError("the client left")

    async def app(scope, receive, send):
        await answer(send, status=500)
        raise error

    with pytest.raises((NotOurs, OSError)) as caught:
        await client.call(middleware(app), send=send)
    assert error in (caught.value, caught.value.__context__, caught.value.__cause__)


async def test_server_that_refuses_to_send_is_heard():
    """G5: what the server's ``send`` raises passes; it is no reason to send something else."""

    class Gone(OSError):
        pass

    database, calls = FakeAsyncDatabase(), 0

    async def send(message):
        raise Gone

    async def app(scope, receive, send):
        nonlocal calls
        calls += 1
        database.use()
        await answer(send, status=500)

    with pytest.raises(Gone):
        await Client().call(middleware(app, databases=[database]), send=send)
    assert calls == 1
    assert database.log[-1] == "release 1"


async def test_server_that_repeats_itself_keeps_nobody_busy():
    """G2: a server that goes on saying that the body is over, at once, is asked only so often."""
    client, asked = Client(), []

    async def receive():
        asked.append(True)
        return {"type": "http.request", "body": b"", "more_body": False}

    served = middleware(Flaky(lost()), policy=policy(wait=tenacity.wait_fixed(0.01)))
    # That breaks a rule, so no validator would let it pass.
    await client.call(served, outer=plain, receive=receive)
    assert client.status == 200
    assert len(asked) < 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Stop, NotOurs])
async def test_cancellation_hides_nothing_that_a_replay_raises(error):
    """G6, G7: what a replay raises passes, the same object, though a scope around is cancelled."""
    error = error()

    async def fail(scope, receive, send):
        cancel.cancel()
        raise error

    with pytest.raises(type(error)) as caught, anyio.CancelScope() as cancel:
        await request(Flaky(lost(), then=fail), Client(body=[b""]))
    assert caught.value is error


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio's own state is corrupt after this
async def test_scope_that_a_replay_leaves_open_harms_no_response():
    """G5: a generator that a replay leaves within a cancel scope raises nothing, as without us."""

    async def rows():
        with anyio.CancelScope():
            yield
            yield

    async def leave(scope, receive, send):
        left.append(rows())
        await anext(left[0])
        await answer(send)

    left = []

    async def call():
        client.result = await request(Flaky(lost(), then=leave), client)

    client = Client()
    await asyncio.create_task(call())
    assert client.status == 200
