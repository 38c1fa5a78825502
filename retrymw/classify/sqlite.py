"""SQLite: sqlite3, and aiosqlite, which raises its exceptions.

Result codes: sqlite.org, "Result and Error Codes". There is no connection to be lost; what a replay
cures is a lock that somebody else holds, in this process or in another one.
"""

from __future__ import annotations

from typing import Final

from retrymw._core.failure import Failure
from retrymw.classify._frames import Package, phase_of

__all__ = ["CODES", "PACKAGES", "TEXTS"]

CODES: Final[dict[int, str]] = {
    5: "SQLITE_BUSY",
    15: "SQLITE_PROTOCOL",
    261: "SQLITE_BUSY_RECOVERY",
    262: "SQLITE_LOCKED_SHAREDCACHE",
    517: "SQLITE_BUSY_SNAPSHOT",
    773: "SQLITE_BUSY_TIMEOUT",
}

# Before Python 3.11 there is no code, and so no telling the shared cache's lock from one that a
# connection holds against itself.
TEXTS: Final[dict[str, str]] = {
    "database is locked": "main.c sqlite3ErrStr, SQLITE_BUSY",
    "locking protocol": "main.c sqlite3ErrStr, SQLITE_PROTOCOL",
    "database table is locked": "main.c sqlite3ErrStr, SQLITE_LOCKED",
    "database schema is locked": "prepare.c sqlite3Prepare, SQLITE_LOCKED_SHAREDCACHE",
}

# SQLITE_BUSY as well, because of a statement of the same connection that is not over: vdbe.c
# OP_AutoCommit and OP_Savepoint, main.c sqlite3CreateFunc.
_OWN: Final = ("SQL statements in progress", "active statements")


def sqlite3(exc: BaseException) -> Failure | None:
    """sqlite3: ``sqlite_errorcode``, from Python 3.11 on."""
    code = getattr(exc, "sqlite_errorcode", None)
    text = str(exc)
    if code is None:
        known = any(text.startswith(start) for start in TEXTS)
    else:
        known = code in CODES and not any(own in text for own in _OWN)
    return (
        Failure("conflict", phase_of(exc, answered=True), exc, code, "sqlite3") if known else None
    )


PACKAGES: Final[dict[str, Package]] = {
    "sqlite3": Package(sqlite3),
    "aiosqlite": Package(
        lambda exc: None,
        phases={
            "_connect": "connect",
            "commit": "commit",
            "execute": "execute",
            "executemany": "execute",
            "executescript": "execute",
            "execute_insert": "execute",
            "execute_fetchall": "execute",
            "rollback": "execute",
        },
        statements={"execute": "sql"},
    ),
}
