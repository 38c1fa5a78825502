"""A request-scoped psycopg 3 connection, sync or async, on loan from a pool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg import waiting
from psycopg.rows import Row
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from retrymw._context import Attempt
from retrymw.adapters._async_loans import AsyncLender
from retrymw.adapters._loans import Commit, Lender
from retrymw.adapters._psycopg_watch import INTERVAL, Watched, within
from retrymw.adapters._undo import UNDO_SECONDS, Wire

__all__ = ["AsyncConnection", "AsyncDatabase", "Connection", "Database"]

T = TypeVar("T")


class Connection(Watched[Row], psycopg.Connection[Row]):
    """A psycopg connection that tells its attempt of failures and commits.

    For ``ConnectionPool(…, connection_class=Connection)``.
    """

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """As in psycopg; all that is sent passes through here."""
        sent = self._sent_by(gen)
        if sent is None:
            return super().wait(gen, *args, **kwargs)
        with self.tracker.sending(sent.statement, autocommit=sent.autocommit, many=sent.many):
            return super().wait(self._synced(gen, sent), *args, **kwargs)

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        """As in psycopg; a failure that was swallowed in the block is raised at its end."""
        self._check_failed(begins=True)
        with super().transaction(savepoint_name, force_rollback) as transaction:
            yield transaction
            self._check_failed()

    def undo(self) -> None:
        """In no transaction and as it was, within four seconds; or else closed."""
        if not self.lock.acquire(blocking=False):
            Wire(self).cut()
            self.was_cut = True
            if not (self.tracker.busy and self.lock.acquire(timeout=UNDO_SECONDS)):
                self.close()
                return
        try:
            if self.was_cut or self._is_ongoing():
                self.close()
            elif not self.closed:
                self.hurry(self._rollback_soon())
                self._restore()
        finally:
            self.lock.release()

    def hurry(self, gen: Generator[Any, Any, T]) -> T:
        """The result of a generator; if there is none, the connection is closed."""
        try:
            return waiting.wait(gen, self.pgconn.socket, interval=INTERVAL)
        except BaseException:
            self.pgconn.finish()
            raise


class AsyncConnection(Watched[Row], psycopg.AsyncConnection[Row]):
    """:class:`Connection` for ``AsyncConnectionPool(…, connection_class=AsyncConnection)``."""

    async def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """As in psycopg; all that is sent passes through here."""
        sent = self._sent_by(gen)
        if sent is None:
            return await super().wait(gen, *args, **kwargs)
        with self.tracker.sending(sent.statement, autocommit=sent.autocommit, many=sent.many):
            return await super().wait(self._synced(gen, sent), *args, **kwargs)

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """As in psycopg; a failure that was swallowed in the block is raised at its end."""
        self._check_failed(begins=True)
        async with super().transaction(savepoint_name, force_rollback) as transaction:
            yield transaction
            self._check_failed()

    async def undo(self) -> None:
        """In no transaction and as it was, within four seconds; or else closed."""
        if self.lock.locked():
            Wire(self).cut()
            self.was_cut = True
            if self.tracker.busy:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.lock.acquire(), UNDO_SECONDS)
                    self.lock.release()
        if self.was_cut or self._is_ongoing():
            await self.close()
        elif not self.closed:
            async with self.lock:
                await self.hurry(self._rollback_soon())
            self._restore()

    async def hurry(self, gen: Generator[Any, Any, T]) -> T:
        """The result of a generator; if there is none, the connection is closed."""
        try:
            return await waiting.wait_async(gen, self.pgconn.socket, interval=INTERVAL)
        except BaseException:
            self.pgconn.finish()
            raise


class Database(Lender["Connection[Any]"]):
    """A PostgreSQL database whose connections belong to attempts.

    Give it to the middleware (``databases=[database]``) and use :meth:`connection` everywhere. The
    connection is taken from the pool on first use in an attempt and is the same one for the whole
    attempt. A failed attempt's is rolled back and given back before any wait (G1, G8), a successful
    one's after the response. Commit is yours to call; what you did not commit is rolled back. A
    COMMIT that was sent and not answered makes the outcome unknown (G4), and so does a write under
    autocommit.

    Args:
        pool: a ``psycopg_pool.ConnectionPool`` or ``NullConnectionPool`` with
            ``connection_class=retrymw.adapters.psycopg.Connection``. To open and to close it is
            your business.
        commit: ``"on-success"`` to have the middleware commit what an attempt leaves, before the
            first byte of a response below 400. None leaves it to you.

    Raises:
        TypeError: ``pool`` is no such pool, or its connections are not ours.
        ValueError: ``commit`` is neither None nor ``"on-success"``, or the pool has
            ``close_returns=True``: the middleware gives connections back.
    """

    def __init__(self, pool: ConnectionPool[Any], *, commit: Commit = None) -> None:
        super().__init__(commit=commit)
        _check(pool, ConnectionPool, Connection)
        self._pool = pool
        self._drained = _Drained()

    def __repr__(self) -> str:
        return f"<Database {self._pool.name!r}>"

    def connection(self) -> AbstractContextManager[Connection[Any]]:
        """The attempt's connection; outside a request, one of its own, given back at the end.

        Raises:
            Exception: what the driver or its pool raises when they can't connect.
            RuntimeError: the attempt is over, or its middleware was not given this database.
        """
        return self._lent()

    def ping(self) -> None:
        """Do a ``SELECT 1`` on a connection of the pool; each may take two seconds.

        Raises what psycopg and its pool raise.
        """
        connection = self._open(None, UNDO_SECONDS)
        try:
            connection.hurry(within(UNDO_SECONDS, connection._exec_command(b"SELECT 1")))
        finally:
            self._give_back(connection)

    def _open(self, attempt: Attempt | None, seconds: float | None = None) -> Connection[Any]:
        connection: Connection[Any] = self._pool.getconn(seconds)
        connection.lend(attempt, self)
        return connection

    def _check(self, connection: Connection[Any], attempt: Attempt | None) -> None:
        _check_not_closed(connection, attempt)

    def _commit(self, connection: Connection[Any]) -> None:
        connection.check_not_aborted()
        connection.commit()

    def _roll_back(self, connection: Connection[Any]) -> None:
        connection.tracker.lend(None)
        connection.undo()

    def _give_back(self, connection: Connection[Any]) -> None:
        connection.tracker.lend(None)
        try:
            connection.undo()
        finally:
            self._pool.putconn(connection)
            if self._drained.is_due(connection):
                self._pool.drain()


class AsyncDatabase(AsyncLender["AsyncConnection[Any]"]):
    """:class:`Database` for an ``AsyncConnectionPool``: ``async with database.connection()``.

    Args:
        pool: a ``psycopg_pool.AsyncConnectionPool`` or ``AsyncNullConnectionPool`` with
            ``connection_class=retrymw.adapters.psycopg.AsyncConnection``.
        commit: as for :class:`Database`.

    Raises:
        TypeError: as for :class:`Database`.
        ValueError: as for :class:`Database`.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], *, commit: Commit = None) -> None:
        super().__init__(commit=commit)
        _check(pool, AsyncConnectionPool, AsyncConnection)
        self._pool = pool
        self._drained = _Drained()

    def __repr__(self) -> str:
        return f"<AsyncDatabase {self._pool.name!r}>"

    def connection(self) -> AbstractAsyncContextManager[AsyncConnection[Any]]:
        """The attempt's connection; outside a request, one of its own, given back at the end.

        Raises:
            Exception: what the driver or its pool raises when they can't connect.
            RuntimeError: the attempt is over, or its middleware was not given this database.
        """
        return self._lent()

    async def ping(self) -> None:
        """Do a ``SELECT 1`` on a connection of the pool; each may take two seconds.

        Raises what psycopg and its pool raise.
        """
        connection = await self._open(None, UNDO_SECONDS)
        try:
            await connection.hurry(within(UNDO_SECONDS, connection._exec_command(b"SELECT 1")))
        finally:
            await self._give_back(connection)

    async def _open(
        self, attempt: Attempt | None, seconds: float | None = None
    ) -> AsyncConnection[Any]:
        connection: AsyncConnection[Any] = await self._pool.getconn(seconds)
        connection.lend(attempt, self)
        return connection

    def _check(self, connection: AsyncConnection[Any], attempt: Attempt | None) -> None:
        _check_not_closed(connection, attempt)

    async def _commit(self, connection: AsyncConnection[Any]) -> None:
        connection.check_not_aborted()
        await connection.commit()

    async def _roll_back(self, connection: AsyncConnection[Any]) -> None:
        connection.tracker.lend(None)
        await connection.undo()

    async def _give_back(self, connection: AsyncConnection[Any]) -> None:
        connection.tracker.lend(None)
        try:
            await connection.undo()
        finally:
            await self._pool.putconn(connection)
            if self._drained.is_due(connection):
                await self._pool.drain()


class _Drained:
    """When a pool was drained: the server that dropped one connection dropped them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at = 0.0

    def is_due(self, lost: Watched[Any]) -> bool:
        """Whether to do it now. Others that were opened before the last time are a part of it."""
        with self._lock:
            if not lost.was_dropped or lost.opened <= self._at:
                return False
            self._at = monotonic()
            return True


def _check(pool: Any, pool_class: Any, connection_class: type) -> None:
    if not isinstance(pool, pool_class):
        raise TypeError(f"pool is {pool!r}; allowed: a psycopg_pool.{pool_class.__name__}")
    if not issubclass(pool.connection_class, connection_class):
        raise TypeError(
            f"pool has connection_class={pool.connection_class!r}; allowed: "
            f"{pool_class.__name__}(…, connection_class="
            f"{connection_class.__module__}.{connection_class.__name__})"
        )
    if getattr(pool, "close_returns", False):
        raise ValueError("pool has close_returns=True; allowed: False, or leave it out")


def _check_not_closed(connection: Watched[Any], attempt: Attempt | None) -> None:
    if connection.was_closed_by_app:
        raise RuntimeError(
            f"the connection of {attempt!r} was closed by the app: leave that to the middleware"
        )
