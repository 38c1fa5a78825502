"""What database clients say, cut into packets: which ones are answered, which ones commit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_COMMIT: Final = re.compile(rb"\s*commit\b", re.IGNORECASE)


class Stream:
    """What one client says over one connection; this base class takes it as it comes."""

    opaque = True

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool, bool]]:
        """Yield every packet that `data` completes: (packet, is it a request, does it commit).

        A request is a packet sent after the login which the server answers.
        """
        self._buffer += data
        while not self.opaque and 0 < (size := self._size()) <= len(self._buffer):
            packet = bytes(self._buffer[:size])
            del self._buffer[:size]
            yield packet, *self._read(packet)
        if self.opaque and self._buffer:
            rest = bytes(self._buffer)
            self._buffer.clear()
            yield rest, False, False

    def committed(self, reply: bytes | bytearray) -> bool | None:
        """Whether `reply`, the bytes since a COMMIT, confirms it; None while that is open."""
        raise NotImplementedError

    def _size(self) -> int:
        """Return the size in bytes of the first packet in the buffer, 0 if it is not known yet."""
        raise NotImplementedError

    def _read(self, packet: bytes) -> tuple[bool, bool]:
        raise NotImplementedError


class MySQLStream(Stream):
    """Packets of the MySQL protocol, neither encrypted nor compressed."""

    opaque = False
    _command = b""  # the one being sent: it may span packets, and starts at sequence number 0
    _unanswered = (b"", b"\x01", b"\x18", b"\x19")  # quit, send long data, close statement

    def committed(self, reply: bytes | bytearray) -> bool | None:
        return reply[4] == 0 if len(reply) > 4 else None

    def _size(self) -> int:
        return 4 + int.from_bytes(self._buffer[:3], "little") if len(self._buffer) > 3 else 0

    def _read(self, packet: bytes) -> tuple[bool, bool]:
        sequence, payload = packet[3], packet[4:]
        if sequence == 0:
            self._command = payload[:1]
        elif sequence == 1 and len(payload) == 32 and payload[1] & 8:
            self.opaque = True  # CLIENT_SSL: from here on it is TLS
        if packet[:3] == b"\xff\xff\xff":
            return False, False
        command, self._command = self._command, b""
        text = payload[1:].removeprefix(b"\x00\x01")  # MySQL 8: "no query attributes"
        commits = sequence == 0 and command == b"\x03" and bool(_COMMIT.match(text))
        return command not in self._unanswered, commits


class PostgreSQLStream(Stream):
    """Messages of the PostgreSQL protocol, version 3, not encrypted."""

    opaque = False
    _started = False

    def __init__(self) -> None:
        super().__init__()
        self._statements: set[bytes] = set()  # the prepared ones that commit
        self._portals: set[bytes] = set()

    def committed(self, reply: bytes | bytearray) -> bool | None:
        if b"C\x00\x00\x00\x0bCOMMIT\x00" in reply:  # CommandComplete
            return True
        return False if b"Z\x00\x00\x00\x05" in reply else None  # ReadyForQuery

    def _size(self) -> int:
        if not self._started and self._buffer[:1] == b"\x16":
            self.opaque = True  # the server took the client up on its offer of TLS
            return 0
        start = 1 if self._started else 0
        length = self._buffer[start : start + 4]
        return start + int.from_bytes(length, "big") if len(length) == 4 else 0

    def _read(self, packet: bytes) -> tuple[bool, bool]:
        if not self._started:
            self._started = packet[4:6] == b"\x00\x03"  # else it asks for TLS, GSS or a cancel
            return False, False
        kind, (first, _, rest) = packet[:1], packet[5:].partition(b"\x00")
        if kind == b"P":
            _note(self._statements, first, bool(_COMMIT.match(rest)))
        elif kind == b"B":
            _note(self._portals, first, rest.partition(b"\x00")[0] in self._statements)
        commits = first in self._portals if kind == b"E" else kind == b"Q" and _COMMIT.match(first)
        return kind in b"QSHF", bool(commits)


def _note(names: set[bytes], name: bytes, commits: bool) -> None:
    (names.add if commits else names.discard)(name)


STREAMS: Final[dict[str | None, type[Stream]]] = {
    None: Stream,
    "mysql": MySQLStream,
    "postgresql": PostgreSQLStream,
}
