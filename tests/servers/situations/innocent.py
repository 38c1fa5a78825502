"""What a replay would not cure: classify leaves it to the app."""

from __future__ import annotations

from tests.servers.situations.base import Situation, Stage, attempted, caught, situation

SITUATIONS: list[Situation] = []
SERVERS = ("mariadb", "postgresql")


def _statement(stage: Stage, *statements: str) -> Exception:
    session = stage.connect()
    for statement in statements[:-1]:
        session.execute(statement)
    return caught(session.execute, statements[-1])


@situation("syntax error", *SERVERS, verdict=None, into=SITUATIONS)
def syntax_error(stage: Stage) -> Exception:
    """1064 and 42601."""
    return _statement(stage, "SELEC 1")


@situation("missing table", *SERVERS, verdict=None, into=SITUATIONS)
def missing_table(stage: Stage) -> Exception:
    """A text that looks like a failure's proves nothing."""
    return _statement(stage, "SELECT 'server closed the connection, too many clients' FROM nope")


@situation("duplicate key", *SERVERS, verdict=None, into=SITUATIONS)
def duplicate_key(stage: Stage) -> Exception:
    """1062 and 23505."""
    return _statement(stage, "INSERT INTO t VALUES (1, 1)")


@situation("permission denied", *SERVERS, verdict=None, into=SITUATIONS)
def permission_denied(stage: Stage) -> Exception:
    """1142 and 42501."""
    return _statement(stage, f"SELECT * FROM {'mysql.user' if stage.mysql else 'pg_authid'}")


@situation("statement timeout", *SERVERS, verdict=None, into=SITUATIONS)
def statement_timeout(stage: Stage) -> Exception:
    """1969 and 57014: it would take as long again."""
    if stage.mysql:
        return _statement(
            stage,
            "SET max_statement_time = 0.01",
            "SELECT COUNT(*) FROM seq_1_to_100000000 WHERE seq MOD 7 = 3",
        )
    return _statement(stage, "SET statement_timeout = 10", "SELECT pg_sleep(60)")


@situation("query cancelled", *SERVERS, verdict=None, into=SITUATIONS)
def query_cancelled(stage: Stage) -> Exception:
    """1317 and 57014: somebody did not want it."""
    cancel = "KILL QUERY CONNECTION_ID()"
    return _statement(
        stage, cancel if stage.mysql else "SELECT pg_cancel_backend(pg_backend_pid())"
    )


@situation("packet too large", "mariadb", verdict=None, into=SITUATIONS, is_race=True)
def packet_too_large(stage: Stage) -> Exception:
    """More than max_allowed_packet, 16 MB by default: it would be as large again."""
    return _statement(stage, f"SELECT LENGTH('{'x' * (17 << 20)}')")


@situation("closed by the app", *SERVERS, verdict=None, into=SITUATIONS, may_pass=True)
def closed_by_the_app(stage: Stage) -> Exception | None:
    """A bug of the app, if it is not opened again by itself."""
    session = stage.connect()
    session.execute("SELECT b FROM t WHERE a = 1")
    session.close()
    return attempted(session.execute, "SELECT b FROM t WHERE a = 1")


@situation("shared by two tasks", *SERVERS, verdict=None, into=SITUATIONS, needs="collide")
def shared_by_two_tasks(stage: Stage) -> Exception:
    """A bug of the app: they would meet again."""
    return caught(stage.stack.collide, stage.connect())
