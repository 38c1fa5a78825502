"""commit="on-success": committed after the endpoint, before the first byte is released (G4)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from retrymw import Attempt
from retrymw.typing import WSGIApp

from .helpers import (
    TEXT,
    Chunks,
    FakeDatabase,
    Reply,
    answer,
    doing,
    generate,
    lost,
    request,
    serve,
)

Wrap = Callable[..., WSGIApp]


class Unit(FakeDatabase):
    """A database that is committed by the middleware; ``errors`` are raised, one for a commit."""

    commits_on_success = True

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    def commit(self, attempt: Attempt) -> None:
        self._do("commit")
        if self.errors:
            raise self.errors.pop(0)


class Noted(Reply):
    """Writes down when the response begins."""

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self._order = order

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "starts" and value:
            self._order.append("start")
        super().__setattr__(name, value)


def reply(app: WSGIApp, unit: Unit) -> Reply:
    return serve(app, reply=Noted(unit.order))


APPS: dict[str, WSGIApp] = {
    "list": answer(),
    "iterable": answer(lambda: Chunks(b"he", b"llo")),
    "generator": generate(b"hello"),
    "write": answer((), written=[b"hello"]),
}


@pytest.mark.parametrize("name", APPS)
def test_committed_before_the_first_byte(retry: Wrap, name: str) -> None:
    """However the app answers, what it did is committed when the response begins, and once."""
    unit = Unit()
    made = reply(retry(doing(unit.open, APPS[name]), databases=[unit]), unit)
    assert made.body == b"hello"
    assert unit.order == ["commit", "start", "release"]


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error"])
def test_not_committed_for_an_error(retry: Wrap, status: str) -> None:
    """A response of 400 or more is sent, and what the endpoint did is left to be undone."""
    unit = Unit()
    made = reply(retry(doing(unit.open, answer(status=status)), databases=[unit]), unit)
    assert made.status == int(status[:3])
    assert "commit" not in unit.order


def test_not_committed_after_an_exception(retry: Wrap) -> None:
    """An exception leaves nothing committed."""
    unit = Unit()
    app = doing(unit.open, answer(lambda: Chunks(LookupError("a bug"))))
    with pytest.raises(LookupError):
        serve(retry(app, databases=[unit]))
    assert unit.order == ["rollback", "release"]


def test_not_used(retry: Wrap) -> None:
    """A database that the attempt did not use is not committed."""
    unit = Unit()
    assert reply(retry(answer(), databases=[unit]), unit).status == 200
    assert unit.order == ["start"]


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize("hold", ["first-chunk", "until-return"])
def test_failed_commit_is_a_failed_attempt(retry: Wrap, name: str, hold: str) -> None:
    """A commit that fails of the database is replayed; the client has seen nothing of it."""
    unit = Unit(lost())
    made = reply(retry(doing(unit.open, APPS[name]), databases=[unit], hold=hold), unit)
    assert (made.body, made.headers["Retry-Attempts"]) == (b"hello", "2")
    assert unit.order == ["commit", "rollback", "release", "commit", "start", "release"]


@pytest.mark.parametrize("name", APPS)
def test_commit_that_fails_of_something_else(retry: Wrap, name: str) -> None:
    """G5: what is not ours passes, the same object, and nothing of the response is sent."""
    error = LookupError("a constraint")
    unit = Unit(error)
    made = Noted(unit.order)
    with pytest.raises(LookupError) as raised:
        serve(retry(doing(unit.open, APPS[name]), databases=[unit]), reply=made)
    assert raised.value is error
    assert unit.order == ["commit", "rollback", "release"]


def test_iterable_of_a_failed_commit_is_closed_once(retry: Wrap) -> None:
    """What the app returned is closed, whatever became of the commit."""
    unit = Unit(lost())
    chunks = [Chunks(b"hello"), Chunks(b"hello")]
    bodies = iter(chunks)
    reply(retry(doing(unit.open, answer(lambda: next(bodies))), databases=[unit]), unit)
    assert [each.closed for each in chunks] == [1, 1]


class Stop(BaseException):
    """Like gevent's Timeout."""


def test_commit_that_the_app_gave_up(retry: Wrap) -> None:
    """G4: a commit that the app gave up, by a time limit say, is no reason to say 200."""
    unit = Unit(Stop())  # type: ignore[arg-type]  # no Exception

    def app(environ: Any, start_response: Any) -> Any:
        unit.open()
        write = start_response("200 OK", TEXT)
        with contextlib.suppress(Stop):
            write(b"hello")
        return []

    made = serve(retry(app, databases=[unit]), request("POST"))
    assert (made.status, made.outcome) == (503, "unknown")


@pytest.mark.parametrize("hold", ["first-chunk", "until-return"])
def test_exception_after_the_start(retry: Wrap, hold: str) -> None:
    """An attempt that raised is not committed, whatever it has started before that."""
    unit = Unit()
    chunks = (b"", LookupError("a bug")) if hold == "first-chunk" else (b"a", LookupError("a bug"))
    app = doing(unit.open, generate(*chunks))
    with pytest.raises(LookupError):
        reply(retry(app, databases=[unit], hold=hold), unit)
    assert unit.order == ["rollback", "release"]


def test_exception_in_close(retry: Wrap) -> None:
    """The same if it is the iterable's close() that raises."""
    unit = Unit()
    app = doing(unit.open, answer(lambda: Chunks(b"", on_close=LookupError("a bug"))))
    with pytest.raises(LookupError):
        reply(retry(app, databases=[unit]), unit)
    assert "commit" not in unit.order
