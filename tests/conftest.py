"""The database servers of the tests: each is started once, and healed after every test."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest

from retrymw.testing import FaultProxy
from retrymw.testing.servers import MariaDB, PostgreSQL

hypothesis.settings.register_profile("retrymw", deadline=None)
hypothesis.settings.load_profile("retrymw")

_servers: dict[str, MariaDB | PostgreSQL] = {}


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB server with 20 connections. Do not close it; all else is undone after the test."""
    # A limit of accounts can be changed while the server runs only if it has started with one.
    with MariaDB(max_connections=20, settings={"max-user-connections": 1000}) as server:
        _servers["mariadb"] = server
        yield server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server with 20 connections. Do not close it; all else is undone."""
    with PostgreSQL(max_connections=20) as server:
        _servers["postgresql"] = server
        yield server


@pytest.fixture(autouse=True)
def _heal(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave the servers that a test used running, and without clients."""
    yield
    for name in _servers.keys() & set(request.fixturenames):
        server = _servers[name]
        server.resume()
        server.start()
        server.kill_connections()


@pytest.fixture
def mariadb_proxy(mariadb: MariaDB) -> Iterator[FaultProxy]:
    """A fresh fault proxy before `mariadb`."""
    with FaultProxy((mariadb.host, mariadb.port), "mysql") as proxy:
        yield proxy


@pytest.fixture
def postgresql_proxy(postgresql: PostgreSQL) -> Iterator[FaultProxy]:
    """A fresh fault proxy before `postgresql`."""
    with FaultProxy((postgresql.host, postgresql.port), "postgresql") as proxy:
        yield proxy
