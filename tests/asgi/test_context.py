"""Context variables, tasks and cancel scopes across attempts (G1)."""

import asyncio
import contextlib
import contextvars
import gc
import sys
import weakref

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
from tenacity import wait_fixed

from retrymw import DisconnectionError, RetryPolicy, current_attempt

from .helpers import Client, Flaky, NotOurs, answer, lost, ok, policy, request

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio

plain: contextvars.ContextVar = contextvars.ContextVar("plain")
defaulted: contextvars.ContextVar = contextvars.ContextVar("defaulted", default="default")


def test_variables_of_a_test_start_unset():
    """The tests below rely on it."""
    assert plain.get(None) is None
    assert defaulted.get() == "default"


@pytest.mark.parametrize("before", [None, "before"], ids=["no value before", "a value before"])
@pytest.mark.parametrize("variable", [plain, defaulted], ids=["plain", "default"])
async def test_variables_of_a_failed_attempt_are_not_seen(variable, before):
    """G1: a context variable that attempt 1 set is in attempt 2 what it was before attempt 1."""
    if before is not None:
        variable.set(before)
    seen = []

    async def app(scope, receive, send):
        seen.append(variable.get(None) if variable is plain else variable.get())
        variable.set(current_attempt().number)
        if current_attempt().number < 4:
            raise lost()
        await answer(send)

    await request(app)
    expected = before or (None if variable is plain else "default")
    assert seen == [expected] * 4
    assert variable.get() == 4


async def test_variables_of_the_last_attempt_are_seen_outside():
    """G5: code around the middleware sees what the attempt that was sent set, as without us."""

    async def app(scope, receive, send):
        plain.set(current_attempt().number)
        if not current_attempt().is_replay:
            raise lost()
        await answer(send)

    await request(app)
    assert plain.get() == 2


async def test_variables_of_an_attempt_that_raised_are_seen_outside():
    """G5: so does code that handles the exception of the last attempt."""

    async def app(scope, receive, send):
        plain.set(current_attempt().number)
        raise lost() if not current_attempt().is_replay else NotOurs()

    with pytest.raises(NotOurs):
        await request(app)
    assert plain.get() == 2


@pytest.mark.parametrize("max_replays", [0, 1])
async def test_failed_attempts_leave_no_variable_outside(max_replays):
    """G1: after the 503 a variable is what it was before the request."""
    plain.set("before")

    async def app(scope, receive, send):
        plain.set(current_attempt().number)
        raise lost()

    await request(app, policy=policy(max_replays=max_replays))
    assert plain.get() == "before"


async def test_variable_that_only_the_failed_attempt_set_is_restored():
    """G1: a variable that attempt 2 does not touch has its old value afterwards."""
    plain.set("before")

    async def first(scope, receive, send):
        plain.set("failed")

    await request(Flaky(lost(), first=first))
    assert plain.get() == "before"


async def test_variables_reset_with_a_token_in_every_attempt():
    """G5: a token that an attempt got is good in all of that attempt, also across its awaits."""
    plain.set("before")

    async def app(scope, receive, send):
        token = plain.set("inside")
        await anyio.lowlevel.checkpoint()
        assert plain.get() == "inside"
        plain.reset(token)
        assert plain.get() == "before"
        if current_attempt().number < 3:
            raise lost()
        await answer(send)

    assert (await request(app)).status == 200


async def test_no_attempt_is_current_outside():
    """G1: outside of the request there is no current attempt: not after it, nor during a wait."""
    seen = []

    async def first(scope, receive, send):
        assert current_attempt(None) is not None

    def hook(report):
        seen.append(current_attempt(None))

    client = await request(Flaky(lost(), lost(), first=first), hooks=[hook])
    assert client.status == 200
    assert seen == [None] * 3
    assert current_attempt(None) is None
    with pytest.raises(LookupError):
        current_attempt()


async def test_no_attempt_is_current_after_an_error():
    """G1: nor after an exception that is not ours, or a cancellation."""
    with pytest.raises(NotOurs):
        await request(Flaky(NotOurs()))
    assert current_attempt(None) is None

    async def app(scope, receive, send):
        cancel.cancel()
        await anyio.sleep_forever()

    with anyio.CancelScope() as cancel:
        await request(app)
    assert current_attempt(None) is None


async def test_request_in_a_context_that_leaked_is_still_replayed():
    """G5: servers start the next request of a connection in a context copied in the one before.

    uvicorn does so with pipelined requests, and after it had paused a connection.
    """
    over = anyio.Event()
    second = Client()

    async def next_request():
        await over.wait()
        await request(Flaky(lost()), second)

    async with anyio.create_task_group() as tasks:

        async def app(scope, receive, send):
            await answer(send)
            tasks.start_soon(next_request)

        await request(app)
        over.set()
    assert second.status == 200


async def test_request_that_starts_when_the_response_is_complete_is_replayed():
    """G5: also while the one before is busy with its background work."""
    second, served = Client(), anyio.Event()

    async def next_request():
        try:
            await request(Flaky(lost()), second)
        finally:
            served.set()

    async with anyio.create_task_group() as tasks:

        async def app(scope, receive, send):
            await answer(send)
            tasks.start_soon(next_request)
            await served.wait()

        await request(app)
    assert second.status == 200


# Tasks and cancel scopes.


def current_task():
    try:
        return asyncio.current_task()
    except RuntimeError:
        return trio.lowlevel.current_task()


async def test_all_attempts_run_in_the_requests_task():
    """G5: a replay makes no task of its own, or cancel scopes would not nest."""
    tasks = [current_task()]

    async def note(scope, receive, send):
        tasks.append(current_task())

    await request(Flaky(lost(), lost(), first=note, then=ok))
    assert tasks == [tasks[0]] * 3


async def test_task_groups_and_scopes_work_in_every_attempt():
    """G5: task groups and cancel scopes in the app work in a replay as in the first attempt."""
    done = []

    async def child(number):
        await anyio.lowlevel.checkpoint()
        assert current_attempt().number == number
        done.append(number)

    async def app(scope, receive, send):
        number = current_attempt().number
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child, number)
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anyio.sleep_forever()
        if number < 3:
            raise lost()
        await answer(send)

    assert (await request(app)).status == 200
    assert done == [1, 2, 3]


async def test_timeouts_in_a_replay_work():
    """G5: a time limit that strikes in a replay ends what it limits, and nothing else."""

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            raise lost()
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.01):
                await anyio.sleep_forever()
        with anyio.move_on_after(0.01):
            await anyio.sleep_forever()
        await answer(send)

    assert (await request(app)).status == 200


async def test_timeout_of_an_attempt_does_not_strike_the_next():
    """G1: a time limit in the attempt that failed is gone with it."""

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            with anyio.fail_after(0.5):
                await anyio.lowlevel.checkpoint()
                raise lost()
        await anyio.sleep(0.6)
        await answer(send)

    assert (await request(app)).status == 200


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.timeout is new in 3.11")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_timeouts_and_tasks_work_in_a_replay():
    """G5: asyncio's timeout, task group and wait_for work in a replay."""

    async def app(scope, receive, send):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(3600)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(3600), 0.01)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(asyncio.to_thread(current_attempt))
        assert task.result().number == current_attempt().number
        if not current_attempt().is_replay:
            raise lost()
        await answer(send)

    assert (await request(app)).status == 200


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_error_that_a_future_delivers_in_a_replay():
    """G5: what an awaited future raises in a replay arrives in the app."""
    error = NotOurs()

    async def app(scope, receive, send):
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_exception, error)
        with pytest.raises(NotOurs) as caught:
            await future
        assert caught.value is error
        if current_attempt().number < 3:
            raise lost()
        await answer(send)

    assert (await request(app)).status == 200


async def test_failure_in_a_task_group_is_replayed():
    """A failure that arrives in an exception group is one of ours."""

    async def child():
        raise lost()

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child)
                tasks.start_soon(anyio.sleep_forever)
        await answer(send)

    client = await request(app)
    assert client.status == 200
    assert len(client.runs) == 2


@pytest.mark.parametrize("chain", ["cause", "context", "group", "group in a cause"])
async def test_failure_behind_another_exception_is_found(chain):
    """G7: the failure behind what the app raised is what counts, and what is reported."""
    failure, reports = lost(), []

    async def raising(scope, receive, send):
        if chain == "group":
            raise ExceptionGroup("several", [NotOurs(), failure])
        if chain == "group in a cause":
            raise NotOurs from ExceptionGroup("several", [failure])
        try:
            raise failure
        except DisconnectionError as exc:
            if chain == "cause":
                raise NotOurs from exc
            raise NotOurs  # noqa: B904  # the context is what is tested

    class App:
        calls = 0

        async def __call__(self, scope, receive, send):
            self.calls += 1
            await (raising if self.calls == 1 else ok)(scope, receive, send)

    client = await request(App(), hooks=[reports.append])
    assert client.status == 200
    assert reports[0].failures[0].exception is failure


async def test_suppressed_failure_is_the_apps_business():
    """G5: an exception raised ``from None`` over a failure passes: the app dealt with that."""

    async def app(scope, receive, send):
        try:
            raise lost()
        except DisconnectionError:
            raise NotOurs from None

    with pytest.raises(NotOurs):
        await request(app)


# Worker threads and child tasks.


async def test_current_attempt_in_worker_threads_and_child_tasks():
    """The attempt is known in the tasks and threads it starts, in a replay too."""
    seen = []

    async def child():
        seen.append(current_attempt())
        seen.append(await anyio.to_thread.run_sync(current_attempt))

    async def app(scope, receive, send):
        attempt = current_attempt()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
        seen.append(await anyio.to_thread.run_sync(current_attempt))
        assert seen[-3:] == [attempt] * 3
        if attempt.number < 3:
            raise lost()
        await answer(send)

    await request(app)
    assert [attempt.number for attempt in seen] == [1, 1, 1, 2, 2, 2, 3, 3, 3]


async def test_worker_threads_call_back_into_the_attempt():
    """What a worker thread runs in the event loop is of the attempt that started the thread."""

    async def number():
        return current_attempt().number

    def in_thread():
        return anyio.from_thread.run(number), anyio.from_thread.run_sync(current_attempt).number

    async def app(scope, receive, send):
        attempt = current_attempt()
        assert await anyio.to_thread.run_sync(in_thread) == (attempt.number, attempt.number)
        if attempt.number < 3:
            raise lost()
        await answer(send)

    assert (await request(app)).status == 200


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_greenlets_in_a_replay():
    """G5: SQLAlchemy's greenlets, which share the context of who starts them, work in a replay."""
    util = pytest.importorskip("sqlalchemy.util")

    def sync(number):
        assert plain.get() == number
        plain.set("in a greenlet")
        util.await_only(asyncio.sleep(0))
        assert current_attempt().number == number
        return plain.get()

    async def app(scope, receive, send):
        attempt = current_attempt()
        plain.set(attempt.number)
        assert await util.greenlet_spawn(sync, attempt.number) == "in a greenlet"
        assert plain.get() == "in a greenlet"
        if attempt.number < 3:
            raise lost()
        await answer(send)

    assert (await request(app)).status == 200


# What a failed attempt's frames hold.


class Connection:
    """Given back when its last reference goes."""


async def plainly(failure):
    connection = Connection()
    raise failure
    return connection


async def wrapped(failure):
    connection = Connection()
    try:
        raise failure
    except DisconnectionError as exc:
        raise NotOurs from exc
    return connection


async def wrapped_elsewhere(failure):
    connection = Connection()
    try:
        await inner(failure)
    except DisconnectionError as exc:
        error = NotOurs("kept in a local variable, as many do")
        error.__cause__ = exc
        raise error  # noqa: B904  # its cause is set above
    return connection


async def inner(failure):
    raise failure


async def grouped(failure):
    connection = Connection()
    group = ExceptionGroup("kept in a local variable", [NotOurs(), failure])
    raise group
    return connection


async def other_member(failure):
    other = None
    try:
        connection = Connection()
        raise NotOurs
    except NotOurs as exc:
        other = exc
    group = ExceptionGroup("several", [other, failure])
    raise group
    return connection


async def in_a_task_group(failure):
    async def child():
        connection = Connection()
        raise failure
        return connection

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child)


@pytest.fixture
def connections(monkeypatch):
    """References to the connections of the test; the garbage collector is off."""
    made = []
    monkeypatch.setattr(Connection, "__init__", lambda self: made.append(weakref.ref(self)))
    gc.collect()
    gc.disable()
    yield made
    gc.enable()


@pytest.mark.parametrize(
    "raising", [plainly, wrapped, wrapped_elsewhere, grouped, other_member, in_a_task_group]
)
async def test_locals_of_a_failed_attempt_are_gone_while_we_wait(raising, connections):
    """G8: a connection that only a local variable of the failed attempt holds is given back."""
    held = []
    client = Client(on_receive=lambda: held.extend(ref() is not None for ref in connections))

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            await raising(lost())
        await answer(send)

    await request(app, client)
    assert client.asked == 2  # once for the body, once for its leaving, both during the wait
    assert held == [False, False]


async def test_locals_of_a_squashed_failure_are_gone_while_we_wait(connections):
    """G8: the same for a failure that the app answered itself."""
    held = []
    client = Client(on_receive=lambda: held.extend(ref() is not None for ref in connections))

    async def app(scope, receive, send):
        if current_attempt().is_replay:
            return await answer(send)
        try:
            await plainly(lost())
        except DisconnectionError as exc:
            current_attempt().doom(exc)
            await answer(send, status=500)

    await request(app, client)
    assert held == [False, False]


@pytest.mark.parametrize("failures", [0, 1])
async def test_exception_that_passed_is_in_no_cycle(connections, failures):
    """G5: an exception goes when its last reader lets go of it, as without us."""

    class Error(NotOurs):
        pass

    errors = []

    async def app(scope, receive, send):
        error = Error()
        errors.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    with contextlib.suppress(Error):
        await request(Flaky(*[lost()] * failures, then=app))
    assert len(errors) == 1
    assert errors[0]() is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("failures", [0, 1])
async def test_exception_that_a_future_delivered_is_in_no_cycle(connections, failures):
    """G5: the same for what asyncio throws into the app from outside, as a driver's failure is."""
    errors = []

    async def app(scope, receive, send):
        future = asyncio.get_running_loop().create_future()
        error = NotOurs()
        errors.append(weakref.ref(error))
        asyncio.get_running_loop().call_soon(future.set_exception, error)
        del error
        try:
            await future
        finally:
            del future

    with contextlib.suppress(NotOurs):
        await request(Flaky(*[lost()] * failures, then=app))
    await asyncio.sleep(0)
    assert errors[0]() is None


async def test_wait_is_within_the_requests_task():
    """G5: a cancel scope around the middleware limits the wait."""
    with anyio.move_on_after(0.01) as limit:
        await request(Flaky(lost()), policy=RetryPolicy(wait=wait_fixed(3600), deadline=1e6))
    assert limit.cancelled_caught
