"""SQLite: every result code, with the exceptions of the driver itself."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

import pytest

from retrymw.classify import classify
from retrymw.classify.sqlite import CODES
from tests.classify.helpers import caught, passed_through, verdict

LOCKED = {
    5: "database is locked",
    15: "locking protocol",
    261: "database is locked",
    262: "database table is locked: t",
    517: "database is locked",
    773: "database is locked",
}
NOT_OURS = {
    1: 'near "SELEC": syntax error',
    5: "cannot commit transaction - SQL statements in progress",
    6: "database table is locked",
    8: "attempt to write a readonly database",
    9: "interrupted",
    10: "disk I/O error",
    11: "database disk image is malformed",
    13: "database or disk is full",
    14: "unable to open database file",
    26: "file is not a database",
    1555: "UNIQUE constraint failed: t.a",
}


class Renamed(sqlite3.OperationalError):
    """An app's or a layer's own class."""


def error(cls: type[Exception], code: int, text: str) -> Exception:
    """As the driver raises it from Python 3.11 on."""
    exc = cls(text)
    exc.sqlite_errorcode = code  # type: ignore[attr-defined]
    return exc


def test_every_code():
    """The tables here and there are the same."""
    assert set(LOCKED) == set(CODES)


@pytest.mark.parametrize("cls", [sqlite3.OperationalError, Renamed])
@pytest.mark.parametrize("code", LOCKED)
def test_locked(cls, code):
    """Somebody else's lock is a conflict; in C code there is no telling a COMMIT's."""
    exc = error(cls, code, LOCKED[code])
    failure = classify(exc)
    assert (failure.kind, failure.phase, failure.code) == ("conflict", "unknown", code)
    assert failure.driver == "sqlite3"
    assert failure.exception is exc


@pytest.mark.parametrize("code", NOT_OURS)
def test_not_ours(code):
    """All else is the app's, and so is a lock that the connection itself holds."""
    assert classify(error(sqlite3.OperationalError, code, NOT_OURS[code])) is None


@pytest.mark.parametrize("text", sorted(set(LOCKED.values())))
def test_text_without_a_code(text):
    """On Python 3.10 the text is all there is."""
    assert verdict(sqlite3.OperationalError(text)) == ("conflict", "unknown")


@pytest.mark.parametrize("code", sorted(NOT_OURS.keys() - {6}))
def test_other_text_without_a_code(code):
    """Other texts are not ours there either."""
    assert classify(sqlite3.OperationalError(NOT_OURS[code])) is None
    assert classify(sqlite3.OperationalError("no such table: database is locked")) is None


@pytest.mark.parametrize(
    ("function", "statement", "phase"),
    [
        ("execute", "UPDATE t SET a = 1", "execute"),
        ("execute", "COMMIT", "commit"),
        ("executemany", "INSERT INTO t VALUES (?)", "execute"),
        ("commit", None, "commit"),
        ("_connect", None, "connect"),
    ],
)
def test_frames_of_aiosqlite(function, statement, phase):
    """aiosqlite is Python: its frames tell the phase."""
    exc = error(sqlite3.OperationalError, 5, LOCKED[5])
    frame = ("aiosqlite.core", function, {"self": object(), "sql": statement})
    assert verdict(passed_through(exc, frame)) == ("conflict", phase)


def test_real(tmp_path):
    """What this Python's sqlite3 raises, be there a code or not."""
    path = tmp_path / "t.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as one:
        one.execute("CREATE TABLE t (a)")
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as two:
            one.execute("BEGIN IMMEDIATE")
            failure = classify(caught(two.execute, "INSERT INTO t VALUES (1)"))
    assert failure.kind == "conflict"
    assert failure.code == (5 if sys.version_info >= (3, 11) else None)


def test_own_lock():
    """A COMMIT under an open cursor is SQLITE_BUSY, and will be again."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("BEGIN")
        cursor = connection.execute("INSERT INTO t VALUES (1), (2) RETURNING a")
        cursor.fetchone()
        exc = caught(connection.execute, "COMMIT")
        cursor.close()
    assert "SQL statements in progress" in str(exc)
    assert classify(exc) is None
