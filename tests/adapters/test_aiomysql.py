"""Request-scoped connections of aiomysql and asyncmy, on a real MariaDB behind the fault proxy."""

from __future__ import annotations

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from time import monotonic
from types import ModuleType
from typing import Any, NamedTuple

import aiomysql
import anyio.to_thread
import asyncmy.cursors
import asyncmy.errors
import httpx
import pymysql
import pytest
import tenacity
from anyio.from_thread import BlockingPortal

import retrymw.adapters.aiomysql
import retrymw.adapters.asyncmy
from retrymw import (
    DisconnectionError,
    RetryPolicy,
    TooManyConnections,
    current_attempt,
    idempotent,
    rollback_safe,
)
from retrymw.adapters.aiomysql import AsyncDatabase
from retrymw.asgi import RetryMiddleware
from retrymw.testing import FaultProxy
from retrymw.testing.conformance import (
    AccountingConformance,
    AdapterConformance,
    Subject,
    UnitOfWorkConformance,
)
from retrymw.testing.conformance._stage import things as table_of_things
from retrymw.testing.servers import MariaDB

Endpoint = Callable[[], Awaitable[object]]
Things = Callable[[], list[str]]


class Driver(NamedTuple):
    """One of the two, and what they call by other names."""

    adapter: ModuleType
    error: type[Exception]
    database: str
    unbuffered: type

    def arguments(self, server: MariaDB, proxy: FaultProxy) -> dict[str, Any]:
        arguments = server.connect_args(host=proxy.host, port=proxy.port)
        return {self.database: arguments.pop("database"), **arguments}


DRIVERS = {
    "aiomysql": Driver(retrymw.adapters.aiomysql, pymysql.err.MySQLError, "db", aiomysql.SSCursor),
    "asyncmy": Driver(
        retrymw.adapters.asyncmy,
        asyncmy.errors.MySQLError,
        "database",
        asyncmy.cursors.SSCursor,
    ),
}


def make_subject(database: Any, unit: Subject | None = None) -> Subject:
    """The adapter as the conformance suite wants it."""

    async def commit() -> None:
        async with database.connection() as connection:
            await connection.commit()

    async def rollback() -> None:
        async with database.connection() as connection:
            await connection.rollback()

    async def in_transaction(sql: str) -> list[Any]:
        return await execute(database, sql)

    return Subject(
        database=database,
        execute=in_transaction,
        commit=commit,
        rollback=rollback,
        in_use=lambda: in_use(database),
        unit=unit,
    )


class OnMariaDB:
    """The suite, for aiomysql."""

    shells = ("asgi",)
    driver = DRIVERS["aiomysql"]

    @pytest.fixture
    def server(self, mariadb: MariaDB) -> MariaDB:
        return mariadb

    @pytest.fixture
    def subject(
        self, server: MariaDB, proxy: FaultProxy, portal: BlockingPortal, size: int
    ) -> Iterator[Subject]:
        room = {"maxsize": size, "acquire_timeout": 0.2}
        arguments = self.driver.arguments(server, proxy) | room
        database = self.driver.adapter.AsyncDatabase(**arguments)
        unit = self.driver.adapter.AsyncDatabase(**arguments, commit="on-success")
        yield make_subject(database, make_subject(unit))
        portal.call(database.close)
        portal.call(unit.close)


class TestConformanceOnMariaDB(OnMariaDB, AdapterConformance, UnitOfWorkConformance):
    """The conformance suite."""


class TestAccountingOnMariaDB(OnMariaDB, AccountingConformance):
    """Every order is accounted for."""


# What is special to the two. These tests run on an event loop, and the proxy in its own thread.


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    """Each of the two drivers."""
    return DRIVERS[request.param]


@pytest.fixture
async def open_database(
    driver: Driver, mariadb: MariaDB, mariadb_proxy: FaultProxy, anyio_backend: str
) -> AsyncIterator[Callable[..., Any]]:
    """Make a database object that connects through the proxy."""
    async with AsyncExitStack() as stack:

        def make(**options: Any) -> Any:
            defaults = driver.arguments(mariadb, mariadb_proxy)
            options = {"maxsize": 2, "acquire_timeout": 0.2, "read_timeout": 5} | options
            database = driver.adapter.AsyncDatabase(**defaults | options)
            stack.push_async_callback(database.close)
            return database

        yield make


@pytest.fixture
def database(open_database: Callable[..., Any]) -> Any:
    """The usual one: a pool of two."""
    return open_database()


@pytest.fixture
def things(mariadb: MariaDB) -> Iterator[Things]:
    """A table, and what is stored in it."""
    with table_of_things(mariadb):
        yield lambda: [
            row[0] for row in mariadb.execute("SELECT name FROM app.things ORDER BY name")
        ]


def in_use(database: Any) -> int:
    return sum(pool.in_use for pool in database._pools.values())


async def execute(database: Any, sql: str, args: Any = None) -> list[Any]:
    async with database.connection() as connection, connection.cursor() as cursor:
        await cursor.execute(sql, args)
        return list(await cursor.fetchall()) if cursor.description else []


async def identity(database: Any) -> int:
    return (await execute(database, "SELECT CONNECTION_ID()"))[0][0]


async def settle(proxy: FaultProxy, connections: int) -> None:
    """Wait until so many clients are connected, while the event loop goes on."""
    await anyio.to_thread.run_sync(proxy.wait_for_connections, connections)


async def request(
    endpoint: Endpoint, *databases: Any, method: str = "GET", **options: Any
) -> httpx.Response:
    """One request to an app with one endpoint."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["endpoint"] = endpoint
        result = await endpoint()
        status = result if isinstance(result, int) else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": str(result).encode()})

    options = {"policy": RetryPolicy(wait=tenacity.wait_none())} | options
    transport = httpx.ASGITransport(RetryMiddleware(app, databases=databases, **options))
    async with httpx.AsyncClient(transport=transport, base_url="http://things") as client:
        return await client.request(method, "/")


def outcome(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.headers.get("retry-outcome")


def is_first() -> bool:
    return current_attempt().number == 1


# The pool.


@pytest.mark.anyio
async def test_pool_is_made_on_first_use(database: Any, mariadb_proxy: FaultProxy) -> None:
    """Nothing connects before the first use, and a healthy connection is used again."""
    assert mariadb_proxy.accepted == 0

    async def endpoint() -> str:
        return str(await identity(database))

    first = await request(endpoint, database)
    assert first.text == (await request(endpoint, database)).text
    assert mariadb_proxy.accepted == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what a loop leaves open
def test_each_event_loop_has_its_own_pool(
    driver: Driver, mariadb: MariaDB, mariadb_proxy: FaultProxy
) -> None:
    """A pool whose loop is gone is not used, and its connections go when another one is made."""
    database = driver.adapter.AsyncDatabase(**driver.arguments(mariadb, mariadb_proxy))
    first = asyncio.run(identity(database))
    assert mariadb_proxy.connections == 1

    async def second() -> None:
        assert await identity(database) != first
        await settle(mariadb_proxy, 1)
        await database.close()

    asyncio.run(second())
    mariadb_proxy.wait_for_connections(0)
    assert database._pools == {}
    gc.collect()


@pytest.mark.anyio
async def test_close(database: Any, mariadb_proxy: FaultProxy) -> None:
    """close() closes what is idle, and what is in use when it is given back; then all is new."""
    async with database.connection():
        async with database.connection():
            pass
        await settle(mariadb_proxy, 2)
        await database.close()
        await settle(mariadb_proxy, 1)
    await settle(mariadb_proxy, 0)
    assert await execute(database, "SELECT 1") == [(1,)]


@pytest.mark.anyio
async def test_closing_is_polite(database: Any, mariadb: MariaDB) -> None:
    """The server is told when a connection is closed at the end, or after a ping."""

    def aborted() -> int:
        return int(mariadb.execute("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")[0][1])

    before = aborted()
    await identity(database)
    await database.close()
    await database.ping()
    assert aborted() == before


@pytest.mark.anyio
async def test_close_is_bounded(database: Any, mariadb_proxy: FaultProxy) -> None:
    """A server that is silent does not keep the app from ending."""
    await identity(database)
    mariadb_proxy.cut_all("blackhole")
    start = monotonic()
    await database.close()
    assert monotonic() - start < 10


@pytest.mark.anyio
async def test_dry_pool(database: Any) -> None:
    """Who finds no connection waits for acquire_timeout, and gets an exception that says so."""
    async with database.connection(), database.connection():
        start = monotonic()
        with pytest.raises(TooManyConnections, match=r"none of the pool's 2 connections .* 0\.2 s"):
            await identity(database)
        assert 0.1 < monotonic() - start < 10
        await database.ping()  # which does not need the pool
    assert in_use(database) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["lost", "in a transaction"])
async def test_connection_that_is_not_kept_makes_room(
    open_database: Callable[..., Any], mariadb: MariaDB, things: Things, how: str
) -> None:
    """Who waits for a connection gets a new one as soon as one that is lost is given back."""
    database = open_database(maxsize=1, acquire_timeout=10)
    async with database.connection() as connection:
        waiting = asyncio.ensure_future(identity(database))
        await asyncio.sleep(0)
        async with connection.cursor() as cursor:
            await cursor.execute("INSERT INTO things VALUES ('a')")
            if how == "lost":
                mariadb.kill_connections()
    start = monotonic()
    await waiting
    assert monotonic() - start < 8
    assert things() == []


@pytest.mark.anyio
async def test_connect_that_hangs(
    open_database: Callable[..., Any], driver: Driver, mariadb_proxy: FaultProxy
) -> None:
    """It is given up after connect_timeout, and keeps nobody from connections that are idle."""
    database = open_database(connect_timeout=3)
    async with database.connection():
        mariadb_proxy.cut("blackhole", at="connect")
        hanging = asyncio.ensure_future(identity(database))
        await anyio.to_thread.run_sync(mariadb_proxy.wait_for_faults)
    await identity(database)
    assert not hanging.done()
    with pytest.raises(driver.error, match="2003"):
        await hanging
    assert in_use(database) == 0


@pytest.mark.anyio
async def test_cancelled_while_connecting(database: Any, mariadb_proxy: FaultProxy) -> None:
    """G6: who gives up while it connects, or waits for a connection, leaves nothing behind."""
    mariadb_proxy.cut("blackhole", at="connect")
    connecting = asyncio.ensure_future(identity(database))
    await anyio.to_thread.run_sync(mariadb_proxy.wait_for_faults)
    for _ in range(50):  # until it waits for the greeting: before that wait_for() may lose a cancel
        await asyncio.sleep(0)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    async with database.connection(), database.connection():
        waiting = asyncio.ensure_future(identity(database))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert in_use(database) == 0
    async with database.connection(), database.connection():
        assert in_use(database) == 2


@pytest.mark.anyio
async def test_recycle(open_database: Callable[..., Any]) -> None:
    """A connection that was idle for longer than pool_recycle is replaced."""
    for recycle, is_kept in ((60, True), (0.01, False)):
        database = open_database(pool_recycle=recycle)
        first = await identity(database)
        await asyncio.sleep(0.05)
        assert (await identity(database) == first) is is_kept


@pytest.mark.anyio
async def test_idle_connection_that_was_dropped(
    database: Any, mariadb: MariaDB, mariadb_proxy: FaultProxy
) -> None:
    """A connection that the server closed while it was idle is not handed out."""
    await identity(database)
    mariadb.kill_connections()
    await settle(mariadb_proxy, 0)

    async def endpoint() -> str:
        return str(await identity(database))

    assert outcome(await request(endpoint, database)) == (200, None)


@pytest.mark.anyio
async def test_connection_that_was_dropped_unnoticed(
    database: Any, mariadb: MariaDB, mariadb_proxy: FaultProxy
) -> None:
    """A connection that the server closed while it was lent is not kept, and costs no replay."""

    async def endpoint() -> str:
        before = await identity(database)
        mariadb.kill_connections()
        await settle(mariadb_proxy, 0)
        return str(before)

    assert outcome(await request(endpoint, database)) == (200, None)
    assert in_use(database) == 0
    assert await execute(database, "SELECT 1") == [(1,)]


@pytest.mark.anyio
async def test_one_silent_connection_renews_the_pool(
    open_database: Callable[..., Any], mariadb_proxy: FaultProxy
) -> None:
    """After a server fell silent one replay is enough: the others are not tried one by one."""
    database = open_database(read_timeout=1)
    async with database.connection(), database.connection():
        pass
    mariadb_proxy.cut_all("blackhole")

    async def endpoint() -> str:
        return str(await identity(database))

    response = await request(endpoint, database)
    assert (response.headers["retry-attempts"], *outcome(response)) == ("2", 200, "recovered")


@pytest.mark.anyio
async def test_cancelled_statement(database: Any, mariadb_proxy: FaultProxy) -> None:
    """A statement that is cancelled costs its connection, and no other one."""
    async with database.connection(), database.connection():
        pass  # two connections in the pool
    async with database.connection() as connection:
        mariadb_proxy.cut("blackhole", at=1)
        statement = asyncio.ensure_future(connection.query("SELECT 1"))
        await anyio.to_thread.run_sync(mariadb_proxy.wait_for_faults)
        statement.cancel()
        with pytest.raises(asyncio.CancelledError):
            await statement
    mariadb_proxy.clear()
    await settle(mariadb_proxy, 1)
    assert in_use(database) == 0
    await identity(database)
    assert mariadb_proxy.accepted == 2


@pytest.mark.anyio
async def test_client_that_left(database: Any, mariadb_proxy: FaultProxy) -> None:
    """G6: a request that is cancelled in a statement costs its connection, and no other one."""
    async with database.connection(), database.connection():
        pass  # two connections in the pool

    async def endpoint() -> None:
        mariadb_proxy.cut("blackhole", at=1)
        await execute(database, "SELECT 1")

    running = asyncio.ensure_future(request(endpoint, database))
    await anyio.to_thread.run_sync(mariadb_proxy.wait_for_faults)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    mariadb_proxy.clear()
    await settle(mariadb_proxy, 1)
    assert in_use(database) == 0
    await identity(database)
    assert mariadb_proxy.accepted == 2


# Statements.


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Truncated incorrect:pymysql.err.Warning")
async def test_tasks_take_turns(database: Any) -> None:
    """Tasks of one attempt that use the connection at once all get their own answers."""

    async def ask(number: int) -> int:
        # The warning makes the cursor ask for more after the answer.
        rows = await execute(database, "SELECT %s, CAST('x' AS UNSIGNED)", (number,))
        return int(rows[0][0])

    async def endpoint() -> None:
        assert await asyncio.gather(*map(ask, range(50))) == list(range(50))

    assert outcome(await request(endpoint, database)) == (200, None)


@pytest.mark.anyio
async def test_tasks_take_turns_outside_a_request(database: Any) -> None:
    """So do tasks that share a connection outside of attempts."""
    async with database.connection() as connection:

        async def ask(number: int) -> int:
            async with connection.cursor() as cursor:
                await cursor.execute("SELECT %s", (number,))
                return int((await cursor.fetchone())[0])

        assert await asyncio.gather(*map(ask, range(20))) == list(range(20))


@pytest.mark.anyio
async def test_task_in_a_statement_at_the_end(
    database: Any, driver: Driver, mariadb_proxy: FaultProxy
) -> None:
    """G6: a task that is still using the connection at the undo is cut off, and nobody gets it."""
    tasks: list[asyncio.Task[Any]] = []

    async def endpoint() -> None:
        async with database.connection():
            mariadb_proxy.cut("blackhole", at=1)
            tasks.append(asyncio.ensure_future(execute(database, "SELECT 1")))
            await anyio.to_thread.run_sync(mariadb_proxy.wait_for_faults)
        raise LookupError("a bug")

    start = monotonic()
    with pytest.raises(LookupError):
        await request(endpoint, database)
    with pytest.raises(driver.error):
        await tasks[0]
    assert monotonic() - start < 10
    assert in_use(database) == 0
    assert await execute(database, "SELECT 1") == [(1,)]


@pytest.mark.anyio
async def test_task_in_a_statement_after_the_end(
    database: Any, driver: Driver, mariadb_proxy: FaultProxy
) -> None:
    """G6: so is one that is left behind by an attempt that went well."""
    tasks: list[asyncio.Task[Any]] = []

    async def endpoint() -> None:
        async with database.connection():
            mariadb_proxy.cut("blackhole", at=1)
            tasks.append(asyncio.ensure_future(execute(database, "SELECT 1")))
            await anyio.to_thread.run_sync(mariadb_proxy.wait_for_faults)

    start = monotonic()
    assert outcome(await request(endpoint, database)) == (200, None)
    with pytest.raises(driver.error):
        await tasks[0]
    assert monotonic() - start < 10
    assert in_use(database) == 0


@pytest.mark.anyio
async def test_silent_server(
    open_database: Callable[..., Any], driver: Driver, mariadb_proxy: FaultProxy
) -> None:
    """A statement that is not answered fails after read_timeout, and the request is replayed."""
    database = open_database(read_timeout=1)
    causes: list[BaseException | None] = []

    async def endpoint() -> None:
        if is_first():
            await execute(database, "SELECT 1")
            mariadb_proxy.cut("blackhole", at=1)
        try:
            await execute(database, "SELECT 1")
        except driver.error as error:
            causes.append(error.__cause__)
            raise

    assert outcome(await request(endpoint, database)) == (200, "recovered")
    assert [str(cause) for cause in causes] == ["no answer in 1 s"]


@pytest.mark.anyio
async def test_silent_server_that_does_not_read(
    open_database: Callable[..., Any], driver: Driver, mariadb_proxy: FaultProxy
) -> None:
    """A statement that can't even be sent fails after read_timeout as well."""
    database = open_database(read_timeout=1)
    async with database.connection() as connection:
        await connection.begin()
        mariadb_proxy.cut_all("blackhole")
        async with connection.cursor() as cursor:
            with pytest.raises(driver.error, match="2013"):
                await cursor.execute("SELECT %s", ("x" * (12 << 20),))
    assert in_use(database) == 0


@pytest.mark.anyio
async def test_silent_while_rows_are_fetched(
    open_database: Callable[..., Any], driver: Driver, mariadb_proxy: FaultProxy
) -> None:
    """Rows of an unbuffered cursor are not waited for without a bound; the attempt is doomed."""
    database = open_database(read_timeout=1)

    async def endpoint() -> int:
        async with database.connection() as connection:
            cursor = await connection.cursor(driver.unbuffered)
            await cursor.execute("SELECT seq, REPEAT('x', 10000) FROM seq_1_to_10000")
            assert (await cursor.fetchone())[0] == 1
            if not is_first():
                return 200
            mariadb_proxy.cut_all("blackhole")
            try:
                await cursor.fetchall()
            except driver.error:
                return 500
        raise AssertionError("not reached")

    assert outcome(await request(endpoint, database)) == (200, "recovered")


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:Previous unbuffered result")
async def test_rows_that_nobody_fetched(
    database: Any, driver: Driver, mariadb_proxy: FaultProxy
) -> None:
    """A connection with a half-read answer is closed; nobody waits for the other half."""

    async def endpoint() -> str:
        async with database.connection() as connection:
            cursor = await connection.cursor(driver.unbuffered)
            await cursor.execute("SELECT CONNECTION_ID(), REPEAT('x', 10000) FROM seq_1_to_10000")
            row = await cursor.fetchone()
            mariadb_proxy.cut_all("blackhole")
            return str(row[0])

    start = monotonic()
    first = await request(endpoint, database)
    assert str(await identity(database)) != first.text
    assert monotonic() - start < 2


@pytest.mark.anyio
async def test_next_request_sees_what_is_new(
    database: Any, mariadb: MariaDB, things: Things
) -> None:
    """G1: mere reading leaves a snapshot, which the next request must not read from."""

    async def endpoint() -> str:
        return str(await execute(database, "SELECT * FROM things"))

    assert (await request(endpoint, database)).text == "[]"
    mariadb.execute("INSERT INTO app.things VALUES ('a')")
    assert (await request(endpoint, database)).text == "[('a',)]"


@pytest.mark.anyio
async def test_autocommit_does_not_leak(database: Any, things: Things) -> None:
    """G1: the next request finds a connection as the first one found it."""

    async def switch() -> None:
        async with database.connection() as connection:
            await connection.autocommit(True)

    async def forget() -> None:
        await execute(database, "INSERT INTO things VALUES ('forgotten')")

    assert outcome(await request(switch, database)) == (200, None)
    assert outcome(await request(forget, database)) == (200, None)
    assert things() == []


async def by_method(connection: Any) -> None:
    await connection.commit()


async def by_begin(connection: Any) -> None:
    await connection.begin()


async def by_switch(connection: Any) -> None:
    await connection.autocommit(True)


async def by_sql(connection: Any) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute("commit")


async def by_ddl(connection: Any) -> None:
    async with connection.cursor() as cursor:
        await cursor.execute("CREATE TABLE app.more (x INT)")


@pytest.mark.anyio
@pytest.mark.parametrize("commit", [by_method, by_begin, by_switch, by_sql, by_ddl])
async def test_lost_answer_to_a_commit(
    database: Any, mariadb: MariaDB, mariadb_proxy: FaultProxy, things: Things, commit: Any
) -> None:
    """G4: whatever commits, when its answer is lost the outcome is unknown."""

    @rollback_safe
    async def endpoint() -> None:
        async with database.connection() as connection:
            await execute(database, "INSERT INTO things VALUES ('a')")
            mariadb_proxy.cut("reset", at=1)
            await commit(connection)

    try:
        response = await request(endpoint, database, method="POST")
        assert outcome(response) == (503, "unknown")
        assert "retry-after" not in response.headers
    finally:
        mariadb.execute("DROP TABLE IF EXISTS app.more")


@pytest.mark.anyio
async def test_lost_write_in_a_transaction(
    database: Any, mariadb_proxy: FaultProxy, things: Things
) -> None:
    """G3: a write that is lost in a transaction committed nothing, so it is replayed."""

    @rollback_safe
    async def endpoint() -> None:
        if is_first():
            mariadb_proxy.cut("reset", at=2)  # asyncmy is compiled: no frame tells
        await execute(database, "INSERT INTO things VALUES ('a')")
        async with database.connection() as connection:
            await connection.commit()

    assert outcome(await request(endpoint, database, method="POST")) == (200, "recovered")
    assert things() == ["a"]


@pytest.mark.anyio
@pytest.mark.parametrize(("mark", "expected"), [(rollback_safe, 503), (idempotent, 200)])
async def test_lost_answer_under_autocommit(
    open_database: Callable[..., Any],
    mariadb_proxy: FaultProxy,
    things: Things,
    mark: Any,
    expected: int,
) -> None:
    """G4: under autocommit every write is its own COMMIT."""
    database = open_database(autocommit=True)

    @mark
    async def endpoint() -> None:
        await execute(database, "SELECT 1")
        if is_first():
            mariadb_proxy.cut("reset", at=1)
        await execute(database, "REPLACE INTO things VALUES ('a')")

    response = await request(endpoint, database, method="POST")
    assert outcome(response) == (expected, "unknown" if expected == 503 else "recovered")
    assert things() == ["a"]


@pytest.mark.anyio
async def test_lost_read_under_autocommit(
    open_database: Callable[..., Any], mariadb_proxy: FaultProxy
) -> None:
    """G3: under autocommit a read that is lost commits nothing, so a PUT is replayed."""
    database = open_database(autocommit=True)

    async def endpoint() -> None:
        await execute(database, "SELECT 1")
        if is_first():
            mariadb_proxy.cut("reset", at=1)
        await execute(database, "SELECT 2")

    assert outcome(await request(endpoint, database, method="PUT")) == (200, "recovered")


@pytest.mark.anyio
async def test_commit_that_was_never_sent(
    database: Any, mariadb_proxy: FaultProxy, things: Things
) -> None:
    """G3: commit() on a connection that is gone sends nothing, so nothing was committed."""

    @rollback_safe
    async def endpoint() -> None:
        async with database.connection() as connection:
            await execute(database, "INSERT INTO things VALUES ('a')")
            if is_first():
                mariadb_proxy.cut_all("reset")
                await settle(mariadb_proxy, 0)
            await connection.commit()

    assert outcome(await request(endpoint, database, method="POST")) == (200, "recovered")
    assert things() == ["a"]


@pytest.mark.anyio
async def test_connection_that_the_app_closed(database: Any) -> None:
    """Closing the attempt's connection is a mistake, and the message says so."""

    async def endpoint() -> None:
        async with database.connection() as connection:
            connection.close()
        async with database.connection():
            raise AssertionError("not reached")

    with pytest.raises(RuntimeError, match="was closed by the app"):
        await request(endpoint, database)
    assert in_use(database) == 0


@pytest.mark.anyio
async def test_bounded_rollback(
    open_database: Callable[..., Any], mariadb_proxy: FaultProxy, things: Things
) -> None:
    """A server that falls silent delays the rollback of a failed attempt by two seconds."""
    database = open_database(read_timeout=60)

    async def endpoint() -> None:
        await execute(database, "INSERT INTO things VALUES ('a')")
        mariadb_proxy.cut_all("blackhole")
        raise LookupError("a bug")

    start = monotonic()
    with pytest.raises(LookupError):
        await request(endpoint, database)
    assert 1 < monotonic() - start < 20
    assert in_use(database) == 0


@pytest.mark.anyio
async def test_outside_a_request(database: Any, things: Things) -> None:
    """In a script each block has a connection of its own, rolled back at its end."""

    async def script() -> None:
        async with database.connection() as connection, connection.cursor() as cursor:
            await cursor.execute("INSERT INTO things VALUES ('a')")
            await connection.commit()
            await cursor.execute("INSERT INTO things VALUES ('b')")
            raise LookupError("a bug")

    with pytest.raises(LookupError):
        await script()
    assert things() == ["a"]
    assert in_use(database) == 0


@pytest.mark.anyio
async def test_other_calls_take_part(database: Any, driver: Driver) -> None:
    """What else the drivers' connections can do works as it does without us."""
    async with database.connection() as connection:
        await connection.select_db("app")
        if driver is DRIVERS["aiomysql"]:  # asyncmy's is broken
            await connection.set_charset("utf8mb4")
        await connection.ping()
        async with connection.cursor() as cursor:
            await cursor.execute("SELECT 1; SELECT 2")
            assert await cursor.fetchone() == (1,)
            await cursor.nextset()
            assert await cursor.fetchone() == (2,)
            await cursor.executemany("SELECT %s", [(1,), (2,)])


# What outlives its attempt, and what a session keeps.


@pytest.mark.anyio
async def test_task_that_outlives_its_attempt(database: Any, things: Things) -> None:
    """G1, G4: gather() leaves a task behind; it stores nothing after the attempt was undone."""
    replayed, audited = asyncio.Event(), asyncio.Event()
    audits: list[asyncio.Task[None]] = []

    async def order() -> None:
        await execute(database, "INSERT INTO things VALUES ('order')")
        if is_first():
            raise DisconnectionError

    async def audit(connection: Any) -> None:
        if not is_first():
            return
        await replayed.wait()
        try:
            async with connection.cursor() as cursor:
                await cursor.execute("INSERT INTO things VALUES ('audit')")
            await connection.commit()
        finally:
            audited.set()

    async def endpoint() -> None:
        async with database.connection() as connection:
            audits.append(asyncio.ensure_future(audit(connection)))
            await asyncio.gather(order(), audits[-1])
            replayed.set()
            await audited.wait()
            await connection.commit()

    assert outcome(await request(endpoint, database, method="PUT")) == (200, "recovered")
    assert things() == ["order"]
    with pytest.raises(RuntimeError, match="the attempt of this code is over"):
        await audits[0]
    assert in_use(database) == 0


@pytest.mark.anyio
@pytest.mark.parametrize("waits", [False, True])
async def test_task_and_the_connection_of_another_request(
    open_database: Callable[..., Any], mariadb_proxy: FaultProxy, things: Things, waits: bool
) -> None:
    """G1: a task that was left behind can't commit what another request has begun, be it that it
    asks at once or that it has to wait for its turn; nor does it cost the other one anything."""
    database = open_database(maxsize=1)
    begun = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def linger(connection: Any) -> None:
        await begun.wait()
        await connection.commit()

    async def leave() -> None:
        async with database.connection() as connection:
            await connection.query("SELECT 1")
            tasks.append(asyncio.ensure_future(linger(connection)))

    async def half() -> str:
        await execute(database, "INSERT INTO things VALUES ('half')")
        begun.set()
        if waits:
            await execute(database, "SELECT SLEEP(0.1)")
        with pytest.raises(RuntimeError, match="the attempt of this code is over"):
            await tasks[0]
        return str(await execute(database, "SELECT name FROM things"))

    assert (await request(leave, database)).status_code == 200
    assert (await request(half, database, method="POST")).text == "[('half',)]"
    assert things() == []
    assert mariadb_proxy.accepted == 1


@pytest.mark.anyio
async def test_rollback_cuts_a_statement(
    database: Any, driver: Driver, mariadb: MariaDB, mariadb_proxy: FaultProxy
) -> None:
    """G1: the undo ends a statement at once, and not only when the connection is given back; that
    is no reason to give up the other connections of the pool."""
    async with database.connection(), database.connection():
        pass  # two connections in the pool

    async def endpoint() -> None:
        await execute(database, "SELECT 1")
        task = asyncio.ensure_future(execute(database, "SELECT SLEEP(20)"))
        await anyio.to_thread.run_sync(mariadb.wait_for_sleep)
        await database.rollback(current_attempt())
        with pytest.raises(driver.error):
            await task

    start = monotonic()
    assert (await request(endpoint, database)).status_code == 200
    assert monotonic() - start < 10
    assert in_use(database) == 0
    await identity(database)
    assert mariadb_proxy.accepted == 2


@pytest.mark.anyio
async def test_ping_does_not_go_on_with_half_a_transaction(
    database: Any, mariadb: MariaDB, mariadb_proxy: FaultProxy, things: Things
) -> None:
    """G4: ping() reconnects, but not in the midst of an attempt: its second half is not alone."""

    @rollback_safe
    async def endpoint() -> None:
        async with database.connection() as connection:
            await execute(database, "INSERT INTO things VALUES ('a')")
            if is_first():
                mariadb.kill_connections()
                await settle(mariadb_proxy, 0)
            await connection.ping()
            await execute(database, "INSERT INTO things VALUES ('b')")
            await connection.commit()

    assert outcome(await request(endpoint, database, method="POST")) == (200, "recovered")
    assert things() == ["a", "b"]


@pytest.mark.anyio
async def test_ping_reconnects_outside_a_request(
    database: Any, mariadb: MariaDB, mariadb_proxy: FaultProxy
) -> None:
    """G5: outside of attempts ping() does what the driver's does."""
    async with database.connection() as connection:
        mariadb.kill_connections()
        await settle(mariadb_proxy, 0)
        await connection.ping()
        await connection.query("SELECT 1")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "sql",
    [
        "",
        "USE information_schema",
        "LOCK TABLES things READ",
        "SELECT GET_LOCK('things', 0)",
        "CREATE TEMPORARY TABLE some (x INT)",
    ],
)
async def test_session_that_is_not_as_it_was(
    database: Any, mariadb_proxy: FaultProxy, things: Things, sql: str
) -> None:
    """G1: a connection whose session has more than a rollback undoes goes to nobody else, and the
    others of the pool stay."""
    async with database.connection(), database.connection():
        pass  # two connections in the pool

    async def endpoint() -> str:
        async with database.connection() as connection:
            number = connection.thread_id()
            await (execute(database, sql) if sql else connection.select_db("information_schema"))
            return str(number)

    touched = (await request(endpoint, database)).text
    await settle(mariadb_proxy, 1)
    assert str(await identity(database)) != touched
    assert await execute(database, "SELECT DATABASE()") == [("app",)]
    assert mariadb_proxy.accepted == 2


@pytest.mark.anyio
@pytest.mark.parametrize("ticks", range(5))
async def test_cancelled_as_a_connection_comes_back(database: Any, ticks: int) -> None:
    """G6: a cancellation that comes when a connection is about to be had is not swallowed."""
    async with database.connection():
        pass
    pool = database._pool()
    first, second = await pool.acquire(), await pool.acquire()
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0.05)
    pool.give_back(first, fit=True)
    for _ in range(ticks):
        await asyncio.sleep(0)
    if waiting.cancel():
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        pool.give_back(await waiting, fit=True)
    pool.give_back(second, fit=True)
    assert in_use(database) == 0
    async with database.connection(), database.connection():
        pass  # there is room for two


@pytest.mark.anyio
async def test_cancelled_as_a_connection_is_opened(
    database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: nor is one that comes when a connection was just opened."""
    opened = database._connection.open

    async def open_and_cancel(connection: Any) -> None:
        await opened(connection)
        asyncio.get_running_loop().call_soon(connecting.cancel)

    monkeypatch.setattr(database._connection, "open", open_and_cancel)
    connecting = asyncio.ensure_future(identity(database))
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert in_use(database) == 0


# Configuration.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hosst": "x"}, TypeError, "hosst='x'; allowed: what"),
        ({"loop": None, "sock": None}, TypeError, "(loop|sock)=None"),
        ({"maxsize": 0}, ValueError, "maxsize=0; allowed: a whole number from 1 up"),
        ({"maxsize": 2.5}, ValueError, "maxsize=2.5"),
        (
            {"acquire_timeout": 0},
            ValueError,
            "acquire_timeout=0; allowed: a finite number of seconds above 0",
        ),
        ({"read_timeout": None}, ValueError, "read_timeout=None"),
        ({"connect_timeout": float("inf")}, ValueError, "connect_timeout=inf"),
        ({"pool_recycle": "1h"}, ValueError, "pool_recycle='1h'"),
        ({"commit": "always"}, ValueError, "'always'; allowed: None, or 'on-success'"),
    ],
)
def test_wrong_options(
    driver: Driver, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """An option that can't work is refused at start-up, by name."""
    with pytest.raises(error, match=message):
        driver.adapter.AsyncDatabase(**options)


def test_repr_has_no_password(driver: Driver) -> None:
    """The object names its server in logs, and keeps the password to itself."""
    options = {"host": "db", "port": 3307, driver.database: "shop", "password": "secret"}
    assert repr(driver.adapter.AsyncDatabase(**options)) == "<AsyncDatabase db:3307/shop>"


@pytest.mark.anyio
async def test_tls_context_is_built_once(open_database: Callable[..., Any], driver: Driver) -> None:
    """Connections share one SSLContext: building it costs 16 ms of CPU, on the event loop."""
    database = open_database(ssl=True)
    with suppress(driver.error, ssl.SSLError, OSError):  # this server has no TLS
        await database.ping()
    first = database._connect_args["ssl"]
    with suppress(driver.error, ssl.SSLError, OSError):
        await database.ping()
    assert isinstance(first, ssl.SSLContext)
    assert database._connect_args["ssl"] is first


def test_both_are_async_databases(driver: Driver) -> None:
    """The two share their code, and differ in the driver."""
    assert issubclass(driver.adapter.AsyncDatabase, AsyncDatabase.__mro__[1])
