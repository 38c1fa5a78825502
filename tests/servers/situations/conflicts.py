"""Transactions that got into each other's way."""

from __future__ import annotations

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

UNDONE: Verdict = ("conflict", "execute")


@situation("deadlock", "mariadb", "postgresql", verdict=UNDONE, into=SITUATIONS)
def deadlock(stage: Stage) -> Exception:
    """1213 and 40P01: two wait for each other, and the server undoes one of them."""
    one, two = stage.connect(), stage.connect()
    one.execute("UPDATE t SET b = b + 1 WHERE a = 1")
    two.execute("UPDATE t SET b = b + 1 WHERE a = 2")

    def finish() -> None:
        one.execute("UPDATE t SET b = b + 1 WHERE a = 2")
        one.commit()

    waiting = Meanwhile(finish)
    wait_until(lambda: _is_waiting(stage))
    exc = attempted(two.execute, "UPDATE t SET b = b + 1 WHERE a = 1")
    if exc is None:
        two.commit()
        return waiting.raised()
    two.rollback()
    assert waiting.exception() is None
    return exc


def _is_waiting(stage: Stage) -> bool:
    waiting = (
        "information_schema.global_status"
        " WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS' AND variable_value > 0"
        if stage.mysql
        else "pg_stat_activity WHERE wait_event_type = 'Lock'"
    )
    return bool(stage.server.execute(f"SELECT 1 FROM {waiting}"))


@situation("lock wait", "mariadb", "postgresql", verdict=UNDONE, into=SITUATIONS)
def lock_wait(stage: Stage) -> Exception:
    """1205 and 55P03: the lock did not come."""
    holder, waiter = stage.connect(), stage.connect()
    holder.execute("SELECT b FROM t WHERE a = 1 FOR UPDATE")
    return caught(waiter.execute, "SELECT b FROM t WHERE a = 1 FOR UPDATE NOWAIT")


@situation("snapshot conflict", "mariadb", verdict=UNDONE, into=SITUATIONS)
def snapshot_conflict(stage: Stage) -> Exception:
    """1020: the row was changed since the transaction's snapshot."""
    reader, writer = stage.connect(), stage.connect()
    reader.execute("SET SESSION innodb_snapshot_isolation = ON")
    reader.execute("SELECT SUM(b) FROM t")
    writer.execute("UPDATE t SET b = 1 WHERE a = 1")
    writer.commit()
    return caught(reader.execute, "UPDATE t SET b = 2 WHERE a = 1")


@situation("serialization", "postgresql", verdict=UNDONE, into=SITUATIONS)
def serialization(stage: Stage) -> Exception:
    """40001: the row was changed since the transaction's snapshot."""
    reader, writer = stage.connect(), stage.connect()
    reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    reader.execute("SELECT SUM(b) FROM t")
    writer.execute("UPDATE t SET b = 1 WHERE a = 1")
    writer.commit()
    return caught(reader.execute, "UPDATE t SET b = 2 WHERE a = 1")


@situation(
    "serialization in the COMMIT", "postgresql", verdict=("conflict", "commit"), into=SITUATIONS
)
def serialization_in_the_commit(stage: Stage) -> Exception:
    """40001 from the COMMIT: an answer, so nothing was committed."""
    pair = stage.connect(), stage.connect()
    for number, session in enumerate(pair, start=1):
        session.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        session.execute("SELECT SUM(b) FROM t")
        session.execute(f"UPDATE t SET b = 7 WHERE a = {number}")
    pair[0].commit()
    return caught(pair[1].commit)
