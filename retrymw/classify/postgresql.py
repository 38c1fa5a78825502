"""PostgreSQL, and PgBouncer before it: psycopg 3 and its pool, psycopg2, asyncpg and pg8000.

SQLSTATEs: PostgreSQL documentation, appendix A. With psycopg and psycopg2 a failed connect carries
none, and neither does a connection that is simply gone; PgBouncer has one for everything. There the
text has to tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from retrymw._core.failure import Failure
from retrymw.classify._frames import (
    Package,
    autocommits,
    frames_of,
    is_a,
    is_of_a_socket,
    package_of,
    phase_of,
)
from retrymw.classify._postgresql_texts import SQLSTATES, meaning_of
from retrymw.classify.sql import commits, reads
from retrymw.exceptions import Kind, Phase

__all__ = ["PACKAGES"]


def psycopg(exc: BaseException) -> Failure | None:
    """psycopg 3: ``sqlstate`` where the server gave one."""
    broken = any(map(_is_broken, _local(exc, "psycopg", "self")))
    code = getattr(exc, "sqlstate", None)
    phase = phase_of(exc, answered=_is_conflict(code))
    return _failure(exc, code, str(exc), phase, "psycopg", broken=broken)


def psycopg_pool(exc: BaseException) -> Failure | None:
    """psycopg's pool: a timeout is the server's doing where the pool keeps trying to connect."""
    if is_a(exc, "TooManyRequests"):
        return Failure("too-many-connections", "connect", exc, driver="psycopg_pool")
    if not is_a(exc, "PoolTimeout"):
        return None
    starting = "pool initialization incomplete" in str(exc)  # psycopg_pool/pool.py wait
    connecting = starting or any(map(_is_connecting, _local(exc, "psycopg_pool", "self")))
    kind: Kind = "disconnection" if connecting else "too-many-connections"
    return Failure(kind, "connect", exc, driver="psycopg_pool")


def psycopg2(exc: BaseException) -> Failure | None:
    """psycopg2: ``pgcode``; the driver is C, so the phase is what ``cursor`` and connect() tell."""
    if is_a(exc, "PoolError"):
        dry = str(exc) == "connection pool exhausted"  # psycopg2/pool.py; the others are bugs
        return Failure("too-many-connections", "connect", exc, driver="psycopg2") if dry else None
    code = getattr(exc, "pgcode", None)
    answered = _is_conflict(code)
    cursor = getattr(exc, "cursor", None)
    # In autocommit every failure has a cursor, which knows; one without is of the driver's BEGIN.
    phase = phase_of(exc, answered=True)
    if phase in ("unknown", "execute") and cursor is not None:
        statement = getattr(cursor, "query", None)
        in_doubt = not answered and autocommits(cursor) is not False
        own_commit = in_doubt and not reads(statement)
        phase = "commit" if own_commit or commits(statement) else "execute"
    connection = getattr(cursor, "connection", None)
    broken = getattr(connection, "closed", 0) == 2
    # Of a server that speaks and hangs up, the exception tells only the latter.
    last_words = getattr(getattr(connection, "info", None), "error_message", None) if broken else ""
    message = f"{exc}\n{last_words}"
    return _failure(exc, code, message, phase, "psycopg2", broken=broken)


def asyncpg(exc: BaseException) -> Failure | None:
    """asyncpg: ``sqlstate``, made up (08003) for what was lost, with the server's as the cause."""
    if is_a(exc, "TimeoutError"):
        return _asyncpg_timeout(exc)
    code = getattr(exc, "sqlstate", None)
    answered = _is_conflict(code)
    phase = phase_of(exc, answered=answered)
    if isinstance(exc, OSError):
        return _of_a_socket(exc, phase, "asyncpg")
    if phase == "unknown":
        phase = _asyncpg_prepared(exc, answered=answered)
    if code is None:
        if is_a(exc, "InterfaceError") and _asyncpg_closed(exc, _first(exc)):
            return Failure("disconnection", "execute", exc, driver="asyncpg")
        dying = is_a(exc, "InternalClientError") and _ASYNCPG_DYING in _first(exc)
        return Failure("disconnection", phase, exc, driver="asyncpg") if dying else None
    if exc.__traceback__ is None:  # never raised itself: the cause of one that was
        return None
    last_words = exc.__cause__ if code == "08003" else None
    said: Any = exc if getattr(last_words, "sqlstate", None) is None else last_words
    return _failure(exc, said.sqlstate, _first(said), phase, "asyncpg")


def pg8000(exc: BaseException) -> Failure | None:
    """pg8000: ``args`` is a dictionary of what the server said; InterfaceErrors and OSErrors."""
    said = _fields(exc)
    phase = phase_of(exc, answered=said is not None)
    if isinstance(exc, OSError):  # in an unknown phase it is the cause of an InterfaceError
        return _of_a_socket(exc, phase, "pg8000") if phase != "unknown" else None
    lost = said is None and str(exc).startswith(_PG8000_LOST)
    if lost:  # what the server said before it closed the connection
        contexts = _local(exc, "pg8000", "context")
        errors = (_fields(getattr(context, "error", None)) or {} for context in contexts)
        said = next((error for error in errors if error.get("V", error.get("S")) in _FATAL), None)
    if said is not None:
        return _failure(exc, said.get("C"), said.get("M", ""), phase, "pg8000")
    return Failure("disconnection", phase, exc, driver="pg8000") if lost else None


def _of_a_socket(exc: OSError, phase: Phase, driver: str) -> Failure | None:
    if is_of_a_socket(exc, phase) and _REFUSES_TLS not in str(exc):
        return Failure("disconnection", phase, exc, exc.errno, driver)
    return None


def _failure(
    exc: BaseException,
    code: str | None,
    message: str,
    phase: Phase,
    driver: str,
    *,
    broken: bool = False,
) -> Failure | None:
    if code is None and not is_a(exc, "OperationalError", "InterfaceError"):
        return None  # a ProgrammingError's text proves nothing
    if code is None or code == _PROTOCOL_VIOLATION:
        meaning = meaning_of(message, connecting=phase == "connect", broken=broken)
        return meaning and Failure(meaning.kind, meaning.phase or phase, exc, code, driver)
    state = SQLSTATES.get(code)
    if state is None:
        return None
    return Failure(state.kind, state.phase or phase, exc, code, driver)


def _is_conflict(code: str | None) -> bool:
    """Whether the server answered that it undid the transaction."""
    state = SQLSTATES.get(code or "")
    return state is not None and state.kind == "conflict"


def _asyncpg_timeout(exc: BaseException) -> Failure | None:
    """Of a connect or of an empty pool; None if of a statement, whose ``command_timeout`` it is.

    The cause is the cancellation of what was waited for.
    """
    passed = {name for e in (exc, exc.__cause__ or exc) for name, _ in _frames(e, "asyncpg")}
    if "connect" in passed:
        return Failure("disconnection", "connect", exc, driver="asyncpg")
    if "_acquire" in passed:
        return Failure("too-many-connections", "connect", exc, driver="asyncpg")
    return None


def _asyncpg_prepared(exc: BaseException, *, answered: bool) -> Phase:
    """The phase of a prepared statement or cursor; its methods are not given the SQL."""
    for owner in _local(exc, "asyncpg", "self"):
        statement = getattr(owner, "_query", None)
        if statement is not None:
            own_commit = not answered and _asyncpg_autocommits(owner) and not reads(statement)
            return "commit" if own_commit or commits(statement) else "execute"
    return "unknown"


def _asyncpg_autocommits(owner: object) -> bool:
    """Unless there is a transaction: asyncpg begins none by itself."""
    connection: Any = getattr(owner, "_connection", owner)
    try:
        return connection._top_xact is None and not connection._protocol.is_in_transaction()
    except AttributeError:  # a pool, or a connection that has been thrown away
        return True


def _asyncpg_closed(exc: BaseException, text: str) -> bool:
    """Whether the connection is gone; a pool takes such a one back, and throws it away."""
    holders = (getattr(proxy, "_holder", None) for proxy in _local(exc, "asyncpg", "self"))
    taken = any(getattr(holder, "_con", holder) is None for holder in holders if holder)
    return "connection is closed" in text or (taken and "released back to the pool" in text)


def _pg8000_autocommits(connection: object) -> bool:
    """Unless there is a transaction: it sends the BEGIN itself, as a statement."""
    return getattr(connection, "_transaction_status", None) not in (b"T", b"E")


def _fields(exc: object) -> dict[str, str] | None:
    """What the server said, by the letters of the protocol, as pg8000 has it."""
    args = getattr(exc, "args", ())
    return args[0] if args and isinstance(args[0], dict) else None


def _first(exc: BaseException) -> str:
    """The text of an exception; str() of asyncpg's fails on one without."""
    return str(exc.args[0]) if exc.args else ""


def _is_broken(owner: object) -> bool:
    """Whether psycopg counts this connection, or that of this cursor, as lost."""
    try:
        return getattr(getattr(owner, "connection", owner), "broken", False) is True
    except Exception:
        return False


def _is_connecting(pool: object) -> bool:
    """Whether psycopg's pool has a connect under way, or one that failed, or has given up one."""
    growing = getattr(pool, "_growing", False) is True
    size, most = getattr(pool, "_nconns", 0), getattr(pool, "_max_size", 0)
    if size < most:
        return True
    tasks = list(getattr(getattr(pool, "_sched", None), "_queue", ()))
    owners = (getattr(getattr(task, "action", None), "__self__", None) for task in tasks)
    return growing or any(getattr(owner, "attempt", None) is not None for owner in owners)


def _frames(exc: BaseException, package: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    """The functions of a package that the exception passed through, and their variables."""
    for frame in frames_of(exc):
        if package_of(frame) == package:
            yield frame.f_code.co_name, frame.f_locals


def _local(exc: BaseException, package: str, name: str) -> Iterator[object]:
    return (variables[name] for _, variables in _frames(exc, package) if name in variables)


_PROTOCOL_VIOLATION: Final = "08P01"  # what PgBouncer sends for everything
_FATAL: Final = ("FATAL", "PANIC")
# core.py: _read, _write and _flush; _make_socket.
_PG8000_LOST: Final = ("network error", "communication error", "Can't create a connection to host")

# Its last words are in, the end of the stream is not: coreproto.pyx PROTOCOL_ERROR_CONSUME.
_ASYNCPG_DYING: Final = "another operation (2) is in progress"
_REFUSES_TLS: Final = "rejected SSL upgrade"  # asyncpg connect_utils.py TLSUpgradeProto

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
    "psycopg_pool": Package(psycopg_pool),
    "psycopg2": Package(psycopg2, phases={"connect": "connect"}),
    "asyncpg": Package(
        asyncpg,
        phases={
            "_connect_addr": "connect",
            "execute": "execute",
            "_execute": "execute",
            "_executemany": "execute",
            "_prepare": "execute",
            "_copy_in": "execute",
            "_copy_out": "execute",
        },
        statements={
            "execute": "query",
            "_execute": "query",
            "_executemany": "query",
            "_copy_in": "copy_stmt",
        },
        autocommits=_asyncpg_autocommits,
        waits=("_acquire_impl",),
    ),
    "pg8000": Package(
        pg8000,
        phases={
            "__init__": "connect",
            "execute": "execute",
            "execute_simple": "execute",
            "execute_unnamed": "execute",
            "execute_named": "execute",
            "prepare_statement": "execute",
            "close_prepared_statement": "execute",
        },
        statements={
            "execute_simple": "statement",
            "execute_unnamed": "statement",
            "execute_named": "statement",
        },
        autocommits=_pg8000_autocommits,
    ),
}
