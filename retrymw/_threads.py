"""Worker threads of our own under ASGI, so that undoing never queues behind blocked endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

__all__ = ["COMMITTING", "PINGING", "UNDOING", "in_thread"]

T = TypeVar("T")

_MOST_THREADS: Final = 40
Limiter = anyio.lowlevel.RunVar[anyio.CapacityLimiter]

UNDOING: Final = Limiter("retrymw_undoing")
PINGING: Final = Limiter("retrymw_pinging")  # may hang
COMMITTING: Final = Limiter("retrymw_committing")  # may take long; nothing is to queue behind it


async def in_thread(
    function: Callable[..., T], *args: object, abandon: bool = False, limited: Limiter = UNDOING
) -> T:
    """``function(*args)`` in a worker thread; ``abandon`` lets a cancellation leave it behind."""
    try:
        limiter = limited.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_MOST_THREADS)
        limited.set(limiter)
    return await anyio.to_thread.run_sync(
        function, *args, limiter=limiter, abandon_on_cancel=abandon
    )
