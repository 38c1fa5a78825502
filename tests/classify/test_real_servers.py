"""What the drivers raise when a real server fails them, or refuses what the app asks for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import MySQLdb
import psycopg
import psycopg2
import pymysql
import pytest
import sqlalchemy
from psycopg import sql

from retrymw.classify import classify
from retrymw.testing.servers import MariaDB, PostgreSQL
from tests.classify.helpers import caught, verdict

ERRORS = (pymysql.Error, MySQLdb.Error, psycopg.Error, psycopg2.Error)


@dataclass
class Backend:
    """A driver, and a server with the table ``t (a INT PRIMARY KEY, b INT)`` and two rows."""

    driver: str
    server: MariaDB | PostgreSQL
    open: Callable[..., Any]

    @contextmanager
    def connection(self, **changes: Any) -> Iterator[Any]:
        """A connection, closed at the end whatever has become of it."""
        connection = self.open(**self.server.connect_args(**changes))
        try:
            yield connection
        finally:
            with suppress(*ERRORS):
                connection.close()

    def connect(self, **changes: Any) -> None:
        with self.connection(**changes):
            pass

    @property
    def in_c(self) -> bool:
        """Whether commit() leaves no frame."""
        return self.driver in ("mysqlclient", "psycopg2")


BACKENDS: dict[str, Callable[..., Any]] = {
    "pymysql": partial(pymysql.connect, ssl_disabled=True),
    "mysqlclient": MySQLdb.connect,
    "psycopg": psycopg.connect,
    "psycopg2": psycopg2.connect,
}


def prepared(driver: str, request: pytest.FixtureRequest) -> Iterator[Backend]:
    server = request.getfixturevalue("mariadb" if "my" in driver else "postgresql")
    found = Backend(driver, server, BACKENDS[driver])
    with found.connection() as connection:
        run(connection, "CREATE TABLE t (a INT PRIMARY KEY, b INT)")
        run(connection, "INSERT INTO t VALUES (1, 0), (2, 0)")
        connection.commit()
    yield found
    server.start()
    server.kill_connections()
    server.execute(f"DROP TABLE {'app.' * isinstance(server, MariaDB)}t")


@pytest.fixture(params=BACKENDS)
def any_backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield from prepared(request.param, request)


@pytest.fixture(params=["pymysql", "mysqlclient"])
def mysql(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield from prepared(request.param, request)


@pytest.fixture(params=["psycopg", "psycopg2"])
def postgres(request: pytest.FixtureRequest) -> Iterator[Backend]:
    yield from prepared(request.param, request)


def run(connection: Any, *statements: Any) -> None:
    for statement in statements:
        with closing(connection.cursor()) as cursor:
            cursor.execute(statement)


# Not ours.


@pytest.mark.parametrize("wrong", ["password", "user", "database"])
def test_refused_login(any_backend: Backend, wrong: str) -> None:
    """A wrong password, user or database is the same after any number of replays."""
    if wrong == "database" and isinstance(any_backend.server, PostgreSQL):
        wrong = "dbname"
    assert classify(caught(any_backend.connect, **{wrong: "wrong"})) is None


def test_refused_login_at_the_second_address(postgres: Backend) -> None:
    """A wrong password is one, though the first address had no server."""
    server = postgres.server
    ports = f"{server.port},{server.port}"
    exc = caught(postgres.connect, host="127.0.0.2,127.0.0.1", port=ports, password="wrong")
    assert classify(exc) is None


@pytest.mark.parametrize(
    "statement",
    [
        "SELEC 1",
        "SELECT * FROM nope",
        "INSERT INTO t VALUES (1, 1)",
        "INSERT INTO t VALUES (NULL, 1)",
        "SELECT 'server closed the connection, too many clients already' FROM nope",
    ],
)
def test_statement_of_the_apps(any_backend: Backend, statement: str) -> None:
    """Wrong syntax, a missing table and a duplicate key are for the app."""
    with any_backend.connection() as connection:
        assert classify(caught(run, connection, statement)) is None


@pytest.mark.parametrize("kind", ["statement timeout", "KILL QUERY"])
def test_interrupted_statement(any_backend: Backend, kind: str) -> None:
    """A statement that was interrupted on purpose would be so again."""
    mysql = isinstance(any_backend.server, MariaDB)
    with any_backend.connection() as connection:
        if kind == "statement timeout":
            limit = "max_statement_time = 0.01" if mysql else "statement_timeout = 10"
            run(connection, f"SET {limit}")
            pause = "SELECT count(*) FROM seq_1_to_100000000 WHERE seq % 7 = 3"
            exc = caught(run, connection, pause if mysql else "SELECT pg_sleep(10)")
        elif mysql:
            exc = caught(run, connection, "KILL QUERY CONNECTION_ID()")
        else:
            exc = caught(run, connection, "SELECT pg_cancel_backend(pg_backend_pid())")
    assert isinstance(exc, ERRORS)
    assert classify(exc) is None


# Too many connections.


def test_full_server(any_backend: Backend) -> None:
    """1040 and 53300: the server has no connection left, for anybody."""
    with any_backend.server.fill():
        failure = classify(caught(any_backend.connect))
    assert (failure.kind, failure.phase) == ("too-many-connections", "connect")


def test_full_account_by_grant(mysql: Backend) -> None:
    """1226: the account has as many connections as it may."""
    mysql.server.execute("ALTER USER app@'%' WITH MAX_USER_CONNECTIONS 1")
    try:
        with mysql.connection():
            failure = classify(caught(mysql.connect))
    finally:
        mysql.server.execute("ALTER USER app@'%' WITH MAX_USER_CONNECTIONS 0")
    assert (failure.kind, failure.phase, failure.code) == ("too-many-connections", "connect", 1226)


def test_full_account_by_setting() -> None:
    """1203: every account has as many connections as the server's settings allow."""
    with MariaDB(max_connections=20, settings={"max-user-connections": 1}) as server:
        for driver in ("pymysql", "mysqlclient"):
            backend = Backend(driver, server, BACKENDS[driver])
            with backend.connection():
                failure = classify(caught(backend.connect))
            assert (failure.kind, failure.code) == ("too-many-connections", 1203)
            server.kill_connections()


def test_account_out_of_queries(mysql: Backend) -> None:
    """1226 again, for queries this time: that is not ours."""

    def ask() -> None:
        with mysql.connection() as connection:
            run(connection, *["SELECT 1"] * 9)

    mysql.server.execute("ALTER USER app@'%' WITH MAX_QUERIES_PER_HOUR 9")
    try:
        exc = caught(ask)
    finally:
        mysql.server.execute("ALTER USER app@'%' WITH MAX_QUERIES_PER_HOUR 0")
    assert exc.args[0] == 1226
    assert classify(exc) is None


@pytest.mark.parametrize("what", ["ROLE", "DATABASE"])
def test_full_account(postgres: Backend, what: str) -> None:
    """53300: the role, or the database, has as many connections as it may."""
    postgres.server.execute(f"ALTER {what} app CONNECTION LIMIT 1")
    try:
        with postgres.connection():
            failure = classify(caught(postgres.connect))
    finally:
        postgres.server.execute(f"ALTER {what} app CONNECTION LIMIT -1")
    assert (failure.kind, failure.phase) == ("too-many-connections", "connect")


# Conflicts.


@contextmanager
def deadlock(any_backend: Backend) -> Iterator[list[Exception]]:
    """Two transactions that wait for each other: what was raised, by either or both."""
    raised: list[Exception] = []

    def update(connection: Any, row: int) -> None:
        try:
            run(connection, f"UPDATE t SET b = b + 1 WHERE a = {row}")
            connection.commit()
        except ERRORS as exc:
            raised.append(exc)
            connection.rollback()

    with any_backend.connection() as one, any_backend.connection() as two:
        for connection, row in ((one, 1), (two, 2)):
            if any_backend.driver.startswith("psycopg"):
                run(connection, "SET LOCAL lock_timeout = '10s'")
            run(connection, f"UPDATE t SET b = b + 1 WHERE a = {row}")
        other = threading.Thread(target=update, args=(one, 2))
        other.start()
        update(two, 1)
        other.join()
        yield raised


def test_deadlock(any_backend: Backend) -> None:
    """1213 and 40P01: the server undid one of two transactions."""
    server = any_backend.server
    if isinstance(server, PostgreSQL):
        server.execute("ALTER ROLE app SET deadlock_timeout = '10ms'")
    try:
        with deadlock(any_backend) as raised:
            [failure] = map(classify, raised)
    finally:
        if isinstance(server, PostgreSQL):
            server.execute("ALTER ROLE app RESET deadlock_timeout")
    assert failure is not None
    assert failure.kind == "conflict"
    assert failure.code in (1213, "40P01")


def test_lock_wait(any_backend: Backend) -> None:
    """1205 and 55P03: the lock that was waited for did not come."""
    with any_backend.connection() as holder, any_backend.connection() as waiter:
        run(holder, "SELECT * FROM t WHERE a = 1 FOR UPDATE")
        exc = caught(run, waiter, "SELECT * FROM t WHERE a = 1 FOR UPDATE NOWAIT")
    assert verdict(exc)[0] == "conflict"
    assert classify(exc).code in (1205, "55P03")


def test_serialization(postgres: Backend) -> None:
    """40001: the row was changed by a transaction that the snapshot does not see."""
    with postgres.connection() as one, postgres.connection() as two:
        run(one, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT * FROM t")
        run(two, "UPDATE t SET b = 1 WHERE a = 1")
        two.commit()
        failure = classify(caught(run, one, "UPDATE t SET b = 2 WHERE a = 1"))
    assert (failure.kind, failure.code) == ("conflict", "40001")


def test_serialization_in_the_commit(postgres: Backend) -> None:
    """G4: a conflict that is found in the COMMIT is an answer: nothing was committed."""
    with ExitStack() as stack:
        pair = [stack.enter_context(postgres.connection()) for _ in range(2)]
        for number, connection in enumerate(pair, start=1):
            run(connection, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SELECT sum(b) FROM t")
            run(connection, f"UPDATE t SET b = 7 WHERE a = {number}")
        pair[0].commit()
        failure = classify(caught(pair[1].commit))
    assert (failure.kind, failure.code) == ("conflict", "40001")
    assert not failure.leaves_commit_unknown


# Disconnections, and what is left open by them.


@contextmanager
def in_transaction(backend: Backend) -> Iterator[Any]:
    """A connection with work in it that the server has dropped."""
    with backend.connection() as connection:
        run(connection, "INSERT INTO t VALUES (3, 0)")
        backend.server.kill_connections()
        yield connection


@pytest.mark.parametrize("statement", ["SELECT 1", "INSERT INTO t VALUES (4, 0)", "ROLLBACK"])
def test_dropped_before_a_statement(any_backend: Backend, statement: str) -> None:
    """A statement in a transaction that is lost leaves nothing open."""
    with in_transaction(any_backend) as connection:
        assert verdict(caught(run, connection, statement)) == ("disconnection", "execute")


def test_dropped_before_a_rollback(any_backend: Backend) -> None:
    """A lost rollback commits nothing; where the driver is C that can't be seen."""
    with in_transaction(any_backend) as connection:
        phase = "unknown" if any_backend.in_c else "execute"
        assert verdict(caught(connection.rollback)) == ("disconnection", phase)


def test_dropped_before_a_commit(any_backend: Backend) -> None:
    """G4: a lost commit leaves open what became of it; where the driver is C, as anything might."""
    with in_transaction(any_backend) as connection:
        phase = "unknown" if any_backend.in_c else "commit"
        assert verdict(caught(connection.commit)) == ("disconnection", phase)


@pytest.mark.parametrize("statement", ["COMMIT", "/* shop */ commit", "-- shop\nCOMMIT"])
def test_dropped_before_a_commit_statement(any_backend: Backend, statement: str) -> None:
    """G4: a COMMIT that is executed like any statement is one."""
    with in_transaction(any_backend) as connection:
        assert verdict(caught(run, connection, statement)) == ("disconnection", "commit")


def test_rollback_after_a_lost_commit(any_backend: Backend) -> None:
    """G4: the rollback of ``except: rollback(); raise`` fails as well, and hides nothing."""
    with in_transaction(any_backend) as connection:

        def commit() -> None:
            try:
                connection.commit()
            except ERRORS:
                connection.rollback()
                raise

        assert classify(caught(commit)).leaves_commit_unknown


def test_dropped_in_autocommit(any_backend: Backend) -> None:
    """G4: with autocommit the statement is its own COMMIT: a lost INSERT may have been done."""
    with any_backend.connection() as connection:
        if isinstance(any_backend.server, MariaDB):
            connection.autocommit(True)
        else:
            connection.autocommit = True
        any_backend.server.kill_connections()
        exc = caught(run, connection, "INSERT INTO t VALUES (4, 0)")
        assert classify(exc).leaves_commit_unknown


def test_dropped_select_in_autocommit(any_backend: Backend) -> None:
    """With autocommit a lost SELECT is still no COMMIT."""
    with any_backend.connection() as connection:
        if isinstance(any_backend.server, MariaDB):
            connection.autocommit(True)
        else:
            connection.autocommit = True
        any_backend.server.kill_connections()
        assert verdict(caught(run, connection, "SELECT 1")) == ("disconnection", "execute")


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
        run(connection, "CREATE TABLE many (a INT)")
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


# SQLAlchemy.

DIALECTS = {
    "pymysql": "mysql+pymysql",
    "mysqlclient": "mysql+mysqldb",
    "psycopg": "postgresql+psycopg",
    "psycopg2": "postgresql+psycopg2",
}


@contextmanager
def sqlalchemy_connection(backend: Backend) -> Iterator[sqlalchemy.Connection]:
    """SQLAlchemy's connection, with work in it that the server has dropped."""
    url = backend.server.url.replace(backend.server.protocol, DIALECTS[backend.driver])
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("INSERT INTO t VALUES (3, 0)")
            backend.server.kill_connections()
            yield connection
    finally:
        engine.dispose()


def test_sqlalchemy_commit(any_backend: Backend) -> None:
    """G4: SQLAlchemy's commit is known as one, be the driver C or Python."""
    with sqlalchemy_connection(any_backend) as connection:
        assert verdict(caught(connection.commit)) == ("disconnection", "commit")


def test_sqlalchemy_execute(any_backend: Backend) -> None:
    """A lost statement is told from a lost COMMIT."""
    with sqlalchemy_connection(any_backend) as connection:
        exc = caught(connection.exec_driver_sql, "SELECT 1")
        assert verdict(exc) == ("disconnection", "execute")


def test_sqlalchemy_next_statement(any_backend: Backend) -> None:
    """An app that ignored the failure gets a PendingRollbackError next: it is the same failure."""
    with sqlalchemy_connection(any_backend) as connection:
        caught(connection.exec_driver_sql, "SELECT 1")
        exc = caught(connection.exec_driver_sql, "SELECT 1")
        assert isinstance(exc, sqlalchemy.exc.PendingRollbackError)
        assert classify(exc).kind == "disconnection"
