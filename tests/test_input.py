"""``wsgi.input`` with a recording: every attempt reads the client's bytes like the first one."""

from __future__ import annotations

import io
import os
import tempfile
from unittest import mock
from wsgiref.validate import InputWrapper

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retrymw._input import RecordedInput
from retrymw._recording import Recording


class Live:
    """A server's input that keeps account of what is taken from it.

    A read is as short as ``shorts`` has it, which is legal; where ``bare`` is true readline() takes
    no size, as in the first WSGI specification.
    """

    def __init__(self, body, shorts=(), *, bare=False):
        self.stream = io.BytesIO(body)
        self.shorts = list(shorts)
        self.bare = bare
        self.calls = 0

    @property
    def taken(self):
        return self.stream.tell()

    def read(self, size):
        self.calls += 1
        if size > 0 and self.shorts:
            size = min(size, self.shorts.pop())
        return self.stream.read(size)

    def readline(self, *size):
        self.calls += 1
        assert not (size and self.bare)
        return self.stream.readline(*size)


def strict(body, shorts):
    """wsgiref's validator: exactly one argument for read(), and only what PEP 3333 names."""
    return InputWrapper(Live(body, shorts))


def bare(body, shorts):
    return Live(body, shorts, bare=True)


sizes = st.integers(0, 30)
bodies = st.lists(
    st.sampled_from([b"", b"\n", b"a", b"line\n", b"0123456789", b"a longer line\r\n"]), max_size=8
).map(b"".join)
calls = st.one_of(
    st.tuples(st.just("read"), st.lists(sizes | st.sampled_from([-1, None]), max_size=1)),
    st.tuples(st.just("readline"), st.lists(sizes | st.sampled_from([-1, None]), max_size=1)),
    st.tuples(st.just("readlines"), st.lists(sizes | st.sampled_from([-1, None]), max_size=1)),
    st.tuples(st.just("readinto"), st.lists(sizes, min_size=1, max_size=1)),
    st.tuples(st.just("next"), st.just([])),
)
attempts = st.lists(st.lists(calls, max_size=6), min_size=1, max_size=4)
limits = st.sampled_from([(0, 1000), (7, 1000), (1000, 1000), (0, 12), (5, 12), (12, 12)])


def call(stream, name, arguments):
    """What the call gave, as a list of byte strings."""
    if name == "readinto":
        buffer = bytearray(arguments[0])
        return [bytes(buffer[: stream.readinto(buffer)])]
    if name == "next":
        return [next(iter(stream), b"")]
    result = getattr(stream, name)(*arguments)
    return result if name == "readlines" else [result]


def most(body, position, name, arguments):
    """The position up to which the call may take from the live input, and what it gives at most."""
    plain = io.BufferedReader(io.BytesIO(body))
    plain.seek(position)
    expected = call(plain, name, arguments)
    return plain.tell(), expected


@given(
    body=bodies,
    shorts=st.lists(st.integers(1, 8), max_size=20),
    make=st.sampled_from([Live, strict, bare]),
    limits=limits,
    attempts=attempts,
)
@example(b"0123456789", [3], strict, (1, 1000), [[("read", [10])], [("read", [10]), ("read", [])]])
@example(b"012345678\n", [], Live, (7, 99), [[("read", [8]), ("read", [1])], [("readline", [])]])
@example(b"one\ntwo", [], strict, (2, 1000), [[("readline", [2])], [("next", []), ("next", [])]])
def test_every_attempt_reads_the_clients_bytes(body, shorts, make, limits, attempts):
    """G1, G2, G5: any attempt gets the body from byte 0, however it reads, and no byte early."""
    if make is bare:
        attempts = [[one for one in calls if one[1] == []] for calls in attempts]
    live = make(body, shorts)
    counted = live.input if make is strict else live
    recording = Recording(*limits)
    for calls in attempts:
        if recording.dropped:
            break  # what can't be rewound is not replayed
        stream = RecordedInput(live, recording)
        position = 0
        for name, arguments in calls:
            taken, counts = counted.taken, counted.calls
            bound, expected = most(body, position, name, arguments)
            got = call(stream, name, arguments)
            data = b"".join(got)
            if name in ("read", "readinto"):
                assert expected[0].startswith(data)
                assert bool(data) == bool(expected[0])
            elif name == "readlines":  # whose hint is one
                hint = arguments[0] if arguments and (arguments[0] or 0) > 0 else len(body)
                assert got == expected[: len(got)]
                assert len(data) >= min(hint, len(body) - position)
            else:
                assert got == expected
            position += len(data)
            assert counted.taken <= max(taken, bound), "G5: nothing is read ahead"
            if bound < taken:
                assert counted.calls == counts, "G5: what is recorded is not asked for again"
            assert not recording.full, "G2: no more than body_memory stays in memory"
    recording.close()


@given(
    bodies,
    st.lists(st.integers(1, 8), max_size=20),
    st.sampled_from([(0, 1000), (7, 1000), (1000, 1000)]),
    st.lists(sizes, min_size=1, max_size=3),
)
def test_short_reads_add_up(body, shorts, limits, counts):
    """G5: reading until nothing comes gives the whole body, whatever earlier attempts have read."""
    live = Live(body, shorts)
    recording = Recording(*limits)
    for count in counts:
        RecordedInput(live, recording).read(count)
        stream = RecordedInput(live, recording)
        assert b"".join(iter(lambda stream=stream: stream.read(5), b"")) == body
    assert live.taken == len(body)
    recording.close()


@pytest.mark.parametrize("arguments", [(), (-1,), (None,)])
def test_read_everything(arguments):
    """read(), read(-1) and read(None) read to the end, across what is recorded and what is not."""
    live = Live(b"0123456789")
    recording = Recording(2, 100)
    assert RecordedInput(live, recording).read(4) == b"0123"
    for _ in range(2):
        stream = RecordedInput(live, recording)
        assert stream.read(*arguments) == b"0123456789"
        calls = live.calls
        assert stream.read(*arguments) == b""
        assert stream.read(5) == b""
        assert stream.readline() == b""
        assert live.calls == calls
    recording.close()


def test_end_is_asked_for_once():
    """G5: a live input at its end is not asked again: on a bare socket that would wait for ever."""
    live = Live(b"01")
    recording = Recording(100, 100)
    stream = RecordedInput(live, recording)
    assert [stream.read(10), stream.read(10)] == [b"01", b""]
    calls = live.calls
    assert stream.read(10) == b""
    assert RecordedInput(live, recording).read() == b"01"
    assert live.calls == calls


def test_read_of_exactly_the_body_asks_for_no_more():
    """G5: an app that reads CONTENT_LENGTH bytes never asks for the end, so neither do we."""
    live = Live(b"0123456789")
    recording = Recording(100, 100)
    for _ in range(2):
        assert RecordedInput(live, recording).read(10) == b"0123456789"
    assert live.calls == 1


def test_nothing_is_read_before_the_app_reads():
    """G5: 100-continue and early refusals depend on the body not being touched."""
    live = Live(b"0123456789")
    stream = RecordedInput(live, Recording(100, 100))
    assert stream.read(0) == b""
    assert stream.readinto(bytearray()) == 0
    assert iter(stream) is stream
    assert live.taken == 0


@pytest.mark.parametrize(("hint", "lines"), [(0, 3), (None, 3), (1, 1), (3, 1), (5, 2), (99, 3)])
def test_readlines_stops_at_its_hint(hint, lines):
    """readlines(hint) reads no line after those that go beyond hint bytes."""
    body = b"one\ntwo\nend\n"
    live = Live(body)
    assert RecordedInput(live, Recording(100, 100)).readlines(hint) == body.splitlines(True)[:lines]
    assert live.taken == 4 * lines


def test_iterating_gives_lines():
    """Iterating goes line by line, from the recording and then live."""
    live = Live(b"one\ntwo\nthree")
    recording = Recording(3, 100)
    first = RecordedInput(live, recording)
    assert next(first) == b"one\n"
    assert list(RecordedInput(live, recording)) == [b"one\n", b"two\n", b"three"]
    recording.close()


def test_wrapped_by_the_io_module():
    """The io module's readers can be put on top of it, as on the server's own input."""
    stream = RecordedInput(Live("größer\nkleiner\n".encode()), Recording(100, 100))
    assert list(io.TextIOWrapper(io.BufferedReader(stream), "utf-8")) == ["größer\n", "kleiner\n"]


@pytest.mark.parametrize("kind", [bytearray, lambda n: memoryview(bytearray(n))])
def test_readinto(kind):
    """readinto() fills the buffer as far as a read goes, and leaves the rest of it alone."""
    stream = RecordedInput(Live(b"0123"), Recording(100, 100))
    buffer = kind(6)
    assert stream.readinto(buffer) == 4
    assert bytes(buffer) == b"0123\0\0"
    assert stream.readinto(buffer) == 0


def test_readinto_counts_bytes():
    """A buffer of wider items is filled by bytes, as the io module does it."""
    buffer = memoryview(bytearray(8)).cast("I")
    stream = RecordedInput(Live(b"01234567"), Recording(100, 100))
    assert stream.readinto(buffer) == 8
    assert buffer.tobytes() == b"01234567"


def test_what_the_live_input_raises_passes():
    """G5: an exception of the server's input is the app's; what came before stays recorded."""
    live = mock.Mock()
    live.read.side_effect = [b"0123", OSError("client disconnected")]
    recording = Recording(100, 100)
    stream = RecordedInput(live, recording)
    assert stream.read(4) == b"0123"
    with pytest.raises(OSError, match="client disconnected"):
        stream.read(4)
    assert RecordedInput(live, recording).read(4) == b"0123"


def no_file(**options):
    raise OSError(28, "No space left on device")


def full_disk(**options):
    return open("/dev/full", "w+b")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("make", [no_file, full_disk])
@pytest.mark.parametrize("size", [5, 100_000])  # the first fits into a file's buffer
def test_full_disk_costs_the_replay_and_not_the_request(make, size):
    """G5: without retrymw the app would have its bytes: it gets them, and no replay."""
    body = b"x" * size
    recording = Recording(4, 1_000_000)
    stream = RecordedInput(Live(b"012" + body + b"89"), recording)
    with mock.patch.object(tempfile, "TemporaryFile", make):
        assert stream.read(3) == b"012"
        assert stream.read(size) == body
        assert stream.read() == b"89"
    assert recording.dropped
    recording.close()


@pytest.mark.parametrize("limit", [5, 100])
def test_temporary_files_are_closed(limit):
    """G2: the file goes when the recording is dropped, and when the exchange is over."""
    made = []
    make = mock.Mock(side_effect=lambda **options: made.append(io.BytesIO()) or made[-1])
    with mock.patch.object(tempfile, "TemporaryFile", make):
        recording = Recording(2, limit)
        stream = RecordedInput(Live(b"0123456789"), recording)
        stream.read(4)
        assert not made[0].closed
        assert stream.read() == b"456789"
        if limit == 5:
            assert recording.dropped
        else:
            recording.close()
        assert [file.closed for file in made] == [True]
