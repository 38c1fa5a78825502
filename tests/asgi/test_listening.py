"""What the server says while an exchange waits: it is asked for it, and nothing of it is lost."""

import anyio
import anyio.lowlevel
import pytest
from tenacity import wait_chain, wait_fixed

from retrymw import current_attempt

from .helpers import Client, Flaky, answer, echo, lost, middleware, policy, read

pytestmark = pytest.mark.anyio


class Careless:
    """A server's `receive` that loses what it has taken when it is cancelled, as some do."""

    def __init__(self, *messages):
        self.messages = [*messages]
        self.pending = 0
        self.most = 0
        self.cancelled = 0

    async def __call__(self):
        self.pending += 1
        self.most = max(self.most, self.pending)
        message = self.messages.pop(0) if self.messages else None
        try:
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            if message is None:
                await anyio.sleep_forever()
            return message
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.pending -= 1


async def request(app, client, server):
    """A request whose body the server gives."""
    await client.call(middleware(app), receive=server)


def piece(body, more_body=True):
    return {"type": "http.request", "body": body, "more_body": more_body}


@pytest.mark.parametrize("reads", [0, 1, 2])
@pytest.mark.parametrize("failures", [1, 3])
async def test_wait_loses_nothing_of_the_body(reads, failures):
    """G5: a server that is asked during a wait is not told to forget it when the wait is over."""
    server = Careless(piece(b"a"), piece(b"b"), piece(b"c"), piece(b"d", more_body=False))

    async def begin(scope, receive, send):
        for _ in range(reads):
            await receive()

    client = Client("PUT")
    app = Flaky(*[lost() for _ in range(failures)], first=begin, then=echo)
    await request(app, client, server)
    assert client.body == b"abcd"
    assert server.most == 1


async def test_question_ends_with_the_exchange():
    """G6: the server is not asked on for an exchange that is over."""
    server = Careless()
    await request(Flaky(lost()), Client("PUT"), server)
    assert (server.pending, server.cancelled) == (0, 1)


async def test_app_may_give_up_what_was_asked_in_the_wait():
    """G5: a `receive()` that the app cancels loses nothing either."""
    server = Careless(piece(b"a"), piece(b"b", more_body=False))

    async def app(scope, receive, send):
        if not current_attempt().is_replay:
            raise lost()
        body = b""
        with anyio.move_on_after(0):
            body += (await receive())["body"]
        await answer(send, body + await read(receive))

    client = Client("PUT")
    await request(app, client, server)
    assert client.body == b"ab"


async def test_error_of_the_server_is_raised():
    """G7: what the server raises when it is asked in a wait ends the exchange."""

    async def broken():
        raise OSError("the server is broken")

    with pytest.raises(OSError, match="the server is broken"):
        await request(Flaky(lost()), Client("PUT"), broken)


async def test_client_that_left_while_a_replay_ran_is_noticed():
    """G6: a server that says only once that the client has left says it to the next wait."""
    said, left = [{"type": "http.disconnect"}, piece(b"", more_body=False)], anyio.Event()

    async def receive():
        if len(said) == 1:
            await left.wait()
        if not said:
            await anyio.sleep_forever()
        return said.pop()

    async def leave(scope, receive, send):
        if current_attempt().is_replay:
            left.set()
            await anyio.wait_all_tasks_blocked()

    waits = wait_chain(wait_fixed(0.05), wait_fixed(3600))
    app, client = Flaky(*[lost()] * 4, first=leave), Client()
    with anyio.fail_after(10):
        await client.call(middleware(app, policy=policy(wait=waits, deadline=1e6)), receive=receive)
    assert app.calls == 2
    assert client.sent == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_base_exception_of_the_server_is_raised(error):
    """G6: what is no `Exception` passes from the server too, the same object, in no group."""
    error = error()

    async def broken():
        raise error

    with pytest.raises(type(error)) as caught:
        await request(Flaky(lost()), Client("PUT"), broken)
    assert caught.value is error
