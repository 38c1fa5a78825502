"""PostgreSQL: every SQLSTATE and every text, through the exceptions of both drivers."""

from __future__ import annotations

import psycopg
import psycopg2
import pytest
from psycopg2 import errorcodes

from retrymw.classify import classify
from retrymw.classify.postgresql import SQLSTATES, TEXTS
from tests.classify.helpers import passed_through, verdict

# SQLSTATE: kind, phase where the state tells it (else the traceback does)
FAILURES = {
    "53300": ("too-many-connections", "connect"),
    "08000": ("disconnection", None),
    "08001": ("disconnection", "connect"),
    "08003": ("disconnection", "execute"),
    "08004": ("disconnection", "connect"),
    "08006": ("disconnection", None),
    "08007": ("disconnection", "commit"),
    "25P03": ("disconnection", "execute"),
    "40003": ("disconnection", "commit"),
    "57P01": ("disconnection", None),
    "57P02": ("disconnection", None),
    "57P03": ("disconnection", "connect"),
    "57P05": ("disconnection", "execute"),
    "40001": ("conflict", None),
    "40P01": ("conflict", None),
    "55P03": ("conflict", None),
}
NOT_OURS = {
    "08P01": "invalid message format",
    "22001": "value too long for type character varying(3)",
    "23505": 'duplicate key value violates unique constraint "t_pkey"',
    "25P02": "current transaction is aborted, commands ignored until end of transaction block",
    "28000": 'no pg_hba.conf entry for host "127.0.0.1"',
    "28P01": 'password authentication failed for user "app"',
    "3D000": 'database "nope" does not exist',
    "40002": "transaction integrity constraint violation",
    "42601": 'syntax error at or near "SELEC"',
    "42P01": 'relation "nope" does not exist',
    "53100": "could not extend file: No space left on device",
    "57014": "canceling statement due to statement timeout",
    "58P01": 'could not open file "base/1/2": No such file or directory',
    "P0001": "raised by a function: server closed the connection unexpectedly",
}

HOST = 'connection to server at "10.0.0.7", port 5432 failed: '
SOCKET = 'connection to server on socket "/run/postgresql/.s.PGSQL.5432" failed: '
AUTHENTICATION = 'FATAL:  password authentication failed for user "app"'
REFUSED = "Connection refused\n\tIs the server running on that host?"
TOO_MANY, GONE = "too-many-connections", "disconnection"

# text, kind, phase where the text tells it
MESSAGES = [
    (HOST + "FATAL:  sorry, too many clients already", TOO_MANY, "connect"),
    (HOST + "FATAL:  remaining connection slots are reserved for", TOO_MANY, "connect"),
    (HOST + 'FATAL:  too many connections for role "app"', TOO_MANY, "connect"),
    (HOST + 'FATAL:  too many connections for database "shop"', TOO_MANY, "connect"),
    (HOST + "FATAL:  the database system is starting up", GONE, "connect"),
    (HOST + "FATAL:  the database system is shutting down", GONE, "connect"),
    (HOST + "FATAL:  the database system is in recovery mode", GONE, "connect"),
    (HOST + "FATAL:  the database system is not yet accepting connections", GONE, "connect"),
    (HOST + REFUSED, GONE, "connect"),
    (HOST + "No route to host\n\tIs the server running on that host?", GONE, "connect"),
    (HOST + "Network is unreachable", GONE, "connect"),
    (SOCKET + "No such file or directory\n\tIs the server running locally?", GONE, "connect"),
    ('could not translate host name "db" to address: Name or service', GONE, "connect"),
    ("failed to resolve host 'db': [Errno -3] Temporary failure", GONE, "connect"),
    ("connection timeout expired", GONE, "connect"),
    (HOST + "timeout expired", GONE, "connect"),
    (HOST + "could not send startup packet: Broken pipe", GONE, "connect"),
    ("server closed the connection unexpectedly\n\tThis probably means", GONE, None),
    ("could not receive data from server: Connection timed out", GONE, None),
    ("could not send data to server: Broken pipe", GONE, None),
    ("consuming input failed: could not receive data from server: No route", GONE, None),
    ("consuming input failed: SSL SYSCALL error: EOF detected", GONE, None),
    ("SSL SYSCALL error: Connection timed out", GONE, None),
    ("SSL connection has been closed unexpectedly", GONE, None),
    ("could not receive data: Connection reset by peer", GONE, None),
    ("sending query failed: Broken pipe", GONE, None),
    ("consuming input failed: Connection timed out", GONE, None),
    ("no connection to the server\n", GONE, "execute"),
    ("terminating connection due to administrator command\n", GONE, None),
    ("terminating connection due to unexpected postmaster exit", GONE, None),
    ("connection socket closed", GONE, None),
    ("the connection is lost", GONE, None),
    ("the connection is closed", GONE, "execute"),
    ("connection already closed", GONE, "execute"),
]
# What PgBouncer says; it gives 08P01 to all of it, or none where a connect failed.
OF_PGBOUNCER = [
    ("no more connections allowed (max_client_conn)", TOO_MANY),
    ("query_wait_timeout", TOO_MANY),
    ("sorry, too many clients already", TOO_MANY),
    ("server conn crashed?", GONE),
]
NOT_OURS_BY_TEXT = [
    HOST + AUTHENTICATION,
    HOST + 'FATAL:  database "nope" does not exist',
    HOST + 'FATAL:  role "nope" does not exist',
    HOST + 'FATAL:  no pg_hba.conf entry for host "10.0.0.7", user "app", database "shop"',
    'invalid connection option "hots"',
    'missing "=" after "nope" in connection info string',
    "cursor already closed",
    "the cursor is closed",
    "another command is already in progress",
]

DRIVERS = {"psycopg": psycopg, "psycopg2": psycopg2}


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


def error(driver, text, state=None, cls=None):
    """An exception as the driver makes it of what the server, or libpq, says."""
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


def test_every_state_and_text_is_tested():
    """A state or text that is added to the tables comes with its line in this file."""
    assert FAILURES.keys() == SQLSTATES.keys()
    assert not FAILURES.keys() & NOT_OURS.keys()
    for known in TEXTS:
        assert [text for text, *_ in MESSAGES + OF_PGBOUNCER if known.fragment in text], known


@pytest.mark.parametrize("state", FAILURES)
def test_failures(driver, state):
    """G7: each SQLSTATE has its kind and phase, and the exception is kept."""
    kind, phase = FAILURES[state]
    exc = error(driver, "text", state)
    failure = classify(exc)
    assert (failure.kind, failure.phase) == (kind, phase or "unknown")
    assert (failure.code, failure.driver) == (state, driver)
    assert failure.exception is exc


@pytest.mark.parametrize("state", [s for s, (_, phase) in FAILURES.items() if phase is None])
def test_phase_from_the_traceback(state):
    """Where the SQLSTATE does not tell the phase, the frames of the driver do."""
    exc = error("psycopg", "text", state)
    passed_through(exc, ("psycopg.cursor", "execute", {"query": "SELECT 1"}))
    assert verdict(exc) == (FAILURES[state][0], "execute")


@pytest.mark.parametrize("state", NOT_OURS)
def test_not_ours(driver, state):
    """A replay cures no syntax, key, password, missing database or statement timeout."""
    assert classify(error(driver, NOT_OURS[state], state)) is None


@pytest.mark.parametrize(("text", "kind", "phase"), MESSAGES)
@pytest.mark.parametrize("cls", ["OperationalError", "InterfaceError"])
def test_messages(driver, text, kind, phase, cls):
    """Without an SQLSTATE, as after any failed connect, the text has to tell."""
    failure = classify(error(driver, text, cls=cls))
    assert (failure.kind, failure.phase) == (kind, phase or "unknown")
    assert failure.code is None


@pytest.mark.parametrize("text", NOT_OURS_BY_TEXT)
def test_messages_not_ours(driver, text):
    """A refused login, an unknown database and a wrong option are for the app to see."""
    assert classify(error(driver, text)) is None


OF_TWO_ADDRESSES = {
    "libpq": f"{HOST}{REFUSED}\n{HOST}{AUTHENTICATION}\n",
    "psycopg": f"{HOST}{AUTHENTICATION}\nMultiple connection attempts failed. All failures were:\n"
    f"- host: 'db', port: None, hostaddr: '::1': {HOST}{REFUSED}\n"
    f"- host: 'db', port: None, hostaddr: '10.0.0.7': {HOST}{AUTHENTICATION}",
}


@pytest.mark.parametrize("text", OF_TWO_ADDRESSES.values(), ids=OF_TWO_ADDRESSES.keys())
def test_one_address_refused_and_the_other_denied(driver, text):
    """A wrong password does not become a disconnection because another address had no server."""
    assert classify(error(driver, text)) is None


def test_one_address_refused_and_the_other_full(driver):
    """With one address out of reach and the other server full, it is full."""
    text = f"{HOST}{REFUSED}\n{HOST}FATAL:  sorry, too many clients already\n"
    assert verdict(error(driver, text)) == (TOO_MANY, "connect")


@pytest.mark.parametrize(("text", "kind"), OF_PGBOUNCER)
@pytest.mark.parametrize("state", ["08P01", None])
def test_pgbouncer(driver, text, kind, state):
    """PgBouncer gives 08P01 to a full pool as to a protocol error: its text has to tell."""
    failure = classify(error(driver, text, state))
    assert failure is not None
    assert failure.kind == kind


@pytest.mark.parametrize(
    "cls", ["ProgrammingError", "DataError", "IntegrityError", "NotSupportedError", "Warning"]
)
@pytest.mark.parametrize("text", ["server closed the connection", "too many clients already"])
def test_texts_prove_nothing_in_other_classes(driver, cls, text):
    """A text that quotes a value of the app's is no failure: ProgrammingErrors do that."""
    assert classify(error(driver, text, cls=cls)) is None


def test_state_goes_before_text(driver):
    """An SQLSTATE that is not ours settles it, whatever the text says."""
    assert classify(error(driver, "server closed the connection", "42601")) is None


class Cursor:
    def __init__(self, query):
        self.query = query


class Psycopg2Error(psycopg2.OperationalError):
    """With a cursor; psycopg2 sets it in C."""

    def __init__(self, query):
        super().__init__("server closed the connection unexpectedly")
        self.asked = query

    @property
    def cursor(self):
        return Cursor(self.asked)


@pytest.mark.parametrize(
    ("query", "phase"),
    [(b"SELECT 1", "execute"), (b"COMMIT", "commit"), (b" commit work", "commit")],
)
def test_psycopg2_phase_from_the_cursor(query, phase):
    """G4: psycopg2 leaves no frames; what its cursor was asked tells the phase."""
    assert verdict(Psycopg2Error(query)) == ("disconnection", phase)


def test_psycopg2_without_a_cursor():
    """G4: psycopg2's commit() has no cursor: nothing rules a COMMIT out."""
    exc = psycopg2.OperationalError("server closed the connection unexpectedly")
    assert verdict(exc) == ("disconnection", "unknown")


def test_subclass_of_an_app(driver):
    """An app's own class, derived from the driver's, is the driver's."""
    base = psycopg.errors.DeadlockDetected if driver == "psycopg" else psycopg2.OperationalError
    exc = type("AppError", (base,), {"__module__": "shop.errors"})("the connection is closed")
    assert classify(exc) is not None
