"""What ASGI's scopes and messages are made of: their keys, and what may stand under each."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from retrymw.typing import Message

__all__ = [
    "RECEIVED",
    "SCOPES",
    "SENT",
    "checked_headers",
    "require",
    "require_data",
    "require_shape",
    "rereadable",
    "type_of",
]


class Field(NamedTuple):
    """What may stand under a key: in words, and as a function."""

    allowed: str
    holds: Callable[[Any], bool]
    required: bool = True

    def optional(self) -> Field:
        """The same, for a key that may be missing."""
        return self._replace(required=False)

    def or_none(self) -> Field:
        """The same, for a key that may be missing or None."""
        return Field(
            f"{self.allowed} or None", lambda value: value is None or self.holds(value), False
        )


Shape = Mapping[str, Field]


def require(holds: object, rule: str) -> None:
    """Raise an AssertionError that names the rule, if it does not hold."""
    if not holds:
        raise AssertionError(rule)


def require_shape(name: str, given: Any, shape: Shape) -> None:
    """Check a scope or a message. Other keys than its shape's are allowed, and not looked at.

    Raises:
        AssertionError: naming the key, its value and what is allowed.
    """
    for key, field in shape.items():
        if key in given:
            value = given[key]
            require(field.holds(value), f"{name}: {key} is {value!r}; allowed: {field.allowed}")
        else:
            require(not field.required, f"{name}: {key} is missing")


def checked_headers(name: str, headers: Iterable[Any]) -> list[tuple[bytes, bytes]]:
    """The headers that the iterable gives.

    Raises:
        AssertionError: naming the header that is not well-formed.
    """
    result = []
    for header in headers:
        require(_is_iterable(header), f"{name}: header {header!r}; allowed: [name, value]")
        pair = tuple(header)
        require(
            len(pair) == 2 and all(isinstance(item, bytes) for item in pair),
            f"{name}: header {pair!r}; allowed: [name, value], both of them bytes",
        )
        key, value = pair
        require(not key.startswith(b":"), f"{name}: {key!r} is a pseudo header")
        require(_TOKEN.fullmatch(key), f"{name}: header name {key!r}; allowed: a lower-case token")
        require(not _BREAK.search(value), f"{name}: header {pair!r} has a line break or NUL in it")
        result.append((key, value))
    return result


def type_of(given: Any, name: str) -> str:
    require(isinstance(given, dict), f"{name} is {given!r}; allowed: a dict")
    kind = given.get("type")
    require(isinstance(kind, str), f"{name} has the type {kind!r}; allowed: a str")
    return str(kind)


def require_data(kind: str, message: Message) -> None:
    given = [key for key in ("bytes", "text") if message.get(key) is not None]
    require(len(given) == 1, f"{kind!r} has {given or 'neither'}; allowed: either bytes or text")


def rereadable(message: Message) -> Message:
    """The message itself; a copy where an iterable in it can be read only once."""
    for key in ("headers", "links"):
        items = message.get(key, ())
        if isinstance(items, Iterator) or any(isinstance(item, Iterator) for item in items):
            items = [tuple(item) if isinstance(item, Iterator) else item for item in items]
            message = {**message, key: items}
    return message


_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BREAK: Final = re.compile(rb"[\r\n\0]")


def _is_iterable(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_version(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+\.\d+", value) is not None


def _are_versions(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_version(value.get("version"))
        and _is_version(value.get("spec_version", "2.0"))
    )


def _is_address(value: Any, *, unix: bool = False) -> bool:
    if isinstance(value, Iterator):
        return True  # looking at it would use it up
    if not _is_iterable(value) or len(items := tuple(value)) != 2:
        return False
    host, port = items
    is_port = _is_int(port) or (unix and port is None)
    # Granian gives the port as a str.
    return isinstance(host, str) and (is_port or (isinstance(port, str) and port.isdecimal()))


def _are_texts(value: Any) -> bool:
    return isinstance(value, Iterator) or (
        _is_iterable(value) and all(isinstance(item, str) for item in value)
    )


def _are_extensions(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(about, dict) for name, about in value.items()
    )


def _is_file(value: Any) -> bool:
    if _is_int(value):
        return bool(value >= 0)
    try:
        return bool(value.fileno() >= 0)
    except (AttributeError, OSError, ValueError):  # no file, one in memory, one that is closed
        return False


_BOOL = Field("a bool", lambda value: isinstance(value, bool)).optional()
_BYTES = Field("bytes", lambda value: isinstance(value, bytes))
_DICT = Field("a dict", lambda value: isinstance(value, dict))
_INT = Field("an int", _is_int)
_ITERABLE = Field("an iterable", _is_iterable)
_TEXT = Field("a str", lambda value: isinstance(value, str))

_COMMON: Shape = {
    # Servers must say it; apps are told to take 2.0 where they don't, as Starlette's test client.
    "asgi": Field("a dict with version and perhaps spec_version", _are_versions).optional(),
    "state": _DICT.or_none(),
}
_CONNECTION: Shape = {
    **_COMMON,
    "path": _TEXT,
    "raw_path": Field(
        "bytes without the query", lambda value: isinstance(value, bytes) and b"?" not in value
    ).or_none(),
    "root_path": _TEXT.optional(),
    "scheme": Field(
        "a str, not empty", lambda value: isinstance(value, str) and value != ""
    ).optional(),
    "headers": _ITERABLE,
    "client": Field("[host, port]", _is_address).or_none(),
    "server": Field(
        "[host, port] or [path, None]", lambda value: _is_address(value, unix=True)
    ).or_none(),
    "extensions": Field("a dict of dicts", _are_extensions).or_none(),
}
_DATA: Shape = {"bytes": _BYTES.or_none(), "text": _TEXT.or_none()}
_START: Shape = {
    "status": Field("an int from 200 to 599", lambda value: _is_int(value) and 200 <= value < 600),
    "headers": _ITERABLE.optional(),
}
_BODY: Shape = {"body": _BYTES.optional(), "more_body": _BOOL}
_FAILED: Shape = {"message": _TEXT.optional()}

SCOPES: Final[Mapping[str, Shape]] = {
    "http": {
        **_CONNECTION,
        # Granian calls 1.0 by the name of 1, and Hypercorn speaks 3, of which ASGI says nothing.
        "http_version": Field(
            "1.0, 1.1 or 2", lambda value: value in ("1", "1.0", "1.1", "2", "3")
        ),
        "method": Field(
            "a str in capitals",
            lambda value: isinstance(value, str) and value != "" and value == value.upper(),
        ),
        "query_string": _BYTES,
    },
    "websocket": {
        **_CONNECTION,
        "http_version": Field("1.1 or 2", lambda value: value in ("1.1", "2", "3")).optional(),
        "query_string": _BYTES.or_none(),
        "subprotocols": Field("an iterable of str", _are_texts).optional(),
    },
    "lifespan": _COMMON,
}

RECEIVED: Final[Mapping[str, Shape]] = {
    "http.request": _BODY,
    "http.disconnect": {},
    "websocket.connect": {},
    "websocket.receive": _DATA,
    "websocket.disconnect": {"code": _INT, "reason": _TEXT.or_none()},
    "lifespan.startup": {},
    "lifespan.shutdown": {},
}

SENT: Final[Mapping[str, Shape]] = {
    "http.response.start": {**_START, "trailers": _BOOL},
    "http.response.body": _BODY,
    "http.response.debug": {"info": _DICT},
    "http.response.early_hint": {"links": _ITERABLE},
    "http.response.pathsend": {
        "path": Field(
            "an absolute path", lambda value: isinstance(value, str) and os.path.isabs(value)
        )
    },
    "http.response.push": {"path": _TEXT, "headers": _ITERABLE},
    "http.response.trailers": {"headers": _ITERABLE, "more_trailers": _BOOL},
    "http.response.zerocopysend": {
        "file": Field("an open file of the operating system", _is_file),
        "offset": _INT.optional(),
        "count": _INT.optional(),
        "more_body": _BOOL,
    },
    "websocket.accept": {"subprotocol": _TEXT.or_none(), "headers": _ITERABLE.optional()},
    "websocket.send": _DATA,
    "websocket.close": {"code": _INT.optional(), "reason": _TEXT.or_none()},
    "websocket.http.response.start": _START,
    "websocket.http.response.body": _BODY,
    "lifespan.startup.complete": {},
    "lifespan.startup.failed": _FAILED,
    "lifespan.shutdown.complete": {},
    "lifespan.shutdown.failed": _FAILED,
}
