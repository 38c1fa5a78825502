"""The recording of a request body: what the app has consumed, so that a replay can rewind.

Nothing is read ahead: the shells add what they hand to the app, as they hand it over.
"""

from __future__ import annotations

import logging
import tempfile
from contextlib import suppress
from typing import IO

__all__ = ["Recording"]


class Recording:
    """Body bytes in memory, on disk past ``memory`` bytes, nowhere past ``limit`` bytes.

    ``add`` never touches the disk; when ``full`` is true afterwards, call ``spill``, which does, in
    a worker thread where blocking matters.
    """

    __slots__ = (
        "_buffer",
        "_file",
        "_limit",
        "_memory",
        "_spilled",
        "closed",
        "dropped",
        "ended",
        "size",
        "stopped",
    )

    def __init__(self, memory: int, limit: int) -> None:
        self._memory = memory
        self._limit = limit
        self._buffer = bytearray()
        self._file: IO[bytes] | None = None
        self._spilled = 0
        self.size = 0
        self.dropped = False
        self.closed = False
        self.stopped = False
        self.ended = False  # the body is over: there is nothing live to read after this

    def add(self, chunk: bytes) -> None:
        """Record what was handed to the app; past the limit, drop the whole recording."""
        if self.stopped:
            return
        self.size += len(chunk)
        if self.size > self._limit:
            self.drop()
        else:
            self._buffer += chunk

    @property
    def full(self) -> bool:
        """Whether ``spill`` has work to do."""
        return len(self._buffer) > self._memory

    def spill(self) -> None:
        """Move what is in memory to disk; a disk that is full costs the replay, not the request."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="retrymw-")  # noqa: SIM115  # close() does
            self._file.seek(self._spilled)
            self._file.write(self._buffer)
            self._file.flush()
        except OSError:
            logging.getLogger("retrymw").exception("a request body can't be recorded any more")
            self.drop()
        else:
            self._spilled += len(self._buffer)
            self._buffer = bytearray()

    def on_disk(self, position: int) -> bool:
        """Whether reading at ``position`` touches the disk."""
        return position < self._spilled

    def read(self, position: int, size: int) -> bytes:
        """Up to ``size`` recorded bytes from ``position``; empty at the end of the recording."""
        if self._file is not None and position < self._spilled:
            self._file.seek(position)
            return self._file.read(min(size, self._spilled - position))
        start = position - self._spilled
        return bytes(self._buffer[start : start + size])

    def readline(self, position: int, size: int) -> bytes:
        """As ``read``, but not past the first line end."""
        if self._file is not None and position < self._spilled:
            self._file.seek(position)
            return self._file.readline(min(size, self._spilled - position))
        start = position - self._spilled
        end = self._buffer.find(b"\n", start, start + size)
        return bytes(self._buffer[start : start + size if end < 0 else end + 1])

    def stop(self) -> None:
        """Record no more: there will be no rewinding. What there is can still be read."""
        self.stopped = True

    def drop(self) -> None:
        """Forget everything: there is no rewinding any more."""
        self.dropped = True
        self.close()

    def close(self) -> None:
        """Forget everything and remove the file; nothing is recorded from here on."""
        self.closed = self.stopped = True
        self._buffer = bytearray()
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # the disk is full: what could not be written is not missed
                file.close()
        self._spilled = 0
