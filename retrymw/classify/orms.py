"""peewee, Storm, Tortoise ORM and DBUtils: what they raise themselves, and what their frames tell.

What they wrap is found behind ``.orig`` and the cause or context. Their frames matter where the
driver beneath is C and has none: its commit() can't be told from anything else then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from retrymw._core.failure import Failure
from retrymw.classify._frames import REGISTRY, Package, frames_of, is_a, package_of, phase_of

__all__ = ["PACKAGES"]

# playhouse/pwasyncio.py _acquire_conn_async
_PEEWEE_DRY: Final = "Timed out acquiring connection from pool"
_PEEWEE_UNREACHABLE: Final = "Timed out connecting to database"

# A certificate, a socket file's mode, and asyncpg's command_timeout.
_NOT_LOST: Final = {"SSLCertVerificationError", "PermissionError", "TimeoutError"}

_STORM_LOST_EARLIER: Final = "Already disconnected"  # storm/database.py _ensure_connected


def peewee(exc: BaseException) -> Failure | None:
    """What peewee and its pools raise over no driver's exception; what they wrap is ``.orig``."""
    if is_a(exc, "MaxConnectionsExceeded"):
        return Failure("too-many-connections", "connect", exc, driver="peewee")
    if getattr(exc, "orig", None) is not None:
        return None
    text = str(exc)
    dry = text.startswith(_PEEWEE_DRY)
    if text.startswith(_PEEWEE_UNREACHABLE) or (dry and _was_connecting(exc)):
        return Failure("disconnection", "connect", exc, driver="peewee")
    return Failure("too-many-connections", "connect", exc, driver="peewee") if dry else None


def _was_connecting(exc: BaseException) -> bool:
    """Whether the timeout that it stands for, or the cancellation before, hit a connect."""
    link = exc.__context__
    for _ in range(3):
        if link is None:
            return False
        if phase_of(link) == "connect":
            return True
        link = link.__cause__ or link.__context__
    return False


def playhouse(exc: BaseException) -> Failure | None:
    """peewee's extensions: the pools, and asyncio, where frames are lost between greenlets.

    An OSError that comes straight out of one of peewee's own awaits is of the driver's connect.
    """
    if not isinstance(exc, OSError):
        return peewee(exc)
    caller, callee = (["", *_functions(exc)])[-2:]
    names = {base.__name__ for base in type(exc).__mro__}
    if callee != "playhouse.await_" or not caller.startswith("playhouse.") or names & _NOT_LOST:
        return None
    return Failure("disconnection", phase_of(exc), exc, exc.errno, "playhouse")


def storm(exc: BaseException) -> Failure | None:
    """The driver's failure, with the phase that only the frames of Storm's exception tell.

    Storm's is of a class of its own and of the driver's, with the driver's exception as its cause,
    or a ``DisconnectionError`` that has replaced such a one. Another one comes of a connection that
    was lost earlier, be it in a COMMIT.
    """
    if is_a(exc, "DisconnectionError") and str(exc) == _STORM_LOST_EARLIER:
        return Failure("disconnection", phase_of(exc), exc, driver="storm")
    replaced = exc.__cause__ or exc.__context__
    if replaced is not None and type(replaced).__module__.startswith("storm."):
        replaced = replaced.__cause__
    failure = _of_driver(replaced)
    if failure is not None and failure.phase == "unknown":
        return replace(failure, phase=phase_of(exc))
    return failure


def _of_driver(exc: BaseException | None) -> Failure | None:
    """What the driver's own classifier makes of its exception."""
    for base in type(exc).__mro__:
        name = base.__module__.partition(".")[0]
        if exc is not None and name in REGISTRY:
            return REGISTRY[name].classify(exc) if name not in PACKAGES else None
    return None


def _functions(exc: BaseException) -> list[str]:
    """What it passed through, the innermost last: ``package.function``."""
    return [f"{package_of(frame)}.{frame.f_code.co_name}" for frame in frames_of(exc)]


def dbutils(exc: BaseException) -> Failure | None:
    """DBUtils' pool without a connection left; the driver's exceptions pass it unchanged."""
    if is_a(exc, "TooManyConnectionsError"):
        return Failure("too-many-connections", "connect", exc, driver="dbutils")
    return None


def _tortoise_autocommits(client: Any) -> bool:
    """Unless it is a transaction's client, and the transaction not over."""
    begun = is_a(client, "TransactionalDBClient")
    return not begun or getattr(client, "_finalized", True) is not False


PACKAGES: Final[dict[str, Package]] = {
    "peewee": Package(
        peewee,
        phases={
            "_connect": "connect",
            "begin": "execute",
            "commit": "commit",
            "rollback": "execute",
        },
    ),
    "playhouse": Package(
        playhouse,
        phases={
            "connect": "connect",
            "__enter__": "execute",
            "commit": "commit",
            "execute_sql": "execute",
            "rollback": "execute",
        },
        statements={"execute_sql": "sql"},
        autocommits=lambda database: True,
    ),
    "storm": Package(
        storm,
        phases={
            "raw_connect": "connect",
            "commit": "commit",
            "raw_execute": "execute",
            "rollback": "execute",
        },
        statements={"raw_execute": "statement"},
    ),
    "tortoise": Package(
        lambda exc: None,  # what it wraps is its context
        phases={
            "create_connection": "connect",
            "begin": "execute",
            "commit": "commit",
            "execute_insert": "execute",
            "execute_many": "execute",
            "execute_query": "execute",
            "execute_query_dict": "execute",
            "execute_script": "execute",
            "release_savepoint": "execute",
            "rollback": "execute",
            "savepoint": "execute",
            "savepoint_rollback": "execute",
        },
        statements={
            "execute_insert": "query",
            "execute_many": "query",
            "execute_query": "query",
            "execute_query_dict": "query",
            "execute_script": "query",
        },
        autocommits=_tortoise_autocommits,
    ),
    "dbutils": Package(
        dbutils,
        phases={
            "_create": "connect",
            "tough_method": "execute",
            "commit": "commit",
            "rollback": "execute",
        },
    ),
}
