"""Every driver and layer, in every way to fail: one honest answer to "was that the database?"."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from retrymw._core.failure import Failure
from retrymw.classify import classify
from retrymw.testing._process import ProcessTree
from retrymw.testing.servers import PostgreSQL
from tests.servers.matrix import PAGE, Cell, Seen, cells
from tests.servers.pgbouncer import PgBouncer
from tests.servers.situations.base import Stage, attempted, wait_until
from tests.servers.stacks.base import AsyncStack

CELLS = list(cells())


@pytest.fixture(scope="session", autouse=True)
def _loop() -> Iterator[None]:
    with start_blocking_portal() as AsyncStack.portal:
        yield


@pytest.fixture(scope="session")
def seen() -> Seen:
    """What was seen in the cells."""
    return Seen()


@pytest.fixture(scope="session")
def starting_postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server that does not get beyond its recovery."""
    with PostgreSQL(
        settings={"restore_command": "while test -e ../hold; do sleep 0.05; done"}
    ) as server:
        server.stop()
        for name in ("hold", "data/recovery.signal"):
            (server.folder / name).touch()
            server._give(server.folder / name)
        server._processes = ProcessTree(server._command(), server.folder, server._account)
        wait_until(lambda: "starting up" in str(attempted(server.execute, "SELECT 1")))
        yield server
        (server.folder / "hold").unlink()


@pytest.fixture
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """A stack and the server it needs; everything is thrown away and put back afterwards."""
    stack = request.param.stack
    server = request.getfixturevalue(f"matrix_{stack.server}")
    proxy = None
    if stack.server in ("mariadb", "postgresql"):
        proxy = request.getfixturevalue(f"{stack.server}_proxy")
    stage = Stage(stack, server, proxy, request.getfixturevalue, tmp_path)
    yield stage
    for undo in reversed(stage.undo):
        undo()


@pytest.fixture
def matrix_mariadb(mariadb):
    mariadb.execute("CREATE OR REPLACE TABLE app.t (a INT PRIMARY KEY, b INT)")
    mariadb.execute("INSERT INTO app.t VALUES (1, 0), (2, 0)")
    yield mariadb
    mariadb.start()
    mariadb.kill_connections()
    mariadb.execute("DROP TABLE app.t")


@pytest.fixture
def matrix_postgresql(postgresql):
    postgresql.execute("ALTER ROLE app SET deadlock_timeout = '10ms'")
    postgresql.execute("CREATE TABLE t (a INT PRIMARY KEY, b INT)")
    postgresql.execute("ALTER TABLE t OWNER TO app")
    postgresql.execute("INSERT INTO t VALUES (1, 0), (2, 0)")
    yield postgresql
    postgresql.start()
    postgresql.kill_connections()
    postgresql.execute("DROP TABLE t")
    postgresql.execute("ALTER ROLE app RESET deadlock_timeout")


@pytest.fixture
def matrix_pgbouncer(matrix_postgresql, pgbouncer):
    yield pgbouncer
    pgbouncer.start()


@pytest.fixture(scope="session")
def pgbouncer(postgresql):
    with PgBouncer(postgresql) as server:
        yield server


@pytest.fixture
def matrix_sqlite(tmp_path):
    with closing(sqlite3.connect(tmp_path / "t.db")) as connection:
        connection.execute("CREATE TABLE t (a INT PRIMARY KEY, b INT)")
        connection.execute("INSERT INTO t VALUES (1, 0), (2, 0)")
        connection.commit()
    return tmp_path


@pytest.mark.timeout(60)
# What drivers and layers warn of is not ours; some leave sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("stage", "cell"), [(cell, cell) for cell in CELLS], ids=map(str, CELLS), indirect=["stage"]
)
def test_cell(stage: Stage, cell: Cell, seen: Seen, request: pytest.FixtureRequest) -> None:
    """Kind and phase are right, and whatever has become of a connection can be thrown away."""
    exc = cell.situation.provoke(stage)
    failure = classify(exc) if exc is not None else None
    throw_away(stage)
    if exc is None:
        assert cell.situation.may_pass
    else:
        assert (failure and (failure.kind, failure.phase)) == cell.verdict, repr(exc)
    raised = described(exc, failure)
    if request.config.getoption("--write-matrix"):
        seen.add(cell, raised)
    assert seen.knows(cell, raised), f"{raised}: the page is stale: run make matrix"


def throw_away(stage: Stage) -> None:
    """Roll back and close what the cell has opened: nothing but the same failure may come of it."""
    for session in reversed(stage.sessions):
        failed = attempted(session.rollback)
        assert (
            failed is None or getattr(classify(failed), "kind", "disconnection") == "disconnection"
        )
        session.close()
    for pool in stage.pools:
        pool.close()
    if getattr(stage.server, "running", False) and not stage.undo:
        wait_until(lambda: not stage.server.connection_count())


def described(exc: Exception | None, failure: Failure | None) -> str:
    """Class and code of what was raised."""
    if exc is None:
        return "nothing"
    code = failure.code if failure is not None else code_of(exc)
    return " ".join([type(exc).__name__, *([str(code)] if code is not None else [])])


def code_of(exc: BaseException) -> object:
    """The code of an exception that is not ours, wherever its driver keeps it."""
    for link in (exc, getattr(exc, "orig", None), exc.__cause__):
        first = getattr(link, "args", ()) and link.args[0]
        if isinstance(first, dict) and "C" in first:
            return first["C"]
        if isinstance(first, int):
            return first
        for name in ("errno", "sqlstate", "pgcode", "sqlite_errorcode"):
            code = getattr(link, name, None)
            if code is not None and not callable(code):
                return code
    return None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the cells
def test_page(seen: Seen, request: pytest.FixtureRequest) -> None:
    """The page tells what was seen, no more and no less."""
    if request.config.getoption("--write-matrix"):
        seen.write()
    assert PAGE.read_text() == seen.page(), "the page is stale: run make matrix"
