"""Undoing in bounded time, where a driver would wait for ever for a server that has fallen silent.

Drivers in C can't be interrupted, and some in Python have no timeout: what they wait for is the
socket, so that is shut down.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Final

__all__ = ["UNDO_SECONDS", "Wire", "cut", "cut_after"]

UNDO_SECONDS: Final = 2.0

_LINGER_SECONDS: Final = 10.0  # a thread costs 100 µs to start
_SOCKETS: Final = ("_sock", "_usock")  # PyMySQL's, pg8000's


class Wire:
    """The socket of a driver's connection, to be cut by any thread while another one waits for it.

    Make it while the connection is idle: mysqlclient does not tell its socket in a statement.

    Args:
        connection: mysqlclient's, PyMySQL's, psycopg's, psycopg2's or pg8000's, or what passes on
            their ``fileno()``. One that is closed, or has no socket, can't be cut.
    """

    __slots__ = ("_fd", "_inode")

    def __init__(self, connection: Any) -> None:
        self._fd = self._inode = -1
        with suppress(Exception):  # each driver has its own for a connection that is closed
            sockets = (getattr(connection, name, None) for name in _SOCKETS)
            fd = next(filter(None, sockets), connection).fileno()
            self._inode = os.fstat(fd).st_ino
            self._fd = fd

    def cut(self) -> None:
        """Shut it down: who waits for an answer gets the driver's error, and so does who comes.

        The connection is good for nothing but to be closed then. If it is already, and the number
        of its socket in use again, nothing happens.
        """
        with suppress(OSError), socket.socket(fileno=os.dup(self._fd)) as end:
            if os.fstat(end.fileno()).st_ino == self._inode:
                end.shutdown(socket.SHUT_RDWR)


def cut(connection: Any) -> None:
    """Cut a connection that was not thought of before; mysqlclient's can't be in a statement."""
    Wire(connection).cut()


@contextmanager
def cut_after(connection: Any, seconds: float = UNDO_SECONDS) -> Iterator[None]:
    """Cut the connection if the block takes longer than that.

    When the block is over it is certain that the connection will not be cut: it may go to a pool.

    Args:
        connection: as for :class:`Wire`.
        seconds: how long the block may take.

    Raises:
        TimeoutError: the connection was cut, and the block raised nothing.
    """
    watch = _Watch(Wire(connection), monotonic() + seconds)
    _watchdog.begin(watch)
    try:
        yield
    finally:
        _watchdog.end(watch)
    if watch.cut:
        raise TimeoutError(f"{connection!r} was cut after {seconds} s without an answer")


class _Watch:
    __slots__ = ("cut", "due", "wire")

    def __init__(self, wire: Wire, due: float) -> None:
        self.wire = wire
        self.due = due
        self.cut = False


class _Watchdog:
    """One thread for all that is watched. It ends when there was nothing to watch for a while."""

    def __init__(self) -> None:
        # Reentrant: in the midst of it the garbage collector may come to close a connection.
        self._changed = threading.Condition(threading.RLock())
        self._watches: set[_Watch] = set()
        self._running = False
        self._wakes = 0.0  # when the thread looks next

    def begin(self, watch: _Watch) -> None:
        with self._changed:
            self._watches.add(watch)
            if not self._running:
                threading.Thread(target=self._run, name="retrymw-undo", daemon=True).start()
                self._running = True
            elif watch.due < self._wakes:
                self._changed.notify()

    def end(self, watch: _Watch) -> None:
        with self._changed:
            self._watches.discard(watch)

    def _run(self) -> None:
        with self._changed:
            idle_until = monotonic() + _LINGER_SECONDS
            while self._watches or monotonic() < idle_until:
                now = monotonic()
                if self._watches:
                    idle_until = now + _LINGER_SECONDS
                for watch in list(self._watches):
                    if watch.due <= now:
                        watch.cut = True
                        watch.wire.cut()
                        self._watches.discard(watch)
                due = [watch.due for watch in list(self._watches)]
                self._wakes = min(due, default=idle_until)
                self._changed.wait(self._wakes - now)
            self._running = False


_watchdog: Final = _Watchdog()

if hasattr(os, "register_at_fork"):
    # A forked child has no such thread, and must not inherit a lock that it held.
    os.register_at_fork(after_in_child=lambda: _Watchdog.__init__(_watchdog))
