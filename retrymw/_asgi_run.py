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
from retrymw._listening import Listener
from retrymw._recording import Recording
from retrymw._settings import Settings
from retrymw._threads import COMMITTING, in_thread
from retrymw.typing import Message, Receive, Scope, Send

__all__ = ["Run"]

_PIECE: Final = 1 << 16  # bytes of the recording in one message of a replay

# These stand for a body of their own, so they release what is held like body bytes do.
_WHOLE_BODIES: Final = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


class Run(Running):
    """One run of the app: its receive and send, and what of the request outlives it."""

    __slots__ = (
        "_answered",
        "_asking",
        "_committing",
        "_held",
        "_held_bytes",
        "_holds_bodies",
        "_position",
        "_receive",
        "_send",
        "_told_end",
        "_turn",
        "_waiting",
        "context",
        "gone",
        "listener",
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
        self._answered = False  # the response is complete, and held
        self._waiting: set[anyio.CancelScope] | None = None  # for that
        if previous is None:
            self.started = monotonic()
            self.number = 1
            self._attempt = None
            self.place = None
            self.snapshot = dict(scope)
            state = scope.get("state")
            self.state = dict(state) if state is not None else None
            self.context = contextvars.copy_context()
            self.recording = None
            self.listener: Listener | None = None
            self.gone = False
            self._turn: anyio.Lock | None = None
        else:
            self.started, self.context = previous.started, previous.context
            self.number = previous.exchange.number
            self._attempt = Attempt(previous.exchange, self)
            self.place = previous.place
            self.snapshot, self.state = previous.snapshot, previous.state
            self.recording, self.listener = previous.recording, previous.listener
            self.gone = previous.gone
            self._turn = previous._turn

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
                if recording.closed:
                    return _gone()  # the exchange is over
                return await self._replayed(recording)
            if recording.ended:
                self._told_end = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if recording.full:
                # Before taking in more, not after: a cancelled receive() must lose nothing.
                await self._spill(recording)
                if self._has_failed():
                    return _gone()  # meanwhile; what comes now is the next attempt's
        self._asking += 1
        try:
            message = await self._next()
        finally:
            self._asking -= 1
        if message is None or self._has_failed():
            return _gone()
        kind = message["type"]
        if kind == "http.request" and not self._told_end:
            self._record(message)
        elif kind == "http.disconnect":
            self.gone = True
        return message

    async def _next(self) -> Message | None:
        """What the server says next; None once a response that is held is complete.

        To the app it is sent then, and what follows that is that the client leaves.
        """
        listener = self.listener
        heard = listener is not None and listener.is_next
        receive = listener.take if listener is not None and heard else self._receive
        if not self._told_end or self.released:
            return await receive()
        if not self._answered:
            with anyio.CancelScope() as waiting:
                if self._waiting is None:
                    self._waiting = set()
                self._waiting.add(waiting)
                try:
                    return await receive()
                finally:
                    self._waiting.discard(waiting)
        return None

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
        position = self._position
        if not recording.on_disk(position):
            return self._rewound(recording, recording.read(position, _PIECE))
        async with self._disk_turn():
            if self._position == position:
                body = await in_thread(recording.read, position, _PIECE)
                return self._rewound(recording, body)
        return await self.receive()  # another task of the app has read this meanwhile

    def _rewound(self, recording: Recording, body: bytes) -> Message:
        self._position += len(body)
        more = self._position < recording.size or not recording.ended
        self._told_end = not more
        return {"type": "http.request", "body": body, "more_body": more}

    async def _spill(self, recording: Recording) -> None:
        async with self._disk_turn():
            if not recording.full:
                return
            if self._asking:
                recording.drop()  # another task may be given a chunk while the disk is busy
            else:
                await in_thread(recording.spill)

    def _disk_turn(self) -> anyio.Lock:
        """Who uses the disk: one task of the app at a time, of any attempt."""
        if self._turn is None:
            self._turn = anyio.Lock()
        return self._turn

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
        if self.recording is None and any(name == b"expect" for name, _ in self.request["headers"]):
            return False
        return self.listener is None or not self.listener.is_full

    def _body_is_over(self) -> bool:
        if self.recording is not None and self.recording.ended:
            return True
        return self.listener is not None and self.listener.heard_the_end

    async def listen(self) -> None:
        """Return when the client has left; what comes of the body meanwhile is kept for the app."""
        listener = self.listener
        while listener is not None and self.may_listen:
            over = self._body_is_over()
            if (await listener.hear())["type"] == "http.disconnect":
                self.gone = True
                return
            if over:
                listener.forget_last()
                break  # a server that repeats itself would keep us busy
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
            if not ready and _is_last(message, held):
                self._answered = True
                for waiting in self._waiting or ():
                    waiting.cancel()
        elif kind == "http.response.body":
            ready = message.get("body") or not message.get("more_body")
        else:
            ready = kind in _WHOLE_BODIES
        held.append(message if ready else _copied(message))
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
        if self.place is not None:
            self.settings.rooms.answered(self, self.status)

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


def _is_last(message: Message, held: list[Message]) -> bool:
    """Whether the response of which so much is held ends with this message."""
    kind = message["type"]
    if any(start.get("trailers") for start in held):  # what precedes a start has none
        return kind == "http.response.trailers" and not message.get("more_trailers")
    return (kind == "http.response.body" or kind in _WHOLE_BODIES) and not message.get("more_body")


def _raw(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _copied(message: Message) -> Message:
    """What is held of a message that the app may use again, with a buffer as its body too."""
    copy = dict(message)
    body = copy.get("body")
    if body is not None and not isinstance(body, bytes):
        copy["body"] = bytes(body)
    return copy


async def _discard(message: Message) -> None:
    """The ``send`` of an attempt that is over."""


def _gone() -> Message:
    """What an attempt that has failed receives."""
    return {"type": "http.disconnect"}
