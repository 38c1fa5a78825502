"""What a traceback tells: the phase a failure struck in, and whose code raised it.

A lost COMMIT answer looks like any other lost connection to the driver; what it was doing is in
the frames the exception passed through. SQL text is looked at too: ``execute("COMMIT")`` is legal.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Collection, Mapping
from types import FrameType
from typing import Any, Final, NamedTuple

from retrymw._core.failure import Failure
from retrymw.classify.sql import commits, reads
from retrymw.exceptions import Kind, Phase

__all__ = [
    "REGISTRY",
    "Package",
    "Text",
    "autocommits",
    "dry_pool",
    "frames_of",
    "innermost",
    "is_a",
    "is_of_a_socket",
    "is_transport",
    "package_of",
    "phase_of",
]


def autocommits(owner: object) -> bool | None:
    """Whether every statement of this connection, or cursor of one, is a commit of its own.

    None if it can't be asked any more. It is off where there is no such thing (PEP 249).
    """
    try:
        connection: Any = getattr(owner, "connection", owner)
        if connection is None:  # that of a closed cursor
            return None
        if getattr(connection, "_num_transactions", 0):  # in a block of psycopg's transaction()
            return False
        asked = getattr(connection, "get_autocommit", None)
        return (asked() if asked is not None else getattr(connection, "autocommit", False)) is True
    except Exception:  # one that is gone may not want to be asked
        return None


class Package(NamedTuple):
    """What is known of a driver or layer, by the name of its package.

    Attributes:
        classify: what one of its exceptions means. It is given those of Python's own as well
            (OSError, TimeoutError) that the package's code raised.
        phases: function of the package -> the phase it runs in.
        statements: function of the package -> the local variable that holds the statement.
        autocommits: whether each statement is a commit of its own, by the ``self`` of such a
            function: a connection, or a cursor. None leaves it to others: to the layer above, or
            the driver beneath. It must not talk to the server.
        waits: functions of the package in which one waits for a connection of its pool, for as long
            as the app allows.
        greets: functions of the package that look at a new connection before the server has had its
            say, and raise a RuntimeError if it has hung up already.
    """

    classify: Callable[[BaseException], Failure | None]
    phases: Mapping[str, Phase] = {}
    statements: Mapping[str, str] = {}
    autocommits: Callable[[object], bool | None] = autocommits
    waits: Collection[str] = ()
    greets: Collection[str] = ()


class Text(NamedTuple):
    """A piece of a message, what it means, and where it comes from.

    ``phase`` is None where the traceback has to tell.
    """

    fragment: str
    kind: Kind
    phase: Phase | None
    source: str


REGISTRY: Final[dict[str, Package]] = {}
"""Every package that is known, by name. Filled by ``retrymw.classify``; the families only look."""

_TIMED_OUT: Final = "cannot read from timed out object"  # socket.py SocketIO.readinto
_UNREACHABLE: Final = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)

# A driver's connect may run statements of its own, and a commit may be one: the rarer one tells.
_PRECEDENCE: Final[tuple[Phase, ...]] = ("connect", "commit", "execute")

# Between a driver and the socket: event loops, and what makes sockets or waits cooperative.
_TRANSPORTS: Final = sys.stdlib_module_names | {
    "anyio",
    "async_timeout",
    "eventlet",
    "gevent",
    "trio",
    "uvloop",
}


def is_a(exc: BaseException, *names: str) -> bool:
    """Whether an exception is of a class of one of these names, or of a subclass."""
    return any(base.__name__ in names for base in type(exc).__mro__)


def is_transport(exc: BaseException) -> bool:
    """Whether it is one of Python's own that a driver may let through.

    On Python 3.10 neither asyncio's TimeoutError nor that of concurrent.futures is an OSError.
    """
    return isinstance(exc, (OSError, EOFError)) or is_a(exc, "TimeoutError")


def is_of_a_socket(exc: BaseException, phase: Phase) -> bool:
    """Whether one of Python's own, let through by a driver, is a connection's.

    Others come of files that a driver reads or writes, of certificates, or of missing rights.
    """
    if is_a(exc, "SSLCertVerificationError", "PermissionError"):
        return False
    lost = isinstance(exc, (ConnectionError, EOFError)) or is_a(exc, "TimeoutError")
    unreachable = isinstance(exc, OSError) and exc.errno in _UNREACHABLE
    return lost or unreachable or phase == "connect" or _TIMED_OUT in str(exc)


def frames_of(exc: BaseException) -> list[FrameType]:
    """The frames that an exception passed through, outermost first."""
    frames = []
    traceback = exc.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    return frames


def package_of(frame: FrameType) -> str:
    """The top-level package that a frame's code is in."""
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def phase_of(exc: BaseException, *, answered: bool = False) -> Phase:
    """Where ``exc`` struck, by the frames it passed through; ``unknown`` if they don't tell.

    Args:
        answered: whether the server has answered, so that a statement did not commit itself.
    """
    found: set[Phase] = set()
    told: set[bool | None] = set()
    for frame in frames_of(exc):
        package = REGISTRY.get(package_of(frame))
        if package is None:
            if package_of(frame) not in _TRANSPORTS:
                found.discard("connect")  # what the app does in a callback is its own
            continue
        function = frame.f_code.co_name
        phase = package.phases.get(function)
        if phase is not None:
            found.add(phase)
        name = package.statements.get(function)
        if name is not None:
            # Only now: before Python 3.13 this makes a copy, which lives as long as the frame.
            variables = frame.f_locals
            statement = variables.get(name)
            if commits(statement):
                found.add("commit")
            elif "self" in variables and not answered and not reads(statement):
                told.add(package.autocommits(variables["self"]))
    if True in told or told == {None}:  # in doubt it is one
        found.add("commit")
    return next((phase for phase in _PRECEDENCE if phase in found), "unknown")


def innermost(exc: BaseException) -> tuple[str, str]:
    """Package and function of the innermost frame that is no transport's; empty if all are."""
    last = traceback = exc.__traceback__
    while traceback is not None:
        last, traceback = traceback, traceback.tb_next
    # The very last one mostly tells; the rest is not looked at in vain.
    if last is not None and package_of(last.tb_frame) not in _TRANSPORTS:
        frames = [last.tb_frame]
    else:
        frames = frames_of(exc)
    for frame in reversed(frames):
        package = package_of(frame)
        if package not in _TRANSPORTS:
            # What Cython compiled has its qualified name here.
            return package, frame.f_code.co_name.rpartition(".")[2]
    return "", ""


def dry_pool(exc: BaseException) -> str | None:
    """The package for whose pool an app waited in vain: ``wait_for(pool.acquire(), 1)``.

    A timeout cancels what it is about: where that was waiting is in the cancellation's traceback,
    on Python 3.10 in that of its context.
    """
    cancelled = exc.__cause__ or exc.__context__
    for _ in range(3):
        if cancelled is None or type(cancelled).__name__ != "CancelledError":
            break
        package, function = innermost(cancelled)
        if package in REGISTRY and function in REGISTRY[package].waits:
            return package
        cancelled = cancelled.__context__
    return None
