"""Request-scoped aiomysql connections: one for the whole attempt, undone with it."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from typing import Any, ClassVar, Final

import aiomysql  # type: ignore[import-untyped]  # ships no types
import pymysql

from retrymw.adapters._aiomysql_connection import READING, WatchedConnection
from retrymw.adapters._async_mysql import AsyncMySQL

__all__ = ["AsyncDatabase", "Connection"]

_OWN: Final = frozenset({"loop"})  # is the running one
_PARAMETERS: Final = frozenset(inspect.signature(aiomysql.Connection).parameters) - _OWN


class Connection(WatchedConnection, aiomysql.Connection):  # type: ignore[misc]  # has no types
    """An aiomysql connection that tells its attempt of failures and commits.

    Statements of several tasks take turns; aiomysql by itself mixes up their answers.
    """

    errors: ClassVar[type[Exception]] = pymysql.err.MySQLError

    async def open(self) -> None:
        """Connect."""
        await self._connect()

    @property
    def link(self) -> asyncio.Transport | None:
        """Its transport."""
        return self._writer and self._writer.transport  # type: ignore[no-any-return]  # no types

    @property
    def is_open(self) -> bool:
        """Whether something can be sent, as far as is known without asking the server."""
        link = self.link
        return link is not None and not (link.is_closing() or self._reader.eof_received)

    @property
    def was_closed(self) -> bool:
        """Whether somebody called close()."""
        return bool(self.closed)

    def cursor(self, *cursors: Any) -> Any:
        """As in aiomysql; on a connection that was lost it raises what lost it."""
        if self.closed:
            with self.tracker.sending(READING, autocommit=False):
                return super().cursor(*cursors)
        return super().cursor(*cursors)

    async def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """As in aiomysql."""
        if unbuffered:  # its rows are read when they are asked for; those of others cost nothing
            self._read_packet = self._read_one
        else:
            self.__dict__.pop("_read_packet", None)
        return await super().query(sql, unbuffered)

    def _read_one(self, *args: Any) -> Any:
        return self._read(super()._read_packet(*args))


class AsyncDatabase(AsyncMySQL[Connection]):
    """A MariaDB or MySQL database whose aiomysql connections belong to attempts.

    Give it to the middleware (``databases=[database]``) and use :meth:`connection` everywhere. The
    connection is taken from a pool on first use in an attempt and is the same one for the whole
    attempt. A failed attempt's is rolled back and given back before any wait (G1, G8), a successful
    one's after the response. Commit is yours to call; what you did not commit is rolled back. A
    COMMIT that was sent and not answered makes the outcome unknown (G4), and so does any statement
    that commits by itself: DML under ``autocommit``, DDL.

    Each event loop has a pool of its own, made on first use. Call :meth:`close` at the end of the
    app's lifespan.

    Args:
        maxsize: how many connections the pool has at most.
        acquire_timeout: how many seconds an attempt waits for one of them to come back, before it
            fails with :class:`retrymw.TooManyConnections`.
        read_timeout: how many seconds the answer to a statement may take, all of its rows included.
            After that the connection is closed, and the statement fails as a lost one does.
        connect_timeout: how many seconds a connection may take to be opened, login included.
        pool_recycle: how many seconds a connection may be idle before it is replaced; a negative
            number for no limit.
        commit: ``"on-success"`` to have the middleware commit what an attempt leaves, before the
            first byte of a response below 400. None leaves it to you.
        **connect_args: as for ``aiomysql.connect``.

    Raises:
        TypeError: for a keyword that ``aiomysql.connect`` does not know, or ``loop``.
        ValueError: one of the numbers, or ``commit``, is none of those allowed.
    """

    _connection = Connection
    _driver = "aiomysql"
    _allowed = _PARAMETERS

    async def _connect(self) -> Connection:
        if self._connect_args.get("ssl") is True:  # asyncio makes one for each connection, in 16 ms
            self._connect_args["ssl"] = ssl.create_default_context()
        return await super()._connect()
