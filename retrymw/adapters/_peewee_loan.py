"""What a peewee database has on loan to an attempt: connection state, connection, turns."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import peewee  # type: ignore[import-untyped,unused-ignore]
from playhouse.pool import PooledDatabase  # type: ignore[import-untyped,unused-ignore]

from retrymw._context import Attempt
from retrymw.adapters._statements import BEGIN, COMMIT, DDL, ROLL_BACK, look
from retrymw.adapters._tracker import Tracker
from retrymw.adapters._undo import UNDO_SECONDS, Wire, cut_after
from retrymw.classify import sql
from retrymw.classify._frames import autocommits

__all__ = ["Loan"]

_peewee: Final[Any] = peewee  # what is used of it is not in its stubs
_BOUNDS: Final = BEGIN | COMMIT | ROLL_BACK
# DDL that a BEGIN must not follow: it commits nothing, or what it locked would be let go.
_GOES_ON: Final = sql.starts(rb"(?:CREATE\s+(?:OR\s+REPLACE\s+)?|DROP\s+)TEMPORARY|LOCK")


class Loan:
    """The connection state of an attempt.

    Args:
        database: peewee's.
        attempt: who has it.
        unit: whether all that is sent is to be one transaction, which the middleware commits.

    Attributes:
        state: as peewee keeps it.
        turn: held while something is sent; statements of several threads take turns.
        inside: how many calls of peewee's are on their way, in the thread whose turn it is.
        opaque: the app has the driver's connection, so not all that is sent is seen.
        gone: the connection was lost, and its transaction with it.
    """

    def __init__(self, database: Any, attempt: Attempt, *, unit: bool) -> None:
        self._database = database
        self._attempt = attempt
        self._unit = unit
        self._ddl_commits = isinstance(database, peewee.MySQLDatabase)
        self._over = False
        self.state = _peewee._ConnectionState()
        self.turn = threading.RLock()
        self.inside = 0
        self._open_unit()
        self._forget()

    def _forget(self) -> None:
        self._connection: Any = None
        self._tracker: Tracker | None = None
        self._wire: Wire | None = None
        self._begun = False
        self.opaque = False
        self.gone = False

    @property
    def keeps(self) -> bool:
        """Whether the connection is the middleware's to close."""
        return self._unit

    def connect(self, connect: Callable[[], bool]) -> bool:
        """Open the connection, by peewee's own ``connect``."""
        with self.turn:
            self._check()
            if self._unit and not self.state.closed:
                return False  # to close it did nothing
            callbacks = self.state.commit_callbacks
            try:
                opened = connect()
            except Exception as exc:
                self._attempt.saw(exc)
                raise
            finally:
                self.state.commit_callbacks = callbacks  # peewee has forgotten them
                self._open_unit()
                if self._over and not self.state.closed:  # it came too late
                    self._give_back()
            self._check()
            return opened

    def _open_unit(self) -> None:
        """Let peewee think that it is in a transaction, so that ``atomic()`` is a savepoint."""
        if self._unit and not self.state.transactions:
            self.state.transactions.append(_peewee._transaction(self._database))

    def send(
        self,
        statement: bytes,
        call: Callable[..., Any],
        *args: Any,
        many: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call what sends ``statement`` over the connection, when it is this thread's turn."""
        with self.turn:
            self._check()
            if self.state.closed:
                if not self._database.autoconnect:
                    return call(*args, **kwargs)  # peewee says what is wrong
                self._database.connect()
            if self._unit and not self._begun and not look(statement)[0] & _BOUNDS:
                self._track(b"BEGIN", self._execute, "BEGIN")
            return self._track(statement, call, *args, many=many, **kwargs)

    def _track(
        self,
        statement: bytes,
        call: Callable[..., Any],
        *args: Any,
        many: bool = False,
        **kwargs: Any,
    ) -> Any:
        tracker = self._tracker_of_connection()
        # What the app does with the driver's connection is not seen, and may be work to commit.
        told = b"CALL" if self.opaque and look(statement)[0] & COMMIT else statement
        self.inside += 1
        try:
            with tracker.sending(told, autocommit=True, many=many):
                answer = call(*args, **kwargs)
        except Exception as exc:
            self.gone = self.gone or (tracker.lost and self._attempt.seen is exc)
            self._begun = self._begun and self._goes_on(statement)  # refused COMMITs and DDL end it
            raise
        else:
            self._begun = self._unit and self._goes_on(statement)
            return answer
        finally:
            self.inside -= 1
            self._open_unit()
            if self._over:  # while this waited; nobody else has closed it
                _close_quietly(self._connection)

    def _goes_on(self, statement: bytes) -> bool:
        """Whether a transaction is open after ``statement``, if one was before it."""
        is_open = True
        for does in look(statement):
            if does & BEGIN:
                is_open = True
            elif does & (COMMIT | ROLL_BACK) or (
                does & DDL
                and self._ddl_commits
                and not _GOES_ON.match(sql.without_comments(statement))
            ):
                is_open = False
        return is_open

    def _tracker_of_connection(self) -> Tracker:
        if self._tracker is None or self._connection is not self.state.conn:
            self._connection = self.state.conn
            errors: Any = (peewee.PeeweeException, getattr(self._connection, "Error", ()))
            self._tracker = Tracker(errors, ddl_commits=self._ddl_commits)
            self._tracker.lend(self._attempt)
            self._wire = Wire(self._connection)
        return self._tracker

    def _execute(self, statement: str) -> None:
        with _peewee.__exception_wrapper__:
            self.state.conn.cursor().execute(statement)

    def _check(self) -> None:
        if self._over or self._attempt.over:
            raise RuntimeError(f"the connection of {self._attempt!r} was given back already")

    # What the app and the middleware end it with.

    def close(self) -> bool:
        """Give the connection back, in no transaction; the next statement gets another one.

        False if there is nothing to give back, or this thread is in the middle of a statement.
        """
        with self.turn:
            if self.inside or self.state.closed:
                return False
            self._give_back()
            return True

    def commit(self) -> None:
        """Commit what the app left, and then what each function of ``after_commit()`` leaves."""
        with self.turn:
            self._check()
            if not self.state.closed:
                self._commit()
            while self.state.commit_callbacks:
                self.state.commit_callbacks.pop(0)()
                if self._begun:
                    self._commit()

    def _commit(self) -> None:
        if self._tracker_of_connection().doubtful and not self._ddl_commits:
            self._track(b"SELECT 1", self._execute, "SELECT 1")  # says what its COMMIT would not
        self._track(b"COMMIT", self._execute, "COMMIT")

    def rollback(self) -> None:
        """Undo the transaction, within four seconds; what another thread still uses is cut off."""
        if not self.turn.acquire(timeout=UNDO_SECONDS):
            self._cut_off()
            return
        try:
            if self.state.closed:
                return
            tracker = self._tracker_of_connection()
            if not tracker.lost:
                tracker.lend(None)
                try:
                    with cut_after(self.state.conn):
                        self._execute("ROLLBACK")
                except BaseException:
                    tracker.lost = True
                    raise
        finally:
            self.turn.release()

    def give_back(self) -> None:
        """Give the connection back for good; if another thread still uses it, to nobody."""
        mine = self.turn.acquire(timeout=UNDO_SECONDS)
        self._over = True
        if not mine and self._connection is not None:
            self._cut_off()
            mine = self.turn.acquire(timeout=UNDO_SECONDS)  # its error comes at once
            if not mine:
                _take_out(self._database, self._connection)
        if not mine:
            return  # the thread whose turn it is closes it, or gives it back
        try:
            if not self.state.closed:
                self._give_back()
        finally:
            self.turn.release()

    def _cut_off(self) -> None:
        if self._tracker is not None and self._wire is not None:
            self._tracker.lost = True
            self._wire.cut()

    def _give_back(self) -> None:
        tracker, connection = self._tracker_of_connection(), self.state.conn
        tracker.lend(None)
        self.state.reset()
        self._forget()
        if tracker.lost or tracker.touched or autocommits(connection) is not True:
            _take_out(self._database, connection)
            _close_quietly(connection)
        elif isinstance(self._database, PooledDatabase):
            _with_lock(self._database, lambda: _check_in(self._database, connection))
        else:
            connection.close()


def _check_in(pool: Any, connection: Any) -> None:
    with cut_after(connection):  # it is rolled back
        pool._close(connection)


def _take_out(database: Any, connection: Any) -> None:
    """Let the pool forget a connection, and another take its place."""

    def forget() -> None:
        database._in_use.pop(database.conn_key(connection), None)
        database._pool_available.notify()

    if isinstance(database, PooledDatabase):
        _with_lock(database, forget)


def _with_lock(pool: Any, call: Callable[[], None]) -> None:
    """Peewee connects with the lock of the pool held, which may take long: then it is left to a
    thread."""

    def wait() -> None:
        with pool._pool_lock:
            call()

    if pool._pool_lock.acquire(timeout=UNDO_SECONDS):
        try:
            call()
        finally:
            pool._pool_lock.release()
    else:
        threading.Thread(target=wait, name="retrymw-peewee", daemon=True).start()


def _close_quietly(connection: Any) -> None:
    with suppress(Exception):  # it was lost, and drivers differ in what they make of that
        connection.close()
