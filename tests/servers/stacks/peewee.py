"""peewee over its drivers, with and without a pool, and its asyncio databases.

An app writes ``with db.atomic():``, which can't be taken apart into steps; `session_start` and its
kin do the same, and can. Outside of them every statement is a commit of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ClassVar

import peewee
from playhouse import pool, pwasyncio

from tests.servers.stacks.base import (
    AsyncPool,
    AsyncSession,
    AsyncStack,
    Pool,
    Session,
    Stack,
    Where,
)
from tests.servers.stacks.postgresql import NEVER_IN_ASYNCPG, OF_ASYNCPG, libpq_arguments
from tests.servers.stacks.sqlite import SQLite

NO_READ_TIMEOUT = "The driver has no read timeout."
OPENS_AGAIN = "A pool that was closed opens again."
CONNECTS_AGAIN = "It goes on with a new connection, be it in the midst of a transaction."
LOST_WHILE_IDLE = (
    "killed while idle",
    "server killed while idle",
    "server stopped while idle",
    "used again after it was lost",
    "idle timeout",
    "idle in transaction timeout",
)


def mysql_arguments(where: Where) -> dict[str, Any]:
    """For PyMySQL."""
    return {
        "host": where.host,
        "port": where.port,
        "user": where.user,
        "password": where.password,
        "unix_socket": where.socket,
        "connect_timeout": where.connect_timeout,
        "read_timeout": where.read_timeout or where.connect_timeout,
        "ssl_disabled": True,
    }


def postgresql_arguments(where: Where) -> dict[str, Any]:
    """For both psycopgs, without the database's name."""
    arguments = libpq_arguments(where)
    del arguments["dbname"]
    return arguments


OWN_BEGIN = {
    "cut in an INSERT": (
        ("disconnection", "commit"),
        "It sends BEGIN itself, and to the driver all is autocommit; atomic() is over by then.",
    )
}


def sqlite_arguments(where: Where) -> dict[str, Any]:
    """For sqlite3."""
    return {"timeout": where.connect_timeout, "uri": where.database.startswith("file:")}


class PeeweeSession(Session):
    """A database with a connection for all threads: peewee's own state is each thread's."""

    def __init__(self, database: peewee.Database, autocommit: bool) -> None:
        self._database = database
        self._autocommit = autocommit
        database.connect()

    def execute(self, sql: str) -> list[Any]:
        if not self._autocommit and not self._database.in_transaction():
            self._database.session_start()
        cursor = self._database.execute_sql(sql)
        return list(cursor.fetchall()) if cursor.description else []

    def commit(self) -> None:
        self._database.session_commit()

    def rollback(self) -> None:
        self._database.session_rollback()

    def close(self) -> None:
        with suppress(peewee.PeeweeException):
            self._database.session_rollback()  # close() refuses in a transaction
        with suppress(peewee.PeeweeException):
            self._database.close()


class PooledPeeweeSession(PeeweeSession):
    def close(self) -> None:
        with suppress(peewee.PeeweeException):
            self._database.session_rollback()
        self._database.close_all()


class Peewee(Stack):
    """peewee over a driver of the DB-API."""

    undecidable: ClassVar = OWN_BEGIN

    session: ClassVar[Callable[..., Session]] = PeeweeSession

    database: ClassVar[Callable[..., peewee.Database]]
    arguments: ClassVar[Callable[[Where], dict[str, Any]]]
    options: ClassVar[dict[str, Any]] = {}

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        cls = type(self)
        return cls.session(
            cls.database(
                where.database,
                **cls.arguments(where),
                **self.options,
                autoconnect=False,
                thread_safe=False,
            ),
            autocommit,
        )


class PeeweePyMySQL(Peewee):
    name = "peewee + PyMySQL"
    server = "mariadb"
    database = peewee.MySQLDatabase
    arguments = mysql_arguments


class PeeweePsycopg2(Peewee):
    name = "peewee + psycopg2"
    server = "postgresql"
    impossible: ClassVar = {"blackhole in a query": NO_READ_TIMEOUT}
    database = peewee.PostgresqlDatabase
    arguments = postgresql_arguments


class PeeweePsycopg(PeeweePsycopg2):
    name = "peewee + psycopg"
    options: ClassVar = {"prefer_psycopg3": True}


class PeeweeSQLite(Peewee):
    name = "peewee + sqlite3"
    server = "sqlite"
    undecidable: ClassVar = dict.fromkeys(
        ("busy", "busy snapshot", "shared cache locked"), SQLite.undecidable["busy"]
    )
    database = peewee.SqliteDatabase
    arguments = sqlite_arguments


class PooledPeewee(Peewee):
    """With peewee's own pool, which has a connection for each thread."""

    session = PooledPeeweeSession
    options: ClassVar = {"max_connections": 1, "timeout": 0.01}

    def pool(self, where: Where) -> Pool:
        cls = type(self)
        return PeeweePool(cls.database(where.database, **cls.arguments(where), **self.options))


class PeeweePool(Pool):
    def __init__(self, database: Any) -> None:
        self._database = database

    def acquire(self) -> Any:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._database.connect).result()

    def close(self) -> None:
        self._database.close_all()


class PooledPeeweePyMySQL(PooledPeewee):
    name = "peewee (pooled) + PyMySQL"
    server = "mariadb"
    impossible: ClassVar = {"pool closed": OPENS_AGAIN}
    database = pool.PooledMySQLDatabase
    arguments = mysql_arguments


class PooledPeeweePsycopg2(PooledPeewee):
    name = "peewee (pooled) + psycopg2"
    server = "postgresql"
    impossible: ClassVar = PeeweePsycopg2.impossible | {"pool closed": OPENS_AGAIN}
    database = pool.PooledPostgresqlDatabase
    arguments = postgresql_arguments


class Task:
    """A task that goes on: what is called runs in it. Such layers keep their state by task."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[Any] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        while (call := await self._calls.get()) is not None:
            function, arguments, answer = call
            try:
                answer.set_result(await function(*arguments))
            except Exception as exc:  # noqa: BLE001  # it is raised where the call was made
                answer.set_exception(exc)

    async def call(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """What the function returns, or raises, in the task."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.put_nowait((function, arguments, answer))
        return await answer

    async def end(self) -> None:
        """End the task; another call would start a new one."""
        if self._task is not None:
            self._calls.put_nowait(None)
            await self._task
            self._task = None


class AsyncPeeweeSession(AsyncSession):
    def __init__(self, database: Any, autocommit: bool) -> None:
        self._database = database
        self._autocommit = autocommit
        self._task = Task()

    async def connect(self) -> None:
        try:
            await self._task.call(self._database.run, self._database.connect)
        except BaseException:
            await self.close()
            raise

    async def execute(self, sql: str) -> list[Any]:
        def execute() -> list[Any]:
            if not self._autocommit and not self._database.in_transaction():
                self._database.session_start()
            cursor = self._database.execute_sql(sql)
            return [tuple(row) for row in cursor.fetchall()] if cursor.description else []

        return await self._task.call(self._database.run, execute)

    async def commit(self) -> None:
        await self._task.call(self._database.run, self._database.session_commit)

    async def rollback(self) -> None:
        await self._task.call(self._database.run, self._database.session_rollback)

    async def close(self) -> None:
        with suppress(Exception):
            await self.rollback()  # close() refuses in a transaction
        with suppress(Exception):
            await self._task.call(self._database.aclose)
        await self._task.end()
        await self._database.close_pool()


class AsyncPeewee(AsyncStack):
    """peewee over an asyncio driver, which always has a pool."""

    database: ClassVar[Callable[..., Any]]

    def arguments(self, where: Where) -> dict[str, Any]:
        raise NotImplementedError

    def build(self, where: Where, acquire_timeout: float) -> Any:
        """The database, with a pool of one connection."""
        return type(self).database(
            where.database,
            **self.arguments(where),
            pool_size=1,
            pool_min_size=0,
            acquire_timeout=acquire_timeout,
        )

    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession:
        session = AsyncPeeweeSession(self.build(where, where.connect_timeout or 1), autocommit)
        await session.connect()
        return session

    async def open_pool(self, where: Where) -> AsyncPool:
        return AsyncPeeweePool(self.build(where, 0.5))


class AsyncPeeweePool(AsyncPool):
    def __init__(self, database: Any) -> None:
        self._database = database
        self._tasks: list[Task] = []

    async def acquire(self) -> Any:
        task = Task()
        self._tasks.append(task)
        return await task.call(self._database.run, self._database.connect)

    async def close(self) -> None:
        for task in self._tasks:
            await task.call(self._database.aclose)
            await task.end()
        self._tasks.clear()
        await self._database.close_pool()


class PeeweeAiomysql(AsyncPeewee):
    name = "peewee (async) + aiomysql"
    server = "mariadb"
    undecidable: ClassVar = OWN_BEGIN
    impossible: ClassVar = {"blackhole in a query": NO_READ_TIMEOUT, "pool closed": OPENS_AGAIN}
    database = pwasyncio.AsyncMySQLDatabase

    def arguments(self, where: Where) -> dict[str, Any]:
        return {
            "host": where.host,
            "port": where.port,
            "user": where.user,
            "password": where.password,
            "unix_socket": where.socket,
            "connect_timeout": where.connect_timeout,
        }


class PeeweeAsyncpg(AsyncPeewee):
    name = "peewee (async) + asyncpg"
    server = "postgresql"
    undecidable: ClassVar = {
        "blackhole in a query": OF_ASYNCPG["blackhole in a query"],
    }
    impossible: ClassVar = {
        **NEVER_IN_ASYNCPG,
        **dict.fromkeys(LOST_WHILE_IDLE, CONNECTS_AGAIN),
        "pool closed": OPENS_AGAIN,
    }
    database = pwasyncio.AsyncPostgresqlDatabase

    def arguments(self, where: Where) -> dict[str, Any]:
        return {
            "host": where.socket or where.host,
            "port": where.port,
            "user": where.user,
            "password": where.password,
            "timeout": where.connect_timeout,
            "command_timeout": where.read_timeout,
            "ssl": False,
        }


class PeeweeAioSQLite(AsyncPeewee):
    name = "peewee (async) + aiosqlite"
    server = "sqlite"
    database = pwasyncio.AsyncSqliteDatabase

    def arguments(self, where: Where) -> dict[str, Any]:
        return sqlite_arguments(where)


STACKS: list[Stack] = [
    PeeweePyMySQL(),
    PooledPeeweePyMySQL(),
    PeeweeAiomysql(),
    PeeweePsycopg2(),
    PooledPeeweePsycopg2(),
    PeeweePsycopg(),
    PeeweeAsyncpg(),
    PeeweeSQLite(),
    PeeweeAioSQLite(),
]
