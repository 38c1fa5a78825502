"""Layers above the drivers: what they wrap, and what they raise themselves."""

from __future__ import annotations

import sqlite3

import pymysql
import pytest
import sqlalchemy
import sqlalchemy.orm.exc
from sqlalchemy.pool import QueuePool

from retrymw.classify import classify
from tests.classify.helpers import caught, verdict


def failing(exc):
    """A SQLAlchemy engine for MariaDB whose connects raise."""

    def connect():
        raise exc

    return sqlalchemy.create_engine("mysql+pymysql://", creator=connect)


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (pymysql.OperationalError(2003, "Can't connect"), ("disconnection", "connect")),
        (pymysql.OperationalError(1040, "Too many"), ("too-many-connections", "connect")),
        (pymysql.OperationalError(1045, "Access denied"), None),
    ],
)
def test_sqlalchemy_wraps(exc, expected):
    """G7: SQLAlchemy's exception is seen through, to the driver's own exception object."""
    raised = caught(failing(exc).connect)
    assert isinstance(raised, sqlalchemy.exc.DBAPIError)
    assert verdict(raised) == expected
    if expected is not None:
        assert classify(raised).exception is exc


def test_sqlalchemy_pool_run_dry():
    """A pool without a connection left is too many connections, though it is no DBAPIError."""
    pool = QueuePool(lambda: sqlite3.connect(":memory:"), pool_size=1, max_overflow=0, timeout=0)
    with pool.connect():
        raised = caught(pool.connect)
    failure = classify(raised)
    assert (failure.kind, failure.phase) == ("too-many-connections", "connect")
    assert failure.driver == "sqlalchemy"
    pool.dispose()


@pytest.mark.parametrize(
    "exc",
    [
        sqlalchemy.exc.ArgumentError("TimeoutError"),
        sqlalchemy.exc.IntegrityError("INSERT", {}, pymysql.IntegrityError(1062, "Duplicate")),
        sqlalchemy.exc.ProgrammingError("SELEC", {}, pymysql.ProgrammingError(1064, "Syntax")),
        sqlalchemy.exc.NoResultFound("none"),
        sqlalchemy.exc.PendingRollbackError("flush failed", code="7s2a"),
        sqlalchemy.orm.exc.StaleDataError("stale"),
    ],
)
def test_sqlalchemy_not_ours(exc):
    """SQLAlchemy's other exceptions are the app's."""
    assert classify(exc) is None
