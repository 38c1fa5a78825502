"""Worker threads of our own under ASGI, so that undoing never queues behind blocked endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

__all__ = ["in_thread"]

T = TypeVar("T")

_MOST_THREADS: Final = 40
_limiter: Final = anyio.lowlevel.RunVar[anyio.CapacityLimiter]("retrymw_limiter")


async def in_thread(function: Callable[..., T], *args: object, abandon: bool = False) -> T:
    """``function(*args)`` in a worker thread; ``abandon`` lets a cancellation leave it behind."""
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_MOST_THREADS)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(
        function, *args, limiter=limiter, abandon_on_cancel=abandon
    )
