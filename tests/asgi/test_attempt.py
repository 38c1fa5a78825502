"""What an app can say and ask through ``current_attempt()``."""

import asyncio
import threading

import anyio
import anyio.lowlevel
import pytest

from retrymw import TooManyConnections, current_attempt
from retrymw import _asgi_undo as undoing

from .helpers import Client, FakeDatabase, Flaky, NotOurs, answer, lost, ok, policy, read, request

pytestmark = pytest.mark.anyio


def calling(what, *callbacks, then=None):
    """Registers the callbacks, then runs an app."""

    async def register(scope, receive, send):
        for callback in callbacks:
            getattr(current_attempt(), what)(callback)
        if then is not None:
            await then(scope, receive, send)

    return register


async def test_numbers_key_and_failures():
    """An attempt knows its number, whether it replays, a key that stays, and what failed before."""
    seen, failures = [], [lost(), TooManyConnections()]

    async def look(scope, receive, send):
        attempt = current_attempt()
        failed = [failure.exception for failure in attempt.failures]
        seen.append((attempt.number, attempt.is_replay, attempt.key, failed))

    async def last(scope, receive, send):
        await look(scope, receive, send)
        await answer(send)

    await request(Flaky(*failures, first=look, then=last))
    keys = {key for _, _, key, _ in seen}
    assert len(keys) == 1
    assert [(number, replay, failed) for number, replay, _, failed in seen] == [
        (1, False, []),
        (2, True, failures[:1]),
        (3, True, failures),
    ]
    await request(Flaky(then=last))
    assert seen[-1][2] not in keys


@pytest.mark.parametrize("max_replays", [0, 2])
async def test_is_last(max_replays):
    """An attempt knows when no replay follows it."""
    seen = []

    async def look(scope, receive, send):
        seen.append(current_attempt().is_last)

    await request(Flaky(*[lost()] * 9, first=look), policy=policy(max_replays=max_replays))
    assert seen == [False] * max_replays + [True]


async def test_is_last_when_nothing_may_be_repeated():
    """An attempt that may not be repeated is the last."""
    seen = []

    async def look(scope, receive, send):
        seen.append(current_attempt().is_last)
        current_attempt().fence("card charged")
        seen.append(current_attempt().is_last)

    await request(Flaky(lost(), first=look))
    await request(Flaky(lost(), first=look), Client("POST"))
    assert seen == [False, True, True, True]


async def test_is_last_when_the_response_has_started():
    """G2: an attempt whose response has left is the last, and knows it."""
    seen = []

    async def app(scope, receive, send):
        seen.append(current_attempt().is_last)
        await answer(send)
        seen.append(current_attempt().is_last)

    await request(app)
    assert seen == [False, True]


async def test_is_last_when_the_recording_was_dropped():
    """G2: an attempt that read more than is recorded is the last, and knows it."""
    seen = []

    async def app(scope, receive, send):
        seen.append(current_attempt().is_last)
        await read(receive)
        seen.append(current_attempt().is_last)
        await answer(send)

    client = Client("PUT", body=[b"x" * 9])
    await request(app, client, policy=policy(body_memory=1, body_limit=5))
    assert seen == [False, True]


async def test_asking_whether_it_is_the_last_changes_nothing():
    """G2: an attempt that asks while one of its tasks waits for the body is replayed even so."""
    asking, never = anyio.Event(), anyio.Event()

    async def listen(receive):
        asking.set()
        await receive()

    async def app(scope, receive, send):
        attempt = current_attempt()
        if attempt.is_replay:
            return await answer(send)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, receive)
            await asking.wait()
            await anyio.wait_all_tasks_blocked()
            assert not attempt.is_last
            tasks.cancel_scope.cancel()
        assert not attempt.is_last
        raise lost()

    client = await request(app, Client("PUT", body=[never, b"body"]))
    assert client.status == 200


async def test_attempt_that_is_over_seals_nothing_by_asking():
    """G1: a task of attempt 1 that asks whether it was the last leaves attempt 2 as it is."""
    attempts, asked = [], []

    async def app(scope, receive, send):
        attempts.append(current_attempt())
        asked.append(attempts[0].is_last)
        if len(attempts) < 3:
            raise lost()
        asked.append(attempts[2].is_last)
        await answer(send)

    client = await request(app)
    assert client.status == 200
    assert len(attempts) == 3
    assert asked[-1] is False


@pytest.mark.parametrize("reason", ["", None, 5])
async def test_fence_needs_a_reason(reason):
    """A fence without a reason helps nobody who reads the log."""

    async def app(scope, receive, send):
        current_attempt().fence(reason)

    with pytest.raises(TypeError, match="reason"):
        await request(app)


@pytest.mark.parametrize("exc", [lost(), NotOurs()], ids=["ours", "not ours"])
async def test_doom_takes_any_exception(exc):
    """A database layer that knows better may doom an attempt with any exception."""
    reports = []

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            current_attempt().doom(exc)
        await answer(send, status=200 if current_attempt().is_replay else 500)

    client = await request(app, hooks=[reports.append])
    assert client.status == 200
    assert reports[0].failures[0].exception is exc


async def test_doom_by_something_unknown_may_have_been_the_commit():
    """G4: a doom that nobody can place may be a lost COMMIT."""

    async def app(scope, receive, send):
        current_attempt().doom(NotOurs())
        await answer(send, status=500)

    client = await request(app, Client("PUT"))
    assert client.header("retry-outcome") == "unknown"


@pytest.mark.parametrize("exc", [KeyboardInterrupt(), asyncio.CancelledError()], ids=type)
async def test_doom_by_a_base_exception_is_no_reason_to_replay(exc):
    """G6: a layer that saw a cancellation saw no failure."""

    async def app(scope, receive, send):
        current_attempt().doom(exc)
        await answer(send, b"mine", 500)

    client = await request(app)
    assert client.body == b"mine"
    assert len(client.runs) == 1


async def test_late_doom_does_not_reach_the_next_attempt():
    """G1: what outlives attempt 1 can't doom attempt 2."""
    attempts = []

    async def app(scope, receive, send):
        attempts.append(current_attempt())
        if len(attempts) == 1:
            raise lost()
        attempts[0].doom(lost())
        await answer(send, b"mine", 500)

    client = await request(app)
    assert (client.status, client.body) == (500, b"mine")
    assert attempts[0].over


# on_success.


async def test_success_is_told_once_for_the_attempt_that_was_sent():
    """Callbacks of failed attempts are forgotten; those of the attempt that was sent run once."""
    calls, client = [], Client()

    async def app(scope, receive, send):
        number = current_attempt().number
        current_attempt().on_success(lambda: calls.append((number, client.complete)))
        if number < 3:
            raise lost()
        await answer(send)

    await request(app, client)
    assert calls == [(3, True)]


async def test_success_callbacks_run_in_order_sync_in_a_thread():
    """Plain functions run in a worker thread, coroutine functions are awaited, in order."""
    calls = []

    def plain():
        calls.append(("plain", threading.get_ident()))

    async def coroutine():
        await anyio.lowlevel.checkpoint()
        calls.append(("coroutine", threading.get_ident()))

    class Callable:
        async def __call__(self):
            await coroutine()

    await request(calling("on_success", plain, coroutine, Callable(), plain, then=ok))
    names, threads = zip(*calls, strict=True)
    assert names == ("plain", "coroutine", "coroutine", "plain")
    here = threading.get_ident()
    assert [thread == here for thread in threads] == [False, True, True, False]


@pytest.mark.parametrize("async_", [False, True])
async def test_success_callback_that_raises_is_logged(async_, caplog):
    """An error in a callback is logged: the client has its answer; the next callback runs."""
    calls = []

    def broken():
        raise ZeroDivisionError

    async def broken_async():
        raise ZeroDivisionError

    callbacks = [broken_async if async_ else broken, lambda: calls.append(1)]
    client = await request(calling("on_success", *callbacks, then=ok))
    assert client.status == 200
    assert calls == [1]
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


async def test_success_is_told_after_the_release():
    """G8: callbacks run when the attempt's connection has gone back."""
    database = FakeDatabase()

    async def app(scope, receive, send):
        database.use()
        current_attempt().on_success(lambda: database.log.append("success"))
        await answer(send)

    await request(app, databases=[database])
    assert database.log == ["open 1", "release 1", "success"]


@pytest.mark.parametrize("end", ["503", "error", "cancellation", "sealed", "abandoned"])
async def test_success_is_not_told_of_what_failed(end):
    """A request that ended without the attempt's answer was no success."""
    calls, client = [], Client("GET")

    async def app(scope, receive, send):
        current_attempt().on_success(lambda: calls.append(1))
        if end == "error":
            raise NotOurs
        if end == "cancellation":
            cancel.cancel()
            await anyio.sleep_forever()
        if end == "sealed":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        if end == "abandoned":
            client.leave()
        raise lost()

    with anyio.CancelScope() as cancel:
        try:
            await request(app, client)
        except Exception:  # noqa: BLE001  # what it ends with is not what is tested
            assert end in ("error", "sealed")
    assert calls == []


@pytest.mark.parametrize("status", [200, 404])
async def test_success_is_told_where_a_layer_saw_a_failure_that_was_dealt_with(status):
    """A doomed attempt that answered below 500 was sent, so it succeeded."""
    calls = []

    async def app(scope, receive, send):
        current_attempt().on_success(lambda: calls.append(1))
        current_attempt().doom(lost())
        await answer(send, status=status)

    await request(app)
    assert calls == [1]


# on_rollback.


async def test_rollback_is_told_when_the_attempt_is_undone():
    """Callbacks of a failed attempt run once, after the databases were undone, before the next."""
    database = FakeDatabase()

    async def app(scope, receive, send):
        number = current_attempt().number
        database.use()
        current_attempt().on_rollback(lambda: database.log.append(f"undo {number}"))
        if number == 1:
            raise lost()
        await answer(send)

    await request(app, databases=[database])
    assert database.log == ["open 1", "rollback 1", "release 1", "undo 1", "open 2", "release 2"]


@pytest.mark.parametrize("end", ["503", "error", "cancellation", "sealed"])
async def test_rollback_is_told_however_an_attempt_failed(end):
    """An attempt that was undone tells so, whatever ended it."""
    calls = []

    async def callback():
        await anyio.lowlevel.checkpoint()
        calls.append(1)

    async def app(scope, receive, send):
        current_attempt().on_rollback(callback)
        if end == "error":
            raise NotOurs
        if end == "cancellation":
            cancel.cancel()
            await anyio.sleep_forever()
        if end == "sealed":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise lost()

    with anyio.CancelScope() as cancel:
        try:
            await request(app, policy=policy(max_replays=0))
        except Exception:  # noqa: BLE001  # what it ends with is not what is tested
            assert end in ("error", "sealed")
    assert calls == [1]


async def test_rollback_callbacks_sync_in_a_thread_errors_logged(caplog):
    """Plain functions run in a worker thread; an error is logged and the next one runs."""
    threads = []

    def broken():
        raise ZeroDivisionError

    callbacks = [broken, lambda: threads.append(threading.get_ident())]
    client = await request(Flaky(lost(), first=calling("on_rollback", *callbacks)))
    assert client.status == 200
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
    assert any(r.exc_info and r.exc_info[0] is ZeroDivisionError for r in caplog.records)


async def test_rollback_is_not_told_of_a_success():
    """An attempt that was sent was not undone."""
    calls = []
    await request(calling("on_rollback", lambda: calls.append(1), then=ok))
    assert calls == []


@pytest.mark.parametrize("async_", [False, True])
async def test_rollback_callback_that_hangs_is_given_up(async_, monkeypatch):
    """G6: nothing that undoes may hang on for good, a cancelled request least of all."""
    monkeypatch.setattr(undoing, "_UNDO_SECONDS", 0.3)
    done, hanging = threading.Event(), threading.Event()

    def hang():
        hanging.set()
        done.wait(30)

    async def hang_async():
        hanging.set()
        await anyio.sleep(30)

    async def app(scope, receive, send):
        current_attempt().on_rollback(hang_async if async_ else hang)
        cancel.cancel()
        await anyio.sleep_forever()

    began = anyio.current_time()
    with anyio.CancelScope() as cancel:
        await request(app)
    done.set()
    assert hanging.is_set()
    assert anyio.current_time() - began < 15


async def test_attempt_is_readable():
    """An attempt in a log or a debugger says which it is."""
    shown = []

    async def app(scope, receive, send):
        shown.append(repr(current_attempt()))
        await answer(send)

    await request(app)
    assert shown == ["<Attempt 1 of GET>"]
