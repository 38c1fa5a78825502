"""Tortoise ORM over its drivers: each has a pool, which waits without end but for psycopg's.

``async with in_transaction():`` is entered before the first statement, and left to end it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

from tortoise import Tortoise, connections
from tortoise.fields import IntField
from tortoise.models import Model
from tortoise.transactions import in_transaction

from tests.servers.stacks.base import AsyncPool, AsyncSession, AsyncStack, Stack, Where
from tests.servers.stacks.mysql import Asyncmy
from tests.servers.stacks.peewee import OPENS_AGAIN, Task
from tests.servers.stacks.postgresql import NEVER_IN_ASYNCPG, OF_ASYNCPG, OF_PSYCOPG

NOTICED = "rolled back after a lost COMMIT"

HIDDEN = (
    ("disconnection", "connect"),
    OF_PSYCOPG["pool with a wrong password"][1],
)
CHECKED = "The pool looks whether a connection is alive before it gives it out."


class T(Model):
    """The matrix's table: Tortoise wants to have a model."""

    a = IntField(primary_key=True, generated=False)
    b = IntField()

    class Meta:
        table = "t"


class _RollbackError(Exception):
    """What an app raises to have a transaction rolled back."""


async def close_all() -> None:
    """Close the pool of the current task's context, which is gone then."""
    with suppress(RuntimeError):  # it has none any more
        await connections.close_all()


class TortoiseSession(AsyncSession):
    def __init__(self, autocommit: bool) -> None:
        self._autocommit = autocommit
        self._transaction: Any = None
        self._task = Task()

    async def connect(self, config: dict[str, Any]) -> None:
        async def connect() -> None:
            await Tortoise.init(config=config)
            async with connections.get("default").acquire_connection():
                pass

        try:
            await self._task.call(connect)
        except BaseException:
            await self.close()
            raise

    async def execute(self, sql: str) -> list[Any]:
        async def execute() -> list[Any]:
            if self._transaction is None and not self._autocommit:
                transaction = in_transaction()
                await transaction.__aenter__()
                self._transaction = transaction
            rows = await connections.get("default").execute_query_dict(sql)
            return [tuple(row.values()) for row in rows or ()]

        return await self._task.call(execute)

    async def commit(self) -> None:
        await self._task.call(self._leave)

    async def rollback(self) -> None:
        await self._task.call(self._leave, _RollbackError, _RollbackError())

    async def _leave(self, cls: Any = None, exception: Any = None) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            await transaction.__aexit__(cls, exception, None)

    async def close(self) -> None:
        with suppress(Exception):
            await self.rollback()
        await self._task.call(close_all)
        await self._task.end()


class TortoiseStack(AsyncStack):
    """Tortoise over a driver."""

    engine: ClassVar[str]

    def credentials(self, where: Where) -> dict[str, Any]:
        """With a pool of one connection."""
        return {
            "host": where.socket or where.host,
            "port": where.port,
            "user": where.user,
            "password": where.password,
            "database": where.database,
            "minsize": 0,
            "maxsize": 1,
        }

    def config(self, where: Where) -> dict[str, Any]:
        """What Tortoise is told."""
        engine = f"tortoise.backends.{self.engine}"
        connection = {"engine": engine, "credentials": self.credentials(where)}
        app = {"models": [__name__], "default_connection": "default"}
        return {"connections": {"default": connection}, "apps": {"models": app}}

    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession:
        session = TortoiseSession(autocommit)
        await session.connect(self.config(where))
        return session


class TortoiseAsyncmy(TortoiseStack):
    name = "Tortoise + asyncmy"
    server = "mariadb"
    differs: ClassVar = {NOTICED: Asyncmy.differs[NOTICED]}
    engine = "mysql"

    def credentials(self, where: Where) -> dict[str, Any]:
        return super().credentials(where) | {
            "host": where.host,
            "unix_socket": where.socket,
            "connect_timeout": where.connect_timeout,
            "read_timeout": where.read_timeout or where.connect_timeout,
        }


class TortoiseAsyncpg(TortoiseStack):
    name = "Tortoise + asyncpg"
    server = "postgresql"
    undecidable: ClassVar = {
        "blackhole in a query": OF_ASYNCPG["blackhole in a query"],
    }
    impossible: ClassVar = {
        **NEVER_IN_ASYNCPG,
        "idle timeout": "The pool resets a connection's settings when a transaction is over.",
    }
    engine = "asyncpg"

    def credentials(self, where: Where) -> dict[str, Any]:
        return super().credentials(where) | {
            "timeout": where.connect_timeout,
            "command_timeout": where.read_timeout,
            "ssl": False,
        }


class TortoisePsycopg(TortoiseStack):
    name = "Tortoise + psycopg"
    server = "postgresql"
    undecidable: ClassVar = {
        "server full": HIDDEN,
        "reserved slots": HIDDEN,
        "role full": HIDDEN,
        "database full": HIDDEN,
        "wrong password": HIDDEN,
        "unknown user": HIDDEN,
        "unknown database": HIDDEN,
        "pool with a wrong password": HIDDEN,
    }
    impossible: ClassVar = {
        "blackhole in a query": "The driver has no read timeout.",
        "cut in autocommit": CHECKED,
        "cut in a SELECT in autocommit": CHECKED,
        "idle timeout": CHECKED,
        "pool closed": OPENS_AGAIN,
    }
    engine = "psycopg"

    def credentials(self, where: Where) -> dict[str, Any]:
        return super().credentials(where) | {"timeout": 1.0}

    async def open_pool(self, where: Where) -> AsyncPool:
        config = self.config(where)
        config["connections"]["default"]["credentials"]["timeout"] = 0.5
        return TortoisePool(config)


class TortoisePool(AsyncPool):
    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._task = Task()

    async def acquire(self) -> Any:
        async def acquire() -> Any:
            if self._config:
                await Tortoise.init(config=self._config)
                self._config = {}
            return await connections.get("default").acquire_connection().__aenter__()

        return await self._task.call(acquire)

    async def close(self) -> None:
        await self._task.call(close_all)
        await self._task.end()


class TortoiseAioSQLite(TortoiseStack):
    name = "Tortoise + aiosqlite"
    server = "sqlite"
    impossible: ClassVar = {
        "busy in the COMMIT": "It turns on the write-ahead log, where readers are in nobody's way.",
        "shared cache locked": "It takes no URI of SQLite's.",
    }
    engine = "sqlite"

    def credentials(self, where: Where) -> dict[str, Any]:
        return {"file_path": where.database, "busy_timeout": where.connect_timeout * 1000}


STACKS: list[Stack] = [
    TortoiseAsyncmy(),
    TortoiseAsyncpg(),
    TortoisePsycopg(),
    TortoiseAioSQLite(),
]
