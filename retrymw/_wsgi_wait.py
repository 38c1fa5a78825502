"""Waiting for one's turn under WSGI: in a thread, or in a greenlet that looks like one."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from typing import Any, Final

from retrymw._waiting import Place, WaitingRooms, close_all
from retrymw._wsgi_run import Run
from retrymw.typing import Environ

__all__ = ["max_waiting", "wait_turn"]

_GREENLETS: Final = 1000
_UNKNOWN: Final = 4


def wait_turn(rooms: WaitingRooms, run: Run, after: float) -> None:
    """Return when it is the run's turn, or when it can wait no longer.

    Args:
        rooms: where its place is.
        run: one that has failed, or that has not begun.
        after: its own wait, in seconds.
    """
    place = run.place
    if place is None:
        return
    _wake_at_exit()
    woken = threading.Event()  # looked up at each call: gevent replaces it
    place.wake = woken.set
    rooms.wait(place, after)
    while place.state == "waiting":
        if rooms.ping_due(place):
            _start_ping(rooms, place)
        woken.wait(rooms.alarm(place))
        woken.clear()
        rooms.tick(place)
    place.wake = None


def _start_ping(rooms: WaitingRooms, place: Place) -> None:
    """In a thread of its own: a ping may hang, and who waits has a deadline."""
    thread = threading.Thread(target=_ping, args=(rooms, place), name="retrymw-ping", daemon=True)
    try:
        thread.start()
    except RuntimeError as exc:  # no more threads
        rooms.pinged(place.room, exc)


def _ping(rooms: WaitingRooms, place: Place) -> None:
    room = place.room
    error: BaseException | None = None
    try:
        room.database.ping()
    except BaseException as exc:  # noqa: BLE001  # there is nobody else to be told
        error = exc
    finally:
        rooms.pinged(room, error)
        error = None  # or the traceback, which holds this frame, would be a reference cycle


def max_waiting(environ: Environ) -> int:
    """A waiting thread is one of few, so half of them at most; a waiting greenlet is one of many.

    uWSGI and waitress tell how many threads there are; of others it is not known.
    """
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("time"):
        return _GREENLETS
    threads = 0
    if "uwsgi.version" in environ:
        uwsgi: Any = importlib.import_module("uwsgi")  # uWSGI's own, not to be installed
        threads = int(uwsgi.opt.get("threads", 1))
    elif "waitress.client_disconnected" in environ:
        channel = getattr(environ["waitress.client_disconnected"], "__self__", None)
        threads = getattr(getattr(channel, "adj", None), "threads", 0)
    return max(1, threads // 2) if threads else _UNKNOWN


@functools.cache
def _wake_at_exit() -> None:
    """Have all who wait woken before the interpreter waits for their threads.

    ``atexit`` is too late, it comes after that; this is what concurrent.futures uses.
    """
    register: Any = getattr(threading, "_register_atexit", None)
    if register is not None:
        try:
            register(close_all)
        except RuntimeError:  # it is too late for that: the interpreter waits already
            close_all()
