"""Finding the failure in what was raised, and leaving everything else alone."""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import sys
import timeit
from dataclasses import replace

import psycopg
import pymysql
import pytest

from retrymw import DisconnectionError, RetryableError, TooManyConnections, TransactionConflict
from retrymw.classify import classify
from tests.classify.helpers import caught, passed_through, verdict

needs_groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="ExceptionGroup is of 3.11")


def deadlock():
    return pymysql.OperationalError(1213, "Deadlock found when trying to get lock")


def refused():
    return pymysql.OperationalError(2003, "Can't connect to MySQL server")


def lost_commit():
    """A COMMIT whose answer never came, as PyMySQL raises it."""
    exc = pymysql.OperationalError(2013, "Lost connection to MySQL server during query")
    return passed_through(exc, ("pymysql.connections", "commit", {}))


class Wrapper(Exception):
    """Like SQLAlchemy's and peewee's."""

    def __init__(self, orig):
        super().__init__("wrapped")
        self.orig = orig


class Group(Exception):
    """Like the backport of ExceptionGroup for Python 3.10."""

    def __init__(self, *exceptions):
        super().__init__("several")
        self.exceptions = exceptions


def caused_by(exc):
    outer = ValueError("outer")
    outer.__cause__ = exc
    return outer


def in_context_of(exc):
    outer = ValueError("outer")
    outer.__context__ = exc
    return outer


def grouped(exc):
    return Group(ValueError("first"), exc)


WRAPPINGS = [caused_by, in_context_of, grouped, Wrapper]


# Where it is found.


@pytest.mark.parametrize("wrap", WRAPPINGS)
def test_wrapped(wrap):
    """G7: the failure is found behind a wrapper, and its exception is the original object."""
    exc = deadlock()
    assert classify(wrap(exc)).exception is exc


@pytest.mark.parametrize("outer", WRAPPINGS)
@pytest.mark.parametrize("middle", WRAPPINGS)
@pytest.mark.parametrize("inner", WRAPPINGS)
def test_wrapped_three_times(outer, middle, inner):
    """Wrappers of all sorts may be around each other, as those of SQLAlchemy and FastAPI are."""
    exc = deadlock()
    assert classify(outer(middle(inner(exc)))).exception is exc


def test_suppressed_context():
    """``raise … from None`` says that what went before does not matter: it is not looked at."""
    outer = in_context_of(deadlock())
    outer.__suppress_context__ = True
    assert classify(outer) is None


def test_cause_of_a_suppressed_context():
    """``raise … from exc`` suppresses the context and not the cause."""
    outer = in_context_of(refused())
    outer.__cause__ = cause = deadlock()
    assert outer.__suppress_context__
    assert classify(outer).exception is cause


def test_known_failure():
    """What an adapter made of an exception, when its connection could be asked, counts."""
    exc = pymysql.OperationalError(2013, "Lost connection")
    known = replace(classify(exc), phase="execute")
    assert classify(exc).phase == "unknown"
    assert classify(Wrapper(exc), known=[known]) is known
    later = lost_commit()
    later.__context__ = exc
    assert classify(later, known=[known]).leaves_commit_unknown


def test_first_answer_counts():
    """What was raised goes before what it was raised for."""
    outer = deadlock()
    outer.__cause__ = refused()
    assert classify(outer).exception is outer


@needs_groups
def test_exception_group():
    """A failure in an ExceptionGroup is found, in a group within a group too."""
    exc = deadlock()
    group = ExceptionGroup("outer", [ValueError(), ExceptionGroup("inner", [KeyError(), exc])])  # noqa: F821  # skipped where there is none
    assert classify(group).exception is exc


@needs_groups
@pytest.mark.parametrize("cls", [KeyboardInterrupt, asyncio.CancelledError])
def test_group_with_a_cancellation(cls):
    """G6: a group with a cancellation in it is a cancellation."""
    assert classify(BaseExceptionGroup("group", [deadlock(), cls()])) is None  # noqa: F821  # skipped where there is none


def test_group_of_unrelated_things():
    """An attribute of that name which holds no exceptions is none of ours."""
    for exceptions in ((), (None, 1, "text"), "text", 5, {"a": deadlock()}):
        exc = ValueError()
        exc.exceptions = exceptions
        assert classify(exc) is None


def test_orig_of_another_kind():
    """An attribute ``orig`` that holds no exception is none of ours."""
    assert classify(Wrapper("text")) is None


@pytest.mark.parametrize("attribute", ["orig", "exceptions"])
def test_attribute_that_raises(attribute):
    """G5: an app's exception whose attributes raise is an app's exception."""

    def broken(self):
        raise RuntimeError("not now")

    assert classify(type("Broken", (Exception,), {attribute: property(broken)})()) is None


@pytest.mark.parametrize("wrap", WRAPPINGS)
@pytest.mark.parametrize("depth", [5, 30])
def test_deep_chain(wrap, depth):
    """A chain as deep as real ones get is followed to its end."""
    exc = innermost = deadlock()
    for _ in range(depth):
        exc = wrap(exc)
    assert classify(exc).exception is innermost


@pytest.mark.parametrize("wrap", WRAPPINGS)
def test_very_deep_chain(wrap):
    """G5: a chain without end costs neither the stack nor the time of the request."""
    exc = ValueError()
    for _ in range(5000):
        exc = wrap(exc)
    assert classify(exc) is None


@pytest.mark.parametrize("make", [ValueError, deadlock, DisconnectionError])
@pytest.mark.parametrize("attribute", ["__cause__", "__context__", "orig"])
def test_cycle(make, attribute):
    """A chain that leads back to itself is followed once; ``raise e from e`` makes one."""
    for length in (1, 3):
        ring = [make() for _ in range(length)]
        for exc, following in zip(ring, [*ring[1:], ring[0]], strict=True):
            setattr(exc, attribute, following)
        assert (classify(ring[0]) is None) == (make is ValueError)


def test_group_in_a_cycle():
    """A group that contains itself is looked at once."""
    group = Group()
    group.exceptions = (group, group)
    assert classify(group) is None


# A lost COMMIT is not hidden by what is raised after it.


def fail_to_undo():
    """A rollback on the connection that the COMMIT was lost on."""
    raise pymysql.InterfaceError(0, "")


def test_failed_rollback_does_not_hide_a_lost_commit():
    """G4: ``except: conn.rollback(); raise`` raises anew on a dead connection: still unknown."""

    def commit_or_undo():
        try:
            raise lost_commit()
        except pymysql.Error:
            fail_to_undo()

    failure = classify(caught(commit_or_undo))
    assert failure.leaves_commit_unknown


@pytest.mark.parametrize("wrap", WRAPPINGS)
@pytest.mark.parametrize("own", [False, True])
def test_lost_commit_behind_another_failure(wrap, own):
    """G4: if any disconnection in the chain struck in a COMMIT, the outcome is unknown."""
    later = DisconnectionError("lost") if own else pymysql.InterfaceError(0, "")
    later.__context__ = wrap(lost_commit())
    assert classify(later).leaves_commit_unknown


@pytest.mark.parametrize("order", [1, -1])
def test_lost_commit_beside_another_failure(order):
    """G4: of two tasks that failed together, one in its COMMIT, the COMMIT counts."""
    assert classify(Group(*[refused(), lost_commit()][::order])).leaves_commit_unknown


def test_lost_commit_then_too_many_connections():
    """G4: no connection for a second try does not tell what became of the first one's COMMIT."""
    later = pymysql.OperationalError(1040, "Too many connections")
    later.__context__ = lost_commit()
    assert classify(later).leaves_commit_unknown


@pytest.mark.parametrize("cause", [None, ValueError()])
def test_lost_commit_that_is_suppressed(cause):
    """G4: a pool's timeout, which it raises from None, does not hide the COMMIT lost before it."""
    later = refused()
    later.__context__ = lost_commit()
    later.__cause__ = cause
    assert later.__suppress_context__
    assert classify(later).leaves_commit_unknown


def test_more_failures_than_are_looked_at():
    """G4: what nobody has looked at may have been a lost COMMIT."""
    lost = [refused() for _ in range(70)]
    assert classify(Group(*lost)).leaves_commit_unknown
    assert not classify(Group(*lost[:10])).leaves_commit_unknown


class Unprintable(pymysql.err.OperationalError):
    """An app's own exception, with a mistake in it."""

    @property
    def args(self):
        raise RuntimeError("broken")


def test_exception_that_can_not_be_looked_at(caplog):
    """G7: a mistake in an app's exception is logged, and does not take the exception's place."""
    assert classify(Unprintable()) is None
    assert "Unprintable could not be classified" in caplog.text


def test_conflict_in_a_commit():
    """A conflict in a COMMIT is an answer: nothing was committed."""
    exc = passed_through(deadlock(), ("pymysql.connections", "commit", {}))
    assert verdict(exc) == ("conflict", "commit")
    assert not classify(exc).leaves_commit_unknown


# retrymw's own exceptions.


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (DisconnectionError("lost"), ("disconnection", "execute")),
        (TooManyConnections("full"), ("too-many-connections", "connect")),
        (TransactionConflict("deadlock"), ("conflict", "execute")),
        (DisconnectionError("lost", phase="commit"), ("disconnection", "commit")),
        (DisconnectionError("lost", phase="unknown"), ("disconnection", "unknown")),
        (TooManyConnections("full", phase="execute"), ("too-many-connections", "execute")),
    ],
)
def test_own_exceptions(exc, expected):
    """An app's own word counts as a driver's does: kind and phase are those it gave."""
    assert verdict(exc) == expected
    assert classify(exc).exception is exc


def test_own_base_class():
    """The base class says nothing of what happened: it is raised by mistake, and is not ours."""
    assert classify(RetryableError("what?")) is None


def test_own_subclass():
    """An app's subclass is as good."""
    assert verdict(type("Full", (TooManyConnections,), {})())[0] == "too-many-connections"


def test_evidence_of_the_driver():
    """G4, G7: raised from a driver's exception, ours has that one's phase, code and driver."""
    exc = DisconnectionError("the shop's database is gone")
    exc.__cause__ = refused()
    failure = classify(exc)
    assert failure.exception is exc
    assert (failure.kind, failure.phase) == ("disconnection", "connect")
    assert (failure.code, failure.driver) == (2003, "pymysql")


def test_kind_is_the_apps():
    """What it is called is the app's to say, whatever it was raised from."""
    exc = TransactionConflict("lost the race")
    exc.__cause__ = refused()
    assert classify(exc).kind == "conflict"


def test_raised_from_something_else():
    """Raised from what is no failure, the app's word stands."""
    exc = DisconnectionError("lost", phase="connect")
    exc.__cause__ = OSError("no route")
    assert verdict(exc) == ("disconnection", "connect")


@pytest.mark.parametrize("depth", [30, 5000])
def test_own_exceptions_all_the_way_down(depth):
    """Ours raised from ours, many times, costs no stack."""
    exc = DisconnectionError("lost")
    for _ in range(depth):
        inner, exc = exc, DisconnectionError()
        exc.__cause__ = inner
    assert classify(exc).kind == "disconnection"


# What is not ours.


@pytest.mark.parametrize(
    "exc",
    [
        ValueError("Deadlock found"),
        ConnectionError("lost"),
        ConnectionRefusedError(111, "Connection refused"),
        ConnectionResetError(104, "Connection reset by peer"),
        BrokenPipeError(32, "Broken pipe"),
        TimeoutError("timed out"),
        asyncio.TimeoutError(),
        concurrent.futures.TimeoutError(),
        OSError(113, "No route to host"),
        EOFError(),
        RuntimeError("server closed the connection unexpectedly"),
        pymysql.ProgrammingError("too many clients already"),
        psycopg.ProgrammingError("server closed the connection unexpectedly"),
        pymysql.Warning(1, "text"),
        Exception(2013, "Lost connection"),
    ],
    ids=repr,
)
def test_not_ours(exc):
    """G5: builtin network errors are any HTTP client's; a text or a number alone proves nothing."""
    assert classify(exc) is None


@pytest.mark.parametrize(
    "cls", [BaseException, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_cancellation(cls, wrapped):
    """G6: what is no Exception is never ours, whatever it was raised from."""
    exc = cls()
    if wrapped:
        exc.__cause__ = deadlock()
        exc.orig = deadlock()
    assert classify(exc) is None


@pytest.mark.parametrize("module", [None, "", "pymysqlx.err", "not_psycopg", "mysql"])
def test_class_of_another_module(module):
    """A class is known by its package: a name that begins alike is another one."""
    cls = type("OperationalError", (Exception,), {"__module__": module})
    assert classify(cls(2013, "server closed the connection")) is None


def test_no_driver_is_imported():
    """Classifying imports no driver, so a missing one costs nothing."""
    code = (
        "import sys; from retrymw.classify import classify; classify(ValueError());"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    drivers = {"pymysql", "MySQLdb", "mysql", "mariadb", "psycopg", "psycopg2", "sqlite3"}
    assert not set(done.stdout.split()) & (drivers | {"sqlalchemy", "asyncio", "socket"})


def test_costs_nothing():
    """G5: an exception that is not ours is told in a microsecond or two; the limit is generous."""
    exc = caught(int, "x")
    runs = 1000
    assert min(timeit.repeat(lambda: classify(exc), number=runs, repeat=20)) / runs < 20e-6
