"""MariaDB and MySQL: PyMySQL and mysqlclient.

Error numbers: MariaDB's error code reference, MySQL 8.4's "Server Error Message Reference" (1xxx,
4xxx) and "Client Error Message Reference" (2xxx).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from retrymw._core.failure import Failure
from retrymw.classify._frames import Package, phase_of
from retrymw.exceptions import Kind, Phase

__all__ = ["CODES", "PACKAGES"]


class Code(NamedTuple):
    """What an error number means. ``phase`` is None where the traceback has to tell."""

    kind: Kind
    phase: Phase | None
    name: str


CODES: Final[dict[int, Code]] = {
    1040: Code("too-many-connections", "connect", "ER_CON_COUNT_ERROR"),
    1135: Code("too-many-connections", "connect", "ER_CANT_CREATE_THREAD"),
    1203: Code("too-many-connections", "connect", "ER_TOO_MANY_USER_CONNECTIONS"),
    1226: Code("too-many-connections", "connect", "ER_USER_LIMIT_REACHED"),
    1053: Code("disconnection", None, "ER_SERVER_SHUTDOWN"),
    1152: Code("disconnection", None, "ER_ABORTING_CONNECTION"),
    1158: Code("disconnection", None, "ER_NET_READ_ERROR"),
    1159: Code("disconnection", None, "ER_NET_READ_INTERRUPTED"),
    1160: Code("disconnection", None, "ER_NET_ERROR_ON_WRITE"),
    1161: Code("disconnection", None, "ER_NET_WRITE_INTERRUPTED"),
    1184: Code("disconnection", None, "ER_NEW_ABORTING_CONNECTION"),
    1927: Code("disconnection", None, "ER_CONNECTION_KILLED"),
    2002: Code("disconnection", "connect", "CR_CONNECTION_ERROR"),
    2003: Code("disconnection", "connect", "CR_CONN_HOST_ERROR"),
    2005: Code("disconnection", "connect", "CR_UNKNOWN_HOST"),
    2006: Code("disconnection", None, "CR_SERVER_GONE_ERROR"),
    2012: Code("disconnection", "connect", "CR_SERVER_HANDSHAKE_ERR"),
    2013: Code("disconnection", None, "CR_SERVER_LOST"),
    2055: Code("disconnection", None, "CR_SERVER_LOST_EXTENDED"),
    4031: Code("disconnection", "execute", "ER_CLIENT_INTERACTION_TIMEOUT"),
    1020: Code("conflict", None, "ER_CHECKREAD"),
    1205: Code("conflict", None, "ER_LOCK_WAIT_TIMEOUT"),
    1213: Code("conflict", None, "ER_LOCK_DEADLOCK"),
}

# 1226 covers max_queries_per_hour and others as well; its text names the resource in quotes
# ("User '%s' has exceeded the '%s' resource"), whatever the server's language.
_CONNECTION_RESOURCES: Final = ("'max_user_connections'", "'max_connections_per_hour'")


def pymysql(exc: BaseException) -> Failure | None:
    """PyMySQL: ``args`` is ``(code, text)``."""
    code = _code(exc)
    if code == 0 and type(exc).__name__ == "InterfaceError":
        # The connection was closed under the app, by an earlier failure as a rule: nothing is sent.
        return Failure("disconnection", "execute", exc, 0, "pymysql")
    return _failure(exc, code, "pymysql")


def mysqlclient(exc: BaseException) -> Failure | None:
    """mysqlclient: ``args`` is ``(code, text)``; its commit() is C and leaves no frame."""
    code = _code(exc)
    if code == 2006 and not _text(exc):
        return None  # a connection that the app closed itself
    return _failure(exc, code, "mysqlclient")


def _failure(exc: BaseException, code: int | None, driver: str) -> Failure | None:
    known = CODES.get(code) if code is not None else None
    if known is None:
        return None
    if code == 1226 and not any(name in _text(exc) for name in _CONNECTION_RESOURCES):
        return None
    return Failure(known.kind, known.phase or phase_of(exc), exc, code, driver)


def _code(exc: BaseException) -> int | None:
    return exc.args[0] if exc.args and isinstance(exc.args[0], int) else None


def _text(exc: BaseException) -> str:
    return str(exc.args[1]) if len(exc.args) > 1 else ""


PACKAGES: Final[dict[str, Package]] = {
    "pymysql": Package(
        pymysql,
        phases={
            "connect": "connect",
            "commit": "commit",
            "query": "execute",
            "rollback": "execute",
        },
        statements={"query": "sql"},
    ),
    "MySQLdb": Package(
        mysqlclient,
        phases={"__init__": "connect", "_query": "execute", "query": "execute"},
        statements={"_query": "q", "query": "query"},
    ),
}
