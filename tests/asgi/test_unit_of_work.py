"""commit="on-success": committed after the endpoint, before the first byte is released (G4)."""

import contextlib

import anyio
import anyio.lowlevel
import pytest

from retrymw import DisconnectionError, current_attempt

from .helpers import (
    Client,
    FakeAsyncDatabase,
    FakeDatabase,
    Flaky,
    NotOurs,
    answer,
    lost,
    plain,
    policy,
)
from .helpers import request as send_request

pytestmark = pytest.mark.anyio

START = {"type": "http.response.start", "status": 200, "headers": []}


class Unit(FakeDatabase):
    """A database that is committed by the middleware; ``errors`` are raised, one for a commit."""

    commits_on_success = True

    def __init__(self, *errors, log=None):
        super().__init__(log)
        self.errors = list(errors)

    def commit(self, attempt):
        self.log.append(f"commit {attempt.number}")
        if self.errors:
            raise self.errors.pop(0)


class AsyncUnit(FakeAsyncDatabase, Unit):
    """The same for a layer of coroutines."""

    async def commit(self, attempt):
        await anyio.lowlevel.checkpoint()
        Unit.commit(self, attempt)


class Watched(Client):
    """A client that writes down when the response begins."""

    def __init__(self, log, *args, **keywords):
        super().__init__(*args, **keywords)
        self.log = log

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.log.append("start")
        await super().send(message)


async def request(app, unit, client=None, **options):
    return await send_request(app, client or Watched(unit.log), databases=[unit], **options)


def using(unit, *messages):
    """An app that uses the database and sends these messages, or a whole response."""

    async def app(scope, receive, send):
        unit.use()
        for message in messages:
            await send(message)
        if not messages:
            await answer(send)

    return app


@pytest.mark.parametrize("make", [Unit, AsyncUnit])
async def test_committed_before_the_first_byte(make):
    """What the endpoint did is committed when the response begins, and released after it."""
    unit = make()
    client = await request(using(unit), unit)
    assert client.status == 200
    assert unit.log == ["open 1", "commit 1", "start", "release 1"]


@pytest.mark.parametrize("status", [400, 404, 500])
async def test_not_committed_for_an_error(status):
    """A response of 400 or more is sent, and what the endpoint did is left to be undone."""
    unit = Unit()

    async def app(scope, receive, send):
        unit.use()
        await answer(send, status=status)

    client = await request(app, unit)
    assert client.status == status
    assert unit.log == ["open 1", "start", "release 1"]


async def test_not_committed_after_an_exception():
    """An exception leaves nothing committed."""
    unit = Unit()
    with pytest.raises(NotOurs):
        await request(Flaky(NotOurs(), first=using(unit, START)), unit)
    assert "commit 1" not in unit.log
    assert "rollback 1" in unit.log


async def test_not_used():
    """A database that the attempt did not use is not committed."""
    unit = Unit()
    client = await request(Flaky(), unit)
    assert (client.status, unit.log) == (200, ["start"])


async def test_stream_is_committed_once():
    """A response in pieces is committed before the first of them, and once."""
    unit = Unit()
    pieces = [
        {"type": "http.response.body", "body": piece, "more_body": bool(piece)}
        for piece in (b"a", b"b", b"")
    ]
    client = await request(using(unit, START, *pieces), unit)
    assert client.body == b"ab"
    assert unit.log == ["open 1", "commit 1", "start", "release 1"]


async def test_event_stream_is_committed_at_its_start():
    """An event stream begins at once, so it is committed then."""
    unit = Unit()
    headers = [(b"content-type", b"text/event-stream")]

    async def app(scope, receive, send):
        unit.use()
        await send({**START, "headers": headers})
        unit.log.append("waits for an event")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    await request(app, unit)
    assert unit.log == ["open 1", "commit 1", "start", "waits for an event", "release 1"]


@pytest.mark.parametrize("hold", ["first-chunk", "until-return"])
async def test_failed_commit_is_a_failed_attempt(hold):
    """A commit that fails of the database is replayed; the client has seen nothing of it."""
    unit = Unit(lost())
    client = await request(using(unit), unit, policy=policy(hold=hold))
    assert (client.status, client.header("retry-attempts")) == (200, "2")
    assert [entry for entry in unit.log if "open" not in entry] == [
        "commit 1",
        "rollback 1",
        "release 1",
        "commit 2",
        "start",
        "release 2",
    ]


async def test_failed_commit_that_the_app_swallows():
    """send() raises in the app what the commit raised; if the app hides it, it counts."""
    unit = Unit(lost())
    seen = []

    async def app(scope, receive, send):
        unit.use()
        try:
            await answer(send)
        except DisconnectionError as error:
            seen.append(error)
            with contextlib.suppress(Exception):
                await answer(send, b"sorry", 500)

    client = await request(app, unit, inner=plain)  # it starts its response twice
    assert (client.status, client.body, len(seen)) == (200, b"ok", 1)


async def test_failed_commit_keeps_what_comes_after_from_running():
    """Background tasks, which run when the response was sent, don't run if it was not."""
    unit = Unit(lost())
    ran = []

    async def app(scope, receive, send):
        unit.use()
        await answer(send)
        ran.append(current_attempt().number)

    await request(app, unit)
    assert ran == [2]


@pytest.mark.parametrize("hold", ["first-chunk", "until-return"])
async def test_commit_that_fails_of_something_else(hold):
    """G5: what is not ours passes, the same object, and nothing of the response is sent."""
    error = NotOurs("a constraint")
    unit = Unit(error)
    client = Client()
    with pytest.raises(NotOurs) as raised:
        await request(using(unit), unit, client, policy=policy(hold=hold))
    assert raised.value is error
    assert client.sent == []
    assert unit.log == ["open 1", "commit 1", "rollback 1", "release 1"]


async def test_tasks_that_send_at_once():
    """What another task sends while the commit is under way waits for it, and keeps its order."""
    unit = Unit()
    committing, may_commit = anyio.Event(), anyio.Event()

    class Slow(AsyncUnit):
        async def commit(self, attempt):
            committing.set()
            await may_commit.wait()
            await super().commit(attempt)

    unit = Slow()

    async def app(scope, receive, send):
        unit.use()
        await send(START)

        async def other():
            await committing.wait()
            await send({"type": "http.response.body", "body": b"b", "more_body": True})
            assert unit.log == ["open 1"]
            may_commit.set()

        async with anyio.create_task_group() as group:
            group.start_soon(other)
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"c", "more_body": False})

    client = await request(app, unit)
    assert client.body == b"abc"
    assert unit.log == ["open 1", "commit 1", "start", "release 1"]


async def test_cancelled_in_the_commit():
    """G6: a request that is cancelled in its commit is undone like any other."""

    class Stuck(AsyncUnit):
        async def commit(self, attempt):
            scope.cancel()
            await anyio.sleep_forever()

    unit = Stuck()
    client = Client()
    with anyio.CancelScope() as scope:
        await request(using(unit), unit, client)
    assert client.sent == []
    assert unit.log == ["open 1", "rollback 1", "release 1"]


async def test_cancellation_in_the_commit_that_the_app_swallows():
    """G4: a commit that the app gave up, by a time limit say, is no reason to say 200."""

    class Stuck(AsyncUnit):
        async def commit(self, attempt):
            await anyio.sleep_forever()

    unit = Stuck()
    sent = []

    async def app(scope, receive, send):
        unit.use()
        current_attempt().on_success(lambda: sent.append("mail"))
        await send(START)
        with anyio.move_on_after(0.01):
            await send({"type": "http.response.body", "body": b"ok"})

    client = await request(app, unit, Client("POST"))
    assert (client.status, client.header("retry-outcome")) == (503, "unknown")
    assert sent == []


async def test_app_returns_while_a_task_of_its_own_commits():
    """G4: the app may return before its task has sent the response; its commit is waited for."""
    failing = anyio.Event()

    class Slow(AsyncUnit):
        async def commit(self, attempt):
            await failing.wait()
            raise lost("commit")

    unit = Slow()

    async def app(scope, receive, send):
        unit.use()
        await send(START)

        async def body():
            with contextlib.suppress(DisconnectionError):
                await send({"type": "http.response.body", "body": b"ok"})

        group.start_soon(body)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(failing_soon)

    async def failing_soon():
        failing.set()

    async with anyio.create_task_group() as group:
        client = await request(app, unit, Client("POST"))
    assert (client.status, client.header("retry-outcome")) == (503, "unknown")


async def test_complete_response_and_then_an_exception():
    """With hold="until-return", what was not committed is not promised either."""
    unit = Unit()
    client = Client()

    async def app(scope, receive, send):
        unit.use()
        await answer(send)
        raise NotOurs("after the response")

    with pytest.raises(NotOurs):
        await request(app, unit, client, policy=policy(hold="until-return"))
    assert client.sent == []
    assert unit.log == ["open 1", "rollback 1", "release 1"]
