"""What is particular to one driver, on a real server; the rest is tests/servers/test_matrix.py."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import asyncpg
import psycopg
import psycopg2
import pytest
from psycopg import sql

from retrymw.classify import classify
from retrymw.testing.servers import PostgreSQL
from tests.classify.helpers import caught, verdict


@pytest.mark.parametrize("driver", [psycopg, psycopg2])
def test_refused_login_at_the_second_address(postgresql: PostgreSQL, driver: Any) -> None:
    """A wrong password is one, though the first address had no server."""
    ports = f"{postgresql.port},{postgresql.port}"
    arguments = {"host": "127.0.0.2,127.0.0.1", "port": ports, "password": "wrong"}
    assert classify(caught(driver.connect, **postgresql.connect_args(**arguments))) is None


@pytest.mark.parametrize("what", ["acquire", "statement"])
def test_time_limit_of_the_app(postgresql: PostgreSQL, what: str) -> None:
    """The app's own time limit says that a pool is dry if it was waiting for that; else nothing."""

    async def run() -> None:
        arguments = postgresql.connect_args()
        arguments["database"] = arguments.pop("dbname")
        pools = asyncpg.create_pool(min_size=1, max_size=1, **arguments)
        async with pools as pool, pool.acquire() as connection:
            waiting = {
                "acquire": pool.acquire,
                "statement": lambda: connection.execute("SELECT pg_sleep(60)"),
            }
            await asyncio.wait_for(waiting[what](), 0.1)

    dry = ("too-many-connections", "connect")
    assert verdict(caught(asyncio.run, run())) == (dry if what == "acquire" else None)


@pytest.mark.parametrize(
    "statement", [sql.SQL("COMMIT"), sql.SQL("COM") + sql.SQL("MIT"), b"COMMIT"]
)
def test_psycopg_composed_commit(postgresql: PostgreSQL, statement: Any) -> None:
    """G4: psycopg's composed statements are looked into as well."""
    with closing(psycopg.connect(**postgresql.connect_args())) as connection:
        connection.execute("SELECT 1")
        postgresql.kill_connections()
        exc = caught(connection.execute, statement)
    assert verdict(exc) == ("disconnection", "commit")


def test_psycopg_transaction_block(postgresql: PostgreSQL) -> None:
    """G4: the end of a ``with connection.transaction()`` is a COMMIT, its beginning is none."""
    with closing(psycopg.connect(**postgresql.connect_args())) as connection:

        def lose(*, inside: bool) -> None:
            if not inside:
                postgresql.kill_connections()
            with connection.transaction():
                connection.execute("SELECT 1")
                postgresql.kill_connections()

        assert verdict(caught(lose, inside=True)) == ("disconnection", "commit")
    with closing(psycopg.connect(**postgresql.connect_args())) as connection:
        assert verdict(caught(lose, inside=False)) == ("disconnection", "execute")


def test_psycopg_autocommit_of_many(postgresql: PostgreSQL) -> None:
    """G4: executemany() and copy() are their own COMMIT in autocommit, like execute()."""

    def execute(connection: psycopg.Connection[Any]) -> None:
        postgresql.kill_connections()
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO many VALUES (%s)", [(1,), (2,)])

    def copy(connection: psycopg.Connection[Any]) -> None:
        with connection.cursor() as cursor, cursor.copy("COPY many FROM STDIN") as target:
            target.write_row((3,))
            postgresql.kill_connections()

    arguments = postgresql.connect_args(autocommit=True)
    with closing(psycopg.connect(**arguments)) as connection:
        connection.execute("CREATE TABLE many (a INT)")
    try:
        for lose in (execute, copy):
            with closing(psycopg.connect(**arguments)) as connection:
                assert classify(caught(lose, connection)).leaves_commit_unknown, lose
    finally:
        postgresql.execute("DROP TABLE many")


def test_psycopg_transaction_block_in_autocommit(postgresql: PostgreSQL) -> None:
    """In a ``with connection.transaction()`` nothing is its own COMMIT, in autocommit either."""
    with closing(psycopg.connect(**postgresql.connect_args(autocommit=True))) as connection:

        def lose() -> None:
            with connection.transaction():
                connection.execute("SELECT 1")
                postgresql.kill_connections()
                connection.execute("DELETE FROM nothing")

        assert verdict(caught(lose)) == ("disconnection", "execute")
