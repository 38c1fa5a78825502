"""A request-scoped SQLAlchemy session, sync or async; and watched engines."""

from __future__ import annotations

import functools
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any, Final, TypeVar, cast

from sqlalchemy import Connection, Engine, event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from retrymw._context import Attempt, current_attempt
from retrymw.adapters._loans import Commit, check_commit, loan_of
from retrymw.adapters._sqlalchemy_watch import cut, is_busy, is_doubtful, watch
from retrymw.adapters._undo import cut_after

__all__ = ["AsyncDatabase", "Database", "watch"]

S = TypeVar("S")

_CONNECTIONS: Final = "retrymw"


class Database:
    """An engine whose sessions belong to attempts.

    Give it to the middleware (``databases=[database]``) and use :meth:`session` everywhere. The
    session is opened on first use in an attempt and is the same one for the whole attempt. A failed
    attempt's is rolled back and closed before any wait (G1, G8), a successful one's after the
    response. Commit is yours to call; what you did not commit is rolled back. The engine is
    watched, see :func:`watch`.

    Args:
        engine: as from ``create_engine``.
        session: what makes the sessions, if they are to be other than ``sessionmaker(engine)``.
        commit: ``"on-success"`` to have the middleware commit what an attempt leaves, before the
            first byte of a response below 400. None leaves it to you.

    Raises:
        TypeError, ValueError: an argument is none of these.
    """

    def __init__(
        self, engine: Engine, *, session: sessionmaker[Any] | None = None, commit: Commit = None
    ) -> None:
        self.commits_on_success: bool = check_commit(commit)
        _check_type("Database", "an Engine", engine, Engine)
        self._engine = engine
        self._make = sessionmaker(engine) if session is None else session
        _check_type("Database", "a sessionmaker", self._make, sessionmaker)
        _check_bound(self._make, engine)
        watch(engine)

    def __repr__(self) -> str:
        return f"<Database {self._engine.url!r}>"

    @contextmanager
    def session(self) -> Iterator[Session]:
        """The attempt's session; outside a request, one of its own, closed at the end.

        Raises:
            RuntimeError: the attempt is over, or its middleware was not given this database.
        """
        attempt = current_attempt(None)
        if attempt is None:
            with self._make() as session:
                yield session
        else:
            yield _of_attempt(attempt, self, self._make)

    def commit(self, attempt: Attempt) -> None:
        """Commit the attempt's transaction, if it has begun one."""
        session = loan_of(self, attempt)
        if session is not None:
            _commit(session)

    def rollback(self, attempt: Attempt) -> None:
        """Undo the attempt's transaction, within two seconds."""
        session = loan_of(self, attempt)
        if session is not None:
            _roll_back(session, hurry=True)

    def release(self, attempt: Attempt) -> None:
        """Close the attempt's session, within two seconds."""
        session = (attempt.resources or {}).pop(self, None)
        if session is not None:
            _close(session, hurry=True)

    def ping(self) -> None:
        """Do a ``SELECT 1``; raises what SQLAlchemy raises."""
        with self._engine.connect() as connection:
            connection.scalar(select(1))


class AsyncDatabase:
    """:class:`Database` for an async engine: ``async with database.session() as session``.

    Args:
        engine: as from ``create_async_engine``.
        session: what makes the sessions, if they are to be other than
            ``async_sessionmaker(engine)``.
        commit: as for :class:`Database`.

    Raises:
        TypeError, ValueError: an argument is none of these.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        session: async_sessionmaker[Any] | None = None,
        commit: Commit = None,
    ) -> None:
        self.commits_on_success: bool = check_commit(commit)
        _check_type("AsyncDatabase", "an AsyncEngine", engine, AsyncEngine)
        self._engine = engine
        self._make = async_sessionmaker(engine) if session is None else session
        _check_type("AsyncDatabase", "an async_sessionmaker", self._make, async_sessionmaker)
        _check_bound(self._make, engine)
        watch(engine)

    def __repr__(self) -> str:
        return f"<AsyncDatabase {self._engine.url!r}>"

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """The attempt's session; outside a request, one of its own, closed at the end.

        Raises:
            RuntimeError: the attempt is over, or its middleware was not given this database.
        """
        attempt = current_attempt(None)
        if attempt is None:
            async with self._make() as session:
                yield session
        else:
            yield _of_attempt(attempt, self, self._make)

    async def commit(self, attempt: Attempt) -> None:
        """Commit the attempt's transaction, if it has begun one."""
        session = loan_of(self, attempt)
        if session is not None:
            await session.run_sync(_commit)

    async def rollback(self, attempt: Attempt) -> None:
        """Undo the attempt's transaction; the middleware gives up after five seconds."""
        session = loan_of(self, attempt)
        if session is not None:
            await session.run_sync(_roll_back)

    async def release(self, attempt: Attempt) -> None:
        """Close the attempt's session; the middleware gives up after five seconds."""
        session = (attempt.resources or {}).pop(self, None)
        if session is not None:
            await session.run_sync(_close)

    async def ping(self) -> None:
        """Do a ``SELECT 1``; raises what SQLAlchemy raises."""
        async with self._engine.connect() as connection:
            await connection.scalar(select(1))


def _check_type(name: str, allowed: str, value: object, cls: type) -> None:
    if not isinstance(value, cls):
        raise TypeError(f"{name} was given {value!r}; allowed: {allowed}")


def _of_attempt(attempt: Attempt, database: object, make: Callable[[], S]) -> S:
    resources = attempt.resource(database)
    if database not in resources:
        session = make()
        sync_session = getattr(session, "sync_session", session)
        event.listen(sync_session, "after_begin", _note)
        event.listen(sync_session, "after_transaction_create", functools.partial(_check, attempt))
        resources.setdefault(database, session)  # another thread may have been faster
    return cast("S", resources[database])


def _check_bound(make: Any, engine: Engine | AsyncEngine) -> None:
    """What another engine does would not be seen."""
    bind = make.kw.get("bind")
    if getattr(bind, "pool", None) is not engine.pool:
        raise TypeError(
            f"session is bound to {bind!r}; allowed: a sessionmaker of the same engine, as in "
            "Database(engine, session=sessionmaker(engine))"
        )


def _check(attempt: Attempt, session: Session, _: object) -> None:
    """A task or thread that outlives its attempt goes on with nothing."""
    if attempt.over:
        raise RuntimeError(f"{attempt!r} is over, and its session with it; open one of its own")


def _note(session: Session, _: object, connection: Connection) -> None:
    session.info.setdefault(_CONNECTIONS, weakref.WeakSet()).add(connection)


def _commit(session: Session) -> None:
    if session.in_transaction():
        for used in _connections(session):
            if is_doubtful(used.connection):
                used.exec_driver_sql("SELECT 1")  # raises, if nothing would be committed
        session.commit()


def _roll_back(session: Session, *, hurry: bool = False) -> None:
    _end(session, session.rollback, hurry=hurry)


def _close(session: Session, *, hurry: bool = False) -> None:
    _end(session, session.close, hurry=hurry)


def _connections(session: Session) -> list[Connection]:
    """Those that the session has now."""
    return [
        connection
        for connection in session.info.get(_CONNECTIONS, ())
        if not connection.closed and not connection.invalidated
    ]


def _end(session: Session, finish: Callable[[], None], *, hurry: bool) -> None:
    """Roll back or close; in a hurry, within two seconds.

    What can't be rolled back, or is still used by a thread or task, goes to nobody else.
    """
    connections = _connections(session)
    pooled = [connection.connection for connection in connections]
    if any(map(is_busy, pooled)):
        for each in pooled:
            cut(each)
        session.invalidate()
        return
    with ExitStack() as bounds:
        if hurry:
            for each in pooled:
                bounds.enter_context(cut_after(each.dbapi_connection))
        try:
            finish()
        except Exception:
            for connection in connections:
                connection.invalidate()
            raise
