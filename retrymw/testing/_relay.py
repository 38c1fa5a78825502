"""The proxy's sockets: a port to listen on, and one connection that is relayed until it is cut."""

from __future__ import annotations

import os
import random
import selectors
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Literal

from retrymw.testing._wire import Stream

How = Literal["reset", "fin", "blackhole"]
Moment = Literal["connect", "before-commit", "commit"]

_CHUNK: Final = 1 << 16
_BACKLOG: Final = 1 << 20  # bytes one side may owe the other before no more are read
_SHARES: Final = 64
_RESET: Final = struct.pack("ii", 1, 0)


def listen(port: int | None = None) -> socket.socket:
    """Listen on 127.0.0.1, on `port` or on a free port from 15000 to 32767.

    Not above: those ports are handed out to clients, and a client that is given the very port it
    wants to reach is connected to itself while the server is down. And each process has a share of
    its own, or the port of a server that is down for a while may become another process's.
    Raises OSError.
    """
    share = range(15000 + os.getpid() % _SHARES, 32768, _SHARES)
    candidates = random.sample(share, 100) if port is None else [port]
    while True:
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", candidates.pop()))
            listener.listen(1024)
        except OSError:
            listener.close()
            if not candidates:
                raise
        else:
            listener.setblocking(False)
            return listener


class Relay:
    """The two sockets of one connection. Not thread safe: the proxy's lock guards it.

    `rule(relay, moment)` says how to cut the connection at that moment, if at all. The moments
    are those of `FaultProxy.cut`, and "request". `struck()` is called just before that
    is done.
    """

    def __init__(
        self,
        client: socket.socket,
        stream: Stream,
        selector: selectors.BaseSelector,
        rule: Callable[[Relay, Moment | Literal["request"]], How | None],
        struck: Callable[[], None],
    ) -> None:
        self.silent = False
        self._fate: How | None = None  # at the answer to what is under way to the database
        self._client = client
        self._upstream = socket.socket()
        self._stream = stream
        self._selector = selector
        self._rule = rule
        self._struck = struck
        self._unsent = {self._client: bytearray(), self._upstream: bytearray()}
        self._held: bytearray | None = None  # the reply to a COMMIT, while it is incomplete
        for sock in self._unsent:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def open(self) -> bool:
        """Whether the client is still connected."""
        return _is_open(self._client)

    @property
    def over(self) -> bool:
        """Whether both sides are closed."""
        return not (self.open or _is_open(self._upstream))

    def connect(self, address: tuple[str, int]) -> None:
        """Begin to relay; `address` is that of the database."""
        if how := self._rule(self, "connect"):
            self._strike(how)
        else:
            self._upstream.connect_ex(address)
            self._watch()

    def handle(self, sock: socket.socket, events: int) -> None:
        """Do what the selector says can be done with `sock`."""
        if events & selectors.EVENT_WRITE and _is_open(sock):
            self._send(sock)
        # What could be read when it was silenced meanwhile would arrive with a hole before it.
        if events & selectors.EVENT_READ and _is_open(sock) and not self.silent:
            self._receive(sock)

    def cut(self, how: How) -> None:
        """End or silence the connection; the database still gets what was under way to it."""
        self.silent = how == "blackhole"
        self._unsent[self._client].clear()
        if how == "reset":
            self._reset_at_close(self._client)
        elif how == "fin":
            self._empty(self._client)
        if not self.silent:
            self._close(self._client)
        self._watch()

    def end_silence(self) -> None:
        """Reset the connection if it is silent, or will be with the next answer."""
        if self.silent:
            self.cut("reset")
        elif self._fate == "blackhole":
            self._fate = "reset"

    def close(self) -> None:
        """Close both sides at once."""
        for sock in self._unsent:
            self._close(sock)

    def _strike(self, how: How) -> None:
        self._fate = None
        self._struck()
        self.cut(how)

    @staticmethod
    def _reset_at_close(sock: socket.socket) -> None:
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    @staticmethod
    def _empty(sock: socket.socket) -> None:
        """Read what has arrived: to close with bytes unread would send a RST."""
        with suppress(OSError):
            for _ in range(64):
                if not sock.recv(_CHUNK):
                    break

    def _send(self, sock: socket.socket) -> None:
        try:
            sent = sock.send(self._unsent[sock])
        except BlockingIOError:
            return
        except OSError:  # reading will tell why, after what the peer said last
            sent = len(self._unsent[sock])
        del self._unsent[sock][:sent]
        self._watch()

    def _receive(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:  # reset, or never connected: the other side is to see a reset, too
            self._reset_at_close(self._client if sock is self._upstream else self._upstream)
            data = b""
        if self._fate:  # answered; or the client goes on, and may get no answer before it is done
            self._strike(self._fate)
        elif not data:
            self._let_go()
            self._close(sock)
        elif sock is self._upstream:
            self._from_upstream(data)
        else:
            self._from_client(data)
        self._watch()

    def _from_client(self, data: bytes) -> None:
        packets = list(self._stream.feed(data))
        for number, (packet, is_request, commits) in enumerate(packets, start=1):
            if commits and (how := self._rule(self, "before-commit")):
                self._strike(how)
                return
            if commits and self._held is None:
                self._held = bytearray()
            self._unsent[self._upstream] += packet
            if is_request and (how := self._rule(self, "request")):
                self._fate = how
                if number < len(packets):
                    self._strike(how)
                return

    def _from_upstream(self, data: bytes) -> None:
        if self._held is None:
            self._unsent[self._client] += data
            return
        self._held += data
        committed = self._stream.committed(self._held)
        if committed and (how := self._rule(self, "commit")):
            self._strike(how)
        elif committed is not None:
            self._let_go()

    def _let_go(self) -> None:
        self._unsent[self._client] += self._held or b""
        self._held = None

    def _watch(self) -> None:
        """Wait for what can happen next; close a side that has lost its peer and got its due."""
        client, upstream = self._unsent
        for sock, peer in ((client, upstream), (upstream, client)):
            if not (self.silent or _is_open(peer) or self._unsent[sock]):
                self._close(sock)
                continue
            events = selectors.EVENT_WRITE if self._unsent[sock] else 0
            if not self.silent and _is_open(peer) and len(self._unsent[peer]) < _BACKLOG:
                events |= selectors.EVENT_READ
            self._register(sock, events)

    def _register(self, sock: socket.socket, events: int) -> None:
        if not _is_open(sock):
            return
        key = self._selector.get_map().get(sock)
        if key and not events:
            self._selector.unregister(sock)
        elif key and key.events != events:
            self._selector.modify(sock, events, self)
        elif events and not key:
            self._selector.register(sock, events, self)

    def _close(self, sock: socket.socket) -> None:
        self._register(sock, 0)
        sock.close()


def _is_open(sock: socket.socket) -> bool:
    return sock.fileno() >= 0
