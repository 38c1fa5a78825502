"""A PostgreSQL server that does not speak English; psycopg and psycopg2 have but its words."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg
import pytest

from retrymw.classify import classify
from retrymw.testing.servers import PostgreSQL
from tests.servers.situations.base import Verdict, attempted, caught, wait_until
from tests.servers.situations.connecting import shut_down_smartly
from tests.servers.stacks.base import Stack, Where
from tests.servers.stacks.postgresql import Psycopg, Psycopg2

LANGUAGES = ["de_DE", "fr_FR", "es_ES", "ja_JP", "ru_RU"]
CONNECTIONS = 2
FULL: Verdict = ("too-many-connections", "connect")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    """A server that has the locales of all the languages, in a folder of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="retrymw-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as environment,
    ):
        Path(folder).chmod(0o755)  # for the account that the server runs under
        for language in LANGUAGES:
            command = ["localedef", "-i", language, "-f", "UTF-8", f"{folder}/{language}.utf8"]
            subprocess.run(command, check=True, timeout=60)
        environment.setenv("LOCPATH", folder)
        environment.delenv("LANGUAGE", raising=False)  # it would go before lc_messages
        with PostgreSQL(max_connections=CONNECTIONS) as server:
            yield server


@pytest.fixture(params=LANGUAGES, scope="module")
def foreign(request: pytest.FixtureRequest, server: PostgreSQL) -> PostgreSQL:
    """The server, speaking that language."""
    locale = f"{request.param}.utf8"
    server.execute(f"ALTER SYSTEM SET lc_messages = '{locale}'")
    server.execute("SELECT pg_reload_conf()")
    wait_until(lambda: server.execute("SHOW lc_messages") == [(locale,)])
    assert "syntax error" not in str(attempted(server.execute, "SELEC"))
    return server


@pytest.fixture(params=[Psycopg(), Psycopg2()], ids=str)
def stack(request: pytest.FixtureRequest) -> Stack:
    return request.param


def refused(stack: Stack, server: PostgreSQL, **changes: str) -> Verdict:
    """Kind and phase of what comes of a connect."""
    where = Where(**{"host": server.host, "port": server.port} | changes)
    failure = classify(caught(stack.connect, where))
    return failure and (failure.kind, failure.phase)


@pytest.mark.parametrize("what", ["ROLE", "DATABASE"])
def test_account_full(stack: Stack, foreign: PostgreSQL, what: str) -> None:
    """53300: as many connections as the role, or the database, may have."""
    foreign.execute(f"ALTER {what} app CONNECTION LIMIT 0")
    try:
        assert refused(stack, foreign) == FULL
    finally:
        foreign.execute(f"ALTER {what} app CONNECTION LIMIT -1")


def test_server_full(stack: Stack, foreign: PostgreSQL) -> None:
    """53300: what is left is for superusers, and then nothing is."""
    with ExitStack() as connections:

        def connect(**changes: object) -> None:
            arguments = foreign.connect_args(**changes)
            connections.enter_context(closing(psycopg.connect(**arguments)))

        wait_until(lambda: not foreign.connection_count())
        for _ in range(CONNECTIONS):
            connect()
        assert refused(stack, foreign) == FULL
        superuser = {"host": str(foreign.folder), "user": "postgres"}
        while attempted(connect, **superuser) is None:
            pass
        assert refused(stack, foreign) == FULL


@pytest.mark.parametrize("wrong", ["password", "user", "database"])
def test_denied(stack: Stack, foreign: PostgreSQL, wrong: str) -> None:
    """28P01 and 3D000: it would be wrong again."""
    assert refused(stack, foreign, **{wrong: "wrong"}) is None


def test_killed(stack: Stack, foreign: PostgreSQL) -> None:
    """57P01, of which psycopg2 has only the words."""
    session = stack.connect(Where(foreign.host, foreign.port))
    session.execute("SELECT 1")
    foreign.kill_connections()
    failure = classify(caught(session.execute, "SELECT 1"))
    session.close()
    assert (failure.kind, failure.phase) == ("disconnection", "execute")


def test_shutting_down(foreign: PostgreSQL) -> None:
    """57P03: it waits for its last client to leave."""
    client = psycopg.connect(**foreign.connect_args())
    try:
        shut_down_smartly(foreign)
        for stack in (Psycopg(), Psycopg2()):
            assert refused(stack, foreign) == ("disconnection", "connect")
    finally:
        client.close()
        foreign.stop()
        foreign.start()
