"""Listening for the client between two attempts, without taking anything away from the next."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final

import anyio
import anyio.lowlevel

from retrymw._tasks import Signal, Tasks
from retrymw.typing import Message, Receive

__all__ = ["Listener"]

_MOST_BYTES: Final = 1 << 16  # of the body that are taken in while nobody reads
_MOST_MESSAGES: Final = 256


class Listener:
    """Asks the server for messages, and keeps for the app what of the body they bring.

    A ``receive()`` of the server's is not cancelled before the exchange is over: one that is
    cancelled may lose what it was about to give, as that of Starlette's BaseHTTPMiddleware does.

    Args:
        receive: the server's.
        tasks: those of the exchange; it asks in one of them.
    """

    __slots__ = ("_asking", "_error", "_heard", "_news", "_receive", "_tasks")

    def __init__(self, receive: Receive, tasks: Tasks) -> None:
        self._receive = receive
        self._tasks = tasks
        self._asking = False
        self._news: Signal | None = None
        self._error: BaseException | None = None
        self._heard: list[Message] = []

    @property
    def is_next(self) -> bool:
        """Whether the next message is to be had from here."""
        return bool(self._heard) or self._asking or self._error is not None

    @property
    def heard_the_end(self) -> bool:
        """Whether the end of the body is among what it keeps."""
        return any(not message.get("more_body", False) for message in self._heard)

    @property
    def is_full(self) -> bool:
        """Whether it keeps as much as it may."""
        taken = sum(len(message.get("body", b"")) for message in self._heard)
        return taken >= _MOST_BYTES or len(self._heard) >= _MOST_MESSAGES

    def hear(self) -> Coroutine[Any, Any, Message]:
        """Wait for one more message, and keep it; a disconnect that came meanwhile is that one."""
        number = len(self._heard)
        if number and self._heard[-1]["type"] == "http.disconnect":
            number -= 1  # it came while nobody waited, and servers may say it only once
        return self._message(number)

    def forget_last(self) -> None:
        """The last message was no part of the body."""
        self._heard.pop()

    async def take(self) -> Message:
        """The next message, for the app."""
        await self._message(0)
        return self._heard.pop(0)

    async def _message(self, number: int) -> Message:
        while len(self._heard) <= number:
            if self._error is not None:
                raise self._error
            if self._news is None:
                self._news = self._tasks.signal()
            news = self._news
            if not self._asking:
                self._asking = True
                self._tasks.start_soon(self._ask)
            # After these the server has been asked, and what it had is here: a wait of no time is
            # worth that much.
            await anyio.lowlevel.cancel_shielded_checkpoint()
            await anyio.lowlevel.cancel_shielded_checkpoint()
            if self._news is news:
                await news.wait()
        return self._heard[number]

    async def _ask(self) -> None:
        try:
            self._heard.append(await self._receive())
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:  # noqa: BLE001  # it is raised where the message is waited for
            self._error = exc
        self._asking = False
        news, self._news = self._news, None
        if news is not None:
            news.set()
