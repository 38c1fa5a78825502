"""The ASGI app that the servers serve. See `behaviour.Wish` for what a path means."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread

from retrymw.asgi import RetryMiddleware
from retrymw.testing.validate import validator

from .behaviour import (
    LARGE,
    PIECE,
    SIZE,
    TEN_LINES,
    TEXT,
    Wish,
    lost,
    mounts,
    pieces,
    short_answers,
)
from .control import peak_memory, tell, wait_for_gate


async def endpoint(scope: Any, receive: Any, send: Any) -> None:
    """Do what the path says."""
    wish = Wish.of(scope["path"], scope["query_string"].decode())
    if wish.fails:
        read = 0
        async for data in body_of(receive, stop=wish.read):
            read += len(data)
        raise lost()
    headers = {name.lower(): value.decode() for name, value in scope["headers"]}
    answer = short_answers(wish, headers.get(b"range"))
    if answer is not None:
        await start(send, *answer[:2])
        await send({"type": "http.response.body", "body": answer[2]})
        return
    await globals()[wish.name](wish, scope, receive, send)


async def start(send: Any, status: int, headers: list[tuple[str, str]], **more: Any) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": raw, **more})


async def body_of(receive: Any, stop: float = float("inf")) -> AsyncIterator[bytes]:
    """The request's body, up to where `stop` bytes are reached."""
    read, more = 0, True
    while more and read < stop:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left in its body")
        more = message.get("more_body", False)
        read += len(message.get("body", b""))
        yield message.get("body", b"")


async def echo(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """The request's body."""
    body = b"".join([part async for part in body_of(receive)])
    await start(send, 200, [*TEXT, ("Content-Length", str(len(body)))])
    await send({"type": "http.response.body", "body": body})


async def sleep(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """Wait, without our help."""
    tell(wish.key, "wait")
    await anyio.sleep(float(wish.options["seconds"]))
    await start(send, 200, [("Content-Length", "4")])
    await send({"type": "http.response.body", "body": b"done"})


async def listen(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """Wait for the client to leave, without our help."""
    tell(wish.key, "wait")
    message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
    tell(wish.key, "outcome", "abandoned")


async def stream(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """One chunk, and when the test says so another."""
    await start(send, 200, TEXT)
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await anyio.to_thread.run_sync(wait_for_gate, wish.key)
    await send({"type": "http.response.body", "body": b"second"})


async def endless(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """Many chunks; then it waits for the client to leave."""
    await start(send, 200, TEXT)

    async def leave() -> None:
        async for _ in body_of(receive):
            pass
        assert (await receive())["type"] == "http.disconnect"
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(leave)
        try:
            for _ in range(SIZE // PIECE):  # not more: some servers keep what they can't send
                await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": True})
        except OSError:  # as servers of the specification 2.4 may say it
            group.cancel_scope.cancel()
    tell(wish.key, "left")


async def download(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """A large body, made as it is sent."""
    grown = peak_memory()
    await start(send, 200, [("Content-Length", str(SIZE))])
    for piece in pieces():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    tell(wish.key, "grown", grown())


async def file(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """The same, out of a file that the server is told the path of, where it takes that."""
    if "http.response.pathsend" not in scope.get("extensions", {}):
        await start(send, 200, TEXT)
        await send({"type": "http.response.body", "body": b"not offered"})
        return
    await start(send, 200, [("Content-Length", str(SIZE))])
    await send({"type": "http.response.pathsend", "path": str(LARGE.resolve())})


async def trailers(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """Lines, and their number in a trailer, where the server has them."""
    offered = "http.response.trailers" in scope.get("extensions", {})
    headers = TEXT
    if not offered:
        await start(send, 200, headers)
        await send({"type": "http.response.body", "body": b"not offered"})
        return
    await start(send, 200, [*headers, ("Trailer", "lines")], trailers=True)
    await send({"type": "http.response.body", "body": TEN_LINES})
    await send({"type": "http.response.trailers", "headers": [(b"lines", b"10")]})


async def breaks(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """Break off, by an error that is not ours."""
    await start(send, 200, [("Content-Length", "100")])
    await send({"type": "http.response.body", "body": b"not all", "more_body": True})
    raise ValueError("not a failure of ours")


async def raises(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """Raise an error that is not ours at once."""
    raise ValueError("not a failure of ours")


async def mute(wish: Wish, scope: Any, receive: Any, send: Any) -> None:
    """Return without an answer."""


MOUNTS = mounts(endpoint, RetryMiddleware, validator)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """One app under each policy, and one without the middleware."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await MOUNTS[scope["path"].split("/")[1]](scope, receive, send)
