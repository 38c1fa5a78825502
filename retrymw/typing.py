"""The protocols adapters and hooks implement, and the types of ASGI and WSGI.

The ASGI and WSGI aliases are the permissive ones that Starlette and Werkzeug use, so that the
middleware type-checks where they are installed; asgiref's TypedDicts do not fit theirs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from retrymw._core.exchange import Report
from retrymw._core.ticket import RoomSnapshot

if TYPE_CHECKING:
    from retrymw._context import Attempt

__all__ = [
    "ASGIApp",
    "AsyncDatabase",
    "Database",
    "Environ",
    "ExcInfo",
    "Hook",
    "Message",
    "Receive",
    "Report",
    "RoomSnapshot",
    "Scope",
    "Send",
    "StartResponse",
    "WSGIApp",
    "Write",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[Any]]

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
Write = Callable[[bytes], object]
WSGIApp = Callable[..., Iterable[bytes]]


class StartResponse(Protocol):
    """PEP 3333's ``start_response``."""

    def __call__(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExcInfo | None = None,
        /,
    ) -> Write: ...


@runtime_checkable
class Database(Protocol):
    """A database layer whose request-scoped state the middleware undoes.

    An adapter keeps what it opened for an attempt in ``attempt.resource(self)[self]``; that is how
    the shells know that there is something to undo. The ASGI shell calls these in a worker thread.

    One whose attribute ``commits_on_success`` is true has a method ``commit(attempt)`` as well. It
    is called before the first byte of a response below 400 is released; what it raises has failed
    the attempt.
    """

    def rollback(self, attempt: Attempt) -> None:
        """Undo the attempt's transaction, in bounded time. An error is logged, never masks."""

    def release(self, attempt: Attempt) -> None:
        """Give back what the attempt opened, in bounded time, and forget it."""

    def ping(self) -> None:
        """Raise what the database raises if it can't be worked with now."""


@runtime_checkable
class AsyncDatabase(Protocol):
    """:class:`Database` for a layer whose calls are coroutines; ASGI only."""

    async def rollback(self, attempt: Attempt) -> None:
        """Undo the attempt's transaction, in bounded time."""

    async def release(self, attempt: Attempt) -> None:
        """Give back what the attempt opened, in bounded time, and forget it."""

    async def ping(self) -> None:
        """Raise what the database raises if it can't be worked with now."""


class Hook(Protocol):
    """Observes, never decides: called with a report after each failed attempt that is replayed
    (``outcome`` is None) and once when an exchange in which something failed has ended."""

    def __call__(self, report: Report, /) -> object: ...
