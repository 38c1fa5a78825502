"""What the drivers really raise where no server answers: plain sockets, nothing else."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import MySQLdb
import psycopg
import psycopg2
import pymysql
import pytest
import sqlalchemy

from retrymw.classify import classify
from tests.classify.helpers import caught

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


@contextmanager
def refusing() -> Iterator[int]:
    """A port on which nobody listens, and nobody else will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def closing(*, reset: bool = False, after: bytes = b"") -> Iterator[int]:
    """A port that accepts, says a few bytes perhaps, and closes or resets the connection."""

    def serve() -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                with listener.accept()[0] as connection:
                    connection.sendall(after)
                    if reset:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def connect_async(port):
    async def connect():
        await psycopg.AsyncConnection.connect(f"host=127.0.0.1 port={port} user=app")

    asyncio.run(connect())


def connect_sqlalchemy(url):
    def connect(port):
        sqlalchemy.create_engine(f"{url}://app@127.0.0.1:{port}/app").connect()

    return connect


CONNECTS = {
    "pymysql": lambda port: pymysql.connect(host="127.0.0.1", port=port, user="app"),
    "mysqlclient": lambda port: MySQLdb.connect(host="127.0.0.1", port=port, user="app"),
    "psycopg": lambda port: psycopg.connect(f"host=127.0.0.1 port={port} user=app"),
    "psycopg async": connect_async,
    "psycopg2": lambda port: psycopg2.connect(f"host=127.0.0.1 port={port} user=app"),
    "SQLAlchemy pymysql": connect_sqlalchemy("mysql+pymysql"),
    "SQLAlchemy mysqlclient": connect_sqlalchemy("mysql+mysqldb"),
    "SQLAlchemy psycopg": connect_sqlalchemy("postgresql+psycopg"),
    "SQLAlchemy psycopg2": connect_sqlalchemy("postgresql+psycopg2"),
}
SERVERS = {
    "refused": refusing,
    "closed": closing,
    "reset": lambda: closing(reset=True),
    "closed in the greeting": lambda: closing(after=b"J\0\0\0\x0a10"),
}


@pytest.mark.parametrize("driver", CONNECTS)
@pytest.mark.parametrize("server", SERVERS)
def test_no_server(driver, server):
    """G4: a connect that fails is a disconnection in connect, so that nothing can be committed."""
    with SERVERS[server]() as port:
        exc = caught(CONNECTS[driver], port)
    failure = classify(exc)
    if server == "closed in the greeting" and failure is None:
        assert "psycopg" in driver  # to PostgreSQL that is no greeting, but garbage
        return
    assert (failure.kind, failure.phase) == ("disconnection", "connect"), exc
    assert failure.driver == driver.split()[-1].replace("async", "psycopg")


@pytest.mark.parametrize("driver", ["pymysql", "mysqlclient", "psycopg", "psycopg2"])
def test_unknown_host(driver):
    """A host name that does not resolve may do so in a moment: it is a disconnection in connect."""
    host = "no-such-host.invalid"
    connect = {
        "pymysql": lambda: pymysql.connect(host=host, user="app"),
        "mysqlclient": lambda: MySQLdb.connect(host=host, user="app"),
        "psycopg": lambda: psycopg.connect(f"host={host} user=app"),
        "psycopg2": lambda: psycopg2.connect(f"host={host} user=app"),
    }[driver]
    failure = classify(caught(connect))
    assert (failure.kind, failure.phase) == ("disconnection", "connect")


# Without PyMySQL, which forgets to close its socket then.
@pytest.mark.parametrize("driver", ["mysqlclient", "psycopg", "psycopg2"])
def test_missing_unix_socket(driver, tmp_path):
    """A Unix socket that is not there is a server that is not there."""
    folder = str(tmp_path)
    connect = {
        "mysqlclient": lambda: MySQLdb.connect(unix_socket=f"{folder}/socket", user="app"),
        "psycopg": lambda: psycopg.connect(host=folder, user="app"),
        "psycopg2": lambda: psycopg2.connect(host=folder, user="app"),
    }[driver]
    failure = classify(caught(connect))
    assert (failure.kind, failure.phase) == ("disconnection", "connect")


def test_http_client():
    """G5: another client's refused connection is a builtin error, and not ours."""
    with refusing() as port:
        assert classify(caught(socket.create_connection, ("127.0.0.1", port))) is None
