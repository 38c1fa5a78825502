"""MariaDB and MySQL: PyMySQL, mysqlclient, aiomysql, asyncmy, MySQL's and MariaDB's Connectors."""

from __future__ import annotations

from typing import Final

from retrymw._core.failure import Failure
from retrymw.classify._frames import (
    Package,
    frames_of,
    is_a,
    is_of_a_socket,
    is_transport,
    package_of,
    phase_of,
)
from retrymw.classify._mysql_codes import CODES, TEXTS
from retrymw.exceptions import Kind, Phase

__all__ = ["PACKAGES"]

# 1226 covers max_queries_per_hour and others as well; its text names the resource in quotes
# ("User '%s' has exceeded the '%s' resource"), whatever the server's language.
_CONNECTION_RESOURCES: Final = ("'max_user_connections'", "'max_connections_per_hour'")

# m.c's own, after which it closes the connection; a server's 3024 ends a statement, no more.
_TIMEOUTS: Final = ("ConnectionTimeoutError", "ReadTimeoutError", "WriteTimeoutError")

# How it ends also when a statement is longer than the server's max_allowed_packet: in MariaDB 16 MB
# by default, in MySQL 64.
_ENDS: Final = (2006, 2013, 2055)
_LARGEST_PACKET: Final = 1 << 24


def pymysql(exc: BaseException) -> Failure | None:
    """PyMySQL, and aiomysql, which raises its exceptions: ``args`` is ``(code, text)``."""
    code, text = _pair(exc)
    if is_a(exc, "InterfaceError") and (code == 0 or text == "(0, 'Not connected')"):
        return _closed(exc, "pymysql")
    return _numbered(exc, code, text, "pymysql")


def asyncmy(exc: BaseException) -> Failure | None:
    """asyncmy: ``args`` is ``(code, text)``. It is compiled: what it sent leaves no trace."""
    code, text = _pair(exc)
    if is_transport(exc):
        return _of_a_socket(exc, "asyncmy")
    if code == 0 and text == "Not connected":
        return _closed(exc, "asyncmy")
    return _numbered(exc, code, text, "asyncmy")


def mysqlclient(exc: BaseException) -> Failure | None:
    """mysqlclient: ``args`` is ``(code, text)``; its commit() is C and leaves no frame."""
    code, text = _pair(exc)
    if code == 2006 and not text:
        return None  # a connection that the app closed itself
    return _numbered(exc, code, text, "mysqlclient")


def connector(exc: BaseException) -> Failure | None:
    """MySQL Connector/Python, be it Python, C or asyncio: ``errno``, -1 where it has none.

    commit() and rollback() of the C one raise an exception of ``_mysql_connector``. The asyncio one
    lets OSErrors through while it connects.
    """
    code, text = _number(exc), _text(exc)
    if is_transport(exc):
        return _of_a_socket(exc, "mysql.connector", code)
    if code == 3024 and is_a(exc, *_TIMEOUTS):
        return _told(exc, "mysql.connector", code)
    if code == 2055 and "Cursor is not connected" in text:
        return None  # a connection that the app closed itself
    return _numbered(exc, code, text, "mysql.connector") or _worded(exc, text, "mysql.connector")


def mariadb(exc: BaseException) -> Failure | None:
    """MariaDB Connector/Python: ``errno``, None where it has none."""
    code, text = _number(exc), _text(exc)
    return _numbered(exc, code, text, "mariadb") or _worded(exc, text, "mariadb")


def _numbered(exc: BaseException, code: int | None, text: str, driver: str) -> Failure | None:
    known = CODES.get(code) if code is not None else None
    if known is None:
        return None
    if code == 1226 and not any(name in text for name in _CONNECTION_RESOURCES):
        return None
    if code in _ENDS and _is_oversized(exc):
        return None
    return _told(exc, driver, code, known.kind, known.phase)


def _worded(exc: BaseException, text: str, driver: str) -> Failure | None:
    """By its text, an exception that has no number."""
    if _number(exc) not in (None, -1):
        return None
    known = next((known for known in TEXTS if known.fragment in text), None)
    return known and _told(exc, driver, None, known.kind, known.phase)


def aiomysql(exc: BaseException) -> Failure | None:
    """aiomysql: what it lets through; the exceptions that it raises are PyMySQL's."""
    return _of_a_socket(exc, "aiomysql") if is_transport(exc) else None


def _of_a_socket(exc: BaseException, driver: str, code: int | None = None) -> Failure | None:
    phase = phase_of(exc)
    return _told(exc, driver, code, phase=phase) if is_of_a_socket(exc, phase) else None


def _closed(exc: BaseException, driver: str) -> Failure:
    """Used after it was closed, by an earlier failure as a rule: nothing is sent."""
    return Failure("disconnection", "execute", exc, 0, driver)


def _told(
    exc: BaseException,
    driver: str,
    code: int | None = None,
    kind: Kind = "disconnection",
    phase: Phase | None = None,
) -> Failure | None:
    """The failure, unless the driver caught this exception to raise another one, which tells."""
    phase = phase or phase_of(exc, answered=kind == "conflict")
    passed = frames_of(exc)
    if phase == "unknown" and passed and package_of(passed[0]) in PACKAGES:
        return None
    causes = (exc.__cause__, exc.__context__)
    if phase == "connect" and any(is_a(e, "SSLCertVerificationError") for e in causes if e):
        return None
    return Failure(kind, phase, exc, code, driver)


def _pair(exc: BaseException) -> tuple[int | None, str]:
    code, text = (*exc.args, "", "")[:2]
    text = text if isinstance(code, int) else code
    return code if isinstance(code, int) else None, text if isinstance(text, str) else ""


def _number(exc: BaseException) -> int | None:
    code = getattr(exc, "errno", None)
    return code if isinstance(code, int) else None


def _text(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # a subclass that did not call the driver's __init__()
        return ""


def _is_oversized(exc: BaseException) -> bool:
    """Whether a statement was longer than most servers take: that too ends in a lost connection."""
    for frame in frames_of(exc):
        package = PACKAGES.get(package_of(frame))
        name = package and package.statements.get(frame.f_code.co_name)
        statement = frame.f_locals.get(name) if name else None
        if isinstance(statement, (str, bytes)) and len(statement) > _LARGEST_PACKET:
            return True
    return False


def _connector_autocommits(owner: object) -> bool | None:
    """As the connection was told: its ``autocommit`` asks the server. A cursor leaves it to it."""
    return getattr(owner, "_autocommit", None)


_CONNECTOR: Final = Package(
    connector,
    phases={
        "connect": "connect",
        "reconnect": "connect",
        "commit": "commit",
        "execute": "execute",
        "executemany": "execute",
        "rollback": "execute",
        "cursor": "execute",
        "ping": "execute",
        "start_transaction": "execute",
        "reset_session": "execute",
    },
    statements={"execute": "operation", "cmd_query": "query", "cmd_stmt_execute": "data"},
    autocommits=_connector_autocommits,
)

_MARIADB: Final = Package(
    mariadb,
    phases={
        "__init__": "connect",
        "commit": "commit",
        "tpc_commit": "commit",
        "execute": "execute",
        "executemany": "execute",
        "rollback": "execute",
        "tpc_rollback": "execute",
    },
    statements={"execute": "statement", "executemany": "statement"},
)

PACKAGES: Final[dict[str, Package]] = {
    "pymysql": Package(
        pymysql,
        phases={
            "connect": "connect",
            "commit": "commit",
            "query": "execute",
            "rollback": "execute",
            "ping": "execute",
            "autocommit": "execute",
        },
        statements={"query": "sql", "autocommit": "value"},
    ),
    "aiomysql": Package(
        aiomysql,
        phases={
            "_connect": "connect",
            "commit": "commit",
            "query": "execute",
            "rollback": "execute",
            "ping": "execute",
            "ensure_closed": "execute",
            "autocommit": "execute",
        },
        statements={"query": "sql", "autocommit": "value"},
        waits=("_acquire",),
        greets=("_set_keep_alive", "_set_nodelay"),
    ),
    "asyncmy": Package(
        asyncmy,
        phases={
            "connect": "connect",
            "commit": "commit",
            "rollback": "execute",
            "ping": "execute",
        },
        waits=("_acquire",),
        greets=("_set_keep_alive", "_set_nodelay"),
    ),
    "MySQLdb": Package(
        mysqlclient,
        phases={
            "__init__": "connect",
            "_query": "execute",
            "query": "execute",
            "autocommit": "execute",
        },
        statements={"_query": "q", "query": "query", "autocommit": "on"},
    ),
    "mysql": _CONNECTOR,
    "_mysql_connector": _CONNECTOR,
    "mariadb": _MARIADB,
}
