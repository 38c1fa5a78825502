"""Undoing an attempt under ASGI: bounded, not to be cancelled, and never hiding its failure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import anyio
import anyio.to_thread

from retrymw._asgi_run import Run
from retrymw._context import Attempt
from retrymw._core.policy import is_async
from retrymw._threads import in_thread
from retrymw.instrumentation import log_trouble

__all__ = ["call_back", "release", "undo"]

_UNDO_SECONDS: Final = 5.0


async def release(run: Run) -> None:
    """Give back what the attempt opened."""
    run.over = True
    await _each(run.attempt, "release")


async def undo(run: Run) -> None:
    """Roll back, release, call back: each of them, whatever becomes of the one before."""
    run.over = True
    try:
        await _each(run.attempt, "rollback")
    finally:
        try:
            await _each(run.attempt, "release")
        finally:
            for callback in run.attempt.rollback_callbacks or ():
                await _bounded(call_back(callback), "callback %r failed", callback)


async def _each(attempt: Attempt, what: str) -> None:
    """``database.what(attempt)`` for each database that was used."""
    interruption: BaseException | None = None
    for database in list(attempt.resources or ()):
        method = getattr(database, what)
        call = method(attempt) if is_async(method) else in_thread(method, attempt, abandon=True)
        try:
            await _bounded(call, "%s of %r failed", what, database)
        except BaseException as exc:  # asyncio's own cancel() gets past a shield; the others' turn
            interruption = exc
    if interruption is not None:
        raise interruption


async def _bounded(call: Awaitable[object], message: str, *args: object) -> None:
    """Wait for what undoes an attempt: not for ever, not cancelled, and it never masks (G7)."""
    try:
        with anyio.move_on_after(_UNDO_SECONDS, shield=True) as bound:
            await call
        if bound.cancelled_caught:
            raise TimeoutError(f"given up after {_UNDO_SECONDS} s")
    except Exception:
        log_trouble(message, *args)


async def call_back(callback: Callable[[], Any]) -> None:
    """Await it, or call it in a thread, whichever it wants."""
    if is_async(callback):
        await callback()
    else:
        # The app's own threads: ours are for undoing, which must not queue behind callbacks.
        await anyio.to_thread.run_sync(callback, abandon_on_cancel=True)
