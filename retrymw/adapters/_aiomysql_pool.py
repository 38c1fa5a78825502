"""A pool of asyncio connections, for the two drivers that aiomysql's own pool is shared by.

Theirs can't be waited for with a bound: they connect one at a time, under the lock that giving back
needs as well, so that one connect that hangs keeps everybody from the connections that are idle;
and aiomysql's wakes nobody up when a connection that was lost makes room for another one.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

import anyio

from retrymw.adapters._aiomysql_connection import WatchedConnection
from retrymw.exceptions import TooManyConnections

__all__ = ["Pool", "close"]

C = TypeVar("C", bound=WatchedConnection)

_POLITE_SECONDS: Final = 2.0


class Pool(Generic[C]):
    """Lends connections, ``maxsize`` at most at a time, within one event loop.

    Args:
        connect: opens a connection, in bounded time.
        maxsize: how many there may be.
        timeout: how many seconds one waits for a connection to come back.
        recycle: how many seconds a connection may be idle; below 0, for ever.

    Attributes:
        in_use: how many are lent.
        generation: which connections are welcome back: see :meth:`renew`.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[C]],
        *,
        maxsize: int,
        timeout: float,
        recycle: float,
    ) -> None:
        self._connect = connect
        self._maxsize = maxsize
        self._timeout = timeout
        self._recycle = recycle
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(maxsize)
        self._idle: list[C] = []
        self._closed = False
        self.in_use = 0
        self.generation = 0

    async def acquire(self) -> C:
        """A connection: an idle one that is fit, or a new one.

        Raises:
            TooManyConnections: none came back in time.
        """
        if self._slots.locked():
            await self._wait()
        else:
            await self._slots.acquire()  # nothing is waited for
        self.in_use += 1
        try:
            connection = self._take() or await self._connect()
        except BaseException:
            self._leave()
            raise
        connection.home, connection.generation = self, self.generation
        return connection

    def give_back(self, connection: C, *, fit: bool) -> None:
        """Keep the connection for the next one if it is ``fit``, or close it."""
        self._leave()
        if fit and connection.generation == self.generation and not self._closed:
            self._idle.append(connection)
        else:
            connection.discard()

    def renew(self, generation: int) -> None:
        """Forget the connections of a generation: the server that dropped one dropped them all."""
        if generation == self.generation:
            self.generation += 1
            while self._idle:
                self._idle.pop().discard()

    async def close(self) -> None:
        """Close what is idle, and what is lent when it comes back."""
        self._closed = True
        idle, self._idle = self._idle, []
        await asyncio.gather(*map(close, idle))

    def abandon(self) -> None:
        """Let the connections of a loop that is closed go, as far as that is possible."""
        while self._idle:
            connection = self._idle.pop()
            link = connection.link
            end = link.get_extra_info("socket") if link is not None else None
            if end is not None:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for _ in range(2):  # the transport fails to tell its loop, once
                with suppress(RuntimeError):
                    connection.close()

    async def _wait(self) -> None:
        # asyncio.wait_for() may swallow a cancellation, before Python 3.12.
        with anyio.move_on_after(self._timeout) as bound:
            await self._slots.acquire()
        if bound.cancelled_caught:
            raise TooManyConnections(
                f"none of the pool's {self._maxsize} connections came back in {self._timeout} s"
            )

    def _take(self) -> C | None:
        while self._idle:
            connection = self._idle.pop()
            idle = self._loop.time() - connection.last_usage
            if connection.is_open and not 0 <= self._recycle < idle:
                return connection
            connection.discard()
        return None

    def _leave(self) -> None:
        self.in_use -= 1
        self._slots.release()


async def close(connection: WatchedConnection) -> None:
    """Tell the server, and close; within two seconds."""
    link = connection.link
    try:
        with anyio.move_on_after(_POLITE_SECONDS):
            await connection.ensure_closed()
    except (OSError, connection.errors):
        pass  # it has gone already
    finally:
        connection.discard()
        if link is not None:
            link.abort()  # aiomysql leaves a farewell of TLS behind
