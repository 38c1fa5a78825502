"""Connections that are lost."""

from __future__ import annotations

from collections.abc import Callable

from tests.servers.situations.base import (
    Meanwhile,
    Situation,
    Stage,
    Verdict,
    attempted,
    caught,
    situation,
    wait_until,
)

SITUATIONS: list[Situation] = []
SERVERS = ("mariadb", "postgresql")

LOST: Verdict = ("disconnection", "execute")
MAYBE_COMMITTED: Verdict = ("disconnection", "commit")


def _while_idle(stage: Stage, fault: Callable[[], object]) -> Exception:
    session = stage.connect()
    session.execute("SELECT b FROM t WHERE a = 1")
    fault()
    return caught(session.execute, "SELECT b FROM t WHERE a = 1")


def _while_running(stage: Stage, fault: Callable[[], object]) -> Exception:
    session = stage.connect()
    session.execute("SELECT b FROM t WHERE a = 1")
    nap = f"SELECT {'SLEEP' if stage.mysql else 'pg_sleep'}(60) FROM t"
    query = Meanwhile(session.execute, nap)
    wait_until(lambda: is_running(stage, nap))
    fault()
    return query.raised()


def is_running(stage: Stage, statement: str) -> bool:
    """Whether a client is in the midst of this statement."""
    active = (
        "information_schema.processlist WHERE info"
        if stage.mysql
        else "pg_stat_activity WHERE state = 'active' AND query"
    )
    return bool(stage.server.execute(f"SELECT 1 FROM {active} LIKE '{statement}%'"))


@situation("killed while idle", *SERVERS, verdict=LOST, into=SITUATIONS)
def killed_while_idle(stage: Stage) -> Exception:
    """KILL and pg_terminate_backend between two statements of a transaction."""
    return _while_idle(stage, stage.server.kill_connections)


@situation("killed while running", *SERVERS, verdict=LOST, into=SITUATIONS)
def killed_while_running(stage: Stage) -> Exception:
    """KILL and pg_terminate_backend while a statement runs."""
    return _while_running(stage, stage.server.kill_connections)


@situation("server killed while idle", *SERVERS, verdict=LOST, into=SITUATIONS)
def server_killed_while_idle(stage: Stage) -> Exception:
    """SIGKILL for all of the server's processes, between two statements."""
    stage.at_end(stage.server.start)
    return _while_idle(stage, stage.server.kill)


@situation("server killed while running", *SERVERS, verdict=LOST, into=SITUATIONS)
def server_killed_while_running(stage: Stage) -> Exception:
    """SIGKILL for all of the server's processes while a statement runs."""
    stage.at_end(stage.server.start)
    return _while_running(stage, stage.server.kill)


@situation("server stopped while idle", *SERVERS, verdict=LOST, into=SITUATIONS)
def server_stopped_while_idle(stage: Stage) -> Exception:
    """An orderly shutdown between two statements."""
    stage.at_end(stage.server.start)
    return _while_idle(stage, stage.server.stop)


@situation("server stopped while running", *SERVERS, verdict=LOST, into=SITUATIONS)
def server_stopped_while_running(stage: Stage) -> Exception:
    """An orderly shutdown while a statement runs."""
    stage.at_end(stage.server.start)
    return _while_running(stage, stage.server.stop)


def _in_a_query(stage: Stage, how: str, **changes: object) -> Exception:
    session = stage.connect(stage.through_proxy(**changes))
    session.execute("SELECT b FROM t WHERE a = 1")
    stage.at_end(stage.proxy.clear)
    stage.proxy.cut(how, 1)
    return caught(session.execute, "SELECT b FROM t WHERE a = 1")


@situation("reset in a query", *SERVERS, verdict=LOST, into=SITUATIONS)
def reset_in_a_query(stage: Stage) -> Exception:
    """A TCP reset instead of the answer."""
    return _in_a_query(stage, "reset")


@situation("FIN in a query", *SERVERS, verdict=LOST, into=SITUATIONS)
def fin_in_a_query(stage: Stage) -> Exception:
    """The end of the stream instead of the answer."""
    return _in_a_query(stage, "fin")


@situation("blackhole in a query", *SERVERS, verdict=LOST, into=SITUATIONS)
def blackhole_in_a_query(stage: Stage) -> Exception:
    """No answer and no end; the driver's read timeout is what ends it."""
    return _in_a_query(stage, "blackhole", read_timeout=1)


def _in_a_commit(stage: Stage, moment: str, *, stored: bool, by_statement: bool) -> Exception:
    session = stage.connect(stage.through_proxy())
    session.execute("INSERT INTO t VALUES (3, 0)")
    stage.at_end(stage.proxy.clear)
    stage.proxy.cut("reset", moment)
    exc = caught(session.execute, "COMMIT") if by_statement else caught(session.commit)
    rows = "SELECT a FROM t WHERE a = 3"
    wait_until(lambda: bool(stage.server.execute(rows)) is stored)  # the server may not be done yet
    return exc


@situation("cut before COMMIT", *SERVERS, verdict=MAYBE_COMMITTED, into=SITUATIONS)
def cut_before_commit(stage: Stage) -> Exception:
    """The COMMIT never got there; who sent it can't know."""
    return _in_a_commit(stage, "before-commit", stored=False, by_statement=False)


@situation("cut after COMMIT", *SERVERS, verdict=MAYBE_COMMITTED, into=SITUATIONS)
def cut_after_commit(stage: Stage) -> Exception:
    """G4: it is committed, but the answer is lost."""
    return _in_a_commit(stage, "commit", stored=True, by_statement=False)


@situation("cut in a COMMIT statement", *SERVERS, verdict=MAYBE_COMMITTED, into=SITUATIONS)
def cut_in_a_commit_statement(stage: Stage) -> Exception:
    """G4: the same, for a COMMIT that is executed like any statement."""
    return _in_a_commit(stage, "commit", stored=True, by_statement=True)


def _in_an_insert(stage: Stage, *, autocommit: bool) -> Exception:
    """The server works on it, and waits for somebody else's row."""
    holder = stage.connect()
    holder.execute("INSERT INTO t VALUES (3, 0)")
    session = stage.connect(stage.through_proxy(), autocommit=autocommit)
    session.execute("SELECT b FROM t WHERE a = 1")
    insert = Meanwhile(session.execute, "INSERT INTO t VALUES (3, 7)")
    wait_until(lambda: is_running(stage, "INSERT INTO t VALUES (3, 7)"))
    stage.proxy.cut_all("reset")
    return insert.raised()


@situation("cut in an INSERT", *SERVERS, verdict=LOST, into=SITUATIONS)
def cut_in_an_insert(stage: Stage) -> Exception:
    """In a transaction, which the server undoes."""
    return _in_an_insert(stage, autocommit=False)


@situation("cut in autocommit", *SERVERS, verdict=MAYBE_COMMITTED, into=SITUATIONS)
def cut_in_autocommit(stage: Stage) -> Exception:
    """G4: the statement is a commit of its own, and may have been done."""
    return _in_an_insert(stage, autocommit=True)


@situation("cut in a SELECT in autocommit", *SERVERS, verdict=LOST, into=SITUATIONS)
def cut_in_a_select_in_autocommit(stage: Stage) -> Exception:
    """There is nothing to commit."""
    session = stage.connect(stage.through_proxy(), autocommit=True)
    session.execute("SELECT b FROM t WHERE a = 1")
    stage.at_end(stage.proxy.clear)
    stage.proxy.cut("reset", 1)
    return caught(session.execute, "SELECT b FROM t WHERE a = 2")


@situation("killed, then rolled back", *SERVERS, verdict=LOST, into=SITUATIONS, may_pass=True)
def killed_then_rolled_back(stage: Stage) -> Exception | None:
    """A rollback that is lost commits nothing."""
    session = stage.connect()
    session.execute("INSERT INTO t VALUES (3, 0)")
    stage.server.kill_connections()
    return attempted(session.rollback)


@situation("rolled back after a lost COMMIT", *SERVERS, verdict=MAYBE_COMMITTED, into=SITUATIONS)
def rolled_back_after_a_lost_commit(stage: Stage) -> Exception:
    """G4: the rollback of ``except: rollback(); raise`` fails as well, and hides nothing."""
    session = stage.connect()
    session.execute("INSERT INTO t VALUES (3, 0)")
    stage.server.kill_connections()
    return caught(session.commit_or_roll_back)


@situation("used again after it was lost", *SERVERS, verdict=LOST, into=SITUATIONS, may_pass=True)
def used_again(stage: Stage) -> Exception | None:
    """The app took no notice. Some stacks connect anew by themselves."""
    session = stage.connect()
    session.execute("SELECT b FROM t WHERE a = 1")
    stage.server.kill_connections()
    caught(session.execute, "SELECT b FROM t WHERE a = 1")
    return attempted(session.execute, "SELECT b FROM t WHERE a = 1")


@situation("idle timeout", *SERVERS, verdict=LOST, into=SITUATIONS)
def idle_timeout(stage: Stage) -> Exception:
    """wait_timeout and idle_session_timeout: nothing was asked for too long."""
    session = stage.connect()
    if stage.mysql:
        session.execute("SET SESSION wait_timeout = 1")
    else:
        session.execute("SET SESSION idle_session_timeout = '20ms'")
        session.commit()
    wait_until(lambda: not stage.server.connection_count())
    return caught(session.execute, "SELECT b FROM t WHERE a = 1")


@situation("idle in transaction timeout", *SERVERS, verdict=LOST, into=SITUATIONS)
def idle_in_transaction_timeout(stage: Stage) -> Exception:
    """idle_transaction_timeout and idle_in_transaction_session_timeout."""
    session = stage.connect()
    if stage.mysql:
        session.execute("SET SESSION idle_transaction_timeout = 1")
    else:
        session.execute("SET SESSION idle_in_transaction_session_timeout = '20ms'")
    attempted(session.execute, "INSERT INTO t VALUES (3, 0)")
    wait_until(lambda: not stage.server.connection_count())
    return caught(session.execute, "SELECT b FROM t WHERE a = 1")
