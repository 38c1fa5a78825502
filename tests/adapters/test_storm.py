"""The request-scoped Storm store, on real servers behind the fault proxy."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import tenacity
from sqlalchemy.pool import QueuePool
from storm.exceptions import (
    ClosedError,
    ConnectionBlockedError,
    DisconnectionError,
    IntegrityError,
    InternalError,
    StormError,
)
from storm.locals import Store, Unicode, create_database
from storm.tracer import install_tracer, remove_tracer
from storm.xid import Xid

from retrymw import RetryPolicy, current_attempt, rollback_safe
from retrymw.adapters._undo import Wire, cut, cut_after
from retrymw.adapters.storm import Database
from retrymw.asgi import RetryMiddleware
from retrymw.testing import FaultProxy
from retrymw.testing.conformance import (
    AccountingConformance,
    AdapterConformance,
    Subject,
    UnitOfWorkConformance,
)
from retrymw.testing.conformance._stage import things
from retrymw.testing.servers import MariaDB, PostgreSQL

# Storm's own: what it asks for is mysqlclient's default by now.
pytestmark = pytest.mark.filterwarnings("ignore:The reconnect parameter:DeprecationWarning")


def uri(server: MariaDB | PostgreSQL, proxy: FaultProxy, options: str = "") -> str:
    """Where the server is, behind the proxy."""
    scheme, plain = (
        ("mysql", "charset=utf8mb4")
        if server.protocol == "mysql"
        else ("postgres", "sslmode=disable")
    )
    options = f"{plain}{options}"
    account = f"{server.user}:{server.password}"
    return f"{scheme}://{account}@{proxy.host}:{proxy.port}/{server.database}?{options}"


def execute(database: Database, sql: str) -> list[Any]:
    with database.store() as store:
        result = store.execute(sql)
        return list(result.get_all()) if result._raw_cursor.description else []


def commit(database: Database) -> None:
    with database.store() as store:
        store.commit()


def rollback(database: Database) -> None:
    with database.store() as store:
        store.rollback()


def subject_of(database: Database, in_use: Any, unit: Subject | None = None) -> Subject:
    actions = (functools.partial(act, database) for act in (execute, commit, rollback))
    return Subject(database, *actions, in_use=in_use, unit=unit)


class Pooled:
    """With a pool."""

    @pytest.fixture
    def subject(
        self, server: MariaDB | PostgreSQL, proxy: FaultProxy, size: int
    ) -> Iterator[Subject]:
        pool = functools.partial(QueuePool, pool_size=size, max_overflow=0, timeout=0.2)
        where = uri(server, proxy)
        database, unit = Database(where, pool=pool), Database(where, pool=pool, commit="on-success")
        yield subject_of(database, in_use(database), subject_of(unit, in_use(unit)))
        for each in (database, unit):
            pool_of(each).dispose()


def pool_of(database: Database) -> QueuePool:
    pool: QueuePool = database._database.connection_factory.home.pool
    return pool


def in_use(database: Database) -> Any:
    return lambda: pool_of(database).checkedout()


class OnMariaDB(Pooled):
    @pytest.fixture
    def server(self, mariadb: MariaDB) -> MariaDB:
        return mariadb


class OnPostgreSQL(Pooled):
    @pytest.fixture
    def server(self, postgresql: PostgreSQL) -> PostgreSQL:
        return postgresql


class TestConformanceOnMariaDB(OnMariaDB, AdapterConformance, UnitOfWorkConformance):
    """The conformance suite."""


class TestConformanceOnPostgreSQL(OnPostgreSQL, AdapterConformance, UnitOfWorkConformance):
    """The conformance suite."""


class TestAccountingOnMariaDB(OnMariaDB, AccountingConformance):
    """Every order is accounted for."""


class TestAccountingOnPostgreSQL(OnPostgreSQL, AccountingConformance):
    """Every order is accounted for."""


class TestConformanceWithoutPool(AdapterConformance):
    """With a connection for each store."""

    @pytest.fixture
    def server(self, mariadb: MariaDB) -> MariaDB:
        return mariadb

    @pytest.fixture
    def subject(self, server: MariaDB, proxy: FaultProxy) -> Subject:
        return subject_of(Database(uri(server, proxy)), None)


# What is Storm's own.


class Thing:
    __storm_table__ = "things"
    name = Unicode(primary=True)

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture(params=["mariadb", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[MariaDB | PostgreSQL]:
    """Each server, with a table of things."""
    server: MariaDB | PostgreSQL = request.getfixturevalue(request.param)
    with things(server):
        yield server


@pytest.fixture
def proxy(server: MariaDB | PostgreSQL) -> Iterator[FaultProxy]:
    """A fault proxy before the server."""
    with FaultProxy((server.host, server.port), server.protocol) as proxy:
        yield proxy


@pytest.fixture
def database(server: MariaDB | PostgreSQL, proxy: FaultProxy) -> Database:
    """The usual one: a connection for each store."""
    return Database(uri(server, proxy))


@pytest.fixture
def pooled(server: MariaDB | PostgreSQL, proxy: FaultProxy) -> Iterator[Database]:
    """With a pool of two."""
    pool = functools.partial(QueuePool, pool_size=2, max_overflow=0, timeout=0.2)
    database = Database(uri(server, proxy), pool=pool)
    yield database
    pool_of(database).dispose()


def names(server: MariaDB | PostgreSQL) -> list[str]:
    return [row[0] for row in server.execute("SELECT name FROM app.things ORDER BY name")]


def request(
    endpoint: Callable[[], Any], *databases: Database, method: str = "POST", **options: Any
) -> tuple[int, str | None, str | None]:
    """One request to an endpoint in a worker thread: status, attempts, outcome."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["endpoint"] = endpoint
        status = await anyio.to_thread.run_sync(endpoint) or 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    policy = RetryPolicy(wait=tenacity.wait_none())
    middleware = RetryMiddleware(app, **{"policy": policy, "databases": databases} | options)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://things") as client:
            return await client.request(method, "/")

    response = anyio.run(send)
    headers = response.headers
    return response.status_code, headers.get("retry-attempts"), headers.get("retry-outcome")


def is_first() -> bool:
    return current_attempt().number == 1


def test_lost_in_a_flush(
    database: Database, server: MariaDB | PostgreSQL, proxy: FaultProxy
) -> None:
    """G3: commit() flushes first; what is lost then was not committed, and is replayed."""

    @rollback_safe
    def endpoint() -> None:
        with database.store() as store:
            store.execute("SELECT 1")
            store.add(Thing("a"))
            if is_first():
                proxy.cut("reset", at=1)
            store.commit()

    assert request(endpoint, database) == (200, "2", "recovered")
    assert names(server) == ["a"]


def test_lost_commit_of_a_flush(
    database: Database, server: MariaDB | PostgreSQL, proxy: FaultProxy
) -> None:
    """G4: a COMMIT whose answer is lost leaves the outcome unknown."""

    @rollback_safe
    def endpoint() -> None:
        with database.store() as store:
            store.add(Thing("a"))
            proxy.cut("reset", at="commit")
            store.commit()

    assert request(endpoint, database) == (503, "1", "unknown")
    assert names(server) == ["a"]


def test_lost_commit_of_nothing(database: Database, proxy: FaultProxy) -> None:
    """G3: a COMMIT after mere reading commits nothing, so nothing is in doubt if it is lost."""

    @rollback_safe
    def endpoint() -> None:
        with database.store() as store:
            assert store.find(Thing).count() == 0
            if is_first():
                proxy.cut("reset", at="commit")
            store.commit()

    assert request(endpoint, database) == (200, "2", "recovered")


def test_lost_answer_under_autocommit(server: MariaDB | PostgreSQL, proxy: FaultProxy) -> None:
    """G4: where every statement is a commit of its own, the outcome of a lost one is unknown."""
    mariadb = isinstance(server, MariaDB)
    database = Database(uri(server, proxy, "" if mariadb else "&isolation=autocommit"))

    @rollback_safe
    def endpoint() -> None:
        with database.store() as store:
            store.execute("SET autocommit = 1" if mariadb else "SELECT 1")
            proxy.cut("reset", at=1)
            store.execute("INSERT INTO things VALUES ('a')")

    assert request(endpoint, database) == (503, "1", "unknown")


def test_ddl(database: Database, server: MariaDB | PostgreSQL, proxy: FaultProxy) -> None:
    """G4: DDL commits what went before it in MariaDB, and does not in PostgreSQL."""

    @rollback_safe
    def endpoint() -> None:
        with database.store() as store:
            if is_first():
                store.add(Thing("a"))
                store.execute("CREATE TABLE app.more (x INT)")
                proxy.cut("reset", at=1)
            store.execute("SELECT 1")

    try:
        mariadb = isinstance(server, MariaDB)
        expected = (503, "1", "committed") if mariadb else (200, "2", "recovered")
        assert request(endpoint, database) == expected
        assert names(server) == (["a"] if mariadb else [])
    finally:
        server.execute("DROP TABLE IF EXISTS app.more")


def test_disconnected_store(
    database: Database, server: MariaDB | PostgreSQL, proxy: FaultProxy
) -> None:
    """A store whose connection is lost refuses with the same exception, whatever is asked of it,
    until it is rolled back; then it connects again."""
    raised: list[BaseException] = []

    def endpoint() -> None:
        with database.store() as store:
            store.add(Thing("half"))
            store.flush()
            proxy.cut("reset", at=1)
            for act in (
                store.find(Thing).count,
                lambda: store.execute("SELECT 1"),
                lambda: store.add(Thing("more")) and store.flush(),
                store.commit,
            ):
                with pytest.raises(DisconnectionError) as caught:
                    act()
                raised.append(caught.value)
            store.rollback()
            store.add(Thing("whole"))
            store.commit()

    assert request(endpoint, database) == (200, None, None)
    assert len({id(exc) for exc in raised}) == 1
    assert names(server) == ["whole"]
    assert proxy.accepted == 2


def test_server_stays_away(database: Database, proxy: FaultProxy) -> None:
    """A store that can't connect again says so, is refused until the next rollback, and the
    attempt is replayed even if the app makes a 500 of it."""
    raised: list[BaseException] = []

    @rollback_safe
    def endpoint() -> int | None:
        with database.store() as store:
            if not is_first():
                return store.execute("SELECT 1").close()
            with proxy.refuse():
                proxy.cut_all("reset")
                with pytest.raises(DisconnectionError):
                    store.execute("SELECT 1")
                store.rollback()
                for _ in range(2):
                    with pytest.raises(DisconnectionError) as caught:
                        store.commit()
                    raised.append(caught.value)
            store.rollback()
            store.execute("SELECT 1")
            return 500

    assert request(endpoint, database) == (200, "2", "recovered")
    assert raised[0] is raised[1]


def test_connection_that_storm_takes_for_alive(mariadb: MariaDB, mariadb_proxy: FaultProxy) -> None:
    """An error of a lost connection that Storm does not know: after the rollback it is replaced."""
    database = Database(uri(mariadb, mariadb_proxy))

    def endpoint() -> None:
        with database.store() as store:
            with pytest.raises(StormError, match="1927"):
                store.execute("KILL CONNECTION_ID()")
            store.rollback()
            store.execute("SELECT 1")

    assert request(endpoint, database) == (200, None, None)
    assert mariadb_proxy.accepted == 2


def test_rollback_notices_the_loss(pooled: Database, server: MariaDB | PostgreSQL) -> None:
    """A rollback over a dead connection is no error in Storm: the next statement connects again,
    and the pool's other connections are not tried."""
    with pooled.store() as one, pooled.store() as other:
        one.execute("SELECT 1")
        other.execute("SELECT 1")

    def endpoint() -> None:
        with pooled.store() as store:
            store.execute("SELECT 1")
            server.kill_connections()
            store.rollback()
            store.execute("SELECT 1")

    assert request(endpoint, pooled) == (200, None, None)
    assert pool_of(pooled).checkedout() == 0


def test_one_store(database: Database) -> None:
    """Nested blocks and worker threads get the attempt's one store, with the objects in it."""
    stores: list[Store] = []

    def endpoint() -> None:
        with database.store() as store, database.store() as same:
            stores.extend([store, same])
            thing = store.add(Thing("a"))
            thread = threading.Thread(target=contextvars.copy_context().run, args=(ask,))
            thread.start()
            thread.join(10)
            assert Store.of(thing) is store
        with database.store() as again:
            stores.append(again)

    def ask() -> None:
        with database.store() as store:
            assert store.get(Thing, "a") is not None
            stores.append(store)

    assert request(endpoint, database) == (200, None, None)
    assert len(stores) == 4
    assert len(set(map(id, stores))) == 1


def test_object_that_outlives_its_attempt(
    database: Database, server: MariaDB | PostgreSQL, proxy: FaultProxy
) -> None:
    """G1: an object that was added in a failed attempt is in no store when it is over."""
    thing = Thing("a")

    @rollback_safe
    def endpoint() -> None:
        with database.store() as store:
            store.execute("SELECT 1")
            store.add(thing)
            if is_first():
                proxy.cut("reset", at=1)
                store.block_implicit_flushes()
                store.execute("SELECT 1")
            store.commit()

    assert request(endpoint, database) == (200, "2", "recovered")
    assert names(server) == ["a"]


def test_store_that_the_app_closed(database: Database) -> None:
    """Closing the attempt's store is a mistake, and the message says so."""

    def endpoint() -> None:
        with database.store() as store:
            store.close()
        with database.store():
            raise AssertionError("not reached")

    with pytest.raises(RuntimeError, match="was closed by the app"):
        request(endpoint, database)


def test_store_that_outlives_its_attempt(pooled: Database, proxy: FaultProxy) -> None:
    """A store that somebody kept opens nothing, and touches nobody's connection."""
    kept: list[Any] = []

    def endpoint() -> None:
        with pooled.store() as store:
            kept.extend([store, store.execute("SELECT 1")])

    assert request(endpoint, pooled) == (200, None, None)
    store, result = kept
    result.close()
    with pytest.raises(ClosedError):
        store.execute("SELECT 1")
    with pytest.raises(ConnectionBlockedError):
        store.commit()
    assert pool_of(pooled).checkedout() == 0
    assert proxy.accepted == 1


def test_lost_store_that_outlives_its_attempt(database: Database, proxy: FaultProxy) -> None:
    """One whose connection was lost does not connect again."""
    kept: list[Any] = []

    def endpoint() -> None:
        with database.store() as store:
            kept.append(store)
            proxy.cut_all("reset")
            store.execute("SELECT 1")

    assert request(endpoint, database, policy=RetryPolicy(max_replays=0))[0] == 503
    kept[0].unblock_access()
    with pytest.raises(ClosedError):
        kept[0].commit()
    assert proxy.accepted == 1


def test_outside_a_request(
    database: Database, server: MariaDB | PostgreSQL, proxy: FaultProxy
) -> None:
    """In a script each block has a store of its own; what it does not commit is undone."""
    with database.store() as one, database.store() as other:
        assert one is not other
        one.add(Thing("a"))
        one.commit()
        one.add(Thing("b"))
        one.flush()
    proxy.wait_for_connections(0)
    assert names(server) == ["a"]


def test_outside_a_request_it_is_storm(database: Database, proxy: FaultProxy) -> None:
    """In a script a lost connection is what it is in Storm: another exception each time."""
    with database.store() as store:
        proxy.cut_all("reset")
        with pytest.raises(DisconnectionError) as first:
            store.execute("SELECT 1")
        with pytest.raises(DisconnectionError, match="Already disconnected") as second:
            store.execute("SELECT 1")
        assert first.value is not second.value
        store.rollback()
        store.execute("SELECT 1")


def test_two_phase(postgresql: PostgreSQL, postgresql_proxy: FaultProxy) -> None:
    """G4: a two-phase transaction is committed or undone as others are."""
    pool = functools.partial(QueuePool, pool_size=1, max_overflow=0, timeout=0.2)
    database = Database(uri(postgresql, postgresql_proxy), pool=pool)
    xids = iter([Xid(0, str(number), "") for number in range(9)])

    def forget() -> None:
        with database.store() as store:
            store.begin(next(xids))
            store.add(Thing("forgotten"))
            store.flush()

    def prepare() -> None:
        with database.store() as store:
            store.begin(next(xids))
            store.execute("SELECT 1")
            with pytest.raises(StormError, match="prepared transactions are disabled"):
                store.prepare()
            store.rollback()
            assert store._connection.recover() == []

    @rollback_safe
    def commit() -> None:
        with database.store() as store:
            store.begin(next(xids))
            store.add(Thing("a"))
            store.commit()
            postgresql_proxy.cut("reset", at=1)
            store.execute("SELECT 1")

    @rollback_safe
    def lose() -> None:
        with database.store() as store:
            store.begin(next(xids))
            store.add(Thing("b"))
            postgresql_proxy.cut("reset", at="commit")
            store.commit()

    @rollback_safe
    def recover() -> None:
        with database.store() as store:
            postgresql_proxy.cut("reset", at=1)
            store._connection.commit(next(xids))

    with things(postgresql):
        assert request(forget, database) == (200, None, None)
        assert request(prepare, database) == (200, None, None)
        assert postgresql_proxy.accepted == 1
        assert request(commit, database) == (503, "1", "committed")
        assert request(lose, database) == (503, "1", "unknown")
        assert request(recover, database) == (503, "1", "unknown")
        assert names(postgresql) == ["a", "b"]
    pool_of(database).dispose()


# With a pool.


def test_pooled_connection_is_used_again(pooled: Database, proxy: FaultProxy) -> None:
    """A healthy connection goes back to the pool, and the next request gets it; so it does after
    a value that can't be sent."""

    def endpoint() -> None:
        with pooled.store() as store:
            with pytest.raises((StormError, ValueError, TypeError)):
                store.execute("SELECT ?, ?", ("a\0",))
            store.rollback()

    for _ in range(2):
        assert request(endpoint, pooled) == (200, None, None)
    assert proxy.accepted == 1


def test_autocommit_does_not_leak_through_the_pool(
    mariadb: MariaDB, mariadb_proxy: FaultProxy
) -> None:
    """G1: the next request finds a connection as the first one found it."""
    pool = functools.partial(QueuePool, pool_size=1, max_overflow=0, timeout=0.2)
    database = Database(uri(mariadb, mariadb_proxy), pool=pool)

    def switch() -> None:
        execute(database, "SET autocommit = 1")

    def forget() -> None:
        execute(database, "INSERT INTO things VALUES ('forgotten')")

    with things(mariadb):
        assert request(switch, database) == request(forget, database) == (200, None, None)
        assert names(mariadb) == []
    pool_of(database).dispose()


def test_driver_connection_that_the_app_closed(mariadb: MariaDB, mariadb_proxy: FaultProxy) -> None:
    """A connection that can't be tidied up is thrown away, and the error logged."""
    pool = functools.partial(QueuePool, pool_size=1, max_overflow=0, timeout=0.2)
    database = Database(uri(mariadb, mariadb_proxy), pool=pool)
    kept: list[Any] = []

    def endpoint() -> None:
        with database.store() as store:
            kept.append(store.execute("SELECT 1"))
            store._connection._driver.close()

    for _ in range(2):
        assert request(endpoint, database) == (200, None, None)
    assert pool_of(database).checkedout() == 0
    assert mariadb_proxy.accepted == 2
    pool_of(database).dispose()


def test_pool_is_renewed_once(pooled: Database, server: MariaDB | PostgreSQL) -> None:
    """Of two attempts that lose their connections at once only one renews the pool."""
    first = pool_of(pooled)
    with pooled.store() as one, pooled.store() as other:
        one.execute("SELECT 1")
        other.execute("SELECT 1")
        server.kill_connections()
        one.rollback()
        renewed = pool_of(pooled)
        other.rollback()
        for store in (one, other):
            store.execute("SELECT 1")
    assert first is not renewed is pool_of(pooled)
    assert renewed.checkedout() == 0


@pytest.mark.timeout(20)
def test_pool_that_is_renewed_within_being_renewed(
    mariadb: MariaDB, mariadb_proxy: FaultProxy
) -> None:
    """G8: a garbage collection may close a store while the pool is renewed; nobody waits for
    itself."""

    class Pool(QueuePool):
        def recreate(self) -> Any:
            while lost:
                lost.pop().rollback()
            return super().recreate()

    lost: list[Any] = []
    database = Database(uri(mariadb, mariadb_proxy), pool=functools.partial(Pool, pool_size=2))
    with database.store() as one, database.store() as other:
        one.execute("SELECT 1")
        other.execute("SELECT 1")
        mariadb.kill_connections()
        lost.append(other)
        one.rollback()
        for store in (one, other):
            store.execute("SELECT 1")
    pool_of(database).dispose()


def test_session_that_is_not_as_it_was(mariadb: MariaDB, mariadb_proxy: FaultProxy) -> None:
    """G1: a connection whose session has more than a rollback undoes goes to nobody else."""
    pool = functools.partial(QueuePool, pool_size=1, max_overflow=0, timeout=0.2)
    database = Database(uri(mariadb, mariadb_proxy), pool=pool)

    def endpoint() -> None:
        assert execute(database, "SELECT IS_FREE_LOCK('things')") == [(1,)]
        execute(database, "SELECT GET_LOCK('things', 0)")

    for _ in range(2):
        assert request(endpoint, database) == (200, None, None)
        mariadb_proxy.wait_for_connections(0)
    pool_of(database).dispose()


def test_swallowed_and_committed(server: MariaDB | PostgreSQL, proxy: FaultProxy) -> None:
    """A statement that was refused and swallowed: PostgreSQL would roll back on COMMIT, so the
    client is not told that all went well. MariaDB commits the rest."""
    database = Database(uri(server, proxy), commit="on-success")

    def endpoint() -> None:
        for _ in range(2):
            with contextlib.suppress(IntegrityError):
                execute(database, "INSERT INTO things VALUES ('a')")

    if isinstance(server, MariaDB):
        assert request(endpoint, database) == (200, None, None)
        assert names(server) == ["a"]
    else:
        with pytest.raises(InternalError, match="current transaction is aborted"):
            request(endpoint, database)
        assert names(server) == []


@pytest.mark.parametrize("with_pool", [False, True])
def test_thread_in_a_statement(
    database: Database, pooled: Database, server: MariaDB | PostgreSQL, with_pool: bool
) -> None:
    """G6: a statement that a thread left behind is cut off after two seconds, and the connection
    goes to nobody else."""
    chosen = pooled if with_pool else database
    threads: list[threading.Thread] = []
    sleep = "SLEEP" if isinstance(server, MariaDB) else "pg_sleep"

    def linger() -> None:
        with chosen.store() as store, pytest.raises(StormError):
            store.execute(f"SELECT {sleep}(20)")

    def endpoint() -> None:
        with chosen.store():
            pass
        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(linger,)))
        threads[0].start()
        server.wait_for_sleep()
        raise LookupError("a bug")

    start = monotonic()
    with pytest.raises(LookupError):
        request(endpoint, chosen)
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert monotonic() - start < 15
    assert pool_of(pooled).checkedout() == 0


@pytest.mark.parametrize("with_pool", [False, True])
def test_thread_that_can_not_be_stopped(
    database: Database,
    pooled: Database,
    server: MariaDB | PostgreSQL,
    proxy: FaultProxy,
    with_pool: bool,
) -> None:
    """G6: a thread that does not come back, in a tracer for example, delays the end by a few
    seconds; its connection is closed when it does."""
    chosen = pooled if with_pool else database
    threads: list[threading.Thread] = []
    started, finish = threading.Event(), threading.Event()

    class Stuck:
        def connection_raw_execute(self, *_: object) -> None:
            started.set()
            finish.wait(20)

    def linger() -> None:
        with chosen.store() as store, pytest.raises((StormError, AttributeError)):
            store.execute("SELECT 1")

    def endpoint() -> None:
        with chosen.store():
            pass
        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(linger,)))
        threads[0].start()
        started.wait(10)
        raise LookupError("a bug")

    tracer = Stuck()
    install_tracer(tracer)
    try:
        start = monotonic()
        with pytest.raises(LookupError):
            request(endpoint, chosen)
        assert monotonic() - start < 15
    finally:
        remove_tracer(tracer)
        finish.set()
        threads[0].join(10)
    assert not threads[0].is_alive()
    assert pool_of(pooled).checkedout() == 0
    proxy.wait_for_connections(0)


# What is given.


def test_storms_own_database(server: MariaDB | PostgreSQL, proxy: FaultProxy) -> None:
    """A database of Storm's can be given, and is itself as it was."""
    storms = create_database(uri(server, proxy))
    database = Database(storms)
    assert request(lambda: commit(database), database) == (200, None, None)
    store = Store(storms)
    assert type(store._connection) is type(storms).connection_factory
    store.close()


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ("sqlite:", {}, TypeError, "allowed: the URI of a MySQL or PostgreSQL"),
        (None, {}, TypeError, "Database was given None"),
        ("mysq://h/d", {}, ValueError, "scheme is 'mysq'; allowed: 'mysql', 'postgres'"),
        ("mysql://h/d?read_timeout=soon", {}, ValueError, "read_timeout is 'soon'"),
        ("mysql://h/d", {"commit": "always"}, ValueError, "commit is 'always'"),
    ],
)
def test_wrong_arguments(
    given: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    """What can't work is refused at start-up, with what is allowed."""
    with pytest.raises(error, match=message):
        Database(given, **options)


def test_nothing_waits_without_a_bound() -> None:
    """Timeouts that the URI does not have are finite."""
    mysql = Database("mysql://h/d?read_timeout=5")._database._connect_kwargs
    assert {name: mysql[name] for name in mysql if name.endswith("timeout")} == {
        "connect_timeout": 10,
        "read_timeout": 5,
        "write_timeout": 30,
    }
    assert "connect_timeout=10" in Database("postgres://h/d")._database._dsn
    assert "connect_timeout=3" in Database("postgres://h/d?connect_timeout=3")._database._dsn


def test_repr_has_no_password() -> None:
    """The object names its server in logs, and keeps the password to itself."""
    database = Database("postgres://u:secret@db:5433/shop")
    assert repr(database) == "<Database postgres://db:5433/shop>"


# Cutting.


def test_cut_after() -> None:
    """What waits for a silent peer for too long is cut, and told of if it did not notice."""
    one, other = socket.socketpair()
    with (
        one,
        other,
        pytest.raises(TimeoutError, match=r"was cut after 0\.1 s"),
        cut_after(one, 0.1),
    ):
        assert one.recv(1) == b""


def test_cut_after_several() -> None:
    """The one that is due first is cut first."""
    with contextlib.ExitStack() as sockets:
        pairs = [[sockets.enter_context(end) for end in socket.socketpair()] for _ in range(2)]
        start = monotonic()
        with (
            pytest.raises(TimeoutError),
            cut_after(pairs[0][0], 30),
            cut_after(pairs[1][0], 0.1),
        ):
            assert pairs[1][0].recv(1) == b""
        assert monotonic() - start < 10
        pairs[0][1].send(b"x")
        assert pairs[0][0].recv(1) == b"x"


def test_cut_what_is_closed() -> None:
    """A socket whose number is another one's by now is left alone; what has none as well."""
    one, other = socket.socketpair()
    wire = Wire(one)
    number = one.fileno()
    one.close()
    new, newer = socket.socketpair()
    with other, new, newer:
        os.dup2(new.fileno(), number)
        try:
            wire.cut()
            Wire(one).cut()
            cut(object())
            new.send(b"x")
            assert newer.recv(1) == b"x"
        finally:
            if number not in (new.fileno(), newer.fileno()):
                os.close(number)
