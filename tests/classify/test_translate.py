"""translate(): the database's failures as retrymw's own exceptions."""

from __future__ import annotations

import asyncio

import pytest

from retrymw import DisconnectionError, RetryableError, TooManyConnections, TransactionConflict
from retrymw.classify import classify, translate
from tests.classify.helpers import passed_through

OperationalError = type("OperationalError", (Exception,), {"__module__": "pymysql.err"})
COMMIT = ("pymysql.connections", "commit", {})


@pytest.mark.parametrize(
    ("code", "expected"),
    [(2013, DisconnectionError), (1040, TooManyConnections), (1213, TransactionConflict)],
)
def test_translated(code, expected):
    """Each kind has its exception; the original is its cause, and its text is kept."""
    original = OperationalError(code, "what the server said")
    with pytest.raises(expected, match="what the server said") as caught, translate():
        raise original
    assert caught.value.__cause__ is original
    assert classify(caught.value).code == code


def test_phase():
    """G4: a COMMIT whose answer was lost stays one."""
    original = passed_through(OperationalError(2013, "Lost"), COMMIT)
    with pytest.raises(DisconnectionError) as caught, translate():
        raise original
    assert caught.value.phase == "commit"
    assert classify(caught.value).leaves_commit_unknown


@pytest.mark.parametrize(
    "exc", [ValueError(), OperationalError(1064, "syntax"), KeyboardInterrupt()]
)
def test_untouched(exc):
    """What is not ours passes: the same object, with no cause of ours."""
    with pytest.raises(type(exc)) as caught, translate():
        raise exc
    assert caught.value is exc
    assert exc.__cause__ is None


def test_own():
    """What is retrymw's own already is not wrapped again."""
    own = TooManyConnections()
    with pytest.raises(RetryableError) as caught, translate(), translate():
        raise own
    assert caught.value is own


def test_around_await():
    """It may stand around an await as well; a cancellation passes."""

    async def lose(exc):
        with translate():
            await asyncio.sleep(0)
            raise exc

    with pytest.raises(DisconnectionError):
        asyncio.run(lose(OperationalError(2013, "Lost")))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(lose(asyncio.CancelledError()))


def test_nothing_wrong():
    """A block that ends well is left alone."""
    with translate():
        pass
