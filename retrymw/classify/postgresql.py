"""PostgreSQL: psycopg 3 and psycopg2.

SQLSTATEs: PostgreSQL documentation, appendix A. A failed connect carries none with either driver,
and neither does a connection that is simply gone; there the text has to tell.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from retrymw._core.failure import Failure
from retrymw.classify._frames import Package, autocommits, phase_of
from retrymw.classify.sql import commits, reads
from retrymw.exceptions import Kind, Phase

__all__ = ["PACKAGES", "SQLSTATES", "TEXTS"]


class State(NamedTuple):
    """What an SQLSTATE means. ``phase`` is None where the traceback has to tell."""

    kind: Kind
    phase: Phase | None
    name: str


class Text(NamedTuple):
    """A piece of a message, what it means, and where it comes from."""

    fragment: str
    kind: Kind
    phase: Phase | None
    source: str


SQLSTATES: Final[dict[str, State]] = {
    "53300": State("too-many-connections", "connect", "too_many_connections"),
    "08000": State("disconnection", None, "connection_exception"),
    "08001": State("disconnection", "connect", "sqlclient_unable_to_establish_sqlconnection"),
    "08003": State("disconnection", "execute", "connection_does_not_exist"),
    "08004": State("disconnection", "connect", "sqlserver_rejected_establishment_of_sqlconnection"),
    "08006": State("disconnection", None, "connection_failure"),
    "08007": State("disconnection", "commit", "transaction_resolution_unknown"),
    "25P03": State("disconnection", "execute", "idle_in_transaction_session_timeout"),
    "40003": State("disconnection", "commit", "statement_completion_unknown"),
    "57P01": State("disconnection", None, "admin_shutdown"),
    "57P02": State("disconnection", None, "crash_shutdown"),
    "57P03": State("disconnection", "connect", "cannot_connect_now"),
    "57P05": State("disconnection", "execute", "idle_session_timeout"),
    "40001": State("conflict", None, "serialization_failure"),
    "40P01": State("conflict", None, "deadlock_detected"),
    "55P03": State("conflict", None, "lock_not_available"),
}

TEXTS: Final[tuple[Text, ...]] = (
    Text("too many clients already", "too-many-connections", "connect", "proc.c InitProcess"),
    Text(
        "remaining connection slots", "too-many-connections", "connect", "postinit.c InitPostgres"
    ),
    Text("no more connections allowed", "too-many-connections", "connect", "PgBouncer client.c"),
    Text("query_wait_timeout", "too-many-connections", "connect", "PgBouncer janitor.c"),
    Text("server conn crashed", "disconnection", None, "PgBouncer server.c"),
    Text("too many connections for", "too-many-connections", "connect", "postinit.c, miscinit.c"),
    Text(
        "the database system is ", "disconnection", "connect", "postmaster.c canAcceptConnections"
    ),
    Text("Connection refused", "disconnection", "connect", "strerror(ECONNREFUSED)"),
    Text("No route to host", "disconnection", "connect", "strerror(EHOSTUNREACH)"),
    Text("Network is unreachable", "disconnection", "connect", "strerror(ENETUNREACH)"),
    Text("No such file or directory", "disconnection", "connect", "strerror(ENOENT), the socket"),
    Text("could not translate host name", "disconnection", "connect", "fe-connect.c"),
    Text("failed to resolve host", "disconnection", "connect", "psycopg _conninfo_attempts.py"),
    Text("timeout expired", "disconnection", "connect", "fe-connect.c; psycopg generators.py"),
    Text("server closed the connection", "disconnection", None, "fe-misc.c pqReadData"),
    Text(
        "could not receive data from server", "disconnection", None, "fe-secure.c pqsecure_raw_read"
    ),
    Text("could not send data to server", "disconnection", None, "fe-secure.c pqsecure_raw_write"),
    Text("could not send startup packet", "disconnection", "connect", "fe-connect.c"),
    Text("SSL SYSCALL error", "disconnection", None, "fe-secure-openssl.c"),
    Text("SSL connection has been closed", "disconnection", None, "fe-secure-openssl.c"),
    Text("Connection reset by peer", "disconnection", None, "strerror(ECONNRESET)"),
    Text("Broken pipe", "disconnection", None, "strerror(EPIPE)"),
    Text("Connection timed out", "disconnection", None, "strerror(ETIMEDOUT)"),
    Text("no connection to the server", "disconnection", "execute", "fe-exec.c PQsendQueryStart"),
    Text("terminating connection", "disconnection", None, "postgres.c ProcessInterrupts"),
    Text("connection socket closed", "disconnection", None, "psycopg waiting.py"),
    Text("the connection is lost", "disconnection", None, "psycopg generators.py"),
    Text("the connection is closed", "disconnection", "execute", "psycopg _connection_base.py"),
    Text("connection already closed", "disconnection", "execute", "psycopg2 connection.h"),
)


def psycopg(exc: BaseException) -> Failure | None:
    """psycopg 3: ``sqlstate`` where the server gave one."""
    return _failure(exc, getattr(exc, "sqlstate", None), phase_of(exc), "psycopg")


def psycopg2(exc: BaseException) -> Failure | None:
    """psycopg2: ``pgcode``; the driver is C, so the phase is what ``cursor`` and connect() tell."""
    phase = phase_of(exc)
    cursor = getattr(exc, "cursor", None)
    if phase == "unknown" and cursor is not None:
        statement = getattr(cursor, "query", None)
        own_commit = autocommits(cursor) and not reads(statement)
        phase = "commit" if own_commit or commits(statement) else "execute"
    return _failure(exc, getattr(exc, "pgcode", None), phase, "psycopg2")


def _failure(exc: BaseException, code: str | None, phase: Phase, driver: str) -> Failure | None:
    if code is not None and code != _PROTOCOL_VIOLATION:
        state = SQLSTATES.get(code)
        return state and Failure(state.kind, state.phase or phase, exc, code, driver)
    if not any(base.__name__ in _CODELESS for base in type(exc).__mro__):
        return None
    message = str(exc)
    denied = any(fragment in message for fragment in _DENIED)
    for text in TEXTS:
        if denied and text.kind == "disconnection":
            continue  # one of several addresses was out of reach, but another one answered
        if text.fragment in message:
            return Failure(text.kind, text.phase or phase, exc, code, driver)
    return None


# What PgBouncer sends for everything, a pool that has run dry included: its text has to tell.
_PROTOCOL_VIOLATION: Final = "08P01"

# The server was reached and said no for good: auth.c, postinit.c.
_DENIED: Final = ("authentication failed", "no pg_hba.conf entry", '" does not exist')

# The classes that failures without an SQLSTATE come in; a ProgrammingError's text proves nothing.
_CODELESS: Final = ("OperationalError", "InterfaceError")


PACKAGES: Final[dict[str, Package]] = {
    "psycopg": Package(
        psycopg,
        phases={
            "connect": "connect",
            "commit": "commit",
            "_commit_gen": "commit",
            "execute": "execute",
            "executemany": "execute",
            "stream": "execute",
            "copy": "execute",
            "rollback": "execute",
            "_rollback_gen": "execute",
            "_enter_gen": "execute",
            "_check_connection_ok": "execute",
        },
        statements={"execute": "query", "executemany": "query", "copy": "statement"},
    ),
    "psycopg2": Package(psycopg2, phases={"connect": "connect"}),
}
