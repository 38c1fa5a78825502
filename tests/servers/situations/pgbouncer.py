"""What becomes of a connection with PgBouncer in between."""

from __future__ import annotations

from collections.abc import Callable

from tests.servers.situations.base import (
    Meanwhile,
    Situation,
    Stage,
    Verdict,
    caught,
    situation,
    wait_until,
)

SITUATIONS: list[Situation] = []

FULL: Verdict = ("too-many-connections", "connect")
UNREACHABLE: Verdict = ("disconnection", "connect")
LOST: Verdict = ("disconnection", "execute")
MAYBE_COMMITTED: Verdict = ("disconnection", "commit")

READ = "SELECT b FROM t WHERE a = 1"


def _set(stage: Stage, **settings: object) -> None:
    before = stage.server.set(**settings)
    stage.at_end(lambda: stage.server.set(**before))


def _first(stage: Stage, **changes: object) -> Exception:
    """What comes of the first statement, or of the connect before it."""

    def use() -> None:
        stage.connect(stage.where(**changes)).execute(READ)

    return caught(use)


# Connecting.


@situation("PgBouncer full", "pgbouncer", verdict=FULL, into=SITUATIONS)
def full(stage: Stage) -> Exception:
    """As many clients as max_client_conn allows."""
    with stage.server.fill():
        return _first(stage)


@situation("PgBouncer down", "pgbouncer", verdict=UNREACHABLE, into=SITUATIONS)
def down(stage: Stage) -> Exception:
    """Nobody listens."""
    stage.at_end(stage.server.start)
    stage.server.stop()
    return _first(stage)


@situation("wrong password at PgBouncer", "pgbouncer", verdict=None, into=SITUATIONS)
def wrong_password(stage: Stage) -> Exception:
    """PgBouncer itself says no."""
    return _first(stage, password="wrong")


@situation("unknown database at PgBouncer", "pgbouncer", verdict=None, into=SITUATIONS)
def unknown_database(stage: Stage) -> Exception:
    """PgBouncer itself says no."""
    return _first(stage, database="nowhere")


@situation("database disabled at PgBouncer", "pgbouncer", verdict=None, into=SITUATIONS)
def database_disabled(stage: Stage) -> Exception:
    """Somebody did so on its console."""
    stage.at_end(stage.server.execute, "ENABLE app")
    stage.server.execute("DISABLE app")
    return _first(stage)


@situation("wrong password behind PgBouncer", "pgbouncer", verdict=None, into=SITUATIONS)
def wrong_password_behind(stage: Stage) -> Exception:
    """PgBouncer passes on what the server said to it."""
    return _first(stage, database="misconfigured")


@situation("role full behind PgBouncer", "pgbouncer", verdict=FULL, into=SITUATIONS)
def role_full_behind(stage: Stage) -> Exception:
    """PgBouncer passes on what the server said to it, without the 53300."""
    upstream = stage.server.upstream
    stage.at_end(upstream.execute, "ALTER ROLE app CONNECTION LIMIT -1")
    upstream.execute("ALTER ROLE app CONNECTION LIMIT 0")
    _forget_connections(stage)
    return _first(stage)


@situation("server down behind PgBouncer", "pgbouncer", verdict=UNREACHABLE, into=SITUATIONS)
def server_down_behind(stage: Stage) -> Exception:
    """PgBouncer lets in nobody it has no connection for, and waits for one."""
    _set(stage, query_wait_timeout=1)
    with stage.server.proxy.refuse():
        _forget_connections(stage)
        return _first(stage)


def _forget_connections(stage: Stage) -> None:
    stage.server.proxy.cut_all("reset")
    wait_until(lambda: not stage.server.execute("SHOW SERVERS"))


@situation("PgBouncer's pool dry", "pgbouncer", verdict=FULL, into=SITUATIONS)
def pool_dry(stage: Stage) -> Exception:
    """All its connections to the server are in use for longer than query_wait_timeout."""
    _set(stage, query_wait_timeout=1, default_pool_size=1)
    _forget_connections(stage)
    stage.connect().execute(READ)
    return _first(stage)


# Losing what was connected.


def _in_a_transaction(stage: Stage, fault: Callable[[], object]) -> Exception:
    session = stage.connect()
    session.execute(READ)
    fault()
    return caught(session.execute, READ)


@situation("killed behind PgBouncer while idle", "pgbouncer", verdict=LOST, into=SITUATIONS)
def killed_behind_while_idle(stage: Stage) -> Exception:
    """pg_terminate_backend between two statements of a transaction."""
    return _in_a_transaction(stage, stage.server.upstream.kill_connections)


@situation("killed behind PgBouncer while running", "pgbouncer", verdict=LOST, into=SITUATIONS)
def killed_behind_while_running(stage: Stage) -> Exception:
    """pg_terminate_backend while a statement runs."""
    upstream = stage.server.upstream
    session = stage.connect()
    session.execute(READ)
    query = Meanwhile(session.execute, "SELECT pg_sleep(60)")
    napping = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query ~ '^SELECT pg_sleep'"
    wait_until(lambda: upstream.execute(napping))
    upstream.kill_connections()
    return query.raised()


@situation("cut behind PgBouncer in a query", "pgbouncer", verdict=LOST, into=SITUATIONS)
def cut_behind(stage: Stage) -> Exception:
    """The server's side is reset while PgBouncer waits for the answer."""
    return _in_a_transaction(stage, lambda: stage.server.proxy.cut("reset", 1))


@situation(
    "cut behind PgBouncer after COMMIT", "pgbouncer", verdict=MAYBE_COMMITTED, into=SITUATIONS
)
def cut_behind_after_commit(stage: Stage) -> Exception:
    """G4: it is committed, but PgBouncer never learns."""
    session = stage.connect()
    session.execute("INSERT INTO t VALUES (3, 0)")
    stage.server.proxy.cut("reset", "commit")
    exc = caught(session.commit)
    assert stage.server.upstream.execute("SELECT a FROM t WHERE a = 3")
    return exc


@situation("PgBouncer killed", "pgbouncer", verdict=LOST, into=SITUATIONS)
def killed(stage: Stage) -> Exception:
    """SIGKILL between two statements of a transaction."""
    stage.at_end(stage.server.start)
    return _in_a_transaction(stage, stage.server.kill)


@situation("idle too long for PgBouncer", "pgbouncer", verdict=LOST, into=SITUATIONS)
def idle(stage: Stage) -> Exception:
    """client_idle_timeout: nothing was asked between two transactions."""
    session = stage.connect()
    session.execute(READ)
    session.rollback()
    _set(stage, client_idle_timeout=1)
    wait_until(lambda: not stage.server.connection_count())
    return caught(session.execute, READ)


@situation("idle in transaction for PgBouncer", "pgbouncer", verdict=LOST, into=SITUATIONS)
def idle_in_transaction(stage: Stage) -> Exception:
    """idle_transaction_timeout: nothing was asked between two statements of a transaction."""

    def wait() -> None:
        _set(stage, idle_transaction_timeout=1)
        wait_until(lambda: not stage.server.connection_count())

    return _in_a_transaction(stage, wait)


@situation("statement timeout of PgBouncer", "pgbouncer", verdict=None, into=SITUATIONS)
def query_timeout(stage: Stage) -> Exception:
    """query_timeout: it would take as long again."""
    session = stage.connect()
    session.execute(READ)
    _set(stage, query_timeout=1)
    return caught(session.execute, "SELECT pg_sleep(60)")
