"""The drivers of SQLite."""

from __future__ import annotations

import sqlite3
from typing import Any, ClassVar

import aiosqlite

from tests.servers.stacks.base import AsyncSession, AsyncStack, DBAPISession, Session, Stack, Where

LOCKED = ("busy", "busy in the COMMIT", "busy snapshot", "shared cache locked")
IN_C = "Its commit() and execute() are C, and leave no frame that would tell them apart."


class SQLite(Stack):
    name = "sqlite3"
    server = "sqlite"
    undecidable: ClassVar = dict.fromkeys(LOCKED, (("conflict", "unknown"), IN_C))

    def connect(self, where: Where, *, autocommit: bool = False) -> Session:
        connection = sqlite3.connect(
            where.database,
            timeout=where.connect_timeout,
            isolation_level=None,
            uri=where.database.startswith("file:"),
        )
        return _SQLiteSession(connection, autocommit)


class _SQLiteSession(DBAPISession):
    """With BEGIN before the first statement: the driver's own waits for the first change."""

    def __init__(self, connection: sqlite3.Connection, autocommit: bool) -> None:
        super().__init__(connection)
        self._autocommit = autocommit

    def execute(self, sql: str) -> list[Any]:
        if not self._autocommit and not self.connection.in_transaction:
            self.connection.execute("BEGIN")
        return super().execute(sql)


class AioSQLite(AsyncStack):
    name = "aiosqlite"
    server = "sqlite"

    async def open(self, where: Where, *, autocommit: bool) -> AsyncSession:
        connection = await aiosqlite.connect(
            where.database,
            timeout=where.connect_timeout,
            isolation_level=None,
            uri=where.database.startswith("file:"),
        )
        return _AioSQLiteSession(connection, autocommit)


class _AioSQLiteSession(AsyncSession):
    """As `_SQLiteSession`."""

    def __init__(self, connection: aiosqlite.Connection, autocommit: bool) -> None:
        self._connection = connection
        self._autocommit = autocommit

    async def execute(self, sql: str) -> list[Any]:
        if not self._autocommit and not self._connection.in_transaction:
            await self._connection.execute("BEGIN")
        return [tuple(row) for row in await self._connection.execute_fetchall(sql)]

    async def commit(self) -> None:
        await self._connection.commit()

    async def rollback(self) -> None:
        await self._connection.rollback()

    async def close(self) -> None:
        await self._connection.close()


STACKS: list[Stack] = [SQLite(), AioSQLite()]
