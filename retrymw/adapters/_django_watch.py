"""One of Django's connections, watched: what it tells its attempt, and how it is undone.

Django has no hooks around connects, commits and rollbacks, and those around statements would have
the app's inside them. So the methods of a ``DatabaseWrapper`` that send something are replaced, on
the object. Outside of attempts they do what they always did.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any, Final, Protocol

from django.db import Error  # type: ignore[import-untyped]  # ships no types
from django.db.utils import DatabaseErrorWrapper  # type: ignore[import-untyped]

from retrymw._context import Attempt, current_attempt
from retrymw.adapters._tracker import Tracker
from retrymw.adapters._undo import Wire, cut_after

__all__ = ["Owner", "Watch"]

_HURRY_SECONDS: Final = 1.0  # for a thread whose connection was cut


class Owner(Protocol):
    """What a watch needs to know of the database that it is of.

    Attributes:
        drained_at: when its pool was emptied last, by the monotonic clock.
    """

    drained_at: float


class Watch:
    """Watches one ``DatabaseWrapper``, which is one thread's.

    Args:
        owner: what an attempt knows the connection by.
        wrapper: the ``DatabaseWrapper``.
    """

    def __init__(self, owner: Owner, wrapper: Any) -> None:
        self._owner = owner
        self._wrapper = wrapper
        self._turn = threading.RLock()  # is held while something is sent
        self._quiet = False  # while Django opens or closes the connection
        self._given_up = False  # it was cut while its thread waited for an answer
        self._is_of_a_test = False
        self._connected_at = 0.0
        self._wire = Wire(wrapper.connection)
        self._begin()

        self._switch = wrapper.set_autocommit
        wrapper.set_autocommit = self._set_autocommit
        self._prepare = wrapper._prepare_cursor
        wrapper._prepare_cursor = self._prepare_cursor
        wrapper.connect = functools.partial(self._connect, wrapper.connect)
        wrapper._commit = functools.partial(self._commit, wrapper._commit)
        wrapper._rollback = functools.partial(self._rollback, wrapper._rollback)
        wrapper._set_autocommit = functools.partial(self._send_autocommit, wrapper._set_autocommit)
        wrapper.wrap_database_errors = _Errors(wrapper, self)

    def _begin(self) -> None:
        """A tracker for a new connection."""
        wrapper = self._wrapper
        self._tracker = Tracker(
            (Error, wrapper.Database.Error), ddl_commits=not wrapper.features.can_rollback_ddl
        )

    # What Django does.

    def _use(self) -> Attempt | None:
        """From here on the connection is the current attempt's, if there is one; returns it.

        Raises:
            RuntimeError: the attempt is over, or its middleware does not know the database.
        """
        attempt, tracker = current_attempt(None), self._tracker
        if attempt is not tracker.attempt:
            if attempt is not None:
                used = attempt.resource(self._owner).setdefault(self._owner, [])
                if self not in used:
                    used.append(self)
                    self._is_of_a_test = self._wrapper.in_atomic_block
            tracker.lend(attempt, self._owner)
        return attempt

    @contextmanager
    def sending(self, statement: bytes, *, many: bool = False) -> Iterator[None]:
        """Around what sends a statement and reads its answer."""
        with self._turn:
            if self._quiet:
                yield
                return
            self._drop_if_given_up()
            self._use()
            tracker, autocommit = self._tracker, self._wrapper.autocommit
            try:
                with tracker.sending(statement, autocommit=autocommit, many=many):
                    yield
            finally:
                self._drop_if_given_up()

    @property
    def is_sending(self) -> bool:
        """Whether what goes wrong now is told by another one's ``sending``."""
        return self._quiet or self._tracker.busy > 0

    def _connect(self, connect: Callable[[], None]) -> None:
        with self._turn:
            attempt = self._use()
            self._begin()
            self._connected_at = monotonic()
            try:
                with self._quietly():
                    connect()
            except Exception as exc:
                if attempt is not None:
                    # It sends SET autocommit=1, over nothing.
                    attempt.saw(exc, commits=False, database=self._owner)
                raise
            self._wire = Wire(self._wrapper.connection)
            self._drop_if_given_up()
            self._use()

    def _prepare_cursor(self, cursor: Any) -> Any:
        prepared = self._prepare(cursor)
        if not self._quiet and current_attempt(None) is not None:
            for name, many in (("_execute", False), ("_executemany", True)):
                send = functools.partial(self._execute, getattr(prepared, name), many)
                setattr(prepared, name, send)
            prepared.callproc = functools.partial(self._call, prepared.callproc)
        return prepared

    def _execute(self, send: Callable[..., Any], many: bool, sql: Any, *args: Any) -> Any:
        with self.sending(self._text(sql), many=many):
            return send(sql, *args)

    def _call(self, send: Callable[..., Any], name: Any, *args: Any, **kwargs: Any) -> Any:
        ddl_is_transactional = self._wrapper.features.can_rollback_ddl
        with self.sending(b"SELECT * FROM procedure()" if ddl_is_transactional else b"CALL x()"):
            return send(name, *args, **kwargs)

    def _text(self, sql: Any) -> bytes:
        if not isinstance(sql, (str, bytes)) and hasattr(sql, "as_string"):
            sql = sql.as_string(self._wrapper.connection)  # one that psycopg puts together
        return sql if isinstance(sql, bytes) else str(sql).encode(errors="replace")

    def _commit(self, commit: Callable[[], None]) -> None:
        with self.sending(b"" if self._wrapper.connection is None else b"COMMIT"):
            commit()

    def _rollback(self, rollback: Callable[[], None]) -> None:
        if self._tracker.lost:  # that this fails as well is nothing new
            rollback()
        else:
            with self.sending(b"ROLLBACK"):
                rollback()

    def _send_autocommit(self, send: Callable[[bool], None], autocommit: bool) -> None:
        with self.sending(b"SET autocommit=%d" % bool(autocommit)):
            send(autocommit)

    def _set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        """As Django's; but at the end of atomic() a lost connection is not opened anew."""
        wrapper = self._wrapper
        if (
            wrapper.connection is None
            and autocommit == wrapper.settings_dict["AUTOCOMMIT"]
            and not wrapper.in_atomic_block
            and current_attempt(None) is not None
        ):
            return
        self._switch(autocommit, *args, **kwargs)

    # What the middleware does.

    def roll_back(self) -> None:
        """Undo what was not committed, and close; from any thread, within four seconds."""
        self._end(lambda: True)

    def release(self) -> None:
        """Leave the connection to Django, unless it is in a transaction or was lost."""
        wrapper = self._wrapper
        self._end(lambda: self._tracker.lost or wrapper.in_atomic_block or not wrapper.autocommit)

    def _end(self, has_to_be_closed: Callable[[], bool]) -> None:
        if not self._turn.acquire(blocking=False):
            self._given_up = True
            self._wire.cut()
            if not self._turn.acquire(timeout=_HURRY_SECONDS):
                return  # its thread will close it
        try:
            self._drop_if_given_up()
            if not self._is_of_a_test and has_to_be_closed():
                self._close()
        finally:
            self._tracker.lend(None)
            self._turn.release()

    def _drop_if_given_up(self) -> None:
        if self._given_up and not self._tracker.busy:
            self._given_up = False
            self._tracker.lost = True
            self._close()

    def _close(self) -> None:
        """Roll back and close, and have Django know that it is in no transaction."""
        wrapper, lost = self._wrapper, self._tracker.lost
        connection = wrapper.connection
        closed, wrapper.closed_in_transaction = wrapper.closed_in_transaction, False
        wrapper.in_atomic_block = wrapper.needs_rollback = False
        wrapper.savepoint_ids, wrapper.atomic_blocks, wrapper.run_on_commit = [], [], []
        if closed:
            wrapper.connection = None
        if lost:
            self._drain()
        if wrapper.connection is None:
            return
        wrapper.inc_thread_sharing()
        try:
            with self._quietly(), cut_after(connection):
                try:
                    if not (lost or wrapper.autocommit):
                        connection.rollback()
                finally:
                    wrapper.close()
        finally:
            wrapper.dec_thread_sharing()

    def _drain(self) -> None:
        """Empty the pool, if there is one: who dropped one connection dropped them all."""
        drain = getattr(getattr(self._wrapper, "pool", None), "drain", None)
        if drain is not None and self._connected_at >= self._owner.drained_at:
            self._owner.drained_at = monotonic()
            drain()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before


class _Errors(DatabaseErrorWrapper):  # type: ignore[misc]  # untyped
    """Through this go all of Django's calls of the driver, so also those that only read: fetching
    rows from the server, making a cursor."""

    def __init__(self, wrapper: Any, watch: Watch) -> None:
        super().__init__(wrapper)
        self._watch = watch

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is None:
            return
        if self._watch.is_sending:
            super().__exit__(exc_type, exc, traceback)
        else:
            with self._watch.sending(b"FETCH"):
                super().__exit__(exc_type, exc, traceback)
