"""peewee, Storm, Tortoise ORM and DBUtils: their own exceptions, and those that they wrap."""

from __future__ import annotations

import sqlite3
import ssl

import MySQLdb
import peewee
import psycopg2
import pymysql
import pytest
import storm.databases.mysql
import storm.exceptions
import tortoise.exceptions
from dbutils.pooled_db import InvalidConnectionError, TooManyConnectionsError
from playhouse.pool import MaxConnectionsExceeded
from storm.uri import URI
from tortoise.backends.sqlite.client import SqliteTransactionWrapper

from retrymw.classify import classify
from tests.classify.helpers import caught, passed_through, verdict

DRY = ("too-many-connections", "connect")
UNREACHABLE = ("disconnection", "connect")
LOST = "server closed the connection unexpectedly"
AWAIT = ("playhouse.pwasyncio", "await_", {})
STORM = storm.databases.mysql.MySQL(URI("mysql://app@localhost/app"))


def peewees(exc: Exception) -> Exception:
    """As peewee wraps the driver's."""

    def raise_it() -> None:
        with peewee.__exception_wrapper__:
            raise exc

    return caught(raise_it)


def storms(exc: Exception, *frames: tuple[str, str, dict[str, object]]) -> Exception:
    """As Storm replaces the driver's, which is seen only without the frames."""

    def raise_it() -> None:
        with storm.exceptions.wrap_exceptions(STORM):
            raise exc

    return passed_through(caught(raise_it), *frames)


def disconnection(context: Exception | None, *frames: tuple[str, str, dict[str, object]]):
    """Storm's own, raised while another one is handled."""
    text = "Already disconnected" if context is None else str(context)
    exc = storm.exceptions.DisconnectionError(text)
    exc.__context__ = context
    return passed_through(exc, *frames)


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (MaxConnectionsExceeded("Exceeded maximum connections."), DRY),
        (peewee.OperationalError("Timed out acquiring connection from pool (…=10)."), DRY),
        (peewee.OperationalError("Timed out connecting to database (…=10)."), UNREACHABLE),
        (TooManyConnectionsError(), DRY),
        (peewee.OperationalError("Connection already opened."), None),
        (peewee.InterfaceError("Database pool is shutting down."), None),
        (ValueError("Exceeded maximum connections."), None),
        (InvalidConnectionError(), None),
        (storm.exceptions.ClosedError("Connection is closed"), None),
        (storm.exceptions.TimeoutError("SELECT 1", ()), None),
        (tortoise.exceptions.DBConnectionError("Unknown charset"), None),
        (tortoise.exceptions.TransactionManagementError("Transaction already finalised"), None),
    ],
)
def test_their_own(exc, expected):
    """A pool that has run dry is ours, and what the app did wrong is not."""
    assert verdict(exc) == expected


def test_a_pool_that_was_connecting():
    """peewee says the same of a pool that has run dry and of a server that does not answer."""
    exc = peewee.OperationalError("Timed out acquiring connection from pool (acquire_timeout=10).")
    exc.__context__ = TimeoutError()
    exc.__context__.__cause__ = passed_through(
        Exception("cancelled"), ("pymysql.connections", "connect", {})
    )
    exc.__suppress_context__ = True
    assert verdict(exc) == UNREACHABLE


@pytest.mark.parametrize(
    ("caller", "variables", "phase"),
    [
        ("connect", {}, "connect"),
        ("execute_sql", {"sql": "SELECT 1"}, "execute"),
        ("execute_sql", {"self": None, "sql": "INSERT INTO t VALUES (1)"}, "commit"),
        ("commit", {}, "commit"),
    ],
)
def test_oserror_between_greenlets(caller, variables, phase):
    """asyncpg's OSErrors come without its frames from peewee's bridge."""
    frames = AWAIT, ("playhouse.pwasyncio", caller, variables)
    assert verdict(passed_through(ConnectionRefusedError(111, "refused"), *frames)) == (
        "disconnection",
        phase,
    )
    assert verdict(passed_through(ssl.SSLCertVerificationError("no"), *frames)) is None


def test_oserror_of_the_app_between_greenlets():
    """G5: what an app awaits over the same bridge is its own affair."""
    frames = AWAIT, ("shop.views", "ask_the_bank", {})
    assert verdict(passed_through(ConnectionRefusedError(111, "refused"), *frames)) is None


def test_peewee_over_c():
    """G4: peewee's frames tell a COMMIT of a driver in C from the rest."""
    locked = peewees(sqlite3.OperationalError("database is locked"))
    assert verdict(locked) == ("conflict", "unknown")
    lost = passed_through(psycopg2.OperationalError(LOST), ("peewee", "commit", {}))
    assert verdict(peewees(lost)) == ("disconnection", "commit")
    assert verdict(peewees(pymysql.IntegrityError(1062, "Duplicate entry"))) is None


@pytest.mark.parametrize(
    ("function", "statement", "phase"),
    [
        ("raw_execute", "UPDATE t SET a = 1", "execute"),
        ("raw_execute", "COMMIT", "commit"),
        ("commit", None, "commit"),
    ],
)
def test_storm_over_c(function, statement, phase):
    """The phase of what Storm puts in the driver's place is in its own frames."""
    original = MySQLdb.OperationalError(1213, "Deadlock found")
    frame = ("storm.database", function, {"self": object(), "statement": statement})
    failure = classify(storms(original, frame))
    assert (failure.kind, failure.phase, failure.code) == ("conflict", phase, 1213)
    assert failure.exception is original
    assert verdict(storms(MySQLdb.ProgrammingError(1064, "Syntax"), frame)) is None


def test_storm_disconnection():
    """G4: a DisconnectionError is what it has replaced; alone it may have been a COMMIT."""
    commit = ("storm.database", "commit", {})
    lost = storms(MySQLdb.OperationalError(2013, "Lost connection"))
    assert verdict(disconnection(lost, commit)) == ("disconnection", "commit")
    assert verdict(disconnection(None)) == ("disconnection", "unknown")
    full = storms(MySQLdb.OperationalError(1040, "Too many connections"))
    assert verdict(disconnection(full, commit)) == DRY
    denied = storms(MySQLdb.OperationalError(1045, "Access denied"))
    assert verdict(disconnection(denied, commit)) is None


def transaction(*, finalized: bool) -> SqliteTransactionWrapper:
    """A transaction's client, as far as it counts."""
    client = SqliteTransactionWrapper.__new__(SqliteTransactionWrapper)
    client._finalized = finalized
    return client


@pytest.mark.parametrize(
    ("client", "statement", "phase"),
    [
        (transaction(finalized=False), "INSERT INTO t VALUES (1)", "execute"),
        (transaction(finalized=False), "COMMIT", "commit"),
        (transaction(finalized=True), "INSERT INTO t VALUES (1)", "commit"),
        (object(), "INSERT INTO t VALUES (1)", "commit"),
        (object(), "SELECT 1", "execute"),
    ],
)
def test_tortoise_autocommit(client, statement, phase):
    """G4: outside of Tortoise's transactions every statement is a COMMIT of its own."""
    frame = ("tortoise.backends", "execute_query", {"self": client, "query": statement})
    lost = passed_through(pymysql.OperationalError(2013, "Lost connection"), frame)
    wrapped = tortoise.exceptions.OperationalError(lost)
    wrapped.__context__ = lost
    assert verdict(wrapped) == ("disconnection", phase)


def test_cyclic():
    """A layer's exception that wraps itself is no reason to go on for ever."""
    exc = peewee.OperationalError("lost")
    exc.orig = exc
    assert classify(exc) is None
