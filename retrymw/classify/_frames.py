"""What a traceback tells: the phase a failure struck in, and whose code raised it.

A lost COMMIT answer looks like any other lost connection to the driver; what it was doing is in
the frames the exception passed through. SQL text is looked at too: ``execute("COMMIT")`` is legal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from retrymw._core.failure import Failure
from retrymw.classify.sql import commits, reads
from retrymw.exceptions import Phase

__all__ = ["PACKAGES", "Package", "autocommits", "origin_of", "phase_of"]


def autocommits(owner: object) -> bool:
    """Whether every statement of this connection, or cursor of one, is a commit of its own."""
    try:
        connection: Any = getattr(owner, "connection", None) or owner
        if getattr(connection, "_num_transactions", 0):  # in a block of psycopg's transaction()
            return False
        asked = getattr(connection, "get_autocommit", None)
        return (asked() if asked is not None else getattr(connection, "autocommit", False)) is True
    except Exception:  # one that is gone may not want to be asked: then it can't be ruled out
        return True


class Package(NamedTuple):
    """What is known of a driver or layer, by the name of its package.

    Attributes:
        classify: what one of its exceptions means. It is given those of Python's own as well
            (OSError, TimeoutError) that the package's code raised.
        phases: function of the package -> the phase it runs in.
        statements: function of the package -> the local variable that holds the statement.
        autocommits: whether each statement is a commit of its own, by the ``self`` of such a
            function: a connection, or a cursor. It must not talk to the server.
    """

    classify: Callable[[BaseException], Failure | None]
    phases: Mapping[str, Phase] = {}
    statements: Mapping[str, str] = {}
    autocommits: Callable[[object], bool] = autocommits


PACKAGES: Final[dict[str, Package]] = {}
"""Filled by ``retrymw.classify``: the families below it need only look."""

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


def phase_of(exc: BaseException) -> Phase:
    """Where ``exc`` struck, by the frames it passed through; ``unknown`` if they don't tell."""
    found: set[Phase] = set()
    traceback = exc.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        package = PACKAGES.get(str(frame.f_globals.get("__name__", "")).partition(".")[0])
        if package is not None:
            function = frame.f_code.co_name
            phase = package.phases.get(function)
            if phase is not None:
                found.add(phase)
            variable = package.statements.get(function)
            if variable is not None:
                statement = frame.f_locals.get(variable)
                if commits(statement) or (
                    package.autocommits(frame.f_locals.get("self")) and not reads(statement)
                ):
                    found.add("commit")
        traceback = traceback.tb_next
    return next((phase for phase in _PRECEDENCE if phase in found), "unknown")


def origin_of(exc: BaseException) -> str:
    """The package whose code raised ``exc``: the innermost frame that is no transport's."""
    names = []
    traceback = exc.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_globals)
        traceback = traceback.tb_next
    for variables in reversed(names):
        package = str(variables.get("__name__", "")).partition(".")[0]
        if package not in _TRANSPORTS:
            return package
    return ""
