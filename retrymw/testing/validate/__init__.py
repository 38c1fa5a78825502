"""A strict check of both sides of an ASGI app, as :mod:`wsgiref.validate` has it for WSGI.

The rules are those of https://asgi.readthedocs.io/en/latest/: "ASGI Specification" 3.0, "HTTP &
WebSocket ASGI Message Format" 2.5, "Lifespan Protocol" 2.0, and "Extensions". Which keys a message
has stands in ``_shapes``; when it may come, in ``_calls``.
"""

from __future__ import annotations

from typing import Any

from retrymw.testing.validate._calls import PROTOCOLS
from retrymw.testing.validate._shapes import require, type_of
from retrymw.typing import ASGIApp, Message, Receive, Scope, Send

__all__ = ["validator"]


def validator(app: ASGIApp) -> ASGIApp:
    """Wrap an ASGI 3 app, so that what breaks the rules raises, on either side of it.

    It checks the scope and the messages of the server, and the messages and the return of the app:
    keys, types, order, headers, the length of the body, and that only extensions are used that were
    offered. It changes nothing: the app gets the same scope object, and its exceptions pass. An app
    whose client has left need not finish its response, and connections that are neither HTTP nor
    websocket nor lifespan pass unchecked. Put it around a middleware and around the app within, and
    it checks both sides of the middleware too.

    Args:
        app: an ASGI 3 app. It runs on any event loop.

    Raises:
        AssertionError: naming the rule that is broken. A scope raises at once, a message from
            ``receive()`` or ``send()``, and from the call when the app has ended, whatever the app
            made of it.
    """

    async def validated(scope: Scope, receive: Receive, send: Send) -> Any:
        protocol = PROTOCOLS.get(type_of(scope, "the scope"))
        if protocol is None:
            return await app(scope, receive, send)
        call = protocol(scope)

        async def checked_receive() -> Message:
            call.receiving += 1
            call.overlaps |= call.receiving > 1
            try:
                message = await receive()
            finally:
                call.receiving -= 1
            call.note(call.received, message)
            return message

        async def checked_send(message: Message) -> None:
            message = call.note(call.sent, message)
            try:
                answer: object = await send(message)  # type: ignore[func-returns-value]
            except Exception:
                call.gone = True
                raise
            call.note(require, answer is None, f"send() returned {answer!r}; allowed: None")

        try:
            result = await app(scope, checked_receive, checked_send)
        except Exception as exc:
            if call.violation not in (None, exc):
                raise call.violation from None  # it has been hidden, or wrapped in a group
            raise
        finally:
            call.over = True
        call.note(call.returned, result)
        return result

    return validated
