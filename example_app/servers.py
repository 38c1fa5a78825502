"""Private database servers for those who have none at hand: started here, gone afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from retrymw.testing.servers import MariaDB, PostgreSQL, embedded_postgresql

PrivateServer = MariaDB | PostgreSQL
Kind = Literal["embedded", "mariadb"]


def private_server(kind: Kind, max_connections: int) -> PrivateServer:
    """A server on a free port with its data in a temporary folder; ``with`` starts and removes it.

    Args:
        kind: ``embedded`` is PostgreSQL from a wheel, ``mariadb`` the MariaDB of this machine.
        max_connections: how many the app can have at once.
    """
    if kind == "embedded":
        return embedded_postgresql(max_connections=max_connections)
    return MariaDB(max_connections=max_connections, settings={"character-set-server": "utf8mb4"})


def url_of(server: PrivateServer) -> str:
    """Where the app finds a server. TLS is for networks: within one machine it only costs time."""
    return server.url + ("?ssl_disabled=1" if isinstance(server, MariaDB) else "?sslmode=disable")


@contextmanager
def outages(server: PrivateServer, every: float) -> Iterator[None]:
    """Kill the server every so many seconds within the block; start it again a second later."""
    over = threading.Event()

    def kill_and_start() -> None:
        while not over.wait(every):
            server.kill()
            over.wait(1)
            server.start()

    thread = threading.Thread(target=kill_and_start)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
