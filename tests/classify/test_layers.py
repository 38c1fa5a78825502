"""Layers above the drivers: what they wrap, and what they raise themselves."""

from __future__ import annotations

import sqlite3

import django.db.transaction
import django.db.utils
import MySQLdb
import pymysql
import pytest
import sqlalchemy
import sqlalchemy.orm.exc
from sqlalchemy.pool import QueuePool

from retrymw.classify import classify
from tests.classify.helpers import caught, passed_through, verdict


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


CONNECTION = "sqlalchemy.engine.base"
LOST = MySQLdb.OperationalError(2013, "Lost connection to server during query")


class Autocommitting:
    """As SQLAlchemy's Connection; what else it has would connect anew."""

    def __init__(self, answer):
        self._answer = answer

    def _is_autocommit_isolation(self):
        if self._answer is None:
            raise AttributeError("it was renamed")
        return self._answer


@pytest.mark.parametrize(
    ("function", "variable"),
    [
        ("_exec_single_context", "str_statement"),
        ("_exec_insertmany_context", "sub_stmt"),
        ("_cursor_execute", "statement"),
    ],
)
@pytest.mark.parametrize(
    ("statement", "autocommits", "phase"),
    [
        ("INSERT INTO t VALUES (1)", True, "commit"),
        ("INSERT INTO t VALUES (1)", None, "commit"),
        ("INSERT INTO t VALUES (1)", False, "commit"),
        ("SELECT 1", True, "execute"),
        ("COMMIT", False, "commit"),
    ],
)
def test_sqlalchemy_autocommit(function, variable, statement, autocommits, phase):
    """G4: a lost statement may be a commit of its own unless the driver says no to it.

    That SQLAlchemy has not switched autocommit on tells nothing of the driver's own arguments.
    """
    variables = {"self": Autocommitting(autocommits), variable: statement}
    frames = (("sqlalchemy.engine.default", "do_execute", {}), (CONNECTION, function, variables))
    exc = MySQLdb.OperationalError(2013, "Lost connection to server during query")
    assert verdict(passed_through(exc, *frames)) == ("disconnection", phase)


@pytest.mark.parametrize(
    ("module", "function", "phase"),
    [
        ("sqlalchemy.pool.base", "__connect", "connect"),
        ("sqlalchemy.engine.default", "do_commit", "commit"),
        ("sqlalchemy.engine.default", "do_commit_twophase", "commit"),
        ("sqlalchemy.engine.default", "do_rollback", "execute"),
        ("sqlalchemy.engine.default", "do_ping", "execute"),
        ("django.db.backends.mysql.base", "get_new_connection", "connect"),
        ("django.db.backends.base.base", "_commit", "commit"),
        ("django.db.backends.base.base", "_rollback", "execute"),
        ("django.db.backends.base.base", "_savepoint", "unknown"),
    ],
)
def test_frames_of_a_layer(module, function, phase):
    """G4: where the driver is C, the layer's frames tell a COMMIT from the rest."""
    exc = passed_through(MySQLdb.OperationalError(*LOST.args), (module, function, {}))
    assert verdict(exc) == ("disconnection", phase)


def test_sqlalchemy_used_again():
    """G4: a connection that was lost earlier may have been lost in a COMMIT; it is not said."""
    again = sqlalchemy.exc.PendingRollbackError("Can't reconnect", code="8s2b")
    exc = passed_through(again, (CONNECTION, "_revalidate_connection", {}))
    assert verdict(exc) == ("disconnection", "unknown")


def test_sqlalchemy_used_again_after_an_answer():
    """The same code, of a COMMIT that the server refused: that was no disconnection."""
    again = sqlalchemy.exc.PendingRollbackError("Can't reconnect", code="8s2b")
    assert verdict(passed_through(again, (CONNECTION, "_execute_context", {}))) is None


def test_sqlalchemy_loses_its_first_connection():
    """SQLAlchemy says "closed" of a connection that is lost while it looks the server over."""
    closed = sqlalchemy.exc.ResourceClosedError("This Connection is closed")
    exc = passed_through(closed, ("sqlalchemy.engine.create", "first_connect", {}))
    assert verdict(exc) == ("disconnection", "connect")
    closed = sqlalchemy.exc.ResourceClosedError("This Connection is closed")
    assert verdict(passed_through(closed, (CONNECTION, "_execute_context", {}))) is None


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (LOST, ("disconnection", "unknown")),
        (MySQLdb.OperationalError(1213, "Deadlock found"), ("conflict", "unknown")),
        (MySQLdb.IntegrityError(1062, "Duplicate entry"), None),
        (None, None),
    ],
)
def test_django_goes_on_in_a_broken_transaction(cause, expected):
    """Django's refusal to go on counts as what broke the transaction; alone it is the app's."""
    exc = django.db.transaction.TransactionManagementError("An error occurred")
    if cause is not None:
        exc.__cause__ = django.db.utils.OperationalError(*cause.args)
        exc.__cause__.__cause__ = cause
    assert verdict(exc) == expected
