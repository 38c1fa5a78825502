"""A Storm connection that tells its attempt of failures and commits, and where it comes from."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import storm.database  # type: ignore[import-untyped]
from storm.database import STATE_CONNECTED, STATE_DISCONNECTED
from storm.databases.mysql import MySQL  # type: ignore[import-untyped]
from storm.exceptions import ClosedError, StormError  # type: ignore[import-untyped]

from retrymw.adapters._pools import Home, PoolFactory
from retrymw.adapters._tracker import Tracker
from retrymw.adapters._undo import UNDO_SECONDS, Wire, cut_after
from retrymw.classify._frames import autocommits

__all__ = ["Connection", "tracked"]

# What is no StormError is of values that can't be sent, and found out before anything is.
_ANSWERS: Final = (StormError, TypeError, ValueError, LookupError, ArithmeticError)

_WAKING_SECONDS: Final = 0.5


def tracked(database: Any, pool: PoolFactory | None) -> Any:
    """A copy of a Storm database whose stores have a :class:`Connection`, maybe from a pool."""
    database = copy.copy(database)
    factory = database.connection_factory
    home = Home(database.raw_connect, pool)
    database.connection_factory = type(factory.__name__, (Connection, factory), {"home": home})
    database.raw_connect = home.connect
    return database


class Connection(storm.database.Connection):  # type: ignore[misc]  # Storm has no types
    """Storm's connection of one store. One that was lost is replaced on rollback, as in Storm.

    Statements of several threads take turns; mysqlclient by itself would mix up their answers.
    """

    home: Home
    _closed: bool

    def __init__(self, database: Any, event: Any = None) -> None:
        self._turn = threading.RLock()
        self._cut_off = False  # by us, in the midst of a statement
        self.tracker = Tracker(_ANSWERS, ddl_commits=isinstance(database, MySQL))
        self._pool = self.home.pool
        self._hold(None)
        super().__init__(database, event)
        self._hold(self._raw_connection)

    def raw_execute(self, statement: str, params: Any = None) -> Any:
        """As in Storm."""
        with self._sending(statement.encode(errors="replace")):
            return super().raw_execute(statement, params)

    def begin(self, xid: Any) -> None:
        """As in Storm."""
        with self._sending(b"BEGIN"):
            super().begin(xid)

    def prepare(self) -> None:
        """As in Storm."""
        with self._sending(b"PREPARE TRANSACTION"):
            super().prepare()

    def recover(self) -> Any:
        """As in Storm."""
        with self._sending(b"SELECT"):
            return super().recover()

    def commit(self, xid: Any = None) -> None:
        """As in Storm; a lost answer makes the outcome unknown (G4)."""
        # What another connection has prepared is not known here: like a CALL it counts as work.
        with self._sending(b"COMMIT" if xid is None else b"CALL"):
            super().commit(xid)

    def rollback(self, xid: Any = None) -> None:
        """As in Storm; a lost connection is replaced before the next statement."""
        if self.tracker.lost:
            self._state = STATE_DISCONNECTED  # Storm does not know all of the signs
        with self._sending(b"ROLLBACK"):
            super().rollback(xid)
        if self._is_lost:
            self._throw_away()

    def build_raw_cursor(self) -> Any:
        """As in Storm."""
        cursor = super().build_raw_cursor()
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        """Give the raw connection back, or throw it away if it is not fit for another use."""
        if self._closed:
            return
        with self.undoing() as free:
            self._closed = True
            if free:
                try:
                    self._tidy()
                finally:
                    self._let_go()
            elif self._pool is not None and self._held is not None:
                self._held.detach()  # closed when the other thread drops it

    @contextmanager
    def undoing(self) -> Iterator[bool]:
        """From here on it is to be undone, by this thread. Whether no other one uses it.

        A statement of another thread is waited for two seconds, and then cut off: its connection
        goes to nobody else. The block is cut off if it takes longer than that.

        Raises:
            TimeoutError: the block was cut off, and raised nothing.
        """
        self.block_access()
        free = self._turn.acquire(timeout=0 if self._cut_off else UNDO_SECONDS)
        if not free:
            self._cut_off = self.tracker.lost = True
            self._wire.cut()
            free = self._turn.acquire(timeout=_WAKING_SECONDS)
        try:
            with cut_after(self._driver):
                yield free
        except Exception:
            self.tracker.lost = True
            raise
        finally:
            if free:
                self._turn.release()

    @property
    def closed_by_app(self) -> bool:
        """Whether somebody called close()."""
        return self._closed

    @property
    def _is_lost(self) -> bool:
        return bool(self.tracker.lost or self._state != STATE_CONNECTED)

    @property
    def _is_as_it_was(self) -> bool:
        """Whether another attempt may have the raw connection."""
        if self._is_lost or self.tracker.touched or self._pool is not self.home.pool:
            return False
        return autocommits(self._driver) == self._autocommit_at_first

    def _ensure_connected(self) -> None:
        if self._state == STATE_CONNECTED:
            super()._ensure_connected()
            return
        if self._closed:
            raise ClosedError("Connection is closed")
        with self._sending(b""):
            self._pool = self.home.pool
            super()._ensure_connected()
            self._hold(self._raw_connection)

    def _hold(self, raw: Any) -> Any:
        """Remember the raw connection, which Storm forgets when it is lost; returns the last."""
        held: Any = getattr(self, "_held", None)
        self._held = self._raw_connection = raw
        in_pool = getattr(raw, "dbapi_connection", raw)
        self._driver = getattr(in_pool, "_connection", in_pool)
        self._wire = Wire(self._driver)
        self._cursors: weakref.WeakSet[Any] = weakref.WeakSet()
        self._autocommit_at_first = autocommits(self._driver)
        return held

    @contextmanager
    def _sending(self, statement: bytes) -> Iterator[None]:
        with self._turn:
            commits_itself = autocommits(self._driver) is not False
            with self.tracker.sending(statement, autocommit=commits_itself):
                yield

    def _tidy(self) -> None:
        """Leave nothing on the raw connection that concerns its next user."""
        if self._is_lost:
            return
        try:
            if self._two_phase_transaction:
                super().rollback()
            for cursor in list(self._cursors):  # a result that the app still has would do it later,
                cursor.close()  # in the midst of somebody else's statement
        except Exception:
            self.tracker.lost = True
            raise

    def _let_go(self) -> None:
        if not self._is_as_it_was:
            self._throw_away()
        elif self._held is not None:
            self._hold(None).close()

    def _throw_away(self) -> None:
        dropped = self._is_lost and not self._cut_off
        held = self._hold(None)
        self.tracker.lost = self._cut_off = False
        if held is None:
            return
        if self._pool is None:
            with suppress(StormError):  # it is broken already
                held.close()
            return
        held.invalidate()
        if dropped:
            self.home.renew(self._pool)
