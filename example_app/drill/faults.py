"""What the drill does to a database: to a private server in earnest, to yours only on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol
from urllib.parse import urlsplit

from example_app.servers import PrivateServer
from retrymw.testing import FaultProxy


class Faults(Protocol):
    """What can be done to a database. All of it blocks."""

    def kill_connections(self) -> object:
        """End every connection of the app."""

    def fill(self) -> AbstractContextManager[object] | None:
        """Leave the app no connection to have, within the block; None if that can't be done."""

    def outage(self) -> AbstractContextManager[object]:
        """Be gone within the block, without a goodbye."""


class ServerFaults:
    """For a private server: everything is real."""

    def __init__(self, server: PrivateServer) -> None:
        self.kill_connections = server.kill_connections
        self.fill = server.fill
        self._server = server

    @contextmanager
    def outage(self) -> Iterator[None]:
        self._server.kill()
        try:
            yield
        finally:
            self._server.start()


class ProxyFaults:
    """For somebody's server: a proxy before it cuts connections and refuses new ones."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    def kill_connections(self) -> None:
        self._proxy.cut_all("reset")

    def fill(self) -> None:
        return None

    @contextmanager
    def outage(self) -> Iterator[None]:
        with self._proxy.refuse():
            self._proxy.cut_all("reset")
            yield


@contextmanager
def through_proxy(url: str) -> Iterator[tuple[str, Faults]]:
    """The URL of a proxy before the database at ``url``, and what can be done there."""
    parts = urlsplit(url)
    default = 5432 if parts.scheme.startswith("postgres") else 3306
    with FaultProxy((parts.hostname or "127.0.0.1", parts.port or default)) as proxy:
        user, at, _ = parts.netloc.rpartition("@")
        netloc = f"{user}{at}{proxy.host}:{proxy.port}"
        yield parts._replace(netloc=netloc).geturl(), ProxyFaults(proxy)
