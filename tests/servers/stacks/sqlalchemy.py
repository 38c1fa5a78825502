"""SQLAlchemy, over every driver of ours that it has a dialect for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool

from tests.servers.situations.base import Verdict
from tests.servers.stacks import mysql, postgresql, sqlite
from tests.servers.stacks.base import (
    AsyncPool,
    AsyncSession,
    AsyncStack,
    Pool,
    Session,
    Stack,
    Where,
)

CLOSED_BY_THEN: dict[str, tuple[Verdict, str]] = {
    "cut in an INSERT": (
        ("disconnection", "commit"),
        "By then the driver can't be asked about autocommit, which SQLAlchemy may not know of.",
    )
}

Options = Callable[[Where], dict[str, Any]]

SMALL: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 0.1}

LOST_IN_WHAT: dict[str, tuple[Verdict, str]] = {
    "used again after it was lost": (
        ("disconnection", "unknown"),
        "It says that the connection was lost earlier, not in what: it may have been a COMMIT.",
    )
}


class _Dialect(Stack):
    """A dialect and its driver.

    Arguments:
        driver: the driver's own stack; what can't happen to that can't happen here either.
        dialect: the first part of SQLAlchemy's URL.
        options: the driver's arguments for a place.
        undecidable: as the stack's.
        inherited: what can't be decided here either, as with the driver alone.
    """

    def __init__(
        self,
        driver: Stack,
        dialect: str,
        options: Options,
        undecidable: dict[str, tuple[Verdict, str]] = LOST_IN_WHAT,
        inherited: tuple[str, ...] = (),
    ) -> None:
        self.name = f"SQLAlchemy + {driver.name}"
        self.server = driver.server
        self.undecidable = {
            **{name: driver.undecidable[name] for name in inherited},
            **undecidable,
        }
        self.differs = driver.differs
        self.impossible = {
            **driver.impossible,
            "pool closed": "dispose() replaces the pool by a new one, which can be used.",
        }
        self._dialect = dialect
        self._options = options

    def _engine_args(self, where: Where, **pool: Any) -> dict[str, Any]:
        if self.server == "sqlite":
            query = {"uri": "true"} if where.database.startswith("file:") else {}
            url = sqlalchemy.URL.create(self._dialect, database=where.database, query=query)
        else:
            host = where.host if where.socket is None else None
            url = sqlalchemy.URL.create(
                self._dialect, where.user, where.password, host, where.port, where.database
            )
        return {"url": url, "connect_args": self._options(where), **pool}


class SQLAlchemy(_Dialect):
    """Used from threads."""

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        engine = sqlalchemy.create_engine(**self._engine_args(where, poolclass=NullPool))
        return SQLAlchemySession(_isolated(engine, autocommit).connect())

    def pool(self, where: Where) -> Pool:
        arguments = self._engine_args(where, poolclass=QueuePool, **SMALL)
        return SQLAlchemyPool(sqlalchemy.create_engine(**arguments))


class SQLAlchemySession(Session):
    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self.connection = connection

    def execute(self, sql: str) -> list[Any]:
        result = self.connection.execute(sqlalchemy.text(sql))
        return list(result.all()) if result.returns_rows else []

    def commit(self) -> None:
        self.connection.commit()

    def rollback(self) -> None:
        self.connection.rollback()

    def close(self) -> None:
        if not self.connection.closed:
            self.connection.invalidate()
            self.connection.close()


class SQLAlchemyPool(Pool):
    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self._engine = engine
        self._taken: list[sqlalchemy.Connection] = []

    def acquire(self) -> Any:
        self._taken.append(self._engine.connect())
        return self._taken[-1]

    def close(self) -> None:
        for connection in self._taken:
            connection.close()
        self._engine.dispose()


class AsyncSQLAlchemy(_Dialect, AsyncStack):
    """Used from an event loop."""

    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession:
        engine = create_async_engine(**self._engine_args(where, poolclass=NullPool))
        return AsyncSQLAlchemySession(await _isolated(engine, autocommit).connect())

    async def open_pool(self, where: Where) -> AsyncPool:
        arguments = self._engine_args(where, poolclass=AsyncAdaptedQueuePool, **SMALL)
        return AsyncSQLAlchemyPool(create_async_engine(**arguments))


class AsyncSQLAlchemySession(AsyncSession):
    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def execute(self, sql: str) -> list[Any]:
        result = await self.connection.execute(sqlalchemy.text(sql))
        return list(result.all()) if result.returns_rows else []

    async def commit(self) -> None:
        await self.connection.commit()

    async def rollback(self) -> None:
        await self.connection.rollback()

    async def close(self) -> None:
        if not self.connection.closed:
            await self.connection.invalidate()
            await self.connection.close()


class AsyncSQLAlchemyPool(AsyncPool):
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._taken: list[AsyncConnection] = []

    async def acquire(self) -> Any:
        self._taken.append(await self._engine.connect())
        return self._taken[-1]

    async def close(self) -> None:
        for connection in self._taken:
            await connection.close()
        await self._engine.dispose()


def _isolated(engine: Any, autocommit: bool) -> Any:
    return engine.execution_options(isolation_level="AUTOCOMMIT") if autocommit else engine


def _options(**names: str) -> Options:
    """What a driver calls the fields of `Where`; those that are None are left out."""

    def options(where: Where) -> dict[str, Any]:
        values = {name: getattr(where, field) for name, field in names.items()}
        return {name: value for name, value in values.items() if value is not None}

    return options


def _patient(options: Options) -> Options:
    """It needs a read timeout as well, to give up on a server that says nothing to begin with."""
    return lambda where: {"read_timeout": where.connect_timeout} | options(where)


def _and(options: Options, **constants: Any) -> Options:
    return lambda where: constants | options(where)


def _pg8000(where: Where) -> dict[str, Any]:
    options: dict[str, Any] = {"timeout": where.read_timeout or where.connect_timeout}
    if where.socket is not None:
        options["unix_sock"] = f"{where.socket}/.s.PGSQL.{where.port}"
    return options


MYSQL = {
    "unix_socket": "socket",
    "connect_timeout": "connect_timeout",
    "read_timeout": "read_timeout",
}
NO_READ_TIMEOUT = {"unix_socket": "socket", "connect_timeout": "connect_timeout"}
CONNECTOR = _and(
    _options(
        unix_socket="socket", connection_timeout="connect_timeout", read_timeout="read_timeout"
    ),
    ssl_disabled=True,
)
LIBPQ = _options(host="socket", connect_timeout="connect_timeout")
ASYNCPG = _options(host="socket", timeout="connect_timeout", command_timeout="read_timeout")

STACKS: list[Stack] = [
    SQLAlchemy(
        mysql.PyMySQL(), "mysql+pymysql", _patient(_and(_options(**MYSQL), ssl_disabled=True))
    ),
    SQLAlchemy(
        mysql.Mysqlclient(), "mysql+mysqldb", _options(**MYSQL), LOST_IN_WHAT | CLOSED_BY_THEN
    ),
    SQLAlchemy(
        mysql.Connector(pure=True),
        "mysql+mysqlconnector",
        _and(CONNECTOR, use_pure=True),
        {},
    ),
    SQLAlchemy(
        mysql.Connector(pure=False),
        "mysql+mysqlconnector",
        _and(CONNECTOR, use_pure=False),
    ),
    SQLAlchemy(
        mysql.MariaDBConnector(),
        "mariadb+mariadbconnector",
        _options(**MYSQL),
        LOST_IN_WHAT | CLOSED_BY_THEN,
    ),
    AsyncSQLAlchemy(mysql.Aiomysql(), "mysql+aiomysql", _options(**NO_READ_TIMEOUT)),
    AsyncSQLAlchemy(
        mysql.Asyncmy(),
        "mysql+asyncmy",
        _patient(_options(**MYSQL)),
        LOST_IN_WHAT | CLOSED_BY_THEN,
    ),
    SQLAlchemy(postgresql.Psycopg(), "postgresql+psycopg", LIBPQ),
    AsyncSQLAlchemy(postgresql.AsyncPsycopg(), "postgresql+psycopg_async", LIBPQ),
    SQLAlchemy(postgresql.Psycopg2(), "postgresql+psycopg2", LIBPQ),
    AsyncSQLAlchemy(
        postgresql.Asyncpg(),
        "postgresql+asyncpg",
        ASYNCPG,
        inherited=("blackhole in a query",),
    ),
    SQLAlchemy(postgresql.PG8000(), "postgresql+pg8000", _pg8000),
    SQLAlchemy(sqlite.SQLite(), "sqlite", _options(timeout="connect_timeout"), {}),
    AsyncSQLAlchemy(
        sqlite.AioSQLite(), "sqlite+aiosqlite", _options(timeout="connect_timeout"), {}
    ),
]
