"""What a watched engine tells the current attempt: failures, commits, an empty pool.

SQLAlchemy's events tell of a COMMIT before it is sent, and not that it was answered. So the
dialect's functions that send it, and statements, are wrapped, once for each dialect. What goes on
in the transaction of a pooled connection is kept in the connection's ``info``.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import Connection, Engine, RootTransaction, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine

from retrymw._context import current_attempt
from retrymw.adapters._statements import Transaction, look
from retrymw.adapters._undo import Wire
from retrymw.classify import classify
from retrymw.classify._frames import autocommits

__all__ = ["cut", "is_busy", "is_doubtful", "watch"]

_KEY: Final = "retrymw"
_COMMIT: Final = look(b"COMMIT")
_COMMIT_PREPARED: Final = look(b"COMMIT PREPARED 'it'")
_ROLLBACK: Final = look(b"ROLLBACK")
_DDL_IS_TRANSACTIONAL: Final = ("postgresql", "sqlite")

_making: Final = threading.RLock()
_watched: Final[weakref.WeakSet[Any]] = weakref.WeakSet()  # engines, and their class
_wrapped: Final[weakref.WeakSet[Any]] = weakref.WeakSet()  # engines and dialects
_failed: Final[weakref.WeakSet[RootTransaction]] = weakref.WeakSet()


def watch(engine: Engine | AsyncEngine | None = None) -> None:
    """Let an engine tell the current attempt of failures and commits; without one, every engine.

    For sessions and connections that are not a ``Database``'s: ``engine.begin()``, SQLModel,
    Flask-SQLAlchemy. To open and close them stays your business. Do it once, at start-up.

    Once a transaction has failed, its further statements raise the same exception until it is
    rolled back.
    """
    target: Any = Engine if engine is None else getattr(engine, "sync_engine", engine)
    if target not in _watched:
        for name, listener in _LISTENERS:
            event.listen(target, name, listener)
        _watched.add(target)
    if engine is not None:
        _wrap(target)


def is_busy(pooled: Any) -> bool:
    """Whether a thread waits for the answer to a statement on this connection of a pool."""
    return _KEY in pooled.info and pooled.info[_KEY].busy > 0


def is_doubtful(pooled: Any) -> bool:
    """Whether a statement was refused in this transaction: PostgreSQL would only seem to commit."""
    return _KEY in pooled.info and bool(pooled.info[_KEY].transaction.doubtful)


def cut(pooled: Any) -> None:
    """End what a thread waits for on this connection of a pool, where the driver has a socket."""
    if _KEY in pooled.info:
        pooled.info[_KEY].wire.cut()


class _Work:
    """What a DBAPI connection is at; whether what was sent last was to commit, and what was being
    handled then."""

    __slots__ = ("busy", "committing", "handling", "transaction", "wire")

    def __init__(self, dialect: Any, connection: Any = None) -> None:
        self.busy = 0
        self.committing = True
        self.handling: BaseException | None = None
        self.wire = Wire(connection)
        self.transaction = Transaction(ddl_commits=dialect.name not in _DDL_IS_TRANSACTIONAL)


# Events.


def _connected(connection: Connection) -> None:
    """A connection was opened, maybe the first one of its engine, or of its engine's options."""
    _wrap(connection.engine)


def _refuse(connection: Connection, *_: object) -> None:
    """Half a transaction never goes on by itself, whatever the app swallowed."""
    if _failed and connection.get_transaction() in _failed:
        attempt = current_attempt(None)
        if attempt is not None and not attempt.over and attempt.seen is not None:
            raise attempt.seen


def _refuse_commit(connection: Connection, *args: object) -> None:
    """When this raises, SQLAlchemy takes the transaction for ended, and its pool for reset."""
    try:
        _refuse(connection, *args)
    except BaseException:
        undone = False
        with suppress(Exception):  # a connection that can't be rolled back is thrown away
            connection.engine.dialect.do_rollback(connection.connection)
            undone = True
        if not undone and not connection.invalidated:
            connection.invalidate()
        raise


def _seen(context: ExceptionContext) -> None:
    """Something failed while the driver was called."""
    exc = context.sqlalchemy_exception or context.original_exception
    if context.is_pre_ping or isinstance(exc, PendingRollbackError):
        return  # the pool mends it by itself; the consequence of what was seen before
    connection = context.connection
    work = _work_of(connection)
    commits, handling = (True, None) if work is None else (work.committing, work.handling)
    attempt = current_attempt(None)
    if attempt is None:
        failure = classify(exc, handling=handling)
    else:
        failure = attempt.saw(exc, commits=commits, handling=handling)
    if failure is None:
        return
    if failure.kind == "disconnection" and connection is not None and not connection.closed:
        context.is_disconnect = True  # throw it away, where SQLAlchemy itself would not
    if attempt is not None:
        transaction = None if connection is None else connection.get_transaction()
        if transaction is not None:
            _failed.add(transaction)


def _work_of(connection: Connection | None) -> _Work | None:
    """What the connection was at, if that can be asked."""
    if connection is None or connection.closed or connection.invalidated:
        return None
    work: _Work | None = connection.connection.info.get(_KEY)
    return work


_LISTENERS: Final[tuple[tuple[str, Callable[..., None]], ...]] = (
    ("engine_connect", _connected),
    ("before_execute", _refuse),
    ("prepare_twophase", _refuse),
    ("commit", _refuse_commit),
    ("commit_twophase", _refuse_commit),
    ("handle_error", _seen),
)


# What talks to the driver.


def _wrap(engine: Any) -> None:
    if engine in _wrapped:
        return
    with _making:
        if engine not in _wrapped:
            engine.raw_connection = functools.partial(_connect, engine.raw_connection)
            _wrapped.add(engine)
        dialect = engine.dialect
        if dialect not in _wrapped:
            for name in ("do_execute", "do_execute_no_params", "do_executemany"):
                wrapped = functools.partial(_execute, dialect, getattr(dialect, name))
                setattr(dialect, name, wrapped)
            dialect.do_commit = functools.partial(_commit, dialect, dialect.do_commit)
            dialect.do_commit_twophase = functools.partial(
                _commit_twophase, dialect, dialect.do_commit_twophase
            )
            dialect.do_rollback = functools.partial(_rollback, dialect, dialect.do_rollback)
            _wrapped.add(dialect)


def _connect(connect: Callable[[], Any]) -> Any:
    try:
        return connect()
    except Exception as exc:  # there is no event for a dry pool, nor for asyncpg's OSErrors
        attempt = current_attempt(None)
        if attempt is not None:
            attempt.saw(exc)
        raise


def _execute(
    dialect: Any, send: Callable[..., None], cursor: Any, statement: str, *args: Any
) -> None:
    context = args[-1]
    if context is None:
        return send(cursor, statement, *args)
    _refuse(context.root_connection)  # exec_driver_sql() has no event before this
    pooled = context.root_connection.connection
    autocommit = _autocommits(dialect, context.root_connection, pooled)
    what = look(statement.encode(errors="replace"))
    with _sending(dialect, pooled, what, autocommit=autocommit, many=context.executemany):
        return send(cursor, statement, *args)


def _commit(dialect: Any, send: Callable[[Any], None], pooled: Any) -> None:
    with _sending(dialect, pooled, _COMMIT):
        send(pooled)


def _commit_twophase(
    dialect: Any, send: Callable[..., None], connection: Connection, *args: Any, **kwargs: Any
) -> None:
    with _sending(dialect, connection.connection, _COMMIT_PREPARED):
        send(connection, *args, **kwargs)


def _rollback(dialect: Any, send: Callable[[Any], None], pooled: Any) -> None:
    send(pooled)
    _work(dialect, pooled).transaction.answered(_ROLLBACK, autocommit=False)


@contextmanager
def _sending(
    dialect: Any,
    pooled: Any,
    what: tuple[int, ...],
    *,
    autocommit: bool = False,
    many: bool = False,
) -> Iterator[None]:
    work = _work(dialect, pooled)
    transaction = work.transaction
    commits = transaction.commits(what, autocommit=autocommit)
    attempt = current_attempt(None) if commits else None
    if attempt is not None:
        attempt.commit_sent()
    work.busy += 1
    work.committing, work.handling = commits, sys.exc_info()[1]
    try:
        yield
    except BaseException as exc:
        answered = not _is_lost(dialect, pooled, exc)
        if attempt is not None and answered:
            attempt.commit_answered(committed=many or transaction.refused(what))
        transaction.failed(what, answered=answered, autocommit=autocommit, many=many)
        raise
    finally:
        work.busy -= 1
    work.handling = None
    if attempt is not None:
        attempt.commit_answered(committed=True)
    transaction.answered(what, autocommit=autocommit)


def _work(dialect: Any, pooled: Any) -> _Work:
    try:
        work: _Work = pooled.info.get(_KEY) or pooled.info.setdefault(
            _KEY, _Work(dialect, pooled.dbapi_connection)
        )
    except NotImplementedError:  # the dialect's own look at the server, when it first connects
        work = _Work(dialect)
    return work


def _is_lost(dialect: Any, pooled: Any, exc: BaseException) -> bool:
    """Whether the answer to a statement may not have come; in doubt it has not."""
    if not isinstance(exc, Exception):
        return True
    failure = classify(exc)
    if failure is not None:
        return failure.kind == "disconnection"
    connection = pooled.dbapi_connection
    if connection is None or not isinstance(exc, dialect.loaded_dbapi.Error):
        return True  # None: the end of the attempt has taken it away
    return bool(dialect.is_disconnect(exc, connection, None))


def _autocommits(dialect: Any, connection: Connection, pooled: Any) -> bool:
    if connection._is_autocommit_isolation():
        return True
    if dialect.driver == "mysqlconnector":  # it would ask the server
        return False
    return autocommits(pooled.dbapi_connection) is not False
