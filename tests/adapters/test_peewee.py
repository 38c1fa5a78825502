"""peewee databases whose state belongs to attempts, and release_connection."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import logging
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import httpx
import MySQLdb
import peewee
import psycopg.sql
import pytest
import tenacity
from playhouse.pool import MaxConnectionsExceeded, PooledMySQLDatabase, PooledPostgresqlDatabase

import retrymw.asgi
import retrymw.wsgi
from retrymw import RetryPolicy, current_attempt, idempotent, rollback_safe
from retrymw.adapters.peewee import Database, release_connection
from retrymw.marks import read_mark
from retrymw.testing import FaultProxy
from retrymw.testing.conformance import (
    AccountingConformance,
    AdapterConformance,
    Subject,
    UnitOfWorkConformance,
)
from retrymw.testing.conformance._stage import things
from retrymw.testing.servers import MariaDB, PostgreSQL

# peewee's pool asks mysqlclient's ping() not to reconnect.
pytestmark = pytest.mark.filterwarnings("ignore:The reconnect parameter of ping:DeprecationWarning")

Server = MariaDB | PostgreSQL
MAKERS: dict[str, Callable[..., Any]] = {
    "pymysql": PooledMySQLDatabase,
    "mysqlclient": PooledMySQLDatabase,
    "psycopg2": PooledPostgresqlDatabase,
    "psycopg": partial(PooledPostgresqlDatabase, prefer_psycopg3=True),
}


def open_pool(server: Server, driver: str, host: str, port: int, **options: Any) -> Any:
    """A pool of two connections, as peewee makes it."""
    arguments = server.connect_args(host=host, port=port)
    name = arguments.pop("dbname", None) or arguments.pop("database")
    if driver == "pymysql":
        arguments |= {"ssl_disabled": True, "connect_timeout": 10, "read_timeout": 30}
    if driver == "mysqlclient":
        arguments |= {"ssl_mode": "DISABLED", "connect_timeout": 10, "read_timeout": 30}
    return MAKERS[driver](name, **arguments | {"max_connections": 2, "timeout": 0.2} | options)


def subject_of(pool: Any, **options: Any) -> Subject:
    """What the suite does with a peewee database: a transaction begun by hand."""

    def execute(sql: str) -> list[tuple[Any, ...]]:
        if not pool.in_transaction():
            pool.session_start()
        cursor = pool.execute_sql(sql)
        return list(cursor.fetchall()) if cursor.description else []

    return Subject(
        database=Database(pool, **options),
        execute=execute,
        commit=pool.session_commit,
        rollback=pool.session_rollback,
        in_use=lambda: len(pool._in_use),
    )


def unit_of(pool: Any) -> Subject:
    """The same with a unit of work."""

    def execute(sql: str) -> list[tuple[Any, ...]]:
        cursor = pool.execute_sql(sql)
        return list(cursor.fetchall()) if cursor.description else []

    subject = subject_of(pool, commit="on-success")
    subject.execute = execute
    return subject


def choose(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let peewee take mysqlclient, which it does where PyMySQL is not installed."""
    if driver == "mysqlclient":
        monkeypatch.setattr(peewee, "mysql", MySQLdb)


class OnPool:
    """A subject over a pool, and one with a unit of work."""

    driver = ""

    @pytest.fixture
    def subject(
        self, server: Server, proxy: FaultProxy, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Subject]:
        choose(self.driver, monkeypatch)
        pools = [
            open_pool(server, self.driver, proxy.host, proxy.port, max_connections=size)
            for _ in range(2)
        ]
        subject = subject_of(pools[0])
        subject.unit = unit_of(pools[1])
        yield subject
        for pool in pools:
            pool.close_all()


class OnPyMySQL(OnPool):
    driver = "pymysql"

    @pytest.fixture
    def server(self, mariadb: MariaDB) -> MariaDB:
        return mariadb


class OnPsycopg2(OnPool):
    driver = "psycopg2"

    @pytest.fixture
    def server(self, postgresql: PostgreSQL) -> PostgreSQL:
        return postgresql


class TestConformanceOnPyMySQL(OnPyMySQL, AdapterConformance, UnitOfWorkConformance):
    """The suite."""


class TestConformanceOnMysqlclient(OnPyMySQL, AdapterConformance, UnitOfWorkConformance):
    """The suite."""

    driver = "mysqlclient"


class TestConformanceOnPsycopg2(OnPsycopg2, AdapterConformance, UnitOfWorkConformance):
    """The suite."""


class TestConformanceOnPsycopg(OnPsycopg2, AdapterConformance, UnitOfWorkConformance):
    """The suite."""

    driver = "psycopg"


class TestAccountingOnPyMySQL(OnPyMySQL, AccountingConformance):
    """Every order is accounted for."""


class TestAccountingOnPsycopg2(OnPsycopg2, AccountingConformance):
    """Every order is accounted for."""


class TestConformanceWithoutPool(AdapterConformance):
    """The suite, over a database that opens a connection for each attempt."""

    @pytest.fixture
    def server(self, mariadb: MariaDB) -> MariaDB:
        return mariadb

    @pytest.fixture
    def subject(self, server: MariaDB, proxy: FaultProxy) -> Subject:
        arguments = server.connect_args(host=proxy.host, port=proxy.port, ssl_disabled=True)
        database = peewee.MySQLDatabase(arguments.pop("database"), **arguments)
        subject = subject_of(database)
        subject.in_use = None
        return subject


# What is special to peewee, over each driver.


@dataclass
class Shop:
    """A server, the proxy before it, and how to open peewee databases there."""

    server: Server
    proxy: FaultProxy
    driver: str
    opened: list[Any]

    def open(self, **options: Any) -> Any:
        """A pool through the proxy, without an adapter."""
        pool = open_pool(self.server, self.driver, self.proxy.host, self.proxy.port, **options)
        self.opened.append(pool)
        return pool

    def adapted(self, commit: Any = None, **options: Any) -> tuple[Any, Database]:
        """A pool and its adapter."""
        pool = self.open(**options)
        return pool, Database(pool, commit=commit)

    def names(self) -> list[str]:
        """What is stored, as the server itself sees it."""
        return [row[0] for row in self.server.execute("SELECT name FROM app.things ORDER BY name")]

    @property
    def conflict(self) -> str:
        """A statement that fails like a deadlock."""
        if isinstance(self.server, MariaDB):
            return "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213"
        return "SELECT app.conflict()"

    @property
    def identity(self) -> str:
        """A query for the connection's id."""
        mariadb = isinstance(self.server, MariaDB)
        return "SELECT CONNECTION_ID()" if mariadb else "SELECT pg_backend_pid()"


@pytest.fixture(params=list(MAKERS))
def shop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A shop with a table of things."""
    driver: str = request.param
    name = "mariadb" if "mysql" in driver else "postgresql"
    server: Server = request.getfixturevalue(name)
    choose(driver, monkeypatch)
    opened: list[Any] = []
    with things(server):
        yield Shop(server, request.getfixturevalue(f"{name}_proxy"), driver, opened)
        for pool in opened:
            with suppress(Exception):
                pool.close_all()


def model(pool: Any) -> Any:
    """The table as a model."""

    class Thing(peewee.Model):  # type: ignore[misc]
        name = peewee.CharField(primary_key=True)

        class Meta:
            database = pool
            table_name = "things"

    return Thing


def request(
    endpoint: Callable[[], Any], *databases: Any, method: str = "POST", **options: Any
) -> httpx.Response:
    """A request to a WSGI app with one endpoint."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        result = endpoint()
        start_response(f"{result if isinstance(result, int) else 200} ", [])
        return [str(result).encode()]

    options = {"policy": RetryPolicy(wait=tenacity.wait_none())} | options
    middleware = retrymw.wsgi.RetryMiddleware(
        app, databases=databases, find_endpoint=lambda environ: endpoint, **options
    )
    with httpx.Client(transport=httpx.WSGITransport(middleware), base_url="http://shop") as http:
        return http.request(method, "/")


async def asgi_request(endpoint: Callable[[], Any], *databases: Any) -> httpx.Response:
    """A request to an ASGI app with one endpoint, a coroutine function."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["endpoint"] = endpoint
        body = str(await endpoint()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    policy = RetryPolicy(wait=tenacity.wait_none())
    middleware = retrymw.asgi.RetryMiddleware(app, databases=databases, policy=policy)
    transport = httpx.ASGITransport(middleware)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        return await client.get("/")


def told(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.headers.get("retry-outcome")


def is_first() -> bool:
    return current_attempt().number == 1


def assert_free(pool: Any) -> None:
    """Nothing is checked out, and the pool can give out all that it has."""
    assert pool._in_use == {}
    assert len(pool._connections) <= 2


RECOVERED = (200, "recovered")


def test_lost_insert_in_atomic(shop: Shop) -> None:
    """G3: what is lost in atomic() was not committed, so a @rollback_safe request is replayed."""
    pool, database = shop.adapted()
    Thing = model(pool)
    phases = []

    @rollback_safe
    def endpoint() -> None:
        with pool.atomic():
            Thing.create(name="a")
            if is_first():
                shop.proxy.cut("reset", at=1)
            Thing.create(name="b")

    hook = phases.append
    response = request(endpoint, database, hooks=[hook])
    assert told(response) == RECOVERED
    assert [failure.phase for failure in phases[0].failures] == ["execute"]
    assert shop.names() == ["a", "b"]
    assert_free(pool)


@pytest.mark.parametrize(("at", "stored"), [("commit", ["a"]), ("before-commit", [])])
def test_lost_end_of_atomic(shop: Shop, at: Any, stored: list[str]) -> None:
    """G4: the COMMIT that ends atomic() was sent, and nobody knows what became of it."""
    pool, database = shop.adapted()
    Thing = model(pool)

    @rollback_safe
    def endpoint() -> None:
        with pool.atomic():
            Thing.create(name="a")
            shop.proxy.cut("reset", at=at)

    assert told(request(endpoint, database)) == (503, "unknown")
    assert shop.names() == stored
    assert_free(pool)


@pytest.mark.parametrize(("mark", "expected"), [(rollback_safe, 503), (idempotent, 200)])
def test_lost_write_outside_of_atomic(shop: Shop, mark: Any, expected: int) -> None:
    """G4: outside of atomic() every write is its own commit."""
    pool, database = shop.adapted()
    Thing = model(pool)

    def endpoint() -> None:
        pool.connect()
        if is_first():
            shop.proxy.cut("reset", at=1)
        Thing.delete().execute()

    response = request(mark(endpoint), database)
    assert told(response) == (expected, "unknown" if expected == 503 else "recovered")


def test_lost_read_outside_of_atomic(shop: Shop) -> None:
    """G3: a read commits nothing, so a PUT whose read is lost is replayed."""
    pool, database = shop.adapted()
    Thing = model(pool)

    def endpoint() -> int:
        pool.connect(reuse_if_open=True)
        if is_first():
            shop.proxy.cut("reset", at=1)
        return len(Thing.select()) + 200

    assert told(request(endpoint, database, method="PUT")) == RECOVERED


def test_write_after_atomic_is_lost(shop: Shop) -> None:
    """G4: after an atomic() block that was committed, what fails is not replayed."""
    pool, database = shop.adapted()
    Thing = model(pool)

    @rollback_safe
    def endpoint() -> None:
        with pool.atomic():
            Thing.create(name="a")
        with pool.atomic():
            shop.proxy.cut("reset", at=1)
            Thing.create(name="b")

    assert told(request(endpoint, database)) == (503, "committed")
    assert shop.names() == ["a"]


def test_atomic_does_not_hide_the_cause(shop: Shop) -> None:
    """G7: leaving atomic() rolls back over a connection that is gone, and hides nothing."""
    pool, database = shop.adapted()
    Thing = model(pool)
    seen: list[tuple[BaseException, BaseException | None]] = []

    @rollback_safe
    def endpoint() -> None:
        try:
            with pool.atomic(), pool.atomic():
                if is_first():
                    shop.proxy.cut("reset", at=1)
                Thing.create(name="a")
        except peewee.PeeweeException as error:
            seen.append((error, current_attempt().seen))
            raise

    assert told(request(endpoint, database)) == RECOVERED
    [(error, first)] = seen
    assert error is first
    assert error.orig is not None  # type: ignore[attr-defined]


def test_swallowed_in_atomic(shop: Shop) -> None:
    """A failure that is swallowed within atomic() is raised again at its end, not committed."""
    pool, database = shop.adapted()
    Thing = model(pool)

    @rollback_safe
    def endpoint() -> None:
        with pool.atomic():
            Thing.create(name="a")
            if is_first():
                with suppress(peewee.PeeweeException):
                    pool.execute_sql(shop.conflict)

    assert told(request(endpoint, database)) == RECOVERED
    assert shop.names() == ["a"]


def test_savepoint_does_not_heal(shop: Shop) -> None:
    """After a conflict in a nested atomic() the whole transaction is to be rolled back."""
    pool, database = shop.adapted()
    Thing = model(pool)
    errors = []

    @rollback_safe
    def endpoint() -> None:
        with pool.atomic():
            Thing.create(name="a")
            if is_first():
                try:
                    with pool.atomic():
                        pool.execute_sql(shop.conflict)
                except peewee.PeeweeException as error:
                    errors.append(error)
                    try:
                        Thing.create(name="b")
                    except peewee.PeeweeException as again:
                        errors.append(again)

    assert told(request(endpoint, database)) == RECOVERED
    assert len(errors) == 2
    assert errors[0] is errors[1]
    assert shop.names() == ["a"]


def test_violated_constraint_is_no_failure(shop: Shop) -> None:
    """A savepoint heals what is no failure of ours, as it always does."""
    pool, database = shop.adapted()
    Thing = model(pool)

    def endpoint() -> None:
        with pool.atomic():
            Thing.create(name="a")
            with suppress(peewee.IntegrityError), pool.atomic():
                Thing.create(name="a")
            Thing.create(name="b")

    assert told(request(endpoint, database)) == (200, None)
    assert shop.names() == ["a", "b"]
    assert len(pool._connections) == 1


def test_lost_until_closed(shop: Shop) -> None:
    """A lost connection raises what it was lost with until it is closed; then there is another."""
    pool, database = shop.adapted()
    Thing = model(pool)
    errors = []

    def endpoint() -> None:
        pool.connect()
        shop.proxy.cut("reset", at=1)
        for action in (lambda: len(Thing.select()), pool.rollback, lambda: len(Thing.select())):
            try:
                action()
            except peewee.PeeweeException as error:
                errors.append(error)
        pool.close()
        Thing.create(name="a")

    assert told(request(endpoint, database)) == (200, None)
    assert len(errors) == 2
    assert errors[0] is errors[1]
    assert shop.names() == ["a"]
    assert_free(pool)


def test_app_that_opens_and_closes(shop: Shop) -> None:
    """peewee's own ways to open and close work in an attempt, and give back early."""
    pool, database = shop.adapted()
    Thing = model(pool)
    in_use = []

    def endpoint() -> None:
        pool.connect()
        with pytest.raises(peewee.OperationalError, match="already opened"):
            pool.connect()
        assert pool.connect(reuse_if_open=True) is False
        Thing.create(name="a")
        with pool.atomic(), pytest.raises(peewee.OperationalError, match="transaction is open"):
            pool.close()
        assert (pool.close(), pool.close()) == (True, False)
        in_use.append(len(pool._in_use))
        with pool.connection_context():
            Thing.create(name="b")
        in_use.append(len(pool._in_use))
        with pool:
            Thing.create(name="c")
        in_use.append(len(pool._in_use))
        assert pool.is_closed()

    assert told(request(endpoint, database)) == (200, None)
    assert in_use == [0, 0, 0]
    assert shop.names() == ["a", "b", "c"]
    assert shop.proxy.accepted == 1


def test_without_autoconnect(shop: Shop) -> None:
    """A database that does not connect by itself says so, as ever."""
    pool, database = shop.adapted(autoconnect=False)

    def endpoint() -> None:
        pool.execute_sql("SELECT 1")

    with pytest.raises(peewee.InterfaceError, match="not opened"):
        request(endpoint, database)
    for method in ("commit", "rollback"):
        with pytest.raises(peewee.InterfaceError, match="not open"):
            request(getattr(pool, method), database)


def test_dry_pool_is_squashed(shop: Shop) -> None:
    """A pool without a connection left is a shortage, even where the app makes a 500 of it."""
    pool, database = shop.adapted()
    held = [ThreadPoolExecutor(1) for _ in range(2)]
    for thread in held:
        thread.submit(pool.connect).result()

    def endpoint() -> int:
        try:
            pool.execute_sql("SELECT 1")
        except MaxConnectionsExceeded:
            for thread in held:
                thread.submit(pool.close).result()
            return 500
        return 200

    response = request(endpoint, database, method="GET")
    assert told(response) == RECOVERED
    assert response.headers["retry-reason"] == "too-many-connections"
    for thread in held:
        thread.shutdown()
    assert_free(pool)


# Commits that peewee does not know of.


def test_raw_cursor(shop: Shop) -> None:
    """G4: what is sent through database.cursor() is seen: a write is its own commit."""
    pool, database = shop.adapted()

    @rollback_safe
    def endpoint() -> None:
        with closing(pool.cursor()) as cursor:
            cursor.execute("INSERT INTO things VALUES (%s)", ("a",))
            assert cursor.rowcount == 1
            cursor.execute("SELECT name FROM things")
            assert list(cursor) == [("a",)]
            shop.proxy.cut("reset", at=1)
            cursor.execute("SELECT name FROM things")

    assert told(request(endpoint, database)) == (503, "committed")


def test_raw_cursor_in_atomic(shop: Shop) -> None:
    """G3, G4: within atomic() such a write is part of the transaction, and its COMMIT counts."""
    pool, database = shop.adapted()
    at: list[Any] = [2, "commit"]

    @rollback_safe
    def endpoint() -> None:
        with pool.atomic():
            if at:
                shop.proxy.cut("reset", at=at.pop(0))
            cursor = pool.cursor()
            cursor.executemany("INSERT INTO things VALUES (%s)", [("a",)])
            cursor.execute("SELECT name FROM things")

    response = request(endpoint, database)
    assert (response.headers["retry-attempts"], *told(response)) == ("2", 503, "unknown")
    assert shop.names() == ["a"]


def test_stored_procedure(shop: Shop) -> None:
    """G4: what a procedure does can't be known, so that it was called counts as a commit."""
    pool, database = shop.adapted()
    if isinstance(shop.server, MariaDB):
        shop.server.execute("CREATE PROCEDURE app.nothing() SELECT 1")
    else:
        shop.server.execute("CREATE FUNCTION app.nothing() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        shop.server.execute("GRANT ALL ON FUNCTION app.nothing() TO app")

    @rollback_safe
    def endpoint() -> None:
        with pool.cursor() as cursor:
            if shop.driver == "psycopg":  # it has no callproc()
                cursor.execute(psycopg.sql.SQL("SELECT app.nothing()"))
            else:
                cursor.callproc("nothing")
        shop.proxy.cut("reset", at=1)
        pool.execute_sql("SELECT 1")

    try:
        assert told(request(endpoint, database)) == (503, "committed")
    finally:
        if isinstance(shop.server, MariaDB):
            shop.server.execute("DROP PROCEDURE app.nothing")


def test_thread_that_is_left_in_a_statement(shop: Shop) -> None:
    """G1: what a thread still uses when its attempt ends is cut off, and goes to nobody."""
    pool, database = shop.adapted()
    sleep = "SELECT SLEEP(20)" if isinstance(shop.server, MariaDB) else "SELECT pg_sleep(20)"
    threads = ThreadPoolExecutor(2)
    futures = []

    def linger() -> None:
        pool.execute_sql(sleep)

    def endpoint() -> None:
        futures.append(threads.submit(contextvars.copy_context().run, linger))
        shop.server.wait_for_sleep()

    start = monotonic()
    assert told(request(endpoint, database)) == (200, None)
    with pytest.raises(peewee.PeeweeException):
        futures[0].result(10)
    assert monotonic() - start < 15
    threads.shutdown()
    assert (pool._in_use, pool._connections) == ({}, [])


def test_work_that_is_not_seen(shop: Shop) -> None:
    """G4: the COMMIT counts where the app has the driver's connection, whatever it did with it."""
    pool, database = shop.adapted()

    @rollback_safe
    def endpoint() -> None:
        with pool.atomic():
            pool.connection().cursor().execute("INSERT INTO things VALUES ('a')")
            shop.proxy.cut("reset", at="commit")

    assert told(request(endpoint, database)) == (503, "unknown")
    assert shop.names() == ["a"]


def test_autocommit_does_not_leak(shop: Shop) -> None:
    """G1: a connection that the app has switched does not go back to the pool."""
    pool, database = shop.adapted()

    def endpoint() -> None:
        connection = pool.connection()
        if "mysql" in shop.driver:
            connection.autocommit(False)
        else:
            connection.autocommit = False

    assert told(request(endpoint, database)) == (200, None)
    assert (pool._in_use, pool._connections) == ({}, [])


# Threads.


def test_requests_do_not_share(shop: Shop) -> None:
    """Two requests at once have each their own connection, though one thread starts both."""
    pool, database = shop.adapted()
    seen: list[set[int]] = [set(), set()]

    async def main() -> None:
        both = asyncio.Barrier(2) if hasattr(asyncio, "Barrier") else None

        def use(number: int) -> None:
            seen[number].add(pool.execute_sql(shop.identity).fetchone()[0])

        async def endpoint(number: int) -> None:
            use(number)
            if both is not None:
                await both.wait()
            for _ in range(3):
                await anyio.to_thread.run_sync(use, number)
                use(number)

        requests = [asgi_request(partial(endpoint, number), database) for number in range(2)]
        responses = await asyncio.gather(*requests)
        assert [response.status_code for response in responses] == [200, 200]

    asyncio.run(main())
    assert len(seen[0]) == len(seen[1]) == 1
    assert not seen[0] & seen[1] or not hasattr(asyncio, "Barrier")
    assert_free(pool)


def test_replay_has_a_fresh_one(shop: Shop) -> None:
    """A replay never gets the connection that failed."""
    pool, database = shop.adapted()
    seen = []

    def endpoint() -> None:
        seen.append(pool.execute_sql(shop.identity).fetchone()[0])
        if is_first():
            shop.proxy.cut("reset", at=1)
        pool.execute_sql(shop.identity)

    assert told(request(endpoint, database, method="GET")) == RECOVERED
    assert len(set(seen)) == 2
    assert_free(pool)


def test_threads_take_turns(shop: Shop) -> None:
    """Threads of one attempt open one connection, and each gets the answers to its own."""
    pool, database = shop.adapted()
    answers: dict[int, int] = {}

    def ask(number: int) -> None:
        answers[number] = int(pool.execute_sql("SELECT %s", (number,)).fetchone()[0])

    async def endpoint() -> None:
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(anyio.to_thread.run_sync, ask, number)

    assert told(anyio.run(asgi_request, endpoint, database)) == (200, None)
    assert answers == {number: number for number in range(40)}
    assert shop.proxy.accepted == 1
    assert_free(pool)


def test_connection_that_comes_too_late(shop: Shop) -> None:
    """G1: a thread that still waits for the pool when its attempt ends keeps nothing."""
    pool, database = shop.adapted(timeout=20)
    held = [ThreadPoolExecutor(1) for _ in range(2)]
    for thread in held:
        thread.submit(pool.connect).result()
    asking = threading.Event()
    late = ThreadPoolExecutor(1)
    futures = []

    def connect() -> None:
        asking.set()
        pool.connect()

    def endpoint() -> None:
        futures.append(late.submit(contextvars.copy_context().run, connect))
        assert asking.wait(10)
        raise LookupError("a bug")

    # The loan is there before the thread, or the thread may be too late for a connection at all.
    def first() -> None:
        pool.in_transaction()
        endpoint()

    with pytest.raises(LookupError):
        request(first, database)
    for thread in held:
        thread.submit(pool.close).result()
    with pytest.raises(RuntimeError, match=r"given back already|is over"):
        futures[0].result(20)
    for thread in (*held, late):
        thread.shutdown()
    assert_free(pool)


def test_connection_that_takes_too_long(shop: Shop) -> None:
    """G1: a connection that is made when its attempt is over already goes back at once."""
    pool, database = shop.adapted(connect_timeout=30)
    late = ThreadPoolExecutor(1)
    futures = []

    def endpoint() -> None:
        pool.in_transaction()
        shop.server.pause()
        futures.append(late.submit(contextvars.copy_context().run, pool.connect))
        shop.proxy.wait_for_connections(1)  # which can't be used while the server is stopped
        raise LookupError("a bug")

    start = monotonic()
    with pytest.raises(LookupError):
        request(endpoint, database)
    assert monotonic() - start < 20
    shop.server.resume()
    with pytest.raises(RuntimeError, match=r"given back already|is over"):
        futures[0].result(20)
    late.shutdown()
    assert_free(pool)


def test_release_does_not_wait_for_others_that_connect(shop: Shop) -> None:
    """G2: peewee holds the pool's lock while it connects; what is given back then, is later."""
    pool, database = shop.adapted(connect_timeout=30)
    other = ThreadPoolExecutor(1)
    futures = []

    def endpoint() -> None:
        pool.execute_sql("SELECT 1")
        shop.server.pause()
        futures.append(other.submit(pool.connect))
        shop.proxy.wait_for_connections(2)

    start = monotonic()
    assert told(request(endpoint, database)) == (200, None)
    assert monotonic() - start < 20
    shop.server.resume()
    assert futures[0].result(20) is True
    for thread in threading.enumerate():
        if thread.name == "retrymw-peewee":
            thread.join(20)
    assert len(pool._in_use) == 1
    other.submit(pool.close).result()
    other.shutdown()
    assert_free(pool)
    assert len(pool._connections) == 2


def test_cursor_that_outlives_its_attempt(shop: Shop) -> None:
    """G1: between the end of an attempt and its rollback a thread's cursor writes nothing."""
    pool, database = shop.adapted()
    cursors = []
    errors: list[RuntimeError] = []

    class Late:
        """A database that is rolled back after peewee's, in whose rollback the thread writes."""

        def rollback(self, attempt: Any) -> None:
            try:
                cursors[0]()
            except RuntimeError as error:
                errors.append(error)

        def release(self, attempt: Any) -> None: ...

        def ping(self) -> None: ...

    late = Late()

    def endpoint() -> None:
        current_attempt().resource(late)[late] = True
        cursor = pool.cursor()
        write = partial(cursor.execute, "INSERT INTO things VALUES ('late')")
        cursors.append(partial(contextvars.copy_context().run, write))
        raise LookupError("a bug")

    with pytest.raises(LookupError):
        request(endpoint, database, late)
    with pytest.raises(RuntimeError, match=r"given back already|is over"):
        cursors[0]()
    assert [type(error) for error in errors] == [RuntimeError]
    assert shop.names() == []
    assert_free(pool)


def test_outside_of_attempts(shop: Shop) -> None:
    """In a script each thread has a connection of its own, as in peewee itself."""
    pool, _ = shop.adapted()
    seen = []

    def script() -> None:
        with pool.connection_context():
            with closing(pool.connection().cursor()) as cursor:
                cursor.execute(shop.identity)
                identity = cursor.fetchone()[0]
            seen.append(identity)
            with pool.atomic():
                model(pool).create(name=str(identity))
            both.wait(10)

    both = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: script(), range(2)))
    assert len(set(seen)) == 2
    assert pool.is_closed()
    assert_free(pool)


# The unit of work.


def test_unit_of_work(shop: Shop) -> None:
    """All that an attempt does is one transaction: atomic() is a savepoint, close() waits."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)
    called = []

    @rollback_safe
    def endpoint() -> None:
        Thing.create(name="a")
        with suppress(LookupError), pool.atomic():
            Thing.create(name="undone")
            raise LookupError
        with pool:
            Thing.create(name="b")
        pool.after_commit(lambda: called.append(shop.names()))
        pool.close()
        if is_first():
            shop.proxy.cut("reset", at=1)
        Thing.create(name="c")
        assert shop.names() == []

    assert told(request(endpoint, database)) == RECOVERED
    assert shop.names() == ["a", "b", "c"]
    assert called == [["a", "b", "c"]]
    assert_free(pool)


def test_unit_of_work_goes_on_after_a_commit(shop: Shop) -> None:
    """What comes after a commit of the app's own is a transaction again, not autocommitted."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    def endpoint() -> int:
        Thing.create(name="a")
        pool.commit()
        Thing.create(name="b")
        return 400

    assert told(request(endpoint, database)) == (400, None)
    assert shop.names() == ["a"]


def test_commit_that_is_answered_with_a_rollback(shop: Shop) -> None:
    """G4: PostgreSQL rolls back what it is asked to commit after a refusal; no 200 is sent then."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)
    Thing.create(name="a")

    def endpoint() -> None:
        Thing.create(name="b")
        with suppress(peewee.IntegrityError):
            Thing.create(name="a")

    if isinstance(shop.server, MariaDB):
        assert told(request(endpoint, database)) == (200, None)
        assert shop.names() == ["a", "b"]
    else:
        with pytest.raises(peewee.InternalError, match="transaction is aborted"):
            request(endpoint, database)
        assert shop.names() == ["a"]


def test_refusal_that_a_savepoint_healed(shop: Shop) -> None:
    """What was refused within atomic() is undone there; the rest is committed."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    def endpoint() -> None:
        Thing.create(name="a")
        with suppress(peewee.IntegrityError), pool.atomic():
            Thing.create(name="a")

    assert told(request(endpoint, database)) == (200, None)
    assert shop.names() == ["a"]


@pytest.mark.parametrize("asgi", [False, True])
def test_after_commit_writes(shop: Shop, asgi: bool) -> None:
    """What functions of after_commit() write is committed, one by one, and nested ones' too."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    def later() -> None:
        Thing.create(name="b")
        pool.after_commit(lambda: Thing.create(name="c"))

    def endpoint() -> None:
        with pool.atomic():
            Thing.create(name="a")
            pool.after_commit(later)
            pool.after_commit(lambda: Thing.create(name="d"))

    async def wait() -> None:
        await anyio.to_thread.run_sync(endpoint)

    response = anyio.run(asgi_request, wait, database) if asgi else request(endpoint, database)
    assert told(response) == (200, None)
    assert shop.names() == ["a", "b", "c", "d"]
    assert_free(pool)


def test_after_commit_fails(shop: Shop) -> None:
    """G4: the error of such a function passes; what it wrote is undone, what went before stays."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    def broken() -> None:
        Thing.create(name="undone")
        raise LookupError("a bug")

    def endpoint() -> None:
        Thing.create(name="a")
        pool.after_commit(lambda: Thing.create(name="b"))
        pool.after_commit(broken)
        pool.after_commit(lambda: Thing.create(name="never"))

    with pytest.raises(LookupError):
        request(endpoint, database)
    assert shop.names() == ["a", "b"]
    assert_free(pool)


@pytest.mark.parametrize("refused", [False, True])
def test_unit_of_work_goes_on_after_ddl(shop: Shop, refused: bool) -> None:
    """DDL ends the transaction in MariaDB and MySQL, even if refused; then there is another."""
    if not isinstance(shop.server, MariaDB):
        pytest.skip("DDL is part of the transaction in PostgreSQL")
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    def endpoint() -> int:
        Thing.create(name="a")
        with suppress(peewee.PeeweeException):
            pool.execute_sql("DROP TABLE nowhere" if refused else "ANALYZE TABLE things")
        Thing.create(name="b")
        Thing.create(name="c")
        return 400

    assert told(request(endpoint, database)) == (400, None)
    assert shop.names() == ["a"]


def test_temporary_tables_commit_nothing(shop: Shop) -> None:
    """Making and dropping temporary tables ends no transaction, in MariaDB and MySQL neither."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    def endpoint() -> int:
        Thing.create(name="a")
        pool.execute_sql("CREATE TEMPORARY TABLE passing (name VARCHAR(50))")
        Thing.create(name="b")
        if isinstance(shop.server, MariaDB):
            pool.execute_sql("DROP TEMPORARY TABLE passing")
        Thing.create(name="c")
        return 400

    assert told(request(endpoint, database)) == (400, None)
    assert shop.names() == []


def test_unit_of_work_goes_on_after_a_refused_commit(shop: Shop) -> None:
    """A COMMIT that is refused ends the transaction, and what comes after is one again."""
    if not isinstance(shop.server, PostgreSQL):
        pytest.skip("only PostgreSQL checks constraints in a COMMIT")
    shop.server.execute(
        "ALTER TABLE app.things ADD CONSTRAINT once UNIQUE (name) DEFERRABLE INITIALLY DEFERRED, "
        "DROP CONSTRAINT things_pkey"
    )
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    def endpoint() -> int:
        Thing.create(name="a")
        Thing.create(name="a")
        with pytest.raises(peewee.IntegrityError):
            pool.commit()
        Thing.create(name="b")
        Thing.create(name="c")
        return 400

    assert told(request(endpoint, database)) == (400, None)
    assert shop.names() == []


@pytest.mark.parametrize("end", ["session_commit", "session_rollback"])
def test_unit_of_work_goes_on_after_a_session(shop: Shop, end: str) -> None:
    """peewee's session methods end the transaction; atomic() is a savepoint in the next one."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    def endpoint() -> int:
        Thing.create(name="a")
        assert getattr(pool, end)() is True
        Thing.create(name="b")
        with pool.atomic():
            Thing.create(name="c")
        return 400

    assert told(request(endpoint, database)) == (400, None)
    assert shop.names() == (["a"] if end == "session_commit" else [])


def test_connect_after_close_in_a_unit_of_work(shop: Shop) -> None:
    """close() does nothing there, so connect() says that the connection is open."""
    pool, database = shop.adapted("on-success")

    def endpoint() -> None:
        assert pool.connect() is True
        assert pool.close() is False
        assert pool.connect() is False
        pool.execute_sql("SELECT 1")

    assert told(request(endpoint, database)) == (200, None)
    assert_free(pool)


def test_unit_of_work_before_the_first_statement(shop: Shop) -> None:
    """atomic() is a savepoint and after_commit() waits, though nothing was sent before them."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)
    called = []

    def endpoint() -> None:
        pool.after_commit(lambda: called.append(shop.names()))
        with suppress(LookupError), pool.atomic():
            Thing.create(name="undone")
            raise LookupError
        Thing.create(name="a")

    assert told(request(endpoint, database)) == (200, None)
    assert shop.names() == ["a"]
    assert called == [["a"]]
    assert_free(pool)


def test_after_commit_without_a_statement(shop: Shop) -> None:
    """What after_commit() was given is called even where there was nothing to commit."""
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    def endpoint() -> None:
        pool.after_commit(lambda: Thing.create(name="a"))

    assert told(request(endpoint, database)) == (200, None)
    assert shop.names() == ["a"]
    assert_free(pool)


def test_locked_tables_stay_locked(shop: Shop) -> None:
    """G4: LOCK TABLES ends the transaction, and a BEGIN would unlock: each write is a commit."""
    if not isinstance(shop.server, MariaDB):
        pytest.skip("PostgreSQL has no such statement")
    pool, database = shop.adapted("on-success")
    Thing = model(pool)

    @rollback_safe
    def endpoint() -> int:
        pool.execute_sql("LOCK TABLES things WRITE")
        Thing.create(name="a")
        with pytest.raises(peewee.OperationalError, match="was not locked"):
            pool.execute_sql("SELECT * FROM elsewhere")
        pool.execute_sql("UNLOCK TABLES")
        Thing.create(name="b")
        shop.proxy.cut("reset", at=1)
        Thing.create(name="c")
        return 200

    assert told(request(endpoint, database)) == (503, "committed")
    assert shop.names() == ["a"]


def test_changed_session_does_not_leak(shop: Shop) -> None:
    """G1: a connection with something that a rollback leaves does not go back to the pool."""
    pool, database = shop.adapted()

    def endpoint() -> None:
        pool.execute_sql("CREATE TEMPORARY TABLE passing (name VARCHAR(50))")

    assert told(request(endpoint, database)) == (200, None)
    assert (pool._in_use, pool._connections) == ({}, [])


# What is refused at start-up.


@pytest.mark.parametrize(
    "wrong", [None, peewee.SqliteDatabase(":memory:"), peewee.DatabaseProxy(), "mysql://"]
)
def test_wrong_database(wrong: Any) -> None:
    """What can't work is refused at start-up, by name."""
    with pytest.raises(TypeError, match="database="):
        Database(wrong)


def test_wrong_arguments() -> None:
    """A database has one adapter, and commit is None or "on-success"."""
    pool = PooledMySQLDatabase("shop")
    with pytest.raises(ValueError, match="commit is 'always'"):
        Database(pool, commit="always")  # type: ignore[arg-type]
    Database(pool)
    with pytest.raises(ValueError, match="has an adapter already"):
        Database(pool)
    for wrong in (None, "shop", print):
        with pytest.raises(TypeError, match="release_connection was given"):
            release_connection(wrong)


def test_async_database_is_refused() -> None:
    """peewee's asyncio databases keep their state by task already, and have other methods."""
    from playhouse.pwasyncio import AsyncMySQLDatabase

    with pytest.raises(TypeError, match="not async"):
        Database(AsyncMySQLDatabase("shop"))


def test_repr_has_no_password() -> None:
    """The object names its database in logs, and keeps the password to itself."""
    names = {"shop": "shop", "postgresql://u:secret@db/shop?password=secret": "db/shop"}
    names["dbname=shop password=secret"] = ""
    for name, shown in names.items():
        assert repr(Database(PooledPostgresqlDatabase(name))) == f"<Database {shown}>".replace(
            "<Database >", "<Database >"
        )


# release_connection.


def in_threads(count: int, call: Callable[[], object]) -> list[object]:
    """What a call returned, or raised, in threads that all live until the last one is done."""
    start, end = threading.Barrier(count), threading.Barrier(count)

    def run(_: int) -> object:
        start.wait(20)
        try:
            return call()
        except MaxConnectionsExceeded as error:
            return error
        finally:
            end.wait(60)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


@pytest.mark.parametrize("adapted", [False, True])
def test_fifty_threads_and_two_connections(shop: Shop, adapted: bool) -> None:
    """Threads that keep their connection leave none to the others; with the decorator all work."""
    pool = shop.open(timeout=0.5)
    if adapted:
        Database(pool)

    def read() -> int:
        return int(pool.execute_sql("SELECT 1").fetchone()[0])

    kept = in_threads(50, read)
    assert sum(answer == 1 for answer in kept) == 2
    assert sum(isinstance(answer, MaxConnectionsExceeded) for answer in kept) == 48
    pool.close_all()

    patient = shop.open(timeout=30)
    if adapted:
        Database(patient)

    @release_connection(patient)
    def read_and_release() -> int:
        return int(patient.execute_sql("SELECT 1").fetchone()[0])

    assert in_threads(50, read_and_release) == [1] * 50
    assert_free(patient)
    assert shop.proxy.accepted <= 4


class Repository:
    """A data layer, by kind of function."""

    def __init__(self, pool: Any, seen: list[int]) -> None:
        self.pool = pool
        self.seen = seen

    def use(self) -> int:
        self.seen.append(len(self.pool._in_use))
        return int(self.pool.execute_sql("SELECT 1").fetchone()[0])


def kinds(pool: Any) -> dict[str, Callable[[bool], list[int]]]:
    """For each kind of function, one that yields or returns 1, and may raise."""
    released = release_connection(pool)

    def one(fails: bool) -> int:
        number = int(pool.execute_sql("SELECT 1").fetchone()[0])
        assert len(pool._in_use) == 1
        if fails:
            raise LookupError("a bug")
        return number

    @released
    def function(fails: bool) -> int:
        return one(fails)

    class Layer:
        @released
        def method(self, fails: bool) -> int:
            return one(fails)

        @classmethod
        @released
        def for_class(cls, fails: bool) -> int:
            return one(fails)

    @released
    def generator(fails: bool) -> Iterator[int]:
        yield one(False)
        yield one(fails)

    @released
    async def coroutine(fails: bool) -> int:
        await asyncio.sleep(0)
        return one(fails)

    @released
    async def async_generator(fails: bool) -> AsyncIterator[int]:
        yield one(False)
        await asyncio.sleep(0)
        yield one(fails)

    async def collect(fails: bool) -> list[int]:
        return [item async for item in async_generator(fails)]

    return {
        "function": lambda fails: [function(fails)],
        "method": lambda fails: [Layer().method(fails)],
        "classmethod": lambda fails: [Layer.for_class(fails)],
        "generator": lambda fails: list(generator(fails)),
        "coroutine function": lambda fails: [asyncio.run(coroutine(fails))],
        "async generator function": lambda fails: asyncio.run(collect(fails)),
    }


KINDS = list(kinds(PooledMySQLDatabase("shop")))


@pytest.mark.parametrize("inside", [False, True], ids=["in a thread", "in an attempt"])
@pytest.mark.parametrize("kind", KINDS)
def test_released_at_the_end(shop: Shop, kind: str, inside: bool) -> None:
    """Whatever is decorated gives back when it returns, and when it raises; the error passes."""
    pool, database = shop.adapted()
    call = kinds(pool)[kind]

    def use() -> None:
        assert set(call(False)) == {1}
        assert_free(pool)
        with pytest.raises(LookupError, match="a bug"):
            call(True)
        assert_free(pool)

    if inside:
        assert told(request(use, database)) == (200, None)
    else:
        use()
    assert len(pool._connections) == 1


def test_generator_is_released_when_it_ends(shop: Shop) -> None:
    """A generator uses nothing before its first item, and gives back after its last one."""
    pool = shop.open()

    @release_connection(pool)
    def items() -> Iterator[int]:
        sent = yield pool.execute_sql("SELECT 1").fetchone()[0]
        yield sent
        return "done"  # type: ignore[return-value]

    generator: Any = items()
    assert_free(pool)
    assert next(generator) == 1
    assert generator.send(7) == 7
    assert len(pool._in_use) == 1
    with pytest.raises(StopIteration) as stopped:
        next(generator)
    assert stopped.value.value == "done"
    assert_free(pool)


@pytest.mark.parametrize("how", ["closed", "forgotten", "thrown into"])
def test_generator_that_is_left_in_the_middle(shop: Shop, how: str) -> None:
    """A generator that is closed, dropped or thrown into gives back then."""
    pool = shop.open()

    @release_connection(pool)
    def items() -> Iterator[int]:
        for number in range(3):
            yield pool.execute_sql("SELECT %s", (number,)).fetchone()[0]

    generator: Any = items()
    next(generator)
    assert len(pool._in_use) == 1
    if how == "closed":
        generator.close()
    elif how == "forgotten":
        del generator
        gc.collect()
    else:
        with pytest.raises(LookupError):
            generator.throw(LookupError())
    assert_free(pool)
    assert len(pool._connections) == 1


def test_generator_that_another_thread_finishes(shop: Shop) -> None:
    """It takes nothing from that thread; its own gives back with its next call."""
    pool = shop.open()
    released = release_connection(pool)

    @released
    def items() -> Iterator[int]:
        yield pool.execute_sql("SELECT 1").fetchone()[0]

    @released
    def use() -> None:
        pool.execute_sql("SELECT 1")

    generator: Any = items()
    next(generator)
    with ThreadPoolExecutor(1) as other:
        other.submit(pool.connect).result()
        other.submit(generator.close).result()
        assert len(pool._in_use) == 2
        other.submit(pool.close).result()
    use()
    assert_free(pool)


def test_generator_left_in_an_attempt(shop: Shop) -> None:
    """What a generator that nobody finishes holds goes back with the attempt."""
    pool, database = shop.adapted()
    left = []

    @release_connection(pool)
    def items() -> Iterator[int]:
        yield pool.execute_sql("SELECT 1").fetchone()[0]
        yield 2

    def endpoint() -> None:
        generator = items()
        next(generator)
        left.append(generator)

    assert told(request(endpoint, database)) == (200, None)
    assert_free(pool)
    left[0].close()
    assert_free(pool)


def test_async_generator_as_a_dependency(shop: Shop) -> None:
    """What is thrown into an async generator, and sent to it, reaches the decorated one."""
    pool = shop.open()
    seen: list[object] = []

    @asynccontextmanager
    @release_connection(pool)
    async def dependency() -> AsyncIterator[int]:
        try:
            yield pool.execute_sql("SELECT 1").fetchone()[0]
        except LookupError as error:
            seen.append(error)
            raise

    @release_connection(pool)
    async def echo() -> Any:
        sent = yield pool.execute_sql("SELECT 1").fetchone()[0]
        seen.append(sent)

    async def main() -> None:
        with pytest.raises(LookupError):
            async with dependency():
                raise LookupError("a bug")
        assert_free(pool)
        generator = echo()
        await anext(generator)
        with pytest.raises(StopAsyncIteration):
            await generator.asend("hello")
        assert_free(pool)
        generator = echo()
        await anext(generator)
        await generator.aclose()

    asyncio.run(main())
    assert [type(item) for item in seen] == [LookupError, str]
    assert_free(pool)


def test_outermost_call_releases(shop: Shop) -> None:
    """Functions that call each other release once, at the end of the outermost."""
    pool = shop.open()
    released = release_connection(pool)

    @released
    def inner() -> int:
        return int(pool.execute_sql(shop.identity).fetchone()[0])

    @released
    def outer() -> None:
        assert inner() == inner()
        assert len(pool._in_use) == 1

    outer()
    assert_free(pool)
    assert shop.proxy.accepted == 1


def test_not_released_in_a_transaction(shop: Shop) -> None:
    """Within atomic() and peewee's other blocks the connection stays."""
    pool = shop.open()
    Thing = model(pool)

    @release_connection(pool)
    def add(name: str) -> None:
        Thing.create(name=name)

    with pool.atomic():
        add("a")
        add("b")
        assert shop.names() == []
        assert len(pool._in_use) == 1
    pool.close()
    with pool.connection_context():
        add("c")
        assert len(pool._in_use) == 1
    assert_free(pool)
    assert shop.names() == ["a", "b", "c"]


def test_failed_connection_is_closed(shop: Shop) -> None:
    """A connection that was lost goes to nobody, and those that wait for one are woken."""
    pool = shop.open(max_connections=1, timeout=20)
    waiting = threading.Event()

    @release_connection(pool)
    def use() -> None:
        pool.execute_sql("SELECT 1")
        shop.proxy.cut("reset", at=1)
        assert waiting.wait(10)
        pool.execute_sql("SELECT 1")

    @release_connection(pool)
    def wait() -> int:
        waiting.set()
        return int(pool.execute_sql("SELECT 1").fetchone()[0])

    with ThreadPoolExecutor(2) as threads:
        failing = threads.submit(use)
        answer = threads.submit(wait)
        with pytest.raises((peewee.OperationalError, peewee.InterfaceError)):
            failing.result(20)
        assert answer.result(20) == 1
    assert_free(pool)
    assert len(pool._connections) == 1


class Stubborn(PooledMySQLDatabase):  # type: ignore[misc]
    """A pool that can't take anything back."""

    def _close(self, conn: Any, close_conn: bool = False) -> None:
        raise peewee.OperationalError("no")


def test_failing_close_hides_nothing(mariadb: MariaDB, caplog: pytest.LogCaptureFixture) -> None:
    """When giving back fails, the result and the error pass; the rest is a DEBUG record."""
    arguments = mariadb.connect_args()
    pool = Stubborn(arguments.pop("database"), **arguments, max_connections=2)
    released = release_connection(pool)

    @released
    def use(fails: bool) -> str:
        pool.execute_sql("SELECT 1")
        if fails:
            raise LookupError("a bug")
        return "fine"

    with caplog.at_level(logging.DEBUG, "retrymw"):
        assert use(False) == "fine"
        with pytest.raises(LookupError, match="a bug"):
            use(True)
    records = [record for record in caplog.records if record.name == "retrymw"]
    assert [record.levelname for record in records] == ["DEBUG", "DEBUG"]
    assert all(record.exc_info for record in records)
    for pooled in pool._in_use.values():
        pooled.connection.close()


def test_unpooled(mariadb: MariaDB) -> None:
    """A database without a pool is connected for each outermost call."""
    arguments = mariadb.connect_args()
    database = peewee.MySQLDatabase(arguments.pop("database"), **arguments)
    proxy = peewee.DatabaseProxy()

    @release_connection(proxy)
    def use() -> int:
        return int(database.execute_sql("SELECT CONNECTION_ID()").fetchone()[0])

    proxy.initialize(database)
    assert use() != use()
    assert database.is_closed()


def test_decorated_is_what_it_was() -> None:
    """Name, signature, kind and mark of what is decorated stay; an adapter will do as well."""
    adapter = Database(PooledMySQLDatabase("shop"))

    @release_connection(adapter)
    @rollback_safe
    def order(item: int, *, count: int = 1) -> str:
        """Order."""
        return ""

    @release_connection(adapter)
    async def wait() -> None:
        """Wait."""

    @release_connection(adapter)
    def items() -> Iterator[int]:
        yield 1

    @release_connection(adapter)
    async def later() -> AsyncIterator[int]:
        yield 1

    assert (order.__name__, order.__doc__) == ("order", "Order.")
    assert str(inspect.signature(order)) == "(item: 'int', *, count: 'int' = 1) -> 'str'"
    assert read_mark(order, "POST") == read_mark(order.__wrapped__, "POST") is not None  # type: ignore[attr-defined]
    assert inspect.iscoroutinefunction(wait)
    assert inspect.isgeneratorfunction(items)
    assert inspect.isasyncgenfunction(later)


# The garbage collector may end a generator anywhere.


@pytest.fixture
def without_gc() -> Iterator[None]:
    """Garbage is collected only when a test says so, and then only the test's own."""
    gc.disable()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.enable()


class Forgotten:
    """A generator that only a reference cycle keeps, until ``end()`` collects it."""

    def __init__(self, begin: Callable[[], Iterator[Any]]) -> None:
        cycle: list[Any] = [begin()]
        next(cycle[0])
        cycle.append(cycle)
        self.left = [cycle]

    def end(self) -> None:
        if self.left:
            self.left.pop()
            gc.collect()


def finish(call: Callable[[], object]) -> None:
    """Call in a thread of its own, which may hang."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  # handed on, not handled
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    future.result(30)


def ended_at(call: Callable[[], object], begin: Callable[[], Iterator[Any]], moment: int) -> bool:
    """Call with a generator that is collected at some moment while peewee or a driver is at work.

    False if the call was over before that moment.
    """
    forgotten = Forgotten(begin)
    passed = 0

    def trace(frame: Any, event: str, arg: object) -> None:
        nonlocal passed
        name = frame.f_globals.get("__name__", "")
        at_work = ("peewee", "playhouse", "pymysql", "MySQLdb", "psycopg")
        if name.startswith((*at_work, "retrymw.adapters._peewee_loan")):
            passed += 1
            if passed == moment:
                forgotten.end()

    sys.setprofile(trace)
    try:
        call()
    finally:
        sys.setprofile(None)
        forgotten.end()
    return passed >= moment


@pytest.mark.parametrize("inside", [False, True], ids=["in a thread", "in an attempt"])
@pytest.mark.parametrize("connected", [False, True])
def test_generator_that_is_collected_in_a_statement(
    shop: Shop, without_gc: None, inside: bool, connected: bool
) -> None:
    """It takes no connection from a statement that is on its way; the next call gives back."""
    pool, database = shop.adapted()
    released = release_connection(pool)

    @released
    def items() -> Iterator[int]:
        yield 1

    @released
    def use() -> None: ...

    def ask() -> None:
        assert pool.execute_sql("SELECT 7").fetchone() == (7,)
        assert len(pool._in_use) == 1

    def at_every_moment() -> None:
        moment = 1
        while True:
            if connected:
                pool.connect(reuse_if_open=True)
            go_on = ended_at(ask, items, moment)
            use()
            assert_free(pool)
            if not go_on:
                break
            moment += 1
        assert moment > 5

    def in_attempt() -> None:
        assert told(request(at_every_moment, database)) == (200, None)

    finish(in_attempt if inside else at_every_moment)
    assert shop.proxy.accepted == 1


def test_generator_that_is_collected_in_the_decorator(mariadb: MariaDB, without_gc: None) -> None:
    """The decorator does not wait for itself, wherever the garbage collector ends a generator."""
    arguments = mariadb.connect_args()
    pool = PooledMySQLDatabase(arguments.pop("database"), **arguments, max_connections=2)
    released = release_connection(pool)

    @released
    def items() -> Iterator[int]:
        yield pool.execute_sql("SELECT 1").fetchone()[0]

    @released
    def use() -> None:
        pool.execute_sql("SELECT 1")

    def in_thread() -> None:
        left = [Forgotten(items) for _ in range(40)]

        def trace(frame: Any, event: str, arg: object) -> Any:
            if frame.f_globals.get("__name__") != "retrymw.adapters._peewee_release":
                return None
            if left:
                left.pop().end()
            return trace

        sys.settrace(trace)
        try:
            use()
        finally:
            sys.settrace(None)
        assert 0 < len(left) < 35
        for forgotten in left:
            forgotten.end()

    finish(in_thread)
    assert_free(pool)
    pool.close_all()


def test_error_in_an_async_generator_is_freed_at_once(without_gc: None) -> None:
    """What was thrown into an async generator is in no reference cycle, which would keep frames."""

    class Bug(Exception):
        """Builtin exceptions have no weak references."""

    @release_connection(PooledMySQLDatabase("shop"))
    async def items() -> AsyncGenerator[int, None]:
        yield 1

    async def main() -> weakref.ref[Bug]:
        generator = items()
        await anext(generator)
        error = Bug()
        thrown = weakref.ref(error)
        with suppress(Bug):
            try:
                await generator.athrow(error)
            finally:
                del error
        return thrown

    assert asyncio.run(main())() is None
