"""One call of an app: which message may come when, for each protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, NamedTuple

from retrymw.testing.validate._body import Body
from retrymw.testing.validate._shapes import (
    RECEIVED,
    SCOPES,
    SENT,
    checked_headers,
    require,
    require_data,
    require_shape,
    rereadable,
    type_of,
)
from retrymw.typing import Message, Scope

__all__ = ["PROTOCOLS"]


class Step(NamedTuple):
    """When a message may come, and what it leads to.

    Attributes:
        when: the states in which it may come.
        then: the state it leads to; empty if it changes nothing.
        more: the key that says that there is more to come.
        meanwhile: the state until then.
        extension: what must have been offered, if anything.
    """

    when: tuple[str, ...]
    then: str = ""
    more: str = ""
    meanwhile: str = ""
    extension: str = ""

    def after(self, state: str, message: Message) -> str:
        if self.more and message.get(self.more, False):
            return self.meanwhile
        return self.then or state


class Call:
    """One call of the app: how far it and the server have come, and what was wrong first."""

    receives: ClassVar[Mapping[str, Step]]
    sends: ClassVar[Mapping[str, Step]]
    noun: ClassVar[str]  # whose state it is that `sends` knows
    ends: ClassVar[tuple[str, ...]]  # the states in which the app may return

    def __init__(self, scope: Scope) -> None:
        kind = scope["type"]
        require_shape(f"the {kind} scope", scope, SCOPES[kind])
        headers = scope.get("headers", ())
        if not isinstance(headers, Iterator):  # looking at one would use it up
            checked_headers(f"the {kind} scope", headers)
        self.scope = scope
        self.extensions = frozenset(scope.get("extensions") or ())
        self.state, self.heard = "not begun", "at first"
        self.violation: AssertionError | None = None
        self.receiving = 0
        self.gone = self.overlaps = self.over = False

    def note(self, check: Any, *args: Any) -> Any:
        """Do the check; the first violation of all is remembered."""
        try:
            return check(*args)
        except AssertionError as exc:
            self.violation = self.violation or exc
            raise

    def received(self, message: Message) -> None:
        """Check what the server gives."""
        kind = type_of(message, "the received message")
        if kind in self.extensions and kind not in self.receives:
            return
        require(kind in self.receives, f"{kind!r} was received, which is no message of a server")
        require_shape(f"the received {kind!r}", message, RECEIVED[kind])
        self.check_received(kind, message)
        # Of two messages that were asked for at once it can't be told which came first.
        if not self.overlaps:
            step = self.receives[kind]
            require(self.heard in step.when, f"{kind!r} was received {self.heard}")
            self.heard = step.after(self.heard, message)
        self.gone |= kind.endswith(".disconnect")

    def sent(self, message: Message) -> Message:
        """Check what the app sends; returns what can be passed on."""
        kind = type_of(message, "the sent message")
        require(not self.over, f"{kind!r} was sent after the app had ended")
        if kind in self.extensions and kind not in self.sends:
            return message
        require(kind in self.sends, f"{kind!r} was sent, which is no message of an app")
        step = self.sends[kind]
        offered = not step.extension or step.extension in self.extensions
        require(offered, f"{kind!r} was sent, and {step.extension!r} is not offered")
        require_shape(f"the sent {kind!r}", message, SENT[kind])
        require(self.state in step.when, f"{kind!r} was sent when {self.noun} was {self.state}")
        message = rereadable(message)
        headers = checked_headers(f"the sent {kind!r}", message.get("headers", ()))
        state = step.after(self.state, message)
        self.state = self.check_sent(kind, message, headers, state) or state
        return message

    def returned(self, result: object) -> None:
        """Check how the app leaves."""
        if self.violation is not None:
            raise self.violation
        require(result is None, f"the app returned {result!r}; allowed: None")
        require(
            self.gone or self.state in self.ends,
            f"the app returned when {self.noun} was {self.state}",
        )

    def check_received(self, kind: str, message: Message) -> None:
        """What only this protocol demands."""

    def check_sent(
        self, kind: str, message: Message, headers: list[tuple[bytes, bytes]], state: str
    ) -> str | None:
        """What only this protocol demands; returns another state than this to come, or None."""


class _HTTP(Call):
    """Sections "HTTP" and, for what is sent besides, "Extensions"."""

    receives: ClassVar = {
        "http.request": Step(("at first",), "after the whole body", "more_body", "at first"),
        "http.disconnect": Step(
            ("at first", "after the whole body", "after the disconnect"), "after the disconnect"
        ),
    }
    # A hint or push is specified to come after the start. Hypercorn and uvicorn send the hints that
    # come before it, as RFC 8297 has them, and so does Quart its pushes.
    sends: ClassVar = {
        "http.response.debug": Step(
            ("not begun",), "still to begin", extension="http.response.debug"
        ),
        "http.response.early_hint": Step(
            ("not begun", "still to begin", "begun", "in its body"),
            extension="http.response.early_hint",
        ),
        "http.response.push": Step(
            ("not begun", "still to begin", "begun", "in its body"), extension="http.response.push"
        ),
        "http.response.start": Step(("not begun", "still to begin"), "begun"),
        "http.response.body": Step(
            ("begun", "in its body"), "complete", "more_body", "in its body"
        ),
        "http.response.zerocopysend": Step(
            ("begun", "in its body"),
            "complete",
            "more_body",
            "in its body",
            "http.response.zerocopysend",
        ),
        "http.response.pathsend": Step(("begun",), "complete", extension="http.response.pathsend"),
        "http.response.trailers": Step(
            ("to have trailers",),
            "complete",
            "more_trailers",
            "to have trailers",
            "http.response.trailers",
        ),
    }
    noun = "the response"
    ends = ("complete",)
    body: Body
    trailers = False

    def check_sent(
        self, kind: str, message: Message, headers: list[tuple[bytes, bytes]], state: str
    ) -> str | None:
        if kind == "http.response.start":
            self.body = Body(self.scope["method"], message["status"], headers)
            self.trailers = message.get("trailers", False)
            require(
                not self.trailers or "http.response.trailers" in self.extensions,
                "the response is to have trailers, and 'http.response.trailers' is not offered",
            )
        elif kind == "http.response.early_hint":
            for link in message["links"]:
                require(
                    isinstance(link, bytes), f"the sent {kind!r}: link {link!r}; allowed: bytes"
                )
        elif kind in ("http.response.pathsend", "http.response.zerocopysend"):
            self.body.add_file()
        elif kind == "http.response.body":
            self.body.add(message.get("body", b""))
        if state == "complete" and kind != "http.response.trailers":
            self.body.end()
            return "to have trailers" if self.trailers else None
        return None


class _WebSocket(Call):
    """Sections "WebSocket" and, of the extensions, "Websocket Denial Response"."""

    receives: ClassVar = {
        "websocket.connect": Step(("at first",), "after the connect"),
        "websocket.receive": Step(("after the connect",)),
        "websocket.disconnect": Step(
            ("after the connect", "after the disconnect"), "after the disconnect"
        ),
    }
    sends: ClassVar = {
        "websocket.accept": Step(("not begun",), "accepted"),
        "websocket.send": Step(("accepted",)),
        "websocket.close": Step(("not begun", "accepted"), "closed"),
        "websocket.http.response.start": Step(
            ("not begun",), "being denied", extension="websocket.http.response"
        ),
        "websocket.http.response.body": Step(
            ("being denied",), "closed", "more_body", "being denied", "websocket.http.response"
        ),
    }
    noun = "the connection"
    ends = ("accepted", "closed")  # the server closes what is open
    body: Body

    def check_received(self, kind: str, message: Message) -> None:
        if kind == "websocket.receive":
            require_data(kind, message)
            require(
                self.state in ("accepted", "closed"),
                f"{kind!r} was received when the connection was {self.state}",
            )

    def check_sent(
        self, kind: str, message: Message, headers: list[tuple[bytes, bytes]], state: str
    ) -> str | None:
        if kind == "websocket.send":
            require_data(kind, message)
        elif kind == "websocket.accept":
            require(
                all(name != b"sec-websocket-protocol" for name, _ in headers),
                "the sent 'websocket.accept' names the subprotocol in a header",
            )
            chosen, offered = message.get("subprotocol"), self.scope.get("subprotocols", ())
            require(  # RFC 6455, section 4.2.2
                chosen is None or isinstance(offered, Iterator) or chosen in offered,
                f"subprotocol {chosen!r} was accepted, which the client does not know",
            )
        elif kind == "websocket.http.response.start":
            self.body = Body("GET", message["status"], headers)
        elif kind == "websocket.http.response.body":
            self.body.add(message.get("body", b""))
            if state == "closed":
                self.body.end()
        return None


class _Lifespan(Call):
    """The specification "Lifespan Protocol"."""

    receives: ClassVar = {
        "lifespan.startup": Step(("at first",), "after the startup"),
        "lifespan.shutdown": Step(("after the startup",), "after the shutdown"),
    }
    sends: ClassVar = {
        "lifespan.startup.complete": Step(("starting",), "up"),
        "lifespan.startup.failed": Step(("starting",), "failed"),
        "lifespan.shutdown.complete": Step(("shutting down",), "down"),
        "lifespan.shutdown.failed": Step(("shutting down",), "failed"),
    }
    noun = "the app"
    ends = ("not begun", "up", "down", "failed")

    def check_received(self, kind: str, message: Message) -> None:
        if kind == "lifespan.shutdown":
            require(self.state == "up", f"{kind!r} was received when the app was {self.state}")
        self.state = "starting" if kind == "lifespan.startup" else "shutting down"


PROTOCOLS: Final[Mapping[str, type[Call]]] = {
    "http": _HTTP,
    "websocket": _WebSocket,
    "lifespan": _Lifespan,
}
