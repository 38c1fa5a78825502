"""The adapter for psycopg 3, sync and async, on a real PostgreSQL behind the fault proxy."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import psycopg
import pytest
from anyio.from_thread import BlockingPortal
from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import (
    AsyncConnectionPool,
    ConnectionPool,
    NullConnectionPool,
    PoolClosed,
    PoolTimeout,
)

from retrymw import DisconnectionError, current_attempt, rollback_safe
from retrymw.adapters import _psycopg_watch
from retrymw.adapters.psycopg import AsyncConnection, AsyncDatabase, Connection, Database
from retrymw.testing import FaultProxy
from retrymw.testing.conformance import (
    AccountingConformance,
    AdapterConformance,
    Stage,
    Subject,
    UnitOfWorkConformance,
)
from retrymw.testing.conformance._stage import RECOVERED, in_context, is_first, told
from retrymw.testing.servers import PostgreSQL

ADD = "INSERT INTO things VALUES (%s)"
COPY = "COPY things FROM STDIN"


def options(server: PostgreSQL, proxy: FaultProxy, **more: Any) -> dict[str, Any]:
    """Of a pool of two."""
    arguments = server.connect_args(host=proxy.host, port=proxy.port)
    return {
        "kwargs": arguments | {"connect_timeout": 2},
        "min_size": 0,
        "max_size": 2,
        "timeout": 0.6,  # to connect, too
        "reconnect_timeout": 0.1,
    } | more


class Pool(ConnectionPool[Connection[Any]]):
    """A pool that knows the connections that it has given out."""

    def __init__(self, **options: Any) -> None:
        self.out: set[Connection[Any]] = set()
        super().__init__(**options)

    def getconn(self, timeout: float | None = None) -> Connection[Any]:
        connection = super().getconn(timeout)
        self.out.add(connection)
        return connection

    def putconn(self, conn: Connection[Any]) -> None:
        self.out.discard(conn)
        super().putconn(conn)


class AsyncPool(AsyncConnectionPool[AsyncConnection[Any]]):
    """A pool that knows the connections that it has given out."""

    def __init__(self, **options: Any) -> None:
        self.out: set[AsyncConnection[Any]] = set()
        super().__init__(**options)

    async def getconn(self, timeout: float | None = None) -> AsyncConnection[Any]:  # noqa: ASYNC109  # psycopg's
        connection = await super().getconn(timeout)
        self.out.add(connection)
        return connection

    async def putconn(self, conn: AsyncConnection[Any]) -> None:
        self.out.discard(conn)
        await super().putconn(conn)


def subject_of(database: Database, unit: Subject | None = None) -> Subject:
    def execute(sql: str) -> list[Any]:
        with database.connection() as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def commit() -> None:
        with database.connection() as connection:
            connection.commit()

    def rollback() -> None:
        with database.connection() as connection:
            connection.rollback()

    return Subject(database, execute, commit, rollback, lambda: len(database._pool.out), unit)


def async_subject_of(database: AsyncDatabase, unit: Subject | None = None) -> Subject:
    async def execute(sql: str) -> list[Any]:
        async with database.connection() as connection:
            cursor = await connection.execute(sql)
            return await cursor.fetchall() if cursor.description else []

    async def commit() -> None:
        async with database.connection() as connection:
            await connection.commit()

    async def rollback() -> None:
        async with database.connection() as connection:
            await connection.rollback()

    return Subject(database, execute, commit, rollback, lambda: len(database._pool.out), unit)


# How an app commits: each is (where the proxy cuts, sync, async). They add "a".


def with_connection(connection: Connection[Any]) -> None:
    with connection:
        connection.execute(ADD, ["a"])


async def a_with_connection(connection: AsyncConnection[Any]) -> None:
    async with connection:
        await connection.execute(ADD, ["a"])


def transaction(connection: Connection[Any]) -> None:
    with connection.transaction():
        connection.execute(ADD, ["a"])


async def a_transaction(connection: AsyncConnection[Any]) -> None:
    async with connection.transaction():
        await connection.execute(ADD, ["a"])


def nested(connection: Connection[Any]) -> None:
    with connection.transaction():
        with suppress(psycopg.Rollback), connection.transaction("inner"):
            connection.execute(ADD, ["b"])
            raise psycopg.Rollback
        with connection.transaction():
            connection.execute(ADD, ["a"])


async def a_nested(connection: AsyncConnection[Any]) -> None:
    async with connection.transaction():
        with suppress(psycopg.Rollback):
            async with connection.transaction("inner"):
                await connection.execute(ADD, ["b"])
                raise psycopg.Rollback
        async with connection.transaction():
            await connection.execute(ADD, ["a"])


def as_bytes(connection: Connection[Any]) -> None:
    connection.execute(ADD, ["a"])
    connection.execute(b"commit")


async def a_as_bytes(connection: AsyncConnection[Any]) -> None:
    await connection.execute(ADD, ["a"])
    await connection.execute(b"commit")


def as_object(connection: Connection[Any]) -> None:
    connection.execute(sql.SQL("INSERT INTO {} VALUES ('a')").format(sql.Identifier("things")))
    connection.execute(sql.SQL("COMMIT"))


async def a_as_object(connection: AsyncConnection[Any]) -> None:
    table = sql.Identifier("things")
    await connection.execute(sql.SQL("INSERT INTO {} VALUES ('a')").format(table))
    await connection.execute(sql.SQL("COMMIT"))


def server_cursor(connection: Connection[Any]) -> None:
    connection.execute(ADD, ["a"])
    with connection.cursor("rows") as cursor:
        cursor.execute("SELECT name FROM things")
        assert cursor.fetchall() == [("a",)]
    connection.commit()


async def a_server_cursor(connection: AsyncConnection[Any]) -> None:
    await connection.execute(ADD, ["a"])
    async with connection.cursor("rows") as cursor:
        await cursor.execute("SELECT name FROM things")
        assert await cursor.fetchall() == [("a",)]
    await connection.commit()


def pipeline(connection: Connection[Any]) -> None:
    with connection.pipeline():
        connection.execute(ADD, ["a"])
        connection.commit()


async def a_pipeline(connection: AsyncConnection[Any]) -> None:
    async with connection.pipeline():
        await connection.execute(ADD, ["a"])
        await connection.commit()


def pipeline_transaction(connection: Connection[Any]) -> None:
    with connection.pipeline(), connection.transaction():
        connection.execute(ADD, ["a"])


async def a_pipeline_transaction(connection: AsyncConnection[Any]) -> None:
    async with connection.pipeline(), connection.transaction():
        await connection.execute(ADD, ["a"])


def pipeline_text(connection: Connection[Any]) -> None:
    with connection.pipeline():
        connection.execute(ADD, ["a"])
        connection.execute("COMMIT")


async def a_pipeline_text(connection: AsyncConnection[Any]) -> None:
    async with connection.pipeline():
        await connection.execute(ADD, ["a"])
        await connection.execute("COMMIT")


def copy_and_commit(connection: Connection[Any]) -> None:
    with connection.cursor().copy(COPY) as copy:
        copy.write_row(["a"])
    connection.commit()


async def a_copy_and_commit(connection: AsyncConnection[Any]) -> None:
    async with connection.cursor().copy(COPY) as copy:
        await copy.write_row(["a"])
    await connection.commit()


COMMITS = {
    "with connection": (with_connection, a_with_connection),
    "transaction()": (transaction, a_transaction),
    "transaction(), nested": (nested, a_nested),
    "bytes": (as_bytes, a_as_bytes),
    "SQL object": (as_object, a_as_object),
    "server cursor": (server_cursor, a_server_cursor),
    "pipeline": (pipeline, a_pipeline),
    "transaction() in a pipeline": (pipeline_transaction, a_pipeline_transaction),
    "text in a pipeline": (pipeline_text, a_pipeline_text),
    "COPY": (copy_and_commit, a_copy_and_commit),
}


def execute(connection: Connection[Any]) -> None:
    connection.execute(ADD, ["a"])


async def a_execute(connection: AsyncConnection[Any]) -> None:
    await connection.execute(ADD, ["a"])


def executemany(connection: Connection[Any]) -> None:
    connection.cursor().executemany(ADD, [["a"]])


async def a_executemany(connection: AsyncConnection[Any]) -> None:
    await connection.cursor().executemany(ADD, [["a"]])


def stream(connection: Connection[Any]) -> None:
    assert list(connection.cursor().stream(f"{ADD} RETURNING name", ["a"])) == [("a",)]


async def a_stream(connection: AsyncConnection[Any]) -> None:
    rows = connection.cursor().stream(f"{ADD} RETURNING name", ["a"])
    assert [row async for row in rows] == [("a",)]


def copy(connection: Connection[Any], cut: Callable[[], object] = int) -> None:
    with connection.cursor().copy(COPY) as copy:
        copy.write_row(["a"])
        cut()


async def a_copy(connection: AsyncConnection[Any], cut: Callable[[], object] = int) -> None:
    async with connection.cursor().copy(COPY) as copy:
        await copy.write_row(["a"])
        cut()


def copy_of_query(connection: Connection[Any]) -> None:
    with connection.cursor().copy(f"COPY ({ADD} RETURNING name) TO STDOUT", ["a"]) as copy:
        assert list(copy.rows()) == [("a",)]


async def a_copy_of_query(connection: AsyncConnection[Any]) -> None:
    query = f"COPY ({ADD} RETURNING name) TO STDOUT"
    async with connection.cursor().copy(query, ["a"]) as copy:
        assert [row async for row in copy.rows()] == [("a",)]


def implicit(connection: Connection[Any]) -> None:
    with connection.pipeline():
        connection.execute(ADD, ["a"])


async def a_implicit(connection: AsyncConnection[Any]) -> None:
    async with connection.pipeline():
        await connection.execute(ADD, ["a"])


AUTOCOMMITS = {
    "execute": (execute, a_execute),
    "executemany": (executemany, a_executemany),
    "stream": (stream, a_stream),
    "COPY": (copy, a_copy),
    "COPY of a query": (copy_of_query, a_copy_of_query),
    "pipeline": (implicit, a_implicit),
}


class Special(UnitOfWorkConformance):
    """What is special to psycopg, under each shell, sync and async."""

    @staticmethod
    async def use(stage: Stage, sync: Callable[..., Any], a_sync: Callable[..., Any]) -> Any:
        """Call one of two functions with the attempt's connection."""
        database = stage.subject.database

        def call() -> Any:
            with database.connection() as connection:
                return sync(connection)

        async def a_call() -> Any:
            async with database.connection() as connection:
                return await a_sync(connection)

        return await stage.call(a_call if stage.subject.is_async else call)

    @pytest.mark.parametrize("way", COMMITS)
    @pytest.mark.parametrize(("at", "stored"), [("commit", ["a"]), ("before-commit", [])])
    def test_lost_commit(self, stage: Stage, way: str, at: Any, stored: list[str]) -> None:
        """G4: however the app commits, an answer that is lost makes the outcome unknown."""

        @rollback_safe
        async def endpoint() -> None:
            stage.proxy.cut("reset", at=at)
            await self.use(stage, *COMMITS[way])

        assert told(stage.request(endpoint, "POST")) == (503, "1", "unknown")
        assert stage.names() == stored
        stage.wait_until_free()

    @pytest.mark.parametrize("way", COMMITS)
    def test_answered_commit(self, stage: Stage, way: str) -> None:
        """G4: however the app commits, what fails afterwards is not replayed."""

        @rollback_safe
        async def endpoint() -> None:
            await self.use(stage, *COMMITS[way])
            stage.proxy.cut("reset", at=1)
            await stage.execute("SELECT 1")

        assert told(stage.request(endpoint, "POST")) == (503, "1", "committed")
        assert stage.names() == ["a"]

    @pytest.mark.parametrize("way", COMMITS)
    def test_lost_before_the_commit(self, stage: Stage, way: str) -> None:
        """G3: however the app commits, what fails before it is replayed, and takes effect once."""

        @rollback_safe
        async def endpoint() -> None:
            if is_first():
                stage.proxy.cut("reset", at=1)
            await self.use(stage, *COMMITS[way])

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert stage.names() == ["a"]

    @pytest.mark.parametrize("way", AUTOCOMMITS)
    def test_lost_answer_under_autocommit(self, stage: Stage, way: str) -> None:
        """G4: under autocommit a write whose answer is lost makes the outcome unknown."""

        def cut() -> None:
            stage.proxy.cut_all("reset")

        @rollback_safe
        async def endpoint() -> None:
            await self.use(stage, autocommit, a_autocommit)
            if way == "COPY":  # its end is no request to the proxy
                ways = [partial(function, cut=cut) for function in AUTOCOMMITS[way]]
                await self.use(stage, *ways)
            stage.proxy.cut("reset", at=1)
            await self.use(stage, *AUTOCOMMITS[way])

        assert told(stage.request(endpoint, "POST")) == (503, "1", "unknown")

    @pytest.mark.parametrize("way", AUTOCOMMITS)
    def test_answered_under_autocommit(self, stage: Stage, way: str) -> None:
        """G4: under autocommit what fails after a write is not replayed."""

        @rollback_safe
        async def endpoint() -> None:
            await self.use(stage, autocommit, a_autocommit)
            await self.use(stage, *AUTOCOMMITS[way])
            stage.proxy.cut("reset", at=1)
            await stage.execute("SELECT 1")

        assert told(stage.request(endpoint, "POST")) == (503, "1", "committed")
        assert stage.names() == ["a"]

    @pytest.mark.parametrize("way", [way for way in AUTOCOMMITS if way != "COPY of a query"])
    def test_refused_under_autocommit(self, stage: Stage, way: str) -> None:
        """G3: a write that the server refuses is not committed, so what fails later is replayed."""

        @rollback_safe
        async def endpoint() -> None:
            await self.use(stage, autocommit, a_autocommit)
            with pytest.raises(psycopg.errors.UniqueViolation):
                await self.use(stage, *AUTOCOMMITS[way])
            if is_first():
                stage.proxy.cut("reset", at=1)
            await stage.execute("SELECT 1")

        stage.server.execute("INSERT INTO app.things VALUES ('a')")
        assert told(stage.request(endpoint, "POST")) == RECOVERED

    @pytest.mark.parametrize("copied", ["", "things", "(SELECT name FROM things)"])
    def test_reading_under_autocommit(self, stage: Stage, copied: str) -> None:
        """G3: under autocommit a read that is lost commits nothing, so a PUT is replayed."""

        def copy(connection: Connection[Any]) -> None:
            with connection.cursor().copy(f"COPY {copied} TO STDOUT") as copy:
                assert list(copy) == []

        async def a_copy(connection: AsyncConnection[Any]) -> None:
            async with connection.cursor().copy(f"COPY {copied} TO STDOUT") as copy:
                assert [block async for block in copy] == []

        async def endpoint() -> None:
            await self.use(stage, autocommit, a_autocommit)
            if is_first():
                stage.proxy.cut("reset", at=1)
            await (self.use(stage, copy, a_copy) if copied else stage.execute("TABLE things"))

        assert told(stage.request(endpoint, "PUT")) == RECOVERED

    def test_something_unknown(self, stage: Stage) -> None:
        """G4: what is sent past all that the adapter knows counts as a commit."""

        def generate(connection: Any) -> Any:
            yield from connection._exec_command(b"SELECT 1")

        async def a_send(connection: AsyncConnection[Any]) -> None:
            await connection.wait(generate(connection))

        @rollback_safe
        async def endpoint() -> None:
            await self.use(stage, lambda each: each.wait(generate(each)), a_send)
            stage.proxy.cut("reset", at=1)
            await stage.execute("SELECT 1")

        assert told(stage.request(endpoint, "POST")) == (503, "1", "committed")

    def test_connection_that_psycopg_gave_up(self, stage: Stage) -> None:
        """A connection that is found broken is a failure, even if the app swallows it."""

        def give_up(connection: Connection[Any]) -> None:
            connection.pgconn.finish()

        async def a_give_up(connection: AsyncConnection[Any]) -> None:
            connection.pgconn.finish()

        async def endpoint() -> object:
            if is_first():
                await self.use(stage, give_up, a_give_up)
            with suppress(psycopg.OperationalError):
                await stage.execute("SELECT 1")
                return 200
            return 500

        assert told(stage.request(endpoint)) == RECOVERED

    def test_transaction_under_autocommit(self, stage: Stage) -> None:
        """G3: what is written in a transaction() block is not committed before its end."""

        def write(connection: Connection[Any]) -> None:
            with connection.transaction():
                for name in "ab":
                    executemany_of(connection, name)

        async def a_write(connection: AsyncConnection[Any]) -> None:
            async with connection.transaction():
                for name in "ab":
                    await connection.cursor().executemany(ADD, [[name]])

        def executemany_of(connection: Connection[Any], name: str) -> None:
            connection.cursor().executemany(ADD, [[name]])

        @rollback_safe
        async def endpoint() -> None:
            await self.use(stage, autocommit, a_autocommit)
            if is_first():
                stage.proxy.cut("reset", at=3)
            await self.use(stage, write, a_write)

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert stage.names() == ["a", "b"]

    def test_swallowed_in_a_block(self, stage: Stage) -> None:
        """A failure that is swallowed in a transaction() block, or in one within it, is raised at
        its end, the same object, and nothing is committed."""
        seen: list[BaseException] = []

        def write(connection: Connection[Any]) -> None:
            with connection.transaction():
                execute(connection)
                try:
                    with connection.transaction():
                        connection.execute(stage.conflict)
                except psycopg.Error as error:
                    seen.append(error)

        async def a_write(connection: AsyncConnection[Any]) -> None:
            async with connection.transaction():
                await a_execute(connection)
                try:
                    async with connection.transaction():
                        await connection.execute(stage.conflict)
                except psycopg.Error as error:
                    seen.append(error)

        @rollback_safe
        async def endpoint() -> None:
            if is_first():
                with pytest.raises(psycopg.errors.SerializationFailure) as raised:
                    await self.use(stage, write, a_write)
                assert raised.value is seen[0]
                raise raised.value

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert stage.names() == []
        stage.wait_until_free()

    def test_constraint_in_a_savepoint(self, stage: Stage) -> None:
        """G5: a constraint that is violated in a nested block is the app's own business."""

        def write(connection: Connection[Any]) -> None:
            with connection.transaction():
                execute(connection)
                with suppress(psycopg.errors.UniqueViolation), connection.transaction():
                    execute(connection)
                connection.execute(ADD, ["b"])

        async def a_write(connection: AsyncConnection[Any]) -> None:
            async with connection.transaction():
                await a_execute(connection)
                with suppress(psycopg.errors.UniqueViolation):
                    async with connection.transaction():
                        await a_execute(connection)
                await connection.execute(ADD, ["b"])

        async def endpoint() -> None:
            await self.use(stage, write, a_write)

        assert told(stage.request(endpoint, "POST")) == (200, None, None)
        assert stage.names() == ["a", "b"]

    def test_own_replay_of_a_refused_commit(self, stage: Stage) -> None:
        """G5: an app that runs a transaction() block again, as its COMMIT was refused, may."""
        stage.server.execute(REFUSE_ONCE)

        def write(connection: Connection[Any]) -> None:
            with suppress(psycopg.errors.SerializationFailure):
                transaction(connection)
            with connection.transaction():
                connection.execute(ADD, ["b"])

        async def a_write(connection: AsyncConnection[Any]) -> None:
            with suppress(psycopg.errors.SerializationFailure):
                await a_transaction(connection)
            async with connection.transaction():
                await connection.execute(ADD, ["b"])

        async def endpoint() -> None:
            await self.use(stage, write, a_write)

        assert told(stage.request(endpoint, "POST")) == (200, None, None)
        assert stage.names() == ["b"]

    def test_conflict_in_a_pipeline(self, stage: Stage) -> None:
        """G3: a conflict in a pipeline is replayed, and leaves a connection that can be used."""

        def write(connection: Connection[Any]) -> None:
            with connection.pipeline(), connection.transaction():
                execute(connection)
                connection.execute(stage.conflict if is_first() else "SELECT 1")

        async def a_write(connection: AsyncConnection[Any]) -> None:
            async with connection.pipeline(), connection.transaction():
                await a_execute(connection)
                await connection.execute(stage.conflict if is_first() else "SELECT 1")

        @rollback_safe
        async def endpoint() -> None:
            await self.use(stage, write, a_write)

        assert told(stage.request(endpoint, "POST")) == RECOVERED
        assert stage.names() == ["a"]
        assert stage.proxy.accepted == 1

    def test_settings_do_not_leak(self, stage: Stage) -> None:
        """G1: the next request finds the connection as the one before it found it."""
        seen: list[tuple[Any, ...]] = []

        def change(connection: Connection[Any]) -> None:
            note(connection)
            connection.autocommit = True
            connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            connection.read_only = connection.deferrable = True
            connection.prepare_threshold = 7
            connection.row_factory = dict_row
            connection.cursor_factory = psycopg.ClientCursor
            connection.execute("SELECT 1")

        async def a_change(connection: AsyncConnection[Any]) -> None:
            note(connection)
            await connection.set_autocommit(True)
            await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
            await connection.set_read_only(True)
            await connection.set_deferrable(True)
            connection.prepare_threshold = 7
            connection.row_factory = dict_row
            connection.cursor_factory = psycopg.AsyncClientCursor
            await connection.execute("SELECT 1")

        def note(connection: Any) -> None:
            begin = connection._get_tx_start_command()
            seen.append((begin, *_psycopg_watch._settings(connection)))

        async def endpoint() -> None:
            await self.use(stage, change, a_change)

        for _ in range(2):
            assert stage.request(endpoint).status_code == 200
        assert seen[0] == seen[1]
        assert stage.proxy.accepted == 1

    def test_connection_that_the_app_closed(self, stage: Stage) -> None:
        """Closing the attempt's connection is a mistake, and the message says so."""

        async def close(connection: AsyncConnection[Any]) -> None:
            await connection.close()

        async def endpoint() -> None:
            await self.use(stage, lambda connection: connection.close(), close)
            await stage.execute("SELECT 1")

        with pytest.raises(RuntimeError, match="was closed by the app"):
            stage.request(endpoint)
        stage.wait_until_free()

    def test_block_that_is_left_open(self, stage: Stage) -> None:
        """G1: a connection with an open block or pipeline goes to nobody else."""
        left: list[Any] = []

        def leave(connection: Connection[Any]) -> None:
            left.append((connection, connection.transaction()))
            left[-1][1].__enter__()
            execute(connection)

        async def a_leave(connection: AsyncConnection[Any]) -> None:
            left.append((connection, connection.transaction()))
            await left[-1][1].__aenter__()
            await a_execute(connection)

        async def endpoint() -> None:
            await self.use(stage, leave, a_leave)

        for _ in range(2):
            assert stage.request(endpoint, "POST").status_code == 200
        assert stage.names() == []
        assert left[0][0] is not left[1][0]

    def test_taking_turns(self, stage: Stage) -> None:
        """Threads, or tasks, of one attempt that use the connection at once get their answers."""

        async def endpoint() -> None:
            answers: dict[int, int] = {}

            async def ask(number: int) -> None:
                answers[number] = (await stage.execute(f"SELECT {number}"))[0][0]

            if stage.shell == "asgi":
                async with anyio.create_task_group() as group:
                    for number in range(30):
                        group.start_soon(ask, number)
            else:
                run = [in_context(partial(stage.subject.execute, f"SELECT {n}")) for n in range(30)]
                with ThreadPoolExecutor(10) as threads:
                    rows = list(threads.map(lambda each: each(), run))
                answers = {number: rows[number][0][0] for number in range(30)}
            assert answers == {number: number for number in range(30)}

        response = stage.request(endpoint)
        assert response.status_code == 200
        assert stage.proxy.accepted == 1

    def test_stream_that_is_left(self, stage: Stage) -> None:
        """G1: a stream that was begun and not finished does not hold the end of the attempt up."""
        rows: list[Any] = []
        query = "SELECT generate_series(1, 100000)"

        def begin(connection: Connection[Any]) -> None:
            rows.append(connection.cursor().stream(query))
            assert next(rows[0]) == (1,)

        async def a_begin(connection: AsyncConnection[Any]) -> None:
            rows.append(connection.cursor().stream(query))
            assert await anext(rows[0]) == (1,)

        async def endpoint() -> None:
            await self.use(stage, begin, a_begin)
            raise LookupError("a bug")

        start = monotonic()
        with pytest.raises(LookupError):
            stage.request(endpoint)
        assert monotonic() - start < 2
        stage.wait_until_free()
        assert stage.request(lambda: stage.execute("SELECT 1")).status_code == 200

    def test_others_stay_when_one_is_closed(self, stage: Stage) -> None:
        """What we close by ourselves is no reason to give up the other connections of the pool."""
        pids: list[int] = []

        async def hold() -> None:
            pids.append((await stage.execute("SELECT pg_backend_pid(), pg_sleep(0.5)"))[0][0])

        async def leave_open() -> None:
            await self.use(stage, leave, a_leave)

        def leave(connection: Connection[Any]) -> None:
            left.append(connection.pipeline())
            left[0].__enter__()

        async def a_leave(connection: AsyncConnection[Any]) -> None:
            left.append(connection.pipeline())
            await left[0].__aenter__()

        left: list[Any] = []
        for response in stage.requests([hold, leave_open]):
            assert response.status_code == 200
        assert (pids[0],) in stage.server.execute("SELECT pid FROM pg_stat_activity")

    @pytest.mark.parametrize("size", [1])
    def test_ping_and_a_dry_pool(self, stage: Stage) -> None:
        """ping() waits two seconds for a connection, whatever the pool's timeout is."""
        database = stage.subject.database
        database._pool.timeout = 30

        async def endpoint() -> None:
            await stage.execute("SELECT 1")
            start = monotonic()
            with pytest.raises(PoolTimeout):
                await stage.call(database.ping)
            assert monotonic() - start < 10

        assert stage.request(endpoint).status_code == 200

    def test_swallowed_and_committed(self, unit: Stage) -> None:
        """A statement that was refused and swallowed: PostgreSQL would roll back on COMMIT, so the
        client is not told that all went well."""

        async def endpoint() -> None:
            await unit.add("a")
            with suppress(psycopg.errors.UniqueViolation):
                await unit.add("a")

        with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="can't be committed"):
            unit.request(endpoint, "POST")
        assert unit.names() == []
        unit.wait_until_free()

    def test_conflict_is_swallowed_and_committed(self, unit: Stage) -> None:
        """G3: a failure of ours is what is raised then, and replayed."""

        @rollback_safe
        async def endpoint() -> None:
            await unit.add("a")
            if is_first():
                with suppress(psycopg.errors.SerializationFailure):
                    await unit.execute(unit.conflict)

        assert told(unit.request(endpoint, "POST")) == RECOVERED
        assert unit.names() == ["a"]

    def test_undone_in_a_block_and_committed(self, unit: Stage) -> None:
        """G5: what was undone by a nested block keeps nothing from being committed."""

        def write(connection: Connection[Any]) -> None:
            execute(connection)
            with suppress(psycopg.errors.UniqueViolation), connection.transaction():
                execute(connection)

        async def a_write(connection: AsyncConnection[Any]) -> None:
            await a_execute(connection)
            with suppress(psycopg.errors.UniqueViolation):
                async with connection.transaction():
                    await a_execute(connection)

        async def endpoint() -> None:
            await self.use(unit, write, a_write)

        assert told(unit.request(endpoint, "POST")) == (200, None, None)
        assert unit.names() == ["a"]

    def test_silent_server_and_ping(self, stage: Stage) -> None:
        """ping() does not wait for ever for a server that has fallen silent."""
        ping = stage.subject.database.ping

        def call() -> None:
            stage.portal.call(ping) if stage.subject.is_async else ping()

        call()
        stage.proxy.cut("blackhole", at=1)
        start = monotonic()
        with pytest.raises(psycopg.OperationalError):
            call()
        assert monotonic() - start < 10
        stage.wait_until_free()

    def test_failed_connect_is_squashed(self, stage: Stage) -> None:
        """A pool that can't connect fails the attempt, also if the app made a 500 of it."""

        async def endpoint() -> object:
            with suppress(psycopg.OperationalError):
                await stage.execute("SELECT 1")
                return "fine"
            return 500

        stage.proxy.cut("reset", at="connect", times=2)  # the pool itself tries twice
        response = stage.request(endpoint)
        assert (response.text, response.status_code) == ("fine", 200)
        assert response.headers["retry-outcome"] == "recovered"


def autocommit(connection: Connection[Any]) -> None:
    connection.autocommit = True


async def a_autocommit(connection: AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)


REFUSE_ONCE = """
CREATE FUNCTION app.refuse() RETURNS trigger AS
$$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$ LANGUAGE plpgsql;
GRANT ALL ON FUNCTION app.refuse() TO app;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON app.things DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (NEW.name = 'a') EXECUTE FUNCTION app.refuse()
"""

# It goes on when it is cancelled.
STUBBORN = """
CREATE FUNCTION app.wait() RETURNS text AS
$$ BEGIN PERFORM pg_sleep(20); RETURN 'never'; EXCEPTION WHEN query_canceled THEN RETURN 'waited';
END $$ LANGUAGE plpgsql; GRANT ALL ON FUNCTION app.wait() TO app
"""


class Sync:
    """A pool of connections."""

    @pytest.fixture
    def server(self, postgresql: PostgreSQL) -> PostgreSQL:
        return postgresql

    @pytest.fixture
    def subject(self, server: PostgreSQL, proxy: FaultProxy, size: int) -> Iterator[Subject]:
        settings = options(server, proxy, max_size=size)
        with Pool(connection_class=Connection, **settings) as pool:
            unit = subject_of(Database(pool, commit="on-success"))
            yield subject_of(Database(pool), unit)


class TestDatabase(Sync, Special, AdapterConformance):
    """What every adapter must do, and what is special, sync."""

    @pytest.mark.parametrize("fails", [True, False])
    def test_thread_that_is_left_in_a_statement(self, stage: Stage, fails: bool) -> None:
        """G1, G6: its connection is cut off at once, and goes to nobody else."""
        errors: list[BaseException] = []

        def linger() -> None:
            with stage.subject.database.connection() as connection:
                with pytest.raises(psycopg.OperationalError) as raised:
                    connection.execute("SELECT pg_sleep(20)")
                errors.append(raised.value)

        async def endpoint() -> None:
            await stage.execute("SELECT 1")
            threads.append(threading.Thread(target=in_context(linger)))
            threads[0].start()
            stage.server.wait_for_sleep()
            if fails:
                raise LookupError("a bug")

        threads: list[threading.Thread] = []
        start = monotonic()
        with pytest.raises(LookupError) if fails else nullcontext():
            stage.request(endpoint)
        threads[0].join(10)
        assert monotonic() - start < 10
        assert len(errors) == 1
        stage.wait_until_free()
        assert stage.request(lambda: stage.execute("SELECT 1")).status_code == 200

    @pytest.mark.parametrize("size", [1])
    @pytest.mark.parametrize("idle", [True, False])
    def test_thread_that_outlives_its_attempt(self, stage: Stage, idle: bool) -> None:
        """G1: a thread that was left behind can't write or commit over the connection when that is
        in the pool, or another request's, and costs it nothing."""
        finish = threading.Event()
        refused: list[str] = []

        def linger(connection: Connection[Any]) -> None:
            finish.wait(10)
            for use in (execute, lambda connection: connection.commit(), copy):
                with pytest.raises(RuntimeError) as raised:
                    use(connection)
                refused.append(str(raised.value))

        async def leave() -> None:
            def start() -> None:
                with stage.subject.database.connection() as connection:
                    connection.execute("SELECT 1")
                    threads.append(threading.Thread(target=in_context(partial(linger, connection))))
                    threads[0].start()

            await stage.call(start)

        async def half() -> None:
            await stage.add("half")
            finish.set()
            threads[0].join(10)
            assert await stage.execute("SELECT name FROM things") == [("half",)]

        threads: list[threading.Thread] = []
        assert stage.request(leave).status_code == 200
        if idle:
            finish.set()
            threads[0].join(10)
        assert stage.request(half, "POST").status_code == 200
        assert ["is over" in each for each in refused] == [True, True, True]
        assert stage.names() == []
        assert stage.proxy.accepted == 1

    @pytest.mark.parametrize("size", [1])
    def test_thread_with_a_connection_of_its_own(self, stage: Stage) -> None:
        """G5: a thread that outlives its attempt may take one from the pool, also one that was the
        attempt's."""
        pool = stage.subject.database._pool

        def work() -> None:
            over.wait(10)
            with pool.connection() as connection:
                execute(connection)

        async def leave() -> None:
            await stage.execute("SELECT 1")
            threads.append(threading.Thread(target=in_context(work)))
            threads[0].start()

        over = threading.Event()
        threads: list[threading.Thread] = []
        assert stage.request(leave).status_code == 200
        over.set()
        threads[0].join(10)
        assert stage.names() == ["a"]
        assert stage.proxy.accepted == 1


class Async:
    """A pool of async connections."""

    shells = ("asgi",)

    @pytest.fixture
    def server(self, postgresql: PostgreSQL) -> PostgreSQL:
        return postgresql

    @pytest.fixture
    def subject(
        self, server: PostgreSQL, proxy: FaultProxy, portal: BlockingPortal, size: int
    ) -> Iterator[Subject]:
        async def open_pool() -> AsyncPool:
            settings = options(server, proxy, max_size=size)
            pool = AsyncPool(connection_class=AsyncConnection, open=False, **settings)
            await pool.open()
            return pool

        pool = portal.call(open_pool)
        unit = async_subject_of(AsyncDatabase(pool, commit="on-success"))
        yield async_subject_of(AsyncDatabase(pool), unit)
        portal.call(pool.close)


class TestAsyncDatabase(Async, Special, AdapterConformance):
    """What every adapter must do, and what is special, async."""

    def test_task_that_is_left_in_a_statement(self, stage: Stage) -> None:
        """G1, G6: its connection is cut off at once, and goes to nobody else."""
        tasks: list[asyncio.Task[Any]] = []

        async def endpoint() -> None:
            await stage.execute("SELECT 1")
            tasks.append(asyncio.create_task(stage.execute("SELECT pg_sleep(20)")))
            await asyncio.to_thread(stage.server.wait_for_sleep)
            raise LookupError("a bug")

        async def outcome() -> BaseException | None:
            await asyncio.wait(tasks, timeout=10)
            return tasks[0].exception()

        start = monotonic()
        with pytest.raises(LookupError):
            stage.request(endpoint)
        assert isinstance(stage.portal.call(outcome), psycopg.OperationalError)
        assert monotonic() - start < 10
        stage.wait_until_free()
        assert told(stage.request(lambda: stage.execute("SELECT 1"))) == (200, None, None)

    def test_task_that_outlives_its_attempt(self, stage: Stage) -> None:
        """G1, G4: gather() leaves a task behind; it stores nothing after the attempt was undone."""
        errors: list[BaseException] = []

        async def order() -> None:
            await stage.add("order")
            if is_first():
                raise DisconnectionError

        async def audit(connection: AsyncConnection[Any], done: asyncio.Event) -> None:
            await replayed.wait()
            try:
                with pytest.raises(RuntimeError) as raised:
                    await a_execute(connection)
                errors.append(raised.value)
                with pytest.raises(RuntimeError) as raised:
                    await connection.commit()
                errors.append(raised.value)
            finally:
                done.set()

        async def endpoint() -> None:
            async with stage.subject.database.connection() as connection:
                if is_first():
                    events.extend((asyncio.Event(), asyncio.Event()))
                    await asyncio.gather(order(), audit(connection, events[1]))
                await order()
                replayed.set()
                await events[1].wait()
                await connection.commit()

        events: list[asyncio.Event] = []
        replayed = asyncio.Event()
        assert told(stage.request(endpoint, "PUT")) == RECOVERED
        assert ["is over" in str(error) for error in errors] == [True, True]
        assert stage.names() == ["order"]
        stage.wait_until_free()

    def test_task_and_an_idle_connection(self, stage: Stage) -> None:
        """G1: a task that was left behind can't write over a connection that is in the pool."""
        left: list[Any] = []

        async def leave() -> None:
            async with stage.subject.database.connection() as connection:
                await connection.execute("SELECT 1")
                left.append(asyncio.Event())
                left.append(asyncio.ensure_future(linger(connection)))

        async def linger(connection: AsyncConnection[Any]) -> None:
            await left[0].wait()
            await a_execute(connection)

        async def finish() -> None:
            left[0].set()
            with pytest.raises(RuntimeError, match="the attempt of this code is over"):
                await left[1]

        assert stage.request(leave).status_code == 200
        stage.portal.call(finish)
        assert stage.request(stage.commit).status_code == 200
        assert stage.names() == []
        assert stage.proxy.accepted == 1

    @pytest.mark.parametrize("size", [1])
    def test_task_and_the_connection_of_another_request(self, stage: Stage) -> None:
        """G1: a task that was left behind can't commit what another request has begun."""
        tasks: list[asyncio.Task[None]] = []
        begun: list[asyncio.Event] = []

        async def linger(connection: AsyncConnection[Any]) -> None:
            await begun[0].wait()
            await connection.commit()

        async def leave() -> None:
            async with stage.subject.database.connection() as connection:
                await connection.execute("SELECT 1")
                begun.append(asyncio.Event())
                tasks.append(asyncio.ensure_future(linger(connection)))

        async def half() -> None:
            await stage.add("half")
            begun[0].set()
            await stage.execute(stage.sleep(0.1))  # it waits for its turn
            with pytest.raises(RuntimeError, match="the attempt of this code is over"):
                await tasks[0]
            assert await stage.execute("SELECT name FROM things") == [("half",)]

        assert stage.request(leave).status_code == 200
        assert stage.request(half, "POST").status_code == 200
        assert stage.names() == []
        assert stage.proxy.accepted == 1

    def test_given_up_and_carried_out(self, stage: Stage) -> None:
        """G4: a statement that the app gave up may have been carried out, so a commit after it
        counts, and what fails then is not replayed."""
        stage.server.execute(STUBBORN)

        @rollback_safe
        async def endpoint() -> None:
            insert = asyncio.ensure_future(stage.execute("INSERT INTO things SELECT app.wait()"))
            await asyncio.to_thread(stage.server.wait_for_sleep)
            insert.cancel()
            with pytest.raises(asyncio.CancelledError):
                await insert
            await stage.commit()
            stage.proxy.cut("reset", at=1)
            await stage.execute("SELECT 1")

        assert told(stage.request(endpoint, "POST")) == (503, "1", "committed")
        assert stage.names() == ["waited"]

    def test_given_up_and_swallowed(self, unit: Stage) -> None:
        """A statement that the app gave up has aborted the transaction: the client is not told that
        all went well."""

        async def endpoint() -> None:
            await unit.add("a")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(unit.execute("SELECT pg_sleep(20)"), 0.1)

        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            unit.request(endpoint, "POST")
        assert unit.names() == []

    def test_statement_that_the_app_gave_up(self, stage: Stage) -> None:
        """G5: after a time limit of the app's own, it may roll back and go on."""

        async def endpoint() -> None:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(stage.execute("SELECT pg_sleep(20)"), 0.1)
            await stage.rollback()
            await stage.add("a")
            await stage.commit()

        assert told(stage.request(endpoint, "POST")) == (200, None, None)
        assert stage.names() == ["a"]
        assert stage.proxy.accepted == 2  # the other one was to cancel the statement

    def test_cancelled_while_the_server_is_silent(self, stage: Stage) -> None:
        """G6: a request that is cancelled while nothing is answered ends all the same."""
        started = threading.Event()

        async def endpoint() -> None:
            await stage.add("a")
            stage.proxy.cut("blackhole", at=1)
            started.set()
            await stage.execute("SELECT 1")

        async def send() -> None:
            try:
                await stage.asgi(endpoint, "POST", {})
            finally:
                ended.set()

        ended = threading.Event()
        request = stage.portal.start_task_soon(send)
        assert started.wait(10)
        stage.proxy.wait_for_faults()
        with stage.proxy.refuse():  # a request to cancel the statement
            request.cancel()
            assert ended.wait(12)
        stage.wait_until_free()
        assert stage.names() == []


# Without a middleware, or without a server.


@pytest.fixture(scope="module")
def two_phase() -> Iterator[PostgreSQL]:
    """A server with two-phase commits."""
    with PostgreSQL(max_connections=5, settings={"max_prepared_transactions": 9}) as server:
        server.execute("CREATE SCHEMA app AUTHORIZATION app")
        server.execute("CREATE TABLE app.things (name VARCHAR(50))")
        server.execute("ALTER TABLE app.things OWNER TO app")
        yield server


TWO_PHASE = {
    "prepared": (("tpc_prepare", "CUT", "tpc_commit"), (503, "1", "unknown")),
    "preparing": (("CUT", "tpc_prepare"), (503, "1", "unknown")),
    "failed after preparing": (("tpc_prepare", "CUT", "tpc_recover"), (503, "1", "committed")),
    "committed in one phase": (("CUT", "tpc_commit"), (503, "1", "unknown")),
    "failed after committing": (("tpc_commit", "CUT", "tpc_recover"), (503, "1", "committed")),
    "rolled back": (("tpc_rollback", "CUT", "tpc_recover"), RECOVERED),
}


@pytest.mark.parametrize("way", TWO_PHASE)
def test_two_phase_commit(two_phase: PostgreSQL, way: str) -> None:
    """G4: what is prepared outlives the attempt, so it counts as committed."""
    steps, expected = TWO_PHASE[way]
    with (
        FaultProxy((two_phase.host, two_phase.port), "postgresql") as proxy,
        Pool(connection_class=Connection, **options(two_phase, proxy)) as pool,
    ):
        stage = Stage(subject_of(Database(pool)), "wsgi", two_phase, proxy, None)  # type: ignore[arg-type]

        @rollback_safe
        async def endpoint() -> None:
            with stage.subject.database.connection() as connection:
                connection.tpc_begin(f"{way} {current_attempt().number}")
                execute(connection)
                for step in steps:
                    if step != "CUT":
                        getattr(connection, step)()
                    elif is_first():
                        proxy.cut("reset", at=1)

        assert told(stage.request(endpoint, "POST")) == expected


@pytest.mark.parametrize(
    "pool",
    [
        lambda **options: ConnectionPool(open=False, **options),
        lambda **options: NullConnectionPool(open=False, max_size=1, **options),
    ],
)
def test_pool_that_is_not_open(pool: Callable[..., Any]) -> None:
    """To open the pool is the app's business; what the pool raises passes."""
    database = Database(pool(connection_class=Connection))
    with pytest.raises(PoolClosed, match="not open yet"), database.connection():
        pass


@pytest.mark.parametrize(
    ("pool", "error", "message"),
    [
        (lambda: "pool", TypeError, "pool is 'pool'; allowed: a psycopg_pool.ConnectionPool"),
        (
            lambda: ConnectionPool(open=False),
            TypeError,
            r"connection_class=retrymw.adapters.psycopg.Connection\)",
        ),
        (
            lambda: ConnectionPool(open=False, connection_class=Connection, close_returns=True),
            (ValueError, TypeError),  # with psycopg 3.2 it is the pool that refuses
            "close_returns=True",
        ),
    ],
)
def test_wrong_pool(pool: Callable[[], Any], error: Any, message: str) -> None:
    """A pool that can't work is refused at start-up, with the fix."""
    with pytest.raises(error, match=message):
        Database(pool())


def test_wrong_async_pool() -> None:
    """A pool of the other kind is refused at start-up."""
    with pytest.raises(TypeError, match=r"allowed: a psycopg_pool\.AsyncConnectionPool"):
        AsyncDatabase(ConnectionPool(open=False, connection_class=Connection))  # type: ignore[arg-type]


def test_wrong_commit() -> None:
    """``commit`` is checked at start-up."""
    with pytest.raises(ValueError, match="commit is 'yes'"):
        Database(ConnectionPool(open=False, connection_class=Connection), commit="yes")  # type: ignore[arg-type]


def test_null_pool(postgresql: PostgreSQL, postgresql_proxy: FaultProxy) -> None:
    """A NullConnectionPool opens a connection for each use, and closes it."""
    arguments = options(postgresql, postgresql_proxy)
    with NullConnectionPool(connection_class=Connection, **arguments) as pool:
        database = Database(pool)
        for _ in range(2):
            with database.connection() as connection:
                connection.execute("SELECT 1")
            postgresql_proxy.wait_for_connections(0)
    assert postgresql_proxy.accepted == 2


def test_callbacks_of_the_pool(postgresql: PostgreSQL, postgresql_proxy: FaultProxy) -> None:
    """What the pool does with connections by itself, to check and to reset them, is its own."""
    resets: list[str] = []

    def reset(connection: Connection[Any]) -> None:
        connection.execute("RESET ALL")
        connection.commit()
        resets.append("done")

    arguments = options(postgresql, postgresql_proxy, max_size=1, check=Pool.check_connection)
    with Pool(connection_class=Connection, reset=reset, **arguments) as pool:
        stage = Stage(subject_of(Database(pool)), "wsgi", postgresql, postgresql_proxy, None)  # type: ignore[arg-type]
        for _ in range(3):
            assert told(stage.request(lambda: stage.execute("SELECT 1"))) == (200, None, None)
    assert resets[:2] == ["done"] * 2  # the last one may still be going on
    assert postgresql_proxy.accepted == 1


def test_all_that_psycopg_sends_is_known() -> None:
    """Whatever a psycopg connection waits for, the adapter knows what it is."""
    package = Path(psycopg.__file__).parent
    waits = re.compile(r"\.wait\(\s*(?:self\.)?(?:_conn\.)?(?:_pipeline\.)?(\w+)\(")
    found = {name for path in package.glob("*.py") for name in waits.findall(path.read_text())}
    known = {
        *_psycopg_watch._STATEMENTS,
        *_psycopg_watch._ENDS,
        *_psycopg_watch._GO_ON,
        "_commit_gen",
        "_rollback_gen",
        "_tpc_begin_gen",
        "_tpc_prepare_gen",
        "_tpc_finish_gen",
    }
    assert found - known == set()
    assert {"_execute_gen", "_commit_gen", "copy_end", "_fetch_gen"} <= found


def test_names_the_pool() -> None:
    """The object names its pool in logs."""
    pool = ConnectionPool(open=False, connection_class=Connection, name="shop")
    assert repr(Database(pool)) == "<Database 'shop'>"


class TestAccounting(Sync, AccountingConformance):
    """Every order is accounted for."""


class TestAsyncAccounting(Async, AccountingConformance):
    """Every order is accounted for."""
