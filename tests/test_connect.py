"""Scripts wait for their connection, and requests do not (G7, G6)."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any
from wsgiref.util import setup_testing_defaults

import aiomysql
import anyio
import asyncmy
import asyncpg
import httpx
import mariadb as mariadb_connector
import mysql.connector
import mysql.connector.aio
import MySQLdb
import pg8000.dbapi
import psycopg
import psycopg2
import pymysql
import pytest
import sqlalchemy
import tenacity
from sqlalchemy.ext.asyncio import create_async_engine

from retrymw import (
    DisconnectionError,
    RetryPolicy,
    TooManyConnections,
    TransactionConflict,
    current_attempt,
)
from retrymw.asgi import RetryMiddleware as ASGIMiddleware
from retrymw.connect import ConnectPolicy, ConnectWait, connecting
from retrymw.testing import FaultProxy
from retrymw.testing.servers import Server
from retrymw.wsgi import RetryMiddleware as WSGIMiddleware

QUICK = ConnectPolicy(wait=tenacity.wait_fixed(0.01), stop=tenacity.stop_after_attempt(500))
REFUSED = DisconnectionError("refused", phase="connect")


@dataclass
class Driver:
    """How a driver connects."""

    server: str
    connect: Callable[..., Any]
    names: tuple[str, ...] = ("host", "port", "user", "password", "database")
    more: tuple[tuple[str, Any], ...] = ()

    def arguments(self, server: Server, **changes: Any) -> dict[str, Any]:
        given = {
            "host": server.host,
            "port": server.port,
            "user": server.user,
            "password": server.password,
            "database": server.database,
        } | changes
        return dict(zip(self.names, given.values(), strict=True)) | dict(self.more)


MYSQLDB = ("host", "port", "user", "passwd", "db")
PSYCOPG = ("host", "port", "user", "password", "dbname")

DRIVERS = {
    "pymysql": Driver("mariadb", pymysql.connect),
    "MySQLdb": Driver("mariadb", MySQLdb.connect, MYSQLDB),
    "mysql.connector": Driver("mariadb", mysql.connector.connect, more=(("use_pure", False),)),
    "mysql.connector pure": Driver("mariadb", mysql.connector.connect, more=(("use_pure", True),)),
    "mysql.connector.aio": Driver(
        "mariadb", mysql.connector.aio.connect, more=(("ssl_disabled", True),)
    ),
    "mariadb": Driver("mariadb", mariadb_connector.connect),
    "aiomysql": Driver("mariadb", aiomysql.connect, ("host", "port", "user", "password", "db")),
    "aiomysql pool": Driver(
        "mariadb", aiomysql.create_pool, ("host", "port", "user", "password", "db")
    ),
    "asyncmy": Driver("mariadb", asyncmy.connect),
    "asyncmy pool": Driver("mariadb", asyncmy.create_pool),
    "psycopg": Driver("postgresql", psycopg.connect, PSYCOPG),
    "psycopg async": Driver("postgresql", psycopg.AsyncConnection.connect, PSYCOPG),
    "psycopg2": Driver("postgresql", psycopg2.connect, PSYCOPG),
    "asyncpg": Driver("postgresql", asyncpg.connect),
    "asyncpg pool": Driver("postgresql", asyncpg.create_pool, more=(("min_size", 1),)),
    "pg8000": Driver("postgresql", pg8000.dbapi.connect),
}


# pg8000 and MySQL Connector leave it to the garbage collector to close what was cut.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def _collect() -> Iterator[None]:
    """Nothing of it is left for the tests of others."""
    yield
    gc.collect()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Driver:
    return DRIVERS[request.param]


@pytest.fixture
def server(driver: Driver, request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(driver.server)


def run(connect: Callable[..., Any], **arguments: Any) -> type:
    """Connect, close again; the type of what was opened."""

    async def opened() -> type:
        handle = await opening
        kind = type(handle)
        if hasattr(handle, "wait_closed"):  # the pools of aiomysql and asyncmy
            handle.close()
            await handle.wait_closed()
        else:
            closed = getattr(handle, "ensure_closed", handle.close)()
            if inspect.isawaitable(closed):
                await closed
        return kind

    async def in_loop() -> type:
        nonlocal opening
        opening = connect(**arguments)
        if inspect.isawaitable(opening):
            return await opened()
        opening.close()
        return type(opening)

    opening: Any = None
    return asyncio.run(in_loop())


class Waits(list[ConnectWait]):
    """An `on_wait` that remembers, and does something at the n-th wait."""

    def __init__(self, at: int = 0, action: Callable[[], object] = lambda: None) -> None:
        self._at = at
        self._action = action

    def __call__(self, wait: ConnectWait) -> None:
        self.append(wait)
        if len(self) == self._at:
            self._action()


# Every driver.


def test_limit_is_waited_out(driver: Driver, server: Server) -> None:
    """Others hold all connections: it gets in when they let go, with the driver's own handle."""
    expected = run(driver.connect, **driver.arguments(server))
    with ExitStack() as others:
        others.enter_context(server.fill())
        waits = Waits(3, others.close)
        connect = connecting(driver.connect, policy=QUICK, on_wait=waits)
        assert run(connect, **driver.arguments(server)) is expected
    assert len(waits) >= 3
    assert {wait.failure.kind for wait in waits} == {"too-many-connections"}


def test_server_that_starts_is_waited_for(driver: Driver, server: Server) -> None:
    """The server is down, then up."""
    server.kill()
    waits = Waits(3, server.start)
    run(connecting(driver.connect, policy=QUICK, on_wait=waits), **driver.arguments(server))
    assert {(wait.failure.kind, wait.failure.phase) for wait in waits} == {
        ("disconnection", "connect")
    }


@pytest.mark.parametrize("how", ["reset", "fin"])
def test_cut_in_the_handshake(driver: Driver, server: Server, how: Any) -> None:
    """What is cut before it is open is opened again."""
    with FaultProxy((server.host, server.port)) as proxy:
        proxy.cut(how, at="connect", times=2)
        waits = Waits()
        connect = connecting(driver.connect, policy=QUICK, on_wait=waits)
        run(connect, **driver.arguments(server, host="127.0.0.1", port=proxy.port))
    assert len(waits) == 2


def test_down_for_good(driver: Driver, server: Server) -> None:
    """G7: when the policy says stop, what the driver raised is raised."""
    arguments = driver.arguments(server)
    server.kill()
    expected = _error(driver.connect, arguments)
    waits = Waits()
    policy = ConnectPolicy(wait=tenacity.wait_none(), stop=tenacity.stop_after_attempt(3))
    error = _error(connecting(driver.connect, policy=policy, on_wait=waits), arguments)
    assert type(error) is type(expected)
    assert error.__cause__ is None or type(error.__cause__) is type(expected.__cause__)
    assert len(waits) == 2


@pytest.mark.parametrize("wrong", ["password", "database"])
def test_what_waiting_does_not_cure(driver: Driver, server: Server, wrong: str) -> None:
    """A wrong password or an unknown database is raised at once."""
    waits = Waits()
    expected = _error(driver.connect, driver.arguments(server, **{wrong: "wrong"}))
    connect = connecting(driver.connect, on_wait=waits)
    error = _error(connect, driver.arguments(server, **{wrong: "wrong"}))
    assert (type(error), str(error)) == (type(expected), str(expected))
    assert waits == []


def test_fail_fast(driver: Driver, server: Server) -> None:
    """Our exceptions are raised at once, from the driver's."""
    connect = connecting(driver.connect, mode="fail-fast")
    arguments = driver.arguments(server)
    with server.fill():
        error = _error(connect, arguments)
    assert isinstance(error, TooManyConnections)
    assert error.__cause__ is not None
    server.kill()
    error = _error(connect, arguments)
    assert isinstance(error, DisconnectionError)
    assert error.phase == "connect"


def _error(connect: Callable[..., Any], arguments: dict[str, Any]) -> Exception:
    try:
        run(connect, **arguments)
    except Exception as exc:  # noqa: BLE001  # each driver has its own
        return exc
    raise AssertionError("it connected")


# Pools, layers, and other ways to say it.


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("name", ["aiomysql pool", "asyncmy pool", "asyncpg pool"])
def test_half_opened_pool_is_closed(
    name: str, partial: bool, request: pytest.FixtureRequest
) -> None:
    """A pool that can't open all that it should leaves none open while it waits."""
    driver = DRIVERS[name]
    server: Server = request.getfixturevalue(driver.server)
    least = "min_size" if driver.server == "postgresql" else "minsize"
    arguments = driver.arguments(server) | {least: 5}
    once = ConnectPolicy(stop=tenacity.stop_after_attempt(1))
    create: Any = driver.connect
    if partial:
        create, arguments = functools.partial(create, **arguments), {}

    def wait_until_closed() -> None:
        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_delay(10), wait=tenacity.wait_fixed(0.01)
        ):
            with attempt:
                assert server.connection_count() == held

    async def play() -> tuple[int, int]:
        with pytest.raises(Exception, match=r"[Tt]oo many|remaining connection slots") as info:
            await connecting(create, policy=once)(**arguments)
        await asyncio.to_thread(wait_until_closed)
        del info  # a wait keeps the exception, and so its frames
        others.close()
        pool = await connecting(create, policy=QUICK)(**arguments)
        try:
            if driver.server == "postgresql":
                return pool.get_min_size(), pool.get_idle_size()
            return pool.minsize, pool.freesize
        finally:
            pool.terminate()
            await getattr(pool, "wait_closed", pool.close)()

    with ExitStack() as others:
        with server.fill() as room:
            pass
        for _ in range(room - 3):
            others.enter_context(closing(_connection(server)))
        held = server.connection_count()
        assert asyncio.run(play()) == (5, 5)


def _connection(server: Server) -> Any:
    library = pymysql if server.protocol == "mysql" else psycopg
    return library.connect(**server.connect_args())


def test_pool_that_makes_no_sense(mariadb: Server) -> None:
    """What the driver says of its arguments is raised."""
    arguments = DRIVERS["aiomysql pool"].arguments(mariadb)

    async def play() -> None:
        with pytest.raises(ValueError, match="maxsize should be not less than minsize"):
            await connecting(aiomysql.create_pool)(5, 3, **arguments)
        with pytest.raises(TypeError):
            await connecting(aiomysql.create_pool)(nonsense=1, **arguments)

    asyncio.run(play())


@pytest.mark.parametrize("connect", [aiomysql.connect, asyncmy.connect, aiomysql.create_pool])
def test_async_with(mariadb: Server, connect: Any) -> None:
    """What the driver gives to `async with` stays usable so, and is closed at its end."""

    async def play() -> None:
        arguments = DRIVERS["aiomysql"].arguments(mariadb)
        async with connecting(connect)(**arguments) as handle:
            assert mariadb.connection_count() == 1
            assert type(handle).__module__.startswith(("aiomysql", "asyncmy"))

    asyncio.run(play())
    mariadb.kill_connections()  # waits for those that are being closed


def test_async_with_what_is_not_closed_but_given_back(mariadb: Server) -> None:
    """G8: a pool's or an engine's connection goes back to it, also one that was waited for."""
    arguments = DRIVERS["aiomysql pool"].arguments(mariadb)
    url = sqlalchemy.make_url(mariadb.url).set(drivername="mysql+aiomysql")

    async def play() -> None:
        engine = create_async_engine(url)
        waits = Waits(2, others.close)
        async with connecting(engine.connect, policy=QUICK, on_wait=waits)() as connection:
            assert await connection.scalar(sqlalchemy.text("SELECT 1")) == 1
        assert len(waits) >= 2
        assert engine.pool.checkedout() == 0
        await engine.dispose()
        async with aiomysql.create_pool(**arguments) as pool:
            async with connecting(pool.acquire)():
                assert pool.freesize == pool.size - 1
            assert pool.freesize == pool.size

    with ExitStack() as others:
        others.enter_context(mariadb.fill())
        asyncio.run(play())


def test_async_with_of_asyncpg(postgresql: Server) -> None:
    """asyncpg's pool, and a connection of it, which has no `async with` of its own."""
    arguments = DRIVERS["asyncpg pool"].arguments(postgresql)

    async def play() -> None:
        async with connecting(asyncpg.create_pool)(**arguments) as pool:
            async with connecting(pool.acquire)() as connection:
                assert await connection.fetchval("SELECT 1") == 1
            assert pool.get_idle_size() == pool.get_size()

    asyncio.run(play())


def test_engine(mariadb: Server) -> None:
    """SQLAlchemy's engine, through `creator`."""
    with ExitStack() as others:
        others.enter_context(mariadb.fill())
        waits = Waits(2, others.close)
        connect = connecting(pymysql.connect, policy=QUICK, on_wait=waits)
        engine = sqlalchemy.create_engine(
            "mysql+pymysql://", creator=lambda: connect(**mariadb.connect_args())
        )
        with engine.connect() as connection:
            assert connection.execute(sqlalchemy.text("SELECT 1")).scalar() == 1
    engine.dispose()
    assert len(waits) >= 2


def flaky(failures: int, error: Exception = REFUSED) -> Callable[[], str]:
    """A function that fails so many times."""
    left = [error] * failures

    def connect() -> str:
        """The docstring."""
        if left:
            raise left.pop()
        return "connection"

    return connect


def test_decorator() -> None:
    """With arguments or without; the function keeps its name and docstring."""
    connect = flaky(2)
    bare = connecting(connect)
    assert (bare.__name__, bare.__doc__) == ("connect", "The docstring.")
    assert bare() == "connection"
    assert connecting(policy=QUICK)(flaky(2))() == "connection"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_decorator_of_a_coroutine_function(backend: str) -> None:
    """On asyncio and trio."""
    connect = flaky(2)

    @connecting(policy=QUICK)
    async def opened() -> str:
        return connect()

    assert inspect.iscoroutinefunction(opened)
    assert anyio.run(opened, backend=backend) == "connection"


@pytest.mark.parametrize(
    "error",
    [
        DisconnectionError("while executing"),
        DisconnectionError("while committing", phase="commit"),
        TransactionConflict(),
        ValueError("a mistake"),
        KeyboardInterrupt(),
        SystemExit(1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("mode", ["block", "fail-fast"])
def test_all_else_is_raised_at_once(error: Any, mode: Any) -> None:
    """Only failures in phase `connect` are waited out."""
    waits = Waits()
    connect = connecting(flaky(1, error), mode=mode, on_wait=waits)
    with pytest.raises(type(error)) as info:
        connect()
    assert info.value is error
    assert waits == []


# How long.


def test_each_wait_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """In the log and to the hook: the attempt, the reason, the wait, and the time left."""
    waits = Waits()
    policy = ConnectPolicy(wait=tenacity.wait_fixed(0.01))
    with caplog.at_level(logging.WARNING, "retrymw"):
        connecting(flaky(2), policy=policy, on_wait=waits)()
    assert [(wait.attempt, wait.failure.exception, wait.seconds) for wait in waits] == [
        (1, REFUSED, 0.01),
        (2, REFUSED, 0.01),
    ]
    assert 0 <= waits[0].elapsed < waits[1].elapsed
    assert 60 >= waits[0].left > waits[1].left > 50
    assert [record.retrymw for record in caplog.records] == waits
    message = caplog.records[0].getMessage()
    assert "attempt 1: disconnection: DisconnectionError('refused')" in message
    assert "next in 0.01 s, 60 s left" in message


@dataclass
class Configured:
    """Connects with what it was told."""

    password: str

    def __call__(self) -> Any:
        return pymysql.connect(host="127.0.0.1", port=1, password=self.password)


@pytest.mark.parametrize(
    ("connect", "name"),
    [
        (
            functools.partial(pymysql.connect, host="127.0.0.1", port=1, password="s3cret"),
            "pymysql.Connection",
        ),
        (Configured("s3cret"), "tests.Configured"),
    ],
)
def test_arguments_are_not_logged(
    connect: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What a partial or an object was given, such as a password, stays out of the log."""
    policy = ConnectPolicy(wait=tenacity.wait_none(), stop=tenacity.stop_after_attempt(2))
    with pytest.raises(pymysql.OperationalError):
        connecting(connect, policy=policy)()
    assert caplog.messages[0].startswith(f"{name}: attempt 1")
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("stop", "told"),
    [
        (tenacity.stop_after_attempt(2), False),
        (tenacity.stop_after_delay(5), True),
        (tenacity.stop_after_delay(5) | tenacity.stop_after_attempt(9), True),
        (tenacity.stop_before_delay(5), True),
        (lambda state: state.attempt_number > 4, False),
    ],
)
def test_time_left_where_the_strategy_tells(stop: Any, told: bool) -> None:
    """Any stop strategy of tenacity's, or a function."""
    waits = Waits()
    policy = ConnectPolicy(wait=tenacity.wait_none(), stop=stop)
    assert connecting(flaky(1), policy=policy, on_wait=waits)() == "connection"
    assert (waits[0].left is not None) is told


def test_error_in_the_hook(caplog: pytest.LogCaptureFixture) -> None:
    """G7: it is logged, and neither ends the wait nor takes the failure's place."""

    def broken(wait: ConnectWait) -> None:
        raise ZeroDivisionError

    assert connecting(flaky(1), policy=QUICK, on_wait=broken)() == "connection"
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [
        ZeroDivisionError
    ]


def test_last_wait_is_cut_short() -> None:
    """There is one more attempt when the time is up, and none after it."""
    waits = Waits()
    policy = ConnectPolicy(wait=tenacity.wait_fixed(3600), stop=tenacity.stop_after_delay(0.5))
    with pytest.raises(DisconnectionError) as info:
        connecting(flaky(9), policy=policy, on_wait=waits)()
    assert info.value is REFUSED
    assert len(waits) == 1
    assert waits[0].seconds <= 0.5


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancellation_ends_a_wait(backend: str) -> None:
    """G6."""
    connect = flaky(9)
    policy = ConnectPolicy(wait=tenacity.wait_fixed(3600), stop=tenacity.stop_never)

    async def play() -> None:
        with anyio.CancelScope() as scope:

            @connecting(policy=policy, on_wait=lambda wait: scope.cancel())
            async def opened() -> str:
                return connect()

            await opened()
        assert scope.cancelled_caught

    anyio.run(play, backend=backend)


SCRIPT = """
import tenacity
from retrymw import TooManyConnections
from retrymw.connect import ConnectPolicy, connecting

@connecting(policy=ConnectPolicy(wait=tenacity.wait_fixed(3600), stop=tenacity.stop_never),
            on_wait=lambda wait: print("waiting", flush=True))
def connect():
    raise TooManyConnections("full")

connect()
"""


def test_ctrl_c_ends_a_wait() -> None:
    """G6: a script that waits stops at once."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as script:
        try:
            assert script.stdout.readline() == "waiting\n"
            script.send_signal(signal.SIGINT)
            _, errors = script.communicate(timeout=20)
        finally:
            script.kill()
    assert "KeyboardInterrupt" in errors
    assert script.returncode == -signal.SIGINT


# In a request.


def test_request_does_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    """In a request it raises, and the middleware replays; one warning says so."""
    waits = Waits()
    connect = connecting(flaky(2), policy=QUICK, on_wait=waits)
    numbers: list[int] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        numbers.append(current_attempt().number)
        connect()
        start_response("200 OK", [])
        return [b"connected"]

    middleware = WSGIMiddleware(app, policy=RetryPolicy(wait=tenacity.wait_none()))
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    with caplog.at_level(logging.WARNING, "retrymw"):
        assert list(middleware(environ, lambda *_: None)) == [b"connected"]
    assert numbers == [1, 2, 3]
    assert waits == []
    told = [r for r in caplog.records if "does not wait within a request" in r.getMessage()]
    assert len(told) == 1


def test_request_does_not_wait_under_asgi() -> None:
    """The same for coroutines; what runs after the response may wait."""
    numbers: list[int] = []
    waits = Waits()
    before, after = flaky(1), flaky(3)

    @connecting(policy=QUICK, on_wait=waits)
    async def connect() -> str:
        return before()

    @connecting(policy=QUICK, on_wait=waits)
    async def connect_later() -> str:
        return after()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        numbers.append(current_attempt().number)
        await connect()
        assert waits == []
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"connected"})
        await connect_later()

    async def play() -> None:
        transport = httpx.ASGITransport(
            ASGIMiddleware(app, policy=RetryPolicy(wait=tenacity.wait_none()))
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/")).text == "connected"

    anyio.run(play)
    assert numbers == [1, 2]
    assert len(waits) == 3


# Wrong configuration.


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"mode": "wait"}, ValueError, "mode='wait'; allowed: 'block' or 'fail-fast'"),
        ({"policy": RetryPolicy()}, TypeError, "allowed: a ConnectPolicy"),
        ({"on_wait": 1}, TypeError, "on_wait=1"),
        ({"connect": 1}, TypeError, "such as pymysql.connect"),
        (
            {"connect": sqlalchemy.create_engine("sqlite://").begin},
            TypeError,
            "opens nothing until it is entered",
        ),
        (
            {"connect": create_async_engine("sqlite+aiosqlite://").begin},
            TypeError,
            "opens nothing until it is entered",
        ),
    ],
)
def test_wrong_argument(wrong: Any, error: Any, told: str) -> None:
    """It is refused at start-up, naming the argument, the value and what is allowed."""
    with pytest.raises(error) as info:
        connecting(**{"connect": flaky(0)} | wrong)
    assert told in str(info.value)


@pytest.mark.parametrize("field", ["wait", "stop"])
@pytest.mark.parametrize("value", [5, tenacity.wait_fixed, lambda: 1])
def test_wrong_policy(field: str, value: Any) -> None:
    """Numbers, classes and functions without an argument are no strategies."""
    with pytest.raises(TypeError, match=rf"ConnectPolicy\.{field} is .*; allowed: a tenacity"):
        ConnectPolicy(**{field: value})
