"""The drivers of PostgreSQL through PgBouncer, in transaction pooling mode."""

from __future__ import annotations

from typing import Any

from tests.servers.stacks import postgresql
from tests.servers.stacks.base import Stack, Where

WAITS = (
    ("too-many-connections", "connect"),
    "PgBouncer says query_wait_timeout, as it does when all its connections are in use.",
)
OF_ALL = {"server down behind PgBouncer": WAITS}
OF_PSYCOPG2 = OF_ALL | {
    "cut behind PgBouncer after COMMIT": postgresql.IN_C,
    "idle too long for PgBouncer": postgresql.NO_CURSOR,
    "PgBouncer's pool dry": postgresql.NO_CURSOR,
}


class Psycopg(postgresql.Psycopg):
    name = "psycopg through PgBouncer"
    server = "pgbouncer"
    undecidable = OF_ALL


class AsyncPsycopg(postgresql.AsyncPsycopg):
    name = "psycopg (async) through PgBouncer"
    server = "pgbouncer"
    undecidable = OF_ALL


class Psycopg2(postgresql.Psycopg2):
    name = "psycopg2 through PgBouncer"
    server = "pgbouncer"
    undecidable = OF_PSYCOPG2


class Asyncpg(postgresql.Asyncpg):
    name = "asyncpg through PgBouncer"
    server = "pgbouncer"
    undecidable = OF_ALL

    def arguments(self, where: Where) -> dict[str, Any]:
        return super().arguments(where) | {"statement_cache_size": 0}


class PG8000(postgresql.PG8000):
    name = "pg8000 through PgBouncer"
    server = "pgbouncer"
    undecidable = OF_ALL


STACKS: list[Stack] = [Psycopg(), AsyncPsycopg(), Psycopg2(), Asyncpg(), PG8000()]
