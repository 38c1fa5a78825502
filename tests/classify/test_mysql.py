"""MariaDB and MySQL: every error number, through the exceptions of both drivers."""

from __future__ import annotations

import MySQLdb
import pymysql
import pytest

from retrymw.classify import classify
from retrymw.classify.mysql import CODES
from tests.classify.helpers import passed_through, verdict

# number: kind, phase where the number tells it (else the traceback does)
FAILURES = {
    1040: ("too-many-connections", "connect"),
    1135: ("too-many-connections", "connect"),
    1203: ("too-many-connections", "connect"),
    1226: ("too-many-connections", "connect"),
    1053: ("disconnection", None),
    1152: ("disconnection", None),
    1158: ("disconnection", None),
    1159: ("disconnection", None),
    1160: ("disconnection", None),
    1161: ("disconnection", None),
    1184: ("disconnection", None),
    1927: ("disconnection", None),
    2002: ("disconnection", "connect"),
    2003: ("disconnection", "connect"),
    2005: ("disconnection", "connect"),
    2006: ("disconnection", None),
    2012: ("disconnection", "connect"),
    2013: ("disconnection", None),
    2055: ("disconnection", None),
    4031: ("disconnection", "execute"),
    1020: ("conflict", None),
    1205: ("conflict", None),
    1213: ("conflict", None),
}
NOT_OURS = {
    1044: "Access denied for user 'app'@'%' to database 'shop'",
    1045: "Access denied for user 'app'@'%' (using password: YES)",
    1049: "Unknown database 'nope'",
    1062: "Duplicate entry '1' for key 'PRIMARY'",
    1064: "You have an error in your SQL syntax",
    1146: "Table 'app.nope' doesn't exist",
    1153: "Got a packet bigger than 'max_allowed_packet' bytes",
    1290: "The server is running with the --read-only option",
    1317: "Query execution was interrupted",
    1451: "Cannot delete or update a parent row",
    1698: "Access denied for user 'root'@'localhost'",
    1969: "Query execution was interrupted (max_statement_time exceeded)",
    2014: "Commands out of sync; you can't run this command now",
    2027: "Malformed packet",
    3024: "Query execution was interrupted, maximum statement execution time exceeded",
}
LIMIT = "User 'app' has exceeded the '{}' resource (current value: 1)"
TEXTS = {1226: LIMIT.format("max_user_connections")}

DRIVERS = {"pymysql": pymysql, "mysqlclient": MySQLdb}
CLASSES = ("OperationalError", "InternalError", "DatabaseError", "InterfaceError")


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


def error(driver, *args, cls="OperationalError"):
    return getattr(DRIVERS[driver], cls)(*args)


def test_every_code_is_tested():
    """A number that is added to the table comes with its line in this file."""
    assert FAILURES.keys() == CODES.keys()
    assert not FAILURES.keys() & NOT_OURS.keys()


@pytest.mark.parametrize("code", FAILURES)
@pytest.mark.parametrize("cls", CLASSES)
def test_failures(driver, code, cls):
    """G7: each number has its kind and phase, whatever class it comes in; the exception is kept."""
    kind, phase = FAILURES[code]
    exc = error(driver, code, TEXTS.get(code, "text"), cls=cls)
    failure = classify(exc)
    assert (failure.kind, failure.phase) == (kind, phase or "unknown")
    assert (failure.code, failure.driver) == (code, driver)
    assert failure.exception is exc


@pytest.mark.parametrize("code", [code for code, (_, phase) in FAILURES.items() if phase is None])
def test_phase_from_the_traceback(driver, code):
    """Where the number does not tell the phase, the frames of the driver do."""
    module, function, variable = {
        "pymysql": ("pymysql.connections", "query", "sql"),
        "mysqlclient": ("MySQLdb.cursors", "_query", "q"),
    }[driver]
    exc = passed_through(error(driver, code, "text"), (module, function, {variable: b"SELECT 1"}))
    assert verdict(exc) == (FAILURES[code][0], "execute")


@pytest.mark.parametrize("code", NOT_OURS)
def test_not_ours(driver, code):
    """A replay cures no syntax, key, password, missing database, packet size or KILL QUERY."""
    assert classify(error(driver, code, NOT_OURS[code])) is None


@pytest.mark.parametrize("resource", ["max_user_connections", "max_connections_per_hour"])
def test_limit_of_connections(driver, resource):
    """1226 is ours where the account has too many connections, whatever the server's language."""
    for text in (LIMIT, "Benutzer 'app' hat die Ressource '{}' überschritten (aktuell: 1)"):
        assert verdict(error(driver, 1226, text.format(resource)))[0] == "too-many-connections"


@pytest.mark.parametrize("resource", ["max_questions", "max_queries_per_hour", "max_updates"])
def test_limit_of_queries(driver, resource):
    """1226 is not ours where the account has had its queries for this hour."""
    assert classify(error(driver, 1226, LIMIT.format(resource))) is None


@pytest.mark.parametrize("args", [(), ("text",), (None,), ("2013", "text"), (2013.0,), ([2013],)])
def test_no_code(driver, args):
    """An exception without a number is not ours, however it is made."""
    assert classify(error(driver, *args)) is None


def test_code_alone(driver):
    """The number is enough."""
    assert verdict(error(driver, 2003)) == ("disconnection", "connect")


def test_pymysql_connection_that_is_gone():
    """PyMySQL's InterfaceError (0, '') means that the connection was dropped before."""
    assert classify(pymysql.InterfaceError(0, "")).kind == "disconnection"
    assert classify(pymysql.OperationalError(0, "")) is None


def test_mysqlclient_connection_that_the_app_closed():
    """mysqlclient's (2006, '') is a connection that the app closed; with a text it was dropped."""
    assert classify(MySQLdb.OperationalError(2006, "")) is None
    assert classify(MySQLdb.OperationalError(2006, "Server has gone away")) is not None


def test_packets_out_of_order():
    """A connection that two threads use at once is a bug in the app, not ours to replay."""
    exc = pymysql.InternalError("Packet sequence number wrong - got 1 expected 0")
    assert classify(exc) is None


def test_subclass_of_an_app(driver):
    """An app's own class, derived from the driver's, is the driver's."""
    cls = type("AppError", (DRIVERS[driver].OperationalError,), {"__module__": "shop.errors"})
    assert verdict(cls(1213, "Deadlock found")) == ("conflict", "unknown")
