"""What an attempt leaves in the interpreter: context variables, and frames in tracebacks (G1)."""

from __future__ import annotations

import contextvars
from types import TracebackType
from typing import Final

from retrymw._context import Running, running

__all__ = ["adopt", "forget_attempt", "forget_frames", "restore"]

_MISSING: Final = object()


def forget_attempt(run: Running, error: BaseException | None = None) -> None:
    """Forget the frames of ``error`` and of the failures seen in an attempt, once they are told."""
    exchange = run.exchange
    failures = (*exchange.failures[-1:], *exchange.dooms)
    forget_frames(error, run.attempt.seen, *(failure.exception for failure in failures))


def forget_frames(*excs: BaseException | None) -> None:
    """Drop the local variables that a failed attempt's tracebacks keep alive.

    A connection that the app left to be given back when its last reference goes would otherwise be
    held for the whole wait (G8). Line numbers stay.
    """
    pending = list(excs)
    seen = set()
    while pending:
        link = pending.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        _clear(link.__traceback__)
        pending += (link.__cause__, link.__context__)
        members = getattr(link, "exceptions", None)
        if isinstance(members, (tuple, list)):
            pending += [member for member in members if isinstance(member, BaseException)]


def _clear(traceback: TracebackType | None) -> None:
    while traceback is not None:
        frame = traceback.tb_frame
        try:
            frame.clear()
        except RuntimeError:  # it is still running
            pass
        else:
            _ = frame.f_locals  # before Python 3.11.8 a copy that was read outlives clear()
        traceback = traceback.tb_next


def restore(snapshot: contextvars.Context) -> None:
    """Set context variables back to what they were. One that had no value can't be unset."""
    for variable, value in snapshot.items():
        if variable.get(_MISSING) is not value:
            variable.set(value)


def adopt(context: contextvars.Context) -> None:
    """Make the variables set in ``context`` visible here, as if the code had run here."""
    for variable, value in context.items():
        if variable is not running and variable.get(_MISSING) is not value:
            variable.set(value)
