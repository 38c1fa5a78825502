"""The shop's tables, fresh, on each of the real servers."""

from __future__ import annotations

import pytest

from example_app.database import Database, open_database
from example_app.servers import PrivateServer, url_of
from example_app.shop import Shop


@pytest.fixture(params=["mariadb", "postgresql"])
def server(request: pytest.FixtureRequest) -> PrivateServer:
    """A server without tables of the shop."""
    server: PrivateServer = request.getfixturevalue(request.param)
    server.execute("DROP TABLE IF EXISTS shop_order, shop_product")
    return server


@pytest.fixture
def database(server: PrivateServer) -> Database:
    """The shop's database, with tables and sample products."""
    database = open_database(url_of(server))
    Shop(database).open()
    return database
