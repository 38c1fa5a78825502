"""asyncmy: the conformance suite, and what only it has. The rest is in ``test_aiomysql.py``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from retrymw import rollback_safe
from retrymw.adapters.asyncmy import AsyncDatabase
from retrymw.testing import FaultProxy
from retrymw.testing.conformance._stage import things as table_of_things
from retrymw.testing.servers import MariaDB
from tests.adapters import test_aiomysql as shared
from tests.adapters.test_aiomysql import execute, is_first, outcome, request


class TestConformanceOnMariaDB(shared.TestConformanceOnMariaDB):
    """The suite, for asyncmy."""

    driver = shared.DRIVERS["asyncmy"]


class TestAccountingOnMariaDB(shared.TestAccountingOnMariaDB):
    """Every order is accounted for."""

    driver = shared.DRIVERS["asyncmy"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def things(mariadb: MariaDB) -> Iterator[None]:
    """A table."""
    with table_of_things(mariadb):
        yield


@pytest.fixture
async def database(
    mariadb: MariaDB, mariadb_proxy: FaultProxy, things: None, anyio_backend: str
) -> AsyncIterator[AsyncDatabase]:
    """One that prepares statements and commits each of them, where nothing else tells of it."""
    arguments = mariadb.connect_args(host=mariadb_proxy.host, port=mariadb_proxy.port)
    database = AsyncDatabase(**arguments, stmt_cache_size=10, autocommit=True, read_timeout=5)
    yield database
    await database.close()


@pytest.mark.anyio
async def test_cached_statement(database: AsyncDatabase, mariadb_proxy: FaultProxy) -> None:
    """G4: a statement that asyncmy prepares by itself is seen, and is its own COMMIT here."""

    @rollback_safe
    async def endpoint() -> None:
        assert await execute(database, "SELECT %s + 1", (1,)) == [(2,)]
        assert await execute(database, "SELECT %s + 1", (2,)) == [(3,)]
        await execute(database, "DELETE FROM things WHERE name = %s", ("x",))
        mariadb_proxy.cut("reset", at=1)
        await execute(database, "DELETE FROM things WHERE name = %s", ("y",))

    response = await request(endpoint, database, method="POST")
    assert outcome(response) == (503, "unknown")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sql", "expected"), [("SELECT ?", (200, "recovered")), ("DO ?", (503, "unknown"))]
)
async def test_prepared_statement(
    database: AsyncDatabase, mariadb_proxy: FaultProxy, sql: str, expected: Any
) -> None:
    """G4: so is one that the app prepares; one that reads is replayed."""

    @rollback_safe
    async def endpoint() -> None:
        async with database.connection() as connection, await connection.prepare(sql) as statement:
            if is_first():
                mariadb_proxy.cut("reset", at=1)
            await statement.execute((1,))

    assert outcome(await request(endpoint, database, method="POST")) == expected


@pytest.mark.anyio
async def test_lost_while_a_statement_is_prepared(
    database: AsyncDatabase, mariadb_proxy: FaultProxy
) -> None:
    """asyncmy falls back to plain SQL when it can't prepare; a loss is seen all the same."""

    async def endpoint() -> None:
        await execute(database, "SELECT 1")
        if is_first():
            mariadb_proxy.cut("reset", at=1)
        await execute(database, "SELECT %s", (1,))

    assert outcome(await request(endpoint, database)) == (200, "recovered")


@pytest.mark.anyio
async def test_many_at_once(database: AsyncDatabase, mariadb: MariaDB) -> None:
    """executemany() works; it is not sent as a bulk, of which nobody could tell what was done."""
    async with database.connection() as connection, connection.cursor() as cursor:
        await cursor.executemany("INSERT INTO things VALUES (%s)", [("a",), ("b",)])
    assert mariadb.execute("SELECT name FROM app.things ORDER BY name") == [("a",), ("b",)]


@pytest.mark.anyio
async def test_evicted_statement(database: AsyncDatabase) -> None:
    """The cache of statements can overflow."""
    async with database.connection() as connection:
        for number in range(20):
            async with connection.cursor() as cursor:
                await cursor.execute(f"SELECT %s + {number}", (1,))
                assert await cursor.fetchone() == (1 + number,)
