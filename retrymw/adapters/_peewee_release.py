"""A decorator that gives a peewee connection back when a function of the data layer is done."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from types import FrameType, TracebackType
from typing import Any, Final, TypeVar, cast

import peewee  # type: ignore[import-untyped,unused-ignore]
from playhouse.pool import PooledDatabase  # type: ignore[import-untyped,unused-ignore]

from retrymw.adapters import _peewee_loan
from retrymw.classify import classify
from retrymw.classify._frames import package_of

__all__ = ["releasing"]

F = TypeVar("F", bound=Callable[..., Any])

# Reentrant: in the midst of it the garbage collector may come to end a generator.
_counting: Final = threading.RLock()
_logger: Final = logging.getLogger("retrymw")
_WORKERS: Final = {"peewee", "playhouse", "pymysql", "MySQLdb", "psycopg", "psycopg2"}


def releasing(database: Any, function: F) -> F:
    """``function``, which gives the connection back at its end."""
    wrapper: Callable[..., Any]

    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            with _Use(database):
                generator = function(*args, **kwargs)
                step, value = generator.asend, None
                while True:
                    try:
                        item = await step(value)
                    except StopAsyncIteration:
                        return
                    finally:
                        value = None  # an exception's traceback has this frame in it
                    try:
                        step, value = generator.asend, (yield item)
                    except GeneratorExit:
                        await generator.aclose()
                        raise
                    except BaseException as exc:  # noqa: BLE001  # handed on, not handled
                        step, value = generator.athrow, exc

    elif inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with _Use(database):
                return await function(*args, **kwargs)

    elif inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            with _Use(database):
                return (yield from function(*args, **kwargs))

    else:

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with _Use(database):
                return function(*args, **kwargs)

    return cast("F", wrapper)


class _Users:
    """How many decorated functions are at work with a connection state."""

    def __init__(self) -> None:
        self.count = 0


class _Use:
    """One of them; the last one to end gives the connection back."""

    def __init__(self, database: Any) -> None:
        self._database = database.obj if isinstance(database, peewee.Proxy) else database

    def __enter__(self) -> None:
        self._users = _users_of(self._database._state)
        with _counting:
            self._users.count += 1

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _counting:
            self._users.count -= 1
            last = self._users.count == 0
        if last:
            try:
                self._release(exc)
            except Exception:  # it must not hide what the function returned or raised
                _logger.debug("giving a peewee connection back failed", exc_info=True)

    def _release(self, exc: BaseException | None) -> None:
        database, state = self._database, self._database._state
        if state.closed or state.transactions or state.ctx:
            return
        if _users_of(state) is not self._users:  # a generator that another thread has finished
            return
        if isinstance(exc, GeneratorExit) and _is_at_work():
            return  # the garbage collector ends generators anywhere
        if isinstance(database, PooledDatabase) and _spoils(exc):
            database.manual_close()
            with database._pool_available:  # manual_close() leaves those asleep that wait
                database._pool_available.notify()
        else:
            database.close()


def _users_of(state: Any) -> _Users:
    """Those of this thread, or of this attempt: kept where peewee keeps the connection."""
    kept: dict[str, Any] = state.__dict__
    users: _Users = kept.get("retrymw_users") or kept.setdefault("retrymw_users", _Users())
    return users


def _is_at_work() -> bool:
    """Whether peewee or a driver is on this thread's stack, in the middle of something."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if package_of(frame) in _WORKERS or frame.f_globals is _peewee_loan.__dict__:
            return True
        frame = frame.f_back
    return False


def _spoils(exc: BaseException | None) -> bool:
    """Whether nobody else should get a connection that this was raised over."""
    if exc is None or isinstance(exc, GeneratorExit):
        return False
    failure = classify(exc)
    return not isinstance(exc, Exception) or (
        failure is not None and failure.kind == "disconnection"
    )
