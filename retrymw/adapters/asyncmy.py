"""Request-scoped asyncmy connections: one for the whole attempt, undone with it."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from typing import Any, ClassVar, Final

import asyncmy.connection
import asyncmy.errors

from retrymw.adapters._aiomysql_connection import READING, WatchedConnection
from retrymw.adapters._async_mysql import AsyncMySQL

__all__ = ["AsyncDatabase", "Connection"]

# A socket is good for one connection; the timeout is the adapter's.
_OWN: Final = frozenset({"sock", "read_timeout"})
_PARAMETERS: Final = frozenset(inspect.signature(asyncmy.connection.Connection).parameters) - _OWN


_Statement: Any = asyncmy.connection.PreparedStatement  # its stubs have no types


class Connection(WatchedConnection, asyncmy.connection.Connection):  # type: ignore[misc]  # both do
    """An asyncmy connection that tells its attempt of failures and commits.

    Statements of several tasks take turns; asyncmy by itself mixes up their answers.
    """

    errors: ClassVar[type[Exception]] = asyncmy.errors.MySQLError

    async def open(self) -> None:
        """Connect."""
        await self.connect()
        # Of a bulk that fails nobody can tell what was carried out. Cursors do without it then.
        self._bulk_supported = False

    @property
    def link(self) -> asyncio.Transport | None:
        """Its transport."""
        return self._transport

    @property
    def is_open(self) -> bool:
        """Whether something can be sent, as far as is known without asking the server."""
        return not self._stream_broken

    @property
    def was_closed(self) -> bool:
        """Whether somebody called close()."""
        return not self.connected

    async def prepare(self, query: Any) -> Statement:
        """As in asyncmy."""
        text = query.encode(self._encoding) if isinstance(query, str) else bytes(query)
        plain = await self._send(READING, super().prepare(text))  # type: ignore[no-untyped-call]  # stubs
        return Statement(self, plain._statement_id, plain.parameter_count, text)

    def read_packet(self, *args: Any) -> Any:
        """As in asyncmy; rows of an unbuffered cursor are read when they are asked for."""
        return self._read(super().read_packet(*args))  # type: ignore[no-untyped-call]  # stubs


class Statement(_Statement):  # type: ignore[misc]  # of which nothing is known
    """A prepared statement of a :class:`Connection`; also what ``stmt_cache_size`` caches."""

    def __init__(self, connection: Connection, number: int, parameters: int, text: bytes) -> None:
        super().__init__(connection, number, parameters)
        self._text = text

    async def execute(self, args: Any = ()) -> Any:
        """As in asyncmy."""
        return await self._connection._send(self._text, super().execute(args))

    async def close(self) -> None:
        """As in asyncmy."""
        if self._connection is not None:
            await self._connection._send(READING, super().close())


class AsyncDatabase(AsyncMySQL[Connection]):
    """A MariaDB or MySQL database whose asyncmy connections belong to attempts.

    :class:`retrymw.adapters.aiomysql.AsyncDatabase` says what it does; it is the same here.

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
        **connect_args: as for ``asyncmy.connect``.

    Raises:
        TypeError: for a keyword that ``asyncmy.connect`` does not know, or ``sock``.
        ValueError: one of the numbers, or ``commit``, is none of those allowed.
    """

    _connection = Connection
    _driver = "asyncmy"
    _allowed = _PARAMETERS

    async def _connect(self) -> Connection:
        options = self._connect_args.get("ssl")
        if options and not isinstance(options, ssl.SSLContext):  # else each makes one, in 16 ms
            self._connect_args["ssl"] = Connection(**self._connect_args)._ssl_context
        return await super()._connect()
