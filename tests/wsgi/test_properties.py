"""Random bodies, reads and responses, over several attempts."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, NamedTuple
from wsgiref.validate import validator

from hypothesis import given
from hypothesis import strategies as st

from retrymw.typing import Environ, StartResponse

from .helpers import TEXT, Attempts, Chunks, answer, lost, play, request, serve, squashing, wrap

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


class Attempt(NamedTuple):
    """How an attempt reads, and when.

    Attributes:
        reads: the calls.
        streaming: whether it reads before its response starts, or between its empty chunks.
    """

    reads: list[Any]
    streaming: bool


attempts = st.lists(st.builds(Attempt, reads, st.booleans()), min_size=1, max_size=4)
# wsgiref's validator within would forbid most of these reads.
checks = st.sampled_from([lambda app: app, validator])


def run(environ: Environ, attempts: list[Attempt], check: Any, **rules: Any) -> list[list[Any]]:
    """What each of these attempts gets when it reads so; all but the last fail."""
    results: list[list[Any]] = []

    def streaming(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        file = environ["wsgi.input"]
        start_response("200 OK", list(TEXT))
        for read in attempts[len(results) - 1].reads:
            yield b""
            results[-1].append(perform(file, *read))
        if len(results) < len(attempts):
            raise lost()
        yield b"hello"

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        file = environ["wsgi.input"]
        attempt = attempts[len(results)]
        results.append([])
        if attempt.streaming:
            return streaming(environ, start_response)
        results[-1].extend(perform(file, *read) for read in attempt.reads)
        if len(results) < len(attempts):
            raise lost()
        return answer()(environ, start_response)

    assert serve(check(wrap(app, **rules)), environ).body == b"hello"
    return results


@given(bodies, attempts, st.integers(0, 20), checks)
def test_reads_are_those_of_a_file(
    body: bytes, attempts: list[Attempt], memory: int, check: Any
) -> None:
    """G5: every read of every attempt returns what the server's own input would have returned."""
    environ = request(
        "PUT", **{"wsgi.input": io.BytesIO(body), "HTTP_TRANSFER_ENCODING": "chunked"}
    )
    # What wsgiref and Werkzeug's server give; BytesIO takes the hint of readlines() otherwise.
    files = [io.BufferedReader(io.BytesIO(body)) for _ in attempts]  # type: ignore[arg-type]
    expected = [
        [perform(file, *read) for read in attempt.reads]
        for file, attempt in zip(files, attempts, strict=True)
    ]
    assert run(environ, attempts, check, body_memory=memory) == expected


@given(
    bodies.filter(bool),
    attempts,
    st.lists(st.integers(1, 5)),
    st.integers(0, 20),
    checks,
)
def test_short_reads(
    body: bytes, attempts: list[Attempt], most: list[int], memory: int, check: Any
) -> None:
    """G5: with legal short reads each attempt reads from byte 0, and nothing is read ahead."""
    live = Live(body, most)
    environ = request("PUT", body=body, **{"wsgi.input": live})
    furthest = 0
    results = run(environ, attempts, check, body_memory=memory)
    for attempt, got in zip(attempts, results, strict=True):
        position = 0
        for (method, arguments), result in zip(attempt.reads, got, strict=True):
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
            if self.fails in ("in the middle", "at the end", "in close") or self.kind == "iterable":
                closing = lost() if self.fails == "in close" else None
                closed.append(Chunks(*self.items, on_close=closing))
                return closed[-1]  # type: ignore[no-any-return]
            return {"list": list, "tuple": tuple, "iterator": iter}[self.kind](self.chunks)  # type: ignore[operator]

        def start(start_response: StartResponse) -> None:
            status = ERROR if self.error else "200 OK"
            write = start_response(status, [*TEXT, ("X-Kind", self.kind)])
            for number, data in enumerate(self.written):
                if self.fails == "between writes" and number:
                    raise lost()
                write(data)
            if self.fails in ("after the start", "between writes"):
                raise lost()

        def generator(start_response: StartResponse) -> Iterable[bytes]:
            start(start_response)
            try:
                for item in self.items:
                    yield play(item)
            finally:
                if self.fails == "in close":
                    raise lost()

        return squashing(lost(), app) if self.fails == "squashed" else app

    @property
    def items(self) -> list[Any]:
        """What it yields, a failure included."""
        middle = {"in the middle": len(self.chunks) // 2, "at the end": len(self.chunks)}
        if self.fails not in middle:
            return self.chunks
        return [*self.chunks[: middle[self.fails]], lost(), *self.chunks[middle[self.fails] :]]


kinds = st.sampled_from(["list", "tuple", "iterator", "iterable", "generator app"])
texts = st.lists(st.sampled_from([b"", b"a", b"bc", b"\0"]), max_size=4)
empty = st.lists(st.just(b""), max_size=3)
places = [
    "before the start",
    "after the start",
    "between writes",
    "in the middle",
    "at the end",
    "in close",
]


@st.composite
def exchanges(draw: Any) -> tuple[list[Response], str]:
    """The attempts' responses, the last of which is sent, and the policy's hold."""
    hold = draw(st.sampled_from(["first-chunk", "until-return"]))
    responses = []
    for _ in range(draw(st.integers(0, 5))):
        error = draw(st.booleans())
        # Where all is held, a failure may come anywhere; else it must come before any bytes.
        contents = texts if error or hold == "until-return" else empty
        fails = draw(st.sampled_from([*places, "squashed"] if error else places))
        responses.append(Response(draw(kinds), draw(contents), draw(contents), error, fails))
    return [*responses, draw(last)], hold


last = st.builds(Response, kinds, texts, texts, st.booleans(), st.none())


@given(exchanges(), st.booleans())
def test_the_server_sees_the_last_attempt(
    exchange: tuple[list[Response], str], validated: bool
) -> None:
    """G1, G5: whatever the attempts did, the server gets the last one's response, byte for byte."""
    responses, hold = exchange
    iterables: list[Chunks] = []
    app = Attempts(*(response.app(iterables) for response in responses))
    check: Any = validator if validated else lambda app: app
    reply = serve(check(wrap(check(app), hold=hold)))
    sent = responses[-1]
    assert app.calls == len(responses)
    assert reply.starts == 1
    assert (reply.status, reply.headers["X-Kind"]) == (500 if sent.error else 200, sent.kind)
    assert reply.body == b"".join(sent.written + sent.chunks)
    assert all(iterable.closed == 1 for iterable in iterables)
