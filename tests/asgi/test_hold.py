"""When the response is held, and when it leaves (G1, G5)."""

import anyio
import pytest

from retrymw import DisconnectionError, current_attempt
from retrymw.asgi import RetryMiddleware

from .helpers import Client, Flaky, NotOurs, answer, lost, middleware, plain, policy, request

pytestmark = pytest.mark.anyio


def start(status=200, headers=(), **more):
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def body(chunk=b"", more_body=False):
    return {"type": "http.response.body", "body": chunk, "more_body": more_body}


def script(client, *messages, seen):
    """An app that sends the messages, and notes after each how many the client has."""

    async def app(scope, receive, send):
        for message in messages:
            await send(message)
            seen.append(len(client.sent))

    return app


@pytest.mark.parametrize(
    ("messages", "seen"),
    [
        ([start(), body(b"a", True), body()], [0, 2, 3]),
        ([start(), body(b"", True), body(b"", True), body(b"a", True), body()], [0, 0, 0, 4, 5]),
        ([start(), body()], [0, 2]),
        ([start(), body(b"", True), body()], [0, 0, 3]),
        ([start(), {"type": "http.response.body"}], [0, 2]),
        ([start(404), body(b"a")], [0, 2]),
        ([start(500), body(b"a", True), body(b"b")], [0, 0, 0]),
        ([start(503), body()], [0, 0]),
    ],
    ids=["chunks", "empty first", "empty", "empty twice", "bare", "404", "500", "503"],
)
async def test_start_is_held_until_bytes_or_the_end(messages, seen):
    """G5: the start waits for the first bytes or the body's end, a 5xx for the app's return."""
    client, found = Client(), []
    await request(script(client, *messages, seen=found), client)
    assert found == seen
    assert len(client.sent) == len(messages)


async def test_start_without_a_body_is_sent():
    """G5: what an app that only starts a response leaves undone is the server's, as without us."""
    client, seen = Client(), []
    # That breaks a rule, and is for the server to see.
    app = script(client, start(), seen=seen)
    await request(app, client, inner=plain, outer=plain)
    assert seen == [0]
    assert client.kinds == ["start"]


async def test_nothing_at_all_is_nothing_at_all():
    """G5: an app that sends nothing leaves the rest to the server, as without us."""

    async def app(scope, receive, send):
        return None

    client = await request(app, inner=plain, outer=plain)  # it breaks a rule
    assert client.sent == []


async def test_event_stream_is_released_at_once():
    """G5: an event source's client sees the stream open before the first event."""
    client, seen = Client(), []
    headers = [(b"x", b"y"), (b"content-type", b"text/event-stream; charset=utf-8")]
    await request(
        script(client, start(200, headers), body(b"data: 1\n\n", True), body(), seen=seen), client
    )
    assert seen == [1, 2, 3]


async def test_failing_event_stream_is_answered_by_its_status():
    """An event stream's 5xx is an answer like any other, and held."""
    client, seen = Client(), []
    headers = [(b"content-type", b"text/event-stream")]
    await request(script(client, start(503, headers), body(b"no"), seen=seen), client)
    assert seen == [0, 0]


async def test_5xx_is_held_up_to_a_limit():
    """G2: what is held is bounded; past `body_memory` bytes it is sent, and sealed."""
    client, seen, error = Client(), [], lost()
    sends = script(client, start(500), body(b"x" * 8, True), body(b"x" * 8, True), seen=seen)
    with pytest.raises(DisconnectionError) as caught:
        await request(Flaky(error, first=sends), client, policy=policy(body_memory=10))
    assert caught.value is error
    assert seen == [0, 0, 3]
    assert len(client.runs) == 1


async def test_5xx_within_the_limit_is_dropped_with_its_attempt():
    """G1: no byte of a failed attempt's 500 reaches the client, however many there were."""
    client, seen = Client(), []
    sends = script(client, start(500), body(b"x" * 8, True), body(b"x" * 2), seen=seen)
    await request(Flaky(lost(), first=sends), client, policy=policy(body_memory=10))
    assert seen == [0, 0, 0]
    assert client.body == b"ok"


async def test_until_return_holds_everything_until_the_app_returns():
    """G1: with ``hold="until-return"`` a failure after the whole response is still replayed."""
    client, seen = Client(), []
    sends = script(client, start(), body(b"a", True), body(b"b"), seen=seen)
    await request(
        Flaky(lost(), first=sends, then=sends), client, policy=policy(hold="until-return")
    )
    assert seen == [0] * 6
    assert client.body == b"ab"
    assert client.kinds == ["start", "body", "body"]


async def test_until_return_is_bounded():
    """G2: a response longer than `body_memory` bytes is streamed even so."""
    client, seen = Client(), []
    chunks = [body(b"x" * 10, True)] * 3
    await request(
        script(client, start(), *chunks, body(), seen=seen),
        client,
        policy=policy(hold="until-return", body_memory=25),
    )
    assert seen == [0, 0, 0, 4, 5]


@pytest.mark.parametrize("hold", ["first-chunk", "until-return"])
@pytest.mark.parametrize("status", [200, 500])
async def test_message_may_be_reused_by_the_app(hold, status):
    """G5: what an app does with a message after it was sent changes nothing of what was sent."""

    async def app(scope, receive, send):
        hint = {"type": "http.response.early_hint", "links": [b"</a>"]}
        await send(hint)
        hint["links"] = [b"</b>"]
        await send(hint)
        headers = [(b"x", b"1")]
        message = start(status, headers)
        await send(message)
        message.update(status=599)
        headers.clear()
        message["headers"].clear()
        message = body(b"", True)
        for chunk in (b"a", b"b", b"c"):
            message["body"] = chunk
            await send(message)
        message.update(body=b"", more_body=False)
        await send(message)

    client = await request(app, policy=policy(hold=hold))
    assert client.status == status
    assert client.header("x") == "1"
    assert [m["links"] for m in client.sent[:2]] == [[b"</a>"], [b"</b>"]]
    assert [m.get("body") for m in client.sent[3:]] == [b"a", b"b", b"c", b""]


async def test_headers_may_be_any_iterable():
    """G5: ASGI asks for an iterable of headers, and a generator can be looked at only once."""

    async def app(scope, receive, send):
        headers = ((name, b"1") for name in (b"x", b"content-type", b"y"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send(body())

    client = await request(app)
    assert client.sent[0]["headers"] == [(b"x", b"1"), (b"content-type", b"1"), (b"y", b"1")]
    client = await request(app, policy=policy(expose="always"))
    assert client.sent[0]["headers"][:3] == [(b"x", b"1"), (b"content-type", b"1"), (b"y", b"1")]


async def test_headers_may_be_missing():
    """G5: headers are optional in a response's start."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    client = await request(app)
    assert client.sent == [
        {"type": "http.response.start", "status": 204},
        {"type": "http.response.body"},
    ]
    assert (await request(app, policy=policy(expose="always"))).header("retry-attempts") == "1"


async def test_download_is_not_buffered():
    """G5: a huge download passes chunk by chunk, the first byte included, and none is kept."""
    client, ahead = Client(), []

    async def app(scope, receive, send):
        await send(start())
        for number in range(1, 501):
            await send(body(b"x" * 65536, True))
            ahead.append(number + 1 - len(client.sent))
            client.sent[-1]["body"] = b""
        await send(body())

    await request(app, client)
    assert ahead == [0] * 500


async def test_concurrent_sends_keep_their_order():
    """G5: a second task's chunk does not overtake the start that the first one's sets free."""
    client, slow, second = Client(), anyio.Event(), anyio.Event()

    async def slow_send(message):
        if message["type"] == "http.response.start":
            slow.set()
            await second.wait()
        await client.send(message)

    async def app(scope, receive, send):
        async def other():
            await slow.wait()
            second.set()
            await send(body(b"b", True))

        await send(start())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await send(body(b"a", True))
        await send(body())

    await client.call(middleware(app), send=slow_send)
    assert client.body == b"ab"


# Squashed failures: a database layer saw it, the framework answered it.


@pytest.mark.parametrize("status", [500, 502, 503])
async def test_doomed_5xx_is_replayed(status):
    """A 5xx of an attempt in which a database layer saw a failure is not the app's last word."""

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            current_attempt().doom(lost())
            await answer(send, b"sorry", status)
        else:
            await answer(send)

    client = await request(app)
    assert (client.status, client.body) == (200, b"ok")
    assert len(client.runs) == 2


@pytest.mark.parametrize("status", [200, 404, 409, 499])
async def test_doomed_answer_below_500_is_sent(status):
    """A doomed attempt that answered below 500 dealt with its failure."""

    async def app(scope, receive, send):
        current_attempt().doom(lost())
        await answer(send, b"dealt with", status)

    client = await request(app)
    assert (client.status, client.body) == (status, b"dealt with")
    assert len(client.runs) == 1
    assert client.told == set()


async def test_5xx_that_no_database_layer_knows_of_is_sent():
    """G5: an app's own 503 is its answer."""

    async def app(scope, receive, send):
        await answer(send, b"maintenance", 503)

    client = await request(app)
    assert (client.status, client.body) == (503, b"maintenance")
    assert client.told == set()
    assert len(client.runs) == 1


async def test_doomed_attempt_without_an_answer_is_replayed():
    """An attempt that was doomed and answered nothing left nothing to send."""

    async def app(scope, receive, send):
        if current_attempt().is_replay:
            await answer(send)
        current_attempt().doom(lost())

    client = await request(app, inner=plain)  # it breaks a rule
    assert client.status == 200


@pytest.mark.parametrize("status", [None, 200, 500])
async def test_doomed_attempt_that_raises_something_else_is_replayed(status):
    """G7: what an app raises over a failure that a database layer saw does not hide it."""
    reports = []
    failure = lost()

    async def app(scope, receive, send):
        if current_attempt().is_replay:
            return await answer(send)
        current_attempt().doom(failure)
        if status is not None:
            await send(start(status))
        raise NotOurs from None

    client = await request(app, hooks=[reports.append])
    assert client.status == 200
    assert reports[0].failures[0].exception is failure


async def test_doom_is_forgotten_in_the_next_attempt():
    """A doom holds for its attempt: the next one's own 5xx is sent."""

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            current_attempt().doom(lost())
        await answer(send, b"mine", 500)

    client = await request(app)
    assert (client.status, client.body) == (500, b"mine")
    assert len(client.runs) == 2


async def test_doomed_and_out_of_replays_is_a_503():
    """What a doomed attempt answered is not sent when replays run out: the 503 says more."""

    async def app(scope, receive, send):
        current_attempt().doom(lost())
        await answer(send, b"sorry", 500)

    client = await request(app, policy=policy(max_replays=1))
    assert client.status == 503
    assert client.header("retry-outcome") == "exhausted"
    assert b"sorry" not in client.body


# Work after the response.


async def test_complete_response_is_not_held_for_background_work():
    """G5: a complete response below 500 has left before background work begins."""
    client, seen = Client(), []

    async def app(scope, receive, send):
        await answer(send)
        seen.append(client.complete)

    await request(app, client)
    assert seen == [True]


async def test_background_work_is_never_replayed():
    """G2: a failure after the complete response passes, and what was sent stays sent."""
    client, error = Client(), lost()

    async def whole(scope, receive, send):
        await answer(send)

    with pytest.raises(DisconnectionError) as caught:
        await request(Flaky(error, first=whole), client)
    assert caught.value is error
    assert len(client.runs) == 1
    assert client.body == b"ok"


async def test_doom_in_background_work_changes_nothing():
    """G2: a failure that a database layer sees after the response replays nothing."""

    async def app(scope, receive, send):
        await answer(send)
        current_attempt().doom(lost())

    client = await request(app)
    assert client.body == b"ok"
    assert len(client.runs) == 1


# Extensions.

EARLY = [
    {"type": "http.response.debug", "info": {"template": "x"}},
    {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]},
    {"type": "http.response.push", "path": "/a.css", "headers": []},
]
SEQUENCES = {
    "early": [*EARLY, start(), body(b"a")],
    "push in between": [start(), EARLY[2], body(b"a", True), EARLY[2], body()],
    "trailers": [
        start(trailers=True),
        body(b"a"),
        {"type": "http.response.trailers", "headers": [(b"x", b"1")], "more_trailers": True},
        {"type": "http.response.trailers", "headers": [(b"y", b"2")]},
    ],
    "trailers of nothing": [
        start(trailers=True),
        body(),
        {"type": "http.response.trailers", "headers": [(b"x", b"1")]},
    ],
    "pathsend": [start(), {"type": "http.response.pathsend", "path": "/etc/hostname"}],
    "zerocopysend": [
        start(),
        {"type": "http.response.zerocopysend", "file": 3, "count": 5, "more_body": True},
        {"type": "http.response.zerocopysend", "file": 3, "offset": 7},
    ],
}


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("hold", ["first-chunk", "until-return"])
@pytest.mark.parametrize("name", SEQUENCES)
async def test_extensions_pass_in_order(name, hold, status):
    """G5: the messages of ASGI's extensions reach the server as they are and in their order."""
    messages = [{**m, "status": status} if "status" in m else m for m in SEQUENCES[name]]

    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    client = await request(app, policy=policy(hold=hold))
    assert client.sent == messages
    assert client.complete


@pytest.mark.parametrize("name", SEQUENCES)
async def test_extensions_of_a_failed_attempt_are_dropped(name):
    """G1: what a failed attempt sent by way of extensions goes with it."""
    messages = SEQUENCES[name]

    async def app(scope, receive, send):
        for message in messages:
            await send(message)
        if not current_attempt().is_replay:
            raise lost()

    client = await request(app, policy=policy(hold="until-return", expose="never"))
    assert client.sent == messages
    assert len(client.runs) == 2


async def test_early_messages_of_a_failed_attempt_are_dropped():
    """G1: hints and pushes before a response are held with its start."""

    async def early(scope, receive, send):
        for message in [*EARLY, start()]:
            await send(message)

    client = await request(Flaky(lost(), first=early))
    assert client.kinds == ["start", "body"]


@pytest.mark.parametrize("kind", ["pathsend", "zerocopysend"])
async def test_file_is_sent_at_once(kind):
    """G5: a file that the server sends is a body like any other."""
    client, seen = Client(), []
    await request(script(client, *SEQUENCES[kind], seen=seen), client)
    assert seen[:2] == [0, 2]


@pytest.mark.parametrize("hold", ["first-chunk", "until-return"])
@pytest.mark.parametrize("waits", ["before", "after"])
@pytest.mark.parametrize("fails", [False, True])
async def test_app_that_waits_for_the_end_of_its_response(hold, waits, fails):
    """G5: to the app a response is sent that is held: what it receives then is the end of it."""

    async def app(scope, receive, send):
        if fails:
            current_attempt().doom(lost())
        await receive()
        async with anyio.create_task_group() as tasks:

            async def hear():
                assert (await receive())["type"] == "http.disconnect"

            if waits == "before":
                tasks.start_soon(hear)
                await anyio.wait_all_tasks_blocked()
            status = 500 if fails and not current_attempt().is_replay else 200
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await send({"type": "http.response.body", "body": b"two"})
            if waits == "after":
                await hear()

    with anyio.fail_after(5):
        client = await request(app, policy=policy(hold=hold, max_replays=1))
    assert client.complete
    assert len(client.runs) == (2 if fails else 1)


async def test_app_that_waits_for_the_end_of_its_trailers():
    """G5: a response that has trailers ends with them."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"one"})
        await send({"type": "http.response.trailers", "headers": []})
        assert (await receive())["type"] == "http.disconnect"

    with anyio.fail_after(5):
        client = await request(app, policy=policy(hold="until-return"))
    assert client.kinds == ["start", "body", "trailers"]


async def test_asking_whether_the_client_has_left_leaves_nothing():
    """G2: an app that asks again and again, as ``is_disconnected()`` does, fills no memory."""
    held = []

    async def app(scope, receive, send):
        await receive()
        for _ in range(3):
            with anyio.CancelScope() as asking:
                asking.cancel()
                await receive()
        held.append(receive.__self__._waiting)
        await answer(send)

    await Client().call(RetryMiddleware(app))
    assert held == [set()]
