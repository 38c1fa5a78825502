"""What the adapters of aiomysql and asyncmy share; the drivers have nearly the same API."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, ClassVar, Final, TypeVar

import anyio

from retrymw._context import Attempt
from retrymw.adapters._aiomysql_connection import WatchedConnection
from retrymw.adapters._aiomysql_pool import Pool, close
from retrymw.adapters._async_loans import AsyncLender
from retrymw.adapters._loans import Commit

__all__ = ["AsyncMySQL"]

C = TypeVar("C", bound=WatchedConnection)

_CANT_CONNECT: Final = 2003


class AsyncMySQL(AsyncLender[C]):
    """The ``AsyncDatabase`` of both drivers; their classes say the rest."""

    _connection: type[C]
    _driver: ClassVar[str]
    _allowed: ClassVar[frozenset[str]]

    def __init__(
        self,
        *,
        maxsize: int = 10,
        acquire_timeout: float = 2.0,
        read_timeout: float = 30.0,
        connect_timeout: float = 10.0,
        pool_recycle: float = 3600.0,
        commit: Commit = None,
        **connect_args: Any,
    ) -> None:
        super().__init__(commit=commit)
        for name in connect_args.keys() - self._allowed:
            raise TypeError(
                f"AsyncDatabase was given {name}={connect_args[name]!r}; allowed: what "
                f"{self._driver}.connect takes for connections of a pool"
            )
        _check("maxsize", maxsize, whole=True)
        _check("acquire_timeout", acquire_timeout)
        _check("read_timeout", read_timeout)
        _check("connect_timeout", connect_timeout)
        _check("pool_recycle", pool_recycle, negative=True)
        self._connect_timeout = connect_timeout
        self._connect_args = {
            "bound": read_timeout,
            "connect_timeout": connect_timeout,
            **connect_args,
        }
        self._pool_args: dict[str, Any] = {
            "maxsize": maxsize,
            "timeout": acquire_timeout,
            "recycle": pool_recycle,
        }
        self._pools: dict[asyncio.AbstractEventLoop, Pool[C]] = {}

    def __repr__(self) -> str:
        arguments = self._connect_args
        place = arguments.get("unix_socket") or (
            f"{arguments.get('host') or 'localhost'}:{arguments.get('port') or 3306}"
        )
        return f"<AsyncDatabase {place}/{arguments.get('database') or arguments.get('db') or ''}>"

    def connection(self) -> AbstractAsyncContextManager[C]:
        """The attempt's connection; outside a request, one of its own, given back at the end.

        Raises:
            Exception: what the driver or its pool raises when they can't connect.
            RuntimeError: the attempt is over, or its middleware was not given this database.
        """
        return self._lent()

    async def ping(self) -> None:
        """Connect and disconnect, besides the pool; raises what the driver raises."""
        await close(await self._connect())

    async def close(self) -> None:
        """Close the pool of this event loop, within two seconds: for the end of a lifespan.

        Connections that are in use are closed when they are given back. A later use makes a new
        pool.
        """
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.close()

    async def _open(self, attempt: Attempt | None) -> C:
        connection = await self._pool().acquire()
        connection.lend(attempt, self)
        return connection

    def _check(self, connection: C, attempt: Attempt | None) -> None:
        if connection.was_closed and not connection.tracker.lost:
            raise RuntimeError(
                f"the connection of {attempt!r} was closed by the app: leave that to the "
                "middleware, and don't use it as a context manager of its own"
            )

    async def _commit(self, connection: C) -> None:
        if not connection.ended:
            await connection.commit()

    async def _roll_back(self, connection: C) -> None:
        if connection.is_busy:  # with a task that was left behind
            connection.discard()
        elif connection.is_as_it_was:
            await connection.undo()

    async def _give_back(self, connection: C) -> None:
        fit = False
        try:
            if connection.is_as_it_was:
                with suppress(connection.errors):  # it is not fit then
                    await connection.undo()
                    fit = connection.is_as_it_was
        finally:
            pool: Pool[C] = connection.home
            if connection.was_dropped:
                pool.renew(connection.generation)
            pool.give_back(connection, fit=fit)

    def _pool(self) -> Pool[C]:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for other in list(self._pools):
                if other.is_closed():
                    self._pools.pop(other).abandon()
            pool = self._pools[loop] = Pool(self._connect, **self._pool_args)
        return pool

    async def _connect(self) -> C:
        connection = self._connection(**self._connect_args)
        try:
            with anyio.fail_after(self._connect_timeout):
                await connection.open()
        except TimeoutError as exc:
            connection.discard()
            text = f"Can't connect to MySQL server on {self!r} in {self._connect_timeout} s"
            raise connection.OperationalError(_CANT_CONNECT, text) from exc
        except BaseException:
            connection.discard()
            raise
        connection.autocommit_at_first = connection.get_autocommit()
        return connection


def _check(name: str, value: object, *, whole: bool = False, negative: bool = False) -> None:
    types = int if whole else (int, float)
    low = float("-inf") if negative else 0
    if isinstance(value, bool) or not isinstance(value, types) or not low < value < float("inf"):
        allowed = "a whole number from 1 up" if whole else "a finite number of seconds"
        allowed += "" if whole or negative else " above 0"
        raise ValueError(f"AsyncDatabase was given {name}={value!r}; allowed: {allowed}")
