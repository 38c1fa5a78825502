"""The log record and the hooks: the story of an exchange, told once, without doing harm."""

from __future__ import annotations

import logging

import pytest

from retrymw.instrumentation import log_trouble, tell
from tests.core.helpers import OUTCOMES, failure, report

CALM = ("recovered", "abandoned")


def original():
    """An exception that was really raised, so that it has a traceback."""
    try:
        raise ConnectionError("server has gone away")
    except ConnectionError as exc:
        return exc


@pytest.mark.parametrize("outcome", [*OUTCOMES, "abandoned"])
def test_one_record_for_an_exchange(outcome, caplog):
    """G7: one record tells all attempts: an error if the client was refused, else a warning."""
    first = failure("too-many-connections", "connect", code=1040, driver="pymysql")
    last = failure("disconnection", "commit", exception=original())
    told = report(outcome, first, last)
    tell([], told)
    [record] = caplog.records
    message = record.getMessage()
    assert record.name == "retrymw"
    assert record.levelno == (logging.WARNING if outcome in CALM else logging.ERROR)
    assert record.retrymw is told
    assert f"GET /orders/17: {outcome} after {told.attempts} attempts in 0.152 s" in message
    assert "attempt 1: too-many-connections in connect [pymysql 1040]: Connection" in message
    assert "attempt 2: disconnection in commit: ConnectionError('server has gone away')" in message


def test_original_exception(caplog):
    """G7: the record has the very exception object that the last attempt failed with."""
    exc = original()
    tell([], report("exhausted", failure(), failure(exception=exc)))
    [record] = caplog.records
    assert record.exc_info == (type(exc), exc, exc.__traceback__)
    assert "in original" in caplog.text


def test_one_attempt(caplog):
    """One attempt is not called attempts."""
    tell([], report("not-replayable", failure()))
    assert "not-replayable after 1 attempt in" in caplog.text


def test_fence(caplog):
    """The reason of a fence is in the record."""
    tell([], report("not-replayable", failure(), fence="card charged"))
    assert "fence 'card charged'" in caplog.text


def test_no_record_while_it_goes_on(caplog):
    """G7: a report between two attempts is for the hooks only."""
    seen = []
    tell([seen.append], report(None, failure(), next_in=0.5))
    assert not caplog.records
    assert len(seen) == 1


def test_no_record_that_nobody_wants(caplog):
    """A log level that leaves warnings out leaves ours out, too."""
    with caplog.at_level(logging.ERROR, "retrymw"):
        tell([], report("recovered", failure()))
    assert not caplog.records


@pytest.mark.parametrize("path", ["/a\nERROR faked", "/a\r\nb", "/\x1b[31m"])
def test_path_can_not_forge_records(path, caplog):
    """A client can't put lines or colours of its own into the log."""
    told = report("exhausted", failure())
    tell([], type(told)("GET", path, 1, told.failures, "exhausted", 0.1))
    [record] = caplog.records
    assert record.getMessage().isprintable()


@pytest.mark.parametrize("path", ["/\udcff", "/ö", "/%"])
def test_any_path_can_be_logged(path, caplog):
    """G7: the cause is logged whatever the path is, also where it is no proper text."""
    told = report("exhausted", failure())
    tell([], type(told)("GET", path, 1, told.failures, "exhausted", 0.1))
    assert len(caplog.records) == 1


class Unprintable(Exception):
    def __repr__(self):
        raise ValueError("an exception that can't be represented")

    __str__ = __repr__


def test_exception_that_can_not_be_represented():
    """An exception that can't be represented must not turn the answer into an error.

    What logging itself makes of it is its own affair, so nobody listens here.
    """
    seen = []
    logger = logging.getLogger("retrymw")
    logger.propagate = False
    logger.addHandler(handler := logging.NullHandler())
    try:
        tell([seen.append], report("recovered", failure(exception=Unprintable())))
    finally:
        logger.propagate = True
        logger.removeHandler(handler)
    assert len(seen) == 1


def test_hooks_are_told(caplog):
    """Each hook gets the report, in the order they were given, between attempts and at the end."""
    seen = []
    hooks = [lambda told: seen.append(("first", told)), lambda told: seen.append(("second", told))]
    reports = [report(None, failure()), report("recovered", failure())]
    for told in reports:
        tell(hooks, told)
    assert seen == [(name, told) for told in reports for name in ("first", "second")]
    assert len(caplog.records) == 1


def test_hook_that_raises_does_no_harm(caplog):
    """G7: an error in a hook is logged; the other hooks and the record of the exchange stay."""
    seen = []
    error = ValueError("hook")

    def broken(told):
        raise error

    tell([broken, seen.append], told := report("recovered", failure()))
    assert seen == [told]
    story, trouble = caplog.records
    assert story.retrymw is told
    assert trouble.levelno == logging.ERROR
    assert trouble.exc_info[1] is error
    assert "broken" in trouble.getMessage()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_hook_that_stops_the_process(error):
    """G6: what is no Exception passes through a hook as through everything."""

    def stop(told):
        raise error

    with pytest.raises(error):
        tell([stop], report(None, failure()))


def test_trouble_on_the_way(caplog):
    """G7: an error in undoing is logged with its own exception, and masks nothing."""
    exc = original()
    try:
        raise exc
    except ConnectionError:
        log_trouble("%s of %r failed", "rollback", "database")
    [record] = caplog.records
    assert record.getMessage() == "rollback of 'database' failed"
    assert record.exc_info[1] is exc
