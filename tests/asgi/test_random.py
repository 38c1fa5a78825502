"""Random bodies, random reading, random failing: the bytes are always the client's (G1, G5)."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrymw import DisconnectionError, current_attempt

from .helpers import GONE, Client, lost, policy, request

pytestmark = pytest.mark.anyio

CHUNKS = st.lists(st.binary(max_size=12), max_size=6)
LAST = st.sampled_from([b"", b"end"])


@given(
    chunks=CHUNKS,
    arrivals=st.lists(st.integers(1, 4), min_size=6, max_size=6),
    reads=st.lists(st.integers(0, 8), max_size=4),
    body_memory=st.integers(0, 30),
    breaks_off=st.booleans(),
    expects=st.booleans(),
)
async def test_every_attempt_reads_the_clients_bytes(
    chunks, arrivals, reads, body_memory, breaks_off, expects
):
    """G5: each attempt sees exactly the client's bytes, from the first, however it reads them.

    A chunk arrives during the attempt that `arrivals` says. An attempt reads as often as `reads`
    says, gives up where nothing comes, and fails; the last one reads to the end.
    """
    whole = b"".join(chunks)
    gates = [(arrival, anyio.Event()) for arrival in arrivals]
    body = [item for gate, chunk in zip(gates, chunks, strict=False) for item in (gate[1], chunk)]
    if breaks_off:
        body.append(GONE)
    client = Client("PUT", body=body, headers=[("expect", "100-continue")] if expects else [])
    finals = []

    async def app(scope, receive, send):
        number = current_attempt().number
        last = number > len(reads)
        for arrival, gate in gates:
            if arrival <= number or last:
                gate.set()
        for _ in range(99 if last else reads[number - 1]):
            with anyio.move_on_after(None if last else 0) as given_up:
                message = await receive()
            if given_up.cancelled_caught or not message.get("more_body"):
                break
        if not last:
            raise lost()
        finals.append(message)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": client.runs[-1].read})

    await request(app, client, policy=policy(body_memory=body_memory, max_replays=4))
    for run in client.runs:
        assert whole.startswith(run.read)
        assert not run.read_to_the_end or (run.read == whole and not breaks_off)
    if client.sent or not breaks_off:  # a client that broke off may have been noticed before
        assert len(client.runs) == len(reads) + 1
        assert client.body == whole
        assert (finals[0]["type"] == "http.disconnect") == breaks_off


@st.composite
def responses(draw):
    """A response: its messages, and how many of them are sent before the failure."""
    status = draw(st.sampled_from([200, 404, 500, 503]))
    chunks = [*draw(st.lists(st.binary(max_size=12), max_size=4)), draw(LAST)]
    headers = draw(st.lists(st.sampled_from([(b"x", b"1"), (b"set-cookie", b"a=b")]), unique=True))
    messages = [{"type": "http.response.start", "status": status, "headers": headers}]
    messages += [
        {"type": "http.response.body", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, start=1)
    ]
    return messages, draw(st.integers(0, len(messages)))


def released(messages, hold, body_memory):
    """Whether the client gets to see the messages at once."""
    if not messages:
        return False
    start, *bodies = messages
    if hold == "until-return" or start["status"] >= 500:
        return sum(len(message["body"]) for message in bodies) > body_memory
    return any(message["body"] or not message["more_body"] for message in bodies)


@given(
    failing=st.lists(responses(), max_size=3),
    last=responses(),
    hold=st.sampled_from(["first-chunk", "until-return"]),
    body_memory=st.integers(0, 30),
)
async def test_client_sees_exactly_one_attempts_messages(failing, last, hold, body_memory):
    """G1: the client sees the messages of the last attempt, each of them, and no others."""
    client, error = Client(), None

    async def app(scope, receive, send):
        number = len(client.runs)
        messages, count = failing[number - 1] if number <= len(failing) else (last[0], None)
        for message in messages[:count]:
            await send(dict(message))
        if count is not None:
            raise lost()

    try:
        await request(
            app, client, policy=policy(hold=hold, body_memory=body_memory, expose="never")
        )
    except DisconnectionError as exc:
        error = exc
    sent = [messages[:count] for messages, count in failing]
    sealed = [released(messages, hold, body_memory) for messages in sent]
    if True in sealed:
        last_run = sealed.index(True)
        assert error is not None
        assert client.sent == sent[last_run]
        assert len(client.runs) == last_run + 1
    else:
        assert error is None
        assert client.sent == last[0]
        assert len(client.runs) == len(failing) + 1
