"""Connections that are not made."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, closing

import psycopg

from retrymw.testing.servers import PostgreSQL
from tests.servers.situations.base import (
    Situation,
    Stage,
    Verdict,
    attempted,
    caught,
    situation,
    wait_until,
)

SITUATIONS: list[Situation] = []

FULL: Verdict = ("too-many-connections", "connect")
UNREACHABLE: Verdict = ("disconnection", "connect")


def _refused_by(stage: Stage, **changes: object) -> Exception:
    return caught(stage.connect, stage.where(**changes))


@situation("server full", "mariadb", "postgresql", verdict=FULL, into=SITUATIONS)
def server_full(stage: Stage) -> Exception:
    """1040 and 53300: nobody gets in, on PostgreSQL not even a superuser."""
    with stage.server.fill(), ExitStack() as superusers:
        if not stage.mysql:
            arguments = stage.server.connect_args(host=str(stage.server.folder), user="postgres")
            while True:
                try:
                    superusers.enter_context(closing(psycopg.connect(**arguments)))
                except psycopg.OperationalError:
                    break
        return _refused_by(stage)


@situation("reserved slots", "postgresql", verdict=FULL, into=SITUATIONS)
def reserved_slots(stage: Stage) -> Exception:
    """53300: what is left is for superusers."""
    with stage.server.fill():
        return _refused_by(stage)


@situation("account full by grant", "mariadb", verdict=FULL, into=SITUATIONS)
def account_full_by_grant(stage: Stage) -> Exception:
    """1226: as many connections as GRANT allows the account."""
    stage.at_end(stage.server.execute, "ALTER USER app@'%' WITH MAX_USER_CONNECTIONS 0")
    stage.server.execute("ALTER USER app@'%' WITH MAX_USER_CONNECTIONS 1")
    stage.connect()
    return _refused_by(stage)


@situation("account full by setting", "mariadb", verdict=FULL, into=SITUATIONS)
def account_full_by_setting(stage: Stage) -> Exception:
    """1203: as many connections as the server allows any account."""
    stage.at_end(stage.server.execute, "SET GLOBAL max_user_connections = 1000")
    stage.server.execute("SET GLOBAL max_user_connections = 1")
    stage.connect()
    return _refused_by(stage)


@situation("account out of queries", "mariadb", verdict=None, into=SITUATIONS)
def account_out_of_queries(stage: Stage) -> Exception:
    """1226 again, for queries: it will be so for an hour."""
    stage.at_end(stage.server.execute, "ALTER USER app@'%' WITH MAX_QUERIES_PER_HOUR 0")
    stage.server.execute("ALTER USER app@'%' WITH MAX_QUERIES_PER_HOUR 30")

    def ask() -> None:
        session = stage.connect()
        for _ in range(31):
            session.execute("SELECT 1")

    return caught(ask)


@situation("role full", "postgresql", verdict=FULL, into=SITUATIONS)
def role_full(stage: Stage) -> Exception:
    """53300: as many connections as the role may have."""
    return _limited(stage, "ROLE app")


@situation("database full", "postgresql", verdict=FULL, into=SITUATIONS)
def database_full(stage: Stage) -> Exception:
    """53300: as many connections as the database may have."""
    return _limited(stage, "DATABASE app")


def _limited(stage: Stage, what: str) -> Exception:
    stage.at_end(stage.server.execute, f"ALTER {what} CONNECTION LIMIT -1")
    stage.server.execute(f"ALTER {what} CONNECTION LIMIT 1")
    wait_until(lambda: attempted(stage.connect) is None)  # the server's own may still be counted
    return _refused_by(stage)


@situation("refused", "mariadb", "postgresql", verdict=UNREACHABLE, into=SITUATIONS)
def refused(stage: Stage) -> Exception:
    """Nobody listens."""
    with stage.proxy.refuse():
        return caught(stage.connect, stage.through_proxy())


@situation("socket missing", "mariadb", "postgresql", verdict=UNREACHABLE, into=SITUATIONS)
def socket_missing(stage: Stage) -> Exception:
    """The Unix socket is not there."""
    return _refused_by(stage, socket=str(stage.folder / "missing"))


@situation("unknown host", "mariadb", "postgresql", verdict=UNREACHABLE, into=SITUATIONS)
def unknown_host(stage: Stage) -> Exception:
    """The name can't be resolved, at the moment maybe."""
    return _refused_by(stage, host="no-such-host.invalid")


@situation("silent server", "mariadb", "postgresql", verdict=UNREACHABLE, into=SITUATIONS)
def silent_server(stage: Stage) -> Exception:
    """It takes the connection and says nothing; the driver's connect timeout ends it."""
    return _at_accept(stage, "blackhole", connect_timeout=1)


@situation("accept and close", "mariadb", "postgresql", verdict=UNREACHABLE, into=SITUATIONS)
def accept_and_close(stage: Stage) -> Exception:
    """It takes the connection and ends it."""
    return _at_accept(stage, "fin")


@situation("accept and reset", "mariadb", "postgresql", verdict=UNREACHABLE, into=SITUATIONS)
def accept_and_reset(stage: Stage) -> Exception:
    """It takes the connection and resets it."""
    return _at_accept(stage, "reset")


def _at_accept(stage: Stage, how: str, **changes: object) -> Exception:
    stage.at_end(stage.proxy.clear)
    stage.proxy.cut(how, "connect", times=1000)  # some try again by themselves
    return caught(stage.connect, stage.through_proxy(**changes))


@situation("starting up", "postgresql", verdict=UNREACHABLE, into=SITUATIONS)
def starting_up(stage: Stage) -> Exception:
    """57P03: the server recovers what it has not stored yet."""
    server = stage.other_server("starting_postgresql")
    return _refused_by(stage, port=server.port)


@situation("shutting down", "postgresql", verdict=UNREACHABLE, into=SITUATIONS)
def shutting_down(stage: Stage) -> Exception:
    """57P03: the server waits for its last client to leave."""
    stage.at_end(stage.server.start)
    stage.at_end(stage.server.stop)
    stage.connect()
    shut_down_smartly(stage.server)
    return _refused_by(stage)


def shut_down_smartly(server: PostgreSQL) -> None:
    """Let nobody in any more; the server ends when the last client leaves."""
    postmaster = (server.folder / "data" / "postmaster.pid").read_text().split()[0]
    os.kill(int(postmaster), signal.SIGTERM)

    def shut() -> bool:
        try:
            psycopg.connect(**server.connect_args()).close()
        except psycopg.OperationalError:
            return True
        return False

    wait_until(shut)


@situation("wrong password", "mariadb", "postgresql", verdict=None, into=SITUATIONS)
def wrong_password(stage: Stage) -> Exception:
    """It will be wrong again."""
    return _refused_by(stage, password="wrong")


@situation("unknown user", "mariadb", "postgresql", verdict=None, into=SITUATIONS)
def unknown_user(stage: Stage) -> Exception:
    """The server does not say that it is not known."""
    return _refused_by(stage, user="nobody")


@situation("unknown database", "mariadb", "postgresql", verdict=None, into=SITUATIONS)
def unknown_database(stage: Stage) -> Exception:
    """1044 or 1049, and 3D000."""
    return _refused_by(stage, database="nowhere")
