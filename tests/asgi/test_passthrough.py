"""What the middleware leaves alone, and what the outside sees of the scope (G1, G5)."""

import contextlib

import anyio
import pytest

from retrymw import current_attempt
from retrymw.asgi import RetryMiddleware

from .helpers import (
    Client,
    Flaky,
    NotOurs,
    answer,
    lost,
    middleware,
    ok,
    plain,
    policy,
    read,
    request,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("kind", ["lifespan", "websocket", "something.new"])
async def test_other_protocols_pass_untouched(kind):
    """G5: what is not HTTP gets the same scope, receive and send, and is never replayed."""
    scope, given, error = {"type": kind}, [], lost()

    async def receive():
        raise NotImplementedError

    async def send(message):
        raise NotImplementedError

    async def app(*args):
        given.append(args)
        assert current_attempt(None) is None
        if len(given) == 1:
            return "result"
        raise error

    served = RetryMiddleware(app, policy=policy())  # a validator's receive and send are its own
    assert await served(scope, receive, send) == "result"
    assert all(got is gave for got, gave in zip(given[0], (scope, receive, send), strict=True))
    assert scope == {"type": kind}
    with pytest.raises(type(error)) as caught:
        await served(scope, receive, send)
    assert caught.value is error
    assert len(given) == 2


@pytest.mark.parametrize("failures", [0, 2])
async def test_return_value_is_returned(failures):
    """G5: what the app returns is what its caller gets."""
    value = object()

    async def returning(scope, receive, send):
        await answer(send)
        return value

    app = Flaky(*[lost()] * failures, then=returning)
    client = await request(app, inner=plain, outer=plain)  # it breaks a rule
    assert client.result is value


async def test_return_value_without_a_response_is_returned():
    """G5: the return value does not depend on what was sent."""

    async def app(scope, receive, send):
        return "value"

    client = await request(app, inner=plain, outer=plain)  # it breaks two rules
    assert client.result == "value"


async def test_every_attempt_gets_the_same_scope_object():
    """G5: the scope is the server's own object in every attempt: code outside reads it after."""
    client = Client()
    await request(Flaky(lost(), lost()), client)
    assert [run.scope is client.scope for run in client.runs] == [True] * 3


async def test_scope_is_restored_for_a_replay():
    """G1: keys that a failed attempt added, removed or changed are as they were."""
    client = Client(user="before", session={"a": 1})

    async def meddle(scope, receive, send):
        scope["added"] = True
        scope["user"] = "changed"
        scope["path"] = "/changed"
        del scope["session"]
        del scope["client"]

    expected = dict(client.scope)
    await request(Flaky(lost(), lost(), first=meddle), client)
    assert [run.keys for run in client.runs] == [expected] * 3
    assert client.scope == expected


async def test_scope_state_is_restored_one_level_deeper():
    """G1: the state's own keys are restored too, in the same state object."""
    pool = object()
    state = {"pool": pool, "user": "before", "gone": 1}
    client, seen = Client(state=state), []

    async def meddle(scope, receive, send):
        seen.append(dict(scope["state"]))
        assert scope["state"] is state
        scope["state"].update(user="changed", added=True)
        del scope["state"]["gone"]

    await request(Flaky(lost(), lost(), first=meddle, then=ok), client)
    assert seen == [{"pool": pool, "user": "before", "gone": 1}] * 2
    assert client.scope["state"] is state
    assert state == {"pool": pool, "user": "before", "gone": 1}


async def test_replaced_state_is_restored():
    """G1: an attempt that puts another state into the scope leaves the server's own behind."""
    state = {"pool": 1}
    client = Client(state=state)

    async def meddle(scope, receive, send):
        scope["state"]["pool"] = 2
        scope["state"] = {"mine": True}

    await request(Flaky(lost(), first=meddle), client)
    assert client.scope["state"] is state
    assert state == {"pool": 1}


@pytest.mark.parametrize("state", [None, "missing"])
async def test_state_is_optional(state):
    """G1: a server without lifespan state gives none, and a replay sees none either."""
    client = Client()
    if state == "missing":
        del client.scope["state"]
    else:
        client.scope["state"] = None

    async def meddle(scope, receive, send):
        scope["state"] = {"mine": True}

    await request(Flaky(lost(), first=meddle), client)
    assert client.runs[1].keys.get("state", "missing") == state


async def test_outside_sees_the_last_attempts_scope():
    """G5: what the attempt that was sent left in the scope is there after the call."""

    async def route(scope, receive, send):
        scope["route"] = current_attempt().number
        await answer(send)

    client = Client()
    await request(Flaky(lost(), lost(), then=route), client)
    assert client.scope["route"] == 3


# An attempt that is over reaches nobody.


async def test_send_of_a_failed_attempt_reaches_nobody():
    """G1: what a task of attempt 1 sends during attempt 2 reaches nobody."""
    client, stray_sent = Client(), anyio.Event()
    go = anyio.Event()

    async def stray(send):
        await go.wait()
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b"stray", "more_body": True})
        stray_sent.set()

    async with anyio.create_task_group() as tasks:

        async def app(scope, receive, send):
            if not current_attempt().is_replay:
                tasks.start_soon(stray, send)
                raise lost()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            go.set()
            await stray_sent.wait()
            await send({"type": "http.response.body", "body": b"ok"})

        await request(app, client, inner=plain)  # who sends after the end breaks a rule
    assert (client.status, client.body) == (200, b"ok")
    assert client.kinds == ["start", "body"]


async def test_send_of_a_refused_attempt_reaches_nobody():
    """G1: a task of the last attempt that sends after the 503 reaches nobody."""
    client, sends = Client(), []

    async def app(scope, receive, send):
        sends.append(send)
        raise lost()

    # Who sends after the end breaks a rule.
    await request(app, client, inner=plain, policy=policy(max_replays=0))
    await sends[0]({"type": "http.response.start", "status": 418, "headers": []})
    assert client.status == 503
    assert client.kinds == ["start", "body"]


async def test_receive_of_a_failed_attempt_gets_a_disconnect():
    """G1: a task of attempt 1 that asks for the body during attempt 2 takes nothing from it."""
    later = anyio.Event()
    client, receives = Client("PUT", body=[b"a", later, b"b"]), []

    async def app(scope, receive, send):
        receives.append(receive)
        await receive()
        if not current_attempt().is_replay:
            raise lost()
        assert await receives[0]() == {"type": "http.disconnect"}
        later.set()
        assert await receives[0]() == {"type": "http.disconnect"}
        await answer(send, b"a" + await read(receive))

    await client.call(middleware(app))
    assert client.body == b"ab"


async def test_receive_of_a_failed_attempt_takes_nothing_that_came_during_the_wait():
    """G1: what arrived while the exchange waited is the replay's alone."""
    client, receives, stray = Client("PUT", body=[b"a", b"b", b"c"]), [], []

    async def app(scope, receive, send):
        receives.append(receive)
        if not current_attempt().is_replay:
            raise lost()
        stray.append(await receives[0]())
        await answer(send, await read(receive))

    await client.call(middleware(app))
    assert client.asked >= 3  # the wait took the body in
    assert stray == [{"type": "http.disconnect"}]
    assert client.body == b"abc"


@pytest.mark.parametrize("read_first", [False, True], ids=["nothing read", "half read"])
async def test_receive_that_outlives_its_attempt_takes_nothing(read_first):
    """G1: a task of attempt 1 that was waiting for the body when it failed steals none of it."""
    later, asking = anyio.Event(), anyio.Event()
    body = [later, b"b", b"c"]
    client = Client(
        "PUT", body=[b"a", *body] if read_first else body, headers=[("expect", "100-continue")]
    )

    async def stray(receive):
        asking.set()
        await receive()

    async with anyio.create_task_group() as tasks:

        async def app(scope, receive, send):
            if not current_attempt().is_replay:
                if read_first:
                    await receive()
                tasks.start_soon(stray, receive)
                await asking.wait()
                raise lost()
            later.set()
            body = b"a body that never ends"
            with anyio.move_on_after(10):
                body = await read(receive)
            await answer(send, body)

        await client.call(middleware(app))
        tasks.cancel_scope.cancel()
    assert client.status == 503 or client.body == (b"abc" if read_first else b"bc")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_receive_that_outlives_its_attempt_takes_nothing_beside_another():
    """G1: the same where the attempt itself was given a chunk meanwhile."""
    first, second = anyio.Event(), anyio.Event()
    client = Client("PUT", body=[first, b"a", second, b"b"])

    async with anyio.create_task_group() as tasks:

        async def app(scope, receive, send):
            if current_attempt().is_replay:
                second.set()
                body = b"a body that never ends"
                with anyio.move_on_after(10):
                    body = await read(receive)
                return await answer(send, body)
            async with anyio.create_task_group() as mine:
                mine.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                first.set()
            raise lost()

        await client.call(middleware(app))
        tasks.cancel_scope.cancel()
    assert client.status == 503 or client.body == b"ab"


async def test_listening_of_a_failed_attempt_for_the_leaving():
    """G5: a task of attempt 1 that waits for the client's leaving hinders no replay, and hears."""
    client, heard = Client("PUT", body=[b"a"]), []

    async def listen(receive):
        heard.append(await receive())

    async with anyio.create_task_group() as tasks:

        async def app(scope, receive, send):
            body = await read(receive)
            if not current_attempt().is_replay:
                tasks.start_soon(listen, receive)
                await anyio.wait_all_tasks_blocked()
                raise lost()
            await answer(send, body)

        await client.call(middleware(app))
    assert client.body == b"a"
    assert heard == [{"type": "http.disconnect"}]


@pytest.mark.parametrize("error", [None, NotOurs()], ids=["returned", "raised"])
async def test_stray_task_of_the_attempt_that_was_sent_is_not_our_business(error):
    """G5: a task that outlives a request without failures has the server's receive and send."""
    ends = []

    async def app(scope, receive, send):
        ends.append((receive, send))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        if error is not None:
            raise error

    client = Client()
    with contextlib.suppress(NotOurs):
        # Who sends after the end breaks a rule, and so does who returns before it.
        await request(app, client, inner=plain, outer=plain)
    receive, send = ends[0]
    await send({"type": "http.response.body", "body": b"b"})
    assert client.body == b"ab"
    assert (await receive())["type"] == "http.disconnect"


async def test_buffer_that_the_app_uses_again_is_held_as_it_was():
    """G5: of a response that is held, the client gets the bytes that were in the buffer then."""

    async def app(scope, receive, send):
        buffer = bytearray(b"one")
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": buffer, "more_body": True})
        buffer[:] = b"two"
        await send({"type": "http.response.body", "body": memoryview(buffer), "more_body": True})
        buffer[:] = b"six"
        await send({"type": "http.response.body"})

    client = await request(app, inner=plain, outer=plain)  # ASGI asks for bytes
    assert client.body == b"onetwo"


async def test_what_is_sent_before_the_start_reaches_the_client_before_it():
    """G5: a push or an early hint comes first, and does not hide that trailers end the response."""

    async def app(scope, receive, send):
        await send({"type": "http.response.push", "path": "/style.css", "headers": []})
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"a"})
        await send({"type": "http.response.trailers", "headers": []})

    client = Client()
    await RetryMiddleware(app, policy=policy())(client.scope, client.receive, client.send)
    assert client.kinds == ["push", "start", "body", "trailers"]
