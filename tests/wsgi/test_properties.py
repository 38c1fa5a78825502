"""Random bodies, reads and responses, over several attempts."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from retrymw.typing import Environ, StartResponse

from .helpers import TEXT, Attempts, Chunks, answer, lost, request, serve, squashing, wrap

ERROR = "500 Internal Server Error"

bodies = st.lists(st.sampled_from([b"a", b"b", b"\n", b"\n\n", b"longer\n", b"\0"])).map(b"".join)
sizes = st.one_of(st.none(), st.integers(-1, 12))
reads = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["read", "readline", "readlines"]), st.tuples()),
        st.tuples(st.sampled_from(["read", "readline", "readlines"]), st.tuples(sizes)),
        st.tuples(st.just("readinto"), st.tuples(st.integers(0, 12))),
        st.tuples(st.just("__next__"), st.tuples()),
    ),
    max_size=8,
)


def perform(file: Any, method: str, arguments: tuple[Any, ...]) -> Any:
    if method == "readinto":
        buffer = bytearray(*arguments)
        return bytes(buffer[: file.readinto(buffer)])
    if method == "__next__":
        return next(iter(file), b"")
    return getattr(file, method)(*arguments)


class Live(io.BytesIO):
    """A server's input that hands out at most so many bytes a read, and knows how far it got."""

    def __init__(self, body: bytes, most: list[int]) -> None:
        super().__init__(body)
        self._most = iter(most)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            return super().read()
        return super().read(min(size, next(self._most, size)))


def run(environ: Environ, attempts: list[Any], **rules: Any) -> list[list[Any]]:
    """What each of these attempts gets when it reads so; all but the last fail."""
    results: list[list[Any]] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        file = environ["wsgi.input"]
        results.append([perform(file, *read) for read in attempts[len(results)]])
        if len(results) < len(attempts):
            raise lost()
        return answer()(environ, start_response)

    assert serve(wrap(app, **rules), environ).body == b"hello"
    return results


@given(bodies, st.lists(reads, min_size=1, max_size=4), st.integers(0, 20))
def test_reads_are_those_of_a_file(body: bytes, attempts: list[Any], memory: int) -> None:
    """G5: every read of every attempt returns what the server's own input would have returned."""
    environ = request(
        "PUT", **{"wsgi.input": io.BytesIO(body), "HTTP_TRANSFER_ENCODING": "chunked"}
    )
    # What wsgiref and Werkzeug's server give; BytesIO takes the hint of readlines() otherwise.
    files = [io.BufferedReader(io.BytesIO(body)) for _ in attempts]  # type: ignore[arg-type]
    expected = [
        [perform(file, *read) for read in attempt]
        for file, attempt in zip(files, attempts, strict=True)
    ]
    assert run(environ, attempts, body_memory=memory) == expected


@given(
    bodies.filter(bool),
    st.lists(reads, min_size=1, max_size=4),
    st.lists(st.integers(1, 5)),
    st.integers(0, 20),
)
def test_short_reads(body: bytes, attempts: list[Any], most: list[int], memory: int) -> None:
    """G5: with legal short reads each attempt reads from byte 0, and nothing is read ahead."""
    live = Live(body, most)
    environ = request("PUT", body=body, **{"wsgi.input": live})
    furthest = 0
    for attempt, results in zip(attempts, run(environ, attempts, body_memory=memory), strict=True):
        position = 0
        for (method, arguments), result in zip(attempt, results, strict=True):
            data = b"".join(result) if isinstance(result, list) else result
            assert body.startswith(data, position)
            position += len(data)
            limit = arguments[0] if arguments else None
            if method in ("read", "readline", "readinto") and limit is not None and limit >= 0:
                assert len(data) <= limit
                assert data or limit == 0 or position == len(body)
            elif method == "read":
                assert position == len(body)
        furthest = max(furthest, position)
    assert live.tell() == furthest


# Responses


class Response(NamedTuple):
    """How an app answers.

    Attributes:
        kind: what it returns.
        written, chunks: what it writes, and what it yields or returns.
        error: whether it answers 500, or else 200.
        fails: None for the last attempt; else where it fails, or that a framework squashed it.
    """

    kind: str
    written: list[bytes]
    chunks: list[bytes]
    error: bool
    fails: str | None

    def app(self, closed: list[Any]) -> Any:
        def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            if self.fails == "before the start":
                raise lost()
            if self.kind == "generator app":
                return generator(start_response)
            start(start_response)
            if self.fails == "after the start":
                raise lost()
            items = [*self.chunks, *([lost()] if self.fails == "at the end" else [])]
            if self.kind == "iterable" or self.fails == "at the end":
                closed.append(Chunks(*items))
                return closed[-1]  # type: ignore[no-any-return]
            return {"list": list, "tuple": tuple, "iterator": iter}[self.kind](self.chunks)  # type: ignore[operator]

        def start(start_response: StartResponse) -> None:
            status = ERROR if self.error else "200 OK"
            write = start_response(status, [*TEXT, ("X-Kind", self.kind)])
            for data in self.written:
                write(data)

        def generator(start_response: StartResponse) -> Iterable[bytes]:
            start(start_response)
            if self.fails == "after the start":
                raise lost()
            yield from self.chunks
            if self.fails == "at the end":
                raise lost()

        return squashing(lost(), app) if self.fails == "squashed" else app


kinds = st.sampled_from(["list", "tuple", "iterator", "iterable", "generator app"])
texts = st.lists(st.sampled_from([b"", b"a", b"bc", b"\0"]), max_size=4)
empty = st.lists(st.just(b""), max_size=3)
failing = st.one_of(
    # Where a 5xx is held, a failure may come anywhere; below 500 it must come before any bytes.
    st.builds(
        Response,
        kinds,
        texts,
        texts,
        st.just(True),
        st.sampled_from(["before the start", "after the start", "at the end", "squashed"]),
    ),
    st.builds(
        Response,
        kinds,
        empty,
        empty,
        st.just(False),
        st.sampled_from(["before the start", "after the start", "at the end"]),
    ),
)
last = st.builds(Response, kinds, texts, texts, st.booleans(), st.none())


@given(st.lists(failing, max_size=5), last, st.sampled_from(["first-chunk", "until-return"]))
def test_the_server_sees_the_last_attempt(
    failures: list[Response], sent: Response, hold: str
) -> None:
    """G1, G5: whatever the attempts did, the server gets the last one's response, byte for byte."""
    iterables: list[Chunks] = []
    app = Attempts(*(response.app(iterables) for response in [*failures, sent]))
    reply = serve(wrap(app, hold=hold))
    assert app.calls == len(failures) + 1
    assert reply.starts == 1
    assert (reply.status, reply.headers["X-Kind"]) == (500 if sent.error else 200, sent.kind)
    assert reply.body == b"".join(sent.written + sent.chunks)
    assert all(iterable.closed == 1 for iterable in iterables)
