"""One attempt's wiring under ASGI: the receive and send that the app gets."""

from __future__ import annotations

import contextvars
from time import monotonic
from typing import Final

import anyio

from retrymw import _reply
from retrymw._context import Attempt, Running
from retrymw._core.exchange import Refuse
from retrymw._core.policy import is_async
from retrymw._recording import Recording
from retrymw._settings import Settings
from retrymw._threads import COMMITTING, in_thread
from retrymw.typing import Message, Receive, Scope, Send

__all__ = ["Run"]

_AHEAD_BYTES: Final = 1 << 16  # taken in during a wait, while listening for the client's leaving
_AHEAD_MESSAGES: Final = 256
_PIECE: Final = 1 << 16  # bytes of the recording in one message of a replay

# These stand for a body of their own, so they release what is held like body bytes do.
_WHOLE_BODIES: Final = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


class Run(Running):
    """One run of the app: its receive and send, and what of the request outlives it."""

    __slots__ = (
        "_asking",
        "_committing",
        "_held",
        "_held_bytes",
        "_holds_bodies",
        "_position",
        "_receive",
        "_send",
        "_told_end",
        "ahead",
        "context",
        "gone",
        "snapshot",
        "state",
        "status",
    )

    request: Scope

    def __init__(
        self,
        settings: Settings,
        scope: Scope,
        receive: Receive,
        send: Send,
        previous: Run | None = None,
    ) -> None:
        self.settings = settings
        self.request = scope
        self._receive = receive
        self._send = send
        self.over = False
        self.endpoint = None
        self.broken = None
        self._committed = False
        self._committing: anyio.Lock | None = None
        self.status: int | None = None
        self.released = False
        self._held: list[Message] | None = None
        self._held_bytes = 0
        self._holds_bodies = True  # until a start below 500 says otherwise
        self._position = 0
        self._told_end = False
        self._asking = 0
        if previous is None:
            self.started = monotonic()
            self.number = 1
            self._attempt = None
            self.snapshot = dict(scope)
            state = scope.get("state")
            self.state = dict(state) if state is not None else None
            self.context = contextvars.copy_context()
            self.recording = None
            self.ahead: list[Message] | None = None
            self.gone = False
        else:
            self.started, self.context = previous.started, previous.context
            self.number = previous.exchange.number
            self._attempt = Attempt(previous.exchange, self)
            self.snapshot, self.state = previous.snapshot, previous.state
            self.recording, self.ahead = previous.recording, previous.ahead
            self.gone = previous.gone

    @property
    def method(self) -> str:
        return str(self.snapshot["method"])

    @property
    def path(self) -> str:
        """The request's path, as it came."""
        return str(self.snapshot["path"])

    @property
    def body_is_taken(self) -> bool:
        """Whether a task that outlives the attempt waits for the body: it takes what can't be
        replayed."""
        return self._asking > 0 and not (self.recording is not None and self.recording.ended)

    def again(self, receive: Receive, send: Send) -> Run:
        """The wiring of the next attempt; the scope is what it was, the body starts at byte 0."""
        self.request.clear()
        self.request.update(self.snapshot)
        if self.state is not None:
            state = self.request["state"]
            state.clear()
            state.update(self.state)
        return Run(self.settings, self.request, receive, send, self)

    def close(self) -> None:
        """The attempt has failed: what still runs of it reaches neither the client nor the body."""
        self.over = True
        self.released = True
        self._held = None
        self._send = _discard

    def forget_body(self) -> None:
        """The exchange is over."""
        if self.recording is not None:
            self.recording.close()

    # The request.

    async def receive(self) -> Message:
        """The app's ``receive``: the recording first, then live, recorded as it is handed over."""
        recording = self.recording
        if self._has_failed():
            return _gone()
        if recording is not None and not self._told_end:
            if self._position < recording.size and not recording.dropped:
                return await self._replayed(recording)
            if recording.ended:
                self._told_end = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if recording.full:
                # Before taking in more, not after: a cancelled receive() must lose nothing.
                await in_thread(recording.spill)
        if self.ahead:
            message = self.ahead.pop(0)
        else:
            self._asking += 1
            try:
                message = await self._receive()
            finally:
                self._asking -= 1
        if self._has_failed():
            return _gone()
        kind = message["type"]
        if kind == "http.request" and not self._told_end:
            self._record(message)
        elif kind == "http.disconnect":
            self.gone = True
        return message

    def _has_failed(self) -> bool:
        return self._send is _discard

    def _record(self, message: Message) -> None:
        recording = self.recording
        if recording is None:
            policy = self.settings.policy
            recording = self.recording = Recording(policy.body_memory, policy.body_limit)
        body = message.get("body", b"")
        if body:
            recording.add(body)
            self._position += len(body)
        if not message.get("more_body", False):
            recording.ended = self._told_end = True

    async def _replayed(self, recording: Recording) -> Message:
        if recording.on_disk(self._position):
            body = await in_thread(recording.read, self._position, _PIECE)
        else:
            body = recording.read(self._position, _PIECE)
        self._position += len(body)
        more = self._position < recording.size or not recording.ended
        self._told_end = not more
        return {"type": "http.request", "body": body, "more_body": more}

    @property
    def may_listen(self) -> bool:
        """Whether listening for the client's leaving can't do harm now.

        Until the body is over, listening takes it in. A little of that is harmless once the app has
        begun to read; a client that waits for 100-continue must not be told to send.
        """
        if self._body_is_over():
            return True
        if self.recording is not None and self.recording.dropped:
            return False
        ahead = self.ahead or ()
        if self.recording is None and any(name == b"expect" for name, _ in self.request["headers"]):
            return False
        taken = sum(len(message.get("body", b"")) for message in ahead)
        return taken < _AHEAD_BYTES and len(ahead) < _AHEAD_MESSAGES

    def _body_is_over(self) -> bool:
        if self.recording is not None and self.recording.ended:
            return True
        return any(not message.get("more_body", False) for message in self.ahead or ())

    async def listen(self, receive: Receive) -> None:
        """Return when the client has left; what comes of the body meanwhile is kept for the app."""
        while self.may_listen:
            over = self._body_is_over()
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                return
            if over:
                break  # a server that repeats itself would keep us busy
            if self.ahead is None:
                self.ahead = []
            self.ahead.append(message)
        await anyio.sleep_forever()

    # The response.

    async def send(self, message: Message) -> None:
        """The app's ``send``: holds the response until it is worth its bytes, then passes it on."""
        held = self._held
        if self.released and held is None:
            return await self._send(message)
        if self.broken is not None:
            raise self.broken
        if held is None:
            self._held = held = []
        kind = message["type"]
        if kind == "http.response.start":
            # Copied, since the app may use both again; headers may be something that is read once.
            message = dict(message)
            headers = message.get("headers")
            if headers is not None:
                message["headers"] = headers = list(headers)
            held.append(message)
            self.status = status = message["status"]
            if status < 500 and not self.settings.holds_all:
                self._holds_bodies = False
                for name, value in headers or ():
                    if name == b"content-type":
                        if value.startswith(b"text/event-stream"):
                            await self.release()
                        break
            return None
        if self._holds_bodies:
            self._held_bytes += len(message.get("body", b""))
            ready = self._held_bytes > self.settings.policy.body_memory
        elif kind == "http.response.body":
            ready = message.get("body") or not message.get("more_body")
        else:
            ready = kind in _WHOLE_BODIES
        held.append(message if ready else dict(message))
        if ready:
            await self.release()
        return None

    async def commit(self) -> None:
        """Commit what the attempt leaves, once, if its response is worth it."""
        if self._committing is None:
            self._committing = anyio.Lock()
        async with self._committing:  # who comes meanwhile waits, and hears of it if it fails
            for database in self.to_commit(self.status):
                try:
                    if is_async(database.commit):
                        await database.commit(self.attempt)
                    else:
                        commit = (database.commit, self.attempt)
                        await in_thread(*commit, abandon=True, limited=COMMITTING)
                except BaseException as exc:
                    self._held = None  # the client is not told of what did not come about
                    self.broke(exc)
                    raise

    async def release(self) -> None:
        """Send what is held, in its order; from here on the response passes through."""
        held = self._held
        if held is None or self.released:
            return
        if self.settings.units and not self.over:
            if self._committing is not None and self._committing.locked():
                return  # another task's message: it is sent with the rest
            await self.commit()
            if self.released or self._held is None:
                return
        self.released = True
        if self.recording is not None:
            self.recording.stop()
        if self.number > 1 or self.settings.always_told:
            self.exchange.seal("response")
            held[:] = [self._exposed(message) for message in held]
        try:
            for message in held:  # what another task sends meanwhile is put at the end
                await self._send(message)
        finally:
            self._held = None

    def _exposed(self, message: Message) -> Message:
        if message["type"] != "http.response.start":
            return message
        report = self.exchange.report(monotonic(), self.path)
        headers = list(message.get("headers", ()))
        told = _reply.missing(
            _reply.headers(report, self.settings.policy.expose),
            (bytes(name).decode("latin-1") for name, _ in headers),
        )
        return {**message, "headers": headers + _raw(told)}

    async def refuse(self, refusal: Refuse, send: Send) -> None:
        """Answer 503."""
        accept = b",".join(
            value for name, value in self.request["headers"] if name.lower() == b"accept"
        )
        report = self.exchange.report(monotonic(), self.path)
        headers, body = _reply.reply(
            refusal, report, self.settings.policy.expose, accept.decode("latin-1")
        )
        await send(
            {
                "type": "http.response.start",
                "status": _reply.STATUS,
                "headers": _raw(headers),
            }
        )
        if self.exchange.method == "HEAD":
            body = b""
        await send({"type": "http.response.body", "body": body})


def _raw(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def _discard(message: Message) -> None:
    """The ``send`` of an attempt that is over."""


def _gone() -> Message:
    """What an attempt that has failed receives."""
    return {"type": "http.disconnect"}
