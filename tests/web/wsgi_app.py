"""The WSGI app that the servers serve. See `behaviour.Wish` for what a path means."""

from __future__ import annotations

import http
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.validate import validator

from retrymw.wsgi import RetryMiddleware

from .behaviour import LARGE, PIECE, SIZE, TEXT, Wish, lost, mounts, pieces, short_answers
from .control import peak_memory, tell, wait_for_gate


def endpoint(environ: Any, start_response: Any) -> Iterable[bytes]:
    """Do what the path says."""
    wish = Wish.of(environ["PATH_INFO"], environ["QUERY_STRING"])
    if wish.fails:
        environ["wsgi.input"].read(wish.read)
        raise lost()
    answer = short_answers(wish, environ.get("HTTP_RANGE"))
    if answer is not None:
        start(start_response, *answer[:2])
        return [answer[2]]
    return globals()[wish.name](wish, environ, start_response)


def start(start_response: Any, status: int, headers: list[tuple[str, str]]) -> Any:
    return start_response(f"{status} {http.HTTPStatus(status).phrase}", headers)


def echo(wish: Wish, environ: Any, start_response: Any) -> Iterable[bytes]:
    """The request's body."""
    body = environ["wsgi.input"].read(*length(environ))
    start(start_response, 200, [*TEXT, ("Content-Length", str(len(body)))])
    return [body]


def length(environ: Any) -> list[int]:
    """What to give `read()`: nothing, where the body itself says when it is over."""
    return [int(environ["CONTENT_LENGTH"])] if environ.get("CONTENT_LENGTH") else []


def sleep(wish: Wish, environ: Any, start_response: Any) -> Iterable[bytes]:
    """Wait, without our help."""
    tell(wish.key, "wait")
    time.sleep(float(wish.options["seconds"]))
    start(start_response, 200, [("Content-Length", "4")])
    return [b"done"]


class Closing:
    """An iterable that calls `close`."""

    def __init__(self, chunks: Iterator[bytes], close: Callable[[], object]) -> None:
        self._chunks = chunks
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks


def stream(wish: Wish, environ: Any, start_response: Any) -> Iterable[bytes]:
    """One chunk, and when the test says so another."""
    start(start_response, 200, TEXT)

    def chunks() -> Iterator[bytes]:
        yield b"first"
        wait_for_gate(wish.key)
        yield b"second"

    return chunks()


def endless(wish: Wish, environ: Any, start_response: Any) -> Iterable[bytes]:
    """Chunks, until the client leaves."""
    start(start_response, 200, TEXT)
    chunks = iter(lambda: bytes(PIECE), b"")
    return Closing(chunks, lambda: tell(wish.key, "left"))


def download(wish: Wish, environ: Any, start_response: Any) -> Iterable[bytes]:
    """A large body, made as it is sent."""
    grown = peak_memory()
    start(start_response, 200, [("Content-Length", str(SIZE))])
    return Closing(pieces(), lambda: tell(wish.key, "grown", grown()))


def file(wish: Wish, environ: Any, start_response: Any) -> Iterable[bytes]:
    """The same, out of a file that is left to the server, where it takes that."""
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is None:
        start(start_response, 200, TEXT)
        return [b"not offered"]
    start(start_response, 200, [("Content-Length", str(SIZE))])
    return wrapper(LARGE.open("rb"), PIECE)


def breaks(wish: Wish, environ: Any, start_response: Any) -> Iterable[bytes]:
    """Break off, by an error that is not ours."""
    start(start_response, 200, [("Content-Length", "100")])

    def chunks() -> Iterator[bytes]:
        yield b"not all"
        raise ValueError("not a failure of ours")

    return chunks()


def raises(wish: Wish, environ: Any, start_response: Any) -> Iterable[bytes]:
    """Raise an error that is not ours at once."""
    raise ValueError("not a failure of ours")


MOUNTS = mounts(endpoint, RetryMiddleware, validator)


def app(environ: Any, start_response: Any) -> Iterable[bytes]:
    """One app under each policy, and one without the middleware."""
    return MOUNTS[environ["PATH_INFO"].split("/")[1]](environ, start_response)
