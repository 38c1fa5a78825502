"""What people put around their database work instead of retrymw; async and sync.

All of them recognise the same failures as retrymw does, and are given the same ten seconds.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import stamina
from tenacity import (
    retry,
    retry_if_exception,
    stop_after_delay,
    wait_exponential_jitter,
    wait_fixed,
)

from benchmarks.stress.rows import Way
from retrymw.classify import classify

__all__ = ["SECONDS", "around_connect", "around_work", "around_work_sync", "is_ours"]

SECONDS: Final = 10.0
CONNECTIONS: Final = 20
_BASE, _CAP = 0.05, 2.0

Work = Callable[[str], Awaitable[None]]
SyncWork = Callable[[str], None]


def is_ours(exc: BaseException) -> bool:
    """Whether it says that the database dropped the connection, or had none left."""
    return isinstance(exc, Exception) and classify(exc) is not None


def around_connect(way: Way, connect: Callable[..., Any]) -> Callable[..., Any]:
    """``connect`` with the patience that belongs there."""
    waits: dict[str, Any] = {
        "tenacity": wait_exponential_jitter(initial=0.1, max=2),
        "semaphore": wait_fixed(0.01),
    }
    if way not in waits:
        return connect

    @retry(
        retry=retry_if_exception(is_ours),
        wait=waits[way],
        stop=stop_after_delay(SECONDS),
        reraise=True,
    )
    async def patient(**arguments: Any) -> Any:
        return await connect(**arguments)

    return patient


def around_work(way: Way, work: Work) -> Work:
    """The function that connects, works and commits, with the patience that belongs there."""
    if way == "stamina":
        return stamina.retry(on=is_our_exception, attempts=None, timeout=SECONDS)(work)
    if way == "semaphore":
        places = asyncio.Semaphore(CONNECTIONS)

        async def in_turn(statement: str) -> None:
            async with places:
                await work(statement)

        return in_turn
    if way == "blind":

        async def again(statement: str) -> None:
            pauses = _pauses()
            while True:
                try:
                    return await work(statement)
                except Exception as exc:
                    pause = next(pauses, None)
                    if pause is None or not is_ours(exc):
                        raise
                await asyncio.sleep(pause)

        return again
    return work


def around_work_sync(way: Way, work: SyncWork) -> SyncWork:
    """The same for threads; only what the WSGI rows use."""
    if way != "blind":
        return work

    @functools.wraps(work)
    def again(statement: str) -> None:
        pauses = _pauses()
        while True:
            try:
                return work(statement)
            except Exception as exc:
                pause = next(pauses, None)
                if pause is None or not is_ours(exc):
                    raise
            time.sleep(pause)

    return again


def is_our_exception(exc: Exception) -> bool:
    """:func:`is_ours`, as stamina wants it."""
    return is_ours(exc)


def _pauses() -> Iterator[float]:
    """Full jitter, until the patience is at its end."""
    end = time.monotonic() + SECONDS
    longest = _BASE
    while time.monotonic() < end:
        yield random.uniform(0, longest)
        longest = min(longest * 2, _CAP)
