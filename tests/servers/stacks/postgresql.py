"""The drivers of PostgreSQL, and the pools that come with them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import asyncpg
import pg8000.dbapi
import pg8000.exceptions
import pg8000.native
import psycopg
import psycopg2
import psycopg2.pool
import psycopg_pool

from tests.servers.stacks.base import (
    AsyncPool,
    AsyncSession,
    AsyncStack,
    DBAPISession,
    Pool,
    Session,
    Stack,
    Where,
)

CLOSED_OR_LOST = (
    ("disconnection", "execute"),
    "A connection that was lost, and one that was then closed, say the same when used again.",
)
OF_PSYCOPG = {
    "closed by the app": CLOSED_OR_LOST,
    "pool with a wrong password": (
        ("disconnection", "connect"),
        "The pool's workers log why they can't connect, and keep nothing of it.",
    ),
}
NO_FRAME = "It is C: commit() and rollback() leave no frame in the traceback, and no cursor."
IN_C = (("disconnection", "unknown"), NO_FRAME)
NO_CURSOR = (
    ("disconnection", "unknown"),
    "The BEGIN that it sends by itself fails without a cursor, as commit() does.",
)
OF_PSYCOPG2 = {
    "closed by the app": CLOSED_OR_LOST,
    "cut before COMMIT": IN_C,
    "cut after COMMIT": IN_C,
    "killed, then rolled back": IN_C,
    "rolled back after a lost COMMIT": IN_C,
    "serialization in the COMMIT": (("conflict", "unknown"), NO_FRAME),
    "idle timeout": NO_CURSOR,
}
OF_ASYNCPG = {
    "closed by the app": CLOSED_OR_LOST,
    "blackhole in a query": (
        None,
        "Its command_timeout says no more than that the statement took too long.",
    ),
}
NEVER_IN_ASYNCPG = {
    "rolled back after a lost COMMIT": "It knows of the loss by then, and sends no COMMIT.",
}
NEVER_IN_LIBPQ = {
    "blackhole in a query": "It has no read timeout.",
    "shared by two tasks": "A second task waits until the first is done with the connection.",
}


def libpq_arguments(where: Where) -> dict[str, Any]:
    """For both psycopgs."""
    return {
        "host": where.socket or where.host,
        "port": where.port,
        "user": where.user,
        "password": where.password,
        "dbname": where.database,
        "connect_timeout": where.connect_timeout,
        "sslmode": "disable",
        "gssencmode": "disable",
    }


class Psycopg(Stack):
    name = "psycopg"
    server = "postgresql"
    undecidable = OF_PSYCOPG
    impossible = NEVER_IN_LIBPQ

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        return DBAPISession(psycopg.connect(**libpq_arguments(where), autocommit=autocommit))

    def pool(self, where: Where) -> Pool:
        return _PsycopgPool(where)


class _PsycopgPool(Pool):
    def __init__(self, where: Where) -> None:
        self._pool = psycopg_pool.ConnectionPool(
            kwargs=libpq_arguments(where), min_size=0, max_size=1, timeout=1, open=True
        )

    def acquire(self) -> Any:
        return self._pool.getconn()

    def close(self) -> None:
        self._pool.close()


class AsyncPsycopg(AsyncStack):
    name = "psycopg (async)"
    server = "postgresql"
    undecidable = OF_PSYCOPG
    impossible = NEVER_IN_LIBPQ

    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession:
        arguments = libpq_arguments(where)
        connection = await psycopg.AsyncConnection.connect(**arguments, autocommit=autocommit)
        return _AsyncPsycopgSession(connection)

    async def open_pool(self, where: Where) -> AsyncPool:
        pool = psycopg_pool.AsyncConnectionPool(
            kwargs=libpq_arguments(where), min_size=0, max_size=1, timeout=1, open=False
        )
        await pool.open()
        return _AsyncPsycopgPool(pool)


class _AsyncPsycopgSession(AsyncSession):
    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    async def execute(self, sql: str) -> list[Any]:
        cursor = self._connection.cursor()
        await cursor.execute(sql)
        return await cursor.fetchall() if cursor.description else []

    async def commit(self) -> None:
        await self._connection.commit()

    async def rollback(self) -> None:
        await self._connection.rollback()

    async def close(self) -> None:
        await self._connection.close()


class _AsyncPsycopgPool(AsyncPool):
    def __init__(self, pool: psycopg_pool.AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    async def acquire(self) -> Any:
        return await self._pool.getconn()

    async def close(self) -> None:
        await self._pool.close()


class Psycopg2(Stack):
    name = "psycopg2"
    server = "postgresql"
    undecidable = OF_PSYCOPG2
    impossible = NEVER_IN_LIBPQ

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        connection = psycopg2.connect(**libpq_arguments(where))
        connection.autocommit = autocommit
        return DBAPISession(connection)

    def pool(self, where: Where) -> Pool:
        return _Psycopg2Pool(where)


class _Psycopg2Pool(Pool):
    def __init__(self, where: Where) -> None:
        self._pool = psycopg2.pool.ThreadedConnectionPool(0, 1, **libpq_arguments(where))

    def acquire(self) -> Any:
        return self._pool.getconn()

    def close(self) -> None:
        if not self._pool.closed:
            self._pool.closeall()


class Asyncpg(AsyncStack):
    name = "asyncpg"
    server = "postgresql"
    undecidable = OF_ASYNCPG
    impossible = NEVER_IN_ASYNCPG

    def arguments(self, where: Where) -> dict[str, Any]:
        return {
            "host": where.socket or where.host,
            "port": where.port,
            "user": where.user,
            "password": where.password,
            "database": where.database,
            "timeout": where.connect_timeout,
            "command_timeout": where.read_timeout,
            "ssl": False,
        }

    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession:
        return _AsyncpgSession(await asyncpg.connect(**self.arguments(where)), autocommit)

    async def open_pool(self, where: Where) -> AsyncPool:
        pool = await asyncpg.create_pool(**self.arguments(where), min_size=0, max_size=1)
        return _AsyncpgPool(pool)

    async def open_collision(self, session: AsyncSession) -> None:
        assert isinstance(session, _AsyncpgSession)
        await asyncio.gather(*(session.connection.fetch("SELECT pg_sleep(0.2)") for _ in "ab"))


class _AsyncpgSession(AsyncSession):
    """With a transaction begun at the first statement, as there is nothing implicit in asyncpg."""

    def __init__(self, connection: asyncpg.Connection, autocommit: bool) -> None:
        self.connection = connection
        self._autocommit = autocommit
        self._transaction: Any = None

    async def execute(self, sql: str) -> list[Any]:
        if self._transaction is None and not self._autocommit:
            transaction = self.connection.transaction()
            await transaction.start()
            self._transaction = transaction
        return [tuple(row) for row in await self.connection.fetch(sql)]

    async def commit(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await transaction.commit()

    async def rollback(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await transaction.rollback()

    async def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            await self.connection.close(timeout=2)


class _AsyncpgPool(AsyncPool):
    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def acquire(self) -> Any:
        return await self._pool.acquire(timeout=1)

    async def close(self) -> None:
        self._pool.terminate()


class PG8000(Stack):
    name = "pg8000"
    server = "postgresql"

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        connection = pg8000.dbapi.connect(**self.arguments(where))
        connection.autocommit = autocommit
        return _PG8000Session(connection)

    def arguments(self, where: Where) -> dict[str, Any]:
        return {
            "host": where.host,
            "port": where.port,
            "unix_sock": where.socket and str(Path(where.socket) / f".s.PGSQL.{where.port}"),
            "user": where.user,
            "password": where.password,
            "database": where.database,
            "timeout": where.read_timeout or where.connect_timeout,
            "ssl_context": False,
        }


class _PG8000Session(DBAPISession):
    def close(self) -> None:
        with contextlib.suppress(pg8000.exceptions.InterfaceError):  # of one that is gone
            self.connection.close()


class NativePG8000(PG8000):
    name = "pg8000 (native)"

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        connection = pg8000.native.Connection(**self.arguments(where))
        return _NativePG8000Session(connection, autocommit)


class _NativePG8000Session(_PG8000Session):
    """With a transaction begun at the first statement, as there is nothing implicit in it."""

    def __init__(self, connection: pg8000.native.Connection, autocommit: bool) -> None:
        super().__init__(connection)
        self._autocommit = autocommit
        self._begun = False

    def execute(self, sql: str) -> list[Any]:
        if not (self._autocommit or self._begun):
            self.connection.run("BEGIN")
            self._begun = True
        return [tuple(row) for row in self.connection.run(sql) or []]

    def commit(self) -> None:
        self._end("COMMIT")

    def rollback(self) -> None:
        self._end("ROLLBACK")

    def _end(self, statement: str) -> None:
        if self._begun:
            self._begun = False
            self.connection.run(statement)


STACKS: list[Stack] = [
    Psycopg(),
    AsyncPsycopg(),
    Psycopg2(),
    Asyncpg(),
    PG8000(),
    NativePG8000(),
]
