"""The drivers of MariaDB and MySQL."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count
from typing import Any, ClassVar

import aiomysql
import asyncmy
import mariadb
import mysql.connector
import mysql.connector.aio
import mysql.connector.aio.pooling
import mysql.connector.pooling
import MySQLdb
import pymysql

from tests.servers.situations.base import Verdict
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

NO_CONNECT_TIMEOUT = "It has no connect timeout once TCP is up."
NO_READ_TIMEOUT = "It has no read timeout."

CLOSED: Verdict = ("disconnection", "execute")
CLOSED_BY_WHOM = (CLOSED, "A connection that was lost, and used again, looks the same.")
POOL_CLOSED = (
    ("too-many-connections", "connect"),
    "Its pool does not know that it is closed: it has no connection left.",
)


class OnceSession(DBAPISession):
    """A connection that can't be closed twice."""

    def __init__(self, connection: Any, error: type[Exception]) -> None:
        super().__init__(connection)
        self._error = error

    def close(self) -> None:
        with suppress(self._error):
            super().close()


class PyMySQL(Stack):
    name = "PyMySQL"
    server = "mariadb"
    undecidable: ClassVar = {"closed by the app": CLOSED_BY_WHOM}

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        connection = pymysql.connect(
            host=where.host,
            port=where.port,
            user=where.user,
            password=where.password,
            database=where.database,
            unix_socket=where.socket,
            connect_timeout=where.connect_timeout,
            read_timeout=where.read_timeout or where.connect_timeout,
            ssl_disabled=True,
            autocommit=autocommit,
        )
        return OnceSession(connection, pymysql.Error)


def _options(where: Where, **others: Any) -> dict[str, Any]:
    """What all of them call the same; what is None is left out."""
    options = {
        "host": where.host if where.socket is None else "localhost",
        "port": where.port,
        "user": where.user,
        "password": where.password,
        "database": where.database,
        "unix_socket": where.socket,
        "read_timeout": where.read_timeout,
    }
    return {name: value for name, value in (options | others).items() if value is not None}


IN_C = (("disconnection", "unknown"), "commit() and rollback() are C and leave no frame.")


class Mysqlclient(Stack):
    name = "mysqlclient"
    server = "mariadb"
    undecidable: ClassVar = {
        "cut before COMMIT": IN_C,
        "cut after COMMIT": IN_C,
        "killed, then rolled back": IN_C,
        "rolled back after a lost COMMIT": IN_C,
    }

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        options = _options(where, connect_timeout=where.connect_timeout, autocommit=autocommit)
        return OnceSession(MySQLdb.connect(**options), MySQLdb.Error)


class ConnectorSession(DBAPISession):
    """Its cursor() asks whether the server is there; who keeps a cursor gets to know it later."""

    def __init__(self, connection: Any, *, keep_cursor: bool) -> None:
        super().__init__(connection)
        self._kept = connection.cursor() if keep_cursor else None

    def execute(self, sql: str) -> list[Any]:
        if self._kept is None:
            return super().execute(sql)
        self._kept.execute(sql)
        return list(self._kept.fetchall()) if self._kept.description else []


class ConnectorPool(Pool):
    def __init__(self, **options: Any) -> None:
        self._pool = mysql.connector.pooling.MySQLConnectionPool(pool_size=1, **options)
        self._taken: list[Any] = []

    def acquire(self) -> Any:
        connection = self._pool.get_connection()
        self._taken.append(connection)
        return connection

    def close(self) -> None:
        while self._taken:
            self._taken.pop().close()
        self._pool._remove_connections()


class Connector(Stack):
    server = "mariadb"
    undecidable: ClassVar = {"closed by the app": CLOSED_BY_WHOM, "pool closed": POOL_CLOSED}

    def __init__(self, *, pure: bool) -> None:
        self.name = f"MySQL Connector ({'pure' if pure else 'C'})"
        self._pure = pure

    def _options(self, where: Where, **others: Any) -> dict[str, Any]:
        return _options(
            where,
            connection_timeout=where.connect_timeout,
            use_pure=self._pure,
            ssl_disabled=True,
            **others,
        )

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        connection = mysql.connector.connect(**self._options(where, autocommit=autocommit))
        return ConnectorSession(connection, keep_cursor=autocommit)

    def pool(self, where: Where) -> Pool:
        return ConnectorPool(**self._options(where))


class AsyncDBAPISession(AsyncSession):
    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def execute(self, sql: str) -> list[Any]:
        async with self.connection.cursor() as cursor:
            await cursor.execute(sql)
            return list(await cursor.fetchall()) if cursor.description else []

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()

    async def close(self) -> None:
        self.connection.close()


class AsyncConnectorSession(AsyncDBAPISession):
    async def execute(self, sql: str) -> list[Any]:
        async with await self.connection.cursor() as cursor:
            await cursor.execute(sql)
            return list(await cursor.fetchall()) if cursor.description else []

    async def close(self) -> None:
        await self.connection.close()


class AsyncConnectorPool(AsyncPool):
    def __init__(self, pool: mysql.connector.aio.pooling.MySQLConnectionPool) -> None:
        self._pool = pool
        self._taken: list[Any] = []

    async def acquire(self) -> Any:
        connection = await self._pool.get_connection()
        self._taken.append(connection)
        return connection

    async def close(self) -> None:
        while self._taken:
            await self._taken.pop().close()
        await self._pool.close_pool()


class AsyncConnector(AsyncStack):
    name = "MySQL Connector (aio)"
    server = "mariadb"
    undecidable: ClassVar = {"closed by the app": CLOSED_BY_WHOM, "pool closed": POOL_CLOSED}
    impossible: ClassVar = {"silent server": NO_CONNECT_TIMEOUT}

    def _options(self, where: Where, **others: Any) -> dict[str, Any]:
        return _options(
            where, connection_timeout=where.connect_timeout, ssl_disabled=True, **others
        )

    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession:
        options = self._options(where, autocommit=autocommit)
        return AsyncConnectorSession(await mysql.connector.aio.connect(**options))

    async def open_pool(self, where: Where) -> AsyncPool:
        pool = mysql.connector.aio.pooling.MySQLConnectionPool(pool_size=1, **self._options(where))
        await pool.initialize_pool()
        return AsyncConnectorPool(pool)

    async def open_collision(self, session: AsyncSession) -> None:
        await _collide(session)


async def _collide(session: AsyncSession) -> None:
    await asyncio.gather(session.execute("SELECT SLEEP(0.2)"), session.execute("SELECT 2"))


class MariaDBPool(Pool):
    _numbers = count()

    def __init__(self, **options: Any) -> None:
        name = f"pool {next(self._numbers)}"
        self._pool = mariadb.ConnectionPool(pool_name=name, pool_size=1, **options)

    def acquire(self) -> Any:
        return self._pool.get_connection()

    def close(self) -> None:
        with suppress(KeyError):  # it was closed already
            self._pool.close()


class MariaDBConnector(Stack):
    name = "MariaDB Connector"
    server = "mariadb"

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        options = _options(where, connect_timeout=where.connect_timeout, autocommit=autocommit)
        return OnceSession(mariadb.connect(**options), mariadb.Error)

    def pool(self, where: Where) -> Pool:
        return MariaDBPool(**_options(where, connect_timeout=where.connect_timeout))


class WaitingPool(AsyncPool):
    """A pool that has no limit to its waiting: the app sets one."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def acquire(self) -> Any:
        return await asyncio.wait_for(self._pool.acquire(), 0.1)

    async def close(self) -> None:
        self._pool.terminate()
        await self._pool.wait_closed()


class Aiomysql(AsyncStack):
    name = "aiomysql"
    server = "mariadb"
    undecidable: ClassVar = {"closed by the app": CLOSED_BY_WHOM}
    impossible: ClassVar = {
        "silent server": NO_CONNECT_TIMEOUT,
        "blackhole in a query": NO_READ_TIMEOUT,
    }

    def _options(self, where: Where, **others: Any) -> dict[str, Any]:
        options = _options(where, connect_timeout=where.connect_timeout, **others)
        options.pop("read_timeout", None)
        return options | {"db": options.pop("database")}

    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession:
        options = self._options(where, autocommit=autocommit)
        return AsyncDBAPISession(await aiomysql.connect(**options))

    async def open_pool(self, where: Where) -> AsyncPool:
        options = self._options(where)
        return WaitingPool(await aiomysql.create_pool(minsize=0, maxsize=1, **options))

    async def open_collision(self, session: AsyncSession) -> None:
        await _collide(session)


HIDDEN = "It is compiled, so that the statement can't be seen: it may have been a COMMIT."
LOST = (("disconnection", "unknown"), HIDDEN)
CONFLICT = (("conflict", "unknown"), HIDDEN)


class Asyncmy(AsyncStack):
    name = "asyncmy"
    server = "mariadb"
    differs: ClassVar = {
        "rolled back after a lost COMMIT": (
            CLOSED,
            "It is none: a COMMIT is not sent where the connection is known to be gone.",
        ),
    }
    undecidable: ClassVar = {
        "killed while running": LOST,
        "server killed while running": LOST,
        "server stopped while running": LOST,
        "reset in a query": LOST,
        "FIN in a query": LOST,
        "blackhole in a query": LOST,
        "cut in a COMMIT statement": LOST,
        "cut in autocommit": LOST,
        "cut in a SELECT in autocommit": LOST,
        "cut in an INSERT": LOST,
        "deadlock": CONFLICT,
        "lock wait": CONFLICT,
        "snapshot conflict": CONFLICT,
        "closed by the app": CLOSED_BY_WHOM,
    }
    impossible: ClassVar = {
        "packet too large": "The server's answer races with the end of the connection.",
    }

    def _options(self, where: Where, **others: Any) -> dict[str, Any]:
        options = _options(where, connect_timeout=where.connect_timeout, **others)
        return {"read_timeout": where.connect_timeout} | options

    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession:
        options = self._options(where, autocommit=autocommit)
        return AsyncDBAPISession(await asyncmy.connect(**options))

    async def open_pool(self, where: Where) -> AsyncPool:
        options = self._options(where)
        return WaitingPool(await asyncmy.create_pool(minsize=0, maxsize=1, **options))


STACKS = [
    PyMySQL(),
    Mysqlclient(),
    Connector(pure=True),
    Connector(pure=False),
    AsyncConnector(),
    MariaDBConnector(),
    Aiomysql(),
    Asyncmy(),
]
