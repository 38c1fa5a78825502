"""Random bodies, random reading, random failing: the bytes are always the client's (G1, G5)."""

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retrymw import DisconnectionError, current_attempt

from .helpers import GONE, Client, lost, policy, request

pytestmark = pytest.mark.anyio

HOLDS = st.sampled_from(["first-chunk", "until-return"])

CHUNKS = st.lists(st.binary(max_size=12), max_size=6)
PLANS = st.tuples(
    # How often each task of the attempt receives, and whether it goes on after the end of the body.
    st.lists(st.integers(0, 8), min_size=1, max_size=3),
    st.booleans(),
    # Where it fails then.
    st.sampled_from(
        ["at once", "in a task", "after the start", "after an empty chunk", "in a held 500"]
    ),
)


def start(status=200, **more):
    return {"type": "http.response.start", "status": status, "headers": [], **more}


def body(content=b"", more_body=False):
    return {"type": "http.response.body", "body": content, "more_body": more_body}


async def fail(where, send, body_memory):
    """Fail as the plan has it; what is held of the answer must not reach the client."""
    if where == "in a task":
        async with anyio.create_task_group():
            raise lost()
    if where == "in a held 500":
        await send(start(500))
        await send(body(b"oops"[:body_memory]))
    elif where != "at once":
        await send(start())
    if where == "after an empty chunk":
        await send(body(more_body=True))
    raise lost()


async def read(receive, times, past_end):
    """Receive so often, or to the end of the body."""
    for _ in range(times):
        message = await receive()
        if message["type"] == "http.disconnect" or not (message["more_body"] or past_end):
            break


@given(
    chunks=CHUNKS,
    arrivals=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    plans=st.lists(PLANS, max_size=4),
    body_memory=st.integers(0, 30),
    hold=HOLDS,
    breaks_off=st.booleans(),
    expects=st.booleans(),
)
@example(
    [b"a", b"b", b"c"],
    [1] * 6,
    [([3], True, "at once"), ([3, 3, 3], True, "at once")],
    0,
    "first-chunk",
    False,
    True,
)
async def test_every_attempt_reads_the_clients_bytes(
    chunks, arrivals, plans, body_memory, hold, breaks_off, expects
):
    """G5: each attempt sees exactly the client's bytes, from the first, however it reads them.

    A chunk arrives during the attempt that `arrivals` says. The tasks of an attempt read as often
    as its plan says, give up where nothing comes, and fail; the last attempt reads to the end.
    """
    whole = b"".join(chunks)
    gates = [(arrival, anyio.Event()) for arrival in arrivals]
    items = [item for gate, chunk in zip(gates, chunks, strict=False) for item in (gate[1], chunk)]
    if breaks_off:
        items.append(GONE)
    reading = []
    client = Client(
        "PUT",
        body=items,
        headers=[("expect", "100-continue")] if expects else [],
        on_block=lambda: [scope.cancel() for scope in reading],
    )
    finals = []

    async def app(scope, receive, send):
        number = current_attempt().number
        last = number > len(plans)
        for arrival, gate in gates:
            if arrival <= number or last:
                gate.set()
        if last:
            while True:
                message = await receive()
                if not message.get("more_body"):
                    break
            finals.append(message)
            await send(start())
            await send(body(client.runs[-1].read))
            return
        tasks, past_end, where = plans[number - 1]
        with anyio.CancelScope() as until_blocked:
            reading.append(until_blocked)
            async with anyio.create_task_group() as group:
                for times in tasks:
                    group.start_soon(read, receive, times, past_end)
                if client.blocked:  # asked in the wait before, and not yet answered
                    await anyio.wait_all_tasks_blocked()
                    until_blocked.cancel()
        reading.clear()
        await fail(where, send, body_memory)

    await request(app, client, policy=policy(body_memory=body_memory, hold=hold, max_replays=4))
    for run in client.runs:
        assert whole.startswith(run.read)
        assert not run.read_to_the_end or (run.read == whole and not breaks_off)
    if not client.sent:
        assert breaks_off  # which was noticed before
    elif client.status == 503:
        # Two tasks asked for the body at once, while it went to the disk.
        assert client.header("retry-outcome") == "sealed"
        assert len(plans[len(client.runs) - 1][0]) > 1
        assert len(whole) > body_memory
    else:
        assert len(client.runs) == len(plans) + 1
        assert client.body == whole
        assert (finals[0]["type"] == "http.disconnect") == breaks_off


HEADERS = [(b"x", b"1"), (b"set-cookie", b"a=b"), (b"content-type", b"text/event-stream")]


@st.composite
def responses(draw):
    """A response: its messages, how many of them are sent, and what comes then.

    That is a failure, or, where the whole of a 5xx was sent, perhaps one that was squashed.
    """
    status = draw(st.sampled_from([200, 404, 500, 503]))
    trailers = draw(st.lists(st.sampled_from(HEADERS[:1]), max_size=2))
    chunks = [*draw(st.lists(st.binary(max_size=12), max_size=4)), draw(st.binary(max_size=3))]
    headers = draw(st.lists(st.sampled_from(HEADERS), unique=True))
    hint = {"type": "http.response.early_hint", "links": [b"</a>"]}
    messages = [hint] * draw(st.integers(0, 2))
    messages.append({**start(status), "headers": headers, "trailers": bool(trailers)})
    for number, chunk in enumerate(chunks, start=1):
        messages += [hint] * draw(st.integers(0, 1))
        messages.append(body(chunk, number < len(chunks)))
    for number, header in enumerate(trailers, start=1):
        more = number < len(trailers)
        messages.append(
            {"type": "http.response.trailers", "headers": [header], "more_trailers": more}
        )
    count = draw(st.integers(0, len(messages)))
    return messages, count, status >= 500 and count == len(messages) and draw(st.booleans())


def released(messages, hold, body_memory):
    """Whether the client gets to see the messages at once."""
    starts = [message for message in messages if message["type"] == "http.response.start"]
    bodies = [message for message in messages if message["type"] == "http.response.body"]
    if not starts:
        return False
    if hold == "until-return" or starts[0]["status"] >= 500:
        return sum(len(message["body"]) for message in bodies) > body_memory
    if HEADERS[-1] in starts[0]["headers"]:
        return True
    return any(message["body"] or not message["more_body"] for message in bodies)


@given(
    failing=st.lists(responses(), max_size=3),
    last=responses(),
    hold=HOLDS,
    body_memory=st.integers(0, 30),
)
async def test_client_sees_exactly_one_attempts_messages(failing, last, hold, body_memory):
    """G1: the client sees the messages of the last attempt, each of them, and no others."""
    client, error = Client(), None

    async def app(scope, receive, send):
        number = len(client.runs)
        is_last = number > len(failing)
        messages, count, squashes = last if is_last else failing[number - 1]
        for message in messages if is_last else messages[:count]:
            await send(dict(message))
        if is_last:
            return
        if not squashes:
            raise lost()
        current_attempt().doom(lost())

    try:
        await request(
            app, client, policy=policy(hold=hold, body_memory=body_memory, expose="never")
        )
    except DisconnectionError as exc:
        error = exc
    sent = [messages[:count] for messages, count, _ in failing]
    sealed = [released(messages, hold, body_memory) for messages in sent]
    if True in sealed:
        last_run = sealed.index(True)
        assert (error is None) == failing[last_run][2]
        assert client.sent == sent[last_run]
        assert len(client.runs) == last_run + 1
    else:
        assert error is None
        assert client.sent == last[0]
        assert len(client.runs) == len(failing) + 1
