"""One set of tests for every web server, over real sockets.

Each server is a class. What it does differently is said in `servers.py`, and seen without the
middleware as well: it is not ours. What they show is of G2, G5, G6 and G10.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import connections, downloads, shutdown, untouched, uploads
from .page import FEATURES, PAGE, installed, page, versions_of
from .servers import SERVERS, Running, WebServer
from .way import Look, looking, looking_anew


@pytest.fixture(scope="class")
def running(request: pytest.FixtureRequest, large_file: Path) -> Iterator[Running]:
    """The class's server."""
    with Running(request.cls.server, large_file) as running:
        yield running


@pytest.fixture
def look(running: Running) -> Look:
    """What the tests look at it with."""
    return looking(running)


@pytest.fixture
def look_anew(request: pytest.FixtureRequest) -> Look:
    """What the tests look with at servers of their own."""
    return looking_anew(request.cls.server)


class Common(
    uploads.Uploads,
    downloads.Downloads,
    connections.Connections,
    untouched.Untouched,
    shutdown.Shutdown,
):
    """What is the same for all."""

    server: WebServer


_PARTS = {
    "HTTP/1.1": (uploads.Uploads1, connections.Connections1),
    "HTTP/2": (connections.Connections2,),
    "ASGI": (downloads.ASGIDownloads, connections.ASGIConnections, untouched.ASGIUntouched),
    "WSGI": (connections.WSGIConnections,),
    ("ASGI", "HTTP/2"): (connections.ASGIConnections2,),
}

for _server in SERVERS:
    _kinds = (_server.protocol, _server.interface, (_server.interface, _server.protocol))
    _bases = [part for kind in _kinds for part in _PARTS.get(kind, ())]
    _name = f"Test{_server.identifier}"
    assert _name not in globals()
    globals()[_name] = type(_name, (Common, *_bases), {"server": _server})


def test_page(request: pytest.FixtureRequest) -> None:
    """The page tells what the tests see, no more and no less."""
    assert all(FEATURES.keys() >= server.differs.keys() for server in SERVERS)
    if request.config.getoption("--write-web-servers"):
        PAGE.write_text(page(installed()))
    told = PAGE.read_text()
    assert told == page(versions_of(told)), "the page is stale: run pytest --write-web-servers"
