"""Tasks that live as long as one exchange, and a signal between tasks.

With anyio's task group and event every waiting request would take a third more memory on asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from retrymw.instrumentation import log_trouble

__all__ = ["Signal", "Tasks", "current_loop", "open_tasks"]

Function = Callable[..., Coroutine[Any, Any, Any]]


class Signal(Protocol):
    """What tasks wait for."""

    def set(self) -> object:
        """Wake all that wait now, and let nobody wait any more."""

    def wait(self) -> Awaitable[object]:
        """To be awaited, once: until it is set."""


class Tasks(Protocol):
    """The tasks of one exchange."""

    def start_soon(self, function: Function, *args: Any) -> object:
        """Run ``await function(*args)`` in a task, which handles its own exceptions."""

    def signal(self) -> Signal:
        """A new one."""

    async def close(self) -> None:
        """Cancel the tasks, and return when they have ended; not to be cancelled."""


def current_loop() -> Any:
    """What stands for the event loop that this runs in: asyncio's loop, or trio's token."""
    token = anyio.lowlevel.current_token()
    return getattr(token, "native_token", token)  # anyio wraps it since 4.11


async def open_tasks() -> Tasks:
    """For the event loop that this runs in."""
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        return _AsyncioTasks()
    return _OtherTasks(await anyio.create_task_group().__aenter__())


class _AsyncioSignal:
    __slots__ = ("_set", "_waiting")

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[asyncio.Future[None]] = []

    def set(self) -> None:
        self._set = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def wait(self) -> Awaitable[None]:
        # One for each: who is cancelled cancels what it waits for.
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._set:
            future.set_result(None)
        self._waiting.append(future)
        return future


class _AsyncioTasks:
    __slots__ = ("_tasks",)

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    def start_soon(self, function: Function, *args: Any) -> None:
        going_on = [task for task in self._tasks if not task.done()]
        self._tasks = [*going_on, asyncio.get_running_loop().create_task(function(*args))]

    def signal(self) -> Signal:
        return _AsyncioSignal()

    async def close(self) -> None:
        interruption: asyncio.CancelledError | None = None
        for task in self._tasks:
            task.cancel()
        while not all(task.done() for task in self._tasks):
            try:
                with anyio.CancelScope(shield=True):
                    await asyncio.wait(self._tasks)
            except asyncio.CancelledError as exc:  # asyncio's own cancel() gets past a shield
                interruption = exc
        if interruption is not None:
            raise interruption


class _OtherTasks:
    __slots__ = ("_group", "start_soon")

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self.start_soon = group.start_soon

    def signal(self) -> Signal:
        return anyio.Event()

    async def close(self) -> None:
        # Shielded: a cancellation from outside must not replace what is raised (G7).
        self._group.cancel_scope.shield = True
        self._group.cancel_scope.cancel()
        try:
            await self._group.__aexit__(None, None, None)
        except RuntimeError:  # the app left a cancel scope of its own open
            log_trouble("an app's cancel scope outlives its request")
