"""SQLAlchemy's sessions and watched engines, on real servers behind the fault proxy."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import tenacity
from anyio.from_thread import BlockingPortal
from sqlalchemy import Engine, String, create_engine, event, exc, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from retrymw import DisconnectionError, RetryPolicy, current_attempt, rollback_safe
from retrymw.adapters import _sqlalchemy_watch
from retrymw.adapters.sqlalchemy import AsyncDatabase, Database, watch
from retrymw.asgi import RetryMiddleware
from retrymw.testing import AdapterConformance, FaultProxy
from retrymw.testing.conformance import (
    AccountingConformance,
    Subject,
    UnitOfWorkConformance,
)
from retrymw.testing.conformance._stage import things
from retrymw.testing.servers import MariaDB, PostgreSQL
from retrymw.typing import Report

Endpoint = Callable[[Request], Any]
Server = MariaDB | PostgreSQL

PYMYSQL = "mysql+pymysql"
PSYCOPG = "postgresql+psycopg"
DRIVERS = [
    PYMYSQL,
    "mysql+mysqldb",
    "mysql+mysqlconnector",
    "mariadb+mariadbconnector",
    PSYCOPG,
    "postgresql+psycopg2",
    "postgresql+pg8000",
]
ASYNC_DRIVERS = [
    "mysql+aiomysql",
    "mysql+asyncmy",
    "postgresql+asyncpg",
    "postgresql+psycopg_async",
]
OPTIONS = {
    PYMYSQL: {"connect_args": {"read_timeout": 5, "ssl_disabled": True}},
    "mysql+mysqlconnector": {"connect_args": {"ssl_disabled": True}},
    "postgresql+asyncpg": {"connect_args": {"ssl": False}},
}

# What the server answers to a transaction that lost.
CONFLICTS = {
    "mariadb": text("SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213"),
    "postgresql": text("SELECT conflict()"),
}

CONFORMING_DRIVERS = [PYMYSQL, "mysql+mysqldb", PSYCOPG, "postgresql+psycopg2"]

every_driver = pytest.mark.parametrize("driver", DRIVERS)
every_async_driver = pytest.mark.parametrize("driver", ASYNC_DRIVERS)
on_mariadb = pytest.mark.parametrize("driver", [PYMYSQL])
on_postgresql = pytest.mark.parametrize("driver", [PSYCOPG])


class Base(DeclarativeBase):
    """The tables."""


class Thing(Base):
    """A thing has a name."""

    __tablename__ = "things"
    name: Mapped[str] = mapped_column(String(50), primary_key=True)


@pytest.fixture(params=[PYMYSQL, PSYCOPG])
def driver(request: pytest.FixtureRequest) -> str:
    """A dialect and its driver: one for each server, where a test does not say more."""
    return str(request.param)


@pytest.fixture
def kind(driver: str) -> str:
    """The driver's kind of server."""
    return "postgresql" if driver.startswith("postgresql") else "mariadb"


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The driver's server, with a table for things."""
    server: Server = request.getfixturevalue(kind)
    with things(server):
        yield server


@pytest.fixture
def proxy(kind: str, server: Server, request: pytest.FixtureRequest) -> FaultProxy:
    """The fault proxy before the driver's server."""
    proxy: FaultProxy = request.getfixturevalue(f"{kind}_proxy")
    return proxy


@pytest.fixture
def url(driver: str, server: Server, proxy: FaultProxy) -> str:
    return f"{driver}://{server.user}:{server.password}@{proxy.host}:{proxy.port}/{server.database}"


Make = Callable[..., Any]


@pytest.fixture
def make_engine(driver: str, url: str) -> Iterator[Make]:
    """Make an engine that connects through the proxy, to a pool of two."""
    engines: list[Engine] = []

    def make(**options: Any) -> Engine:
        defaults = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 0.2}
        engines.append(create_engine(url, **defaults | OPTIONS.get(driver, {}) | options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def database(make_engine: Make) -> Database:
    return Database(make_engine())


@pytest.fixture
def conflict(kind: str) -> Any:
    return CONFLICTS[kind]


def names(server: Server) -> list[str]:
    """What is stored, as the server itself sees it."""
    return [row[0] for row in server.execute("SELECT name FROM app.things ORDER BY name")]


def request(
    endpoint: Endpoint, *databases: Any, method: str = "GET", **options: Any
) -> httpx.Response:
    """One request to an app with one endpoint."""
    return anyio.run(lambda: send(endpoint, *databases, method=method, **options))


async def send(
    endpoint: Endpoint, *databases: Any, method: str = "GET", **options: Any
) -> httpx.Response:
    options = {"policy": RetryPolicy(wait=tenacity.wait_none())} | options
    app = Starlette(routes=[Route("/", endpoint, methods=[method])])
    app.add_middleware(RetryMiddleware, databases=databases, **options)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://things") as client:
        return await client.request(method, "/")


def outcome(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.headers.get("retry-outcome")


RECOVERED = (200, "recovered")


def first() -> bool:
    return current_attempt().number == 1


# The session.


def test_one_session_for_the_whole_attempt(database: Database) -> None:
    """Async code, its worker threads and nested blocks all see the attempt's one session."""
    seen: list[tuple[Session, str]] = []

    def use() -> None:
        with database.session() as session, database.session() as again:
            assert session is again
            session.scalar(select(1))
            seen.append((session, str(session.connection().connection.dbapi_connection)))

    async def endpoint(request: Request) -> Response:
        use()
        await anyio.to_thread.run_sync(use)
        return PlainTextResponse("")

    assert request(endpoint, database).status_code == 200
    assert len(seen) == 2
    assert len(set(seen)) == 1


def test_opened_on_first_use(database: Database, proxy: FaultProxy) -> None:
    """A request that does not use the session opens no connection."""

    def endpoint(request: Request) -> Response:
        with database.session():
            return PlainTextResponse("")

    assert request(endpoint, database).status_code == 200
    assert proxy.accepted == 0


@every_driver
def test_rolled_back_and_given_back_before_the_wait(
    database: Database, server: Server, conflict: Any
) -> None:
    """G1, G8: the failed attempt's work is undone, and its connection in the pool, by then."""
    then: list[tuple[list[str], int]] = []

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.add(Thing(name=f"attempt {current_attempt().number}"))
            session.flush()
            if first():
                session.execute(conflict)
            session.commit()
        return PlainTextResponse("")

    def note(report: Report) -> None:
        if report.outcome is None:
            then.append((names(server), database._engine.pool.checkedout()))  # type: ignore[attr-defined]

    assert outcome(request(endpoint, database, method="POST", hooks=[note])) == RECOVERED
    assert then == [([], 0)]
    assert names(server) == ["attempt 2"]


def test_outside_a_request(database: Database, server: Server, proxy: FaultProxy) -> None:
    """In a script the same code gets a session of its own, closed at the end."""
    with database.session() as session:
        session.add(Thing(name="a"))
        session.commit()
        session.add(Thing(name="b"))
        session.flush()
    with database.session() as other:
        assert other is not session
    assert names(server) == ["a"]
    with database.session() as session:
        session.connection()
        proxy.cut("reset", at=1)
        with pytest.raises(exc.DBAPIError):
            session.execute(text("SELECT 1"))


def test_session_of_ones_own_make(make_engine: Make) -> None:
    """The sessions are made as the app says."""
    engine = make_engine()
    database = Database(engine, session=sessionmaker(engine, expire_on_commit=False))

    def endpoint(request: Request) -> Response:
        with database.session() as session:
            return PlainTextResponse(str(session.expire_on_commit))

    assert request(endpoint, database).text == "False"


@pytest.mark.parametrize("argument", ["mysql://db/shop", create_engine])
def test_wrong_arguments(argument: Any) -> None:
    """What can't work is refused at start-up."""
    with pytest.raises(TypeError, match="allowed: an Engine"):
        Database(argument)
    with pytest.raises(TypeError, match="allowed: an AsyncEngine"):
        AsyncDatabase(argument)
    with pytest.raises(TypeError, match="allowed: a sessionmaker"):
        Database(create_engine("sqlite://"), session=argument)


def test_repr_has_no_password() -> None:
    """The object names its server in logs, and keeps the password to itself."""
    engine = create_engine("postgresql+psycopg://u:secret@db:5432/shop")
    assert repr(Database(engine)) == "<Database postgresql+psycopg://u:***@db:5432/shop>"


# Failures are seen, whatever the app makes of them.


@every_driver
def test_squashed_failure_is_replayed(database: Database, proxy: FaultProxy) -> None:
    """A failure that the app turns into a 5xx is seen, and the request replayed."""

    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.connection()
            if first():
                proxy.cut("reset", at=1)
            try:
                session.execute(text("SELECT 1"))
            except exc.SQLAlchemyError:
                return PlainTextResponse("sorry", 500)
        return PlainTextResponse("fine")

    response = request(endpoint, database)
    assert (response.text, *outcome(response)) == ("fine", *RECOVERED)


@every_driver
def test_transaction_that_failed_does_not_go_on(
    database: Database, server: Server, conflict: Any
) -> None:
    """Half a transaction is never committed: what follows the failure raises the same exception."""
    errors: list[Exception] = []

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            for name in "ab":
                session.add(Thing(name=name))
                session.flush()
                if name == "a" and first():
                    for step in (
                        lambda: session.execute(conflict),
                        lambda: session.execute(text("SELECT 1")),
                        lambda: session.connection().exec_driver_sql("SELECT 1"),
                    ):
                        try:
                            step()
                        except exc.DBAPIError as error:
                            errors.append(error)
                    session.commit()
            session.commit()
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == RECOVERED
    assert len(errors) == 3
    assert len(set(map(id, errors))) == 1
    assert names(server) == ["a", "b"]


@every_driver
def test_lost_transaction_does_not_go_on(
    database: Database, server: Server, proxy: FaultProxy
) -> None:
    """G3: commit() after a swallowed disconnection sends nothing, so nothing was committed."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.connection()
            if first():
                proxy.cut("reset", at=1)
            for _ in range(2):
                try:
                    session.execute(text("SELECT 1"))
                except (exc.DBAPIError, OSError) as error:  # pg8000 lets the OSError through
                    errors.append(error)
            session.commit()
        return PlainTextResponse("")

    errors: list[Exception] = []
    assert outcome(request(endpoint, database, method="POST")) == RECOVERED
    assert len(errors) == 2
    assert errors[0] is errors[1]


def test_savepoint_does_not_save_a_lost_transaction(
    database: Database, server: Server, conflict: Any
) -> None:
    """A conflict in begin_nested() has undone the outer transaction too."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.add(Thing(name="a"))
            session.flush()
            with suppress(exc.DBAPIError), session.begin_nested():
                if first():
                    session.execute(conflict)
            session.add(Thing(name="b"))
            session.commit()
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == RECOVERED
    assert names(server) == ["a", "b"]


def test_savepoint_of_the_apps_own(database: Database, server: Server) -> None:
    """G5: an error that is no failure of ours is undone to the savepoint, and the work goes on."""

    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.add(Thing(name="a"))
            session.flush()
            with suppress(exc.IntegrityError), session.begin_nested():
                session.execute(text("INSERT INTO things VALUES ('a')"))
            session.add(Thing(name="b"))
            session.commit()
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (200, None)
    assert names(server) == ["a", "b"]


# Commits.

LOST: dict[str, Callable[[Session, Any], object]] = {
    "commit()": lambda session, cut: (cut(), session.commit()),
    "COMMIT as SQL": lambda session, cut: (cut(), session.execute(text("commit"))),
    "swallowed": lambda session, cut: (cut(), _swallow(session)),
}


def _swallow(session: Session) -> None:
    with suppress(exc.DBAPIError):
        session.commit()
    raise exc.OperationalError("", {}, Exception("something else"))


@every_driver
@pytest.mark.parametrize("name", LOST)
def test_lost_answer_to_a_commit(
    database: Database, server: Server, proxy: FaultProxy, name: str
) -> None:
    """G4: whatever commits, when its answer is lost the outcome is unknown."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.add(Thing(name="a"))
            session.flush()
            try:
                LOST[name](session, lambda: proxy.cut("reset", at="commit"))
            except exc.DBAPIError:
                return PlainTextResponse("sorry", 500)
        return PlainTextResponse("")

    response = request(endpoint, database, method="POST")
    assert outcome(response) == (503, "unknown")
    assert "retry-after" not in response.headers
    assert names(server) == ["a"]


@every_driver
def test_autocommit(make_engine: Make, server: Server, proxy: FaultProxy) -> None:
    """G4: under AUTOCOMMIT every write is a COMMIT of its own, and no read is."""
    database = Database(make_engine(isolation_level="AUTOCOMMIT"))

    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.scalars(select(Thing)).all()
            if request.method == "POST":
                session.execute(text("INSERT INTO things VALUES ('a')"))
            if first():
                proxy.cut("reset", at=1)
            session.scalar(select(1))
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="PUT")) == RECOVERED
    marked = rollback_safe(endpoint)
    assert outcome(request(marked, database, method="POST")) == (503, "committed")
    assert names(server) == ["a"]


# MySQL Connector asks the server before each statement whether it is there.
@pytest.mark.parametrize("driver", [name for name in DRIVERS if name != "mysql+mysqlconnector"])
def test_lost_answer_under_autocommit(make_engine: Make, server: Server, proxy: FaultProxy) -> None:
    """G4: a write under AUTOCOMMIT whose answer is lost may have been carried out."""
    database = Database(make_engine(isolation_level="AUTOCOMMIT"))

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.scalar(select(1))
            proxy.cut("reset", at=1)
            session.execute(text("INSERT INTO things VALUES ('a')"))
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (503, "unknown")


@on_mariadb
def test_autocommit_of_the_driver(make_engine: Make, server: Server, proxy: FaultProxy) -> None:
    """G4: it counts as well where only the driver was told of it."""
    options = OPTIONS[PYMYSQL]["connect_args"] | {"autocommit": True}
    database = Database(make_engine(connect_args=options))

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.execute(text("INSERT INTO things VALUES ('a')"))
            proxy.cut("reset", at=1)
            session.scalar(select(1))
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (503, "committed")


@pytest.mark.parametrize(
    ("driver", "expected"), [(PYMYSQL, (503, "committed")), (PSYCOPG, RECOVERED)]
)
def test_ddl(
    database: Database, server: Server, proxy: FaultProxy, expected: tuple[int, str]
) -> None:
    """G4: DDL commits in MariaDB, and does not in PostgreSQL."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.execute(text("CREATE TABLE more (x INT)"))
            if first():
                proxy.cut("reset", at=1)
            session.scalar(select(1))
        return PlainTextResponse("")

    try:
        assert outcome(request(endpoint, database, method="POST")) == expected
    finally:
        server.execute("DROP TABLE IF EXISTS app.more")


@on_mariadb
@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "AUTOCOMMIT"])
def test_half_of_many(
    make_engine: Make, server: Server, proxy: FaultProxy, isolation_level: str
) -> None:
    """G4: of many rows the first may have been written before another one is refused."""
    database = Database(make_engine(isolation_level=isolation_level))

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            update = text("UPDATE things SET name = :new WHERE name = :old")
            with suppress(exc.DBAPIError):
                session.execute(update, [{"old": "a", "new": "c"}, {"old": "b", "new": "x" * 99}])
            session.commit()
            session.connection()
            proxy.cut("reset", at=1)
            session.scalar(select(1))
        return PlainTextResponse("")

    server.execute("INSERT INTO app.things VALUES ('a'), ('b')")
    assert outcome(request(endpoint, database, method="POST")) == (503, "committed")
    assert names(server) == ["b", "c"]


@on_mariadb
def test_refused_ddl(database: Database, server: Server, proxy: FaultProxy) -> None:
    """G4: what went before DDL is committed even if the DDL is refused."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.add(Thing(name="a"))
            session.flush()
            with suppress(exc.DBAPIError):
                session.execute(text("CREATE TABLE things (x INT)"))
            proxy.cut("reset", at=1)
            session.scalar(select(1))
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == (503, "committed")
    assert names(server) == ["a"]


@on_postgresql
def test_refused_commit(database: Database, server: Server, proxy: FaultProxy) -> None:
    """G3: a COMMIT that the server refuses has committed nothing."""
    server.execute(
        "ALTER TABLE app.things ADD CONSTRAINT late UNIQUE (name) DEFERRABLE INITIALLY DEFERRED"
    )
    server.execute("ALTER TABLE app.things DROP CONSTRAINT things_pkey")

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            if first():
                session.execute(text("INSERT INTO things VALUES ('a'), ('a')"))
                with pytest.raises(exc.IntegrityError):
                    session.commit()
                session.rollback()
                session.connection()
                proxy.cut("reset", at=1)
            session.add(Thing(name="a"))
            session.commit()
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == RECOVERED
    assert names(server) == ["a"]


@on_mariadb
@pytest.mark.parametrize("lost", [True, False])
def test_two_phase(make_engine: Make, server: Server, proxy: FaultProxy, lost: bool) -> None:
    """G4: the COMMIT of a two-phase transaction counts as one."""
    engine = make_engine()
    database = Database(engine, session=sessionmaker(engine, twophase=True))

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.add(Thing(name="a"))
            session.flush()
            if lost:
                proxy.cut("reset", at=3)  # after XA END and XA PREPARE
            session.commit()
            session.connection()
            proxy.cut("reset", at=1)
            session.scalar(select(1))
        return PlainTextResponse("")

    expected = "unknown" if lost else "committed"
    assert outcome(request(endpoint, database, method="POST")) == (503, expected)
    assert names(server) == ["a"]


# The pool.


@every_driver
def test_pool_after_a_restart(database: Database, server: Server) -> None:
    """After a restart one replay is enough: no other dead connection is handed out."""
    engine = database._engine
    with engine.connect(), engine.connect():
        pass  # two connections in the pool
    server.kill()
    server.start()

    def endpoint(request: Request) -> Response:
        with database.session() as session:
            return PlainTextResponse(str(session.scalar(select(1))))

    for expected in (("2", *RECOVERED), (None, 200, None)):
        response = request(endpoint, database)
        assert (response.headers.get("retry-attempts"), *outcome(response)) == expected


def test_pre_ping_is_the_pools_own_business(
    make_engine: Make, server: Server, proxy: FaultProxy
) -> None:
    """G5: a connection that the pool finds dead and replaces is no failure."""
    database = Database(make_engine(pool_pre_ping=True))
    database.ping()
    server.kill_connections()

    def endpoint(request: Request) -> Response:
        with database.session() as session:
            session.scalar(select(1))
        return PlainTextResponse("the app's own", 500)

    assert outcome(request(endpoint, database)) == (500, None)


# Undoing is bounded.


def test_thread_in_a_statement_does_not_delay_the_end(
    database: Database, server: Server, kind: str
) -> None:
    """G6: a statement that a thread left behind is cut off, its connection never used again."""
    threads: list[threading.Thread] = []
    errors: list[Exception] = []
    sleep = "SELECT pg_sleep(20)" if kind == "postgresql" else "SELECT SLEEP(20)"

    def linger() -> None:
        with database.session() as session:
            try:
                session.execute(text(sleep))
            except exc.SQLAlchemyError as error:
                errors.append(error)

    def endpoint(request: Request) -> Response:
        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(linger,)))
        threads[0].start()
        server.wait_for_sleep()
        raise LookupError("a bug")

    start = monotonic()
    with pytest.raises(LookupError):
        request(endpoint, database)
    threads[0].join(10)
    assert monotonic() - start < 10
    assert len(errors) == 1
    for number in range(3):
        with database.session() as session:
            assert session.scalar(select(number)) == number


# Watched engines, whose connections are the app's own.


@pytest.fixture(params=["one", "every", "both", "options"])
def watched(make_engine: Make, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine that is watched in one of the ways there are."""
    engine: Engine = make_engine()
    if request.param != "every":
        watch(engine)
        watch(engine)
    if request.param in ("every", "both"):
        watch()
        watch()
    yield engine.execution_options(stream_results=False) if request.param == "options" else engine
    if Engine in _sqlalchemy_watch._watched:
        for name, listener in _sqlalchemy_watch._LISTENERS:
            event.remove(Engine, name, listener)
        _sqlalchemy_watch._watched.discard(Engine)


def test_watched_begin(watched: Engine, server: Server, proxy: FaultProxy) -> None:
    """G4: the commit at the end of an engine.begin() block is seen."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with watched.begin() as connection:
            connection.execute(text("INSERT INTO things VALUES ('a')"))
        with watched.connect() as connection:
            proxy.cut("reset", at=1)
            connection.scalar(select(1))
        return PlainTextResponse("")

    assert outcome(request(endpoint, method="POST")) == (503, "committed")
    assert names(server) == ["a"]


def test_watched_session(watched: Engine, server: Server, proxy: FaultProxy) -> None:
    """A session that the app makes and closes dooms the attempt when it fails."""

    @rollback_safe
    def endpoint(request: Request) -> Response:
        try:
            with Session(watched) as session, session.begin():
                session.add(Thing(name="a"))
                session.flush()
                if first():
                    proxy.cut("reset", at=1)
                session.scalar(select(1))
        except exc.DBAPIError:
            return PlainTextResponse("sorry", 500)
        return PlainTextResponse("")

    assert outcome(request(endpoint, method="POST")) == RECOVERED
    assert names(server) == ["a"]


def test_watched_pool_runs_dry(watched: Engine) -> None:
    """An empty pool is seen as well."""
    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(watched.connect())

        def endpoint(request: Request) -> Response:
            try:
                with watched.connect():
                    return PlainTextResponse("fine")
            except exc.TimeoutError:
                return PlainTextResponse("sorry", 503)

        response = request(endpoint, hooks=[lambda report: taken.close()])
    assert outcome(response) == RECOVERED


# Async.


@pytest.fixture
def run(driver: str, url: str) -> Callable[..., httpx.Response]:
    """One request to an async app; its endpoint is made with the database."""

    def run(make_endpoint: Callable[[AsyncDatabase], Endpoint], **options: Any) -> httpx.Response:
        async def main() -> httpx.Response:
            engine = create_async_engine(url, pool_size=2, **OPTIONS.get(driver, {}))
            make = async_sessionmaker(engine, expire_on_commit=False)
            database = AsyncDatabase(engine, session=make)
            try:
                await database.ping()
                return await send(make_endpoint(database), database, **options)
            finally:
                assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
                await engine.dispose()

        return anyio.run(main)

    return run


@every_async_driver
def test_async_outside_a_request(driver: str, url: str, server: Server) -> None:
    """In a script the same code gets a session of its own, closed at the end."""

    async def script() -> None:
        engine: AsyncEngine = create_async_engine(url, **OPTIONS.get(driver, {}))
        database = AsyncDatabase(engine)
        assert "***" in repr(database)
        async with database.session() as session:
            session.add(Thing(name="a"))
            await session.commit()
            session.add(Thing(name="b"))
            await session.flush()
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await engine.dispose()

    anyio.run(script)
    assert names(server) == ["a"]


@every_async_driver
def test_async_task_in_a_statement(
    run: Callable[..., httpx.Response], server: Server, kind: str
) -> None:
    """G1: a statement that a task left behind does not keep its connection."""
    sleep = "SELECT pg_sleep(20)" if kind == "postgresql" else "SELECT SLEEP(20)"
    start = monotonic()

    def make(database: AsyncDatabase) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            async def linger() -> None:
                async with database.session() as session:
                    await session.execute(text(sleep))

            tasks.append(asyncio.create_task(linger()))
            await anyio.to_thread.run_sync(server.wait_for_sleep)
            return PlainTextResponse("")

        return endpoint

    tasks: list[asyncio.Task[None]] = []
    assert outcome(run(make)) == (200, None)
    assert monotonic() - start < 10


# What outlives its attempt.


def test_thread_that_kept_the_session(database: Database, server: Server) -> None:
    """G4: a thread of a failed attempt can not commit, with its session, what is replayed."""
    replayed, errors = threading.Event(), []
    threads: list[threading.Thread] = []

    def late(session: Session) -> None:
        replayed.wait(10)
        try:
            session.add(Thing(name="late"))
            session.commit()
        except RuntimeError as error:
            errors.append(error)

    @rollback_safe
    def endpoint(request: Request) -> Response:
        with database.session() as session:
            if first():
                session.add(Thing(name="first"))
                session.flush()
                run = contextvars.copy_context().run
                threads.append(threading.Thread(target=run, args=(late, session)))
                threads[0].start()
                raise DisconnectionError("elsewhere")
            replayed.set()
            threads[0].join(10)
            session.add(Thing(name="second"))
            session.commit()
        return PlainTextResponse("")

    assert outcome(request(endpoint, database, method="POST")) == RECOVERED
    assert "is over" in str(errors[0])
    assert names(server) == ["second"]


@every_async_driver
def test_async_sibling_that_kept_the_session(
    run: Callable[..., httpx.Response], server: Server
) -> None:
    """G4: so does no task; gather() does not cancel the others when one of them fails."""
    tasks: list[asyncio.Task[None]] = []

    def make(database: AsyncDatabase) -> Endpoint:
        async def sibling(session: Any, failed: asyncio.Event) -> None:
            await failed.wait()
            session.add(Thing(name="late"))
            await session.commit()

        @rollback_safe
        async def endpoint(request: Request) -> Response:
            async with database.session() as session:
                if first():
                    failed = asyncio.Event()
                    tasks.append(asyncio.create_task(sibling(session, failed)))
                    current_attempt().on_rollback(failed.set)
                    raise DisconnectionError("elsewhere")
                with pytest.raises(RuntimeError, match="is over"):
                    await tasks[0]
                session.add(Thing(name="second"))
                await session.commit()
            return PlainTextResponse("")

        return endpoint

    assert outcome(run(make, method="POST")) == RECOVERED
    assert names(server) == ["second"]


@pytest.mark.parametrize("connects", [Session, Engine.connect])
def test_failed_transaction_of_a_watched_engine(
    make_engine: Make, server: Server, conflict: Any, connects: Callable[[Engine], Any]
) -> None:
    """G1, G4: half a transaction that the app commits all the same is not left in the pool, for
    the next request to commit."""
    engine = make_engine(pool_size=1)
    watch(engine)

    def half(request: Request) -> Response:
        with connects(engine) as connection:
            connection.execute(text("INSERT INTO things VALUES ('half')"))
            with suppress(exc.DBAPIError):
                connection.execute(conflict)
            connection.commit()
        return PlainTextResponse("")

    def whole(request: Request) -> Response:
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO things VALUES ('whole')"))
        return PlainTextResponse("")

    assert outcome(request(half, method="POST")) == (503, "not-replayable")
    assert outcome(request(whole, method="POST")) == (200, None)
    assert names(server) == ["whole"]


@on_mariadb
def test_session_of_another_engine(make_engine: Make) -> None:
    """Sessions of an engine that is not watched are refused at start-up."""
    with pytest.raises(TypeError, match="same engine"):
        Database(make_engine(), session=sessionmaker(make_engine()))


# The conformance suite.


class OnServer:
    """What the classes below have in common."""

    @pytest.fixture
    def server(self, kind: str, request: pytest.FixtureRequest) -> Server:
        """The driver's server; the suite has a table of its own."""
        server: Server = request.getfixturevalue(kind)
        return server

    @pytest.fixture
    def proxy(self, server: Server) -> Iterator[FaultProxy]:
        """The suite's own."""
        with FaultProxy((server.host, server.port), server.protocol) as proxy:
            yield proxy


class Sync(OnServer):
    """A request session."""

    @pytest.fixture
    def subject(self, make_engine: Make, size: int) -> Subject:
        engine = make_engine(pool_size=size)

        def subject(**options: Any) -> Subject:
            database = Database(engine, **options)

            def execute(sql: str) -> Any:
                with database.session() as session:
                    result = session.execute(text(sql))
                    return result.all() if result.returns_rows else []

            def call(name: str) -> None:
                with database.session() as session:
                    getattr(session, name)()

            return Subject(
                database,
                execute,
                commit=lambda: call("commit"),
                rollback=lambda: call("rollback"),
                in_use=engine.pool.checkedout,
            )

        made = subject()
        made.unit = subject(commit="on-success")
        return made


class Async(OnServer):
    """An async request session."""

    shells = ("asgi",)

    @pytest.fixture
    def subject(
        self, driver: str, url: str, portal: BlockingPortal, size: int
    ) -> Iterator[Subject]:
        engine = create_async_engine(
            url, pool_size=size, max_overflow=0, pool_timeout=0.2, **OPTIONS.get(driver, {})
        )

        def subject(**options: Any) -> Subject:
            database = AsyncDatabase(engine, **options)

            async def execute(sql: str) -> Any:
                async with database.session() as session:
                    result = await session.execute(text(sql))
                    return result.all() if result.returns_rows else []

            async def call(name: str) -> None:
                async with database.session() as session:
                    await getattr(session, name)()

            return Subject(
                database,
                execute,
                commit=lambda: call("commit"),
                rollback=lambda: call("rollback"),
                in_use=engine.pool.checkedout,
            )

        made = subject()
        made.unit = subject(commit="on-success")
        yield made
        portal.call(engine.dispose)


@pytest.mark.parametrize("driver", CONFORMING_DRIVERS)
class TestConformance(Sync, AdapterConformance, UnitOfWorkConformance):
    """The conformance suite, on the drivers that can be cut short."""


@every_async_driver
class TestAsyncConformance(Async, AdapterConformance, UnitOfWorkConformance):
    """The conformance suite, on all async drivers."""


@pytest.mark.parametrize("driver", CONFORMING_DRIVERS)
class TestAccounting(Sync, AccountingConformance):
    """Every order is accounted for."""


@every_async_driver
class TestAsyncAccounting(Async, AccountingConformance):
    """Every order is accounted for."""
