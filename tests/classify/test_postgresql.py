"""PostgreSQL: every SQLSTATE and every text, through the exceptions of the drivers."""

from __future__ import annotations

import gettext
from pathlib import Path

import asyncpg
import pg8000.exceptions
import psycopg
import psycopg2
import psycopg2.pool
import psycopg_pool
import pytest
from psycopg2 import errorcodes

from retrymw.classify import classify
from retrymw.classify._postgresql_texts import DENIED, SERVER, SQLSTATES, TRANSPORT
from tests.classify.helpers import caught, passed_through, verdict

TOO_MANY, GONE, CONFLICT = "too-many-connections", "disconnection", "conflict"

# SQLSTATE: kind, phase where the state tells it (else the traceback does)
FAILURES = {
    "53300": (TOO_MANY, "connect"),
    "08000": (GONE, None),
    "08001": (GONE, "connect"),
    "08003": (GONE, None),
    "08004": (GONE, "connect"),
    "08006": (GONE, None),
    "08007": (GONE, "commit"),
    "25P03": (GONE, "execute"),
    "40003": (GONE, "commit"),
    "57P01": (GONE, None),
    "57P02": (GONE, None),
    "57P03": (GONE, "connect"),
    "57P05": (GONE, "execute"),
    "40001": (CONFLICT, None),
    "40P01": (CONFLICT, None),
    "55P03": (CONFLICT, None),
}
NOT_OURS = {
    "08P01": "invalid message format",
    "25P02": "current transaction is aborted, commands ignored until end of transaction block",
    "28000": 'no pg_hba.conf entry for host "127.0.0.1"',
    "28P01": 'password authentication failed for user "app"',
    "3D000": 'database "nope" does not exist',
    "40002": "transaction integrity constraint violation",
    "42601": 'syntax error at or near "SELEC"',
    "53100": "could not extend file: No space left on device",
    "57014": "canceling statement due to statement timeout",
    "58P01": 'could not open file "base/1/2": No such file or directory',
    "P0001": "raised by a function: server closed the connection unexpectedly",
}

HOST = 'connection to server at "10.0.0.7", port 5432 failed: '
SOCKET = 'connection to server on socket "/run/postgresql/.s.PGSQL.5432" failed: '
AUTHENTICATION = 'FATAL:  password authentication failed for user "app"'
REFUSED = "Connection refused\n\tIs the server running on that host?"

# text, kind, phase where the text tells it
MESSAGES = [
    (HOST + "FATAL:  sorry, too many clients already", TOO_MANY, "connect"),
    (HOST + "FATAL:  remaining connection slots are reserved for", TOO_MANY, "connect"),
    (HOST + 'FATAL:  too many connections for role "app"', TOO_MANY, "connect"),
    (HOST + 'FATAL:  too many connections for database "shop"', TOO_MANY, "connect"),
    (HOST + "FATAL:  the database system is starting up", GONE, "connect"),
    (HOST + "FATAL:  the database system is not yet accepting connections", GONE, "connect"),
    (HOST + REFUSED, GONE, "connect"),
    (HOST + "No route to host\n\tIs the server running on that host?", GONE, "connect"),
    (HOST + "Network is unreachable", GONE, "connect"),
    (SOCKET + "No such file or directory\n\tIs the server running locally?", GONE, "connect"),
    ('could not translate host name "db" to address: Name or service', GONE, "connect"),
    ("failed to resolve host 'db': [Errno -3] Temporary failure", GONE, "connect"),
    ("connection timeout expired", GONE, "connect"),
    (HOST + "could not send startup packet: Broken pipe", GONE, "connect"),
    ("server closed the connection unexpectedly\n\tThis probably means", GONE, None),
    ("could not receive data from server: Connection timed out", GONE, None),
    ("could not send data to server: Broken pipe", GONE, None),
    ("consuming input failed: could not receive data from server: No route", GONE, None),
    ("consuming input failed: SSL SYSCALL error: EOF detected", GONE, None),
    ("SSL connection has been closed unexpectedly", GONE, None),
    ("could not receive data: Connection reset by peer", GONE, None),
    ("sending query failed: Broken pipe", GONE, None),
    ("consuming input failed: Connection timed out", GONE, None),
    ("no connection to the server\n", GONE, "execute"),
    ("terminating connection due to administrator command\n", GONE, None),
    ("connection socket closed", GONE, None),
    ("the connection is lost", GONE, None),
    ("the connection is closed", GONE, "execute"),
    ("connection already closed", GONE, "execute"),
]
NOT_OURS_BY_TEXT = [
    HOST + AUTHENTICATION,
    HOST + 'FATAL:  database "nope" does not exist',
    HOST + 'FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "app", database "shop"',
    'could not open certificate file "/nope": No such file or directory',
    'missing "=" after "nope" in connection info string',
    "the cursor is closed",
    "another command is already in progress",
]
# What PgBouncer says; before version 1.23 it gives 08P01 to all of it.
OF_PGBOUNCER = [
    ("no more connections allowed (max_client_conn)", (TOO_MANY, "connect")),
    ("client connections exceeded (max_db_client_connections)", (TOO_MANY, "connect")),
    ("query_wait_timeout", (TOO_MANY, "connect")),
    ("server login has been failing, try again later (server_login_retry)", (GONE, "connect")),
    ("server login has been failing, cached error: connect failed", (GONE, "connect")),
    ("server login has been failing, cached error: FATAL: too many clients already",
     (TOO_MANY, "connect")),
    ("client_login_timeout (server down)", (GONE, "connect")),
    ("client_idle_timeout", (GONE, "execute")),
    ("idle transaction timeout", (GONE, "execute")),
    ("server conn crashed?", (GONE, "unknown")),
    ("database removed", (GONE, "unknown")),
    ("pooler is shutting down", (GONE, "unknown")),
    ("server login has been failing, cached error: password authentication failed", None),
    ("password authentication failed", None),
    ("no such database: nope", None),
    ("no such user: nope", None),
    ('database "shop" is disabled', None),
    ('database "shop" does not allow connections', None),
    ("bouncer config error", None),
    ("query timeout", None),
    ("query_timeout", None),
]  # fmt: skip
DRIVERS = ["psycopg", "psycopg2", "asyncpg", "pg8000"]
OF_LIBPQ = DRIVERS[:2]


def error(driver, text, state=None, cls=None):
    """An exception as the driver makes it of what the server, or libpq, says."""
    if driver == "asyncpg":
        fields = {"S": "FATAL", "C": state, "M": text}
        return caught(_raise, asyncpg.PostgresError.new(fields))
    if driver == "pg8000":
        return pg8000.exceptions.DatabaseError({"S": "FATAL", "C": state, "M": text})
    if driver == "psycopg2":
        cls = getattr(psycopg2, cls or "OperationalError")
        if state in vars(errorcodes).values():
            cls = psycopg2.errors.lookup(state)
        exc = cls(text)
        exc.__setstate__({"pgcode": state})
        return exc
    if state is not None and cls is None:
        return psycopg.errors.lookup(state)(text)
    return getattr(psycopg, cls or "OperationalError")(text)


def _raise(exc):
    raise exc


def test_every_state_and_text_is_tested():
    """A state or text that is added to the tables comes with its line in this file."""
    assert FAILURES.keys() == SQLSTATES.keys()
    assert not FAILURES.keys() & NOT_OURS.keys()
    texts = [text for text, *_ in MESSAGES + OF_PGBOUNCER] + NOT_OURS_BY_TEXT
    for fragment in [*DENIED, *(known.fragment for known in SERVER + TRANSPORT)]:
        assert [text for text in texts if fragment in text], fragment


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("state", FAILURES)
def test_failures(driver, state):
    """G7: each SQLSTATE has its kind and phase, and the exception is kept."""
    kind, phase = FAILURES[state]
    exc = error(driver, "text", state)
    failure = classify(exc)
    assert (failure.kind, failure.phase) == (kind, phase or "unknown")
    assert (failure.code, failure.driver) == (state, driver)
    assert failure.exception is exc


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("state", NOT_OURS)
def test_not_ours(driver, state):
    """A replay cures no syntax, key, password, missing database or statement timeout."""
    assert classify(error(driver, NOT_OURS[state], state)) is None


@pytest.mark.parametrize("driver", OF_LIBPQ)
@pytest.mark.parametrize(("text", "kind", "phase"), MESSAGES)
@pytest.mark.parametrize("cls", ["OperationalError", "InterfaceError"])
def test_messages(driver, text, kind, phase, cls):
    """Without an SQLSTATE, as after any failed connect, the text has to tell."""
    failure = classify(error(driver, text, cls=cls))
    assert (failure.kind, failure.phase) == (kind, phase or "unknown")
    assert failure.code is None


@pytest.mark.parametrize("driver", OF_LIBPQ)
@pytest.mark.parametrize("text", NOT_OURS_BY_TEXT)
def test_messages_not_ours(driver, text):
    """A refused login, an unknown database and a wrong option are for the app to see."""
    assert classify(error(driver, text)) is None


OF_TWO_ADDRESSES = {
    "libpq": f"{HOST}{REFUSED}\n{HOST}{AUTHENTICATION}\n",
    "psycopg": f"{HOST}{AUTHENTICATION}\nMultiple connection attempts failed. All failures were:\n"
    f"- host: 'db', port: None, hostaddr: '::1': {HOST}{REFUSED}\n"
    f"- host: 'db', port: None, hostaddr: '10.0.0.7': {HOST}{AUTHENTICATION}",
    "German": f"{HOST}{REFUSED}\n{HOST}FATAL:  Passwort-Authentifizierung fehlgeschlagen\n",
}


@pytest.mark.parametrize("driver", OF_LIBPQ)
@pytest.mark.parametrize("text", OF_TWO_ADDRESSES.values(), ids=OF_TWO_ADDRESSES.keys())
def test_one_address_refused_and_the_other_denied(driver, text):
    """A wrong password does not become a disconnection because another address had no server."""
    assert classify(passed_through(error(driver, text), (driver, "connect", {}))) is None


@pytest.mark.parametrize("driver", OF_LIBPQ)
def test_one_address_refused_and_the_other_full(driver):
    """With one address out of reach and the other server full, it is full."""
    text = f"{HOST}{REFUSED}\n{HOST}FATAL:  sorry, too many clients already\n"
    assert verdict(error(driver, text)) == (TOO_MANY, "connect")


CATALOGS = sorted(Path("/usr/share/locale").glob("*/LC_MESSAGES/postgres-1*.mo"))


def test_there_are_translations():
    """Debian's package of the server brings them."""
    assert len(CATALOGS) >= 10


@pytest.mark.parametrize("catalog", CATALOGS, ids=lambda path: path.parts[4])
def test_translations(catalog):
    """A failed connect is known by what PostgreSQL says in any language it speaks."""
    with catalog.open("rb") as file:
        translate = gettext.GNUTranslations(file).gettext
    for text, expected in [
        ("sorry, too many clients already", TOO_MANY),
        ("remaining connection slots are reserved for non-replication superuser connections",
         TOO_MANY),
        ('too many connections for role "%s"', TOO_MANY),
        ('too many connections for database "%s"', TOO_MANY),
        ("the database system is starting up", GONE),
        ("the database system is not yet accepting connections", GONE),
        ("the database system is shutting down", GONE),
        ("the database system is in recovery mode", GONE),
        ("terminating connection due to administrator command", GONE),
        ("terminating connection because of crash of another server process", GONE),
        ('password authentication failed for user "%s"', None),
        ('database "%s" does not exist', None),
    ]:  # fmt: skip
        answer = f"{HOST}{translate('FATAL')}:  {translate(text)}"
        exc = passed_through(error("psycopg", answer), ("psycopg.connection", "connect", {}))
        assert verdict(exc) == (expected and (expected, "connect")), answer


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("text", "expected"), OF_PGBOUNCER)
def test_pgbouncer(driver, text, expected):
    """PgBouncer gives 08P01 to a full pool as to a protocol error: its text has to tell."""
    assert verdict(error(driver, text, "08P01")) == expected
    if driver in OF_LIBPQ:
        assert verdict(error(driver, text)) == expected


@pytest.mark.parametrize("driver", OF_LIBPQ)
@pytest.mark.parametrize("cls", ["ProgrammingError", "DataError", "IntegrityError", "Warning"])
@pytest.mark.parametrize("text", ["server closed the connection", "too many clients already"])
def test_texts_prove_nothing_in_other_classes(driver, cls, text):
    """A text that quotes a value of the app's is no failure: ProgrammingErrors do that."""
    assert classify(error(driver, text, cls=cls)) is None


class Connection:
    """Of psycopg2, once it is lost."""

    closed, autocommit = 2, False

    class info:  # as psycopg2 has it
        error_message = "FATAL:  nicht auf Englisch"


class Psycopg2Error(psycopg2.OperationalError):
    """With a cursor; psycopg2 sets it in C."""

    def __init__(self, query, text="server closed the connection unexpectedly"):
        super().__init__(text)
        self.cursor_query = query

    @property
    def cursor(self):
        return type("Cursor", (), {"query": self.cursor_query, "connection": Connection()})()


@pytest.mark.parametrize(
    ("query", "phase"),
    [(b"SELECT 1", "execute"), (b"COMMIT", "commit"), (b" commit work", "commit")],
)
def test_psycopg2_phase_from_the_cursor(query, phase):
    """G4: psycopg2 leaves no frames; what its cursor was asked tells the phase."""
    assert verdict(Psycopg2Error(query)) == (GONE, phase)


def test_psycopg2_without_a_cursor():
    """G4: psycopg2's commit() has no cursor: nothing rules a COMMIT out."""
    exc = psycopg2.OperationalError("server closed the connection unexpectedly")
    assert verdict(exc) == (GONE, "unknown")


def test_lost_in_a_language_of_libpqs():
    """What the drivers know of a connection goes before what is said of it, and in which words."""
    text = "Server beendete die Verbindung unerwartet"
    assert verdict(Psycopg2Error(b"SELECT 1", text)) == (GONE, "execute")
    connection = type("Connection", (), {"broken": True, "autocommit": False})()
    frame = ("psycopg.connection", "execute", {"query": "SELECT 1", "self": connection})
    assert verdict(passed_through(psycopg.OperationalError(text), frame)) == (GONE, "execute")


@pytest.mark.parametrize(
    ("text", "expected"), [("terminated", (GONE, "commit")), ("query timeout", None)]
)
def test_last_words(text, expected):
    """What the server said before it closed the connection is not lost on asyncpg and pg8000."""
    state = "57P01" if expected else "08P01"
    exc = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    exc.__cause__ = asyncpg.PostgresError.new({"S": "FATAL", "C": state, "M": text})
    passed_through(exc, ("asyncpg.connection", "execute", {"query": "COMMIT;"}))
    assert verdict(exc) == expected
    context = type("Context", (), {"error": error("pg8000", text, state)})
    exc = pg8000.exceptions.InterfaceError("network error")
    frame = ("pg8000.core", "execute_simple", {"statement": "commit", "context": context})
    assert verdict(passed_through(exc, frame)) == expected


ASYNCPG_CONNECTS = ("asyncpg.connect_utils", "_connect_addr", {})


@pytest.mark.parametrize(
    ("exc", "frame", "expected"),
    [
        (ConnectionRefusedError(111, "refused"), ASYNCPG_CONNECTS, (GONE, "connect")),
        (OSError("Multiple exceptions: [Errno 111]"), ASYNCPG_CONNECTS, (GONE, "connect")),
        (TimeoutError(), ("asyncpg.connection", "connect", {}), (GONE, "connect")),
        (FileNotFoundError(2, "of a certificate"), ("asyncpg.connection", "connect", {}), None),
        (TimeoutError(), ("asyncpg.pool", "_acquire", {}), (TOO_MANY, "connect")),
        (TimeoutError(), ("asyncpg.connection", "execute", {"query": "SELECT 1"}), None),
        (ConnectionError("… rejected SSL upgrade"), ASYNCPG_CONNECTS, None),
        (PermissionError(13, "denied"), ASYNCPG_CONNECTS, None),
        (TimeoutError("timed out"), ("pg8000.core", "__init__", {}), (GONE, "connect")),
        (OSError("cannot read from timed out object"),
         ("pg8000.core", "execute_simple", {"statement": "commit"}), (GONE, "commit")),
        (OSError(28, "No space left on device"),
         ("pg8000.core", "execute_unnamed", {"statement": "COPY t TO STDOUT"}), None),
        (asyncpg.InterfaceError("connection is closed"), ASYNCPG_CONNECTS, (GONE, "execute")),
        (asyncpg.InterfaceError("pool is closed"), ASYNCPG_CONNECTS, None),
        (asyncpg.InterfaceError("another operation is in progress"), ASYNCPG_CONNECTS, None),
        (pg8000.exceptions.InterfaceError("connection is closed"), ASYNCPG_CONNECTS, None),
        (psycopg2.pool.PoolError("connection pool exhausted"), ASYNCPG_CONNECTS,
         (TOO_MANY, "connect")),
        (psycopg2.pool.PoolError("connection pool is closed"), ASYNCPG_CONNECTS, None),
        (psycopg_pool.TooManyRequests(), ASYNCPG_CONNECTS, (TOO_MANY, "connect")),
        (psycopg_pool.PoolClosed(), ASYNCPG_CONNECTS, None),
    ],
)  # fmt: skip
def test_without_a_code(exc, frame, expected):
    """The drivers' own errors, and those of Python's that they let through."""
    assert verdict(passed_through(exc, frame)) == expected


@pytest.mark.parametrize(("connection", "expected"), [(None, (GONE, "execute")), ("open", None)])
def test_asyncpg_taken_back_by_its_pool(connection, expected):
    """asyncpg's pool takes a lost connection back; what the app gave back itself is a bug of it."""
    holder = type("Holder", (), {"_con": connection})
    proxy = type("Proxy", (), {"_holder": holder})
    exc = asyncpg.InterfaceError("connection has been released back to the pool")
    frame = ("asyncpg.pool", "call_con_method", {"self": proxy})
    assert verdict(passed_through(exc, frame)) == expected


def test_subclass_of_an_app():
    """An app's own class, derived from the driver's, is the driver's."""
    cls = type("AppError", (psycopg2.OperationalError,), {"__module__": "shop.errors"})
    assert classify(cls("the connection is closed")) is not None
