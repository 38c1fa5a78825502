"""``wsgi.input`` with a recording: bytes are recorded as the app reads them, and read again."""

from __future__ import annotations

import io
from typing import Any, Final

from retrymw._recording import Recording

__all__ = ["RecordedInput"]

_PIECE: Final = 1 << 16  # bytes


class RecordedInput(io.RawIOBase):
    """A file-like object over the server's input, at byte 0 whatever earlier attempts have read.

    A live read is as long, or as short, as the server's. Where the recording ends within a read,
    the rest comes from the server. What ``io.RawIOBase`` has besides, iteration over lines for one,
    comes of these methods.
    """

    def __init__(self, live: Any, recording: Recording) -> None:
        self._live = live
        self._recording = recording
        self._position = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes; all that is left if negative or None."""
        wanted = -1 if size is None or size < 0 else size
        parts = []
        while self._behind and wanted != 0:
            missing = self._recording.size if wanted < 0 else wanted
            part = self._recording.read(self._position, missing)
            parts.append(part)
            self._position += len(part)
            wanted = wanted if wanted < 0 else wanted - len(part)
        # Not every server's read() takes -1: all that is left is read in pieces.
        while wanted != 0 and not self._recording.ended:
            parts.append(self._record(self._live.read(wanted if wanted > 0 else _PIECE)))
            wanted = min(wanted, 0)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readline(self, size: int | None = -1, /) -> bytes:
        """Up to the next line end, and up to ``size`` bytes if that is not negative."""
        wanted = -1 if size is None or size < 0 else size
        line = b""
        while self._behind and wanted != 0 and not line.endswith(b"\n"):
            missing = self._recording.size if wanted < 0 else wanted
            part = self._recording.readline(self._position, missing)
            line += part
            self._position += len(part)
            wanted = wanted if wanted < 0 else wanted - len(part)
        if wanted != 0 and not line.endswith(b"\n") and not self._recording.ended:
            # Not every server's readline() takes a size: give it one only if asked.
            part = self._live.readline() if wanted < 0 else self._live.readline(wanted)
            line += self._record(part)
        return line

    def readinto(self, buffer: Any, /) -> int:
        """Fill ``buffer`` as far as a read goes; how many bytes that were."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        """Always."""
        return True

    @property
    def _behind(self) -> bool:
        recording = self._recording
        return self._position < recording.size and not (recording.dropped or recording.closed)

    def _record(self, chunk: bytes) -> bytes:
        recording = self._recording
        recording.ended = not chunk
        if chunk:
            recording.add(chunk)
            self._position += len(chunk)
            if recording.full:
                recording.spill()
        return chunk
