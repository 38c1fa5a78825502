"""The recording of a body: what goes in comes out, within its memory and its limit."""

from __future__ import annotations

import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrymw._recording import Recording

chunks = st.lists(
    st.binary(max_size=12) | st.sampled_from([b"\n", b"a\nb", b"x" * 40]), max_size=10
)
limits = st.sampled_from([(0, 1000), (1, 1000), (8, 1000), (1000, 1000), (0, 20), (20, 20)])


@pytest.fixture
def files(monkeypatch):
    """The temporary files that were made."""
    made = []
    make = tempfile.TemporaryFile

    def record(*args, **options):
        made.append(make(*args, **options))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", record)
    return made


def recorded(*parts, memory=4, limit=1000):
    recording = Recording(memory, limit)
    for part in parts:
        recording.add(part)
        if recording.full:
            recording.spill()
    return recording


def everything(read, size):
    """All that repeated reads of ``size`` bytes give, from byte 0."""
    data = b""
    while part := read(len(data), size):
        assert len(part) <= size
        data += part
    return data


@given(chunks, limits, st.integers(1, 30), st.lists(st.booleans(), min_size=10, max_size=10))
def test_gives_back_what_was_added(parts, limits, size, spills):
    """G5: whenever it is spilled and however it is read, the recording is the body so far."""
    memory, limit = limits
    recording = Recording(memory, limit)
    body = b""
    for part, spill in zip(parts, spills, strict=False):
        recording.add(part)
        body += part
        if recording.dropped:
            break
        if spill and recording.full:
            recording.spill()
        assert recording.size == len(body)
        assert everything(recording.read, size) == body
        assert body.startswith(recording.read(0, size))
    assert recording.dropped == (len(body) > limit)
    recording.close()


@given(chunks, st.integers(1, 30), st.integers(0, 20))
def test_lines_end_at_line_ends(parts, size, memory):
    """A line is no longer than asked for and ends at the first line end; none is lost."""
    recording = recorded(*parts, memory=memory)
    body = b"".join(parts)
    position = 0
    while line := recording.readline(position, size):
        assert body.startswith(line, position)
        assert b"\n" not in line[:-1]
        assert len(line) <= size
        position += len(line)
    assert position == len(body)
    recording.close()


@pytest.mark.parametrize(("memory", "on_disk"), [(10, False), (9, True), (0, True)])
def test_spills_past_its_memory(memory, on_disk, files):
    """G2: no more than ``memory`` bytes stay in memory; up to those there is no file."""
    recording = recorded(b"0123456789", memory=memory)
    assert not recording.full
    assert recording.on_disk(0) == on_disk
    assert len(files) == on_disk
    assert recording.read(0, 100) == b"0123456789"
    recording.close()


def test_only_spill_touches_the_disk(files):
    """add() is for the event loop: it leaves the disk to spill(), however much there is."""
    recording = Recording(4, 1000)
    for _ in range(10):
        recording.add(b"01234")
    assert recording.full
    assert not files
    recording.spill()
    assert len(files) == 1
    assert not recording.full
    recording.close()


def test_says_what_is_on_disk():
    """on_disk() tells apart what a read has to go to the disk for."""
    recording = recorded(b"01234", b"567")
    assert [recording.on_disk(position) for position in (0, 4, 5, 7, 8)] == [True] * 2 + [False] * 3
    recording.close()


def test_one_file_for_a_recording(files):
    """A body that is spilled piece by piece goes to one file."""
    recording = recorded(*[b"01234567"] * 5)
    assert len(files) == 1
    assert everything(recording.read, 7) == b"01234567" * 5
    recording.close()


@pytest.mark.parametrize("memory", [0, 4, 20])
def test_limit_is_kept(memory, files):
    """G2: a body of exactly the limit is kept; one byte more drops all of it, and the file."""
    recording = recorded(b"x" * 10, b"y" * 10, memory=memory, limit=20)
    assert not recording.dropped
    assert everything(recording.read, 20) == b"x" * 10 + b"y" * 10
    recording.add(b"z")
    assert recording.dropped
    assert not recording.full
    assert not recording.on_disk(0)
    assert all(file.closed for file in files)


def test_dropped_recording_stays_dropped(files):
    """G2: what comes after the limit is not kept at all."""
    recording = recorded(b"x" * 30, limit=20)
    for _ in range(3):
        recording.add(b"y")
        assert not recording.full
    assert recording.dropped
    assert not files


@pytest.mark.parametrize("memory", [0, 100])
def test_close(memory, files):
    """G2: closing forgets the bytes and closes the file; once more does no harm."""
    recording = recorded(b"0123456789", memory=memory)
    recording.close()
    recording.close()
    assert all(file.closed for file in files)
    assert recording.read(0, 10) == b""


def test_empty():
    """Nothing was added, so there is nothing to read."""
    recording = Recording(4, 10)
    assert (recording.size, recording.full, recording.dropped) == (0, False, False)
    assert recording.read(0, 10) == b""
    assert recording.readline(0, 10) == b""
    recording.close()
