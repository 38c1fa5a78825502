"""The length of a response's body, and what its start says of it."""

from __future__ import annotations

from retrymw.testing.validate._shapes import require

__all__ = ["Body"]


class Body:
    """Adds it up, and holds it to RFC 9110, sections 6.4.1, 8.6 and 9.3.2."""

    def __init__(self, method: str, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        lengths = [value for name, value in headers if name == b"content-length"]
        require(
            len(lengths) < 2 and all(length.isdigit() for length in lengths),
            f"content-length is {lengths!r}; allowed: one number",
        )
        self._promised = int(lengths[0]) if lengths else None
        # Django says that nothing is 0 bytes long; all servers bear that.
        require(
            status != 204 or not self._promised, "a response of status 204 has a content-length"
        )
        self._status = status
        self._may_lack = method == "HEAD" or status == 304  # what the same GET would have
        self._length = 0

    def add(self, chunk: bytes) -> None:
        require(
            not chunk or self._status not in (204, 304),
            f"a response of status {self._status} has a body",
        )
        self._length += len(chunk)
        require(
            self._promised is None or self._length <= self._promised,
            f"the body is longer than its content-length of {self._promised}",
        )

    def add_file(self) -> None:
        """What a file adds to the body is the server's to find out."""
        require(self._status not in (204, 304), f"a response of status {self._status} has a body")
        self._promised = None

    def end(self) -> None:
        require(
            self._promised in (None, self._length) or (self._may_lack and not self._length),
            f"the body has {self._length} bytes, and a content-length of {self._promised}",
        )
