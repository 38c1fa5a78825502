"""The fault proxy, between real drivers and real servers."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import MySQLdb  # type: ignore[import-untyped, unused-ignore]
import psycopg
import psycopg2  # type: ignore[import-untyped, unused-ignore]
import pymysql
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrymw.testing import FaultProxy
from retrymw.testing._wire import MySQLStream, PostgreSQLStream, Stream
from retrymw.testing.servers import MariaDB, PostgreSQL

MODULES: dict[str, ModuleType] = {
    "pymysql": pymysql,
    "MySQLdb": MySQLdb,
    "psycopg": psycopg,
    "psycopg2": psycopg2,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "pymysql": {"ssl_disabled": True, "connect_timeout": 5, "read_timeout": 10},
    "MySQLdb": {"connect_timeout": 5, "read_timeout": 10},
    "psycopg": {"connect_timeout": 5},
    "psycopg2": {"connect_timeout": 5},
}


@dataclass
class Database:
    """A server behind a proxy, and a driver to reach it with."""

    server: MariaDB | PostgreSQL
    proxy: FaultProxy
    driver: ModuleType

    def connect(self, **options: Any) -> closing[Any]:
        """Connect through the proxy; as a context manager it closes even a dead connection."""
        address = {"host": self.proxy.host, "port": self.proxy.port}
        options |= OPTIONS[self.driver.__name__]
        return closing(self.driver.connect(**self.server.connect_args(**address, **options)))

    def rows(self) -> int:
        """How many rows are committed."""
        return int(self.server.execute("SELECT count(*) FROM proxied")[0][0])

    def lost(self) -> Any:
        return pytest.raises(self.driver.OperationalError)


@pytest.fixture(params=["pymysql", "psycopg"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A server with an empty table, behind a proxy."""
    name = "postgresql" if request.param.startswith("psycopg") else "mariadb"
    server = request.getfixturevalue(name)
    proxy = request.getfixturevalue(f"{name}_proxy")
    server.execute("CREATE TABLE proxied (a INT)")
    if name == "postgresql":
        server.execute("GRANT ALL ON proxied TO app")
    yield Database(server, proxy, MODULES[request.param])
    proxy.stop()
    server.kill_connections()
    server.execute("DROP TABLE proxied")


every_driver = pytest.mark.parametrize("database", MODULES, indirect=True)
every_end = pytest.mark.parametrize("how", ["reset", "fin"])


def run(connection: Any, sql: str) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(sql)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited 10 s in vain"
        time.sleep(0.005)


@every_driver
def test_traffic_passes(database: Database) -> None:
    """Without a fault the client is served as if there were no proxy, and is counted."""
    with database.connect() as connection:
        run(connection, "INSERT INTO proxied VALUES (1)")
        connection.commit()
        assert (database.proxy.connections, database.proxy.accepted) == (1, 1)
    until(lambda: database.proxy.connections == 0)
    assert (database.rows(), database.proxy.accepted, database.proxy.faults) == (1, 1, 0)


def test_bulk_passes(database: Database) -> None:
    """Eight megabytes arrive unharmed both ways, though the proxy stores no more than one."""
    text = "0123456789abcdef" * (1 << 19)
    with database.connect() as connection, closing(connection.cursor()) as cursor:
        cursor.execute(f"SELECT '{text}'")
        assert cursor.fetchall()[0][0] == text


@every_end
def test_cut_at_connect(database: Database, how: Any) -> None:
    """The next `times` connections fail at once, and the one after them is served."""
    database.proxy.cut(how, "connect", times=2)
    for _ in range(2):
        with database.lost(), database.connect():
            pass
    with database.connect() as connection:
        run(connection, "SELECT 1")
    assert (database.proxy.faults, database.proxy.accepted) == (2, 3)


@every_end
def test_cut_at_a_request(database: Database, how: Any) -> None:
    """An open connection has n - 1 more requests served; the n-th is run, but not answered."""
    with database.connect(autocommit=True) as connection:
        run(connection, "SELECT 1")
        database.proxy.cut(how, 3)
        run(connection, "SELECT 1")
        run(connection, "SELECT 1")
        assert database.proxy.faults == 0
        with database.lost():
            run(connection, "INSERT INTO proxied VALUES (1)")
        assert database.rows() == 1
    assert (database.proxy.faults, database.proxy.connections) == (1, 0)


def test_requests_are_counted_for_each_connection(database: Database) -> None:
    """Two connections that each make one request do not come to the second."""
    with ExitStack() as connections:
        both = [connections.enter_context(database.connect(autocommit=True)) for _ in range(2)]
        database.proxy.cut("reset", 2)
        for connection in both:
            run(connection, "SELECT 1")
        with database.lost():
            run(both[0], "SELECT 1")
        run(both[1], "SELECT 1")


@every_end
@every_driver
def test_cut_at_commit(database: Database, how: Any) -> None:
    """The client learns nothing of its COMMIT, and yet the row is there at once."""
    with database.connect() as connection:
        run(connection, "INSERT INTO proxied VALUES (1)")
        database.proxy.cut(how, "commit")
        with database.lost():
            connection.commit()
        assert (database.rows(), database.proxy.faults) == (1, 1)


@every_end
@every_driver
def test_cut_before_commit(database: Database, how: Any) -> None:
    """The database never sees the COMMIT, and undoes the transaction."""
    with database.connect() as connection:
        run(connection, "INSERT INTO proxied VALUES (1)")
        database.proxy.cut(how, "before-commit")
        with database.lost():
            connection.commit()
    until(lambda: database.server.connection_count() == 0)
    assert (database.rows(), database.proxy.faults) == (0, 1)


@pytest.mark.parametrize("at", ["before-commit", "commit"])
@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_cut_at_a_prepared_commit(database: Database, at: Any) -> None:
    """A COMMIT of PostgreSQL's extended protocol is recognised, the second time too."""
    with database.connect(autocommit=True) as connection:
        for _ in range(2):
            connection.execute("BEGIN")
            connection.execute("commit", prepare=True)
        database.proxy.cut("reset", at)
        connection.execute("BEGIN")
        connection.execute("INSERT INTO proxied VALUES (1)")
        with database.lost():
            connection.execute("commit", prepare=True)
    until(lambda: database.server.connection_count() == 0)
    assert database.rows() == (at == "commit")


@pytest.mark.parametrize("database", ["psycopg"], indirect=True)
def test_a_commit_that_fails_is_not_cut(database: Database) -> None:
    """The client is told why its COMMIT failed; the fault waits for one that succeeds."""
    database.server.execute("CREATE TABLE IF NOT EXISTS late (a INT UNIQUE DEFERRABLE)")
    database.server.execute("GRANT ALL ON late TO app")
    database.proxy.cut("reset", "commit")
    with database.connect() as connection:
        run(connection, "SET CONSTRAINTS ALL DEFERRED")
        run(connection, "INSERT INTO late VALUES (1), (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.commit()
        assert database.proxy.faults == 0
        run(connection, "INSERT INTO proxied VALUES (1)")
        with database.lost():
            connection.commit()
    assert (database.rows(), database.proxy.faults) == (1, 1)
    database.server.execute("DROP TABLE late")


def test_other_statements_are_no_commit(database: Database) -> None:
    """What merely mentions COMMIT passes."""
    database.proxy.cut("reset", "before-commit")
    with database.connect(autocommit=True) as connection:
        run(connection, "SELECT 'commit'")
        with pytest.raises(database.driver.Error, match="commitment"):
            run(connection, "commitment")
    assert database.proxy.faults == 0


def test_blackhole(database: Database) -> None:
    """A connection in a black hole gives no answer and no end, until the proxy is cleared."""
    with database.connect(autocommit=True) as connection:
        database.proxy.cut("blackhole", 1)
        outcome: list[Exception] = []

        def ask() -> None:
            try:
                run(connection, "INSERT INTO proxied VALUES (1)")
            except database.driver.OperationalError as error:
                outcome.append(error)

        client = threading.Thread(target=ask)
        client.start()
        database.proxy.wait_for_faults(1)
        assert database.rows() == 1
        assert client.is_alive()
        assert (database.proxy.connections, database.server.connection_count()) == (1, 1)
        database.proxy.clear()
        client.join(10)
        assert outcome
    until(lambda: database.server.connection_count() == 0)
    assert database.proxy.connections == 0


def test_blackhole_has_no_hole() -> None:
    """What the proxy was about to read when the connection was silenced arrives neither."""
    with ExitStack() as closing:
        listener = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
        proxy = closing.enter_context(FaultProxy(listener.getsockname()))
        address = ("127.0.0.1", proxy.port)
        client = closing.enter_context(socket.create_connection(address, 5))
        server = closing.enter_context(listener.accept()[0])
        server.sendall(b"before")
        assert client.recv(6) == b"before"
        [relay] = proxy._relays
        proxy.cut_all("blackhole")
        server.sendall(b"after")
        # As it does when select() has returned before the cut.
        relay.handle(relay._upstream, selectors.EVENT_READ)
        assert relay._unsent[relay._client] == b""


def test_blackhole_at_connect(database: Database) -> None:
    """The client is accepted, and then hears nothing; the server never learns of it."""
    database.proxy.cut("blackhole", "connect")
    with socket.create_connection((database.proxy.host, database.proxy.port)) as client:
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert (database.proxy.connections, database.server.connection_count()) == (1, 0)
        database.proxy.clear()
        client.settimeout(10)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_refuse(database: Database) -> None:
    """New connections are refused by TCP, open ones live on; after it the port is the same."""
    address = (database.proxy.host, database.proxy.port)
    with database.connect() as connection:
        with database.proxy.refuse(), database.proxy.refuse():
            with database.lost(), database.connect():
                pass
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            run(connection, "SELECT 1")
        assert (database.proxy.host, database.proxy.port) == address
        assert database.proxy.accepted == 1
        with database.connect() as other:
            run(other, "SELECT 1")


def test_refuse_for_a_time(mariadb_proxy: FaultProxy) -> None:
    """Connections are refused from the call on, and taken again when the time is over."""
    address = (mariadb_proxy.host, mariadb_proxy.port)
    start = time.monotonic()
    mariadb_proxy.refuse_for(0.2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)

    def accepts() -> bool:
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError:
            return False
        return True

    until(accepts)
    assert time.monotonic() - start >= 0.2
    mariadb_proxy.refuse_for(60)
    mariadb_proxy.clear()
    assert accepts()


@every_end
def test_cut_all(database: Database, how: Any) -> None:
    """Every open connection is cut, new ones are served."""
    with ExitStack() as connections:
        both = [connections.enter_context(database.connect()) for _ in range(2)]
        assert database.proxy.cut_all(how) == 2
        for connection in both:
            with database.lost():
                run(connection, "SELECT 1")
        run(connections.enter_context(database.connect()), "SELECT 1")
    until(lambda: database.proxy.connections == 0)
    assert (database.proxy.cut_all(how), database.proxy.faults) == (0, 0)


def test_clear_disarms(database: Database) -> None:
    """After `clear` nothing is cut."""
    database.proxy.cut("reset", 1)
    database.proxy.cut("reset", "commit")
    database.proxy.clear()
    with database.connect() as connection:
        run(connection, "SELECT 1")
        connection.commit()
    assert database.proxy.faults == 0


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    """A server that only listens; what it accepts waits for 10 seconds at most."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def dial(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=10)


@every_end
def test_how_it_ends(upstream: socket.socket, how: Any) -> None:
    """After "reset" the client's next read fails with ECONNRESET, after "fin" it is at the end."""
    with FaultProxy(upstream.getsockname()) as proxy, dial(proxy) as client:
        client.sendall(b"unread")
        until(lambda: proxy.connections == 1)
        proxy.cut_all(how)
        if how == "reset":
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        else:
            assert client.recv(1) == b""


def test_packets_may_come_in_pieces(upstream: socket.socket) -> None:
    """Sent byte by byte, a COMMIT is still caught, and nothing of it is passed on."""
    insert, commit = mysql(0, b"\x03INSERT"), mysql(0, b"\x03COMMIT")
    with FaultProxy(upstream.getsockname(), "mysql") as proxy, dial(proxy) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        proxy.cut("fin", "before-commit")
        with upstream.accept()[0] as server:
            server.settimeout(10)
            for byte in insert:
                client.sendall(bytes([byte]))
            with server.makefile("rb") as received:
                assert received.read(len(insert)) == insert
                for byte in commit:
                    client.sendall(bytes([byte]))
                assert received.read() == b""
        assert client.recv(1) == b""


@pytest.mark.parametrize("ended_by", ["answer", "server", "client"])
def test_cut_at_a_request_waits_for_the_answer(upstream: socket.socket, ended_by: str) -> None:
    """The fault strikes when the database has answered, or nobody is left to."""
    request = mysql(0, b"\x03INSERT")
    with FaultProxy(upstream.getsockname(), "mysql") as proxy:
        proxy.cut("reset", 1)
        with dial(proxy) as client, upstream.accept()[0] as server:
            server.settimeout(10)
            client.sendall(request)
            with server.makefile("rb") as received:
                assert received.read(len(request)) == request
                assert (proxy.faults, proxy.connections) == (0, 1)
                if ended_by == "client":
                    client.close()
                    assert received.read() == b""
            if ended_by == "answer":
                server.sendall(mysql(1, b"\x00"))
            elif ended_by == "server":
                server.close()
            if ended_by != "client":
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            proxy.wait_for_faults(1)
        until(lambda: proxy.connections == 0)


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_cut_at_a_request_of_a_client_that_goes_on(upstream: socket.socket, later: bool) -> None:
    """One that sends more before it is answered is cut then: the database may wait for the rest,
    which is not passed on."""
    request, more = mysql(0, b"\x03INSERT"), mysql(0, b"\x03SELECT")
    with FaultProxy(upstream.getsockname(), "mysql") as proxy:
        proxy.cut("reset", 1)
        with dial(proxy) as client, upstream.accept()[0] as server:
            server.settimeout(10)
            client.sendall(request if later else request + more)
            with server.makefile("rb") as received:
                assert received.read(len(request)) == request
                if later:
                    client.sendall(more)
                assert received.read() == b""
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            proxy.wait_for_faults(1)


def test_clear_ends_the_silence_to_come(upstream: socket.socket) -> None:
    """A connection that was to fall silent with the answer is reset with it after `clear`."""
    request = mysql(0, b"\x03INSERT")
    with FaultProxy(upstream.getsockname(), "mysql") as proxy:
        proxy.cut("blackhole", 1)
        with dial(proxy) as client, upstream.accept()[0] as server:
            client.sendall(request)
            with server.makefile("rb") as received:
                assert received.read(len(request)) == request
            proxy.clear()
            server.sendall(mysql(1, b"\x00"))
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_upstream_is_down(upstream: socket.socket) -> None:
    """A client whose database cannot be reached is reset; the next goes to the new upstream."""
    with FaultProxy(("127.0.0.1", 1)) as proxy:
        with pytest.raises(ConnectionResetError), dial(proxy) as client:
            client.recv(1)
        proxy.upstream = upstream.getsockname()
        assert proxy.upstream == upstream.getsockname()
        with dial(proxy) as client, upstream.accept()[0] as server:
            server.sendall(b"hello")
            assert client.recv(100) == b"hello"


def test_ends_are_passed_on(upstream: socket.socket) -> None:
    """When one side ends, the other gets what was said before, and then the end."""
    with FaultProxy(upstream.getsockname()) as proxy:
        with dial(proxy) as client:
            with upstream.accept()[0] as server:
                server.sendall(b"goodbye" * 100_000)
            with client.makefile("rb") as received:
                assert len(received.read()) == 700_000
        until(lambda: proxy.connections == 0)


def test_stop(upstream: socket.socket) -> None:
    """To stop ends the connections, even silent ones, and the thread; to repeat it is harmless."""
    others = set(threading.enumerate())
    proxy = FaultProxy(upstream.getsockname())
    proxy.start()
    with dial(proxy) as silent, dial(proxy) as client:
        until(lambda: proxy.connections == 2)
        proxy.cut_all("blackhole")
        proxy.stop()
        proxy.stop()
        assert (silent.recv(1), client.recv(1)) == (b"", b"")
    assert proxy.connections == 0
    assert set(threading.enumerate()) <= others
    with pytest.raises(ConnectionRefusedError):
        dial(proxy)


def test_port_stays(upstream: socket.socket) -> None:
    """The port is below those given to clients, and the same after a stop and a start."""
    proxy = FaultProxy(upstream.getsockname())
    with pytest.raises(RuntimeError, match="start"):
        _ = proxy.port
    with proxy:
        port = proxy.port
        assert 1024 < port < 32768
        with pytest.raises(RuntimeError, match="already"):
            proxy.start()
    with proxy, dial(proxy):
        assert proxy.port == port


def test_wait_for_faults(database: Database) -> None:
    """It returns once the faults have struck, and raises TimeoutError while they have not."""
    database.proxy.cut("reset", "connect")
    with pytest.raises(TimeoutError, match="0 of 1"):
        database.proxy.wait_for_faults(1, 0.01)
    with database.lost(), database.connect():
        pass
    database.proxy.wait_for_faults(1, 0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("drop", 1), "how must be one of 'reset', 'fin', 'blackhole', not 'drop'"),
        (("fin", 0), "at must be .* or a whole number from 1 up, not 0"),
        (("fin", True), "at must be .* not True"),
        (("fin", 1.5), "at must be .* not 1.5"),
        (("fin", "rollback"), "at must be 'connect', 'before-commit', 'commit' .* not 'rollback'"),
        (("fin", 1, 0), "times must be a whole number from 1 up, not 0"),
    ],
)
def test_bad_faults(arguments: tuple[Any, ...], problem: str) -> None:
    """A fault that makes no sense is a ValueError that names argument, value and what may be."""
    proxy = FaultProxy(("127.0.0.1", 1), "mysql")
    how, at, *times = arguments
    with pytest.raises(ValueError, match=problem):
        proxy.cut(how, at, **({"times": times[0]} if times else {}))


def test_bad_use() -> None:
    """Wrong protocols, times, and moments that need a protocol are ValueErrors."""
    with pytest.raises(ValueError, match=r"protocol must be .* not 'oracle'"):
        FaultProxy(("127.0.0.1", 1), "oracle")  # type: ignore[arg-type]
    proxy = FaultProxy(("127.0.0.1", 1))
    moments: list[Any] = [1, "commit", "before-commit"]
    for at in moments:
        with pytest.raises(ValueError, match="needs FaultProxy"):
            proxy.cut("fin", at)
    with pytest.raises(ValueError, match="seconds must be above 0 and finite, not inf"):
        proxy.refuse_for(float("inf"))
    with pytest.raises(ValueError, match="how must be"):
        proxy.cut_all("drop")  # type: ignore[arg-type]


def test_many_threads(database: Database) -> None:
    """With clients, faults and refusals in many threads all faults strike, and all ends."""
    done = threading.Event()

    def use() -> None:
        while not done.is_set():
            try:
                with database.connect() as connection:
                    run(connection, "SELECT 1")
                    connection.commit()
            except database.driver.Error:
                pass

    clients = [threading.Thread(target=use) for _ in range(6)]
    for client in clients:
        client.start()
    try:
        moments: list[Any] = [1, "connect", "commit", 2, 1, "before-commit"]
        for at in moments * 3:
            struck = database.proxy.faults
            database.proxy.cut("reset", at)
            database.proxy.wait_for_faults(struck + 1)
            database.proxy.cut_all("fin")
            with database.proxy.refuse():
                pass
    finally:
        done.set()
        for client in clients:
            client.join(20)
    assert not any(client.is_alive() for client in clients)
    assert database.proxy.faults == 18
    until(lambda: database.proxy.connections == 0)


def mysql(sequence: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([sequence]) + payload


def postgresql(kind: bytes, payload: bytes = b"") -> bytes:
    return kind + struct.pack("!i", len(payload) + 4) + payload


LOGIN = postgresql(b"", b"\x04\xd2\x16\x2f") + postgresql(b"", b"\x00\x03\x00\x00user\x00\x00")
BIG = mysql(0, b"\x03" + b"x" * 0xFFFFFE) + mysql(1, b"rest")


@pytest.mark.parametrize(
    ("stream", "said", "requests", "commits"),
    [
        (MySQLStream, mysql(1, b"login") + mysql(3, b"password"), 0, 0),
        (MySQLStream, mysql(0, b"\x03COMMIT"), 1, 1),
        (MySQLStream, mysql(0, b"\x03\x00\x01 commit;"), 1, 1),
        (MySQLStream, mysql(0, b"\x03COMMITS"), 1, 0),
        (MySQLStream, mysql(0, b"\x03/**/ROLLBACK"), 1, 0),
        (MySQLStream, mysql(0, b"\x16COMMIT"), 1, 0),  # prepares it
        (MySQLStream, mysql(0, b"\x19\x01") + mysql(0, b"\x0e") + mysql(0, b"\x01"), 1, 0),
        (MySQLStream, mysql(0, b"\x03LOAD") + mysql(2, b"data") + mysql(3, b""), 1, 0),
        (MySQLStream, mysql(1, b"\x00\x08" + b"\x00" * 30) + b"\x16\x03\x01TLS", 0, 0),
        (PostgreSQLStream, LOGIN + postgresql(b"p", b"secret"), 0, 0),
        (PostgreSQLStream, LOGIN[:8] + b"\x16\x03\x01TLS", 0, 0),
        (PostgreSQLStream, LOGIN + postgresql(b"Q", b"\n COMMIT WORK\x00"), 1, 1),
        (PostgreSQLStream, LOGIN + postgresql(b"Q", b"commit_log\x00") + postgresql(b"X"), 1, 0),
        (
            PostgreSQLStream,
            LOGIN
            + postgresql(b"P", b"s\x00commit\x00\x00\x00")
            + postgresql(b"B", b"p\x00s\x00")
            + postgresql(b"E", b"p\x00")
            + postgresql(b"S")
            + postgresql(b"B", b"p\x00other\x00")
            + postgresql(b"E", b"p\x00")
            + postgresql(b"S"),
            2,
            1,
        ),
        (Stream, b"whatever COMMIT", 0, 0),
    ],
)
@given(data=st.data())
def test_what_is_a_request(
    stream: type[Stream], said: bytes, requests: int, commits: int, data: st.DataObject
) -> None:
    """However TCP cuts what a client says, all of it is passed on, and understood the same."""
    cuts = data.draw(st.sets(st.integers(0, len(said)))) | {0, len(said)}
    reader, points = stream(), sorted(cuts)
    packets = [packet for start, end in pairwise(points) for packet in reader.feed(said[start:end])]
    assert b"".join(packet for packet, _, _ in packets) == said
    assert sum(is_request for _, is_request, _ in packets) == requests
    assert sum(is_commit for _, _, is_commit in packets) == commits


def test_a_command_may_span_packets() -> None:
    """A MySQL command of more than 16 MB is one request, complete with its last packet."""
    requests = [is_request for _, is_request, _ in MySQLStream().feed(BIG)]
    assert requests == [False, True]
