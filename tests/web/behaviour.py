"""What the two apps have in common: how a request says what is to become of it, and the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from tenacity import wait_fixed, wait_none

from retrymw import DisconnectionError, RetryPolicy, current_attempt

from .control import hook, tell

LARGE = Path.cwd() / "large"  # a file of SIZE bytes
SIZE = 64 << 20
PIECE = 1 << 16
TEXT = [("Content-Type", "text/plain")]
TEN_LINES = b"".join(b"line %d\n" % number for number in range(10))

# By the first part of the path. None: no middleware. `valid` ones are between validators.
POLICIES: dict[str, RetryPolicy | None] = {
    "bare": None,
    "quick": RetryPolicy(wait=wait_none(), body_memory=PIECE),
    "bare-valid": None,
    "valid": RetryPolicy(wait=wait_none()),
    "brief": RetryPolicy(wait=wait_fixed(0.2)),
    "slow": RetryPolicy(wait=wait_fixed(0.5)),
    "patient": RetryPolicy(wait=wait_fixed(3600), deadline=1e6),
}


class Wish(NamedTuple):
    """What a request asks for: `/mount/name/key?fail=1&read=3`."""

    name: str
    key: str
    number: int  # of the attempt
    fail: int  # how many attempts
    read: int  # how many bytes of the body are read before that
    options: dict[str, str]

    @classmethod
    def of(cls, path: str, query: str) -> Wish:
        """Understand a request, and tell the tests of the attempt."""
        _, mount, name, key = path.split("/")
        number = 1 if POLICIES[mount] is None else current_attempt().number
        options = dict(parse_qsl(query))
        tell(key, "attempt", number)
        fail, read = (int(options.pop(name, 0)) for name in ("fail", "read"))
        return cls(name, key, number, fail, read, options)

    @property
    def fails(self) -> bool:
        return self.number <= self.fail


def mounts(app: Any, middleware: Any, validator: Any) -> dict[str, Any]:
    """The app under each policy."""
    found = {}
    for name, policy in POLICIES.items():
        wrap = validator if name.endswith("valid") else lambda app: app
        found[name] = wrap(app)
        if policy is not None:
            found[name] = wrap(middleware(found[name], policy=policy, hooks=[hook]))
    return found


def lost() -> DisconnectionError:
    """What the attempts fail of."""
    return DisconnectionError("the server has gone away")


def pieces() -> Iterator[bytes]:
    """A large download: no two pieces are the same."""
    rest = bytes(range(256)) * (PIECE // 256)
    for number in range(SIZE // PIECE):
        yield number.to_bytes(4, "big") + rest[4:]


def cut(range_header: str) -> tuple[bytes, str]:
    """The bytes that a Range header like `bytes=10-19` asks for, and the Content-Range."""
    first, last = map(int, range_header.removeprefix("bytes=").split("-"))
    return TEN_LINES[first : last + 1], f"bytes {first}-{last}/{len(TEN_LINES)}"


Headers = list[tuple[str, str]]


def short_answers(wish: Wish, headers: Any) -> tuple[int, Headers, bytes] | None:
    """Status, headers and body, where these are all there is to it and no body is read."""
    if wish.name == "hello":
        return 200, [*TEXT, ("Content-Length", "5")], b"hello"
    if wish.name == "early":
        return 413, [*TEXT, ("Content-Length", "0")], b""
    if wish.name == "nothing":
        status = int(wish.options["status"])
        return status, [("ETag", '"1"')], b""
    if wish.name == "range":
        body, told = cut(headers)
        answered = [*TEXT, ("Content-Range", told), ("Content-Length", str(len(body)))]
        return 206, answered, body
    return None
