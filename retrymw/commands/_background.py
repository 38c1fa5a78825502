"""Work that can be left alone when it takes too long: drivers in C heed neither time nor Ctrl-C."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final, ParamSpec, TypeVar

from retrymw.exceptions import DisconnectionError

__all__ = ["Executor", "within"]

# A signal may reach the other thread: then this one does not wake up, and must look by itself.
_GLANCE: Final = 0.1  # seconds

P = ParamSpec("P")
T = TypeVar("T")


def within(seconds: float, work: Callable[[], T]) -> T:
    """What ``work`` returns or raises; if that takes longer it is left to itself.

    Raises:
        DisconnectionError: in phase ``connect``, if the time is up.
    """
    future = _begin(work)
    ends = time.monotonic() + seconds
    while not wait([future], min(seconds, _GLANCE)).done:
        if time.monotonic() >= ends:
            raise DisconnectionError(f"no answer within {seconds:g} s", phase="connect")
    return future.result()


class Executor(ThreadPoolExecutor):
    """An event loop's threads, which Python does not wait for when it exits.

    asyncio looks names up in them, and a name server may take its time.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run it in a thread of its own."""
        return _begin(functools.partial(fn, *args, **kwargs))


def _begin(work: Callable[[], T]) -> Future[T]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as exc:  # noqa: BLE001  # whoever waits for it is to decide
            # Without this frame: who raised it is read off the traceback, and that was not us.
            future.set_exception(
                exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)
            )

    threading.Thread(target=run, daemon=True).start()
    return future
