"""The phase, read off the traceback, and off the statement that a driver was given."""

from __future__ import annotations

import timeit

import pytest
from psycopg import sql

from retrymw.classify._frames import phase_of
from retrymw.classify.sql import commits
from tests.classify.helpers import passed_through

# Innermost first: (module, function, local variables)
APP = ("shop.orders", "commit", {})
PYMYSQL = ("pymysql.connections", "_read_bytes", {})
PSYCOPG = ("psycopg.generators", "execute_command", {})

TRACEBACKS = [
    ("connect", [("pymysql.connections", "connect", {})]),
    ("connect", [PYMYSQL, ("pymysql.connections", "connect", {}), APP]),
    ("connect", [("MySQLdb.connections", "__init__", {})]),
    ("connect", [("psycopg.connection", "connect", {})]),
    ("connect", [("psycopg.connection_async", "connect", {})]),
    ("connect", [("psycopg2", "connect", {})]),
    ("execute", [PYMYSQL, ("pymysql.connections", "query", {"sql": b"SELECT 1"})]),
    ("execute", [PYMYSQL, ("pymysql.connections", "rollback", {})]),
    ("execute", [("MySQLdb.cursors", "_query", {"q": b"SELECT 1"})]),
    ("execute", [("MySQLdb.connections", "query", {"query": b"SELECT 1"})]),
    ("execute", [("psycopg.cursor", "execute", {"query": "SELECT 1"})]),
    ("execute", [("psycopg.cursor", "executemany", {"query": "INSERT"})]),
    ("execute", [("psycopg.cursor", "stream", {"query": "SELECT"})]),
    ("execute", [("psycopg.cursor", "copy", {"statement": "COPY"})]),
    ("execute", [PSYCOPG, ("psycopg.connection", "rollback", {})]),
    ("commit", [PYMYSQL, ("pymysql.connections", "commit", {})]),
    ("commit", [PSYCOPG, ("psycopg.connection", "commit", {})]),
    ("commit", [PSYCOPG, ("psycopg.transaction", "_commit_gen", {})]),
    ("commit", [("sqlalchemy.engine.default", "do_commit", {})]),
    ("commit", [("sqlalchemy.engine.default", "do_commit_twophase", {})]),
    ("commit", [PYMYSQL, ("pymysql.connections", "commit", {}), APP]),
    ("execute", [("sqlalchemy.engine.default", "do_execute", {"statement": "SELECT 1"})]),
    ("execute", [("sqlalchemy.dialects.mysql.base", "do_rollback", {})]),
    # a COMMIT in a frame of its own; a connect may run statements of its own
    ("commit", [("MySQLdb.cursors", "_query", {"q": b"COMMIT"}), APP]),
    (
        "connect",
        [
            ("pymysql.connections", "query", {"sql": b"SET NAMES utf8mb4"}),
            ("pymysql.connections", "connect", {}),
        ],
    ),
    # frames that don't tell
    ("unknown", [PYMYSQL]),
    ("unknown", [APP]),
    ("unknown", [("pymysqlx", "query", {})]),
    ("unknown", []),
]


@pytest.mark.parametrize(("phase", "frames"), TRACEBACKS)
def test_frames(phase, frames):
    """G4: the frames of the driver, and of no other package, tell what it was doing."""
    assert phase_of(passed_through(ValueError(), *frames)) == phase


COMMITS = [
    "COMMIT",
    "commit",
    " \n\tCommit",
    "COMMIT;",
    "COMMIT WORK",
    "COMMIT AND CHAIN",
    "COMMIT PREPARED 'order-17'",
    "END",
    "END TRANSACTION",
    "XA COMMIT 'order-17'",
    "xa  commit 'order-17' ONE PHASE",
    "/* shop */ COMMIT",
    "/* a */ /* b\n */ COMMIT",
    f"/* {'long ' * 60}*/ COMMIT",
    "-- shop\nCOMMIT",
    "  -- a\n\t-- b\n COMMIT",
    "/* a */ -- b\nCOMMIT",
    "SET autocommit = 1",
    "SET SESSION autocommit=ON",
    "SET @@local.autocommit = 'ON'",
    "SET SESSION sql_mode = '', autocommit = 1",
    "TRUNCATE TABLE log",
    "CREATE TABLE log (a INT)",
    "LOCK TABLES log WRITE",
    "EXECUTE IMMEDIATE 'COMMIT'",
    "/*! COMMIT */",
    "/*M! COMMIT */",
    "/* a /* b */ c */ COMMIT",
    "DO $$ BEGIN COMMIT; END $$",
]
WITH_A_COMMIT = [
    "INSERT INTO t VALUES (1); COMMIT",
    "UPDATE t SET a = 1;\n commit ;",
    "INSERT INTO t VALUES (1); -- don't\nCOMMIT; -- won't",
    "INSERT INTO t VALUES ('C:\\'); COMMIT; SELECT 'x'",
    "SELECT 1;" * 2000,
]
NO_COMMITS = [
    "",
    "SELECT 1",
    "ROLLBACK",
    "COMMITTED",
    "COMMENT ON TABLE t IS 'x'",
    "ENDPOINT",
    "SELECT 'COMMIT'",
    "SELECT commit FROM log",
    "INSERT INTO endings VALUES ('END')",
    "XA START 'order-17'",
    "/* COMMIT */ SELECT 1",
    "SELECT 1 -- COMMIT",
    "SAVEPOINT commit",
    "SET autocommit = 0",
    "SET NAMES utf8mb4",
    "BEGIN",
    "/* shop */ INSERT INTO t VALUES ('*/ COMMIT')",
]
# How a driver or layer is given a statement: module, function, variable, type.
PLACES = {
    "PyMySQL": ("pymysql.connections", "query", "sql", str.encode),
    "PyMySQL, str": ("pymysql.connections", "query", "sql", str),
    "mysqlclient": ("MySQLdb.cursors", "_query", "q", str.encode),
    "mysqlclient, bytearray": ("MySQLdb.cursors", "_query", "q", lambda s: bytearray(s.encode())),
    "mysqlclient, connection": ("MySQLdb.connections", "query", "query", str.encode),
    "psycopg": ("psycopg.cursor", "execute", "query", str),
    "psycopg, bytes": ("psycopg.cursor", "execute", "query", str.encode),
    "psycopg, SQL": ("psycopg.cursor", "execute", "query", sql.SQL),
    "psycopg, Composed": ("psycopg.cursor", "execute", "query", lambda s: sql.SQL(s) + sql.SQL("")),
    "SQLAlchemy": ("sqlalchemy.engine.default", "do_execute", "statement", str),
}


def phases(statement):
    """The phase of a failure in the statement, in each of the places."""
    return {
        place: phase_of(
            passed_through(ValueError(), (module, function, {variable: made_of(statement)}))
        )
        for place, (module, function, variable, made_of) in PLACES.items()
    }


@pytest.mark.parametrize("statement", COMMITS)
def test_statement_that_commits(statement):
    """G4: ``execute("COMMIT")`` is a COMMIT, in whatever words, comments and types."""
    assert phases(statement) == dict.fromkeys(PLACES, "commit")


@pytest.mark.parametrize("statement", WITH_A_COMMIT)
def test_statements_one_of_which_commits(statement):
    """G4: several statements in one may have a COMMIT among them: it can't be ruled out."""
    assert "execute" not in phases(statement).values()


@pytest.mark.parametrize("statement", ["CALL pay(17)", "/* shop */ call pay(17)"])
def test_procedure_that_may_commit(statement):
    """G4: what a procedure does can't be seen, and it may COMMIT."""
    assert "execute" not in phases(statement).values()


@pytest.mark.parametrize("statement", NO_COMMITS)
def test_statement_that_does_not_commit(statement):
    """A statement with the word somewhere in it is none."""
    assert phases(statement) == dict.fromkeys(PLACES, "execute")


@pytest.mark.parametrize(
    "statement", [None, 5, ["COMMIT"], object(), sql.SQL("COMMIT {}").format(sql.Literal(object()))]
)
def test_statement_of_another_type(statement):
    """What is no text is not looked into, and does no harm."""
    frame = ("psycopg.cursor", "execute", {"query": statement})
    assert phase_of(passed_through(ValueError(), frame)) == "execute"


@pytest.mark.parametrize(
    "statement",
    [
        b"/* */" * 22,
        b"/* shop */ INSERT INTO t VALUES ('" + b"*/ /*" * 22 + b"')",
        b"-- \n" * 5000,
        b" " * 5000,
        b"/*" * 5000,
        b"INSERT INTO t VALUES ('" + b";" * 5_000_000 + b"')",
        b"INSERT INTO t VALUES ('" + b"x;\\'" * 500_000 + b"')",
    ],
    ids=[
        "comments",
        "comments in a value",
        "lines",
        "spaces",
        "open comments",
        "semicolons",
        "quotes",
    ],
)
def test_statement_takes_no_time(statement):
    """G2: looking for a COMMIT takes no time, whatever a client has put into the statement."""
    assert min(timeit.repeat(lambda: commits(statement), number=1, repeat=3)) < 0.05


class Connection:
    """One that has autocommit on."""

    autocommit = True


@pytest.mark.parametrize(
    ("statement", "phase"),
    [
        ("SELECT a FROM t", "execute"),
        ("SELECT COUNT(*) FROM t", "execute"),
        ("SELECT pg_catalog.version()", "execute"),
        ("SHOW TABLES", "execute"),
        ("EXPLAIN SELECT 1", "execute"),
        ("INSERT INTO t VALUES (1)", "commit"),
        ("SELECT create_order(17)", "commit"),
        ("SELECT * FROM create_order(17)", "commit"),
        ("SELECT a INTO copy FROM t", "commit"),
        ("EXPLAIN ANALYZE INSERT INTO t VALUES (1)", "commit"),
        ("EXPLAIN (VERBOSE, ANALYZE) DELETE FROM t", "commit"),
        ("SET STATEMENT max_statement_time = 9 FOR INSERT INTO t VALUES (1)", "commit"),
        ("SELECT 1; INSERT INTO t VALUES (1)", "commit"),
    ],
)
def test_autocommit(statement, phase):
    """G4: in autocommit what may write is a COMMIT of its own, also in the clothes of a read."""
    frame = ("psycopg.cursor", "execute", {"self": Connection(), "query": statement})
    assert phase_of(passed_through(ValueError(), frame)) == phase


@pytest.mark.parametrize(
    ("phase", "frames"),
    [
        ("connect", [("psycopg2", "connect", {}), APP, ("sqlalchemy.pool.base", "__connect", {})]),
        ("commit", [("pymysql.connections", "commit", {}), APP, ("psycopg2", "connect", {})]),
        ("unknown", [APP, ("sqlalchemy.pool.base", "__connect", {})]),
    ],
)
def test_callback_in_a_connect(phase, frames):
    """G4: what the app's own code does while a driver connects is not part of the connect."""
    assert phase_of(passed_through(ValueError(), *frames)) == phase
