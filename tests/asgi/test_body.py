"""The request body: recorded as it is read, read again by a replay (G1, G2, G5)."""

import asyncio
import contextlib
import tempfile

import anyio
import anyio.lowlevel
import pytest
from tenacity import wait_fixed

from retrymw import DisconnectionError, RetryPolicy, current_attempt

from .helpers import (
    GONE,
    Client,
    FakeAsyncDatabase,
    Flaky,
    NotOurs,
    answer,
    echo,
    lost,
    middleware,
    ok,
    patient,
    policy,
    read,
    request,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def files(monkeypatch):
    """The temporary files that were made in the test."""
    made = []
    real = tempfile.TemporaryFile

    def recorded(*args, **kwargs):
        made.append(real(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", recorded)
    return made


def reading(count):
    """Reads `count` messages, or what there is."""

    async def read_some(scope, receive, send):
        for _ in range(count):
            message = await receive()
            if not message.get("more_body"):
                break

    return read_some


async def test_upload_is_not_read_ahead():
    """G5: the server is asked for a chunk when the app asks for it, not before."""
    client, seen = Client("PUT", body=[b"a", b"b", b"c"]), []

    async def app(scope, receive, send):
        for _ in range(3):
            seen.append(client.asked)
            await receive()
            seen.append(client.asked)
        await answer(send)

    await request(app, client)
    assert seen == [0, 1, 1, 2, 2, 3]


async def test_chunks_arrive_as_they_were_sent():
    """G5: without a failure the app gets the server's messages themselves, empty ones too."""
    client = Client("PUT", body=[b"", b"a", b"", b"b", b""])
    await request(echo, client)
    assert client.runs[0].received == [
        {"type": "http.request", "body": b"", "more_body": True},
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": True},
        {"type": "http.request", "body": b"", "more_body": False},
    ]


async def test_message_keys_are_optional():
    """G5: a server may leave out what has a default; a replay reads the same bytes."""
    messages = [
        {"type": "http.request", "more_body": True},
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request"},
    ]
    client, bodies = Client("PUT"), []

    async def receive():
        if not messages:
            await anyio.sleep_forever()
        return messages.pop(0)

    async def app(scope, receive, send):
        more, body = True, b""
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        bodies.append(body)
        if not current_attempt().is_replay:
            raise lost()
        await answer(send)

    await client.call(middleware(app), receive=receive)
    assert bodies == [b"a", b"a"]


@pytest.mark.parametrize("status", [413, 307])
@pytest.mark.parametrize("failures", [0, 2])
async def test_answer_without_reading_reads_nothing(status, failures):
    """G5: an app that refuses or redirects without reading leaves the body with the client."""

    async def refuse(scope, receive, send):
        await answer(send, status=status)

    client = Client("PUT", headers=[("expect", "100-continue")], body=[b"x" * 99] * 9)
    await request(Flaky(*[lost()] * failures, then=refuse), client)
    assert client.status == status
    assert client.asked == 0


async def test_waiting_does_not_ask_a_client_that_waits_for_100_continue():
    """G5: a client that asks before it sends is not told to by our listening for its leaving."""
    client = Client("PUT", headers=[("expect", "100-continue")], body=[b"x"])
    await request(Flaky(lost(), lost()), client, policy=RetryPolicy(wait=wait_fixed(0.01)))
    assert client.status == 200
    assert client.asked == 0


async def test_waiting_takes_in_little_of_an_unread_body():
    """G2: while we listen for the client's leaving, most of a body that nobody read stays away."""
    client = Client("PUT", body=[b"x" * 16384] * 64)
    await request(Flaky(lost(), then=ok), client, policy=RetryPolicy(wait=wait_fixed(0.01)))
    assert client.status == 200
    assert 1 <= client.asked <= 5


async def test_what_came_during_the_wait_is_read_by_the_replay():
    """G5: chunks that arrive while an exchange waits are the replay's, in their order."""
    client = Client("PUT", body=[b"a", b"b", b"c", b"d"])
    app = Flaky(lost(), lost(), first=reading(1), then=echo)
    await request(app, client, policy=RetryPolicy(wait=wait_fixed(0.01)))
    assert client.body == b"abcd"
    assert [run.read for run in client.runs] == [b"a", b"abcd"[: len(client.runs[1].read)], b"abcd"]


@pytest.mark.parametrize("read_first", range(5))
async def test_replay_rewinds(read_first):
    """G5: wherever attempt 1 stopped reading, attempt 2 reads the body from its first byte."""
    client = Client("PUT", body=[b"a", b"", b"b", b"c"])
    await request(Flaky(lost(), first=reading(read_first), then=echo), client)
    assert client.body == b"abc"


async def test_replay_reads_on_while_the_body_still_comes():
    """G5: a replay reads what was recorded, then what comes."""
    later = anyio.Event()
    client = Client("PUT", body=[b"a", later, b"b"])

    async def app(scope, receive, send):
        first = await receive()
        if not current_attempt().is_replay:
            raise lost()
        later.set()
        assert first["more_body"]
        await answer(send, first["body"] + await read(receive))

    assert (await request(app, client)).body == b"ab"


async def test_disconnect_in_mid_body_stays_a_disconnect():
    """G5: a body that the client broke off never becomes a complete one, in a replay either."""
    later = anyio.Event()
    client, ends = Client("PUT", body=[b"a", later, GONE]), []

    async def app(scope, receive, send):
        ends.append((await receive())["more_body"])
        if not current_attempt().is_replay:
            raise lost()
        later.set()
        ends.append((await receive())["type"])

    await request(app, client)
    assert ends == [True, True, "http.disconnect"]
    assert not any(run.read_to_the_end for run in client.runs)
    assert client.sent == []


async def test_replay_of_a_broken_body_is_pointless():
    """G6: an attempt that failed after it learned that the client has gone is the last."""
    client = Client("PUT", body=[b"a", GONE])
    app = Flaky(lost(), first=reading(2))
    await request(app, client)
    assert app.calls == 1
    assert client.sent == []


@pytest.mark.parametrize("failures", [0, 1])
async def test_after_the_response_the_real_disconnect_arrives(failures):
    """G5: once the response is complete, ``receive`` waits for the server's own disconnect."""

    async def app(scope, receive, send):
        body = await read(receive)
        await answer(send, body)
        assert await receive() == {"type": "http.disconnect"}

    client = Client("PUT", body=[b"a", b"b"])
    await request(Flaky(*[lost()] * failures, first=reading(2), then=app), client)
    assert client.body == b"ab"


async def test_receive_after_the_body_waits_for_the_disconnect():
    """G5: ``receive`` after the whole body blocks until the client leaves, in a replay too."""
    client = Client("PUT", body=[b"a"])

    async def app(scope, receive, send):
        await read(receive)
        if not current_attempt().is_replay:
            raise lost()
        with anyio.move_on_after(0) as blocked:
            await receive()
        client.leave()
        assert blocked.cancelled_caught
        assert await receive() == {"type": "http.disconnect"}

    await request(app, client)
    assert len(client.runs) == 2


async def test_cancelled_receive_loses_nothing():
    """G5: a ``receive`` that is given up takes nothing with it."""
    later = anyio.Event()
    client = Client("PUT", body=[b"a", later, b"b"])

    async def app(scope, receive, send):
        if current_attempt().is_replay:
            return await answer(send, await read(receive))
        await receive()
        with anyio.move_on_after(0) as given_up:
            await receive()
        assert given_up.cancelled_caught
        later.set()
        await read(receive)
        raise lost()

    await request(app, client)
    assert [run.read for run in client.runs] == [b"ab", b"ab"]
    assert client.body == b"ab"


# Spilling to disk, and the limit.


async def test_long_body_spills_to_disk(files):
    """G2: what exceeds `body_memory` is recorded on disk, and the replay reads all of it."""
    chunks = [bytes([65 + number]) * 7 for number in range(20)]
    client = Client("PUT", body=chunks)
    app = Flaky(lost(), lost(), first=reading(15), then=echo)
    await request(app, client, policy=policy(body_memory=20))
    assert client.body == b"".join(chunks)
    assert len(files) == 1
    assert files[0].closed


@pytest.mark.parametrize("tasks", [2, 5])
async def test_tasks_that_read_at_once_from_disk(tasks):
    """G5: what is on disk is given to one of the tasks that ask for it, and in its order."""
    chunks = [bytes([65 + number]) * 7 for number in range(20)]
    client = Client("PUT", body=chunks)

    async def read_along(receive):
        more = True
        while more and not client.runs[-1].read_to_the_end:
            more = (await receive())["more_body"]

    async def app(scope, receive, send):
        async with anyio.create_task_group() as group:
            for _ in range(tasks if current_attempt().is_replay else 1):
                group.start_soon(read_along, receive)
            while not client.runs[-1].read_to_the_end:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        if current_attempt().number < 3:
            raise lost()
        await answer(send)

    await request(app, client, policy=policy(body_memory=4))
    assert [run.read for run in client.runs] == [b"".join(chunks)] * 3


@pytest.mark.parametrize("fails", [False, True])
async def test_tasks_that_ask_while_the_body_goes_to_disk(files, fails):
    """G5: two tasks that ask for an upload at once get all of it; such a body is not replayed."""
    gates = [anyio.Event() for _ in range(6)]
    chunks = [bytes([65 + number]) * 7 for number in range(6)]
    body = [item for pair in zip(gates, chunks, strict=True) for item in pair]
    client = Client("PUT", body=body)

    async def read_along(receive):
        while not client.runs[-1].read_to_the_end:
            await receive()

    async def app(scope, receive, send):
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(read_along, receive)
            for gate in gates:
                await anyio.wait_all_tasks_blocked()
                gate.set()
            while not client.runs[-1].read_to_the_end:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        if fails:
            raise lost()
        await answer(send)

    await request(app, client, policy=policy(body_memory=4))
    assert [run.read for run in client.runs] == [b"".join(chunks)]
    assert (client.status, client.header("retry-outcome")) == (
        (503, "sealed") if fails else (200, None)
    )
    assert all(file.closed for file in files)


async def test_short_body_stays_in_memory(files):
    """G2: what fits into `body_memory` touches no disk."""
    client = Client("PUT", body=[b"x" * 10] * 2)
    await request(Flaky(lost(), first=reading(2), then=echo), client, policy=policy(body_memory=20))
    assert files == []


async def test_body_memory_may_be_nothing(files):
    """G2: with ``body_memory=0`` everything recorded goes to disk."""
    client = Client("PUT", body=[b"a", b"b", b"c"])
    await request(Flaky(lost(), first=reading(3), then=echo), client, policy=policy(body_memory=0))
    assert client.body == b"abc"


async def test_body_past_the_limit_seals():
    """G2: past `body_limit` the recording is dropped, and a failure is answered 503 ``sealed``."""
    client = Client("PUT", body=[b"x" * 6] * 2)
    app = Flaky(lost(), first=reading(2))
    await request(app, client, policy=policy(body_memory=5, body_limit=11))
    assert app.calls == 1
    assert (client.status, client.header("retry-outcome")) == (503, "sealed")
    assert client.header("retry-after") is not None


async def test_body_at_the_limit_is_replayed():
    """G2: a body of exactly `body_limit` bytes is recorded whole."""
    client = Client("PUT", body=[b"x" * 6] * 2)
    app = Flaky(lost(), first=reading(2), then=echo)
    await request(app, client, policy=policy(body_memory=5, body_limit=12))
    assert client.body == b"x" * 12


async def test_body_past_the_limit_still_reaches_the_app(files):
    """G5: dropping the recording changes nothing for the app, and gives the disk back."""
    client = Client("PUT", body=[b"abc"] * 9)
    await request(echo, client, policy=policy(body_memory=4, body_limit=10))
    assert client.body == b"abc" * 9
    assert all(file.closed for file in files)


async def test_body_past_the_limit_in_a_replay_seals():
    """G2: a replay that reads further than the attempt before it may pass the limit as well."""
    client = Client("PUT", body=[b"x" * 6] * 3)

    async def app(scope, receive, send):
        await receive()
        if current_attempt().is_replay:
            assert await read(receive) == b"x" * 12
        raise lost()

    await request(app, client, policy=policy(body_memory=5, body_limit=11))
    assert len(client.runs) == 2
    assert client.runs[1].read == b"x" * 18
    assert (client.status, client.header("retry-outcome")) == (503, "sealed")


@pytest.mark.parametrize("first_read", [0, 9], ids=["replay spills", "first attempt spills"])
@pytest.mark.parametrize("end", ["answer", "503", "error", "cancellation", "unwanted"])
async def test_disk_is_given_back_however_the_exchange_ends(files, end, first_read):
    """G2: the temporary file is closed when the exchange is over, whichever attempt made it."""
    client = Client("PUT", body=[b"x" * 9] * 9, headers=[("expect", "100-continue")])

    async def then(scope, receive, send):
        body = await read(receive)
        assert len(body) == 81
        if end == "cancellation":
            cancel.cancel()
            await anyio.sleep_forever()
        if end == "error":
            raise NotOurs
        if end == "503":
            raise lost()
        if end == "unwanted":
            client.leave()
            await receive()
            raise lost()
        await answer(send)

    app = Flaky(lost(), first=reading(first_read), then=then)
    with anyio.CancelScope() as cancel:
        with contextlib.suppress(NotOurs):
            await request(app, client, policy=policy(body_memory=20, max_replays=1))
    assert app.calls == 2
    assert len(files) == 1
    assert files[0].closed


@pytest.mark.parametrize("end", ["answer", "error", "cancellation"])
async def test_disk_is_given_back_without_a_replay(files, end):
    """G2: the temporary file of an exchange of one attempt is closed as well."""
    client = Client("PUT", body=[b"x" * 9] * 9)

    async def app(scope, receive, send):
        await read(receive)
        if end == "cancellation":
            cancel.cancel()
            await anyio.sleep_forever()
        if end == "error":
            raise NotOurs
        await answer(send)

    with anyio.CancelScope() as cancel:
        with contextlib.suppress(NotOurs):
            await request(app, client, policy=policy(body_memory=20))
    assert len(files) == 1
    assert files[0].closed


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("failures", [0, 1])
async def test_disk_is_given_back_when_the_undoing_is_cancelled(files, failures):
    """G2: the temporary file goes also when ``task.cancel()`` strikes in the middle of undoing."""
    reached, client = anyio.Event(), Client("PUT", body=[b"x" * 9] * 9)

    async def slow():
        if len(client.runs) > failures:
            reached.set()
            await anyio.sleep_forever()

    database = FakeAsyncDatabase(on_rollback=slow)

    async def app(scope, receive, send):
        await read(receive)
        database.use()
        if current_attempt().number <= failures:
            raise lost()
        task.cancel()
        await anyio.sleep_forever()

    task = asyncio.create_task(
        request(app, client, policy=policy(body_memory=20), databases=[database])
    )
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [file.closed for file in files] == [True]


@pytest.mark.parametrize("method", ["write", "open"])
async def test_full_disk_costs_the_replay_not_the_request(method, monkeypatch, caplog):
    """G2: where the recording can't be kept the app reads on, and a failure is ``sealed``."""

    class Full:
        def __init__(self, *args, **kwargs):
            if method == "open":
                raise OSError("no space left")

        def seek(self, position):
            pass

        def write(self, data):
            raise OSError("no space left")

        def close(self):
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    chunks = [b"x" * 9] * 9
    client = await request(echo, Client("PUT", body=chunks), policy=policy(body_memory=10))
    assert client.body == b"x" * 81
    assert any(record.exc_info for record in caplog.records)
    app = Flaky(lost(), first=reading(9))
    client = await request(app, Client("PUT", body=chunks), policy=policy(body_memory=10))
    assert (client.status, client.header("retry-outcome")) == (503, "sealed")


async def test_sealed_by_the_response_outweighs_the_recording():
    """G2: a response that has started can't be taken back, whatever became of the recording."""
    client, error = Client("PUT", body=[b"x" * 6] * 3), lost()

    async def half(scope, receive, send):
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    with pytest.raises(DisconnectionError) as caught:
        await request(Flaky(error, first=half), client, policy=policy(body_memory=5, body_limit=11))
    assert caught.value is error


async def test_disconnect_during_the_wait_with_a_half_read_body():
    """G6: a client that breaks its upload off while we wait ends the exchange."""
    client = Client("PUT", body=[b"a", b"b", GONE])
    app = Flaky(lost(), first=reading(1))
    await request(app, client, policy=patient())
    assert app.calls == 1
    assert client.sent == []


async def test_task_that_spills_when_its_attempt_fails_takes_nothing():
    """G5: a task that outlives its attempt, busy with the disk, takes no chunk from the replay."""
    body = [b"a" * 10, b"b" * 10, b"c" * 10]

    async def app(scope, receive, send):
        if current_attempt().is_replay:
            return await echo(scope, receive, send)
        await receive()
        tasks.start_soon(receive)
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        raise lost()

    client = Client("PUT", body=body)
    async with anyio.create_task_group() as tasks:
        await request(app, client, policy=policy(body_memory=5))
    assert client.body == b"".join(body)


async def test_task_that_reads_on_after_a_replay_is_told_that_it_is_over():
    """G2: what reads the body after the exchange gets its end, not empty chunks for ever."""
    heard = []

    async def read_on(receive):
        await over.wait()
        for _ in range(3):  # more would be many too many
            message = await receive()
            heard.append(message["type"])
            if message["type"] == "http.disconnect":
                return

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            await receive()
            raise lost()
        tasks.start_soon(read_on, receive)
        await answer(send)

    client, over = Client("PUT", body=[b"a", b"b"]), anyio.Event()
    async with anyio.create_task_group() as tasks:
        await request(app, client)
        over.set()
    assert heard == ["http.disconnect"]
