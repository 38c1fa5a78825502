"""MariaDB and MySQL: every error number, through the exceptions of all drivers."""

from __future__ import annotations

import ssl

import asyncmy.errors
import mariadb
import mysql.connector as connector
import MySQLdb
import pymysql
import pytest

from retrymw.classify import classify
from retrymw.classify._mysql_codes import CODES, TEXTS
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
    2006: ("disconnection", "execute"),
    2012: ("disconnection", "connect"),
    2013: ("disconnection", None),
    2055: ("disconnection", None),
    4031: ("disconnection", "execute"),
    1020: ("conflict", None),
    1205: ("conflict", None),
    1213: ("conflict", None),
    1613: ("conflict", None),
    1614: ("conflict", None),
    3058: ("conflict", None),
    3101: ("conflict", None),
    3572: ("conflict", None),
}
NOT_OURS = {
    1044: "Access denied for user 'app'@'%' to database 'shop'",
    1045: "Access denied for user 'app'@'%' (using password: YES)",
    1049: "Unknown database 'nope'",
    1062: "Duplicate entry '1' for key 'PRIMARY'",
    1064: "You have an error in your SQL syntax near 'Connection not available, pool exhausted'",
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
TEXT = {1226: LIMIT.format("max_user_connections")}

DRIVERS = {
    "pymysql": pymysql,
    "mysqlclient": MySQLdb,
    "asyncmy": asyncmy.errors,
    "mysql.connector": connector,
    "mariadb": mariadb,
}
CLASSES = ("OperationalError", "InternalError", "DatabaseError", "InterfaceError")
# Where each executes a statement: module, function, and the variable that holds it.
EXECUTES = {
    "pymysql": ("pymysql.connections", "query", "sql"),
    "mysqlclient": ("MySQLdb.cursors", "_query", "q"),
    "mysql.connector": ("mysql.connector.cursor", "execute", "operation"),
    "mariadb": ("mariadb.cursors", "execute", "statement"),
}


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


def error(driver, *args, cls="OperationalError"):
    """As the driver makes it of a number and a text."""
    made = getattr(DRIVERS[driver], cls)
    if driver == "mysql.connector":
        return made(errno=args[0], msg=args[1]) if len(args) == 2 else made(*args)
    exc = made(*args[-1:]) if driver == "mariadb" else made(*args)
    if driver == "mariadb":
        exc.errno = args[0] if len(args) == 2 else None
    return exc


def test_every_code_is_tested():
    """A number that is added to the table comes with its line in this file."""
    assert FAILURES.keys() == CODES.keys()
    assert not FAILURES.keys() & NOT_OURS.keys()


@pytest.mark.parametrize("code", FAILURES)
@pytest.mark.parametrize("cls", CLASSES)
def test_failures(driver, code, cls):
    """G7: each number has its kind and phase, whatever class it comes in; the exception is kept."""
    kind, phase = FAILURES[code]
    exc = error(driver, code, TEXT.get(code, "text"), cls=cls)
    failure = classify(exc)
    assert (failure.kind, failure.phase) == (kind, phase or "unknown")
    assert (failure.code, failure.driver) == (code, driver)
    assert failure.exception is exc


@pytest.mark.parametrize("code", [code for code, (_, phase) in FAILURES.items() if phase is None])
@pytest.mark.parametrize("driver", EXECUTES)
def test_phase_from_the_traceback(driver, code):
    """Where the number does not tell the phase, the frames of the driver do."""
    module, function, variable = EXECUTES[driver]
    for statement, phase in ((b"SELECT 1", "execute"), (b"COMMIT", "commit")):
        frame = (module, function, {variable: statement, "self": None})
        exc = passed_through(error(driver, code, "text"), frame)
        assert verdict(exc) == (FAILURES[code][0], phase)


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
@pytest.mark.parametrize("driver", ["pymysql", "mysqlclient", "asyncmy"])
def test_no_code(driver, args):
    """An exception without a number is not ours, however it is made."""
    assert classify(error(driver, *args)) is None


@pytest.mark.parametrize("driver", EXECUTES)
def test_statement_that_no_server_takes(driver):
    """A connection that ends at a statement above 16 MB would do so again."""
    module, function, variable = EXECUTES[driver]
    for code, size, ours in ((2006, 1 << 25, False), (2013, 1 << 25, False), (2013, 1 << 20, True)):
        frame = (module, function, {variable: b"x" * size, "self": None})
        assert bool(classify(passed_through(error(driver, code, "text"), frame))) is ours


def test_texts():
    """What the connectors raise without a number, word for word."""
    for exc, expected in (
        (connector.PoolError("Failed getting connection; pool exhausted"), TEXTS[0]),
        (connector.PoolError("Failed adding connection; queue is full"), None),
        (mariadb.PoolError("No connection available"), TEXTS[1]),
        (mariadb.PoolError("Couldn't get configuration for pool one"), None),
        (mariadb.ProgrammingError("Invalid connection or not connected"), None),
        (connector.OperationalError("MySQL Connection not available."), TEXTS[2]),
        (connector.InterfaceError("Connection to MySQL is not available"), TEXTS[3]),
        (connector.InterfaceError("Unable to connect to any of the target hosts"), TEXTS[4]),
        (connector.ProgrammingError("Cursor is not connected", 2055), None),
    ):
        told = expected and (expected.kind, expected.phase or "unknown")
        assert verdict(exc) == told, exc


@pytest.mark.parametrize("cls", ["ReadTimeoutError", "WriteTimeoutError", "ConnectionTimeoutError"])
def test_connector_timeouts(cls):
    """3024 of a class of its own is the connector's time, not that of the server's statement."""
    assert verdict(getattr(connector.errors, cls)(errno=3024))[0] == "disconnection"


def test_connector_lets_oserrors_through():
    """A refused connection is ours where the connector raised it; what it caught is not asked."""
    frames = ("mysql.connector.aio.network", "read", {}), ("mysql.connector.aio", "connect", {})
    exc = passed_through(ConnectionRefusedError(111, "refused"), *frames)
    assert verdict(exc) == ("disconnection", "connect")
    lost = passed_through(connector.OperationalError(errno=2055), EXECUTE)
    lost.__cause__ = passed_through(ConnectionResetError(104, "reset"), frames[0])
    lost.__cause__.__traceback__ = lost.__cause__.__traceback__.tb_next
    assert verdict(lost) == ("disconnection", "execute")


EXECUTE = ("mysql.connector.cursor", "execute", {"operation": "SELECT 1", "self": None})


def test_connection_that_is_gone():
    """A connection that was dropped before sends nothing more."""
    for exc in (
        pymysql.InterfaceError(0, ""),
        pymysql.InterfaceError("(0, 'Not connected')"),  # aiomysql's
        asyncmy.errors.InterfaceError(0, "Not connected"),
    ):
        assert verdict(exc) == ("disconnection", "execute")
    for exc in (
        pymysql.OperationalError(0, ""),
        pymysql.InterfaceError("Cancelled during execution"),
        asyncmy.errors.InterfaceError(0, "Cancelled during execution"),
    ):
        assert classify(exc) is None


def test_mysqlclient_connection_that_the_app_closed():
    """mysqlclient's (2006, '') is a connection that the app closed; with a text it was dropped."""
    assert classify(MySQLdb.OperationalError(2006, "")) is None
    assert classify(MySQLdb.OperationalError(2006, "Server has gone away")) is not None


def test_packets_out_of_order():
    """A connection that two threads use at once is a bug in the app, not ours to replay."""
    exc = pymysql.InternalError("Packet sequence number wrong - got 1 expected 0")
    assert classify(exc) is None


@pytest.mark.parametrize("package", ["aiomysql", "asyncmy", "mysql"])
def test_what_it_lets_through(package):
    """Of what comes out of a driver's code only a connection's is ours: no file, no certificate."""
    connect = "_connect" if package == "aiomysql" else "connect"
    frames = ((f"{package}.connection", connect, {}),)
    lost = passed_through(ConnectionResetError(104, "reset"), *frames)
    assert verdict(lost) == ("disconnection", "connect")
    for exc in (PermissionError(13, "denied"), ssl.SSLCertVerificationError("no")):
        assert classify(passed_through(exc, *frames)) is None
    file = (f"{package}.cursors", "load_data", {})
    assert classify(passed_through(IsADirectoryError(21, "it is a directory"), file)) is None


def test_certificate_that_does_not_verify():
    """PyMySQL reports one as it reports a server that is down; the cause tells."""
    exc = pymysql.OperationalError(2003, "Can't connect to MySQL server")
    exc.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")
    assert classify(exc) is None


def test_aiomysql_own():
    """What aiomysql raises itself, in its layer for SQLAlchemy, is the app's mistake."""
    mistake = type("ArgumentError", (Exception,), {"__module__": "aiomysql.sa.exc"})
    assert classify(mistake()) is None


def test_subclass_without_its_parts(driver):
    """An app's subclass that never called the driver's ``__init__()`` is no reason to fail."""
    cls = type("AppError", (DRIVERS[driver].Error,), {"__init__": lambda self: None})
    assert classify(cls()) is None


def test_subclass_of_an_app(driver):
    """An app's own class, derived from the driver's, is the driver's."""
    cls = type("AppError", (DRIVERS[driver].OperationalError,), {"__module__": "shop.errors"})
    exc = cls("Deadlock found", 1213) if driver == "mysql.connector" else cls(1213, "Deadlock")
    if driver == "mariadb":
        exc.errno = 1213
    assert verdict(exc) == ("conflict", "unknown")
