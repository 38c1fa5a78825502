"""A connection of aiomysql or asyncmy, watched; the drivers have nearly the same API."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from retrymw._context import Attempt
from retrymw.adapters._tracker import Tracker
from retrymw.adapters._undo import UNDO_SECONDS

__all__ = ["READING", "WatchedConnection"]

T = TypeVar("T")

READING: Final = b"SELECT"
"""Stands for what commits nothing, and leaves nothing to be committed."""

if TYPE_CHECKING:

    class _Connection:
        """What a connection of either driver has."""

        OperationalError: ClassVar[type[Exception]]
        last_usage: float
        _loop: asyncio.AbstractEventLoop
        _encoding: str
        _result: Any
        _ssl_context: Any
        _stream_broken: bool  # asyncmy's
        _transport: asyncio.Transport | None  # asyncmy's

        def __init__(self, **connect_args: Any) -> None: ...
        def close(self) -> None: ...
        def get_autocommit(self) -> bool: ...
        def get_transaction_status(self) -> bool: ...
        async def ensure_closed(self) -> None: ...
        async def query(self, sql: bytes, unbuffered: bool = False) -> Any: ...
        async def commit(self) -> None: ...
        async def rollback(self) -> None: ...
        async def begin(self) -> None: ...
        async def autocommit(self, value: Any) -> None: ...
        async def next_result(self, **options: Any) -> Any: ...
        async def show_warnings(self) -> Any: ...
        async def select_db(self, db: str) -> None: ...
        async def set_charset(self, charset: str) -> None: ...
        async def ping(self, reconnect: bool = True) -> None: ...
        async def kill(self, thread_id: int) -> Any: ...

else:
    _Connection = object


class WatchedConnection(_Connection):
    """A connection that tells its attempt of failures and commits, and does not wait for ever.

    Statements of several tasks take turns; the drivers by themselves mix up their answers.

    Attributes:
        errors: what the driver raises.
        home: the pool that it is from, and the ``generation`` of it.
        ended: nothing was sent since it was lent, or since the last COMMIT or ROLLBACK.
    """

    errors: ClassVar[type[Exception]]
    home: Any = None
    generation: int = 0
    autocommit_at_first: bool = False

    def __init__(self, *, bound: float, **connect_args: Any) -> None:
        super().__init__(**connect_args)
        self.tracker = Tracker(self.errors, ddl_commits=True)
        self.ended = True
        self._bound = bound
        self._late = self._dropped = self._discarded = False
        self._turn = asyncio.Lock()
        self._sender: asyncio.Task[Any] | None = None

    @abstractmethod
    async def open(self) -> None:
        """Connect."""

    @property
    @abstractmethod
    def link(self) -> asyncio.Transport | None:
        """Its transport."""

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether something can be sent, as far as is known without asking the server."""

    @property
    @abstractmethod
    def was_closed(self) -> bool:
        """Whether somebody called close(): the app, or the driver after a failure."""

    @property
    def is_as_it_was(self) -> bool:
        """Whether another attempt may have this connection, once it is rolled back."""
        if not self.is_open or self.tracker.lost or self.is_busy:
            return False
        unread = getattr(self._result, "unbuffered_active", False)
        changed = self.tracker.touched or self.get_autocommit() != self.autocommit_at_first
        return not (unread or changed)

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._turn.locked()

    @property
    def was_dropped(self) -> bool:
        """Whether it was lost, or did not answer in time, so that others may be lost as well."""
        dropped = self._dropped or not (self.is_open or self.was_closed)
        return dropped and not self._discarded

    def lend(self, attempt: Attempt | None, database: object) -> None:
        """From here on it is that attempt's."""
        self.tracker.lend(attempt, database)
        self.ended = True

    async def undo(self) -> None:
        """Roll back what the attempt has left, within two seconds."""
        self.tracker.lend(None)
        idle = self.get_autocommit() and not self.get_transaction_status()
        if not (self.ended or idle):
            usual, self._bound = self._bound, UNDO_SECONDS
            try:
                await self.rollback()
            finally:
                self._bound = usual

    def cut(self) -> None:
        """End the connection now; who waits for an answer gets the driver's own exception."""
        link = self.link
        if link is not None:
            link.abort()

    def discard(self) -> None:
        """Close it, without a word to the server."""
        self._discarded = True
        self.cut()
        if not self.is_busy:  # else the driver does it, when it learns that there is an end
            self.close()

    async def query(self, sql: Any, unbuffered: bool = False) -> Any:
        """As in the driver; its cursors call this."""
        text = sql.encode(self._encoding, "surrogateescape") if isinstance(sql, str) else bytes(sql)
        return await self._send(text, super().query(text, unbuffered))

    async def commit(self) -> None:
        """As in the driver; a lost answer makes the outcome unknown (G4)."""
        await self._send(b"COMMIT", super().commit())
        self.ended = True

    async def rollback(self) -> None:
        """As in the driver."""
        await self._send(b"ROLLBACK", super().rollback())
        self.ended = True

    async def begin(self) -> None:
        """As in the driver; it commits what went before."""
        await self._send(b"BEGIN", super().begin())

    async def autocommit(self, value: Any) -> None:
        """As in the driver; switching it on commits."""
        await self._send(b"SET autocommit", super().autocommit(value))

    async def next_result(self, **options: Any) -> Any:
        """As in the driver."""
        return await self._send(READING, super().next_result(**options))

    async def show_warnings(self) -> Any:
        """As in the driver."""
        return await self._send(READING, super().show_warnings())

    async def select_db(self, db: str) -> None:
        """As in the driver; the connection goes to nobody else then."""
        await self._send(READING, super().select_db(db))
        self.tracker.touched = True

    async def set_charset(self, charset: str) -> None:
        """As in the driver."""
        await self._send(READING, super().set_charset(charset))

    async def ping(self, reconnect: bool = True) -> None:
        """As in the driver; but in an attempt it does not go on with half a transaction."""
        reconnect = reconnect and self.tracker.attempt is None
        await self._send(READING, super().ping(reconnect))

    async def kill(self, thread_id: int) -> Any:
        """As in the driver."""
        return await self._send(READING, super().kill(thread_id))

    def _read(self, packet: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """The packet as it is within a statement, which has its turn; else in turn and in time."""
        if self._sender is not None and self._sender is asyncio.current_task():
            return packet
        return self._send(READING, packet)

    async def _send(self, statement: bytes, answer: Coroutine[Any, Any, T]) -> T:
        """``await answer``, which sends the statement, in turn and in time, and tell the attempt.

        What the driver does for it by the other methods is a part of it.
        """
        task = asyncio.current_task()
        if self._sender is task:
            return await answer
        try:
            await self._turn.acquire()
        except BaseException:
            answer.close()  # it was not awaited, which would be complained about
            raise
        self._sender = task
        was_closed = self.was_closed
        begun = False
        timer = self._loop.call_later(self._bound, self._end_waiting)
        try:
            sent = statement if self.is_open else READING  # over a closed one nothing is sent
            autocommit = sent is not READING and self.get_autocommit()
            with self.tracker.sending(sent, autocommit=autocommit):
                begun, self.ended = True, False
                return await answer
        except self.errors as exc:
            if self._late:
                exc.__cause__ = TimeoutError(f"no answer in {self._bound} s")
            if not (self.is_open or was_closed):
                self._dropped = True
            raise
        except BaseException:  # cancelled, say: what comes next over it can't be known
            if begun:
                self.cut()
                self.close()
            raise
        finally:
            timer.cancel()
            self._sender = None
            self._turn.release()
            answer.close()

    def _end_waiting(self) -> None:
        self._late = True
        self.cut()
