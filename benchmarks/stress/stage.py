"""What all cells share: one private MariaDB server, left clean by each."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from benchmarks.stress.load import Plan
from benchmarks.stress.processes import App, Clients, app, clients
from benchmarks.stress.rows import Row
from retrymw.testing.proxy import FaultProxy
from retrymw.testing.servers import MariaDB

__all__ = ["CONNECTIONS", "SETTINGS", "Stage", "every", "sleep_until"]

CONNECTIONS: Final = 20

# By default it has room for 54 connections that are not accepted yet. Of 200 at once the kernel
# drops some, and the driver waits for their greeting for ever: that is not what is measured here.
SETTINGS: Final = {"back-log": 1024}
_BOUND: Final = 30.0  # seconds


class Stage:
    """The server, and what is put up around it.

    Args:
        server: a running server.
        pace: what the lengths of all cells are multiplied with; 1 for figures that count.
    """

    def __init__(self, server: MariaDB, pace: float = 1.0) -> None:
        self.server = server
        self._pace = pace
        server.execute("CREATE TABLE app.products (number INT PRIMARY KEY, name TEXT)")
        server.execute("INSERT INTO app.products VALUES (1, 'tea')")
        server.execute("CREATE TABLE app.orders (number INT)")
        server.execute("CREATE TABLE app.orders_once (number INT PRIMARY KEY)")

    def seconds(self, seconds: float) -> float:
        """So many seconds at this pace."""
        return seconds * self._pace

    @contextmanager
    def app(
        self, row: Row, *, hold: float = 0, port: int | None = None, **policy: Any
    ) -> Iterator[App]:
        """The app of a row, being started; everything is clean after it.

        Args:
            row: its configuration.
            hold: seconds that a GET keeps its connection on the server.
            port: of a proxy before the server; None for the server itself.
            **policy: fields of the policy, for rows with retrymw.
        """
        database = self.server.connect_args(port=port or self.server.port)
        try:
            with app(row, database, hold, policy) as running:
                yield running
        finally:
            self.server.resume()
            self.server.start()
            self.server.kill_connections()
            self.server.execute("TRUNCATE app.orders")
            self.server.execute("TRUNCATE app.orders_once")

    @contextmanager
    def clients(self, app: App, seconds: float, **plan: Any) -> Iterator[Clients]:
        """Clients that are ready, as is the app; further arguments as for ``Plan``."""
        with clients(Plan(app.url, self.seconds(seconds), **plan)) as started:
            app.get_ready()
            started.get_ready()
            yield started

    def proxy(self) -> FaultProxy:
        """A proxy before the server, to enter with ``with``."""
        return FaultProxy((self.server.host, self.server.port), self.server.protocol)

    def refused(self) -> int:
        """How many connections the server has refused since it was started.

        Connection_errors_max_connections leaves out those that came one at a time: MariaDB lets one
        more in than it has connections, and refuses it after its login.
        """
        [(_, value)] = self.server.execute("SHOW GLOBAL STATUS LIKE 'Aborted_connects'")
        return int(value)

    def wait_until_accepting(self, begun: float) -> float:
        """Wait for the server's greeting; return when it came (monotonic seconds).

        Raises:
            TimeoutError: none came in 30 s after ``begun``.
        """
        while time.monotonic() < begun + _BOUND:
            with contextlib.suppress(OSError):
                address = (self.server.host, self.server.port)
                with socket.create_connection(address, timeout=_BOUND) as connection:
                    if connection.recv(1):
                        return time.monotonic()
            time.sleep(0.001)
        raise TimeoutError(f"the server is not back in {_BOUND} s")


@contextmanager
def every(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call that often, in a thread; raises what the calls raised."""
    stop = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            due += seconds
            try:
                call()
            except Exception as exc:  # noqa: BLE001  # raised below
                errors.append(exc)
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(_BOUND)
    if errors:
        raise errors[0]


def sleep_until(moment: float) -> None:
    """Sleep until then (monotonic seconds)."""
    time.sleep(max(0.0, moment - time.monotonic()))
