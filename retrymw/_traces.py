"""What an attempt leaves in the interpreter: context variables, and frames in tracebacks (G1)."""

from __future__ import annotations

import contextvars
import dis
import inspect
import sys
from types import FrameType, TracebackType
from typing import Final

from retrymw._context import Running, running

__all__ = ["adopt", "forget_attempt", "forget_frames", "restore"]

_MISSING: Final = object()
_ASKS: Final = sys.version_info >= (3, 13)  # clear() itself

# Where a coroutine is suspended; on Python 3.10 it is about to repeat the second.
_YIELD: Final = bytes([dis.opmap["YIELD_VALUE"]])
_YIELD_FROM: Final = bytes([dis.opmap["YIELD_FROM"]]) if "YIELD_FROM" in dis.opmap else None


def forget_attempt(run: Running, error: BaseException | None = None) -> None:
    """Forget the frames of ``error`` and of the failures seen in an attempt, once they are told."""
    exchange = run.exchange
    failed = exchange.failures[-1:] if exchange.number else ()  # or it is another request's
    failures = (*failed, *exchange.dooms)
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
            if not _is_suspended(frame):
                frame.clear()
                _ = frame.f_locals  # before Python 3.11.8 a copy that was read outlives clear()
        except RuntimeError:  # it is still running
            pass
        traceback = traceback.tb_next


def _is_suspended(frame: FrameType) -> bool:
    """Whether it is of a coroutine that goes on: one that caught the exception, or awaits something
    else by now. Before Python 3.13 ``clear()`` would end it.
    """
    if _ASKS or not frame.f_code.co_flags & inspect.CO_COROUTINE:
        return False
    bytecode, last = frame.f_code.co_code, frame.f_lasti
    return bytecode[last : last + 1] == _YIELD or bytecode[last + 2 : last + 3] == _YIELD_FROM


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
