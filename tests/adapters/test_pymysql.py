"""The request-scoped PyMySQL connection, on a real MariaDB behind the fault proxy."""

from __future__ import annotations

import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pymysql
import pytest
import tenacity
from sqlalchemy.pool import QueuePool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from retrymw import RetryPolicy, current_attempt, idempotent, rollback_safe
from retrymw.adapters.pymysql import Connection, Database
from retrymw.asgi import RetryMiddleware
from retrymw.testing import AdapterConformance, FaultProxy
from retrymw.testing.conformance import (
    AccountingConformance,
    Subject,
    UnitOfWorkConformance,
)
from retrymw.testing.conformance._stage import things as table_of_things
from retrymw.testing.servers import MariaDB

Endpoint = Callable[[Request], Any]
Open = Callable[..., Database]


@pytest.fixture
def open_database(mariadb: MariaDB, mariadb_proxy: FaultProxy) -> Open:
    """Make a database object that connects through the proxy."""

    def make(**options: Any) -> Database:
        arguments = mariadb.connect_args(host=mariadb_proxy.host, port=mariadb_proxy.port)
        return Database(**arguments | {"ssl_disabled": True, "read_timeout": 5} | options)

    return make


@pytest.fixture
def database(open_database: Open) -> Database:
    """The usual one: a connection for each attempt."""
    return open_database()


@pytest.fixture(autouse=True)
def things(mariadb: MariaDB) -> Iterator[Callable[[], list[str]]]:
    """A table, and what is stored in it."""
    with table_of_things(mariadb):
        yield lambda: [
            row[0] for row in mariadb.execute("SELECT name FROM app.things ORDER BY name")
        ]


def insert(connection: Connection, name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO things VALUES (%s)", (name,))


def request(
    endpoint: Endpoint, *databases: Database, method: str = "GET", **options: Any
) -> httpx.Response:
    """One request to an app with one endpoint."""
    options = {"policy": RetryPolicy(wait=tenacity.wait_none())} | options
    app = Starlette(routes=[Route("/", endpoint, methods=[method])])
    app.add_middleware(RetryMiddleware, databases=databases, **options)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://things") as client:
            return await client.request(method, "/")

    return anyio.run(send)


def outcome(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.headers.get("retry-outcome")


def once(action: Callable[[], object]) -> Callable[[], None]:
    """Do something in the first attempt only."""

    def act() -> None:
        if current_attempt().number == 1:
            action()

    return act


LOST = {
    "commit()": lambda connection: connection.commit(),
    "COMMIT as SQL": lambda connection: connection.cursor().execute("commit"),
    "another BEGIN": lambda connection: connection.begin(),
    "DDL": lambda connection: connection.cursor().execute("CREATE TABLE app.more (x INT)"),
}


@pytest.mark.parametrize("name", LOST)
def test_lost_answer_to_a_commit(
    database: Database, mariadb: MariaDB, mariadb_proxy: FaultProxy, name: str
) -> None:
    """G4: whatever statement commits, when its answer is lost the outcome is unknown."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            insert(connection, "a")
            mariadb_proxy.cut("reset", at=1)
            LOST[name](connection)
        return PlainTextResponse("")

    try:
        response = request(endpoint, database, method="POST")
        assert outcome(response) == (503, "unknown")
        assert "retry-after" not in response.headers
    finally:
        mariadb.execute("DROP TABLE IF EXISTS app.more")


def test_refused_ddl(
    database: Database, mariadb_proxy: FaultProxy, things: Callable[[], list[str]]
) -> None:
    """G4: what went before DDL is committed even if the DDL is refused."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            insert(connection, "a")
            with suppress(pymysql.Error):
                connection.cursor().execute("CREATE TABLE things (x INT)")
            mariadb_proxy.cut("reset", at=1)
            connection.cursor().execute("SELECT 1")
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (503, "committed")
    assert things() == ["a"]


def test_lost_answer_under_autocommit(
    open_database: Open, mariadb_proxy: FaultProxy, things: Callable[[], list[str]]
) -> None:
    """G4: under autocommit every write is its own COMMIT."""
    database = open_database(autocommit=True)

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            mariadb_proxy.cut("reset", at=1)
            insert(connection, "a")
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (503, "unknown")
    assert things() == ["a"]


def test_lost_read_under_autocommit(open_database: Open, mariadb_proxy: FaultProxy) -> None:
    """G3: under autocommit a read that is lost commits nothing, so a PUT is replayed."""
    database = open_database(autocommit=True)
    cut = once(lambda: mariadb_proxy.cut("reset", at=1))

    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            cut()
            connection.cursor().execute("SELECT COUNT(*) FROM things")
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="PUT")) == (200, "recovered")


def test_outside_a_request(
    database: Database, mariadb_proxy: FaultProxy, things: Callable[[], list[str]]
) -> None:
    """In a script the same code gets a connection of its own, given back at the end."""
    with database.connection() as connection:
        insert(connection, "a")
        connection.commit()
        insert(connection, "b")
    mariadb_proxy.wait_for_connections(0)
    assert things() == ["a"]


def test_outside_a_request_an_error_passes(
    database: Database, mariadb_proxy: FaultProxy, things: Callable[[], list[str]]
) -> None:
    """In a script an exception passes, and nothing is left of what was not committed."""

    def script() -> None:
        with database.connection() as connection:
            insert(connection, "a")
            raise LookupError("a bug")

    with pytest.raises(LookupError):
        script()
    mariadb_proxy.wait_for_connections(0)
    assert things() == []


def test_threads_take_turns(database: Database) -> None:
    """Threads of one attempt that use the connection at once all get their own answers."""

    def ask(number: int) -> int:
        with database.connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT %s", (number,))
            return int(cursor.fetchone()[0])

    async def endpoint(request: Request) -> Response:
        answers: dict[int, int] = {}

        async def task(number: int) -> None:
            answers[number] = await anyio.to_thread.run_sync(ask, number)

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(task, number)
        assert answers == {number: number for number in range(50)}
        return PlainTextResponse("")

    assert request(endpoint, database).status_code == 200


def test_silent_server(open_database: Open, mariadb_proxy: FaultProxy) -> None:
    """A statement that is never answered fails after read_timeout, and the request is replayed."""
    database = open_database(read_timeout=1)
    cut = once(lambda: mariadb_proxy.cut("blackhole", at=1))

    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            cut()
            connection.cursor().execute("SELECT 1")
        return PlainTextResponse("")

    assert outcome(request(endpoint, database)) == (200, "recovered")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"hosst": "x"}, "hosst='x'"), ({"defer_connect": True}, "defer_connect=True")],
)
def test_wrong_options(open_database: Open, options: dict[str, Any], message: str) -> None:
    """An option that can't work is refused at start-up, by name."""
    with pytest.raises(TypeError, match=message):
        open_database(**options)


def test_nothing_waits_without_a_bound() -> None:
    """Timeouts that the user does not give are finite."""
    arguments = Database(host="db", user="u", password="secret")._connect_args
    assert {name: arguments[name] for name in arguments if name.endswith("timeout")} == {
        "connect_timeout": 10,
        "read_timeout": 30,
        "write_timeout": 30,
    }


def test_repr_has_no_password() -> None:
    """The object names its server in logs, and keeps the password to itself."""
    database = Database(host="db", port=3307, database="shop", user="u", password="secret")
    assert repr(database) == "<Database db:3307/shop>"


def test_tls_context_is_built_once(mariadb: MariaDB) -> None:
    """Connections without TLS options share one SSLContext: building it costs 16 ms of CPU."""
    database = Database(**mariadb.connect_args())
    with database.connection() as one, database.connection() as other:
        assert one is not other
        assert one.ctx is other.ctx


# With a pool.


@pytest.fixture
def pooled(open_database: Open) -> Open:
    """Make a database with a pool of two."""
    pool = functools.partial(QueuePool, pool_size=2, max_overflow=0, timeout=0.2)
    return functools.partial(open_database, pool=pool)


def read(database: Database) -> Callable[[Request], Awaitable[Response]]:
    def endpoint(request: Request) -> Response:
        with database.connection() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT CONNECTION_ID()")
            return PlainTextResponse(str(cursor.fetchone()[0]))

    return endpoint  # type: ignore[return-value]


def test_pooled_connection_is_used_again(pooled: Open, mariadb_proxy: FaultProxy) -> None:
    """A healthy connection goes back to the pool, and the next request gets it."""
    database = pooled()
    endpoint = read(database)
    assert request(endpoint, database).text == request(endpoint, database).text
    assert mariadb_proxy.accepted == 1


def test_pool_after_a_restart(pooled: Open, mariadb: MariaDB) -> None:
    """After a restart one replay is enough: the first failure renews the whole pool."""
    database = pooled()
    with database.connection(), database.connection():
        pass  # two connections in the pool
    mariadb.kill()
    mariadb.start()
    response = request(read(database), database)
    assert (response.headers["retry-attempts"], *outcome(response)) == ("2", 200, "recovered")


def test_semicolon_in_a_value(database: Database, mariadb_proxy: FaultProxy) -> None:
    """G3: a semicolon that a client sent is no second statement, and no commit."""
    cut = once(lambda: mariadb_proxy.cut("reset", at=1))

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            insert(connection, "Tom &amp; Jerry; or 'so'")
            cut()
            connection.cursor().execute("SELECT 1")
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (200, "recovered")


def test_autocommit_is_switched_on(
    database: Database, mariadb_proxy: FaultProxy, things: Callable[[], list[str]]
) -> None:
    """G4: connection.autocommit(True) commits what was done before it."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            insert(connection, "a")
            connection.autocommit(True)
            mariadb_proxy.cut("reset", at=1)
            connection.cursor().execute("SELECT 1")
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (503, "committed")
    assert things() == ["a"]


def test_commit_that_was_never_sent(database: Database, mariadb_proxy: FaultProxy) -> None:
    """G3: commit() on a connection that is gone sends nothing, so nothing was committed."""
    cut = once(lambda: mariadb_proxy.cut("reset", at=1))

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            cut()
            try:
                insert(connection, "a")
            finally:
                connection.commit()
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (200, "recovered")


def test_connection_that_the_app_closed(database: Database) -> None:
    """Closing the attempt's connection is a mistake, and the message says so."""

    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            connection.close()
        with database.connection():
            raise AssertionError("not reached")

    with pytest.raises(RuntimeError, match="was closed by the app"):
        request(endpoint, database)


def test_autocommit_does_not_leak_through_the_pool(
    pooled: Open, things: Callable[[], list[str]]
) -> None:
    """G1: the next request finds a connection as the first one found it."""
    database = pooled()

    def switch(request: Request) -> Response:
        with database.connection() as connection:
            connection.autocommit(True)
        return PlainTextResponse("")

    def forget(request: Request) -> Response:
        with database.connection() as connection:
            insert(connection, "forgotten")
        return PlainTextResponse("")

    assert request(switch, database).status_code == request(forget, database).status_code == 200
    assert things() == []


def test_thread_in_a_statement_does_not_delay_the_end(database: Database, mariadb: MariaDB) -> None:
    """G6: a statement that a thread left behind is cut off after two seconds."""
    threads: list[threading.Thread] = []

    def linger() -> None:
        with database.connection() as connection, pytest.raises(pymysql.Error):
            connection.cursor().execute("SELECT SLEEP(20)")

    def endpoint(request: Request) -> Response:
        with database.connection():
            pass
        run = contextvars.copy_context().run
        threads.append(threading.Thread(target=run, args=(linger,)))
        threads[0].start()
        mariadb.wait_for_sleep()
        raise LookupError("a bug")

    start = monotonic()
    with pytest.raises(LookupError):
        request(endpoint, database)
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert monotonic() - start < 15


# What outlives its attempt, and what goes past query().


def test_thread_that_kept_the_connection(pooled: Open, things: Callable[[], list[str]]) -> None:
    """G1, G4: a thread of an attempt that is over can't work in another request's transaction."""
    pool = functools.partial(QueuePool, pool_size=1, max_overflow=0, timeout=0.2)
    database = pooled(pool=pool)
    may_go_on, errors = threading.Event(), []
    threads: list[threading.Thread] = []

    def late(connection: Connection) -> None:
        may_go_on.wait(10)
        for action in (lambda: insert(connection, "late"), connection.commit, connection.rollback):
            try:
                action()
            except RuntimeError as error:
                errors.append(error)

    def leave(request: Request) -> Response:
        with database.connection() as connection:
            run = contextvars.copy_context().run
            threads.append(threading.Thread(target=run, args=(late, connection)))
            threads[0].start()
        return PlainTextResponse("")

    def work(request: Request) -> Response:
        with database.connection() as connection:
            insert(connection, "half")
            may_go_on.set()
            threads[0].join(10)
            insert(connection, "whole")
            connection.commit()
        return PlainTextResponse("")

    assert request(leave, database).status_code == 200
    assert outcome(request(work, database, method="POST")) == (200, None)
    assert len(errors) == 3
    assert things() == ["half", "whole"]


def test_ping_does_not_go_on_elsewhere(
    database: Database, mariadb: MariaDB, things: Callable[[], list[str]]
) -> None:
    """A ping that would connect again in mid-transaction fails: no second half goes alone."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            insert(connection, "first half")
            if current_attempt().number == 1:
                mariadb.kill_connections()
            connection.ping(reconnect=True)
            insert(connection, "second half")
            connection.commit()
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (200, "recovered")
    assert things() == ["first half", "second half"]


def test_connects_once(database: Database) -> None:
    """An attempt's connection can't be connected again by hand."""

    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            connection.connect()
        raise AssertionError("not reached")

    with pytest.raises(RuntimeError, match="can't be connected again"):
        request(endpoint, database)


def test_failure_in_a_further_result(
    database: Database, mariadb: MariaDB, things: Callable[[], list[str]]
) -> None:
    """A conflict that comes with the second result of a CALL is seen as well."""
    mariadb.execute(
        "CREATE PROCEDURE app.two() BEGIN SELECT 1; "
        "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END"
    )

    @idempotent
    def endpoint(request: Request) -> Response:
        with database.connection() as connection, connection.cursor() as cursor:
            if current_attempt().number == 1:
                with suppress(pymysql.Error):
                    cursor.callproc("two")
                    cursor.nextset()
            insert(connection, "a")
            connection.commit()
        return PlainTextResponse("")

    try:
        assert outcome(request(endpoint, database, method="POST")) == (200, "recovered")
    finally:
        mariadb.execute("DROP PROCEDURE app.two")
    assert things() == ["a"]


def test_rows_that_were_not_fetched(database: Database) -> None:
    """G2: the rows left in an unbuffered cursor are not read before the rollback."""

    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            cursor = connection.cursor(pymysql.cursors.SSCursor)
            cursor.execute("SELECT seq FROM seq_1_to_20000000")
            cursor.fetchone()
        raise LookupError("a bug")

    start = monotonic()
    with pytest.raises(LookupError):
        request(endpoint, database)
    assert monotonic() - start < 10


def test_setting_a_variable_commits_nothing(database: Database, mariadb_proxy: FaultProxy) -> None:
    """G3: SET after a write is no commit, so what fails after it is replayed."""
    cut = once(lambda: mariadb_proxy.cut("reset", at=1))

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            insert(connection, "a")
            connection.cursor().execute("SET @a = 1")
            cut()
            connection.cursor().execute("SELECT 1")
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (200, "recovered")


@pytest.mark.parametrize(
    "touch",
    [
        lambda connection: connection.select_db("information_schema"),
        lambda connection: connection.cursor().execute("LOCK TABLES things WRITE"),
        lambda connection: connection.cursor().execute("SELECT GET_LOCK('mine', 1)"),
    ],
)
def test_session_that_was_touched(pooled: Open, touch: Callable[[Connection], object]) -> None:
    """G1: a connection with what a rollback does not undo goes to nobody else."""
    database = pooled()

    def endpoint(request: Request) -> Response:
        with database.connection() as connection:
            touch(connection)
        return PlainTextResponse("")

    first_id = request(read(database), database).text
    assert request(endpoint, database).status_code == 200
    assert request(read(database), database).text != first_id


def test_another_databases_failure_is_not_this_ones(
    database: Database, things: Callable[[], list[str]]
) -> None:
    """G5: what fails while another database's failure is handled is judged by itself."""

    def endpoint(request: Request) -> Response:
        try:
            raise pymysql.err.OperationalError(2013, "of another database")
        except pymysql.err.OperationalError:
            with database.connection() as connection:
                insert(connection, "a")
                with suppress(pymysql.err.IntegrityError):
                    insert(connection, "a")
                connection.commit()
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (200, None)
    assert things() == ["a"]


def test_lost_commit_that_was_being_handled(
    database: Database,
    mariadb: MariaDB,
    mariadb_proxy: FaultProxy,
    things: Callable[[], list[str]],
) -> None:
    """G4: a COMMIT that was lost without an adapter is told by what fails while it is handled."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        arguments = mariadb.connect_args(host=mariadb_proxy.host, port=mariadb_proxy.port)
        raw = pymysql.connect(**arguments, ssl_disabled=True)
        try:
            raw.cursor().execute(f"INSERT INTO things VALUES ('{current_attempt().number}')")
            mariadb_proxy.cut("reset", at="commit")
            raw.commit()
        except pymysql.err.OperationalError:
            with database.connection() as connection:
                insert(connection, "log")
                mariadb.kill_connections()
                insert(connection, "more")
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (503, "unknown")
    assert things() == ["1"]


class OnMariaDB:
    """The adapter, with a pool."""

    pooled = True

    @pytest.fixture(autouse=True)
    def things(self) -> None:
        """The suite has a table of its own."""

    @pytest.fixture
    def server(self, mariadb: MariaDB) -> MariaDB:
        return mariadb

    @pytest.fixture
    def subject(self, server: MariaDB, proxy: FaultProxy, size: int) -> Iterator[Subject]:
        arguments = server.connect_args(host=proxy.host, port=proxy.port)
        pools: list[QueuePool] = []

        def pool(connect: Callable[[], Any]) -> QueuePool:
            pools.append(QueuePool(connect, pool_size=size, max_overflow=0, timeout=0.2))
            return pools[-1]

        def subject(**options: Any) -> Subject:
            options["pool"] = pool if self.pooled else None
            database = Database(ssl_disabled=True, read_timeout=5, **arguments, **options)

            def execute(sql: str) -> Any:
                with database.connection() as connection, connection.cursor() as cursor:
                    cursor.execute(sql)
                    return cursor.fetchall()

            def call(name: str) -> None:
                with database.connection() as connection:
                    getattr(connection, name)()

            return Subject(
                database,
                execute,
                commit=lambda: call("commit"),
                rollback=lambda: call("rollback"),
                in_use=(lambda: int(database._home.pool.checkedout())) if self.pooled else None,
            )

        made = subject()
        made.unit = subject(commit="on-success")
        yield made
        for each in pools:
            each.dispose()


class TestConformance(OnMariaDB, AdapterConformance, UnitOfWorkConformance):
    """The conformance suite."""


class TestConformanceWithoutPool(TestConformance):
    """The conformance suite again, with a connection for each attempt."""

    pooled = False


class TestAccounting(OnMariaDB, AccountingConformance):
    """Every order is accounted for."""


@pytest.mark.parametrize("what", ["statement", "connect"])
def test_waiting_room_of_the_database_that_failed(
    open_database: Open, mariadb: MariaDB, mariadb_proxy: FaultProxy, what: str
) -> None:
    """G9: with two databases in use a request waits for the one that failed, in its room."""
    well = Database(**mariadb.connect_args(), ssl_disabled=True)
    broken = open_database()
    rooms: list[object] = []

    @once
    def break_it() -> None:
        mariadb_proxy.cut("reset", at=1 if what == "statement" else "connect")

    def endpoint(request: Request) -> Response:
        with well.connection() as connection:
            connection.cursor().execute("SELECT 1")
        if what == "connect":
            break_it()
        with broken.connection() as connection:
            connection.cursor().execute("SELECT 1")
            if what == "statement":
                break_it()
            connection.cursor().execute("SELECT 2")
        return PlainTextResponse("")

    hooks = [lambda report: rooms.append(report.room and report.room.database)]
    assert outcome(request(endpoint, well, broken, hooks=hooks)) == (200, "recovered")
    assert rooms == [broken, broken]
