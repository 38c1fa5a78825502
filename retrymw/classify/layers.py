"""SQLAlchemy and Django: what they raise themselves, and what only they know of a lost statement.

What they wrap is found behind ``.orig`` and ``__cause__``, and is the drivers' business. But where
a driver is C, only the layer's frames tell a COMMIT from a statement.
"""

from __future__ import annotations

from typing import Any, Final

from retrymw._core.failure import Failure
from retrymw.classify._frames import Package, autocommits, frames_of

__all__ = ["PACKAGES"]


def sqlalchemy(exc: BaseException) -> Failure | None:
    """What SQLAlchemy raises over no driver's exception.

    ``TimeoutError`` is the pool's: it had no connection left. ``PendingRollbackError`` comes of an
    earlier failure that the app took no notice of: of a lost connection, be it in a COMMIT, if it
    was raised where that is to be replaced. ``ResourceClosedError`` in the midst of a connect is
    all that is left of an engine's first connection that was lost while the server was looked over.
    """
    name, module = type(exc).__name__, type(exc).__module__
    if module != "sqlalchemy.exc":
        return None
    if name == "TimeoutError":
        return Failure("too-many-connections", "connect", exc, driver="sqlalchemy")
    if name not in ("PendingRollbackError", "ResourceClosedError"):
        return None
    functions = {frame.f_code.co_name for frame in frames_of(exc)}
    if name == "PendingRollbackError" and "_revalidate_connection" in functions:
        return Failure("disconnection", "unknown", exc, "8s2b", "sqlalchemy")
    if name == "ResourceClosedError" and "first_connect" in functions:
        return Failure("disconnection", "connect", exc, driver="sqlalchemy")
    return None


def sqlalchemy_autocommits(owner: Any) -> bool | None:
    """On, if SQLAlchemy's Connection was told so; off it may be by the driver's own arguments."""
    try:
        return True if owner._is_autocommit_isolation() else None
    except Exception:  # it is not public
        return None


def django_autocommits(cursor: object) -> bool | None:
    """By the driver's connection, except SQLite's: that is not lost, and not to be asked closed."""
    vendor = getattr(getattr(cursor, "db", None), "vendor", None)
    return False if vendor == "sqlite" else autocommits(cursor)


PACKAGES: Final[dict[str, Package]] = {
    "sqlalchemy": Package(
        sqlalchemy,
        phases={
            "__connect": "connect",
            "do_commit": "commit",
            "do_commit_twophase": "commit",
            "do_execute": "execute",
            "do_executemany": "execute",
            "do_execute_no_params": "execute",
            "do_rollback": "execute",
            "do_ping": "execute",
        },
        statements={
            "_exec_single_context": "str_statement",
            "_exec_insertmany_context": "sub_stmt",
            "_cursor_execute": "statement",
            "do_execute": "statement",
        },
        autocommits=sqlalchemy_autocommits,
    ),
    "django": Package(
        lambda exc: None,
        phases={
            "get_new_connection": "connect",
            "init_connection_state": "connect",
            "_commit": "commit",
            "_rollback": "execute",
            "_execute": "execute",
            "_executemany": "execute",
            "_set_autocommit": "execute",
        },
        statements={
            "_execute": "sql",
            "_executemany": "sql",
            "_set_autocommit": "autocommit",
        },
        autocommits=django_autocommits,
    ),
}
