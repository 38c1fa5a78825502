"""SQLite: files instead of servers, and locks instead of lost connections."""

from __future__ import annotations

import gc
import sqlite3
from contextlib import suppress
from pathlib import Path

from retrymw.exceptions import Kind, Phase
from tests.servers.situations.base import (
    Meanwhile,
    Situation,
    Stage,
    attempted,
    caught,
    situation,
)
from tests.servers.stacks.base import Session, Where

SITUATIONS: list[Situation] = []

UNDONE: tuple[Kind, Phase] = ("conflict", "execute")


def _path(stage: Stage) -> Path:
    return stage.server / "t.db"


def _where(database: object) -> Where:
    return Where(host="", port=0, database=str(database), connect_timeout=0)  # to wait for a lock


def _connect(stage: Stage) -> Session:
    return stage.connect(_where(_path(stage)))


def _other(stage: Stage, *statements: str, database: object = None) -> sqlite3.Connection:
    """Somebody else's connection, after some statements."""
    name = str(database or _path(stage))
    other = sqlite3.connect(name, isolation_level=None, uri=name.startswith("file:"))
    stage.at_end(other.close)
    for statement in statements:
        other.execute(statement).fetchall()
    return other


@situation("busy", "sqlite", verdict=UNDONE, into=SITUATIONS)
def busy(stage: Stage) -> Exception:
    """SQLITE_BUSY: somebody else is writing."""
    session = _connect(stage)
    _other(stage, "BEGIN IMMEDIATE")
    return caught(session.execute, "INSERT INTO t VALUES (3, 0)")


@situation("busy in the COMMIT", "sqlite", verdict=("conflict", "commit"), into=SITUATIONS)
def busy_in_the_commit(stage: Stage) -> Exception:
    """SQLITE_BUSY: somebody else is reading, so nothing was committed."""
    session = _connect(stage)
    _other(stage, "BEGIN", "SELECT b FROM t")
    session.execute("INSERT INTO t VALUES (3, 0)")
    return caught(session.commit)


@situation("busy snapshot", "sqlite", verdict=UNDONE, into=SITUATIONS, may_pass=True)
def busy_snapshot(stage: Stage) -> Exception | None:
    """SQLITE_BUSY_SNAPSHOT: somebody else has written what the transaction has read (WAL)."""
    other = _other(stage, "PRAGMA journal_mode = WAL")
    session = _connect(stage)
    session.execute("SELECT b FROM t")
    other.execute("UPDATE t SET b = 1 WHERE a = 1")
    return attempted(session.execute, "UPDATE t SET b = 2 WHERE a = 1")


@situation("shared cache locked", "sqlite", verdict=UNDONE, into=SITUATIONS)
def shared_cache_locked(stage: Stage) -> Exception:
    """SQLITE_LOCKED_SHAREDCACHE: another connection of the same process is writing the table."""
    database = f"file:{_path(stage)}?cache=shared"
    session = stage.connect(_where(database))
    _other(stage, "BEGIN", "UPDATE t SET b = 1 WHERE a = 1", database=database)
    return caught(session.execute, "SELECT b FROM t")


@situation("read-only database", "sqlite", verdict=None, into=SITUATIONS)
def read_only_database(stage: Stage) -> Exception:
    """SQLITE_READONLY."""
    return _statement(stage, "PRAGMA query_only = 1", "INSERT INTO t VALUES (3, 0)")


@situation("no database", "sqlite", verdict=None, into=SITUATIONS)
def no_database(stage: Stage) -> Exception:
    """SQLITE_NOTADB: the file is something else."""
    path = stage.folder / "picture.png"
    path.write_bytes(b"\x89PNG" * 1000)
    return caught(lambda: stage.connect(_where(path)).execute("SELECT b FROM t"))


@situation("missing folder", "sqlite", verdict=None, into=SITUATIONS)
def missing_folder(stage: Stage) -> Exception:
    """SQLITE_CANTOPEN."""
    path = stage.folder / "missing" / "t.db"
    return caught(lambda: stage.connect(_where(path)).execute("SELECT b FROM t"))


def _statement(stage: Stage, *statements: str) -> Exception:
    session = _connect(stage)
    for statement in statements[:-1]:
        session.execute(statement)
    return caught(session.execute, statements[-1])


@situation("syntax error", "sqlite", verdict=None, into=SITUATIONS)
def syntax_error(stage: Stage) -> Exception:
    """SQLITE_ERROR."""
    return _statement(stage, "SELEC 1")


@situation("missing table", "sqlite", verdict=None, into=SITUATIONS)
def missing_table(stage: Stage) -> Exception:
    """A text that looks like a failure's proves nothing."""
    return _statement(stage, 'SELECT 1 FROM "database is locked"')


@situation("duplicate key", "sqlite", verdict=None, into=SITUATIONS)
def duplicate_key(stage: Stage) -> Exception:
    """SQLITE_CONSTRAINT_PRIMARYKEY."""
    return _statement(stage, "INSERT INTO t VALUES (1, 1)")


@situation("disk full", "sqlite", verdict=None, into=SITUATIONS)
def disk_full(stage: Stage) -> Exception:
    """SQLITE_FULL: it will be full again."""
    return _statement(
        stage, "PRAGMA max_page_count = 10", "INSERT INTO t VALUES (3, zeroblob(1000000))"
    )


@situation("interrupted", "sqlite", verdict=None, into=SITUATIONS)
def interrupted(stage: Stage) -> Exception:
    """SQLITE_INTERRUPT: somebody did not want it."""
    session = _connect(stage)
    over = False

    def interrupt() -> None:
        every = [found for found in gc.get_objects() if issubclass(type(found), sqlite3.Connection)]
        while not over:
            for connection in every:
                with suppress(sqlite3.ProgrammingError):  # a closed one
                    connection.interrupt()

    interrupting = Meanwhile(interrupt)
    forever = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT count(*) FROM n"
    exc = caught(session.execute, forever)
    over = True
    assert interrupting.exception() is None
    return exc


@situation("closed by the app", "sqlite", verdict=None, into=SITUATIONS, may_pass=True)
def closed_by_the_app(stage: Stage) -> Exception | None:
    """A bug of the app, if it is not opened again by itself."""
    session = _connect(stage)
    session.execute("SELECT b FROM t WHERE a = 1")
    session.close()
    return attempted(session.execute, "SELECT b FROM t WHERE a = 1")


@situation("used by two threads", "sqlite", verdict=None, into=SITUATIONS, may_pass=True)
def used_by_two_threads(stage: Stage) -> Exception | None:
    """A bug of the app, if each connection has no thread of its own."""
    return Meanwhile(_connect(stage).execute, "SELECT b FROM t").exception()


@situation(
    "pool dry",
    "sqlite",
    verdict=("too-many-connections", "connect"),
    into=SITUATIONS,
    needs="pool",
)
def pool_dry(stage: Stage) -> Exception:
    """Its only connection is in use."""
    pool = stage.pool(_where(_path(stage)))
    pool.acquire()
    return caught(pool.acquire)
